//! Why a request takes one route and not another, said for people.

use super::index::{Entry, Index, PathCheck, grpc_parts};
use super::spec::{PathSpec, RouteSpec};
use super::value::{ValueMatch, decode, parameter};
use super::{RequestView, normalize_path};
use std::sync::Arc;

/// One match that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Considered {
    /// The rule's name, `<namespace>/<route>#<rule>`.
    pub route: Arc<str>,
    /// Index into the rules of the port.
    pub rule: usize,
    /// What the match asks for, in words.
    pub asks: String,
    /// What came of it.
    pub outcome: Outcome,
}

/// What came of looking at a match.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The request takes it.
    Matched,
    /// It fits too, but another of higher precedence is taken.
    Outranked,
    /// It does not fit: why not.
    NotMatched(String),
}

pub(super) fn explain(index: &Index, request: &RequestView<'_>) -> Vec<Considered> {
    let taken = index.find_rank(request);
    let both = index.specs.iter().zip(&index.entries).enumerate();
    both.map(|(rank, (spec, entry))| {
        let unmet = spec.unmet.as_ref().map(|why| why.to_string());
        let outcome = match unmet.or_else(|| difference(spec, entry, request)) {
            _ if Some(rank) == taken => Outcome::Matched,
            Some(why) => Outcome::NotMatched(why),
            None => Outcome::Outranked,
        };
        Considered { route: spec.route.clone(), rule: spec.target, asks: spec.to_string(), outcome }
    })
    .collect()
}

/// The first condition that the request does not meet.
fn difference(spec: &RouteSpec, entry: &Entry, request: &RequestView<'_>) -> Option<String> {
    let path = request.path;
    if !path_matches(spec, entry, path) {
        let normal = if normalize_path(path).is_ok_and(|n| n == path) { "" } else { " (not in normal form)" };
        return Some(match &spec.path {
            PathSpec::Exact(wanted) => format!("the path is `{path}`{normal}, not `{wanted}`"),
            PathSpec::Prefix(wanted) => format!("the path `{path}`{normal} is not under `{wanted}`"),
            PathSpec::Regex(wanted) => {
                format!("the path `{path}`{normal} does not match `{wanted}` as a whole")
            }
            PathSpec::Grpc { .. } => match grpc_parts(path) {
                Some((service, method)) => format!("the call is to service `{service}`, method `{method}`"),
                None => format!("`{path}` is not a gRPC path (/service/method)"),
            },
        });
    }
    if let Some(method) = entry.method.as_ref().filter(|method| *method != request.method) {
        return Some(format!("the method is {}, not {method}", request.method));
    }
    for (condition, (name, wanted)) in entry.headers.iter().zip(&spec.headers) {
        if !condition.matches(request.headers) {
            let values: Vec<_> =
                request.headers.get_all(name).iter().map(|v| String::from_utf8_lossy(v.as_bytes())).collect();
            return Some(if values.is_empty() {
                format!("the header `{name}` is absent")
            } else {
                format!("the header `{name}` is `{}`, {}", values.join(","), unlike(wanted))
            });
        }
    }
    for (condition, (name, wanted)) in entry.query.iter().zip(&spec.query) {
        if !condition.matches(request.query) {
            return Some(match request.query.and_then(|query| parameter(query, name)) {
                None => format!("the query parameter `{name}` is absent"),
                Some(value) => {
                    let value = decode(value);
                    format!(
                        "the query parameter `{name}` is `{}`, {}",
                        String::from_utf8_lossy(&value),
                        unlike(wanted)
                    )
                }
            });
        }
    }
    None
}

fn unlike(wanted: &ValueMatch) -> String {
    match wanted {
        ValueMatch::Exact(text) => format!("not `{text}`"),
        ValueMatch::Regex(pattern) => format!("which `{pattern}` does not match as a whole"),
    }
}

/// The path condition without help from the index.
pub(super) fn path_matches(spec: &RouteSpec, entry: &Entry, path: &str) -> bool {
    match (&spec.path, &entry.path) {
        (PathSpec::Exact(wanted), _) => wanted == path,
        (PathSpec::Prefix(wanted), _) => {
            let wanted = wanted.trim_end_matches('/');
            wanted.is_empty()
                || path.strip_prefix(wanted).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        }
        (_, check @ (PathCheck::Regex(_) | PathCheck::Grpc { .. })) => check.matches(path),
        (_, PathCheck::Done) => false,
    }
}
