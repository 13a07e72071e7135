//! Wrong and useless values of policies on traffic: each is told where it stands.

use crate::error::Severity;
use crate::parse::parse;
use rstest::rstest;

/// What is found in one document: `error` or `warning`, the field, and the message.
fn found(kind: &str, api: &str, spec: &str) -> Vec<String> {
    let spec = spec.trim().replace('\n', "\n  ");
    let text = format!("apiVersion: {api}\nkind: {kind}\nmetadata: {{name: a}}\nspec:\n  {spec}\n");
    let severity = |severity| if severity == Severity::Error { "error" } else { "warning" };
    let found = parse("a.yaml", &text).diagnostics;
    found.iter().map(|d| format!("{} {}: {}", severity(d.severity), d.field, d.message)).collect()
}

fn traffic(target: &str, parts: &str) -> Vec<String> {
    let target = format!("targetRefs: [{{kind: {target}, name: a}}]\n{parts}");
    found("TrafficPolicy", "weft.mesh/v1alpha1", &target)
}

fn http(rules: &str) -> Vec<String> {
    let parents = "parentRefs: [{group: '', kind: Service, name: a}]\nrules:\n";
    found("HTTPRoute", "gateway.networking.k8s.io/v1", &format!("{parents}{}", rules.trim()))
}

#[rstest]
#[case(
    "HTTPRoute",
    "concurrency: {limit: 1}",
    "error spec.concurrency: it holds where a Service is served, and spec.targetRefs[0] is of the kind HTTPRoute"
)]
#[case(
    "Service",
    "hedging: {delay: 2s}\ntimeouts: {request: 1s}",
    "warning spec.hedging.delay: no second attempt ever starts: `timeouts.request` is `1s`"
)]
#[case(
    "Service",
    "hedging: {delay: 1s}\ntimeouts: {attempt: 1s}",
    "warning spec.hedging.delay: no second attempt ever starts: `timeouts.attempt` is `1s`"
)]
#[case(
    "Service",
    "retries: {budget: {percent: 0, minPerSecond: 0}}",
    "warning spec.retries.budget: it allows no retries at all"
)]
#[case(
    "Service",
    "retries: {attempts: 11}",
    "error spec.retries.attempts: found `11`, expected a number from 0 to 10"
)]
#[case(
    "Service",
    "timeouts: {request: 1s, attempt: 2s}",
    "error spec.timeouts.attempt: found `2s`, expected at most `request`, which is `1s`"
)]
#[case(
    "Service",
    "deprecation: {since: 2026-01-01, link: docs}",
    "error spec.deprecation.link: found `docs`, expected a URL such as `https://docs.example.com/v2`"
)]
#[case(
    "Service",
    "deprecation: {since: 2026-01-01, link: 'https://a/<b>'}",
    "error spec.deprecation.link: found `https://a/<b>`, expected a URL such as `https://docs.example.com/v2`"
)]
#[case(
    "Service",
    "faults: [{delay: 1s, headers: [{name: Weft-Source-Workload, value: a}]}]",
    "warning spec.faults[0].headers[0].name: no request carries `Weft-Source-Workload`: only matches of routes know it"
)]
#[case(
    "HTTPRoute",
    "connections: {max: 1}\nsharding: {key: [{header: a}], shards: [{service: b}]}",
    "warning spec.sharding: what the policy says of endpoints does not hold for the shards"
)]
#[case(
    "Service",
    "rateLimits: [{name: a, requests: 1, paths: [search]}]",
    "error spec.rateLimits[0].paths[0]: found `search`, expected a path that starts with `/`"
)]
fn one_wrong_value_is_told(#[case] target: &str, #[case] parts: &str, #[case] expected: &str) {
    let found = traffic(target, parts);
    assert_eq!(found.len(), 1, "{found:#?}");
    assert!(found[0].starts_with(expected), "{found:#?}");
}

#[rstest]
#[case("Service", "concurrency: {limit: 1}")]
#[case("Service", "hedging: {delay: 100ms}\ntimeouts: {request: 1s, attempt: 500ms}")]
#[case("Service", "hedging: {delay: 100ms}\ntimeouts: {request: 0s}")]
#[case("Service", "deprecation: {since: 2026-01-01, link: 'https://docs.example/v2?a=b#c'}")]
#[case("GRPCRoute", "rateLimits: [{name: a, requests: 1, paths: [/shop.v1.Inventory]}]")]
fn what_makes_sense_is_passed(#[case] target: &str, #[case] parts: &str) {
    assert_eq!(traffic(target, parts), [""; 0]);
}

#[test]
fn a_match_that_an_earlier_rule_asks_for_too_is_told() {
    let rules = "
- matches:
  - {path: {value: /a}, headers: [{name: x-a, value: '1'}, {name: X-B, value: '2'}]}
  - {path: {value: /b}, method: GET}
  backendRefs: [{name: a, port: 80}]
- matches:
  - {path: {value: /a/}, headers: [{name: x-b, value: '2'}, {name: X-A, value: '1'}]}
  - {path: {value: /b}, method: POST}
  - {path: {type: Exact, value: /b}, method: GET}
  backendRefs: [{name: a, port: 80}]
- backendRefs: [{name: a, port: 80}]
- matches: [{}]
  backendRefs: [{name: a, port: 80}]
";
    assert_eq!(
        http(rules),
        [
            "warning spec.rules[1].matches[0]: it is never taken: spec.rules[0].matches[0] asks for the same and comes first",
            "warning spec.rules[3].matches[0]: it is never taken: spec.rules[2] asks for the same and comes first",
        ]
    );
}

#[test]
fn a_grpc_match_that_an_earlier_rule_asks_for_too_is_told() {
    let rules = "
parentRefs: [{group: '', kind: Service, name: a}]
rules:
- matches: [{method: {service: s.A}}, {method: {service: s.A, method: B}}]
  backendRefs: [{name: a, port: 80}]
- matches: [{method: {service: s.A, method: B}}, {method: {service: s.A, method: C}}]
  backendRefs: [{name: a, port: 80}]
";
    assert_eq!(
        found("GRPCRoute", "gateway.networking.k8s.io/v1", rules),
        [
            "warning spec.rules[1].matches[0]: it is never taken: spec.rules[0].matches[1] asks for the same and comes first"
        ]
    );
}

#[rstest]
#[case("filters: [{type: RequestRedirect, requestRedirect: {hostname: b.example}}]", "RequestRedirect")]
#[case("filters: [{type: CORS, cors: {allowOrigins: ['*']}}]", "CORS")]
fn a_filter_that_answers_belongs_to_the_rule(#[case] filters: &str, #[case] name: &str) {
    let found = http(&format!("- backendRefs: [{{name: a, port: 80, {filters}}}]"));
    let expected = format!(
        "error spec.rules[0].backendRefs[0].filters[0].type: found {name} among the filters of one backend: it answers before a backend is chosen"
    );
    assert_eq!(found, [expected]);
}

#[test]
fn weights_of_zero_retries_that_never_come_and_sessions_that_outlast_themselves_are_told() {
    let rules = "
- backendRefs: [{name: a, port: 80, weight: 0}]
  timeouts: {request: 1s}
  retry: {backoff: 2s}
  sessionPersistence: {absoluteTimeout: 1h, idleTimeout: 2h}
";
    assert_eq!(
        http(rules),
        [
            "warning spec.rules[0].backendRefs: all weights are 0, so what the rule matches is answered with 500",
            "warning spec.rules[0].retry.backoff: nothing is ever tried again: the request's own timeout is `1s`",
            "warning spec.rules[0].sessionPersistence.idleTimeout: it never counts: the session ends after `absoluteTimeout`, which is `1h`",
        ]
    );
}

#[test]
fn a_misspelt_condition_on_the_caller_is_told() {
    let rule = |name: &str| {
        http(&format!(
            "- matches: [{{headers: [{{name: {name}, value: a}}]}}]\n  backendRefs: [{{name: a, port: 80}}]"
        ))
    };
    assert_eq!(rule("Weft-Source-Workload"), [""; 0]);
    let expected = "warning spec.rules[0].matches[0].headers[0].name: `weft-source-worklaod` says nothing about the caller, and no request carries it";
    assert_eq!(rule("weft-source-worklaod"), [expected]);
}

fn cache(target: &str, parts: &str) -> Vec<String> {
    let target = format!("targetRefs: [{{kind: {target}, name: a}}]\n{parts}");
    found("CachePolicy", "weft.mesh/v1alpha1", &target)
}

#[rstest]
#[case(
    "key: {query: {include: [a], exclude: [b]}}",
    "error spec.key.query: found `include` and `exclude` together"
)]
#[case(
    "key: {query: {exclude: [a, b, a]}}",
    "error spec.key.query.exclude[2]: the parameter `a` is there twice, first in spec.key.query.exclude[0]"
)]
#[case(
    "key: {headers: [X-A, x-a]}",
    "error spec.key.headers[1]: the header `x-a` is there twice, first in spec.key.headers[0]"
)]
#[case(
    "key: {headers: [Traceparent]}",
    "warning spec.key.headers[0]: `Traceparent` is another one with every request: nothing is found again"
)]
#[case(
    "key: {headers: [cookie]}",
    "warning spec.key.headers[0]: all cookies of a caller count, also those that change nothing"
)]
#[case("key: {headers: [host]}", "warning spec.key.headers[0]: the host counts in any case")]
#[case(
    "ttl: {default: 2m, max: 1m}",
    "error spec.ttl.default: found `2m`, expected at most `max`, which is `1m`"
)]
#[case("ttl: {overrides: [{ttl: 0s}]}", "warning spec.ttl.overrides[0].ttl: no answer is ever kept")]
#[case(
    "ttl: {overrides: [{paths: [/a], ttl: 0s, force: true}]}",
    "warning spec.ttl.overrides[0].force: nothing is kept for `0s`, so there is nothing to force"
)]
#[case(
    "ttl: {overrides: [{ttl: 5s, force: true}]}",
    "warning spec.ttl.overrides[0].force: answers that say `private` or `no-store` are kept and shown to every caller"
)]
#[case(
    "ttl: {overrides: [{statuses: [404, 401], ttl: 5s}]}",
    "warning spec.ttl.overrides[0].statuses[1]: an answer with 401 is about one exchange and is never kept"
)]
#[case(
    "ttl: {overrides: [{statuses: [404, 410], ttl: 5s}, {statuses: [404], paths: [/a], ttl: 6s}]}",
    "warning spec.ttl.overrides[1]: it never holds, since spec.ttl.overrides[0] matches the same before it"
)]
#[case(
    "ttl: {overrides: [{paths: [/a/*], ttl: 5s}, {paths: [/a/b/*, /a], ttl: 6s}]}",
    "warning spec.ttl.overrides[1]: it never holds, since spec.ttl.overrides[0] matches the same before it"
)]
#[case(
    "limits: {maxBytes: 1MiB, maxObjectBytes: 2MiB}",
    "error spec.limits.maxObjectBytes: found `2MiB`, expected at most `maxBytes`, which is `1MiB`"
)]
#[case(
    "grpc: [{service: a.B, method: C, ttl: 0s}]",
    "error spec.grpc[0].ttl: found `0s`, expected a time above zero"
)]
#[case(
    "grpc: [{service: a.B, method: C, ttl: 1s}, {service: a.B, method: C, ttl: 1s}]",
    "error spec.grpc[1]: the method `a.B/C` is there twice"
)]
#[case(
    "tags: {header: ETag}",
    "warning spec.tags.header: callers need `ETag`, and it is taken away before they see it"
)]
#[case(
    "coalescing: {enabled: false, maxWait: 1s}",
    "warning spec.coalescing.maxWait: nobody waits: coalescing is turned off"
)]
#[case(
    "coalescing: {maxWait: 1s}\ntiers: {siblings: {timeout: 1s}}",
    "warning spec.tiers.siblings.timeout: whoever waits for this look-up goes to the origin first: `coalescing.maxWait` is `1s`"
)]
#[case(
    "limits: {maxBytes: 2MiB}\ntiers: {disk: {maxBytes: 1MiB}}",
    "warning spec.tiers.disk.maxBytes: no more fits on disk than in memory, where `limits.maxBytes` is `2MiB`"
)]
#[case(
    "tiers: {redis: {address: 'redis.shop:6379', credentials: {secret: redis}}}",
    "warning spec.tiers.redis.credentials: the password goes to `redis.shop:6379` in plain text"
)]
fn a_cache_policy_that_contradicts_itself_or_does_nothing_is_told(
    #[case] parts: &str,
    #[case] expected: &str,
) {
    assert_eq!(cache("Service", parts), [expected]);
}

#[rstest]
#[case("where: inbound", "error spec.where: where a service is served no routes are known")]
#[case(
    "",
    "warning spec.targetRefs: of gRPC calls only answers of methods that are listed are kept, and none is"
)]
#[case(
    "grpc: [{service: a.B, method: C, ttl: 1s}]\npost: true",
    "warning spec.post: it is not for gRPC calls"
)]
fn a_cache_policy_on_grpc_routes_lists_methods(#[case] parts: &str, #[case] expected: &str) {
    assert!(cache("GRPCRoute", parts).contains(&expected.to_owned()), "{:?}", cache("GRPCRoute", parts));
}

#[rstest]
#[case("enabled: false\nstale: {ifError: 1h}")]
#[case("tags: {header: etag, strip: false}")]
#[case("key: {headers: [authorization, accept], query: {include: []}}")]
#[case("ttl: {overrides: [{statuses: [404], ttl: 5s}, {paths: [/a], ttl: 6s}, {ttl: 7s}]}")]
#[case(
    "ttl: {overrides: [{paths: [/a/b], ttl: 5s}, {paths: [/a/*, /a/b], ttl: 6s}, {paths: [/ab], ttl: 0s}]}"
)]
#[case("ttl: {overrides: [{statuses: [200], ttl: 0s}, {ttl: 1s}]}")]
#[case("tiers: {siblings: {timeout: 1s}, redis: {address: 'a:1', timeout: 2s}, disk: {maxBytes: 1GiB}}")]
#[case("tiers: {redis: {address: 'a:1', credentials: {secret: s}, tls: {}}}")]
#[case("tiers: {redis: {address: 'localhost:1', credentials: {secret: s}}}")]
#[case("tiers: {redis: {address: '[::1]:1', credentials: {secret: s}}}")]
fn what_a_cache_policy_can_mean_is_not_found_fault_with(#[case] parts: &str) {
    assert_eq!(cache("Service", parts), Vec::<String>::new());
}
