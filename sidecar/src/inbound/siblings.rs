//! What the sidecars of our service ask each other: about services that we all call, and about our own.

use super::{Application, Inbound};
use crate::{
    body::Body,
    cache::siblings::{Ask, OfSibling, ToSibling, WEFT_CACHE_ASK},
    context::Call,
    error::{Error, Kind},
    exchange::{Back, Handler},
    outbound::{Outbound, Target},
    siblings::{Question, is_sibling},
    telemetry::metrics::{Direction, SiblingServed},
};
use http::{Response, StatusCode, request::Parts};
use std::{
    future::{Future, poll_fn},
    pin::pin,
    task::Poll,
};

impl Application<'_> {
    /// Asks whoever of us the key belongs to.
    pub(super) async fn ask_sibling(&mut self, to: ToSibling<'_>) -> Option<Response<Body>> {
        let Inbound { worker, peer, served, .. } = self.inbound;
        let ask = Ask::Inbound { caller: peer.clone() };
        let until = self.told.deadline;
        let question = Question { to, ask: &ask, until, back: self.back, served: Some(served) };
        let call = &mut *self.call;
        worker.siblings.ask(worker, self.live, question, |headers| call.mark(headers)).await
    }
}

impl Inbound {
    /// Answers a request that says it comes from a sibling. Nothing of that kind ever reaches the application from
    /// anybody else.
    pub(super) async fn asked(&self, mut head: Parts, body: Body, back: &dyn Back) -> Response<Body> {
        let metrics = self.worker.metrics();
        if !is_sibling(&self.worker, self.peer.as_ref()) {
            metrics.sibling_served(SiblingServed::Stranger);
            let peer = self.peer.as_ref().map_or_else(|| "no identity".into(), ToString::to_string);
            tracing::warn!(%peer, source = %self.source, "refused a question that is for siblings only");
            return self.refuse(Error::new(
                Kind::Forbidden,
                format!("only sidecars of this service may say {WEFT_CACHE_ASK}"),
            ));
        }
        let ask = head.headers.remove(WEFT_CACHE_ASK).as_ref().and_then(Ask::read);
        let Some(ask) = ask else {
            metrics.sibling_served(SiblingServed::Unknown);
            return self
                .refuse(Error::new(Kind::Misdirected, "this question of a sibling is not understood"));
        };
        head.extensions.insert(OfSibling);
        let mut work = pin!(self.answer_sibling(ask, head, body, back));
        // What is kept is here at once. Anything else takes as long as the origin: the sibling is told to wait.
        let response = match poll_fn(|cx| Poll::Ready(work.as_mut().poll(cx))).await {
            Poll::Ready(response) => response,
            Poll::Pending => {
                let mut sign = Response::new(());
                *sign.status_mut() = StatusCode::PROCESSING;
                back.interim(sign);
                work.await
            }
        };
        let is_unknown = response.status() == StatusCode::MISDIRECTED_REQUEST;
        metrics.sibling_served(if is_unknown { SiblingServed::Unknown } else { SiblingServed::Answered });
        response
    }

    async fn answer_sibling(&self, ask: Ask, mut head: Parts, body: Body, back: &dyn Back) -> Response<Body> {
        let worker = &self.worker;
        match ask {
            Ask::Outbound { service, port, scope } => {
                let outbound = Outbound { worker: worker.clone(), target: Target::Service { service, port } };
                outbound.answer_sibling(scope, head, body, back).await
            }
            Ask::Inbound { caller } => {
                // The sibling has let its caller in. So do we, if our policy says the same.
                let inbound = Self { peer: caller, ..self.clone() };
                let live = worker.live();
                let mut call = Call::begin(worker, &live.snapshot.mesh, Direction::Inbound, &head);
                call.nobodys();
                let outcome = inbound.call(&live, &mut call, &mut head, body, back).await;
                call.answer(outcome)
            }
        }
    }
}
