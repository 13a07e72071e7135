//! A part of the store: the resources in it and the order in which they make room for others.
//!
//! The order is S3-FIFO. What is new goes through a small queue; what is asked for again while it is there, or soon
//! after it had to leave, goes into the main one. A scan passes through the small queue and pushes out nothing else. A
//! hit only raises a count of two bits, so it needs no more than to read.

use super::table::{SLOTS_MAX, Table};
use crate::cache::entry::{Entry, Key, Variants};
use smallvec::SmallVec;
use std::sync::{
    Arc,
    atomic::{AtomicU8, AtomicU32, Ordering},
};

/// No slot.
const NONE: u32 = u32::MAX;
/// The most a count rises to.
const COUNTED: u8 = 3;
/// The small queue's share: one part in so many. With a tenth, fewer requests hit where all of them follow Zipf's law.
const SMALL_SHARE: u64 = 20;

/// Where a hash leads.
#[derive(Clone, Copy)]
pub(super) struct Spot {
    pub(super) print: u32,
    ghost: u32,
}

impl Spot {
    pub(super) fn of(hash: u128) -> Self {
        Self { print: hash as u32, ghost: (hash >> 64) as u32 }
    }
}

/// A resource.
struct Slot {
    variants: Option<Variants>,
    /// Where its key leads: what has to leave was not touched for long, so its key is not read once more for this.
    spot: Spot,
    bytes: u32,
    /// Towards the newer; for a free slot nothing.
    newer: u32,
    /// Towards the older; for a free slot the next free one.
    older: u32,
    useful_until: u32,
    hits: AtomicU32,
    asked: AtomicU8,
    in_main: bool,
}

/// A queue through the slots.
struct Queue {
    newest: u32,
    oldest: u32,
    bytes: u64,
}

impl Queue {
    const EMPTY: Self = Self { newest: NONE, oldest: NONE, bytes: 0 };
}

/// A resource's share of the store's index: its slot with a quarter more for growth, its cell where the table is half
/// full, a print of what had to leave.
pub(in crate::cache) const PLACE: usize = size_of::<Slot>() + size_of::<Slot>() / 4 + 16 + 4;

/// A part of the store.
pub(super) struct Shard {
    table: Table,
    slots: Vec<Slot>,
    free: u32,
    small: Queue,
    main: Queue,
    /// Prints of what had to leave the small queue, each at the place its hash says, where the next takes its place.
    ghosts: Vec<u32>,
    /// Where the next glance at what may be of no use any more begins.
    glance: u32,
}

/// What a change took out: freed by the caller once the lock is open.
#[derive(Default)]
pub(super) struct Removed {
    pub(super) variants: SmallVec<[Variants; 16]>,
    pub(super) bytes: u64,
    pub(super) entries: u64,
}

impl Removed {
    fn add(&mut self, variants: Variants, bytes: u32) {
        self.entries += variants.iter().len() as u64;
        self.bytes += u64::from(bytes);
        self.variants.push(variants);
    }
}

/// A line of the list of what is asked for most.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Top {
    pub(crate) hits: u32,
    pub(crate) bytes: u32,
    pub(crate) variants: usize,
    pub(crate) key: Vec<u8>,
}

impl Default for Shard {
    fn default() -> Self {
        Self {
            table: Table::default(),
            slots: Vec::new(),
            free: NONE,
            small: Queue::EMPTY,
            main: Queue::EMPTY,
            ghosts: Vec::new(),
            glance: 0,
        }
    }
}

impl Shard {
    fn is(&self, slot: u32, key: &[u8]) -> bool {
        let variants = self.slots.get(slot as usize).and_then(|slot| slot.variants.as_ref());
        variants.is_some_and(|variants| variants.key_text() == key)
    }

    fn find(&self, spot: Spot, key: Key<'_>) -> Option<u32> {
        self.table.find(spot.print, |slot| self.is(slot, key.text()))
    }

    /// What is stored under a key, unless it is of no use any more.
    pub(super) fn get(&self, spot: Spot, key: Key<'_>, now: u32) -> Option<Variants> {
        let slot = &self.slots[self.find(spot, key)? as usize];
        if slot.useful_until < now {
            return None;
        }
        // Counts that two workers raise at the same moment may lose one; neither decides more than an order.
        let asked = slot.asked.load(Ordering::Relaxed);
        if asked < COUNTED {
            slot.asked.store(asked + 1, Ordering::Relaxed);
        }
        slot.hits.store(slot.hits.load(Ordering::Relaxed).saturating_add(1), Ordering::Relaxed);
        slot.variants.clone()
    }

    /// The same without being counted.
    pub(super) fn peek(&self, spot: Spot, key: Key<'_>) -> Option<&Variants> {
        self.slots[self.find(spot, key)? as usize].variants.as_ref()
    }

    fn queue(&mut self, main: bool) -> &mut Queue {
        if main { &mut self.main } else { &mut self.small }
    }

    fn push(&mut self, slot: u32, main: bool) {
        let bytes = u64::from(self.slots[slot as usize].bytes);
        let queue = self.queue(main);
        queue.bytes += bytes;
        let before = std::mem::replace(&mut queue.newest, slot);
        if queue.oldest == NONE {
            queue.oldest = slot;
        }
        if before != NONE {
            self.slots[before as usize].newer = slot;
        }
        let pushed = &mut self.slots[slot as usize];
        (pushed.newer, pushed.older, pushed.in_main) = (NONE, before, main);
    }

    fn unlink(&mut self, slot: u32) {
        let Slot { newer, older, bytes, in_main, .. } = self.slots[slot as usize];
        let queue = self.queue(in_main);
        queue.bytes -= u64::from(bytes);
        if newer == NONE {
            queue.newest = older;
        }
        if older == NONE {
            queue.oldest = newer;
        }
        if newer != NONE {
            self.slots[newer as usize].older = older;
        }
        if older != NONE {
            self.slots[older as usize].newer = newer;
        }
    }

    /// Stores `entry` as its resource's newest, in place of the one with the same selector, with at most `most` of them.
    /// The caller has reserved its bytes.
    pub(super) fn put(&mut self, spot: Spot, entry: Arc<Entry>, most: usize, removed: &mut Removed) {
        let found = self.table.find(spot.print, |slot| self.is(slot, entry.key_text()));
        let old = found.and_then(|slot| self.slots[slot as usize].variants.as_ref());
        let mut bytes = entry.size() as u64;
        let mut gone = SmallVec::<[Arc<Entry>; 1]>::new();
        let variants = match old {
            None => Variants::One(entry),
            Some(Variants::One(only)) if only.selector() == entry.selector() || most < 2 => {
                gone.push(only.clone());
                Variants::One(entry)
            }
            Some(old) => {
                let mut all = Vec::with_capacity(old.iter().len() + 1);
                all.push(entry);
                for other in old.iter() {
                    let size = other.size() as u64;
                    let differs = other.selector() != all[0].selector();
                    if differs && all.len() < most && bytes + size < u64::from(u32::MAX) {
                        bytes += size;
                        all.push(other.clone());
                    } else {
                        gone.push(other.clone());
                    }
                }
                let Some(all) = Variants::of(all) else { return };
                all
            }
        };
        let bytes = bytes as u32;
        let useful_until = variants.useful_until();
        let Some(slot) = found else {
            self.add(spot, variants, bytes, useful_until, removed);
            return;
        };
        let place = &mut self.slots[slot as usize];
        let before = std::mem::replace(&mut place.bytes, bytes);
        place.useful_until = useful_until;
        place.variants = Some(variants);
        let in_main = place.in_main;
        let queue = self.queue(in_main);
        queue.bytes = queue.bytes - u64::from(before) + u64::from(bytes);
        for variant in gone {
            let size = variant.size() as u32;
            removed.add(Variants::One(variant), size);
        }
    }

    fn add(&mut self, spot: Spot, variants: Variants, bytes: u32, useful_until: u32, removed: &mut Removed) {
        let fresh = Slot {
            variants: Some(variants),
            spot,
            bytes,
            newer: NONE,
            older: NONE,
            useful_until,
            hits: AtomicU32::new(0),
            asked: AtomicU8::new(0),
            in_main: false,
        };
        let slot = if self.free != NONE {
            let slot = self.free;
            self.free = self.slots[slot as usize].older;
            self.slots[slot as usize] = fresh;
            slot
        } else {
            let slot = self.slots.len() as u32;
            if slot >= SLOTS_MAX {
                if let Some(variants) = fresh.variants {
                    removed.add(variants, bytes);
                }
                return;
            }
            if self.slots.len() == self.slots.capacity() {
                self.slots.reserve_exact(self.slots.len() / 4 + 4);
            }
            self.slots.push(fresh);
            slot
        };
        self.table.insert(spot.print, slot);
        let returned = self.was_here(spot);
        self.push(slot, returned);
    }

    /// Whether a key had to leave not long ago.
    fn was_here(&mut self, spot: Spot) -> bool {
        let ghosts = self.ghosts.len();
        if ghosts == 0 {
            return false;
        }
        let ghost = &mut self.ghosts[spot.ghost as usize & (ghosts - 1)];
        let here = *ghost == spot.print;
        if here {
            *ghost = 0;
        }
        here
    }

    fn remember(&mut self, spot: Spot) {
        let wanted = self.slots.len().next_power_of_two();
        if self.ghosts.len() < wanted {
            self.ghosts = vec![0; wanted];
        }
        let at = spot.ghost as usize & (self.ghosts.len() - 1);
        self.ghosts[at] = spot.print;
    }

    /// Takes a slot out altogether.
    fn take(&mut self, slot: u32, removed: &mut Removed) -> Option<Spot> {
        let place = self.slots.get(slot as usize).filter(|place| place.variants.is_some())?;
        let spot = place.spot;
        self.unlink(slot);
        self.table.remove(spot.print, slot);
        let place = &mut self.slots[slot as usize];
        place.older = std::mem::replace(&mut self.free, slot);
        if let Some(variants) = place.variants.take() {
            removed.add(variants, place.bytes);
        }
        Some(spot)
    }

    /// Takes out those under a key for which `goes` holds.
    pub(super) fn remove_some(
        &mut self,
        spot: Spot,
        key: Key<'_>,
        goes: impl Fn(&Arc<Entry>) -> bool,
        removed: &mut Removed,
    ) {
        if let Some(slot) = self.find(spot, key) {
            self.thin(slot, goes, removed);
        }
    }

    fn thin(&mut self, slot: u32, goes: impl Fn(&Arc<Entry>) -> bool, removed: &mut Removed) {
        let Some(variants) = &self.slots[slot as usize].variants else { return };
        if let Variants::One(entry) = variants {
            if goes(entry) {
                self.take(slot, removed);
            }
            return;
        }
        let (gone, kept): (Vec<_>, Vec<_>) = variants.iter().cloned().partition(&goes);
        if gone.is_empty() {
            return;
        }
        let Some(variants) = Variants::of(kept) else {
            self.take(slot, removed);
            return;
        };
        let place = &mut self.slots[slot as usize];
        place.useful_until = variants.useful_until();
        place.variants = Some(variants);
        let mut freed = 0;
        for entry in gone {
            let size = entry.size() as u32;
            freed += size;
            removed.add(Variants::One(entry), size);
        }
        place.bytes -= freed;
        let in_main = place.in_main;
        self.queue(in_main).bytes -= u64::from(freed);
    }

    /// Takes out the resource that is needed least. False if there is none. Every one that is let off because it was
    /// asked for uses up `mercy`; without any left, what is next has to go.
    pub(super) fn evict(&mut self, now: u32, mercy: &mut usize, removed: &mut Removed) -> bool {
        loop {
            let all = self.small.bytes + self.main.bytes;
            let from_small = self.small.oldest != NONE
                && (self.main.oldest == NONE || self.small.bytes * SMALL_SHARE >= all);
            let slot = if from_small { self.small.oldest } else { self.main.oldest };
            if slot == NONE {
                return false;
            }
            let place = &mut self.slots[slot as usize];
            let asked = *place.asked.get_mut();
            if asked > 0 && place.useful_until >= now && *mercy > 0 {
                *mercy -= 1;
                *place.asked.get_mut() = if from_small { 0 } else { asked - 1 };
                self.unlink(slot);
                self.push(slot, true);
                continue;
            }
            let useful = place.useful_until >= now;
            if let Some(spot) = self.take(slot, removed)
                && from_small
                && useful
            {
                self.remember(spot);
            }
            return true;
        }
    }

    /// Looks at a few slots, and takes out what is of no use any more and that for which `goes` holds. Gives where to go
    /// on; `None` once the end of the shard is reached.
    pub(super) fn sweep(
        &mut self,
        from: u32,
        few: usize,
        now: u32,
        goes: impl Fn(&Arc<Entry>) -> bool,
        [removed, useless]: [&mut Removed; 2],
    ) -> Option<u32> {
        let end = self.slots.len().min(from as usize + few) as u32;
        for slot in from..end {
            self.thin(slot, &goes, removed);
            self.thin(slot, |entry| entry.times().useful_until < now, useless);
        }
        (end < self.slots.len() as u32).then_some(end)
    }

    /// Takes out what is of no use any more from the few slots whose turn it is; looks at nothing but the slots.
    pub(super) fn glance(&mut self, few: usize, now: u32, removed: &mut Removed) {
        let end = self.slots.len().min(self.glance as usize + few) as u32;
        for slot in self.glance..end {
            if self.slots[slot as usize].useful_until < now {
                self.take(slot, removed);
            }
        }
        self.glance = if end < self.slots.len() as u32 { end } else { 0 };
    }

    pub(super) fn slots(&self) -> usize {
        self.slots.len()
    }

    /// Shows some slots to whoever makes a list of what is asked for most.
    pub(super) fn show(&self, from: usize, few: usize, mut see: impl FnMut(u32, u32, &Variants)) {
        for slot in self.slots.iter().skip(from).take(few) {
            if let Some(variants) = &slot.variants {
                see(slot.hits.load(Ordering::Relaxed), slot.bytes, variants);
            }
        }
    }

    /// What all of it takes, by what its queues say and by what is in it; the two are the same.
    #[cfg(test)]
    pub(super) fn audit(&self) -> (u64, u64, usize) {
        let stored = || self.slots.iter().filter_map(|slot| slot.variants.as_ref());
        let entries = stored().map(|variants| variants.iter().len()).sum::<usize>();
        let held = stored().flat_map(Variants::iter).map(|entry| entry.size() as u64).sum();
        (self.small.bytes + self.main.bytes, held, entries)
    }
}
