//! The state directory of a running mesh: one owner at a time, nothing readable by others, and the run file by which
//! other terminals find the mesh.

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use std::{
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io::Write,
    net::SocketAddr,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

/// Under the directory where `weft up` was started.
const FOLDER: &str = ".weft";
const RUN_FILE: &str = "run.json";
const LOCK_FILE: &str = "lock";
/// Under it, what the control plane keeps.
pub(super) const PLANE_FOLDER: &str = "control-plane";
/// No run file of ours is as large as this.
const LARGEST: u64 = 4 * 1024 * 1024;

/// What a running `weft up` tells other terminals.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RunFile {
    /// The process that runs the mesh.
    pub(crate) pid: u32,
    /// The directory of policy it runs.
    pub(crate) directory: PathBuf,
    /// The control plane's status page and API.
    pub(crate) dashboard: SocketAddr,
    /// The control plane's metrics.
    pub(crate) metrics: SocketAddr,
    /// Where sidecars reach the control plane.
    pub(crate) control_plane: SocketAddr,
    /// The workload instances.
    pub(crate) instances: Vec<RunningInstance>,
}

/// One instance in the run file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RunningInstance {
    /// Its namespace.
    pub(crate) namespace: String,
    /// Its name.
    pub(crate) name: String,
    /// Where the application listens.
    pub(crate) application: Vec<SocketAddr>,
    /// Its sidecar's outbound listener, admin interface and metrics.
    pub(crate) sidecar: Option<RunningSidecar>,
}

/// A sidecar's addresses in the run file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RunningSidecar {
    /// For `http_proxy`.
    pub(crate) outbound: SocketAddr,
    /// Admin interface.
    pub(crate) admin: SocketAddr,
    /// Metrics.
    pub(crate) metrics: SocketAddr,
}

/// The state directory, held by this process.
pub(super) struct State {
    directory: PathBuf,
    // The lock lasts as long as this file is open, so a killed process leaves none behind.
    _lock: File,
}

impl State {
    /// Where the state of a mesh is kept if nothing else is said: `.weft/<name of its directory>` below `cwd`.
    pub(super) fn default_directory(cwd: &Path, policy: &Path) -> PathBuf {
        let name = policy.file_name().map_or_else(|| "mesh".into(), |n| n.to_string_lossy().into_owned());
        cwd.join(FOLDER).join(name)
    }

    /// Makes the directory, or takes over one that an earlier run left.
    pub(super) fn open(directory: &Path, policy: &Path) -> anyhow::Result<Self> {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(directory);
        made.with_context(|| {
            format!(
                "cannot make the state directory {}; choose another with --state-dir",
                directory.display()
            )
        })?;
        fs::set_permissions(directory, fs::Permissions::from_mode(0o700)).with_context(|| {
            format!("cannot make {} private; choose another with --state-dir", directory.display())
        })?;
        let directory = directory.canonicalize().context("the state directory cannot be resolved")?;
        let lock_path = directory.join(LOCK_FILE);
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&lock_path)
            .with_context(|| format!("cannot open {}", lock_path.display()))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let who =
                    read(&directory).map_or_else(|_| String::new(), |run| format!(" (process {})", run.pid));
                bail!(
                    "another `weft up`{who} uses {}; stop it, or give this one its own --state-dir",
                    directory.display()
                );
            }
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("cannot lock {}", lock_path.display()));
            }
        }
        let state = Self { directory, _lock: lock };
        state.claim_for(policy)?;
        Ok(state)
    }

    /// Keeps two meshes of the same name from sharing keys and last known policy.
    fn claim_for(&self, policy: &Path) -> anyhow::Result<()> {
        let path = self.directory.join("mesh");
        let wanted = policy.as_os_str().as_encoded_bytes();
        match fs::read(&path) {
            Ok(found) if found == wanted => Ok(()),
            Ok(found) => bail!(
                "{} belongs to the mesh in {}; give this one its own --state-dir, or remove that directory",
                self.directory.display(),
                String::from_utf8_lossy(&found)
            ),
            Err(_) => write_private(&path, wanted),
        }
    }

    /// A directory below it, made if need be.
    pub(super) fn folder(&self, name: impl AsRef<Path>) -> anyhow::Result<PathBuf> {
        let path = self.directory.join(name);
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&path);
        made.with_context(|| format!("cannot make {}", path.display()))?;
        Ok(path)
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.directory
    }

    /// Tells other terminals.
    pub(super) fn announce(&self, run: &RunFile) -> anyhow::Result<()> {
        write_private(&self.directory.join(RUN_FILE), &serde_json::to_vec_pretty(run)?)
    }
}

impl Drop for State {
    fn drop(&mut self) {
        let _ = fs::remove_file(self.directory.join(RUN_FILE));
    }
}

/// Writes a file that only its owner can read, whole or not at all.
pub(super) fn write_private(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let mut unfinished = path.as_os_str().to_owned();
    unfinished.push(".new");
    let write = || -> std::io::Result<()> {
        let mut file =
            OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&unfinished)?;
        file.set_permissions(fs::Permissions::from_mode(0o600))?;
        file.write_all(bytes)?;
        fs::rename(&unfinished, path)
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

fn read(directory: &Path) -> anyhow::Result<RunFile> {
    let path = directory.join(RUN_FILE);
    if fs::metadata(&path)?.len() > LARGEST {
        bail!("{} is too large for a run file", path.display());
    }
    serde_json::from_slice(&fs::read(&path)?).with_context(|| format!("{} is no run file", path.display()))
}

/// True if the process that made this state directory still runs.
fn is_running(directory: &Path) -> bool {
    let Ok(lock) = OpenOptions::new().write(true).open(directory.join(LOCK_FILE)) else { return false };
    matches!(lock.try_lock_shared(), Err(TryLockError::WouldBlock))
}

/// Where the control plane with this dashboard keeps its keys, if it is one of those that run from here.
pub(crate) fn keys_of(from: &Path, dashboard: SocketAddr) -> Option<PathBuf> {
    let mut runs = running_at(from).into_iter();
    runs.find(|(_, run)| run.dashboard == dashboard).map(|(directory, _)| directory.join(PLANE_FOLDER))
}

/// The meshes that run from the state directories of `from` and every directory above it, nearest first.
pub(crate) fn running(from: &Path) -> Vec<RunFile> {
    running_at(from).into_iter().map(|(_, run)| run).collect()
}

/// The same, each with its state directory.
fn running_at(from: &Path) -> Vec<(PathBuf, RunFile)> {
    let mut found: Vec<(PathBuf, RunFile)> = Vec::new();
    for folder in from.ancestors().map(|a| a.join(FOLDER)) {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        let mut directories: Vec<PathBuf> = entries.flatten().map(|e| e.path()).collect();
        directories.sort();
        for directory in directories {
            if is_running(&directory)
                && let Ok(run) = read(&directory)
                && !found.iter().any(|(_, known)| *known == run)
            {
                found.push((directory, run));
            }
        }
    }
    found
}

/// The mesh that runs from this very state directory, if one does.
pub(crate) fn running_in(directory: &Path) -> Option<RunFile> {
    if is_running(directory) { read(directory).ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(directory: &Path) -> RunFile {
        RunFile {
            pid: 7,
            directory: directory.to_owned(),
            dashboard: ([127, 0, 0, 1], 15080).into(),
            metrics: ([127, 0, 0, 1], 15014).into(),
            control_plane: ([127, 0, 0, 1], 15012).into(),
            instances: Vec::new(),
        }
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).expect("there").permissions().mode() & 0o777
    }

    #[test]
    fn a_running_mesh_is_found_from_below_and_gone_when_it_ends() {
        let home = tempfile::tempdir().expect("a directory");
        let below = home.path().join("a/b");
        fs::create_dir_all(&below).expect("made");
        let policy = home.path().join("shop");
        let state = State::open(&State::default_directory(home.path(), &policy), &policy).expect("opened");
        state.announce(&run(&policy)).expect("announced");
        assert_eq!(running(&below), [run(&policy)]);
        assert_eq!(running_in(state.path()), Some(run(&policy)));
        let directory = state.path().to_owned();
        drop(state);
        assert!(running(&below).is_empty());
        assert_eq!(running_in(&directory), None);
    }

    #[test]
    fn a_run_file_that_a_killed_process_left_counts_for_nothing() {
        let home = tempfile::tempdir().expect("a directory");
        let directory = home.path().join(FOLDER).join("shop");
        fs::create_dir_all(&directory).expect("made");
        fs::write(directory.join(LOCK_FILE), "").expect("written");
        fs::write(directory.join(RUN_FILE), serde_json::to_vec(&run(home.path())).expect("json"))
            .expect("written");
        assert!(running(home.path()).is_empty());
    }

    #[test]
    fn only_the_owner_can_look_in() {
        let home = tempfile::tempdir().expect("a directory");
        let state = State::open(&home.path().join("s"), home.path()).expect("opened");
        state.announce(&run(home.path())).expect("announced");
        assert_eq!(mode(state.path()), 0o700);
        assert_eq!(mode(&state.folder("tokens").expect("made")), 0o700);
        assert_eq!(mode(&state.path().join(RUN_FILE)), 0o600);
    }

    #[test]
    fn two_at_once_are_refused_with_a_cure() {
        let home = tempfile::tempdir().expect("a directory");
        let first = State::open(home.path(), home.path()).expect("opened");
        let error = format!("{:#}", State::open(home.path(), home.path()).err().expect("refused"));
        assert!(error.contains("--state-dir"), "{error}");
        drop(first);
        State::open(home.path(), home.path()).expect("free again");
    }

    #[test]
    fn another_mesh_of_the_same_name_is_refused() {
        let home = tempfile::tempdir().expect("a directory");
        drop(State::open(&home.path().join("s"), Path::new("/a/shop")).expect("opened"));
        let error = format!(
            "{:#}",
            State::open(&home.path().join("s"), Path::new("/b/shop")).err().expect("refused")
        );
        assert!(error.contains("/a/shop"), "{error}");
    }
}
