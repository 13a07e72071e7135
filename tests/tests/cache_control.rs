//! Purges and statistics of the response cache through a whole mesh: what was purged is not given any more, by anybody,
//! under whatever name it was asked for, even by a sidecar that was away.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use futures_util::future::join_all;
use http::{Request, Response};
use serde_json::{Value, json};
use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};
use tokio::{net::TcpStream, sync::Notify};
use weft_control_plane::token::{Claims, TokenKey};
use weft_tests::{
    Backend, Beside, Client, Mesh, PATIENCE, Process,
    client::whole,
    empty, eventually, full,
    mesh::{NAMESPACE, calling, mesh_policy},
    operator::{key, post, purge, purge_everywhere},
    raw, soon,
    stage::{Instance, Stage},
};

const URL: &str = "http://product:8080";

/// A CachePolicy on the Service `product` with these parts, a line each.
fn caching(parts: &[&str]) -> String {
    let parts = parts.join("\n  ");
    format!(
        "---
apiVersion: weft.mesh/v1alpha1
kind: CachePolicy
metadata: {{ name: pages, namespace: {NAMESPACE} }}
spec:
  targetRefs: [{{ kind: Service, name: product }}]
  {parts}
"
    )
}

/// An application whose answers are fresh for an hour, carry the first part of their path as a tag, and say how many
/// requests came before. It answers `/slow` when it is told to, and `/down` with an error once it is down.
#[derive(Clone, Default)]
struct Shelf {
    asked: Arc<AtomicU64>,
    go: Arc<Notify>,
    waiting: Arc<AtomicBool>,
    down: Arc<AtomicBool>,
}

impl Shelf {
    async fn serve(&self) -> Backend {
        let this = self.clone();
        Backend::http(move |request: Request<_>| {
            let this = this.clone();
            async move {
                let turn = this.asked.fetch_add(1, SeqCst);
                let path = request.uri().path().to_owned();
                let slow_head = path == "/head" && request.method() == http::Method::HEAD;
                if path == "/slow" || slow_head {
                    this.waiting.store(true, SeqCst);
                    this.go.notified().await;
                }
                let mut response = Response::new(full(format!("{path} {turn}")));
                if this.down.load(SeqCst) {
                    *response.status_mut() = http::StatusCode::SERVICE_UNAVAILABLE;
                    return Ok(response);
                }
                let control = if path.starts_with("/strict") {
                    "max-age=3600, must-revalidate"
                } else {
                    "max-age=3600"
                };
                if path == "/head" {
                    response.headers_mut().insert("etag", "\"same\"".parse().unwrap());
                }
                let tag = format!("all,{}", path.split('/').nth(1).unwrap_or_default());
                for (name, value) in [("cache-control", control), ("cache-tag", tag.as_str())] {
                    response.headers_mut().insert(name, value.parse().unwrap());
                }
                Ok(response)
            }
        })
        .await
    }

    fn asked(&self) -> u64 {
        self.asked.load(SeqCst)
    }
}

struct Set {
    stage: Stage,
    shelf: Shelf,
}

impl Set {
    async fn new(parts: &[&str]) -> Self {
        Self::with(parts, "").await
    }

    async fn with(parts: &[&str], more: &str) -> Self {
        let shelf = Shelf::default();
        let policy = caching(parts) + more;
        let stage = Stage::set(&policy, [Instance::new("product", shelf.serve().await)]).await;
        Self { stage, shelf }
    }

    fn mesh(&self) -> &Mesh {
        &self.stage.mesh
    }

    async fn get(&self, path: &str) -> String {
        self.stage.client.get(&format!("{URL}{path}")).await.text().to_owned()
    }

    /// Purges, which must succeed everywhere. Gives how many answers it was for.
    async fn purge(&self, what: Value) -> u64 {
        purge_everywhere(self.mesh(), &what).await
    }
}

async fn admin_purge(process: &Process, query: &str) -> (u16, String) {
    let address = process.addresses().admin;
    let request = format!(
        "POST /cache/purge?format=json&{query} HTTP/1.1\r\nhost: {address}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
    );
    let answer = raw::exchange(address, request).await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
    (head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0), body.to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_purge_is_carried_out_and_counted_by_every_sidecar() {
    let set = Set::with(&[], &calling("web")).await;
    let (_web, web) = set.stage.another("web").await;
    for client in [&set.stage.client, &web] {
        for path in ["/a", "/b", "/a?x=1"] {
            let first = client.get(&format!("{URL}{path}")).await;
            assert_eq!(client.get(&format!("{URL}{path}")).await.text(), first.text(), "is kept");
        }
    }
    assert_eq!(set.shelf.asked(), 6);
    let (status, report) = purge(set.mesh(), &json!({ "url": "http://product:8080/a" })).await;
    assert_eq!(status, 200, "{report}");
    assert_eq!(
        (&report["answers"], &report["asked"], &report["acknowledged"]),
        (&json!(2), &json!(3), &json!(3))
    );
    assert_eq!(report["purged"], "url http://product.shop:8080/a");
    let by_sidecar: Vec<_> = report["sidecars"]
        .as_array()
        .unwrap()
        .iter()
        .map(|sidecar| (sidecar["workload"].as_str().unwrap(), sidecar["answers"].as_u64().unwrap()))
        .collect();
    assert_eq!(by_sidecar, [("caller", 1), ("product", 0), ("web", 1)]);
    for client in [&set.stage.client, &web] {
        client.get(&format!("{URL}/b")).await;
        client.get(&format!("{URL}/a?x=1")).await;
    }
    assert_eq!(set.shelf.asked(), 6, "a URL without a query is that one URL");
    for client in [&set.stage.client, &web] {
        client.get(&format!("{URL}/a")).await;
    }
    assert_eq!(set.shelf.asked(), 8);
    let metrics = set.mesh().control_plane_metrics().await;
    assert_eq!(metrics.sum("weft_control_plane_cache_purges_total", &["result=\"complete\""]), 1.0);
    assert_eq!(metrics.sum("weft_control_plane_cache_purged_answers_total", &[]), 2.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_url_is_purged_under_all_names_of_its_service_and_at_both_places() {
    let set = Set::new(&["where: both"]).await;
    let names = [
        "product:8080",
        "PRODUCT.shop:8080",
        "product.shop.svc:8080",
        "product.shop.svc.cluster.local.:8080",
    ];
    for name in names {
        let client = &set.stage.client;
        let first = client.get(&format!("http://{name}/a")).await;
        assert_eq!(client.get(&format!("http://{name}/a")).await.text(), first.text(), "is kept");
    }
    let before = set.shelf.asked();
    // Kept for each name at the caller, and where the service is served.
    let answers = set.purge(json!({ "url": "product.shop:8080/x/../%61" })).await;
    assert!(answers > names.len() as u64, "{answers}");
    for (n, name) in names.iter().enumerate() {
        let answer = set.stage.client.get(&format!("http://{name}/a")).await;
        let turn: u64 = answer.text().rsplit(' ').next().unwrap().parse().unwrap();
        assert!(turn >= before, "{name} ({n}): {}", answer.text());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prefixes_tags_policies_and_services_are_purged_as_a_whole() {
    let set = Set::new(&["tags: { header: cache-tag }"]).await;
    let fill = async || {
        for path in ["/books/1", "/books/2?x=1", "/bookmarks", "/toys/1"] {
            set.get(path).await;
        }
    };
    for (what, expected) in [
        (json!({ "prefix": "http://product:8080/books/" }), 2),
        (json!({ "prefix": "http://product:8080/book" }), 3),
        (json!({ "tag": "books" }), 2),
        (json!({ "tag": "all", "service": "product" }), 4),
        (json!({ "policy": "shop/pages" }), 4),
        (json!({ "all": true, "service": "shop/product" }), 4),
        (json!({ "all": true }), 4),
    ] {
        fill().await;
        assert_eq!(set.purge(what.clone()).await, expected, "{what}");
        let before = set.shelf.asked();
        fill().await;
        assert_eq!(set.shelf.asked(), before + expected, "{what}");
    }
    assert_eq!(set.purge(json!({ "tag": "none" })).await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_made_stale_is_given_only_where_stale_answers_may_be() {
    let set = Set::new(&["stale: { ifError: 600s }"]).await;
    let (loose, strict) = (set.get("/loose").await, set.get("/strict").await);
    assert_eq!((set.get("/loose").await, set.get("/strict").await), (loose.clone(), strict.clone()));
    assert_eq!(set.purge(json!({ "prefix": URL, "soft": true })).await, 2);
    // The origin is asked for both, and can't answer.
    let before = set.shelf.asked();
    set.shelf.down.store(true, SeqCst);
    assert_eq!(set.get("/loose").await, loose);
    assert_ne!(set.stage.client.get(&format!("{URL}/strict")).await.status, 200);
    assert!(set.shelf.asked() >= before + 2);
    set.shelf.down.store(false, SeqCst);
    let (newer, strict_newer) = (set.get("/loose").await, set.get("/strict").await);
    assert!(newer != loose && strict_newer != strict);
    assert_eq!((set.get("/loose").await, set.get("/strict").await), (newer.clone(), strict_newer));
    // What is gone is given in no case.
    assert_eq!(set.purge(json!({ "prefix": URL })).await, 2);
    set.shelf.down.store(true, SeqCst);
    assert_ne!(set.stage.client.get(&format!("{URL}/loose")).await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_made_stale_is_given_while_it_is_fetched_anew() {
    let set = Set::new(&["stale: { whileRevalidate: 600s }"]).await;
    let old = set.get("/a").await;
    assert_eq!(set.purge(json!({ "url": format!("{URL}/a"), "soft": true })).await, 1);
    assert_eq!(set.get("/a").await, old, "the old one, for the last time or nearly so");
    eventually("it was fetched anew", PATIENCE, || async { (set.get("/a").await != old).then_some(()) })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_on_its_way_when_a_purge_comes_is_not_kept() {
    let set = Set::new(&[]).await;
    let slow = || {
        let client = Client::new(set.stage.caller.outbound());
        tokio::spawn(async move { client.get(&format!("{URL}/slow")).await.text().to_owned() })
    };
    let first = slow();
    eventually("the origin has it", PATIENCE, || async {
        set.shelf.waiting.swap(false, SeqCst).then_some(())
    })
    .await;
    for what in [json!({ "url": format!("{URL}/slow") }), json!({ "tag": "slow" })] {
        set.purge(what).await;
    }
    // Who asks after the purge doesn't get what was asked for before it.
    let second = slow();
    eventually("the origin has it again", PATIENCE, || async {
        set.shelf.waiting.swap(false, SeqCst).then_some(())
    })
    .await;
    set.shelf.go.notify_one();
    let first = soon("the first answer", first).await.unwrap();
    set.shelf.go.notify_one();
    let second = soon("the second answer", second).await.unwrap();
    let mut both = [first, second];
    both.sort();
    assert_eq!(both, ["/slow 0", "/slow 1"], "each fetched its own");
    // What is kept now was asked for after the purges, if anything is.
    let mut third = slow();
    let third = loop {
        tokio::select! {
            answer = &mut third => break answer.unwrap(),
            () = tokio::time::sleep(Duration::from_millis(10)) => set.shelf.go.notify_one(),
        }
    };
    assert_ne!(third, "/slow 0");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_purged_does_not_come_back_by_what_a_head_says_of_it() {
    let set = Set::new(&[]).await;
    let old = set.get("/head").await;
    assert_eq!(set.get("/head").await, old, "is kept");
    let client = Client::new(set.stage.caller.outbound());
    let head = tokio::spawn(async move {
        let request = Request::head(format!("{URL}/head")).header("cache-control", "no-cache");
        client.call(request.body(empty()).unwrap()).await
    });
    eventually("the origin has it", PATIENCE, || async {
        set.shelf.waiting.swap(false, SeqCst).then_some(())
    })
    .await;
    assert_eq!(set.purge(json!({ "url": format!("{URL}/head") })).await, 1);
    set.shelf.go.notify_one();
    assert_eq!(soon("the answer to HEAD", head).await.unwrap().status, 200);
    assert_ne!(set.get("/head").await, old);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_made_stale_is_not_fresh_again_because_policy_changes() {
    let shelf = Shelf::default();
    let stage = Stage::set("", [Instance::new("product", shelf.serve().await)]).await;
    let set = Set { stage, shelf };
    set.stage.change("cache.yaml", &caching(&[])).await;
    let old = set.get("/a").await;
    assert_eq!(set.get("/a").await, old, "is kept");
    set.stage.change("cache.yaml", &caching(&["ttl: { max: 3000s }"])).await;
    assert_eq!(set.get("/a").await, old, "is still kept");
    assert_eq!(set.purge(json!({ "url": format!("{URL}/a"), "soft": true })).await, 1);
    set.stage.change("cache.yaml", &caching(&["ttl: { max: 1800s }"])).await;
    assert_ne!(set.get("/a").await, old);
}

/// The labels travel from the service's sidecar, which keeps them from applications, to the callers', which has to know
/// them as well.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tag_is_purged_at_both_places_and_seen_by_no_application() {
    for place in ["outbound", "inbound", "both"] {
        let parts = [&format!("where: {place}"), "tags: { header: cache-tag }"];
        let set = Set::with(&parts, &mesh_policy("{ mtls: { mode: permissive } }")).await;
        let seen = async |fields: &[(&str, &str)]| {
            let answer = set.stage.client.get_with(&format!("{URL}/books/1"), fields).await;
            for name in ["cache-tag", "weft-cache-tags"] {
                assert!(!answer.headers.contains_key(name), "{place}, {fields:?}: {:?}", answer.headers);
            }
            answer.text().to_owned()
        };
        let old = seen(&[]).await;
        assert_eq!(seen(&[]).await, old, "is kept");
        seen(&[("if-match", "*")]).await;
        let inbound = set.stage.beside("product").addresses().inbound;
        let request = "GET /books/1 HTTP/1.1\r\nhost: product:8080\r\nconnection: close\r\n\r\n";
        let plain = raw::exchange(inbound, request.to_owned()).await.to_ascii_lowercase();
        assert!(plain.starts_with("http/1.1 200 ") && plain.contains("/books/1 "), "{plain}");
        assert!(place == "outbound" || !plain.contains("cache-tag"), "{place}: {plain}");
        let places = if place == "both" { 2 } else { 1 };
        // What a caller without a sidecar asked for has a key of its own where the service is served, or the same.
        let purged = set.purge(json!({ "tag": "books" })).await;
        assert!((places..=places + 1).contains(&purged), "{place}: {purged}");
        let new = seen(&[]).await;
        assert_ne!(new, old, "{place}");
        assert_eq!(seen(&[]).await, new, "{place}");
    }
}

/// Which worker has a connection is the system's choice: there are so many of them that each worker has some.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_purged_is_gone_for_the_connections_of_all_workers() {
    let set = Set::with(&["tags: { header: cache-tag }"], &calling("wide")).await;
    let wide = set.mesh().sidecar(Beside::new("wide").workers(4)).await;
    assert_eq!(wide.metrics().await.sum("weft_workers", &[]), 4.0);
    let client = Client::new(wide.outbound());
    // From then on it knows the service.
    client.get(&format!("{URL}/warm")).await;
    let mut connections = join_all((0..64).map(|_| client.http1())).await;
    let mut ask = async |path: &str| {
        let answers = connections.iter_mut().map(|connection| {
            let request = Request::get(format!("{URL}{path}")).header("host", "product:8080");
            let connection = connection.as_mut().unwrap();
            async move {
                connection.ready().await.unwrap();
                let answer = connection.send_request(request.body(empty()).unwrap()).await;
                whole(answer.unwrap()).await.unwrap().text().to_owned()
            }
        });
        soon("an answer over every connection", join_all(answers)).await
    };
    for soft in [false, true] {
        for what in [
            json!({ "url": format!("{URL}/books/1"), "soft": soft }),
            json!({ "prefix": format!("{URL}/books"), "soft": soft }),
            json!({ "tag": "books", "soft": soft }),
        ] {
            let old = ask("/books/1").await;
            assert!(old.iter().all(|text| *text == old[0]), "one fetch for all: {old:?}");
            let before = set.shelf.asked();
            assert_eq!(set.purge(what.clone()).await, 1);
            let new = ask("/books/1").await;
            assert!(new.iter().all(|text| *text != old[0]), "{what}: {old:?} {new:?}");
            assert_eq!(set.shelf.asked(), before + 1, "{what}");
        }
    }
}

/// The way from one sidecar to the control plane, which a test can cut.
struct Road {
    to: SocketAddr,
    at: SocketAddr,
    open: Option<Backend>,
}

impl Road {
    async fn new(to: SocketAddr) -> Self {
        let open = Self::build(SocketAddr::from(([127, 0, 0, 1], 0)), to).await;
        Self { to, at: open.address(), open: Some(open) }
    }

    async fn build(at: SocketAddr, to: SocketAddr) -> Backend {
        Backend::tcp_at(at, move |mut from| async move {
            if let Ok(mut on) = TcpStream::connect(to).await {
                let _ = tokio::io::copy_bidirectional(&mut from, &mut on).await;
            }
        })
        .await
    }

    fn cut(&mut self) {
        self.open = None;
    }

    async fn mend(&mut self) {
        self.open = Some(Self::build(self.at, self.to).await);
    }
}

async fn until_connected(mesh: &Mesh, workload: &str, connected: bool) {
    let what = format!("{workload} is connected: {connected}");
    mesh.until(&what, |status| status.sidecars.iter().any(|s| s.workload == workload) == connected).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sidecar_that_was_away_gives_nothing_that_was_purged_meanwhile() {
    let mut set = Set::with(&[], &calling("far")).await;
    let mut road = Road::new(set.mesh().control_plane().push).await;
    let far = set.mesh().sidecar(Beside::new("far").control_plane(road.at)).await;
    let client = Client::new(far.outbound());
    let get = async |path: &str| client.get(&format!("{URL}{path}")).await.text().to_owned();
    let (a, b, c) = (get("/a").await, get("/b").await, get("/c").await);

    road.cut();
    until_connected(set.mesh(), "far", false).await;
    let (status, report) = purge(set.mesh(), &json!({ "url": format!("{URL}/a") })).await;
    // Who is away cannot be asked, and it is said who that is.
    assert_eq!((status, &report["asked"]), (200, &json!(2)), "{report}");
    assert_eq!(report["away"][0]["workload"], "far", "{report}");
    assert_eq!(get("/a").await, a, "it cannot know yet");
    road.mend().await;
    until_connected(set.mesh(), "far", true).await;
    eventually("it knows", PATIENCE, || async { (get("/a").await != a).then_some(()) }).await;
    assert_eq!((get("/b").await, get("/c").await), (b.clone(), c.clone()), "only what was purged is gone");

    // The control plane may end meanwhile: what it was asked to purge is written down.
    road.cut();
    until_connected(set.mesh(), "far", false).await;
    purge(set.mesh(), &json!({ "url": format!("{URL}/b") })).await;
    set.stage.mesh.crash_control_plane(|| {}).await;
    road.mend().await;
    until_connected(set.mesh(), "far", true).await;
    eventually("it knows", PATIENCE, || async { (get("/b").await != b).then_some(()) }).await;
    assert_eq!(get("/c").await, c);
    let (status, report) = purge(set.mesh(), &json!({ "url": format!("{URL}/c") })).await;
    assert_eq!(status, 200, "{report}");
    assert_ne!(get("/c").await, c);

    // One whose list of purges is lost cannot know what anybody missed.
    let kept = get("/a").await;
    let list = set.mesh().state_dir().join("purges.json");
    set.stage.mesh.crash_control_plane(|| std::fs::remove_file(list).unwrap()).await;
    until_connected(set.mesh(), "far", true).await;
    eventually("everything is gone", PATIENCE, || async { (get("/a").await != kept).then_some(()) }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_an_operator_may_purge_and_only_what_there_is() {
    let set = Set::new(&[]).await;
    let kept = set.get("/a").await;
    let body = json!({ "all": true }).to_string();
    let key = key(set.mesh());
    let join = key.issue(&Claims::for_next(Duration::from_secs(60), "shop", "caller", None)).unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    let other = TokenKey::open_or_create(&elsewhere.path().join("state")).unwrap();
    let other = other.issue_operator(Duration::from_secs(60)).unwrap();
    for token in
        ["", "authorization: Bearer \r\n", "authorization: Basic YTpi\r\n", "authorization: Bearer x\r\n"]
    {
        let (status, why) = post(set.mesh(), token, &body).await;
        assert_eq!(status, 401, "{why}");
        assert!(why.contains("operator-token"), "{why}");
    }
    for token in [join, other] {
        let (status, why) = post(set.mesh(), &format!("authorization: Bearer {token}\r\n"), &body).await;
        assert_eq!(status, 401, "{why}");
    }
    let token = key.issue_operator(Duration::from_secs(60)).unwrap();
    for head in ["origin: http://evil.example\r\n", "sec-fetch-site: cross-site\r\n"] {
        let head = format!("authorization: Bearer {token}\r\n{head}");
        assert_eq!(post(set.mesh(), &head, &body).await.0, 403);
    }
    let (status, _) = raw::get(set.mesh().control_plane().dashboard, "/api/cache/purge").await;
    assert_eq!(status, 405);
    for (what, why) in [
        ("{", "no purge"),
        ("{}", "one of url, prefix, tag"),
        ("{\"all\":true,\"tag\":\"a\"}", "one of url, prefix, tag"),
        ("{\"everything\":true}", "unknown field"),
        ("{\"url\":\"http://prodcut:8080/a\"}", "no service of the mesh is called `prodcut`"),
        ("{\"url\":\"http://product/a\"}", "http://product.shop:8080/a"),
        ("{\"all\":true,\"wait\":\"61s\"}", "60s at most"),
        ("{\"all\":true,\"wait\":\"soon\"}", "no duration"),
        ("{\"policy\":\"shop/none\"}", "no CachePolicy shop/none"),
    ] {
        let (status, said) = post(set.mesh(), &format!("authorization: Bearer {token}\r\n"), what).await;
        assert_eq!(status, 400, "{what}: {said}");
        assert!(said.contains(why), "{what}: {said}");
    }
    let long = format!("{{\"tag\":\"{}\"}}", "x".repeat(100_000));
    assert_eq!(post(set.mesh(), &format!("authorization: Bearer {token}\r\n"), &long).await.0, 413);
    assert_eq!(set.get("/a").await, kept, "nothing of all that purged anything");
    assert_eq!(set.purge(json!({ "all": true })).await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_sidecar_alone_is_purged_through_its_admin_port() {
    let set = Set::with(&[], &calling("web")).await;
    let (web, client) = set.stage.another("web").await;
    let (own, kept) = (set.get("/a").await, client.get(&format!("{URL}/a")).await);
    let (status, body) = admin_purge(&web, "url=http%3A%2F%2Fproduct%3A8080%2Fa").await;
    let answer: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((status, &answer["answers"]), (200, &json!(1)), "{body}");
    assert_ne!(client.get(&format!("{URL}/a")).await.text(), kept.text());
    assert_eq!(set.get("/a").await, own, "the other sidecar keeps its own");
    assert_eq!(admin_purge(&web, "url=nonsense%20").await.0, 200);
    assert_eq!(admin_purge(&web, "url=%2Fa").await.0, 400);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_all_caches_hold_is_added_up() {
    let set = Set::with(&["where: both"], &calling("web")).await;
    let (_web, web) = set.stage.another("web").await;
    for client in [&set.stage.client, &web] {
        for _ in 0..5 {
            client.get(&format!("{URL}/a")).await;
        }
    }
    set.stage.client.call(Request::put(format!("{URL}/none")).body(empty()).unwrap()).await;
    let (status, body) = raw::get(set.mesh().control_plane().dashboard, "/api/cache/stats").await;
    assert_eq!(status, 200, "{body}");
    let stats: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((&stats["asked"], &stats["silent"]), (&json!(3), &json!([])), "{stats}");
    let pages = &stats["policies"][0];
    assert_eq!((&pages["policy"], &pages["entries"]), (&json!("shop/pages"), &json!(3)), "{stats}");
    assert!(
        pages["bytes"].as_u64().unwrap() > 300 && pages["limit"].as_u64().unwrap() >= 128 << 20,
        "{stats}"
    );
    let of = |direction: &str| {
        let rows = stats["services"].as_array().unwrap().iter();
        rows.filter(|row| row["direction"] == direction).map(Clone::clone).next().unwrap_or_default()
    };
    let outbound = of("outbound");
    assert_eq!(
        (&outbound["service"], &outbound["hits"], &outbound["misses"]),
        (&json!("shop/product"), &json!(8), &json!(2)),
        "{stats}"
    );
    assert_eq!((&outbound["hitRatio"], &outbound["bypassed"]), (&json!(0.8), &json!(1)), "{stats}");
    let inbound = of("inbound");
    assert_eq!((&inbound["hits"], &inbound["misses"]), (&json!(1), &json!(1)), "{stats}");
    assert_eq!(set.shelf.asked(), 2);
}
