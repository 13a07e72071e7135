//! One endpoint as one worker sees it: its load, its pooled connections, and one attempt over one of them.

use super::{
    balancer::Load,
    connect::Connector,
    guard::Standing,
    pool::{Grant, Open, Pool, Rules, patience},
    protocol::{Busyness, Wire, choose},
};
use crate::{
    body::Body,
    error::{Error, Kind},
    exchange::{Back, Failed},
    http1, http2,
    io::Io,
    telemetry::metrics::{Queue, Retry},
};
use http::{Response, request};
use std::{
    cell::Cell,
    rc::Rc,
    sync::Arc,
    time::{self, Duration},
};
use tokio::time::Instant;
use weft_config::{
    identity::{MeshProtocol, ServiceName},
    snapshot::{AppProtocol, Bounds, Endpoint as Place, Limits, hash64},
};

/// An endpoint and its connections. Outlives snapshots as long as some cluster names it.
pub(crate) struct Endpoint {
    /// Names it for consistent hashing and sessions: the same in every sidecar, for as long as the workload is there.
    pub(crate) id: u64,
    pub(crate) place: Place,
    pub(crate) load: Rc<Load>,
    /// What all workers know of it together.
    pub(crate) standing: Arc<Standing>,
    service: ServiceName,
    port: u16,
    busyness: Busyness,
    pool: Rc<Pool>,
}

/// Counts one request in flight for as long as it lives.
pub(crate) struct InFlight(Rc<Endpoint>);

impl InFlight {
    pub(crate) fn endpoint(&self) -> &Rc<Endpoint> {
        &self.0
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.load.end();
    }
}

/// What one attempt needs besides the request.
pub(crate) struct Attempt<'a> {
    pub(crate) connector: &'a Connector,
    pub(crate) limits: &'a Limits,
    /// What policy says about connections.
    pub(crate) bounds: &'a Bounds,
    /// Where requests wait that need a connection while there are enough.
    pub(crate) queue: &'a Queue,
    /// What the port declares.
    pub(crate) declared: AppProtocol,
    /// True if the caller speaks HTTP/2.
    pub(crate) caller_is_http2: bool,
    /// True for an upgrade or CONNECT.
    pub(crate) tunnel: bool,
    /// The way back to the caller, for interim responses.
    pub(crate) back: &'a dyn Back,
    /// How long it took to get a connection: that is no latency of the endpoint, or one slow handshake would keep calls
    /// away from it for a while.
    pub(crate) connecting: Cell<Duration>,
}

impl Attempt<'_> {
    fn connected(&self, began: Instant) {
        self.connecting.set(self.connecting.get() + began.elapsed());
    }
}

impl Endpoint {
    pub(crate) fn new(
        service: ServiceName,
        port: u16,
        place: Place,
        standing: Arc<Standing>,
        now: time::Instant,
    ) -> Self {
        Self {
            id: Self::id_of(&place),
            pool: Pool::new(place.address),
            place,
            load: Rc::new(Load::new(now)),
            standing,
            service,
            port,
            busyness: Busyness::default(),
        }
    }

    /// What names an endpoint, see [`Self::id`].
    pub(crate) fn id_of(place: &Place) -> u64 {
        hash64(format!("{}@{}", place.workload, place.address).as_bytes())
    }

    /// The same endpoint, of which policy now says something else: its weight, labels or zone.
    pub(crate) fn described(&self, place: Place) -> Self {
        Self {
            id: self.id,
            place,
            load: self.load.clone(),
            standing: self.standing.clone(),
            service: self.service.clone(),
            port: self.port,
            busyness: Busyness::default(),
            pool: self.pool.clone(),
        }
    }

    /// Takes its place among the requests in flight.
    pub(crate) fn begin(self: &Rc<Self>) -> InFlight {
        self.load.begin();
        InFlight(self.clone())
    }

    /// The wire for the next request, which counts as in flight already.
    pub(crate) fn wire(&self, attempt: &Attempt<'_>) -> Wire {
        let mesh = self.place.identity.is_some();
        let busy = mesh && self.busyness.arrive(self.load.in_flight().saturating_sub(1));
        choose(attempt.declared, attempt.caller_is_http2, mesh, attempt.tunnel, busy)
    }

    /// Sends one request over one connection and gives the response head.
    ///
    /// A pooled connection that the peer closed just as it was reused is no failure of the request: if nothing of it
    /// was sent, or it is idempotent, it goes out once more over a fresh connection (DESIGN pitfall 9).
    pub(crate) async fn exchange(
        &self,
        wire: Wire,
        head: &request::Parts,
        body: Body,
        attempt: &Attempt<'_>,
    ) -> Result<Response<Body>, Failed> {
        match wire {
            Wire::Http1 => self.exchange_http1(head, body, attempt).await,
            Wire::Http2 | Wire::Http1Over2 => self.exchange_http2(wire, head, body, attempt).await,
        }
    }

    async fn exchange_http1(
        &self,
        head: &request::Parts,
        mut body: Body,
        attempt: &Attempt<'_>,
    ) -> Result<Response<Body>, Failed> {
        self.pool.set_rules(Rules::new(attempt.bounds, attempt.limits));
        if let Some(client) = self.pool.pooled() {
            match self.over_used(client, head, body, attempt).await {
                Used::Done(outcome) => return outcome,
                Used::Closed { body: again, .. } => body = again,
            }
        }
        // Boxed, here and below: most requests find a connection, and should not carry room for the making of one.
        Box::pin(self.over_new(head, body, attempt)).await
    }

    /// An exchange over a new connection, or over one that comes free while there are enough.
    async fn over_new(
        &self,
        head: &request::Parts,
        mut body: Body,
        attempt: &Attempt<'_>,
    ) -> Result<Response<Body>, Failed> {
        let began = Instant::now();
        let grant = match self.pool.slot() {
            Some(slot) => Ok(Grant::Slot(slot)),
            None => self.pool.wait(attempt.bounds, attempt.limits, attempt.queue).await,
        };
        let slot = match grant {
            Ok(Grant::Slot(slot)) => slot,
            Ok(Grant::Client(client)) => match self.over_used(client, head, body, attempt).await {
                Used::Done(outcome) => return outcome,
                // Its place is free now, unless somebody was waiting for it.
                Used::Closed { body: again, error } => match self.pool.slot() {
                    Some(slot) => {
                        body = again;
                        slot
                    }
                    None => return Err(Failed { error, body: Some(Box::new(again)) }),
                },
            },
            Err(error) => return Err(Failed { error, body: Some(Box::new(body)) }),
        };
        match self.connect_http1(slot, attempt).await {
            Ok(client) => {
                attempt.connected(began);
                client.exchange(head, body, attempt.back, self.pool.clone()).await
            }
            Err(error) => Err(Failed { error, body: Some(Box::new(body)) }),
        }
    }

    /// An exchange over a connection that carried others before. That it was closed meanwhile is no failure.
    async fn over_used(
        &self,
        client: Box<http1::Client>,
        head: &request::Parts,
        body: Body,
        attempt: &Attempt<'_>,
    ) -> Used {
        match client.exchange(head, body, attempt.back, self.pool.clone()).await {
            Err(Failed { error, body: Some(again) })
                if error.kind == Kind::Reset && (!error.sent || head.method.is_idempotent()) =>
            {
                attempt.connector.shard.retry(Retry::IdleClose);
                Used::Closed { body: *again, error }
            }
            outcome => Used::Done(outcome),
        }
    }

    async fn connect_http1(&self, slot: Open, attempt: &Attempt<'_>) -> Result<Box<http1::Client>, Error> {
        let mut io = self.connect(Wire::Http1, attempt).await?;
        io.hold(slot);
        if !io.is_tls() {
            io.hold(attempt.connector.shard.upstream_connection(MeshProtocol::Http1));
        }
        let settings = http1::Settings::from(attempt.limits);
        Ok(Box::new(http1::Client::new(io, settings)))
    }

    async fn connect(&self, wire: Wire, attempt: &Attempt<'_>) -> Result<Io, Error> {
        let Attempt { connector, bounds, limits, .. } = attempt;
        connector.connect(&self.place, &self.service, self.port, wire.mesh(), bounds, limits).await
    }

    async fn exchange_http2(
        &self,
        wire: Wire,
        head: &request::Parts,
        mut body: Body,
        attempt: &Attempt<'_>,
    ) -> Result<Response<Body>, Failed> {
        self.pool.set_rules(Rules::new(attempt.bounds, attempt.limits));
        let mut fresh = false;
        loop {
            let client = match self.pool.multiplexed(wire) {
                Some(client) => client,
                None => {
                    let began = Instant::now();
                    match Box::pin(self.multiplexed(wire, &mut fresh, attempt)).await {
                        Ok(client) => {
                            attempt.connected(began);
                            client
                        }
                        Err(error) => return Err(Failed { error, body: Some(Box::new(body)) }),
                    }
                }
            };
            match client.exchange(head, body, attempt.back).await {
                Err(Failed { error, body: Some(again) }) if !error.sent && !fresh => {
                    attempt.connector.shard.retry(Retry::IdleClose);
                    body = *again;
                }
                outcome => return outcome,
            }
        }
    }

    /// Makes an HTTP/2 connection, or waits for a free stream if there are enough. `fresh` says if it was made now.
    async fn multiplexed(
        &self,
        wire: Wire,
        fresh: &mut bool,
        attempt: &Attempt<'_>,
    ) -> Result<Rc<http2::Client>, Error> {
        let began = Instant::now();
        loop {
            if self.pool.has_enough_multiplexed() {
                let patience = patience(attempt.bounds, attempt.limits);
                self.pool.wait_for_stream(attempt.bounds, attempt.queue, began, patience).await?;
            } else {
                let turn = self.pool.turn(wire);
                let _mine = turn.lock.lock().await;
                if let Some(client) = self.pool.multiplexed(wire) {
                    return Ok(client);
                }
                if let Some(error) = turn.failed_after(began) {
                    return Err(error);
                }
                if !self.pool.has_enough_multiplexed() {
                    let made = self.connect_http2(wire, attempt).await;
                    *fresh = made.is_ok();
                    return made.inspect_err(|error| turn.fail(error));
                }
            }
            if let Some(client) = self.pool.multiplexed(wire) {
                return Ok(client);
            }
        }
    }

    async fn connect_http2(&self, wire: Wire, attempt: &Attempt<'_>) -> Result<Rc<http2::Client>, Error> {
        let mut io = self.connect(wire, attempt).await?;
        if !io.is_tls() {
            io.hold(attempt.connector.shard.upstream_connection(MeshProtocol::Http2));
        }
        let mut settings = http2::Settings::from(attempt.limits);
        settings.http1_messages = wire == Wire::Http1Over2;
        let client = http2::Client::connect(io, Rc::new(settings)).await?;
        self.pool.share(wire, client.clone());
        Ok(client)
    }

    /// Closes what has been idle for too long or is too old. Called about once a second.
    pub(crate) fn sweep(&self, bounds: &Bounds, limits: &Limits) {
        self.pool.sweep(Rules::new(bounds, limits));
    }

    /// Connections at rest, connections in use, HTTP/2 connections: for `/clusters`.
    pub(crate) fn connections(&self) -> (usize, usize, usize) {
        self.pool.connections()
    }
}

/// How an exchange over a used connection ended.
enum Used {
    Done(Result<Response<Body>, Failed>),
    /// Not at all: the connection had been closed. The request can be sent again.
    Closed {
        body: Body,
        error: Error,
    },
}
