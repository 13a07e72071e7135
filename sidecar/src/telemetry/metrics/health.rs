//! What active health checks count: rare enough for one place that all workers write.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// How one question to an endpoint ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum HealthResult {
    /// It is well.
    Ok,
    /// It answered with a status that is not good.
    Status,
    /// It answered that it does not serve (gRPC).
    NotServing,
    /// It did not answer in time.
    Timeout,
    /// No connection came about.
    NoConnection,
    /// The connection broke, or what came is no answer.
    Broken,
}

impl HealthResult {
    /// All, in the order of their discriminants.
    pub(crate) const ALL: [Self; 6] =
        [Self::Ok, Self::Status, Self::NotServing, Self::Timeout, Self::NoConnection, Self::Broken];

    /// The label value.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Status => "status",
            Self::NotServing => "not_serving",
            Self::Timeout => "timeout",
            Self::NoConnection => "no_connection",
            Self::Broken => "broken",
        }
    }
}

/// The health of one service's endpoints.
#[derive(Default)]
pub(crate) struct Health {
    results: [AtomicU64; HealthResult::ALL.len()],
    checked: AtomicU64,
    well: AtomicU64,
}

impl Health {
    /// One question was answered, or not.
    pub(crate) fn count(&self, result: HealthResult) {
        if let Some(cell) = self.results.get(result as usize) {
            cell.fetch_add(1, Relaxed);
        }
    }

    /// An endpoint is asked from now on, and counts as well or not.
    pub(crate) fn begin(&self, well: bool) {
        self.checked.fetch_add(1, Relaxed);
        self.well.fetch_add(u64::from(well), Relaxed);
    }

    /// An endpoint that was well is not, or the other way round.
    pub(crate) fn turn(&self, well: bool) {
        if well {
            self.well.fetch_add(1, Relaxed);
        } else {
            self.well.fetch_sub(1, Relaxed);
        }
    }

    /// An endpoint is not asked any more.
    pub(crate) fn end(&self, well: bool) {
        self.checked.fetch_sub(1, Relaxed);
        self.well.fetch_sub(u64::from(well), Relaxed);
    }

    /// Questions so far, by how they ended.
    pub(super) fn results(&self) -> impl Iterator<Item = (HealthResult, u64)> {
        HealthResult::ALL.into_iter().zip(self.results.iter().map(|cell| cell.load(Relaxed)))
    }

    /// Endpoints that are well; `None` if none is asked.
    pub(crate) fn well(&self) -> Option<u64> {
        (self.checked.load(Relaxed) > 0).then(|| self.well.load(Relaxed))
    }
}
