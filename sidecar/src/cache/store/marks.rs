//! Purges and invalidations: each holds at once for all that was asked for before it, and is forgotten once everything
//! stored was looked at.
//!
//! All of them share one count, the epoch. An entry and a fill remember up to which epoch they were looked at, so a hit
//! compares two numbers unless something was purged since. What is purged by key or by URI is found by a hash, so that
//! an origin that is written to often costs a look-up each and no list; the rest is a short list of purges by hand.

use crate::cache::{
    entry::{Entry, Key},
    tiers::Wider,
};
use arc_swap::ArcSwap;
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

/// Parts of the memory of purged keys and URIs, each behind a lock of its own.
const PARTS: usize = 16;

/// A choice of entries that needs more than their keys.
pub(crate) trait Choice: Send + Sync {
    /// Whether an entry with this key may be meant: asked about what is still on its way.
    fn may_mean(&self, key: &[u8]) -> bool;
    /// Whether this very entry is meant. Only where one with its key may be.
    fn means(&self, entry: &Entry) -> bool;
    /// The same, or a little more, in a form that can be written down.
    fn wider(&self) -> Wider;
}

/// What a purge is for.
#[derive(Clone)]
pub(crate) enum What {
    /// Everything.
    All,
    /// Every entry with this label.
    Tag(Box<[u8]>),
    /// Every entry that it chooses.
    Chosen(Arc<dyn Choice>),
}

impl What {
    /// The same, or a little more, in a form that can be written down.
    pub(in crate::cache) fn wider(&self) -> Wider {
        match self {
            Self::All => Wider::All,
            Self::Tag(tag) => Wider::Tag(tag.clone()),
            Self::Chosen(choice) => choice.wider(),
        }
    }

    /// Whether an entry with this key may be meant, whatever else there is to it.
    fn may_mean(&self, key: &[u8]) -> bool {
        match self {
            // Its tags are known only when it is there.
            Self::All | Self::Tag(_) => true,
            Self::Chosen(choice) => choice.may_mean(key),
        }
    }

    fn means(&self, entry: &Entry) -> bool {
        match self {
            Self::Tag(wanted) => entry.tags().any(|tag| *tag == **wanted),
            Self::Chosen(choice) => choice.may_mean(entry.key_text()) && choice.means(entry),
            Self::All => true,
        }
    }
}

/// What becomes of what is purged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Manner {
    /// It goes.
    Hard,
    /// It is stale from now on.
    Soft,
}

/// One purge.
pub(crate) struct Mark {
    what: What,
    manner: Manner,
    epoch: u64,
    found: AtomicU64,
}

impl Mark {
    /// How many entries it was for, as far as they were looked at.
    pub(crate) fn found(&self) -> u64 {
        self.found.load(Ordering::Relaxed)
    }
}

/// When keys and URIs were purged, by the hash of their text.
type Recent = RwLock<HashMap<u128, u64, foldhash::fast::RandomState>>;

/// All purges of a store that are not through.
#[derive(Default)]
pub(super) struct Marks {
    list: ArcSwap<Vec<Arc<Mark>>>,
    recent: [Recent; PARTS],
    /// How many keys and URIs are remembered.
    remembered: AtomicUsize,
    /// The last purge.
    latest: AtomicU64,
    /// The last purge that is forgotten: what was not looked at for it cannot be any more.
    forgotten: AtomicU64,
    changing: Mutex<()>,
}

/// The part of a key that all keys of one URI share: its first line.
fn uri(key: &[u8]) -> &[u8] {
    let end = key.iter().position(|byte| *byte == b'\n').map_or(key.len(), |end| end + 1);
    &key[..end]
}

impl Marks {
    /// The last purge's number.
    pub(super) fn latest(&self) -> u64 {
        self.latest.load(Ordering::Acquire)
    }

    /// Puts a purge in force.
    pub(super) fn add(&self, what: What, manner: Manner) -> Arc<Mark> {
        let _one_at_a_time = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let epoch = self.latest() + 1;
        let mark = Arc::new(Mark { what, manner, epoch, found: AtomicU64::new(0) });
        let mut list = Vec::clone(&self.list.load());
        list.push(mark.clone());
        self.list.store(Arc::new(list));
        self.latest.store(epoch, Ordering::Release);
        mark
    }

    fn part(&self, hash: u128) -> &Recent {
        &self.recent[hash as usize % PARTS]
    }

    /// Purges one key, or all keys of one URI, by the text that they are or that they share.
    pub(super) fn add_text(&self, text: Key<'_>) {
        let _one_at_a_time = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let epoch = self.latest() + 1;
        let mut part = self.part(text.hash()).write().unwrap_or_else(PoisonError::into_inner);
        if part.insert(text.hash(), epoch).is_none() {
            self.remembered.fetch_add(1, Ordering::Relaxed);
        }
        self.latest.store(epoch, Ordering::Release);
    }

    /// Forgets the purges up to this one, now that everything was looked at.
    pub(super) fn forget(&self, epoch: u64) {
        let _one_at_a_time = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        // First this: whoever finds a purge gone then sees that it may have been for him.
        if self.forgotten.fetch_max(epoch, Ordering::AcqRel) >= epoch {
            return;
        }
        let list = self.list.load().iter().filter(|mark| mark.epoch > epoch).cloned().collect();
        self.list.store(Arc::new(list));
        let mut remembered = 0;
        for part in &self.recent {
            let mut part = part.write().unwrap_or_else(PoisonError::into_inner);
            part.retain(|_, purged| *purged > epoch);
            remembered += part.len();
        }
        self.remembered.store(remembered, Ordering::Relaxed);
    }

    /// Whether everything was looked at for this purge.
    pub(super) fn is_forgotten(&self, mark: &Mark) -> bool {
        self.forgotten.load(Ordering::Acquire) >= mark.epoch
    }

    /// How many purges by hand are not through.
    pub(super) fn listed(&self) -> usize {
        self.list.load().len()
    }

    /// How many purges of keys and URIs are not through.
    pub(super) fn remembered(&self) -> usize {
        self.remembered.load(Ordering::Relaxed)
    }

    /// Whether a text was purged after an epoch.
    fn purged(&self, text: &[u8], after: u64) -> bool {
        let hash = Key::new(text).hash();
        let part = self.part(hash).read().unwrap_or_else(PoisonError::into_inner);
        part.get(&hash).is_some_and(|purged| *purged > after)
    }

    /// Whether a key was purged after an epoch, by itself or by its URI.
    fn key_purged(&self, key: &[u8], after: u64) -> bool {
        if self.remembered() == 0 {
            return false;
        }
        let uri = uri(key);
        self.purged(uri, after) || (uri.len() < key.len() && self.purged(key, after))
    }

    /// Whether what was asked for at `since` may be given to who asks now: nothing was purged that it may be.
    pub(super) fn holds(&self, key: &[u8], since: u64) -> bool {
        let latest = self.latest();
        if since >= latest {
            return true;
        }
        let list = self.list.load();
        !list.iter().any(|mark| mark.epoch > since && mark.what.may_mean(key))
            && !self.key_purged(key, since)
            && since >= self.forgotten.load(Ordering::Acquire)
    }

    /// Looks at an entry for the purges since it was looked at last. True if it has to go.
    pub(super) fn judge(&self, entry: &Entry) -> bool {
        let (before, latest) = (entry.checked(), self.latest());
        if before >= latest {
            return entry.is_purged();
        }
        let list = self.list.load();
        let meant = |since: u64| {
            let news = list.iter().filter(move |mark| mark.epoch > since && mark.epoch <= latest);
            news.filter(|mark| mark.what.means(entry))
        };
        for mark in meant(before) {
            match mark.manner {
                Manner::Hard => entry.condemn(),
                Manner::Soft => entry.outdate(),
            }
        }
        if self.key_purged(entry.key_text(), before) {
            entry.condemn();
        }
        if before < self.forgotten.load(Ordering::Acquire) {
            // It came in while everything else was looked at: nobody knows any more what was meant.
            entry.condemn();
        }
        // Whoever gets there first counts; by then everyone sees what became of it.
        let since = entry.check_until(latest);
        if since < latest {
            meant(since).for_each(|mark| {
                mark.found.fetch_add(1, Ordering::Relaxed);
            });
        }
        entry.is_purged()
    }
}

/// Choices for tests.
#[cfg(test)]
pub(in crate::cache) mod tests {
    use super::*;

    struct Keys<F>(F, Wider);

    impl<F: Fn(&[u8]) -> bool + Send + Sync> Choice for Keys<F> {
        fn may_mean(&self, key: &[u8]) -> bool {
            self.0(key)
        }

        fn means(&self, _: &Entry) -> bool {
            true
        }

        fn wider(&self) -> Wider {
            self.1.clone()
        }
    }

    /// Every key of which this is true.
    pub(in crate::cache) fn keys(are: impl Fn(&[u8]) -> bool + Send + Sync + 'static) -> What {
        What::Chosen(Arc::new(Keys(are, Wider::All)))
    }

    /// Every key that starts like this.
    pub(in crate::cache) fn prefix(prefix: &[u8]) -> What {
        let prefix: Box<[u8]> = prefix.into();
        let wider = Wider::Prefix(prefix.clone());
        What::Chosen(Arc::new(Keys(move |key: &[u8]| key.starts_with(&prefix), wider)))
    }
}
