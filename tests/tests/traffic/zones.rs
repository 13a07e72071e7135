//! Calls stay in the caller's zone while it can take them.

use crate::URL;
use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
};
use weft_tests::{
    Backend, PATIENCE, eventually, full,
    mesh::calling,
    stage::{Instance, Stage, traffic_policy},
};

/// A caller in zone `a`, two endpoints there and two in zone `b`. `a1` is not well once `unwell` is set.
async fn zones(locality: &str, unwell: &Arc<AtomicBool>) -> Stage {
    let caller =
        calling("caller").replace("{ serviceAccount: caller }", "{ serviceAccount: caller, zone: a }");
    let is_unwell = unwell.clone();
    let sick = Backend::http(move |request| {
        let failing = request.uri().path() == "/health" && is_unwell.load(SeqCst);
        async move { Ok(http::Response::builder().status(if failing { 500 } else { 200 }).body(full("a1"))?) }
    });
    let mut instances = vec![Instance::new("a1", sick.await).of("product").zone("a")];
    for (name, zone) in [("a2", "a"), ("b1", "b"), ("b2", "b")] {
        instances.push(Instance::new(name, Backend::text(name).await).of("product").zone(zone));
    }
    let balancer = format!("loadBalancer: {{ algorithm: roundRobin, locality: {locality} }}");
    let check =
        "healthCheck: { http: { path: /health }, interval: 300ms, timeout: 300ms, unhealthyThreshold: 2 }";
    let policy = traffic_policy("zones", "{ kind: Service, name: product }", &[&balancer, check]);
    Stage::set_for(&caller, &policy, instances).await
}

async fn taken(stage: &Stage, count: u32) -> BTreeMap<String, u32> {
    let mut taken = BTreeMap::new();
    for _ in 0..count {
        let answer = stage.client.get(URL).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        *taken.entry(answer.text().to_owned()).or_default() += 1;
    }
    taken
}

/// Waits until so many calls in a row are taken by these and nobody else. A busy machine may answer health checks late.
async fn taken_by(stage: &Stage, count: u32, who: &[&str]) {
    eventually(&format!("{count} calls to {who:?} alone"), PATIENCE, || async {
        (taken(stage, count).await.keys().collect::<Vec<_>>() == who).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_own_zone_goes_first_and_the_other_takes_over_when_its_endpoints_go() {
    let mut stage = zones("{ prefer: zone }", &Arc::default()).await;
    taken_by(&stage, 60, &["a1", "a2"]).await;
    stage.end("a1", "product", 3).await;
    taken_by(&stage, 20, &["a2"]).await;
    stage.end("a2", "product", 2).await;
    taken_by(&stage, 60, &["b1", "b2"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_part_of_the_calls_leaves_a_zone_that_is_half_unwell() {
    let unwell = Arc::new(AtomicBool::new(false));
    let stage = zones("{ overflowPercent: 100 }", &unwell).await;
    taken_by(&stage, 40, &["a1", "a2"]).await;
    unwell.store(true, SeqCst);
    eventually("the endpoint that is not well gets no calls", PATIENCE, || async {
        let taken = taken(&stage, 20).await;
        (!taken.contains_key("a1") && taken.contains_key("b1")).then_some(())
    })
    .await;
    eventually("half of the zone takes half of the calls", PATIENCE, || async {
        let after = taken(&stage, 200).await;
        let by = |name: &str| after.get(name).copied().unwrap_or_default();
        // Binomial with n = 200: five standard deviations.
        let half = (65..=135).contains(&by("a2")) && by("b1") > 20 && by("b2") > 20;
        (half && by("a1") == 0).then_some(())
    })
    .await;
    unwell.store(false, SeqCst);
    taken_by(&stage, 20, &["a1", "a2"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_preference_all_zones_are_equal() {
    let stage = zones("{ prefer: none }", &Arc::default()).await;
    assert_eq!(taken(&stage, 60).await.len(), 4);
}
