//! The parts of TrafficPolicies that are about a backend's endpoints, compiled with their defaults.

use super::attached::{Policies, Said};
use super::conditions::key;
use super::findings::Findings;
use crate::document::duration::PolicyDuration;
use crate::document::traffic_policy::{
    Algorithm, BreakerScope, CircuitBreaker, ConnectionLimits, HealthCheck as Written, LoadBalancer,
    LocalityPreference, OutlierEjection, RetryBudget as WrittenBudget, SubsetFallback,
};
use crate::identity::ServiceName;
use crate::snapshot::{
    Balancer, Balancing, Bounds, Breaker, Ejection, HealthCheck, Probe, RetryBudget, SlowEndpoint,
    SuccessRate, Traffic,
};
use std::{num::NonZeroU32, time::Duration};

/// What policies say about the endpoints of one port of a service.
pub(super) fn compile(policies: &Policies<'_>, service: &ServiceName, findings: &mut Findings) -> Traffic {
    let parts = Parts::of(policies);
    Traffic {
        balancing: parts.balancer.map(|said| balancing(&said, findings)).unwrap_or_default(),
        bounds: bounds(parts.connections.map(|said| said.what), parts.connect.map(|said| *said.what)),
        breaker: parts.breaker.map(|said| breaker(said.what)),
        ejection: parts.ejection.map(|said| ejection(said.what)).unwrap_or_default(),
        budget: parts.budget.map(|said| budget(said.what)).unwrap_or_default(),
        health_check: parts.health_check.and_then(|said| health_check(said.what, service)),
    }
}

/// Which policy says each part.
pub(super) struct Parts<'d> {
    pub(super) balancer: Option<Said<'d, LoadBalancer>>,
    pub(super) connections: Option<Said<'d, ConnectionLimits>>,
    pub(super) connect: Option<Said<'d, PolicyDuration>>,
    pub(super) breaker: Option<Said<'d, CircuitBreaker>>,
    pub(super) ejection: Option<Said<'d, OutlierEjection>>,
    pub(super) budget: Option<Said<'d, WrittenBudget>>,
    pub(super) health_check: Option<Said<'d, Written>>,
}

impl<'d> Parts<'d> {
    pub(super) fn of(policies: &Policies<'d>) -> Self {
        Self {
            balancer: policies.part(|spec| spec.load_balancer.as_ref()),
            connections: policies.part(|spec| spec.connections.as_ref()),
            connect: policies.part(|spec| spec.timeouts.as_ref()?.connect.as_ref()),
            breaker: policies.part(|spec| spec.circuit_breaker.as_ref()),
            ejection: policies.part(|spec| spec.outlier_ejection.as_ref()),
            budget: policies.part(|spec| spec.retries.as_ref()?.budget.as_ref()),
            health_check: policies.part(|spec| spec.health_check.as_ref()),
        }
    }
}

pub(super) fn share(percent: f64) -> f64 {
    (percent / 100.0).clamp(0.0, 1.0)
}

pub(super) fn or(written: Option<PolicyDuration>, default: Duration) -> Duration {
    written.map_or(default, PolicyDuration::get)
}

/// `0s` where it means that there is none.
fn above_zero(written: Option<PolicyDuration>) -> Option<Duration> {
    written.map(PolicyDuration::get).filter(|time| !time.is_zero())
}

fn balancing(said: &Said<'_, LoadBalancer>, findings: &mut Findings) -> Balancing {
    let written = said.what;
    let hash_on = key(&written.hash_on, said.by.found, "spec.loadBalancer.hashOn", findings);
    let algorithm = match (written.algorithm, hash_on) {
        (Algorithm::PeakEwma, _) => Balancer::PeakEwma,
        (Algorithm::LeastRequests, _) => Balancer::LeastRequests,
        (Algorithm::RoundRobin, _) => Balancer::RoundRobin,
        (Algorithm::Random, _) => Balancer::Random,
        (Algorithm::RingHash, Some(key)) => {
            Balancer::RingHash { key, points: written.ring_points.unwrap_or(256).max(1) }
        }
        (Algorithm::Maglev, Some(key)) => Balancer::Maglev { key },
        // No such document is let into force.
        (Algorithm::RingHash | Algorithm::Maglev, None) => Balancer::default(),
    };
    let zones = written.locality.as_ref().filter(|locality| locality.prefer == LocalityPreference::Zone);
    let labels = written.subset.iter().flat_map(|subset| &subset.labels);
    Balancing {
        algorithm,
        slow_start: or(written.slow_start, Duration::ZERO),
        zone_overflow: zones.map(|locality| share(locality.overflow_percent.unwrap_or(70.0))),
        // A sorted map gives them sorted.
        subset: labels.map(|(key, value)| (key.as_str().into(), value.as_str().into())).collect(),
        subset_or_any: written.subset.as_ref().is_some_and(|s| s.fallback == SubsetFallback::Any),
    }
}

fn bounds(written: Option<&ConnectionLimits>, connect: Option<PolicyDuration>) -> Bounds {
    let default = Bounds::default();
    let connect_timeout = connect.map(PolicyDuration::get);
    let Some(written) = written else { return Bounds { connect_timeout, ..default } };
    Bounds {
        connections: written.max.map(|max| usize::try_from(max).unwrap_or(usize::MAX)),
        pending: written.max_pending.unwrap_or(default.pending),
        requests: written.max_requests,
        retries: written.max_retries,
        requests_per_connection: written.max_requests_per_connection.and_then(NonZeroU32::new),
        idle_timeout: written.idle_timeout.map(PolicyDuration::get),
        max_age: above_zero(written.max_age),
        connect_timeout,
    }
}

fn breaker(written: &CircuitBreaker) -> Breaker {
    let open_for = or(written.open_for, Duration::from_secs(1));
    Breaker {
        service: written.scope != BreakerScope::Endpoint,
        endpoint: written.scope != BreakerScope::Service,
        error_share: share(written.error_percent.unwrap_or(50.0)),
        min_requests: written.min_requests.unwrap_or(20),
        window: or(written.window, Duration::from_secs(10)),
        consecutive_failures: written.consecutive_failures,
        open_for,
        max_open_for: or(written.max_open_for, Duration::from_secs(30)).max(open_for),
        probes: written.probes.unwrap_or(3),
        slow_call: above_zero(written.slow_call),
    }
}

fn ejection(written: &OutlierEjection) -> Ejection {
    let default = Ejection::default();
    let time = or(written.ejection_time, default.time);
    Ejection {
        consecutive_gateway_errors: written
            .consecutive_gateway_errors
            .unwrap_or(default.consecutive_gateway_errors),
        consecutive_server_errors: written
            .consecutive_server_errors
            .unwrap_or(default.consecutive_server_errors),
        success_rate: written.success_rate.as_ref().map(|rate| SuccessRate {
            deviations: rate.deviations.unwrap_or(1.9),
            min_requests: rate.min_requests.unwrap_or(100),
            min_endpoints: rate.min_endpoints.unwrap_or(5),
        }),
        latency: written.latency.as_ref().map(|latency| SlowEndpoint {
            times_median: latency.times_median.unwrap_or(3.0),
            min_requests: latency.min_requests.unwrap_or(100),
        }),
        interval: or(written.interval, default.interval),
        time,
        max_time: or(written.max_ejection_time, default.max_time).max(time),
        max_share: written.max_ejected_percent.map_or(default.max_share, share),
        panic_share: written.panic_percent.map_or(default.panic_share, share),
    }
}

fn budget(written: &WrittenBudget) -> RetryBudget {
    let default = RetryBudget::default();
    RetryBudget {
        share: written.percent.map_or(default.share, share),
        min_per_second: written.min_per_second.unwrap_or(default.min_per_second),
        window: or(written.window, default.window),
    }
}

/// `None` only for a check that asks nothing, which is not let into force.
fn health_check(written: &Written, service: &ServiceName) -> Option<HealthCheck> {
    let probe = match (&written.http, &written.grpc, &written.tcp) {
        (Some(http), _, _) => {
            let mut statuses = http.statuses.clone();
            statuses.sort_unstable();
            statuses.dedup();
            Probe::Http {
                path: http.path.as_str().into(),
                host: http.host.as_deref().map_or_else(|| service.name.clone(), Into::into),
                statuses: statuses.into(),
            }
        }
        (_, Some(grpc), _) => Probe::Grpc { service: grpc.service.as_deref().unwrap_or_default().into() },
        (_, _, Some(_)) => Probe::Tcp,
        (None, None, None) => return None,
    };
    let interval = or(written.interval, Duration::from_secs(10));
    Some(HealthCheck {
        probe,
        interval,
        timeout: or(written.timeout, Duration::from_secs(2)).min(interval),
        healthy_threshold: written.healthy_threshold.unwrap_or(1),
        unhealthy_threshold: written.unhealthy_threshold.unwrap_or(3),
        port: written.port,
    })
}
