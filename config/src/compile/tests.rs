//! What documents compile to, from YAML through policy and the wire to the snapshot.

mod cache;
mod traffic;

use super::*;
use crate::error::Severity;
use crate::identity::ServiceName;
use crate::matching::RequestView;
use crate::snapshot::{
    Action, AppProtocol, Backends, Balancer, Decision, MtlsMode, OutboundMode, PathRewrite, Port, Rule,
};
use http::{HeaderMap, Method};
use std::time::Duration;

fn policy(text: &str) -> Policy {
    let mut policy = Policy::new("weft.local");
    let change = policy.replace_file("a.yaml", text);
    let errors: Vec<_> = change.diagnostics.iter().filter(|d| d.severity == Severity::Error).collect();
    assert!(errors.is_empty(), "{errors:#?}");
    policy
}

const SERVICES: &str = "
apiVersion: v1
kind: Service
metadata: {name: product, namespace: shop}
spec: {ports: [{name: web, port: 80, targetPort: http, appProtocol: http}, {name: rpc, port: 90, appProtocol: kubernetes.io/h2c}, {name: dns, port: 53, protocol: UDP}]}
---
apiVersion: v1
kind: Service
metadata: {name: product-v2, namespace: shop}
spec: {ports: [{port: 80, appProtocol: http}]}
---
apiVersion: weft.mesh/v1alpha1
kind: Workload
metadata: {name: product-1, namespace: shop}
spec:
  service: product
  serviceAccount: product
  ports: [{name: http, port: 8080, appPort: 3000, appProtocol: http2}, {port: 90}]
  upstreams: [{listen: '127.0.0.1:7000', service: product-v2, port: 80}]
---
";

fn compiled(text: &str, caller_namespace: &str) -> Arc<Service> {
    compiled_for(text, &Caller::in_namespace(caller_namespace))
}

fn compiled_for(text: &str, caller: &Caller) -> Arc<Service> {
    let snapshot = everything(&policy(&format!("{SERVICES}{text}")), caller);
    snapshot.service(&ServiceName::new("shop", "product")).expect("compiled").clone()
}

fn http_route(name: &str, namespace: &str, parent: &str, rules: &str) -> String {
    format!(
        "
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: {name}, namespace: {namespace}}}
spec:
  parentRefs: [{{group: '', kind: Service, namespace: shop, {parent}}}]
  rules:
{rules}
---
"
    )
}

fn taken<'p>(port: &'p Port, request: &str, headers: &HeaderMap) -> Option<&'p Rule> {
    let (method, target) = request.split_once(' ').expect("method and target");
    let (path, query) = target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
    let method: Method = method.parse().expect("a method");
    let found = port.routes.find(&RequestView { method: &method, path, query, headers })?;
    port.rules.get(found.rule)
}

fn name(port: &Port, request: &str) -> Option<String> {
    taken(port, request, &HeaderMap::new()).map(|rule| rule.name.to_string())
}

fn backends(rule: &Rule) -> &Backends {
    match &rule.action {
        Action::Forward(backends) => backends,
        Action::Redirect(redirect) => panic!("{redirect:?}"),
    }
}

#[test]
fn a_service_has_its_ports_and_no_routes_of_its_own() {
    let service = compiled("", "shop");
    let ports: Vec<_> = service.ports.iter().map(|p| (p.port, p.name.as_deref(), p.protocol)).collect();
    assert_eq!(ports, [(80, Some("web"), AppProtocol::Http1), (90, Some("rpc"), AppProtocol::Http2)]);
    assert!(service.ports.iter().all(|port| port.routes.is_empty()));
    assert!(!service.version.is_empty());
}

#[test]
fn an_http_route_compiles_whole() {
    let rules = "
  - name: canary
    matches:
    - path: {type: Exact, value: /a}
      headers: [{name: X-Group, value: beta}]
      queryParams: [{name: q, type: RegularExpression, value: '[0-9]+'}]
      method: POST
    filters:
    - type: RequestHeaderModifier
      requestHeaderModifier: {set: [{name: X-A, value: '1'}], add: [{name: x-b, value: '2'}], remove: [x-c]}
    - type: ResponseHeaderModifier
      responseHeaderModifier: {set: [{name: x-d, value: '3'}]}
    - type: URLRewrite
      urlRewrite: {hostname: other.example, path: {type: ReplaceFullPath, replaceFullPath: /new}}
    backendRefs:
    - {name: product, port: 80, weight: 9}
    - {name: product-v2, port: 80, weight: 0}
    - name: product-v2
      port: 80
      filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-v, value: '2'}]}}]
    timeouts: {request: 10s, backendRequest: 2s}
  - matches: [{path: {value: /old}}]
    filters: [{type: RequestRedirect, requestRedirect: {scheme: https, hostname: www.example, port: 8443, path: {type: ReplacePrefixMatch, replacePrefixMatch: /}, statusCode: 301}}]
  - matches: [{path: {value: /none}}]
";
    let service = compiled(&http_route("r", "shop", "name: product, port: 80", rules), "elsewhere");
    let port = service.port(80).expect("port 80");
    let mut headers = HeaderMap::new();
    headers.insert("x-group", "beta".parse().expect("a value"));
    let rule = taken(port, "POST /a?q=17", &headers).expect("a rule");
    assert_eq!(&*rule.name, "shop/r#canary");
    assert_eq!(rule.calls.timeouts.request, Some(Duration::from_secs(10)));
    assert_eq!(rule.calls.timeouts.attempt, Some(Duration::from_secs(2)));
    assert_eq!(rule.filters.request.set[0].0, "x-a");
    assert_eq!(rule.filters.request.add[0].1, "2");
    assert_eq!(rule.filters.request.remove[0], "x-c");
    assert_eq!(rule.filters.response.set[0].1, "3");
    assert_eq!(rule.filters.host.as_ref().map(|h| h.as_bytes()), Some(&b"other.example"[..]));
    assert_eq!(rule.filters.path, Some(PathRewrite::Full("/new".into())));
    let to = backends(rule);
    let weights: Vec<_> = to.list.iter().map(|b| (b.service.to_string(), b.port, b.weight)).collect();
    assert_eq!(weights, [("shop/product".into(), 80, 9), ("shop/product-v2".into(), 80, 1)]);
    assert_eq!(to.total_weight, 10);
    assert_eq!(to.list[1].filters.request.set[0].1, "2");
    for other in ["POST /a?q=x", "GET /a?q=17", "POST /b?q=17"] {
        assert!(taken(port, other, &headers).is_none(), "{other}");
    }
    match &taken(port, "GET /old/x", &headers).expect("a rule").action {
        Action::Redirect(redirect) => {
            assert_eq!(redirect.scheme.as_deref(), Some("https"));
            assert_eq!((redirect.host.as_deref(), redirect.port), (Some("www.example"), Some(8443)));
            assert_eq!(redirect.path, Some(PathRewrite::Prefix("/".into())));
            assert_eq!(redirect.status, 301);
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(backends(taken(port, "GET /none", &headers).expect("a rule")).total_weight, 0);
    assert!(service.port(90).expect("port 90").routes.is_empty());
}

#[test]
fn a_rule_without_matches_takes_everything() {
    let text = http_route("r", "shop", "name: product", "  - backendRefs: [{name: product-v2, port: 80}]");
    let service = compiled(&text, "shop");
    for number in [80, 90] {
        let port = service.port(number).expect("a port");
        assert_eq!(name(port, "DELETE /any/thing?x").as_deref(), Some("shop/r#0"));
    }
}

#[test]
fn a_parent_reference_can_name_the_port() {
    let text = http_route(
        "r",
        "shop",
        "name: product, sectionName: rpc",
        "  - backendRefs: [{name: product, port: 90}]",
    );
    let service = compiled(&text, "shop");
    assert!(service.port(80).expect("a port").routes.is_empty());
    assert!(!service.port(90).expect("a port").routes.is_empty());
}

#[test]
fn a_callers_own_namespace_can_route_its_calls_to_another() {
    let rules = |path: &str| {
        format!(
            "  - matches: [{{path: {{value: {path}}}}}]\n    backendRefs: [{{name: product, namespace: shop, port: 80}}]"
        )
    };
    let text = http_route("producer", "shop", "name: product, port: 80", &rules("/p"))
        + &http_route("consumer", "other", "name: product, port: 80", &rules("/c"));
    let routed = |caller: &str, path: &str| {
        let service = compiled(&text, caller);
        name(service.port(80).expect("a port"), &format!("GET {path}"))
    };
    // The consumer's routes take the place of the producer's, for callers in its namespace only.
    assert_eq!(routed("other", "/c").as_deref(), Some("other/consumer#0"));
    assert_eq!(routed("other", "/p"), None);
    for caller in ["shop", "third"] {
        assert_eq!(routed(caller, "/p").as_deref(), Some("shop/producer#0"));
        assert_eq!(routed(caller, "/c"), None);
    }
}

#[test]
fn hostnames_of_routes_on_services_mean_nothing() {
    let text = http_route("r", "shop", "name: product", "  - backendRefs: [{name: product, port: 80}]")
        .replace("  rules:", "  hostnames: [other.example]\n  rules:");
    assert!(name(compiled(&text, "shop").port(80).expect("a port"), "GET /").is_some());
}

#[test]
fn a_grpc_route_matches_service_method_and_metadata() {
    let text = "
apiVersion: gateway.networking.k8s.io/v1
kind: GRPCRoute
metadata: {name: g, namespace: shop}
spec:
  parentRefs: [{group: '', kind: Service, name: product, port: 90}]
  rules:
  - name: reserve
    matches:
    - method: {service: shop.v1.Inventory, method: Reserve}
    - method: {type: RegularExpression, service: 'shop\\.v2\\..*'}
    backendRefs: [{name: product, port: 90}]
  - matches: [{headers: [{name: x-group, value: beta}]}]
    filters: [{type: RequestHeaderModifier, requestHeaderModifier: {add: [{name: x-b, value: '2'}]}}]
    backendRefs: [{name: product-v2, port: 80}]
";
    let service = compiled(text, "shop");
    let port = service.port(90).expect("a port");
    assert_eq!(name(port, "POST /shop.v1.Inventory/Reserve").as_deref(), Some("shop/g#reserve"));
    assert_eq!(name(port, "POST /shop.v2.Other/Any").as_deref(), Some("shop/g#reserve"));
    assert_eq!(name(port, "POST /shop.v1.Inventory/Release"), None);
    let mut headers = HeaderMap::new();
    headers.insert("x-group", "beta".parse().expect("a value"));
    let rule = taken(port, "POST /shop.v1.Inventory/Release", &headers).expect("a rule");
    assert_eq!(rule.filters.request.add.len(), 1);
}

#[test]
fn unknown_backends_and_filters_answer_with_an_error_for_their_share() {
    let text = http_route(
        "r",
        "shop",
        "name: product",
        "
  - matches: [{path: {value: /kind}}]
    backendRefs: [{name: product, port: 80}, {group: storage.example, kind: Bucket, name: b}]
  - matches: [{path: {value: /filter}}]
    filters: [{type: ExtensionRef, extensionRef: {group: example, kind: Auth, name: a}}]
    backendRefs: [{name: product, port: 80}]
",
    );
    let service = compiled(&text, "shop");
    let port = service.port(80).expect("a port");
    let invalid = |request: &str| {
        let rule = taken(port, request, &HeaderMap::new()).expect("a rule");
        backends(rule).list.iter().map(|b| b.invalid.is_some()).collect::<Vec<_>>()
    };
    assert_eq!(invalid("GET /kind"), [false, true]);
    assert_eq!(invalid("GET /filter"), [true]);
}

#[test]
fn a_balancer_for_one_port_goes_before_the_service_s() {
    let text = "
apiVersion: weft.mesh/v1alpha1
kind: TrafficPolicy
metadata: {name: all, namespace: shop}
spec: {targetRefs: [{kind: Service, name: product}], loadBalancer: {algorithm: leastRequests}}
---
apiVersion: weft.mesh/v1alpha1
kind: TrafficPolicy
metadata: {name: rpc, namespace: shop}
spec: {targetRefs: [{kind: Service, name: product, sectionName: rpc}], loadBalancer: {algorithm: roundRobin}}
";
    let service = compiled(text, "shop");
    let balancer = |port: u16| service.port(port).expect("a port").traffic.balancing.algorithm.clone();
    assert_eq!((balancer(80), balancer(90)), (Balancer::LeastRequests, Balancer::RoundRobin));
    assert_eq!(
        compiled("", "shop").port(80).expect("a port").traffic.balancing.algorithm,
        Balancer::PeakEwma
    );
}

#[test]
fn a_workload_serves_what_the_services_send_to_its_ports() {
    let policy = policy(SERVICES);
    let (_, documents) = policy.resource("workload/shop/product-1-0").expect("a replica");
    let workload = workload("shop/product-1-0", &documents, &policy.mesh()).expect("compiles");
    assert_eq!(workload.name, Some(ServiceName::new("shop", "product-1-0")));
    let served: Vec<_> =
        workload.serves.iter().map(|s| (s.service.to_string(), s.port, s.app_port, s.protocol)).collect();
    assert_eq!(
        served,
        [
            ("shop/product".into(), 80, 3000, AppProtocol::Http2),
            ("shop/product".into(), 90, 90, AppProtocol::Http2)
        ]
    );
    assert_eq!(workload.upstreams[0].listen.to_string(), "127.0.0.1:7000");
    assert_eq!(workload.upstreams[0].service.to_string(), "shop/product-v2");
}

#[test]
fn authorization_policies_select_workloads_services_and_namespaces() {
    let text = format!(
        "{SERVICES}
apiVersion: weft.mesh/v1alpha1
kind: AuthorizationPolicy
metadata: {{name: web, namespace: shop}}
spec:
  targetRefs: [{{kind: Service, name: product}}]
  rules:
  - name: carts
    from:
    - identities: [shop/cart, spiffe://other.example/ns/shop/sa/cart]
      namespaces: [shop]
    to: [{{methods: [GET], paths: [/products/*], ports: [80]}}]
  - from: [{{identities: [far/away], namespaces: [shop]}}]
---
apiVersion: weft.mesh/v1alpha1
kind: AuthorizationPolicy
metadata: {{name: closed, namespace: shop}}
spec: {{action: deny, rules: [{{from: [{{namespaces: [enemy]}}]}}]}}
---
apiVersion: weft.mesh/v1alpha1
kind: AuthorizationPolicy
metadata: {{name: elsewhere, namespace: other}}
spec: {{action: deny, rules: [{{}}]}}
"
    );
    let policy = policy(&text);
    let (_, documents) = policy.resource("workload/shop/product-1").expect("there");
    let workload = workload("shop/product-1", &documents, &policy.mesh()).expect("compiles");
    let decide = |caller: &str, request: &str, port| {
        let caller = (!caller.is_empty()).then(|| caller.parse().expect("an identity"));
        let (method, path) = request.split_once(' ').expect("method and path");
        let method: Method = method.parse().expect("a method");
        workload.authorization.decide(caller.as_ref(), "weft.local", &method, path, port)
    };
    let cart = "spiffe://weft.local/ns/shop/sa/cart";
    assert_eq!(decide(cart, "GET /products/1", 80), Decision::Allow);
    assert_ne!(decide(cart, "POST /products/1", 80), Decision::Allow);
    // The foreign identity fails on `namespaces`, which mean the mesh's own; the second rule can match nobody.
    assert_ne!(decide("spiffe://other.example/ns/shop/sa/cart", "GET /products/1", 80), Decision::Allow);
    assert_ne!(decide("spiffe://weft.local/ns/far/sa/away", "GET /products/1", 80), Decision::Allow);
    assert_ne!(decide("", "GET /products/1", 80), Decision::Allow);
    assert_ne!(decide(cart, "GET /products/1", 90), Decision::Allow);
    // Nothing is said about ports that are not the service's, but for the whole namespace.
    assert_eq!(decide("", "POST /x", 9999), Decision::Allow);
    let enemy = decide("spiffe://weft.local/ns/enemy/sa/x", "POST /x", 9999);
    assert_eq!(enemy, Decision::Deny("shop/closed#0".into()));
    assert_eq!(workload.authorization.allow[0].name.as_ref(), "shop/web#carts");
    assert_eq!(workload.authorization.allow.len(), 1);
}

#[test]
fn mesh_policy_settings_override_defaults_one_by_one() {
    let policy = policy(
        "
apiVersion: weft.mesh/v1alpha1
kind: MeshPolicy
metadata: {name: mesh}
spec:
  mtls: {mode: permissive}
  outbound: registryOnly
  limits: {headerBytes: 8KiB, requestTimeout: 3s}
  accessLog: {sample: 0.5, minStatus: 500}
  tracing: {sampling: 1.0}
",
    );
    let mesh = policy.mesh();
    assert_eq!(&*mesh.trust_domain, "weft.local");
    assert_eq!((mesh.mtls, mesh.outbound), (MtlsMode::Permissive, OutboundMode::RegistryOnly));
    assert_eq!(mesh.limits.header_bytes, 8192);
    assert_eq!(mesh.limits.request_timeout, Duration::from_secs(3));
    assert_eq!(mesh.limits.idle_timeout, Duration::from_secs(3600));
    assert_eq!((mesh.access_log.sample, mesh.access_log.min_status), (0.5, Some(500)));
    assert_eq!(mesh.trace_sampling, 1.0);
}

#[test]
fn endpoints_are_sorted_out_by_port_and_can_change_alone() {
    let policy = policy(SERVICES);
    let (_, documents) = policy.resource("service/shop/product").expect("there");
    let endpoint = |port, address: &str, identity: &str| wire::Endpoint {
        port,
        address: address.into(),
        identity: identity.into(),
        workload: "w".into(),
        zone: "a".into(),
        labels: [("b".into(), "2".into()), ("a".into(), "1".into())].into(),
        weight: 0,
    };
    let id = "spiffe://weft.local/ns/shop/sa/product";
    let endpoints =
        wire::Endpoints { endpoints: vec![endpoint(80, "10.0.0.1:1", id), endpoint(90, "[::1]:2", "")] };
    let mesh = Mesh::default();
    let compiled = service("shop/product", &documents, &endpoints, &mesh, &Caller::in_namespace("shop"))
        .expect("compiles");
    let at = |service: &Service, port: u16| service.port(port).expect("a port").endpoints.clone();
    let one = &at(&compiled, 80)[0];
    assert_eq!((one.address.to_string().as_str(), one.weight), ("10.0.0.1:1", 1));
    assert_eq!(one.identity.as_ref().map(ToString::to_string).as_deref(), Some(id));
    assert_eq!(&*one.labels[0].0, "a");
    assert_eq!(at(&compiled, 90)[0].identity, None);
    let moved = wire::Endpoints { endpoints: vec![endpoint(80, "10.0.0.2:1", id)] };
    let moved = with_endpoints(&compiled, &moved).expect("compiles");
    assert_eq!(at(&moved, 80)[0].address.to_string(), "10.0.0.2:1");
    assert!(at(&moved, 90).is_empty());
    for wrong in [endpoint(80, "here", id), endpoint(80, "10.0.0.1:1", "me")] {
        let wrong = wire::Endpoints { endpoints: vec![wrong] };
        assert!(service("shop/product", &documents, &wrong, &mesh, &Caller::in_namespace("shop")).is_err());
        assert!(with_endpoints(&compiled, &wrong).is_err());
    }
}

#[test]
fn what_makes_no_sense_on_the_wire_is_an_error_and_not_a_panic() {
    let documents = |kind: &str, json: &str| wire::Documents {
        documents: vec![wire::Document { kind: kind.into(), json: json.into() }],
    };
    let mesh_default = Mesh::default();
    for (kind, json) in [("Nonsense", "{}"), ("Service", "{"), ("Service", "[]"), ("HTTPRoute", "null")] {
        let documents = documents(kind, json);
        assert!(
            service("a/b", &documents, &Default::default(), &mesh_default, &Caller::in_namespace("a"))
                .is_err()
        );
        assert!(workload("a/b", &documents, &mesh_default).is_err());
        assert!(mesh(&documents).is_err());
    }
    let nothing = wire::Documents::default();
    assert!(
        service("a/b", &nothing, &Default::default(), &mesh_default, &Caller::in_namespace("a")).is_err()
    );
    assert!(workload("a/b", &nothing, &mesh_default).is_err());
    assert_eq!(mesh(&nothing), Ok(Mesh::default()));
}
