//! Sends a request on to the backend that takes it: what the response cache goes to when it has no answer.

use super::{Attempts, Chosen, Outbound, Routed, Target, Time};
use crate::{
    body::Body,
    cache::{self, Refresh, siblings::ToSibling},
    context::Call,
    error::Error,
    exchange::{Back, Nobody},
    live::{Live, LivePort},
    message,
    telemetry::metrics::Direction,
    traffic::{
        deadline::{Deadline, Told},
        split::Choice,
    },
};
use http::{Response, request::Parts};
use std::{rc::Rc, time::Instant};

/// Where a request goes, and all that is known of it on its way.
pub(super) struct Upstream<'a> {
    pub(super) outbound: &'a Outbound,
    pub(super) live: &'a Rc<Live>,
    pub(super) port: &'a Rc<LivePort>,
    pub(super) routed: Routed<'a>,
    pub(super) chosen: Chosen<'a>,
    pub(super) call: &'a mut Call,
    pub(super) back: &'a dyn Back,
    pub(super) time: Time,
    pub(super) tunnel: bool,
}

impl cache::Origin for Upstream<'_> {
    async fn fetch(&mut self, head: &mut Parts, body: Body) -> Result<Response<Body>, Error> {
        let Self { routed, chosen, .. } = *self;
        self.call.mark(&mut head.headers);
        message::apply(routed.filters(), routed.matched, head)?;
        message::apply(chosen.filters(), routed.matched, head)?;
        let body = self.outbound.mirror(self.live, &routed, &chosen, head, body);
        let attempts = Attempts {
            worker: &self.outbound.worker,
            limits: &self.live.snapshot.mesh.limits,
            calls: routed.calls,
            cluster: &chosen.to.cluster,
            traffic: chosen.to.cluster.traffic(),
            backend: Some(chosen.to),
            tunnel: self.tunnel,
            back: self.back,
            time: self.time,
            key: chosen.key,
            preferred: chosen.preferred,
        };
        let chain = self.call.chain.as_ref();
        self.call.span = chain.map(|chain| chain.call(&chosen.to.path, Instant::now()));
        let mut response = attempts.run(self.call, head, body).await?;
        chosen.filters().response.apply(response.headers_mut());
        Ok(response)
    }

    fn sends_as_asked(&self) -> bool {
        self.routed.filters().is_empty() && self.chosen.filters().is_empty()
    }

    async fn ask(&mut self, question: ToSibling<'_>) -> Option<Response<Body>> {
        self.ask_sibling(question).await
    }
}

/// The same way for another request.
struct Way {
    rule: Option<usize>,
    matched: usize,
    choice: Choice,
    key: Option<u64>,
    token: u64,
}

impl Upstream<'_> {
    /// Has what was given stale fetched anew in the background: on the same way, by the same policy, for nobody.
    pub(super) fn refresh(&self, refresh: Box<Refresh>) {
        let Chosen { choice, key, token, .. } = self.chosen;
        let way = Way { rule: self.routed.index, matched: self.routed.matched, choice, key, token };
        let (worker, live, port) = (self.outbound.worker.clone(), self.live.clone(), self.port.clone());
        tokio::task::spawn_local(async move {
            let outbound = Outbound { worker, target: Target::Named };
            outbound.fetch_again(&live, &port, &way, *refresh).await;
        });
    }
}

impl Outbound {
    async fn fetch_again(&self, live: &Rc<Live>, port: &Rc<LivePort>, way: &Way, refresh: Refresh) {
        let routed = match way.rule {
            Some(index) => Routed::by_rule(port, index, way.matched),
            None => Routed::unrouted(port),
        };
        let (Some(to), backend) = routed.backend(port, way.choice) else { return };
        let (choice, key, token) = (way.choice, way.key, way.token);
        let chosen = Chosen { to, backend, choice, token, key, preferred: None };
        let mesh = &live.snapshot.mesh;
        let mut call = Call::begin(&self.worker, mesh, Direction::Outbound, refresh.request());
        call.nobodys();
        let limits = &live.snapshot.mesh.limits;
        let time = Time::of(&call, Told::only(Deadline::NONE), &routed.calls.timeouts, limits);
        let mut upstream = Upstream {
            outbound: self,
            live,
            port,
            routed,
            chosen,
            call: &mut call,
            back: &Nobody,
            time,
            tunnel: false,
        };
        refresh.run(&mut upstream).await;
    }
}
