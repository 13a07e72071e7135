//! What CachePolicies compile to, and which of several holds.

use super::*;
use crate::snapshot::{CacheParameters, CachePath, CacheRedis, CacheRedisTls, CacheRules};
use http::StatusCode;
use std::time::Duration;

const SERVICE: &str = "{kind: Service, name: product}";
const ROUTE: &str = "{kind: HTTPRoute, name: r}";
const RULE: &str = "{kind: HTTPRoute, name: r, sectionName: one}";

fn cache_policy(name: &str, target: &str, parts: &str) -> String {
    let parts = parts.trim().replace('\n', "\n  ");
    format!(
        "
apiVersion: weft.mesh/v1alpha1
kind: CachePolicy
metadata: {{name: {name}, namespace: shop}}
spec:
  targetRefs: [{target}]
  {parts}
---
"
    )
}

fn route() -> String {
    let rule = "  - name: one\n    backendRefs: [{name: product, port: 80}]\n";
    http_route("r", "shop", "name: product, port: 80", rule)
}

/// At the caller's, on the port itself and on the rule `one`.
fn outbound(text: &str) -> (Option<Arc<CacheRules>>, Option<Arc<CacheRules>>) {
    let service = compiled(text, "shop");
    let port = service.port(80).expect("a port");
    let rule = taken(port, "GET /", &HeaderMap::new()).and_then(|rule| rule.calls.cache.clone());
    (port.calls.cache.clone(), rule)
}

fn inbound(text: &str) -> Option<Arc<CacheRules>> {
    let policy = policy(&format!("{SERVICES}{text}"));
    let (_, documents) = policy.resource("workload/shop/product-1").expect("there");
    let workload = workload("shop/product-1", &documents, &policy.mesh()).expect("compiles");
    workload.admission.first().expect("a port").cache.clone()
}

fn id(rules: Option<Arc<CacheRules>>) -> Option<String> {
    rules.map(|rules| rules.id.to_string())
}

#[test]
fn without_a_policy_nothing_is_kept() {
    assert_eq!(outbound(&route()), (None, None));
    assert_eq!(inbound(""), None);
}

#[test]
fn a_policy_without_fields_has_the_defaults() {
    let (port, _) = outbound(&cache_policy("c", SERVICE, ""));
    assert_eq!(*port.expect("rules"), CacheRules { id: "shop/c".into(), ..CacheRules::default() });
}

#[test]
fn the_most_specific_policy_holds_as_a_whole() {
    let on_service = cache_policy("s", SERVICE, "post: true");
    let on_route = cache_policy("r", ROUTE, "stale: {ifError: 1h}");
    let on_rule = cache_policy("u", RULE, "enabled: false");
    let all = format!("{}{on_service}{on_route}", route());
    let (port, rule) = outbound(&all);
    assert_eq!(id(port), Some("shop/s".to_owned()));
    let rule = rule.expect("rules");
    assert_eq!((&*rule.id, rule.post), ("shop/r", false));
    let (port, rule) = outbound(&format!("{all}{on_rule}"));
    assert_eq!((id(port), rule), (Some("shop/s".to_owned()), None));
}

#[test]
fn the_place_says_which_side_keeps() {
    for (place, at_caller, at_service) in
        [("outbound", true, false), ("inbound", false, true), ("both", true, true)]
    {
        let text = cache_policy("c", SERVICE, &format!("where: {place}"));
        assert_eq!(outbound(&text).0.is_some(), at_caller, "{place}");
        assert_eq!(inbound(&text).is_some(), at_service, "{place}");
    }
    assert_eq!(inbound(&cache_policy("c", SERVICE, "where: inbound\nenabled: false")), None);
}

#[test]
fn every_field_arrives() {
    let (port, _) = outbound(&cache_policy(
        "c",
        SERVICE,
        "
key: {query: {exclude: [utm_source], ignoreOrder: true}, headers: [X-Country, accept], cookies: [b, a], identity: true}
ttl:
  default: 10s
  max: 1h
  overrides:
  - {statuses: [404, 200], paths: [/products/*, /x], ttl: 5s, force: true}
  - {ttl: 7s}
stale: {whileRevalidate: 30s, ifError: 2h}
limits: {maxObjectBytes: 2KiB, maxBytes: 1MiB, maxVariants: 3}
setCookie: strip
grpc: [{service: shop.v1.Inventory, method: Stock, ttl: 5s}]
tags: {header: Cache-Tag}
coalescing: {enabled: false}
tiers: {siblings: {}, redis: {address: 'redis.shop:6379'}, disk: {maxBytes: 10MiB}}",
    ));
    let rules = port.expect("rules");
    let secs = Duration::from_secs;
    assert_eq!(rules.key.parameters, CacheParameters::AllBut(["utm_source".into()].into()));
    assert!(rules.key.any_order && rules.key.identity && rules.strip_set_cookie);
    assert_eq!(rules.key.headers.iter().map(|h| h.as_str()).collect::<Vec<_>>(), ["accept", "x-country"]);
    assert_eq!(*rules.key.cookies, ["a".into(), "b".into()]);
    assert_eq!((rules.ttl.default, rules.ttl.max), (Some(secs(10)), Some(secs(3600))));
    assert_eq!(
        *rules.ttl.overrides[0].paths,
        [CachePath::Below("/products".into()), CachePath::Exact("/x".into())]
    );
    let over = |status: u16, path: &str| {
        let status = StatusCode::from_u16(status).expect("a status");
        rules.ttl.over(status, path).map(|over| over.ttl.as_secs())
    };
    assert_eq!(over(404, "/products"), Some(5));
    assert_eq!(over(404, "/products/1"), Some(5));
    assert_eq!(over(404, "/productsale"), Some(7));
    assert_eq!(over(500, "/x"), Some(7));
    assert_eq!((rules.while_revalidate, rules.if_error), (secs(30), secs(7200)));
    assert_eq!((rules.max_object_bytes, rules.max_bytes, rules.max_variants), (2048, 1 << 20, 3));
    assert_eq!((&*rules.grpc[0].path, rules.grpc[0].ttl), ("/shop.v1.Inventory/Stock", secs(5)));
    assert!(rules.tags.as_ref().is_some_and(|tags| tags.strip && tags.header == "cache-tag"));
    assert_eq!(rules.coalesce, None);
    assert_eq!(rules.tiers.siblings, Some(Duration::from_millis(100)));
    let redis = rules.tiers.redis.as_ref().expect("redis");
    assert_eq!((&*redis.address, &*redis.prefix), ("redis.shop:6379", "weft:"));
    assert_eq!((redis.timeout, rules.tiers.disk), (Duration::from_millis(20), Some(10 << 20)));
    assert_eq!((&redis.credentials, &redis.tls), (&None, &None));
}

/// The Redis tier of a policy in the namespace `shop`.
fn redis(fields: &str) -> CacheRedis {
    let (port, _) = outbound(&cache_policy("c", SERVICE, &format!("tiers: {{redis: {{{fields}}}}}")));
    port.expect("rules").tiers.redis.clone().expect("redis")
}

#[test]
fn secrets_are_those_of_the_policy_s_namespace_and_the_server_is_who_the_address_says() {
    let plain = redis("address: 'redis.shop:6379', credentials: {secret: a}, tls: {}");
    assert_eq!(plain.credentials.as_deref(), Some("shop/a"));
    assert_eq!(plain.tls, Some(CacheRedisTls { secret: None, server_name: "redis.shop".into() }));
    let tls = redis("address: '[::1]:6379', tls: {secret: b}").tls;
    assert_eq!(tls, Some(CacheRedisTls { secret: Some("shop/b".into()), server_name: "::1".into() }));
    let tls = redis("address: '10.0.0.1:6379', tls: {serverName: redis.internal}").tls.expect("TLS");
    assert_eq!(&*tls.server_name, "redis.internal");
}

#[test]
fn a_path_that_no_request_can_have_is_an_error() {
    let text = cache_policy("c", SERVICE, "ttl: {overrides: [{paths: [/a%zz], ttl: 5s}]}");
    let change = Policy::new("weft.local").replace_file("c.yaml", &text);
    let mut errors = change.diagnostics.iter().filter(|d| d.severity == Severity::Error);
    assert!(errors.any(|error| error.field.starts_with("spec.ttl.overrides[0].paths")));
}

#[test]
fn a_cache_where_it_is_served_cannot_hang_on_a_route() {
    for (place, fine) in [("outbound", true), ("inbound", false), ("both", false)] {
        let text = format!("{SERVICES}{}{}", route(), cache_policy("c", ROUTE, &format!("where: {place}")));
        let change = Policy::new("weft.local").replace_file("c.yaml", &text);
        let told = change.diagnostics.iter().any(|d| d.field == "spec.where");
        assert_eq!(told, !fine, "{place}: {:?}", change.diagnostics);
    }
}
