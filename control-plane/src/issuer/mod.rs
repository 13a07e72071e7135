//! The mesh's certificate issuer: who signs now, which roots sidecars trust, and the control plane's own TLS.

mod authority;
mod request;
mod rotation;

pub use authority::Authority;
pub use request::Refused;
pub use rotation::prepare_rotation;

use crate::settings::Settings;
use anyhow::{Context, Result, bail};
use arc_swap::ArcSwap;
use rcgen::KeyPair;
use rotation::Rotation;
use rustls::{RootCertStore, ServerConfig, server::WebPkiClientVerifier};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use sha2::{Digest, Sha256};
use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};
use weft_config::{identity::SpiffeId, wire};

/// How often the control plane's own certificate is renewed at most.
const SHORTEST_OWN_LIFE: Duration = Duration::from_secs(3600);
/// The ALPN name of HTTP/2, which gRPC needs.
const HTTP2: &[u8] = b"h2";

/// Issues certificates and says whom to trust.
pub struct Issuer {
    trust_domain: Arc<str>,
    ttl: Duration,
    state_dir: PathBuf,
    extra_roots_file: Option<PathBuf>,
    /// True if the CA came with --ca-cert: then it is rotated by whoever made it.
    given: bool,
    current: ArcSwap<Current>,
    /// Held while files are read and the current state is replaced.
    reload: Mutex<Rotation>,
}

/// What is in force, swapped whole.
struct Current {
    authority: Arc<Authority>,
    roots: Vec<CertificateDer<'static>>,
    trust: Trust,
    server: Arc<ServerConfig>,
    own_renewal: SystemTime,
}

/// The trust bundle with its version, as it is pushed.
#[derive(Clone, Debug, PartialEq)]
pub struct Trust {
    /// Changes when a root comes or goes.
    pub version: String,
    /// The roots.
    pub bundle: wire::TrustBundle,
}

impl Issuer {
    /// Opens the CA that the settings give, or the one in the state directory, which is made on the first start.
    pub fn open(settings: &Settings) -> Result<Self> {
        crate::private_file::prepare_directory(&settings.state_dir)?;
        let trust_domain: Arc<str> = settings.trust_domain.as_str().into();
        if own_identity(&trust_domain).to_string().parse::<SpiffeId>().is_err() {
            bail!("`{trust_domain}` is no trust domain; use lower-case letters, digits, `-`, `_` and `.`");
        }
        let (authority, given) = match (&settings.ca_cert, &settings.ca_key) {
            (Some(certificate), Some(key)) => (Authority::from_files(certificate, key)?, true),
            (None, None) => {
                rotation::recover(&settings.state_dir)?;
                (Authority::open_or_create(&settings.state_dir, rotation::SIGNING, &trust_domain)?, false)
            }
            _ => bail!("--ca-cert and --ca-key go together; give both or neither"),
        };
        let authority = Arc::new(authority);
        rotation::note_life(&settings.state_dir, settings.certificate_ttl)?;
        let rotation = Rotation::default();
        let roots = rotation::roots(&settings.state_dir, settings.trust_bundle.as_deref(), &authority)?;
        let current = Current::new(&trust_domain, authority, roots, settings.certificate_ttl)?;
        Ok(Self {
            trust_domain,
            ttl: settings.certificate_ttl,
            state_dir: settings.state_dir.clone(),
            extra_roots_file: settings.trust_bundle.clone(),
            given,
            current: ArcSwap::from_pointee(current),
            reload: Mutex::new(rotation),
        })
    }

    /// The trust domain of everything it signs.
    pub fn trust_domain(&self) -> &Arc<str> {
        &self.trust_domain
    }

    /// The trust bundle in force.
    pub fn trust(&self) -> Trust {
        self.current.load().trust.clone()
    }

    /// When the CA that signs now ends.
    pub fn authority_expires(&self) -> SystemTime {
        self.current.load().authority.not_after()
    }

    /// Server TLS for the push port. Taken anew for each connection, so that new roots and renewals take effect.
    pub(crate) fn server_tls(&self) -> Arc<ServerConfig> {
        self.current.load().server.clone()
    }

    /// A certificate for a proven identity, from a request of which only the public key counts.
    pub fn issue(
        &self,
        identity: &SpiffeId,
        request: &[u8],
    ) -> Result<Vec<CertificateDer<'static>>, Refused> {
        let key = request::proven_key(request)?;
        let current = self.current.load();
        current
            .authority
            .sign(identity, &key, &[], self.ttl, SystemTime::now())
            .map_err(|error| Refused::Authority(format!("{error:#}")))
    }

    /// Looks at the files again, moves a rotation on, renews the own certificate in time. True if the trust bundle
    /// changed. `everyone_trusts` says whether all connected sidecars have taken the bundle in force.
    pub fn refresh(&self, everyone_trusts: bool) -> Result<bool> {
        let mut rotation = self.reload.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.current.load_full();
        let mut authority = before.authority.clone();
        if !self.given
            && let Some(next) = rotation.advance(
                &self.state_dir,
                &self.trust_domain,
                &before.roots,
                everyone_trusts,
                self.ttl,
            )?
        {
            authority = Arc::new(next);
        }
        let roots = rotation::roots(&self.state_dir, self.extra_roots_file.as_deref(), &authority)?;
        let signer_changed = !Arc::ptr_eq(&authority, &before.authority);
        if roots == before.roots && !signer_changed && SystemTime::now() < before.own_renewal {
            return Ok(false);
        }
        let current = Current::new(&self.trust_domain, authority, roots, self.ttl)?;
        let changed = current.trust != before.trust;
        self.current.store(Arc::new(current));
        Ok(changed)
    }
}

impl Current {
    fn new(
        trust_domain: &Arc<str>,
        authority: Arc<Authority>,
        roots: Vec<CertificateDer<'static>>,
        ttl: Duration,
    ) -> Result<Self> {
        let now = SystemTime::now();
        let own_life = ttl.max(SHORTEST_OWN_LIFE);
        let key = KeyPair::generate().context("cannot make a key for the control plane")?;
        let chain = authority
            .sign(&own_identity(trust_domain), &key, &["localhost", "weft-control-plane"], own_life, now)
            .context("cannot sign the control plane's own certificate")?;
        let server = server_config(&roots, chain, &key)?;
        let trust = Trust::of(&roots);
        Ok(Self { authority, roots, trust, server, own_renewal: now + own_life / 2 })
    }
}

impl Trust {
    fn of(roots: &[CertificateDer<'static>]) -> Self {
        let mut hash = Sha256::new();
        for root in roots {
            hash.update((root.len() as u64).to_be_bytes());
            hash.update(root);
        }
        let bundle = wire::TrustBundle { roots: roots.iter().map(|root| root.to_vec()).collect() };
        Self { version: crate::publisher::short_version(hash), bundle }
    }
}

/// The identity that the control plane itself proves.
pub fn own_identity(trust_domain: &Arc<str>) -> SpiffeId {
    SpiffeId {
        trust_domain: trust_domain.clone(),
        namespace: "weft-system".into(),
        service_account: "control-plane".into(),
    }
}

fn server_config(
    roots: &[CertificateDer<'static>],
    chain: Vec<CertificateDer<'static>>,
    key: &KeyPair,
) -> Result<Arc<ServerConfig>> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut store = RootCertStore::empty();
    for root in roots {
        store.add(root.clone()).context("a root of the trust bundle cannot be used")?;
    }
    // A certificate is optional here, because a new sidecar has none yet; the stream then demands a join token.
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(store), provider.clone())
        .clear_root_hint_subjects()
        .allow_unauthenticated()
        .build()
        .context("the trust bundle cannot be used to check clients")?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .context("TLS 1.3 is not available")?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .context("the control plane's own certificate cannot be used")?;
    config.alpn_protocols = vec![HTTP2.to_vec()];
    // A resumed session would carry an identity whose certificate was never checked again.
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

#[cfg(test)]
mod tests;
