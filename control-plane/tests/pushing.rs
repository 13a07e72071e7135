//! What sidecars are told: resources, changes to them, endpoints that come and go, and what survives a restart.

mod support;

use std::{fs, time::Duration};
use support::{CART, Fixture, PATIENCE, Sidecar, addresses, get, hello, start, start_with};
use tonic::Code;
use weft_config::wire::{self, resource::Body, to_control_plane, to_sidecar};
use weft_control_plane::{Settings, status::DocumentState};

const ENDPOINTS: &str = "endpoints/shop/cart";

async fn join(f: &Fixture, workload: &str, account: &str) -> Sidecar {
    let token = f.token("shop", account);
    f.open(hello("shop", workload, account, &token), None).await.expect("let in")
}

fn json(sidecar: &Sidecar, name: &str) -> String {
    match sidecar.holds.get(name).and_then(|resource| resource.body.as_ref()) {
        Some(Body::Documents(documents)) => documents.documents.iter().map(|d| d.json.clone()).collect(),
        other => panic!("{name} holds documents, not {other:?}"),
    }
}

#[tokio::test]
async fn a_sidecar_gets_what_it_subscribes_to() {
    let f = start(&[("cart.yaml", CART)]).await;
    let mut sidecar = join(&f, "cart", "cart").await;
    sidecar
        .subscribe(&["mesh", "trust", "workload/shop/cart", "service/shop/cart", "service/shop/none"])
        .await;
    let update = sidecar.update().await;
    assert_eq!(update.resources.len(), 4);
    assert_eq!(update.removed, ["service/shop/none"]);
    assert!(!update.policy_version.is_empty());
    assert!(json(&sidecar, "service/shop/cart").contains("8080"));
    assert!(matches!(&sidecar.holds["trust"].body, Some(Body::Trust(trust)) if trust.roots.len() == 1));
    let status = f.until("everything acknowledged", |s| s.sidecars.iter().all(|s| !s.behind)).await;
    let names: Vec<_> = status.sidecars[0].resources.iter().map(|r| r.name.as_str()).collect();
    assert_eq!(names, ["mesh", "service/shop/cart", "trust", "workload/shop/cart"]);
}

#[tokio::test]
async fn a_saved_file_reaches_sidecars_within_a_second() {
    let f = start(&[("cart.yaml", CART)]).await;
    let mut sidecar = join(&f, "cart", "cart").await;
    sidecar.subscribe(&["service/shop/cart", "workload/shop/cart"]).await;
    sidecar.until("the first version", |holds| holds.len() == 2).await;
    let mut took = Vec::new();
    for port in ["9090", "9091", "9092", "9093", "9094"] {
        let saved = std::time::Instant::now();
        f.save("cart.yaml", &CART.replace("8080", port));
        let update = sidecar.update().await;
        took.push(saved.elapsed());
        assert!(update.resources.iter().any(|r| r.name == "service/shop/cart"));
        assert!(json(&sidecar, "service/shop/cart").contains(port));
    }
    // Files that are only looked at now and then would all take longer; a busy machine may hold up some.
    assert!(took.iter().any(|took| *took < Duration::from_secs(1)), "{took:?}");
}

#[tokio::test]
async fn a_broken_file_changes_nothing_until_it_is_mended() {
    let f = start(&[("cart.yaml", CART)]).await;
    let mut sidecar = join(&f, "cart", "cart").await;
    sidecar.subscribe(&["service/shop/cart"]).await;
    sidecar.until("the first version", |holds| holds.len() == 1).await;
    let before = sidecar.holds["service/shop/cart"].version.clone();

    f.save("cart.yaml", &CART.replace("serviceAccount", "serviceAcount"));
    let status = f
        .until("the rejection in status", |s| s.documents.iter().any(|d| d.state == DocumentState::Rejected))
        .await;
    let document = &status.documents[0];
    assert!(document.last_good_in_force);
    assert!(document.diagnostics[0].text.contains("serviceAcount"), "{document:?}");
    assert_eq!(status.services[0].version, before);
    let (_, metrics) = get(f.running.addresses().metrics, "/metrics", "").await;
    assert!(metrics.contains("weft_policy_rejected_total{kind=\"Workload\"} 1"), "{metrics}");
    assert!(metrics.contains("weft_policy_documents{state=\"rejected\"} 1"), "{metrics}");
    let (code, api) = get(f.running.addresses().dashboard, "/api/status", "").await;
    assert!(code == 200 && api.contains("serviceAcount") && api.contains("\"state\":\"rejected\""), "{api}");

    f.save("cart.yaml", &CART.replace("8080", "9090"));
    let update = sidecar.update().await;
    assert_eq!(update.resources.len(), 1, "the broken version was never pushed");
    assert!(json(&sidecar, "service/shop/cart").contains("9090"));
    f.until("no rejection", |s| s.documents.iter().all(|d| d.state != DocumentState::Rejected)).await;
}

#[tokio::test]
async fn a_document_that_is_broken_when_the_control_plane_starts_keeps_its_last_good_version() {
    let f = start(&[("cart.yaml", CART)]).await;
    let version = f.status().await.services[0].version.clone();
    f.save("cart.yaml", "kind: Workload\nnonsense: [");
    f.until("the rejection", |s| s.documents.iter().any(|d| d.state == DocumentState::Rejected)).await;
    let f = f.restart().await;
    let status = f.status().await;
    assert!(status.documents.iter().any(|d| d.state == DocumentState::Rejected), "{status:?}");
    assert_eq!(status.services.len(), 1, "{status:?}");
    assert_eq!(status.services[0].version, version);
}

#[tokio::test]
async fn a_policy_directory_that_is_away_at_a_start_takes_nothing_away() {
    let f = start(&[("cart.yaml", CART)]).await;
    let policy = f.root.path().join("policy");
    fs::rename(&policy, f.root.path().join("away")).expect("renamed");
    let f = f.restart().await;
    let status = f.status().await;
    assert_eq!(status.services.len(), 1, "{status:?}");
    assert_eq!(status.problems.len(), 1, "{status:?}");
    fs::rename(f.root.path().join("away"), &policy).expect("renamed");
    f.until("no more problem", |s| s.problems.is_empty() && s.services.len() == 1).await;
}

#[tokio::test]
async fn endpoints_come_and_go_with_leases() {
    let f =
        start_with(&[("cart.yaml", CART)], |s| Settings { lease_timeout: Duration::from_millis(800), ..s })
            .await;
    let mut caller = join(&f, "web", "web").await;
    caller.subscribe(&[ENDPOINTS]).await;
    caller.until("an empty set", |holds| holds.contains_key(ENDPOINTS)).await;
    assert!(addresses(&caller.holds, ENDPOINTS).is_empty());

    let cart = join(&f, "cart", "cart").await;
    cart.lease("127.0.0.1:4001", true).await;
    caller.update().await;
    assert_eq!(addresses(&caller.holds, ENDPOINTS), ["127.0.0.1:4001"]);
    let Some(Body::Endpoints(endpoints)) = &caller.holds[ENDPOINTS].body else { panic!("endpoints") };
    assert_eq!(endpoints.endpoints[0].identity, "spiffe://weft.local/ns/shop/sa/cart");

    cart.lease("127.0.0.1:4001", false).await;
    caller.update().await;
    assert!(addresses(&caller.holds, ENDPOINTS).is_empty(), "not ready withdraws at once");

    let last = std::time::Instant::now();
    cart.lease("127.0.0.1:4001", true).await;
    caller.update().await;
    caller.update().await;
    assert!(addresses(&caller.holds, ENDPOINTS).is_empty(), "nothing more was heard of it");
    assert!(last.elapsed() >= Duration::from_millis(800), "{:?}", last.elapsed());
}

#[tokio::test]
async fn a_dead_sidecar_is_gone_long_before_its_lease_ends() {
    let lease_timeout = PATIENCE * 2;
    let f = start_with(&[("cart.yaml", CART)], |s| Settings { lease_timeout, ..s }).await;
    let mut caller = join(&f, "web", "web").await;
    caller.subscribe(&[ENDPOINTS]).await;
    let cart = join(&f, "cart", "cart").await;
    cart.lease("127.0.0.1:4001", true).await;
    caller.until("the endpoint", |holds| !addresses(holds, ENDPOINTS).is_empty()).await;
    drop(cart);
    caller.until("its end", |holds| addresses(holds, ENDPOINTS).is_empty()).await;
}

#[tokio::test]
async fn a_sidecar_that_listens_everywhere_is_where_its_stream_comes_from() {
    let f = start(&[("cart.yaml", CART)]).await;
    let mut cart = join(&f, "cart", "cart").await;
    cart.subscribe(&[ENDPOINTS]).await;
    cart.lease("0.0.0.0:4001", true).await;
    cart.until("the endpoint", |holds| addresses(holds, ENDPOINTS) == ["127.0.0.1:4001"]).await;
}

#[tokio::test]
async fn nobody_serves_what_the_documents_do_not_give_them() {
    let f = start(&[("cart.yaml", CART)]).await;
    let mut web = join(&f, "web", "web").await;
    web.subscribe(&[ENDPOINTS]).await;
    web.lease("127.0.0.1:4002", true).await;
    web.until("the set", |holds| holds.contains_key(ENDPOINTS)).await;
    f.until("the lease", |s| s.sidecars[0].ready).await;
    assert!(addresses(&web.holds, ENDPOINTS).is_empty());
    assert!(f.status().await.services[0].endpoints.is_empty());
}

#[tokio::test]
async fn a_sidecar_reads_its_own_workload_only() {
    let f = start(&[("cart.yaml", CART)]).await;
    let mut web = join(&f, "web", "web").await;
    web.subscribe(&["workload/shop/cart"]).await;
    assert_eq!(web.next().await.expect_err("refused").code(), Code::PermissionDenied);
}

#[tokio::test]
async fn a_rejection_is_shown_and_counted() {
    let f = start(&[("cart.yaml", CART)]).await;
    let mut cart = join(&f, "cart", "cart").await;
    cart.subscribe(&["service/shop/cart"]).await;
    let to_sidecar::Message::Update(update) = cart.next().await.expect("an update") else {
        panic!("an update")
    };
    let rejected = vec![wire::Rejection {
        name: "service/shop/cart".into(),
        version: update.resources[0].version.clone(),
        reason: "<b>cannot</b> compile it".into(),
    }];
    cart.send(to_control_plane::Message::Ack(wire::Ack { nonce: update.nonce, rejected })).await;
    let status = f.until("the rejection", |s| s.sidecars.iter().any(|s| !s.rejections.is_empty())).await;
    assert_eq!(status.sidecars[0].rejections[0].reason, "<b>cannot</b> compile it");
    let (_, metrics) = get(f.running.addresses().metrics, "/metrics", "").await;
    assert!(metrics.contains("weft_control_plane_nacks_total 1"), "{metrics}");
}

#[tokio::test]
async fn a_restart_takes_no_endpoint_away_from_anybody() {
    let (lease_timeout, settle_time) = (Duration::from_secs(6), Duration::from_secs(4));
    let f = start_with(&[("cart.yaml", CART)], |s| Settings { lease_timeout, settle_time, ..s }).await;
    let mut caller = join(&f, "web", "web").await;
    caller.subscribe(&[ENDPOINTS]).await;
    let cart = join(&f, "cart", "cart").await;
    cart.lease("127.0.0.1:4001", true).await;
    caller.until("the endpoint", |holds| !addresses(holds, ENDPOINTS).is_empty()).await;

    let f = f.restart().await;
    let mut again = join(&f, "web", "web").await;
    again.holds = caller.holds.clone();
    again.subscribe(&[ENDPOINTS, "mesh"]).await;
    again.update().await;
    assert_eq!(addresses(&again.holds, ENDPOINTS), ["127.0.0.1:4001"]);
    let cart = join(&f, "cart", "cart").await;
    // For longer than it may take to come back.
    for _ in 0..25 {
        cart.lease("127.0.0.1:4001", true).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert_eq!(f.status().await.services[0].endpoints.len(), 1, "it came back in time");
    drop(cart);
    again.until("its end", |holds| addresses(holds, ENDPOINTS).is_empty()).await;
}

#[tokio::test]
async fn after_a_restart_who_does_not_come_back_is_withdrawn() {
    let (lease_timeout, settle_time) = (PATIENCE, Duration::from_secs(4));
    let f = start_with(&[("cart.yaml", CART)], |s| Settings { lease_timeout, settle_time, ..s }).await;
    let cart = join(&f, "cart", "cart").await;
    cart.lease("127.0.0.1:4001", true).await;
    f.until("the endpoint", |s| s.services[0].endpoints.len() == 1).await;
    let f = f.restart().await;
    assert_eq!(f.status().await.services[0].endpoints.len(), 1, "it may be on its way");
    f.until("its end", |s| s.services[0].endpoints.is_empty()).await;
}

#[tokio::test]
async fn a_new_root_is_pushed_while_streams_stay_open() {
    let (f, other) = (start(&[]).await, start(&[]).await);
    let mut web = join(&f, "web", "web").await;
    web.subscribe(&["trust"]).await;
    web.update().await;
    fs::copy(other.settings.state_dir.join("ca.pem"), f.settings.state_dir.join("roots.pem"))
        .expect("copied");
    web.update().await;
    assert!(matches!(&web.holds["trust"].body, Some(Body::Trust(trust)) if trust.roots.len() == 2));
}

#[tokio::test]
async fn stopping_tells_every_stream() {
    let f = start(&[]).await;
    let mut web = join(&f, "web", "web").await;
    f.running.shutdown().await.expect("stops");
    assert_eq!(web.next().await.expect_err("ended").code(), Code::Unavailable);
}

#[tokio::test]
async fn two_control_planes_do_not_share_a_state_directory() {
    let f = start(&[]).await;
    let second = weft_control_plane::ControlPlane::start(f.settings.clone()).await;
    assert!(format!("{:#}", second.err().expect("refused")).contains("--state-dir"));
}

#[tokio::test]
async fn the_dashboard_serves_its_files_and_keeps_strangers_out() {
    let f = start(&[("cart.yaml", CART)]).await;
    let dashboard = f.running.addresses().dashboard;
    for path in ["/", "/dashboard/style.css", "/dashboard/script.js", "/dashboard/icon.svg", "/api/status"] {
        let (status, answer) = get(dashboard, path, "").await;
        assert_eq!(status, 200, "{path}");
        assert!(
            answer.to_ascii_lowercase().contains("content-security-policy: default-src 'none'"),
            "{answer}"
        );
    }
    assert_eq!(get(dashboard, "/api/status", "host: evil.example\r\n").await.0, 403);
    assert_eq!(get(dashboard, "/api/status", "origin: http://evil.example\r\n").await.0, 403);
    assert_eq!(get(dashboard, "/none", "").await.0, 404);
}

#[tokio::test]
async fn the_documents_in_force_can_be_read_back() {
    let f =
        start(&[("cart.yaml", &format!("{CART}  command: [\"secret\"]\n  env: {{ PASSWORD: secret }}\n"))])
            .await;
    let dashboard = f.running.addresses().dashboard;
    let (status, yaml) = get(dashboard, "/api/documents?format=yaml", "").await;
    assert_eq!(status, 200);
    assert!(yaml.contains("---\n") && yaml.contains("\"Workload\""), "{yaml}");
    assert!(!yaml.contains("secret"), "{yaml}");
    let (status, json) = get(dashboard, "/api/documents", "").await;
    assert!(status == 200 && json.contains("policyVersion"), "{json}");
    assert_eq!(get(dashboard, "/api/documents?format=xml", "").await.0, 400);
}

#[tokio::test]
async fn ready_and_live_answer() {
    let f = start(&[]).await;
    let metrics = f.running.addresses().metrics;
    assert_eq!(get(metrics, "/ready", "").await.0, 200);
    assert_eq!(get(metrics, "/live", "").await.0, 200);
}
