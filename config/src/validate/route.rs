//! Rules of the Gateway API between the fields of one route.

use super::filter::{grpc_filters, http_filters, of_the_rule};
use super::{Findings, overlaps, shown};
use crate::compile::SOURCES;
use crate::document::duration::PolicyDuration;
use crate::document::route::{
    BackendObjectRef, CookieLifetime, GrpcMethodMatch, GrpcRouteSpec, HeaderMatch, HttpFilterType,
    HttpPathMatch, HttpRouteRule, HttpRouteSpec, HttpTimeouts, ParentRef, PathMatchType, SessionPersistence,
    SessionType, StringMatchType,
};
use crate::parse::{format, suggest};

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
    overlaps::http(findings, &spec.rules);
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
        sources(findings, &format!("{at}.headers"), &condition.headers);
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
        of_the_rule(findings, &format!("{at}.filters"), &backend.filters);
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
        if let (Some(backoff), Some(request)) = (retry.backoff, rule.timeouts.and_then(|t| t.request))
            && !request.is_zero()
            && backoff >= request
        {
            findings.warning(
                &format!("{at}.retry.backoff"),
                format!("nothing is ever tried again: the request's own timeout is `{request}`"),
                "lower the wait or raise the timeout",
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

/// Names that look like one that says who calls, and are none.
fn sources(findings: &mut Findings<'_>, at: &str, headers: &[HeaderMatch]) {
    for (index, header) in headers.iter().enumerate() {
        let name = header.name.to_ascii_lowercase();
        if name.starts_with("weft-source") && !SOURCES.contains(&name.as_str()) {
            let near = suggest(&name, SOURCES);
            let known = || format!("known are {}", SOURCES.join(", "));
            findings.warning(
                &format!("{at}[{index}].name"),
                format!("`{}` says nothing about the caller, and no request carries it", shown(&header.name)),
                if near.is_empty() { known() } else { near },
            );
        }
    }
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

pub(super) fn backend_ref(findings: &mut Findings<'_>, at: &str, backend: &BackendObjectRef) {
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

fn session(findings: &mut Findings<'_>, at: &str, session: Option<&SessionPersistence>) {
    let Some(session) = session else { return };
    if let (Some(idle), Some(absolute)) = (session.idle_timeout, session.absolute_timeout)
        && !absolute.is_zero()
        && idle > absolute
    {
        findings.warning(
            &format!("{at}.idleTimeout"),
            format!("it never counts: the session ends after `absoluteTimeout`, which is `{absolute}`"),
            "lower this one or raise that one",
        );
    }
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
            sources(findings, &format!("{at}.headers"), &condition.headers);
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
    overlaps::grpc(findings, &spec.rules);
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
