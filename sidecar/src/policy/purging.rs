//! Purges as the control plane sends them: carried out one after the other, off the control thread, and remembered so
//! that after a lost connection only those come again that were missed.

use super::Hooks;
use std::{collections::VecDeque, sync::Arc};
use tokio::task::JoinHandle;
use weft_config::wire::{self, purge::What};

/// Purges that wait for the one that is being carried out. With more, one of everything takes their place.
const MOST_WAITING: usize = 2048;

/// Purges of one sidecar.
#[derive(Default)]
pub(super) struct Purging {
    waiting: VecDeque<wire::Purge>,
    running: Option<JoinHandle<wire::Purged>>,
    /// List and number of the last one that was carried out.
    last: (String, u64),
    /// Those of the control plane's last one, until it is carried out.
    missing: Option<(String, u64)>,
}

impl Purging {
    /// Of a sidecar that knows of purges up to this one.
    pub(super) fn after(last: (String, u64)) -> Self {
        Self { last, ..Self::default() }
    }

    /// The control plane says which purge was its last.
    pub(super) fn newest(&mut self, newest: (String, u64), hooks: &Arc<dyn Hooks>) {
        // One that does not say so, or where nothing was purged ever.
        let unknown = newest.0.is_empty() || (newest.1 == 0 && self.last.0.is_empty());
        self.missing = (!unknown && !reaches(&self.last, &newest)).then_some(newest);
        hooks.misses_purges(self.missing.is_some());
    }

    /// A purge has come.
    pub(super) fn take(&mut self, purge: wire::Purge, hooks: &Arc<dyn Hooks>) {
        if self.waiting.len() >= MOST_WAITING {
            tracing::warn!("{MOST_WAITING} purges wait to be carried out: everything is purged instead");
            self.waiting.clear();
            let all =
                wire::Purge { what: Some(What::All(true)), service: String::new(), soft: false, ..purge };
            self.waiting.push_back(all);
        } else {
            self.waiting.push_back(purge);
        }
        self.start(hooks);
    }

    fn start(&mut self, hooks: &Arc<dyn Hooks>) {
        if self.running.is_none()
            && let Some(purge) = self.waiting.pop_front()
        {
            let hooks = hooks.clone();
            // All that is stored may be looked through.
            self.running = Some(tokio::task::spawn_blocking(move || carry_out(purge, &*hooks)));
        }
    }

    /// The answer to the purge that is being carried out; waits for ever if there is none. Nothing is lost if this is
    /// dropped before it comes.
    pub(super) async fn next(&mut self, hooks: &Arc<dyn Hooks>) -> wire::Purged {
        loop {
            let Some(running) = &mut self.running else { return std::future::pending().await };
            let done = running.await;
            self.running = None;
            self.start(hooks);
            match done {
                Ok(purged) => {
                    let (log, number) = &mut self.last;
                    if *log != purged.log || *number < purged.number {
                        (*log, *number) = (purged.log.clone(), purged.number);
                    }
                    if self.missing.as_ref().is_some_and(|missing| reaches(&self.last, missing)) {
                        self.missing = None;
                        hooks.misses_purges(false);
                    }
                    return purged;
                }
                // It stays without an answer, and comes again with the next connection.
                Err(error) => tracing::error!(%error, "a purge could not be carried out"),
            }
        }
    }

    /// The list and number of the last one that was carried out, for Hello.
    pub(super) fn last(&self) -> (String, u64) {
        self.last.clone()
    }
}

/// Whether whoever carried out all purges up to `last` has carried out this one.
fn reaches(last: &(String, u64), purge: &(String, u64)) -> bool {
    last.0 == purge.0 && last.1 >= purge.1
}

fn carry_out(purge: wire::Purge, hooks: &dyn Hooks) -> wire::Purged {
    let (answers, failed) = match (&purge.what, hooks.purge(&purge)) {
        (Some(What::Nothing(_)), _) => (0, String::new()),
        (_, Ok(answers)) => (answers, String::new()),
        (_, Err(why)) => {
            tracing::warn!(number = purge.number, "a purge of the control plane is not carried out: {why}");
            (0, why)
        }
    };
    hooks.purged(&purge.log, purge.number);
    wire::Purged { log: purge.log, number: purge.number, round: purge.round, answers, failed }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        sync::{Mutex, PoisonError},
        time::SystemTime,
    };

    /// Notes what it was asked to purge; knows no tags.
    #[derive(Default)]
    struct Cache(Mutex<Vec<String>>, Mutex<Vec<bool>>);

    impl Hooks for Cache {
        fn connected(&self, _: bool) {}
        fn rejected(&self, _: &str, _: &str) {}
        fn updated(&self, _: &str) {}
        fn identity(&self, _: SystemTime) {}
        fn renewal(&self, _: bool) {}
        fn misses_purges(&self, misses: bool) {
            self.1.lock().unwrap_or_else(PoisonError::into_inner).push(misses);
        }
        fn purge(&self, purge: &wire::Purge) -> Result<u64, String> {
            let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            match &purge.what {
                Some(What::Url(url)) => {
                    seen.push(url.clone());
                    Ok(url.len() as u64)
                }
                Some(What::All(_)) => {
                    seen.push("all".to_owned());
                    Ok(1)
                }
                _ => Err("no such thing".to_owned()),
            }
        }
    }

    fn purge(number: u64, what: What) -> wire::Purge {
        wire::Purge { log: "a".into(), number, what: Some(what), ..wire::Purge::default() }
    }

    #[tokio::test]
    async fn purges_are_carried_out_in_their_order_and_the_last_is_known() {
        let (cache, mut purging) = (Arc::new(Cache::default()), Purging::default());
        let hooks: Arc<dyn Hooks> = cache.clone();
        assert_eq!(purging.last(), (String::new(), 0));
        for number in 1..=5 {
            purging.take(purge(number, What::Url("x".repeat(number as usize))), &hooks);
        }
        purging.take(purge(6, What::Tag("t".into())), &hooks);
        purging.take(purge(9, What::Nothing(true)), &hooks);
        let mut told = Vec::new();
        for _ in 0..7 {
            let purged = purging.next(&hooks).await;
            told.push((purged.number, purged.answers, purged.failed.is_empty()));
        }
        let expected = [
            (1, 1, true),
            (2, 2, true),
            (3, 3, true),
            (4, 4, true),
            (5, 5, true),
            (6, 0, false),
            (9, 0, true),
        ];
        assert_eq!(told, expected);
        assert_eq!(cache.0.lock().expect("not poisoned").len(), 5);
        assert_eq!(purging.last(), ("a".to_owned(), 9));
        // A further round of an earlier one takes nothing back; another list begins anew.
        purging.take(wire::Purge { round: 1, ..purge(5, What::All(true)) }, &hooks);
        assert_eq!(purging.next(&hooks).await.round, 1);
        assert_eq!(purging.last(), ("a".to_owned(), 9));
        purging.take(wire::Purge { log: "b".into(), ..purge(1, What::All(true)) }, &hooks);
        purging.next(&hooks).await;
        assert_eq!(purging.last(), ("b".to_owned(), 1));
    }

    #[tokio::test]
    async fn it_is_known_from_when_on_nothing_is_missing() {
        // What was carried out before, what the control plane says, what it sends then, and what is told.
        let newest = |log: &str, number| (log.to_owned(), number);
        for (last, newest, sent, told) in [
            (("a", 3), newest("a", 5), vec![("a", 4), ("a", 5)], vec![true, false]),
            (("a", 3), newest("a", 3), vec![("a", 3)], vec![false]),
            (("", 0), newest("a", 2), vec![("a", 1), ("a", 2)], vec![true, false]),
            (("", 0), newest("a", 0), vec![("a", 0)], vec![false]),
            // Another list: everything goes.
            (("b", 7), newest("a", 0), vec![("a", 0)], vec![true, false]),
            // A control plane that does not say.
            (("a", 3), newest("", 0), vec![("a", 4)], vec![false]),
            // More than was there then.
            (("a", 3), newest("a", 5), vec![("a", 4), ("a", 9), ("a", 10)], vec![true, false]),
            (("a", 3), newest("a", 5), vec![("a", 4)], vec![true]),
        ] {
            let cache = Arc::new(Cache::default());
            let hooks: Arc<dyn Hooks> = cache.clone();
            let mut purging = Purging::after((last.0.to_owned(), last.1));
            purging.newest(newest.clone(), &hooks);
            for (log, number) in &sent {
                let purge = wire::Purge { log: (*log).to_owned(), ..purge(*number, What::Nothing(true)) };
                purging.take(purge, &hooks);
                purging.next(&hooks).await;
            }
            assert_eq!(*cache.1.lock().expect("not poisoned"), told, "{last:?} {newest:?} {sent:?}");
        }
    }

    #[tokio::test]
    async fn too_many_become_one_of_everything() {
        let (cache, mut purging) = (Arc::new(Cache::default()), Purging::default());
        let hooks: Arc<dyn Hooks> = cache.clone();
        let most = MOST_WAITING as u64 + 1;
        for number in 1..=most + 1 {
            purging.take(purge(number, What::Url("u".into())), &hooks);
        }
        // The first was begun at once.
        assert_eq!(purging.next(&hooks).await.number, 1);
        assert_eq!(purging.next(&hooks).await.number, most + 1);
        assert_eq!(*cache.0.lock().expect("not poisoned"), ["u", "all"]);
    }
}
