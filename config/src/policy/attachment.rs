//! What documents are attached to, and whether two attached to one thing say different things about it.

use super::{InForce, registry::Registry};
use crate::compile;
use crate::document::route::{BackendObjectRef, ParentRef};
use crate::document::target::TargetRef;
use crate::document::{Document, DocumentKey, Kind, Located, Source};
use crate::identity::ServiceName;
use crate::snapshot::AppProtocol;
use std::collections::BTreeMap;

/// The parent references of a route; none for other kinds.
pub(super) fn parent_refs(document: &Document) -> &[ParentRef] {
    match document {
        Document::HttpRoute(route) => &route.spec.parent_refs,
        Document::GrpcRoute(route) => &route.spec.parent_refs,
        _ => &[],
    }
}

/// The service that a parent reference of a route in `namespace` means.
pub(super) fn parent(reference: &ParentRef, namespace: &str) -> Option<ServiceName> {
    let namespace = reference.namespace.as_deref().unwrap_or(namespace);
    reference.is_service().then(|| ServiceName::new(namespace, reference.name.as_str()))
}

/// The services that a route is attached to.
pub(super) fn parents(document: &Document) -> impl Iterator<Item = ServiceName> {
    let namespace = document.metadata().namespace();
    parent_refs(document).iter().filter_map(move |reference| parent(reference, namespace))
}

/// What a policy targets; nothing for other kinds.
pub(super) fn target_refs(document: &Document) -> &[TargetRef] {
    match document {
        Document::TrafficPolicy(policy) => &policy.spec.target_refs,
        Document::CachePolicy(policy) => &policy.spec.target_refs,
        Document::AuthorizationPolicy(policy) => &policy.spec.target_refs,
        _ => &[],
    }
}

/// The services that a route forwards to.
pub(super) fn backends(route: &Document) -> Vec<ServiceName> {
    let references: Vec<BackendObjectRef> = match route {
        Document::HttpRoute(route) => {
            route.spec.rules.iter().flat_map(|rule| rule.backend_refs.iter().map(|b| b.object())).collect()
        }
        Document::GrpcRoute(route) => {
            route.spec.rules.iter().flat_map(|rule| rule.backend_refs.iter().map(|b| b.object())).collect()
        }
        _ => Vec::new(),
    };
    let own = route.metadata().namespace();
    let services = references.into_iter().filter(BackendObjectRef::is_service);
    services.map(|to| ServiceName::new(to.namespace.as_deref().unwrap_or(own), to.name.as_str())).collect()
}

/// Something that a document says and that no other document may say otherwise.
struct Claim {
    /// What it is about, for people.
    thing: String,
    /// What is said, where two documents may say the same; `None` where only one may say anything.
    says: Option<AppProtocol>,
    /// The field that says it.
    field: String,
}

fn claims(document: &Document) -> Vec<Claim> {
    let namespace = document.metadata().namespace();
    match document {
        Document::MeshPolicy(_) => {
            vec![Claim { thing: "the mesh".to_owned(), says: None, field: "spec".to_owned() }]
        }
        Document::TrafficPolicy(_) | Document::CachePolicy(_) => {
            let parts = match document {
                Document::CachePolicy(_) => vec!["spec".to_owned()],
                _ => spec_parts(document),
            };
            let claims = target_refs(document).iter().flat_map(|target| {
                let (kind, name) = (target.kind.as_str(), &target.name);
                let section =
                    target.section_name.as_ref().map_or_else(String::new, |part| format!(" ({part})"));
                parts.iter().map(move |part| Claim {
                    thing: format!(
                        "the {} {part} of {kind} {namespace}/{name}{section}",
                        document.kind().as_str()
                    ),
                    says: None,
                    field: part.clone(),
                })
            });
            claims.collect()
        }
        Document::Workload(workload) => {
            let Some(service) = &workload.spec.service else { return Vec::new() };
            let claims = workload.spec.ports.iter().enumerate().filter_map(|(at, port)| {
                Some(Claim {
                    thing: format!("what is spoken on port {} of service {namespace}/{service}", port.port),
                    says: Some(compile::app_protocol(Some(port.app_protocol.as_deref()?))),
                    field: format!("spec.ports[{at}].appProtocol"),
                })
            });
            claims.collect()
        }
        _ => Vec::new(),
    }
}

/// The fields of `spec` that a policy sets, but for what it targets.
pub(super) fn spec_parts(document: &Document) -> Vec<String> {
    let value = document.to_value();
    let fields = value.get("spec").and_then(|spec| spec.as_object());
    let parts = fields.into_iter().flatten().filter(|(name, value)| {
        *name != "targetRefs" && value.as_object().is_none_or(|fields| !fields.is_empty())
    });
    parts.map(|(name, _)| format!("spec.{name}")).collect()
}

/// A document that loses against another about one part.
pub(super) struct Conflict {
    pub(super) winner: DocumentKey,
    pub(super) loser: DocumentKey,
    pub(super) field: String,
    pub(super) message: String,
}

/// All conflicts among the documents. Of two the one that is in force already wins, then the older, then the first by
/// name: so a new document never pushes aside one that works.
pub(super) fn conflicts(
    set: &InForce,
    fresh: impl Fn(&DocumentKey) -> bool,
    registry: &Registry,
) -> Vec<Conflict> {
    let mut claimants: BTreeMap<String, Vec<(&DocumentKey, &Located, Claim)>> = BTreeMap::new();
    for (key, found) in set {
        for claim in claims(&found.document) {
            claimants.entry(claim.thing.clone()).or_default().push((key, found, claim));
        }
    }
    let mut conflicts = Vec::new();
    for (thing, mut all) in claimants {
        all.sort_by_cached_key(|(key, found, _)| {
            let created = found.document.metadata().creation_timestamp.clone();
            (fresh(key), created.is_none(), created, (*key).clone())
        });
        let Some(((winner, at, first), others)) = all.split_first() else { continue };
        for (loser, _, claim) in others {
            if loser == winner || (claim.says.is_some() && claim.says == first.says) {
                continue;
            }
            let Source { file, line, .. } = &at.source;
            let message = format!("{winner} ({file}:{line}) already says {thing}");
            let (winner, loser) = ((*winner).clone(), (*loser).clone());
            conflicts.push(Conflict { winner, loser, field: claim.field.clone(), message });
        }
    }
    conflicts.extend(outranked_routes(set, registry));
    conflicts
}

/// HTTPRoutes that hold nowhere because GRPCRoutes hold on every port that they are attached to.
fn outranked_routes(set: &InForce, registry: &Registry) -> Vec<Conflict> {
    // Producers and consumers don't compete, so routes compete by the namespace they are in.
    let mut grpc: BTreeMap<(ServiceName, u16, &str), &DocumentKey> = BTreeMap::new();
    let ports = |found: &Located| -> Vec<(ServiceName, u16)> {
        let own = found.document.metadata().namespace().to_owned();
        let references = parent_refs(&found.document).iter();
        let services = references.filter_map(|reference| Some((reference, parent(reference, &own)?)));
        services
            .flat_map(|(reference, name)| {
                let ports = registry.service(&name).map_or(&[][..], |service| &service.spec.ports);
                let numbers: Vec<u16> =
                    compile::attached_ports(reference, ports).map(|port| port.port).collect();
                numbers.into_iter().map(move |number| (name.clone(), number))
            })
            .collect()
    };
    for (key, found) in set.iter().filter(|(key, _)| key.kind == Kind::GrpcRoute) {
        for (name, number) in ports(found) {
            grpc.insert((name, number, &key.namespace), key);
        }
    }
    let mut conflicts = Vec::new();
    for (key, found) in set.iter().filter(|(key, _)| key.kind == Kind::HttpRoute) {
        let attached = ports(found);
        let by: Vec<_> = attached
            .into_iter()
            .map(|(name, number)| grpc.get(&(name, number, &*key.namespace)).copied())
            .collect();
        if let (false, Some(Some(winner))) = (by.contains(&None), by.first()) {
            let message = format!("{winner} is attached to the same port, and there only gRPC routes hold");
            let (winner, field) = ((*winner).clone(), "spec.parentRefs".to_owned());
            conflicts.push(Conflict { winner, loser: key.clone(), field, message });
        }
    }
    conflicts
}
