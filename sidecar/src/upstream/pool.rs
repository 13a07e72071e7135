//! The connections to one endpoint: kept for reuse within their bounds, and waited for when there are enough of them.

use super::protocol::Wire;
use crate::{
    error::{Error, Kind},
    http1, http2,
    telemetry::metrics::Queue,
};
use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    net::SocketAddr,
    num::NonZeroU32,
    rc::{Rc, Weak},
    time::Duration,
};
use tokio::{
    sync::oneshot,
    time::{Instant, timeout},
};
use weft_config::snapshot::{Bounds, Limits};

/// The connections of one worker to one endpoint.
pub(super) struct Pool {
    address: SocketAddr,
    /// HTTP/1 connections at rest, the most recently used last: the oldest fall idle and are closed.
    idle: RefCell<Vec<Idle>>,
    /// HTTP/1 connections in all, at rest or in use.
    open: Cell<usize>,
    /// Requests that wait for an HTTP/1 connection, the longest waiting first.
    waiting: RefCell<VecDeque<oneshot::Sender<Grant>>>,
    /// HTTP/2 connections that take more requests.
    shared: RefCell<Vec<Shared>>,
    /// Told when an HTTP/2 stream ends.
    streams: Rc<http2::Freed>,
    /// One connect at a time for each wire of HTTP/2: others wait for its outcome instead of connecting too.
    turns: [Turn; 2],
    rules: Cell<Rules>,
}

struct Idle {
    since: Instant,
    client: Box<http1::Client>,
}

struct Shared {
    wire: Wire,
    client: Rc<http2::Client>,
    born: Instant,
    /// When it was last seen with a request, and how many had begun by then.
    busy: Cell<(Instant, u64)>,
}

/// Whose turn it is to connect, and how the last connect failed.
#[derive(Default)]
pub(super) struct Turn {
    pub(super) lock: tokio::sync::Mutex<()>,
    failed: RefCell<Option<(Instant, Error)>>,
}

/// What is kept, and for how long: policy and the mesh's limits together.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Rules {
    /// Connections of one protocol.
    connections: usize,
    /// Connections at rest.
    idle: usize,
    idle_timeout: Duration,
    max_age: Option<Duration>,
    requests: Option<NonZeroU32>,
}

impl Rules {
    pub(super) fn new(bounds: &Bounds, limits: &Limits) -> Self {
        Self {
            connections: bounds.connections.unwrap_or(limits.pool_connections),
            idle: limits.pool_idle,
            idle_timeout: bounds.idle_timeout.unwrap_or(limits.pool_idle_timeout),
            max_age: bounds.max_age,
            requests: bounds.requests_per_connection,
        }
    }

    /// Whether a connection takes no more requests: it is too old, or has carried as many as it may.
    fn is_spent(&self, age: Duration, carried: u64) -> bool {
        self.max_age.is_some_and(|max| age >= max)
            || self.requests.is_some_and(|most| carried >= u64::from(most.get()))
    }
}

/// Time to connect, or to wait for a connection: no limit (but the request's own) if policy says zero.
pub(super) fn patience(bounds: &Bounds, limits: &Limits) -> Duration {
    let wanted = bounds.connect_timeout.unwrap_or(limits.connect_timeout);
    if wanted.is_zero() { Duration::MAX } else { wanted }
}

/// What a request that waited gets.
pub(super) enum Grant {
    /// A connection that another request is done with.
    Client(Box<http1::Client>),
    /// The right to open one, in place of one that was closed.
    Slot(Open),
}

/// Counts one open HTTP/1 connection for as long as it lives; travels inside the connection.
pub(super) struct Open(Option<Weak<Pool>>);

impl Drop for Open {
    fn drop(&mut self) {
        let Some(pool) = self.0.take() else { return };
        let Some(alive) = pool.upgrade() else { return };
        // Its place goes to whoever waits longest, unless there are too many connections since policy changed.
        while alive.open.get() <= alive.rules.get().connections {
            let Some(next) = alive.waiting.borrow_mut().pop_front() else { break };
            match next.send(Grant::Slot(Self(Some(pool.clone())))) {
                Ok(()) => return,
                // Gone already: the place is still ours to give.
                Err(Grant::Slot(mut back)) => back.0 = None,
                Err(Grant::Client(_)) => {}
            }
        }
        alive.open.set(alive.open.get().saturating_sub(1));
    }
}

impl http1::Recycle for Pool {
    fn put_back(&self, mut client: Box<http1::Client>) {
        let now = Instant::now();
        let rules = self.rules.get();
        let too_many = self.open.get() > rules.connections;
        if too_many || rules.is_spent(client.age(now), client.exchanges()) {
            return;
        }
        while let Some(next) = self.waiting.borrow_mut().pop_front() {
            match next.send(Grant::Client(client)) {
                Err(Grant::Client(back)) => client = back,
                _ => return,
            }
        }
        let mut idle = self.idle.borrow_mut();
        if idle.len() < rules.idle {
            idle.push(Idle { since: now, client });
        }
    }
}

impl Pool {
    pub(super) fn new(address: SocketAddr) -> Rc<Self> {
        Rc::new(Self {
            address,
            idle: RefCell::default(),
            open: Cell::new(0),
            waiting: RefCell::default(),
            shared: RefCell::default(),
            streams: Rc::default(),
            turns: Default::default(),
            rules: Cell::new(Rules::new(&Bounds::default(), &Limits::default())),
        })
    }

    /// What is kept from now on.
    pub(super) fn set_rules(&self, rules: Rules) {
        self.rules.set(rules);
    }

    /// The most recently used HTTP/1 connection that is still good.
    pub(super) fn pooled(&self) -> Option<Box<http1::Client>> {
        if self.idle.borrow().is_empty() {
            return None;
        }
        let (rules, now) = (self.rules.get(), Instant::now());
        loop {
            let Idle { since, mut client } = self.idle.borrow_mut().pop()?;
            if now - since < rules.idle_timeout
                && !rules.is_spent(client.age(now), client.exchanges())
                && client.is_reusable()
            {
                return Some(client);
            }
        }
    }

    /// The right to open an HTTP/1 connection, if there are not enough.
    pub(super) fn slot(self: &Rc<Self>) -> Option<Open> {
        let open = self.open.get();
        (open < self.rules.get().connections).then(|| {
            self.open.set(open + 1);
            Open(Some(Rc::downgrade(self)))
        })
    }

    /// Waits until another request is done with its HTTP/1 connection.
    pub(super) async fn wait(&self, bounds: &Bounds, limits: &Limits, queue: &Queue) -> Result<Grant, Error> {
        let Some(_counted) = queue.enter(bounds.pending) else { return Err(self.queue_is_full(bounds)) };
        let (sender, granted) = oneshot::channel();
        {
            let mut waiting = self.waiting.borrow_mut();
            if waiting.len() >= bounds.pending as usize {
                // Those whose requests were given up while they waited.
                waiting.retain(|sender| !sender.is_closed());
            }
            waiting.push_back(sender);
        }
        let patience = patience(bounds, limits);
        match timeout(patience, granted).await {
            Ok(Ok(grant)) => Ok(grant),
            _ => Err(self.none_came_free(patience)),
        }
    }

    /// Waits until an HTTP/2 stream ends. Gives up at `until`.
    pub(super) async fn wait_for_stream(
        &self,
        bounds: &Bounds,
        queue: &Queue,
        since: Instant,
        patience: Duration,
    ) -> Result<(), Error> {
        let Some(_counted) = queue.enter(bounds.pending) else { return Err(self.queue_is_full(bounds)) };
        let left = patience.saturating_sub(since.elapsed());
        timeout(left, self.streams.freed()).await.map_err(|_| self.none_came_free(patience))
    }

    fn queue_is_full(&self, bounds: &Bounds) -> Error {
        Error::new(
            Kind::Overloaded,
            format!(
                "all {} connections to {} are in use, and {} requests wait for one already; see TrafficPolicy \
                 `connections.max` and `connections.maxPending`",
                self.rules.get().connections,
                self.address,
                bounds.pending
            ),
        )
    }

    fn none_came_free(&self, patience: Duration) -> Error {
        Error::new(
            Kind::Overloaded,
            format!(
                "all {} connections to {} are in use, and none came free within {patience:?}; see TrafficPolicy \
                 `connections.max` and `timeouts.connect`",
                self.rules.get().connections,
                self.address
            ),
        )
    }

    /// An HTTP/2 connection with a free stream: the one with the fewest requests. Those that take no more requests leave
    /// the pool: what is under way on them ends in peace, and they are closed after that.
    pub(super) fn multiplexed(&self, wire: Wire) -> Option<Rc<http2::Client>> {
        let mut shared = self.shared.borrow_mut();
        let rules = self.rules.get();
        if rules.max_age.is_some() || rules.requests.is_some() {
            let now = Instant::now();
            shared.retain(|s| !rules.is_spent(now - s.born, s.client.begun()));
        }
        shared.retain(|s| s.client.is_usable());
        let free = shared.iter().filter(|s| s.wire == wire && s.client.in_flight() < s.client.max_streams());
        free.min_by_key(|s| s.client.in_flight()).map(|s| s.client.clone())
    }

    /// Whether no other HTTP/2 connection may be made.
    pub(super) fn has_enough_multiplexed(&self) -> bool {
        self.shared.borrow().len() >= self.rules.get().connections
    }

    /// Keeps a new HTTP/2 connection for others.
    pub(super) fn share(&self, wire: Wire, client: Rc<http2::Client>) {
        client.tell(self.streams.clone());
        let born = Instant::now();
        self.shared.borrow_mut().push(Shared { wire, client, born, busy: Cell::new((born, 0)) });
    }

    /// The turn of those who want to connect with HTTP/2.
    pub(super) fn turn(&self, wire: Wire) -> &Turn {
        let [plain, carried] = &self.turns;
        if wire == Wire::Http2 { plain } else { carried }
    }

    /// Closes what has been idle for too long or is too old. Called about once a second.
    pub(super) fn sweep(&self, rules: Rules) {
        self.rules.set(rules);
        let now = Instant::now();
        self.idle.borrow_mut().retain(|idle| {
            now - idle.since < rules.idle_timeout
                && !rules.is_spent(idle.client.age(now), idle.client.exchanges())
        });
        self.shared.borrow_mut().retain(|shared| {
            let (since, begun) = shared.busy.get();
            let busy = shared.client.in_flight() > 0 || shared.client.begun() != begun;
            if busy {
                shared.busy.set((now, shared.client.begun()));
            }
            (busy || now - since < rules.idle_timeout)
                && !rules.is_spent(now - shared.born, shared.client.begun())
                && shared.client.is_usable()
        });
    }

    /// Connections at rest, connections in use, HTTP/2 connections.
    pub(super) fn connections(&self) -> (usize, usize, usize) {
        let idle = self.idle.borrow().len();
        (idle, self.open.get().saturating_sub(idle), self.shared.borrow().len())
    }
}

impl Turn {
    /// How a connect failed that began or ended after `since`: what waited for it would fail alike.
    pub(super) fn failed_after(&self, since: Instant) -> Option<Error> {
        self.failed.borrow().as_ref().filter(|(at, _)| *at > since).map(|(_, error)| error.clone())
    }

    /// Keeps how a connect failed, for those who wait.
    pub(super) fn fail(&self, error: &Error) {
        *self.failed.borrow_mut() = Some((Instant::now(), error.clone()));
    }
}

#[cfg(test)]
mod tests;
