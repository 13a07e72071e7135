//! Where a request goes: a port of a service of the mesh, or a host outside of it.

use super::{Outbound, Target};
use crate::{
    error::{Error, Kind},
    live::{Live, LivePort},
    message::{authority, split_authority},
    upstream::Cluster,
    worker::Worker,
};
use http::request::Parts;
use std::{rc::Rc, time::Duration};
use weft_config::snapshot::{OutboundMode, Snapshot};

/// Time for a name outside the registry to resolve.
const RESOLVE: Duration = Duration::from_secs(2);

/// Where a request goes.
pub(super) enum Destination {
    /// A port of a service of the mesh.
    Service(Rc<LivePort>),
    /// A host outside of it.
    External(Rc<Cluster>),
}

impl Outbound {
    /// Where the request goes, if that is known already.
    pub(super) fn known(&self, live: &Live, request: &Parts) -> Option<Rc<LivePort>> {
        match &self.target {
            Target::Service { service, port } => live.by_service(&self.worker, service, *port),
            Target::Named => live.by_authority(&self.worker, authority(request)?),
        }
    }

    /// Finds where a request goes whose destination is not known yet: asks the control plane once, then the resolver.
    pub(super) async fn find(&self, live: &Rc<Live>, request: &Parts) -> Result<Destination, Error> {
        let worker = &self.worker;
        if let Target::Service { service, port } = &self.target {
            let found = worker.ask_for(service.clone()).await?.by_service(worker, service, *port);
            return found.map(Destination::Service).ok_or_else(|| {
                Error::new(
                    Kind::UnknownService,
                    format!("{service}:{port} is not known (yet); see /config_dump"),
                )
            });
        }
        let Some(authority) = authority(request) else {
            return Err(Error::new(Kind::BadRequest, "the request names no host"));
        };
        let Some((host, port)) = split_authority(authority).filter(|(host, _)| !host.is_empty()) else {
            return Err(Error::new(Kind::BadRequest, format!("`{authority}` is not a host and port")));
        };
        if let Some(service) = Snapshot::host_candidates(host, worker.namespace()) {
            let live = worker.ask_for(service.clone()).await?;
            if let Some(found) = live.by_authority(worker, authority) {
                return Ok(Destination::Service(found));
            }
            if let Some(known) = live.snapshot.service(&service) {
                let ports: Vec<String> = known.ports.iter().map(|p| p.port.to_string()).collect();
                return Err(Error::new(
                    Kind::UnknownService,
                    format!("{service} has no port {}; it has {}", port.unwrap_or(80), ports.join(", ")),
                ));
            }
        }
        if live.snapshot.mesh.outbound == OutboundMode::RegistryOnly {
            return Err(Error::new(
                Kind::UnknownService,
                format!("no service is called `{host}`, and MeshPolicy's `outbound` is registryOnly"),
            ));
        }
        let cluster = external(worker, authority, host, port.unwrap_or(80)).await?;
        Ok(Destination::External(cluster))
    }
}

/// A cluster for a host outside the mesh.
pub(super) async fn external(
    worker: &Worker,
    authority: &str,
    host: &str,
    port: u16,
) -> Result<Rc<Cluster>, Error> {
    if let Some(cluster) = worker.external(authority) {
        return Ok(cluster);
    }
    let name = match host.trim_start_matches('[').trim_end_matches(']') {
        // RFC 6761 section 6.3: always loopback, also where there is no hosts file to say so.
        name if name.eq_ignore_ascii_case("localhost") => "127.0.0.1",
        name => name,
    };
    let found = tokio::time::timeout(RESOLVE, tokio::net::lookup_host((name, port))).await;
    let addresses: Vec<_> = match found {
        Ok(Ok(addresses)) => addresses.take(16).collect(),
        Ok(Err(error)) => {
            return Err(Error::new(
                Kind::UnknownService,
                format!("`{host}` is no service of the mesh and does not resolve: {error}"),
            ));
        }
        Err(_) => {
            return Err(Error::new(
                Kind::UnknownService,
                format!("`{host}` did not resolve within {RESOLVE:?}"),
            ));
        }
    };
    let own = worker.shared.own_addresses.get().map_or(&[][..], Vec::as_slice);
    if addresses
        .iter()
        .any(|a| own.iter().any(|o| o.port() == a.port() && (o.ip() == a.ip() || a.ip().is_loopback())))
    {
        return Err(Error::new(
            Kind::BadRequest,
            format!("`{authority}` is this sidecar itself: the call would loop"),
        ));
    }
    if addresses.is_empty() {
        return Err(Error::new(Kind::UnknownService, format!("`{host}` has no address")));
    }
    Ok(worker.learn_external(authority, port, addresses))
}
