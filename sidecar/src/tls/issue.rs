//! Getting a certificate: the key a sidecar makes for itself, when to renew, and the files of static mode.

use rcgen::{CertificateParams, DnType, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem, pem::PemObject};
use std::{
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

/// A private key whose certificate has been asked for. It never leaves this process.
pub(crate) struct PendingKey {
    key: KeyPair,
}

impl PendingKey {
    /// Makes an ECDSA P-256 key and the request (PKCS#10, DER) to have it certified. Whose the certificate will be is
    /// for the control plane to say; the request proves only that we hold the key.
    pub(crate) fn new() -> Result<(Self, Vec<u8>), rcgen::Error> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut request = CertificateParams::default();
        request.distinguished_name = rcgen::DistinguishedName::new();
        request.distinguished_name.push(DnType::CommonName, "weft-sidecar");
        let request = request.serialize_request(&key)?;
        Ok((Self { key }, request.der().to_vec()))
    }

    /// The key, for [`Tls::set_identity`](super::Tls::set_identity) once the chain has come.
    pub(crate) fn into_key(self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key.serialize_der()))
    }
}

/// When to renew a certificate: between 50 % and 70 % of its life, `random` (from 0 to 1) saying where, so that
/// sidecars which were started together do not all come at once.
pub(crate) fn renewal_time(not_before: SystemTime, not_after: SystemTime, random: f64) -> SystemTime {
    let life = not_after.duration_since(not_before).unwrap_or(Duration::ZERO);
    let random = if random.is_finite() { random.clamp(0.0, 1.0) } else { 0.5 };
    not_before + life.mul_f64(0.5 + 0.2 * random)
}

/// Identity and trust bundle from PEM files, for a sidecar without a control plane.
pub(crate) struct StaticFiles {
    /// The chain, this workload's certificate first.
    pub(crate) chain: Vec<CertificateDer<'static>>,
    /// Its key.
    pub(crate) key: PrivateKeyDer<'static>,
    /// Whom to trust.
    pub(crate) roots: Vec<CertificateDer<'static>>,
}

/// A PEM file that is of no use, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BadFile {
    /// It cannot be read.
    #[error("cannot read {}: {source}; check the path given by {flag} and its permissions", path.display())]
    Read {
        /// Which flag named it.
        flag: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It holds nothing of what is wanted.
    #[error("{} holds no {wanted}; {flag} must name a PEM file with one", path.display())]
    Nothing {
        /// Which flag named it.
        flag: &'static str,
        /// The file.
        path: PathBuf,
        /// What should be in it.
        wanted: &'static str,
    },
    /// It is not well-formed PEM.
    #[error("{} is not valid PEM: {reason}; write the file named by {flag} again", path.display())]
    Malformed {
        /// Which flag named it.
        flag: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

impl StaticFiles {
    /// Reads the three files.
    pub(crate) fn load(certificate: &Path, key: &Path, roots: &Path) -> Result<Self, BadFile> {
        Ok(Self {
            chain: certificates("--cert-file", certificate)?,
            key: private_key("--key-file", key)?,
            roots: certificates("--ca-file", roots)?,
        })
    }
}

/// Every certificate of a PEM file, at least one. `flag` is what named the file, for the error.
pub(crate) fn certificates(flag: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, BadFile> {
    let text = read(flag, path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) => Err(BadFile::Nothing { flag, path: path.into(), wanted: "certificate" }),
        Err(error) => Err(malformed(flag, path, &error)),
    }
}

fn private_key(flag: &'static str, path: &Path) -> Result<PrivateKeyDer<'static>, BadFile> {
    match PrivateKeyDer::from_pem_slice(&read(flag, path)?) {
        Ok(key) => Ok(key),
        Err(pem::Error::NoItemsFound) => {
            Err(BadFile::Nothing { flag, path: path.into(), wanted: "private key" })
        }
        Err(error) => Err(malformed(flag, path, &error)),
    }
}

fn read(flag: &'static str, path: &Path) -> Result<Vec<u8>, BadFile> {
    std::fs::read(path).map_err(|source| BadFile::Read { flag, path: path.into(), source })
}

/// Says what is wrong without quoting the file, which may be a private key.
fn malformed(flag: &'static str, path: &Path, error: &pem::Error) -> BadFile {
    let reason = match error {
        pem::Error::MissingSectionEnd { .. } => "a section has no end line",
        pem::Error::IllegalSectionStart { .. } => "a section's first line is malformed",
        pem::Error::Base64Decode(_) => "a section is not base64",
        pem::Error::SectionTooLarge => "a section is too large",
        _ => "it cannot be parsed",
    };
    BadFile::Malformed { flag, path: path.into(), reason: reason.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renewal_falls_between_half_and_seven_tenths_of_life() {
        let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let end = start + Duration::from_secs(1000);
        let at =
            |random| renewal_time(start, end, random).duration_since(start).expect("after start").as_secs();
        assert_eq!(at(0.0), 500);
        assert_eq!(at(0.5), 600);
        assert_eq!(at(1.0), 700);
        for odd in [-3.0, 7.0, f64::NAN, f64::INFINITY] {
            assert!((500..=700).contains(&at(odd)), "{odd}");
        }
        assert_eq!(renewal_time(end, start, 0.5), end, "a certificate without a life is due at once");
    }

    #[test]
    fn a_request_is_signed_by_its_key() {
        let (key, request) = PendingKey::new().expect("a key");
        let request =
            rcgen::CertificateSigningRequestParams::from_der(&request.into()).expect("a valid request");
        assert_eq!(
            rcgen::PublicKeyData::der_bytes(&request.public_key),
            rcgen::PublicKeyData::der_bytes(&key.key)
        );
    }

    #[test]
    fn errors_name_the_file_and_the_flag() {
        let dir = tempfile::tempdir().expect("a directory");
        let missing = dir.path().join("none.pem");
        let error = certificates("--ca-file", &missing).expect_err("not there").to_string();
        assert!(error.contains("none.pem") && error.contains("--ca-file"), "{error}");

        let empty = dir.path().join("empty.pem");
        std::fs::write(&empty, "nothing here\n").expect("written");
        let error = private_key("--key-file", &empty).expect_err("no key").to_string();
        assert!(error.contains("holds no private key"), "{error}");

        let broken = dir.path().join("broken.pem");
        std::fs::write(&broken, "-----BEGIN CERTIFICATE-----\n%%%%\n-----END CERTIFICATE-----\n")
            .expect("written");
        let error = certificates("--cert-file", &broken).expect_err("broken").to_string();
        assert!(error.contains("broken.pem") && error.contains("not valid PEM"), "{error}");
    }
}
