//! Endpoints that are asked whether they are well, and bounds on the connections to them, across two sidecars and mTLS.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::sync::{
    Arc,
    atomic::{AtomicU16, Ordering::Relaxed},
};
use tokio::sync::Semaphore;
use weft_tests::{
    Beside, Client, Mesh, PATIENCE, Process, Scripted, eventually,
    mesh::{calling, serving, traffic},
    scripted,
};

const URL: &str = "http://product:8080/";

/// An application that says who it is, and at `/health` (or to the gRPC health protocol) how it is. A permit of `open`
/// lets one call of `/slow` go.
async fn application(who: &'static str, health: Arc<AtomicU16>, open: Arc<Semaphore>) -> Scripted {
    Scripted::start(move |asked| {
        let (health, open) = (health.load(Relaxed), open.clone());
        async move {
            Ok(match &*asked.path {
                "/health" => scripted::status(health),
                "/grpc.health.v1.Health/Check" => {
                    scripted::grpc(if health == 200 { &[8, 1] } else { &[8, 2] }, 0)
                }
                "/slow" => {
                    open.acquire().await?.forget();
                    scripted::text(who)
                }
                _ => scripted::text(who),
            })
        }
    })
    .await
}

struct Pair {
    caller: Process,
    _replicas: Vec<Process>,
    apps: Vec<Scripted>,
    /// What each says at `/health`.
    health: Vec<Arc<AtomicU16>>,
    open: Arc<Semaphore>,
    _mesh: Mesh,
}

/// A caller and two instances of one service with this TrafficPolicy, well at first.
async fn pair(protocol: &str, workers: u16, policy: &str, more: &str) -> Pair {
    let documents = serving("product", 8080, protocol)
        + "  replicas: 2\n"
        + &calling("caller")
        + &traffic("product", policy)
        + more;
    let mesh = Mesh::start(&documents).await;
    let (mut replicas, mut apps, mut health) = (Vec::new(), Vec::new(), Vec::new());
    let open = Arc::new(Semaphore::new(0));
    for who in ["0", "1"] {
        let status = Arc::new(AtomicU16::new(200));
        let app = application(who, status.clone(), open.clone()).await;
        let beside = Beside::new(&format!("product-{who}")).account("product").app(8080, app.address());
        replicas.push(mesh.sidecar(beside).await);
        apps.push(app);
        health.push(status);
    }
    let caller = mesh.sidecar(Beside::new("caller").workers(workers)).await;
    mesh.endpoints("product", 2).await;
    let client = Client::new(caller.outbound());
    for wanted in ["0", "1"] {
        eventually("both take calls", PATIENCE, || async {
            (client.get(URL).await.text() == wanted).then_some(())
        })
        .await;
    }
    Pair { caller, _replicas: replicas, apps, health, open, _mesh: mesh }
}

impl Pair {
    async fn healthy(&self, count: f64) {
        eventually(&format!("{count} healthy endpoints"), PATIENCE, || async {
            let metrics = self.caller.metrics().await;
            (metrics.sum("weft_healthy_endpoints", &[r#"service="shop/product""#]) == count).then_some(())
        })
        .await;
    }

    async fn endpoints(&self) -> Vec<serde_json::Value> {
        let clusters = self.caller.admin("/clusters").await;
        let all = clusters.as_array().into_iter().flatten();
        all.flat_map(|cluster| cluster["endpoints"].as_array().cloned().unwrap_or_default()).collect()
    }

    /// Makes the first sick and well again, and sees who is called.
    async fn goes_where_endpoints_are_well(&self, why: &str) {
        let client = Client::new(self.caller.outbound());
        self.healthy(2.0).await;
        self.health[0].store(500, Relaxed);
        self.healthy(1.0).await;
        eventually(&format!("one is not well because {why}"), PATIENCE, || async {
            let endpoints = self.endpoints().await;
            endpoints.iter().any(|e| e["state"] == "unhealthy" && e["health_check"] == why).then_some(())
        })
        .await;
        client.settles_on(URL, "1", 30).await;
        self.health[0].store(200, Relaxed);
        self.healthy(2.0).await;
        eventually("the first is called again", PATIENCE, || async {
            (client.get(URL).await.text() == "0").then_some(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_fails_its_http_health_check_gets_no_calls() {
    let policy =
        "healthCheck: { http: { path: /health }, interval: 200ms, timeout: 200ms, unhealthyThreshold: 2 }";
    let pair = pair("http", 1, policy, "").await;
    pair.goes_where_endpoints_are_well("it answered 500").await;
    let asked = pair.apps[0].asked();
    let check = asked.iter().find(|asked| asked.path == "/health").expect("was asked");
    assert_eq!(check.header("user-agent"), "weft-health-check");
    let metrics = pair.caller.metrics().await;
    let result = |result: &str| {
        metrics
            .sum("weft_health_checks_total", &[r#"service="shop/product""#, &format!("result=\"{result}\"")])
    };
    assert!(result("ok") > 0.0 && result("status") >= 2.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_says_it_does_not_serve_gets_no_calls_from_any_worker() {
    let policy = "healthCheck: { grpc: {}, interval: 200ms, timeout: 200ms }";
    pair("http2", 2, policy, "")
        .await
        .goes_where_endpoints_are_well("it answered with serving status 2")
        .await;
}

/// A health check is a call like any other: the callee's authorization holds for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_who_may_not_ask_finds_nobody_well_and_calls_all() {
    let rule = "---
apiVersion: weft.mesh/v1alpha1
kind: AuthorizationPolicy
metadata: { name: no-health, namespace: shop }
spec:
  targetRefs: [{ kind: Service, name: product }]
  action: deny
  rules: [{ to: [{ paths: [/health] }] }]
";
    let policy = "healthCheck: { http: { path: /health }, interval: 200ms, timeout: 200ms }";
    let pair = pair("http", 1, policy, rule).await;
    pair.healthy(0.0).await;
    let client = Client::new(pair.caller.outbound());
    for _ in 0..10 {
        assert_eq!(client.get(URL).await.status, 200, "so few are well that all are called");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_wait_for_a_connection_and_fail_at_once_when_too_many_do() {
    let policy = "connections: { max: 1, maxPending: 0 }, retries: { attempts: 0 }";
    let pair = pair("http", 1, policy, "").await;
    let client = Arc::new(Client::new(pair.caller.outbound()));
    let calls: Vec<_> = (0..5)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move { client.get("http://product:8080/slow").await })
        })
        .collect();
    eventually("some are refused while the others are not answered", PATIENCE, || async {
        (calls.iter().filter(|call| call.is_finished()).count() == 3).then_some(())
    })
    .await;
    pair.open.add_permits(2);
    let mut answers = Vec::new();
    for call in calls {
        answers.push(call.await.unwrap());
    }
    let served = answers.iter().filter(|answer| answer.status == 200).count();
    let refused = answers.iter().filter(|answer| answer.weft_error() == "overloaded").count();
    assert_eq!((served, refused), (2, 3), "one connection for each of two endpoints: {answers:?}");
    let metrics = pair.caller.metrics().await;
    let service = [r#"service="shop/product""#, r#"direction="outbound""#];
    // Each was refused at one endpoint and then at the other.
    assert!(metrics.sum("weft_pending_overflow_total", &service) >= 3.0);
    assert_eq!(metrics.sum("weft_pending_requests", &service), 0.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_wait_are_served_in_turn() {
    let pair = pair("http", 1, "connections: { max: 1 }", "").await;
    let client = Arc::new(Client::new(pair.caller.outbound()));
    let calls: Vec<_> = (0..6)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move { client.get("http://product:8080/slow").await })
        })
        .collect();
    eventually("both endpoints have one", PATIENCE, || async {
        pair.apps.iter().all(|app| app.under_way() == 1).then_some(())
    })
    .await;
    pair.open.add_permits(6);
    for call in calls {
        assert_eq!(call.await.unwrap().status, 200);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_end_after_as_many_requests_as_policy_says() {
    let pair = pair("http", 1, "connections: { maxRequestsPerConnection: 2 }", "").await;
    let handshakes = || async {
        let labels = [r#"direction="outbound""#, r#"result="ok""#];
        pair.caller.metrics().await.sum("weft_tls_handshakes_total", &labels)
    };
    let before = handshakes().await;
    let client = Client::new(pair.caller.outbound());
    for _ in 0..20 {
        assert_eq!(client.get(URL).await.status, 200);
    }
    let made = handshakes().await - before;
    assert!((8.0..=12.0).contains(&made), "{made} connections for 20 requests, two each");
}
