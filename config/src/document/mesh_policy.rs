//! MeshPolicy: settings and bounds of the whole mesh.

use crate::document::duration::PolicyDuration;
use crate::document::metadata::Resource;
use crate::document::size::ByteSize;
use crate::document::workload::Command;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Settings of the whole mesh (`weft.mesh/v1alpha1`). A mesh has at most one.
pub type MeshPolicy = Resource<MeshPolicySpec>;

/// Everything is optional: what is left out keeps its default.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MeshPolicySpec {
    /// The trust domain of every identity. Default: what the control plane was started with (`weft.local`).
    #[schemars(length(min = 1, max = 255), extend("format" = "trust-domain"))]
    pub trust_domain: Option<String>,
    /// Encryption between workloads.
    #[serde(default)]
    pub mtls: Mtls,
    /// What happens to calls whose host is no service of the mesh. Default: `allowAny`.
    pub outbound: Option<OutboundMode>,
    /// Bounds and waits of every sidecar.
    #[serde(default)]
    pub limits: MeshLimits,
    /// Which requests are written to the access log.
    #[serde(default)]
    pub access_log: AccessLog,
    /// Traces.
    #[serde(default)]
    pub tracing: Tracing,
    /// Only for `weft up`.
    #[serde(default)]
    pub up: Up,
}

/// Encryption between workloads.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Mtls {
    /// Whether the inbound side takes plain text too. Default: `strict`.
    pub mode: Option<MtlsMode>,
}

/// What the inbound side of a sidecar takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum MtlsMode {
    /// Only mTLS from an identity of the mesh.
    Strict,
    /// Plain text too, and an application's own TLS; for moving into the mesh.
    Permissive,
}

/// What happens to calls whose host is no service of the mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum OutboundMode {
    /// They go to that host in plain text, as without a mesh.
    AllowAny,
    /// They are refused with 502.
    RegistryOnly,
}

/// Bounds and waits of every sidecar, for whatever a peer could make grow or hang.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MeshLimits {
    /// Bytes of one message's head, decoded; above, 431 to a caller and 502 for an answer. Default: `64KiB`.
    #[schemars(extend("minimumBytes" = 1024, "maximumBytes" = 16_777_216))]
    pub header_bytes: Option<ByteSize>,
    /// Fields in one message's head; above, 431 to a caller and 502 for an answer. Default: `128`.
    #[schemars(range(min = 8, max = 10_000))]
    pub header_count: Option<u32>,
    /// Connections per listener and worker. Default: `20000`.
    #[schemars(range(min = 1, max = 10_000_000))]
    pub connections: Option<u32>,
    /// Streams at once per HTTP/2 connection. Default: `256`.
    #[schemars(range(min = 1, max = 65_536))]
    pub streams: Option<u32>,
    /// Time for the whole head of a request after its first byte; after it, 408. Default: `10s`.
    pub header_timeout: Option<PolicyDuration>,
    /// A caller's connection without a request is closed after this. Default: `1h`.
    pub idle_timeout: Option<PolicyDuration>,
    /// An idle connection to an upstream is closed after this; keep it below the applications' own. Default: `4s`.
    pub pool_idle_timeout: Option<PolicyDuration>,
    /// Idle connections kept per endpoint and worker. Default: `512`.
    #[schemars(range(min = 0, max = 1_000_000))]
    pub pool_idle: Option<u32>,
    /// Connections per endpoint and worker. Default: `4096`.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub pool_connections: Option<u32>,
    /// Time for a TCP connect. Default: `2s`.
    pub connect_timeout: Option<PolicyDuration>,
    /// Time for a TLS handshake on either side. Default: `5s`.
    pub handshake_timeout: Option<PolicyDuration>,
    /// Time for the first bytes, which tell a connection's protocol. Default: `1s`.
    pub sniff_timeout: Option<PolicyDuration>,
    /// Time for a request that no route gives one; `0s` for no limit. Default: `15s`.
    pub request_timeout: Option<PolicyDuration>,
    /// An opaque TCP connection without bytes either way is closed after this. Default: `1h`.
    pub tcp_idle_timeout: Option<PolicyDuration>,
    /// Time that a draining sidecar gives what is in flight. Default: `30s`.
    pub drain_timeout: Option<PolicyDuration>,
}

/// Which requests are written to the access log.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AccessLog {
    /// The share of all requests, from `0` (none) to `1` (all). Default: `0`.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub sample: Option<f64>,
    /// Every answer with this status or above, whatever the share. Left out, there is no such rule. Example: `500`.
    #[schemars(range(min = 100, max = 599))]
    pub min_status: Option<u16>,
}

/// Traces.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Tracing {
    /// The share of new traces that are sampled, from `0` to `1`; a trace that comes in keeps its own flag.
    /// Default: `0.01`.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub sampling: Option<f64>,
}

/// How `weft up` runs a folder of documents.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Up {
    /// Run once before anything starts, in the folder of this file. Example: `["cargo", "build", "--release"]`.
    pub build: Option<Command>,
}
