//! Shows a finding the way compilers do: place, source line, and a caret under what is meant.

use crate::terminal::{Palette, Style};
use std::{collections::HashMap, path::Path, sync::Arc};
use weft_config::error::{Diagnostic, Severity};

/// The source files that findings point into, each read once.
#[derive(Default)]
pub(crate) struct Sources {
    files: HashMap<Arc<str>, Option<String>>,
}

/// A file larger than this is not read back just to show a line of it.
const LARGEST: u64 = 16 * 1024 * 1024;

impl Sources {
    /// Line `number` (from 1) of `file`, if it can still be read.
    fn line(&mut self, file: &Arc<str>, number: u32) -> Option<&str> {
        let text = self.files.entry(file.clone()).or_insert_with(|| {
            let path = Path::new(&**file);
            let size = std::fs::metadata(path).ok()?.len();
            if size > LARGEST { None } else { std::fs::read_to_string(path).ok() }
        });
        text.as_deref()?.lines().nth(usize::try_from(number).ok()?.checked_sub(1)?)
    }
}

/// The whole finding as text, ending with a line break.
pub(crate) fn render(finding: &Diagnostic, sources: &mut Sources, palette: Palette) -> String {
    let (label, style) = match finding.severity {
        Severity::Error => ("error", Style::Error),
        Severity::Warning => ("warning", Style::Warning),
    };
    let mut what = String::new();
    if let Some(document) = &finding.document {
        what.push_str(&format!("{document}: "));
    }
    if !finding.field.is_empty() {
        what.push_str(&format!("{}: ", finding.field));
    }
    what.push_str(&finding.message);
    let mut text = format!("{}: {}\n", palette.paint(style, label), palette.paint(Style::Bold, &what));

    let number = finding.line.to_string();
    let margin = " ".repeat(number.len());
    let arrow = palette.paint(Style::Place, "-->");
    if finding.line == 0 {
        text.push_str(&format!("{margin}{arrow} {}\n", finding.file));
    } else {
        text.push_str(&format!("{margin}{arrow} {}:{}:{}\n", finding.file, finding.line, finding.column));
        if let Some(line) = sources.line(&finding.file, finding.line) {
            let bar = palette.paint(Style::Place, "|");
            let (shown, caret) = underline(line, finding.column);
            text.push_str(&format!("{margin} {bar}\n"));
            text.push_str(&format!("{} {bar} {shown}\n", palette.paint(Style::Place, &number)));
            if let Some(caret) = caret {
                let blank: String = caret.chars().take_while(|c| c.is_whitespace()).collect();
                let mark = palette.paint(style, &caret[blank.len()..]);
                text.push_str(&format!("{margin} {bar} {blank}{mark}\n"));
            }
        }
    }
    if !finding.cure.is_empty() {
        text.push_str(&format!("{margin} {} {}\n", palette.paint(Style::Place, "="), finding.cure));
    }
    text
}

/// How much of a long line is shown.
const WIDEST: usize = 160;

/// The line as shown, and the line of carets below it.
fn underline(line: &str, column: u32) -> (String, Option<String>) {
    // A tab or a control character would put the caret elsewhere, or worse.
    let clean: Vec<char> = line.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let start = (column as usize).saturating_sub(1);
    // Of a long line, the part around the caret is what matters.
    let skip = if start + 20 > WIDEST { start - WIDEST / 2 } else { 0 };
    let shown: String = clean.iter().skip(skip).take(WIDEST).collect();
    if column == 0 || start > clean.len() {
        return (shown, None);
    }
    let word = |c: &&char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.' | '/');
    let length = clean.iter().skip(start).take_while(word).count().clamp(1, 60);
    (shown, Some(format!("{}{}", " ".repeat(start - skip), "^".repeat(length))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_config::document::{DocumentKey, Kind};

    fn finding(file: &str, line: u32, column: u32) -> Diagnostic {
        Diagnostic {
            severity: Severity::Error,
            file: file.into(),
            line,
            column,
            document: Some(DocumentKey {
                kind: Kind::HttpRoute,
                namespace: "shop".into(),
                name: "product".into(),
            }),
            field: "spec.rules[0].backendRefs[1].weigth".into(),
            message: "unknown field `weigth`".into(),
            cure: "did you mean `weight`?".into(),
        }
    }

    #[test]
    fn the_caret_stands_under_the_field() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("route.yaml");
        std::fs::write(&path, "kind: HTTPRoute\nspec:\n  weigth: 3\n").expect("written");
        let name = path.to_str().expect("utf-8");
        let text = render(&finding(name, 3, 3), &mut Sources::default(), Palette::plain());
        let expected = format!(
            "error: HTTPRoute shop/product: spec.rules[0].backendRefs[1].weigth: unknown field `weigth`\n \
             --> {name}:3:3\n  |\n3 |   weigth: 3\n  |   ^^^^^^\n  = did you mean `weight`?\n"
        );
        assert_eq!(text, expected);
    }

    #[test]
    fn a_file_that_is_gone_still_gets_its_message() {
        let text = render(&finding("/nowhere/at/all.yaml", 12, 4), &mut Sources::default(), Palette::plain());
        assert!(text.contains("/nowhere/at/all.yaml:12:4"), "{text}");
        assert!(text.contains("did you mean `weight`?"), "{text}");
        assert!(!text.contains('^'), "{text}");
    }

    #[test]
    fn an_unknown_place_names_only_the_file() {
        let text = render(&finding("x.yaml", 0, 0), &mut Sources::default(), Palette::plain());
        assert!(text.contains("--> x.yaml\n"), "{text}");
    }

    #[test]
    fn control_characters_in_a_file_do_not_reach_the_terminal() {
        let (shown, caret) = underline("\tkey: \u{1b}[31mred", 2);
        assert!(!shown.contains('\u{1b}') && !shown.contains('\t'));
        assert_eq!(caret.as_deref(), Some(" ^^^"));
    }

    #[test]
    fn of_a_long_line_the_part_around_the_caret_is_shown() {
        let line = format!("{}weigth: 1{}", "x ".repeat(500), "y".repeat(5000));
        let (shown, caret) = underline(&line, 1001);
        assert!(shown.chars().count() <= WIDEST);
        let caret = caret.expect("a caret");
        let at = caret.find('^').expect("a caret");
        assert!(shown[at..].starts_with("weigth"), "{shown}");
    }

    #[test]
    fn a_column_past_the_end_has_no_caret() {
        assert_eq!(underline("short", 90).1, None);
    }
}
