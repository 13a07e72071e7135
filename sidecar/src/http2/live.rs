//! Counts the open streams of one connection, and tells those who wait for one to end.

use std::{
    cell::{Cell, OnceCell},
    rc::Rc,
};
use tokio::sync::Notify;

/// The streams of a connection.
#[derive(Default)]
pub(super) struct Live {
    open: Cell<usize>,
    begun: Cell<u64>,
    freed: OnceCell<Rc<Freed>>,
}

/// Tells of the end of streams, on any of several connections.
#[derive(Default)]
pub(crate) struct Freed {
    waiting: Cell<usize>,
    notify: Notify,
}

impl Freed {
    /// Returns when a stream ends. One end wakes one who waits.
    pub(crate) async fn freed(&self) {
        let _waiting = Waiting::new(&self.waiting);
        self.notify.notified().await;
    }
}

struct Waiting<'a>(&'a Cell<usize>);

impl<'a> Waiting<'a> {
    fn new(count: &'a Cell<usize>) -> Self {
        count.set(count.get() + 1);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get().saturating_sub(1));
    }
}

/// One stream; counted until dropped.
pub(super) struct Open(Rc<Live>);

impl Live {
    /// How many are open.
    pub(super) fn open(&self) -> usize {
        self.open.get()
    }

    /// How many there ever were.
    pub(super) fn begun(&self) -> u64 {
        self.begun.get()
    }

    /// Tells `freed` of every stream that ends from now on.
    pub(super) fn tell(&self, freed: Rc<Freed>) {
        // A connection belongs to one pool for life.
        let _ = self.freed.set(freed);
    }

    /// Counts another.
    pub(super) fn begin(self: &Rc<Self>) -> Open {
        self.open.set(self.open.get() + 1);
        self.begun.set(self.begun.get() + 1);
        Open(self.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.set(self.0.open.get().saturating_sub(1));
        if let Some(freed) = self.0.freed.get()
            && freed.waiting.get() > 0
        {
            freed.notify.notify_one();
        }
    }
}
