//! What rate limits, concurrency limits, faults and mirrors count. Written by all workers: only calls that meet such a
//! policy come here, and most of these numbers change rarely.

use super::{Metrics, OTHER, families::Family, interned::Interned};
use prometheus::proto::MetricFamily;
use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

/// Limits, services and backends with series of their own, each.
const LIMIT: usize = 1024;

/// One rate limit.
#[derive(Default)]
pub(crate) struct RateLimitSeries {
    refused: AtomicU64,
    keys: AtomicU64,
}

impl RateLimitSeries {
    /// A call was refused.
    pub(crate) fn refused(&self) {
        self.refused.fetch_add(1, Relaxed);
    }

    /// So many key values are remembered.
    pub(crate) fn remembers(&self, keys: usize) {
        self.keys.store(keys as u64, Relaxed);
    }
}

/// Why a call was turned away before the application got it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shed {
    /// The queue was full.
    QueueFull,
    /// It waited for too long.
    Timeout,
    /// One of higher priority took its place in the queue.
    Displaced,
}

impl Shed {
    const NAMES: [&str; 3] = ["queue_full", "timeout", "displaced"];
}

/// What a concurrency limiter shows: its limit if it has one, calls in flight, calls in the queue.
pub(crate) type Shown = (Option<u32>, u32, usize);

/// The concurrency of one service; the sum over its ports.
#[derive(Default)]
pub(crate) struct ConcurrencySeries {
    limited: AtomicI64,
    limit: AtomicI64,
    in_flight: AtomicI64,
    queued: AtomicI64,
    shed: [AtomicU64; Shed::NAMES.len()],
}

impl ConcurrencySeries {
    /// A call was turned away.
    pub(crate) fn shed(&self, reason: Shed) {
        self.shed[reason as usize].fetch_add(1, Relaxed);
    }

    /// One limiter went from one state to another.
    pub(crate) fn changed(&self, before: Shown, after: Shown) {
        let add = |cell: &AtomicI64, before: i64, after: i64| {
            if before != after {
                cell.fetch_add(after - before, Relaxed);
            }
        };
        let limit = |shown: Shown| shown.0.map_or(0, i64::from);
        add(&self.limited, before.0.is_some().into(), after.0.is_some().into());
        add(&self.limit, limit(before), limit(after));
        add(&self.in_flight, before.1.into(), after.1.into());
        add(&self.queued, before.2 as i64, after.2 as i64);
    }
}

/// How a copy of a request fared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CopyResult {
    /// It was answered with a status below 500.
    Ok,
    /// It was not, or not in time.
    Failed,
    /// It was given up here: too many under way, or too slow for the original.
    Dropped,
}

impl CopyResult {
    const NAMES: [&str; 3] = ["ok", "failed", "dropped"];
}

/// The copies that go to one backend.
#[derive(Default)]
pub(crate) struct MirrorSeries([AtomicU64; CopyResult::NAMES.len()]);

impl MirrorSeries {
    /// A copy is through, or given up.
    pub(crate) fn copied(&self, result: CopyResult) {
        self.0[result as usize].fetch_add(1, Relaxed);
    }

    #[cfg(test)]
    pub(crate) fn count(&self, result: CopyResult) -> u64 {
        self.0[result as usize].load(Relaxed)
    }
}

/// What a fault did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FaultKind {
    /// The call waited.
    Delay,
    /// It was answered in place of the upstream.
    Abort,
    /// Its connection was closed, or its stream reset.
    Reset,
}

impl FaultKind {
    const NAMES: [&str; 3] = ["delay", "abort", "reset"];
}

/// All of these numbers of one process.
pub(super) struct Admission {
    rate_limits: Interned<Arc<str>, RateLimitSeries>,
    concurrency: Interned<Arc<str>, ConcurrencySeries>,
    mirrors: Interned<Arc<str>, MirrorSeries>,
    faults: [AtomicU64; FaultKind::NAMES.len()],
}

impl Default for Admission {
    fn default() -> Self {
        Self {
            rate_limits: Interned::new(LIMIT),
            concurrency: Interned::new(LIMIT),
            mirrors: Interned::new(LIMIT),
            faults: Default::default(),
        }
    }
}

impl Metrics {
    /// The series of a rate limit, by its id. For the compiling of snapshots, not for requests.
    pub(crate) fn rate_limit(&self, id: &str) -> Arc<RateLimitSeries> {
        get(&self.admission.rate_limits, id)
    }

    /// The series of a service's concurrency, by `<namespace>/<name>`. Not for requests.
    pub(crate) fn concurrency(&self, service: &str) -> Arc<ConcurrencySeries> {
        get(&self.admission.concurrency, service)
    }

    /// The series of copies to a backend, by `<namespace>/<name>`. Not for requests.
    pub(crate) fn mirror(&self, backend: &str) -> Arc<MirrorSeries> {
        get(&self.admission.mirrors, backend)
    }

    /// A fault was put in.
    pub(crate) fn fault(&self, kind: FaultKind) {
        self.admission.faults[kind as usize].fetch_add(1, Relaxed);
    }
}

fn get<V: Default>(table: &Interned<Arc<str>, V>, name: &str) -> Arc<V> {
    let new = |_: &Arc<str>| V::default();
    match table.get(name.into(), Instant::now(), new) {
        Some(series) => series,
        None => table.get_always(OTHER.into(), new),
    }
}

impl Admission {
    pub(super) fn forget_unused(&self, now: Instant, keep: Duration) {
        self.rate_limits.forget_unused(now, keep);
        self.concurrency.forget_unused(now, keep);
        self.mirrors.forget_unused(now, keep);
    }

    /// Names that found no room, by table.
    pub(super) fn overflows(&self) -> [(&'static str, u64); 3] {
        [
            ("rate_limits", self.rate_limits.overflows()),
            ("concurrency", self.concurrency.overflows()),
            ("mirrors", self.mirrors.overflows()),
        ]
    }

    pub(super) fn collect(&self, out: &mut Vec<MetricFamily>) {
        self.collect_rate_limits(out);
        self.collect_concurrency(out);
        let mut faults = Family::counter("weft_faults_total", "Faults put in on purpose, by what they did.");
        for (kind, count) in FaultKind::NAMES.into_iter().zip(&self.faults) {
            faults.sample(&[("kind", kind)], count.load(Relaxed) as f64);
        }
        faults.done(out);
        let mut mirrored = Family::counter(
            "weft_mirrored_total",
            "Copies of requests, by how they fared: ok (answered below 500), failed, dropped.",
        );
        for (backend, series, _) in self.mirrors.all() {
            for (result, count) in CopyResult::NAMES.into_iter().zip(&series.0) {
                mirrored.sample(&[("backend", &*backend), ("result", result)], count.load(Relaxed) as f64);
            }
        }
        mirrored.done(out);
    }

    fn collect_rate_limits(&self, out: &mut Vec<MetricFamily>) {
        let mut refused = Family::counter("weft_rate_limited_total", "Calls that a rate limit refused.");
        let mut keys = Family::gauge("weft_rate_limit_keys", "Key values that a rate limit remembers.");
        for (limit, series, in_use) in self.rate_limits.all() {
            refused.sample(&[("limit", &*limit)], series.refused.load(Relaxed) as f64);
            if in_use {
                keys.sample(&[("limit", &*limit)], series.keys.load(Relaxed) as f64);
            }
        }
        refused.done(out);
        keys.done(out);
    }

    fn collect_concurrency(&self, out: &mut Vec<MetricFamily>) {
        let mut limit = Family::gauge(
            "weft_concurrency_limit",
            "Calls that the application gets at once, where that is limited.",
        );
        let mut in_flight = Family::gauge("weft_concurrency_in_flight", "Calls that the application has.");
        let mut queued = Family::gauge("weft_concurrency_queued", "Calls that wait for their turn.");
        let mut shed = Family::counter(
            "weft_shed_total",
            "Calls turned away before the application got them, by why: queue_full, timeout, displaced.",
        );
        for (service, series, in_use) in self.concurrency.all() {
            let label = ("service", &*service);
            if in_use {
                if series.limited.load(Relaxed) > 0 {
                    limit.sample(&[label], series.limit.load(Relaxed) as f64);
                }
                in_flight.sample(&[label], series.in_flight.load(Relaxed) as f64);
                queued.sample(&[label], series.queued.load(Relaxed) as f64);
            }
            for (reason, count) in Shed::NAMES.into_iter().zip(&series.shed) {
                shed.sample(&[label, ("reason", reason)], count.load(Relaxed) as f64);
            }
        }
        limit.done(out);
        in_flight.done(out);
        queued.done(out);
        shed.done(out);
    }
}
