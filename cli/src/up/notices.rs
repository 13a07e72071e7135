//! Tells in the terminal what becomes of policy while the mesh runs: each error once per change, with its source line.

use super::{log::Log, plan::Wanted, wanted};
use crate::{
    documents,
    excerpt::{self, Sources},
    mesh,
    terminal::Palette,
};
use std::{
    collections::BTreeSet,
    convert::Infallible,
    path::{Path, PathBuf},
    time::Duration,
};
use weft_control_plane::status::{DocumentState, Status};

/// How often the control plane is asked.
const EVERY: Duration = Duration::from_millis(250);

/// What has been told so far.
pub(super) struct Notices<'a> {
    dashboard: String,
    directory: PathBuf,
    running: &'a Wanted,
    log: &'a Log,
    palette: Palette,
    told: Told,
}

/// What the terminal shows already; the same thing is told again only after it was gone.
#[derive(Debug, Default, PartialEq)]
struct Told {
    version: String,
    findings: BTreeSet<String>,
    pending: BTreeSet<String>,
    refusals: BTreeSet<String>,
    differences: Vec<String>,
}

impl<'a> Notices<'a> {
    /// Nothing told yet but `findings`, which were shown before the start.
    pub(super) fn new(
        dashboard: &str,
        directory: &Path,
        running: &'a Wanted,
        findings: BTreeSet<String>,
        log: &'a Log,
        palette: Palette,
    ) -> Self {
        let told = Told { findings, ..Told::default() };
        Self { dashboard: dashboard.to_owned(), directory: directory.to_owned(), running, log, palette, told }
    }

    /// Looks again and again.
    pub(super) async fn follow(&mut self) -> Infallible {
        loop {
            tokio::time::sleep(EVERY).await;
            self.look().await;
        }
    }

    /// Looks once. While the control plane is away there is nothing to tell; its supervisor does.
    pub(super) async fn look(&mut self) {
        let Ok(body) = mesh::get(&self.dashboard, "/api/status").await else { return };
        let Ok(status) = serde_json::from_slice::<Status>(&body) else { return };
        let first = self.told.version.is_empty();
        let changed = self.told.version != status.control_plane.policy_version;
        for notice in self.told.update(&status, self.palette) {
            match notice {
                Notice::Line(text) => self.log.say(text),
                Notice::Block(text) => self.log.block(text),
            }
        }
        if changed && !first {
            self.compare();
        }
    }

    /// Policy takes effect at once, but which programs run is settled at the start: says so when it matters.
    fn compare(&mut self) {
        let Ok(policy) = documents::read(&self.directory) else { return };
        let differences = self.running.differences(&wanted(&policy));
        if differences != self.told.differences {
            if !differences.is_empty() {
                self.log.say(format!("restart `weft up` to run what changed: {}", differences.join(", ")));
            }
            self.told.differences = differences;
        }
    }
}

#[derive(Debug, PartialEq)]
enum Notice {
    Line(String),
    Block(String),
}

impl Told {
    /// Takes note of a status and gives what is new in it.
    fn update(&mut self, status: &Status, palette: Palette) -> Vec<Notice> {
        let mut notices = Vec::new();
        let mut sources = Sources::default();
        let mut findings = BTreeSet::new();
        let mut rejected = 0;
        for document in &status.documents {
            rejected += usize::from(document.state == DocumentState::Rejected);
            for finding in documents::of_status(document) {
                let key = documents::identity(&finding);
                if !self.findings.contains(&key) && !findings.contains(&key) {
                    notices.push(Notice::Block(excerpt::render(&finding, &mut sources, palette)));
                }
                findings.insert(key);
            }
        }
        for problem in &status.problems {
            let text = format!("{} {}", problem.path, problem.message);
            if !self.findings.contains(&text) {
                notices.push(Notice::Line(text.clone()));
            }
            findings.insert(text);
        }
        let worse = !notices.is_empty();
        let healed = !self.findings.is_empty() && findings.is_empty();
        self.findings = findings;

        let pending: BTreeSet<String> = documents::pending(status).into_iter().collect();
        if pending != self.pending && !pending.is_empty() {
            notices.extend(pending.iter().map(|p| Notice::Line(format!("accepted, not yet enforced: {p}"))));
        }
        self.pending = pending;

        let refusals: BTreeSet<String> = status
            .sidecars
            .iter()
            .flat_map(|s| {
                s.rejections.iter().map(|r| {
                    format!(
                        "the sidecar of {}/{} refuses {} and keeps what it has: {}",
                        s.namespace, s.workload, r.name, r.reason
                    )
                })
            })
            .collect();
        notices.extend(refusals.difference(&self.refusals).map(|text| Notice::Line(text.clone())));
        self.refusals = refusals;

        let version = &status.control_plane.policy_version;
        let first = self.version.is_empty();
        if first || self.version != *version || healed {
            if !first {
                let short: String = version.chars().take(12).collect();
                notices.push(Notice::Line(match (rejected, worse) {
                    (0, _) => format!("policy {short} is in force"),
                    (count, _) => format!(
                        "policy {short} is in force without {count} rejected {}; their last good versions stay",
                        if count == 1 { "document" } else { "documents" }
                    ),
                }));
            }
            self.version = version.clone();
        } else if worse && rejected > 0 {
            notices.push(Notice::Line("nothing changes: the last good policy stays in force".into()));
        }
        notices
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_control_plane::status::{ControlPlane, Diagnostic, Document, Rejection, Sidecar};

    fn status(version: &str, messages: &[&str]) -> Status {
        let document = |message: &&str| Document {
            kind: "HTTPRoute".into(),
            namespace: "shop".into(),
            name: "product".into(),
            file: "gone.yaml".into(),
            line: 3,
            state: DocumentState::Rejected,
            last_good_in_force: true,
            not_enforced: vec!["spec.rules[0].retry".into()],
            diagnostics: vec![Diagnostic {
                error: true,
                file: "gone.yaml".into(),
                line: 3,
                column: 5,
                message: (*message).to_owned(),
                ..Diagnostic::default()
            }],
        };
        Status {
            control_plane: ControlPlane { policy_version: version.into(), ..ControlPlane::default() },
            documents: messages.iter().map(document).collect(),
            ..Status::default()
        }
    }

    fn blocks(notices: &[Notice]) -> Vec<&str> {
        notices
            .iter()
            .filter_map(|n| if let Notice::Block(text) = n { Some(text.as_str()) } else { None })
            .collect()
    }

    fn lines(notices: &[Notice]) -> Vec<&str> {
        notices
            .iter()
            .filter_map(|n| if let Notice::Line(text) = n { Some(text.as_str()) } else { None })
            .collect()
    }

    #[test]
    fn an_error_is_shown_once_until_it_changes() {
        let mut told = Told::default();
        told.update(&status("v1", &[]), Palette::plain());
        let first = told.update(&status("v1", &["unknown field `weigth`"]), Palette::plain());
        assert!(blocks(&first)[0].contains("gone.yaml:3:5"), "{first:?}");
        assert!(lines(&first)[0].contains("last good policy stays"), "{first:?}");
        assert!(told.update(&status("v1", &["unknown field `weigth`"]), Palette::plain()).is_empty());
        let other = told.update(&status("v1", &["unknown field `wait`"]), Palette::plain());
        assert_eq!(blocks(&other).len(), 1);
    }

    #[test]
    fn a_cured_error_is_told_and_the_same_one_counts_as_new_afterwards() {
        let mut told = Told::default();
        told.update(&status("v1", &[]), Palette::plain());
        told.update(&status("v1", &["bad"]), Palette::plain());
        let cured = told.update(&status("v2", &[]), Palette::plain());
        assert_eq!(lines(&cured), ["policy v2 is in force"]);
        assert_eq!(blocks(&told.update(&status("v2", &["bad"]), Palette::plain())).len(), 1);
    }

    #[test]
    fn what_was_shown_before_the_start_is_not_shown_again() {
        let finding = documents::of_status(&status("v1", &["bad"]).documents[0]).remove(0);
        let mut told = Told { findings: [documents::identity(&finding)].into(), ..Told::default() };
        assert!(blocks(&told.update(&status("v1", &["bad"]), Palette::plain())).is_empty());
    }

    #[test]
    fn what_is_accepted_but_not_enforced_is_said_once() {
        let mut told = Told::default();
        let mut pending = status("v1", &["x"]);
        pending.documents[0].state = DocumentState::Pending;
        pending.documents[0].diagnostics.clear();
        let first = told.update(&pending, Palette::plain());
        assert_eq!(
            lines(&first),
            ["accepted, not yet enforced: HTTPRoute shop/product (gone.yaml:3): spec.rules[0].retry"]
        );
        assert!(told.update(&pending, Palette::plain()).is_empty());
    }

    #[test]
    fn a_sidecars_refusal_is_said_with_its_reason() {
        let mut told = Told::default();
        let mut refused = status("v1", &[]);
        refused.sidecars.push(Sidecar {
            namespace: "shop".into(),
            workload: "cart".into(),
            rejections: vec![Rejection {
                name: "service/shop/x".into(),
                version: "1".into(),
                reason: "no".into(),
            }],
            ..Sidecar::default()
        });
        assert!(
            lines(&told.update(&refused, Palette::plain()))[0].contains("shop/cart refuses service/shop/x")
        );
        assert!(told.update(&refused, Palette::plain()).is_empty());
    }
}
