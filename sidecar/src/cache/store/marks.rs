//! Purges: each is a mark that holds at once for all that was asked for before it, and is forgotten once everything
//! stored was looked at.
//!
//! An entry remembers up to which purge it was looked at, so a hit compares two numbers unless a purge came since.

use crate::cache::entry::Entry;
use arc_swap::ArcSwap;
use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicU32, AtomicU64, Ordering},
};

/// What a purge is for.
#[derive(Clone)]
pub(crate) enum What {
    /// Everything.
    All,
    /// Every key that starts like this.
    Prefix(Box<[u8]>),
    /// Every entry with this label.
    Tag(Box<[u8]>),
    /// Every key of which this is true.
    Keys(Arc<dyn Fn(&[u8]) -> bool + Send + Sync>),
}

impl What {
    fn means(&self, entry: &Entry) -> bool {
        match self {
            Self::All => true,
            Self::Prefix(prefix) => entry.key_text().starts_with(prefix),
            Self::Tag(tag) => entry.tags().any(|one| *one == **tag),
            Self::Keys(are) => are(entry.key_text()),
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
    epoch: u32,
    found: AtomicU64,
}

impl Mark {
    /// How many entries it was for, as far as they were looked at.
    pub(crate) fn found(&self) -> u64 {
        self.found.load(Ordering::Relaxed)
    }
}

/// The purges that are not through.
#[derive(Default)]
struct Pending {
    list: Vec<Arc<Mark>>,
    /// The last purge.
    latest: u32,
    /// The last purge that is forgotten: what was not looked at for it cannot be any more.
    forgotten: u32,
}

/// All purges of a store.
#[derive(Default)]
pub(super) struct Marks {
    pending: ArcSwap<Pending>,
    latest: AtomicU32,
    changing: Mutex<()>,
}

impl Marks {
    /// The last purge's number.
    pub(super) fn latest(&self) -> u32 {
        self.latest.load(Ordering::Acquire)
    }

    /// Puts a purge in force.
    pub(super) fn add(&self, what: What, manner: Manner) -> Arc<Mark> {
        let _one_at_a_time = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.pending.load();
        let epoch = before.latest.saturating_add(1);
        let mark = Arc::new(Mark { what, manner, epoch, found: AtomicU64::new(0) });
        let mut list = before.list.clone();
        list.push(mark.clone());
        self.pending.store(Arc::new(Pending { list, latest: epoch, forgotten: before.forgotten }));
        self.latest.store(epoch, Ordering::Release);
        mark
    }

    /// Forgets the purges up to this one, now that everything was looked at.
    pub(super) fn forget(&self, epoch: u32) {
        let _one_at_a_time = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.pending.load();
        if before.forgotten >= epoch {
            return;
        }
        let list = before.list.iter().filter(|mark| mark.epoch > epoch).cloned().collect();
        self.pending.store(Arc::new(Pending { list, latest: before.latest, forgotten: epoch }));
    }

    /// Whether everything was looked at for this purge.
    pub(super) fn is_forgotten(&self, mark: &Mark) -> bool {
        self.pending.load().forgotten >= mark.epoch
    }

    /// How many are not through.
    pub(super) fn pending(&self) -> usize {
        self.pending.load().list.len()
    }

    /// Looks at an entry for the purges since it was looked at last. True if it has to go.
    pub(super) fn judge(&self, entry: &Entry) -> bool {
        let before = entry.checked();
        if before >= self.latest() {
            return entry.is_purged();
        }
        let pending = self.pending.load();
        let meant = |since: u32| {
            let news = pending.list.iter().filter(move |mark| mark.epoch > since);
            news.filter(|mark| mark.what.means(entry))
        };
        if before < pending.forgotten {
            // It came in while everything else was looked at: nobody knows any more what was meant.
            entry.condemn();
        }
        for mark in meant(before) {
            match mark.manner {
                Manner::Hard => entry.condemn(),
                Manner::Soft => entry.outdate(),
            }
        }
        // Whoever gets there first counts; by then everyone sees what became of it.
        let since = entry.check_until(pending.latest);
        if since < pending.latest {
            meant(since).for_each(|mark| {
                mark.found.fetch_add(1, Ordering::Relaxed);
            });
        }
        entry.is_purged()
    }
}
