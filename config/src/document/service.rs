//! Service as Kubernetes has it: the part that a mesh needs, the rest read past.

use crate::document::metadata::{PortOrName, Resource};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A name that calls are made to (`v1`).
pub type Service = Resource<ServiceSpec>;

/// What a Service asks for. Fields that only Kubernetes uses are read past.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServiceSpec {
    /// The workloads that serve it: those whose labels have all of these. Left out, the endpoints come from
    /// EndpointSlices, or from the Workloads that name this service. Example: `{app: product, version: v1}`.
    #[serde(default)]
    pub selector: BTreeMap<String, String>,
    /// The ports that it is called on.
    #[serde(default)]
    #[schemars(length(max = 1000))]
    pub ports: Vec<ServicePort>,
    /// `ExternalName` makes it another name for a host outside; every other type is served from endpoints.
    #[serde(rename = "type")]
    pub service_type: Option<String>,
    /// The host that a Service of type `ExternalName` stands for.
    pub external_name: Option<String>,
    /// The service's virtual address: `None` for a headless service.
    #[serde(rename = "clusterIP")]
    pub cluster_ip: Option<String>,
    /// All virtual addresses, one per IP family.
    #[serde(default, rename = "clusterIPs")]
    pub cluster_ips: Vec<String>,
    /// Whether endpoints that are not ready are called too. Default: `false`.
    #[serde(default)]
    pub publish_not_ready_addresses: bool,
}

/// One port of a Service. Fields that only Kubernetes uses are read past.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServicePort {
    /// Its name; required if there is more than one port. Example: `http`.
    #[schemars(length(min = 1, max = 63))]
    pub name: Option<String>,
    /// The number that callers use. Example: `80`.
    #[schemars(range(min = 1))]
    pub port: u16,
    /// The port at the workload: a number, or the name of one of its ports. Default: the same number as `port`.
    pub target_port: Option<PortOrName>,
    /// The transport. Only `TCP` is meshed. Default: `TCP`.
    #[serde(default)]
    pub protocol: TransportProtocol,
    /// What is spoken: `http`, `http2`, `grpc`, `tcp`, or the Kubernetes names `kubernetes.io/h2c`,
    /// `kubernetes.io/ws`. Left out, it is found out from the first bytes.
    pub app_protocol: Option<String>,
}

/// A transport protocol.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum TransportProtocol {
    /// TCP.
    #[default]
    #[serde(rename = "TCP")]
    Tcp,
    /// UDP: not meshed.
    #[serde(rename = "UDP")]
    Udp,
    /// SCTP: not meshed.
    #[serde(rename = "SCTP")]
    Sctp,
}
