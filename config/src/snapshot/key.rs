//! What tells one user from another: parts of a request that make a key, and the one hash of it that all sidecars share.

use crate::matching::{decode, parameter};
use http::{HeaderMap, HeaderName, header};
use std::{borrow::Cow, sync::Arc};

/// Where a key is read from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum KeyPart {
    /// A request header's first value.
    Header(HeaderName),
    /// A cookie's value.
    Cookie(Arc<str>),
    /// A query parameter's first value, decoded.
    Query(Arc<str>),
    /// Where the call comes from: the caller's address, or, at the caller itself, the calling workload.
    Source,
    /// The caller's proven identity.
    Identity,
}

/// The parts of a key, in order.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key(pub Arc<[KeyPart]>);

/// What of a request keys are read from.
#[derive(Clone, Copy, Debug)]
pub struct KeySource<'a> {
    /// The headers.
    pub headers: &'a HeaderMap,
    /// The query, without `?`.
    pub query: Option<&'a str>,
    /// See [`KeyPart::Source`].
    pub source: &'a str,
    /// See [`KeyPart::Identity`].
    pub identity: Option<&'a str>,
}

impl Key {
    /// The first part that the request has and that is not empty.
    pub fn first<'a>(&self, from: &KeySource<'a>) -> Option<Cow<'a, str>> {
        self.0.iter().find_map(|part| part.read(from))
    }

    /// All parts together as one hash; a part that the request does not have counts as such, apart from an empty one.
    pub fn all(&self, from: &KeySource<'_>) -> u64 {
        self.0.iter().fold(SEED, |hash, part| match part.read(from) {
            Some(text) => mix(hash ^ hash64(text.as_bytes())),
            None => mix(hash),
        })
    }
}

impl KeyPart {
    /// Its value in a request; `None` if it is not there, empty or not text.
    pub fn read<'a>(&self, from: &KeySource<'a>) -> Option<Cow<'a, str>> {
        let found = match self {
            Self::Header(name) => Cow::Borrowed(from.headers.get(name)?.to_str().ok()?.trim()),
            Self::Cookie(name) => Cow::Borrowed(cookie(from.headers, name)?),
            Self::Query(name) => query(from.query?, name)?,
            Self::Source => Cow::Borrowed(from.source),
            Self::Identity => Cow::Borrowed(from.identity?),
        };
        (!found.is_empty()).then_some(found)
    }
}

/// The value of a cookie, without quotes around it (RFC 6265 section 4.2.1).
pub fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let pairs = headers.get_all(header::COOKIE).into_iter().filter_map(|field| field.to_str().ok());
    pairs.flat_map(|field| field.split(';')).find_map(|pair| {
        let (key, value) = pair.split_once('=')?;
        (key.trim() == name).then(|| {
            let value = value.trim();
            value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(value)
        })
    })
}

/// The first value of a query parameter, with `+` and percent-encoding decoded.
fn query<'a>(query: &'a str, name: &str) -> Option<Cow<'a, str>> {
    match decode(parameter(query, name)?) {
        Cow::Borrowed(bytes) => std::str::from_utf8(bytes).ok().map(Cow::Borrowed),
        Cow::Owned(bytes) => String::from_utf8(bytes).ok().map(Cow::Owned),
    }
}

const SEED: u64 = 0xcbf2_9ce4_8422_2325;

/// A hash that is the same in every sidecar of every version: FNV-1a, then mixed so that all bits depend on all bytes.
/// Not for tables that strangers fill.
pub fn hash64(bytes: &[u8]) -> u64 {
    mix(bytes.iter().fold(SEED, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)))
}

/// Spreads each bit of a number over all of it (the finaliser of splitmix64).
pub const fn mix(mut z: u64) -> u64 {
    z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Which of several weighted names a key belongs to, by weighted rendezvous hashing: each name's share is its weight's,
/// a changed weight moves keys only towards names whose share grew, and a name that comes or goes moves only its own.
/// `candidates` gives the hash of each name with its weight; `None` if no weight is above zero.
pub fn rendezvous(key: u64, candidates: impl Iterator<Item = (u64, u32)>) -> Option<usize> {
    let mut best: Option<(usize, f64)> = None;
    for (index, (name, weight)) in candidates.enumerate() {
        if weight == 0 {
            continue;
        }
        // Uniform in (0, 1): 53 bits and a half, so that neither end is reached.
        let unit = ((mix(key ^ mix(name)) >> 11) as f64 + 0.5) / (1_u64 << 53) as f64;
        let score = f64::from(weight) / -unit.ln();
        if best.is_none_or(|(_, highest)| score > highest) {
            best = Some((index, score));
        }
    }
    best.map(|(index, _)| index)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;
    use proptest::prelude::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(k, v)| (HeaderName::from_static(k), HeaderValue::from_static(v))).collect()
    }

    fn key(parts: &[KeyPart]) -> Key {
        Key(parts.into())
    }

    #[test]
    fn the_first_part_that_is_there_is_the_key() {
        let headers = headers(&[("x-user", ""), ("cookie", "a=1; session=\"abc\"; b=2")]);
        let from =
            KeySource { headers: &headers, query: Some("q=a%20b+c"), source: "10.0.0.1", identity: None };
        let user = KeyPart::Header(HeaderName::from_static("x-user"));
        let session = KeyPart::Cookie("session".into());
        assert_eq!(key(&[user.clone(), session]).first(&from).as_deref(), Some("abc"));
        assert_eq!(key(&[user.clone(), KeyPart::Query("q".into())]).first(&from).as_deref(), Some("a b c"));
        assert_eq!(key(&[user, KeyPart::Identity]).first(&from), None);
        assert_eq!(key(&[KeyPart::Source]).first(&from).as_deref(), Some("10.0.0.1"));
    }

    #[test]
    fn all_parts_together_tell_requests_apart() {
        let key = key(&[KeyPart::Query("a".into()), KeyPart::Query("b".into())]);
        let empty = HeaderMap::new();
        let of =
            |query| key.all(&KeySource { headers: &empty, query: Some(query), source: "", identity: None });
        assert_eq!(of("a=1&b=2"), of("b=2&a=1"));
        assert_ne!(of("a=1&b=2"), of("a=2&b=1"));
        assert_ne!(of("a=1"), of("b=1"));
    }

    #[test]
    fn shares_follow_weights_within_one_percent() {
        let names = [hash64(b"old"), hash64(b"new")];
        let mut before = 0;
        for (weights, share) in [([90, 10], 0.10), ([50, 50], 0.50), ([1, 3], 0.75)] {
            let taken = (0..100_000_u32)
                .filter(|n| {
                    let at = rendezvous(hash64(&n.to_le_bytes()), names.into_iter().zip(weights));
                    at == Some(1)
                })
                .count();
            assert!((taken as f64 / 100_000.0 - share).abs() < 0.01, "{taken} of 100,000, not {share}");
            assert!(taken > before);
            before = taken;
        }
    }

    proptest! {
        #[test]
        fn more_weight_only_draws_keys_in(key: u64, weights in proptest::collection::vec(1_u32..100, 2..6), more in 1_u32..1000) {
            let names = |weights: Vec<u32>| weights.into_iter().enumerate().map(|(n, w)| (hash64(&n.to_le_bytes()), w));
            let before = rendezvous(key, names(weights.clone()));
            let mut grown = weights;
            grown[0] += more;
            let after = rendezvous(key, names(grown));
            prop_assert!(after == before || after == Some(0));
        }

        #[test]
        fn another_name_takes_only_its_own_keys(key: u64, n in 1_usize..8) {
            let names = |n: usize| (0..n).map(|n| (hash64(&n.to_le_bytes()), 1));
            let before = rendezvous(key, names(n));
            let after = rendezvous(key, names(n + 1));
            prop_assert!(after == before || after == Some(n));
        }
    }
}
