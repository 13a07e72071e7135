//! EndpointSlice as Kubernetes has it: where a Service is served when no Workload says so.

use crate::document::metadata::Metadata;
use crate::document::service::TransportProtocol;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The label that ties an EndpointSlice to its Service.
pub const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";

/// Addresses at which a Service is served (`discovery.k8s.io/v1`). The label `kubernetes.io/service-name` names the
/// Service.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EndpointSlice {
    /// Always `discovery.k8s.io/v1`.
    pub api_version: String,
    /// Always `EndpointSlice`.
    pub kind: String,
    /// Its name, namespace and labels.
    pub metadata: Metadata,
    /// What kind of addresses it holds.
    pub address_type: AddressType,
    /// The endpoints.
    #[serde(default)]
    #[schemars(length(max = 1000))]
    pub endpoints: Vec<SliceEndpoint>,
    /// The ports that every endpoint of the slice serves.
    #[serde(default)]
    #[schemars(length(max = 100))]
    pub ports: Vec<SlicePort>,
}

impl EndpointSlice {
    /// The name of the Service that it belongs to.
    pub fn service_name(&self) -> Option<&str> {
        self.metadata.labels.get(SERVICE_NAME_LABEL).map(String::as_str)
    }
}

/// What kind of addresses a slice holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum AddressType {
    /// IPv4 addresses.
    #[default]
    IPv4,
    /// IPv6 addresses.
    IPv6,
    /// Host names: accepted and not called.
    #[serde(rename = "FQDN")]
    Fqdn,
}

/// One endpoint of a slice.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SliceEndpoint {
    /// Its addresses; the first one is called. Example: `[10.0.0.7]`.
    #[schemars(length(min = 1, max = 100))]
    pub addresses: Vec<String>,
    /// Whether it takes calls.
    #[serde(default)]
    pub conditions: EndpointConditions,
    /// Its host name, if it has one.
    pub hostname: Option<String>,
    /// The node it runs on.
    pub node_name: Option<String>,
    /// Its zone. Example: `a`.
    pub zone: Option<String>,
    /// The object behind it, as a rule a Pod.
    pub target_ref: Option<ObjectReference>,
}

/// Whether an endpoint takes calls. What is not said counts as ready.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EndpointConditions {
    /// It takes calls. Default: `true`.
    pub ready: Option<bool>,
    /// It takes calls, even if it is about to stop.
    pub serving: Option<bool>,
    /// It is about to stop.
    pub terminating: Option<bool>,
}

/// A reference to a Kubernetes object.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ObjectReference {
    /// Its kind. Example: `Pod`.
    pub kind: Option<String>,
    /// Its namespace.
    pub namespace: Option<String>,
    /// Its name.
    pub name: Option<String>,
}

/// One port of a slice.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SlicePort {
    /// The name of the Service's port that this one serves; empty if the Service's only port has no name.
    pub name: Option<String>,
    /// The port at the endpoint.
    #[schemars(range(min = 1))]
    pub port: Option<u16>,
    /// The transport. Default: `TCP`.
    #[serde(default)]
    pub protocol: TransportProtocol,
    /// What is spoken there.
    pub app_protocol: Option<String>,
}
