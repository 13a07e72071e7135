//! What refers to labels, callers and protocols that no document knows: told, and in force all the same.

use super::*;
use rstest::rstest;

const DB: &str = "
apiVersion: weft.mesh/v1alpha1
kind: Workload
metadata: {name: db, namespace: shop}
spec: {service: db, ports: [{port: 5432, appProtocol: tcp}]}
";

fn traffic(target: &str, parts: &str) -> String {
    format!(
        "{{apiVersion: weft.mesh/v1alpha1, kind: TrafficPolicy, metadata: {{name: t, namespace: shop}}, spec: {{targetRefs: [{{{target}}}], {parts}}}}}"
    )
}

fn told(text: &str) -> Vec<String> {
    let (policy, change) =
        policy(&[("a.yaml", SHOP), ("b.yaml", DB), ("c.yaml", &good_route()), ("d.yaml", text)]);
    assert_eq!(errors(&change.diagnostics), [""; 0]);
    assert!(policy.status().iter().all(|status| !status.state.is_rejected()));
    let told = change.diagnostics.iter();
    told.map(|found| format!("{}: {}; {}", found.field, found.message, found.cure)).collect()
}

#[rstest]
#[case("kind: Service, name: product", "{version: v1}", "")]
#[case(
    "kind: Service, name: product",
    "{version: v2}",
    "spec.loadBalancer.subset.labels.version: no workload of service shop/product has `version: v2`, so the subset is empty; known are v1"
)]
#[case(
    "kind: Service, name: product",
    "{version: canary}",
    "spec.loadBalancer.subset.labels.version: no workload of service shop/product has `version: canary`, so the subset is empty; known are v1"
)]
#[case(
    "kind: Service, name: product",
    "{versoin: v1}",
    "spec.loadBalancer.subset.labels.versoin: no workload of service shop/product has the label `versoin`, so the subset is empty; did you mean `version`?"
)]
#[case(
    "kind: HTTPRoute, name: product",
    "{version: v1}",
    "spec.loadBalancer.subset.labels.version: no workload of service shop/product-v2 has the label `version`, so the subset is empty; they have no labels at all"
)]
fn a_subset_that_nobody_is_in_is_told(#[case] target: &str, #[case] labels: &str, #[case] expected: &str) {
    let found = told(&traffic(target, &format!("loadBalancer: {{subset: {{labels: {labels}}}}}")));
    match expected {
        "" => assert_eq!(found, [""; 0]),
        expected => assert_eq!(found, [expected]),
    }
}

#[rstest]
#[case("kind: Service, name: db", "retries: {attempts: 1}", "spec.retries")]
#[case("kind: Service, name: db", "timeouts: {request: 1s}", "spec.timeouts.request")]
#[case("kind: Service, name: db", "timeouts: {connect: 1s}", "")]
#[case("kind: Service, name: db", "circuitBreaker: {}, connections: {max: 1}", "")]
#[case("kind: Service, name: product", "retries: {attempts: 1}", "")]
fn what_is_about_requests_means_nothing_to_opaque_bytes(
    #[case] target: &str,
    #[case] parts: &str,
    #[case] field: &str,
) {
    let found = told(&traffic(target, parts));
    match field {
        "" => assert_eq!(found, [""; 0]),
        field => assert_eq!(
            found,
            [format!(
                "{field}: service shop/db carries opaque bytes, and this is about requests; take it away, or say with `appProtocol` that HTTP is spoken"
            )]
        ),
    }
}

#[rstest]
#[case("weft-source-workload", "product-v1", "")]
#[case("weft-source-workload", "product-v1-0", "")]
#[case(
    "weft-source-workload",
    "prodct-v1",
    "no document has a Workload `prodct-v1`, so nobody known takes this match; did you mean `product-v1`?"
)]
#[case("weft-source-service-account", "product", "")]
#[case(
    "weft-source-service-account",
    "web",
    "no document has a Workload with the service account `web`, so nobody known takes this match; known are default, product"
)]
#[case(
    "Weft-Source-Namespace",
    "far",
    "no document has a Workload in the namespace `far`, so nobody known takes this match; known are shop"
)]
fn a_caller_that_nobody_knows_is_told(#[case] name: &str, #[case] value: &str, #[case] expected: &str) {
    let text = good_route().replace(
        "  - backendRefs:",
        &format!("  - matches: [{{headers: [{{name: {name}, value: {value}}}]}}]\n    backendRefs:"),
    );
    let (_, change) = policy(&[("a.yaml", SHOP), ("b.yaml", &text)]);
    let found: Vec<_> =
        change.diagnostics.iter().map(|found| format!("{}; {}", found.message, found.cure)).collect();
    match expected {
        "" => assert_eq!(found, [""; 0]),
        expected => assert_eq!(found, [expected]),
    }
}

#[test]
fn a_mirror_of_one_backend_must_lead_somewhere_too() {
    let text = route(
        "{name: product-v2, port: 8080, filters: [{type: RequestMirror, requestMirror: {backendRef: {name: nowhere, port: 1}}}]}",
    );
    let (_, change) = policy(&[("a.yaml", SHOP), ("b.yaml", &text)]);
    let fields: Vec<_> = change.diagnostics.iter().map(|found| found.field.as_str()).collect();
    assert_eq!(fields, ["spec.rules[0].backendRefs[1].filters[0].requestMirror.backendRef.name"]);
}

#[test]
fn a_shard_must_be_a_service_with_that_port() {
    let sharding = |shard: &str| {
        traffic(
            "kind: Service, name: product",
            &format!("sharding: {{key: [{{header: x}}], shards: [{shard}]}}"),
        )
    };
    let fields = |text: &str| -> Vec<String> {
        let (_, change) = policy(&[("a.yaml", SHOP), ("b.yaml", text)]);
        change.diagnostics.into_iter().map(|found| found.field).collect()
    };
    assert_eq!(fields(&sharding("{service: product-v2}")), [""; 0]);
    assert_eq!(fields(&sharding("{service: product-v3}")), ["spec.sharding.shards[0].service"]);
    assert_eq!(fields(&sharding("{service: product-v2, port: 1}")), ["spec.sharding.shards[0].port"]);
    let twice = sharding("{service: product, pinned: [a]}, {service: product-v2, pinned: [a]}");
    assert_eq!(fields(&twice), ["spec.sharding.shards[1].pinned[0]"]);
}
