//! Heads: a table of good and bad ones, and that what is written is read back as it was.

use super::super::{
    Settings,
    framing::{self, Decoder, Encoder},
    head::{Progress, parse_request_head, parse_response_head},
    write::{self, Persistence},
};
use crate::error::Kind;
use bytes::BytesMut;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version, header};
use proptest::prelude::*;

fn small() -> Settings {
    Settings { header_bytes: 1024, header_count: 8, ..Settings::default() }
}

fn whole(message: &[u8]) -> Result<Option<(Request<()>, Decoder, bool)>, Kind> {
    parse_request_head(&mut BytesMut::from(message), &small(), &mut Progress::default())
        .map(|head| head.map(|head| (head.request, head.body, head.keep_alive)))
        .map_err(|error| error.kind)
}

/// The same fed byte by byte, with what was left over.
fn trickled(message: &[u8]) -> Result<Option<(Request<()>, Decoder, bool)>, Kind> {
    let (mut input, mut progress) = (BytesMut::new(), Progress::default());
    for byte in message {
        input.extend_from_slice(&[*byte]);
        if let Some(head) =
            parse_request_head(&mut input, &small(), &mut progress).map_err(|error| error.kind)?
        {
            return Ok(Some((head.request, head.body, head.keep_alive)));
        }
    }
    Ok(None)
}

#[test]
fn good_requests_are_taken_whole_and_byte_by_byte() {
    for (message, uri, host) in [
        ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", "/", "a"),
        ("\r\n\r\nGET /b?c=d HTTP/1.1\r\nhost:a:80  \r\n\r\n", "/b?c=d", "a:80"),
        ("GET http://b:81/c HTTP/1.1\r\nHost: a\r\n\r\n", "http://b:81/c", "b:81"),
        ("GET http://b HTTP/1.1\r\nHost: a\r\n\r\n", "http://b/", "b"),
        ("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", "*", "a"),
        ("CONNECT b:443 HTTP/1.1\r\nHost: b:443\r\n\r\n", "b:443", "b:443"),
        ("M-SEARCH //x HTTP/1.1\r\nHost: [::1]:8\r\nX:\r\n\r\n", "//x", "[::1]:8"),
        ("GET / HTTP/1.1\r\nHost:\r\n\r\n", "/", ""),
        ("GET / HTTP/1.0\r\nHost: a\r\nX-Latin: \u{e9}\r\n\r\n", "/", "a"),
    ] {
        let (request, _, _) = whole(message.as_bytes()).unwrap().expect("complete");
        assert_eq!(request.uri().to_string(), uri, "{message:?}");
        assert_eq!(request.headers()["host"], host, "{message:?}");
        let (again, _, _) = trickled(message.as_bytes()).unwrap().expect("complete");
        assert_eq!((again.uri(), again.headers()), (request.uri(), request.headers()));
    }
}

#[test]
fn bad_requests_are_refused_whole_and_byte_by_byte() {
    let many = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "a: b\r\n".repeat(8));
    let long = format!("GET / HTTP/1.1\r\nHost: a\r\nb: {}\r\n\r\n", "x".repeat(1024));
    let path = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(1024));
    let endless = "x".repeat(1100);
    for (message, kind) in [
        ("GET / HTTP/1.1\r\n\r\n", Kind::BadRequest),
        ("GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", Kind::BadRequest),
        ("GET / HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n", Kind::BadRequest),
        ("GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", Kind::BadRequest),
        ("GET / HTTP/1.1\r\nHost: u@a\r\n\r\n", Kind::BadRequest),
        ("GET / HTTP/1.1\r\nHost: a b\r\n\r\n", Kind::BadRequest),
        ("GET / HTTP/1.1\r\nHost: a, b\r\n\r\n", Kind::BadRequest),
        ("GET http://a,b/ HTTP/1.1\r\nHost: a\r\n\r\n", Kind::BadRequest),
        ("GET http://a:8,1/ HTTP/1.1\r\nHost: a\r\n\r\n", Kind::BadRequest),
        ("CONNECT a,b:443 HTTP/1.1\r\nHost: a\r\n\r\n", Kind::BadRequest),
        ("GET / HTTP/1.1\nHost: a\n\n", Kind::BadRequest),
        ("GET / HTTP/1.1\r\nHost: a\nX: b\r\n\r\n", Kind::BadRequest),
        ("GET / HTTP/1.1\r\nHost: a\r\nX: b\n\r\n", Kind::BadRequest),
        ("GET / HTTP/1.1\r\nHost: a\r\nX: b\r\n\n", Kind::BadRequest),
        ("\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", Kind::BadRequest),
        ("GET / HTTP/1.1\r\nHost: a\r\nX: b\rc\r\n\r\n", Kind::BadRequest),
        ("GET / HTTP/1.1\r\nHost: a\r\nX: b\r\n c\r\n\r\n", Kind::BadRequest),
        ("GET / HTTP/1.1\r\nHost: a\r\nX : b\r\n\r\n", Kind::BadRequest),
        ("GET / HTTP/1.1\r\n Host: a\r\n\r\n", Kind::BadRequest),
        ("GET / HTTP/1.1\r\nHost: a\r\nX: b\0c\r\n\r\n", Kind::BadRequest),
        ("GET / HTTP/1.1\r\nHost: a\r\nX: b\x7fc\r\n\r\n", Kind::BadRequest),
        ("GET / HTTP/1.1\r\nHost: a\r\nX\0: b\r\n\r\n", Kind::BadRequest),
        ("GET / HTTP/1.1\r\nHost: a\r\n: b\r\n\r\n", Kind::BadRequest),
        ("GET / HTTP/1.1\r\nHost: a\r\nnonsense\r\n\r\n", Kind::BadRequest),
        ("G@T / HTTP/1.1\r\nHost: a\r\n\r\n", Kind::BadRequest),
        (" GET / HTTP/1.1\r\nHost: a\r\n\r\n", Kind::BadRequest),
        ("GET  / HTTP/1.1\r\nHost: a\r\n\r\n", Kind::BadRequest),
        ("GET / x HTTP/1.1\r\nHost: a\r\n\r\n", Kind::BadRequest),
        ("GET / HTTP/1.2\r\nHost: a\r\n\r\n", Kind::BadRequest),
        ("GET /\r\n\r\n", Kind::BadRequest),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Kind::BadRequest),
        ("GET * HTTP/1.1\r\nHost: a\r\n\r\n", Kind::BadRequest),
        ("GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n", Kind::BadRequest),
        ("GET a HTTP/1.1\r\nHost: a\r\n\r\n", Kind::BadRequest),
        ("GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n", Kind::BadRequest),
        ("GET http://u:p@a/ HTTP/1.1\r\nHost: a\r\n\r\n", Kind::BadRequest),
        ("GET http:///x HTTP/1.1\r\nHost: a\r\n\r\n", Kind::BadRequest),
        ("CONNECT a HTTP/1.1\r\nHost: a\r\n\r\n", Kind::BadRequest),
        ("CONNECT /a:1 HTTP/1.1\r\nHost: a\r\n\r\n", Kind::BadRequest),
        (&many, Kind::HeadersTooLarge),
        (&long, Kind::HeadersTooLarge),
        (&path, Kind::HeadersTooLarge),
        (&endless, Kind::HeadersTooLarge),
    ] {
        assert_eq!(whole(message.as_bytes()).err(), Some(kind), "{message:?}");
        assert_eq!(trickled(message.as_bytes()).err(), Some(kind), "{message:?}");
    }
}

#[test]
fn framing_that_can_be_read_two_ways_is_refused() {
    for (fields, kind) in [
        ("Content-Length: 1\r\nTransfer-Encoding: chunked", Kind::BadRequest),
        ("Transfer-Encoding: chunked\r\nContent-Length: 0", Kind::BadRequest),
        ("Content-Length: 1\r\nContent-Length: 1", Kind::BadRequest),
        ("Content-Length: 1, 1", Kind::BadRequest),
        ("Content-Length: +1", Kind::BadRequest),
        ("Content-Length: -1", Kind::BadRequest),
        ("Content-Length: 0x1", Kind::BadRequest),
        ("Content-Length: 1 2", Kind::BadRequest),
        ("Content-Length:", Kind::BadRequest),
        ("Content-Length: 18446744073709551616", Kind::BadRequest),
        ("Transfer-Encoding:", Kind::BadRequest),
        ("Transfer-Encoding: identity", Kind::BadRequest),
        ("Transfer-Encoding: xchunked", Kind::BadRequest),
        ("Transfer-Encoding: chunked, gzip", Kind::BadRequest),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity", Kind::BadRequest),
        ("Transfer-Encoding: \"chunked\"", Kind::BadRequest),
        ("Transfer-Encoding: chunked;x=y", Kind::BadRequest),
        ("Transfer-Encoding: gzip, chunked", Kind::NotImplemented),
        ("Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked", Kind::NotImplemented),
    ] {
        let message = format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\n");
        assert_eq!(whole(message.as_bytes()).err(), Some(kind), "{fields}");
    }
    let old = "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n";
    assert_eq!(whole(old.as_bytes()).err(), Some(Kind::BadRequest));
}

#[test]
fn bodies_are_as_long_as_the_head_says() {
    let body = |fields: &str| {
        let message = format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
        whole(message.as_bytes()).unwrap().unwrap().1
    };
    assert!(matches!(body(""), Decoder::Done));
    assert!(matches!(body("Content-Length: 0\r\n"), Decoder::Done));
    assert!(matches!(body("Content-Length: 007\r\n"), Decoder::Length(7)));
    assert!(matches!(body("Content-Length: 18446744073709551615\r\n"), Decoder::Length(u64::MAX)));
    assert!(matches!(body("Transfer-Encoding: Chunked\r\n"), Decoder::Chunked(_)));
}

#[test]
fn persistence_is_what_version_and_connection_say() {
    let keeps = |version: &str, connection: &str| {
        let message = format!("GET / HTTP/{version}\r\nHost: a\r\n{connection}\r\n");
        whole(message.as_bytes()).unwrap().unwrap().2
    };
    assert!(keeps("1.1", ""));
    assert!(!keeps("1.1", "Connection: foo , Close\r\n"));
    assert!(!keeps("1.1", "Connection: keep-alive\r\nConnection: close\r\n"));
    assert!(!keeps("1.0", ""));
    assert!(keeps("1.0", "Connection: Keep-Alive\r\n"));
}

fn response(message: &str) -> Result<Option<Response<()>>, Kind> {
    parse_response_head(&mut BytesMut::from(message), &small(), &mut Progress::default())
        .map(|head| head.map(|head| head.response))
        .map_err(|error| error.kind)
}

#[test]
fn responses_are_read_as_strictly() {
    assert_eq!(response("HTTP/1.1 200 OK\r\nA: b\r\n\r\n").unwrap().unwrap().headers()["a"], "b");
    assert_eq!(response("HTTP/1.0 299\r\n\r\n").unwrap().unwrap().status(), 299);
    assert_eq!(response("HTTP/1.1 200 \r\n").unwrap().map(|_| ()), None);
    for message in [
        "\r\nHTTP/1.1 200 OK\r\n\r\n",
        "HTTP/2.0 200 OK\r\n\r\n",
        "HTTP/1.1 20 OK\r\n\r\n",
        "HTTP/1.1 099 OK\r\n\r\n",
        "HTTP/1.1 200 OK\n\n",
        "HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n",
        "HTTP/1.1 200 OK\r\nA : b\r\n\r\n",
        "220 smtp ready\r\n\r\n",
    ] {
        assert_eq!(response(message).err(), Some(Kind::BadRequest), "{message:?}");
    }
}

#[test]
fn a_response_body_ends_as_rfc_9112_says() {
    let body = |method: Method, status: u16, name: &'static str, value: &'static str| {
        let mut headers = HeaderMap::new();
        headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
        let status = StatusCode::from_u16(status).unwrap();
        framing::response_body(&method, status, &headers, Version::HTTP_11, &small())
    };
    assert!(matches!(body(Method::GET, 200, "x", ""), Ok(Decoder::Close)));
    assert!(matches!(body(Method::HEAD, 200, "content-length", "5"), Ok(Decoder::Done)));
    assert!(matches!(body(Method::HEAD, 200, "x", ""), Ok(Decoder::Done)));
    assert!(matches!(body(Method::GET, 304, "content-length", "5"), Ok(Decoder::Done)));
    assert!(matches!(body(Method::GET, 204, "transfer-encoding", "chunked"), Ok(Decoder::Done)));
    assert!(matches!(body(Method::GET, 404, "content-length", "5"), Ok(Decoder::Length(5))));
    assert!(matches!(body(Method::GET, 200, "transfer-encoding", "chunked"), Ok(Decoder::Chunked(_))));
    assert!(body(Method::GET, 200, "transfer-encoding", "gzip").is_err());
}

fn written(request: Request<()>, encoder: Encoder) -> String {
    let mut out = Vec::new();
    write::request_head(&mut out, &request.into_parts().0, encoder);
    String::from_utf8(out).unwrap()
}

#[test]
fn requests_are_written_in_the_form_their_receiver_wants() {
    let uri = "http://u@b:81?q";
    let plain = written(Request::get(uri).body(()).unwrap(), Encoder::None);
    assert_eq!(plain, "GET /?q HTTP/1.1\r\nHost: b:81\r\n\r\n");
    let connect = Request::connect("b:443").body(()).unwrap();
    assert_eq!(written(connect, Encoder::None), "CONNECT b:443 HTTP/1.1\r\nHost: b:443\r\n\r\n");
}

#[test]
fn framing_and_connection_fields_are_the_codecs_own() {
    let request = Request::post("/")
        .header("host", "a")
        .header("content-length", "99")
        .header("transfer-encoding", "gzip")
        .header("connection", "x")
        .header("upgrade", "websocket")
        .header("te", "trailers")
        .header("cookie", "a=1")
        .header("cookie", "b=2")
        .body(())
        .unwrap();
    let text = written(request, Encoder::Length(3));
    let expected = "POST / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nTE: trailers\r\nCookie: a=1; b=2\r\n\
                    Connection: Upgrade, TE\r\nContent-Length: 3\r\n\r\n";
    assert_eq!(text, expected);
}

fn fields() -> impl Strategy<Value = Vec<(String, Vec<u8>)>> {
    let name = "[xX][a-zA-Z0-9!#$%&'*+.^_`|~-]{0,12}";
    let value = prop::collection::vec(prop_oneof![33_u8..127, 128_u8..], 0..20);
    prop::collection::vec((name, value), 0..6)
}

fn map(fields: &[(String, Vec<u8>)]) -> HeaderMap {
    fields
        .iter()
        .map(|(name, value)| {
            (HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_bytes(value).unwrap())
        })
        .collect()
}

proptest! {
    #[test]
    fn what_is_written_as_a_request_is_read_back(
        method in "[A-Z!#$%&'*+.^_`|~-]{1,20}",
        path in "/[a-zA-Z0-9/%._~-]{0,20}(\\?[a-z=&]{0,8})?",
        fields in fields(),
        length in any::<u64>(),
    ) {
        prop_assume!(method != "CONNECT");
        let mut request = Request::new(());
        *request.method_mut() = Method::from_bytes(method.as_bytes()).unwrap();
        *request.uri_mut() = path.parse().unwrap();
        *request.headers_mut() = map(&fields);
        request.headers_mut().insert(header::HOST, HeaderValue::from_static("a"));
        let mut out = Vec::new();
        let (parts, ()) = request.into_parts();
        write::request_head(&mut out, &parts, Encoder::Length(length));
        let (read, body, keep_alive) = whole(&out).unwrap().unwrap();
        prop_assert_eq!(read.method(), &parts.method);
        prop_assert_eq!(read.uri(), &parts.uri);
        prop_assert!(keep_alive);
        prop_assert_eq!(body.size_hint().exact(), Some(length));
        let mut headers = read.headers().clone();
        headers.remove(header::CONTENT_LENGTH);
        prop_assert_eq!(headers, parts.headers);
    }

    /// Through both directions, names keep their spelling when it is the same for all fields of a name.
    #[test]
    fn a_response_that_passes_through_is_the_same_bytes(fields in fields(), status in 200_u16..600) {
        prop_assume!(status != 204 && status != 304 && status != 205);
        let mut seen = std::collections::HashSet::new();
        prop_assume!(fields.iter().all(|(name, _)| seen.insert(name.to_ascii_lowercase())));
        let reason = StatusCode::from_u16(status).unwrap().canonical_reason().unwrap_or_default();
        let mut message = format!("HTTP/1.1 {status} {reason}\r\n").into_bytes();
        for (name, value) in &fields {
            message.extend_from_slice(name.as_bytes());
            message.extend_from_slice(b": ");
            message.extend_from_slice(value);
            message.extend_from_slice(b"\r\n");
        }
        message.extend_from_slice(b"\r\n");
        let read = parse_response_head(&mut BytesMut::from(&message[..]), &small(), &mut Progress::default());
        let (parts, ()) = read.unwrap().unwrap().response.into_parts();
        let mut out = Vec::new();
        write::response_head(&mut out, &parts, None, Encoder::None, Persistence::Implied);
        prop_assert_eq!(String::from_utf8_lossy(&out), String::from_utf8_lossy(&message));
    }

    /// No input panics, and it does not matter in how many pieces it comes.
    #[test]
    fn any_input_is_judged_the_same_in_pieces(bytes in prop::collection::vec(any::<u8>(), 0..200), good in any::<bool>()) {
        let mut message = if good { b"GET / HTTP/1.1\r\nHost: a\r\n".to_vec() } else { Vec::new() };
        message.extend_from_slice(&bytes);
        message.extend_from_slice(b"\r\n\r\n");
        let heads = |head: Result<Option<(Request<()>, Decoder, bool)>, Kind>| {
            head.map(|head| head.map(|(request, ..)| format!("{request:?}")))
        };
        prop_assert_eq!(heads(whole(&message)), heads(trickled(&message)));
    }
}
