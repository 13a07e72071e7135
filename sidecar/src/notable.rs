//! Which of the fields that a sidecar acts on a request has: told by one look at all of its names, so that nobody asks
//! for those that are not there.

use http::{HeaderMap, HeaderName};
use std::ops::BitOr;

/// Groups of fields that a request may have. What is not noted is not there; what is noted may have been taken out since.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Notable(u16);

impl Notable {
    /// For the next hop only: `Connection`, `Upgrade`, `TE` and their kind.
    pub(crate) const HOP: Self = Self(1);
    /// How long the body is: `Content-Length`, `Transfer-Encoding`.
    pub(crate) const FRAMING: Self = Self(1 << 1);
    /// `Expect`.
    pub(crate) const EXPECT: Self = Self(1 << 2);
    /// `Content-Type`.
    pub(crate) const TYPE: Self = Self(1 << 3);
    /// Of sidecars: `weft-*`.
    pub(crate) const OWN: Self = Self(1 << 4);
    /// Trace context in any form.
    pub(crate) const TRACE: Self = Self(1 << 5);
    /// `x-request-id`.
    pub(crate) const REQUEST_ID: Self = Self(1 << 6);
    /// How much time the caller gives, by whatever field.
    pub(crate) const TIME: Self = Self(1 << 7);
    /// `If-*`.
    pub(crate) const CONDITION: Self = Self(1 << 8);
    /// `Range`.
    pub(crate) const RANGE: Self = Self(1 << 9);
    /// `Cache-Control`, `Pragma`.
    pub(crate) const CACHE: Self = Self(1 << 10);
    /// What proxies and frameworks made up: `x-*` but for those above, `Forwarded`, `Front-End-Https`.
    pub(crate) const MADE_UP: Self = Self(1 << 11);

    /// Looks at all names.
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        headers.keys().fold(Self::default(), |seen, name| seen | Self::by(name))
    }

    /// The groups of one name.
    pub(crate) fn by(name: &HeaderName) -> Self {
        let name = name.as_str();
        match name.as_bytes().first() {
            Some(b'b') if name == "b3" => Self::TRACE,
            Some(b'c') => match name {
                "cache-control" => Self::CACHE,
                "connection" => Self::HOP,
                "content-length" => Self::FRAMING,
                "content-type" => Self::TYPE,
                _ => Self::default(),
            },
            Some(b'e') if name == "expect" => Self::EXPECT,
            Some(b'f') if matches!(name, "forwarded" | "front-end-https") => Self::MADE_UP,
            Some(b'g') if name == "grpc-timeout" => Self::TIME,
            Some(b'h') if name == "http2-settings" => Self::HOP,
            Some(b'i') if name.starts_with("if-") => Self::CONDITION,
            Some(b'k') if name == "keep-alive" => Self::HOP,
            Some(b'p') if name == "pragma" => Self::CACHE,
            Some(b'p') if name.starts_with("proxy-") => Self::HOP,
            Some(b'r') if name == "range" => Self::RANGE,
            Some(b't') => match name {
                "te" => Self::HOP,
                "transfer-encoding" => Self::HOP | Self::FRAMING,
                "traceparent" | "tracestate" => Self::TRACE,
                _ => Self::default(),
            },
            Some(b'u') if name == "upgrade" => Self::HOP,
            Some(b'w') if name.starts_with("weft-") => Self::OWN | Self::TIME,
            Some(b'x') => match name {
                "x-request-id" => Self::REQUEST_ID,
                _ if name.starts_with("x-b3-") => Self::TRACE,
                _ if name.starts_with("x-envoy-") => Self::TIME | Self::MADE_UP,
                _ => Self::MADE_UP,
            },
            _ => Self::default(),
        }
    }

    /// Whether there may be fields of any of these groups.
    pub(crate) const fn has(self, groups: Self) -> bool {
        self.0 & groups.0 != 0
    }
}

impl BitOr for Notable {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case(Notable::HOP, &["connection", "keep-alive", "te", "transfer-encoding", "upgrade", "http2-settings", "proxy-connection", "proxy-authorization", "proxy-authenticate"])]
    #[case(Notable::FRAMING, &["content-length", "transfer-encoding"])]
    #[case(Notable::EXPECT, &["expect"])]
    #[case(Notable::TYPE, &["content-type"])]
    #[case(Notable::OWN, &["weft-attempt", "weft-case", "weft-timeout-ms", "weft-anything"])]
    #[case(Notable::TRACE, &["traceparent", "tracestate", "b3", "x-b3-traceid", "x-b3-sampled", "x-b3-flags"])]
    #[case(Notable::REQUEST_ID, &["x-request-id"])]
    #[case(Notable::TIME, &["weft-timeout-ms", "grpc-timeout", "x-envoy-expected-rq-timeout-ms", "x-envoy-upstream-rq-timeout-ms"])]
    #[case(Notable::CONDITION, &["if-match", "if-none-match", "if-modified-since", "if-unmodified-since", "if-range"])]
    #[case(Notable::RANGE, &["range"])]
    #[case(Notable::CACHE, &["cache-control", "pragma"])]
    #[case(Notable::MADE_UP, &["x-forwarded-host", "x-original-url", "x-envoy-original-path", "x-host", "forwarded", "front-end-https", "x-http-method-override"])]
    fn every_field_that_is_acted_on_is_noted(#[case] group: Notable, #[case] names: &[&str]) {
        for name in names {
            let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
            assert!(Notable::by(&name).has(group), "{name}");
        }
    }

    #[test]
    fn what_everybody_sends_is_nothing_notable() {
        let usual = [
            "host",
            "user-agent",
            "accept",
            "accept-encoding",
            "authorization",
            "cookie",
            "content-encoding",
            "origin",
        ];
        let headers = usual.map(|name| (HeaderName::from_static(name), http::HeaderValue::from_static("a")));
        assert_eq!(Notable::of(&headers.into_iter().collect()), Notable::default());
    }
}
