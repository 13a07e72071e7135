//! What is going away says so, and its callers are known.

use weft_tests::{
    Backend,
    mesh::calling,
    stage::{Instance, Stage, route, traffic_policy},
};

fn versions() -> String {
    let routes = route(
        "HTTPRoute",
        "product",
        &[
            "{ name: v1, matches: [{ path: { value: /v1 } }], backendRefs: [{ name: product, port: 8080 }] }",
            "{ name: v2, matches: [{ path: { value: /v2 } }], backendRefs: [{ name: product, port: 8080 }] }",
        ],
    );
    let target = "{ kind: HTTPRoute, name: product, sectionName: v1 }";
    let deprecation =
        "deprecation: { since: 2026-01-31, sunset: 2026-12-31, link: \"https://docs.example.com/v2\" }";
    routes + &traffic_policy("old", target, &[deprecation])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_say_since_when_until_when_and_where_to_read_on() {
    let stage = Stage::set(&versions(), [Instance::new("product", Backend::text("goods").await)]).await;
    let old = stage.client.get("http://product:8080/v1/products").await;
    assert_eq!(old.text(), "goods");
    assert_eq!(old.header("deprecation"), "@1769817600");
    assert_eq!(old.header("sunset"), "Thu, 31 Dec 2026 00:00:00 GMT");
    assert!(
        old.header("link").contains("<https://docs.example.com/v2>; rel=\"deprecation\""),
        "{:?}",
        old.headers
    );
    let new = stage.client.get("http://product:8080/v2/products").await;
    for name in ["deprecation", "sunset", "link"] {
        assert_eq!(new.header(name), "", "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn status_names_the_exact_callers_with_their_counts() {
    let policy = versions() + &calling("checkout") + &calling("search");
    let stage = Stage::set(&policy, [Instance::new("product", Backend::text("goods").await)]).await;
    let (_checkout, checkout) = stage.another("checkout").await;
    let (_search, search) = stage.another("search").await;
    for _ in 0..7 {
        checkout.get("http://product:8080/v1/products").await;
    }
    for _ in 0..3 {
        stage.client.get("http://product:8080/v1/products").await;
    }
    search.get("http://product:8080/v2/products").await;
    let of = |name: &str| format!("spiffe://weft.local/ns/shop/sa/{name}");
    let status = stage
        .mesh
        .until("all calls are counted", |status| {
            status.deprecated.iter().any(|d| d.callers.iter().map(|c| c.calls).sum::<u64>() == 10)
        })
        .await;
    let [old] = &status.deprecated[..] else { panic!("{:?}", status.deprecated) };
    assert_eq!((old.of.as_str(), old.policy.as_str()), ("HTTPRoute shop/product#v1", "shop/old"));
    assert_eq!((old.since.as_str(), old.sunset.as_str()), ("2026-01-31", "2026-12-31"));
    assert_eq!(old.link, "https://docs.example.com/v2");
    let callers: Vec<_> =
        old.callers.iter().map(|c| (c.identity.clone(), c.workload.as_str(), c.calls)).collect();
    assert_eq!(callers, [(of("checkout"), "checkout", 7), (of("caller"), "caller", 3)]);
}
