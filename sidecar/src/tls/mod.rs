//! Mutual TLS between sidecars: certificates and trust bundles that rotate under live traffic, and both handshakes.

mod failure;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;
mod issue;
mod sniff;
mod verify;

#[cfg(test)]
mod tests;

pub(crate) use failure::{HandshakeFailure, Refused};
pub(crate) use issue::{PendingKey, StaticFiles, certificates, renewal_time};
pub(crate) use sniff::{Sniffed, client_hello};

use crate::io::{Io, Rewound};
use arc_swap::ArcSwap;
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    client::Resumption,
    crypto::{CryptoProvider, aws_lc_rs},
    server::{NoServerSessionStorage, WebPkiClientVerifier},
    sign::{CertifiedKey, SingleCertAndKey},
    version::TLS13,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};
use weft_config::identity::{MeshProtocol, SpiffeId};

/// How much plain text rustls may turn into records before the socket takes them: four full records a system call
/// with some slack, so that bulk writes are few and large.
const WRITE_LIMIT: usize = 128 * 1024;

/// The cryptography of the mesh: TLS 1.3 with AES-128-GCM preferred, post-quantum hybrid key exchange first.
pub(crate) fn provider() -> CryptoProvider {
    CryptoProvider {
        cipher_suites: vec![
            aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256,
            aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384,
            aws_lc_rs::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        ],
        kx_groups: vec![
            aws_lc_rs::kx_group::X25519MLKEM768,
            aws_lc_rs::kx_group::X25519,
            aws_lc_rs::kx_group::SECP256R1,
        ],
        ..aws_lc_rs::default_provider()
    }
}

/// Who this workload is: its certificate and what it says.
pub(crate) struct Identity {
    /// The SPIFFE ID.
    pub(crate) id: SpiffeId,
    /// Valid from.
    pub(crate) not_before: SystemTime,
    /// Valid until.
    pub(crate) not_after: SystemTime,
    /// The serial number in hexadecimal, as certificate tools print it.
    pub(crate) serial: String,
    certified: Arc<CertifiedKey>,
}

impl Identity {
    /// Certificate and key, for TLS with the control plane.
    pub(crate) fn certified_key(&self) -> Arc<CertifiedKey> {
        self.certified.clone()
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("id", &self.id)
            .field("not_after", &self.not_after)
            .field("serial", &self.serial)
            .finish_non_exhaustive()
    }
}

/// Why a certificate, a key or a trust bundle was not taken. What was in force before stays in force.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unusable {
    /// The chain is empty.
    #[error("the certificate chain is empty; it must start with this workload's certificate")]
    NoCertificate,
    /// The certificate does not do as an identity.
    #[error("the certificate cannot be used as an identity: {0}")]
    Certificate(String),
    /// It names somebody in another trust domain.
    #[error("the certificate is for {found}, and this mesh's trust domain is `{expected}`")]
    TrustDomain {
        /// Whom it names.
        found: Box<SpiffeId>,
        /// The trust domain.
        expected: String,
    },
    /// The private key is not the certificate's.
    #[error("the private key does not belong to the certificate, or cannot be used: {0}")]
    Key(String),
    /// The trust bundle is empty.
    #[error("the trust bundle is empty; it must hold at least one CA certificate")]
    NoRoots,
    /// A certificate of the trust bundle cannot be used.
    #[error("certificate {0} of the trust bundle cannot be used: {1}")]
    Root(usize, String),
}

/// What is in force. Replaced whole, so that a handshake sees certificate and bundle of one moment.
struct State {
    identity: Option<Arc<Identity>>,
    roots: Arc<RootCertStore>,
    root_certificates: Arc<[CertificateDer<'static>]>,
    /// Made once for every identity and bundle; `None` until both are there.
    configs: Option<Configs>,
}

struct Configs {
    server: Arc<ServerConfig>,
    /// One for each of [`MeshProtocol::ALL`], lacking only whom to expect.
    clients: [ClientConfig; MeshProtocol::ALL.len()],
}

/// The TLS side of a sidecar, shared by its workers.
pub(crate) struct Tls {
    trust_domain: Arc<str>,
    provider: Arc<CryptoProvider>,
    state: ArcSwap<State>,
    /// Held while a new state is made, so that an identity and a bundle that come together do not undo each other.
    change: Mutex<()>,
}

/// A mesh connection taken from a peer who proved who it is.
pub(crate) struct Accepted {
    /// The connection.
    pub(crate) io: Io,
    /// Who is at the other end.
    pub(crate) peer: SpiffeId,
    /// What is spoken; HTTP/1.1 if the peer offered nothing.
    pub(crate) protocol: MeshProtocol,
    /// Which service and port is wanted, in the form of `mesh_server_name`.
    pub(crate) server_name: Option<String>,
}

impl Tls {
    /// TLS for a workload in `trust_domain`, which can do nothing until it has an identity and roots.
    pub(crate) fn new(trust_domain: impl Into<Arc<str>>) -> Self {
        let state = State {
            identity: None,
            roots: Arc::new(RootCertStore::empty()),
            root_certificates: Arc::new([]),
            configs: None,
        };
        Self {
            trust_domain: trust_domain.into(),
            provider: Arc::new(provider()),
            state: ArcSwap::from_pointee(state),
            change: Mutex::new(()),
        }
    }

    /// The trust domain whose identities are taken.
    pub(crate) fn trust_domain(&self) -> &Arc<str> {
        &self.trust_domain
    }

    /// Uses this certificate and key for new connections; open ones go on as they are.
    pub(crate) fn set_identity(
        &self,
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Result<Arc<Identity>, Unusable> {
        let identity = Arc::new(self.check_identity(chain, key)?);
        self.replace(Some(identity.clone()), None)?;
        Ok(identity)
    }

    /// Trusts these certificate authorities and no others from now on; open connections go on as they are.
    pub(crate) fn set_roots(&self, certificates: Vec<CertificateDer<'static>>) -> Result<(), Unusable> {
        if certificates.is_empty() {
            return Err(Unusable::NoRoots);
        }
        let mut roots = RootCertStore::empty();
        for (index, certificate) in certificates.iter().enumerate() {
            roots.add(certificate.clone()).map_err(|error| Unusable::Root(index + 1, error.to_string()))?;
        }
        self.replace(None, Some((roots, certificates.into())))
    }

    /// The identity in force.
    pub(crate) fn identity(&self) -> Option<Arc<Identity>> {
        self.state.load().identity.clone()
    }

    /// The trust bundle in force.
    pub(crate) fn roots(&self) -> Arc<[CertificateDer<'static>]> {
        self.state.load().root_certificates.clone()
    }

    /// True once connections can be made and taken.
    pub(crate) fn is_ready(&self) -> bool {
        self.state.load().configs.is_some()
    }

    fn check_identity(
        &self,
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Result<Identity, Unusable> {
        let leaf = chain.first().ok_or(Unusable::NoCertificate)?;
        let unusable = |refused: Refused| Unusable::Certificate(refused.detail.into_owned());
        let parsed = verify::parse(leaf).map_err(unusable)?;
        let id = verify::spiffe_id(&parsed).map_err(unusable)?;
        if id.trust_domain != self.trust_domain {
            return Err(Unusable::TrustDomain {
                found: Box::new(id),
                expected: self.trust_domain.to_string(),
            });
        }
        let moment = |timestamp: i64| {
            SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(timestamp).unwrap_or_default())
        };
        let not_before = moment(parsed.validity().not_before.timestamp());
        let not_after = moment(parsed.validity().not_after.timestamp());
        let serial = parsed.raw_serial_as_string();
        let certified = CertifiedKey::from_der(chain, key, &self.provider)
            .map_err(|error| Unusable::Key(error.to_string()))?;
        Ok(Identity { id, not_before, not_after, serial, certified: Arc::new(certified) })
    }

    /// Puts a new identity or a new bundle in force, and the other as it was.
    fn replace(
        &self,
        identity: Option<Arc<Identity>>,
        roots: Option<(RootCertStore, Arc<[CertificateDer<'static>]>)>,
    ) -> Result<(), Unusable> {
        let _changing = self.change.lock().unwrap_or_else(PoisonError::into_inner);
        let old = self.state.load_full();
        let identity = identity.or_else(|| old.identity.clone());
        let (roots, root_certificates) = match roots {
            Some((roots, certificates)) => (Arc::new(roots), certificates),
            None => (old.roots.clone(), old.root_certificates.clone()),
        };
        let configs = match &identity {
            Some(identity) if !roots.is_empty() => Some(
                self.configs(identity, &roots).map_err(|error| Unusable::Certificate(error.to_string()))?,
            ),
            _ => None,
        };
        self.state.store(Arc::new(State { identity, roots, root_certificates, configs }));
        Ok(())
    }

    fn configs(&self, identity: &Identity, roots: &Arc<RootCertStore>) -> Result<Configs, rustls::Error> {
        let chain = WebPkiClientVerifier::builder_with_provider(roots.clone(), self.provider.clone())
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))?;
        let callers = verify::Callers { chain, trust_domain: self.trust_domain.clone() };
        let certificate = Arc::new(SingleCertAndKey::from(identity.certified.clone()));
        let mut server = ServerConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&TLS13])?
            .with_client_cert_verifier(Arc::new(callers))
            .with_cert_resolver(certificate.clone());
        server.alpn_protocols = MeshProtocol::ALL.iter().map(|p| p.alpn().to_vec()).collect();
        // A resumed session would carry yesterday's identity and escape today's bundle.
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        server.max_early_data_size = 0;
        server.send_half_rtt_data = false;

        let mut client = ClientConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(self.callee(roots, None)))
            .with_client_cert_resolver(certificate);
        client.resumption = Resumption::disabled();
        client.enable_early_data = false;
        let clients = MeshProtocol::ALL.map(|protocol| {
            let mut client = client.clone();
            client.alpn_protocols = vec![protocol.alpn().to_vec()];
            client
        });
        Ok(Configs { server: Arc::new(server), clients })
    }

    /// The client side of a connection that is no mesh traffic, to `expected` as `roots` vouch for it. `present` shows
    /// our own certificate if there is one.
    pub(crate) fn client_config(
        &self,
        roots: Vec<CertificateDer<'static>>,
        expected: SpiffeId,
        present: bool,
    ) -> Result<ClientConfig, Unusable> {
        let mut store = RootCertStore::empty();
        for (index, certificate) in roots.into_iter().enumerate() {
            store.add(certificate).map_err(|error| Unusable::Root(index + 1, error.to_string()))?;
        }
        let builder = ClientConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&TLS13])
            .map_err(|error| Unusable::Certificate(error.to_string()))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(self.callee(&Arc::new(store), Some(expected))));
        let mut config = match self.identity().filter(|_| present) {
            Some(identity) => {
                builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(identity.certified_key())))
            }
            None => builder.with_no_client_auth(),
        };
        config.resumption = Resumption::disabled();
        Ok(config)
    }

    fn callee(&self, roots: &Arc<RootCertStore>, expected: Option<SpiffeId>) -> verify::Callee {
        verify::Callee {
            roots: roots.clone(),
            provider: self.provider.clone(),
            trust_domain: self.trust_domain.clone(),
            expected,
        }
    }

    /// Takes a mesh connection whose ClientHello is about to be read from `stream`.
    pub(crate) async fn accept(&self, stream: Rewound, timeout: Duration) -> Result<Accepted, Refused> {
        let Some(config) = self.state.load().configs.as_ref().map(|configs| configs.server.clone()) else {
            return Err(not_ready());
        };
        // Boxed: the handshake's state is large, and the connection's task keeps the room for it otherwise.
        let handshake = Box::pin(TlsAcceptor::from(config).accept_with(stream, |session| {
            session.set_buffer_limit(Some(WRITE_LIMIT));
        }));
        let stream = within(timeout, handshake).await?;
        let (_, session) = stream.get_ref();
        let leaf = session
            .peer_certificates()
            .and_then(<[_]>::first)
            .ok_or_else(|| Refused::new(HandshakeFailure::NoCertificate, "the peer showed no certificate"))?;
        let peer = verify::identity_of(leaf, &self.trust_domain)?;
        let protocol = match session.alpn_protocol() {
            None => MeshProtocol::Http1,
            Some(name) => MeshProtocol::from_alpn(name)
                .ok_or_else(|| Refused::new(HandshakeFailure::NoProtocol, "no protocol was agreed"))?,
        };
        let server_name = session.server_name().map(str::to_owned);
        Ok(Accepted { io: Io::tls_server(stream), peer, protocol, server_name })
    }

    /// Makes a mesh connection over `tcp`, on which exactly `expected` must answer.
    pub(crate) async fn connect(
        &self,
        tcp: TcpStream,
        expected: &SpiffeId,
        server_name: &str,
        protocol: MeshProtocol,
        timeout: Duration,
    ) -> Result<Io, Refused> {
        let mut config = {
            let state = self.state.load();
            let configs = state.configs.as_ref().ok_or_else(not_ready)?;
            let index = MeshProtocol::ALL.iter().position(|p| *p == protocol).unwrap_or_default();
            // A copy shares everything costly; only the verifier is this connection's own.
            let mut config = configs.clients[index].clone();
            let callee = self.callee(&state.roots, Some(expected.clone()));
            config.dangerous().set_certificate_verifier(Arc::new(callee));
            config
        };
        let name = ServerName::try_from(server_name.to_owned());
        // A service's name may be one that cannot be a DNS name; the peer then does without.
        config.enable_sni = name.is_ok();
        let name = match name {
            Ok(name) => name,
            Err(_) => ServerName::IpAddress(std::net::Ipv4Addr::UNSPECIFIED.into()),
        };
        let handshake = Box::pin(TlsConnector::from(Arc::new(config)).connect_with(name, tcp, |session| {
            session.set_buffer_limit(Some(WRITE_LIMIT));
        }));
        let stream = within(timeout, handshake).await?;
        let agreed = stream.get_ref().1.alpn_protocol();
        if agreed != Some(protocol.alpn()) {
            return Err(Refused::new(
                HandshakeFailure::NoProtocol,
                format!("the peer did not agree to {}", String::from_utf8_lossy(protocol.alpn())),
            ));
        }
        Ok(Io::tls_client(stream))
    }
}

async fn within<T>(
    timeout: Duration,
    handshake: impl Future<Output = std::io::Result<T>>,
) -> Result<T, Refused> {
    match tokio::time::timeout(timeout, handshake).await {
        Ok(result) => result.map_err(Refused::from),
        Err(_) => Err(Refused::new(
            HandshakeFailure::Timeout,
            format!("it was not over after {} ms", timeout.as_millis()),
        )),
    }
}

fn not_ready() -> Refused {
    Refused::new(HandshakeFailure::NotReady, "this sidecar has no certificate or no trust bundle yet")
}
