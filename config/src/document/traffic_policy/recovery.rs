//! TrafficPolicy, failing calls: retries, hedging, circuit breaker, outlier ejection.

use super::GrpcStatus;
use crate::document::duration::PolicyDuration;
use crate::document::size::ByteSize;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// When a failed call is tried again.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Retries {
    /// How often it is tried again, beyond the first attempt; `0` turns retries off. Default: `2`.
    #[schemars(range(min = 0, max = 10))]
    pub attempts: Option<u32>,
    /// What counts as failed. Default: `[connectFailure, refused, reset, gatewayError]`.
    #[serde(default)]
    #[schemars(length(max = 16))]
    pub when: Vec<RetryCause>,
    /// Further statuses that are tried again. Example: `[429]`.
    #[serde(default)]
    #[schemars(length(max = 64), inner(range(min = 400, max = 599)))]
    pub statuses: Vec<u16>,
    /// gRPC statuses that are tried again. Default: `[UNAVAILABLE]`.
    #[serde(default)]
    #[schemars(length(max = 16))]
    pub grpc_statuses: Vec<GrpcStatus>,
    /// The wait before another attempt, which doubles each time, with full jitter.
    pub backoff: Option<Backoff>,
    /// Whether the upstream's `Retry-After` is obeyed, within the call's deadline. Default: `true`.
    pub retry_after: Option<bool>,
    /// Also tries again methods that are not safe to repeat (POST, PATCH) after the application may have seen them. Can
    /// do things twice: only for services that recognise a repeated request. Default: `false`.
    pub unsafe_methods: Option<bool>,
    /// Request bodies up to this size are kept for another attempt; larger ones are sent once. Default: `64KiB`.
    #[schemars(extend("maximumBytes" = 67_108_864))]
    pub max_body_bytes: Option<ByteSize>,
    /// How many retries there may be in all, so that a failing service is not drowned.
    pub budget: Option<RetryBudget>,
}

/// What counts as failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum RetryCause {
    /// No connection came about.
    ConnectFailure,
    /// The upstream refused the stream before it did anything.
    Refused,
    /// The connection broke or the stream was reset before an answer.
    Reset,
    /// An attempt ran into its own timeout.
    Timeout,
    /// 502, 503 or 504.
    GatewayError,
    /// Any 5xx.
    ServerError,
}

/// The wait before another attempt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Backoff {
    /// Up to this long before the first retry. Default: `25ms`.
    pub base: Option<PolicyDuration>,
    /// Never longer than this; not shorter than `base`. Default: `250ms`.
    pub max: Option<PolicyDuration>,
}

/// How many retries there may be in all.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RetryBudget {
    /// Retries in proportion to first attempts, in percent. Default: `20`.
    #[schemars(range(min = 0.0, max = 100.0))]
    pub percent: Option<f64>,
    /// Retries a second that are allowed in any case. Default: `3`.
    #[schemars(range(min = 0.0, max = 100_000.0))]
    pub min_per_second: Option<f64>,
    /// The time over which attempts are counted. Default: `10s`.
    pub window: Option<PolicyDuration>,
}

/// A second attempt for slow calls; the first answer wins and the other is cancelled. It counts against the retry
/// budget. Exactly one of `delay` and `percentile`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("exactlyOne" = ["delay", "percentile"]))]
pub struct Hedging {
    /// A second attempt starts after this long without an answer. Example: `50ms`.
    pub delay: Option<PolicyDuration>,
    /// A second attempt starts once a call takes longer than this share of recent calls, in percent. Example: `95`.
    #[schemars(range(min = 50.0, max = 99.99))]
    pub percentile: Option<f64>,
    /// Attempts at once, the first included. Default: `2`.
    #[schemars(range(min = 2, max = 5))]
    pub max_attempts: Option<u32>,
}

/// Stops calling what fails: closed lets calls pass, open refuses them, half-open lets a few probe.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CircuitBreaker {
    /// What is judged.
    #[serde(default)]
    pub scope: BreakerScope,
    /// It opens once this share of calls in `window` fails, in percent. Default: `50`.
    #[schemars(range(min = 1.0, max = 100.0))]
    pub error_percent: Option<f64>,
    /// Fewer calls than this in `window` never open it by `errorPercent`. Default: `20`.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub min_requests: Option<u32>,
    /// The time over which calls are counted. Default: `10s`.
    pub window: Option<PolicyDuration>,
    /// It opens after this many failures in a row. Left out, only `errorPercent` counts. Example: `5`.
    #[schemars(range(min = 1, max = 10_000))]
    pub consecutive_failures: Option<u32>,
    /// How long it stays open the first time; it doubles with every probe that fails. Default: `1s`.
    pub open_for: Option<PolicyDuration>,
    /// It never stays open longer than this; not shorter than `openFor`. Default: `30s`.
    pub max_open_for: Option<PolicyDuration>,
    /// Good probes in a row that close it. Default: `3`.
    #[schemars(range(min = 1, max = 100))]
    pub probes: Option<u32>,
    /// Calls slower than this count as failed. Left out, slowness does not count.
    pub slow_call: Option<PolicyDuration>,
}

/// What a breaker judges.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum BreakerScope {
    /// The service as a whole, and each endpoint by itself.
    #[default]
    Both,
    /// The service as a whole.
    Service,
    /// Each endpoint by itself.
    Endpoint,
}

/// Leaves out endpoints that do worse than the others.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct OutlierEjection {
    /// An endpoint is left out after this many 502, 503, 504, resets or connect failures in a row; `0` for never.
    /// Default: `5`.
    #[schemars(range(min = 0, max = 10_000))]
    pub consecutive_gateway_errors: Option<u32>,
    /// An endpoint is left out after this many 5xx in a row; `0` for never. Default: `0`.
    #[schemars(range(min = 0, max = 10_000))]
    pub consecutive_server_errors: Option<u32>,
    /// Compares each endpoint's share of good answers with the others'. Off if left out.
    pub success_rate: Option<SuccessRateEjection>,
    /// Compares each endpoint's latency with the others'. Off if left out.
    pub latency: Option<LatencyEjection>,
    /// How often endpoints are compared and looked at for return. Default: `10s`.
    pub interval: Option<PolicyDuration>,
    /// How long an endpoint is left out the first time; longer each further time. Default: `30s`.
    pub ejection_time: Option<PolicyDuration>,
    /// Never longer than this; not shorter than `ejectionTime`. Default: `5m`.
    pub max_ejection_time: Option<PolicyDuration>,
    /// The share of endpoints that can be left out at once, in percent. Default: `50`.
    #[schemars(range(min = 0.0, max = 100.0))]
    pub max_ejected_percent: Option<f64>,
    /// Once less than this share of endpoints is well, all are called again, in percent. Default: `30`.
    #[schemars(range(min = 0.0, max = 100.0))]
    pub panic_percent: Option<f64>,
}

/// Compares shares of good answers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SuccessRateEjection {
    /// How many standard deviations below the mean is too bad. Default: `1.9`.
    #[schemars(range(min = 0.1, max = 10.0))]
    pub deviations: Option<f64>,
    /// Endpoints with fewer calls per interval are not compared. Default: `100`.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub min_requests: Option<u32>,
    /// Fewer endpoints than this are not compared. Default: `5`.
    #[schemars(range(min = 2, max = 10_000))]
    pub min_endpoints: Option<u32>,
}

/// Compares latencies.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LatencyEjection {
    /// How many times the median of all endpoints is too slow. Default: `3`.
    #[schemars(range(min = 1.1, max = 1000.0))]
    pub times_median: Option<f64>,
    /// Endpoints with fewer calls per interval are not compared. Default: `100`.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub min_requests: Option<u32>,
}
