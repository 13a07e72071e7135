//! One stored response: all that is kept of it in one block of memory, and how long it is of use.
//!
//! A small object must not cost more in bookkeeping than it has in bytes. So key, selector, tags, fields, trailers and
//! body lie one after the other in one allocation; fields lie there the way HTTP/1 writes them, with their lengths
//! before them, so that HTTP/1 sends them as they are and a `HeaderMap` is made of them without copying a value.

pub(in crate::cache) mod packed;
pub(in crate::cache) mod room;

use crate::{
    body::Body,
    http1::{HeaderCase, write_field_name},
    telemetry::metrics::Tier,
};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use smallvec::SmallVec;
use std::{
    hash::BuildHasher,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicU8, AtomicU64, Ordering},
    },
};

/// The longest head that is kept, with key, selector and tags.
const HEAD_MAX: usize = 64 * 1024 - 1;
/// The two counts before what an `Arc` points to.
const COUNTS: usize = 16;
/// What shared bytes keep for being shared.
const SHARING: usize = allocated(24);

/// What an allocation of so many bytes takes: a word before it, and all of it in steps of 16 bytes.
const fn allocated(bytes: usize) -> usize {
    let taken = (bytes + 8).next_multiple_of(16);
    if taken < 32 { 32 } else { taken }
}

/// What a response is stored under: everything that makes two requests the same, in one form.
///
/// The hash has a seed of this process: whoever chooses keys cannot choose hashes. It only finds the place; whether the
/// key is the same is always told from all of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Key<'a> {
    hash: u128,
    text: &'a [u8],
}

impl<'a> Key<'a> {
    pub(crate) fn new(text: &'a [u8]) -> Self {
        static SEED: LazyLock<foldhash::quality::RandomState> = LazyLock::new(Default::default);
        let low = SEED.hash_one(text);
        // Both halves are spread over all their bits: what is chosen by one says nothing about the other's.
        let high = (low ^ (low >> 32)).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(32);
        let hash = (u128::from(high) << 64) | u128::from(low);
        Self { hash, text }
    }

    /// The same key, whose hash is known already.
    pub(crate) fn again(text: &'a [u8], hash: u128) -> Self {
        debug_assert_eq!(Self::new(text).hash, hash);
        Self { hash, text }
    }

    pub(crate) fn hash(self) -> u128 {
        self.hash
    }

    pub(crate) fn text(self) -> &'a [u8] {
        self.text
    }
}

/// What freshness is judged by: moments in seconds since 1970, spans in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Times {
    /// When the request was sent that brought the response.
    pub(crate) requested: u32,
    /// When its head came.
    pub(crate) received: u32,
    /// How old it was then (RFC 9111 section 4.2.3: `corrected_initial_age`).
    pub(crate) initial_age: u32,
    /// For how long after its making it is fresh.
    pub(crate) lifetime: u32,
    /// For how long beyond it may be given while it is fetched anew.
    pub(crate) while_revalidate: u32,
    /// For how long beyond it may be given when the origin fails.
    pub(crate) if_error: u32,
    /// When nothing can be done with it any more, not even ask whether it changed: its memory is for others then.
    pub(crate) useful_until: u32,
}

/// What a partial response is a part of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    /// Where the kept bytes begin.
    pub(crate) start: u64,
    /// How long all of it is, if that is known.
    pub(crate) complete: Option<u64>,
}

/// A field of a response.
pub(crate) type Field<'a> = (&'a HeaderName, &'a HeaderValue);
/// Fields of a response in their order.
pub(crate) type Fields<'a> = SmallVec<[Field<'a>; 16]>;

/// All fields for which `kept` holds, but for `Content-Length`, which the body knows better.
pub(crate) fn listed(headers: &HeaderMap, kept: impl Fn(&HeaderName) -> bool) -> Fields<'_> {
    headers.iter().filter(|(name, _)| **name != header::CONTENT_LENGTH && kept(name)).collect()
}

/// The same as a map.
pub(crate) fn mapped(fields: &[Field<'_>]) -> HeaderMap {
    let mut map = HeaderMap::with_capacity(fields.len());
    for (name, value) in fields {
        map.append(*name, HeaderValue::clone(value));
    }
    map
}

/// What is to be kept of a response's head.
pub(crate) struct Draft<'a> {
    pub(crate) key: Key<'a>,
    /// The fields that `Vary` names with their values in the request, in one form; empty without `Vary`. Two variants
    /// of a resource are the same if these bytes are.
    pub(crate) selector: &'a [u8],
    /// Labels for purging.
    pub(crate) tags: &'a [&'a [u8]],
    pub(crate) status: StatusCode,
    /// Only what may be stored.
    pub(crate) fields: &'a [Field<'a>],
    /// How the origin spelled its fields.
    pub(crate) case: Option<&'a HeaderCase>,
    pub(crate) times: Times,
    /// For a 206.
    pub(crate) extent: Option<Extent>,
    /// Bits that belong to whoever made the draft.
    pub(crate) flags: u16,
}

/// A stored response, or the head of one that is still coming in. Never changes; what a 304 brings makes a new one that
/// shares the body.
pub(crate) struct Entry {
    block: Bytes,
    /// The body, where it is not the rest of the block.
    apart: Option<Box<Apart>>,
    case: Option<Box<HeaderCase>>,
    extent: Option<Box<Extent>>,
    /// Where key, selector, tags, fields and trailers end.
    ends: [u32; 5],
    times: Times,
    /// Up to which purge it is known not to be meant.
    checked: AtomicU64,
    status: StatusCode,
    flags: u16,
    /// Bytes at the end of the block that are of no meaning.
    over: u16,
    standing: AtomicU8,
    /// The tier that it was found in, if it did not come from its origin.
    brought: Option<Tier>,
}

/// A body shared with the entry that came before.
struct Apart {
    body: Bytes,
    /// All that is kept in memory for it.
    held: usize,
}

/// No purge was for it, a soft one, a hard one.
const STANDS: u8 = 0;
const OUTDATED: u8 = 1;
const PURGED: u8 = 2;

const KEY: usize = 0;
const SELECTOR: usize = 1;
const TAGS: usize = 2;
const FIELDS: usize = 3;
const TRAILERS: usize = 4;

/// Writes how many fields there are, the lengths of each, and then all of them as HTTP/1 has them.
fn write_section(block: &mut Vec<u8>, fields: &[Field<'_>], case: Option<&HeaderCase>) -> Option<()> {
    let start = block.len();
    block.extend_from_slice(&u16::try_from(fields.len()).ok()?.to_le_bytes());
    for (name, value) in fields {
        let [name, value] = [name.as_str().len(), value.len()].map(u16::try_from);
        block.extend_from_slice(&name.ok()?.to_le_bytes());
        block.extend_from_slice(&value.ok()?.to_le_bytes());
    }
    for (name, value) in fields {
        write_field_name(block, name, case);
        block.extend_from_slice(b": ");
        block.extend_from_slice(value.as_bytes());
        block.extend_from_slice(b"\r\n");
    }
    (block.len() - start <= HEAD_MAX).then_some(())
}

fn section_length(fields: &[Field<'_>]) -> usize {
    2 + fields.iter().map(|(name, value)| name.as_str().len() + value.len() + 8).sum::<usize>()
}

fn two(bytes: &[u8], at: usize) -> usize {
    match bytes.get(at..at + 2) {
        Some(two) => usize::from(u16::from_le_bytes([two[0], two[1]])),
        None => 0,
    }
}

/// The fields of a section: name and value by their places in it.
fn fields(section: &[u8]) -> impl Iterator<Item = (std::ops::Range<usize>, std::ops::Range<usize>)> {
    let count = two(section, 0);
    let mut at = 2 + 4 * count;
    (0..count).map(move |i| {
        let (name, value) = (two(section, 2 + 4 * i), two(section, 4 + 4 * i));
        let start = at;
        at += name + value + 4;
        (start..start + name, start + name + 2..start + name + 2 + value)
    })
}

impl Entry {
    /// The head of a response. `epoch` is the purge that was the last when its request was sent. `None` if there is too
    /// much of it to be kept.
    pub(crate) fn head(draft: &Draft<'_>, epoch: u64) -> Option<Self> {
        Self::whole(draft, epoch, b"")
    }

    /// A response with its body, which nothing follows.
    pub(crate) fn whole(draft: &Draft<'_>, epoch: u64, body: &[u8]) -> Option<Self> {
        let tags = draft.tags.iter().map(|tag| tag.len() + 2).sum::<usize>();
        let length = draft.key.text.len() + draft.selector.len() + tags + section_length(draft.fields);
        if length > HEAD_MAX {
            return None;
        }
        let mut block = room::block(length + body.len());
        let mut ends = [0; 5];
        block.extend_from_slice(draft.key.text);
        ends[KEY] = block.len() as u32;
        block.extend_from_slice(draft.selector);
        ends[SELECTOR] = block.len() as u32;
        for tag in draft.tags {
            block.extend_from_slice(&u16::try_from(tag.len()).ok()?.to_le_bytes());
            block.extend_from_slice(tag);
        }
        ends[TAGS] = block.len() as u32;
        write_section(&mut block, draft.fields, draft.case)?;
        ends[FIELDS] = block.len() as u32;
        ends[TRAILERS] = block.len() as u32;
        block.extend_from_slice(body);
        let over = u16::try_from(block.capacity() - block.len()).ok()?;
        block.resize(block.capacity(), 0);
        Some(Self {
            block: Bytes::from(block),
            over,
            apart: None,
            case: draft.case.map(|case| Box::new(case.detached())),
            extent: draft.extent.map(Box::new),
            ends,
            times: draft.times,
            checked: AtomicU64::new(epoch),
            status: draft.status,
            flags: draft.flags,
            standing: AtomicU8::new(STANDS),
            brought: None,
        })
    }

    /// The same with its body, all in one block. `None` if the trailers are too much to be kept.
    pub(crate) fn with_body<'b>(
        &self,
        length: usize,
        body: impl IntoIterator<Item = &'b Bytes>,
        trailers: Option<&HeaderMap>,
    ) -> Option<Self> {
        let head = &self.block[..self.ends[FIELDS] as usize];
        let trailers = trailers.filter(|trailers| !trailers.is_empty());
        let trailers = trailers.map(|trailers| listed(trailers, |_| true));
        let room = head.len() + trailers.as_ref().map_or(0, |trailers| section_length(trailers)) + length;
        let mut block = Vec::with_capacity(room);
        block.extend_from_slice(head);
        let mut ends = self.ends;
        if let Some(trailers) = &trailers {
            write_section(&mut block, trailers, self.case.as_deref())?;
        }
        ends[TRAILERS] = block.len() as u32;
        for piece in body {
            block.extend_from_slice(piece);
        }
        // Room that is left over would be kept without being counted.
        block.shrink_to_fit();
        Some(Self { block: Bytes::from(block), over: 0, apart: None, ends, ..self.copy() })
    }

    /// What this becomes by a 304 or a HEAD: another head, the same body and trailers.
    pub(crate) fn refreshed(&self, draft: &Draft<'_>, epoch: u64) -> Option<Self> {
        let head = Self::head(draft, epoch)?;
        let mut block = Vec::with_capacity(head.end() + self.section(TRAILERS).len());
        block.extend_from_slice(&head.block[..head.end()]);
        block.extend_from_slice(self.section(TRAILERS));
        let mut ends = head.ends;
        ends[TRAILERS] = block.len() as u32;
        let held = match &self.apart {
            Some(apart) => apart.held,
            None => allocated(self.block.len()) + SHARING,
        };
        let apart = Box::new(Apart { body: self.bytes(), held });
        Some(Self { block: Bytes::from(block), over: 0, apart: Some(apart), ends, ..head })
    }

    fn copy(&self) -> Self {
        Self {
            block: self.block.clone(),
            over: self.over,
            apart: None,
            case: self.case.clone(),
            extent: self.extent.clone(),
            ends: self.ends,
            times: self.times,
            checked: AtomicU64::new(self.checked.load(Ordering::Relaxed)),
            status: self.status,
            flags: self.flags,
            standing: AtomicU8::new(self.standing.load(Ordering::Relaxed)),
            brought: self.brought,
        }
    }

    /// Where the body ends that lies in the block.
    fn end(&self) -> usize {
        self.block.len() - usize::from(self.over)
    }

    fn place(&self, section: usize) -> std::ops::Range<usize> {
        let start = if section == 0 { 0 } else { self.ends[section - 1] };
        start as usize..self.ends[section] as usize
    }

    fn section(&self, section: usize) -> &[u8] {
        &self.block[self.place(section)]
    }

    /// What it is stored under.
    pub(crate) fn key(&self) -> Key<'_> {
        Key::new(self.key_text())
    }

    /// The same without its hash.
    pub(crate) fn key_text(&self) -> &[u8] {
        self.section(KEY)
    }

    /// Which requests it is for, among those with its key.
    pub(crate) fn selector(&self) -> &[u8] {
        self.section(SELECTOR)
    }

    /// Its labels.
    pub(crate) fn tags(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest = self.section(TAGS);
        std::iter::from_fn(move || {
            if rest.is_empty() {
                return None;
            }
            let (tag, further) = rest[2..].split_at(two(rest, 0));
            rest = further;
            Some(tag)
        })
    }

    pub(crate) fn status(&self) -> StatusCode {
        self.status
    }

    pub(crate) fn times(&self) -> &Times {
        &self.times
    }

    pub(crate) fn flags(&self) -> u16 {
        self.flags
    }

    pub(crate) fn extent(&self) -> Option<Extent> {
        self.extent.as_deref().copied()
    }

    /// The tier that it was found in, if it did not come from its origin.
    pub(crate) fn brought(&self) -> Option<Tier> {
        self.brought
    }

    /// How the origin spelled its fields, as an extension of the response.
    pub(crate) fn case(&self) -> Option<&HeaderCase> {
        self.case.as_deref()
    }

    /// The first value of a field, without a map being made.
    #[cfg(test)]
    pub(crate) fn field(&self, name: &HeaderName) -> Option<&[u8]> {
        let section = self.section(FIELDS);
        fields(section)
            .find(|(at, _)| section[at.clone()].eq_ignore_ascii_case(name.as_str().as_bytes()))
            .map(|(_, value)| &section[value])
    }

    /// All fields the way HTTP/1 writes them, each with its line end; without `Content-Length`.
    pub(crate) fn wire(&self) -> &[u8] {
        let section = self.section(FIELDS);
        section.get(2 + 4 * two(section, 0)..).unwrap_or_default()
    }

    /// All fields, their values shared with the entry; without `Content-Length`.
    pub(crate) fn headers(&self) -> HeaderMap {
        self.map(FIELDS)
    }

    /// Whether anything follows the body.
    pub(crate) fn has_trailers(&self) -> bool {
        !self.place(TRAILERS).is_empty()
    }

    /// What follows the body.
    pub(crate) fn trailers(&self) -> Option<HeaderMap> {
        (!self.place(TRAILERS).is_empty()).then(|| self.map(TRAILERS))
    }

    fn map(&self, section: usize) -> HeaderMap {
        let place = self.place(section);
        let bytes = &self.block[place.clone()];
        let mut map = HeaderMap::with_capacity(two(bytes, 0) + 4);
        for (name, value) in fields(bytes) {
            let value = self.block.slice(place.start + value.start..place.start + value.end);
            // Both were valid when they were written; what is not would only be left out.
            if let (Ok(name), Ok(value)) =
                (HeaderName::from_bytes(&bytes[name]), HeaderValue::from_maybe_shared(value))
            {
                map.append(name, value);
            }
        }
        map
    }

    /// The body's bytes, shared.
    pub(crate) fn bytes(&self) -> Bytes {
        match &self.apart {
            Some(apart) => apart.body.clone(),
            None => self.block.slice(self.ends[TRAILERS] as usize..self.end()),
        }
    }

    /// The body's bytes, not shared.
    pub(crate) fn data(&self) -> &[u8] {
        match &self.apart {
            Some(apart) => &apart.body,
            None => &self.block[self.ends[TRAILERS] as usize..self.end()],
        }
    }

    /// How many bytes the body has.
    pub(crate) fn length(&self) -> usize {
        self.data().len()
    }

    /// The body, trailers and all.
    pub(crate) fn body(&self) -> Body {
        match self.trailers() {
            None => Body::full(self.bytes()),
            Some(trailers) => super::body::with_trailers(self.bytes(), trailers),
        }
    }

    /// Everything that is kept in memory for it, with its share of the store's index.
    pub(crate) fn size(&self) -> usize {
        let case = self.case.as_ref().map_or(0, |case| allocated(case.size()));
        let extent = self.extent.as_ref().map_or(0, |_| allocated(size_of::<Extent>()));
        let apart = self.apart.as_ref().map_or(0, |a| allocated(size_of::<Apart>()) + a.held);
        let itself = allocated(COUNTS + size_of::<Self>());
        itself + allocated(self.block.len()) + SHARING + case + extent + apart + super::store::PLACE
    }

    /// True if a soft purge was for it: it must be asked for anew, but may still be given when a stale answer may.
    pub(crate) fn is_outdated(&self) -> bool {
        self.standing.load(Ordering::Acquire) == OUTDATED
    }

    /// True if a hard purge was for it: it is only not yet taken out.
    pub(super) fn is_purged(&self) -> bool {
        self.standing.load(Ordering::Acquire) == PURGED
    }

    pub(super) fn outdate(&self) {
        self.standing.fetch_max(OUTDATED, Ordering::Release);
    }

    pub(super) fn condemn(&self) {
        self.standing.store(PURGED, Ordering::Release);
    }

    /// Up to which purge it was looked at.
    pub(super) fn checked(&self) -> u64 {
        self.checked.load(Ordering::Acquire)
    }

    /// Notes that it was looked at up to this purge; gives up to which it was before.
    pub(super) fn check_until(&self, epoch: u64) -> u64 {
        self.checked.fetch_max(epoch, Ordering::AcqRel)
    }
}

/// The stored responses of one resource, the newest first.
#[derive(Clone)]
pub(crate) enum Variants {
    /// Almost always.
    One(Arc<Entry>),
    /// Told apart by `Vary`.
    Many(Arc<Vec<Arc<Entry>>>),
}

impl Variants {
    /// All of them, the newest first.
    pub(crate) fn iter(&self) -> std::slice::Iter<'_, Arc<Entry>> {
        match self {
            Self::One(entry) => std::slice::from_ref(entry).iter(),
            Self::Many(entries) => entries.iter(),
        }
    }

    /// The newest for which `matches` holds.
    pub(crate) fn find(&self, matches: impl Fn(&Entry) -> bool) -> Option<&Arc<Entry>> {
        self.iter().find(|entry| matches(entry))
    }

    /// Of these; `None` if there are none.
    pub(super) fn of(mut entries: Vec<Arc<Entry>>) -> Option<Self> {
        match entries.len() {
            0 => None,
            1 => entries.pop().map(Self::One),
            _ => {
                entries.shrink_to_fit();
                Some(Self::Many(Arc::new(entries)))
            }
        }
    }

    pub(super) fn useful_until(&self) -> u32 {
        self.iter().map(|entry| entry.times.useful_until).max().unwrap_or(0)
    }

    pub(super) fn key_text(&self) -> &[u8] {
        self.iter().next().map_or(&[], |entry| entry.key_text())
    }
}

#[cfg(test)]
pub(crate) mod tests;
