//! Keys: no two resources share one, and no resource has two.

use super::super::key::{self, Class, NoVarySearch, Parts};
use crate::{
    fuzz::{anything, fields, first_line, halves},
    notable::Notable,
};
use http::{HeaderMap, HeaderName, HeaderValue, Uri, header};
use weft_config::{
    matching::normalize_path,
    snapshot::{CacheKeyRules, CacheParameters},
};

/// What kind of rules; two addresses; the fields of both.
pub(crate) const KEYS: &[&[u8]] = &[
    b"\x00http://a/b?c=%41\nhttp://A:80/./b?c=A\nx-a: 1\nhost: a\n\nx-a: 1\nhost: a",
    b"\x00http://a/b?c=%2541\nhttp://a/b?c=%41\n\n",
    b"\x00http://a/b?c=%%325\nhttp://a/b?c=%25\n\n",
    b"\x00http://a/b?c=%3d&d\nhttp://a/b?c==&d\n\n",
    b"\x01http://a/b?c=1&d=2&utm=3\nhttp://a/b?d=2&c=1\nforwarded: for=1;host=\"a;b\"\n\nx-forwarded-host: evil",
    b"\x02http://a/b?c=1&%64=2;d=3\nhttp://a/b?d=2\ncookie: s=1; t=2\n\ncookie: t=2; s=1",
    b"\x03https://a:443/%7eb/%2e%2e/c?\nhttps://a/c\nx-original-url: /d\n\nx-a: 1, 2\nx-a: 3",
    b"\x04http://a/b?c=1&d=2\nhttp://a/b?d=2&c=1\nno-vary-search: key-order, params=(\"e\")\n\nx-http-method: PUT",
];

fn rules(kind: u8) -> CacheKeyRules {
    let all = CacheKeyRules {
        headers: [HeaderName::from_static("x-a"), header::ACCEPT].into(),
        cookies: ["s".into()].into(),
        ..CacheKeyRules::default()
    };
    let some = || ["c".into(), "d".into()].into();
    match kind % 4 {
        0 => all,
        1 => CacheKeyRules { any_order: true, ..all },
        2 => CacheKeyRules { parameters: CacheParameters::Only(some()), ..all },
        _ => CacheKeyRules { parameters: CacheParameters::AllBut(some()), any_order: true, ..all },
    }
}

/// The values of two headers, and the fields that count wherever they are.
type Keyed<'a> = (Vec<&'a HeaderValue>, Vec<&'a HeaderValue>, Vec<(&'a str, &'a [u8])>);

/// A request, taken apart without the code under test.
struct Asked {
    scheme: String,
    authority: String,
    path: String,
    query: Option<String>,
    headers: HeaderMap,
}

impl Asked {
    fn read(address: &[u8], headers: &[u8]) -> Option<Self> {
        let uri: Uri = std::str::from_utf8(address).ok()?.parse().ok()?;
        Some(Self {
            scheme: uri.scheme_str()?.to_owned(),
            authority: uri.authority()?.as_str().to_owned(),
            path: normalize_path(uri.path()).ok()?.into_owned(),
            query: uri.query().map(str::to_owned),
            headers: fields(headers),
        })
    }

    fn key(&self, rules: &CacheKeyRules, no_vary: Option<&NoVarySearch>) -> Option<Vec<u8>> {
        let parts = Parts {
            class: Class::Get,
            scope: "s",
            scheme: &self.scheme,
            authority: &self.authority,
            path: &self.path,
            query: self.query.as_deref(),
            headers: &self.headers,
            notable: Notable::of(&self.headers),
            identity: None,
        };
        let text = |parts| key::text(&parts, rules, no_vary).ok().map(|text| text.to_vec());
        let key = text(parts);
        assert_eq!(text(Parts { notable: anything(), ..parts }), key, "nothing is overlooked");
        key
    }

    /// Host and port as a client connects to them.
    fn origin(&self) -> (String, String) {
        let port = if self.scheme == "https" { ":443" } else { ":80" };
        let authority = self.authority.to_ascii_lowercase();
        (self.scheme.clone(), authority.strip_suffix(port).unwrap_or(&authority).to_owned())
    }

    /// The query byte by byte: what stands for itself, and what is escaped and means something else than itself.
    fn query(&self) -> Option<Vec<(u8, bool)>> {
        Some(bytes(self.query.as_deref()?.as_bytes()))
    }

    /// True if every percent sign begins an escape.
    fn is_readable(&self) -> bool {
        self.query().is_none_or(|query| !query.contains(&(b'%', false)))
    }

    /// What the key must hold of the fields.
    fn fields(&self) -> Keyed<'_> {
        let of = |name: &str| self.headers.get_all(name).iter().collect();
        let forwarded = ["x-forwarded-host", "x-original-url", "x-forwarded-proto", "x-rewrite-url"];
        let unkeyed = self.headers.iter().filter(|(name, _)| forwarded.contains(&name.as_str()));
        (of("x-a"), of("accept"), unkeyed.map(|(name, value)| (name.as_str(), value.as_bytes())).collect())
    }
}

/// The bytes of a query, each with whether it was escaped; what needs no escape was not.
fn bytes(mut text: &[u8]) -> Vec<(u8, bool)> {
    let mut read = Vec::new();
    while let Some((first, rest)) = text.split_first() {
        let escaped = rest.get(..2).and_then(|digits| {
            let digits =
                std::str::from_utf8(digits).ok().filter(|d| d.bytes().all(|b| b.is_ascii_hexdigit()))?;
            u8::from_str_radix(digits, 16).ok()
        });
        match (first, escaped) {
            (b'%', Some(byte)) => {
                read.push((byte, !(byte.is_ascii_alphanumeric() || b"-._~".contains(&byte))));
                text = &rest[2..];
            }
            _ => {
                read.push((*first, false));
                text = rest;
            }
        }
    }
    read
}

/// The parameters that count as an application reads them, in the order in which they count.
fn parameters(asked: &Asked, rules: &CacheKeyRules) -> Vec<Vec<(u8, bool)>> {
    let query = asked.query().unwrap_or_default();
    let name = |pair: &[(u8, bool)]| -> Vec<u8> {
        let end = pair.iter().position(|byte| *byte == (b'=', false)).unwrap_or(pair.len());
        pair[..end].iter().map(|byte| if *byte == (b'+', false) { b' ' } else { byte.0 }).collect()
    };
    let counts = |pair: &&[(u8, bool)]| {
        let among = |names: &[std::sync::Arc<str>]| names.iter().any(|n| n.as_bytes() == name(pair));
        pair.contains(&(b';', false))
            || match &rules.parameters {
                CacheParameters::All => true,
                CacheParameters::Only(names) => among(names),
                CacheParameters::AllBut(names) => !among(names),
            }
    };
    let pairs = query.split(|byte| *byte == (b'&', false)).filter(|pair| !pair.is_empty()).filter(counts);
    let mut pairs: Vec<_> = pairs.map(<[(u8, bool)]>::to_vec).collect();
    if rules.any_order {
        pairs.sort_by_key(|pair| name(pair));
    }
    pairs
}

/// Equal keys mean equal resources; the same resource has the same key.
pub(crate) fn key(data: &[u8]) {
    let Some((kind, rest)) = data.split_first() else { return };
    let (first, rest) = first_line(rest);
    let (second, rest) = first_line(rest);
    let (mine, theirs) = halves(rest);
    let (Some(one), Some(other)) = (Asked::read(first, mine), Asked::read(second, theirs)) else { return };
    let rules = rules(*kind);
    let (Some(a), Some(b)) = (one.key(&rules, None), other.key(&rules, None)) else { return };
    let line = |key: &[u8]| key.iter().filter(|byte| **byte == b'\n').count();
    assert!(line(&a) >= 2 && line(&b) >= 2, "the address has a line of its own");
    let whole = rules.parameters == CacheParameters::All && !rules.any_order;
    let same_query = if whole {
        one.query() == other.query()
    } else {
        parameters(&one, &rules) == parameters(&other, &rules)
    };
    let same = one.origin() == other.origin() && one.path == other.path && same_query;
    if a == b {
        assert!(same, "{} and {} share {}", first.escape_ascii(), second.escape_ascii(), a.escape_ascii());
        let trimmed = |asked: &Asked| {
            let (x, accept, unkeyed) = asked.fields();
            format!("{x:?}{accept:?}{unkeyed:?}")
        };
        assert_eq!(trimmed(&one), trimmed(&other));
    } else if same && one.is_readable() && other.is_readable() && one.headers == other.headers {
        panic!("one resource, two keys: {} and {}", a.escape_ascii(), b.escape_ascii());
    }
    // The address in a key is in normal form: it is that of itself.
    let uri = key::uri(&one.scheme, &one.authority, &one.path, one.query.as_deref(), &rules, None);
    assert!(a.starts_with(&uri));
    if let Some(again) = Asked::read(uri.trim_ascii_end(), mine)
        && one.is_readable()
    {
        let again =
            key::uri(&again.scheme, &again.authority, &again.path, again.query.as_deref(), &rules, None);
        assert_eq!(again, uri, "{}", uri.escape_ascii());
    }
    // What the resource says of its own query only ever takes away.
    if let Some(no_vary) = NoVarySearch::of(&one.headers)
        && a == b
    {
        assert_eq!(one.key(&rules, Some(&no_vary)), other.key(&rules, Some(&no_vary)));
    }
}
