//! Connections that are no requests: where a `CONNECT` leads, and opaque bytes to a service.

use super::{Outbound, destination::external};
use crate::{
    error::{Error, Kind},
    io::Io,
    message::split_authority,
    upstream::{Entry, InFlight, Outcome, Preference},
};
use http::uri::Authority;
use std::time::Instant;
use weft_config::{
    identity::{MeshProtocol, ServiceName},
    snapshot::{OutboundMode, Snapshot},
};

/// Where a `CONNECT` leads.
pub(crate) enum Tunnel {
    /// A service: what follows is looked into as on a listener of its own, so gRPC clients that use a proxy get all of
    /// the mesh.
    Service {
        /// The service.
        service: ServiceName,
        /// Its port.
        port: u16,
    },
    /// A host outside of the mesh, connected.
    External(Io),
}

impl Outbound {
    /// Finds where a `CONNECT` leads; connects at once if that is outside of the mesh.
    pub(crate) async fn tunnel_to(&self, authority: &Authority) -> Result<Tunnel, Error> {
        let worker = &self.worker;
        let live = worker.live();
        let text = authority.as_str();
        if let Some(found) = live.by_authority(worker, text) {
            return Ok(Tunnel::Service { service: found.name().clone(), port: found.port().port });
        }
        let (host, port) = match split_authority(text) {
            Some((host, Some(port))) => (host, port),
            _ => return Err(Error::new(Kind::BadRequest, format!("`{text}` is not a host and port"))),
        };
        if let Some(service) = Snapshot::host_candidates(host, worker.namespace())
            && let Some(found) = worker.ask_for(service).await?.by_authority(worker, text)
        {
            return Ok(Tunnel::Service { service: found.name().clone(), port: found.port().port });
        }
        if live.snapshot.mesh.outbound == OutboundMode::RegistryOnly {
            return Err(Error::new(
                Kind::UnknownService,
                format!("no service is called `{host}`, and MeshPolicy's `outbound` is registryOnly"),
            ));
        }
        let cluster = external(worker, text, host, port).await?;
        let mut tried = Vec::new();
        loop {
            if tried.len() >= cluster.len() {
                let detail = format!("no address of {text} takes a connection");
                return Err(Error::new(Kind::Connect, detail));
            }
            let flight =
                cluster.pick(&Preference { tried: &tried, ..Preference::default() }, Instant::now())?;
            let limit = live.snapshot.mesh.limits.connect_timeout;
            match worker.connector.tcp(flight.endpoint().place.address, limit).await {
                Ok(stream) => return Ok(Tunnel::External(Io::plain(stream))),
                Err(_) => tried.push(flight.endpoint().clone()),
            }
        }
    }

    /// Opens an opaque connection to a service; tries each endpoint at most once, three in all. What comes with it holds
    /// its place among what is in flight. Of an endpoint it tells only whether connections come about.
    pub(crate) async fn open_tcp(
        &self,
        service: &ServiceName,
        port: u16,
    ) -> Result<(Io, (InFlight, Entry)), Error> {
        let worker = &self.worker;
        let mut live = worker.live();
        if live.by_service(worker, service, port).is_none() {
            live = worker.ask_for(service.clone()).await?;
        }
        let found = live.by_service(worker, service, port).ok_or_else(|| {
            Error::new(Kind::UnknownService, format!("{service}:{port} is not known (yet); see /config_dump"))
        })?;
        let cluster = &found.own.cluster;
        let mut tried = Vec::new();
        let bounds = &cluster.traffic().bounds;
        let entry = cluster.guard.enter(Instant::now())?;
        loop {
            let begun = Instant::now();
            let flight = cluster.pick(&Preference { tried: &tried, ..Preference::default() }, begun)?;
            let endpoint = flight.endpoint().clone();
            let verdict = match entry.attempt(&endpoint.standing, begun) {
                Ok(verdict) => verdict,
                Err(refused) => {
                    tried.push(endpoint);
                    if tried.len() >= cluster.len().min(3) {
                        return Err(entry.refused(refused));
                    }
                    continue;
                }
            };
            let limits = &live.snapshot.mesh.limits;
            let connected = worker
                .connector
                .connect(&endpoint.place, service, port, MeshProtocol::Tcp, bounds, limits)
                .await;
            let now = Instant::now();
            let outcome = match &connected {
                Ok(_) => Outcome::Success,
                Err(error) => Outcome::of_error(error.kind),
            };
            verdict.record(outcome, now - begun, now);
            match connected {
                Ok(io) => return Ok((io, (flight, entry))),
                Err(error) => {
                    tried.push(endpoint);
                    if tried.len() >= cluster.len().min(3) {
                        return Err(error);
                    }
                }
            }
        }
    }
}
