//! Hedging: when a call that is slow gets a second attempt, by a delay or by how long recent calls took.

use std::time::{Duration, Instant};
use weft_config::snapshot::{Hedge, HedgeAfter};

/// Calls are remembered for one to two times as long as this.
const GENERATION: Duration = Duration::from_secs(30);
/// Below this many calls nobody knows what is slow.
const ENOUGH: u64 = 50;
/// A percentile is found anew at most this often: finding it goes through all buckets.
const FRESH: Duration = Duration::from_millis(200);
/// Buckets per doubling, as a power of two: one is 6.25 % wide.
const FINE: u32 = 4;
/// Doublings from a microsecond to more than a minute.
const DOUBLINGS: u32 = 27;
const BUCKETS: usize = ((DOUBLINGS - FINE + 1) << FINE) as usize;

/// How long recent calls took, in bounded memory (3 KiB), to about 6 %. One per worker and rule that hedges.
#[derive(Debug)]
pub(crate) struct Latencies {
    /// Counts of the generation that is being filled, and of the one before.
    counts: [Box<[u32; BUCKETS]>; 2],
    totals: [u64; 2],
    /// When the generation that is being filled ends.
    ends: Instant,
    known: Option<Known>,
}

/// A percentile that was found a moment ago.
#[derive(Clone, Copy, Debug)]
struct Known {
    share: f64,
    at: Instant,
    latency: Duration,
}

impl Latencies {
    /// Nothing observed.
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            counts: [Box::new([0; BUCKETS]), Box::new([0; BUCKETS])],
            totals: [0; 2],
            ends: now + GENERATION,
            known: None,
        }
    }

    /// Takes in how long a call took to its answer.
    pub(crate) fn observe(&mut self, took: Duration, now: Instant) {
        self.turn(now);
        let count = &mut self.counts[0][bucket(took)];
        *count = count.saturating_add(1);
        self.totals[0] += 1;
    }

    /// The latency that the `share` of recent calls did not exceed; `None` if there were too few to tell.
    pub(crate) fn percentile(&mut self, share: f64, now: Instant) -> Option<Duration> {
        self.turn(now);
        if let Some(known) = self.known
            && known.share == share
            && now.saturating_duration_since(known.at) < FRESH
        {
            return Some(known.latency);
        }
        let total = self.totals[0] + self.totals[1];
        if total < ENOUGH {
            return None;
        }
        let rank = ((share.clamp(0.0, 1.0) * total as f64).ceil() as u64).clamp(1, total);
        let mut below = 0;
        let [new, old] = &self.counts;
        let found = new.iter().zip(old.iter()).position(|(new, old)| {
            below += u64::from(*new) + u64::from(*old);
            below >= rank
        });
        let latency = upper_bound(found.unwrap_or(BUCKETS - 1));
        self.known = Some(Known { share, at: now, latency });
        Some(latency)
    }

    fn turn(&mut self, now: Instant) {
        if now < self.ends {
            return;
        }
        let generations = now.duration_since(self.ends).as_nanos() / GENERATION.as_nanos() + 1;
        self.counts.swap(0, 1);
        self.totals.swap(0, 1);
        for stale in 0..generations.min(2) as usize {
            self.counts[stale].fill(0);
            self.totals[stale] = 0;
        }
        self.ends = now + GENERATION;
        self.known = None;
    }
}

/// When the next attempt starts, counted from the start of the one before; `None` while nobody can tell.
pub(crate) fn delay(hedge: &Hedge, latencies: &mut Latencies, now: Instant) -> Option<Duration> {
    match hedge.after {
        HedgeAfter::Delay(delay) => Some(delay),
        HedgeAfter::Percentile(share) => latencies.percentile(share, now),
    }
}

/// The bucket of a latency: exact to a microsecond below 16 of them, then 16 buckets a doubling.
fn bucket(took: Duration) -> usize {
    let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
    let doubling = 63 - (micros | 1).leading_zeros();
    if doubling < FINE {
        return micros as usize;
    }
    let within = (micros >> (doubling - FINE)) & ((1 << FINE) - 1);
    let index = (u64::from(doubling - FINE + 1) << FINE) + within;
    usize::try_from(index).unwrap_or(usize::MAX).min(BUCKETS - 1)
}

/// The longest latency that belongs into a bucket, rounded up to a microsecond.
fn upper_bound(bucket: usize) -> Duration {
    let bucket = bucket as u64;
    let (row, within) = (bucket >> FINE, bucket & ((1 << FINE) - 1));
    let micros = match row {
        0 => within + 1,
        row => ((1 << FINE) + within + 1) << (row - 1),
    };
    Duration::from_micros(micros)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn a_delay_is_a_delay() {
        let now = Instant::now();
        let hedge = Hedge { after: HedgeAfter::Delay(ms(50)), max_attempts: 2 };
        assert_eq!(delay(&hedge, &mut Latencies::new(now), now), Some(ms(50)));
    }

    #[test]
    fn too_few_calls_tell_nothing() {
        let now = Instant::now();
        let mut latencies = Latencies::new(now);
        let hedge = Hedge { after: HedgeAfter::Percentile(0.95), max_attempts: 2 };
        (1..ENOUGH).for_each(|_| latencies.observe(ms(10), now));
        assert_eq!(delay(&hedge, &mut latencies, now), None);
        latencies.observe(ms(10), now);
        let found = delay(&hedge, &mut latencies, now).expect("enough");
        assert!(found >= ms(10) && found < ms(11), "{found:?}");
    }

    #[test]
    fn what_is_old_is_forgotten() {
        let now = Instant::now();
        let mut latencies = Latencies::new(now);
        (0..100).for_each(|_| latencies.observe(ms(1000), now));
        let later = now + GENERATION;
        (0..100).for_each(|_| latencies.observe(ms(1), later));
        assert!(latencies.percentile(0.9, later).expect("enough") >= ms(1000), "both count");
        let later = later + GENERATION;
        assert!(latencies.percentile(0.9, later).expect("enough") < ms(2), "the slow ones are gone");
        assert_eq!(latencies.percentile(0.9, later + GENERATION * 2), None);
    }

    #[test]
    fn a_percentile_is_found_anew_when_another_is_asked_for_or_it_is_stale() {
        let now = Instant::now();
        let mut latencies = Latencies::new(now);
        (0..100).for_each(|n| latencies.observe(ms(n), now));
        let median = latencies.percentile(0.5, now).expect("enough");
        assert!(latencies.percentile(0.9, now).expect("enough") > median);
        (0..1000).for_each(|_| latencies.observe(ms(1000), now));
        let later = now + FRESH;
        assert!(latencies.percentile(0.9, later).expect("enough") >= ms(1000));
    }

    #[test]
    fn the_longest_latencies_share_the_last_bucket() {
        let now = Instant::now();
        let mut latencies = Latencies::new(now);
        (0..100).for_each(|_| latencies.observe(Duration::MAX, now));
        assert!(latencies.percentile(0.5, now).expect("enough") > Duration::from_secs(60));
    }

    proptest! {
        #[test]
        fn a_bucket_holds_what_its_bounds_say(micros in 0u64..60_000_000) {
            let took = Duration::from_micros(micros);
            let index = bucket(took);
            prop_assert!(took < upper_bound(index));
            prop_assert!(index == 0 || took >= upper_bound(index - 1));
        }

        #[test]
        fn a_percentile_is_that_of_the_sorted_list_to_about_six_percent(
            mut micros in proptest::collection::vec(0u64..30_000_000, 50..300), share in 0.5..0.9999,
        ) {
            let now = Instant::now();
            let mut latencies = Latencies::new(now);
            micros.iter().for_each(|m| latencies.observe(Duration::from_micros(*m), now));
            let found = latencies.percentile(share, now).expect("enough");
            micros.sort_unstable();
            let rank = (share * micros.len() as f64).ceil() as usize;
            let exact = Duration::from_micros(micros[rank - 1]);
            prop_assert!(found >= exact, "a call at the percentile itself is not hedged");
            prop_assert!(found <= exact.mul_f64(1.0625) + Duration::from_micros(1), "{found:?} for {exact:?}");
        }
    }
}
