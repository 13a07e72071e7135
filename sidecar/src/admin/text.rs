//! Admin data as text for people: tables for lists, indented lines for the rest.

use serde_json::{Map, Value};
use std::fmt::Write;

/// Columns that are put first, in this order; the others follow by name.
const FIRST: [&str; 36] = [
    "policies",
    "policy",
    "direction",
    "namespace",
    "service",
    "name",
    "port",
    "host",
    "route",
    "match",
    "address",
    "identity",
    "in_force",
    "entries",
    "bytes",
    "limit_bytes",
    "filling_bytes",
    "what",
    "reason",
    "count",
    "hits",
    "misses",
    "requests",
    "hit",
    "stale",
    "revalidated",
    "miss",
    "bypass",
    "hit_ratio",
    "method",
    "uri",
    "variants",
    "scope",
    "parts",
    "routes",
    "reasons",
];
/// Longest text of one cell.
const CELL: usize = 120;
/// Deeper values are written as JSON on one line.
const DEPTH: usize = 8;

/// The whole value, ending with a line break.
pub(super) fn render(value: &Value) -> String {
    let mut out = String::new();
    block(&mut out, value, 0);
    if out.is_empty() {
        out.push_str("nothing\n");
    }
    out
}

/// Text from elsewhere on one line, without control characters.
pub(super) fn one_line(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    push_clean(&mut out, text);
    out
}

fn push_clean(out: &mut String, text: &str) {
    for character in text.chars() {
        if character.is_control() {
            out.extend(character.escape_default());
        } else {
            out.push(character);
        }
    }
}

fn block(out: &mut String, value: &Value, depth: usize) {
    match value {
        Value::Array(items) if !items.is_empty() => match rows(items) {
            Some(rows) => table(out, &rows, depth),
            None => {
                for item in items {
                    entry(out, "-", item, depth);
                }
            }
        },
        Value::Object(fields) => {
            for name in columns(std::iter::once(fields)) {
                if let Some(value) = fields.get(name) {
                    let mut label = one_line(name);
                    label.push(':');
                    entry(out, &label, value, depth);
                }
            }
        }
        Value::Array(_) => {}
        flat => {
            indent(out, depth);
            out.push_str(&cell(flat));
            out.push('\n');
        }
    }
}

/// A label with its value behind it, or below it if it does not fit on the line.
fn entry(out: &mut String, label: &str, value: &Value, depth: usize) {
    indent(out, depth);
    out.push_str(label);
    if is_flat(value) || depth >= DEPTH {
        out.push(' ');
        out.push_str(&cell(value));
        out.push('\n');
    } else {
        out.push('\n');
        block(out, value, depth + 1);
    }
}

/// The items as rows of a table, if each is an object without further structure.
fn rows(items: &[Value]) -> Option<Vec<&Map<String, Value>>> {
    items.iter().map(|item| item.as_object().filter(|row| row.values().all(is_flat))).collect()
}

/// Empty containers and lists of plain values fit on a line.
fn is_flat(value: &Value) -> bool {
    match value {
        Value::Object(fields) => fields.is_empty(),
        Value::Array(items) => items.iter().all(|item| !item.is_object() && !item.is_array()),
        _ => true,
    }
}

fn columns<'a>(rows: impl Iterator<Item = &'a Map<String, Value>>) -> Vec<&'a str> {
    let mut names: Vec<&str> = rows.flat_map(|row| row.keys().map(String::as_str)).collect();
    names.sort_by_key(|name| (FIRST.iter().position(|first| first == name).unwrap_or(FIRST.len()), *name));
    names.dedup();
    names
}

fn table(out: &mut String, rows: &[&Map<String, Value>], depth: usize) {
    let columns = columns(rows.iter().copied());
    let header: Vec<String> = columns.iter().map(|name| one_line(name).to_uppercase()).collect();
    let mut lines = vec![header];
    for row in rows {
        lines.push(columns.iter().map(|name| row.get(*name).map_or_else(|| "-".into(), cell)).collect());
    }
    let width = |column: usize| {
        lines.iter().filter_map(|line| line.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns.len()).map(width).collect();
    for line in &lines {
        indent(out, depth);
        let start = out.len();
        for (cell, width) in line.iter().zip(&widths) {
            // Writing to a String cannot fail.
            let _ = write!(out, "{cell:<width$}  ");
        }
        out.truncate(start + out.get(start..).map_or(0, |line| line.trim_end().len()));
        out.push('\n');
    }
}

fn cell(value: &Value) -> String {
    let mut text = match value {
        Value::Null => "-".to_owned(),
        Value::String(text) if text.is_empty() => "\"\"".to_owned(),
        Value::String(text) => one_line(text),
        Value::Array(items) if items.is_empty() => "-".to_owned(),
        Value::Object(fields) if fields.is_empty() => "-".to_owned(),
        Value::Array(items) if is_flat(value) => items.iter().map(cell).collect::<Vec<_>>().join(", "),
        other => one_line(&other.to_string()),
    };
    if let Some((end, _)) = text.char_indices().nth(CELL) {
        text.truncate(end);
        text.push_str("...");
    }
    text
}

fn indent(out: &mut String, depth: usize) {
    for _ in 0..depth {
        out.push_str("  ");
    }
}
