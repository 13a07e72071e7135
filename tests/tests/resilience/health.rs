//! Endpoints that do worse than the others, by what their calls tell and by what they say when asked.

use crate::stage::{Stage, URL, stage, stage_of};
use futures_util::future::join_all;
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};
use weft_tests::{
    Beside, Client, Mesh, PATIENCE, Scripted, eventually,
    mesh::{calling, outside, traffic},
    scripted::{grpc, status, text},
};

/// An application whose health is switched, with good health to begin with.
async fn moody(text: &'static str) -> (Scripted, Arc<AtomicBool>) {
    let well = Arc::new(AtomicBool::new(true));
    let asks = well.clone();
    let app = Scripted::start(move |_| {
        let reply = if asks.load(Relaxed) { self::text(text) } else { status(503) };
        async { Ok(reply) }
    });
    (app.await, well)
}

/// A stage with one replica whose health is switched, among good ones.
async fn moody_among(good: usize, policy: &str) -> (Stage, Arc<AtomicBool>) {
    let (app, well) = moody("moody").await;
    let mut apps = vec![app];
    for _ in 0..good {
        apps.push(Scripted::start(|_| async { Ok(text("good")) }).await);
    }
    (stage(policy, apps).await, well)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_fails_five_times_in_a_row_is_left_out_though_policy_says_nothing_of_it() {
    let policy = traffic("product", "loadBalancer: { algorithm: random }");
    let (stage, well) = moody_among(2, &policy).await;
    well.store(false, Relaxed);
    for _ in 0..200 {
        assert_eq!(stage.client.get(URL).await.text(), "good", "the caller sees nothing of it");
    }
    assert_eq!(stage.apps[0].begun(), 5);
    assert_eq!(stage.counted("weft_ejections_total", &["reason=\"gateway_errors\""]).await, 1);
    assert_eq!(stage.endpoints().await[0]["state"], "ejected");
    eventually("the gauge says so", PATIENCE, || async {
        (stage.counted("weft_ejected_endpoints", &[]).await == 1).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_was_left_out_comes_back_slowly() {
    let policy = traffic(
        "product",
        "outlierEjection: { ejectionTime: 1s }, loadBalancer: { algorithm: random, slowStart: 60s }",
    );
    let (stage, well) = moody_among(1, &policy).await;
    well.store(false, Relaxed);
    eventually("it is left out", PATIENCE, || async {
        assert_eq!(stage.client.get(URL).await.text(), "good");
        (stage.endpoints().await[0]["state"] == "ejected").then_some(())
    })
    .await;
    well.store(true, Relaxed);
    eventually("it comes back", PATIENCE, || async {
        (stage.client.get(URL).await.text() == "moody").then_some(())
    })
    .await;
    let before = stage.apps[0].begun();
    for _ in 0..300 {
        assert_eq!(stage.client.get(URL).await.status, 200);
    }
    // A tenth at first, beside one with all of its weight.
    let share = stage.apps[0].begun() - before;
    assert!((1..=100).contains(&share), "{share} of 300 calls");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_replica_is_never_left_out() {
    let policy = traffic("product", "retries: { attempts: 0 }");
    let (stage, well) = moody_among(0, &policy).await;
    well.store(false, Relaxed);
    for _ in 0..20 {
        let answer = stage.client.get(URL).await;
        assert_eq!((answer.status.as_u16(), answer.weft_error()), (503, ""));
    }
    assert_eq!(stage.apps[0].begun(), 20);
    well.store(true, Relaxed);
    assert_eq!(stage.client.get(URL).await.text(), "moody");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_too_few_are_left_all_are_called_again() {
    let panics_below = |percent: u8| {
        traffic(
            "product",
            &format!(
                "loadBalancer: {{ algorithm: roundRobin }},
                 outlierEjection: {{ maxEjectedPercent: 100, panicPercent: {percent} }}"
            ),
        )
    };
    let apps = vec![
        Scripted::start(|_| async { Ok(status(503)) }).await,
        Scripted::start(|_| async { Ok(status(503)) }).await,
        Scripted::start(|_| async { Ok(text("good")) }).await,
    ];
    let stage = stage("", apps).await;
    stage.mesh.write("panic.yaml", &panics_below(10));
    eventually("both are left out", PATIENCE, || async {
        stage.client.get(URL).await;
        let endpoints = stage.endpoints().await;
        endpoints[..2].iter().all(|endpoint| endpoint["state"] == "ejected").then_some(())
    })
    .await;
    let bad = || stage.apps[0].begun() + stage.apps[1].begun();
    let before = bad();
    for _ in 0..20 {
        assert_eq!(stage.client.get(URL).await.text(), "good");
    }
    assert_eq!(bad(), before, "a third of the replicas is enough");
    stage.mesh.write("panic.yaml", &panics_below(50));
    eventually("all are called again", PATIENCE, || async {
        stage.client.get(URL).await;
        (bad() > before + 5).then_some(())
    })
    .await;
    assert_eq!(stage.endpoints().await[0]["state"], "ejected", "a change of policy forgets nothing");
}

/// Waits until the first of three replicas is left out for what its calls tell, and for this reason.
async fn is_left_out(bad: Scripted, ejection: &str, reason: &str) {
    let policy = traffic(
        "product",
        &format!("loadBalancer: {{ algorithm: random }}, outlierEjection: {{ {ejection}, interval: 500ms }}"),
    );
    let good = || Scripted::start(|_| async { Ok(text("good")) });
    let stage = stage(&policy, vec![bad, good().await, good().await]).await;
    eventually("it is left out", PATIENCE, || async {
        join_all((0..12).map(|_| stage.client.get(URL))).await;
        (stage.endpoints().await[0]["state"] == "ejected").then_some(())
    })
    .await;
    // On a busy machine another one may be slow for a while as well; all are left out for that reason and no other.
    let ejections = stage.counted("weft_ejections_total", &[]).await;
    assert!(ejections == 1 || reason == "latency", "{ejections}");
    assert_eq!(stage.counted("weft_ejections_total", &[&format!("reason=\"{reason}\"")]).await, ejections);
    stage.client.settles_on(URL, "good", 20).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_policy_says_so_a_replica_is_left_out_for_any_5xx_in_a_row() {
    let bad = Scripted::start(|_| async { Ok(status(500)) });
    is_left_out(bad.await, "consecutiveServerErrors: 4", "server_errors").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_policy_says_so_a_replica_is_left_out_for_failing_more_often_than_the_others() {
    let bad =
        Scripted::start(
            |asked| async move { Ok(if asked.turn % 3 == 0 { text("good") } else { status(500) }) },
        );
    let compared = "successRate: { deviations: 1, minRequests: 10, minEndpoints: 3 }";
    is_left_out(bad.await, compared, "success_rate").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_policy_says_so_a_replica_is_left_out_for_being_slower_than_the_others() {
    let bad = Scripted::start(|_| async {
        tokio::time::sleep(Duration::from_millis(400)).await;
        Ok(text("at last"))
    });
    is_left_out(bad.await, "latency: { timesMedian: 3, minRequests: 10 }", "latency").await;
}

/// Quick checks that leave all judging to themselves.
fn checked(by: &str) -> String {
    traffic(
        "product",
        &format!(
            "outlierEjection: {{ consecutiveGatewayErrors: 0 }}, loadBalancer: {{ algorithm: roundRobin }},
             healthCheck: {{ {by}, interval: 300ms, timeout: 300ms, unhealthyThreshold: 2 }}"
        ),
    )
}

/// Two replicas of which the first falls ill by what it says, and gets well again.
async fn leaves_and_returns(stage: &Stage, calls_at_first: impl Fn() -> u64, well: &AtomicBool) {
    let url = "http://product:8080/work";
    let both = || async {
        eventually("both are called", PATIENCE, || async {
            let before = calls_at_first();
            for _ in 0..6 {
                assert_eq!(stage.client.get(url).await.status, 200);
            }
            (calls_at_first() > before).then_some(())
        })
        .await;
    };
    both().await;
    well.store(false, Relaxed);
    eventually("it is known to be ill", PATIENCE, || async {
        (stage.endpoints().await[0]["state"] == "unhealthy").then_some(())
    })
    .await;
    // It would answer, and is not asked.
    stage.client.settles_on(url, "1", 20).await;
    well.store(true, Relaxed);
    both().await;
    eventually("it is known to be well", PATIENCE, || async {
        (stage.endpoints().await[0]["state"] == "in").then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_says_by_http_that_it_is_ill_is_left_out_until_it_says_otherwise() {
    let (well, worked) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicU64::new(0)));
    let (asks, works) = (well.clone(), worked.clone());
    let first = Scripted::start(move |asked| {
        let reply = match asked.path.as_str() {
            "/health" if asks.load(Relaxed) => status(200),
            "/health" => status(500),
            _ => {
                works.fetch_add(1, Relaxed);
                text("0")
            }
        };
        async { Ok(reply) }
    });
    let second = Scripted::start(|_| async { Ok(text("1")) });
    let stage = stage(&checked("http: { path: /health }"), vec![first.await, second.await]).await;
    leaves_and_returns(&stage, || worked.load(Relaxed), &well).await;
    let asked = stage.apps[0].asked().into_iter().find(|asked| asked.path == "/health").unwrap();
    assert!(asked.header("host").starts_with("product"), "{asked:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_says_by_grpc_that_it_is_ill_is_left_out_until_it_says_otherwise() {
    const CHECK: &str = "/grpc.health.v1.Health/Check";
    let (well, worked) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicU64::new(0)));
    let (asks, works) = (well.clone(), worked.clone());
    // A field 1 of 1 is SERVING, of 2 NOT_SERVING.
    let first = Scripted::start(move |asked| {
        let reply = if asked.path == CHECK {
            grpc(&[8, if asks.load(Relaxed) { 1 } else { 2 }], 0)
        } else {
            works.fetch_add(1, Relaxed);
            text("0")
        };
        async { Ok(reply) }
    });
    let second =
        Scripted::start(
            |asked| async move { Ok(if asked.path == CHECK { grpc(&[8, 1], 0) } else { text("1") }) },
        );
    let stage = stage_of("grpc", &checked("grpc: {}"), vec![first.await, second.await]).await;
    leaves_and_returns(&stage, || worked.load(Relaxed), &well).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_takes_no_connection_is_left_out_until_it_does() {
    let app = |text: &'static str| Scripted::start(move |_| async move { Ok(self::text(text)) });
    let (first, second) = (app("0").await, app("1").await);
    let address = first.address();
    let policy = outside("product-0", "product", 8080, address)
        + &outside("product-1", "product", 8080, second.address())
        + &calling("caller")
        + &checked("tcp: {}");
    let mesh = Mesh::start(&policy).await;
    let caller = mesh.sidecar(Beside::new("caller")).await;
    let client = Client::new(caller.outbound());
    let answers = |wanted: &'static str| {
        let client = &client;
        async move {
            eventually("it is called", PATIENCE, || async {
                let answer = client.get(URL).await;
                assert_eq!(answer.status, 200, "{}", answer.text());
                (answer.text() == wanted).then_some(())
            })
            .await;
        }
    };
    answers("0").await;
    answers("1").await;
    drop(first);
    let states = || async {
        let clusters = caller.admin("/clusters").await;
        let endpoints = clusters[0]["endpoints"].as_array().unwrap().clone();
        endpoints.into_iter().filter(|e| e["state"] == "unhealthy").count()
    };
    eventually("it is known to be gone", PATIENCE, || async { (states().await == 1).then_some(()) }).await;
    client.settles_on(URL, "1", 20).await;
    let _back = Scripted::start_at(address, |_| async { Ok(text("back")) }).await;
    answers("back").await;
    eventually("nobody is ill", PATIENCE, || async { (states().await == 0).then_some(()) }).await;
}
