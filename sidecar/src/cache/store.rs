//! The memory of the cache: what is stored under which key, within a limit in bytes that is kept at every moment.
//!
//! One store per policy, shared by all workers. It consists of shards, each behind a lock that is held for one look-up
//! or a few changes and never while anything is freed. Bytes are reserved before anything is put in, and room is made
//! by evicting a few resources at a time, from one shard after the other.

mod marks;
mod shard;
mod stores;
mod table;

#[cfg(test)]
pub(super) use marks::tests as choices;
pub(crate) use marks::{Choice, Manner, Mark, What};
pub(super) use shard::PLACE;
pub(crate) use shard::Top;
pub(crate) use stores::{Announced, Stores};

use super::{
    entry::{Entry, Key, Variants, room},
    tiers::{self, Farther},
};
use arc_swap::ArcSwapOption;
use http::HeaderMap;
use marks::Marks;
use shard::{Removed, Shard, Spot};
use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    sync::{
        Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

/// How many bytes of the limit a shard is worth, and how many shards there are at most.
const SHARD_BYTES: u64 = 256 * 1024;
const SHARDS_MAX: u64 = 64;
/// Resources evicted, or slots looked at, while a lock is held.
const BATCH: usize = 32;
/// How many may be let off while a lock is held because they were asked for: an eviction must not go through everything.
const MERCY: usize = 256;
/// Slots looked at for every entry stored: what is of no use any more goes sooner than its turn.
const GLANCE: usize = 2;
/// Places to remember keys that are not worth waiting for.
const LONERS: usize = 512;
/// Purges by hand that may be on their way at once.
const LISTED_MAX: usize = 64;
/// Keys and URIs of which it is remembered that they were purged. From half as many on, every further one looks through
/// a part of the store, so that all of it is looked through before there are this many.
const REMEMBERED_MAX: usize = 4096;

/// What a policy allows a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bounds {
    /// Bytes of everything kept, fills under way included.
    pub(crate) bytes: u64,
    /// Bytes of one body.
    pub(crate) object: u64,
    /// Variants of one resource.
    pub(crate) variants: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { bytes: 64 << 20, object: 1 << 20, variants: 16 }
    }
}

/// A shard on cache lines of its own.
#[derive(Default)]
#[repr(align(128))]
struct Part {
    shard: RwLock<Shard>,
    hits: AtomicU64,
    misses: AtomicU64,
}

impl Part {
    fn read(&self) -> RwLockReadGuard<'_, Shard> {
        self.shard.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Shard> {
        self.shard.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is stored under one policy.
pub(crate) struct Store {
    parts: Box<[Part]>,
    limit: AtomicU64,
    object: AtomicU64,
    variants: AtomicUsize,
    /// Bytes of entries and of fills under way. Never above the limit, but when the limit was just lowered.
    used: AtomicU64,
    /// How much of it is fills.
    filling: AtomicU64,
    marks: Marks,
    /// Keys whose responses could not be kept: a print and the second until which that holds.
    loners: Box<[AtomicU64]>,
    /// Which shard makes room next.
    turn: AtomicUsize,
    sweep: Mutex<Sweep>,
    pub(super) fills: super::fill::Fills,
    pub(super) changed: super::siblings::Changed,
    /// What resources say of their queries.
    pub(super) queries: super::queries::Queries,
    /// Further places that get what is stored here.
    farther: ArcSwapOption<Farther>,
    counts: Counts,
}

/// How far the looking through of everything has come.
#[derive(Default)]
struct Sweep {
    part: usize,
    slot: u32,
    /// The last purge when it began.
    since: u64,
    under_way: bool,
}

/// What happened so far.
#[derive(Default)]
struct Counts {
    entries: AtomicU64,
    stored: AtomicU64,
    evicted: AtomicU64,
    expired: AtomicU64,
    purged: AtomicU64,
    refused: AtomicU64,
}

/// What a store has and what happened in it so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Statistics {
    pub(crate) hits: u64,
    pub(crate) misses: u64,
    pub(crate) entries: u64,
    pub(crate) bytes: u64,
    /// Of these, fills under way.
    pub(crate) filling: u64,
    pub(crate) limit: u64,
    pub(crate) stored: u64,
    pub(crate) evicted: u64,
    /// Of no use any more when they were found.
    pub(crate) expired: u64,
    pub(crate) purged: u64,
    /// Not kept: too large, no room, or purged while they came.
    pub(crate) refused: u64,
}

/// Why a response is not kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// It is larger than one object may be.
    TooLarge,
    /// Others that are under way take all the room.
    NoRoom,
    /// It was purged while it came.
    Purged,
}

impl Store {
    pub(crate) fn new(bounds: Bounds) -> Self {
        let parts = (bounds.bytes / SHARD_BYTES).clamp(1, SHARDS_MAX).next_power_of_two();
        Self {
            parts: (0..parts).map(|_| Part::default()).collect(),
            limit: AtomicU64::new(bounds.bytes),
            object: AtomicU64::new(bounds.object),
            variants: AtomicUsize::new(bounds.variants),
            used: AtomicU64::new(0),
            filling: AtomicU64::new(0),
            marks: Marks::default(),
            loners: (0..LONERS).map(|_| AtomicU64::new(0)).collect(),
            turn: AtomicUsize::new(0),
            sweep: Mutex::default(),
            fills: super::fill::Fills::default(),
            changed: super::siblings::Changed::default(),
            queries: super::queries::Queries::default(),
            farther: ArcSwapOption::empty(),
            counts: Counts::default(),
        }
    }

    /// Takes on what a new policy allows. What is stored stays, as far as it fits.
    pub(crate) fn set_bounds(&self, bounds: Bounds, now: u32) {
        self.limit.store(bounds.bytes, Ordering::Relaxed);
        self.object.store(bounds.object, Ordering::Relaxed);
        self.variants.store(bounds.variants, Ordering::Relaxed);
        while self.used.load(Ordering::Relaxed) > bounds.bytes && self.evict(now) {}
    }

    /// Takes on what a new policy says of further places.
    pub(super) fn set_farther(&self, farther: Option<Arc<Farther>>) {
        let same = match (&*self.farther.load(), &farther) {
            (Some(old), Some(new)) => Arc::ptr_eq(old, new),
            (None, None) => true,
            _ => false,
        };
        if !same {
            self.farther.store(farther);
        }
    }

    /// Looks in further places for what is not here. What is found is not stored here yet; it is judged like anything
    /// that is, by whoever asked. Waits no longer than the policy allows, and never fails.
    pub(crate) async fn look_farther(&self, key: Key<'_>, request: &HeaderMap, now: u32) -> Option<Entry> {
        let farther = self.farther.load_full()?;
        // Before anything is asked: a purge from now on is for what is found, too.
        let epoch = self.epoch();
        farther.look_up(key.text(), request, now, epoch, self.object_limit()).await
    }

    /// Whether there are further places to look in.
    pub(crate) fn has_farther(&self) -> bool {
        self.farther.load().is_some()
    }

    /// The largest body that is kept.
    pub(crate) fn object_limit(&self) -> u64 {
        self.object.load(Ordering::Relaxed)
    }

    fn part(&self, hash: u128) -> &Part {
        &self.parts[(hash >> 32) as u32 as usize & (self.parts.len() - 1)]
    }

    /// What is stored under a key, unless it is of no use any more or purged. `now` in seconds since 1970.
    pub(crate) fn look_up(&self, key: Key<'_>, now: u32) -> Option<Variants> {
        let spot = Spot::of(key.hash());
        let part = self.part(key.hash());
        let found = part.read().get(spot, key, now);
        let Some(variants) = found else {
            part.misses.fetch_add(1, Ordering::Relaxed);
            return None;
        };
        part.hits.fetch_add(1, Ordering::Relaxed);
        if variants.iter().all(|entry| !self.marks.judge(entry)) {
            return Some(variants);
        }
        let mut removed = Removed::default();
        part.write().remove_some(spot, key, |entry| self.marks.judge(entry), &mut removed);
        self.free(removed, &self.counts.purged);
        Variants::of(variants.iter().filter(|entry| !entry.is_purged()).cloned().collect())
    }

    /// The newest that is stored under a key, without it being counted as asked for.
    pub(super) fn newest(&self, key: Key<'_>, now: u32) -> Option<Arc<Entry>> {
        let variants = self.part(key.hash()).read().peek(Spot::of(key.hash()), key).cloned()?;
        let newest = variants.iter().next()?;
        (newest.times().useful_until >= now && !self.marks.judge(newest)).then(|| newest.clone())
    }

    /// The last purge, before a request is sent whose response may be stored: for [`Entry::head`].
    pub(crate) fn epoch(&self) -> u64 {
        self.marks.latest()
    }

    /// Whether no hard purge is for an entry that was found earlier.
    pub(super) fn stands(&self, entry: &Entry) -> bool {
        !self.marks.judge(entry)
    }

    /// Whether a response that was asked for at `epoch` is for who asks now.
    pub(super) fn holds(&self, key: &[u8], epoch: u64) -> bool {
        self.marks.holds(key, epoch)
    }

    /// Stores an entry as its resource's newest. Gives it back shared, with why it was not stored if it was not.
    pub(crate) fn put(&self, entry: Entry, now: u32) -> (Arc<Entry>, Result<(), Refused>) {
        let entry = Arc::new(entry);
        let stored = self.store(&entry, now);
        if stored.is_err() {
            self.counts.refused.fetch_add(1, Ordering::Relaxed);
        }
        (entry, stored)
    }

    fn store(&self, entry: &Arc<Entry>, now: u32) -> Result<(), Refused> {
        let size = entry.size() as u64;
        if entry.length() as u64 > self.object_limit() || size > u64::from(u32::MAX) {
            return Err(Refused::TooLarge);
        }
        if self.marks.judge(entry) {
            return Err(Refused::Purged);
        }
        if !self.reserve(size, now) {
            return Err(Refused::NoRoom);
        }
        let hash = entry.key().hash();
        let most = self.variants.load(Ordering::Relaxed).max(1);
        let (mut removed, mut useless) = (Removed::default(), Removed::default());
        {
            let mut shard = self.part(hash).write();
            // A purge is first announced and then waits for the lock: it is either seen here or sees the entry.
            if self.marks.judge(entry) {
                drop(shard);
                self.release(size);
                return Err(Refused::Purged);
            }
            shard.put(Spot::of(hash), entry.clone(), most, &mut removed);
            shard.glance(GLANCE, now, &mut useless);
        }
        self.counts.stored.fetch_add(1, Ordering::Relaxed);
        self.counts.entries.fetch_add(1, Ordering::Relaxed);
        self.counts.entries.fetch_sub(removed.entries, Ordering::Relaxed);
        self.release(removed.bytes);
        self.free(useless, &self.counts.expired);
        if let Some(farther) = &*self.farther.load() {
            farther.keep(entry);
        }
        Ok(())
    }

    fn free(&self, removed: Removed, count: &AtomicU64) {
        if removed.entries > 0 {
            count.fetch_add(removed.entries, Ordering::Relaxed);
            self.counts.entries.fetch_sub(removed.entries, Ordering::Relaxed);
            self.release(removed.bytes);
            for variants in removed.variants {
                if let Variants::One(entry) = variants {
                    room::give_back(entry);
                }
            }
        }
    }

    fn release(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Takes bytes of the limit, making room if need be. False if there is no room to be made.
    fn reserve(&self, bytes: u64, now: u32) -> bool {
        loop {
            let limit = self.limit.load(Ordering::Relaxed);
            if bytes > limit {
                return false;
            }
            let taken = self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                used.checked_add(bytes).filter(|used| *used <= limit)
            });
            if taken.is_ok() {
                return true;
            }
            if !self.evict(now) {
                return false;
            }
        }
    }

    /// Reserves memory for a fill that grows. False if there is no room: fills get half of it, so that slow ones don't
    /// push out what is stored, or as much as one object may take if that is more.
    pub(super) fn reserve_fill(&self, bytes: u64, now: u32) -> bool {
        let limit = self.limit.load(Ordering::Relaxed);
        let most = (limit / 2).max(self.object_limit().min(limit));
        let taken = self.filling.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |filling| {
            filling.checked_add(bytes).filter(|filling| *filling <= most)
        });
        if taken.is_err() {
            return false;
        }
        let reserved = self.reserve(bytes, now);
        if !reserved {
            self.filling.fetch_sub(bytes, Ordering::Relaxed);
        }
        reserved
    }

    /// Gives back what a fill had reserved.
    pub(super) fn release_fill(&self, bytes: u64) {
        self.filling.fetch_sub(bytes, Ordering::Relaxed);
        self.release(bytes);
    }

    /// Evicts a few resources from the next shard that has any. False if none has.
    fn evict(&self, now: u32) -> bool {
        let first = self.turn.fetch_add(1, Ordering::Relaxed);
        for offset in 0..self.parts.len() {
            let part = &self.parts[(first + offset) & (self.parts.len() - 1)];
            let (mut removed, mut mercy) = (Removed::default(), MERCY);
            {
                let mut shard = part.write();
                let limit = self.limit.load(Ordering::Relaxed);
                // An eighth of a shard's worth of small ones, or one large one.
                while removed.variants.len() < BATCH
                    && removed.bytes < (limit / self.parts.len() as u64 / 8).min(16 * 1024)
                    && shard.evict(now, &mut mercy, &mut removed)
                {}
            }
            if removed.bytes > 0 {
                self.free(removed, &self.counts.evicted);
                return true;
            }
        }
        false
    }

    /// Purges everything whose key has this for its first line, stored or under way: all that is kept of one URI. Cheap
    /// enough for every request that changes something.
    pub(crate) fn invalidate(&self, uri: &[u8], now: u32) {
        let uri = Key::new(uri);
        self.remember(uri, now);
        self.purge_farther(uri);
    }

    /// Purges all that further places keep of a key's URI.
    fn purge_farther(&self, key: Key<'_>) {
        if let Some(farther) = &*self.farther.load() {
            farther.purge_uri(key.text());
        }
    }

    fn remember(&self, text: Key<'_>, now: u32) {
        self.marks.add_text(text);
        let remembered = self.marks.remembered();
        if remembered > REMEMBERED_MAX / 2 {
            let few = 1 + self.counts.entries.load(Ordering::Relaxed) / 16_384;
            for _ in 0..few {
                self.sweep(BATCH, now);
            }
        }
        // Only if more than a million entries were added meanwhile.
        while self.marks.remembered() > REMEMBERED_MAX {
            self.sweep(BATCH, now);
        }
    }

    /// Takes out one entry if it is still there: one that turned out to be of no use.
    pub(crate) fn remove(&self, entry: &Arc<Entry>) {
        let key = entry.key();
        self.purge_farther(key);
        let mut removed = Removed::default();
        self.part(key.hash()).write().remove_some(
            Spot::of(key.hash()),
            key,
            |other| Arc::ptr_eq(other, entry),
            &mut removed,
        );
        self.free(removed, &self.counts.purged);
    }

    /// Puts a purge in force for everything it is for, stored or under way. Its memory comes free with the sweeps that
    /// follow.
    pub(crate) fn purge(&self, what: What, manner: Manner, now: u32) -> Arc<Mark> {
        while self.marks.listed() >= LISTED_MAX {
            self.sweep(BATCH, now);
        }
        if let Some(farther) = &*self.farther.load() {
            farther.purge(&what);
        }
        self.marks.add(what, manner)
    }

    /// Purges and sweeps to the end, a few slots at a time. Gives how many entries it was for. Not for a worker.
    #[cfg(test)]
    pub(super) fn purge_through(&self, what: What, manner: Manner, now: u32) -> u64 {
        let mark = self.purge(what, manner, now);
        self.sweep_for(&mark, now)
    }

    /// Sweeps until everything was looked at for this purge. Gives how many entries it was for. Not for a worker.
    pub(crate) fn sweep_for(&self, mark: &Mark, now: u32) -> u64 {
        while self.is_pending(mark) {
            self.sweep(BATCH, now);
        }
        self.settle();
        mark.found()
    }

    /// Waits, for a moment, until purges have arrived at farther places. Not for a worker.
    pub(crate) fn settle(&self) {
        tiers::settle(self.farther.load_full());
    }

    /// Whether something may still be stored that this purge is for.
    pub(crate) fn is_pending(&self, mark: &Mark) -> bool {
        !self.marks.is_forgotten(mark)
    }

    /// Looks at the next few slots of the whole store, and takes out what is purged or of no use any more. True when it
    /// came to the end of all of them.
    pub(crate) fn sweep(&self, few: usize, now: u32) -> bool {
        let mut sweep = self.sweep.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut removed, mut useless) = (Removed::default(), Removed::default());
        let next = {
            let mut shard = self.parts[sweep.part].write();
            if !sweep.under_way {
                (sweep.under_way, sweep.since) = (true, self.marks.latest());
            }
            let goes = |entry: &Arc<Entry>| self.marks.judge(entry);
            shard.sweep(sweep.slot, few, now, goes, [&mut removed, &mut useless])
        };
        self.free(removed, &self.counts.purged);
        self.free(useless, &self.counts.expired);
        sweep.slot = next.unwrap_or(0);
        if next.is_some() {
            return false;
        }
        sweep.part += 1;
        if sweep.part < self.parts.len() {
            return false;
        }
        self.marks.forget(sweep.since);
        *sweep = Sweep::default();
        true
    }

    /// Remembers for a while that responses under a key are not kept, so that nobody waits for one.
    pub(super) fn leave_alone(&self, hash: u128, until: u32) {
        let (print, place) = Self::loner(hash);
        self.loners[place].store(print | u64::from(until), Ordering::Relaxed);
    }

    /// Whether each request with this key goes to the origin by itself.
    pub(super) fn is_alone(&self, hash: u128, now: u32) -> bool {
        let (print, place) = Self::loner(hash);
        let found = self.loners[place].load(Ordering::Relaxed);
        found & (u64::from(u32::MAX) << 32) == print && found as u32 > now
    }

    /// Forgets that a key was not worth waiting for.
    pub(super) fn keep_company(&self, hash: u128) {
        let (print, place) = Self::loner(hash);
        let found = self.loners[place].load(Ordering::Relaxed);
        if found & (u64::from(u32::MAX) << 32) == print {
            self.loners[place].store(0, Ordering::Relaxed);
        }
    }

    fn loner(hash: u128) -> (u64, usize) {
        (u64::from(hash as u32) << 32, (hash >> 64) as usize % LONERS)
    }

    /// Bytes by the count that is kept, by the queues, and by what is stored; entries by the count and by what is stored.
    #[cfg(test)]
    pub(super) fn audit(&self) -> ([u64; 3], [u64; 2]) {
        let statistics = self.statistics();
        let (mut queued, mut held, mut entries) = (0, 0, 0);
        for part in &self.parts {
            let audit = part.read().audit();
            (queued, held, entries) = (queued + audit.0, held + audit.1, entries + audit.2 as u64);
        }
        ([statistics.bytes - statistics.filling, queued, held], [statistics.entries, entries])
    }

    /// What it has and what happened so far.
    pub(crate) fn statistics(&self) -> Statistics {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let mut statistics = Statistics {
            entries: read(&self.counts.entries),
            bytes: read(&self.used),
            filling: read(&self.filling),
            limit: read(&self.limit),
            stored: read(&self.counts.stored),
            evicted: read(&self.counts.evicted),
            expired: read(&self.counts.expired),
            purged: read(&self.counts.purged),
            refused: read(&self.counts.refused),
            ..Statistics::default()
        };
        for part in &self.parts {
            statistics.hits += read(&part.hits);
            statistics.misses += read(&part.misses);
        }
        statistics
    }

    /// What is asked for most, the first first: by the hits since each was stored.
    pub(crate) fn top(&self, most: usize) -> Vec<Top> {
        let mut top = BinaryHeap::with_capacity(most + 1);
        for part in &self.parts {
            let mut from = 0;
            loop {
                let shard = part.read();
                if from >= shard.slots() {
                    break;
                }
                shard.show(from, BATCH, |hits, bytes, variants| {
                    let lowest = top.peek().map_or(0, |Reverse(Top { hits, .. })| *hits);
                    if hits > 0 && (top.len() < most || hits > lowest) {
                        let key = variants.key_text().to_vec();
                        top.push(Reverse(Top { hits, bytes, variants: variants.iter().len(), key }));
                        if top.len() > most {
                            top.pop();
                        }
                    }
                });
                from += BATCH;
            }
        }
        let mut top: Vec<_> = top.into_iter().map(|Reverse(top)| top).collect();
        top.sort_by(|a, b| b.cmp(a));
        top
    }
}

#[cfg(test)]
mod tests;
