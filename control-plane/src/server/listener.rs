//! The TLS side of the push port: accepts connections within bounds and finds out who is calling.

use crate::{issuer::Issuer, metrics::Metrics};
use rustls::server::Acceptor;
use std::{
    future::Future,
    io::{self, IoSlice},
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch},
    time::{Sleep, sleep, timeout},
};
use tokio_rustls::{LazyConfigAcceptor, server::TlsStream};
use tonic::transport::server::Connected;
use weft_config::identity::SpiffeId;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

const MAX_CONNECTIONS: usize = 20_000;
/// Handshakes cost processor time; more at once would only make all of them late.
const MAX_HANDSHAKES: usize = 256;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// A connection on which nobody has proven who they are is closed after this.
const PROOF_TIMEOUT: Duration = Duration::from_secs(10);

/// Who is at the other end of a connection.
#[derive(Clone, Debug)]
pub(super) struct Peer {
    /// Where it comes from.
    pub(super) address: SocketAddr,
    /// The identity of its certificate, if it has one.
    pub(super) identity: Option<SpiffeId>,
    proven: Arc<AtomicBool>,
}

impl Peer {
    /// Notes that a stream of this connection has shown who it is; the connection may stay.
    pub(super) fn has_proven(&self) {
        self.proven.store(true, Ordering::Release);
    }
}

/// Accepts until told to stop; each finished handshake goes to `connections`.
pub(super) async fn accept(
    listener: TcpListener,
    issuer: Arc<Issuer>,
    metrics: Arc<Metrics>,
    connections: mpsc::Sender<io::Result<Connection>>,
    mut stop: watch::Receiver<bool>,
) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let handshakes = Arc::new(Semaphore::new(MAX_HANDSHAKES));
    loop {
        let accepted = tokio::select! {
            () = crate::told(&mut stop) => return,
            accepted = listener.accept() => accepted,
        };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of file descriptors, most likely: accepting again at once would only burn the processor.
                tracing::warn!(%error, "cannot accept a connection of a sidecar");
                sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let failed = |reason: &str| metrics.handshakes_failed.with_label_values(&[reason]).inc();
        let Ok(place) = places.clone().try_acquire_owned() else {
            failed("too_many_connections");
            continue;
        };
        let (handshakes, issuer, metrics, connections) =
            (handshakes.clone(), issuer.clone(), metrics.clone(), connections.clone());
        tokio::spawn(async move {
            let shaken = timeout(HANDSHAKE_TIMEOUT, async {
                let _turn = handshakes.acquire().await.map_err(|_| "stopping")?;
                handshake(stream, address, &issuer).await
            })
            .await
            .unwrap_or(Err("timeout"));
            match shaken {
                Ok((stream, peer)) => {
                    let proof = Some(Box::pin(sleep(PROOF_TIMEOUT)));
                    let connection = Connection { stream, peer, proof, _place: place };
                    let _ = connections.send(Ok(connection)).await;
                }
                Err(reason) => {
                    tracing::debug!(%address, reason, "a TLS handshake of a sidecar failed");
                    metrics.handshakes_failed.with_label_values(&[reason]).inc();
                }
            }
        });
    }
}

async fn handshake(
    stream: TcpStream,
    address: SocketAddr,
    issuer: &Issuer,
) -> Result<(TlsStream<TcpStream>, Peer), &'static str> {
    let _ = stream.set_nodelay(true);
    // The configuration is taken once the client has spoken: a slow one never gets an outdated certificate.
    let start = LazyConfigAcceptor::new(Acceptor::default(), stream).await.map_err(|_| "no_tls")?;
    let stream = start.into_stream(issuer.server_tls()).await.map_err(|_| "refused")?;
    let (_, session) = stream.get_ref();
    let identity = match session.peer_certificates().and_then(|chain| chain.first()) {
        None => None,
        Some(leaf) => Some(identity(leaf, issuer.trust_domain())?),
    };
    Ok((stream, Peer { address, identity, proven: Arc::new(AtomicBool::new(false)) }))
}

/// The one identity of a certificate whose chain is already known to be good.
fn identity(leaf: &[u8], trust_domain: &str) -> Result<SpiffeId, &'static str> {
    let (_, parsed) = X509Certificate::from_der(leaf).map_err(|_| "bad_certificate")?;
    let names = parsed.subject_alternative_name().map_err(|_| "bad_certificate")?.ok_or("no_identity")?;
    let mut uris = names.value.general_names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    let (Some(uri), None) = (uris.next(), uris.next()) else { return Err("no_identity") };
    let identity: SpiffeId = uri.parse().map_err(|_| "no_identity")?;
    if *identity.trust_domain != *trust_domain {
        return Err("foreign_trust_domain");
    }
    Ok(identity)
}

/// One TLS connection, which is cut if nobody on it proves who they are.
pub(super) struct Connection {
    stream: TlsStream<TcpStream>,
    peer: Peer,
    proof: Option<Pin<Box<Sleep>>>,
    _place: OwnedSemaphorePermit,
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.proof.is_some() && self.peer.proven.load(Ordering::Acquire) {
            self.proof = None;
        }
        if let Some(proof) = &mut self.proof
            && proof.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "nobody proved who they are")));
        }
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
