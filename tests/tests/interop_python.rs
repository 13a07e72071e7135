//! Clients and servers in Python, unchanged, with the mesh between them: gRPC, WebSocket, `requests`.

use std::{process::Command, time::Duration};
use weft_tests::processes::{Mesh, Process, Sidecar, python, run, script, service};

const LIMIT: Duration = Duration::from_secs(120);

/// A mesh of a caller and one service, with that service's application.
struct Called {
    caller: Sidecar,
    _callee: Sidecar,
    _app: Process,
    _mesh: Mesh,
}

fn called(python: &str, name: &str, port: u16, protocol: &str, server: &str) -> Called {
    let mesh = Mesh::start(&format!(
        "
apiVersion: weft.mesh/v1alpha1
kind: MeshPolicy
metadata: {{ name: mesh, namespace: shop }}
spec: {{ mtls: {{ mode: strict }} }}
---
apiVersion: weft.mesh/v1alpha1
kind: Workload
metadata: {{ name: caller, namespace: shop }}
spec: {{ serviceAccount: caller }}
---
apiVersion: weft.mesh/v1alpha1
kind: Workload
metadata: {{ name: {name}, namespace: shop }}
spec: {{ service: {name}, serviceAccount: {name}, ports: [{{ port: {port}, appProtocol: {protocol} }}] }}
"
    ));
    let (app, local) = service(python, server);
    let callee = mesh.sidecar(name, &[(port, local)]);
    let caller = mesh.sidecar("caller", &[]);
    Called { caller, _callee: callee, _app: app, _mesh: mesh }
}

fn client(python: &str, name: &str, arguments: &[&str], http_proxy: Option<&str>) {
    let mut command = Command::new(python);
    for name in ["http_proxy", "HTTP_PROXY", "all_proxy", "no_proxy", "NO_PROXY", "https_proxy"] {
        command.env_remove(name);
    }
    if let Some(proxy) = http_proxy {
        command.env("http_proxy", proxy);
    }
    let done = run(command.arg(script(name)).args(arguments), LIMIT).ok();
    assert!(done.stdout.ends_with("all hold\n"), "{done:?}");
}

#[test]
fn grpc_works_whole_through_a_proxy_and_straight_to_the_outbound_port() {
    let Some(python) = python(&["grpc"]) else { return };
    let mesh = called(&python, "inventory", 50051, "grpc", "grpc_server.py");
    let outbound = mesh.caller.outbound.to_string();
    for way in ["proxy", "direct"] {
        client(&python, "grpc_client.py", &[way, "inventory.shop:50051", &outbound], None);
    }
}

#[test]
fn websockets_echo_and_close_as_without_a_mesh() {
    let Some(python) = python(&["websockets"]) else { return };
    let mesh = called(&python, "chat", 8080, "http", "websocket_server.py");
    let outbound = mesh.caller.outbound.to_string();
    client(&python, "websocket_client.py", &["chat.shop:8080", &outbound], None);
}

#[test]
fn a_session_of_requests_needs_nothing_but_http_proxy() {
    let Some(python) = python(&["requests"]) else { return };
    let mesh = called(&python, "web", 8080, "http", "http_server.py");
    let proxy = format!("http://{}", mesh.caller.outbound);
    client(&python, "requests_client.py", &["web.shop:8080"], Some(&proxy));
}
