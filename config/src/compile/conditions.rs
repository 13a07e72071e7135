//! What policies ask of a request, compiled: keys that tell users apart, and which calls something is about.

use super::filters::header_name;
use super::findings::Findings;
use super::routes::value;
use crate::document::Located;
use crate::document::route::{HeaderMatch, HttpMethod};
use crate::document::traffic_policy::KeyPart as Written;
use crate::matching::{HeaderCondition, normalize_path};
use crate::snapshot::{Key, KeyPart, Only};
use http::Method;

/// A key; `None` if it has no parts.
pub(super) fn key(parts: &[Written], found: &Located, field: &str, findings: &mut Findings) -> Option<Key> {
    let mut compiled = Vec::with_capacity(parts.len());
    for (at, part) in parts.iter().enumerate() {
        let field = format!("{field}[{at}]");
        compiled.extend(match part {
            Written { header: Some(name), .. } => {
                header_name(name, found, &format!("{field}.header"), findings).map(KeyPart::Header)
            }
            Written { cookie: Some(name), .. } => Some(KeyPart::Cookie(name.as_str().into())),
            Written { query: Some(name), .. } => Some(KeyPart::Query(name.as_str().into())),
            Written { source: Some(true), .. } => Some(KeyPart::Source),
            Written { identity: Some(true), .. } => Some(KeyPart::Identity),
            _ => None,
        });
    }
    (!compiled.is_empty()).then(|| Key(compiled.into()))
}

/// Which calls are meant.
pub(super) fn only(
    headers: &[HeaderMatch],
    methods: &[HttpMethod],
    paths: &[String],
    found: &Located,
    field: &str,
    findings: &mut Findings,
) -> Only {
    let mut conditions = Vec::with_capacity(headers.len());
    for (at, header) in headers.iter().enumerate() {
        let field = format!("{field}.headers[{at}]");
        let Some(name) = header_name(&header.name, found, &format!("{field}.name"), findings) else {
            continue;
        };
        match HeaderCondition::new(name, &value(header.match_type, &header.value)) {
            Ok(condition) => conditions.push(condition),
            Err(message) => findings.error(found, &format!("{field}.value"), message, ""),
        }
    }
    let mut prefixes = Vec::with_capacity(paths.len());
    for (at, path) in paths.iter().enumerate() {
        match normalize_path(path) {
            Ok(normal) => prefixes.push(normal.into()),
            Err(error) => findings.error(
                found,
                &format!("{field}.paths[{at}]"),
                format!("`{path}` is not a path that can be matched: {error}"),
                "write an absolute path; everything below it is meant too",
            ),
        }
    }
    Only {
        headers: conditions.into(),
        methods: methods.iter().filter_map(|m| Method::from_bytes(m.as_str().as_bytes()).ok()).collect(),
        paths: prefixes.into(),
    }
}
