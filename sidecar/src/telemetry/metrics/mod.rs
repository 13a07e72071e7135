//! Prometheus metrics: a registry shared by the process, written by each worker in memory of its own.
//!
//! [`Metrics`] hands out [`Series`] when a snapshot is compiled; a request then records into the series it was given,
//! without a lock, a look-up or a cache line that another worker writes. What has no series (errors, handshakes,
//! connections) is counted in the worker's [`Shard`]. [`Metrics::render`] sums all of it.
//!
//! A new family needs two things: a place for its number (a field of `shard::Cells` if it has fixed labels, of
//! [`ServiceSeries`] if it is one per service, of [`Metrics`] if only the control runtime writes it) and a function in
//! `families.rs`, which is the one list of all that is exported.

mod admission;
mod answers;
mod cache;
mod families;
mod guarded;
mod health;
mod interned;
mod labels;
mod paths;
mod process;
mod series;
mod shard;
mod siblings;
#[cfg(test)]
mod tests;
mod tiers;

pub(crate) use admission::{
    ConcurrencySeries, CopyResult, FaultKind, MirrorSeries, RateLimitSeries, Shed, Shown,
};
pub(crate) use answers::{Answered, Bypass, Forwarded, Refusal};
pub(crate) use cache::{CacheSeries, CacheSeriesKey, Kept, KeptNow, KeptSource, KeptTotals};
pub(crate) use health::{Health, HealthResult};
pub(crate) use labels::{
    AttemptResult, BreakerPosition, BreakerScope, ConnectionState, Direction, EjectionCause, Hedged, Retry,
    RetryRefused,
};
pub(crate) use paths::{Path, PathUpstream};
pub(crate) use series::{Queue, Series, SeriesKey, ServiceSeries};
pub(crate) use shard::{Connection, Shard};
pub(crate) use siblings::{SiblingAsked, SiblingServed};
pub(crate) use tiers::{Given, Looked, Tier, Tiers};

use admission::Admission;
use cache::Caches;
use interned::Interned;
use paths::PathSeries;
use prometheus::{Encoder, TextEncoder};
use shard::{Cell, Cells, Denials};
use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU8, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

/// The label value of what has no series of its own because a bound is reached.
pub(crate) const OTHER: &str = "other";

/// Request series, beyond which a new one counts as `other`. Scrapes stay below a few megabytes.
const SERIES_LIMIT: usize = 4096;
/// Services with series of their own.
const SERVICE_LIMIT: usize = 4096;
/// Authorization rules with series of their own.
const RULE_LIMIT: usize = 1024;
/// Things with a deprecation whose calls are told apart; also what one report to the control plane holds.
const DEPRECATED_LIMIT: usize = 256;
/// A series that policy no longer names is kept this long, so that a scraper sees its last value.
const KEEP_UNUSED: Duration = Duration::from_secs(600);
/// Longest value of a label that is set while the process runs.
const LABEL_BYTES: usize = 128;

/// All numbers of one process.
pub(crate) struct Metrics {
    started: SystemTime,
    cells: Box<[Cells]>,
    requests: Interned<SeriesKey, Series>,
    services: Interned<Arc<str>, ServiceSeries>,
    /// Denials per authorization rule, each with one cell a worker.
    rules: Interned<Arc<str>, Denials>,
    /// Calls per deprecated thing, each with one cell a worker.
    deprecated: Interned<Arc<str>, Denials>,
    /// Where the time of requests to each service that is served here went.
    paths: Interned<Arc<str>, PathSeries>,
    /// What they waited for, by service and route.
    path_upstreams: Interned<(Arc<str>, Arc<str>), PathUpstream>,
    /// Rate limits, concurrency, faults and mirrors.
    admission: Admission,
    /// Further places of the response cache.
    pub(crate) tiers: Arc<Tiers>,
    /// Answers of the response cache, and what it keeps.
    caches: Caches,
    /// What the caches of one service's sidecars ask each other.
    siblings: siblings::Siblings,
    /// What only the control runtime (or a rare event on any thread) counts: ordinary atomic additions.
    renewals_ok: AtomicU64,
    renewals_failed: AtomicU64,
    policy_updates: AtomicU64,
    policy_rejected: AtomicU64,
    access_log_dropped: AtomicU64,
    /// Seconds since 1970; 0 before there is a certificate.
    identity_expiration: AtomicU64,
    /// 0 not connected, 1 connected, 2 there is no control plane (policy from files).
    control_plane: AtomicU8,
    policy_version: Mutex<Option<Box<str>>>,
}

impl Metrics {
    /// A registry for `workers` workers, numbered from 0.
    pub(crate) fn new(workers: usize) -> Arc<Self> {
        Self::with_limits(workers, SERIES_LIMIT, SERVICE_LIMIT, RULE_LIMIT)
    }

    fn with_limits(workers: usize, series: usize, services: usize, rules: usize) -> Arc<Self> {
        Arc::new(Self {
            started: SystemTime::now(),
            cells: (0..workers.max(1)).map(|_| Cells::default()).collect(),
            requests: Interned::new(series),
            services: Interned::new(services),
            rules: Interned::new(rules),
            deprecated: Interned::new(rules.min(DEPRECATED_LIMIT)),
            paths: Interned::new(services),
            path_upstreams: Interned::new(series),
            admission: Admission::default(),
            tiers: Arc::default(),
            caches: Caches::default(),
            siblings: siblings::Siblings::default(),
            renewals_ok: AtomicU64::new(0),
            renewals_failed: AtomicU64::new(0),
            policy_updates: AtomicU64::new(0),
            policy_rejected: AtomicU64::new(0),
            access_log_dropped: AtomicU64::new(0),
            identity_expiration: AtomicU64::new(0),
            control_plane: AtomicU8::new(2),
            policy_version: Mutex::new(None),
        })
    }

    /// How many workers write here.
    pub(crate) fn workers(&self) -> usize {
        self.cells.len()
    }

    /// The series of this key: the same key gives the same series. For the compiling of snapshots, not for requests.
    /// Beyond the bound everything shares one series named `other` (per direction and `tls`).
    pub(crate) fn series(&self, key: SeriesKey) -> Arc<Series> {
        let now = Instant::now();
        let new = |_: &SeriesKey| Series::new(self.workers());
        match self.requests.get(key.clone(), now, new) {
            Some(series) => series,
            None => self.requests.get_always(SeriesKey::other(key.direction, key.mtls), new),
        }
    }

    /// The series of a service, by `<namespace>/<name>`. For the compiling of snapshots, not for requests.
    pub(crate) fn service(&self, name: &str) -> Arc<ServiceSeries> {
        let new = |_: &Arc<str>| ServiceSeries::new(self.workers());
        match self.services.get(name.into(), Instant::now(), new) {
            Some(series) => series,
            None => self.services.get_always(OTHER.into(), new),
        }
    }

    /// The denials of an authorization rule, one cell a worker.
    fn rule(&self, name: &str) -> Arc<Denials> {
        let new = |_: &Arc<str>| (0..self.workers()).map(|_| Cell::default()).collect();
        match self.rules.get(name.into(), Instant::now(), new) {
            Some(rule) => rule,
            None => self.rules.get_always(OTHER.into(), new),
        }
    }

    /// The calls to a deprecated thing, one cell a worker.
    fn deprecated(&self, of: &str) -> Arc<Denials> {
        let new = |_: &Arc<str>| (0..self.workers()).map(|_| Cell::default()).collect();
        match self.deprecated.get(of.into(), Instant::now(), new) {
            Some(calls) => calls,
            None => self.deprecated.get_always(OTHER.into(), new),
        }
    }

    /// How often each deprecated thing was called, in the order of their names. What found no room is not among them:
    /// nobody could say what was called.
    pub(crate) fn deprecated_calls(&self) -> Vec<(Arc<str>, u64)> {
        let all = self.deprecated.all().into_iter().filter(|(of, ..)| &**of != OTHER);
        all.map(|(of, cells, _)| (of, cells.iter().map(Cell::get).sum())).collect()
    }

    /// Where the time of requests to a service goes, by `<namespace>/<name>`. For the making of connections.
    fn path(&self, service: &str) -> Arc<PathSeries> {
        let new = |name: &Arc<str>| PathSeries::new(Arc::clone(name), self.workers());
        match self.paths.get(service.into(), Instant::now(), new) {
            Some(path) => path,
            None => self.paths.get_always(OTHER.into(), new),
        }
    }

    /// What requests wait for: a service, by `<namespace>/<name>`, and the route that leads there, empty for none. For
    /// the compiling of snapshots, not for requests.
    pub(crate) fn path_upstream(&self, service: &Arc<str>, route: &Arc<str>) -> Arc<PathUpstream> {
        let new = |_: &(Arc<str>, Arc<str>)| PathUpstream::new(self.workers());
        let key = (Arc::clone(service), Arc::clone(route));
        match self.path_upstreams.get(key, Instant::now(), new) {
            Some(upstream) => upstream,
            None => self.path_upstreams.get_always((OTHER.into(), OTHER.into()), new),
        }
    }

    /// A certificate was renewed, or the attempt failed.
    pub(crate) fn identity_renewed(&self, success: bool) {
        let counter = if success { &self.renewals_ok } else { &self.renewals_failed };
        counter.fetch_add(1, Relaxed);
    }

    /// When the certificate in use ends.
    pub(crate) fn identity_expires(&self, at: SystemTime) {
        let seconds = at.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        self.identity_expiration.store(seconds, Relaxed);
    }

    /// A new snapshot is in force.
    pub(crate) fn policy_updated(&self, version: &str) {
        self.policy_updates.fetch_add(1, Relaxed);
        let mut end = version.len().min(LABEL_BYTES);
        while !version.is_char_boundary(end) {
            end -= 1;
        }
        let version = version.get(..end).unwrap_or_default();
        *self.policy_version.lock().unwrap_or_else(PoisonError::into_inner) = Some(version.into());
    }

    /// A resource or a file was refused; what was in force before stays.
    pub(crate) fn policy_rejected(&self) {
        self.policy_rejected.fetch_add(1, Relaxed);
    }

    /// The stream to the control plane came up or went down. Never called where policy comes from files.
    pub(crate) fn control_plane_connected(&self, connected: bool) {
        self.control_plane.store(u8::from(connected), Relaxed);
    }

    /// Lines of the access log that nobody took in time.
    pub(crate) fn access_log_dropped(&self, lines: u64) {
        self.access_log_dropped.fetch_add(lines, Relaxed);
    }

    /// Everything, in the Prometheus text format 0.0.4. Also the moment when series that policy no longer names and
    /// that nobody used for a while are forgotten.
    pub(crate) fn render(&self) -> Vec<u8> {
        self.render_at(Instant::now())
    }

    fn render_at(&self, now: Instant) -> Vec<u8> {
        self.requests.forget_unused(now, KEEP_UNUSED);
        self.services.forget_unused(now, KEEP_UNUSED);
        self.rules.forget_unused(now, KEEP_UNUSED);
        self.deprecated.forget_unused(now, KEEP_UNUSED);
        self.paths.forget_unused(now, KEEP_UNUSED);
        self.path_upstreams.forget_unused(now, KEEP_UNUSED);
        self.admission.forget_unused(now, KEEP_UNUSED);
        self.caches.forget_unused(now, KEEP_UNUSED);
        let families = families::collect(self);
        let mut text = Vec::with_capacity(16 * 1024);
        if let Err(error) = TextEncoder::new().encode(&families, &mut text) {
            // Only a family without a name or a sample does this, and `collect` makes none.
            tracing::error!(%error, "metrics could not be rendered");
        }
        text
    }
}
