//! One endpoint as one worker sees it: its load, its pooled connections, and one attempt over one of them.

use super::{
    balancer::Load,
    connect::Connector,
    guard::Standing,
    protocol::{Busyness, Wire, choose},
};
use crate::{
    body::Body,
    error::{Error, Kind},
    exchange::{Back, Failed},
    http1, http2,
    telemetry::metrics::Retry,
};
use http::{Response, request};
use std::{
    cell::{Cell, RefCell},
    rc::{Rc, Weak},
    sync::Arc,
    time::{Duration, Instant},
};
use weft_config::{
    identity::{MeshProtocol, ServiceName},
    snapshot::{AppProtocol, Endpoint as Place, Limits, hash64},
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

/// The connections to one endpoint.
struct Pool {
    /// HTTP/1 connections at rest, the most recently used last: the oldest fall idle and are closed.
    idle: RefCell<Vec<(Instant, Box<http1::Client>)>>,
    /// HTTP/1 connections in all, at rest or in use.
    http1_open: Cell<usize>,
    /// HTTP/2 connections by wire.
    http2: RefCell<Vec<(Wire, Rc<http2::Client>)>>,
    /// One connect at a time per wire: others wait for its outcome instead of connecting too.
    connecting: [tokio::sync::Mutex<()>; 2],
    idle_limit: Cell<usize>,
}

impl http1::Recycle for Pool {
    fn put_back(&self, client: Box<http1::Client>) {
        let mut idle = self.idle.borrow_mut();
        if idle.len() < self.idle_limit.get() {
            idle.push((Instant::now(), client));
        }
    }
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

/// Counts one open HTTP/1 connection for as long as it lives; travels inside the connection.
struct Open(Weak<Pool>);

impl Drop for Open {
    fn drop(&mut self) {
        if let Some(pool) = self.0.upgrade() {
            pool.http1_open.set(pool.http1_open.get().saturating_sub(1));
        }
    }
}

/// What one attempt needs besides the request.
pub(crate) struct Attempt<'a> {
    pub(crate) connector: &'a Connector,
    pub(crate) limits: &'a Limits,
    /// What the port declares.
    pub(crate) declared: AppProtocol,
    /// True if the caller speaks HTTP/2.
    pub(crate) caller_is_http2: bool,
    /// True for an upgrade or CONNECT.
    pub(crate) tunnel: bool,
    /// The way back to the caller, for interim responses.
    pub(crate) back: &'a dyn Back,
}

impl Endpoint {
    pub(crate) fn new(
        service: ServiceName,
        port: u16,
        place: Place,
        standing: Arc<Standing>,
        now: Instant,
    ) -> Self {
        Self {
            id: hash64(format!("{}@{}", place.workload, place.address).as_bytes()),
            place,
            load: Rc::new(Load::new(now)),
            standing,
            service,
            port,
            busyness: Busyness::default(),
            pool: Rc::new(Pool {
                idle: RefCell::default(),
                http1_open: Cell::new(0),
                http2: RefCell::default(),
                connecting: [tokio::sync::Mutex::const_new(()), tokio::sync::Mutex::const_new(())],
                idle_limit: Cell::new(0),
            }),
        }
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
        if let Some(client) = self.pooled(attempt.limits.pool_idle_timeout) {
            match client.exchange(head, body, attempt.back, self.pool.clone()).await {
                Ok(response) => return Ok(response),
                Err(Failed { error, body: Some(again) })
                    if error.kind == Kind::Reset && (!error.sent || head.method.is_idempotent()) =>
                {
                    attempt.connector.shard.retry(Retry::IdleClose);
                    body = *again;
                }
                Err(failed) => return Err(failed),
            }
        }
        // Boxed, here and below: most requests find a connection, and should not carry room for the making of one.
        match Box::pin(self.connect_http1(attempt)).await {
            Ok(client) => client.exchange(head, body, attempt.back, self.pool.clone()).await,
            Err(error) => Err(Failed { error, body: Some(Box::new(body)) }),
        }
    }

    /// The most recently used connection that is still good.
    fn pooled(&self, idle_timeout: Duration) -> Option<Box<http1::Client>> {
        loop {
            let (since, mut client) = self.pool.idle.borrow_mut().pop()?;
            if since.elapsed() < idle_timeout && client.is_reusable() {
                return Some(client);
            }
        }
    }

    async fn connect_http1(&self, attempt: &Attempt<'_>) -> Result<Box<http1::Client>, Error> {
        let open = self.pool.http1_open.get();
        if open >= attempt.limits.pool_connections {
            return Err(Error::new(
                Kind::Overloaded,
                format!(
                    "{open} connections to {} are open already; see limits.poolConnections",
                    self.place.address
                ),
            ));
        }
        self.pool.idle_limit.set(attempt.limits.pool_idle);
        self.pool.http1_open.set(open + 1);
        let counted = Open(Rc::downgrade(&self.pool));
        let connector = attempt.connector;
        let mut io = connector
            .connect(&self.place, &self.service, self.port, Wire::Http1.mesh(), attempt.limits)
            .await?;
        io.hold(counted);
        if !io.is_tls() {
            io.hold(connector.shard.upstream_connection(MeshProtocol::Http1));
        }
        let settings = http1::Settings::from(attempt.limits);
        Ok(Box::new(http1::Client::new(io, settings)))
    }

    async fn exchange_http2(
        &self,
        wire: Wire,
        head: &request::Parts,
        mut body: Body,
        attempt: &Attempt<'_>,
    ) -> Result<Response<Body>, Failed> {
        let mut fresh = false;
        loop {
            let client = match self.with_free_stream(wire) {
                Some(client) => client,
                None => match Box::pin(self.connect_http2(wire, &mut fresh, attempt)).await {
                    Ok(client) => client,
                    Err(error) => return Err(Failed { error, body: Some(Box::new(body)) }),
                },
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

    /// A usable HTTP/2 connection with a free stream, if there is one.
    fn with_free_stream(&self, wire: Wire) -> Option<Rc<http2::Client>> {
        let mut list = self.pool.http2.borrow_mut();
        list.retain(|(_, c)| c.is_usable());
        list.iter()
            .filter(|(w, c)| *w == wire && c.in_flight() < c.max_streams())
            .min_by_key(|(_, c)| c.in_flight())
            .map(|(_, c)| c.clone())
    }

    /// Makes an HTTP/2 connection, or waits for the one that somebody else makes. `fresh` says if it was made here.
    async fn connect_http2(
        &self,
        wire: Wire,
        fresh: &mut bool,
        attempt: &Attempt<'_>,
    ) -> Result<Rc<http2::Client>, Error> {
        let slot = usize::from(wire == Wire::Http2);
        let _turn = self.pool.connecting[slot].lock().await;
        if let Some(client) = self.with_free_stream(wire) {
            return Ok(client);
        }
        if self.pool.http2.borrow().len() >= attempt.limits.pool_connections {
            return Err(Error::new(
                Kind::Overloaded,
                format!(
                    "all HTTP/2 connections to {} are full; see limits.poolConnections",
                    self.place.address
                ),
            ));
        }
        let mut io = attempt
            .connector
            .connect(&self.place, &self.service, self.port, wire.mesh(), attempt.limits)
            .await?;
        if !io.is_tls() {
            io.hold(attempt.connector.shard.upstream_connection(MeshProtocol::Http2));
        }
        let mut settings = http2::Settings::from(attempt.limits);
        settings.http1_messages = wire == Wire::Http1Over2;
        let client = http2::Client::connect(io, Rc::new(settings)).await?;
        self.pool.http2.borrow_mut().push((wire, client.clone()));
        *fresh = true;
        Ok(client)
    }

    /// Closes what has been idle for too long. Called about once a second.
    pub(crate) fn sweep(&self, idle_timeout: Duration) {
        self.pool.idle.borrow_mut().retain(|(since, _)| since.elapsed() < idle_timeout);
        self.pool.http2.borrow_mut().retain(|(_, c)| c.is_usable());
    }

    /// Connections at rest, connections in use, HTTP/2 connections: for `/clusters`.
    pub(crate) fn connections(&self) -> (usize, usize, usize) {
        let idle = self.pool.idle.borrow().len();
        (idle, self.pool.http1_open.get().saturating_sub(idle), self.pool.http2.borrow().len())
    }
}
