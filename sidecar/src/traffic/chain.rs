//! The trace join: which calls of our application belong to which request to it, told by the trace they share.
//!
//! An application that does no more than copy `traceparent` from the request it serves to the calls it makes gets three
//! things from it: its calls end when the request's deadline comes, they are not tried again in ever more layers, and
//! it can be seen what the request waited for.
//!
//! Several requests of one trace can be open here at once. A copied `traceparent` still names the span that this
//! sidecar gave the one request, so the call is joined to just that. Where the application makes spans of its own, a
//! call cannot say which of them it belongs to; then all are meant together, with what is safe for each:
//!
//! - the deadline is the latest: too late costs some work in vain, too early would fail a request that has time left;
//! - it counts as a retry only if all of them are: else the retries of one would be forbidden to the others;
//! - that a call gave up is told to all of them: it only ever spares retries of answers that failed anyway;
//! - the time goes to the one that began last.

use super::deadline::Deadline;
use crate::telemetry::{
    metrics::{Path, PathUpstream},
    trace::Trace,
};
use foldhash::fast::RandomState;
use smallvec::SmallVec;
use std::{
    collections::{HashMap, hash_map::Entry},
    hash::BuildHasher,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// Locks, so that workers seldom meet at one. A power of two.
const SHARDS: usize = 32;
/// Open requests that are remembered, over all shards.
const REQUESTS: usize = 65_536;
/// Open requests of one trace that are remembered: who sends more has a loop, or no idea of traces.
const PER_TRACE: usize = 64;
/// Calls of one request that are remembered apart.
const CALLS: usize = 64;

/// The open requests of all workers, by trace: the application may make its calls through any of them.
pub(crate) struct Chains {
    shards: Box<[Arc<Shard>]>,
    hasher: RandomState,
}

/// Each in an allocation of its own, so that counting its holders touches no memory that other shards use.
#[derive(Default)]
struct Shard {
    limit: usize,
    traces: Mutex<Traces>,
}

#[derive(Default)]
struct Traces {
    by_id: HashMap<u128, SmallVec<[Open; 1]>, RandomState>,
    /// Open requests in all of them.
    open: usize,
    last: u64,
}

/// A request to our application that is not answered yet.
struct Open {
    id: u64,
    /// The span that the application was given.
    span: u64,
    deadline: Deadline,
    is_retry: bool,
    gave_up: bool,
    began: Instant,
    /// In the order in which they began.
    calls: Vec<Interval<Arc<PathUpstream>>>,
    last_call: u32,
}

/// A call that was made for a request, in nanoseconds after the request began.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Interval<U> {
    id: u32,
    upstream: U,
    begin: u64,
    /// [`UNDER_WAY`] until it ends.
    end: u64,
}

const UNDER_WAY: u64 = u64::MAX;

impl Default for Chains {
    fn default() -> Self {
        Self::with_limit(REQUESTS)
    }
}

impl Chains {
    fn with_limit(requests: usize) -> Self {
        let shard = || Arc::new(Shard { limit: requests.div_ceil(SHARDS), traces: Mutex::default() });
        Self { shards: (0..SHARDS).map(|_| shard()).collect(), hasher: RandomState::default() }
    }

    /// A request comes in: `span_id` is the span that the application is given as its parent, `is_retry` says that the
    /// caller tried before. The request is open until what this gives is ended or dropped.
    pub(crate) fn begin(
        &self,
        trace_id: u128,
        span_id: u64,
        deadline: Deadline,
        is_retry: bool,
        path: &Path,
        now: Instant,
    ) -> Joined {
        let shard = self.shard(trace_id);
        let open = Open {
            id: 0,
            span: span_id,
            deadline,
            is_retry,
            gave_up: false,
            began: now,
            calls: Vec::new(),
            last_call: 0,
        };
        let id = shard.lock().insert(trace_id, open, shard.limit);
        if id.is_none() {
            path.unjoined();
        }
        let place = id.map(|id| Place { shard: Arc::clone(shard), trace_id, id });
        Joined { place, path: path.clone(), began: now }
    }

    /// The request that a call of our application belongs to, by the trace and the parent span that the call names;
    /// `None` if no such request is open.
    pub(crate) fn join(&self, trace_id: u128, parent_span: u64) -> Option<ChainView> {
        let shard = self.shard(trace_id);
        let traces = shard.lock();
        let open = traces.by_id.get(&trace_id)?;
        let exact = open.iter().find(|open| open.span == parent_span);
        let latest = exact.or_else(|| open.last())?;
        let place = |id| Place { shard: Arc::clone(shard), trace_id, id };
        if exact.is_some() || open.len() == 1 {
            return Some(ChainView {
                place: place(latest.id),
                exact: true,
                deadline: latest.deadline,
                is_retry: latest.is_retry,
            });
        }
        Some(ChainView {
            place: place(latest.id),
            exact: false,
            deadline: open.iter().map(|open| open.deadline).fold(latest.deadline, Deadline::latest),
            is_retry: open.iter().all(|open| open.is_retry),
        })
    }

    /// The same for the call of this trace. A trace that begins here has nobody to be joined to.
    pub(crate) fn of(&self, trace: &Trace) -> Option<ChainView> {
        if trace.parent_span == 0 { None } else { self.join(trace.trace_id, trace.parent_span) }
    }

    fn shard(&self, trace_id: u128) -> &Arc<Shard> {
        // The high bits: the low ones choose within the shard's table.
        let high = self.hasher.hash_one(trace_id) >> (u64::BITS - SHARDS.trailing_zeros());
        &self.shards[high as usize % self.shards.len()]
    }
}

impl Shard {
    fn lock(&self) -> MutexGuard<'_, Traces> {
        self.traces.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Traces {
    fn insert(&mut self, trace_id: u128, open: Open, limit: usize) -> Option<u64> {
        if self.open >= limit {
            return None;
        }
        let of_trace = self.by_id.entry(trace_id).or_default();
        if of_trace.len() >= PER_TRACE {
            return None;
        }
        self.open += 1;
        self.last += 1;
        of_trace.push(Open { id: self.last, ..open });
        Some(self.last)
    }

    fn remove(&mut self, trace_id: u128, id: u64) -> Option<Open> {
        let Entry::Occupied(mut of_trace) = self.by_id.entry(trace_id) else { return None };
        let index = of_trace.get().iter().position(|open| open.id == id)?;
        let open = of_trace.get_mut().remove(index);
        if of_trace.get().is_empty() {
            of_trace.remove();
        }
        self.open -= 1;
        Some(open)
    }

    fn find(&mut self, trace_id: u128, id: u64) -> Option<&mut Open> {
        self.by_id.get_mut(&trace_id)?.iter_mut().find(|open| open.id == id)
    }
}

impl Open {
    /// A call begins. If there are too many to remember, two that followed each other to the same upstream become
    /// one: the two with the least time between them.
    fn call(&mut self, upstream: &Arc<PathUpstream>, now: Instant) -> Option<u32> {
        if self.calls.len() >= CALLS && !merge_closest(&mut self.calls, Arc::ptr_eq) {
            return None;
        }
        self.last_call = self.last_call.wrapping_add(1);
        let begin = self.since(now);
        let upstream = Arc::clone(upstream);
        self.calls.push(Interval { id: self.last_call, upstream, begin, end: UNDER_WAY });
        Some(self.last_call)
    }

    fn call_ended(&mut self, id: u32, now: Instant) {
        let end = self.since(now);
        if let Some(call) = self.calls.iter_mut().rev().find(|call| call.id == id) {
            call.end = end;
        }
    }

    fn since(&self, now: Instant) -> u64 {
        nanoseconds(now.saturating_duration_since(self.began))
    }
}

/// Where an open request is found.
struct Place {
    shard: Arc<Shard>,
    trace_id: u128,
    id: u64,
}

/// A request to our application while it is open. Dropped, it ended without an answer.
#[must_use = "the request is open only as long as this is held"]
pub(crate) struct Joined {
    place: Option<Place>,
    path: Path,
    began: Instant,
}

impl Joined {
    /// Whether a call made for this request failed and there was no use in trying it again, or no budget for it: then
    /// there is none in trying the request again either, and a 5xx says so to its caller.
    pub(crate) fn gave_up(&self) -> bool {
        let found =
            |place: &Place| place.shard.lock().find(place.trace_id, place.id).map(|open| open.gave_up);
        self.place.as_ref().and_then(found).unwrap_or(false)
    }

    /// The request is through: counts where its time went. `answered` says that the application gave its whole answer.
    /// A call that is still under way then is none that the application waited for; otherwise it is just what
    /// everybody waited for.
    pub(crate) fn end(mut self, now: Instant, answered: bool) {
        self.finish(now, answered);
    }

    fn finish(&mut self, now: Instant, answered: bool) {
        let Some(Place { shard, trace_id, id }) = self.place.take() else { return };
        let open = shard.lock().remove(trace_id, id);
        let Some(mut open) = open else { return };
        let end = nanoseconds(now.saturating_duration_since(self.began));
        if !answered {
            open.calls.iter_mut().filter(|call| call.end == UNDER_WAY).for_each(|call| call.end = end);
        }
        let own = critical_path(end, &mut open.calls, |upstream, waited| {
            self.path.waited(upstream, Duration::from_nanos(waited));
        });
        self.path.ended(Duration::from_nanos(own));
    }
}

impl Drop for Joined {
    fn drop(&mut self) {
        if self.place.is_some() {
            self.finish(Instant::now(), false);
        }
    }
}

/// What a call of our application is told about the request that it is made for.
pub(crate) struct ChainView {
    place: Place,
    exact: bool,
    /// When the patience of the request's caller ends.
    pub(crate) deadline: Deadline,
    /// Whether the request is itself another attempt: then its calls are not tried again.
    pub(crate) is_retry: bool,
}

impl ChainView {
    /// The call begins; its time counts until what this gives is ended or dropped.
    pub(crate) fn call(&self, upstream: &Arc<PathUpstream>, now: Instant) -> Span {
        let Place { shard, trace_id, id } = &self.place;
        let call = shard.lock().find(*trace_id, *id).and_then(|open| open.call(upstream, now));
        let place = call.map(|call| (Place { shard: Arc::clone(shard), trace_id: *trace_id, id: *id }, call));
        Span { place }
    }

    /// The call failed for good: it was tried again in vain, or there was no budget for it.
    pub(crate) fn gave_up(&self) {
        let mut traces = self.place.shard.lock();
        let Some(of_trace) = traces.by_id.get_mut(&self.place.trace_id) else { return };
        for open in of_trace.iter_mut().filter(|open| !self.exact || open.id == self.place.id) {
            open.gave_up = true;
        }
    }
}

/// A call of our application while it is under way.
#[must_use = "the time of the call counts only as long as this is held"]
pub(crate) struct Span {
    place: Option<(Place, u32)>,
}

impl Span {
    /// The call is through, its answer's body included. Dropping it says the same, now.
    #[cfg(test)]
    pub(crate) fn end(mut self, now: Instant) {
        self.finish(now);
    }

    fn finish(&mut self, now: Instant) {
        // The request may have ended first.
        if let Some((place, call)) = self.place.take()
            && let Some(open) = place.shard.lock().find(place.trace_id, place.id)
        {
            open.call_ended(call, now);
        }
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        if self.place.is_some() {
            self.finish(Instant::now());
        }
    }
}

/// Splits the time of a request, from 0 to `end`, into its own work, which is given back, and the time it waited for
/// calls, which `waited` is told in pieces; together they are exactly `end`. Calls under way do not count.
///
/// Looking back from the end: of the calls that had ended, the one that ended last is the one that was waited for
/// until then. So the time after it was own work, and before it began the same question is asked again. A call that
/// ended only after a later one had begun was not waited for: had it been quicker, nothing would have come earlier.
pub(crate) fn critical_path<U>(end: u64, calls: &mut [Interval<U>], mut waited: impl FnMut(&U, u64)) -> u64 {
    calls.sort_unstable_by(|a, b| (b.end, a.begin).cmp(&(a.end, b.begin)));
    let (mut own, mut point) = (0, end);
    for call in calls.iter() {
        if call.end > point || call.begin >= call.end {
            continue;
        }
        own += point - call.end;
        waited(&call.upstream, call.end - call.begin);
        point = call.begin;
    }
    own + point
}

/// Makes one of two neighbours that went to the same upstream, the second after the first had ended, and are closest;
/// false if there are none such.
fn merge_closest<U>(calls: &mut Vec<Interval<U>>, same: impl Fn(&U, &U) -> bool) -> bool {
    let gap = |pair: &[Interval<U>]| {
        let [first, second] = pair else { return None };
        let ended = first.end != UNDER_WAY && second.end != UNDER_WAY;
        (ended && same(&first.upstream, &second.upstream)).then(|| second.begin.saturating_sub(first.end))
    };
    let closest =
        calls.windows(2).enumerate().filter_map(|(at, pair)| Some((gap(pair)?, at))).min().map(|(_, at)| at);
    let Some(at) = closest else { return false };
    let second = calls.remove(at + 1);
    calls[at].end = calls[at].end.max(second.end);
    true
}

fn nanoseconds(time: Duration) -> u64 {
    // Below `UNDER_WAY`, which no clock reaches.
    u64::try_from(time.as_nanos()).unwrap_or(UNDER_WAY).min(UNDER_WAY - 1)
}

#[cfg(test)]
mod tests;
