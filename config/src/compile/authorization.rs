//! AuthorizationPolicies compiled for one workload.

use super::findings::Findings;
use super::of_kind;
use crate::document::authorization_policy::{
    AuthorizationAction, AuthorizationOperation, AuthorizationPolicy, AuthorizationSource,
};
use crate::document::target::TargetKind;
use crate::document::{Located, Workload};
use crate::identity::SpiffeId;
use crate::matching::normalize_path;
use crate::snapshot::{Authorization, AuthorizationRule, Caller, Mesh, Operation, PathPattern, Served};
use http::Method;
use std::sync::Arc;

pub(super) fn compile(
    documents: &[Located],
    workload: &Workload,
    serves: &[Served],
    mesh: &Mesh,
    findings: &mut Findings,
) -> Authorization {
    let mut authorization = Authorization::default();
    let mut policies: Vec<_> = of_kind!(documents, AuthorizationPolicy)
        .filter(|(_, policy)| policy.metadata.namespace() == workload.metadata.namespace())
        .filter_map(|(found, policy)| Some((found, policy, selection(policy, workload, serves)?)))
        .collect();
    policies.sort_by_key(|(_, policy, _)| policy.metadata.name.clone());
    for (found, policy, selection) in policies {
        let ports = match selection {
            Selection::Whole => Vec::new(),
            Selection::Ports(ports) => ports,
        };
        let rules = rules(policy, &ports, found, &mesh.trust_domain, findings);
        match policy.spec.action {
            AuthorizationAction::Deny => authorization.deny.extend(rules),
            AuthorizationAction::Allow => {
                authorization.has_allow |= ports.is_empty();
                authorization.allow_ports.extend(ports);
                authorization.allow.extend(rules);
            }
            // Takes effect later; status says so.
            AuthorizationAction::Audit => {}
        }
    }
    authorization.allow_ports.sort_unstable();
    authorization.allow_ports.dedup();
    authorization
}

/// Compiles the rules of a policy for what is wrong with them.
pub(super) fn check(policy: &AuthorizationPolicy, found: &Located, findings: &mut Findings) {
    rules(policy, &[], found, &Mesh::default().trust_domain, findings);
}

/// What of a workload a policy applies to.
enum Selection {
    Whole,
    /// Only these service ports; never empty.
    Ports(Vec<u16>),
}

/// A policy on a Service holds for the ports that the workload serves of it. (Where it serves two services on one port
/// number, a policy on either holds for both: a call is told by its port.)
fn selection(policy: &AuthorizationPolicy, workload: &Workload, serves: &[Served]) -> Option<Selection> {
    let targets = &policy.spec.target_refs;
    if targets.is_empty() {
        return Some(Selection::Whole);
    }
    let mut ports = Vec::new();
    for target in targets {
        match target.kind {
            TargetKind::Workload if target.name == workload.metadata.name => return Some(Selection::Whole),
            TargetKind::Service => {
                let of_service = serves.iter().filter(|served| *served.service.name == *target.name);
                ports.extend(of_service.map(|served| served.port));
            }
            _ => {}
        }
    }
    (!ports.is_empty()).then_some(Selection::Ports(ports))
}

/// The compiled rules of one policy; a rule that can match nobody is left out.
fn rules(
    policy: &AuthorizationPolicy,
    ports: &[u16],
    found: &Located,
    trust_domain: &Arc<str>,
    findings: &mut Findings,
) -> Vec<AuthorizationRule> {
    let mut rules = Vec::new();
    for (at, rule) in policy.spec.rules.iter().enumerate() {
        let field = format!("spec.rules[{at}]");
        let part = rule.name.clone().unwrap_or_else(|| at.to_string());
        let mut from = Vec::new();
        for (n, source) in rule.from.iter().enumerate() {
            callers(source, trust_domain, found, &format!("{field}.from[{n}]"), &mut from, findings);
        }
        if from.is_empty() && !rule.from.is_empty() {
            continue;
        }
        let to =
            rule.to.iter().enumerate().map(|(n, operation)| {
                self::operation(operation, found, &format!("{field}.to[{n}]"), findings)
            });
        rules.push(AuthorizationRule {
            name: format!("{}/{}#{part}", policy.metadata.namespace(), policy.metadata.name).into(),
            ports: ports.to_vec(),
            to: to.collect(),
            from,
        });
    }
    rules
}

/// The callers that meet every part of a source.
fn callers(
    source: &AuthorizationSource,
    trust_domain: &Arc<str>,
    found: &Located,
    field: &str,
    into: &mut Vec<Caller>,
    findings: &mut Findings,
) {
    let mut identities = Vec::new();
    for (at, text) in source.identities.iter().enumerate() {
        match identity(text, trust_domain) {
            Some(id) => identities.push(id),
            None => findings.error(
                found,
                &format!("{field}.identities[{at}]"),
                format!("`{text}` is not an identity"),
                "write spiffe://<trust domain>/ns/<namespace>/sa/<service account>, or <namespace>/<service account>",
            ),
        }
    }
    let nobody = source.authenticated == Some(false);
    let in_namespaces = |id: &SpiffeId| {
        source.namespaces.is_empty()
            || (id.trust_domain == *trust_domain && source.namespaces.iter().any(|ns| **ns == *id.namespace))
    };
    match (source.identities.is_empty(), source.namespaces.is_empty()) {
        (true, true) => into.push(match source.authenticated {
            None => Caller::Anyone,
            Some(true) => Caller::Authenticated,
            Some(false) => Caller::Unauthenticated,
        }),
        // Who has no identity has no namespace either.
        _ if nobody => {}
        (true, false) => {
            into.extend(source.namespaces.iter().map(|ns| Caller::Namespace(ns.as_str().into())))
        }
        (false, _) => into.extend(identities.into_iter().filter(in_namespaces).map(Caller::Identity)),
    }
}

/// An identity as policy writes it: in full, or `<namespace>/<service account>` of the mesh's own trust domain.
fn identity(text: &str, trust_domain: &str) -> Option<SpiffeId> {
    if text.starts_with("spiffe://") {
        return text.parse().ok();
    }
    let (namespace, account) = text.split_once('/')?;
    format!("spiffe://{trust_domain}/ns/{namespace}/sa/{account}").parse().ok()
}

fn operation(
    operation: &AuthorizationOperation,
    found: &Located,
    field: &str,
    findings: &mut Findings,
) -> Operation {
    let mut compiled = Operation { ports: operation.ports.clone(), ..Operation::default() };
    for (at, text) in operation.methods.iter().enumerate() {
        match Method::from_bytes(text.as_bytes()) {
            Ok(method) => compiled.methods.push(method),
            Err(_) => findings.error(
                found,
                &format!("{field}.methods[{at}]"),
                format!("`{text}` is not an HTTP method"),
                "write it as it stands in a request, such as GET",
            ),
        }
    }
    for (at, text) in operation.paths.iter().enumerate() {
        let (path, below) = match text.strip_suffix("/*") {
            Some("") => ("/", true),
            Some(prefix) => (prefix, true),
            None => (text.as_str(), false),
        };
        match normalize_path(path) {
            Ok(normal) if below => compiled.paths.push(PathPattern::Prefix(normal.into())),
            Ok(normal) => compiled.paths.push(PathPattern::Exact(normal.into())),
            Err(error) => findings.error(
                found,
                &format!("{field}.paths[{at}]"),
                format!("`{text}` is not a path that can be matched: {error}"),
                "write an absolute path, with /* at the end for all below it",
            ),
        }
    }
    compiled
}
