//! Policy as the verbs see it: read from files or asked of a running mesh, with all that was found about it.

use crate::{
    excerpt::{self, Sources},
    exit::Failure,
    mesh,
    terminal::Palette,
};
use anyhow::Context;
use std::path::Path;
use weft_config::{
    compile::{self, Asked, Caller, Explanation},
    document::{DocumentKey, Kind, Located},
    error::{Diagnostic, Severity},
    identity::ServiceName,
    policy,
    snapshot::Snapshot,
};
use weft_control_plane::{source, status};

/// A whole policy.
pub(crate) struct Policy {
    policy: policy::Policy,
    problems: Vec<source::Problem>,
    /// How many documents were found, good or not.
    pub(crate) found: usize,
    /// Everything that was found about them, errors and warnings.
    pub(crate) diagnostics: Vec<Diagnostic>,
    /// What is good but has no effect yet: each with its fields.
    pub(crate) pending: Vec<String>,
}

impl Policy {
    /// The documents that are in force.
    pub(crate) fn documents(&self) -> impl Iterator<Item = &Located> {
        self.policy.documents()
    }

    /// All of it as `weft status` shows it, without a mesh that runs.
    pub(crate) fn status(&self) -> status::Status {
        status::Status::of_files(&self.policy, &self.problems)
    }

    /// All of it as the sidecar of this caller would hold it.
    pub(crate) fn snapshot(&self, caller: &Caller) -> Snapshot {
        compile::everything(&self.policy, caller)
    }

    /// What is decided about a request of a caller to a port that a rule takes, or that has no routes.
    pub(crate) fn explain(
        &self,
        caller: &Caller,
        service: &ServiceName,
        port: u16,
        rule: Option<&str>,
        asked: &Asked<'_>,
    ) -> Option<Explanation> {
        compile::explain(&self.policy, caller, service, port, rule, Some(asked))
    }

    /// The caller that `NAMESPACE` or `NAMESPACE/WORKLOAD` means.
    pub(crate) fn caller(&self, from: &str) -> Result<Caller, Failure> {
        let Some((namespace, workload)) = from.split_once('/') else {
            return Ok(Caller::in_namespace(from));
        };
        let account = self.policy.service_account(namespace, workload).ok_or_else(|| {
            Failure::Usage(format!(
                "there is no Workload {from}; `--from {namespace}` names the namespace only"
            ))
        })?;
        Ok(Caller { namespace: namespace.into(), service_account: account.into(), workload: workload.into() })
    }
}

/// Without a MeshPolicy that names another; as the control plane's own default.
const TRUST_DOMAIN: &str = "weft.local";

/// Reads a directory of YAML, or one file.
pub(crate) fn read(path: &Path) -> Result<Policy, Failure> {
    if let Err(error) = std::fs::metadata(path) {
        return Err(Failure::Usage(format!("{} cannot be read: {error}", path.display())));
    }
    let tree = source::load(&[path.to_owned()]);
    let mut policy = policy::Policy::new(TRUST_DOMAIN);
    policy.replace_all(tree.files.iter().map(|file| (file.name.to_string(), file.text.to_string())));
    let mut diagnostics: Vec<Diagnostic> = tree.problems.iter().map(unreadable).collect();
    diagnostics.extend_from_slice(policy.diagnostics());
    let pending = policy
        .status()
        .iter()
        .filter_map(|status| match (&status.state, &status.key) {
            (policy::DocumentState::AcceptedNotEnforced { fields }, Some(key)) => {
                Some(format!("{key} ({}:{}): {}", status.file, status.line, fields.join(", ")))
            }
            _ => None,
        })
        .collect();
    Ok(Policy { found: policy.status().len(), policy, problems: tree.problems, diagnostics, pending })
}

fn unreadable(problem: &source::Problem) -> Diagnostic {
    Diagnostic {
        severity: Severity::Error,
        file: problem.path.as_str().into(),
        line: 0,
        column: 0,
        document: None,
        field: String::new(),
        message: problem.message.clone(),
        cure: String::new(),
    }
}

/// The policy that is in force in a running mesh.
pub(crate) fn in_force(address: &str) -> Result<Policy, Failure> {
    let body = mesh::wait_for(mesh::get(address, "/api/documents?format=yaml"))??;
    let text = String::from_utf8(body.into()).context("the control plane's answer is no text")?;
    let mut policy = policy::Policy::new(TRUST_DOMAIN);
    policy.replace_all([(format!("http://{address}/api/documents"), text)]);
    let diagnostics = policy.diagnostics().to_vec();
    Ok(Policy {
        found: policy.status().len(),
        policy,
        problems: Vec::new(),
        diagnostics,
        pending: Vec::new(),
    })
}

/// What a running mesh's control plane has found about its policy; the documents themselves are not asked for.
pub(crate) fn found_by_mesh(address: &str) -> Result<Policy, Failure> {
    let status = mesh::status(address)?;
    let mut diagnostics: Vec<Diagnostic> = status
        .problems
        .iter()
        .map(|p| unreadable(&source::Problem { path: p.path.clone(), message: p.message.clone() }))
        .collect();
    diagnostics.extend(status.documents.iter().flat_map(of_status));
    Ok(Policy {
        policy: policy::Policy::new(TRUST_DOMAIN),
        problems: Vec::new(),
        found: status.documents.len(),
        diagnostics,
        pending: pending(&status),
    })
}

/// What a control plane has accepted but does not enforce yet.
pub(crate) fn pending(status: &status::Status) -> Vec<String> {
    status
        .documents
        .iter()
        .filter(|d| d.state == status::DocumentState::Pending)
        .map(|d| {
            format!(
                "{} {}/{} ({}:{}): {}",
                d.kind,
                d.namespace,
                d.name,
                d.file,
                d.line,
                d.not_enforced.join(", ")
            )
        })
        .collect()
}

/// The findings that a control plane tells about one document.
pub(crate) fn of_status(document: &status::Document) -> Vec<Diagnostic> {
    let key = Kind::parse(&document.kind).filter(|_| !document.name.is_empty()).map(|kind| DocumentKey {
        kind,
        namespace: document.namespace.as_str().into(),
        name: document.name.as_str().into(),
    });
    let finding = |d: &status::Diagnostic| Diagnostic {
        severity: if d.error { Severity::Error } else { Severity::Warning },
        file: d.file.as_str().into(),
        line: d.line,
        column: d.column,
        document: key.clone(),
        field: d.field.clone(),
        message: d.message.clone(),
        cure: d.cure.clone(),
    };
    document.diagnostics.iter().map(finding).collect()
}

/// What makes a finding the same finding.
pub(crate) fn identity(finding: &Diagnostic) -> String {
    finding.to_string()
}

/// All findings as text, an empty line between two.
pub(crate) fn render(findings: &[Diagnostic], sources: &mut Sources, palette: Palette) -> String {
    let shown: Vec<String> = findings.iter().map(|f| excerpt::render(f, sources, palette)).collect();
    shown.join("\n")
}

/// How many of them are errors.
pub(crate) fn errors(findings: &[Diagnostic]) -> usize {
    findings.iter().filter(|f| f.severity == Severity::Error).count()
}

/// `1 document`, `12 documents`.
pub(crate) fn count(documents: usize) -> String {
    if documents == 1 { "1 document".to_owned() } else { format!("{documents} documents") }
}
