//! Counts the open streams of one connection.

use std::{cell::Cell, rc::Rc};

/// The streams of a connection.
#[derive(Default)]
pub(super) struct Live {
    open: Cell<usize>,
    begun: Cell<u64>,
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
    }
}
