//! Certificate requests: what is checked of one, and the only thing that is taken from it.

use rcgen::{CertificateSigningRequestParams, SubjectPublicKeyInfo};
use rustls_pki_types::CertificateSigningRequestDer;
use x509_parser::prelude::{FromDer, X509CertificationRequest};

/// A request for one small key is a few hundred bytes.
const MAX_REQUEST: usize = 16 * 1024;

/// Why no certificate is issued.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It cannot be parsed.
    #[error("the certificate request is not PKCS#10 in DER")]
    Malformed,
    /// Whoever sent it does not hold the private key.
    #[error("the certificate request is not signed by the key it asks a certificate for")]
    BadSignature,
    /// The key is not one that the mesh takes.
    #[error("the certificate request is for a key of an unsupported kind; use ECDSA P-256, P-384 or Ed25519")]
    UnsupportedKey,
    /// More requests than any sidecar has reason for.
    #[error("too many certificate requests on one stream; wait before the next")]
    TooMany,
    /// The CA itself is not able to sign.
    #[error("{0}")]
    Authority(String),
}

impl Refused {
    /// The value of the `reason` label.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::BadSignature => "bad_signature",
            Self::UnsupportedKey => "unsupported_key",
            Self::TooMany => "too_many",
            Self::Authority(_) => "authority",
        }
    }
}

/// The public key of a request whose sender has shown to hold the private one. Names in it mean nothing here.
pub(crate) fn proven_key(request: &[u8]) -> Result<SubjectPublicKeyInfo, Refused> {
    if request.len() > MAX_REQUEST {
        return Err(Refused::Malformed);
    }
    let (rest, parsed) = X509CertificationRequest::from_der(request).map_err(|_| Refused::Malformed)?;
    if !rest.is_empty() {
        return Err(Refused::Malformed);
    }
    let key = SubjectPublicKeyInfo::from_der(parsed.certification_request_info.subject_pki.raw)
        .map_err(|_| Refused::UnsupportedKey)?;
    let algorithm = rcgen::PublicKeyData::algorithm(&key);
    let supported = [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519];
    if !supported.contains(&algorithm) {
        return Err(Refused::UnsupportedKey);
    }
    match CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(request)) {
        Ok(_) => Ok(key),
        Err(rcgen::Error::InvalidCertificationRequestSignature) => Err(Refused::BadSignature),
        Err(_) => Err(Refused::Malformed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, KeyPair, PublicKeyData};

    fn request(key: &KeyPair) -> Vec<u8> {
        let params = CertificateParams::new(vec!["ignored.example".to_owned()]).expect("params");
        params.serialize_request(key).expect("request").der().to_vec()
    }

    #[test]
    fn the_key_of_a_good_request_is_taken() {
        let key = KeyPair::generate().expect("key");
        let taken = proven_key(&request(&key)).expect("taken");
        assert_eq!(taken.subject_public_key_info(), key.subject_public_key_info());
    }

    #[test]
    fn a_request_signed_by_another_key_is_refused() {
        let mut der = request(&KeyPair::generate().expect("key"));
        // The signature stands at the very end.
        let last = der.len() - 1;
        der[last] ^= 1;
        assert_eq!(proven_key(&der), Err(Refused::BadSignature));
    }

    #[test]
    fn a_swapped_key_is_refused() {
        let (mine, other) = (KeyPair::generate().expect("key"), KeyPair::generate().expect("key"));
        let mut der = request(&mine);
        let at = der.windows(65).position(|w| w == mine.public_key_raw()).expect("the key is in it");
        der[at..at + 65].copy_from_slice(other.public_key_raw());
        assert_eq!(proven_key(&der), Err(Refused::BadSignature));
    }

    #[test]
    fn noise_is_refused() {
        let good = request(&KeyPair::generate().expect("key"));
        assert_eq!(proven_key(b""), Err(Refused::Malformed));
        assert_eq!(proven_key(&good[..good.len() - 10]), Err(Refused::Malformed));
        assert_eq!(proven_key(&[good, vec![0]].concat()), Err(Refused::Malformed));
        assert_eq!(proven_key(&vec![0x30; 100_000]), Err(Refused::Malformed));
    }

    #[test]
    fn a_key_of_an_unusual_kind_is_refused() {
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P521_SHA512).expect("key");
        assert_eq!(proven_key(&request(&key)), Err(Refused::UnsupportedKey));
    }
}
