//! Sends a request until an answer stands: attempts one after the other, or side by side where policy hedges.

mod hedged;

use super::payload::Payload;
use crate::{
    body::Body,
    context::Call,
    error::{Error, Kind},
    exchange::{Back, Failed},
    http1,
    live::LiveBackend,
    message::{self, WEFT_ATTEMPT, WEFT_ERROR, WEFT_RETRIED},
    telemetry::metrics::{AttemptResult, Direction},
    traffic::deadline::{Deadline, Told},
    upstream::{
        Attempt, AttemptEntry, Attempted, Cluster, Decision, End, Endpoint, Entry, InFlight, Outcome,
        Preference, Wire, decide, retry_after,
    },
    worker::Worker,
};
use http::{HeaderName, HeaderValue, Method, Response, Version, header, request::Parts};
use smallvec::SmallVec;
use std::{
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};
use tokio::time::timeout_at;
use weft_config::snapshot::{Calls, Limits, Timeouts, Traffic};

/// How much earlier than its caller a peer may find that the time is up.
const ROUNDING: Duration = Duration::from_millis(5);

/// Where a request was routed, and by what rules it is sent there.
pub(super) struct Attempts<'a> {
    pub(super) worker: &'a Worker,
    pub(super) limits: &'a Limits,
    pub(super) calls: &'a Calls,
    pub(super) cluster: &'a Rc<Cluster>,
    /// How the cluster's endpoints are treated.
    pub(super) traffic: Arc<Traffic>,
    /// Where it is counted; `None` for hosts outside of the mesh.
    pub(super) backend: Option<&'a LiveBackend>,
    pub(super) tunnel: bool,
    pub(super) back: &'a dyn Back,
    pub(super) time: Time,
    /// For balancers that hash.
    pub(super) key: Option<u64>,
    /// The endpoint that the request's session is on.
    pub(super) preferred: Option<u64>,
}

/// How long a call may take, and what its chain says about trying again.
#[derive(Clone, Copy)]
pub(super) struct Time {
    /// What the caller said.
    told: Told,
    /// When the head of an answer must be there.
    pub(super) deadline: Deadline,
    /// When all of it must be there. The mesh's own default is not part of it and does not travel: it only bounds the
    /// wait for a head, and told on it would cut the streams that serve somebody's long answer two hops away.
    whole: Deadline,
    /// When the caller waits no longer: that is nobody's failure.
    given: Deadline,
    /// Whether deadlines are told to upstreams.
    tell: bool,
    /// Whether the request that this call is made for is itself another attempt of its caller.
    caller_retries: bool,
}

impl Time {
    /// By policy, by what the application says, and by how long the caller of the request waits that it is made for.
    pub(super) fn of(call: &Call, told: Told, policy: &Timeouts, limits: &Limits) -> Self {
        let started = call.started();
        let after = |time: Option<Duration>| {
            time.filter(|t| !t.is_zero()).map_or(Deadline::NONE, |t| Deadline::after(started, t))
        };
        let mut given = Deadline::NONE;
        if policy.deadlines {
            let chain = call.chain.as_ref().map_or(Deadline::NONE, |chain| chain.deadline);
            given = told.deadline.earliest(chain);
        }
        let whole = after(policy.request).earliest(given);
        // A gRPC stream may stay silent for as long as it likes; its deadline is its caller's.
        let default =
            if policy.request.is_none() && !call.grpc { Some(limits.request_timeout) } else { None };
        Self {
            told,
            deadline: whole.earliest(after(default)),
            whole,
            given,
            tell: policy.deadlines,
            caller_retries: call.chain.as_ref().is_some_and(|chain| chain.is_retry),
        }
    }
}

impl Time {
    /// An answer that fails if all of it is not there in time.
    pub(super) fn bound(&self, response: Response<Body>) -> Response<Body> {
        match self.whole.instant() {
            None => response,
            until => response.map(|body| body.until(until, None)),
        }
    }
}

/// An endpoint that was picked, and what holds its place.
struct Chosen {
    flight: InFlight,
    verdict: AttemptEntry,
    wire: Wire,
}

/// An attempt that has ended.
struct Tried {
    chosen: Chosen,
    outcome: Result<Response<Body>, Failed>,
    took: Duration,
    /// What it tells about its endpoint.
    judged: Outcome,
}

type TriedEndpoints = SmallVec<[Rc<Endpoint>; 3]>;

impl Attempts<'_> {
    /// Gives the answer that stands, or why there is none.
    pub(super) async fn run(
        &self,
        call: &mut Call,
        head: &mut Parts,
        body: Body,
    ) -> Result<Response<Body>, Error> {
        let now = Instant::now();
        if self.time.deadline.is_over(now) {
            return Err(self.no_time());
        }
        let entry = self.cluster.guard.enter(now)?;
        let payload = Payload::new(body, self.calls.retry.body_bytes);
        let answer = match &self.calls.hedge {
            Some(hedge) if self.may_repeat(call, head) && !self.tunnel => {
                Box::pin(self.side_by_side(call, head, payload, &entry, hedge)).await
            }
            _ => self.one_by_one(call, head, payload, &entry).await,
        };
        // Counts as in flight until the answer is through.
        call.entry = Some(entry);
        answer
    }

    /// Attempts one after the other.
    async fn one_by_one(
        &self,
        call: &mut Call,
        head: &mut Parts,
        mut payload: Payload,
        entry: &Entry,
    ) -> Result<Response<Body>, Error> {
        let mut tried = TriedEndpoints::new();
        // Held while the retry is under way.
        let mut _slot = None;
        loop {
            let chosen = self.choose(&tried, entry, head)?;
            let endpoint = chosen.flight.endpoint().clone();
            call.attempts += 1;
            call.note(|log| {
                (log.endpoint, log.wire) = (Some(endpoint.place.address), chosen.wire.as_str());
            });
            if let Some(backend) = self.backend {
                call.series = Some(backend.series(endpoint.place.identity.is_some()).clone());
            }
            self.address(head, &endpoint, call.attempts);
            let body = payload.take();
            let mut attempt = self.send(chosen, head, body).await;
            call.upstream_time += attempt.took;
            if let Err(Failed { body: Some(whole), .. }) = &mut attempt.outcome {
                payload.put_back(std::mem::replace(&mut **whole, Body::Empty));
            }
            tried.push(endpoint);
            let untried = tried.len() < self.cluster.len();
            let attempted = self.attempted(call, head, &attempt.outcome, payload.is_whole(), untried);
            let decision = decide(&self.calls.retry, &attempted, fastrand::f64);
            let (after, reason) = match decision {
                Decision::Stop(stop) => {
                    if let Some(refused) = stop.refused() {
                        self.worker.shard.retry_refused(refused);
                    }
                    if stop.is_final_for_callers() {
                        call.gave_up();
                    }
                    return self.conclude(call, attempt);
                }
                Decision::Again { after, reason, free: true } => (after, reason),
                Decision::Again { after, reason, free: false } => match entry.retry(Instant::now()) {
                    Ok(slot) => {
                        _slot = Some(slot);
                        (after, reason)
                    }
                    Err(refusal) => {
                        self.worker.shard.retry_refused(refusal.reason());
                        call.gave_up();
                        return self.conclude(call, attempt);
                    }
                },
            };
            self.worker.shard.retry(reason);
            self.judge(attempt);
            if !after.is_zero() {
                tokio::time::sleep(after).await;
            }
        }
    }

    /// Picks an endpoint that was not tried and that lets the attempt in.
    fn choose(&self, tried: &[Rc<Endpoint>], entry: &Entry, head: &Parts) -> Result<Chosen, Error> {
        let mut avoid: TriedEndpoints = tried.iter().cloned().collect();
        let now = Instant::now();
        loop {
            let preference = Preference { tried: &avoid, key: self.key, endpoint: self.preferred };
            let flight = self.cluster.pick(&preference, now)?;
            let verdict = match entry.attempt(&flight.endpoint().standing, now) {
                Ok(verdict) => verdict,
                // Its breaker has just let somebody else probe it.
                Err(_) if avoid.len() + 1 < self.cluster.len() => {
                    avoid.push(flight.endpoint().clone());
                    continue;
                }
                Err(refused) => return Err(entry.refused(refused)),
            };
            let wire = flight.endpoint().wire(&self.attempt(head));
            return Ok(Chosen { flight, verdict, wire });
        }
    }

    /// What the endpoint is told about this attempt. What is only for sidecars goes to sidecars only.
    fn address(&self, head: &mut Parts, endpoint: &Endpoint, number: u32) {
        let sidecar = endpoint.place.identity.is_some();
        if self.time.tell {
            self.time.told.pass_on(&mut head.headers, self.time.whole, Instant::now());
        }
        if !sidecar {
            message::strip_own(&mut head.headers);
        } else if number > 1 {
            head.headers.insert(WEFT_ATTEMPT, HeaderValue::from(number));
        }
    }

    /// One attempt over one connection, within its time.
    async fn send(&self, chosen: Chosen, head: &Parts, body: Body) -> Tried {
        let begun = Instant::now();
        let per_attempt = self.calls.timeouts.attempt.filter(|t| !t.is_zero());
        let until =
            self.time.deadline.earliest(per_attempt.map_or(Deadline::NONE, |t| Deadline::after(begun, t)));
        let attempt = self.attempt(head);
        let exchange = chosen.flight.endpoint().exchange(chosen.wire, head, body, &attempt);
        let outcome = match until.instant() {
            None => exchange.await,
            Some(until) => match timeout_at(until.into(), exchange).await {
                Ok(outcome) => outcome,
                Err(_) => Err(Failed { error: self.timed_out(begun), body: None }),
            },
        };
        let now = Instant::now();
        let took = now - begun;
        chosen.flight.endpoint().load.observe(took.saturating_sub(attempt.connecting.get()), now);
        let result = match &outcome {
            Ok(response) => AttemptResult::of_status(response.status().as_u16()),
            Err(failed) => AttemptResult::Failed(failed.error.kind),
        };
        self.worker.shard.attempt(&self.cluster.series, result);
        // Its caller's patience is over, or so nearly that the peer, who is told whole milliseconds, said so first.
        let impatient = self.time.given.left(now).is_some_and(|left| left < ROUNDING);
        let judged = match &outcome {
            Ok(response) if impatient && response.status() == 504 => Outcome::Neutral,
            Err(_) if impatient => Outcome::Neutral,
            Ok(response) => outcome_of(response),
            Err(failed) => Outcome::of_error(failed.error.kind),
        };
        Tried { chosen, outcome, took, judged }
    }

    fn attempt(&self, head: &Parts) -> Attempt<'_> {
        Attempt {
            connector: &self.worker.connector,
            limits: self.limits,
            bounds: &self.traffic.bounds,
            queue: self.cluster.series.queue(Direction::Outbound),
            declared: self.cluster.protocol(),
            caller_is_http2: head.version == Version::HTTP_2,
            tunnel: self.tunnel,
            back: self.back,
            connecting: Default::default(),
        }
    }

    /// What is to be decided on.
    fn attempted(
        &self,
        call: &Call,
        head: &Parts,
        outcome: &Result<Response<Body>, Failed>,
        replayable: bool,
        untried: bool,
    ) -> Attempted {
        let end = match outcome {
            Err(failed) => End::Failed { kind: failed.error.kind, sent: failed.error.sent },
            Ok(response) => answered(response, call.grpc),
        };
        Attempted {
            tries: call.attempts,
            end,
            repeatable: is_repeatable(&head.method),
            grpc: call.grpc,
            replayable: replayable && !self.tunnel,
            left: self.time.deadline.left(Instant::now()),
            caller_retries: self.time.caller_retries,
            untried,
        }
    }

    /// Whether the same request may run twice at once.
    fn may_repeat(&self, call: &Call, head: &Parts) -> bool {
        let retry = &self.calls.retry;
        is_repeatable(&head.method) || retry.unsafe_methods || (call.grpc && retry.grpc_explicit)
    }

    /// An attempt that is not the answer: what it tells about its endpoint.
    fn judge(&self, tried: Tried) {
        tried.chosen.verdict.record(tried.judged, tried.took, Instant::now());
    }

    /// The attempt whose outcome is the call's.
    fn conclude(&self, call: &mut Call, tried: Tried) -> Result<Response<Body>, Error> {
        let Tried { chosen: Chosen { flight, verdict, .. }, outcome, took, judged } = tried;
        match outcome {
            Err(failed) => {
                verdict.record(judged, took, Instant::now());
                Err(failed.error)
            }
            Ok(response) => {
                let mesh = flight.endpoint().place.identity.is_some();
                if mesh && response.headers().contains_key(WEFT_RETRIED) {
                    call.gave_up();
                }
                // How a gRPC call went stands in its trailers.
                if call.grpc && response.status() == 200 && message::grpc_status(response.headers()).is_none()
                {
                    call.verdict = Some((verdict, took));
                } else {
                    verdict.record(judged, took, Instant::now());
                }
                call.served_by = Some(flight.endpoint().id);
                call.flight = Some(flight);
                Ok(self.finish(response, mesh))
            }
        }
    }

    /// The upstream's response as it goes back.
    fn finish(&self, mut response: Response<Body>, mesh: bool) -> Response<Body> {
        http1::strip_hop_by_hop(response.headers_mut(), self.tunnel);
        if !mesh {
            response.headers_mut().remove(WEFT_ERROR);
        }
        // How long all of it may take is its reader's to say: others may read it too.
        match self.calls.timeouts.idle.filter(|t| !t.is_zero()) {
            None => response,
            idle => response.map(|body| body.until(None, idle)),
        }
    }

    fn no_time(&self) -> Error {
        let Cluster { service, port, .. } = &**self.cluster;
        let detail = format!("the time for this call to {service}:{port} was over before it began");
        Error::new(Kind::Timeout, detail)
    }

    fn timed_out(&self, begun: Instant) -> Error {
        let Cluster { service, port, .. } = &**self.cluster;
        let waited = begun.elapsed().as_secs_f64();
        Error::after_send(Kind::Timeout, format!("no answer from {service}:{port} after {waited:.3} s"))
    }
}

/// Methods that do the same when they are done twice (RFC 9110 section 9.2.2).
fn is_repeatable(method: &Method) -> bool {
    method.is_idempotent()
}

fn answered(response: &Response<Body>, grpc: bool) -> End {
    let headers = response.headers();
    let status = response.status().as_u16();
    // Most answers are good ones, and have none of this.
    let bad = status >= 400;
    let text = |name: &HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    let grpc_status = if grpc { message::grpc_status(headers) } else { None };
    if !bad && grpc_status.is_none() {
        return End::Answered { status, grpc_status, weft_error: None, retried: false, retry_after: None };
    }
    End::Answered {
        status,
        grpc_status,
        weft_error: text(&WEFT_ERROR).and_then(Kind::named),
        retried: headers.contains_key(WEFT_RETRIED),
        retry_after: text(&header::RETRY_AFTER).and_then(|v| retry_after(v, SystemTime::now())),
    }
}

pub(super) fn outcome_of(response: &Response<Body>) -> Outcome {
    let by_sidecar = response.headers().get(WEFT_ERROR).and_then(|v| v.to_str().ok()).and_then(Kind::named);
    let grpc_status = message::grpc_status(response.headers());
    Outcome::of_response(response.status().as_u16(), grpc_status, by_sidecar)
}
