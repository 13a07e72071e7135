//! Rules of the metrics: what is counted where, that scrapes are valid, and that nothing grows without bound.

use super::*;
use crate::{error::Kind, tls::HandshakeFailure};
use std::{
    collections::BTreeMap,
    io::Write,
    process::{Command, Stdio},
};
use weft_config::identity::MeshProtocol;

fn key(direction: Direction, service: &str, route: &str) -> SeriesKey {
    SeriesKey { direction, service: service.into(), route: route.into(), backend: service.into(), mtls: true }
}

fn text(metrics: &Metrics) -> String {
    String::from_utf8(metrics.render()).expect("metrics are UTF-8")
}

/// The value of the sample whose name and labels are exactly these.
fn sample(text: &str, name: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
}

/// A registry in which every family has a sample.
fn full() -> Arc<Metrics> {
    let metrics = Metrics::new(2);
    for worker in 0..2 {
        let shard = Shard::new(Arc::clone(&metrics), worker);
        let series = metrics.series(key(Direction::Outbound, "shop/product", "shop/product#0"));
        shard.request(&series, 200, None, Duration::from_micros(700));
        shard.request(&series, 200, Some(14), Duration::from_millis(3));
        let service = metrics.service("shop/product");
        service.set_endpoints(3);
        assert!(service.queue(Direction::Outbound).enter(0).is_none());
        service.health().begin(true);
        service.health().count(HealthResult::Timeout);
        shard.attempt(&service, AttemptResult::Ok);
        shard.attempt(&service, AttemptResult::Failed(Kind::Connect));
        shard.tcp_bytes(&service, Direction::Outbound, 10, 20);
        service.guarded.breaker_moved(BreakerPosition::Open);
        service.guarded.set_breaker(BreakerScope::Service, Some(BreakerPosition::Open));
        service.guarded.ejected(EjectionCause::Latency);
        service.guarded.set_ejected(1);
        service.guarded.set_budget(12.5);
        shard.retry_refused(RetryRefused::Budget);
        shard.hedge(Hedged::Won);
        shard.authorization_denied(&"shop/deny-all#0".into());
        shard.deprecated_call(&"Service shop/product".into());
        let path = shard.path("shop/product");
        path.ended(Duration::from_millis(2));
        path.waited(&metrics.path_upstream(&"shop/stock".into(), &"".into()), Duration::from_millis(3));
        std::mem::forget(service);
    }
    admission(&metrics);
    cache::tests::fill(&metrics);
    further_places(&metrics);
    metrics.identity_expires(UNIX_EPOCH + Duration::from_secs(2_000_000_000));
    metrics.identity_renewed(true);
    metrics.policy_updated("42 \"quoted\"\\\n");
    metrics.control_plane_connected(true);
    metrics
}

/// Gives the families of what the cache asks besides its memory a sample each.
fn further_places(metrics: &Metrics) {
    metrics.sibling_asked(SiblingAsked::Answered);
    metrics.sibling_served(SiblingServed::Unknown);
    let tiers = &metrics.tiers;
    tiers.used(Tier::Redis, true);
    tiers.looked(Tier::Redis, Looked::Purged);
    tiers.given(Tier::Disk, Given::Kept);
    tiers.written(Tier::Disk, 4096);
    tiers.purge_failed(Tier::Redis);
    tiers.connected("refused");
}

/// Gives the families of admission a sample each.
fn admission(metrics: &Metrics) {
    let limit = metrics.rate_limit("shop/limits/per-user");
    limit.refused();
    limit.remembers(3);
    let concurrency = metrics.concurrency("shop/product");
    concurrency.shed(Shed::Displaced);
    concurrency.changed((None, 0, 0), (Some(20), 7, 1));
    metrics.mirror("shop/product-next").copied(CopyResult::Dropped);
    metrics.fault(FaultKind::Delay);
    std::mem::forget((limit, concurrency));
}

#[test]
fn what_admission_did_is_counted_by_limit_service_reason_and_backend() {
    let metrics = Metrics::new(1);
    admission(&metrics);
    let concurrency = metrics.concurrency("shop/product");
    concurrency.changed((Some(20), 7, 1), (Some(10), 8, 0));
    let text = text(&metrics);
    for (name, value) in [
        (r#"weft_rate_limited_total{limit="shop/limits/per-user"}"#, 1.0),
        (r#"weft_rate_limit_keys{limit="shop/limits/per-user"}"#, 3.0),
        (r#"weft_concurrency_limit{service="shop/product"}"#, 10.0),
        (r#"weft_concurrency_in_flight{service="shop/product"}"#, 8.0),
        (r#"weft_concurrency_queued{service="shop/product"}"#, 0.0),
        (r#"weft_shed_total{service="shop/product",reason="displaced"}"#, 1.0),
        (r#"weft_shed_total{service="shop/product",reason="timeout"}"#, 0.0),
        (r#"weft_mirrored_total{backend="shop/product-next",result="dropped"}"#, 1.0),
        (r#"weft_faults_total{kind="delay"}"#, 1.0),
        (r#"weft_faults_total{kind="reset"}"#, 0.0),
    ] {
        assert_eq!(sample(&text, name), Some(value), "{name}");
    }
}

#[test]
fn every_worker_counts_for_itself_and_a_scrape_adds_up() {
    let metrics = Metrics::new(4);
    let series = metrics.series(key(Direction::Outbound, "shop/product", "r"));
    std::thread::scope(|scope| {
        for worker in 0..4 {
            let (metrics, series) = (&metrics, &series);
            scope.spawn(move || {
                let shard = Shard::new(Arc::clone(metrics), worker);
                for n in 0..10_000 {
                    shard.request(
                        series,
                        if n % 10 == 0 { 503 } else { 200 },
                        None,
                        Duration::from_millis(2),
                    );
                    shard.error(Kind::NoRoute);
                }
            });
        }
    });
    let text = text(&metrics);
    let labels = r#"direction="outbound",service="shop/product",route="r",backend="shop/product""#;
    let total =
        |status| format!("weft_requests_total{{{labels},status=\"{status}\",grpc_status=\"\",tls=\"mtls\"}}");
    assert_eq!(sample(&text, &total("200")), Some(36_000.0));
    assert_eq!(sample(&text, &total("503")), Some(4_000.0));
    assert_eq!(sample(&text, r#"weft_errors_total{kind="no_route"}"#), Some(40_000.0));
    let of = |suffix: &str, le: &str| {
        sample(&text, &format!("weft_request_duration_seconds_{suffix}{{{labels},tls=\"mtls\"{le}}}"))
    };
    assert_eq!(of("count", ""), Some(40_000.0));
    assert_eq!(of("sum", ""), Some(80.0));
    assert_eq!(of("bucket", ",le=\"0.001\""), Some(0.0));
    assert_eq!(of("bucket", ",le=\"0.0025\""), Some(40_000.0));
    assert_eq!(of("bucket", ",le=\"+Inf\""), Some(40_000.0));
}

#[test]
fn a_duration_on_a_bound_belongs_below_it() {
    let series = Series::new(1);
    for took in [Duration::ZERO, Duration::from_micros(100), Duration::from_nanos(100_001), Duration::MAX] {
        series.record(0, 200, None, took);
    }
    let buckets = series.sum().expect("recorded").buckets;
    assert_eq!((buckets[0], buckets[1], buckets[series::BUCKETS.len()]), (2, 1, 1));
}

#[test]
fn statuses_without_a_registration_are_other() {
    let series = Series::new(1);
    for status in [0, 99, 299, 418, 599, 600, 999, u16::MAX] {
        series.record(0, status, None, Duration::ZERO);
    }
    for grpc in [0, 16, 17, u16::MAX] {
        series.record(0, 200, Some(grpc), Duration::ZERO);
    }
    // A proxy on the way answered a gRPC call with plain HTTP: the HTTP status is what happened.
    series.record(0, 503, Some(14), Duration::ZERO);
    let mut statuses = series.sum().expect("recorded").statuses;
    statuses.sort();
    assert_eq!(
        statuses,
        [
            (None, None, 7),
            (Some(200), Some(0), 1),
            (Some(200), Some(16), 1),
            (Some(200), Some(17), 2),
            (Some(418), None, 1),
            (Some(503), None, 1),
        ]
    );
}

#[test]
fn the_same_labels_give_the_same_series() {
    let metrics = Metrics::new(1);
    let a = metrics.series(key(Direction::Inbound, "a", "r"));
    assert!(Arc::ptr_eq(&a, &metrics.series(key(Direction::Inbound, "a", "r"))));
    assert!(!Arc::ptr_eq(&a, &metrics.series(key(Direction::Outbound, "a", "r"))));
    assert!(!Arc::ptr_eq(
        &a,
        &metrics.series(SeriesKey { mtls: false, ..key(Direction::Inbound, "a", "r") })
    ));
}

#[test]
fn series_beyond_the_bound_count_as_other_and_are_counted() {
    let metrics = Metrics::with_limits(1, 2, 1, 1);
    let held: Vec<_> =
        (0..5).map(|n| metrics.series(key(Direction::Outbound, &format!("s{n}"), "r"))).collect();
    assert!(Arc::ptr_eq(&held[2], &held[4]));
    held[3].record(0, 200, None, Duration::ZERO);
    let services = (metrics.service("a"), metrics.service("b"), metrics.service("c"));
    assert!(Arc::ptr_eq(&services.1, &services.2));
    let shard = Shard::new(Arc::clone(&metrics), 0);
    for rule in ["a", "b", "c", "b"] {
        shard.authorization_denied(&rule.into());
    }
    let text = text(&metrics);
    let other = r#"direction="outbound",service="other",route="other",backend="other""#;
    let other = format!("weft_requests_total{{{other},status=\"200\",grpc_status=\"\",tls=\"mtls\"}}");
    assert_eq!(sample(&text, &other), Some(1.0));
    assert_eq!(sample(&text, r#"weft_metrics_overflow_total{table="requests"}"#), Some(3.0));
    assert_eq!(sample(&text, r#"weft_metrics_overflow_total{table="services"}"#), Some(2.0));
    assert_eq!(sample(&text, r#"weft_authorization_denied_total{policy="a"}"#), Some(1.0));
    assert_eq!(sample(&text, r#"weft_authorization_denied_total{policy="other"}"#), Some(3.0));
}

#[test]
fn the_time_of_requests_is_told_by_what_they_waited_for() {
    let metrics = Metrics::new(2);
    let stock = metrics.path_upstream(&"shop/stock".into(), &"shop/stock#0".into());
    for worker in 0..2 {
        let path = Shard::new(Arc::clone(&metrics), worker).path("shop/cart");
        path.ended(Duration::from_millis(1500));
        path.waited(&stock, Duration::from_millis(250));
        path.waited(&stock, Duration::from_millis(250));
        path.unjoined();
    }
    Shard::new(Arc::clone(&metrics), 1).path("shop/admin").waited(&stock, Duration::from_secs(3));
    let text = text(&metrics);
    let seconds = |labels: &str| sample(&text, &format!("weft_critical_path_seconds_total{{{labels}}}"));
    assert_eq!(seconds("service=\"shop/cart\",upstream=\"\",route=\"\""), Some(3.0));
    let stock = "upstream=\"shop/stock\",route=\"shop/stock#0\"";
    assert_eq!(seconds(&format!("service=\"shop/cart\",{stock}")), Some(1.0));
    assert_eq!(seconds(&format!("service=\"shop/admin\",{stock}")), Some(3.0));
    assert_eq!(sample(&text, r#"weft_critical_path_requests_total{service="shop/cart"}"#), Some(2.0));
    assert_eq!(sample(&text, r#"weft_chain_unjoined_total{service="shop/cart"}"#), Some(2.0));
}

#[test]
fn services_beyond_the_bound_wait_together() {
    let metrics = Metrics::new(1);
    let shard = Shard::new(Arc::clone(&metrics), 0);
    let stock = metrics.path_upstream(&"shop/stock".into(), &"".into());
    for n in 0..40 {
        shard.path(&format!("shop/s{n:02}")).waited(&stock, Duration::from_secs(1));
    }
    let text = text(&metrics);
    let waited = |service: &str| {
        let labels = format!("service=\"{service}\",upstream=\"shop/stock\",route=\"\"");
        sample(&text, &format!("weft_critical_path_seconds_total{{{labels}}}"))
    };
    assert_eq!(waited("shop/s31"), Some(1.0));
    assert_eq!(waited("shop/s32"), None);
    assert_eq!(waited("other"), Some(8.0));
}

#[test]
fn calls_to_what_is_going_away_are_counted_and_can_be_reported() {
    let metrics = Metrics::with_limits(2, 1, 1, 2);
    let shards = [0, 1].map(|worker| Shard::new(Arc::clone(&metrics), worker));
    for shard in &shards {
        for of in ["Service shop/a", "Service shop/a", "Service shop/b", "Service shop/c"] {
            shard.deprecated_call(&of.into());
        }
    }
    let counts = metrics.deprecated_calls();
    let counts: Vec<(&str, u64)> = counts.iter().map(|(of, calls)| (&**of, *calls)).collect();
    assert_eq!(counts, [("Service shop/a", 4), ("Service shop/b", 2)]);
    let text = text(&metrics);
    assert_eq!(sample(&text, r#"weft_deprecated_calls_total{of="Service shop/a"}"#), Some(4.0));
    assert_eq!(sample(&text, r#"weft_deprecated_calls_total{of="other"}"#), Some(2.0));
}

#[test]
fn a_full_table_makes_room_by_forgetting_what_policy_no_longer_names() {
    let metrics = Metrics::with_limits(1, 1, 1, 1);
    drop(metrics.series(key(Direction::Outbound, "old", "r")));
    let new = metrics.series(key(Direction::Outbound, "new", "r"));
    new.record(0, 204, None, Duration::ZERO);
    let text = text(&metrics);
    assert!(text.contains(r#"service="new""#), "{text}");
    assert_eq!(sample(&text, r#"weft_metrics_overflow_total{table="requests"}"#), Some(0.0));
}

#[test]
fn a_series_outlives_its_policy_for_a_while_and_goes_on_where_it_was() {
    let metrics = Metrics::new(1);
    let (now, named) = (Instant::now(), r#"service="gone""#);
    let at =
        |seconds| String::from_utf8(metrics.render_at(now + Duration::from_secs(seconds))).expect("UTF-8");
    metrics.series(key(Direction::Outbound, "gone", "r")).record(0, 200, None, Duration::ZERO);
    assert!(at(1).contains(named));
    assert!(at(500).contains(named), "the last value stays to be scraped");
    // Policy names it again in time: nothing was lost.
    let again = metrics.series(key(Direction::Outbound, "gone", "r"));
    again.record(0, 200, None, Duration::ZERO);
    assert!(at(5_000).contains(r#"status="200",grpc_status="",tls="mtls"} 2"#));
    drop(again);
    assert!(at(5_001).contains(named));
    assert!(!at(5_700).contains(named), "forgotten after ten minutes without use");
}

#[test]
fn connections_are_gauges_that_follow_their_guards() {
    let metrics = Metrics::new(1);
    let shard = Shard::new(Arc::clone(&metrics), 7);
    let mut connection = shard.connection_opened(Direction::Inbound);
    let upstream = shard.upstream_connection(MeshProtocol::Http1Over2);
    let gauge = |state: &str| {
        sample(&text(&metrics), &format!("weft_connections{{direction=\"inbound\",state=\"{state}\"}}"))
    };
    let pooled =
        || sample(&text(&metrics), r#"weft_upstream_connections{protocol="http1over2"}"#).expect("there");
    assert_eq!((gauge("opening"), gauge("open"), pooled()), (Some(1.0), Some(0.0), 1.0));
    connection.enter(ConnectionState::Open);
    assert_eq!((gauge("opening"), gauge("open")), (Some(0.0), Some(1.0)));
    connection.enter(ConnectionState::Draining);
    assert_eq!((gauge("open"), gauge("draining")), (Some(0.0), Some(1.0)));
    drop((connection, upstream));
    assert_eq!((gauge("draining"), pooled()), (Some(0.0), 0.0));
    assert_eq!(sample(&text(&metrics), r#"weft_connections_total{direction="inbound"}"#), Some(1.0));
}

#[test]
fn handshakes_are_counted_by_every_reason_there_is() {
    let metrics = Metrics::new(1);
    let shard = Shard::new(Arc::clone(&metrics), 0);
    shard.handshake(Direction::Inbound, "ok");
    shard.handshake(Direction::Inbound, "plaintext_refused");
    shard.handshake(Direction::Inbound, "never heard of");
    for failure in HandshakeFailure::ALL {
        shard.handshake(Direction::Outbound, failure.as_str());
    }
    let text = text(&metrics);
    let count = |direction: &str, result: &str| {
        let labels = format!("direction=\"{direction}\",result=\"{result}\"");
        sample(&text, &format!("weft_tls_handshakes_total{{{labels}}}"))
    };
    for result in ["ok", "plaintext_refused", "other"] {
        assert_eq!(count("inbound", result), Some(1.0), "{result}");
    }
    for failure in HandshakeFailure::ALL {
        assert_eq!(count("outbound", failure.as_str()), Some(1.0), "{failure:?}");
    }
}

#[test]
fn every_label_stands_where_its_discriminant_says() {
    for (index, kind) in Kind::ALL.into_iter().enumerate() {
        assert_eq!(kind as usize, index, "{kind:?}");
        assert_eq!(AttemptResult::name(AttemptResult::Failed(kind).index()), kind.row().name);
    }
    assert_eq!(AttemptResult::name(AttemptResult::of_status(499).index()), "ok");
    assert_eq!(AttemptResult::name(AttemptResult::of_status(500).index()), "server_error");
    for (index, reason) in Retry::ALL.into_iter().enumerate() {
        assert_eq!(reason as usize, index, "{reason:?}");
    }
    for (index, state) in ConnectionState::ALL.into_iter().enumerate() {
        assert_eq!(state as usize, index, "{state:?}");
    }
    for (index, protocol) in MeshProtocol::ALL.into_iter().enumerate() {
        assert_eq!(protocol as usize, index, "{protocol:?}");
    }
    for (index, failure) in HandshakeFailure::ALL.into_iter().enumerate() {
        assert_eq!(failure as usize, index, "{failure:?}");
    }
    for (index, reason) in RetryRefused::ALL.into_iter().enumerate() {
        assert_eq!(reason as usize, index, "{reason:?}");
    }
    for (index, result) in Hedged::ALL.into_iter().enumerate() {
        assert_eq!(result as usize, index, "{result:?}");
    }
    for (index, position) in BreakerPosition::ALL.into_iter().enumerate() {
        assert_eq!(position as usize, index, "{position:?}");
    }
    for (index, scope) in BreakerScope::ALL.into_iter().enumerate() {
        assert_eq!(scope as usize, index, "{scope:?}");
    }
    for (index, cause) in EjectionCause::ALL.into_iter().enumerate() {
        assert_eq!(cause as usize, index, "{cause:?}");
    }
}

#[test]
fn breakers_ejections_and_budgets_are_told_by_service() {
    let metrics = Metrics::new(1);
    let service = metrics.service("shop/cart");
    assert!(!text(&metrics).contains("shop/cart\",scope"), "no breaker");
    assert_eq!(sample(&text(&metrics), r#"weft_retry_budget_remaining{service="shop/cart"}"#), None);
    service.guarded.set_breaker(BreakerScope::Service, Some(BreakerPosition::HalfOpen));
    service.guarded.set_budget(30.0);
    service.guarded.set_ejected(2);
    service.guarded.breaker_moved(BreakerPosition::HalfOpen);
    service.guarded.ejected(EjectionCause::GatewayErrors);
    let text = text(&metrics);
    let state = |scope: &str| {
        sample(&text, &format!("weft_breaker_state{{service=\"shop/cart\",scope=\"{scope}\"}}"))
    };
    assert_eq!((state("service"), state("endpoint")), (Some(1.0), None));
    for (name, value) in [
        (r#"weft_breaker_transitions_total{service="shop/cart",to="half_open"}"#, 1.0),
        (r#"weft_ejections_total{service="shop/cart",reason="gateway_errors"}"#, 1.0),
        (r#"weft_ejected_endpoints{service="shop/cart"}"#, 2.0),
        (r#"weft_retry_budget_remaining{service="shop/cart"}"#, 30.0),
    ] {
        assert_eq!(sample(&text, name), Some(value), "{name}");
    }
}

#[test]
fn endpoints_are_told_only_while_policy_names_the_service() {
    let metrics = Metrics::new(1);
    let service = metrics.service("shop/cart");
    service.set_endpoints(2);
    assert_eq!(sample(&text(&metrics), r#"weft_endpoints{service="shop/cart"}"#), Some(2.0));
    drop(service);
    assert_eq!(sample(&text(&metrics), r#"weft_endpoints{service="shop/cart"}"#), None);
}

#[test]
fn what_is_not_known_is_not_told() {
    let text = text(&Metrics::new(1));
    for absent in [
        "weft_identity_expiration_timestamp_seconds",
        "weft_control_plane_connected",
        "weft_policy_version_info",
    ] {
        assert!(!text.contains(absent), "{absent}");
    }
}

#[test]
fn a_version_is_bounded_and_escaped() {
    let metrics = Metrics::new(1);
    metrics.policy_updated(&"\u{e9}".repeat(1000));
    assert!(text(&metrics).contains(&format!("version=\"{}\"", "\u{e9}".repeat(64))));
    metrics.policy_updated("a\"b\\c\nd");
    assert!(text(&metrics).contains(r#"weft_policy_version_info{version="a\"b\\c\nd"} 1"#));
}

#[test]
fn every_family_is_documented_and_every_row_a_family() {
    let reference = include_str!("../../../../docs/telemetry.md");
    let (_, section) = reference.split_once("\n## Metrics\n").expect("a section");
    let (section, _) = section.split_once("\n### The control plane's\n").expect("one after it");
    let rows = section.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` | "));
    let documented: BTreeMap<&str, &str> =
        rows.filter_map(|(name, rest)| Some((name, rest.split_once(" | ")?.0))).collect();
    let text = text(&full());
    let exported: BTreeMap<&str, &str> =
        text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' ')).collect();
    assert_eq!(documented, exported);
    for name in exported.keys() {
        assert!(text.contains(&format!("# HELP {name} ")), "{name} has no help");
    }
}

#[test]
fn promtool_finds_nothing_wrong_with_a_scrape() {
    let promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut promtool = match promtool {
        Ok(child) => child,
        Err(error) => {
            assert!(
                std::env::var_os("CI").is_none(),
                "promtool cannot be run ({error}); CI needs it: apt-get install prometheus"
            );
            writeln!(
                std::io::stderr(),
                "\nNOT CHECKED: promtool cannot be run ({error}), so nobody looked at the metrics' form; \
                 install the package `prometheus`\n"
            )
            .expect("stderr");
            return;
        }
    };
    promtool.stdin.take().expect("piped").write_all(&full().render()).expect("promtool reads");
    let output = promtool.wait_with_output().expect("promtool ends");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.trim().is_empty(), "{}: {said}", output.status);
}
