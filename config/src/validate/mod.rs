//! Rules between the fields of one document, which its schema cannot say.

mod cache;
mod filter;
mod overlaps;
mod policy;
mod route;
#[cfg(test)]
mod tests;
mod workload;

use crate::document::{Document, DocumentKey, Located};
use crate::error::{Diagnostic, Severity};
use crate::matching::whole_value_regex;
use std::collections::BTreeMap;

/// Everything that a document's own fields say against it.
pub(crate) fn validate(located: &Located) -> Vec<Diagnostic> {
    let mut findings = Findings { located, key: located.document.key(), list: Vec::new() };
    labels(&mut findings, &located.document.metadata().labels);
    match &located.document {
        Document::HttpRoute(document) => route::http_route(&mut findings, &document.spec),
        Document::GrpcRoute(document) => route::grpc_route(&mut findings, &document.spec),
        Document::Service(document) => workload::service(&mut findings, &document.spec),
        Document::EndpointSlice(document) => workload::endpoint_slice(&mut findings, document),
        Document::Workload(document) => workload::workload(&mut findings, &document.spec),
        Document::TrafficPolicy(document) => policy::traffic_policy(&mut findings, &document.spec),
        Document::CachePolicy(document) => cache::cache_policy(&mut findings, &document.spec),
        Document::AuthorizationPolicy(document) => {
            policy::authorization_policy(&mut findings, &document.spec)
        }
        Document::MeshPolicy(document) => policy::mesh_policy(&mut findings, &document.spec),
    }
    findings.list
}

/// What has been found in one document so far.
struct Findings<'a> {
    located: &'a Located,
    key: DocumentKey,
    list: Vec<Diagnostic>,
}

impl Findings<'_> {
    fn error(&mut self, field: &str, message: impl Into<String>, cure: impl Into<String>) {
        self.push(Severity::Error, field, message.into(), cure.into());
    }

    fn warning(&mut self, field: &str, message: impl Into<String>, cure: impl Into<String>) {
        self.push(Severity::Warning, field, message.into(), cure.into());
    }

    fn push(&mut self, severity: Severity, field: &str, message: String, cure: String) {
        let (line, column) = self.located.positions.of(field);
        self.list.push(Diagnostic {
            severity,
            file: self.located.source.file.clone(),
            line,
            column,
            document: Some(self.key.clone()),
            field: field.to_owned(),
            message,
            cure,
        });
    }

    /// Reports a regular expression that cannot be used.
    fn regex(&mut self, field: &str, pattern: &str) {
        if let Err(reason) = whole_value_regex(pattern) {
            self.error(field, reason, "write it in RE2 syntax, without look-around or back-references");
        }
    }

    /// Reports every entry whose name is there already.
    fn unique<'n>(
        &mut self,
        field: &str,
        inner: &str,
        what: &str,
        names: impl IntoIterator<Item = Option<&'n str>>,
        fold_case: bool,
    ) {
        let mut seen: BTreeMap<String, usize> = BTreeMap::new();
        for (index, name) in names.into_iter().enumerate() {
            let Some(name) = name else { continue };
            let folded = if fold_case { name.to_ascii_lowercase() } else { name.to_owned() };
            if let Some(first) = seen.get(&folded) {
                self.error(
                    &format!("{field}[{index}]{inner}"),
                    format!("the {what} `{}` is there twice, first in {field}[{first}]", shown(name)),
                    "keep one of the two",
                );
            } else {
                seen.insert(folded, index);
            }
        }
    }
}

fn shown(text: &str) -> String {
    let mut shown: String = text.chars().take(60).flat_map(char::escape_debug).collect();
    if text.chars().nth(60).is_some() {
        shown.push('…');
    }
    shown
}

/// Label names and values as Kubernetes takes them.
fn labels(findings: &mut Findings<'_>, labels: &BTreeMap<String, String>) {
    for (name, value) in labels {
        let field = format!("metadata.labels.{name}");
        label(findings, &field, name, value);
    }
}

fn label(findings: &mut Findings<'_>, field: &str, name: &str, value: &str) {
    let part = |text: &str| {
        text.len() <= 63
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
            && text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric())
            && text.bytes().last().is_some_and(|b| b.is_ascii_alphanumeric())
    };
    let name_fits = match name.split_once('/') {
        Some((prefix, name)) => crate::parse::format::check("object-name", prefix).is_ok() && part(name),
        None => part(name),
    };
    if !name_fits {
        let message = format!("found the label name `{}`, expected letters, digits and `-_.`", shown(name));
        findings.error(field, message, "at most 63 characters, with a letter or digit at both ends");
    }
    if !value.is_empty() && !part(value) {
        let message = format!("found the label value `{}`, expected letters, digits and `-_.`", shown(value));
        findings.error(field, message, "at most 63 characters, with a letter or digit at both ends");
    }
}
