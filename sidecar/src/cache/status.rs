//! What an answer says of the cache it went by: `Cache-Status` (RFC 9211), `Age`, `Via`.

pub(crate) use crate::telemetry::metrics::{Answered, Forwarded};

use super::storing::{Bypass, Refusal};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Version, header};
use smallvec::SmallVec;

pub(crate) const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");

/// What happened to one request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Report {
    /// `None`: it was answered from here. A stale answer while it is fetched anew is one too.
    pub(crate) forwarded: Option<Forwarded>,
    /// What the origin answered, where that is not what the client gets.
    pub(crate) status: Option<StatusCode>,
    /// How much longer what is given is fresh; negative once it is not.
    pub(crate) ttl: Option<i64>,
    /// The answer was kept.
    pub(crate) stored: bool,
    /// It waited for another request's fetch.
    pub(crate) collapsed: bool,
    /// The reason in more words; a token.
    pub(crate) detail: Option<&'static str>,
}

impl Report {
    /// Answered from here.
    pub(crate) const fn hit(ttl: i64) -> Self {
        Self { forwarded: None, status: None, ttl: Some(ttl), stored: false, collapsed: false, detail: None }
    }

    /// Sent on.
    pub(crate) const fn forwarded(why: Forwarded) -> Self {
        Self { forwarded: Some(why), status: None, ttl: None, stored: false, collapsed: false, detail: None }
    }

    /// Not looked up.
    pub(crate) const fn bypassed(why: Bypass) -> Self {
        let forwarded = match why {
            Bypass::Method => Forwarded::Method,
            _ => Forwarded::Bypass,
        };
        Self { detail: Some(why.label()), ..Self::forwarded(forwarded) }
    }

    /// The same, not kept.
    pub(crate) const fn refused(self, why: Refusal) -> Self {
        Self { stored: false, detail: Some(why.label()), ..self }
    }

    /// Writes the member of the list that is for this cache: visible ASCII only.
    pub(crate) fn write(&self, cache: &str, mut put: impl FnMut(&[u8])) {
        put(cache.as_bytes());
        match self.forwarded {
            None => put(b"; hit"),
            Some(why) => {
                put(b"; fwd=");
                put(why.label().as_bytes());
            }
        }
        if let Some(status) = self.status {
            put(b"; fwd-status=");
            put(itoa::Buffer::new().format(status.as_u16()).as_bytes());
        }
        if let Some(ttl) = self.ttl {
            put(b"; ttl=");
            put(itoa::Buffer::new().format(ttl).as_bytes());
        }
        if self.stored {
            put(b"; stored");
        }
        if self.collapsed {
            put(b"; collapsed");
        }
        if let Some(detail) = self.detail {
            put(b"; detail=");
            put(detail.as_bytes());
        }
    }

    /// The same as a field's value.
    pub(crate) fn value(&self, cache: &str) -> HeaderValue {
        let mut text = SmallVec::<[u8; 128]>::new();
        self.write(cache, |bytes| text.extend_from_slice(bytes));
        HeaderValue::from_bytes(&text).unwrap_or(HeaderValue::from_static("weft"))
    }

    /// Puts it behind what caches nearer to the origin said (section 2).
    pub(crate) fn add_to(&self, headers: &mut HeaderMap, cache: &str) {
        headers.append(CACHE_STATUS, self.value(cache));
    }
}

/// Says how old an answer is, in place of what was said when it came (RFC 9111 section 5.1).
pub(crate) fn set_age(headers: &mut HeaderMap, age: u32) {
    headers.insert(header::AGE, HeaderValue::from(age));
}

/// Says that an answer went by here (RFC 9110 section 7.6.3); `version` is that in which it came.
pub(crate) fn add_via(headers: &mut HeaderMap, version: Version) {
    let via = match version {
        Version::HTTP_10 => "1.0 weft",
        Version::HTTP_2 => "2 weft",
        _ => "1.1 weft",
    };
    headers.append(header::VIA, HeaderValue::from_static(via));
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    const KEPT: Report = Report { stored: true, ..Report::forwarded(Forwarded::UriMiss) };

    #[rstest]
    #[case(Report::hit(376), "weft; hit; ttl=376")]
    #[case(Report::hit(-412), "weft; hit; ttl=-412")]
    #[case(KEPT, "weft; fwd=uri-miss; stored")]
    #[case(Report { collapsed: true, ..KEPT }, "weft; fwd=uri-miss; stored; collapsed")]
    #[case(KEPT.refused(Refusal::SetCookie), "weft; fwd=uri-miss; detail=set-cookie")]
    #[case(Report { status: Some(StatusCode::NOT_MODIFIED), ttl: Some(10), ..Report::forwarded(Forwarded::Stale) }, "weft; fwd=stale; fwd-status=304; ttl=10")]
    #[case(Report::bypassed(Bypass::Method), "weft; fwd=method; detail=method")]
    #[case(Report::bypassed(Bypass::FatGet), "weft; fwd=bypass; detail=fat-get")]
    fn every_answer_says_what_happened(#[case] report: Report, #[case] text: &str) {
        assert_eq!(report.value("weft"), text);
    }

    /// RFC 9211 section 2: it is a list of structured fields; details here are tokens.
    #[test]
    fn all_words_are_tokens() {
        let labels = Bypass::ALL.map(Bypass::label).into_iter().chain(Refusal::ALL.map(Refusal::label));
        for label in labels {
            assert!(label.starts_with(|c: char| c.is_ascii_lowercase()), "{label}");
            assert!(label.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-'), "{label}");
        }
    }

    #[test]
    fn nearer_caches_stand_behind_farther_ones() {
        let mut headers = HeaderMap::new();
        headers.insert(CACHE_STATUS, HeaderValue::from_static("origin; hit"));
        headers.insert(header::AGE, HeaderValue::from_static("3"));
        Report::hit(1).add_to(&mut headers, "weft");
        set_age(&mut headers, 12);
        add_via(&mut headers, Version::HTTP_11);
        let members: Vec<_> = headers.get_all(CACHE_STATUS).iter().collect();
        assert_eq!(members, ["origin; hit", "weft; hit; ttl=1"]);
        assert_eq!(
            (&headers["age"], &headers["via"]),
            (&"12".parse().unwrap(), &"1.1 weft".parse().unwrap())
        );
    }
}
