//! Faults put in on purpose, at the caller.

use crate::{URL, grpc, grpc_app, grpc_status};
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};
use weft_tests::{
    Backend, Client, empty, full, raw, soon,
    stage::{Instance, Stage, route, traffic_policy},
};

fn faults(target: &str, faults: &[&str]) -> String {
    traffic_policy("faults", target, &[&format!("faults: [{}]", faults.join(", "))])
}

/// A service whose application counts its calls.
async fn faulty(list: &[&str]) -> (Stage, Arc<AtomicUsize>) {
    let reached = Arc::new(AtomicUsize::new(0));
    let counter = reached.clone();
    let app = Backend::http(move |_| {
        counter.fetch_add(1, SeqCst);
        async { Ok(http::Response::new(full("fine"))) }
    });
    let policy = faults("{ kind: Service, name: product }", list);
    (Stage::set(&policy, [Instance::new("product", app.await)]).await, reached)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delay_holds_up_only_the_calls_it_is_for() {
    let (stage, reached) = faulty(&[
        "{ delay: 400ms, headers: [{ name: x-fault, value: slow }] }",
        "{ percent: 0, delay: 60s }",
    ])
    .await;
    let begun = Instant::now();
    assert_eq!(stage.client.get_with(URL, &[("x-fault", "slow")]).await.text(), "fine");
    assert!(begun.elapsed() >= Duration::from_millis(400), "{:?}", begun.elapsed());
    for _ in 0..20 {
        assert_eq!(stage.client.get_with(URL, &[("x-fault", "none")]).await.text(), "fine");
    }
    assert_eq!(reached.load(SeqCst), 21);
    let metrics = stage.caller.metrics().await;
    assert_eq!(metrics.sum("weft_faults_total", &["kind=\"delay\""]), 1.0, "{}", metrics.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_abort_answers_in_place_of_the_upstream() {
    let (stage, reached) = faulty(&[
        "{ headers: [{ name: x-fault, value: teapot }], abort: { status: 418 } }",
        "{ headers: [{ name: x-fault, value: both }], delay: 200ms, abort: { status: 503 } }",
        "{ headers: [{ name: x-fault, value: exhausted }], abort: { grpcStatus: RESOURCE_EXHAUSTED } }",
    ])
    .await;
    for (fault, status) in [("teapot", 418), ("both", 503), ("exhausted", 429)] {
        let begun = Instant::now();
        let answer = stage.client.get_with(URL, &[("x-fault", fault)]).await;
        assert_eq!((answer.status.as_u16(), answer.weft_error()), (status, "fault"), "{}", answer.text());
        assert!(answer.text().contains("on purpose"), "{}", answer.text());
        assert!(fault != "both" || begun.elapsed() >= Duration::from_millis(200));
    }
    assert_eq!(reached.load(SeqCst), 0);
    assert_eq!(stage.client.get(URL).await.text(), "fine");
    let metrics = stage.caller.metrics().await;
    assert_eq!(metrics.sum("weft_faults_total", &["kind=\"abort\""]), 3.0, "{}", metrics.0);
    assert_eq!(metrics.sum("weft_errors_total", &["kind=\"fault\""]), 3.0, "{}", metrics.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grpc_calls_fail_with_the_grpc_status_that_policy_names() {
    let list = [
        "{ headers: [{ name: x-fault, value: grpc }], abort: { grpcStatus: NOT_FOUND } }",
        "{ headers: [{ name: x-fault, value: http }], abort: { status: 503 } }",
    ];
    let policy = faults("{ kind: Service, name: stock }", &list);
    let stage = Stage::set(&policy, [Instance::new("stock", grpc_app("stock").await).grpc()]).await;
    for (fault, expected) in [("grpc", "5"), ("http", "14"), ("none", "0")] {
        let call = grpc("http://stock:50051/shop.Stock/Get", &[("x-fault", fault)]);
        let answer = stage.client.call_http2(call).await;
        assert_eq!((answer.status.as_u16(), grpc_status(&answer)), (200, expected), "{:?}", answer.headers);
        assert_eq!(answer.body.is_empty(), fault != "none");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reset_closes_an_http1_connection_without_an_answer() {
    let (stage, reached) =
        faulty(&["{ headers: [{ name: x-fault, value: reset }], abort: { reset: true } }"]).await;
    let request = "GET http://product:8080/ HTTP/1.1\r\nhost: product:8080\r\nx-fault: reset\r\n\r\n";
    assert_eq!(raw::exchange(stage.caller.outbound(), request).await, "", "not a byte, and the end");
    let request = http::Request::get(URL).header("x-fault", "reset").body(empty()).unwrap();
    assert!(soon("an end", stage.client.try_call(request)).await.is_err());
    assert_eq!(reached.load(SeqCst), 0);
    assert_eq!(stage.client.get(URL).await.text(), "fine");
    let metrics = stage.caller.metrics().await;
    assert_eq!(metrics.sum("weft_faults_total", &["kind=\"reset\""]), 2.0, "{}", metrics.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reset_ends_one_http2_stream_and_no_other() {
    let (stage, _) =
        faulty(&["{ headers: [{ name: x-fault, value: reset }], abort: { reset: true } }"]).await;
    let mut connection = Client::new(stage.caller.outbound()).http2().await.unwrap();
    for fault in ["none", "reset", "none", "reset", "none"] {
        let request = http::Request::get(URL).header("x-fault", fault).body(empty()).unwrap();
        let outcome = soon("an end of the stream", connection.send_request(request)).await;
        match outcome {
            Ok(response) => assert_eq!((fault, response.status().as_u16()), ("none", 200)),
            Err(error) => {
                assert_eq!(fault, "reset", "{error:?}");
                let cause = std::error::Error::source(&error).and_then(|e| e.downcast_ref::<h2::Error>());
                assert!(cause.is_some_and(|cause| cause.is_reset() && cause.is_remote()), "{error:?}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_fault_hits_its_share_of_calls() {
    let (stage, reached) =
        faulty(&["{ percent: 30, abort: { status: 418 } }", "{ percent: 20, abort: { status: 410 } }"]).await;
    let mut hits = [0, 0, 0];
    for _ in 0..1000 {
        match stage.client.get(URL).await.status.as_u16() {
            418 => hits[0] += 1,
            410 => hits[1] += 1,
            200 => hits[2] += 1,
            other => panic!("{other}"),
        }
    }
    // Binomial with n = 1,000: five standard deviations.
    assert!((228..=372).contains(&hits[0]), "{hits:?}");
    assert!((137..=263).contains(&hits[1]), "{hits:?}");
    assert_eq!(reached.load(SeqCst), hits[2]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fault_on_a_rule_hits_that_rule_alone() {
    let routes = route(
        "HTTPRoute",
        "product",
        &[
            "{ name: broken, matches: [{ path: { value: /broken } }], backendRefs: [{ name: product, port: 8080 }] }",
            "{ name: rest, backendRefs: [{ name: product, port: 8080 }] }",
        ],
    );
    let target = "{ kind: HTTPRoute, name: product, sectionName: broken }";
    let policy = routes + &faults(target, &["{ abort: { status: 500 } }"]);
    let stage = Stage::set(&policy, [Instance::new("product", Backend::text("fine").await)]).await;
    assert_eq!(stage.client.get("http://product:8080/broken").await.status, 500);
    assert_eq!(stage.client.get(URL).await.text(), "fine");
}
