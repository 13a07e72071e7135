//! HTTPRoute and GRPCRoute of the Gateway API, attached to Services (the GAMMA mesh profile).

mod filter;
mod grpc;
mod http;

pub use filter::*;
pub use grpc::*;
pub use http::*;

use crate::document::duration::PolicyDuration;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What a route is attached to. In a mesh that is a Service: the route then decides for the calls to that Service.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ParentRef {
    /// The parent's API group: `""` (or `core`) for a Service.
    #[serde(default = "gateway_group")]
    #[schemars(length(max = 253))]
    pub group: String,
    /// The parent's kind: `Service` in a mesh.
    #[serde(default = "gateway_kind")]
    #[schemars(length(min = 1, max = 63))]
    pub kind: String,
    /// Its namespace. Default: the route's own.
    #[schemars(length(min = 1, max = 63), extend("format" = "dns-label"))]
    pub namespace: Option<String>,
    /// Its name. Example: `product`.
    #[schemars(length(min = 1, max = 253), extend("format" = "object-name"))]
    pub name: String,
    /// The name of the Service's port that the route is for. Left out, see `port`.
    #[schemars(length(min = 1, max = 253))]
    pub section_name: Option<String>,
    /// The Service's port that the route is for. Left out, all of its ports.
    #[schemars(range(min = 1))]
    pub port: Option<u16>,
}

impl ParentRef {
    /// True if the parent is a Service, so that the route is for mesh traffic.
    pub fn is_service(&self) -> bool {
        self.kind == "Service" && (self.group.is_empty() || self.group == "core")
    }
}

impl Default for ParentRef {
    fn default() -> Self {
        Self {
            group: gateway_group(),
            kind: gateway_kind(),
            namespace: None,
            name: String::new(),
            section_name: None,
            port: None,
        }
    }
}

/// A thing that requests are sent to, without a weight.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BackendObjectRef {
    /// Its API group: `""` (or `core`) for a Service.
    #[serde(default)]
    #[schemars(length(max = 253))]
    pub group: String,
    /// Its kind. Only `Service` is served; another kind answers 500.
    #[serde(default = "service_kind")]
    #[schemars(length(min = 1, max = 63))]
    pub kind: String,
    /// Its name. Example: `product-v2`.
    #[schemars(length(min = 1, max = 253), extend("format" = "object-name"))]
    pub name: String,
    /// Its namespace. Default: the route's own.
    #[schemars(length(min = 1, max = 63), extend("format" = "dns-label"))]
    pub namespace: Option<String>,
    /// The Service's port; required for a Service. Example: `8080`.
    #[schemars(range(min = 1))]
    pub port: Option<u16>,
}

impl BackendObjectRef {
    /// True if the reference is to a Service.
    pub fn is_service(&self) -> bool {
        self.kind == "Service" && (self.group.is_empty() || self.group == "core")
    }
}

impl Default for BackendObjectRef {
    fn default() -> Self {
        Self { group: String::new(), kind: service_kind(), name: String::new(), namespace: None, port: None }
    }
}

/// How a header is compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum StringMatchType {
    /// The whole value, byte by byte.
    #[default]
    Exact,
    /// A regular expression (RE2 syntax) that the whole value must match.
    RegularExpression,
}

/// A request header that must be there with such a value.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HeaderMatch {
    /// How the value is compared.
    #[serde(default, rename = "type")]
    pub match_type: StringMatchType,
    /// The header's name; upper and lower case are the same. Example: `x-user-group`.
    #[schemars(length(min = 1, max = 256), extend("format" = "header-name"))]
    pub name: String,
    /// The value, or the regular expression. Example: `beta`.
    #[schemars(length(min = 1, max = 4096))]
    pub value: String,
}

/// Keeps one user's requests on one endpoint (experimental channel).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SessionPersistence {
    /// The name of the cookie or header that carries the session. Default: one made from the rule's name.
    #[schemars(length(min = 1, max = 128), extend("format" = "token"))]
    pub session_name: Option<String>,
    /// The session ends this long after it began. Required for a `Permanent` cookie. Example: `24h`.
    pub absolute_timeout: Option<PolicyDuration>,
    /// The session ends after this long without a request. Example: `30m`.
    pub idle_timeout: Option<PolicyDuration>,
    /// What carries the session.
    #[serde(default, rename = "type")]
    pub session_type: SessionType,
    /// The cookie's lifetime; only with `type: Cookie`.
    pub cookie_config: Option<CookieConfig>,
}

/// What carries a session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum SessionType {
    /// A cookie that the sidecar sets.
    #[default]
    Cookie,
    /// A header that the sidecar sends and the caller repeats.
    Header,
}

/// How long a session cookie lives.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CookieConfig {
    /// Until the browser closes, or until `absoluteTimeout`.
    #[serde(default)]
    pub lifetime_type: CookieLifetime,
}

/// The lifetime of a session cookie.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum CookieLifetime {
    /// It ends with the browser's session.
    #[default]
    Session,
    /// It ends with `absoluteTimeout`.
    Permanent,
}

fn gateway_group() -> String {
    "gateway.networking.k8s.io".to_owned()
}

fn gateway_kind() -> String {
    "Gateway".to_owned()
}

fn service_kind() -> String {
    "Service".to_owned()
}

const fn one() -> u32 {
    1
}
