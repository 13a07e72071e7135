//! What a sidecar knows of the purges in Redis, and those of its own that Redis does not know yet.

use super::{
    super::{
        since::Since,
        wider::{Wider, uri},
    },
    server::State,
};
use crate::cache::entry::{Entry, packed::Stamp};
use std::collections::{HashMap, HashSet};

/// Purges that wait to be told; beyond that everything is purged.
const PENDING_MAX: usize = 4096;
/// Purges that are told at once.
const BATCH: usize = 64;

/// The purges by hand of a generation, and when this sidecar learned what.
#[derive(Debug, Default)]
pub(super) struct Known {
    state: State,
    logged: Vec<(Wider, u64)>,
    since: Since,
}

impl Known {
    /// The generation that is looked at; `None` before there is one.
    pub(super) fn generation(&self) -> Option<u64> {
        (self.state.generation != 0).then_some(self.state.generation)
    }

    /// Whether the log has to be read for this state.
    pub(super) fn is_behind(&self, state: &State) -> bool {
        self.state.generation != state.generation || self.state.wide < state.wide
    }

    /// Takes in the state, with the log as it was read after it, at `now`.
    pub(super) fn learn(&mut self, state: State, logged: Option<Vec<(Wider, u64)>>, now: u32) {
        if state.generation != self.state.generation {
            *self = Self { state, ..Self::default() };
        }
        // Answers may overtake each other.
        let known = &mut self.state;
        known.latest = known.latest.max(state.latest);
        known.forgotten = known.forgotten.max(state.forgotten);
        if let Some(logged) = logged
            && known.wide <= state.wide
        {
            known.wide = state.wide;
            self.logged = logged;
        }
        self.since.learn(now, state.latest);
    }

    /// A purge of this sidecar got a number.
    pub(super) fn told(&mut self, generation: u64, number: u64, now: u32) {
        if generation == self.state.generation {
            self.state.latest = self.state.latest.max(number);
            self.since.learn(now, number);
        }
    }

    /// Whether what was read was purged, as far as `state`, which was read after it, is known.
    pub(super) fn purged(&self, state: &State, stamp: Stamp, entry: &Entry) -> bool {
        stamp.generation != state.generation
            || self.is_behind(state)
            || stamp.since < state.forgotten.max(self.state.forgotten)
            || self.logged.iter().any(|(wider, number)| *number > stamp.since && wider.means(entry))
    }

    /// What an answer is kept with that was asked for in this second; `None` if it cannot be told what was known then.
    pub(super) fn stamp(&self, requested: u32) -> Option<Stamp> {
        let generation = self.generation()?;
        Some(Stamp { generation, since: self.since.before(requested)? })
    }
}

/// Purges that Redis does not know yet. Nothing that they are for is asked for meanwhile.
#[derive(Debug, Default)]
pub(super) struct Pending {
    /// By a number that changes when the same is purged again.
    uris: HashMap<Box<[u8]>, u64>,
    wide: HashMap<Wider, u64>,
    last: u64,
}

/// Some of them, to be told.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub(super) uris: Vec<Box<[u8]>>,
    pub(super) wide: Vec<Wider>,
    numbers: Vec<u64>,
}

impl Batch {
    pub(super) fn is_empty(&self) -> bool {
        self.numbers.is_empty()
    }
}

impl Pending {
    pub(super) fn is_empty(&self) -> bool {
        self.uris.is_empty() && self.wide.is_empty()
    }

    fn next(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    pub(super) fn add_uri(&mut self, uri: &[u8]) {
        if self.uris.len() >= PENDING_MAX {
            return self.add(Wider::All);
        }
        let number = self.next();
        self.uris.insert(uri.into(), number);
    }

    pub(super) fn add(&mut self, wider: Wider) {
        let number = self.next();
        if wider == Wider::All || self.wide.len() >= PENDING_MAX {
            (self.uris, self.wide) = Default::default();
            self.wide.insert(Wider::All, number);
        } else {
            self.wide.insert(wider, number);
        }
    }

    /// Whether something under this key may be meant.
    pub(super) fn may_mean(&self, key: &[u8]) -> bool {
        !self.wide.is_empty() || (!self.uris.is_empty() && self.uris.contains_key(uri(key)))
    }

    /// The next ones to be told.
    pub(super) fn batch(&self) -> Batch {
        let mut batch = Batch::default();
        for (uri, number) in self.uris.iter().take(BATCH) {
            batch.uris.push(uri.clone());
            batch.numbers.push(*number);
        }
        for (wider, number) in self.wide.iter().take(BATCH) {
            batch.wide.push(wider.clone());
            batch.numbers.push(*number);
        }
        batch
    }

    /// They were told. What was purged again meanwhile is to be told again.
    pub(super) fn told(&mut self, batch: &Batch) {
        let numbers: HashSet<u64> = batch.numbers.iter().copied().collect();
        for uri in &batch.uris {
            if self.uris.get(uri).is_some_and(|number| numbers.contains(number)) {
                self.uris.remove(uri);
            }
        }
        for wider in &batch.wide {
            if self.wide.get(wider).is_some_and(|number| numbers.contains(number)) {
                self.wide.remove(wider);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::entry::tests::Sample;

    fn state(generation: u64, latest: u64, wide: u64, forgotten: u64) -> State {
        State { generation, latest, wide, forgotten }
    }

    fn stamp(generation: u64, since: u64) -> Stamp {
        Stamp { generation, since }
    }

    #[test]
    fn what_was_asked_for_before_a_purge_is_purged_and_what_was_after_is_not() {
        let entry = Sample::new("http://a/b\nG").entry("");
        let mut known = Known::default();
        assert_eq!(known.generation(), None);
        let now = state(5, 9, 8, 2);
        let log = vec![(Wider::Prefix((*b"http://a/").into()), 8), (Wider::Tag((*b"t").into()), 7)];
        assert!(known.is_behind(&now));
        assert!(known.purged(&now, stamp(5, 100), &entry), "the log was not read yet");
        known.learn(now, Some(log), 50);
        assert!(!known.is_behind(&now));
        assert!(known.purged(&now, stamp(5, 7), &entry));
        assert!(!known.purged(&now, stamp(5, 8), &entry));
        assert!(known.purged(&now, stamp(4, 8), &entry), "another generation");
        let other = Sample::new("http://c/b\nG").entry("");
        assert!(!known.purged(&now, stamp(5, 2), &other));
        assert!(known.purged(&now, stamp(5, 1), &other), "nobody knows any more");
        assert!(known.purged(&state(5, 11, 11, 2), stamp(5, 10), &other), "the log is behind");
    }

    #[test]
    fn an_answer_is_kept_with_what_was_known_before_it_was_asked_for() {
        let mut known = Known::default();
        assert_eq!(known.stamp(100), None);
        known.learn(state(5, 3, 0, 0), Some(vec![]), 50);
        assert_eq!((known.stamp(50), known.stamp(51)), (None, Some(stamp(5, 3))));
        known.told(5, 6, 60);
        known.told(4, 99, 61);
        assert_eq!((known.stamp(60), known.stamp(70)), (Some(stamp(5, 3)), Some(stamp(5, 6))));
        known.learn(state(6, 0, 0, 0), Some(vec![]), 80);
        assert_eq!((known.stamp(80), known.stamp(81)), (None, Some(stamp(6, 0))));
    }

    #[test]
    fn an_answer_that_was_overtaken_takes_nothing_back() {
        let mut known = Known::default();
        known.learn(state(5, 9, 9, 4), Some(vec![(Wider::All, 9)]), 50);
        known.learn(state(5, 3, 3, 0), Some(vec![]), 50);
        let entry = Sample::new("k").entry("");
        assert!(known.purged(&state(5, 9, 9, 0), stamp(5, 8), &entry));
        assert!(known.purged(&state(5, 9, 9, 0), stamp(5, 3), &entry));
    }

    #[test]
    fn what_is_purged_again_while_it_is_told_is_told_again() {
        let mut pending = Pending::default();
        pending.add_uri(b"http://a/\n");
        pending.add(Wider::Tag((*b"t").into()));
        let batch = pending.batch();
        assert_eq!((batch.uris.len(), batch.wide.len()), (1, 1));
        pending.add_uri(b"http://a/\n");
        pending.told(&batch);
        assert!(pending.may_mean(b"http://a/\nG") && !pending.may_mean(b"http://b/\nG"));
        let batch = pending.batch();
        pending.told(&batch);
        assert!(pending.is_empty() && pending.batch().is_empty());
    }

    #[test]
    fn too_many_are_one_for_everything() {
        let mut pending = Pending::default();
        for i in 0..=PENDING_MAX {
            pending.add_uri(format!("http://a/{i}\n").as_bytes());
        }
        assert_eq!((pending.uris.len(), pending.batch().wide), (0, vec![Wider::All]));
        assert!(pending.may_mean(b"anything"));
    }
}
