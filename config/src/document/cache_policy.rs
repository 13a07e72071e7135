//! CachePolicy: which answers are kept, for whom, and for how long.

use crate::document::duration::PolicyDuration;
use crate::document::metadata::Resource;
use crate::document::size::ByteSize;
use crate::document::target::TargetRef;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Which answers are kept (`weft.mesh/v1alpha1`).
pub type CachePolicy = Resource<CachePolicySpec>;

/// Without further fields a shared HTTP cache by RFC 9111, which keeps what the origin allows a shared cache to keep and
/// nothing else.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CachePolicySpec {
    /// What it applies to: Services, HTTPRoutes, GRPCRoutes, or one of their rules by `sectionName`.
    #[schemars(length(min = 1, max = 16))]
    pub target_refs: Vec<TargetRef>,
    /// `false` turns the cache off for what it applies to. Default: `true`.
    pub enabled: Option<bool>,
    /// At which sidecar answers are kept.
    #[serde(default, rename = "where")]
    pub place: CachePlace,
    /// What makes two requests the same.
    #[serde(default)]
    pub key: CacheKey,
    /// How long answers are fresh.
    #[serde(default)]
    pub ttl: CacheTtl,
    /// When an answer may be given that is no longer fresh.
    #[serde(default)]
    pub stale: CacheStale,
    /// Bounds.
    #[serde(default)]
    pub limits: CacheLimits,
    /// What happens to answers with `Set-Cookie`.
    #[serde(default)]
    pub set_cookie: SetCookie,
    /// Also keeps answers to POST that say their freshness themselves; the key then holds a digest of the body.
    /// Default: `false`.
    pub post: Option<bool>,
    /// Unary gRPC methods whose answers are kept; the key then holds a digest of the message.
    #[serde(default)]
    #[schemars(length(max = 256))]
    pub grpc: Vec<CacheGrpcMethod>,
    /// Labels on answers, by which they can be purged.
    pub tags: Option<CacheTags>,
    /// One fetch for requests that come at once.
    #[serde(default)]
    pub coalescing: Coalescing,
    /// Further places to look before the origin is asked.
    #[serde(default)]
    pub tiers: CacheTiers,
}

/// At which sidecar answers are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum CachePlace {
    /// At the caller's: a hit saves the hop. Each caller's sidecar keeps its own.
    #[default]
    Outbound,
    /// At the service's: shared by all callers, looked up only after authorization.
    Inbound,
    /// At both.
    Both,
}

/// What makes two requests the same, beside method, host and path.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CacheKey {
    /// Which query parameters count.
    #[serde(default)]
    pub query: CacheKeyQuery,
    /// Request headers whose values count, beside what `Vary` says. Example: `[x-country]`.
    #[serde(default)]
    #[schemars(length(max = 32), inner(length(min = 1, max = 256)), extend("itemFormat" = "header-name"))]
    pub headers: Vec<String>,
    /// Cookies whose values count. Example: `[currency]`.
    #[serde(default)]
    #[schemars(length(max = 32), inner(length(min = 1, max = 256)), extend("itemFormat" = "token"))]
    pub cookies: Vec<String>,
    /// Keeps answers apart by the caller's proven identity. Default: `false`.
    pub identity: Option<bool>,
}

/// Which query parameters count: `include` or `exclude`, or neither for all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CacheKeyQuery {
    /// Only these count. Not together with `exclude`. Example: `[page, sort]`.
    #[schemars(length(max = 64))]
    pub include: Option<Vec<String>>,
    /// All but these count. Not together with `include`. Example: `[utm_source]`.
    #[schemars(length(max = 64))]
    pub exclude: Option<Vec<String>>,
    /// Whether the order of parameters is the same to the origin. Default: `false`, their order counts.
    pub ignore_order: Option<bool>,
}

/// How long answers are fresh.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CacheTtl {
    /// For answers whose origin says nothing; not for requests with cookies, unless the key says which cookies count.
    /// Default: by the heuristic of RFC 9111 where it allows one, else not kept.
    pub default: Option<PolicyDuration>,
    /// Never fresh for longer than this, whatever the origin says. Default: no limit.
    pub max: Option<PolicyDuration>,
    /// In place of what the origin says; the first that matches holds. Never makes an answer kept that says `no-store`
    /// or `private`, unless `force` says so.
    #[serde(default)]
    #[schemars(length(max = 64))]
    pub overrides: Vec<CacheTtlOverride>,
}

/// A freshness in place of what the origin says.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CacheTtlOverride {
    /// Statuses that it is for. Left out, every status that can be kept. Example: `[404]`.
    #[serde(default)]
    #[schemars(length(max = 64), inner(range(min = 200, max = 599)))]
    pub statuses: Vec<u16>,
    /// Paths that it is for: exactly this path, or with `/*` at the end this path and all below it. Left out, every
    /// path. Example: `[/products/*]`.
    #[serde(default)]
    #[schemars(length(max = 64), extend("itemFormat" = "path-pattern"))]
    pub paths: Vec<String>,
    /// The freshness; `0s` for not kept. Example: `30s`.
    pub ttl: PolicyDuration,
    /// Holds against `no-store`, `no-cache` and `private` too. Can show one user's answer to another: only for what is
    /// the same for everyone. Default: `false`.
    pub force: Option<bool>,
}

/// When an answer may be given that is no longer fresh.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CacheStale {
    /// For this long after, while it is fetched anew in the background (RFC 5861), where the answer does not say so
    /// itself. Default: `0s`.
    pub while_revalidate: Option<PolicyDuration>,
    /// For this long after, when the origin fails, times out or is not there (RFC 5861), where the answer does not say
    /// so itself. Default: `0s`.
    pub if_error: Option<PolicyDuration>,
}

/// Bounds of the cache.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CacheLimits {
    /// The largest body that is kept. Default: `1MiB`.
    pub max_object_bytes: Option<ByteSize>,
    /// Memory for everything kept under this policy in one sidecar: keys, headers and bodies. Default: `64MiB`.
    #[schemars(extend("minimumBytes" = 65_536))]
    pub max_bytes: Option<ByteSize>,
    /// Variants by `Vary` kept of one resource. Default: `16`.
    #[schemars(range(min = 1, max = 1024))]
    pub max_variants: Option<u32>,
}

/// What happens to answers with `Set-Cookie`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum SetCookie {
    /// They are not kept.
    #[default]
    Bypass,
    /// They are kept without the cookie; only the first caller gets it.
    Strip,
}

/// A unary gRPC method whose answers are kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CacheGrpcMethod {
    /// The service with its package. Example: `shop.v1.Inventory`.
    #[schemars(length(min = 1, max = 1024), extend("format" = "grpc-service"))]
    pub service: String,
    /// The method. It must change nothing, since a hit never reaches the service. Example: `Stock`.
    #[schemars(length(min = 1, max = 1024), extend("format" = "grpc-method"))]
    pub method: String,
    /// How long answers are fresh. Example: `5s`.
    pub ttl: PolicyDuration,
}

/// Labels on answers, by which they can be purged.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CacheTags {
    /// The answer header that lists an answer's tags. Example: `cache-tag`.
    #[schemars(length(min = 1, max = 256), extend("format" = "header-name"))]
    pub header: String,
    /// Whether the header is taken away before the caller sees it. Default: `true`.
    pub strip: Option<bool>,
}

/// One fetch for requests that come at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Coalescing {
    /// Default: `true`.
    pub enabled: Option<bool>,
    /// How long a request waits for another's fetch before it fetches by itself. Default: `5s`.
    pub max_wait: Option<PolicyDuration>,
}

/// Further places to look before the origin is asked.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CacheTiers {
    /// Asks the other sidecars of the service: each key has one that fetches it for all. Off if left out.
    pub siblings: Option<SiblingTier>,
    /// Asks a Redis server. Off if left out.
    pub redis: Option<Box<RedisTier>>,
    /// Keeps more on disk than fits in memory. Off if left out.
    pub disk: Option<DiskTier>,
}

/// Asks the other sidecars of the service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SiblingTier {
    /// How long one is waited for before the origin is asked. Default: `100ms`.
    pub timeout: Option<PolicyDuration>,
}

/// Asks a Redis server.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RedisTier {
    /// Its address. Example: `redis.shop:6379`.
    #[schemars(length(min = 1, max = 253), extend("format" = "host-port"))]
    pub address: String,
    /// What every key starts with. Default: `weft:`.
    #[schemars(length(max = 64))]
    pub prefix: Option<String>,
    /// How long it is waited for before the origin is asked. Default: `20ms`.
    pub timeout: Option<PolicyDuration>,
    /// As whom sidecars log in. Left out, they do not.
    pub credentials: Option<RedisCredentials>,
    /// Reaches it by TLS; `{}` verifies it by the certificate authorities that the system trusts. Left out, everything
    /// goes in plain text.
    pub tls: Option<RedisTls>,
}

/// As whom sidecars log in to a Redis server. Policy says only where they find it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RedisCredentials {
    /// The secret: a folder of this name under that of the policy's namespace in each sidecar's `--secrets-dir`, with a
    /// file `password` and, for a user other than `default`, a file `username`. Example: `redis`.
    #[schemars(length(min = 1, max = 253), extend("format" = "secret-name"))]
    pub secret: String,
}

/// How a Redis server is reached by TLS. Its certificate is always verified.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RedisTls {
    /// A secret, found like that of `credentials`. Its file `ca.crt` has the certificate authorities that the server's
    /// certificate must come from, in place of the system's; with `tls.crt` and `tls.key` sidecars show a certificate
    /// of their own. Each may be left out.
    #[schemars(length(min = 1, max = 253), extend("format" = "secret-name"))]
    pub secret: Option<String>,
    /// The name that the server's certificate must be for. Default: the host of `address`.
    #[schemars(length(min = 1, max = 253), extend("format" = "hostname"))]
    pub server_name: Option<String>,
}

/// Keeps more on disk than fits in memory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DiskTier {
    /// How much is kept. Example: `10GiB`.
    #[schemars(extend("minimumBytes" = 1_048_576))]
    pub max_bytes: ByteSize,
}
