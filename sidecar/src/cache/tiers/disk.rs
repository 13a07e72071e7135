//! The sidecar's disk as a second, larger place for what it keeps, which is still there after a restart.
//!
//! What is stored lies in files of one size, which are filled one after the other and emptied the oldest first; beside
//! them a journal of purges. Where anything is wrong with either, it begins anew: it is a cache.

mod files;
mod journal;

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use journal::fuzz;

use super::{
    Asked, Found,
    breaker::Breaker,
    directory::{Directory, Place, place},
    wider::Wider,
};
use crate::{
    cache::{
        entry::{
            Entry,
            packed::{self, Form},
        },
        seconds_now,
    },
    telemetry::metrics::{Given, Looked, Tier, Tiers},
};
use arc_swap::ArcSwapOption;
use bytes::Bytes;
use files::{Files, Folder};
use journal::Journal;
use std::{
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{
    runtime::Handle,
    sync::{Notify, mpsc, watch},
    time::timeout,
};

/// How long a look-up may take. A disk that is slower than most origins is no help.
const LOOKING: Duration = Duration::from_millis(100);
/// Look-ups at once; more are not waited for.
const LOOKING_MAX: usize = 64;
/// Answers that wait to be written, and their bytes.
const WAITING_MAX: usize = 256;
const WAITING_BYTES: usize = 8 << 20;
/// An answer that was on its way for longer is not kept: what it might have missed may be forgotten.
const UNDER_WAY_MAX: u32 = 1800;
/// Purges that wait for the files to be opened; beyond that everything is purged.
const EARLY_MAX: usize = 1024;
/// For how long what an earlier process left is not given because the control plane has not said yet what was purged
/// meanwhile.
const HELD_MAX: Duration = Duration::from_secs(10);
/// How often it is looked whether what was given was written, and how often a failure is logged.
const CHECKING: Duration = Duration::from_secs(10);
const COMPLAINING: Duration = Duration::from_secs(60);

/// What a disk tier may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Size {
    pub(super) bytes: u64,
    /// The largest body.
    pub(super) most: u64,
}

/// The disk of one policy.
pub(super) struct Disk {
    size: Size,
    metrics: Arc<Tiers>,
    files: ArcSwapOption<Files>,
    purges: Mutex<Purges>,
    breaker: Mutex<Breaker>,
    /// True once nothing is to be looked for or kept any more.
    over: AtomicBool,
    /// True if nothing of it is to be found again.
    unwanted: AtomicBool,
    away: AtomicBool,
    /// True while something may have been purged of which nobody has told this sidecar.
    held: AtomicBool,
    looking: AtomicUsize,
    waiting: Mutex<Option<mpsc::Sender<Arc<Entry>>>>,
    waiting_bytes: AtomicUsize,
    /// Something is to be written into the journal.
    wake: Arc<Notify>,
    complained: Mutex<Option<Instant>>,
}

/// The purges: before the journal is read, what there was meanwhile.
#[derive(Default)]
struct Purges {
    journal: Option<Journal>,
    early: Vec<Early>,
    /// How many were made, and how many are in the file.
    made: u64,
    written: u64,
}

/// What there is to do.
enum Next {
    /// Something is to be written, or nothing ever again.
    Given(Option<Arc<Entry>>),
    /// The journal has news.
    Purged,
    /// What was purged is known, or nobody says so.
    Told,
}

enum Early {
    Uri(Box<[u8]>),
    Wide(Wider),
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The number of a place: what is there says itself what it is, so two with one number only push each other out.
fn number(key: &[u8], selector: &[u8]) -> u64 {
    let place: Place = if selector.is_empty() { place(&[key]) } else { place(&[key, selector]) };
    u64::from_le_bytes([place[0], place[1], place[2], place[3], place[4], place[5], place[6], place[7]])
}

impl Disk {
    /// Begins to open what is there, on `runtime`, once `before` is closed.
    pub(super) fn start(
        policy: &str,
        dir: &Path,
        size: Size,
        before: Option<Arc<Self>>,
        metrics: Arc<Tiers>,
        misses: watch::Receiver<bool>,
        runtime: &Handle,
    ) -> Arc<Self> {
        let (waiting, queue) = mpsc::channel(WAITING_MAX);
        let disk = Arc::new(Self {
            size,
            metrics,
            files: ArcSwapOption::empty(),
            purges: Mutex::default(),
            breaker: Mutex::default(),
            over: AtomicBool::new(false),
            unwanted: AtomicBool::new(false),
            away: AtomicBool::new(false),
            held: AtomicBool::new(*misses.borrow()),
            looking: AtomicUsize::new(0),
            waiting: Mutex::new(Some(waiting)),
            waiting_bytes: AtomicUsize::new(0),
            wake: Arc::default(),
            complained: Mutex::default(),
        });
        disk.metrics.used(Tier::Disk, true);
        disk.set_away(true);
        let folder = Folder::new(dir, policy, size);
        runtime.spawn(Self::attend(Arc::downgrade(&disk), disk.wake.clone(), queue, folder, before, misses));
        disk
    }

    pub(super) fn size(&self) -> Size {
        self.size
    }

    /// Looks for what a request asks for.
    pub(super) async fn look_up(&self, asked: &Asked<'_>) -> Option<Found> {
        let out_of_use = || self.over.load(Ordering::Relaxed) || self.held.load(Ordering::Relaxed);
        let files = self.files.load_full().filter(|_| !out_of_use());
        let looking = self.looking.fetch_add(1, Ordering::Relaxed);
        let _place = Looking(&self.looking);
        let files = files.filter(|_| looking < LOOKING_MAX && locked(&self.breaker).may_try(Instant::now()));
        let Some(files) = files else {
            self.metrics.looked(Tier::Disk, Looked::Skipped);
            return None;
        };
        let (came, found) = match timeout(LOOKING, self.look(&files, asked)).await {
            Ok(Ok(Ok(found))) => (Looked::Hit, Some(found)),
            Ok(Ok(Err(why))) => (why, None),
            Ok(Err(error)) => {
                self.complain(&error);
                (Looked::Error, None)
            }
            Err(_) => (Looked::Timeout, None),
        };
        self.metrics.looked(Tier::Disk, came);
        let mut breaker = locked(&self.breaker);
        match came {
            Looked::Error | Looked::Timeout => {
                if breaker.failed(Instant::now()) {
                    self.set_away(true);
                }
            }
            _ => {
                if breaker.succeeded() {
                    self.set_away(false);
                }
            }
        }
        found
    }

    /// Reads what is there. The inner error says why nothing of it is of use.
    async fn look(&self, files: &Files, asked: &Asked<'_>) -> anyhow::Result<Result<Found, Looked>> {
        let Some(bytes) = self.read(files, number(asked.key, b"")).await? else {
            return Ok(Err(Looked::Miss));
        };
        let Some((form, content)) = packed::open(&bytes) else { return Ok(Err(Looked::Invalid)) };
        if form == Form::Entry {
            return Ok(self.judge(asked, content, b""));
        }
        let Some(directory) = Directory::read(content) else { return Ok(Err(Looked::Miss)) };
        let mut best: Result<Found, Looked> = Err(Looked::Miss);
        for selector in directory.selectors(asked.request) {
            let Some(bytes) = self.read(files, number(asked.key, &selector)).await? else { continue };
            let found = match packed::open(&bytes) {
                Some((Form::Entry, content)) => self.judge(asked, content, &selector),
                _ => Err(Looked::Invalid),
            };
            match found {
                Ok(found) if best.as_ref().is_ok_and(|best| best.is_newer(&found)) => {}
                Ok(found) => best = Ok(found),
                Err(why) => best = best.or(Err(why)),
            }
        }
        Ok(best)
    }

    async fn read(&self, files: &Files, number: u64) -> anyhow::Result<Option<Bytes>> {
        let bytes = files.read(number).await?;
        if let Some(bytes) = &bytes {
            self.metrics.read(Tier::Disk, bytes.len());
        }
        Ok(bytes)
    }

    fn judge(&self, asked: &Asked<'_>, content: &[u8], selector: &[u8]) -> Result<Found, Looked> {
        let unpacked = packed::unpack(content, asked.key, asked.most, asked.epoch, Tier::Disk);
        // Two keys with one number, or another form of this sidecar.
        let (entry, stamp) = unpacked.ok_or(Looked::Miss)?;
        if entry.selector() != selector || entry.times().useful_until < asked.now {
            return Err(Looked::Miss);
        }
        let purges = locked(&self.purges);
        match &purges.journal {
            Some(journal) if !journal.purged(stamp, &entry) => Ok(Found { entry }),
            _ => Err(Looked::Purged),
        }
    }

    /// Gives an answer to be kept, sometime.
    pub(super) fn keep(&self, entry: &Arc<Entry>) {
        let length = entry.length();
        let room = self.waiting_bytes.load(Ordering::Relaxed) + length <= WAITING_BYTES.max(2 * length);
        self.waiting_bytes.fetch_add(length, Ordering::Relaxed);
        let taken = room
            && self.files.load().is_some()
            && locked(&self.waiting).as_ref().is_some_and(|waiting| waiting.try_send(entry.clone()).is_ok());
        if !taken {
            self.waiting_bytes.fetch_sub(length, Ordering::Relaxed);
            self.metrics.given(Tier::Disk, Given::Dropped);
        }
    }

    async fn write(&self, entry: &Entry) -> Given {
        let Some(files) = self.files.load_full() else { return Given::Dropped };
        let (times, now) = (*entry.times(), seconds_now());
        if times.useful_until <= now || times.requested.saturating_add(UNDER_WAY_MAX) < now {
            return Given::Purged;
        }
        let stamp = locked(&self.purges).journal.as_ref().and_then(|journal| journal.stamp(times.requested));
        let Some(stamp) = stamp else { return Given::Purged };
        let Some(bytes) = packed::pack(entry, stamp).filter(|bytes| files.fits(bytes.len())) else {
            return Given::Dropped;
        };
        let (key, selector) = (entry.key_text(), entry.selector());
        if !selector.is_empty() {
            let at = number(key, b"");
            let there = match timeout(LOOKING * 10, files.read(at)).await {
                Ok(Ok(there)) => there,
                Ok(Err(_)) | Err(_) => return Given::Error,
            };
            let directory = match there.as_deref().and_then(packed::open) {
                Some((Form::Directory, content)) => Directory::read(content),
                _ => None,
            };
            if let Some(changed) = directory.unwrap_or_default().with(selector) {
                files.write(at, changed.to_bytes().into());
            }
        }
        self.metrics.written(Tier::Disk, bytes.len());
        files.write(number(key, selector), bytes.into());
        Given::Kept
    }

    /// Nothing under this URI is given any more.
    pub(super) fn purge_uri(&self, uri: &[u8]) {
        let mut purges = locked(&self.purges);
        purges.made += 1;
        match &mut purges.journal {
            Some(journal) => journal.purge_uri(uri, seconds_now()),
            None => purges.early(Early::Uri(uri.into())),
        }
        drop(purges);
        self.wake.notify_one();
    }

    /// Nothing that a purge by hand is for is given any more.
    pub(super) fn purge(&self, wider: Wider) {
        let mut purges = locked(&self.purges);
        purges.made += 1;
        match &mut purges.journal {
            Some(journal) => journal.purge(wider, seconds_now()),
            None => purges.early(Early::Wide(wider)),
        }
        drop(purges);
        self.wake.notify_one();
    }

    #[cfg(test)]
    pub(super) fn is_open(&self) -> bool {
        self.files.load().is_some()
    }

    /// Whether all purges are on disk, or nothing is.
    pub(super) fn is_settled(&self) -> bool {
        let purges = locked(&self.purges);
        purges.written >= purges.made || self.over.load(Ordering::Relaxed)
    }

    fn set_away(&self, away: bool) {
        if self.away.swap(away, Ordering::Relaxed) != away {
            self.metrics.away(Tier::Disk, away);
        }
    }

    /// Says what is wrong, but not again and again.
    fn complain(&self, error: &anyhow::Error) {
        let (mut complained, now) = (locked(&self.complained), Instant::now());
        if complained.is_none_or(|before| now.duration_since(before) >= COMPLAINING) {
            *complained = Some(now);
            tracing::warn!("the cache's disk fails: {error:#}; the cache does without");
        }
    }

    /// Gives the disk up: it is neither read nor written any more.
    fn give_up(&self, folder: &Folder, error: &anyhow::Error) {
        self.complain(error);
        self.over.store(true, Ordering::Relaxed);
        self.files.store(None);
        self.metrics.given(Tier::Disk, Given::Error);
        self.set_away(true);
        // What is there must not be found by the next process: it would not know of the purges to come.
        folder.forget();
    }

    /// Opens the files, then writes what is to be written until the tier is not used any more.
    async fn attend(
        weak: Weak<Self>,
        wake: Arc<Notify>,
        mut queue: mpsc::Receiver<Arc<Entry>>,
        folder: Folder,
        before: Option<Arc<Self>>,
        mut misses: watch::Receiver<bool>,
    ) {
        if let Some(before) = before {
            before.close().await;
        }
        let opened = folder.open().await;
        let Some(disk) = weak.upgrade() else { return };
        let (files, mut journal) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                let in_use = anyhow::Error::context(error, format!("cannot use {}", folder.path().display()));
                disk.complain(&in_use);
                disk.over.store(true, Ordering::Relaxed);
                disk.metrics.given(Tier::Disk, Given::Error);
                return;
            }
        };
        {
            let mut purges = locked(&disk.purges);
            for early in std::mem::take(&mut purges.early) {
                match early {
                    Early::Uri(uri) => journal.purge_uri(&uri, seconds_now()),
                    Early::Wide(wider) => journal.purge(wider, seconds_now()),
                }
            }
            purges.journal = Some(journal);
        }
        if let Err(error) = disk.write_journal(&folder).await {
            return disk.give_up(&folder, &error);
        }
        disk.files.store(Some(Arc::new(files)));
        let mut held = disk.held.load(Ordering::Relaxed);
        disk.set_away(held);
        drop(disk);
        let mut told = std::pin::pin!(timeout(HELD_MAX, misses.wait_for(|misses| !*misses)));
        let (mut given, mut written, mut checked) = (0_u64, 0, Instant::now());
        loop {
            let next = timeout(CHECKING, async {
                tokio::select! {
                    entry = queue.recv() => Next::Given(entry),
                    () = wake.notified() => Next::Purged,
                    _ = &mut told, if held => Next::Told,
                }
            });
            let next = next.await;
            let Some(disk) = weak.upgrade() else { break };
            if let Err(error) = disk.write_journal(&folder).await {
                return disk.give_up(&folder, &error);
            }
            match next {
                Ok(Next::Given(Some(entry))) => {
                    disk.waiting_bytes.fetch_sub(entry.length(), Ordering::Relaxed);
                    let came = disk.write(&entry).await;
                    given += u64::from(came == Given::Kept);
                    disk.metrics.given(Tier::Disk, came);
                }
                Ok(Next::Given(None)) => break,
                Ok(Next::Told) => {
                    held = false;
                    disk.held.store(false, Ordering::Relaxed);
                    disk.set_away(false);
                }
                Ok(Next::Purged) | Err(_) => {}
            }
            if checked.elapsed() >= CHECKING {
                checked = Instant::now();
                let now = disk.files.load().as_ref().map_or(0, |files| files.written());
                if given > 0 && now == written {
                    disk.metrics.given(Tier::Disk, Given::Error);
                    disk.complain(&anyhow::anyhow!("nothing of what it was given was written"));
                }
                (given, written) = (0, now);
            }
        }
        // Whoever closes it does the rest.
        if let Some(disk) = weak.upgrade() {
            disk.finish(&folder).await;
        }
    }

    async fn write_journal(&self, folder: &Folder) -> anyhow::Result<()> {
        loop {
            let (made, write) = {
                let mut purges = locked(&self.purges);
                (purges.made, purges.journal.as_mut().and_then(Journal::next_write))
            };
            if let Some(write) = write {
                folder.write_journal(write).await?;
            }
            let mut purges = locked(&self.purges);
            purges.written = made;
            if purges.made == made {
                return Ok(());
            }
        }
    }

    /// Takes nothing more in, waits until what was taken is written and notes that nothing is missing.
    async fn finish(&self, folder: &Folder) {
        let files = self.files.swap(None);
        let Some(files) = files else { return };
        files.close().await;
        if self.unwanted.load(Ordering::Relaxed) {
            folder.forget();
            drop(files);
            self.over.store(true, Ordering::Relaxed);
            return;
        }
        let closing = locked(&self.purges).journal.as_ref().map(Journal::closing);
        let closed = match (self.write_journal(folder).await, closing) {
            (Ok(()), Some(closing)) => folder.write_journal(journal::Write::More(closing)).await,
            (done, _) => done,
        };
        if let Err(error) = closed {
            self.complain(&error);
        }
        // With it goes the lock, for which the next one may wait.
        drop(files);
        self.over.store(true, Ordering::Relaxed);
    }

    /// Ends it. Returns once it has, or after a while.
    async fn close(&self) {
        drop(locked(&self.waiting).take());
        for _ in 0..200 {
            if self.over.load(Ordering::Relaxed) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Ends all of these, and takes away what they keep.
    pub(super) async fn end_all(disks: Vec<Arc<Self>>) {
        for disk in disks {
            disk.unwanted.store(true, Ordering::Relaxed);
            disk.close().await;
        }
    }

    /// Ends all of these.
    pub(super) async fn close_all(disks: Vec<Arc<Self>>) {
        for disk in disks {
            disk.close().await;
        }
    }
}

impl Purges {
    fn early(&mut self, early: Early) {
        if self.early.len() >= EARLY_MAX {
            self.early = vec![Early::Wide(Wider::All)];
        } else {
            self.early.push(early);
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.set_away(false);
        self.metrics.used(Tier::Disk, false);
    }
}

/// One of the look-ups that may be made at once.
struct Looking<'a>(&'a AtomicUsize);

impl Drop for Looking<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
