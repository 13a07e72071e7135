//! What the sidecar tells the people who run it: metrics, trace context, the access log and its own log.
//!
//! - [`metrics`]: Prometheus counters, gauges and histograms. A request costs a few plain stores into memory that only
//!   its own worker writes; sums are made when somebody scrapes. `docs/telemetry.md` lists every family.
//! - [`trace`]: W3C Trace Context and B3, read, created and passed on with a fresh span ID a hop; `x-request-id`.
//! - [`access_log`]: one JSON line a request on standard output, off unless MeshPolicy asks for it.
//! - [`log`]: the process's own log on standard error, with a level that can be changed while it runs.
//!
//! Nothing here imports `upstream`, `authz` or the two directions: they call in, with names that come from policy.
//! Text from the wire reaches only the access log (escaped and bounded), never a metric label.

pub(crate) mod access_log;
pub(crate) mod log;
pub(crate) mod metrics;
pub(crate) mod trace;

pub(crate) use metrics::Metrics;
