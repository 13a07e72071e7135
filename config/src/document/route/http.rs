//! HTTPRoute: which HTTP requests go where, and how they change on the way.

use super::{BackendObjectRef, HeaderMatch, HttpFilter, ParentRef, SessionPersistence, StringMatchType};
use crate::document::duration::PolicyDuration;
use crate::document::metadata::Resource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Which HTTP requests go where (`gateway.networking.k8s.io/v1`).
pub type HttpRoute = Resource<HttpRouteSpec>;

/// Of all rules of all routes that match a request, one is taken: the exact path before the longest prefix, then a
/// method match, then more header matches, then more query matches; of equals the older route, then the first by
/// `namespace/name`, then the first rule.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpRouteSpec {
    /// The Services that the route decides for. Example: `[{group: "", kind: Service, name: product, port: 8080}]`.
    #[serde(default)]
    #[schemars(length(max = 32))]
    pub parent_refs: Vec<ParentRef>,
    /// Host names that requests must have; `*.` at the front stands for one or more labels. A route that is attached to
    /// a Service decides for all of its names, whatever stands here.
    #[serde(default)]
    #[schemars(length(max = 16), inner(length(min = 1, max = 253)), extend("itemFormat" = "hostname-or-wildcard"))]
    pub hostnames: Vec<String>,
    /// The rules. Default: one rule that matches everything.
    #[serde(default = "one_rule")]
    #[schemars(length(min = 1, max = 16))]
    pub rules: Vec<HttpRouteRule>,
}

fn one_rule() -> Vec<HttpRouteRule> {
    vec![HttpRouteRule::default()]
}

/// One rule: if any of `matches` matches, `filters` change the request and one of `backendRefs` gets it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpRouteRule {
    /// A name, by which policies can refer to the rule; it is also its label in metrics. Example: `canary`.
    #[schemars(length(min = 1, max = 253), extend("format" = "object-name"))]
    pub name: Option<String>,
    /// Conditions, any of. Left out, every request.
    #[serde(default)]
    #[schemars(length(max = 64))]
    pub matches: Vec<HttpRouteMatch>,
    /// Changes to the request and its answer.
    #[serde(default)]
    #[schemars(length(max = 16))]
    pub filters: Vec<HttpFilter>,
    /// Where requests go, in proportion to the weights. A rule without backends and without a redirect answers 500.
    #[serde(default)]
    #[schemars(length(max = 16))]
    pub backend_refs: Vec<HttpBackendRef>,
    /// How long a request may take.
    pub timeouts: Option<HttpTimeouts>,
    /// When a failed request is tried again (experimental channel).
    pub retry: Option<HttpRetry>,
    /// Keeps one user's requests on one endpoint (experimental channel).
    pub session_persistence: Option<SessionPersistence>,
}

/// One condition: every part that is given must match.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpRouteMatch {
    /// The path, without the query. Default: the prefix `/`.
    #[serde(default)]
    pub path: HttpPathMatch,
    /// Headers, all of. The names `weft-source-workload`, `weft-source-service-account` and `weft-source-namespace`
    /// stand for who calls, and no request can pretend to them.
    #[serde(default)]
    #[schemars(length(max = 16))]
    pub headers: Vec<HeaderMatch>,
    /// Query parameters, all of.
    #[serde(default)]
    #[schemars(length(max = 16))]
    pub query_params: Vec<HttpQueryParamMatch>,
    /// The method. Left out, any. Example: `GET`.
    pub method: Option<HttpMethod>,
}

/// A condition on the path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpPathMatch {
    /// How the path is compared.
    #[serde(default, rename = "type")]
    pub match_type: PathMatchType,
    /// The path, its prefix or the regular expression. Example: `/api`.
    #[serde(default = "root")]
    #[schemars(length(min = 1, max = 1024))]
    pub value: String,
}

impl Default for HttpPathMatch {
    fn default() -> Self {
        Self { match_type: PathMatchType::PathPrefix, value: root() }
    }
}

fn root() -> String {
    "/".to_owned()
}

/// How a path is compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum PathMatchType {
    /// Exactly this path.
    Exact,
    /// This path and everything below it, by whole segments: `/v1` takes `/v1` and `/v1/a`, not `/v10`.
    #[default]
    PathPrefix,
    /// A regular expression (RE2 syntax) that the whole path must match. Slower than the others.
    RegularExpression,
}

/// A query parameter that must be there with such a value.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpQueryParamMatch {
    /// How the value is compared.
    #[serde(default, rename = "type")]
    pub match_type: StringMatchType,
    /// The parameter's name, exactly. Example: `page`.
    #[schemars(length(min = 1, max = 256), extend("format" = "token"))]
    pub name: String,
    /// The value, or the regular expression. Example: `2`.
    #[schemars(length(min = 1, max = 1024))]
    pub value: String,
}

/// A method that a route can ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum HttpMethod {
    /// GET.
    Get,
    /// HEAD.
    Head,
    /// POST.
    Post,
    /// PUT.
    Put,
    /// DELETE.
    Delete,
    /// CONNECT.
    Connect,
    /// OPTIONS.
    Options,
    /// TRACE.
    Trace,
    /// PATCH.
    Patch,
}

impl HttpMethod {
    /// The method as it stands in a request.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Head => "HEAD",
            Self::Post => "POST",
            Self::Put => "PUT",
            Self::Delete => "DELETE",
            Self::Connect => "CONNECT",
            Self::Options => "OPTIONS",
            Self::Trace => "TRACE",
            Self::Patch => "PATCH",
        }
    }
}

/// A Service that requests are sent to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpBackendRef {
    /// Its API group: `""` (or `core`) for a Service.
    #[serde(default)]
    #[schemars(length(max = 253))]
    pub group: String,
    /// Its kind. Only `Service` is served; another kind answers 500.
    #[serde(default = "super::service_kind")]
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
    /// Its share of the requests relative to the sum of all weights of the rule; `0` for none.
    #[serde(default = "super::one")]
    #[schemars(range(min = 0, max = 1_000_000))]
    pub weight: u32,
    /// Changes to the requests that this backend gets.
    #[serde(default)]
    #[schemars(length(max = 16))]
    pub filters: Vec<HttpFilter>,
}

impl HttpBackendRef {
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

impl Default for HttpBackendRef {
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

/// How long a request may take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpTimeouts {
    /// From the request's first byte to the answer's last, all attempts together; `0s` for no limit. Default: the
    /// mesh's `limits.requestTimeout`. Example: `10s`.
    pub request: Option<PolicyDuration>,
    /// One attempt; not longer than `request`; `0s` for no limit. Example: `2s`.
    pub backend_request: Option<PolicyDuration>,
}

/// When a failed request is tried again (experimental channel). It adds to what a TrafficPolicy (or its default) says:
/// failures of the connection and timeouts are tried again too.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpRetry {
    /// Further statuses that are tried again. Example: `[500]`.
    #[serde(default)]
    #[schemars(length(max = 200), inner(range(min = 400, max = 599)))]
    pub codes: Vec<u16>,
    /// How often it is tried again, beyond the first attempt. Default: a TrafficPolicy's `retries.attempts`.
    #[schemars(range(min = 0, max = 10))]
    pub attempts: Option<u32>,
    /// The least wait before another attempt; a TrafficPolicy's `retries.backoff` comes on top of it. Example: `100ms`.
    pub backoff: Option<PolicyDuration>,
}
