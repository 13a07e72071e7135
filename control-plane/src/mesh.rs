//! Where policy, registry and publisher meet: every change to the mesh passes through here, and so does its status.
//!
//! Locks are taken in this order, and none is held across an await: policy, registry, leased endpoints, publisher.
//! Compiling big policies takes a while, so async code never waits for the policy lock on a runtime thread.

mod apply;
mod caching;
mod view;

pub(crate) use apply::Sourced;
pub(crate) use caching::NotBegun;

use crate::{
    endpoints::Leased,
    issuer::{self, Issuer},
    metrics::Metrics,
    publisher::{Publisher, Refused, StreamId, endpoints_version},
    purges::Purges,
    registry::{Instance, Registry, Serving},
    remembered::Remembered,
    server::Caller,
    settings::Settings,
    status::FINDINGS,
    token::TokenKey,
    usage::Usage,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime},
};
use tokio::sync::Notify;
use tonic::Code;
use weft_config::{
    identity::ServiceName,
    policy::Policy,
    wire::{self, resource::Body},
};

/// The mesh as this control plane knows it.
pub(crate) struct Mesh {
    pub(crate) issuer: Arc<Issuer>,
    pub(crate) tokens: TokenKey,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) sources: Vec<PathBuf>,
    pub(crate) started: SystemTime,
    certificate_ttl: Duration,
    lease_timeout: Duration,
    settled: Instant,
    pub(super) policy: Mutex<Sourced>,
    pub(super) registry: Mutex<Registry>,
    leased: Mutex<Leased>,
    pub(super) publisher: Mutex<Publisher>,
    pub(super) sidecars: Mutex<BTreeMap<StreamId, Sidecar>>,
    /// Taken alone.
    pub(super) usage: Mutex<Usage>,
    remembered: Arc<Remembered>,
    /// Taken alone.
    purges: Mutex<Purges>,
    /// Held while a purge is written down and put on its way.
    purging: tokio::sync::Mutex<()>,
}

/// A connected sidecar.
pub(crate) struct Sidecar {
    pub(crate) caller: Caller,
    pub(crate) peer: SocketAddr,
    pub(crate) since: SystemTime,
    pub(crate) ready: bool,
    pub(crate) address: Option<SocketAddr>,
    pub(crate) certificate_expires: Option<SystemTime>,
}

/// A poisoned lock means that a thread panicked while it changed one of these maps; each change is small and whole, so
/// what is there is still good.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Mesh {
    /// A mesh without policy yet. What served when this control plane last ran is expected back, if that is known.
    pub(crate) fn new(
        settings: &Settings,
        issuer: Arc<Issuer>,
        tokens: TokenKey,
        metrics: Arc<Metrics>,
        remembered: Arc<Remembered>,
        purges: Purges,
    ) -> Self {
        let settled = Instant::now() + settings.settle_time;
        let mut registry = Registry::new(settings.lease_timeout);
        let mut publisher = Publisher::default();
        match remembered.leases() {
            Some(before) => registry.restore(settled, before),
            None => publisher.set_settling(true),
        }
        let mesh = Self {
            issuer,
            tokens,
            metrics,
            sources: settings.policy.clone(),
            started: SystemTime::now(),
            certificate_ttl: settings.certificate_ttl,
            lease_timeout: settings.lease_timeout,
            settled,
            policy: Mutex::new(Sourced::new(&settings.trust_domain)),
            registry: Mutex::new(registry),
            leased: Mutex::new(Leased::default()),
            publisher: Mutex::new(publisher),
            sidecars: Mutex::new(BTreeMap::new()),
            usage: Mutex::new(Usage::default()),
            remembered,
            purges: Mutex::new(purges),
            purging: tokio::sync::Mutex::new(()),
        };
        mesh.publish_trust();
        mesh
    }

    /// How often sidecars are to renew their leases.
    pub(crate) fn lease_interval(&self) -> Duration {
        self.lease_timeout / 3
    }

    /// Publishes the trust bundle in force.
    pub(crate) fn publish_trust(&self) {
        let trust = self.issuer.trust();
        self.metrics.trusted_roots.set(trust.bundle.roots.len() as i64);
        self.metrics.authority_expires.set(unix(self.issuer.authority_expires()) as f64);
        lock(&self.publisher).publish("trust", Some((trust.version, Body::Trust(trust.bundle))));
    }

    /// True if every connected sidecar has taken the trust bundle in force.
    pub(crate) fn everyone_trusts(&self) -> bool {
        lock(&self.publisher).all_hold("trust")
    }

    /// A stream begins.
    pub(crate) fn connected(&self, id: StreamId, caller: &Caller, peer: SocketAddr) -> Arc<Notify> {
        let sidecar = Sidecar {
            caller: caller.clone(),
            peer,
            since: SystemTime::now(),
            ready: false,
            address: None,
            certificate_expires: None,
        };
        lock(&self.sidecars).insert(id, sidecar);
        self.metrics.sidecars.inc();
        let wake = lock(&self.publisher).connect(id);
        let (list, number) = &caller.last_purge;
        let (missed, everything) = lock(&self.purges).connect(
            id,
            &caller.instance,
            (list, *number),
            wake.clone(),
            unix(SystemTime::now()),
        );
        // One that has just started keeps nothing, or what it kept on disk: that it catches up is nothing to tell.
        if missed > 0 && !list.is_empty() {
            self.metrics.cache_purges_missed.inc_by(missed as u64);
            tracing::info!(
                workload = %caller.instance.workload, namespace = %caller.instance.namespace, missed, everything,
                "a sidecar that was away is told what was purged meanwhile"
            );
        }
        wake
    }

    /// A stream has ended.
    pub(crate) async fn disconnected(&self, id: StreamId, instance: &Instance) {
        lock(&self.registry).stream_lost(Instant::now(), id, instance);
        lock(&self.publisher).disconnect(id);
        let gone = lock(&self.sidecars).remove(&id);
        // Who says goodbye says first that it takes no more.
        lock(&self.purges).disconnect(id, gone.as_ref().is_some_and(|gone| gone.ready), Instant::now());
        if gone.is_some() {
            self.metrics.sidecars.dec();
        }
    }

    /// A workload that a document describes may be run only by the service account that the document names.
    pub(crate) async fn check_account(
        self: &Arc<Self>,
        caller: &Caller,
    ) -> Result<(), crate::server::RefusedCall> {
        let (mesh, instance) = (self.clone(), caller.instance.clone());
        let account = blocking(move || {
            mesh.with_policy(|policy| {
                policy.service_account(&instance.namespace, &instance.workload).map(str::to_owned)
            })
        })
        .await
        .flatten();
        match account {
            Some(account) if *account != *caller.identity.service_account => Err(crate::server::refuse(
                Code::PermissionDenied,
                "wrong_account",
                format!(
                    "the Workload document {}/{} says `serviceAccount: {account}`, but this sidecar is {}",
                    caller.instance.namespace, caller.instance.workload, caller.identity
                ),
            )),
            _ => Ok(()),
        }
    }

    /// A stream changes what it is subscribed to.
    pub(crate) fn subscribe(&self, id: StreamId, subscribe: &wire::Subscribe) -> Result<(), Refused> {
        let add = subscribe.add.iter().map(|s| (s.name.as_str(), s.version.as_str()));
        lock(&self.publisher).subscribe(id, add, subscribe.remove.iter().map(String::as_str))
    }

    /// What a stream is to be told next.
    pub(crate) fn next_update(&self, id: StreamId) -> Option<wire::Update> {
        let update = lock(&self.publisher).next_update(id, Instant::now())?;
        self.metrics.pushes.inc();
        self.metrics.pushed_resources.inc_by((update.resources.len() + update.removed.len()) as u64);
        Some(update)
    }

    /// Since when a stream has owed an answer.
    pub(crate) fn waiting_since(&self, id: StreamId) -> Option<Instant> {
        lock(&self.publisher).waiting_since(id)
    }

    /// A stream answers an update.
    pub(crate) fn acknowledge(&self, id: StreamId, instance: &Instance, ack: &wire::Ack) {
        let (since, rejected) = {
            let mut publisher = lock(&self.publisher);
            (publisher.waiting_since(id), publisher.acknowledge(id, ack.nonce, &ack.rejected))
        };
        let (Some(since), Some(rejected)) = (since, rejected) else {
            tracing::debug!(workload = %instance.workload, nonce = ack.nonce, "an answer to nothing that was sent");
            return;
        };
        self.metrics.answer_seconds.observe(since.elapsed().as_secs_f64());
        for rejected in rejected {
            self.metrics.nacks.inc();
            tracing::warn!(
                target: FINDINGS,
                workload = %instance.workload, namespace = %instance.namespace, resource = %rejected.name,
                version = %rejected.version, reason = %rejected.reason,
                "a sidecar did not take a resource and keeps what it had"
            );
        }
    }

    /// A workload renews its lease.
    pub(crate) async fn lease(
        self: &Arc<Self>,
        id: StreamId,
        caller: &Caller,
        address: Option<SocketAddr>,
        ready: bool,
    ) {
        if let Some(sidecar) = lock(&self.sidecars).get_mut(&id) {
            (sidecar.ready, sidecar.address) = (ready, address);
        }
        let changed = {
            let mut registry = lock(&self.registry);
            let changed =
                registry.lease(Instant::now(), id, &caller.instance, &caller.identity, address, ready);
            self.metrics.leases.set(registry.len() as i64);
            changed
        };
        self.follow_leases(changed).await;
    }

    /// A sidecar tells how often its application called what is going away.
    pub(crate) fn used(&self, caller: &Caller, told: &wire::Usage) {
        let mut usage = lock(&self.usage);
        let taken = usage.told(&caller.identity, &caller.instance, told, unix(SystemTime::now()));
        self.metrics.deprecated_calls.inc_by(taken.calls);
        self.metrics.deprecated_dropped.inc_by(taken.dropped);
        self.metrics.deprecated_callers.set(usage.len() as i64);
    }

    /// Drops leases that ran out, and ends the settling period when it is over.
    pub(crate) async fn tick(self: &Arc<Self>) {
        let now = Instant::now();
        let gone = {
            let mut registry = lock(&self.registry);
            let gone = registry.expire(now);
            self.metrics.leases.set(registry.len() as i64);
            gone
        };
        for instance in &gone {
            self.metrics.leases_expired.inc();
            tracing::warn!(
                workload = %instance.workload, namespace = %instance.namespace,
                "nothing was heard of a workload any more; its endpoints are withdrawn"
            );
        }
        self.follow_leases(gone).await;
        if now >= self.settled && lock(&self.publisher).settling() {
            lock(&self.publisher).set_settling(false);
            tracing::info!(
                "settled: from now on endpoints are withdrawn from sidecars that came with older ones"
            );
        }
    }

    async fn follow_leases(self: &Arc<Self>, changed: Vec<Instance>) {
        if changed.is_empty() {
            return;
        }
        let mesh = self.clone();
        blocking(move || {
            let sourced = lock(&mesh.policy);
            let registry = lock(&mesh.registry);
            let mut leased = lock(&mesh.leased);
            let mut touched = BTreeSet::new();
            for instance in &changed {
                let serves = registry
                    .serving(instance)
                    .map(|serving| brought(&sourced.policy, instance, &serving))
                    .unwrap_or_default();
                touched.extend(leased.set(instance, serves));
            }
            drop(registry);
            let mut publisher = lock(&mesh.publisher);
            for service in touched {
                publish_endpoints(&sourced.policy, &leased, &mut publisher, &service);
            }
        })
        .await;
    }

    /// Publishes everything anew after policy has changed: the named resources, and every endpoint set that is
    /// another than before.
    pub(super) fn publish_policy(&self, policy: &Policy, changed: &[String]) {
        let registry = lock(&self.registry);
        let mut leased = lock(&self.leased);
        leased.clear();
        for (instance, serving) in registry.all_serving() {
            leased.set(instance, brought(policy, instance, &serving));
        }
        drop(registry);
        let mut publisher = lock(&self.publisher);
        publisher.set_policy_version(&policy.version());
        for name in changed.iter().filter(|name| !name.starts_with("endpoints/")) {
            let documents = policy.resource(name);
            publisher
                .publish(name, documents.map(|(version, documents)| (version, Body::Documents(documents))));
        }
        let mut services: BTreeSet<ServiceName> = policy.services().collect();
        services.extend(publisher.names("endpoints/").filter_map(|name| service_name(name)));
        for service in services {
            publish_endpoints(policy, &leased, &mut publisher, &service);
        }
    }

    /// Looks at policy. Not from async code.
    pub(crate) fn with_policy<T>(&self, look: impl FnOnce(&Policy) -> T) -> T {
        look(&lock(&self.policy).policy)
    }

    /// Who serves now, to be kept for the next start.
    pub(crate) fn serving(&self) -> Vec<(Instance, Serving)> {
        let registry = lock(&self.registry);
        let mut serving: Vec<_> =
            registry.all_serving().map(|(instance, serving)| (instance.clone(), serving)).collect();
        serving.sort();
        serving
    }

    /// A certificate went out.
    pub(crate) fn certificate_issued(&self, id: StreamId, now: SystemTime) {
        self.metrics.certificates_issued.inc();
        if let Some(sidecar) = lock(&self.sidecars).get_mut(&id) {
            sidecar.certificate_expires = Some(now + self.certificate_ttl);
        }
    }

    /// A certificate was not issued.
    pub(crate) fn certificate_refused(&self, refused: &issuer::Refused) {
        self.metrics.certificates_refused.with_label_values(&[refused.reason()]).inc();
    }
}

/// What an instance serves by the documents that are in force. Whoever runs it has to be whom its document names.
fn brought(policy: &Policy, instance: &Instance, serving: &Serving) -> Vec<(ServiceName, wire::Endpoint)> {
    let account = policy.service_account(&instance.namespace, &instance.workload);
    if account.is_none_or(|account| account != &*serving.identity.service_account) {
        return Vec::new();
    }
    policy.leased_endpoints(&instance.namespace, &instance.workload, serving.address)
}

fn publish_endpoints(policy: &Policy, leased: &Leased, publisher: &mut Publisher, service: &ServiceName) {
    let name = format!("endpoints/{service}");
    let known = policy.resource(&format!("service/{service}")).is_some();
    let resource = known.then(|| {
        let endpoints = leased.with_fixed(service, policy.static_endpoints(service));
        (endpoints_version(&endpoints), Body::Endpoints(wire::Endpoints { endpoints }))
    });
    publisher.publish(&name, resource);
}

fn service_name(resource: &str) -> Option<ServiceName> {
    let (namespace, name) = resource.strip_prefix("endpoints/")?.split_once('/')?;
    Some(ServiceName::new(namespace, name))
}

/// Runs what may wait for the policy lock. `None` only if the runtime is going away.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    tokio::task::spawn_blocking(work).await.ok()
}

/// Seconds of Unix time.
pub(crate) fn unix(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
