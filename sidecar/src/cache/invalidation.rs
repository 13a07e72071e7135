//! What a successful change makes invalid (RFC 9111 section 4.4).

use super::{Cache, SCHEME, key, seconds_now};
use crate::message::authority;
use http::{HeaderMap, HeaderName, Method, StatusCode, Uri, header, request::Parts};
use smallvec::SmallVec;
use std::rc::Rc;
use weft_config::matching::normalize_path;

/// No resource has a longer address.
const TARGET_MAX: usize = 8 * 1024;

/// A request that may change something.
pub(crate) struct Change {
    method: Method,
    authority: String,
    path: String,
    query: Option<String>,
}

impl Change {
    /// What a request may change; `None` if its method is one that changes nothing.
    pub(crate) fn of(request: &Parts) -> Option<Self> {
        if is_safe(&request.method) {
            return None;
        }
        Some(Self {
            method: request.method.clone(),
            authority: authority(request)?.to_owned(),
            path: request.uri.path().to_owned(),
            query: request.uri.query().map(str::to_owned),
        })
    }

    /// Makes invalid what the answer says has changed.
    pub(crate) fn answered(&self, caches: &[Rc<Cache>], status: StatusCode, answer: &HeaderMap) {
        let Self { method, authority, path, query } = self;
        for target in targets(method, status, SCHEME, authority, path, query.as_deref(), answer) {
            for cache in caches {
                cache.invalidate(authority, &target);
            }
        }
    }
}

impl Cache {
    fn invalidate(&self, authority: &str, target: &Target) {
        let query = target.query.as_deref();
        let no_vary = self.store.queries.of(|| key::resource(SCHEME, authority, &target.path));
        let rules = &self.rules.key;
        let uri = key::uri(SCHEME, authority, &target.path, query, rules, no_vary.as_deref());
        let now = seconds_now();
        if self.rules.tiers.siblings.is_some() {
            self.store.changed.note(&uri, now);
        }
        self.store.invalidate(&uri, now);
    }
}

/// A resource of the origin that was called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    /// In normal form.
    pub(crate) path: String,
    pub(crate) query: Option<String>,
}

/// Methods that change nothing. Of any other, known or not, it must be assumed that it does.
pub(crate) fn is_safe(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE | Method::CONNECT)
        || matches!(method.as_str(), "PROPFIND" | "REPORT" | "SEARCH" | "QUERY" | "PRI")
}

/// The resources that a response says have changed: the one that was called, and those of the same origin that
/// `Location` and `Content-Location` name.
pub(crate) fn targets(
    method: &Method,
    status: StatusCode,
    scheme: &str,
    authority: &str,
    path: &str,
    query: Option<&str>,
    response: &HeaderMap,
) -> SmallVec<[Target; 3]> {
    let mut targets = SmallVec::new();
    if is_safe(method) || !(status.is_success() || status.is_redirection()) {
        return targets;
    }
    targets.push(Target { path: path.to_owned(), query: query.map(str::to_owned) });
    for name in [header::LOCATION, header::CONTENT_LOCATION] {
        if let Some(target) = named(&name, scheme, authority, path, response)
            && !targets.contains(&target)
        {
            targets.push(target);
        }
    }
    targets
}

/// The resource of this origin that a field names.
pub(crate) fn named(
    name: &HeaderName,
    scheme: &str,
    authority: &str,
    path: &str,
    response: &HeaderMap,
) -> Option<Target> {
    let reference = response.get(name)?.to_str().ok()?;
    if reference.len() > TARGET_MAX {
        return None;
    }
    let reference = reference.split('#').next().unwrap_or_default();
    let local = match reference.strip_prefix("//") {
        Some(rest) => {
            let at = rest.find(['/', '?']).unwrap_or(rest.len());
            same_authority(scheme, &rest[..at], authority).then(|| rest[at..].to_owned())?
        }
        None if has_scheme(reference) => {
            let uri: Uri = reference.parse().ok()?;
            let same = uri.scheme_str().is_some_and(|own| own.eq_ignore_ascii_case(scheme))
                && uri.authority().is_some_and(|own| same_authority(scheme, own.as_str(), authority));
            same.then(|| uri.path_and_query().map_or("/", |target| target.as_str()).to_owned())?
        }
        None => match reference.as_bytes().first() {
            None => return None,
            Some(b'/') => reference.to_owned(),
            Some(b'?') => format!("{path}{reference}"),
            // Beside the last segment of what was called (RFC 3986 section 5.2.3).
            Some(_) => format!("{}{reference}", &path[..path.rfind('/').map_or(0, |slash| slash + 1)]),
        },
    };
    let (path, query) =
        local.split_once('?').map_or((local.as_str(), None), |(path, query)| (path, Some(query)));
    let path = normalize_path(path).ok()?.into_owned();
    Some(Target { path, query: query.map(str::to_owned) })
}

/// RFC 3986 section 4.1: a reference with a colon in its first segment has a scheme.
fn has_scheme(reference: &str) -> bool {
    let first = reference.split(['/', '?']).next().unwrap_or_default();
    first.contains(':')
}

fn same_authority(scheme: &str, a: &str, b: &str) -> bool {
    key::resource(scheme, a, "") == key::resource(scheme, b, "")
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;
    use rstest::rstest;

    fn headers(fields: &[(HeaderName, &'static str)]) -> HeaderMap {
        fields.iter().map(|(name, value)| (name.clone(), HeaderValue::from_static(value))).collect()
    }

    fn invalid(method: &str, status: u16, fields: &[(HeaderName, &'static str)]) -> Vec<String> {
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        let status = StatusCode::from_u16(status).unwrap();
        targets(&method, status, "http", "products:8080", "/a/b", Some("c=1"), &headers(fields))
            .into_iter()
            .map(|target| match target.query {
                Some(query) => format!("{}?{query}", target.path),
                None => target.path,
            })
            .collect()
    }

    #[rstest]
    #[case("POST", 200, true)]
    #[case("PUT", 201, true)]
    #[case("DELETE", 204, true)]
    #[case("PATCH", 303, true)]
    #[case("PURGE-IT", 200, true)]
    #[case("post", 200, true)]
    #[case("POST", 400, false)]
    #[case("POST", 500, false)]
    #[case("GET", 200, false)]
    #[case("HEAD", 200, false)]
    #[case("OPTIONS", 200, false)]
    #[case("PROPFIND", 207, false)]
    fn a_change_that_succeeds_makes_what_was_called_invalid(
        #[case] method: &str,
        #[case] status: u16,
        #[case] changes: bool,
    ) {
        assert_eq!(invalid(method, status, &[]), if changes { vec!["/a/b?c=1"] } else { vec![] });
    }

    #[rstest]
    #[case("/x?y=1", Some("/x?y=1"))]
    #[case("x", Some("/a/x"))]
    #[case("../x", Some("/x"))]
    #[case("?y", Some("/a/b?y"))]
    #[case("/x#part", Some("/x"))]
    #[case("http://products:8080/x", Some("/x"))]
    #[case("HTTP://Products:8080/x/../y", Some("/y"))]
    #[case("http://products:8080", Some("/"))]
    #[case("//products:8080/x", Some("/x"))]
    #[case("//products:8080?y", Some("/?y"))]
    // Another origin's resources are not this one's to invalidate.
    #[case("http://products/x", None)]
    #[case("https://products:8080/x", None)]
    #[case("http://products:8080@evil/x", None)]
    #[case("//evil/x", None)]
    #[case("mailto:a", None)]
    #[case("/x%00", None)]
    #[case("", None)]
    fn so_do_those_that_the_response_names(#[case] reference: &'static str, #[case] target: Option<&str>) {
        for name in [header::LOCATION, header::CONTENT_LOCATION] {
            let expected: Vec<_> = ["/a/b?c=1"].into_iter().chain(target).collect();
            assert_eq!(invalid("POST", 201, &[(name, reference)]), expected);
        }
    }

    #[test]
    fn each_resource_counts_once() {
        let twice = [(header::LOCATION, "/x"), (header::CONTENT_LOCATION, "/x")];
        assert_eq!(invalid("POST", 201, &twice), ["/a/b?c=1", "/x"]);
    }
}
