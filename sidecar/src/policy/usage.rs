//! What the request path and the subscription tell each other without messages: which services are in use, for the
//! price of one load, and which do not exist.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
};
use weft_config::identity::ServiceName;

/// One service's mark. Whoever holds it may mark it from any thread; it costs a store only once a minute, when the
/// sweep has taken the mark away.
#[derive(Debug, Default)]
pub(crate) struct Used(AtomicBool);

impl Used {
    /// Notes that the service is in use.
    pub(crate) fn mark(&self) {
        if !self.0.load(Ordering::Relaxed) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    /// True if it was used since the last sweep.
    pub(super) fn is_marked(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Takes the mark away and says whether there was one.
    pub(super) fn take(&self) -> bool {
        self.is_marked() && self.0.swap(false, Ordering::Relaxed)
    }
}

type Names<V> = RwLock<HashMap<ServiceName, V, foldhash::fast::RandomState>>;

/// Shared between the subscription and the workers; written only when a service comes or goes.
#[derive(Debug, Default)]
pub(super) struct Tables {
    usage: Names<Arc<Used>>,
    absent: RwLock<HashSet<ServiceName, foldhash::fast::RandomState>>,
}

impl Tables {
    /// The mark of a service; the same one for as long as the service is subscribed to.
    pub(super) fn usage(&self, service: &ServiceName) -> Option<Arc<Used>> {
        self.usage.read().unwrap_or_else(PoisonError::into_inner).get(service).cloned()
    }

    /// Marks a service if it is known.
    #[cfg(test)]
    pub(super) fn mark(&self, service: &ServiceName) {
        if let Some(used) = self.usage.read().unwrap_or_else(PoisonError::into_inner).get(service) {
            used.mark();
        }
    }

    /// The mark of a service, made if there is none.
    pub(super) fn subscribed(&self, service: &ServiceName) -> Arc<Used> {
        let mut table = self.usage.write().unwrap_or_else(PoisonError::into_inner);
        table.entry(service.clone()).or_default().clone()
    }

    /// Forgets a service.
    pub(super) fn unsubscribed(&self, service: &ServiceName) {
        self.usage.write().unwrap_or_else(PoisonError::into_inner).remove(service);
        self.set_absent(service, false);
    }

    /// True if the mesh said lately that there is no such service.
    pub(super) fn is_absent(&self, service: &ServiceName) -> bool {
        self.absent.read().unwrap_or_else(PoisonError::into_inner).contains(service)
    }

    /// Notes whether a service is known not to exist.
    pub(super) fn set_absent(&self, service: &ServiceName, absent: bool) {
        if self.is_absent(service) == absent {
            return;
        }
        let mut table = self.absent.write().unwrap_or_else(PoisonError::into_inner);
        if absent {
            table.insert(service.clone());
        } else {
            table.remove(service);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_taken_once() {
        let table = Tables::default();
        let name = ServiceName::new("shop", "cart");
        table.mark(&name);
        let used = table.subscribed(&name);
        assert!(!used.take(), "a mark on an unknown service is lost");
        table.mark(&name);
        assert!(used.take());
        assert!(!used.take());
    }
}
