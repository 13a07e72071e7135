//! Waiting, never for ever, until what was started can be used.

use super::{plan::Instance, supervise::Health};
use crate::mesh;
use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};
use tokio::{net::TcpStream, sync::watch};

/// Between two looks.
const LOOK: Duration = Duration::from_millis(50);
/// For one look.
const ATTEMPT: Duration = Duration::from_secs(2);

/// Returns as soon as a GET is answered with 200; says what came instead if it never is within that time.
pub(super) async fn answers(address: &str, path: &str, within: Duration) -> Result<(), String> {
    let deadline = Instant::now() + within;
    loop {
        let error = match tokio::time::timeout(ATTEMPT, mesh::get(address, path)).await {
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(error)) => format!("{error:#}"),
            Err(_) => format!("{address} does not answer"),
        };
        if Instant::now() >= deadline {
            return Err(error);
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Waits until all sidecars run, so that applications find them; gives the names of those that do not by then.
pub(super) async fn sidecars(instances: &[Instance], within: Duration) -> Vec<String> {
    let waits = instances.iter().filter_map(|instance| {
        let sidecar = instance.sidecar?;
        Some(async move {
            let lives = answers(&sidecar.admin.to_string(), "/live", within).await;
            lives.err().map(|error| format!("the sidecar of {}: {error}", instance.full_name()))
        })
    });
    futures_util::future::join_all(waits).await.into_iter().flatten().collect()
}

/// Waits until all applications listen on all their ports and their sidecars take calls for them, or they have come to
/// an end of their own; says what is missing by then.
pub(super) async fn applications(
    instances: &[Instance],
    health: &[watch::Receiver<Health>],
    within: Duration,
) -> Vec<String> {
    let waits = instances.iter().zip(health).map(|(instance, health)| async move {
        let deadline = Instant::now() + within;
        for port in &instance.ports {
            loop {
                if *health.borrow() == Health::Finished {
                    return None;
                }
                if *health.borrow() == Health::Up && listens(port.application).await {
                    break;
                }
                if Instant::now() >= deadline {
                    return Some(format!("{} does not listen on {}", instance.full_name(), port.application));
                }
                tokio::time::sleep(LOOK).await;
            }
        }
        let sidecar = instance.sidecar?;
        let left = deadline.saturating_duration_since(Instant::now()).max(ATTEMPT);
        let ready = answers(&sidecar.admin.to_string(), "/ready", left).await;
        ready.err().map(|error| format!("{}: {error}", instance.full_name()))
    });
    futures_util::future::join_all(waits).await.into_iter().flatten().collect()
}

async fn listens(address: SocketAddr) -> bool {
    matches!(tokio::time::timeout(ATTEMPT, TcpStream::connect(address)).await, Ok(Ok(_)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::up::plan::tests::instance;

    #[tokio::test]
    async fn an_application_counts_once_it_listens() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let mut there = instance("there");
        there.sidecar = None;
        there.ports[0].application = listener.local_addr().expect("address");
        let mut missing = instance("missing");
        missing.ports[0].application = ([127, 0, 0, 1], 1).into();
        let mut finished = missing.clone();
        finished.name = "finished".into();
        let (_up, up) = watch::channel(Health::Up);
        let (_done, done) = watch::channel(Health::Finished);
        let slow =
            applications(&[there, missing, finished], &[up.clone(), up, done], Duration::from_millis(120))
                .await;
        assert_eq!(slow, ["shop/missing does not listen on 127.0.0.1:1"]);
    }
}
