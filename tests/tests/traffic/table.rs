//! The table of route fields in `docs/routes.md`: every field there is, each with a test that there is.

use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};
use weft_config::{document::Kind, schema::schema};

const TABLE: &str = include_str!("../../../docs/routes.md");

/// The fields of a section of the table, each with the tests that are named for it.
fn rows(section: &str) -> BTreeMap<&'static str, Vec<&'static str>> {
    let heading = format!("## {section}\n");
    let (_, text) = TABLE.split_once(&heading).unwrap_or_else(|| panic!("no section {section}"));
    let text = text.split("\n## ").next().unwrap();
    let rows = text.lines().filter(|line| line.starts_with("| `")).map(|line| {
        let cells: Vec<_> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        let [field, does, tests] = cells[..] else { panic!("not three cells: {line}") };
        assert!(!does.is_empty(), "says what Weft does: {line}");
        (field.trim_matches('`'), tests.split('`').filter(|test| test.contains("::")).collect())
    });
    rows.collect()
}

/// All fields below `spec` that have no fields themselves.
fn fields(kind: Kind) -> BTreeSet<String> {
    let root = schema(kind);
    let mut found = BTreeSet::new();
    walk(root, &root["properties"]["spec"], "", &mut found);
    found
}

fn walk(root: &Value, part: &Value, path: &str, found: &mut BTreeSet<String>) {
    let alternatives = ["anyOf", "allOf", "oneOf"].iter().filter_map(|name| part[*name].as_array()).flatten();
    let referred = std::iter::once(part).chain(alternatives).find_map(|part| part["$ref"].as_str());
    let part = referred.map_or(part, |name| &root["$defs"][name.rsplit('/').next().unwrap()]);
    if let Some(fields) = part["properties"].as_object() {
        for (name, field) in fields {
            let dot = if path.is_empty() { "" } else { "." };
            walk(root, field, &format!("{path}{dot}{name}"), found);
        }
    } else if part["items"].is_object() {
        walk(root, &part["items"], &format!("{path}[]"), found);
    } else {
        found.insert(path.to_owned());
    }
}

/// Whether a row is about a field: the field itself, or what it is a part of.
fn is_about(row: &str, field: &str) -> bool {
    field.strip_prefix(row).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
}

#[test]
fn every_field_of_a_route_has_a_row_and_every_row_a_field() {
    for (kind, section) in [(Kind::HttpRoute, "HTTPRoute"), (Kind::GrpcRoute, "GRPCRoute")] {
        let (rows, fields) = (rows(section), fields(kind));
        assert!(fields.len() > 60, "the schema was read");
        for field in &fields {
            assert!(rows.keys().any(|row| is_about(row, field)), "{section}: no row for {field}");
        }
        for row in rows.keys() {
            assert!(fields.iter().any(|field| is_about(row, field)), "{section}: there is no field {row}");
        }
    }
}

#[test]
fn every_test_named_in_the_table_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    for section in ["HTTPRoute", "GRPCRoute"] {
        for (field, tests) in rows(section) {
            assert!(!tests.is_empty(), "{section}: {field} has no test");
            for test in tests {
                let (file, name) = test.split_once("::").unwrap();
                let source = std::fs::read_to_string(root.join(file));
                let source = source.unwrap_or_else(|error| panic!("{field}: {file}: {error}"));
                let written = format!("fn {name}(");
                let at = source.find(&written).unwrap_or_else(|| panic!("{field}: no `{name}` in {file}"));
                let before = source[..at].trim_end_matches("async ").trim_end();
                let attribute = before.rsplit('\n').next().unwrap();
                assert!(
                    attribute.contains("test") || attribute.contains("case"),
                    "`{name}` in {file} is no test"
                );
            }
        }
    }
}
