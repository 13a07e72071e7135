//! What a request carries from service to service: its trace, and the calls that were made for it.

use axum::{
    extract::FromRequestParts,
    http::{HeaderMap, HeaderName, HeaderValue, request::Parts},
};
use std::{
    convert::Infallible,
    hash::{DefaultHasher, Hash, Hasher},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

/// The headers that every service sends on to those it calls, so that all hops of one request are one trace, and so
/// that a preview of a version holds for the whole journey and a visitor is the same everywhere.
const CARRIED: [&str; 11] = [
    "traceparent",
    "tracestate",
    "x-request-id",
    "b3",
    "x-b3-traceid",
    "x-b3-spanid",
    "x-b3-parentspanid",
    "x-b3-sampled",
    "x-b3-flags",
    PREVIEW,
    VISITOR,
];

/// The header that asks for a version, if a route says so.
pub(crate) const PREVIEW: &str = "x-preview";

/// The header that tells one visitor from another, so that a canary can be for whole visitors.
pub(crate) const VISITOR: &str = "x-visitor";

/// More calls than any page makes are not kept.
const CALLS_KEPT: usize = 64;

/// The request that is being answered.
#[derive(Clone, Debug, Default)]
pub(crate) struct RequestContext {
    carried: HeaderMap,
    calls: Arc<Mutex<Vec<Call>>>,
}

/// One call that was made to answer a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Call {
    /// The service that was called.
    pub(crate) service: &'static str,
    /// What was asked.
    pub(crate) what: String,
    /// How it went: a status, or a word.
    pub(crate) outcome: String,
    /// Whether it went well.
    pub(crate) good: bool,
    /// The replica that answered, if one did.
    pub(crate) replica: Option<String>,
    /// Its version.
    pub(crate) version: Option<String>,
    /// How long it took.
    pub(crate) took: Duration,
    /// What the caches on the way say of it, in their own words.
    pub(crate) cache: Option<String>,
}

impl RequestContext {
    /// Takes from a request what is to be carried on.
    pub(crate) fn continuing(headers: &HeaderMap) -> Self {
        let mut carried = HeaderMap::new();
        for name in CARRIED {
            if let Some(value) = headers.get(name) {
                carried.insert(HeaderName::from_static(name), value.clone());
            }
        }
        Self { carried, calls: Arc::default() }
    }

    /// Begins a trace if none came in: a browser sends none, and this is where a person's request enters the mesh.
    pub(crate) fn ensure_trace(&mut self) {
        if self.trace_id().is_some() {
            return;
        }
        let trace = fastrand::u128(1..);
        let span = fastrand::u64(1..);
        if let Ok(value) = HeaderValue::try_from(format!("00-{trace:032x}-{span:016x}-01")) {
            self.carried.insert(HeaderName::from_static("traceparent"), value);
        }
    }

    /// The trace's id, if the request belongs to one.
    pub(crate) fn trace_id(&self) -> Option<&str> {
        let value = self.carried.get("traceparent")?.to_str().ok()?;
        let id = value.split('-').nth(1)?;
        (id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit())).then_some(id)
    }

    /// Asks for a version of the services that are called from here on.
    pub(crate) fn prefer(&mut self, version: &'static str) {
        self.carried.insert(HeaderName::from_static(PREVIEW), HeaderValue::from_static(version));
    }

    /// Says whose request it is, without saying more: the session itself is a key to somebody's cart.
    pub(crate) fn is_of(&mut self, session: &str) {
        let mut hasher = DefaultHasher::new();
        session.hash(&mut hasher);
        if let Ok(value) = HeaderValue::try_from(format!("{:016x}", hasher.finish())) {
            self.carried.insert(HeaderName::from_static(VISITOR), value);
        }
    }

    /// Puts what is carried on into a call.
    pub(crate) fn carry_into(&self, headers: &mut HeaderMap) {
        for (name, value) in &self.carried {
            headers.insert(name.clone(), value.clone());
        }
    }

    /// Notes a call.
    pub(crate) fn note(&self, call: Call) {
        let mut calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        if calls.len() < CALLS_KEPT {
            calls.push(call);
        }
    }

    /// The calls that were made so far.
    pub(crate) fn calls(&self) -> Vec<Call> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl<S: Sync> FromRequestParts<S> for RequestContext {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(Self::continuing(&parts.headers))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn headers(of: &[(&'static str, &'static str)]) -> HeaderMap {
        of.iter().map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v))).collect()
    }

    #[test]
    fn a_trace_is_carried_on_and_nothing_private_is() {
        let came = headers(&[("traceparent", PARENT), ("b3", "0"), ("cookie", "secret"), (PREVIEW, "v2")]);
        let context = RequestContext::continuing(&came);
        let mut call = HeaderMap::new();
        context.carry_into(&mut call);
        assert_eq!(call, headers(&[("traceparent", PARENT), ("b3", "0"), (PREVIEW, "v2")]));
    }

    #[test]
    fn a_trace_is_begun_only_where_there_is_none() {
        let mut continued = RequestContext::continuing(&headers(&[("traceparent", PARENT)]));
        continued.ensure_trace();
        assert_eq!(continued.trace_id(), Some("4bf92f3577b34da6a3ce929d0e0e4736"));

        let mut begun = RequestContext::continuing(&headers(&[("traceparent", "00-nonsense-x-01")]));
        assert_eq!(begun.trace_id(), None);
        begun.ensure_trace();
        assert!(begun.trace_id().is_some_and(|id| id.bytes().any(|b| b != b'0')));
    }
}
