//! What a response is kept under: everything that makes two requests the same, in one text.
//!
//! The text is compared as a whole, so no two resources can share an entry whatever their hashes are. Its parts stand on
//! lines of their own, and no part can hold a line's end, so no part can pass for another. The URI stands first:
//! what is purged or invalidated by URI is found by the text's beginning, whatever method, route, header or caller the
//! rest names.

use super::structured::{self, Value};
use crate::notable::Notable;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use sha2::{Digest, Sha256};
use smallvec::SmallVec;
use std::borrow::Cow;
use weft_config::snapshot::{CacheKeyRules, CacheParameters, cookie};

/// A key's text; most fit without an allocation.
pub(crate) type Text = SmallVec<[u8; 256]>;

/// No key is longer.
const TEXT_MAX: usize = 16 * 1024;

/// What kind of request it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class<'a> {
    /// GET and HEAD, which are about the same responses.
    Get,
    /// A POST, with the digest of its body.
    Post(&'a BodyDigest),
    /// A unary gRPC call, with the digest of its message.
    Grpc(&'a BodyDigest),
}

/// What of a request makes its key.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Parts<'a> {
    pub(crate) class: Class<'a>,
    /// What answers: the rule and its backends, so that two routes for one URI have responses of their own.
    pub(crate) scope: &'a str,
    pub(crate) scheme: &'a str,
    /// Host and port as the request has them.
    pub(crate) authority: &'a str,
    /// In normal form.
    pub(crate) path: &'a str,
    pub(crate) query: Option<&'a str>,
    pub(crate) headers: &'a HeaderMap,
    pub(crate) notable: Notable,
    /// The caller's proven identity.
    pub(crate) identity: Option<&'a str>,
}

/// Why a request has no key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unkeyable {
    /// It is longer than any key may be.
    TooLong,
    /// Its caller has no proven identity, and the policy keeps answers apart by that.
    NoIdentity,
    /// It asks the application to take it for another method, so that its answer is not that of its own.
    MethodOverride,
}

/// The key of a request. `no_vary` is what the resource's own responses say of its query.
pub(crate) fn text(
    parts: &Parts<'_>,
    rules: &CacheKeyRules,
    no_vary: Option<&NoVarySearch>,
) -> Result<Text, Unkeyable> {
    let mut text = uri(parts.scheme, parts.authority, parts.path, parts.query, rules, no_vary);
    let headers = parts.headers;
    match parts.class {
        Class::Get => text.push(b'G'),
        Class::Post(digest) => {
            text.push(b'P');
            push_digest(&mut text, digest);
            for name in [header::CONTENT_TYPE, header::CONTENT_ENCODING] {
                push_header(&mut text, &name, headers);
            }
        }
        Class::Grpc(digest) => {
            text.push(b'R');
            push_digest(&mut text, digest);
            push_header(&mut text, &header::CONTENT_TYPE, headers);
            for name in ["grpc-encoding", "grpc-accept-encoding"] {
                push_header(&mut text, &HeaderName::from_static(name), headers);
            }
        }
    }
    push(&mut text, b"\nS", parts.scope.as_bytes());
    if parts.notable.has(Notable::MADE_UP) {
        push_unkeyed(&mut text, headers)?;
    }
    for name in &*rules.headers {
        push_header(&mut text, name, headers);
    }
    for name in &*rules.cookies {
        push(&mut text, b"\nC", name.as_bytes());
        if let Some(value) = cookie(headers, name) {
            push(&mut text, b"=", value.as_bytes());
        }
    }
    if rules.identity {
        push(&mut text, b"\nI", parts.identity.ok_or(Unkeyable::NoIdentity)?.as_bytes());
    }
    if text.len() > TEXT_MAX { Err(Unkeyable::TooLong) } else { Ok(text) }
}

/// The key of a GET that is the like of the POST with this key.
pub(crate) fn of_get(post: &[u8]) -> Option<Text> {
    let uri = post.iter().position(|byte| *byte == b'\n')? + 1;
    // Nothing before the scope can hold the beginning of a line that looks like it.
    let scope = uri + post[uri..].windows(2).position(|two| two == b"\nS")?;
    let mut text = Text::from_slice(&post[..uri]);
    push(&mut text, b"G", &post[scope..]);
    Some(text)
}

/// The beginning that all keys of one URI share: `scheme://authority/path?query` and the end of the line.
pub(crate) fn uri(
    scheme: &str,
    authority: &str,
    path: &str,
    query: Option<&str>,
    rules: &CacheKeyRules,
    no_vary: Option<&NoVarySearch>,
) -> Text {
    let mut text = resource(scheme, authority, path);
    if let Some(query) = query {
        push_query(&mut text, query, rules, no_vary);
    }
    text.push(b'\n');
    text
}

/// The beginning that all keys of one path share, whatever their queries: by it is kept what `No-Vary-Search` says.
pub(crate) fn resource(scheme: &str, authority: &str, path: &str) -> Text {
    let mut text = Text::new();
    push(&mut text, scheme.as_bytes(), b"://");
    // Hosts have no case, and the port that goes without saying goes without saying (RFC 9110 section 4.2.3).
    let port = if scheme == "https" { ":443" } else { ":80" };
    let authority = authority.strip_suffix(port).unwrap_or(authority);
    let start = text.len();
    text.extend_from_slice(authority.as_bytes());
    text[start..].make_ascii_lowercase();
    text.extend_from_slice(path.as_bytes());
    text
}

fn push(text: &mut Text, first: &[u8], second: &[u8]) {
    text.extend_from_slice(first);
    text.extend_from_slice(second);
}

/// All lines of a header, each by itself: `a, b` and `a` with `b` may be the same, but need not be.
fn push_header(text: &mut Text, name: &HeaderName, headers: &HeaderMap) {
    push(text, b"\nH", name.as_str().as_bytes());
    for value in headers.get_all(name) {
        push(text, b"\n=", value.as_bytes().trim_ascii());
    }
}

fn push_digest(text: &mut Text, digest: &BodyDigest) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for byte in digest.0 {
        text.push(DIGITS[usize::from(byte >> 4)]);
        text.push(DIGITS[usize::from(byte & 15)]);
    }
}

/// Request fields that frameworks build answers from without saying so in `Vary`: where a request has one, its answer is
/// for requests that have the same. `Forwarded` counts only by what it says of host and scheme.
fn push_unkeyed(text: &mut Text, headers: &HeaderMap) -> Result<(), Unkeyable> {
    for (name, value) in headers {
        match name.as_str() {
            "x-forwarded-host"
            | "x-forwarded-proto"
            | "x-forwarded-port"
            | "x-forwarded-prefix"
            | "x-forwarded-path"
            | "x-forwarded-scheme"
            | "x-forwarded-server"
            | "x-forwarded-ssl"
            | "x-forwarded-uri"
            | "x-host"
            | "x-original-host"
            | "x-original-url"
            | "x-original-uri"
            | "x-rewrite-url"
            | "x-url-scheme"
            | "x-http-host-override"
            | "x-envoy-original-path"
            | "x-script-name"
            | "front-end-https" => {
                push(text, b"\nU", name.as_str().as_bytes());
                push(text, b"=", value.as_bytes());
            }
            "forwarded" => push_forwarded(text, value),
            "x-http-method-override" | "x-http-method" | "x-method-override" => {
                return Err(Unkeyable::MethodOverride);
            }
            _ => {}
        }
    }
    Ok(())
}

fn push_forwarded(text: &mut Text, value: &HeaderValue) {
    let value = value.as_bytes();
    // Quotes within quotes: nothing of it is taken apart.
    if value.contains(&b'\\') {
        return push(text, b"\nF", value);
    }
    let mut quoted = false;
    let pairs = value.split(|byte| {
        quoted ^= *byte == b'"';
        !quoted && matches!(byte, b',' | b';')
    });
    for pair in pairs.map(<[u8]>::trim_ascii) {
        let name = pair.split(|byte| *byte == b'=').next().unwrap_or_default().trim_ascii();
        if name.eq_ignore_ascii_case(b"host") || name.eq_ignore_ascii_case(b"proto") {
            push(text, b"\nF", pair);
        }
    }
}

/// A collision-resistant digest of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BodyDigest([u8; 32]);

impl BodyDigest {
    /// Of a body in pieces.
    pub(crate) fn of<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut digest = Sha256::new();
        for piece in pieces {
            digest.update(piece);
        }
        Self(digest.finalize().into())
    }
}

/// True if a gRPC body is one whole message, as that of a unary call is.
pub(crate) fn is_one_message(body: &[u8]) -> bool {
    match body {
        [0 | 1, a, b, c, d, message @ ..] => u32::from_be_bytes([*a, *b, *c, *d]) as usize == message.len(),
        _ => false,
    }
}

/// Writes `?` and the parameters that count, in one order and with one spelling of each escape.
fn push_query(text: &mut Text, query: &str, rules: &CacheKeyRules, no_vary: Option<&NoVarySearch>) {
    let any_order = rules.any_order || no_vary.is_some_and(|own| own.any_order);
    if !any_order && no_vary.is_none() && rules.parameters == CacheParameters::All {
        text.push(b'?');
        return push_normal(text, query.as_bytes());
    }
    let counts = |name: &[u8]| {
        let of_policy = match &rules.parameters {
            CacheParameters::All => true,
            CacheParameters::Only(names) => names.iter().any(|wanted| wanted.as_bytes() == name),
            CacheParameters::AllBut(names) => !names.iter().any(|left_out| left_out.as_bytes() == name),
        };
        of_policy && no_vary.is_none_or(|own| own.counts(name))
    };
    let mut kept = SmallVec::<[(Cow<'_, [u8]>, &[u8]); 8]>::new();
    for pair in query.as_bytes().split(|byte| *byte == b'&').filter(|pair| !pair.is_empty()) {
        let name = decoded(pair.split(|byte| *byte == b'=').next().unwrap_or(pair));
        // Some applications end a parameter at `;` too: then there may be another one behind it.
        if counts(&name) || pair.contains(&b';') {
            kept.push((name, pair));
        }
    }
    if any_order {
        // Parameters of one name keep their order: it is that of a list.
        kept.sort_by(|(a, _), (b, _)| a.cmp(b));
    }
    for (at, (_, pair)) in kept.iter().enumerate() {
        text.push(if at == 0 { b'?' } else { b'&' });
        push_normal(text, pair);
    }
}

const fn hex(byte: u8) -> Option<u8> {
    match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'A'..=b'F' => Some(byte - b'A' + 10),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    }
}

/// The byte that an escape at the beginning stands for.
fn escape(bytes: &[u8]) -> Option<u8> {
    match bytes {
        [b'%', high, low, ..] => Some(hex(*high)? << 4 | hex(*low)?),
        _ => None,
    }
}

/// The normal form of RFC 3986 section 6.2.2: escapes in capitals, and none for what needs none. What has a percent sign
/// that begins no escape stays as it is: made alike, `%%325` would be the `%25` that means something else.
fn push_normal(text: &mut Text, whole: &[u8]) {
    let (start, mut bytes) = (text.len(), whole);
    loop {
        let plain = bytes.iter().position(|byte| *byte == b'%').unwrap_or(bytes.len());
        text.extend_from_slice(&bytes[..plain]);
        bytes = &bytes[plain..];
        if bytes.is_empty() {
            return;
        }
        match escape(bytes) {
            Some(byte) if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) => text.push(byte),
            Some(_) => text.extend(bytes[..3].iter().map(u8::to_ascii_uppercase)),
            None => {
                text.truncate(start);
                return text.extend_from_slice(whole);
            }
        }
        bytes = &bytes[3..];
    }
}

/// A parameter's name as applications read it.
fn decoded(name: &[u8]) -> Cow<'_, [u8]> {
    if !name.iter().any(|byte| matches!(byte, b'%' | b'+')) {
        return Cow::Borrowed(name);
    }
    let mut plain = Vec::with_capacity(name.len());
    let mut rest = name;
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        plain.push(match (first, escape_of(*first, after)) {
            (_, Some(byte)) => {
                rest = &after[2..];
                byte
            }
            (b'+', None) => b' ',
            (byte, None) => *byte,
        });
    }
    Cow::Owned(plain)
}

fn escape_of(first: u8, after: &[u8]) -> Option<u8> {
    match after {
        [high, low, ..] if first == b'%' => Some(hex(*high)? << 4 | hex(*low)?),
        _ => None,
    }
}

/// What a resource says of its query (`No-Vary-Search`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct NoVarySearch {
    /// `key-order`.
    any_order: bool,
    ignored: Ignored,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Ignored {
    #[default]
    None,
    These(Vec<String>),
    AllBut(Vec<String>),
}

/// `No-Vary-Search`.
const NO_VARY_SEARCH: HeaderName = HeaderName::from_static("no-vary-search");

impl NoVarySearch {
    /// Reads it; `None` if the response does not have it, or it is invalid or says nothing: then all of a query counts.
    pub(crate) fn of(response: &HeaderMap) -> Option<Self> {
        let members = structured::dictionary(response, &NO_VARY_SEARCH)?;
        let member = |key: &str| members.iter().find(|(own, _)| own == key).map(|(_, value)| value);
        let any_order = match member("key-order") {
            None => false,
            Some(Value::Boolean(on)) => *on,
            Some(_) => return None,
        };
        let except = match member("except") {
            None => None,
            Some(Value::List(names)) => Some(texts(names)?),
            Some(_) => return None,
        };
        let ignored = match (member("params"), except) {
            (None | Some(Value::Boolean(false)), None) => Ignored::None,
            (Some(Value::Boolean(true)), except) => Ignored::AllBut(except.unwrap_or_default()),
            (Some(Value::List(names)), None) => Ignored::These(texts(names)?),
            _ => return None,
        };
        let says = Self { any_order, ignored };
        (says != Self::default()).then_some(says)
    }

    fn counts(&self, name: &[u8]) -> bool {
        let among = |names: &[String]| names.iter().any(|own| own.as_bytes() == name);
        match &self.ignored {
            Ignored::None => true,
            Ignored::These(names) => !among(names),
            Ignored::AllBut(names) => among(names),
        }
    }
}

/// The texts of a list, decoded as the names in a query are.
fn texts(list: &[Value]) -> Option<Vec<String>> {
    list.iter()
        .map(|value| match value {
            Value::Text(text) => String::from_utf8(decoded(text.as_bytes()).into_owned()).ok(),
            _ => None,
        })
        .collect()
}

#[cfg(test)]
mod tests;
