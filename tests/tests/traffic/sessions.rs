//! Session persistence of the Gateway API: a token keeps a client on one endpoint.

use crate::{grpc, grpc_app, grpc_status};
use std::{collections::BTreeSet, time::Duration};
use weft_tests::{
    Answer, Backend, PATIENCE, eventually,
    stage::{Instance, Stage, route, traffic_policy},
};

const NAMES: [&str; 3] = ["a", "b", "c"];

/// The route of product with this session, and whatever else its rule says.
fn persistent(session: &str, more: &str) -> String {
    let rule = format!(
        "{{ name: shop, matches: [{{ path: {{ value: /shop }} }}], sessionPersistence: {session}, {more}\
         backendRefs: [{{ name: product, port: 8080 }}] }}"
    );
    route("HTTPRoute", "product", &[&rule])
}

/// Three endpoints of product, which calls without a session go to in turn.
async fn three(session: &str) -> Stage {
    let mut instances = Vec::new();
    for name in NAMES {
        instances.push(Instance::new(name, Backend::text(name).await).of("product"));
    }
    let turns = ["loadBalancer: { algorithm: roundRobin }"];
    let policy = traffic_policy("turns", "{ kind: Service, name: product }", &turns);
    let stage = Stage::set(&policy, instances).await;
    stage.change("route.yaml", &persistent(session, "")).await;
    stage
}

const URL: &str = "http://product:8080/shop/cart";

/// The `Set-Cookie` of an answer, and its name and value as a client sends them back.
fn cookie(answer: &Answer) -> (&str, &str) {
    let field = answer.header("set-cookie");
    (field, field.split(';').next().unwrap())
}

/// Everywhere that so many calls without a session go.
async fn anywhere(stage: &Stage) -> BTreeSet<String> {
    let mut seen = BTreeSet::new();
    for _ in 0..12 {
        seen.insert(stage.client.get(URL).await.text().to_owned());
    }
    seen
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cookie_is_set_once_and_keeps_its_client_on_one_endpoint() {
    let stage = three("{ sessionName: cart }").await;
    assert_eq!(anywhere(&stage).await.len(), 3, "without a session all endpoints take calls");
    for _ in 0..3 {
        let first = stage.client.get(URL).await;
        let (field, pair) = cookie(&first);
        assert!(pair.starts_with("cart="), "{field}");
        for attribute in ["; Path=/shop", "; HttpOnly"] {
            assert!(field.contains(attribute), "{attribute}: {field}");
        }
        assert!(!field.contains("Max-Age") && !field.contains("Expires"), "{field}");
        for _ in 0..20 {
            let again = stage.client.get_with(URL, &[("cookie", &format!("theme=dark; {pair}"))]).await;
            assert_eq!((again.text(), again.header("set-cookie")), (first.text(), ""));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_survives_changes_of_policy() {
    let stage = three("{ sessionName: cart }").await;
    let first = stage.client.get(URL).await;
    let pair = cookie(&first).1.to_owned();
    for more in [
        "timeouts: { request: 9s }, ",
        "filters: [{ type: RequestHeaderModifier, requestHeaderModifier: { set: [{ name: x-a, value: b }] } }], ",
    ] {
        stage.change("route.yaml", &persistent("{ sessionName: cart }", more)).await;
        for _ in 0..10 {
            let again = stage.client.get_with(URL, &[("cookie", &pair)]).await;
            assert_eq!((again.text(), again.header("set-cookie")), (first.text(), ""));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_endpoint_gives_its_clients_a_new_session_elsewhere() {
    let mut stage = three("{ sessionName: cart }").await;
    let first = stage.client.get(URL).await;
    let pair = cookie(&first).1.to_owned();
    stage.kill(first.text());
    let second = stage.client.get_with(URL, &[("cookie", &pair)]).await;
    assert_eq!(second.status, 200, "{}", second.text());
    assert_ne!(second.text(), first.text());
    let new = cookie(&second).1.to_owned();
    assert!(new.starts_with("cart=") && new != pair, "{new}");
    for _ in 0..10 {
        let again = stage.client.get_with(URL, &[("cookie", &new)]).await;
        assert_eq!((again.text(), again.header("set-cookie")), (second.text(), ""));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_can_travel_in_a_header() {
    let stage = three("{ sessionName: x-cart, type: Header }").await;
    let first = stage.client.get(URL).await;
    let token = first.header("x-cart").to_owned();
    assert!(!token.is_empty() && first.header("set-cookie").is_empty(), "{:?}", first.headers);
    for _ in 0..20 {
        let again = stage.client.get_with(URL, &[("x-cart", &token)]).await;
        assert_eq!((again.text(), again.header("x-cart")), (first.text(), ""));
    }
    let damaged = stage.client.get_with(URL, &[("x-cart", "damaged")]).await;
    assert!(!damaged.header("x-cart").is_empty(), "what cannot be read is no session");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_without_a_name_get_one_and_permanent_cookies_their_age() {
    let stage =
        three("{ type: Cookie, absoluteTimeout: 1h, cookieConfig: { lifetimeType: Permanent } }").await;
    let first = stage.client.get(URL).await;
    let (field, pair) = cookie(&first);
    assert!(
        pair.split_once('=').is_some_and(|(name, value)| !name.is_empty() && !value.is_empty()),
        "{field}"
    );
    assert!(field.contains("; Max-Age=3600"), "{field}");
    let again = stage.client.get_with(URL, &[("cookie", pair)]).await;
    assert_eq!((again.text(), again.header("set-cookie")), (first.text(), ""));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_ends_by_age_and_by_idleness() {
    let stage = three("{ sessionName: unused }").await;
    let lifetimes = [
        ("age", "{ absoluteTimeout: 1s }"),
        ("idle", "{ idleTimeout: 1s }"),
        ("lasting", "{ idleTimeout: 1h, absoluteTimeout: 2h }"),
    ];
    let rules = lifetimes.map(|(name, session)| {
        let matched = format!("name: {name}, matches: [{{ path: {{ value: /{name} }} }}]");
        format!(
            "{{ {matched}, sessionPersistence: {session}, backendRefs: [{{ name: product, port: 8080 }}] }}"
        )
    });
    stage.change("route.yaml", &route("HTTPRoute", "product", &rules.each_ref().map(|rule| &**rule))).await;
    let mut begun = Vec::new();
    for (name, _) in lifetimes {
        begun.push(stage.client.get(&format!("http://product:8080/{name}")).await);
    }
    // Times are whole seconds, and no session ends early.
    tokio::time::sleep(Duration::from_millis(3100)).await;
    for ((name, _), first) in lifetimes.iter().zip(&begun) {
        let mut elsewhere = 0;
        for _ in 0..30 {
            let headers = [("cookie", cookie(first).1)];
            let answer = stage.client.get_with(&format!("http://product:8080/{name}"), &headers).await;
            elsewhere += u32::from(answer.text() != first.text());
        }
        assert_eq!(elsewhere > 0, *name != "lasting", "{name}: {elsewhere} of 30 went elsewhere");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_timeout_is_renewed_by_use() {
    let stage = three("{ sessionName: cart, idleTimeout: 5s }").await;
    let first = stage.client.get(URL).await;
    let mut pair = cookie(&first).1.to_owned();
    let mut renewed = 0;
    // Longer than the timeout altogether, and never nearly that long without a call.
    for _ in 0..8 {
        tokio::time::sleep(Duration::from_millis(1100)).await;
        let again = stage.client.get_with(URL, &[("cookie", &pair)]).await;
        assert_eq!(again.text(), first.text(), "used all the time");
        if !again.header("set-cookie").is_empty() {
            pair = cookie(&again).1.to_owned();
            renewed += 1;
        }
    }
    assert!(renewed >= 6, "{renewed}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grpc_routes_keep_sessions_too() {
    let mut instances = Vec::new();
    for name in NAMES {
        instances.push(Instance::new(name, grpc_app(name).await).of("stock").grpc());
    }
    let rule = "{ sessionPersistence: { sessionName: stock }, backendRefs: [{ name: stock, port: 50051 }] }";
    let stage = Stage::set(&route("GRPCRoute", "stock", &[rule]), instances).await;
    let call = |headers: Vec<(&'static str, String)>| {
        let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        stage.client.call_http2(grpc("http://stock:50051/shop.Stock/Get", &headers))
    };
    let first = call(vec![]).await;
    assert_eq!(grpc_status(&first), "0");
    let pair = cookie(&first).1.to_owned();
    assert!(pair.starts_with("stock="), "{:?}", first.headers);
    for _ in 0..10 {
        let again = call(vec![("cookie", pair.clone())]).await;
        assert_eq!((again.header("x-who"), again.header("set-cookie")), (first.header("x-who"), ""));
    }
    eventually("calls without a session at another endpoint", PATIENCE, || async {
        (call(vec![]).await.header("x-who") != first.header("x-who")).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_stays_with_its_backend_of_a_split() {
    let instances =
        [Instance::new("a", Backend::text("a").await), Instance::new("b", Backend::text("b").await)];
    let rule = "{ sessionPersistence: { sessionName: side }, backendRefs: [{ name: a, port: 8080 }, { name: b, port: 8080 }] }";
    let policy = route("HTTPRoute", "product", &[rule]) + &weft_tests::mesh::serving("product", 8080, "http");
    let stage = Stage::set(&policy, instances).await;
    for _ in 0..5 {
        let first = stage.client.get("http://product:8080/").await;
        for _ in 0..10 {
            let again = stage.client.get_with("http://product:8080/", &[("cookie", cookie(&first).1)]).await;
            assert_eq!(again.text(), first.text());
        }
    }
}
