//! A control plane in this process, and a sidecar's side of the stream that does what it is told.
#![allow(dead_code, unreachable_pub)]

use hyper_util::rt::TokioIo;
use rcgen::{CertificateParams, KeyPair};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, pem::PemObject};
use std::{collections::BTreeMap, fs, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};
use tokio::{net::TcpStream, sync::mpsc, time::timeout};
use tokio_rustls::TlsConnector;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming, transport::Endpoint};
use weft_config::wire::{
    self, ToControlPlane, ToSidecar, mesh_client::MeshClient, purge::What::Nothing, to_control_plane,
    to_sidecar,
};
use weft_control_plane::{
    ControlPlane, Running, Settings, status,
    token::{Claims, TokenKey},
};

/// How long a test waits for anything that should be there at once: the machines that tests run on are slow and shared.
pub const PATIENCE: Duration = Duration::from_secs(30);

pub const CART: &str = "
apiVersion: weft.mesh/v1alpha1
kind: Workload
metadata: { name: cart, namespace: shop }
spec:
  service: cart
  serviceAccount: cart
  ports: [{ port: 8080, appProtocol: http }]
";

pub struct Fixture {
    pub root: tempfile::TempDir,
    pub settings: Settings,
    pub running: Running,
}

pub async fn start(files: &[(&str, &str)]) -> Fixture {
    start_with(files, |settings| settings).await
}

pub async fn start_with(files: &[(&str, &str)], change: impl FnOnce(Settings) -> Settings) -> Fixture {
    let root = tempfile::tempdir().expect("temp dir");
    let policy = root.path().join("policy");
    fs::create_dir(&policy).expect("dir");
    for (name, text) in files {
        fs::write(policy.join(name), text).expect("written");
    }
    let anywhere = SocketAddr::from(([127, 0, 0, 1], 0));
    let settings = change(Settings {
        policy: vec![policy],
        state_dir: root.path().join("state"),
        listen: anywhere,
        metrics: anywhere,
        dashboard: anywhere,
        settle_time: Duration::from_secs(2),
        ..Settings::default()
    });
    let running = ControlPlane::start(settings.clone()).await.expect("starts");
    Fixture { root, settings, running }
}

impl Fixture {
    pub async fn restart(self) -> Self {
        let Self { root, settings, running } = self;
        running.shutdown().await.expect("stops");
        let running = ControlPlane::start(settings.clone()).await.expect("starts again");
        Self { root, settings, running }
    }

    pub fn policy(&self, name: &str) -> PathBuf {
        self.root.path().join("policy").join(name)
    }

    /// Saves a policy file as editors do: written beside it, then renamed. Nobody reads half of it.
    pub fn save(&self, name: &str, text: &str) {
        let beside = self.root.path().join("being-written");
        fs::write(&beside, text).expect("written");
        fs::rename(&beside, self.policy(name)).expect("renamed");
    }

    pub fn token(&self, namespace: &str, account: &str) -> String {
        let claims = Claims::for_next(Duration::from_secs(60), namespace, account, None);
        TokenKey::open_or_create(&self.settings.state_dir).expect("key").issue(&claims).expect("issued")
    }

    pub async fn status(&self) -> status::Status {
        self.running.status().await.expect("status")
    }

    /// Waits until the status is as wanted.
    pub async fn until(&self, what: &str, wanted: impl Fn(&status::Status) -> bool) -> status::Status {
        let waiting = async {
            loop {
                let status = self.status().await;
                if wanted(&status) {
                    return status;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("not in time: {what}"))
    }

    pub fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        let pem = fs::read(self.settings.state_dir.join("ca.pem")).expect("read");
        for root in CertificateDer::pem_slice_iter(&pem) {
            roots.add(root.expect("pem")).expect("a root");
        }
        roots
    }

    pub async fn connect(
        &self,
        identity: Option<&Credentials>,
    ) -> Result<MeshClient<tonic::transport::Channel>, String> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("TLS 1.3")
            .with_root_certificates(self.roots());
        let mut config = match identity {
            None => builder.with_no_client_auth(),
            Some(Credentials { chain, key }) => {
                let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
                builder.with_client_auth_cert(chain.clone(), key).expect("usable")
            }
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        let (connector, address) = (TlsConnector::from(Arc::new(config)), self.running.addresses().push);
        let dial = tower::service_fn(move |_| {
            let connector = connector.clone();
            async move {
                let stream = TcpStream::connect(address).await?;
                let name = ServerName::try_from("localhost").expect("a name");
                Ok::<_, std::io::Error>(TokioIo::new(connector.connect(name, stream).await?))
            }
        });
        let channel = Endpoint::from_static("http://localhost").connect_with_connector(dial).await;
        channel.map(MeshClient::new).map_err(|error| format!("{error:?}"))
    }

    /// Opens a stream and says Hello.
    pub async fn open(&self, hello: wire::Hello, identity: Option<&Credentials>) -> Result<Sidecar, Status> {
        let mut client = self.connect(identity).await.map_err(Status::unavailable)?;
        let (sender, messages) = mpsc::channel(16);
        let hello = ToControlPlane { message: Some(to_control_plane::Message::Hello(hello)) };
        sender.send(hello).await.expect("open");
        let stream = timeout(PATIENCE, client.sync(ReceiverStream::new(messages))).await.expect("in time")?;
        let mut sidecar = Sidecar { sender, stream: stream.into_inner(), holds: BTreeMap::new() };
        match sidecar.next().await? {
            to_sidecar::Message::Welcome(_) => Ok(sidecar),
            other => panic!("Welcome comes first, not {other:?}"),
        }
    }
}

pub fn hello(namespace: &str, workload: &str, account: &str, token: &str) -> wire::Hello {
    wire::Hello {
        namespace: namespace.to_owned(),
        workload: workload.to_owned(),
        service_account: account.to_owned(),
        join_token: token.to_owned(),
        instance: "one".to_owned(),
        version: "test".to_owned(),
        ..wire::Hello::default()
    }
}

/// A certificate with its key.
pub struct Credentials {
    pub chain: Vec<CertificateDer<'static>>,
    pub key: KeyPair,
}

/// A sidecar's side of a stream.
pub struct Sidecar {
    sender: mpsc::Sender<ToControlPlane>,
    stream: Streaming<ToSidecar>,
    /// Resource name and the body it was sent.
    pub holds: BTreeMap<String, wire::Resource>,
}

impl Sidecar {
    pub async fn send(&self, message: to_control_plane::Message) {
        let _ = self.sender.send(ToControlPlane { message: Some(message) }).await;
    }

    /// The next message, but for that which says that there is nothing to be purged: every stream begins with it.
    pub async fn next(&mut self) -> Result<to_sidecar::Message, Status> {
        loop {
            match self.next_of_all().await? {
                to_sidecar::Message::Purge(purge) if matches!(purge.what, Some(Nothing(_))) => {}
                message => return Ok(message),
            }
        }
    }

    pub async fn next_of_all(&mut self) -> Result<to_sidecar::Message, Status> {
        let message = timeout(PATIENCE, self.stream.message()).await.expect("a message in time")?;
        message.and_then(|message| message.message).ok_or_else(|| Status::aborted("the stream ended"))
    }

    pub async fn subscribe(&self, names: &[&str]) {
        let add = names
            .iter()
            .map(|name| {
                let held = self.holds.get(*name).map(|resource| resource.version.clone());
                wire::Subscription { name: (*name).to_owned(), version: held.unwrap_or_default() }
            })
            .collect();
        self.send(to_control_plane::Message::Subscribe(wire::Subscribe { add, remove: vec![] })).await;
    }

    pub async fn lease(&self, address: &str, ready: bool) {
        let lease = wire::Lease { inbound_address: address.to_owned(), ready };
        self.send(to_control_plane::Message::Lease(lease)).await;
    }

    /// Takes the next update, applies it and answers. Gives what it was.
    pub async fn update(&mut self) -> wire::Update {
        let update = match self.next().await.expect("an update") {
            to_sidecar::Message::Update(update) => update,
            other => panic!("an update is due, not {other:?}"),
        };
        for resource in &update.resources {
            self.holds.insert(resource.name.clone(), resource.clone());
        }
        for name in &update.removed {
            self.holds.remove(name);
        }
        self.send(to_control_plane::Message::Ack(wire::Ack { nonce: update.nonce, rejected: vec![] })).await;
        update
    }

    /// Takes updates until what it holds is as wanted.
    pub async fn until(&mut self, what: &str, wanted: impl Fn(&BTreeMap<String, wire::Resource>) -> bool) {
        for _ in 0..50 {
            if wanted(&self.holds) {
                return;
            }
            self.update().await;
        }
        panic!("never came: {what}");
    }

    pub async fn certificate(&mut self) -> Result<Credentials, String> {
        let key = KeyPair::generate().expect("key");
        let csr = CertificateParams::default().serialize_request(&key).expect("request").der().to_vec();
        self.certificate_for(csr).await.map(|chain| Credentials { chain, key })
    }

    pub async fn certificate_for(&mut self, csr: Vec<u8>) -> Result<Vec<CertificateDer<'static>>, String> {
        let request = wire::CertificateRequest { csr };
        self.send(to_control_plane::Message::CertificateRequest(request)).await;
        match self.next().await.expect("a certificate") {
            to_sidecar::Message::Certificate(wire::Certificate { chain, refused }) if refused.is_empty() => {
                Ok(chain.into_iter().map(CertificateDer::from).collect())
            }
            to_sidecar::Message::Certificate(certificate) => Err(certificate.refused),
            other => panic!("a certificate is due, not {other:?}"),
        }
    }
}

/// The addresses in an endpoints resource; none if it is not held.
pub fn addresses(holds: &BTreeMap<String, wire::Resource>, name: &str) -> Vec<String> {
    match holds.get(name).and_then(|resource| resource.body.as_ref()) {
        Some(wire::resource::Body::Endpoints(endpoints)) => {
            endpoints.endpoints.iter().map(|endpoint| endpoint.address.clone()).collect()
        }
        _ => Vec::new(),
    }
}

/// A plain HTTP request, without any help.
pub async fn get(address: SocketAddr, path: &str, headers: &str) -> (u16, String) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let asking = async {
        let mut stream = TcpStream::connect(address).await.expect("connects");
        let host = if headers.to_ascii_lowercase().contains("host:") {
            String::new()
        } else {
            format!("host: {address}\r\n")
        };
        let request = format!("GET {path} HTTP/1.1\r\n{host}{headers}connection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("written");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("read");
        answer
    };
    let answer = timeout(PATIENCE, asking).await.expect("an answer in time");
    let status = answer.split(' ').nth(1).expect("a status").parse().expect("a number");
    (status, answer)
}
