//! Policy documents as people write them in YAML.

use std::fmt;
use std::sync::Arc;

/// The kinds of document that Weft reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// `gateway.networking.k8s.io/v1` HTTPRoute.
    HttpRoute,
    /// `gateway.networking.k8s.io/v1` GRPCRoute.
    GrpcRoute,
    /// `v1` Service.
    Service,
    /// `discovery.k8s.io/v1` EndpointSlice.
    EndpointSlice,
    /// `weft.mesh/v1alpha1` Workload.
    Workload,
    /// `weft.mesh/v1alpha1` TrafficPolicy.
    TrafficPolicy,
    /// `weft.mesh/v1alpha1` CachePolicy.
    CachePolicy,
    /// `weft.mesh/v1alpha1` AuthorizationPolicy.
    AuthorizationPolicy,
    /// `weft.mesh/v1alpha1` MeshPolicy.
    MeshPolicy,
}

impl Kind {
    /// The kind as written in a document's `kind` field.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::HttpRoute => "HTTPRoute",
            Self::GrpcRoute => "GRPCRoute",
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::Workload => "Workload",
            Self::TrafficPolicy => "TrafficPolicy",
            Self::CachePolicy => "CachePolicy",
            Self::AuthorizationPolicy => "AuthorizationPolicy",
            Self::MeshPolicy => "MeshPolicy",
        }
    }
}

/// What makes a document the same document across edits.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DocumentKey {
    /// The kind.
    pub kind: Kind,
    /// The namespace, `default` if the document names none.
    pub namespace: Arc<str>,
    /// `metadata.name`.
    pub name: Arc<str>,
}

impl fmt::Display for DocumentKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}/{}", self.kind.as_str(), self.namespace, self.name)
    }
}
