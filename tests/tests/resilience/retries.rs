//! Retries: which failures the caller never hears of, and which requests are never sent twice.

use crate::stage::{Stage, URL, stage, stage_of};
use bytes::Bytes;
use http::{HeaderValue, Method, Request};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use std::time::{Duration, Instant};
use weft_tests::{
    Answer, Body, Client, PATIENCE, Scripted,
    client::whole,
    empty, eventually, full,
    mesh::traffic,
    scripted::{self, Asked, Reply, status, text, trailers_only},
    soon,
};

/// 503 at first, then good answers.
async fn once_unwell() -> Scripted {
    Scripted::start(|asked: Asked| async move {
        Ok(if asked.turn == 0 { status(503) } else { text(asked.body.len().to_string()) })
    })
    .await
}

/// A body whose length nobody knows before its end.
fn streamed(chunks: usize, size: usize) -> Body {
    let piece = Bytes::from(vec![b'w'; size]);
    let frames = futures_util::stream::unfold(0, move |sent| {
        let piece = piece.clone();
        async move {
            tokio::time::sleep(Duration::from_millis(1)).await;
            (sent < chunks).then(|| (Ok(Frame::data(piece)), sent + 1))
        }
    });
    StreamBody::new(frames).boxed_unsync()
}

async fn send(stage: &Stage, method: Method, body: Body) -> Answer {
    let request =
        Request::builder().method(method).uri(URL).header("host", "product:8080").body(body).unwrap();
    let calling = async { whole(stage.client.send(request).await?).await };
    soon("an answer", calling).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_503_and_then_a_200_are_one_good_answer() {
    let stage = stage("", vec![once_unwell().await]).await;
    assert_eq!(stage.client.get(URL).await.status, 200);
    assert_eq!(stage.apps[0].begun(), 2);
    assert_eq!(stage.counted("weft_retries_total", &["reason=\"status\""]).await, 1);
    assert_eq!(stage.counted("weft_requests_total", &["status=\"200\""]).await, 1);
    assert_eq!(stage.counted("weft_requests_total", &[]).await, 1, "one request, as far as anybody sees");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_breaks_before_an_answer_is_no_failure() {
    let app =
        Scripted::start(
            |asked| async move { if asked.turn == 0 { scripted::reset() } else { Ok(text("good")) } },
        );
    let stage = stage("", vec![app.await]).await;
    assert_eq!(stage.client.get(URL).await.text(), "good");
    assert_eq!(stage.apps[0].begun(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_endpoint_than_the_failed_one_is_tried() {
    let policy = traffic(
        "product",
        "loadBalancer: { algorithm: roundRobin }, outlierEjection: { consecutiveGatewayErrors: 0 },
         retries: { budget: { percent: 100 } }",
    );
    let apps = vec![
        Scripted::start(|_| async { Ok(status(503)) }).await,
        Scripted::start(|_| async { Ok(text("good")) }).await,
    ];
    let stage = stage(&policy, apps).await;
    for _ in 0..40 {
        assert_eq!(stage.client.get(URL).await.text(), "good");
    }
    let failed = stage.apps[0].begun();
    assert!(failed >= 10, "{failed} of 40 calls met the failing endpoint first");
    assert_eq!(stage.apps[1].begun(), 40, "one more attempt each was enough");
    assert_eq!(stage.counted("weft_retries_total", &[]).await, failed);
}

/// Says when to come again, and is well then.
async fn come_again(seconds: &'static str) -> Scripted {
    Scripted::start(move |asked| async move {
        let mut response = status(if asked.turn == 0 { 503 } else { 200 });
        response.headers_mut().insert("retry-after", HeaderValue::from_static(seconds));
        Ok(response)
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upstream_that_says_when_to_come_again_is_obeyed() {
    let stage = stage("", vec![come_again("1").await]).await;
    let begun = Instant::now();
    assert_eq!(stage.client.get(URL).await.status, 200);
    assert!(begun.elapsed() >= Duration::from_secs(1), "after {:?}", begun.elapsed());
    assert_eq!(stage.apps[0].begun(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_waits_for_an_upstream_that_wants_to_be_asked_after_the_deadline() {
    let policy = traffic("product", "timeouts: { request: 25s }");
    let stage = stage(&policy, vec![come_again("30").await]).await;
    let begun = Instant::now();
    assert_eq!(stage.client.get(URL).await.status, 503);
    assert!(begun.elapsed() < Duration::from_secs(15), "after {:?}", begun.elapsed());
    assert_eq!(stage.apps[0].begun(), 1);
    assert_eq!(stage.counted("weft_retries_refused_total", &["reason=\"deadline\""]).await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_post_that_the_application_saw_is_not_repeated() {
    let stage = stage("", vec![once_unwell().await]).await;
    assert_eq!(send(&stage, Method::POST, full("charge the card")).await.status, 503);
    assert_eq!(stage.apps[0].begun(), 1);
    assert_eq!(stage.counted("weft_retries_refused_total", &["reason=\"unsafe\""]).await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_post_is_repeated_where_policy_says_that_the_service_can_bear_it() {
    let policy = traffic("product", "retries: { unsafeMethods: true }");
    let stage = stage(&policy, vec![once_unwell().await]).await;
    let answer = send(&stage, Method::POST, full("charge the card")).await;
    assert_eq!((answer.status.as_u16(), answer.text()), (200, "15"), "with its body");
    assert_eq!(stage.apps[0].begun(), 2);
}

/// POSTs one after the other while something happens, and for a while after it; gives how many were answered, and how
/// many came to the applications. All of them must be answered with 200.
async fn posts_meanwhile(stage: &Stage, event: impl Future<Output = ()>) -> (u64, u64) {
    let stop = std::sync::atomic::AtomicBool::new(false);
    let posting = async {
        let mut answered = 0;
        while !stop.load(std::sync::atomic::Ordering::Relaxed) {
            let answer = send(stage, Method::POST, full("charge the card")).await;
            assert_eq!(answer.status, 200, "{}: {}", answer.weft_error(), answer.text());
            answered += 1;
        }
        answered
    };
    let happening = async {
        eventually("both are called", PATIENCE, || async {
            stage.apps.iter().all(|app| app.begun() > 2).then_some(())
        })
        .await;
        event.await;
        let before: u64 = stage.apps.iter().map(|app| app.begun()).sum();
        eventually("calls go on", PATIENCE, || async {
            (stage.apps.iter().map(|app| app.begun()).sum::<u64>() > before + 20).then_some(())
        })
        .await;
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    };
    let (answered, ()) = tokio::join!(posting, happening);
    (answered, stage.apps.iter().map(|app| app.begun()).sum())
}

async fn good() -> Scripted {
    Scripted::start(|_| async { Ok(text("good")) }).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_post_goes_elsewhere_where_the_application_takes_no_connections() {
    // Closes each connection after its answer: the next call has to connect.
    let closing = || {
        Scripted::start(|_| async {
            let mut response = text("good");
            response.headers_mut().insert("connection", HeaderValue::from_static("close"));
            Ok(response)
        })
    };
    let policy = traffic("product", "loadBalancer: { algorithm: roundRobin }");
    let mut stage = stage(&policy, vec![closing().await, closing().await]).await;
    for _ in 0..10 {
        assert_eq!(send(&stage, Method::POST, full("x")).await.status, 200);
    }
    // Its sidecar is still there, and nobody knows that the application is not.
    let gone = stage.apps.remove(0);
    let seen = gone.begun();
    assert!(seen > 0 && stage.apps[0].begun() > 0, "both were called");
    drop(gone);
    for _ in 0..20 {
        let answer = send(&stage, Method::POST, full("charge the card")).await;
        assert_eq!(answer.status, 200, "{}: {}", answer.weft_error(), answer.text());
    }
    assert_eq!(seen + stage.apps[0].begun(), 30, "each came once");
    assert!(stage.counted("weft_retries_total", &["reason=\"connect\""]).await > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_post_goes_elsewhere_where_the_peers_sidecar_drains() {
    let policy = traffic("product", "loadBalancer: { algorithm: roundRobin }");
    let mut stage = stage(&policy, vec![good().await, good().await]).await;
    let draining = stage.sidecars.remove(0);
    let (answered, begun) = posts_meanwhile(&stage, async { assert_eq!(draining.drain().await, 0) }).await;
    assert_eq!(begun, answered, "each came once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_put_is_replayed_while_its_streamed_body_is_small_enough_to_be_kept() {
    let stage = stage("", vec![once_unwell().await]).await;
    let answer = send(&stage, Method::PUT, streamed(15, 4096)).await;
    assert_eq!((answer.status.as_u16(), answer.text()), (200, "61440"), "all of it, once more");
    assert_eq!(stage.apps[0].begun(), 2);
    assert_eq!(stage.apps[0].asked()[0].body.len(), 61440);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_put_with_a_larger_body_goes_out_once() {
    let stage = stage("", vec![once_unwell().await]).await;
    assert_eq!(send(&stage, Method::PUT, streamed(20, 4096)).await.status, 503);
    assert_eq!(stage.apps[0].begun(), 1);
    assert_eq!(stage.apps[0].asked()[0].body.len(), 81920, "it came whole");
    assert_eq!(stage.counted("weft_retries_refused_total", &["reason=\"body\""]).await, 1);
}

/// One call of gRPC to a server that is UNAVAILABLE at first; gives the status, and how often the server was asked.
async fn grpc_call(policy: &str, script: impl Fn(Asked) -> Reply + Send + Sync + 'static) -> (String, u64) {
    let app = Scripted::start(move |asked| std::future::ready(script(asked))).await;
    let stage = stage_of("grpc", policy, vec![app]).await;
    let request = Request::post("http://product:8080/shop.v1.Product/Get")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(empty())
        .unwrap();
    let answer = Client::new(stage.caller.outbound()).call_http2(request).await;
    assert_eq!(answer.status, 200);
    let status = answer.headers.get("grpc-status").or(answer.trailers.get("grpc-status")).unwrap();
    (status.to_str().unwrap().to_owned(), stage.apps[0].begun())
}

fn unavailable_at_first(asked: Asked) -> Reply {
    Ok(if asked.turn == 0 { trailers_only(14) } else { scripted::grpc(b"good", 0) })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unavailable_of_grpc_is_tried_again_only_where_policy_names_it() {
    assert_eq!(grpc_call("", unavailable_at_first).await, ("14".to_owned(), 1), "the application saw it");
    let named = traffic("product", "retries: { grpcStatuses: [UNAVAILABLE] }");
    assert_eq!(grpc_call(&named, unavailable_at_first).await, ("0".to_owned(), 2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_grpc_call_that_began_to_answer_is_not_tried_again() {
    let named = traffic("product", "retries: { grpcStatuses: [UNAVAILABLE] }");
    let in_trailers = |_| Ok(scripted::grpc(b"half", 14));
    assert_eq!(grpc_call(&named, in_trailers).await, ("14".to_owned(), 1));
}
