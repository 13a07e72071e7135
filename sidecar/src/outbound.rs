//! The outbound direction: our application calls a service.

use crate::{
    body::Body,
    context::{Call, WEFT_ERROR, authority},
    error::{Error, Kind},
    exchange::{Back, Failed, Handler},
    http1,
    listener::Target,
    live::{Live, LiveBackend, LivePort, split_authority},
    redirect,
    telemetry::metrics::{AttemptResult, Direction, Retry},
    upstream::{Cluster, Endpoint},
    worker::Worker,
};
use http::{HeaderName, HeaderValue, Method, Request, Response, Uri, Version, header};
use smallvec::SmallVec;
use std::{
    rc::Rc,
    time::{Duration, Instant},
};
use tokio::time::timeout_at;
use weft_config::{
    matching::{RequestView, normalize_path},
    snapshot::{Action, Filters, OutboundMode, Rule, Snapshot},
};

/// Endpoints that one request tries while nothing of it was sent.
const ATTEMPTS: u32 = 3;
/// Time for a name outside the registry to resolve.
const RESOLVE: Duration = Duration::from_secs(2);

/// Requests that came in over one connection of the application.
pub(crate) struct Outbound {
    pub(crate) worker: Rc<Worker>,
    pub(crate) target: Target,
}

impl Handler for Outbound {
    async fn handle(&self, mut request: Request<Body>, back: &dyn Back) -> Response<Body> {
        let live = self.worker.live();
        let mut call = Call::begin(&self.worker, &live.snapshot.mesh, Direction::Outbound, &mut request);
        let outcome = self.call(&live, &mut call, request, back).await;
        call.answer(outcome)
    }

    fn refuse(&self, error: Error) -> Response<Body> {
        self.worker.shard.error(error.kind);
        crate::context::answer(&error, false)
    }
}

/// Where a request goes.
enum Destination {
    /// A port of a service of the mesh.
    Service(Rc<LivePort>),
    /// A host outside of it.
    External(Rc<Cluster>),
}

impl Outbound {
    /// One outbound request, top to bottom.
    async fn call(
        &self,
        live: &Rc<Live>,
        call: &mut Call,
        mut request: Request<Body>,
        back: &dyn Back,
    ) -> Result<Response<Body>, Error> {
        let tunnel = prepare(&mut request)?;
        let port = match self.destination(live, &request).await? {
            Destination::Service(port) => port,
            Destination::External(cluster) => {
                return self.attempts(live, call, &cluster, None, None, tunnel, request, back).await;
            }
        };
        call.series = Some(port.unrouted.clone());
        call.note(|log| log.service = port.name().to_string());
        port.mark_used();

        let Some((rule_index, matched)) = route(&port, &request)? else {
            return self
                .attempts(live, call, &port.own.cluster, Some(&port.own), None, tunnel, request, back)
                .await;
        };
        let rule = port.rule(rule_index);
        let resolved = &port.rules[rule_index];
        call.series = Some(resolved.series.clone());
        call.note(|log| log.route = rule.name.to_string());

        let backends = match &rule.action {
            Action::Redirect(to) => return Ok(redirect::answer(to, &request, matched, rule)),
            Action::Forward(backends) => backends,
        };
        let picked = (backends.total_weight > 0)
            .then(|| backends.pick(fastrand::u32(..backends.total_weight)))
            .flatten()
            .ok_or_else(|| {
                Error::new(Kind::InvalidBackend, format!("{} has no backend with a weight", rule.name))
            })?;
        let backend = &backends.list[picked];
        if let Some(reason) = &backend.invalid {
            return Err(Error::new(Kind::InvalidBackend, format!("{}: {reason}", rule.name)));
        }
        apply_to_request(&rule.filters, matched, &mut request)?;
        apply_to_request(&backend.filters, matched, &mut request)?;
        let to = &resolved.backends[picked];
        let mut response =
            self.attempts(live, call, &to.cluster, Some(to), Some(rule), tunnel, request, back).await?;
        backend.filters.response.apply(response.headers_mut());
        rule.filters.response.apply(response.headers_mut());
        Ok(response)
    }

    /// Finds where the request goes; asks the control plane once for a name that is not known yet.
    async fn destination(&self, live: &Rc<Live>, request: &Request<Body>) -> Result<Destination, Error> {
        let worker = &self.worker;
        if let Target::Service { service, port } = &self.target {
            let found = match live.by_service(worker, service, *port) {
                Some(found) => Some(found),
                None => worker.ask_for(service.clone()).await?.by_service(worker, service, *port),
            };
            return found.map(Destination::Service).ok_or_else(|| {
                Error::new(
                    Kind::UnknownService,
                    format!("{service}:{port} is not known (yet); see /config_dump"),
                )
            });
        }
        let Some(authority) = authority(request) else {
            return Err(Error::new(Kind::BadRequest, "the request names no host"));
        };
        if let Some(found) = live.by_authority(worker, authority) {
            return Ok(Destination::Service(found));
        }
        let Some((host, port)) = split_authority(authority).filter(|(host, _)| !host.is_empty()) else {
            return Err(Error::new(Kind::BadRequest, format!("`{authority}` is not a host and port")));
        };
        if let Some(service) = Snapshot::host_candidates(host, worker.namespace()) {
            let live = worker.ask_for(service.clone()).await?;
            if let Some(found) = live.by_authority(worker, authority) {
                return Ok(Destination::Service(found));
            }
            if let Some(known) = live.snapshot.service(&service) {
                let ports: Vec<String> = known.ports.iter().map(|p| p.port.to_string()).collect();
                return Err(Error::new(
                    Kind::UnknownService,
                    format!("{service} has no port {}; it has {}", port.unwrap_or(80), ports.join(", ")),
                ));
            }
        }
        if live.snapshot.mesh.outbound == OutboundMode::RegistryOnly {
            return Err(Error::new(
                Kind::UnknownService,
                format!("no service is called `{host}`, and MeshPolicy's `outbound` is registryOnly"),
            ));
        }
        let cluster = external(worker, authority, host, port.unwrap_or(80)).await?;
        Ok(Destination::External(cluster))
    }

    /// Tries endpoints until one takes the request: another only while nothing of it was sent.
    #[allow(clippy::too_many_arguments)]
    async fn attempts(
        &self,
        live: &Rc<Live>,
        call: &mut Call,
        cluster: &Rc<Cluster>,
        backend: Option<&LiveBackend>,
        rule: Option<&Rule>,
        tunnel: bool,
        mut request: Request<Body>,
        back: &dyn Back,
    ) -> Result<Response<Body>, Error> {
        let limits = &live.snapshot.mesh.limits;
        let whole = rule.and_then(|r| r.calls.timeouts.request).or_else(|| {
            // A gRPC stream may stay silent for as long as it likes; its deadline is its caller's.
            (!call.grpc).then_some(limits.request_timeout)
        });
        let deadline = whole.filter(|t| !t.is_zero()).map(|t| call.started() + t);
        let per_attempt = rule.and_then(|r| r.calls.timeouts.attempt).filter(|t| !t.is_zero());
        let attempt = crate::upstream::Attempt {
            connector: &self.worker.connector,
            limits,
            declared: cluster.protocol(),
            caller_is_http2: request.version() == Version::HTTP_2,
            tunnel,
            back,
        };
        let mut tried: SmallVec<[Rc<Endpoint>; 3]> = SmallVec::new();
        loop {
            let flight = cluster.pick(&tried).ok_or_else(|| no_endpoint(cluster))?;
            let endpoint = flight.endpoint().clone();
            if let Some(backend) = backend {
                call.series = Some(backend.series(endpoint.place.identity.is_some()).clone());
            }
            call.flight = Some(flight);
            call.attempts += 1;
            let wire = endpoint.wire(&attempt);
            call.note(|log| (log.endpoint, log.wire) = (Some(endpoint.place.address), wire.as_str()));
            let begun = Instant::now();
            let until = earlier(deadline, per_attempt.map(|t| begun + t));
            let outcome = match until {
                None => endpoint.exchange(wire, request, &attempt).await,
                Some(until) => {
                    match timeout_at(until.into(), endpoint.exchange(wire, request, &attempt)).await {
                        Ok(outcome) => outcome,
                        Err(_) => Err(Failed { error: timed_out(cluster, begun), request: None }),
                    }
                }
            };
            let now = Instant::now();
            call.upstream_time += now - begun;
            endpoint.load.observe(now - begun, now);
            match outcome {
                Ok(response) => {
                    self.worker
                        .shard
                        .attempt(&cluster.series, AttemptResult::of_status(response.status().as_u16()));
                    let until = rule.and_then(|r| r.calls.timeouts.request).and(deadline);
                    return Ok(finish(response, tunnel, endpoint.place.identity.is_some(), until));
                }
                Err(Failed { error, request: Some(again) })
                    if error.kind.row().unsent
                        && !error.sent
                        && call.attempts < ATTEMPTS
                        && tried.len() + 1 < cluster.len() =>
                {
                    self.worker.shard.attempt(&cluster.series, AttemptResult::Failed(error.kind));
                    self.worker.shard.retry(Retry::Connect);
                    tried.push(endpoint);
                    request = *again;
                }
                Err(failed) => {
                    self.worker.shard.attempt(&cluster.series, AttemptResult::Failed(failed.error.kind));
                    return Err(failed.error);
                }
            }
        }
    }
}

/// Puts a request into the form in which it is routed and sent on: one path form, no hop-by-hop fields, none of our own
/// names from outside. Says whether it wants a connection of its own.
fn prepare(request: &mut Request<Body>) -> Result<bool, Error> {
    let upgrade = request.version() != Version::HTTP_2 && request.headers().contains_key(header::UPGRADE);
    let tunnel = upgrade || request.method() == Method::CONNECT;
    http1::strip_hop_by_hop(request.headers_mut(), upgrade);
    strip_own(request.headers_mut());
    if request.version() == Version::HTTP_2
        && !request.headers().contains_key(header::HOST)
        && let Some(host) = request.uri().authority().and_then(|a| HeaderValue::from_str(a.as_str()).ok())
    {
        // Routes match on `Host` whatever the protocol calls it.
        request.headers_mut().insert(header::HOST, host);
    }
    if request.method() != Method::CONNECT {
        normalise(request)?;
    }
    Ok(tunnel)
}

/// Rewrites the path into its normal form if it is not in it.
pub(crate) fn normalise(request: &mut Request<Body>) -> Result<(), Error> {
    let path = request.uri().path();
    if path == "*" {
        return Ok(());
    }
    match normalize_path(path) {
        Ok(std::borrow::Cow::Borrowed(_)) => Ok(()),
        Ok(std::borrow::Cow::Owned(path)) => set_path(request, &path),
        Err(reason) => Err(Error::new(
            Kind::BadRequest,
            format!("the path cannot be brought into normal form: {reason}"),
        )),
    }
}

/// Replaces the path, keeping the query.
fn set_path(request: &mut Request<Body>, path: &str) -> Result<(), Error> {
    let mut parts = request.uri().clone().into_parts();
    let target = match request.uri().query() {
        Some(query) => format!("{path}?{query}"),
        None => path.to_owned(),
    };
    let invalid = |_| Error::new(Kind::BadRequest, "the rewritten path is not a valid URI path");
    parts.path_and_query = Some(target.try_into().map_err(invalid)?);
    *request.uri_mut() = Uri::from_parts(parts).map_err(|_| invalid_uri())?;
    Ok(())
}

fn invalid_uri() -> Error {
    Error::new(Kind::BadRequest, "the request target is not a valid URI")
}

/// Removes fields that only sidecars may set.
pub(crate) fn strip_own(headers: &mut http::HeaderMap) {
    let own: SmallVec<[HeaderName; 2]> =
        headers.keys().filter(|name| name.as_str().starts_with("weft-")).cloned().collect();
    for name in own {
        headers.remove(name);
    }
}

/// The rule that takes the request, with how much of the path it matched; `None` if the port has no routes.
fn route(port: &LivePort, request: &Request<Body>) -> Result<Option<(usize, usize)>, Error> {
    let routes = &port.port().routes;
    if routes.is_empty() {
        return Ok(None);
    }
    let view = RequestView {
        method: request.method(),
        path: request.uri().path(),
        query: request.uri().query(),
        headers: request.headers(),
    };
    match routes.find(&view) {
        Some(found) => Ok(Some((found.rule, found.matched_len))),
        None => Err(Error::new(
            Kind::NoRoute,
            format!("no route of {}:{} takes this request; try `weft routes`", port.name(), port.port().port),
        )),
    }
}

fn apply_to_request(filters: &Filters, matched: usize, request: &mut Request<Body>) -> Result<(), Error> {
    if filters.is_empty() {
        return Ok(());
    }
    if let Some(rewrite) = &filters.path {
        let path = rewrite.apply(request.uri().path(), matched);
        set_path(request, &path)?;
    }
    if let Some(host) = &filters.host {
        set_host(request, host)?;
    }
    filters.request.apply(request.headers_mut());
    Ok(())
}

fn set_host(request: &mut Request<Body>, host: &HeaderValue) -> Result<(), Error> {
    if request.uri().authority().is_some() {
        let mut parts = request.uri().clone().into_parts();
        parts.authority = Some(http::uri::Authority::try_from(host.as_bytes()).map_err(|_| invalid_uri())?);
        *request.uri_mut() = Uri::from_parts(parts).map_err(|_| invalid_uri())?;
    }
    request.headers_mut().insert(header::HOST, host.clone());
    Ok(())
}

/// The upstream's response as it goes back.
fn finish(mut response: Response<Body>, tunnel: bool, mesh: bool, until: Option<Instant>) -> Response<Body> {
    http1::strip_hop_by_hop(response.headers_mut(), tunnel);
    if !mesh {
        response.headers_mut().remove(WEFT_ERROR);
    }
    match until {
        None => response,
        Some(until) => response.map(|body| body.until(until)),
    }
}

fn earlier(a: Option<Instant>, b: Option<Instant>) -> Option<Instant> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

fn no_endpoint(cluster: &Cluster) -> Error {
    Error::new(
        Kind::NoEndpoint,
        format!(
            "{}:{} has no endpoint; is a workload of it running? see /clusters",
            cluster.service, cluster.port
        ),
    )
}

fn timed_out(cluster: &Cluster, begun: Instant) -> Error {
    Error::after_send(
        Kind::Timeout,
        format!(
            "no answer from {}:{} after {:.3} s",
            cluster.service,
            cluster.port,
            begun.elapsed().as_secs_f64()
        ),
    )
}

/// A cluster for a host outside the mesh.
pub(crate) async fn external(
    worker: &Worker,
    authority: &str,
    host: &str,
    port: u16,
) -> Result<Rc<Cluster>, Error> {
    if let Some(cluster) = worker.external(authority) {
        return Ok(cluster);
    }
    let name = match host.trim_start_matches('[').trim_end_matches(']') {
        // RFC 6761 section 6.3: always loopback, also where there is no hosts file to say so.
        name if name.eq_ignore_ascii_case("localhost") => "127.0.0.1",
        name => name,
    };
    let found = tokio::time::timeout(RESOLVE, tokio::net::lookup_host((name, port))).await;
    let addresses: Vec<_> = match found {
        Ok(Ok(addresses)) => addresses.take(16).collect(),
        Ok(Err(error)) => {
            return Err(Error::new(
                Kind::UnknownService,
                format!("`{host}` is no service of the mesh and does not resolve: {error}"),
            ));
        }
        Err(_) => {
            return Err(Error::new(
                Kind::UnknownService,
                format!("`{host}` did not resolve within {RESOLVE:?}"),
            ));
        }
    };
    let own = worker.shared.own_addresses.get().map_or(&[][..], Vec::as_slice);
    if addresses
        .iter()
        .any(|a| own.iter().any(|o| o.port() == a.port() && (o.ip() == a.ip() || a.ip().is_loopback())))
    {
        return Err(Error::new(
            Kind::BadRequest,
            format!("`{authority}` is this sidecar itself: the call would loop"),
        ));
    }
    if addresses.is_empty() {
        return Err(Error::new(Kind::UnknownService, format!("`{host}` has no address")));
    }
    Ok(worker.learn_external(authority, port, addresses))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_names_from_outside_are_removed() {
        let mut headers = http::HeaderMap::new();
        headers.insert("weft-error", HeaderValue::from_static("x"));
        headers.insert("weft-anything", HeaderValue::from_static("x"));
        headers.insert("weftless", HeaderValue::from_static("x"));
        strip_own(&mut headers);
        assert_eq!(headers.len(), 1);
    }
}
