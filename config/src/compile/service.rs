//! A Service compiled: its ports, the routes and the traffic policy on each, and where each is served.

use super::attached::{Index, Policies};
use super::cache::{self, Side};
use super::caller::Caller;
use super::calls::{self, Own};
use super::findings::Findings;
use super::{of_kind, routes, split_name, traffic};
use crate::document::Located;
use crate::document::service::TransportProtocol;
use crate::identity::ServiceName;
use crate::snapshot::{AppProtocol, Endpoint, Port, Service};
use crate::wire;
use std::sync::Arc;

pub(super) fn compile(
    name: &str,
    documents: &[Located],
    served_at: &wire::Endpoints,
    caller: &Caller,
    findings: &mut Findings,
) -> Option<Service> {
    let (namespace, short) = split_name(name);
    let found = of_kind!(documents, Service)
        .find(|(_, service)| service.metadata.name == short && service.metadata.namespace() == namespace);
    let Some((_, document)) = found else {
        findings.error_in(&format!("service/{name}"), "there is no Service document in it".to_owned());
        return None;
    };
    let name = ServiceName::new(namespace, short);
    let policies = Index::new(documents);
    let meshed = document.spec.ports.iter().filter(|port| port.protocol == TransportProtocol::Tcp);
    let mut ports: Vec<Port> = meshed
        .map(|port| {
            let on_port = policies.on_port(&name, port.port);
            let traffic = traffic::compile(&on_port, &name, findings);
            let mut calls =
                calls::compile(&Policies::default(), &on_port, Own::default(), port.port, findings);
            calls.cache = cache::for_port(&policies, &name, port.port, Side::Outbound, findings);
            let caches = policies.caches_on_port(&name, port.port);
            let around =
                routes::Surroundings { policies: &policies, on_port, caches, port: port.port, caller };
            let routes = routes::compile(&name, port, documents, &around, findings);
            Port {
                port: port.port,
                name: port.name.as_deref().map(Into::into),
                protocol: app_protocol(port.app_protocol.as_deref()),
                routes: routes.table,
                rules: routes.rules,
                endpoints: endpoints(&name, port.port, served_at, findings),
                traffic: traffic.into(),
                calls: calls.into(),
            }
        })
        .collect();
    ports.sort_by_key(|port| port.port);
    ports.dedup_by_key(|port| port.port);
    Some(Service { name, version: "".into(), ports })
}

/// Names of what is spoken on a port, with what Weft does there. Kubernetes lets anyone add names, so one that is not
/// here is no error: the first bytes decide.
const APP_PROTOCOLS: [(&str, AppProtocol); 14] = [
    ("http", AppProtocol::Http1),
    ("http1", AppProtocol::Http1),
    ("kubernetes.io/ws", AppProtocol::Http1),
    ("http2", AppProtocol::Http2),
    ("h2c", AppProtocol::Http2),
    ("grpc", AppProtocol::Http2),
    ("kubernetes.io/h2c", AppProtocol::Http2),
    ("tcp", AppProtocol::Tcp),
    // The application's own TLS passes through.
    ("https", AppProtocol::Tcp),
    ("tls", AppProtocol::Tcp),
    ("kubernetes.io/wss", AppProtocol::Tcp),
    ("redis", AppProtocol::Tcp),
    ("mysql", AppProtocol::Tcp),
    ("postgresql", AppProtocol::Tcp),
];

/// What an `appProtocol` means; found out from the first bytes if there is none or an unknown one.
pub(crate) fn app_protocol(text: Option<&str>) -> AppProtocol {
    let known =
        APP_PROTOCOLS.iter().find(|(name, _)| text.is_some_and(|text| name.eq_ignore_ascii_case(text)));
    known.map_or(AppProtocol::Auto, |(_, protocol)| *protocol)
}

/// Where one port is served.
pub(super) fn endpoints(
    service: &ServiceName,
    port: u16,
    served_at: &wire::Endpoints,
    findings: &mut Findings,
) -> Arc<[Endpoint]> {
    let here = served_at.endpoints.iter().filter(|endpoint| endpoint.port == u32::from(port));
    here.filter_map(|endpoint| {
        let mut failed = |message: String| {
            findings.error_in(&format!("endpoints/{service}"), message);
            None
        };
        let address = match endpoint.address.parse() {
            Ok(address) => address,
            Err(_) => return failed(format!("`{}` is not an address and a port", endpoint.address)),
        };
        let identity = match endpoint.identity.as_str() {
            "" => None,
            text => match text.parse() {
                Ok(identity) => Some(identity),
                Err(error) => return failed(format!("{error}")),
            },
        };
        let mut labels: Vec<(Arc<str>, Arc<str>)> =
            endpoint.labels.iter().map(|(key, value)| (key.as_str().into(), value.as_str().into())).collect();
        labels.sort();
        Some(Endpoint {
            address,
            identity,
            workload: endpoint.workload.as_str().into(),
            zone: (!endpoint.zone.is_empty()).then(|| endpoint.zone.as_str().into()),
            labels: labels.into(),
            weight: endpoint.weight.max(1),
        })
    })
    .collect()
}
