//! One question to one endpoint: an HTTP GET, the gRPC health protocol, or a connection.

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;

use super::{
    super::{
        connect::Connector,
        endpoint::{Attempt, Endpoint},
        guard::Standing,
        protocol::Wire,
    },
    Setup,
};
use crate::{
    body::Body,
    error::{Error, Kind},
    exchange::Back,
    telemetry::metrics::{HealthResult, Queue},
};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header, request::Parts};
use http_body_util::{BodyExt, Limited};
use std::{borrow::Cow, net::SocketAddr, num::NonZeroU32, time::Instant};
use tokio::time::timeout;
use weft_config::{
    identity::MeshProtocol,
    snapshot::{AppProtocol, Bounds, Endpoint as Place, Probe},
};

/// What a callee sees as the caller's program.
const USER_AGENT: HeaderValue = HeaderValue::from_static("weft-health-check");
/// A gRPC answer is a few bytes.
const ANSWER: usize = 4096;
/// The `SERVING` of `grpc.health.v1.HealthCheckResponse.ServingStatus`.
const SERVING: u64 = 1;

type Verdict = (HealthResult, Cow<'static, str>);

/// Where the questions go.
pub(super) struct Target {
    /// A second view of the endpoint, with connections of its own.
    endpoint: Endpoint,
    connector: Connector,
    /// One question, one connection.
    bounds: Bounds,
    queue: Queue,
}

/// Interim responses mean nothing to a health check.
struct Nobody;

impl Back for Nobody {
    fn interim(&self, _: Response<()>) {}
}

impl Target {
    pub(super) fn new(setup: &Setup, place: Place, connector: Connector) -> Self {
        let now = Instant::now();
        let bounds = Bounds {
            connections: None,
            requests_per_connection: Some(NonZeroU32::MIN),
            ..setup.bounds.clone()
        };
        let standing = Standing::alone(place.address, now);
        let endpoint = Endpoint::new(setup.service.clone(), setup.port, place, standing, now);
        Self { endpoint, connector, bounds, queue: Queue::default() }
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.endpoint.place.address
    }

    /// Asks once, and says how that went and why.
    pub(super) async fn ask(&self, setup: &Setup) -> Verdict {
        let limit = setup.check.timeout;
        let verdict = match timeout(limit, self.question(setup)).await {
            Ok(verdict) => verdict,
            Err(_) => (HealthResult::Timeout, format!("no answer within {limit:?}").into()),
        };
        // Closes the connection, whatever became of it.
        self.endpoint.sweep(&self.bounds, &setup.limits);
        verdict
    }

    async fn question(&self, setup: &Setup) -> Verdict {
        match &setup.check.probe {
            Probe::Http { path, host, statuses } => {
                let wire = if setup.declared == AppProtocol::Http2 { Wire::Http2 } else { Wire::Http1 };
                let Some(head) = head(Method::GET, path, host) else { return unusable(path) };
                match self.exchange(setup, wire, &head, Body::Empty).await {
                    Ok(answer) => judge_status(answer.status(), answer.headers(), statuses),
                    Err(error) => failed(&error),
                }
            }
            Probe::Grpc { service } => {
                let path = "/grpc.health.v1.Health/Check";
                let host = format!("{}.{}", setup.service.name, setup.service.namespace);
                let Some(mut head) = head(Method::POST, path, &host) else { return unusable(&host) };
                head.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
                head.headers.insert(header::TE, HeaderValue::from_static("trailers"));
                let body = Body::full(grpc_question(service));
                match self.exchange(setup, Wire::Http2, &head, body).await {
                    Ok(answer) => grpc_answer(answer).await,
                    Err(error) => failed(&error),
                }
            }
            Probe::Tcp => {
                let (endpoint, bounds) = (&self.endpoint.place, &self.bounds);
                let connecting = self.connector.connect(
                    endpoint,
                    &setup.service,
                    setup.port,
                    MeshProtocol::Http1,
                    bounds,
                    &setup.limits,
                );
                connecting.await.map_or_else(|error| failed(&error), |_| (HealthResult::Ok, "".into()))
            }
        }
    }

    async fn exchange(
        &self,
        setup: &Setup,
        wire: Wire,
        head: &Parts,
        body: Body,
    ) -> Result<Response<Body>, Error> {
        let attempt = Attempt {
            connector: &self.connector,
            limits: &setup.limits,
            bounds: &self.bounds,
            queue: &self.queue,
            declared: setup.declared,
            caller_is_http2: wire == Wire::Http2,
            tunnel: false,
            back: &Nobody,
            connecting: Default::default(),
        };
        self.endpoint.exchange(wire, head, body, &attempt).await.map_err(|failed| failed.error)
    }
}

fn head(method: Method, path: &str, host: &str) -> Option<Parts> {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, host)
        .header(header::USER_AGENT, USER_AGENT)
        .body(());
    request.ok().map(|request| request.into_parts().0)
}

fn unusable(what: &str) -> Verdict {
    (HealthResult::Broken, format!("`{what}` makes no request").into())
}

fn failed(error: &Error) -> Verdict {
    let result = match error.kind {
        Kind::Connect | Kind::Tls => HealthResult::NoConnection,
        Kind::ConnectTimeout | Kind::Timeout => HealthResult::Timeout,
        _ => HealthResult::Broken,
    };
    (result, error.to_string().into())
}

/// Whether a status is good: one of `good`, or 200 to 399 if there are none.
fn judge_status(status: StatusCode, headers: &HeaderMap, good: &[u16]) -> Verdict {
    let is_good = match good {
        [] => (200..400).contains(&status.as_u16()),
        good => good.contains(&status.as_u16()),
    };
    if is_good {
        return (HealthResult::Ok, "".into());
    }
    // Said by the sidecar there: that the caller may not, that the application is not there.
    let why = headers.get("weft-error").and_then(|why| why.to_str().ok());
    let why = why.map(|why| format!(" ({why})")).unwrap_or_default();
    (HealthResult::Status, format!("it answered {}{why}", status.as_u16()).into())
}

/// A `HealthCheckRequest` in a gRPC frame: field 1 is the service's name, left out if it is empty.
fn grpc_question(service: &str) -> Bytes {
    let mut message = BytesMut::new();
    if !service.is_empty() {
        message.put_u8(1 << 3 | 2);
        put_varint(&mut message, service.len() as u64);
        message.put_slice(service.as_bytes());
    }
    let mut frame = BytesMut::with_capacity(5 + message.len());
    frame.put_u8(0);
    frame.put_u32(message.len() as u32);
    frame.put_slice(&message);
    frame.freeze()
}

async fn grpc_answer(answer: Response<Body>) -> Verdict {
    let (parts, body) = answer.into_parts();
    if parts.status != StatusCode::OK {
        return judge_status(parts.status, &parts.headers, &[200]);
    }
    let whole = match Limited::new(body, ANSWER).collect().await {
        Ok(whole) => whole,
        Err(error) => return (HealthResult::Broken, format!("its answer cannot be read: {error}").into()),
    };
    let trailers = whole.trailers().cloned().unwrap_or_default();
    // An answer without messages has its status in the head.
    let status = trailers.get("grpc-status").or_else(|| parts.headers.get("grpc-status"));
    match status.map(HeaderValue::as_bytes) {
        Some(b"0") => {}
        Some(status) => {
            let detail = format!("it answered with gRPC status {}", String::from_utf8_lossy(status));
            return (HealthResult::Status, detail.into());
        }
        None => return (HealthResult::Broken, "its answer has no gRPC status".into()),
    }
    match serving_status(&whole.to_bytes()) {
        Some(SERVING) => (HealthResult::Ok, "".into()),
        Some(status) => {
            (HealthResult::NotServing, format!("it answered with serving status {status}").into())
        }
        None => (HealthResult::Broken, "its answer is no HealthCheckResponse".into()),
    }
}

/// Field 1 of the `HealthCheckResponse` in a gRPC frame; 0 if it is left out.
fn serving_status(frame: &[u8]) -> Option<u64> {
    let ([0, length @ ..], mut message) = frame.split_first_chunk::<5>()? else { return None };
    if u32::from_be_bytes(*length) as usize != message.len() {
        return None;
    }
    let mut status = 0;
    while !message.is_empty() {
        let tag = take_varint(&mut message)?;
        let skip = match (tag >> 3, tag & 7) {
            (1, 0) => {
                status = take_varint(&mut message)?;
                0
            }
            (_, 0) => {
                take_varint(&mut message)?;
                0
            }
            (_, 1) => 8,
            (_, 2) => usize::try_from(take_varint(&mut message)?).ok()?,
            (_, 5) => 4,
            _ => return None,
        };
        message = message.get(skip..)?;
    }
    Some(status)
}

fn put_varint(out: &mut BytesMut, mut value: u64) {
    while value >= 0x80 {
        out.put_u8(value as u8 | 0x80);
        value >>= 7;
    }
    out.put_u8(value as u8);
}

fn take_varint(from: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        if !from.has_remaining() {
            return None;
        }
        let byte = from.get_u8();
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rstest::rstest;

    #[rstest]
    #[case(200, &[], true)]
    #[case(399, &[], true)]
    #[case(400, &[], false)]
    #[case(503, &[], false)]
    #[case(404, &[200, 404], true)]
    #[case(204, &[200, 404], false)]
    fn statuses_are_good_as_policy_says(#[case] status: u16, #[case] good: &[u16], #[case] is_good: bool) {
        let status = StatusCode::from_u16(status).expect("a status");
        let (result, _) = judge_status(status, &HeaderMap::new(), good);
        assert_eq!(result == HealthResult::Ok, is_good);
    }

    #[test]
    fn what_the_other_sidecar_says_is_in_the_reason() {
        let headers = HeaderMap::from_iter([(
            header::HeaderName::from_static("weft-error"),
            HeaderValue::from_static("forbidden"),
        )]);
        let (result, why) = judge_status(StatusCode::FORBIDDEN, &headers, &[]);
        assert_eq!((result, &*why), (HealthResult::Status, "it answered 403 (forbidden)"));
    }

    #[test]
    fn a_grpc_question_names_the_service_in_field_one() {
        assert_eq!(&*grpc_question(""), b"\0\0\0\0\0");
        assert_eq!(&*grpc_question("shop.Cart"), b"\0\0\0\0\x0b\x0a\x09shop.Cart");
        let long = "s".repeat(300);
        assert!(grpc_question(&long).starts_with(b"\0\0\0\x01\x2f\x0a\xac\x02ss"));
    }

    #[rstest]
    #[case(b"\0\0\0\0\x02\x08\x01", Some(1))]
    #[case(b"\0\0\0\0\x02\x08\x02", Some(2))]
    #[case(b"\0\0\0\0\0", Some(0))]
    // Fields that nobody knows yet, of every kind.
    #[case(b"\0\0\0\0\x15\x12\x02hi\x18\x05\x21\0\0\0\0\0\0\0\0\x2d\0\0\0\0\x08\x01", None)]
    #[case(b"\0\0\0\0\x16\x12\x02hi\x18\x05\x21\0\0\0\0\0\0\0\0\x2d\0\0\0\0\x08\x01", Some(1))]
    // Compressed, cut short, too long, and a field that runs over the end.
    #[case(b"\x01\0\0\0\x02\x08\x01", None)]
    #[case(b"\0\0\0\0\x02\x08", None)]
    #[case(b"\0\0\0\0\x01\x08\x01", None)]
    #[case(b"\0\0\0\0\x02\x12\x7f", None)]
    fn a_grpc_answer_says_its_status_in_field_one(#[case] frame: &[u8], #[case] status: Option<u64>) {
        assert_eq!(serving_status(frame), status);
    }

    proptest! {
        #[test]
        fn no_answer_breaks_the_reader(message in proptest::collection::vec(any::<u8>(), 0..64)) {
            let mut frame = vec![0, 0, 0, 0, message.len() as u8];
            frame.extend_from_slice(&message);
            let _ = serving_status(&frame);
            let _ = serving_status(&message);
        }

        #[test]
        fn numbers_come_back_as_they_went(value: u64) {
            let mut out = BytesMut::new();
            put_varint(&mut out, value);
            let mut read = &out[..];
            prop_assert_eq!(take_varint(&mut read), Some(value));
            prop_assert!(read.is_empty());
        }
    }
}
