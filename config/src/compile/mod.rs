//! From documents to what a sidecar holds: all of it, or every error at once.
//!
//! The sidecar compiles what it receives, and [`Policy`] runs the same code over every new document
//! before it lets it into force, so that what reaches a sidecar compiles there.

mod admission;
mod attached;
mod authorization;
mod cache;
mod caller;
mod calls;
mod conditions;
mod deprecation;
mod explain;
mod filters;
mod findings;
mod mesh;
mod routes;
mod service;
mod session;
#[cfg(test)]
mod tests;
mod traffic;
mod workload;

pub use caller::{Caller, SOURCE_NAMESPACE, SOURCE_SERVICE_ACCOUNT, SOURCE_WORKLOAD, SOURCES};

pub use explain::{Asked, AtBackend, Decision, Explanation, SaidBy, explain};

pub(crate) use attached::speaks_of_endpoints;
pub(crate) use findings::Findings;
pub(crate) use routes::attached_ports;
pub(crate) use service::app_protocol;
pub(crate) use workload::{served_ports, serves};

use crate::document::{Document, Kind, Located, TrafficPolicy};
use crate::error::Diagnostic;
use crate::identity::ServiceName;
use crate::policy::Policy;
use crate::snapshot::{Mesh, Service, Snapshot, Workload};
use crate::wire;
use attached::{Attached, Policies};
use calls::Own;
use findings::wire_documents;
use std::sync::Arc;

/// Compiles the resource `mesh`.
pub fn mesh(documents: &wire::Documents) -> Result<Mesh, Vec<Diagnostic>> {
    let documents = wire_documents(documents)?;
    let policy = documents.iter().find_map(|found| match &found.document {
        Document::MeshPolicy(policy) => Some(policy),
        _ => None,
    });
    Ok(mesh::compile(policy))
}

/// Compiles the resource `service/<namespace>/<name>` for one caller; `name` is `<namespace>/<name>`.
///
/// Routes of the service's own namespace hold for every caller; routes that another namespace attaches to it hold, in
/// their place, for callers in that namespace only. Conditions of routes on the caller are decided here. What
/// nothing is said of stays open where the mesh's settings hold for it, so that these can change by themselves. The
/// service's version is for whoever asked to set.
pub fn service(
    name: &str,
    documents: &wire::Documents,
    endpoints: &wire::Endpoints,
    _mesh: &Mesh,
    caller: &Caller,
) -> Result<Service, Vec<Diagnostic>> {
    let documents = wire_documents(documents)?;
    let mut findings = Findings::default();
    let service = service::compile(name, &documents, endpoints, caller, &mut findings);
    findings.into_result(service)
}

/// The same service, served elsewhere: for when only its endpoints change.
pub fn with_endpoints(service: &Service, endpoints: &wire::Endpoints) -> Result<Service, Vec<Diagnostic>> {
    let mut findings = Findings::default();
    let mut service = service.clone();
    for port in &mut service.ports {
        port.endpoints = service::endpoints(&service.name, port.port, endpoints, &mut findings);
    }
    findings.into_result(Some(service))
}

/// Compiles the resource `workload/<namespace>/<name>`; `name` is `<namespace>/<name>` of the instance, which may be a
/// replica of the document's workload.
pub fn workload(name: &str, documents: &wire::Documents, mesh: &Mesh) -> Result<Workload, Vec<Diagnostic>> {
    let documents = wire_documents(documents)?;
    let mut findings = Findings::default();
    let workload = workload::compile(name, &documents, mesh, &mut findings);
    findings.into_result(workload)
}

/// Compiles all that a policy has in force, with the endpoints that it names itself, for one caller: for sidecars
/// without a control plane, and for looking at routes. What does not compile is left out; a [`Policy`] lets no such
/// document into force.
pub fn everything(policy: &Policy, caller: &Caller) -> Snapshot {
    let mut snapshot = Snapshot::default();
    if let Some((_, documents)) = policy.resource("mesh")
        && let Ok(mesh) = mesh(&documents)
    {
        snapshot.mesh = Arc::new(mesh);
    }
    for name in policy.services() {
        let Some((version, documents)) = policy.resource(&format!("service/{name}")) else { continue };
        let endpoints = wire::Endpoints { endpoints: policy.static_endpoints(&name) };
        let compiled = service(&name.to_string(), &documents, &endpoints, &snapshot.mesh, caller);
        if let Ok(mut service) = compiled {
            service.version = version.into();
            snapshot.insert(Arc::new(service));
        }
    }
    snapshot
}

/// Compiles a document by itself, for what is wrong with it.
pub(crate) fn check(found: &Located, findings: &mut Findings) {
    match &found.document {
        Document::HttpRoute(_) | Document::GrpcRoute(_) => routes::check(found, findings),
        Document::AuthorizationPolicy(policy) => authorization::check(policy, found, findings),
        Document::TrafficPolicy(policy) => traffic_policy(policy, found, findings),
        Document::CachePolicy(policy) => {
            cache::compile(policy, found, findings);
        }
        _ => {}
    }
}

/// Compiles every part of a TrafficPolicy, whatever it is attached to.
fn traffic_policy(policy: &TrafficPolicy, found: &Located, findings: &mut Findings) {
    let Some(target) = policy.spec.target_refs.first() else { return };
    let policies = Policies::only(Attached { found, spec: &policy.spec, target });
    let service = ServiceName::new(policy.metadata.namespace(), target.name.as_str());
    traffic::compile(&policies, &service, findings);
    calls::compile(&policies, &Policies::default(), Own::default(), 0, findings);
    admission::on(&policies, findings);
}

/// The documents of one kind, as `(found, document)`.
macro_rules! of_kind {
    ($documents:expr, $kind:ident) => {
        $documents.iter().filter_map(|found| match &found.document {
            $crate::document::Document::$kind(document) => Some((found, document)),
            _ => None,
        })
    };
}
pub(crate) use of_kind;

/// Splits `<namespace>/<name>`.
fn split_name(name: &str) -> (&str, &str) {
    name.split_once('/').unwrap_or((crate::document::metadata::DEFAULT_NAMESPACE, name))
}

/// True for kinds whose documents a service is compiled from.
pub(crate) const fn is_attached(kind: Kind) -> bool {
    matches!(kind, Kind::HttpRoute | Kind::GrpcRoute | Kind::TrafficPolicy | Kind::CachePolicy)
}
