//! What outlives a restart besides keys: who was serving, and the last good text of each policy file.

use crate::{
    private_file, purges,
    registry::{Instance, Serving},
    source::SourceFile,
};
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

const LEASES_FILE: &str = "leases.json";
const POLICY_FILE: &str = "last-good-policy.json";
const PURGES_FILE: &str = "purges.json";

/// The files in the state directory.
pub(crate) struct Remembered {
    state_dir: PathBuf,
}

#[derive(Serialize, Deserialize)]
struct LeaseRecord {
    namespace: String,
    workload: String,
    instance: String,
    identity: String,
    address: SocketAddr,
}

#[derive(Serialize, Deserialize)]
struct FileRecord {
    name: String,
    text: String,
}

impl Remembered {
    pub(crate) fn new(state_dir: &Path) -> Self {
        Self { state_dir: state_dir.to_path_buf() }
    }

    /// Who served when the last control plane on this state directory wrote it down; `None` if none did.
    pub(crate) fn leases(&self) -> Option<Vec<(Instance, Serving)>> {
        let records: Vec<LeaseRecord> = self.read(LEASES_FILE)?;
        let lease = |record: LeaseRecord| {
            let instance = Instance {
                namespace: record.namespace.into(),
                workload: record.workload.into(),
                id: record.instance.into(),
            };
            Some((instance, Serving { identity: record.identity.parse().ok()?, address: record.address }))
        };
        Some(records.into_iter().filter_map(lease).collect())
    }

    /// Writes down who serves.
    pub(crate) fn keep_leases(&self, serving: &[(Instance, Serving)]) -> Result<()> {
        let records: Vec<LeaseRecord> = serving
            .iter()
            .map(|(instance, serving)| LeaseRecord {
                namespace: instance.namespace.to_string(),
                workload: instance.workload.to_string(),
                instance: instance.id.to_string(),
                identity: serving.identity.to_string(),
                address: serving.address,
            })
            .collect();
        self.write(LEASES_FILE, &records)
    }

    /// The last good text of each policy file, if any was written down.
    pub(crate) fn policy(&self) -> Vec<SourceFile> {
        let records: Vec<FileRecord> = self.read(POLICY_FILE).unwrap_or_default();
        records
            .into_iter()
            .map(|file| SourceFile { name: file.name.into(), text: file.text.into() })
            .collect()
    }

    /// Writes down good policy files.
    pub(crate) fn keep_policy(&self, files: &[SourceFile]) -> Result<()> {
        let records: Vec<FileRecord> = files
            .iter()
            .map(|file| FileRecord { name: file.name.to_string(), text: file.text.to_string() })
            .collect();
        self.write(POLICY_FILE, &records)
    }

    /// The purges that were asked for lately. If none are known, the list is new, and whoever knows another one cannot
    /// know what it missed.
    pub(crate) fn purges(&self) -> Result<purges::Log> {
        if let Some(log) = self.read(PURGES_FILE) {
            return Ok(log);
        }
        let log = purges::Log::new();
        self.keep_purges(&log)?;
        Ok(log)
    }

    /// Writes down the purges that were asked for lately.
    pub(crate) fn keep_purges(&self, log: &purges::Log) -> Result<()> {
        self.write(PURGES_FILE, log)
    }

    fn read<T: serde::de::DeserializeOwned>(&self, name: &str) -> Option<T> {
        let path = self.state_dir.join(name);
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
            Err(error) => {
                tracing::warn!(file = %path.display(), %error, "cannot read what was known before the restart");
                return None;
            }
        };
        serde_json::from_slice(&bytes)
            .inspect_err(|error| {
                tracing::warn!(file = %path.display(), %error, "what was known before the restart is damaged; starting without");
            })
            .ok()
    }

    fn write<T: Serialize>(&self, name: &str, value: &T) -> Result<()> {
        let bytes = serde_json::to_vec(value).context("does not serialise")?;
        private_file::replace(&self.state_dir.join(name), &bytes, 0o600)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leases_survive_a_restart() {
        let root = tempfile::tempdir().expect("temp dir");
        let remembered = Remembered::new(root.path());
        assert_eq!(remembered.leases(), None);
        let serving = vec![(
            Instance { namespace: "shop".into(), workload: "cart".into(), id: "1".into() },
            Serving {
                identity: "spiffe://weft.local/ns/shop/sa/cart".parse().expect("valid"),
                address: "10.0.0.1:15006".parse().expect("valid"),
            },
        )];
        remembered.keep_leases(&serving).expect("written");
        assert_eq!(remembered.leases(), Some(serving));
        remembered.keep_leases(&[]).expect("written");
        assert_eq!(remembered.leases(), Some(vec![]), "nobody served is not the same as nothing known");
    }

    #[test]
    fn the_list_of_purges_is_the_same_after_a_restart_and_a_new_one_if_it_is_lost() {
        let root = tempfile::tempdir().expect("temp dir");
        let remembered = Remembered::new(root.path());
        let log = remembered.purges().expect("written");
        assert_eq!(remembered.purges().expect("read"), log);
        std::fs::write(root.path().join(PURGES_FILE), "{").expect("written");
        assert_ne!(remembered.purges().expect("a new one"), log);
    }

    #[test]
    fn a_damaged_file_is_as_good_as_none() {
        let root = tempfile::tempdir().expect("temp dir");
        std::fs::write(root.path().join(LEASES_FILE), "[{").expect("written");
        std::fs::write(root.path().join(POLICY_FILE), "nonsense").expect("written");
        let remembered = Remembered::new(root.path());
        assert_eq!(remembered.leases(), None);
        assert!(remembered.policy().is_empty());
    }
}
