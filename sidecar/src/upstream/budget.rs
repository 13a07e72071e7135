//! How many retries a cluster may get: no more than a share of its first attempts, with a small floor.

use super::sliding::Sliding;
use std::time::{Duration, Instant};
use weft_config::snapshot::RetryBudget;

/// First attempts and retries of the last window. In an outage every call would be tried again; with a budget the
/// upstream gets `1 + share` times the calls at most, so that retries cannot be what keeps it down.
#[derive(Debug)]
pub(crate) struct Budget(Sliding);

impl Budget {
    /// Nothing tried yet: only the floor is there.
    pub(crate) fn new(now: Instant) -> Self {
        Self(Sliding::new(RetryBudget::default().window, now))
    }

    /// Counts a first attempt.
    pub(crate) fn request(&mut self, settings: &RetryBudget, now: Instant) {
        self.0.add([1, 0], settings.window, now);
    }

    /// Takes one retry out of the budget, if it has one left.
    pub(crate) fn try_retry(&mut self, settings: &RetryBudget, now: Instant) -> bool {
        let granted = self.remaining(settings, now) >= 1.0;
        if granted {
            self.0.add([0, 1], settings.window, now);
        }
        granted
    }

    /// How many retries are left at `now`.
    pub(crate) fn remaining(&mut self, settings: &RetryBudget, now: Instant) -> f64 {
        let [first, retries] = self.0.sums(settings.window, now);
        (allowed(settings, first) - f64::from(retries)).max(0.0)
    }
}

/// Retries that a window with this many first attempts may have.
fn allowed(settings: &RetryBudget, first: u32) -> f64 {
    let floor = settings.min_per_second * settings.window.max(Duration::ZERO).as_secs_f64();
    // A share of 20 % of 5 must be a whole retry, whatever binary fractions make of it.
    (settings.share * f64::from(first)).max(floor) + 1e-6
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn after(start: Instant, milliseconds: u64) -> Instant {
        start + Duration::from_millis(milliseconds)
    }

    #[test]
    fn the_floor_lets_a_quiet_service_retry() {
        let start = Instant::now();
        let settings = RetryBudget::default();
        let mut budget = Budget::new(start);
        let granted = (0..100).filter(|_| budget.try_retry(&settings, start)).count();
        assert_eq!(granted, 30, "three a second for ten seconds");
        assert!(budget.try_retry(&settings, after(start, 11_000)), "and they come back");
    }

    #[test]
    fn a_busy_service_gets_its_share() {
        let start = Instant::now();
        let settings = RetryBudget::default();
        let mut budget = Budget::new(start);
        (0..1000).for_each(|_| budget.request(&settings, start));
        let granted = (0..1000).filter(|_| budget.try_retry(&settings, start)).count();
        assert_eq!(granted, 200);
        assert!(budget.remaining(&settings, start) < 1.0);
    }

    #[test]
    fn without_share_and_floor_there_are_no_retries() {
        let start = Instant::now();
        let settings = RetryBudget { share: 0.0, min_per_second: 0.0, ..RetryBudget::default() };
        let mut budget = Budget::new(start);
        (0..1000).for_each(|_| budget.request(&settings, start));
        assert!(!budget.try_retry(&settings, start));
    }

    #[test]
    fn a_smaller_share_holds_at_once() {
        let start = Instant::now();
        let mut settings = RetryBudget { min_per_second: 0.0, ..RetryBudget::default() };
        let mut budget = Budget::new(start);
        (0..100).for_each(|_| budget.request(&settings, start));
        assert_eq!((0..10).filter(|_| budget.try_retry(&settings, start)).count(), 10);
        settings.share = 0.1;
        assert!(!budget.try_retry(&settings, start));
        settings.share = 0.2;
        assert!(budget.try_retry(&settings, start));
    }

    #[test]
    fn a_full_outage_at_a_hundred_calls_a_second_costs_a_fifth_more() {
        let start = Instant::now();
        let settings = RetryBudget::default();
        let mut budget = Budget::new(start);
        let (mut calls, mut attempts) = (0_u32, 0_u32);
        for tick in 0..12_000 {
            let now = after(start, tick * 10);
            budget.request(&settings, now);
            calls += 1;
            attempts += 1;
            // Every attempt fails, and the policy would try each call twice more.
            attempts += u32::from(budget.try_retry(&settings, now));
            attempts += u32::from(budget.try_retry(&settings, now));
        }
        assert!(f64::from(attempts) <= 1.2 * f64::from(calls), "{attempts} attempts at {calls} calls");
        assert!(f64::from(attempts) >= 1.15 * f64::from(calls), "the budget is there to be used");
    }

    proptest! {
        /// The law, over what really happened in the exact window before each retry.
        #[test]
        fn retries_of_a_window_never_exceed_share_and_floor(
            share in 0.0..1.0, per_second in 0.0..5.0, window_ms in 100u64..5_000,
            steps in proptest::collection::vec((0u64..300, 0u8..4, 0u8..4), 1..300),
        ) {
            let start = Instant::now();
            let window = Duration::from_millis(window_ms);
            let settings = RetryBudget { share, min_per_second: per_second, window };
            let mut budget = Budget::new(start);
            budget.request(&settings, start);
            let mut now = start;
            let (mut first, mut retries) = (vec![start], Vec::new());
            for (wait, calls, tries) in steps {
                now += Duration::from_millis(wait);
                for _ in 0..calls {
                    budget.request(&settings, now);
                    first.push(now);
                }
                for _ in 0..tries {
                    let before = budget.remaining(&settings, now);
                    let granted = budget.try_retry(&settings, now);
                    prop_assert_eq!(granted, before >= 1.0);
                    if granted {
                        retries.push(now);
                    }
                }
                let count = |of: &[Instant], age| of.iter().filter(|at| now - **at < age).count() as f64;
                // First attempts are remembered for up to a tenth of the window longer.
                let longest = window + window / 10 + Duration::from_nanos(1);
                let most = (share * count(&first, longest)).max(per_second * window.as_secs_f64());
                if tries > 0 && retries.last() == Some(&now) {
                    prop_assert!(count(&retries, window) <= most + 1e-3, "{} > {most}", count(&retries, window));
                }
                // And never stingier than what the exact window allows with all retries that are remembered.
                let least = (share * count(&first, window)).max(per_second * window.as_secs_f64());
                let left = least - count(&retries, longest);
                prop_assert!(budget.remaining(&settings, now) >= left - 1e-3);
            }
        }
    }
}
