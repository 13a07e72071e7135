//! Whether what a document refers to exists.

use super::attachment::{parent, parent_refs, target_refs};
use super::{InForce, registry::Registry, registry::port_named, registry::target_port};
use crate::compile::{self, Findings};
use crate::document::route::BackendObjectRef;
use crate::document::target::{TargetKind, TargetRef};
use crate::document::{
    Document, DocumentKey, EndpointSlice, GrpcRoute, HttpRoute, Kind, Located, TrafficPolicy, Workload,
};
use crate::identity::ServiceName;
use crate::parse::suggest;

/// Looks up every reference of a document.
pub(super) fn check(found: &Located, set: &InForce, registry: &Registry, findings: &mut Findings) {
    let mut check = Check { found, set, registry, findings };
    match &found.document {
        Document::HttpRoute(route) => {
            check.parents();
            check.http_backends(route);
        }
        Document::GrpcRoute(route) => {
            check.parents();
            check.grpc_backends(route);
        }
        Document::Workload(workload) => check.workload(workload),
        Document::TrafficPolicy(policy) => {
            check.targets();
            check.shards(policy);
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
            for (n, backend) in rule.backend_refs.iter().enumerate() {
                self.backend(&backend.object(), &format!("{field}.backendRefs[{n}]"));
            }
            for (n, filter) in rule.filters.iter().enumerate() {
                if let Some(mirror) = &filter.request_mirror {
                    self.backend(
                        &mirror.backend_ref,
                        &format!("{field}.filters[{n}].requestMirror.backendRef"),
                    );
                }
            }
        }
    }

    fn grpc_backends(&mut self, route: &GrpcRoute) {
        for (at, rule) in route.spec.rules.iter().enumerate() {
            let field = format!("spec.rules[{at}]");
            for (n, backend) in rule.backend_refs.iter().enumerate() {
                self.backend(&backend.object(), &format!("{field}.backendRefs[{n}]"));
            }
            for (n, filter) in rule.filters.iter().enumerate() {
                if let Some(mirror) = &filter.request_mirror {
                    self.backend(
                        &mirror.backend_ref,
                        &format!("{field}.filters[{n}].requestMirror.backendRef"),
                    );
                }
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
