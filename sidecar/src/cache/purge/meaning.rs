//! Which stored answers a purge means: the address of each taken apart and compared.

use crate::{
    cache::{
        entry::Entry,
        key::{self, NoVarySearch},
        store::{Choice, What},
        tiers::Wider,
    },
    message::split_authority,
};
use std::{collections::HashMap, net::IpAddr, sync::Arc};
use weft_config::{
    identity::ServiceName,
    purge::Url,
    snapshot::{CacheKeyRules, CacheRules, Snapshot},
};

/// What names mean to the application that this sidecar stands beside, and by which rules its policies make keys.
pub(super) struct Scene {
    namespace: Arc<str>,
    /// The ports of listeners of our own whose connections all go to one port of one service.
    listeners: Arc<[(u16, ServiceName, u16)]>,
    rules: HashMap<Arc<str>, CacheKeyRules>,
}

impl Scene {
    /// As a snapshot says, for callers in `namespace`.
    pub(super) fn of(snapshot: &Snapshot, namespace: &str) -> Self {
        let workload = snapshot.workload.as_ref();
        let listeners = workload.into_iter().flat_map(|w| &w.upstreams);
        let inbound = workload.into_iter().flat_map(|w| &w.admission).filter_map(|on| on.cache.as_ref());
        let ports = snapshot.services().flat_map(|service| &service.ports);
        let outbound =
            ports.flat_map(|port| port.rules.iter().map(|rule| &rule.calls.cache).chain([&port.calls.cache]));
        let rules = inbound
            .chain(outbound.flatten())
            .map(|rules: &Arc<CacheRules>| (rules.id.clone(), rules.key.clone()));
        Self {
            namespace: namespace.into(),
            listeners: listeners.map(|own| (own.listen.port(), own.service.clone(), own.port)).collect(),
            rules: rules.collect(),
        }
    }

    /// How keys are made under a policy; as without any rules if the policy is no more.
    pub(super) fn rules(&self, policy: &str) -> CacheKeyRules {
        self.rules.get(policy).cloned().unwrap_or_default()
    }
}

/// What a key's text says of where its answer came from.
struct Address<'k> {
    host: &'k str,
    port: u16,
    /// The path with the query.
    tail: &'k [u8],
    /// The service and port that it was kept for where that is served.
    served: Option<(&'k str, &'k str, u16)>,
}

impl<'k> Address<'k> {
    /// Takes a key apart; `None` if it is none of a request's.
    fn of(key: &'k [u8]) -> Option<Self> {
        let end = key.iter().position(|byte| *byte == b'\n')?;
        let (uri, rest) = (&key[..end], &key[end + 1..]);
        let scheme = uri.windows(3).position(|three| three == b"://")?;
        let behind = &uri[scheme + 3..];
        let at = behind.iter().position(|byte| matches!(byte, b'/' | b'?' | b'*')).unwrap_or(behind.len());
        let (host, port) = split_authority(std::str::from_utf8(&behind[..at]).ok()?)?;
        let default = if &uri[..scheme] == b"https" { 443 } else { 80 };
        let scope = rest.split(|byte| *byte == b'\n').skip(1).find_map(|line| line.strip_prefix(b"S"));
        Some(Self {
            host,
            port: port.unwrap_or(default),
            tail: &behind[at..],
            served: scope.and_then(served),
        })
    }
}

/// `in:<namespace>/<service>:<port>`.
fn served(scope: &[u8]) -> Option<(&str, &str, u16)> {
    let scope = std::str::from_utf8(scope).ok()?.strip_prefix("in:")?;
    let (service, port) = scope.rsplit_once(':')?;
    let (namespace, name) = service.split_once('/')?;
    Some((namespace, name, port.parse().ok()?))
}

/// Which paths and queries are meant.
pub(super) enum Tail {
    /// All.
    Any,
    /// Those that begin like this.
    Begins(Box<[u8]>),
    /// That of one URL.
    Is(Box<Target>),
}

/// The path and query of one URL.
pub(super) struct Target {
    path: String,
    query: Option<String>,
    rules: CacheKeyRules,
    /// As they stand in keys, by the rules of the policy and without any: what was kept before the rules were changed is
    /// found again if they are changed back.
    forms: [Vec<u8>; 2],
    /// Each parameter in normal form.
    pairs: Vec<Vec<u8>>,
}

impl Tail {
    pub(super) fn of_url(url: &Url, rules: CacheKeyRules) -> Self {
        let all = form(&url.path, url.query.as_deref(), &CacheKeyRules::default(), None);
        let pairs = match url.query {
            Some(_) => parameters(&all).map(<[u8]>::to_vec).collect(),
            None => Vec::new(),
        };
        let forms = [form(&url.path, url.query.as_deref(), &rules, None), all];
        Self::Is(Box::new(Target { path: url.path.clone(), query: url.query.clone(), rules, forms, pairs }))
    }

    fn may_mean(&self, tail: &[u8]) -> bool {
        match self {
            Self::Any => true,
            Self::Begins(with) => tail.starts_with(with),
            Self::Is(target) => target.is(tail) || target.may_be(tail),
        }
    }

    fn means(&self, entry: &Entry, tail: &[u8]) -> bool {
        match self {
            Self::Any | Self::Begins(_) => true,
            Self::Is(target) => target.is(tail) || target.is_by_what_it_says(entry, tail),
        }
    }
}

impl Target {
    fn is(&self, tail: &[u8]) -> bool {
        self.forms.iter().any(|form| form == tail)
    }

    /// Whether it may be ours by what the resource says of its query, which is known only where its answer is: then the
    /// key has some of our parameters and no other.
    fn may_be(&self, tail: &[u8]) -> bool {
        let path = tail.split(|byte| *byte == b'?').next().unwrap_or_default();
        self.query.is_some()
            && path == self.path.as_bytes()
            && parameters(tail).all(|pair| self.pairs.iter().any(|own| own == pair))
    }

    fn is_by_what_it_says(&self, entry: &Entry, tail: &[u8]) -> bool {
        let Some(query) = &self.query else { return false };
        let says = NoVarySearch::of(&entry.headers());
        says.is_some_and(|says| form(&self.path, Some(query), &self.rules, Some(&says)) == tail)
    }
}

/// A path and query as they stand in a key.
fn form(path: &str, query: Option<&str>, rules: &CacheKeyRules, no_vary: Option<&NoVarySearch>) -> Vec<u8> {
    let uri = key::uri("http", "", path, query, rules, no_vary);
    let tail = uri.strip_prefix(b"http://").unwrap_or(&uri);
    tail.strip_suffix(b"\n").unwrap_or(tail).to_vec()
}

fn parameters(tail: &[u8]) -> impl Iterator<Item = &[u8]> {
    let query = tail.iter().position(|byte| *byte == b'?').map_or(&tail[tail.len()..], |at| &tail[at + 1..]);
    query.split(|byte| *byte == b'&').filter(|pair| !pair.is_empty())
}

/// Where a purge's URL is.
struct Place {
    host: Box<str>,
    port: u16,
    service: Option<ServiceName>,
}

/// What a purge is for under one policy, where that is not everything.
pub(super) struct Meaning {
    place: Option<Place>,
    tail: Tail,
    /// Only what is kept of this service.
    service: Option<ServiceName>,
    tag: Option<Box<[u8]>>,
    namespace: Arc<str>,
    listeners: Arc<[(u16, ServiceName, u16)]>,
}

impl Meaning {
    /// Everything kept of a service, or what of it has a label.
    pub(super) fn of_service(service: ServiceName, tag: Option<Box<[u8]>>, scene: &Scene) -> Self {
        Self {
            place: None,
            tail: Tail::Any,
            service: Some(service),
            tag,
            namespace: scene.namespace.clone(),
            listeners: scene.listeners.clone(),
        }
    }

    /// What is kept where a URL is.
    pub(super) fn of_url(url: &Url, tail: Tail, service: Option<ServiceName>, scene: &Scene) -> Self {
        Self {
            place: Some(Place { host: url.host.clone(), port: url.port, service: url.service.clone() }),
            tail,
            service,
            tag: None,
            namespace: scene.namespace.clone(),
            listeners: scene.listeners.clone(),
        }
    }

    /// The service and port that an answer was kept for.
    fn kept_for(&self, address: &Address<'_>) -> Option<(ServiceName, u16)> {
        if let Some((namespace, name, port)) = address.served {
            return Some((ServiceName::new(namespace, name), port));
        }
        if let Some(service) = Snapshot::host_candidates(address.host, &self.namespace) {
            return Some((service, address.port));
        }
        // Who calls through a listener of ours mostly says its address.
        let here = address.host == "localhost" || address.host.parse::<IpAddr>().is_ok();
        let own = self.listeners.iter().find(|(port, ..)| here && *port == address.port)?;
        Some((own.1.clone(), own.2))
    }

    fn is_at(&self, address: &Address<'_>) -> bool {
        if self.place.is_none() && self.service.is_none() {
            return true;
        }
        let kept_for = self.kept_for(address);
        let of_service = self
            .service
            .as_ref()
            .is_none_or(|service| kept_for.as_ref().is_some_and(|(own, _)| own == service));
        of_service
            && self.place.as_ref().is_none_or(|place| match (&place.service, &kept_for) {
                (Some(service), Some((own, port))) => own == service && *port == place.port,
                _ => *place.host == *address.host && place.port == address.port,
            })
    }
}

impl Choice for Meaning {
    fn may_mean(&self, key: &[u8]) -> bool {
        Address::of(key).is_some_and(|address| self.tail.may_mean(address.tail) && self.is_at(&address))
    }

    fn means(&self, entry: &Entry) -> bool {
        let tagged = self.tag.as_ref().is_none_or(|wanted| entry.tags().any(|tag| *tag == **wanted));
        tagged && Address::of(entry.key_text()).is_some_and(|address| self.tail.means(entry, address.tail))
    }

    fn wider(&self) -> Wider {
        match (&self.tag, &self.tail) {
            (Some(tag), _) => Wider::Tag(tag.clone()),
            (None, Tail::Any) => Wider::All,
            (None, Tail::Begins(path)) => Wider::Path(path.clone()),
            // Names of hosts, and what counts of a query, only we know.
            (None, Tail::Is(target)) => Wider::Path(target.path.as_bytes().into()),
        }
    }
}

impl From<Meaning> for What {
    fn from(meaning: Meaning) -> Self {
        Self::Chosen(Arc::new(meaning))
    }
}
