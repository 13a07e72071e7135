//! Rules of copies: what they get, what the original does not notice, and what they are bounded by.

use super::*;
use crate::telemetry::metrics::Metrics;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::BodyExt;
use std::future::pending;
use tokio::{sync::mpsc, task::LocalSet};
use weft_config::{identity::ServiceName, snapshot::Backend};

const TIME: Duration = Duration::from_secs(5);

/// A body fed by the test.
fn channel() -> (mpsc::UnboundedSender<Result<Frame<Bytes>, Error>>, Body) {
    let (sender, mut receiver) = mpsc::unbounded_channel();
    let stream = futures_util::stream::poll_fn(move |cx| receiver.poll_recv(cx));
    (sender, Body::Boxed(Box::pin(http_body_util::StreamBody::new(stream))))
}

fn mirror(numerator: u32, denominator: u32) -> Mirror {
    let backend = Backend { service: ServiceName::new("shop", "next"), port: 80, ..backend() };
    Mirror { backend, numerator, denominator }
}

fn backend() -> Backend {
    Backend {
        service: ServiceName::new("", ""),
        port: 0,
        weight: 1,
        filters: Default::default(),
        mirrors: Arc::new([]),
        invalid: None,
    }
}

/// Mirrors, and what the copies that they got looked like.
struct World {
    copies: Copies,
    mirrors: Vec<Mirror>,
    series: Vec<Arc<MirrorSeries>>,
}

impl World {
    fn new(mirrors: &[(u32, u32)]) -> Self {
        let metrics = Metrics::new(1);
        Self {
            copies: Copies::default(),
            mirrors: mirrors
                .iter()
                .map(|(numerator, denominator)| mirror(*numerator, *denominator))
                .collect(),
            series: (0..mirrors.len()).map(|n| metrics.mirror(&format!("shop/next{n}"))).collect(),
        }
    }

    fn send<F>(&self, body: Body, answer: impl Fn(usize, Parts, Body) -> F) -> Body
    where
        F: Future<Output = Result<Response<Body>, Error>> + 'static,
    {
        let head = Request::post("/pay").header("host", "shop").body(()).unwrap().into_parts().0;
        self.copies.send(&self.mirrors, &self.series, (&head, body), TIME, |_| 0, answer)
    }

    fn counts(&self) -> Vec<[u64; 3]> {
        let all = [CopyResult::Ok, CopyResult::Failed, CopyResult::Dropped];
        self.series.iter().map(|series| all.map(|result| series.count(result))).collect()
    }
}

fn run(test: impl Future<Output = ()>) {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    LocalSet::new().block_on(&runtime, test);
}

async fn settle() {
    tokio::time::sleep(Duration::from_millis(1)).await;
}

fn data(text: &'static str) -> Result<Frame<Bytes>, Error> {
    Ok(Frame::data(Bytes::from_static(text.as_bytes())))
}

fn ok() -> Result<Response<Body>, Error> {
    Ok(Response::new(Body::full("thanks")))
}

#[test]
fn a_copy_is_the_same_request_and_says_that_it_is_a_copy() {
    run(async {
        let world = World::new(&[(1, 1), (1, 1)]);
        let seen = Rc::new(RefCell::new(Vec::new()));
        let (sender, body) = channel();
        let original = world.send(body, |index, head, body| {
            let seen = seen.clone();
            async move {
                let body = body.collect().await?;
                let trailers = body.trailers().cloned();
                seen.borrow_mut().push((index, head.uri.path().to_owned(), head.headers.clone()));
                assert_eq!(trailers.expect("trailers")["x-sum"], "7");
                assert_eq!(body.to_bytes(), "one two");
                ok()
            }
        });
        sender.send(data("one ")).unwrap();
        sender.send(data("two")).unwrap();
        let mut trailers = HeaderMap::new();
        trailers.insert("x-sum", HeaderValue::from_static("7"));
        sender.send(Ok(Frame::trailers(trailers))).unwrap();
        drop(sender);
        let original = original.collect().await.expect("whole");
        assert_eq!(original.trailers().expect("trailers")["x-sum"], "7");
        assert_eq!(original.to_bytes(), "one two");
        settle().await;
        assert_eq!(world.counts(), [[1, 0, 0], [1, 0, 0]]);
        for (n, (index, path, headers)) in seen.borrow().iter().enumerate() {
            assert_eq!((*index, path.as_str()), (n, "/pay"));
            assert_eq!(
                (&headers["host"], &headers["weft-mirror"]),
                (&"shop".parse().unwrap(), &"1".parse().unwrap())
            );
        }
    });
}

#[test]
fn bodies_at_hand_are_shared_without_a_tee() {
    run(async {
        let world = World::new(&[(1, 1)]);
        let answer = |_, _, body: Body| async move {
            assert_eq!(body.collect().await?.to_bytes(), "hello");
            ok()
        };
        assert!(matches!(world.send(Body::full("hello"), answer), Body::Full(_)));
        let nothing = |_, _, body: Body| async move {
            assert!(matches!(body, Body::Empty));
            ok()
        };
        assert!(matches!(world.send(Body::Empty, nothing), Body::Empty));
        settle().await;
        assert_eq!(world.counts(), [[2, 0, 0]]);
    });
}

#[test]
fn a_copy_that_takes_nothing_is_dropped_and_the_original_goes_on() {
    run(async {
        let world = World::new(&[(1, 1)]);
        let (sender, body) = channel();
        let mut original = world.send(body, |_, _, mut body| async move {
            // Begins to read when it is too late.
            tokio::time::sleep(Duration::from_secs(1)).await;
            while let Some(frame) = body.frame().await {
                frame?;
            }
            ok()
        });
        let mut passed = 0;
        for _ in 0..100 {
            sender.send(Ok(Frame::data(vec![7; 10_000].into()))).unwrap();
            passed += original.frame().await.expect("goes on").expect("goes on").data_ref().unwrap().len();
        }
        assert_eq!(passed, 1_000_000);
        tokio::time::sleep(TIME).await;
        assert_eq!(world.counts(), [[0, 0, 1]]);
    });
}

#[test]
fn a_copy_that_hangs_or_fails_costs_the_original_nothing() {
    run(async {
        let world = World::new(&[(1, 1), (1, 1), (1, 1)]);
        let start = tokio::time::Instant::now();
        let (sender, body) = channel();
        let original = world.send(body, |index, _, _| async move {
            match index {
                0 => pending().await,
                1 => Err(Error::new(Kind::Connect, "nobody there")),
                _ => {
                    let mut response = Response::new(Body::Empty);
                    *response.status_mut() = StatusCode::BAD_GATEWAY;
                    Ok(response)
                }
            }
        });
        sender.send(data("hello")).unwrap();
        drop(sender);
        assert_eq!(original.collect().await.expect("whole").to_bytes(), "hello");
        assert_eq!(start.elapsed(), Duration::ZERO);
        settle().await;
        assert_eq!(world.counts(), [[0, 0, 0], [0, 1, 0], [0, 1, 0]]);
        tokio::time::sleep(TIME).await;
        assert_eq!(world.counts()[0], [0, 1, 0], "given up in time");
        assert!(world.copies.0.borrow().is_empty());
    });
}

#[test]
fn a_copy_breaks_off_where_its_original_does() {
    run(async {
        let world = World::new(&[(1, 1)]);
        let answer = |_, _, body: Body| async move {
            body.collect().await?;
            ok()
        };
        let (sender, body) = channel();
        let mut original = world.send(body, answer);
        sender.send(data("half")).unwrap();
        sender.send(Err(Error::new(Kind::Gone, "went away"))).unwrap();
        original.frame().await.expect("half").expect("half");
        assert_eq!(original.frame().await.expect("an error").err().map(|e| e.kind), Some(Kind::Gone));
        let (sender, body) = channel();
        let mut original = world.send(body, answer);
        sender.send(data("half")).unwrap();
        original.frame().await.expect("half").expect("half");
        drop(original);
        settle().await;
        assert_eq!(world.counts(), [[0, 2, 0]]);
    });
}

#[test]
fn copies_under_way_are_bounded() {
    run(async {
        let world = World::new(&[(1, 1)]);
        for _ in 0..UNDER_WAY + 10 {
            world.send(Body::Empty, |_, _, _| pending());
        }
        assert_eq!(world.copies.0.borrow()[0].1, UNDER_WAY);
        assert_eq!(world.counts(), [[0, 0, 10]]);
        tokio::time::sleep(TIME).await;
        settle().await;
        assert!(world.copies.0.borrow().is_empty());
        assert_eq!(world.counts(), [[0, UNDER_WAY as u64, 10]]);
    });
}

#[test]
fn a_mirror_that_hangs_takes_no_place_of_anothers() {
    run(async {
        let world = World::new(&[(1, 1), (1, 1)]);
        let sent = UNDER_WAY as u64 + 10;
        for _ in 0..sent {
            world.send(
                Body::Empty,
                |index, _, _| async move { if index == 0 { pending().await } else { ok() } },
            );
            settle().await;
        }
        assert_eq!(world.counts(), [[0, 0, 10], [sent, 0, 0]]);
        tokio::time::sleep(TIME).await;
        settle().await;
        assert_eq!(world.counts()[0], [0, UNDER_WAY as u64, 10]);
        assert!(world.copies.0.borrow().is_empty(), "nothing is kept of backends without copies");
    });
}

#[test]
fn a_mirror_gets_its_share_of_requests() {
    run(async {
        let (world, head) = (World::new(&[(3, 10), (0, 10), (5, 0)]), Request::new(()).into_parts().0);
        for n in 0..100 {
            let body = (&head, Body::Empty);
            let sent = |_, _, _| async { ok() };
            world.copies.send(&world.mirrors, &world.series, body, TIME, |below| n % below, sent);
            settle().await;
        }
        assert_eq!(world.counts(), [[30, 0, 0], [0, 0, 0], [0, 0, 0]]);
    });
}

#[test]
fn conversations_are_not_copied() {
    run(async {
        let world = World::new(&[(1, 1)]);
        for request in [Request::connect("a:80"), Request::get("/").header("upgrade", "websocket")] {
            let head = request.body(()).unwrap().into_parts().0;
            let sent = |_, _, _| async { ok() };
            world.copies.send(&world.mirrors, &world.series, (&head, Body::Empty), TIME, |_| 0, sent);
        }
        settle().await;
        assert_eq!(world.counts(), [[0, 0, 0]]);
    });
}

#[test]
fn a_long_answer_is_not_read_to_its_end() {
    run(async {
        let world = World::new(&[(1, 1)]);
        world.send(Body::Empty, |_, _, _| async {
            let endless = futures_util::stream::repeat_with(|| Ok(Frame::data(vec![0; 64 * 1024].into())));
            Ok(Response::new(Body::Boxed(Box::pin(http_body_util::StreamBody::new(endless)))))
        });
        settle().await;
        assert_eq!(world.counts(), [[1, 0, 0]]);
    });
}
