//! Timeouts by policy: of a whole call, of one attempt, and of a streamed answer that stalls.

use crate::stage::{URL, stage};
use http::Request;
use http_body_util::BodyExt;
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use weft_tests::{
    ANYWHERE, Beside, Client, Mesh, PATIENCE, Scripted, empty, eventually, full,
    mesh::{calling, outside, traffic},
    scripted::{hang, text, trickle},
    soon,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_takes_longer_than_its_request_timeout_is_answered_with_504() {
    let policy = traffic("product", "timeouts: { request: 2s }");
    let stage = stage(&policy, vec![Scripted::start(|_| hang()).await]).await;
    let begun = Instant::now();
    let answer = stage.client.get(URL).await;
    assert_eq!((answer.status.as_u16(), answer.weft_error()), (504, "timeout"), "{}", answer.text());
    assert!(begun.elapsed() >= Duration::from_millis(1999), "{:?}", begun.elapsed());
    assert_eq!(stage.counted("weft_errors_total", &["kind=\"timeout\""]).await, 1);
    assert_eq!(stage.counted("weft_upstream_attempts_total", &["result=\"timeout\""]).await, 1);
    assert_eq!(stage.apps[0].begun(), 1, "a call whose time is up is not tried again");
    eventually("the application stops", PATIENCE, || async {
        (stage.apps[0].cancelled() == 1).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_attempt_that_takes_too_long_makes_room_for_another_where_policy_says_so() {
    let policy = traffic("product", "timeouts: { attempt: 1500ms }, retries: { when: [timeout] }");
    let app = Scripted::start(|asked| async move {
        if asked.turn == 0 || asked.path == "/never" { hang().await } else { Ok(text("at last")) }
    })
    .await;
    let stage = stage(&policy, vec![app]).await;
    let answer = stage.client.get(URL).await;
    assert_eq!((answer.status.as_u16(), answer.text()), (200, "at last"));
    assert_eq!(stage.apps[0].begun(), 2);
    eventually("the first one stops", PATIENCE, || async { (stage.apps[0].cancelled() == 1).then_some(()) })
        .await;
    assert_eq!(stage.counted("weft_retries_total", &["reason=\"attempt_timeout\""]).await, 1);
    assert_eq!(stage.counted("weft_errors_total", &[]).await, 0, "the caller saw nothing of it");

    let answer = stage.client.get("http://product:8080/never").await;
    assert_eq!((answer.status.as_u16(), answer.weft_error()), (504, "timeout"), "{}", answer.text());
    assert_eq!(stage.apps[0].begun(), 5, "three attempts");
    assert_eq!(stage.counted("weft_retries_total", &["reason=\"attempt_timeout\""]).await, 3);
    assert_eq!(stage.counted("weft_upstream_attempts_total", &["result=\"timeout\""]).await, 4);
    assert_eq!(stage.counted("weft_errors_total", &["kind=\"timeout\""]).await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_streamed_answer_may_trickle_and_is_broken_off_when_it_stalls() {
    let policy = traffic("product", "timeouts: { idle: 1500ms }");
    let app = Scripted::start(|asked| async move {
        Ok(trickle(20, Duration::from_millis(100), asked.path == "/stall"))
    })
    .await;
    let stage = stage(&policy, vec![app]).await;
    let answer = stage.client.get(URL).await;
    assert_eq!(answer.text(), ".".repeat(20), "longer than the timeout, and never that long without a byte");
    assert_eq!(stage.counted("weft_errors_total", &[]).await, 0);

    let request = Request::get("http://product:8080/stall").header("host", "product").body(empty()).unwrap();
    let answer = stage.client.send(request).await.unwrap();
    assert_eq!(answer.status(), 200);
    let body = soon("the end of the body", answer.into_body().collect()).await;
    assert!(body.is_err(), "a broken body must not look like a whole one");
    assert_eq!(stage.counted("weft_errors_total", &["kind=\"timeout\""]).await, 1);
    eventually("the application stops", PATIENCE, || async {
        (stage.apps[0].cancelled() == 1).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_request_timeout_holds_for_a_trickling_answer_too() {
    let policy = traffic("product", "timeouts: { request: 2s }");
    let app = Scripted::start(|_| async { Ok(trickle(usize::MAX, Duration::from_millis(50), false)) });
    let stage = stage(&policy, vec![app.await]).await;
    let request = Request::get(URL).header("host", "product").body(empty()).unwrap();
    let answer = stage.client.send(request).await.unwrap();
    assert_eq!(answer.status(), 200);
    let body = soon("the end of the body", answer.into_body().collect()).await;
    assert!(body.is_err(), "a broken body must not look like a whole one");
    assert_eq!(stage.counted("weft_errors_total", &["kind=\"timeout\""]).await, 1);
    eventually("the application stops", PATIENCE, || async {
        (stage.apps[0].cancelled() == 1).then_some(())
    })
    .await;
}

/// A listener whose queue is full: the system answers no further connect.
async fn unanswering() -> (TcpListener, Vec<TcpStream>) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(ANYWHERE).unwrap();
    let listener = socket.listen(1).unwrap();
    let mut waiting = Vec::new();
    let limit = Duration::from_millis(500);
    while let Ok(connected) =
        tokio::time::timeout(limit, TcpStream::connect(listener.local_addr().unwrap())).await
    {
        waiting.push(connected.unwrap());
        assert!(waiting.len() < 100, "the queue is never full");
    }
    (listener, waiting)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connect_that_takes_too_long_is_given_up_and_even_a_post_goes_elsewhere() {
    let (unanswering, _waiting) = unanswering().await;
    let good = Scripted::start(|_| async { Ok(text("good")) }).await;
    let policy = outside("product-0", "product", 8080, unanswering.local_addr().unwrap())
        + &outside("product-1", "product", 8080, good.address())
        + &outside("alone", "alone", 8080, unanswering.local_addr().unwrap())
        + &calling("caller")
        + &traffic("alone", "timeouts: { connect: 1s }, retries: { attempts: 0 }")
        + &traffic(
            "product",
            // What never left repeats no work, and so asks neither attempts nor budget.
            "timeouts: { connect: 1s }, loadBalancer: { algorithm: roundRobin },
             retries: { attempts: 0, budget: { percent: 0, minPerSecond: 0 } }",
        );
    let mesh = Mesh::start(&policy).await;
    let caller = mesh.sidecar(Beside::new("caller")).await;
    let client = Client::new(caller.outbound());
    let answer = client.get("http://alone:8080/").await;
    assert_eq!((answer.status.as_u16(), answer.weft_error()), (504, "connect_timeout"), "{}", answer.text());
    for _ in 0..4 {
        let request = Request::post(URL).body(full("charge the card")).unwrap();
        assert_eq!(client.call(request).await.text(), "good");
    }
    assert_eq!(good.begun(), 4, "each came once");
    let metrics = caller.metrics().await;
    assert!(metrics.sum("weft_retries_total", &["reason=\"connect\""]) >= 1.0, "{}", metrics.0);
}
