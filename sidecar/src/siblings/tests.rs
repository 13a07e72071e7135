//! What one question waits for, in paused time.

use super::*;
use crate::error::Error;
use http::HeaderName;
use http_body_util::Full;
use std::future::{pending, ready};
use tokio::{task::LocalSet, time::sleep};

const PATIENCE: Duration = Duration::from_millis(100);
const WAIT: Duration = Duration::from_secs(5);

/// Keeps what the caller would get.
#[derive(Default)]
struct Kept(RefCell<Vec<u16>>);

impl Back for Kept {
    fn interim(&self, head: Response<()>) {
        self.0.borrow_mut().push(head.status().as_u16());
    }
}

fn run<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    LocalSet::new().block_on(&runtime.expect("a runtime"), test)
}

fn interim(status: u16) -> Response<()> {
    Response::builder().status(status).body(()).expect("a head")
}

fn answer(status: u16) -> Response<Body> {
    Response::builder().status(status).body(Body::full("answer")).expect("an answer")
}

fn broken() -> Failed {
    Failed { error: Error::new(Kind::Reset, "broken"), body: None }
}

/// How a question ends, and when; the script gets the way back.
async fn ask<F: Future<Output = Result<Response<Body>, Failed>>>(
    back: &Kept,
    until: Duration,
    script: impl FnOnce(Rc<dyn Fn(u16)>) -> F,
) -> (Outcome, Duration) {
    let heard = Rc::new(Cell::new(Vec::new()));
    let tell: Rc<dyn Fn(u16)> = Rc::new({
        let heard = heard.clone();
        move |status| {
            let mut all = heard.take();
            all.push(status);
            heard.set(all);
        }
    });
    let began = Instant::now();
    let signs = Heard { back, working: Cell::new(false) };
    let mut script = Box::pin(script(tell));
    let exchange = poll_fn(|cx| {
        let polled = script.as_mut().poll(cx);
        heard.take().into_iter().for_each(|status| signs.interim(interim(status)));
        polled
    });
    let outcome = wait(exchange, &signs, began + PATIENCE, began + until).await;
    (outcome, began.elapsed())
}

#[test]
fn an_answer_in_time_is_taken() {
    let (outcome, took) = run(ask(&Kept::default(), WAIT, |_| async {
        sleep(Duration::from_millis(99)).await;
        Ok(answer(200))
    }));
    assert!(matches!(outcome, Outcome::Answered(_)));
    assert_eq!(took, Duration::from_millis(99));
}

#[test]
fn one_that_says_nothing_is_waited_for_once_and_not_for_long() {
    let (outcome, took) = run(ask(&Kept::default(), WAIT, |_| pending()));
    assert!(matches!(outcome, Outcome::Silent));
    assert_eq!(took, PATIENCE);
}

#[test]
fn one_that_says_that_it_is_at_work_is_waited_for_longer() {
    let back = Kept::default();
    let (outcome, took) = run(ask(&back, WAIT, |tell| async move {
        sleep(Duration::from_millis(20)).await;
        tell(102);
        sleep(Duration::from_secs(2)).await;
        Ok(answer(200))
    }));
    assert!(matches!(outcome, Outcome::Answered(_)));
    assert_eq!(took, Duration::from_millis(2020));
    assert!(back.0.borrow().is_empty(), "the sign is for us");
}

#[test]
fn one_that_is_at_work_for_ever_is_waited_for_as_long_as_one_fetch() {
    let (outcome, took) = run(ask(&Kept::default(), WAIT, |tell| async move {
        tell(102);
        pending().await
    }));
    assert!(matches!(outcome, Outcome::Slow));
    assert_eq!(took, WAIT);
}

#[test]
fn what_the_origin_says_before_its_answer_goes_to_the_caller() {
    let back = Kept::default();
    run(ask(&back, WAIT, |tell| async move {
        tell(102);
        tell(103);
        Ok(answer(200))
    }));
    assert_eq!(*back.0.borrow(), [103]);
}

#[test]
fn nobody_waits_longer_than_the_caller_does() {
    let short = Duration::from_millis(30);
    let (outcome, took) = run(ask(&Kept::default(), short, |_| pending()));
    assert!(matches!(outcome, Outcome::Silent));
    assert_eq!(took, short);
}

#[test]
fn one_that_cannot_be_reached_costs_no_wait() {
    let (outcome, took) = run(ask(&Kept::default(), WAIT, |_| ready(Err(broken()))));
    assert!(matches!(outcome, Outcome::Failed));
    assert_eq!(took, Duration::ZERO);
}

#[test]
fn errors_that_sidecars_made_are_no_answers() {
    let outcome = |error: &'static str| {
        let mut response = answer(503);
        response.headers_mut().insert(WEFT_ERROR, HeaderValue::from_static(error));
        judged(response)
    };
    assert!(matches!(outcome("forbidden"), Outcome::Refused));
    assert!(matches!(outcome("misdirected"), Outcome::Unknown));
    assert!(matches!(outcome("draining"), Outcome::Failed));
    assert!(matches!(outcome("connect"), Outcome::Error));
    assert!(matches!(outcome("of a later version"), Outcome::Error));
    assert!(matches!(judged(answer(503)), Outcome::Answered(_)), "the origin's own");
}

/// A body that comes in two parts with a pause between them, and breaks off there or not.
fn streamed(length: usize, breaks: bool) -> Body {
    struct Parts(usize, bool, Option<Pin<Box<Sleep>>>, usize);
    impl http_body::Body for Parts {
        type Data = bytes::Bytes;
        type Error = Error;
        fn poll_frame(
            mut self: Pin<&mut Self>,
            cx: &mut std::task::Context<'_>,
        ) -> Poll<Option<Result<http_body::Frame<bytes::Bytes>, Error>>> {
            if self.3 == 2 {
                return Poll::Ready(None);
            }
            if self.3 == 1 {
                let sleep = self.2.get_or_insert_with(|| Box::pin(sleep(Duration::from_millis(10))));
                std::task::ready!(sleep.as_mut().poll(cx));
            }
            self.3 += 1;
            if self.3 == 2 && self.1 {
                return Poll::Ready(Some(Err(Error::new(Kind::Reset, "broken"))));
            }
            let bytes = bytes::Bytes::from(vec![b'x'; self.0 / 2]);
            Poll::Ready(Some(Ok(http_body::Frame::data(bytes))))
        }
        fn size_hint(&self) -> http_body::SizeHint {
            http_body::SizeHint::with_exact(self.0 as u64)
        }
    }
    Body::Boxed(Box::pin(Parts(length, breaks, None, 0)))
}

async fn taken(body: Body) -> Outcome {
    take(Response::new(body), Instant::now() + WAIT).await
}

#[test]
fn a_small_answer_is_taken_only_as_a_whole() {
    let whole = run(taken(streamed(1000, false)));
    let Outcome::Answered(response) = whole else { panic!("an answer") };
    assert!(matches!(response.into_body(), Body::Full(bytes) if bytes.len() == 1000));
    assert!(matches!(run(taken(streamed(1000, true))), Outcome::Failed));
    let late = run(async { take(Response::new(streamed(1000, false)), Instant::now()).await });
    assert!(matches!(late, Outcome::Slow));
}

#[test]
fn a_large_answer_is_passed_on_as_it_comes() {
    let Outcome::Answered(response) = run(taken(streamed(1 << 20, true))) else { panic!("an answer") };
    assert!(matches!(response.into_body(), Body::Boxed(_)));
}

#[test]
fn trailers_stay() {
    let mut trailers = http::HeaderMap::new();
    trailers.insert("checksum", HeaderValue::from_static("1"));
    let body = Full::new(bytes::Bytes::from_static(b"x")).with_trailers(ready(Some(Ok(trailers))));
    let body = Body::Boxed(Box::pin(body.map_err(|never| match never {})));
    let Outcome::Answered(response) = run(taken(body)) else { panic!("an answer") };
    let whole = run(response.into_body().collect()).expect("whole");
    assert_eq!(whole.trailers().expect("trailers")["checksum"], "1");
    assert_eq!(whole.to_bytes(), "x");
}

#[test]
fn an_answer_comes_without_what_is_between_sidecars_but_with_what_is_for_caches() {
    let mut response = answer(200);
    for name in ["weft-retried", "weft-case", "weft-cache-control", "age", "cache-tag", "connection"] {
        response.headers_mut().insert(name, HeaderValue::from_static("1"));
    }
    let Outcome::Answered(response) = run(async { take(response, Instant::now() + WAIT).await }) else {
        panic!("an answer")
    };
    let mut left: Vec<_> = response.headers().keys().map(HeaderName::as_str).collect();
    left.sort_unstable();
    assert_eq!(left, ["age", "cache-tag", "weft-cache-control"]);
}

#[test]
fn a_question_is_the_callers_request_with_what_is_wanted_and_nothing_else_of_ours() {
    let request = http::Request::get("http://product:8080/a?b=c")
        .header("accept", "text/html")
        .header("weft-attempt", "2")
        .header(WEFT_CACHE_ASK, "inbound spiffe://weft.local/ns/shop/sa/admin")
        .body(());
    let (head, ()) = request.expect("a request").into_parts();
    let ask = Ask::Outbound { service: ServiceName::new("shop", "product"), port: 8080, scope: 7 };
    let to = ToSibling { key: b"", request: &head, anew: false, patience: PATIENCE, wait: None };
    let back = Kept::default();
    let question = |to| Question { to, ask: &ask, until: Deadline::NONE, back: &back, served: None };
    let sent = question(to).head().expect("a head");
    assert_eq!((&sent.method, &sent.uri), (&head.method, &head.uri));
    assert_eq!(sent.headers.len(), 2);
    assert_eq!(sent.headers[WEFT_CACHE_ASK], "outbound shop/product 8080 0000000000000007");
    assert_eq!(sent.headers["accept"], "text/html");
    let sent = question(ToSibling { anew: true, ..to }).head().expect("a head");
    assert_eq!(sent.headers["cache-control"], "no-cache", "what was changed here must not come from before");
}
