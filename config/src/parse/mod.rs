//! From YAML text to documents: every problem of every document at once, each with its place and its cure.

mod check;
pub(crate) use check::choices;
pub(crate) mod format;
mod kind;
mod split;
#[cfg(test)]
mod tests;
mod tree;

use crate::document::{Document, DocumentKey, Kind, Located, Positions, Source, metadata::DEFAULT_NAMESPACE};
use crate::error::{Diagnostic, Severity};
use crate::validate;
use std::sync::Arc;
use tree::Node;

/// The longest document that is read, in bytes.
pub const MAX_DOCUMENT_BYTES: usize = 1 << 20;

/// The longest file that is read, in bytes.
pub const MAX_FILE_BYTES: usize = 64 << 20;

/// What a file holds.
#[derive(Clone, Debug, Default)]
pub struct Parsed {
    /// The documents without errors.
    pub documents: Vec<Located>,
    /// Errors of the other documents, and warnings. Each names its document where so much could be read of it.
    pub diagnostics: Vec<Diagnostic>,
}

/// Reads a file of YAML documents. An error in one document does not touch the others.
pub fn parse(file: &str, text: &str) -> Parsed {
    let mut reading = Reading { file: file.into(), parsed: Parsed::default() };
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if text.len() > MAX_FILE_BYTES {
        reading.error(
            (1, 1),
            format!("the file has {} bytes, more than {MAX_FILE_BYTES}", text.len()),
            "split it",
        );
        return reading.parsed;
    }
    for chunk in split::split(text) {
        reading.chunk(&chunk);
    }
    reading.parsed.diagnostics.sort_by_key(|found| (found.line, found.column));
    reading.parsed
}

/// Reads a file as [`parse`] does, from bytes that may not be text.
pub fn parse_bytes(file: &str, bytes: &[u8]) -> Parsed {
    let error = match std::str::from_utf8(bytes) {
        Ok(text) => return parse(file, text),
        Err(error) => error,
    };
    let mut reading = Reading { file: file.into(), parsed: Parsed::default() };
    let before = &bytes[..error.valid_up_to()];
    let line = before.iter().filter(|b| **b == b'\n').count() + 1;
    let column = before.iter().rev().take_while(|b| **b != b'\n').count() + 1;
    let at = (u32::try_from(line).unwrap_or(u32::MAX), u32::try_from(column).unwrap_or(u32::MAX));
    reading.error(at, "found bytes that are not UTF-8 text".into(), "save the file as UTF-8");
    reading.parsed
}

struct Reading {
    file: Arc<str>,
    parsed: Parsed,
}

impl Reading {
    fn error(&mut self, at: (u32, u32), message: String, cure: &str) {
        self.push(Severity::Error, at, None, "", message, cure);
    }

    fn push(
        &mut self,
        severity: Severity,
        at: (u32, u32),
        document: Option<DocumentKey>,
        field: &str,
        message: String,
        cure: &str,
    ) {
        self.parsed.diagnostics.push(Diagnostic {
            severity,
            file: self.file.clone(),
            line: at.0,
            column: at.1,
            document,
            field: field.to_owned(),
            message,
            cure: cure.to_owned(),
        });
    }

    fn chunk(&mut self, chunk: &split::Chunk<'_>) {
        if chunk.text.len() > MAX_DOCUMENT_BYTES {
            let message =
                format!("the document has {} bytes, more than {MAX_DOCUMENT_BYTES}", chunk.text.len());
            self.error((chunk.first_line, 1), message, "split it into several documents");
            return;
        }
        if let Some((at, character)) = split::control_character(chunk) {
            let message = format!(
                "found the control character U+{:04X}, which YAML does not allow",
                u32::from(character)
            );
            self.error(at, message, "take it away");
            return;
        }
        let tree = tree::read(chunk.text, chunk.first_line);
        let broken = tree.flaws.iter().any(|flaw| flaw.path.is_empty()) || tree.roots.is_empty();
        // A chunk holds one document, so what is wrong with the YAML belongs to it, as far as it can be told.
        let key = tree.roots.first().and_then(key_of).or_else(|| split::key_in_broken_text(chunk.text));
        let flawed = !tree.flaws.is_empty();
        for flaw in tree.flaws {
            self.push(Severity::Error, flaw.at, key.clone(), &flaw.path, flaw.message, &flaw.cure);
        }
        if flawed && broken {
            return;
        }
        for root in &tree.roots {
            if root.is_null() {
                continue;
            }
            self.root(root, flawed, 0);
        }
    }

    fn root(&mut self, root: &Node, flawed: bool, depth: usize) {
        let problem = match kind::of(root) {
            kind::Found::Known(kind) => return self.document(root, kind, flawed),
            kind::Found::List(items) if depth == 0 => {
                return items.iter().for_each(|item| self.root(item, flawed, depth + 1));
            }
            kind::Found::List(_) => {
                kind::Problem::error(root.at, "kind", "found a List within a List", "flatten it")
            }
            kind::Found::Wrong(problem) => problem,
        };
        self.push(problem.severity, problem.at, None, problem.field, problem.message, &problem.cure);
    }

    fn document(&mut self, root: &Node, kind: Kind, flawed: bool) {
        let checked = check::check(root, crate::schema::schema(kind));
        let key = key_of(root);
        let mut failed = flawed;
        let paths: Vec<String> = checked.problems.iter().map(|p| p.path.clone()).collect();
        for problem in checked.problems {
            failed |= problem.severity == Severity::Error;
            let at = problem.at;
            self.push(problem.severity, at, key.clone(), &problem.path, problem.message, &problem.cure);
        }
        let positions = Positions::new(checked.positions);
        let Some(value) = checked.value else { return };
        let document = match Document::from_value(kind, value) {
            Ok(document) => document,
            Err(error) => {
                // The schema was made from the type, so this is a value that only the type itself can judge.
                if !failed {
                    self.push(Severity::Error, root.at, key, "", format!("cannot be read: {error}"), "");
                }
                return;
            }
        };
        let source = Source { file: self.file.clone(), line: root.at.0, column: root.at.1 };
        let located = Located { document, source, positions };
        for finding in validate::validate(&located) {
            // What follows only from a problem that was told already is not worth telling.
            if paths.iter().any(|path| related(path, &finding.field)) {
                continue;
            }
            failed |= finding.severity == Severity::Error;
            self.parsed.diagnostics.push(finding);
        }
        if !failed {
            self.parsed.documents.push(located);
        }
    }
}

/// True if one path is within the other.
fn related(a: &str, b: &str) -> bool {
    let within = |outer: &str, inner: &str| {
        inner.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
    };
    within(a, b) || within(b, a)
}

/// The key of a document that may be wrong in other places.
fn key_of(root: &Node) -> Option<DocumentKey> {
    let kind::Found::Known(kind) = kind::of(root) else { return None };
    let metadata = root.field("metadata")?;
    let name = metadata.field("name")?.text().filter(|name| !name.is_empty() && name.len() <= 253)?;
    let namespace =
        metadata.field("namespace").and_then(Node::text).filter(|n| !n.is_empty() && n.len() <= 63);
    Some(DocumentKey { kind, namespace: namespace.unwrap_or(DEFAULT_NAMESPACE).into(), name: name.into() })
}

/// `did you mean …?` for the known name that is nearest to what was written; empty if none is near.
pub(crate) fn suggest<'a>(written: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    if written.is_empty() || written.len() > 128 {
        return String::new();
    }
    let folded = |text: &str| {
        text.chars().filter(char::is_ascii_alphanumeric).collect::<String>().to_ascii_lowercase()
    };
    let written = folded(written);
    let nearest = known
        .into_iter()
        .filter_map(|name| {
            let candidate = folded(name);
            let distance = strsim::damerau_levenshtein(&written, &candidate);
            let begins = written.len() >= 4
                && (candidate.starts_with(written.as_str())
                    || candidate.ends_with(written.as_str())
                    || (candidate.len() >= 4 && written.starts_with(&candidate)));
            let allowed = match written.len().min(candidate.len()) {
                0..=2 => 0,
                3..=5 => 1,
                _ => 2,
            };
            (distance <= allowed || begins).then_some((distance, name))
        })
        .min();
    nearest.map_or_else(String::new, |(_, name)| format!("did you mean `{name}`?"))
}
