//! Starting and stopping a sidecar: sockets, workers, policy, admin, readiness, drain.

mod caching;

use crate::{
    admin::{self, Inspect},
    cache,
    policy::{self, ControlPlane, Files, IdentityFiles, PolicySettings, Source},
    settings::Settings,
    telemetry::{
        access_log::AccessLog,
        log::{self, Level},
        metrics::{Direction, Metrics},
    },
    tls::Tls,
    worker::Shared,
    worker_thread::{Command, Handle, bind_all},
};
use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::{
    net::SocketAddr,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};
use tokio::{
    net::{TcpListener, TcpStream},
    signal::unix::{SignalKind, signal},
    sync::{Notify, oneshot, watch},
    time::{sleep, timeout},
};
use weft_config::{purge::Kind, wire};

/// How long a withdrawn endpoint is still served before the listeners close: callers learn of it meanwhile.
const WITHDRAWAL: Duration = Duration::from_millis(300);
/// How often the application is looked at while it is down, and while it is up.
const PROBE_DOWN: Duration = Duration::from_millis(50);
const PROBE_UP: Duration = Duration::from_secs(2);

/// A running sidecar.
pub struct Sidecar {
    shared: Arc<Shared>,
    workers: Vec<Handle>,
    addresses: Addresses,
    stop_admin: watch::Sender<bool>,
    state: Arc<State>,
}

/// Where a sidecar listens, with the ports it really got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// Outgoing calls of the application.
    pub outbound: SocketAddr,
    /// Calls of peers.
    pub inbound: SocketAddr,
    /// Admin interface.
    pub admin: SocketAddr,
    /// Health and metrics.
    pub metrics: SocketAddr,
}

/// What the control thread's tasks share.
struct State {
    draining: AtomicBool,
    app_up: AtomicBool,
    /// A first SIGTERM by other means: drain.
    stop: Notify,
    /// A second one: end at once.
    quit: Notify,
}

impl Sidecar {
    /// Starts a sidecar on the current runtime, with a thread of its own for each worker.
    pub async fn start(settings: Settings) -> Result<Self> {
        Self::with_log(settings, None).await
    }

    async fn with_log(settings: Settings, log_level: Option<Level>) -> Result<Self> {
        raise_file_limit();
        let tls = Arc::new(Tls::new(settings.trust_domain.as_str()));
        let metrics = Metrics::new(usize::from(settings.workers));
        let access_log = AccessLog::stdout(metrics.clone());
        let (sockets, outbound, inbound) =
            bind_all(settings.outbound, settings.inbound, usize::from(settings.workers))?;
        let admin_socket = bind_control(settings.admin, "--admin").await?;
        let metrics_socket = bind_control(settings.metrics, "--metrics").await?;
        let addresses = Addresses {
            outbound,
            inbound,
            admin: admin_socket.local_addr()?,
            metrics: metrics_socket.local_addr()?,
        };
        let shared = Arc::new(Shared::new(settings, tls, metrics.clone(), access_log, log_level));
        let _ = shared.own_addresses.set(vec![addresses.outbound, addresses.inbound]);
        start_policy(&shared, advertised(&shared.settings, inbound))?;
        let mut workers = Vec::with_capacity(sockets.len());
        for (index, sockets) in sockets.into_iter().enumerate() {
            workers
                .push(Handle::start(shared.clone(), index, sockets).context("cannot start a worker thread")?);
        }
        let state = Arc::new(State {
            draining: AtomicBool::new(false),
            app_up: AtomicBool::new(false),
            stop: Notify::new(),
            quit: Notify::new(),
        });
        let (stop_admin, mut stopped) = watch::channel(false);
        let view = Arc::new(View {
            shared: shared.clone(),
            workers: workers.iter().map(Handle::commands).collect(),
            state: state.clone(),
        });
        let stopped = async move {
            // An error is a sender that is gone: stopped too.
            let _ = stopped.wait_for(|stopped| *stopped).await;
        };
        tokio::spawn(admin::serve(admin_socket, metrics_socket, view, metrics, stopped));
        tokio::spawn(watch_application(shared.clone(), state.clone()));
        let policy = shared.clone();
        let stopped = stop_admin.subscribe();
        tokio::spawn(cache::keep_up(shared.caches.clone(), move || policy.snapshot(), stopped));
        Ok(Self { shared, workers, addresses, stop_admin, state })
    }

    /// Where it listens.
    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// Returns when the admin interface was asked to end the process.
    pub async fn stop_requested(&self) {
        self.state.stop.notified().await;
    }

    /// Withdraws the endpoint, takes nothing new, lets what is in flight end, then stops. Gives how many connections
    /// were cut.
    pub async fn drain(self, now: impl Future<Output = ()>) -> usize {
        self.state.draining.store(true, Ordering::Relaxed);
        let limit = self
            .shared
            .settings
            .drain_timeout
            .unwrap_or_else(|| self.shared.snapshot().mesh.limits.drain_timeout);
        let shared = self.shared.clone();
        let gentle = async {
            if let Some(policy) = shared.policy.get() {
                policy.set_ready(false);
                if shared.settings.control_plane.is_some() {
                    sleep(WITHDRAWAL).await;
                }
            }
            let until = Instant::now() + limit;
            // In this order: what the application still answers, it may have to make calls for.
            for direction in [Direction::Inbound, Direction::Outbound] {
                self.workers.iter().for_each(|w| w.send(Command::Drain(direction)));
                while shared.open(direction) > 0 && Instant::now() < until {
                    sleep(Duration::from_millis(10)).await;
                }
            }
        };
        tokio::select! {
            () = gentle => {}
            () = now => {}
            () = self.state.quit.notified() => {}
        }
        let cut = Direction::ALL.into_iter().map(|direction| self.shared.open(direction)).sum();
        for worker in self.workers {
            // Joins threads that end at once on the command.
            worker.stop();
        }
        if let Some(policy) = self.shared.policy.get() {
            policy.shutdown().await;
        }
        self.stop_admin.send_replace(true);
        self.shared.access_log.flush(Duration::from_secs(1));
        cut
    }
}

/// Runs a sidecar until it is told to stop: the whole program.
pub fn run(settings: Settings) -> ExitCode {
    let level = match log::init(&settings.log, settings.log_json) {
        Ok(level) => level,
        Err(error) => {
            // Nothing can be logged yet: this is what standard error is for.
            let _ =
                std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("weft-sidecar: {error}\n"));
            return ExitCode::from(64);
        }
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "cannot start");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(serve(settings, level)) {
        Ok(0) => ExitCode::SUCCESS,
        // Somebody's call or tunnel was cut: whoever stopped us should be able to tell.
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Gives how many connections were cut in the end.
async fn serve(settings: Settings, level: Level) -> Result<usize> {
    let begun = Instant::now();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let workload = settings.workload_name();
    let sidecar = Sidecar::with_log(settings, Some(level)).await?;
    let at = sidecar.addresses();
    tracing::info!(
        %workload, outbound = %at.outbound, inbound = %at.inbound, admin = %at.admin, metrics = %at.metrics,
        took = ?begun.elapsed(), "started"
    );
    tokio::select! {
        _ = terminate.recv() => tracing::info!("SIGTERM: draining; once more to stop at once"),
        _ = interrupt.recv() => tracing::info!("interrupted: draining; once more to stop at once"),
        () = sidecar.stop_requested() => tracing::info!("asked to stop: draining"),
    }
    let second = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    let cut = sidecar.drain(second).await;
    match cut {
        0 => tracing::info!("drained; everything in flight was finished"),
        cut => tracing::warn!(connections = cut, "stopped; connections were cut that were still open"),
    }
    Ok(cut)
}

fn advertised(settings: &Settings, inbound: SocketAddr) -> SocketAddr {
    settings.advertise.unwrap_or_else(|| {
        // A wildcard is nowhere to connect to; on one machine loopback is the address that works.
        if inbound.ip().is_unspecified() {
            SocketAddr::from(([127, 0, 0, 1], inbound.port()))
        } else {
            inbound
        }
    })
}

async fn bind_control(address: SocketAddr, flag: &str) -> Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| {
        format!("cannot listen on {address}; is another sidecar running? choose another with {flag}")
    })
}

fn start_policy(shared: &Arc<Shared>, advertised: SocketAddr) -> Result<()> {
    let settings = policy_settings(&shared.settings)?;
    let sink = {
        let shared = shared.clone();
        Arc::new(move |snapshot| shared.publish(snapshot))
    };
    let hooks = Arc::new(Hooks { metrics: shared.metrics.clone(), shared: shared.clone() });
    let handle = policy::start(settings, shared.tls.clone(), sink, hooks)?;
    handle.set_inbound_address(advertised);
    let _ = shared.policy.set(handle);
    Ok(())
}

/// Where policy and identity come from, as the flags say.
fn policy_settings(settings: &Settings) -> Result<PolicySettings> {
    let source = match (&settings.control_plane, &settings.policy) {
        (Some(address), None) => Source::ControlPlane(ControlPlane {
            address: address.clone(),
            ca_file: settings.ca_file.clone().context(
                "--control-plane needs --ca-file, the CA that the control plane proves itself with",
            )?,
            join_token_file: settings.join_token_file.clone(),
            state_dir: settings.state_dir.clone(),
        }),
        (None, Some(directory)) => {
            let identity = match (&settings.cert_file, &settings.key_file, &settings.ca_file) {
                (Some(certificate), Some(key), Some(roots)) => Some(IdentityFiles {
                    certificate: certificate.clone(),
                    key: key.clone(),
                    roots: roots.clone(),
                }),
                (Some(_), Some(_), None) => {
                    bail!("--cert-file needs --ca-file, the CA that peers' certificates are checked against")
                }
                _ => None,
            };
            Source::Files(Files { directory: directory.clone(), identity })
        }
        _ => bail!(
            "give either --control-plane HOST:PORT or --policy DIR: a sidecar needs one source of policy"
        ),
    };
    Ok(PolicySettings {
        namespace: settings.namespace.clone(),
        workload: settings.workload.clone(),
        service_account: settings.service_account.clone(),
        source,
    })
}

/// Carries what happens to policy and identity into the metrics, and purges to the cache.
struct Hooks {
    metrics: Arc<Metrics>,
    shared: Arc<Shared>,
}

impl policy::Hooks for Hooks {
    fn connected(&self, connected: bool) {
        self.metrics.control_plane_connected(connected);
    }
    fn updated(&self, version: &str) {
        self.metrics.policy_updated(version);
    }
    fn rejected(&self, _what: &str, _reason: &str) {
        self.metrics.policy_rejected();
    }
    fn identity(&self, expires: SystemTime) {
        self.metrics.identity_expires(expires);
    }
    fn renewal(&self, succeeded: bool) {
        self.metrics.identity_renewed(succeeded);
    }
    fn deprecated_calls(&self) -> Vec<(Arc<str>, u64)> {
        self.metrics.deprecated_calls()
    }
    fn purge(&self, purge: &wire::Purge) -> Result<u64, String> {
        caching::purge(&self.shared, purge)
    }
    fn last_purge(&self) -> (String, u64) {
        self.shared.caches.last_purge()
    }
    fn misses_purges(&self, misses: bool) {
        self.shared.caches.misses_purges(misses);
    }
    fn purged(&self, log: &str, number: u64) {
        self.shared.caches.note_purge(log, number);
    }
    fn cache_report(&self) -> wire::CacheReport {
        caching::report(&self.shared)
    }
}

/// Keeps the endpoint in the registry exactly while the application takes connections.
async fn watch_application(shared: Arc<Shared>, state: Arc<State>) {
    let mut failures = 0;
    loop {
        if state.draining.load(Ordering::Relaxed) {
            return;
        }
        let snapshot = shared.snapshot();
        let serves = snapshot.workload.as_ref().map(|w| w.serves.as_slice());
        let up = match serves {
            None => false,
            Some(serves) => {
                let mut up = true;
                for served in serves {
                    up &= takes_connections(shared.settings.app_address(served.port, served.app_port)).await;
                }
                up
            }
        };
        failures = if up { 0 } else { failures + 1 };
        let was = state.app_up.load(Ordering::Relaxed);
        // One failed probe of a busy application is no outage.
        let now = up || (was && failures < 2);
        if now != was {
            if now {
                tracing::info!("the application takes connections");
            } else {
                tracing::warn!(
                    "the application takes no connections: its endpoint is withdrawn until it does"
                );
            }
            state.app_up.store(now, Ordering::Relaxed);
        }
        if let Some(policy) = shared.policy.get().filter(|_| !state.draining.load(Ordering::Relaxed)) {
            policy.set_ready(now);
        }
        sleep(if up { PROBE_UP } else { PROBE_DOWN.max(Duration::from_millis(10 * failures.min(100))) })
            .await;
    }
}

async fn takes_connections(address: SocketAddr) -> bool {
    matches!(timeout(Duration::from_secs(1), TcpStream::connect(address)).await, Ok(Ok(_)))
}

/// What the admin interface shows.
struct View {
    shared: Arc<Shared>,
    workers: Vec<tokio::sync::mpsc::UnboundedSender<Command>>,
    state: Arc<State>,
}

impl Inspect for View {
    fn ready(&self) -> Result<(), String> {
        if self.state.draining.load(Ordering::Relaxed) {
            return Err("draining".into());
        }
        if self.shared.settings.control_plane.is_some() && !self.shared.tls.is_ready() {
            return Err("no certificate yet; see /certs and the log".into());
        }
        if self.shared.snapshot().workload.is_none() {
            return Err(format!(
                "no policy for workload {} yet; is there a Workload document of that name?",
                self.shared.settings.workload_name()
            ));
        }
        if !self.state.app_up.load(Ordering::Relaxed) {
            return Err("the application takes no connections".into());
        }
        Ok(())
    }

    fn config_dump(&self) -> Value {
        let snapshot = self.shared.snapshot();
        json!({
            "policy": self.shared.policy.get().map(policy::Handle::status),
            "snapshot": format!("{snapshot:#?}"),
        })
    }

    fn certs(&self) -> Value {
        let identity = self.shared.tls.identity().map(|identity| {
            json!({
                "id": identity.id.to_string(),
                "serial": identity.serial,
                "not_before": unix(identity.not_before),
                "not_after": unix(identity.not_after),
            })
        });
        json!({ "identity": identity, "roots": self.shared.tls.roots().len() })
    }

    fn clusters(&self) -> Value {
        // The workers answer between two requests; one that hangs is left out.
        let replies: Vec<_> = self
            .workers
            .iter()
            .map(|worker| {
                let (reply, answer) = oneshot::channel();
                let _ = worker.send(Command::Clusters(reply));
                answer
            })
            .collect();
        let mut clusters = Vec::new();
        let until = Instant::now() + Duration::from_millis(500);
        for mut answer in replies {
            loop {
                match answer.try_recv() {
                    Ok(mut some) => {
                        clusters.append(&mut some);
                        break;
                    }
                    Err(oneshot::error::TryRecvError::Empty) if Instant::now() < until => {
                        std::thread::sleep(Duration::from_millis(1));
                    }
                    Err(_) => break,
                }
            }
        }
        Value::Array(clusters)
    }

    fn routes(&self) -> Value {
        let snapshot = self.shared.snapshot();
        let services = snapshot.services().map(|service| {
            let ports: Vec<Value> = service
                .ports
                .iter()
                .map(|port| {
                    json!({
                        "port": port.port,
                        "protocol": format!("{:?}", port.protocol),
                        "endpoints": port.endpoints.len(),
                        "rules": port.rules.iter().map(|r| &*r.name).collect::<Vec<_>>(),
                    })
                })
                .collect();
            json!({ "service": service.name.to_string(), "version": &*service.version, "ports": ports })
        });
        services.collect()
    }

    fn cache(&self, top: usize) -> Value {
        cache::describe(&self.shared.caches, &self.shared.metrics, &self.shared.snapshot(), top)
    }

    fn log_level(&self) -> String {
        self.shared.log_level.as_ref().map_or_else(String::new, Level::get)
    }

    fn set_log_level(&self, filter: &str) -> Result<(), String> {
        match &self.shared.log_level {
            Some(level) => level.set(filter),
            None => Err("the program that this sidecar runs in logs for it".into()),
        }
    }

    fn purge(&self, kind: Kind, text: &str, service: &str, soft: bool) -> Result<(String, u64), String> {
        caching::purge_by_hand(&self.shared, kind, text, service, soft)
    }

    fn drain(&self) {
        self.state.stop.notify_one();
    }

    fn quit(&self) {
        self.state.quit.notify_one();
        self.state.stop.notify_one();
    }
}

fn unix(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// A proxy holds two sockets for each connection: takes all the descriptors that the system allows.
fn raise_file_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "the limit on open files could not be raised");
    }
}
