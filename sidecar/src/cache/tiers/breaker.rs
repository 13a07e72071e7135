//! Keeps requests from waiting for a tier that fails: open after a few failures in a row, and for longer each time that
//! whoever tries it next fails too.

use std::time::{Duration, Instant};

/// Failures in a row that open it.
const FAILURES: u32 = 3;
const SHORTEST: Duration = Duration::from_millis(250);
const LONGEST: Duration = Duration::from_secs(10);

/// Closed at first.
#[derive(Debug, Default)]
pub(super) struct Breaker {
    failures: u32,
    /// Until when nobody tries, and for how long that is; `None` while it is closed.
    open: Option<(Instant, Duration)>,
}

impl Breaker {
    /// One that is open from the beginning, for what must first be reached.
    pub(super) fn open(now: Instant) -> Self {
        Self { failures: 0, open: Some((now, SHORTEST / 2)) }
    }

    pub(super) fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// Whether to try now. While it is open, one may now and then.
    pub(super) fn may_try(&mut self, now: Instant) -> bool {
        match &mut self.open {
            None => true,
            Some((until, _)) if now < *until => false,
            Some((until, lasts)) => {
                *until = now + *lasts;
                true
            }
        }
    }

    /// It worked for somebody who passed: failures are no longer in a row. Does not close it.
    pub(super) fn passed(&mut self) {
        if self.open.is_none() {
            self.failures = 0;
        }
    }

    /// It worked. True if that closed it.
    pub(super) fn succeeded(&mut self) -> bool {
        self.failures = 0;
        self.open.take().is_some()
    }

    /// It did not. True if that opened it.
    pub(super) fn failed(&mut self, now: Instant) -> bool {
        self.failures = self.failures.saturating_add(1);
        if let Some((until, lasts)) = &mut self.open {
            *lasts = (*lasts * 2).min(LONGEST);
            *until = now + *lasts;
            return false;
        }
        let opens = self.failures >= FAILURES;
        if opens {
            self.open = Some((now + SHORTEST, SHORTEST));
        }
        opens
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_in_a_row_open_it() {
        let (mut breaker, now) = (Breaker::default(), Instant::now());
        assert!(!breaker.failed(now) && !breaker.failed(now));
        assert!(!breaker.succeeded());
        assert!(!breaker.failed(now) && !breaker.failed(now) && breaker.may_try(now));
        assert!(breaker.failed(now));
        assert!(breaker.is_open() && !breaker.may_try(now));
    }

    #[test]
    fn one_at_a_time_tries_and_every_failure_makes_it_longer() {
        let (mut breaker, mut now) = (Breaker::default(), Instant::now());
        for _ in 0..3 {
            breaker.failed(now);
        }
        let mut lasted = Vec::new();
        for _ in 0..8 {
            let Some((until, _)) = breaker.open else { panic!("it is open") };
            lasted.push((until - now).as_millis());
            now = until;
            assert!(breaker.may_try(now) && !breaker.may_try(now));
            assert!(!breaker.failed(now));
        }
        assert_eq!(lasted, [250, 500, 1000, 2000, 4000, 8000, 10_000, 10_000]);
        assert!(breaker.succeeded() && !breaker.is_open());
        for _ in 0..3 {
            breaker.failed(now);
        }
        assert!(!breaker.may_try(now + SHORTEST / 2) && breaker.may_try(now + SHORTEST));
    }

    #[test]
    fn what_must_first_be_reached_is_tried_at_once() {
        let now = Instant::now();
        let mut breaker = Breaker::open(now);
        assert!(breaker.is_open() && breaker.may_try(now) && !breaker.may_try(now));
        breaker.failed(now);
        assert!(breaker.may_try(now + SHORTEST));
    }
}
