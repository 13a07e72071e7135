//! Which purge was the last that was known before a request was sent, told from the second in which it was sent.
//!
//! An entry knows when its request was sent to the second only. So what was learned in that very second counts as not
//! known: then an entry may be taken for purged that is not, never the other way round.

use std::collections::VecDeque;

/// Moments that are remembered; of what is older than all of them nothing is known.
const MOMENTS_MAX: usize = 2048;

/// What was learned when.
#[derive(Debug, Default)]
pub(super) struct Since(VecDeque<(u32, u64)>);

impl Since {
    /// At `now`, in seconds since 1970, `epoch` is the last purge.
    pub(super) fn learn(&mut self, now: u32, epoch: u64) {
        // A clock that was put back: what is said of the future does not hold.
        while self.0.back().is_some_and(|(second, _)| *second > now) {
            self.0.pop_back();
        }
        match self.0.back_mut() {
            // Known since before; or not yet known at the end of the second before.
            Some((_, last)) if *last >= epoch => {}
            Some((second, last)) if *second == now => *last = epoch,
            _ => {
                self.0.push_back((now, epoch));
                if self.0.len() > MOMENTS_MAX {
                    self.0.pop_front();
                }
            }
        }
    }

    /// The last purge that was certainly known when a request was sent in this second; `None` if none was.
    pub(super) fn before(&self, requested: u32) -> Option<u64> {
        let after = self.0.partition_point(|(second, _)| *second < requested);
        self.0.get(after.checked_sub(1)?).map(|(_, epoch)| *epoch)
    }

    /// Forgets everything: numbers begin anew.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_was_learned_in_the_same_second_counts_as_not_known() {
        let mut since = Since::default();
        assert_eq!(since.before(100), None);
        since.learn(10, 1);
        since.learn(12, 1);
        since.learn(12, 3);
        since.learn(12, 4);
        assert_eq!([9, 10, 11, 12, 13].map(|s| since.before(s)), [None, None, Some(1), Some(1), Some(4)]);
        since.clear();
        assert_eq!(since.before(13), None);
    }

    #[test]
    fn a_clock_put_back_makes_nothing_known_earlier() {
        let mut since = Since::default();
        since.learn(10, 1);
        since.learn(100, 5);
        since.learn(50, 6);
        assert_eq!([40, 50, 51, 99].map(|s| since.before(s)), [Some(1), Some(1), Some(6), Some(6)]);
    }

    #[test]
    fn only_so_many_moments_are_remembered() {
        let mut since = Since::default();
        (0..5000).for_each(|i| since.learn(i, u64::from(i)));
        assert_eq!(since.0.len(), MOMENTS_MAX);
        assert_eq!((since.before(100), since.before(4000)), (None, Some(3999)));
    }

    proptest! {
        /// Never more than what had been learned in an earlier second.
        #[test]
        fn never_more_than_was_known(steps in proptest::collection::vec((0_u32..3, 0_u64..4), 1..60), asked in 0_u32..100) {
            let (mut since, mut now, mut epoch) = (Since::default(), 0, 0);
            let mut known = None;
            for (later, more) in steps {
                now += later;
                epoch += more;
                since.learn(now, epoch);
                if now < asked {
                    known = Some(epoch);
                }
            }
            prop_assert_eq!(since.before(asked), known);
        }
    }
}
