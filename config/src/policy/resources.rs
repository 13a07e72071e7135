//! What sidecars are sent: for each resource the documents it is compiled from, without what is nobody's business.

use super::{
    Held, InForce,
    attachment::{backends, parents, target_refs},
    registry::Registry,
};
use crate::compile::{is_attached, speaks_of_endpoints};
use crate::document::cache_policy::CachePlace;
use crate::document::mesh_policy::{MeshPolicySpec, Up};
use crate::document::target::TargetKind;
use crate::document::workload::WorkloadSpec;
use crate::document::{Document, DocumentKey, Kind, MeshPolicy, Metadata, Service, TrafficPolicy, Workload};
use crate::identity::ServiceName;
use crate::wire;
use sha2::{Digest, Sha256};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt::Write,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
};

/// Every resource with its version.
#[derive(Debug, Default)]
pub(super) struct Resources {
    documents: BTreeMap<String, (String, Arc<wire::Documents>)>,
    /// Versions of the fixed endpoints of each service and of what its leased ones are made of.
    endpoints: BTreeMap<String, String>,
}

impl Resources {
    pub(super) fn new(in_force: &InForce, registry: &Registry) -> Self {
        let mut resources = Self::default();
        resources.add("mesh".to_owned(), vec![on_the_wire(&mesh(in_force, registry))]);
        let attached = Attached::new(in_force);
        for name in registry.services() {
            let Some(service) = registry.service(&name) else { continue };
            let mut documents = vec![on_the_wire(&Document::Service(without_annotations(service)))];
            let (attached, backends) = attached.to_service(&name);
            documents.extend(attached.into_iter().cloned());
            let backends = backends.iter().filter(|backend| **backend != name);
            let backends = backends.filter_map(|backend| registry.service(backend));
            documents.extend(
                backends.map(|service| on_the_wire(&Document::Service(without_annotations(service)))),
            );
            resources.add(format!("service/{name}"), documents);
            resources.endpoints.insert(format!("endpoints/{name}"), endpoints_version(&name, registry));
        }
        for (name, workload) in registry.workloads() {
            let serves = registry.serves(&name.namespace, &name.name);
            let mut documents = vec![on_the_wire(&Document::Workload(public(workload)))];
            for service in serves.iter().filter_map(|service| registry.service(service)) {
                documents.push(on_the_wire(&Document::Service(without_annotations(service))));
            }
            documents.extend(attached.to_workload(name, serves).into_iter().cloned());
            let resource = format!("workload/{name}");
            resources.add(resource.clone(), documents);
            // Replicas share the documents of the workload, but a document of a replica's very name goes first.
            for replica in 0..workload.spec.replicas {
                let instance = format!("{}-{replica}", name.name);
                if registry
                    .workload(&name.namespace, &instance)
                    .is_some_and(|own| own.metadata.name == *name.name)
                    && let Some(shared) = resources.documents.get(&resource).cloned()
                {
                    resources.documents.insert(format!("workload/{}/{instance}", name.namespace), shared);
                }
            }
        }
        resources
    }

    fn add(&mut self, name: String, documents: Vec<wire::Document>) {
        let mut hash = Sha256::new();
        for document in &documents {
            hash.update(document.kind.as_bytes());
            hash.update([0]);
            hash.update(document.json.as_bytes());
            hash.update([0]);
        }
        self.documents.insert(name, (short(hash), Arc::new(wire::Documents { documents })));
    }

    pub(super) fn get(&self, name: &str) -> Option<(&str, &wire::Documents)> {
        self.documents.get(name).map(|(version, documents)| (version.as_str(), &**documents))
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.documents.keys().map(String::as_str)
    }

    /// One version over everything.
    pub(super) fn version(&self) -> String {
        let mut hash = Sha256::new();
        for (name, version) in self.versions() {
            hash.update(name.as_bytes());
            hash.update([0]);
            hash.update(version.as_bytes());
        }
        short(hash)
    }

    fn versions(&self) -> impl Iterator<Item = (&str, &str)> {
        let documents = self.documents.iter().map(|(name, (version, _))| (name.as_str(), version.as_str()));
        documents.chain(self.endpoints.iter().map(|(name, version)| (name.as_str(), version.as_str())))
    }

    /// The names of what is another in `after` than here, or only in one of the two.
    pub(super) fn changed(&self, after: &Self) -> Vec<String> {
        let before: BTreeMap<&str, &str> = self.versions().collect();
        let after: BTreeMap<&str, &str> = after.versions().collect();
        let names: BTreeSet<&str> = before.keys().chain(after.keys()).copied().collect();
        names.into_iter().filter(|name| before.get(name) != after.get(name)).map(str::to_owned).collect()
    }
}

/// Eight bytes of the hash are plenty to tell versions of one resource apart.
fn short(hash: Sha256) -> String {
    hash.finalize().iter().take(8).fold(String::with_capacity(16), |mut text, byte| {
        // Writing into a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn on_the_wire(document: &Document) -> wire::Document {
    wire::Document { kind: document.kind().as_str().to_owned(), json: document.to_json() }
}

/// A route or a policy without its annotations.
fn attached_on_the_wire(document: &Document) -> wire::Document {
    let mut document = document.clone();
    match &mut document {
        Document::HttpRoute(route) => route.metadata.annotations.clear(),
        Document::GrpcRoute(route) => route.metadata.annotations.clear(),
        Document::TrafficPolicy(policy) => policy.metadata.annotations.clear(),
        Document::CachePolicy(policy) => policy.metadata.annotations.clear(),
        Document::AuthorizationPolicy(policy) => policy.metadata.annotations.clear(),
        _ => {}
    }
    on_the_wire(&document)
}

/// Annotations are notes of other tools, often a whole copy of the document.
fn without_annotations(service: &Service) -> Service {
    let mut service = service.clone();
    service.metadata.annotations.clear();
    service
}

/// A workload without what only `weft up` needs: its environment may hold secrets.
fn public(workload: &Workload) -> Workload {
    let mut workload = workload.clone();
    let nothing = WorkloadSpec::default();
    workload.metadata.annotations.clear();
    workload.spec.command = nothing.command;
    workload.spec.workdir = nothing.workdir;
    workload.spec.env = nothing.env;
    workload.spec.replicas = nothing.replicas;
    workload
}

/// The MeshPolicy in force with its trust domain filled in, or one that says only that.
fn mesh(in_force: &InForce, registry: &Registry) -> Document {
    let found = in_force.values().find_map(|found| match &found.document {
        Document::MeshPolicy(policy) => Some(policy.clone()),
        _ => None,
    });
    let mut policy = found.unwrap_or_else(|| {
        MeshPolicy::new(Kind::MeshPolicy, Metadata::named("default", "mesh"), MeshPolicySpec::default())
    });
    policy.metadata.annotations.clear();
    policy.spec.up = Up::default();
    policy.spec.trust_domain = Some(registry.trust_domain.to_string());
    Document::MeshPolicy(policy)
}

/// Documents that are attached to others, ready for the wire.
struct Attached<'a> {
    documents: BTreeMap<&'a DocumentKey, &'a wire::Document>,
    in_force: &'a InForce,
    /// Routes by the services they are attached to.
    routes: BTreeMap<ServiceName, BTreeSet<&'a DocumentKey>>,
    /// Policies by what they target, in their own namespace.
    policies: HashMap<(TargetKind, ServiceName), BTreeSet<&'a DocumentKey>>,
    /// AuthorizationPolicies for a whole namespace.
    whole_namespace: BTreeMap<Arc<str>, BTreeSet<&'a DocumentKey>>,
}

impl<'a> Attached<'a> {
    fn new(in_force: &'a InForce) -> Self {
        let mut attached = Self {
            documents: BTreeMap::new(),
            in_force,
            routes: BTreeMap::new(),
            policies: HashMap::new(),
            whole_namespace: BTreeMap::new(),
        };
        for (key, found) in in_force {
            if is_attached(key.kind) || key.kind == Kind::AuthorizationPolicy {
                attached.add(key, found);
            }
        }
        attached
    }

    fn add(&mut self, key: &'a DocumentKey, found: &'a Held) {
        let targets = target_refs(&found.document);
        for target in targets {
            let name = ServiceName::new(key.namespace.clone(), target.name.as_str());
            self.policies.entry((target.kind, name)).or_default().insert(key);
        }
        if targets.is_empty() && key.kind == Kind::AuthorizationPolicy {
            self.whole_namespace.entry(key.namespace.clone()).or_default().insert(key);
        }
        for parent in parents(&found.document) {
            self.routes.entry(parent).or_default().insert(key);
        }
        self.documents.insert(key, found.wire.get_or_init(|| attached_on_the_wire(&found.document)));
    }

    fn targeting(&self, kind: TargetKind, name: &ServiceName) -> impl Iterator<Item = &'a DocumentKey> {
        self.policies.get(&(kind, name.clone())).into_iter().flatten().copied()
    }

    fn traffic_policy(&self, key: &DocumentKey) -> Option<&'a TrafficPolicy> {
        match &self.in_force.get(key)?.document {
            Document::TrafficPolicy(policy) => Some(policy),
            _ => None,
        }
    }

    /// Routes on a service, and the policies on it and on those routes. Where one of these says something about
    /// endpoints, it is laid over what the policies on each backend say of that backend's endpoints: then these are
    /// needed too, and beside them the documents of the services that are named second.
    fn to_service(&self, service: &ServiceName) -> (Vec<&'a wire::Document>, BTreeSet<ServiceName>) {
        let mut keys: BTreeSet<&DocumentKey> = self.routes.get(service).cloned().unwrap_or_default();
        let mut policies: BTreeSet<&DocumentKey> = self.targeting(TargetKind::Service, service).collect();
        let mut backends = BTreeSet::new();
        for route in &keys {
            let kind =
                if route.kind == Kind::GrpcRoute { TargetKind::GrpcRoute } else { TargetKind::HttpRoute };
            let name = ServiceName::new(route.namespace.clone(), route.name.clone());
            let on_route: Vec<_> = self.targeting(kind, &name).collect();
            let mut written = on_route.iter().filter_map(|key| self.traffic_policy(key));
            if written.any(|policy| speaks_of_endpoints(&policy.spec)) {
                backends.extend(
                    self.in_force.get(*route).into_iter().flat_map(|at| self::backends(&at.document)),
                );
            }
            policies.extend(on_route);
        }
        for backend in &backends {
            let on_backend = self.targeting(TargetKind::Service, backend);
            policies.extend(on_backend.filter(|key| key.kind == Kind::TrafficPolicy));
        }
        keys.extend(policies.into_iter().filter(|key| is_attached(key.kind)));
        (keys.into_iter().filter_map(|key| self.documents.get(key).copied()).collect(), backends)
    }

    /// AuthorizationPolicies on a workload, on what it serves, and on its whole namespace; and of the TrafficPolicies and
    /// CachePolicies on what it serves those that are about calls that come in.
    fn to_workload(&self, workload: &ServiceName, serves: &[ServiceName]) -> Vec<&'a wire::Document> {
        let mut keys: BTreeSet<&DocumentKey> =
            self.whole_namespace.get(&workload.namespace).cloned().unwrap_or_default();
        keys.extend(self.targeting(TargetKind::Workload, workload));
        for service in serves {
            keys.extend(self.targeting(TargetKind::Service, service));
        }
        keys.retain(|key| match self.in_force.get(*key).map(|held| &held.document) {
            Some(Document::TrafficPolicy(policy)) => {
                !policy.spec.rate_limits.is_empty() || policy.spec.concurrency.is_some()
            }
            // One that turns the cache off can hold against another on the whole Service.
            Some(Document::CachePolicy(policy)) => {
                policy.spec.place != CachePlace::Outbound || policy.spec.enabled == Some(false)
            }
            _ => key.kind == Kind::AuthorizationPolicy,
        });
        keys.into_iter().filter_map(|key| self.documents.get(key).copied()).collect()
    }
}

/// A version of a service's fixed endpoints and of what its leased ones would be, wherever the sidecars are.
fn endpoints_version(service: &ServiceName, registry: &Registry) -> String {
    let nowhere = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
    let mut endpoints = registry.static_endpoints(service);
    for (name, workload) in registry.workloads_of(service) {
        let leased = registry.leased_endpoints(&name.namespace, &name.name, nowhere);
        endpoints.extend(leased.into_iter().filter(|(of, _)| of == service).map(|(_, endpoint)| {
            wire::Endpoint {
                // With the number of replicas, whose endpoints are like this one.
                workload: format!("{}*{}", endpoint.workload, workload.spec.replicas),
                ..endpoint
            }
        }));
    }
    let mut hash = Sha256::new();
    for endpoint in endpoints {
        let wire::Endpoint { port, address, identity, workload, zone, labels, weight } = endpoint;
        let labels: BTreeMap<_, _> = labels.into_iter().collect();
        hash.update(format!("{port} {address} {identity} {workload} {zone:?} {labels:?} {weight}\n"));
    }
    short(hash)
}
