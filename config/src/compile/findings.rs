//! Collects what is wrong while documents are compiled, each with its place.

use crate::document::{Document, Located, Positions, Source};
use crate::error::{Diagnostic, Severity};
use crate::wire;
use std::sync::Arc;

/// Everything found so far.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    pub(crate) diagnostics: Vec<Diagnostic>,
}

impl Findings {
    /// Says that a field of a document is wrong.
    pub(crate) fn error(&mut self, found: &Located, field: &str, message: String, cure: &str) {
        self.push(Severity::Error, found, field, message, cure);
    }

    /// Says that a field of a document deserves a look.
    pub(crate) fn warning(&mut self, found: &Located, field: &str, message: String, cure: &str) {
        self.push(Severity::Warning, found, field, message, cure);
    }

    fn push(&mut self, severity: Severity, found: &Located, field: &str, message: String, cure: &str) {
        let (mut line, mut column) = found.positions.of(field);
        if line == 0 {
            (line, column) = (found.source.line, found.source.column);
        }
        self.diagnostics.push(Diagnostic {
            severity,
            file: found.source.file.clone(),
            line,
            column,
            document: Some(found.document.key()),
            field: field.to_owned(),
            message,
            cure: cure.to_owned(),
        });
    }

    /// Says that something is wrong that no document shows.
    pub(crate) fn error_in(&mut self, resource: &str, message: String) {
        self.diagnostics.push(Diagnostic {
            severity: Severity::Error,
            file: resource.into(),
            line: 0,
            column: 0,
            document: None,
            field: String::new(),
            message,
            cure: String::new(),
        });
    }

    /// What was compiled if nothing is wrong, else everything that is.
    pub(crate) fn into_result<T>(self, compiled: Option<T>) -> Result<T, Vec<Diagnostic>> {
        match compiled {
            Some(compiled) if self.diagnostics.iter().all(|d| d.severity != Severity::Error) => Ok(compiled),
            _ => Err(self.diagnostics),
        }
    }
}

/// Reads documents that came over the wire; where they stand in a file is not known any more.
pub(crate) fn wire_documents(documents: &wire::Documents) -> Result<Vec<Located>, Vec<Diagnostic>> {
    let file: Arc<str> = "(from the control plane)".into();
    let (mut read, mut errors) = (Vec::with_capacity(documents.documents.len()), Vec::new());
    for document in &documents.documents {
        match Document::from_json(&document.kind, &document.json) {
            Ok(document) => read.push(Located {
                document,
                source: Source { file: file.clone(), line: 0, column: 0 },
                positions: Positions::default(),
            }),
            Err(error) => errors.push(error),
        }
    }
    if errors.is_empty() { Ok(read) } else { Err(errors) }
}
