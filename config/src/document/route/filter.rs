//! Filters of routes: what happens to a request and its answer on the way.

use super::BackendObjectRef;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// One step of an HTTPRoute: `type` says which, and the field of that name holds what it does.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpFilter {
    /// Which of the fields below is meant.
    #[serde(rename = "type")]
    pub filter_type: HttpFilterType,
    /// Changes the request's headers.
    pub request_header_modifier: Option<HeaderModifier>,
    /// Changes the answer's headers.
    pub response_header_modifier: Option<HeaderModifier>,
    /// Sends a copy of the request to another backend too; its answer is dropped.
    pub request_mirror: Option<RequestMirror>,
    /// Answers with a redirect and sends nothing on.
    pub request_redirect: Option<RequestRedirect>,
    /// Changes the request's host and path.
    pub url_rewrite: Option<UrlRewrite>,
    /// Answers cross-origin requests of browsers.
    pub cors: Option<Cors>,
    /// A filter of another API; Weft knows none, so such a rule answers 500.
    pub extension_ref: Option<LocalObjectRef>,
}

/// The kinds of filter that an HTTPRoute can have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum HttpFilterType {
    /// `requestHeaderModifier`.
    #[default]
    RequestHeaderModifier,
    /// `responseHeaderModifier`.
    ResponseHeaderModifier,
    /// `requestMirror`.
    RequestMirror,
    /// `requestRedirect`.
    RequestRedirect,
    /// `urlRewrite`.
    #[serde(rename = "URLRewrite")]
    UrlRewrite,
    /// `cors`.
    #[serde(rename = "CORS")]
    Cors,
    /// `extensionRef`.
    ExtensionRef,
}

/// One step of a GRPCRoute: `type` says which, and the field of that name holds what it does.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GrpcFilter {
    /// Which of the fields below is meant.
    #[serde(rename = "type")]
    pub filter_type: GrpcFilterType,
    /// Changes the call's headers (metadata).
    pub request_header_modifier: Option<HeaderModifier>,
    /// Changes the answer's headers (metadata).
    pub response_header_modifier: Option<HeaderModifier>,
    /// Sends a copy of the call to another backend too; its answer is dropped.
    pub request_mirror: Option<RequestMirror>,
    /// A filter of another API; Weft knows none, so such a rule answers `UNAVAILABLE`.
    pub extension_ref: Option<LocalObjectRef>,
}

/// The kinds of filter that a GRPCRoute can have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum GrpcFilterType {
    /// `requestHeaderModifier`.
    #[default]
    RequestHeaderModifier,
    /// `responseHeaderModifier`.
    ResponseHeaderModifier,
    /// `requestMirror`.
    RequestMirror,
    /// `extensionRef`.
    ExtensionRef,
}

/// Changes to headers: first `set`, then `add`, then `remove`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HeaderModifier {
    /// Headers that get this value in place of any they had.
    #[serde(default)]
    #[schemars(length(max = 16))]
    pub set: Vec<HeaderValueOf>,
    /// Headers that get this value beside those they had.
    #[serde(default)]
    #[schemars(length(max = 16))]
    pub add: Vec<HeaderValueOf>,
    /// Headers that are taken away. Example: `[x-debug]`.
    #[serde(default)]
    #[schemars(length(max = 16), inner(length(min = 1, max = 256)), extend("itemFormat" = "header-name"))]
    pub remove: Vec<String>,
}

/// A header and its value.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HeaderValueOf {
    /// The header's name. Example: `x-served-by`.
    #[schemars(length(min = 1, max = 256), extend("format" = "header-name"))]
    pub name: String,
    /// Its value. Example: `canary`.
    #[schemars(length(min = 1, max = 4096), extend("format" = "header-value"))]
    pub value: String,
}

/// Copies requests to another backend.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RequestMirror {
    /// Where the copies go.
    pub backend_ref: BackendObjectRef,
    /// The share of requests that are copied, in percent. Default: all. Not together with `fraction`.
    #[schemars(range(min = 0, max = 100))]
    pub percent: Option<u32>,
    /// The share of requests that are copied, as a fraction. Not together with `percent`.
    pub fraction: Option<Fraction>,
}

/// A share: `numerator` of `denominator`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Fraction {
    /// How many; not more than `denominator`.
    #[schemars(range(min = 0, max = 2_147_483_647))]
    pub numerator: u32,
    /// Out of how many.
    #[serde(default = "hundred")]
    #[schemars(range(min = 1, max = 2_147_483_647))]
    pub denominator: u32,
}

const fn hundred() -> u32 {
    100
}

/// A redirect answer. What is left out stays as in the request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RequestRedirect {
    /// The scheme of the new address.
    pub scheme: Option<RedirectScheme>,
    /// The host of the new address. Example: `www.example.com`.
    #[schemars(length(min = 1, max = 253), extend("format" = "hostname"))]
    pub hostname: Option<String>,
    /// The path of the new address.
    pub path: Option<PathModifier>,
    /// The port of the new address. Default: the scheme's own if `scheme` is given, else the request's.
    #[schemars(range(min = 1))]
    pub port: Option<u16>,
    /// The status of the answer: 301, 302, 303, 307 or 308.
    #[serde(default = "found")]
    #[schemars(extend("enum" = [301, 302, 303, 307, 308]))]
    pub status_code: u16,
}

impl Default for RequestRedirect {
    fn default() -> Self {
        Self { scheme: None, hostname: None, path: None, port: None, status_code: found() }
    }
}

const fn found() -> u16 {
    302
}

/// The scheme of a redirect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum RedirectScheme {
    /// `http`.
    Http,
    /// `https`.
    Https,
}

/// Changes a request's host and path before it goes on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct UrlRewrite {
    /// The new `Host`. Example: `internal.example.com`.
    #[schemars(length(min = 1, max = 253), extend("format" = "hostname"))]
    pub hostname: Option<String>,
    /// The new path.
    pub path: Option<PathModifier>,
}

/// A new path.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PathModifier {
    /// Which of the fields below is meant.
    #[serde(rename = "type")]
    pub modifier_type: PathModifierType,
    /// The whole new path. Example: `/maintenance`.
    #[schemars(length(max = 1024))]
    pub replace_full_path: Option<String>,
    /// What takes the place of the prefix that matched; the rule must then have exactly one match, a `PathPrefix`.
    /// Example: `/v2`.
    #[schemars(length(max = 1024))]
    pub replace_prefix_match: Option<String>,
}

/// What part of a path is replaced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum PathModifierType {
    /// All of it: `replaceFullPath`.
    #[default]
    ReplaceFullPath,
    /// The prefix that matched: `replacePrefixMatch`.
    ReplacePrefixMatch,
}

/// Answers to cross-origin requests of browsers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Cors {
    /// Origins that may call: `https://shop.example.com`, `https://*.example.com`, or `*` alone for all.
    #[serde(default)]
    #[schemars(length(max = 64), inner(length(min = 1, max = 253)), extend("itemFormat" = "cors-origin"))]
    pub allow_origins: Vec<String>,
    /// Whether the browser may send cookies and credentials.
    #[serde(default)]
    pub allow_credentials: bool,
    /// Methods that may be used, or `*` alone for all.
    #[serde(default)]
    #[schemars(length(max = 9))]
    pub allow_methods: Vec<CorsMethod>,
    /// Request headers that may be sent, or `*` alone for all.
    #[serde(default)]
    #[schemars(length(max = 64), inner(length(min = 1, max = 256)), extend("itemFormat" = "header-name"))]
    pub allow_headers: Vec<String>,
    /// Answer headers that the page may read, or `*` alone for all.
    #[serde(default)]
    #[schemars(length(max = 64), inner(length(min = 1, max = 256)), extend("itemFormat" = "header-name"))]
    pub expose_headers: Vec<String>,
    /// Seconds for which the browser may remember the answer to a preflight.
    #[serde(default = "five")]
    #[schemars(range(min = 1, max = 2_147_483_647))]
    pub max_age: u32,
}

impl Default for Cors {
    fn default() -> Self {
        Self {
            allow_origins: Vec::new(),
            allow_credentials: false,
            allow_methods: Vec::new(),
            allow_headers: Vec::new(),
            expose_headers: Vec::new(),
            max_age: five(),
        }
    }
}

const fn five() -> u32 {
    5
}

/// A method in a CORS filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum CorsMethod {
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
    /// Every method.
    #[serde(rename = "*")]
    Any,
}

/// A reference to an object in the route's own namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LocalObjectRef {
    /// Its API group.
    #[schemars(length(max = 253))]
    pub group: String,
    /// Its kind.
    #[schemars(length(min = 1, max = 63))]
    pub kind: String,
    /// Its name.
    #[schemars(length(min = 1, max = 253), extend("format" = "object-name"))]
    pub name: String,
}
