//! AuthorizationPolicy: who may call what.

use crate::document::metadata::Resource;
use crate::document::target::TargetRef;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Who may call what (`weft.mesh/v1alpha1`).
pub type AuthorizationPolicy = Resource<AuthorizationPolicySpec>;

/// Deny policies are asked first: one match refuses the call. Then, if any allow policy applies to the workload, one of
/// their rules must match. Without any allow policy every call passes that none denies. Audit policies only record.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AuthorizationPolicySpec {
    /// The Services or Workloads that are protected. Left out, every workload of the policy's namespace.
    #[serde(default)]
    #[schemars(length(max = 16))]
    pub target_refs: Vec<TargetRef>,
    /// What happens to a call that a rule matches.
    #[serde(default)]
    pub action: AuthorizationAction,
    /// The rules, any of. An allow policy without rules allows nothing; a deny policy without rules denies nothing.
    #[serde(default)]
    #[schemars(length(max = 256))]
    pub rules: Vec<AuthorizationRule>,
}

/// What happens to a call that a rule matches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum AuthorizationAction {
    /// It may pass, and what no rule of any allow policy matches may not.
    #[default]
    Allow,
    /// It is refused with 403.
    Deny,
    /// It passes, and is counted and logged.
    Audit,
}

/// One rule: `from` and `to` must both match; one that is left out matches everything.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AuthorizationRule {
    /// A name for logs and metrics. Default: the rule's index.
    #[schemars(length(min = 1, max = 253), extend("format" = "object-name"))]
    pub name: Option<String>,
    /// Callers, any of. Left out, everyone.
    #[serde(default)]
    #[schemars(length(max = 256))]
    pub from: Vec<AuthorizationSource>,
    /// What is called, any of. Left out, everything.
    #[serde(default)]
    #[schemars(length(max = 256))]
    pub to: Vec<AuthorizationOperation>,
}

/// Callers: every part that is given must match.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AuthorizationSource {
    /// SPIFFE identities, any of; or a service account `<namespace>/<name>` of the mesh's own trust domain.
    /// Example: `[spiffe://weft.local/ns/shop/sa/cart, shop/checkout]`.
    #[serde(default)]
    #[schemars(length(max = 256), extend("itemFormat" = "identity"))]
    pub identities: Vec<String>,
    /// Namespaces of callers in the mesh's own trust domain, any of. Example: `[shop]`.
    #[serde(default)]
    #[schemars(length(max = 256), extend("itemFormat" = "dns-label"))]
    pub namespaces: Vec<String>,
    /// `true` matches every caller that proved an identity, `false` every caller that did not. Left out, both.
    pub authenticated: Option<bool>,
}

/// What is called: every part that is given must match. On ports of opaque TCP only `ports` can match; a rule that asks
/// for more than TCP can tell never matches there.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AuthorizationOperation {
    /// HTTP methods, any of. Example: `[GET, HEAD]`.
    #[serde(default)]
    #[schemars(length(max = 64), extend("itemFormat" = "http-method"))]
    pub methods: Vec<String>,
    /// Paths, any of: exactly this path, or with `/*` at the end this path and all below it. A gRPC method is the path
    /// `/package.Service/Method`. Example: `[/cart, /cart/*]`.
    #[serde(default)]
    #[schemars(length(max = 256), extend("itemFormat" = "path-pattern"))]
    pub paths: Vec<String>,
    /// Ports of the service, any of. Example: `[8080]`.
    #[serde(default)]
    #[schemars(length(max = 64), inner(range(min = 1)))]
    pub ports: Vec<u16>,
}
