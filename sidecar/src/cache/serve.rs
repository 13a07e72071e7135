//! Makes an answer of what is kept: whole, a part, or only that nothing changed.

use super::{
    Cache,
    body::{pieces, stretch},
    conditional::{self, Condition, Validators},
    entry::Entry,
    freshness::Terms,
    keep::joined,
    range::{self, Piece, Ranges, Wanted},
    siblings::OfSibling,
    status::{self, Report},
    stored::Stored,
};
use crate::body::Body;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, Version, header, request::Parts};
use http_body::Body as _;
use smallvec::SmallVec;
use std::sync::Arc;

impl Cache {
    /// The answer to a request by an entry that is for it, with what `report` says of how it came about.
    pub(super) fn serve(
        &self,
        request: &Parts,
        entry: &Entry,
        terms: &Terms,
        now: u32,
        mut report: Report,
    ) -> Response<Body> {
        let mut answer = Answer::of(request, entry);
        if let Some(ranges) = answer.ranges(request, entry) {
            answer.part(entry, &ranges, 0, entry.length() as u64);
        }
        report.ttl = Some(terms.left(now));
        answer.finish(self, request, terms.age(now), &report)
    }

    /// The answer to a GET or HEAD without conditions that wants all of a fresh entry: as it lies there.
    pub(super) fn serve_whole(&self, entry: Arc<Entry>, terms: &Terms, now: u32) -> Response<Body> {
        let status = entry.status();
        let stored = Stored::new(entry, terms.age(now), terms.left(now), self.name);
        let mut response = Response::new(Body::Stored(stored));
        *response.status_mut() = status;
        response
    }

    /// The answer by a part that is kept.
    pub(super) fn serve_part(
        &self,
        request: &Parts,
        entry: &Entry,
        terms: &Terms,
        ranges: &Ranges,
        now: u32,
    ) -> Response<Body> {
        let mut answer =
            Answer { status: StatusCode::OK, headers: entry.headers(), body: Body::Empty, entry };
        let (start, complete) = match entry.extent() {
            Some(extent) => (extent.start, extent.complete.unwrap_or_default()),
            None => (0, entry.length() as u64),
        };
        answer.part(entry, ranges, start, complete);
        answer.finish(self, request, terms.age(now), &Report::hit(terms.left(now)))
    }

    /// The answer by a response whose head is here and whose body is on its way.
    pub(super) fn serve_coming(
        &self,
        request: &Parts,
        head: &Entry,
        body: Body,
        terms: &Terms,
        now: u32,
        mut report: Report,
    ) -> Response<Body> {
        let mut answer =
            Answer { status: head.status(), headers: head.headers(), body: Body::Empty, entry: head };
        if !answer.has_not_changed(request) {
            let (status, headers) = (&mut answer.status, &mut answer.headers);
            answer.body = part_coming(request, status, headers, body, head.times().received);
            if request.version == Version::HTTP_2
                && let Some(length) = answer.body.size_hint().exact()
            {
                answer.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
            }
        }
        report.ttl = Some(terms.left(now));
        answer.finish(self, request, terms.age(now), &report)
    }
}

impl Cache {
    /// Puts labels back that were taken away when an answer was kept.
    fn tag(&self, entry: &Entry, headers: &mut HeaderMap) {
        let Some(tags) = self.rules.tags.as_ref().filter(|tags| tags.strip) else { return };
        let all: SmallVec<[&[u8]; 8]> = entry.tags().collect();
        if let Some(all) = joined(&all) {
            headers.insert(tags.header.clone(), all);
        }
    }
}

/// Makes a 200 whose body is here or on its way, and of a known length, the one part of it that a request asks for, or
/// a 416. Whoever asks for several parts gets the whole (RFC 9110 section 14.2 leaves that open).
pub(super) fn part_coming(
    request: &Parts,
    status: &mut StatusCode,
    headers: &mut HeaderMap,
    body: Body,
    received: u32,
) -> Body {
    if *status != StatusCode::OK || !request.headers.contains_key(header::RANGE) {
        return body;
    }
    let Some(length) = body.size_hint().exact() else { return body };
    let stored = Validators::of(headers, received);
    match range::wanted(&request.method, &request.headers, &stored, length) {
        Wanted::Whole => body,
        Wanted::Parts(ranges) => match &ranges[..] {
            [range] => {
                let partial = range::partial(headers, &ranges, length, 0);
                headers.insert(header::CONTENT_LENGTH, HeaderValue::from(partial.content_length));
                *status = StatusCode::PARTIAL_CONTENT;
                stretch(body, range)
            }
            _ => body,
        },
        Wanted::Nothing => {
            *status = StatusCode::RANGE_NOT_SATISFIABLE;
            *headers = range::unsatisfiable(length);
            Body::Empty
        }
    }
}

/// An answer in the making.
struct Answer<'a> {
    status: StatusCode,
    headers: HeaderMap,
    body: Body,
    entry: &'a Entry,
}

impl<'a> Answer<'a> {
    /// All of an entry, or that it has not changed.
    fn of(request: &Parts, entry: &'a Entry) -> Self {
        let mut answer = Self { status: entry.status(), headers: entry.headers(), body: Body::Empty, entry };
        if answer.has_not_changed(request) {
            return answer;
        }
        let bodiless = matches!(entry.status(), StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        // HTTP/1 sees the length by the body.
        if !bodiless && (request.method == Method::HEAD || request.version == Version::HTTP_2) {
            answer.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(entry.length()));
        }
        if request.method != Method::HEAD {
            answer.body = entry.body();
        }
        answer
    }

    /// Makes it a 304 if the client has it already.
    fn has_not_changed(&mut self, request: &Parts) -> bool {
        if !conditional::is_conditional(&request.headers) {
            return false;
        }
        let stored = Validators::of(&self.headers, self.entry.times().received);
        let condition = conditional::evaluate(&request.method, &request.headers, self.status, &stored);
        if condition == Condition::Give {
            return false;
        }
        self.headers = conditional::not_modified(&self.headers);
        self.status = StatusCode::NOT_MODIFIED;
        true
    }

    /// The parts that a request wants of a whole that is here; makes it a 416 if there is no such part.
    fn ranges(&mut self, request: &Parts, entry: &Entry) -> Option<Ranges> {
        if self.status != StatusCode::OK || !request.headers.contains_key(header::RANGE) {
            return None;
        }
        let length = entry.length() as u64;
        let stored = Validators::of(&self.headers, entry.times().received);
        match range::wanted(&request.method, &request.headers, &stored, length) {
            Wanted::Whole => None,
            Wanted::Parts(ranges) => Some(ranges),
            Wanted::Nothing => {
                self.status = StatusCode::RANGE_NOT_SATISFIABLE;
                self.headers = range::unsatisfiable(length);
                self.body = Body::Empty;
                None
            }
        }
    }

    /// Makes it a 206. The entry's bytes begin at `start` of a whole of `complete`.
    fn part(&mut self, entry: &Entry, ranges: &Ranges, start: u64, complete: u64) {
        let boundary = (u128::from(fastrand::u64(..)) << 64) | u128::from(fastrand::u64(..));
        self.headers.remove(header::CONTENT_LENGTH);
        let partial = range::partial(&mut self.headers, ranges, complete, boundary);
        let stored = entry.bytes();
        let slice = |range: std::ops::Range<u64>| -> Bytes {
            let at = |offset: u64| (offset.saturating_sub(start) as usize).min(stored.len());
            stored.slice(at(range.start)..at(range.end))
        };
        self.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(partial.content_length));
        self.body = pieces(partial.pieces.into_iter().map(|piece| match piece {
            Piece::Bytes(bytes) => bytes,
            Piece::Stored(range) => slice(range),
        }));
        self.status = StatusCode::PARTIAL_CONTENT;
    }

    fn finish(mut self, cache: &Cache, request: &Parts, age: u32, report: &Report) -> Response<Body> {
        if OfSibling::is(request) {
            cache.tag(self.entry, &mut self.headers);
        }
        status::set_age(&mut self.headers, age);
        report.add_to(&mut self.headers, cache.name(request));
        let mut response = Response::new(self.body);
        *response.status_mut() = self.status;
        *response.headers_mut() = self.headers;
        if let Some(case) = self.entry.case() {
            response.extensions_mut().insert(case.clone());
        }
        response
    }
}
