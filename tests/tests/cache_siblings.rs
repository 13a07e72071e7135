//! Sidecars of one service that ask each other before they ask the origin.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use futures_util::{
    future::join_all,
    stream::{self, StreamExt},
};
use http::{HeaderValue, Method, Request};
use serde_json::json;
use std::{
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::Duration,
};
use tokio::io::AsyncWriteExt;
use weft_config::snapshot::hash64;
use weft_tests::{
    Backend, Beside, Client, Mesh, PATIENCE, Process, Scripted, empty, eventually,
    mesh::{NAMESPACE, calling, serving},
    operator::purge_everywhere,
    pki::{Forger, Years, tls},
    raw,
    scripted::{self, Asked, Reply},
    soon,
};

/// A CachePolicy for `product`, with further fields of `spec`, a line each.
fn policy(fields: &[&str]) -> String {
    let fields = fields.join("\n  ");
    format!(
        "---
apiVersion: weft.mesh/v1alpha1
kind: CachePolicy
metadata: {{ name: product, namespace: {NAMESPACE} }}
spec:
  targetRefs: [{{ kind: Service, name: product }}]
  {fields}
"
    )
}

/// Sidecars of `front`, all of which call `product`.
struct Fronts {
    mesh: Mesh,
    fronts: Vec<Process>,
    clients: Vec<Client>,
    origin: Scripted,
    _products: Vec<Process>,
    _front: Backend,
}

/// What everybody may keep for an hour: the path and which fetch it was.
async fn kept(asked: Asked) -> Reply {
    let mut response = scripted::text(format!("{} {}", asked.path, asked.turn));
    let headers = response.headers_mut();
    headers.insert("cache-control", HeaderValue::from_static("max-age=3600"));
    headers.insert("cache-tag", HeaderValue::from_static("a b"));
    Ok(response)
}

impl Fronts {
    async fn start(count: usize, policy: &str, origin: Scripted) -> Self {
        Self::before(1, count, policy, origin).await
    }

    /// With so many instances of `product`, all of which are one application.
    async fn before(products: usize, count: usize, policy: &str, origin: Scripted) -> Self {
        let replicas = |count: usize| format!("  replicas: {count}\n");
        let documents = serving("front", 8080, "http")
            + &replicas(count)
            + &serving("product", 8080, "http")
            + &replicas(products)
            + policy;
        let mesh = Mesh::start(&documents).await;
        let front = Backend::text("front").await;
        let beside = (0..products).map(|n| {
            let beside = Beside::new(&format!("product-{n}")).account("product");
            mesh.sidecar(beside.app(8080, origin.address()))
        });
        let instances: Vec<Process> = join_all(beside).await;
        let beside = (0..count).map(|n| {
            let beside = Beside::new(&format!("front-{n}")).account("front");
            mesh.sidecar(beside.app(8080, front.address()))
        });
        let fronts: Vec<Process> = join_all(beside).await;
        mesh.endpoints("front", count).await;
        mesh.endpoints("product", products).await;
        let clients: Vec<Client> = fronts.iter().map(|front| Client::new(front.outbound())).collect();
        let this = Self { mesh, fronts, clients, origin, _products: instances, _front: front };
        // Each of them has heard of all others once it has asked one.
        join_all((0..count).map(|n| this.until_it_asks(n))).await;
        this
    }

    async fn until_it_asks(&self, n: usize) {
        if self.fronts.len() < 2 {
            return;
        }
        let turn = std::cell::Cell::new(0);
        eventually("it asks its siblings", PATIENCE, || async {
            turn.set(turn.get() + 1);
            self.get(n, &format!("/warm/{n}/{}", turn.get())).await;
            (self.count(n, "answered").await > 0.0).then_some(())
        })
        .await;
    }

    /// What a sidecar's application gets.
    async fn get(&self, n: usize, path: &str) -> weft_tests::Answer {
        let answer = self.clients[n].get(&format!("http://product:8080{path}")).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer
    }

    /// How often asking came to this at one of them.
    async fn count(&self, n: usize, result: &str) -> f64 {
        let metrics = self.fronts[n].metrics().await;
        metrics.sum("weft_cache_siblings_asked_total", &[&format!("result=\"{result}\"")])
    }

    /// How often the origin was asked below a path.
    fn fetched(&self, below: &str) -> usize {
        self.origin.asked().iter().filter(|asked| asked.path.starts_with(below)).count()
    }

    /// A path below this that another one than `n` owns: `n` has just asked for it.
    async fn of_another(&self, n: usize, below: &str) -> (String, weft_tests::Answer) {
        for turn in 0..64 {
            let path = format!("{below}/{turn}");
            let answer = self.get(n, &path).await;
            if answer.headers.get_all("cache-status").iter().count() > 1
                || answer.header("cache-status").contains("weft-sibling")
            {
                return (path, answer);
            }
        }
        panic!("{n} owns everything");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_sidecars_that_want_a_thousand_things_cost_the_origin_a_thousand_fetches() {
    const KEYS: usize = 1000;
    // The harness keeps the heads of the first thousand only.
    let counted = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counter = counted.clone();
    let origin = Scripted::start(move |asked: Asked| {
        let counter = counter.clone();
        async move {
            assert!(!asked.headers.keys().any(|name| name.as_str().starts_with("weft-cache")));
            if asked.path.starts_with("/key/") {
                counter.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            }
            kept(asked).await
        }
    })
    .await;
    // So long that a busy machine makes no difference.
    let policy = policy(&["tiers: { siblings: { timeout: 5s } }", "coalescing: { maxWait: 20s }"]);
    let fronts = Fronts::start(20, &policy, origin).await;
    let everybody = (0..20).map(|n| {
        let fronts = &fronts;
        // Each begins elsewhere, so that most are asked for what they have not fetched yet.
        let keys = (0..KEYS).map(move |key| (key + n * KEYS / 20) % KEYS);
        stream::iter(keys)
            .map(move |key| async move {
                let path = format!("/key/{key}");
                let url = format!("http://product:8080{path}");
                let answer =
                    soon("an answer", fronts.clients[n].try_call(Request::get(url).body(empty()).unwrap()));
                let answer = answer.await.unwrap();
                assert_eq!(answer.status, 200, "{}", answer.text());
                assert!(answer.text().starts_with(&format!("{path} ")), "{}", answer.text());
            })
            .buffer_unordered(4)
            .for_each(|()| async {})
    });
    join_all(everybody).await;
    let fetched = counted.load(std::sync::atomic::Ordering::Relaxed);
    assert!((KEYS..KEYS + KEYS / 20).contains(&fetched), "{fetched} fetches for {KEYS} keys");
    // What was asked of others is kept: nobody asks anybody for it again.
    let before = fronts.count(3, "answered").await;
    for key in 0..50 {
        fronts.get(3, &format!("/key/{key}")).await;
    }
    assert_eq!(fronts.count(3, "answered").await, before);
    assert_eq!(counted.load(std::sync::atomic::Ordering::Relaxed), fetched);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sibling_that_is_gone_costs_no_answer_and_is_left_out() {
    let policy = policy(&["tiers: { siblings: { timeout: 5s } }"]);
    let mut fronts = Fronts::start(4, &policy, Scripted::start(kept).await).await;
    // Nobody tells the others.
    fronts.mesh.kill_control_plane();
    drop(fronts.fronts.pop());
    for key in 0..200 {
        fronts.get(0, &format!("/key/{key}")).await;
    }
    // It may have been about to answer when it went.
    let fetched = fronts.fetched("/key/");
    assert!((200..=202).contains(&fetched), "{fetched} fetches");
    let (failed, left_out) = (fronts.count(0, "failed").await, fronts.count(0, "left_out").await);
    assert!((1.0..10.0).contains(&failed), "{failed} connections were tried");
    assert!(left_out > 0.0, "its keys belong to others meanwhile");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sibling_that_hangs_costs_a_wait_and_is_left_out() {
    let policy = policy(&["tiers: { siblings: { timeout: 1s } }"]);
    let mut fronts = Fronts::start(4, &policy, Scripted::start(kept).await).await;
    fronts.mesh.kill_control_plane();
    let gone = fronts.fronts.pop().unwrap();
    let at = gone.addresses().inbound;
    drop(gone);
    let hanging = eventually("its port is free", PATIENCE, || async {
        let listener = std::net::TcpListener::bind(at).ok()?;
        listener.set_nonblocking(true).unwrap();
        tokio::net::TcpListener::from_std(listener).ok()
    })
    .await;
    let held = tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((stream, _)) = hanging.accept().await {
            held.push(stream);
        }
    });
    for key in 0..200 {
        fronts.get(0, &format!("/key/{key}")).await;
    }
    held.abort();
    // It may have been about to answer when it went.
    let fetched = fronts.fetched("/key/");
    assert!((200..=202).contains(&fetched), "{fetched} fetches");
    // The connections from before are broken: that is found out at once.
    let (timeout, failed) = (fronts.count(0, "timeout").await, fronts.count(0, "failed").await);
    assert!((1.0..10.0).contains(&(timeout + failed)), "{timeout} waits, {failed} failures");
    assert!(timeout >= 1.0 || failed >= 1.0);
    assert!(fronts.count(0, "left_out").await > 0.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_origin_is_asked_once_by_all() {
    let origin = Scripted::start(|asked: Asked| async {
        if asked.path.starts_with("/slow/") {
            tokio::time::sleep(Duration::from_secs(4)).await;
        }
        kept(asked).await
    })
    .await;
    // Shorter than the origin takes: who is at work says so.
    let policy = policy(&["tiers: { siblings: { timeout: 2s } }", "coalescing: { maxWait: 20s }"]);
    let fronts = Fronts::start(4, &policy, origin).await;
    let all = (0..4).flat_map(|n| (0..8).map(move |key| (n, key)));
    join_all(all.map(|(n, key)| {
        let fronts = &fronts;
        async move { fronts.get(n, &format!("/slow/{key}")).await }
    }))
    .await;
    assert_eq!(fronts.fetched("/slow/"), 8);
}

/// Says something to a sidecar as another one would.
async fn say(mesh: &Mesh, at: &Process, identity: &str, server_name: &str, request: &str) -> String {
    let forged = Forger::inside(mesh.state_dir()).certificate(&[identity], Years(2000, 2400));
    let stream = raw::connect(at.addresses().inbound).await;
    let mut stream = tls(stream, server_name, &[b"weft/1"], Some(forged)).await.expect("a handshake");
    stream.write_all(request.as_bytes()).await.expect("written");
    soon("an answer", raw::rest(&mut stream)).await
}

fn question(path: &str, ask: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: product:8080\r\nWeft-Cache-Ask: {ask}\r\nConnection: close\r\n\r\n")
}

const FRONT: &str = "spiffe://weft.local/ns/shop/sa/front";
const STRANGER: &str = "spiffe://weft.local/ns/shop/sa/product";
const SERVER: &str = "8080.front.shop.weft";

fn ask() -> String {
    format!("outbound shop/product 8080 {:016x}", hash64(b"shop/product:8080"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_siblings_get_answers_and_no_application_sees_what_they_ask() {
    let app = Scripted::start(kept).await;
    let documents = serving("front", 8080, "http")
        + &serving("product", 8080, "http")
        + &policy(&["tiers: { siblings: {} }", "tags: { header: cache-tag }"]);
    let mesh = Mesh::start(&documents).await;
    let origin = Scripted::start(kept).await;
    let _product = mesh.sidecar(Beside::new("product").app(8080, origin.address())).await;
    let front = mesh.sidecar(Beside::new("front").app(8080, app.address())).await;
    mesh.endpoints("product", 1).await;
    let ask = ask();
    for what in [&*ask, "inbound", "inbound spiffe://weft.local/ns/shop/sa/front", "anything"] {
        let answer = say(&mesh, &front, STRANGER, SERVER, &question("/secret", what)).await;
        assert!(answer.starts_with("HTTP/1.1 403 "), "{what}: {answer:?}");
        assert!(answer.to_ascii_lowercase().contains("weft-error: forbidden"), "{answer:?}");
    }
    assert_eq!((app.begun(), origin.begun()), (0, 0), "nobody was asked for a stranger");

    // Its own kind gets what it asks, with what is for caches only, and once it is kept without asking the origin.
    let first = say(&mesh, &front, FRONT, SERVER, &question("/a", &ask)).await;
    let second = say(&mesh, &front, FRONT, SERVER, &question("/a", &ask)).await;
    for (answer, status) in [(&first, "weft-sibling; fwd=uri-miss; "), (&second, "weft-sibling; hit; ")] {
        assert!(answer.contains("200 OK\r\n") && answer.ends_with("/a 0"), "{answer:?}");
        let lower = answer.to_ascii_lowercase();
        assert!(lower.contains(status), "{answer:?}");
        assert!(lower.contains("cache-tag: a"), "siblings keep answers by their labels: {answer:?}");
    }
    assert!(first.starts_with("HTTP/1.1 102 "), "it said that it went to the origin: {first:?}");
    assert!(second.starts_with("HTTP/1.1 200 "), "{second:?}");
    assert_eq!(origin.begun(), 1);

    // What it does not know it says, and the origin is not asked.
    for what in [
        "outbound shop/product 8080 0000000000000000",
        "outbound shop/nobody 8080 0000000000000000",
        "anything",
    ] {
        let answer = say(&mesh, &front, FRONT, SERVER, &question("/b", what)).await;
        assert!(answer.contains("421 ") || answer.contains("502 "), "{what}: {answer:?}");
        assert!(answer.to_ascii_lowercase().contains("weft-error: "), "{answer:?}");
    }
    let fat = question("/b", &ask).replace("GET", "POST");
    let answer = say(&mesh, &front, FRONT, SERVER, &fat).await;
    assert!(answer.contains("weft-error") || answer.contains("Weft-Error"), "{answer:?}");

    // An application cannot ask in our name.
    let client = Client::new(front.outbound());
    let answer = client.get_with("http://product:8080/c", &[("weft-cache-ask", &ask)]).await;
    assert_eq!(answer.status, 200);
    assert!(!answer.headers.contains_key("cache-tag"), "labels are not for applications");
    let answer = client.get_with("http://front:8080/d", &[("weft-cache-ask", &ask)]).await;
    assert_eq!(answer.text(), "/d 0", "its call to its own service is a call");
    for asked in origin.asked().iter().chain(&app.asked()) {
        assert!(!asked.headers.contains_key("weft-cache-ask"), "{asked:?}");
    }
    let served = front.metrics().await;
    let served =
        |result: &str| served.sum("weft_cache_siblings_served_total", &[&format!("result=\"{result}\"")]);
    assert_eq!((served("stranger"), app.begun(), origin.begun()), (4.0, 1, 2));
    assert!(served("answered") >= 2.0 && served("unknown") >= 2.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_says_whose_it_was_and_is_kept_where_it_was_asked_for() {
    let fronts =
        Fronts::start(3, &policy(&["tiers: { siblings: { timeout: 5s } }"]), Scripted::start(kept).await)
            .await;
    let (path, answer) = fronts.of_another(0, "/of").await;
    let status: Vec<_> = answer.headers.get_all("cache-status").iter().map(|v| v.to_str().unwrap()).collect();
    let status = status.join(", ");
    assert!(
        status.contains("weft-sibling; fwd=uri-miss") && status.contains("weft; fwd=uri-miss"),
        "{status}"
    );
    let fetched = fronts.fetched(&path);
    let again = fronts.get(0, &path).await;
    assert_eq!((again.text(), fronts.fetched(&path)), (answer.text(), fetched));
    let third = fronts.get(1, &path).await;
    assert_eq!(third.text(), answer.text(), "all have the same");
    assert_eq!(fronts.fetched(&path), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_the_application_speaks_siblings_are_asked() {
    let policy = policy(&["tiers: { siblings: { timeout: 5s } }"]);
    let fronts = Fronts::start(3, &policy, Scripted::start(kept).await).await;
    for method in [Method::GET, Method::HEAD] {
        let before = fronts.count(0, "answered").await;
        for key in 0..16 {
            let url = format!("http://product:8080/{method}/{key}");
            let request = Request::builder().method(&method).uri(url).body(empty()).unwrap();
            let answer = fronts.clients[0].call_http2(request).await;
            assert_eq!(answer.status, 200);
            assert_eq!(answer.text().is_empty(), method == Method::HEAD);
        }
        assert!(fronts.count(0, "answered").await > before);
    }
    assert_eq!(fronts.fetched("/GET/"), 16);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_of_two_versions_never_mix() {
    let version = |text: &'static str| {
        Scripted::start(move |asked: Asked| async move {
            let mut response = kept(asked).await?;
            *response.body_mut() = weft_tests::full(text);
            Ok(response)
        })
    };
    let (stable, canary) = (version("stable").await, version("canary").await);
    let route = "---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: { name: product, namespace: shop }
spec:
  parentRefs: [{ group: '', kind: Service, name: product }]
  rules:
    - backendRefs: [{ name: stable, port: 8080, weight: 1 }, { name: canary, port: 8080, weight: 1 }]
";
    let documents = serving("front", 8080, "http")
        + &serving("product", 8080, "http")
        + &serving("stable", 8080, "http")
        + &serving("canary", 8080, "http")
        + route
        + &policy(&["tiers: { siblings: {} }"]);
    let mesh = Mesh::start(&documents).await;
    let app = Backend::text("front").await;
    let _stable = mesh.sidecar(Beside::new("stable").app(8080, stable.address())).await;
    let _canary = mesh.sidecar(Beside::new("canary").app(8080, canary.address())).await;
    let _product = mesh.sidecar(Beside::new("product").app(8080, stable.address())).await;
    let front = mesh.sidecar(Beside::new("front").app(8080, app.address())).await;
    mesh.endpoints("stable", 1).await;
    mesh.endpoints("canary", 1).await;
    for turn in 0..3 {
        for (name, wanted) in [("stable", "\r\n\r\nstable"), ("canary", "\r\n\r\ncanary")] {
            for path in 0..8 {
                let scope = hash64(format!("shop/{name}:8080").as_bytes());
                let ask = format!("outbound shop/product 8080 {scope:016x}");
                let answer = say(&mesh, &front, FRONT, SERVER, &question(&format!("/{path}"), &ask)).await;
                assert!(answer.ends_with(wanted), "{turn} {name}: {answer:?}");
            }
        }
    }
    assert_eq!((stable.begun(), canary.begun()), (8, 8), "each was kept for itself");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_stale_is_fetched_anew_once_for_all_and_given_when_the_origin_fails() {
    let well = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(true));
    let is_well = well.clone();
    let origin = Scripted::start(move |asked: Asked| {
        let is_well = is_well.load(std::sync::atomic::Ordering::Relaxed);
        async move {
            if !is_well {
                return Ok(scripted::status(503));
            }
            let mut response = kept(asked).await?;
            // Without anything by which it could be asked about.
            response.headers_mut().insert("cache-control", HeaderValue::from_static("max-age=4"));
            Ok(response)
        }
    })
    .await;
    let fields = ["tiers: { siblings: { timeout: 5s } }", "stale: { whileRevalidate: 60s, ifError: 60s }"];
    let fronts = Fronts::start(3, &policy(&fields), origin).await;
    let (path, first) = fronts.of_another(0, "/of").await;
    fronts.get(1, &path).await;
    fronts.get(2, &path).await;
    assert_eq!(fronts.fetched(&path), 1);
    // All have it; all find it stale, and it is fetched for all of them.
    let turn = std::cell::Cell::new(0);
    eventually("something new everywhere", PATIENCE, || async {
        turn.set(turn.get() + 1);
        let mut new = 0;
        for n in 0..3 {
            new += usize::from(fronts.get(n, &path).await.text() != first.text());
        }
        (new == 3).then_some(())
    })
    .await;
    well.store(false, std::sync::atomic::Ordering::Relaxed);
    tokio::time::sleep(Duration::from_millis(5100)).await;
    for _ in 0..3 {
        for n in 0..3 {
            let answer = fronts.get(n, &path).await;
            assert!(answer.text().starts_with(&path), "{}", answer.text());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_is_seen_by_who_made_it_whatever_siblings_keep() {
    let fronts =
        Fronts::start(3, &policy(&["tiers: { siblings: { timeout: 5s } }"]), Scripted::start(kept).await)
            .await;
    let (path, before) = fronts.of_another(0, "/of").await;
    let url = format!("http://product:8080{path}");
    let change = Request::builder().method(Method::POST).uri(&url).body(empty()).unwrap();
    assert_eq!(fronts.clients[0].call(change).await.status, 200);
    let after = fronts.get(0, &path).await;
    assert_ne!(after.text(), before.text(), "the owner's was from before the change");
    let again = fronts.get(0, &path).await;
    assert_eq!(again.text(), after.text(), "what is new is kept");
}

/// The way of an answer that is the hardest to purge: kept by callers' sidecars that ask each other, and by those of
/// the service, which ask each other too. Everybody goes on asking all the time, so whoever was purged first would have
/// it again from those who were not yet.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_purged_does_not_come_back_from_a_sibling() {
    const KEYS: usize = 4;
    let origin = Scripted::start(|asked: Asked| async move {
        let label = asked.path.split('/').nth(1).unwrap_or_default().parse()?;
        let mut response = kept(asked).await?;
        response.headers_mut().insert("cache-tag", label);
        Ok(response)
    })
    .await;
    let fields = ["where: both", "tiers: { siblings: { timeout: 5s } }", "tags: { header: cache-tag }"];
    let fronts = Fronts::before(2, 3, &policy(&fields), origin).await;
    let all = async |paths: &[String]| {
        let calls = (0..3).flat_map(|n| paths.iter().map(move |path| (n, path)));
        let fronts = &fronts;
        let answers = calls.map(|(n, path)| async move {
            let answer = fronts.get(n, path).await;
            let turn: u64 = answer.text().rsplit(' ').next().unwrap().parse().unwrap();
            (path.clone(), turn, format!("{:?}", answer.headers.get_all("cache-status")))
        });
        join_all(answers).await
    };
    for (soft, by) in [false, true].into_iter().flat_map(|soft| ["url", "prefix", "tag"].map(|by| (soft, by)))
    {
        let group = format!("{by}-{soft}");
        let paths: Vec<String> = (0..KEYS).map(|key| format!("/{group}/{key}")).collect();
        all(&paths).await;
        let over = AtomicBool::new(false);
        let asking = async {
            while !over.load(Relaxed) {
                all(&paths).await;
            }
        };
        let purging = async {
            let url = |path: &str| format!("http://product:8080{path}");
            // Each with what it is for.
            let purges: Vec<_> = match by {
                "url" => paths
                    .iter()
                    .map(|path| (json!({ by: url(path), "soft": soft }), vec![path.clone()]))
                    .collect(),
                "prefix" => vec![(json!({ by: url(&format!("/{group}/")), "soft": soft }), paths.clone())],
                _ => vec![(json!({ by: group, "soft": soft }), paths.clone())],
            };
            for (what, paths) in purges {
                let before = fronts.origin.begun();
                let answers = purge_everywhere(&fronts.mesh, &what).await;
                assert!(answers > 0, "{what}");
                for _ in 0..3 {
                    for (path, turn, status) in all(&paths).await {
                        assert!(turn >= before, "{what}: {path} of fetch {turn}, not {before}: {status}");
                    }
                }
            }
            over.store(true, Relaxed);
        };
        tokio::join!(asking, purging);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn instances_of_a_service_ask_each_other_before_their_own_applications() {
    let origin = Scripted::start(|asked: Asked| async move {
        let mut response = scripted::text(asked.path.clone());
        response.headers_mut().insert("cache-control", HeaderValue::from_static("max-age=3600"));
        Ok(response)
    })
    .await;
    let documents = serving("product", 8080, "http")
        + "  replicas: 3\n"
        + &calling("caller")
        + &calling("other")
        + &policy(&["where: inbound", "key: { identity: true }", "tiers: { siblings: { timeout: 5s } }"]);
    let mesh = Mesh::start(&documents).await;
    let beside = (0..3).map(|n| {
        let beside = Beside::new(&format!("product-{n}")).account("product");
        mesh.sidecar(beside.app(8080, origin.address()))
    });
    let products: Vec<Process> = join_all(beside).await;
    let caller = mesh.sidecar(Beside::new("caller")).await;
    let other = mesh.sidecar(Beside::new("other")).await;
    mesh.endpoints("product", 3).await;
    let (client, another) = (Client::new(caller.outbound()), Client::new(other.outbound()));
    let url = |key: usize| format!("http://product:8080/{key}");
    // Until all have heard of each other.
    let turn = std::cell::Cell::new(1000);
    eventually("all ask", PATIENCE, || async {
        for _ in 0..8 {
            turn.set(turn.get() + 1);
            client.get(&url(turn.get())).await;
        }
        for product in &products {
            let asked = product.metrics().await;
            if asked.sum("weft_cache_siblings_asked_total", &["result=\"answered\""]) < 1.0 {
                return None;
            }
        }
        Some(())
    })
    .await;
    let of = |key: usize| origin.asked().iter().filter(|asked| asked.path == format!("/{key}")).count();
    for _ in 0..8 {
        for key in 0..20 {
            assert_eq!(client.get(&url(key)).await.text(), format!("/{key}"));
        }
    }
    assert!((0..20).all(|key| of(key) == 1), "{:?}", (0..20).map(of).collect::<Vec<_>>());
    // Answers are kept apart by who calls, through siblings too.
    for _ in 0..8 {
        another.get(&url(0)).await;
    }
    assert_eq!(of(0), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_without_a_service_has_no_siblings_and_asks_the_origin() {
    let documents =
        serving("product", 8080, "http") + &calling("caller") + &policy(&["tiers: { siblings: {} }"]);
    let mesh = Mesh::start(&documents).await;
    let origin = Scripted::start(kept).await;
    let _product = mesh.sidecar(Beside::new("product").app(8080, origin.address())).await;
    let caller = mesh.sidecar(Beside::new("caller")).await;
    mesh.endpoints("product", 1).await;
    let client = Client::new(caller.outbound());
    for _ in 0..2 {
        assert_eq!(client.get("http://product:8080/a").await.text(), "/a 0");
    }
    assert_eq!(caller.metrics().await.sum("weft_cache_siblings_asked_total", &[]), 0.0);
}
