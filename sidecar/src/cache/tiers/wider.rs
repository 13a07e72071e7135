//! What a purge is for, in a form that other sidecars and later processes can read: at least all that was meant.

use crate::cache::entry::Entry;

/// The longest text that is remembered of a purge; what is longer means everything.
const TEXT_MAX: usize = 8 * 1024;

/// What a purge by hand is for, or a little more.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Wider {
    /// Everything.
    All,
    /// Every key that begins like this.
    Prefix(Box<[u8]>),
    /// Every key whose path begins like this, whatever the host.
    Path(Box<[u8]>),
    /// Every entry with this label.
    Tag(Box<[u8]>),
}

/// The first line of a key: what all keys of one URI share.
pub(super) fn uri(key: &[u8]) -> &[u8] {
    let end = key.iter().position(|byte| *byte == b'\n').map_or(key.len(), |end| end + 1);
    &key[..end]
}

/// What follows the authority in a key.
fn path(key: &[u8]) -> Option<&[u8]> {
    let uri = uri(key);
    let authority = uri.windows(3).position(|found| found == b"://")? + 3;
    let slash = uri[authority..].iter().position(|byte| *byte == b'/')?;
    Some(&uri[authority + slash..])
}

impl Wider {
    /// Whether an entry is meant.
    pub(in crate::cache) fn means(&self, entry: &Entry) -> bool {
        match self {
            Self::All => true,
            Self::Prefix(prefix) => entry.key_text().starts_with(prefix),
            // A key without a path is none of ours: better gone.
            Self::Path(wanted) => path(entry.key_text()).is_none_or(|path| path.starts_with(wanted)),
            Self::Tag(wanted) => entry.tags().any(|tag| *tag == **wanted),
        }
    }

    /// As it is written.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let (kind, text): (u8, &[u8]) = match self {
            Self::All => (b'A', &[]),
            Self::Prefix(text) => (b'P', text),
            Self::Path(text) => (b'U', text),
            Self::Tag(text) => (b'T', text),
        };
        if text.len() > TEXT_MAX {
            return vec![b'A'];
        }
        let mut bytes = Vec::with_capacity(1 + text.len());
        bytes.push(kind);
        bytes.extend_from_slice(text);
        bytes
    }

    /// Reads what [`to_bytes`](Self::to_bytes) wrote. What is not understood means everything.
    pub(super) fn from_bytes(bytes: &[u8]) -> Self {
        match bytes.split_first() {
            Some((b'P', text)) => Self::Prefix(text.into()),
            Some((b'U', text)) => Self::Path(text.into()),
            Some((b'T', text)) => Self::Tag(text.into()),
            _ => Self::All,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::entry::tests::Sample;

    fn entry(key: &str) -> Entry {
        let mut sample = Sample::new(key);
        sample.tags = vec!["a", "b"];
        sample.entry("")
    }

    #[test]
    fn it_means_what_it_says() {
        let product = entry("http://shop:80/products/1?x=/cart\nG");
        let means = |wider: Wider| wider.means(&product);
        assert!(means(Wider::All));
        assert!(means(Wider::Prefix((*b"http://shop:80/products").into())));
        assert!(!means(Wider::Prefix((*b"https").into())));
        assert!(means(Wider::Path((*b"/products/").into())));
        assert!(!means(Wider::Path((*b"/cart").into())));
        assert!(means(Wider::Tag((*b"b").into())) && !means(Wider::Tag((*b"c").into())));
        assert!(Wider::Path((*b"/x").into()).means(&entry("no uri")));
    }

    #[test]
    fn it_is_read_as_it_was_written_or_wider() {
        for wider in [
            Wider::All,
            Wider::Prefix((*b"http://shop/").into()),
            Wider::Path((*b"/a").into()),
            Wider::Tag((*b"t").into()),
        ] {
            assert_eq!(Wider::from_bytes(&wider.to_bytes()), wider);
        }
        let long = Wider::Tag(vec![b'x'; TEXT_MAX + 1].into());
        assert_eq!(Wider::from_bytes(&long.to_bytes()), Wider::All);
        assert_eq!(Wider::from_bytes(b""), Wider::All);
        assert_eq!(Wider::from_bytes(b"?x"), Wider::All);
    }

    #[test]
    fn a_uri_is_the_first_line() {
        assert_eq!(uri(b"http://a/b\nG\nS"), b"http://a/b\n");
        assert_eq!(uri(b"http://a/b"), b"http://a/b");
    }
}
