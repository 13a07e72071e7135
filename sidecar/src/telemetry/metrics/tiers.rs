//! What the further places of the response cache count: only requests that found nothing in memory come here, so all
//! workers write in one place.

use super::families::Family;
use prometheus::proto::MetricFamily;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};

/// A further place in which stored answers are looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Tier {
    /// A Redis server.
    Redis,
    /// The sidecar's own disk.
    Disk,
}

impl Tier {
    const ALL: [Self; 2] = [Self::Redis, Self::Disk];

    /// The label value.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Redis => "redis",
            Self::Disk => "disk",
        }
    }
}

/// What came of looking in a tier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Looked {
    /// Something was found that is of use.
    Hit,
    /// Nothing was.
    Miss,
    /// What was found was purged meanwhile.
    Purged,
    /// What was found is damaged or not what was looked for.
    Invalid,
    /// The tier failed.
    Error,
    /// The tier did not answer in time.
    Timeout,
    /// It was not asked: it failed too often, is not there yet, or is asked by as many as may be.
    Skipped,
}

impl Looked {
    const NAMES: [&str; 7] = ["hit", "miss", "purged", "invalid", "error", "timeout", "skipped"];
}

/// What came of giving an answer to a tier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Given {
    /// It was taken.
    Kept,
    /// It was not given: the tier is away, as much as may be waits for it, or it is too large.
    Dropped,
    /// It may have been purged while it came.
    Purged,
    /// The tier failed or was too slow.
    Error,
}

impl Given {
    const NAMES: [&str; 4] = ["kept", "dropped", "purged", "error"];
}

/// What came of connecting to a Redis server.
const CONNECTS: [&str; 7] = ["connected", "secret", "unreachable", "timeout", "tls", "refused", "error"];

/// One tier's numbers, over all policies.
#[derive(Default)]
struct Counts {
    looked: [AtomicU64; Looked::NAMES.len()],
    given: [AtomicU64; Given::NAMES.len()],
    read: AtomicU64,
    written: AtomicU64,
    failed_purges: AtomicU64,
    in_use: AtomicI64,
    away: AtomicI64,
}

/// Both tiers' numbers.
#[derive(Default)]
pub(crate) struct Tiers([Counts; Tier::ALL.len()], [AtomicU64; CONNECTS.len()]);

impl Tiers {
    fn of(&self, tier: Tier) -> &Counts {
        match tier {
            Tier::Redis => &self.0[0],
            Tier::Disk => &self.0[1],
        }
    }

    /// A look-up ended.
    pub(crate) fn looked(&self, tier: Tier, came: Looked) {
        self.of(tier).looked[came as usize].fetch_add(1, Relaxed);
    }

    /// An answer was given to a tier, or not.
    pub(crate) fn given(&self, tier: Tier, came: Given) {
        self.of(tier).given[came as usize].fetch_add(1, Relaxed);
    }

    /// So many bytes were read.
    pub(crate) fn read(&self, tier: Tier, bytes: usize) {
        self.of(tier).read.fetch_add(bytes as u64, Relaxed);
    }

    /// So many bytes were written.
    pub(crate) fn written(&self, tier: Tier, bytes: usize) {
        self.of(tier).written.fetch_add(bytes as u64, Relaxed);
    }

    /// A purge could not be told yet; it is tried again, and nothing it is for is given meanwhile.
    pub(crate) fn purge_failed(&self, tier: Tier) {
        self.of(tier).failed_purges.fetch_add(1, Relaxed);
    }

    /// A policy uses the tier from now on, or does not any more. It counts as away until it is said to be there.
    pub(crate) fn used(&self, tier: Tier, in_use: bool) {
        self.of(tier).in_use.fetch_add(if in_use { 1 } else { -1 }, Relaxed);
    }

    /// The tier of one policy is there, or away.
    pub(crate) fn away(&self, tier: Tier, away: bool) {
        self.of(tier).away.fetch_add(if away { 1 } else { -1 }, Relaxed);
    }

    /// A Redis server was tried to be connected to.
    pub(crate) fn connected(&self, came: &str) {
        if let Some(at) = CONNECTS.iter().position(|name| *name == came) {
            self.1[at].fetch_add(1, Relaxed);
        }
    }

    #[cfg(test)]
    pub(crate) fn look_ups(&self, tier: Tier, came: Looked) -> u64 {
        self.of(tier).looked[came as usize].load(Relaxed)
    }

    #[cfg(test)]
    pub(crate) fn gifts(&self, tier: Tier, came: Given) -> u64 {
        self.of(tier).given[came as usize].load(Relaxed)
    }

    pub(super) fn collect(&self, out: &mut Vec<MetricFamily>) {
        let mut looked = Family::counter(
            "weft_cache_tier_lookups_total",
            "Look-ups in a further place of the cache, by what came of them.",
        );
        let mut given = Family::counter(
            "weft_cache_tier_writes_total",
            "Answers that were to be kept in a further place of the cache, by what came of it.",
        );
        let mut bytes = Family::counter(
            "weft_cache_tier_bytes_total",
            "Bytes read from and written to a further place of the cache.",
        );
        let mut purges = Family::counter(
            "weft_cache_tier_purge_failures_total",
            "Attempts to tell a further place of the cache about a purge that failed and were made again.",
        );
        let mut away = Family::gauge(
            "weft_cache_tier_away",
            "CachePolicies whose further place is not asked because it is not there or failed too often, a number.",
        );
        let mut connects = Family::counter(
            "weft_cache_redis_connects_total",
            "Attempts to connect to a Redis server, by what came of them.",
        );
        for (name, count) in CONNECTS.into_iter().zip(&self.1) {
            if count.load(Relaxed) > 0 {
                connects.sample(&[("result", name)], count.load(Relaxed) as f64);
            }
        }
        for tier in Tier::ALL {
            let (counts, tier) = (self.of(tier), ("tier", tier.name()));
            for (name, count) in Looked::NAMES.into_iter().zip(&counts.looked) {
                if count.load(Relaxed) > 0 {
                    looked.sample(&[tier, ("result", name)], count.load(Relaxed) as f64);
                }
            }
            for (name, count) in Given::NAMES.into_iter().zip(&counts.given) {
                if count.load(Relaxed) > 0 {
                    given.sample(&[tier, ("result", name)], count.load(Relaxed) as f64);
                }
            }
            for (flow, count) in [("read", &counts.read), ("written", &counts.written)] {
                if count.load(Relaxed) > 0 {
                    bytes.sample(&[tier, ("flow", flow)], count.load(Relaxed) as f64);
                }
            }
            if counts.failed_purges.load(Relaxed) > 0 {
                purges.sample(&[tier], counts.failed_purges.load(Relaxed) as f64);
            }
            if counts.in_use.load(Relaxed) > 0 {
                away.sample(&[tier], counts.away.load(Relaxed).max(0) as f64);
            }
        }
        for family in [looked, given, bytes, purges, away, connects] {
            family.done(out);
        }
    }
}
