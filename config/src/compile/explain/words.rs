//! The words for each decision.

use super::{Decision, Mesh, RuleOf, SaidBy, time};
use crate::compile::attached::Policies;
use crate::compile::calls::{Parts as CallParts, given};
use crate::compile::traffic::Parts as TrafficParts;
use crate::document::Document;
use crate::document::route::{HeaderMatch, HttpMethod, StringMatchType};
use crate::document::traffic_policy::{Fault, GrpcStatus, KeyPart, RateLimit};
use crate::snapshot::{
    Admission, Backends, Balancer, Breaker, Calls, ConcurrencyLimit, Cors, Ejection, HealthCheck, HedgeAfter,
    Mirror, Origin, Probe, Retry, Session, Traffic,
};
use std::time::Duration;

pub(super) fn decision(part: &'static str, value: impl Into<String>, sources: Vec<SaidBy>) -> Decision {
    Decision { part, value: value.into(), sources }
}

fn percent(share: f64) -> String {
    format!("{} %", (share * 1_000_000.0).round() / 10_000.0)
}

pub(super) fn joined<T>(all: impl IntoIterator<Item = T>, text: impl Fn(T) -> String) -> String {
    all.into_iter().map(text).collect::<Vec<_>>().join(", ")
}

fn or_none(text: String) -> String {
    if text.is_empty() { "none".to_owned() } else { text }
}

/// What is decided at the caller before an endpoint is picked.
pub(super) fn calls(
    calls: &Calls,
    backends: &Backends,
    parts: &CallParts<'_>,
    on_route: &Policies<'_>,
    rule: Option<&RuleOf<'_>>,
    mesh: &Mesh,
    cache: Vec<Decision>,
) -> Vec<Decision> {
    let of_rule = |field: &str| rule.map(|rule| rule.says(field)).unwrap_or_default();
    let mut all = Vec::new();
    let cors = calls.cors.as_ref();
    all.push(decision(
        "CORS",
        cors.map_or_else(|| "none".to_owned(), |cors| self::cors(cors)),
        if cors.is_some() { of_rule("filters") } else { Vec::new() },
    ));
    let faults = parts.faults.as_ref().map_or(&[][..], |said| said.what);
    all.push(decision("faults", or_none(joined(faults, fault)), SaidBy::of(&parts.faults, "spec.faults")));
    let limits = on_route.part(|spec| given(&spec.rate_limits));
    all.push(decision(
        "rate limits",
        or_none(joined(limits.as_ref().map_or(&[][..], |said| said.what), rate_limit)),
        SaidBy::of(&limits, "spec.rateLimits"),
    ));
    destination(calls, backends, parts, rule, &mut all);
    all.extend(cache);
    all.push(decision(
        "mirrors",
        or_none(joined(&*calls.mirrors, mirror)),
        if calls.mirrors.is_empty() { Vec::new() } else { of_rule("filters") },
    ));
    timeouts(calls, parts, rule, mesh, &mut all);
    let own_retry = rule.filter(|rule| has_retry(rule));
    let mut sources = own_retry.map(|rule| rule.says("retry")).unwrap_or_default();
    sources.extend(SaidBy::of(&parts.retries, "spec.retries"));
    all.push(decision("retries", retries(&calls.retry), sources.clone()));
    if calls.retry.attempts > 0 {
        all.push(decision("backoff", backoff(&calls.retry), sources.clone()));
        let kept = format!("bodies up to {} bytes can be sent again", calls.retry.body_bytes);
        all.push(decision("kept bodies", kept, sources));
    }
    let hedge = calls.hedge.as_ref().map_or_else(
        || "none".to_owned(),
        |hedge| {
            let after = match hedge.after {
                HedgeAfter::Delay(delay) => format!("after {}", time(delay)),
                HedgeAfter::Percentile(share) => {
                    format!("once it takes longer than {} of recent calls", percent(share))
                }
            };
            format!("another attempt {after}, at most {} at once", hedge.max_attempts)
        },
    );
    all.push(decision("hedging", hedge, SaidBy::of(&parts.hedging, "spec.hedging")));
    all
}

fn has_retry(rule: &RuleOf<'_>) -> bool {
    match &rule.found.document {
        Document::HttpRoute(route) => route.spec.rules.get(rule.at).is_some_and(|own| own.retry.is_some()),
        _ => false,
    }
}

/// Who gets the request, of all that can.
fn destination(
    calls: &Calls,
    backends: &Backends,
    parts: &CallParts<'_>,
    rule: Option<&RuleOf<'_>>,
    all: &mut Vec<Decision>,
) {
    if let (Some(sharding), Some(said)) = (&calls.sharding, &parts.sharding) {
        let shards = joined(&*sharding.shards, |shard| {
            format!("{}:{} (weight {})", shard.service, shard.port, shard.weight)
        });
        let without = match sharding.without_key.and_then(|at| sharding.shards.get(at)) {
            Some(shard) => format!("without a key to {}", shard.service),
            None => "without a key 400".to_owned(),
        };
        let pinned = match sharding.pinned.len() {
            0 => String::new(),
            count => format!(", {count} pinned"),
        };
        let value = format!("by {} over {shards}{pinned}; {without}", first_of(&said.what.key));
        all.push(decision("sharding", value, SaidBy::of(&parts.sharding, "spec.sharding")));
    } else if let Some(rule) = rule {
        let total = f64::from(backends.total_weight.max(1));
        let split = match backends.list.as_slice() {
            [] => "500: no backend has a weight".to_owned(),
            list => joined(list, |to| {
                let share = percent(f64::from(to.weight) / total);
                let invalid = to.invalid.as_ref().map(|why| format!(" (500: {why})")).unwrap_or_default();
                format!("{share} {}:{}{invalid}", to.service, to.port)
            }),
        };
        all.push(decision("split", split, rule.says("backendRefs")));
        let copies = backends.list.iter().flat_map(|to| to.mirrors.iter().map(move |copy| (to, copy)));
        let copies = joined(copies, |(to, copy)| format!("{} when {} is taken", mirror(copy), to.service));
        if !copies.is_empty() {
            all.push(decision("mirrors of backends", copies, rule.says("backendRefs")));
        }
    }
    let key = parts.session_key.as_ref().map_or_else(
        || "none: each request is split by itself".to_owned(),
        |said| format!("{}: each stays on its side", first_of(said.what)),
    );
    all.push(decision("session key", key, SaidBy::of(&parts.session_key, "spec.sessionKey")));
    let session = calls.session.as_ref();
    all.push(decision(
        "session",
        session.map_or_else(|| "none".to_owned(), self::session),
        match (session, rule) {
            (Some(_), Some(rule)) => rule.says("sessionPersistence"),
            _ => Vec::new(),
        },
    ));
}

fn timeouts(
    calls: &Calls,
    parts: &CallParts<'_>,
    rule: Option<&RuleOf<'_>>,
    mesh: &Mesh,
    all: &mut Vec<Decision>,
) {
    let own = rule.and_then(|rule| match &rule.found.document {
        Document::HttpRoute(route) => route.spec.rules.get(rule.at)?.timeouts,
        _ => None,
    });
    let own = own.unwrap_or_default();
    let policy = parts.timeouts.as_ref().map(|said| *said.what).unwrap_or_default();
    let source = |by_rule: bool, field: &str, by_policy: bool, policy_field: &str| match rule {
        Some(rule) if by_rule => rule.says(field),
        _ if by_policy => SaidBy::of(&parts.timeouts, policy_field),
        _ => Vec::new(),
    };
    let limit = |time_left: Duration| {
        if time_left.is_zero() { "none".to_owned() } else { time(time_left) }
    };
    let (request, sources) = match calls.timeouts.request {
        Some(request) => {
            let own = own.request.is_some();
            (request, source(own, "timeouts.request", true, "spec.timeouts.request"))
        }
        None => {
            let set = |limits: &crate::document::mesh_policy::MeshLimits| limits.request_timeout.is_some();
            (mesh.limits.request_timeout, mesh.says(set, "requestTimeout"))
        }
    };
    all.push(decision("request timeout", limit(request), sources));
    let attempt = calls.timeouts.attempt.unwrap_or_default();
    let by_rule = own.backend_request.is_some();
    all.push(decision(
        "attempt timeout",
        limit(attempt),
        source(by_rule, "timeouts.backendRequest", policy.attempt.is_some(), "spec.timeouts.attempt"),
    ));
    let idle = calls.timeouts.idle.unwrap_or_default();
    all.push(decision(
        "idle timeout",
        limit(idle),
        source(false, "", policy.idle.is_some(), "spec.timeouts.idle"),
    ));
    let deadlines = match calls.timeouts.deadlines {
        true => "read from the caller, told to the upstream",
        false => "neither read nor told",
    };
    all.push(decision(
        "deadlines",
        deadlines,
        source(false, "", policy.deadlines.is_some(), "spec.timeouts.deadlines"),
    ));
}

fn retries(retry: &Retry) -> String {
    if retry.attempts == 0 {
        return "none".to_owned();
    }
    let causes = [
        (retry.connect_failure, "connect failure"),
        (retry.refused, "refused"),
        (retry.reset, "reset"),
        (retry.timeout, "attempt timeout"),
    ];
    let mut on: Vec<String> =
        causes.iter().filter(|(is, _)| *is).map(|(_, name)| (*name).to_owned()).collect();
    on.extend(ranges(&retry.statuses));
    let grpc = (1..=16_u8).filter(|code| retry.grpc_statuses & (1 << code) != 0);
    on.extend(
        grpc.map(|code| {
            grpc_name(code).map_or_else(|| format!("gRPC {code}"), |name| format!("gRPC {name}"))
        }),
    );
    let which =
        if retry.unsafe_methods { "any method" } else { "unsafe methods only if nothing was done yet" };
    let after = if retry.retry_after { "" } else { "; `Retry-After` is not obeyed" };
    format!("up to {} more on {}; {which}{after}", retry.attempts, on.join(", "))
}

/// Statuses with neighbours drawn together: `429, 500-599`.
fn ranges(statuses: &[u16]) -> Vec<String> {
    let mut runs: Vec<(u16, u16)> = Vec::new();
    for &status in statuses {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == status => *last = status,
            _ => runs.push((status, status)),
        }
    }
    let text = |(first, last): (u16, u16)| match last - first {
        0 => first.to_string(),
        1 => format!("{first}, {last}"),
        _ => format!("{first}-{last}"),
    };
    runs.into_iter().map(text).collect()
}

fn grpc_name(code: u8) -> Option<String> {
    const ALL: [GrpcStatus; 16] = [
        GrpcStatus::Cancelled,
        GrpcStatus::Unknown,
        GrpcStatus::InvalidArgument,
        GrpcStatus::DeadlineExceeded,
        GrpcStatus::NotFound,
        GrpcStatus::AlreadyExists,
        GrpcStatus::PermissionDenied,
        GrpcStatus::ResourceExhausted,
        GrpcStatus::FailedPrecondition,
        GrpcStatus::Aborted,
        GrpcStatus::OutOfRange,
        GrpcStatus::Unimplemented,
        GrpcStatus::Internal,
        GrpcStatus::Unavailable,
        GrpcStatus::DataLoss,
        GrpcStatus::Unauthenticated,
    ];
    let status = ALL.into_iter().find(|status| status.code() == code)?;
    serde_json::to_value(status).ok()?.as_str().map(str::to_owned)
}

fn backoff(retry: &Retry) -> String {
    let least = match retry.least_wait.is_zero() {
        true => String::new(),
        false => format!("{} and then ", time(retry.least_wait)),
    };
    let (base, most) = (time(retry.backoff), time(retry.max_backoff));
    format!("{least}up to {base}, doubling to {most}, with full jitter")
}

/// A key of which the first part that is there counts.
fn first_of(parts: &[KeyPart]) -> String {
    parts.iter().map(key_part).collect::<Vec<_>>().join(", else ")
}

fn key_part(part: &KeyPart) -> String {
    match part {
        KeyPart { header: Some(name), .. } => format!("header {name}"),
        KeyPart { cookie: Some(name), .. } => format!("cookie {name}"),
        KeyPart { query: Some(name), .. } => format!("query {name}"),
        KeyPart { source: Some(_), .. } => "source".to_owned(),
        _ => "identity".to_owned(),
    }
}

/// Which calls something is about; nothing for all.
fn only(headers: &[HeaderMatch], methods: &[HttpMethod], paths: &[String]) -> String {
    let mut all = Vec::new();
    if !methods.is_empty() {
        all.push(methods.iter().map(|method| method.as_str()).collect::<Vec<_>>().join("/"));
    }
    if !paths.is_empty() {
        all.push(format!("below {}", paths.join(" or ")));
    }
    all.extend(headers.iter().map(|header| {
        let sign = if header.match_type == StringMatchType::Exact { "=" } else { "~" };
        format!("with {} {sign} {}", header.name, header.value)
    }));
    if all.is_empty() { String::new() } else { format!(" ({})", all.join(", ")) }
}

fn fault(fault: &Fault) -> String {
    let mut does = Vec::new();
    does.extend(fault.delay.map(|delay| format!("wait {delay}")));
    does.extend(fault.abort.map(|abort| match (abort.status, abort.grpc_status) {
        (Some(status), _) => format!("answer {status}"),
        (_, Some(status)) => format!("answer gRPC {}", grpc_name(status.code()).unwrap_or_default()),
        (None, None) => "reset".to_owned(),
    }));
    let share = percent(fault.percent.unwrap_or(100.0) / 100.0);
    format!("{share}{}: {}", only(&fault.headers, &[], &[]), does.join(", then "))
}

fn rate_limit(limit: &RateLimit) -> String {
    let per = limit.per.map_or_else(|| "1s".to_owned(), |per| per.to_string());
    let burst = limit.burst.unwrap_or(limit.requests);
    let each = match limit.key.as_slice() {
        [] => String::new(),
        parts => {
            let parts = parts.iter().map(key_part).collect::<Vec<_>>().join(" and ");
            format!(" for each {parts} (at most {} are remembered)", limit.max_keys.unwrap_or(10_000))
        }
    };
    let meant = only(&limit.headers, &limit.methods, &limit.paths);
    format!("{}: {} per {per}, {burst} at once{each}{meant}", limit.name, limit.requests)
}

fn mirror(mirror: &Mirror) -> String {
    let share = percent(f64::from(mirror.numerator) / f64::from(mirror.denominator.max(1)));
    format!("{share} to {}:{}", mirror.backend.service, mirror.backend.port)
}

fn session(session: &Session) -> String {
    let (kind, path) = match session.in_header {
        true => ("header", String::new()),
        false => ("cookie", format!(" for {}", session.path)),
    };
    let mut text = format!("one endpoint by the {kind} {}{path}", session.name);
    if let Some(end) = session.absolute_timeout {
        text.push_str(&format!(", for {}", time(end)));
    }
    if let Some(end) = session.idle_timeout {
        text.push_str(&format!(", for {} without a request", time(end)));
    }
    if session.permanent {
        text.push_str(", also after the browser is closed");
    }
    text
}

fn cors(cors: &Cors) -> String {
    let origins = joined(&*cors.origins, |origin| match origin {
        Origin::Any => "any".to_owned(),
        Origin::Exact(text) => text.to_string(),
        Origin::Wildcard(before, after) => format!("{before}*{after}"),
    });
    let methods = match &cors.methods {
        None => "any".to_owned(),
        Some(methods) => or_none(joined(&**methods, ToString::to_string)),
    };
    let credentials = if cors.credentials { ", with credentials" } else { "" };
    format!("origins {}; methods {methods}{credentials}; preflights for {}s", or_none(origins), cors.max_age)
}

/// How one backend's endpoints are picked, bounded and judged.
pub(super) fn endpoints(traffic: &Traffic, parts: &TrafficParts<'_>, mesh: &Mesh) -> Vec<Decision> {
    let balancer = || SaidBy::of(&parts.balancer, "spec.loadBalancer");
    let hash_on = parts.balancer.as_ref().map_or(&[][..], |said| said.what.hash_on.as_slice());
    let algorithm = match &traffic.balancing.algorithm {
        Balancer::PeakEwma => "peakEwma".to_owned(),
        Balancer::LeastRequests => "leastRequests".to_owned(),
        Balancer::RoundRobin => "roundRobin".to_owned(),
        Balancer::Random => "random".to_owned(),
        Balancer::RingHash { points, .. } => {
            format!("ringHash on {}, {points} points an endpoint", first_of(hash_on))
        }
        Balancer::Maglev { .. } => format!("maglev on {}", first_of(hash_on)),
    };
    let mut all = vec![decision("balancer", algorithm, balancer())];
    let balancing = &traffic.balancing;
    let subset = joined(&*balancing.subset, |(name, value)| format!("{name}={value}"));
    let subset = match (subset.is_empty(), balancing.subset_or_any) {
        (true, _) => "all endpoints".to_owned(),
        (false, true) => format!("{subset}, any while nobody has it"),
        (false, false) => format!("{subset}, 503 while nobody has it"),
    };
    let said = |set: bool| if set { balancer() } else { Vec::new() };
    all.push(decision("subset", subset, said(!balancing.subset.is_empty())));
    let zones = balancing.zone_overflow.map_or_else(
        || "all zones are equal".to_owned(),
        |share| format!("the own zone, while {} of it are well", percent(share)),
    );
    all.push(decision("locality", zones, said(balancing.zone_overflow.is_some())));
    let slow_start = match balancing.slow_start.is_zero() {
        true => "none".to_owned(),
        false => format!("over {}", time(balancing.slow_start)),
    };
    all.push(decision("slow start", slow_start, said(!balancing.slow_start.is_zero())));
    bounds(traffic, parts, mesh, &mut all);
    let breaker = traffic.breaker.as_ref().map_or_else(|| "none".to_owned(), self::breaker);
    all.push(decision("circuit breaker", breaker, SaidBy::of(&parts.breaker, "spec.circuitBreaker")));
    let sources = SaidBy::of(&parts.ejection, "spec.outlierEjection");
    all.push(decision("ejection", ejection(&traffic.ejection), sources));
    let budget = &traffic.budget;
    let value = format!(
        "the larger of {} of first attempts and {} a second, over {}",
        percent(budget.share),
        budget.min_per_second,
        time(budget.window)
    );
    all.push(decision("retry budget", value, SaidBy::of(&parts.budget, "spec.retries.budget")));
    let check = traffic.health_check.as_ref().map_or_else(|| "none".to_owned(), health_check);
    all.push(decision("health check", check, SaidBy::of(&parts.health_check, "spec.healthCheck")));
    all
}

fn bounds(traffic: &Traffic, parts: &TrafficParts<'_>, mesh: &Mesh, all: &mut Vec<Decision>) {
    let bounds = &traffic.bounds;
    let sources = || SaidBy::of(&parts.connections, "spec.connections");
    let mut text = vec![
        format!("{} per endpoint and worker", bounds.connections.unwrap_or(mesh.limits.pool_connections)),
        format!("{} requests may wait", bounds.pending),
    ];
    text.extend(bounds.requests.map(|n| format!("{n} requests in flight")));
    text.extend(bounds.retries.map(|n| format!("{n} retries in flight")));
    text.extend(bounds.requests_per_connection.map(|n| format!("closed after {n} requests")));
    text.extend(bounds.max_age.map(|age| format!("closed at the age of {}", time(age))));
    let idle = bounds.idle_timeout.unwrap_or(mesh.limits.pool_idle_timeout);
    text.push(format!("closed after {} idle", time(idle)));
    let by_mesh =
        || mesh.says(|limits| limits.pool_connections.is_some() || limits.pool_idle_timeout.is_some(), "");
    let by = if parts.connections.is_some() { sources() } else { by_mesh() };
    all.push(decision("connections", text.join(", "), by));
    let (connect, by) = match bounds.connect_timeout {
        Some(connect) => (connect, SaidBy::of(&parts.connect, "spec.timeouts.connect")),
        None => {
            let by = mesh.says(|limits| limits.connect_timeout.is_some(), "connectTimeout");
            (mesh.limits.connect_timeout, by)
        }
    };
    all.push(decision("connect timeout", time(connect), by));
}

fn breaker(breaker: &Breaker) -> String {
    let whom = match (breaker.service, breaker.endpoint) {
        (true, false) => "the service",
        (false, _) => "each endpoint",
        (true, true) => "the service and each endpoint",
    };
    let consecutive =
        breaker.consecutive_failures.map(|n| format!(" or {n} failures in a row")).unwrap_or_default();
    let slow =
        breaker.slow_call.map(|slow| format!("; slower than {} counts", time(slow))).unwrap_or_default();
    format!(
        "{whom}: opens at {} of {}+ calls in {}{consecutive}, for {} up to {}, closes after {} probes{slow}",
        percent(breaker.error_share),
        breaker.min_requests,
        time(breaker.window),
        time(breaker.open_for),
        time(breaker.max_open_for),
        breaker.probes
    )
}

fn ejection(ejection: &Ejection) -> String {
    let mut reasons = Vec::new();
    if ejection.consecutive_gateway_errors > 0 {
        reasons.push(format!("{} gateway errors in a row", ejection.consecutive_gateway_errors));
    }
    if ejection.consecutive_server_errors > 0 {
        reasons.push(format!("{} 5xx in a row", ejection.consecutive_server_errors));
    }
    if let Some(rate) = &ejection.success_rate {
        reasons.push(format!("a success rate {} deviations below the mean", rate.deviations));
    }
    if let Some(latency) = &ejection.latency {
        reasons.push(format!("{} times the median latency", latency.times_median));
    }
    if reasons.is_empty() || ejection.max_share == 0.0 {
        return "none".to_owned();
    }
    format!(
        "after {}, for {} up to {}; at most {} of endpoints, all are called again below {}",
        reasons.join(" or "),
        time(ejection.time),
        time(ejection.max_time),
        percent(ejection.max_share),
        percent(ejection.panic_share)
    )
}

fn health_check(check: &HealthCheck) -> String {
    let how = match &check.probe {
        Probe::Http { path, host, .. } => format!("GET {path} of {host}"),
        Probe::Grpc { service } if service.is_empty() => "gRPC health of the server".to_owned(),
        Probe::Grpc { service } => format!("gRPC health of {service}"),
        Probe::Tcp => "TCP connect".to_owned(),
    };
    let port = check.port.map(|port| format!(" on port {port}")).unwrap_or_default();
    format!(
        "{how}{port} every {} within {}, out after {} bad, back after {} good",
        time(check.interval),
        time(check.timeout),
        check.unhealthy_threshold,
        check.healthy_threshold
    )
}

/// What is decided where a backend is served.
pub(super) fn served(admission: &Admission, policies: &Policies<'_>, cache: Vec<Decision>) -> Vec<Decision> {
    let limits = policies.part(|spec| given(&spec.rate_limits));
    let written = limits.as_ref().map_or(&[][..], |said| said.what);
    let sources = SaidBy::of(&limits, "spec.rateLimits");
    let mut all = vec![decision("rate limits", or_none(joined(written, rate_limit)), sources)];
    all.extend(cache);
    let bounds = policies.part(|spec| spec.concurrency.as_ref());
    let value = admission.concurrency.as_ref().map_or_else(
        || "no limit".to_owned(),
        |bounds| {
            let limit = match bounds.limit {
                ConcurrencyLimit::None => "no limit".to_owned(),
                ConcurrencyLimit::Fixed(limit) => format!("{limit} at once"),
                ConcurrencyLimit::Adaptive { min, max, tolerance } => {
                    format!("{min} to {max} at once, by latency up to {tolerance} times that without load")
                }
            };
            let priorities = match bounds.priorities.len() {
                0 => String::new(),
                count => format!(", {count} priorities"),
            };
            format!("{limit}, {} may wait for {}{priorities}", bounds.queue, time(bounds.queue_timeout))
        },
    );
    all.push(decision("concurrency", value, SaidBy::of(&bounds, "spec.concurrency")));
    all
}

/// What an answer says about what was called.
pub(super) fn deprecation(calls: &Calls, parts: &CallParts<'_>) -> Decision {
    let value = match (&calls.deprecation, &parts.deprecation) {
        (Some(compiled), Some(said)) => {
            let end = said.what.sunset.as_ref().map(|end| format!(", gone on {end}")).unwrap_or_default();
            let link = said.what.link.as_ref().map(|link| format!(", see {link}")).unwrap_or_default();
            format!("{} is deprecated since {}{end}{link}", compiled.of, said.what.since)
        }
        _ => "none".to_owned(),
    };
    decision("deprecation", value, SaidBy::of(&parts.deprecation, "spec.deprecation"))
}
