//! What the guards of a service tell: breakers, ejection, retry budget.

use super::{BreakerPosition, BreakerScope, EjectionCause};
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};

/// Numbers of one service that change rarely: whichever worker sees it writes them.
pub(crate) struct Guarded {
    /// The worst position by scope; [`ABSENT`] where there is no breaker.
    breakers: [AtomicU8; BreakerScope::ALL.len()],
    moves: [AtomicU64; BreakerPosition::ALL.len()],
    ejections: [AtomicU64; EjectionCause::ALL.len()],
    ejected: AtomicU64,
    /// The bits of a float; not a number before there is a guard.
    budget: AtomicU64,
}

/// In place of a breaker's position.
const ABSENT: u8 = u8::MAX;

impl Default for Guarded {
    fn default() -> Self {
        Self {
            breakers: std::array::from_fn(|_| AtomicU8::new(ABSENT)),
            moves: Default::default(),
            ejections: Default::default(),
            ejected: AtomicU64::new(0),
            budget: AtomicU64::new(f64::NAN.to_bits()),
        }
    }
}

impl Guarded {
    /// A breaker of the service or of one of its endpoints moved.
    pub(crate) fn breaker_moved(&self, to: BreakerPosition) {
        self.moves[to as usize].fetch_add(1, Relaxed);
    }

    /// Where the breaker stands (of endpoints: the worst); `None` where there is none.
    pub(crate) fn set_breaker(&self, scope: BreakerScope, position: Option<BreakerPosition>) {
        self.breakers[scope as usize].store(position.map_or(ABSENT, |p| p as u8), Relaxed);
    }

    /// An endpoint was ejected.
    pub(crate) fn ejected(&self, cause: EjectionCause) {
        self.ejections[cause as usize].fetch_add(1, Relaxed);
    }

    /// How many endpoints are ejected now.
    pub(crate) fn set_ejected(&self, count: usize) {
        self.ejected.store(count as u64, Relaxed);
    }

    /// How many retries the budget has left.
    pub(crate) fn set_budget(&self, remaining: f64) {
        self.budget.store(remaining.to_bits(), Relaxed);
    }

    /// The value of `weft_breaker_state`.
    pub(super) fn breaker(&self, scope: BreakerScope) -> Option<u8> {
        Some(self.breakers[scope as usize].load(Relaxed)).filter(|position| *position != ABSENT)
    }

    pub(super) fn moves(&self, to: BreakerPosition) -> u64 {
        self.moves[to as usize].load(Relaxed)
    }

    pub(super) fn ejections(&self, cause: EjectionCause) -> u64 {
        self.ejections[cause as usize].load(Relaxed)
    }

    /// Endpoints that are ejected and retries that are left; `None` for a service that nothing is sent to.
    pub(super) fn now(&self) -> Option<(u64, f64)> {
        let budget = f64::from_bits(self.budget.load(Relaxed));
        (!budget.is_nan()).then(|| (self.ejected.load(Relaxed), budget))
    }
}
