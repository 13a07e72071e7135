//! What every service does alike: listen on $PORT, say who answered, and stop without cutting anyone off.

use anyhow::Context;
use axum::{
    Router,
    extract::{Request, State},
    http::{HeaderValue, header},
    middleware::{self, Next},
    response::Response,
    routing::get,
    serve::ListenerExt,
};
use std::{future::IntoFuture, net::Ipv4Addr, sync::Arc, time::Duration};
use tokio::{net::TcpListener, sync::watch};

/// The answer's header that names the replica.
pub(crate) const SERVED_BY: &str = "x-served-by";
/// The answer's header that names the replica's version.
pub(crate) const VERSION: &str = "x-version";

/// What is in flight when the service is told to stop may take this long.
const DRAIN: Duration = Duration::from_secs(10);

/// This running instance.
#[derive(Clone, Debug)]
pub(crate) struct Replica {
    /// Its own name.
    pub(crate) name: Arc<str>,
    /// Its version.
    pub(crate) version: Arc<str>,
}

impl Replica {
    /// This process as a replica of a service. Its name is the one `weft up` gave it, otherwise made of its port.
    pub(crate) fn of(service: &str, version: &str) -> Self {
        let name = std::env::var("WEFT_WORKLOAD").unwrap_or_else(|_| match std::env::var("PORT") {
            Ok(port) => format!("{service}-{version}-{port}"),
            Err(_) => format!("{service}-{version}"),
        });
        Self { name: name.into(), version: version.into() }
    }
}

/// Serves until SIGTERM or Ctrl-C, and then finishes what is in flight.
pub(crate) async fn serve(replica: Replica, router: Router) -> anyhow::Result<()> {
    let port =
        std::env::var("PORT").context("PORT is not set: it says where to listen, for example PORT=4001")?;
    let port: u16 =
        port.trim().parse().with_context(|| format!("PORT is `{port}`; expected a port number"))?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))
        .await
        .with_context(|| format!("127.0.0.1:{port} cannot be listened on; is it in use?"))?;
    tracing::info!("{} listens on {}", replica.name, listener.local_addr()?);
    // An answer is not to wait for the caller's acknowledgement of what was sent before.
    let listener = listener.tap_io(|stream| {
        let _ = stream.set_nodelay(true);
    });

    let router = router
        .route("/health", get(async || "ok\n"))
        .layer(middleware::from_fn_with_state(Stamp::of(&replica)?, stamp));
    let (stop, mut stopped) = watch::channel(false);
    tokio::spawn(async move {
        told_to_stop().await;
        let _ = stop.send(true);
    });
    let mut draining = stopped.clone();
    let server = axum::serve(listener, router)
        .with_graceful_shutdown(async move {
            let _ = draining.wait_for(|stop| *stop).await;
        })
        .into_future();
    let overdue = async {
        let _ = stopped.wait_for(|stop| *stop).await;
        tokio::time::sleep(DRAIN).await;
    };
    tokio::select! {
        result = server => result.context("the listener failed")?,
        () = overdue => tracing::warn!("{} stops with requests in flight after {} s", replica.name, DRAIN.as_secs()),
    }
    Ok(())
}

/// Returns on SIGTERM or Ctrl-C.
pub(crate) async fn told_to_stop() {
    use tokio::signal::unix::{SignalKind, signal};
    let terminated = async {
        match signal(SignalKind::terminate()) {
            Ok(mut signals) => {
                signals.recv().await;
            }
            // Without a handler the signal ends the process at once, which is the best that is left.
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        () = terminated => {}
        _ = tokio::signal::ctrl_c() => {}
    }
}

#[derive(Clone)]
struct Stamp {
    name: HeaderValue,
    version: HeaderValue,
}

impl Stamp {
    fn of(replica: &Replica) -> anyhow::Result<Self> {
        let value = |text: &str| HeaderValue::from_str(text).with_context(|| format!("`{text}` is no name"));
        Ok(Self { name: value(&replica.name)?, version: value(&replica.version)? })
    }
}

async fn stamp(State(stamp): State<Stamp>, request: Request, next: Next) -> Response {
    let mut answer = next.run(request).await;
    let headers = answer.headers_mut();
    headers.insert(SERVED_BY, stamp.name);
    headers.insert(VERSION, stamp.version);
    // Carts, orders, addresses: what nothing else is said of is nobody's to keep.
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    answer
}
