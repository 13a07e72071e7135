//! Accepting connections: what came in, over which of the three ways, speaking what, and who takes it from there.

use crate::{
    connect_request,
    error::{Error, Kind},
    http1, http2,
    inbound::Inbound,
    io::{Io, Rewound},
    outbound::{Outbound, Target, Tunnel},
    tcp,
    telemetry::metrics::{Connection, ConnectionState, Direction, ServiceSeries},
    tls::{HandshakeFailure, Sniffed, client_hello},
    worker::Worker,
};
use bytes::BytesMut;
use std::{
    io,
    net::{IpAddr, SocketAddr},
    rc::Rc,
    time::{Duration, Instant},
};
use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, TcpStream},
    task::spawn_local,
    time::timeout,
};
use weft_config::{
    identity::{MeshProtocol, ServiceName, parse_mesh_server_name},
    snapshot::{AppProtocol, Limits, MtlsMode, Served},
};

/// Ports of protocols whose server speaks first: waiting for the client's first bytes would only delay them.
const SERVER_FIRST: [u16; 9] = [21, 22, 25, 110, 143, 587, 3306, 5672, 33060];

/// What the first bytes of a connection say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Spoken {
    Http1,
    Http2,
    Connect,
    Tls,
    Opaque,
}

/// Says whether somebody else listens there. Sharing a port among workers would share it with another sidecar too, and
/// each would get some of the other's calls.
pub(crate) fn unused(address: SocketAddr) -> io::Result<()> {
    if address.port() == 0 {
        return Ok(());
    }
    let domain = socket2::Domain::for_address(address);
    let socket = socket2::Socket::new(domain, socket2::Type::STREAM, Some(socket2::Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())
}

/// Binds a listener that shares its port with the other workers'.
pub(crate) fn bind(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let domain = socket2::Domain::for_address(address);
    let socket = socket2::Socket::new(domain, socket2::Type::STREAM, Some(socket2::Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(4096)?;
    Ok(socket.into())
}

/// Accepts until draining begins.
pub(crate) async fn accept<F: Future<Output = ()> + 'static>(
    worker: Rc<Worker>,
    listener: TcpListener,
    direction: Direction,
    serve: impl Fn(Rc<Worker>, TcpStream) -> F,
) {
    let drain = worker.drain(direction).clone();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = drain.started() => return,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of file descriptors, or the peer was gone before we came: neither ends the listener.
                tracing::warn!(%error, "accept failed");
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            }
        };
        let limit = worker.live().snapshot.mesh.limits.connections;
        if worker.connections.get() >= limit {
            worker.shard.error(Kind::Overloaded);
            drop(stream);
            continue;
        }
        // Fails only on a socket that is gone already; the first read tells.
        let _ = stream.set_nodelay(true);
        let open = Open::new(worker.clone(), direction);
        let served = serve(worker.clone(), stream);
        spawn_local(async move {
            served.await;
            drop(open);
        });
    }
}

/// Counts one open connection for as long as it lives.
struct Open {
    worker: Rc<Worker>,
    direction: Direction,
    _counted: Connection,
}

impl Open {
    fn new(worker: Rc<Worker>, direction: Direction) -> Self {
        worker.connections.set(worker.connections.get() + 1);
        worker.shared.open[direction as usize].fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let mut counted = worker.shard.connection_opened(direction);
        counted.enter(ConnectionState::Open);
        Self { worker, direction, _counted: counted }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.worker.connections.set(self.worker.connections.get() - 1);
        self.worker.shared.open[self.direction as usize].fetch_sub(1, std::sync::atomic::Ordering::Relaxed);
    }
}

/// One connection of our application.
pub(crate) async fn outbound(worker: Rc<Worker>, stream: TcpStream, target: Target) {
    outbound_io(worker, Io::plain(stream), target).await;
}

async fn outbound_io(worker: Rc<Worker>, mut io: Io, target: Target) {
    let live = worker.live();
    let limits = live.snapshot.mesh.limits.clone();
    let declared = match &target {
        Target::Named => AppProtocol::Auto,
        Target::Service { service, port } => {
            live.by_service(&worker, service, *port).map_or(AppProtocol::Auto, |p| p.port().protocol)
        }
    };
    drop(live);
    let spoken = match (&target, declared) {
        (Target::Named, _) => sniff(&mut io, limits.idle_timeout).await,
        (_, AppProtocol::Tcp) => Ok(Some(Spoken::Opaque)),
        (Target::Service { port, .. }, AppProtocol::Auto) if SERVER_FIRST.contains(port) => {
            Ok(Some(Spoken::Opaque))
        }
        // The client surely speaks first: it may take its time.
        (_, AppProtocol::Http1 | AppProtocol::Http2) => sniff(&mut io, limits.idle_timeout).await,
        _ => sniff(&mut io, limits.sniff_timeout).await,
    };
    let spoken = match (spoken, &target) {
        (Ok(Some(spoken)), _) => spoken,
        // A client that waits for the server to speak: nothing that we could read anything from.
        (Ok(None), Target::Service { .. }) => Spoken::Opaque,
        (Ok(None), Target::Named) | (Err(_), _) => return,
    };
    match (spoken, target) {
        (Spoken::Connect, Target::Named) => Box::pin(connect(worker, io, &limits)).await,
        (Spoken::Http1 | Spoken::Connect, target) => {
            let drain = worker.drain(Direction::Outbound).clone();
            let settings = http1::Settings::from(&limits);
            // Boxed, here and below: a connection at rest keeps room for the protocol it speaks and no other.
            Box::pin(http1::serve(io, Rc::new(Outbound { worker, target }), settings, drain)).await;
        }
        (Spoken::Http2, target) => {
            let drain = worker.drain(Direction::Outbound).clone();
            let settings = Rc::new(http2::Settings::from(&limits));
            // Why a connection ended is the peer's affair; what its requests came to is counted with them.
            let _ = Box::pin(http2::serve(io, Rc::new(Outbound { worker, target }), settings, drain)).await;
        }
        (Spoken::Tls | Spoken::Opaque, Target::Service { service, port }) => {
            Box::pin(opaque_outbound(worker, io, service, port, &limits)).await;
        }
        (Spoken::Tls | Spoken::Opaque, Target::Named) => {
            worker.shard.error(Kind::BadRequest);
            tracing::debug!("closed a connection to the proxy port that is neither HTTP nor CONNECT");
        }
    }
}

/// `CONNECT` as the first request of a connection: what follows is a connection to one service, or to one host outside.
async fn connect(worker: Rc<Worker>, mut io: Io, limits: &Limits) {
    let asked =
        match timeout(limits.header_timeout, connect_request::read(&mut io, limits.header_bytes)).await {
            Ok(Ok(asked)) => asked,
            Ok(Err(error)) => return connect_request::refuse(&worker, &mut io, &error).await,
            Err(_) => {
                let error = Error::new(Kind::HeaderTimeout, "the CONNECT request did not arrive in time");
                return connect_request::refuse(&worker, &mut io, &error).await;
            }
        };
    let outbound = Outbound { worker: worker.clone(), target: Target::Named };
    match outbound.tunnel_to(&asked).await {
        Ok(Tunnel::Service { service, port }) => {
            if io.write_all(connect_request::ESTABLISHED).await.is_ok() {
                Box::pin(outbound_io(worker, io, Target::Service { service, port })).await;
            }
        }
        Ok(Tunnel::External(peer)) => {
            if io.write_all(connect_request::ESTABLISHED).await.is_ok() {
                relay(&worker, Direction::Outbound, &worker.passthrough(), io, peer, limits).await;
            }
        }
        Err(error) => connect_request::refuse(&worker, &mut io, &error).await,
    }
}

/// Bytes that are not HTTP, to one service.
async fn opaque_outbound(worker: Rc<Worker>, io: Io, service: ServiceName, port: u16, limits: &Limits) {
    let outbound =
        Outbound { worker: worker.clone(), target: Target::Service { service: service.clone(), port } };
    match outbound.open_tcp(&service, port).await {
        Ok((upstream, _flight)) => {
            let series = worker.metrics().service(&service.to_string());
            relay(&worker, Direction::Outbound, &series, io, upstream, limits).await;
        }
        Err(error) => {
            worker.shard.error(error.kind);
            tracing::info!(%service, port, %error, "an opaque connection could not be passed on");
        }
    }
}

async fn relay(
    worker: &Worker,
    direction: Direction,
    service: &ServiceSeries,
    down: Io,
    up: Io,
    limits: &Limits,
) {
    let relayed = tcp::relay(down, up, limits.tcp_idle_timeout).await;
    match &relayed.end {
        tcp::End::Broken(error) => {
            tracing::debug!(%error, up = relayed.up, down = relayed.down, "a relay broke")
        }
        tcp::End::Idle => {
            tracing::debug!(up = relayed.up, down = relayed.down, "a relay was idle for too long")
        }
        tcp::End::Closed => {}
    }
    worker.shard.tcp_bytes(service, direction, relayed.up, relayed.down);
}

/// One connection of a peer.
pub(crate) async fn inbound(worker: Rc<Worker>, mut stream: TcpStream) {
    // Fails only if the peer is gone already.
    let Ok(source) = stream.peer_addr().map(|address| address.ip()) else { return };
    let live = worker.live();
    let limits = live.snapshot.mesh.limits.clone();
    let permissive = live.snapshot.mesh.mtls == MtlsMode::Permissive;
    drop(live);
    let mut prefix = BytesMut::new();
    let begun = Instant::now();
    let sniffed = loop {
        let left = limits.handshake_timeout.saturating_sub(begun.elapsed());
        let mut io = Io::plain(stream);
        let read = timeout(left, io.fill(&mut prefix)).await;
        stream = match io.into_plain() {
            Some(stream) => stream,
            None => return,
        };
        match read {
            Ok(Ok(n)) if n > 0 => {}
            // Nothing came, or it went away: a health check that only connects looks so.
            _ => return,
        }
        match client_hello(&prefix) {
            Sniffed::Incomplete => {}
            sniffed => break sniffed,
        }
    };
    match sniffed {
        Sniffed::Mesh | Sniffed::Foreign { alpn: false, .. } if !permissive || sniffed == Sniffed::Mesh => {
            Box::pin(mesh(worker, Rewound::new(prefix, stream), source, &limits)).await;
        }
        Sniffed::Incomplete => {}
        Sniffed::Mesh | Sniffed::Foreign { .. } | Sniffed::NotTls if !permissive => {
            let reason = if sniffed == Sniffed::NotTls {
                "plaintext_refused"
            } else {
                HandshakeFailure::NoProtocol.as_str()
            };
            worker.shard.handshake(Direction::Inbound, reason);
            Box::pin(refuse_unauthenticated(stream, &prefix)).await;
        }
        _ => {
            let mut io = Io::plain(stream);
            io.unread(prefix);
            Box::pin(plain(worker, io, source, &limits)).await;
        }
    }
}

/// A peer that speaks mesh TLS.
async fn mesh(worker: Rc<Worker>, stream: Rewound, source: IpAddr, limits: &Limits) {
    let accepted = match worker.shared.tls.accept(stream, limits.handshake_timeout).await {
        Ok(accepted) => accepted,
        Err(refused) => {
            worker.shard.handshake(Direction::Inbound, refused.reason.as_str());
            tracing::info!(reason = refused.reason.as_str(), detail = %refused.detail, "refused a peer");
            return;
        }
    };
    worker.shard.handshake(Direction::Inbound, "ok");
    let Some(served) = served(&worker, accepted.server_name.as_deref()) else {
        worker.shard.error(Kind::Misdirected);
        tracing::info!(peer = %accepted.peer, asked = ?accepted.server_name, "a peer asked for what is not served here");
        return misdirected(worker, accepted.io, accepted.protocol, limits).await;
    };
    let handler = Inbound::new(worker.clone(), Some(accepted.peer), source, served);
    serve_inbound(worker, accepted.io, handler, accepted.protocol, limits).await;
}

/// A peer without mesh TLS, where that is allowed.
async fn plain(worker: Rc<Worker>, mut io: Io, source: IpAddr, limits: &Limits) {
    let Some(served) = served(&worker, None) else { return };
    let spoken = match served.protocol {
        AppProtocol::Tcp => Spoken::Opaque,
        AppProtocol::Http1 | AppProtocol::Http2 => match sniff(&mut io, limits.idle_timeout).await {
            Ok(Some(spoken)) => spoken,
            Ok(None) | Err(_) => return,
        },
        AppProtocol::Auto => match sniff(&mut io, limits.sniff_timeout).await {
            Ok(spoken) => spoken.unwrap_or(Spoken::Opaque),
            Err(_) => return,
        },
    };
    let protocol = match spoken {
        Spoken::Http1 | Spoken::Connect => MeshProtocol::Http1,
        Spoken::Http2 => MeshProtocol::Http2,
        Spoken::Tls | Spoken::Opaque => MeshProtocol::Tcp,
    };
    let handler = Inbound::new(worker.clone(), None, source, served);
    serve_inbound(worker, io, handler, protocol, limits).await;
}

async fn serve_inbound(
    worker: Rc<Worker>,
    io: Io,
    handler: Inbound,
    protocol: MeshProtocol,
    limits: &Limits,
) {
    let drain = worker.drain(Direction::Inbound).clone();
    match protocol {
        MeshProtocol::Http1 => {
            Box::pin(http1::serve(io, Rc::new(handler), http1::Settings::from(limits), drain)).await;
        }
        MeshProtocol::Http2 | MeshProtocol::Http1Over2 => {
            let mut settings = http2::Settings::from(limits);
            settings.http1_messages = protocol == MeshProtocol::Http1Over2;
            let _ = Box::pin(http2::serve(io, Rc::new(handler), Rc::new(settings), drain)).await;
        }
        MeshProtocol::Tcp => opaque_inbound(&worker, io, &handler, limits).await,
    }
}

/// Bytes that are not HTTP, to our application.
async fn opaque_inbound(worker: &Rc<Worker>, io: Io, handler: &Inbound, limits: &Limits) {
    if let Err(error) = handler.authorize_connection(&worker.live()) {
        worker.shard.error(error.kind);
        tracing::info!(%error, "refused an opaque connection");
        return;
    }
    let app = handler.app().place.address;
    match worker.connector.tcp(app, limits.connect_timeout).await {
        Ok(stream) => {
            let series = worker.metrics().service(&handler.served().service.to_string());
            relay(worker, Direction::Inbound, &series, io, Io::plain(stream), limits).await;
        }
        Err(error) => {
            worker.shard.error(error.kind);
            tracing::warn!(%app, %error, "the application takes no connection");
        }
    }
}

/// The port of our application that a peer means: by the name it asked for, else the only one there is.
fn served(worker: &Worker, server_name: Option<&str>) -> Option<Served> {
    let live = worker.live();
    let serves = live.snapshot.workload.as_ref().map_or(&[][..], |w| &w.serves);
    match server_name.and_then(parse_mesh_server_name) {
        Some((service, port)) => serves.iter().find(|s| s.service == service && s.port == port).cloned(),
        None => serves.first().cloned(),
    }
}

/// Tells a peer, in its protocol, that it came to the wrong place.
async fn misdirected(worker: Rc<Worker>, mut io: Io, protocol: MeshProtocol, limits: &Limits) {
    let error =
        Error::new(Kind::Misdirected, "this sidecar does not stand beside the service that was asked for");
    if protocol == MeshProtocol::Http1 {
        connect_request::refuse(&worker, &mut io, &error).await;
    }
    // Over HTTP/2 the connection is closed before any request: the caller sees that nothing was sent and goes elsewhere.
    let _ = timeout(limits.handshake_timeout, io.shutdown()).await;
}

/// Answers a caller without mesh TLS in strict mode: a person with curl should see why.
async fn refuse_unauthenticated(mut stream: TcpStream, prefix: &[u8]) {
    const ANSWER: &[u8] = b"HTTP/1.1 403 Forbidden\r\nconnection: close\r\ncontent-type: text/plain\r\n\
        weft-error: forbidden\r\ncontent-length: 75\r\n\r\n\
        weft: forbidden: mTLS is strict here; call through the mesh (http_proxy=)\n\n";
    if matches!(classify(prefix), Some(Spoken::Http1)) {
        let _ = timeout(Duration::from_secs(1), async {
            stream.write_all(ANSWER).await?;
            stream.shutdown().await
        })
        .await;
    }
}

/// Reads until the protocol is clear; `None` if nothing came in time.
async fn sniff(io: &mut Io, limit: Duration) -> io::Result<Option<Spoken>> {
    let mut bytes = io.take_prefix();
    let found = timeout(limit, async {
        loop {
            if let Some(spoken) = classify(&bytes) {
                return Ok(Some(spoken));
            }
            if io.fill(&mut bytes).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    })
    .await;
    let nothing = bytes.is_empty();
    io.unread(bytes);
    match found {
        Ok(found) => found,
        Err(_) if nothing => Ok(None),
        // Something came, but not enough to be any protocol that we know.
        Err(_) => Ok(Some(Spoken::Opaque)),
    }
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What the first bytes are; `None` while they could still become several things.
fn classify(bytes: &[u8]) -> Option<Spoken> {
    let first = *bytes.first()?;
    if first == 22 {
        return match bytes.get(1) {
            None => None,
            Some(3) => Some(Spoken::Tls),
            Some(_) => Some(Spoken::Opaque),
        };
    }
    let shared = bytes.len().min(PREFACE.len());
    if bytes[..shared] == PREFACE[..shared] {
        return (shared == PREFACE.len()).then_some(Spoken::Http2);
    }
    // A method: up to 20 token characters, then a space.
    let method = bytes
        .iter()
        .take(21)
        .position(|b| !matches!(b, b'A'..=b'Z' | b'a'..=b'z' | b'-' | b'_' | b'0'..=b'9'));
    match method {
        Some(end) if end > 0 && bytes[end] == b' ' => {
            Some(if &bytes[..end] == b"CONNECT" { Spoken::Connect } else { Spoken::Http1 })
        }
        None if bytes.len() <= 20 => None,
        _ => Some(Spoken::Opaque),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn protocols_are_told_by_their_first_bytes() {
        assert_eq!(classify(b"GET / HTTP/1.1\r\n"), Some(Spoken::Http1));
        assert_eq!(classify(b"CONNECT a:1 HTTP/1.1\r\n"), Some(Spoken::Connect));
        assert_eq!(classify(PREFACE), Some(Spoken::Http2));
        assert_eq!(classify(b"\x16\x03\x01"), Some(Spoken::Tls));
        assert_eq!(classify(b"\x00\x00\x00\x08\x04\xd2\x16\x2f"), Some(Spoken::Opaque), "Postgres");
        assert_eq!(classify(b"*1\r\n$4\r\nPING\r\n"), Some(Spoken::Opaque), "Redis");
        assert_eq!(classify(b"PR"), None);
        assert_eq!(classify(b"PRI * HTTP/2.0\r\n"), None);
        assert_eq!(classify(b"PROPFIND / HTTP/1.1"), Some(Spoken::Http1));
        assert_eq!(classify(b""), None);
    }

    proptest! {
        #[test]
        fn more_bytes_never_change_the_answer(bytes in proptest::collection::vec(any::<u8>(), 0..64), cut in 0usize..64) {
            let cut = cut.min(bytes.len());
            if let Some(early) = classify(&bytes[..cut]) {
                prop_assert_eq!(classify(&bytes), Some(early));
            }
        }
    }
}
