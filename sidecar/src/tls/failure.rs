//! Why a handshake was refused: a closed list, so that every reason can be told apart and counted.

use super::verify::Rejected;
use crate::error::{Error, Kind};
use rustls::{AlertDescription, CertificateError};
use std::{borrow::Cow, fmt, io};

/// Why a TLS handshake with a peer failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum HandshakeFailure {
    /// The peer showed no certificate.
    NoCertificate,
    /// No certificate authority of the trust bundle signed the peer's certificate.
    UnknownCa,
    /// The peer proved another identity than the registry names for it.
    WrongIdentity,
    /// The peer's identity belongs to another trust domain.
    WrongTrustDomain,
    /// The peer's certificate is past its end.
    Expired,
    /// The peer's certificate is not valid yet.
    NotYetValid,
    /// The peer's certificate has no URI among its subject alternative names.
    NoUriSan,
    /// The peer's certificate has more than one URI among its subject alternative names.
    SeveralUriSans,
    /// The URI in the peer's certificate is not a SPIFFE ID of the form Weft uses.
    NotSpiffe,
    /// A signature does not hold: the certificate's, or the handshake's.
    BadSignature,
    /// The certificate is unusable for another reason (encoding, purpose, a CA's certificate used as a leaf).
    BadCertificate,
    /// No common TLS version, cipher suite or group; sidecars speak TLS 1.3 only.
    Incompatible,
    /// The peer offers application protocols, and none is one of ours.
    NoProtocol,
    /// The peer refused us: it sent an alert.
    Alert,
    /// The handshake was not over in time.
    Timeout,
    /// The connection broke during the handshake.
    Io,
    /// This sidecar has no certificate or no trust bundle yet.
    NotReady,
    /// The peer broke the TLS protocol.
    Other,
}

impl HandshakeFailure {
    /// Every reason: metric children are made from this.
    pub(crate) const ALL: [Self; 18] = [
        Self::NoCertificate,
        Self::UnknownCa,
        Self::WrongIdentity,
        Self::WrongTrustDomain,
        Self::Expired,
        Self::NotYetValid,
        Self::NoUriSan,
        Self::SeveralUriSans,
        Self::NotSpiffe,
        Self::BadSignature,
        Self::BadCertificate,
        Self::Incompatible,
        Self::NoProtocol,
        Self::Alert,
        Self::Timeout,
        Self::Io,
        Self::NotReady,
        Self::Other,
    ];

    /// As in metrics and logs.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::NoCertificate => "no_certificate",
            Self::UnknownCa => "unknown_ca",
            Self::WrongIdentity => "wrong_identity",
            Self::WrongTrustDomain => "wrong_trust_domain",
            Self::Expired => "expired",
            Self::NotYetValid => "not_yet_valid",
            Self::NoUriSan => "no_uri_san",
            Self::SeveralUriSans => "several_uri_sans",
            Self::NotSpiffe => "not_spiffe",
            Self::BadSignature => "bad_signature",
            Self::BadCertificate => "bad_certificate",
            Self::Incompatible => "incompatible",
            Self::NoProtocol => "no_protocol",
            Self::Alert => "alert",
            Self::Timeout => "timeout",
            Self::Io => "io",
            Self::NotReady => "not_ready",
            Self::Other => "other",
        }
    }

    /// What a person who meets this should look at.
    const fn cure(self) -> &'static str {
        match self {
            Self::NoCertificate => "the caller must run beside a sidecar, or the service must be permissive",
            Self::UnknownCa => {
                "both sides must hold the same trust bundle: compare /certs on their admin ports"
            }
            Self::WrongIdentity => "another workload answers at the address the registry has for this one",
            Self::WrongTrustDomain => "set the same trustDomain in MeshPolicy on both sides",
            Self::Expired => "its sidecar could not renew: look at its connection to the control plane",
            Self::NotYetValid => "compare the clocks of the two machines and of the control plane",
            Self::NoUriSan | Self::SeveralUriSans | Self::NotSpiffe => {
                "the certificate must carry exactly one URI, spiffe://<trust-domain>/ns/<namespace>/sa/<account>"
            }
            Self::BadSignature | Self::BadCertificate => "look at /certs on the peer's admin port",
            Self::Incompatible => "the peer must speak TLS 1.3 with AES-GCM or ChaCha20 and X25519 or P-256",
            Self::NoProtocol => "the peer's sidecar must be of a version that this one understands",
            Self::Alert => "the reason is in the peer's log and in its weft_tls_handshakes_total",
            Self::Timeout => "look at the peer's load and at the network between",
            Self::Io => "the peer closed the connection: is a sidecar listening there",
            Self::NotReady => "it has not got its certificate from the control plane yet: see /certs",
            Self::Other => "something that is not a sidecar may be listening there",
        }
    }
}

impl fmt::Display for HandshakeFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A handshake that failed.
#[derive(Clone, Debug)]
pub(crate) struct Refused {
    /// For counting.
    pub(crate) reason: HandshakeFailure,
    /// One line for the log: what was found. Never has key material in it.
    pub(crate) detail: Cow<'static, str>,
}

impl Refused {
    /// A failure with what is known of it.
    pub(super) fn new(reason: HandshakeFailure, detail: impl Into<Cow<'static, str>>) -> Self {
        Self { reason, detail: detail.into() }
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TLS handshake failed ({}): {}; {}", self.reason, self.detail, self.reason.cure())
    }
}

impl std::error::Error for Refused {}

impl From<Refused> for Error {
    fn from(refused: Refused) -> Self {
        let kind = match refused.reason {
            HandshakeFailure::Timeout => Kind::ConnectTimeout,
            _ => Kind::Tls,
        };
        Self::new(kind, refused.to_string())
    }
}

impl From<io::Error> for Refused {
    /// Sorts what the TLS stream reports; rustls's own errors travel inside of IO errors.
    fn from(error: io::Error) -> Self {
        match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            Some(inner) => Self::from(inner),
            None => Self::new(HandshakeFailure::Io, error.to_string()),
        }
    }
}

impl From<&rustls::Error> for Refused {
    fn from(error: &rustls::Error) -> Self {
        use HandshakeFailure as F;
        let reason = match error {
            rustls::Error::InvalidCertificate(CertificateError::Other(other)) => {
                if let Some(rejected) = other.0.downcast_ref::<Rejected>() {
                    return rejected.0.clone();
                }
                F::BadCertificate
            }
            rustls::Error::InvalidCertificate(inner) => match inner {
                CertificateError::UnknownIssuer => F::UnknownCa,
                CertificateError::Expired | CertificateError::ExpiredContext { .. } => F::Expired,
                CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => F::NotYetValid,
                CertificateError::BadSignature => F::BadSignature,
                _ => F::BadCertificate,
            },
            rustls::Error::NoCertificatesPresented => F::NoCertificate,
            rustls::Error::NoApplicationProtocol => F::NoProtocol,
            rustls::Error::PeerIncompatible(_) => F::Incompatible,
            rustls::Error::AlertReceived(AlertDescription::NoApplicationProtocol) => F::NoProtocol,
            rustls::Error::AlertReceived(AlertDescription::ProtocolVersion) => F::Incompatible,
            rustls::Error::AlertReceived(_) => F::Alert,
            rustls::Error::DecryptError => F::BadSignature,
            _ => F::Other,
        };
        Self::new(reason, error.to_string())
    }
}
