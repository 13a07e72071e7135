//! What the kernel knows about this process, read from /proc when metrics are scraped.

use std::fs;

/// Clock ticks per second in /proc/self/stat: part of the kernel's interface, 100 on every architecture we run on.
const TICKS: f64 = 100.0;

/// A reading; what could not be read is `None` and its family is left out.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Process {
    pub(super) cpu_seconds: Option<f64>,
    pub(super) threads: Option<u64>,
    pub(super) resident_bytes: Option<u64>,
    pub(super) virtual_bytes: Option<u64>,
    pub(super) open_fds: Option<u64>,
    pub(super) max_fds: Option<u64>,
}

impl Process {
    /// Reads it now.
    pub(super) fn read() -> Self {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
        let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
        Self {
            // Listing the directory opens one more, which is not counted.
            open_fds: fs::read_dir("/proc/self/fd").ok().map(|dir| (dir.count() as u64).saturating_sub(1)),
            ..Self::parse(&status, &stat, &limits)
        }
    }

    fn parse(status: &str, stat: &str, limits: &str) -> Self {
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.split_ascii_whitespace().next()?.parse::<u64>().ok()
        };
        // The second field is the program's name in brackets and may hold anything: count from its last bracket.
        let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        let mut ticks = after_name.split_ascii_whitespace().skip(11).map_while(|n| n.parse::<u64>().ok());
        let cpu_seconds = match (ticks.next(), ticks.next()) {
            (Some(user), Some(system)) => Some((user + system) as f64 / TICKS),
            _ => None,
        };
        let max_fds = limits
            .lines()
            .find_map(|line| line.strip_prefix("Max open files"))
            .and_then(|line| line.split_ascii_whitespace().next()?.parse().ok());
        Self {
            cpu_seconds,
            threads: field("Threads:"),
            resident_bytes: field("VmRSS:").map(|kib| kib * 1024),
            virtual_bytes: field("VmSize:").map(|kib| kib * 1024),
            open_fds: None,
            max_fds,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_name_with_brackets_and_spaces_does_not_shift_the_fields() {
        let stat = "7 (we) ft (x) S 1 7 7 0 -1 4194304 100 0 0 0 250 50 0 0 20 0 3 0 1000 1 1";
        let process = Process::parse(
            "Name:\tweft\nVmSize:\t  2048 kB\nVmRSS:\t  1024 kB\nThreads:\t3\n",
            stat,
            "Limit Soft Hard Units\nMax open files            1024                 4096                 files\n",
        );
        assert_eq!(
            process,
            Process {
                cpu_seconds: Some(3.0),
                threads: Some(3),
                resident_bytes: Some(1024 * 1024),
                virtual_bytes: Some(2048 * 1024),
                open_fds: None,
                max_fds: Some(1024),
            }
        );
    }

    #[test]
    fn what_cannot_be_read_is_left_out() {
        assert_eq!(Process::parse("", "", ""), Process::default());
        assert_eq!(Process::parse("VmRSS:\n", "1 (x) S 1", "Max open files unlimited"), Process::default());
    }

    #[test]
    fn this_process_has_memory_and_files() {
        let process = Process::read();
        assert!(process.resident_bytes.is_some_and(|bytes| bytes > 100_000), "{process:?}");
        assert!(process.open_fds.is_some_and(|fds| fds >= 3), "{process:?}");
        assert!(process.threads.is_some_and(|threads| threads >= 1), "{process:?}");
    }
}
