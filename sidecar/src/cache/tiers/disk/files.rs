//! The files of a disk tier: where they lie, who may use them, and the crate that fills them.

use super::{
    Size,
    journal::{FILE_MAX, Journal, Write},
};
use crate::cache::{seconds_now, tiers::directory::place};
use anyhow::{Context, Result, bail};
use bytes::Bytes;
use foyer::{
    BlockEngineConfig, Code, DeviceBuilder, FifoPicker, FsDeviceBuilder, HybridCache, HybridCacheBuilder,
    HybridCachePolicy, Load, RecoverMode,
};
use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{Read, Write as _},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// What is read and written at once at least.
const PAGE: u64 = 4096;
/// What an answer takes beside its body at most: fields, trailers, and what packing adds.
const HEAD: u64 = 192 * 1024;
/// Files, more or less: what is freed at once is one of them.
const FILES: u64 = 256;
const FILES_MIN: u64 = 8;
/// How long another use of the same folder is waited for.
const LOCKING: Duration = Duration::from_secs(3);
/// Bytes that wait in memory to be written.
const BUFFER_MIN: u64 = 1 << 20;

/// A value as it lies on disk. A length that is wrong takes no memory.
#[derive(Clone, Debug)]
struct Value(Bytes);

impl Code for Value {
    fn encode(&self, writer: &mut impl std::io::Write) -> foyer::Result<()> {
        let length = (self.0.len() as u32).to_le_bytes();
        writer.write_all(&length).and_then(|()| writer.write_all(&self.0)).map_err(foyer::Error::io_error)
    }

    fn decode(reader: &mut impl std::io::Read) -> foyer::Result<Self> {
        let mut length = [0; 4];
        reader.read_exact(&mut length).map_err(foyer::Error::io_error)?;
        let length = u32::from_le_bytes(length);
        let mut value = Vec::new();
        reader.take(u64::from(length)).read_to_end(&mut value).map_err(foyer::Error::io_error)?;
        Ok(Self(value.into()))
    }

    fn estimated_size(&self) -> usize {
        4 + self.0.len()
    }
}

/// The open files of a tier.
pub(super) struct Files {
    cache: HybridCache<u64, Value>,
    largest: usize,
    /// Held for as long as the files are used.
    _lock: File,
}

impl Files {
    /// What lies under a number.
    pub(super) async fn read(&self, number: u64) -> Result<Option<Bytes>> {
        match self.cache.storage().load(&number).await {
            Ok(Load::Entry { value, .. }) => Ok(Some(value.0)),
            Ok(Load::Piece { piece, .. }) => Ok(Some(piece.value().0.clone())),
            Ok(Load::Miss | Load::Throttled) => Ok(None),
            Err(error) => Err(anyhow::anyhow!("cannot read: {error}")),
        }
    }

    /// Puts something under a number, soon.
    pub(super) fn write(&self, number: u64, bytes: Bytes) {
        let writer = self.cache.storage_writer(number);
        drop(writer.force().insert(Value(bytes)));
    }

    pub(super) fn fits(&self, bytes: usize) -> bool {
        bytes <= self.largest
    }

    /// Bytes written so far.
    pub(super) fn written(&self) -> usize {
        self.cache.statistics().disk_write_bytes()
    }

    /// Waits until everything is written.
    pub(super) async fn close(&self) {
        if let Err(error) = self.cache.close().await {
            tracing::debug!(%error, "the cache's disk was not closed well");
        }
    }
}

/// Where a policy's files are.
#[derive(Clone)]
pub(super) struct Folder {
    path: PathBuf,
    size: Size,
}

impl Folder {
    pub(super) fn new(dir: &Path, policy: &str, size: Size) -> Self {
        let name: String =
            place(&[policy.as_bytes()])[..8].iter().map(|byte| format!("{byte:02x}")).collect();
        Self { path: dir.join(name), size }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    fn journal(&self) -> PathBuf {
        self.path.join("purges")
    }

    /// How large each file is: what is largest fits, and there are enough of them.
    fn block(&self) -> u64 {
        let wanted = (self.size.most + HEAD).max(self.size.bytes / FILES);
        let most = self.size.bytes / FILES_MIN;
        (wanted.min(most) / PAGE * PAGE).clamp(16 * PAGE, 1 << 30)
    }

    fn data(&self) -> PathBuf {
        self.path.join(format!("{}-{}", self.size.bytes, self.block()))
    }

    /// Opens what is there, or begins anew.
    pub(super) async fn open(&self) -> Result<(Files, Journal)> {
        let folder = self.clone();
        let (lock, journal) = tokio::task::spawn_blocking(move || folder.prepare()).await??;
        let block = self.block();
        let buffer = (2 * (block.min(self.size.most + HEAD))).max(BUFFER_MIN).next_multiple_of(PAGE) as usize;
        let device = FsDeviceBuilder::new(self.data())
            .with_capacity(self.size.bytes as usize)
            .build()
            .map_err(|error| anyhow::anyhow!("{error}"))?;
        let engine = BlockEngineConfig::<u64, Value, _>::new(device)
            .with_block_size(block as usize)
            .with_indexer_shards(8)
            .with_recover_concurrency(2)
            .with_buffer_pool_size(buffer)
            .with_submit_queue_size_threshold(2 * buffer)
            // What was replaced lies in an older file than what replaced it, and goes first: it never comes back.
            .with_eviction_pickers(vec![Box::<FifoPicker>::default()]);
        let cache = HybridCacheBuilder::new()
            .with_name("weft")
            .with_policy(HybridCachePolicy::WriteOnInsertion)
            .memory(1)
            .with_shards(1)
            .storage()
            .with_engine_config(engine)
            .with_recover_mode(RecoverMode::Quiet)
            .build()
            .await
            .map_err(|error| anyhow::anyhow!("{error}"))?;
        let largest = (block - 4 * PAGE) as usize;
        Ok((Files { cache, largest, _lock: lock }, journal))
    }

    /// Makes the folder, sees to it that nobody else uses it, and reads the journal.
    fn prepare(&self) -> Result<(File, Journal)> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.path)?;
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(self.path.join("lock"))?;
        let until = Instant::now() + LOCKING;
        loop {
            match lock.try_lock() {
                Ok(()) => break,
                // The process before may be about to end, or what this one had under the same policy.
                Err(TryLockError::WouldBlock) if Instant::now() < until => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                Err(TryLockError::WouldBlock) => {
                    bail!("another sidecar uses it; give each a --state-dir of its own")
                }
                Err(TryLockError::Error(error)) => return Err(error.into()),
            }
        }
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let boot = boot.trim();
        let read = self.read_journal().and_then(|file| Journal::read(&file, boot, seconds_now()));
        let data = self.data();
        let kept = read.is_some();
        for other in fs::read_dir(&self.path)? {
            let other = other?.path();
            if other.is_dir() && (other != data || !kept) {
                fs::remove_dir_all(&other)
                    .with_context(|| format!("cannot take away {}", other.display()))?;
            }
        }
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&data)?;
        let journal = read.unwrap_or_else(|| Journal::new(fastrand::u64(1..), boot, seconds_now()));
        Ok((lock, journal))
    }

    fn read_journal(&self) -> Option<Vec<u8>> {
        let mut file = Vec::new();
        let journal = File::open(self.journal()).ok()?;
        journal.take(FILE_MAX).read_to_end(&mut file).ok()?;
        Some(file)
    }

    /// Writes to the journal, and sees to it that it is on the disk.
    pub(super) async fn write_journal(&self, write: Write) -> Result<()> {
        let path = self.journal();
        let written = tokio::task::spawn_blocking(move || -> std::io::Result<()> {
            match write {
                Write::More(more) => {
                    let mut file = OpenOptions::new().append(true).open(&path)?;
                    file.write_all(&more)?;
                    file.sync_data()
                }
                Write::Whole(whole) => {
                    let beside = path.with_extension("new");
                    let mut file = OpenOptions::new()
                        .create(true)
                        .truncate(true)
                        .write(true)
                        .mode(0o600)
                        .open(&beside)?;
                    file.write_all(&whole)?;
                    file.sync_data()?;
                    fs::rename(&beside, &path)
                }
            }
        });
        written.await?.context("cannot write the journal of purges")
    }

    /// Sees to it that no process looks at what is here any more.
    pub(super) fn forget(&self) {
        // Either is enough.
        let _ = fs::remove_file(self.journal());
        let _ = fs::remove_dir_all(self.data());
    }
}
