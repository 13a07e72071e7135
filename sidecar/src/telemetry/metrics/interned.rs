//! A bounded table that gives the same series for the same labels and forgets what policy no longer names.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

/// Values by key. Only the compiling of snapshots and scrapes come here, so a plain lock will do.
pub(super) struct Interned<K, V> {
    limit: usize,
    entries: Mutex<HashMap<K, Entry<V>, foldhash::fast::RandomState>>,
    overflows: AtomicU64,
}

struct Entry<V> {
    value: Arc<V>,
    /// Since when this table alone holds the value.
    unused_since: Option<Instant>,
}

impl<V> Entry<V> {
    fn in_use(&self) -> bool {
        Arc::strong_count(&self.value) > 1
    }
}

impl<K: Hash + Eq + Ord + Clone, V> Interned<K, V> {
    pub(super) fn new(limit: usize) -> Self {
        Self { limit, entries: Mutex::default(), overflows: AtomicU64::new(0) }
    }

    /// The value of this key, made if it is new. `None`, and counted, if the table is full of values in use.
    pub(super) fn get(&self, key: K, now: Instant, new: impl FnOnce(&K) -> V) -> Option<Arc<V>> {
        let mut entries = self.lock();
        if let Some(entry) = entries.get_mut(&key) {
            entry.unused_since = None;
            return Some(Arc::clone(&entry.value));
        }
        if entries.len() >= self.limit {
            // Room for what is in force goes before memory of what was.
            Self::forget(&mut entries, now, Duration::ZERO);
        }
        if entries.len() >= self.limit {
            self.overflows.fetch_add(1, Relaxed);
            return None;
        }
        Some(Self::insert(&mut entries, key, new))
    }

    /// The same past the bound, for the few keys that everything beyond it shares.
    pub(super) fn get_always(&self, key: K, new: impl FnOnce(&K) -> V) -> Arc<V> {
        let mut entries = self.lock();
        match entries.get(&key) {
            Some(entry) => Arc::clone(&entry.value),
            None => Self::insert(&mut entries, key, new),
        }
    }

    fn insert(
        entries: &mut HashMap<K, Entry<V>, foldhash::fast::RandomState>,
        key: K,
        new: impl FnOnce(&K) -> V,
    ) -> Arc<V> {
        let value = Arc::new(new(&key));
        entries.insert(key, Entry { value: Arc::clone(&value), unused_since: None });
        value
    }

    /// Drops every value that nobody but this table held for `keep`.
    pub(super) fn forget_unused(&self, now: Instant, keep: Duration) {
        Self::forget(&mut self.lock(), now, keep);
    }

    fn forget(entries: &mut HashMap<K, Entry<V>, foldhash::fast::RandomState>, now: Instant, keep: Duration) {
        entries.retain(|_, entry| {
            if entry.in_use() {
                entry.unused_since = None;
                return true;
            }
            let since = *entry.unused_since.get_or_insert(now);
            now.saturating_duration_since(since) < keep
        });
    }

    /// Everything there is, in the order of its keys, and whether somebody besides this table holds it.
    pub(super) fn all(&self) -> Vec<(K, Arc<V>, bool)> {
        let mut all: Vec<_> = self
            .lock()
            .iter()
            .map(|(key, entry)| {
                // Asked before this reading itself holds the value.
                let in_use = entry.in_use();
                (key.clone(), Arc::clone(&entry.value), in_use)
            })
            .collect();
        all.sort_by(|a, b| a.0.cmp(&b.0));
        all
    }

    /// How often a key found no room.
    pub(super) fn overflows(&self) -> u64 {
        self.overflows.load(Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<K, Entry<V>, foldhash::fast::RandomState>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
