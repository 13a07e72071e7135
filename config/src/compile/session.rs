//! A route's `sessionPersistence` compiled.

use crate::document::duration::PolicyDuration;
use crate::document::route::{
    CookieLifetime, GrpcRouteMatch, HttpRouteMatch, PathMatchType, SessionPersistence, SessionType,
    StringMatchType,
};
use crate::matching::normalize_path;
use crate::snapshot::{Session, hash64};
use std::time::Duration;

/// `rule` is the rule's name; a session without a name of its own gets one from it, so that two rules of one host
/// don't take each other's sessions for their own.
pub(super) fn compile(written: &SessionPersistence, rule: &str, path: String) -> Session {
    let named = written.session_name.as_deref().map(Into::into);
    let limit = |time: Option<PolicyDuration>| -> Option<Duration> {
        time.map(PolicyDuration::get).filter(|time| !time.is_zero())
    };
    let lifetime = written.cookie_config.as_ref().map_or(CookieLifetime::Session, |c| c.lifetime_type);
    Session {
        name: named.unwrap_or_else(|| format!("session-{:016x}", hash64(rule.as_bytes())).into()),
        in_header: written.session_type == SessionType::Header,
        absolute_timeout: limit(written.absolute_timeout),
        idle_timeout: limit(written.idle_timeout),
        permanent: lifetime == CookieLifetime::Permanent,
        path: path.into(),
    }
}

/// The path that all of an HTTPRoute rule's matches are below.
pub(super) fn http_path(matches: &[HttpRouteMatch]) -> String {
    common(matches.iter().map(|wanted| match wanted.path.match_type {
        PathMatchType::Exact | PathMatchType::PathPrefix => wanted.path.value.clone(),
        PathMatchType::RegularExpression => "/".to_owned(),
    }))
}

/// The path that all of a GRPCRoute rule's matches are below.
pub(super) fn grpc_path(matches: &[GrpcRouteMatch]) -> String {
    common(matches.iter().map(|wanted| {
        let exact = wanted.method.as_ref().filter(|method| method.match_type == StringMatchType::Exact);
        match exact.and_then(|method| Some((method.service.as_ref()?, method.method.as_ref()))) {
            Some((service, Some(method))) => format!("/{service}/{method}"),
            Some((service, None)) => format!("/{service}"),
            None => "/".to_owned(),
        }
    }))
}

/// The longest path, by whole segments, that all of these are at or below.
fn common(paths: impl Iterator<Item = String>) -> String {
    let mut shared: Option<Vec<String>> = None;
    for path in paths {
        let normal = normalize_path(&path).map_or_else(|_| String::new(), |path| path.into_owned());
        let segments = normal.split('/').filter(|segment| !segment.is_empty()).map(str::to_owned);
        shared = Some(match shared {
            None => segments.collect(),
            Some(before) => {
                before.into_iter().zip(segments).take_while(|(a, b)| a == b).map(|(a, _)| a).collect()
            }
        });
    }
    format!("/{}", shared.unwrap_or_default().join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case(&[], "/")]
    #[case(&["/a/b"], "/a/b")]
    #[case(&["/a/b/", "/a/b/c"], "/a/b")]
    #[case(&["/a/bc", "/a/b"], "/a")]
    #[case(&["/a", "/b"], "/")]
    #[case(&["/a/b", "/"], "/")]
    fn a_cookie_holds_for_what_all_matches_are_below(#[case] paths: &[&str], #[case] expected: &str) {
        assert_eq!(common(paths.iter().map(|&path| path.to_owned())), expected);
    }
}
