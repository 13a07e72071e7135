//! A control plane in this process: real TLS and gRPC, and a memory of everything it was told.

use http::Request as HttpRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, CertifiedIssuer, IsCa, KeyPair,
    KeyUsagePurpose, PublicKeyData, SanType,
};
use rustls::{RootCertStore, ServerConfig, server::WebPkiClientVerifier};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use std::{
    collections::{HashMap, HashSet},
    convert::Infallible,
    net::SocketAddr,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};
use tokio::{
    net::TcpListener,
    sync::mpsc,
    task::{JoinHandle, JoinSet},
};
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use tower::Service;
use weft_config::wire::{self, to_control_plane::Message as Heard, to_sidecar::Message as Said};

pub(super) const CONTROL_PLANE_ID: &str = "spiffe://weft.local/ns/weft-system/sa/control-plane";

/// A certificate authority.
pub(super) struct Ca(CertifiedIssuer<'static, KeyPair>);

impl Ca {
    pub(super) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("a CA"))
    }

    pub(super) fn root(&self) -> CertificateDer<'static> {
        self.0.der().clone()
    }

    pub(super) fn write_pem(&self, path: &Path) {
        std::fs::write(path, self.0.pem()).expect("written");
    }

    /// Certifies the key of a request. Valid from a minute ago, as for slow clocks.
    pub(super) fn sign(&self, csr: &[u8], id: &str, life: Duration) -> Vec<Vec<u8>> {
        let csr = CertificateSigningRequestParams::from_der(&csr.to_vec().into()).expect("a request");
        self.certify(&csr.public_key, id, life)
    }

    /// A certificate and its key as PEM files.
    pub(super) fn write_identity(&self, id: &str, certificate: &Path, key: &Path) {
        let pair = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(id.try_into().expect("ASCII"))];
        std::fs::write(certificate, params.signed_by(&pair, &self.0).expect("signed").pem())
            .expect("written");
        std::fs::write(key, pair.serialize_pem()).expect("written");
    }

    fn certify(&self, key: &impl PublicKeyData, id: &str, life: Duration) -> Vec<Vec<u8>> {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(id.try_into().expect("ASCII"))];
        params.not_before = (SystemTime::now() - Duration::from_secs(60)).into();
        params.not_after = (SystemTime::now() + life).into();
        vec![params.signed_by(key, &self.0).expect("signed").der().to_vec()]
    }

    fn server(&self, id: &str) -> ServerConfig {
        let key = KeyPair::generate().expect("a key");
        let chain = self.certify(&key, id, Duration::from_secs(3600)).into_iter().map(Into::into).collect();
        let mut roots = RootCertStore::empty();
        roots.add(self.root()).expect("a root");
        let provider = Arc::new(crate::tls::provider());
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
            .allow_unauthenticated()
            .build()
            .expect("a verifier");
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("TLS 1.3")
            .with_client_cert_verifier(clients)
            .with_single_cert(chain, PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())))
            .expect("a server");
        config.alpn_protocols = vec![b"h2".to_vec()];
        config
    }
}

/// One message, and whether it came on a connection with a client certificate.
#[derive(Clone, Debug)]
pub(super) struct Received {
    pub(super) message: Heard,
    pub(super) certified: bool,
}

struct Stream {
    say: mpsc::Sender<Result<wire::ToSidecar, Status>>,
    subscribed: HashSet<String>,
}

#[derive(Default)]
struct Memory {
    resources: HashMap<String, wire::Resource>,
    received: Vec<Received>,
    sent: Vec<wire::Update>,
    streams: Vec<Stream>,
    serving: Option<JoinHandle<()>>,
    nonce: u64,
    /// Messages to hear on a stream before the first is answered.
    patience: usize,
    mute: bool,
    refuse_certificates: usize,
}

/// The control plane.
#[derive(Clone)]
pub(super) struct ControlPlane {
    pub(super) ca: Arc<Ca>,
    pub(super) address: SocketAddr,
    id: &'static str,
    life: Duration,
    memory: Arc<Mutex<Memory>>,
}

#[derive(Clone, Copy)]
struct Certified(bool);

impl ControlPlane {
    pub(super) async fn start() -> Self {
        Self::with(Ca::new(), CONTROL_PLANE_ID, Duration::from_secs(3600)).await
    }

    pub(super) async fn with(ca: Ca, id: &'static str, life: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let address = listener.local_addr().expect("an address");
        let this = Self { ca: Arc::new(ca), address, id, life, memory: Arc::default() };
        this.serve(listener);
        this
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(&self, listener: TcpListener) {
        let this = self.clone();
        let acceptor = TlsAcceptor::from(Arc::new(self.ca.server(self.id)));
        let serving = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((tcp, _)) = listener.accept().await {
                let (this, acceptor) = (this.clone(), acceptor.clone());
                connections.spawn(async move {
                    let Ok(tls) = acceptor.accept(tcp).await else { return };
                    let certified = Certified(tls.get_ref().1.peer_certificates().is_some());
                    let service = hyper::service::service_fn(move |mut request: HttpRequest<_>| {
                        request.extensions_mut().insert(certified);
                        let mut mesh = wire::mesh_server::MeshServer::new(this.clone());
                        async move {
                            let response: Result<_, Infallible> = mesh.call(request).await;
                            response
                        }
                    });
                    let http = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                    drop(http.serve_connection(TokioIo::new(tls), service).await);
                });
            }
        });
        self.memory().serving = Some(serving);
    }

    /// Stops at once, as killed.
    pub(super) async fn kill(&self) {
        let serving = self.memory().serving.take();
        if let Some(serving) = serving {
            serving.abort();
            drop(serving.await);
        }
        self.memory().streams.clear();
    }

    /// Serves again at the same address, with what it had.
    pub(super) async fn revive(&self) {
        let listener = TcpListener::bind(self.address).await.expect("bound again");
        {
            let mut memory = self.memory();
            memory.received.clear();
            memory.sent.clear();
        }
        self.serve(listener);
    }

    /// Nothing is answered from now on.
    pub(super) fn mute(&self) {
        self.memory().mute = true;
    }

    /// Answers nothing on a stream before this many messages have come.
    pub(super) fn wait_for_messages(&self, count: usize) {
        self.memory().patience = count;
    }

    /// Refuses the next certificate requests.
    pub(super) fn refuse_certificates(&self, count: usize) {
        self.memory().refuse_certificates = count;
    }

    /// Everything heard since the start or the last revival.
    pub(super) fn received(&self) -> Vec<Received> {
        self.memory().received.clone()
    }

    /// Every update sent since the start or the last revival.
    pub(super) fn sent(&self) -> Vec<wire::Update> {
        self.memory().sent.clone()
    }

    /// Publishes resources in one update.
    pub(super) fn publish(&self, resources: Vec<wire::Resource>) {
        let mut memory = self.memory();
        let names: Vec<String> = resources.iter().map(|resource| resource.name.clone()).collect();
        for resource in resources {
            memory.resources.insert(resource.name.clone(), resource);
        }
        for index in 0..memory.streams.len() {
            let subscribed = &memory.streams[index].subscribed;
            let concerned: Vec<_> = names.iter().filter(|name| subscribed.contains(*name)).cloned().collect();
            memory.update(index, concerned);
        }
    }
}

impl Memory {
    fn update(&mut self, stream: usize, names: Vec<String>) {
        if names.is_empty() || self.mute {
            return;
        }
        self.nonce += 1;
        let mut update = wire::Update {
            nonce: self.nonce,
            policy_version: format!("p{}", self.nonce),
            ..Default::default()
        };
        for name in names {
            match self.resources.get(&name) {
                Some(resource) => update.resources.push(resource.clone()),
                None => update.removed.push(name),
            }
        }
        self.sent.push(update.clone());
        say(&self.streams[stream].say, Said::Update(update));
    }
}

fn say(to: &mpsc::Sender<Result<wire::ToSidecar, Status>>, message: Said) {
    drop(to.try_send(Ok(wire::ToSidecar { message: Some(message) })));
}

#[tonic::async_trait]
impl wire::mesh_server::Mesh for ControlPlane {
    type SyncStream = ReceiverStream<Result<wire::ToSidecar, Status>>;

    async fn sync(
        &self,
        request: Request<Streaming<wire::ToControlPlane>>,
    ) -> Result<Response<Self::SyncStream>, Status> {
        let certified = request.extensions().get::<Certified>().is_some_and(|certified| certified.0);
        let mut inbound = request.into_inner();
        let (say_to, rest) = mpsc::channel(1024);
        let this = self.clone();
        tokio::spawn(async move {
            let index = {
                let mut memory = this.memory();
                memory.streams.push(Stream { say: say_to.clone(), subscribed: HashSet::new() });
                memory.streams.len() - 1
            };
            let mut held_back = Vec::new();
            let patience = this.memory().patience;
            let mut heard = 0;
            while let Ok(Some(wire::ToControlPlane { message: Some(message) })) = inbound.message().await {
                this.memory().received.push(Received { message: message.clone(), certified });
                heard += 1;
                held_back.push(message);
                if heard >= patience {
                    for message in held_back.drain(..) {
                        this.answer(index, message, &say_to);
                    }
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(rest)))
    }
}

impl ControlPlane {
    fn answer(&self, index: usize, message: Heard, to: &mpsc::Sender<Result<wire::ToSidecar, Status>>) {
        let mut memory = self.memory();
        if memory.streams.len() <= index || memory.mute {
            return;
        }
        match message {
            Heard::Hello(_) => say(
                to,
                Said::Welcome(wire::Welcome {
                    control_plane: "test".to_owned(),
                    trust_domain: "weft.local".to_owned(),
                    lease_interval_ms: 200,
                    ..wire::Welcome::default()
                }),
            ),
            Heard::Subscribe(subscribe) => {
                for name in &subscribe.remove {
                    memory.streams[index].subscribed.remove(name);
                }
                let mut changed = Vec::new();
                for subscription in subscribe.add {
                    let current = memory.resources.get(&subscription.name).map(|r| r.version.clone());
                    if current.is_none() || current.as_deref() != Some(&*subscription.version) {
                        changed.push(subscription.name.clone());
                    }
                    memory.streams[index].subscribed.insert(subscription.name);
                }
                memory.update(index, changed);
            }
            Heard::CertificateRequest(request) => {
                let certificate = if memory.refuse_certificates > 0 {
                    memory.refuse_certificates -= 1;
                    wire::Certificate { chain: Vec::new(), refused: "not now".to_owned() }
                } else {
                    let chain = self.ca.sign(&request.csr, "spiffe://weft.local/ns/shop/sa/cart", self.life);
                    wire::Certificate { chain, refused: String::new() }
                };
                say(to, Said::Certificate(certificate));
            }
            Heard::Ack(_) | Heard::Lease(_) | Heard::Usage(_) | Heard::Purged(_) | Heard::CacheReport(_) => {}
        }
    }
}
