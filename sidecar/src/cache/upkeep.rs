//! What is done for all stores about once a second, from one place: what is of no use any more is taken out, and what
//! no policy asks for any more is dropped.

use super::{Stores, seconds_now};
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior, interval},
};
use weft_config::snapshot::{CacheRules, Snapshot};

/// How often.
const PERIOD: Duration = Duration::from_secs(1);
/// What is kept under a policy stays for so long after the policy is gone: one bad update costs nothing.
const GRACE: Duration = Duration::from_secs(60);
/// Places of a store that are looked at while a lock is held.
const FEW: usize = 32;
/// Everything is looked at once in so many rounds, if that takes no more than `MOST` looks in each.
const ROUNDS: u64 = 300;
const MOST: u64 = 64;

/// The policies that a snapshot names, by their ids.
pub(crate) fn policies(snapshot: &Snapshot) -> BTreeMap<Arc<str>, Arc<CacheRules>> {
    let ports = || snapshot.services().flat_map(|service| &service.ports);
    let rules = ports().flat_map(|port| &port.rules).map(|rule| &rule.calls);
    let outbound = ports().map(|port| &port.calls).chain(rules).map(|calls| &calls.cache);
    let served = snapshot.workload.iter().flat_map(|workload| &workload.admission);
    let inbound = served.map(|admission| &admission.cache);
    outbound.chain(inbound).flatten().map(|rules| (rules.id.clone(), rules.clone())).collect()
}

impl Stores {
    /// Makes ready what is farther away than memory, before a snapshot is in force: a purge that comes before the first
    /// request has to reach it too.
    pub(crate) fn prepare(&self, snapshot: &Snapshot) {
        for rules in policies(snapshot).values() {
            if rules.tiers.redis.is_some() || rules.tiers.disk.is_some() {
                self.of(rules, seconds_now());
            }
        }
    }
}

/// Looks after the stores until it is told to stop. `snapshot` gives the policy in force.
pub(crate) async fn keep_up(
    stores: Arc<Stores>,
    snapshot: impl Fn() -> Arc<Snapshot>,
    mut stopped: watch::Receiver<bool>,
) {
    let mut tick = interval(PERIOD);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut missing = Missing::default();
    let mut judged: Option<Arc<Snapshot>> = None;
    loop {
        tokio::select! {
            // An error is a sender that is gone: stopped too.
            _ = stopped.wait_for(|stopped| *stopped) => return,
            _ = tick.tick() => {}
        }
        let all = stores.all();
        if all.is_empty() {
            continue;
        }
        let now = seconds_now();
        for (_, store) in &all {
            for _ in 0..looks(store.statistics().entries) {
                store.sweep(FEW, now);
            }
        }
        let have: Vec<_> = all.into_iter().map(|(policy, _)| policy).collect();
        let current = snapshot();
        // Most seconds bring no new policy: then nothing is to be found out.
        let is_new = judged.as_ref().is_none_or(|judged| !Arc::ptr_eq(judged, &current));
        if is_new || !missing.is_empty() {
            let named = policies(&current);
            if let Some(stay) = missing.stay(have, |policy| named.contains_key(policy), Instant::now()) {
                stores.retain(&stay);
            }
            judged = Some(current);
        }
    }
}

/// How many times a store with so many entries is looked into in one round.
fn looks(entries: u64) -> u64 {
    (entries / FEW as u64 / ROUNDS).clamp(1, MOST)
}

/// Policies with a store that the snapshot in force does not name, and since when.
#[derive(Default)]
struct Missing(HashMap<Arc<str>, Instant>);

impl Missing {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Which of the policies that have a store are to keep it; `None` if all are.
    fn stay(
        &mut self,
        have: Vec<Arc<str>>,
        is_named: impl Fn(&str) -> bool,
        now: Instant,
    ) -> Option<HashSet<Arc<str>>> {
        let missing = have.iter().filter(|policy| !is_named(policy));
        self.0 = missing.map(|policy| (policy.clone(), self.0.get(policy).copied().unwrap_or(now))).collect();
        let before = have.len();
        let over = |policy: &Arc<str>| {
            self.0.get(policy).is_some_and(|since| now.saturating_duration_since(*since) >= GRACE)
        };
        let stay: HashSet<_> = have.into_iter().filter(|policy| !over(policy)).collect();
        (stay.len() < before).then_some(stay)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::{
        entry::tests::Sample,
        store::{Manner, choices::prefix},
    };
    use tokio::time::sleep;
    use weft_config::snapshot::{Admission, Workload};

    fn ids(names: &[&str]) -> Vec<Arc<str>> {
        names.iter().map(|name| Arc::from(*name)).collect()
    }

    #[test]
    fn what_is_kept_under_a_policy_outlives_it_for_a_minute() {
        let (mut missing, start) = (Missing::default(), Instant::now());
        let mut stay = |seconds, named: &[&str]| {
            let stay = missing.stay(
                ids(&["a", "b"]),
                |id| named.contains(&id),
                start + Duration::from_secs(seconds),
            );
            stay.map(|stay| stay.into_iter().map(|id| id.to_string()).collect::<Vec<_>>())
        };
        assert_eq!(stay(0, &["a", "b"]), None);
        assert_eq!(stay(1, &["a"]), None);
        assert_eq!(stay(59, &["a"]), None);
        assert_eq!(stay(60, &["a", "b"]), None, "it came back in time");
        assert_eq!(stay(61, &["a"]), None, "and the minute begins anew");
        assert_eq!(stay(120, &["a"]), None);
        assert_eq!(stay(121, &["a"]), Some(vec!["a".into()]));
    }

    #[test]
    fn nothing_is_remembered_of_stores_that_are_gone() {
        let (mut missing, now) = (Missing::default(), Instant::now());
        missing.stay(ids(&["a", "b"]), |_| false, now);
        assert!(!missing.is_empty());
        missing.stay(ids(&[]), |_| false, now);
        assert!(missing.is_empty());
    }

    #[test]
    fn a_large_store_is_looked_into_more_often_up_to_a_bound() {
        assert_eq!([0, 9_600, 96_000, u64::MAX].map(looks), [1, 1, 10, MOST]);
    }

    #[test]
    fn a_policy_is_named_by_what_calls_and_by_what_is_served() {
        let rules = |id: &str| Some(Arc::new(CacheRules { id: id.into(), ..CacheRules::default() }));
        let admission = Admission { cache: rules("shop/served"), ..Admission::default() };
        let workload = Workload { admission: vec![Arc::new(admission)], ..Workload::default() };
        let mut snapshot = Snapshot::default();
        snapshot.workload = Some(Arc::new(workload));
        assert_eq!(policies(&snapshot).into_keys().collect::<Vec<_>>(), ids(&["shop/served"]));
        assert!(policies(&Snapshot::default()).is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_is_swept_and_dropped_once_neither_policy_nor_anybody_has_it() {
        let stores = Arc::<Stores>::default();
        let rules = CacheRules { id: "shop/a".into(), ..CacheRules::default() };
        let store = stores.of(&rules, 0);
        let entry = Sample::new("http://shop/1\nG").entry_since(store.epoch(), vec![0; 100]);
        store.put(entry, 0).1.expect("room is made");
        store.purge(prefix(b"http://shop/"), Manner::Hard, 0);
        let (stop, stopped) = watch::channel(false);
        let task = tokio::spawn(keep_up(stores.clone(), Arc::<Snapshot>::default, stopped));
        sleep(2 * GRACE).await;
        assert_eq!(store.statistics().entries, 0, "purged, and nobody asked for it");
        assert_eq!(stores.all().len(), 1, "purges reach what somebody still holds");
        drop(store);
        sleep(2 * PERIOD).await;
        assert!(stores.all().is_empty());
        stop.send_replace(true);
        task.await.expect("it ends");
    }
}
