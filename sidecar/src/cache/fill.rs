//! One fetch for requests that come at once, and the response read by all of them while it comes in.
//!
//! The first request for what is not stored is the filler: it goes to the origin. Others wait until the head of the
//! response is there, whichever worker they are on, and then read the body as it comes. If the response cannot be
//! kept, or there is none, all who wait are released at once, and each goes to the origin by itself. If the filler's
//! client goes away before there is a response, one of those who wait takes over.

mod driver;
mod seat;
mod stream;

use super::{
    body::Reader,
    entry::{Draft, Entry, Key, Variants},
    seconds_now,
    store::Store,
};
use crate::body::Body;
use driver::Driver;
use http_body::Body as _;
pub(super) use seat::Seat;
use seat::Seats;
use std::{
    collections::HashMap,
    future::poll_fn,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};
use stream::Stream;

/// Parts of the register of fills, each behind a lock of its own, and how many fills a part takes.
const PARTS: usize = 16;
const FILLS_MAX: usize = 256;
/// Requests that share one fill.
const SEATS_MAX: usize = 4096;
/// For how long nobody waits for a key whose response could not be kept, and for one that failed.
const UNCACHEABLE_SECONDS: u32 = 10;
const FAILED_SECONDS: u32 = 2;

/// The fills under way that others can join.
pub(super) struct Fills {
    parts: [Mutex<HashMap<u128, Arc<Fill>, foldhash::fast::RandomState>>; PARTS],
    orphans: AtomicUsize,
    coalesced: AtomicU64,
    handed_over: AtomicU64,
    released: AtomicU64,
    outgrown: AtomicU64,
    broken: AtomicU64,
    cut_off: AtomicU64,
}

impl Default for Fills {
    fn default() -> Self {
        Self {
            parts: std::array::from_fn(|_| Mutex::default()),
            orphans: AtomicUsize::new(0),
            coalesced: AtomicU64::new(0),
            handed_over: AtomicU64::new(0),
            released: AtomicU64::new(0),
            outgrown: AtomicU64::new(0),
            broken: AtomicU64::new(0),
            cut_off: AtomicU64::new(0),
        }
    }
}

/// What happened to fills so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct FillStatistics {
    /// Requests that waited for another's fetch.
    pub(crate) coalesced: u64,
    /// Fetches that another request took over because the first one's client went away.
    pub(crate) handed_over: u64,
    /// Fetches that released those who waited for them.
    pub(crate) released: u64,
    /// Responses that got too large to be kept while they came.
    pub(crate) outgrown: u64,
    /// Responses that ended too early, or that nobody waited for any more.
    pub(crate) broken: u64,
    /// Requests that were too far behind in one of these.
    pub(crate) cut_off: u64,
}

/// Why a request goes to the origin by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Alone {
    /// The response to another like it could not be kept.
    Uncacheable,
    /// The response to another like it is larger than what is kept.
    TooLarge,
    /// Another like it failed.
    Failed,
    /// It waited as long as it may.
    Waited,
    /// As many fetches are under way, or wait for this one, as may.
    Crowded,
}

/// What a request does for which nothing is stored that it can use.
pub(crate) enum Turn {
    /// It goes to the origin, for all who want the same.
    Fetch(Filler),
    /// It waits for another that did.
    Wait(Waiter),
    /// It goes to the origin for nobody but itself; the response may be stored.
    Alone(Filler, Alone),
    /// Something newer was stored since it looked.
    LookAgain,
}

/// What waiting came to.
pub(crate) enum Waited {
    /// The response is stored.
    Kept(Arc<Entry>),
    /// Its head is here, its body on the way.
    Streaming(Joined),
    /// The filler went away: this request goes to the origin for all.
    Fetch(Filler),
    /// It goes to the origin for nobody but itself; the response may be stored.
    Alone(Filler, Alone),
}

/// One fetch.
struct Fill {
    store: Arc<Store>,
    /// What is fetched, and what those have in common who can wait for it.
    key: Arc<[u8]>,
    common: Common,
    state: Mutex<State>,
}

/// A key that is kept, with its hash.
#[derive(Clone)]
struct Common {
    hash: u128,
    text: Arc<[u8]>,
}

struct State {
    phase: Phase,
    /// The last purge when the origin was asked.
    epoch: u64,
    seats: Seats,
    /// Who reads the body from the origin.
    driver: Option<Waker>,
}

enum Phase {
    /// The origin was asked.
    Asked,
    /// The filler went away.
    Vacant,
    /// The head is here.
    Streaming(Stream),
    /// An entry was stored without a body being fetched.
    Kept(Arc<Entry>),
    /// Nobody gets anything from it.
    Released(Alone),
}

impl Fill {
    fn new(store: &Arc<Store>, key: Arc<[u8]>, common: Common) -> Arc<Self> {
        let epoch = store.epoch();
        let state = State { phase: Phase::Asked, epoch, seats: Seats::default(), driver: None };
        Arc::new(Self { store: store.clone(), key, common, state: Mutex::new(state) })
    }

    fn of(store: &Arc<Store>, key: Key<'_>, common: Key<'_>) -> Arc<Self> {
        let text: Arc<[u8]> = key.text().into();
        // Almost always the same.
        let common_text = if key.text() == common.text() { text.clone() } else { common.text().into() };
        Self::new(store, text, Common { hash: common.hash(), text: common_text })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes all who wait for something to come; their locks on it are taken when this one is open again.
    fn wake_all(&self) {
        let wakers = self.lock().seats.wakers();
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Takes it off the register: nobody joins it from now on.
    fn withdraw(&self) {
        let mut part = self.store.fills.part(self.common.hash);
        if part.get(&self.common.hash).is_some_and(|fill| std::ptr::eq(&**fill, self)) {
            part.remove(&self.common.hash);
        }
    }

    fn join(self: &Arc<Self>) -> Join {
        let mut state = self.lock();
        match &state.phase {
            // What was asked for before a purge is not for who comes after it.
            _ if !self.store.holds(&self.key, state.epoch) => Join::Outdated,
            Phase::Kept(_) => Join::Stored,
            Phase::Streaming(stream) if stream.entry.is_some() => Join::Stored,
            Phase::Released(why) => Join::Not(*why),
            Phase::Streaming(stream) if !stream.whole => Join::Not(Alone::TooLarge),
            _ if state.seats.count() >= SEATS_MAX => Join::Not(Alone::Crowded),
            _ => Join::Joined(Waiter { seat: Seat { fill: self.clone(), at: state.seats.take() } }),
        }
    }
}

/// Whether a request can wait for a fill.
enum Join {
    Joined(Waiter),
    /// Something was purged since it began.
    Outdated,
    /// It is through.
    Stored,
    Not(Alone),
}

impl Fills {
    fn part(&self, hash: u128) -> MutexGuard<'_, HashMap<u128, Arc<Fill>, foldhash::fast::RandomState>> {
        self.parts[(hash >> 64) as usize % PARTS].lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn statistics(&self) -> FillStatistics {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        FillStatistics {
            coalesced: read(&self.coalesced),
            handed_over: read(&self.handed_over),
            released: read(&self.released),
            outgrown: read(&self.outgrown),
            broken: read(&self.broken),
            cut_off: read(&self.cut_off),
        }
    }

    #[cfg(test)]
    pub(super) fn under_way(&self) -> usize {
        self.parts.iter().map(|part| part.lock().unwrap().len()).sum()
    }
}

impl Store {
    /// Whose turn it is to fetch what is stored under `key`, among those who have `common` in common: the key itself, or
    /// the key with more that is known to matter. `seen` is what the request found and cannot use.
    pub(crate) fn turn(
        self: &Arc<Self>,
        key: Key<'_>,
        common: Key<'_>,
        seen: Option<&Variants>,
        now: u32,
    ) -> Turn {
        let alone = |why| Turn::Alone(self.fetch_alone(key, common), why);
        if self.is_alone(common.hash(), now) {
            return alone(Alone::Uncacheable);
        }
        let fill = {
            let mut part = self.fills.part(common.hash());
            if let Some(fill) = part.get(&common.hash()) {
                if *fill.common.text != *common.text() {
                    return alone(Alone::Crowded);
                }
                match fill.join() {
                    Join::Joined(waiter) => {
                        self.fills.coalesced.fetch_add(1, Ordering::Relaxed);
                        return Turn::Wait(waiter);
                    }
                    Join::Stored => return Turn::LookAgain,
                    Join::Not(why) => return alone(why),
                    // The new fill takes its place; it goes on for those who have joined it.
                    Join::Outdated => {}
                }
            }
            if part.len() >= FILLS_MAX {
                return alone(Alone::Crowded);
            }
            let fill = Fill::of(self, key, common);
            part.insert(common.hash(), fill.clone());
            fill
        };
        let filler = Filler::new(fill);
        // The one before may have ended between the look-up and now.
        let newest = self.newest(key, now);
        let seen = seen.and_then(|seen| seen.iter().next());
        match (&newest, seen) {
            (Some(newest), Some(seen)) if Arc::ptr_eq(newest, seen) => Turn::Fetch(filler),
            (Some(_), _) => Turn::LookAgain,
            (None, _) => Turn::Fetch(filler),
        }
    }

    /// A place among those who wait for what has this in common, if somebody has the origin asked for it. Begins nothing.
    pub(crate) fn join(&self, common: Key<'_>, now: u32) -> Option<Waiter> {
        if self.is_alone(common.hash(), now) {
            return None;
        }
        let part = self.fills.part(common.hash());
        let fill = part.get(&common.hash()).filter(|fill| *fill.common.text == *common.text())?;
        let Join::Joined(waiter) = fill.join() else { return None };
        self.fills.coalesced.fetch_add(1, Ordering::Relaxed);
        Some(waiter)
    }

    /// A fetch that nobody waits for.
    pub(crate) fn fetch_alone(self: &Arc<Self>, key: Key<'_>, common: Key<'_>) -> Filler {
        Filler::new(Fill::of(self, key, common))
    }

    /// What happened to fills so far.
    pub(crate) fn fill_statistics(&self) -> FillStatistics {
        self.fills.statistics()
    }
}

/// Who goes to the origin. Dropped without a response, it hands over to one who waits.
pub(crate) struct Filler {
    fill: Arc<Fill>,
    epoch: u64,
    /// The head of what the response is under another key too.
    also: Option<Entry>,
    settled: bool,
}

impl Filler {
    fn new(fill: Arc<Fill>) -> Self {
        let epoch = fill.lock().epoch;
        Self { fill, epoch, also: None, settled: false }
    }

    /// The response is to be stored under another key as well, with this head, once all of it is here.
    pub(crate) fn also(&mut self, head: Option<Entry>) {
        self.also = head;
    }

    /// What is kept of the response's head. `None` if it is too much.
    pub(crate) fn head(&self, draft: &Draft<'_>) -> Option<Entry> {
        Entry::head(draft, self.epoch)
    }

    /// The last purge when the origin was asked, for [`Entry::refreshed`].
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The response is one that can be stored: `head` is what is kept of its head, `body` comes in. Gives what is there
    /// of it so far, and a body for this request, which may be the stored one at once.
    pub(crate) async fn start(mut self, head: Entry, body: Body) -> (Arc<Entry>, Body) {
        let head = Arc::new(head);
        let length = body.size_hint().exact();
        if length.is_some_and(|length| length > self.fill.store.object_limit()) {
            self.let_go(Alone::TooLarge, Some(UNCACHEABLE_SECONDS));
            return (head, body);
        }
        self.settled = true;
        let fill = self.fill.clone();
        let at = {
            let mut state = fill.lock();
            state.phase = Phase::Streaming(Stream::new(head.clone(), length));
            state.seats.take()
        };
        let seat = Seat { fill: fill.clone(), at };
        let mut driver = Driver::new(fill.clone(), body, self.also.take());
        if poll_fn(|cx| Poll::Ready(driver.poll_step(cx))).await.is_pending() {
            driver.quiet = false;
            fill.wake_all();
            tokio::task::spawn_local(driver);
            return (head, Body::Boxed(Box::pin(Reader::new(seat))));
        }
        let kept = match &fill.lock().phase {
            Phase::Streaming(Stream { entry: Some(entry), .. }) => Some(entry.clone()),
            _ => None,
        };
        match kept {
            Some(entry) => {
                let body = entry.body();
                (entry, body)
            }
            None => (head, Body::Boxed(Box::pin(Reader::new(seat)))),
        }
    }

    /// The response says that what is stored holds on: `entry` is stored in its place and goes to all who wait.
    pub(crate) fn keep(mut self, entry: Entry, now: u32) -> Arc<Entry> {
        self.settled = true;
        let (entry, _) = self.fill.store.put(entry, now);
        self.fill.store.keep_company(self.fill.common.hash);
        self.fill.lock().phase = Phase::Kept(entry.clone());
        self.fill.withdraw();
        self.fill.wake_all();
        entry
    }

    /// The response cannot be kept: all who wait go to the origin by themselves, and for a while all who come.
    pub(crate) fn uncacheable(mut self) {
        self.let_go(Alone::Uncacheable, Some(UNCACHEABLE_SECONDS));
    }

    /// The response is for its own request only, and says nothing about what others get: all who wait go to the origin
    /// by themselves.
    pub(crate) fn personal(mut self) {
        self.let_go(Alone::Uncacheable, None);
    }

    /// There is no response: all who wait go to the origin by themselves.
    pub(crate) fn failed(mut self) {
        self.let_go(Alone::Failed, Some(FAILED_SECONDS));
    }

    fn let_go(&mut self, why: Alone, seconds: Option<u32>) {
        self.settled = true;
        if let Some(seconds) = seconds {
            self.fill.store.leave_alone(self.fill.common.hash, seconds_now().saturating_add(seconds));
        }
        let waited = {
            let mut state = self.fill.lock();
            state.phase = Phase::Released(why);
            state.seats.count() > 0
        };
        if waited {
            self.fill.store.fills.released.fetch_add(1, Ordering::Relaxed);
        }
        self.fill.withdraw();
        self.fill.wake_all();
    }
}

impl Drop for Filler {
    fn drop(&mut self) {
        if self.settled {
            return;
        }
        let waited_for = {
            let mut state = self.fill.lock();
            state.phase = Phase::Vacant;
            state.seats.count() > 0
        };
        if waited_for {
            self.fill.wake_all();
        } else {
            self.fill.withdraw();
        }
    }
}

/// Who waits for another's fetch.
pub(crate) struct Waiter {
    seat: Seat,
}

impl Waiter {
    /// Waits until there is something to read or nothing to wait for, but not longer than `most`.
    pub(crate) async fn wait(mut self, most: Duration) -> Waited {
        let waited = tokio::time::timeout(most, poll_fn(|cx| self.poll(cx))).await;
        let why = match waited {
            Ok(Ready::Kept(entry)) => return Waited::Kept(entry),
            Ok(Ready::Streaming(head)) => return Waited::Streaming(Joined { head, seat: self.seat }),
            Ok(Ready::Fetch(filler)) => return Waited::Fetch(filler),
            Ok(Ready::Alone(why)) => why,
            Err(_) => Alone::Waited,
        };
        let fill = &self.seat.fill;
        let own = Fill::new(&fill.store, fill.key.clone(), fill.common.clone());
        Waited::Alone(Filler::new(own), why)
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Ready> {
        let fill = &self.seat.fill;
        let mut state = fill.lock();
        Poll::Ready(match &state.phase {
            Phase::Asked => {
                state.seats.wait(self.seat.at, cx);
                return Poll::Pending;
            }
            Phase::Vacant => {
                let epoch = fill.store.epoch();
                (state.phase, state.epoch) = (Phase::Asked, epoch);
                fill.store.fills.handed_over.fetch_add(1, Ordering::Relaxed);
                Ready::Fetch(Filler { fill: fill.clone(), epoch, also: None, settled: false })
            }
            Phase::Kept(entry) => Ready::Kept(entry.clone()),
            Phase::Released(why) => Ready::Alone(*why),
            Phase::Streaming(stream) => match (&stream.entry, &stream.outcome) {
                (Some(entry), _) => Ready::Kept(entry.clone()),
                (None, Some(Err(_))) => Ready::Alone(Alone::Failed),
                _ if !stream.has_beginning() => Ready::Alone(Alone::TooLarge),
                _ => Ready::Streaming(stream.head.clone()),
            },
        })
    }
}

enum Ready {
    Kept(Arc<Entry>),
    Streaming(Arc<Entry>),
    Fetch(Filler),
    Alone(Alone),
}

/// A response whose head is here and whose body is on the way.
pub(crate) struct Joined {
    head: Arc<Entry>,
    seat: Seat,
}

impl Joined {
    /// Its head. Whoever waited has to see whether it is for its request.
    pub(crate) fn head(&self) -> &Arc<Entry> {
        &self.head
    }

    /// How long its body is, if that was said, and how much of it is here.
    pub(crate) fn lengths(&self) -> (Option<u64>, u64) {
        match &self.seat.fill.lock().phase {
            Phase::Streaming(stream) => (stream.length, stream.end()),
            _ => (None, 0),
        }
    }

    /// Its body.
    pub(crate) fn into_body(self) -> Body {
        Body::Boxed(Box::pin(Reader::new(self.seat)))
    }
}

#[cfg(test)]
mod tests;
