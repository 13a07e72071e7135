//! A stored response as bytes that can be kept elsewhere, and back. Nothing is believed that is read: whoever wrote it
//! may have been another version, a failing disk, or somebody with access to the place.

use super::{
    Apart, Entry, Extent, FIELDS, HEAD_MAX, KEY, SELECTOR, STANDS, TAGS, TRAILERS, Times, fields, two,
};
use crate::{http1::HeaderCase, telemetry::metrics::Tier};
use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode, header};
use sha2::{Digest, Sha256};
use std::sync::atomic::{AtomicU8, AtomicU64};

/// What packed bytes begin with, by what they are; another form gets another number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cache) enum Form {
    /// A stored response.
    Entry,
    /// Which request fields choose among the variants of a resource.
    Directory,
}

impl Form {
    const fn magic(self) -> [u8; 4] {
        match self {
            Self::Entry => *b"wfE1",
            Self::Directory => *b"wfD1",
        }
    }
}

/// The magic and the digest of what follows.
const SEAL: usize = 4 + DIGEST;
const DIGEST: usize = 16;

/// Bytes of a form, to be written and then closed.
pub(in crate::cache) fn begin(form: Form, room: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(SEAL + room);
    bytes.extend_from_slice(&form.magic());
    bytes.extend_from_slice(&[0; DIGEST]);
    bytes
}

/// Puts the digest in.
pub(in crate::cache) fn close(mut bytes: Vec<u8>) -> Vec<u8> {
    let digest = Sha256::digest(&bytes[SEAL..]);
    bytes[4..SEAL].copy_from_slice(&digest[..DIGEST]);
    bytes
}

/// What is in sealed bytes; `None` if they are not whole.
pub(in crate::cache) fn open(bytes: &[u8]) -> Option<(Form, &[u8])> {
    let (seal, content) = bytes.split_at_checked(SEAL)?;
    let form = [Form::Entry, Form::Directory].into_iter().find(|form| seal[..4] == form.magic())?;
    (Sha256::digest(content)[..DIGEST] == seal[4..]).then_some((form, content))
}

/// What a tier notes with an entry to tell whether it was purged since.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::cache) struct Stamp {
    /// Which life of the tier it is of: what is of another one is not believed.
    pub(in crate::cache) generation: u64,
    /// The last purge that was known before its request was sent.
    pub(in crate::cache) since: u64,
}

/// What is of no fixed length begins after so many bytes: the stamp, the times, status, flags and options, the lengths
/// of the sections, the length of the spelling.
const FIXED: usize = 16 + 7 * 4 + 2 + 2 + 1 + 16 + 5 * 4 + 2;

const HAS_EXTENT: u8 = 1;
const HAS_COMPLETE: u8 = 2;
const HAS_CASE: u8 = 4;

/// All of an entry in one piece, sealed. `None` if its spelling is too long to be told.
pub(in crate::cache) fn pack(entry: &Entry, stamp: Stamp) -> Option<Vec<u8>> {
    let case = match entry.case() {
        Some(case) => Some(case.to_header_value()?),
        None => None,
    };
    let case_bytes = case.as_ref().map_or(&[][..], HeaderValue::as_bytes);
    let head = &entry.block[..entry.ends[TRAILERS] as usize];
    let body = entry.bytes();
    let mut out = begin(Form::Entry, FIXED + case_bytes.len() + head.len() + body.len());
    out.extend_from_slice(&stamp.generation.to_le_bytes());
    out.extend_from_slice(&stamp.since.to_le_bytes());
    let times = entry.times();
    for time in [
        times.requested,
        times.received,
        times.initial_age,
        times.lifetime,
        times.while_revalidate,
        times.if_error,
        times.useful_until,
    ] {
        out.extend_from_slice(&time.to_le_bytes());
    }
    out.extend_from_slice(&entry.status().as_u16().to_le_bytes());
    out.extend_from_slice(&entry.flags().to_le_bytes());
    let extent = entry.extent();
    let complete = extent.and_then(|extent| extent.complete);
    let mut options = 0;
    for (has, bit) in
        [(extent.is_some(), HAS_EXTENT), (complete.is_some(), HAS_COMPLETE), (case.is_some(), HAS_CASE)]
    {
        options |= if has { bit } else { 0 };
    }
    out.push(options);
    out.extend_from_slice(&extent.map_or(0, |extent| extent.start).to_le_bytes());
    out.extend_from_slice(&complete.unwrap_or(0).to_le_bytes());
    for end in entry.ends {
        out.extend_from_slice(&end.to_le_bytes());
    }
    out.extend_from_slice(&u16::try_from(case_bytes.len()).ok()?.to_le_bytes());
    out.extend_from_slice(case_bytes);
    out.extend_from_slice(head);
    out.extend_from_slice(&body);
    Some(close(out))
}

/// Reads numbers one after the other; what is not there is an end.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn two(&mut self) -> Option<u16> {
        Some(u16::from_le_bytes(self.take(2)?.try_into().ok()?))
    }

    fn four(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.take(4)?.try_into().ok()?))
    }

    fn eight(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.take(8)?.try_into().ok()?))
    }
}

/// An entry that `content` of sealed bytes holds, for the very key that was asked for. `epoch` is the store's last purge
/// before the tier was asked. `None` if it is for another key, larger than `most` or nothing that could have been packed.
pub(in crate::cache) fn unpack(
    content: &[u8],
    key: &[u8],
    most: u64,
    epoch: u64,
    brought: Tier,
) -> Option<(Entry, Stamp)> {
    let mut reader = Reader(content);
    let stamp = Stamp { generation: reader.eight()?, since: reader.eight()? };
    let times = Times {
        requested: reader.four()?,
        received: reader.four()?,
        initial_age: reader.four()?,
        lifetime: reader.four()?,
        while_revalidate: reader.four()?,
        if_error: reader.four()?,
        useful_until: reader.four()?,
    };
    let status = StatusCode::from_u16(reader.two()?).ok().filter(|status| status.as_u16() >= 200)?;
    let flags = reader.two()?;
    let options = reader.take(1)?[0];
    let (start, complete) = (reader.eight()?, reader.eight()?);
    let mut ends = [0; 5];
    for end in &mut ends {
        *end = reader.four()?;
    }
    let case = usize::from(reader.two()?);
    let case = reader.take(case)?;
    let has = |bit| options & bit != 0;
    let case = match has(HAS_CASE) {
        true => HeaderCase::from_header_value(&HeaderValue::from_bytes(case).ok()?),
        false => None,
    };
    let block = reader.0;
    let head = ends[TRAILERS] as usize;
    let lengths = ends[FIELDS] as usize <= HEAD_MAX && ends.is_sorted() && head <= 2 * HEAD_MAX;
    if !lengths || head > block.len() || (block.len() - head) as u64 > most {
        return None;
    }
    let section = |which: usize| {
        let start = if which == KEY { 0 } else { ends[which - 1] as usize };
        &block[start..ends[which] as usize]
    };
    let trailers = section(TRAILERS);
    let selector = section(SELECTOR);
    let sound = section(KEY) == key
        && (selector.is_empty() || selector.ends_with(b"\n"))
        && are_tags(section(TAGS))
        && are_fields(section(FIELDS))
        && (trailers.is_empty() || are_fields(trailers));
    let extent = has(HAS_EXTENT)
        .then(|| Extent { start, complete: has(HAS_COMPLETE).then_some(complete) })
        .filter(|_| status == StatusCode::PARTIAL_CONTENT);
    if !sound || has(HAS_EXTENT) != extent.is_some() || !fits(extent, (block.len() - head) as u64) {
        return None;
    }
    let entry = Entry {
        block: Bytes::copy_from_slice(block),
        over: 0,
        apart: None::<Box<Apart>>,
        case: case.map(Box::new),
        extent: extent.map(Box::new),
        ends,
        times,
        checked: AtomicU64::new(epoch),
        status,
        flags,
        standing: AtomicU8::new(STANDS),
        brought: Some(brought),
    };
    Some((entry, stamp))
}

/// Whether so long a part can be where it says it is.
fn fits(extent: Option<Extent>, length: u64) -> bool {
    let Some(extent) = extent else { return true };
    let end = extent.start.checked_add(length);
    end.is_some_and(|end| extent.complete.is_none_or(|complete| end <= complete))
}

fn are_tags(mut section: &[u8]) -> bool {
    while !section.is_empty() {
        match section.split_at_checked(2).and_then(|(_, rest)| rest.split_at_checked(two(section, 0))) {
            Some((_, rest)) => section = rest,
            None => return false,
        }
    }
    true
}

/// Whether a section is what is written of fields, and holds none that would change where the message ends: HTTP/1 sends
/// it as it is.
fn are_fields(section: &[u8]) -> bool {
    let (count, mut at) = (two(section, 0), 2 + 4 * two(section, 0));
    if section.len() < at {
        return false;
    }
    for i in 0..count {
        at += two(section, 2 + 4 * i) + two(section, 4 + 4 * i) + 4;
        if at > section.len() {
            return false;
        }
    }
    let framing = [header::CONTENT_LENGTH, header::TRANSFER_ENCODING, header::CONNECTION, header::UPGRADE];
    at == section.len()
        && fields(section).all(|(name, value)| {
            section[name.end..value.start] == *b": "
                && section[value.end..value.end + 2] == *b"\r\n"
                && HeaderName::from_bytes(&section[name]).is_ok_and(|name| !framing.contains(&name))
                && HeaderValue::from_bytes(&section[value]).is_ok()
        })
}

#[cfg(test)]
mod tests {
    use super::super::{Draft, Key, listed, tests::Sample};
    use super::*;
    use http::HeaderMap;
    use proptest::prelude::*;

    const MOST: u64 = 1 << 20;
    const STAMP: Stamp = Stamp { generation: 7, since: 9 };

    fn read(bytes: &[u8], key: &[u8]) -> Option<(Entry, Stamp)> {
        let (form, content) = open(bytes)?;
        (form == Form::Entry).then(|| unpack(content, key, MOST, 3, Tier::Redis))?
    }

    fn assert_same(a: &Entry, b: &Entry) {
        assert_eq!(a.key_text(), b.key_text());
        assert_eq!(a.selector(), b.selector());
        assert_eq!(a.tags().collect::<Vec<_>>(), b.tags().collect::<Vec<_>>());
        assert_eq!((a.status(), a.times(), a.flags()), (b.status(), b.times(), b.flags()));
        assert_eq!((a.extent(), a.case()), (b.extent(), b.case()));
        assert_eq!((a.headers(), a.wire()), (b.headers(), b.wire()));
        assert_eq!((a.trailers(), a.bytes()), (b.trailers(), b.bytes()));
    }

    fn headers(fields: &[(String, Vec<u8>)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in fields {
            map.append(
                HeaderName::from_bytes(name.as_bytes()).expect("is a token"),
                HeaderValue::from_bytes(value).expect("is a value"),
            );
        }
        map
    }

    fn sample() -> Entry {
        let mut sample = Sample::new("http://shop/products\nG\nSx");
        sample.selector = "accept-encoding=gzip\n".to_owned();
        sample.tags = vec!["p:1", "p:22"];
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from_static("0"));
        let body = Bytes::from_static(b"hello");
        sample.head().with_body(5, [&body], Some(&trailers)).expect("is small")
    }

    fn partial(extent: Extent) -> Entry {
        let sample = Sample::new("k");
        let make = |draft: &Draft<'_>| {
            let head = Entry::head(
                &Draft {
                    key: Key::new(b"k"),
                    selector: b"",
                    tags: &[],
                    status: StatusCode::PARTIAL_CONTENT,
                    fields: draft.fields,
                    case: None,
                    times: draft.times,
                    extent: Some(extent),
                    flags: 17,
                },
                0,
            )?;
            head.with_body(4, [&Bytes::from_static(b"part")], None)
        };
        sample.with(make).expect("is small")
    }

    #[test]
    fn it_is_for_the_very_key_and_no_other() {
        let entry = sample();
        let packed = pack(&entry, STAMP).expect("packs");
        let (back, stamp) = read(&packed, entry.key_text()).expect("unpacks");
        assert_same(&entry, &back);
        assert_eq!((stamp, back.brought(), back.checked()), (STAMP, Some(Tier::Redis), 3));
        assert!(read(&packed, b"http://shop/products\nG\nSy").is_none());
        assert!(read(&packed, b"").is_none());
    }

    #[test]
    fn a_part_is_where_it_says() {
        let extent = Extent { start: 10, complete: Some(14) };
        let entry = partial(extent);
        let (back, _) = read(&pack(&entry, STAMP).expect("packs"), b"k").expect("unpacks");
        assert_same(&entry, &back);
        for wrong in
            [Extent { start: 11, complete: Some(14) }, Extent { start: u64::MAX - 1, complete: None }]
        {
            assert!(read(&pack(&partial(wrong), STAMP).expect("packs"), b"k").is_none());
        }
    }

    #[test]
    fn a_head_that_a_304_renewed_packs_with_the_body_it_shares() {
        let sample = Sample::new("k");
        let old = sample.entry("hello");
        let entry = sample.with(|draft| old.refreshed(draft, 0)).expect("is small");
        let (back, _) = read(&pack(&entry, STAMP).expect("packs"), b"k").expect("unpacks");
        assert_same(&entry, &back);
    }

    /// Whoever can write the bytes can make the digest right: the content must be sound by itself.
    #[test]
    fn what_is_sealed_well_may_still_be_wrong() {
        let entry = sample();
        let packed = pack(&entry, STAMP).expect("packs");
        let wire = b"Content-Type: application/json\r\n";
        let at = packed.windows(wire.len()).position(|found| found == wire).expect("is there");
        for (place, byte) in [(at + 12, b'\n'), (at + 31, b' '), (at + 3, b':'), (at + 20, b'\r'), (at, 0)] {
            let mut wrong = packed.clone();
            wrong[place] = byte;
            assert!(open(&wrong).is_none(), "the digest is wrong");
            let wrong = close(wrong);
            assert!(open(&wrong).is_some() && read(&wrong, entry.key_text()).is_none(), "{place}");
        }
        let mut sample = Sample::new("k");
        sample.headers.insert("xontent-length", HeaderValue::from_static("5"));
        let mut framing = pack(&sample.entry("hello"), STAMP).expect("packs");
        assert!(read(&framing, b"k").is_some());
        let at = framing.windows(14).position(|found| found == b"Xontent-Length").expect("is there");
        framing[at] = b'C';
        assert!(read(&close(framing), b"k").is_none());
    }

    #[test]
    fn what_is_too_large_is_not_read() {
        let entry = Sample::new("k").entry(vec![b'x'; 1000]);
        let packed = pack(&entry, STAMP).expect("packs");
        let (_, content) = open(&packed).expect("is whole");
        assert!(unpack(content, b"k", 1000, 0, Tier::Disk).is_some());
        assert!(unpack(content, b"k", 999, 0, Tier::Disk).is_none());
    }

    proptest! {
        #[test]
        fn what_comes_back_is_what_went_in(
            key in proptest::collection::vec(any::<u8>(), 0..200),
            selector in "([a-z-]{1,9}(=[ -~]{0,9})?\n){0,3}",
            tags in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..20), 0..5),
            names in proptest::collection::vec(("x-[a-z]{1,9}", "[ -~\\xa0-\\xff]{0,30}"), 0..8),
            after in proptest::collection::vec(("t-[a-z]{1,9}", "[!-~]{0,9}"), 0..3),
            body in proptest::collection::vec(any::<u8>(), 0..2000),
            status in 200_u16..600,
            times in any::<[u32; 7]>(),
            flags in any::<u16>(),
            spelled in proptest::option::of("\\*?(,X-[a-zA-Z]{1,6}){1,3}"),
        ) {
            let bytes = |fields: Vec<(String, String)>| -> Vec<(String, Vec<u8>)> {
                fields.into_iter().map(|(name, value)| (name, value.into_bytes())).collect()
            };
            let (fields, trailers) = (headers(&bytes(names)), headers(&bytes(after)));
            let tags: Vec<&[u8]> = tags.iter().map(Vec::as_slice).collect();
            let spelled = spelled.map(|value| HeaderValue::from_str(&value).unwrap());
            let case = spelled.as_ref().and_then(HeaderCase::from_header_value);
            let [requested, received, initial_age, lifetime, while_revalidate, if_error, useful_until] = times;
            let fields = listed(&fields, |_| true);
            let draft = Draft {
                key: Key::new(&key),
                selector: selector.as_bytes(),
                tags: &tags,
                status: StatusCode::from_u16(status).unwrap(),
                fields: &fields,
                case: case.as_ref(),
                times: Times { requested, received, initial_age, lifetime, while_revalidate, if_error, useful_until },
                extent: None,
                flags,
            };
            let body = Bytes::from(body);
            let entry = Entry::head(&draft, 0).unwrap().with_body(body.len(), [&body], Some(&trailers)).unwrap();
            let packed = pack(&entry, STAMP).unwrap();
            let (back, stamp) = read(&packed, &key).expect("unpacks");
            assert_same(&entry, &back);
            prop_assert_eq!(stamp, STAMP);
            prop_assert_eq!(pack(&back, STAMP).unwrap(), packed);
        }

        /// Wrong bytes are refused or make an entry that is sound; nothing panics.
        #[test]
        fn no_bytes_do_harm(
            places in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..6),
            cut in any::<proptest::sample::Index>(),
            seal in any::<bool>(),
        ) {
            let entry = sample();
            let mut packed = pack(&entry, STAMP).unwrap();
            for (place, byte) in places {
                let place = place.index(packed.len());
                packed[place] = byte;
            }
            if seal {
                packed.truncate(SEAL + cut.index(packed.len() - SEAL + 1));
                packed = close(packed);
            }
            if let Some((back, _)) = read(&packed, entry.key_text()) {
                let count = back.headers().len();
                prop_assert_eq!(back.wire().windows(2).filter(|two| *two == b"\r\n").count(), count);
                prop_assert!(back.tags().count() < 100);
                drop((back.trailers(), back.bytes(), back.size(), back.field(&header::ETAG)));
            }
        }

        #[test]
        fn no_made_up_bytes_do_harm(content in proptest::collection::vec(any::<u8>(), 0..400)) {
            let mut bytes = begin(Form::Entry, content.len());
            bytes.extend_from_slice(&content);
            let _ = read(&close(bytes), b"");
            let _ = open(&content);
        }
    }
}
