//! Trace context: W3C `traceparent` and `tracestate`, B3 in both of its forms, and `x-request-id`.

mod b3;
mod request_id;
#[cfg(test)]
mod tests;

pub(crate) use request_id::RequestId;

use crate::notable::Notable;
use fastrand::Rng;
use http::{HeaderMap, HeaderName, HeaderValue};
use std::fmt;

static TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
static TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// Members and bytes of a `tracestate` that is passed on.
const STATE_MEMBERS: usize = 32;
const STATE_BYTES: usize = 512;

/// `traceparent` flags that are passed on: sampled, and that the trace ID is random (level 2).
const SAMPLED: u8 = 1;
const RANDOM: u8 = 2;

/// The trace that a request belongs to, and this hop's place in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Trace {
    /// The trace; never zero.
    pub(crate) trace_id: u128,
    /// The span that called us; 0 if the trace begins here.
    pub(crate) parent_span: u64,
    /// This hop's own span; never zero.
    pub(crate) span_id: u64,
    /// Whether spans of this trace are kept.
    pub(crate) sampled: bool,
    /// The trace ID's low 56 bits are random.
    random: bool,
    /// What of B3 the caller sent, and so gets passed on too.
    b3: b3::Forms,
    /// The caller's `tracestate` belongs to this trace and is well formed.
    keep_state: bool,
}

impl Trace {
    /// Continues the trace in these headers, or begins one that is sampled with the probability `sampling`.
    ///
    /// `traceparent` goes before B3. Whatever of either is malformed counts as not there.
    pub(crate) fn from_headers(headers: &HeaderMap, notable: Notable, sampling: f64) -> Self {
        let rng = &mut Rng::new();
        match notable.has(Notable::TRACE) {
            true => Self::with_rng(headers, sampling, rng),
            false => Self::begin(b3::Context::default(), rng.u64(1..), sampling, rng),
        }
    }

    fn with_rng(headers: &HeaderMap, sampling: f64, rng: &mut Rng) -> Self {
        let b3 = b3::Context::read(headers);
        let parent = only(headers, &TRACEPARENT).and_then(|value| Parent::parse(value.as_bytes()));
        let span_id = rng.u64(1..);
        if let Some(parent) = parent {
            return Self {
                trace_id: parent.trace_id,
                parent_span: parent.span_id,
                span_id,
                sampled: parent.flags & SAMPLED != 0 || b3.forms.debug,
                random: parent.flags & RANDOM != 0,
                b3: b3.forms,
                keep_state: state_is_valid(headers),
            };
        }
        Self::begin(b3, span_id, sampling, rng)
    }

    /// Without a `traceparent`.
    fn begin(b3: b3::Context, span_id: u64, sampling: f64, rng: &mut Rng) -> Self {
        let (trace_id, parent_span, random) = match b3.ids {
            Some((trace_id, span_id)) => (trace_id, span_id, false),
            None => (rng.u128(1..), 0, true),
        };
        Self {
            trace_id,
            parent_span,
            span_id,
            sampled: b3.sampled.unwrap_or_else(|| is_sampled(trace_id, sampling)),
            random,
            b3: b3.forms,
            // Without the traceparent it came with, a tracestate belongs to nothing.
            keep_state: false,
        }
    }

    /// Writes this hop's context for the next one.
    pub(crate) fn write(&self, headers: &mut HeaderMap) {
        if let Ok(value) = HeaderValue::from_bytes(&self.traceparent()) {
            headers.insert(TRACEPARENT.clone(), value);
        }
        if !self.keep_state {
            headers.remove(&TRACESTATE);
        }
        b3::write(self, headers);
    }

    /// The value of `traceparent` that names this hop's span.
    pub(crate) fn traceparent(&self) -> [u8; 55] {
        let mut text = *b"00-00000000000000000000000000000000-0000000000000000-00";
        hex(u64_halves(self.trace_id).0, &mut text[3..19]);
        hex(u64_halves(self.trace_id).1, &mut text[19..35]);
        hex(self.span_id, &mut text[36..52]);
        text[54] = b'0' + u8::from(self.sampled) * SAMPLED + u8::from(self.random) * RANDOM;
        text
    }

    /// The trace ID for logs: 32 hexadecimal digits.
    pub(crate) fn id(&self) -> impl fmt::Display + use<> {
        TraceId(self.trace_id)
    }
}

struct TraceId(u128);

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// Whether a new trace is kept: the same answer wherever the same ID and probability are asked, and whatever is kept
/// at a low probability is kept at a higher one. The ID's low 56 bits are compared with a threshold, as level 2 of the
/// specification makes room for.
fn is_sampled(trace_id: u128, probability: f64) -> bool {
    const RANGE: f64 = (1_u64 << 56) as f64;
    let random = (trace_id & ((1 << 56) - 1)) as u64;
    // A float becomes an integer by saturation, and NaN becomes 0: never out of range.
    let rejected = ((1.0 - probability) * RANGE).ceil() as u64;
    !probability.is_nan() && random >= rejected
}

/// A `traceparent` that could be read.
#[derive(Debug, PartialEq, Eq)]
struct Parent {
    trace_id: u128,
    span_id: u64,
    flags: u8,
}

impl Parent {
    fn parse(text: &[u8]) -> Option<Self> {
        let (head, rest) = text.split_at_checked(55)?;
        if [head[2], head[35], head[52]] != [b'-'; 3] {
            return None;
        }
        let version = parse_hex(&head[..2])?;
        // Version 0 is this and no more; a later one may go on after a dash; 255 is not allowed.
        match (version, rest.first()) {
            (0xff, _) => return None,
            (_, None) => {}
            (1.., Some(b'-')) => {}
            _ => return None,
        }
        let high = parse_hex(&head[3..19])?;
        let low = parse_hex(&head[19..35])?;
        let trace_id = u128::from(high) << 64 | u128::from(low);
        let span_id = parse_hex(&head[36..52])?;
        let flags = parse_hex(&head[53..55])?;
        (trace_id != 0 && span_id != 0).then_some(Self { trace_id, span_id, flags: flags as u8 })
    }
}

/// Whether every `tracestate` field is well formed and all together are within bounds.
fn state_is_valid(headers: &HeaderMap) -> bool {
    let mut bytes = 0;
    let mut keys: smallvec::SmallVec<[&[u8]; 8]> = smallvec::SmallVec::new();
    for value in headers.get_all(&TRACESTATE) {
        // Fields are one list, joined by commas.
        bytes += value.len() + usize::from(bytes > 0);
        if bytes > STATE_BYTES {
            return false;
        }
        for member in value.as_bytes().split(|b| *b == b',') {
            let member = member.trim_ascii();
            if member.is_empty() {
                continue;
            }
            let Some(equals) = member.iter().position(|b| *b == b'=') else { return false };
            let (key, value) = (&member[..equals], &member[equals + 1..]);
            if !is_state_key(key) || !is_state_value(value) || keys.contains(&key) {
                return false;
            }
            keys.push(key);
            if keys.len() > STATE_MEMBERS {
                return false;
            }
        }
    }
    true
}

fn is_state_key(key: &[u8]) -> bool {
    let part = |part: &[u8], most: usize, digit_first: bool| {
        let first_ok =
            part.first().is_some_and(|b| b.is_ascii_lowercase() || digit_first && b.is_ascii_digit());
        first_ok
            && part.len() <= most
            && part.iter().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-' | b'*' | b'/'))
    };
    match key.iter().position(|b| *b == b'@') {
        None => part(key, 256, true),
        Some(at) => part(&key[..at], 241, true) && part(&key[at + 1..], 14, false),
    }
}

fn is_state_value(value: &[u8]) -> bool {
    (1..=256).contains(&value.len()) && value.iter().all(|b| matches!(b, b' '..=b'~') && *b != b'=')
}

/// The value of a field that came exactly once.
fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a HeaderValue> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?;
    values.next().is_none().then_some(value)
}

/// Lower-case hexadecimal digits, at most 16, and nothing else.
fn parse_hex(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || digits.len() > 16 {
        return None;
    }
    digits.iter().try_fold(0, |number, digit| {
        let value = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some(number << 4 | u64::from(value))
    })
}

/// Writes the low digits of a number, as many as there is room for.
fn hex(number: u64, digits: &mut [u8]) {
    let mut left = number;
    for digit in digits.iter_mut().rev() {
        *digit = b"0123456789abcdef"[(left & 15) as usize];
        left >>= 4;
    }
}

fn u64_halves(number: u128) -> (u64, u64) {
    ((number >> 64) as u64, number as u64)
}
