//! One sidecar's stream, from its Hello to its end.

use super::hello::Caller;
use crate::{issuer, mesh::Mesh, publisher::StreamId, told};
use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};
use tokio::sync::{mpsc, watch};
use tonic::{Status, Streaming};
use weft_config::wire::{self, ToControlPlane, ToSidecar, to_control_plane, to_sidecar};

/// A sidecar that does not answer an update for this long is cut off; it comes back with what it holds.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// Answers that wait because the sidecar does not read.
const MAX_REPLIES: usize = 8;
/// Certificate requests: so many at once, and one more for each second after.
const CERTIFICATE_BURST: f64 = 10.0;

/// Serves a stream whose caller is known.
pub(super) struct Stream {
    pub(super) mesh: Arc<Mesh>,
    pub(super) id: StreamId,
    pub(super) caller: Caller,
    pub(super) peer: SocketAddr,
    pub(super) inbound: Streaming<ToControlPlane>,
    pub(super) outbound: mpsc::Sender<Result<ToSidecar, Status>>,
    pub(super) stop: watch::Receiver<bool>,
}

/// What a stream may still ask for.
struct Allowance {
    certificates: f64,
    since: Instant,
}

impl Allowance {
    fn take_certificate(&mut self, now: Instant) -> bool {
        let earned = now.duration_since(self.since).as_secs_f64();
        self.since = now;
        self.certificates = (self.certificates + earned).min(CERTIFICATE_BURST);
        if self.certificates < 1.0 {
            return false;
        }
        self.certificates -= 1.0;
        true
    }
}

impl Stream {
    /// Runs until either side ends it.
    pub(super) async fn run(mut self) {
        let wake = self.mesh.connected(self.id, &self.caller, self.peer);
        tracing::info!(
            workload = %self.caller.instance.workload, namespace = %self.caller.instance.namespace,
            identity = %self.caller.identity, peer = %self.peer, "a sidecar has connected"
        );
        let ended = self.serve(&wake).await;
        self.mesh.disconnected(self.id, &self.caller.instance).await;
        let why = match &ended {
            Ok(()) => "the sidecar closed it",
            Err(status) => status.message(),
        };
        tracing::info!(
            workload = %self.caller.instance.workload, namespace = %self.caller.instance.namespace, why,
            "a sidecar's stream has ended"
        );
        if let Err(status) = ended {
            // Nobody may be reading any more.
            let _ = self.outbound.try_send(Err(status));
        }
    }

    async fn serve(&mut self, wake: &tokio::sync::Notify) -> Result<(), Status> {
        let (purge_log, purge_number) = self.mesh.last_purge();
        let welcome = wire::Welcome {
            control_plane: concat!("weft-control-plane ", env!("CARGO_PKG_VERSION")).to_owned(),
            trust_domain: self.mesh.issuer.trust_domain().to_string(),
            lease_interval_ms: self.mesh.lease_interval().as_millis().try_into().unwrap_or(u32::MAX),
            purge_log,
            purge_number,
        };
        let mut replies = VecDeque::from([to_sidecar::Message::Welcome(welcome)]);
        let mut allowance = Allowance { certificates: CERTIFICATE_BURST, since: Instant::now() };
        loop {
            if replies.is_empty()
                && let Some(update) = self.mesh.next_update(self.id)
            {
                replies.push_back(to_sidecar::Message::Update(update));
            }
            if replies.is_empty()
                && let Some(order) = self.mesh.next_order(self.id)
            {
                replies.push_back(order);
            }
            let overdue = self.mesh.waiting_since(self.id).map(|since| since + ANSWER_TIMEOUT);
            let message = tokio::select! {
                () = told(&mut self.stop) => {
                    return Err(Status::unavailable("the control plane is stopping"));
                }
                place = self.outbound.reserve(), if !replies.is_empty() => {
                    let Ok(place) = place else { return Ok(()) };
                    if let Some(message) = replies.pop_front() {
                        place.send(Ok(ToSidecar { message: Some(message) }));
                    }
                    continue;
                }
                message = self.inbound.message() => message?,
                () = wake.notified() => continue,
                () = self.outbound.closed() => return Ok(()),
                () = sleep_until(overdue) => {
                    return Err(Status::deadline_exceeded("the sidecar did not answer an update in time"));
                }
            };
            let Some(message) = message else { return Ok(()) };
            if let Some(reply) = self.take(message, &mut allowance).await? {
                if replies.len() >= MAX_REPLIES {
                    return Err(Status::resource_exhausted("the sidecar asks without reading the answers"));
                }
                replies.push_back(reply);
            }
        }
    }

    async fn take(
        &mut self,
        message: ToControlPlane,
        allowance: &mut Allowance,
    ) -> Result<Option<to_sidecar::Message>, Status> {
        match message.message {
            Some(to_control_plane::Message::Subscribe(subscribe)) => self.subscribe(&subscribe)?,
            Some(to_control_plane::Message::Ack(ack)) => {
                self.mesh.acknowledge(self.id, &self.caller.instance, &ack)
            }
            Some(to_control_plane::Message::Lease(lease)) => self.lease(&lease).await?,
            Some(to_control_plane::Message::CertificateRequest(request)) => {
                return Ok(Some(to_sidecar::Message::Certificate(self.certificate(&request, allowance))));
            }
            Some(to_control_plane::Message::Usage(usage)) => self.mesh.used(&self.caller, &usage),
            Some(to_control_plane::Message::Purged(purged)) => {
                self.mesh.purged(self.id, &self.caller.instance, &purged);
            }
            Some(to_control_plane::Message::CacheReport(report)) => self.mesh.cache_reported(self.id, report),
            Some(to_control_plane::Message::Hello(_)) => {
                return Err(Status::invalid_argument("Hello may come only once, as the first message"));
            }
            // A newer sidecar may know messages that we do not.
            None => {}
        }
        Ok(None)
    }

    fn subscribe(&self, subscribe: &wire::Subscribe) -> Result<(), Status> {
        let instance = &self.caller.instance;
        let own = format!("workload/{}/{}", instance.namespace, instance.workload);
        for subscription in &subscribe.add {
            if subscription.name.starts_with("workload/") && subscription.name != own {
                return Err(Status::permission_denied(format!(
                    "a sidecar may read its own workload only, {own}, and not {:.100}",
                    subscription.name
                )));
            }
        }
        self.mesh
            .subscribe(self.id, subscribe)
            .map_err(|refused| Status::invalid_argument(refused.to_string()))
    }

    async fn lease(&mut self, lease: &wire::Lease) -> Result<(), Status> {
        let address = match lease.inbound_address.as_str() {
            "" => None,
            text => {
                let mut address: SocketAddr = text.parse().map_err(|_| {
                    Status::invalid_argument(format!(
                        "the lease gives `{text:.100}` as the inbound address, which is not ip:port; set --advertise"
                    ))
                })?;
                // A sidecar that listens everywhere and was not told how others see it is where its stream comes from.
                if address.ip().is_unspecified() {
                    address.set_ip(self.peer.ip().to_canonical());
                }
                Some(address)
            }
        };
        self.mesh.lease(self.id, &self.caller, address, lease.ready).await;
        Ok(())
    }

    fn certificate(
        &self,
        request: &wire::CertificateRequest,
        allowance: &mut Allowance,
    ) -> wire::Certificate {
        let issued = if allowance.take_certificate(Instant::now()) {
            self.mesh.issuer.issue(&self.caller.identity, &request.csr)
        } else {
            Err(issuer::Refused::TooMany)
        };
        match issued {
            Ok(chain) => {
                self.mesh.certificate_issued(self.id, SystemTime::now());
                let chain = chain.iter().map(|certificate| certificate.to_vec()).collect();
                wire::Certificate { chain, refused: String::new() }
            }
            Err(refused) => {
                tracing::warn!(identity = %self.caller.identity, %refused, "a certificate was refused");
                self.mesh.certificate_refused(&refused);
                wire::Certificate { chain: Vec::new(), refused: refused.to_string() }
            }
        }
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_are_rationed() {
        let start = Instant::now();
        let mut allowance = Allowance { certificates: CERTIFICATE_BURST, since: start };
        let burst = (0..20).filter(|_| allowance.take_certificate(start)).count();
        assert_eq!(burst, 10);
        let later = start + Duration::from_secs(3);
        assert_eq!((0..20).filter(|_| allowance.take_certificate(later)).count(), 3);
    }
}
