//! Making one connection to an endpoint: TCP, then mTLS where the endpoint has an identity.

use super::pool::patience;
use crate::{
    error::{Error, Kind},
    io::Io,
    telemetry::metrics::{Direction, Shard},
    tls::Tls,
};
use std::{net::SocketAddr, sync::Arc, time::Duration};
use tokio::{net::TcpStream, time::timeout};
use weft_config::{
    identity::{MeshProtocol, ServiceName, mesh_server_name},
    snapshot::{Bounds, Endpoint, Limits},
};

/// What a worker connects with.
#[derive(Clone)]
pub(crate) struct Connector {
    pub(crate) tls: Arc<Tls>,
    pub(crate) shard: Shard,
}

impl Connector {
    /// Connects to `endpoint` on behalf of calls to `service`:`port`.
    pub(crate) async fn connect(
        &self,
        endpoint: &Endpoint,
        service: &ServiceName,
        port: u16,
        protocol: MeshProtocol,
        bounds: &Bounds,
        limits: &Limits,
    ) -> Result<Io, Error> {
        let stream = self.tcp(endpoint.address, patience(bounds, limits)).await?;
        let Some(expected) = &endpoint.identity else { return Ok(Io::plain(stream)) };
        let name = mesh_server_name(service, port);
        let connected = self.tls.connect(stream, expected, &name, protocol, limits.handshake_timeout).await;
        match connected {
            Ok(mut io) => {
                self.shard.handshake(Direction::Outbound, "ok");
                io.hold(self.shard.upstream_connection(protocol));
                Ok(io)
            }
            Err(refused) => {
                self.shard.handshake(Direction::Outbound, refused.reason.as_str());
                tracing::debug!(peer = %endpoint.address, %expected, reason = refused.reason.as_str(), detail = %refused.detail, "TLS handshake failed");
                Err(Error::new(
                    Kind::Tls,
                    format!(
                        "mTLS with {expected} at {} failed: {}: {}; see /certs here and there",
                        endpoint.address,
                        refused.reason.as_str(),
                        refused.detail
                    ),
                ))
            }
        }
    }

    /// A TCP connection without delay of small writes.
    pub(crate) async fn tcp(&self, address: SocketAddr, limit: Duration) -> Result<TcpStream, Error> {
        match timeout(limit, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                // Fails only on a socket that is gone already; the next read tells.
                let _ = stream.set_nodelay(true);
                Ok(stream)
            }
            Ok(Err(error)) => {
                Err(Error::new(Kind::Connect, format!("no connection to {address}: {error}; is it running?")))
            }
            Err(_) => Err(Error::new(
                Kind::ConnectTimeout,
                format!("no connection to {address} within {limit:?}; is it reachable?"),
            )),
        }
    }
}
