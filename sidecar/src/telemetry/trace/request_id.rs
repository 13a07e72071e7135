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
    /// The ID in these headers; `None` if there is none, or nonsense (empty, several, too long, blanks or control
    /// characters).
    pub(crate) fn read(headers: &HeaderMap) -> Option<Self> {
        let value = only(headers, &REQUEST_ID)?;
        let usable =
            (1..=LONGEST).contains(&value.len()) && value.as_bytes().iter().all(u8::is_ascii_graphic);
        usable.then(|| Self(value.clone()))
    }

    /// A new one: a random UUID.
    pub(crate) fn random() -> Self {
        Self::with_rng(&mut Rng::new())
    }

    pub(super) fn with_rng(rng: &mut Rng) -> Self {
        // The text of a UUID is always a valid field value; the other arm cannot be reached.
        Self(HeaderValue::from_bytes(&uuid(rng)).unwrap_or(HeaderValue::from_static("-")))
    }

    /// Writes it for the next hop.
    pub(crate) fn write(&self, headers: &mut HeaderMap) {
        headers.insert(REQUEST_ID.clone(), self.0.clone());
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
