//! The mesh as people see it: status, and the documents that are in force.

use super::{Mesh, lock, unix};
use crate::status::{
    ControlPlane, Deprecated, Diagnostic, Document, DocumentState, Endpoint, Problem, Rejection, Resource,
    Service, Sidecar, Status,
};
use std::{collections::BTreeMap, time::SystemTime};
use weft_config::{
    document,
    error::Severity,
    identity::ServiceName,
    policy::{self, DocumentStatus, Policy},
    wire::{self, resource::Body},
};

impl Status {
    /// What files alone say: no sidecars, and of the endpoints those that documents name themselves.
    pub fn of_files(policy: &Policy, problems: &[crate::source::Problem]) -> Self {
        let service = |name: ServiceName| {
            let (version, documents) = policy.resource(&format!("service/{name}")).unwrap_or_default();
            Service {
                namespace: name.namespace.to_string(),
                name: name.name.to_string(),
                version,
                endpoints_version: String::new(),
                documents: attached(&documents),
                endpoints: policy.static_endpoints(&name).iter().map(endpoint).collect(),
            }
        };
        let mut status = Self {
            documents: policy.status().iter().map(document).collect(),
            problems: problems.iter().map(problem).collect(),
            services: policy.services().map(service).collect(),
            sidecars: Vec::new(),
            control_plane: ControlPlane { policy_version: policy.version(), ..ControlPlane::default() },
            deprecated: deprecations(policy),
        };
        status.sort();
        status
    }

    fn sort(&mut self) {
        self.services.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
    }
}

/// The documents that say how a service is called, as people name them.
fn attached(documents: &wire::Documents) -> Vec<String> {
    documents
        .documents
        .iter()
        .filter(|document| document.kind != "Service")
        .filter_map(|document| Some(format!("{} {}", document.kind, name_in(&document.json)?)))
        .collect()
}

/// What policy in force says is going away, sorted by name. At most one policy says so of each thing.
fn deprecations(policy: &Policy) -> Vec<Deprecated> {
    let mut found = Vec::new();
    for located in policy.documents() {
        let document::Document::TrafficPolicy(traffic) = &located.document else { continue };
        let Some(deprecation) = &traffic.spec.deprecation else { continue };
        let namespace = traffic.metadata.namespace();
        found.extend(traffic.spec.target_refs.iter().map(|target| Deprecated {
            of: target.named(namespace),
            policy: format!("{namespace}/{}", traffic.metadata.name),
            since: deprecation.since.clone(),
            sunset: deprecation.sunset.clone().unwrap_or_default(),
            link: deprecation.link.clone().unwrap_or_default(),
            callers: Vec::new(),
        }));
    }
    found.sort_by(|a, b| a.of.cmp(&b.of));
    found
}

fn problem(problem: &crate::source::Problem) -> Problem {
    Problem { path: problem.path.clone(), message: problem.message.clone() }
}

impl Mesh {
    /// Everything at this moment. Not from async code: policy may be compiling.
    pub(crate) fn status(&self) -> Status {
        let sourced = lock(&self.policy);
        let mut status = Status {
            documents: sourced.policy.status().iter().map(document).collect(),
            problems: sourced.problems.iter().map(problem).collect(),
            services: sourced.policy.services().map(|name| self.service(&sourced.policy, &name)).collect(),
            sidecars: self.sidecars(),
            deprecated: self.deprecated(&sourced.policy),
            control_plane: ControlPlane {
                version: env!("CARGO_PKG_VERSION").to_owned(),
                trust_domain: self.issuer.trust_domain().to_string(),
                started: unix(self.started),
                now: unix(SystemTime::now()),
                policy_version: sourced.policy.version(),
                settling: lock(&self.publisher).settling(),
                authority_expires: unix(self.issuer.authority_expires()),
                trusted_roots: self.issuer.trust().bundle.roots.len(),
                policy_sources: self.sources.iter().map(|path| path.display().to_string()).collect(),
            },
        };
        status.sort();
        status
    }

    fn deprecated(&self, policy: &Policy) -> Vec<Deprecated> {
        let mut deprecated = deprecations(policy);
        for (of, callers) in lock(&self.usage).callers(unix(SystemTime::now())) {
            match deprecated.iter_mut().find(|known| known.of == *of) {
                Some(known) => known.callers = callers,
                None => deprecated.push(Deprecated { of: of.to_string(), callers, ..Deprecated::default() }),
            }
        }
        deprecated.sort_by(|a, b| a.of.cmp(&b.of));
        deprecated
    }

    fn service(&self, policy: &Policy, name: &ServiceName) -> Service {
        let documents = policy.resource(&format!("service/{name}"));
        let publisher = lock(&self.publisher);
        let resource = format!("endpoints/{name}");
        let endpoints = match publisher.body(&resource) {
            Some(Body::Endpoints(endpoints)) => endpoints.endpoints.iter().map(endpoint).collect(),
            _ => Vec::new(),
        };
        let endpoints_version = publisher.version(&resource).map(ToString::to_string).unwrap_or_default();
        let (version, documents) = documents.unwrap_or_default();
        Service {
            namespace: name.namespace.to_string(),
            name: name.name.to_string(),
            version,
            endpoints_version,
            documents: attached(&documents),
            endpoints,
        }
    }

    fn sidecars(&self) -> Vec<Sidecar> {
        let mut sidecars: Vec<Sidecar> = lock(&self.sidecars)
            .iter()
            .map(|(id, sidecar)| {
                let held = lock(&self.publisher).held(*id);
                Sidecar {
                    namespace: sidecar.caller.instance.namespace.to_string(),
                    workload: sidecar.caller.instance.workload.to_string(),
                    identity: sidecar.caller.identity.to_string(),
                    instance: sidecar.caller.instance.id.to_string(),
                    version: sidecar.caller.version.clone(),
                    peer: sidecar.peer.to_string(),
                    connected_since: unix(sidecar.since),
                    ready: sidecar.ready,
                    inbound_address: sidecar.address.map(|address| address.to_string()).unwrap_or_default(),
                    certificate_expires: sidecar.certificate_expires.map_or(0, unix),
                    resources: held
                        .versions
                        .iter()
                        .map(|(name, version)| Resource {
                            name: name.to_string(),
                            version: version.to_string(),
                        })
                        .collect(),
                    rejections: held
                        .rejected
                        .iter()
                        .map(|rejected| Rejection {
                            name: rejected.name.to_string(),
                            version: rejected.version.to_string(),
                            reason: rejected.reason.to_string(),
                        })
                        .collect(),
                    behind: held.behind,
                }
            })
            .collect();
        sidecars.sort_by(|a, b| {
            (&a.namespace, &a.workload, &a.instance).cmp(&(&b.namespace, &b.workload, &b.instance))
        });
        sidecars
    }

    /// The policy's version and each document in force once, as sidecars get it: without what is nobody's business.
    pub(crate) fn documents_in_force(&self) -> (String, Vec<serde_json::Value>) {
        self.with_policy(|policy| {
            let mut documents = BTreeMap::new();
            for (_, resource) in policy.resource_names().filter_map(|name| policy.resource(name)) {
                for wire::Document { kind, json } in resource.documents {
                    let Ok(document) = serde_json::from_str::<serde_json::Value>(&json) else { continue };
                    let text = |field: &str| {
                        document
                            .pointer(field)
                            .and_then(|value| value.as_str())
                            .unwrap_or_default()
                            .to_owned()
                    };
                    let key = (kind, text("/metadata/namespace"), text("/metadata/name"));
                    documents.entry(key).or_insert(document);
                }
            }
            (policy.version(), documents.into_values().collect())
        })
    }
}

fn name_in(json: &str) -> Option<String> {
    let document: serde_json::Value = serde_json::from_str(json).ok()?;
    document.pointer("/metadata/name")?.as_str().map(str::to_owned)
}

fn endpoint(endpoint: &wire::Endpoint) -> Endpoint {
    let mut labels: Vec<_> =
        endpoint.labels.iter().map(|(key, value)| (key.clone(), value.clone())).collect();
    labels.sort();
    Endpoint {
        port: endpoint.port,
        address: endpoint.address.clone(),
        identity: endpoint.identity.clone(),
        workload: endpoint.workload.clone(),
        zone: endpoint.zone.clone(),
        labels,
        weight: endpoint.weight,
    }
}

/// The state as people see it.
pub(super) fn state(state: &policy::DocumentState) -> DocumentState {
    match state {
        policy::DocumentState::Accepted => DocumentState::Accepted,
        policy::DocumentState::AcceptedNotEnforced { .. } => DocumentState::Pending,
        policy::DocumentState::RejectedKeepingLastGood | policy::DocumentState::Rejected => {
            DocumentState::Rejected
        }
    }
}

fn document(found: &DocumentStatus) -> Document {
    let key = found.key.as_ref();
    let not_enforced = match &found.state {
        policy::DocumentState::AcceptedNotEnforced { fields } => fields.clone(),
        _ => Vec::new(),
    };
    Document {
        kind: key.map(|key| key.kind.as_str().to_owned()).unwrap_or_default(),
        namespace: key.map(|key| key.namespace.to_string()).unwrap_or_default(),
        name: key.map(|key| key.name.to_string()).unwrap_or_default(),
        file: found.file.to_string(),
        line: found.line,
        state: state(&found.state),
        last_good_in_force: found.state == policy::DocumentState::RejectedKeepingLastGood,
        not_enforced,
        diagnostics: found
            .diagnostics
            .iter()
            .map(|d| Diagnostic {
                error: d.severity == Severity::Error,
                file: d.file.to_string(),
                line: d.line,
                column: d.column,
                field: d.field.clone(),
                message: d.message.clone(),
                cure: d.cure.clone(),
                text: d.to_string(),
            })
            .collect(),
    }
}
