//! TLS to a Redis server: whom to believe, and what to show. Nothing is taken from the mesh, which such a server is not
//! part of.

use super::{
    secret::{self, Secrets},
    trouble::Trouble,
};
use rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};
use tokio_rustls::TlsConnector;
use weft_config::snapshot::CacheRedisTls;

/// Where systems keep the certificate authorities that they trust: Debian and Alpine, Red Hat, SUSE, BSD and macOS.
const SYSTEM: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// How to make handshakes, and whom to expect.
pub(super) struct Tls {
    pub(super) connector: TlsConnector,
    pub(super) server: ServerName<'static>,
}

impl Tls {
    /// Reads what policy names, from disk.
    pub(super) fn read(settings: &CacheRedisTls, secrets: &Secrets) -> Result<Self, Trouble> {
        let server = ServerName::try_from(settings.server_name.to_string())
            .map_err(|_| Trouble::Strange("its name is none that a certificate can have".into()))?;
        let folder = settings.secret.as_ref().map(|secret| secrets.folder(secret)).transpose()?;
        let roots = match folder.as_ref().map(|folder| folder.read("ca.crt")).transpose()?.flatten() {
            Some(pem) => {
                let path = folder.as_ref().map(|folder| folder.path("ca.crt")).unwrap_or_default();
                given(&path, &pem)?
            }
            None => of_the_system(std::env::var_os("SSL_CERT_FILE").map(PathBuf::from))?,
        };
        let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(Trouble::Tls)?
            .with_root_certificates(roots);
        let shown = match &folder {
            Some(folder) => (folder.read("tls.crt")?, folder.read("tls.key")?),
            None => (None, None),
        };
        let config = match (shown, &folder) {
            ((None, None), _) | (_, None) => builder.with_no_client_auth(),
            ((None, Some(_)), Some(folder)) => {
                return Err(Trouble::file(&folder.path("tls.crt"), "it is not there, and `tls.key` is"));
            }
            ((Some(_), None), Some(folder)) => {
                return Err(Trouble::file(&folder.path("tls.key"), "it is not there, and `tls.crt` is"));
            }
            ((Some(chain), Some(key)), Some(folder)) => {
                let chain = certificates(&folder.path("tls.crt"), &chain)?;
                let path = folder.path("tls.key");
                let key = PrivateKeyDer::from_pem_slice(&key)
                    .map_err(|_| Trouble::file(&path, "it holds no private key in PEM"))?;
                let fits = builder.with_client_auth_cert(chain, key);
                fits.map_err(|_| Trouble::file(&path, "it cannot be used, or is not the key of `tls.crt`"))?
            }
        };
        Ok(Self { connector: TlsConnector::from(Arc::new(config)), server })
    }
}

fn certificates(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, Trouble> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match read {
        Ok(found) if found.is_empty() => Err(Trouble::file(path, "it holds no certificate in PEM")),
        Ok(found) => Ok(found),
        Err(_) => Err(Trouble::file(path, "it is not valid PEM")),
    }
}

/// The authorities of a secret, each of which has to be of use.
fn given(path: &Path, pem: &[u8]) -> Result<RootCertStore, Trouble> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path, pem)? {
        roots.add(certificate).map_err(|error| Trouble::file(path, error))?;
    }
    Ok(roots)
}

/// Those that the system trusts, as far as they are of use.
fn of_the_system(named: Option<PathBuf>) -> Result<RootCertStore, Trouble> {
    let paths = named.map_or_else(|| SYSTEM.iter().map(PathBuf::from).collect(), |path| vec![path]);
    for path in paths {
        let Some(pem) = secret::read(&path)? else { continue };
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(certificates(&path, &pem)?);
        if !roots.is_empty() {
            return Ok(roots);
        }
    }
    Err(Trouble::NoRoots)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};

    fn authority() -> (String, String) {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        (params.self_signed(&key).expect("signed").pem(), key.serialize_pem())
    }

    fn read(files: &[(&str, &str)], server: &str) -> Result<(), String> {
        let dir = tempfile::tempdir().expect("a directory");
        let folder = dir.path().join("shop/redis");
        std::fs::create_dir_all(&folder).expect("made");
        for (file, text) in files {
            std::fs::write(folder.join(file), text).expect("written");
        }
        let settings = CacheRedisTls { secret: Some("shop/redis".into()), server_name: server.into() };
        let read = Tls::read(&settings, &Secrets::new(Some(dir.path())));
        read.map(|_| ()).map_err(|trouble| trouble.to_string())
    }

    #[test]
    fn files_are_of_use_or_named() {
        let (ca, key) = authority();
        let (_, other) = authority();
        assert_eq!(read(&[("ca.crt", &ca)], "redis.shop"), Ok(()));
        assert_eq!(read(&[("ca.crt", &ca)], "::1"), Ok(()), "an address is a name too");
        assert_eq!(read(&[("ca.crt", &ca), ("tls.crt", &ca), ("tls.key", &key)], "a"), Ok(()));
        for (files, told) in [
            (&[("ca.crt", "x")][..], "ca.crt: it holds no certificate"),
            (&[("ca.crt", ""), ("tls.key", &*key)], "ca.crt: it holds no certificate"),
            (&[("ca.crt", &*ca), ("tls.key", &*key)], "tls.crt: it is not there"),
            (&[("ca.crt", &*ca), ("tls.crt", &*ca)], "tls.key: it is not there"),
            (&[("ca.crt", &*ca), ("tls.crt", &*ca), ("tls.key", "x")], "tls.key: it holds no private key"),
            (&[("ca.crt", &*ca), ("tls.crt", &*ca), ("tls.key", &*other)], "tls.key: it cannot be used"),
        ] {
            let said = read(files, "a").expect_err("is of no use");
            assert!(said.contains(told), "{said}");
            assert!(!said.contains("PRIVATE KEY-----"), "{said}");
        }
    }

    #[test]
    fn a_system_without_authorities_is_told() {
        let nothing = of_the_system(Some("/nonexistent/bundle.pem".into()));
        assert!(matches!(nothing, Err(Trouble::NoRoots)));
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("bundle.pem");
        std::fs::write(&path, authority().0).expect("written");
        assert_eq!(of_the_system(Some(path)).map(|roots| roots.len()).ok(), Some(1));
    }
}
