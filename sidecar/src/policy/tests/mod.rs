//! The subscription as rules: first without sockets, then against a control plane in this process.

mod control_plane;
mod files;
mod identity;
mod live;
mod rules;

use weft_config::wire;

/// Documents as they travel.
fn documents(list: &[(&str, serde_json::Value)]) -> wire::Documents {
    let documents =
        list.iter().map(|(kind, json)| wire::Document { kind: (*kind).to_owned(), json: json.to_string() });
    wire::Documents { documents: documents.collect() }
}

fn with_documents(name: &str, version: &str, documents: wire::Documents) -> wire::Resource {
    wire::Resource {
        name: name.to_owned(),
        version: version.to_owned(),
        body: Some(wire::resource::Body::Documents(documents)),
    }
}

/// A Service with port 80.
fn service_document(name: &str) -> (&'static str, serde_json::Value) {
    let document = serde_json::json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "name": name, "namespace": "shop" },
        "spec": { "ports": [{ "port": 80, "appProtocol": "http" }] },
    });
    ("Service", document)
}

/// The resource of a service in namespace `shop` without routes.
fn service(name: &str, version: &str) -> wire::Resource {
    with_documents(&format!("service/shop/{name}"), version, documents(&[service_document(name)]))
}

/// The resource of a service whose every call is forwarded to another.
fn service_to(name: &str, version: &str, backend: &str) -> wire::Resource {
    let route = serde_json::json!({
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": { "name": name, "namespace": "shop" },
        "spec": {
            "parentRefs": [{ "kind": "Service", "group": "", "name": name }],
            "rules": [{ "backendRefs": [{ "name": backend, "port": 80 }] }],
        },
    });
    let all = documents(&[service_document(name), ("HTTPRoute", route)]);
    with_documents(&format!("service/shop/{name}"), version, all)
}

/// A resource that does not compile: the Service is of no known form.
fn broken_service(name: &str, version: &str) -> wire::Resource {
    let broken = documents(&[(
        "Service",
        serde_json::json!({ "metadata": { "name": name }, "spec": { "ports": "x" } }),
    )]);
    with_documents(&format!("service/shop/{name}"), version, broken)
}

/// Where a service is served: one place.
fn endpoints(name: &str, version: &str, address: &str) -> wire::Resource {
    let endpoint = wire::Endpoint { port: 80, address: address.to_owned(), weight: 1, ..Default::default() };
    wire::Resource {
        name: format!("endpoints/shop/{name}"),
        version: version.to_owned(),
        body: Some(wire::resource::Body::Endpoints(wire::Endpoints { endpoints: vec![endpoint] })),
    }
}

/// A MeshPolicy.
fn mesh(version: &str, mode: &str) -> wire::Resource {
    let document = serde_json::json!({
        "apiVersion": "weft.mesh/v1alpha1",
        "kind": "MeshPolicy",
        "metadata": { "name": "mesh" },
        "spec": { "mtls": { "mode": mode } },
    });
    with_documents("mesh", version, documents(&[("MeshPolicy", document)]))
}

/// The workload `cart`, with an explicit listener for each of `upstreams`.
fn workload(version: &str, upstreams: &[&str]) -> wire::Resource {
    let upstreams: Vec<_> = upstreams
        .iter()
        .enumerate()
        .map(|(index, service)| {
            serde_json::json!({ "listen": format!("127.0.0.1:{}", 7000 + index), "service": service, "port": 80 })
        })
        .collect();
    let document = serde_json::json!({
        "apiVersion": "weft.mesh/v1alpha1",
        "kind": "Workload",
        "metadata": { "name": "cart", "namespace": "shop" },
        "spec": { "service": "cart", "ports": [{ "port": 80, "appPort": 8080 }], "upstreams": upstreams },
    });
    with_documents("workload/shop/cart", version, documents(&[("Workload", document)]))
}
