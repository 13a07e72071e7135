//! What an update does to the state: each resource is taken or refused on its own.

use super::{
    super::{
        compiling,
        entry::{Change, Incoming, Part, Refusal, Versioned},
        names::ResourceName,
    },
    Output, State,
};
use std::{collections::HashMap, sync::Arc, time::Duration};
use tokio::time::Instant;
use weft_config::{
    identity::ServiceName,
    snapshot::{Mesh, Workload},
    wire,
};

/// How long a new version waits for the services it forwards to.
const PUBLISH_WITHIN: Duration = Duration::from_millis(500);

impl State {
    /// Takes an update, resource by resource, and answers it.
    pub(in crate::policy) fn update(&mut self, update: wire::Update, now: Instant) -> Output {
        let mut output = Output::default();
        let mut mesh = None;
        let mut trust = None;
        let mut workload = None;
        let mut changes: HashMap<ServiceName, Change> = HashMap::new();
        let mut refused = Vec::new();

        for wire::Resource { name, version, body } in update.resources {
            use wire::resource::Body;
            // What this version does not know, or has unsubscribed meanwhile, is passed over.
            let Some(parsed) = ResourceName::parse(&name) else { continue };
            match (parsed, body) {
                (ResourceName::Mesh, Some(Body::Documents(body))) => {
                    mesh = Some(Incoming::New(Versioned { version, body }));
                }
                (ResourceName::Trust, Some(Body::Trust(body))) => trust = Some(Versioned { version, body }),
                (ResourceName::Workload(name), Some(Body::Documents(body))) => {
                    if name == self.own {
                        workload = Some(Incoming::New(Versioned { version, body }));
                    }
                }
                (ResourceName::Service(name), Some(Body::Documents(body))) => {
                    changes.entry(name).or_default().documents =
                        Some(Incoming::New(Versioned { version, body }));
                }
                (ResourceName::Endpoints(name), Some(Body::Endpoints(body))) => {
                    changes.entry(name).or_default().endpoints =
                        Some(Incoming::New(Versioned { version, body }));
                }
                (name, _) => refused.push(Refusal {
                    name,
                    version,
                    reason: "its content is not of the kind that its name says".to_owned(),
                }),
            }
        }
        for name in &update.removed {
            match ResourceName::parse(name) {
                Some(ResourceName::Mesh) => mesh = Some(Incoming::Gone),
                Some(ResourceName::Workload(name)) if name == self.own => workload = Some(Incoming::Gone),
                Some(ResourceName::Service(name)) => {
                    changes.entry(name).or_default().documents = Some(Incoming::Gone);
                }
                Some(ResourceName::Endpoints(name)) => {
                    changes.entry(name).or_default().endpoints = Some(Incoming::Gone);
                }
                // A trust bundle never goes away: without one nothing could be verified any more.
                _ => {}
            }
        }

        if let Some(trust) = trust {
            refused.extend(self.take_trust(trust, &mut output));
        }
        let mesh_changed = match mesh {
            Some(mesh) => self.take_mesh(mesh, &mut refused, &mut output),
            None => false,
        };
        if let Some(workload) = workload {
            refused.extend(self.take_workload(workload, &mut output));
        } else if mesh_changed {
            refused.extend(self.recompile_workload());
        }
        let publish_by = now + PUBLISH_WITHIN;
        let mesh = Arc::clone(&self.snapshot.mesh);
        for (name, change) in changes {
            let Some(entry) = self.services.get_mut(&name) else { continue };
            let [service, endpoints] = entry.resource_names();
            if change.documents.is_some() {
                self.refused.remove(&service);
            }
            if change.endpoints.is_some() {
                self.refused.remove(&endpoints);
            }
            refused.extend(entry.apply(change, &mesh, now, publish_by));
            self.tables.set_absent(&name, entry.absent_since.is_some());
            output.save = true;
        }
        if mesh_changed {
            for entry in self.services.values_mut() {
                refused.extend(entry.recompile(&mesh, publish_by));
            }
        }

        if !update.policy_version.is_empty() {
            self.policy_version.clone_from(&update.policy_version);
            output.policy_version = Some(update.policy_version);
        }
        for refusal in &refused {
            self.refused.insert(refusal.name.clone(), refusal.clone());
        }
        output.send.push(wire::to_control_plane::Message::Ack(wire::Ack {
            nonce: update.nonce,
            rejected: refused.iter().map(rejection).collect(),
        }));
        output.refused = refused;
        self.settle(now, &mut output);
        output
    }

    fn take_trust(&mut self, new: Versioned<wire::TrustBundle>, output: &mut Output) -> Option<Refusal> {
        self.refused.remove(&ResourceName::Trust);
        if let Err(reason) = compiling::trust(&new.body) {
            return Some(Refusal { name: ResourceName::Trust, version: new.version, reason });
        }
        output.roots = Some(new.body.roots.clone());
        output.save = true;
        self.trust = Part::Held(new);
        None
    }

    fn take_mesh(
        &mut self,
        new: Incoming<wire::Documents>,
        refused: &mut Vec<Refusal>,
        output: &mut Output,
    ) -> bool {
        self.refused.remove(&ResourceName::Mesh);
        let (part, mesh) = match new {
            Incoming::Gone => (Part::Absent, Mesh::default()),
            Incoming::New(new) => match compiling::mesh(&new.body) {
                Ok(mesh) => (Part::Held(new), mesh),
                Err(reason) => {
                    refused.push(Refusal { name: ResourceName::Mesh, version: new.version, reason });
                    return false;
                }
            },
        };
        self.mesh = part;
        output.save = true;
        if *self.snapshot.mesh == mesh {
            return false;
        }
        self.snapshot.mesh = Arc::new(mesh);
        self.dirty = true;
        true
    }

    fn take_workload(&mut self, new: Incoming<wire::Documents>, output: &mut Output) -> Option<Refusal> {
        let name = ResourceName::Workload(self.own.clone());
        self.refused.remove(&name);
        match new {
            Incoming::Gone => {
                self.workload = Part::Absent;
                self.dirty |= self.snapshot.workload.take().is_some();
            }
            Incoming::New(new) => {
                match compiling::workload(&self.own, &new.version, &new.body, &self.snapshot.mesh) {
                    Ok(workload) => {
                        self.set_workload(workload);
                        self.workload = Part::Held(new);
                    }
                    Err(reason) => return Some(Refusal { name, version: new.version, reason }),
                }
            }
        }
        output.save = true;
        None
    }

    fn recompile_workload(&mut self) -> Option<Refusal> {
        let held = self.workload.held()?;
        match compiling::workload(&self.own, &held.version, &held.body, &self.snapshot.mesh) {
            Ok(workload) => {
                self.set_workload(workload);
                None
            }
            Err(reason) => {
                let name = ResourceName::Workload(self.own.clone());
                Some(Refusal { name, version: held.version.clone(), reason })
            }
        }
    }

    fn set_workload(&mut self, workload: Workload) {
        self.snapshot.workload = Some(Arc::new(workload));
        self.dirty = true;
    }
}

/// A refusal as the control plane is told it.
fn rejection(refusal: &Refusal) -> wire::Rejection {
    wire::Rejection {
        name: refusal.name.to_string(),
        version: refusal.version.clone(),
        reason: compiling::cut(refusal.reason.clone()),
    }
}
