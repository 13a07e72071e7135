//! From files that were read to policy in force: what changed is published, what is wrong is said once and counted.

use super::{Mesh, lock};
use crate::{
    remembered::Remembered,
    source::{Problem, SourceFile, Tree},
    status::FINDINGS,
};
use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
    time::Instant,
};
use weft_config::{
    error::{Diagnostic, Severity},
    policy::{DocumentState, DocumentStatus, Policy},
};

/// Policy, and what there is to say about the files it comes from.
pub(crate) struct Sourced {
    pub(crate) policy: Policy,
    pub(crate) problems: Vec<Problem>,
    /// The last text of each file that had nothing wrong in it.
    last_good: BTreeMap<Arc<str>, Arc<str>>,
}

impl Sourced {
    pub(super) fn new(trust_domain: &str) -> Self {
        Self { policy: Policy::new(trust_domain), problems: Vec::new(), last_good: BTreeMap::new() }
    }
}

impl Mesh {
    /// Puts in force what was good when the control plane last ran. What has gone wrong in the files since then is found
    /// when they are read next; without this, a broken document would then have no last good version to keep.
    pub(crate) fn recall_policy(&self, files: &[SourceFile]) {
        let mut sourced = lock(&self.policy);
        sourced.last_good = files.iter().map(|file| (file.name.clone(), file.text.clone())).collect();
        let change = sourced.policy.replace_all(texts(files));
        let mut changed = change.changed;
        // Some resources exist without any document.
        changed.extend(sourced.policy.resource_names().map(str::to_owned));
        self.publish_policy(&sourced.policy, &changed);
    }

    /// Takes the files as they are now.
    pub(crate) fn apply(&self, tree: &Tree, remembered: &Remembered) {
        let start = Instant::now();
        let mut sourced = lock(&self.policy);
        let before: HashSet<String> = sourced.policy.status().iter().filter_map(rejection).collect();
        let change = sourced.policy.replace_all(texts(&tree.files));
        for found in &change.diagnostics {
            say(found);
        }
        for status in sourced.policy.status() {
            if rejection(status).is_some_and(|rejection| !before.contains(&rejection)) {
                let kind = status.key.as_ref().map_or("unknown", |key| key.kind.as_str());
                self.metrics.rejected.with_label_values(&[kind]).inc();
            }
        }
        let problems = self.problems(tree, &sourced.policy);
        for problem in problems.iter().filter(|problem| !sourced.problems.contains(problem)) {
            tracing::error!(target: FINDINGS, "{}: {}", problem.path, problem.message);
        }
        self.metrics.unreadable.set(problems.len() as i64);
        sourced.problems = problems;
        self.publish_policy(&sourced.policy, &change.changed);
        self.count_documents(&sourced.policy);
        let took = start.elapsed();
        self.metrics.apply_seconds.observe(took.as_secs_f64());
        tracing::info!(
            version = %sourced.policy.version(), changed = change.changed.len(), rejected = change.rejected,
            files = tree.files.len(), ?took, "policy read"
        );
        if sourced.keep_good(&tree.files) {
            let good: Vec<SourceFile> = sourced
                .last_good
                .iter()
                .map(|(name, text)| SourceFile { name: name.clone(), text: text.clone() })
                .collect();
            // Nobody has to wait for the disk.
            drop(sourced);
            if let Err(error) = remembered.keep_policy(&good) {
                tracing::error!("the last good policy is not written down: {error:#}");
            }
        }
    }

    fn problems(&self, tree: &Tree, policy: &Policy) -> Vec<Problem> {
        let mut problems = tree.problems.clone();
        let (wanted, own) = (policy.mesh().trust_domain, self.issuer.trust_domain());
        if wanted != *own {
            problems.push(Problem {
                path: "MeshPolicy".to_owned(),
                message: format!(
                    "`trustDomain: {wanted}` is not what this control plane issues identities of; restart it with \
                     --trust-domain {wanted}, or write `trustDomain: {own}`"
                ),
            });
        }
        problems
    }

    fn count_documents(&self, policy: &Policy) {
        let mut counts = [("accepted", 0), ("pending", 0), ("rejected", 0)];
        for status in policy.status() {
            let state = super::view::state(&status.state).as_str();
            for (_, count) in counts.iter_mut().filter(|(name, _)| *name == state) {
                *count += 1;
            }
        }
        for (state, count) in counts {
            self.metrics.documents.with_label_values(&[state]).set(count);
        }
    }
}

impl Sourced {
    /// Notes the text of every file without a rejected document. True if that is another than before.
    fn keep_good(&mut self, files: &[SourceFile]) -> bool {
        let bad: HashSet<&str> = self
            .policy
            .status()
            .iter()
            .filter(|status| status.state.is_rejected())
            .map(|status| &*status.file)
            .chain(
                self.policy.diagnostics().iter().filter(|d| d.severity == Severity::Error).map(|d| &*d.file),
            )
            .collect();
        let good: BTreeMap<Arc<str>, Arc<str>> = files
            .iter()
            .filter_map(|file| {
                let text = if bad.contains(&*file.name) {
                    self.last_good.get(&file.name)?.clone()
                } else {
                    file.text.clone()
                };
                Some((file.name.clone(), text))
            })
            .collect();
        if good == self.last_good {
            return false;
        }
        self.last_good = good;
        true
    }
}

fn texts(files: &[SourceFile]) -> impl Iterator<Item = (String, String)> + '_ {
    files.iter().map(|file| (file.name.to_string(), file.text.to_string()))
}

/// What tells one rejection from another.
fn rejection(status: &DocumentStatus) -> Option<String> {
    if !matches!(status.state, DocumentState::Rejected | DocumentState::RejectedKeepingLastGood) {
        return None;
    }
    let mut text = format!("{} {:?}\n", status.file, status.key);
    for found in &status.diagnostics {
        text.push_str(&format!("{found}\n"));
    }
    Some(text)
}

/// In full, as compilers do.
fn say(found: &Diagnostic) {
    match found.severity {
        Severity::Error => tracing::error!(target: FINDINGS, "{found}"),
        Severity::Warning => tracing::warn!(target: FINDINGS, "{found}"),
    }
}
