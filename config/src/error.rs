//! What is wrong with a document: where, what was found, what was expected, and the cure.

use crate::document::DocumentKey;
use std::fmt::Write as _;
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

impl Diagnostic {
    /// The finding over several lines, with the line of the file that it is about and a mark under it, as plain text.
    /// `source` is the text of the file; without the line in it, that part is left out.
    pub fn render(&self, source: &str) -> String {
        let severity = match self.severity {
            Severity::Warning => "warning",
            Severity::Error => "error",
        };
        let mut text = format!("{severity}: {}\n", self.message);
        let number = self.line.to_string();
        let margin = " ".repeat(number.len());
        let _ = writeln!(text, "{margin}--> {}:{}:{}", self.file, self.line, self.column);
        let index = usize::try_from(self.line).unwrap_or(0);
        let line = index.checked_sub(1).and_then(|index| source.lines().nth(index));
        if let Some(line) = line {
            let start = usize::try_from(self.column).unwrap_or(0).saturating_sub(1);
            let (before, marked, shown) = excerpt(line, start);
            let _ = writeln!(
                text,
                "{margin} |\n{number} | {shown}\n{margin} | {}{}",
                " ".repeat(before),
                "^".repeat(marked)
            );
        }
        let document = self.document.as_ref().map(ToString::to_string);
        let place: Vec<&str> = document
            .as_deref()
            .into_iter()
            .chain(Some(self.field.as_str()).filter(|f| !f.is_empty()))
            .collect();
        if !place.is_empty() {
            let _ = writeln!(text, "{margin} = in: {}", place.join(", "));
        }
        if !self.cure.is_empty() {
            let _ = writeln!(text, "{margin} = help: {}", self.cure);
        }
        text
    }
}

/// How much of a line is shown.
const SHOWN: usize = 120;

/// The part of a line around a column: how many characters stand before it, how many to mark, and the part itself.
fn excerpt(line: &str, start: usize) -> (usize, usize, String) {
    let characters: Vec<char> =
        line.chars().map(|c| if c == '\t' || c.is_control() { ' ' } else { c }).collect();
    let start = start.min(characters.len());
    let from = if start > SHOWN - 40 { start - 40 } else { 0 };
    let to = characters.len().min(from + SHOWN);
    // A mark reaches to the end of the word or the quoted text.
    let end = match characters.get(start) {
        Some(quote @ ('"' | '\'')) => {
            characters[start + 1..].iter().position(|c| c == quote).map_or(start + 1, |end| start + end + 2)
        }
        _ => characters[start..]
            .iter()
            .position(|c| c.is_whitespace() || matches!(c, ',' | '}' | ']'))
            .map_or(characters.len(), |end| start + end),
    };
    let end = end.min(to).max(start + 1);
    let end = if characters.get(end - 1) == Some(&':') && end - start > 1 { end - 1 } else { end };
    (start - from, end - start, characters[from..to].iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::Kind;

    fn diagnostic(line: u32, column: u32) -> Diagnostic {
        Diagnostic {
            severity: Severity::Error,
            file: "shop/routes.yaml".into(),
            line,
            column,
            document: Some(DocumentKey {
                kind: Kind::HttpRoute,
                namespace: "shop".into(),
                name: "product".into(),
            }),
            field: "spec.rules[0].weigth".into(),
            message: "unknown field `weigth`".into(),
            cure: "did you mean `weight`?".into(),
        }
    }

    #[test]
    fn a_finding_shows_its_line_and_marks_the_word() {
        let source = "spec:\n  rules:\n    - weigth: 10\n";
        assert_eq!(
            diagnostic(3, 7).render(source),
            "error: unknown field `weigth`
 --> shop/routes.yaml:3:7
  |
3 |     - weigth: 10
  |       ^^^^^^
  = in: HTTPRoute shop/product, spec.rules[0].weigth
  = help: did you mean `weight`?
"
        );
    }

    #[test]
    fn a_finding_without_a_line_or_beyond_its_end_is_still_told() {
        for (line, column, source) in [(0, 0, ""), (9, 1, "a\n"), (1, 99, "a"), (1, 1, ""), (1, 4000, "x")] {
            assert!(diagnostic(line, column).render(source).contains("unknown field"));
        }
    }

    #[test]
    fn of_a_long_line_only_the_part_around_is_shown() {
        let source = format!("{}BAD {}", "a".repeat(5000), "b".repeat(5000));
        let text = diagnostic(1, 5001).render(&source);
        assert!(text.contains("BAD") && text.contains("^^^\n"), "{text}");
        assert!(text.lines().all(|line| line.len() < 140), "{text}");
    }
}
