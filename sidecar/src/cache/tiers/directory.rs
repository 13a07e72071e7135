//! Where the variants of a resource are: by which request fields a tier has answers under a key.

use crate::cache::{
    entry::packed::{self, Form},
    vary,
};
use http::{HeaderMap, HeaderName};
use sha2::{Digest, Sha256};

/// Lists of fields that are remembered of one key: almost every resource has one.
const LISTS_MAX: usize = 4;
const NAMES_MAX: usize = 32;

/// A place in a tier, by what it is for.
pub(super) type Place = [u8; 16];

/// The place of what is named by these parts.
pub(super) fn place(parts: &[&[u8]]) -> Place {
    let mut digest = Sha256::new();
    for part in parts {
        digest.update((part.len() as u64).to_le_bytes());
        digest.update(part);
    }
    let mut place = [0; 16];
    place.copy_from_slice(&digest.finalize()[..16]);
    place
}

/// Lists of fields, the one used last first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Directory(Vec<Vec<HeaderName>>);

impl Directory {
    /// With the fields of a selector in front. `None` if they are there already.
    pub(super) fn with(&self, selector: &[u8]) -> Option<Self> {
        let lines = selector.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        let name = |line: &[u8]| HeaderName::from_bytes(line.split(|byte| *byte == b'=').next()?).ok();
        let names: Vec<_> = lines.filter_map(name).collect();
        if self.0.first() == Some(&names) {
            return None;
        }
        let mut lists = vec![names];
        for list in &self.0 {
            if *list != lists[0] && lists.len() < LISTS_MAX {
                lists.push(list.clone());
            }
        }
        Some(Self(lists))
    }

    /// The selectors that a request's answer may be under.
    pub(super) fn selectors(&self, request: &HeaderMap) -> impl Iterator<Item = Vec<u8>> {
        self.0.iter().map(|names| vary::selector(names, request))
    }

    /// As it is kept.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = packed::begin(Form::Directory, 64);
        for list in &self.0 {
            let names: Vec<_> = list.iter().map(HeaderName::as_str).collect();
            bytes.extend_from_slice(names.join(",").as_bytes());
            bytes.push(b'\n');
        }
        packed::close(bytes)
    }

    /// Reads what is in a sealed directory.
    pub(super) fn read(content: &[u8]) -> Option<Self> {
        let mut lists = Vec::new();
        for line in content.split_inclusive(|byte| *byte == b'\n') {
            let names = line.strip_suffix(b"\n")?.split(|byte| *byte == b',');
            let names: Vec<_> = names.map(HeaderName::from_bytes).collect::<Result<_, _>>().ok()?;
            if names.len() > NAMES_MAX || lists.len() == LISTS_MAX {
                return None;
            }
            lists.push(names);
        }
        Some(Self(lists))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;
    use proptest::prelude::*;

    #[test]
    fn the_list_used_last_is_first() {
        let one = Directory::default().with(b"accept=a\nx-b\n").expect("is new");
        assert_eq!(one.with(b"accept=other\nx-b=1\n"), None);
        let two = one.with(b"origin\n").expect("is new");
        assert_eq!(two.0.len(), 2);
        let back = two.with(b"accept\nx-b\n").expect("is in front now");
        assert_eq!(back.0, [two.0[1].clone(), two.0[0].clone()]);
        let mut many = back;
        for name in ["a", "b", "c", "d", "e"] {
            many = many.with(format!("{name}=1\n").as_bytes()).expect("is new");
        }
        assert_eq!(many.0.len(), LISTS_MAX);
        let (form, content) = packed::open(&many.to_bytes()).map(|(f, c)| (f, c.to_vec())).expect("is whole");
        assert_eq!((form, Directory::read(&content)), (Form::Directory, Some(many)));
    }

    #[test]
    fn a_request_finds_its_variant() {
        let directory = Directory::default().with(b"accept-encoding=gzip\n").expect("is new");
        let mut request = HeaderMap::new();
        request.insert("accept-encoding", HeaderValue::from_static("GZIP"));
        assert_eq!(directory.selectors(&request).collect::<Vec<_>>(), [b"accept-encoding=gzip\n"]);
    }

    #[test]
    fn places_differ_by_where_parts_begin() {
        assert_ne!(place(&[b"ab", b"c"]), place(&[b"a", b"bc"]));
        assert_eq!(place(&[b"ab", b"c"]), place(&[b"ab", b"c"]));
    }

    proptest! {
        #[test]
        fn no_bytes_do_harm(content in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Some(directory) = Directory::read(&content) {
                let _ = directory.selectors(&HeaderMap::new()).count();
            }
        }
    }
}
