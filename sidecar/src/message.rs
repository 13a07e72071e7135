//! What both directions do to a message's head: one form of the path, no fields of the connection, none of our own names
//! from outside the mesh.

use crate::{
    error::{Error, Kind},
    http1,
    notable::Notable,
};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Uri, Version, header, request::Parts, uri::Authority,
};
use smallvec::SmallVec;
use std::borrow::Cow;
use weft_config::{matching::normalize_path, snapshot::Filters};

/// Says which kind of error of ours an answer is.
pub(crate) const WEFT_ERROR: HeaderName = HeaderName::from_static("weft-error");
/// Which attempt of its caller a request is, from the second on; for sidecars only.
pub(crate) const WEFT_ATTEMPT: HeaderName = HeaderName::from_static("weft-attempt");
/// On an answer that was tried again already, so that nobody nearer to the caller does so too.
pub(crate) const WEFT_RETRIED: HeaderName = HeaderName::from_static("weft-retried");
/// Labels of an answer, from the sidecar of a service to those of its callers, where applications do not see them.
pub(crate) const WEFT_CACHE_TAGS: HeaderName = HeaderName::from_static("weft-cache-tags");
/// What an application says to the caches of sidecars only (RFC 9213).
pub(crate) const WEFT_CACHE_CONTROL: HeaderName = HeaderName::from_static("weft-cache-control");
pub(crate) const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");

/// Brings a request into the form in which it is judged, routed and sent on. `trusted` if it comes from a sidecar, which
/// may say things in our name. Says whether the request wants a connection of its own.
pub(crate) fn prepare(request: &mut Parts, notable: Notable, trusted: bool) -> Result<bool, Error> {
    if request.version == Version::HTTP_2 {
        settle_host(request)?;
    }
    let hop = notable.has(Notable::HOP);
    let upgrade = hop && request.version != Version::HTTP_2 && request.headers.contains_key(header::UPGRADE);
    let tunnel = upgrade || request.method == Method::CONNECT;
    if hop {
        http1::strip_hop_by_hop(&mut request.headers, upgrade);
    }
    if !trusted && notable.has(Notable::OWN) {
        strip_own(&mut request.headers);
    }
    if request.method != Method::CONNECT {
        normalise(request)?;
    }
    Ok(tunnel)
}

/// HTTP/2 has a place for the host beside its fields. Where a `Host` says another one that place counts, as the target does
/// in HTTP/1: what is routed, authorized and kept by one name must not be answered by another (RFC 9113 section 8.3.1).
/// What HTTP/1 could not say is refused as it is there.
pub(crate) fn settle_host(request: &mut Parts) -> Result<(), Error> {
    let bad = |why: &'static str| Err(Error::new(Kind::BadRequest, why));
    let mut hosts = request.headers.get_all(header::HOST).iter();
    let (host, another) = (hosts.next(), hosts.next().is_some());
    let Some(authority) = request.uri.authority().map(Authority::as_str) else {
        return match host {
            _ if another => bad("the request has several Host fields: it must have one"),
            Some(host) if !host.to_str().is_ok_and(http1::is_host) => {
                bad("Host is not a host name with an optional port")
            }
            _ => Ok(()),
        };
    };
    if !http1::is_host(authority) {
        return bad("the request's authority is not a host name with an optional port");
    }
    if another || host.is_some_and(|host| host != authority) {
        let value = HeaderValue::from_str(authority).map_err(|_| invalid_uri())?;
        request.headers.insert(header::HOST, value);
    }
    Ok(())
}

/// Puts the host of an HTTP/2 request where routes look for it, whatever the protocol calls it.
pub(crate) fn ensure_host(request: &mut Parts) {
    if request.version == Version::HTTP_2
        && !request.headers.contains_key(header::HOST)
        && let Some(host) = request.uri.authority().and_then(|a| HeaderValue::from_str(a.as_str()).ok())
    {
        request.headers.insert(header::HOST, host);
    }
}

/// Rewrites the path into its normal form if it is not in it.
fn normalise(request: &mut Parts) -> Result<(), Error> {
    let path = request.uri.path();
    if path == "*" {
        // About a server as a whole there is only this to ask (RFC 9112 section 3.2.4).
        return match request.method {
            Method::OPTIONS => Ok(()),
            _ => Err(Error::new(Kind::BadRequest, "the target `*` is for OPTIONS only")),
        };
    }
    match normalize_path(path) {
        Ok(Cow::Borrowed(_)) => Ok(()),
        Ok(Cow::Owned(path)) => set_path(request, &path),
        Err(reason) => Err(Error::new(
            Kind::BadRequest,
            format!("the path cannot be brought into normal form: {reason}"),
        )),
    }
}

/// Replaces the path, keeping the query.
fn set_path(request: &mut Parts, path: &str) -> Result<(), Error> {
    let mut parts = request.uri.clone().into_parts();
    let target = match request.uri.query() {
        Some(query) => format!("{path}?{query}"),
        None => path.to_owned(),
    };
    let invalid = |_| Error::new(Kind::BadRequest, "the rewritten path is not a valid URI path");
    parts.path_and_query = Some(target.try_into().map_err(invalid)?);
    request.uri = Uri::from_parts(parts).map_err(|_| invalid_uri())?;
    Ok(())
}

fn set_host(request: &mut Parts, host: &HeaderValue) -> Result<(), Error> {
    if request.uri.authority().is_some() {
        let mut parts = request.uri.clone().into_parts();
        parts.authority = Some(Authority::try_from(host.as_bytes()).map_err(|_| invalid_uri())?);
        request.uri = Uri::from_parts(parts).map_err(|_| invalid_uri())?;
    }
    request.headers.insert(header::HOST, host.clone());
    Ok(())
}

fn invalid_uri() -> Error {
    Error::new(Kind::BadRequest, "the request target is not a valid URI")
}

/// Changes a request as the filters of its rule or backend say; `matched` is how much of the path the rule took.
pub(crate) fn apply(filters: &Filters, matched: usize, request: &mut Parts) -> Result<(), Error> {
    if filters.is_empty() {
        return Ok(());
    }
    if let Some(rewrite) = &filters.path {
        let path = rewrite.apply(request.uri.path(), matched);
        set_path(request, &path)?;
    }
    if let Some(host) = &filters.host {
        set_host(request, host)?;
    }
    filters.request.apply(&mut request.headers);
    Ok(())
}

/// Removes from an application's answer the fields that only sidecars may set. What it says to the caches of sidecars is
/// its own to say.
pub(crate) fn strip_own_of_answer(headers: &mut HeaderMap) {
    let said: SmallVec<[HeaderValue; 1]> = headers.get_all(&WEFT_CACHE_CONTROL).iter().cloned().collect();
    strip_own(headers);
    for value in said {
        headers.append(WEFT_CACHE_CONTROL, value);
    }
}

/// Removes fields that only sidecars may set.
pub(crate) fn strip_own(headers: &mut HeaderMap) {
    let own: SmallVec<[HeaderName; 2]> =
        headers.keys().filter(|name| name.as_str().starts_with("weft-")).cloned().collect();
    for name in own {
        headers.remove(name);
    }
}

/// The host that a request names: of its target if it has one, else its `Host` field.
pub(crate) fn authority(request: &Parts) -> Option<&str> {
    match request.uri.authority() {
        Some(authority) => Some(authority.as_str()),
        None => request.headers.get(header::HOST)?.to_str().ok(),
    }
}

/// Splits `host`, `host:port`, `[v6]` and `[v6]:port`.
pub(crate) fn split_authority(authority: &str) -> Option<(&str, Option<u16>)> {
    let after_bracket = authority.rfind(']').map_or(0, |i| i + 1);
    match authority[after_bracket..].rfind(':') {
        Some(colon) => {
            let colon = after_bracket + colon;
            let port = authority[colon + 1..].parse().ok()?;
            Some((&authority[..colon], Some(port)))
        }
        None => Some((authority, None)),
    }
}

/// True for gRPC in any of its content types.
pub(crate) fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(header::CONTENT_TYPE).is_some_and(|v| {
        let rest = v.as_bytes().strip_prefix(b"application/grpc");
        rest.is_some_and(|r| matches!(r.first(), None | Some(b'+' | b';')))
    })
}

/// The gRPC status in these headers or trailers.
pub(crate) fn grpc_status(headers: &HeaderMap) -> Option<u16> {
    headers.get(GRPC_STATUS)?.to_str().ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_names_from_outside_are_removed() {
        let mut headers = HeaderMap::new();
        headers.insert("weft-error", HeaderValue::from_static("x"));
        headers.insert("weft-anything", HeaderValue::from_static("x"));
        headers.insert("weftless", HeaderValue::from_static("x"));
        strip_own(&mut headers);
        assert_eq!(headers.len(), 1);
    }

    #[test]
    fn an_application_may_speak_to_caches_but_not_in_our_name() {
        let mut headers = HeaderMap::new();
        headers.insert("weft-error", HeaderValue::from_static("x"));
        headers.insert("weft-cache-control", HeaderValue::from_static("max-age=5"));
        strip_own_of_answer(&mut headers);
        assert_eq!(
            (headers.len(), &headers["weft-cache-control"]),
            (1, &HeaderValue::from_static("max-age=5"))
        );
    }

    #[test]
    fn authorities_split_at_the_port() {
        assert_eq!(split_authority("a"), Some(("a", None)));
        assert_eq!(split_authority("a:80"), Some(("a", Some(80))));
        assert_eq!(split_authority("[::1]:80"), Some(("[::1]", Some(80))));
        assert_eq!(split_authority("[::1]"), Some(("[::1]", None)));
        assert_eq!(split_authority("a:x"), None);
        assert_eq!(split_authority("a:99999"), None);
    }

    fn over_http2(uri: &str, hosts: &[&'static str]) -> Result<Parts, Kind> {
        let (mut parts, ()) = http::Request::get(uri).version(Version::HTTP_2).body(()).unwrap().into_parts();
        for host in hosts {
            parts.headers.append(header::HOST, HeaderValue::from_static(host));
        }
        let notable = Notable::of(&parts.headers);
        prepare(&mut parts, notable, false).map_err(|error| error.kind)?;
        ensure_host(&mut parts);
        Ok(parts)
    }

    #[test]
    fn over_http2_the_authority_is_the_host_whatever_a_field_says() {
        for hosts in [&[][..], &["product:8080"], &["other"], &["product:8080", "other"], &["a b"]] {
            let parts = over_http2("http://product:8080/a", hosts).unwrap();
            let read: Vec<_> = parts.headers.get_all(header::HOST).iter().collect();
            assert_eq!(read, ["product:8080"], "{hosts:?}");
        }
        let parts = over_http2("/a", &["product"]).unwrap();
        assert_eq!(authority(&parts), Some("product"));
    }

    #[test]
    fn what_is_no_host_is_refused_over_http2_too() {
        for (uri, hosts) in [
            ("http://user@product/a", &[][..]),
            ("http://user:secret@product:80/a", &["product:80"]),
            ("/a", &["user@product"]),
            ("/a", &["a/b"]),
            ("/a", &["a", "b"]),
        ] {
            assert_eq!(over_http2(uri, hosts).err(), Some(Kind::BadRequest), "{uri} {hosts:?}");
        }
    }

    #[test]
    fn only_options_is_about_a_whole_server() {
        for (method, taken) in [(Method::OPTIONS, true), (Method::GET, false), (Method::POST, false)] {
            let request = http::Request::builder().method(method).uri("http://a/").version(Version::HTTP_2);
            let (mut parts, ()) = request.body(()).unwrap().into_parts();
            parts.uri = Uri::builder().scheme("http").authority("a").path_and_query("*").build().unwrap();
            let notable = Notable::of(&parts.headers);
            assert_eq!(prepare(&mut parts, notable, false).is_ok(), taken, "{}", parts.method);
        }
    }

    #[test]
    fn grpc_is_told_by_content_type() {
        let with = |v: &'static str| {
            let mut h = HeaderMap::new();
            h.insert(header::CONTENT_TYPE, HeaderValue::from_static(v));
            is_grpc(&h)
        };
        assert!(with("application/grpc") && with("application/grpc+proto") && with("application/grpc; x=y"));
        assert!(!with("application/grpc-web") && !with("application/json"));
    }
}
