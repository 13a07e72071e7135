//! TrafficPolicy compiled: how the endpoints of a backend are picked, bounded and judged.

use std::{num::NonZeroU32, sync::Arc, time::Duration};

use super::Key;

/// What is decided about one backend's endpoints, with every default filled in. It comes from the policies on the
/// backend's own Service; a rule that says otherwise about any part of it gets a cluster of its own.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Traffic {
    /// How an endpoint is picked.
    pub balancing: Balancing,
    /// Bounds that fail fast.
    pub bounds: Bounds,
    /// The breaker; `None` for none.
    pub breaker: Option<Breaker>,
    /// When an endpoint is left out for what its calls tell; on by default.
    pub ejection: Ejection,
    /// How many retries there may be in all.
    pub budget: RetryBudget,
    /// Active health checks; `None` for none.
    pub health_check: Option<HealthCheck>,
}

/// How an endpoint is picked.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Balancing {
    /// The algorithm.
    pub algorithm: Balancer,
    /// A new or returning endpoint gets its full share after this long; zero for at once.
    pub slow_start: Duration,
    /// Share of the own zone's endpoints, in `0.0..=1.0`, below which calls leave the zone; `None` if zones are equal.
    pub zone_overflow: Option<f64>,
    /// Only endpoints with all of these labels, sorted by key; empty for all.
    pub subset: Arc<[(Arc<str>, Arc<str>)]>,
    /// Whether any endpoint is taken while none has the labels of `subset`.
    pub subset_or_any: bool,
}

/// The algorithm that picks an endpoint.
#[derive(Clone, Debug, PartialEq, Default)]
pub enum Balancer {
    /// Power of two choices over peak-EWMA latency.
    #[default]
    PeakEwma,
    /// Power of two choices over requests in flight.
    LeastRequests,
    /// In turn.
    RoundRobin,
    /// Any.
    Random,
    /// Consistent hashing on a ring with this many points per unit of weight; requests without the key go anywhere.
    RingHash {
        /// What tells requests apart.
        key: Key,
        /// Points per endpoint.
        points: u32,
    },
    /// Maglev's look-up table; requests without the key go anywhere.
    Maglev {
        /// What tells requests apart.
        key: Key,
    },
}

/// Bounds per cluster (all workers of one sidecar together, unless it says otherwise).
#[derive(Clone, Debug, PartialEq)]
pub struct Bounds {
    /// Connections per endpoint and worker; `None` takes `Limits::pool_connections`.
    pub connections: Option<usize>,
    /// Requests that wait for a connection.
    pub pending: u32,
    /// Requests in flight.
    pub requests: Option<u32>,
    /// Retries in flight.
    pub retries: Option<u32>,
    /// Requests after which a connection is closed.
    pub requests_per_connection: Option<NonZeroU32>,
    /// Idle time after which a pooled connection is closed; `None` takes `Limits::pool_idle_timeout`.
    pub idle_timeout: Option<Duration>,
    /// Age at which an idle connection is closed.
    pub max_age: Option<Duration>,
    /// Time for a TCP connect; `None` takes `Limits::connect_timeout`.
    pub connect_timeout: Option<Duration>,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            connections: None,
            pending: 1024,
            requests: None,
            retries: None,
            requests_per_connection: None,
            idle_timeout: None,
            max_age: None,
            connect_timeout: None,
        }
    }
}

/// A circuit breaker's settings.
#[derive(Clone, Debug, PartialEq)]
pub struct Breaker {
    /// Judge the cluster as a whole.
    pub service: bool,
    /// Judge each endpoint.
    pub endpoint: bool,
    /// Share of failures in the window that opens it, in `0.0..=1.0`.
    pub error_share: f64,
    /// Calls in the window below which `error_share` does not count.
    pub min_requests: u32,
    /// The sliding window.
    pub window: Duration,
    /// Failures in a row that open it.
    pub consecutive_failures: Option<u32>,
    /// How long it stays open the first time; doubles with every probe that fails.
    pub open_for: Duration,
    /// The longest it stays open.
    pub max_open_for: Duration,
    /// Good probes in a row that close it.
    pub probes: u32,
    /// Calls slower than this are failures.
    pub slow_call: Option<Duration>,
}

/// When an endpoint is ejected for what its calls tell.
#[derive(Clone, Debug, PartialEq)]
pub struct Ejection {
    /// 502, 503, 504, resets and connect failures in a row; 0 for never.
    pub consecutive_gateway_errors: u32,
    /// 5xx in a row; 0 for never.
    pub consecutive_server_errors: u32,
    /// Comparison of success rates.
    pub success_rate: Option<SuccessRate>,
    /// Comparison of latencies.
    pub latency: Option<SlowEndpoint>,
    /// How often endpoints are compared.
    pub interval: Duration,
    /// How long an endpoint is out the first time; `n` times as long the n-th time.
    pub time: Duration,
    /// The longest it is out.
    pub max_time: Duration,
    /// Share of endpoints that can be out at once, in `0.0..=1.0`; never the last one.
    pub max_share: f64,
    /// Share of well endpoints below which all are called again, in `0.0..=1.0`.
    pub panic_share: f64,
}

impl Default for Ejection {
    fn default() -> Self {
        Self {
            consecutive_gateway_errors: 5,
            consecutive_server_errors: 0,
            success_rate: None,
            latency: None,
            interval: Duration::from_secs(10),
            time: Duration::from_secs(30),
            max_time: Duration::from_secs(300),
            max_share: 0.5,
            panic_share: 0.3,
        }
    }
}

/// Ejects endpoints whose success rate is far below the mean.
#[derive(Clone, Debug, PartialEq)]
pub struct SuccessRate {
    /// Standard deviations below the mean.
    pub deviations: f64,
    /// Calls per interval below which an endpoint is not compared.
    pub min_requests: u32,
    /// Endpoints below which none is compared.
    pub min_endpoints: u32,
}

/// Ejects endpoints that are much slower than the median.
#[derive(Clone, Debug, PartialEq)]
pub struct SlowEndpoint {
    /// Times the median of all endpoints.
    pub times_median: f64,
    /// Calls per interval below which an endpoint is not compared.
    pub min_requests: u32,
}

/// How many retries there may be in all: the larger of a share of first attempts and a floor.
#[derive(Clone, Debug, PartialEq)]
pub struct RetryBudget {
    /// Retries per first attempt, in `0.0..=1.0`.
    pub share: f64,
    /// Retries a second that are allowed in any case.
    pub min_per_second: f64,
    /// The time over which attempts are counted.
    pub window: Duration,
}

impl Default for RetryBudget {
    fn default() -> Self {
        Self { share: 0.2, min_per_second: 3.0, window: Duration::from_secs(10) }
    }
}

/// An active health check.
#[derive(Clone, Debug, PartialEq)]
pub struct HealthCheck {
    /// How an endpoint is asked.
    pub probe: Probe,
    /// The time between two questions to one endpoint.
    pub interval: Duration,
    /// How long an answer may take.
    pub timeout: Duration,
    /// Good answers in a row that make an endpoint well.
    pub healthy_threshold: u32,
    /// Bad answers in a row that make it unwell.
    pub unhealthy_threshold: u32,
    /// The service port that is asked in place of the one that is called.
    pub port: Option<u16>,
}

/// How an endpoint is asked whether it is well.
#[derive(Clone, Debug, PartialEq)]
pub enum Probe {
    /// An HTTP GET.
    Http {
        /// The path.
        path: Arc<str>,
        /// The `Host`.
        host: Arc<str>,
        /// Good statuses; empty for 200 to 399.
        statuses: Arc<[u16]>,
    },
    /// The gRPC health protocol.
    Grpc {
        /// The service that is asked about; empty for the whole server.
        service: Arc<str>,
    },
    /// A TCP connect.
    Tcp,
}
