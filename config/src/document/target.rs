//! What a policy is attached to.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// One thing that a policy applies to, in the policy's own namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TargetRef {
    /// The kind's API group: `""` for a Service (the default), `gateway.networking.k8s.io` for a route,
    /// `weft.mesh` for a Workload. Left out, it follows from the kind.
    pub group: Option<String>,
    /// What kind of thing it is. Example: `Service`.
    pub kind: TargetKind,
    /// Its name. Example: `product`.
    #[schemars(length(min = 1, max = 253), extend("format" = "object-name"))]
    pub name: String,
    /// A part of it: the name of a route's rule, or the name of a Service's port. Left out, the whole.
    #[schemars(length(min = 1, max = 253))]
    pub section_name: Option<String>,
}

impl TargetRef {
    /// The name of what is targeted by a policy in this namespace, for people and as a label: `Service shop/product`,
    /// `HTTPRoute shop/product#v1`. Control plane and sidecars know the same thing by it.
    pub fn named(&self, namespace: &str) -> String {
        let part = self.section_name.as_ref().map_or_else(String::new, |part| format!("#{part}"));
        format!("{} {namespace}/{}{part}", self.kind.as_str(), self.name)
    }
}

/// What a policy can be attached to. Each policy's reference says which of them it takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum TargetKind {
    /// All calls to a Service.
    #[default]
    Service,
    /// The calls that take an HTTPRoute, or one rule of it by `sectionName`.
    #[serde(rename = "HTTPRoute")]
    HttpRoute,
    /// The calls that take a GRPCRoute, or one rule of it by `sectionName`.
    #[serde(rename = "GRPCRoute")]
    GrpcRoute,
    /// One Workload.
    Workload,
}

impl TargetKind {
    /// The kind as written.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Service => "Service",
            Self::HttpRoute => "HTTPRoute",
            Self::GrpcRoute => "GRPCRoute",
            Self::Workload => "Workload",
        }
    }

    /// The API group that this kind belongs to.
    pub const fn group(self) -> &'static str {
        match self {
            Self::Service => "",
            Self::HttpRoute | Self::GrpcRoute => "gateway.networking.k8s.io",
            Self::Workload => "weft.mesh",
        }
    }
}
