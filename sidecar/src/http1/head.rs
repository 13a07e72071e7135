//! Heads as they come in: bytes to `http` types, strictly, with the values left where they arrived.

use super::{Settings, case::Spellings, framing};
use crate::{
    error::{Error, Kind},
    notable::Notable,
    spare,
};
use bytes::{Bytes, BytesMut};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, Version, header,
    uri::Authority,
};
use smallvec::SmallVec;
use std::{borrow::Cow, mem::MaybeUninit};

/// Fields for which room is kept on the stack; beyond, parsing allocates.
const USUAL_FIELDS: usize = 128;

/// The longest request target `http` can hold.
const TARGET_MAX: usize = u16::MAX as usize - 1;

/// A request whose head has come whole.
pub(crate) struct RequestHead {
    /// The request, with `Host` as it counts.
    pub(crate) request: Request<()>,
    /// Its body.
    pub(crate) body: framing::Decoder,
    /// True if the client wants to send more on this connection.
    pub(crate) keep_alive: bool,
    /// True if the client waits for `100 Continue` before it sends the body.
    pub(crate) expects_continue: bool,
}

/// A response whose head has come whole.
pub(crate) struct ResponseHead {
    /// The response.
    pub(crate) response: Response<()>,
    /// True if the upstream leaves the connection open.
    pub(crate) keep_alive: bool,
}

/// How much of the input was looked at in vain; a head is parsed again only when a line end has come since.
#[derive(Default)]
pub(crate) struct Progress(usize);

impl Progress {
    fn has_news(&mut self, input: &[u8]) -> bool {
        let news = input[self.0.min(input.len())..].contains(&b'\n');
        self.0 = input.len();
        news
    }
}

fn bad(detail: impl Into<Cow<'static, str>>) -> Error {
    Error::new(Kind::BadRequest, detail)
}

/// A part of the head, by position: the head moves between being parsed and being shared.
#[derive(Clone, Copy)]
struct Span(u32, u32);

impl Span {
    fn of(part: &[u8], whole: &[u8]) -> Self {
        let start = (part.as_ptr() as usize).wrapping_sub(whole.as_ptr() as usize);
        if part.is_empty() || start > whole.len() {
            Self(0, 0)
        } else {
            Self(start as u32, (start + part.len()) as u32)
        }
    }

    fn range(self) -> std::ops::Range<usize> {
        self.0 as usize..self.1 as usize
    }
}

/// Where the fields of a head are.
type Fields = SmallVec<[(Span, Span); 24]>;

/// What a request line says.
struct RequestLine {
    method: Span,
    target: Span,
    version: Version,
}

/// What a status line says.
struct StatusLine {
    status: u16,
    version: Version,
}

fn version_of(minor: Option<u8>) -> Version {
    if minor == Some(0) { Version::HTTP_10 } else { Version::HTTP_11 }
}

fn refused(error: httparse::Error) -> Error {
    use httparse::Error as E;
    match error {
        E::TooManyHeaders => {
            Error::new(Kind::HeadersTooLarge, "the head has more fields than limits.headerCount")
        }
        E::HeaderName => {
            bad("a field name has a character that is not allowed, or white space before the colon")
        }
        E::HeaderValue => bad("a field value has a control character or a folded line in it"),
        E::NewLine => bad("a line does not end with CR LF"),
        E::Status => bad("the status is not three digits"),
        E::Token => bad("the first line is not one of HTTP/1: method, target and version"),
        E::Version => bad("the version is neither HTTP/1.0 nor HTTP/1.1"),
    }
}

/// Calls `parse` with room for the fields and finds out where they are in `input`.
fn scan<L>(
    input: &[u8],
    settings: &Settings,
    parse: impl for<'b> FnOnce(
        &'b [u8],
        &mut [MaybeUninit<httparse::Header<'b>>],
    ) -> Result<Option<(usize, L, Fields)>, httparse::Error>,
) -> Result<Option<(usize, L, Fields)>, Error> {
    let mut usual = [const { MaybeUninit::uninit() }; USUAL_FIELDS];
    let mut many;
    let room = match usual.get_mut(..settings.header_count) {
        Some(room) => room,
        None => {
            many = vec![MaybeUninit::uninit(); settings.header_count];
            &mut many[..]
        }
    };
    let Some((length, line, fields)) = parse(input, room).map_err(refused)? else {
        return Ok(None);
    };
    if length > settings.header_bytes {
        return Err(too_large());
    }
    check_line_ends(&input[..length], &fields)?;
    Ok(Some((length, line, fields)))
}

fn too_large() -> Error {
    Error::new(Kind::HeadersTooLarge, "the head is larger than limits.headerBytes")
}

/// The parser takes a bare LF for a line end; others don't, and that difference is how requests are smuggled.
fn check_line_ends(head: &[u8], fields: &Fields) -> Result<(), Error> {
    let ends = |before: usize| head[..before].ends_with(b"\r\n");
    if head.ends_with(b"\r\n\r\n") && fields.iter().all(|(name, _)| ends(name.range().start)) {
        Ok(())
    } else {
        Err(refused(httparse::Error::NewLine))
    }
}

fn spans(fields: &[httparse::Header<'_>], input: &[u8]) -> Fields {
    fields
        .iter()
        .map(|field| (Span::of(field.name.as_bytes(), input), Span::of(field.value, input)))
        .collect()
}

fn scan_request(input: &[u8], settings: &Settings) -> Result<Option<(usize, RequestLine, Fields)>, Error> {
    scan(input, settings, |input, room| {
        let mut request = httparse::Request::new(&mut []);
        let status = request.parse_with_uninit_headers(input, room)?;
        let httparse::Status::Complete(length) = status else { return Ok(None) };
        let line = RequestLine {
            method: Span::of(request.method.unwrap_or_default().as_bytes(), input),
            target: Span::of(request.path.unwrap_or_default().as_bytes(), input),
            version: version_of(request.version),
        };
        Ok(Some((length, line, spans(request.headers, input))))
    })
}

fn scan_response(input: &[u8], settings: &Settings) -> Result<Option<(usize, StatusLine, Fields)>, Error> {
    scan(input, settings, |input, room| {
        let mut response = httparse::Response::new(&mut []);
        let status = httparse::ParserConfig::default().parse_response_with_uninit_headers(
            &mut response,
            input,
            room,
        )?;
        let httparse::Status::Complete(length) = status else { return Ok(None) };
        let line =
            StatusLine { status: response.code.unwrap_or_default(), version: version_of(response.version) };
        Ok(Some((length, line, spans(response.headers, input))))
    })
}

/// Takes `length` bytes off the front, without a second owner when that is all there is.
fn split(input: &mut BytesMut, length: usize) -> Bytes {
    if length == input.len() { std::mem::take(input).freeze() } else { input.split_to(length).freeze() }
}

fn header_map(
    head: &Bytes,
    fields: &Fields,
    extensions: &mut http::Extensions,
    mut look: impl FnMut(&HeaderName),
) -> Result<HeaderMap, Error> {
    let mut headers = spare::map(fields.len());
    let mut spellings = Spellings::default();
    for (name, value) in fields {
        let name = &head[name.range()];
        spellings.note(name);
        let name = HeaderName::from_bytes(name).map_err(|_| refused(httparse::Error::HeaderName))?;
        look(&name);
        let value = HeaderValue::from_maybe_shared(head.slice(value.range()))
            .map_err(|_| refused(httparse::Error::HeaderValue))?;
        headers.try_append(name, value).map_err(|_| refused(httparse::Error::TooManyHeaders))?;
    }
    if let Some(case) = spellings.finish(fields.iter().map(|(name, _)| head.slice(name.range()))) {
        extensions.insert(case);
    }
    Ok(headers)
}

/// Takes a request head off the front of `input`; `None` if it is not whole yet.
pub(crate) fn parse_request_head(
    input: &mut BytesMut,
    settings: &Settings,
    progress: &mut Progress,
) -> Result<Option<RequestHead>, Error> {
    // Some clients send an empty line after a body (RFC 9112 section 2.2).
    while input.starts_with(b"\r\n") {
        let _ = input.split_to(2);
    }
    if !progress.has_news(input) {
        return if input.len() > settings.header_bytes { Err(too_large()) } else { Ok(None) };
    }
    if input.starts_with(b"\n") {
        return Err(refused(httparse::Error::NewLine));
    }
    let Some((length, line, fields)) = scan_request(input, settings)? else {
        return if input.len() > settings.header_bytes { Err(too_large()) } else { Ok(None) };
    };
    *progress = Progress::default();
    let head = split(input, length);
    let mut request = Request::new(());
    let method =
        Method::from_bytes(&head[line.method.range()]).map_err(|_| bad("the method is not a token"))?;
    let mut notable = Notable::default();
    let headers =
        header_map(&head, &fields, request.extensions_mut(), |name| notable = notable | Notable::by(name))?;
    let body = match notable.has(Notable::FRAMING) {
        true => framing::request_body(&headers, line.version, settings)?,
        false => framing::Decoder::Done,
    };
    *request.uri_mut() = target(&method, head.slice(line.target.range()))?;
    *request.version_mut() = line.version;
    *request.method_mut() = method;
    *request.headers_mut() = headers;
    settle_host(&mut request)?;
    let connection = match notable.has(Notable::HOP) {
        true => Connection::of(request.headers()),
        false => Connection::default(),
    };
    let keep_alive = connection.keeps_alive(line.version);
    let expects_continue = notable.has(Notable::EXPECT)
        && line.version == Version::HTTP_11
        && request
            .headers()
            .get(header::EXPECT)
            .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"));
    Ok(Some(RequestHead { request, body, keep_alive, expects_continue }))
}

/// Takes a response head off the front of `input`; `None` if it is not whole yet.
pub(crate) fn parse_response_head(
    input: &mut BytesMut,
    settings: &Settings,
    progress: &mut Progress,
) -> Result<Option<ResponseHead>, Error> {
    if !progress.has_news(input) {
        return if input.len() > settings.header_bytes { Err(too_large()) } else { Ok(None) };
    }
    if matches!(input.first(), Some(b'\r' | b'\n')) {
        return Err(refused(httparse::Error::NewLine));
    }
    let Some((length, line, fields)) = scan_response(input, settings)? else {
        return if input.len() > settings.header_bytes { Err(too_large()) } else { Ok(None) };
    };
    *progress = Progress::default();
    let head = split(input, length);
    let mut response = Response::new(());
    *response.status_mut() =
        StatusCode::from_u16(line.status).map_err(|_| refused(httparse::Error::Status))?;
    *response.version_mut() = line.version;
    *response.headers_mut() = header_map(&head, &fields, response.extensions_mut(), |_| {})?;
    let keep_alive = Connection::of(response.headers()).keeps_alive(line.version);
    Ok(Some(ResponseHead { response, keep_alive }))
}

/// Reads a trailer section at the front of `input` and takes it off; `None` if it is not whole yet.
pub(super) fn trailer_section(
    input: &mut BytesMut,
    header_count: usize,
) -> Result<Option<(usize, HeaderMap)>, Error> {
    let mut room = vec![httparse::EMPTY_HEADER; header_count];
    let (length, fields) = match httparse::parse_headers(input, &mut room).map_err(refused)? {
        httparse::Status::Complete((length, fields)) => (length, spans(fields, input)),
        httparse::Status::Partial => return Ok(None),
    };
    let section = input.split_to(length).freeze();
    let ends = |before: usize| before == 0 || section[..before].ends_with(b"\r\n");
    if !section.ends_with(b"\r\n\r\n") || !fields.iter().all(|(name, _)| ends(name.range().start)) {
        return Err(refused(httparse::Error::NewLine));
    }
    Ok(Some((length, header_map(&section, &fields, &mut http::Extensions::new(), |_| {})?)))
}

/// The four forms of a request target (RFC 9112 section 3.2).
fn target(method: &Method, target: Bytes) -> Result<Uri, Error> {
    if target.len() > TARGET_MAX {
        return Err(Error::new(Kind::HeadersTooLarge, "the request target is longer than 64 KiB"));
    }
    if target.contains(&b'#') {
        return Err(bad("the request target has a fragment (#), which clients keep to themselves"));
    }
    if *method == Method::CONNECT {
        let authority = Authority::from_maybe_shared(target)
            .ok()
            .filter(|authority| authority.port_u16().is_some() && is_host(authority.as_str()))
            .ok_or_else(|| bad("CONNECT needs a target of the form host:port"))?;
        return Ok(Uri::from(authority));
    }
    let absolute = match target.first() {
        Some(b'/') => false,
        Some(b'*') if target.len() == 1 => {
            if *method != Method::OPTIONS {
                return Err(bad("only OPTIONS may have * as its target"));
            }
            false
        }
        _ => true,
    };
    let uri = Uri::from_maybe_shared(target)
        .map_err(|_| bad("the request target is neither a path nor an http:// URL"))?;
    if absolute {
        let authority = uri.authority().filter(|_| matches!(uri.scheme_str(), Some("http" | "https")));
        let Some(authority) = authority else {
            return Err(bad("the request target is neither a path nor an http:// URL"));
        };
        if authority.host().is_empty() || !is_host(authority.as_str()) {
            return Err(bad(
                "the URL in the request target needs a host name, and must not have a user in it",
            ));
        }
    }
    Ok(uri)
}

/// Exactly one `Host` in HTTP/1.1, and where the target names the authority that one counts (RFC 9112 section 3.2.2).
fn settle_host(request: &mut Request<()>) -> Result<(), Error> {
    let mut hosts = request.headers().get_all(header::HOST).iter();
    match (hosts.next(), hosts.next()) {
        (_, Some(_)) => return Err(bad("the request has several Host fields: it must have one")),
        (None, _) if request.version() == Version::HTTP_11 => {
            return Err(bad("the request has no Host field, which HTTP/1.1 requires"));
        }
        (Some(host), None) if !host.as_bytes().iter().copied().all(is_host_byte) => {
            return Err(bad("Host is not a host name with an optional port"));
        }
        _ => {}
    }
    if let Some(authority) = request.uri().authority() {
        let value =
            HeaderValue::from_str(authority.as_str()).map_err(|_| bad("the target's host is not valid"))?;
        request.headers_mut().insert(header::HOST, value);
    }
    Ok(())
}

/// What may stand in `Host` may stand in a target: the next one reads it there.
pub(crate) fn is_host(authority: &str) -> bool {
    authority.bytes().all(is_host_byte)
}

fn is_host_byte(byte: u8) -> bool {
    const ALLOWED: [bool; 256] = {
        let mut allowed = [false; 256];
        let others = b"-._~%!$&'()*+;=:[]";
        let mut at = 0;
        while at < others.len() {
            allowed[others[at] as usize] = true;
            at += 1;
        }
        let mut byte = 0;
        while byte < 128_u8 {
            allowed[byte as usize] |= byte.is_ascii_alphanumeric();
            byte += 1;
        }
        allowed
    };
    ALLOWED[usize::from(byte)]
}

/// What the `Connection` field asks for.
#[derive(Default)]
struct Connection {
    close: bool,
    keep_alive: bool,
}

impl Connection {
    fn of(headers: &HeaderMap) -> Self {
        let mut this = Self::default();
        for value in headers.get_all(header::CONNECTION) {
            for option in value.as_bytes().split(|byte| *byte == b',') {
                let option = option.trim_ascii();
                this.close |= option.eq_ignore_ascii_case(b"close");
                this.keep_alive |= option.eq_ignore_ascii_case(b"keep-alive");
            }
        }
        this
    }

    fn keeps_alive(&self, version: Version) -> bool {
        !self.close && (version == Version::HTTP_11 || self.keep_alive)
    }
}
