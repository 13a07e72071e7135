//! Policy and identity: where a sidecar gets them from, how it keeps them, and how the request path asks for more.

mod backoff;
mod compiling;
mod entry;
mod files;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;
mod identity;
mod last_known_good;
mod link;
mod names;
mod purging;
mod report;
mod state;
mod subscription;
mod usage;

#[cfg(test)]
mod tests;

pub(crate) use state::Found;
pub(crate) use usage::Used;

use crate::tls::Tls;
use arc_swap::ArcSwap;
use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};
use subscription::Core;
use tokio::sync::{mpsc, oneshot, watch};
use usage::Tables;
use weft_config::{compile::Caller, identity::ServiceName, snapshot::Snapshot, wire};

/// Questions that wait for the control runtime; one more is answered [`Found::Unavailable`].
const MAX_QUESTIONS: usize = 4096;
/// Whatever happens on the control runtime, no request waits longer than this for an answer.
const ANSWER_WITHIN: Duration = Duration::from_millis(1500);
/// For the last messages and the last write.
const STOP_WITHIN: Duration = Duration::from_secs(3);

/// Takes every new snapshot, on the control runtime.
pub(crate) type Sink = Arc<dyn Fn(Arc<Snapshot>) + Send + Sync>;

/// Who this sidecar is and where its policy comes from.
#[derive(Clone, Debug)]
pub(crate) struct PolicySettings {
    /// The workload's namespace.
    pub(crate) namespace: String,
    /// The workload's name.
    pub(crate) workload: String,
    /// Its service account.
    pub(crate) service_account: String,
    /// Where policy and identity come from.
    pub(crate) source: Source,
}

/// Where policy and identity come from.
#[derive(Clone, Debug)]
pub(crate) enum Source {
    /// A control plane.
    ControlPlane(ControlPlane),
    /// Files, without a control plane.
    Files(Files),
}

/// How to reach the control plane and how to be let in.
#[derive(Clone, Debug)]
pub(crate) struct ControlPlane {
    /// HOST:PORT.
    pub(crate) address: String,
    /// PEM file with the CA that the control plane's certificate is checked against.
    pub(crate) ca_file: PathBuf,
    /// File with the join token, for as long as there is no certificate.
    pub(crate) join_token_file: Option<PathBuf>,
    /// Where the last accepted policy and identity are kept; `None` keeps nothing.
    pub(crate) state_dir: Option<PathBuf>,
}

/// A directory of policy, and PEM files for the identity.
#[derive(Clone, Debug)]
pub(crate) struct Files {
    /// The directory with YAML files, watched.
    pub(crate) directory: PathBuf,
    /// Certificate chain, private key, CA certificates; without them everything is plain text.
    pub(crate) identity: Option<IdentityFiles>,
}

/// PEM files that make an identity.
#[derive(Clone, Debug)]
pub(crate) struct IdentityFiles {
    /// `--cert-file`.
    pub(crate) certificate: PathBuf,
    /// `--key-file`.
    pub(crate) key: PathBuf,
    /// `--ca-file`.
    pub(crate) roots: PathBuf,
}

/// Told of what happens, for metrics, and asked for the numbers that the control plane wants. Called on the control
/// runtime; must not wait.
pub(crate) trait Hooks: Send + Sync {
    /// The control plane was reached, or lost.
    fn connected(&self, connected: bool);
    /// A resource or a document was not taken; its last good version stays in force.
    fn rejected(&self, what: &str, reason: &str);
    /// Policy of this version is in force.
    fn updated(&self, version: &str);
    /// A certificate was installed that is valid until `expires`.
    fn identity(&self, expires: SystemTime);
    /// A certificate was asked for and came, or did not.
    fn renewal(&self, succeeded: bool);
    /// How often each thing that is going away was called since the process started.
    fn deprecated_calls(&self) -> Vec<(Arc<str>, u64)> {
        Vec::new()
    }
    /// Puts a purge in force that the control plane asks for, and gives how many stored answers it was for, or why it
    /// is none. The only one that may take long: it is called off the control runtime.
    fn purge(&self, purge: &wire::Purge) -> Result<u64, String> {
        let _ = purge;
        Err("nothing is cached here".to_owned())
    }
    /// List and number of the last purge that what is kept here over restarts knows of; empty and 0 for none.
    fn last_purge(&self) -> (String, u64) {
        (String::new(), 0)
    }
    /// There may be purges that this sidecar has not been told of, or none that it knows to be missing. Called off the
    /// control runtime, too.
    fn misses_purges(&self, misses: bool) {
        let _ = misses;
    }
    /// This purge was carried out. Called off the control runtime, too.
    fn purged(&self, log: &str, number: u64) {
        let _ = (log, number);
    }
    /// What the response cache holds and did.
    fn cache_report(&self) -> wire::CacheReport {
        wire::CacheReport::default()
    }
}

/// What the sidecar tells the control plane about itself, again and again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Presence {
    inbound: Option<SocketAddr>,
    ready: bool,
}

/// A request's question for a service that its snapshot does not have.
struct Question {
    service: ServiceName,
    answer: oneshot::Sender<Found>,
}

/// What the subscription and everybody who holds a [`Handle`] share.
struct Shared {
    snapshot: ArcSwap<Snapshot>,
    tables: Arc<Tables>,
    core: Mutex<Core>,
}

impl Shared {
    fn new(core: Core, tables: Arc<Tables>) -> Self {
        Self { snapshot: ArcSwap::from_pointee(Snapshot::default()), tables, core: Mutex::new(core) }
    }

    fn core(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Talks to the subscription from any thread.
#[derive(Clone)]
pub(crate) struct Handle {
    shared: Arc<Shared>,
    /// `None` when policy comes from files: then the snapshot has everything there is.
    questions: Option<mpsc::Sender<Question>>,
    presence: Arc<watch::Sender<Presence>>,
    stop: Arc<watch::Sender<bool>>,
    stopped: watch::Receiver<bool>,
}

/// Starts to follow policy. Must be called within a tokio runtime; what an earlier process kept, or what the files
/// say, is in force when this returns.
pub(crate) fn start(
    settings: PolicySettings,
    tls: Arc<Tls>,
    sink: Sink,
    hooks: Arc<dyn Hooks>,
) -> anyhow::Result<Handle> {
    let own = ServiceName::new(settings.namespace.as_str(), settings.workload.as_str());
    let caller = Caller {
        namespace: own.namespace.clone(),
        service_account: settings.service_account.as_str().into(),
        workload: own.name.clone(),
    };
    let tables = Arc::new(Tables::default());
    let (presence, presence_seen) = watch::channel(Presence::default());
    let (stop, stop_seen) = watch::channel(false);
    let (stopped, stopped_seen) = watch::channel(false);
    let mut handle = Handle {
        shared: Arc::new(Shared::new(Core::new(caller.clone(), tables.clone()), tables)),
        questions: None,
        presence: Arc::new(presence),
        stop: Arc::new(stop),
        stopped: stopped_seen,
    };
    let outward = subscription::Outward { shared: handle.shared.clone(), tls, sink, hooks };
    match settings.source {
        Source::Files(files) => {
            let mut files = files::FilePolicy::start(files, caller, outward)?;
            tokio::spawn(async move {
                files.run(stop_seen).await;
                stopped.send_replace(true);
            });
        }
        Source::ControlPlane(to) => {
            let (questions, asked) = mpsc::channel(MAX_QUESTIONS);
            handle.questions = Some(questions);
            let inputs = subscription::Inputs { asked, presence: presence_seen, stop: stop_seen };
            let mut subscription =
                subscription::Subscription::start(to, own, settings.service_account, outward, inputs);
            tokio::spawn(async move {
                subscription.run().await;
                stopped.send_replace(true);
            });
        }
    }
    Ok(handle)
}

impl Handle {
    /// Asks for a service that the snapshot does not have. When the answer is [`Found::Yes`], the snapshot that the
    /// sink was given last has it, with everything it forwards to.
    pub(crate) fn want(&self, service: ServiceName) -> impl Future<Output = Found> + Send + use<> {
        let known = if self.shared.snapshot.load().service(&service).is_some() {
            Some(Found::Yes)
        } else if self.questions.is_none() || self.shared.tables.is_absent(&service) {
            Some(Found::No)
        } else {
            None
        };
        let questions = self.questions.clone().filter(|_| known.is_none());
        async move {
            let Some(questions) = questions else { return known.unwrap_or(Found::No) };
            let (answer, answered) = oneshot::channel();
            if questions.try_send(Question { service, answer }).is_err() {
                return Found::Unavailable;
            }
            match tokio::time::timeout(ANSWER_WITHIN, answered).await {
                Ok(Ok(found)) => found,
                Ok(Err(_)) | Err(_) => Found::Unavailable,
            }
        }
    }

    /// The mark of a service that the snapshot has, to be made on every use for the price of one load. It stays the
    /// service's own until the service leaves the snapshot.
    pub(crate) fn usage(&self, service: &ServiceName) -> Option<Arc<Used>> {
        self.shared.tables.usage(service)
    }

    /// Says whether calls may come: false while starting and draining.
    pub(crate) fn set_ready(&self, ready: bool) {
        self.presence.send_if_modified(|now| std::mem::replace(&mut now.ready, ready) != ready);
    }

    /// Says where peers reach this sidecar.
    pub(crate) fn set_inbound_address(&self, address: SocketAddr) {
        self.presence.send_if_modified(|now| now.inbound.replace(address) != Some(address));
    }

    /// What an operator wants to know.
    pub(crate) fn status(&self) -> serde_json::Value {
        self.shared.core().status()
    }

    /// Takes leave of the control plane, writes what is to be kept, and ends.
    pub(crate) async fn shutdown(&self) {
        self.stop.send_replace(true);
        let mut stopped = self.stopped.clone();
        if tokio::time::timeout(STOP_WITHIN, stopped.wait_for(|stopped| *stopped)).await.is_err() {
            tracing::warn!(
                "the policy subscription did not end in time; what changed last may not be on disk"
            );
        }
    }
}
