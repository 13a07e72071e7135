//! Rules of the pool, in paused time and over pipes.

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
