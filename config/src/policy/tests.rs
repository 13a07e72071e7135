//! What stays in force when documents are wrong, gone or doubled, and what sidecars are sent.

mod unknown;

use super::*;
use crate::document::Kind;
use proptest::prelude::*;

/// Two services by their workloads, and a document that each test adds.
const SHOP: &str = "
apiVersion: weft.mesh/v1alpha1
kind: Workload
metadata: {name: product-v1, namespace: shop, labels: {version: v1}}
spec:
  service: product
  serviceAccount: product
  ports: [{name: web, port: 8080, appPort: 9000, appProtocol: http}]
  command: [\"./product\"]
  env: {PASSWORD: hunter2}
  replicas: 2
---
apiVersion: weft.mesh/v1alpha1
kind: Workload
metadata: {name: product-v2, namespace: shop}
spec: {service: product-v2, ports: [{port: 8080, appProtocol: http}]}
";

fn route(extra: &str) -> String {
    format!(
        "
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: product, namespace: shop}}
spec:
  parentRefs: [{{group: \"\", kind: Service, name: product, port: 8080}}]
  rules:
  - backendRefs:
    - {{name: product, port: 8080, weight: 90}}
    - {extra}
"
    )
}

fn good_route() -> String {
    route("{name: product-v2, port: 8080, weight: 10}")
}

fn policy(files: &[(&str, &str)]) -> (Policy, Change) {
    let mut policy = Policy::new("weft.local");
    let change =
        policy.replace_all(files.iter().map(|(file, text)| ((*file).to_owned(), (*text).to_owned())));
    (policy, change)
}

fn errors(found: &[Diagnostic]) -> Vec<String> {
    found.iter().filter(|d| d.severity == Severity::Error).map(ToString::to_string).collect()
}

fn state(policy: &Policy, kind: Kind, name: &str) -> Option<DocumentState> {
    let same = |status: &&DocumentStatus| {
        status.key.as_ref().is_some_and(|key| key.kind == kind && &*key.name == name)
    };
    policy.status().iter().find(same).map(|status| status.state.clone())
}

fn json(policy: &Policy, resource: &str) -> String {
    let (_, documents) = policy.resource(resource).unwrap_or_else(|| panic!("no {resource}"));
    documents.documents.iter().map(|d| format!("{} {}\n", d.kind, d.json)).collect()
}

#[test]
fn good_documents_are_accepted_and_make_resources() {
    let (policy, change) = policy(&[("a.yaml", SHOP), ("b.yaml", &good_route())]);
    assert_eq!(errors(&change.diagnostics), [""; 0]);
    assert_eq!(change.rejected, 0);
    assert_eq!(
        policy.resource_names().collect::<Vec<_>>(),
        [
            "mesh",
            "service/shop/product",
            "service/shop/product-v2",
            "workload/shop/product-v1",
            "workload/shop/product-v1-0",
            "workload/shop/product-v1-1",
            "workload/shop/product-v2",
            "workload/shop/product-v2-0",
        ]
    );
    assert!(policy.status().iter().all(|status| status.state == DocumentState::Accepted));
    assert!(json(&policy, "service/shop/product").contains("HTTPRoute"));
    assert!(!json(&policy, "service/shop/product-v2").contains("HTTPRoute"));
}

#[test]
fn a_broken_document_keeps_its_last_good_version_and_touches_no_other() {
    let (mut policy, _) = policy(&[("a.yaml", SHOP), ("b.yaml", &good_route())]);
    let before = policy.resource("service/shop/product");
    let broken = route("{name: product-v2, port: 8080, weigth: 10}");
    let change = policy.replace_file("b.yaml", &broken);
    assert_eq!(change.rejected, 1);
    assert_eq!(errors(&change.diagnostics).len(), 1, "{:?}", change.diagnostics);
    assert!(change.changed.is_empty(), "{:?}", change.changed);
    assert_eq!(policy.resource("service/shop/product"), before);
    assert_eq!(state(&policy, Kind::HttpRoute, "product"), Some(DocumentState::RejectedKeepingLastGood));
    assert_eq!(state(&policy, Kind::Workload, "product-v1"), Some(DocumentState::Accepted));

    // Saved again as it is, nothing new is said; mended, it takes effect.
    let again = policy.replace_file("b.yaml", &broken);
    assert_eq!((again.rejected, again.diagnostics.len()), (0, 0));
    let mended = policy.replace_file("b.yaml", &route("{name: product-v2, port: 8080, weight: 50}"));
    assert_eq!(mended.changed, ["service/shop/product"]);
    assert_eq!(state(&policy, Kind::HttpRoute, "product"), Some(DocumentState::Accepted));
    assert!(json(&policy, "service/shop/product").contains("50"));
}

#[test]
fn a_broken_document_without_a_good_version_is_not_in_force() {
    let broken = good_route().replace("weight: 10", "weigth: 10");
    let (policy, change) = policy(&[("a.yaml", SHOP), ("b.yaml", &broken)]);
    assert_eq!(change.rejected, 1);
    assert_eq!(state(&policy, Kind::HttpRoute, "product"), Some(DocumentState::Rejected));
    assert!(!json(&policy, "service/shop/product").contains("HTTPRoute"));
}

#[test]
fn a_deleted_document_is_gone() {
    let text = format!("{SHOP}---{}", good_route());
    let (mut policy, _) = policy(&[("a.yaml", &text)]);
    let change = policy.replace_file("a.yaml", SHOP);
    assert_eq!(change.changed, ["service/shop/product"]);
    assert_eq!(state(&policy, Kind::HttpRoute, "product"), None);
    let change = policy.remove_file("a.yaml");
    assert!(change.changed.contains(&"workload/shop/product-v1-1".to_owned()), "{:?}", change.changed);
    assert_eq!(policy.resource_names().collect::<Vec<_>>(), ["mesh"]);
}

#[test]
fn a_file_that_cannot_be_read_keeps_all_it_held() {
    let (mut policy, _) = policy(&[("a.yaml", SHOP), ("b.yaml", &good_route())]);
    for text in ["{ this is: [not, yaml", "\u{1}", "just text"] {
        let change = policy.replace_file("a.yaml", text);
        assert_eq!(change.changed, [""; 0], "{text}");
        assert_eq!(change.rejected, 1, "{text}");
        assert!(!errors(policy.diagnostics()).is_empty(), "{text}");
        assert_eq!(
            state(&policy, Kind::Workload, "product-v1"),
            Some(DocumentState::RejectedKeepingLastGood)
        );
    }
    let change = policy.replace_file("a.yaml", SHOP);
    assert_eq!((change.changed.len(), policy.diagnostics().len()), (0, 0));
}

#[test]
fn a_dangling_reference_is_an_error_with_a_hint_until_it_is_there() {
    let (mut policy, change) =
        policy(&[("a.yaml", SHOP), ("b.yaml", &route("{name: product-v3, port: 8080, weight: 10}"))]);
    let told = errors(&change.diagnostics);
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].starts_with("b.yaml:10:"), "{told:?}");
    assert!(
        told[0].contains("spec.rules[0].backendRefs[1].name: there is no service shop/product-v3"),
        "{told:?}"
    );
    assert!(told[0].contains("did you mean `product-v2`?"), "{told:?}");
    assert_eq!(state(&policy, Kind::HttpRoute, "product"), Some(DocumentState::Rejected));
    let v3 = SHOP.replace("product-v2", "product-v3");
    let change = policy.replace_file("c.yaml", &v3[v3.find("---").expect("two documents") + 3..]);
    assert_eq!(errors(&change.diagnostics), [""; 0]);
    assert_eq!(state(&policy, Kind::HttpRoute, "product"), Some(DocumentState::Accepted));
    assert!(change.changed.contains(&"service/shop/product".to_owned()));
}

#[test]
fn deleting_what_a_route_refers_to_leaves_the_route_in_force_and_says_so() {
    let (mut policy, _) = policy(&[("a.yaml", SHOP), ("b.yaml", &good_route())]);
    let change = policy.replace_file("a.yaml", SHOP.split("---").next().expect("first document"));
    assert_eq!(change.rejected, 1);
    assert_eq!(state(&policy, Kind::HttpRoute, "product"), Some(DocumentState::RejectedKeepingLastGood));
    assert!(json(&policy, "service/shop/product").contains("product-v2"));
    assert!(policy.resource("service/shop/product-v2").is_none());
}

#[test]
fn missing_ports_parents_and_targets_are_all_told_at_once() {
    let text = "
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: r, namespace: shop}
spec:
  parentRefs:
  - {group: '', kind: Service, name: product, port: 81}
  - {group: '', kind: Service, name: product, sectionName: wob}
  - {group: '', kind: Service, name: nothing}
  rules:
  - {name: all, backendRefs: [{name: product, port: 82}]}
---
apiVersion: weft.mesh/v1alpha1
kind: TrafficPolicy
metadata: {name: t, namespace: shop}
spec:
  targetRefs: [{kind: HTTPRoute, name: rr}, {kind: Service, name: product, sectionName: nope}]
  loadBalancer: {algorithm: roundRobin}
---
apiVersion: weft.mesh/v1alpha1
kind: Workload
metadata: {name: caller, namespace: shop}
spec: {upstreams: [{listen: '127.0.0.1:5432', service: db, port: 5432}, {listen: '127.0.0.1:5433', service: product, port: 1}]}
";
    let (_, change) = policy(&[("a.yaml", SHOP), ("b.yaml", text)]);
    let told = errors(&change.diagnostics).join("\n");
    for part in [
        "spec.parentRefs[0].port: service shop/product has no port 81; it has 8080 (web)",
        "spec.parentRefs[1].sectionName: service shop/product has no port named `wob`",
        "spec.parentRefs[2].name: there is no service shop/nothing",
        "spec.rules[0].backendRefs[0].port: service shop/product has no port 82",
        "spec.targetRefs[0].name: there is no HTTPRoute shop/rr",
        "spec.targetRefs[1].sectionName: service shop/product has no port named `nope`",
        "spec.upstreams[0].service: there is no service shop/db",
        "spec.upstreams[1].port: service shop/product has no port 1",
    ] {
        assert!(told.contains(part), "{part} is missing in\n{told}");
    }
    assert_eq!(change.rejected, 3);
}

#[test]
fn of_two_documents_of_one_name_the_one_in_force_stays() {
    let (mut policy, _) = policy(&[("b.yaml", SHOP)]);
    let other = SHOP.replace("9000", "9001");
    let change = policy.replace_file("a.yaml", &other);
    assert_eq!(change.changed, [""; 0]);
    assert_eq!(errors(&change.diagnostics).len(), 2, "{:?}", change.diagnostics);
    assert!(errors(&change.diagnostics)[0].contains("already"), "{:?}", change.diagnostics);
    // Once the first is gone, the other is the only one.
    let change = policy.remove_file("b.yaml");
    assert!(change.changed.contains(&"workload/shop/product-v1".to_owned()));
    assert_eq!(policy.diagnostics(), []);
}

fn traffic(name: &str, spec: &str) -> String {
    format!(
        "
apiVersion: weft.mesh/v1alpha1
kind: TrafficPolicy
metadata: {{name: {name}, namespace: shop}}
spec: {{targetRefs: [{{kind: Service, name: product}}], {spec}}}
"
    )
}

#[test]
fn two_policies_may_not_say_the_same_part_and_the_newcomer_loses() {
    let round = traffic("z", "loadBalancer: {algorithm: roundRobin}");
    let (mut policy, change) = policy(&[("a.yaml", SHOP), ("b.yaml", &round)]);
    assert_eq!(errors(&change.diagnostics), [""; 0]);
    let change = policy.replace_file("c.yaml", &traffic("a", "loadBalancer: {algorithm: leastRequests}"));
    assert_eq!(change.rejected, 1);
    assert_eq!(state(&policy, Kind::TrafficPolicy, "a"), Some(DocumentState::Rejected));
    assert_eq!(state(&policy, Kind::TrafficPolicy, "z"), Some(DocumentState::Accepted));
    // Another part of the same service is no conflict.
    let change = policy.replace_file("c.yaml", &traffic("a", "timeouts: {request: 1s}"));
    assert_eq!(errors(&change.diagnostics), [""; 0]);
}

#[test]
fn who_loses_against_a_document_that_is_itself_wrong_has_not_lost() {
    // `a` refers to nothing; `b` and `c` say the same, so `b` stays.
    let dangling = traffic("a", "loadBalancer: {algorithm: roundRobin}")
        .replace("name: product}]", "name: product}, {kind: Service, name: missing}]");
    let text = [
        dangling,
        traffic("b", "loadBalancer: {algorithm: leastRequests}"),
        traffic("c", "loadBalancer: {algorithm: leastRequests}, timeouts: {request: 1s}"),
        // Loses against nobody who stays.
        traffic("d", "timeouts: {request: 2s}"),
    ]
    .join("---");
    let (policy, change) = policy(&[("a.yaml", SHOP), ("b.yaml", &text)]);
    assert_eq!(change.rejected, 2, "{:?}", change.diagnostics);
    for (name, rejected) in [("a", true), ("b", false), ("c", true), ("d", false)] {
        let state = state(&policy, Kind::TrafficPolicy, name);
        assert_eq!(state.as_ref().is_some_and(DocumentState::is_rejected), rejected, "{name}: {state:?}");
    }
}

#[test]
fn a_mesh_has_one_mesh_policy() {
    let mesh = |name: &str, mode: &str| {
        format!(
            "{{apiVersion: weft.mesh/v1alpha1, kind: MeshPolicy, metadata: {{name: {name}}}, spec: {{mtls: {{mode: {mode}}}}}}}"
        )
    };
    let (mut policy, _) = policy(&[("b.yaml", &mesh("b", "permissive"))]);
    let change = policy.replace_file("a.yaml", &mesh("a", "strict"));
    assert_eq!((change.rejected, change.changed.len()), (1, 0));
    assert_eq!(policy.mesh().mtls, crate::snapshot::MtlsMode::Permissive);
}

#[test]
fn workloads_of_one_service_must_agree_on_what_is_spoken() {
    let other = SHOP.replace("product-v2", "product").replace("name: product,", "name: product-x,");
    let other = other.replace("appProtocol: http}]}", "appProtocol: grpc}]}");
    let (_, change) = policy(&[("a.yaml", SHOP), ("b.yaml", &other[other.find("---").expect("two") + 3..])]);
    let told = errors(&change.diagnostics).join("\n");
    assert!(told.contains("already says what is spoken on port 8080 of service shop/product"), "{told}");
    assert_eq!(change.rejected, 1);
}

#[test]
fn what_takes_effect_later_is_listed_and_nothing_else_is() {
    let text = format!(
        "{}---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: whole, namespace: shop}}
spec:
  parentRefs: [{{group: '', kind: Service, name: product}}]
  rules:
  - filters:
    - {{type: RequestMirror, requestMirror: {{backendRef: {{name: product-v2, port: 8080}}}}}}
    - {{type: CORS, cors: {{allowOrigins: ['https://a.example']}}}}
    backendRefs: [{{name: product, port: 8080}}]
    retry: {{attempts: 2}}
    sessionPersistence: {{sessionName: s}}
---
apiVersion: weft.mesh/v1alpha1
kind: CachePolicy
metadata: {{name: c, namespace: shop}}
spec: {{targetRefs: [{{kind: Service, name: product}}], where: both, tags: {{header: cache-tag}}}}
---
apiVersion: weft.mesh/v1alpha1
kind: CachePolicy
metadata: {{name: tiers, namespace: shop}}
spec: {{targetRefs: [{{kind: Service, name: product-v2}}], tiers: {{siblings: {{}}, redis: {{address: 'a:1', credentials: {{secret: s}}, tls: {{secret: s, serverName: a.b}}}}, disk: {{maxBytes: 1GiB}}}}}}
---
apiVersion: weft.mesh/v1alpha1
kind: AuthorizationPolicy
metadata: {{name: audit, namespace: shop}}
spec: {{action: audit, rules: [{{}}]}}
",
        traffic("t", "timeouts: {request: 1s}, loadBalancer: {algorithm: random, slowStart: 10s}"),
    );
    let (policy, change) = policy(&[("a.yaml", SHOP), ("b.yaml", &text)]);
    assert_eq!(errors(&change.diagnostics), [""; 0]);
    let later = |kind, name: &str| match state(&policy, kind, name) {
        Some(DocumentState::AcceptedNotEnforced { fields }) => fields,
        other => panic!("{other:?}"),
    };
    assert_eq!(state(&policy, Kind::TrafficPolicy, "t"), Some(DocumentState::Accepted));
    assert_eq!(state(&policy, Kind::HttpRoute, "whole"), Some(DocumentState::Accepted));
    assert_eq!(state(&policy, Kind::CachePolicy, "c"), Some(DocumentState::Accepted));
    assert_eq!(state(&policy, Kind::CachePolicy, "tiers"), Some(DocumentState::Accepted));
    assert_eq!(later(Kind::AuthorizationPolicy, "audit"), ["spec.action"]);
}

#[test]
fn replicas_share_the_document_of_their_workload() {
    let (policy, _) = policy(&[("a.yaml", SHOP)]);
    assert_eq!(policy.resource("workload/shop/product-v1-1"), policy.resource("workload/shop/product-v1"));
    for unknown in ["product-v1-2", "product-v1-01", "product-v1-x", "product", "product-v1-"] {
        assert!(policy.resource(&format!("workload/shop/{unknown}")).is_none(), "{unknown}");
    }
    assert!(policy.resource("workload/other/product-v1").is_none());
    assert_eq!(policy.service_account("shop", "product-v1-0"), Some("product"));
}

#[test]
fn leased_endpoints_carry_the_identity_of_the_document() {
    let (policy, _) = policy(&[("a.yaml", SHOP)]);
    let at = "10.0.0.7:15006".parse().expect("an address");
    let leased = policy.leased_endpoints("shop", "product-v1-1", at);
    assert_eq!(leased.len(), 1);
    let (service, endpoint) = &leased[0];
    assert_eq!(service.to_string(), "shop/product");
    assert_eq!(endpoint.port, 8080);
    assert_eq!(endpoint.address, "10.0.0.7:15006");
    assert_eq!(endpoint.identity, "spiffe://weft.local/ns/shop/sa/product");
    assert_eq!(endpoint.workload, "product-v1-1");
    assert_eq!(endpoint.labels.get("version").map(String::as_str), Some("v1"));
    assert!(policy.leased_endpoints("shop", "stranger", at).is_empty());
}

#[test]
fn fixed_endpoints_come_from_workloads_without_a_sidecar_and_from_slices() {
    let text = "
apiVersion: weft.mesh/v1alpha1
kind: Workload
metadata: {name: db, namespace: shop}
spec: {service: db, mesh: false, address: 10.0.0.9, zone: a, weight: 3, ports: [{port: 5432, appPort: 5433, appProtocol: tcp}]}
---
apiVersion: weft.mesh/v1alpha1
kind: Workload
metadata: {name: far, namespace: shop}
spec: {service: far, inbound: '10.1.0.1:15006', serviceAccount: far, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: old, namespace: shop}
spec: {ports: [{name: http, port: 80, targetPort: 8080}, {name: admin, port: 81}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: old-1, namespace: shop, labels: {kubernetes.io/service-name: old}}
addressType: IPv4
endpoints:
- {addresses: [10.2.0.1], zone: b}
- {addresses: [10.2.0.2], conditions: {ready: false}}
ports: [{name: http, port: 8080}]
";
    let (policy, change) = policy(&[("a.yaml", text)]);
    assert_eq!(errors(&change.diagnostics), [""; 0]);
    let endpoints = |name: &str| {
        let found = policy.static_endpoints(&ServiceName::new("shop", name));
        let told =
            found.iter().map(|e| format!("{} {} {} {} {}", e.port, e.address, e.identity, e.zone, e.weight));
        told.collect::<Vec<_>>()
    };
    assert_eq!(endpoints("db"), ["5432 10.0.0.9:5433  a 3"]);
    assert_eq!(endpoints("far"), ["80 10.1.0.1:15006 spiffe://weft.local/ns/shop/sa/far  1"]);
    assert_eq!(endpoints("old"), ["80 10.2.0.1:8080  b 1"]);
    // Whose document says where it is gets no leased endpoints besides.
    for name in ["db", "far"] {
        assert!(policy.leased_endpoints("shop", name, "10.9.9.9:1".parse().expect("an address")).is_empty());
    }
}

#[test]
fn what_weft_up_needs_never_leaves_the_control_plane() {
    let (policy, _) = policy(&[("a.yaml", SHOP)]);
    for name in policy.resource_names() {
        let text = json(&policy, name);
        assert!(!text.contains("hunter2") && !text.contains("./product"), "{name}: {text}");
    }
}

#[test]
fn a_change_names_what_is_another_and_nothing_else() {
    let (mut policy, first) = policy(&[("a.yaml", SHOP)]);
    assert!(first.changed.contains(&"service/shop/product".to_owned()));
    let version = policy.version();
    // Only `weft up` minds the environment.
    let change = policy.replace_file("a.yaml", &SHOP.replace("hunter2", "hunter3"));
    assert_eq!(change.changed, [""; 0]);
    assert_eq!(policy.version(), version);
    // A label changes endpoints, not the service.
    let change = policy.replace_file("a.yaml", &SHOP.replace("version: v1}", "version: v9}"));
    assert_eq!(
        change.changed,
        [
            "endpoints/shop/product",
            "workload/shop/product-v1",
            "workload/shop/product-v1-0",
            "workload/shop/product-v1-1"
        ]
    );
    assert_ne!(policy.version(), version);
    let change = policy.replace_file("a.yaml", &SHOP.replace("port: 8080, appPort", "port: 8081, appPort"));
    assert!(change.changed.contains(&"service/shop/product".to_owned()), "{:?}", change.changed);
}

#[test]
fn the_trust_domain_of_the_mesh_policy_goes_into_every_identity() {
    let mesh = "{apiVersion: weft.mesh/v1alpha1, kind: MeshPolicy, metadata: {name: m}, spec: {trustDomain: example.org}}";
    let (policy, _) = policy(&[("a.yaml", SHOP), ("m.yaml", mesh)]);
    assert_eq!(&*policy.mesh().trust_domain, "example.org");
    let leased = policy.leased_endpoints("shop", "product-v1", "10.0.0.1:1".parse().expect("an address"));
    assert_eq!(leased[0].1.identity, "spiffe://example.org/ns/shop/sa/product");
}

#[test]
fn grpc_routes_push_http_routes_off_the_port_they_share() {
    let routes = "
apiVersion: gateway.networking.k8s.io/v1
kind: GRPCRoute
metadata: {name: g, namespace: shop}
spec:
  parentRefs: [{group: '', kind: Service, name: product}]
  rules: [{backendRefs: [{name: product, port: 8080}]}]
";
    let (policy, change) = policy(&[("a.yaml", SHOP), ("b.yaml", &good_route()), ("c.yaml", routes)]);
    assert_eq!(change.rejected, 1, "{:?}", change.diagnostics);
    assert_eq!(state(&policy, Kind::GrpcRoute, "g"), Some(DocumentState::Accepted));
    assert_eq!(state(&policy, Kind::HttpRoute, "product"), Some(DocumentState::Rejected));
}

/// What a file may hold while people work on it: each document good, wrong or not there.
fn drafts() -> impl Strategy<Value = Vec<(String, String)>> {
    let first = SHOP.split("---").next().expect("the first document");
    let second = SHOP.split("---").nth(1).expect("the second document");
    let workloads = vec![
        SHOP.to_owned(),
        first.to_owned(),
        second.to_owned(),
        SHOP.replace("8080", "8081"),
        SHOP.replace("replicas: 2", "replicas: two"),
        "{ not: [yaml".to_owned(),
        String::new(),
    ];
    let routes = vec![
        good_route(),
        route("{name: product-v2, port: 8080, weigth: 1}"),
        route("{name: product-v3, port: 8080}"),
        good_route().replace("/v1\n", "/v9\n"),
        format!("{}---{}", good_route(), traffic("t", "loadBalancer: {algorithm: roundRobin}")),
        traffic("t", "loadBalancer: {algorithm: nonsense}"),
        String::new(),
    ];
    let file = |name: &'static str, texts: Vec<String>| {
        prop::option::weighted(0.9, prop::sample::select(texts))
            .prop_map(move |text| text.map(|t| (name.to_owned(), t)))
    };
    (file("a.yaml", workloads), file("b.yaml", routes)).prop_map(|(a, b)| a.into_iter().chain(b).collect())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn whatever_came_before_good_files_lead_to_the_same(edits in prop::collection::vec(drafts(), 0..6)) {
        let good = || [("a.yaml".to_owned(), SHOP.to_owned()), ("b.yaml".to_owned(), good_route())];
        let mut fresh = Policy::new("weft.local");
        fresh.replace_all(good());
        let mut edited = Policy::new("weft.local");
        for files in edits {
            let before = edited.version();
            let change = edited.replace_all(files);
            prop_assert_eq!(change.changed.is_empty(), edited.version() == before);
            // What is in force always compiles, and only what is rejected has errors.
            let snapshot = compile::everything(&edited, &compile::Caller::in_namespace("shop"));
            prop_assert_eq!(snapshot.services().count(), edited.services().count());
            for status in edited.status() {
                let wrong = status.diagnostics.iter().any(|found| found.severity == Severity::Error);
                prop_assert_eq!(wrong, status.state.is_rejected());
            }
        }
        edited.replace_all(good());
        prop_assert_eq!(edited.diagnostics(), fresh.diagnostics());
        prop_assert_eq!(edited.version(), fresh.version());
        prop_assert_eq!(edited.status(), fresh.status());
    }

    #[test]
    fn no_text_makes_a_policy_panic(text in "[a-z:{}\\[\\]\\n &*!|>'\"-]{0,200}") {
        let mut policy = Policy::new("weft.local");
        policy.replace_file("a.yaml", &text);
        policy.replace_file("a.yaml", &format!("{SHOP}---\n{text}"));
    }
}
