//! One service that is subscribed to: what is held of it, what it was compiled to, and who is to blame if it does not.

use super::{compiling, names::ResourceName, usage::Used};
use std::{collections::BTreeSet, sync::Arc};
use tokio::time::Instant;
use weft_config::{
    compile::Caller,
    identity::ServiceName,
    snapshot::{Action, Backend, Calls, Mesh, Rule, Service},
    wire,
};

/// A resource's content with the version it came under.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Versioned<T> {
    pub(super) version: String,
    pub(super) body: T,
}

/// What is known of one resource.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) enum Part<T> {
    /// Nothing was heard yet.
    #[default]
    Unanswered,
    /// There is no such resource.
    Absent,
    /// There is one, but no version of it was ever good.
    Refused,
    /// The last good version.
    Held(Versioned<T>),
}

impl<T> Part<T> {
    pub(super) fn held(&self) -> Option<&Versioned<T>> {
        match self {
            Self::Held(held) => Some(held),
            _ => None,
        }
    }

    /// The version that is held, empty if none.
    pub(super) fn version(&self) -> &str {
        self.held().map_or("", |held| &held.version)
    }

    fn answered(&self) -> bool {
        !matches!(self, Self::Unanswered)
    }
}

/// What an update says of one resource.
#[derive(Debug, PartialEq)]
pub(super) enum Incoming<T> {
    Gone,
    New(Versioned<T>),
}

/// What an update says of one service.
#[derive(Debug, Default)]
pub(super) struct Change {
    pub(super) documents: Option<Incoming<wire::Documents>>,
    pub(super) endpoints: Option<Incoming<wire::Endpoints>>,
}

/// A resource that was not taken, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) name: ResourceName,
    pub(super) version: String,
    pub(super) reason: String,
}

/// One service.
#[derive(Debug)]
pub(super) struct Entry {
    name: ServiceName,
    /// Some routes hold only for some callers.
    caller: Arc<Caller>,
    pub(super) documents: Part<wire::Documents>,
    pub(super) endpoints: Part<wire::Endpoints>,
    pub(super) compiled: Option<Arc<Service>>,
    /// The other services that calls to it go to: backends of its routes, shards, mirrors.
    pub(super) backends: Vec<ServiceName>,
    /// True if the snapshot has `compiled`. A new version waits for its backends to be known first.
    pub(super) live: bool,
    /// When the new version is published even if some backend is not known.
    pub(super) publish_by: Instant,
    /// Last time that it was wanted, used, or forwarded to.
    pub(super) needed_at: Instant,
    /// Since when it is known not to exist.
    pub(super) absent_since: Option<Instant>,
    pub(super) used: Arc<Used>,
}

impl Entry {
    pub(super) fn new(name: ServiceName, caller: Arc<Caller>, used: Arc<Used>, now: Instant) -> Self {
        Self {
            name,
            caller,
            documents: Part::Unanswered,
            endpoints: Part::Unanswered,
            compiled: None,
            backends: Vec::new(),
            live: false,
            publish_by: now,
            needed_at: now,
            absent_since: None,
            used,
        }
    }

    pub(super) fn resource_names(&self) -> [ResourceName; 2] {
        [ResourceName::Service(self.name.clone()), ResourceName::Endpoints(self.name.clone())]
    }

    /// True once it is known whether and where the service exists.
    pub(super) fn answered(&self) -> bool {
        self.documents == Part::Absent || (self.documents.answered() && self.endpoints.answered())
    }

    /// Takes what is good of a change; what is not leaves the last good version in force and is named.
    pub(super) fn apply(
        &mut self,
        change: Change,
        mesh: &Mesh,
        now: Instant,
        publish_by: Instant,
    ) -> Vec<Refusal> {
        let new_documents = match change.documents {
            Some(Incoming::Gone) => {
                self.documents = Part::Absent;
                self.compiled = None;
                self.live = false;
                self.backends.clear();
                self.absent_since.get_or_insert(now);
                None
            }
            Some(Incoming::New(new)) => {
                self.absent_since = None;
                Some(new)
            }
            None => None,
        };
        let mut went = false;
        let new_endpoints = match change.endpoints {
            Some(Incoming::Gone) => {
                went = self.endpoints != Part::Absent;
                self.endpoints = Part::Absent;
                None
            }
            Some(Incoming::New(new)) => Some(new),
            None => None,
        };
        if new_documents.is_none() && new_endpoints.is_none() && !went {
            return Vec::new();
        }
        self.settle(new_documents, new_endpoints, mesh, publish_by)
    }

    /// Compiles again because the mesh's settings changed.
    pub(super) fn recompile(&mut self, mesh: &Mesh, publish_by: Instant) -> Vec<Refusal> {
        let Some(documents) = self.documents.held().cloned() else { return Vec::new() };
        match self.compile(&documents, self.endpoints.held(), mesh) {
            Ok(service) => {
                self.take(service, publish_by);
                Vec::new()
            }
            Err(reason) => {
                let version = documents.version;
                vec![Refusal { name: ResourceName::Service(self.name.clone()), version, reason }]
            }
        }
    }

    /// Finds the newest combination that compiles and blames what is not in it.
    fn settle(
        &mut self,
        documents: Option<Versioned<wire::Documents>>,
        endpoints: Option<Versioned<wire::Endpoints>>,
        mesh: &Mesh,
        publish_by: Instant,
    ) -> Vec<Refusal> {
        // What was never compiled is as unproven as what has just come.
        let unproven = self.compiled.is_none();
        let take_unproven = |part: &mut Part<wire::Documents>| match std::mem::take(part) {
            Part::Held(held) => Some(held),
            other => {
                *part = other;
                None
            }
        };
        let documents = match documents {
            None if unproven => take_unproven(&mut self.documents),
            other => other,
        };
        let Some(current) = documents.as_ref().or_else(|| self.documents.held()) else {
            // Endpoints alone: they wait for their service.
            if let Some(new) = endpoints {
                self.endpoints = Part::Held(new);
            }
            return Vec::new();
        };
        if endpoints.is_none() && !self.endpoints.answered() {
            if let Some(new) = documents {
                self.documents = Part::Held(new);
            }
            return Vec::new();
        }

        let old_endpoints = self.endpoints.held();
        let newest_endpoints = endpoints.as_ref().or(old_endpoints);
        let first = match &self.compiled {
            Some(compiled) if documents.is_none() => {
                let nowhere = wire::Endpoints::default();
                let endpoints = newest_endpoints.map_or(("", &nowhere), |e| (e.version.as_str(), &e.body));
                compiling::moved(compiled, &current.version, endpoints)
            }
            _ => self.compile(current, newest_endpoints, mesh),
        };
        let (service, documents_taken, endpoints_taken, reason) = match first {
            Ok(service) => (Some(service), true, true, String::new()),
            Err(reason) => {
                let without_endpoints =
                    endpoints.as_ref().and_then(|_| self.compile(current, old_endpoints, mesh).ok());
                if let Some(service) = without_endpoints {
                    (Some(service), true, false, reason)
                } else {
                    let without_documents = match (&documents, &endpoints, self.documents.held()) {
                        (Some(_), Some(_), Some(old)) => self.compile(old, newest_endpoints, mesh).ok(),
                        _ => None,
                    };
                    let endpoints_taken = without_documents.is_some() || unproven;
                    (without_documents, false, endpoints_taken, reason)
                }
            }
        };

        let mut refusals = Vec::new();
        if let Some(new) = documents {
            if documents_taken {
                self.documents = Part::Held(new);
            } else {
                if self.documents.held().is_none() {
                    self.documents = Part::Refused;
                }
                refusals.push(Refusal {
                    name: ResourceName::Service(self.name.clone()),
                    version: new.version,
                    reason: reason.clone(),
                });
            }
        }
        if let Some(new) = endpoints {
            if endpoints_taken {
                self.endpoints = Part::Held(new);
            } else {
                if self.endpoints.held().is_none() {
                    self.endpoints = Part::Refused;
                }
                refusals.push(Refusal {
                    name: ResourceName::Endpoints(self.name.clone()),
                    version: new.version,
                    reason,
                });
            }
        }
        if let Some(service) = service {
            self.take(service, publish_by);
        }
        refusals
    }

    fn compile(
        &self,
        documents: &Versioned<wire::Documents>,
        endpoints: Option<&Versioned<wire::Endpoints>>,
        mesh: &Mesh,
    ) -> Result<Service, String> {
        let nowhere = wire::Endpoints::default();
        let endpoints = endpoints.map_or(("", &nowhere), |e| (e.version.as_str(), &e.body));
        let documents = (documents.version.as_str(), &documents.body);
        compiling::service(&self.name, documents, endpoints, mesh, &self.caller)
    }

    fn take(&mut self, service: Service, publish_by: Instant) {
        self.backends = backends_of(&service);
        // A version that waits already is not made to wait longer by the next one.
        if self.live || self.compiled.is_none() {
            self.publish_by = publish_by;
        }
        self.compiled = Some(Arc::new(service));
        self.live = false;
    }
}

/// The other services that calls to a service go to: those that its routes forward to, shards, and mirrors.
fn backends_of(service: &Service) -> Vec<ServiceName> {
    fn of_calls(calls: &Calls) -> impl Iterator<Item = &Backend> {
        let shards = calls.sharding.iter().flat_map(|sharding| sharding.shards.iter());
        shards.chain(calls.mirrors.iter().map(|mirror| &mirror.backend))
    }
    fn of_rule(rule: &Rule) -> impl Iterator<Item = &Backend> {
        let backends = match &rule.action {
            Action::Forward(backends) => &backends.list[..],
            Action::Redirect(_) => &[],
        };
        backends.iter().chain(of_calls(&rule.calls))
    }
    let all = service
        .ports
        .iter()
        .flat_map(|port| port.rules.iter().flat_map(of_rule).chain(of_calls(&port.calls)));
    let all = all.flat_map(|to| to.mirrors.iter().map(|mirror| &mirror.backend).chain([to]));
    let others = all.filter(|to| to.invalid.is_none() && to.service != service.name);
    others.map(|to| to.service.clone()).collect::<BTreeSet<_>>().into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_config::snapshot::{AppProtocol, Backends, Key, Mirror, Port, Sharding};

    fn to(name: &str) -> Backend {
        Backend {
            service: ServiceName::new("shop", name),
            port: 80,
            weight: 1,
            filters: Default::default(),
            mirrors: Arc::new([]),
            invalid: None,
        }
    }

    fn calls(shards: &[&str], mirrors: &[&str]) -> Arc<Calls> {
        let sharding = Sharding {
            key: Key([].into()),
            shards: shards.iter().map(|name| to(name)).collect(),
            pinned: [].into(),
            without_key: None,
        };
        let mirror = |name: &&str| Mirror { backend: to(name), numerator: 1, denominator: 100 };
        let mirrors = mirrors.iter().map(mirror).collect();
        Arc::new(Calls { sharding: Some(sharding), mirrors, ..Calls::default() })
    }

    #[test]
    fn backends_shards_and_mirrors_are_what_calls_go_to() {
        let broken = Backend { invalid: Some("no such kind".into()), ..to("broken") };
        let copied = Mirror { backend: to("copy"), numerator: 1, denominator: 1 };
        let v2 = Backend { mirrors: Arc::new([copied]), ..to("cart-v2") };
        let list = vec![to("cart"), v2, broken];
        let rule = Rule {
            name: "shop/cart#0".into(),
            filters: Default::default(),
            action: Action::Forward(Backends { list, total_weight: 3 }),
            calls: calls(&["cart-eu"], &["cart-v2", "shadow"]),
        };
        let port = Port {
            port: 80,
            name: None,
            protocol: AppProtocol::Http1,
            routes: Default::default(),
            rules: vec![rule],
            endpoints: Arc::new([]),
            traffic: Arc::default(),
            calls: calls(&["cart", "cart-us"], &["tap"]),
        };
        let service =
            Service { name: ServiceName::new("shop", "cart"), version: "1".into(), ports: vec![port] };
        let names: Vec<_> = backends_of(&service).into_iter().map(|name| name.name.to_string()).collect();
        assert_eq!(names, ["cart-eu", "cart-us", "cart-v2", "copy", "shadow", "tap"]);
    }
}
