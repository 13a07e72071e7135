//! Filters of routes compiled: header changes, rewrites, redirects, mirrors and CORS.

use super::findings::Findings;
use crate::document::Located;
use crate::document::route::{
    Cors as WrittenCors, CorsMethod, GrpcFilter, GrpcFilterType, HeaderModifier, HeaderValueOf, HttpFilter,
    HttpFilterType, PathModifier, PathModifierType, RedirectScheme, RequestMirror, RequestRedirect,
};
use crate::identity::ServiceName;
use crate::snapshot::{Backend, Cors, Filters, HeaderChanges, Mirror, Origin, PathRewrite, Redirect};
use http::{HeaderName, HeaderValue, Method, StatusCode};
use std::sync::Arc;

/// Filters of one rule or backend, compiled.
#[derive(Default)]
pub(super) struct Compiled {
    pub(super) filters: Filters,
    pub(super) redirect: Option<Redirect>,
    pub(super) mirrors: Vec<Mirror>,
    pub(super) cors: Option<Cors>,
    /// Why the Gateway API demands an error in place of what the filters would do.
    pub(super) invalid: Option<Arc<str>>,
}

pub(super) fn http(
    filters: &[HttpFilter],
    found: &Located,
    field: &str,
    findings: &mut Findings,
) -> Compiled {
    let mut compiled = Compiled::default();
    for (at, filter) in filters.iter().enumerate() {
        let field = format!("{field}[{at}]");
        match filter.filter_type {
            HttpFilterType::RequestHeaderModifier => {
                let field = format!("{field}.requestHeaderModifier");
                changes(
                    &mut compiled.filters.request,
                    &filter.request_header_modifier,
                    found,
                    &field,
                    findings,
                );
            }
            HttpFilterType::ResponseHeaderModifier => {
                let field = format!("{field}.responseHeaderModifier");
                changes(
                    &mut compiled.filters.response,
                    &filter.response_header_modifier,
                    found,
                    &field,
                    findings,
                );
            }
            HttpFilterType::RequestRedirect => {
                if let Some(redirect) = &filter.request_redirect {
                    compiled.redirect = Some(redirect_to(redirect, found, &field, findings));
                }
            }
            HttpFilterType::UrlRewrite => {
                if let Some(rewrite) = &filter.url_rewrite {
                    if let Some(host) = &rewrite.hostname {
                        let field = format!("{field}.urlRewrite.hostname");
                        compiled.filters.host = header_value(host, found, &field, findings);
                    }
                    compiled.filters.path = rewrite.path.as_ref().and_then(path_rewrite);
                }
            }
            HttpFilterType::ExtensionRef => compiled.invalid = Some(unknown_extension(&filter.extension_ref)),
            HttpFilterType::RequestMirror => {
                compiled.mirrors.extend(filter.request_mirror.as_ref().and_then(|m| mirror(m, found)));
            }
            HttpFilterType::Cors => {
                if let Some(written) = &filter.cors {
                    compiled.cors = Some(cors(written, found, &format!("{field}.cors"), findings));
                }
            }
        }
    }
    compiled
}

pub(super) fn grpc(
    filters: &[GrpcFilter],
    found: &Located,
    field: &str,
    findings: &mut Findings,
) -> Compiled {
    let mut compiled = Compiled::default();
    for (at, filter) in filters.iter().enumerate() {
        let field = format!("{field}[{at}]");
        match filter.filter_type {
            GrpcFilterType::RequestHeaderModifier => {
                let field = format!("{field}.requestHeaderModifier");
                changes(
                    &mut compiled.filters.request,
                    &filter.request_header_modifier,
                    found,
                    &field,
                    findings,
                );
            }
            GrpcFilterType::ResponseHeaderModifier => {
                let field = format!("{field}.responseHeaderModifier");
                changes(
                    &mut compiled.filters.response,
                    &filter.response_header_modifier,
                    found,
                    &field,
                    findings,
                );
            }
            GrpcFilterType::ExtensionRef => compiled.invalid = Some(unknown_extension(&filter.extension_ref)),
            GrpcFilterType::RequestMirror => {
                compiled.mirrors.extend(filter.request_mirror.as_ref().and_then(|m| mirror(m, found)));
            }
        }
    }
    compiled
}

/// Where copies go; `None` where none would ever go: no share, or no Service.
fn mirror(written: &RequestMirror, found: &Located) -> Option<Mirror> {
    let (to, namespace) = (&written.backend_ref, found.document.metadata().namespace());
    let (numerator, denominator) = match (written.fraction, written.percent) {
        (Some(fraction), _) => (fraction.numerator, fraction.denominator.max(1)),
        (None, percent) => (percent.unwrap_or(100), 100),
    };
    let port = to.port.filter(|_| to.is_service() && numerator > 0)?;
    let namespace = to.namespace.as_deref().unwrap_or(namespace);
    let backend = Backend {
        service: ServiceName::new(namespace, to.name.as_str()),
        port,
        weight: 1,
        filters: Filters::default(),
        mirrors: Arc::default(),
        invalid: None,
    };
    Some(Mirror { backend, numerator: numerator.min(denominator), denominator })
}

fn cors(written: &WrittenCors, found: &Located, field: &str, findings: &mut Findings) -> Cors {
    let mut names = |list: &[String], part: &str| -> Option<Arc<[HeaderName]>> {
        let names = list.iter().enumerate().filter(|(_, name)| *name != "*");
        let names = names
            .filter_map(|(at, name)| header_name(name, found, &format!("{field}.{part}[{at}]"), findings));
        let names: Arc<[HeaderName]> = names.collect();
        (!list.iter().any(|name| name == "*")).then_some(names)
    };
    let (headers, expose) =
        (names(&written.allow_headers, "allowHeaders"), names(&written.expose_headers, "exposeHeaders"));
    let any_method = written.allow_methods.contains(&CorsMethod::Any);
    let methods = written.allow_methods.iter().filter_map(|method| {
        // A method's name as a document writes it is the one on the wire.
        let name = serde_json::to_value(method).ok()?;
        Method::from_bytes(name.as_str()?.as_bytes()).ok()
    });
    Cors {
        origins: written.allow_origins.iter().map(|origin| self::origin(origin)).collect(),
        credentials: written.allow_credentials,
        methods: (!any_method).then(|| methods.collect()),
        headers,
        expose,
        max_age: written.max_age,
    }
}

fn origin(written: &str) -> Origin {
    let lower = written.to_ascii_lowercase();
    match lower.split_once('*') {
        Some(("", "")) => Origin::Any,
        Some((before, after)) => Origin::Wildcard(before.into(), after.into()),
        None => Origin::Exact(lower.into()),
    }
}

fn unknown_extension(reference: &Option<crate::document::route::LocalObjectRef>) -> Arc<str> {
    match reference {
        Some(reference) => format!("unknown filter {} {}", reference.kind, reference.name).into(),
        None => "unknown filter".into(),
    }
}

fn changes(
    into: &mut HeaderChanges,
    modifier: &Option<HeaderModifier>,
    found: &Located,
    field: &str,
    findings: &mut Findings,
) {
    let Some(modifier) = modifier else { return };
    let mut pairs = |headers: &[HeaderValueOf], part: &str, into: &mut Vec<(HeaderName, HeaderValue)>| {
        for (at, header) in headers.iter().enumerate() {
            let field = format!("{field}.{part}[{at}]");
            let name = header_name(&header.name, found, &format!("{field}.name"), findings);
            let value = header_value(&header.value, found, &format!("{field}.value"), findings);
            into.extend(name.zip(value));
        }
    };
    pairs(&modifier.set, "set", &mut into.set);
    pairs(&modifier.add, "add", &mut into.add);
    for (at, name) in modifier.remove.iter().enumerate() {
        into.remove.extend(header_name(name, found, &format!("{field}.remove[{at}]"), findings));
    }
}

pub(super) fn header_name(
    text: &str,
    found: &Located,
    field: &str,
    findings: &mut Findings,
) -> Option<HeaderName> {
    let name = HeaderName::from_bytes(text.as_bytes()).ok();
    if name.is_none() {
        findings.error(
            found,
            field,
            format!("`{text}` is not a header name"),
            "use letters, digits and hyphens",
        );
    }
    name
}

fn header_value(text: &str, found: &Located, field: &str, findings: &mut Findings) -> Option<HeaderValue> {
    let value = HeaderValue::from_str(text).ok();
    if value.is_none() {
        findings.error(
            found,
            field,
            format!("`{}` cannot be a header's value", text.escape_debug()),
            "use visible ASCII characters and blanks",
        );
    }
    value
}

fn redirect_to(
    redirect: &RequestRedirect,
    found: &Located,
    field: &str,
    findings: &mut Findings,
) -> Redirect {
    let status = StatusCode::from_u16(redirect.status_code).ok().filter(StatusCode::is_redirection);
    if status.is_none() {
        findings.error(
            found,
            &format!("{field}.requestRedirect.statusCode"),
            format!("{} is not a redirect status", redirect.status_code),
            "use 301, 302, 303, 307 or 308",
        );
    }
    Redirect {
        scheme: redirect.scheme.map(|scheme| match scheme {
            RedirectScheme::Http => "http".into(),
            RedirectScheme::Https => "https".into(),
        }),
        host: redirect.hostname.as_deref().map(Into::into),
        port: redirect.port,
        path: redirect.path.as_ref().and_then(path_rewrite),
        status: status.unwrap_or(StatusCode::FOUND),
    }
}

fn path_rewrite(modifier: &PathModifier) -> Option<PathRewrite> {
    match modifier.modifier_type {
        PathModifierType::ReplaceFullPath => {
            let path = modifier.replace_full_path.as_deref()?;
            // A path in a request is never empty.
            Some(PathRewrite::Full(if path.is_empty() { "/".into() } else { path.into() }))
        }
        PathModifierType::ReplacePrefixMatch => {
            modifier.replace_prefix_match.as_deref().map(|path| PathRewrite::Prefix(path.into()))
        }
    }
}
