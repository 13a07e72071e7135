//! What was last accepted, on disk: a restart serves from it at once, with or without a control plane.

use super::identity::Stored;
use prost::Message;
use std::{
    fmt,
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use weft_config::wire;

const FILE: &str = "last-known-good";
/// First line of the file; another number is another format.
const MAGIC: &[u8] = b"weft last known good, format 1\n";
/// A file beyond this is not ours.
const MAX_BYTES: u64 = 256 * 1024 * 1024;

/// What is kept.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Kept {
    pub(super) resources: Vec<wire::Resource>,
    pub(super) identity: Option<Stored>,
}

/// `Kept` as it is written; what it belongs to comes first.
#[derive(Clone, PartialEq, Message)]
#[prost(skip_debug)]
struct Contents {
    #[prost(string, tag = "1")]
    owner: String,
    #[prost(message, repeated, tag = "2")]
    resources: Vec<wire::Resource>,
    #[prost(bytes = "vec", repeated, tag = "3")]
    chain: Vec<Vec<u8>>,
    #[prost(bytes = "vec", tag = "4")]
    key: Vec<u8>,
    #[prost(uint64, tag = "5")]
    received_ms: u64,
}

impl fmt::Debug for Contents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Contents").field("owner", &self.owner).finish_non_exhaustive()
    }
}

/// The file of one sidecar.
#[derive(Clone, Debug)]
pub(super) struct LastKnownGood {
    dir: PathBuf,
    owner: String,
}

impl LastKnownGood {
    /// The file in `dir`, which is made if it is not there. `owner` says whose it is: a directory that served another
    /// workload before must not lend it its identity.
    pub(super) fn open(dir: &Path, owner: String) -> io::Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let mode = fs::metadata(dir)?.permissions().mode();
        if mode & 0o077 != 0 {
            // It holds a private key: nobody else looks in. A mounted volume may not let us say so.
            if let Err(error) = fs::set_permissions(dir, fs::Permissions::from_mode(0o700)) {
                tracing::warn!(
                    directory = %dir.display(),
                    "the state directory is open to others and that cannot be changed ({error}); run chmod 700 on it"
                );
            }
        }
        Ok(Self { dir: dir.to_owned(), owner })
    }

    /// Where it is.
    pub(super) fn path(&self) -> PathBuf {
        self.dir.join(FILE)
    }

    /// Reads what an earlier process kept. A file that cannot be used is put aside and said so.
    pub(super) fn load(&self) -> Option<Kept> {
        let path = self.path();
        let bytes = match read_bounded(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => {
                tracing::warn!(
                    file = %path.display(),
                    "the last known good policy cannot be read ({error}); starting without it"
                );
                return None;
            }
        };
        match decode(&bytes) {
            Ok(contents) if contents.owner == self.owner => Some(kept(contents)),
            Ok(contents) => {
                tracing::warn!(
                    file = %path.display(),
                    "the last known good policy belongs to {}, and this is {}; starting without it. Give each \
                     sidecar a --state-dir of its own",
                    contents.owner,
                    self.owner
                );
                None
            }
            Err(reason) => {
                let aside = path.with_extension("corrupt");
                let moved = match fs::rename(&path, &aside) {
                    Ok(()) => format!("it was moved to {}", aside.display()),
                    Err(error) => format!("and it could not be moved away: {error}"),
                };
                tracing::warn!(
                    file = %path.display(),
                    "the last known good policy is damaged ({reason}); starting without it, {moved}"
                );
                None
            }
        }
    }

    /// Writes it so that a crash at any moment leaves either the old file or the new one.
    pub(super) fn save(&self, kept: &Kept) -> io::Result<()> {
        let bytes = encode(&self.owner, kept);
        let path = self.path();
        let new = path.with_extension("new");
        let write = || -> io::Result<()> {
            // Removed first: an old one could have other permissions.
            match fs::remove_file(&new) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
            file.write_all(&bytes)?;
            file.sync_all()?;
            fs::rename(&new, &path)?;
            File::open(&self.dir)?.sync_all()
        };
        write().inspect_err(|_| drop(fs::remove_file(&new)))
    }
}

fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    if length > MAX_BYTES {
        return Err(io::Error::other(format!("{length} bytes are more than the {MAX_BYTES} that are read")));
    }
    let mut bytes = Vec::with_capacity(usize::try_from(length).unwrap_or(0));
    Read::by_ref(&mut file).take(MAX_BYTES).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn encode(owner: &str, kept: &Kept) -> Vec<u8> {
    let identity = kept.identity.as_ref();
    let contents = Contents {
        owner: owner.to_owned(),
        resources: kept.resources.clone(),
        chain: identity.map(|identity| identity.chain.clone()).unwrap_or_default(),
        key: identity.map(|identity| identity.key.clone()).unwrap_or_default(),
        received_ms: identity
            .and_then(|identity| identity.received.duration_since(UNIX_EPOCH).ok())
            .and_then(|since| u64::try_from(since.as_millis()).ok())
            .unwrap_or(0),
    };
    let body = contents.encode_to_vec();
    let mut bytes = Vec::with_capacity(MAGIC.len() + 8 + body.len());
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&checksum(&body).to_le_bytes());
    bytes.extend_from_slice(&body);
    bytes
}

fn decode(bytes: &[u8]) -> Result<Contents, &'static str> {
    let rest = bytes.strip_prefix(MAGIC).ok_or("it does not begin as this version's file does")?;
    let (sum, body) = rest.split_first_chunk::<8>().ok_or("it ends too early")?;
    if u64::from_le_bytes(*sum) != checksum(body) {
        return Err("its checksum does not match its content");
    }
    Contents::decode(body).map_err(|_| "its content cannot be read")
}

fn kept(contents: Contents) -> Kept {
    let identity = (!contents.chain.is_empty() && !contents.key.is_empty()).then(|| Stored {
        chain: contents.chain,
        key: contents.key,
        received: UNIX_EPOCH
            .checked_add(Duration::from_millis(contents.received_ms))
            .unwrap_or_else(SystemTime::now),
    });
    Kept { resources: contents.resources, identity }
}

/// FNV-1a, 64 bits: finds torn and damaged files. Who may write the file may also read the key in it, so nothing
/// stronger would protect anything.
fn checksum(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Kept {
        let trust = wire::TrustBundle { roots: vec![vec![1, 2, 3]] };
        Kept {
            resources: vec![wire::Resource {
                name: "trust".to_owned(),
                version: "7".to_owned(),
                body: Some(wire::resource::Body::Trust(trust)),
            }],
            identity: Some(Stored {
                chain: vec![vec![4, 5], vec![6]],
                key: b"secret".to_vec(),
                received: UNIX_EPOCH + Duration::from_millis(1_700_000_000_123),
            }),
        }
    }

    fn open(dir: &Path) -> LastKnownGood {
        LastKnownGood::open(dir, "shop/cart".to_owned()).expect("opened")
    }

    #[test]
    fn what_was_kept_is_found_again() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = open(&dir.path().join("state"));
        assert_eq!(file.load(), None);
        file.save(&example()).expect("saved");
        assert_eq!(file.load(), Some(example()));
        let without = Kept { identity: None, ..example() };
        file.save(&without).expect("saved");
        assert_eq!(file.load(), Some(without));
    }

    #[test]
    fn only_the_owner_can_look_in() {
        let dir = tempfile::tempdir().expect("a directory");
        let state = dir.path().join("state");
        let file = open(&state);
        file.save(&example()).expect("saved");
        let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o777;
        assert_eq!(mode(&state), 0o700);
        assert_eq!(mode(&file.path()), 0o600);
        fs::set_permissions(&state, fs::Permissions::from_mode(0o755)).expect("changed");
        open(&state);
        assert_eq!(mode(&state), 0o700, "an open directory is closed again");
    }

    #[test]
    fn a_damaged_file_is_put_aside() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = open(dir.path());
        file.save(&example()).expect("saved");
        let good = fs::read(file.path()).expect("read");
        for cut in [0, 5, MAGIC.len(), MAGIC.len() + 4, good.len() - 1] {
            fs::write(file.path(), &good[..cut]).expect("written");
            assert_eq!(file.load(), None, "cut at {cut}");
            assert!(!file.path().exists(), "cut at {cut}");
            assert_eq!(fs::read(file.path().with_extension("corrupt")).expect("aside").len(), cut);
        }
        for flipped in MAGIC.len()..good.len() {
            let mut bytes = good.clone();
            bytes[flipped] ^= 0x10;
            fs::write(file.path(), &bytes).expect("written");
            assert_eq!(file.load(), None, "byte {flipped}");
        }
        file.save(&example()).expect("saved over it");
        assert_eq!(file.load(), Some(example()));
    }

    #[test]
    fn another_workloads_file_is_left_alone() {
        let dir = tempfile::tempdir().expect("a directory");
        open(dir.path()).save(&example()).expect("saved");
        let other = LastKnownGood::open(dir.path(), "shop/user".to_owned()).expect("opened");
        assert_eq!(other.load(), None);
        assert_eq!(open(dir.path()).load(), Some(example()));
    }

    #[test]
    fn the_key_is_not_printed() {
        assert!(!format!("{:?}", example()).contains("115, 101, 99"), "the bytes of `secret`");
    }
}
