//! Matches of one route of which the later one is never taken, since an earlier one asks for the same.

use super::Findings;
use crate::document::route::{
    GrpcRouteMatch, GrpcRouteRule, HeaderMatch, HttpRouteMatch, HttpRouteRule, PathMatchType, StringMatchType,
};
use crate::matching::normalize_path;
use std::collections::BTreeMap;

pub(super) fn http(findings: &mut Findings<'_>, rules: &[HttpRouteRule]) {
    let asks = rules.iter().map(|rule| rule.matches.iter().map(http_asks).collect());
    repeated(findings, asks, http_asks(&HttpRouteMatch::default()));
}

pub(super) fn grpc(findings: &mut Findings<'_>, rules: &[GrpcRouteRule]) {
    let asks = rules.iter().map(|rule| rule.matches.iter().map(grpc_asks).collect());
    repeated(findings, asks, grpc_asks(&GrpcRouteMatch::default()));
}

/// `rules` are what the matches of each rule ask for; a rule without matches asks for `anything`.
fn repeated(findings: &mut Findings<'_>, rules: impl Iterator<Item = Vec<String>>, anything: String) {
    let mut seen: BTreeMap<String, String> = BTreeMap::new();
    for (at, asks) in rules.enumerate() {
        let rule = format!("spec.rules[{at}]");
        let places = match asks.is_empty() {
            true => vec![(rule, anything.clone())],
            false => {
                let each = asks.into_iter().enumerate();
                each.map(|(n, asks)| (format!("{rule}.matches[{n}]"), asks)).collect()
            }
        };
        for (place, asks) in places {
            match seen.get(&asks) {
                Some(first) => findings.warning(
                    &place,
                    format!("it is never taken: {first} asks for the same and comes first"),
                    "take one of the two away, or ask for something more",
                ),
                None => {
                    seen.insert(asks, place);
                }
            }
        }
    }
}

/// What a match asks for, as one text: the same for matches that take the same requests.
fn http_asks(wanted: &HttpRouteMatch) -> String {
    let path = match wanted.path.match_type {
        PathMatchType::RegularExpression => wanted.path.value.clone(),
        PathMatchType::Exact => normal(&wanted.path.value),
        // A slash at the end of a prefix does not matter.
        PathMatchType::PathPrefix => normal(&wanted.path.value).trim_end_matches('/').to_owned(),
    };
    let mut query: Vec<_> =
        wanted.query_params.iter().map(|q| (q.name.as_str(), q.match_type, q.value.as_str())).collect();
    query.sort_unstable_by_key(|(name, ..)| *name);
    let method = wanted.method.map(|method| method.as_str());
    format!("{:?} {path:?} {method:?} {:?} {query:?}", wanted.path.match_type, headers(&wanted.headers))
}

fn grpc_asks(wanted: &GrpcRouteMatch) -> String {
    let method = wanted.method.clone().unwrap_or_default();
    format!("{:?} {:?} {:?} {:?}", method.match_type, method.service, method.method, headers(&wanted.headers))
}

fn headers(wanted: &[HeaderMatch]) -> Vec<(String, StringMatchType, &str)> {
    let mut headers: Vec<_> = wanted
        .iter()
        .map(|header| (header.name.to_ascii_lowercase(), header.match_type, header.value.as_str()))
        .collect();
    headers.sort_unstable_by(|a, b| a.0.cmp(&b.0));
    headers
}

fn normal(path: &str) -> String {
    normalize_path(path).map_or_else(|_| path.to_owned(), |path| path.into_owned())
}
