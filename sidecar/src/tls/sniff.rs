//! Telling mesh TLS from an application's own by the ClientHello, before anything is terminated.

/// The longest ClientHello that is looked at. A mesh peer's has about 2 KiB with the hybrid key share.
const LIMIT: usize = 16 * 1024;

const HANDSHAKE_RECORD: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const SERVER_NAME: u16 = 0;
const ALPN: u16 = 16;

/// What the first bytes of a connection are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Sniffed {
    /// More bytes are needed to tell.
    Incomplete,
    /// No TLS.
    NotTls,
    /// A sidecar: it offers a `weft/*` protocol.
    Mesh,
    /// Somebody else's TLS.
    Foreign {
        /// The server name asked for.
        sni: Option<String>,
        /// True if application protocols are offered. A mesh peer's plain test client offers none.
        alpn: bool,
    },
}

/// Looks at the first bytes of a connection.
pub(crate) fn client_hello(bytes: &[u8]) -> Sniffed {
    let mut message = Assembled::default();
    let mut rest = bytes;
    loop {
        // The header of a record: type, version (major always 3), length.
        let wrong = match rest {
            [] => false,
            [kind, tail @ ..] => *kind != HANDSHAKE_RECORD || tail.first().is_some_and(|major| *major != 3),
        };
        if wrong {
            // The first record decides whether it is TLS at all; what breaks off later is nothing for the mesh.
            return if message.started() { foreign() } else { Sniffed::NotTls };
        }
        let [_, _, _, high, low, payload @ ..] = rest else {
            return if message.len() > LIMIT { foreign() } else { Sniffed::Incomplete };
        };
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        // An empty handshake record is forbidden, and one over 2^14 cannot be plain text.
        if length == 0 || length > 1 << 14 {
            return if message.started() { foreign() } else { Sniffed::NotTls };
        }
        message.add(&payload[..length.min(payload.len())]);
        match message.hello() {
            Hello::Whole(body) => return decide(body),
            Hello::Other => return Sniffed::NotTls,
            Hello::TooLong => return foreign(),
            Hello::Partial => {}
        }
        if payload.len() < length {
            return Sniffed::Incomplete;
        }
        rest = &payload[length..];
    }
}

fn foreign() -> Sniffed {
    Sniffed::Foreign { sni: None, alpn: false }
}

/// Handshake bytes out of records; borrowed as long as one record holds them all, which is nearly always.
#[derive(Default)]
struct Assembled<'a> {
    first: Option<&'a [u8]>,
    joined: Vec<u8>,
}

enum Hello<'a> {
    Whole(&'a [u8]),
    Partial,
    TooLong,
    Other,
}

impl<'a> Assembled<'a> {
    fn add(&mut self, bytes: &'a [u8]) {
        match self.first {
            None => self.first = Some(bytes),
            Some(first) => {
                if self.joined.is_empty() {
                    self.joined.extend_from_slice(first);
                }
                self.joined.extend_from_slice(bytes);
            }
        }
    }

    fn bytes(&self) -> &[u8] {
        if self.joined.is_empty() { self.first.unwrap_or_default() } else { &self.joined }
    }

    fn started(&self) -> bool {
        self.first.is_some()
    }

    fn len(&self) -> usize {
        self.bytes().len()
    }

    fn hello(&self) -> Hello<'_> {
        match self.bytes() {
            [] => Hello::Partial,
            [kind, ..] if *kind != CLIENT_HELLO => Hello::Other,
            [_, a, b, c, body @ ..] => {
                let length = usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c);
                if length > LIMIT {
                    Hello::TooLong
                } else if body.len() >= length {
                    Hello::Whole(&body[..length])
                } else {
                    Hello::Partial
                }
            }
            _ => Hello::Partial,
        }
    }
}

/// Reads a whole ClientHello. One that is malformed is not ours to judge: it is foreign.
fn decide(body: &[u8]) -> Sniffed {
    let mut found = Found::default();
    // What was read before a malformed part counts for nothing.
    if read_hello(body, &mut found).is_none() {
        return foreign();
    }
    if found.mesh { Sniffed::Mesh } else { Sniffed::Foreign { sni: found.sni, alpn: found.alpn } }
}

#[derive(Default)]
struct Found {
    sni: Option<String>,
    alpn: bool,
    mesh: bool,
}

fn read_hello(body: &[u8], found: &mut Found) -> Option<()> {
    let mut reader = Reader(body);
    reader.take(2 + 32)?; // version and random
    reader.vector8()?; // session id
    reader.vector16()?; // cipher suites
    reader.vector8()?; // compression methods
    if reader.0.is_empty() {
        return Some(()); // no extensions
    }
    let mut extensions = Reader(reader.vector16()?);
    while !extensions.0.is_empty() {
        let kind = extensions.u16()?;
        let content = Reader(extensions.vector16()?);
        match kind {
            ALPN => read_alpn(content, found)?,
            SERVER_NAME => read_server_name(content, found)?,
            _ => {}
        }
    }
    Some(())
}

fn read_alpn(mut content: Reader<'_>, found: &mut Found) -> Option<()> {
    let mut names = Reader(content.vector16()?);
    while !names.0.is_empty() {
        let name = names.vector8()?;
        found.alpn = true;
        found.mesh |= name.starts_with(b"weft/");
    }
    Some(())
}

fn read_server_name(mut content: Reader<'_>, found: &mut Found) -> Option<()> {
    let mut names = Reader(content.vector16()?);
    while !names.0.is_empty() {
        let kind = names.u8()?;
        let name = names.vector16()?;
        let valid = !name.is_empty()
            && name.len() <= 253
            && name.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'));
        if kind == 0 && valid && found.sni.is_none() {
            found.sni = Some(String::from_utf8_lossy(name).to_ascii_lowercase());
        }
    }
    Some(())
}

/// A cursor that cannot run over the end.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(n)?;
        self.0 = tail;
        Some(head)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take(1).map(|bytes| bytes[0])
    }

    fn u16(&mut self) -> Option<u16> {
        self.take(2).map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    fn vector8(&mut self) -> Option<&'a [u8]> {
        let n = self.u8()?;
        self.take(usize::from(n))
    }

    fn vector16(&mut self) -> Option<&'a [u8]> {
        let n = self.u16()?;
        self.take(usize::from(n))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::Arc;

    /// The first flight of a real client.
    fn hello(name: &str, protocols: &[&[u8]]) -> Vec<u8> {
        let mut config = rustls::ClientConfig::builder_with_provider(Arc::new(super::super::provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("versions")
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        config.alpn_protocols = protocols.iter().map(|p| p.to_vec()).collect();
        let name = rustls_pki_types::ServerName::try_from(name.to_owned()).expect("a name");
        let mut client = rustls::ClientConnection::new(Arc::new(config), name).expect("a client");
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).expect("written");
        bytes
    }

    /// The same handshake bytes in records of at most `size` bytes.
    fn fragmented(hello: &[u8], size: usize) -> Vec<u8> {
        let mut out = Vec::new();
        for chunk in hello[5..].chunks(size) {
            let length = u16::try_from(chunk.len()).expect("small").to_be_bytes();
            out.extend_from_slice(&[22, 3, 1, length[0], length[1]]);
            out.extend_from_slice(chunk);
        }
        out
    }

    #[test]
    fn a_weft_protocol_makes_it_mesh() {
        assert_eq!(client_hello(&hello("8080.product.shop.weft", &[b"weft/1over2"])), Sniffed::Mesh);
        assert_eq!(client_hello(&hello("a.weft", &[b"h2", b"weft/9"])), Sniffed::Mesh);
    }

    #[test]
    fn an_applications_own_tls_is_foreign_and_keeps_its_name() {
        let sni = Some("db.example.com".to_owned());
        assert_eq!(
            client_hello(&hello("DB.example.com", &[b"h2", b"http/1.1"])),
            Sniffed::Foreign { sni: sni.clone(), alpn: true }
        );
        assert_eq!(client_hello(&hello("db.example.com", &[])), Sniffed::Foreign { sni, alpn: false });
    }

    #[test]
    fn every_prefix_asks_for_more() {
        let hello = hello("8080.product.shop.weft", &[b"weft/1"]);
        for end in 0..hello.len() {
            assert_eq!(client_hello(&hello[..end]), Sniffed::Incomplete, "{end} bytes");
        }
        let mut longer = hello;
        longer.extend_from_slice(b"what follows does not matter");
        assert_eq!(client_hello(&longer), Sniffed::Mesh);
    }

    #[test]
    fn fragments_are_put_together() {
        let hello = hello("8080.product.shop.weft", &[b"weft/2"]);
        for size in [1, 3, 100, 1000] {
            let fragments = fragmented(&hello, size);
            assert_eq!(client_hello(&fragments), Sniffed::Mesh, "records of {size}");
            assert_eq!(client_hello(&fragments[..fragments.len() - 1]), Sniffed::Incomplete);
        }
    }

    #[test]
    fn other_protocols_are_not_tls() {
        for bytes in [
            &b"GET / HTTP/1.1\r\n"[..],
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"\x16\x02\x00\x00\x05hello",
            b"\x16\x03\x01\x00\x00",
            b"\x16\x03\x01\xff\xff",
            b"\x16\x03\x01\x00\x04\x02\x00\x00\x00",
            b"\x15\x03\x01\x00\x02\x01\x00",
        ] {
            assert_eq!(client_hello(bytes), Sniffed::NotTls, "{bytes:?}");
        }
    }

    #[test]
    fn a_hello_past_the_limit_is_not_waited_for() {
        let head = [22, 3, 1, 0x40, 0, CLIENT_HELLO, 0, 0x40, 1];
        assert_eq!(client_hello(&head), foreign());
    }

    proptest! {
        #[test]
        fn mutations_never_panic(
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..12),
            cut in any::<prop::sample::Index>(),
            size in 1usize..600,
        ) {
            let mut bytes = fragmented(&hello("8080.product.shop.weft", &[b"weft/1", b"h2"]), size);
            for (index, value) in changes {
                let at = index.index(bytes.len());
                bytes[at] = value;
            }
            client_hello(&bytes);
            bytes.truncate(cut.index(bytes.len() + 1));
            client_hello(&bytes);
        }

        #[test]
        fn any_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            client_hello(&bytes);
        }
    }
}
