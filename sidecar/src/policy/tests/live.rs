//! The whole subscription against a control plane on a loopback socket.

use super::{
    super::{self as policy, Found, Handle, Hooks, PolicySettings, Source},
    control_plane::{CONTROL_PLANE_ID, Ca, ControlPlane, Received},
    *,
};
use crate::tls::Tls;
use std::{
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};
use weft_config::{identity::ServiceName, snapshot::Snapshot};
use wire::to_control_plane::Message;

/// How long a test waits for anything that should be there at once.
const PATIENCE: Duration = Duration::from_secs(30);

/// Notes what it is told.
#[derive(Default)]
struct Recorder(Mutex<Recorded>);

#[derive(Clone, Default)]
struct Recorded {
    connected: Vec<bool>,
    rejected: Vec<String>,
    versions: Vec<String>,
    identities: Vec<SystemTime>,
    renewals: Vec<bool>,
    deprecated: Vec<(Arc<str>, u64)>,
}

impl Recorder {
    fn note(&self, note: impl FnOnce(&mut Recorded)) {
        note(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn read(&self) -> Recorded {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Hooks for Recorder {
    fn connected(&self, connected: bool) {
        self.note(|recorded| recorded.connected.push(connected));
    }
    fn rejected(&self, what: &str, _: &str) {
        self.note(|recorded| recorded.rejected.push(what.to_owned()));
    }
    fn updated(&self, version: &str) {
        self.note(|recorded| recorded.versions.push(version.to_owned()));
    }
    fn identity(&self, expires: SystemTime) {
        self.note(|recorded| recorded.identities.push(expires));
    }
    fn renewal(&self, succeeded: bool) {
        self.note(|recorded| recorded.renewals.push(succeeded));
    }
    fn deprecated_calls(&self) -> Vec<(Arc<str>, u64)> {
        self.read().deprecated
    }
}

struct Sidecar {
    handle: Handle,
    tls: Arc<Tls>,
    hooks: Arc<Recorder>,
    snapshots: Arc<Mutex<Vec<Arc<Snapshot>>>>,
}

impl Sidecar {
    /// A sidecar of the workload `cart` that keeps its files in `dir`.
    fn start(control_plane: &ControlPlane, dir: &Path) -> Self {
        control_plane.ca.write_pem(&dir.join("ca.pem"));
        Self::start_trusting(control_plane, dir)
    }

    /// The same with the CA file that is there.
    fn start_trusting(control_plane: &ControlPlane, dir: &Path) -> Self {
        let ca_file = dir.join("ca.pem");
        let token = dir.join("token");
        std::fs::write(&token, "the-token\n").expect("written");
        let tls = Arc::new(Tls::new("weft.local"));
        let hooks = Arc::new(Recorder::default());
        let snapshots: Arc<Mutex<Vec<Arc<Snapshot>>>> = Arc::default();
        let sink = snapshots.clone();
        let settings = PolicySettings {
            namespace: "shop".to_owned(),
            workload: "cart".to_owned(),
            service_account: "cart".to_owned(),
            source: Source::ControlPlane(policy::ControlPlane {
                address: control_plane.address.to_string(),
                ca_file,
                join_token_file: Some(token),
                state_dir: Some(dir.join("state")),
            }),
        };
        let handle = policy::start(
            settings,
            tls.clone(),
            Arc::new(move |snapshot| sink.lock().unwrap_or_else(PoisonError::into_inner).push(snapshot)),
            hooks.clone(),
        )
        .expect("started");
        Self { handle, tls, hooks, snapshots }
    }

    fn snapshot(&self) -> Option<Arc<Snapshot>> {
        self.snapshots.lock().unwrap_or_else(PoisonError::into_inner).last().cloned()
    }

    fn version_of(&self, service: &str) -> Option<String> {
        Some(self.snapshot()?.service(&name(service))?.version.to_string())
    }

    async fn want(&self, service: &str) -> Found {
        self.handle.want(name(service)).await
    }

    /// Wants a service that there is. A busy machine may take longer over the answer than a request waits for it.
    async fn learns(&self, service: &str) {
        let end = Instant::now() + PATIENCE;
        let found = loop {
            let found = self.want(service).await;
            if found != Found::Unavailable || Instant::now() > end {
                break found;
            }
        };
        assert_eq!(found, Found::Yes);
    }

    /// Returns once there is a certificate and a workload.
    async fn ready(&self) {
        until("a certificate and policy", || {
            self.tls.is_ready() && self.snapshot().is_some_and(|snapshot| snapshot.workload.is_some())
        })
        .await;
    }
}

fn name(service: &str) -> ServiceName {
    ServiceName::new("shop", service)
}

async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < end, "no {what} in time");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A control plane with the workload, `product` and a trust bundle.
async fn shop() -> ControlPlane {
    let control_plane = ControlPlane::start().await;
    publish_shop(&control_plane);
    control_plane
}

fn publish_shop(control_plane: &ControlPlane) {
    control_plane.publish(vec![
        mesh("1", "strict"),
        workload("1", &[]),
        service("product", "1"),
        endpoints("product", "1", "10.0.0.1:80"),
        wire::Resource {
            name: "trust".to_owned(),
            version: "1".to_owned(),
            body: Some(wire::resource::Body::Trust(wire::TrustBundle {
                roots: vec![control_plane.ca.root().to_vec()],
            })),
        },
    ]);
}

fn acks(received: &[Received]) -> Vec<wire::Ack> {
    received
        .iter()
        .filter_map(|received| match &received.message {
            Message::Ack(ack) => Some(ack.clone()),
            _ => None,
        })
        .collect()
}

fn deprecated_calls(received: &[Received]) -> Vec<(String, u64)> {
    let usages = received.iter().filter_map(|received| match &received.message {
        Message::Usage(usage) => Some(usage.deprecated.iter().map(|told| (told.of.clone(), told.calls))),
        _ => None,
    });
    usages.flatten().collect()
}

fn leases(received: &[Received]) -> Vec<wire::Lease> {
    received
        .iter()
        .filter_map(|received| match &received.message {
            Message::Lease(lease) => Some(lease.clone()),
            _ => None,
        })
        .collect()
}

#[tokio::test]
async fn policy_and_certificate_come_in_one_flight() {
    let control_plane = shop().await;
    // Nothing is answered before all four are there: whoever waited for Welcome would wait for ever.
    control_plane.wait_for_messages(4);
    let dir = tempfile::tempdir().expect("a directory");
    let sidecar = Sidecar::start(&control_plane, dir.path());
    sidecar.ready().await;
    let received = control_plane.received();
    let Message::Hello(hello) = &received[0].message else { panic!("Hello comes first") };
    assert_eq!((hello.namespace.as_str(), hello.workload.as_str()), ("shop", "cart"));
    assert_eq!(hello.join_token, "the-token");
    assert!(matches!(&received[1].message, Message::CertificateRequest(request) if !request.csr.is_empty()));
    assert!(matches!(&received[2].message, Message::Subscribe(subscribe) if subscribe.add.len() == 3));
    assert!(matches!(&received[3].message, Message::Lease(lease) if !lease.ready));
    let identity = sidecar.tls.identity().expect("an identity");
    assert_eq!(identity.id.to_string(), "spiffe://weft.local/ns/shop/sa/cart");
    let recorded = sidecar.hooks.read();
    assert_eq!(recorded.connected, [true]);
    assert_eq!(recorded.renewals, [true]);
    assert_eq!(recorded.identities, [identity.not_after]);
    assert!(!recorded.versions.is_empty());
    let status = sidecar.handle.status();
    assert_eq!(status["source"]["connected"], true);
    assert_eq!(status["workload"], "shop/cart");
}

#[tokio::test]
async fn services_are_found_when_they_are_wanted() {
    let control_plane = shop().await;
    let dir = tempfile::tempdir().expect("a directory");
    let sidecar = Sidecar::start(&control_plane, dir.path());
    // At once, before the connection stands.
    sidecar.learns("product").await;
    assert!(sidecar.snapshot().expect("a snapshot").service(&name("product")).is_some());
    assert_eq!(sidecar.want("nothing").await, Found::No, "an answer, not the end of patience");
    assert!(sidecar.handle.usage(&name("product")).is_some());

    let handle = sidecar.handle.clone();
    let from_another_thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
        runtime.block_on(handle.want(name("product")))
    });
    let found = tokio::task::spawn_blocking(move || from_another_thread.join().expect("no panic"));
    assert_eq!(found.await.expect("no panic"), Found::Yes);
}

#[tokio::test]
async fn a_control_plane_that_says_nothing_holds_nobody_up() {
    let control_plane = shop().await;
    let dir = tempfile::tempdir().expect("a directory");
    let sidecar = Sidecar::start(&control_plane, dir.path());
    sidecar.ready().await;
    control_plane.mute();
    let wants = async { tokio::join!(sidecar.want("slow"), sidecar.want("slow")) };
    let (a, b) = tokio::time::timeout(PATIENCE, wants).await.expect("they are not held up");
    assert_eq!((a, b), (Found::Unavailable, Found::Unavailable));
}

#[tokio::test]
async fn an_outage_changes_nothing_and_afterwards_only_what_changed_is_sent() {
    let control_plane = shop().await;
    let dir = tempfile::tempdir().expect("a directory");
    let sidecar = Sidecar::start(&control_plane, dir.path());
    sidecar.ready().await;
    sidecar.learns("product").await;
    let snapshots = sidecar.snapshots.lock().expect("unpoisoned").len();

    control_plane.kill().await;
    until("word of the loss", || sidecar.hooks.read().connected == [true, false]).await;
    sidecar.learns("product").await;
    assert_eq!(sidecar.handle.status()["source"]["connected"], false);
    assert!(sidecar.tls.is_ready());
    // Attempts that reach nobody say nothing about our certificate.
    until("several attempts", || sidecar.handle.status()["source"]["attempts"].as_u64() >= Some(4)).await;

    control_plane.revive().await;
    until("reconnection", || sidecar.hooks.read().connected == [true, false, true]).await;
    let received = control_plane.received();
    assert!(received[0].certified, "the certificate is proof enough now");
    let Message::Hello(hello) = &received[0].message else { panic!("Hello comes first") };
    assert!(hello.join_token.is_empty());
    let Message::Subscribe(subscribe) = &received[1].message else {
        panic!("no new certificate is asked for")
    };
    assert_eq!(subscribe.add.len(), 5);
    assert!(subscribe.add.iter().all(|subscription| !subscription.version.is_empty()));

    control_plane.publish(vec![endpoints("product", "2", "10.0.0.2:80")]);
    until("the change", || sidecar.version_of("product").as_deref() == Some("1/2")).await;
    let sent = control_plane.sent();
    assert_eq!(sent.len(), 1, "nothing was sent again");
    assert_eq!(sent[0].resources.len(), 1);
    assert_eq!(sidecar.snapshots.lock().expect("unpoisoned").len(), snapshots + 1);
}

#[tokio::test]
async fn a_rejected_resource_is_answered_and_the_last_good_one_serves() {
    let control_plane = shop().await;
    let dir = tempfile::tempdir().expect("a directory");
    let sidecar = Sidecar::start(&control_plane, dir.path());
    sidecar.learns("product").await;
    control_plane.publish(vec![broken_service("product", "2")]);
    until("the rejection", || acks(&control_plane.received()).iter().any(|ack| !ack.rejected.is_empty()))
        .await;
    let acks = acks(&control_plane.received());
    let rejected = acks.iter().find(|ack| !ack.rejected.is_empty()).expect("just seen");
    assert_eq!(rejected.rejected[0].name, "service/shop/product");
    assert_eq!(rejected.rejected[0].version, "2");
    assert_eq!(sidecar.version_of("product").as_deref(), Some("1/1"));
    assert_eq!(sidecar.hooks.read().rejected, ["service/shop/product"]);
    control_plane.publish(vec![service("product", "3")]);
    until("the fixed one", || sidecar.version_of("product").as_deref() == Some("3/1")).await;
}

#[tokio::test]
async fn a_restart_without_control_plane_serves_from_disk() {
    let control_plane = shop().await;
    let dir = tempfile::tempdir().expect("a directory");
    let before = Sidecar::start(&control_plane, dir.path());
    before.ready().await;
    before.learns("product").await;
    before.handle.shutdown().await;
    let serial = before.tls.identity().expect("an identity").serial.clone();
    control_plane.kill().await;

    let after = Sidecar::start(&control_plane, dir.path());
    let snapshot = after.snapshot().expect("in force before anything was waited for");
    assert!(snapshot.workload.is_some() && snapshot.service(&name("product")).is_some());
    assert!(after.tls.is_ready());
    assert_eq!(after.tls.identity().expect("an identity").serial, serial);
    assert_eq!(after.want("product").await, Found::Yes);

    control_plane.revive().await;
    control_plane.publish(vec![endpoints("product", "2", "10.0.0.2:80")]);
    until("the change", || after.version_of("product").as_deref() == Some("1/2")).await;
    let received = control_plane.received();
    assert!(received[0].certified);
    assert!(!received.iter().any(|received| matches!(received.message, Message::CertificateRequest(_))));
}

#[tokio::test]
async fn a_damaged_file_is_put_aside_and_the_control_plane_asked() {
    let control_plane = shop().await;
    let dir = tempfile::tempdir().expect("a directory");
    let state = dir.path().join("state");
    std::fs::create_dir(&state).expect("made");
    std::fs::write(state.join("last-known-good"), b"weft last known good, format 1\nxxxxxxxxxxxx")
        .expect("written");
    let sidecar = Sidecar::start(&control_plane, dir.path());
    assert!(sidecar.snapshot().is_none());
    assert!(state.join("last-known-good.corrupt").exists());
    sidecar.ready().await;
    until("a good file", || state.join("last-known-good").exists()).await;
}

#[tokio::test]
async fn certificates_of_five_seconds_are_renewed_without_a_gap() {
    let control_plane = ControlPlane::with(Ca::new(), CONTROL_PLANE_ID, Duration::from_secs(5)).await;
    publish_shop(&control_plane);
    let dir = tempfile::tempdir().expect("a directory");
    let sidecar = Sidecar::start(&control_plane, dir.path());
    sidecar.ready().await;
    // One refusal on the way must not make a gap either.
    control_plane.refuse_certificates(1);
    let mut serials = std::collections::BTreeSet::new();
    let end = Instant::now() + Duration::from_secs(9);
    while Instant::now() < end {
        let identity = sidecar.tls.identity().expect("an identity");
        assert!(identity.not_after > SystemTime::now(), "a gap");
        serials.insert(identity.serial.clone());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(serials.len() >= 3, "{} certificates in nine seconds", serials.len());
    assert!(sidecar.hooks.read().renewals.contains(&false), "the refusal was seen");
}

#[tokio::test]
async fn an_expired_certificate_leaves_the_disk() {
    let control_plane = ControlPlane::with(Ca::new(), CONTROL_PLANE_ID, Duration::from_secs(2)).await;
    publish_shop(&control_plane);
    let dir = tempfile::tempdir().expect("a directory");
    let sidecar = Sidecar::start(&control_plane, dir.path());
    sidecar.ready().await;
    let file = dir.path().join("state/last-known-good");
    let id = b"spiffe://weft.local/ns/shop/sa/cart";
    let holds_certificate =
        || std::fs::read(&file).is_ok_and(|bytes| bytes.windows(id.len()).any(|window| window == id));
    until("a certificate on disk", holds_certificate).await;
    control_plane.kill().await;
    until("no certificate on disk", || file.exists() && !holds_certificate()).await;
    let again = Sidecar::start(&control_plane, dir.path());
    assert!(again.tls.identity().is_none());
    assert!(again.snapshot().expect("policy").workload.is_some());
}

#[tokio::test]
async fn only_the_control_planes_own_identity_is_talked_to() {
    let impostor =
        ControlPlane::with(Ca::new(), "spiffe://weft.local/ns/shop/sa/product", Duration::from_secs(60))
            .await;
    let dir = tempfile::tempdir().expect("a directory");
    let sidecar = Sidecar::start(&impostor, dir.path());
    until("a refusal", || sidecar.handle.status()["source"]["lastFailure"].is_string()).await;
    let failure = sidecar.handle.status()["source"]["lastFailure"].to_string();
    assert!(failure.contains("spiffe://weft.local/ns/shop/sa/product"), "{failure}");
    assert!(impostor.received().is_empty(), "the join token was not shown");
}

#[tokio::test]
async fn a_foreign_ca_is_not_trusted() {
    let control_plane = ControlPlane::start().await;
    let dir = tempfile::tempdir().expect("a directory");
    Ca::new().write_pem(&dir.path().join("ca.pem"));
    let sidecar = Sidecar::start_trusting(&control_plane, dir.path());
    until("a refusal", || sidecar.handle.status()["source"]["attempts"].as_u64() >= Some(2)).await;
    assert!(control_plane.received().is_empty());
    control_plane.ca.write_pem(&dir.path().join("ca.pem"));
    publish_shop(&control_plane);
    sidecar.ready().await;
}

#[tokio::test]
async fn a_mesh_with_a_new_ca_is_joined_again_with_the_token() {
    let old = shop().await;
    let dir = tempfile::tempdir().expect("a directory");
    let before = Sidecar::start(&old, dir.path());
    before.ready().await;
    before.handle.shutdown().await;
    old.kill().await;

    let new = shop().await;
    let after = Sidecar::start(&new, dir.path());
    let serial = after.tls.identity().expect("the old identity").serial.clone();
    until("a new identity", || after.tls.identity().is_some_and(|identity| identity.serial != serial)).await;
    let hello = new.received().into_iter().find_map(|received| match received.message {
        Message::Hello(hello) => Some((hello, received.certified)),
        _ => None,
    });
    let (hello, certified) = hello.expect("a hello");
    assert_eq!((hello.join_token.as_str(), certified), ("the-token", false));
}

#[tokio::test]
async fn leases_say_where_and_whether_and_the_last_one_says_goodbye() {
    let control_plane = shop().await;
    let dir = tempfile::tempdir().expect("a directory");
    let sidecar = Sidecar::start(&control_plane, dir.path());
    sidecar.ready().await;
    sidecar.handle.set_inbound_address("10.1.2.3:15006".parse().expect("an address"));
    sidecar.handle.set_ready(true);
    until("the lease", || {
        leases(&control_plane.received())
            .iter()
            .any(|lease| lease.ready && lease.inbound_address == "10.1.2.3:15006")
    })
    .await;
    let count = leases(&control_plane.received()).len();
    until("renewed leases", || leases(&control_plane.received()).len() >= count + 4).await;
    sidecar.handle.shutdown().await;
    until("goodbye", || leases(&control_plane.received()).last().is_some_and(|lease| !lease.ready)).await;
    assert_eq!(sidecar.want("anything").await, Found::Unavailable, "nobody is left to ask");
}

#[tokio::test]
async fn calls_to_what_is_going_away_are_reported_once_and_to_every_new_control_plane_again() {
    let (control_plane, dir) = (shop().await, tempfile::tempdir().expect("a directory"));
    let sidecar = Sidecar::start(&control_plane, dir.path());
    let called = |counts: &[(&str, u64)]| {
        let counts = counts.iter().map(|(of, calls)| ((*of).into(), *calls)).collect();
        sidecar.hooks.note(|recorded| recorded.deprecated = counts);
    };
    let told = |wanted: &[(&str, u64)]| {
        let wanted: Vec<_> = wanted.iter().map(|(of, calls)| ((*of).to_owned(), *calls)).collect();
        deprecated_calls(&control_plane.received()) == wanted
    };
    called(&[("Service shop/old", 2)]);
    until("first report", || told(&[("Service shop/old", 2)])).await;
    called(&[("Service shop/old", 2), ("Service shop/older", 1)]);
    until("second report", || told(&[("Service shop/old", 2), ("Service shop/older", 1)])).await;

    control_plane.kill().await;
    control_plane.revive().await;
    until("everything again", || told(&[("Service shop/old", 2), ("Service shop/older", 1)])).await;

    called(&[("Service shop/old", 3), ("Service shop/older", 1)]);
    sidecar.handle.shutdown().await;
    let last = ("Service shop/old".to_owned(), 3);
    assert_eq!(deprecated_calls(&control_plane.received()).last(), Some(&last), "on leaving, what is new");
}
