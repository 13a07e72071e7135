//! Certificates that nobody should have, and a client that knocks with them.

use crate::{PATIENCE, raw};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType, date_time_ymd,
};
use rustls::{
    ClientConfig, DigitallySignedStruct, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, aws_lc_rs},
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use std::{fs, net::SocketAddr, path::Path, sync::Arc};
use tokio::{io::AsyncWriteExt, net::TcpStream, time::timeout};
use tokio_rustls::{TlsConnector, client::TlsStream};

/// When a forged certificate is good, by year.
#[derive(Clone, Copy, Debug)]
pub struct Years(pub i32, pub i32);

/// Somebody who signs whatever is asked.
pub struct Forger(Issuer<'static, KeyPair>);

/// A certificate and its key.
pub struct Credentials {
    /// The certificate.
    pub certificate: CertificateDer<'static>,
    /// Its key.
    pub key: PrivateKeyDer<'static>,
}

impl Forger {
    /// One who got hold of the mesh's own CA key.
    pub fn inside(state_dir: &Path) -> Self {
        let read = |name: &str| fs::read_to_string(state_dir.join(name)).expect("readable");
        let key = KeyPair::from_pem(&read("ca.key")).expect("a key");
        Self(Issuer::from_ca_cert_pem(&read("ca.pem"), key).expect("a CA"))
    }

    /// One with a CA of their own that looks just the same.
    pub fn outside() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.distinguished_name.push(DnType::CommonName, "weft");
        Self(Issuer::new(params, KeyPair::generate().expect("a key")))
    }

    /// Signs a certificate with these URIs.
    pub fn certificate(&self, uris: &[&str], Years(from, to): Years) -> Credentials {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.subject_alt_names =
            uris.iter().map(|uri| SanType::URI((*uri).try_into().expect("ASCII"))).collect();
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        (params.not_before, params.not_after) = (date_time_ymd(from, 1, 1), date_time_ymd(to, 1, 1));
        let certificate = params.signed_by(&key, &self.0).expect("signed").der().clone();
        Credentials { certificate, key: PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())) }
    }
}

/// A self-signed certificate for a DNS name, as an application's own TLS has it.
pub fn own_tls(name: &str) -> Credentials {
    let made = rcgen::generate_simple_self_signed([name.to_owned()]).expect("a certificate");
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
    Credentials { certificate: made.cert.der().clone(), key }
}

/// TLS as a client with any certificate or none, that trusts everybody.
pub async fn tls(
    stream: TcpStream,
    name: &str,
    alpn: &[&[u8]],
    credentials: Option<Credentials>,
) -> std::io::Result<TlsStream<TcpStream>> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .expect("versions")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody(provider)));
    let mut config = match credentials {
        None => builder.with_no_client_auth(),
        Some(Credentials { certificate, key }) => {
            builder.with_client_auth_cert(vec![certificate], key).expect("usable")
        }
    };
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    let name = ServerName::try_from(name.to_owned()).expect("a name");
    TlsConnector::from(Arc::new(config)).connect(name, stream).await
}

/// Asks an inbound listener for `/` as a sidecar would, with any certificate or none. Gives what came back: nothing if
/// the handshake failed or the connection was closed.
pub async fn knock(address: SocketAddr, server_name: &str, credentials: Option<Credentials>) -> String {
    let knocking = async {
        let stream = raw::connect(address).await;
        let Ok(mut stream) = tls(stream, server_name, &[b"weft/1"], credentials).await else {
            return String::new();
        };
        let request = b"GET / HTTP/1.1\r\nHost: product\r\nConnection: close\r\n\r\n";
        let _ = stream.write_all(request).await;
        raw::rest(&mut stream).await
    };
    timeout(PATIENCE, knocking).await.expect("an end in time")
}

/// Believes everything.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
