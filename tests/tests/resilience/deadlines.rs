//! Deadlines: whoever nobody waits for any more stops working, however deep in the chain.

use crate::stage::{Chain, assemble, chain, linked, stage};
use http::Request;
use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};
use weft_tests::{
    Client, PATIENCE, Scripted, empty, eventually,
    mesh::traffic,
    scripted::{Onward, Spoken, hang, status, text, trailers_only},
    soon,
};

/// Longer than anything takes here, and shorter than the 15 seconds that what hangs would hang.
const BOUND: Duration = Duration::from_secs(12);
/// The time that a client gives its call: enough for it to reach the last of the services, however busy the machine is.
const GIVEN: (&str, Duration) = ("2500", Duration::from_millis(2500));

/// Waits until nothing is under way anywhere, neither at an application nor at a sidecar.
async fn at_rest(chain: &Chain, limit: Duration) {
    eventually("nothing works on", limit, || async {
        let apps: u64 = chain.hops.iter().map(|hop| hop.app.under_way()).sum();
        let mut sidecars = chain.client.in_flight().await;
        for hop in &chain.hops {
            sidecars += hop.sidecar.in_flight().await;
        }
        (apps + sidecars == 0).then_some(())
    })
    .await;
}

/// The client gives up after 300 ms while the last of five services hangs.
async fn five_hops_stop_when_the_client_quits(spoken: Spoken) {
    let chain = chain(&["a", "b", "c", "d", "e"], spoken, "", |_| hang()).await;
    let begun = Instant::now();
    let client = Client::new(chain.client.outbound());
    let request = Request::get("http://a:8080/").header("host", "a:8080").body(empty()).unwrap();
    // Outlives the call: over HTTP/2 only the stream is reset.
    let mut connection = client.http2().await.unwrap();
    let call = tokio::spawn(async move {
        match spoken {
            Spoken::Http1 => drop(client.try_call(request).await),
            _ => drop(connection.send_request(request).await),
        }
        connection
    });
    let last = &chain.hops[4].app;
    eventually("the last one works", PATIENCE, || async { (last.under_way() == 1).then_some(()) }).await;
    tokio::time::sleep(Duration::from_millis(300).saturating_sub(begun.elapsed())).await;
    assert!(!call.is_finished(), "the client still waits");
    call.abort();

    at_rest(&chain, BOUND).await;
    for hop in &chain.hops {
        assert_eq!((hop.app.begun(), hop.app.ended(), hop.app.cancelled()), (1, 0, 1), "{spoken:?}");
        let metrics = eventually("it is counted as gone", PATIENCE, || async {
            let metrics = hop.sidecar.metrics().await;
            let gone = ["direction=\"inbound\"", "status=\"499\""];
            (metrics.sum("weft_requests_total", &gone) == 1.0).then_some(metrics)
        })
        .await;
        assert_eq!(metrics.sum("weft_retries_total", &[]), 0.0, "nobody tries again for nobody");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_hops_stop_working_when_the_client_closes_its_connection() {
    five_hops_stop_when_the_client_quits(Spoken::Http1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_hops_stop_working_when_the_client_resets_its_stream() {
    five_hops_stop_when_the_client_quits(Spoken::Http2).await;
}

/// So many at once that their requests share connections between the sidecars.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_callers_that_go_away_at_once_leave_nothing_behind() {
    const CALLS: u64 = 40;
    let chain = chain(&["a", "b", "c"], Spoken::Http1, "", |_| hang()).await;
    let proxy = chain.client.outbound();
    let calls: Vec<_> = (0..CALLS)
        .map(|_| tokio::spawn(async move { Client::new(proxy).get("http://a:8080/").await }))
        .collect();
    let last = &chain.hops[2].app;
    eventually("all of them wait", PATIENCE, || async { (last.under_way() == CALLS).then_some(()) }).await;
    let metrics = chain.client.metrics().await;
    assert!(metrics.sum("weft_upstream_connections", &["protocol=\"http1over2\""]) > 0.0, "{}", metrics.0);
    calls.iter().for_each(|call| call.abort());
    at_rest(&chain, BOUND).await;
    for hop in &chain.hops {
        assert_eq!((hop.app.begun(), hop.app.ended(), hop.app.cancelled()), (CALLS, 0, CALLS));
    }
}

/// Applications that care for nobody: what they have begun they go on with, though the one who asked has gone. All that
/// they copy is `traceparent`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_of_applications_that_know_no_time_end_with_the_time_of_the_request_they_are_made_for() {
    const HOPS: [&str; 3] = ["a", "b", "c"];
    let told = Arc::new(Mutex::new(Vec::new()));
    let mut apps = Vec::new();
    for next in ["http://b:8080/", "http://c:8080/"] {
        let told = told.clone();
        apps.push(
            linked(move |asked, onward| {
                let told = told.clone();
                async move {
                    let own = tokio::spawn(async move {
                        let answer = onward.call(&asked, next, Spoken::Http1).await?;
                        told.lock().unwrap().push((answer.status.as_u16(), answer.weft_error().to_owned()));
                        Ok(status(answer.status.as_u16()))
                    });
                    own.await?
                }
            })
            .await,
        );
    }
    apps.push((Scripted::start(|_| hang()).await, Onward::default()));
    let chain = assemble(&HOPS, Spoken::Http1, "", apps).await;
    let client = Client::new(chain.client.outbound());
    let begun = Instant::now();
    let answer = client.get_with("http://a:8080/", &[("x-envoy-upstream-rq-timeout-ms", GIVEN.0)]).await;
    assert_eq!((answer.status.as_u16(), answer.weft_error()), (504, "timeout"), "{}", answer.text());
    at_rest(&chain, BOUND).await;
    eventually("both were told", BOUND, || async { (told.lock().unwrap().len() == 2).then_some(()) }).await;
    // The mesh's own limit is 15 seconds.
    assert!(begun.elapsed() < BOUND, "{:?}", begun.elapsed());
    assert!(begun.elapsed() >= GIVEN.1 - Duration::from_millis(1), "{:?}", begun.elapsed());
    assert_eq!(*told.lock().unwrap(), vec![(504, "timeout".to_owned()); 2]);
    assert_eq!(chain.hops.last().unwrap().app.cancelled(), 1);
}

/// Each hop works 30 ms before it calls the next; gives the last of these fields that each was told.
async fn told_hop_by_hop(
    spoken: Spoken,
    field: &'static str,
    headers: &[(&'static str, &str)],
) -> Vec<String> {
    const HOPS: [&str; 3] = ["a", "b", "c"];
    let mut apps = Vec::new();
    for next in ["http://b:8080/", "http://c:8080/"] {
        apps.push(
            linked(move |asked, onward| async move {
                tokio::time::sleep(Duration::from_millis(30)).await;
                onward.pass_on(&asked, next, spoken).await
            })
            .await,
        );
    }
    let last = Scripted::start(move |_| async move {
        Ok(if spoken == Spoken::Grpc { trailers_only(0) } else { text("in time") })
    });
    apps.push((last.await, Onward::default()));
    let chain = assemble(&HOPS, spoken, "", apps).await;
    let client = Client::new(chain.client.outbound());
    let mut request = Request::post("http://a:8080/");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(empty()).unwrap();
    let answer = match spoken {
        Spoken::Http1 => client.call(request).await,
        _ => client.call_http2(request).await,
    };
    assert_eq!(answer.status, 200, "{}", answer.text());
    chain.hops.iter().map(|hop| hop.app.asked()[0].header(field).to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_hop_is_told_that_less_time_is_left() {
    let given = [("x-envoy-upstream-rq-timeout-ms", "9000")];
    let told = told_hop_by_hop(Spoken::Http1, "weft-timeout-ms", &given).await;
    let left: Vec<u64> = told.iter().map(|text| text.parse().unwrap()).collect();
    assert!(left[0] <= 9000 && left[1] + 30 <= left[0] && left[2] + 30 <= left[1], "{left:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grpc_servers_are_told_that_less_time_is_left() {
    let given = [("content-type", "application/grpc"), ("te", "trailers"), ("grpc-timeout", "9S")];
    let told = told_hop_by_hop(Spoken::Grpc, "grpc-timeout", &given).await;
    let left: Vec<u64> = told.iter().map(|text| text.strip_suffix('u').unwrap().parse().unwrap()).collect();
    assert!(left[0] <= 9_000_000 && left[1] + 30_000 <= left[0] && left[2] + 30_000 <= left[1], "{left:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_that_gives_time_in_envoys_words_is_obeyed_unless_policy_says_otherwise() {
    let stage = stage("", vec![Scripted::start(|_| hang()).await]).await;
    let (expected, begun) = ([("x-envoy-expected-rq-timeout-ms", GIVEN.0)], Instant::now());
    let answer = stage.client.get_with("http://product:8080/", &expected).await;
    assert_eq!((answer.status.as_u16(), answer.weft_error()), (504, "timeout"), "{}", answer.text());
    assert!(begun.elapsed() < BOUND, "{:?}", begun.elapsed());
    let app = &stage.apps[0];
    eventually("the application stops", BOUND, || async { (app.cancelled() == 1).then_some(()) }).await;

    stage.mesh.write("deaf.yaml", &traffic("product", "timeouts: { deadlines: false, request: 4s }"));
    eventually("policy that does not listen", PATIENCE, || async {
        let begun = Instant::now();
        let answer = soon("an answer", stage.client.get_with("http://product:8080/", &expected)).await;
        assert_eq!(answer.status, 504);
        let told = app.asked().last().unwrap().header("weft-timeout-ms").to_owned();
        // It gives all of its own time, and does not tell.
        (begun.elapsed() >= Duration::from_millis(3990) && told.is_empty()).then_some(())
    })
    .await;
}
