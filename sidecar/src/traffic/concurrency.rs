//! Concurrency and load shedding where a service is served: how many calls the application gets at once, and who waits.
//!
//! Calls beyond the limit wait in a bounded queue, the highest priority first and then the oldest. When the queue is
//! full, a call of higher priority takes the place of the youngest one of the lowest; everything else is turned away at
//! once, since an answer now is worth more than one after the caller's patience. Give health checks priority 100 (by
//! header or path): they are then the last to be turned away, and an orchestrator does not restart what is merely busy.
//!
//! The limiter is shared by the workers. [`Core`] decides and knows no clock, no task and no thread; a waiting call
//! leaves its waker there, and whoever frees a place wakes it, on whatever thread it waits.

use super::gradient::Gradient;
use crate::{
    error::{Error, Kind},
    telemetry::metrics::{ConcurrencySeries, Metrics, Shed, Shown},
};
use http::{HeaderMap, HeaderValue, Method, header::RETRY_AFTER};
use smallvec::SmallVec;
use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, HashMap},
    future::poll_fn,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};
use weft_config::{
    identity::ServiceName,
    snapshot::{Concurrency, ConcurrencyLimit},
};

/// The priority of a call that no policy names.
const ORDINARY: u8 = 50;
/// State that no policy names is kept this long: a policy that comes back soon finds it.
const KEEP_UNUSED: Duration = Duration::from_secs(60);

/// The priority of a call: that of the first entry that matches.
pub(crate) fn priority(policy: &Concurrency, method: &Method, path: &str, headers: &HeaderMap) -> u8 {
    let found = policy.priorities.iter().find(|(only, _)| only.matches(method, path, headers));
    found.map_or(ORDINARY, |(_, priority)| *priority)
}

/// Where a call stands in the queue: the highest priority first, then the oldest.
type Place = (Reverse<u8>, u64);

/// Tasks to wake once the lock is given back.
type Woken = SmallVec<[Waker; 2]>;

/// What decides who goes, who waits and who is turned away.
struct Core {
    limit: u32,
    limited: bool,
    gradient: Option<Gradient>,
    in_flight: u32,
    queue: BTreeMap<Place, Waker>,
    queue_max: usize,
    queue_timeout: Duration,
    /// Calls whose turn came and that have not noticed; they count as in flight.
    called: BTreeSet<Place>,
    next: u64,
    /// What the metrics show.
    shown: Shown,
}

/// What becomes of a call that comes.
#[derive(Debug, PartialEq, Eq)]
enum Entered {
    /// It may go on.
    Go,
    /// It waits here.
    Wait(Place),
    /// There is no room for it.
    Full,
}

/// What has become of a call that waits.
#[derive(Debug, PartialEq, Eq)]
enum Turn {
    /// It waits on.
    NotYet,
    /// It may go on.
    Go,
    /// Another one has its place.
    Displaced,
}

impl Core {
    fn new() -> Self {
        Self {
            limit: u32::MAX,
            limited: false,
            gradient: None,
            in_flight: 0,
            queue: BTreeMap::new(),
            queue_max: 0,
            queue_timeout: Duration::ZERO,
            called: BTreeSet::new(),
            next: 0,
            shown: (None, 0, 0),
        }
    }

    /// Takes a policy's numbers. Calls that wait stay, even if the queue got shorter.
    fn configure(&mut self, policy: &Concurrency) -> Woken {
        self.queue_max = policy.queue;
        self.queue_timeout = policy.queue_timeout;
        self.limited = policy.limit != ConcurrencyLimit::None;
        match policy.limit {
            ConcurrencyLimit::None => (self.limit, self.gradient) = (u32::MAX, None),
            ConcurrencyLimit::Fixed(limit) => (self.limit, self.gradient) = (limit.max(1), None),
            ConcurrencyLimit::Adaptive { min, max, tolerance } => {
                let gradient = self.gradient.get_or_insert_with(|| Gradient::new(min, max, tolerance));
                gradient.configure(min, max, tolerance);
                self.limit = gradient.limit();
            }
        }
        self.fill()
    }

    fn enter(&mut self, priority: u8) -> (Entered, Woken) {
        if self.in_flight < self.limit {
            self.in_flight += 1;
            return (Entered::Go, Woken::new());
        }
        let place = (Reverse(priority), self.next);
        let mut woken = Woken::new();
        if self.queue.len() >= self.queue_max {
            let Some(last) = self.queue.last_entry().filter(|last| last.key().0 > place.0) else {
                return (Entered::Full, woken);
            };
            woken.push(last.remove());
        }
        self.next += 1;
        self.queue.insert(place, Waker::noop().clone());
        (Entered::Wait(place), woken)
    }

    fn turn(&mut self, place: Place, waker: &Waker) -> Turn {
        if let Some(known) = self.queue.get_mut(&place) {
            known.clone_from(waker);
            Turn::NotYet
        } else if self.called.remove(&place) {
            Turn::Go
        } else {
            Turn::Displaced
        }
    }

    /// A call that waited goes away.
    fn leave(&mut self, place: Place) -> Woken {
        if self.queue.remove(&place).is_none() && self.called.remove(&place) {
            return self.end();
        }
        Woken::new()
    }

    /// A call that went on is over.
    fn end(&mut self) -> Woken {
        self.in_flight = self.in_flight.saturating_sub(1);
        self.fill()
    }

    /// A call was answered after this long, or given up: then it would have taken longer, which tells something only
    /// if it took long already.
    fn observe(&mut self, latency: Duration, now: Instant, answered: bool) -> Woken {
        let Some(gradient) = &mut self.gradient else { return Woken::new() };
        if !answered && !gradient.is_slow(latency) {
            return Woken::new();
        }
        gradient.observe(latency, self.in_flight, now);
        self.limit = gradient.limit();
        self.fill()
    }

    /// Calls up as many as there is room for.
    fn fill(&mut self) -> Woken {
        let mut woken = Woken::new();
        while self.in_flight < self.limit
            && let Some((place, waker)) = self.queue.pop_first()
        {
            self.in_flight += 1;
            self.called.insert(place);
            woken.push(waker);
        }
        woken
    }

    fn show(&self) -> Shown {
        (self.limited.then_some(self.limit), self.in_flight, self.queue.len())
    }
}

/// The limiter of one served port.
pub(crate) struct Limiter {
    core: Mutex<Core>,
    adaptive: AtomicBool,
    series: Arc<ConcurrencySeries>,
}

impl Limiter {
    fn new(series: Arc<ConcurrencySeries>) -> Self {
        Self { core: Mutex::new(Core::new()), adaptive: AtomicBool::new(false), series }
    }

    fn configure(&self, policy: &Concurrency) {
        self.adaptive.store(matches!(policy.limit, ConcurrencyLimit::Adaptive { .. }), Relaxed);
        self.with(|core| ((), core.configure(policy)));
    }

    /// Waits for a place, for as long as policy lets a call wait. Dropping the future gives the place in the queue up.
    pub(crate) async fn acquire(self: &Arc<Self>, priority: u8) -> Result<Permit, Error> {
        let (entered, patience) = self.with(|core| {
            let (entered, woken) = core.enter(priority);
            ((entered, core.queue_timeout), woken)
        });
        let place = match entered {
            Entered::Go => return Ok(Permit::new(self.clone())),
            Entered::Full => return Err(self.shed(Shed::QueueFull)),
            Entered::Wait(place) => place,
        };
        let mut waiting = Waiting { limiter: self, place: Some(place) };
        match tokio::time::timeout(patience, poll_fn(|cx| waiting.poll(cx))).await {
            Ok(true) => Ok(Permit::new(self.clone())),
            Ok(false) => Err(self.shed(Shed::Displaced)),
            Err(_) => Err(self.shed(Shed::Timeout)),
        }
    }

    fn shed(&self, reason: Shed) -> Error {
        self.series.shed(reason);
        let detail = match reason {
            Shed::QueueFull => "the application has as many calls as it takes, and the queue is full",
            Shed::Timeout => "the application had no room for this call within the queue's time",
            Shed::Displaced => "the queue is full, and a call of higher priority took this one's place",
        };
        // A second: the queue turns over several times in it, and a client's own jitter spreads the rest.
        Error::new(Kind::Shed, detail).with_header(RETRY_AFTER, HeaderValue::from_static("1"))
    }

    fn with<T>(&self, change: impl FnOnce(&mut Core) -> (T, Woken)) -> T {
        let (result, woken) = {
            let mut core = self.core.lock().unwrap_or_else(PoisonError::into_inner);
            let changed = change(&mut core);
            let now = core.show();
            self.series.changed(core.shown, now);
            core.shown = now;
            changed
        };
        woken.into_iter().for_each(Waker::wake);
        result
    }
}

impl Drop for Limiter {
    fn drop(&mut self) {
        let core = self.core.get_mut().unwrap_or_else(PoisonError::into_inner);
        self.series.changed(core.shown, (None, 0, 0));
    }
}

/// A place in the queue.
struct Waiting<'a> {
    limiter: &'a Limiter,
    place: Option<Place>,
}

impl Waiting<'_> {
    /// Ready with whether the call may go on.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        let Some(place) = self.place else { return Poll::Ready(false) };
        let turn = self.limiter.with(|core| (core.turn(place, cx.waker()), Woken::new()));
        if turn == Turn::NotYet {
            return Poll::Pending;
        }
        self.place = None;
        Poll::Ready(turn == Turn::Go)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if let Some(place) = self.place {
            self.limiter.with(|core| ((), core.leave(place)));
        }
    }
}

/// A call that the application has; its place is free again when this goes.
#[must_use = "the call counts as over when this goes"]
pub(crate) struct Permit {
    limiter: Arc<Limiter>,
    began: Instant,
    answered: bool,
}

impl Permit {
    fn new(limiter: Arc<Limiter>) -> Self {
        Self { limiter, began: now(), answered: false }
    }

    /// The head of the application's answer is there: what an adaptive limit learns from. How long the body takes is
    /// up to whoever reads it. An answer that is no good (5xx) may be a quick one and tells nothing about load.
    pub(crate) fn answered(&mut self, good: bool) {
        if !std::mem::replace(&mut self.answered, true) && good {
            self.observe();
        }
    }

    fn observe(&self) {
        if self.limiter.adaptive.load(Relaxed) {
            let now = now();
            let latency = now.saturating_duration_since(self.began);
            self.limiter.with(|core| ((), core.observe(latency, now, self.answered)));
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if !self.answered {
            self.observe();
        }
        self.limiter.with(|core| ((), core.end()));
    }
}

/// The present, by the runtime's clock: tests stop it.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// All limiters of one sidecar, by served port. They outlive snapshots.
pub(crate) struct Limiters {
    metrics: Arc<Metrics>,
    known: Mutex<HashMap<(ServiceName, u16), Known, foldhash::fast::RandomState>>,
}

struct Known {
    limiter: Arc<Limiter>,
    unused_since: Option<Instant>,
}

impl Limiters {
    /// None yet.
    pub(crate) fn new(metrics: Arc<Metrics>) -> Self {
        Self { metrics, known: Mutex::default() }
    }

    /// The limiter of a served port, with the numbers of this policy from now on. For when a snapshot comes, not for
    /// calls.
    pub(crate) fn resolve(&self, service: &ServiceName, port: u16, policy: &Concurrency) -> Arc<Limiter> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = known.entry((service.clone(), port)).or_insert_with(|| Known {
            limiter: Arc::new(Limiter::new(self.metrics.concurrency(&service.to_string()))),
            unused_since: None,
        });
        entry.unused_since = None;
        let limiter = entry.limiter.clone();
        drop(known);
        limiter.configure(policy);
        limiter
    }

    /// Forgets what nobody has used for a while. Called about once a second.
    pub(crate) fn sweep(&self, now: Instant) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|_, entry| {
            if Arc::strong_count(&entry.limiter) > 1 {
                entry.unused_since = None;
                return true;
            }
            now.saturating_duration_since(*entry.unused_since.get_or_insert(now)) < KEEP_UNUSED
        });
    }
}

#[cfg(test)]
mod tests;
