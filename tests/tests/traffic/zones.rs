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
        "healthCheck: { http: { path: /health }, interval: 100ms, timeout: 90ms, unhealthyThreshold: 1 }";
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_own_zone_goes_first_and_the_other_takes_over_when_its_endpoints_go() {
    let mut stage = zones("{ prefer: zone }", &Arc::default()).await;
    assert_eq!(taken(&stage, 60).await.keys().collect::<Vec<_>>(), ["a1", "a2"]);
    stage.end("a1", "product", 3).await;
    assert_eq!(taken(&stage, 20).await.keys().collect::<Vec<_>>(), ["a2"]);
    stage.end("a2", "product", 2).await;
    assert_eq!(taken(&stage, 60).await.keys().collect::<Vec<_>>(), ["b1", "b2"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_part_of_the_calls_leaves_a_zone_that_is_half_unwell() {
    let unwell = Arc::new(AtomicBool::new(false));
    let stage = zones("{ overflowPercent: 100 }", &unwell).await;
    assert_eq!(taken(&stage, 40).await.keys().collect::<Vec<_>>(), ["a1", "a2"]);
    unwell.store(true, SeqCst);
    eventually("the endpoint that is not well gets no calls", PATIENCE, || async {
        let taken = taken(&stage, 20).await;
        (!taken.contains_key("a1") && taken.contains_key("b1")).then_some(())
    })
    .await;
    let after = taken(&stage, 200).await;
    // Binomial with n = 200: five standard deviations.
    assert!((65..=135).contains(&after["a2"]), "half of the zone takes half of the calls: {after:?}");
    assert!(!after.contains_key("a1") && after["b1"] > 20 && after["b2"] > 20, "{after:?}");
    unwell.store(false, SeqCst);
    eventually("the zone is whole again", PATIENCE, || async {
        let taken = taken(&stage, 20).await;
        (taken.keys().collect::<Vec<_>>() == ["a1", "a2"]).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_preference_all_zones_are_equal() {
    let stage = zones("{ prefer: none }", &Arc::default()).await;
    assert_eq!(taken(&stage, 60).await.len(), 4);
}
