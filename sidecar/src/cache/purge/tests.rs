//! What a purge means: which of the answers that are kept, under whatever name they were asked for.

use super::*;
use crate::cache::{
    entry::{Key, tests::Sample},
    key,
};
use bytes::Bytes;
use http::HeaderMap;
use proptest::prelude::*;
use rstest::rstest;
use std::{net::SocketAddr, sync::Arc};
use weft_config::{
    identity::ServiceName,
    purge::Kind,
    snapshot::{
        CacheKeyRules, CacheParameters, CacheRules, Calls, Port, Service, UpstreamListener, Workload,
    },
};

const NOW: u32 = 1000;

/// The stores of a sidecar in the namespace `shop`, with one policy that leaves out `utm` and the order of parameters, and
/// one that leaves out nothing.
struct Kept {
    stores: Stores,
    snapshot: Snapshot,
}

fn rules(id: &str) -> CacheRules {
    let mut rules = CacheRules { id: id.into(), ..CacheRules::default() };
    if id == "shop/loose" {
        let names: Vec<Arc<str>> = vec!["utm".into()];
        rules.key.parameters = CacheParameters::AllBut(names.into());
        rules.key.any_order = true;
    }
    rules
}

impl Kept {
    fn new() -> Self {
        let mut snapshot = Snapshot::default();
        let ports = ["shop/loose", "shop/strict"].iter().zip([8080, 8081]).map(|(id, port)| {
            let calls = Calls { cache: Some(Arc::new(rules(id))), ..Calls::default() };
            Port { port, calls: Arc::new(calls), ..port_template() }
        });
        snapshot.insert(Arc::new(Service {
            name: ServiceName::new("shop", "product"),
            version: "1".into(),
            ports: ports.collect(),
        }));
        let listen: SocketAddr = "127.0.0.1:9001".parse().expect("an address");
        let own = UpstreamListener { listen, service: ServiceName::new("shop", "product"), port: 8080 };
        snapshot.workload = Some(Arc::new(Workload { upstreams: vec![own], ..Workload::default() }));
        Self { stores: Stores::default(), snapshot }
    }

    /// Keeps the answer to a GET of a URL under a policy, as the request path makes its key.
    fn keep(&self, policy: &str, scope: &str, url: &str) -> &Self {
        self.keep_as(policy, scope, url, |sample| sample)
    }

    fn keep_as(&self, policy: &str, scope: &str, url: &str, change: impl FnOnce(Sample) -> Sample) -> &Self {
        let sample = change(Sample::new(&text(policy, scope, url, None)));
        let says = key::NoVarySearch::of(&sample.headers);
        let sample = Sample { key: text(policy, scope, url, says.as_ref()), ..sample };
        let store = self.stores.of(&rules(policy), NOW);
        store
            .put(sample.entry_since(store.epoch(), Bytes::from_static(b"body")), NOW)
            .1
            .expect("there is room");
        self
    }

    fn has(&self, policy: &str, scope: &str, url: &str) -> bool {
        let text = text(policy, scope, url, None);
        let store = self.stores.of(&rules(policy), NOW);
        store.look_up(Key::new(text.as_bytes()), NOW).is_some()
    }

    fn purge(&self, kind: Kind, text: &str) -> u64 {
        self.purge_of(kind, text, "")
    }

    fn purge_of(&self, kind: Kind, text: &str, service: &str) -> u64 {
        let purge = Purge::read(kind, text, service, false, "shop").expect("is a purge");
        announce(&purge, &self.stores, &self.snapshot, "shop", NOW).count(NOW)
    }

    fn entries(&self) -> u64 {
        self.stores.all().iter().map(|(_, store)| store.statistics().entries).sum()
    }
}

fn port_template() -> Port {
    Port {
        port: 0,
        name: None,
        protocol: Default::default(),
        routes: Default::default(),
        rules: Vec::new(),
        endpoints: Arc::default(),
        traffic: Arc::default(),
        calls: Arc::default(),
    }
}

fn text(policy: &str, scope: &str, url: &str, says: Option<&key::NoVarySearch>) -> String {
    let url = url.strip_prefix("http://").expect("starts so");
    let (authority, tail) = url.split_at(url.find('/').expect("has a path"));
    let (path, query) = tail.split_once('?').map_or((tail, None), |(path, query)| (path, Some(query)));
    let headers = HeaderMap::new();
    let parts = key::Parts {
        class: key::Class::Get,
        scope,
        scheme: "http",
        authority,
        path,
        query,
        headers: &headers,
        notable: crate::notable::Notable::default(),
        identity: None,
    };
    String::from_utf8(key::text(&parts, &rules(policy).key, says).expect("a key").to_vec()).expect("text")
}

const LOOSE: &str = "shop/loose";
const STRICT: &str = "shop/strict";

#[rstest]
#[case("http://product:8080/a", "http://product:8080/a", true)]
#[case("http://product.shop:8080/a", "http://product:8080/a", true)]
#[case("http://product:8080/a", "http://product.shop.svc.cluster.local:8080/a", true)]
#[case("PRODUCT.shop.svc:8080/a", "http://product:8080/a", true)]
#[case("http://product:8080/a", "http://127.0.0.1:9001/a", true)]
#[case("http://product:8080/a", "http://localhost:9001/a", true)]
#[case("http://product:8081/a", "http://127.0.0.1:9001/a", false)]
#[case("http://127.0.0.1:9001/a", "http://127.0.0.1:9001/a", true)]
#[case("http://product.other:8080/a", "http://product:8080/a", false)]
#[case("http://product/a", "http://product:8080/a", false)]
#[case("http://product/a", "http://product/a", true)]
#[case("http://product:80/a", "http://product/a", true)]
#[case("http://www.example.com/a", "http://www.example.com/a", true)]
#[case("http://www.example.com/a", "http://www.example.org/a", false)]
#[case("http://product:8080/b/../a", "http://product:8080/a", true)]
#[case("http://product:8080/%61#top", "http://product:8080/a", true)]
#[case("http://product:8080", "http://product:8080/", true)]
#[case("http://product:8080/a/", "http://product:8080/a", false)]
#[case("http://product:8080/a", "http://product:8080/a?x=1", false)]
#[case("http://product:8080/a?x=%7e", "http://product:8080/a?x=~", true)]
#[case("http://product:8080/a?x=1", "http://product:8080/a", false)]
fn a_url_is_one_resource_under_all_names_of_its_service(
    #[case] purged: &str,
    #[case] kept: &str,
    #[case] meant: bool,
) {
    let all = Kept::new();
    all.keep(STRICT, "r", kept);
    assert_eq!(all.purge(Kind::Url, purged), u64::from(meant));
    assert_eq!(all.has(STRICT, "r", kept), !meant);
}

#[rstest]
#[case("http://product:8080/a?utm=1", "http://product:8080/a", true)]
#[case("http://product:8080/a", "http://product:8080/a?utm=7", true)]
#[case("http://product:8080/a?y=2&x=1", "http://product:8080/a?x=1&y=2&utm=3", true)]
#[case("http://product:8080/a?x=1", "http://product:8080/a?x=1&y=2", false)]
#[case("http://product:8080/a?x=1&y=2", "http://product:8080/a?x=1", false)]
fn what_of_a_query_counts_is_what_counts_for_requests(
    #[case] purged: &str,
    #[case] kept: &str,
    #[case] meant: bool,
) {
    let all = Kept::new();
    all.keep(LOOSE, "r", kept);
    assert_eq!(all.purge(Kind::Url, purged), u64::from(meant));
}

#[test]
fn what_the_resource_says_of_its_query_counts_too() {
    let all = Kept::new();
    let says = |sample: Sample| {
        let mut sample = sample;
        sample.headers.insert("no-vary-search", http::HeaderValue::from_static("key-order, params=(\"a\")"));
        sample
    };
    all.keep_as(STRICT, "r", "http://product:8080/p?c=3&a=1&b=2", says);
    all.keep(STRICT, "r", "http://product:8080/p?b=2");
    assert_eq!(all.purge(Kind::Url, "http://product:8080/p?a=9&b=2&c=4"), 0);
    assert_eq!(all.purge(Kind::Url, "http://product:8080/p?a=9&b=2&c=3"), 1);
    assert!(all.has(STRICT, "r", "http://product:8080/p?b=2"), "it says nothing of its query");
}

#[test]
fn where_a_service_is_served_its_callers_names_for_it_are_no_matter() {
    let all = Kept::new();
    let own = "in:shop/product:8080";
    // Another namespace's caller says `product.shop`, one of a namespace `web` could say `product` of its own.
    all.keep(STRICT, own, "http://product.shop:8080/a").keep(STRICT, own, "http://whatever.example/a");
    all.keep(STRICT, "in:web/product:8080", "http://product:8080/a");
    assert_eq!(all.purge(Kind::Url, "http://product:8080/a"), 2);
    assert_eq!(all.entries(), 1);
    assert_eq!(all.purge(Kind::Url, "http://product.web:8080/a"), 1);
}

#[test]
fn every_route_method_and_variant_of_a_url_is_meant() {
    let all = Kept::new();
    for (scope, language) in [("r1", "de"), ("r1", "en"), ("r2", "de")] {
        all.keep_as(STRICT, scope, "http://product:8080/a", |sample| Sample {
            selector: format!("accept-language: {language}"),
            ..sample
        });
    }
    let store = all.stores.of(&rules(STRICT), NOW);
    let post = "http://product:8080/a\nPabc\nHcontent-type\n=S\nSr1";
    store.put(Sample::new(post).entry_since(store.epoch(), ""), NOW).1.expect("there is room");
    assert_eq!(all.purge(Kind::Url, "http://product:8080/a"), 4);
}

#[test]
fn a_prefix_ends_anywhere_in_the_path_and_is_of_one_service() {
    let all = Kept::new();
    for url in ["/products/1", "/products?page=2", "/products-old", "/product", "/"] {
        all.keep(STRICT, "r", &format!("http://product:8080{url}"));
        all.keep(LOOSE, "r", &format!("http://cart:8080{url}"));
    }
    assert_eq!(all.purge(Kind::Prefix, "http://product.shop:8080/products"), 3);
    assert_eq!(all.purge(Kind::Prefix, "product:8080"), 2);
    assert_eq!(all.entries(), 5);
    assert_eq!(all.purge(Kind::Prefix, "http://cart:8080/x/../"), 5);
}

#[test]
fn a_tag_a_policy_or_everything_may_be_of_one_service_only() {
    let fill = || {
        let all = Kept::new();
        for service in ["product", "cart"] {
            for policy in [STRICT, LOOSE] {
                let url = format!("http://{service}:8080/a");
                all.keep_as(policy, "r", &url, |sample| Sample { tags: vec!["p:1", "all"], ..sample });
                all.keep(policy, "r", &format!("http://{service}:8080/b"));
            }
        }
        all
    };
    for (kind, text, service, expected) in [
        (Kind::All, "", "", 8),
        (Kind::All, "", "shop/product", 4),
        (Kind::All, "", "product.shop", 4),
        (Kind::All, "", "web/product", 0),
        (Kind::Tag, "p:1", "", 4),
        (Kind::Tag, "p:1", "cart", 2),
        (Kind::Tag, "p:2", "", 0),
        (Kind::Policy, "shop/strict", "", 4),
        (Kind::Policy, "strict", "", 4),
        (Kind::Policy, "strict", "cart", 2),
        (Kind::Policy, "shop/none", "", 0),
        (Kind::Url, "http://product:8080/a", "cart", 0),
        (Kind::Prefix, "http://product:8080/", "product", 4),
    ] {
        let all = fill();
        assert_eq!(all.purge_of(kind, text, service), expected, "{kind:?} {text} {service}");
        assert_eq!(all.entries(), 8 - expected);
    }
}

#[test]
fn a_soft_purge_leaves_what_is_stale() {
    let all = Kept::new();
    all.keep(STRICT, "r", "http://product:8080/a").keep(STRICT, "r", "http://product:8080/b");
    let purge = Purge::read(Kind::Url, "http://product:8080/a", "", true, "shop").expect("is one");
    assert_eq!(announce(&purge, &all.stores, &all.snapshot, "shop", NOW).count(NOW), 1);
    let store = all.stores.of(&rules(STRICT), NOW);
    for (path, outdated) in [("a", true), ("b", false)] {
        let text = text(STRICT, "r", &format!("http://product:8080/{path}"), None);
        let found = store.look_up(Key::new(text.as_bytes()), NOW).expect("is there");
        assert!(found.iter().all(|entry| entry.is_outdated() == outdated), "{path}");
    }
}

#[test]
fn what_was_asked_for_before_a_purge_is_not_kept_after_it() {
    for (kind, wanted, kept) in [
        (Kind::Url, "http://product.shop:8080/a", false),
        (Kind::Url, "http://product:8080/b", true),
        (Kind::Prefix, "http://product:8080/", false),
        (Kind::Tag, "p:1", false),
        (Kind::All, "", false),
    ] {
        let all = Kept::new();
        let store = all.stores.of(&rules(STRICT), NOW);
        let sample = Sample::new(&text(STRICT, "r", "http://product:8080/a", None));
        let sample = Sample { tags: vec!["p:1"], ..sample };
        let asked = store.epoch();
        let purge = Purge::read(kind, wanted, "", false, "shop").expect("is one");
        let announced = announce(&purge, &all.stores, &all.snapshot, "shop", NOW);
        // Announced is acknowledged: before anything was looked through.
        let stored = store.put(sample.entry_since(asked, ""), NOW).1.is_ok();
        assert_eq!(stored, kept, "{kind:?} {wanted}");
        announced.count(NOW);
    }
}

proptest! {
    /// Whatever is kept is purged by the URL that asked for it, and by every beginning of its path.
    #[test]
    fn what_was_asked_for_by_a_url_is_purged_by_it(
        loose in any::<bool>(), path in "(/[a-c%.~]{0,3}){1,4}", query in proptest::option::of("([a-c]|utm|&|=|%7E|;){0,8}"),
        cut in any::<proptest::sample::Index>(),
    ) {
        let Ok(normal) = weft_config::matching::normalize_path(&path).map(|path| path.into_owned()) else { return Ok(()) };
        let policy = if loose { LOOSE } else { STRICT };
        let with = |path: &str| match &query {
            Some(query) => format!("http://product:8080{path}?{query}"),
            None => format!("http://product:8080{path}"),
        };
        for kind in [Kind::Url, Kind::Prefix] {
            let all = Kept::new();
            all.keep(policy, "r", &with(&normal)).keep(policy, "r", "http://product:8080/none");
            let purged = match kind {
                Kind::Url => with(&path),
                _ => format!("http://product:8080{}", &normal[..=cut.index(normal.len())]),
            };
            // A prefix may end within an escape, which is no path.
            if let Ok(purge) = Purge::read(kind, &purged, "", false, "shop") {
                let found = announce(&purge, &all.stores, &all.snapshot, "shop", NOW).count(NOW);
                prop_assert!(found >= 1, "{kind:?} {purged}");
                prop_assert!(!all.has(policy, "r", &with(&normal)));
            }
        }
    }
}

#[test]
fn rules_that_are_no_more_are_no_rules() {
    let scene = Scene::of(&Snapshot::default(), "shop");
    assert_eq!(scene.rules("shop/gone"), CacheKeyRules::default());
}
