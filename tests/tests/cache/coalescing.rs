//! Requests that come at once: one fetch for all, and nobody waits for anybody longer than need be.

use crate::stage::{Set, URL, answer, caching, fresh, is_hit, request, said, with_status};
use bytes::Bytes;
use futures_util::{StreamExt, future::join_all};
use http::Response;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use std::sync::{
    Arc, Mutex,
    atomic::{AtomicUsize, Ordering::SeqCst},
};
use tokio::{
    sync::{Barrier, mpsc, watch},
    task::JoinHandle,
};
use weft_tests::{
    Beside, BoxError, Client, PATIENCE, eventually,
    mesh::{calling, traffic},
    scripted::{hang, text},
    soon,
};

/// Pieces of a body as a test lets go of them; an error breaks it off, and the end of the channel ends it.
type Pieces = mpsc::UnboundedSender<Result<Bytes, BoxError>>;

/// An origin whose first answer comes piece by piece; later ones are there at once.
async fn in_pieces(policy: &str, fields: &'static [(&'static str, &'static str)]) -> (Set, Pieces) {
    let (pieces, receiver) = mpsc::unbounded_channel::<Result<Bytes, BoxError>>();
    let receiver = Mutex::new(Some(receiver));
    let set = Set::at_once(policy, move |asked| {
        let Some(receiver) = receiver.lock().unwrap().take() else { return fresh(asked) };
        let frames = futures_util::stream::unfold(receiver, |mut receiver| async {
            let piece = receiver.recv().await?;
            Some((piece.map(Frame::data), receiver))
        });
        let head = answer(fields, "").into_parts().0;
        Response::from_parts(head, StreamBody::new(frames).boxed_unsync())
    });
    (set.await, pieces)
}

const MINUTE: &[(&str, &str)] = &[("cache-control", "max-age=60")];

/// Clients that call at once and note how much of the body each has.
struct Readers {
    tasks: Vec<JoinHandle<Result<Bytes, BoxError>>>,
    read: Vec<Arc<AtomicUsize>>,
}

impl Readers {
    fn call(client: &Arc<Client>, count: usize) -> Self {
        let read: Vec<Arc<AtomicUsize>> = (0..count).map(|_| Arc::default()).collect();
        let tasks = read.iter().map(|read| {
            let (client, read) = (client.clone(), read.clone());
            tokio::spawn(async move {
                let response = client.send(request("GET", "/", &[])).await?;
                assert_eq!(response.status(), 200);
                follow(response.into_body(), &read).await
            })
        });
        Self { tasks: tasks.collect(), read }
    }

    /// Waits until each has so many bytes.
    async fn have(&self, bytes: usize) {
        let have = || self.read.iter().filter(|read| read.load(SeqCst) >= bytes).count();
        eventually(&format!("all have {bytes} bytes"), PATIENCE, || async {
            (have() == self.read.len()).then_some(())
        })
        .await;
    }

    async fn end(self) -> Vec<Result<Bytes, BoxError>> {
        let ends = join_all(self.tasks);
        soon("all ends", ends).await.into_iter().map(|end| end.expect("did not panic")).collect()
    }
}

async fn follow(mut body: Incoming, read: &AtomicUsize) -> Result<Bytes, BoxError> {
    let mut whole = Vec::new();
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame?.into_data() {
            whole.extend_from_slice(&data);
            read.store(whole.len(), SeqCst);
        }
    }
    Ok(whole.into())
}

fn client(set: &Set) -> Arc<Client> {
    Arc::new(Client::new(set.stage.caller.outbound()))
}

async fn origin_is_asked(set: &Set, times: u64) {
    eventually("the origin is asked", PATIENCE, || async { (set.origin.begun() == times).then_some(()) })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_hundred_misses_at_once_are_one_fetch_that_all_read_as_it_comes() {
    let (set, pieces) = in_pieces(&caching(&[]), MINUTE).await;
    let readers = Readers::call(&client(&set), 100);
    origin_is_asked(&set, 1).await;
    pieces.send(Ok("first ".into())).unwrap();
    readers.have(6).await;
    assert_eq!(set.origin.ended(), 0, "all have the beginning before the origin has sent the end");
    let late = Readers::call(&client(&set), 5);
    late.have(6).await;
    pieces.send(Ok("last".into())).unwrap();
    drop(pieces);
    for whole in readers.end().await.into_iter().chain(late.end().await) {
        assert_eq!(whole.unwrap(), "first last");
    }
    assert_eq!(set.origin.begun(), 1);
    let kept = set.get("/", &[]).await;
    is_hit(&kept);
    assert_eq!((kept.text(), kept.header("content-length")), ("first last", "10"));
    let coalesced = set.counted("weft_cache_coalesced_total", &[]).await;
    assert!((99..=104).contains(&coalesced), "{coalesced}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn one_fetch_is_for_the_callers_of_all_workers() {
    let (set, pieces) = in_pieces(&(caching(&[]) + &calling("other")), MINUTE).await;
    let other = set.stage.mesh.sidecar(Beside::new("other").workers(4)).await;
    let readers = Readers::call(&Arc::new(Client::new(other.outbound())), 64);
    origin_is_asked(&set, 1).await;
    pieces.send(Ok("first ".into())).unwrap();
    readers.have(6).await;
    pieces.send(Ok("last".into())).unwrap();
    drop(pieces);
    for whole in readers.end().await {
        assert_eq!(whole.unwrap(), "first last");
    }
    assert_eq!(set.origin.begun(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn one_fetch_is_for_all_callers_where_the_answer_is_kept_at_the_service() {
    let (set, pieces) = in_pieces(&(caching(&["where: inbound"]) + &calling("other")), MINUTE).await;
    let (_other, other) = set.stage.another("other").await;
    let readers = [Readers::call(&client(&set), 20), Readers::call(&Arc::new(other), 20)];
    origin_is_asked(&set, 1).await;
    pieces.send(Ok("first ".into())).unwrap();
    for readers in &readers {
        readers.have(6).await;
    }
    pieces.send(Ok("last".into())).unwrap();
    drop(pieces);
    for readers in readers {
        for whole in readers.end().await {
            assert_eq!(whole.unwrap(), "first last");
        }
    }
    assert_eq!(set.origin.begun(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_client_that_does_not_read_holds_nobody_up_and_gets_everything_in_the_end() {
    let (set, pieces) = in_pieces(&caching(&["limits: { maxObjectBytes: 8MiB }"]), MINUTE).await;
    // The slow one comes first: its request is the one that fetches.
    let asleep = set.client().send(request("GET", "/", &[]));
    let (asleep, ()) = tokio::join!(asleep, origin_is_asked(&set, 1));
    let asleep = asleep.unwrap();
    let readers = Readers::call(&client(&set), 10);
    let piece = Bytes::from(vec![b'x'; 256 * 1024]);
    for _ in 0..24 {
        pieces.send(Ok(piece.clone())).unwrap();
    }
    readers.have(24 * piece.len()).await;
    drop(pieces);
    for whole in readers.end().await {
        assert_eq!(whole.unwrap().len(), 24 * piece.len());
    }
    is_hit(&set.get("/", &[]).await);
    let whole = soon("the slow one's body", asleep.into_body().collect()).await.unwrap().to_bytes();
    assert_eq!(whole.len(), 24 * piece.len());
    assert_eq!(set.origin.begun(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn when_the_one_that_fetches_goes_away_the_others_get_the_whole_body() {
    let (set, pieces) = in_pieces(&caching(&[]), MINUTE).await;
    let mut sender = set.client().http1().await.unwrap();
    let (first, ()) = tokio::join!(sender.send_request(request("GET", "/", &[])), origin_is_asked(&set, 1));
    let readers = Readers::call(&client(&set), 10);
    pieces.send(Ok("first ".into())).unwrap();
    readers.have(6).await;
    drop((first.unwrap(), sender));
    eventually("its connection is gone", PATIENCE, || async {
        let open = set.stage.caller.metrics().await.sum("weft_connections", &["direction=\"outbound\""]);
        (open == 10.0).then_some(())
    })
    .await;
    pieces.send(Ok("last".into())).unwrap();
    drop(pieces);
    for whole in readers.end().await {
        assert_eq!(whole.unwrap(), "first last");
    }
    assert_eq!((set.origin.begun(), set.origin.cancelled()), (1, 0));
    is_hit(&set.get("/", &[]).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn when_the_one_that_fetches_goes_away_before_an_answer_one_that_waits_takes_over() {
    let set = Set::new(&caching(&[]), |asked| async move {
        if asked.turn == 0 { hang().await } else { Ok(fresh(&asked)) }
    })
    .await;
    let mut sender = set.client().http1().await.unwrap();
    let first = tokio::spawn(async move { sender.send_request(request("GET", "/", &[])).await.map(drop) });
    origin_is_asked(&set, 1).await;
    let readers = Readers::call(&client(&set), 10);
    eventually("they wait", PATIENCE, || async {
        (set.counted("weft_cache_coalesced_total", &[]).await == 10).then_some(())
    })
    .await;
    first.abort();
    for whole in readers.end().await {
        assert_eq!(whole.unwrap(), "/ 1");
    }
    assert_eq!((set.origin.begun(), set.origin.cancelled()), (2, 1));
    assert_eq!(set.counted("weft_cache_handed_over_total", &[]).await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nobody_waits_in_line_for_what_cannot_be_kept() {
    const CALLERS: usize = 16;
    let (open, opened) = watch::channel(false);
    // All but the first have to be there together before any of them is answered.
    let (rest, all) = (Arc::new(Barrier::new(CALLERS - 1)), Arc::new(Barrier::new(CALLERS)));
    let set = Set::new(&caching(&[]), move |asked| {
        let (rest, all, mut opened) = (rest.clone(), all.clone(), opened.clone());
        async move {
            match asked.turn as usize {
                0 => drop(opened.wait_for(|open| *open).await?),
                1..CALLERS => {
                    rest.wait().await;
                }
                _ => {
                    all.wait().await;
                }
            }
            Ok(answer(&[("cache-control", "no-store")], asked.turn.to_string()))
        }
    })
    .await;
    let readers = Readers::call(&client(&set), CALLERS);
    eventually("the others wait", PATIENCE, || async {
        (set.counted("weft_cache_coalesced_total", &[]).await == CALLERS as u64 - 1).then_some(())
    })
    .await;
    open.send(true).unwrap();
    let mut turns: Vec<usize> = Vec::new();
    for whole in readers.end().await {
        turns.push(std::str::from_utf8(&whole.unwrap()).unwrap().parse().unwrap());
    }
    turns.sort_unstable();
    assert_eq!(turns, (0..CALLERS).collect::<Vec<_>>(), "each has its own");
    // Now it is known that it cannot be kept: nobody waits for anybody.
    for whole in Readers::call(&client(&set), CALLERS).end().await {
        whole.unwrap();
    }
    assert_eq!(set.origin.begun(), 2 * CALLERS as u64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn where_policy_says_so_each_request_is_fetched_by_itself() {
    const CALLERS: usize = 8;
    let together = Arc::new(Barrier::new(CALLERS));
    let set = Set::new(&caching(&["coalescing: { enabled: false }"]), move |asked| {
        let together = together.clone();
        async move {
            together.wait().await;
            Ok(fresh(&asked))
        }
    })
    .await;
    for whole in Readers::call(&client(&set), CALLERS).end().await {
        whole.unwrap();
    }
    is_hit(&set.get("/", &[]).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_request_waits_for_another_longer_than_policy_says() {
    let set = Set::new(&caching(&["coalescing: { maxWait: 300ms }"]), |asked| async move {
        if asked.turn == 0 { hang().await } else { Ok(fresh(&asked)) }
    })
    .await;
    let _first = Readers::call(&client(&set), 1);
    origin_is_asked(&set, 1).await;
    for whole in Readers::call(&client(&set), 5).end().await {
        assert!(whole.unwrap().starts_with(b"/ "));
    }
    assert_eq!(set.origin.cancelled(), 0, "the first one still waits");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_body_that_breaks_off_is_a_whole_one_for_nobody_and_is_not_kept() {
    for fields in [MINUTE, &[("cache-control", "max-age=60"), ("content-length", "100")]] {
        let (set, pieces) = in_pieces(&caching(&[]), fields).await;
        let readers = Readers::call(&client(&set), 10);
        origin_is_asked(&set, 1).await;
        pieces.send(Ok("first".into())).unwrap();
        readers.have(5).await;
        pieces.send(Err("as the test says".into())).unwrap();
        for whole in readers.end().await {
            assert!(whole.is_err(), "half a body is passed off as a whole one: {whole:?}");
        }
        let answer = set.get("/", &[]).await;
        assert_eq!(answer.text(), "/ 1", "{:?}", answer.headers);
        is_hit(&set.get("/", &[]).await);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_body_that_gets_too_large_to_be_kept_still_reaches_those_who_read_it() {
    let (set, pieces) = in_pieces(&caching(&["limits: { maxObjectBytes: 64KiB }"]), MINUTE).await;
    let readers = Readers::call(&client(&set), 5);
    origin_is_asked(&set, 1).await;
    let piece = Bytes::from(vec![b'x'; 32 * 1024]);
    for turn in 1..=16 {
        pieces.send(Ok(piece.clone())).unwrap();
        // Nobody is far behind.
        readers.have(turn * piece.len()).await;
    }
    drop(pieces);
    for whole in readers.end().await {
        assert_eq!(whole.unwrap().len(), 16 * piece.len());
    }
    assert_eq!(set.origin.begun(), 1);
    assert!(!said(&set.get("/", &[]).await).contains("hit"));
    assert_eq!(set.counted("weft_cache_outgrown_total", &[]).await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_fetch_that_fails_releases_those_who_wait_for_it() {
    const CALLERS: usize = 12;
    let (open, opened) = watch::channel(false);
    let set = Set::new(&caching(&[]), move |asked| {
        let mut opened = opened.clone();
        async move {
            if asked.turn == 0 {
                opened.wait_for(|open| *open).await?;
                return Ok(with_status(500, &[], "no"));
            }
            Ok(answer(MINUTE, "yes"))
        }
    })
    .await;
    let calls = (0..CALLERS).map(|_| set.get("/", &[]));
    let (answers, ()) = tokio::join!(join_all(calls), async {
        eventually("the others wait", PATIENCE, || async {
            (set.counted("weft_cache_coalesced_total", &[]).await == CALLERS as u64 - 1).then_some(())
        })
        .await;
        open.send(true).unwrap();
    });
    let failed = answers.iter().filter(|answer| answer.status == 500).count();
    assert_eq!(failed, 1, "only the one that fetched is told so");
    assert!(answers.iter().filter(|answer| answer.status == 200).all(|answer| answer.text() == "yes"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn different_addresses_and_variants_do_not_wait_for_each_other() {
    let together = Arc::new(Barrier::new(8));
    let set = Set::new(&caching(&[]), move |asked| {
        let together = together.clone();
        async move {
            if asked.path == "/known" {
                let body = asked.header("x-kind").to_owned();
                return Ok(answer(&[("cache-control", "max-age=60"), ("vary", "x-kind")], body));
            }
            together.wait().await;
            Ok(text(asked.path))
        }
    })
    .await;
    let calls = futures_util::stream::iter(0..8).map(|n| {
        let client = set.client();
        async move { client.get(&format!("{URL}/{n}")).await }
    });
    assert_eq!(calls.buffer_unordered(8).count().await, 8);
    set.get("/known", &[("x-kind", "0")]).await;
    let kinds = join_all((0..8).map(|n| {
        let set = &set;
        async move {
            let kind = n.to_string();
            assert_eq!(set.get("/known", &[("x-kind", &kind)]).await.text(), kind);
        }
    }));
    kinds.await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn who_joins_a_fetch_gets_what_it_asked_for_of_it() {
    const TAGGED: &[(&str, &str)] =
        &[("cache-control", "max-age=60"), ("etag", "\"a\""), ("content-length", "10")];
    let (pieces, receiver) = mpsc::unbounded_channel::<Result<Bytes, BoxError>>();
    let receiver = Mutex::new(Some(receiver));
    let set = Set::at_once(&caching(&[]), move |asked| {
        if asked.headers.contains_key("range") {
            return with_status(206, &[("content-range", "bytes 0-1/10"), TAGGED[0], TAGGED[1]], "fi");
        }
        if asked.method == "HEAD" {
            return answer(TAGGED, "");
        }
        let mut receiver = receiver.lock().unwrap().take().expect("one fetch of all");
        let frames = futures_util::stream::poll_fn(move |context| receiver.poll_recv(context));
        let body = StreamBody::new(frames.map(|piece| piece.map(Frame::data))).boxed_unsync();
        Response::from_parts(answer(TAGGED, "").into_parts().0, body)
    })
    .await;
    let readers = Readers::call(&client(&set), 3);
    origin_is_asked(&set, 1).await;
    pieces.send(Ok("first ".into())).unwrap();
    readers.have(6).await;
    // The head is known, so that much can be answered before the body is here.
    let same = set.get("/", &[("if-none-match", "\"a\"")]).await;
    assert_eq!((same.status.as_u16(), same.text()), (304, ""), "{:?}", same.headers);
    let head = set.send("HEAD", "/", &[]).await;
    assert_eq!((head.status.as_u16(), head.header("content-length")), (200, "10"), "{:?}", head.headers);
    // A part of what is here as well; one of what is not here yet comes with it.
    let part = set.get("/", &[("range", "bytes=0-1")]).await;
    assert_eq!((part.status.as_u16(), part.text()), (206, "fi"), "{:?}", part.headers);
    assert_eq!(part.header("content-range"), "bytes 0-1/10");
    let later = client(&set);
    let later = tokio::spawn(async move {
        later.get_with(&format!("{URL}/"), &[("range", "bytes=4-7"), ("if-range", "\"a\"")]).await
    });
    eventually("it waits", PATIENCE, || async {
        (set.counted("weft_cache_coalesced_total", &[]).await >= 5).then_some(())
    })
    .await;
    pieces.send(Ok("last".into())).unwrap();
    drop(pieces);
    let later = soon("the later part", later).await.unwrap();
    assert_eq!((later.status.as_u16(), later.text()), (206, "t la"), "{:?}", later.headers);
    assert!(set.origin.asked().iter().all(|asked| asked.header("range").is_empty()), "one fetch for all");
    for whole in readers.end().await {
        assert_eq!(whole.unwrap(), "first last");
    }
    let whole = set.get("/", &[]).await;
    is_hit(&whole);
    assert_eq!(whole.text(), "first last");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_time_of_a_request_that_waits_for_another_is_its_own() {
    let policy = caching(&["coalescing: { maxWait: 60s }", "stale: { ifError: 1h }"])
        + &traffic("product", "timeouts: { request: 2s }, retries: { attempts: 0 }");
    let set = Set::new(&policy, |asked| async move {
        if asked.path == "/kept" && asked.turn == 0 {
            let stale = crate::stage::stale_by_forty("public");
            return Ok(answer(&crate::stage::as_fields(&stale), "kept"));
        }
        hang().await
    })
    .await;
    assert_eq!(set.get("/kept", &[]).await.text(), "kept");
    let calls = join_all((0..8).map(|_| set.get("/", &[])));
    let stale = join_all((0..8).map(|_| set.get("/kept", &[])));
    let (failed, stale) = tokio::join!(calls, stale);
    for answer in failed {
        assert_eq!((answer.status.as_u16(), answer.weft_error()), (504, "timeout"), "{}", answer.text());
    }
    for answer in stale {
        assert_eq!((answer.status.as_u16(), answer.text()), (200, "kept"), "{:?}", answer.headers);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_is_too_large_by_its_own_word_is_fetched_by_each_and_arrives_whole() {
    let set = Set::at_once(&caching(&["limits: { maxObjectBytes: 10KiB }"]), |_| {
        answer(MINUTE, vec![b'x'; 20 * 1024])
    })
    .await;
    for whole in Readers::call(&client(&set), 8).end().await {
        assert_eq!(whole.unwrap().len(), 20 * 1024);
    }
    let answer = set.get("/", &[]).await;
    crate::stage::is_not_kept(&answer, "uri-miss", "too-large");
    assert_eq!(answer.body.len(), 20 * 1024);
}
