//! What `GET /api/status` answers: the mesh as the control plane sees it. The command line reads the same types.

use serde::{Deserialize, Serialize};

/// The log target of everything that this status tells as well, so that whoever shows the status can turn it off.
pub const FINDINGS: &str = "weft_control_plane::findings";

/// The whole mesh at one moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// The control plane itself.
    pub control_plane: ControlPlane,
    /// Every document that was found, in the order of its file.
    pub documents: Vec<Document>,
    /// Files and directories that could not be read.
    #[serde(default)]
    pub problems: Vec<Problem>,
    /// Every service, sorted by namespace and name.
    pub services: Vec<Service>,
    /// Every connected sidecar, sorted by namespace and workload.
    pub sidecars: Vec<Sidecar>,
    /// What policy says is going away, and whatever else was called under that name lately; sorted by name.
    #[serde(default)]
    pub deprecated: Vec<Deprecated>,
}

/// The control plane itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ControlPlane {
    /// Program version.
    pub version: String,
    /// Trust domain of all identities.
    pub trust_domain: String,
    /// When it started, in seconds of Unix time.
    pub started: u64,
    /// When this status was taken, in seconds of Unix time.
    pub now: u64,
    /// The version of the whole policy.
    pub policy_version: String,
    /// True shortly after a start whose registry was lost: endpoints that sidecars hold are not taken away yet.
    pub settling: bool,
    /// When the CA that signs expires, in seconds of Unix time.
    pub authority_expires: u64,
    /// How many CA certificates are trusted: more than one while the CA is rotated.
    pub trusted_roots: usize,
    /// Where policy is read from.
    pub policy_sources: Vec<String>,
}

/// Whether a document is in force.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum DocumentState {
    /// It is.
    #[default]
    Accepted,
    /// It is good, but this version of Weft does not act on it yet.
    Pending,
    /// It is not; `last_good_in_force` says whether an older version is.
    Rejected,
}

impl DocumentState {
    /// As it is written in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Pending => "pending",
            Self::Rejected => "rejected",
        }
    }
}

/// One document.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Document {
    /// Kind as written; empty if it could not be read.
    pub kind: String,
    /// Namespace; empty if it could not be read.
    pub namespace: String,
    /// Name; empty if it could not be read.
    pub name: String,
    /// The file it stands in.
    pub file: String,
    /// The line it begins at, 0 if unknown.
    pub line: u32,
    /// Whether it is in force.
    pub state: DocumentState,
    /// For a rejected document: whether its last good version still is in force.
    pub last_good_in_force: bool,
    /// Fields that this version of Weft does not act on yet.
    #[serde(default)]
    pub not_enforced: Vec<String>,
    /// What was found.
    #[serde(default)]
    pub diagnostics: Vec<Diagnostic>,
}

/// One finding about a document.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Diagnostic {
    /// True if it is why the document was rejected; a warning otherwise.
    pub error: bool,
    /// File.
    pub file: String,
    /// Line, 0 if unknown.
    pub line: u32,
    /// Column, 0 if unknown.
    pub column: u32,
    /// Field path, empty for the whole document.
    pub field: String,
    /// What was found and what was expected.
    pub message: String,
    /// What to do.
    pub cure: String,
    /// All of it in one line, as compilers write it.
    pub text: String,
}

/// Something that could not be read.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Problem {
    /// The file or directory.
    pub path: String,
    /// What is wrong with it.
    pub message: String,
}

/// One service.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Service {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Version of what it is compiled from.
    pub version: String,
    /// Version of its endpoints.
    pub endpoints_version: String,
    /// The kinds and names of the documents that say how it is called.
    pub documents: Vec<String>,
    /// Where it is served.
    pub endpoints: Vec<Endpoint>,
}

/// One place where a service is served.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Endpoint {
    /// Service port.
    pub port: u32,
    /// Where peers connect to.
    pub address: String,
    /// Who has to be there; empty for plain text.
    pub identity: String,
    /// The workload.
    pub workload: String,
    /// Its zone, empty if unknown.
    pub zone: String,
    /// Its labels, sorted.
    pub labels: Vec<(String, String)>,
    /// Its weight.
    pub weight: u32,
}

/// One connected sidecar.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Sidecar {
    /// Namespace of its workload.
    pub namespace: String,
    /// Its workload.
    pub workload: String,
    /// The identity it proved.
    pub identity: String,
    /// What this process calls itself, new at every start.
    pub instance: String,
    /// Program version.
    pub version: String,
    /// Where its stream comes from.
    pub peer: String,
    /// Since when, in seconds of Unix time.
    pub connected_since: u64,
    /// Whether it takes traffic.
    pub ready: bool,
    /// Where it takes mesh traffic, empty if it does not say.
    pub inbound_address: String,
    /// When the last certificate it got expires, in seconds of Unix time; 0 if it got none from this process.
    pub certificate_expires: u64,
    /// What it holds, sorted by name.
    pub resources: Vec<Resource>,
    /// What it refused to take.
    pub rejections: Vec<Rejection>,
    /// True if it has not taken the latest of everything yet.
    pub behind: bool,
}

/// Something that is going away, and who calls it all the same.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Deprecated {
    /// What it is, as the policy targets it: `HTTPRoute shop/products#v1`.
    pub of: String,
    /// The TrafficPolicy that says so, `<namespace>/<name>`; empty if none in force does any more.
    pub policy: String,
    /// Since when it is deprecated, as written there.
    pub since: String,
    /// When it stops working, as written there; empty if it does not say.
    pub sunset: String,
    /// Where to read what to use in its place; empty if it does not say.
    pub link: String,
    /// Who called it in the last seven days, whoever called most first.
    pub callers: Vec<DeprecatedCaller>,
}

/// A workload that calls something that is going away.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeprecatedCaller {
    /// The identity that its sidecar proved.
    pub identity: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub workload: String,
    /// How many of its processes made the calls.
    pub processes: u64,
    /// How many calls they made since each of them started.
    pub calls: u64,
    /// When the last call was seen, in seconds of Unix time.
    pub last_call: u64,
}

/// A resource that a sidecar acknowledged.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Resource {
    /// Its name.
    pub name: String,
    /// The version acknowledged.
    pub version: String,
}

/// A resource that a sidecar refused.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rejection {
    /// Its name.
    pub name: String,
    /// The version refused.
    pub version: String,
    /// The sidecar's own words.
    pub reason: String,
}
