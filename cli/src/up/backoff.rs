//! How long to wait before a crashed program is started again: longer each time, never for good.

use std::time::Duration;

/// The first wait.
pub(super) const FIRST: Duration = Duration::from_millis(500);
/// The longest wait: restarts go on for ever at this pace.
pub(super) const LONGEST: Duration = Duration::from_secs(30);
/// A program that ran this long is taken to have started well: the next crash waits as little as the first one.
const SETTLED: Duration = Duration::from_secs(20);

/// The waits of one program.
#[derive(Clone, Debug, Default)]
pub(super) struct Backoff {
    crashes: u32,
}

impl Backoff {
    /// The wait after a crash, given how long the program ran and a random number from 0 to 1 that spreads restarts
    /// which would otherwise come in step.
    pub(super) fn after(&mut self, ran: Duration, random: f64) -> Duration {
        if ran >= SETTLED {
            self.crashes = 0;
        }
        let doubled = FIRST.saturating_mul(1 << self.crashes.min(16)).min(LONGEST);
        self.crashes = self.crashes.saturating_add(1);
        doubled.mul_f64(0.9 + 0.2 * random.clamp(0.0, 1.0)).min(LONGEST)
    }

    /// Crashes in a row.
    pub(super) fn crashes(&self) -> u32 {
        self.crashes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIDDLE: f64 = 0.5;

    #[test]
    fn waits_double_up_to_thirty_seconds_and_stay_there() {
        let mut backoff = Backoff::default();
        let waits: Vec<u64> =
            (0..9).map(|_| backoff.after(Duration::ZERO, MIDDLE).as_millis() as u64).collect();
        assert_eq!(waits, [500, 1000, 2000, 4000, 8000, 16000, 30000, 30000, 30000]);
        for _ in 0..100_000 {
            assert_eq!(backoff.after(Duration::ZERO, MIDDLE), LONGEST);
        }
    }

    #[test]
    fn a_program_that_ran_well_starts_over() {
        let mut backoff = Backoff::default();
        for _ in 0..5 {
            backoff.after(Duration::from_secs(1), MIDDLE);
        }
        assert_eq!(backoff.after(SETTLED, MIDDLE), FIRST);
        assert_eq!(backoff.crashes(), 1);
    }

    #[test]
    fn chance_moves_a_wait_by_a_tenth_at_most() {
        let wait = |random| Backoff::default().after(Duration::ZERO, random);
        assert_eq!(wait(0.0), Duration::from_millis(450));
        assert_eq!(wait(1.0), Duration::from_millis(550));
    }
}
