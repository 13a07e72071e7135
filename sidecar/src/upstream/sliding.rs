//! Counts over a sliding window in bounded memory: what budgets and breakers go by.

use std::time::{Duration, Instant};

/// Buckets that make up one window; one more is kept, so that what is counted is never less than a whole window.
const PARTS: u32 = 10;
/// All buckets.
const SLOTS: usize = PARTS as usize + 1;
/// Windows are not shorter than this; a bucket then lasts a millisecond.
const SHORTEST: Duration = Duration::from_millis(10);

/// Two counts over the last window. Forgets in steps of a tenth of the window: a count is remembered for at least a
/// whole window, and for a tenth more at most.
#[derive(Debug)]
pub(crate) struct Sliding {
    width: Duration,
    /// When the bucket that is being filled ends.
    ends: Instant,
    filling: usize,
    buckets: [[u32; 2]; SLOTS],
    sums: [u32; 2],
}

impl Sliding {
    /// Nothing counted yet.
    pub(crate) fn new(window: Duration, now: Instant) -> Self {
        let width = width(window);
        Self { width, ends: now + width, filling: 0, buckets: [[0; 2]; SLOTS], sums: [0; 2] }
    }

    /// Adds to both counts.
    pub(crate) fn add(&mut self, counts: [u32; 2], window: Duration, now: Instant) {
        self.turn(window, now);
        for (which, count) in counts.into_iter().enumerate() {
            self.buckets[self.filling][which] = self.buckets[self.filling][which].saturating_add(count);
            self.sums[which] = self.sums[which].saturating_add(count);
        }
    }

    /// Both counts at `now`.
    pub(crate) fn sums(&mut self, window: Duration, now: Instant) -> [u32; 2] {
        self.turn(window, now);
        self.sums
    }

    /// Forgets everything.
    pub(crate) fn clear(&mut self) {
        self.buckets = [[0; 2]; SLOTS];
        self.sums = [0; 2];
    }

    /// Goes on to the bucket of `now`. Workers read their clocks apart: a `now` of the past counts into the present.
    fn turn(&mut self, window: Duration, now: Instant) {
        let width = width(window);
        if width != self.width {
            // Policy changed the window. What is known is kept, and counts as of now.
            let sums = self.sums;
            self.clear();
            (self.width, self.ends, self.sums) = (width, now + width, sums);
            self.buckets[self.filling] = sums;
        }
        if now < self.ends {
            return;
        }
        let late = now.duration_since(self.ends);
        let steps = late.as_nanos() / self.width.as_nanos() + 1;
        if steps >= SLOTS as u128 {
            self.clear();
            // In step with what came before, so that it does not matter when somebody looked.
            let into = late.as_nanos() % self.width.as_nanos();
            self.ends = now + self.width - Duration::from_nanos(u64::try_from(into).unwrap_or(0));
            return;
        }
        for _ in 0..steps {
            self.filling = (self.filling + 1) % SLOTS;
            self.ends += self.width;
            let old = std::mem::take(&mut self.buckets[self.filling]);
            for (sum, old) in self.sums.iter_mut().zip(old) {
                *sum = sum.saturating_sub(old);
            }
        }
    }
}

fn width(window: Duration) -> Duration {
    window.max(SHORTEST) / PARTS
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const WINDOW: Duration = Duration::from_secs(10);

    #[test]
    fn a_changed_window_keeps_what_was_counted() {
        let start = Instant::now();
        let mut sliding = Sliding::new(WINDOW, start);
        sliding.add([3, 1], WINDOW, start);
        let short = Duration::from_secs(1);
        assert_eq!(sliding.sums(short, start + Duration::from_secs(5)), [3, 1]);
        assert_eq!(sliding.sums(short, start + Duration::from_millis(6_200)), [0, 0]);
    }

    #[test]
    fn a_clock_that_is_behind_counts_into_the_present() {
        let start = Instant::now() + Duration::from_secs(100);
        let mut sliding = Sliding::new(WINDOW, start);
        sliding.add([1, 0], WINDOW, start + Duration::from_secs(5));
        sliding.add([1, 0], WINDOW, start - Duration::from_secs(50));
        assert_eq!(sliding.sums(WINDOW, start + Duration::from_secs(5)), [2, 0]);
    }

    proptest! {
        #[test]
        fn nothing_of_the_last_window_is_forgotten_and_nothing_older_than_a_tenth_more_is_kept(
            steps in proptest::collection::vec((0u64..4_000, 0u32..3, 0u32..3), 1..200)
        ) {
            let start = Instant::now();
            let mut sliding = Sliding::new(WINDOW, start);
            let mut all: Vec<(Instant, [u32; 2])> = Vec::new();
            let mut now = start;
            for (wait, a, b) in steps {
                now += Duration::from_millis(wait);
                sliding.add([a, b], WINDOW, now);
                all.push((now, [a, b]));
                let sums = sliding.sums(WINDOW, now);
                for which in 0..2 {
                    let within = |age: Duration| -> u32 {
                        all.iter().filter(|(at, _)| now - *at < age).map(|(_, c)| c[which]).sum()
                    };
                    prop_assert!(sums[which] >= within(WINDOW));
                    prop_assert!(sums[which] <= within(WINDOW + WINDOW / PARTS + Duration::from_nanos(1)));
                }
            }
        }
    }
}
