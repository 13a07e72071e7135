//! The connection to the control plane: TCP, TLS with the control plane's own identity, and the one gRPC stream on it.

use super::ControlPlane;
use crate::tls::{Tls, certificates};
use futures_util::future::BoxFuture;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use std::{error::Error, io, pin::Pin, sync::Arc, time::Duration};
use tokio::{
    net::TcpStream,
    sync::mpsc,
    time::{Sleep, timeout},
};
use tokio_rustls::TlsConnector;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Status, Streaming,
    transport::{Channel, Endpoint},
};
use weft_config::{identity::SpiffeId, wire};

/// Namespace and service account of the control plane's identity.
const CONTROL_PLANE: (&str, &str) = ("weft-system", "control-plane");
/// For each step of connecting.
const STEP: Duration = Duration::from_secs(5);
/// How often a silent connection is asked whether it still lives, and how long it may take to say so.
const KEEPALIVE: Duration = Duration::from_secs(5);
/// No message is larger.
const MAX_MESSAGE: usize = 64 * 1024 * 1024;
/// Messages that wait for a control plane which does not read.
const MAX_UNSENT: usize = 1024;

/// What is sent.
pub(super) type Sender = mpsc::Sender<wire::ToControlPlane>;

/// Where the connection stands.
pub(super) enum Link {
    /// Nothing is tried before this moment.
    Waiting(Pin<Box<Sleep>>),
    /// TCP and TLS are being made.
    Dialing(BoxFuture<'static, Result<Channel, Failure>>),
    /// Messages can be sent; the control plane has not taken the stream yet.
    Opening(Sender, BoxFuture<'static, Result<Streaming<wire::ToSidecar>, Failure>>),
    /// The stream stands.
    Open(Sender, Box<Streaming<wire::ToSidecar>>),
}

/// What happened on the connection.
pub(super) enum Event {
    /// The wait is over.
    Due,
    /// TCP and TLS stand.
    Dialed(Channel),
    /// The control plane took the stream.
    Opened(Streaming<wire::ToSidecar>),
    /// It said something.
    Message(wire::ToSidecar),
    /// It is gone, or never came.
    Failed(Failure),
}

/// Why there is no connection.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) reason: String,
    /// True if somebody was there: then it may be our credentials that they do not like.
    pub(super) reached: bool,
}

impl Failure {
    pub(super) fn reached(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), reached: true }
    }

    pub(super) fn unreached(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), reached: false }
    }
}

impl Link {
    pub(super) fn wait(duration: Duration) -> Self {
        Self::Waiting(Box::pin(tokio::time::sleep(duration)))
    }

    /// Starts to connect. `certificate` says whether to present our own.
    pub(super) fn dial(to: ControlPlane, tls: Arc<Tls>, certificate: bool) -> Self {
        Self::Dialing(Box::pin(async move { dial(&to, &tls, certificate).await }))
    }

    /// Opens the stream with `first` under way at once, without waiting for anything.
    pub(super) fn open(channel: Channel, first: Vec<wire::to_control_plane::Message>) -> Self {
        let (sender, receiver) = mpsc::channel(MAX_UNSENT);
        for message in first {
            // There is room: the channel is new and the first messages are few.
            drop(sender.try_send(wire::ToControlPlane { message: Some(message) }));
        }
        let opening = async move {
            let mut client =
                wire::mesh_client::MeshClient::new(channel).max_decoding_message_size(MAX_MESSAGE);
            match timeout(STEP, client.sync(ReceiverStream::new(receiver))).await {
                Ok(Ok(response)) => Ok(response.into_inner()),
                Ok(Err(status)) => Err(Failure::reached(describe(&status))),
                Err(_) => {
                    Err(Failure::reached(format!("it did not take the stream within {} s", STEP.as_secs())))
                }
            }
        };
        Self::Opening(sender, Box::pin(opening))
    }

    /// What can be sent on, if anything.
    pub(super) fn sender(&self) -> Option<&Sender> {
        match self {
            Self::Opening(sender, _) | Self::Open(sender, _) => Some(sender),
            Self::Waiting(_) | Self::Dialing(_) => None,
        }
    }

    /// The next event. Nothing is lost if this is dropped before it comes.
    pub(super) async fn next(&mut self) -> Event {
        match self {
            Self::Waiting(sleep) => {
                sleep.as_mut().await;
                Event::Due
            }
            Self::Dialing(dialing) => dialing.await.map_or_else(Event::Failed, Event::Dialed),
            Self::Opening(_, opening) => opening.await.map_or_else(Event::Failed, Event::Opened),
            Self::Open(_, stream) => match stream.message().await {
                Ok(Some(message)) => Event::Message(message),
                Ok(None) => Event::Failed(Failure::reached("it closed the stream")),
                Err(status) => Event::Failed(Failure::reached(describe(&status))),
            },
        }
    }
}

async fn dial(to: &ControlPlane, tls: &Tls, certificate: bool) -> Result<Channel, Failure> {
    let (config, name) = prepare(to, tls, certificate).map_err(Failure::unreached)?;
    let tcp = match timeout(STEP, TcpStream::connect(&to.address)).await {
        Ok(Ok(tcp)) => tcp,
        Ok(Err(error)) => return Err(Failure::unreached(format!("cannot connect: {error}"))),
        Err(_) => {
            let reason = format!("it did not take the connection within {} s", STEP.as_secs());
            return Err(Failure::unreached(reason));
        }
    };
    tcp.set_nodelay(true).map_err(|error| Failure::unreached(error.to_string()))?;
    let handshake = Box::pin(TlsConnector::from(Arc::new(config)).connect(name, tcp));
    let stream = match timeout(STEP, handshake).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Err(Failure::reached(format!("no TLS with it: {error}"))),
        Err(_) => {
            let reason = format!("no TLS handshake with it within {} s", STEP.as_secs());
            return Err(Failure::unreached(reason));
        }
    };

    let mut stream = Some(TokioIo::new(stream));
    let connector = tower::service_fn(move |_| {
        // One connection and no other: reconnecting is our own business, with its own waits.
        std::future::ready(stream.take().ok_or_else(|| io::Error::other("the connection is gone")))
    });
    let endpoint = Endpoint::from_shared(format!("http://{}", to.address))
        .map_err(|_| Failure::unreached(format!("`{}` is not of the form HOST:PORT", to.address)))?
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(1024 * 1024)
        .initial_connection_window_size(4 * 1024 * 1024);
    match timeout(STEP, endpoint.connect_with_connector(connector)).await {
        Ok(channel) => {
            channel.map_err(|error| Failure::reached(format!("no HTTP/2 with it: {}", causes(&error))))
        }
        Err(_) => Err(Failure::reached(format!("no HTTP/2 with it within {} s", STEP.as_secs()))),
    }
}

/// The TLS side of a connection, and the name it asks for.
fn prepare(
    to: &ControlPlane,
    tls: &Tls,
    certificate: bool,
) -> Result<(ClientConfig, ServerName<'static>), String> {
    // Read anew each time: the file may be rotated, or not be there yet.
    let mut roots = certificates("--ca-file", &to.ca_file).map_err(|error| error.to_string())?;
    roots.extend(tls.roots().iter().cloned());
    let expected = SpiffeId {
        trust_domain: tls.trust_domain().clone(),
        namespace: CONTROL_PLANE.0.into(),
        service_account: CONTROL_PLANE.1.into(),
    };
    let mut config = tls.client_config(roots, expected, certificate).map_err(|error| error.to_string())?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    let host = to.address.rsplit_once(':').map_or(to.address.as_str(), |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    let name = ServerName::try_from(host).map_err(|_| "its address holds no valid host name".to_owned())?;
    Ok((config, name))
}

/// A status without the metadata that its own form prints.
fn describe(status: &Status) -> String {
    let mut text = if status.message().is_empty() {
        format!("{:?}", status.code())
    } else {
        format!("{:?}: {}", status.code(), status.message())
    };
    if let Some(source) = status.source() {
        text.push_str(": ");
        text.push_str(&causes(source));
    }
    text
}

/// An error with everything beneath it.
fn causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        text.push_str(": ");
        text.push_str(&error.to_string());
        next = error.source();
    }
    text
}
