//! Whether one endpoint takes calls, as all workers of a sidecar judge it together.

use super::{
    breaker::{Admit, Breaker, Position, Ticket},
    ejection::{Cause, Ejected, Sample, Tally},
    outcome::Outcome,
};
use serde_json::{Map, Value, json};
use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};
use weft_config::snapshot::{Breaker as BreakerSettings, Traffic};

/// What is known about one endpoint. Every worker reads it without a lock, for each endpoint that it thinks of calling;
/// what came of a call is taken in under a lock of its own.
pub(crate) struct Standing {
    /// Where it is.
    pub(crate) address: SocketAddr,
    clock: Clock,
    /// When it came or came back; 0 if it was there from the beginning.
    came: AtomicU64,
    /// Until when it is ejected; 0 if it never was.
    ejected_until: AtomicU64,
    /// Until when its breaker refuses; 0 if it does not.
    refused_until: AtomicU64,
    unhealthy: AtomicBool,
    judged: Mutex<Judged>,
}

/// What its calls told.
#[derive(Default)]
struct Judged {
    tally: Tally,
    /// Made when policy first asks for one.
    breaker: Option<Box<Breaker>>,
}

/// Instants as numbers that fit an atomic.
#[derive(Clone, Copy)]
pub(super) struct Clock(pub(super) Instant);

impl Clock {
    /// Nanoseconds since the beginning, never 0.
    fn number(self, at: Instant) -> u64 {
        let since = at.saturating_duration_since(self.0);
        since.as_secs().saturating_mul(1_000_000_000).saturating_add(since.subsec_nanos().into()).max(1)
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
    /// that all are called again: [`Entry::attempt`](super::guard::Entry::attempt) refuses it.
    BreakerOpen,
}

impl Standing {
    /// A new endpoint; `came` is `None` if it was there from the beginning.
    pub(super) fn new(address: SocketAddr, clock: Clock, came: Option<Instant>) -> Self {
        Self {
            address,
            clock,
            came: AtomicU64::new(came.map_or(0, |at| clock.number(at))),
            ejected_until: AtomicU64::new(0),
            refused_until: AtomicU64::new(0),
            unhealthy: AtomicBool::new(false),
            judged: Mutex::default(),
        }
    }

    /// Of an endpoint that nobody judges, since there is no other: the application itself.
    pub(crate) fn alone(address: SocketAddr, now: Instant) -> Arc<Self> {
        Arc::new(Self::new(address, Clock(now), None))
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

    /// Whether it is ejected at `now`, whatever else is wrong with it.
    pub(super) fn is_ejected(&self, now: Instant) -> bool {
        self.ejected_until.load(Relaxed) > self.clock.number(now)
    }

    /// Asks its breaker. Gives the new position too if asking moved it.
    pub(super) fn admit(&self, settings: &BreakerSettings, now: Instant) -> (Admit, Option<Position>) {
        let mut judged = self.judged();
        let breaker = judged.breaker(now);
        let before = breaker.position();
        let admit = breaker.admit(settings, now);
        let after = breaker.position();
        self.tell(breaker, settings);
        (admit, (after != before).then_some(after))
    }

    /// Takes in how a call ended. Gives why it should be ejected, if it should, and the new position of its breaker if
    /// that moved.
    pub(super) fn record(
        &self,
        traffic: &Traffic,
        probe: Option<Ticket>,
        outcome: Outcome,
        took: Duration,
        now: Instant,
    ) -> (Option<Cause>, Option<Position>) {
        let mut judged = self.judged();
        let cause = judged.tally.record(&traffic.ejection, outcome, took, now);
        let Some(settings) = traffic.breaker.as_ref().filter(|s| s.endpoint) else { return (cause, None) };
        let breaker = judged.breaker(now);
        let moved = if outcome == Outcome::Neutral {
            breaker.release(probe);
            None
        } else {
            breaker.record(settings, probe, outcome == Outcome::Success, took, now)
        };
        self.tell(breaker, settings);
        if moved == Some(Position::Closed) {
            self.came.store(self.clock.number(now), Relaxed);
        }
        (cause, moved)
    }

    /// Its breaker's probe ended without a verdict.
    pub(super) fn release(&self, traffic: &Traffic, probe: Ticket) {
        let mut judged = self.judged();
        if let Some(breaker) = &mut judged.breaker
            && let Some(settings) = &traffic.breaker
        {
            breaker.release(Some(probe));
            self.tell(breaker, settings);
        }
    }

    /// Lets everybody read what the breaker says.
    fn tell(&self, breaker: &Breaker, settings: &BreakerSettings) {
        let until = breaker.refuses_until(settings).map_or(0, |at| self.clock.number(at));
        if self.refused_until.load(Relaxed) != until {
            self.refused_until.store(until, Relaxed);
        }
    }

    /// Policy asks for no breaker here any more: what it knew is forgotten.
    pub(super) fn without_breaker(&self) {
        let mut judged = self.judged();
        judged.breaker = None;
        self.refused_until.store(0, Relaxed);
    }

    /// Ejects it.
    pub(super) fn eject(&self, traffic: &Traffic, cause: Cause, now: Instant) -> Duration {
        let mut judged = self.judged();
        let until = judged.tally.eject(&traffic.ejection, cause, now);
        self.ejected_until.store(self.clock.number(until), Relaxed);
        until - now
    }

    /// Its calls since the last comparison.
    pub(super) fn take_sample(&self) -> Sample {
        self.judged().tally.take_sample()
    }

    /// Where its breaker stands; `None` without one.
    pub(super) fn position(&self) -> Option<Position> {
        self.judged().breaker.as_ref().map(|breaker| breaker.position())
    }

    /// For `/clusters`: one flat row.
    pub(crate) fn describe(&self, now: Instant) -> Map<String, Value> {
        let (ejected, (gateway_errors, server_errors), position): (Option<Ejected>, _, _) = {
            let judged = self.judged();
            let position = judged.breaker.as_ref().map(|b| b.position().name());
            (judged.tally.ejected(now), judged.tally.in_a_row(), position)
        };
        let state = match self.availability(now) {
            Availability::In { .. } => "in",
            Availability::Out(Why::Ejected) => "ejected",
            Availability::Out(Why::Unhealthy) => "unhealthy",
            Availability::Out(Why::BreakerOpen) => "breaker_open",
        };
        let mut row = Map::new();
        let mut put = |name: &str, value: Value| row.insert(name.to_owned(), value);
        put("state", json!(state));
        put("gateway_errors_in_a_row", json!(gateway_errors));
        put("server_errors_in_a_row", json!(server_errors));
        if let Some(position) = position {
            put("breaker", json!(position));
        }
        if let Some(ejected) = ejected {
            put("ejected_for", json!(ejected.cause.name()));
            put("ejections", json!(ejected.times));
            put("returns_in_seconds", json!((ejected.until - now).as_secs_f64().ceil()));
        }
        row
    }

    fn judged(&self) -> MutexGuard<'_, Judged> {
        self.judged.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Judged {
    fn breaker(&mut self, now: Instant) -> &mut Breaker {
        self.breaker.get_or_insert_with(|| Box::new(Breaker::new(now)))
    }
}
