//! What an answer gets besides what the upstream said: session token, deprecation, CORS; and what of the request they need.

use crate::traffic::{cors, deprecation, session};
use http::{HeaderMap, request::Parts};
use std::time::{SystemTime, UNIX_EPOCH};
use weft_config::snapshot::Calls;

/// What of a request its answer's fields depend on; read before the request is changed.
#[derive(Default)]
pub(super) struct Dressing {
    pub(super) session: Option<session::Pinned>,
    asked: Option<cors::Asked>,
}

impl Dressing {
    pub(super) fn of(calls: &Calls, head: &Parts) -> Self {
        Self {
            session: calls.session.as_ref().and_then(|s| session::read(s, &head.headers, unix_seconds())),
            asked: calls.cors.as_ref().map(|_| cors::Asked::of(&head.headers)),
        }
    }

    /// Puts the fields into an answer of `endpoint` of the backend that `token` names.
    pub(super) fn apply(&self, calls: &Calls, token: u64, endpoint: Option<u64>, headers: &mut HeaderMap) {
        if let (Some(policy), Some(endpoint)) = (&calls.session, endpoint) {
            session::write(policy, self.session.as_ref(), token, endpoint, unix_seconds(), headers);
        }
        if let Some(policy) = &calls.deprecation {
            deprecation::apply(policy, headers);
        }
        if let (Some(policy), Some(asked)) = (&calls.cors, &self.asked) {
            cors::apply(policy, asked, headers);
        }
    }
}

fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
