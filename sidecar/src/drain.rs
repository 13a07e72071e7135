//! Draining: how everything on one worker learns that no new work is taken.

use std::cell::Cell;
use tokio::sync::Notify;

/// One worker's drain signal. Worker-local, so that asking costs a load and no lock.
#[derive(Default)]
pub(crate) struct Drain {
    draining: Cell<bool>,
    notify: Notify,
}

impl Drain {
    /// True once draining has begun.
    pub(crate) fn is_draining(&self) -> bool {
        self.draining.get()
    }

    /// Begins draining; wakes everyone who waits for it.
    pub(crate) fn start(&self) {
        self.draining.set(true);
        self.notify.notify_waiters();
    }

    /// Returns once draining has begun.
    pub(crate) async fn started(&self) {
        let notified = self.notify.notified();
        if !self.draining.get() {
            notified.await;
        }
    }
}
