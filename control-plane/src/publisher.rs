//! What each stream subscribed to, what it was told and what it took: pure state, no sockets.
//!
//! A stream has at most one update that is not answered yet. What changes meanwhile is only noted by name, so a slow
//! sidecar gets the latest state and never a backlog.

use sha2::{Digest, Sha256};
use std::{
    collections::{BTreeSet, HashMap, HashSet},
    fmt::Write,
    sync::Arc,
    time::Instant,
};
use tokio::sync::Notify;
use weft_config::wire::{self, resource::Body};

/// Names one stream among all that this process has served.
pub type StreamId = u64;

/// What one stream may subscribe to at most.
const MAX_SUBSCRIPTIONS: usize = 50_000;
/// The longest resource name: two Kubernetes names and a prefix.
const MAX_NAME: usize = 600;
/// An update is closed when it is this big; the rest follows in the next.
const UPDATE_BYTES: usize = 1 << 20;
const UPDATE_RESOURCES: usize = 2_000;

/// Everything that is published, and to whom.
#[derive(Default)]
pub struct Publisher {
    resources: HashMap<Arc<str>, Published>,
    subscribers: HashMap<Arc<str>, HashSet<StreamId>>,
    streams: HashMap<StreamId, Stream>,
    policy_version: Arc<str>,
    settling: bool,
    last_nonce: u64,
}

struct Published {
    version: Arc<str>,
    body: Body,
    size: usize,
}

struct Stream {
    subscriptions: HashMap<Arc<str>, Subscription>,
    /// What has to be looked at before the next update, in the order it is sent.
    dirty: BTreeSet<(u8, Arc<str>)>,
    in_flight: Option<InFlight>,
    policy_version: Arc<str>,
    wake: Arc<Notify>,
}

#[derive(Default)]
struct Subscription {
    told: Told,
    held: Option<Arc<str>>,
    /// True while all that is known is the version the sidecar came with, perhaps from before a restart of ours.
    inherited: bool,
    rejected: Option<Rejected>,
}

/// The last thing that a stream was told about a name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Told {
    #[default]
    Nothing,
    Removed,
    Version(Arc<str>),
}

struct InFlight {
    nonce: u64,
    since: Instant,
    told: Vec<(Arc<str>, Told)>,
}

/// A version that a sidecar did not take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// The resource.
    pub name: Arc<str>,
    /// The version that was refused.
    pub version: Arc<str>,
    /// The sidecar's own words.
    pub reason: Arc<str>,
}

/// Why a subscription is not possible.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// More names than one sidecar has use for.
    #[error("a stream may subscribe to {MAX_SUBSCRIPTIONS} resources at most; drop unused ones")]
    TooMany,
    /// A name that nothing can have.
    #[error("a resource name may have {MAX_NAME} bytes at most")]
    LongName,
}

/// What one stream holds, for status.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Resource name and the version that was acknowledged, sorted by name.
    pub versions: Vec<(Arc<str>, Arc<str>)>,
    /// Rejections that still stand, sorted by name.
    pub rejected: Vec<Rejected>,
    /// True if something is still to be told or answered.
    pub behind: bool,
}

impl Publisher {
    /// A stream begins. The handle wakes it whenever there may be an update for it.
    pub fn connect(&mut self, id: StreamId) -> Arc<Notify> {
        let wake = Arc::new(Notify::new());
        self.streams.insert(
            id,
            Stream {
                subscriptions: HashMap::new(),
                dirty: BTreeSet::new(),
                in_flight: None,
                policy_version: "".into(),
                wake: wake.clone(),
            },
        );
        wake
    }

    /// A stream has ended.
    pub fn disconnect(&mut self, id: StreamId) {
        let Some(stream) = self.streams.remove(&id) else { return };
        for name in stream.subscriptions.keys() {
            self.forget_subscriber(name, id);
        }
    }

    /// While settling, a sidecar that came with endpoints from before our start keeps them: the registry does not know
    /// yet who else will come back.
    pub fn set_settling(&mut self, settling: bool) {
        self.settling = settling;
        for stream in self.streams.values().filter(|stream| !stream.dirty.is_empty()) {
            stream.wake.notify_one();
        }
    }

    /// Whether it is settling.
    pub fn settling(&self) -> bool {
        self.settling
    }

    /// The version of the whole policy, for people; sent along with the next update.
    pub fn set_policy_version(&mut self, version: &str) {
        self.policy_version = version.into();
    }

    /// Publishes a resource, or withdraws it with `None`. True if that changed anything.
    pub fn publish(&mut self, name: &str, resource: Option<(String, Body)>) -> bool {
        let name: Arc<str> = name.into();
        match resource {
            Some((version, body)) => {
                if self.resources.get(&name).is_some_and(|known| *known.version == *version) {
                    return false;
                }
                let size = body.encoded_len() + name.len() + version.len() + 16;
                self.resources.insert(name.clone(), Published { version: version.into(), body, size });
            }
            None => {
                if self.resources.remove(&name).is_none() {
                    return false;
                }
            }
        }
        for id in self.subscribers.get(&name).into_iter().flatten() {
            if let Some(stream) = self.streams.get_mut(id) {
                stream.dirty.insert((rank(&name), name.clone()));
                stream.wake.notify_one();
            }
        }
        true
    }

    /// The names published under a prefix.
    pub fn names<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = &'a Arc<str>> + 'a {
        self.resources.keys().filter(move |name| name.starts_with(prefix))
    }

    /// The version of a published resource.
    pub fn version(&self, name: &str) -> Option<&Arc<str>> {
        self.resources.get(name).map(|published| &published.version)
    }

    /// The body of a published resource.
    pub fn body(&self, name: &str) -> Option<&Body> {
        self.resources.get(name).map(|published| &published.body)
    }

    /// A stream subscribes to names (each with the version it holds, or an empty one) and drops others.
    pub fn subscribe<'a>(
        &mut self,
        id: StreamId,
        add: impl IntoIterator<Item = (&'a str, &'a str)>,
        remove: impl IntoIterator<Item = &'a str>,
    ) -> Result<(), Refused> {
        let Some(stream) = self.streams.get_mut(&id) else { return Ok(()) };
        for name in remove {
            if let Some((name, _)) = stream.subscriptions.remove_entry(name) {
                stream.dirty.remove(&(rank(&name), name.clone()));
                remove_subscriber(&mut self.subscribers, &name, id);
            }
        }
        for (name, version) in add {
            if name.len() > MAX_NAME {
                return Err(Refused::LongName);
            }
            let name: Arc<str> = name.into();
            if stream.subscriptions.len() >= MAX_SUBSCRIPTIONS && !stream.subscriptions.contains_key(&name) {
                return Err(Refused::TooMany);
            }
            let held: Option<Arc<str>> = (!version.is_empty()).then(|| version.into());
            let told = held.clone().map_or(Told::Nothing, Told::Version);
            let inherited = held.is_some();
            stream.subscriptions.insert(name.clone(), Subscription { told, held, inherited, rejected: None });
            stream.dirty.insert((rank(&name), name.clone()));
            self.subscribers.entry(name).or_default().insert(id);
        }
        stream.wake.notify_one();
        Ok(())
    }

    /// The next update for a stream: `None` if it is up to date or has not answered the last one.
    pub fn next_update(&mut self, id: StreamId, now: Instant) -> Option<wire::Update> {
        let stream = self.streams.get_mut(&id)?;
        if stream.in_flight.is_some() {
            return None;
        }
        let mut update = wire::Update::default();
        let mut told = Vec::new();
        let mut size = 0;
        let mut kept = BTreeSet::new();
        while let Some((rank, name)) = stream.dirty.pop_first() {
            let Some(subscription) = stream.subscriptions.get_mut(&name) else { continue };
            let published = self.resources.get(&name);
            let target = published.map_or(Told::Removed, |p| Told::Version(p.version.clone()));
            if subscription.told == target {
                // What the sidecar came with is what we have: nothing about it is from before any more.
                subscription.inherited = false;
                continue;
            }
            if self.settling && subscription.inherited && name.starts_with("endpoints/") {
                kept.insert((rank, name));
                continue;
            }
            let resource_size = published.map_or(name.len() + 8, |p| p.size);
            if !told.is_empty() && (size + resource_size > UPDATE_BYTES || told.len() >= UPDATE_RESOURCES) {
                kept.insert((rank, name));
                break;
            }
            size += resource_size;
            match published {
                Some(published) => update.resources.push(wire::Resource {
                    name: name.to_string(),
                    version: published.version.to_string(),
                    body: Some(published.body.clone()),
                }),
                None => update.removed.push(name.to_string()),
            }
            subscription.told = target.clone();
            subscription.inherited = false;
            told.push((name, target));
        }
        stream.dirty.append(&mut kept);
        if told.is_empty() {
            return None;
        }
        if stream.policy_version != self.policy_version {
            stream.policy_version = self.policy_version.clone();
            update.policy_version = self.policy_version.to_string();
        }
        self.last_nonce += 1;
        update.nonce = self.last_nonce;
        stream.in_flight = Some(InFlight { nonce: self.last_nonce, since: now, told });
        Some(update)
    }

    /// Since when a stream has owed an answer.
    pub fn waiting_since(&self, id: StreamId) -> Option<Instant> {
        self.streams.get(&id)?.in_flight.as_ref().map(|in_flight| in_flight.since)
    }

    /// A stream answers an update. Gives what it did not take; `None` if the answer is to nothing that was sent.
    pub fn acknowledge(
        &mut self,
        id: StreamId,
        nonce: u64,
        rejections: &[wire::Rejection],
    ) -> Option<Vec<Rejected>> {
        let stream = self.streams.get_mut(&id)?;
        if stream.in_flight.as_ref()?.nonce != nonce {
            return None;
        }
        let in_flight = stream.in_flight.take()?;
        let refused: HashMap<&str, &wire::Rejection> =
            rejections.iter().map(|rejection| (rejection.name.as_str(), rejection)).collect();
        let mut rejected = Vec::new();
        for (name, told) in in_flight.told {
            let Some(subscription) = stream.subscriptions.get_mut(&name) else { continue };
            // Subscribed to anew while the update was under way: whether the sidecar applied the update before or
            // after that is not known, so it is told again.
            if subscription.told != told {
                subscription.told = Told::Nothing;
                stream.dirty.insert((rank(&name), name));
                continue;
            }
            match (refused.get(&*name), told) {
                (Some(rejection), Told::Version(version)) => {
                    let reason: String = rejection.reason.chars().take(500).collect();
                    let rejection = Rejected { name, version, reason: reason.into() };
                    subscription.rejected = Some(rejection.clone());
                    rejected.push(rejection);
                }
                (_, Told::Version(version)) => {
                    subscription.held = Some(version);
                    subscription.rejected = None;
                }
                (_, Told::Removed | Told::Nothing) => {
                    subscription.held = None;
                    subscription.rejected = None;
                }
            }
        }
        if !stream.dirty.is_empty() {
            stream.wake.notify_one();
        }
        Some(rejected)
    }

    /// What a stream holds.
    pub fn held(&self, id: StreamId) -> Held {
        let Some(stream) = self.streams.get(&id) else { return Held::default() };
        let mut held = Held { behind: stream.in_flight.is_some(), ..Held::default() };
        for (name, subscription) in &stream.subscriptions {
            if let Some(version) = &subscription.held {
                held.versions.push((name.clone(), version.clone()));
            }
            held.rejected.extend(subscription.rejected.clone());
            let current = self.version(name);
            held.behind |= subscription.rejected.is_none() && subscription.held.as_ref() != current;
        }
        held.versions.sort();
        held.rejected.sort_by(|a, b| a.name.cmp(&b.name));
        held
    }

    /// True if every stream that subscribed to `name` holds the version that is published.
    pub fn all_hold(&self, name: &str) -> bool {
        let current = self.version(name);
        self.subscribers.get(name).into_iter().flatten().all(|id| {
            let subscription = self.streams.get(id).and_then(|stream| stream.subscriptions.get(name));
            subscription.is_none_or(|subscription| subscription.held.as_ref() == current)
        })
    }

    fn forget_subscriber(&mut self, name: &str, id: StreamId) {
        remove_subscriber(&mut self.subscribers, name, id);
    }
}

fn remove_subscriber(subscribers: &mut HashMap<Arc<str>, HashSet<StreamId>>, name: &str, id: StreamId) {
    if let Some(streams) = subscribers.get_mut(name) {
        streams.remove(&id);
        if streams.is_empty() {
            subscribers.remove(name);
        }
    }
}

/// Whom to trust goes first; endpoints go before the routes that may send traffic to them.
fn rank(name: &str) -> u8 {
    match name.split('/').next() {
        Some("trust") => 0,
        Some("mesh") => 1,
        Some("workload") => 2,
        Some("endpoints") => 3,
        _ => 4,
    }
}

/// A version from a hash: short enough to be read aloud, long enough never to meet another of the same name.
pub(crate) fn short_version(hash: Sha256) -> String {
    hash.finalize().iter().take(8).fold(String::with_capacity(16), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The version of a set of endpoints: the same set has the same version, whatever its order and whoever computes it.
pub fn endpoints_version(endpoints: &[wire::Endpoint]) -> String {
    let mut hash = Sha256::new();
    let mut text = |text: &str| {
        hash.update((text.len() as u64).to_be_bytes());
        hash.update(text);
    };
    for endpoint in endpoints {
        text(&endpoint.port.to_string());
        text(&endpoint.address);
        text(&endpoint.identity);
        text(&endpoint.workload);
        text(&endpoint.zone);
        text(&endpoint.weight.to_string());
        let mut labels: Vec<_> = endpoint.labels.iter().collect();
        labels.sort();
        text(&labels.len().to_string());
        for (key, value) in labels {
            text(key);
            text(value);
        }
    }
    short_version(hash)
}

#[cfg(test)]
mod tests;
