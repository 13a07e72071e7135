//! Rules of the Gateway API between the filters of one route's rule.

use super::route::backend_ref;
use super::{Findings, shown};
use crate::document::route::{
    Cors, CorsMethod, GrpcFilter, GrpcFilterType, HeaderModifier, HttpFilter, HttpFilterType, HttpRouteRule,
    PathMatchType, PathModifier, PathModifierType, RequestMirror,
};
use crate::parse::format;

/// Filters that answer in place of every backend, in the filters of one backend.
pub(super) fn of_the_rule(findings: &mut Findings<'_>, at: &str, filters: &[HttpFilter]) {
    for (index, filter) in filters.iter().enumerate() {
        if matches!(filter.filter_type, HttpFilterType::RequestRedirect | HttpFilterType::Cors) {
            let name = http_filter_name(filter.filter_type).0;
            findings.error(
                &format!("{at}[{index}].type"),
                format!(
                    "found {name} among the filters of one backend: it answers before a backend is chosen"
                ),
                "move it to the rule's own filters",
            );
        }
    }
}

pub(super) fn http_filters(
    findings: &mut Findings<'_>,
    at: &str,
    filters: &[HttpFilter],
    rule: &HttpRouteRule,
) {
    use HttpFilterType as Type;
    let position = |wanted: Type| filters.iter().position(|f| f.filter_type == wanted);
    if let (Some(redirect), Some(rewrite)) = (position(Type::RequestRedirect), position(Type::UrlRewrite)) {
        findings.error(
            &format!("{at}[{}]", redirect.max(rewrite)),
            "found RequestRedirect and URLRewrite together",
            "keep one of the two: a redirected request goes nowhere that its URL could be rewritten for",
        );
    }
    for (index, filter) in filters.iter().enumerate() {
        let once = !matches!(filter.filter_type, Type::RequestMirror | Type::ExtensionRef);
        if once && filters[..index].iter().any(|f| f.filter_type == filter.filter_type) {
            let message = format!("the filter {} is there twice", http_filter_name(filter.filter_type).0);
            findings.error(&format!("{at}[{index}]"), message, "join the two into one");
        }
        let at = format!("{at}[{index}]");
        let given = [
            (Type::RequestHeaderModifier, filter.request_header_modifier.is_some()),
            (Type::ResponseHeaderModifier, filter.response_header_modifier.is_some()),
            (Type::RequestMirror, filter.request_mirror.is_some()),
            (Type::RequestRedirect, filter.request_redirect.is_some()),
            (Type::UrlRewrite, filter.url_rewrite.is_some()),
            (Type::Cors, filter.cors.is_some()),
            (Type::ExtensionRef, filter.extension_ref.is_some()),
        ];
        let given = given
            .into_iter()
            .map(|(kind, there)| (kind == filter.filter_type, http_filter_name(kind).1, there));
        filter_fields(findings, &at, http_filter_name(filter.filter_type).0, given);
        header_modifier(
            findings,
            &format!("{at}.requestHeaderModifier"),
            filter.request_header_modifier.as_ref(),
        );
        header_modifier(
            findings,
            &format!("{at}.responseHeaderModifier"),
            filter.response_header_modifier.as_ref(),
        );
        mirror(findings, &format!("{at}.requestMirror"), filter.request_mirror.as_ref());
        if let Some(redirect) = &filter.request_redirect {
            path_modifier(findings, &format!("{at}.requestRedirect.path"), redirect.path.as_ref(), rule);
        }
        if let Some(rewrite) = &filter.url_rewrite {
            path_modifier(findings, &format!("{at}.urlRewrite.path"), rewrite.path.as_ref(), rule);
            if rewrite.hostname.is_none() && rewrite.path.is_none() {
                findings.warning(
                    &format!("{at}.urlRewrite"),
                    "the rewrite changes nothing",
                    "add `hostname` or `path`",
                );
            }
        }
        cors(findings, &format!("{at}.cors"), filter.cors.as_ref());
        if filter.extension_ref.is_some() {
            findings.warning(
                &format!("{at}.extensionRef"),
                "Weft knows no filters of other APIs, so what the rule matches is answered with 500",
                "take the filter away",
            );
        }
    }
}

fn http_filter_name(kind: HttpFilterType) -> (&'static str, &'static str) {
    match kind {
        HttpFilterType::RequestHeaderModifier => ("RequestHeaderModifier", "requestHeaderModifier"),
        HttpFilterType::ResponseHeaderModifier => ("ResponseHeaderModifier", "responseHeaderModifier"),
        HttpFilterType::RequestMirror => ("RequestMirror", "requestMirror"),
        HttpFilterType::RequestRedirect => ("RequestRedirect", "requestRedirect"),
        HttpFilterType::UrlRewrite => ("URLRewrite", "urlRewrite"),
        HttpFilterType::Cors => ("CORS", "cors"),
        HttpFilterType::ExtensionRef => ("ExtensionRef", "extensionRef"),
    }
}

/// A filter has the field of its type and no other.
fn filter_fields(
    findings: &mut Findings<'_>,
    at: &str,
    kind: &str,
    fields: impl Iterator<Item = (bool, &'static str, bool)>,
) {
    for (meant, field, there) in fields {
        if meant && !there {
            findings.error(
                &format!("{at}.{field}"),
                format!("the field `{field}` is missing for the type {kind}"),
                format!("add `{field}:` with what the filter does"),
            );
        } else if !meant && there {
            findings.error(
                &format!("{at}.{field}"),
                format!("found `{field}` in a filter of the type {kind}"),
                "make it a filter of its own, or change the type",
            );
        }
    }
}

fn header_modifier(findings: &mut Findings<'_>, at: &str, modifier: Option<&HeaderModifier>) {
    let Some(modifier) = modifier else { return };
    if modifier == &HeaderModifier::default() {
        findings.warning(at, "the filter changes nothing", "add `set`, `add` or `remove`");
    }
    for (list, name) in [(&modifier.set, "set"), (&modifier.add, "add")] {
        let at = format!("{at}.{name}");
        findings.unique(&at, ".name", "header", list.iter().map(|h| Some(h.name.as_str())), true);
        for (index, header) in list.iter().enumerate() {
            connection_header(findings, &format!("{at}[{index}].name"), &header.name);
        }
    }
    let at = format!("{at}.remove");
    findings.unique(&at, "", "header", modifier.remove.iter().map(|h| Some(h.as_str())), true);
    for (index, name) in modifier.remove.iter().enumerate() {
        connection_header(findings, &format!("{at}[{index}]"), name);
    }
}

/// Headers that frame the message or belong to one connection are the sidecar's own business.
fn connection_header(findings: &mut Findings<'_>, at: &str, name: &str) {
    const OWN: [&str; 9] = [
        "connection",
        "content-length",
        "host",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    ];
    let lower = name.to_ascii_lowercase();
    if OWN.contains(&lower.as_str()) {
        let cure = if lower == "host" { "use URLRewrite's `hostname`" } else { "take it away" };
        findings.error(
            at,
            format!("the header `{name}` cannot be changed: it carries the message itself"),
            cure,
        );
    }
}

fn mirror(findings: &mut Findings<'_>, at: &str, mirror: Option<&RequestMirror>) {
    let Some(mirror) = mirror else { return };
    backend_ref(findings, &format!("{at}.backendRef"), &mirror.backend_ref);
    if mirror.percent.is_some() && mirror.fraction.is_some() {
        findings.error(at, "found `percent` and `fraction` together", "keep one of the two");
    }
    if let Some(fraction) = mirror.fraction
        && fraction.numerator > fraction.denominator
    {
        findings.error(
            &format!("{at}.fraction.numerator"),
            format!(
                "found `{}`, expected at most the denominator `{}`",
                fraction.numerator, fraction.denominator
            ),
            "no more than all requests can be copied",
        );
    }
}

fn path_modifier(
    findings: &mut Findings<'_>,
    at: &str,
    modifier: Option<&PathModifier>,
    rule: &HttpRouteRule,
) {
    let Some(modifier) = modifier else { return };
    let full = (modifier.modifier_type == PathModifierType::ReplaceFullPath, "replaceFullPath");
    let prefix = (modifier.modifier_type == PathModifierType::ReplacePrefixMatch, "replacePrefixMatch");
    let kind = if full.0 { "ReplaceFullPath" } else { "ReplacePrefixMatch" };
    let fields = [
        (full.0, full.1, modifier.replace_full_path.is_some()),
        (prefix.0, prefix.1, modifier.replace_prefix_match.is_some()),
    ];
    filter_fields(findings, at, kind, fields.into_iter());
    for (field, value) in [(full.1, &modifier.replace_full_path), (prefix.1, &modifier.replace_prefix_match)]
    {
        let Some(value) = value.as_deref().filter(|v| !v.is_empty()) else { continue };
        // A replacement may hold a query; only its path has a normal form.
        let path = value.split('?').next().unwrap_or_default();
        let path =
            if path.starts_with('/') || field == full.1 { path.to_owned() } else { format!("/{path}") };
        if let Err(unfit) = format::check("absolute-path", &path) {
            let message = format!("found `{}`, expected {}", shown(value), unfit.expected);
            findings.error(&format!("{at}.{field}"), message, unfit.cure);
        }
    }
    if prefix.0 {
        let one_prefix = match rule.matches.as_slice() {
            [only] => only.path.match_type == PathMatchType::PathPrefix,
            _ => false,
        };
        if !one_prefix {
            findings.error(
                &format!("{at}.type"),
                "ReplacePrefixMatch needs a rule with exactly one match, and that a PathPrefix",
                "give each prefix a rule of its own, or use ReplaceFullPath",
            );
        }
    }
}

fn cors(findings: &mut Findings<'_>, at: &str, cors: Option<&Cors>) {
    let Some(cors) = cors else { return };
    let mut alone = |list: &str, length: usize, star: bool| {
        if star && length > 1 {
            findings.error(
                &format!("{at}.{list}"),
                "found `*` beside others",
                "keep `*` alone, or take it away",
            );
        }
    };
    alone("allowOrigins", cors.allow_origins.len(), cors.allow_origins.iter().any(|o| o == "*"));
    alone("allowMethods", cors.allow_methods.len(), cors.allow_methods.contains(&CorsMethod::Any));
    alone("allowHeaders", cors.allow_headers.len(), cors.allow_headers.iter().any(|h| h == "*"));
    alone("exposeHeaders", cors.expose_headers.len(), cors.expose_headers.iter().any(|h| h == "*"));
}

pub(super) fn grpc_filters(findings: &mut Findings<'_>, at: &str, filters: &[GrpcFilter]) {
    use GrpcFilterType as Type;
    let name = |kind: Type| match kind {
        Type::RequestHeaderModifier => ("RequestHeaderModifier", "requestHeaderModifier"),
        Type::ResponseHeaderModifier => ("ResponseHeaderModifier", "responseHeaderModifier"),
        Type::RequestMirror => ("RequestMirror", "requestMirror"),
        Type::ExtensionRef => ("ExtensionRef", "extensionRef"),
    };
    for (index, filter) in filters.iter().enumerate() {
        let once = matches!(filter.filter_type, Type::RequestHeaderModifier | Type::ResponseHeaderModifier);
        if once && filters[..index].iter().any(|f| f.filter_type == filter.filter_type) {
            let message = format!("the filter {} is there twice", name(filter.filter_type).0);
            findings.error(&format!("{at}[{index}]"), message, "join the two into one");
        }
        let at = format!("{at}[{index}]");
        let given = [
            (Type::RequestHeaderModifier, filter.request_header_modifier.is_some()),
            (Type::ResponseHeaderModifier, filter.response_header_modifier.is_some()),
            (Type::RequestMirror, filter.request_mirror.is_some()),
            (Type::ExtensionRef, filter.extension_ref.is_some()),
        ];
        let given = given.into_iter().map(|(kind, there)| (kind == filter.filter_type, name(kind).1, there));
        filter_fields(findings, &at, name(filter.filter_type).0, given);
        header_modifier(
            findings,
            &format!("{at}.requestHeaderModifier"),
            filter.request_header_modifier.as_ref(),
        );
        header_modifier(
            findings,
            &format!("{at}.responseHeaderModifier"),
            filter.response_header_modifier.as_ref(),
        );
        mirror(findings, &format!("{at}.requestMirror"), filter.request_mirror.as_ref());
        if filter.extension_ref.is_some() {
            findings.warning(
                &format!("{at}.extensionRef"),
                "Weft knows no filters of other APIs, so what the rule matches is answered with UNAVAILABLE",
                "take the filter away",
            );
        }
    }
}
