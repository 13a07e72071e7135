//! Breakers and limits: what fails is left alone for a while, and what is full says so at once.

use crate::stage::{Gate, Stage, URL, stage, stage_of};
use futures_util::future::join_all;
use http::Request;
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};
use weft_tests::{
    Answer, Beside, Client, Mesh, PATIENCE, Scripted, empty, eventually,
    mesh::{calling, outside, traffic},
    scripted::{self, hang, status, text},
};

/// An application that is unwell until somebody says otherwise, and then answers those whom the gate lets go.
async fn unwell() -> (Scripted, Arc<AtomicBool>, Gate) {
    let (well, gate) = (Arc::new(AtomicBool::new(false)), Gate::closed());
    let (asks, waits) = (well.clone(), gate.clone());
    let app = Scripted::start(move |_| {
        let (well, gate) = (asks.load(Relaxed), waits.clone());
        async move { if well { gate.pass().await } else { Ok(status(500)) } }
    });
    (app.await, well, gate)
}

fn is_refused(answer: &Answer) -> bool {
    answer.weft_error() == "breaker_open"
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_breaker_opens_refuses_at_once_probes_one_at_a_time_and_closes_again() {
    let policy = traffic(
        "product",
        "retries: { attempts: 0 },
         circuitBreaker: { scope: service, errorPercent: 50, minRequests: 10, openFor: 3s, probes: 2 }",
    );
    let (app, well, gate) = unwell().await;
    let stage = stage(&policy, vec![app]).await;
    let app = &stage.apps[0];
    let state = || async { stage.caller.admin("/clusters").await[0]["breaker"].clone() };
    for _ in 0..10 {
        let answer = stage.client.get(URL).await;
        assert_eq!((answer.status.as_u16(), answer.weft_error()), (500, ""));
    }
    let opened = Instant::now();
    assert_eq!(stage.counted("weft_breaker_transitions_total", &["to=\"open\""]).await, 1);

    let shown = state().await;
    let refused = join_all((0..10).map(|_| stage.client.get(URL))).await;
    if opened.elapsed() < Duration::from_secs(3) {
        assert_eq!(shown, "open");
        for answer in &refused {
            assert_eq!((answer.status.as_u16(), answer.weft_error()), (503, "breaker_open"));
            let again: u64 = answer.header("retry-after").parse().unwrap();
            assert!((1..=3).contains(&again), "{again}");
            assert!(answer.text().contains("circuit breaker"), "{}", answer.text());
        }
        assert_eq!(app.begun(), 10, "none of them reached the application");
        assert_eq!(stage.counted("weft_errors_total", &["kind=\"breaker_open\""]).await, 10);
    }

    well.store(true, Relaxed);
    tokio::time::sleep(Duration::from_millis(3100).saturating_sub(opened.elapsed())).await;
    for probe in 1..=2 {
        let begun = app.begun();
        let answers = gate.calls(&stage.client, 8, 1).await;
        let refused = answers.iter().take_while(|answer| is_refused(answer)).count();
        assert_eq!((refused, answers[7].text()), (7, "good"), "probe {probe}");
        assert_eq!(app.begun(), begun + 1);
    }
    assert_eq!(state().await, "closed");
    assert_eq!(stage.counted("weft_breaker_transitions_total", &["to=\"half_open\""]).await, 1);
    assert_eq!(stage.counted("weft_breaker_transitions_total", &["to=\"closed\""]).await, 1);
    let answers = gate.calls(&stage.client, 8, 8).await;
    assert!(answers.iter().all(|answer| answer.status == 200));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_breaker_of_endpoints_leaves_out_the_bad_one_and_the_good_one_serves_on() {
    let policy = traffic(
        "product",
        "outlierEjection: { consecutiveGatewayErrors: 0 }, loadBalancer: { algorithm: roundRobin },
         circuitBreaker: { scope: endpoint, consecutiveFailures: 3, openFor: 60s, maxOpenFor: 60s }",
    );
    let apps = vec![
        Scripted::start(|_| async { Ok(status(503)) }).await,
        Scripted::start(|_| async { Ok(text("good")) }).await,
    ];
    let stage = stage(&policy, apps).await;
    for _ in 0..60 {
        assert_eq!(stage.client.get(URL).await.text(), "good");
    }
    assert_eq!(stage.apps[0].begun(), 3);
    let endpoints = stage.endpoints().await;
    assert_eq!((&endpoints[0]["breaker"], &endpoints[0]["state"]), (&"open".into(), &"breaker_open".into()));
    assert_eq!(endpoints[1]["state"], "in");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn statuses_of_grpc_open_a_breaker_wherever_they_stand() {
    let policy = traffic(
        "product",
        "circuitBreaker: { scope: service, consecutiveFailures: 4, openFor: 60s, maxOpenFor: 60s }",
    );
    // In trailers after a message, and in a head of its own.
    let app = Scripted::start(|asked| async move {
        Ok(if asked.turn % 2 == 0 { scripted::grpc(b"half", 14) } else { scripted::trailers_only(13) })
    });
    let stage = stage_of("grpc", &policy, vec![app.await]).await;
    let call = || {
        let request = Request::post("http://product:8080/shop.v1.Product/Get")
            .header("content-type", "application/grpc")
            .body(empty());
        stage.client.call_http2(request.unwrap())
    };
    for turn in 0..4 {
        let answer = call().await;
        assert_eq!(answer.weft_error(), "", "call {turn}");
    }
    let answer = call().await;
    assert_eq!((answer.status.as_u16(), answer.header("grpc-status")), (200, "14"), "trailers only");
    assert!(is_refused(&answer), "{:?}", answer.headers);
    assert_eq!(stage.apps[0].begun(), 4);
}

/// So many GETs at once, of which all but `room` have to be refused for want of room while none of these is answered.
async fn at_once(gate: &Gate, client: &Client, calls: usize, room: usize) {
    let answers = gate.calls(client, calls, room).await;
    let (full, good) = answers.split_at(calls - room);
    let is_full = |answer: &Answer| (answer.status.as_u16(), answer.weft_error()) == (503, "overloaded");
    assert!(full.iter().all(is_full) && good.iter().all(|answer| answer.status == 200), "{answers:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_requests_in_flight_than_policy_allows_fail_at_once() {
    let policy = traffic("product", "connections: { maxRequests: 3 }");
    let gate = Gate::closed();
    let stage = stage(&policy, vec![gate.app().await]).await;
    at_once(&gate, &stage.client, 8, 3).await;
    assert_eq!(stage.apps[0].begun(), 3);
    assert_eq!(stage.counted("weft_errors_total", &["kind=\"overloaded\""]).await, 5);
    // There is room again.
    at_once(&gate, &stage.client, 3, 3).await;
}

/// Without a sidecar at the other end, where a connection is one request's alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_requests_wait_for_a_connection_than_policy_allows_and_the_rest_fails_at_once() {
    let gate = Gate::closed();
    let app = gate.app().await;
    let policy = outside("product", "product", 8080, app.address())
        + &calling("caller")
        + &traffic(
            "product",
            "connections: { max: 1, maxPending: 1 }, retries: { attempts: 0 }, timeouts: { connect: 9s }",
        );
    let mesh = Mesh::start(&policy).await;
    let caller = mesh.sidecar(Beside::new("caller")).await;
    let client = Client::new(caller.outbound());
    // One is served, one waits.
    at_once(&gate, &client, 5, 2).await;
    assert_eq!(app.begun(), 2);
    assert_eq!(caller.metrics().await.sum("weft_pending_overflow_total", &[]), 3.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_retries_in_flight_than_policy_allows_are_not_made() {
    let gate = Gate::closed();
    let waits = gate.clone();
    let app = Scripted::start(move |asked| {
        let gate = waits.clone();
        // A first attempt fails at once, and another one waits.
        async move { if asked.header("weft-attempt").is_empty() { Ok(status(503)) } else { gate.pass().await } }
    });
    let policy = traffic("product", "connections: { maxRetries: 2 }");
    let stage = stage(&policy, vec![app.await]).await;
    let answers = gate.calls(&stage.client, 6, 2).await;
    let (failed, good) = answers.split_at(4);
    assert!(failed.iter().all(|answer| answer.status == 503), "{answers:?}");
    assert!(good.iter().all(|answer| answer.status == 200), "{answers:?}");
    assert_eq!(stage.apps[0].begun(), 8);
    assert_eq!(stage.counted("weft_retries_refused_total", &["reason=\"limit\""]).await, 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_that_goes_away_gives_its_place_back() {
    let policy = traffic("product", "connections: { maxRequests: 1 }");
    let app =
        Scripted::start(|asked| async move { if asked.turn == 0 { hang().await } else { Ok(text("good")) } });
    let stage: Stage = stage(&policy, vec![app.await]).await;
    let proxy = stage.caller.outbound();
    let hanging = tokio::spawn(async move { Client::new(proxy).get(URL).await });
    eventually("it hangs", PATIENCE, || async { (stage.apps[0].under_way() == 1).then_some(()) }).await;
    assert_eq!(stage.client.get(URL).await.weft_error(), "overloaded");
    hanging.abort();
    eventually("there is room again", PATIENCE, || async {
        (stage.client.get(URL).await.status == 200).then_some(())
    })
    .await;
}
