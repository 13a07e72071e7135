//! The push port: gRPC over TLS, one stream per sidecar, each of which proves who it is before anything else.

mod hello;
mod listener;
mod stream;

pub(crate) use hello::{Caller, Refused as RefusedCall, refuse};

use crate::{mesh::Mesh, told};
use anyhow::{Context, Result};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};
use tokio::{
    net::TcpListener,
    sync::{Semaphore, mpsc, watch},
    time::timeout,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status, Streaming};
use weft_config::wire::{ToControlPlane, ToSidecar, mesh_server, to_control_plane};

/// How long a new stream may take to say who it is.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
/// A sidecar sends names and short answers; a big Subscribe is the longest.
const MAX_MESSAGE_IN: usize = 4 << 20;
/// Streams that have not said yet who they are; more wait, so that strangers cannot fill the memory.
const MAX_UNKNOWN: usize = 512;
/// A connection carries one stream; a second one shortly, while it is replaced.
const MAX_STREAMS: u32 = 8;
const KEEPALIVE: Duration = Duration::from_secs(10);
/// Streams that do not end by themselves when the control plane stops are cut after this.
const STOP_TIMEOUT: Duration = Duration::from_secs(3);

/// Serves sidecars until told to stop.
pub(crate) async fn serve(
    listener: TcpListener,
    mesh: Arc<Mesh>,
    mut stop: watch::Receiver<bool>,
) -> Result<()> {
    let (sender, connections) = mpsc::channel(64);
    let accepting = tokio::spawn(listener::accept(
        listener,
        mesh.issuer.clone(),
        mesh.metrics.clone(),
        sender,
        stop.clone(),
    ));
    let service = Service {
        mesh,
        stop: stop.clone(),
        last_stream: Arc::new(AtomicU64::new(0)),
        unknown: Semaphore::new(MAX_UNKNOWN),
    };
    let service = mesh_server::MeshServer::new(service).max_decoding_message_size(MAX_MESSAGE_IN);
    let mut stopping = stop.clone();
    let served = tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .http2_max_header_list_size(16 * 1024)
        .max_concurrent_streams(MAX_STREAMS)
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(4 << 20)
        .add_service(service)
        .serve_with_incoming_shutdown(ReceiverStream::new(connections), async move {
            told(&mut stopping).await;
        });
    let cut = async move {
        told(&mut stop).await;
        tokio::time::sleep(STOP_TIMEOUT).await;
    };
    let ended = tokio::select! {
        served = served => served.context("the push port failed"),
        () = cut => {
            tracing::warn!("some sidecars did not close their streams in time; they were cut");
            Ok(())
        }
    };
    accepting.abort();
    ended
}

struct Service {
    mesh: Arc<Mesh>,
    stop: watch::Receiver<bool>,
    last_stream: Arc<AtomicU64>,
    unknown: Semaphore,
}

#[tonic::async_trait]
impl mesh_server::Mesh for Service {
    type SyncStream = ReceiverStream<Result<ToSidecar, Status>>;

    async fn sync(
        &self,
        request: Request<Streaming<ToControlPlane>>,
    ) -> Result<Response<Self::SyncStream>, Status> {
        let peer = request.extensions().get::<listener::Peer>().cloned();
        let peer =
            peer.ok_or_else(|| Status::internal("the connection does not say who is at its other end"))?;
        let mut inbound = request.into_inner();
        let caller = match self.caller(&mut inbound, &peer).await {
            Ok(caller) => caller,
            Err(hello::Refused { reason, status }) => {
                self.mesh.metrics.streams_refused.with_label_values(&[reason]).inc();
                tracing::warn!(peer = %peer.address, reason, "a stream was refused: {}", status.message());
                return Err(status);
            }
        };
        peer.has_proven();
        // One place: what is not read yet by the sidecar is decided as late as possible.
        let (outbound, answers) = mpsc::channel(1);
        let stream = stream::Stream {
            mesh: self.mesh.clone(),
            id: self.last_stream.fetch_add(1, Ordering::Relaxed) + 1,
            caller,
            peer: peer.address,
            inbound,
            outbound,
            stop: self.stop.clone(),
        };
        tokio::spawn(stream.run());
        Ok(Response::new(ReceiverStream::new(answers)))
    }
}

impl Service {
    async fn caller(
        &self,
        inbound: &mut Streaming<ToControlPlane>,
        peer: &listener::Peer,
    ) -> Result<Caller, hello::Refused> {
        let first = async {
            let _turn = self.unknown.acquire().await.map_err(|_| Status::unavailable("stopping"))?;
            inbound.message().await
        };
        let first = timeout(HELLO_TIMEOUT, first).await.map_err(|_| {
            hello::refuse(Code::DeadlineExceeded, "no_hello", "no Hello came; it has to be the first message")
        })?;
        let first = first.map_err(|status| hello::Refused { reason: "no_hello", status })?;
        let Some(to_control_plane::Message::Hello(hello)) = first.and_then(|first| first.message) else {
            let message = "the first message of a stream has to be Hello";
            return Err(hello::refuse(Code::Unauthenticated, "no_hello", message));
        };
        let caller = hello::check(
            &hello,
            peer,
            &self.mesh.tokens,
            self.mesh.issuer.trust_domain(),
            SystemTime::now(),
        )?;
        self.mesh.check_account(&caller).await?;
        Ok(caller)
    }
}
