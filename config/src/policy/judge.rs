//! Decides which version of each document is in force, and what is wrong with the others.

use super::{
    DocumentState, DocumentStatus, FileContent, Held, InForce, attachment, enforcement, references,
    registry::Registry,
};
use crate::compile::{self, Findings};
use crate::document::{Document, DocumentKey};
use crate::error::{Diagnostic, Severity};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// What came of looking at all files.
pub(super) struct Verdict {
    pub(super) in_force: InForce,
    pub(super) diagnostics: Vec<Diagnostic>,
    pub(super) status: Vec<DocumentStatus>,
}

/// Looks at all files. `before` is what has been in force until now.
pub(super) fn judge(
    files: &BTreeMap<Arc<str>, FileContent>,
    before: &InForce,
    trust_domain_default: &Arc<str>,
) -> Verdict {
    let mut judge = Judge { before, set: InForce::new(), fresh: BTreeSet::new(), findings: BTreeMap::new() };
    let unreadable = judge.read(files);
    judge.keep_unreadable(&unreadable);
    judge.check_each();
    judge.check_together(trust_domain_default);
    judge.verdict(files, unreadable)
}

struct Judge<'a> {
    before: &'a InForce,
    /// What is in force as far as is known.
    set: InForce,
    /// Documents in `set` that were not in force in this form until now.
    fresh: BTreeSet<DocumentKey>,
    findings: BTreeMap<DocumentKey, Vec<Diagnostic>>,
}

impl Judge<'_> {
    /// Takes what the files hold. Gives what is wrong with files of which not all documents could be read.
    fn read(&mut self, files: &BTreeMap<Arc<str>, FileContent>) -> BTreeMap<Arc<str>, Vec<Diagnostic>> {
        let mut unreadable: BTreeMap<Arc<str>, Vec<Diagnostic>> = BTreeMap::new();
        let mut failed: BTreeSet<(&str, &DocumentKey)> = BTreeSet::new();
        for (file, content) in files {
            for found in &content.diagnostics {
                match &found.document {
                    Some(key) => {
                        self.findings.entry(key.clone()).or_default().push(found.clone());
                        if found.severity == Severity::Error {
                            failed.insert((file, key));
                        }
                    }
                    None => unreadable.entry(file.clone()).or_default().push(found.clone()),
                }
            }
        }
        let mut candidates: BTreeMap<DocumentKey, Vec<&Arc<Held>>> = BTreeMap::new();
        for (file, content) in files {
            for found in &content.documents {
                let key = found.key.clone();
                if !failed.contains(&(&**file, &key)) {
                    candidates.entry(key).or_default().push(found);
                }
            }
        }
        for (key, mut same) in candidates {
            let known = self.before.get(&key);
            // Of several with one name the one that is in force already stays, else the first.
            let stays =
                known.and_then(|known| same.iter().position(|found| found.source.file == known.source.file));
            let chosen = same.remove(stays.unwrap_or(0));
            for other in same {
                let mut findings = Findings::default();
                let at = &chosen.source;
                let message = format!("this document stands in {}:{} already", at.file, at.line);
                findings.error(
                    other,
                    "metadata.name",
                    message,
                    "give one of the two another name, or delete it",
                );
                self.findings.entry(key.clone()).or_default().extend(findings.diagnostics);
            }
            if known.is_none_or(|known| known.document != chosen.document) {
                self.fresh.insert(key.clone());
            }
            self.set.insert(key, chosen.clone());
        }
        // What is there but wrong keeps its last good version.
        for (_, key) in failed {
            if let (false, Some(known)) = (self.set.contains_key(key), self.before.get(key)) {
                self.set.insert(key.clone(), known.clone());
            }
        }
        unreadable
    }

    /// A file that cannot be read to its end may still hold every document it held before.
    fn keep_unreadable(&mut self, unreadable: &BTreeMap<Arc<str>, Vec<Diagnostic>>) {
        for (key, known) in self.before {
            let errors = unreadable.get(&known.source.file).into_iter().flatten();
            let errors: Vec<_> = errors.filter(|found| found.severity == Severity::Error).cloned().collect();
            if !errors.is_empty() && !self.set.contains_key(key) {
                self.findings.entry(key.clone()).or_default().extend(errors);
                self.set.insert(key.clone(), known.clone());
            }
        }
    }

    /// Compiles every new document by itself.
    fn check_each(&mut self) {
        for key in self.fresh.clone() {
            let Some(found) = self.set.get(&key).cloned() else { continue };
            let mut findings = Findings::default();
            compile::check(&found, &mut findings);
            if self.found(&key, findings.diagnostics) {
                self.demote(&key);
            }
        }
    }

    /// Looks for what only the whole set shows. Taking out a wrong document can make another one wrong, or right again,
    /// so this goes on until nothing changes; each round but the last takes out at least one new document. References
    /// come first: what leads nowhere cannot win a conflict.
    fn check_together(&mut self, trust_domain_default: &Arc<str>) {
        loop {
            let registry = Registry::new(&self.set, trust_domain_default);
            let dangling = self.references(&registry);
            let mut losers = self.fresh_and_wrong(&dangling);
            let mut wrong = dangling;
            if losers.is_empty() {
                let conflicts = attachment::conflicts(&self.set, |key| self.fresh.contains(key), &registry);
                let conflicting: BTreeSet<&DocumentKey> =
                    conflicts.iter().map(|found| &found.loser).collect();
                // Who loses against a loser may yet be right.
                let lost: BTreeSet<DocumentKey> = conflicts
                    .iter()
                    .filter(|found| {
                        !conflicting.contains(&found.winner) || !self.fresh.contains(&found.winner)
                    })
                    .map(|found| found.loser.clone())
                    .collect();
                for conflict in &conflicts {
                    let Some(found) = self.set.get(&conflict.loser) else { continue };
                    let mut findings = Findings::default();
                    findings.error(found, &conflict.field, conflict.message.clone(), "keep one of the two");
                    wrong.entry(conflict.loser.clone()).or_default().extend(findings.diagnostics);
                }
                losers = self.fresh_and_wrong(&wrong);
                losers.retain(|key| lost.contains(key));
            }
            let settled = losers.is_empty();
            for (key, found) in wrong {
                // Findings about what stays are those of the last round.
                if settled || losers.contains(&key) {
                    self.found(&key, found);
                }
            }
            if settled {
                return;
            }
            for key in losers {
                self.demote(&key);
            }
        }
    }

    /// What is wrong with references, by document.
    fn references(&self, registry: &Registry) -> BTreeMap<DocumentKey, Vec<Diagnostic>> {
        let mut wrong = BTreeMap::new();
        for (key, found) in &self.set {
            let mut findings = Findings::default();
            references::check(found, &self.set, registry, &mut findings);
            if !findings.diagnostics.is_empty() {
                wrong.insert(key.clone(), findings.diagnostics);
            }
        }
        wrong
    }

    /// The new ones among documents with errors.
    fn fresh_and_wrong(&self, found: &BTreeMap<DocumentKey, Vec<Diagnostic>>) -> BTreeSet<DocumentKey> {
        let is_error = |found: &Diagnostic| found.severity == Severity::Error;
        let wrong =
            found.iter().filter(|(key, found)| self.fresh.contains(*key) && found.iter().any(is_error));
        wrong.map(|(key, _)| key.clone()).collect()
    }

    /// Notes findings; true if any is an error.
    fn found(&mut self, key: &DocumentKey, found: Vec<Diagnostic>) -> bool {
        let error = found.iter().any(|found| found.severity == Severity::Error);
        if !found.is_empty() {
            let all = self.findings.entry(key.clone()).or_default();
            for found in found {
                if !all.contains(&found) {
                    all.push(found);
                }
            }
        }
        error
    }

    /// Puts a document's last good version in its place, if there is one.
    fn demote(&mut self, key: &DocumentKey) {
        self.fresh.remove(key);
        match self.before.get(key) {
            Some(known) => self.set.insert(key.clone(), known.clone()),
            None => self.set.remove(key),
        };
    }

    fn verdict(
        self,
        files: &BTreeMap<Arc<str>, FileContent>,
        unreadable: BTreeMap<Arc<str>, Vec<Diagnostic>>,
    ) -> Verdict {
        let mut places: BTreeMap<DocumentKey, (Arc<str>, u32)> = BTreeMap::new();
        for content in files.values() {
            for found in &content.documents {
                let place = (found.source.file.clone(), found.source.line);
                places.entry(found.key.clone()).or_insert(place);
            }
        }
        let keys: BTreeSet<&DocumentKey> = self.set.keys().chain(self.findings.keys()).collect();
        let mut status = Vec::with_capacity(keys.len());
        for key in keys {
            let mut diagnostics = self.findings.get(key).cloned().unwrap_or_default();
            diagnostics.sort_by(by_place);
            let wrong = diagnostics.iter().any(|found| found.severity == Severity::Error);
            let state = match (wrong, self.set.get(key)) {
                (true, Some(_)) => DocumentState::RejectedKeepingLastGood,
                (true, None) | (false, None) => DocumentState::Rejected,
                (false, Some(found)) => accepted(&found.document),
            };
            let place = places.get(key).cloned();
            let place = place.or_else(|| diagnostics.first().map(|found| (found.file.clone(), found.line)));
            let (file, line) = place.unwrap_or_else(|| ("".into(), 0));
            status.push(DocumentStatus { key: Some(key.clone()), file, line, state, diagnostics });
        }
        for (file, diagnostics) in &unreadable {
            let errors = diagnostics.iter().any(|found| found.severity == Severity::Error);
            let state = if errors { DocumentState::Rejected } else { DocumentState::Accepted };
            let line = diagnostics.first().map_or(0, |found| found.line);
            let (file, diagnostics) = (file.clone(), diagnostics.clone());
            status.push(DocumentStatus { key: None, file, line, state, diagnostics });
        }
        status.sort_by(|a, b| (&a.file, a.line, &a.key).cmp(&(&b.file, b.line, &b.key)));
        let mut diagnostics: Vec<Diagnostic> =
            self.findings.into_values().chain(unreadable.into_values()).flatten().collect();
        diagnostics.sort_by(by_place);
        diagnostics.dedup();
        Verdict { in_force: self.set, diagnostics, status }
    }
}

fn by_place(a: &Diagnostic, b: &Diagnostic) -> std::cmp::Ordering {
    let place = |found: &Diagnostic| (found.file.clone(), found.line, found.column);
    place(a).cmp(&place(b)).then_with(|| (&a.field, &a.message).cmp(&(&b.field, &b.message)))
}

fn accepted(document: &Document) -> DocumentState {
    let fields = enforcement::not_enforced(document);
    match fields.is_empty() {
        true => DocumentState::Accepted,
        false => DocumentState::AcceptedNotEnforced { fields },
    }
}
