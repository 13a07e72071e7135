//! Names: of services and workloads, and the SPIFFE identities that certificates carry.

use std::{fmt, str::FromStr, sync::Arc};

/// A service's name within its namespace. Cheap to clone and to hash.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceName {
    /// The namespace, `default` where a document names none.
    pub namespace: Arc<str>,
    /// The service's own name.
    pub name: Arc<str>,
}

impl ServiceName {
    /// Joins a namespace and a name.
    pub fn new(namespace: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl fmt::Debug for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A workload identity in SPIFFE form, `spiffe://<trust-domain>/ns/<namespace>/sa/<service-account>`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId {
    /// The trust domain, for example `weft.local`.
    pub trust_domain: Arc<str>,
    /// The namespace of the workload.
    pub namespace: Arc<str>,
    /// The service account that the workload runs as.
    pub service_account: Arc<str>,
}

/// Why a text is not a SPIFFE ID of the form Weft uses.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a SPIFFE ID of the form spiffe://<trust-domain>/ns/<namespace>/sa/<service-account>")]
pub struct InvalidSpiffeId(pub String);

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spiffe://{}/ns/{}/sa/{}", self.trust_domain, self.namespace, self.service_account)
    }
}

impl FromStr for SpiffeId {
    type Err = InvalidSpiffeId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidSpiffeId(text.chars().take(256).collect());
        let rest = text.strip_prefix("spiffe://").ok_or_else(invalid)?;
        let mut parts = rest.split('/');
        let (Some(trust_domain), Some("ns"), Some(namespace), Some("sa"), Some(account), None) =
            (parts.next(), parts.next(), parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(invalid());
        };
        let domain_ok = !trust_domain.is_empty()
            && trust_domain.len() <= 255
            && trust_domain.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_'));
        let segment_ok = |s: &str| {
            !s.is_empty()
                && s.len() <= 253
                && s != "."
                && s != ".."
                && s.bytes()
                    .all(|b| matches!(b, b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_'))
        };
        if !domain_ok || !segment_ok(namespace) || !segment_ok(account) {
            return Err(invalid());
        }
        Ok(Self {
            trust_domain: trust_domain.into(),
            namespace: namespace.into(),
            service_account: account.into(),
        })
    }
}

/// How mesh traffic on one TLS connection is spoken, agreed by ALPN. An application's own TLS never offers these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MeshProtocol {
    /// HTTP/1.1, one exchange at a time: cheapest at low load; upgrades and `CONNECT` always travel so.
    Http1,
    /// HTTP/2 whose streams are an application's own HTTP/2 streams (gRPC).
    Http2,
    /// HTTP/2 whose streams carry an application's HTTP/1 messages: many requests a TLS record under load.
    Http1Over2,
    /// Opaque bytes.
    Tcp,
}

impl MeshProtocol {
    /// The ALPN protocol name.
    pub const fn alpn(self) -> &'static [u8] {
        match self {
            Self::Http1 => b"weft/1",
            Self::Http2 => b"weft/2",
            Self::Http1Over2 => b"weft/1over2",
            Self::Tcp => b"weft/tcp",
        }
    }

    /// The protocol of an ALPN name, if it is one of ours.
    pub fn from_alpn(name: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|p| p.alpn() == name)
    }

    /// Every protocol, in the order a server prefers them.
    pub const ALL: [Self; 4] = [Self::Http1, Self::Http2, Self::Http1Over2, Self::Tcp];
}

/// The TLS server name by which a sidecar says which port of which service it wants behind a peer's inbound listener:
/// `<port>.<service>.<namespace>.weft`.
pub fn mesh_server_name(service: &ServiceName, port: u16) -> String {
    format!("{port}.{}.{}.weft", service.name, service.namespace)
}

/// The inverse of [`mesh_server_name`].
pub fn parse_mesh_server_name(name: &str) -> Option<(ServiceName, u16)> {
    let rest = name.strip_suffix(".weft")?;
    let (port, rest) = rest.split_once('.')?;
    let (service, namespace) = rest.split_once('.')?;
    if service.is_empty() || namespace.is_empty() || namespace.contains('.') {
        return None;
    }
    Some((ServiceName::new(namespace, service), port.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spiffe_id_survives_a_round_trip() {
        let id: SpiffeId = "spiffe://weft.local/ns/shop/sa/cart".parse().expect("valid");
        assert_eq!(id.to_string(), "spiffe://weft.local/ns/shop/sa/cart");
    }

    #[test]
    fn other_forms_are_refused() {
        for bad in [
            "",
            "spiffe://",
            "spiffe://td/ns/a/sa",
            "spiffe://td/ns/a/sa/b/c",
            "spiffe://td/ns//sa/b",
            "http://td/ns/a/sa/b",
            "spiffe://TD/ns/a/sa/b",
            "spiffe://td/ns/a/sa/b?x",
            "spiffe://td/ns/../sa/b",
            "spiffe://td:80/ns/a/sa/b",
        ] {
            assert!(bad.parse::<SpiffeId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn server_name_survives_a_round_trip() {
        let service = ServiceName::new("shop", "product");
        let name = mesh_server_name(&service, 8080);
        assert_eq!(name, "8080.product.shop.weft");
        assert_eq!(parse_mesh_server_name(&name), Some((service, 8080)));
        assert_eq!(parse_mesh_server_name("8080.product.weft"), None);
        assert_eq!(parse_mesh_server_name("example.com"), None);
    }
}
