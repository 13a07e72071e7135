//! Policy on calls compiled: timeouts, retries, hedging, who is kept where, limits, faults, deprecation, mirrors, CORS.

use super::{Backend, CacheRules, Key, Traffic};
use crate::matching::HeaderCondition;
use http::{HeaderName, HeaderValue, Method};
use std::{sync::Arc, time::Duration};

/// What is decided about the calls that take one rule, or that are made to a port without routes.
#[derive(Clone, Debug, Default)]
pub struct Calls {
    /// How long they may take.
    pub timeouts: Timeouts,
    /// When a failed one is tried again.
    pub retry: Retry,
    /// A second attempt for slow ones.
    pub hedge: Option<Hedge>,
    /// What tells one user from another in a weighted split.
    pub session_key: Option<Key>,
    /// Keeps users on backends of their own, in place of the rule's backends.
    pub sharding: Option<Sharding>,
    /// Keeps users on one endpoint by a token (Gateway API `sessionPersistence`).
    pub session: Option<Session>,
    /// Limits counted at the caller: those attached to a route. Those attached to a Service are counted where it is
    /// served, see [`Admission`].
    pub rate_limits: Arc<[RateLimit]>,
    /// Faults put in on purpose; the first that applies.
    pub faults: Arc<[Fault]>,
    /// What is called is going away.
    pub deprecation: Option<Arc<Deprecation>>,
    /// Where copies go.
    pub mirrors: Arc<[Mirror]>,
    /// Answers to browsers' cross-origin requests.
    pub cors: Option<Arc<Cors>>,
    /// Set where a policy on the rule or its route says something about endpoints: then the rule's clusters are its
    /// own, with these settings, one per backend in the order of the rule's backends. What the policy on the route does
    /// not say of endpoints is as each backend's own policies say it; shards and mirrors are wholly as theirs say.
    /// Never set for a port without routes.
    pub own_traffic: Option<Arc<[Traffic]>>,
    /// Which answers are kept at the caller's.
    pub cache: Option<Arc<CacheRules>>,
}

/// How long calls may take; `None` takes the default, zero is no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// The whole call; `None` takes `Limits::request_timeout`.
    pub request: Option<Duration>,
    /// One attempt.
    pub attempt: Option<Duration>,
    /// The wait for the next byte of an answer.
    pub idle: Option<Duration>,
    /// Whether deadlines travel: read from callers, told to upstreams.
    pub deadlines: bool,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self { request: None, attempt: None, idle: None, deadlines: true }
    }
}

/// When a failed call is tried again.
#[derive(Clone, Debug, PartialEq)]
pub struct Retry {
    /// Attempts beyond the first; 0 for none but what never left (connect failures on another endpoint).
    pub attempts: u32,
    /// No connection came about.
    pub connect_failure: bool,
    /// The stream was refused before anything was done.
    pub refused: bool,
    /// The connection or stream broke before an answer.
    pub reset: bool,
    /// An attempt ran into its own timeout.
    pub timeout: bool,
    /// Statuses, sorted.
    pub statuses: Arc<[u16]>,
    /// gRPC statuses, as bits: bit n for status n. Those that no policy names but the default does are tried again
    /// only where the call certainly did not reach the application.
    pub grpc_statuses: u32,
    /// True if a policy names the gRPC statuses: then the call is tried again although the application may have seen it.
    pub grpc_explicit: bool,
    /// Every retry waits at least this long, but for what never left; what `backoff` gives comes on top of it.
    pub least_wait: Duration,
    /// Up to this long before the first retry; doubles each time, with full jitter.
    pub backoff: Duration,
    /// Never longer than this.
    pub max_backoff: Duration,
    /// Whether `Retry-After` is obeyed.
    pub retry_after: bool,
    /// Whether POST and PATCH are tried again after the application may have seen them.
    pub unsafe_methods: bool,
    /// Request bodies up to this many bytes are kept for another attempt.
    pub body_bytes: usize,
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            attempts: 2,
            connect_failure: true,
            refused: true,
            reset: true,
            timeout: false,
            statuses: Arc::new([502, 503, 504]),
            grpc_statuses: 1 << 14,
            grpc_explicit: false,
            least_wait: Duration::ZERO,
            backoff: Duration::from_millis(25),
            max_backoff: Duration::from_millis(250),
            retry_after: true,
            unsafe_methods: false,
            body_bytes: 64 * 1024,
        }
    }
}

/// A second attempt for slow calls.
#[derive(Clone, Debug, PartialEq)]
pub struct Hedge {
    /// When it starts.
    pub after: HedgeAfter,
    /// Attempts at once, the first included.
    pub max_attempts: u32,
}

/// When a second attempt starts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum HedgeAfter {
    /// After this long without an answer.
    Delay(Duration),
    /// Once the call takes longer than this share of recent ones, in `0.5..1.0`.
    Percentile(f64),
}

/// Keeps users on backends of their own.
#[derive(Clone, Debug)]
pub struct Sharding {
    /// What tells one user from another.
    pub key: Key,
    /// The shards, as backends; their weights are their shares.
    pub shards: Arc<[Backend]>,
    /// Keys that always go to one shard: the key and the index of its shard, sorted by key.
    pub pinned: Arc<[(Arc<str>, usize)]>,
    /// The shard of requests without a key; `None` answers 400.
    pub without_key: Option<usize>,
}

/// Session persistence as in the Gateway API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// The cookie's or header's name.
    pub name: Arc<str>,
    /// True for a header, false for a cookie.
    pub in_header: bool,
    /// The session ends this long after it began.
    pub absolute_timeout: Option<Duration>,
    /// The session ends after this long without a request.
    pub idle_timeout: Option<Duration>,
    /// Whether the cookie outlives the browser's session (`Max-Age` is sent).
    pub permanent: bool,
    /// The `Path` of the cookie: the longest prefix that all of the rule's matches share.
    pub path: Arc<str>,
}

/// A limit on how many calls pass.
#[derive(Clone, Debug)]
pub struct RateLimit {
    /// `<namespace>/<policy>/<limit>`, with ` on <target>` behind it where the policy has several targets: keys the
    /// runtime state, and names it in metrics.
    pub id: Arc<str>,
    /// The limit's own name, for answers.
    pub name: Arc<str>,
    /// Calls that pass in `per`.
    pub requests: u32,
    /// The time over which they pass.
    pub per: Duration,
    /// How many may come at once.
    pub burst: u32,
    /// Counts apart for each value of all of these together; `None` counts all calls together.
    pub key: Option<Key>,
    /// Values that are remembered.
    pub max_keys: usize,
    /// Only calls that match.
    pub only: Only,
}

/// Which calls something is about: every part that is not empty must match.
#[derive(Clone, Debug, Default)]
pub struct Only {
    /// Headers, all of.
    pub headers: Arc<[HeaderCondition]>,
    /// Methods, any of.
    pub methods: Arc<[Method]>,
    /// Paths in normal form, by whole segments, any of.
    pub paths: Arc<[Arc<str>]>,
}

impl Only {
    /// Whether a call is meant; `path` in normal form.
    pub fn matches(&self, method: &Method, path: &str, headers: &http::HeaderMap) -> bool {
        (self.methods.is_empty() || self.methods.contains(method))
            && (self.paths.is_empty() || self.paths.iter().any(|prefix| is_below(path, prefix)))
            && self.headers.iter().all(|test| test.matches(headers))
    }
}

fn is_below(path: &str, prefix: &str) -> bool {
    let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
    path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// A fault put in on purpose.
#[derive(Clone, Debug)]
pub struct Fault {
    /// The share of calls that it hits, in `0.0..=1.0`.
    pub share: f64,
    /// Only calls that match.
    pub only: Only,
    /// Waits this long first.
    pub delay: Option<Duration>,
    /// Answers in place of the upstream.
    pub abort: Option<Abort>,
}

/// The answer in place of the upstream's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Abort {
    /// An HTTP status.
    Status(http::StatusCode),
    /// A gRPC status.
    Grpc(u8),
    /// The connection is closed (HTTP/1), the stream is reset (HTTP/2).
    Reset,
}

/// What is called is going away (RFC 9745, RFC 8594).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deprecation {
    /// What it is about, for counts and status: the policy's target, `HTTPRoute shop/products#v1`.
    pub of: Arc<str>,
    /// The `Deprecation` field.
    pub deprecation: HeaderValue,
    /// The `Sunset` field.
    pub sunset: Option<HeaderValue>,
    /// The `Link` field (`rel="deprecation"`).
    pub link: Option<HeaderValue>,
}

/// Where copies of requests go.
#[derive(Clone, Debug)]
pub struct Mirror {
    /// The backend; `filters` and `mirrors` are empty and `weight` is 1.
    pub backend: Backend,
    /// The share of requests that are copied: `numerator` of `denominator`.
    pub numerator: u32,
    /// See `numerator`.
    pub denominator: u32,
}

/// A CORS filter.
#[derive(Clone, Debug, Default)]
pub struct Cors {
    /// Origins that may call.
    pub origins: Arc<[Origin]>,
    /// Whether credentials may be sent.
    pub credentials: bool,
    /// Methods; `None` for all.
    pub methods: Option<Arc<[Method]>>,
    /// Request headers; `None` for all.
    pub headers: Option<Arc<[HeaderName]>>,
    /// Answer headers that may be read; `None` for all.
    pub expose: Option<Arc<[HeaderName]>>,
    /// Seconds that a preflight's answer may be remembered.
    pub max_age: u32,
}

/// An origin that may call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Every one.
    Any,
    /// This very one, in lower case.
    Exact(Arc<str>),
    /// `scheme://*.rest`: the part before the star and the part after it, in lower case.
    Wildcard(Arc<str>, Arc<str>),
}

/// What is decided where a service is served, before the application gets a call.
#[derive(Clone, Debug, Default)]
pub struct Admission {
    /// Limits attached to the Service.
    pub rate_limits: Arc<[RateLimit]>,
    /// How many calls the application gets at once.
    pub concurrency: Option<Arc<Concurrency>>,
    /// Which answers are kept here.
    pub cache: Option<Arc<CacheRules>>,
}

/// How many calls the application gets at once.
#[derive(Clone, Debug)]
pub struct Concurrency {
    /// The limit.
    pub limit: ConcurrencyLimit,
    /// How many calls may wait.
    pub queue: usize,
    /// How long one may wait.
    pub queue_timeout: Duration,
    /// What goes first: the first that matches holds; 50 if none does.
    pub priorities: Arc<[(Only, u8)]>,
}

/// The limit on calls at once.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ConcurrencyLimit {
    /// Only priorities in the queue; calls at once are not limited.
    None,
    /// Always this many.
    Fixed(u32),
    /// As many as the application takes without growing slow.
    Adaptive {
        /// Never fewer.
        min: u32,
        /// Never more.
        max: u32,
        /// How many times the latency without load is borne.
        tolerance: f64,
    },
}
