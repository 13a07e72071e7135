//! Static mode: what happens in the directory is in force soon after, and what is broken is not.

use super::super::{self as policy, Files, Found, Handle, Hooks, IdentityFiles, PolicySettings, Source};
use super::control_plane::Ca;
use crate::tls::Tls;
use std::{
    fs,
    os::unix::fs::symlink,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};
use weft_config::{identity::ServiceName, snapshot::Snapshot};

/// How long a test waits for anything that should be there at once.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Default)]
struct Rejections(Mutex<Vec<String>>);

impl Hooks for Rejections {
    fn connected(&self, _: bool) {}
    fn rejected(&self, _: &str, reason: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(reason.to_owned());
    }
    fn updated(&self, _: &str) {}
    fn identity(&self, _: SystemTime) {}
    fn renewal(&self, _: bool) {}
}

struct Sidecar {
    handle: Handle,
    tls: Arc<Tls>,
    rejections: Arc<Rejections>,
    snapshots: Arc<Mutex<Vec<Arc<Snapshot>>>>,
}

impl Sidecar {
    fn start(directory: &Path, identity: Option<IdentityFiles>) -> anyhow::Result<Self> {
        let tls = Arc::new(Tls::new("weft.local"));
        let rejections = Arc::new(Rejections::default());
        let snapshots: Arc<Mutex<Vec<Arc<Snapshot>>>> = Arc::default();
        let sink = snapshots.clone();
        let settings = PolicySettings {
            namespace: "shop".to_owned(),
            workload: "cart".to_owned(),
            service_account: "cart".to_owned(),
            source: Source::Files(Files { directory: directory.to_owned(), identity }),
        };
        let sink =
            Arc::new(move |snapshot| sink.lock().unwrap_or_else(PoisonError::into_inner).push(snapshot));
        let handle = policy::start(settings, tls.clone(), sink, rejections.clone())?;
        Ok(Self { handle, tls, rejections, snapshots })
    }

    fn snapshot(&self) -> Option<Arc<Snapshot>> {
        self.snapshots.lock().unwrap_or_else(PoisonError::into_inner).last().cloned()
    }

    /// The ports of the service `product`.
    fn ports(&self) -> Vec<u16> {
        let snapshot = self.snapshot();
        let service =
            snapshot.as_ref().and_then(|snapshot| snapshot.service(&ServiceName::new("shop", "product")));
        service.map(|service| service.ports.iter().map(|port| port.port).collect()).unwrap_or_default()
    }

    async fn until_port(&self, port: u16) {
        let end = Instant::now() + PATIENCE;
        while self.ports() != [port] {
            assert!(Instant::now() < end, "{port} is not in force: {:?}", self.ports());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

fn product(port: u16) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{ name: product, namespace: shop }}\nspec:\n  ports:\n    - port: {port}\n"
    )
}

const CART: &str = "apiVersion: weft.mesh/v1alpha1\nkind: Workload\nmetadata: { name: cart, namespace: shop }\n\
                    spec:\n  service: cart\n  ports: [{ port: 80, appPort: 8080 }]\n";

fn write(path: &Path, text: &str) {
    fs::write(path, text).expect("written");
}

#[tokio::test]
async fn everything_in_the_tree_is_in_force_at_once() {
    let dir = tempfile::tempdir().expect("a directory");
    fs::create_dir(dir.path().join("deep")).expect("made");
    write(&dir.path().join("deep/product.yml"), &product(80));
    write(&dir.path().join("cart.yaml"), CART);
    write(&dir.path().join(".product.yaml.swp"), "not: [policy");
    write(&dir.path().join(".hidden.yaml"), &product(1));
    write(&dir.path().join("product.yaml~"), &product(2));
    write(&dir.path().join("notes.txt"), "not: [policy");
    let sidecar = Sidecar::start(dir.path(), None).expect("started");
    assert_eq!(sidecar.ports(), [80]);
    assert!(sidecar.snapshot().expect("a snapshot").workload.is_some());
    assert_eq!(sidecar.handle.want(ServiceName::new("shop", "product")).await, Found::Yes);
    assert_eq!(sidecar.handle.want(ServiceName::new("shop", "nothing")).await, Found::No);
    assert!(sidecar.rejections.0.lock().expect("unpoisoned").is_empty());
    sidecar.handle.shutdown().await;
}

#[tokio::test]
async fn a_saved_file_is_in_force_within_a_second_however_it_is_saved() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("product.yaml");
    write(&file, &product(80));
    let sidecar = Sidecar::start(dir.path(), None).expect("started");
    let mut took = Vec::new();
    for port in [90, 91, 92, 93, 81] {
        let saved = Instant::now();
        write(&file, &product(port));
        sidecar.until_port(port).await;
        took.push(saved.elapsed());
    }
    // Looking now and then would take longer each time; a busy machine may hold up some of them.
    assert!(took.iter().any(|took| *took < Duration::from_secs(1)), "{took:?}");
    // As editors do: a new file takes the old one's name.
    write(&dir.path().join(".product.new"), &product(82));
    fs::rename(dir.path().join(".product.new"), &file).expect("renamed");
    sidecar.until_port(82).await;
    fs::remove_file(&file).expect("removed");
    fs::create_dir(dir.path().join("later")).expect("made");
    write(&dir.path().join("later/product.yaml"), &product(83));
    sidecar.until_port(83).await;
}

#[tokio::test]
async fn a_config_map_is_swapped_by_its_link() {
    let dir = tempfile::tempdir().expect("a directory");
    let version = |name: &str, port| {
        fs::create_dir(dir.path().join(name)).expect("made");
        write(&dir.path().join(name).join("product.yaml"), &product(port));
    };
    version("..one", 80);
    symlink("..one", dir.path().join("..data")).expect("linked");
    symlink("..data/product.yaml", dir.path().join("product.yaml")).expect("linked");
    let sidecar = Sidecar::start(dir.path(), None).expect("started");
    assert_eq!(sidecar.ports(), [80]);
    version("..two", 81);
    symlink("..two", dir.path().join("..data_tmp")).expect("linked");
    fs::rename(dir.path().join("..data_tmp"), dir.path().join("..data")).expect("swapped");
    fs::remove_dir_all(dir.path().join("..one")).expect("removed");
    sidecar.until_port(81).await;
}

#[tokio::test]
async fn a_broken_file_changes_nothing_and_is_said_so() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("product.yaml");
    write(&file, &product(80));
    let sidecar = Sidecar::start(dir.path(), None).expect("started");
    let count = sidecar.snapshots.lock().expect("unpoisoned").len();
    write(&file, &product(81).replace("81", "eighty"));
    let end = Instant::now() + PATIENCE;
    while sidecar.rejections.0.lock().expect("unpoisoned").is_empty() {
        assert!(Instant::now() < end, "no error was reported");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let said = sidecar.rejections.0.lock().expect("unpoisoned").join("\n");
    assert!(said.contains("product.yaml:") && said.contains("eighty"), "{said}");
    assert_eq!(sidecar.ports(), [80]);
    assert_eq!(sidecar.snapshots.lock().expect("unpoisoned").len(), count);
    let status = sidecar.handle.status()["source"]["errors"].to_string();
    assert!(status.contains("eighty"), "{status}");
    write(&file, &product(82));
    sidecar.until_port(82).await;
}

#[tokio::test]
async fn a_directory_that_goes_away_takes_nothing_with_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let policy = dir.path().join("policy");
    fs::create_dir(&policy).expect("made");
    write(&policy.join("product.yaml"), &product(80));
    let sidecar = Sidecar::start(&policy, None).expect("started");
    fs::rename(&policy, dir.path().join("elsewhere")).expect("moved");
    let end = Instant::now() + PATIENCE;
    while !sidecar.handle.status()["source"]["problem"].is_string() {
        assert!(Instant::now() < end, "the problem is not in the status");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(sidecar.ports(), [80]);
    fs::create_dir(&policy).expect("made");
    write(&policy.join("product.yaml"), &product(81));
    sidecar.until_port(81).await;
}

#[tokio::test]
async fn the_identity_comes_from_files_and_is_checked_first() {
    let dir = tempfile::tempdir().expect("a directory");
    let ca = Ca::new();
    let files = IdentityFiles {
        certificate: dir.path().join("cert.pem"),
        key: dir.path().join("key.pem"),
        roots: dir.path().join("ca.pem"),
    };
    let policy = dir.path().join("policy");
    fs::create_dir(&policy).expect("made");
    assert!(Sidecar::start(&policy, Some(files.clone())).is_err(), "there are no such files");
    ca.write_pem(&files.roots);
    ca.write_identity("spiffe://weft.local/ns/shop/sa/cart", &files.certificate, &files.key);
    let sidecar = Sidecar::start(&policy, Some(files.clone())).expect("started");
    assert!(sidecar.tls.is_ready());
    let serial = sidecar.tls.identity().expect("an identity").serial.clone();
    ca.write_identity("spiffe://weft.local/ns/shop/sa/cart", &files.certificate, &files.key);
    let end = Instant::now() + PATIENCE;
    while sidecar.tls.identity().expect("an identity").serial == serial {
        assert!(Instant::now() < end, "the rotated identity is not in force");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
