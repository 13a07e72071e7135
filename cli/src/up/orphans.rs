//! Sees to it that nothing outlives `weft up`, even when that is killed without warning.
//!
//! `weft up` keeps a small second process (`weft reap`) that knows the process groups of all it started, told over a
//! pipe. However `weft up` ends, the kernel closes the pipe, and what is then still on the list is stopped.

use super::process_group;
use rustix::process::Signal;
use std::{
    collections::BTreeSet,
    io::{BufRead, Write},
    os::unix::process::CommandExt,
    path::Path,
    process::{ChildStdin, Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

/// How long orphans get between SIGTERM and SIGKILL.
const GRACE: Duration = Duration::from_secs(3);

/// The list as `weft up` sees it. Cheap to clone; the reaper starts its work when the last clone is dropped.
#[derive(Clone)]
pub(super) struct Orphans {
    list: Arc<Mutex<ChildStdin>>,
}

impl Orphans {
    /// Starts the reaper.
    pub(super) fn start(program: &Path) -> std::io::Result<Self> {
        let mut child = Command::new(program)
            .arg("reap")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // Ctrl-C in the terminal goes to our group; the reaper must outlive us by a moment.
            .process_group(0)
            .spawn()?;
        let list = child.stdin.take().ok_or(std::io::ErrorKind::BrokenPipe)?;
        Ok(Self { list: Arc::new(Mutex::new(list)) })
    }

    /// A list that nobody acts on.
    #[cfg(test)]
    pub(super) fn nowhere() -> std::io::Result<Self> {
        let mut child = Command::new("true").stdin(Stdio::piped()).spawn()?;
        let list = child.stdin.take().ok_or(std::io::ErrorKind::BrokenPipe)?;
        child.wait()?;
        Ok(Self { list: Arc::new(Mutex::new(list)) })
    }

    /// This group is to be stopped if we end.
    pub(super) fn add(&self, group: u32) {
        self.tell('+', group);
    }

    /// This group has ended.
    pub(super) fn remove(&self, group: u32) {
        self.tell('-', group);
    }

    fn tell(&self, what: char, group: u32) {
        let mut list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        // One write for one line. If the reaper is gone, stopping in order still works without it.
        let _ = list.write_all(format!("{what}{group}\n").as_bytes());
    }
}

/// The reaper itself: reads the list until its writer is gone, then stops what is left on it.
pub(crate) fn reap(input: impl BufRead) {
    let groups = remaining(input);
    for group in &groups {
        process_group::signal(*group, Signal::TERM);
    }
    let deadline = Instant::now() + GRACE;
    while Instant::now() < deadline && groups.iter().any(|g| process_group::runs(*g)) {
        std::thread::sleep(Duration::from_millis(50));
    }
    for group in &groups {
        process_group::signal(*group, Signal::KILL);
    }
}

/// The groups that were added and not removed.
fn remaining(input: impl BufRead) -> BTreeSet<u32> {
    let mut groups = BTreeSet::new();
    for line in input.lines() {
        let Ok(line) = line else { break };
        if let Some(group) = line.strip_prefix('+').and_then(|g| g.parse().ok()) {
            groups.insert(group);
        } else if let Some(group) = line.strip_prefix('-').and_then(|g| g.parse::<u32>().ok()) {
            groups.remove(&group);
        }
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_added_and_not_removed_remains() {
        let groups = remaining("+10\n+11\n-10\nnonsense\n+x\n+12\n".as_bytes());
        assert_eq!(groups.into_iter().collect::<Vec<_>>(), [11, 12]);
    }

    #[test]
    fn orphans_are_stopped_when_the_list_ends() {
        let mut child = Command::new("sleep").arg("60").process_group(0).spawn().expect("started");
        let group = child.id();
        let reaper = std::thread::spawn(move || reap(format!("+{group}\n").as_bytes()));
        let status = child.wait().expect("ended");
        assert!(!status.success());
        reaper.join().expect("the reaper ends");
    }
}
