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
mod tests {
    use super::*;
    use crate::{body::Body, exchange::Back, io::Io, telemetry::metrics::Metrics};
    use http::{Request, Response, request};
    use std::future::poll_fn;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
        task::{LocalSet, spawn_local},
        time::advance,
    };
    use weft_config::snapshot::Bounds;

    const ADDRESS: &str = "127.0.0.1:8080";

    struct Nobody;

    impl Back for Nobody {
        fn interim(&self, _: Response<()>) {}
    }

    /// Paused time, one thread, and the queue of one service.
    fn run(test: impl AsyncFnOnce(Rc<Pool>, Rc<Queue>)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        let pool = Pool::new(ADDRESS.parse().expect("an address"));
        let test = test(pool, Rc::new(Queue::default()));
        LocalSet::new().block_on(&runtime.expect("a runtime"), test);
    }

    fn bounds(connections: usize, pending: u32) -> Bounds {
        Bounds { connections: Some(connections), pending, ..Bounds::default() }
    }

    fn keep(pool: &Pool, bounds: &Bounds) {
        pool.set_rules(Rules::new(bounds, &Limits::default()));
    }

    /// A connection in the pool's books, and its other end.
    fn connected(open: Open) -> (Box<http1::Client>, DuplexStream) {
        let (near, far) = duplex(4096);
        let mut io = Io::memory(near);
        io.hold(open);
        (Box::new(http1::Client::new(io, http1::Settings::default())), far)
    }

    fn head() -> request::Parts {
        Request::get("/").header("host", "a").body(()).expect("a request").into_parts().0
    }

    /// One request over `client`, answered at once; then the connection is in the pool, or closed.
    async fn used(pool: &Rc<Pool>, client: Box<http1::Client>, far: &mut DuplexStream) {
        let (head, answer) = (head(), far);
        let exchange = client.exchange(&head, Body::Empty, &Nobody, pool.clone());
        let serve = async {
            let mut request = [0; 256];
            let read = answer.read(&mut request).await.expect("a request");
            assert!(request[..read].ends_with(b"\r\n\r\n"));
            answer.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.expect("an answer");
        };
        let (response, ()) = tokio::join!(exchange, serve);
        assert!(response.is_ok());
    }

    async fn settle() {
        for _ in 0..8 {
            tokio::task::yield_now().await;
        }
    }

    fn wait_in(
        pool: &Rc<Pool>,
        queue: &Rc<Queue>,
        bounds: &Bounds,
    ) -> tokio::task::JoinHandle<Result<Grant, Error>> {
        let (pool, queue, bounds) = (pool.clone(), queue.clone(), bounds.clone());
        spawn_local(async move { pool.wait(&bounds, &Limits::default(), &queue).await })
    }

    #[test]
    fn a_connection_that_was_used_is_used_again() {
        run(async |pool, _| {
            let (client, mut far) = connected(pool.slot().expect("room"));
            used(&pool, client, &mut far).await;
            let again = pool.pooled().expect("the same");
            assert_eq!(again.exchanges(), 1);
            assert_eq!(pool.connections(), (0, 1, 0));
        });
    }

    #[test]
    fn a_connection_ends_after_as_many_requests_as_it_may_carry() {
        run(async |pool, _| {
            let two = Bounds { requests_per_connection: NonZeroU32::new(2), ..Bounds::default() };
            keep(&pool, &two);
            let (client, mut far) = connected(pool.slot().expect("room"));
            used(&pool, client, &mut far).await;
            used(&pool, pool.pooled().expect("one more"), &mut far).await;
            assert!(pool.pooled().is_none());
            assert_eq!(pool.connections(), (0, 0, 0), "closed");
        });
    }

    #[test]
    fn a_connection_is_closed_at_its_age_once_it_is_idle() {
        run(async |pool, _| {
            let minute = Bounds {
                max_age: Some(Duration::from_secs(60)),
                idle_timeout: Some(Duration::from_secs(3600)),
                ..Bounds::default()
            };
            let rules = Rules::new(&minute, &Limits::default());
            pool.set_rules(rules);
            let (client, mut far) = connected(pool.slot().expect("room"));
            used(&pool, client, &mut far).await;
            advance(Duration::from_secs(59)).await;
            pool.sweep(rules);
            let client = pool.pooled().expect("young enough");
            advance(Duration::from_secs(10)).await;
            pool.sweep(rules);
            assert_eq!(pool.connections(), (0, 1, 0), "in use, so it stays");
            used(&pool, client, &mut far).await;
            assert_eq!(pool.connections(), (0, 0, 0));
        });
    }

    #[test]
    fn a_connection_at_rest_is_closed_after_the_idle_timeout() {
        run(async |pool, _| {
            let rules = Rules::new(
                &Bounds { idle_timeout: Some(Duration::from_secs(30)), ..Bounds::default() },
                &Limits::default(),
            );
            pool.set_rules(rules);
            let (client, mut far) = connected(pool.slot().expect("room"));
            used(&pool, client, &mut far).await;
            advance(Duration::from_secs(29)).await;
            pool.sweep(rules);
            assert_eq!(pool.connections(), (1, 0, 0));
            advance(Duration::from_secs(2)).await;
            assert!(pool.pooled().is_none(), "not taken even before it is swept");
            assert_eq!(pool.connections(), (0, 0, 0));
        });
    }

    #[test]
    fn who_waits_longest_gets_the_connection_that_comes_free() {
        run(async |pool, queue| {
            let one = bounds(1, 10);
            keep(&pool, &one);
            let (client, mut far) = connected(pool.slot().expect("room"));
            assert!(pool.slot().is_none());
            let first = wait_in(&pool, &queue, &one);
            settle().await;
            let second = wait_in(&pool, &queue, &one);
            settle().await;
            assert_eq!(queue.waiting(), 2);
            used(&pool, client, &mut far).await;
            let Ok(Ok(Grant::Client(client))) = first.await else { panic!("the connection itself") };
            assert!(!second.is_finished());
            assert!(pool.pooled().is_none(), "nobody overtakes");
            drop(client);
            let Ok(Ok(Grant::Slot(_open))) = second.await else { panic!("the place of the closed one") };
            assert_eq!((queue.waiting(), pool.connections()), (0, (0, 1, 0)));
        });
    }

    #[test]
    fn beyond_the_bound_on_waiting_a_request_fails_at_once() {
        run(async |pool, queue| {
            let one = bounds(1, 1);
            keep(&pool, &one);
            let _open = pool.slot().expect("room");
            let waits = wait_in(&pool, &queue, &one);
            settle().await;
            let Err(refused) = pool.wait(&one, &Limits::default(), &queue).await else { panic!("no room") };
            assert_eq!(refused.kind, Kind::Overloaded);
            assert!(refused.detail.contains("connections.maxPending"), "{}", refused.detail);
            assert!(!waits.is_finished());
            assert_eq!(queue.refused(), 1);
        });
    }

    #[test]
    fn who_gets_none_in_time_fails_and_leaves_the_queue() {
        run(async |pool, queue| {
            let one = bounds(1, 10);
            keep(&pool, &one);
            let open = pool.slot().expect("room");
            let Err(late) = pool.wait(&one, &Limits::default(), &queue).await else { panic!("no room") };
            assert_eq!(late.kind, Kind::Overloaded);
            assert_eq!(queue.waiting(), 0);
            drop(open);
            assert!(pool.slot().is_some(), "the place is not kept for those who left");
        });
    }

    #[test]
    fn a_place_that_was_granted_to_one_who_left_goes_on() {
        run(async |pool, queue| {
            let one = bounds(1, 10);
            keep(&pool, &one);
            let open = pool.slot().expect("room");
            let (left, stays) = (wait_in(&pool, &queue, &one), wait_in(&pool, &queue, &one));
            settle().await;
            // Granted first, cancelled before it could look.
            drop(open);
            left.abort();
            settle().await;
            assert!(matches!(stays.await, Ok(Ok(Grant::Slot(_)))));
            settle().await;
            assert_eq!(pool.connections(), (0, 0, 0));
        });
    }

    #[test]
    fn a_lower_limit_closes_connections_as_they_come_back() {
        run(async |pool, _| {
            let (a, mut far_a) = connected(pool.slot().expect("room"));
            let (b, mut far_b) = connected(pool.slot().expect("room"));
            keep(&pool, &bounds(1, 10));
            used(&pool, a, &mut far_a).await;
            used(&pool, b, &mut far_b).await;
            assert_eq!(pool.connections(), (1, 0, 0));
        });
    }

    /// An HTTP/2 connection whose peer answers every request and then waits.
    async fn multiplexed(streams: u32) -> (Rc<http2::Client>, tokio::task::JoinHandle<()>) {
        let (near, far) = duplex(64 * 1024);
        let server = spawn_local(async move {
            let mut builder = h2::server::Builder::new();
            builder.max_concurrent_streams(streams);
            let mut server = builder.handshake::<_, bytes::Bytes>(far).await.expect("HTTP/2");
            while let Some(Ok((_, mut answer))) = server.accept().await {
                answer.send_response(Response::new(()), true).expect("an answer");
            }
            // The client said goodbye: what is left of the connection ends with it.
            let _ = poll_fn(|cx| server.poll_closed(cx)).await;
        });
        let client = http2::Client::connect(Io::memory(near), Rc::new(http2::Settings::default())).await;
        (client.expect("HTTP/2"), server)
    }

    fn head2() -> request::Parts {
        let request = Request::get("http://a/").version(http::Version::HTTP_2).body(());
        request.expect("a request").into_parts().0
    }

    #[test]
    fn an_http2_connection_leaves_the_pool_when_it_is_spent_and_then_closes() {
        run(async |pool, _| {
            keep(&pool, &Bounds { requests_per_connection: NonZeroU32::new(2), ..Bounds::default() });
            let (client, server) = multiplexed(100).await;
            pool.share(Wire::Http2, client);
            for _ in 0..2 {
                let client = pool.multiplexed(Wire::Http2).expect("takes more");
                assert!(client.exchange(&head2(), Body::Empty, &Nobody).await.is_ok());
            }
            assert!(pool.multiplexed(Wire::Http2).is_none());
            assert_eq!(pool.connections(), (0, 0, 0));
            server.await.expect("closed in order");
        });
    }

    #[test]
    fn an_http2_connection_without_requests_is_closed_after_the_idle_timeout() {
        run(async |pool, _| {
            let rules = Rules::new(
                &Bounds { idle_timeout: Some(Duration::from_secs(30)), ..Bounds::default() },
                &Limits::default(),
            );
            pool.set_rules(rules);
            let (client, server) = multiplexed(100).await;
            pool.share(Wire::Http2, client);
            advance(Duration::from_secs(25)).await;
            pool.sweep(rules);
            let client = pool.multiplexed(Wire::Http2).expect("kept");
            assert!(client.exchange(&head2(), Body::Empty, &Nobody).await.is_ok());
            drop(client);
            pool.sweep(rules);
            advance(Duration::from_secs(29)).await;
            pool.sweep(rules);
            assert_eq!(pool.connections(), (0, 0, 1), "used since");
            advance(Duration::from_secs(2)).await;
            pool.sweep(rules);
            assert_eq!(pool.connections(), (0, 0, 0));
            server.await.expect("closed in order");
        });
    }

    #[test]
    fn who_waits_for_a_stream_hears_when_one_ends() {
        run(async |pool, queue| {
            let one = bounds(1, 1);
            keep(&pool, &one);
            let (client, _server) = multiplexed(1).await;
            pool.share(Wire::Http2, client.clone());
            // The peer's settings say that there is one stream only.
            settle().await;
            let head = head2();
            let mut exchange = Box::pin(client.exchange(&head, Body::Empty, &Nobody));
            assert!(futures_util::poll!(&mut exchange).is_pending());
            assert!(pool.multiplexed(Wire::Http2).is_none() && pool.has_enough_multiplexed());
            let waits = {
                let (pool, queue, one) = (pool.clone(), queue.clone(), one.clone());
                let (since, patience) = (Instant::now(), Duration::from_secs(1));
                spawn_local(async move { pool.wait_for_stream(&one, &queue, since, patience).await })
            };
            settle().await;
            assert_eq!(queue.waiting(), 1);
            let (since, second) = (Instant::now(), Duration::from_secs(1));
            let refused = pool.wait_for_stream(&one, &queue, since, second).await;
            assert_eq!(refused.map_err(|e| e.kind), Err(Kind::Overloaded));
            drop(exchange.await);
            assert!(matches!(waits.await, Ok(Ok(()))));
            assert!(pool.multiplexed(Wire::Http2).is_some());
        });
    }

    #[test]
    fn those_who_waited_for_a_connect_share_its_failure_and_those_who_come_later_do_not() {
        run(async |pool, _| {
            let turn = pool.turn(Wire::Http2);
            let before = Instant::now();
            advance(Duration::from_millis(1)).await;
            turn.fail(&Error::new(Kind::Connect, "nobody there"));
            assert_eq!(turn.failed_after(before).map(|e| e.kind), Some(Kind::Connect));
            assert!(turn.failed_after(Instant::now()).is_none());
            assert!(pool.turn(Wire::Http1Over2).failed_after(before).is_none());
        });
    }

    #[test]
    fn policy_goes_before_the_meshs_limits() {
        let limits = Limits::default();
        let of = |bounds: &Bounds| Rules::new(bounds, &limits);
        assert_eq!(of(&Bounds::default()).connections, limits.pool_connections);
        assert_eq!(of(&Bounds::default()).idle_timeout, limits.pool_idle_timeout);
        assert_eq!(of(&bounds(7, 0)).connections, 7);
        assert_eq!(patience(&Bounds::default(), &limits), limits.connect_timeout);
        let at_once = Bounds { connect_timeout: Some(Duration::ZERO), ..Bounds::default() };
        assert_eq!(patience(&at_once, &limits), Duration::MAX, "zero is no limit");
        // The metrics' queue is what both directions count in.
        let metrics = Metrics::new(1);
        let series = metrics.service("shop/product");
        assert!(series.queue(crate::telemetry::metrics::Direction::Inbound).enter(0).is_none());
    }
}
