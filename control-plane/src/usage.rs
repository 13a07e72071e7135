//! Who still calls what is going away: counts as sidecars tell them, kept under the identity that each has proven.

use crate::{registry::Instance, status::DeprecatedCaller};
use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};
use weft_config::{identity::SpiffeId, wire};

/// What was not called for this long is forgotten.
const KEEP_SECONDS: u64 = 7 * 24 * 3600;
/// Counts that are kept, and of them those of one identity: nobody's lies drive out what others told.
const MOST: usize = 65_536;
const MOST_OF_IDENTITY: usize = 4096;
/// Counts that are read of one report; a sidecar sends no more.
const MOST_IN_REPORT: usize = 256;
/// Bytes in the name of what is called: a kind, three Kubernetes names and what is between them.
const LONGEST_NAME: usize = 800;
/// How often it is looked, at most, for what is to be forgotten, while nobody asks.
const SWEEP_SECONDS: u64 = 60;

/// All counts.
#[derive(Debug)]
pub(crate) struct Usage {
    callers: HashMap<SpiffeId, HashMap<Key, Count>>,
    counts: usize,
    swept: u64,
    most: usize,
    most_of_identity: usize,
}

/// What one process of a workload called.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Key {
    of: Arc<str>,
    namespace: Arc<str>,
    workload: Arc<str>,
    process: Arc<str>,
}

#[derive(Debug)]
struct Count {
    /// Calls before the process began to count anew.
    before: u64,
    /// Calls since, in its own words.
    calls: u64,
    /// Seconds of Unix time.
    last: u64,
}

/// What became of a report.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Taken {
    /// Calls that were not known before.
    pub(crate) calls: u64,
    /// Counts that found no place, or lost it.
    pub(crate) dropped: u64,
}

impl Default for Usage {
    fn default() -> Self {
        Self { callers: HashMap::new(), counts: 0, swept: 0, most: MOST, most_of_identity: MOST_OF_IDENTITY }
    }
}

impl Usage {
    /// A sidecar with this identity reports.
    pub(crate) fn told(
        &mut self,
        identity: &SpiffeId,
        instance: &Instance,
        usage: &wire::Usage,
        now: u64,
    ) -> Taken {
        if now.abs_diff(self.swept) >= SWEEP_SECONDS {
            self.forget_old(now);
        }
        let mut taken = Taken {
            dropped: usage.deprecated.len().saturating_sub(MOST_IN_REPORT) as u64,
            ..Taken::default()
        };
        for told in usage.deprecated.iter().take(MOST_IN_REPORT) {
            let unfit = told.of.is_empty() || told.of.len() > LONGEST_NAME;
            if unfit || told.of.contains(char::is_control) {
                taken.dropped += 1;
                continue;
            }
            let last = now.saturating_sub(told.seconds_ago);
            if told.calls == 0 || now - last >= KEEP_SECONDS {
                continue;
            }
            let key = Key {
                of: told.of.as_str().into(),
                namespace: instance.namespace.clone(),
                workload: instance.workload.clone(),
                process: instance.id.clone(),
            };
            if let Some(known) = self.callers.get_mut(identity).and_then(|counts| counts.get_mut(&key)) {
                taken.calls += known.update(told.calls, last);
            } else {
                taken.dropped += self.make_room(identity);
                let count = Count { before: 0, calls: told.calls, last };
                self.callers.entry(identity.clone()).or_default().insert(key, count);
                self.counts += 1;
                taken.calls += told.calls;
            }
        }
        taken
    }

    /// How many counts there are.
    pub(crate) fn len(&self) -> usize {
        self.counts
    }

    /// Who called what, by what was called; whoever called most comes first.
    pub(crate) fn callers(&mut self, now: u64) -> BTreeMap<Arc<str>, Vec<DeprecatedCaller>> {
        self.forget_old(now);
        let mut workloads: BTreeMap<_, DeprecatedCaller> = BTreeMap::new();
        for (identity, counts) in &self.callers {
            let identity = identity.to_string();
            for (key, count) in counts {
                let place = (key.of.clone(), identity.clone(), key.namespace.clone(), key.workload.clone());
                let caller = workloads.entry(place).or_insert_with(|| DeprecatedCaller {
                    identity: identity.clone(),
                    namespace: key.namespace.to_string(),
                    workload: key.workload.to_string(),
                    ..DeprecatedCaller::default()
                });
                caller.processes += 1;
                caller.calls = caller.calls.saturating_add(count.total());
                caller.last_call = caller.last_call.max(count.last);
            }
        }
        let mut callers: BTreeMap<Arc<str>, Vec<DeprecatedCaller>> = BTreeMap::new();
        for ((of, ..), caller) in workloads {
            callers.entry(of).or_default().push(caller);
        }
        for list in callers.values_mut() {
            list.sort_by_key(|caller| std::cmp::Reverse(caller.calls));
        }
        callers
    }

    fn forget_old(&mut self, now: u64) {
        self.swept = now;
        self.callers.retain(|_, counts| {
            counts.retain(|_, count| now.saturating_sub(count.last) < KEEP_SECONDS);
            !counts.is_empty()
        });
        self.counts = self.callers.values().map(HashMap::len).sum();
    }

    /// Makes room for one more count of an identity; gives how many others lost theirs.
    fn make_room(&mut self, identity: &SpiffeId) -> u64 {
        let of_identity = self.callers.get(identity).map_or(0, HashMap::len);
        let whose = if of_identity >= self.most_of_identity {
            Some(identity.clone())
        } else if self.counts >= self.most {
            // Whoever has most has the least right to keep all of it.
            self.callers.iter().max_by_key(|(_, counts)| counts.len()).map(|(identity, _)| identity.clone())
        } else {
            None
        };
        let Some(counts) = whose.as_ref().and_then(|whose| self.callers.get_mut(whose)) else { return 0 };
        let Some(oldest) = counts.iter().min_by_key(|(_, count)| count.last).map(|(key, _)| key.clone())
        else {
            return 0;
        };
        counts.remove(&oldest);
        self.counts -= 1;
        1
    }
}

impl Count {
    /// Takes a newer report; gives how many calls were not known.
    fn update(&mut self, calls: u64, last: u64) -> u64 {
        let total = self.total();
        if calls < self.calls {
            // Its counter was forgotten for a while and began anew.
            self.before = total;
        }
        self.calls = calls;
        self.last = self.last.max(last);
        self.total() - total
    }

    fn total(&self) -> u64 {
        self.before.saturating_add(self.calls)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_800_000_000;

    fn identity(account: &str) -> SpiffeId {
        format!("spiffe://weft.local/ns/shop/sa/{account}").parse().expect("an identity")
    }

    fn instance(workload: &str, id: &str) -> Instance {
        Instance { namespace: "shop".into(), workload: workload.into(), id: id.into() }
    }

    fn report(counts: &[(&str, u64, u64)]) -> wire::Usage {
        let one = |(of, calls, seconds_ago): &(&str, u64, u64)| wire::DeprecatedCalls {
            of: (*of).to_owned(),
            calls: *calls,
            seconds_ago: *seconds_ago,
        };
        wire::Usage { deprecated: counts.iter().map(one).collect() }
    }

    /// What was called, by which workload, how often by how many processes, and when last.
    fn rows(usage: &mut Usage, now: u64) -> Vec<(String, String, u64, u64, u64)> {
        let rows = usage.callers(now).into_iter().flat_map(|(of, callers)| {
            callers.into_iter().map(move |c| (of.to_string(), c.workload, c.calls, c.processes, c.last_call))
        });
        rows.collect()
    }

    #[test]
    fn a_report_that_comes_twice_counts_once() {
        let mut usage = Usage::default();
        let mut tell =
            |calls| usage.told(&identity("cart"), &instance("cart", "1"), &report(&[("v1", calls, 0)]), NOW);
        assert_eq!(tell(3), Taken { calls: 3, dropped: 0 });
        assert_eq!(tell(3), Taken { calls: 0, dropped: 0 });
        assert_eq!(tell(10), Taken { calls: 7, dropped: 0 });
        assert_eq!(rows(&mut usage, NOW), [("v1".into(), "cart".into(), 10, 1, NOW)]);
    }

    #[test]
    fn the_processes_of_a_workload_are_added_up_and_workloads_are_told_apart() {
        let mut usage = Usage::default();
        let user = identity("user");
        usage.told(&identity("cart"), &instance("cart", "1"), &report(&[("v1", 2, 50)]), NOW);
        usage.told(&identity("cart"), &instance("cart", "2"), &report(&[("v1", 3, 10)]), NOW);
        usage.told(&user, &instance("user", "1"), &report(&[("v1", 9, 0), ("v0", 1, 5)]), NOW);
        assert_eq!(
            rows(&mut usage, NOW),
            [
                ("v0".into(), "user".into(), 1, 1, NOW - 5),
                ("v1".into(), "user".into(), 9, 1, NOW),
                ("v1".into(), "cart".into(), 5, 2, NOW - 10),
            ]
        );
        assert_eq!(usage.callers(NOW)["v1"][0].identity, user.to_string());
    }

    #[test]
    fn the_same_workload_under_two_identities_is_two_callers() {
        let mut usage = Usage::default();
        usage.told(&identity("a"), &instance("cart", "1"), &report(&[("v1", 1, 0)]), NOW);
        usage.told(&identity("b"), &instance("cart", "1"), &report(&[("v1", 2, 0)]), NOW);
        let who: Vec<_> = usage.callers(NOW)["v1"].iter().map(|caller| caller.identity.clone()).collect();
        assert_eq!(who, [identity("b").to_string(), identity("a").to_string()]);
    }

    #[test]
    fn a_counter_that_begins_anew_loses_nothing() {
        let mut usage = Usage::default();
        let mut tell =
            |calls| usage.told(&identity("cart"), &instance("cart", "1"), &report(&[("v1", calls, 0)]), NOW);
        tell(10);
        assert_eq!(tell(4).calls, 4);
        assert_eq!(tell(5).calls, 1);
        assert_eq!(rows(&mut usage, NOW)[0].2, 15);
    }

    #[test]
    fn what_was_not_called_for_a_week_is_forgotten() {
        let mut usage = Usage::default();
        let day = 24 * 3600;
        let counts = report(&[("v1", 1, 0), ("v2", 1, 6 * day), ("v3", 1, 7 * day), ("v4", 0, 0)]);
        usage.told(&identity("cart"), &instance("cart", "1"), &counts, NOW);
        let names = |rows: Vec<(String, String, u64, u64, u64)>| -> Vec<String> {
            rows.into_iter().map(|row| row.0).collect()
        };
        assert_eq!(names(rows(&mut usage, NOW)), ["v1", "v2"]);
        assert_eq!(names(rows(&mut usage, NOW + day)), ["v1"]);
        assert!(rows(&mut usage, NOW + 7 * day).is_empty());
        assert_eq!(usage.len(), 0);
        let before_1970 = report(&[("v1", 1, u64::MAX)]);
        usage.told(&identity("cart"), &instance("cart", "1"), &before_1970, NOW);
        assert_eq!(usage.len(), 0);
    }

    #[test]
    fn whoever_tells_too_much_loses_its_own_oldest() {
        let mut usage = Usage { most: 5, most_of_identity: 3, ..Usage::default() };
        let (loud, quiet) = (identity("loud"), identity("quiet"));
        usage.told(&quiet, &instance("quiet", "1"), &report(&[("v1", 1, 1000)]), NOW);
        for n in 0..10 {
            let taken =
                usage.told(&loud, &instance("loud", &n.to_string()), &report(&[("v1", 1, 0)]), NOW + n);
            assert_eq!(taken, Taken { calls: 1, dropped: u64::from(n >= 3) });
        }
        usage.told(&identity("third"), &instance("third", "1"), &report(&[("v1", 1, 0)]), NOW + 10);
        assert_eq!(usage.len(), 5);
        let taken = usage.told(&quiet, &instance("quiet", "1"), &report(&[("v2", 1, 0)]), NOW + 10);
        assert_eq!(taken, Taken { calls: 1, dropped: 1 });
        let counts = |identity| usage.callers[&identity].len();
        assert_eq!((counts(loud), counts(quiet), counts(identity("third"))), (2, 2, 1));
        assert_eq!(usage.len(), 5);
    }

    #[test]
    fn names_that_cannot_be_shown_and_endless_reports_are_not_kept() {
        let mut usage = Usage::default();
        let long = "x".repeat(LONGEST_NAME + 1);
        let counts =
            report(&[("", 1, 0), ("a\u{1b}[2J", 1, 0), (&long, 1, 0), ("Service shop/\u{e9}", 1, 0)]);
        let taken = usage.told(&identity("cart"), &instance("cart", "1"), &counts, NOW);
        assert_eq!(taken, Taken { calls: 1, dropped: 3 });
        let many: Vec<String> = (0..1000).map(|n| format!("v{n}")).collect();
        let many: Vec<_> = many.iter().map(|of| (of.as_str(), 1, 0)).collect();
        let taken = usage.told(&identity("cart"), &instance("cart", "1"), &report(&many), NOW);
        assert_eq!(taken, Taken { calls: 256, dropped: 744 });
    }
}
