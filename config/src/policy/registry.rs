//! Services and workloads as the documents in force make them: ports, who serves what, fixed endpoints.

use super::{Held, InForce, documents_of};
use crate::compile;
use crate::document::endpoint_slice::{AddressType, SliceEndpoint};
use crate::document::metadata::PortOrName;
use crate::document::service::{ServicePort, ServiceSpec};
use crate::document::{Document, DocumentKey, EndpointSlice, Kind, Located, Metadata, Service, Workload};
use crate::identity::{ServiceName, SpiffeId};
use crate::wire;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
};

/// Who is there and what it serves.
#[derive(Debug)]
pub(super) struct Registry {
    pub(super) trust_domain: Arc<str>,
    services: BTreeMap<ServiceName, Entry>,
    workloads: BTreeMap<ServiceName, Arc<Held>>,
    /// The services that each workload serves.
    served: BTreeMap<ServiceName, Vec<ServiceName>>,
}

/// One service.
#[derive(Debug)]
struct Entry {
    /// Its document, or one made from its workloads' ports; with what the workloads add to it.
    service: Service,
    /// Names of the workloads that serve it, in its own namespace.
    workloads: Vec<ServiceName>,
    slices: Vec<Arc<Held>>,
}

fn name_of(metadata: &Metadata) -> ServiceName {
    ServiceName::new(metadata.namespace(), metadata.name.as_str())
}

fn as_workload(found: &Located) -> Option<&Workload> {
    match &found.document {
        Document::Workload(workload) => Some(workload),
        _ => None,
    }
}

impl Registry {
    pub(super) fn new(in_force: &InForce, trust_domain_default: &Arc<str>) -> Self {
        let named = documents_of(in_force, |document| match document {
            Document::MeshPolicy(policy) => policy.spec.trust_domain.as_deref().map(|_| policy),
            _ => None,
        });
        let trust_domain = named.filter_map(|(_, _, policy)| policy.spec.trust_domain.as_deref()).next();
        let mut registry = Self {
            trust_domain: trust_domain.map_or_else(|| trust_domain_default.clone(), Into::into),
            services: BTreeMap::new(),
            workloads: BTreeMap::new(),
            served: BTreeMap::new(),
        };
        let mut selecting: BTreeMap<&str, Vec<&Service>> = BTreeMap::new();
        for found in in_force.values() {
            let name = name_of(found.document.metadata());
            match &found.document {
                Document::Service(service) => {
                    if !service.spec.selector.is_empty() {
                        selecting.entry(service.metadata.namespace()).or_default().push(service);
                    }
                    registry.services.insert(name, Entry::new(service.clone()));
                }
                Document::Workload(_) => {
                    registry.workloads.insert(name, found.clone());
                }
                _ => {}
            }
        }
        let workloads: Vec<_> = registry.workloads.iter().map(|(n, w)| (n.clone(), w.clone())).collect();
        for (name, found) in &workloads {
            let Some(workload) = as_workload(found) else { continue };
            let mut serves: BTreeSet<ServiceName> = BTreeSet::new();
            if let Some(service) = &workload.spec.service {
                let service = ServiceName::new(name.namespace.clone(), service.as_str());
                registry.add_ports(&service, workload, in_force);
                serves.insert(service);
            }
            for service in selecting.get(&*name.namespace).into_iter().flatten() {
                if compile::serves(service, workload) {
                    serves.insert(name_of(&service.metadata));
                }
            }
            for service in &serves {
                if let Some(entry) = registry.services.get_mut(service) {
                    entry.workloads.push(name.clone());
                }
            }
            registry.served.insert(name.clone(), serves.into_iter().collect());
        }
        for (_, found, slice) in documents_of(in_force, |document| match document {
            Document::EndpointSlice(slice) => Some(slice),
            _ => None,
        }) {
            let service = slice.service_name().map(|name| ServiceName::new(slice.metadata.namespace(), name));
            if let Some(entry) = service.and_then(|service| registry.services.get_mut(&service)) {
                entry.slices.push(found.clone());
            }
        }
        registry
    }

    /// What a workload that names a service adds to it: all of its ports where the service has no document, and what
    /// is spoken on a port where the document leaves that open.
    fn add_ports(&mut self, name: &ServiceName, workload: &Workload, in_force: &InForce) {
        let key =
            DocumentKey { kind: Kind::Service, namespace: name.namespace.clone(), name: name.name.clone() };
        let implicit = !in_force.contains_key(&key);
        let entry = self.services.entry(name.clone()).or_insert_with(|| {
            let metadata = Metadata::named(&*name.namespace, &*name.name);
            Entry::new(Service::new(Kind::Service, metadata, ServiceSpec::default()))
        });
        if implicit {
            for port in &workload.spec.ports {
                if entry.service.spec.ports.iter().all(|known| known.port != port.port) {
                    entry.service.spec.ports.push(ServicePort {
                        name: port.name.clone(),
                        port: port.port,
                        app_protocol: port.app_protocol.clone(),
                        ..ServicePort::default()
                    });
                }
            }
            entry.service.spec.ports.sort_by_key(|port| port.port);
            return;
        }
        let spoken: Vec<(u16, Option<String>)> = compile::served_ports(&entry.service, workload)
            .map(|(port, own)| (port.port, own.app_protocol.clone()))
            .collect();
        for (number, protocol) in spoken {
            for port in entry.service.spec.ports.iter_mut().filter(|port| port.port == number) {
                port.app_protocol = port.app_protocol.take().or_else(|| protocol.clone());
            }
        }
    }

    pub(super) fn services(&self) -> impl Iterator<Item = ServiceName> {
        self.services.keys().cloned()
    }

    pub(super) fn service(&self, name: &ServiceName) -> Option<&Service> {
        self.services.get(name).map(|entry| &entry.service)
    }

    pub(super) fn workloads(&self) -> impl Iterator<Item = (&ServiceName, &Workload)> {
        self.workloads.iter().filter_map(|(name, found)| Some((name, as_workload(found)?)))
    }

    /// The workloads that serve a service.
    pub(super) fn workloads_of(
        &self,
        service: &ServiceName,
    ) -> impl Iterator<Item = (&ServiceName, &Workload)> {
        let names = self.services.get(service).into_iter().flat_map(|entry| &entry.workloads);
        names.filter_map(|name| Some((name, as_workload(self.workloads.get(name)?)?)))
    }

    /// The document of an instance.
    pub(super) fn workload(&self, namespace: &str, instance: &str) -> Option<&Workload> {
        let document = |name: &str| as_workload(self.workloads.get(&ServiceName::new(namespace, name))?);
        document(instance).or_else(|| {
            let (name, replica) = instance.rsplit_once('-')?;
            let number: u32 = replica.parse().ok().filter(|n: &u32| n.to_string() == replica)?;
            document(name).filter(|workload| workload.spec.replicas > number)
        })
    }

    /// The services that an instance serves.
    pub(super) fn serves(&self, namespace: &str, instance: &str) -> &[ServiceName] {
        let document = self.workload(namespace, instance);
        document.and_then(|workload| self.served.get(&name_of(&workload.metadata))).map_or(&[], Vec::as_slice)
    }

    fn identity(&self, workload: &Workload) -> String {
        SpiffeId {
            trust_domain: self.trust_domain.clone(),
            namespace: workload.metadata.namespace().into(),
            service_account: workload.spec.service_account.as_str().into(),
        }
        .to_string()
    }

    /// The endpoint of a workload on a service's port, but for where it is and who is there.
    fn endpoint(&self, workload: &Workload, instance: &str, port: &ServicePort) -> wire::Endpoint {
        wire::Endpoint {
            port: port.port.into(),
            address: String::new(),
            identity: String::new(),
            workload: instance.to_owned(),
            zone: workload.spec.zone.clone().unwrap_or_default(),
            labels: workload.metadata.labels.clone().into_iter().collect(),
            weight: workload.spec.weight,
        }
    }

    pub(super) fn leased_endpoints(
        &self,
        namespace: &str,
        instance: &str,
        inbound: SocketAddr,
    ) -> Vec<(ServiceName, wire::Endpoint)> {
        let Some(workload) = self.workload(namespace, instance) else { return Vec::new() };
        if !workload.spec.mesh || workload.spec.inbound.is_some() {
            return Vec::new();
        }
        let mut endpoints = Vec::new();
        for name in self.serves(namespace, instance) {
            let Some(service) = self.service(name) else { continue };
            for (port, _) in compile::served_ports(service, workload) {
                let endpoint = wire::Endpoint {
                    address: inbound.to_string(),
                    identity: self.identity(workload),
                    ..self.endpoint(workload, instance, port)
                };
                endpoints.push((name.clone(), endpoint));
            }
        }
        endpoints
    }

    pub(super) fn static_endpoints(&self, service: &ServiceName) -> Vec<wire::Endpoint> {
        let Some(entry) = self.services.get(service) else { return Vec::new() };
        let mut endpoints = Vec::new();
        for name in &entry.workloads {
            let Some(workload) = self.workloads.get(name).and_then(|found| as_workload(found)) else {
                continue;
            };
            for (port, own) in compile::served_ports(&entry.service, workload) {
                let endpoint = self.endpoint(workload, &name.name, port);
                if !workload.spec.mesh {
                    let address = workload.spec.address.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
                    let address = SocketAddr::new(address, own.app_port.unwrap_or(own.port));
                    endpoints.push(wire::Endpoint { address: address.to_string(), ..endpoint });
                } else if let Some(inbound) = workload.spec.inbound {
                    let identity = self.identity(workload);
                    endpoints.push(wire::Endpoint { address: inbound.to_string(), identity, ..endpoint });
                }
            }
        }
        for found in &entry.slices {
            if let Document::EndpointSlice(slice) = &found.document {
                endpoints.extend(slice_endpoints(slice, &entry.service));
            }
        }
        endpoints
    }
}

impl Entry {
    fn new(service: Service) -> Self {
        Self { service, workloads: Vec::new(), slices: Vec::new() }
    }
}

/// The endpoints of a slice on its service's ports: the first address of each that takes calls, in plain text.
fn slice_endpoints(slice: &EndpointSlice, service: &Service) -> Vec<wire::Endpoint> {
    if slice.address_type == AddressType::Fqdn {
        return Vec::new();
    }
    let mut endpoints = Vec::new();
    for port in &service.spec.ports {
        for own in &slice.ports {
            let same = own.name.as_deref().unwrap_or_default() == port.name.as_deref().unwrap_or_default();
            let Some(number) = own.port.filter(|_| same && own.protocol == port.protocol) else { continue };
            for endpoint in slice.endpoints.iter().filter(|endpoint| takes_calls(endpoint, service)) {
                let Some(address) = endpoint.addresses.first().and_then(|a| a.parse::<IpAddr>().ok()) else {
                    continue;
                };
                let behind = endpoint.target_ref.as_ref().and_then(|target| target.name.as_ref());
                endpoints.push(wire::Endpoint {
                    port: port.port.into(),
                    address: SocketAddr::new(address, number).to_string(),
                    identity: String::new(),
                    workload: behind.unwrap_or(&slice.metadata.name).clone(),
                    zone: endpoint.zone.clone().unwrap_or_default(),
                    labels: Default::default(),
                    weight: 1,
                });
            }
        }
    }
    endpoints
}

fn takes_calls(endpoint: &SliceEndpoint, service: &Service) -> bool {
    service.spec.publish_not_ready_addresses || endpoint.conditions.ready.unwrap_or(true)
}

/// The port of a service that a name means.
pub(super) fn port_named<'a>(service: &'a Service, name: &str) -> Option<&'a ServicePort> {
    service.spec.ports.iter().find(|port| port.name.as_deref() == Some(name))
}

/// What a target port says, for people.
pub(super) fn target_port(port: &ServicePort) -> String {
    match &port.target_port {
        Some(PortOrName::Port(number)) => number.to_string(),
        Some(PortOrName::Name(name)) => format!("`{name}`"),
        None => port.port.to_string(),
    }
}
