//! Which rule a request takes: route tables compiled so that no request scans all routes.

use http::{HeaderMap, Method};

/// What a route can look at. `path` is in normal form, without the query.
#[derive(Clone, Copy, Debug)]
pub struct RequestView<'a> {
    /// The method.
    pub method: &'a Method,
    /// The normalised path.
    pub path: &'a str,
    /// The query, without `?`.
    pub query: Option<&'a str>,
    /// The headers.
    pub headers: &'a HeaderMap,
}

/// A found rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Match {
    /// Index into `Port::rules`.
    pub rule: usize,
    /// How many bytes of the path a prefix match took (for `ReplacePrefixMatch`); the whole path otherwise.
    pub matched_len: usize,
}

/// The routes of one service port.
#[derive(Clone, Debug, Default)]
pub struct RouteTable {}

impl RouteTable {
    /// The rule that the Gateway API's precedence gives to this request.
    pub fn find(&self, _request: &RequestView<'_>) -> Option<Match> {
        None
    }

    /// True if there are no routes at all: everything goes to the service itself.
    pub fn is_empty(&self) -> bool {
        true
    }
}
