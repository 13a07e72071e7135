//! Where a document and each of its fields stand in a file.

use crate::document::Document;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Where a document begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// The file, as it was named when it was read.
    pub file: Arc<str>,
    /// Line, from 1.
    pub line: u32,
    /// Column, from 1.
    pub column: u32,
}

/// A document and where it was found.
#[derive(Clone, Debug)]
pub struct Located {
    /// The document.
    pub document: Document,
    /// Where it begins.
    pub source: Source,
    /// Where its fields stand.
    pub positions: Positions,
}

/// Where a document's fields stand, by field path. Cheap to clone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Positions {
    fields: Arc<BTreeMap<Box<str>, (u32, u32)>>,
}

impl Positions {
    /// From field paths such as `spec.rules[0].name` to line and column; the empty path is the document itself.
    pub fn new(fields: BTreeMap<Box<str>, (u32, u32)>) -> Self {
        Self { fields: Arc::new(fields) }
    }

    /// Line and column of a field such as `spec.rules[0].backendRefs[1].weight`; of the nearest field around it if it
    /// is not there itself; `(0, 0)` if nothing is known at all.
    pub fn of(&self, path: &str) -> (u32, u32) {
        let mut path = path;
        loop {
            if let Some(found) = self.fields.get(path) {
                return *found;
            }
            if path.is_empty() {
                return (0, 0);
            }
            path = parent(path);
        }
    }
}

/// The path of the field around a field: `a.b[0]` for `a.b[0].c`, `a.b` for `a.b[0]`.
fn parent(path: &str) -> &str {
    &path[..path.rfind(['.', '[']).unwrap_or(0)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_field_is_found_at_the_nearest_around_it() {
        let known =
            [("", (1, 1)), ("spec", (5, 3)), ("spec.rules[1]", (9, 5)), ("spec.rules[1].name", (10, 7))];
        let positions =
            Positions::new(known.into_iter().map(|(path, position)| (path.into(), position)).collect());
        assert_eq!(positions.of("spec.rules[1].name"), (10, 7));
        assert_eq!(positions.of("spec.rules[1].matches[0].path"), (9, 5));
        assert_eq!(positions.of("spec.rules[0]"), (5, 3));
        assert_eq!(positions.of("status"), (1, 1));
        assert_eq!(Positions::default().of("spec"), (0, 0));
    }
}
