//! The inbound direction: a peer calls our application.

mod siblings;

use crate::{
    body::Body,
    cache::{
        self, Answered, Apart, Asking, Change, Looked, Origin, Refresh,
        siblings::{OfSibling, ToSibling, WEFT_CACHE_ASK},
    },
    context::Call,
    error::{Error, Kind},
    exchange::{Back, Handler, Nobody},
    http1,
    live::{Live, LiveAdmission},
    message::{self, WEFT_ATTEMPT, WEFT_CACHE_TAGS, WEFT_RETRIED},
    spare,
    telemetry::metrics::{Direction, Path, Series, SeriesKey, ServiceSeries},
    traffic::{
        chain::Joined,
        concurrency,
        deadline::{self, Deadline, Told},
        rate_limit::Passed,
    },
    upstream::Endpoint,
    worker::Worker,
};
use http::{HeaderValue, Method, Request, Response, Version, request::Parts};
use std::{net::IpAddr, rc::Rc, sync::Arc, time::Instant};
use tokio::time::timeout_at;
use weft_config::{
    identity::SpiffeId,
    snapshot::{Bounds, Decision, KeySource, Served},
};

/// Requests that came in over one connection of one peer for one served port.
#[derive(Clone)]
pub(crate) struct Inbound {
    worker: Rc<Worker>,
    peer: Option<SpiffeId>,
    served: Served,
    app: Rc<Endpoint>,
    series: Arc<Series>,
    service: Arc<ServiceSeries>,
    /// Where it is counted what requests waited for.
    path: Path,
    /// The peer's address, as keys of policy may ask.
    source: Rc<str>,
    /// Tells answers that are kept of this port from those of others.
    scope: Rc<str>,
}

impl Inbound {
    /// What every request of the connection shares.
    pub(crate) fn new(worker: Rc<Worker>, peer: Option<SpiffeId>, source: IpAddr, served: Served) -> Self {
        let series = worker.metrics().series(SeriesKey {
            direction: Direction::Inbound,
            service: served.service.to_string().into(),
            route: "".into(),
            backend: worker.shared.settings.workload.as_str().into(),
            mtls: peer.is_some(),
        });
        let app = worker.app(&served);
        let service = worker.metrics().service(&served.service.to_string());
        let path = worker.shard.path(&served.service.to_string());
        let scope = format!("in:{}:{}", served.service, served.port).into();
        Self { path, source: source.to_string().into(), scope, worker, peer, served, app, series, service }
    }

    /// One inbound request, top to bottom.
    async fn call(
        &self,
        live: &Rc<Live>,
        call: &mut Call,
        head: &mut Parts,
        body: Body,
        back: &dyn Back,
    ) -> Result<Response<Body>, Error> {
        let tunnel = message::prepare(head, call.notable, self.peer.is_some())?;
        self.authorize(live, &head.method, head.uri.path())?;
        let read = if self.peer.is_some() { deadline::read_from_sidecar } else { deadline::read };
        let told = read(&head.headers, call.notable, call.grpc, call.started());
        let is_retry = head.headers.contains_key(WEFT_ATTEMPT);
        let chains = &self.worker.shared.chains;
        let trace = &call.trace;
        call.joined = Some(chains.begin(
            trace.trace_id,
            trace.span_id,
            told.deadline,
            is_retry,
            &self.path,
            call.started(),
        ));
        let admission = live.admission(&self.worker, &self.served);
        // A sibling has counted what it asks.
        let passed = if OfSibling::is(head) { Passed::default() } else { self.limit(&admission, head)? };
        let cache = if tunnel { None } else { admission.cache.as_ref() };
        let change = match cache {
            Some(cache) => Change::of(head).filter(|_| !cache.is_question(head, &body)),
            None => None,
        };
        let notable = call.notable;
        let mut application =
            Application { inbound: self, live, admission: &admission, call, told, back, tunnel };
        let mut response = match cache {
            None => Box::pin(application.fetch(head, body)).await?,
            Some(cache) => {
                let identity = self.peer.as_ref().filter(|_| cache.wants_identity()).map(ToString::to_string);
                let apart = Apart { scope: &self.scope, identity: identity.as_deref() };
                match cache.look_up(head, notable, &body, apart) {
                    Looked::Answer(response, how) => {
                        application.call.note(|log| log.cache = how.result());
                        response
                    }
                    Looked::Stale(response, refresh) => {
                        application.call.note(|log| log.cache = Answered::Stale.result());
                        application.refresh(refresh);
                        response
                    }
                    Looked::Go(plan) => {
                        application.call.note(|log| log.cache = plan.result());
                        let mut asking = Asking { request: head, apart, until: told.deadline.instant() };
                        let (response, how) =
                            Box::pin(cache.go(plan, &mut asking, body, &mut application)).await?;
                        application.call.note(|log| log.cache = how.result());
                        response
                    }
                }
            }
        };
        // Labels are for callers' sidecars.
        if self.peer.is_none() && cache.is_some_and(|cache| cache.hides_labels()) {
            cache::unfold(&mut response);
            response.headers_mut().remove(WEFT_CACHE_TAGS);
        }
        if let (Some(change), Some(cache)) = (change, &admission.cache) {
            change.answered(std::slice::from_ref(cache), response.status(), response.headers());
        }
        passed.write(response.headers_mut());
        mark_if_retried(call, &mut response);
        Ok(response)
    }
}

/// The way to our application, and all that is known of a request on it.
struct Application<'a> {
    inbound: &'a Inbound,
    live: &'a Rc<Live>,
    admission: &'a Rc<LiveAdmission>,
    call: &'a mut Call,
    told: Told,
    back: &'a dyn Back,
    tunnel: bool,
}

impl Origin for Application<'_> {
    async fn fetch(&mut self, head: &mut Parts, body: Body) -> Result<Response<Body>, Error> {
        let Self { inbound, live, admission, told, back, tunnel, .. } = *self;
        let call = &mut *self.call;
        call.mark(&mut head.headers);
        call.permit = match &admission.concurrency {
            Some((policy, limiter)) => {
                let priority = concurrency::priority(policy, &head.method, head.uri.path(), &head.headers);
                Some(Box::pin(limiter.acquire(priority)).await?)
            }
            None => None,
        };
        if call.permit.is_some() {
            // The application is told what is left after the wait.
            told.pass_on(&mut head.headers, told.deadline, Instant::now());
        }
        let limits = &live.snapshot.mesh.limits;
        call.flight = Some(inbound.app.begin());
        call.attempts = 1;
        let attempt = crate::upstream::Attempt {
            connector: &inbound.worker.connector,
            limits,
            bounds: &Bounds::default(),
            queue: inbound.service.queue(Direction::Inbound),
            declared: inbound.served.protocol,
            caller_is_http2: head.version == Version::HTTP_2,
            tunnel,
            back,
            connecting: Default::default(),
        };
        let wire = inbound.app.wire(&attempt);
        call.note(|log| (log.endpoint, log.wire) = (Some(inbound.app.place.address), wire.as_str()));
        let begun = Instant::now();
        // How long a request may take is its caller's to say; the rest only bounds the wait.
        let until = told.deadline.earliest(Deadline::after(begun, limits.idle_timeout));
        let exchange = inbound.app.exchange(wire, head, body, &attempt);
        let outcome = match until.instant() {
            Some(until) => timeout_at(until.into(), exchange).await,
            None => Ok(exchange.await),
        };
        call.upstream_time = begun.elapsed();
        let response = match outcome {
            Ok(Ok(response)) => finish(response, tunnel),
            Ok(Err(failed)) => return Err(failed.error),
            Err(_) => return Err(inbound.timed_out(begun)),
        };
        if let Some(permit) = &mut call.permit {
            permit.answered(!response.status().is_server_error());
        }
        Ok(response)
    }

    fn sends_as_asked(&self) -> bool {
        true
    }

    async fn ask(&mut self, question: ToSibling<'_>) -> Option<Response<Body>> {
        self.ask_sibling(question).await
    }
}

impl Application<'_> {
    /// Has what was given stale fetched anew in the background, for nobody.
    fn refresh(&self, refresh: Box<Refresh>) {
        let (inbound, live, admission) = (self.inbound.clone(), self.live.clone(), self.admission.clone());
        tokio::task::spawn_local(async move {
            let mesh = &live.snapshot.mesh;
            let mut call = Call::begin(&inbound.worker, mesh, Direction::Inbound, refresh.request());
            call.nobodys();
            // A caller with all of the mesh's default patience.
            let deadline = Deadline::after(call.started(), mesh.limits.request_timeout);
            let told = Told::only(deadline);
            let mut application = Application {
                inbound: &inbound,
                live: &live,
                admission: &admission,
                call: &mut call,
                told,
                back: &Nobody,
                tunnel: false,
            };
            refresh.run(&mut application).await;
        });
    }
}

impl Inbound {
    fn timed_out(&self, begun: Instant) -> Error {
        let Served { service, port, .. } = &self.served;
        let waited = begun.elapsed().as_secs_f64();
        let detail = format!("the application behind {service}:{port} did not answer within {waited:.3} s");
        Error::after_send(Kind::Timeout, detail)
    }

    /// Limits that are counted where the service is served.
    fn limit(&self, admission: &LiveAdmission, head: &Parts) -> Result<Passed, Error> {
        if admission.rate_limits.is_empty() {
            return Ok(Passed::default());
        }
        let identity = self.peer.as_ref().map(ToString::to_string);
        let from = KeySource {
            headers: &head.headers,
            query: head.uri.query(),
            source: &self.source,
            identity: identity.as_deref(),
        };
        admission.rate_limits.admit(&head.method, head.uri.path(), &head.headers, &from, Instant::now())
    }

    /// Says whether this peer may make this call.
    fn authorize(&self, live: &Live, method: &Method, path: &str) -> Result<(), Error> {
        let Some(workload) = &live.snapshot.workload else { return Ok(()) };
        let domain = &live.snapshot.mesh.trust_domain;
        self.judge(workload.authorization.decide(self.peer.as_ref(), domain, method, path, self.served.port))
    }

    /// Says whether this peer may open an opaque connection: rules about methods and paths cannot allow it.
    pub(crate) fn authorize_connection(&self, live: &Live) -> Result<(), Error> {
        let Some(workload) = &live.snapshot.workload else { return Ok(()) };
        let domain = &live.snapshot.mesh.trust_domain;
        self.judge(workload.authorization.decide_connection(self.peer.as_ref(), domain, self.served.port))
    }

    fn judge(&self, decision: Decision) -> Result<(), Error> {
        let Decision::Deny(rule) = decision else { return Ok(()) };
        self.worker.shard.authorization_denied(&rule);
        let caller =
            self.peer.as_ref().map_or_else(|| "a caller without identity".into(), ToString::to_string);
        Err(Error::new(Kind::Forbidden, format!("{caller} may not call this: {rule}")))
    }

    /// The application behind this port.
    pub(crate) fn app(&self) -> &Rc<Endpoint> {
        &self.app
    }

    /// The served port.
    pub(crate) fn served(&self) -> &Served {
        &self.served
    }
}

impl Handler for Inbound {
    async fn handle(&self, request: Request<Body>, back: &dyn Back) -> Response<Body> {
        let live = self.worker.live();
        let (mut head, body) = request.into_parts();
        if head.headers.contains_key(WEFT_CACHE_ASK) {
            return Box::pin(self.asked(head, body, back)).await;
        }
        let mut call = Call::begin(&self.worker, &live.snapshot.mesh, Direction::Inbound, &head);
        call.series = Some(self.series.clone());
        call.note(|log| {
            log.service = self.served.service.to_string();
            log.peer = self.peer.clone();
        });
        let outcome = self.call(&live, &mut call, &mut head, body, back).await;
        spare::give_back(head.headers);
        call.answer(outcome)
    }

    fn refuse(&self, error: Error) -> Response<Body> {
        self.worker.shard.error(error.kind);
        crate::context::answer(&error, false)
    }
}

/// Tells the caller of a failed request that calls made for it were tried again already, or could not be: its own
/// attempts would only multiply them.
fn mark_if_retried(call: &Call, response: &mut Response<Body>) {
    let failed = response.status().is_server_error()
        || (call.grpc && message::grpc_status(response.headers()).is_some_and(|status| status != 0));
    if failed && call.joined.as_ref().is_some_and(Joined::gave_up) {
        response.headers_mut().insert(WEFT_RETRIED, HeaderValue::from_static("1"));
    }
}

/// The application's response as it goes back; it cannot speak in the sidecar's name.
fn finish(mut response: Response<Body>, tunnel: bool) -> Response<Body> {
    http1::strip_hop_by_hop(response.headers_mut(), tunnel);
    message::strip_own_of_answer(response.headers_mut());
    response
}
