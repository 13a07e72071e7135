//! Sends a request until an endpoint answers it, or nothing allows another attempt.

use crate::{
    body::Body,
    context::Call,
    error::{Error, Kind},
    exchange::{Back, Failed},
    http1,
    live::LiveBackend,
    message::WEFT_ERROR,
    telemetry::metrics::{AttemptResult, Direction, Retry},
    upstream::{Attempt, Cluster, Endpoint, Preference},
    worker::Worker,
};
use http::{Response, Version, request::Parts};
use smallvec::SmallVec;
use std::{rc::Rc, time::Instant};
use tokio::time::timeout_at;
use weft_config::snapshot::{Calls, Limits};

/// Endpoints that one request tries while nothing of it was sent.
const ATTEMPTS: u32 = 3;

/// Where a request was routed, and by what rules it is sent there.
pub(super) struct Attempts<'a> {
    pub(super) worker: &'a Worker,
    pub(super) limits: &'a Limits,
    pub(super) calls: &'a Calls,
    pub(super) cluster: &'a Rc<Cluster>,
    /// Where it is counted; `None` for hosts outside of the mesh.
    pub(super) backend: Option<&'a LiveBackend>,
    pub(super) tunnel: bool,
    pub(super) back: &'a dyn Back,
}

impl Attempts<'_> {
    /// Tries endpoints until one takes the request: another only while nothing of it was sent.
    pub(super) async fn run(
        &self,
        call: &mut Call,
        head: &mut Parts,
        mut body: Body,
    ) -> Result<Response<Body>, Error> {
        let whole = self.calls.timeouts.request.or_else(|| {
            // A gRPC stream may stay silent for as long as it likes; its deadline is its caller's.
            (!call.grpc).then_some(self.limits.request_timeout)
        });
        let deadline = whole.filter(|t| !t.is_zero()).map(|t| call.started() + t);
        let per_attempt = self.calls.timeouts.attempt.filter(|t| !t.is_zero());
        let cluster = self.cluster;
        let traffic = cluster.traffic();
        let attempt = Attempt {
            connector: &self.worker.connector,
            limits: self.limits,
            bounds: &traffic.bounds,
            queue: cluster.series.queue(Direction::Outbound),
            declared: cluster.protocol(),
            caller_is_http2: head.version == Version::HTTP_2,
            tunnel: self.tunnel,
            back: self.back,
        };
        let key = cluster.key_hash(&self.worker.key_source(&head.headers, head.uri.query()));
        let mut tried: SmallVec<[Rc<Endpoint>; 3]> = SmallVec::new();
        loop {
            let preference = Preference { tried: &tried, key, ..Preference::default() };
            let flight = cluster.pick(&preference, Instant::now())?;
            let endpoint = flight.endpoint().clone();
            if let Some(backend) = self.backend {
                call.series = Some(backend.series(endpoint.place.identity.is_some()).clone());
            }
            call.flight = Some(flight);
            call.attempts += 1;
            let wire = endpoint.wire(&attempt);
            call.note(|log| (log.endpoint, log.wire) = (Some(endpoint.place.address), wire.as_str()));
            let begun = Instant::now();
            let until = earlier(deadline, per_attempt.map(|t| begun + t));
            let outcome = match until {
                None => endpoint.exchange(wire, head, body, &attempt).await,
                Some(until) => {
                    match timeout_at(until.into(), endpoint.exchange(wire, head, body, &attempt)).await {
                        Ok(outcome) => outcome,
                        Err(_) => Err(Failed { error: timed_out(cluster, begun), body: None }),
                    }
                }
            };
            let now = Instant::now();
            call.upstream_time += now - begun;
            endpoint.load.observe(now - begun, now);
            match outcome {
                Ok(response) => {
                    self.worker
                        .shard
                        .attempt(&cluster.series, AttemptResult::of_status(response.status().as_u16()));
                    let until = self.calls.timeouts.request.and(deadline);
                    return Ok(self.finish(response, endpoint.place.identity.is_some(), until));
                }
                Err(Failed { error, body: Some(again) })
                    if error.kind.row().unsent
                        && !error.sent
                        && call.attempts < ATTEMPTS
                        && tried.len() + 1 < cluster.len() =>
                {
                    self.worker.shard.attempt(&cluster.series, AttemptResult::Failed(error.kind));
                    self.worker.shard.retry(Retry::Connect);
                    tried.push(endpoint);
                    body = *again;
                }
                Err(failed) => {
                    self.worker.shard.attempt(&cluster.series, AttemptResult::Failed(failed.error.kind));
                    return Err(failed.error);
                }
            }
        }
    }

    /// The upstream's response as it goes back.
    fn finish(&self, mut response: Response<Body>, mesh: bool, until: Option<Instant>) -> Response<Body> {
        http1::strip_hop_by_hop(response.headers_mut(), self.tunnel);
        if !mesh {
            response.headers_mut().remove(WEFT_ERROR);
        }
        let idle = self.calls.timeouts.idle.filter(|t| !t.is_zero());
        if until.is_none() && idle.is_none() {
            response
        } else {
            response.map(|body| body.until(until, idle))
        }
    }
}

fn earlier(a: Option<Instant>, b: Option<Instant>) -> Option<Instant> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

fn timed_out(cluster: &Cluster, begun: Instant) -> Error {
    Error::after_send(
        Kind::Timeout,
        format!(
            "no answer from {}:{} after {:.3} s",
            cluster.service,
            cluster.port,
            begun.elapsed().as_secs_f64()
        ),
    )
}
