//! `CONNECT` as the first request of a connection to the proxy port: reading it, finding its end, and refusing it.

use crate::{
    body::Body,
    context,
    error::{Error, Kind},
    io::Io,
    live::split_authority,
    outbound::{Outbound, external},
    upstream::InFlight,
    worker::Worker,
};
use bytes::{Buf, BytesMut};
use http::Uri;
use http::uri::Authority;
use std::time::Duration;
use tokio::{io::AsyncWriteExt, time::timeout};
use weft_config::{
    identity::{MeshProtocol, ServiceName},
    snapshot::{OutboundMode, Snapshot},
};

/// The answer to a `CONNECT` that is taken.
pub(crate) const ESTABLISHED: &[u8] = b"HTTP/1.1 200 Connection Established\r\n\r\n";

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

/// Reads the head of a `CONNECT` request and gives its authority; what follows it stays in `io`.
pub(crate) async fn read(io: &mut Io, limit: usize) -> Result<Authority, Error> {
    let mut bytes = io.take_prefix();
    loop {
        if let Some(end) = find(&bytes, b"\r\n\r\n") {
            let authority = parse(&bytes[..end + 4])?;
            bytes.advance(end + 4);
            io.unread(bytes);
            return Ok(authority);
        }
        if bytes.len() > limit {
            return Err(Error::new(
                Kind::HeadersTooLarge,
                format!("the CONNECT request is longer than {limit} bytes"),
            ));
        }
        match io.fill(&mut bytes).await {
            Ok(n) if n > 0 => {}
            _ => return Err(Error::new(Kind::Gone, "the connection ended within the CONNECT request")),
        }
    }
}

fn parse(head: &[u8]) -> Result<Authority, Error> {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut request = httparse::Request::new(&mut headers);
    let bad = |why: &str| Error::new(Kind::BadRequest, format!("the CONNECT request is malformed: {why}"));
    match request.parse(head) {
        Ok(httparse::Status::Complete(_)) => {}
        Ok(httparse::Status::Partial) => return Err(bad("it is incomplete")),
        Err(error) => return Err(bad(&error.to_string())),
    }
    let target: Uri =
        request.path.unwrap_or_default().parse().map_err(|_| bad("its target is no host:port"))?;
    let authority = target.authority().filter(|a| a.port_u16().is_some() && !a.host().is_empty());
    authority.cloned().ok_or_else(|| bad("its target is no host:port"))
}

fn find(bytes: &BytesMut, what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|w| w == what)
}

/// Answers with an error and closes.
pub(crate) async fn refuse(worker: &Worker, io: &mut Io, error: &Error) {
    worker.shard.error(error.kind);
    let response = context::answer(error, false);
    let body = match response.body() {
        Body::Full(bytes) => bytes.clone(),
        _ => Default::default(),
    };
    let mut head =
        format!("HTTP/1.1 {}\r\nConnection: close\r\nContent-Length: {}\r\n", response.status(), body.len());
    for (name, value) in response.headers() {
        head.push_str(&format!("{name}: {}\r\n", value.to_str().unwrap_or_default()));
    }
    head.push_str("\r\n");
    let _ = timeout(Duration::from_secs(1), async {
        io.write_all(head.as_bytes()).await?;
        io.write_all(&body).await?;
        io.shutdown().await
    })
    .await;
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
            let flight = cluster.pick(&tried).filter(|_| tried.len() < cluster.len()).ok_or_else(|| {
                Error::new(Kind::Connect, format!("no address of {text} takes a connection"))
            })?;
            let limit = live.snapshot.mesh.limits.connect_timeout;
            match worker.connector.tcp(flight.endpoint().place.address, limit).await {
                Ok(stream) => return Ok(Tunnel::External(Io::plain(stream))),
                Err(_) => tried.push(flight.endpoint().clone()),
            }
        }
    }

    /// Opens an opaque connection to a service; tries each endpoint at most once, three in all.
    pub(crate) async fn open_tcp(&self, service: &ServiceName, port: u16) -> Result<(Io, InFlight), Error> {
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
        let mut last = None;
        while tried.len() < cluster.len().min(3) {
            let Some(flight) = cluster.pick(&tried) else { break };
            let endpoint = flight.endpoint().clone();
            let limits = &live.snapshot.mesh.limits;
            let connected =
                worker.connector.connect(&endpoint.place, service, port, MeshProtocol::Tcp, limits).await;
            match connected {
                Ok(io) => return Ok((io, flight)),
                Err(error) => {
                    last = Some(error);
                    tried.push(endpoint);
                }
            }
        }
        Err(last.unwrap_or_else(|| {
            Error::new(
                Kind::NoEndpoint,
                format!("{service}:{port} has no endpoint; is a workload of it running?"),
            )
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_target_must_be_host_and_port() {
        let ok = parse(b"CONNECT db:5432 HTTP/1.1\r\nHost: db:5432\r\n\r\n").expect("valid");
        assert_eq!(ok.as_str(), "db:5432");
        for bad in [
            "CONNECT db HTTP/1.1\r\n\r\n",
            "CONNECT /x HTTP/1.1\r\n\r\n",
            "CONNECT http://a/b HTTP/1.1\r\n\r\n",
        ] {
            assert_eq!(parse(bad.as_bytes()).expect_err(bad).kind, Kind::BadRequest, "{bad}");
        }
    }
}
