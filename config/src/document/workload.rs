//! Workload: one running instance of a service outside Kubernetes, or what `weft up` runs.

use crate::document::metadata::Resource;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

/// One running instance (`weft.mesh/v1alpha1`).
pub type Workload = Resource<WorkloadSpec>;

/// Where a workload is, what it serves, who it is, and how `weft up` runs it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct WorkloadSpec {
    /// The Service it serves, in its own namespace. If no such Service document exists, one is made from `ports`.
    /// Left out, it only calls (or is selected by a Service's `selector`). Example: `product`.
    #[schemars(length(min = 1, max = 63), extend("format" = "dns-label"))]
    pub service: Option<String>,
    /// The service account whose identity it has: `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`.
    #[serde(default = "default_service_account")]
    #[schemars(length(min = 1, max = 253), extend("format" = "object-name"))]
    pub service_account: String,
    /// The ports it serves.
    #[serde(default)]
    #[schemars(length(max = 100))]
    pub ports: Vec<WorkloadPort>,
    /// Where the application is, when `weft up` does not run it. Default: `127.0.0.1`. Example: `10.0.0.7`.
    #[schemars(extend("format" = "ip"))]
    pub address: Option<IpAddr>,
    /// The zone it runs in: calls prefer their own zone where a TrafficPolicy says so. Example: `a`.
    #[schemars(length(min = 1, max = 253))]
    pub zone: Option<String>,
    /// Its share of calls relative to the other instances of the service.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 10_000))]
    pub weight: u32,
    /// `false` says that no sidecar stands there (a database, an old host): it is called in plain text at
    /// `address` and the port's `appPort`.
    #[serde(default = "yes")]
    pub mesh: bool,
    /// Where its sidecar takes mesh traffic. Left out, the address that the sidecar itself reports to the control
    /// plane. Example: `10.0.0.7:15006`.
    #[schemars(extend("format" = "socket-address"))]
    pub inbound: Option<SocketAddr>,
    /// Local listeners whose every connection goes to one service, for applications that know no HTTP proxy.
    #[serde(default)]
    #[schemars(length(max = 1000))]
    pub upstreams: Vec<Upstream>,
    /// Only for `weft up`: the program that is the application, as a list of its arguments, or as one text that the
    /// shell runs. Example: `["cargo", "run"]`.
    pub command: Option<Command>,
    /// Only for `weft up`: the folder that `command` runs in, relative to this file. Default: this file's own folder.
    #[schemars(length(min = 1, max = 4096))]
    pub workdir: Option<String>,
    /// Only for `weft up`: further environment variables of `command`. Example: `{LOG: debug}`.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Only for `weft up`: how many instances run, named NAME-0, NAME-1 and so on.
    #[serde(default = "one")]
    #[schemars(range(min = 0, max = 100))]
    pub replicas: u32,
}

impl Default for WorkloadSpec {
    fn default() -> Self {
        Self {
            service: None,
            service_account: default_service_account(),
            ports: Vec::new(),
            address: None,
            zone: None,
            weight: 1,
            mesh: true,
            inbound: None,
            upstreams: Vec::new(),
            command: None,
            workdir: None,
            env: BTreeMap::new(),
            replicas: 1,
        }
    }
}

/// One port that a workload serves.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct WorkloadPort {
    /// A name, by which a Service's `targetPort` and a policy's `sectionName` can refer to it. Example: `http`.
    #[schemars(length(min = 1, max = 63))]
    pub name: Option<String>,
    /// The port of the service that callers use. Example: `8080`.
    #[schemars(range(min = 1))]
    pub port: u16,
    /// The port that the application listens on. Default: the same as `port`; `weft up` picks a free one and sets
    /// `PORT`.
    #[schemars(range(min = 1))]
    pub app_port: Option<u16>,
    /// What is spoken: `http`, `http2`, `grpc`, `tcp`, or the Kubernetes names `kubernetes.io/h2c`,
    /// `kubernetes.io/ws`. Left out, it is found out from the first bytes.
    #[schemars(extend("format" = "app-protocol"))]
    pub app_protocol: Option<String>,
}

/// A local listener whose every connection goes to one service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Upstream {
    /// Where to listen. Example: `127.0.0.1:5432`.
    #[schemars(extend("format" = "socket-address"))]
    pub listen: SocketAddr,
    /// The service that is called. Example: `db`.
    #[schemars(length(min = 1, max = 63), extend("format" = "dns-label"))]
    pub service: String,
    /// Its namespace. Default: the workload's own.
    #[schemars(length(min = 1, max = 63), extend("format" = "dns-label"))]
    pub namespace: Option<String>,
    /// The port that is called. Example: `5432`.
    #[schemars(range(min = 1))]
    pub port: u16,
}

/// A program to run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Command {
    /// One text, run by `sh -c`.
    Shell(String),
    /// The program and its arguments.
    Arguments(Vec<String>),
}

impl JsonSchema for Command {
    fn schema_name() -> Cow<'static, str> {
        "Command".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": ["array", "string"], "items": { "type": "string" }, "minItems": 1, "minLength": 1 })
    }
}

fn default_service_account() -> String {
    "default".to_owned()
}

const fn one() -> u32 {
    1
}

const fn yes() -> bool {
    true
}
