//! Fuzz targets of HTTP/2: heads between the protocols, and whole connections.

use super::{Settings, serve, translate};
use crate::{
    drain::Drain,
    fuzz::{
        connection::{Reader, talk},
        fields, first_line,
    },
    http1, message,
    notable::Notable,
};
use http::{HeaderName, Method, Request, Uri, Version, header, request::Parts, uri::PathAndQuery};
use std::rc::Rc;

pub(crate) const REQUESTS: &[&[u8]] = &[
    b"GET http://product:8080/a/../b?c=d\ncookie: a=b\ncookie: c=d\nte: trailers\nx-a: 1",
    b"POST https://Product/\nhost: other:1\ncontent-length: 5\nweft-case: *,X-A\nx-a: 1",
    b"OPTIONS http://a/*\nconnection: x-b, te\nx-b: 1\ntransfer-encoding: chunked\nupgrade: h2c",
    b"PUT /only/a/path?\nte: gzip, trailers\ncontent-type: application/grpc\ngrpc-timeout: 1S",
    b"PTIONS *\nhost: product",
    b"GET http://product:8080/a\ncookie: a=b\ncookie:\nte: trailers",
    b"GET http://product/\nhost: a b\nhost: c",
    b"GET http://user@[::1]:8080\nproxy-connection: close\nkeep-alive: 5",
];

/// Connection fields that HTTP/2 has none of.
const FORBIDDEN: [HeaderName; 5] = [
    header::CONNECTION,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];

/// A head as it is handed up, and then as it is judged and sent on; `None` if it is refused.
fn handed_up(mut request: Request<()>, http1_messages: bool) -> Option<Parts> {
    translate::join_cookies(request.headers_mut());
    translate::trim_values(request.headers_mut());
    if http1_messages {
        let (mut parts, ()) = request.into_parts();
        translate::case_in(&mut parts.headers, &mut parts.extensions);
        message::settle_host(&mut parts).ok()?;
        request = Request::from_parts(parts, ());
        translate::request_to_http1(&mut request);
    }
    let (mut parts, ()) = request.into_parts();
    assert!(parts.headers.get_all(header::COOKIE).iter().count() <= 1);
    passed_on(&mut parts).then_some(parts)
}

/// Whether a sidecar takes it, and makes it what it is sent on as.
fn passed_on(parts: &mut Parts) -> bool {
    let notable = Notable::of(&parts.headers);
    if message::prepare(parts, notable, false).is_err() {
        return false;
    }
    message::ensure_host(parts);
    true
}

fn path(uri: &Uri) -> &str {
    uri.path_and_query().map_or("/", PathAndQuery::as_str)
}

/// What is sent on, over either protocol, is one request for the same.
fn is_sent_on(parts: &Parts) {
    http1::fuzz::is_one_request(parts);
    let hosts: Vec<_> = parts.headers.get_all(header::HOST).iter().collect();
    let asked = message::authority(parts);
    assert!(
        hosts.len() <= 1 && hosts.first().map(|host| host.as_bytes()) == asked.map(str::as_bytes),
        "{hosts:?}"
    );
    let sent = translate::request_out(parts);
    if parts.version != Version::HTTP_2 {
        assert!(FORBIDDEN.iter().all(|name| !sent.headers().contains_key(name)), "{:?}", sent.headers());
        assert!(sent.headers().get_all(header::TE).iter().all(|value| value == "trailers"));
    }
    assert_eq!(sent.method(), parts.method);
    if parts.method != Method::CONNECT {
        assert_eq!(path(sent.uri()), path(&parts.uri));
    }
    let mut back = sent;
    let has_host = back.uri().authority().is_some();
    translate::request_to_http1(&mut back);
    assert_eq!(path(back.uri()), path(&parts.uri));
    if has_host {
        let host = message::authority(parts).map(str::to_owned);
        let read = back.headers().get(header::HOST).and_then(|host| host.to_str().ok()).map(str::to_owned);
        assert_eq!(read, host, "the host is lost on the way");
    }
}

/// A head that came over HTTP/2 is the same one after any hop.
pub(crate) fn request(bytes: &[u8]) {
    let (line, rest) = first_line(bytes);
    let mut words = line.split(|byte| *byte == b' ');
    let method = words.next().and_then(|method| Method::from_bytes(method).ok());
    let uri = words.next().and_then(|uri| Uri::try_from(uri).ok());
    let (Some(method), Some(uri)) = (method, uri) else { return };
    if method == Method::CONNECT {
        return;
    }
    for http1_messages in [false, true] {
        let mut request = Request::new(());
        *request.method_mut() = method.clone();
        *request.uri_mut() = uri.clone();
        *request.version_mut() = Version::HTTP_2;
        *request.headers_mut() = fields(rest);
        if let Some(parts) = handed_up(request, http1_messages) {
            is_sent_on(&parts);
        }
    }
}

/// Frames after the preface and empty settings.
pub(crate) const CONNECTIONS: &[&[u8]] = &[
    // GET http://a/
    b"\x00\x00\x06\x01\x05\x00\x00\x00\x01\x82\x86\x84\x41\x01a",
    // POST with a body, and a ping.
    b"\x00\x00\x06\x01\x04\x00\x00\x00\x01\x83\x86\x84\x41\x01a\x00\x00\x05\x00\x01\x00\x00\x00\x01hello\
      \x00\x00\x08\x06\x00\x00\x00\x00\x0001234567",
    // A field with a blank before its value, and two streams, of which one is reset.
    b"\x00\x00\x0c\x01\x05\x00\x00\x00\x01\x82\x86\x84\x41\x01a\x40\x01x\x02 y\
      \x00\x00\x06\x01\x04\x00\x00\x00\x03\x83\x86\x84\x41\x01b\x00\x00\x04\x03\x00\x00\x00\x00\x03\x00\x00\x00\x08",
    // CONNECT a:1, data, and GOAWAY.
    b"\x00\x00\x0e\x01\x04\x00\x00\x00\x01\x42\x07CONNECT\x41\x03a:1\x00\x00\x02\x00\x00\x00\x00\x00\x01hi\
      \x00\x00\x08\x07\x00\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x00",
    // Settings, window updates, trailers.
    b"\x00\x00\x06\x04\x00\x00\x00\x00\x00\x00\x04\x00\x00\x00\x01\x00\x00\x04\x08\x00\x00\x00\x00\x00\x00\x00\x00\x01\
      \x00\x00\x06\x01\x04\x00\x00\x00\x01\x83\x86\x84\x41\x01a\x00\x00\x01\x00\x00\x00\x00\x00\x01x\
      \x00\x00\x05\x01\x05\x00\x00\x00\x01\x40\x01t\x01u",
];

/// Whatever frames come, the connection ends with its caller, and what was handed up is sent on as one request.
pub(crate) fn connection(bytes: &[u8]) {
    const BEGINNING: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00";
    let Some((kind, frames)) = bytes.split_first() else { return };
    let settings = Settings { http1_messages: kind & 1 == 1, max_headers: 12, ..Settings::default() };
    let reader = Reader::default();
    let handler = Rc::new(reader.clone());
    let pieces = [BEGINNING].into_iter().chain(frames.chunks(if kind & 2 == 0 { 4096 } else { 7 }));
    talk(pieces, |io| {
        let drain = Rc::new(Drain::default());
        async move { drop(serve(io, handler, Rc::new(settings), drain).await) }
    });
    for mut heard in reader.heard() {
        assert!(heard.parts.headers.len() <= 12 + 1);
        // Of a body that is not whole nobody is told that it is.
        let said: Option<u64> =
            heard.parts.headers.get(header::CONTENT_LENGTH).and_then(|said| said.to_str().ok()?.parse().ok());
        if let (Some(said), Some(body)) = (said, &heard.body) {
            assert!(heard.parts.method == Method::CONNECT || body.len() as u64 == said);
        }
        if heard.parts.method != Method::CONNECT && passed_on(&mut heard.parts) {
            is_sent_on(&heard.parts);
        }
    }
}
