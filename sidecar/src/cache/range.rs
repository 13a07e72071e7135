//! Parts of responses (RFC 9110 section 14): giving them from what is stored, and putting them together.

use super::conditional::{Strong, Validators, same_strong};
use super::{date, entry::Extent};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, header};
use smallvec::SmallVec;
use std::ops::Range;

/// More ranges than this are no honest wish: the whole is given (RFC 9110 section 14.2).
const RANGES_MAX: usize = 32;

/// Ranges within a body, each not empty.
pub(crate) type Ranges = SmallVec<[Range<u64>; 2]>;

/// What a request asks for of a body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// All of it: there is no `Range`, or none that counts.
    Whole,
    /// These parts, in the order in which they are asked for.
    Parts(Ranges),
    /// Nothing that there is: 416.
    Nothing,
}

/// What a GET asks for of a body of this length, if that is what `If-Range` means.
pub(crate) fn wanted(method: &Method, request: &HeaderMap, stored: &Validators<'_>, length: u64) -> Wanted {
    // Section 14.2: for GET only. Two lines are no range.
    let mut lines = request.get_all(header::RANGE).iter();
    let (Some(range), None) = (lines.next(), lines.next()) else { return Wanted::Whole };
    if *method != Method::GET || !if_range(request, stored) {
        return Wanted::Whole;
    }
    parse(range.as_bytes(), length).unwrap_or(Wanted::Whole)
}

/// Whether a part would be one of what the client has (section 13.1.5): strong comparison only.
pub(crate) fn if_range(request: &HeaderMap, stored: &Validators<'_>) -> bool {
    let Some(value) = request.get(header::IF_RANGE) else { return true };
    let value = value.as_bytes().trim_ascii();
    if value.starts_with(b"\"") || value.starts_with(b"W/") {
        return stored.etag.is_some_and(|etag| same_strong(etag, value));
    }
    let wanted = date::parse(value, stored.received);
    wanted.is_some() && wanted == stored.strong_date()
}

/// `None` if it is no range that is understood.
fn parse(value: &[u8], length: u64) -> Option<Wanted> {
    let equals = value.iter().position(|byte| *byte == b'=')?;
    if !value[..equals].eq_ignore_ascii_case(b"bytes") {
        return None;
    }
    let mut ranges = Ranges::new();
    let mut any = 0;
    for spec in value[equals + 1..].split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
        if spec.is_empty() {
            continue;
        }
        any += 1;
        if any > RANGES_MAX {
            return None;
        }
        let dash = spec.iter().position(|byte| *byte == b'-')?;
        let (first, last) = (number(&spec[..dash])?, number(&spec[dash + 1..])?);
        let range = match (first, last) {
            (None, None) => return None,
            (Some(first), Some(last)) if first > last => return None,
            (Some(first), last) => first..last.map_or(length, |last| last.saturating_add(1).min(length)),
            (None, Some(last)) => length.saturating_sub(last)..length,
        };
        if range.start < range.end {
            ranges.push(range);
        }
    }
    if any == 0 {
        return None;
    }
    if ranges.is_empty() {
        return Some(Wanted::Nothing);
    }
    Some(Wanted::Parts(untangled(ranges)))
}

/// A number; `Some(None)` for none at all.
fn number(digits: &[u8]) -> Option<Option<u64>> {
    if digits.is_empty() {
        return Some(None);
    }
    let add = |sum: u64, byte: &u8| {
        let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'))?;
        Some(sum.saturating_mul(10).saturating_add(digit))
    };
    digits.iter().try_fold(0, add).map(Some)
}

/// Ranges that overlap become one each, so that nothing is sent twice (section 15.3.7.2).
fn untangled(ranges: Ranges) -> Ranges {
    let mut sorted = ranges.clone();
    sorted.sort_unstable_by_key(|range| range.start);
    if sorted.windows(2).all(|pair| pair[0].end <= pair[1].start) {
        return ranges;
    }
    let mut merged = Ranges::new();
    for range in sorted {
        match merged.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => merged.push(range),
        }
    }
    merged
}

/// A piece of the body of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Piece {
    /// These very bytes.
    Bytes(Bytes),
    /// A range of what is stored.
    Stored(Range<u64>),
}

/// A 206: what is other than in the stored 200.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Partial {
    pub(crate) pieces: SmallVec<[Piece; 2]>,
    pub(crate) content_length: u64,
}

/// Makes the head of a 200 that of a 206 for these parts (section 15.3.7). `boundary` separates several parts; it should
/// be one that nobody can foresee.
pub(crate) fn partial(headers: &mut HeaderMap, ranges: &Ranges, length: u64, boundary: u128) -> Partial {
    if let [range] = &ranges[..] {
        headers.insert(header::CONTENT_RANGE, content_range(range, length));
        let pieces = SmallVec::from_iter([Piece::Stored(range.clone())]);
        return Partial { pieces, content_length: range.end - range.start };
    }
    let content_type = headers.get(header::CONTENT_TYPE).cloned();
    let mut pieces = SmallVec::new();
    let mut content_length = 0;
    for (at, range) in ranges.iter().enumerate() {
        let mut part = Vec::with_capacity(160);
        part.extend_from_slice(if at == 0 { b"--" } else { b"\r\n--" });
        part.extend_from_slice(format!("{boundary:032x}\r\n").as_bytes());
        if let Some(content_type) = &content_type {
            part.extend_from_slice(b"content-type: ");
            part.extend_from_slice(content_type.as_bytes());
            part.extend_from_slice(b"\r\n");
        }
        part.extend_from_slice(b"content-range: ");
        part.extend_from_slice(content_range(range, length).as_bytes());
        part.extend_from_slice(b"\r\n\r\n");
        content_length += part.len() as u64 + (range.end - range.start);
        pieces.push(Piece::Bytes(part.into()));
        pieces.push(Piece::Stored(range.clone()));
    }
    let end = format!("\r\n--{boundary:032x}--\r\n");
    content_length += end.len() as u64;
    pieces.push(Piece::Bytes(end.into()));
    headers.remove(header::CONTENT_RANGE);
    headers.insert(header::CONTENT_TYPE, text(format!("multipart/byteranges; boundary={boundary:032x}")));
    Partial { pieces, content_length }
}

/// The head of a 416 (section 15.5.17), which has no body.
pub(crate) fn unsatisfiable(length: u64) -> HeaderMap {
    HeaderMap::from_iter([(header::CONTENT_RANGE, text(format!("bytes */{length}")))])
}

fn content_range(range: &Range<u64>, length: u64) -> HeaderValue {
    text(format!("bytes {}-{}/{length}", range.start, range.end - 1))
}

/// Text that is made of visible ASCII only.
fn text(text: String) -> HeaderValue {
    HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static(""))
}

/// A stretch of a representation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) range: Range<u64>,
    /// How long the whole is, if that is known.
    pub(crate) complete: Option<u64>,
}

impl Part {
    /// What a 206 with one part says that it is; `None` if it cannot be told.
    pub(crate) fn of(response: &HeaderMap) -> Option<Self> {
        let mut lines = response.get_all(header::CONTENT_RANGE).iter();
        let (Some(line), None) = (lines.next(), lines.next()) else { return None };
        let (unit, rest) = line.to_str().ok()?.trim().split_once(' ')?;
        let (range, complete) = rest.trim_start().split_once('/')?;
        let (first, last) = range.split_once('-')?;
        let read = |digits: &str| number(digits.as_bytes()).flatten().filter(|number| *number < u64::MAX);
        let (first, last) = (read(first)?, read(last)?);
        let complete = if complete == "*" { None } else { Some(read(complete)?) };
        let valid = unit.eq_ignore_ascii_case("bytes")
            && first <= last
            && complete.is_none_or(|complete| last < complete);
        valid.then_some(Self { range: first..last + 1, complete })
    }

    /// What the store keeps of it; where it ends its body tells.
    pub(crate) fn extent(&self) -> Extent {
        Extent { start: self.range.start, complete: self.complete }
    }

    /// The part that a stored body of this length is.
    pub(crate) fn of_extent(extent: Extent, length: u64) -> Self {
        Self { range: extent.start..extent.start + length, complete: extent.complete }
    }

    /// Both together, if they touch and nothing speaks against their being parts of one whole (RFC 9111 section 3.4).
    /// That their strong validators are the same is for [`of_one_whole`] to say.
    pub(crate) fn with(&self, other: &Self) -> Option<Self> {
        let complete = match (self.complete, other.complete) {
            (Some(one), Some(two)) if one != two => return None,
            (one, two) => one.or(two),
        };
        let touch = self.range.start <= other.range.end && other.range.start <= self.range.end;
        let range = self.range.start.min(other.range.start)..self.range.end.max(other.range.end);
        (touch && complete.is_none_or(|complete| range.end <= complete)).then_some(Self { range, complete })
    }

    /// True if nothing is missing.
    pub(crate) fn is_whole(&self) -> bool {
        self.range.start == 0 && self.complete == Some(self.range.end)
    }

    /// What a request wants of the whole, if all of that is here.
    pub(crate) fn holds(
        &self,
        method: &Method,
        request: &HeaderMap,
        stored: &Validators<'_>,
    ) -> Option<Ranges> {
        match wanted(method, request, stored, self.complete?) {
            Wanted::Parts(ranges) => {
                let here =
                    |range: &Range<u64>| self.range.start <= range.start && range.end <= self.range.end;
                ranges.iter().all(here).then_some(ranges)
            }
            Wanted::Whole | Wanted::Nothing => None,
        }
    }
}

/// True if two responses are certainly of the same bytes (RFC 9111 section 3.4).
pub(crate) fn of_one_whole(a: &Validators<'_>, b: &Validators<'_>) -> bool {
    match (a.strong(), b.strong()) {
        (Some(Strong::Tag(a)), Some(Strong::Tag(b))) => a == b,
        (Some(Strong::Date(a)), Some(Strong::Date(b))) => a == b,
        _ => false,
    }
}

/// The fields of two parts put together: the newer ones hold, but for `Content-Range` (RFC 9111 section 3.4).
pub(crate) fn combined(stored: &HeaderMap, new: &HeaderMap, part: &Part) -> HeaderMap {
    let mut headers = stored.clone();
    for name in new.keys() {
        headers.remove(name);
        for value in new.get_all(name) {
            headers.append(name.clone(), value.clone());
        }
    }
    headers.remove(header::CONTENT_LENGTH);
    match part.complete {
        _ if part.is_whole() => {
            headers.remove(header::CONTENT_RANGE);
        }
        Some(complete) => {
            headers.insert(header::CONTENT_RANGE, content_range(&part.range, complete));
        }
        None => {
            let Range { start, end } = part.range;
            headers.insert(header::CONTENT_RANGE, text(format!("bytes {start}-{}/*", end - 1)));
        }
    }
    headers
}

#[cfg(test)]
mod tests;
