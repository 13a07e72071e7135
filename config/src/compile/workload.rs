//! A Workload compiled: what it serves, its upstream listeners, who may call it, and how much it takes.

use super::findings::Findings;
use super::{admission, authorization, of_kind, service::app_protocol, split_name};
use crate::document::metadata::PortOrName;
use crate::document::service::{ServicePort, TransportProtocol};
use crate::document::workload::WorkloadPort;
use crate::document::{Located, Service, workload::Workload as WorkloadDocument};
use crate::identity::ServiceName;
use crate::snapshot::{Mesh, Served, UpstreamListener, Workload};

pub(super) fn compile(
    name: &str,
    documents: &[Located],
    mesh: &Mesh,
    findings: &mut Findings,
) -> Option<Workload> {
    let Some((_, document)) = of_kind!(documents, Workload).next() else {
        findings.error_in(&format!("workload/{name}"), "there is no Workload document in it".to_owned());
        return None;
    };
    let (namespace, instance) = split_name(name);
    let mut serves: Vec<Served> =
        of_kind!(documents, Service).flat_map(|(_, service)| served(service, document)).collect();
    serves.sort_by(|a, b| (&a.service, a.port).cmp(&(&b.service, b.port)));
    let upstreams = document.spec.upstreams.iter().map(|upstream| UpstreamListener {
        listen: upstream.listen,
        service: ServiceName::new(
            upstream.namespace.as_deref().unwrap_or(document.metadata.namespace()),
            upstream.service.as_str(),
        ),
        port: upstream.port,
    });
    Some(Workload {
        name: Some(ServiceName::new(namespace, instance)),
        version: "".into(),
        upstreams: upstreams.collect(),
        authorization: authorization::compile(documents, document, &serves, mesh, findings),
        zone: document.spec.zone.as_deref().map(Into::into),
        admission: admission::compile(documents, &serves, findings),
        serves,
    })
}

/// True if a workload serves a service: it names it, or the service selects it.
pub(crate) fn serves(service: &Service, workload: &WorkloadDocument) -> bool {
    let selector = &service.spec.selector;
    let selected = !selector.is_empty()
        && selector.iter().all(|(key, value)| workload.metadata.labels.get(key) == Some(value));
    service.metadata.namespace() == workload.metadata.namespace()
        && (selected || workload.spec.service.as_deref() == Some(service.metadata.name.as_str()))
}

/// The ports of a service that a workload serves, each with the workload's own port behind it.
pub(crate) fn served_ports<'a>(
    service: &'a Service,
    workload: &'a WorkloadDocument,
) -> impl Iterator<Item = (&'a ServicePort, &'a WorkloadPort)> {
    let ports = if serves(service, workload) { &service.spec.ports[..] } else { &[] };
    let meshed = ports.iter().filter(|port| port.protocol == TransportProtocol::Tcp);
    meshed.filter_map(|port| Some((port, behind(port, &workload.spec.ports)?)))
}

/// The workload's port behind a service's port: by the name or number of `targetPort`, else by the port's own number.
fn behind<'a>(port: &ServicePort, ports: &'a [WorkloadPort]) -> Option<&'a WorkloadPort> {
    let same = || ports.iter().find(|own| own.port == port.port);
    match &port.target_port {
        Some(PortOrName::Name(name)) => ports.iter().find(|own| own.name.as_ref() == Some(name)),
        Some(PortOrName::Port(number)) => {
            ports.iter().find(|own| own.app_port.unwrap_or(own.port) == *number).or_else(same)
        }
        None => same(),
    }
}

fn served(service: &Service, workload: &WorkloadDocument) -> Vec<Served> {
    let name = ServiceName::new(service.metadata.namespace(), service.metadata.name.as_str());
    let ports = served_ports(service, workload).map(|(port, own)| Served {
        service: name.clone(),
        port: port.port,
        app_port: own.app_port.unwrap_or(own.port),
        protocol: app_protocol(own.app_protocol.as_deref().or(port.app_protocol.as_deref())),
    });
    ports.collect()
}
