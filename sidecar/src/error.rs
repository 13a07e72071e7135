//! Every way a request can fail in the sidecar, and one table of what follows from each.

use http::StatusCode;
use std::{borrow::Cow, fmt};
use weft_config::snapshot::Abort;

/// Why the sidecar answers a request itself or gives up on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    /// The message is not valid HTTP.
    BadRequest,
    /// Authorization said no.
    Forbidden,
    /// No route takes this request.
    NoRoute,
    /// The host names no service and calls outside the registry are off, or it does not resolve.
    UnknownService,
    /// The head did not arrive in time.
    HeaderTimeout,
    /// The message is larger than a limit.
    TooLarge,
    /// The request came in for a service that is not here.
    Misdirected,
    /// Head too large or too many fields.
    HeadersTooLarge,
    /// A method or a transfer coding that cannot be served.
    NotImplemented,
    /// The route's backend does not resolve (Gateway API: 500).
    InvalidBackend,
    /// The service has no endpoint.
    NoEndpoint,
    /// A limit on connections, streams, requests or retries is reached.
    Overloaded,
    /// More calls than a rate limit lets pass.
    RateLimited,
    /// The breaker of the service, or of all of its endpoints, is open.
    BreakerOpen,
    /// The application has as many calls as it takes, and the queue before it is full or too slow.
    Shed,
    /// A fault put in on purpose.
    Fault,
    /// The TCP connection could not be made.
    Connect,
    /// The connection could not be made in time.
    ConnectTimeout,
    /// The TLS handshake failed, or the peer is not who it should be.
    Tls,
    /// The upstream closed or reset before a whole response.
    Reset,
    /// The upstream's message is not valid HTTP.
    BadResponse,
    /// No whole response head within the request's time.
    Timeout,
    /// The process is draining.
    Draining,
    /// The caller went away: nobody gets an answer.
    Gone,
}

/// What follows from a [`Kind`].
pub(crate) struct Row {
    /// As in `weft-error` and metrics.
    pub(crate) name: &'static str,
    /// HTTP answer.
    pub(crate) status: StatusCode,
    /// `grpc-status` of the trailers-only answer, as the gRPC specification maps statuses.
    pub(crate) grpc_status: u8,
    /// True if the request certainly did not reach the application.
    pub(crate) unsent: bool,
    /// The flag in the access log.
    pub(crate) flag: &'static str,
}

impl Kind {
    /// Every kind: metric children are made from this.
    pub(crate) const ALL: [Self; 24] = [
        Self::BadRequest,
        Self::Forbidden,
        Self::NoRoute,
        Self::UnknownService,
        Self::HeaderTimeout,
        Self::TooLarge,
        Self::Misdirected,
        Self::HeadersTooLarge,
        Self::NotImplemented,
        Self::InvalidBackend,
        Self::NoEndpoint,
        Self::Overloaded,
        Self::RateLimited,
        Self::BreakerOpen,
        Self::Shed,
        Self::Fault,
        Self::Connect,
        Self::ConnectTimeout,
        Self::Tls,
        Self::Reset,
        Self::BadResponse,
        Self::Timeout,
        Self::Draining,
        Self::Gone,
    ];

    /// The kind of this name, as a `weft-error` field has it.
    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.row().name == name)
    }

    /// The one table.
    pub(crate) const fn row(self) -> Row {
        const fn row(
            name: &'static str,
            status: StatusCode,
            grpc_status: u8,
            unsent: bool,
            flag: &'static str,
        ) -> Row {
            Row { name, status, grpc_status, unsent, flag }
        }
        use StatusCode as S;
        const CLIENT_CLOSED: StatusCode = match StatusCode::from_u16(499) {
            Ok(status) => status,
            Err(_) => StatusCode::BAD_REQUEST,
        };
        // gRPC: 1 cancelled, 4 deadline, 5 not found, 7 denied, 8 exhausted, 12 unimplemented, 13 internal, 14 unavailable.
        match self {
            Self::BadRequest => row("bad_request", S::BAD_REQUEST, 13, true, "BR"),
            Self::Forbidden => row("forbidden", S::FORBIDDEN, 7, true, "AZ"),
            Self::NoRoute => row("no_route", S::NOT_FOUND, 12, true, "NR"),
            Self::UnknownService => row("unknown_service", S::BAD_GATEWAY, 14, true, "US"),
            Self::HeaderTimeout => row("header_timeout", S::REQUEST_TIMEOUT, 4, true, "HT"),
            Self::TooLarge => row("too_large", S::PAYLOAD_TOO_LARGE, 8, true, "TL"),
            Self::Misdirected => row("misdirected", S::MISDIRECTED_REQUEST, 14, true, "MD"),
            Self::HeadersTooLarge => {
                row("headers_too_large", S::REQUEST_HEADER_FIELDS_TOO_LARGE, 8, true, "HL")
            }
            Self::NotImplemented => row("not_implemented", S::NOT_IMPLEMENTED, 12, true, "NI"),
            Self::InvalidBackend => row("invalid_backend", S::INTERNAL_SERVER_ERROR, 14, true, "IB"),
            Self::NoEndpoint => row("no_endpoint", S::SERVICE_UNAVAILABLE, 14, true, "NE"),
            Self::Overloaded => row("overloaded", S::SERVICE_UNAVAILABLE, 14, true, "OL"),
            Self::RateLimited => row("rate_limited", S::TOO_MANY_REQUESTS, 8, true, "RL"),
            Self::BreakerOpen => row("breaker_open", S::SERVICE_UNAVAILABLE, 14, true, "BO"),
            Self::Shed => row("shed", S::SERVICE_UNAVAILABLE, 14, true, "SH"),
            Self::Fault => row("fault", S::SERVICE_UNAVAILABLE, 14, true, "FI"),
            Self::Connect => row("connect", S::SERVICE_UNAVAILABLE, 14, true, "CF"),
            Self::ConnectTimeout => row("connect_timeout", S::GATEWAY_TIMEOUT, 14, true, "CT"),
            Self::Tls => row("tls", S::SERVICE_UNAVAILABLE, 14, true, "TF"),
            Self::Reset => row("reset", S::BAD_GATEWAY, 14, false, "UR"),
            Self::BadResponse => row("bad_response", S::BAD_GATEWAY, 14, false, "PE"),
            Self::Timeout => row("timeout", S::GATEWAY_TIMEOUT, 4, false, "UT"),
            Self::Draining => row("draining", S::SERVICE_UNAVAILABLE, 14, true, "DR"),
            Self::Gone => row("gone", CLIENT_CLOSED, 1, false, "DC"),
        }
    }
}

/// A failed request: what kind, and one line that says what happened and what to look at.
#[derive(Clone, Debug)]
pub(crate) struct Error {
    /// The kind.
    pub(crate) kind: Kind,
    /// For the person who reads the body or the log; never has secrets in it.
    pub(crate) detail: Cow<'static, str>,
    /// True if bytes of the request were written towards the upstream.
    pub(crate) sent: bool,
    /// Fields of the answer beyond the usual: `Retry-After`, `RateLimit`.
    pub(crate) headers: Option<Box<http::HeaderMap>>,
    /// What is answered in place of what the kind says: a fault put in on purpose has an answer of its own.
    pub(crate) instead: Option<Abort>,
}

impl Error {
    /// An error before anything was sent.
    pub(crate) fn new(kind: Kind, detail: impl Into<Cow<'static, str>>) -> Self {
        Self { kind, detail: detail.into(), sent: false, headers: None, instead: None }
    }

    /// The same with a field in its answer.
    pub(crate) fn with_header(mut self, name: http::HeaderName, value: http::HeaderValue) -> Self {
        self.headers.get_or_insert_default().insert(name, value);
        self
    }

    /// The same with another answer than its kind's.
    pub(crate) fn answered_with(mut self, abort: Abort) -> Self {
        self.instead = Some(abort);
        self
    }

    /// The HTTP status of its answer.
    pub(crate) fn status(&self) -> StatusCode {
        match self.instead {
            Some(Abort::Status(status)) => status,
            Some(Abort::Grpc(status)) => http_of_grpc(status),
            Some(Abort::Reset) | None => self.kind.row().status,
        }
    }

    /// The gRPC status of its answer.
    pub(crate) fn grpc_status(&self) -> u8 {
        match self.instead {
            Some(Abort::Grpc(status)) => status,
            Some(Abort::Status(status)) => grpc_of_http(status),
            Some(Abort::Reset) | None => self.kind.row().grpc_status,
        }
    }

    /// An error after bytes were sent.
    pub(crate) fn after_send(kind: Kind, detail: impl Into<Cow<'static, str>>) -> Self {
        Self { kind, detail: detail.into(), sent: true, headers: None, instead: None }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.kind.row().name, self.detail)
    }
}

impl std::error::Error for Error {}

/// The gRPC status that the gRPC specification gives to a bare HTTP status.
fn grpc_of_http(status: StatusCode) -> u8 {
    match status.as_u16() {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502..=504 => 14,
        _ => 2,
    }
}

/// The HTTP status for a caller that does not speak gRPC, as gateways from HTTP to gRPC commonly translate.
fn http_of_grpc(status: u8) -> StatusCode {
    match status {
        1 => StatusCode::from_u16(499).unwrap_or(StatusCode::BAD_REQUEST),
        3 | 9 | 11 => StatusCode::BAD_REQUEST,
        4 => StatusCode::GATEWAY_TIMEOUT,
        5 => StatusCode::NOT_FOUND,
        6 | 10 => StatusCode::CONFLICT,
        7 => StatusCode::FORBIDDEN,
        8 => StatusCode::TOO_MANY_REQUESTS,
        12 => StatusCode::NOT_IMPLEMENTED,
        14 => StatusCode::SERVICE_UNAVAILABLE,
        16 => StatusCode::UNAUTHORIZED,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_found_by_name() {
        for kind in Kind::ALL {
            assert_eq!(Kind::named(kind.row().name), Some(kind));
        }
        assert_eq!(Kind::named("a new one"), None);
    }
}
