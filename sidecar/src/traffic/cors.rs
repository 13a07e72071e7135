//! Cross-origin requests of browsers (Fetch standard, Gateway API CORS filter): preflights are answered here, answers
//! get the fields that let a page read them.
//!
//! - A preflight is always answered with 204. An origin that may not call gets no CORS fields, and its browser stops
//!   there; the Gateway API allows this or 403, and 204 shows the same to every origin that probes.
//! - Once policy allows credentials, nothing is ever answered with `*`: browsers take it literally in requests that may
//!   carry credentials, and whether this one may is not to be seen from its fields. Where policy doesn't allow them, a
//!   request that comes with cookies anyway gets no CORS fields.
//! - What the application says about CORS by itself is replaced: two answers to one question make browsers refuse.

use crate::body::Body;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, header, request::Parts};
use weft_config::snapshot::{Cors, Origin};

/// All fields by which a server speaks about CORS.
const FIELDS: [HeaderName; 6] = [
    header::ACCESS_CONTROL_ALLOW_ORIGIN,
    header::ACCESS_CONTROL_ALLOW_CREDENTIALS,
    header::ACCESS_CONTROL_ALLOW_METHODS,
    header::ACCESS_CONTROL_ALLOW_HEADERS,
    header::ACCESS_CONTROL_EXPOSE_HEADERS,
    header::ACCESS_CONTROL_MAX_AGE,
];

/// Answer fields that every page may read, so that they need not be named.
const READABLE: [HeaderName; 7] = [
    header::CACHE_CONTROL,
    header::CONTENT_LANGUAGE,
    header::CONTENT_LENGTH,
    header::CONTENT_TYPE,
    header::EXPIRES,
    header::LAST_MODIFIED,
    header::PRAGMA,
];

/// What a request says about where it comes from; kept for its answer.
#[derive(Clone, Debug, Default)]
pub(crate) struct Asked {
    origin: Option<HeaderValue>,
    cookies: bool,
    authorization: bool,
}

impl Asked {
    /// Reads a request's fields. An origin that is named twice is none.
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        let mut origins = headers.get_all(header::ORIGIN).iter();
        Self {
            origin: origins.next().filter(|_| origins.next().is_none()).cloned(),
            cookies: headers.contains_key(header::COOKIE),
            authorization: headers.contains_key(header::AUTHORIZATION),
        }
    }

    /// What `Access-Control-Allow-Origin` says; `None` if the page may not read the answer.
    fn allowed(&self, cors: &Cors) -> Option<HeaderValue> {
        let origin = self.origin.as_ref()?;
        if self.cookies && !cors.credentials {
            return None;
        }
        let text = origin.to_str().ok()?;
        if !cors.origins.iter().any(|allowed| is_allowed(allowed, text)) {
            return None;
        }
        let any = cors.origins.contains(&Origin::Any);
        // A page may send an `Authorization` of its own without any credentials of the browser's: that works with
        // either answer, and the Gateway API wants the origin.
        let all_alike = any && !cors.credentials && !self.authorization;
        Some(if all_alike { HeaderValue::from_static("*") } else { origin.clone() })
    }
}

/// Answers a preflight; `None` if the request is none.
pub(crate) fn preflight(cors: &Cors, request: &Parts) -> Option<Response<Body>> {
    let method = request.headers.get(header::ACCESS_CONTROL_REQUEST_METHOD)?;
    if request.method != Method::OPTIONS || !request.headers.contains_key(header::ORIGIN) {
        return None;
    }
    let mut response = Response::new(Body::Empty);
    *response.status_mut() = StatusCode::NO_CONTENT;
    let headers = response.headers_mut();
    headers.insert(
        header::VARY,
        HeaderValue::from_static("origin, access-control-request-method, access-control-request-headers"),
    );
    let Some(origin) = Asked::of(&request.headers).allowed(cors) else { return Some(response) };
    allow(cors, origin, headers);
    let methods = match &cors.methods {
        None => Some(method.clone()),
        Some(methods) => list(methods.iter().map(Method::as_str)),
    };
    let fields = match &cors.headers {
        None => request.headers.get(header::ACCESS_CONTROL_REQUEST_HEADERS).cloned(),
        Some(names) => list(names.iter().map(HeaderName::as_str)),
    };
    for (name, value) in
        [(header::ACCESS_CONTROL_ALLOW_METHODS, methods), (header::ACCESS_CONTROL_ALLOW_HEADERS, fields)]
    {
        if let Some(value) = value {
            headers.insert(name, value);
        }
    }
    headers.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from(cors.max_age));
    Some(response)
}

/// Puts the fields of an answer to a request that was no preflight in place of those that the upstream sent.
pub(crate) fn apply(cors: &Cors, asked: &Asked, headers: &mut HeaderMap) {
    for name in &FIELDS {
        headers.remove(name);
    }
    vary_by_origin(headers);
    let Some(origin) = asked.allowed(cors) else { return };
    allow(cors, origin, headers);
    let exposed = match &cors.expose {
        Some(names) => list(names.iter().map(HeaderName::as_str)),
        None if !cors.credentials => Some(HeaderValue::from_static("*")),
        None => list(headers.keys().filter(|name| is_worth_exposing(name)).map(HeaderName::as_str)),
    };
    if let Some(exposed) = exposed {
        headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, exposed);
    }
}

fn allow(cors: &Cors, origin: HeaderValue, headers: &mut HeaderMap) {
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    if cors.credentials {
        headers.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
    }
}

fn is_worth_exposing(name: &HeaderName) -> bool {
    !FIELDS.contains(name)
        && !READABLE.contains(name)
        && ![header::SET_COOKIE, header::VARY, header::CONNECTION, header::TRANSFER_ENCODING].contains(name)
}

/// Names joined as a list; `None` for no names.
fn list<'a>(names: impl Iterator<Item = &'a str>) -> Option<HeaderValue> {
    let mut text = String::new();
    for name in names {
        if !text.is_empty() {
            text.push_str(", ");
        }
        text.push_str(name);
    }
    (!text.is_empty()).then(|| HeaderValue::try_from(text).ok()).flatten()
}

/// Caches must not give one origin's answer to another.
fn vary_by_origin(headers: &mut HeaderMap) {
    let known = headers.get_all(header::VARY).iter().filter_map(|value| value.to_str().ok()).any(|value| {
        value.split(',').map(str::trim).any(|name| name == "*" || name.eq_ignore_ascii_case("origin"))
    });
    if !known {
        headers.append(header::VARY, HeaderValue::from_static("origin"));
    }
}

fn is_allowed(allowed: &Origin, origin: &str) -> bool {
    match allowed {
        Origin::Any => true,
        Origin::Exact(exact) => {
            without_default_port(exact).eq_ignore_ascii_case(without_default_port(origin))
        }
        Origin::Wildcard(before, after) => is_between(origin, before, without_default_port_of(before, after)),
    }
}

/// Whether `origin` is a host between the two parts: one label or several, and nothing but a host.
fn is_between(origin: &str, before: &str, after: &str) -> bool {
    let origin = without_default_port(origin);
    let Some((start, rest)) = origin.split_at_checked(before.len()) else { return false };
    let Some((host, end)) =
        rest.len().checked_sub(after.len()).and_then(|middle| rest.split_at_checked(middle))
    else {
        return false;
    };
    start.eq_ignore_ascii_case(before)
        && end.eq_ignore_ascii_case(after)
        && !host.is_empty()
        && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte))
}

/// An origin that names the port its scheme has anyway is the same origin.
fn without_default_port(origin: &str) -> &str {
    match origin.split_once("://") {
        Some((scheme, _)) => without_default_port_of(scheme, origin),
        None => origin,
    }
}

fn without_default_port_of<'a>(scheme: &str, text: &'a str) -> &'a str {
    let scheme = scheme.split(':').next().unwrap_or_default();
    let port = if scheme.eq_ignore_ascii_case("https") { ":443" } else { ":80" };
    text.strip_suffix(port).unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;

    const SHOP: &str = "https://shop.example.com";

    fn cors(origins: &[Origin]) -> Cors {
        Cors {
            origins: origins.into(),
            methods: Some([Method::GET, Method::PUT].into()),
            headers: Some([HeaderName::from_static("x-a"), header::CONTENT_TYPE].into()),
            expose: Some([HeaderName::from_static("x-b")].into()),
            max_age: 5,
            ..Cors::default()
        }
    }

    fn any(credentials: bool) -> Cors {
        Cors { origins: [Origin::Any].into(), credentials, max_age: 60, ..Cors::default() }
    }

    fn request(method: Method, fields: &[(&'static str, &str)]) -> Parts {
        let mut request = Request::new(());
        *request.method_mut() = method;
        for (name, value) in fields {
            request.headers_mut().append(*name, HeaderValue::from_str(value).unwrap());
        }
        request.into_parts().0
    }

    fn asks(origin: &str) -> Parts {
        request(
            Method::OPTIONS,
            &[
                ("origin", origin),
                ("access-control-request-method", "PUT"),
                ("access-control-request-headers", "x-a,x-z"),
            ],
        )
    }

    /// The CORS fields of an answer, without their common prefix.
    fn said(headers: &HeaderMap) -> Vec<(String, String)> {
        let mut said: Vec<_> = headers
            .iter()
            .filter_map(|(name, value)| {
                let name = name.as_str().strip_prefix("access-control-")?;
                Some((name.to_owned(), value.to_str().unwrap().to_owned()))
            })
            .collect();
        said.sort();
        said
    }

    fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect()
    }

    fn answered(
        cors: &Cors,
        fields: &[(&'static str, &str)],
        upstream: &[(&'static str, &str)],
    ) -> HeaderMap {
        let asked = Asked::of(&request(Method::GET, fields).headers);
        let mut headers = request(Method::GET, upstream).headers;
        apply(cors, &asked, &mut headers);
        headers
    }

    #[test]
    fn origins_are_allowed_by_scheme_host_and_port() {
        let exact = |text: &str| Origin::Exact(text.into());
        let wild = |before: &str, after: &str| Origin::Wildcard(before.into(), after.into());
        let example = || wild("https://", ".example.com");
        for (allowed, origin, expected) in [
            (Origin::Any, "null", true),
            (exact(SHOP), SHOP, true),
            (exact(SHOP), "https://SHOP.example.com", true),
            (exact(SHOP), "https://shop.example.com:443", true),
            (exact("https://shop.example.com:443"), SHOP, true),
            (exact("http://a:80"), "http://a", true),
            (exact("http://a:443"), "http://a", false),
            (exact(SHOP), "http://shop.example.com", false),
            (exact(SHOP), "https://shop.example.com:8443", false),
            (exact(SHOP), "https://shop.example.com.evil.net", false),
            (exact(SHOP), "null", false),
            (example(), SHOP, true),
            (example(), "https://a.b.example.com", true),
            (example(), "https://a.example.com:443", true),
            (example(), "https://example.com", false),
            (example(), "https://.example.com", false),
            (example(), "http://a.example.com", false),
            (example(), "https://a.example.com:8443", false),
            (example(), "https://evil.net/.example.com", false),
            (example(), "https://evil.net:1.example.com", false),
            (example(), "https://aexample.com", false),
            (wild("https://", ".example.com:8443"), "https://a.example.com:8443", true),
            (wild("https://", ".example.com:443"), "https://a.example.com", true),
            (wild("https://", ""), "https://anything.net", true),
            (wild("https://", ""), "https://anything.net:8443", false),
            (example(), "https://\u{e9}", false),
            (example(), "", false),
        ] {
            assert_eq!(is_allowed(&allowed, origin), expected, "{allowed:?} {origin}");
        }
    }

    #[test]
    fn a_preflight_of_an_allowed_origin_is_told_what_it_may_do() {
        let response = preflight(&cors(&[Origin::Exact(SHOP.into())]), &asks(SHOP)).expect("a preflight");
        assert_eq!(response.status(), 204);
        assert_eq!(
            said(response.headers()),
            pairs(&[
                ("allow-headers", "x-a, content-type"),
                ("allow-methods", "GET, PUT"),
                ("allow-origin", SHOP),
                ("max-age", "5"),
            ])
        );
        assert_eq!(
            response.headers()["vary"],
            "origin, access-control-request-method, access-control-request-headers"
        );
    }

    #[test]
    fn a_preflight_of_another_origin_is_told_nothing() {
        let response = preflight(&cors(&[Origin::Exact(SHOP.into())]), &asks("https://evil.net")).unwrap();
        assert_eq!(response.status(), 204);
        assert_eq!(said(response.headers()), []);
        assert!(response.headers().contains_key("vary"));
        assert_eq!(said(preflight(&cors(&[]), &asks(SHOP)).unwrap().headers()), [], "no origin may call");
    }

    #[test]
    fn only_options_with_both_fields_is_a_preflight() {
        let (origin, method) = (("origin", SHOP), ("access-control-request-method", "PUT"));
        for (verb, fields) in [
            (Method::GET, &[origin, method][..]),
            (Method::OPTIONS, &[origin]),
            (Method::OPTIONS, &[method]),
            (Method::OPTIONS, &[]),
        ] {
            assert!(preflight(&any(false), &request(verb, fields)).is_none());
        }
    }

    #[test]
    fn all_methods_and_headers_are_those_that_were_asked_for() {
        for (credentials, origin) in [(false, "*"), (true, SHOP)] {
            let response = preflight(&any(credentials), &asks(SHOP)).unwrap();
            let mut expected = pairs(&[
                ("allow-headers", "x-a,x-z"),
                ("allow-methods", "PUT"),
                ("allow-origin", origin),
                ("max-age", "60"),
            ]);
            if credentials {
                expected.insert(0, ("allow-credentials".into(), "true".into()));
            }
            assert_eq!(said(response.headers()), expected);
        }
        let bare = request(Method::OPTIONS, &[("origin", SHOP), ("access-control-request-method", "PUT")]);
        let response = preflight(&any(true), &bare).unwrap();
        assert!(!response.headers().contains_key("access-control-allow-headers"), "none were asked for");
    }

    #[test]
    fn an_answer_says_who_may_read_it() {
        let policy = cors(&[Origin::Exact(SHOP.into())]);
        let headers = answered(&policy, &[("origin", SHOP)], &[]);
        assert_eq!(said(&headers), pairs(&[("allow-origin", SHOP), ("expose-headers", "x-b")]));
        assert_eq!(headers["vary"], "origin");
        for fields in [&[("origin", "https://evil.net")][..], &[], &[("origin", SHOP), ("origin", SHOP)]] {
            let headers = answered(&policy, fields, &[]);
            assert_eq!(said(&headers), []);
            assert_eq!(headers["vary"], "origin", "caches must know");
        }
    }

    #[test]
    fn what_the_upstream_says_is_replaced() {
        let upstream = [
            ("access-control-allow-origin", "https://evil.net"),
            ("access-control-allow-credentials", "true"),
            ("access-control-max-age", "9"),
            ("vary", "accept, Origin"),
        ];
        let headers = answered(&cors(&[Origin::Exact(SHOP.into())]), &[("origin", SHOP)], &upstream);
        assert_eq!(said(&headers), pairs(&[("allow-origin", SHOP), ("expose-headers", "x-b")]));
        assert_eq!(headers.get_all("vary").iter().count(), 1);
        assert_eq!(said(&answered(&cors(&[]), &[("origin", SHOP)], &upstream)), []);
    }

    #[test]
    fn credentials_never_meet_a_star() {
        let upstream = [("x-b", "1"), ("content-type", "text/plain"), ("set-cookie", "a=b")];
        let origin = ("origin", SHOP);
        let open = pairs(&[("allow-origin", "*"), ("expose-headers", "*")]);
        assert_eq!(said(&answered(&any(false), &[origin], &upstream)), open);
        // Not even when this request has none: the browser may still treat it as one that could.
        let named =
            pairs(&[("allow-credentials", "true"), ("allow-origin", SHOP), ("expose-headers", "x-b")]);
        assert_eq!(said(&answered(&any(true), &[origin], &upstream)), named);
        assert_eq!(said(&answered(&any(true), &[origin, ("cookie", "a=b")], &upstream)), named);
        assert_eq!(said(&answered(&any(false), &[origin, ("cookie", "a=b")], &upstream)), []);
        let echoed = pairs(&[("allow-origin", SHOP), ("expose-headers", "*")]);
        assert_eq!(said(&answered(&any(false), &[origin, ("authorization", "x")], &upstream)), echoed);
    }
}
