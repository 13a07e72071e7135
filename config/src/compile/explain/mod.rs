//! What will happen to a request, in words: every decision that policy makes about it, its value and who says so.
//!
//! The values are those that a sidecar decides by; where they come from is looked up beside them, so that what a
//! request path reads carries no provenance.

mod cache;
#[cfg(test)]
mod tests;
mod words;

use super::attached::{Index, Policies, Said};
use super::cache::Side;
use super::caller::Caller;
use super::findings::{Findings, wire_documents};
use super::{admission, calls, is_attached, routes, service, traffic};
use crate::document::duration::PolicyDuration;
use crate::document::{Document, Located};
use crate::identity::ServiceName;
use crate::policy::Policy;
use crate::snapshot::{Action, Backend, Backends, Calls, Limits, Port};
use crate::wire;
use http::{HeaderMap, Method};
use std::sync::Arc;
use words::{calls as say, endpoints as tell};

/// What is decided about a request, in the order in which it meets the decisions.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Explanation {
    /// At the caller, before an endpoint is picked.
    pub calls: Vec<Decision>,
    /// For each backend that the request can go to: how its endpoints are picked, bounded and judged.
    pub backends: Vec<AtBackend>,
    /// On the answer's way back.
    pub answer: Vec<Decision>,
}

/// The request itself, for what is decided by it alone.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// Its method.
    pub method: &'a Method,
    /// Its path, in normal form.
    pub path: &'a str,
    /// Its headers.
    pub headers: &'a HeaderMap,
}

/// What is decided about one backend.
#[derive(Clone, Debug, PartialEq)]
pub struct AtBackend {
    /// The service.
    pub service: ServiceName,
    /// Its port.
    pub port: u16,
    /// At the caller.
    pub endpoints: Vec<Decision>,
    /// Where it is served.
    pub served: Vec<Decision>,
}

/// One thing that is decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// What it is about.
    pub part: &'static str,
    /// What is decided.
    pub value: String,
    /// Who says so, the most specific first; empty for what holds when nobody says anything.
    pub sources: Vec<SaidBy>,
}

/// A document that says something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SaidBy {
    /// `TrafficPolicy shop/products`.
    pub document: String,
    /// Its file.
    pub file: Arc<str>,
    /// The line that says it.
    pub line: u32,
}

impl SaidBy {
    fn field(found: &Located, field: &str) -> Self {
        let line = match found.positions.of(field) {
            (0, _) => found.source.line,
            (line, _) => line,
        };
        Self { document: found.document.key().to_string(), file: found.source.file.clone(), line }
    }

    fn of<T: ?Sized>(said: &Option<Said<'_, T>>, field: &str) -> Vec<Self> {
        said.iter().map(|said| Self::field(said.by.found, field)).collect()
    }
}

/// What is decided about the requests of `caller` to a port that `rule` takes; without a rule, about those to a port
/// without routes. `None` if there is no such port or rule. With `asked` also what becomes of that very request.
pub fn explain(
    policy: &Policy,
    caller: &Caller,
    called: &ServiceName,
    port: u16,
    rule: Option<&str>,
    asked: Option<&Asked<'_>>,
) -> Option<Explanation> {
    let mut documents: Vec<Located> =
        policy.documents().filter(|found| is_attached(found.document.kind())).cloned().collect();
    documents.push(service_document(policy, called)?);
    let nowhere = wire::Endpoints::default();
    let name = called.to_string();
    let compiled = service::compile(&name, &documents, &nowhere, caller, &mut Findings::default())?;
    let at = compiled.port(port)?;
    let (calls, backends) = match rule {
        None => (at.calls.clone(), Backends::default()),
        Some(rule) => {
            let rule = at.rules.iter().find(|own| &*own.name == rule)?;
            let Action::Forward(backends) = &rule.action else { return None };
            (rule.calls.clone(), backends.clone())
        }
    };
    let to = destinations(called, port, rule.is_some(), &calls, &backends);
    let others = to.iter().filter(|(name, ..)| name != called);
    documents.extend(others.filter_map(|(name, ..)| service_document(policy, name)));
    let index = Index::new(&documents);
    let on_rule = rule.and_then(|rule| rule_of(&documents, called, at, caller, rule));
    let mesh = Mesh::of(policy);
    let on_route = on_rule
        .as_ref()
        .map_or_else(Policies::default, |own| index.on_rule(&own.found.document, own.section));
    let on_port = index.on_port(called, port);
    let parts = calls::Parts::of(&on_route.then(&on_port));
    let mut caches =
        on_rule.as_ref().map_or_else(Vec::new, |own| index.caches_on_rule(&own.found.document, own.section));
    caches.extend(index.caches_on_port(called, port));
    let cache = cache::at(&caches, Side::Outbound, asked);
    let mut explanation = Explanation {
        calls: say(&calls, &backends, &parts, &on_route, on_rule.as_ref(), &mesh, cache),
        answer: vec![words::deprecation(&calls, &parts)],
        backends: Vec::new(),
    };
    for (service, port, is_shard) in to {
        let on_backend = index.on_port(&service, port);
        let policies = if is_shard { on_backend.clone() } else { on_route.then(&on_backend) };
        let compiled = traffic::compile(&policies, &service, &mut Findings::default());
        let cache = cache::at(&index.caches_on_port(&service, port), Side::Inbound, asked);
        let admission = admission::on(&on_backend, &mut Findings::default());
        explanation.backends.push(AtBackend {
            endpoints: tell(&compiled, &traffic::Parts::of(&policies), &mesh),
            served: words::served(&admission, &on_backend, cache),
            service,
            port,
        });
    }
    Some(explanation)
}

/// The document of a service as sidecars get it: also of one that only its workloads describe.
fn service_document(policy: &Policy, name: &ServiceName) -> Option<Located> {
    let (_, documents) = policy.resource(&format!("service/{name}"))?;
    wire_documents(&documents).ok()?.into_iter().find(|found| match &found.document {
        Document::Service(service) => {
            service.metadata.name == *name.name && service.metadata.namespace() == &*name.namespace
        }
        _ => false,
    })
}

/// Where requests can go, each once, and whether as a shard.
fn destinations(
    called: &ServiceName,
    port: u16,
    by_rule: bool,
    calls: &Calls,
    backends: &Backends,
) -> Vec<(ServiceName, u16, bool)> {
    let named = |backend: &Backend| (backend.service.clone(), backend.port);
    let valid = |list: &[Backend]| -> Vec<(ServiceName, u16)> {
        list.iter().filter(|backend| backend.invalid.is_none()).map(named).collect()
    };
    let (all, is_shard) = match &calls.sharding {
        Some(sharding) => (valid(&sharding.shards), true),
        None if by_rule => (valid(&backends.list), false),
        None => (vec![(called.clone(), port)], false),
    };
    let mut once: Vec<(ServiceName, u16, bool)> = Vec::new();
    for (service, port) in all {
        if !once.iter().any(|(known, at, _)| (known, *at) == (&service, port)) {
            once.push((service, port, is_shard));
        }
    }
    once
}

/// A rule as its document has it.
pub(super) struct RuleOf<'d> {
    pub(super) found: &'d Located,
    pub(super) at: usize,
    pub(super) section: Option<&'d str>,
}

impl RuleOf<'_> {
    /// Who says what stands in a field of the rule.
    fn says(&self, field: &str) -> Vec<SaidBy> {
        vec![SaidBy::field(self.found, &format!("spec.rules[{}].{field}", self.at))]
    }
}

fn rule_of<'d>(
    documents: &'d [Located],
    called: &ServiceName,
    port: &Port,
    caller: &Caller,
    rule: &str,
) -> Option<RuleOf<'d>> {
    let service = documents.iter().find_map(|found| match &found.document {
        Document::Service(service) if service.metadata.name == *called.name => Some(service),
        _ => None,
    })?;
    let written = service.spec.ports.iter().find(|own| own.port == port.port)?;
    let holding = routes::holding(called, written, documents, &caller.namespace);
    holding.into_iter().find_map(|found| {
        let names: Vec<Option<&str>> = match &found.document {
            Document::HttpRoute(route) => route.spec.rules.iter().map(|r| r.name.as_deref()).collect(),
            Document::GrpcRoute(route) => route.spec.rules.iter().map(|r| r.name.as_deref()).collect(),
            _ => Vec::new(),
        };
        let metadata = found.document.metadata();
        let at = (0..names.len()).find(|at| *routes::rule_name(metadata, *at, names[*at]) == *rule)?;
        Some(RuleOf { found, at, section: names[at] })
    })
}

/// The mesh's own settings, for what no policy says.
pub(super) struct Mesh {
    pub(super) limits: Limits,
    document: Option<Located>,
}

impl Mesh {
    fn of(policy: &Policy) -> Self {
        let document = policy.documents().find(|found| matches!(found.document, Document::MeshPolicy(_)));
        Self { limits: policy.mesh().limits, document: document.cloned() }
    }

    /// Who sets one of the limits.
    fn says(
        &self,
        limit: impl Fn(&crate::document::mesh_policy::MeshLimits) -> bool,
        field: &str,
    ) -> Vec<SaidBy> {
        let Some(found) = &self.document else { return Vec::new() };
        match &found.document {
            Document::MeshPolicy(policy) if limit(&policy.spec.limits) => {
                vec![SaidBy::field(found, &format!("spec.limits.{field}"))]
            }
            _ => Vec::new(),
        }
    }
}

/// A time as policy writes it.
fn time(duration: std::time::Duration) -> String {
    PolicyDuration::new(duration).to_string()
}
