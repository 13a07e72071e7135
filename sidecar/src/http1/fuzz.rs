//! Fuzz targets of the HTTP/1 codec: heads and chunked bodies.

use super::{
    HeaderCase, Settings,
    chunked::{ChunkedDecoder, Decoded, write_size},
    framing::{self, Decoder, Encoder},
    head::{Progress, parse_request_head, parse_response_head},
    serve, server, strip_hop_by_hop, write, write_field_name,
};
use crate::{
    body::Body,
    drain::Drain,
    error::Error,
    fuzz::{
        connection::{Heard, Reader, talk},
        first_line,
    },
};
use bytes::BytesMut;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version, header,
    request::Parts,
};
use http_body::Body as _;
use std::rc::Rc;

pub(crate) const REQUESTS: &[&[u8]] = &[
    b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    b"\r\nPOST http://b:81/c?d HTTP/1.1\r\nHOST: a\r\nContent-Length: 5\r\nx-a: \r\n\r\nhello",
    b"PUT /%41/../b HTTP/1.1\r\nhost:a\r\nTransfer-Encoding: chunked\r\nConnection: close, x-b\r\nx-b: c\r\n\r\n",
    b"CONNECT b:443 HTTP/1.1\r\nHost: b:443\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nHost: [::1]:8\r\nCookie: a=b\r\nTE: trailers\r\nCookie: c=d\r\n\r\n",
    b"GET /x HTTP/1.0\r\nConnection: keep-alive\r\nExpect: 100-continue\r\nUpgrade: h2c\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n",
    b"GET / HTTP/1.1\nHost: a\n\n",
];

pub(crate) const RESPONSES: &[&[u8]] = &[
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nETag: \"a\"\r\n\r\nhello",
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n",
    b"HTTP/1.0 404 \r\nserver: x\r\nSERVER: y\r\n\r\n",
    b"HTTP/1.1 206 Partial\r\nTransfer-Encoding: Chunked\r\nConnection: keep-alive\r\n\r\n",
    b"HTTP/1.1 304\r\nContent-Length: 7\r\nWWW-Authenticate: \xff\r\n\r\n",
];

pub(crate) const CHUNKED: &[&[u8]] = &[
    b"\x035\r\nhello\r\n0\r\n\r\nGET",
    b"\x015;a=b;c=\"d\"\r\nhello\r\n1 ;x\r\n!\r\n000\r\nx-sum: 7\r\nhost: a\r\n\r\n",
    b"\x0200000000000000a\r\n0123456789\r\nfffffffffffffffff\r\n",
    b"\x07A\r\n\n123456789\r\n0\r\na: b\r\n c\r\n\r\n",
];

fn settings() -> Settings {
    Settings { header_bytes: 512, header_count: 12, ..Settings::default() }
}

/// Feeds `message` in pieces of `step` bytes, until a head is whole or something is wrong; with what is left over.
fn fed<T>(
    message: &[u8],
    step: usize,
    mut parse: impl FnMut(&mut BytesMut, &mut Progress) -> Result<Option<T>, Error>,
) -> Result<Option<(T, usize)>, Error> {
    let (mut input, mut progress) = (BytesMut::new(), Progress::default());
    let mut fed = 0;
    for piece in message.chunks(step.max(1)) {
        input.extend_from_slice(piece);
        fed += piece.len();
        if let Some(head) = parse(&mut input, &mut progress)? {
            return Ok(Some((head, fed - input.len())));
        }
    }
    Ok(None)
}

/// Up to the last line's end: what follows it is looked at only once its own has come.
fn whole_lines(message: &[u8]) -> &[u8] {
    &message[..message.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1)]
}

/// Parses in one piece and byte by byte: the same head after the same number of bytes.
fn both_ways<T>(
    message: &[u8],
    parse: impl Fn(&mut BytesMut, &mut Progress) -> Result<Option<T>, Error>,
    same: impl Fn(&T, &T) -> bool,
) -> Option<T> {
    let message = whole_lines(message);
    let at_once = fed(message, message.len(), &parse);
    let trickled = fed(message, 1, &parse);
    match (at_once, trickled) {
        (Ok(Some((whole, used))), Ok(Some((piecemeal, also)))) => {
            assert!(same(&whole, &piecemeal) && used == also, "pieces make a difference");
            let head = &message[..used];
            assert!(head.ends_with(b"\r\n\r\n"), "a head ends with an empty line");
            let bare = |at: usize| head[at] == b'\n' && (at == 0 || head[at - 1] != b'\r');
            assert!(!(0..head.len()).any(bare), "no line ends with a bare LF");
            Some(whole)
        }
        (Ok(None), Ok(None)) | (Err(_), Err(_)) => None,
        (whole, piecemeal) => panic!(
            "{} in one piece, {} byte by byte",
            outcome(&whole.map(|head| head.is_some())),
            outcome(&piecemeal.map(|head| head.is_some()))
        ),
    }
}

fn outcome(result: &Result<bool, Error>) -> &'static str {
    match result {
        Ok(true) => "taken",
        Ok(false) => "incomplete",
        Err(_) => "refused",
    }
}

fn no_line_ends(headers: &HeaderMap) {
    assert!(
        headers.values().all(|value| !value.as_bytes().iter().any(|byte| matches!(byte, b'\r' | b'\n' | 0)))
    );
}

/// The fields that a message has when it has been sent on once.
fn end_to_end(mut headers: HeaderMap) -> Vec<(String, HeaderValue)> {
    strip_hop_by_hop(&mut headers, false);
    headers.remove(header::CONTENT_LENGTH);
    let mut all: Vec<_> = headers.iter().map(|(name, value)| (name.to_string(), value.clone())).collect();
    // The order of names does not count; that of the lines of one does.
    all.sort_by(|(a, _), (b, _)| a.cmp(b));
    all
}

fn encoder(body: &Decoder) -> Encoder {
    match body {
        Decoder::Done => Encoder::None,
        Decoder::Length(length) => Encoder::Length(*length),
        Decoder::Chunked(_) => Encoder::Chunked,
        Decoder::Close => Encoder::Close,
    }
}

/// What is sent on is read by the next one as what was read here.
pub(crate) fn request(bytes: &[u8]) {
    let read =
        |input: &mut BytesMut, progress: &mut Progress| parse_request_head(input, &settings(), progress);
    let framed = |body: &Decoder| encoder(body);
    let parsed = both_ways(bytes, read, |a, b| {
        let line =
            |request: &Request<()>| (request.method().clone(), request.uri().clone(), request.version());
        line(&a.request) == line(&b.request)
            && a.request.headers() == b.request.headers()
            && framed(&a.body) == framed(&b.body)
            && (a.keep_alive, a.expects_continue) == (b.keep_alive, b.expects_continue)
    });
    let Some(head) = parsed else { return };
    no_line_ends(head.request.headers());
    let both = [header::CONTENT_LENGTH, header::TRANSFER_ENCODING];
    assert!(!both.iter().all(|name| head.request.headers().contains_key(name)), "two framings");
    assert!(head.request.headers().get_all(header::HOST).iter().count() <= 1);

    let (mut parts, ()) = head.request.into_parts();
    strip_hop_by_hop(&mut parts.headers, false);
    let once = parts.headers.clone();
    strip_hop_by_hop(&mut parts.headers, false);
    assert_eq!(parts.headers, once, "what is taken away is gone");
    if !parts.headers.contains_key(header::HOST) {
        parts.headers.insert(header::HOST, HeaderValue::from_static("a"));
    }
    sent_on(&parts, encoder(&head.body));
}

/// A head that is sent on is one request to whoever reads it, for the same.
pub(crate) fn is_one_request(parts: &Parts) {
    if parts.headers.get(header::HOST).is_some_and(|host| !host.is_empty()) {
        sent_on(parts, Encoder::Length(5));
    }
}

fn sent_on(parts: &Parts, framing: Encoder) {
    let mut expected = parts.headers.clone();
    // One line of cookies, as HTTP/1 has it.
    let cookies: Vec<_> = parts.headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if cookies.len() > 1
        && let Ok(joined) = HeaderValue::from_bytes(cookies.join(&b"; "[..]).trim_ascii())
    {
        expected.insert(header::COOKIE, joined);
    }
    let mut sent = Vec::new();
    write::request_head(&mut sent, parts, framing);
    let roomy = Settings { header_bytes: 64 * 1024, header_count: 64, ..Settings::default() };
    let mut input = BytesMut::from(&sent[..]);
    let again = match parse_request_head(&mut input, &roomy, &mut Progress::default()) {
        Ok(Some(again)) => again,
        other => panic!("{} is {}", sent.escape_ascii(), outcome(&other.map(|head| head.is_some()))),
    };
    assert!(input.is_empty(), "one request became two: {}", sent.escape_ascii());
    assert_eq!(again.request.method(), parts.method);
    let path = |uri: &http::Uri| uri.path_and_query().map_or("/".to_owned(), |path| path.to_string());
    if parts.method != Method::CONNECT {
        assert_eq!(path(again.request.uri()), path(&parts.uri));
    }
    assert_eq!(encoder(&again.body), framing);
    assert_eq!(end_to_end(again.request.headers().clone()), end_to_end(expected));
}

/// The same for answers.
pub(crate) fn response(bytes: &[u8]) {
    let read =
        |input: &mut BytesMut, progress: &mut Progress| parse_response_head(input, &settings(), progress);
    let parsed = both_ways(bytes, read, |a, b| {
        let line = |response: &Response<()>| (response.status(), response.version());
        line(&a.response) == line(&b.response)
            && a.response.headers() == b.response.headers()
            && a.keep_alive == b.keep_alive
    });
    let Some(head) = parsed else { return };
    let (mut parts, ()) = head.response.into_parts();
    no_line_ends(&parts.headers);
    let framed = |method: &Method| {
        framing::response_body(method, parts.status, &parts.headers, parts.version, &settings())
    };
    let head_only = framed(&Method::HEAD).map(|body| body.is_done());
    let Ok(body) = framed(&Method::GET) else {
        assert!(head_only.is_err(), "a contradiction is one without a body too");
        return;
    };
    assert_eq!(head_only.ok(), Some(true));
    if parts.status.is_informational() {
        return;
    }
    strip_hop_by_hop(&mut parts.headers, false);
    let framed = match encoder(&body) {
        Encoder::None
            if parts.status != StatusCode::NO_CONTENT && parts.status != StatusCode::NOT_MODIFIED =>
        {
            Encoder::Length(0)
        }
        framed => framed,
    };
    let mut sent = Vec::new();
    let persistence = write::persistence(Version::HTTP_11, true);
    write::response_head(&mut sent, &parts, None, framed, persistence);
    let roomy = Settings { header_bytes: 64 * 1024, header_count: 64, ..Settings::default() };
    let mut input = BytesMut::from(&sent[..]);
    let again = match parse_response_head(&mut input, &roomy, &mut Progress::default()) {
        Ok(Some(again)) => again.response,
        other => panic!("{} is {}", sent.escape_ascii(), outcome(&other.map(|head| head.is_some()))),
    };
    assert!(input.is_empty(), "one answer became two: {}", sent.escape_ascii());
    assert_eq!(again.status(), parts.status);
    let said = framing::response_body(&Method::GET, again.status(), again.headers(), again.version(), &roomy);
    assert_eq!(said.ok().map(|body| encoder(&body)), Some(encoder(&body)));
    // Nobody sends cookies back in a `Cookie`, and several would become one.
    if !parts.headers.contains_key(header::COOKIE) {
        assert_eq!(end_to_end(again.headers().clone()), end_to_end(parts.headers));
    }
}

/// An answer that is all there, written as the server does, is one answer with these fields to whoever reads it.
pub(crate) fn is_one_answer(response: Response<Body>, headers: &HeaderMap) {
    let (parts, body) = response.into_parts();
    let framing =
        Encoder::response(&Method::GET, Version::HTTP_11, parts.status, &parts.headers, &body.size_hint());
    let stored = if let Body::Stored(stored) = &body { Some(stored) } else { None };
    let mut sent = Vec::new();
    write::response_head(&mut sent, &parts, stored, framing, write::Persistence::Implied);
    let roomy = Settings { header_bytes: 1 << 20, header_count: 1 << 14, ..Settings::default() };
    let mut input = BytesMut::from(&sent[..]);
    let again = match parse_response_head(&mut input, &roomy, &mut Progress::default()) {
        Ok(Some(again)) => again.response,
        other => panic!("{} is {}", sent.escape_ascii(), outcome(&other.map(|head| head.is_some()))),
    };
    assert!(input.is_empty(), "one answer became two: {}", sent.escape_ascii());
    assert_eq!(again.status(), parts.status);
    let read = framing::response_body(&Method::GET, again.status(), again.headers(), again.version(), &roomy);
    let length = server::at_hand(&body).map_or(0, <[u8]>::len) as u64;
    match read.as_ref().map(encoder) {
        Ok(Encoder::Length(said)) => {
            assert!(said == length || framing == Encoder::Length(0), "{said} of {length}")
        }
        Ok(Encoder::None) => assert!(framing.is_empty()),
        other => panic!("{other:?} of {framing:?}"),
    }
    let of = |headers: &HeaderMap| {
        let mut all: Vec<_> = headers
            .iter()
            .filter(|(name, _)| !OWN.contains(name) && **name != header::COOKIE)
            .map(|(name, value)| (name.clone(), value.as_bytes().trim_ascii().to_vec()))
            .collect();
        all.sort_by(|(a, _), (b, _)| a.as_str().cmp(b.as_str()));
        all
    };
    assert_eq!(of(again.headers()), of(headers));
}

/// What is written beside what is kept.
const OWN: [HeaderName; 5] = [
    header::AGE,
    header::CONNECTION,
    header::CONTENT_LENGTH,
    header::TE,
    HeaderName::from_static("cache-status"),
];

pub(crate) const CASES: &[&[u8]] = &[b"*,X-A,eTag\nx-a", b"X-A,x-A\netag", b" , *,,a b\nte", b"A\xff,B\nb"];

/// However a name is said to be spelled, it is that name and nothing more.
pub(crate) fn case(bytes: &[u8]) {
    let (said, name) = first_line(bytes);
    let case = HeaderValue::from_bytes(said).ok().as_ref().and_then(HeaderCase::from_header_value);
    let Ok(name) = HeaderName::from_bytes(name) else { return };
    let mut written = Vec::new();
    write_field_name(&mut written, &name, case.as_ref());
    assert!(written.eq_ignore_ascii_case(name.as_str().as_bytes()), "{}", written.escape_ascii());
    let Some(case) = case else { return };
    let Some(value) = case.to_header_value() else { panic!("it is no longer than it was") };
    if let Some(again) = HeaderCase::from_header_value(&value) {
        assert_eq!(again, case);
        let mut same = Vec::new();
        write_field_name(&mut same, &name, Some(&again.detached()));
        assert_eq!(same, written);
    }
}

pub(crate) const CONNECTIONS: &[&[u8]] = &[
    b"\x00GET / HTTP/1.1\r\nHost: a\r\n\r\nGET /b HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    b"\x01POST /c HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhelloPUT / HTTP/1.1\r\nHost: b\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\nHEAD / HTTP/1.0\r\n\r\n",
    b"\x02POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\nhiOPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
    b"\x03GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"\x04CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\nbytes",
];

/// What a caller gets served that sends these bytes in pieces of `step`.
fn served(bytes: &[u8], step: usize) -> Vec<Heard> {
    let reader = Reader::default();
    let handler = Rc::new(reader.clone());
    talk(bytes.chunks(step.max(1)), |io| serve(io, handler, settings(), Rc::new(Drain::default())));
    reader.heard()
}

/// However a connection's bytes come, the same requests are served, and each of them is one.
pub(crate) fn connection(bytes: &[u8]) {
    let Some((step, message)) = bytes.split_first() else { return };
    let whole = served(message, message.len());
    // Of a long one every byte alone would take too long.
    let cut = served(message, usize::from(*step % 16).max(message.len() / 256));
    let short = |heard: &Heard| {
        let parts = &heard.parts;
        (parts.method.clone(), parts.uri.clone(), parts.version, parts.headers.clone(), heard.body.clone())
    };
    let complete =
        |all: &[Heard]| all.iter().filter(|heard| heard.body.is_some()).map(short).collect::<Vec<_>>();
    assert_eq!(complete(&whole), complete(&cut), "pieces make a difference");
    let longest = whole.iter().filter_map(|heard| heard.body.as_ref()).map(bytes::Bytes::len).sum::<usize>();
    assert!(longest <= message.len(), "bodies are made of what came");
    for mut heard in whole {
        strip_hop_by_hop(&mut heard.parts.headers, false);
        is_one_request(&heard.parts);
    }
}

type Outcome = Option<(Vec<u8>, Option<HeaderMap>, Vec<u8>)>;

fn decode(message: &[u8], step: usize) -> Result<Outcome, Error> {
    let mut decoder = ChunkedDecoder::new(&settings());
    let (mut input, mut body, mut trailers) = (BytesMut::new(), Vec::new(), None);
    for piece in message.chunks(step.max(1)) {
        input.extend_from_slice(piece);
        while !decoder.is_done() {
            match decoder.decode(&mut input)? {
                Decoded::Data(data) => body.extend_from_slice(&data),
                Decoded::Trailers(fields) => trailers = Some(fields),
                Decoded::End => {}
                Decoded::More => break,
            }
        }
    }
    Ok(decoder.is_done().then(|| (body, trailers, input.to_vec())))
}

/// However a body is cut in pieces it is the same, and encoded anew it is still so.
pub(crate) fn chunked(bytes: &[u8]) {
    let Some((step, message)) = bytes.split_first() else { return };
    let whole = decode(message, message.len());
    for step in [1, usize::from(*step)] {
        let cut = decode(message, step);
        match (&whole, &cut) {
            (Ok(whole), Ok(cut)) => assert_eq!(whole, cut, "in pieces of {step}"),
            (Err(_), Err(_)) => {}
            // What a line that has no end yet has in it is seen with its end.
            (Err(_), Ok(None)) if decode(&[message, b"\r\n\r\n"].concat(), step).is_err() => {}
            _ => panic!("in pieces of {step}: {cut:?}, at once: {whole:?}"),
        }
    }
    let Ok(Some((body, trailers, _))) = whole else { return };
    if let Some(trailers) = &trailers {
        no_line_ends(trailers);
        for name in [header::CONTENT_LENGTH, header::TRANSFER_ENCODING, header::HOST, header::AUTHORIZATION] {
            assert!(!trailers.contains_key(&name), "{name} is no trailer");
        }
    }
    let mut encoded = Vec::new();
    for chunk in body.chunks(usize::from(*step).max(1)) {
        write_size(&mut encoded, chunk.len());
        encoded.extend_from_slice(chunk);
        encoded.extend_from_slice(b"\r\n");
    }
    encoded.extend_from_slice(b"0\r\n\r\n");
    assert_eq!(decode(&encoded, 1).ok().flatten(), Some((body, None, Vec::new())));
}
