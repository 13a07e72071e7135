//! What the sidecars of our service ask each other about services that we all call.

use super::{Chosen, Destination, Outbound, Routed, Time, Upstream};
use crate::{
    body::Body,
    cache::{
        Apart, Asking, Looked,
        siblings::{Ask, ToSibling},
    },
    context::Call,
    error::{Error, Kind},
    exchange::Back,
    live::{Live, LivePort},
    message,
    siblings::Question,
    telemetry::metrics::Direction,
    traffic::{
        deadline::{Deadline, Told},
        split::Choice,
    },
};
use http::{Method, Response, request::Parts};
use http_body::Body as _;
use std::rc::Rc;
use weft_config::snapshot::hash64;

impl Upstream<'_> {
    /// Asks whoever of us the key belongs to.
    pub(super) async fn ask_sibling(&mut self, to: ToSibling<'_>) -> Option<Response<Body>> {
        let worker = &self.outbound.worker;
        let ask = Ask::Outbound {
            service: self.port.name().clone(),
            port: self.port.port().port,
            scope: digest(&self.chosen.to.scope),
        };
        let question = Question { to, ask: &ask, until: self.time.deadline, back: self.back, served: None };
        let call = &mut *self.call;
        worker.siblings.ask(worker, self.live, question, |headers| call.mark(headers)).await
    }
}

impl Outbound {
    /// Answers a sibling as if our application had asked, but for what its own sidecar does: it has counted the call
    /// against limits, and changes the answer as policy says.
    pub(crate) async fn answer_sibling(
        &self,
        scope: u64,
        mut head: Parts,
        body: Body,
        back: &dyn Back,
    ) -> Response<Body> {
        let live = self.worker.live();
        let mut call = Call::begin(&self.worker, &live.snapshot.mesh, Direction::Outbound, &head);
        call.nobodys();
        let outcome = self.for_sibling(scope, &live, &mut call, &mut head, body, back).await;
        call.answer(outcome)
    }

    async fn for_sibling(
        &self,
        scope: u64,
        live: &Rc<Live>,
        call: &mut Call,
        head: &mut Parts,
        body: Body,
        back: &dyn Back,
    ) -> Result<Response<Body>, Error> {
        let tunnel = message::prepare(head, call.notable, true)?;
        message::ensure_host(head);
        if tunnel || !matches!(head.method, Method::GET | Method::HEAD) || !body.is_end_stream() {
            return Err(Error::new(
                Kind::BadRequest,
                "a sibling can only be asked what a GET without a body asks",
            ));
        }
        let port = match self.known(live, head) {
            Some(port) => port,
            None => match Box::pin(self.find(live, head)).await? {
                Destination::Service(port) => port,
                Destination::External(_) => return Err(unknown(None)),
            },
        };
        port.mark_used();
        let routed = Routed::find(&port, head)?;
        let Some(cache) = routed.live.cache.as_ref() else { return Err(unknown(Some(&port))) };
        let chosen = self.with_scope(&routed, &port, scope, head).ok_or_else(|| unknown(Some(&port)))?;
        let limits = &live.snapshot.mesh.limits;
        let time = Time::of(call, Told::only(Deadline::NONE), &routed.calls.timeouts, limits);
        let apart = Apart {
            scope: &chosen.to.scope,
            identity: cache.wants_identity().then_some(self.worker.identity()),
        };
        let notable = call.notable;
        let mut upstream =
            Upstream { outbound: self, live, port: &port, routed, chosen, call, back, time, tunnel };
        let response = match cache.look_up(head, notable, &body, apart) {
            Looked::Answer(response, _) => response,
            Looked::Stale(response, refresh) => {
                upstream.refresh(refresh);
                response
            }
            Looked::Go(plan) => {
                let mut asking = Asking { request: head, apart, until: time.deadline.instant() };
                Box::pin(cache.go(plan, &mut asking, body, &mut upstream)).await?.0
            }
        };
        Ok(time.bound(response))
    }

    /// The backend whose answers are kept like those that a sibling asks for.
    fn with_scope<'a>(
        &self,
        routed: &Routed<'a>,
        port: &'a LivePort,
        scope: u64,
        head: &Parts,
    ) -> Option<Chosen<'a>> {
        let own = routed.rule.map_or(1, |(_, rule)| rule.backends.len());
        let choices = (0..own).map(Choice::Own).chain((0..routed.live.shards.len()).map(Choice::Shard));
        choices.into_iter().find_map(|choice| {
            let (to, backend) = routed.backend(port, choice);
            let to = to.filter(|to| digest(&to.scope) == scope)?;
            if backend.is_some_and(|backend| backend.invalid.is_some()) {
                return None;
            }
            let from = self.worker.key_source(&head.headers, head.uri.query());
            let key = if to.cluster.wants_key() { to.cluster.key_hash(&from) } else { None };
            Some(Chosen { to, backend, choice, token: routed.live.split.token(choice), key, preferred: None })
        })
    }
}

fn digest(scope: &str) -> u64 {
    hash64(scope.as_bytes())
}

/// The sibling has another policy than we have, or has it earlier.
fn unknown(port: Option<&LivePort>) -> Error {
    let of = port.map_or_else(String::new, |port| format!(" of {}:{}", port.name(), port.port().port));
    Error::new(Kind::Misdirected, format!("no answers{of} are kept here as the sibling keeps them"))
}
