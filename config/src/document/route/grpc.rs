//! GRPCRoute: which gRPC calls go where, by service and method.

use super::{BackendObjectRef, GrpcFilter, HeaderMatch, ParentRef, SessionPersistence, StringMatchType};
use crate::document::metadata::Resource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Which gRPC calls go where (`gateway.networking.k8s.io/v1`).
pub type GrpcRoute = Resource<GrpcRouteSpec>;

/// Of all rules of all routes that match a call, one is taken: more characters of the service, then of the method, then
/// more header matches; of equals the older route, then the first by `namespace/name`, then the first rule.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GrpcRouteSpec {
    /// The Services that the route decides for. Example: `[{group: "", kind: Service, name: inventory}]`.
    #[serde(default)]
    #[schemars(length(max = 32))]
    pub parent_refs: Vec<ParentRef>,
    /// Host names that calls must have; `*.` at the front stands for one or more labels. A route that is attached to a
    /// Service decides for all of its names, whatever stands here.
    #[serde(default)]
    #[schemars(length(max = 16), inner(length(min = 1, max = 253)), extend("itemFormat" = "hostname-or-wildcard"))]
    pub hostnames: Vec<String>,
    /// The rules.
    #[serde(default)]
    #[schemars(length(max = 16))]
    pub rules: Vec<GrpcRouteRule>,
}

/// One rule: if any of `matches` matches, `filters` change the call and one of `backendRefs` gets it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GrpcRouteRule {
    /// A name, by which policies can refer to the rule; it is also its label in metrics. Example: `reserve`.
    #[schemars(length(min = 1, max = 253), extend("format" = "object-name"))]
    pub name: Option<String>,
    /// Conditions, any of. Left out, every call.
    #[serde(default)]
    #[schemars(length(max = 64))]
    pub matches: Vec<GrpcRouteMatch>,
    /// Changes to the call and its answer.
    #[serde(default)]
    #[schemars(length(max = 16))]
    pub filters: Vec<GrpcFilter>,
    /// Where calls go, in proportion to the weights. A rule without backends answers `UNAVAILABLE`.
    #[serde(default)]
    #[schemars(length(max = 16))]
    pub backend_refs: Vec<GrpcBackendRef>,
    /// Keeps one user's calls on one endpoint (experimental channel).
    pub session_persistence: Option<SessionPersistence>,
}

/// One condition: every part that is given must match.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GrpcRouteMatch {
    /// The service and method. Left out, any.
    pub method: Option<GrpcMethodMatch>,
    /// Headers (gRPC metadata), all of. The names `weft-source-workload`, `weft-source-service-account` and
    /// `weft-source-namespace` stand for who calls, and no call can pretend to them.
    #[serde(default)]
    #[schemars(length(max = 16))]
    pub headers: Vec<HeaderMatch>,
}

/// A condition on the called method: `service`, `method` or both.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GrpcMethodMatch {
    /// How both are compared.
    #[serde(default, rename = "type")]
    pub match_type: StringMatchType,
    /// The service with its package. Left out, any. Example: `shop.v1.Inventory`.
    #[schemars(length(min = 1, max = 1024))]
    pub service: Option<String>,
    /// The method. Left out, any. Example: `Reserve`.
    #[schemars(length(min = 1, max = 1024))]
    pub method: Option<String>,
}

/// A Service that calls are sent to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GrpcBackendRef {
    /// Its API group: `""` (or `core`) for a Service.
    #[serde(default)]
    #[schemars(length(max = 253))]
    pub group: String,
    /// Its kind. Only `Service` is served; another kind answers `UNAVAILABLE`.
    #[serde(default = "super::service_kind")]
    #[schemars(length(min = 1, max = 63))]
    pub kind: String,
    /// Its name. Example: `inventory`.
    #[schemars(length(min = 1, max = 253), extend("format" = "object-name"))]
    pub name: String,
    /// Its namespace. Default: the route's own.
    #[schemars(length(min = 1, max = 63), extend("format" = "dns-label"))]
    pub namespace: Option<String>,
    /// The Service's port; required for a Service. Example: `50051`.
    #[schemars(range(min = 1))]
    pub port: Option<u16>,
    /// Its share of the calls relative to the sum of all weights of the rule; `0` for none.
    #[serde(default = "super::one")]
    #[schemars(range(min = 0, max = 1_000_000))]
    pub weight: u32,
    /// Changes to the calls that this backend gets.
    #[serde(default)]
    #[schemars(length(max = 16))]
    pub filters: Vec<GrpcFilter>,
}

impl GrpcBackendRef {
    /// The reference without weight and filters.
    pub fn object(&self) -> BackendObjectRef {
        BackendObjectRef {
            group: self.group.clone(),
            kind: self.kind.clone(),
            name: self.name.clone(),
            namespace: self.namespace.clone(),
            port: self.port,
        }
    }
}

impl Default for GrpcBackendRef {
    fn default() -> Self {
        Self {
            group: String::new(),
            kind: super::service_kind(),
            name: String::new(),
            namespace: None,
            port: None,
            weight: 1,
            filters: Vec::new(),
        }
    }
}
