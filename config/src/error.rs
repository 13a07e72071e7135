//! What is wrong with a document: where, what was found, what was expected, and the cure.

use crate::document::DocumentKey;
use std::{fmt, sync::Arc};

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The document is accepted; something about it deserves a look.
    Warning,
    /// The document is rejected; its last good version stays in force.
    Error,
}

/// One finding about one document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// Error or warning.
    pub severity: Severity,
    /// The file it stands in, as it was named when it was read.
    pub file: Arc<str>,
    /// Line, from 1; 0 if unknown.
    pub line: u32,
    /// Column, from 1; 0 if unknown.
    pub column: u32,
    /// The document, where so much could be read of it.
    pub document: Option<DocumentKey>,
    /// The field's path, as `spec.rules[0].backendRefs[1].weight`; empty for the whole document.
    pub field: String,
    /// What was found and what was expected, one sentence without a full stop.
    pub message: String,
    /// What to do about it; empty if the message says it all.
    pub cure: String,
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}: ", self.file, self.line, self.column)?;
        if self.severity == Severity::Warning {
            f.write_str("warning: ")?;
        }
        if let Some(document) = &self.document {
            write!(f, "{document}: ")?;
        }
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        f.write_str(&self.message)?;
        if !self.cure.is_empty() {
            write!(f, "; {}", self.cure)?;
        }
        Ok(())
    }
}
