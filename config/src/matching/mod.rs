//! Which rule a request takes: route tables compiled so that no request scans all routes.
//!
//! Paths that a route names exactly are found in one hash look-up, prefixes by walking a trie of segments, and
//! expressions hang in that trie below the literal segments they begin with, so that a request meets only those that
//! its path could match. Where many routes share one place and differ by a header, that header's value is looked up
//! too. Finding a rule allocates nothing, save where an expression looks at a repeated header or an encoded query value.

mod explain;
mod index;
pub mod path;
mod spec;
#[cfg(test)]
mod tests;
mod value;

pub use explain::{Considered, Outcome};
pub use path::{InvalidPath, normalize_path};
pub use spec::{InvalidTimestamp, Origin, PathSpec, RouteSpec, Timestamp};
pub use value::{HeaderCondition, ValueMatch};
pub(crate) use value::{decode, parameter, whole_value_regex};

use http::{HeaderMap, Method};
use index::Index;
use std::sync::Arc;

/// What a route can look at.
#[derive(Clone, Copy, Debug)]
pub struct RequestView<'a> {
    /// The method.
    pub method: &'a Method,
    /// The path in normal form ([`normalize_path`]), without the query.
    pub path: &'a str,
    /// The query, without `?`.
    pub query: Option<&'a str>,
    /// The headers. A route that asks for `Host` sees only what stands here, so the authority of an HTTP/2 request
    /// must have been put there.
    pub headers: &'a HeaderMap,
}

/// A found rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Match {
    /// Index into `Port::rules`.
    pub rule: usize,
    /// How many bytes of the path a prefix match took (for `ReplacePrefixMatch`); the whole path otherwise.
    /// A prefix's own trailing slash does not count, so what remains is empty or starts with a slash.
    pub matched_len: usize,
}

/// The part of a match that something is wrong with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MatchPart {
    /// The path.
    Path,
    /// The gRPC service.
    GrpcService,
    /// The gRPC method.
    GrpcMethod,
    /// The header condition of this index.
    Header(usize),
    /// The query condition of this index.
    Query(usize),
}

/// A match that cannot be compiled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidMatch {
    /// Whose it is.
    pub origin: Origin,
    /// Which part.
    pub part: MatchPart,
    /// What is wrong, without a full stop.
    pub message: String,
}

/// The routes of one service port. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct RouteTable {
    index: Option<Arc<Index>>,
}

impl RouteTable {
    /// Compiles a table, or says everything that is wrong.
    pub fn new(specs: Vec<RouteSpec>) -> Result<Self, Vec<InvalidMatch>> {
        if specs.is_empty() {
            return Ok(Self::default());
        }
        Ok(Self { index: Some(Arc::new(Index::build(specs)?)) })
    }

    /// The rule that the Gateway API's precedence gives to this request.
    pub fn find(&self, request: &RequestView<'_>) -> Option<Match> {
        self.index.as_ref()?.find(request)
    }

    /// True if there are no routes at all: everything goes to the service itself.
    pub fn is_empty(&self) -> bool {
        self.index.is_none()
    }

    /// Every match, the one of highest precedence first.
    pub fn specs(&self) -> &[RouteSpec] {
        self.index.as_ref().map_or(&[], |index| &index.specs)
    }

    /// Says of every match, in order of precedence, whether this request takes it, and if not, why not.
    /// Looks at all of them: for people, not for traffic.
    pub fn explain(&self, request: &RequestView<'_>) -> Vec<Considered> {
        self.index.as_ref().map_or_else(Vec::new, |index| explain::explain(index, request))
    }
}
