//! How an endpoint is picked: every algorithm, weights, keys, subsets.

use crate::{URL, texts_by_key};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Mutex,
};
use weft_tests::{
    Backend, PATIENCE, eventually,
    stage::{Instance, Stage, route, traffic_policy},
};

const NAMES: [&str; 4] = ["a", "b", "c", "d"];

fn balanced(balancer: &str) -> String {
    traffic_policy("balance", "{ kind: Service, name: product }", &[&format!("loadBalancer: {balancer}")])
}

/// Endpoints of product with these names.
async fn product(names: &[&'static str], balancer: &str) -> Stage {
    let mut instances = Vec::new();
    for name in names {
        instances.push(Instance::new(name, Backend::text(name).await).of("product"));
    }
    let stage = Stage::set("", instances).await;
    stage.change("balance.yaml", &balanced(balancer)).await;
    stage
}

/// Who takes so many calls.
async fn taken(stage: &Stage, count: u32) -> BTreeMap<String, u32> {
    let mut taken = BTreeMap::new();
    for _ in 0..count {
        let answer = stage.client.get(URL).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        *taken.entry(answer.text().to_owned()).or_default() += 1;
    }
    taken
}

/// Waits until each of the four has taken calls: one that was slow at first, to whom a connection had yet to be made, may
/// have to wait until the others look no better.
async fn everywhere(stage: &Stage) {
    let seen = Mutex::new(BTreeSet::new());
    eventually("calls at every endpoint", PATIENCE, || async {
        let answer = stage.client.get(URL).await;
        let mut seen = seen.lock().unwrap();
        seen.insert(answer.text().to_owned());
        (seen.len() == 4).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_algorithm_uses_every_endpoint() {
    let stage = product(&NAMES, "{ algorithm: roundRobin }").await;
    let even = taken(&stage, 40).await;
    assert_eq!(even.values().collect::<Vec<_>>(), [&10; 4], "in turn: {even:?}");
    for algorithm in ["random", "leastRequests", "peakEwma"] {
        stage.change("balance.yaml", &balanced(&format!("{{ algorithm: {algorithm} }}"))).await;
        everywhere(&stage).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn weights_of_workloads_hold_among_endpoints() {
    let instances = [
        Instance::new("small", Backend::text("small").await).of("product"),
        Instance::new("large", Backend::text("large").await).of("product").weight(3),
    ];
    let stage = Stage::set(&balanced("{ algorithm: roundRobin }"), instances).await;
    let taken = taken(&stage, 80).await;
    assert_eq!((taken["small"], taken["large"]), (20, 60));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_has_one_endpoint_and_an_endpoint_that_goes_moves_only_its_own() {
    for (algorithm, others_move) in [("ringHash", 0), ("maglev", 20)] {
        let balancer = format!("{{ algorithm: {algorithm}, hashOn: [{{ header: x-user }}] }}");
        let mut stage = product(&NAMES, &balancer).await;
        let before = texts_by_key(&stage.client, URL, "x-user", 400).await;
        assert_eq!(texts_by_key(&stage.client, URL, "x-user", 400).await, before, "{algorithm}");
        for name in NAMES {
            let keys = before.iter().filter(|text| *text == name).count();
            assert!((50..=150).contains(&keys), "{algorithm}: {keys} of 400 keys at {name}");
        }
        stage.end("b", "product", 3).await;
        let after = texts_by_key(&stage.client, URL, "x-user", 400).await;
        assert!(after.iter().all(|text| text != "b"));
        let moved = before.iter().zip(&after).filter(|(b, a)| *b != "b" && b != a).count();
        // A few more keys than its own move with Maglev, as its policy says.
        assert!(moved <= others_move, "{algorithm}: {moved} keys moved that were not of the one that went");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_can_be_cookies_query_parameters_and_the_source() {
    let balancer = "{ algorithm: ringHash, ringPoints: 64, hashOn: [{ cookie: user }, { query: user }] }";
    let stage = product(&NAMES, balancer).await;
    for user in 0..20 {
        let cookie = format!("user=u{user}");
        let at = stage.client.get_with(URL, &[("cookie", &cookie)]).await;
        for _ in 0..3 {
            let again = stage.client.get_with(&format!("{URL}?user=other"), &[("cookie", &cookie)]).await;
            assert_eq!(again.text(), at.text(), "the first part that is there");
            assert_eq!(stage.client.get(&format!("{URL}?user=u{user}")).await.text(), at.text());
        }
    }
    // Without a key, anywhere.
    everywhere(&stage).await;
    stage.change("balance.yaml", &balanced("{ algorithm: maglev, hashOn: [{ source: true }] }")).await;
    assert_eq!(taken(&stage, 50).await.len(), 1, "one caller, one endpoint");
}

async fn versions() -> [Instance; 3] {
    [
        Instance::new("p1", Backend::text("v1").await).of("product").label("version", "v1"),
        Instance::new("p2", Backend::text("v2").await)
            .of("product")
            .label("version", "v2")
            .label("tier", "gold"),
        Instance::new("p3", Backend::text("v2 too").await).of("product").label("version", "v2"),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subset_takes_only_endpoints_with_all_of_its_labels() {
    let stage = Stage::set("", versions().await).await;
    for (labels, expected) in [
        ("{ version: v1 }", vec!["v1"]),
        ("{ version: v2 }", vec!["v2", "v2 too"]),
        ("{ version: v2, tier: gold }", vec!["v2"]),
    ] {
        stage
            .change(
                "balance.yaml",
                &balanced(&format!("{{ algorithm: roundRobin, subset: {{ labels: {labels} }} }}")),
            )
            .await;
        assert_eq!(taken(&stage, 60).await.keys().collect::<Vec<_>>(), expected, "{labels}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subset_without_endpoints_names_its_labels_or_falls_back() {
    let stage = Stage::set("", versions().await).await;
    stage.change("balance.yaml", &balanced("{ subset: { labels: { version: v3 } } }")).await;
    let answer = stage.client.get(URL).await;
    assert_eq!((answer.status.as_u16(), answer.weft_error()), (503, "no_endpoint"));
    assert!(answer.text().contains("version=v3") && answer.text().contains("subset"), "{}", answer.text());
    let fallback = "{ algorithm: roundRobin, subset: { labels: { version: v3 }, fallback: any } }";
    stage.change("balance.yaml", &balanced(fallback)).await;
    assert_eq!(taken(&stage, 30).await.len(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rule_can_have_a_subset_of_its_own() {
    let routes = route(
        "HTTPRoute",
        "product",
        &[
            "{ name: beta, matches: [{ headers: [{ name: x-beta, value: \"yes\" }] }], backendRefs: [{ name: product, port: 8080 }] }",
            "{ name: rest, backendRefs: [{ name: product, port: 8080 }] }",
        ],
    );
    let on_rule = |labels| {
        let target = "{ kind: HTTPRoute, name: product, sectionName: beta }";
        traffic_policy("beta", target, &[&format!("loadBalancer: {{ subset: {{ labels: {labels} }} }}")])
    };
    let stage =
        Stage::set(&(routes + &balanced("{ subset: { labels: { version: v1 } } }")), versions().await).await;
    stage.change("beta.yaml", &on_rule("{ version: v2, tier: gold }")).await;
    for _ in 0..20 {
        assert_eq!(stage.client.get(URL).await.text(), "v1");
        assert_eq!(stage.client.get_with(URL, &[("x-beta", "yes")]).await.text(), "v2");
    }
    stage.change("beta.yaml", &on_rule("{ version: v9 }")).await;
    assert_eq!(stage.client.get_with(URL, &[("x-beta", "yes")]).await.weft_error(), "no_endpoint");
    assert_eq!(stage.client.get(URL).await.text(), "v1", "and only that rule");
}
