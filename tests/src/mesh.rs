//! The mesh itself: one control plane over a directory of policy, and the sidecars that join it.

use crate::{ANYWHERE, PATIENCE, eventually, raw, show_log};
use clap::Parser;
use std::{
    fs,
    future::Future,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};
use tokio::runtime::{Builder, Runtime};
use weft_control_plane::{
    ControlPlane, Running, Settings as ControlSettings, status,
    token::{Claims, TokenKey},
};
use weft_sidecar::{Addresses, Settings, Sidecar};

/// The namespace of everything in these tests.
pub const NAMESPACE: &str = "shop";

/// A runtime that can be killed with all that runs in it.
struct Own(Option<Runtime>);

impl Own {
    fn new(name: &str) -> Self {
        let runtime = Builder::new_multi_thread().worker_threads(1).thread_name(name).enable_all().build();
        Self(Some(runtime.expect("a runtime")))
    }

    async fn run<T: Send + 'static>(&self, future: impl Future<Output = T> + Send + 'static) -> T {
        let runtime = self.0.as_ref().expect("there until it is dropped");
        runtime.spawn(future).await.expect("did not panic")
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// The flags of a sidecar.
#[derive(Parser)]
struct Program {
    #[command(flatten)]
    settings: Settings,
}

/// A mesh: its files, and the control plane if it runs.
pub struct Mesh {
    root: tempfile::TempDir,
    settings: ControlSettings,
    // Dropped in this order: first the control plane, then what it runs in.
    running: Option<Running>,
    own: Option<Own>,
    joined: AtomicUsize,
}

impl Mesh {
    /// Starts a control plane over `policy`, the YAML of one file.
    pub async fn start(policy: &str) -> Self {
        Self::start_with(policy, |settings| settings).await
    }

    /// The same with other settings than the usual.
    pub async fn start_with(policy: &str, change: impl FnOnce(ControlSettings) -> ControlSettings) -> Self {
        show_log();
        let root = tempfile::tempdir().expect("a temporary directory");
        fs::create_dir(root.path().join("policy")).expect("a directory");
        let settings = change(ControlSettings {
            policy: vec![root.path().join("policy")],
            state_dir: root.path().join("control-plane"),
            listen: ANYWHERE,
            metrics: ANYWHERE,
            dashboard: ANYWHERE,
            ..ControlSettings::default()
        });
        let mut mesh = Self { root, settings, running: None, own: None, joined: AtomicUsize::new(0) };
        mesh.write("policy.yaml", policy);
        mesh.start_control_plane().await;
        mesh
    }

    /// Saves a policy file as editors do: written beside it, then renamed.
    pub fn write(&self, name: &str, yaml: &str) {
        let directory = self.root.path().join("policy");
        let beside = self.root.path().join("being-written");
        fs::write(&beside, yaml).expect("written");
        fs::rename(&beside, directory.join(name)).expect("renamed");
    }

    /// Lays a file of a secret, in place of an earlier one, where every sidecar finds it.
    pub fn secret(&self, name: &str, file: &str, text: &str) {
        let folder = self.secrets_dir().join(NAMESPACE).join(name);
        let beside = self.root.path().join("secret-being-written");
        fs::create_dir_all(&folder).expect("a directory");
        fs::write(&beside, text).expect("written");
        fs::rename(&beside, folder.join(file)).expect("renamed");
    }

    fn secrets_dir(&self) -> PathBuf {
        self.root.path().join("secrets")
    }

    /// The control plane's state directory, where the CA is.
    pub fn state_dir(&self) -> &Path {
        &self.settings.state_dir
    }

    /// Starts the control plane, on the ports that it had before if it ran already.
    pub async fn start_control_plane(&mut self) {
        let own = Own::new("control-plane");
        let running = own.run(ControlPlane::start(self.settings.clone())).await.expect("a control plane");
        let at = running.addresses();
        (self.settings.listen, self.settings.metrics, self.settings.dashboard) =
            (at.push, at.metrics, at.dashboard);
        (self.running, self.own) = (Some(running), Some(own));
    }

    /// Ends the control plane as a crash does.
    pub fn kill_control_plane(&mut self) {
        self.running = None;
        self.own = None;
    }

    /// Ends the control plane as a crash does, and starts it again where it was; `between` is while it is gone.
    pub async fn crash_control_plane(&mut self, between: impl FnOnce()) {
        let at = self.control_plane();
        self.kill_control_plane();
        are_free([at.push, at.metrics, at.dashboard]).await;
        between();
        self.start_control_plane().await;
    }

    /// Where the control plane listens.
    pub fn control_plane(&self) -> weft_control_plane::Addresses {
        self.running.as_ref().expect("a control plane that runs").addresses()
    }

    /// The mesh as the control plane sees it.
    pub async fn status(&self) -> status::Status {
        self.running.as_ref().expect("a control plane that runs").status().await.expect("a status")
    }

    /// Waits until the status is as wanted.
    pub async fn until(&self, what: &str, wanted: impl Fn(&status::Status) -> bool) -> status::Status {
        eventually(what, PATIENCE, || async {
            let status = self.status().await;
            wanted(&status).then_some(status)
        })
        .await
    }

    /// Waits until `service` has `count` endpoints and every sidecar knows.
    pub async fn endpoints(&self, service: &str, count: usize) {
        self.until(&format!("{count} endpoints of {service}"), |status| {
            let found = status.services.iter().find(|s| s.name == service).map(|s| s.endpoints.len());
            found == Some(count) && status.sidecars.iter().all(|s| !s.behind)
        })
        .await;
    }

    /// The whole text of the control plane's metrics.
    pub async fn control_plane_metrics(&self) -> crate::metrics::Metrics {
        crate::metrics::scrape(self.control_plane().metrics).await
    }

    /// Starts a sidecar and waits until it is ready.
    pub async fn sidecar(&self, beside: Beside) -> Process {
        let process = self.sidecar_unready(beside).await;
        process.ready().await;
        process
    }

    /// Starts a sidecar without waiting for anything.
    pub async fn sidecar_unready(&self, beside: Beside) -> Process {
        let Beside {
            workload,
            account,
            apps,
            addresses,
            state_dir,
            drain,
            workers,
            namespace,
            control_plane,
        } = beside;
        let turn = self.joined.fetch_add(1, Ordering::Relaxed);
        let claims = Claims::for_next(Duration::from_secs(600), namespace.as_str(), account.as_str(), None);
        let token = TokenKey::open_or_create(&self.settings.state_dir).expect("a key").issue(&claims);
        let token_file = self.root.path().join(format!("{workload}-{turn}.token"));
        fs::write(&token_file, token.expect("a token")).expect("written");
        let state_dir = state_dir.unwrap_or_else(|| self.root.path().join(format!("{workload}-{turn}")));
        let at = addresses.unwrap_or(Addresses {
            outbound: ANYWHERE,
            inbound: ANYWHERE,
            admin: ANYWHERE,
            metrics: ANYWHERE,
        });
        let ca_file = self.settings.state_dir.join("ca.pem");
        let mut flags = vec![
            ("--namespace", namespace),
            ("--workload", workload),
            ("--service-account", account),
            ("--control-plane", control_plane.unwrap_or(self.settings.listen).to_string()),
            ("--ca-file", ca_file.display().to_string()),
            ("--join-token-file", token_file.display().to_string()),
            ("--state-dir", state_dir.display().to_string()),
            ("--secrets-dir", self.secrets_dir().display().to_string()),
            ("--outbound", at.outbound.to_string()),
            ("--inbound", at.inbound.to_string()),
            ("--admin", at.admin.to_string()),
            ("--metrics", at.metrics.to_string()),
            ("--workers", workers.to_string()),
        ];
        flags.extend(apps.iter().map(|(port, address)| ("--app", format!("{port}={address}"))));
        let process = Process::start(&flags, drain, state_dir).await;
        process.expect("a sidecar")
    }
}

/// What a sidecar is to stand beside.
#[derive(Clone)]
pub struct Beside {
    namespace: String,
    workload: String,
    account: String,
    apps: Vec<(u16, SocketAddr)>,
    addresses: Option<Addresses>,
    state_dir: Option<PathBuf>,
    drain: Option<Duration>,
    workers: u16,
    control_plane: Option<SocketAddr>,
}

impl Beside {
    /// The workload of that name, whose service account is called the same.
    pub fn new(workload: &str) -> Self {
        Self {
            namespace: NAMESPACE.to_owned(),
            workload: workload.to_owned(),
            account: workload.to_owned(),
            apps: Vec::new(),
            addresses: None,
            state_dir: None,
            drain: None,
            workers: 1,
            control_plane: None,
        }
    }

    /// With another service account than the workload's name.
    pub fn account(mut self, account: &str) -> Self {
        self.account = account.to_owned();
        self
    }

    /// In another namespace than the usual.
    pub fn namespace(mut self, namespace: &str) -> Self {
        self.namespace = namespace.to_owned();
        self
    }

    /// Calls to service port `port` go to `address`.
    pub fn app(mut self, port: u16, address: SocketAddr) -> Self {
        self.apps.push((port, address));
        self
    }

    /// Where an earlier one was, with what that wrote to disk.
    pub fn again(mut self, addresses: Addresses, state_dir: PathBuf) -> Self {
        self.addresses = Some(addresses);
        self.state_dir = Some(state_dir);
        self
    }

    /// How long a drain may take.
    pub fn drain(mut self, limit: Duration) -> Self {
        self.drain = Some(limit);
        self
    }

    /// Reaches the control plane at another address than its own.
    pub fn control_plane(mut self, address: SocketAddr) -> Self {
        self.control_plane = Some(address);
        self
    }

    /// With so many worker threads.
    pub fn workers(mut self, workers: u16) -> Self {
        self.workers = workers;
        self
    }
}

/// A sidecar that runs as if it were a process. Dropped, it is gone without a goodbye.
pub struct Process {
    addresses: Addresses,
    state_dir: PathBuf,
    // Dropped in this order.
    sidecar: Sidecar,
    own: Own,
}

impl Process {
    /// Starts a sidecar by its flags, as everybody else starts one.
    pub async fn start(
        flags: &[(&str, String)],
        drain: Option<Duration>,
        state_dir: PathBuf,
    ) -> anyhow::Result<Self> {
        show_log();
        let words = flags.iter().flat_map(|(flag, value)| [(*flag).to_owned(), value.clone()]);
        let program = Program::try_parse_from(std::iter::once("weft-sidecar".to_owned()).chain(words))?;
        let settings = Settings { drain_timeout: drain, ..program.settings };
        let own = Own::new("sidecar");
        let sidecar = own.run(Sidecar::start(settings)).await?;
        Ok(Self { addresses: sidecar.addresses(), state_dir, sidecar, own })
    }

    /// Where it listens.
    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// Where it keeps its last known good state.
    pub fn state_dir(&self) -> PathBuf {
        self.state_dir.clone()
    }

    /// The proxy port for the application's own calls.
    pub fn outbound(&self) -> SocketAddr {
        self.addresses.outbound
    }

    /// Waits until it says that it is ready.
    pub async fn ready(&self) {
        let last = std::sync::Mutex::new(String::new());
        let waiting = async {
            loop {
                let (status, text) = raw::get(self.addresses.metrics, "/ready").await;
                if status == 200 {
                    return;
                }
                *last.lock().expect("not poisoned") = text;
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        if tokio::time::timeout(PATIENCE, waiting).await.is_err() {
            panic!("never ready: {}", last.lock().expect("not poisoned"));
        }
    }

    /// Its metrics.
    pub async fn metrics(&self) -> crate::metrics::Metrics {
        crate::metrics::scrape(self.addresses.metrics).await
    }

    /// A page of its admin interface, as JSON.
    pub async fn admin(&self, path: &str) -> serde_json::Value {
        let (status, text) = raw::get(self.addresses.admin, &format!("{path}?format=json")).await;
        assert_eq!(status, 200, "{text}");
        serde_json::from_str(&text).expect("JSON")
    }

    /// Requests of its application that are under way, as `/clusters` shows them.
    pub async fn in_flight(&self) -> u64 {
        let clusters = self.admin("/clusters").await;
        let endpoints = clusters
            .as_array()
            .into_iter()
            .flatten()
            .flat_map(|cluster| cluster["endpoints"].as_array().into_iter().flatten());
        endpoints.map(|endpoint| endpoint["in_flight"].as_u64().expect("a number")).sum()
    }

    /// The serial number of the certificate in use.
    pub async fn serial(&self) -> String {
        self.admin("/certs").await["identity"]["serial"].to_string()
    }

    /// Ends it as SIGTERM does; gives how many connections were cut.
    pub async fn drain(self) -> usize {
        let Self { sidecar, own, .. } = self;
        own.run(async move { sidecar.drain(std::future::pending()).await }).await
    }
}

/// Waits until nobody listens any more where a sidecar was that is gone.
pub async fn until_free(at: Addresses) {
    are_free([at.outbound, at.inbound, at.admin, at.metrics]).await;
}

/// Threads of what was killed may need a moment to end.
async fn are_free(addresses: impl IntoIterator<Item = SocketAddr>) {
    for address in addresses {
        eventually(&format!("{address} is free"), PATIENCE, || async {
            std::net::TcpListener::bind(address).is_ok().then_some(())
        })
        .await;
    }
}

/// The document of a workload that serves a service of its own name on one port.
pub fn serving(name: &str, port: u16, protocol: &str) -> String {
    format!(
        "---
apiVersion: weft.mesh/v1alpha1
kind: Workload
metadata: {{ name: {name}, namespace: {NAMESPACE}, labels: {{ app: {name} }} }}
spec:
  service: {name}
  serviceAccount: {name}
  ports: [{{ port: {port}, appProtocol: {protocol} }}]
"
    )
}

/// The document of a workload that only calls.
pub fn calling(name: &str) -> String {
    format!(
        "---
apiVersion: weft.mesh/v1alpha1
kind: Workload
metadata: {{ name: {name}, namespace: {NAMESPACE} }}
spec: {{ serviceAccount: {name} }}
"
    )
}

/// The MeshPolicy document with this `spec`.
pub fn mesh_policy(spec: &str) -> String {
    format!(
        "---
apiVersion: weft.mesh/v1alpha1
kind: MeshPolicy
metadata: {{ name: mesh }}
spec: {spec}
"
    )
}

/// The TrafficPolicy document of a service, with these fields of `spec` in YAML's flow style.
pub fn traffic(service: &str, fields: &str) -> String {
    traffic_at(service, &format!("{{ kind: Service, name: {service} }}"), fields)
}

/// The TrafficPolicy document called `name` that is attached to `target`.
pub fn traffic_at(name: &str, target: &str, fields: &str) -> String {
    format!(
        "---
apiVersion: weft.mesh/v1alpha1
kind: TrafficPolicy
metadata: {{ name: {name}, namespace: {NAMESPACE} }}
spec: {{ targetRefs: [{target}], {fields} }}
"
    )
}

/// The document of one instance of `service` that has no sidecar: it is called in plain text.
pub fn outside(name: &str, service: &str, port: u16, app: SocketAddr) -> String {
    let (address, app_port) = (app.ip(), app.port());
    format!(
        "---
apiVersion: weft.mesh/v1alpha1
kind: Workload
metadata: {{ name: {name}, namespace: {NAMESPACE} }}
spec:
  service: {service}
  ports: [{{ port: {port}, appPort: {app_port}, appProtocol: http }}]
  mesh: false
  address: {address}
"
    )
}
