//! HTTPRoutes and GRPCRoutes compiled to the rules and the route table of one service port.

use super::attached::{Index, Policies};
use super::cache::{self, CacheOn};
use super::caller::Caller;
use super::calls::{self, Own};
use super::filters::{self, Compiled, header_name};
use super::findings::Findings;
use super::{session, traffic};
use crate::document::route::{
    BackendObjectRef, GrpcRouteMatch, HeaderMatch, HttpRouteMatch, ParentRef, PathMatchType, StringMatchType,
};
use crate::document::service::{ServicePort, TransportProtocol};
use crate::document::{Document, GrpcRoute, HttpRoute, Located, Metadata};
use crate::identity::ServiceName;
use crate::matching::{
    InvalidMatch, MatchPart, Origin, PathSpec, RouteSpec, RouteTable, Timestamp, ValueMatch,
};
use crate::snapshot::{Action, Backend, Backends, Filters, Rule};
use http::{HeaderName, Method};
use std::sync::Arc;

/// The rules and the table of one port.
pub(super) struct PortRoutes {
    pub(super) table: RouteTable,
    pub(super) rules: Vec<Rule>,
}

/// Compiles those of the routes attached to a service that hold on one of its ports for one caller.
pub(super) fn compile(
    service: &ServiceName,
    port: &ServicePort,
    documents: &[Located],
    around: &Surroundings<'_, '_>,
    findings: &mut Findings,
) -> PortRoutes {
    let mut builder = Builder::new(around);
    for found in holding(service, port, documents, &around.caller.namespace) {
        builder.add(found, findings);
    }
    builder.finish(documents, findings)
}

/// Compiles a route by itself, for what is wrong with it.
pub(super) fn check(found: &Located, findings: &mut Findings) {
    let policies = Index::default();
    let caller = Caller::in_namespace(found.document.metadata().namespace());
    let around = Surroundings {
        policies: &policies,
        on_port: Policies::default(),
        caches: Vec::new(),
        port: 0,
        caller: &caller,
    };
    let mut builder = Builder::new(&around);
    builder.add(found, findings);
    builder.finish(std::slice::from_ref(found), findings);
}

/// The routes that hold on a port. Where the caller's namespace attaches routes of its own to another namespace's
/// service, these hold in place of the service's; and of two types only gRPC holds. Both as GEP-1426 says.
pub(super) fn holding<'d>(
    service: &ServiceName,
    port: &ServicePort,
    documents: &'d [Located],
    caller_namespace: &str,
) -> Vec<&'d Located> {
    let attached = |namespace: &str| -> Vec<&'d Located> {
        let here = documents.iter().filter(|found| found.document.metadata().namespace() == namespace);
        here.filter(|found| attaches(&found.document, service, port)).collect()
    };
    let mut routes = Vec::new();
    if caller_namespace != &*service.namespace {
        routes = attached(caller_namespace);
    }
    if routes.is_empty() {
        routes = attached(&service.namespace);
    }
    if routes.iter().any(|found| matches!(found.document, Document::GrpcRoute(_))) {
        routes.retain(|found| matches!(found.document, Document::GrpcRoute(_)));
    }
    routes.sort_by_key(|found| found.document.key());
    routes
}

/// The parents of a route; none for other kinds.
fn parent_refs(document: &Document) -> &[ParentRef] {
    match document {
        Document::HttpRoute(route) => &route.spec.parent_refs,
        Document::GrpcRoute(route) => &route.spec.parent_refs,
        _ => &[],
    }
}

fn attaches(document: &Document, service: &ServiceName, port: &ServicePort) -> bool {
    let own = document.metadata().namespace();
    parent_refs(document).iter().any(|parent| {
        parent.is_service()
            && parent.name == *service.name
            && parent.namespace.as_deref().unwrap_or(own) == &*service.namespace
            && attaches_to_port(parent, port)
    })
}

fn attaches_to_port(parent: &ParentRef, port: &ServicePort) -> bool {
    parent.port.is_none_or(|number| number == port.port)
        && parent.section_name.as_ref().is_none_or(|name| port.name.as_ref() == Some(name))
}

/// The ports of a service that a parent reference means.
pub(crate) fn attached_ports<'p>(
    parent: &'p ParentRef,
    ports: &'p [ServicePort],
) -> impl Iterator<Item = &'p ServicePort> {
    ports.iter().filter(move |port| port.protocol == TransportProtocol::Tcp && attaches_to_port(parent, port))
}

/// What the rules of a port are compiled from besides the routes.
pub(super) struct Surroundings<'a, 'd> {
    pub(super) policies: &'a Index<'d>,
    /// Those on the port itself.
    pub(super) on_port: Policies<'d>,
    /// The CachePolicies on it.
    pub(super) caches: Vec<CacheOn<'d>>,
    pub(super) port: u16,
    pub(super) caller: &'a Caller,
}

struct Builder<'a, 'd> {
    around: &'a Surroundings<'a, 'd>,
    rules: Vec<Rule>,
    specs: Vec<RouteSpec>,
}

impl<'a, 'd> Builder<'a, 'd> {
    fn new(around: &'a Surroundings<'a, 'd>) -> Self {
        Self { around, rules: Vec::new(), specs: Vec::new() }
    }

    fn add(&mut self, found: &Located, findings: &mut Findings) {
        match &found.document {
            Document::HttpRoute(route) => self.add_http(route, found, findings),
            Document::GrpcRoute(route) => self.add_grpc(route, found, findings),
            _ => {}
        }
    }

    fn add_http(&mut self, route: &HttpRoute, found: &Located, findings: &mut Findings) {
        for (at, rule) in route.spec.rules.iter().enumerate() {
            let field = format!("spec.rules[{at}]");
            let name = rule_name(&route.metadata, at, rule.name.as_deref());
            let any = [HttpRouteMatch::default()];
            let matches = if rule.matches.is_empty() { &any[..] } else { &rule.matches };
            for (matched, wanted) in matches.iter().enumerate() {
                let field = format!("{field}.matches[{matched}]");
                let conditions = conditions(&wanted.headers, self.around.caller, found, &field, findings);
                self.specs.push(RouteSpec {
                    route: name.clone(),
                    target: self.rules.len(),
                    origin: origin(found, at, matched, findings),
                    path: http_path(wanted),
                    method: wanted
                        .method
                        .and_then(|method| Method::from_bytes(method.as_str().as_bytes()).ok()),
                    headers: conditions.headers,
                    caller: conditions.caller,
                    unmet: conditions.unmet,
                    query: wanted
                        .query_params
                        .iter()
                        .map(|query| (query.name.clone(), value(query.match_type, &query.value)))
                        .collect(),
                });
            }
            let compiled = filters::http(&rule.filters, found, &format!("{field}.filters"), findings);
            let backends = rule.backend_refs.iter().enumerate().map(|(n, backend)| {
                let field = format!("{field}.backendRefs[{n}].filters");
                let filters = filters::http(&backend.filters, found, &field, findings);
                self::backend(&backend.object(), backend.weight, filters, &route.metadata)
            });
            let backends = backends.collect();
            let own = Own {
                timeouts: rule.timeouts.unwrap_or_default(),
                retry: rule.retry.as_ref(),
                session: rule
                    .session_persistence
                    .as_ref()
                    .map(|session| session::compile(session, &name, session::http_path(matches))),
                ..Own::default()
            };
            self.push(found, rule.name.as_deref(), name, compiled, backends, own, findings);
        }
    }

    fn add_grpc(&mut self, route: &GrpcRoute, found: &Located, findings: &mut Findings) {
        for (at, rule) in route.spec.rules.iter().enumerate() {
            let field = format!("spec.rules[{at}]");
            let name = rule_name(&route.metadata, at, rule.name.as_deref());
            let any = [GrpcRouteMatch::default()];
            let matches = if rule.matches.is_empty() { &any[..] } else { &rule.matches };
            for (matched, wanted) in matches.iter().enumerate() {
                let field = format!("{field}.matches[{matched}]");
                let conditions = conditions(&wanted.headers, self.around.caller, found, &field, findings);
                self.specs.push(RouteSpec {
                    route: name.clone(),
                    target: self.rules.len(),
                    origin: origin(found, at, matched, findings),
                    path: grpc_path(wanted),
                    method: None,
                    headers: conditions.headers,
                    caller: conditions.caller,
                    unmet: conditions.unmet,
                    query: Vec::new(),
                });
            }
            let compiled = filters::grpc(&rule.filters, found, &format!("{field}.filters"), findings);
            let backends = rule.backend_refs.iter().enumerate().map(|(n, backend)| {
                let field = format!("{field}.backendRefs[{n}].filters");
                let filters = filters::grpc(&backend.filters, found, &field, findings);
                self::backend(&backend.object(), backend.weight, filters, &route.metadata)
            });
            let backends = backends.collect();
            let own = Own {
                session: rule
                    .session_persistence
                    .as_ref()
                    .map(|session| session::compile(session, &name, session::grpc_path(matches))),
                ..Own::default()
            };
            self.push(found, rule.name.as_deref(), name, compiled, backends, own, findings);
        }
    }

    /// Adds a rule with what it, the policies on it and those on the service say of its calls.
    #[expect(clippy::too_many_arguments, reason = "what HTTP and gRPC rules have in common")]
    fn push(
        &mut self,
        found: &Located,
        section: Option<&str>,
        name: Arc<str>,
        mut compiled: Compiled,
        backends: Vec<Backend>,
        own: Own<'_>,
        findings: &mut Findings,
    ) {
        let around = self.around;
        let on_rule = around.policies.on_rule(&found.document, section);
        let own = Own {
            mirrors: std::mem::take(&mut compiled.mirrors).into(),
            cors: compiled.cors.take().map(Arc::new),
            ..own
        };
        let action = action(&compiled, backends);
        let mut calls = calls::compile(&on_rule, &around.on_port, own, around.port, findings);
        calls.cache = cache::for_rule(around.policies, &found.document, section, &around.caches, findings);
        if on_rule.speak_of_endpoints()
            && let Action::Forward(backends) = &action
        {
            let each = backends.list.iter().map(|backend| {
                let on_backend = around.policies.on_port(&backend.service, backend.port);
                traffic::compile(&on_rule.then(&on_backend), &backend.service, findings)
            });
            calls.own_traffic = Some(each.collect());
        }
        self.rules.push(Rule { name, action, filters: compiled.filters, calls: Arc::new(calls) });
    }

    fn finish(self, documents: &[Located], findings: &mut Findings) -> PortRoutes {
        let table = RouteTable::new(self.specs).unwrap_or_else(|invalid| {
            for invalid in invalid {
                report(&invalid, documents, findings);
            }
            RouteTable::default()
        });
        PortRoutes { table, rules: self.rules }
    }
}

/// `<namespace>/<route>#<rule>`, with the rule's name if it has one.
pub(super) fn rule_name(metadata: &Metadata, at: usize, name: Option<&str>) -> Arc<str> {
    let (namespace, route) = (metadata.namespace(), &metadata.name);
    match name {
        Some(name) => format!("{namespace}/{route}#{name}").into(),
        None => format!("{namespace}/{route}#{at}").into(),
    }
}

fn origin(found: &Located, rule: usize, matched: usize, findings: &mut Findings) -> Origin {
    let metadata = found.document.metadata();
    let created = metadata.creation_timestamp.as_deref().and_then(|text| {
        let parsed = text.parse::<Timestamp>();
        if let (Err(error), 0, 0) = (&parsed, rule, matched) {
            findings.error(found, "metadata.creationTimestamp", error.to_string(), "leave it to Kubernetes");
        }
        parsed.ok()
    });
    Origin {
        created,
        namespace: metadata.namespace().into(),
        name: metadata.name.as_str().into(),
        rule,
        matched,
    }
}

pub(super) fn value(kind: StringMatchType, text: &str) -> ValueMatch {
    match kind {
        StringMatchType::Exact => ValueMatch::Exact(text.to_owned()),
        StringMatchType::RegularExpression => ValueMatch::Regex(text.to_owned()),
    }
}

fn http_path(wanted: &HttpRouteMatch) -> PathSpec {
    let path = wanted.path.value.clone();
    match wanted.path.match_type {
        PathMatchType::Exact => PathSpec::Exact(path),
        PathMatchType::PathPrefix => PathSpec::Prefix(path),
        PathMatchType::RegularExpression => PathSpec::Regex(path),
    }
}

fn grpc_path(wanted: &GrpcRouteMatch) -> PathSpec {
    let Some(method) = &wanted.method else { return PathSpec::Grpc { service: None, method: None } };
    let part = |text: &Option<String>| {
        text.as_deref().filter(|text| !text.is_empty()).map(|text| value(method.match_type, text))
    };
    PathSpec::Grpc { service: part(&method.service), method: part(&method.method) }
}

/// Header conditions of one match, those on the caller apart.
#[derive(Default)]
struct Conditions {
    headers: Vec<(HeaderName, ValueMatch)>,
    caller: Vec<(HeaderName, ValueMatch)>,
    unmet: Option<Arc<str>>,
}

fn conditions(
    wanted: &[HeaderMatch],
    caller: &Caller,
    found: &Located,
    field: &str,
    findings: &mut Findings,
) -> Conditions {
    let mut conditions = Conditions::default();
    for (at, header) in wanted.iter().enumerate() {
        let field = format!("{field}.headers[{at}]");
        let Some(name) = header_name(&header.name, found, &format!("{field}.name"), findings) else {
            continue;
        };
        let value = value(header.match_type, &header.value);
        match caller.meets(&name, &value) {
            None => {
                conditions.headers.push((name, value));
                continue;
            }
            Some(Ok(true)) => {}
            Some(Ok(false)) => {
                conditions.unmet.get_or_insert_with(|| caller.told(&name).into());
            }
            Some(Err(message)) => findings.error(found, &format!("{field}.value"), message, ""),
        }
        conditions.caller.push((name, value));
    }
    conditions
}

fn backend(reference: &BackendObjectRef, weight: u32, filters: Compiled, route: &Metadata) -> Backend {
    let namespace = reference.namespace.as_deref().unwrap_or(route.namespace());
    let invalid = match (reference.is_service(), reference.port) {
        (false, _) => Some(format!("the backend {} {} is no Service", reference.kind, reference.name).into()),
        (true, None) => Some(format!("the backend {} has no port", reference.name).into()),
        (true, Some(_)) => filters.invalid,
    };
    Backend {
        service: ServiceName::new(namespace, reference.name.as_str()),
        port: reference.port.unwrap_or_default(),
        weight,
        filters: filters.filters,
        mirrors: filters.mirrors.into(),
        invalid,
    }
}

fn action(compiled: &Compiled, backends: Vec<Backend>) -> Action {
    if let Some(redirect) = &compiled.redirect {
        return Action::Redirect(redirect.clone());
    }
    let mut list = backends;
    list.retain(|backend| backend.weight > 0);
    if let Some(why) = &compiled.invalid {
        // The Gateway API: a filter that is not understood must not be skipped, its requests get an error.
        for backend in &mut list {
            backend.filters = Filters::default();
            backend.mirrors = Arc::default();
            backend.invalid = Some(why.clone());
        }
    }
    let total_weight = list.iter().fold(0, |sum: u32, backend| sum.saturating_add(backend.weight));
    Action::Forward(Backends { list, total_weight })
}

/// Says where in its document an impossible match stands.
fn report(invalid: &InvalidMatch, documents: &[Located], findings: &mut Findings) {
    let origin = &invalid.origin;
    let found = documents.iter().find(|found| {
        let metadata = found.document.metadata();
        matches!(found.document, Document::HttpRoute(_) | Document::GrpcRoute(_))
            && metadata.name == *origin.name
            && metadata.namespace() == &*origin.namespace
    });
    let Some(found) = found else {
        return findings.error_in(&format!("{}/{}", origin.namespace, origin.name), invalid.message.clone());
    };
    let part = match invalid.part {
        MatchPart::Path => "path.value".to_owned(),
        MatchPart::GrpcService => "method.service".to_owned(),
        MatchPart::GrpcMethod => "method.method".to_owned(),
        MatchPart::Header(at) => format!("headers[{at}].value"),
        MatchPart::Query(at) => format!("queryParams[{at}].value"),
    };
    let field = format!("spec.rules[{}].matches[{}].{part}", origin.rule, origin.matched);
    findings.error(found, &field, invalid.message.clone(), "");
}
