//! The outbound direction: our application calls a service.

mod attempts;
mod destination;
mod dressing;
mod mirroring;
mod payload;
mod tunnel;

pub(crate) use tunnel::Tunnel;

use crate::{
    body::Body,
    context::Call,
    error::{Error, Kind},
    exchange::{Back, Handler},
    live::{Live, LiveBackend, LiveCalls, LivePort, LiveRule},
    message, redirect,
    telemetry::metrics::Direction,
    traffic::{
        cors,
        deadline::{self, Told},
        fault,
        rate_limit::Passed,
        session,
        split::Choice,
    },
    upstream::Cluster,
    worker::Worker,
};
use attempts::{Attempts, Time};
use destination::Destination;
use dressing::Dressing;
use http::{Request, Response, request::Parts};
use std::{rc::Rc, time::Instant};
use weft_config::{
    identity::ServiceName,
    matching::RequestView,
    snapshot::{Action, Backend, Calls, Filters, Limits, Rule},
};

/// Where the connections of an outbound listener go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// To whatever each request names: HTTP proxy requests, `CONNECT`, HTTP/2 with prior knowledge.
    Named,
    /// All to one port of one service.
    Service {
        /// The service.
        service: ServiceName,
        /// Its port.
        port: u16,
    },
}

/// Requests that came in over one connection of the application.
pub(crate) struct Outbound {
    pub(crate) worker: Rc<Worker>,
    pub(crate) target: Target,
}

impl Handler for Outbound {
    async fn handle(&self, request: Request<Body>, back: &dyn Back) -> Response<Body> {
        let live = self.worker.live();
        let (mut head, body) = request.into_parts();
        let mut call = Call::begin(&self.worker, &live.snapshot.mesh, Direction::Outbound, &mut head);
        let outcome = self.call(&live, &mut call, &mut head, body, back).await;
        call.answer(outcome)
    }

    fn refuse(&self, error: Error) -> Response<Body> {
        self.worker.shard.error(error.kind);
        crate::context::answer(&error, false)
    }
}

impl Outbound {
    /// One outbound request, top to bottom.
    async fn call(
        &self,
        live: &Rc<Live>,
        call: &mut Call,
        head: &mut Parts,
        body: Body,
        back: &dyn Back,
    ) -> Result<Response<Body>, Error> {
        // Before our own names are stripped: this one an application may use, since it can only shorten.
        let told = deadline::read(&head.headers, call.grpc, call.started());
        let tunnel = message::prepare(head, false)?;
        message::ensure_host(head);
        call.chain = self.worker.shared.chains.of(&call.trace);
        let limits = &live.snapshot.mesh.limits;
        let port = match self.known(live, head) {
            Some(port) => port,
            None => match Box::pin(self.find(live, head)).await? {
                Destination::Service(port) => port,
                Destination::External(cluster) => {
                    return Box::pin(self.outside(call, limits, cluster, told, tunnel, head, body, back))
                        .await;
                }
            },
        };
        call.series = Some(port.unrouted.clone());
        call.note(|log| log.service = port.name().to_string());
        port.mark_used();

        let routed = Routed::find(&port, head)?;
        let calls = routed.calls;
        if let Some((rule, resolved)) = routed.rule {
            call.series = Some(resolved.series.clone());
            call.note(|log| log.route = rule.name.to_string());
        }
        if let Some(cors) = &calls.cors
            && let Some(answer) = cors::preflight(cors, head)
        {
            return Ok(answer);
        }
        if let Some((Rule { action: Action::Redirect(to), .. }, _)) = routed.rule {
            return Ok(redirect::answer(to, head, routed.matched, routed.filters()));
        }
        if let Some(deprecation) = &calls.deprecation {
            self.worker.shard.deprecated_call(&deprecation.of);
        }
        let passed = self.limit(&routed, head)?;
        if !calls.faults.is_empty() {
            let random = fastrand::f64();
            let hit = fault::choose(&calls.faults, &head.method, head.uri.path(), &head.headers, random);
            if let Some(fault) = hit {
                Box::pin(fault::happen(fault, self.worker.metrics())).await?;
            }
        }
        let dressing = Dressing::of(calls, head);
        let chosen = self.choose(&port, &routed, dressing.session.as_ref(), head)?;
        message::apply(routed.filters(), routed.matched, head)?;
        message::apply(chosen.filters(), routed.matched, head)?;
        let body = self.mirror(live, &routed, &chosen, head, body);
        let time = Time::of(call, told, &calls.timeouts, limits);
        let attempts = Attempts {
            worker: &self.worker,
            limits,
            calls,
            cluster: &chosen.to.cluster,
            traffic: chosen.to.cluster.traffic(),
            backend: Some(chosen.to),
            tunnel,
            back,
            time,
            key: chosen.key,
            preferred: dressing.session.as_ref().map(|pinned| pinned.endpoint),
        };
        call.span = call.chain.as_ref().map(|chain| chain.call(&chosen.to.path, Instant::now()));
        let mut response = attempts.run(call, head, body).await?;
        let headers = response.headers_mut();
        chosen.filters().response.apply(headers);
        routed.filters().response.apply(headers);
        passed.write(headers);
        dressing.apply(calls, chosen.token, call.served_by, headers);
        Ok(response)
    }
}

/// A request with the rule that takes it.
struct Routed<'a> {
    /// `None` if the port has no routes.
    rule: Option<(&'a Rule, &'a LiveRule)>,
    calls: &'a Calls,
    live: &'a LiveCalls,
    /// How much of the path the rule took.
    matched: usize,
}

impl<'a> Routed<'a> {
    fn find(port: &'a LivePort, request: &Parts) -> Result<Self, Error> {
        let routes = &port.port().routes;
        if routes.is_empty() {
            return Ok(Self { rule: None, calls: &port.port().calls, live: &port.calls, matched: 0 });
        }
        let view = RequestView {
            method: &request.method,
            path: request.uri.path(),
            query: request.uri.query(),
            headers: &request.headers,
        };
        let found = routes.find(&view).ok_or_else(|| {
            let (name, port) = (port.name(), port.port().port);
            Error::new(
                Kind::NoRoute,
                format!("no route of {name}:{port} takes this request; try `weft routes`"),
            )
        })?;
        let (rule, resolved) = (port.rule(found.rule), &port.rules[found.rule]);
        Ok(Self {
            rule: Some((rule, resolved)),
            calls: &rule.calls,
            live: &resolved.calls,
            matched: found.matched_len,
        })
    }

    fn filters(&self) -> &'a Filters {
        self.rule.map_or(&NO_FILTERS, |(rule, _)| &rule.filters)
    }
}

/// The backend that takes a request.
struct Chosen<'a> {
    to: &'a LiveBackend,
    /// `None` for the service itself.
    backend: Option<&'a Backend>,
    /// Names it in session tokens.
    token: u64,
    /// For balancers that hash.
    key: Option<u64>,
}

impl<'a> Chosen<'a> {
    fn filters(&self) -> &'a Filters {
        self.backend.map_or(&NO_FILTERS, |backend| &backend.filters)
    }
}

static NO_FILTERS: Filters = Filters::NONE;

impl Outbound {
    /// Which backend takes the request: by shard, session, user or chance.
    fn choose<'a>(
        &self,
        port: &'a LivePort,
        routed: &Routed<'a>,
        session: Option<&session::Pinned>,
        head: &Parts,
    ) -> Result<Chosen<'a>, Error> {
        let from = self.worker.key_source(&head.headers, head.uri.query());
        let session = session.map(|pinned| pinned.backend);
        let choice =
            routed.live.split.choose(routed.calls, &from, session, |below| fastrand::u32(..below))?;
        let (to, backend) = match (choice, routed.rule) {
            (Choice::Shard(index), _) => {
                let shards = routed.calls.sharding.as_ref().map_or(&[][..], |sharding| &sharding.shards);
                (routed.live.shards.get(index), shards.get(index))
            }
            (Choice::Own(index), Some((Rule { action: Action::Forward(backends), .. }, resolved))) => {
                (resolved.backends.get(index), backends.list.get(index))
            }
            (Choice::Own(_), _) => (Some(&port.own), None),
        };
        let of = || routed.rule.map_or_else(|| port.name().to_string(), |(rule, _)| rule.name.to_string());
        let to =
            to.ok_or_else(|| Error::new(Kind::InvalidBackend, format!("{} has no such backend", of())))?;
        if let Some(reason) = backend.and_then(|backend| backend.invalid.as_ref()) {
            return Err(Error::new(Kind::InvalidBackend, format!("{}: {reason}", of())));
        }
        let key = if to.cluster.wants_key() { to.cluster.key_hash(&from) } else { None };
        Ok(Chosen { to, backend, token: routed.live.split.token(choice), key })
    }

    /// Limits that are counted at the caller.
    fn limit(&self, routed: &Routed<'_>, head: &Parts) -> Result<Passed, Error> {
        let limits = &routed.live.rate_limits;
        if limits.is_empty() {
            return Ok(Passed::default());
        }
        limits.admit(
            &head.method,
            head.uri.path(),
            &head.headers,
            &self.worker.key_source(&head.headers, head.uri.query()),
            Instant::now(),
        )
    }
}

impl Outbound {
    /// A request to a host outside of the mesh.
    #[allow(clippy::too_many_arguments)]
    async fn outside(
        &self,
        call: &mut Call,
        limits: &Limits,
        cluster: Rc<Cluster>,
        told: Told,
        tunnel: bool,
        head: &mut Parts,
        body: Body,
        back: &dyn Back,
    ) -> Result<Response<Body>, Error> {
        let calls = Calls::default();
        let time = Time::of(call, told, &calls.timeouts, limits);
        let to = Attempts {
            worker: &self.worker,
            limits,
            calls: &calls,
            cluster: &cluster,
            traffic: cluster.traffic(),
            backend: None,
            tunnel,
            back,
            time,
            key: None,
            preferred: None,
        };
        to.run(call, head, body).await
    }
}
