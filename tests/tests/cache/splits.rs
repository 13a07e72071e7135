//! One address on several ways: no answer of one is given on another.

use crate::stage::{Set, URL, answer, caching, fresh, is_hit, numbered};
use weft_tests::{
    Scripted,
    mesh::serving,
    stage::{Instance, Stage, route, traffic_policy},
};

async fn version(name: &'static str) -> Instance {
    let (app, _) = Scripted::start(move |asked| async move {
        let control = if asked.path == "/side" { "no-store" } else { "max-age=60" };
        Ok(answer(&[("cache-control", control)], name))
    })
    .await
    .apart();
    Instance::new(name, app)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_versions_of_a_service_never_share_an_answer() {
    let split = "{ name: split, backendRefs: [{ name: old, port: 8080, weight: 1 }, { name: new, port: 8080, weight: 1 }] }";
    let policy = serving("product", 8080, "http")
        + &traffic_policy(
            "sticky",
            "{ kind: Service, name: product }",
            &["sessionKey: [{ header: x-user }]"],
        )
        + &route("HTTPRoute", "product", &[split])
        + &caching(&[]);
    let stage = Stage::set(&policy, [version("old").await, version("new").await]).await;
    let mut sides = std::collections::BTreeSet::new();
    for round in 0..2 {
        for user in 0..24 {
            let user = user.to_string();
            let fields = [("x-user", user.as_str())];
            let side = stage.client.get_with(&format!("{URL}/side"), &fields).await.text().to_owned();
            let page = stage.client.get_with(&format!("{URL}/page"), &fields).await;
            assert_eq!(page.text(), side, "user {user}: {:?}", page.headers);
            if round == 1 {
                is_hit(&page);
            }
            sides.insert(side);
        }
    }
    assert_eq!(sides.len(), 2, "both are called");
    let entries = stage.caller.metrics().await.sum("weft_cache_entries", &[]);
    assert_eq!(entries, 2.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rules_that_change_requests_in_their_own_ways_never_share_an_answer() {
    let rewrite = |name: &str, to: &str, more: &str| {
        format!(
            "{{ name: {name}, {more} filters: [{{ type: URLRewrite, urlRewrite: {{ path: {{ type: ReplaceFullPath, replaceFullPath: {to} }} }} }}], backendRefs: [{{ name: product, port: 8080 }}] }}"
        )
    };
    let header = "{ name: told, matches: [{ headers: [{ name: x-kind, value: b }] }], filters: [{ type: RequestHeaderModifier, requestHeaderModifier: { set: [{ name: x-told, value: 'yes' }] } }], backendRefs: [{ name: product, port: 8080 }] }";
    let rules = [
        rewrite("first", "/first", "matches: [{ headers: [{ name: x-kind, value: a }] }],"),
        header.to_owned(),
        rewrite("rest", "/rest", ""),
    ];
    let policy = caching(&[]) + &route("HTTPRoute", "product", &[&rules[0], &rules[1], &rules[2]]);
    let set = Set::at_once(&policy, |asked| {
        let told = format!("{} told={}", asked.path, asked.header("x-told"));
        answer(&[("cache-control", "max-age=60")], told)
    })
    .await;
    for round in 0..2 {
        for (kind, expected) in [("a", "/first told="), ("b", "/page told=yes"), ("c", "/rest told=")] {
            let answer = set.get("/page", &[("x-kind", kind)]).await;
            assert_eq!(answer.text(), expected, "{:?}", answer.headers);
            if round == 1 {
                is_hit(&answer);
            }
        }
    }
    assert_eq!(set.origin.begun(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rule_with_a_policy_of_its_own_goes_by_that_and_others_by_none() {
    let rules = [
        "{ name: kept, matches: [{ path: { value: /kept } }], backendRefs: [{ name: product, port: 8080 }] }",
        "{ name: rest, backendRefs: [{ name: product, port: 8080 }] }",
    ];
    let target = "{ group: gateway.networking.k8s.io, kind: HTTPRoute, name: product, sectionName: kept }";
    let policy = crate::stage::caching_at("cache", target, &[]) + &route("HTTPRoute", "product", &rules);
    let set = Set::at_once(&policy, fresh).await;
    for _ in 0..2 {
        set.get("/kept/a", &[]).await;
        assert_eq!(set.get("/other", &[]).await.header("cache-status"), "");
    }
    is_hit(&set.get("/kept/a", &[]).await);
    assert_eq!(set.origin.begun(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_rule_adds_to_answers_is_on_hits_too_and_not_kept() {
    let rule = "{ name: all, filters: [{ type: ResponseHeaderModifier, responseHeaderModifier: { add: [{ name: x-added, value: a }] } }], backendRefs: [{ name: product, port: 8080 }] }";
    let policy = caching(&[]) + &route("HTTPRoute", "product", &[rule]);
    let set = Set::at_once(&policy, |asked| numbered(asked, &[("cache-control", "max-age=60")])).await;
    for _ in 0..3 {
        let answer = set.get("/", &[]).await;
        assert_eq!(answer.headers.get_all("x-added").iter().count(), 1, "{:?}", answer.headers);
    }
    assert_eq!(set.origin.begun(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn services_under_one_policy_have_answers_of_their_own() {
    let policy = crate::stage::caching_at(
        "cache",
        "{ kind: Service, name: product }, { kind: Service, name: cart }",
        &[],
    );
    let mut instances = Vec::new();
    for name in ["product", "cart"] {
        instances.push(version(name).await);
    }
    let stage = Stage::set(&policy, instances).await;
    for _ in 0..2 {
        for name in ["product", "cart"] {
            assert_eq!(stage.client.get(&format!("http://{name}:8080/page")).await.text(), name);
        }
    }
    stage.client.call(crate::stage::request("POST", "/page", &[])).await;
    let cart = stage.client.get("http://cart:8080/page").await;
    is_hit(&cart);
}
