//! One fetch for many: who waits, who reads, who is let go, and what is left in the store.

use super::*;
use crate::cache::{
    entry::tests::Sample,
    store::{Bounds, Manner, What, choices::prefix},
};
use crate::error::{Error, Kind};
use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::BodyExt;
use std::{cell::Cell, pin::Pin, rc::Rc, time::Instant};
use tokio::{
    sync::mpsc,
    task::{LocalSet, spawn_local, yield_now},
};

const PATIENCE: Duration = Duration::from_secs(5);

/// Runs on one worker whose time only passes when nothing else is to be done.
fn worker<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    LocalSet::new().block_on(&runtime.expect("a runtime"), test)
}

/// An origin's body, piece by piece.
struct Origin {
    pieces: mpsc::UnboundedReceiver<Result<Frame<Bytes>, Error>>,
    length: Option<u64>,
    taken: Rc<Cell<usize>>,
}

struct Sender {
    pieces: mpsc::UnboundedSender<Result<Frame<Bytes>, Error>>,
    taken: Rc<Cell<usize>>,
}

impl Sender {
    fn send(&self, data: impl Into<Bytes>) {
        self.pieces.send(Ok(Frame::data(data.into()))).expect("is read");
    }

    fn fail(&self) {
        let error = Error::after_send(Kind::Reset, "the upstream closed");
        self.pieces.send(Err(error)).expect("is read");
    }

    fn is_dropped(&self) -> bool {
        self.pieces.is_closed()
    }
}

impl HttpBody for Origin {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let frame = std::task::ready!(self.pieces.poll_recv(cx));
        self.taken.set(self.taken.get() + 1);
        Poll::Ready(frame)
    }

    fn size_hint(&self) -> SizeHint {
        self.length.map_or_else(SizeHint::new, SizeHint::with_exact)
    }
}

fn origin_of(length: Option<u64>) -> (Sender, Body) {
    let (sender, pieces) = mpsc::unbounded_channel();
    let taken = Rc::new(Cell::new(0));
    let origin = Origin { pieces, length, taken: taken.clone() };
    (Sender { pieces: sender, taken }, Body::Boxed(Box::pin(origin)))
}

fn origin() -> (Sender, Body) {
    origin_of(None)
}

fn store_of(bounds: Bounds) -> Arc<Store> {
    Arc::new(Store::new(bounds))
}

fn store() -> Arc<Store> {
    store_of(Bounds::default())
}

fn turn(store: &Arc<Store>, name: &str) -> Turn {
    let key = Key::new(name.as_bytes());
    store.turn(key, key, None, seconds_now())
}

fn fetch(store: &Arc<Store>, name: &str) -> Filler {
    match turn(store, name) {
        Turn::Fetch(filler) => filler,
        _ => panic!("somebody else fetches"),
    }
}

fn wait(store: &Arc<Store>, name: &str) -> Waiter {
    match turn(store, name) {
        Turn::Wait(waiter) => waiter,
        _ => panic!("nobody else fetches"),
    }
}

fn stored(store: &Store, name: &str) -> Option<Bytes> {
    let found = store.look_up(Key::new(name.as_bytes()), seconds_now())?;
    found.iter().next().map(|entry| entry.bytes())
}

async fn joined(waiter: Waiter) -> Body {
    match waiter.wait(PATIENCE).await {
        Waited::Streaming(joined) => joined.into_body(),
        Waited::Kept(entry) => entry.body(),
        _ => panic!("there is nothing to read"),
    }
}

async fn read(body: Body) -> Result<Bytes, Error> {
    body.collect().await.map(|all| all.to_bytes())
}

async fn next(body: &mut Body) -> Bytes {
    body.frame().await.expect("comes").expect("is no error").into_data().expect("is data")
}

/// Lets everybody do what there is to be done.
async fn settle() {
    for _ in 0..50 {
        yield_now().await;
    }
}

#[test]
fn a_body_that_is_there_at_once_is_stored_at_once() {
    worker(async {
        let store = store();
        let waiter = wait_after_fetch(&store).await;
        assert_eq!(read(joined(waiter).await).await.expect("whole"), "hello");
        assert_eq!(stored(&store, "k").expect("is stored"), "hello");
        assert_eq!(store.fills.under_way(), 0);
        let statistics = store.statistics();
        assert_eq!((statistics.filling, statistics.entries), (0, 1));
        assert!(matches!(turn(&store, "k"), Turn::LookAgain));
    });
}

async fn wait_after_fetch(store: &Arc<Store>) -> Waiter {
    let filler = fetch(store, "k");
    let waiter = wait(store, "k");
    let (entry, body) = filler.start(Sample::new("k").head(), Body::full("hello")).await;
    assert_eq!(entry.length(), 5);
    assert!(matches!(body, Body::Full(body) if body == "hello"));
    waiter
}

#[test]
fn waiters_read_a_body_as_it_comes() {
    worker(async {
        let store = store();
        let filler = fetch(&store, "k");
        let early = spawn_local(joined(wait(&store, "k")));
        settle().await;
        assert!(!early.is_finished());
        let (sender, body) = origin_of(Some(12));
        let (_, mut first) = filler.start(Sample::new("k").head(), body).await;
        let mut early = early.await.expect("no panic");
        let mut late = joined(wait(&store, "k")).await;
        sender.send("hello ");
        for body in [&mut first, &mut early, &mut late] {
            assert_eq!(body.size_hint().exact(), Some(12));
            assert_eq!(next(body).await, "hello ");
            assert_eq!(body.size_hint().exact(), Some(6));
        }
        assert!(store.statistics().filling > 6 && stored(&store, "k").is_none());
        sender.send("world!");
        drop(sender);
        assert_eq!(next(&mut early).await, "world!");
        settle().await;
        assert!(early.is_end_stream());
        assert_eq!(read(first).await.expect("whole"), "world!");
        assert_eq!(read(late).await.expect("whole"), "world!");
        assert_eq!(stored(&store, "k").expect("is stored"), "hello world!");
        assert_eq!((store.statistics().filling, store.fills.under_way()), (0, 0));
        assert_eq!(store.fill_statistics().coalesced, 2);
    });
}

#[test]
fn trailers_reach_everyone_and_are_stored() {
    worker(async {
        let store = store();
        let filler = fetch(&store, "k");
        let waiter = wait(&store, "k");
        let (sender, body) = origin();
        let (_, first) = filler.start(Sample::new("k").head(), body).await;
        let second = joined(waiter).await;
        sender.send("message");
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
        sender.pieces.send(Ok(Frame::trailers(trailers.clone()))).expect("is read");
        drop(sender);
        let third = {
            settle().await;
            let found = store.look_up(Key::new(b"k"), seconds_now()).expect("is stored");
            found.iter().next().expect("has one").body()
        };
        for body in [first, second, third] {
            let all = body.collect().await.expect("whole");
            assert_eq!(all.trailers(), Some(&trailers));
            assert_eq!(all.to_bytes(), "message");
        }
    });
}

#[test]
fn a_client_that_does_not_read_stalls_nobody() {
    worker(async {
        let store = store();
        let filler = fetch(&store, "k");
        let waiters: Vec<_> = (0..3).map(|_| wait(&store, "k")).collect();
        let (sender, body) = origin();
        let (_, unread) = filler.start(Sample::new("k").head(), body).await;
        let mut bodies = Vec::new();
        for waiter in waiters {
            bodies.push(joined(waiter).await);
        }
        let unread_too = bodies.pop().expect("three wait");
        let readers: Vec<_> = bodies.into_iter().map(|body| spawn_local(read(body))).collect();
        for _ in 0..100 {
            sender.send(vec![7; 1000]);
            settle().await;
        }
        drop(sender);
        for reader in readers {
            assert_eq!(reader.await.expect("no panic").expect("whole").len(), 100_000);
        }
        assert_eq!(stored(&store, "k").expect("is stored").len(), 100_000);
        // Whoever comes to it later reads all of it from the stored body.
        let mut unread = unread;
        assert_eq!(next(&mut unread).await.len(), 100_000);
        assert_eq!(read(unread_too).await.expect("whole").len(), 100_000);
    });
}

#[test]
fn a_fill_goes_on_when_its_client_is_gone() {
    worker(async {
        let store = store();
        let filler = fetch(&store, "k");
        let waiter = wait(&store, "k");
        let (sender, body) = origin();
        let (_, gone) = filler.start(Sample::new("k").head(), body).await;
        drop(gone);
        let other = joined(waiter).await;
        sender.send("hello");
        settle().await;
        drop(other);
        settle().await;
        assert!(!sender.is_dropped(), "it is worth finishing with nobody left");
        sender.send(" world");
        drop(sender);
        settle().await;
        assert_eq!(stored(&store, "k").expect("is stored"), "hello world");
        assert_eq!(store.fills.orphans.load(Ordering::Relaxed), 0);
    });
}

#[test]
fn a_fill_that_nobody_reads_and_that_does_not_end_is_given_up() {
    worker(async {
        let store = store();
        let filler = fetch(&store, "k");
        let (sender, body) = origin();
        let (_, gone) = filler.start(Sample::new("k").head(), body).await;
        sender.send("hello");
        settle().await;
        drop(gone);
        tokio::time::sleep(Duration::from_secs(9)).await;
        assert!(!sender.is_dropped());
        // Somebody who comes in time keeps it going.
        let other = joined(wait(&store, "k")).await;
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert!(!sender.is_dropped());
        drop(other);
        tokio::time::sleep(Duration::from_secs(11)).await;
        assert!(sender.is_dropped());
        assert_eq!((store.fills.under_way(), store.statistics().filling), (0, 0));
        assert_eq!(store.fills.orphans.load(Ordering::Relaxed), 0);
    });
}

#[test]
fn whoever_waits_takes_over_when_the_filler_goes_away() {
    worker(async {
        let store = store();
        let filler = fetch(&store, "k");
        let waits: Vec<_> =
            (0..3).map(|_| wait(&store, "k")).map(|waiter| spawn_local(waiter.wait(PATIENCE))).collect();
        settle().await;
        drop(filler);
        settle().await;
        let (mut done, left): (Vec<_>, Vec<_>) = waits.into_iter().partition(|wait| wait.is_finished());
        assert_eq!((done.len(), left.len()), (1, 2));
        let Waited::Fetch(filler) = done.pop().expect("one").await.expect("no panic") else {
            panic!("takes over");
        };
        filler.start(Sample::new("k").head(), Body::full("hello")).await;
        for wait in left {
            assert!(matches!(wait.await, Ok(Waited::Kept(entry)) if entry.bytes() == "hello"));
        }
        assert_eq!(store.fill_statistics().handed_over, 1);
        // With nobody waiting nothing is left of it.
        drop(fetch(&store, "other"));
        assert_eq!(store.fills.under_way(), 0);
    });
}

#[test]
fn a_waiter_that_goes_before_it_can_take_over_leaves_nothing_behind() {
    worker(async {
        let store = store();
        let filler = fetch(&store, "k");
        let waiter = wait(&store, "k");
        drop(filler);
        drop(waiter);
        assert_eq!(store.fills.under_way(), 0);
        drop(fetch(&store, "k"));
    });
}

#[test]
fn an_uncacheable_response_releases_all_who_wait_and_for_a_while_all_who_come() {
    worker(async {
        let store = store();
        let filler = fetch(&store, "k");
        let waits: Vec<_> =
            (0..3).map(|_| wait(&store, "k")).map(|waiter| spawn_local(waiter.wait(PATIENCE))).collect();
        settle().await;
        filler.uncacheable();
        settle().await;
        for wait in waits {
            assert!(wait.is_finished());
            assert!(matches!(wait.await, Ok(Waited::Alone(_, Alone::Uncacheable))));
        }
        let Turn::Alone(alone, Alone::Uncacheable) = turn(&store, "k") else { panic!("goes alone") };
        // One that can be stored after all ends that.
        alone.start(Sample::new("k").head(), Body::full("hello")).await;
        assert_eq!(stored(&store, "k").expect("is stored"), "hello");
        store.invalidate(b"k", 0);
        fetch(&store, "k").uncacheable();
        let key = Key::new(b"k");
        let later = seconds_now() + UNCACHEABLE_SECONDS + 1;
        assert!(matches!(store.turn(key, key, None, later), Turn::Fetch(_)));
    });
}

#[test]
fn nobody_waits_longer_than_allowed() {
    worker(async {
        let store = store();
        let _filler = fetch(&store, "k");
        let before = tokio::time::Instant::now();
        let waited = wait(&store, "k").wait(PATIENCE).await;
        assert!(matches!(waited, Waited::Alone(_, Alone::Waited)));
        assert_eq!(before.elapsed().as_secs(), 5);
    });
}

#[test]
fn a_failure_releases_and_one_in_the_middle_reaches_those_who_read() {
    worker(async {
        let store = store();
        let filler = fetch(&store, "a");
        let waiter = wait(&store, "a");
        filler.failed();
        assert!(matches!(waiter.wait(PATIENCE).await, Waited::Alone(_, Alone::Failed)));

        let filler = fetch(&store, "b");
        let (waiter, late) = (wait(&store, "b"), wait(&store, "b"));
        let (sender, body) = origin();
        let (_, first) = filler.start(Sample::new("b").head(), body).await;
        let second = joined(waiter).await;
        sender.send("hel");
        sender.fail();
        settle().await;
        for body in [first, second] {
            assert_eq!(read(body).await.expect_err("broke off").kind, Kind::Reset);
        }
        assert!(matches!(late.wait(PATIENCE).await, Waited::Alone(_, Alone::Failed)));
        assert!(stored(&store, "b").is_none());
        assert_eq!((store.statistics().bytes, store.fills.under_way()), (0, 0));
    });
}

#[test]
fn what_is_announced_as_too_large_passes_by() {
    worker(async {
        let store = store_of(Bounds { object: 10, ..Bounds::default() });
        let filler = fetch(&store, "k");
        let waiter = wait(&store, "k");
        let (_, body) = filler.start(Sample::new("k").head(), Body::full("hello world")).await;
        assert!(matches!(waiter.wait(PATIENCE).await, Waited::Alone(_, Alone::TooLarge)));
        assert_eq!(read(body).await.expect("whole"), "hello world");
        assert!(stored(&store, "k").is_none());
    });
}

#[test]
fn what_turns_out_too_large_goes_on_for_those_who_have_it() {
    worker(async {
        let store = store_of(Bounds { object: 100_000, ..Bounds::default() });
        let filler = fetch(&store, "k");
        let (fast, slow, never) = (wait(&store, "k"), wait(&store, "k"), wait(&store, "k"));
        let (sender, body) = origin();
        let (_, first) = filler.start(Sample::new("k").head(), body).await;
        let first = spawn_local(read(first));
        let fast = spawn_local(read(joined(fast).await));
        let mut slow = joined(slow).await;
        for i in 0..500 {
            sender.send(vec![i as u8; 1000]);
            settle().await;
            if i == 150 {
                assert!(matches!(turn(&store, "k"), Turn::Alone(..)), "nobody begins any more");
            }
        }
        drop(sender);
        assert_eq!(first.await.expect("no panic").expect("whole").len(), 500_000);
        assert_eq!(fast.await.expect("no panic").expect("whole").len(), 500_000);
        let error = slow.frame().await.expect("comes").expect_err("too far behind");
        assert_eq!(error.kind, Kind::Reset);
        drop(slow);
        assert!(matches!(never.wait(PATIENCE).await, Waited::Alone(_, Alone::TooLarge)));
        assert!(stored(&store, "k").is_none());
        let statistics = store.fill_statistics();
        assert_eq!((statistics.outgrown, statistics.cut_off), (1, 1));
        assert_eq!((store.statistics().bytes, store.fills.under_way()), (0, 0));
    });
}

#[test]
fn what_is_not_kept_is_read_only_as_fast_as_the_fastest_wants_it() {
    worker(async {
        let store = store_of(Bounds { object: 10_000, ..Bounds::default() });
        let (sender, body) = origin();
        let (_, mut client) = fetch(&store, "k").start(Sample::new("k").head(), body).await;
        for _ in 0..500 {
            sender.send(vec![0; 1000]);
        }
        settle().await;
        let taken = sender.taken.get();
        assert!((60..80).contains(&taken), "{taken}");
        assert!(store.statistics().bytes < 100_000);
        let mut had = 0;
        while had < 20_000 {
            had += next(&mut client).await.len();
        }
        settle().await;
        assert!((80..100).contains(&sender.taken.get()), "{}", sender.taken.get());
        drop(client);
        settle().await;
        assert!(sender.is_dropped(), "nobody wants it");
        assert_eq!(store.statistics().bytes, 0);
    });
}

#[test]
fn fills_count_against_the_limit_and_make_room() {
    worker(async {
        let store = store_of(Bounds { bytes: 100_000, object: 1 << 20, variants: 16 });
        for i in 0..40 {
            let name = format!("small/{i}");
            fetch(&store, &name).start(Sample::new(&name).head(), Body::full(vec![0; 1000])).await;
        }
        let entries = store.statistics().entries;
        let (sender, body) = origin();
        let (_, client) = fetch(&store, "k").start(Sample::new("k").head(), body).await;
        let client = spawn_local(read(client));
        for i in 0..300 {
            sender.send(vec![0; 1000]);
            settle().await;
            let statistics = store.statistics();
            assert!(statistics.bytes <= 100_000, "{statistics:?}");
            assert!(i != 60 || statistics.entries < entries && statistics.filling > 60_000);
        }
        drop(sender);
        assert_eq!(client.await.expect("no panic").expect("whole").len(), 300_000);
        assert_eq!(store.fill_statistics().outgrown, 1, "there is no room for all of it");
        assert_eq!(store.statistics().filling, 0);
    });
}

#[test]
fn nobody_who_comes_after_a_purge_gets_what_was_fetched_before_it() {
    worker(async {
        for how in 0..3 {
            let store = store();
            let old = fetch(&store, "k");
            let waiter = wait(&store, "k");
            let old_epoch = old.epoch();
            match how {
                0 => _ = store.purge(What::All, Manner::Hard, 0),
                1 => store.invalidate(b"k", 0),
                _ => _ = store.purge_through(prefix(b"k"), Manner::Hard, 0),
            }
            let new = fetch(&store, "k");
            let new_waiter = wait(&store, "k");
            let new_epoch = new.epoch();
            new.start(Sample::new("k").head_since(new_epoch), Body::full("new")).await;
            old.start(Sample::new("k").head_since(old_epoch), Body::full("old")).await;
            assert_eq!(read(joined(waiter).await).await.expect("whole"), "old");
            assert_eq!(read(joined(new_waiter).await).await.expect("whole"), "new");
            assert_eq!(stored(&store, "k").expect("is stored"), "new");
            assert_eq!(store.fills.under_way(), 0);
        }
    });
}

#[test]
fn what_is_purged_elsewhere_keeps_nobody_from_waiting() {
    worker(async {
        let store = store();
        let filler = fetch(&store, "k");
        store.invalidate(b"other", 0);
        store.invalidate(b"another", 0);
        store.purge(prefix(b"x"), Manner::Hard, 0);
        let waiter = wait(&store, "k");
        let epoch = filler.epoch();
        filler.start(Sample::new("k").head_since(epoch), Body::full("hello")).await;
        assert_eq!(read(joined(waiter).await).await.expect("whole"), "hello");
        assert_eq!(stored(&store, "k").expect("is stored"), "hello");
    });
}

#[test]
fn a_confirmed_entry_goes_to_all_who_wait() {
    worker(async {
        let store = store();
        fetch(&store, "k").start(Sample::new("k").head(), Body::full("hello")).await;
        let key = Key::new(b"k");
        let seen = store.look_up(key, seconds_now()).expect("is stored");
        let Turn::Fetch(filler) = store.turn(key, key, Some(&seen), seconds_now()) else {
            panic!("asks whether it changed");
        };
        let Turn::Wait(waiter) = store.turn(key, key, Some(&seen), seconds_now()) else {
            panic!("waits for the answer");
        };
        let stale = seen.iter().next().expect("has one");
        let fresh = Sample::new("k").with(|draft| stale.refreshed(draft, filler.epoch())).expect("is small");
        let kept = filler.keep(fresh, seconds_now());
        assert!(matches!(waiter.wait(PATIENCE).await, Waited::Kept(entry) if Arc::ptr_eq(&entry, &kept)));
        assert!(matches!(store.turn(key, key, Some(&seen), seconds_now()), Turn::LookAgain));
        assert_eq!(store.statistics().entries, 1);
    });
}

#[test]
fn workers_wait_for_each_other() {
    let store = &store();
    let fetches = &Arc::new(AtomicUsize::new(0));
    let before = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
                LocalSet::new().block_on(&runtime.expect("a runtime"), async move {
                    let requests: Vec<_> = (0..400)
                        .map(|i| {
                            spawn_local(request(store.clone(), format!("k/{}", i % 20), fetches.clone()))
                        })
                        .collect();
                    for request in requests {
                        request.await.expect("no panic");
                    }
                });
            });
        }
    });
    assert_eq!(fetches.load(Ordering::Relaxed), 20);
    let statistics = store.statistics();
    assert_eq!((statistics.entries, statistics.filling, store.fills.under_way()), (20, 0, 0));
    assert!(before.elapsed() < Duration::from_secs(60), "nothing waited until it gave up");
}

/// A request of one of many workers; the origin sends its body in pieces, with time between them.
async fn request(store: Arc<Store>, name: String, fetches: Arc<AtomicUsize>) {
    let expected = name.repeat(1000);
    let key = Key::new(name.as_bytes());
    let body = loop {
        if let Some(found) = store.look_up(key, seconds_now()) {
            break found.iter().next().expect("has one").body();
        }
        match turn(&store, &name) {
            Turn::Fetch(filler) => {
                fetches.fetch_add(1, Ordering::Relaxed);
                let (sender, body) = origin();
                let pieces: Vec<Bytes> =
                    expected.as_bytes().chunks(700).map(Bytes::copy_from_slice).collect();
                spawn_local(async move {
                    for piece in pieces {
                        sender.send(piece);
                        yield_now().await;
                    }
                });
                break filler.start(Sample::new(&name).head(), body).await.1;
            }
            Turn::Wait(waiter) => match waiter.wait(Duration::from_secs(60)).await {
                Waited::Kept(entry) => break entry.body(),
                Waited::Streaming(joined) => break joined.into_body(),
                _ => panic!("no fetch fails"),
            },
            Turn::LookAgain => {}
            Turn::Alone(..) => panic!("nothing is crowded"),
        }
    };
    assert_eq!(read(body).await.expect("whole"), expected);
}
