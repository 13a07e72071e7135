//! What the sidecars of one service ask each other for their caches: rare enough for one place that all workers write.

use super::{Metrics, families::Family};
use prometheus::proto::MetricFamily;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// What came of asking a sibling.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum SiblingAsked {
    /// Its answer was taken.
    Answered,
    /// Nothing came from it in time.
    Timeout,
    /// It said that it was at work, and was not through in time.
    Slow,
    /// It could not be reached, or the connection broke.
    Failed,
    /// It does not answer this sidecar.
    Refused,
    /// It does not know what is meant.
    Unknown,
    /// What it answered is an error of its own.
    Error,
    /// It should have been asked, but failed lately.
    LeftOut,
}

impl SiblingAsked {
    /// All, in the order of their discriminants.
    const NAMES: [&str; 8] =
        ["answered", "timeout", "slow", "failed", "refused", "unknown", "error", "left_out"];
}

/// What came of being asked by a sibling.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum SiblingServed {
    /// It got an answer.
    Answered,
    /// It asked for what cannot be found here.
    Unknown,
    /// Whoever asked is no sibling.
    Stranger,
}

impl SiblingServed {
    /// All, in the order of their discriminants.
    const NAMES: [&str; 3] = ["answered", "unknown", "stranger"];
}

/// What siblings asked each other.
#[derive(Default)]
pub(super) struct Siblings {
    asked: [AtomicU64; SiblingAsked::NAMES.len()],
    served: [AtomicU64; SiblingServed::NAMES.len()],
}

impl Metrics {
    /// A sibling was asked, or should have been.
    pub(crate) fn sibling_asked(&self, result: SiblingAsked) {
        self.siblings.asked[result as usize].fetch_add(1, Relaxed);
    }

    /// A sibling asked, or somebody else did as if he were one.
    pub(crate) fn sibling_served(&self, result: SiblingServed) {
        self.siblings.served[result as usize].fetch_add(1, Relaxed);
    }
}

impl Siblings {
    pub(super) fn collect(&self, out: &mut Vec<MetricFamily>) {
        let mut asked = Family::counter(
            "weft_cache_siblings_asked_total",
            "Questions to the sibling that a key belongs to, by what came of them.",
        );
        for (result, count) in SiblingAsked::NAMES.into_iter().zip(&self.asked) {
            asked.sample(&[("result", result)], count.load(Relaxed) as f64);
        }
        asked.done(out);
        let mut served = Family::counter(
            "weft_cache_siblings_served_total",
            "Questions of siblings, by what came of them; of a stranger: refused.",
        );
        for (result, count) in SiblingServed::NAMES.into_iter().zip(&self.served) {
            served.sample(&[("result", result)], count.load(Relaxed) as f64);
        }
        served.done(out);
    }
}
