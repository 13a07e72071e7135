//! What resources say of their queries (`No-Vary-Search`), remembered so that the keys of later requests follow it.

use super::key::NoVarySearch;
use std::{
    collections::HashMap,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
};

/// Resources remembered. Who has more of them than this pays with misses.
const MOST: usize = 1024;

/// What is known of queries under one policy.
#[derive(Default)]
pub(super) struct Queries {
    /// Almost nobody says anything: then a request asks one bit.
    any: AtomicBool,
    known: RwLock<HashMap<Box<[u8]>, Arc<NoVarySearch>, foldhash::fast::RandomState>>,
}

impl Queries {
    /// What a resource says, by what [`key::resource`](super::key::resource) makes of it.
    pub(super) fn of<T: AsRef<[u8]>>(&self, resource: impl FnOnce() -> T) -> Option<Arc<NoVarySearch>> {
        if !self.any.load(Ordering::Relaxed) {
            return None;
        }
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        known.get(resource().as_ref()).cloned()
    }

    /// Takes over what a resource's newest answer says.
    pub(super) fn learn<T: AsRef<[u8]>>(
        &self,
        resource: impl FnOnce() -> T,
        says: Option<NoVarySearch>,
    ) -> bool {
        if says.is_none() && !self.any.load(Ordering::Relaxed) {
            return false;
        }
        let resource = resource();
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        let news = match says {
            Some(says) => {
                if known.get(resource.as_ref()).is_some_and(|before| **before == says) {
                    return false;
                }
                if known.len() >= MOST && !known.contains_key(resource.as_ref()) {
                    known.clear();
                }
                known.insert(resource.as_ref().into(), Arc::new(says));
                true
            }
            None => known.remove(resource.as_ref()).is_some(),
        };
        self.any.store(!known.is_empty(), Ordering::Relaxed);
        news
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderMap, HeaderValue};

    fn says(value: &'static str) -> Option<NoVarySearch> {
        let mut headers = HeaderMap::new();
        headers.insert("no-vary-search", HeaderValue::from_static(value));
        NoVarySearch::of(&headers)
    }

    #[test]
    fn the_newest_answer_says_what_counts() {
        let queries = Queries::default();
        assert!(queries.of(|| -> &[u8] { unreachable!("nobody said anything") }).is_none());
        assert!(queries.learn(|| b"http://a/x", says("params")));
        assert!(!queries.learn(|| b"http://a/x", says("params")));
        assert_eq!(queries.of(|| b"http://a/x").as_deref(), says("params").as_ref());
        assert!(queries.of(|| b"http://a/y").is_none());
        assert!(queries.learn(|| b"http://a/x", None));
        assert!(queries.of(|| b"http://a/x").is_none());
    }

    #[test]
    fn invented_resources_do_not_fill_memory() {
        let queries = Queries::default();
        for n in 0..3 * MOST {
            queries.learn(|| format!("http://a/{n}"), says("params"));
        }
        assert!(queries.known.read().unwrap().len() <= MOST);
    }
}
