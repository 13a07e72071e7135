//! Every family that is exported: its name, what it says, and where its numbers come from.

use super::{
    AttemptResult, BreakerPosition, BreakerScope, ConnectionState, Direction, EjectionCause, Hedged, Metrics,
    OTHER, Retry, RetryRefused,
    labels::{self, HANDSHAKE_RESULTS},
    process::Process,
    series::{BUCKETS, FLOWS, RequestSum},
    shard::{Cell, Cells},
};
use crate::error::Kind;
use prometheus::proto::{Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType};
use std::{
    sync::{PoisonError, atomic::Ordering::Relaxed},
    time::UNIX_EPOCH,
};
use weft_config::identity::MeshProtocol;

/// Reads everything. A new family is one more line here.
pub(super) fn collect(metrics: &Metrics) -> Vec<MetricFamily> {
    let mut out = Vec::with_capacity(32);
    requests(metrics, &mut out);
    services(metrics, &mut out);
    queues(metrics, &mut out);
    guards(metrics, &mut out);
    health(metrics, &mut out);
    retries(metrics, &mut out);
    errors(metrics, &mut out);
    denials(metrics, &mut out);
    deprecations(metrics, &mut out);
    paths(metrics, &mut out);
    metrics.admission.collect(&mut out);
    metrics.tiers.collect(&mut out);
    metrics.caches.collect(&mut out);
    metrics.siblings.collect(&mut out);
    connections(metrics, &mut out);
    handshakes(metrics, &mut out);
    identity(metrics, &mut out);
    policy(metrics, &mut out);
    losses(metrics, &mut out);
    process(metrics, &mut out);
    out
}

fn requests(metrics: &Metrics, out: &mut Vec<MetricFamily>) {
    let mut total = Family::counter(
        "weft_requests_total",
        "Requests that ended, by the status their caller got. grpc_status is empty for what is not gRPC.",
    );
    let mut duration = Family::histogram(
        "weft_request_duration_seconds",
        "Time from a request's head to the end of its response, in seconds.",
    );
    for (key, series, _) in metrics.requests.all() {
        let Some(sum) = series.sum() else { continue };
        let labels = [
            ("direction", key.direction.name()),
            ("service", &*key.service),
            ("route", &*key.route),
            ("backend", &*key.backend),
            ("tls", labels::security(key.mtls)),
        ];
        for (status, grpc, count) in &sum.statuses {
            let status = status.map_or_else(|| OTHER.to_owned(), |status| status.to_string());
            let grpc = RequestSum::grpc_name(*grpc);
            let [direction, service, route, backend, tls] = labels;
            let labels =
                [direction, service, route, backend, ("status", &*status), ("grpc_status", &*grpc), tls];
            total.sample(&labels, *count as f64);
        }
        duration.distribution(&labels, &sum);
    }
    total.done(out);
    duration.done(out);
}

fn services(metrics: &Metrics, out: &mut Vec<MetricFamily>) {
    let mut attempts = Family::counter(
        "weft_upstream_attempts_total",
        "Attempts at requests to a service: ok, server_error (a status of 500 or above), or why no response came.",
    );
    let mut bytes = Family::counter(
        "weft_tcp_bytes_total",
        "Bytes of opaque connections, by the way they went; TLS and its framing not counted.",
    );
    let mut endpoints =
        Family::gauge("weft_endpoints", "Endpoints of a service in the policy in force, a number.");
    for (name, series, in_use) in metrics.services.all() {
        for (index, count) in series.attempts().into_iter().enumerate() {
            if count > 0 {
                let labels = [("service", &*name), ("result", AttemptResult::name(index))];
                attempts.sample(&labels, count as f64);
            }
        }
        for (direction, flows) in Direction::ALL.into_iter().zip(series.bytes()) {
            if flows == [0, 0] {
                continue;
            }
            for (flow, count) in FLOWS.into_iter().zip(flows) {
                let labels = [("direction", direction.name()), ("service", &*name), ("flow", flow)];
                bytes.sample(&labels, count as f64);
            }
        }
        // A service that policy no longer names has no number of endpoints, not zero of them.
        if in_use && &*name != OTHER {
            endpoints.sample(&[("service", &*name)], series.endpoints() as f64);
        }
    }
    attempts.done(out);
    bytes.done(out);
    endpoints.done(out);
}

fn queues(metrics: &Metrics, out: &mut Vec<MetricFamily>) {
    let mut waiting = Family::gauge(
        "weft_pending_requests",
        "Requests that wait for a connection because there are as many as may be, a number.",
    );
    let mut refused = Family::counter(
        "weft_pending_overflow_total",
        "Attempts that failed at once because as many as may be waited for a connection already.",
    );
    for (name, series, _) in metrics.services.all() {
        for direction in Direction::ALL {
            let queue = series.queue(direction);
            let labels = [("direction", direction.name()), ("service", &*name)];
            waiting.sample(&labels, f64::from(queue.waiting()));
            if queue.refused() > 0 {
                refused.sample(&labels, queue.refused() as f64);
            }
        }
    }
    waiting.done(out);
    refused.done(out);
}

/// Breakers, ejection and retry budgets, by service.
fn guards(metrics: &Metrics, out: &mut Vec<MetricFamily>) {
    let mut state = Family::gauge(
        "weft_breaker_state",
        "Where a service's circuit breaker stands (of endpoints: the worst): 0 closed, 1 half-open, 2 open.",
    );
    let mut moves = Family::counter(
        "weft_breaker_transitions_total",
        "How often a circuit breaker of a service or of one of its endpoints moved, by where to.",
    );
    let mut ejections = Family::counter("weft_ejections_total", "Endpoints ejected as outliers, by why.");
    let mut ejected =
        Family::gauge("weft_ejected_endpoints", "Endpoints that are ejected as outliers now, a number.");
    let mut budget =
        Family::gauge("weft_retry_budget_remaining", "Retries that the budget has left now, a number.");
    for (name, series, in_use) in metrics.services.all() {
        let guarded = &series.guarded;
        for to in BreakerPosition::ALL {
            let count = guarded.moves(to);
            if count > 0 {
                moves.sample(&[("service", &*name), ("to", to.name())], count as f64);
            }
        }
        for cause in EjectionCause::ALL {
            let count = guarded.ejections(cause);
            if count > 0 {
                ejections.sample(&[("service", &*name), ("reason", cause.name())], count as f64);
            }
        }
        if !in_use || &*name == OTHER {
            continue;
        }
        for scope in BreakerScope::ALL {
            if let Some(value) = guarded.breaker(scope) {
                state.sample(&[("service", &*name), ("scope", scope.name())], value.into());
            }
        }
        if let Some((count, remaining)) = guarded.now() {
            ejected.sample(&[("service", &*name)], count as f64);
            budget.sample(&[("service", &*name)], remaining);
        }
    }
    state.done(out);
    moves.done(out);
    ejections.done(out);
    ejected.done(out);
    budget.done(out);
}

fn health(metrics: &Metrics, out: &mut Vec<MetricFamily>) {
    let mut checks = Family::counter(
        "weft_health_checks_total",
        "Active health checks of a service's endpoints: ok, or why the endpoint was not found well.",
    );
    let mut healthy = Family::gauge(
        "weft_healthy_endpoints",
        "Endpoints of a service that are well by their active health checks, a number.",
    );
    for (name, series, _) in metrics.services.all() {
        for (result, count) in series.health().results().filter(|(_, count)| *count > 0) {
            checks.sample(&[("service", &*name), ("result", result.name())], count as f64);
        }
        if let Some(well) = series.health().well() {
            healthy.sample(&[("service", &*name)], well as f64);
        }
    }
    checks.done(out);
    healthy.done(out);
}

fn retries(metrics: &Metrics, out: &mut Vec<MetricFamily>) {
    let mut family = Family::counter("weft_retries_total", "Requests tried again, by why.");
    for (index, reason) in Retry::ALL.into_iter().enumerate() {
        family.sample(&[("reason", reason.name())], counted(metrics, |cells| &cells.retries[index]));
    }
    family.done(out);
    let mut refused =
        Family::counter("weft_retries_refused_total", "Failed requests that were not tried again, by why.");
    for (index, reason) in RetryRefused::ALL.into_iter().enumerate() {
        let count = counted(metrics, |cells| &cells.retries_refused[index]);
        refused.sample(&[("reason", reason.name())], count);
    }
    refused.done(out);
    let mut hedges =
        Family::counter("weft_hedges_total", "Second attempts at slow calls, by what came of them.");
    for (index, result) in Hedged::ALL.into_iter().enumerate() {
        hedges.sample(&[("result", result.name())], counted(metrics, |cells| &cells.hedges[index]));
    }
    hedges.done(out);
}

fn errors(metrics: &Metrics, out: &mut Vec<MetricFamily>) {
    let mut family = Family::counter(
        "weft_errors_total",
        "Requests that the sidecar answered or gave up on by itself, by the kind in the weft-error header.",
    );
    for (index, kind) in Kind::ALL.into_iter().enumerate() {
        family.sample(&[("kind", kind.row().name)], counted(metrics, |cells| &cells.errors[index]));
    }
    family.done(out);
}

fn denials(metrics: &Metrics, out: &mut Vec<MetricFamily>) {
    let mut family = Family::counter(
        "weft_authorization_denied_total",
        "Calls that authorization refused, by the rule that said so.",
    );
    for (rule, cells, _) in metrics.rules.all() {
        let count: u64 = cells.iter().map(Cell::get).sum();
        family.sample(&[("policy", &*rule)], count as f64);
    }
    family.done(out);
}

fn deprecations(metrics: &Metrics, out: &mut Vec<MetricFamily>) {
    let mut family = Family::counter(
        "weft_deprecated_calls_total",
        "Calls of the application to what policy says is going away, by what was called.",
    );
    for (of, cells, _) in metrics.deprecated.all() {
        let count: u64 = cells.iter().map(Cell::get).sum();
        family.sample(&[("of", &*of)], count as f64);
    }
    family.done(out);
}

fn paths(metrics: &Metrics, out: &mut Vec<MetricFamily>) {
    let mut seconds = Family::counter(
        "weft_critical_path_seconds_total",
        "Time of requests to the application, by what they waited for; upstream is empty for its own work.",
    );
    let mut requests = Family::counter(
        "weft_critical_path_requests_total",
        "Requests to the application whose time is in weft_critical_path_seconds_total.",
    );
    let mut unjoined = Family::counter(
        "weft_chain_unjoined_total",
        "Requests to the application not joined to its own calls because too many were open, in all or in one trace.",
    );
    for (service, series, _) in metrics.paths.all() {
        let sum = series.sum();
        let labels = [("service", &*service), ("upstream", ""), ("route", "")];
        seconds.sample(&labels, sum.own.as_secs_f64());
        requests.sample(&[("service", &*service)], sum.requests as f64);
        unjoined.sample(&[("service", &*service)], sum.unjoined as f64);
    }
    for ((upstream, route), series, _) in metrics.path_upstreams.all() {
        for (service, waited) in series.sum() {
            let labels = [("service", &*service), ("upstream", &*upstream), ("route", &*route)];
            seconds.sample(&labels, waited.as_secs_f64());
        }
    }
    seconds.done(out);
    requests.done(out);
    unjoined.done(out);
}

fn connections(metrics: &Metrics, out: &mut Vec<MetricFamily>) {
    let mut total = Family::counter("weft_connections_total", "Downstream connections accepted.");
    let mut now = Family::gauge("weft_connections", "Downstream connections that are there now, a number.");
    for direction in Direction::ALL {
        let index = direction as usize;
        let accepted = counted(metrics, |cells| &cells.connections_total[index]);
        total.sample(&[("direction", direction.name())], accepted);
        for state in ConnectionState::ALL {
            let labels = [("direction", direction.name()), ("state", state.name())];
            now.sample(&labels, level(metrics, |cells| &cells.connections[index][state as usize]));
        }
    }
    total.done(out);
    now.done(out);

    let mut upstream = Family::gauge(
        "weft_upstream_connections",
        "Upstream connections that are there now, in use or pooled, a number.",
    );
    for protocol in MeshProtocol::ALL {
        let value = level(metrics, |cells| &cells.upstream_connections[protocol as usize]);
        upstream.sample(&[("protocol", labels::protocol(protocol))], value);
    }
    upstream.done(out);
}

fn handshakes(metrics: &Metrics, out: &mut Vec<MetricFamily>) {
    let mut family = Family::counter(
        "weft_tls_handshakes_total",
        "TLS handshakes that ended, by how: ok, or why there is no connection.",
    );
    for direction in Direction::ALL {
        for index in 0..HANDSHAKE_RESULTS {
            let labels = [("direction", direction.name()), ("result", labels::handshake_result(index))];
            family.sample(&labels, counted(metrics, |cells| &cells.handshakes[direction as usize][index]));
        }
    }
    family.done(out);
}

fn identity(metrics: &Metrics, out: &mut Vec<MetricFamily>) {
    let expiration = metrics.identity_expiration.load(Relaxed);
    if expiration > 0 {
        Family::gauge(
            "weft_identity_expiration_timestamp_seconds",
            "When the certificate in use ends, in seconds since 1970-01-01 UTC.",
        )
        .only(expiration as f64, out);
    }
    let mut renewals = Family::counter("weft_identity_renewals_total", "Certificate renewals, by result.");
    renewals.sample(&[("result", "success")], metrics.renewals_ok.load(Relaxed) as f64);
    renewals.sample(&[("result", "failure")], metrics.renewals_failed.load(Relaxed) as f64);
    renewals.done(out);
}

fn policy(metrics: &Metrics, out: &mut Vec<MetricFamily>) {
    let version = metrics.policy_version.lock().unwrap_or_else(PoisonError::into_inner).clone();
    if let Some(version) = version {
        let mut family = Family::gauge(
            "weft_policy_version_info",
            "Always 1; the version of the policy in force is a label.",
        );
        family.sample(&[("version", &*version)], 1.0);
        family.done(out);
    }
    Family::counter("weft_policy_updates_total", "Snapshots of policy that took effect.")
        .only(metrics.policy_updates.load(Relaxed) as f64, out);
    Family::counter(
        "weft_policy_rejected_total",
        "Policy resources or files that were refused; what was in force before stayed.",
    )
    .only(metrics.policy_rejected.load(Relaxed) as f64, out);
    let connected = metrics.control_plane.load(Relaxed);
    if connected < 2 {
        Family::gauge(
            "weft_control_plane_connected",
            "1 while the stream to the control plane is up, 0 while it is not.",
        )
        .only(connected.into(), out);
    }
}

/// What telemetry itself could not keep.
fn losses(metrics: &Metrics, out: &mut Vec<MetricFamily>) {
    let mut overflow = Family::counter(
        "weft_metrics_overflow_total",
        "Series that found no room and count as other, each time policy that names them is compiled.",
    );
    overflow.sample(&[("table", "requests")], metrics.requests.overflows() as f64);
    overflow.sample(&[("table", "services")], metrics.services.overflows() as f64);
    overflow.sample(&[("table", "rules")], metrics.rules.overflows() as f64);
    overflow.sample(&[("table", "deprecated")], metrics.deprecated.overflows() as f64);
    overflow.sample(&[("table", "paths")], metrics.paths.overflows() as f64);
    overflow.sample(&[("table", "path_upstreams")], metrics.path_upstreams.overflows() as f64);
    for (table, count) in metrics.admission.overflows() {
        overflow.sample(&[("table", table)], count as f64);
    }
    overflow.sample(&[("table", "caches")], metrics.caches.overflows() as f64);
    overflow.done(out);
    Family::counter(
        "weft_access_log_dropped_total",
        "Lines of the access log that were not written because whoever reads it is too slow or gone.",
    )
    .only(metrics.access_log_dropped.load(Relaxed) as f64, out);
}

fn process(metrics: &Metrics, out: &mut Vec<MetricFamily>) {
    let mut build = Family::gauge("weft_build_info", "Always 1; what is running is in the labels.");
    build.sample(&[("program", "weft-sidecar"), ("version", env!("CARGO_PKG_VERSION"))], 1.0);
    build.done(out);

    let workers = metrics.workers() as f64;
    Family::gauge("weft_workers", "Worker threads that carry traffic, a number.").only(workers, out);

    if let Ok(started) = metrics.started.duration_since(UNIX_EPOCH) {
        Family::gauge(
            "process_start_time_seconds",
            "When the process started, in seconds since 1970-01-01 UTC.",
        )
        .only(started.as_secs_f64(), out);
    }
    let now = Process::read();
    if let Some(seconds) = now.cpu_seconds {
        Family::counter("process_cpu_seconds_total", "User and system CPU time spent, in seconds.")
            .only(seconds, out);
    }
    let gauges = [
        ("process_resident_memory_bytes", "Resident memory, in bytes.", now.resident_bytes),
        ("process_virtual_memory_bytes", "Virtual memory, in bytes.", now.virtual_bytes),
        ("process_open_fds", "Open file descriptors, a number.", now.open_fds),
        ("process_max_fds", "Limit on open file descriptors, a number.", now.max_fds),
        ("process_threads", "Threads of the process, a number.", now.threads),
    ];
    for (name, help, value) in gauges {
        if let Some(value) = value {
            Family::gauge(name, help).only(value as f64, out);
        }
    }
}

/// The sum of a counter over all workers.
fn counted(metrics: &Metrics, cell: impl Fn(&Cells) -> &Cell) -> f64 {
    metrics.cells.iter().map(|cells| cell(cells).get()).fold(0, u64::wrapping_add) as f64
}

/// The sum of a gauge over all workers; a reading between two stores of a moving connection may be one too low.
fn level(metrics: &Metrics, cell: impl Fn(&Cells) -> &Cell) -> f64 {
    let sum = metrics.cells.iter().map(|cells| cell(cells).get()).fold(0, u64::wrapping_add);
    (sum.cast_signed().max(0)) as f64
}

/// A family while its samples are gathered.
pub(super) struct Family {
    kind: MetricType,
    name: &'static str,
    help: &'static str,
    samples: Vec<Metric>,
}

impl Family {
    pub(super) fn counter(name: &'static str, help: &'static str) -> Self {
        Self { kind: MetricType::COUNTER, name, help, samples: Vec::new() }
    }

    pub(super) fn gauge(name: &'static str, help: &'static str) -> Self {
        Self { kind: MetricType::GAUGE, name, help, samples: Vec::new() }
    }

    fn histogram(name: &'static str, help: &'static str) -> Self {
        Self { kind: MetricType::HISTOGRAM, name, help, samples: Vec::new() }
    }

    pub(super) fn sample(&mut self, labels: &[(&str, &str)], value: f64) {
        let mut metric = Metric::from_label(pairs(labels));
        if self.kind == MetricType::GAUGE {
            let mut gauge = Gauge::default();
            gauge.set_value(value);
            metric.set_gauge(gauge);
        } else {
            let mut counter = Counter::default();
            counter.set_value(value);
            metric.set_counter(counter);
        }
        self.samples.push(metric);
    }

    fn distribution(&mut self, labels: &[(&str, &str)], sum: &RequestSum) {
        let mut below = 0;
        let mut buckets = Vec::with_capacity(BUCKETS.len());
        for (bound, count) in BUCKETS.into_iter().zip(sum.buckets) {
            below += count;
            let mut bucket = Bucket::default();
            bucket.set_upper_bound(bound as f64 / 1e9);
            bucket.set_cumulative_count(below);
            buckets.push(bucket);
        }
        let mut histogram = Histogram::default();
        histogram.set_bucket(buckets);
        // From the buckets, so that the count and the last bucket agree whatever was recorded in between.
        histogram.set_sample_count(sum.buckets.iter().sum());
        histogram.set_sample_sum(sum.nanoseconds as f64 / 1e9);
        let mut metric = Metric::from_label(pairs(labels));
        metric.set_histogram(histogram);
        self.samples.push(metric);
    }

    /// The only sample, without labels.
    pub(super) fn only(mut self, value: f64, out: &mut Vec<MetricFamily>) {
        self.sample(&[], value);
        self.done(out);
    }

    /// Adds the family, unless it has no samples (yet).
    pub(super) fn done(self, out: &mut Vec<MetricFamily>) {
        if self.samples.is_empty() {
            return;
        }
        let mut family = MetricFamily::default();
        family.set_name(self.name.to_owned());
        family.set_help(self.help.to_owned());
        family.set_field_type(self.kind);
        family.set_metric(self.samples);
        out.push(family);
    }
}

fn pairs(labels: &[(&str, &str)]) -> Vec<LabelPair> {
    let pair = |(name, value): &(&str, &str)| {
        let mut pair = LabelPair::default();
        pair.set_name((*name).to_owned());
        pair.set_value((*value).to_owned());
        pair
    };
    labels.iter().map(pair).collect()
}
