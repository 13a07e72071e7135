//! Whether what a document refers to exists.

use super::attachment::{backends, parent, parent_refs, spec_parts, target_refs};
use super::{InForce, registry::Registry, registry::port_named, registry::target_port};
use crate::compile::{self, Findings, SOURCE_NAMESPACE, SOURCE_SERVICE_ACCOUNT, SOURCE_WORKLOAD};
use crate::document::route::{BackendObjectRef, HeaderMatch, RequestMirror, StringMatchType};
use crate::document::service::ServicePort;
use crate::document::target::{TargetKind, TargetRef};
use crate::document::{
    Document, DocumentKey, EndpointSlice, GrpcRoute, HttpRoute, Kind, Located, TrafficPolicy, Workload,
};
use crate::identity::ServiceName;
use crate::parse::suggest;
use crate::snapshot::AppProtocol;
use std::collections::{BTreeMap, BTreeSet};

/// Looks up every reference of a document.
pub(super) fn check(found: &Located, set: &InForce, registry: &Registry, findings: &mut Findings) {
    let mut check = Check { found, set, registry, findings };
    match &found.document {
        Document::HttpRoute(route) => {
            check.parents();
            check.http_backends(route);
            for (at, rule) in route.spec.rules.iter().enumerate() {
                for (n, wanted) in rule.matches.iter().enumerate() {
                    check.callers(&wanted.headers, &format!("spec.rules[{at}].matches[{n}].headers"));
                }
            }
        }
        Document::GrpcRoute(route) => {
            check.parents();
            check.grpc_backends(route);
            for (at, rule) in route.spec.rules.iter().enumerate() {
                for (n, wanted) in rule.matches.iter().enumerate() {
                    check.callers(&wanted.headers, &format!("spec.rules[{at}].matches[{n}].headers"));
                }
            }
        }
        Document::Workload(workload) => check.workload(workload),
        Document::TrafficPolicy(policy) => {
            check.targets();
            check.shards(policy);
            check.subset(policy);
            check.opaque(policy);
        }
        Document::CachePolicy(_) | Document::AuthorizationPolicy(_) => check.targets(),
        Document::EndpointSlice(slice) => check.slice(slice),
        Document::Service(_) | Document::MeshPolicy(_) => {}
    }
}

struct Check<'a> {
    found: &'a Located,
    set: &'a InForce,
    registry: &'a Registry,
    findings: &'a mut Findings,
}

impl Check<'_> {
    fn namespace(&self) -> &str {
        self.found.document.metadata().namespace()
    }

    fn dangling(&mut self, field: &str, message: String, cure: &str) {
        self.findings.error(self.found, field, message, cure);
    }

    /// A service that should be there, by the field that names it.
    fn service(&mut self, name: &ServiceName, field: &str) -> bool {
        if self.registry.service(name).is_some() {
            return true;
        }
        let namesake = self.registry.services().find(|known| known.name == name.name);
        let here: Vec<_> =
            self.registry.services().filter(|known| known.namespace == name.namespace).collect();
        let near = suggest(&name.name, here.iter().map(|known| &*known.name));
        let cure = match namesake {
            Some(other) => format!("there is {other}: name its namespace"),
            None if near.is_empty() => {
                "add a Service of that name, or a Workload that says `service:` so".to_owned()
            }
            None => near,
        };
        self.dangling(field, format!("there is no service {name}"), &cure);
        false
    }

    /// A port that a service should have.
    fn port(&mut self, name: &ServiceName, port: u16, field: &str) {
        let Some(service) = self.registry.service(name) else { return };
        if service.spec.ports.iter().all(|own| own.port != port) {
            let message = format!("service {name} has no port {port}");
            let cure = self.its_ports(name);
            self.dangling(field, message, &cure);
        }
    }

    fn its_ports(&self, name: &ServiceName) -> String {
        let ports = self.registry.service(name).map_or(&[][..], |service| &service.spec.ports);
        let ports: Vec<_> = ports
            .iter()
            .map(|port| match &port.name {
                Some(name) => format!("{} ({name})", port.port),
                None => port.port.to_string(),
            })
            .collect();
        if ports.is_empty() {
            "it has no ports at all".to_owned()
        } else {
            format!("it has {}", ports.join(", "))
        }
    }

    fn section(&mut self, service: &ServiceName, section: &str, field: &str) {
        let Some(document) = self.registry.service(service) else { return };
        if port_named(document, section).is_none() {
            let message = format!("service {service} has no port named `{section}`");
            let cure = self.its_ports(service);
            self.dangling(field, message, &cure);
        }
    }

    fn parents(&mut self) {
        let namespace = self.namespace().to_owned();
        let references = parent_refs(&self.found.document).to_vec();
        for (at, reference) in references.iter().enumerate() {
            let field = format!("spec.parentRefs[{at}]");
            let Some(name) = parent(reference, &namespace) else {
                self.findings.warning(
                    self.found,
                    &field,
                    format!(
                        "the parent {} {} is no Service: a mesh does nothing with it",
                        reference.kind, reference.name
                    ),
                    "for mesh traffic write `group: \"\"` and `kind: Service`",
                );
                continue;
            };
            if !self.service(&name, &format!("{field}.name")) {
                continue;
            }
            if let Some(port) = reference.port {
                self.port(&name, port, &format!("{field}.port"));
            }
            if let Some(section) = &reference.section_name {
                self.section(&name, section, &format!("{field}.sectionName"));
            }
        }
        if references.is_empty() {
            self.findings.warning(
                self.found,
                "spec.parentRefs",
                "the route is attached to nothing, so it does nothing".to_owned(),
                "name the Service whose calls it is to route",
            );
        }
    }

    fn backend(&mut self, reference: &BackendObjectRef, field: &str) {
        if !reference.is_service() {
            self.findings.warning(
                self.found,
                &format!("{field}.kind"),
                format!(
                    "a backend of kind {} is unknown: its requests are answered with 500",
                    reference.kind
                ),
                "use a Service",
            );
            return;
        }
        let namespace = reference.namespace.as_deref().unwrap_or(self.namespace());
        let name = ServiceName::new(namespace, reference.name.as_str());
        if self.service(&name, &format!("{field}.name")) {
            match reference.port {
                Some(port) => self.port(&name, port, &format!("{field}.port")),
                None => {
                    let cure = self.its_ports(&name);
                    self.dangling(
                        &format!("{field}.port"),
                        format!("the port of service {name} is missing"),
                        &cure,
                    );
                }
            }
        }
    }

    fn http_backends(&mut self, route: &HttpRoute) {
        for (at, rule) in route.spec.rules.iter().enumerate() {
            let field = format!("spec.rules[{at}]");
            self.mirrors(rule.filters.iter().map(|f| f.request_mirror.as_ref()), &field);
            for (n, backend) in rule.backend_refs.iter().enumerate() {
                let field = format!("{field}.backendRefs[{n}]");
                self.backend(&backend.object(), &field);
                self.mirrors(backend.filters.iter().map(|f| f.request_mirror.as_ref()), &field);
            }
        }
    }

    fn grpc_backends(&mut self, route: &GrpcRoute) {
        for (at, rule) in route.spec.rules.iter().enumerate() {
            let field = format!("spec.rules[{at}]");
            self.mirrors(rule.filters.iter().map(|f| f.request_mirror.as_ref()), &field);
            for (n, backend) in rule.backend_refs.iter().enumerate() {
                let field = format!("{field}.backendRefs[{n}]");
                self.backend(&backend.object(), &field);
                self.mirrors(backend.filters.iter().map(|f| f.request_mirror.as_ref()), &field);
            }
        }
    }

    /// What filters copy requests to; `field` is the field that has the filters.
    fn mirrors<'m>(&mut self, filters: impl Iterator<Item = Option<&'m RequestMirror>>, field: &str) {
        for (n, mirror) in filters.enumerate() {
            if let Some(mirror) = mirror {
                self.backend(&mirror.backend_ref, &format!("{field}.filters[{n}].requestMirror.backendRef"));
            }
        }
    }

    fn workload(&mut self, workload: &Workload) {
        for (at, upstream) in workload.spec.upstreams.iter().enumerate() {
            let field = format!("spec.upstreams[{at}]");
            let namespace = upstream.namespace.as_deref().unwrap_or(self.namespace());
            let name = ServiceName::new(namespace, upstream.service.as_str());
            if self.service(&name, &format!("{field}.service")) {
                self.port(&name, upstream.port, &format!("{field}.port"));
            }
        }
        let Some(service) = &workload.spec.service else { return };
        let name = ServiceName::new(self.namespace(), service.as_str());
        let Some(document) = self.registry.service(&name) else { return };
        let behind: Vec<u16> = compile::served_ports(document, workload).map(|(port, _)| port.port).collect();
        let unserved: Vec<_> =
            document.spec.ports.iter().filter(|port| !behind.contains(&port.port)).collect();
        if !workload.spec.ports.is_empty() && !unserved.is_empty() && behind.is_empty() {
            let targets: Vec<_> = unserved.iter().map(|port| target_port(port)).collect();
            self.findings.warning(
                self.found,
                "spec.ports",
                format!("none of these ports is one that service {name} sends to ({})", targets.join(", ")),
                "give one of them the number or the name of the Service's targetPort",
            );
        }
    }

    fn targets(&mut self) {
        let namespace = self.namespace().to_owned();
        for (at, target) in target_refs(&self.found.document).to_vec().iter().enumerate() {
            let field = format!("spec.targetRefs[{at}]");
            let name = ServiceName::new(namespace.as_str(), target.name.as_str());
            match target.kind {
                TargetKind::Service => {
                    if self.service(&name, &format!("{field}.name"))
                        && let Some(section) = &target.section_name
                    {
                        self.section(&name, section, &format!("{field}.sectionName"));
                    }
                }
                TargetKind::HttpRoute => self.target(target, Kind::HttpRoute, &field),
                TargetKind::GrpcRoute => self.target(target, Kind::GrpcRoute, &field),
                TargetKind::Workload => self.target(target, Kind::Workload, &field),
            }
        }
    }

    /// A route or a workload that a policy is attached to.
    fn target(&mut self, target: &TargetRef, kind: Kind, field: &str) {
        let key = DocumentKey { kind, namespace: self.namespace().into(), name: target.name.as_str().into() };
        let Some(found) = self.set.get(&key) else {
            let same_kind =
                self.set.keys().filter(|other| other.kind == kind && other.namespace == key.namespace);
            let mut cure = suggest(&key.name, same_kind.map(|other| &*other.name));
            if cure.is_empty() {
                cure = "a policy reaches only what is in its own namespace".to_owned();
            }
            return self.dangling(&format!("{field}.name"), format!("there is no {key}"), &cure);
        };
        let Some(section) = &target.section_name else { return };
        let names: Vec<&str> = match &found.document {
            Document::HttpRoute(route) => {
                route.spec.rules.iter().filter_map(|rule| rule.name.as_deref()).collect()
            }
            Document::GrpcRoute(route) => {
                route.spec.rules.iter().filter_map(|rule| rule.name.as_deref()).collect()
            }
            _ => return,
        };
        if !names.contains(&section.as_str()) {
            let cure = if names.is_empty() {
                "its rules have no names: give the rule a `name`".to_owned()
            } else {
                format!("its rules are named {}", names.join(", "))
            };
            self.dangling(
                &format!("{field}.sectionName"),
                format!("{key} has no rule named `{section}`"),
                &cure,
            );
        }
    }

    fn shards(&mut self, policy: &TrafficPolicy) {
        let Some(sharding) = &policy.spec.sharding else { return };
        for (at, shard) in sharding.shards.iter().enumerate() {
            let field = format!("spec.sharding.shards[{at}]");
            let name = ServiceName::new(self.namespace(), shard.service.as_str());
            if self.service(&name, &format!("{field}.service"))
                && let Some(port) = shard.port
            {
                self.port(&name, port, &format!("{field}.port"));
            }
        }
    }

    /// Conditions on who calls that nobody known can meet.
    fn callers(&mut self, headers: &[HeaderMatch], field: &str) {
        let known = |of: fn(&Workload) -> &str| -> BTreeSet<&str> {
            self.registry.workloads().map(|(_, workload)| of(workload)).collect()
        };
        for (at, header) in headers.iter().enumerate() {
            let (what, names) = match header.name.to_ascii_lowercase().as_str() {
                SOURCE_WORKLOAD => ("a Workload", known(|workload| &workload.metadata.name)),
                SOURCE_SERVICE_ACCOUNT => {
                    ("a Workload with the service account", known(|workload| &workload.spec.service_account))
                }
                SOURCE_NAMESPACE => {
                    ("a Workload in the namespace", known(|workload| workload.metadata.namespace()))
                }
                _ => continue,
            };
            // Where nobody is known, the callers are such as no document describes.
            if header.match_type == StringMatchType::RegularExpression
                || names.is_empty()
                || names.iter().any(|name| is_or_replica(&header.value, name))
            {
                continue;
            }
            let near = suggest(&header.value, names.iter().copied());
            self.findings.warning(
                self.found,
                &format!("{field}[{at}].value"),
                format!("no document has {what} `{}`, so nobody known takes this match", header.value),
                &if near.is_empty() { format!("known are {}", listed(&names)) } else { near },
            );
        }
    }

    /// Labels of a subset that no workload behind the policy's targets has.
    fn subset(&mut self, policy: &TrafficPolicy) {
        let balancer = policy.spec.load_balancer.as_ref();
        let Some(subset) = balancer.and_then(|balancer| balancer.subset.as_ref()) else { return };
        let mut services = BTreeSet::new();
        for target in &policy.spec.target_refs {
            let name = target.name.as_str();
            let route = |kind| {
                let key = DocumentKey { kind, namespace: self.namespace().into(), name: name.into() };
                self.set.get(&key).map(|found| backends(&found.document)).unwrap_or_default()
            };
            match target.kind {
                TargetKind::Service => {
                    services.insert(ServiceName::new(self.namespace(), name));
                }
                TargetKind::HttpRoute => services.extend(route(Kind::HttpRoute)),
                TargetKind::GrpcRoute => services.extend(route(Kind::GrpcRoute)),
                TargetKind::Workload => {}
            }
        }
        for service in services {
            let known: Vec<&BTreeMap<String, String>> =
                self.registry.workloads_of(&service).map(|(_, workload)| &workload.metadata.labels).collect();
            let has = |labels: &BTreeMap<String, String>| {
                subset.labels.iter().all(|(name, value)| labels.get(name) == Some(value))
            };
            // Where no document describes the workloads, their labels are not known either.
            if known.is_empty() || known.iter().any(|labels| has(labels)) {
                continue;
            }
            let (field, message, cure) = unknown_labels(&subset.labels, &known, &service);
            let field = format!("spec.loadBalancer.subset.labels{field}");
            self.findings.warning(self.found, &field, message, &cure);
        }
    }

    /// What a policy says of calls, on a Service whose ports all carry opaque bytes.
    fn opaque(&mut self, policy: &TrafficPolicy) {
        const OF_REQUESTS: [&str; 10] = [
            "spec.retries",
            "spec.hedging",
            "spec.rateLimits",
            "spec.sessionKey",
            "spec.sharding",
            "spec.faults",
            "spec.concurrency",
            "spec.deprecation",
            "spec.timeouts.request",
            "spec.timeouts.attempt",
        ];
        let mut parts = spec_parts(&self.found.document);
        if let Some(timeouts) = &policy.spec.timeouts {
            parts.extend(timeouts.request.map(|_| "spec.timeouts.request".to_owned()));
            parts.extend(timeouts.attempt.map(|_| "spec.timeouts.attempt".to_owned()));
        }
        let Some(part) = parts.iter().find(|part| OF_REQUESTS.contains(&part.as_str())) else { return };
        for target in policy.spec.target_refs.iter().filter(|target| target.kind == TargetKind::Service) {
            let name = ServiceName::new(self.namespace(), target.name.as_str());
            let Some(service) = self.registry.service(&name) else { continue };
            let section = target.section_name.as_ref();
            let ports = service.spec.ports.iter();
            let mut meant = ports
                .filter(|port| section.is_none_or(|section| port.name.as_ref() == Some(section)))
                .peekable();
            let tcp =
                |port: &ServicePort| compile::app_protocol(port.app_protocol.as_deref()) == AppProtocol::Tcp;
            if meant.peek().is_some() && meant.all(tcp) {
                self.findings.warning(
                    self.found,
                    part,
                    format!("service {name} carries opaque bytes, and this is about requests"),
                    "take it away, or say with `appProtocol` that HTTP is spoken",
                );
            }
        }
    }

    fn slice(&mut self, slice: &EndpointSlice) {
        match slice.service_name() {
            Some(service) => {
                let name = ServiceName::new(self.namespace(), service);
                self.service(&name, "metadata.labels");
            }
            None => self.findings.warning(
                self.found,
                "metadata.labels",
                "no label says which Service it belongs to, so it does nothing".to_owned(),
                "add the label kubernetes.io/service-name",
            ),
        }
    }
}

/// True for a workload's name and for that of one of its replicas.
fn is_or_replica(instance: &str, name: &str) -> bool {
    let number = instance.strip_prefix(name).and_then(|rest| rest.strip_prefix('-'));
    instance == name || number.is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
}

fn listed(names: &BTreeSet<&str>) -> String {
    const SHOWN: usize = 8;
    let mut text = names.iter().take(SHOWN).copied().collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN {
        text.push_str(", …");
    }
    text
}

/// The label to blame for an empty subset, below the field `labels`, with what to say about it and the cure.
fn unknown_labels(
    wanted: &BTreeMap<String, String>,
    known: &[&BTreeMap<String, String>],
    service: &ServiceName,
) -> (String, String, String) {
    let or_known = |near: String, names: &BTreeSet<&str>| match (near.is_empty(), names.is_empty()) {
        (false, _) => near,
        (true, false) => format!("known are {}", listed(names)),
        (true, true) => "they have no labels at all".to_owned(),
    };
    for (name, value) in wanted {
        let values: BTreeSet<&str> =
            known.iter().filter_map(|labels| labels.get(name)).map(String::as_str).collect();
        if values.contains(value.as_str()) {
            continue;
        }
        if values.is_empty() {
            let names: BTreeSet<&str> =
                known.iter().flat_map(|labels| labels.keys()).map(String::as_str).collect();
            let message =
                format!("no workload of service {service} has the label `{name}`, so the subset is empty");
            return (format!(".{name}"), message, or_known(suggest(name, names.iter().copied()), &names));
        }
        let message =
            format!("no workload of service {service} has `{name}: {value}`, so the subset is empty");
        return (format!(".{name}"), message, or_known(suggest(value, values.iter().copied()), &values));
    }
    let message = format!("no workload of service {service} has all of these labels, so the subset is empty");
    (String::new(), message, "each of them alone is there".to_owned())
}
