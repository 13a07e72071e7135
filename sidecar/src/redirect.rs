//! Answers to requests whose rule says `RequestRedirect`: the Location as the Gateway API defines it.

use crate::{
    body::Body,
    message::{authority, split_authority},
};
use http::{HeaderValue, Response, StatusCode, header, request::Parts};
use weft_config::snapshot::{Filters, Redirect};

/// The redirect answer; `matched` is how many bytes of the path the rule's prefix took.
pub(crate) fn answer(to: &Redirect, request: &Parts, matched: usize, filters: &Filters) -> Response<Body> {
    let mut response = Response::new(Body::Empty);
    match HeaderValue::try_from(location(to, request, matched)) {
        Ok(location) => {
            *response.status_mut() = to.status;
            response.headers_mut().insert(header::LOCATION, location);
            filters.response.apply(response.headers_mut());
        }
        // The request's own host or path could not stand in a header.
        Err(_) => *response.status_mut() = StatusCode::BAD_REQUEST,
    }
    response
}

/// A redirect that names a scheme but no port goes to that scheme's own port; one that names neither keeps the
/// request's port; ports that the scheme implies are left out.
fn location(to: &Redirect, request: &Parts, matched: usize) -> String {
    let (own_host, own_port) = authority(request).and_then(split_authority).unwrap_or(("", None));
    let own_scheme = request.uri.scheme_str().unwrap_or("http");
    let scheme = to.scheme.as_deref().unwrap_or(own_scheme);
    let host = to.host.as_deref().unwrap_or(own_host);
    let port = to.port.or(if to.scheme.is_some() { None } else { own_port });
    let port = port.filter(|p| !matches!((scheme, *p), ("http", 80) | ("https", 443)));
    let path = match &to.path {
        Some(rewrite) => rewrite.apply(request.uri.path(), matched),
        None => request.uri.path().to_owned(),
    };
    let mut location = format!("{scheme}://{host}");
    if let Some(port) = port {
        location.push_str(&format!(":{port}"));
    }
    location.push_str(&path);
    if let Some(query) = request.uri.query() {
        location.push('?');
        location.push_str(query);
    }
    location
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;
    use weft_config::snapshot::PathRewrite;

    #[rstest]
    #[case(Some("https"), None, None, None, "https://shop/a/b?q=1")]
    #[case(None, Some("other"), None, None, "http://other:8080/a/b?q=1")]
    #[case(Some("https"), Some("other"), Some(8443), None, "https://other:8443/a/b?q=1")]
    #[case(None, None, Some(80), None, "http://shop/a/b?q=1")]
    #[case(None, None, None, Some(PathRewrite::Prefix("/z".into())), "http://shop:8080/z/b?q=1")]
    #[case(None, None, None, Some(PathRewrite::Full("/z".into())), "http://shop:8080/z?q=1")]
    fn location_follows_the_gateway_api(
        #[case] scheme: Option<&str>,
        #[case] host: Option<&str>,
        #[case] port: Option<u16>,
        #[case] path: Option<PathRewrite>,
        #[case] expected: &str,
    ) {
        let to = Redirect {
            scheme: scheme.map(Into::into),
            host: host.map(Into::into),
            port,
            path,
            status: StatusCode::FOUND,
        };
        let request =
            http::Request::get("/a/b?q=1").header(header::HOST, "shop:8080").body(()).expect("valid");
        assert_eq!(location(&to, &request.into_parts().0, 2), expected);
    }
}
