//! How long to wait before trying again: exponential with full jitter, so that a mesh does not come back in step.

use std::time::Duration;

/// Doubling waits, each drawn from between (almost) nothing and its bound.
#[derive(Clone, Debug)]
pub(super) struct Backoff {
    base: Duration,
    cap: Duration,
    failures: u32,
}

impl Backoff {
    /// No wait is shorter, so that a wrong answer that comes at once is no busy loop.
    const FLOOR: Duration = Duration::from_millis(10);

    /// The first wait is at most `base`, every other at most twice the one before and at most `cap`.
    pub(super) fn new(base: Duration, cap: Duration) -> Self {
        Self { base, cap, failures: 0 }
    }

    /// The wait after one more failure.
    pub(super) fn next(&mut self) -> Duration {
        let bound = self.bound();
        self.failures = self.failures.saturating_add(1);
        bound.mul_f64(fastrand::f64()).max(Self::FLOOR)
    }

    /// Success: the next failure is the first again.
    pub(super) fn reset(&mut self) {
        self.failures = 0;
    }

    /// Failures since the last success.
    pub(super) fn failures(&self) -> u32 {
        self.failures
    }

    fn bound(&self) -> Duration {
        self.base.saturating_mul(1 << self.failures.min(20)).min(self.cap)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: Duration = Duration::from_millis(100);
    const CAP: Duration = Duration::from_secs(5);

    #[test]
    fn every_wait_is_within_its_bound() {
        for _ in 0..200 {
            let mut backoff = Backoff::new(BASE, CAP);
            for failure in 0..12u32 {
                let bound = (BASE * 2u32.pow(failure)).min(CAP);
                let wait = backoff.next();
                assert!(wait >= Backoff::FLOOR && wait <= bound, "failure {failure}: {wait:?}");
            }
        }
    }

    #[test]
    fn waits_are_spread_over_the_whole_range() {
        let mut low = 0;
        let mut high = 0;
        for _ in 0..400 {
            let mut backoff = Backoff::new(BASE, CAP);
            for _ in 0..10 {
                backoff.next();
            }
            match backoff.next() {
                wait if wait < CAP / 4 => low += 1,
                wait if wait > CAP * 3 / 4 => high += 1,
                _ => {}
            }
        }
        assert!(low > 40 && high > 40, "{low} low, {high} high of 400");
    }

    #[test]
    fn success_starts_over() {
        let mut backoff = Backoff::new(BASE, CAP);
        for _ in 0..40 {
            backoff.next();
        }
        backoff.reset();
        assert!(backoff.next() <= BASE);
        assert_eq!(backoff.failures(), 1);
    }
}
