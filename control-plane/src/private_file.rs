//! Files that nobody but their owner may read: how they are made, and why a loose one is refused.

use anyhow::{Context, Result, bail};
use std::{
    fs,
    io::{ErrorKind, Read, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::Path,
};

/// Larger files are no keys of ours.
const MAX_PRIVATE_FILE: u64 = 64 * 1024;

/// Makes the directory that keys live in, 0700; one that others may write to is refused.
pub(crate) fn prepare_directory(path: &Path) -> Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .with_context(|| format!("cannot make the state directory {}", path.display()))?;
    let found = fs::metadata(path).with_context(|| format!("cannot look at {}", path.display()))?;
    if !found.is_dir() {
        bail!("{} is not a directory; give another with --state-dir", path.display());
    }
    let mode = found.mode() & 0o777;
    if mode & 0o022 != 0 {
        bail!(
            "others can write to the state directory {} (mode {mode:04o}), so they could replace the keys in it; \
             run `chmod 700 {}` or give another with --state-dir",
            path.display(),
            path.display()
        );
    }
    if mode & 0o077 != 0 {
        tracing::warn!(
            directory = %path.display(),
            "others can look into the state directory (mode {mode:04o}); `chmod 700` it"
        );
    }
    Ok(())
}

/// Reads a private file; `None` if there is none. One that anybody but its owner can read or write is refused.
pub(crate) fn read(path: &Path) -> Result<Option<Vec<u8>>> {
    let file = match fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    };
    // The opened file is looked at, not the path: the path could be swapped in between.
    let found = file.metadata().with_context(|| format!("cannot look at {}", path.display()))?;
    let mode = found.mode() & 0o777;
    if mode & 0o077 != 0 {
        bail!(
            "{} is a secret, but others can read it (mode {mode:04o}); run `chmod 600 {}`, and replace the secret \
             if anybody else uses this machine",
            path.display(),
            path.display()
        );
    }
    if found.len() > MAX_PRIVATE_FILE {
        bail!("{} is {} bytes long, too long for a key", path.display(), found.len());
    }
    let mut bytes = Vec::with_capacity(found.len() as usize);
    file.take(MAX_PRIVATE_FILE)
        .read_to_end(&mut bytes)
        .with_context(|| format!("cannot read {}", path.display()))?;
    Ok(Some(bytes))
}

/// Makes a private file whole or not at all. `false` if one was there already: it is never overwritten.
pub(crate) fn create(path: &Path, bytes: &[u8]) -> Result<bool> {
    let unfinished = unfinished_name(path);
    let made = (|| {
        write_synced(&unfinished, bytes, 0o600)?;
        // A hard link, unlike a rename, fails if the name is taken: of two first starts one wins.
        match fs::hard_link(&unfinished, path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(error),
        }
    })();
    let _ = fs::remove_file(&unfinished);
    made.with_context(|| format!("cannot write {}", path.display()))
}

/// Puts a file in the place of another in one step, with this mode.
pub(crate) fn replace(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    let unfinished = unfinished_name(path);
    let made = write_synced(&unfinished, bytes, mode).and_then(|()| fs::rename(&unfinished, path));
    if made.is_err() {
        let _ = fs::remove_file(&unfinished);
    }
    made.with_context(|| format!("cannot write {}", path.display()))
}

fn unfinished_name(path: &Path) -> std::path::PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}-{:08x}.unfinished", std::process::id(), fastrand::u32(..)));
    name.into()
}

fn write_synced(path: &Path, bytes: &[u8], mode: u32) -> std::io::Result<()> {
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    // The umask may have taken bits away from a public file.
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    file.write_all(bytes)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).expect("exists").mode() & 0o777
    }

    #[test]
    fn the_state_directory_is_the_owners_alone() {
        let root = tempfile::tempdir().expect("temp dir");
        let state = root.path().join("a/b");
        prepare_directory(&state).expect("made");
        assert_eq!(mode(&state), 0o700);
        prepare_directory(&state).expect("again");
    }

    #[test]
    fn a_state_directory_that_others_write_to_is_refused() {
        let root = tempfile::tempdir().expect("temp dir");
        fs::set_permissions(root.path(), fs::Permissions::from_mode(0o777)).expect("chmod");
        let error = prepare_directory(root.path()).expect_err("refused").to_string();
        assert!(error.contains("0777") && error.contains("chmod 700"), "{error}");
    }

    #[test]
    fn a_secret_is_made_once_with_mode_0600() {
        let root = tempfile::tempdir().expect("temp dir");
        let path = root.path().join("key");
        assert_eq!(read(&path).expect("looked"), None);
        assert!(create(&path, b"first").expect("made"));
        assert!(!create(&path, b"second").expect("left alone"));
        assert_eq!(read(&path).expect("read").as_deref(), Some(&b"first"[..]));
        assert_eq!(mode(&path), 0o600);
        assert_eq!(fs::read_dir(root.path()).expect("dir").count(), 1, "nothing unfinished is left");
    }

    #[test]
    fn a_secret_that_others_can_read_is_refused() {
        let root = tempfile::tempdir().expect("temp dir");
        let path = root.path().join("key");
        fs::write(&path, b"secret").expect("written");
        for loose in [0o644, 0o640, 0o604, 0o660] {
            fs::set_permissions(&path, fs::Permissions::from_mode(loose)).expect("chmod");
            let error = read(&path).expect_err("refused").to_string();
            assert!(error.contains("chmod 600"), "{error}");
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).expect("chmod");
        assert!(read(&path).expect("read").is_some());
    }
}
