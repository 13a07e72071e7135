//! One call from its first byte to its last: who, where to, how it went, and the record of it when it ends.

use crate::{
    body::{Body, Observer},
    error::{Error, Kind},
    exchange::Reset,
    message::{GRPC_STATUS, WEFT_ERROR, authority, grpc_status, is_grpc},
    notable::Notable,
    telemetry::{
        access_log::{self, Detail},
        metrics::{Direction, Series},
        trace::{RequestId, Trace},
    },
    traffic::{
        chain::{ChainView, Joined, Span},
        concurrency::Permit,
    },
    upstream::{AttemptEntry, Entry, InFlight, Outcome},
    worker::Worker,
};
use http::{HeaderMap, HeaderValue, Method, Response, header, request::Parts};
use http_body::Body as _;
use std::{
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};
use weft_config::snapshot::{Abort, Mesh};

/// A call under way. Dropped without an answer, it is recorded as gone.
pub(crate) struct Call {
    worker: Rc<Worker>,
    mesh: Arc<Mesh>,
    direction: Direction,
    started: Instant,
    pub(crate) trace: Trace,
    /// That of the request, or ours once somebody asks for it.
    request_id: Option<RequestId>,
    /// What there is to be looked at in the request.
    pub(crate) notable: Notable,
    pub(crate) grpc: bool,
    is_head: bool,
    /// Where it is counted, once that is known.
    pub(crate) series: Option<Arc<Series>>,
    /// Holds the endpoint's place in flight until the answer is through.
    pub(crate) flight: Option<InFlight>,
    /// Holds the request's place in its cluster until the answer is through.
    pub(crate) entry: Option<Entry>,
    /// What is still to be said about the endpoint when the trailers are there, and how long the answer took.
    pub(crate) verdict: Option<(AttemptEntry, Duration)>,
    /// The endpoint that answered, by [`Endpoint::id`](crate::upstream::Endpoint::id).
    pub(crate) served_by: Option<u64>,
    /// Outbound: the request to our application that this call is made for.
    pub(crate) chain: Option<ChainView>,
    /// Outbound: the call's time, as far as that request waits for it.
    pub(crate) span: Option<Span>,
    /// Inbound: the request that calls of our application are joined to.
    pub(crate) joined: Option<Joined>,
    /// Inbound: the application's place among the calls that it has at once.
    pub(crate) permit: Option<Permit>,
    pub(crate) attempts: u32,
    pub(crate) upstream_time: Duration,
    /// What only the access log wants; `None` while it is off.
    log: Option<Box<Detail>>,
    error: Option<Kind>,
    status: u16,
    grpc_status: Option<u16>,
    bytes_out: u64,
    recorded: bool,
}

impl Call {
    /// Begins a call: continues or starts its trace.
    pub(crate) fn begin(
        worker: &Rc<Worker>,
        mesh: &Arc<Mesh>,
        direction: Direction,
        request: &Parts,
    ) -> Self {
        let headers = &request.headers;
        let notable = Notable::of(headers);
        let trace = Trace::from_headers(headers, notable, mesh.trace_sampling);
        let request_id = if notable.has(Notable::REQUEST_ID) { RequestId::read(headers) } else { None };
        let grpc = notable.has(Notable::TYPE) && is_grpc(headers);
        let log = access_log::is_on(&mesh.access_log).then(|| {
            Box::new(Detail {
                method: request.method.to_string(),
                path: request.uri.path().to_owned(),
                host: authority(request).unwrap_or_default().to_owned(),
                downstream: match request.version {
                    http::Version::HTTP_2 => "http2",
                    http::Version::HTTP_10 => "http1.0",
                    _ => "http1.1",
                },
                ..Detail::default()
            })
        });
        Self {
            worker: worker.clone(),
            mesh: mesh.clone(),
            direction,
            started: Instant::now(),
            trace,
            request_id,
            notable,
            grpc,
            is_head: request.method == Method::HEAD,
            series: None,
            flight: None,
            entry: None,
            verdict: None,
            served_by: None,
            chain: None,
            span: None,
            joined: None,
            permit: None,
            attempts: 0,
            upstream_time: Duration::ZERO,
            log,
            error: None,
            status: 0,
            grpc_status: None,
            bytes_out: 0,
            recorded: false,
        }
    }

    /// Writes the trace and the request's id into the headers of a request that goes on.
    pub(crate) fn mark(&mut self, headers: &mut HeaderMap) {
        self.trace.write(headers);
        self.request_id.get_or_insert_with(RequestId::random).write(headers);
    }

    /// When the call began.
    pub(crate) fn started(&self) -> Instant {
        self.started
    }

    /// The call is made for nobody: it is not counted as one.
    pub(crate) fn nobodys(&mut self) {
        self.recorded = true;
    }

    /// The call failed for good after, or for want of, another attempt: whoever waits for it need not try again either.
    pub(crate) fn gave_up(&self) {
        if let Some(chain) = &self.chain {
            chain.gave_up();
        }
    }

    /// Notes something for the access log, if it is on.
    pub(crate) fn note(&mut self, note: impl FnOnce(&mut Detail)) {
        if let Some(log) = &mut self.log {
            note(log);
        }
    }

    /// Ends the call with an answer of the upstream, or with one of our own. The record is written when the body is
    /// through.
    pub(crate) fn answer(mut self, outcome: Result<Response<Body>, Error>) -> Response<Body> {
        let response = outcome.unwrap_or_else(|error| {
            self.error = Some(error.kind);
            self.worker.shard.error(error.kind);
            tracing::debug!(trace = %self.trace.id(), %error, "answered with an error of our own");
            answer(&error, self.grpc)
        });
        self.status = response.status().as_u16();
        self.grpc_status = if self.grpc { grpc_status(response.headers()) } else { None };
        let bodiless = self.is_head || matches!(self.status, 204 | 304);
        let (head, body) = response.into_parts();
        match body {
            Body::Empty => {
                self.record();
                Response::from_parts(head, Body::Empty)
            }
            Body::Tunnel(io) => {
                // A tunnel may last for days; what is counted is how it was set up.
                self.record();
                Response::from_parts(head, Body::Tunnel(io))
            }
            body if bodiless => {
                self.record();
                Response::from_parts(head, body)
            }
            // All of it is at hand: nothing can go wrong with it any more.
            Body::Full(_) | Body::Stored(_) => {
                self.bytes_out = body.size_hint().lower();
                self.record();
                Response::from_parts(head, body)
            }
            body => Response::from_parts(head, body.observed(self)),
        }
    }

    fn record(&mut self) {
        if std::mem::replace(&mut self.recorded, true) {
            return;
        }
        self.flight = None;
        self.entry = None;
        self.span = None;
        self.permit = None;
        let now = Instant::now();
        let took = now - self.started;
        if let Some((verdict, answered)) = self.verdict.take() {
            let outcome = match self.error {
                // Its time was up in the midst of the answer: mostly the caller's, and never for want of an answer.
                Some(Kind::Timeout) => Outcome::Neutral,
                Some(kind) => Outcome::of_error(kind),
                None => Outcome::of_response(self.status, self.grpc_status, None),
            };
            verdict.record(outcome, answered, now);
        }
        if let Some(joined) = self.joined.take() {
            joined.end(now, self.error.is_none());
        }
        if let Some(series) = &self.series {
            self.worker.shard.request(series, self.status, self.grpc_status, took);
        }
        if let Some(detail) = self.log.take()
            && access_log::wants(&self.mesh.access_log, self.status, fastrand::f64())
        {
            self.worker.shared.access_log.write(access_log::Entry {
                direction: self.direction,
                status: self.status,
                grpc_status: self.grpc_status,
                error: self.error,
                bytes_out: self.bytes_out,
                duration: took,
                upstream: self.upstream_time,
                attempts: self.attempts,
                trace: &self.trace,
                request_id: self.request_id.get_or_insert_with(RequestId::random),
                detail: &detail,
            });
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if !self.recorded {
            if self.status == 0 {
                self.status = Kind::Gone.row().status.as_u16();
            }
            self.error.get_or_insert(Kind::Gone);
            self.worker.shard.error(Kind::Gone);
            self.record();
        }
    }
}

impl Observer for Call {
    fn data(&mut self, bytes: usize) {
        self.bytes_out += bytes as u64;
    }

    fn trailers(&mut self, trailers: &HeaderMap) {
        if self.grpc {
            self.grpc_status = grpc_status(trailers).or(self.grpc_status);
        }
    }

    fn end(&mut self, outcome: Result<(), &Error>) {
        if let Err(error) = outcome {
            self.error = Some(error.kind);
            self.worker.shard.error(error.kind);
        }
        self.record();
    }
}

/// The answer that the sidecar itself gives: one line for a person, `weft-error` for a program; gRPC callers get a
/// trailers-only response.
pub(crate) fn answer(error: &Error, grpc: bool) -> Response<Body> {
    let row = error.kind.row();
    let mut response = Response::new(Body::Empty);
    let headers = response.headers_mut();
    if let Some(further) = &error.headers {
        headers.extend(further.iter().map(|(name, value)| (name.clone(), value.clone())));
    }
    headers.insert(WEFT_ERROR, HeaderValue::from_static(row.name));
    if error.instead == Some(Abort::Reset) {
        // Nobody will see it; the status is for the records.
        *response.status_mut() = row.status;
        response.extensions_mut().insert(Reset);
        return response;
    }
    if grpc {
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert(GRPC_STATUS, HeaderValue::from(u16::from(error.grpc_status())));
        if let Ok(message) = HeaderValue::from_str(&grpc_message(&format!("weft: {error}"))) {
            headers.insert(GRPC_MESSAGE, message);
        }
        return response;
    }
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    *response.status_mut() = error.status();
    *response.body_mut() = Body::full(format!("weft: {error}\n"));
    response
}

const GRPC_MESSAGE: header::HeaderName = header::HeaderName::from_static("grpc-message");

/// Percent-encodes as the gRPC protocol asks for `grpc-message`.
fn grpc_message(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if matches!(byte, b' '..=b'~') && byte != b'%' {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_say_what_happened_to_people_and_programs() {
        let error = Error::new(Kind::NoEndpoint, "shop/cart:8080 has no endpoint; see /clusters");
        let response = answer(&error, false);
        assert_eq!(response.status(), 503);
        assert_eq!(response.headers()[WEFT_ERROR], "no_endpoint");
        let Body::Full(body) = response.into_body() else { panic!("has a body") };
        assert_eq!(body, "weft: no_endpoint: shop/cart:8080 has no endpoint; see /clusters\n");
    }

    #[test]
    fn grpc_errors_are_trailers_only() {
        let response = answer(&Error::new(Kind::Timeout, "100 % late\n"), true);
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["grpc-status"], "4");
        assert_eq!(response.headers()["grpc-message"], "weft: timeout: 100 %25 late%0A");
        assert!(response.body().is_end_stream());
    }

    #[test]
    fn a_fault_is_answered_as_policy_says_in_the_callers_own_protocol() {
        let fault = |abort| Error::new(Kind::Fault, "as policy says").answered_with(abort);
        let status = |abort, grpc| answer(&fault(abort), grpc).status().as_u16();
        let grpc_status = |abort| answer(&fault(abort), true).headers()["grpc-status"].clone();
        let teapot = Abort::Status(http::StatusCode::IM_A_TEAPOT);
        assert_eq!(status(teapot, false), 418);
        assert_eq!((status(teapot, true), grpc_status(teapot)), (200, "2".parse().unwrap()));
        assert_eq!(grpc_status(Abort::Status(http::StatusCode::BAD_GATEWAY)), "14");
        assert_eq!((status(Abort::Grpc(8), true), grpc_status(Abort::Grpc(8))), (200, "8".parse().unwrap()));
        assert_eq!(status(Abort::Grpc(8), false), 429);
        assert_eq!(answer(&fault(teapot), false).headers()[WEFT_ERROR], "fault");
        let reset = answer(&fault(Abort::Reset), false);
        assert!(Reset::is_meant_by(&reset) && reset.body().is_end_stream());
        assert!(!Reset::is_meant_by(&answer(&fault(teapot), false)));
    }
}
