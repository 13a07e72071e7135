//! What comes from farther away: answers that Redis or the disk kept, and what one sidecar asks another.

use super::super::{
    entry::{
        Entry,
        packed::{self, Form, Stamp},
    },
    siblings::Ask,
    stored::Stored,
};
use crate::{body::Body, fuzz::first_line, http1, telemetry::metrics::Tier};
use http::{HeaderValue, Response};
use std::sync::Arc;

/// A key without line ends, and what is in sealed bytes.
pub(crate) const PACKED: &[&[u8]] = &[
    b"k\n\x07\0\0\0\0\0\0\0\x09\0\0\0\0\0\0\0\xc0\x86\xfdj\xc1\x86\xfdj\x01\0\0\0<\0\0\0\x05\0\0\0\x06\0\0\0\
      \xa8\x8a\xfdj\xc8\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x01\0\0\0\x01\0\0\0\x01\0\0\0\x30\0\0\0\x30\0\0\0\
      \0\0k\x02\0\x0c\0\n\0\x04\0\x03\0Content-Type: text/plain\r\nETag: \x22a\x22\r\nhello",
    b"k\n\x07\0\0\0\0\0\0\0\x09\0\0\0\0\0\0\0\xc0\x86\xfdj\xc1\x86\xfdj\x01\0\0\0<\0\0\0\x05\0\0\0\x06\0\0\0\
      \xa8\x8a\xfdj\xc8\0\x03\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x01\0\0\0\x16\0\0\0\x1e\0\0\0;\0\0\0Q\0\0\0\0\0k\
      accept-encoding=gzip\n\x03\0p:1\x01\0x\x01\0\x04\0\x0f\0Vary: accept-encoding\r\n\
      \x01\0\x0b\0\x01\0grpc-status: 0\r\n\0\0\0\0\x02hi",
    b"k\n\x07\0\0\0\0\0\0\0\x09\0\0\0\0\0\0\0\xc0\x86\xfdj\xc1\x86\xfdj\x01\0\0\0<\0\0\0\x05\0\0\0\x06\0\0\0\
      \xa8\x8a\xfdj\xce\0\x11\0\x07\n\0\0\0\0\0\0\0\x0e\0\0\0\0\0\0\0\x01\0\0\0\x01\0\0\0\x04\0\0\0\x1e\0\0\0\
      \x1e\0\0\0\x05\0*,X-Ak\x01\0t\x02\0\x03\0\x01\0\x03\0\x01\0x-a: 1\r\nx-a: 2\r\npart",
    b"k\n\x07\0\0\0\0\0\0\0\x09\0\0\0\0\0\0\0\xc0\x86\xfdj\xc1\x86\xfdj\x01\0\0\0<\0\0\0\x05\0\0\0\x06\0\0\0\
      \xa8\x8a\xfdj\xcc\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x01\0\0\0\x01\0\0\0\x01\0\0\0\x03\0\0\0\x03\0\0\0\
      \0\0k\0\0gone",
];

fn read(content: &[u8], key: &[u8]) -> Option<(Entry, Stamp)> {
    packed::unpack(content, key, 1 << 20, 0, Tier::Redis)
}

/// Who can write to a tier can make the seal right; still it makes an answer that is one answer, or none.
pub(crate) fn packed(bytes: &[u8]) {
    let _ = packed::open(bytes);
    let (key, content) = first_line(bytes);
    let mut sealed = packed::begin(Form::Entry, content.len());
    sealed.extend_from_slice(content);
    let sealed = packed::close(sealed);
    assert_eq!(packed::open(&sealed), Some((Form::Entry, content)), "what is sealed is whole");
    let Some((entry, stamp)) = read(content, key) else { return };
    assert_eq!(entry.key_text(), key);
    assert!(entry.length() <= 1 << 20 && entry.size() >= entry.length());
    assert_eq!(read(content, &[key, b"x"].concat()).map(drop), None, "it is for another key");
    let Some(again) = packed::pack(&entry, stamp) else { panic!("what was packed packs") };
    let Some((back, same)) = packed::open(&again).and_then(|(_, content)| read(content, key)) else {
        panic!("what was packed again is refused: {}", again.escape_ascii())
    };
    assert_eq!(same, stamp);
    assert_eq!(
        (back.selector(), back.status(), back.flags()),
        (entry.selector(), entry.status(), entry.flags())
    );
    assert!(back.tags().eq(entry.tags()));
    assert_eq!((back.times(), back.extent()), (entry.times(), entry.extent()));
    assert_eq!((back.wire(), back.trailers(), back.bytes()), (entry.wire(), entry.trailers(), entry.bytes()));
    let (headers, status) = (entry.headers(), entry.status());
    if entry.has_trailers() {
        return;
    }
    let mut response = Response::new(Body::Stored(Stored::new(Arc::new(entry), 1, 2, "weft")));
    *response.status_mut() = status;
    http1::fuzz::is_one_answer(response, &headers);
}

pub(crate) const ASKS: &[&[u8]] = &[
    b"outbound shop/product 8080 00000000000000ff",
    b"inbound spiffe://weft.local/ns/shop/sa/cart",
    b"inbound",
];

/// What is asked is what was meant.
pub(crate) fn ask(bytes: &[u8]) {
    let Some(ask) = HeaderValue::from_bytes(bytes).ok().as_ref().and_then(Ask::read) else { return };
    let again = ask.value().as_ref().and_then(Ask::read);
    assert_eq!(again.as_ref(), Some(&ask));
}
