//! Which TrafficPolicies and CachePolicies speak about a call or about a backend's endpoints, the most specific first.

use super::cache::CacheOn;
use super::of_kind;
use crate::document::target::{TargetKind, TargetRef};
use crate::document::traffic_policy::TrafficPolicySpec;
use crate::document::{Document, Kind, Located, Service};
use crate::identity::ServiceName;
use std::collections::HashMap;

/// The policies among some documents by what they are attached to, and the services for the names of their ports.
#[derive(Default)]
pub(super) struct Index<'d> {
    policies: HashMap<(TargetKind, &'d str, &'d str), Vec<Attached<'d>>>,
    caches: HashMap<(TargetKind, &'d str, &'d str), Vec<CacheOn<'d>>>,
    services: HashMap<(&'d str, &'d str), &'d Service>,
}

/// One policy on one thing.
#[derive(Clone, Copy)]
pub(super) struct Attached<'d> {
    pub(super) found: &'d Located,
    pub(super) spec: &'d TrafficPolicySpec,
    pub(super) target: &'d TargetRef,
}

/// The policies that speak about the same calls, the most specific first: what one says of a part goes before what
/// those behind it say of it.
#[derive(Clone, Default)]
pub(super) struct Policies<'d>(Vec<Attached<'d>>);

/// What the most specific policy says of one part.
pub(super) struct Said<'d, T: ?Sized> {
    pub(super) what: &'d T,
    pub(super) by: Attached<'d>,
}

impl<'d> Attached<'d> {
    /// What it is attached to, for people: `HTTPRoute shop/products#v1`, `Service shop/products`.
    pub(super) fn target(&self) -> String {
        self.target.named(self.found.document.metadata().namespace())
    }

    /// `<namespace>/<policy>`.
    pub(super) fn name(&self) -> String {
        let metadata = self.found.document.metadata();
        format!("{}/{}", metadata.namespace(), metadata.name)
    }
}

impl<'d> Index<'d> {
    pub(super) fn new(documents: &'d [Located]) -> Self {
        let mut index = Self::default();
        for (found, policy) in of_kind!(documents, TrafficPolicy) {
            let namespace = policy.metadata.namespace();
            for target in &policy.spec.target_refs {
                let attached = Attached { found, spec: &policy.spec, target };
                index.policies.entry((target.kind, namespace, &target.name)).or_default().push(attached);
            }
        }
        for (found, policy) in of_kind!(documents, CachePolicy) {
            let namespace = policy.metadata.namespace();
            for target in &policy.spec.target_refs {
                let on = CacheOn { found, policy, target };
                index.caches.entry((target.kind, namespace, &target.name)).or_default().push(on);
            }
        }
        // No two that are in force say the same part about one thing; should it happen, the older one holds.
        for policies in index.policies.values_mut() {
            policies.sort_by_cached_key(|policy| {
                let metadata = policy.found.document.metadata();
                let created = metadata.creation_timestamp.clone();
                (created.is_none(), created, metadata.name.clone())
            });
        }
        for (_, service) in of_kind!(documents, Service) {
            index.services.insert((service.metadata.namespace(), &service.metadata.name), service);
        }
        index
    }

    /// On a section of a thing, if one is named, and then on the whole of it.
    fn on(&self, kind: TargetKind, namespace: &str, name: &str, section: Option<&str>) -> Policies<'d> {
        let all = self.policies.get(&(kind, namespace, name)).map_or(&[][..], Vec::as_slice);
        let of = |wanted: Option<&'_ str>| {
            let wanted = wanted.map(str::to_owned);
            all.iter().copied().filter(move |policy| policy.target.section_name == wanted)
        };
        let on_section = section.into_iter().flat_map(|section| of(Some(section)));
        Policies(on_section.chain(of(None)).collect())
    }

    /// On a port of a service.
    pub(super) fn on_port(&self, service: &ServiceName, port: u16) -> Policies<'d> {
        let section = self.port_name(service, port);
        self.on(TargetKind::Service, &service.namespace, &service.name, section)
    }

    fn port_name(&self, service: &ServiceName, port: u16) -> Option<&'d str> {
        let document = self.services.get(&(&*service.namespace, &*service.name))?;
        document.spec.ports.iter().find(|own| own.port == port)?.name.as_deref()
    }

    /// On a rule of a route.
    pub(super) fn on_rule(&self, route: &Document, rule: Option<&str>) -> Policies<'d> {
        let metadata = route.metadata();
        self.on(route_kind(route), metadata.namespace(), &metadata.name, rule)
    }

    /// CachePolicies on a port of a service, the most specific first.
    pub(super) fn caches_on_port(&self, service: &ServiceName, port: u16) -> Vec<CacheOn<'d>> {
        let section = self.port_name(service, port);
        self.caches_on(TargetKind::Service, &service.namespace, &service.name, section)
    }

    /// CachePolicies on a rule of a route, the most specific first.
    pub(super) fn caches_on_rule(&self, route: &Document, rule: Option<&str>) -> Vec<CacheOn<'d>> {
        let metadata = route.metadata();
        self.caches_on(route_kind(route), metadata.namespace(), &metadata.name, rule)
    }

    fn caches_on(
        &self,
        kind: TargetKind,
        namespace: &str,
        name: &str,
        section: Option<&str>,
    ) -> Vec<CacheOn<'d>> {
        let all = self.caches.get(&(kind, namespace, name)).map_or(&[][..], Vec::as_slice);
        let on_section = |on: &&CacheOn<'_>| on.target.section_name.is_some();
        let of_section =
            all.iter().filter(on_section).filter(|on| on.target.section_name.as_deref() == section);
        of_section.chain(all.iter().filter(|on| !on_section(on))).copied().collect()
    }
}

fn route_kind(route: &Document) -> TargetKind {
    match route.kind() {
        Kind::GrpcRoute => TargetKind::GrpcRoute,
        _ => TargetKind::HttpRoute,
    }
}

impl<'d> Policies<'d> {
    /// One policy by itself.
    pub(super) fn only(policy: Attached<'d>) -> Self {
        Self(vec![policy])
    }

    /// These, and behind them others.
    pub(super) fn then(&self, others: &Self) -> Self {
        Self(self.0.iter().chain(&others.0).copied().collect())
    }

    /// What is said of one part.
    pub(super) fn part<T: ?Sized>(
        &self,
        read: impl Fn(&'d TrafficPolicySpec) -> Option<&'d T>,
    ) -> Option<Said<'d, T>> {
        self.0.iter().find_map(|policy| Some(Said { what: read(policy.spec)?, by: *policy }))
    }

    /// True if any of them says something about how endpoints are picked, bounded and judged.
    pub(super) fn speak_of_endpoints(&self) -> bool {
        self.0.iter().any(|policy| speaks_of_endpoints(policy.spec))
    }
}

/// True if a policy says something about how endpoints are picked, bounded and judged.
pub(crate) fn speaks_of_endpoints(spec: &TrafficPolicySpec) -> bool {
    spec.load_balancer.is_some()
        || spec.connections.is_some()
        || spec.circuit_breaker.is_some()
        || spec.outlier_ejection.is_some()
        || spec.health_check.is_some()
        || spec.retries.as_ref().is_some_and(|retries| retries.budget.is_some())
        || spec.timeouts.is_some_and(|timeouts| timeouts.connect.is_some())
}
