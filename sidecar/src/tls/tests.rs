//! Every way a handshake is refused, and that rotation touches new connections only.

use super::*;
use bytes::BytesMut;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, SanType,
};
use rstest::rstest;
use rustls::client::danger::ServerCertVerifier;
use rustls_pki_types::PrivatePkcs8KeyDer;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

const CART: &str = "spiffe://weft.local/ns/shop/sa/cart";
const PRODUCT: &str = "spiffe://weft.local/ns/shop/sa/product";
const NAME: &str = "8080.product.shop.weft";
const SOON: Duration = Duration::from_secs(30);

struct Ca(CertifiedIssuer<'static, KeyPair>);

type Credentials = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

impl Ca {
    fn new() -> Self {
        Self::named("mesh")
    }

    fn named(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate().expect("a key");
        Self(CertifiedIssuer::self_signed(params, key).expect("a CA"))
    }

    fn root(&self) -> CertificateDer<'static> {
        self.0.der().clone()
    }

    /// A certificate valid from `from` to `to` seconds from now.
    fn issue_for(&self, uris: &[&str], from: i64, to: i64) -> Credentials {
        let moment = |offset: i64| {
            let by = Duration::from_secs(offset.unsigned_abs());
            if offset < 0 { SystemTime::now() - by } else { SystemTime::now() + by }
        };
        let mut params = CertificateParams::default();
        params.subject_alt_names =
            uris.iter().map(|uri| SanType::URI((*uri).try_into().expect("ASCII"))).collect();
        params.subject_alt_names.push(SanType::DnsName("ignored.example".try_into().expect("ASCII")));
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.not_before = moment(from).into();
        params.not_after = moment(to).into();
        let (pending, _) = PendingKey::new().expect("a key");
        let key = pending.into_key();
        let pair = KeyPair::try_from(&PrivatePkcs8KeyDer::from(key.secret_der())).expect("a key pair");
        let certificate = params.signed_by(&pair, &self.0).expect("signed");
        (vec![certificate.der().clone()], key)
    }

    fn issue(&self, uri: &str) -> Credentials {
        self.issue_for(&[uri], -60, 3600)
    }

    /// A workload of this CA that trusts this CA.
    fn workload(&self, uri: &str) -> Tls {
        let tls = Tls::new("weft.local");
        let (chain, key) = self.issue(uri);
        tls.set_identity(chain, key).expect("an identity");
        tls.set_roots(vec![self.root()]).expect("roots");
        tls
    }
}

/// Both ends of a loopback connection.
async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let address = listener.local_addr().expect("an address");
    let (near, far) = tokio::join!(TcpStream::connect(address), listener.accept());
    (near.expect("connected"), far.expect("accepted").0)
}

fn rewound(tcp: TcpStream) -> Rewound {
    Rewound::new(BytesMut::new(), tcp)
}

fn id(text: &str) -> SpiffeId {
    text.parse().expect("a SPIFFE ID")
}

/// A handshake over loopback.
async fn shake(
    client: &Tls,
    server: &Tls,
    expected: &str,
) -> (Result<Io, Refused>, Result<Accepted, Refused>) {
    let (near, far) = pair().await;
    let expected = id(expected);
    tokio::join!(
        client.connect(near, &expected, NAME, MeshProtocol::Http1Over2, SOON),
        server.accept(rewound(far), SOON),
    )
}

/// One byte there and one back.
async fn assert_alive(near: &mut Io, far: &mut Io) {
    let mut byte = [0];
    near.write_all(b"?").await.expect("written");
    near.flush().await.expect("flushed");
    far.read_exact(&mut byte).await.expect("read");
    far.write_all(b"!").await.expect("written");
    far.flush().await.expect("flushed");
    near.read_exact(&mut byte).await.expect("read");
    assert_eq!(&byte, b"!");
}

#[tokio::test]
async fn both_sides_know_each_other() {
    let ca = Ca::new();
    let (near, far) = shake(&ca.workload(CART), &ca.workload(PRODUCT), PRODUCT).await;
    let mut far = far.expect("accepted");
    assert_eq!(far.peer, id(CART));
    assert_eq!(far.protocol, MeshProtocol::Http1Over2);
    assert_eq!(far.server_name.as_deref(), Some(NAME));
    assert!(far.io.is_tls());
    assert_alive(&mut near.expect("connected"), &mut far.io).await;
}

/// What the accepting side says of a caller with these credentials, who itself trusts anybody.
async fn accepted_from(
    server: &Tls,
    credentials: Option<Credentials>,
    alpn: &[&[u8]],
) -> Result<Accepted, Refused> {
    let (near, far) = pair().await;
    let config = stranger(credentials, alpn, &[&TLS13]);
    let name = ServerName::try_from(NAME).expect("a name");
    let client = async {
        let mut stream = TlsConnector::from(config).connect(name, near).await?;
        // The server's refusal comes after the client's side of the handshake is over.
        stream.read_u8().await
    };
    let server = server.accept(rewound(far), SOON);
    tokio::pin!(server);
    tokio::select! {
        biased;
        accepted = &mut server => accepted,
        // One that was let in would go on reading.
        _ = client => server.await,
    }
}

#[derive(Debug)]
struct TrustsAnybody(verify::Callee);

impl ServerCertVerifier for TrustsAnybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: rustls_pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, certificate, signed)
    }
    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

fn stranger(
    credentials: Option<Credentials>,
    alpn: &[&[u8]],
    versions: &[&'static rustls::SupportedProtocolVersion],
) -> Arc<ClientConfig> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let callee = verify::Callee {
        roots: Arc::new(RootCertStore::empty()),
        provider: provider.clone(),
        trust_domain: "weft.local".into(),
        expected: None,
    };
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .expect("versions")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(TrustsAnybody(callee)));
    let mut config = match credentials {
        Some((chain, key)) => builder.with_client_auth_cert(chain, key).expect("credentials"),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
    Arc::new(config)
}

/// What the connecting side says of a callee with these credentials, who itself asks for no certificate.
async fn connected_to(client: &Tls, credentials: Credentials, expected: &str) -> Result<Io, Refused> {
    let (near, far) = pair().await;
    let mut config = ServerConfig::builder_with_provider(Arc::new(provider()))
        .with_protocol_versions(&[&TLS13])
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(credentials.0, credentials.1)
        .expect("credentials");
    config.alpn_protocols = vec![b"weft/1".to_vec()];
    let expected = id(expected);
    let (near, _) = tokio::join!(
        client.connect(near, &expected, NAME, MeshProtocol::Http1, SOON),
        TlsAcceptor::from(Arc::new(config)).accept(far),
    );
    near
}

fn reason<T>(result: Result<T, Refused>) -> HandshakeFailure {
    match result {
        Ok(_) => panic!("the handshake went through"),
        Err(refused) => {
            assert!(refused.to_string().contains(refused.reason.as_str()), "{refused}");
            refused.reason
        }
    }
}

#[rstest]
#[case::expired(&[CART], -7200, -3600, HandshakeFailure::Expired)]
#[case::not_yet_valid(&[CART], 3600, 7200, HandshakeFailure::NotYetValid)]
#[case::no_uri(&[], -60, 3600, HandshakeFailure::NoUriSan)]
#[case::two_uris(&[CART, PRODUCT], -60, 3600, HandshakeFailure::SeveralUriSans)]
#[case::foreign_domain(&["spiffe://other.example/ns/shop/sa/cart"], -60, 3600, HandshakeFailure::WrongTrustDomain)]
#[case::not_spiffe(&["https://weft.local/ns/shop/sa/cart"], -60, 3600, HandshakeFailure::NotSpiffe)]
#[tokio::test]
async fn both_directions_refuse(
    #[case] uris: &[&str],
    #[case] from: i64,
    #[case] to: i64,
    #[case] expected: HandshakeFailure,
) {
    let ca = Ca::new();
    let us = ca.workload(PRODUCT);
    assert_eq!(reason(accepted_from(&us, Some(ca.issue_for(uris, from, to)), &[b"weft/1"]).await), expected);
    assert_eq!(reason(connected_to(&us, ca.issue_for(uris, from, to), CART).await), expected);
}

#[rstest]
#[case::of_another_name(Ca::named("other"))]
#[case::of_the_same_name(Ca::named("mesh"))]
#[tokio::test]
async fn a_foreign_ca_is_refused_in_both_directions(#[case] foreign: Ca) {
    let ca = Ca::new();
    let us = ca.workload(PRODUCT);
    let accepted = accepted_from(&us, Some(foreign.issue(CART)), &[b"weft/1"]).await;
    assert_eq!(reason(accepted), HandshakeFailure::UnknownCa);
    assert_eq!(reason(connected_to(&us, foreign.issue(CART), CART).await), HandshakeFailure::UnknownCa);
}

#[tokio::test]
async fn a_caller_without_a_certificate_is_refused() {
    let ca = Ca::new();
    let accepted = accepted_from(&ca.workload(PRODUCT), None, &[b"weft/1"]).await;
    assert_eq!(reason(accepted), HandshakeFailure::NoCertificate);
}

#[tokio::test]
async fn another_identity_than_the_registrys_is_refused() {
    let ca = Ca::new();
    let connected = connected_to(&ca.workload(CART), ca.issue(CART), PRODUCT).await;
    assert_eq!(reason(connected), HandshakeFailure::WrongIdentity);
    assert!(connected_to(&ca.workload(CART), ca.issue(PRODUCT), PRODUCT).await.is_ok());
}

#[tokio::test]
async fn a_caller_without_protocols_speaks_http1() {
    let ca = Ca::new();
    let accepted = accepted_from(&ca.workload(PRODUCT), Some(ca.issue(CART)), &[]).await.expect("accepted");
    assert_eq!(accepted.protocol, MeshProtocol::Http1);
    assert_eq!(accepted.peer, id(CART));
}

#[tokio::test]
async fn a_caller_of_other_protocols_is_refused() {
    let ca = Ca::new();
    let accepted = accepted_from(&ca.workload(PRODUCT), Some(ca.issue(CART)), &[b"h2", b"weft/9"]).await;
    assert_eq!(reason(accepted), HandshakeFailure::NoProtocol);
}

#[tokio::test]
async fn tls_1_2_is_refused() {
    let ca = Ca::new();
    let us = ca.workload(PRODUCT);
    let (near, far) = pair().await;
    let config = stranger(Some(ca.issue(CART)), &[b"weft/1"], &[&rustls::version::TLS12]);
    let name = ServerName::try_from(NAME).expect("a name");
    let (near, far) =
        tokio::join!(TlsConnector::from(config).connect(name, near), us.accept(rewound(far), SOON));
    assert!(near.is_err());
    assert_eq!(reason(far), HandshakeFailure::Incompatible);
}

#[tokio::test]
async fn a_silent_peer_is_not_waited_for() {
    let ca = Ca::new();
    let us = ca.workload(PRODUCT);
    let brief = Duration::from_millis(20);
    let (_near, far) = pair().await;
    assert_eq!(reason(us.accept(rewound(far), brief).await), HandshakeFailure::Timeout);
    let (near, _far) = pair().await;
    let refused = us.connect(near, &id(CART), NAME, MeshProtocol::Tcp, brief).await;
    let error = crate::error::Error::from(refused.err().expect("nobody answers"));
    assert_eq!(error.kind, crate::error::Kind::ConnectTimeout);
}

#[tokio::test]
async fn a_peer_that_hangs_up_or_talks_nonsense_is_told_apart() {
    let ca = Ca::new();
    let us = ca.workload(PRODUCT);
    let (near, far) = pair().await;
    drop(near);
    assert_eq!(reason(us.accept(rewound(far), SOON).await), HandshakeFailure::Io);
    let (mut near, far) = pair().await;
    near.write_all(b"GET / HTTP/1.1\r\n\r\n").await.expect("written");
    assert_eq!(reason(us.accept(rewound(far), SOON).await), HandshakeFailure::Other);
}

#[tokio::test]
async fn a_server_that_is_refused_is_told() {
    let ca = Ca::new();
    let (near, far) = shake(&Ca::new().workload(CART), &ca.workload(PRODUCT), PRODUCT).await;
    assert_eq!(reason(near), HandshakeFailure::UnknownCa, "the client does not take the server's CA");
    assert_eq!(reason(far), HandshakeFailure::Alert, "and the server is told");
}

#[tokio::test]
async fn nothing_goes_without_an_identity_and_roots() {
    let ca = Ca::new();
    let us = Tls::new("weft.local");
    assert!(!us.is_ready());
    let (near, far) = pair().await;
    assert_eq!(reason(us.accept(rewound(far), SOON).await), HandshakeFailure::NotReady);
    us.set_roots(vec![ca.root()]).expect("roots");
    assert!(!us.is_ready() && us.identity().is_none());
    let connected = us.connect(near, &id(CART), NAME, MeshProtocol::Tcp, SOON).await;
    assert_eq!(reason(connected), HandshakeFailure::NotReady);
    let (chain, key) = ca.issue(CART);
    us.set_identity(chain, key).expect("an identity");
    assert!(us.is_ready());
}

#[tokio::test]
async fn rotation_of_roots_keeps_old_connections() {
    let (old, new) = (Ca::new(), Ca::new());
    let (client, server) = (old.workload(CART), old.workload(PRODUCT));
    let (near, far) = shake(&client, &server, PRODUCT).await;
    let (mut near, mut far) = (near.expect("connected"), far.expect("accepted").io);
    for tls in [&client, &server] {
        tls.set_roots(vec![new.root()]).expect("roots");
        assert_eq!(&*tls.roots(), &[new.root()]);
    }
    assert_alive(&mut near, &mut far).await;
    let (refused, _) = shake(&client, &server, PRODUCT).await;
    assert_eq!(reason(refused), HandshakeFailure::UnknownCa, "certificates of the old CA are of no more use");
    for (tls, uri) in [(&client, CART), (&server, PRODUCT)] {
        let (chain, key) = new.issue(uri);
        tls.set_identity(chain, key).expect("an identity");
    }
    let (again, _) = shake(&client, &server, PRODUCT).await;
    assert!(again.is_ok());
    assert_alive(&mut near, &mut far).await;
}

#[tokio::test]
async fn new_connections_use_the_new_identity() {
    let ca = Ca::new();
    let (client, server) = (ca.workload(CART), ca.workload(PRODUCT));
    let before = client.identity().expect("an identity").serial.clone();
    let (near, far) = shake(&client, &server, PRODUCT).await;
    let (mut near, mut far) = (near.expect("connected"), far.expect("accepted").io);
    let (chain, key) = ca.issue("spiffe://weft.local/ns/shop/sa/checkout");
    let identity = client.set_identity(chain, key).expect("an identity");
    assert_ne!(identity.serial, before);
    assert!(identity.not_before < SystemTime::now() && SystemTime::now() < identity.not_after);
    let (_, accepted) = shake(&client, &server, PRODUCT).await;
    assert_eq!(accepted.expect("accepted").peer, identity.id);
    assert_alive(&mut near, &mut far).await;
}

#[test]
fn an_unusable_identity_leaves_the_old_one_in_force() {
    let ca = Ca::new();
    let us = ca.workload(CART);
    let before = us.identity().expect("an identity").serial.clone();
    let (chain, key) = ca.issue(CART);
    let (other_chain, other_key) = ca.issue(PRODUCT);
    assert!(matches!(us.set_identity(chain, other_key), Err(Unusable::Key(_))));
    assert!(matches!(us.set_identity(Vec::new(), key.clone_key()), Err(Unusable::NoCertificate)));
    let (nobody, nobodys) = ca.issue_for(&[], -1, 60);
    assert!(matches!(us.set_identity(nobody, nobodys), Err(Unusable::Certificate(_))));
    let (foreign, foreigns) = ca.issue("spiffe://other.example/ns/shop/sa/cart");
    assert!(matches!(us.set_identity(foreign, foreigns), Err(Unusable::TrustDomain { .. })));
    assert!(matches!(
        us.set_identity(vec![CertificateDer::from(vec![1, 2, 3])], key),
        Err(Unusable::Certificate(_))
    ));
    assert!(matches!(us.set_roots(Vec::new()), Err(Unusable::NoRoots)));
    assert!(matches!(us.set_roots(vec![other_chain[0].clone(), vec![9].into()]), Err(Unusable::Root(2, _))));
    assert_eq!(us.identity().expect("still there").serial, before);
    assert_eq!(&*us.roots(), &[ca.root()]);
}

#[tokio::test]
async fn bulk_data_arrives_whole_in_both_directions() {
    let ca = Ca::new();
    let (near, far) = shake(&ca.workload(CART), &ca.workload(PRODUCT), PRODUCT).await;
    let (mut near, mut far) = (near.expect("connected"), far.expect("accepted").io);
    let data: Vec<u8> = (0..3_000_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let exchange = |io: &mut Io, data: Vec<u8>| {
        let (mut read, mut write) =
            tokio::io::split(std::mem::replace(io, Io::memory(tokio::io::duplex(1).0)));
        async move {
            let mut back = Vec::new();
            let (written, got) = tokio::join!(
                async {
                    write.write_all(&data).await?;
                    write.shutdown().await
                },
                read.read_to_end(&mut back),
            );
            written.expect("written");
            got.expect("read");
            back
        }
    };
    let (a, b) = tokio::join!(exchange(&mut near, data.clone()), exchange(&mut far, data.clone()));
    assert!(a == data && b == data);
}

#[tokio::test]
async fn opaque_bytes_are_relayed_over_mutual_tls_with_half_close() {
    let ca = Ca::new();
    let (near, far) = shake(&ca.workload(CART), &ca.workload(PRODUCT), PRODUCT).await;
    let (near, far) = (near.expect("connected"), far.expect("accepted").io);
    let ((mut client, outbound), (inbound, mut server)) = (pair().await, pair().await);
    let idle = Duration::from_secs(60);
    let question: Vec<u8> = (0..1_000_003u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let asking = async {
        client.write_all(&question).await.expect("written");
        client.shutdown().await.expect("shut down");
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.expect("an answer after the end of the question");
        answer
    };
    let answering = async {
        let mut got = Vec::new();
        server.read_to_end(&mut got).await.expect("the whole question");
        assert!(got == question);
        server.write_all(b"42").await.expect("written");
        drop(server);
    };
    let (answer, (), first, second) = tokio::join!(
        asking,
        answering,
        crate::tcp::relay(Io::plain(outbound), near, idle),
        crate::tcp::relay(far, Io::plain(inbound), idle),
    );
    assert_eq!(answer, b"42");
    for relayed in [first, second] {
        assert_eq!((relayed.up, relayed.down), (1_000_003, 2));
        assert!(matches!(relayed.end, crate::tcp::End::Closed), "{:?}", relayed.end);
    }
}

#[test]
fn an_identity_from_files_is_usable() {
    let ca = Ca::new();
    let pem = |label: &str, der: &[u8]| {
        let body = base64(der);
        format!("-----BEGIN {label}-----\n{body}\n-----END {label}-----\n")
    };
    let (chain, key) = ca.issue(CART);
    let dir = tempfile::tempdir().expect("a directory");
    let file = |name: &str, text: String| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).expect("written");
        path
    };
    let certificate = file("cert.pem", pem("CERTIFICATE", &chain[0]));
    let key = file("key.pem", pem("PRIVATE KEY", key.secret_der()));
    let roots = file("ca.pem", ca.0.pem());
    let files = StaticFiles::load(&certificate, &key, &roots).expect("three good files");
    let us = Tls::new("weft.local");
    us.set_roots(files.roots).expect("roots");
    let identity = us.set_identity(files.chain, files.key).expect("an identity");
    assert_eq!(identity.id, id(CART));
    assert!(StaticFiles::load(&key, &certificate, &roots).is_err(), "files that were swapped");
}

/// Base64 with padding, as PEM wants it.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::new();
    for chunk in bytes.chunks(3) {
        let group =
            chunk.iter().fold(0u32, |group, byte| group << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for digit in 0..4 {
            let index = (group >> (18 - 6 * digit)) as usize & 63;
            out.push(if digit <= chunk.len() { char::from(ALPHABET[index]) } else { '=' });
        }
    }
    out
}
