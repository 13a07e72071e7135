//! Token buckets by key: exact arithmetic on integers, a bounded number of keys, the longest unused goes first.

use std::{collections::HashMap, time::Duration};

/// One call, in the unit in which buckets count: 2^-32 calls.
const ONE: u64 = 1 << 32;
/// No bucket.
const NONE: u32 = u32::MAX;
/// Buckets that a new key clears away at most: those too many after a bound was lowered, and those full again.
const CLEARED: usize = 4;

/// How fast a bucket fills and how much it holds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rate {
    /// Units that come back in a nanosecond, times 2^64. The one number that is rounded up, by less than one in its
    /// 96 bits after the point: what is due at the full second is there at the full second.
    speed: u128,
    /// Units in a full bucket.
    burst: u64,
}

impl Rate {
    pub(super) fn new(requests: u32, per: Duration, burst: u32) -> Self {
        let speed = (u128::from(requests) << 96).div_ceil(per.as_nanos().max(1));
        Self { speed: speed.max(1), burst: u64::from(burst.max(1)) << 32 }
    }

    /// What is still taken of `taken` after so many nanoseconds.
    fn after(&self, taken: u64, nanoseconds: u64) -> u64 {
        let taken = taken.min(self.burst);
        match u128::from(nanoseconds).checked_mul(self.speed) {
            Some(back) => taken.saturating_sub(u64::try_from(back >> 64).unwrap_or(u64::MAX)),
            // More than 2^64 units, and no bucket holds as many.
            None => 0,
        }
    }

    /// How long the next call has to wait with `taken` gone; `None` if it may pass.
    pub(super) fn wait(&self, taken: u64) -> Option<Duration> {
        let missing = taken.saturating_sub(self.burst - ONE);
        (missing > 0).then(|| self.time_for(missing))
    }

    /// How long until everything is back.
    pub(super) fn refill(&self, taken: u64) -> Duration {
        self.time_for(taken)
    }

    /// Whole calls that are left.
    pub(super) fn left(&self, taken: u64) -> u64 {
        self.burst.saturating_sub(taken) >> 32
    }

    fn time_for(&self, units: u64) -> Duration {
        let nanoseconds = (u128::from(units) << 64).div_ceil(self.speed);
        Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
    }
}

/// The buckets of one limit. A key without a bucket has a full one.
pub(super) struct Buckets {
    places: HashMap<u64, u32, foldhash::fast::RandomState>,
    list: Vec<Bucket>,
    free: Vec<u32>,
    oldest: u32,
    newest: u32,
}

struct Bucket {
    key: u64,
    /// Units taken, as of `at`.
    taken: u64,
    /// Nanoseconds since some epoch.
    at: u64,
    older: u32,
    newer: u32,
}

impl Default for Buckets {
    fn default() -> Self {
        Self { places: HashMap::default(), list: Vec::new(), free: Vec::new(), oldest: NONE, newest: NONE }
    }
}

impl Buckets {
    /// How many keys have a bucket.
    pub(super) fn len(&self) -> usize {
        self.places.len()
    }

    /// Units that are taken from a key's bucket.
    pub(super) fn taken(&self, key: u64, rate: &Rate, now: u64) -> u64 {
        self.places.get(&key).map_or(0, |place| self.list[*place as usize].taken(rate, now))
    }

    /// Takes one call from a key's bucket and says how much is gone then.
    pub(super) fn take(&mut self, key: u64, rate: &Rate, max_keys: usize, now: u64) -> u64 {
        let place = match self.places.get(&key) {
            Some(place) => *place,
            None => self.insert(key, rate, max_keys, now),
        };
        let bucket = &mut self.list[place as usize];
        bucket.taken = bucket.taken(rate, now).saturating_add(ONE);
        // Another worker may have been here with a later time.
        bucket.at = bucket.at.max(now);
        let taken = bucket.taken;
        if self.newest != place {
            self.unlink(place);
            self.link(place);
        }
        taken
    }

    fn insert(&mut self, key: u64, rate: &Rate, max_keys: usize, now: u64) -> u32 {
        for _ in 0..CLEARED {
            let Some(oldest) = self.list.get(self.oldest as usize) else { break };
            if self.len() < max_keys.max(1) && oldest.taken(rate, now) > 0 {
                break;
            }
            self.forget_oldest();
        }
        let bucket = Bucket { key, taken: 0, at: now, older: NONE, newer: NONE };
        let place = match self.free.pop() {
            Some(place) => {
                self.list[place as usize] = bucket;
                place
            }
            None => {
                self.list.push(bucket);
                (self.list.len() - 1) as u32
            }
        };
        self.places.insert(key, place);
        self.link(place);
        place
    }

    fn forget_oldest(&mut self) {
        let place = self.oldest;
        self.places.remove(&self.list[place as usize].key);
        self.unlink(place);
        self.free.push(place);
        if self.places.is_empty() {
            self.list.clear();
            self.free.clear();
        }
    }

    /// Puts a bucket that is in no place at the newest end.
    fn link(&mut self, place: u32) {
        let before = std::mem::replace(&mut self.newest, place);
        let bucket = &mut self.list[place as usize];
        (bucket.older, bucket.newer) = (before, NONE);
        match self.list.get_mut(before as usize) {
            Some(before) => before.newer = place,
            None => self.oldest = place,
        }
    }

    fn unlink(&mut self, place: u32) {
        let Bucket { older, newer, .. } = self.list[place as usize];
        match self.list.get_mut(older as usize) {
            Some(older) => older.newer = newer,
            None => self.oldest = newer,
        }
        match self.list.get_mut(newer as usize) {
            Some(newer) => newer.older = older,
            None => self.newest = older,
        }
    }
}

impl Bucket {
    fn taken(&self, rate: &Rate, now: u64) -> u64 {
        rate.after(self.taken, now.saturating_sub(self.at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::{BTreeMap, VecDeque};

    /// Passes a call if it may, as `Limits::admit` does.
    fn call(buckets: &mut Buckets, key: u64, rate: &Rate, max_keys: usize, now: u64) -> bool {
        let passes = rate.wait(buckets.taken(key, rate, now)).is_none();
        if passes {
            buckets.take(key, rate, max_keys, now);
        }
        passes
    }

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn the_longest_unused_key_goes_first() {
        let (mut buckets, rate) = (Buckets::default(), Rate::new(1, Duration::from_secs(3600), 1));
        for (now, key) in [1, 2, 3].into_iter().enumerate() {
            assert!(call(&mut buckets, key, &rate, 3, now as u64));
        }
        // A call that is refused is a use that leaves no trace: 1 stays the oldest.
        assert!(!call(&mut buckets, 1, &rate, 3, 10));
        assert!(call(&mut buckets, 4, &rate, 3, 11));
        assert_eq!(buckets.len(), 3);
        for (key, known) in [(1, false), (2, true), (3, true), (4, true)] {
            assert_eq!(buckets.taken(key, &rate, 11) > 0, known, "{key}");
        }
    }

    #[test]
    fn keys_whose_bucket_is_full_again_make_room_by_themselves() {
        let (mut buckets, rate) = (Buckets::default(), Rate::new(1, Duration::from_secs(1), 1));
        for key in 0..10_000 {
            assert!(call(&mut buckets, key, &rate, 1_000_000, key * SECOND / 10));
        }
        assert!(buckets.len() <= 12, "{} are remembered, ten are in use", buckets.len());
        assert!(buckets.list.len() < 20);
    }

    #[test]
    fn a_lowered_bound_is_reached_step_by_step() {
        let (mut buckets, rate) = (Buckets::default(), Rate::new(1, Duration::from_secs(3600), 1));
        for key in 0..100 {
            call(&mut buckets, key, &rate, 100, 0);
        }
        for key in 100..140 {
            call(&mut buckets, key, &rate, 10, 0);
        }
        assert_eq!(buckets.len(), 10);
    }

    #[test]
    fn extremes_neither_overflow_nor_let_more_pass() {
        let fast = Rate::new(u32::MAX, Duration::from_nanos(1), u32::MAX);
        let slow = Rate::new(1, Duration::from_secs(360_000_000), 1);
        for rate in [fast, slow] {
            let mut buckets = Buckets::default();
            assert!(call(&mut buckets, 0, &rate, 1, 0));
            assert!(call(&mut buckets, 0, &rate, 1, u64::MAX));
            assert!(call(&mut buckets, 0, &rate, 1, 5) || rate.burst == ONE, "time does not run back");
        }
        let wait = slow.wait(ONE).expect("waits");
        assert!(wait > Duration::from_secs(359_999_999) && wait <= Duration::from_secs(360_000_000));
        assert_eq!(Rate::new(0, Duration::ZERO, 0).wait(0), None, "the first call of a burst always passes");
    }

    #[test]
    fn time_that_runs_back_between_workers_gives_nothing_back() {
        let (mut buckets, rate) = (Buckets::default(), Rate::new(10, Duration::from_secs(1), 1));
        assert!(call(&mut buckets, 0, &rate, 1, SECOND));
        assert!(!call(&mut buckets, 0, &rate, 1, SECOND / 2));
        assert!(!call(&mut buckets, 0, &rate, 1, SECOND + SECOND / 20));
        assert!(call(&mut buckets, 0, &rate, 1, SECOND + SECOND / 10 + 1));
    }

    proptest! {
        #[test]
        fn never_more_than_burst_and_rate_pass_in_any_window(
            requests in 1_u32..2000, per_ms in 1_u64..100_000, burst in 1_u32..50,
            steps in proptest::collection::vec(0_u64..200_000_000, 1..300),
        ) {
            let per = Duration::from_millis(per_ms);
            let rate = Rate::new(requests, per, burst);
            let (mut buckets, mut now, mut passed) = (Buckets::default(), 0, Vec::new());
            for step in steps {
                now += step;
                if call(&mut buckets, 7, &rate, 1, now) {
                    passed.push(now);
                }
            }
            for (first, from) in passed.iter().enumerate() {
                for (last, to) in passed.iter().enumerate().skip(first) {
                    let calls = (last - first + 1) as u128;
                    let room = u128::from(burst) * per.as_nanos() + u128::from(to - from) * u128::from(requests);
                    prop_assert!(calls * per.as_nanos() <= room, "{calls} from {from} to {to}");
                }
            }
        }

        #[test]
        fn who_waits_as_told_passes_and_no_sooner(
            requests in 1_u32..100_000, per_ms in 1_u64..10_000_000, burst in 1_u32..20, early in 1_u64..1000,
        ) {
            let rate = Rate::new(requests, Duration::from_millis(per_ms), burst);
            let mut buckets = Buckets::default();
            while call(&mut buckets, 7, &rate, 1, SECOND) {}
            let wait = rate.wait(buckets.taken(7, &rate, SECOND)).expect("refused").as_nanos() as u64;
            let early = early.min(wait);
            prop_assert!(rate.wait(buckets.taken(7, &rate, SECOND + wait - early)).is_some());
            prop_assert!(rate.wait(buckets.taken(7, &rate, SECOND + wait)).is_none());
        }

        /// Rates that divide evenly, so that a model with plain numbers agrees to the last call.
        #[test]
        fn buckets_do_what_a_naive_model_does(
            requests in 1_u32..64, burst in 1_u32..10, max_keys in 1_usize..6,
            calls in proptest::collection::vec((0_u64..8, 0_u64..600_000), 1..400),
        ) {
            let per = u64::from(requests) << 20;
            let rate = Rate::new(requests, Duration::from_nanos(per), burst);
            let mut buckets = Buckets::default();
            // Nanoseconds of refill owed by each key, at a time; and keys by use, the longest unused first.
            let (mut owed, mut by_use) = (BTreeMap::<u64, (u64, u64)>::new(), VecDeque::new());
            let full = u64::from(burst) << 20;
            let mut now = 0;
            for (key, step) in calls {
                now += step;
                let owes = |owed: &BTreeMap<u64, (u64, u64)>, key: &u64| {
                    owed.get(key).map_or(0, |(owes, at)| owes.saturating_sub(now - at))
                };
                let passes = owes(&owed, &key) + (1 << 20) <= full;
                prop_assert_eq!(call(&mut buckets, key, &rate, max_keys, now), passes);
                if !passes {
                    continue;
                }
                if !owed.contains_key(&key) {
                    for _ in 0..CLEARED {
                        let Some(oldest) = by_use.front().copied() else { break };
                        if owed.len() < max_keys && owes(&owed, &oldest) > 0 {
                            break;
                        }
                        by_use.pop_front();
                        owed.remove(&oldest);
                    }
                }
                let owes = owes(&owed, &key);
                owed.insert(key, (owes + (1 << 20), now));
                by_use.retain(|other| *other != key);
                by_use.push_back(key);
                prop_assert_eq!(buckets.len(), owed.len());
            }
        }
    }
}
