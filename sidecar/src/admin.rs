//! The two HTTP servers for people and machines that watch a sidecar: admin on loopback, health and metrics for all.

mod page;
#[cfg(test)]
mod tests;
mod text;

use crate::telemetry::Metrics;
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    Request, Response, StatusCode, body::Incoming, header, server::conn::http1, service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use page::{Asked, Page};
use serde_json::Value;
use std::{
    convert::Infallible,
    net::{IpAddr, SocketAddr},
    pin::pin,
    sync::Arc,
    time::Duration,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    task::JoinSet,
    time::{sleep, timeout},
};
use weft_config::purge::Kind;

/// Connections to one server at a time; more wait to be accepted.
const CONNECTIONS: usize = 64;
/// Time for a request's head, and so for a connection to be idle.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// Time for a request's body.
const BODY_TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes of a request's body.
const BODY_LIMIT: usize = 4096;
/// Bytes and fields of a request's head.
const HEAD_LIMIT: usize = 16 * 1024;
const HEAD_FIELDS: usize = 64;
/// A connection is asked to end after this, and cut if it does not.
const CONNECTION_LIFE: Duration = Duration::from_secs(120);
/// Time that answers under way get when a connection is asked to end.
const GRACE: Duration = Duration::from_secs(2);

/// What the running sidecar shows of itself, and what it can be told.
pub(crate) trait Inspect: Send + Sync {
    /// Whether traffic is served, or why not (yet).
    fn ready(&self) -> Result<(), String>;
    /// Everything this sidecar decides by. No secrets.
    fn config_dump(&self) -> Value;
    /// Its certificate and the trust bundle. Never a key.
    fn certs(&self) -> Value;
    /// What is known about each backend: endpoints, connections, health.
    fn clusters(&self) -> Value;
    /// The routes in force.
    fn routes(&self) -> Value;
    /// What the response cache keeps and how it answers, with so many of the keys that are asked for most.
    fn cache(&self, top: usize) -> Value;
    /// The log's filter in force.
    fn log_level(&self) -> String;
    /// Puts another filter in force, or says why not.
    fn set_log_level(&self, filter: &str) -> Result<(), String>;
    /// Purges what is kept of answers: what, with its text, and of which service (empty for all). Gives what it was in
    /// one line and how many answers it was for, or why it is none. May look through everything that is kept.
    fn purge(&self, kind: Kind, text: &str, service: &str, soft: bool) -> Result<(String, u64), String>;
    /// Drains and exits, as on a first SIGTERM. Returns at once.
    fn drain(&self);
    /// Exits without waiting, as on a second SIGTERM. Returns at once.
    fn quit(&self);
}

/// Which of the two servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Surface {
    /// Everything; meant for loopback.
    Admin,
    /// Health and metrics only.
    Public,
}

/// What both servers answer from.
struct Context {
    inspect: Arc<dyn Inspect>,
    metrics: Arc<Metrics>,
}

/// Serves both until `shutdown`, and a moment longer for answers under way.
pub(crate) async fn serve(
    admin: TcpListener,
    public: TcpListener,
    inspect: Arc<dyn Inspect>,
    metrics: Arc<Metrics>,
    shutdown: impl Future<Output = ()>,
) {
    if let Ok(address) = admin.local_addr()
        && !address.ip().is_loopback()
    {
        tracing::warn!(
            %address,
            "the admin listener is not on loopback: it answers only callers on this machine; give --admin 127.0.0.1:15000"
        );
    }
    let context = Arc::new(Context { inspect, metrics });
    let (stop, stopped) = watch::channel(false);
    let stop_when_told = async move {
        shutdown.await;
        stop.send_replace(true);
    };
    tokio::join!(
        accept(admin, Surface::Admin, Arc::clone(&context), stopped.clone()),
        accept(public, Surface::Public, context, stopped),
        stop_when_told,
    );
}

async fn accept(
    listener: TcpListener,
    surface: Surface,
    context: Arc<Context>,
    mut stopped: watch::Receiver<bool>,
) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let accepted = async {
            let place = Arc::clone(&places).acquire_owned().await.ok();
            (place, listener.accept().await)
        };
        let (place, accepted) = tokio::select! {
            _ = stopped.wait_for(|stopped| *stopped) => break,
            accepted = accepted => accepted,
        };
        while connections.try_join_next().is_some() {}
        match accepted {
            Ok((stream, peer)) => {
                connections.spawn(connection(
                    stream,
                    peer,
                    surface,
                    Arc::clone(&context),
                    stopped.clone(),
                    place,
                ));
            }
            Err(error) => {
                // Usually no file descriptors are left; they come back, but not by asking again at once.
                tracing::warn!(%error, ?surface, "a connection could not be accepted");
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
    drop(listener);
    let all = async { while connections.join_next().await.is_some() {} };
    let _ = timeout(GRACE + Duration::from_millis(100), all).await;
}

async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    surface: Surface,
    context: Arc<Context>,
    mut stopped: watch::Receiver<bool>,
    _place: Option<OwnedSemaphorePermit>,
) {
    let service = service_fn(move |request| {
        let context = Arc::clone(&context);
        async move { Ok::<_, Infallible>(answer(context, surface, peer.ip(), request).await) }
    });
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(HEAD_LIMIT)
        .max_headers(HEAD_FIELDS)
        .serve_connection(TokioIo::new(stream), service);
    let mut serving = pin!(serving);
    let outcome = tokio::select! {
        outcome = serving.as_mut() => outcome,
        () = until_end(&mut stopped) => {
            serving.as_mut().graceful_shutdown();
            timeout(GRACE, serving).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = outcome {
        tracing::debug!(%error, %peer, ?surface, "an admin connection failed");
    }
}

async fn until_end(stopped: &mut watch::Receiver<bool>) {
    tokio::select! {
        _ = stopped.wait_for(|stopped| *stopped) => {}
        () = sleep(CONNECTION_LIFE) => {}
    }
}

async fn answer(
    context: Arc<Context>,
    surface: Surface,
    peer: IpAddr,
    request: Request<Incoming>,
) -> Response<Full<Bytes>> {
    let (head, body) = request.into_parts();
    let body = match timeout(BODY_TIMEOUT, Limited::new(body, BODY_LIMIT).collect()).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(_)) => {
            let page = Page::refusal(
                StatusCode::PAYLOAD_TOO_LARGE,
                format!("a request body has at most {BODY_LIMIT} bytes here"),
            );
            return respond(page);
        }
        Err(_) => {
            let page = Page::refusal(
                StatusCode::REQUEST_TIMEOUT,
                "the request's body did not arrive in time".into(),
            );
            return respond(page);
        }
    };
    if !page::takes_long(&head) {
        return respond(page::page(&context, surface, peer, &Asked { head: &head, body: &body }));
    }
    let page = move || page::page(&context, surface, peer, &Asked { head: &head, body: &body });
    respond(tokio::task::spawn_blocking(page).await.unwrap_or_else(|_| {
        Page::refusal(StatusCode::INTERNAL_SERVER_ERROR, "that failed; see the log".into())
    }))
}

fn respond(page: Page) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(page.body.into()));
    *response.status_mut() = page.status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static(page.content_type));
    headers.insert(header::CACHE_CONTROL, header::HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, header::HeaderValue::from_static("nosniff"));
    if let Some(allow) = page.allow {
        headers.insert(header::ALLOW, header::HeaderValue::from_static(allow));
    }
    response
}
