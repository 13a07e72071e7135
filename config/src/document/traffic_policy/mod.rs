//! TrafficPolicy: how calls are balanced, bounded, retried and protected.

mod balancing;
mod load;
mod recovery;

pub use balancing::*;
pub use load::*;
pub use recovery::*;

use crate::document::duration::PolicyDuration;
use crate::document::metadata::Resource;
use crate::document::route::HeaderMatch;
use crate::document::target::TargetRef;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How calls are balanced, bounded, retried and protected (`weft.mesh/v1alpha1`).
pub type TrafficPolicy = Resource<TrafficPolicySpec>;

/// Every part is optional, and what is left out keeps its default. A policy on a route's rule goes before one on the
/// route, that before one on the port that is called, and that before one on the Service, part by part. What is said of
/// endpoints (`loadBalancer`, `connections`, `circuitBreaker`, `outlierEjection`, `healthCheck`, `retries.budget`,
/// `timeouts.connect`) comes from the policies on the backend's own Service, unless one on the route says it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TrafficPolicySpec {
    /// What it applies to: Services, HTTPRoutes, GRPCRoutes, or one of their rules or ports by `sectionName`.
    #[schemars(length(min = 1, max = 16))]
    pub target_refs: Vec<TargetRef>,
    /// How an endpoint is picked.
    pub load_balancer: Option<LoadBalancer>,
    /// Bounds on connections and on what waits for them; above, calls fail at once with 503.
    pub connections: Option<ConnectionLimits>,
    /// How long calls may take.
    pub timeouts: Option<TrafficTimeouts>,
    /// When a failed call is tried again.
    pub retries: Option<Retries>,
    /// A second attempt for slow calls; the first answer wins. Off if left out.
    pub hedging: Option<Hedging>,
    /// Stops calling a service or an endpoint that fails. Off if left out.
    pub circuit_breaker: Option<CircuitBreaker>,
    /// Leaves out endpoints that do worse than the others.
    pub outlier_ejection: Option<OutlierEjection>,
    /// Limits on how many calls pass; above, 429. On a Service they are counted where it is served, on a route at each
    /// caller.
    #[serde(default)]
    #[schemars(length(max = 32))]
    pub rate_limits: Vec<RateLimit>,
    /// What tells one user from another: with it a weighted split keeps each user on one side. The first part that a
    /// request has is taken.
    #[serde(default)]
    #[schemars(length(max = 8))]
    pub session_key: Vec<KeyPart>,
    /// Spreads users over backends so that each stays on its own. Off if left out.
    pub sharding: Option<Sharding>,
    /// Faults put in on purpose, to see what callers make of them. Only the first that applies to a call is used.
    #[serde(default)]
    #[schemars(length(max = 16))]
    pub faults: Vec<Fault>,
    /// Asks endpoints whether they are well. Left out, only what calls tell counts.
    pub health_check: Option<HealthCheck>,
    /// How many calls the application gets at once, on each of its ports. Only on a Service.
    pub concurrency: Option<Concurrency>,
    /// Marks what is called as going away: answers carry `Deprecation` and `Sunset`, and its callers are counted.
    pub deprecation: Option<Deprecation>,
}

/// One part of a key: exactly one field.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("exactlyOne" = ["header", "cookie", "query", "source", "identity"]))]
pub struct KeyPart {
    /// The value of this request header. Example: `x-user`.
    #[schemars(length(min = 1, max = 256), extend("format" = "header-name"))]
    pub header: Option<String>,
    /// The value of this cookie. Example: `session`.
    #[schemars(length(min = 1, max = 256), extend("format" = "token"))]
    pub cookie: Option<String>,
    /// The value of this query parameter. Example: `customer`.
    #[schemars(length(min = 1, max = 256))]
    pub query: Option<String>,
    /// The caller's IP address. Only `true` makes sense.
    #[schemars(extend("const" = true))]
    pub source: Option<bool>,
    /// The caller's proven identity. Only `true` makes sense.
    #[schemars(extend("const" = true))]
    pub identity: Option<bool>,
}

/// How long calls may take. `0s` is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TrafficTimeouts {
    /// The whole call, all attempts together. A route's own `timeouts.request` goes before it. Default: the mesh's
    /// `limits.requestTimeout`.
    pub request: Option<PolicyDuration>,
    /// One attempt; not longer than `request`. Default: no limit of its own.
    pub attempt: Option<PolicyDuration>,
    /// The wait for the next byte of a streamed answer. Default: no limit of its own.
    pub idle: Option<PolicyDuration>,
    /// A TCP connect. Default: the mesh's `limits.connectTimeout`.
    pub connect: Option<PolicyDuration>,
    /// Whether the time that is left is told to the upstream, and one that a caller tells is obeyed. Default: `true`.
    pub deadlines: Option<bool>,
}

/// A fault put in on purpose: a delay, an abort or both.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Fault {
    /// The share of calls that it hits, in percent. Default: `100`.
    #[schemars(range(min = 0.0, max = 100.0))]
    pub percent: Option<f64>,
    /// Only calls with all of these headers. Left out, every call.
    #[serde(default)]
    #[schemars(length(max = 16))]
    pub headers: Vec<HeaderMatch>,
    /// Waits this long before the call goes on. Example: `2s`.
    pub delay: Option<PolicyDuration>,
    /// Answers in place of the upstream.
    pub abort: Option<Abort>,
}

/// The answer in place of the upstream's: exactly one field.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("exactlyOne" = ["status", "grpcStatus", "reset"]))]
pub struct Abort {
    /// An HTTP status. Example: `503`.
    #[schemars(range(min = 200, max = 599))]
    pub status: Option<u16>,
    /// A gRPC status. Example: `UNAVAILABLE`.
    pub grpc_status: Option<GrpcStatus>,
    /// Closes the connection (HTTP/1) or resets the stream (HTTP/2). Only `true` makes sense.
    #[schemars(extend("const" = true))]
    pub reset: Option<bool>,
}

/// A gRPC status other than `OK`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum GrpcStatus {
    /// 1: the caller gave up.
    Cancelled,
    /// 2: nobody knows.
    Unknown,
    /// 3: the request makes no sense.
    InvalidArgument,
    /// 4: it took too long.
    DeadlineExceeded,
    /// 5: there is no such thing.
    NotFound,
    /// 6: it is there already.
    AlreadyExists,
    /// 7: the caller may not.
    PermissionDenied,
    /// 8: a quota is used up.
    ResourceExhausted,
    /// 9: the state does not allow it.
    FailedPrecondition,
    /// 10: it lost against another.
    Aborted,
    /// 11: it is past the end.
    OutOfRange,
    /// 12: the method does not exist.
    Unimplemented,
    /// 13: something broke.
    Internal,
    /// 14: nobody serves it now.
    Unavailable,
    /// 15: data is lost.
    DataLoss,
    /// 16: the caller did not prove who it is.
    Unauthenticated,
}

impl GrpcStatus {
    /// The number on the wire.
    pub const fn code(self) -> u8 {
        self as u8 + 1
    }
}

/// Marks what is called as going away.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Deprecation {
    /// Since when it is deprecated: a date, or a date and time in UTC. Example: `2026-01-31`.
    #[schemars(extend("format" = "date-or-time"))]
    pub since: String,
    /// When it stops working. Not before `since`. Example: `2026-12-31`.
    #[schemars(extend("format" = "date-or-time"))]
    pub sunset: Option<String>,
    /// Where callers can read what to use in its place. Example: `https://docs.example.com/v2`.
    #[schemars(length(min = 1, max = 1024))]
    pub link: Option<String>,
}
