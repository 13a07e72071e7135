//! Rules of the Gateway API between the fields of one route.

use super::{Findings, shown};
use crate::document::duration::PolicyDuration;
use crate::document::route::{
    BackendObjectRef, CookieLifetime, Cors, CorsMethod, GrpcFilter, GrpcFilterType, GrpcMethodMatch,
    GrpcRouteSpec, HeaderMatch, HeaderModifier, HttpFilter, HttpFilterType, HttpPathMatch, HttpRouteRule,
    HttpRouteSpec, HttpTimeouts, ParentRef, PathMatchType, PathModifier, PathModifierType, RequestMirror,
    SessionPersistence, SessionType, StringMatchType,
};
use crate::parse::format;

/// Matches in all rules of one route together.
const MAX_MATCHES: usize = 128;

pub(super) fn http_route(findings: &mut Findings<'_>, spec: &HttpRouteSpec) {
    parent_refs(findings, &spec.parent_refs);
    findings.unique("spec.hostnames", "", "host name", spec.hostnames.iter().map(|h| Some(h.as_str())), true);
    findings.unique("spec.rules", ".name", "rule name", spec.rules.iter().map(|r| r.name.as_deref()), false);
    match_count(findings, spec.rules.iter().map(|rule| rule.matches.len()).sum());
    for (index, rule) in spec.rules.iter().enumerate() {
        http_rule(findings, &format!("spec.rules[{index}]"), rule);
    }
}

fn match_count(findings: &mut Findings<'_>, count: usize) {
    if count > MAX_MATCHES {
        let message = format!("found {count} matches in all rules together, expected at most {MAX_MATCHES}");
        findings.error("spec.rules", message, "split the route into several");
    }
}

fn http_rule(findings: &mut Findings<'_>, at: &str, rule: &HttpRouteRule) {
    for (index, condition) in rule.matches.iter().enumerate() {
        let at = format!("{at}.matches[{index}]");
        path_match(findings, &format!("{at}.path.value"), &condition.path);
        header_matches(findings, &format!("{at}.headers"), &condition.headers);
        let names = condition.query_params.iter().map(|q| Some(q.name.as_str()));
        findings.unique(&format!("{at}.queryParams"), ".name", "query parameter", names, false);
        for (index, parameter) in condition.query_params.iter().enumerate() {
            if parameter.match_type == StringMatchType::RegularExpression {
                findings.regex(&format!("{at}.queryParams[{index}].value"), &parameter.value);
            }
        }
    }
    http_filters(findings, &format!("{at}.filters"), &rule.filters, rule);
    let redirect = rule.filters.iter().position(|f| f.filter_type == HttpFilterType::RequestRedirect);
    if let Some(index) = redirect
        && !rule.backend_refs.is_empty()
    {
        findings.error(
            &format!("{at}.backendRefs"),
            format!("found backends in a rule that answers with a redirect ({at}.filters[{index}])"),
            "take the backends or the RequestRedirect away",
        );
    }
    if redirect.is_none() && rule.backend_refs.is_empty() {
        findings.warning(
            at,
            "the rule has no backendRefs, so what it matches is answered with 500",
            "add backendRefs, or a RequestRedirect filter",
        );
    }
    let mut total = 0u64;
    for (index, backend) in rule.backend_refs.iter().enumerate() {
        let at = format!("{at}.backendRefs[{index}]");
        backend_ref(findings, &at, &backend.object());
        http_filters(findings, &format!("{at}.filters"), &backend.filters, rule);
        total += u64::from(backend.weight);
    }
    all_weights_zero(findings, at, rule.backend_refs.len(), total);
    if let Some(timeouts) = &rule.timeouts {
        http_timeouts(findings, at, timeouts);
    }
    if let Some(retry) = &rule.retry {
        if retry.attempts == Some(0) && !retry.codes.is_empty() {
            findings.warning(
                &format!("{at}.retry.attempts"),
                "found `0`: nothing is ever tried again",
                "write how often, or take `retry` away",
            );
        }
        if retry.backoff.is_some_and(PolicyDuration::is_zero) {
            findings.error(
                &format!("{at}.retry.backoff"),
                "found `0s`, expected a wait above zero",
                "write for example `25ms`",
            );
        }
    }
    session(findings, &format!("{at}.sessionPersistence"), rule.session_persistence.as_ref());
}

fn all_weights_zero(findings: &mut Findings<'_>, at: &str, backends: usize, total: u64) {
    if backends > 0 && total == 0 {
        findings.warning(
            &format!("{at}.backendRefs"),
            "all weights are 0, so what the rule matches is answered with 500",
            "give at least one backend a weight",
        );
    }
}

fn http_timeouts(findings: &mut Findings<'_>, at: &str, timeouts: &HttpTimeouts) {
    let (Some(request), Some(attempt)) = (timeouts.request, timeouts.backend_request) else { return };
    if !request.is_zero() && attempt > request {
        findings.error(
            &format!("{at}.timeouts.backendRequest"),
            format!("found `{attempt}`, expected at most the request's own timeout `{request}`"),
            "one attempt cannot take longer than the whole request",
        );
    }
}

pub(super) fn path_match(findings: &mut Findings<'_>, at: &str, path: &HttpPathMatch) {
    match path.match_type {
        PathMatchType::RegularExpression => findings.regex(at, &path.value),
        PathMatchType::Exact | PathMatchType::PathPrefix => {
            if let Err(unfit) = format::check("absolute-path", &path.value) {
                let message = format!("found `{}`, expected {}", shown(&path.value), unfit.expected);
                let cure = if path.value.ends_with('*') && path.match_type == PathMatchType::PathPrefix {
                    "a prefix needs no `*`".to_owned()
                } else {
                    unfit.cure
                };
                findings.error(at, message, cure);
            } else if path.value.ends_with('*') {
                findings.warning(
                    at,
                    format!("the `*` in `{}` is an ordinary character here", shown(&path.value)),
                    "use PathPrefix without `*` for everything below a path",
                );
            }
        }
    }
}

pub(super) fn header_matches(findings: &mut Findings<'_>, at: &str, headers: &[HeaderMatch]) {
    findings.unique(at, ".name", "header", headers.iter().map(|h| Some(h.name.as_str())), true);
    for (index, header) in headers.iter().enumerate() {
        match header.match_type {
            StringMatchType::RegularExpression => {
                findings.regex(&format!("{at}[{index}].value"), &header.value)
            }
            StringMatchType::Exact => {
                if let Err(unfit) = format::check("header-value", &header.value) {
                    let message = format!("found `{}`, expected {}", shown(&header.value), unfit.expected);
                    findings.error(&format!("{at}[{index}].value"), message, unfit.cure);
                }
            }
        }
    }
}

fn parent_refs(findings: &mut Findings<'_>, parents: &[ParentRef]) {
    for (index, parent) in parents.iter().enumerate() {
        let at = format!("spec.parentRefs[{index}]");
        let gateway = parent.group == "gateway.networking.k8s.io" && parent.kind == "Gateway";
        if parent.kind == "Service" && !parent.is_service() {
            findings.error(
                &at,
                format!("found a Service of the group `{}`, expected the group `\"\"`", shown(&parent.group)),
                "add `group: \"\"`",
            );
        } else if !parent.is_service() && !gateway {
            findings.warning(
                &at,
                format!(
                    "{} `{}` is no Service, so Weft reads past this parent",
                    shown(&parent.kind),
                    parent.name
                ),
                "attach the route to a Service: `group: \"\"` and `kind: Service`",
            );
        }
        for (other_index, other) in parents[..index].iter().enumerate() {
            let same = parent.group == other.group
                && parent.kind == other.kind
                && parent.namespace == other.namespace
                && parent.name == other.name;
            if !same {
                continue;
            }
            let part = |p: &ParentRef| (p.section_name.clone(), p.port);
            let whole = |p: &ParentRef| p.section_name.is_none() && p.port.is_none();
            if part(parent) == part(other) {
                let message = format!(
                    "the parent `{}` is there twice, first in spec.parentRefs[{other_index}]",
                    parent.name
                );
                findings.error(&at, message, "keep one of the two");
            } else if whole(parent) || whole(other) {
                findings.error(
                    &at,
                    format!(
                        "found the parent `{}` both as a whole and in part (spec.parentRefs[{other_index}])",
                        parent.name
                    ),
                    "name the port or sectionName in both, or keep the whole only",
                );
            }
        }
    }
    if parents.is_empty() {
        findings.warning(
            "spec",
            "the route has no parentRefs, so it decides for nothing",
            "add the Service that it is for: `parentRefs: [{group: \"\", kind: Service, name: ...}]`",
        );
    }
}

fn backend_ref(findings: &mut Findings<'_>, at: &str, backend: &BackendObjectRef) {
    if backend.is_service() && backend.port.is_none() {
        findings.error(
            &format!("{at}.port"),
            format!("the field `port` is missing for the Service `{}`", backend.name),
            "add it, for example `port: 8080`",
        );
    } else if !backend.is_service() {
        findings.warning(
            &format!("{at}.kind"),
            format!(
                "{} `{}` is no Service, so its share is answered with 500",
                shown(&backend.kind),
                backend.name
            ),
            "refer to a Service",
        );
    }
}

fn http_filters(findings: &mut Findings<'_>, at: &str, filters: &[HttpFilter], rule: &HttpRouteRule) {
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

fn session(findings: &mut Findings<'_>, at: &str, session: Option<&SessionPersistence>) {
    let Some(session) = session else { return };
    let Some(cookie) = &session.cookie_config else { return };
    if session.session_type != SessionType::Cookie {
        findings.error(
            &format!("{at}.cookieConfig"),
            "found `cookieConfig` for a session that is carried by a header",
            "take it away, or write `type: Cookie`",
        );
    } else if cookie.lifetime_type == CookieLifetime::Permanent && session.absolute_timeout.is_none() {
        findings.error(
            &format!("{at}.absoluteTimeout"),
            "the field `absoluteTimeout` is missing for a cookie of the lifetime Permanent",
            "add it, for example `absoluteTimeout: 24h`",
        );
    }
}

pub(super) fn grpc_route(findings: &mut Findings<'_>, spec: &GrpcRouteSpec) {
    parent_refs(findings, &spec.parent_refs);
    findings.unique("spec.hostnames", "", "host name", spec.hostnames.iter().map(|h| Some(h.as_str())), true);
    findings.unique("spec.rules", ".name", "rule name", spec.rules.iter().map(|r| r.name.as_deref()), false);
    match_count(findings, spec.rules.iter().map(|rule| rule.matches.len()).sum());
    for (index, rule) in spec.rules.iter().enumerate() {
        let at = format!("spec.rules[{index}]");
        for (index, condition) in rule.matches.iter().enumerate() {
            let at = format!("{at}.matches[{index}]");
            if let Some(method) = &condition.method {
                grpc_method(findings, &format!("{at}.method"), method);
            }
            header_matches(findings, &format!("{at}.headers"), &condition.headers);
        }
        grpc_filters(findings, &format!("{at}.filters"), &rule.filters);
        let mut total = 0u64;
        for (index, backend) in rule.backend_refs.iter().enumerate() {
            let at = format!("{at}.backendRefs[{index}]");
            backend_ref(findings, &at, &backend.object());
            grpc_filters(findings, &format!("{at}.filters"), &backend.filters);
            total += u64::from(backend.weight);
        }
        all_weights_zero(findings, &at, rule.backend_refs.len(), total);
        if rule.backend_refs.is_empty() {
            findings.warning(
                &at,
                "the rule has no backendRefs, so what it matches is answered with UNAVAILABLE",
                "add backendRefs",
            );
        }
        session(findings, &format!("{at}.sessionPersistence"), rule.session_persistence.as_ref());
    }
}

fn grpc_method(findings: &mut Findings<'_>, at: &str, method: &GrpcMethodMatch) {
    if method.service.is_none() && method.method.is_none() {
        findings.error(at, "neither `service` nor `method` is there", "write one of them or both");
    }
    for (field, value, format) in
        [("service", &method.service, "grpc-service"), ("method", &method.method, "grpc-method")]
    {
        let Some(value) = value else { continue };
        let at = format!("{at}.{field}");
        if method.match_type == StringMatchType::RegularExpression {
            findings.regex(&at, value);
        } else if let Err(unfit) = format::check(format, value) {
            let cure = match value.trim_start_matches('/').split_once('/') {
                Some((service, method)) => format!("write `service: {service}` and `method: {method}`"),
                None => String::new(),
            };
            findings.error(&at, format!("found `{}`, expected {}", shown(value), unfit.expected), cure);
        }
    }
}

fn grpc_filters(findings: &mut Findings<'_>, at: &str, filters: &[GrpcFilter]) {
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
