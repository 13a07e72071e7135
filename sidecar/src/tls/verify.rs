//! Who a peer is: chain, validity and purpose as webpki checks them, and one SPIFFE identity in the certificate.

use super::failure::{HandshakeFailure, Refused};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, OtherError, RootCertStore, SignatureScheme,
    client::{
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor,
    },
    crypto::{CryptoProvider, verify_tls13_signature},
    server::{
        ParsedCertificate,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use std::{fmt, sync::Arc};
use weft_config::identity::SpiffeId;
use x509_parser::{
    certificate::X509Certificate,
    extensions::GeneralName,
    prelude::{FromDer, X509Error},
};

/// Carries our own verdict through rustls.
#[derive(Debug)]
pub(super) struct Rejected(pub(super) Refused);

impl fmt::Display for Rejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl std::error::Error for Rejected {}

fn rejected(refused: Refused) -> rustls::Error {
    rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(Rejected(refused)))))
}

/// A CA of the same name with another key is a foreign CA, and that is what a signature in the chain that does not hold
/// nearly always means. (The signature over the handshake is checked elsewhere and stays what it is.)
fn chain_error(error: rustls::Error) -> rustls::Error {
    match error {
        rustls::Error::InvalidCertificate(CertificateError::BadSignature) => {
            rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer)
        }
        other => other,
    }
}

/// Parses a certificate whose outer form is to be looked at.
pub(super) fn parse<'a>(der: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, Refused> {
    match X509Certificate::from_der(der) {
        Ok((_, certificate)) => Ok(certificate),
        Err(error) => Err(Refused::new(
            HandshakeFailure::BadCertificate,
            format!("the certificate cannot be parsed: {}", X509Error::from(error)),
        )),
    }
}

/// The one SPIFFE ID a certificate carries.
pub(super) fn spiffe_id(certificate: &X509Certificate<'_>) -> Result<SpiffeId, Refused> {
    let names = certificate.subject_alternative_name().map_err(|error| {
        Refused::new(
            HandshakeFailure::BadCertificate,
            format!("the subject alternative names cannot be parsed: {error}"),
        )
    })?;
    let mut uris = names
        .iter()
        .flat_map(|extension| extension.value.general_names.iter())
        .filter_map(|name| if let GeneralName::URI(uri) = name { Some(*uri) } else { None });
    let Some(uri) = uris.next() else {
        return Err(Refused::new(HandshakeFailure::NoUriSan, "the certificate names no URI"));
    };
    if uris.next().is_some() {
        return Err(Refused::new(
            HandshakeFailure::SeveralUriSans,
            "the certificate names more than one URI, so it proves no single identity",
        ));
    }
    uri.parse::<SpiffeId>()
        .map_err(|error| Refused::new(HandshakeFailure::NotSpiffe, format!("the certificate's URI {error}")))
}

/// The identity that a certificate whose chain holds proves, if it belongs to `trust_domain`.
pub(super) fn identity_of(der: &CertificateDer<'_>, trust_domain: &str) -> Result<SpiffeId, Refused> {
    let id = spiffe_id(&parse(der)?)?;
    if *id.trust_domain != *trust_domain {
        return Err(Refused::new(
            HandshakeFailure::WrongTrustDomain,
            format!("the peer is {id}, and this sidecar trusts `{trust_domain}`"),
        ));
    }
    Ok(id)
}

/// Checks callers: a chain to the bundle, then one identity of our trust domain.
#[derive(Debug)]
pub(super) struct Callers {
    pub(super) chain: Arc<dyn ClientCertVerifier>,
    pub(super) trust_domain: Arc<str>,
}

impl ClientCertVerifier for Callers {
    /// None: a sidecar has one certificate, so hints would only make every handshake larger.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self.chain.verify_client_cert(leaf, intermediates, now).map_err(chain_error)?;
        identity_of(leaf, &self.trust_domain).map_err(rejected)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

/// Checks the peer that a connection is made to: a chain to the bundle, then exactly the expected identity. DNS names
/// in the certificate mean nothing here; the server name only says which service is wanted.
#[derive(Debug)]
pub(super) struct Callee {
    pub(super) roots: Arc<RootCertStore>,
    pub(super) provider: Arc<CryptoProvider>,
    pub(super) trust_domain: Arc<str>,
    /// Who must answer. `None` accepts nobody: it stands in the shared configuration, which is completed for every
    /// connection.
    pub(super) expected: Option<SpiffeId>,
}

impl ServerCertVerifier for Callee {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let parsed = ParsedCertificate::try_from(leaf)?;
        verify_server_cert_signed_by_trust_anchor(
            &parsed,
            &self.roots,
            intermediates,
            now,
            self.provider.signature_verification_algorithms.all,
        )
        .map_err(chain_error)?;
        let id = identity_of(leaf, &self.trust_domain).map_err(rejected)?;
        if Some(&id) != self.expected.as_ref() {
            let expected = self.expected.as_ref().map_or_else(|| "nobody".to_owned(), ToString::to_string);
            return Err(rejected(Refused::new(
                HandshakeFailure::WrongIdentity,
                format!("expected {expected}, and {id} answered"),
            )));
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not spoken between sidecars".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
