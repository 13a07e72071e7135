//! CachePolicy compiled: which answers are kept, for whom, and for how long, with every default filled in.

use http::HeaderName;
use std::{sync::Arc, time::Duration};

/// What one CachePolicy says. Equal rules are the same rules: what is kept need not be judged anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheRules {
    /// `<namespace>/<policy>`: what is kept under it, and its memory, go by this name.
    pub id: Arc<str>,
    /// What makes two requests the same.
    pub key: CacheKeyRules,
    /// How long answers are fresh.
    pub ttl: CacheTtlRules,
    /// How long after an answer may be given while it is fetched anew, where it does not say so itself.
    pub while_revalidate: Duration,
    /// How long after an answer may be given when the origin fails, where it does not say so itself.
    pub if_error: Duration,
    /// The largest body that is kept.
    pub max_object_bytes: u64,
    /// Memory for everything kept under this policy.
    pub max_bytes: u64,
    /// Variants kept of one resource.
    pub max_variants: usize,
    /// True: answers with `Set-Cookie` are kept without it. False: they are not kept.
    pub strip_set_cookie: bool,
    /// Whether answers to POST that say their freshness themselves are kept.
    pub post: bool,
    /// gRPC methods whose answers are kept.
    pub grpc: Arc<[CachedMethod]>,
    /// Labels on answers.
    pub tags: Option<CacheTagRules>,
    /// How long a request waits for another's fetch; `None` where each fetches by itself.
    pub coalesce: Option<Duration>,
    /// Further places to look.
    pub tiers: CacheTierRules,
}

impl Default for CacheRules {
    fn default() -> Self {
        Self {
            id: "".into(),
            key: CacheKeyRules::default(),
            ttl: CacheTtlRules::default(),
            while_revalidate: Duration::ZERO,
            if_error: Duration::ZERO,
            max_object_bytes: 1 << 20,
            max_bytes: 64 << 20,
            max_variants: 16,
            strip_set_cookie: false,
            post: false,
            grpc: Arc::default(),
            tags: None,
            coalesce: Some(Duration::from_secs(5)),
            tiers: CacheTierRules::default(),
        }
    }
}

/// What makes two requests the same, beside method, host and path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CacheKeyRules {
    /// Which query parameters count.
    pub parameters: CacheParameters,
    /// True if the order of parameters does not count.
    pub any_order: bool,
    /// Request headers whose values count.
    pub headers: Arc<[HeaderName]>,
    /// Cookies whose values count.
    pub cookies: Arc<[Arc<str>]>,
    /// Whether the caller's proven identity counts.
    pub identity: bool,
}

/// Which query parameters count, by their decoded names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum CacheParameters {
    /// All.
    #[default]
    All,
    /// Only these.
    Only(Arc<[Arc<str>]>),
    /// All but these.
    AllBut(Arc<[Arc<str>]>),
}

/// How long answers are fresh.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CacheTtlRules {
    /// Where the origin says nothing.
    pub default: Option<Duration>,
    /// Never longer.
    pub max: Option<Duration>,
    /// In place of what the origin says; the first that matches holds.
    pub overrides: Arc<[CacheOverride]>,
}

impl CacheTtlRules {
    /// The override that holds for an answer; `path` in normal form.
    pub fn over(&self, status: http::StatusCode, path: &str) -> Option<&CacheOverride> {
        self.overrides.iter().find(|rule| {
            (rule.statuses.is_empty() || rule.statuses.binary_search(&status.as_u16()).is_ok())
                && (rule.paths.is_empty() || rule.paths.iter().any(|wanted| wanted.holds(path)))
        })
    }
}

/// A freshness in place of what the origin says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheOverride {
    /// Statuses that it is for, sorted; empty for every status that can be kept.
    pub statuses: Arc<[u16]>,
    /// Paths that it is for; empty for every path.
    pub paths: Arc<[CachePath]>,
    /// The freshness; zero for not kept.
    pub ttl: Duration,
    /// Holds against `no-store`, `no-cache` and `private`.
    pub force: bool,
}

/// A path pattern, in normal form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CachePath {
    /// This very path.
    Exact(Arc<str>),
    /// This path, without a slash at its end, and everything below it.
    Below(Arc<str>),
}

impl CachePath {
    /// Whether a path in normal form is meant.
    pub fn holds(&self, path: &str) -> bool {
        match self {
            Self::Exact(wanted) => **wanted == *path,
            Self::Below(wanted) => {
                path.strip_prefix(&**wanted).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            }
        }
    }
}

/// A gRPC method whose answers are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CachedMethod {
    /// `/<service>/<method>`.
    pub path: Arc<str>,
    /// How long its answers are fresh.
    pub ttl: Duration,
}

/// Labels on answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheTagRules {
    /// The answer header that lists them.
    pub header: HeaderName,
    /// Whether it is taken away before the caller sees it.
    pub strip: bool,
}

/// Further places to look before the origin is asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CacheTierRules {
    /// Asks the other sidecars of the service, waiting this long.
    pub siblings: Option<Duration>,
    /// Asks a Redis server.
    pub redis: Option<CacheRedis>,
    /// Keeps this many bytes on disk.
    pub disk: Option<u64>,
}

/// A Redis server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheRedis {
    /// `host:port`.
    pub address: Arc<str>,
    /// What every key starts with.
    pub prefix: Arc<str>,
    /// How long it is waited for.
    pub timeout: Duration,
    /// The secret with user name and password, as `<namespace>/<name>`.
    pub credentials: Option<Arc<str>>,
    /// How it is reached by TLS.
    pub tls: Option<CacheRedisTls>,
}

/// How a Redis server is reached by TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheRedisTls {
    /// The secret with certificates, as `<namespace>/<name>`.
    pub secret: Option<Arc<str>>,
    /// Whom the server's certificate must be for: a host name or an IP address.
    pub server_name: Arc<str>,
}
