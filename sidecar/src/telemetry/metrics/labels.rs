//! The closed sets of label values: everything that is not a name from policy.

use super::OTHER;
use crate::{error::Kind, tls::HandshakeFailure};
use weft_config::identity::MeshProtocol;

/// Which way a call goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Direction {
    /// A peer calls our application.
    Inbound,
    /// Our application calls a service.
    Outbound,
}

impl Direction {
    /// Both.
    pub(crate) const ALL: [Self; 2] = [Self::Inbound, Self::Outbound];

    /// The label value.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Inbound => "inbound",
            Self::Outbound => "outbound",
        }
    }
}

/// The `tls` label: how the hop between the two sidecars was secured.
pub(super) const fn security(mtls: bool) -> &'static str {
    if mtls { "mtls" } else { "plain" }
}

/// Where a downstream connection is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum ConnectionState {
    /// Accepted; its protocol is being found out or its TLS handshake is under way.
    Opening,
    /// Serving requests or carrying bytes.
    Open,
    /// Told to finish: `Connection: close`, GOAWAY or half-closed.
    Draining,
}

impl ConnectionState {
    /// All states, in the order of their discriminants.
    pub(crate) const ALL: [Self; 3] = [Self::Opening, Self::Open, Self::Draining];

    /// The label value.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Opening => "opening",
            Self::Open => "open",
            Self::Draining => "draining",
        }
    }
}

/// The `protocol` label of upstream connections; one in plain text counts under the protocol it speaks.
pub(super) const fn protocol(protocol: MeshProtocol) -> &'static str {
    match protocol {
        MeshProtocol::Http1 => "http1",
        MeshProtocol::Http2 => "http2",
        MeshProtocol::Http1Over2 => "http1over2",
        MeshProtocol::Tcp => "tcp",
    }
}

/// How one attempt at a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum AttemptResult {
    /// A response whose status is below 500.
    Ok,
    /// A response whose status is 500 or above.
    ServerError,
    /// No response.
    Failed(Kind),
}

impl AttemptResult {
    /// How many different results there are.
    pub(super) const COUNT: usize = 2 + Kind::ALL.len();

    /// The result of an attempt that gave a response head.
    pub(crate) const fn of_status(status: u16) -> Self {
        if status >= 500 { Self::ServerError } else { Self::Ok }
    }

    pub(super) const fn index(self) -> usize {
        match self {
            Self::Ok => 0,
            Self::ServerError => 1,
            Self::Failed(kind) => 2 + kind as usize,
        }
    }

    /// The label value of the result with this index.
    pub(super) fn name(index: usize) -> &'static str {
        match index {
            0 => "ok",
            1 => "server_error",
            _ => Kind::ALL.get(index - 2).map_or(OTHER, |kind| kind.row().name),
        }
    }
}

/// Why a request was tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Retry {
    /// The pooled connection was closed by the peer just as it was reused.
    IdleClose,
    /// No connection could be made.
    Connect,
    /// The peer refused the stream before it looked at it (`REFUSED_STREAM`, GOAWAY).
    Refused,
    /// The connection broke under the request.
    Reset,
    /// The response's status is one that policy retries.
    Status,
    /// The attempt's own timeout passed.
    AttemptTimeout,
}

impl Retry {
    /// All reasons, in the order of their discriminants.
    pub(crate) const ALL: [Self; 6] =
        [Self::IdleClose, Self::Connect, Self::Refused, Self::Reset, Self::Status, Self::AttemptTimeout];

    /// The label value.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::IdleClose => "idle_close",
            Self::Connect => "connect",
            Self::Refused => "refused",
            Self::Reset => "reset",
            Self::Status => "status",
            Self::AttemptTimeout => "attempt_timeout",
        }
    }
}

/// Why a failed request was not tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum RetryRefused {
    /// The service's retry budget is used up.
    Budget,
    /// As many retries are in flight as policy allows.
    Limit,
    /// The service's breaker is open.
    Breaker,
    /// There was an attempt for each that policy allows.
    Attempts,
    /// The application may have seen it, and the method must not be repeated.
    Unsafe,
    /// The request's body was streamed, or is too large to be kept.
    Body,
    /// The wait would take longer than there is time.
    Deadline,
    /// It was tried again further on in the chain, or its caller does.
    Chain,
}

impl RetryRefused {
    /// All reasons, in the order of their discriminants.
    pub(crate) const ALL: [Self; 8] = [
        Self::Budget,
        Self::Limit,
        Self::Breaker,
        Self::Attempts,
        Self::Unsafe,
        Self::Body,
        Self::Deadline,
        Self::Chain,
    ];

    /// The label value.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Budget => "budget",
            Self::Limit => "limit",
            Self::Breaker => "breaker",
            Self::Attempts => "attempts",
            Self::Unsafe => "unsafe",
            Self::Body => "body",
            Self::Deadline => "deadline",
            Self::Chain => "chain",
        }
    }
}

/// What came of a second attempt at a slow call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Hedged {
    /// It answered first.
    Won,
    /// The first attempt answered first.
    Lost,
    /// It was not made: the retry budget is used up.
    Refused,
}

impl Hedged {
    /// All results, in the order of their discriminants.
    pub(crate) const ALL: [Self; 3] = [Self::Won, Self::Lost, Self::Refused];

    /// The label value.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Won => "won",
            Self::Lost => "lost",
            Self::Refused => "refused",
        }
    }
}

/// A circuit breaker's position; what is worse is greater, and the discriminant is the value in `weft_breaker_state`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum BreakerPosition {
    /// Calls pass.
    Closed,
    /// One call at a time probes.
    HalfOpen,
    /// Calls are refused.
    Open,
}

impl BreakerPosition {
    /// All positions, in the order of their discriminants.
    pub(crate) const ALL: [Self; 3] = [Self::Closed, Self::HalfOpen, Self::Open];

    /// The label value.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::HalfOpen => "half_open",
            Self::Open => "open",
        }
    }
}

/// What a circuit breaker judges.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum BreakerScope {
    /// The service as a whole.
    Service,
    /// One endpoint.
    Endpoint,
}

impl BreakerScope {
    /// Both, in the order of their discriminants.
    pub(crate) const ALL: [Self; 2] = [Self::Service, Self::Endpoint];

    /// The label value.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Service => "service",
            Self::Endpoint => "endpoint",
        }
    }
}

/// Why an endpoint is ejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum EjectionCause {
    /// Too many gateway errors in a row.
    GatewayErrors,
    /// Too many 5xx in a row.
    ServerErrors,
    /// A success rate far below that of the others.
    SuccessRate,
    /// A latency far above that of the others.
    Latency,
}

impl EjectionCause {
    /// All causes, in the order of their discriminants.
    pub(crate) const ALL: [Self; 4] =
        [Self::GatewayErrors, Self::ServerErrors, Self::SuccessRate, Self::Latency];

    /// The label value.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::GatewayErrors => "gateway_errors",
            Self::ServerErrors => "server_errors",
            Self::SuccessRate => "success_rate",
            Self::Latency => "latency",
        }
    }
}

/// How many ways a handshake ends: well, refused because it was none (plain text), or as [`HandshakeFailure`] says.
pub(super) const HANDSHAKE_RESULTS: usize = 2 + HandshakeFailure::ALL.len();

/// The label value of the result with this index.
pub(super) fn handshake_result(index: usize) -> &'static str {
    match index {
        0 => "ok",
        1 => "plaintext_refused",
        _ => HandshakeFailure::ALL.get(index - 2).map_or(OTHER, |failure| failure.as_str()),
    }
}

pub(super) fn handshake_index(result: &str) -> usize {
    let known = (0..HANDSHAKE_RESULTS).find(|index| handshake_result(*index) == result);
    known.unwrap_or(2 + HandshakeFailure::Other as usize)
}
