//! Conditional requests: those of clients against what is stored, and our own that ask whether it is still so
//! (RFC 9110 section 13, RFC 9111 section 4.3).

use super::date;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use smallvec::SmallVec;

/// What tells one state of a resource from another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Validators<'a> {
    pub(crate) etag: Option<&'a [u8]>,
    pub(crate) last_modified: Option<&'a [u8]>,
    pub(crate) date: Option<&'a [u8]>,
    /// When it came, in seconds since 1970.
    pub(crate) received: u32,
}

impl<'a> Validators<'a> {
    /// Those of a response.
    pub(crate) fn of(headers: &'a HeaderMap, received: u32) -> Self {
        let field = |name| headers.get(name).map(HeaderValue::as_bytes);
        Self {
            // One without text names nothing, and cannot be asked by.
            etag: field(header::ETAG).filter(|etag| !etag.is_empty()),
            last_modified: field(header::LAST_MODIFIED),
            date: field(header::DATE),
            received,
        }
    }

    /// True if there is something to ask by.
    pub(crate) fn any(&self) -> bool {
        self.etag.is_some() || self.modified().is_some()
    }

    fn modified(&self) -> Option<u64> {
        date::parse(self.last_modified?, self.received)
    }

    /// True if two responses with these are the same byte for byte: a strong `ETag`, or a `Last-Modified` of at least
    /// a second before `Date` (RFC 9110 section 8.8.2.2).
    pub(crate) fn strong(&self) -> Option<Strong<'a>> {
        if let Some(etag) = self.etag {
            return (!is_weak(etag)).then_some(Strong::Tag(etag));
        }
        self.strong_date().map(Strong::Date)
    }

    pub(super) fn strong_date(&self) -> Option<u64> {
        let made = self.date.and_then(|date| date::parse(date, self.received))?;
        self.modified().filter(|modified| *modified < made)
    }
}

/// A strong validator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Strong<'a> {
    Tag(&'a [u8]),
    Date(u64),
}

fn is_weak(etag: &[u8]) -> bool {
    etag.starts_with(b"W/")
}

/// The part of an entity tag that weak comparison looks at (RFC 9110 section 8.8.3.2).
fn opaque(etag: &[u8]) -> &[u8] {
    etag.strip_prefix(b"W/").unwrap_or(etag)
}

/// The strong comparison: equal, and none weak.
pub(super) fn same_strong(a: &[u8], b: &[u8]) -> bool {
    a == b && !is_weak(a)
}

/// What follows from a client's conditions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Condition {
    /// There is none, or it lets the response be given.
    Give,
    /// The client has it already: 304.
    NotModified,
}

/// True if only the origin can answer (RFC 9111 section 4.3.2).
pub(crate) fn is_for_origin(request: &HeaderMap) -> bool {
    request.contains_key(header::IF_MATCH) || request.contains_key(header::IF_UNMODIFIED_SINCE)
}

/// True if a request has a condition of a client who keeps answers itself.
pub(crate) fn is_conditional(request: &HeaderMap) -> bool {
    request.contains_key(header::IF_NONE_MATCH) || request.contains_key(header::IF_MODIFIED_SINCE)
}

/// Evaluates a client's conditions against a response that may be given.
pub(crate) fn evaluate(
    method: &Method,
    request: &HeaderMap,
    status: StatusCode,
    stored: &Validators<'_>,
) -> Condition {
    // Conditions are about representations, and only these are (RFC 9111 section 4.3.2).
    if !matches!(status, StatusCode::OK | StatusCode::PARTIAL_CONTENT)
        || !matches!(*method, Method::GET | Method::HEAD)
    {
        return Condition::Give;
    }
    let not_modified = if request.contains_key(header::IF_NONE_MATCH) {
        // RFC 9110 section 13.1.2; If-Modified-Since is ignored beside it (section 13.2.2).
        names(request, stored.etag)
    } else {
        since(request, stored)
    };
    if not_modified { Condition::NotModified } else { Condition::Give }
}

/// True if `If-None-Match` names this tag, by weak comparison, or everything.
fn names(request: &HeaderMap, etag: Option<&[u8]>) -> bool {
    request.get_all(header::IF_NONE_MATCH).iter().any(|line| {
        let line = line.as_bytes().trim_ascii();
        line == b"*" || etag.is_some_and(|etag| tags(line).any(|tag| opaque(tag) == opaque(etag)))
    })
}

/// The entity tags of a list. Their texts may hold commas; what has no quotes ends at one.
fn tags(mut list: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let start = list.iter().position(|byte| !matches!(byte, b',' | b' ' | b'\t'))?;
        list = &list[start..];
        let quote = list.len() - opaque(list).len();
        let end = match list.get(quote) {
            Some(b'"') => list[quote + 1..].iter().position(|byte| *byte == b'"').map(|end| quote + end + 2),
            _ => None,
        };
        let end = end.unwrap_or_else(|| list.iter().position(|byte| *byte == b',').unwrap_or(list.len()));
        let (tag, rest) = list.split_at(end);
        list = rest;
        Some(tag.trim_ascii_end())
    })
}

/// True if nothing changed after `If-Modified-Since` (RFC 9110 section 13.1.3).
fn since(request: &HeaderMap, stored: &Validators<'_>) -> bool {
    let mut lines = request.get_all(header::IF_MODIFIED_SINCE).iter();
    let (Some(line), None) = (lines.next(), lines.next()) else { return false };
    let Some(since) = date::parse(line.as_bytes(), stored.received) else { return false };
    // Without Last-Modified the Date stands for it, and without that the moment it came (RFC 9111 section 4.3.2).
    let made = || stored.date.and_then(|date| date::parse(date, stored.received));
    stored.modified().or_else(made).unwrap_or(stored.received.into()) <= since
}

/// What a 304 has of the response that it stands for (RFC 9110 section 15.4.5).
const OF_NOT_MODIFIED: [HeaderName; 8] = [
    header::CACHE_CONTROL,
    header::CONTENT_LOCATION,
    header::DATE,
    header::ETAG,
    header::EXPIRES,
    header::VARY,
    HeaderName::from_static("cdn-cache-control"),
    HeaderName::from_static("weft-cache-control"),
];

/// The fields of a 304 in place of a stored response; `Age` and the like come on top of them.
pub(crate) fn not_modified(stored: &HeaderMap) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(OF_NOT_MODIFIED.len() + 2);
    let mut copy = |name: &HeaderName| {
        for value in stored.get_all(name) {
            headers.append(name.clone(), value.clone());
        }
    };
    OF_NOT_MODIFIED.iter().for_each(&mut copy);
    if !stored.contains_key(header::ETAG) {
        copy(&header::LAST_MODIFIED);
    }
    headers
}

/// Fields of a request that make it conditional or about a part.
const CONDITIONS: [HeaderName; 6] = [
    header::IF_NONE_MATCH,
    header::IF_MODIFIED_SINCE,
    header::IF_MATCH,
    header::IF_UNMODIFIED_SINCE,
    header::IF_RANGE,
    header::RANGE,
];

/// Makes a request for the whole of a resource of one that a client's own conditions are on.
pub(crate) fn make_plain(request: &mut HeaderMap) {
    for name in &CONDITIONS {
        request.remove(name);
    }
}

/// Makes a request ask whether one of the stored responses is still so (RFC 9111 section 4.3.1). The client's own
/// conditions are left out: they are evaluated against what comes of it. False if there is nothing to ask by.
pub(crate) fn ask(request: &mut HeaderMap, stored: &[Validators<'_>]) -> bool {
    make_plain(request);
    let mut list = Vec::new();
    for etag in stored.iter().filter_map(|stored| stored.etag) {
        if !list.is_empty() {
            list.extend_from_slice(b", ");
        }
        list.extend_from_slice(etag);
    }
    if !list.is_empty()
        && let Ok(list) = HeaderValue::from_maybe_shared(bytes::Bytes::from(list))
    {
        request.insert(header::IF_NONE_MATCH, list);
    }
    // A date is about one response only.
    if let [one] = stored
        && one.modified().is_some()
        && let Some(Ok(date)) = one.last_modified.map(HeaderValue::from_bytes)
    {
        request.insert(header::IF_MODIFIED_SINCE, date);
    }
    request.contains_key(header::IF_NONE_MATCH) || request.contains_key(header::IF_MODIFIED_SINCE)
}

/// Which of the stored responses that were asked about a 304 is for (RFC 9111 section 4.3.4): their indices. None: the
/// origin speaks of something that is not here.
pub(crate) fn confirmed(new: &HeaderMap, stored: &[Validators<'_>], received: u32) -> SmallVec<[usize; 4]> {
    let new = Validators::of(new, received);
    let which = |fits: &dyn Fn(&Validators<'_>) -> bool| -> SmallVec<[usize; 4]> {
        stored.iter().enumerate().filter(|(_, stored)| fits(stored)).map(|(at, _)| at).collect()
    };
    if let Some(etag) = new.etag {
        if !is_weak(etag) {
            // Every one with that tag; also one that kept it weak, which the origin was asked by and says is meant.
            let same = which(&|stored| stored.etag == Some(etag));
            if !same.is_empty() {
                return same;
            }
        }
        // The newest with a tag that means the same; they come newest first.
        let mut alike = which(&|stored| stored.etag.is_some_and(|own| opaque(own) == opaque(etag)));
        alike.truncate(1);
        return alike;
    }
    if let Some(modified) = new.modified() {
        let mut same = which(&|stored| stored.modified() == Some(modified));
        same.truncate(1);
        if !same.is_empty() {
            return same;
        }
        // A tag was asked by, and a date alone comes back: it must not be another one's.
        return which(&|only| stored.len() == 1 && only.modified().is_none());
    }
    // Without a validator it can only be about the one that was asked about.
    if stored.len() == 1 { SmallVec::from_slice(&[0]) } else { SmallVec::new() }
}

/// Fields that belong to the stored body or to the message that came, not to the resource (RFC 9111 section 3.2).
const KEPT: [HeaderName; 8] = [
    header::AGE,
    header::CONTENT_ENCODING,
    header::CONTENT_LENGTH,
    header::CONTENT_RANGE,
    header::SET_COOKIE,
    header::TRAILER,
    HeaderName::from_static("content-md5"),
    HeaderName::from_static("content-digest"),
];

/// A stored response's fields as a 304 or a HEAD changes them: each field that is there replaces all lines of that name.
/// `new` is what is kept of its fields.
pub(crate) fn updated(stored: &HeaderMap, new: &HeaderMap) -> HeaderMap {
    let mut headers = stored.clone();
    for name in new.keys().filter(|name| !KEPT.contains(name)) {
        headers.remove(name);
        for value in new.get_all(name) {
            headers.append(name.clone(), value.clone());
        }
    }
    headers
}

/// What the answer to a HEAD says of the stored answer to a GET (RFC 9111 section 4.3.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AfterHead {
    /// It is still so: its fields are [`updated`].
    Update,
    /// It is not: it must be asked about before it is given again.
    Outdate,
    /// Nothing.
    Nothing,
}

/// Compares the two.
pub(crate) fn after_head(
    status: StatusCode,
    new: &HeaderMap,
    stored_status: StatusCode,
    stored: &Validators<'_>,
    stored_length: u64,
) -> AfterHead {
    if status != StatusCode::OK || stored_status != StatusCode::OK {
        return AfterHead::Nothing;
    }
    let fresh = Validators::of(new, stored.received);
    let differs = |a: Option<&[u8]>, b: Option<&[u8]>| a.is_some() && a != b;
    let length = new.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if differs(fresh.etag, stored.etag)
        || differs(fresh.last_modified, stored.last_modified)
        || length.is_some_and(|length| length != stored_length)
    {
        return AfterHead::Outdate;
    }
    AfterHead::Update
}

#[cfg(test)]
mod tests;
