//! An answer in the form in which it is kept, ready to be written.

use super::{
    entry::Entry,
    status::{Report, set_age},
};
use crate::{body::Body, http1::HeaderCase};
use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use std::sync::Arc;

/// What is kept of an answer, as the body of the answer that it makes: HTTP/1 writes fields and data as they lie there,
/// so that a hit builds no map. Fields that are in the response's own map are written as well.
///
/// The fields in it are out of everybody's sight. Whoever wants to see or change them [unfolds](unfold) the response
/// first; a protocol that has no such form of them does the same.
pub(crate) struct Stored {
    entry: Arc<Entry>,
    /// The name of this cache.
    cache: &'static str,
    age: u32,
    /// How much longer it is fresh.
    ttl: u32,
}

impl Stored {
    /// Only for entries without trailers: they need a body of their own.
    pub(super) fn new(entry: Arc<Entry>, age: u32, ttl: i64, cache: &'static str) -> Self {
        debug_assert!(!entry.has_trailers());
        Self { entry, cache, age, ttl: u32::try_from(ttl).unwrap_or(0) }
    }

    fn report(&self) -> Report {
        Report::hit(self.ttl.into())
    }

    /// How the origin spelled its fields.
    pub(crate) fn case(&self) -> Option<&HeaderCase> {
        self.entry.case()
    }

    /// Writes all fields but those that say how long the body is.
    pub(crate) fn write_fields(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.entry.wire());
        let lower = self.case().is_some_and(HeaderCase::is_lower);
        let [age, status]: [&[u8]; 2] =
            if lower { [b"age: ", b"cache-status: "] } else { [b"Age: ", b"Cache-Status: "] };
        out.extend_from_slice(age);
        out.extend_from_slice(itoa::Buffer::new().format(self.age).as_bytes());
        out.extend_from_slice(b"\r\n");
        out.extend_from_slice(status);
        self.report().write(self.cache, |bytes| out.extend_from_slice(bytes));
        out.extend_from_slice(b"\r\n");
    }

    /// The body's bytes, not shared.
    pub(crate) fn data(&self) -> &[u8] {
        self.entry.data()
    }

    /// The body's bytes, shared.
    pub(crate) fn bytes(&self) -> Bytes {
        self.entry.bytes()
    }
}

/// Takes an answer out of the form in which it is kept, if it is in it: its fields go into the map.
pub(crate) fn unfold(response: &mut Response<Body>) {
    if !matches!(response.body(), Body::Stored(_)) {
        return;
    }
    let Body::Stored(stored) = std::mem::replace(response.body_mut(), Body::Empty) else { return };
    let mut headers = stored.entry.headers();
    set_age(&mut headers, stored.age);
    stored.report().add_to(&mut headers, stored.cache);
    if !matches!(response.status(), StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED) {
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(stored.entry.length()));
    }
    // What is in the map already was said after it.
    let mut last = None;
    for (name, value) in std::mem::take(response.headers_mut()) {
        last = name.or(last);
        if let Some(name) = &last {
            headers.append(name.clone(), value);
        }
    }
    *response.headers_mut() = headers;
    if let Some(case) = stored.case() {
        response.extensions_mut().insert(case.clone());
    }
    *response.body_mut() = Body::full(stored.bytes());
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::cache::entry::tests::Sample;

    /// An answer out of the cache, with fields of its own.
    pub(crate) fn hit(body: &'static str, lower: bool) -> Response<Body> {
        let mut sample = Sample::new("k");
        for name in ["cache-control", "date"] {
            sample.headers.remove(name);
        }
        sample.headers.insert(header::ETAG, HeaderValue::from_static("\"a\""));
        sample.case = lower.then(|| HeaderCase::from_header_value(&HeaderValue::from_static("*"))).flatten();
        let stored = Stored::new(Arc::new(sample.entry(body)), 7, 53, "weft");
        let mut response = Response::new(Body::Stored(stored));
        response.headers_mut().insert("x-own", HeaderValue::from_static("1"));
        response
    }

    #[test]
    fn unfolded_it_is_an_answer_like_any_other() {
        let mut response = hit("abc", true);
        response.headers_mut().append("cache-status", HeaderValue::from_static("farther"));
        unfold(&mut response);
        let fields: Vec<_> =
            response.headers().iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
        assert_eq!(
            fields,
            [
                ("content-type", "application/json"),
                ("etag", "\"a\""),
                ("age", "7"),
                ("cache-status", "weft; hit; ttl=53"),
                ("cache-status", "farther"),
                ("content-length", "3"),
                ("x-own", "1"),
            ]
        );
        assert!(response.extensions().get::<HeaderCase>().is_some_and(HeaderCase::is_lower));
        assert!(matches!(response.body(), Body::Full(bytes) if bytes == "abc"));
    }

    #[test]
    fn what_never_has_a_body_is_said_to_have_no_length() {
        let mut response = hit("", false);
        *response.status_mut() = StatusCode::NO_CONTENT;
        unfold(&mut response);
        assert!(!response.headers().contains_key(header::CONTENT_LENGTH));
    }
}
