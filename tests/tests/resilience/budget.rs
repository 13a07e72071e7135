//! Outages: retries must not become the load that keeps a service down, neither in one place nor along a chain.

use crate::stage::{ALONE, URL, assemble, chain, linked, stage};
use futures_util::{StreamExt, stream};
use http::Request;
use std::time::{Duration, Instant};
use weft_tests::{
    Client, Load, PATIENCE, Scripted, empty, eventually,
    mesh::traffic,
    scripted::{Onward, Spoken, status, trailers_only},
};

/// The most attempts that the default budget lets so many calls make: a fifth more, or three more for each second, of
/// which ten count at once.
fn most(calls: u64, took: Duration) -> u64 {
    calls + calls / 5 + 3 * (10 + took.as_secs() + 1)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_a_full_outage_an_upstream_gets_a_fifth_more_calls_and_not_three_times_as_many() {
    let _alone = ALONE.lock().await;
    let stage = stage("", vec![Scripted::start(|_| async { Ok(status(503)) }).await]).await;
    let begun = Instant::now();
    let load = Load::start_with(stage.caller.outbound(), URL, 250, 16);
    eventually("an outage under load", PATIENCE * 2, || async { (load.seen().failed >= 600).then_some(()) })
        .await;
    let seen = load.stop().await;
    assert_eq!(seen.ok, 0);
    let (calls, attempts) = (seen.failed, stage.apps[0].begun());
    assert!(attempts > calls, "some were tried again");
    let most = most(calls, begun.elapsed());
    assert!(attempts <= most, "{calls} calls made {attempts} attempts, more than {most}");
    assert_eq!(stage.counted("weft_retries_total", &[]).await, attempts - calls);
    assert!(stage.counted("weft_retries_refused_total", &["reason=\"budget\""]).await > 0);
}

const HOPS: [&str; 4] = ["a", "b", "c", "d"];
const UNLIMITED: &str = ", budget: { percent: 100, minPerSecond: 10000 }";

/// Each of the services is worth three attempts to its caller.
fn three_tries(more: &str) -> String {
    HOPS.map(|name| traffic(name, &format!("retries: {{ attempts: 2{more} }}"))).concat()
}

/// Four services in a row, the last of which always fails, and each of which is worth three attempts to its caller.
/// Gives how many requests came to each.
async fn failing_chain(more: &str, calls: u64) -> Vec<u64> {
    let chain = chain(&HOPS, Spoken::Http1, &three_tries(more), |_| async { Ok(status(503)) }).await;
    let client = Client::new(chain.client.outbound());
    let calling = stream::iter(0..calls).map(|_| client.get("http://a:8080/")).buffer_unordered(8);
    let failed = calling.filter(|answer| std::future::ready(answer.status == 503)).count().await;
    assert_eq!(failed as u64, calls);
    chain.hops.iter().map(|hop| hop.app.begun()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_tries_at_each_of_four_hops_cost_a_fifth_more_and_not_eighty_times_as_much() {
    let (calls, begun) = (300, Instant::now());
    let came = failing_chain("", calls).await;
    let most = most(calls, begun.elapsed());
    for (hop, came) in came.iter().enumerate() {
        assert!((calls..=most).contains(came), "{came} requests came to hop {hop} for {calls} calls");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_budget_only_the_hop_next_to_the_failure_tries_again() {
    assert_eq!(failing_chain(UNLIMITED, 40).await, [40, 40, 40, 120]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_budget_only_the_hop_next_to_the_failure_tries_again_over_grpc_too() {
    let policy = three_tries(&format!(", grpcStatuses: [UNAVAILABLE]{UNLIMITED}"));
    let chain = chain(&HOPS, Spoken::Grpc, &policy, |_| async { Ok(trailers_only(14)) }).await;
    let client = Client::new(chain.client.outbound());
    for _ in 0..10 {
        let request = Request::post("http://a:8080/shop.v1.A/Get")
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(empty())
            .unwrap();
        let answer = client.call_http2(request).await;
        assert_eq!(answer.header("grpc-status"), "14", "{:?}", answer.headers);
    }
    let came: Vec<u64> = chain.hops.iter().map(|hop| hop.app.begun()).collect();
    assert_eq!(came, [10, 10, 10, 30]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_application_that_fails_without_telling_why_makes_no_tries_multiply() {
    let unlimited = "retries: { attempts: 2, budget: { percent: 100, minPerSecond: 10000 } }";
    let policy = ["a", "b"].map(|name| traffic(name, unlimited)).concat();
    // It calls, and then fails for a reason of its own, which says nothing about the call.
    let own_fault = linked(|asked, onward| async move {
        let answer = onward.call(&asked, "http://b:8080/", Spoken::Http1).await?;
        assert_eq!(answer.status, 503);
        Ok(status(502))
    });
    let failing = Scripted::start(|_| async { Ok(status(503)) });
    let apps = vec![own_fault.await, (failing.await, Onward::default())];
    let chain = assemble(&["a", "b"], Spoken::Http1, &policy, apps).await;
    let answer = Client::new(chain.client.outbound()).get("http://a:8080/").await;
    assert_eq!(answer.status, 502);
    let came: Vec<u64> = chain.hops.iter().map(|hop| hop.app.begun()).collect();
    assert_eq!(came, [1, 3], "what was tried again below is not tried again above");
}
