//! All stores of a sidecar, by the policy they are for: they outlive snapshots, so that a changed policy drops nothing
//! that is still valid.

use super::{Bounds, Manner, Store, What};
use crate::cache::entry::Key;
use std::{
    collections::{BTreeMap, HashSet},
    sync::{Arc, RwLock},
};
use weft_config::snapshot::CacheRules;

impl From<&CacheRules> for Bounds {
    fn from(rules: &CacheRules) -> Self {
        Self { bytes: rules.max_bytes, object: rules.max_object_bytes, variants: rules.max_variants }
    }
}

/// The stores, by policy. Asked when a snapshot comes, by purges and by the admin view, never by a request.
#[derive(Default)]
pub(crate) struct Stores(RwLock<BTreeMap<Arc<str>, Arc<Store>>>);

impl Stores {
    fn read(&self) -> std::sync::RwLockReadGuard<'_, BTreeMap<Arc<str>, Arc<Store>>> {
        self.0.read().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, BTreeMap<Arc<str>, Arc<Store>>> {
        self.0.write().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// The store for a policy, with what the policy allows now.
    pub(crate) fn of(&self, rules: &CacheRules, now: u32) -> Arc<Store> {
        let bounds = Bounds::from(rules);
        if let Some(store) = self.read().get(&rules.id).cloned() {
            store.set_bounds(bounds, now);
            return store;
        }
        self.write().entry(rules.id.clone()).or_insert_with(|| Arc::new(Store::new(bounds))).clone()
    }

    /// Drops the stores of policies that are no more. What a request has of one it keeps.
    pub(crate) fn retain(&self, policies: &HashSet<Arc<str>>) {
        let mut gone = Vec::new();
        self.write().retain(|policy, store| {
            let stays = policies.contains(policy);
            if !stays {
                gone.push(store.clone());
            }
            stays
        });
        // Freed here, with the lock open.
        drop(gone);
    }

    /// All of them, by policy.
    pub(crate) fn all(&self) -> Vec<(Arc<str>, Arc<Store>)> {
        self.read().iter().map(|(policy, store)| (policy.clone(), store.clone())).collect()
    }

    /// Purges in all of them, and sweeps to the end. Gives how many entries it was for. Not for a worker.
    pub(crate) fn purge(&self, what: &What, manner: Manner, now: u32) -> u64 {
        let all = self.all();
        // First everywhere in force, then counted.
        let marks: Vec<_> = all.iter().map(|(_, store)| store.purge(what.clone(), manner, now)).collect();
        all.iter().zip(marks).map(|((_, store), mark)| store.sweep_for(&mark, now)).sum()
    }

    /// Purges one URI in all of them, for a request that changed it. Cheap.
    pub(crate) fn invalidate(&self, uri: &[u8], now: u32) {
        for store in self.read().values() {
            store.invalidate(uri, now);
        }
    }

    /// Purges one key in all of them.
    pub(crate) fn purge_key(&self, key: Key<'_>, manner: Manner, now: u32) -> u64 {
        self.all().iter().map(|(_, store)| store.purge_key(key, manner, now)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::entry::tests::Sample;

    fn rules(id: &str, max_bytes: u64) -> CacheRules {
        CacheRules { id: id.into(), max_bytes, ..CacheRules::default() }
    }

    fn put(store: &Store, name: &str) {
        let entry = Sample::new(name).entry_since(store.epoch(), vec![0; 1000]);
        store.put(entry, 0).1.expect("room is made");
    }

    #[test]
    fn a_store_outlives_changes_of_its_policy_and_ends_with_it() {
        let stores = Stores::default();
        let store = stores.of(&rules("shop/a", 1 << 20), 0);
        (0..500).for_each(|i| put(&store, &format!("k/{i}")));
        let same = stores.of(&rules("shop/a", 1 << 19), 0);
        assert!(Arc::ptr_eq(&store, &same));
        let statistics = same.statistics();
        assert!(statistics.bytes <= 1 << 19 && statistics.entries > 250, "{statistics:?}");
        stores.of(&rules("shop/b", 1 << 20), 0);
        stores.retain(&HashSet::from(["shop/b".into()]));
        let left: Vec<_> = stores.all().into_iter().map(|(policy, _)| policy).collect();
        assert_eq!(left, ["shop/b".into()]);
    }

    #[test]
    fn a_purge_is_for_all_stores() {
        let stores = Stores::default();
        for policy in ["shop/a", "shop/b"] {
            let store = stores.of(&rules(policy, 1 << 20), 0);
            (0..10).for_each(|i| put(&store, &format!("http://shop/{i}\nG")));
        }
        stores.invalidate(b"http://shop/3\n", 0);
        assert_eq!(stores.purge_key(Key::new(b"http://shop/4\nG"), Manner::Hard, 0), 2);
        // What was invalidated is gone even if nobody looked at it yet; whether it is counted is no matter.
        let counted = stores.purge(&What::Prefix((*b"http://shop/").into()), Manner::Hard, 0);
        assert!((16..=18).contains(&counted), "{counted}");
        assert!(stores.all().iter().all(|(_, store)| store.statistics().entries == 0));
    }
}
