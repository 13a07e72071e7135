//! Further places where stored answers are looked for before the origin is asked: the sidecar's disk and a Redis server.
//!
//! Only the one request that would go to the origin for all others looks there. No tier can fail a request: each has a
//! time to answer, is not asked while it fails, and what it brings is checked like anything that comes from outside.
//! Whatever is put into memory is given to the tiers in the background; a tier that is too slow gets less.
//!
//! A purge holds for tiers from the moment it holds for memory. Each keeps what was purged and when, by a count of its
//! own, and each answer in it says up to which purge it is known not to be meant.

mod breaker;
mod carried_out;
mod directory;
mod disk;
mod redis;
mod seam;
mod since;
mod thread;
mod wider;

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use disk::fuzz;
pub(crate) use redis::Secrets;
pub(crate) use wider::Wider;

use super::{entry::Entry, store::What};
use crate::telemetry::metrics;
use disk::Disk;
use http::HeaderMap;
use redis::Redis;
use std::{
    collections::BTreeMap,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};
use thread::Thread;
use tokio::sync::watch;
use weft_config::snapshot::{CacheRules, CacheTierRules};

/// How long a purge by hand waits until the tiers have it. It holds for this sidecar in any case.
const SETTLING: Duration = Duration::from_secs(2);

/// What is looked for.
#[derive(Clone, Copy)]
struct Asked<'a> {
    key: &'a [u8],
    request: &'a HeaderMap,
    now: u32,
    /// The store's last purge before anything is asked.
    epoch: u64,
    /// The largest body that is of use.
    most: u64,
}

/// What was found.
struct Found {
    entry: Entry,
}

impl Found {
    fn is_newer(&self, other: &Self) -> bool {
        self.entry.times().received > other.entry.times().received
    }

    /// Whether it may be given without asking anybody, as far as its age goes.
    fn is_fresh(&self, now: u32) -> bool {
        let times = self.entry.times();
        let age = times.initial_age.saturating_add(now.saturating_sub(times.received));
        age < times.lifetime
    }
}

/// The tiers of one policy.
pub(crate) struct Farther {
    redis: Option<Arc<Redis>>,
    disk: Option<Arc<Disk>>,
}

impl Farther {
    /// Looks for what a request asks for: something fresh, or else the newest that was found. `epoch` is the store's
    /// last purge before, `most` the largest body it keeps. Waits for no longer than each tier may take; never fails.
    pub(super) async fn look_up(
        &self,
        key: &[u8],
        request: &HeaderMap,
        now: u32,
        epoch: u64,
        most: u64,
    ) -> Option<Entry> {
        let asked = Asked { key, request, now, epoch, most };
        let mut best: Option<Found> = None;
        if let Some(disk) = &self.disk {
            best = disk.look_up(&asked).await;
        }
        if let Some(redis) = &self.redis
            && !best.as_ref().is_some_and(|found| found.is_fresh(now))
            && let Some(found) = redis.look_up(&asked).await
            && !best.as_ref().is_some_and(|best| best.is_newer(&found))
        {
            best = Some(found);
        }
        best.map(|found| found.entry)
    }

    /// Keeps what was just put into memory, sometime. What a tier brought goes into no other, and parts of answers stay
    /// where they can be put together.
    pub(super) fn keep(&self, entry: &Arc<Entry>) {
        if entry.brought().is_some() || entry.extent().is_some() {
            return;
        }
        if let Some(disk) = &self.disk {
            disk.keep(entry);
        }
        if let Some(redis) = &self.redis {
            redis.keep(entry);
        }
    }

    /// Everything under a URI, which is the first line of a key, is not to be given any more. Returns at once.
    pub(super) fn purge_uri(&self, uri: &[u8]) {
        let uri = wider::uri(uri);
        if let Some(disk) = &self.disk {
            disk.purge_uri(uri);
        }
        if let Some(redis) = &self.redis {
            redis.purge_uri(uri);
        }
    }

    /// Nothing that a purge by hand is for is to be given any more. Returns at once.
    pub(super) fn purge(&self, what: &What) {
        let wider = what.wider();
        if let Some(disk) = &self.disk {
            disk.purge(wider.clone());
        }
        if let Some(redis) = &self.redis {
            redis.purge(wider);
        }
    }

    /// Whether all purges are where a restart or another sidecar finds them.
    fn is_settled(&self) -> bool {
        self.disk.as_ref().is_none_or(|disk| disk.is_settled())
            && self.redis.as_ref().is_none_or(|redis| redis.is_settled())
    }
}

/// Waits until all purges are where a restart or another sidecar finds them, if that is soon. Not for a worker.
pub(super) fn settle(all: impl IntoIterator<Item = Arc<Farther>>) {
    let until = Instant::now() + SETTLING;
    for farther in all {
        while !farther.is_settled() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// All tiers of a sidecar, by policy. They outlive snapshots like the stores do.
#[derive(Default)]
pub(crate) struct Tiers {
    metrics: Arc<metrics::Tiers>,
    /// Where disk tiers are; `None` where there is no place for them.
    dir: Option<PathBuf>,
    secrets: Secrets,
    policies: Mutex<BTreeMap<Arc<str>, Policy>>,
    /// List and number of the control plane's last purge that was carried out.
    last_purge: Mutex<(String, u64)>,
    /// Whether there may be purges of the control plane that this sidecar has not been told of.
    misses: watch::Sender<bool>,
    /// Whether anything was purged since this process began: what is opened from now on was not told of it.
    purged: AtomicBool,
    thread: Thread,
}

struct Policy {
    rules: CacheTierRules,
    most: u64,
    farther: Option<Arc<Farther>>,
}

impl Tiers {
    /// `dir` is where disk tiers are.
    pub(crate) fn new(metrics: Arc<metrics::Tiers>, dir: Option<PathBuf>, secrets: Secrets) -> Self {
        let last_purge = Mutex::new(dir.as_deref().and_then(carried_out::read).unwrap_or_default());
        Self {
            metrics,
            dir,
            secrets,
            policies: Mutex::default(),
            last_purge,
            misses: watch::Sender::default(),
            purged: AtomicBool::new(false),
            thread: Thread::default(),
        }
    }

    /// There may be purges of the control plane that this sidecar has not been told of, or there are none.
    pub(super) fn misses_purges(&self, misses: bool) {
        self.misses.send_replace(misses);
    }

    /// Something is about to be purged in all places that there are.
    pub(super) fn purging(&self) {
        self.purged.store(true, Ordering::SeqCst);
    }

    /// List and number of the control plane's last purge that what is on disk knows of. Purges after it were missed.
    pub(super) fn last_purge(&self) -> (String, u64) {
        self.last_purge.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A purge of the control plane was carried out. What is on disk outlives this process, so this has to as well.
    pub(super) fn note_purge(&self, log: &str, number: u64) {
        let mut last = self.last_purge.lock().unwrap_or_else(PoisonError::into_inner);
        if *last.0 != *log || last.1 < number {
            *last = (log.to_owned(), number);
            self.write_last_purge(&last);
        }
    }

    fn write_last_purge(&self, last: &(String, u64)) {
        let Some(dir) = self.dir.as_ref().filter(|dir| dir.is_dir()) else { return };
        if let Err(error) = carried_out::write(dir, last) {
            // Then purges are carried out once more after a restart.
            tracing::warn!(%error, "it could not be noted which purge was the last");
        }
    }

    fn policies(&self) -> MutexGuard<'_, BTreeMap<Arc<str>, Policy>> {
        self.policies.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The tiers of a policy as it is now; those that did not change stay as they are.
    pub(super) fn of(&self, rules: &CacheRules) -> Option<Arc<Farther>> {
        let mut policies = self.policies();
        let before = policies.get(&rules.id);
        if let Some(before) = before
            && before.rules.redis == rules.tiers.redis
            && before.rules.disk == rules.tiers.disk
            && (before.most == rules.max_object_bytes || rules.tiers.disk.is_none())
        {
            return before.farther.clone();
        }
        if before.is_none() && rules.tiers.redis.is_none() && rules.tiers.disk.is_none() {
            return None;
        }
        let farther = self.change(before, rules);
        let policy =
            Policy { rules: rules.tiers.clone(), most: rules.max_object_bytes, farther: farther.clone() };
        policies.insert(rules.id.clone(), policy);
        farther
    }

    fn change(&self, before: Option<&Policy>, rules: &CacheRules) -> Option<Arc<Farther>> {
        let tiers = &rules.tiers;
        if tiers.redis.is_none() && tiers.disk.is_none() {
            return None;
        }
        let runtime = self.thread.runtime()?;
        let old = before.and_then(|before| before.farther.as_ref());
        let redis = tiers.redis.as_ref().map(|settings| {
            let same = old.and_then(|old| old.redis.clone()).filter(|old| old.settings() == settings);
            let (secrets, metrics) = (self.secrets.clone(), self.metrics.clone());
            same.unwrap_or_else(|| Redis::start(&rules.id, settings.clone(), secrets, metrics, &runtime))
        });
        let disk = tiers.disk.and_then(|bytes| {
            let size = disk::Size { bytes, most: rules.max_object_bytes };
            let same = old.and_then(|old| old.disk.clone()).filter(|old| old.size() == size);
            same.or_else(|| {
                let Some(dir) = &self.dir else {
                    tracing::warn!(policy = %rules.id, "the cache keeps nothing on disk without --state-dir");
                    return None;
                };
                let before = old.and_then(|old| old.disk.clone());
                self.note_for(dir);
                let fresh = before.is_none();
                let misses = self.misses.subscribe();
                let disk = Disk::start(&rules.id, dir, size, before, self.metrics.clone(), misses, &runtime);
                // An earlier process may have left something there which was purged meanwhile.
                if fresh && self.purged.load(Ordering::SeqCst) {
                    disk.purge(Wider::All);
                }
                Some(disk)
            })
        });
        Some(Arc::new(Farther { redis, disk }))
    }

    /// From now on it has to be known over restarts which purge was the last.
    fn note_for(&self, dir: &Path) {
        let last = self.last_purge.lock().unwrap_or_else(PoisonError::into_inner);
        if std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).is_ok() && last.1 > 0 {
            self.write_last_purge(&last);
        }
    }

    /// Ends the tiers of policies for which this does not hold any more, with what they keep here: nobody would tell
    /// them of purges.
    pub(super) fn retain(&self, stays: impl Fn(&Arc<str>) -> bool) {
        let mut gone = Vec::new();
        self.policies().retain(|policy, of| {
            let stays = stays(policy);
            if !stays {
                gone.extend(of.farther.as_ref().and_then(|farther| farther.disk.clone()));
            }
            stays
        });
        if !gone.is_empty()
            && let Some(runtime) = self.thread.runtime()
        {
            runtime.spawn(Disk::end_all(gone));
        }
    }
}

impl Drop for Tiers {
    fn drop(&mut self) {
        let policies = std::mem::take(&mut *self.policies());
        let disks = policies.values().filter_map(|policy| policy.farther.as_ref()?.disk.clone()).collect();
        drop(policies);
        self.thread.stop(Disk::close_all(disks));
    }
}

#[cfg(test)]
mod tests;
