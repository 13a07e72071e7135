//! What is kept of a response comes back as it was, and is counted.

use super::*;
use crate::http1::HeaderCase;
use http_body::Body as _;

/// A response to try things with.
pub(crate) struct Sample {
    pub(crate) key: String,
    pub(crate) selector: String,
    pub(crate) tags: Vec<&'static str>,
    pub(crate) headers: HeaderMap,
    pub(crate) useful_until: u32,
    pub(crate) case: Option<HeaderCase>,
}

impl Sample {
    pub(crate) fn new(key: &str) -> Self {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("content-type", "application/json"),
            ("cache-control", "public, max-age=60"),
            ("date", "Sun, 22 Nov 2026 01:02:03 GMT"),
            ("etag", "\"33a64df551425fcc55e4d42a148795d9\""),
            ("content-length", "1024"),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        Self {
            key: key.to_owned(),
            selector: String::new(),
            tags: Vec::new(),
            headers,
            useful_until: u32::MAX,
            case: None,
        }
    }

    pub(crate) fn with<T>(&self, make: impl FnOnce(&Draft<'_>) -> T) -> T {
        let tags: Vec<_> = self.tags.iter().map(|tag| tag.as_bytes()).collect();
        let fields = listed(&self.headers, |_| true);
        make(&Draft {
            key: Key::new(self.key.as_bytes()),
            selector: self.selector.as_bytes(),
            tags: &tags,
            status: StatusCode::OK,
            fields: &fields,
            case: self.case.as_ref(),
            times: Times { useful_until: self.useful_until, ..Times::default() },
            extent: None,
            flags: 0,
        })
    }

    pub(crate) fn head(&self) -> Entry {
        self.head_since(0)
    }

    pub(crate) fn head_since(&self, epoch: u64) -> Entry {
        self.with(|draft| Entry::head(draft, epoch)).expect("is small")
    }

    pub(crate) fn entry(&self, body: impl Into<Bytes>) -> Entry {
        self.entry_since(0, body)
    }

    pub(crate) fn entry_since(&self, epoch: u64, body: impl Into<Bytes>) -> Entry {
        let body = body.into();
        self.head_since(epoch).with_body(body.len(), [&body], None).expect("is small")
    }
}

#[test]
fn everything_comes_back_as_it_was_but_the_length() {
    let mut sample = Sample::new("shop/products");
    sample.selector = "accept-encoding: gzip".to_owned();
    sample.tags = vec!["product", "p:17"];
    sample.headers.append("link", HeaderValue::from_static("</a>"));
    sample.headers.append("link", HeaderValue::from_bytes(b"</\xff>").expect("opaque bytes are allowed"));
    sample.headers.insert("x-empty", HeaderValue::from_static(""));
    let entry = sample.entry("hello");
    assert_eq!(entry.key().text(), b"shop/products");
    assert_eq!(entry.selector(), b"accept-encoding: gzip");
    assert_eq!(entry.tags().collect::<Vec<_>>(), [&b"product"[..], b"p:17"]);
    sample.headers.remove("content-length");
    assert_eq!(entry.headers(), sample.headers);
    assert_eq!((entry.bytes(), entry.length()), (Bytes::from("hello"), 5));
    assert_eq!(entry.field(&header::CONTENT_TYPE), Some(&b"application/json"[..]));
    assert_eq!(entry.field(&header::CONTENT_LENGTH), None);
    assert!(entry.trailers().is_none() && matches!(entry.body(), Body::Full(body) if body == "hello"));
}

#[test]
fn fields_lie_as_http1_writes_them() {
    let mut sample = Sample::new("k");
    sample.headers.clear();
    sample.headers.insert("content-type", HeaderValue::from_static("text/plain"));
    sample.headers.insert("etag", HeaderValue::from_static("\"a\""));
    assert_eq!(sample.entry("").wire(), b"Content-Type: text/plain\r\nETag: \"a\"\r\n");
    let lower = HeaderValue::from_static("*");
    sample.case = HeaderCase::from_header_value(&lower);
    let entry = sample.entry("");
    assert_eq!(entry.wire(), b"content-type: text/plain\r\netag: \"a\"\r\n");
    assert_eq!(entry.case(), sample.case.as_ref());
    assert_eq!(entry.headers(), sample.headers);
}

#[test]
fn a_304_changes_the_head_and_shares_body_and_trailers() {
    let mut sample = Sample::new("k");
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    let body = Bytes::from("hello");
    let old = sample.head().with_body(5, [&body], Some(&trailers)).expect("is small");
    sample.headers.insert("etag", HeaderValue::from_static("\"new\""));
    let mut entry = sample.with(|draft| old.refreshed(draft, 0)).expect("is small");
    let once = entry.size();
    for _ in 0..3 {
        entry = sample.with(|draft| entry.refreshed(draft, 0)).expect("is small");
        assert_eq!(entry.field(&header::ETAG), Some(&b"\"new\""[..]));
        assert_eq!((entry.bytes(), entry.trailers()), (body.clone(), Some(trailers.clone())));
        assert_eq!(entry.bytes().as_ptr(), old.bytes().as_ptr());
        // What it shares is counted, and does not grow.
        assert_eq!(entry.size(), once);
    }
    assert!(once > old.size());
    assert!(!entry.body().is_end_stream());
}

#[test]
fn a_head_that_is_too_long_is_not_kept() {
    let mut sample = Sample::new("k");
    let long = vec![b'x'; 70_000];
    sample.headers.insert("x-long", HeaderValue::from_bytes(&long).expect("is valid"));
    assert!(sample.with(|draft| Entry::head(draft, 0)).is_none());
    let sample = Sample::new(&"k".repeat(70_000));
    assert!(sample.with(|draft| Entry::head(draft, 0)).is_none());
}

#[test]
fn a_kibibyte_costs_at_most_half_as_much_again() {
    let mut sample = Sample::new("GET http://products.shop:8080/api/products/1234567890?lang=en");
    sample.tags = vec!["p:1234567890"];
    let entry = sample.entry(vec![b'x'; 1024]);
    let overhead = entry.size() - 1024;
    assert!(overhead <= 512, "{overhead} bytes");
}

#[test]
fn keys_differ_by_text_alone() {
    assert_eq!(Key::new(b"a").hash(), Key::new(b"a").hash());
    assert_ne!(Key::new(b"a").hash(), Key::new(b"b").hash());
}
