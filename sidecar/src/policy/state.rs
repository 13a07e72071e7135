//! The subscription as a state machine: events in, messages and snapshots out, no socket and no clock of its own.

mod update;

use super::{
    entry::{Entry, Part, Refusal},
    names::{self, ResourceName},
    usage::Tables,
};
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};
use tokio::time::Instant;
use weft_config::{compile::Caller, identity::ServiceName, snapshot::Snapshot, wire};

/// How long a request may wait for a service that is not known yet.
pub(super) const WANT_FOR: Duration = Duration::from_secs(1);
/// How long it is remembered that a service does not exist.
pub(super) const ABSENT_FOR: Duration = Duration::from_secs(5);
/// Names remembered not to exist, and names asked for at one time.
pub(super) const MAX_UNKNOWN: usize = 1024;
/// What nobody used for so long is unsubscribed.
pub(super) const UNUSED_AFTER: Duration = Duration::from_secs(30 * 60);
/// How often the marks of use are read.
const SWEEP_EVERY: Duration = Duration::from_secs(60);

/// What the mesh says of a service name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// It is in the snapshot.
    Yes,
    /// There is no such service.
    No,
    /// There was no answer in time, or no version of the service is usable.
    Unavailable,
}

/// What follows from an event.
#[derive(Debug, Default)]
pub(super) struct Output {
    /// To the control plane, in this order.
    pub(super) send: Vec<wire::to_control_plane::Message>,
    /// What requests are decided by from now on.
    pub(super) snapshot: Option<Arc<Snapshot>>,
    /// Answers to those who wanted a service.
    pub(super) answers: Vec<(ServiceName, Found)>,
    /// New CA certificates, DER.
    pub(super) roots: Option<Vec<Vec<u8>>>,
    /// What was not taken.
    pub(super) refused: Vec<Refusal>,
    /// The policy's version, if the update named one.
    pub(super) policy_version: Option<String>,
    /// Something worth keeping changed.
    pub(super) save: bool,
}

/// What is subscribed to, held and published.
#[derive(Debug)]
pub(super) struct State {
    own: ServiceName,
    /// Who calls, for what services say of some callers only.
    caller: Arc<Caller>,
    mesh: Part<wire::Documents>,
    trust: Part<wire::TrustBundle>,
    workload: Part<wire::Documents>,
    services: HashMap<ServiceName, Entry>,
    wanted: HashMap<ServiceName, Instant>,
    refused: BTreeMap<ResourceName, Refusal>,
    snapshot: Snapshot,
    dirty: bool,
    /// True while messages can be sent.
    open: bool,
    /// Since when the control plane is away; `None` while it is there.
    away_since: Option<Instant>,
    sweep_at: Instant,
    policy_version: String,
    tables: Arc<Tables>,
}

impl State {
    /// The state of a sidecar beside the workload `own` that has not heard anything.
    pub(super) fn new(own: Caller, tables: Arc<Tables>, now: Instant) -> Self {
        Self {
            own: ServiceName::new(own.namespace.clone(), own.workload.clone()),
            caller: Arc::new(own),
            mesh: Part::Unanswered,
            trust: Part::Unanswered,
            workload: Part::Unanswered,
            services: HashMap::new(),
            wanted: HashMap::new(),
            refused: BTreeMap::new(),
            snapshot: Snapshot::default(),
            dirty: false,
            open: false,
            away_since: Some(now),
            sweep_at: now + SWEEP_EVERY,
            policy_version: String::new(),
            tables,
        }
    }

    /// Takes what an earlier process kept.
    pub(super) fn restore(&mut self, resources: Vec<wire::Resource>, now: Instant) -> Output {
        for resource in &resources {
            if let Some(ResourceName::Service(name)) = ResourceName::parse(&resource.name) {
                self.entry(&name, now);
            }
        }
        let mut output = self.update(wire::Update { resources, ..Default::default() }, now);
        output.send.clear();
        output.save = false;
        output
    }

    /// Everything good that is held, for a later process.
    pub(super) fn resources(&self) -> Vec<wire::Resource> {
        use wire::resource::Body;
        let resource = |name: ResourceName, version: &str, body: Body| wire::Resource {
            name: name.to_string(),
            version: version.to_owned(),
            body: Some(body),
        };
        let mut all = Vec::new();
        if let Some(held) = self.mesh.held() {
            all.push(resource(ResourceName::Mesh, &held.version, Body::Documents(held.body.clone())));
        }
        if let Some(held) = self.trust.held() {
            all.push(resource(ResourceName::Trust, &held.version, Body::Trust(held.body.clone())));
        }
        if let Some(held) = self.workload.held() {
            let name = ResourceName::Workload(self.own.clone());
            all.push(resource(name, &held.version, Body::Documents(held.body.clone())));
        }
        for entry in self.services.values().filter(|entry| entry.compiled.is_some()) {
            let [service, endpoints] = entry.resource_names();
            if let Some(held) = entry.documents.held() {
                all.push(resource(service, &held.version, Body::Documents(held.body.clone())));
            }
            // A service is in force that is served nowhere, or of which all that was said about that was refused. A later
            // process must not wait for an answer before it goes by the rest. No version: it asks anew.
            let (version, body) = match entry.endpoints.held() {
                Some(held) => (held.version.as_str(), held.body.clone()),
                None => ("", wire::Endpoints::default()),
            };
            all.push(resource(endpoints, version, Body::Endpoints(body)));
        }
        all
    }

    /// A stream opens: says what is subscribed to and which versions are held.
    pub(super) fn opened(&mut self) -> wire::to_control_plane::Message {
        self.open = true;
        let mut add = vec![
            subscription(&ResourceName::Mesh, self.mesh.version()),
            subscription(&ResourceName::Trust, self.trust.version()),
            subscription(&ResourceName::Workload(self.own.clone()), self.workload.version()),
        ];
        for entry in self.services.values() {
            add.extend(subscriptions(entry));
        }
        wire::to_control_plane::Message::Subscribe(wire::Subscribe { add, remove: Vec::new() })
    }

    /// The control plane answered: it is there.
    pub(super) fn welcomed(&mut self) {
        self.away_since = None;
    }

    /// The stream is gone; everything held stays in force.
    pub(super) fn closed(&mut self, now: Instant) {
        self.open = false;
        self.away_since.get_or_insert(now);
    }

    /// Somebody wants a service. An answer comes with this or a later output, at the latest after [`WANT_FOR`].
    pub(super) fn want(&mut self, service: ServiceName, now: Instant) -> Output {
        let mut output = Output::default();
        if !names::is_valid(&service) {
            output.answers.push((service, Found::No));
            return output;
        }
        if !self.wanted.contains_key(&service) {
            if self.wanted.len() >= MAX_UNKNOWN {
                output.answers.push((service, Found::Unavailable));
                return output;
            }
            // While the control plane is away there is nobody to ask: who wants something new waits once, not each time.
            let deadline = now + WANT_FOR;
            let deadline = self.away_since.map_or(deadline, |since| deadline.min(since + WANT_FOR));
            self.wanted.insert(service, deadline);
        }
        self.settle(now, &mut output);
        output
    }

    /// Time has passed.
    pub(super) fn tick(&mut self, now: Instant) -> Output {
        let mut output = Output::default();
        if now >= self.sweep_at {
            self.sweep_at = now + SWEEP_EVERY;
            for entry in self.services.values_mut() {
                if entry.used.take() {
                    entry.needed_at = now;
                }
            }
        }
        self.settle(now, &mut output);
        output
    }

    /// When [`State::tick`] is due.
    pub(super) fn next_tick(&self) -> Instant {
        let wanted = self.wanted.values().copied();
        let services = self.services.values().filter_map(|entry| match entry.absent_since {
            Some(since) if self.away_since.is_none() => Some(since + ABSENT_FOR),
            _ if entry.compiled.is_some() && !entry.live => Some(entry.publish_by),
            _ => None,
        });
        wanted.chain(services).fold(self.sweep_at, Instant::min)
    }

    /// Names that are known not to exist.
    pub(super) fn absent(&self) -> impl Iterator<Item = &ServiceName> {
        self.services.iter().filter(|(_, entry)| entry.absent_since.is_some()).map(|(name, _)| name)
    }

    fn entry(&mut self, name: &ServiceName, now: Instant) -> &mut Entry {
        self.services.entry(name.clone()).or_insert_with(|| {
            Entry::new(name.clone(), self.caller.clone(), self.tables.subscribed(name), now)
        })
    }

    /// Brings subscriptions, snapshot and answers in line with what is held and wanted.
    fn settle(&mut self, now: Instant, output: &mut Output) {
        self.drop_unneeded(now, output);
        self.subscribe_needed(now, output);
        self.publish_ready(now);
        self.answer_wants(now, output);
        if std::mem::take(&mut self.dirty) {
            output.snapshot = Some(Arc::new(self.snapshot.clone()));
        }
    }

    /// Services that are needed whether or not anybody called them lately.
    fn pinned(&self) -> HashSet<ServiceName> {
        let upstreams = self.snapshot.workload.iter().flat_map(|workload| &workload.upstreams);
        let mut pinned: HashSet<_> = upstreams.map(|upstream| upstream.service.clone()).collect();
        pinned.extend(self.wanted.keys().cloned());
        pinned
    }

    fn drop_unneeded(&mut self, now: Instant, output: &mut Output) {
        let mut keep = self.pinned();
        for name in &keep {
            if let Some(entry) = self.services.get_mut(name) {
                entry.needed_at = now;
            }
        }
        let mut absent = Vec::new();
        for (name, entry) in &self.services {
            match entry.absent_since {
                // While the control plane is away, what it said last is still the best answer.
                Some(since) if self.away_since.is_some() || now < since + ABSENT_FOR => {
                    absent.push((since, name.clone()));
                }
                Some(_) => {}
                None if entry.used.is_marked() || now < entry.needed_at + UNUSED_AFTER => {
                    keep.insert(name.clone());
                }
                None => {}
            }
        }
        if absent.len() > MAX_UNKNOWN {
            absent.sort_unstable_by_key(|(since, _)| std::cmp::Reverse(*since));
            absent.truncate(MAX_UNKNOWN);
        }
        keep.extend(absent.into_iter().map(|(_, name)| name));
        let backends: Vec<_> = keep
            .iter()
            .filter_map(|name| self.services.get(name))
            .flat_map(|entry| entry.backends.iter().cloned())
            .collect();
        for name in backends {
            if let Some(entry) = self.services.get_mut(&name) {
                entry.needed_at = now;
            }
            keep.insert(name);
        }

        let mut remove = Vec::new();
        self.services.retain(|name, entry| {
            if keep.contains(name) {
                if entry.absent_since.is_some_and(|since| now >= since + ABSENT_FOR) {
                    // Still subscribed to, so that is still the truth.
                    entry.absent_since = Some(now);
                }
                return true;
            }
            remove.extend(entry.resource_names().map(|name| name.to_string()));
            for resource in entry.resource_names() {
                self.refused.remove(&resource);
            }
            if self.snapshot.service(name).is_some() {
                self.snapshot.remove(name);
                self.dirty = true;
                output.save = true;
            }
            self.tables.unsubscribed(name);
            false
        });
        if self.open && !remove.is_empty() {
            let subscribe = wire::Subscribe { add: Vec::new(), remove };
            output.send.push(wire::to_control_plane::Message::Subscribe(subscribe));
        }
    }

    fn subscribe_needed(&mut self, now: Instant, output: &mut Output) {
        let mut needed = self.pinned();
        needed.extend(self.services.values().flat_map(|entry| entry.backends.iter().cloned()));
        let mut add = Vec::new();
        for name in needed {
            if !self.services.contains_key(&name) {
                add.extend(subscriptions(self.entry(&name, now)));
            }
        }
        if self.open && !add.is_empty() {
            let subscribe = wire::Subscribe { add, remove: Vec::new() };
            output.send.push(wire::to_control_plane::Message::Subscribe(subscribe));
        }
    }

    /// Moves new versions into the snapshot: a version that forwards to a service which is not known yet waits for it,
    /// so that no request meets a route without its backend.
    fn publish_ready(&mut self, now: Instant) {
        let ready: Vec<ServiceName> = self
            .services
            .iter()
            .filter(|(_, entry)| entry.compiled.is_some() && !entry.live)
            .filter(|(_, entry)| now >= entry.publish_by || self.backends_answered(entry))
            .map(|(name, _)| name.clone())
            .collect();
        for name in ready {
            // A backend that waits for backends of its own would otherwise be missing; its endpoints are all that counts.
            let backends = self.services.get(&name).map(|entry| entry.backends.clone()).unwrap_or_default();
            for backend in backends {
                if self.snapshot.service(&backend).is_none() {
                    self.publish(&backend);
                }
            }
            self.publish(&name);
        }
        let gone: Vec<_> = self
            .services
            .iter()
            .filter(|(name, entry)| entry.compiled.is_none() && self.snapshot.service(name).is_some())
            .map(|(name, _)| name.clone())
            .collect();
        for name in gone {
            self.snapshot.remove(&name);
            self.dirty = true;
        }
    }

    fn publish(&mut self, name: &ServiceName) {
        let Some(entry) = self.services.get_mut(name) else { return };
        let Some(service) = entry.compiled.clone().filter(|_| !entry.live) else { return };
        entry.live = true;
        self.snapshot.insert(service);
        self.dirty = true;
    }

    fn backends_answered(&self, entry: &Entry) -> bool {
        entry.backends.iter().all(|name| self.services.get(name).is_some_and(Entry::answered))
    }

    fn answer_wants(&mut self, now: Instant, output: &mut Output) {
        let services = &mut self.services;
        self.wanted.retain(|name, deadline| {
            let found = match services.get(name) {
                Some(entry) if entry.live => Found::Yes,
                Some(entry) if entry.absent_since.is_some() => Found::No,
                // There is such a service, but nothing good of it: passing the call by it would be wrong.
                Some(entry) if entry.answered() && entry.compiled.is_none() => Found::Unavailable,
                _ if now >= *deadline => Found::Unavailable,
                _ => return true,
            };
            if let Some(entry) = services.get_mut(name) {
                entry.needed_at = now;
            }
            output.answers.push((name.clone(), found));
            false
        });
    }

    /// What an operator wants to know.
    pub(super) fn status(&self) -> serde_json::Value {
        let part = |name: ResourceName, version: &str| {
            let mut value = serde_json::json!({ "name": name.to_string(), "version": version });
            if let Some(refusal) = self.refused.get(&name) {
                value["rejected"] =
                    serde_json::json!({ "version": refusal.version, "reason": refusal.reason });
            }
            value
        };
        let mut resources = vec![
            part(ResourceName::Mesh, self.mesh.version()),
            part(ResourceName::Trust, self.trust.version()),
            part(ResourceName::Workload(self.own.clone()), self.workload.version()),
        ];
        let mut known: Vec<_> = self.services.iter().filter(|(_, e)| e.absent_since.is_none()).collect();
        known.sort_unstable_by_key(|(name, _)| *name);
        for (_, entry) in known {
            let [service, endpoints] = entry.resource_names();
            resources.push(part(service, entry.documents.version()));
            resources.push(part(endpoints, entry.endpoints.version()));
        }
        serde_json::json!({
            "policyVersion": self.policy_version,
            "workload": self.own.to_string(),
            "resources": resources,
            "services": self.snapshot.services().count(),
            "wanted": self.wanted.len(),
            "absent": self.absent().count(),
            "rejected": self.refused.len(),
        })
    }
}

fn subscription(name: &ResourceName, version: &str) -> wire::Subscription {
    wire::Subscription { name: name.to_string(), version: version.to_owned() }
}

fn subscriptions(entry: &Entry) -> [wire::Subscription; 2] {
    let [service, endpoints] = entry.resource_names();
    [subscription(&service, entry.documents.version()), subscription(&endpoints, entry.endpoints.version())]
}
