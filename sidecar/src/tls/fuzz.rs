//! Certificates of peers, which are looked at before anything is known of who sent them.

use super::verify::identity_of;
use rustls_pki_types::CertificateDer;

/// One that signed itself, for `spiffe://weft.local/ns/shop/sa/cart`; no key is left.
pub(crate) const CERTIFICATES: &[&[u8]] = &[
    b"0\x82\x01F0\x81\xf9\xa0\x03\x02\x01\x02\x02\x14M\x19[\xbc\xf5\x95\xf5\xde\xablI\xbfp\xf4Q9\xf9T+\x110\x05\
      \x06\x03+ep0\x000\x1e\x17\x0d261122060851Z\x17\x0d361119060851Z0\x000*0\x05\x06\x03+ep\x03!\x00\xfb\xcf\xed\
      nr\xccm\x18\xa9\xe86\x0afIwL}\xbe\x9d\x9b\x06\x038\x03\xe0[H\xc3$\xef\xe6y\xa3\x81\x840\x81\x810\x1d\x06\x03U\
      \x1d\x0e\x04\x16\x04\x14\xe2@A\xe2+f{cxt+\x7f\xb6t\xf1h=\xb5N\xcf0\x1f\x06\x03U\x1d#\x04\x180\x16\x80\x14\xe2@\
      A\xe2+f{cxt+\x7f\xb6t\xf1h=\xb5N\xcf0\x0f\x06\x03U\x1d\x13\x01\x01\xff\x04\x050\x03\x01\x01\xff0.\x06\x03U\x1d\
      \x11\x04'0%\x86#spiffe://weft.local/ns/shop/sa/cart0\x05\x06\x03+ep\x03A\x00\xaf\xb0L\xce;[\xe7\xfe\xbdO\xc2\
      \xf0y\xa7x\x0e@\x7f\x89\x9c\x1d\xc6\x83 \xecL\xf5\x90\x1d\x97\x84a?\x1dY\x95\xc4\xd5C\x07\xd9\xf0[\xdc>\xb4g9\
      \xc6\xf4U\xdf=A^\x09\xe5\xee\x84\x8bWb~\x09",
    b"0\x03\x02\x01\x05",
];

/// Whoever is named is named in full, once, and of our own trust domain.
pub(crate) fn certificate(bytes: &[u8]) {
    let der = CertificateDer::from(bytes);
    match identity_of(&der, "weft.local") {
        Ok(id) => {
            assert_eq!(&*id.trust_domain, "weft.local");
            let text = id.to_string();
            assert_eq!(text.parse().as_ref(), Ok(&id));
            assert!(bytes.windows(text.len()).any(|part| part == text.as_bytes()), "{text} is made up");
            assert!(identity_of(&der, "other.local").is_err());
        }
        Err(refused) => assert!(!refused.to_string().is_empty()),
    }
}
