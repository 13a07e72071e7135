//! What all workers of a sidecar know together about one cluster: who may be called, how often, and who is left out.

use super::{
    breaker::{Admit, Breaker, Position, Ticket},
    budget::Budget,
    ejection::{Cause, Sample, may_eject, outliers},
    standing::Clock,
};
pub(crate) use super::{
    outcome::Outcome,
    standing::{Availability, Standing, Why},
};
use crate::{
    error::{Error, Kind},
    telemetry::metrics::{BreakerScope, RetryRefused, ServiceSeries},
};
use arc_swap::ArcSwap;
use http::{HeaderValue, header};
use serde_json::{Map, Value, json};
use std::{
    cell::Cell,
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};
use weft_config::snapshot::{Breaker as BreakerSettings, Endpoint as Place, Traffic};

#[cfg(test)]
mod tests;

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
    pub(crate) fn tick(&self, now: Instant) {
        let guards: Vec<Arc<Guard>> = {
            let mut known = lock(&self.0);
            known.retain(|_, guard| guard.strong_count() > 0);
            known.values().filter_map(Weak::upgrade).collect()
        };
        // Clusters of one service (its ports, rules with their own) count as one.
        let mut gauges: HashMap<usize, (&Arc<ServiceSeries>, Gauges)> = HashMap::new();
        for guard in &guards {
            let told = guard.tick(now);
            let key = Arc::as_ptr(&guard.series).addr();
            gauges.entry(key).or_insert((&guard.series, Gauges::default())).1.add(told);
        }
        for (series, gauges) in gauges.into_values() {
            for scope in BreakerScope::ALL {
                series.guarded.set_breaker(scope, gauges.breakers[scope as usize]);
            }
            series.guarded.set_ejected(gauges.ejected);
            series.guarded.set_budget(gauges.budget);
        }
    }
}

/// Numbers that are set, not counted.
#[derive(Default)]
struct Gauges {
    /// The worst position by scope; `None` where there is no breaker.
    breakers: [Option<Position>; 2],
    ejected: usize,
    /// Retries that are left.
    budget: f64,
}

impl Gauges {
    fn add(&mut self, other: Self) {
        for (mine, other) in self.breakers.iter_mut().zip(other.breakers) {
            *mine = (*mine).max(other);
        }
        self.ejected += other.ejected;
        self.budget += other.budget;
    }
}

/// What all workers know together about one cluster.
pub(crate) struct Guard {
    key: GuardKey,
    series: Arc<ServiceSeries>,
    clock: Clock,
    traffic: ArcSwap<Traffic>,
    roster: Mutex<Roster>,
    state: Mutex<State>,
    requests: AtomicU32,
    retries: AtomicU32,
}

/// The endpoints of a cluster.
struct Roster {
    /// Those of the newest snapshot, in its order.
    now: Vec<Arc<Standing>>,
    /// All that some worker still holds: one that lags behind by a snapshot must not make a second standing.
    known: HashMap<(SocketAddr, Arc<str>), Weak<Standing>>,
    /// Whether there were endpoints before: those of the first snapshot are not new.
    settled: bool,
    /// When endpoints are compared next.
    compare_at: Instant,
}

/// What every request asks.
struct State {
    budget: Budget,
    breaker: Breaker,
}

impl Guard {
    fn new(key: GuardKey, series: Arc<ServiceSeries>, now: Instant) -> Self {
        Self {
            key,
            series,
            clock: Clock(now),
            traffic: ArcSwap::default(),
            roster: Mutex::new(Roster {
                now: Vec::new(),
                known: HashMap::new(),
                settled: false,
                compare_at: now + Traffic::default().ejection.interval,
            }),
            state: Mutex::new(State { budget: Budget::new(now), breaker: Breaker::new(now) }),
            requests: AtomicU32::new(0),
            retries: AtomicU32::new(0),
        }
    }

    /// Takes over what a snapshot says and gives the endpoints' standings in the order of `places`. One that stays
    /// (the same address and workload) keeps its standing, whichever worker asks first; nothing that was learnt is
    /// lost when settings change, but for the state of a breaker that policy no longer asks for.
    pub(crate) fn update(
        &self,
        traffic: &Arc<Traffic>,
        places: &[Place],
        now: Instant,
    ) -> Vec<Arc<Standing>> {
        let before = self.traffic.load_full();
        if !Arc::ptr_eq(&before, traffic) {
            self.traffic.store(traffic.clone());
        }
        let has =
            |traffic: &Traffic| traffic.breaker.as_ref().map_or((false, false), |b| (b.service, b.endpoint));
        let (had, has) = (has(&before), has(traffic));
        if had.0 && !has.0 {
            lock(&self.state).breaker = Breaker::new(now);
        }
        let mut roster = lock(&self.roster);
        let Roster { known, settled, .. } = &mut *roster;
        let came = settled.then_some(now);
        let standings: Vec<Arc<Standing>> = places
            .iter()
            .map(|place| {
                let key = (place.address, place.workload.clone());
                known.get(&key).and_then(Weak::upgrade).unwrap_or_else(|| {
                    let standing = Arc::new(Standing::new(place.address, self.clock, came));
                    known.insert(key, Arc::downgrade(&standing));
                    standing
                })
            })
            .collect();
        if had.1 && !has.1 {
            standings.iter().for_each(|standing| standing.without_breaker());
        }
        roster.settled |= !places.is_empty();
        roster.now.clone_from(&standings);
        roster.known.retain(|_, standing| standing.strong_count() > 0);
        standings
    }

    /// Lets a request in, or says why not: [`Kind::Overloaded`], or [`Kind::BreakerOpen`] with `Retry-After`. What is
    /// let in counts as a first attempt.
    pub(crate) fn enter(self: &Arc<Self>, now: Instant) -> Result<Entry, Error> {
        let traffic = self.traffic.load();
        let in_flight = self.requests.fetch_add(1, Relaxed);
        let entry = Entry { guard: self.clone(), probe: Cell::new(None) };
        if let Some(limit) = traffic.bounds.requests
            && in_flight >= limit
        {
            let detail = format!(
                "{} has {limit} requests in flight, as many as `connections.maxRequests` allows",
                self.key.service
            );
            return Err(Error::new(Kind::Overloaded, detail));
        }
        let mut state = lock(&self.state);
        if let Some(settings) = cluster_breaker(&traffic) {
            match self.admit(&mut state, settings, now) {
                Admit::Pass => {}
                Admit::Probe(ticket) => entry.probe.set(Some(ticket)),
                Admit::Refuse { retry_after } => {
                    drop(state);
                    return Err(self.breaker_open(retry_after));
                }
            }
        }
        state.budget.request(&traffic.budget, now);
        Ok(entry)
    }

    fn admit(&self, state: &mut State, settings: &BreakerSettings, now: Instant) -> Admit {
        let before = state.breaker.position();
        let admit = state.breaker.admit(settings, now);
        let after = state.breaker.position();
        if after != before {
            self.moved(BreakerScope::Service, after, None);
        }
        admit
    }

    fn breaker_open(&self, retry_after: Duration) -> Error {
        let seconds = retry_after.as_secs() + u64::from(retry_after.subsec_nanos() > 0);
        let detail = format!("the circuit breaker of {} is open; see /clusters", self.key.service);
        Error::new(Kind::BreakerOpen, detail)
            .with_header(header::RETRY_AFTER, HeaderValue::from(seconds.max(1)))
    }

    /// A breaker moved.
    fn moved(&self, scope: BreakerScope, to: Position, endpoint: Option<SocketAddr>) {
        self.series.guarded.breaker_moved(to);
        let (service, port) = (&*self.key.service, self.key.port);
        tracing::info!(service, port, ?endpoint, ?scope, to = to.name(), "a circuit breaker moved");
    }

    /// Takes in how an attempt ended, for the cluster's breaker.
    fn record(
        &self,
        traffic: &Traffic,
        probe: Option<Ticket>,
        outcome: Outcome,
        took: Duration,
        now: Instant,
    ) {
        let Some(settings) = cluster_breaker(traffic) else { return };
        let mut state = lock(&self.state);
        let moved = match outcome {
            Outcome::Neutral => {
                state.breaker.release(probe);
                None
            }
            _ => state.breaker.record(settings, probe, outcome == Outcome::Success, took, now),
        };
        drop(state);
        if let Some(position) = moved {
            self.moved(BreakerScope::Service, position, None);
        }
    }

    /// Ejects an endpoint, if it may be.
    fn eject(
        &self,
        roster: &Roster,
        traffic: &Traffic,
        standing: &Arc<Standing>,
        cause: Cause,
        now: Instant,
    ) {
        let (mut listed, mut ejected, mut well) = (false, 0, 1);
        for each in &roster.now {
            if Arc::ptr_eq(each, standing) {
                listed = true;
            } else if matches!(each.availability(now), Availability::In { .. }) {
                well += 1;
            }
            ejected += usize::from(each.is_ejected(now));
        }
        if !listed || standing.is_ejected(now) {
            return;
        }
        let (service, port) = (&*self.key.service, self.key.port);
        let (endpoint, cause_name) = (standing.address, cause.name());
        if !may_eject(&traffic.ejection, roster.now.len(), ejected, well) {
            tracing::debug!(service, port, %endpoint, cause = cause_name, "an endpoint is not ejected: too few are left");
            return;
        }
        let lasts = standing.eject(traffic, cause, now);
        self.series.guarded.ejected(cause);
        tracing::info!(service, port, %endpoint, cause = cause_name, ?lasts, "an endpoint is ejected");
    }

    /// Compares endpoints when it is time to, and tells the gauges.
    fn tick(&self, now: Instant) -> Gauges {
        let traffic = self.traffic.load();
        let mut roster = lock(&self.roster);
        // A shorter interval takes effect at once.
        if now >= roster.compare_at || roster.compare_at > now + traffic.ejection.interval {
            roster.compare_at = now + traffic.ejection.interval;
            let samples: Vec<Sample> = roster.now.iter().map(|standing| standing.take_sample()).collect();
            for (index, cause) in outliers(&traffic.ejection, &samples) {
                if let Some(standing) = roster.now.get(index) {
                    self.eject(&roster, &traffic, standing, cause, now);
                }
            }
        }
        let of_endpoints = traffic.breaker.as_ref().filter(|settings| settings.endpoint).and_then(|_| {
            roster.now.iter().map(|standing| standing.position().unwrap_or(Position::Closed)).max()
        });
        let ejected = roster.now.iter().filter(|standing| standing.is_ejected(now)).count();
        drop(roster);
        let mut state = lock(&self.state);
        let of_service = cluster_breaker(&traffic).map(|_| state.breaker.position());
        Gauges {
            breakers: [of_service, of_endpoints],
            ejected,
            budget: state.budget.remaining(&traffic.budget, now),
        }
    }

    /// For `/clusters`. All workers say the same.
    pub(crate) fn describe(&self, now: Instant) -> Map<String, Value> {
        let traffic = self.traffic.load();
        let ejected = lock(&self.roster).now.iter().filter(|standing| standing.is_ejected(now)).count();
        let mut told = Map::new();
        let mut put = |name: &str, value: Value| told.insert(name.to_owned(), value);
        if let Some(rule) = &self.key.rule {
            put("rule", json!(&**rule));
        }
        put("requests_in_flight", json!(self.requests.load(Relaxed)));
        put("retries_in_flight", json!(self.retries.load(Relaxed)));
        put("endpoints_ejected", json!(ejected));
        let mut state = lock(&self.state);
        put("retries_left", json!(state.budget.remaining(&traffic.budget, now).floor()));
        if let Some(settings) = cluster_breaker(&traffic) {
            put("breaker", json!(state.breaker.position().name()));
            let [calls, failures] = state.breaker.counted(settings, now);
            put("breaker_calls", json!(calls));
            put("breaker_failures", json!(failures));
            if let Some(until) = state.breaker.refuses_until(settings) {
                let wait = until.saturating_duration_since(now).as_secs_f64();
                put("breaker_refuses_for_seconds", json!(wait.ceil()));
            }
        }
        told
    }
}

fn cluster_breaker(traffic: &Traffic) -> Option<&BreakerSettings> {
    traffic.breaker.as_ref().filter(|settings| settings.service)
}

/// A request that was let in. It counts as in flight until this goes.
pub(crate) struct Entry {
    guard: Arc<Guard>,
    /// The cluster breaker's probe, until the attempt that it becomes.
    probe: Cell<Option<Ticket>>,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.guard.requests.fetch_sub(1, Relaxed);
        self.release();
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
    /// The cluster's breaker is open by now, or half-open with a probe under way.
    Breaker,
}

impl Refusal {
    /// As it counts in `weft_retries_refused_total`.
    pub(crate) fn reason(self) -> RetryRefused {
        match self {
            Self::Budget => RetryRefused::Budget,
            Self::Retries => RetryRefused::Limit,
            Self::Breaker => RetryRefused::Breaker,
        }
    }
}

/// An endpoint whose breaker is open, or half-open with its probe under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Refused {
    retry_after: Duration,
}

impl Entry {
    /// Whether one more attempt of this request may be made: a retry or a hedge. The first attempt does not ask. Keep
    /// the slot while the attempt is under way.
    pub(crate) fn retry(&self, now: Instant) -> Result<RetrySlot, Refusal> {
        let guard = &self.guard;
        let traffic = guard.traffic.load();
        let in_flight = guard.retries.fetch_add(1, Relaxed);
        let slot = RetrySlot { guard: guard.clone() };
        if traffic.bounds.retries.is_some_and(|limit| in_flight >= limit) {
            return Err(Refusal::Retries);
        }
        let mut state = lock(&guard.state);
        if let Some(settings) = cluster_breaker(&traffic) {
            match guard.admit(&mut state, settings, now) {
                Admit::Pass => {}
                Admit::Probe(ticket) => self.probe.set(Some(ticket)),
                Admit::Refuse { .. } => return Err(Refusal::Breaker),
            }
        }
        let granted = state.budget.try_retry(&traffic.budget, now);
        drop(state);
        if !granted {
            self.release();
            return Err(Refusal::Budget);
        }
        Ok(slot)
    }

    /// Begins an attempt at an endpoint; takes the probe's place if its breaker is half-open.
    pub(crate) fn attempt(&self, standing: &Arc<Standing>, now: Instant) -> Result<AttemptEntry, Refused> {
        let traffic = self.guard.traffic.load();
        let mut endpoint_probe = None;
        if let Some(settings) = traffic.breaker.as_ref().filter(|settings| settings.endpoint) {
            let (admit, moved) = standing.admit(settings, now);
            if let Some(position) = moved {
                self.guard.moved(BreakerScope::Endpoint, position, Some(standing.address));
            }
            match admit {
                Admit::Pass => {}
                Admit::Probe(ticket) => endpoint_probe = Some(ticket),
                Admit::Refuse { retry_after } => return Err(Refused { retry_after }),
            }
        }
        Ok(AttemptEntry {
            guard: self.guard.clone(),
            standing: standing.clone(),
            probe: self.probe.take(),
            endpoint_probe,
        })
    }

    /// The answer where no endpoint is left but those whose breaker refuses.
    pub(crate) fn refused(&self, refused: Refused) -> Error {
        self.guard.breaker_open(refused.retry_after)
    }

    fn release(&self) {
        if let Some(ticket) = self.probe.take() {
            lock(&self.guard.state).breaker.release(Some(ticket));
        }
    }
}

/// An attempt under way. Dropped without a record it says nothing about the endpoint.
pub(crate) struct AttemptEntry {
    guard: Arc<Guard>,
    standing: Arc<Standing>,
    probe: Option<Ticket>,
    endpoint_probe: Option<Ticket>,
}

impl AttemptEntry {
    /// The attempt ended: `took` is the time to the response head or to the failure. Moves the breakers, and ejects the
    /// endpoint if that is what follows.
    pub(crate) fn record(mut self, outcome: Outcome, took: Duration, now: Instant) {
        let traffic = self.guard.traffic.load();
        let (cause, moved) = self.standing.record(&traffic, self.endpoint_probe.take(), outcome, took, now);
        if let Some(position) = moved {
            self.guard.moved(BreakerScope::Endpoint, position, Some(self.standing.address));
        }
        self.guard.record(&traffic, self.probe.take(), outcome, took, now);
        if let Some(cause) = cause {
            self.guard.eject(&lock(&self.guard.roster), &traffic, &self.standing, cause, now);
        }
    }
}

impl Drop for AttemptEntry {
    fn drop(&mut self) {
        if let Some(ticket) = self.probe.take() {
            lock(&self.guard.state).breaker.release(Some(ticket));
        }
        if let Some(ticket) = self.endpoint_probe.take() {
            self.standing.release(&self.guard.traffic.load(), ticket);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
