//! What is not a request and an answer: upgrades, CONNECT, opaque TCP, and an application's own TLS.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use rustls::{ServerConfig, crypto::aws_lc_rs};
use std::{sync::Arc, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};
use tokio_rustls::TlsAcceptor;
use weft_tests::{
    Backend, Beside, Mesh, PATIENCE, Process, eventually, free_port,
    mesh::{calling, mesh_policy, serving},
    pki, raw,
};

struct Pair {
    _mesh: Mesh,
    served: Process,
    caller: Process,
    _app: Backend,
}

/// A caller and the service `service`:`port` that speaks `protocol`.
async fn pair(app: Backend, port: u16, protocol: &str, caller: &str, more: &str) -> Pair {
    let mesh = Mesh::start(&(serving("service", port, protocol) + caller + more)).await;
    let served = mesh.sidecar(Beside::new("service").app(port, app.address())).await;
    let caller = mesh.sidecar(Beside::new("caller")).await;
    mesh.endpoints("service", 1).await;
    Pair { _mesh: mesh, served, caller, _app: app }
}

/// Sends everything back in capitals; when the other side has said all, says goodbye and ends.
async fn shout(mut stream: tokio::net::TcpStream) {
    let mut bytes = [0; 4096];
    loop {
        match stream.read(&mut bytes).await {
            Ok(0) | Err(_) => break,
            Ok(n) => {
                bytes[..n].make_ascii_uppercase();
                if stream.write_all(&bytes[..n]).await.is_err() {
                    return;
                }
            }
        }
    }
    let _ = stream.write_all(b" goodbye").await;
    let _ = stream.shutdown().await;
}

async fn tunnel(caller: &Process, to: &str) -> tokio::net::TcpStream {
    let mut stream = raw::connect(caller.outbound()).await;
    let request = format!("CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let head = raw::head(&mut stream).await;
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    stream
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upgrade_passes_and_nothing_goes_onward_before_101() {
    let app = Backend::tcp(|mut stream| async move {
        let head = raw::head(&mut stream).await.to_ascii_lowercase();
        if !(head.contains("upgrade: websocket") && head.contains("connection: upgrade")) {
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n").await;
            return;
        }
        // What the client sent too early must not be here yet.
        let mut early = [0];
        if timeout(Duration::from_millis(300), stream.read(&mut early)).await.is_ok() {
            let _ = stream.write_all(b"HTTP/1.1 500 Early\r\nContent-Length: 0\r\n\r\n").await;
            return;
        }
        let answer = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
            Sec-WebSocket-Accept: yes\r\n\r\n";
        stream.write_all(answer).await.unwrap();
        shout(stream).await;
    })
    .await;
    let pair = pair(app, 8080, "http", &calling("caller"), "").await;
    let mut stream = raw::connect(pair.caller.outbound()).await;
    let request = "GET http://service:8080/chat HTTP/1.1\r\nHost: service\r\nUpgrade: websocket\r\n\
        Connection: Upgrade\r\nSec-WebSocket-Key: abc\r\n\r\nearly";
    stream.write_all(request.as_bytes()).await.unwrap();
    let head = raw::head(&mut stream).await;
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    assert!(head.to_ascii_lowercase().contains("sec-websocket-accept: yes"), "{head}");
    assert_eq!(raw::exactly(&mut stream, 5).await, "EARLY");
    for text in ["frame one", "frame two"] {
        stream.write_all(text.as_bytes()).await.unwrap();
        assert_eq!(raw::exactly(&mut stream, text.len()).await, text.to_ascii_uppercase());
    }
    stream.shutdown().await.unwrap();
    assert_eq!(raw::rest(&mut stream).await, " goodbye");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_upgrade_is_an_answer_like_any_other() {
    let app = Backend::tcp(|mut stream| async move {
        raw::head(&mut stream).await;
        let _ = stream.write_all(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno").await;
    })
    .await;
    let pair = pair(app, 8080, "http", &calling("caller"), "").await;
    let mut stream = raw::connect(pair.caller.outbound()).await;
    let request =
        "GET http://service:8080/ HTTP/1.1\r\nHost: service\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    assert!(raw::head(&mut stream).await.starts_with("HTTP/1.1 403 "));
    assert_eq!(raw::exactly(&mut stream, 2).await, "no");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connect_tunnels_tcp_through_the_mesh_with_half_close() {
    let pair = pair(Backend::tcp(shout).await, 7000, "tcp", &calling("caller"), "").await;
    let mut stream = tunnel(&pair.caller, "service:7000").await;
    stream.write_all(b"hello").await.unwrap();
    assert_eq!(raw::exactly(&mut stream, 5).await, "HELLO");
    stream.write_all(b"last").await.unwrap();
    // Our end is closed; the other side still talks.
    stream.shutdown().await.unwrap();
    assert_eq!(raw::rest(&mut stream).await, "LAST goodbye");
    for (sidecar, direction) in [(&pair.caller, "outbound"), (&pair.served, "inbound")] {
        let direction = format!("direction=\"{direction}\"");
        eventually("the bytes are counted", PATIENCE, || async {
            let metrics = sidecar.metrics().await;
            let labels = [direction.as_str(), "service=\"shop/service\""];
            (metrics.sum("weft_tcp_bytes_total", &labels) == 26.0).then_some(())
        })
        .await;
        let handshakes =
            sidecar.metrics().await.sum("weft_tls_handshakes_total", &[&direction, "result=\"ok\""]);
        assert_eq!(handshakes, 1.0, "{direction}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connect_to_an_http_service_gets_all_of_the_mesh() {
    let pair = pair(Backend::echo("app").await, 8080, "http", &calling("caller"), "").await;
    let mut stream = tunnel(&pair.caller, "service:8080").await;
    stream.write_all(b"GET /in HTTP/1.1\r\nHost: service\r\nConnection: close\r\n\r\n").await.unwrap();
    let answer = raw::rest(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("traceparent"), "{answer}");
    let metrics = pair.caller.metrics().await;
    assert_eq!(metrics.sum("weft_requests_total", &["direction=\"outbound\"", "status=\"200\""]), 1.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_explicit_listener_leads_to_its_service() {
    let port = free_port();
    let caller = calling("caller").replace(
        "{ serviceAccount: caller }",
        &format!("{{ serviceAccount: caller, upstreams: [{{ listen: \"127.0.0.1:{port}\", service: service, port: 7000 }}] }}"),
    );
    let pair = pair(Backend::tcp(shout).await, 7000, "tcp", &caller, "").await;
    let listen = ([127, 0, 0, 1], port).into();
    let mut stream = raw::connect(listen).await;
    stream.write_all(b"over a listener").await.unwrap();
    assert_eq!(raw::exactly(&mut stream, 15).await, "OVER A LISTENER");
    stream.shutdown().await.unwrap();
    assert_eq!(raw::rest(&mut stream).await, " goodbye");
    assert_eq!(pair.served.metrics().await.sum("weft_tls_handshakes_total", &["result=\"ok\""]), 1.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_may_speak_first() {
    let app = || {
        Backend::tcp(|mut stream| async move {
            stream.write_all(b"220 ready\n").await.unwrap();
            shout(stream).await;
        })
    };
    // On a port that is declared as TCP, and on one where nothing is declared and the client just waits.
    for protocol in ["tcp", ""] {
        let document = serving("service", 7001, "tcp").replace(
            ", appProtocol: tcp",
            &match protocol {
                "" => String::new(),
                some => format!(", appProtocol: {some}"),
            },
        );
        let mesh = Mesh::start(&(document + &calling("caller"))).await;
        let app = app().await;
        let _served = mesh.sidecar(Beside::new("service").app(7001, app.address())).await;
        let caller = mesh.sidecar(Beside::new("caller")).await;
        mesh.endpoints("service", 1).await;
        let mut stream = tunnel(&caller, "service:7001").await;
        assert_eq!(raw::exactly(&mut stream, 10).await, "220 ready\n", "{protocol:?}");
        stream.write_all(b"helo").await.unwrap();
        assert_eq!(raw::exactly(&mut stream, 4).await, "HELO");
    }
}

/// An application that speaks TLS itself and answers `own tls` to whoever connects.
async fn tls_app() -> Backend {
    let pki::Credentials { certificate, key } = pki::own_tls("app.example");
    let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(config));
    Backend::tcp(move |stream| {
        let acceptor = acceptor.clone();
        async move {
            let Ok(mut stream) = acceptor.accept(stream).await else { return };
            let _ = stream.write_all(b"own tls").await;
            let _ = stream.shutdown().await;
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_applications_own_tls_travels_through_untouched() {
    for protocol in ["tcp", "http"] {
        let pair = pair(tls_app().await, 8443, protocol, &calling("caller"), "").await;
        let stream = tunnel(&pair.caller, "service:8443").await;
        let mut tls = pki::tls(stream, "app.example", &[b"http/1.1"], None).await.expect("a handshake");
        let (_, session) = tls.get_ref();
        assert_eq!(
            session.alpn_protocol(),
            Some(&b"http/1.1"[..]),
            "with the application, not with a sidecar"
        );
        assert_eq!(raw::rest(&mut tls).await, "own tls", "{protocol}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn permissive_mode_passes_an_outsiders_tls_to_the_application() {
    let permissive = mesh_policy("{ mtls: { mode: permissive } }");
    let one = pair(tls_app().await, 8443, "tcp", &calling("caller"), &permissive).await;
    let stream = raw::connect(one.served.addresses().inbound).await;
    let mut tls = pki::tls(stream, "app.example", &[b"http/1.1"], None).await.expect("a handshake");
    assert_eq!(raw::rest(&mut tls).await, "own tls");

    let strict = pair(tls_app().await, 8443, "tcp", &calling("caller"), "").await;
    let stream = raw::connect(strict.served.addresses().inbound).await;
    assert!(pki::tls(stream, "app.example", &[b"http/1.1"], None).await.is_err(), "strict takes none");
    eventually("it is counted", PATIENCE, || async {
        let metrics = strict.served.metrics().await;
        let labels = ["direction=\"inbound\"", "result=\"no_protocol\""];
        (metrics.sum("weft_tls_handshakes_total", &labels) == 1.0).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connect_where_nothing_is_says_so() {
    let registry_only = mesh_policy("{ outbound: registryOnly }");
    let pair = pair(Backend::text("x").await, 8080, "http", &calling("caller"), &registry_only).await;
    let answer =
        raw::exchange(pair.caller.outbound(), "CONNECT nosuch:1 HTTP/1.1\r\nHost: nosuch:1\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
    assert!(answer.to_ascii_lowercase().contains("weft-error: unknown_service"), "{answer}");
    let answer = raw::exchange(pair.caller.outbound(), "\u{1}\u{2}nonsense").await;
    assert_eq!(answer, "", "what is no protocol at all is closed");
    assert_eq!(pair.caller.metrics().await.sum("weft_errors_total", &["kind=\"bad_request\""]), 1.0);
}
