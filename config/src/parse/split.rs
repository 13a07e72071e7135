//! A file cut into its documents before it is parsed, so that broken YAML in one does not take down the others.

use super::tree::Position;
use crate::document::{DocumentKey, Kind, metadata::DEFAULT_NAMESPACE};

/// The text of one document.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Chunk<'a> {
    pub(super) text: &'a str,
    /// The line of the file that the text begins with.
    pub(super) first_line: u32,
}

/// Cuts at the markers `---` and `...`. YAML allows a line that begins so nowhere else, not even in quoted text.
pub(super) fn split(text: &str) -> Vec<Chunk<'_>> {
    let mut chunks = Vec::new();
    let (mut start, mut first_line, mut offset, mut line) = (0, 1u32, 0, 1u32);
    let mut cut = |from: usize, to: usize, first_line: u32| {
        let text = &text[from..to];
        let empty = |line: &str| {
            let line = line.trim_matches(['\r', '\n', ' ']);
            line.is_empty() || line.starts_with(['#', '%']) || line == "---"
        };
        if !text.split('\n').all(empty) {
            chunks.push(Chunk { text, first_line });
        }
    };
    for part in text.split_inclusive('\n') {
        if marker(part, "---") && offset > start {
            cut(start, offset, first_line);
            (start, first_line) = (offset, line);
        } else if marker(part, "...") {
            cut(start, offset, first_line);
            (start, first_line) = (offset + part.len(), line + 1);
        }
        offset += part.len();
        line = line.saturating_add(1);
    }
    cut(start, text.len(), first_line);
    chunks
}

fn marker(line: &str, marker: &str) -> bool {
    line.strip_prefix(marker).is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
}

/// The first character that YAML does not allow in a text at all.
pub(super) fn control_character(chunk: &Chunk<'_>) -> Option<(Position, char)> {
    let refused =
        |c: char| (c.is_control() && !matches!(c, '\t' | '\n' | '\r' | '\u{85}')) || c == '\u{feff}';
    let (line, text) = (0u32..).zip(chunk.text.split('\n')).find(|(_, text)| text.chars().any(refused))?;
    let (column, character) = (1u32..).zip(text.chars()).find(|(_, c)| refused(*c))?;
    Some(((chunk.first_line.saturating_add(line), column), character))
}

/// The key of a document whose YAML cannot be parsed, read from its lines as they are mostly written: so that its last
/// good version can be told to be the one that stays.
pub(super) fn key_in_broken_text(text: &str) -> Option<DocumentKey> {
    let value = |line: &str, name: &str| -> Option<String> {
        let rest = line.strip_prefix(name)?.strip_prefix(':')?;
        let rest = rest.split(" #").next()?.trim().trim_matches(['"', '\'']);
        (!rest.is_empty() && rest.len() <= 253).then(|| rest.to_owned())
    };
    let (mut kind, mut name, mut namespace, mut in_metadata) = (None, None, None, false);
    for line in text.lines() {
        let line = line.trim_end();
        if let Some(found) = value(line, "kind") {
            kind = kind.or(Kind::parse(&found));
        } else if let Some(inline) = line.strip_prefix("metadata:") {
            in_metadata = true;
            let inline = inline.trim().trim_start_matches('{').trim_end_matches('}');
            for field in inline.split(',') {
                name = name.or_else(|| value(field.trim(), "name"));
                namespace = namespace.or_else(|| value(field.trim(), "namespace"));
            }
        } else if in_metadata && line.starts_with("  ") && !line.starts_with("   ") {
            name = name.or_else(|| value(line.trim_start(), "name"));
            namespace = namespace.or_else(|| value(line.trim_start(), "namespace"));
        } else if !line.is_empty() && !line.starts_with([' ', '#']) {
            in_metadata = false;
        }
    }
    Some(DocumentKey {
        kind: kind?,
        namespace: namespace.as_deref().unwrap_or(DEFAULT_NAMESPACE).into(),
        name: name?.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_cut_at_markers_only() {
        let text = "%YAML 1.2\n---\na: 1\n--- # two\nb: |\n  --- no marker\n...\nc: 3\n---\n# nothing\n";
        let found: Vec<_> = split(text).into_iter().map(|c| (c.first_line, c.text)).collect();
        assert_eq!(found, [(2, "---\na: 1\n"), (4, "--- # two\nb: |\n  --- no marker\n"), (8, "c: 3\n")]);
        assert_eq!(split(""), []);
        assert_eq!(split("a: ---b\n---b: 1\n").len(), 1);
    }

    #[test]
    fn control_characters_are_found_where_they_stand() {
        let chunk = Chunk { text: "a: b\nc: \u{0}d\n", first_line: 10 };
        assert_eq!(control_character(&chunk), Some(((11, 4), '\0')));
        assert_eq!(control_character(&Chunk { text: "a: ü\r\n\tb", first_line: 1 }), None);
    }

    #[test]
    fn a_broken_document_still_tells_its_key() {
        let text = "kind: HTTPRoute\nmetadata:\n  name: 'product' # x\n  namespace: shop\nspec: [\n";
        let key = key_in_broken_text(text).expect("a key");
        assert_eq!(key.to_string(), "HTTPRoute shop/product");
        let flow = "kind: Workload\nmetadata: { name: a, namespace: b }\nspec: {\n";
        assert_eq!(key_in_broken_text(flow).expect("a key").to_string(), "Workload b/a");
        assert_eq!(key_in_broken_text("kind: Pod\nmetadata:\n  name: a\n"), None);
    }
}
