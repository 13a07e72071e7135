//! Rules of the guard: what workers know together, and what it lets pass.

use super::*;
use crate::telemetry::metrics::{Metrics, Shard};
use weft_config::snapshot::{Bounds, Ejection, RetryBudget, SlowEndpoint, SuccessRate};

const FAST: Duration = Duration::from_millis(1);

/// A guard with endpoints, and the metrics that it tells.
struct Fixture {
    metrics: Arc<Metrics>,
    guards: Guards,
    guard: Arc<Guard>,
    endpoints: Vec<Arc<Standing>>,
    now: Instant,
}

fn place(index: usize) -> Place {
    Place {
        address: SocketAddr::from(([10, 0, 0, index as u8], 8080)),
        identity: None,
        workload: format!("shop/cart-{index}").into(),
        zone: None,
        labels: Arc::new([]),
        weight: 1,
    }
}

fn places(count: usize) -> Vec<Place> {
    (0..count).map(place).collect()
}

fn key(port: u16) -> GuardKey {
    GuardKey { service: "shop/cart".into(), port, rule: None }
}

impl Fixture {
    fn new(traffic: Traffic, endpoints: usize) -> Self {
        let (metrics, guards, now) = (Metrics::new(1), Guards::default(), Instant::now());
        let guard = guards.get(&key(80), &metrics.service("shop/cart"), now);
        let endpoints = guard.update(&Arc::new(traffic), &places(endpoints), now);
        // Later than the beginning, which has no number of its own.
        Self { metrics, guards, guard, endpoints, now: now + FAST }
    }

    fn enter(&self) -> Result<Entry, Error> {
        self.guard.enter(self.now)
    }

    /// One call to one endpoint.
    fn call(&self, endpoint: usize, outcome: Outcome) {
        self.call_taking(endpoint, outcome, FAST);
    }

    fn call_taking(&self, endpoint: usize, outcome: Outcome, took: Duration) {
        let entry = self.enter().expect("let in");
        let attempt = entry.attempt(&self.endpoints[endpoint], self.now).expect("may be tried");
        attempt.record(outcome, took, self.now);
    }

    fn calls(&self, endpoint: usize, outcome: Outcome, count: usize) {
        (0..count).for_each(|_| self.call(endpoint, outcome));
    }

    fn availability(&self, endpoint: usize) -> Availability {
        self.endpoints[endpoint].availability(self.now)
    }

    fn is_out(&self, endpoint: usize) -> bool {
        matches!(self.availability(endpoint), Availability::Out(_))
    }

    /// The value of a sample.
    fn metric(&self, name: &str) -> Option<f64> {
        self.guards.tick(self.now);
        let text = String::from_utf8(self.metrics.render()).expect("UTF-8");
        text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
    }
}

fn breaker(service: bool, endpoint: bool) -> Traffic {
    Traffic {
        breaker: Some(BreakerSettings {
            service,
            endpoint,
            error_share: 0.5,
            min_requests: 4,
            window: Duration::from_secs(10),
            consecutive_failures: None,
            open_for: Duration::from_millis(1_500),
            max_open_for: Duration::from_secs(30),
            probes: 1,
            slow_call: None,
        }),
        ejection: Ejection { consecutive_gateway_errors: 0, ..Ejection::default() },
        ..Traffic::default()
    }
}

fn in_since(since: Option<Instant>) -> Availability {
    Availability::In { since }
}

#[test]
fn all_workers_get_the_same_guard_as_long_as_one_holds_it() {
    let (metrics, guards, now) = (Metrics::new(1), Guards::default(), Instant::now());
    let series = metrics.service("shop/cart");
    let one = guards.get(&key(80), &series, now);
    assert!(Arc::ptr_eq(&one, &guards.get(&key(80), &series, now)));
    assert!(!Arc::ptr_eq(&one, &guards.get(&key(81), &series, now)));
    let of_rule = GuardKey { rule: Some("shop/cart#0".into()), ..key(80) };
    assert!(!Arc::ptr_eq(&one, &guards.get(&of_rule, &series, now)));
    guards.tick(now);
    assert_eq!(lock(&guards.0).len(), 1, "those that nobody holds are forgotten");
}

#[test]
fn an_endpoint_that_stays_keeps_its_standing() {
    let f = Fixture::new(Traffic::default(), 3);
    f.calls(1, Outcome::GatewayError, 5);
    let traffic = Arc::new(Traffic::default());
    let again = f.guard.update(&traffic, &[place(2), place(1), place(7)], f.now);
    assert!(Arc::ptr_eq(&again[0], &f.endpoints[2]));
    assert!(Arc::ptr_eq(&again[1], &f.endpoints[1]));
    assert_eq!(again[1].availability(f.now), Availability::Out(Why::Ejected));
}

#[test]
fn another_workload_at_the_same_address_is_another_endpoint() {
    let f = Fixture::new(Traffic::default(), 2);
    f.calls(1, Outcome::GatewayError, 5);
    let other = Place { workload: "shop/cart-b".into(), ..place(1) };
    let again = f.guard.update(&Arc::new(Traffic::default()), &[place(0), other], f.now);
    assert_eq!(again[1].availability(f.now), in_since(Some(f.now)));
}

#[test]
fn a_worker_that_lags_behind_makes_no_second_standing() {
    let f = Fixture::new(Traffic::default(), 2);
    let traffic = Arc::new(Traffic::default());
    let newest = f.guard.update(&traffic, &places(3), f.now);
    let lagging = f.guard.update(&traffic, &places(2), f.now);
    assert!(Arc::ptr_eq(&lagging[0], &newest[0]));
    let caught_up = f.guard.update(&traffic, &places(3), f.now);
    assert!(Arc::ptr_eq(&caught_up[2], &newest[2]), "the first worker holds it");
}

#[test]
fn those_of_the_first_snapshot_are_not_new_and_later_ones_are() {
    let f = Fixture::new(Traffic::default(), 2);
    assert_eq!(f.availability(0), in_since(None));
    let later = f.now + Duration::from_secs(1);
    let more = f.guard.update(&Arc::new(Traffic::default()), &places(3), later);
    assert_eq!(more[0].availability(later), in_since(None));
    assert_eq!(more[2].availability(later), in_since(Some(later)));
}

#[test]
fn gone_endpoints_are_forgotten() {
    let Fixture { guard, endpoints, now, .. } = Fixture::new(Traffic::default(), 50);
    drop(endpoints);
    guard.update(&Arc::new(Traffic::default()), &places(2), now);
    let roster = lock(&guard.roster);
    assert_eq!((roster.now.len(), roster.known.len()), (2, 2));
}

#[test]
fn health_checks_take_an_endpoint_out_and_bring_it_back_as_new() {
    let f = Fixture::new(Traffic::default(), 2);
    f.endpoints[0].set_healthy(true, f.now);
    assert_eq!(f.availability(0), in_since(None), "well as before");
    f.endpoints[0].set_healthy(false, f.now);
    assert_eq!(f.availability(0), Availability::Out(Why::Unhealthy));
    f.endpoints[0].set_healthy(true, f.now);
    assert_eq!(f.availability(0), in_since(Some(f.now)));
}

#[test]
fn by_default_gateway_errors_in_a_row_eject_and_time_brings_back() {
    let mut f = Fixture::new(Traffic::default(), 2);
    f.calls(0, Outcome::GatewayError, 4);
    assert!(!f.is_out(0));
    f.call(0, Outcome::GatewayError);
    assert_eq!(f.availability(0), Availability::Out(Why::Ejected));
    assert_eq!(f.metric(r#"weft_ejections_total{service="shop/cart",reason="gateway_errors"}"#), Some(1.0));
    assert_eq!(f.metric(r#"weft_ejected_endpoints{service="shop/cart"}"#), Some(1.0));
    let back = f.now + Duration::from_secs(30);
    f.now = back + Duration::from_secs(1);
    assert_eq!(f.availability(0), in_since(Some(back)), "without anybody doing anything");
    assert_eq!(f.metric(r#"weft_ejected_endpoints{service="shop/cart"}"#), Some(0.0));
}

#[test]
fn the_last_endpoint_is_not_ejected_whatever_took_the_others_out() {
    let f = Fixture::new(Traffic::default(), 2);
    f.endpoints[1].set_healthy(false, f.now);
    f.calls(0, Outcome::GatewayError, 50);
    assert!(!f.is_out(0));
    f.endpoints[1].set_healthy(true, f.now);
    f.calls(0, Outcome::GatewayError, 5);
    assert!(f.is_out(0), "once the other is back it may go");
    f.calls(1, Outcome::GatewayError, 50);
    assert!(!f.is_out(1));
}

#[test]
fn an_endpoint_that_policy_no_longer_names_is_not_ejected() {
    let f = Fixture::new(Traffic::default(), 3);
    let entry = f.enter().expect("let in");
    f.calls(2, Outcome::GatewayError, 4);
    let attempt = entry.attempt(&f.endpoints[2], f.now).expect("may be tried");
    f.guard.update(&Arc::new(Traffic::default()), &places(2), f.now);
    attempt.record(Outcome::GatewayError, FAST, f.now);
    assert!(!f.is_out(2));
}

#[test]
fn endpoints_are_compared_once_an_interval() {
    let ejection = Ejection {
        success_rate: Some(SuccessRate { deviations: 1.0, min_requests: 10, min_endpoints: 3 }),
        latency: Some(SlowEndpoint { times_median: 3.0, min_requests: 10 }),
        ..Ejection::default()
    };
    let mut f = Fixture::new(Traffic { ejection, ..Traffic::default() }, 5);
    for endpoint in 0..5 {
        for n in 0..20 {
            let outcome = if endpoint == 1 && n % 2 == 0 { Outcome::ServerError } else { Outcome::Success };
            f.call_taking(endpoint, outcome, if endpoint == 3 { FAST * 500 } else { FAST });
        }
    }
    f.now += Duration::from_secs(9);
    f.guards.tick(f.now);
    assert!((0..5).all(|n| !f.is_out(n)), "it is not time yet");
    f.now += Duration::from_secs(1);
    f.guards.tick(f.now);
    assert_eq!((0..5).filter(|n| f.is_out(*n)).collect::<Vec<_>>(), [1, 3]);
    assert_eq!(f.metric(r#"weft_ejections_total{service="shop/cart",reason="success_rate"}"#), Some(1.0));
    assert_eq!(f.metric(r#"weft_ejections_total{service="shop/cart",reason="latency"}"#), Some(1.0));
}

#[test]
fn the_breaker_of_a_service_refuses_all_and_says_when_to_come_back() {
    let f = Fixture::new(breaker(true, false), 2);
    f.calls(0, Outcome::ServerError, 2);
    f.calls(1, Outcome::GatewayError, 2);
    let error = f.enter().err().expect("open");
    assert_eq!(error.kind, Kind::BreakerOpen);
    assert_eq!(error.headers.expect("has fields")[header::RETRY_AFTER], "2", "rounded up");
    assert_eq!(f.availability(0), in_since(None), "endpoints are not judged");
    assert_eq!(f.metric(r#"weft_breaker_state{service="shop/cart",scope="service"}"#), Some(2.0));
    assert_eq!(f.metric(r#"weft_breaker_transitions_total{service="shop/cart",to="open"}"#), Some(1.0));
}

#[test]
fn the_breaker_of_a_service_lets_one_probe_pass_and_closes() {
    let mut f = Fixture::new(breaker(true, false), 1);
    f.calls(0, Outcome::ServerError, 4);
    f.now += Duration::from_millis(1_500);
    let probe = f.enter().expect("the probe");
    assert_eq!(f.enter().err().map(|e| e.kind), Some(Kind::BreakerOpen));
    assert_eq!(probe.retry(f.now).err(), Some(Refusal::Breaker), "a probe is not hedged");
    let attempt = probe.attempt(&f.endpoints[0], f.now).expect("may be tried");
    attempt.record(Outcome::Success, FAST, f.now);
    drop(probe);
    assert!(f.enter().is_ok() && f.enter().is_ok());
    assert_eq!(f.metric(r#"weft_breaker_state{service="shop/cart",scope="service"}"#), Some(0.0));
    for to in ["half_open", "closed"] {
        let name = format!("weft_breaker_transitions_total{{service=\"shop/cart\",to=\"{to}\"}}");
        assert_eq!(f.metric(&name), Some(1.0), "{to}");
    }
}

#[test]
fn a_probe_that_ends_without_a_verdict_makes_room_for_another() {
    let mut f = Fixture::new(breaker(true, false), 1);
    f.calls(0, Outcome::ServerError, 4);
    f.now += Duration::from_millis(1_500);
    drop(f.enter().expect("a probe that found no endpoint"));
    let entry = f.enter().expect("another");
    drop(entry.attempt(&f.endpoints[0], f.now));
    f.call(0, Outcome::Neutral);
    drop(f.enter().expect("the caller went away, and it is still half-open"));
}

#[test]
fn a_retry_into_an_open_breaker_is_refused() {
    let f = Fixture::new(breaker(true, false), 1);
    let entry = f.enter().expect("let in");
    f.calls(0, Outcome::ServerError, 4);
    assert_eq!(entry.retry(f.now).err(), Some(Refusal::Breaker));
}

#[test]
fn the_breaker_of_an_endpoint_takes_only_it_out() {
    let mut f = Fixture::new(breaker(false, true), 2);
    f.calls(0, Outcome::ServerError, 4);
    assert_eq!(f.availability(0), Availability::Out(Why::BreakerOpen));
    assert_eq!(f.availability(1), in_since(None));
    let entry = f.enter().expect("the service is not judged");
    let refused = entry.attempt(&f.endpoints[0], f.now).err().expect("open");
    assert_eq!(entry.refused(refused).kind, Kind::BreakerOpen);
    assert_eq!(f.metric(r#"weft_breaker_state{service="shop/cart",scope="endpoint"}"#), Some(2.0));
    assert_eq!(f.metric(r#"weft_breaker_state{service="shop/cart",scope="service"}"#), None);

    f.now += Duration::from_millis(1_500);
    assert!(!f.is_out(0), "somebody must probe");
    let probe = entry.attempt(&f.endpoints[0], f.now).expect("the probe");
    assert_eq!(f.availability(0), Availability::Out(Why::BreakerOpen), "one is enough");
    assert!(entry.attempt(&f.endpoints[0], f.now).is_err());
    drop(probe);
    assert!(!f.is_out(0));
    let probe = entry.attempt(&f.endpoints[0], f.now).expect("another probe");
    probe.record(Outcome::Success, FAST, f.now);
    assert_eq!(f.availability(0), in_since(Some(f.now)), "it begins slowly");
}

#[test]
fn a_breaker_that_policy_takes_back_is_gone_at_once() {
    let f = Fixture::new(breaker(true, true), 2);
    f.calls(0, Outcome::ServerError, 4);
    assert!(f.enter().is_err() && f.is_out(0));
    f.guard.update(&Arc::new(Traffic::default()), &places(2), f.now);
    assert!(f.enter().is_ok() && !f.is_out(0));
    f.guard.update(&Arc::new(breaker(true, true)), &places(2), f.now);
    assert!(f.enter().is_ok() && !f.is_out(0), "and what it knew with it");
}

#[test]
fn changed_settings_of_a_breaker_keep_its_state() {
    let f = Fixture::new(breaker(true, true), 2);
    f.calls(0, Outcome::ServerError, 4);
    let mut traffic = breaker(true, true);
    traffic.breaker.as_mut().expect("has one").probes = 5;
    f.guard.update(&Arc::new(traffic), &places(2), f.now);
    assert!(f.enter().is_err() && f.is_out(0));
}

#[test]
fn requests_in_flight_are_bounded() {
    let bounds = Bounds { requests: Some(2), ..Bounds::default() };
    let f = Fixture::new(Traffic { bounds, ..Traffic::default() }, 1);
    let held = [f.enter().expect("one"), f.enter().expect("two")];
    let error = f.enter().err().expect("one too many");
    assert_eq!(error.kind, Kind::Overloaded);
    drop(held);
    assert!(f.enter().is_ok());
}

#[test]
fn retries_in_flight_are_bounded() {
    let bounds = Bounds { retries: Some(1), ..Bounds::default() };
    let f = Fixture::new(Traffic { bounds, ..Traffic::default() }, 1);
    let entry = f.enter().expect("let in");
    let slot = entry.retry(f.now).expect("one");
    assert_eq!(entry.retry(f.now).err(), Some(Refusal::Retries));
    drop(slot);
    assert!(entry.retry(f.now).is_ok());
}

#[test]
fn retries_are_within_the_budget_of_all_workers_together() {
    let budget = RetryBudget { share: 0.2, min_per_second: 0.0, ..RetryBudget::default() };
    let f = Fixture::new(Traffic { budget, ..Traffic::default() }, 1);
    let entries: Vec<Entry> = (0..10).map(|_| f.enter().expect("let in")).collect();
    let granted = entries.iter().filter(|entry| entry.retry(f.now).is_ok()).count();
    assert_eq!(granted, 2);
    assert_eq!(entries[0].retry(f.now).err(), Some(Refusal::Budget));
    assert_eq!(f.metric(r#"weft_retry_budget_remaining{service="shop/cart"}"#).map(f64::floor), Some(0.0));
}

#[test]
fn what_is_refused_does_not_fill_the_budget() {
    let mut traffic = breaker(true, false);
    traffic.budget = RetryBudget { share: 1.0, min_per_second: 0.0, ..RetryBudget::default() };
    let f = Fixture::new(traffic, 1);
    f.calls(0, Outcome::ServerError, 4);
    (0..100).for_each(|_| assert!(f.enter().is_err()));
    assert_eq!(f.metric(r#"weft_retry_budget_remaining{service="shop/cart"}"#).map(f64::floor), Some(4.0));
}

#[test]
fn gauges_of_a_service_speak_of_all_its_clusters() {
    let f = Fixture::new(breaker(true, false), 2);
    let other = f.guards.get(&key(81), &f.metrics.service("shop/cart"), f.now);
    let _other = other.update(&Arc::new(Traffic::default()), &places(2), f.now);
    f.calls(0, Outcome::ServerError, 4);
    assert_eq!(f.metric(r#"weft_breaker_state{service="shop/cart",scope="service"}"#), Some(2.0));
    assert_eq!(f.metric(r#"weft_retry_budget_remaining{service="shop/cart"}"#).map(f64::floor), Some(60.0));
}

#[test]
fn clusters_page_tells_breaker_budget_and_ejection() {
    let f = Fixture::new(breaker(true, true), 2);
    let _entry = f.enter().expect("let in");
    f.calls(0, Outcome::ServerError, 3);
    let told = Value::Object(f.guard.describe(f.now));
    assert_eq!(
        told,
        json!({
            "requests_in_flight": 1, "retries_in_flight": 0, "retries_left": 30.0, "endpoints_ejected": 0,
            "breaker": "closed", "breaker_calls": 3, "breaker_failures": 3,
        })
    );
    f.call(0, Outcome::ServerError);
    let told = f.guard.describe(f.now);
    assert_eq!((&told["breaker"], &told["breaker_refuses_for_seconds"]), (&json!("open"), &json!(2.0)));
    let row = f.endpoints[0].describe(f.now);
    assert_eq!((&row["state"], &row["breaker"]), (&json!("breaker_open"), &json!("open")));
    assert_eq!(row["server_errors_in_a_row"], json!(4));

    let f = Fixture::new(Traffic::default(), 2);
    f.calls(0, Outcome::GatewayError, 5);
    let row = f.endpoints[0].describe(f.now);
    assert_eq!(
        Value::Object(row),
        json!({
            "state": "ejected", "ejected_for": "gateway_errors", "ejections": 1, "returns_in_seconds": 30.0,
            "gateway_errors_in_a_row": 0, "server_errors_in_a_row": 0,
        })
    );
    assert_eq!(f.guard.describe(f.now)["endpoints_ejected"], json!(1));
}

#[test]
fn a_refusal_has_a_reason_in_the_metrics() {
    let metrics = Metrics::new(1);
    let shard = Shard::new(metrics.clone(), 0);
    for refusal in [Refusal::Budget, Refusal::Retries, Refusal::Breaker] {
        shard.retry_refused(refusal.reason());
    }
    let text = String::from_utf8(metrics.render()).expect("UTF-8");
    for reason in ["budget", "limit", "breaker"] {
        assert!(text.contains(&format!("weft_retries_refused_total{{reason=\"{reason}\"}} 1")), "{text}");
    }
}

#[test]
fn workers_on_many_threads_keep_the_bounds() {
    let bounds = Bounds { requests: Some(3), ..Bounds::default() };
    let f = Fixture::new(Traffic { bounds, ..Traffic::default() }, 2);
    let most = AtomicU32::new(0);
    let inside = AtomicU32::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for n in 0..2_000 {
                    let Ok(entry) = f.enter() else { continue };
                    most.fetch_max(inside.fetch_add(1, Relaxed) + 1, Relaxed);
                    let attempt = entry.attempt(&f.endpoints[n % 2], f.now).expect("may be tried");
                    inside.fetch_sub(1, Relaxed);
                    attempt.record(Outcome::Success, FAST, f.now);
                }
            });
        }
    });
    assert!(most.load(Relaxed) <= 3);
    assert_eq!(f.guard.requests.load(Relaxed), 0);
}
