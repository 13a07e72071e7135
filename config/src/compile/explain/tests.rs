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
    explain(&policy, &Caller::in_namespace("shop"), &ServiceName::new("shop", "product"), 80, rule, None)
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
            "cache: none: no answer is kept < ",
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
            "cache: none: no answer is kept < ",
            "concurrency: 8 at once, 128 may wait for 100ms < TrafficPolicy shop/service:42"
        ]
    );
    assert_eq!(lines(&told.backends[1].served)[2], "concurrency: no limit < ");
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

const CACHES: &str = "---
apiVersion: weft.mesh/v1alpha1
kind: CachePolicy
metadata: {name: service, namespace: shop}
spec:
  targetRefs: [{kind: Service, name: product}]
  where: both
---
apiVersion: weft.mesh/v1alpha1
kind: CachePolicy
metadata: {name: rule, namespace: shop}
spec:
  targetRefs: [{kind: HTTPRoute, name: r}, {kind: HTTPRoute, name: r, sectionName: one}]
  key: {query: {exclude: [utm_source], ignoreOrder: true}, headers: [x-country], cookies: [currency], identity: true}
  ttl: {default: 10s, max: 1m, overrides: [{statuses: [404], ttl: 5s}, {paths: [/products/*], ttl: 1m, force: true}, {paths: [/none], ttl: 0s}]}
  stale: {whileRevalidate: 30s, ifError: 1h}
  limits: {maxObjectBytes: 2KiB, maxBytes: 1MiB, maxVariants: 3}
  setCookie: strip
  post: true
  grpc: [{service: shop.v1.Inventory, method: Stock, ttl: 5s}]
  tags: {header: cache-tag}
  coalescing: {enabled: false}
  tiers: {siblings: {}, redis: {address: 'redis.shop:6379', credentials: {secret: redis}, tls: {}}, disk: {maxBytes: 10MiB}}
";

/// What is told of the cache at the caller's about one request.
fn cache_of(documents: &str, method: &str, path: &str, headers: &[(&str, &str)]) -> Vec<String> {
    let mut policy = Policy::new("weft.local");
    assert_eq!(policy.replace_file("a.yaml", &format!("{SHOP}{documents}")).diagnostics, []);
    let headers = headers.iter().map(|(n, v)| (n.parse().expect("a name"), v.parse().expect("a value")));
    let (method, headers) = (method.parse().expect("a method"), headers.collect());
    let asked = Asked { method: &method, path, headers: &headers };
    let caller = Caller::in_namespace("shop");
    let called = ServiceName::new("shop", "product");
    let told = explain(&policy, &caller, &called, 80, Some("shop/r#one"), Some(&asked)).expect("a rule");
    lines(&told.calls).into_iter().filter(|line| line.starts_with("cache")).collect()
}

#[test]
fn the_cache_is_told_field_by_field_where_it_differs_from_the_default() {
    assert_eq!(
        cache_of(CACHES, "GET", "/products/7", &[]),
        [
            "cache: what HTTPRoute shop/r#one allows a shared cache to keep is kept at each caller's; as a whole, in place of CachePolicy shop/service on Service shop/product < CachePolicy shop/rule:63",
            "cache key: host and path, the query without utm_source, its parameters in any order, headers x-country, cookies currency, the caller's identity < CachePolicy shop/rule:64",
            "cache freshness: 10s where the answer says nothing; never longer than 1m; 5s for 404, whatever the answer says; 1m for every status of /products/*, also against no-store, no-cache and private; every status of /none not kept < CachePolicy shop/rule:65",
            "cache stale: 30s longer while it is fetched anew, 1h longer when the origin fails, where the answer does not say so itself < CachePolicy shop/rule:66",
            "cache limits: bodies up to 2KiB, 1MiB of memory in each sidecar, 3 variants of one resource < CachePolicy shop/rule:67",
            "cache cookies: also answers with Set-Cookie, kept without it: only the first caller gets the cookie < CachePolicy shop/rule:68",
            "cache POST: also answers to POST that say their freshness themselves, by a digest of the body < CachePolicy shop/rule:69",
            "cache gRPC: /shop.v1.Inventory/Stock for 5s, by a digest of the message < CachePolicy shop/rule:70",
            "cache tags: purged by what cache-tag lists, which callers do not see < CachePolicy shop/rule:71",
            "cache coalescing: none: every request that finds nothing is sent on < CachePolicy shop/rule:72",
            "cache tiers: before the origin: other sidecars of the service, for 100ms; Redis at redis.shop:6379 by TLS with the secret shop/redis, for 20ms; 10MiB on disk < CachePolicy shop/rule:73",
            "cache, this request: is looked up; a 200 is fresh for 1m < CachePolicy shop/rule:65",
        ]
    );
}

#[test]
fn what_the_cache_means_for_one_request_is_told() {
    let last = |documents: &str, method: &str, path: &str, headers: &[(&str, &str)]| {
        let line = cache_of(documents, method, path, headers).pop().expect("a line");
        let value = line.strip_prefix("cache, this request: ").expect("about the request");
        value.split(" < ").next().unwrap_or_default().to_owned()
    };
    let on_service = CACHES.split("---").nth(1).map(|document| format!("---{document}")).expect("one");
    let plain = |method, headers: &[(&str, &str)]| last(&on_service, method, "/a", headers);
    assert_eq!(plain("HEAD", &[]), "is looked up");
    let changes = "passes by the cache: POST may change something; when it succeeds, what is kept of its URL is no longer valid";
    assert_eq!(plain("POST", &[]), changes);
    assert_eq!(plain("PURGE", &[]), changes.replace("POST", "PURGE"));
    assert_eq!(plain("OPTIONS", &[]), "passes by the cache: OPTIONS is not looked up");
    assert_eq!(
        plain("GET", &[("If-Match", "\"a\"")]),
        "passes by the cache: if-match: only the origin can answer it"
    );
    assert_eq!(
        plain("GET", &[("cache-control", "no-cache, no-store"), ("authorization", "Bearer x")]),
        "is looked up; `no-store`: its answer is not kept; `no-cache`: the origin is asked in any case; `Authorization`: kept only if the answer says public, s-maxage or must-revalidate"
    );
    let special = |path, headers: &[(&str, &str)]| last(CACHES, "POST", path, headers);
    assert_eq!(special("/a", &[]), "is looked up; by a digest of its body");
    assert_eq!(
        special("/shop.v1.Inventory/Stock", &[]),
        "is looked up; as a gRPC call, whose answer is fresh for 5s"
    );
    assert_eq!(
        special("/a.B/C", &[("content-type", "application/grpc")]),
        "passes by the cache: /a.B/C is no gRPC method that the policy lists"
    );
    assert_eq!(last(CACHES, "GET", "/none", &[]), "is looked up; a 200 is not kept");
}

#[test]
fn where_a_backend_is_served_its_own_policy_is_told() {
    let told = told(&format!("{SHOP}{CACHES}"), Some("shop/r#one")).expect("a rule");
    let served = |at: usize| lines(&told.backends[at].served)[1].clone();
    assert_eq!(
        served(0),
        "cache: what Service shop/product allows a shared cache to keep is kept here, for all callers < CachePolicy shop/service:56"
    );
    assert_eq!(served(1), "cache: none: no answer is kept < ");
    let off = CACHES.replace("where: both", "enabled: false");
    let told = explain_all(&off);
    assert_eq!(
        lines(&told.backends[0].served)[1],
        "cache: off for Service shop/product < CachePolicy shop/service:57"
    );
}

fn explain_all(documents: &str) -> Explanation {
    told(&format!("{SHOP}{documents}"), Some("shop/r#one")).expect("a rule")
}
