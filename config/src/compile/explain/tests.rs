//! What is told about a request, value by value, with the place that says it.

use super::*;

const SHOP: &str = "apiVersion: v1
kind: Service
metadata: {name: product, namespace: shop}
spec: {ports: [{name: web, port: 80}]}
---
apiVersion: weft.mesh/v1alpha1
kind: Workload
metadata: {name: product-v2, namespace: shop}
spec: {service: product-v2, ports: [{port: 80}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: r, namespace: shop}
spec:
  parentRefs: [{group: '', kind: Service, name: product}]
  rules:
  - name: one
    timeouts: {request: 2s}
    retry: {codes: [500], backoff: 100ms}
    backendRefs:
    - {name: product, port: 80, weight: 3}
    - {name: product-v2, port: 80, weight: 1}
  - name: two
    matches: [{path: {value: /old}}]
    filters: [{type: RequestRedirect, requestRedirect: {hostname: new.example}}]
---
apiVersion: weft.mesh/v1alpha1
kind: TrafficPolicy
metadata: {name: rule, namespace: shop}
spec:
  targetRefs: [{kind: HTTPRoute, name: r, sectionName: one}]
  circuitBreaker: {consecutiveFailures: 5}
  rateLimits: [{name: each, requests: 10, key: [{header: x-user}], methods: [GET]}]
---
apiVersion: weft.mesh/v1alpha1
kind: TrafficPolicy
metadata: {name: service, namespace: shop}
spec:
  targetRefs: [{kind: Service, name: product}]
  retries: {attempts: 4}
  timeouts: {idle: 30s, connect: 1s}
  concurrency: {limit: 8}
  deprecation: {since: 2026-01-31, sunset: 2026-12-31}
---
apiVersion: weft.mesh/v1alpha1
kind: TrafficPolicy
metadata: {name: two, namespace: shop}
spec:
  targetRefs: [{kind: Service, name: product-v2}]
  loadBalancer: {algorithm: maglev, hashOn: [{cookie: c}, {source: true}]}
";

fn told(text: &str, rule: Option<&str>) -> Option<Explanation> {
    let mut policy = Policy::new("weft.local");
    assert_eq!(policy.replace_file("a.yaml", text).diagnostics, []);
    explain(&policy, &Caller::in_namespace("shop"), &ServiceName::new("shop", "product"), 80, rule)
}

/// `part: value < document:line, document:line`.
fn lines(decisions: &[Decision]) -> Vec<String> {
    let line = |decision: &Decision| {
        let sources = decision.sources.iter().map(|said| format!("{}:{}", said.document, said.line));
        let sources = sources.collect::<Vec<_>>().join(", ");
        format!("{}: {} < {sources}", decision.part, decision.value)
    };
    decisions.iter().map(line).collect()
}

#[test]
fn every_decision_about_a_call_is_told_with_the_line_that_says_it() {
    let told = told(SHOP, Some("shop/r#one")).expect("a rule");
    assert_eq!(
        lines(&told.calls),
        [
            "CORS: none < ",
            "faults: none < ",
            "rate limits: each: 10 per 1s, 10 at once for each header x-user (at most 10000 are remembered) (GET) < TrafficPolicy shop/rule:33",
            "split: 75 % shop/product:80, 25 % shop/product-v2:80 < HTTPRoute shop/r:20",
            "session key: none: each request is split by itself < ",
            "session: none < ",
            "mirrors: none < ",
            "request timeout: 2s < HTTPRoute shop/r:18",
            "attempt timeout: none < ",
            "idle timeout: 30s < TrafficPolicy shop/service:41",
            "deadlines: read from the caller, told to the upstream < ",
            "retries: up to 4 more on connect failure, refused, reset, attempt timeout, 500, 502-504, gRPC UNAVAILABLE; unsafe methods only if nothing was done yet < HTTPRoute shop/r:19, TrafficPolicy shop/service:40",
            "backoff: 100ms and then up to 25ms, doubling to 250ms, with full jitter < HTTPRoute shop/r:19, TrafficPolicy shop/service:40",
            "kept bodies: bodies up to 65536 bytes can be sent again < HTTPRoute shop/r:19, TrafficPolicy shop/service:40",
            "hedging: none < ",
        ]
    );
    assert_eq!(
        lines(&told.answer),
        [
            "deprecation: Service shop/product is deprecated since 2026-01-31, gone on 2026-12-31 < TrafficPolicy shop/service:43"
        ]
    );
}

#[test]
fn each_backend_is_told_by_itself() {
    let told = told(SHOP, Some("shop/r#one")).expect("a rule");
    let names: Vec<_> = told.backends.iter().map(|at| format!("{}:{}", at.service, at.port)).collect();
    assert_eq!(names, ["shop/product:80", "shop/product-v2:80"]);
    assert_eq!(
        lines(&told.backends[0].endpoints),
        [
            "balancer: peakEwma < ",
            "subset: all endpoints < ",
            "locality: all zones are equal < ",
            "slow start: none < ",
            "connections: 4096 per endpoint and worker, 1024 requests may wait, closed after 4s idle < ",
            "connect timeout: 1s < TrafficPolicy shop/service:41",
            "circuit breaker: the service and each endpoint: opens at 50 % of 20+ calls in 10s or 5 failures in a row, for 1s up to 30s, closes after 3 probes < TrafficPolicy shop/rule:32",
            "ejection: after 5 gateway errors in a row, for 30s up to 5m; at most 50 % of endpoints, all are called again below 30 % < ",
            "retry budget: the larger of 20 % of first attempts and 3 a second, over 10s < ",
            "health check: none < ",
        ]
    );
    let second = lines(&told.backends[1].endpoints);
    assert_eq!(second[0], "balancer: maglev on cookie c, else source < TrafficPolicy shop/two:50");
    assert_eq!(second[5], "connect timeout: 2s < ");
    assert!(second[6].ends_with("< TrafficPolicy shop/rule:32"), "{second:?}");
    assert_eq!(
        lines(&told.backends[0].served),
        [
            "rate limits: none < ",
            "concurrency: 8 at once, 128 may wait for 100ms < TrafficPolicy shop/service:42"
        ]
    );
    assert_eq!(lines(&told.backends[1].served)[1], "concurrency: no limit < ");
}

#[test]
fn what_the_mesh_says_holds_where_no_policy_does() {
    let mesh = "---
apiVersion: weft.mesh/v1alpha1
kind: MeshPolicy
metadata: {name: mesh}
spec:
  limits:
    requestTimeout: 7s
    connectTimeout: 3s
";
    let told = told(&format!("{}{mesh}", SHOP.replace("timeouts: {request: 2s}", "")), Some("shop/r#one"));
    let told = told.expect("a rule");
    assert!(lines(&told.calls).contains(&"request timeout: 7s < MeshPolicy default/mesh:57".to_owned()));
    let second = lines(&told.backends[1].endpoints);
    assert_eq!(second[5], "connect timeout: 3s < MeshPolicy default/mesh:58");
}

#[test]
fn a_port_without_routes_and_shards_are_told_too() {
    let text = "apiVersion: v1
kind: Service
metadata: {name: product, namespace: shop}
spec: {ports: [{port: 80}]}
---
apiVersion: weft.mesh/v1alpha1
kind: TrafficPolicy
metadata: {name: p, namespace: shop}
spec:
  targetRefs: [{kind: Service, name: product}]
  sharding: {key: [{header: x-c}], shards: [{service: product, pinned: [a]}, {service: other, weight: 2}]}
---
apiVersion: v1
kind: Service
metadata: {name: other, namespace: shop}
spec: {ports: [{port: 80}]}
";
    let told = told(text, None).expect("a port");
    let sharding = "sharding: by header x-c over shop/product:80 (weight 1), shop/other:80 (weight 2), 1 pinned; without a key 400 < TrafficPolicy shop/p:11";
    assert!(lines(&told.calls).contains(&sharding.to_owned()), "{:#?}", lines(&told.calls));
    assert_eq!(told.backends.len(), 2);
}

#[test]
fn what_is_not_there_is_not_told() {
    assert_eq!(told(SHOP, Some("shop/r#two")), None);
    assert_eq!(told(SHOP, Some("shop/r#three")), None);
    assert_eq!(told(SHOP, None).map(|told| told.backends.len()), Some(1));
}
