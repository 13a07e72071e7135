//! Rate limits: counted where a Service is served or at each caller of a route, and told to callers.

use crate::{URL, grpc, grpc_status};
use http::Request;
use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::SeqCst},
};
use weft_tests::{
    Answer, Backend, Client, empty, full,
    mesh::calling,
    stage::{Instance, Stage, route, traffic_policy},
};

const ON_SERVICE: &str = "{ kind: Service, name: product }";

/// An application that says `ok` and counts.
async fn counting() -> (Backend, Arc<AtomicUsize>) {
    let count = Arc::new(AtomicUsize::new(0));
    let counter = count.clone();
    let app = Backend::http(move |_| {
        counter.fetch_add(1, SeqCst);
        async { Ok(http::Response::new(full("ok"))) }
    });
    (app.await, count)
}

fn limits(limits: &[&str]) -> String {
    traffic_policy("limits", ON_SERVICE, &[&format!("rateLimits: [{}]", limits.join(", "))])
}

/// The statuses of so many calls.
async fn statuses(client: &Client, headers: &[(&str, &str)], count: usize) -> Vec<u16> {
    let mut statuses = Vec::new();
    for _ in 0..count {
        statuses.push(client.get_with(URL, headers).await.status.as_u16());
    }
    statuses
}

/// The parameter of an item like `"all";r=2;t=1200`.
fn parameter(field: &str, name: &str) -> u64 {
    let value = field.split(';').find_map(|part| part.trim().strip_prefix(name)?.strip_prefix('='));
    value.unwrap_or_else(|| panic!("{name} in {field:?}")).parse().unwrap()
}

fn expect_refused(answer: &Answer, name: &str) {
    assert_eq!((answer.status.as_u16(), answer.weft_error()), (429, "rate_limited"), "{}", answer.text());
    assert!(answer.text().contains(&format!("`{name}`")), "names the limit: {}", answer.text());
    let wait: u64 = answer.header("retry-after").parse().expect("seconds");
    let state = answer.header("ratelimit");
    assert!(state.starts_with(&format!("\"{name}\";")), "{state}");
    assert_eq!((parameter(state, "r"), parameter(state, "t")), (0, wait), "{state}");
    assert!(answer.header("ratelimit-policy").starts_with(&format!("\"{name}\";q=")), "{:?}", answer.headers);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_limit_on_a_service_holds_for_all_callers_together_and_is_told_to_them() {
    let (app, reached) = counting().await;
    let policy = limits(&["{ name: all, requests: 3, per: 1h }"]) + &calling("other");
    let stage = Stage::set(&policy, [Instance::new("product", app).workers(2)]).await;
    let (_other, other) = stage.another("other").await;
    for (turn, client) in [&stage.client, &other, &stage.client].into_iter().enumerate() {
        let answer = client.get(URL).await;
        assert_eq!(answer.text(), "ok");
        assert_eq!(answer.header("ratelimit-policy"), "\"all\";q=3;w=3600");
        let state = answer.header("ratelimit");
        assert_eq!(parameter(state, "r"), 2 - turn as u64, "{state}");
    }
    for client in [&stage.client, &other] {
        let answer = client.get(URL).await;
        expect_refused(&answer, "all");
        let wait: u64 = answer.header("retry-after").parse().unwrap();
        assert!((1100..=1200).contains(&wait), "a third of an hour, less what has passed: {wait}");
    }
    assert_eq!(
        reached.load(SeqCst),
        3,
        "what is refused does not reach the application, and is not tried again"
    );
    let served = stage.beside("product").metrics().await;
    assert_eq!(served.sum("weft_rate_limited_total", &["limit=\"shop/limits/all\""]), 2.0, "{}", served.0);
    let errors = stage.caller.metrics().await;
    assert_eq!(errors.sum("weft_requests_total", &["direction=\"outbound\"", "status=\"429\""]), 1.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_by_identity_have_buckets_of_their_own() {
    let (app, reached) = counting().await;
    let policy = limits(&["{ name: each, requests: 2, per: 1h, key: [{ identity: true }] }"]);
    let stage = Stage::set(&(policy + &calling("other")), [Instance::new("product", app).workers(2)]).await;
    let (_other, other) = stage.another("other").await;
    assert_eq!(statuses(&stage.client, &[], 4).await, [200, 200, 429, 429]);
    assert_eq!(statuses(&other, &[], 3).await, [200, 200, 429], "what one caller takes is not the other's");
    assert_eq!(reached.load(SeqCst), 4);
    let served = stage.beside("product").metrics().await;
    assert_eq!(served.sum("weft_rate_limit_keys", &["limit=\"shop/limits/each\""]), 2.0, "{}", served.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_value_of_a_header_or_query_parameter_has_its_own_bucket() {
    let (app, _) = counting().await;
    let policy = limits(&[
        "{ name: user, requests: 2, per: 1h, key: [{ header: x-user }], headers: [{ type: RegularExpression, name: x-user, value: '.+' }] }",
        "{ name: anonymous, requests: 1, per: 1h, key: [{ query: tenant }], methods: [POST] }",
    ]);
    let stage = Stage::set(&policy, [Instance::new("product", app).workers(2)]).await;
    for user in ["ann", "ben"] {
        assert_eq!(statuses(&stage.client, &[("x-user", user)], 3).await, [200, 200, 429], "{user}");
    }
    assert_eq!(statuses(&stage.client, &[], 5).await, [200; 5], "no limit is about calls without the header");
    for (tenant, expected) in [("a", 200), ("a", 429), ("b", 200), ("b", 429)] {
        let request = Request::post(format!("{URL}?tenant={tenant}")).body(empty()).unwrap();
        assert_eq!(stage.client.call(request).await.status, expected, "{tenant}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_limit_on_a_route_is_counted_at_each_caller() {
    let (app, reached) = counting().await;
    let routes = route(
        "HTTPRoute",
        "product",
        &[
            "{ name: dear, matches: [{ path: { value: /dear } }], backendRefs: [{ name: product, port: 8080 }] }",
            "{ name: rest, backendRefs: [{ name: product, port: 8080 }] }",
        ],
    );
    let target = "{ kind: HTTPRoute, name: product, sectionName: dear }";
    let limit = traffic_policy("dear", target, &["rateLimits: [{ name: few, requests: 2, per: 1h }]"]);
    let stage =
        Stage::set(&(routes + &limit + &calling("other")), [Instance::new("product", app).workers(2)]).await;
    let (_other, other) = stage.another("other").await;
    for client in [&stage.client, &other] {
        for turn in 0..3 {
            let answer = client.get("http://product:8080/dear").await;
            match turn {
                2 => expect_refused(&answer, "few"),
                _ => assert_eq!(parameter(answer.header("ratelimit"), "r"), 1 - turn, "{:?}", answer.headers),
            }
        }
        assert_eq!(statuses(client, &[], 3).await, [200; 3], "the other rule has no limit");
    }
    assert_eq!(reached.load(SeqCst), 10);
    let called = stage.caller.metrics().await;
    assert_eq!(called.sum("weft_rate_limited_total", &["limit=\"shop/dear/few\""]), 1.0, "{}", called.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changed_numbers_find_what_was_taken() {
    let (app, _) = counting().await;
    let policy = |requests| limits(&[&format!("{{ name: all, requests: {requests}, per: 1h }}")]);
    let stage = Stage::set("", [Instance::new("product", app).workers(2)]).await;
    stage.change("limits.yaml", &policy(4)).await;
    assert_eq!(statuses(&stage.client, &[], 5).await, [200, 200, 200, 200, 429]);
    stage.change("limits.yaml", &policy(7)).await;
    assert_eq!(
        statuses(&stage.client, &[], 4).await,
        [200, 200, 200, 429],
        "four of the seven were taken before"
    );
    stage.change("limits.yaml", &policy(5)).await;
    assert_eq!(statuses(&stage.client, &[], 1).await, [429]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grpc_callers_are_told_that_a_quota_is_used_up() {
    let target = "{ kind: Service, name: stock }";
    let limit = traffic_policy("limits", target, &["rateLimits: [{ name: all, requests: 1, per: 1h }]"]);
    let app = crate::grpc_app("stock").await;
    let stage = Stage::set(&limit, [Instance::new("stock", app).grpc()]).await;
    let call = || stage.client.call_http2(grpc("http://stock:50051/shop.Stock/Get", &[]));
    assert_eq!(grpc_status(&call().await), "0");
    let refused = call().await;
    assert_eq!((refused.status.as_u16(), grpc_status(&refused)), (200, "8"), "{:?}", refused.headers);
    assert!(!refused.header("retry-after").is_empty() && !refused.header("ratelimit").is_empty());
}
