//! All documents of a mesh: which of them are in force, what became of the others, and what follows for each sidecar.
//!
//! A document that is wrong never takes another one down: its last good version stays in force until it is mended or
//! deleted. What is "wrong" includes what only the whole set shows: references that lead nowhere, two documents of one
//! name, two policies that say different things about the same.

mod attachment;
mod enforcement;
mod judge;
mod references;
mod registry;
mod resources;
#[cfg(test)]
mod tests;

use crate::compile;
use crate::document::{Document, DocumentKey, Located};
use crate::error::{Diagnostic, Severity};
use crate::identity::ServiceName;
use crate::snapshot::Mesh;
use crate::wire;
use registry::Registry;
use resources::Resources;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    ops::Deref,
    sync::{Arc, OnceLock},
};

/// The documents in force, by what makes each the same document across edits.
type InForce = BTreeMap<DocumentKey, Arc<Held>>;

/// A document as it was read and, once that was wanted, as it goes over the wire: so that a save costs the writing out
/// of what it changes, not of everything.
#[derive(Debug)]
struct Held {
    located: Located,
    key: DocumentKey,
    wire: OnceLock<wire::Document>,
}

impl Held {
    fn new(located: Located) -> Self {
        Self { key: located.document.key(), located, wire: OnceLock::new() }
    }
}

impl Deref for Held {
    type Target = Located;

    fn deref(&self) -> &Located {
        &self.located
    }
}

/// All documents, with the last good version of each.
#[derive(Debug)]
pub struct Policy {
    trust_domain: Arc<str>,
    files: BTreeMap<Arc<str>, FileContent>,
    in_force: InForce,
    registry: Registry,
    resources: Resources,
    diagnostics: Vec<Diagnostic>,
    status: Vec<DocumentStatus>,
}

/// A file as it was last read.
#[derive(Debug, Default)]
struct FileContent {
    text: String,
    documents: Vec<Arc<Held>>,
    diagnostics: Vec<Diagnostic>,
}

/// What a change of files led to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Change {
    /// What was found that had not been found before, errors and warnings, by file and line.
    pub diagnostics: Vec<Diagnostic>,
    /// Names of the resources whose content is another than before or that are gone (`endpoints/…` included: those
    /// whose fixed endpoints, or the documents behind their leased ones, are others).
    pub changed: Vec<String>,
    /// How many documents were rejected that had not been rejected so before.
    pub rejected: usize,
}

/// What became of one document.
#[derive(Clone, Debug, PartialEq)]
pub struct DocumentStatus {
    /// Which document; `None` where not even that could be read.
    pub key: Option<DocumentKey>,
    /// The file it stands in.
    pub file: Arc<str>,
    /// The line it begins at, or that the first error is in.
    pub line: u32,
    /// Whether it is in force.
    pub state: DocumentState,
    /// What was found in it.
    pub diagnostics: Vec<Diagnostic>,
}

impl DocumentStatus {
    /// True if something is wrong with the document itself, not only with the file it was in.
    fn has_errors(&self) -> bool {
        self.diagnostics.iter().any(|found| found.severity == Severity::Error && found.document == self.key)
    }
}

/// Whether a document is in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DocumentState {
    /// It is.
    Accepted,
    /// It is, but these fields take effect only in a later version of Weft.
    AcceptedNotEnforced {
        /// Field paths.
        fields: Vec<String>,
    },
    /// It is not; the last version of it that was good is.
    RejectedKeepingLastGood,
    /// It is not, and neither is any other version of it.
    Rejected,
}

impl DocumentState {
    /// True for both ways of being rejected.
    pub fn is_rejected(&self) -> bool {
        matches!(self, Self::Rejected | Self::RejectedKeepingLastGood)
    }
}

impl Policy {
    /// A policy without documents. The trust domain holds unless a MeshPolicy names another.
    pub fn new(trust_domain_default: &str) -> Self {
        let in_force = InForce::new();
        let trust_domain: Arc<str> = trust_domain_default.into();
        let registry = Registry::new(&in_force, &trust_domain);
        let resources = Resources::new(&in_force, &registry);
        Self {
            trust_domain,
            files: BTreeMap::new(),
            in_force,
            registry,
            resources,
            diagnostics: Vec::new(),
            status: Vec::new(),
        }
    }

    /// Takes a file's new text.
    pub fn replace_file(&mut self, file: &str, text: &str) -> Change {
        self.read(file.to_owned(), text.to_owned());
        self.reassess()
    }

    /// A file is gone, and with it its documents.
    pub fn remove_file(&mut self, file: &str) -> Change {
        self.files.remove(file);
        self.reassess()
    }

    /// Takes the texts of all files there are; files that are not among them are gone.
    pub fn replace_all(&mut self, files: impl IntoIterator<Item = (String, String)>) -> Change {
        let mut seen = BTreeSet::new();
        for (file, text) in files {
            seen.insert(file.clone());
            self.read(file, text);
        }
        self.files.retain(|file, _| seen.contains(&**file));
        self.reassess()
    }

    fn read(&mut self, file: String, text: String) {
        if self.files.get(file.as_str()).is_some_and(|content| content.text == text) {
            return;
        }
        let parsed = crate::parse::parse(&file, &text);
        let content = FileContent {
            text,
            documents: parsed.documents.into_iter().map(|found| Arc::new(Held::new(found))).collect(),
            diagnostics: parsed.diagnostics,
        };
        self.files.insert(file.into(), content);
    }

    /// Decides anew what is in force.
    fn reassess(&mut self) -> Change {
        let verdict = judge::judge(&self.files, &self.in_force, &self.trust_domain);
        let registry = Registry::new(&verdict.in_force, &self.trust_domain);
        let resources = Resources::new(&verdict.in_force, &registry);
        let known = |status: &DocumentStatus| {
            self.status
                .iter()
                .any(|before| before.state == status.state && before.diagnostics == status.diagnostics)
        };
        let rejected = verdict.status.iter().filter(|status| status.has_errors() && !known(status)).count();
        let before: BTreeSet<String> = self.diagnostics.iter().map(ToString::to_string).collect();
        let new = verdict.diagnostics.iter().filter(|found| !before.contains(&found.to_string()));
        let change = Change {
            diagnostics: new.cloned().collect(),
            changed: self.resources.changed(&resources),
            rejected,
        };
        self.in_force = verdict.in_force;
        self.diagnostics = verdict.diagnostics;
        self.status = verdict.status;
        self.registry = registry;
        self.resources = resources;
        change
    }

    /// What became of every document, by file and line.
    pub fn status(&self) -> &[DocumentStatus] {
        &self.status
    }

    /// Everything that is wrong or deserves a look now, by file and line.
    pub fn diagnostics(&self) -> &[Diagnostic] {
        &self.diagnostics
    }

    /// The documents in force.
    pub fn documents(&self) -> impl Iterator<Item = &Located> {
        self.in_force.values().map(|found| &found.located)
    }

    /// A version of everything in force: another one whenever any resource is another.
    pub fn version(&self) -> String {
        self.resources.version()
    }

    /// Mesh-wide settings in force.
    pub fn mesh(&self) -> Mesh {
        self.resource("mesh").and_then(|(_, documents)| compile::mesh(&documents).ok()).unwrap_or_default()
    }

    /// A resource's version and its documents: `mesh`, `workload/<namespace>/<name>`, `service/<namespace>/<name>`.
    /// A replica of a workload, `<name>-<n>`, is made of that workload's document.
    pub fn resource(&self, name: &str) -> Option<(String, wire::Documents)> {
        let found = self.resources.get(name).or_else(|| {
            let (namespace, instance) = name.strip_prefix("workload/")?.split_once('/')?;
            let document = self.registry.workload(namespace, instance)?;
            self.resources.get(&format!("workload/{namespace}/{}", document.metadata.name))
        });
        found.map(|(version, documents)| (version.to_owned(), documents.clone()))
    }

    /// Names of all resources, replicas of workloads among them.
    pub fn resource_names(&self) -> impl Iterator<Item = &str> {
        self.resources.names()
    }

    /// Names of all services, those without a document of their own included.
    pub fn services(&self) -> impl Iterator<Item = ServiceName> {
        self.registry.services()
    }

    /// The document that a workload instance is made of: that of its very name, or for `<name>-<n>` that of `<name>`
    /// if it has more than `n` replicas.
    pub fn workload(&self, namespace: &str, instance: &str) -> Option<&crate::document::Workload> {
        self.registry.workload(namespace, instance)
    }

    /// The service account that a workload instance runs as.
    pub fn service_account(&self, namespace: &str, instance: &str) -> Option<&str> {
        self.workload(namespace, instance).map(|workload| workload.spec.service_account.as_str())
    }

    /// The services that a workload instance serves.
    pub fn serves(&self, namespace: &str, instance: &str) -> &[ServiceName] {
        self.registry.serves(namespace, instance)
    }

    /// Where a service is served by what documents say alone: Workloads without a sidecar (`mesh: false`), Workloads
    /// that name their sidecar's address (`inbound`), and EndpointSlices.
    pub fn static_endpoints(&self, service: &ServiceName) -> Vec<wire::Endpoint> {
        self.registry.static_endpoints(service)
    }

    /// What a workload instance serves while its sidecar takes mesh traffic at this address, with the identity that
    /// callers must find there. Nothing for workloads whose documents say themselves where they are.
    pub fn leased_endpoints(
        &self,
        namespace: &str,
        instance: &str,
        inbound: SocketAddr,
    ) -> Vec<(ServiceName, wire::Endpoint)> {
        self.registry.leased_endpoints(namespace, instance, inbound)
    }
}

/// The documents of one kind that are in force.
fn documents_of<'a, T: 'a>(
    in_force: &'a InForce,
    as_kind: impl Fn(&'a Document) -> Option<&'a T> + 'a,
) -> impl Iterator<Item = (&'a DocumentKey, &'a Arc<Held>, &'a T)> {
    in_force.iter().filter_map(move |(key, found)| Some((key, found, as_kind(&found.document)?)))
}
