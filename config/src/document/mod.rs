//! Policy documents as people write them in YAML.

pub mod authorization_policy;
pub mod cache_policy;
pub mod duration;
pub mod endpoint_slice;
pub mod mesh_policy;
pub mod metadata;
pub mod route;
pub mod service;
pub mod size;
pub mod source;
pub mod target;
pub mod traffic_policy;
pub mod workload;

pub use authorization_policy::AuthorizationPolicy;
pub use cache_policy::CachePolicy;
pub use endpoint_slice::EndpointSlice;
pub use mesh_policy::MeshPolicy;
pub use metadata::Metadata;
pub use route::{GrpcRoute, HttpRoute};
pub use service::Service;
pub use source::{Located, Positions, Source};
pub use traffic_policy::TrafficPolicy;
pub use workload::Workload;

use crate::error::{Diagnostic, Severity};
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
    /// Every kind.
    pub const ALL: [Self; 9] = [
        Self::HttpRoute,
        Self::GrpcRoute,
        Self::Service,
        Self::EndpointSlice,
        Self::Workload,
        Self::TrafficPolicy,
        Self::CachePolicy,
        Self::AuthorizationPolicy,
        Self::MeshPolicy,
    ];

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

    /// The kind of this name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == name)
    }

    /// The `apiVersion` that documents of this kind have.
    pub const fn api_version(self) -> &'static str {
        match self {
            Self::HttpRoute | Self::GrpcRoute => "gateway.networking.k8s.io/v1",
            Self::Service => "v1",
            Self::EndpointSlice => "discovery.k8s.io/v1",
            Self::Workload
            | Self::TrafficPolicy
            | Self::CachePolicy
            | Self::AuthorizationPolicy
            | Self::MeshPolicy => "weft.mesh/v1alpha1",
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

/// One document of any kind.
#[derive(Clone, Debug, PartialEq)]
pub enum Document {
    /// An HTTPRoute.
    HttpRoute(HttpRoute),
    /// A GRPCRoute.
    GrpcRoute(GrpcRoute),
    /// A Service.
    Service(Service),
    /// An EndpointSlice.
    EndpointSlice(EndpointSlice),
    /// A Workload.
    Workload(Workload),
    /// A TrafficPolicy, which is far larger than the others.
    TrafficPolicy(Box<TrafficPolicy>),
    /// A CachePolicy.
    CachePolicy(CachePolicy),
    /// An AuthorizationPolicy.
    AuthorizationPolicy(AuthorizationPolicy),
    /// A MeshPolicy.
    MeshPolicy(MeshPolicy),
}

impl Document {
    /// Its kind.
    pub const fn kind(&self) -> Kind {
        match self {
            Self::HttpRoute(_) => Kind::HttpRoute,
            Self::GrpcRoute(_) => Kind::GrpcRoute,
            Self::Service(_) => Kind::Service,
            Self::EndpointSlice(_) => Kind::EndpointSlice,
            Self::Workload(_) => Kind::Workload,
            Self::TrafficPolicy(_) => Kind::TrafficPolicy,
            Self::CachePolicy(_) => Kind::CachePolicy,
            Self::AuthorizationPolicy(_) => Kind::AuthorizationPolicy,
            Self::MeshPolicy(_) => Kind::MeshPolicy,
        }
    }

    /// Its name, namespace and labels.
    pub const fn metadata(&self) -> &Metadata {
        match self {
            Self::HttpRoute(document) => &document.metadata,
            Self::GrpcRoute(document) => &document.metadata,
            Self::Service(document) => &document.metadata,
            Self::EndpointSlice(document) => &document.metadata,
            Self::Workload(document) => &document.metadata,
            Self::TrafficPolicy(document) => &document.metadata,
            Self::CachePolicy(document) => &document.metadata,
            Self::AuthorizationPolicy(document) => &document.metadata,
            Self::MeshPolicy(document) => &document.metadata,
        }
    }

    /// What makes it the same document across edits.
    pub fn key(&self) -> DocumentKey {
        let metadata = self.metadata();
        DocumentKey {
            kind: self.kind(),
            namespace: metadata.namespace().into(),
            name: metadata.name.as_str().into(),
        }
    }

    /// The document as JSON, without what is empty: how it goes over the wire.
    pub fn to_json(&self) -> String {
        self.to_value().to_string()
    }

    /// The document as a JSON value, without what is empty.
    pub fn to_value(&self) -> serde_json::Value {
        let value = match self {
            Self::HttpRoute(document) => serde_json::to_value(document),
            Self::GrpcRoute(document) => serde_json::to_value(document),
            Self::Service(document) => serde_json::to_value(document),
            Self::EndpointSlice(document) => serde_json::to_value(document),
            Self::Workload(document) => serde_json::to_value(document),
            Self::TrafficPolicy(document) => serde_json::to_value(document),
            Self::CachePolicy(document) => serde_json::to_value(document),
            Self::AuthorizationPolicy(document) => serde_json::to_value(document),
            Self::MeshPolicy(document) => serde_json::to_value(document),
        };
        // Documents hold texts, numbers, lists and maps with text keys only: JSON has all of them.
        let mut value = value.unwrap_or_default();
        without_empty(&mut value);
        value
    }

    /// The document of this kind from a JSON value. Only its form is checked; what a person wrote goes through
    /// [`crate::parse`].
    pub fn from_value(kind: Kind, value: serde_json::Value) -> Result<Self, serde_json::Error> {
        use serde_json::from_value;
        Ok(match kind {
            Kind::HttpRoute => Self::HttpRoute(from_value(value)?),
            Kind::GrpcRoute => Self::GrpcRoute(from_value(value)?),
            Kind::Service => Self::Service(from_value(value)?),
            Kind::EndpointSlice => Self::EndpointSlice(from_value(value)?),
            Kind::Workload => Self::Workload(from_value(value)?),
            Kind::TrafficPolicy => Self::TrafficPolicy(from_value(value)?),
            Kind::CachePolicy => Self::CachePolicy(from_value(value)?),
            Kind::AuthorizationPolicy => Self::AuthorizationPolicy(from_value(value)?),
            Kind::MeshPolicy => Self::MeshPolicy(from_value(value)?),
        })
    }

    /// The inverse of [`Document::to_json`], for what comes over the wire: `kind` as [`Kind::as_str`] writes it.
    #[expect(clippy::result_large_err, reason = "once per resource; callers collect findings unboxed")]
    pub fn from_json(kind: &str, json: &str) -> Result<Self, Diagnostic> {
        let failed = |message: String, cure: &str| Diagnostic {
            severity: Severity::Error,
            file: "(from the control plane)".into(),
            line: 0,
            column: 0,
            document: None,
            field: String::new(),
            message,
            cure: cure.to_owned(),
        };
        let Some(known) = Kind::parse(kind) else {
            let shown: String = kind.chars().take(64).collect();
            return Err(failed(
                format!("found a document of the unknown kind `{shown}`"),
                "run the same version of sidecar and control plane",
            ));
        };
        serde_json::from_str(json).and_then(|value| Self::from_value(known, value)).map_err(|error| {
            failed(
                format!("the JSON of a {kind} cannot be read: {error}"),
                "run the same version of sidecar and control plane",
            )
        })
    }
}

/// Takes away fields that are null or an empty list: they mean the same as a field that is not there.
fn without_empty(value: &mut serde_json::Value) {
    match value {
        serde_json::Value::Object(fields) => {
            fields.retain(|_, field| {
                without_empty(field);
                !field.is_null() && field.as_array().is_none_or(|list| !list.is_empty())
            });
        }
        serde_json::Value::Array(items) => items.iter_mut().for_each(without_empty),
        _ => {}
    }
}
