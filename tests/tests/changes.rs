//! What changes while traffic flows: policy, certificates, and the control plane that comes and goes.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::{
    collections::BTreeSet,
    path::Path,
    time::{Duration, Instant},
};
use tokio::sync::Mutex;
use weft_control_plane::status::DocumentState;
use weft_sidecar::Addresses;
use weft_tests::{
    Backend, Beside, Client, Load, Mesh, PATIENCE, Process, eventually,
    mesh::{calling, serving, until_free},
};

/// These tests make load: one after another.
static ALONE: Mutex<()> = Mutex::const_new(());

fn services() -> String {
    ["product", "v1", "v2"].map(|name| serving(name, 8080, "http")).concat() + &calling("caller")
}

fn weights(v1: u32, v2: u32) -> String {
    format!(
        "---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{ name: product, namespace: shop }}
spec:
  parentRefs: [{{ group: \"\", kind: Service, name: product, port: 8080 }}]
  rules:
    - name: split
      backendRefs: [{{ name: v1, port: 8080, weight: {v1} }}, {{ name: v2, port: 8080, weight: {v2} }}]
"
    )
}

/// A caller and two versions behind one name, all calls going to the first.
struct Split {
    mesh: Mesh,
    caller: Process,
    first: Option<Process>,
    second: Process,
    apps: [Backend; 2],
}

async fn split(change: impl FnOnce(weft_control_plane::Settings) -> weft_control_plane::Settings) -> Split {
    let mesh = Mesh::start_with(&services(), change).await;
    mesh.write("weights.yaml", &weights(100, 0));
    let apps = [Backend::text("v1").await, Backend::text("v2").await];
    let first = Some(mesh.sidecar(Beside::new("v1").app(8080, apps[0].address())).await);
    let second = mesh.sidecar(Beside::new("v2").app(8080, apps[1].address())).await;
    let caller = mesh.sidecar(Beside::new("caller").workers(2)).await;
    mesh.endpoints("v1", 1).await;
    mesh.endpoints("v2", 1).await;
    let client = Client::new(caller.outbound());
    eventually("the route is in force", PATIENCE, || async {
        (client.get("http://product:8080/").await.status == 200).then_some(())
    })
    .await;
    Split { mesh, caller, first, second, apps }
}

const URL: &str = "http://product:8080/";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_changes_of_weights_under_load_fail_no_request() {
    let _alone = ALONE.lock().await;
    let split = split(|s| s).await;
    let load = Load::start(split.caller.outbound(), URL, 1000);
    load.streak("v1", 20).await;
    let mut took = Vec::new();
    for change in 0..20 {
        let (v1, v2, text) = if change % 2 == 0 { (0, 100, "v2") } else { (100, 0, "v1") };
        let saved = Instant::now();
        split.mesh.write("weights.yaml", &weights(v1, v2));
        load.streak(text, 20).await;
        took.push(saved.elapsed());
    }
    // A busy machine may hold up some of them.
    took.sort();
    assert!(took[4] < Duration::from_secs(1), "files are watched, not looked at now and then: {took:?}");
    let seen = load.stop().await;
    seen.expect_all_ok(20 * 20);
    assert!(seen.texts["v1"] >= 200 && seen.texts["v2"] >= 200, "{seen:?}");
    let metrics = split.caller.metrics().await;
    assert!(metrics.sum("weft_policy_updates_total", &[]) >= 20.0, "{}", metrics.0);
    assert_eq!(metrics.sum("weft_errors_total", &[]), 0.0, "{}", metrics.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_file_changes_nothing_and_the_fixed_one_takes_effect() {
    let _alone = ALONE.lock().await;
    let split = split(|s| s).await;
    let load = Load::start(split.caller.outbound(), URL, 200);
    load.streak("v1", 5).await;
    let version = split.mesh.status().await.control_plane.policy_version;

    split.mesh.write("weights.yaml", &weights(0, 100).replace("weight: 100", "weigth: 100"));
    let status = split
        .mesh
        .until("the rejection is shown", |s| s.documents.iter().any(|d| d.state == DocumentState::Rejected))
        .await;
    let rejected = status.documents.iter().find(|d| d.state == DocumentState::Rejected).unwrap();
    assert!(rejected.last_good_in_force, "{rejected:?}");
    let found = &rejected.diagnostics[0];
    assert!(found.text.contains("weigth") && found.text.contains("weight"), "{found:?}");
    assert!(found.line > 0 && found.column > 0 && found.file.ends_with("weights.yaml"), "{found:?}");
    assert_eq!(status.control_plane.policy_version, version, "what is in force is what was");
    let metrics = split.mesh.control_plane_metrics().await;
    assert_eq!(metrics.sum("weft_policy_rejected_total", &["kind=\"HTTPRoute\""]), 1.0, "{}", metrics.0);
    load.goes_on(100).await;
    assert_eq!(load.seen().texts.keys().collect::<Vec<_>>(), ["v1"]);

    split.mesh.write("weights.yaml", &weights(0, 100));
    load.streak("v2", 10).await;
    split
        .mesh
        .until("no rejection", |s| s.documents.iter().all(|d| d.state != DocumentState::Rejected))
        .await;
    load.stop().await.expect_all_ok(100);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_of_five_seconds_and_the_ca_itself_change_under_load_without_a_failure() {
    let _alone = ALONE.lock().await;
    let split =
        split(|s| weft_control_plane::Settings { certificate_ttl: Duration::from_secs(5), ..s }).await;
    let load = Load::start(split.caller.outbound(), URL, 300);
    let begun = Instant::now();
    // The next CA takes over about ten seconds later, when everybody trusts it.
    let signing = || std::fs::read(split.mesh.state_dir().join("ca.pem")).unwrap();
    let first_ca = signing();
    weft_control_plane::issuer::prepare_rotation(split.mesh.state_dir(), "weft.local").unwrap();
    let mut signed_by_first = None;
    let mut serials = [BTreeSet::new(), BTreeSet::new()];
    while begun.elapsed() < Duration::from_secs(20) {
        serials[0].insert(split.caller.serial().await);
        serials[1].insert(split.first.as_ref().unwrap().serial().await);
        if signed_by_first.is_none() && signing() != first_ca {
            signed_by_first = Some(serials.clone());
        }
        // Fresh connections meet fresh certificates: a pool that keeps its connections would prove nothing.
        let client = Client::new(split.caller.outbound());
        let answer = client.get_with("http://v2:8080/", &[("connection", "close")]).await;
        assert_eq!(answer.text(), "v2", "{:?}", answer.headers);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    load.stop().await.expect_all_ok(100);
    let signed_by_first = signed_by_first.expect("the next CA has taken over");
    for (all, old) in serials.iter().zip(&signed_by_first) {
        assert!(all.len() >= 5, "only {} certificates in 20 s", all.len());
        assert!(all.len() > old.len(), "one of them is the next CA's");
    }
    assert_eq!(
        split.mesh.status().await.control_plane.trusted_roots,
        2,
        "the old CA's last ones are still good"
    );
    let metrics = split.caller.metrics().await;
    assert!(metrics.sum("weft_identity_renewals_total", &["result=\"success\""]) >= 5.0, "{}", metrics.0);
    assert_eq!(metrics.sum("weft_identity_renewals_total", &["result=\"failure\""]), 0.0);
    assert_eq!(metrics.sum("weft_errors_total", &[]), 0.0, "{}", metrics.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_control_plane_sidecars_serve_restart_from_disk_and_converge_when_it_is_back() {
    let _alone = ALONE.lock().await;
    let mut split = split(|s| s).await;
    let load = Load::start(split.caller.outbound(), URL, 200);
    load.streak("v1", 20).await;
    // Only what was called once is known without a control plane.
    assert_eq!(Client::new(split.caller.outbound()).get("http://v2:8080/").await.text(), "v2");
    let (served, called) = (split.second.state_dir(), split.caller.state_dir());
    are_on_disk(&served, &["workload/shop/v2"]).await;
    are_on_disk(&called, &["service/shop/product", "endpoints/shop/v1", "endpoints/shop/v2"]).await;
    split.mesh.kill_control_plane();
    load.goes_on(100).await;
    assert_eq!(load.seen().failed, 0, "{:?}", load.seen().failures);

    // The second version's sidecar and the caller's start again while nobody can tell them anything.
    let (addresses, state) = (split.second.addresses(), split.second.state_dir());
    drop(split.second);
    let again = Beside::new("v2").app(8080, split.apps[1].address()).again(addresses, state);
    let second = restarted(&split.mesh, again, addresses).await;
    let (addresses, state) = (split.caller.addresses(), split.caller.state_dir());
    load.stop().await.expect_all_ok(100);
    drop(split.caller);
    let again = Beside::new("caller").again(addresses, state);
    let caller = restarted(&split.mesh, again, addresses).await;
    let client = Client::new(caller.outbound());
    assert_eq!(client.get(URL).await.text(), "v1", "from disk: the route and its endpoints");
    assert_eq!(client.get("http://v2:8080/").await.text(), "v2");

    let load = Load::start(caller.outbound(), URL, 200);
    load.streak("v1", 20).await;
    split.mesh.start_control_plane().await;
    split.mesh.write("weights.yaml", &weights(0, 100));
    load.streak("v2", 20).await;
    split.mesh.endpoints("v1", 1).await;
    split.mesh.until("everybody is back", |s| s.sidecars.len() == 3).await;
    // Through the time in which those who did not come back are withdrawn.
    let settled = Instant::now();
    while settled.elapsed() < Duration::from_secs(2) {
        assert_eq!(load.seen().failed, 0, "{:?}", load.seen().failures);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    load.stop().await.expect_all_ok(100);
    assert_eq!(second.metrics().await.sum("weft_control_plane_connected", &[]), 1.0);
}

/// Waits until a sidecar has written down what it was told of all these: it does so about a second later.
async fn are_on_disk(state_dir: &Path, names: &[&str]) {
    eventually(&format!("{names:?} on disk"), PATIENCE, || async {
        let kept = std::fs::read(state_dir.join("last-known-good")).unwrap_or_default();
        let has = |name: &str| kept.windows(name.len()).any(|window| window == name.as_bytes());
        names.iter().all(|name| has(name)).then_some(())
    })
    .await;
}

/// Starts a sidecar where another one was.
async fn restarted(mesh: &Mesh, beside: Beside, at: Addresses) -> Process {
    until_free(at).await;
    mesh.sidecar(beside).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sidecar_can_follow_a_directory_instead_of_a_control_plane() {
    let _alone = ALONE.lock().await;
    let (old, new) = (Backend::text("old").await, Backend::text("new").await);
    let directory = tempfile::tempdir().unwrap();
    let document = |app: &Backend| {
        let outside = "  mesh: false\n  address: 127.0.0.1\n";
        let port = format!("port: 8080, appPort: {}", app.address().port());
        serving("product", 8080, "http").replace("port: 8080", &port) + outside + &calling("caller")
    };
    let file = directory.path().join("policy.yaml");
    std::fs::write(&file, document(&old)).unwrap();
    let mut flags = vec![
        ("--namespace", "shop".to_owned()),
        ("--workload", "caller".to_owned()),
        ("--policy", directory.path().display().to_string()),
    ];
    flags.extend(
        ["--outbound", "--inbound", "--admin", "--metrics"].map(|flag| (flag, "127.0.0.1:0".to_owned())),
    );
    let caller = Process::start(&flags, None, directory.path().into()).await.unwrap();
    caller.ready().await;
    let client = Client::new(caller.outbound());
    assert_eq!(client.get(URL).await.text(), "old", "in force as soon as it is ready");

    std::fs::write(&file, document(&new).replace("mesh: false", "mesh: perhaps")).unwrap();
    eventually("the broken file is counted", PATIENCE, || async {
        let metrics = caller.metrics().await;
        (metrics.sum("weft_policy_rejected_total", &[]) >= 1.0).then_some(())
    })
    .await;
    assert_eq!(client.get(URL).await.text(), "old");
    let mut took = Vec::new();
    for (app, text) in [(&new, "new"), (&old, "old"), (&new, "new"), (&old, "old"), (&new, "new")] {
        let saved = Instant::now();
        std::fs::write(&file, document(app)).unwrap();
        eventually("the file takes effect", PATIENCE, || async {
            (client.get(URL).await.text() == text).then_some(())
        })
        .await;
        took.push(saved.elapsed());
    }
    // A busy machine may hold up some of them.
    let quickest = took.iter().min().unwrap();
    assert!(*quickest < Duration::from_secs(1), "it is watched, not looked at now and then: {took:?}");
}
