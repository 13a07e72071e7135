//! TrafficPolicy, picking endpoints: balancers, locality, subsets, sharding, health checks.

use super::KeyPart;
use crate::document::duration::PolicyDuration;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// How an endpoint is picked.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LoadBalancer {
    /// The balancer.
    #[serde(default)]
    pub algorithm: Algorithm,
    /// What `ringHash` and `maglev` go by; the first part that a request has is taken. Required for those two.
    #[serde(default)]
    #[schemars(length(max = 8))]
    pub hash_on: Vec<KeyPart>,
    /// Points per endpoint on the ring of `ringHash`; more spread more evenly. Default: `256`.
    #[schemars(range(min = 1, max = 4096))]
    pub ring_points: Option<u32>,
    /// An endpoint that is new or comes back gets its full share only after this long. Default: `0s`, at once.
    pub slow_start: Option<PolicyDuration>,
    /// Which zone is preferred. Left out, all zones are equal.
    pub locality: Option<Locality>,
    /// Only endpoints with these labels. Left out, all.
    pub subset: Option<Subset>,
}

/// How an endpoint is picked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Algorithm {
    /// The better of two random ones, by recent latency (its peaks count) and requests in flight.
    #[default]
    PeakEwma,
    /// The better of two random ones, by requests in flight.
    LeastRequests,
    /// One after the other.
    RoundRobin,
    /// Any.
    Random,
    /// The same key to the same endpoint; few keys move when endpoints come and go.
    RingHash,
    /// As `ringHash`, with a quicker look-up and a more even spread; a few more keys move.
    Maglev,
}

/// Which zone is preferred.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Locality {
    /// What goes first.
    #[serde(default)]
    pub prefer: LocalityPreference,
    /// Calls leave the own zone once less than this share of its endpoints is well, in percent. Default: `70`.
    #[schemars(range(min = 0.0, max = 100.0))]
    pub overflow_percent: Option<f64>,
}

/// What locality goes first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum LocalityPreference {
    /// Endpoints in the caller's zone.
    #[default]
    Zone,
    /// None: all endpoints are equal.
    None,
}

/// Only endpoints with certain labels.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Subset {
    /// Labels that an endpoint must have, all of. Example: `{version: v2}`.
    #[schemars(length(min = 1, max = 16))]
    pub labels: BTreeMap<String, String>,
    /// What happens while no endpoint has them.
    #[serde(default)]
    pub fallback: SubsetFallback,
}

/// What happens while a subset is empty.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum SubsetFallback {
    /// Calls fail with 503.
    #[default]
    Fail,
    /// Any endpoint is taken.
    Any,
}

/// Spreads users over backends so that each stays on its own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Sharding {
    /// What tells one user from another; the first part that a request has is taken. Example: `[{header: x-customer}]`.
    #[schemars(length(min = 1, max = 8))]
    pub key: Vec<KeyPart>,
    /// The shards: Services in the policy's namespace. Adding one to n moves about one key in n + 1.
    #[schemars(length(min = 1, max = 1024))]
    pub shards: Vec<Shard>,
    /// The shard that requests without a key go to. Left out, they are answered with 400.
    #[schemars(length(min = 1, max = 63))]
    pub without_key: Option<String>,
}

/// One shard.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Shard {
    /// The Service. Example: `orders-eu`.
    #[schemars(length(min = 1, max = 63), extend("format" = "dns-label"))]
    pub service: String,
    /// Its port. Default: the port that was called.
    #[schemars(range(min = 1))]
    pub port: Option<u16>,
    /// Its share relative to the other shards. Default: `1`.
    #[schemars(range(min = 0, max = 10_000))]
    pub weight: Option<u32>,
    /// Keys that always go here. Example: `[acme]`.
    #[serde(default)]
    #[schemars(length(max = 10_000))]
    pub pinned: Vec<String>,
}

/// Asks endpoints whether they are well: exactly one of `http`, `grpc` and `tcp`. Every sidecar that calls the service
/// asks for itself, with `user-agent: weft-health-check` and as its own workload: the service's AuthorizationPolicies must
/// allow that. A new endpoint counts as well until it fails.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("exactlyOne" = ["http", "grpc", "tcp"]))]
pub struct HealthCheck {
    /// Asks by an HTTP GET.
    pub http: Option<HttpHealthCheck>,
    /// Asks by the gRPC health protocol.
    pub grpc: Option<GrpcHealthCheck>,
    /// Asks by a TCP connect.
    pub tcp: Option<TcpHealthCheck>,
    /// The time between two questions to one endpoint. Default: `10s`.
    pub interval: Option<PolicyDuration>,
    /// How long an answer may take; not longer than `interval`. Default: `2s`.
    pub timeout: Option<PolicyDuration>,
    /// Good answers in a row after which an endpoint is well. Default: `1`.
    #[schemars(range(min = 1, max = 100))]
    pub healthy_threshold: Option<u32>,
    /// Bad answers in a row after which it is not. Default: `3`.
    #[schemars(range(min = 1, max = 100))]
    pub unhealthy_threshold: Option<u32>,
    /// The port that is asked. Default: the one that is called.
    #[schemars(range(min = 1))]
    pub port: Option<u16>,
}

/// Asks by an HTTP GET.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpHealthCheck {
    /// The path. Example: `/health`.
    #[schemars(length(min = 1, max = 1024), extend("format" = "absolute-path"))]
    pub path: String,
    /// The `Host`. Default: the service's name.
    #[schemars(length(min = 1, max = 253), extend("format" = "hostname"))]
    pub host: Option<String>,
    /// Statuses that are good. Default: 200 to 399.
    #[serde(default)]
    #[schemars(length(max = 64), inner(range(min = 100, max = 599)))]
    pub statuses: Vec<u16>,
}

/// Asks by the gRPC health protocol.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GrpcHealthCheck {
    /// The gRPC service that is asked about. Default: the whole server.
    #[schemars(length(max = 1024))]
    pub service: Option<String>,
}

/// Asks by a TCP connect. It has no settings: write `tcp: {}`. Where there is a sidecar it is the sidecar that is asked, by
/// an mTLS handshake for the port: that tells of the way there, and not of the application.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TcpHealthCheck {}
