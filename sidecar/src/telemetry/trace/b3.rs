//! Zipkin's B3 headers: the single `b3` and the older `x-b3-*`, read when they come and written when they came.

use super::{Trace, hex, only, parse_hex, u64_halves};
use http::{HeaderMap, HeaderName, HeaderValue};

static SINGLE: HeaderName = HeaderName::from_static("b3");
static TRACE_ID: HeaderName = HeaderName::from_static("x-b3-traceid");
static SPAN_ID: HeaderName = HeaderName::from_static("x-b3-spanid");
static PARENT_SPAN_ID: HeaderName = HeaderName::from_static("x-b3-parentspanid");
static SAMPLED: HeaderName = HeaderName::from_static("x-b3-sampled");
static FLAGS: HeaderName = HeaderName::from_static("x-b3-flags");

/// Which B3 headers the caller sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Forms {
    single: bool,
    multi: bool,
    /// The trace ID came with 16 digits and goes on so.
    short: bool,
    /// Keep the trace whatever any sampler says.
    pub(super) debug: bool,
}

/// What could be read of them.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Context {
    pub(super) forms: Forms,
    /// Trace and span.
    pub(super) ids: Option<(u128, u64)>,
    /// The sampling decision, unless it is left to us.
    pub(super) sampled: Option<bool>,
}

impl Context {
    pub(super) fn read(headers: &HeaderMap) -> Self {
        let single = headers.contains_key(&SINGLE);
        let multi = [&TRACE_ID, &SAMPLED, &FLAGS].into_iter().any(|name| headers.contains_key(name));
        if !single && !multi {
            return Self::default();
        }
        let found = only(headers, &SINGLE).and_then(|value| Self::parse_single(value.as_bytes()));
        let mut context =
            found.or_else(|| multi.then(|| Self::read_multi(headers)).flatten()).unwrap_or_default();
        context.forms.single = single;
        context.forms.multi = multi;
        context
    }

    /// `{trace}-{span}[-{decision}[-{parent}]]`, or a decision alone.
    fn parse_single(text: &[u8]) -> Option<Self> {
        let mut context = Self::default();
        let mut parts = text.split(|b| *b == b'-');
        let first = parts.next()?;
        let Some(span) = parts.next() else {
            context.decide(first)?;
            return Some(context);
        };
        context.identify(first, span)?;
        if let Some(decision) = parts.next() {
            context.decide(decision)?;
        }
        if let Some(parent) = parts.next() {
            (parent.len() == 16).then(|| parse_hex(parent)).flatten()?;
        }
        parts.next().is_none().then_some(context)
    }

    /// Nothing at all if a part is malformed: half a context would join unrelated spans.
    fn read_multi(headers: &HeaderMap) -> Option<Self> {
        let mut context = Self::default();
        let value = |name| only(headers, name).map(HeaderValue::as_bytes);
        match (value(&TRACE_ID), value(&SPAN_ID)) {
            (Some(trace), Some(span)) => context.identify(trace, span)?,
            (None, None) => {}
            _ => return None,
        }
        match value(&SAMPLED) {
            // Before the format was settled, clients wrote words.
            Some(b"true") => context.sampled = Some(true),
            Some(b"false") => context.sampled = Some(false),
            Some(decision @ (b"0" | b"1")) => context.decide(decision)?,
            Some(_) => return None,
            None => {}
        }
        if value(&FLAGS) == Some(b"1") {
            context.decide(b"d")?;
        }
        Some(context)
    }

    fn identify(&mut self, trace: &[u8], span: &[u8]) -> Option<()> {
        let trace_id = match trace.len() {
            16 => u128::from(parse_hex(trace)?),
            32 => u128::from(parse_hex(&trace[..16])?) << 64 | u128::from(parse_hex(&trace[16..])?),
            _ => return None,
        };
        let span_id = (span.len() == 16).then(|| parse_hex(span)).flatten()?;
        if trace_id == 0 || span_id == 0 {
            return None;
        }
        self.forms.short = trace.len() == 16;
        self.ids = Some((trace_id, span_id));
        Some(())
    }

    fn decide(&mut self, decision: &[u8]) -> Option<()> {
        self.sampled = Some(match decision {
            b"0" => false,
            b"1" => true,
            b"d" => {
                self.forms.debug = true;
                true
            }
            _ => return None,
        });
        Some(())
    }
}

/// Writes this hop's context in the forms that came.
pub(super) fn write(trace: &Trace, headers: &mut HeaderMap) {
    let forms = trace.b3;
    if !forms.single && !forms.multi {
        return;
    }
    let (high, low) = u64_halves(trace.trace_id);
    let mut trace_id = [0; 32];
    hex(high, &mut trace_id[..16]);
    hex(low, &mut trace_id[16..]);
    // A short ID stays short only while it is the trace's whole ID.
    let trace_id = if forms.short && high == 0 { &trace_id[16..] } else { &trace_id[..] };
    let mut span_id = [0; 16];
    hex(trace.span_id, &mut span_id);
    let mut parent = [0; 16];
    hex(trace.parent_span, &mut parent);
    let parent = (trace.parent_span != 0).then_some(&parent);

    let mut put = |name: &HeaderName, value: Option<&[u8]>| {
        match value.map(HeaderValue::from_bytes) {
            Some(Ok(value)) => headers.insert(name.clone(), value),
            _ => headers.remove(name),
        };
    };
    if forms.single {
        let mut text = smallvec::SmallVec::<[u8; 72]>::new();
        text.extend_from_slice(trace_id);
        text.push(b'-');
        text.extend_from_slice(&span_id);
        text.extend_from_slice(match (forms.debug, trace.sampled) {
            (true, _) => b"-d",
            (false, true) => b"-1",
            (false, false) => b"-0",
        });
        if let Some(parent) = parent {
            text.push(b'-');
            text.extend_from_slice(parent);
        }
        put(&SINGLE, Some(&text));
    }
    if forms.multi {
        put(&TRACE_ID, Some(trace_id));
        put(&SPAN_ID, Some(&span_id));
        put(&PARENT_SPAN_ID, parent.map(|parent| &parent[..]));
        // Debug says sampled already; both together are not allowed.
        put(&FLAGS, forms.debug.then_some(b"1"));
        put(&SAMPLED, (!forms.debug).then_some(if trace.sampled { b"1" } else { b"0" }));
    }
}
