//! Policy from a directory of YAML files, without a control plane: read, watched, and read again when it changes.

use super::{Files, IdentityFiles, compiling, subscription::Outward, subscription::stopping};
use crate::tls::StaticFiles;
use anyhow::Context;
use notify::{
    EventKind, RecommendedWatcher, RecursiveMode, Watcher,
    event::{AccessKind, AccessMode},
};
use std::{
    fs, io,
    io::Read,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use weft_config::{
    compile::{self, Caller},
    error::Severity,
    identity::ServiceName,
    policy::Policy,
    snapshot::Workload,
};

const MAX_FILES: usize = 10_000;
const MAX_FILE_BYTES: u64 = 4 * 1024 * 1024;
const MAX_ALL_BYTES: u64 = 256 * 1024 * 1024;
const MAX_DEPTH: usize = 16;
/// Files are read when nothing has happened for so long,
const QUIET: Duration = Duration::from_millis(150);
/// but no later than this after the first sign of a change.
const AT_LATEST: Duration = Duration::from_millis(600);
/// Looked at even without a sign: network file systems give none, and a watch can be refused or lost.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// What tells whether a file is another than before without reading it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Stamp {
    path: PathBuf,
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

/// Policy from files, and the identity beside it.
pub(super) struct FilePolicy {
    files: Files,
    own: ServiceName,
    caller: Caller,
    out: Outward,
    policy: Policy,
    workload: Option<Arc<Workload>>,
    /// The last thing that was published.
    version: Option<String>,
    stamps: Vec<Stamp>,
    identity_stamps: Vec<Stamp>,
    /// Why the directory cannot be read, while it cannot.
    problem: Option<String>,
    watcher: Option<RecommendedWatcher>,
    sign: mpsc::Sender<()>,
    signs: mpsc::Receiver<()>,
}

impl FilePolicy {
    /// Reads everything for the first time. Fails only if the identity's files are of no use: without them nothing
    /// would work, and nobody would see why.
    pub(super) fn start(files: Files, caller: Caller, out: Outward) -> anyhow::Result<Self> {
        let (sign, signs) = mpsc::channel(1);
        let mut this = Self {
            policy: Policy::new(out.tls.trust_domain()),
            files,
            own: ServiceName::new(caller.namespace.clone(), caller.workload.clone()),
            caller,
            out,
            workload: None,
            version: None,
            stamps: Vec::new(),
            identity_stamps: Vec::new(),
            problem: None,
            watcher: None,
            sign,
            signs,
        };
        if let Some(identity) = this.files.identity.clone() {
            this.identity_stamps = identity_stamps(&identity);
            this.load_identity(&identity).context("this workload's identity")?;
        }
        this.watch();
        this.read();
        Ok(this)
    }

    /// Follows the files until it is stopped.
    pub(super) async fn run(&mut self, mut stop: watch::Receiver<bool>) {
        loop {
            tokio::select! {
                () = stopping(&mut stop) => return,
                _ = self.signs.recv() => {
                    self.settle().await;
                    self.read();
                }
                () = tokio::time::sleep(LOOK_EVERY) => self.look(),
            }
        }
    }

    /// An editor's save is several events, and a tree is copied file by file: waits until it is over.
    async fn settle(&mut self) {
        let end = Instant::now() + AT_LATEST;
        while Instant::now() < end {
            let quiet = (Instant::now() + QUIET).min(end);
            if tokio::time::timeout_at(quiet, self.signs.recv()).await.is_err() {
                return;
            }
        }
    }

    /// Reads again if something is other than it was.
    fn look(&mut self) {
        if self.watcher.is_none() {
            self.watch();
        }
        match list(&self.files.directory) {
            Ok(stamps) if self.problem.is_none() && stamps == self.stamps => {}
            _ => self.read(),
        }
        if let Some(identity) = self.files.identity.clone() {
            let stamps = identity_stamps(&identity);
            if stamps != self.identity_stamps {
                match self.load_identity(&identity) {
                    Ok(()) => self.identity_stamps = stamps,
                    // Tried again at the next look: the files may be half written.
                    Err(error) => tracing::warn!("the identity in force stays: {error:#}"),
                }
            }
        }
    }

    fn watch(&mut self) {
        let sign = self.sign.clone();
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // Our own reading opens files too.
            let changes = event.is_ok_and(|event| match event.kind {
                EventKind::Access(kind) => kind == AccessKind::Close(AccessMode::Write),
                _ => true,
            });
            if changes {
                // Full: there is a sign already.
                let _ = sign.try_send(());
            }
        })
        .and_then(|mut watcher| {
            watcher.watch(&self.files.directory, RecursiveMode::Recursive)?;
            Ok(watcher)
        });
        match watcher {
            Ok(watcher) => self.watcher = Some(watcher),
            Err(error) => tracing::debug!(
                "{} cannot be watched ({error}); looking at it every {} s",
                self.files.directory.display(),
                LOOK_EVERY.as_secs()
            ),
        }
    }

    fn read(&mut self) {
        let read = list(&self.files.directory).and_then(|stamps| {
            let texts = stamps.iter().map(|stamp| &stamp.path);
            Ok((read_all(texts)?, stamps))
        });
        match read {
            Ok((texts, stamps)) => {
                self.problem = None;
                self.stamps = stamps;
                self.take(texts);
            }
            Err(problem) => {
                if self.problem.as_ref() != Some(&problem) {
                    tracing::error!("{problem}; the policy in force stays as it is");
                }
                self.problem = Some(problem);
            }
        }
        self.tell_source();
    }

    fn take(&mut self, texts: Vec<(String, String)>) {
        let change = self.policy.replace_all(texts);
        for diagnostic in &change.diagnostics {
            match diagnostic.severity {
                Severity::Error => {
                    tracing::error!("{diagnostic}");
                    let what = diagnostic
                        .document
                        .as_ref()
                        .map_or_else(|| diagnostic.file.to_string(), ToString::to_string);
                    self.out.hooks.rejected(&what, &diagnostic.to_string());
                }
                Severity::Warning => tracing::warn!("{diagnostic}"),
            }
        }
        let version = self.policy.version();
        if self.version.as_ref() == Some(&version) {
            return;
        }
        let mut snapshot = compile::everything(&self.policy, &self.caller);
        self.workload = match self.policy.resource(&format!("workload/{}", self.own)) {
            Some((version, documents)) => {
                match compiling::workload(&self.own, &version, &documents, &snapshot.mesh) {
                    Ok(workload) => Some(Arc::new(workload)),
                    Err(reason) => {
                        tracing::error!("workload {} stays as it was: {reason}", self.own);
                        self.workload.take()
                    }
                }
            }
            None => {
                tracing::warn!(
                    "no Workload {} in {}: this sidecar serves nobody and only calls others",
                    self.own,
                    self.files.directory.display()
                );
                None
            }
        };
        snapshot.workload = self.workload.clone();
        let snapshot = Arc::new(snapshot);
        self.out.shared.snapshot.store(snapshot.clone());
        (self.out.sink)(snapshot);
        self.out.hooks.updated(&version);
        tracing::info!(version = %version, files = self.stamps.len(), "policy in force");
        self.version = Some(version);
    }

    fn load_identity(&self, files: &IdentityFiles) -> anyhow::Result<()> {
        let loaded = StaticFiles::load(&files.certificate, &files.key, &files.roots)?;
        self.out.tls.set_roots(loaded.roots).with_context(|| format!("{}", files.roots.display()))?;
        let identity = self
            .out
            .tls
            .set_identity(loaded.chain, loaded.key)
            .with_context(|| format!("{}", files.certificate.display()))?;
        self.out.hooks.identity(identity.not_after);
        tracing::info!(id = %identity.id, serial = %identity.serial, "certificate loaded");
        Ok(())
    }

    fn tell_source(&self) {
        let rejected: Vec<_> = self
            .policy
            .diagnostics()
            .iter()
            .filter(|diagnostic| diagnostic.severity == Severity::Error)
            .map(ToString::to_string)
            .collect();
        self.out.shared.core().source = serde_json::json!({
            "directory": self.files.directory.display().to_string(),
            "version": self.version,
            "files": self.stamps.len(),
            "problem": self.problem,
            "errors": rejected,
        });
    }
}

fn stamp(path: &Path) -> io::Result<Stamp> {
    let found = fs::metadata(path)?;
    Ok(Stamp {
        path: path.to_owned(),
        device: found.dev(),
        inode: found.ino(),
        size: found.size(),
        modified: (found.mtime(), found.mtime_nsec()),
    })
}

fn identity_stamps(files: &IdentityFiles) -> Vec<Stamp> {
    [&files.certificate, &files.key, &files.roots].into_iter().filter_map(|path| stamp(path).ok()).collect()
}

/// Every policy file of a tree, sorted by path. Hidden entries are left out: editors keep theirs there, and a ConfigMap
/// mount has everything a second time below `..data`.
fn list(directory: &Path) -> Result<Vec<Stamp>, String> {
    let mut found = Vec::new();
    list_into(directory, 0, &mut found)?;
    found.sort_unstable();
    Ok(found)
}

fn list_into(directory: &Path, depth: usize, found: &mut Vec<Stamp>) -> Result<(), String> {
    if depth > MAX_DEPTH {
        return Err(format!(
            "{} is more than {MAX_DEPTH} directories deep; flatten the tree, or remove the link that makes a circle",
            directory.display()
        ));
    }
    let entries = fs::read_dir(directory)
        .map_err(|error| format!("the policy directory {} cannot be read: {error}", directory.display()))?;
    for entry in entries {
        let entry = entry.map_err(|error| format!("{} cannot be read: {error}", directory.display()))?;
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            continue;
        }
        let path = entry.path();
        // Through links, as ConfigMap mounts have them. What vanished meanwhile gives a sign of its own.
        let Ok(metadata) = fs::metadata(&path) else { continue };
        if metadata.is_dir() {
            list_into(&path, depth + 1, found)?;
        } else if path.extension().is_some_and(|end| end == "yaml" || end == "yml") {
            if found.len() >= MAX_FILES {
                return Err(format!(
                    "there are more than {MAX_FILES} policy files; check that --policy names the right directory"
                ));
            }
            found.extend(stamp(&path));
        }
    }
    Ok(())
}

/// The texts of all files, or why there is one that cannot be read: half a policy is none.
fn read_all<'a>(paths: impl Iterator<Item = &'a PathBuf>) -> Result<Vec<(String, String)>, String> {
    let mut left = MAX_ALL_BYTES;
    let mut texts = Vec::new();
    for path in paths {
        let name = path.display();
        let mut text = String::new();
        let file = match fs::File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(format!("{name} cannot be read: {error}")),
        };
        file.take(MAX_FILE_BYTES + 1)
            .read_to_string(&mut text)
            .map_err(|error| format!("{name} cannot be read: {error}"))?;
        let size = text.len() as u64;
        if size > MAX_FILE_BYTES {
            return Err(format!("{name} is larger than {MAX_FILE_BYTES} bytes; split it"));
        }
        left = left
            .checked_sub(size)
            .ok_or_else(|| format!("the policy files are larger than {MAX_ALL_BYTES} bytes together"))?;
        texts.push((name.to_string(), text));
    }
    Ok(texts)
}
