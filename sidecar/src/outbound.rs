//! The outbound direction: our application calls a service.

mod attempts;
mod destination;
mod tunnel;

pub(crate) use tunnel::Tunnel;

use crate::{
    body::Body,
    context::Call,
    error::{Error, Kind},
    exchange::{Back, Handler},
    live::{Live, LivePort},
    message, redirect,
    telemetry::metrics::Direction,
    upstream::Cluster,
    worker::Worker,
};
use attempts::Attempts;
use destination::Destination;
use http::{Request, Response, request::Parts};
use std::rc::Rc;
use weft_config::{
    identity::ServiceName,
    matching::RequestView,
    snapshot::{Action, Calls, Limits},
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
        let tunnel = message::prepare(head, false)?;
        message::ensure_host(head);
        let limits = &live.snapshot.mesh.limits;
        let port = match self.known(live, head) {
            Some(port) => port,
            None => match Box::pin(self.find(live, head)).await? {
                Destination::Service(port) => port,
                Destination::External(cluster) => {
                    return Box::pin(self.outside(call, limits, cluster, tunnel, head, body, back)).await;
                }
            },
        };
        call.series = Some(port.unrouted.clone());
        call.note(|log| log.service = port.name().to_string());
        port.mark_used();

        let Some((rule_index, matched)) = route(&port, head)? else {
            let calls = &port.port().calls;
            let to = Attempts {
                worker: &self.worker,
                limits,
                calls,
                cluster: &port.own.cluster,
                backend: Some(&port.own),
                tunnel,
                back,
            };
            return to.run(call, head, body).await;
        };
        let rule = port.rule(rule_index);
        let resolved = &port.rules[rule_index];
        call.series = Some(resolved.series.clone());
        call.note(|log| log.route = rule.name.to_string());

        let backends = match &rule.action {
            Action::Redirect(to) => return Ok(redirect::answer(to, head, matched, rule)),
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
        message::apply(&rule.filters, matched, head)?;
        message::apply(&backend.filters, matched, head)?;
        let to = &resolved.backends[picked];
        let to = Attempts {
            worker: &self.worker,
            limits,
            calls: &rule.calls,
            cluster: &to.cluster,
            backend: Some(to),
            tunnel,
            back,
        };
        let mut response = to.run(call, head, body).await?;
        backend.filters.response.apply(response.headers_mut());
        rule.filters.response.apply(response.headers_mut());
        Ok(response)
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
        tunnel: bool,
        head: &mut Parts,
        body: Body,
        back: &dyn Back,
    ) -> Result<Response<Body>, Error> {
        let calls = Calls::default();
        let to = Attempts {
            worker: &self.worker,
            limits,
            calls: &calls,
            cluster: &cluster,
            backend: None,
            tunnel,
            back,
        };
        to.run(call, head, body).await
    }
}

/// The rule that takes the request, with how much of the path it matched; `None` if the port has no routes.
fn route(port: &LivePort, request: &Parts) -> Result<Option<(usize, usize)>, Error> {
    let routes = &port.port().routes;
    if routes.is_empty() {
        return Ok(None);
    }
    let view = RequestView {
        method: &request.method,
        path: request.uri.path(),
        query: request.uri.query(),
        headers: &request.headers,
    };
    match routes.find(&view) {
        Some(found) => Ok(Some((found.rule, found.matched_len))),
        None => Err(Error::new(
            Kind::NoRoute,
            format!("no route of {}:{} takes this request; try `weft routes`", port.name(), port.port().port),
        )),
    }
}
