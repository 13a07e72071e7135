//! Between HTTP/1 and HTTP/2 heads: fields that belong to a connection, the host, and the version shown.

use crate::http1::HeaderCase;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Uri, Version,
    header::{CONNECTION, COOKIE, HOST, HeaderMap as Fields, TE, TRANSFER_ENCODING, UPGRADE},
    request,
    uri::{Authority, PathAndQuery, Scheme},
};

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const WEFT_CASE: HeaderName = HeaderName::from_static("weft-case");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// Takes out what HTTP/2 forbids: fields about one connection, and those `Connection` names. Cheap if there are none.
pub(super) fn strip_connection_fields(headers: &mut HeaderMap) {
    if headers.contains_key(CONNECTION) {
        let named: Vec<HeaderName> = headers
            .get_all(CONNECTION)
            .iter()
            .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
            .filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok())
            .collect();
        for name in named {
            // `TE` is always named there in HTTP/1, and means the same in HTTP/2.
            if name != TE {
                headers.remove(name);
            }
        }
        headers.remove(CONNECTION);
    }
    for name in [TRANSFER_ENCODING, UPGRADE, KEEP_ALIVE, PROXY_CONNECTION] {
        headers.remove(name);
    }
    if let Some(te) = headers.get(TE)
        && te != "trailers"
    {
        let trailers = headers.get_all(TE).iter().any(|value| {
            let mut codings = value.as_bytes().split(|byte| *byte == b',');
            codings.any(|coding| coding.trim_ascii().eq_ignore_ascii_case(b"trailers"))
        });
        if trailers {
            headers.insert(TE, HeaderValue::from_static("trailers"));
        } else {
            headers.remove(TE);
        }
    }
}

/// The head of `request` as an HTTP/2 client sends it. `request` stays whole, so that it can be sent again.
pub(super) fn request_out(request: &request::Parts) -> Request<()> {
    let mut headers = request.headers.clone();
    let mut uri = request.uri.clone();
    if request.version != Version::HTTP_2 {
        strip_connection_fields(&mut headers);
        // A host that is no valid authority stays a field: the peer's own rules judge it.
        let host = headers.get(HOST).and_then(|host| Authority::try_from(host.as_bytes()).ok());
        if let Some(authority) = host.or_else(|| uri.authority().cloned()) {
            uri = absolute(uri, authority);
            headers.remove(HOST);
        }
    }
    let mut head = Request::new(());
    *head.method_mut() = request.method.clone();
    // h2 lets only an HTTP/1 request go without scheme and authority.
    *head.version_mut() = if uri.authority().is_some() { Version::HTTP_2 } else { Version::HTTP_11 };
    *head.uri_mut() = uri;
    *head.headers_mut() = headers;
    head
}

fn absolute(uri: Uri, authority: Authority) -> Uri {
    let mut parts = uri.clone().into_parts();
    parts.authority = Some(authority);
    parts.scheme.get_or_insert(Scheme::HTTP);
    parts.path_and_query.get_or_insert_with(|| PathAndQuery::from_static("/"));
    Uri::from_parts(parts).unwrap_or(uri)
}

/// Makes a request that came over HTTP/2 what an HTTP/1 server would hand up: origin form, `Host`, version 1.1.
pub(super) fn request_to_http1<B>(request: &mut Request<B>) {
    let uri = std::mem::take(request.uri_mut());
    let mut parts = uri.into_parts();
    if let Some(authority) = parts.authority.take()
        && let Ok(host) = HeaderValue::from_str(authority.as_str())
    {
        request.headers_mut().insert(HOST, host);
    }
    parts.scheme = None;
    let path = parts.path_and_query.unwrap_or_else(|| PathAndQuery::from_static("/"));
    *request.uri_mut() = Uri::from(path);
    *request.version_mut() = Version::HTTP_11;
}

/// Joins what HTTP/2 may split: everything behind here expects one `Cookie` field.
pub(super) fn join_cookies(headers: &mut Fields) {
    let mut crumbs = headers.get_all(COOKIE).iter();
    let (Some(first), Some(second)) = (crumbs.next(), crumbs.next()) else { return };
    let mut joined = first.as_bytes().to_vec();
    for crumb in std::iter::once(second).chain(crumbs) {
        joined.extend_from_slice(b"; ");
        joined.extend_from_slice(crumb.as_bytes());
    }
    if let Ok(joined) = HeaderValue::from_bytes(&joined) {
        headers.insert(COOKIE, joined);
    }
}

/// Takes away blanks around values. HTTP/2 allows none there and HTTP/1 reads none, so a policy that looked at them would
/// look at something else than the application (RFC 9113 section 8.2.1).
pub(super) fn trim_values(headers: &mut HeaderMap) {
    let is_blank = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    for value in headers.values_mut() {
        let bytes = value.as_bytes();
        if !is_blank(bytes.first()) && !is_blank(bytes.last()) {
            continue;
        }
        if let Ok(mut trimmed) = HeaderValue::from_bytes(bytes.trim_ascii()) {
            trimmed.set_sensitive(value.is_sensitive());
            *value = trimmed;
        }
    }
}

/// Sends the spelling of an HTTP/1 message's field names along, if they are not all conventional.
pub(super) fn case_out(headers: &mut HeaderMap, extensions: &http::Extensions) {
    match extensions.get::<HeaderCase>().and_then(HeaderCase::to_header_value) {
        Some(value) => headers.insert(WEFT_CASE, value),
        // Only sidecars say this to each other.
        None => headers.remove(WEFT_CASE),
    };
}

/// Takes the spelling of an HTTP/1 message's field names from where [`case_out`] put it.
pub(super) fn case_in(headers: &mut HeaderMap, extensions: &mut http::Extensions) {
    if let Some(case) = headers.remove(WEFT_CASE).as_ref().and_then(HeaderCase::from_header_value) {
        extensions.insert(case);
    }
}

/// True if a response to `method` with `status` has no body whatever its fields say.
pub(super) fn is_bodiless(method: &Method, status: http::StatusCode) -> bool {
    method == Method::HEAD
        || status.is_informational()
        || matches!(status, http::StatusCode::NO_CONTENT | http::StatusCode::NOT_MODIFIED)
}

/// The decoded size of header fields as HTTP/2 counts it.
pub(super) fn decoded_size(headers: &HeaderMap) -> usize {
    headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 32).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn out(request: http::request::Builder) -> Request<()> {
        request_out(&request.body(()).expect("a request").into_parts().0)
    }

    #[test]
    fn fields_of_the_connection_stay_behind() {
        let sent = out(Request::get("/")
            .header("connection", "close, X-Hop , te")
            .header("x-hop", "1")
            .header("keep-alive", "timeout=5")
            .header("proxy-connection", "keep-alive")
            .header("upgrade", "h2c")
            .header("transfer-encoding", "chunked")
            .header("te", "gzip, trailers")
            .header("x-kept", "2")
            .header("host", "product:8080"));
        let names: Vec<&str> = sent.headers().keys().map(HeaderName::as_str).collect();
        assert_eq!(names.len(), 2, "{names:?}");
        assert_eq!(sent.headers()["te"], "trailers");
        assert_eq!(sent.headers()["x-kept"], "2");
    }

    #[test]
    fn host_becomes_authority_and_back() {
        let mut request = out(Request::get("/a?b=c").header("host", "Product:8080"));
        assert_eq!(request.uri(), "http://Product:8080/a?b=c");
        assert!(!request.headers().contains_key(HOST));
        request_to_http1(&mut request);
        assert_eq!(request.uri(), "/a?b=c");
        assert_eq!(request.headers()[HOST], "Product:8080");
        assert_eq!(request.version(), Version::HTTP_11);
    }

    #[test]
    fn the_host_field_wins_over_an_absolute_uri() {
        let request = out(Request::get("http://elsewhere/x").header("host", "product"));
        assert_eq!(request.uri(), "http://product/x");
        assert_eq!(out(Request::get("http://elsewhere/x")).uri(), "http://elsewhere/x");
    }

    #[test]
    fn a_request_without_a_host_or_for_all_of_a_server_passes() {
        let old = out(Request::get("/").version(Version::HTTP_10));
        assert_eq!((old.uri().to_string().as_str(), old.version()), ("/", Version::HTTP_11));
        let mut all = out(Request::options("*").header("host", "product"));
        assert_eq!(all.uri().path_and_query().map(PathAndQuery::as_str), Some("*"));
        request_to_http1(&mut all);
        assert_eq!(all.uri(), "*");
    }

    #[test]
    fn split_cookies_are_joined() {
        let mut headers = HeaderMap::new();
        for crumb in ["a=1", "b=2", "c=3"] {
            headers.append(COOKIE, HeaderValue::from_static(crumb));
        }
        join_cookies(&mut headers);
        let all: Vec<_> = headers.get_all(COOKIE).iter().collect();
        assert_eq!(all, ["a=1; b=2; c=3"]);
    }

    #[test]
    fn blanks_around_values_are_none_of_theirs() {
        let mut headers = HeaderMap::new();
        for value in [" admin", "admin\t", "\t ", "a b", ""] {
            headers.append("x-role", HeaderValue::from_static(value));
        }
        trim_values(&mut headers);
        let all: Vec<_> = headers.get_all("x-role").iter().collect();
        assert_eq!(all, ["admin", "admin", "", "a b", ""]);
    }
}
