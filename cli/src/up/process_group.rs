//! Process groups: each program gets one of its own, so that it can be stopped with everything it started.

use rustix::process::{Pid, Signal, kill_process_group, test_kill_process_group};
use std::{
    fs,
    time::{Duration, Instant},
};

/// How often a group that should end is looked at.
const LOOK: Duration = Duration::from_millis(25);

/// Sends a signal to all of a group. A group that is gone is fine.
pub(super) fn signal(group: u32, signal: Signal) {
    if let Some(pid) = pid(group) {
        let _ = kill_process_group(pid, signal);
    }
}

/// True if some process of the group still runs. One that has ended and waits to be reaped does not count: inside a
/// container nobody may ever reap it.
pub(super) fn runs(group: u32) -> bool {
    let Some(pid) = pid(group) else { return false };
    if test_kill_process_group(pid).is_err() {
        return false;
    }
    let Ok(processes) = fs::read_dir("/proc") else { return true };
    let mut seen = false;
    for process in processes.flatten() {
        if !process.file_name().as_encoded_bytes().iter().all(u8::is_ascii_digit) {
            continue;
        }
        let Ok(stat) = fs::read_to_string(process.path().join("stat")) else { continue };
        seen = true;
        if let Some((state, of_group)) = state_and_group(&stat)
            && of_group == group
            && !matches!(state, 'Z' | 'X')
        {
            return true;
        }
    }
    // Without a usable /proc the kernel's word stands.
    !seen
}

/// State and process group from `/proc/<pid>/stat`. The name in parentheses may hold anything, even `)`.
fn state_and_group(stat: &str) -> Option<(char, u32)> {
    let mut fields = stat[stat.rfind(')')? + 1..].split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    let _parent = fields.next()?;
    Some((state, fields.next()?.parse().ok()?))
}

/// Waits until none of the group runs; false if some still do at the end of the time.
pub(super) async fn ended(group: u32, within: Duration) -> bool {
    let deadline = Instant::now() + within;
    while runs(group) {
        if Instant::now() >= deadline {
            return false;
        }
        tokio::time::sleep(LOOK).await;
    }
    true
}

fn pid(group: u32) -> Option<Pid> {
    // 0 and 1 would mean our own group and, to kill(2), everything there is.
    i32::try_from(group).ok().filter(|g| *g > 1).and_then(Pid::from_raw)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{io::Read, os::unix::process::CommandExt, process::Command};

    #[test]
    fn stat_is_read_past_any_name() {
        assert_eq!(state_and_group("12 (a) b) S 1 77 77 0"), Some(('S', 77)));
        assert_eq!(state_and_group("nonsense"), None);
    }

    #[test]
    fn groups_that_would_mean_everyone_are_never_signalled() {
        assert!(pid(0).is_none() && pid(1).is_none() && pid(u32::MAX).is_none());
    }

    #[tokio::test]
    async fn a_group_ends_with_all_that_it_started() {
        let mut leader = Command::new("sh")
            .args(["-c", "sleep 60 & echo started; sleep 60"])
            .stdout(std::process::Stdio::piped())
            .process_group(0)
            .spawn()
            .expect("started");
        let mut said = [0u8; 8];
        leader.stdout.take().expect("piped").read_exact(&mut said).expect("it says so");
        let group = leader.id();
        assert!(runs(group));
        leader.kill().expect("killed");
        leader.wait().expect("reaped");
        assert!(runs(group), "what the shell started is still there");
        signal(group, Signal::KILL);
        assert!(ended(group, Duration::from_secs(30)).await);
    }
}
