//! All stores of a sidecar, by the policy they are for: they outlive snapshots, so that a changed policy drops nothing
//! that is still valid.

use super::{Bounds, Manner, Mark, Store, What};
use crate::{
    cache::tiers::Tiers,
    telemetry::metrics::{Kept, KeptNow, KeptSource, KeptTotals},
};
use std::{
    collections::{BTreeMap, HashSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
};
use weft_config::snapshot::CacheRules;

impl From<&CacheRules> for Bounds {
    fn from(rules: &CacheRules) -> Self {
        Self { bytes: rules.max_bytes, object: rules.max_object_bytes, variants: rules.max_variants }
    }
}

/// Policies that are no more, of which it is remembered what happened under them.
const GONE_MAX: usize = 256;

type Map = BTreeMap<Arc<str>, Arc<Store>>;

/// The stores, by policy. Asked when a snapshot comes, by purges and by the admin view, never by a request.
#[derive(Default)]
pub(crate) struct Stores {
    stores: RwLock<Map>,
    /// What happened in stores that were dropped, the oldest first: counters go on where they were when a policy comes
    /// back.
    gone: Mutex<VecDeque<(Arc<str>, KeptTotals)>>,
    /// Further places to look, by policy.
    tiers: Tiers,
}

impl Stores {
    /// None yet, with further places that are made by `tiers`.
    pub(crate) fn new(tiers: Tiers) -> Self {
        Self { tiers, ..Self::default() }
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, Map> {
        self.stores.read().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, Map> {
        self.stores.write().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn gone(&self) -> MutexGuard<'_, VecDeque<(Arc<str>, KeptTotals)>> {
        self.gone.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The store for a policy, with what the policy allows now.
    pub(crate) fn of(&self, rules: &CacheRules, now: u32) -> Arc<Store> {
        let bounds = Bounds::from(rules);
        let known = self.read().get(&rules.id).cloned();
        let store = match known {
            Some(store) => {
                store.set_bounds(bounds, now);
                store
            }
            None => {
                let new = || Arc::new(Store::new(bounds));
                self.write().entry(rules.id.clone()).or_insert_with(new).clone()
            }
        };
        store.set_farther(self.tiers.of(rules));
        store
    }

    /// Drops the stores of policies that are no more, unless somebody still holds one: no store is in use that purges do
    /// not reach.
    pub(crate) fn retain(&self, policies: &HashSet<Arc<str>>) {
        let mut dropped = Vec::new();
        // Held on to until the sums are taken over, so that no reading in between misses them.
        let mut gone = self.gone();
        self.write().retain(|policy, store| {
            // With the lock closed nobody gets one now who has none.
            let stays = policies.contains(policy) || Arc::strong_count(store) > 1;
            if !stays {
                dropped.push((policy.clone(), store.clone()));
            }
            stays
        });
        for (policy, store) in &dropped {
            let before = gone.iter().position(|(known, _)| known == policy).and_then(|at| gone.remove(at));
            let before = before.map(|(_, totals)| totals).unwrap_or_default();
            gone.push_back((policy.clone(), before.plus(totals(store))));
        }
        while gone.len() > GONE_MAX {
            gone.pop_front();
        }
        drop(gone);
        if !dropped.is_empty() {
            let known = self.read();
            self.tiers.retain(|policy| known.contains_key(policy));
        }
        // Freed here, with all locks open.
        drop(dropped);
    }

    /// All of them, by policy.
    pub(crate) fn all(&self) -> Vec<(Arc<str>, Arc<Store>)> {
        self.read().iter().map(|(policy, store)| (policy.clone(), store.clone())).collect()
    }

    /// Puts a purge in force in those for whose policy there is something to purge. Not for a worker.
    pub(crate) fn announce(
        &self,
        what: impl Fn(&str) -> Option<What>,
        manner: Manner,
        now: u32,
    ) -> Announced {
        self.tiers.purging();
        let all = self.all().into_iter();
        let meant = all.filter_map(|(policy, store)| {
            let mark = store.purge(what(&policy)?, manner, now);
            Some((store, mark))
        });
        Announced(meant.collect())
    }

    /// List and number of the control plane's last purge that what is on disk knows of.
    pub(crate) fn last_purge(&self) -> (String, u64) {
        self.tiers.last_purge()
    }

    /// There may be purges of the control plane that this sidecar has not been told of, or there are none.
    pub(crate) fn misses_purges(&self, misses: bool) {
        self.tiers.misses_purges(misses);
    }

    /// A purge of the control plane was carried out.
    pub(crate) fn note_purge(&self, log: &str, number: u64) {
        self.tiers.note_purge(log, number);
    }
}

impl KeptSource for Stores {
    fn kept(&self) -> Vec<Kept> {
        let gone = self.gone();
        let mut all: BTreeMap<_, _> = gone
            .iter()
            .map(|(policy, totals)| {
                (policy.clone(), Kept { policy: policy.clone(), now: None, totals: *totals })
            })
            .collect();
        for (policy, store) in self.read().iter() {
            let statistics = store.statistics();
            let kept = all.entry(policy.clone()).or_insert_with(|| Kept {
                policy: policy.clone(),
                now: None,
                totals: KeptTotals::default(),
            });
            kept.now = Some(KeptNow {
                bytes: statistics.bytes,
                limit: statistics.limit,
                entries: statistics.entries,
                filling: statistics.filling,
            });
            kept.totals = kept.totals.plus(totals(store));
        }
        all.into_values().collect()
    }
}

/// What happened in a store so far.
fn totals(store: &Store) -> KeptTotals {
    let (all, fills) = (store.statistics(), store.fill_statistics());
    KeptTotals {
        hits: all.hits,
        misses: all.misses,
        stored: all.stored,
        evicted: all.evicted,
        expired: all.expired,
        purged: all.purged,
        refused: all.refused,
        coalesced: fills.coalesced,
        handed_over: fills.handed_over,
        released: fills.released,
        outgrown: fills.outgrown,
        broken: fills.broken,
        cut_off: fills.cut_off,
    }
}

/// A purge that is in force: nothing that it is for is given any more.
#[must_use = "what is purged is counted, and its memory comes free, by looking through the stores"]
pub(crate) struct Announced(Vec<(Arc<Store>, Arc<Mark>)>);

impl Announced {
    /// Looks through everything that is stored. Gives how many entries the purge was for. Not for a worker.
    pub(crate) fn count(&self, now: u32) -> u64 {
        self.0.iter().map(|(store, mark)| store.sweep_for(mark, now)).sum()
    }

    /// Waits, for a moment, until it has arrived at farther places. Not for a worker.
    pub(crate) fn settle(&self) {
        self.0.iter().for_each(|(store, _)| store.settle());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::{
        entry::tests::Sample,
        store::choices::{keys, prefix},
    };

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
        assert_eq!(stores.all().len(), 2, "somebody holds it");
        drop((store, same));
        stores.retain(&HashSet::from(["shop/b".into()]));
        let left: Vec<_> = stores.all().into_iter().map(|(policy, _)| policy).collect();
        assert_eq!(left, [Arc::from("shop/b")]);
    }

    #[test]
    fn what_happened_under_a_policy_stays_counted_when_it_goes_and_comes() {
        let stores = Stores::default();
        let told = |stores: &Stores| -> Vec<_> {
            let kept = stores.kept().into_iter();
            kept.map(|kept| (kept.policy.to_string(), kept.now.map(|now| now.entries), kept.totals.stored))
                .collect()
        };
        put(&stores.of(&rules("shop/a", 1 << 20), 0), "1");
        stores.of(&rules("shop/b", 1 << 20), 0);
        stores.retain(&HashSet::from(["shop/b".into()]));
        assert_eq!(told(&stores), [("shop/a".into(), None, 1), ("shop/b".into(), Some(0), 0)]);
        for round in 2..4 {
            let store = stores.of(&rules("shop/a", 1 << 20), 0);
            put(&store, "2");
            assert_eq!(told(&stores)[0], ("shop/a".into(), Some(1), round), "it begins empty");
            drop(store);
            stores.retain(&HashSet::new());
            assert_eq!(told(&stores)[0], ("shop/a".into(), None, round));
        }
    }

    #[test]
    fn only_so_many_policies_that_are_no_more_are_remembered() {
        let stores = Stores::default();
        for n in 0..GONE_MAX + 10 {
            stores.of(&rules(&format!("shop/{n}"), 1 << 20), 0);
            stores.retain(&HashSet::new());
        }
        assert_eq!(stores.kept().len(), GONE_MAX);
        assert!(stores.kept().iter().any(|kept| *kept.policy == *format!("shop/{}", GONE_MAX + 9)));
    }

    #[test]
    fn a_purge_is_for_all_stores() {
        let stores = Stores::default();
        for policy in ["shop/a", "shop/b"] {
            let store = stores.of(&rules(policy, 1 << 20), 0);
            (0..10).for_each(|i| put(&store, &format!("http://shop/{i}\nG")));
        }
        let all = |what: What| stores.announce(|_| Some(what.clone()), Manner::Hard, 0).count(0);
        assert_eq!(all(keys(|key| key == b"http://shop/4\nG")), 2);
        assert_eq!(all(prefix(b"http://shop/")), 18);
        assert!(stores.all().iter().all(|(_, store)| store.statistics().entries == 0));
    }
}
