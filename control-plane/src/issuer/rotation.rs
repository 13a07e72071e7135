//! How one CA follows another without a connection lost: first everybody trusts both, then the new one signs, and the
//! old one is dropped once nothing it signed is valid any more.
//!
//! All of it is in the state directory, so a restart at any point carries on:
//! `next-ca.pem` and `next-ca.key` wait for their turn, `retired-<unix seconds>.pem` is trusted until that time.

use super::authority::{Authority, read_certificates};
use crate::private_file;
use anyhow::{Context, Result, bail};
use rustls_pki_types::CertificateDer;
use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

/// The CA that signs.
pub(super) const SIGNING: &str = "ca";
/// The CA that will.
const NEXT: &str = "next-ca";
/// The longest life, in seconds, of anything that the CA has signed. Settings may ask for shorter ones by now.
const LONGEST_LIFE: &str = "ca.longest-life";
/// Roots that an operator adds by hand.
const EXTRA_ROOTS: &str = "roots.pem";
/// Sidecars that were away for a moment get this long to come back and take the new bundle.
const SHORTEST_OVERLAP: Duration = Duration::from_secs(10);
/// Clocks differ; an old root stays this much longer than the last certificate it signed.
const RETIREMENT_MARGIN: Duration = Duration::from_secs(300);

/// Where a rotation stands in this process.
#[derive(Default)]
pub(super) struct Rotation {
    /// Since when the next CA is in the bundle.
    announced: Option<Instant>,
}

/// Makes the next CA. The control plane that runs on this state directory takes it from there.
pub fn prepare_rotation(state_dir: &Path, trust_domain: &str) -> Result<PathBuf> {
    private_file::prepare_directory(state_dir)?;
    if !state_dir.join(format!("{SIGNING}.key")).exists() {
        bail!("there is no CA in {} that could be followed by another", state_dir.display());
    }
    let next = state_dir.join(format!("{NEXT}.pem"));
    if next.exists() {
        bail!("a rotation is under way already: {} waits for its turn", next.display());
    }
    Authority::open_or_create(state_dir, NEXT, trust_domain)?;
    Ok(next)
}

/// Every root that sidecars are to trust: the signer's, the next one's, the operator's own, retired ones.
pub(super) fn roots(
    state_dir: &Path,
    given_bundle: Option<&Path>,
    authority: &Authority,
) -> Result<Vec<CertificateDer<'static>>> {
    let mut roots = vec![authority.root().clone()];
    let mut add_file = |path: &Path, needed: bool| -> Result<()> {
        if needed || path.exists() {
            roots.extend(read_certificates(path)?);
        }
        Ok(())
    };
    if let Some(bundle) = given_bundle {
        add_file(bundle, true)?;
    }
    add_file(&state_dir.join(EXTRA_ROOTS), false)?;
    if let Some(next) = last_certificate(&state_dir.join(format!("{NEXT}.pem")))? {
        roots.push(next);
    }
    let now = SystemTime::now();
    for (until, path) in retired(state_dir)? {
        if until <= now {
            remove(&path)?;
            tracing::info!(file = %path.display(), "an old CA is no longer trusted: all it signed has expired");
        } else if let Some(root) = last_certificate(&path)? {
            roots.push(root);
        }
    }
    let mut seen = std::collections::HashSet::new();
    roots.retain(|root| seen.insert(root.to_vec()));
    Ok(roots)
}

impl Rotation {
    /// Switches to the next CA if there is one and everybody is ready for it.
    pub(super) fn advance(
        &mut self,
        state_dir: &Path,
        trust_domain: &str,
        announced_roots: &[CertificateDer<'static>],
        everyone_trusts: bool,
        ttl: Duration,
    ) -> Result<Option<Authority>> {
        let path = |stem: &str, end: &str| state_dir.join(format!("{stem}.{end}"));
        if !path(NEXT, "pem").exists() {
            self.announced = None;
            return Ok(None);
        }
        if recover(state_dir)? {
            return Authority::open_or_create(state_dir, SIGNING, trust_domain).map(Some);
        }
        let Some(next_root) = last_certificate(&path(NEXT, "pem"))? else { return Ok(None) };
        if !announced_roots.contains(&next_root) {
            return Ok(None);
        }
        let announced = *self.announced.get_or_insert_with(Instant::now);
        if !everyone_trusts || announced.elapsed() < SHORTEST_OVERLAP {
            return Ok(None);
        }
        // First the old root is kept, so that at no point anything valid is not trusted.
        let until = SystemTime::now() + note_life(state_dir, ttl)? + RETIREMENT_MARGIN;
        let until = until.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let old = fs::read(path(SIGNING, "pem")).context("cannot read the CA that is to retire")?;
        private_file::replace(&state_dir.join(format!("retired-{until}.pem")), &old, 0o644)?;
        rename(&path(NEXT, "key"), &path(SIGNING, "key"))?;
        recover(state_dir)?;
        remove(&state_dir.join(LONGEST_LIFE))?;
        note_life(state_dir, ttl)?;
        self.announced = None;
        let authority = Authority::open_or_create(state_dir, SIGNING, trust_domain)?;
        tracing::info!(
            "the next CA signs from now on; the old one stays trusted until all it signed has expired"
        );
        Ok(Some(authority))
    }
}

#[cfg(test)]
impl Rotation {
    /// Makes the overlap look as if it had begun earlier.
    pub(super) fn backdate(&mut self, by: Duration) {
        self.announced = self.announced.and_then(|announced| announced.checked_sub(by));
    }
}

/// Finishes a switch that was cut short between its two renames: the key has moved, its certificate has not. While a
/// rotation is prepared it is the other way round, the key is there before the certificate.
pub(super) fn recover(state_dir: &Path) -> Result<bool> {
    let next = state_dir.join(format!("{NEXT}.pem"));
    if !next.exists() || state_dir.join(format!("{NEXT}.key")).exists() {
        return Ok(false);
    }
    rename(&next, &state_dir.join(format!("{SIGNING}.pem")))?;
    Ok(true)
}

/// Notes that the CA signs certificates of this life. Gives the longest of all it has signed.
pub(super) fn note_life(state_dir: &Path, ttl: Duration) -> Result<Duration> {
    let path = state_dir.join(LONGEST_LIFE);
    let known =
        fs::read_to_string(&path).ok().and_then(|text| text.trim().parse().ok()).map(Duration::from_secs);
    let longest = known.unwrap_or_default().max(ttl);
    if known != Some(longest) {
        private_file::replace(&path, format!("{}\n", longest.as_secs()).as_bytes(), 0o644)?;
    }
    Ok(longest)
}

fn last_certificate(path: &Path) -> Result<Option<CertificateDer<'static>>> {
    if !path.exists() {
        return Ok(None);
    }
    Ok(read_certificates(path)?.pop())
}

fn retired(state_dir: &Path) -> Result<Vec<(SystemTime, PathBuf)>> {
    let mut found = Vec::new();
    let entries = fs::read_dir(state_dir).with_context(|| format!("cannot list {}", state_dir.display()))?;
    for entry in entries.flatten() {
        let name = entry.file_name();
        let until = name
            .to_str()
            .and_then(|name| name.strip_prefix("retired-"))
            .and_then(|name| name.strip_suffix(".pem"))
            .and_then(|seconds| seconds.parse::<u64>().ok());
        if let Some(until) = until {
            found.push((UNIX_EPOCH + Duration::from_secs(until), entry.path()));
        }
    }
    found.sort();
    Ok(found)
}

fn rename(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).with_context(|| format!("cannot rename {} to {}", from.display(), to.display()))
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}
