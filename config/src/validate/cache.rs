//! Rules between the fields of a CachePolicy.

use super::policy::{above_zero, not_longer, targets};
use super::{Findings, shown};
use crate::document::cache_policy::{
    CacheKey, CachePlace, CachePolicySpec, CacheTiers, CacheTtl, CacheTtlOverride,
};
use crate::document::target::TargetKind;
use std::net::IpAddr;

pub(super) fn cache_policy(findings: &mut Findings<'_>, spec: &CachePolicySpec) {
    targets(
        findings,
        &spec.target_refs,
        &[TargetKind::Service, TargetKind::HttpRoute, TargetKind::GrpcRoute],
    );
    place(findings, spec);
    key(findings, &spec.key);
    ttl(findings, &spec.ttl, spec.key.identity == Some(true));
    if let (Some(object), Some(all)) = (spec.limits.max_object_bytes, spec.limits.max_bytes)
        && object > all
    {
        findings.error(
            "spec.limits.maxObjectBytes",
            format!("found `{object}`, expected at most `maxBytes`, which is `{all}`"),
            "lower this one or raise that one",
        );
    }
    methods(findings, spec);
    if let Some(tags) = &spec.tags
        && tags.strip != Some(false)
        && NEEDED.iter().any(|name| tags.header.eq_ignore_ascii_case(name))
    {
        findings.warning(
            "spec.tags.header",
            format!("callers need `{}`, and it is taken away before they see it", shown(&tags.header)),
            "list tags in a header of their own, such as `cache-tag`, or set `strip: false`",
        );
    }
    above_zero(findings, "spec.coalescing.maxWait", spec.coalescing.max_wait);
    if spec.coalescing.enabled == Some(false) && spec.coalescing.max_wait.is_some() {
        findings.warning("spec.coalescing.maxWait", "nobody waits: coalescing is turned off", "take it away");
    }
    tiers(findings, spec);
}

/// Answer headers that mean something to callers.
const NEEDED: [&str; 12] = [
    "age",
    "cache-control",
    "content-encoding",
    "content-location",
    "content-range",
    "content-type",
    "date",
    "etag",
    "expires",
    "last-modified",
    "location",
    "vary",
];

fn place(findings: &mut Findings<'_>, spec: &CachePolicySpec) {
    if spec.target_refs.iter().all(|target| target.kind == TargetKind::Service) {
        return;
    }
    let cure = "target the Service, or keep answers at the caller's (`outbound`)";
    match spec.place {
        CachePlace::Outbound => {}
        CachePlace::Inbound => {
            findings.error("spec.where", "where a service is served no routes are known", cure);
        }
        CachePlace::Both => findings.warning(
            "spec.where",
            "where a service is served no routes are known: there this policy holds for none",
            cure,
        ),
    }
}

/// Request headers that are another one with every request, so that nothing is ever found under them again.
const EACH_ITS_OWN: [&str; 8] = [
    "b3",
    "date",
    "idempotency-key",
    "traceparent",
    "tracestate",
    "x-b3-spanid",
    "x-b3-traceid",
    "x-request-id",
];

fn key(findings: &mut Findings<'_>, key: &CacheKey) {
    let query = &key.query;
    if query.include.is_some() && query.exclude.is_some() {
        findings.error("spec.key.query", "found `include` and `exclude` together", "keep one of the two");
    }
    for (field, names) in
        [("spec.key.query.include", &query.include), ("spec.key.query.exclude", &query.exclude)]
    {
        let names = names.iter().flatten().map(|name| Some(name.as_str()));
        findings.unique(field, "", "parameter", names, false);
    }
    let headers = key.headers.iter().map(|name| Some(name.as_str()));
    findings.unique("spec.key.headers", "", "header", headers, true);
    for (index, name) in key.headers.iter().enumerate() {
        let at = format!("spec.key.headers[{index}]");
        let is = |other: &str| name.eq_ignore_ascii_case(other);
        if EACH_ITS_OWN.iter().any(|own| is(own)) {
            findings.warning(
                &at,
                format!("`{}` is another one with every request: nothing is found again", shown(name)),
                "take it away",
            );
        } else if is("cookie") {
            findings.warning(
                &at,
                "all cookies of a caller count, also those that change nothing",
                "name those that count in `key.cookies`",
            );
        } else if is("host") {
            findings.warning(&at, "the host counts in any case", "take it away");
        }
    }
    let cookies = key.cookies.iter().map(|name| Some(name.as_str()));
    findings.unique("spec.key.cookies", "", "cookie", cookies, false);
}

/// Statuses whose answers are never kept, whatever a policy says.
fn is_never_kept(status: u16) -> bool {
    matches!(
        status,
        ..200 | 304 | 401 | 407 | 408 | 412 | 416 | 417 | 421 | 425 | 426 | 428 | 429 | 431 | 511
    )
}

fn ttl(findings: &mut Findings<'_>, ttl: &CacheTtl, by_identity: bool) {
    not_longer(findings, ("spec.ttl.default", ttl.default), ("spec.ttl.max", ttl.max));
    for (index, rule) in ttl.overrides.iter().enumerate() {
        let at = format!("spec.ttl.overrides[{index}]");
        not_longer(findings, (&format!("{at}.ttl"), Some(rule.ttl)), ("spec.ttl.max", ttl.max));
        if rule.force == Some(true) && rule.ttl.is_zero() {
            findings.warning(
                &format!("{at}.force"),
                "nothing is kept for `0s`, so there is nothing to force",
                "take `force` away",
            );
        } else if rule.force == Some(true) && !by_identity {
            findings.warning(
                &format!("{at}.force"),
                "answers that say `private` or `no-store` are kept and shown to every caller",
                "keep it only for what is the same for everyone, or set `key.identity`",
            );
        }
        for (number, status) in rule.statuses.iter().enumerate().filter(|(_, status)| is_never_kept(**status))
        {
            findings.warning(
                &format!("{at}.statuses[{number}]"),
                format!("an answer with {status} is about one exchange and is never kept"),
                "take it away",
            );
        }
        if let Some(first) = ttl.overrides[..index].iter().position(|earlier| covers(earlier, rule)) {
            findings.warning(
                &at,
                format!("it never holds, since spec.ttl.overrides[{first}] matches the same before it"),
                "put the narrower one first",
            );
        }
    }
    let everything = |rule: &CacheTtlOverride| rule.statuses.is_empty() && rule.paths.is_empty();
    if ttl.overrides.first().is_some_and(|rule| everything(rule) && rule.ttl.is_zero()) {
        findings.warning(
            "spec.ttl.overrides[0].ttl",
            "no answer is ever kept",
            "write `enabled: false` if that is meant, or say which statuses or paths it is for",
        );
    }
}

/// Whether everything that a later rule is for is taken by an earlier one.
fn covers(earlier: &CacheTtlOverride, later: &CacheTtlOverride) -> bool {
    let statuses = earlier.statuses.is_empty()
        || (!later.statuses.is_empty()
            && later.statuses.iter().all(|status| earlier.statuses.contains(status)));
    let path = |path: &String| earlier.paths.iter().any(|wide| below(wide, path));
    let paths = earlier.paths.is_empty() || (!later.paths.is_empty() && later.paths.iter().all(path));
    statuses && paths
}

/// Whether all that one pattern is for is taken by another one.
fn below(wide: &str, narrow: &str) -> bool {
    let Some(prefix) = wide.strip_suffix("/*") else { return wide == narrow };
    let narrow = narrow.strip_suffix("/*").unwrap_or(narrow);
    narrow.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn methods(findings: &mut Findings<'_>, spec: &CachePolicySpec) {
    for (index, method) in spec.grpc.iter().enumerate() {
        if spec.grpc[..index].iter().any(|m| (&m.service, &m.method) == (&method.service, &method.method)) {
            findings.error(
                &format!("spec.grpc[{index}]"),
                format!("the method `{}/{}` is there twice", method.service, method.method),
                "keep one of the two",
            );
        }
        above_zero(findings, &format!("spec.grpc[{index}].ttl"), Some(method.ttl));
    }
    let grpc_only = spec.target_refs.iter().all(|target| target.kind == TargetKind::GrpcRoute);
    if grpc_only && !spec.target_refs.is_empty() && spec.enabled != Some(false) {
        if spec.grpc.is_empty() {
            findings.warning(
                "spec.targetRefs",
                "of gRPC calls only answers of methods that are listed are kept, and none is",
                "list methods that change nothing in `grpc`",
            );
        }
        if spec.post == Some(true) {
            findings.warning("spec.post", "it is not for gRPC calls", "list methods in `grpc`");
        }
    }
}

fn tiers(findings: &mut Findings<'_>, spec: &CachePolicySpec) {
    let CacheTiers { siblings, redis, disk } = &spec.tiers;
    let waits = [
        ("spec.tiers.siblings.timeout", siblings.as_ref().and_then(|tier| tier.timeout)),
        ("spec.tiers.redis.timeout", redis.as_ref().and_then(|tier| tier.timeout)),
    ];
    for (field, wait) in waits {
        above_zero(findings, field, wait);
        if let (Some(wait), Some(most)) = (wait, spec.coalescing.max_wait)
            && wait >= most
            && spec.coalescing.enabled != Some(false)
        {
            findings.warning(
                field,
                format!("whoever waits for this look-up goes to the origin first: `coalescing.maxWait` is `{most}`"),
                "lower this one or raise that one",
            );
        }
    }
    if let Some(redis) = redis
        && redis.credentials.is_some()
        && redis.tls.is_none()
        && !is_loopback(&redis.address)
    {
        findings.warning(
            "spec.tiers.redis.credentials",
            format!("the password goes to `{}` in plain text", shown(&redis.address)),
            "add `tls: {}` beside it, if the server can",
        );
    }
    if let (Some(disk), Some(memory)) = (disk, spec.limits.max_bytes)
        && disk.max_bytes <= memory
    {
        findings.warning(
            "spec.tiers.disk.maxBytes",
            format!("no more fits on disk than in memory, where `limits.maxBytes` is `{memory}`"),
            "raise this one or lower that one",
        );
    }
}

fn is_loopback(address: &str) -> bool {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}
