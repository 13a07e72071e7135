//! The status page and its API, for browsers and command lines on this machine: read only, but for purges of the cache.

mod caching;

use crate::{mesh::Mesh, status::Status};
use axum::{
    Json, Router,
    extract::{Query, Request, State},
    http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header, uri::Authority},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde::{Deserialize, Serialize};
use std::{net::IpAddr, sync::Arc};
use tokio::sync::watch;

/// Only this page's own files run or are shown, and nobody may frame it.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
     connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// What answers come from.
#[derive(Clone)]
struct Served {
    mesh: Arc<Mesh>,
    stop: watch::Receiver<bool>,
}

/// The routes. `stop` says when the control plane stops.
pub(crate) fn router(mesh: Arc<Mesh>, stop: watch::Receiver<bool>) -> Router {
    let file = |kind: &'static str, text: &'static str| {
        get(move || async move { ([(header::CONTENT_TYPE, kind)], text) })
    };
    Router::new()
        .route("/", file("text/html; charset=utf-8", include_str!("index.html")))
        .route("/dashboard/style.css", file("text/css; charset=utf-8", include_str!("style.css")))
        .route("/dashboard/script.js", file("text/javascript; charset=utf-8", include_str!("script.js")))
        .route("/dashboard/icon.svg", file("image/svg+xml", include_str!("icon.svg")))
        .route("/api/status", get(status))
        .route("/api/documents", get(documents))
        .route("/api/cache/stats", get(caching::stats))
        .route(caching::PURGE, post(caching::purge))
        .with_state(Served { mesh, stop })
        .layer(middleware::from_fn(guard))
}

async fn status(State(Served { mesh, .. }): State<Served>) -> Result<Json<Status>, Response> {
    // Policy may be compiling; that is waited for elsewhere than on a runtime thread.
    let status = tokio::task::spawn_blocking(move || mesh.status()).await;
    status
        .map(Json)
        .map_err(|_| (StatusCode::SERVICE_UNAVAILABLE, "the control plane is stopping\n").into_response())
}

#[derive(Deserialize)]
struct DocumentsQuery {
    format: Option<String>,
}

/// All documents that are in force.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Documents {
    policy_version: String,
    documents: Vec<serde_json::Value>,
}

async fn documents(
    State(Served { mesh, .. }): State<Served>,
    Query(query): Query<DocumentsQuery>,
    headers: HeaderMap,
) -> Response {
    let read = tokio::task::spawn_blocking(move || mesh.documents_in_force()).await;
    let Ok((policy_version, documents)) = read else {
        return (StatusCode::SERVICE_UNAVAILABLE, "the control plane is stopping\n").into_response();
    };
    let accepts_yaml = headers
        .get(header::ACCEPT)
        .and_then(|accept| accept.to_str().ok())
        .is_some_and(|accept| accept.contains("yaml") && !accept.contains("json"));
    match query.format.as_deref() {
        Some("yaml") => yaml(&documents),
        None if accepts_yaml => yaml(&documents),
        None | Some("json") => Json(Documents { policy_version, documents }).into_response(),
        Some(_) => (StatusCode::BAD_REQUEST, "format is json or yaml\n").into_response(),
    }
}

/// One YAML document after another. JSON is YAML, so each is written as JSON.
fn yaml(documents: &[serde_json::Value]) -> Response {
    let mut text = String::new();
    for document in documents {
        text.push_str("---\n");
        text.push_str(&serde_json::to_string_pretty(document).unwrap_or_default());
        text.push('\n');
    }
    ([(header::CONTENT_TYPE, "application/yaml")], text).into_response()
}

/// Keeps other people's web pages out, and adds the headers that every answer has.
async fn guard(request: Request, next: Next) -> Response {
    let mut response = match refusal(request.method(), request.uri(), request.headers()) {
        Some(why) => (StatusCode::FORBIDDEN, format!("{why}\n")).into_response(),
        None => next.run(request).await,
    };
    let headers: &mut HeaderMap = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

/// A page on the web can make a browser send requests here: with a name of its own that it points to this machine
/// (then `Host` is that name), or across origins (then `Origin` is not ours).
fn refusal(method: &Method, uri: &Uri, headers: &HeaderMap) -> Option<&'static str> {
    let purge = *method == Method::POST && uri.path() == caching::PURGE;
    if !matches!(*method, Method::GET | Method::HEAD) && !purge {
        return Some("this port only answers GET, and POST to /api/cache/purge");
    }
    let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    let host = uri.authority().map(Authority::as_str).or_else(|| text(header::HOST)).unwrap_or_default();
    if !is_local_name(host) {
        return Some(
            "open the dashboard by an IP address or as localhost; other host names are refused, since any \
                     web site could point one here",
        );
    }
    if let Some(origin) = headers.get(header::ORIGIN)
        && origin.to_str().ok().and_then(|origin| origin.strip_prefix("http://")) != Some(host)
    {
        return Some("requests from other web pages are refused");
    }
    if text(header::HeaderName::from_static("sec-fetch-site")).is_some_and(|site| site == "cross-site")
        && uri.path().starts_with("/api/")
    {
        return Some("requests from other web pages are refused");
    }
    None
}

fn is_local_name(host: &str) -> bool {
    let Ok(authority) = host.parse::<Authority>() else { return false };
    let name = authority.host();
    let bare = name.trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost") || name.ends_with(".localhost") || bare.parse::<IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(method: Method, headers: &[(&'static str, &'static str)]) -> bool {
        let map = headers
            .iter()
            .map(|(name, value)| (header::HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect();
        refusal(&method, &Uri::from_static("/api/status"), &map).is_some()
    }

    #[test]
    fn this_machines_names_and_addresses_are_served() {
        for host in ["localhost:15080", "127.0.0.1:15080", "[::1]:15080", "10.0.0.1", "weft.localhost:80"] {
            assert!(!refused(Method::GET, &[("host", host)]), "{host}");
        }
    }

    #[test]
    fn a_name_that_someone_pointed_here_is_refused() {
        for host in ["evil.example:15080", "localhost.evil.example", "127.0.0.1.evil.example", "", "a b"] {
            assert!(refused(Method::GET, &[("host", host)]), "{host}");
        }
        assert!(refused(Method::GET, &[]));
    }

    #[test]
    fn other_pages_are_refused() {
        let host = ("host", "localhost:15080");
        assert!(!refused(Method::GET, &[host, ("origin", "http://localhost:15080")]));
        assert!(!refused(Method::GET, &[host, ("sec-fetch-site", "same-origin")]));
        assert!(refused(Method::GET, &[host, ("origin", "http://evil.example")]));
        assert!(refused(Method::GET, &[host, ("origin", "null")]));
        assert!(refused(Method::GET, &[host, ("sec-fetch-site", "cross-site")]));
        assert!(refused(Method::POST, &[host]));
    }

    #[test]
    fn only_purges_change_anything_and_not_from_other_pages() {
        let purge = |headers: &[(&'static str, &'static str)]| {
            let map = headers
                .iter()
                .map(|(name, value)| (header::HeaderName::from_static(name), HeaderValue::from_static(value)))
                .collect();
            refusal(&Method::POST, &Uri::from_static(caching::PURGE), &map).is_some()
        };
        let host = ("host", "localhost:15080");
        assert!(!purge(&[host]));
        assert!(purge(&[("host", "evil.example")]));
        assert!(purge(&[host, ("origin", "http://evil.example")]));
        assert!(purge(&[host, ("sec-fetch-site", "cross-site")]));
    }
}
