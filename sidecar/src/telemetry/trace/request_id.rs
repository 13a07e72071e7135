//! `x-request-id`: kept from the caller if it is usable, otherwise made here.

use super::{hex, only};
use fastrand::Rng;
use http::{HeaderMap, HeaderName, HeaderValue};

static REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Longest ID that is kept.
const LONGEST: usize = 128;

/// A request's ID: 1 to 128 visible ASCII characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RequestId(HeaderValue);

impl RequestId {
    /// The ID in these headers. If there is none, or nonsense (empty, several, too long, blanks or control characters),
    /// a new random UUID takes its place there.
    pub(crate) fn ensure(headers: &mut HeaderMap) -> Self {
        Self::with_rng(headers, &mut Rng::new())
    }

    pub(super) fn with_rng(headers: &mut HeaderMap, rng: &mut Rng) -> Self {
        if let Some(value) = only(headers, &REQUEST_ID)
            && (1..=LONGEST).contains(&value.len())
            && value.as_bytes().iter().all(u8::is_ascii_graphic)
        {
            return Self(value.clone());
        }
        // The text of a UUID is always a valid field value; the other arm cannot be reached.
        let value = HeaderValue::from_bytes(&uuid(rng)).unwrap_or(HeaderValue::from_static("-"));
        headers.insert(REQUEST_ID.clone(), value.clone());
        Self(value)
    }

    /// The ID as text.
    pub(crate) fn as_str(&self) -> &str {
        self.0.to_str().unwrap_or_default()
    }
}

/// A random UUID (version 4) as text.
fn uuid(rng: &mut Rng) -> [u8; 36] {
    let high = rng.u64(..) & !0xf000 | 0x4000;
    let low = rng.u64(..) & !(0b11 << 62) | 0b10 << 62;
    let mut text = [b'-'; 36];
    hex(high >> 32, &mut text[..8]);
    hex(high >> 16, &mut text[9..13]);
    hex(high, &mut text[14..18]);
    hex(low >> 48, &mut text[19..23]);
    hex(low, &mut text[24..36]);
    text
}
