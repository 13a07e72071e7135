//! What is reported of the application's own calls: how often it called what is going away, as far as it was not told yet.

use std::{collections::BTreeMap, sync::Arc};
use tokio::time::Instant;
use weft_config::wire;

/// Counts, and which of them the control plane knows.
#[derive(Debug, Default)]
pub(super) struct Report {
    /// Bounded by the table of metrics that the counts come from.
    counts: BTreeMap<Arc<str>, Count>,
}

#[derive(Debug)]
struct Count {
    calls: u64,
    grew: Instant,
    told: bool,
}

impl Report {
    /// Takes the counts of this moment.
    pub(super) fn note(&mut self, counts: Vec<(Arc<str>, u64)>, now: Instant) {
        for (of, calls) in counts {
            let count = self.counts.entry(of).or_insert(Count { calls: 0, grew: now, told: true });
            if count.calls != calls {
                *count = Count { calls, grew: now, told: false };
            }
        }
    }

    /// What the control plane has not been told, if there is anything.
    pub(super) fn tell(&mut self, now: Instant) -> Option<wire::Usage> {
        let mut deprecated = Vec::new();
        for (of, count) in self.counts.iter_mut().filter(|(_, count)| !count.told) {
            count.told = true;
            let seconds_ago = now.saturating_duration_since(count.grew).as_secs();
            deprecated.push(wire::DeprecatedCalls { of: of.to_string(), calls: count.calls, seconds_ago });
        }
        (!deprecated.is_empty()).then_some(wire::Usage { deprecated })
    }

    /// Whoever listens now has been told nothing.
    pub(super) fn forget_told(&mut self) {
        self.counts.values_mut().for_each(|count| count.told = false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn told(report: &mut Report, now: Instant) -> Vec<(String, u64, u64)> {
        let usage = report.tell(now).unwrap_or_default();
        usage.deprecated.into_iter().map(|one| (one.of, one.calls, one.seconds_ago)).collect()
    }

    #[test]
    fn only_what_is_new_is_told() {
        let (mut report, now) = (Report::default(), Instant::now());
        assert_eq!(report.tell(now), None);
        report.note(vec![("a".into(), 2), ("b".into(), 0)], now);
        assert_eq!(told(&mut report, now), [("a".into(), 2, 0)]);
        report.note(vec![("a".into(), 2), ("b".into(), 5)], now);
        assert_eq!(told(&mut report, now), [("b".into(), 5, 0)]);
        report.note(vec![("a".into(), 2), ("b".into(), 5)], now);
        assert_eq!(report.tell(now), None);
    }

    #[test]
    fn a_new_listener_is_told_everything_and_how_long_ago_it_was() {
        let (mut report, now) = (Report::default(), Instant::now());
        report.note(vec![("a".into(), 2)], now);
        told(&mut report, now);
        let later = now + Duration::from_secs(90);
        report.note(vec![("a".into(), 2), ("b".into(), 1)], later);
        report.forget_told();
        assert_eq!(told(&mut report, later), [("a".into(), 2, 90), ("b".into(), 1, 0)]);
    }

    #[test]
    fn what_nobody_listened_to_is_told_later() {
        let (mut report, now) = (Report::default(), Instant::now());
        for calls in 1..=3 {
            report.note(vec![("a".into(), calls)], now + Duration::from_secs(calls));
        }
        assert_eq!(told(&mut report, now + Duration::from_secs(10)), [("a".into(), 3, 7)]);
    }
}
