//! Rules of the admin ports: who may ask what, that nothing is changed by accident, and that nobody can hold them up.

use super::{page::ENDPOINTS, *};
use http::Method;
use serde_json::json;
use std::{
    net::Ipv4Addr,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[derive(Default)]
struct Fake {
    unready: bool,
    level: Mutex<String>,
    purged: Mutex<Vec<String>>,
    drained: AtomicBool,
    quitted: AtomicBool,
}

impl Inspect for Fake {
    fn ready(&self) -> Result<(), String> {
        if self.unready { Err("no certificate yet\n: see /certs".into()) } else { Ok(()) }
    }
    fn config_dump(&self) -> Value {
        json!({ "mesh": { "mtls": "strict" } })
    }
    fn certs(&self) -> Value {
        json!({ "identity": "spiffe://weft.local/ns/shop/sa/cart", "expires": "2026-01-01T00:00:00Z" })
    }
    fn clusters(&self) -> Value {
        json!([
            { "service": "shop/cart", "port": 8080, "endpoints": ["10.0.0.7:15006", "10.0.0.8:15006"] },
            { "service": "shop/\u{1b}[31mred", "port": 80, "endpoints": [] },
        ])
    }
    fn routes(&self) -> Value {
        json!([])
    }
    fn cache(&self, top: usize) -> Value {
        json!({ "policies": [{ "policy": "shop/pages", "bytes": 7 }], "routes": [], "top": [top] })
    }
    fn log_level(&self) -> String {
        self.level.lock().expect("not poisoned").clone()
    }
    fn set_log_level(&self, filter: &str) -> Result<(), String> {
        if filter == "louder" {
            return Err("`louder` is not a level".into());
        }
        filter.clone_into(&mut self.level.lock().expect("not poisoned"));
        Ok(())
    }
    fn purge(&self, kind: Kind, text: &str, service: &str, soft: bool) -> Result<(String, u64), String> {
        if text == "bad" {
            return Err("`bad` is no URL".into());
        }
        let what = format!("{kind:?} {text} {service} {soft}");
        self.purged.lock().expect("not poisoned").push(what.clone());
        Ok((what, 3))
    }
    fn drain(&self) {
        self.drained.store(true, SeqCst);
    }
    fn quit(&self) {
        self.quitted.store(true, SeqCst);
    }
}

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

struct Asking {
    fake: Arc<Fake>,
    surface: Surface,
    peer: IpAddr,
}

impl Default for Asking {
    fn default() -> Self {
        Self { fake: Arc::new(Fake::default()), surface: Surface::Admin, peer: LOOPBACK }
    }
}

impl Asking {
    fn ask(&self, method: Method, target: &str, fields: &[(&str, &str)], body: &str) -> Page {
        let mut request = Request::builder().method(method).uri(target);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        let (head, ()) = request.body(()).expect("a request").into_parts();
        let context =
            Context { inspect: Arc::clone(&self.fake) as Arc<dyn Inspect>, metrics: Metrics::new(1) };
        let body = Bytes::copy_from_slice(body.as_bytes());
        page::page(&context, self.surface, self.peer, &Asked { head: &head, body: &body })
    }

    fn get(&self, target: &str) -> Page {
        self.ask(Method::GET, target, &[("host", "localhost:15000")], "")
    }

    fn post(&self, target: &str, body: &str) -> Page {
        self.ask(Method::POST, target, &[("host", "127.0.0.1:15000")], body)
    }
}

fn text(page: &Page) -> &str {
    std::str::from_utf8(&page.body).expect("UTF-8")
}

#[test]
fn every_endpoint_answers_and_is_documented_and_listed() {
    let admin = Asking::default();
    let document = include_str!("../../../docs/admin.md");
    let index = admin.get("/");
    for endpoint in &ENDPOINTS {
        let page = match endpoint.path {
            "/cache/purge" => admin.post("/cache/purge?all=1", ""),
            path if endpoint.methods == "POST" => admin.post(path, ""),
            path => admin.get(path),
        };
        assert!(page.status.is_success(), "{}: {page:?}", endpoint.path);
        assert!(!page.body.is_empty() && page.body.ends_with(b"\n"), "{}", endpoint.path);
        assert!(
            document.contains(&format!("`{}`", endpoint.path)),
            "{} is not in docs/admin.md",
            endpoint.path
        );
        assert!(text(&index).lines().any(|line| line.starts_with(&format!("{} ", endpoint.path))));
    }
}

#[test]
fn the_public_port_has_health_and_metrics_and_nothing_else() {
    let public =
        Asking { surface: Surface::Public, peer: Ipv4Addr::new(10, 1, 2, 3).into(), ..Asking::default() };
    let anywhere = [("host", "cart.shop.svc:15020")];
    for endpoint in &ENDPOINTS {
        let there = ["/", "/ready", "/live", "/metrics"].contains(&endpoint.path);
        let page = public.ask(Method::GET, endpoint.path, &anywhere, "");
        assert_eq!(page.status.is_success(), there, "{}: {page:?}", endpoint.path);
        let page = public.ask(Method::POST, endpoint.path, &anywhere, "debug");
        assert!(page.status.is_client_error(), "{}: {page:?}", endpoint.path);
    }
    assert!(!text(&public.ask(Method::GET, "/", &anywhere, "")).contains("/drain"));
    assert!(!public.fake.drained.load(SeqCst) && !public.fake.quitted.load(SeqCst));
    assert_eq!(public.fake.log_level(), "");
}

#[test]
fn reading_changes_nothing() {
    let admin = Asking::default();
    for path in ["/drain", "/quit", "/loglevel?level=debug"] {
        for method in [Method::GET, Method::HEAD, Method::PUT, Method::DELETE, Method::OPTIONS] {
            let page = admin.ask(method.clone(), path, &[("host", "localhost")], "debug");
            let reads = path.starts_with("/loglevel") && (method == Method::GET || method == Method::HEAD);
            assert_eq!(page.status == StatusCode::METHOD_NOT_ALLOWED, !reads, "{method} {path}");
            assert_eq!(page.allow.is_some(), !reads, "{method} {path}");
        }
    }
    assert!(!admin.fake.drained.load(SeqCst) && !admin.fake.quitted.load(SeqCst));
    assert_eq!(admin.fake.log_level(), "");
    assert_eq!(admin.post("/drain", "").status, StatusCode::ACCEPTED);
    assert!(admin.fake.drained.load(SeqCst) && !admin.fake.quitted.load(SeqCst));
    assert_eq!(admin.post("/quit", "").status, StatusCode::ACCEPTED);
    assert!(admin.fake.quitted.load(SeqCst));
}

#[test]
fn web_pages_and_other_machines_get_nothing() {
    let admin = Asking::default();
    let here = ("host", "localhost:15000");
    let refused: [&[(&str, &str)]; 13] = [
        &[],
        &[("host", "evil.example")],
        &[("host", "evil.example:15000")],
        &[("host", "localhost.evil.example")],
        &[("host", "127.0.0.1.evil.example")],
        &[("host", "127.0.0.1@evil.example")],
        &[("host", "evil.example@127.0.0.1")],
        &[("host", "10.0.0.1")],
        &[("host", "")],
        &[here, ("host", "localhost")],
        &[here, ("origin", "http://localhost:15000")],
        &[here, ("origin", "null")],
        &[here, ("sec-fetch-site", "cross-site")],
    ];
    for fields in refused {
        for (method, path) in [(Method::GET, "/config_dump"), (Method::POST, "/drain")] {
            let page = admin.ask(method, path, fields, "");
            assert_eq!(page.status, StatusCode::FORBIDDEN, "{path} {fields:?}: {page:?}");
        }
    }
    let page = admin.ask(Method::GET, "http://evil.example/config_dump", &[here], "");
    assert_eq!(page.status, StatusCode::FORBIDDEN, "the request's target names the host too");
    assert!(!admin.fake.drained.load(SeqCst));
    for host in ["localhost", "LOCALHOST:15000", "127.0.0.1:15000", "127.8.9.1", "[::1]:15000", "[::1]"] {
        let page = admin.ask(Method::GET, "/config_dump", &[("host", host), ("sec-fetch-site", "none")], "");
        assert_eq!(page.status, StatusCode::OK, "{host}");
    }
    let remote = Asking { peer: Ipv4Addr::new(10, 0, 0, 9).into(), ..Asking::default() };
    assert_eq!(remote.get("/config_dump").status, StatusCode::FORBIDDEN);
    let mapped = Asking { peer: Ipv4Addr::LOCALHOST.to_ipv6_mapped().into(), ..Asking::default() };
    assert_eq!(mapped.get("/config_dump").status, StatusCode::OK);
}

#[test]
fn text_is_for_people_and_json_for_who_asks() {
    let admin = Asking::default();
    let page = admin.get("/clusters");
    assert_eq!(page.content_type, "text/plain; charset=utf-8");
    assert_eq!(
        text(&page),
        "SERVICE             PORT  ENDPOINTS\n\
         shop/cart           8080  10.0.0.7:15006, 10.0.0.8:15006\n\
         shop/\\u{1b}[31mred  80    -\n"
    );
    for page in [
        admin.get("/clusters?format=json"),
        admin.ask(Method::GET, "/clusters", &[("host", "localhost"), ("accept", "application/json")], ""),
    ] {
        assert_eq!(page.content_type, "application/json");
        let json: Value = serde_json::from_slice(&page.body).expect("JSON");
        assert_eq!(json, admin.fake.clusters());
    }
    assert_eq!(
        text(&admin.get("/certs")),
        "identity: spiffe://weft.local/ns/shop/sa/cart\nexpires: 2026-01-01T00:00:00Z\n"
    );
    assert_eq!(text(&admin.get("/routes")), "nothing\n");
}

#[test]
fn nested_data_is_indented_and_bounded() {
    let mut deep = json!("end");
    for _ in 0..64 {
        deep = json!({ "in": deep });
    }
    let value =
        json!({ "b": { "list": [1, 2], "empty": {} }, "a": [{ "x": 1 }, { "y": "z" }], "deep": deep });
    let rendered = text::render(&value);
    assert!(
        rendered.starts_with("a:\n  X  Y\n  1  -\n  -  z\nb:\n  empty: -\n  list: 1, 2\ndeep:\n"),
        "{rendered}"
    );
    assert!(rendered.lines().all(|line| line.len() < 200), "{rendered}");
}

#[test]
fn being_unready_says_why_on_one_line() {
    let admin = Asking { fake: Arc::new(Fake { unready: true, ..Fake::default() }), ..Asking::default() };
    let page = admin.get("/ready");
    assert_eq!(page.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(text(&page), "not ready: no certificate yet\\n: see /certs\n");
    assert_eq!(admin.get("/live").status, StatusCode::OK);
}

#[test]
fn the_log_level_comes_in_the_query_or_the_body() {
    let admin = Asking::default();
    for (target, body, expected) in [
        ("/loglevel", "debug\n", "debug"),
        ("/loglevel", "level=info%2Cweft_sidecar%3Dtrace", "info,weft_sidecar=trace"),
        ("/loglevel?level=warn", "debug", "warn"),
        ("/loglevel?x=1&level=info,h2%3Doff&y", "", "info,h2=off"),
    ] {
        let page = admin.post(target, body);
        assert_eq!((page.status, text(&page)), (StatusCode::OK, format!("filter: {expected}\n").as_str()));
        assert_eq!(admin.fake.log_level(), expected);
    }
    let page = admin.post("/loglevel", "louder");
    assert_eq!((page.status, text(&page)), (StatusCode::BAD_REQUEST, "`louder` is not a level\n"));
    assert_eq!(admin.fake.log_level(), "info,h2=off", "a refused filter changes nothing");
    assert_eq!(text(&admin.get("/loglevel")), "filter: info,h2=off\n");
}

#[test]
fn the_cache_page_lists_as_many_keys_as_are_asked_for_within_a_bound() {
    let admin = Asking::default();
    for (target, top) in [("/cache", 20), ("/cache?top=3", 3), ("/cache?top=0", 0), ("/cache?top=99999", 100)]
    {
        assert_eq!(
            text(&admin.get(target)),
            format!("policies:\n  POLICY      BYTES\n  shop/pages  7\nroutes: -\ntop: {top}\n")
        );
    }
    for target in ["/cache?top=", "/cache?top=-1", "/cache?top=many", "/cache?top=%32%"] {
        let page = admin.get(target);
        assert!(page.status == StatusCode::BAD_REQUEST || target.ends_with("%32%"), "{target}: {page:?}");
    }
}

#[test]
fn unknown_paths_are_not_found_and_say_where_to_look() {
    let admin = Asking::default();
    for path in ["/nope", "/ready/", "/READY", "/config_dump/../quit"] {
        let page = admin.get(path);
        assert_eq!(page.status, StatusCode::NOT_FOUND, "{path}");
        assert!(text(&page).contains("GET / lists"), "{page:?}");
    }
}

/// Both servers on ports of their own, and the way to stop them.
async fn running(
    fake: Arc<Fake>,
) -> (SocketAddr, SocketAddr, tokio::sync::oneshot::Sender<()>, tokio::task::JoinHandle<()>) {
    let admin = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let public = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let addresses = (admin.local_addr().expect("bound"), public.local_addr().expect("bound"));
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let served = tokio::spawn(serve(admin, public, fake, Metrics::new(1), async move {
        let _ = stopped.await;
    }));
    (addresses.0, addresses.1, stop, served)
}

async fn exchange(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.expect("connects");
    stream.write_all(request.as_bytes()).await.expect("written");
    let mut answer = Vec::new();
    timeout(Duration::from_secs(20), stream.read_to_end(&mut answer)).await.expect("in time").expect("read");
    String::from_utf8(answer).expect("UTF-8")
}

#[tokio::test]
async fn both_ports_serve_until_they_are_told_to_stop() {
    let fake = Arc::new(Fake::default());
    let (admin, public, stop, served) = running(Arc::clone(&fake)).await;
    let answer = exchange(public, "GET /metrics HTTP/1.1\r\nhost: any\r\nconnection: close\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.contains("content-type: text/plain; version=0.0.4; charset=utf-8\r\n"), "{answer}");
    assert!(answer.contains("weft_build_info{"), "{answer}");
    let answer = exchange(
        admin,
        "POST /loglevel HTTP/1.1\r\nhost: localhost\r\ncontent-length: 5\r\nconnection: close\r\n\r\ndebug",
    )
    .await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("filter: debug\n"), "{answer}");
    assert!(answer.contains("cache-control: no-store\r\n"), "{answer}");
    let answer =
        exchange(admin, "HEAD /ready HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("\r\n\r\n"), "{answer}");

    // A connection that is idle when the end comes does not hold it up.
    let idle = TcpStream::connect(admin).await.expect("connects");
    stop.send(()).expect("the servers run");
    timeout(Duration::from_secs(5), served).await.expect("in time").expect("no panic");
    drop(idle);
    assert!(TcpStream::connect(admin).await.is_err(), "nobody listens any more");
}

#[tokio::test]
async fn a_body_beyond_the_limit_is_refused() {
    let (admin, _, stop, served) = running(Arc::new(Fake::default())).await;
    let head =
        "POST /loglevel HTTP/1.1\r\nhost: localhost\r\ncontent-length: 5000\r\nconnection: close\r\n\r\n";
    let answer = exchange(admin, &format!("{head}{}", "x".repeat(5000))).await;
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    stop.send(()).expect("the servers run");
    served.await.expect("no panic");
}

#[tokio::test(start_paused = true)]
async fn slow_heads_and_slow_bodies_give_their_place_back() {
    let (admin, _, stop, served) = running(Arc::new(Fake::default())).await;
    let mut slow = Vec::new();
    for _ in 0..CONNECTIONS {
        let mut stream = TcpStream::connect(admin).await.expect("connects");
        stream.write_all(b"GET /rea").await.expect("written");
        slow.push(stream);
    }
    // All places are taken; this one is served when the slow ones have run out of time.
    let answer = exchange(admin, "GET /ready HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    let answer =
        exchange(admin, "POST /drain HTTP/1.1\r\nhost: localhost\r\ncontent-length: 5\r\n\r\nab").await;
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    stop.send(()).expect("the servers run");
    served.await.expect("no panic");
}

#[test]
fn a_purge_says_one_thing_that_is_to_be_purged() {
    let admin = Asking::default();
    let page = admin.post("/cache/purge?format=json&url=http%3A%2F%2Fproduct%3A8080%2Fa%3Fb&soft=1", "");
    assert_eq!(page.status, StatusCode::OK, "{page:?}");
    let answer: Value = serde_json::from_slice(&page.body).expect("JSON");
    assert_eq!(answer["answers"], 3);
    assert_eq!(answer["soft"], true);
    for target in ["?tag=p:1&service=shop/product", "?prefix=product/a", "?policy=shop/pages", "?all=true"] {
        assert_eq!(admin.post(&format!("/cache/purge{target}"), "").status, StatusCode::OK, "{target}");
    }
    let expected = [
        "Url http://product:8080/a?b  true",
        "Tag p:1 shop/product false",
        "Prefix product/a  false",
        "Policy shop/pages  false",
        "All   false",
    ];
    assert_eq!(*admin.fake.purged.lock().expect("not poisoned"), expected);
    for target in
        ["", "?all=0", "?all=yes", "?url=a&tag=b", "?url=a&all=1", "?url=bad", "?soft=1", "?all=1&soft=x"]
    {
        let page = admin.post(&format!("/cache/purge{target}"), "");
        assert_eq!(page.status, StatusCode::BAD_REQUEST, "{target}: {page:?}");
    }
    assert_eq!(admin.get("/cache/purge?all=1").status, StatusCode::METHOD_NOT_ALLOWED);
    let remote = Asking { peer: "10.0.0.9".parse().expect("an address"), ..Asking::default() };
    assert_eq!(remote.post("/cache/purge?all=1", "").status, StatusCode::FORBIDDEN);
    let public = Asking { surface: Surface::Public, ..Asking::default() };
    assert_eq!(public.post("/cache/purge?all=1", "").status, StatusCode::NOT_FOUND);
    assert!(remote.fake.purged.lock().expect("not poisoned").is_empty());
    assert_eq!(admin.fake.purged.lock().expect("not poisoned").len(), 5);
}
