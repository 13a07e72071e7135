//! Asking a sibling: the sidecar of our own service that a key belongs to, over the mesh, within one bounded wait.
//!
//! A question is the caller's own request with a field that says what is wanted. It goes to the sibling's inbound
//! listener, which takes it from its own kind only. The head of the answer has to be there at once, or a sign (102) that
//! the sibling is at work: then it is waited for as long as one request waits for another's fetch. Whatever goes wrong,
//! the request goes on to the origin, and a sibling that failed is left out for a while.

mod group;

use crate::{
    body::Body,
    cache::siblings::{Ask, Asked, OfSibling, ToSibling, WEFT_CACHE_ASK},
    error::Kind,
    exchange::{Back, Failed},
    http1,
    live::Live,
    message::{self, WEFT_ERROR},
    telemetry::metrics::{Metrics, Queue, SiblingAsked},
    traffic::deadline::Deadline,
    upstream::Attempt,
    worker::Worker,
};
use group::{Group, Sibling};
use http::{HeaderMap, HeaderValue, Response, StatusCode, Version, header, request::Parts};
use http_body::Body as _;
use http_body_util::BodyExt;
use std::{
    cell::{Cell, RefCell},
    future::{Future, poll_fn},
    pin::{Pin, pin},
    rc::Rc,
    task::Poll,
    time::Duration,
};
use tokio::time::{Instant, Sleep, sleep_until, timeout, timeout_at};
use weft_config::{
    identity::{ServiceName, SpiffeId},
    snapshot::{AppProtocol, Bounds, Served, hash64},
};

/// An answer of at most this size is there as a whole before it is passed on: then a sibling that dies in the midst of
/// it costs nobody an answer.
const WHOLE: u64 = 64 * 1024;
/// After so long the control plane is asked again for a service of our own that it did not tell about.
const SEEK_AGAIN: Duration = Duration::from_secs(5);
/// How long an answer is waited for where requests do not wait for each other's fetches.
const WAIT: Duration = Duration::from_secs(5);

/// One worker's siblings.
#[derive(Default)]
pub(crate) struct Siblings {
    /// By the service that they serve together: those of our workload, mostly one.
    groups: RefCell<Vec<Rc<Group>>>,
    /// When it was last looked for one in vain.
    sought: Cell<Option<Instant>>,
    /// Whether it was said that there are none.
    lonely: Cell<bool>,
    queue: Queue,
}

/// A question, and what is known of who asks.
pub(crate) struct Question<'a> {
    pub(crate) to: ToSibling<'a>,
    pub(crate) ask: &'a Ask,
    /// When the caller's time is up.
    pub(crate) until: Deadline,
    /// Where interim answers of the origin go.
    pub(crate) back: &'a dyn Back,
    /// Inbound: the port that is served.
    pub(crate) served: Option<&'a Served>,
}

impl Siblings {
    /// Asks whoever the key belongs to. `None` if that is us, if there is nobody, or if no answer came. `mark` writes into
    /// the question what goes on with every request.
    pub(crate) async fn ask(
        &self,
        worker: &Worker,
        live: &Live,
        question: Question<'_>,
        mark: impl FnOnce(&mut HeaderMap),
    ) -> Option<Response<Body>> {
        let began = Instant::now();
        let group = match self.known(worker, live, question.served) {
            Some(group) => group,
            None => Box::pin(self.find(worker, live, &question)).await?,
        };
        let metrics = worker.metrics();
        let choice = group.choose(hash64(question.to.key), began.into());
        if choice.left_out {
            metrics.sibling_asked(SiblingAsked::LeftOut);
        }
        let sibling = choice.sibling?;
        let mut head = question.head()?;
        mark(&mut head.headers);
        let asked = sibling.trust.borrow_mut().asked(began.into());
        let limits = &live.snapshot.mesh.limits;
        let until = began + question.to.wait.unwrap_or(WAIT);
        let until = question.until.instant().map_or(until, |at| until.min(at.into()));
        let heard = Heard { back: question.back, working: Cell::new(false) };
        let attempt = Attempt {
            connector: &worker.connector,
            limits,
            bounds: &Bounds::default(),
            queue: &self.queue,
            declared: AppProtocol::Auto,
            caller_is_http2: head.version == Version::HTTP_2,
            tunnel: false,
            back: &heard,
            connecting: Default::default(),
        };
        let flight = sibling.endpoint.begin();
        let wire = sibling.endpoint.wire(&attempt);
        let exchange = sibling.endpoint.exchange(wire, &head, Body::Empty, &attempt);
        let outcome = wait(exchange, &heard, began + question.to.patience, until).await;
        let outcome = match outcome {
            Outcome::Answered(response) => take(response, until).await,
            other => other,
        };
        drop(flight);
        conclude(outcome, &sibling, asked, metrics)
    }

    /// Our siblings, if the snapshot has them.
    fn known(&self, worker: &Worker, live: &Live, served: Option<&Served>) -> Option<Rc<Group>> {
        let (service, number) = self.own(live, served)?;
        let port = live.snapshot.service(service)?.port(number)?;
        let mut groups = self.groups.borrow_mut();
        let at = groups.iter().position(|group| group.is(service, number));
        if let Some(at) = at
            && groups[at].is_of(&port.endpoints)
        {
            groups[at].mark_used();
            return Some(groups[at].clone());
        }
        let before = at.map(|at| groups.swap_remove(at));
        let used = worker.shared.policy.get().and_then(|policy| policy.usage(service));
        let own = (own_identity(worker), worker.shared.settings.workload.as_str());
        let group = Rc::new(Group::new(service, number, &port.endpoints, own, before.as_deref(), used));
        groups.push(group.clone());
        Some(group)
    }

    /// The service whose instances we are: the one that is served, or the first that our workload serves.
    fn own<'a>(&self, live: &'a Live, served: Option<&'a Served>) -> Option<(&'a ServiceName, u16)> {
        let serves = || live.snapshot.workload.as_ref().and_then(|workload| workload.serves.first());
        let own = served.or_else(serves);
        if own.is_none() && live.snapshot.workload.is_some() && !self.lonely.replace(true) {
            tracing::warn!(
                "a CachePolicy has `tiers.siblings`, but this workload serves no service: it has no siblings to ask"
            );
        }
        own.map(|served| (&served.service, served.port))
    }

    /// Asks the control plane for our own service: nobody may have called it here before.
    async fn find(&self, worker: &Worker, live: &Live, question: &Question<'_>) -> Option<Rc<Group>> {
        let (service, _) = self.own(live, question.served)?;
        let now = Instant::now();
        if self.sought.get().is_some_and(|at| now < at + SEEK_AGAIN) {
            return None;
        }
        let live = timeout(question.to.patience, worker.ask_for(service.clone())).await;
        let found =
            live.ok().and_then(Result::ok).and_then(|live| self.known(worker, &live, question.served));
        if found.is_none() {
            self.sought.set(Some(now));
        }
        found
    }

    /// Closes what has been idle for too long. Called about once a second.
    pub(crate) fn sweep(&self, live: &Live) {
        let serves = live.snapshot.workload.as_ref().map_or(&[][..], |workload| &workload.serves);
        let mut groups = self.groups.borrow_mut();
        groups.retain(|group| serves.iter().any(|served| group.is(&served.service, served.port)));
        groups.iter().for_each(|group| group.sweep(&live.snapshot.mesh.limits));
    }
}

impl Question<'_> {
    /// The request as it goes to a sibling.
    fn head(&self) -> Option<Parts> {
        let mut head = self.to.request.clone();
        message::strip_own(&mut head.headers);
        head.headers.insert(WEFT_CACHE_ASK, self.ask.value()?);
        if self.to.anew {
            head.headers.append(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        }
        Some(head)
    }
}

/// Who we are to those whom we ask, and who they have to be.
fn own_identity(worker: &Worker) -> SpiffeId {
    let settings = &worker.shared.settings;
    SpiffeId {
        trust_domain: worker.shared.tls.trust_domain().clone(),
        namespace: settings.namespace.as_str().into(),
        service_account: settings.service_account.as_str().into(),
    }
}

/// Whether a peer is of our own kind: the same service account of the same namespace and trust domain.
pub(crate) fn is_sibling(worker: &Worker, peer: Option<&SpiffeId>) -> bool {
    peer.is_some_and(|peer| *peer == own_identity(worker))
}

/// What is heard of a sibling before its answer. That it is at work is for us, the rest is for the caller.
struct Heard<'a> {
    back: &'a dyn Back,
    working: Cell<bool>,
}

impl Back for Heard<'_> {
    fn interim(&self, head: Response<()>) {
        self.working.set(true);
        if head.status() != StatusCode::PROCESSING {
            self.back.interim(head);
        }
    }
}

/// How a question ended.
enum Outcome {
    Answered(Response<Body>),
    Failed,
    /// No sign of it in time.
    Silent,
    /// At work for too long.
    Slow,
    /// It does not answer us.
    Refused,
    /// It does not know what we mean.
    Unknown,
    /// It gave an error of its own.
    Error,
}

/// Waits for the head of an answer, or for a sign that one is under way and then for the answer.
async fn wait(
    exchange: impl Future<Output = Result<Response<Body>, Failed>>,
    heard: &Heard<'_>,
    sign_by: Instant,
    until: Instant,
) -> Outcome {
    let mut exchange = pin!(exchange);
    let mut sleep: Pin<&mut Sleep> = pin!(sleep_until(sign_by.min(until)));
    let mut working = false;
    poll_fn(|cx| {
        if let Poll::Ready(outcome) = exchange.as_mut().poll(cx) {
            return Poll::Ready(outcome.map_or(Outcome::Failed, judged));
        }
        if !working && heard.working.get() {
            working = true;
            sleep.as_mut().reset(until);
        }
        sleep.as_mut().poll(cx).map(|()| if working { Outcome::Slow } else { Outcome::Silent })
    })
    .await
}

/// What an answer is. Errors that sidecars made are nobody's answer.
fn judged(response: Response<Body>) -> Outcome {
    let Some(kind) = response.headers().get(WEFT_ERROR) else { return Outcome::Answered(response) };
    match kind.to_str().ok().and_then(Kind::named) {
        Some(Kind::Forbidden) => Outcome::Refused,
        Some(Kind::Misdirected) => Outcome::Unknown,
        Some(Kind::Draining | Kind::Overloaded) => Outcome::Failed,
        _ => Outcome::Error,
    }
}

/// Makes an answer what the origin would have given; a small one is waited for to its end.
async fn take(mut response: Response<Body>, until: Instant) -> Outcome {
    let headers = response.headers_mut();
    http1::strip_hop_by_hop(headers, false);
    // What an application says to caches like ours is for us as well.
    message::strip_own_of_answer(headers);
    response.extensions_mut().insert(OfSibling);
    let is_small = response.body().size_hint().upper().is_some_and(|bytes| bytes <= WHOLE);
    if !is_small || matches!(response.body(), Body::Empty | Body::Full(_)) {
        return Outcome::Answered(response);
    }
    let (head, body) = response.into_parts();
    match timeout_at(until, whole(body)).await {
        Ok(Some(body)) => Outcome::Answered(Response::from_parts(head, body)),
        Ok(None) => Outcome::Failed,
        Err(_) => Outcome::Slow,
    }
}

/// All of a body; `None` if it broke off.
async fn whole(body: Body) -> Option<Body> {
    let whole = body.collect().await.ok()?;
    if whole.trailers().is_some() {
        return Some(Body::Boxed(Box::pin(whole.map_err(|never| match never {}))));
    }
    Some(Body::full(whole.to_bytes()))
}

/// What follows for the sibling, and what the caller gets.
fn conclude(outcome: Outcome, sibling: &Sibling, asked: Asked, metrics: &Metrics) -> Option<Response<Body>> {
    let (response, result) = match outcome {
        Outcome::Answered(response) => (Some(response), SiblingAsked::Answered),
        Outcome::Failed => (None, SiblingAsked::Failed),
        Outcome::Silent => (None, SiblingAsked::Timeout),
        Outcome::Slow => (None, SiblingAsked::Slow),
        Outcome::Refused => (None, SiblingAsked::Refused),
        Outcome::Unknown => (None, SiblingAsked::Unknown),
        Outcome::Error => (None, SiblingAsked::Error),
    };
    metrics.sibling_asked(result);
    let mut trust = sibling.trust.borrow_mut();
    match result {
        SiblingAsked::Failed | SiblingAsked::Timeout | SiblingAsked::Refused => {
            trust.failed(asked, Instant::now().into());
            let address = sibling.endpoint.place.address;
            tracing::debug!(%address, ?result, "a sibling is left out for a while");
        }
        // It is there, whatever it says.
        _ => trust.answered(),
    }
    response
}

#[cfg(test)]
mod tests;
