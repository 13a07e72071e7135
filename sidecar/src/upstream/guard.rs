//! What all workers of a sidecar know together about one cluster: who may be called, how often, and who is left out.

use crate::{
    error::{Error, Kind},
    telemetry::metrics::ServiceSeries,
};
use arc_swap::ArcSwap;
use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};
use weft_config::snapshot::{Endpoint as Place, Traffic};

/// What tells one cluster from another. Keys come from policy; hosts outside of the registry are bounded by the workers.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct GuardKey {
    /// `<namespace>/<name>`, or the authority of a host outside of the registry.
    pub(crate) service: Arc<str>,
    /// The service port.
    pub(crate) port: u16,
    /// The rule that owns the cluster, if one does.
    pub(crate) rule: Option<Arc<str>>,
}

/// The guards of one sidecar, by name. One that no worker holds any more is forgotten.
#[derive(Default)]
pub(crate) struct Guards(Mutex<HashMap<GuardKey, Weak<Guard>>>);

impl Guards {
    /// The guard of this name: the one that other workers hold, or a new one.
    pub(crate) fn get(&self, key: &GuardKey, series: &Arc<ServiceSeries>, now: Instant) -> Arc<Guard> {
        let mut known = lock(&self.0);
        if let Some(guard) = known.get(key).and_then(Weak::upgrade) {
            return guard;
        }
        let guard = Arc::new(Guard::new(key.clone(), series.clone(), now));
        known.insert(key.clone(), Arc::downgrade(&guard));
        guard
    }

    /// Compares endpoints and sets the gauges. Call it about once a second, from one worker.
    pub(crate) fn tick(&self, _now: Instant) {
        lock(&self.0).retain(|_, guard| guard.strong_count() > 0);
    }
}

/// What all workers know together about one cluster.
pub(crate) struct Guard {
    key: GuardKey,
    series: Arc<ServiceSeries>,
    epoch: Instant,
    traffic: ArcSwap<Traffic>,
    roster: Mutex<Roster>,
    requests: AtomicU32,
    retries: AtomicU32,
}

/// The endpoints of a cluster.
#[derive(Default)]
struct Roster {
    /// Those of the newest snapshot, in its order.
    now: Vec<Arc<Standing>>,
    /// All that some worker still holds: one that lags behind by a snapshot must not make a second standing.
    known: HashMap<(SocketAddr, Arc<str>), Weak<Standing>>,
    /// Whether there were endpoints before: those of the first snapshot are not new.
    settled: bool,
}

/// What is known about one endpoint; read by all workers without a lock.
pub(crate) struct Standing {
    clock: Clock,
    /// When it came; 0 if it was there from the beginning.
    came: AtomicU64,
    /// Until when it is ejected; 0 if it never was.
    ejected_until: AtomicU64,
    /// Until when its breaker refuses; 0 if it does not.
    refused_until: AtomicU64,
    unhealthy: AtomicBool,
}

/// Instants as numbers that fit an atomic.
#[derive(Clone, Copy)]
struct Clock(Instant);

impl Clock {
    /// Nanoseconds since the beginning, never 0.
    fn number(self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.0).as_nanos()).unwrap_or(u64::MAX).max(1)
    }

    fn instant(self, number: u64) -> Option<Instant> {
        (number > 0).then(|| self.0.checked_add(Duration::from_nanos(number))).flatten()
    }
}

/// Whether an endpoint takes calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Availability {
    /// It does not.
    Out(Why),
    /// It does.
    In {
        /// Since when, for slow start; `None` if it was there from the beginning.
        since: Option<Instant>,
    },
}

/// Why an endpoint takes no calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    /// It did worse than the others.
    Ejected,
    /// It failed its health checks.
    Unhealthy,
    /// Its breaker is open, or half-open with its probe under way. Unlike the others it holds even when so few are left
    /// that all are called again: [`Entry::attempt`] refuses it.
    BreakerOpen,
}

impl Standing {
    fn new(clock: Clock, came: Option<Instant>) -> Self {
        Self {
            clock,
            came: AtomicU64::new(came.map_or(0, |at| clock.number(at))),
            ejected_until: AtomicU64::new(0),
            refused_until: AtomicU64::new(0),
            unhealthy: AtomicBool::new(false),
        }
    }

    /// Of an endpoint that nobody judges, since there is no other: the application itself.
    pub(crate) fn alone(now: Instant) -> Arc<Self> {
        Arc::new(Self::new(Clock(now), None))
    }

    /// Whether it takes calls at `now`, and since when. A few loads.
    pub(crate) fn availability(&self, now: Instant) -> Availability {
        let number = self.clock.number(now);
        if self.unhealthy.load(Relaxed) {
            return Availability::Out(Why::Unhealthy);
        }
        let ejected_until = self.ejected_until.load(Relaxed);
        if ejected_until > number {
            return Availability::Out(Why::Ejected);
        }
        if self.refused_until.load(Relaxed) > number {
            return Availability::Out(Why::BreakerOpen);
        }
        let since = self.came.load(Relaxed).max(ejected_until);
        Availability::In { since: self.clock.instant(since) }
    }

    /// What active health checks say. One that comes back counts as new, for slow start.
    pub(crate) fn set_healthy(&self, healthy: bool, now: Instant) {
        let was_unhealthy = self.unhealthy.swap(!healthy, Relaxed);
        if healthy && was_unhealthy {
            self.came.store(self.clock.number(now), Relaxed);
        }
    }
}

impl Guard {
    fn new(key: GuardKey, series: Arc<ServiceSeries>, now: Instant) -> Self {
        Self {
            key,
            series,
            epoch: now,
            traffic: ArcSwap::default(),
            roster: Mutex::default(),
            requests: AtomicU32::new(0),
            retries: AtomicU32::new(0),
        }
    }

    /// Takes over what a snapshot says and gives the endpoints' standings in the order of `places`. One that stays
    /// (the same address and workload) keeps its standing, whichever worker asks first.
    pub(crate) fn update(
        &self,
        traffic: &Arc<Traffic>,
        places: &[Place],
        now: Instant,
    ) -> Vec<Arc<Standing>> {
        if !Arc::ptr_eq(&self.traffic.load(), traffic) {
            self.traffic.store(traffic.clone());
        }
        let clock = Clock(self.epoch);
        let mut roster = lock(&self.roster);
        let Roster { known, settled, .. } = &mut *roster;
        let came = settled.then_some(now);
        let standings: Vec<Arc<Standing>> = places
            .iter()
            .map(|place| {
                let key = (place.address, place.workload.clone());
                known.get(&key).and_then(Weak::upgrade).unwrap_or_else(|| {
                    let standing = Arc::new(Standing::new(clock, came));
                    known.insert(key, Arc::downgrade(&standing));
                    standing
                })
            })
            .collect();
        known.retain(|_, standing| standing.strong_count() > 0);
        roster.settled |= !places.is_empty();
        roster.now.clone_from(&standings);
        standings
    }

    /// Lets a request in, or says why not: [`Kind::Overloaded`] or [`Kind::BreakerOpen`], with `Retry-After`.
    pub(crate) fn enter(self: &Arc<Self>, _now: Instant) -> Result<Entry, Error> {
        let in_flight = self.requests.fetch_add(1, Relaxed);
        let entry = Entry { guard: self.clone() };
        match self.traffic.load().bounds.requests {
            Some(limit) if in_flight >= limit => Err(Error::new(
                Kind::Overloaded,
                format!("{} has {limit} requests in flight; see connections.maxRequests", self.key.service),
            )),
            _ => Ok(entry),
        }
    }
}

/// A request that was let in. It counts as in flight until this goes.
pub(crate) struct Entry {
    guard: Arc<Guard>,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.guard.requests.fetch_sub(1, Relaxed);
    }
}

/// A retry or hedge under way. It counts as in flight until this goes.
pub(crate) struct RetrySlot {
    guard: Arc<Guard>,
}

impl Drop for RetrySlot {
    fn drop(&mut self) {
        self.guard.retries.fetch_sub(1, Relaxed);
    }
}

/// Why there is no retry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The retry budget is used up.
    Budget,
    /// As many retries are in flight as may be.
    Retries,
    /// The cluster's breaker is open by now.
    Breaker,
}

impl Entry {
    /// Whether one more attempt of this request may be made: a retry or a hedge. The first attempt does not ask.
    pub(crate) fn retry(&self, _now: Instant) -> Result<RetrySlot, Refusal> {
        let in_flight = self.guard.retries.fetch_add(1, Relaxed);
        let slot = RetrySlot { guard: self.guard.clone() };
        match self.guard.traffic.load().bounds.retries {
            Some(limit) if in_flight >= limit => Err(Refusal::Retries),
            _ => Ok(slot),
        }
    }

    /// Begins an attempt at an endpoint; takes the probe's place if its breaker is half-open.
    pub(crate) fn attempt(&self, standing: &Arc<Standing>, _now: Instant) -> Result<AttemptEntry, Error> {
        Ok(AttemptEntry { guard: self.guard.clone(), standing: standing.clone() })
    }
}

/// An attempt under way. Dropped without a record it says nothing about the endpoint.
pub(crate) struct AttemptEntry {
    guard: Arc<Guard>,
    standing: Arc<Standing>,
}

/// What an attempt tells about the endpoint that it went to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It did its work; also where the answer is that the caller is wrong.
    Success,
    /// It failed at its work: a 5xx that a gateway would not give.
    ServerError,
    /// It did not get to its work: 502, 503, 504, a reset, no connection.
    GatewayError,
    /// Nothing: the caller went away, or a bound of our own was reached.
    Neutral,
}

impl Outcome {
    /// Of an answer: its status, its gRPC status if it is one of gRPC, and what its `weft-error` field says.
    pub(crate) fn of_response(status: u16, grpc_status: Option<u16>, _weft_error: Option<&str>) -> Self {
        match (status, grpc_status) {
            (502..=504, _) | (_, Some(4 | 14)) => Self::GatewayError,
            (500.., _) | (_, Some(2 | 13 | 15)) => Self::ServerError,
            _ => Self::Success,
        }
    }

    /// Of an attempt without an answer.
    pub(crate) fn of_error(kind: Kind) -> Self {
        match kind {
            Kind::Gone => Self::Neutral,
            _ => Self::GatewayError,
        }
    }
}

impl AttemptEntry {
    /// The attempt ended: `took` is the time to the response head or to the failure.
    pub(crate) fn record(self, _outcome: Outcome, _took: Duration, _now: Instant) {
        let _ = (&self.guard.series, &self.standing.refused_until);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
