//! A whole mesh in one process, for tests: a control plane, sidecars, applications that misbehave on command, and clients.
//!
//! Every sidecar and every control plane has a runtime of its own, so that it can be killed like a process: at once,
//! without any goodbye. All ports are given by the system, all files are in one temporary directory.

pub mod backend;
pub mod client;
pub mod load;
pub mod mesh;
pub mod metrics;
pub mod operator;
pub mod pki;
pub mod processes;
pub mod raw;
pub mod scripted;
pub mod stage;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Full, combinators::UnsyncBoxBody};
use std::{
    future::Future,
    net::SocketAddr,
    sync::Once,
    time::{Duration, Instant},
};

pub use backend::Backend;
pub use client::{Answer, Client};
pub use load::Load;
pub use mesh::{Beside, Mesh, Process};
pub use scripted::Scripted;

/// What goes wrong in a test's own client or application.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
/// Bodies of the test's clients and applications.
pub type Body = UnsyncBoxBody<Bytes, BoxError>;

/// How long a test waits for anything that should be there at once: the machines that tests run on are slow and shared.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Loopback, with a port that the system gives.
pub const ANYWHERE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

/// A body without bytes.
pub fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

/// A body that is there at once.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// Asks again and again until there is an answer; panics if there is none within `limit`.
pub async fn eventually<T, F>(what: &str, limit: Duration, mut probe: impl FnMut() -> F) -> T
where
    F: Future<Output = Option<T>>,
{
    let until = Instant::now() + limit;
    loop {
        if let Some(found) = probe().await {
            return found;
        }
        assert!(Instant::now() < until, "not within {limit:?}: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The result of `future`; panics if it takes longer than [`PATIENCE`].
pub async fn soon<F: Future>(what: &str, future: F) -> F::Output {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(output) => output,
        Err(_) => panic!("not within {PATIENCE:?}: {what}"),
    }
}

/// A port that nobody listens on now.
pub fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind(ANYWHERE).expect("binds");
    listener.local_addr().expect("bound").port()
}

/// Shows the log of sidecars and control planes where `WEFT_TEST_LOG` asks for it, as in `WEFT_TEST_LOG=debug`.
pub(crate) fn show_log() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        if let Ok(filter) = std::env::var("WEFT_TEST_LOG") {
            let filter = tracing_subscriber::EnvFilter::new(filter);
            let _ = tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().try_init();
        }
    });
}
