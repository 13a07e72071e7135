//! The outbound direction: our application calls a service.

mod attempts;
mod destination;
mod dressing;
mod mirroring;
mod payload;
mod siblings;
mod tunnel;
mod upstream;

pub(crate) use tunnel::Tunnel;

use crate::{
    body::Body,
    cache::{self, Apart, Asking, Change, Looked, Origin as _},
    context::Call,
    error::{Error, Kind},
    exchange::{Back, Handler},
    live::{Live, LiveBackend, LiveCalls, LivePort, LiveRule},
    message::{self, WEFT_CACHE_TAGS},
    redirect, spare,
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
use upstream::Upstream;
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
        let mut call = Call::begin(&self.worker, &live.snapshot.mesh, Direction::Outbound, &head);
        let outcome = self.call(&live, &mut call, &mut head, body, back).await;
        spare::give_back(head.headers);
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
        let told = deadline::read(&head.headers, call.notable, call.grpc, call.started());
        let tunnel = message::prepare(head, call.notable, false)?;
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
        let time = Time::of(call, told, &calls.timeouts, limits);
        let token = chosen.token;
        let cache = if tunnel { None } else { routed.live.cache.as_ref() };
        let change = match port.caches.is_empty() {
            true => None,
            false => Change::of(head).filter(|_| !cache.is_some_and(|cache| cache.is_question(head, &body))),
        };
        let notable = call.notable;
        let mut upstream =
            Upstream { outbound: self, live, port: &port, routed, chosen, call, back, time, tunnel };
        let mut response = match cache {
            // Boxed, so that answers that are kept need no room for the way to others.
            None => {
                let mut response = Box::pin(upstream.fetch(head, body)).await?;
                // Labels are for caches.
                response.headers_mut().remove(WEFT_CACHE_TAGS);
                response
            }
            Some(cache) => {
                let apart = Apart {
                    scope: &upstream.chosen.to.scope,
                    identity: cache.wants_identity().then_some(self.worker.identity()),
                };
                match cache.look_up(head, notable, &body, apart) {
                    Looked::Answer(response, how) => {
                        upstream.call.note(|log| log.cache = how.result());
                        response
                    }
                    Looked::Stale(response, refresh) => {
                        upstream.call.note(|log| log.cache = cache::Answered::Stale.result());
                        upstream.refresh(refresh);
                        response
                    }
                    Looked::Go(plan) => {
                        upstream.call.note(|log| log.cache = plan.result());
                        let until = time.deadline.instant();
                        let mut asking = Asking { request: head, apart, until };
                        let (response, how) =
                            Box::pin(cache.go(plan, &mut asking, body, &mut upstream)).await?;
                        upstream.call.note(|log| log.cache = how.result());
                        response
                    }
                }
            }
        };
        if let Some(change) = change {
            change.answered(&port.caches, response.status(), response.headers());
        }
        let filters = &routed.filters().response;
        if !filters.is_empty() || calls.cors.is_some() || calls.deprecation.is_some() {
            cache::unfold(&mut response);
        }
        let headers = response.headers_mut();
        filters.apply(headers);
        passed.write(headers);
        dressing.apply(calls, token, call.served_by, headers);
        Ok(time.bound(response))
    }
}

/// A request with the rule that takes it.
#[derive(Clone, Copy)]
struct Routed<'a> {
    /// `None` if the port has no routes.
    rule: Option<(&'a Rule, &'a LiveRule)>,
    calls: &'a Calls,
    live: &'a LiveCalls,
    /// Which of the port's rules it is.
    index: Option<usize>,
    /// How much of the path the rule took.
    matched: usize,
}

impl<'a> Routed<'a> {
    /// By a port without routes.
    fn unrouted(port: &'a LivePort) -> Self {
        Self { rule: None, calls: &port.port().calls, live: &port.calls, index: None, matched: 0 }
    }

    /// By the rule of this index.
    fn by_rule(port: &'a LivePort, index: usize, matched: usize) -> Self {
        let (rule, resolved) = (port.rule(index), &port.rules[index]);
        Self {
            rule: Some((rule, resolved)),
            calls: &rule.calls,
            live: &resolved.calls,
            index: Some(index),
            matched,
        }
    }

    fn find(port: &'a LivePort, request: &Parts) -> Result<Self, Error> {
        let routes = &port.port().routes;
        if routes.is_empty() {
            return Ok(Self::unrouted(port));
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
        Ok(Self::by_rule(port, found.rule, found.matched_len))
    }

    fn filters(&self) -> &'a Filters {
        self.rule.map_or(&NO_FILTERS, |(rule, _)| &rule.filters)
    }

    /// The backend that a choice means.
    fn backend(&self, port: &'a LivePort, choice: Choice) -> (Option<&'a LiveBackend>, Option<&'a Backend>) {
        match (choice, self.rule) {
            (Choice::Shard(index), _) => {
                let shards = self.calls.sharding.as_ref().map_or(&[][..], |sharding| &sharding.shards);
                (self.live.shards.get(index), shards.get(index))
            }
            (Choice::Own(index), Some((Rule { action: Action::Forward(backends), .. }, resolved))) => {
                (resolved.backends.get(index), backends.list.get(index))
            }
            (Choice::Own(_), _) => (Some(&port.own), None),
        }
    }
}

/// The backend that takes a request.
#[derive(Clone, Copy)]
struct Chosen<'a> {
    to: &'a LiveBackend,
    /// `None` for the service itself.
    backend: Option<&'a Backend>,
    choice: Choice,
    /// Names it in session tokens.
    token: u64,
    /// For balancers that hash.
    key: Option<u64>,
    /// The endpoint that the request's session is on.
    preferred: Option<u64>,
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
        let preferred = session.map(|pinned| pinned.endpoint);
        let session = session.map(|pinned| pinned.backend);
        let choice =
            routed.live.split.choose(routed.calls, &from, session, |below| fastrand::u32(..below))?;
        let (to, backend) = routed.backend(port, choice);
        let of = || routed.rule.map_or_else(|| port.name().to_string(), |(rule, _)| rule.name.to_string());
        let to =
            to.ok_or_else(|| Error::new(Kind::InvalidBackend, format!("{} has no such backend", of())))?;
        if let Some(reason) = backend.and_then(|backend| backend.invalid.as_ref()) {
            return Err(Error::new(Kind::InvalidBackend, format!("{}: {reason}", of())));
        }
        let key = if to.cluster.wants_key() { to.cluster.key_hash(&from) } else { None };
        Ok(Chosen { to, backend, choice, key, preferred, token: routed.live.split.token(choice) })
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
        call.mark(&mut head.headers);
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
        Ok(time.bound(to.run(call, head, body).await?))
    }
}
