//! The parts of TrafficPolicies that are about calls, compiled with their defaults and with what a route says itself.

use super::attached::{Attached, Policies, Said};
use super::conditions::{key, only};
use super::deprecation;
use super::findings::Findings;
use super::traffic::{or, share};
use crate::document::duration::PolicyDuration;
use crate::document::route::{HttpRetry, HttpTimeouts};
use crate::document::traffic_policy::{
    Deprecation as WrittenDeprecation, Fault as WrittenFault, Hedging, KeyPart, RateLimit as WrittenLimit,
    Retries, RetryCause, Sharding as WrittenSharding, TrafficPolicySpec, TrafficTimeouts,
};
use crate::identity::ServiceName;
use crate::snapshot::{
    Abort, Backend, Calls, Cors, Fault, Filters, Hedge, HedgeAfter, Mirror, RateLimit, Retry, Session,
    Sharding, Timeouts,
};
use http::StatusCode;
use std::{sync::Arc, time::Duration};

/// What a route's rule says itself; it goes before every policy.
#[derive(Default)]
pub(super) struct Own<'d> {
    pub(super) timeouts: HttpTimeouts,
    pub(super) retry: Option<&'d HttpRetry>,
    pub(super) session: Option<Session>,
    pub(super) mirrors: Arc<[Mirror]>,
    pub(super) cors: Option<Arc<Cors>>,
}

/// Which policy says each part.
pub(super) struct Parts<'d> {
    pub(super) timeouts: Option<Said<'d, TrafficTimeouts>>,
    pub(super) retries: Option<Said<'d, Retries>>,
    pub(super) hedging: Option<Said<'d, Hedging>>,
    pub(super) session_key: Option<Said<'d, [KeyPart]>>,
    pub(super) sharding: Option<Said<'d, WrittenSharding>>,
    pub(super) faults: Option<Said<'d, [WrittenFault]>>,
    pub(super) deprecation: Option<Said<'d, WrittenDeprecation>>,
}

impl<'d> Parts<'d> {
    pub(super) fn of(policies: &Policies<'d>) -> Self {
        Self {
            timeouts: policies.part(call_timeouts),
            retries: policies.part(call_retries),
            hedging: policies.part(|spec| spec.hedging.as_ref()),
            session_key: policies.part(|spec| given(&spec.session_key)),
            sharding: policies.part(|spec| spec.sharding.as_ref()),
            faults: policies.part(|spec| given(&spec.faults)),
            deprecation: policies.part(|spec| spec.deprecation.as_ref()),
        }
    }
}

/// Timeouts of calls; a `connect` alone is about endpoints only, and hides no other policy's timeouts of calls.
fn call_timeouts(spec: &TrafficPolicySpec) -> Option<&TrafficTimeouts> {
    let written = spec.timeouts.as_ref()?;
    let calls = TrafficTimeouts { connect: None, ..*written };
    (calls != TrafficTimeouts::default()).then_some(written)
}

/// Retries of calls; as with `connect`, a `budget` alone is about endpoints only.
fn call_retries(spec: &TrafficPolicySpec) -> Option<&Retries> {
    let written = spec.retries.as_ref()?;
    let calls = Retries { budget: None, ..written.clone() };
    (calls != Retries::default()).then_some(written)
}

/// A list that is not empty.
pub(super) fn given<T>(list: &[T]) -> Option<&[T]> {
    (!list.is_empty()).then_some(list)
}

/// What is decided about calls. `on_route` are the policies on the rule and its route; those on the service that was
/// called at `port` come after them.
pub(super) fn compile(
    on_route: &Policies<'_>,
    on_service: &Policies<'_>,
    own: Own<'_>,
    port: u16,
    findings: &mut Findings,
) -> Calls {
    let parts = Parts::of(&on_route.then(on_service));
    Calls {
        timeouts: timeouts(&own.timeouts, parts.timeouts.map(|said| said.what)),
        retry: retry(own.retry, parts.retries.map(|said| said.what)),
        hedge: parts.hedging.and_then(|said| hedge(said.what)),
        session_key: parts
            .session_key
            .and_then(|said| key(said.what, said.by.found, "spec.sessionKey", findings)),
        sharding: parts.sharding.and_then(|said| sharding(&said, port, findings)),
        session: own.session,
        // Those on a Service are counted where it is served.
        rate_limits: on_route
            .part(|spec| given(&spec.rate_limits))
            .map(|said| rate_limits(&said, findings))
            .unwrap_or_default(),
        faults: parts.faults.map(|said| faults(&said, findings)).unwrap_or_default(),
        deprecation: parts
            .deprecation
            .and_then(|said| deprecation::compile(said.what, &said.by, findings))
            .map(Arc::new),
        mirrors: own.mirrors,
        cors: own.cors,
        own_traffic: None,
        // Another kind of policy says it.
        cache: None,
    }
}

fn timeouts(own: &HttpTimeouts, policy: Option<&TrafficTimeouts>) -> Timeouts {
    let policy = policy.copied().unwrap_or_default();
    Timeouts {
        request: own.request.or(policy.request).map(PolicyDuration::get),
        attempt: own.backend_request.or(policy.attempt).map(PolicyDuration::get),
        idle: policy.idle.map(PolicyDuration::get),
        deadlines: policy.deadlines.unwrap_or(true),
    }
}

/// A route's `retry` adds to what the policy (or the default) says: its codes to the statuses, and, as the Gateway API
/// recommends wherever there is such a stanza, failures of the connection and timeouts. Its `attempts` counts retries.
fn retry(own: Option<&HttpRetry>, policy: Option<&Retries>) -> Retry {
    let mut retry = policy.map(retries).unwrap_or_default();
    let Some(own) = own else { return retry };
    retry.attempts = own.attempts.unwrap_or(retry.attempts);
    if !own.codes.is_empty() {
        retry.statuses = sorted(retry.statuses.iter().chain(&own.codes).copied().collect());
    }
    retry.least_wait = or(own.backoff, retry.least_wait);
    (retry.connect_failure, retry.refused, retry.reset, retry.timeout) = (true, true, true, true);
    retry
}

fn sorted(mut statuses: Vec<u16>) -> Arc<[u16]> {
    statuses.sort_unstable();
    statuses.dedup();
    statuses.into()
}

fn retries(written: &Retries) -> Retry {
    let mut retry = Retry::default();
    retry.attempts = written.attempts.unwrap_or(retry.attempts);
    let mut statuses = written.statuses.clone();
    if written.when.is_empty() {
        statuses.extend(&*retry.statuses);
    } else {
        let has = |cause: RetryCause| written.when.contains(&cause);
        retry.connect_failure = has(RetryCause::ConnectFailure);
        retry.refused = has(RetryCause::Refused);
        retry.reset = has(RetryCause::Reset);
        retry.timeout = has(RetryCause::Timeout);
        if has(RetryCause::GatewayError) {
            statuses.extend([502, 503, 504]);
        }
        if has(RetryCause::ServerError) {
            statuses.extend(500..=599);
        }
    }
    retry.statuses = sorted(statuses);
    if !written.grpc_statuses.is_empty() {
        retry.grpc_statuses = written.grpc_statuses.iter().fold(0, |bits, status| bits | 1 << status.code());
        retry.grpc_explicit = true;
    }
    if let Some(backoff) = &written.backoff {
        let base = or(backoff.base, retry.backoff);
        // Of the two only the one that is written holds, where the other's default would contradict it.
        retry.max_backoff = match backoff.max {
            Some(max) => max.get(),
            None => retry.max_backoff.max(base),
        };
        retry.backoff = base.min(retry.max_backoff);
    }
    retry.retry_after = written.retry_after.unwrap_or(retry.retry_after);
    retry.unsafe_methods = written.unsafe_methods.unwrap_or(retry.unsafe_methods);
    if let Some(size) = written.max_body_bytes {
        retry.body_bytes = usize::try_from(size.0).unwrap_or(usize::MAX);
    }
    retry
}

fn hedge(written: &Hedging) -> Option<Hedge> {
    let after = match (written.delay, written.percentile) {
        (Some(delay), _) => HedgeAfter::Delay(delay.get()),
        (None, Some(percent)) => HedgeAfter::Percentile(share(percent)),
        // No such document is let into force.
        (None, None) => return None,
    };
    Some(Hedge { after, max_attempts: written.max_attempts.unwrap_or(2) })
}

fn sharding(said: &Said<'_, WrittenSharding>, port: u16, findings: &mut Findings) -> Option<Sharding> {
    let (written, found) = (said.what, said.by.found);
    let namespace = found.document.metadata().namespace();
    let shards = written.shards.iter().map(|shard| Backend {
        service: ServiceName::new(namespace, shard.service.as_str()),
        port: shard.port.unwrap_or(port),
        weight: shard.weight.unwrap_or(1),
        filters: Filters::default(),
        mirrors: Arc::default(),
        invalid: None,
    });
    let pinned = written.shards.iter().enumerate();
    let mut pinned: Vec<(Arc<str>, usize)> = pinned
        .flat_map(|(at, shard)| shard.pinned.iter().map(move |key| (key.as_str().into(), at)))
        .collect();
    pinned.sort();
    let without_key = written.without_key.as_ref();
    Some(Sharding {
        key: key(&written.key, found, "spec.sharding.key", findings)?,
        shards: shards.collect(),
        pinned: pinned.into(),
        without_key: without_key
            .and_then(|wanted| written.shards.iter().position(|shard| shard.service == *wanted)),
    })
}

fn faults(said: &Said<'_, [WrittenFault]>, findings: &mut Findings) -> Arc<[Fault]> {
    let faults = said.what.iter().enumerate().map(|(at, written)| {
        let abort = written.abort.and_then(|abort| match (abort.status, abort.grpc_status, abort.reset) {
            (Some(status), _, _) => StatusCode::from_u16(status).ok().map(Abort::Status),
            (_, Some(status), _) => Some(Abort::Grpc(status.code())),
            (_, _, Some(true)) => Some(Abort::Reset),
            _ => None,
        });
        Fault {
            share: share(written.percent.unwrap_or(100.0)),
            only: only(&written.headers, &[], &[], said.by.found, &format!("spec.faults[{at}]"), findings),
            delay: written.delay.map(PolicyDuration::get),
            abort,
        }
    });
    faults.collect()
}

/// The limits of one policy. Where it is attached to several things, each has counts of its own.
pub(super) fn rate_limits(said: &Said<'_, [WrittenLimit]>, findings: &mut Findings) -> Arc<[RateLimit]> {
    let several = several_targets(&said.by);
    let limits = said.what.iter().enumerate().map(|(at, written)| {
        let (found, field) = (said.by.found, format!("spec.rateLimits[{at}]"));
        let on = if several { format!(" on {}", said.by.target()) } else { String::new() };
        RateLimit {
            id: format!("{}/{}{on}", said.by.name(), written.name).into(),
            name: written.name.as_str().into(),
            requests: written.requests,
            per: or(written.per, Duration::from_secs(1)),
            burst: written.burst.unwrap_or(written.requests),
            key: key(&written.key, found, &format!("{field}.key"), findings),
            max_keys: written.max_keys.map_or(10_000, |max| usize::try_from(max).unwrap_or(usize::MAX)),
            only: only(&written.headers, &written.methods, &written.paths, found, &field, findings),
        }
    });
    limits.collect()
}

fn several_targets(policy: &Attached<'_>) -> bool {
    policy.spec.target_refs.len() > 1
}
