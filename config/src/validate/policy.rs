//! Rules between the fields of one policy.

use super::route::header_matches;
use super::{Findings, label, shown};
use crate::compile::{SOURCES, speaks_of_endpoints};
use crate::document::authorization_policy::{AuthorizationAction, AuthorizationPolicySpec};
use crate::document::duration::PolicyDuration;
use crate::document::mesh_policy::MeshPolicySpec;
use crate::document::route::HeaderMatch;
use crate::document::target::{TargetKind, TargetRef};
use crate::document::traffic_policy::{
    Algorithm, Concurrency, Fault, HealthCheck, LoadBalancer, OutlierEjection, Sharding, TrafficPolicySpec,
};
use crate::parse::format;

pub(super) fn targets(findings: &mut Findings<'_>, targets: &[TargetRef], allowed: &[TargetKind]) {
    for (index, target) in targets.iter().enumerate() {
        let at = format!("spec.targetRefs[{index}]");
        if !allowed.contains(&target.kind) {
            let names: Vec<_> = allowed.iter().map(|kind| format!("`{}`", kind.as_str())).collect();
            findings.error(
                &format!("{at}.kind"),
                format!("found `{}`, expected one of {}", target.kind.as_str(), names.join(", ")),
                "attach the policy to one of those",
            );
        }
        if let Some(group) = &target.group
            && group != target.kind.group()
            && !(group == "core" && target.kind == TargetKind::Service)
        {
            findings.error(
                &format!("{at}.group"),
                format!(
                    "found `{}`, expected `{}` for {}",
                    shown(group),
                    target.kind.group(),
                    target.kind.as_str()
                ),
                "leave the field out: it follows from the kind",
            );
        }
        if target.section_name.is_some() && target.kind == TargetKind::Workload {
            findings.error(
                &format!("{at}.sectionName"),
                "a Workload is protected as a whole",
                "take it away; a rule's `to.ports` chooses ports",
            );
        }
        let same = |other: &TargetRef| {
            (other.kind, &other.name, &other.section_name)
                == (target.kind, &target.name, &target.section_name)
        };
        if targets[..index].iter().any(same) {
            findings.error(
                &at,
                format!("the target `{}` is there twice", target.name),
                "keep one of the two",
            );
        }
    }
}

/// Reports a pair of durations of which the second is longer than the first. Zero is no limit.
pub(super) fn not_longer(
    findings: &mut Findings<'_>,
    short: (&str, Option<PolicyDuration>),
    long: (&str, Option<PolicyDuration>),
) {
    if let (Some(less), Some(more)) = (short.1, long.1)
        && !more.is_zero()
        && less > more
    {
        let long_name = long.0.rsplit('.').next().unwrap_or(long.0);
        findings.error(
            short.0,
            format!("found `{less}`, expected at most `{long_name}`, which is `{more}`"),
            "lower this one or raise that one",
        );
    }
}

pub(super) fn above_zero(findings: &mut Findings<'_>, field: &str, duration: Option<PolicyDuration>) {
    if duration.is_some_and(PolicyDuration::is_zero) {
        findings.error(
            field,
            "found `0s`, expected a time above zero",
            "leave the field out for its default",
        );
    }
}

pub(super) fn traffic_policy(findings: &mut Findings<'_>, spec: &TrafficPolicySpec) {
    targets(
        findings,
        &spec.target_refs,
        &[TargetKind::Service, TargetKind::HttpRoute, TargetKind::GrpcRoute],
    );
    if let Some(balancer) = &spec.load_balancer {
        load_balancer(findings, balancer);
    }
    if let Some(timeouts) = &spec.timeouts {
        let request = ("spec.timeouts.request", timeouts.request);
        not_longer(findings, ("spec.timeouts.attempt", timeouts.attempt), request);
        above_zero(findings, "spec.timeouts.connect", timeouts.connect);
    }
    if let Some(retries) = &spec.retries {
        if let Some(backoff) = retries.backoff {
            not_longer(
                findings,
                ("spec.retries.backoff.base", backoff.base),
                ("spec.retries.backoff.max", backoff.max),
            );
            above_zero(findings, "spec.retries.backoff.base", backoff.base);
        }
        if let Some(budget) = &retries.budget {
            above_zero(findings, "spec.retries.budget.window", budget.window);
            if budget.percent == Some(0.0) && budget.min_per_second == Some(0.0) {
                findings.warning(
                    "spec.retries.budget",
                    "it allows no retries at all",
                    "raise one of the two; `retries.attempts: 0` turns retries off",
                );
            }
        }
        if retries.unsafe_methods == Some(true) {
            findings.warning(
                "spec.retries.unsafeMethods",
                "POST and PATCH are tried again even if the application may have done them already",
                "keep it only if the service recognises a repeated request",
            );
        }
    }
    hedging(findings, spec);
    if let Some(breaker) = &spec.circuit_breaker {
        let longest = ("spec.circuitBreaker.maxOpenFor", breaker.max_open_for);
        not_longer(findings, ("spec.circuitBreaker.openFor", breaker.open_for), longest);
        above_zero(findings, "spec.circuitBreaker.openFor", breaker.open_for);
        above_zero(findings, "spec.circuitBreaker.window", breaker.window);
        above_zero(findings, "spec.circuitBreaker.slowCall", breaker.slow_call);
    }
    if let Some(ejection) = &spec.outlier_ejection {
        outlier_ejection(findings, ejection);
    }
    let names = spec.rate_limits.iter().map(|limit| Some(limit.name.as_str()));
    findings.unique("spec.rateLimits", ".name", "rate limit", names, false);
    for (index, limit) in spec.rate_limits.iter().enumerate() {
        let at = format!("spec.rateLimits[{index}]");
        above_zero(findings, &format!("{at}.per"), limit.per);
        request_headers(findings, &format!("{at}.headers"), &limit.headers);
        if limit.max_keys.is_some() && limit.key.is_empty() {
            findings.warning(
                &format!("{at}.maxKeys"),
                "`maxKeys` has no effect without `key`",
                "take it away",
            );
        }
    }
    if let Some(sharding) = &spec.sharding {
        shards(findings, sharding);
    }
    for (index, fault) in spec.faults.iter().enumerate() {
        one_fault(findings, &format!("spec.faults[{index}]"), fault);
    }
    if let Some(check) = &spec.health_check {
        health_check(findings, check);
    }
    if let Some(bounds) = &spec.concurrency {
        only_on_services(findings, &spec.target_refs, "spec.concurrency");
        concurrency(findings, bounds);
    }
    if spec.sharding.is_some()
        && speaks_of_endpoints(spec)
        && spec.target_refs.iter().any(|target| target.kind != TargetKind::Service)
    {
        findings.warning(
            "spec.sharding",
            "what the policy says of endpoints does not hold for the shards",
            "attach that to the shards' Services in a policy of its own",
        );
    }
    if let Some(link) = spec.deprecation.as_ref().and_then(|deprecation| deprecation.link.as_ref())
        && !is_web_address(link)
    {
        findings.error(
            "spec.deprecation.link",
            format!("found `{}`, expected a URL such as `https://docs.example.com/v2`", shown(link)),
            "write it in full and percent-encoded",
        );
    }
    if let Some(deprecation) = &spec.deprecation
        && let Some(sunset) = &deprecation.sunset
        && let (Some(since), Some(end)) =
            (format::date_or_time(&deprecation.since), format::date_or_time(sunset))
        && end < since
    {
        findings.error(
            "spec.deprecation.sunset",
            format!("found `{sunset}`, expected a time not before `since`, which is `{}`", deprecation.since),
            "correct one of the two",
        );
    }
}

/// Headers of requests, which never say who calls as matches of routes can.
fn request_headers(findings: &mut Findings<'_>, at: &str, headers: &[HeaderMatch]) {
    header_matches(findings, at, headers);
    for (index, header) in headers.iter().enumerate() {
        if SOURCES.iter().any(|name| header.name.eq_ignore_ascii_case(name)) {
            findings.warning(
                &format!("{at}[{index}].name"),
                format!("no request carries `{}`: only matches of routes know it", header.name),
                "attach the policy to a route's rule that has such a match",
            );
        }
    }
}

/// Reports a part that holds where calls come in, in a policy on what decides where they go.
fn only_on_services(findings: &mut Findings<'_>, targets: &[TargetRef], field: &str) {
    if let Some(index) = targets.iter().position(|target| target.kind != TargetKind::Service) {
        let kind = targets[index].kind.as_str();
        findings.error(
            field,
            format!("it holds where a Service is served, and spec.targetRefs[{index}] is of the kind {kind}"),
            "put it into a policy that is attached to the Service",
        );
    }
}

fn is_web_address(text: &str) -> bool {
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    rest.is_some_and(|rest| {
        let carried = rest.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'<' | b'>' | b'"'));
        carried && !rest.is_empty() && !rest.starts_with('/')
    })
}

fn hedging(findings: &mut Findings<'_>, spec: &TrafficPolicySpec) {
    let Some(delay) = spec.hedging.as_ref().and_then(|hedging| hedging.delay) else { return };
    above_zero(findings, "spec.hedging.delay", Some(delay));
    let timeouts = spec.timeouts.unwrap_or_default();
    for (name, timeout) in [("request", timeouts.request), ("attempt", timeouts.attempt)] {
        if let Some(timeout) = timeout
            && !timeout.is_zero()
            && delay >= timeout
        {
            findings.warning(
                "spec.hedging.delay",
                format!("no second attempt ever starts: `timeouts.{name}` is `{timeout}`"),
                "lower the delay",
            );
            return;
        }
    }
}

fn load_balancer(findings: &mut Findings<'_>, balancer: &LoadBalancer) {
    let hashes = matches!(balancer.algorithm, Algorithm::RingHash | Algorithm::Maglev);
    if hashes && balancer.hash_on.is_empty() {
        findings.error(
            "spec.loadBalancer.hashOn",
            "the field `hashOn` is missing: a hashing balancer needs to know what to go by",
            "add it, for example `hashOn: [{header: x-user}]`",
        );
    }
    if !hashes && !balancer.hash_on.is_empty() {
        findings.warning(
            "spec.loadBalancer.hashOn",
            "`hashOn` has an effect only with `ringHash` and `maglev`",
            "set `algorithm`, or take it away",
        );
    }
    if balancer.algorithm != Algorithm::RingHash && balancer.ring_points.is_some() {
        findings.warning(
            "spec.loadBalancer.ringPoints",
            "`ringPoints` has an effect only with `ringHash`",
            "set `algorithm`, or take it away",
        );
    }
    for (name, value) in balancer.subset.iter().flat_map(|subset| &subset.labels) {
        label(findings, &format!("spec.loadBalancer.subset.labels.{name}"), name, value);
    }
}

fn outlier_ejection(findings: &mut Findings<'_>, ejection: &OutlierEjection) {
    not_longer(
        findings,
        ("spec.outlierEjection.ejectionTime", ejection.ejection_time),
        ("spec.outlierEjection.maxEjectionTime", ejection.max_ejection_time),
    );
    above_zero(findings, "spec.outlierEjection.interval", ejection.interval);
    above_zero(findings, "spec.outlierEjection.ejectionTime", ejection.ejection_time);
    if ejection.consecutive_gateway_errors == Some(0)
        && ejection.consecutive_server_errors.unwrap_or(0) == 0
        && ejection.success_rate.is_none()
        && ejection.latency.is_none()
    {
        findings.warning(
            "spec.outlierEjection",
            "every reason to leave an endpoint out is turned off",
            "take `outlierEjection` away, or turn one on",
        );
    }
}

fn shards(findings: &mut Findings<'_>, sharding: &Sharding) {
    let names = sharding.shards.iter().map(|shard| Some(shard.service.as_str()));
    findings.unique("spec.sharding.shards", ".service", "shard", names, false);
    if sharding.shards.iter().all(|shard| shard.weight == Some(0)) {
        findings.error("spec.sharding.shards", "all weights are 0", "give at least one shard a weight");
    }
    if let Some(wanted) = &sharding.without_key
        && !sharding.shards.iter().any(|shard| shard.service == *wanted)
    {
        let near = crate::parse::suggest(wanted, sharding.shards.iter().map(|shard| shard.service.as_str()));
        findings.error(
            "spec.sharding.withoutKey",
            format!("found `{}`, expected the service of one of the shards", shown(wanted)),
            near,
        );
    }
    let mut pinned = std::collections::BTreeMap::new();
    for (index, shard) in sharding.shards.iter().enumerate() {
        for (number, key) in shard.pinned.iter().enumerate() {
            if let Some(first) = pinned.insert(key.as_str(), shard.service.as_str()) {
                findings.error(
                    &format!("spec.sharding.shards[{index}].pinned[{number}]"),
                    format!("the key `{}` is pinned already, to `{first}`", shown(key)),
                    "keep one of the two",
                );
            }
        }
    }
}

fn one_fault(findings: &mut Findings<'_>, at: &str, fault: &Fault) {
    request_headers(findings, &format!("{at}.headers"), &fault.headers);
    above_zero(findings, &format!("{at}.delay"), fault.delay);
    if fault.delay.is_none() && fault.abort.is_none() {
        findings.error(at, "the fault does nothing", "add `delay`, `abort` or both");
    }
}

fn health_check(findings: &mut Findings<'_>, check: &HealthCheck) {
    not_longer(
        findings,
        ("spec.healthCheck.timeout", check.timeout),
        ("spec.healthCheck.interval", check.interval),
    );
    above_zero(findings, "spec.healthCheck.timeout", check.timeout);
    above_zero(findings, "spec.healthCheck.interval", check.interval);
}

fn concurrency(findings: &mut Findings<'_>, bounds: &Concurrency) {
    if bounds.limit.is_some() && bounds.adaptive.is_some() {
        findings.error(
            "spec.concurrency.adaptive",
            "found `limit` and `adaptive` together",
            "keep one of the two",
        );
    }
    if let Some(adaptive) = &bounds.adaptive
        && let (Some(min), Some(max)) = (adaptive.min, adaptive.max)
        && min > max
    {
        findings.error(
            "spec.concurrency.adaptive.min",
            format!("found `{min}`, expected at most `max`, which is `{max}`"),
            "lower this one or raise that one",
        );
    }
    for (index, priority) in bounds.priorities.iter().enumerate() {
        request_headers(
            findings,
            &format!("spec.concurrency.priorities[{index}].headers"),
            &priority.headers,
        );
    }
}

pub(super) fn authorization_policy(findings: &mut Findings<'_>, spec: &AuthorizationPolicySpec) {
    targets(findings, &spec.target_refs, &[TargetKind::Service, TargetKind::Workload]);
    for (index, target) in spec.target_refs.iter().enumerate() {
        if target.kind == TargetKind::Service && target.section_name.is_some() {
            findings.error(
                &format!("spec.targetRefs[{index}].sectionName"),
                "a Service is protected as a whole",
                "take it away; a rule's `to.ports` chooses ports",
            );
        }
    }
    findings.unique("spec.rules", ".name", "rule", spec.rules.iter().map(|rule| rule.name.as_deref()), false);
    if spec.rules.is_empty() && spec.action != AuthorizationAction::Allow {
        findings.warning(
            "spec",
            "a policy without rules matches no call",
            "add a rule; `rules: [{}]` matches every call",
        );
    }
    for (index, rule) in spec.rules.iter().enumerate() {
        for (number, source) in rule.from.iter().enumerate() {
            let at = format!("spec.rules[{index}].from[{number}]");
            let named = !source.identities.is_empty() || !source.namespaces.is_empty();
            if named && source.authenticated == Some(false) {
                findings.error(
                    &format!("{at}.authenticated"),
                    "found `false` beside identities or namespaces, which only a proven identity has",
                    "take one of the two away: this never matches",
                );
            } else if !named && source.authenticated.is_none() {
                findings.warning(&at, "an empty source matches every caller", "say which callers are meant");
            }
        }
    }
}

pub(super) fn mesh_policy(findings: &mut Findings<'_>, spec: &MeshPolicySpec) {
    let limits = &spec.limits;
    for (field, duration) in [
        ("headerTimeout", limits.header_timeout),
        ("idleTimeout", limits.idle_timeout),
        ("poolIdleTimeout", limits.pool_idle_timeout),
        ("connectTimeout", limits.connect_timeout),
        ("handshakeTimeout", limits.handshake_timeout),
        ("sniffTimeout", limits.sniff_timeout),
        ("tcpIdleTimeout", limits.tcp_idle_timeout),
        ("drainTimeout", limits.drain_timeout),
    ] {
        above_zero(findings, &format!("spec.limits.{field}"), duration);
    }
    if let (Some(idle), Some(all)) = (limits.pool_idle, limits.pool_connections)
        && idle > all
    {
        findings.error(
            "spec.limits.poolIdle",
            format!("found `{idle}`, expected at most `poolConnections`, which is `{all}`"),
            "lower this one or raise that one",
        );
    }
}
