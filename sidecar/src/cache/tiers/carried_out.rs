//! Which purge of the control plane was the last that was carried out, on disk: what is kept there must not come back
//! because a purge was made while the sidecar was away.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    path::Path,
};

const FILE: &str = "carried-out";
/// A file beyond this is not ours.
const FILE_MAX: u64 = 4096;

/// The list and the number.
pub(super) fn read(dir: &Path) -> Option<(String, u64)> {
    let mut text = String::new();
    File::open(dir.join(FILE)).ok()?.take(FILE_MAX).read_to_string(&mut text).ok()?;
    let (number, log) = text.strip_suffix('\n')?.split_once(' ')?;
    Some((log.to_owned(), number.parse().ok()?))
}

pub(super) fn write(dir: &Path, (log, number): &(String, u64)) -> io::Result<()> {
    let beside = dir.join("carried-out.new");
    let mut file = File::create(&beside)?;
    writeln!(file, "{number} {log}")?;
    file.sync_data()?;
    fs::rename(beside, dir.join(FILE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_read_as_it_was_written() {
        let dir = tempfile::tempdir().expect("has a directory");
        assert_eq!(read(dir.path()), None);
        for last in [("a list".to_owned(), 7), (String::new(), 8)] {
            write(dir.path(), &last).expect("is written");
            assert_eq!(read(dir.path()), Some(last));
        }
        fs::write(dir.path().join(FILE), "7").expect("is written");
        assert_eq!(read(dir.path()), None);
    }
}
