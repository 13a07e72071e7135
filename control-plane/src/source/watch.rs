//! Watches the policy files on a thread of its own and hands over each new state once it has come to rest.

use super::read::{Listing, Tree, list, read};
use anyhow::{Context, Result};
use notify::{
    EventKind, RecommendedWatcher, RecursiveMode, Watcher,
    event::{AccessKind, AccessMode},
};
use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{self, RecvTimeoutError},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// A save is over when nothing was heard for this long.
const QUIET: Duration = Duration::from_millis(60);
/// Someone who writes without pause is read after this long all the same.
const PATIENCE: Duration = Duration::from_millis(400);
/// Looks at names and times even if nothing was heard: links may lead outside of what is watched, and some file systems
/// tell nothing.
const RESCAN: Duration = Duration::from_secs(2);
/// The same while a root is missing or cannot be watched.
const RESCAN_BLIND: Duration = Duration::from_millis(250);

/// Stops watching when dropped.
pub struct Watch {
    stop: Arc<AtomicBool>,
    events: mpsc::SyncSender<()>,
    thread: Option<JoinHandle<()>>,
}

/// Reads the roots at once, hands the result over before it returns, and then hands over every later change from a
/// thread of its own. What cannot be read keeps the text it had `before`.
pub fn watch(
    roots: Vec<PathBuf>,
    before: Tree,
    mut deliver: impl FnMut(&Tree) + Send + 'static,
) -> Result<Watch> {
    // One waiting event says all there is to say: look again.
    let (events, inbox) = mpsc::sync_channel(1);
    let stop = Arc::new(AtomicBool::new(false));
    let mut eyes = Eyes::new(roots, events.clone());
    // Watched before it is read, so that no change falls in between.
    let listing = list(&eyes.roots);
    eyes.follow(&listing);
    let mut state = State { tree: before, listing: list(&eyes.roots) };
    state.tree = read(&state.listing, &eyes.roots, &state.tree);
    deliver(&state.tree);
    let stopped = stop.clone();
    let thread = thread::Builder::new()
        .name("policy-watch".into())
        .spawn(move || {
            while !stopped.load(Ordering::Acquire) {
                let heard = inbox.recv_timeout(eyes.rescan());
                if stopped.load(Ordering::Acquire) || heard == Err(RecvTimeoutError::Disconnected) {
                    break;
                }
                if heard.is_ok() {
                    rest(&inbox);
                }
                if let Some(tree) = state.look(&mut eyes, heard.is_ok()) {
                    deliver(tree);
                }
            }
        })
        .context("cannot start the thread that watches policy files")?;
    Ok(Watch { stop, events, thread: Some(thread) })
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        // Full means that it is about to wake anyway.
        let _ = self.events.try_send(());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Waits until the writing has stopped.
fn rest(inbox: &mpsc::Receiver<()>) {
    let start = Instant::now();
    while start.elapsed() < PATIENCE && inbox.recv_timeout(QUIET).is_ok() {
        // A flood of events is one event: no need to be woken by each.
        thread::sleep(Duration::from_millis(5));
    }
}

struct State {
    tree: Tree,
    listing: Listing,
}

impl State {
    /// The tree, if it is another than before.
    fn look(&mut self, eyes: &mut Eyes, heard: bool) -> Option<&Tree> {
        let mut listing = list(&eyes.roots);
        eyes.follow(&listing);
        // Without an event, unchanged names, sizes and times are believed. With one they are not: two saves within one
        // tick of the clock look the same.
        if !heard && listing == self.listing {
            return None;
        }
        let mut tree = read(&listing, &eyes.roots, &self.tree);
        if self.emptied(&tree) {
            // Many programs save by emptying the file first. Only one that stays empty is meant to be.
            thread::sleep(QUIET * 2);
            listing = list(&eyes.roots);
            tree = read(&listing, &eyes.roots, &self.tree);
        }
        self.listing = listing;
        if tree == self.tree {
            return None;
        }
        self.tree = tree;
        Some(&self.tree)
    }

    fn emptied(&self, tree: &Tree) -> bool {
        let before = |name: &str| {
            self.tree
                .files
                .binary_search_by(|file| (*file.name).cmp(name))
                .ok()
                .map(|at| &self.tree.files[at])
        };
        tree.files.iter().any(|file| {
            file.text.trim().is_empty() && before(&file.name).is_some_and(|file| !file.text.trim().is_empty())
        })
    }
}

/// The operating system's notifications about the roots.
struct Eyes {
    roots: Vec<PathBuf>,
    watcher: Option<RecommendedWatcher>,
    /// The roots that are watched, and what was found there when the watch was set.
    watched: Vec<(PathBuf, Place)>,
}

impl Eyes {
    fn new(roots: Vec<PathBuf>, events: mpsc::SyncSender<()>) -> Self {
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // Reading a file is an event too; answering that with another read would never end.
            let only_read = |kind: EventKind| {
                kind.is_access() && kind != EventKind::Access(AccessKind::Close(AccessMode::Write))
            };
            if event.is_ok_and(|event| only_read(event.kind)) {
                return;
            }
            let _ = events.try_send(());
        });
        let watcher = watcher
            .inspect_err(
                |error| tracing::warn!(%error, "policy files cannot be watched; looking every 250 ms"),
            )
            .ok();
        Self { roots, watcher, watched: Vec::new() }
    }

    /// Watches every root that is there; a root that was replaced is watched anew.
    fn follow(&mut self, listing: &Listing) {
        let Some(watcher) = &mut self.watcher else { return };
        self.watched.retain(|(root, place)| {
            let still = listing.present.contains(root) && Place::of(root).as_ref() == Some(place);
            if !still {
                let _ = watcher.unwatch(&place.directory);
            }
            still
        });
        for root in &listing.present {
            if self.watched.iter().any(|(watched, _)| watched == root) {
                continue;
            }
            let Some(place) = Place::of(root) else { continue };
            match watcher.watch(&place.directory, place.mode) {
                Ok(()) => self.watched.push((root.clone(), place)),
                Err(error) => {
                    tracing::debug!(path = %root.display(), %error, "cannot be watched yet; looking every 250 ms");
                }
            }
        }
    }

    fn rescan(&self) -> Duration {
        if self.watched.len() == self.roots.len() { RESCAN } else { RESCAN_BLIND }
    }
}

/// The directory that is watched for a root. One that was replaced by another of the same name is another place.
#[derive(PartialEq)]
struct Place {
    directory: PathBuf,
    mode: RecursiveMode,
    identity: (u64, u64),
}

impl Place {
    fn of(root: &Path) -> Option<Self> {
        let real = root.canonicalize().ok()?;
        // A single file is watched by way of its directory: editors put a new file in its place.
        let (directory, mode) = if real.is_dir() {
            (real, RecursiveMode::Recursive)
        } else {
            (real.parent()?.to_path_buf(), RecursiveMode::NonRecursive)
        };
        let found = fs::metadata(&directory).ok()?;
        Some(Self { directory, mode, identity: (found.dev(), found.ino()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    struct Fixture {
        root: tempfile::TempDir,
        trees: mpsc::Receiver<Tree>,
        _watch: Watch,
    }

    fn watching(prepare: impl FnOnce(&Path), policy: &str) -> Fixture {
        let root = tempfile::tempdir().expect("temp dir");
        prepare(root.path());
        let (sender, trees) = mpsc::channel();
        let watch = watch(vec![root.path().join(policy)], Tree::default(), move |tree| {
            let _ = sender.send(tree.clone());
        })
        .expect("watches");
        Fixture { root, trees, _watch: watch }
    }

    impl Fixture {
        /// The texts of the next state.
        fn next(&self) -> Vec<String> {
            let tree = self.trees.recv_timeout(Duration::from_secs(30)).expect("a change");
            tree.files.iter().map(|file| file.text.to_string()).collect()
        }

        /// Waits for a state with these texts. A busy machine may take so long over what is one change that the watch sees
        /// the middle of it.
        fn until(&self, texts: &[&str]) {
            while self.next() != texts {}
        }

        fn silent(&self) {
            let state = self.trees.recv_timeout(Duration::from_millis(400));
            assert!(state.is_err(), "nothing changed, but {state:?} was delivered");
        }

        fn path(&self, name: &str) -> PathBuf {
            self.root.path().join(name)
        }
    }

    #[test]
    fn a_plain_save_is_seen() {
        let f = watching(|at| fs::write(at.join("a.yaml"), "one").expect("written"), "");
        assert_eq!(f.next(), ["one"]);
        fs::write(f.path("a.yaml"), "two").expect("written");
        f.until(&["two"]);
        fs::write(f.path("b.yaml"), "three").expect("written");
        f.until(&["two", "three"]);
        fs::remove_file(f.path("a.yaml")).expect("removed");
        assert_eq!(f.next(), ["three"]);
    }

    #[test]
    fn a_save_is_seen_within_a_second() {
        let f = watching(|at| fs::write(at.join("a.yaml"), "0").expect("written"), "");
        assert_eq!(f.next(), ["0"]);
        let took: Vec<Duration> = (1..=5)
            .map(|turn| {
                let saved = Instant::now();
                fs::write(f.path(".a.yaml"), turn.to_string()).expect("written");
                fs::rename(f.path(".a.yaml"), f.path("a.yaml")).expect("renamed");
                assert_eq!(f.next(), [turn.to_string()]);
                saved.elapsed()
            })
            .collect();
        // Looking now and then would take two seconds each time; a busy machine may hold up some of them.
        assert!(took.iter().any(|took| *took < Duration::from_secs(1)), "{took:?}");
    }

    #[test]
    fn an_editor_that_renames_is_seen() {
        let f = watching(|at| fs::write(at.join("a.yaml"), "one").expect("written"), "");
        assert_eq!(f.next(), ["one"]);
        for text in ["two", "three", "four"] {
            fs::write(f.path(".a.yaml.swp"), text).expect("written");
            fs::rename(f.path("a.yaml"), f.path("a.yaml~")).expect("renamed");
            fs::rename(f.path(".a.yaml.swp"), f.path("a.yaml")).expect("renamed");
            f.until(&[text]);
        }
    }

    #[test]
    fn a_config_map_swap_is_seen_as_one_change() {
        let version = |at: &Path, name: &str, text: &str| {
            fs::create_dir(at.join(name)).expect("dir");
            fs::write(at.join(name).join("a.yaml"), text).expect("written");
            fs::write(at.join(name).join("b.yaml"), text).expect("written");
        };
        let f = watching(
            |at| {
                version(at, "..v1", "one");
                symlink("..v1", at.join("..data")).expect("link");
                symlink("..data/a.yaml", at.join("a.yaml")).expect("link");
                symlink("..data/b.yaml", at.join("b.yaml")).expect("link");
            },
            "",
        );
        assert_eq!(f.next(), ["one", "one"]);
        version(f.root.path(), "..v2", "two");
        symlink("..v2", f.path("..data_tmp")).expect("link");
        fs::rename(f.path("..data_tmp"), f.path("..data")).expect("renamed");
        fs::remove_dir_all(f.path("..v1")).expect("removed");
        assert_eq!(f.next(), ["two", "two"]);
        f.silent();
    }

    #[test]
    fn a_directory_that_appears_later_is_read() {
        let f = watching(|_| {}, "policy");
        assert!(f.next().is_empty());
        fs::create_dir(f.path("policy")).expect("dir");
        fs::write(f.path("policy/a.yaml"), "one").expect("written");
        f.until(&["one"]);
        fs::write(f.path("policy/a.yaml"), "two").expect("written");
        f.until(&["two"]);
    }

    #[test]
    fn a_replaced_directory_is_followed() {
        let f = watching(
            |at| {
                fs::create_dir(at.join("policy")).expect("dir");
                fs::write(at.join("policy/a.yaml"), "one").expect("written");
            },
            "policy",
        );
        assert_eq!(f.next(), ["one"]);
        fs::create_dir(f.path("new")).expect("dir");
        fs::write(f.path("new/a.yaml"), "two").expect("written");
        fs::rename(f.path("policy"), f.path("old")).expect("renamed");
        fs::rename(f.path("new"), f.path("policy")).expect("renamed");
        f.until(&["two"]);
    }

    #[test]
    fn a_file_emptied_while_it_is_saved_is_not_believed() {
        let f = watching(|at| fs::write(at.join("a.yaml"), "one").expect("written"), "");
        assert_eq!(f.next(), ["one"]);
        for turn in 0.. {
            let (saving, text) = (Instant::now(), format!("two {turn}"));
            fs::write(f.path("a.yaml"), "").expect("emptied");
            thread::sleep(Duration::from_millis(100));
            fs::write(f.path("a.yaml"), &text).expect("written");
            if saving.elapsed() < QUIET * 2 {
                assert_eq!(f.next(), [text]);
                break;
            }
            // A busy machine took longer over it than anybody is waited for.
            f.until(&[&text]);
            assert!(turn < 50, "this machine is too slow to tell");
        }
        fs::write(f.path("a.yaml"), "").expect("emptied for good");
        assert_eq!(f.next(), [""]);
    }

    #[test]
    fn a_touch_delivers_nothing() {
        let f = watching(|at| fs::write(at.join("a.yaml"), "one").expect("written"), "");
        assert_eq!(f.next(), ["one"]);
        fs::write(f.path("a.yaml"), "one").expect("written");
        fs::write(f.path("notes.txt"), "no policy").expect("written");
        f.silent();
    }
}
