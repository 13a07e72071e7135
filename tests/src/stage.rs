//! A mesh that is set up: one caller, and instances of services with an application beside each.

use crate::{
    Backend, Beside, Client, Mesh, Process,
    mesh::{NAMESPACE, calling},
};
use futures_util::future::join_all;
use std::collections::BTreeMap;

/// One instance of a service.
pub struct Instance {
    name: String,
    service: String,
    port: u16,
    protocol: String,
    labels: String,
    more: String,
    also: Vec<u16>,
    workers: u16,
    app: Backend,
}

impl Instance {
    /// The only instance of the service of its name, which serves HTTP on port 8080.
    pub fn new(name: &str, app: Backend) -> Self {
        Self {
            name: name.to_owned(),
            service: name.to_owned(),
            port: 8080,
            protocol: "http".to_owned(),
            labels: String::new(),
            more: String::new(),
            also: Vec::new(),
            workers: 1,
            app,
        }
    }

    /// One of several instances of `service`.
    pub fn of(mut self, service: &str) -> Self {
        self.service = service.to_owned();
        self
    }

    /// Which serves gRPC on port 50051.
    pub fn grpc(mut self) -> Self {
        (self.port, self.protocol) = (50051, "grpc".to_owned());
        self
    }

    /// Whose application is also behind this port, of a Service that a document says more about.
    pub fn also(mut self, port: u16) -> Self {
        self.also.push(port);
        self
    }

    /// Whose sidecar has so many worker threads.
    pub fn workers(mut self, workers: u16) -> Self {
        self.workers = workers;
        self
    }

    /// With a label.
    pub fn label(mut self, name: &str, value: &str) -> Self {
        self.labels.push_str(&format!("{name}: {value}, "));
        self
    }

    /// In a zone.
    pub fn zone(mut self, zone: &str) -> Self {
        self.more.push_str(&format!("  zone: {zone}\n"));
        self
    }

    /// With another weight than the other instances.
    pub fn weight(mut self, weight: u32) -> Self {
        self.more.push_str(&format!("  weight: {weight}\n"));
        self
    }

    fn document(&self) -> String {
        let Self { name, service, port, protocol, labels, more, .. } = self;
        format!(
            "---
apiVersion: weft.mesh/v1alpha1
kind: Workload
metadata: {{ name: {name}, namespace: {NAMESPACE}, labels: {{ {labels}app: {service} }} }}
spec:
  service: {service}
  serviceAccount: {service}
  ports: [{{ port: {port}, appProtocol: {protocol} }}]
{more}"
        )
    }
}

/// A mesh with one caller and some instances, all of which know of each other.
pub struct Stage {
    /// The mesh.
    pub mesh: Mesh,
    /// The sidecar of `caller`.
    pub caller: Process,
    /// A client of it.
    pub client: Client,
    served: BTreeMap<String, (Process, Option<Backend>)>,
}

impl Stage {
    /// Sets everything up, with further documents besides the instances.
    pub async fn set(policy: &str, instances: impl IntoIterator<Item = Instance>) -> Self {
        Self::set_for(&calling("caller"), policy, instances).await
    }

    /// The same for a caller that says more of itself; its Workload must be called `caller`.
    pub async fn set_for(caller: &str, policy: &str, instances: impl IntoIterator<Item = Instance>) -> Self {
        let instances: Vec<Instance> = instances.into_iter().collect();
        let documents: String = instances.iter().map(Instance::document).collect();
        let mesh = Mesh::start(&(documents + caller + policy)).await;
        let mut services = BTreeMap::<&str, usize>::new();
        for instance in &instances {
            *services.entry(&instance.service).or_default() += 1;
        }
        let beside = instances.iter().map(|instance| {
            let beside = Beside::new(&instance.name).account(&instance.service).workers(instance.workers);
            let ports = instance.also.iter().chain([&instance.port]);
            mesh.sidecar(ports.fold(beside, |beside, port| beside.app(*port, instance.app.address())))
        });
        let (caller, started) = tokio::join!(mesh.sidecar(Beside::new("caller")), join_all(beside));
        for (service, count) in services {
            mesh.endpoints(service, count).await;
        }
        let client = Client::new(caller.outbound());
        let served = instances.into_iter().map(|instance| (instance.name, instance.app)).zip(started);
        let served = served.map(|((name, app), process)| (name, (process, Some(app)))).collect();
        Self { mesh, caller, client, served }
    }

    /// The sidecar beside an instance.
    pub fn beside(&self, instance: &str) -> &Process {
        &self.served[instance].0
    }

    /// Ends an instance as a crash does: its sidecar and its application are gone at once.
    pub fn kill(&mut self, instance: &str) {
        assert!(self.served.remove(instance).is_some(), "there is no {instance}");
    }

    /// Ends an instance's application as a crash does; its sidecar stays.
    pub fn kill_app(&mut self, instance: &str) {
        let app = self.served.get_mut(instance).and_then(|(_, app)| app.take());
        assert!(app.is_some(), "there is no {instance}");
    }

    /// Ends an instance in order, and waits until everybody knows: `left` of its service are left.
    pub async fn end(&mut self, instance: &str, service: &str, left: usize) {
        let (process, app) = self.served.remove(instance).expect("an instance of that name");
        process.drain().await;
        drop(app);
        self.mesh.endpoints(service, left).await;
    }

    /// Saves a policy file that says something new, and waits until every sidecar works by it.
    pub async fn change(&self, file: &str, yaml: &str) {
        let before = self.mesh.status().await.control_plane.policy_version;
        self.mesh.write(file, yaml);
        self.mesh
            .until(&format!("{file} is in force everywhere"), |status| {
                status.control_plane.policy_version != before && status.sidecars.iter().all(|s| !s.behind)
            })
            .await;
    }

    /// Another caller with an identity of its own; its Workload must be among the documents.
    pub async fn another(&self, caller: &str) -> (Process, Client) {
        let process = self.mesh.sidecar(Beside::new(caller)).await;
        let client = Client::new(process.outbound());
        (process, client)
    }
}

/// A TrafficPolicy: `target` as one of `targetRefs`, and its parts, a line each.
pub fn traffic_policy(name: &str, target: &str, parts: &[&str]) -> String {
    let parts = parts.join("\n  ");
    format!(
        "---
apiVersion: weft.mesh/v1alpha1
kind: TrafficPolicy
metadata: {{ name: {name}, namespace: {NAMESPACE} }}
spec:
  targetRefs: [{target}]
  {parts}
"
    )
}

/// A route of `kind` for all calls to a Service, called as that is, with its rules, a line each.
pub fn route(kind: &str, service: &str, rules: &[&str]) -> String {
    let rules = rules.join("\n    - ");
    format!(
        "---
apiVersion: gateway.networking.k8s.io/v1
kind: {kind}
metadata: {{ name: {service}, namespace: {NAMESPACE} }}
spec:
  parentRefs: [{{ group: \"\", kind: Service, name: {service} }}]
  rules:
    - {rules}
"
    )
}
