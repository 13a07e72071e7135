//! The control plane: reads policy, keeps the registry, issues certificates and pushes all of it to sidecars.

mod admin;
pub mod caching;
mod dashboard;
mod endpoints;
mod http;
pub mod issuer;
mod mesh;
pub mod metrics;
mod private_file;
mod program;
pub mod publisher;
mod purges;
pub mod registry;
mod remembered;
mod server;
pub mod settings;
pub mod source;
pub mod status;
pub mod token;
mod usage;

pub use program::Program;
pub use settings::Settings;

use anyhow::{Context, Result, anyhow};
use issuer::Issuer;
use mesh::Mesh;
use metrics::Metrics;
use purges::Purges;
use remembered::Remembered;
use std::{
    fs,
    future::Future,
    net::SocketAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use token::TokenKey;
use tokio::{net::TcpListener, sync::watch, task::JoinHandle, time};

/// How often leases are checked.
const TICK: Duration = Duration::from_millis(100);
/// How often the CA's files are looked at, and leases are written down if they changed.
const SLOW_TICK: Duration = Duration::from_secs(1);

/// Starts control planes.
pub struct ControlPlane;

/// A control plane that runs. Dropping it stops it without ceremony; [`Running::shutdown`] lets streams end properly.
pub struct Running {
    addresses: Addresses,
    stop: watch::Sender<bool>,
    tasks: Vec<JoinHandle<()>>,
    push: JoinHandle<Result<()>>,
    mesh: Arc<Mesh>,
    remembered: Arc<Remembered>,
    ready: Arc<AtomicBool>,
    _watch: source::Watch,
    _only_one: fs::File,
}

/// Where a control plane listens, with the ports that were given as 0 filled in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// gRPC for sidecars.
    pub push: SocketAddr,
    /// Metrics, readiness and liveness.
    pub metrics: SocketAddr,
    /// Dashboard and API.
    pub dashboard: SocketAddr,
}

/// Runs a control plane until `shutdown` completes.
pub async fn run(settings: Settings, shutdown: impl Future<Output = ()>) -> Result<()> {
    let mut running = ControlPlane::start(settings).await?;
    let addresses = running.addresses;
    tracing::info!(
        sidecars = %addresses.push, dashboard = %format!("http://{}", addresses.dashboard),
        metrics = %format!("http://{}/metrics", addresses.metrics), "the control plane is ready"
    );
    tokio::select! {
        () = shutdown => {}
        failed = &mut running.push => {
            failed.context("the push port panicked")??;
            return Err(anyhow!("the push port stopped by itself"));
        }
    }
    tracing::info!("stopping");
    running.shutdown().await
}

impl ControlPlane {
    /// Starts one: everything is bound, and the policy that is there is in force, when this returns.
    pub async fn start(settings: Settings) -> Result<Running> {
        let (ready, settings) = (Arc::new(AtomicBool::new(false)), Arc::new(settings));
        let push = bind(settings.listen, "--listen").await?;
        let metrics_port = bind(settings.metrics, "--metrics").await?;
        let dashboard = bind(settings.dashboard, "--dashboard").await?;
        let addresses = Addresses {
            push: push.local_addr()?,
            metrics: metrics_port.local_addr()?,
            dashboard: dashboard.local_addr()?,
        };
        // Keys and policy are read from disk and compiled: not on a runtime thread.
        let prepared = tokio::task::spawn_blocking({
            let settings = settings.clone();
            move || prepare(&settings)
        });
        let Prepared { mesh, remembered, watch, only_one } =
            prepared.await.context("starting panicked")??;

        let (stop, stopped) = watch::channel(false);
        let mut tasks = vec![
            tokio::spawn(http::serve(
                metrics_port,
                admin::router(mesh.metrics.clone(), ready.clone()),
                stopped.clone(),
            )),
            tokio::spawn(http::serve(
                dashboard,
                dashboard::router(mesh.clone(), stopped.clone()),
                stopped.clone(),
            )),
        ];
        tasks.push(tokio::spawn(expire_leases(mesh.clone(), stopped.clone())));
        tasks.push(tokio::spawn(look_after(mesh.clone(), remembered.clone(), stopped.clone())));
        let push = tokio::spawn(server::serve(push, mesh.clone(), stopped));
        ready.store(true, Ordering::Release);
        Ok(Running {
            addresses,
            stop,
            tasks,
            push,
            mesh,
            remembered,
            ready,
            _watch: watch,
            _only_one: only_one,
        })
    }
}

struct Prepared {
    mesh: Arc<Mesh>,
    remembered: Arc<Remembered>,
    watch: source::Watch,
    only_one: fs::File,
}

fn prepare(settings: &Settings) -> Result<Prepared> {
    private_file::prepare_directory(&settings.state_dir)?;
    let only_one = only_one(&settings.state_dir)?;
    let issuer = Arc::new(Issuer::open(settings)?);
    let tokens = TokenKey::open_or_create(&settings.state_dir)?;
    let metrics = Arc::new(Metrics::new()?);
    let remembered = Arc::new(Remembered::new(&settings.state_dir));
    let purges = Purges::new(remembered.purges()?);
    let mesh = Arc::new(Mesh::new(settings, issuer, tokens, metrics, remembered.clone(), purges));
    let before = source::Tree { files: remembered.policy(), problems: Vec::new() };
    mesh.recall_policy(&before.files);
    let watch = source::watch(settings.policy.clone(), before, {
        let (mesh, remembered) = (mesh.clone(), remembered.clone());
        move |tree| mesh.apply(tree, &remembered)
    })?;
    Ok(Prepared { mesh, remembered, watch, only_one })
}

impl Running {
    /// Where it listens.
    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// The mesh as it is now, as `GET /api/status` tells it.
    pub async fn status(&self) -> Result<status::Status> {
        let mesh = self.mesh.clone();
        tokio::task::spawn_blocking(move || mesh.status()).await.context("taking the status panicked")
    }

    /// Stops: tells every sidecar, writes down what the next start needs, waits for all tasks.
    pub async fn shutdown(mut self) -> Result<()> {
        self.ready.store(false, Ordering::Release);
        // Before the streams end: who serves now is who is to be expected back.
        let serving = self.mesh.serving();
        self.stop.send_replace(true);
        let push = if self.push.is_finished() { Ok(()) } else { finished((&mut self.push).await) };
        for task in self.tasks.drain(..) {
            let _ = time::timeout(Duration::from_secs(5), task).await;
        }
        // After the task that writes leases down has ended: it could be writing what was true a moment ago.
        self.remembered.keep_leases(&serving).and(push)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        for task in &self.tasks {
            task.abort();
        }
        self.push.abort();
    }
}

fn finished(ended: Result<Result<()>, tokio::task::JoinError>) -> Result<()> {
    ended.context("the push port panicked")?
}

async fn bind(address: SocketAddr, flag: &str) -> Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen on {address}; give another address with {flag}"))
}

/// Two control planes on one state directory would overwrite each other's leases and CA.
fn only_one(state_dir: &Path) -> Result<fs::File> {
    let path = state_dir.join("lock");
    let file = fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .with_context(|| format!("cannot open {}", path.display()))?;
    rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).map_err(|_| {
        anyhow!(
            "another control plane runs on the state directory {}; stop it or give another with --state-dir",
            state_dir.display()
        )
    })?;
    Ok(file)
}

/// Completes when the control plane is to stop.
pub(crate) async fn told(stop: &mut watch::Receiver<bool>) {
    // The sender being gone means the same.
    let _ = stop.wait_for(|stop| *stop).await.is_ok();
}

async fn expire_leases(mesh: Arc<Mesh>, mut stop: watch::Receiver<bool>) {
    let mut tick = time::interval(TICK);
    tick.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = told(&mut stop) => return,
            _ = tick.tick() => mesh.tick().await,
        }
    }
}

/// Follows the CA's files and writes leases down, once a second.
async fn look_after(mesh: Arc<Mesh>, remembered: Arc<Remembered>, mut stop: watch::Receiver<bool>) {
    let mut tick = time::interval(SLOW_TICK);
    tick.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
    let mut kept = None;
    let mut last_failure = String::new();
    loop {
        tokio::select! {
            () = told(&mut stop) => return,
            _ = tick.tick() => {}
        }
        let (mesh, remembered) = (mesh.clone(), remembered.clone());
        let serving = mesh.serving();
        let write = kept.as_ref() != Some(&serving);
        let work = tokio::task::spawn_blocking(move || {
            if write {
                remembered.keep_leases(&serving).context("leases are not written down")?;
            }
            if mesh.issuer.refresh(mesh.everyone_trusts()).context("the trust bundle stays as it is")? {
                mesh.publish_trust();
                tracing::info!("the trust bundle has changed and is pushed");
            }
            Ok::<_, anyhow::Error>(serving)
        });
        match work.await {
            Ok(Ok(serving)) => {
                kept = Some(serving);
                last_failure.clear();
            }
            Ok(Err(error)) => {
                // Said once, not every second.
                let failure = format!("{error:#}");
                if failure != last_failure {
                    tracing::error!("{failure}");
                    last_failure = failure;
                }
            }
            Err(_) => return,
        }
    }
}
