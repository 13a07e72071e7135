//! TrafficPolicy, bounds on load: connections, rate limits, concurrency and priorities.

use super::KeyPart;
use crate::document::duration::PolicyDuration;
use crate::document::route::{HeaderMatch, HttpMethod};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Bounds on connections and on what waits for them, for each sidecar that calls the service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ConnectionLimits {
    /// Connections per endpoint. Default: the mesh's `limits.poolConnections`.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max: Option<u32>,
    /// Requests that wait for a connection. Default: `1024`.
    #[schemars(range(min = 0, max = 1_000_000))]
    pub max_pending: Option<u32>,
    /// Requests in flight. Default: no limit of its own.
    #[schemars(range(min = 1, max = 10_000_000))]
    pub max_requests: Option<u32>,
    /// Retries in flight. Default: no limit but the budget.
    #[schemars(range(min = 0, max = 1_000_000))]
    pub max_retries: Option<u32>,
    /// Requests on one connection, after which it is closed. Default: no limit.
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub max_requests_per_connection: Option<u32>,
    /// An idle connection is closed after this. Default: the mesh's `limits.poolIdleTimeout`.
    pub idle_timeout: Option<PolicyDuration>,
    /// A connection is closed at this age, once it is idle. Default: no limit.
    pub max_age: Option<PolicyDuration>,
}

/// A limit on how many calls pass, counted at each workload by itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RateLimit {
    /// A name for metrics and answers, unique within the policy. Example: `per-user`.
    #[schemars(length(min = 1, max = 63), extend("format" = "dns-label"))]
    pub name: String,
    /// How many calls pass in `per`. Example: `100`.
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub requests: u32,
    /// The time over which `requests` pass. Default: `1s`.
    pub per: Option<PolicyDuration>,
    /// How many may come at once. Default: as `requests`.
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub burst: Option<u32>,
    /// Counts separately for every value of these parts together. Left out, all calls together.
    #[serde(default)]
    #[schemars(length(max = 8))]
    pub key: Vec<KeyPart>,
    /// How many values are remembered; the longest unused goes first. Default: `10000`.
    #[schemars(range(min = 1, max = 10_000_000))]
    pub max_keys: Option<u32>,
    /// Only calls with all of these headers count. Left out, every call.
    #[serde(default)]
    #[schemars(length(max = 16))]
    pub headers: Vec<HeaderMatch>,
    /// Only calls with one of these methods count. Left out, every method.
    #[serde(default)]
    #[schemars(length(max = 9))]
    pub methods: Vec<HttpMethod>,
    /// Only calls at or below one of these paths count, by whole segments. Left out, every path. Example: `[/search]`.
    #[serde(default)]
    #[schemars(length(max = 32), extend("itemFormat" = "absolute-path"))]
    pub paths: Vec<String>,
}

/// How many calls the application gets at once: `limit` or `adaptive`, or neither for no limit.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Concurrency {
    /// Always this many. Not together with `adaptive`. Example: `64`.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub limit: Option<u32>,
    /// As many as the application takes without growing slow. Not together with `limit`.
    pub adaptive: Option<AdaptiveConcurrency>,
    /// Calls that wait for their turn.
    pub queue: Option<ConcurrencyQueue>,
    /// What goes first when not all can. The first that matches a call holds; a call that none matches has priority
    /// `50`. Give health checks `100`: an application that is merely busy is then not taken for a dead one.
    #[serde(default)]
    #[schemars(length(max = 32))]
    pub priorities: Vec<Priority>,
}

/// As many calls at once as the application takes without growing slow.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AdaptiveConcurrency {
    /// Never fewer than this. Default: `4`.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub min: Option<u32>,
    /// Never more than this; not below `min`. Default: `1000`.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max: Option<u32>,
    /// How many times the latency without load is borne. Default: `2`.
    #[schemars(range(min = 1.1, max = 100.0))]
    pub tolerance: Option<f64>,
}

/// Calls that wait for their turn.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ConcurrencyQueue {
    /// How many may wait; `0` for none. Default: `128`.
    #[schemars(range(min = 0, max = 1_000_000))]
    pub max: Option<u32>,
    /// How long one may wait. Default: `100ms`.
    pub timeout: Option<PolicyDuration>,
}

/// What goes first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Priority {
    /// From `0` (goes last) to `100` (goes first).
    #[schemars(range(min = 0, max = 100))]
    pub priority: u32,
    /// Calls with all of these headers. Left out, every call.
    #[serde(default)]
    #[schemars(length(max = 16))]
    pub headers: Vec<HeaderMatch>,
    /// Calls at or below one of these paths, by whole segments. Left out, every path. Example: `[/checkout]`.
    #[serde(default)]
    #[schemars(length(max = 32), extend("itemFormat" = "absolute-path"))]
    pub paths: Vec<String>,
}
