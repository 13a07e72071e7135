//! What TrafficPolicies and the routes' own fields compile to, part by part, and which of them goes before which.

use super::*;
use crate::snapshot::{
    Abort, Admission, Calls, ConcurrencyLimit, HedgeAfter, Key, KeyPart, Origin, Probe, Retry, Traffic,
};
use http::HeaderName;
use rstest::rstest;

/// A policy on what `target` says, with these parts of its `spec`.
fn traffic_policy(name: &str, target: &str, parts: &str) -> String {
    let parts = parts.trim().replace('\n', "\n  ");
    format!(
        "
apiVersion: weft.mesh/v1alpha1
kind: TrafficPolicy
metadata: {{name: {name}, namespace: shop}}
spec:
  targetRefs: [{target}]
  {parts}
---
"
    )
}

const SERVICE: &str = "{kind: Service, name: product}";
const PORT: &str = "{kind: Service, name: product, sectionName: web}";
const ROUTE: &str = "{kind: HTTPRoute, name: r}";
const RULE: &str = "{kind: HTTPRoute, name: r, sectionName: one}";

/// A route `r` on port 80 with the rule `one` for everything, and what else the rule says.
fn route(more: &str) -> String {
    let rule = format!("  - name: one\n    backendRefs: [{{name: product, port: 80}}]\n{more}");
    http_route("r", "shop", "name: product, port: 80", &rule)
}

fn on_service(parts: &str) -> Traffic {
    let service = compiled(&traffic_policy("p", SERVICE, parts), "shop");
    Traffic::clone(&service.port(80).expect("a port").traffic)
}

/// The calls of the rule `one`.
fn calls(text: &str) -> Calls {
    let service = compiled(text, "shop");
    let port = service.port(80).expect("a port");
    Calls::clone(&taken(port, "GET /", &HeaderMap::new()).expect("a rule").calls)
}

/// The calls of a port without routes.
fn direct(parts: &str) -> Calls {
    let service = compiled(&traffic_policy("p", SERVICE, parts), "shop");
    Calls::clone(&service.port(80).expect("a port").calls)
}

fn admission(text: &str) -> Vec<Arc<Admission>> {
    let policy = policy(&format!("{SERVICES}{text}"));
    let (_, documents) = policy.resource("workload/shop/product-1").expect("there");
    workload("shop/product-1", &documents, &policy.mesh()).expect("compiles").admission
}

fn header(name: &'static str) -> KeyPart {
    KeyPart::Header(HeaderName::from_static(name))
}

fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

#[test]
fn without_policies_everything_is_the_default() {
    let service = compiled("", "shop");
    let port = service.port(80).expect("a port");
    assert_eq!(*port.traffic, Traffic::default());
    assert_eq!(port.calls.retry, Retry::default());
    assert!(port.calls.hedge.is_none() && port.calls.own_traffic.is_none());
    let calls = calls(&route(""));
    assert_eq!((calls.retry, calls.timeouts), (Retry::default(), Default::default()));
    assert!(calls.own_traffic.is_none() && calls.session.is_none() && calls.cors.is_none());
    assert!(calls.mirrors.is_empty() && calls.faults.is_empty() && calls.rate_limits.is_empty());
    assert!(admission("").iter().all(|at| at.rate_limits.is_empty() && at.concurrency.is_none()));
}

#[test]
fn empty_parts_have_the_defaults_that_their_fields_state() {
    let traffic = on_service(
        "circuitBreaker: {}\noutlierEjection: {}\nconnections: {}\nretries: {budget: {}}\nhealthCheck: {tcp: {}}",
    );
    assert_eq!((&traffic.bounds, &traffic.ejection), (&Default::default(), &Default::default()));
    assert_eq!(traffic.budget, Default::default());
    let breaker = traffic.breaker.expect("a breaker");
    assert!(breaker.service && breaker.endpoint);
    assert_eq!((breaker.error_share, breaker.min_requests), (0.5, 20));
    assert_eq!((breaker.window, breaker.consecutive_failures), (ms(10_000), None));
    assert_eq!((breaker.open_for, breaker.max_open_for), (ms(1000), ms(30_000)));
    assert_eq!((breaker.probes, breaker.slow_call), (3, None));
    let check = traffic.health_check.expect("a check");
    assert_eq!((check.probe, check.interval, check.timeout), (Probe::Tcp, ms(10_000), ms(2000)));
    assert_eq!((check.healthy_threshold, check.unhealthy_threshold, check.port), (1, 3, None));
}

#[test]
fn every_field_on_endpoints_is_taken() {
    let traffic = on_service(
        "
connections: {max: 7, maxPending: 0, maxRequests: 9, maxRetries: 2, maxRequestsPerConnection: 100, idleTimeout: 3s, maxAge: 1h}
timeouts: {connect: 250ms}
retries: {budget: {percent: 10, minPerSecond: 1.5, window: 20s}}
circuitBreaker: {scope: endpoint, errorPercent: 25, minRequests: 5, window: 30s, consecutiveFailures: 4, openFor: 2s, maxOpenFor: 1m, probes: 1, slowCall: 300ms}
outlierEjection: {consecutiveGatewayErrors: 3, consecutiveServerErrors: 8, successRate: {deviations: 2.5, minRequests: 10, minEndpoints: 3}, latency: {timesMedian: 4, minRequests: 20}, interval: 5s, ejectionTime: 1m, maxEjectionTime: 10m, maxEjectedPercent: 20, panicPercent: 0}
healthCheck: {grpc: {service: shop.v1}, interval: 1s, timeout: 500ms, healthyThreshold: 2, unhealthyThreshold: 5, port: 90}
",
    );
    let bounds = &traffic.bounds;
    assert_eq!((bounds.connections, bounds.pending, bounds.requests), (Some(7), 0, Some(9)));
    assert_eq!((bounds.retries, bounds.requests_per_connection.map(u32::from)), (Some(2), Some(100)));
    assert_eq!((bounds.idle_timeout, bounds.max_age), (Some(ms(3000)), Some(ms(3_600_000))));
    assert_eq!(bounds.connect_timeout, Some(ms(250)));
    assert_eq!((traffic.budget.share, traffic.budget.min_per_second), (0.1, 1.5));
    assert_eq!(traffic.budget.window, ms(20_000));
    let breaker = traffic.breaker.expect("a breaker");
    assert!(!breaker.service && breaker.endpoint);
    assert_eq!((breaker.error_share, breaker.min_requests, breaker.window), (0.25, 5, ms(30_000)));
    assert_eq!((breaker.consecutive_failures, breaker.probes), (Some(4), 1));
    assert_eq!((breaker.open_for, breaker.max_open_for), (ms(2000), ms(60_000)));
    assert_eq!(breaker.slow_call, Some(ms(300)));
    let ejection = &traffic.ejection;
    assert_eq!((ejection.consecutive_gateway_errors, ejection.consecutive_server_errors), (3, 8));
    let rate = ejection.success_rate.as_ref().expect("a comparison");
    assert_eq!((rate.deviations, rate.min_requests, rate.min_endpoints), (2.5, 10, 3));
    let latency = ejection.latency.as_ref().expect("a comparison");
    assert_eq!((latency.times_median, latency.min_requests), (4.0, 20));
    assert_eq!((ejection.interval, ejection.time, ejection.max_time), (ms(5000), ms(60_000), ms(600_000)));
    assert_eq!((ejection.max_share, ejection.panic_share), (0.2, 0.0));
    let check = traffic.health_check.expect("a check");
    assert_eq!(check.probe, Probe::Grpc { service: "shop.v1".into() });
    assert_eq!((check.interval, check.timeout, check.port), (ms(1000), ms(500), Some(90)));
    assert_eq!((check.healthy_threshold, check.unhealthy_threshold), (2, 5));
}

#[test]
fn a_longer_wait_than_the_default_bound_raises_the_bound() {
    let traffic = on_service(
        "circuitBreaker: {openFor: 2m}\noutlierEjection: {ejectionTime: 20m}\nhealthCheck: {http: {path: /h}, interval: 1s}",
    );
    assert_eq!(traffic.breaker.expect("a breaker").max_open_for, ms(120_000));
    assert_eq!(traffic.ejection.max_time, ms(1_200_000));
    let check = traffic.health_check.expect("a check");
    assert_eq!(check.timeout, ms(1000));
    assert_eq!(check.probe, Probe::Http { path: "/h".into(), host: "product".into(), statuses: [].into() });
}

#[rstest]
#[case("{algorithm: random}", Balancer::Random)]
#[case("{algorithm: leastRequests}", Balancer::LeastRequests)]
#[case("{algorithm: ringHash, hashOn: [{header: X-User}, {cookie: c}]}",
    Balancer::RingHash { key: Key([header("x-user"), KeyPart::Cookie("c".into())].into()), points: 256 })]
#[case("{algorithm: ringHash, ringPoints: 16, hashOn: [{query: q}]}",
    Balancer::RingHash { key: Key([KeyPart::Query("q".into())].into()), points: 16 })]
#[case("{algorithm: maglev, hashOn: [{source: true}, {identity: true}]}",
    Balancer::Maglev { key: Key([KeyPart::Source, KeyPart::Identity].into()) })]
fn every_balancer_is_compiled(#[case] written: &str, #[case] expected: Balancer) {
    assert_eq!(on_service(&format!("loadBalancer: {written}")).balancing.algorithm, expected);
}

#[test]
fn locality_and_subsets_are_compiled() {
    let balancing = on_service(
        "loadBalancer: {slowStart: 30s, locality: {}, subset: {labels: {version: v2, a: b}, fallback: any}}",
    )
    .balancing;
    assert_eq!((balancing.slow_start, balancing.zone_overflow), (ms(30_000), Some(0.7)));
    let labels: Vec<_> = balancing.subset.iter().map(|(key, value)| (&**key, &**value)).collect();
    assert_eq!(labels, [("a", "b"), ("version", "v2")]);
    assert!(balancing.subset_or_any);
    let zone =
        |written: &str| on_service(&format!("loadBalancer: {{locality: {written}}}")).balancing.zone_overflow;
    assert_eq!(zone("{prefer: zone, overflowPercent: 50}"), Some(0.5));
    assert_eq!(zone("{prefer: none, overflowPercent: 50}"), None);
}

#[test]
fn a_rule_goes_before_its_route_and_that_before_the_port_and_the_service() {
    let request = |of: &[&str]| {
        let all = [("a", SERVICE, 1), ("b", PORT, 2), ("c", ROUTE, 3), ("d", RULE, 4)];
        let chosen = all.iter().filter(|(name, ..)| of.contains(name));
        let text: String = chosen
            .map(|(name, target, s)| traffic_policy(name, target, &format!("timeouts: {{request: {s}s}}")))
            .collect();
        calls(&(route("") + &text)).timeouts.request.map(|time| time.as_secs())
    };
    assert_eq!(request(&["a", "b", "c", "d"]), Some(4));
    assert_eq!(request(&["a", "b", "c"]), Some(3));
    assert_eq!(request(&["a", "b"]), Some(2));
    assert_eq!(request(&["a"]), Some(1));
    assert_eq!(request(&[]), None);
}

#[test]
fn precedence_is_part_by_part() {
    let text = route("")
        + &traffic_policy("rule", RULE, "hedging: {delay: 50ms}")
        + &traffic_policy("route", ROUTE, "hedging: {delay: 1s}\nsessionKey: [{header: x-user}]")
        + &traffic_policy("service", SERVICE, "sessionKey: [{header: x-no}]\nretries: {attempts: 5}");
    let calls = calls(&text);
    assert_eq!(calls.hedge.expect("hedging").after, HedgeAfter::Delay(ms(50)));
    assert_eq!(calls.session_key, Some(Key([header("x-user")].into())));
    assert_eq!(calls.retry.attempts, 5);
    assert!(calls.own_traffic.is_none());
}

#[test]
fn a_budget_or_a_connect_timeout_alone_hides_nothing_else() {
    let text = route("")
        + &traffic_policy("rule", RULE, "retries: {budget: {percent: 1}}\ntimeouts: {connect: 1s}")
        + &traffic_policy(
            "service",
            SERVICE,
            "retries: {attempts: 7, budget: {percent: 90}}\ntimeouts: {request: 9s, connect: 9s}",
        );
    let calls = calls(&text);
    assert_eq!((calls.retry.attempts, calls.timeouts.request), (7, Some(ms(9000))));
    let own = calls.own_traffic.expect("endpoints of its own");
    assert_eq!((own[0].budget.share, own[0].bounds.connect_timeout), (0.01, Some(ms(1000))));
}

#[test]
fn what_a_rule_says_of_endpoints_is_laid_over_what_each_backend_says() {
    let rule = "
  - name: one
    backendRefs:
    - {name: product, port: 80, weight: 1}
    - {name: product-v2, port: 80, weight: 0}
    - {name: product-v2, port: 80, weight: 2}
";
    let text = http_route("r", "shop", "name: product, port: 80", rule)
        + &traffic_policy("rule", RULE, "circuitBreaker: {probes: 9}")
        + &traffic_policy("one", PORT, "loadBalancer: {algorithm: random}\ncircuitBreaker: {probes: 1}")
        + &traffic_policy(
            "two",
            "{kind: Service, name: product-v2}",
            "loadBalancer: {algorithm: roundRobin}",
        );
    let calls = calls(&text);
    let own = calls.own_traffic.expect("endpoints of its own");
    let found: Vec<_> = own
        .iter()
        .map(|traffic| (traffic.balancing.algorithm.clone(), traffic.breaker.as_ref().map(|b| b.probes)))
        .collect();
    assert_eq!(found, [(Balancer::Random, Some(9)), (Balancer::RoundRobin, Some(9))]);
}

#[test]
fn a_route_s_own_timeouts_go_before_those_of_policies_one_by_one() {
    let policy =
        traffic_policy("p", RULE, "timeouts: {request: 5s, attempt: 4s, idle: 3s, deadlines: false}");
    let timeouts = calls(&(route("    timeouts: {request: 2s}\n") + &policy)).timeouts;
    assert_eq!((timeouts.request, timeouts.attempt), (Some(ms(2000)), Some(ms(4000))));
    assert_eq!((timeouts.idle, timeouts.deadlines), (Some(ms(3000)), false));
    let timeouts = calls(&route("    timeouts: {request: 0s, backendRequest: 1s}\n")).timeouts;
    assert_eq!((timeouts.request, timeouts.attempt), (Some(Duration::ZERO), Some(ms(1000))));
    assert!(timeouts.deadlines);
}

#[test]
fn retries_are_compiled_with_their_defaults() {
    let retry = |written: &str| direct(&format!("retries: {written}")).retry;
    let when = retry("{when: [timeout, serverError], statuses: [429]}");
    assert_eq!((when.connect_failure, when.refused, when.reset, when.timeout), (false, false, false, true));
    assert_eq!((when.statuses.len(), when.statuses[0], when.statuses[100]), (101, 429, 599));
    assert_eq!((when.attempts, when.grpc_statuses, when.grpc_explicit), (2, 1 << 14, false));
    let more = retry("{attempts: 0, statuses: [429, 503], grpcStatuses: [CANCELLED, UNAVAILABLE]}");
    assert_eq!((more.attempts, &*more.statuses), (0, &[429, 502, 503, 504][..]));
    assert_eq!((more.grpc_statuses, more.grpc_explicit), (1 << 1 | 1 << 14, true));
    let rest = retry("{retryAfter: false, unsafeMethods: true, maxBodyBytes: 1MiB}");
    assert_eq!((rest.retry_after, rest.unsafe_methods, rest.body_bytes), (false, true, 1 << 20));
    assert!(rest.connect_failure && rest.refused && rest.reset && !rest.timeout);
    let backoff = |written: &str| {
        let retry = retry(&format!("{{backoff: {written}}}"));
        (retry.backoff.as_millis(), retry.max_backoff.as_millis())
    };
    assert_eq!(backoff("{base: 10ms, max: 1s}"), (10, 1000));
    assert_eq!(backoff("{base: 2s}"), (2000, 2000));
    assert_eq!(backoff("{max: 5ms}"), (5, 5));
}

#[test]
fn a_route_s_retry_adds_to_what_the_policy_says() {
    let own = "    retry: {codes: [500, 503], attempts: 1, backoff: 100ms}\n";
    let retry = calls(&route(own)).retry;
    assert_eq!((retry.attempts, &*retry.statuses), (1, &[500, 502, 503, 504][..]));
    assert!(retry.connect_failure && retry.refused && retry.reset && retry.timeout);
    assert_eq!((retry.least_wait, retry.backoff), (ms(100), ms(25)));
    let policy = traffic_policy(
        "p",
        SERVICE,
        "retries: {attempts: 4, when: [timeout], statuses: [429], unsafeMethods: true}",
    );
    let retry = calls(&(route("    retry: {codes: [500]}\n") + &policy)).retry;
    assert_eq!((retry.attempts, &*retry.statuses), (4, &[429, 500][..]));
    assert!(retry.unsafe_methods && retry.connect_failure && retry.timeout);
    assert_eq!(retry.least_wait, Duration::ZERO);
}

#[test]
fn hedging_starts_by_delay_or_by_percentile() {
    let hedge = |written: &str| direct(&format!("hedging: {written}")).hedge.expect("hedging");
    assert_eq!(hedge("{delay: 20ms}").after, HedgeAfter::Delay(ms(20)));
    assert_eq!(hedge("{delay: 20ms}").max_attempts, 2);
    let percentile = hedge("{percentile: 95, maxAttempts: 3}");
    assert_eq!((percentile.after, percentile.max_attempts), (HedgeAfter::Percentile(0.95), 3));
}

#[test]
fn shards_are_backends_with_their_pinned_keys() {
    let calls = direct(
        "
sharding:
  key: [{header: x-customer}]
  shards:
  - {service: product, pinned: [zeta, acme]}
  - {service: product-v2, port: 80, weight: 0, pinned: [beta]}
  withoutKey: product-v2
",
    );
    let sharding = calls.sharding.expect("sharding");
    assert_eq!(sharding.key, Key([header("x-customer")].into()));
    let shards: Vec<_> = sharding.shards.iter().map(|s| (s.service.to_string(), s.port, s.weight)).collect();
    assert_eq!(shards, [("shop/product".into(), 80, 1), ("shop/product-v2".into(), 80, 0)]);
    let pinned: Vec<_> = sharding.pinned.iter().map(|(key, at)| (&**key, *at)).collect();
    assert_eq!(pinned, [("acme", 0), ("beta", 1), ("zeta", 0)]);
    assert_eq!(sharding.without_key, Some(1));
}

#[test]
fn faults_are_compiled() {
    let calls = direct(
        "
faults:
- {percent: 12.5, headers: [{name: x-chaos, value: 'yes'}], delay: 2s, abort: {status: 503}}
- {abort: {grpcStatus: UNAVAILABLE}}
- {abort: {reset: true}}
",
    );
    let faults: Vec<_> = calls.faults.iter().map(|fault| (fault.share, fault.delay, fault.abort)).collect();
    assert_eq!(
        faults,
        [
            (0.125, Some(ms(2000)), Some(Abort::Status(http::StatusCode::SERVICE_UNAVAILABLE))),
            (1.0, None, Some(Abort::Grpc(14))),
            (1.0, None, Some(Abort::Reset)),
        ]
    );
    let mut headers = HeaderMap::new();
    assert!(!calls.faults[0].only.matches(&Method::GET, "/", &headers));
    headers.insert("x-chaos", http::HeaderValue::from_static("yes"));
    assert!(calls.faults[0].only.matches(&Method::GET, "/", &headers));
}

const LIMITS: &str = "
rateLimits:
- {name: all, requests: 100}
- name: search
  requests: 5
  per: 1m
  burst: 2
  key: [{identity: true}, {header: x-user}]
  maxKeys: 7
  methods: [GET]
  paths: [/search/]
";

#[test]
fn limits_on_a_route_are_counted_by_callers_and_those_on_a_service_where_it_is_served() {
    let text = route("") + &traffic_policy("limits", ROUTE, LIMITS);
    let limits = calls(&text).rate_limits;
    assert!(admission(&text).iter().all(|at| at.rate_limits.is_empty()));
    let first = &limits[0];
    assert_eq!((&*first.id, &*first.name), ("shop/limits/all", "all"));
    assert_eq!((first.requests, first.per, first.burst), (100, ms(1000), 100));
    assert_eq!((&first.key, first.max_keys), (&None, 10_000));
    let second = &limits[1];
    assert_eq!((second.requests, second.per, second.burst, second.max_keys), (5, ms(60_000), 2, 7));
    assert_eq!(second.key, Some(Key([KeyPart::Identity, header("x-user")].into())));
    let meant = |method: Method, path: &str| second.only.matches(&method, path, &HeaderMap::new());
    assert!(meant(Method::GET, "/search") && meant(Method::GET, "/search/deep"));
    assert!(!meant(Method::POST, "/search") && !meant(Method::GET, "/searching"));

    let text = route("") + &traffic_policy("limits", SERVICE, LIMITS);
    assert!(calls(&text).rate_limits.is_empty());
    let names: Vec<_> = admission(&text).iter().map(|at| at.rate_limits.len()).collect();
    assert_eq!(names, [2, 2]);
}

#[test]
fn limits_of_one_policy_on_several_things_count_apart() {
    let targets = format!("{RULE}, {PORT}");
    let text = route("") + &traffic_policy("limits", &targets, "rateLimits: [{name: n, requests: 1}]");
    assert_eq!(&*calls(&text).rate_limits[0].id, "shop/limits/n on HTTPRoute shop/r#one");
    assert_eq!(&*admission(&text)[0].rate_limits[0].id, "shop/limits/n on Service shop/product#web");
    assert!(admission(&text)[1].rate_limits.is_empty());
}

#[test]
fn what_a_port_says_of_concurrency_goes_before_its_service() {
    let text = traffic_policy(
        "port",
        PORT,
        "
concurrency:
  limit: 8
  queue: {max: 3, timeout: 1s}
  priorities: [{priority: 100, paths: [/health]}, {priority: 0, headers: [{name: x-batch, value: '1'}]}]
",
    ) + &traffic_policy("all", SERVICE, "concurrency: {adaptive: {}}");
    let both = admission(&text);
    let port = both[0].concurrency.as_ref().expect("concurrency");
    assert_eq!((port.limit, port.queue, port.queue_timeout), (ConcurrencyLimit::Fixed(8), 3, ms(1000)));
    let priorities: Vec<_> = port.priorities.iter().map(|(_, priority)| *priority).collect();
    assert_eq!(priorities, [100, 0]);
    assert!(port.priorities[0].0.matches(&Method::GET, "/health/ready", &HeaderMap::new()));
    let rest = both[1].concurrency.as_ref().expect("concurrency");
    assert_eq!(rest.limit, ConcurrencyLimit::Adaptive { min: 4, max: 1000, tolerance: 2.0 });
    assert_eq!((rest.queue, rest.queue_timeout), (128, ms(100)));
    let limit = |written: &str| {
        let text = traffic_policy("p", SERVICE, &format!("concurrency: {written}"));
        admission(&text)[0].concurrency.as_ref().map(|at| at.limit)
    };
    let adaptive = |min, max, tolerance| Some(ConcurrencyLimit::Adaptive { min, max, tolerance });
    assert_eq!(limit("{adaptive: {max: 2, tolerance: 1.5}}"), adaptive(2, 2, 1.5));
    assert_eq!(limit("{adaptive: {min: 2000}}"), adaptive(2000, 2000, 2.0));
    assert_eq!(limit("{queue: {max: 1}}"), Some(ConcurrencyLimit::None));
}

#[test]
fn what_goes_away_is_said_in_three_header_fields() {
    let written =
        "deprecation: {since: 2026-01-31, sunset: '2026-12-31T12:00:00Z', link: 'https://docs.example/v2'}";
    let found = calls(&(route("") + &traffic_policy("p", RULE, written))).deprecation.expect("deprecated");
    assert_eq!(&*found.of, "HTTPRoute shop/r#one");
    assert_eq!(found.deprecation, "@1769817600");
    assert_eq!(found.sunset.clone().expect("a sunset"), "Thu, 31 Dec 2026 12:00:00 GMT");
    let link = found.link.clone().expect("a link");
    assert_eq!(link, "<https://docs.example/v2>; rel=\"deprecation\"; type=\"text/html\"");
    let found = direct("deprecation: {since: 2026-01-31}").deprecation.expect("deprecated");
    assert_eq!((&*found.of, found.sunset.clone(), found.link.clone()), ("Service shop/product", None, None));
}

#[test]
fn a_link_that_no_header_can_carry_is_an_error_where_it_stands() {
    let mut policy = Policy::new("weft.local");
    let text = traffic_policy("p", SERVICE, "deprecation: {since: 2026-01-31, link: 'https://a> b'}");
    let change = policy.replace_file("a.yaml", &format!("{SERVICES}{text}"));
    let found = change.diagnostics.iter().find(|found| found.severity == Severity::Error);
    let found = found.expect("an error");
    assert_eq!(found.field, "spec.deprecation.link");
    assert!(found.line > 0);
}

#[test]
fn sessions_are_compiled_with_a_name_of_their_rule_s_own() {
    let rule = |more: &str| {
        let rule = format!(
            "
  - name: one
    matches: [{{path: {{value: /shop/cart}}}}, {{path: {{type: Exact, value: /shop/checkout}}}}]
    backendRefs: [{{name: product, port: 80}}]
    sessionPersistence: {more}
"
        );
        let service = compiled(&http_route("r", "shop", "name: product", &rule), "shop");
        let rule = taken(service.port(80).expect("a port"), "GET /shop/cart", &HeaderMap::new());
        rule.expect("a rule").calls.session.clone().expect("a session")
    };
    let session = rule("{}");
    assert!(session.name.starts_with("session-") && session.name.len() == 24, "{}", session.name);
    assert!(!session.in_header && !session.permanent);
    assert_eq!((&*session.path, session.absolute_timeout, session.idle_timeout), ("/shop", None, None));
    let session = rule(
        "{sessionName: s, absoluteTimeout: 24h, idleTimeout: 1h, cookieConfig: {lifetimeType: Permanent}}",
    );
    assert_eq!((&*session.name, session.permanent), ("s", true));
    assert_eq!(session.absolute_timeout, Some(Duration::from_secs(86_400)));
    assert_eq!(session.idle_timeout, Some(Duration::from_secs(3600)));
    assert!(rule("{type: Header, sessionName: X-Session}").in_header);
}

#[test]
fn copies_go_where_the_rule_s_and_the_backend_s_filters_say() {
    let rule = "
  - name: one
    filters:
    - {type: RequestMirror, requestMirror: {backendRef: {name: product-v2, port: 80}}}
    - {type: RequestMirror, requestMirror: {backendRef: {name: product, port: 90}, percent: 5}}
    - {type: RequestMirror, requestMirror: {backendRef: {name: product, port: 90}, percent: 0}}
    - {type: RequestMirror, requestMirror: {backendRef: {kind: Bucket, group: x, name: b}}}
    backendRefs:
    - name: product
      port: 80
      filters: [{type: RequestMirror, requestMirror: {backendRef: {name: product-v2, port: 80}, fraction: {numerator: 1, denominator: 1000}}}]
";
    let service = compiled(&http_route("r", "shop", "name: product, port: 80", rule), "shop");
    let rule = taken(service.port(80).expect("a port"), "GET /", &HeaderMap::new()).expect("a rule");
    let to = |mirrors: &[crate::snapshot::Mirror]| -> Vec<(String, u16, u32, u32)> {
        mirrors
            .iter()
            .map(|m| (m.backend.service.to_string(), m.backend.port, m.numerator, m.denominator))
            .collect()
    };
    let expected = [("shop/product-v2".into(), 80, 100, 100), ("shop/product".into(), 90, 5, 100)];
    assert_eq!(to(&rule.calls.mirrors), expected);
    assert_eq!(to(&backends(rule).list[0].mirrors), [("shop/product-v2".into(), 80, 1, 1000)]);
}

#[test]
fn a_grpc_route_has_mirrors_sessions_and_policies_too() {
    let text = "
apiVersion: gateway.networking.k8s.io/v1
kind: GRPCRoute
metadata: {name: g, namespace: shop}
spec:
  parentRefs: [{group: '', kind: Service, name: product, port: 90}]
  rules:
  - name: reserve
    matches: [{method: {service: shop.v1.Inventory, method: Reserve}}, {method: {service: shop.v1.Inventory}}]
    filters: [{type: RequestMirror, requestMirror: {backendRef: {name: product-v2, port: 80}, percent: 1}}]
    backendRefs: [{name: product, port: 90}]
    sessionPersistence: {type: Header, sessionName: x-s}
---
"
    .to_owned()
        + &traffic_policy(
            "p",
            "{kind: GRPCRoute, name: g, sectionName: reserve}",
            "retries: {grpcStatuses: [ABORTED]}",
        );
    let service = compiled(&text, "shop");
    let port = service.port(90).expect("a port");
    let rule = taken(port, "POST /shop.v1.Inventory/Reserve", &HeaderMap::new()).expect("a rule");
    assert_eq!((rule.calls.mirrors.len(), rule.calls.retry.grpc_statuses), (1, 1 << 10));
    assert!(rule.calls.retry.grpc_explicit);
    let session = rule.calls.session.as_ref().expect("a session");
    assert_eq!((&*session.name, session.in_header, &*session.path), ("x-s", true, "/shop.v1.Inventory"));
}

#[test]
fn cors_is_compiled() {
    let rule = |cors: &str| {
        let cors = calls(&route(&format!("    filters: [{{type: CORS, cors: {cors}}}]\n"))).cors;
        cors.expect("a filter")
    };
    let cors = rule(
        "{allowOrigins: ['https://shop.example', 'https://*.shop.example'], allowCredentials: true, allowMethods: [GET, PUT], allowHeaders: [X-A], exposeHeaders: ['*'], maxAge: 60}",
    );
    assert_eq!(
        &*cors.origins,
        [
            Origin::Exact("https://shop.example".into()),
            Origin::Wildcard("https://".into(), ".shop.example".into())
        ]
    );
    assert!(cors.credentials && cors.expose.is_none());
    assert_eq!(cors.methods.as_deref(), Some(&[Method::GET, Method::PUT][..]));
    assert_eq!(cors.headers.as_deref(), Some(&[HeaderName::from_static("x-a")][..]));
    assert_eq!(cors.max_age, 60);
    let open = rule("{allowOrigins: ['*'], allowMethods: ['*'], allowHeaders: ['*']}");
    assert_eq!(&*open.origins, [Origin::Any]);
    assert!(open.methods.is_none() && open.headers.is_none());
    assert_eq!((open.expose.as_deref(), open.max_age), (Some(&[][..]), 5));
}

#[test]
fn conditions_on_the_caller_are_decided_when_compiled() {
    let rules = "
  - name: new
    matches: [{headers: [{name: weft-source-workload, value: cart}]}]
    backendRefs: [{name: product-v2, port: 80}]
  - name: account
    matches: [{headers: [{name: weft-source-service-account, type: RegularExpression, value: 'check.*'}, {name: x-a, value: '1'}]}]
    backendRefs: [{name: product, port: 80}]
  - name: header
    matches: [{headers: [{name: x-a, value: '1'}]}]
    backendRefs: [{name: product, port: 80}]
  - name: rest
    matches: [{headers: [{name: weft-source-namespace, value: shop}]}]
    backendRefs: [{name: product, port: 80}]
";
    let text = http_route("r", "shop", "name: product, port: 80", rules);
    let caller = |namespace: &str, account: &str, workload: &str| Caller {
        namespace: namespace.into(),
        service_account: account.into(),
        workload: workload.into(),
    };
    let takes = |caller: Caller, with_header: bool| {
        let service = compiled_for(&text, &caller);
        let mut headers = HeaderMap::new();
        if with_header {
            headers.insert("x-a", http::HeaderValue::from_static("1"));
        }
        let port = service.port(80).expect("a port");
        assert!(!port.routes.is_empty());
        taken(port, "GET /", &headers).map(|rule| rule.name.to_string())
    };
    // By its own name and, as a replica, by the name of its Workload.
    assert_eq!(takes(caller("shop", "a", "cart"), false).as_deref(), Some("shop/r#new"));
    assert_eq!(takes(caller("shop", "a", "cart-3"), false).as_deref(), Some("shop/r#new"));
    assert_eq!(takes(caller("shop", "a", "cart-x"), false).as_deref(), Some("shop/r#rest"));
    assert_eq!(takes(caller("other", "a", "web"), false), None);
    assert_eq!(takes(Caller::in_namespace("shop"), false).as_deref(), Some("shop/r#rest"));
    // What is decided still counts for precedence: two conditions go before one.
    assert_eq!(takes(caller("shop", "checkout", "web"), true).as_deref(), Some("shop/r#account"));
    assert_eq!(takes(caller("shop", "a", "web"), true).as_deref(), Some("shop/r#header"));
}

#[test]
fn the_table_tells_why_a_caller_does_not_take_a_rule() {
    let rules = "
  - matches: [{headers: [{name: weft-source-workload, value: cart}]}]
    backendRefs: [{name: product, port: 80}]
";
    let service = compiled(&http_route("r", "shop", "name: product, port: 80", rules), "shop");
    let (method, headers) = (Method::GET, HeaderMap::new());
    let request = RequestView { method: &method, path: "/", query: None, headers: &headers };
    let told = service.port(80).expect("a port").routes.explain(&request);
    assert_eq!(told[0].asks, "path under /, weft-source-workload = cart");
    let why = "the caller's workload is not known".to_owned();
    assert_eq!(told[0].outcome, crate::matching::Outcome::NotMatched(why));
}

#[test]
fn only_policies_that_are_needed_travel() {
    let kinds = |text: &str, resource: &str| {
        let policy = policy(&format!("{SERVICES}{text}"));
        let (_, documents) = policy.resource(resource).expect("there");
        documents.documents.iter().map(|found| found.kind.clone()).collect::<Vec<_>>()
    };
    let two = traffic_policy("two", "{kind: Service, name: product-v2}", "retries: {attempts: 1}");
    let to_two = http_route(
        "r",
        "shop",
        "name: product, port: 80",
        "  - {name: one, backendRefs: [{name: product-v2, port: 80}]}",
    );
    let calls_only = to_two.clone() + &two + &traffic_policy("rule", RULE, "retries: {attempts: 1}");
    assert_eq!(kinds(&calls_only, "service/shop/product"), ["Service", "HTTPRoute", "TrafficPolicy"]);
    let endpoints = to_two + &two + &traffic_policy("rule", RULE, "connections: {max: 1}");
    assert_eq!(
        kinds(&endpoints, "service/shop/product"),
        ["Service", "HTTPRoute", "TrafficPolicy", "TrafficPolicy", "Service"]
    );
    let inbound = traffic_policy("in", SERVICE, "rateLimits: [{name: n, requests: 1}]")
        + &traffic_policy("out", SERVICE, "retries: {attempts: 1}");
    assert_eq!(kinds(&inbound, "workload/shop/product-1"), ["Workload", "Service", "TrafficPolicy"]);
}
