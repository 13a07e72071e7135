//! Both ends over an in-memory pipe, and each end against a bare h2 peer where a peer must misbehave.

use super::*;
use crate::{
    body::Body,
    drain::Drain,
    error::{Error, Kind},
    exchange::{Back, Failed, Handler},
    http1::HeaderCase,
    io::Io,
};
use bytes::Bytes;
use h2::Reason;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version};
use http_body::{Body as HttpBody, Frame};
use http_body_util::BodyExt;
use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    future::{pending, poll_fn},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    task::{LocalSet, spawn_local},
};

type Answer = Pin<Box<dyn Future<Output = Response<Body>>>>;

/// An application made of one function.
struct App<F>(F);

impl<F: Fn(Request<Body>, &dyn Back) -> Answer> Handler for App<F> {
    fn handle(&self, request: Request<Body>, back: &dyn Back) -> impl Future<Output = Response<Body>> {
        (self.0)(request, back)
    }

    fn refuse(&self, error: Error) -> Response<Body> {
        let mut response = Response::new(Body::full(error.detail.into_owned()));
        *response.status_mut() = error.kind.row().status;
        response.headers_mut().insert("weft-error", HeaderValue::from_static(error.kind.row().name));
        response
    }
}

/// A caller who keeps the interim responses it gets.
#[derive(Default)]
struct Heard(RefCell<Vec<StatusCode>>);

impl Back for Heard {
    fn interim(&self, head: Response<()>) {
        self.0.borrow_mut().push(head.status());
    }
}

fn brief() -> Settings {
    Settings { handshake_timeout: Duration::from_secs(1), ..Settings::default() }
}

/// Serves `app` at one end of a pipe; the other end and the drain are returned.
fn serving<F>(
    app: F,
    settings: Settings,
) -> (DuplexStream, Rc<Drain>, tokio::task::JoinHandle<Result<(), Error>>)
where
    F: Fn(Request<Body>, &dyn Back) -> Answer + 'static,
{
    let (near, far) = duplex(64 * 1024);
    let drain = Rc::new(Drain::default());
    let server = serve(Io::memory(far), Rc::new(App(app)), Rc::new(settings), drain.clone());
    (near, drain, spawn_local(server))
}

/// A client of ours whose other end is served by `app`.
async fn mesh<F>(app: F, settings: Settings) -> (Rc<Client>, Rc<Drain>)
where
    F: Fn(Request<Body>, &dyn Back) -> Answer + 'static,
{
    let (near, drain, _) = serving(app, settings.clone());
    let client = Client::connect(Io::memory(near), Rc::new(settings)).await.expect("HTTP/2");
    (client, drain)
}

fn get(path: &str) -> Request<Body> {
    Request::get(format!("http://product:8080{path}"))
        .version(Version::HTTP_2)
        .body(Body::Empty)
        .expect("a request")
}

fn post(body: Body) -> Request<Body> {
    Request::post("http://product:8080/").version(Version::HTTP_2).body(body).expect("a request")
}

async fn send(client: &Client, request: Request<Body>) -> Result<Response<Body>, Failed> {
    client.exchange(request, &Heard::default()).await
}

async fn text(response: Response<Body>) -> String {
    let bytes = response.into_body().collect().await.expect("a whole body").to_bytes();
    String::from_utf8(bytes.to_vec()).expect("text")
}

fn echo(request: Request<Body>, _: &dyn Back) -> Answer {
    Box::pin(async move { Response::new(request.into_body()) })
}

/// A body of pieces that come one a poll, and that counts how many were taken.
struct Pieces {
    pieces: VecDeque<Frame<Bytes>>,
    taken: Rc<Cell<usize>>,
    /// Not the end after the last: nothing comes any more.
    stalls: bool,
    dropped: Rc<Cell<bool>>,
}

impl Pieces {
    fn of(pieces: impl IntoIterator<Item = Frame<Bytes>>) -> Self {
        Self {
            pieces: pieces.into_iter().collect(),
            taken: Rc::default(),
            stalls: false,
            dropped: Rc::default(),
        }
    }

    fn stalling() -> Self {
        let mut pieces = Self::of([]);
        pieces.stalls = true;
        pieces
    }

    fn body(self) -> Body {
        Body::Boxed(Box::pin(self))
    }
}

impl Drop for Pieces {
    fn drop(&mut self) {
        self.dropped.set(true);
    }
}

impl HttpBody for Pieces {
    type Data = Bytes;
    type Error = Error;
    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        match self.pieces.pop_front() {
            Some(frame) => {
                self.taken.set(self.taken.get() + 1);
                Poll::Ready(Some(Ok(frame)))
            }
            None if self.stalls => Poll::Pending,
            None => Poll::Ready(None),
        }
    }
}

fn data(bytes: impl Into<Bytes>) -> Frame<Bytes> {
    Frame::data(bytes.into())
}

/// Lets everything else run until nothing is left to do.
async fn settle() {
    tokio::time::sleep(Duration::from_millis(1)).await;
}

async fn run<T>(test: impl Future<Output = T>) -> T {
    LocalSet::new().run_until(test).await
}

#[tokio::test]
async fn a_request_and_its_response_keep_their_shape() {
    run(async {
        let app = |request: Request<Body>, _: &dyn Back| -> Answer {
            Box::pin(async move {
                assert_eq!(request.version(), Version::HTTP_2);
                assert_eq!(request.uri(), "http://product:8080/a?b=c");
                assert!(request.body().is_end_stream(), "a request without a body ends with its head");
                assert_eq!(request.headers()["x-a"], "1");
                Response::builder()
                    .status(201)
                    .header("x-b", "2")
                    .body(Body::full("made"))
                    .expect("a response")
            })
        };
        let (client, _drain) = mesh(app, brief()).await;
        let mut request = get("/a?b=c");
        request.headers_mut().insert("x-a", HeaderValue::from_static("1"));
        let response = send(&client, request).await.ok().expect("a response");
        assert_eq!((response.status(), response.version()), (StatusCode::CREATED, Version::HTTP_2));
        assert_eq!(response.headers()["x-b"], "2");
        assert_eq!(client.in_flight(), 1, "an exchange is under way until its body is dropped");
        assert_eq!(text(response).await, "made");
        assert_eq!(client.in_flight(), 0);
    })
    .await;
}

#[tokio::test]
async fn bodies_and_trailers_pass_both_ways() {
    run(async {
        let (client, _drain) = mesh(echo, brief()).await;
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from_static("0"));
        let body = Pieces::of([data("one "), data("two"), Frame::trailers(trailers.clone())]).body();
        let response = send(&client, post(body)).await.ok().expect("a response");
        let whole = response.into_body().collect().await.expect("a body");
        assert_eq!(whole.trailers(), Some(&trailers));
        assert_eq!(whole.to_bytes(), "one two");
    })
    .await;
}

#[tokio::test]
async fn large_bodies_arrive_whole_through_small_windows() {
    run(async {
        let settings =
            Settings { stream_window: 70_000, connection_window: 200_000, send_buffer: 30_000, ..brief() };
        let (client, _drain) = mesh(echo, settings).await;
        let bytes: Vec<u8> = (0..3_000_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        for body in [
            Body::full(bytes.clone()),
            Pieces::of(bytes.chunks(50_000).map(|chunk| data(chunk.to_vec()))).body(),
        ] {
            let response = send(&client, post(body)).await.ok().expect("a response");
            assert!(response.into_body().collect().await.expect("a body").to_bytes() == bytes);
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_body_nobody_takes_stops_its_sender_and_no_other() {
    run(async {
        let settings = Settings { stream_window: 64 * 1024, connection_window: 512 * 1024, ..brief() };
        let taken = Rc::new(Cell::new(0));
        let counter = taken.clone();
        let app = move |request: Request<Body>, _: &dyn Back| -> Answer {
            let mut pieces = Pieces::of((0..1000).map(|_| data(vec![7; 10_000])));
            pieces.taken = counter.clone();
            let whole = request.uri().path() == "/large";
            Box::pin(async move { Response::new(if whole { pieces.body() } else { Body::full("quick") }) })
        };
        let (client, _drain) = mesh(app, settings).await;
        let stalled = send(&client, get("/large")).await.ok().expect("a head");
        settle().await;
        // One window, what h2 may keep, and one piece held.
        let bound = (64 * 1024 + 256 * 1024) / 10_000 + 2;
        assert!(taken.get() <= bound, "{} pieces were taken of a body nobody reads", taken.get());
        let other = send(&client, get("/small")).await.ok().expect("a head");
        assert_eq!(text(other).await, "quick");
        let all = stalled.into_body().collect().await.expect("a body").to_bytes();
        assert_eq!((all.len(), taken.get()), (10_000_000, 1000));
    })
    .await;
}

#[tokio::test]
async fn interim_responses_are_passed_on() {
    run(async {
        let app = |_: Request<Body>, back: &dyn Back| -> Answer {
            for status in [100, 103, 101] {
                back.interim(
                    Response::builder().status(status).header("connection", "x").body(()).expect("a head"),
                );
            }
            Box::pin(async { Response::new(Body::Empty) })
        };
        let (client, _drain) = mesh(app, brief()).await;
        let heard = Heard::default();
        let response = client.exchange(get("/"), &heard).await.ok().expect("a response");
        assert_eq!(response.status(), 200);
        assert_eq!(
            *heard.0.borrow(),
            [StatusCode::CONTINUE, StatusCode::EARLY_HINTS],
            "101 means nothing in HTTP/2"
        );
    })
    .await;
}

#[tokio::test]
async fn both_ends_stream_at_once() {
    run(async {
        let (client, _drain) = mesh(echo, brief()).await;
        let (sender, body) = channel();
        let response = send(&client, post(body)).await.ok().expect("a head before the upload is over");
        let mut back = response.into_body();
        for word in ["ping", "pong"] {
            sender.send(Ok(word.into())).expect("open");
            let frame = back.frame().await.expect("a frame").expect("no error");
            assert_eq!(frame.into_data().ok().expect("data"), word);
        }
        drop(sender);
        assert!(back.frame().await.is_none());
    })
    .await;
}

/// A body fed from the test.
fn channel() -> (tokio::sync::mpsc::UnboundedSender<Result<Bytes, Error>>, Body) {
    struct Channel(tokio::sync::mpsc::UnboundedReceiver<Result<Bytes, Error>>);
    impl HttpBody for Channel {
        type Data = Bytes;
        type Error = Error;
        fn poll_frame(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
            self.0.poll_recv(cx).map(|piece| piece.map(|piece| piece.map(Frame::data)))
        }
    }
    let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
    (sender, Body::Boxed(Box::pin(Channel(receiver))))
}

#[tokio::test(start_paused = true)]
async fn dropping_a_response_body_stops_the_other_side() {
    run(async {
        let dropped = Rc::new(Cell::new(false));
        let flag = dropped.clone();
        let app = move |_: Request<Body>, _: &dyn Back| -> Answer {
            let mut pieces = Pieces::stalling();
            pieces.dropped = flag.clone();
            Box::pin(async move { Response::new(pieces.body()) })
        };
        let (client, _drain) = mesh(app, brief()).await;
        let upload = Pieces::stalling();
        let uploading = upload.dropped.clone();
        let response = send(&client, post(upload.body())).await.ok().expect("a head");
        settle().await;
        assert!(!dropped.get() && !uploading.get());
        drop(response);
        settle().await;
        assert!(dropped.get(), "the server let go of the body");
        assert!(uploading.get(), "and so did the client of the upload");
        assert_eq!(client.in_flight(), 0);
        assert!(client.is_usable());
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn dropping_an_exchange_cancels_the_handler() {
    run(async {
        struct Flag(Rc<Cell<bool>>);
        impl Drop for Flag {
            fn drop(&mut self) {
                self.0.set(true);
            }
        }
        let cancelled = Rc::new(Cell::new(false));
        let flag = cancelled.clone();
        let app = move |_: Request<Body>, _: &dyn Back| -> Answer {
            let flag = Flag(flag.clone());
            Box::pin(async move {
                pending::<()>().await;
                drop(flag);
                Response::new(Body::Empty)
            })
        };
        let (client, _drain) = mesh(app, brief()).await;
        let late = tokio::time::timeout(Duration::from_millis(10), send(&client, get("/"))).await;
        assert!(late.is_err());
        settle().await;
        assert!(cancelled.get());
        assert_eq!(client.in_flight(), 0);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_broken_upload_fails_the_exchange_with_its_own_error() {
    run(async {
        struct Broken;
        impl HttpBody for Broken {
            type Data = Bytes;
            type Error = Error;
            fn poll_frame(
                self: Pin<&mut Self>,
                _: &mut Context<'_>,
            ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
                Poll::Ready(Some(Err(Error::new(Kind::TooLarge, "too much"))))
            }
        }
        let app = |request: Request<Body>, _: &dyn Back| -> Answer {
            Box::pin(async move {
                let error = request.into_body().collect().await.err().expect("reset");
                assert_eq!(error.kind, Kind::Gone);
                pending().await
            })
        };
        let (client, _drain) = mesh(app, brief()).await;
        let failed = send(&client, post(Body::Boxed(Box::pin(Broken)))).await.err().expect("no response");
        assert_eq!((failed.error.kind, failed.error.sent), (Kind::TooLarge, true));
        assert!(failed.request.is_none());
    })
    .await;
}

#[tokio::test]
async fn a_response_that_breaks_off_is_an_error_of_its_body() {
    run(async {
        let app = |_: Request<Body>, _: &dyn Back| -> Answer {
            Box::pin(async {
                let (sender, body) = channel();
                spawn_local(async move {
                    sender.send(Ok("half".into())).expect("open");
                    settle().await;
                    sender.send(Err(Error::after_send(Kind::Reset, "gone"))).expect("open");
                });
                Response::new(body)
            })
        };
        let (client, _drain) = mesh(app, brief()).await;
        let response = send(&client, get("/")).await.ok().expect("a head");
        let error = response.into_body().collect().await.err().expect("not whole");
        assert_eq!((error.kind, error.sent), (Kind::Reset, true));
    })
    .await;
}

/// A bare h2 server that does `answer` with its first stream and then only drives the connection.
fn bare_server(
    answer: impl FnOnce(&mut h2::server::Connection<DuplexStream, Bytes>, h2::server::SendResponse<Bytes>)
    + 'static,
) -> DuplexStream {
    let (near, far) = duplex(64 * 1024);
    spawn_local(async move {
        let mut connection = h2::server::handshake(far).await.expect("a client");
        let (_request, respond) = connection.accept().await.expect("a stream").expect("a request");
        answer(&mut connection, respond);
        while connection.accept().await.is_some() {}
    });
    near
}

#[tokio::test]
async fn a_refused_stream_was_not_sent_and_comes_back_whole() {
    run(async {
        let near = bare_server(|_, mut respond| respond.send_reset(Reason::REFUSED_STREAM));
        let client = Client::connect(Io::memory(near), Rc::new(brief())).await.expect("HTTP/2");
        let failed = send(&client, post(Body::full("again"))).await.err().expect("refused");
        assert_eq!((failed.error.kind, failed.error.sent), (Kind::Reset, false));
        let request = failed.request.expect("the request");
        assert_eq!((request.method(), request.uri().path()), (&Method::POST, "/"));
        assert_eq!(request.into_body().collect().await.expect("its body").to_bytes(), "again");
        assert!(client.is_usable(), "the connection is none the worse");
    })
    .await;
}

#[tokio::test]
async fn another_reset_may_have_been_processed() {
    run(async {
        let near = bare_server(|_, mut respond| respond.send_reset(Reason::INTERNAL_ERROR));
        let client = Client::connect(Io::memory(near), Rc::new(brief())).await.expect("HTTP/2");
        let failed = send(&client, get("/")).await.err().expect("reset");
        assert_eq!((failed.error.kind, failed.error.sent), (Kind::Reset, true));
        assert!(failed.request.is_some(), "whether it may be sent again is for the retry rules");
    })
    .await;
}

#[tokio::test]
async fn a_connection_that_breaks_fails_what_is_under_way_and_takes_nothing_new() {
    run(async {
        let (near, far) = duplex(64 * 1024);
        spawn_local(async move {
            let mut connection = h2::server::handshake(far).await.expect("a client");
            let stream = connection.accept().await;
            drop((stream, connection));
        });
        let client = Client::connect(Io::memory(near), Rc::new(brief())).await.expect("HTTP/2");
        let failed = send(&client, get("/")).await.err().expect("broken");
        assert_eq!((failed.error.kind, failed.error.sent), (Kind::Reset, true));
        assert!(!client.is_usable());
        let failed = send(&client, get("/")).await.err().expect("closed");
        assert!(!failed.error.sent && failed.request.is_some(), "nothing was sent on a closed connection");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn draining_finishes_what_is_under_way_and_refuses_the_rest_unsent() {
    run(async {
        let app = |_: Request<Body>, _: &dyn Back| -> Answer {
            Box::pin(async {
                tokio::time::sleep(Duration::from_millis(100)).await;
                Response::new(Body::full("done"))
            })
        };
        let (near, drain, server) = serving(app, brief());
        let client = Client::connect(Io::memory(near), Rc::new(brief())).await.expect("HTTP/2");
        let under_way = spawn_local({
            let client = client.clone();
            async move { text(send(&client, get("/")).await.ok().expect("a response")).await }
        });
        settle().await;
        drain.start();
        settle().await;
        assert!(!client.is_usable());
        let failed = send(&client, get("/")).await.err().expect("refused");
        assert!(!failed.error.sent && failed.request.is_some());
        assert_eq!(under_way.await.expect("no panic"), "done");
        server.await.expect("no panic").expect("a clean end");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_is_closed_and_a_busy_one_is_not() {
    run(async {
        let app = |_: Request<Body>, _: &dyn Back| -> Answer {
            Box::pin(async {
                tokio::time::sleep(Duration::from_secs(300)).await;
                Response::new(Body::full("late"))
            })
        };
        let settings = Settings { idle_timeout: Duration::from_secs(60), ..brief() };
        let (near, _drain, server) = serving(app, settings.clone());
        let client = Client::connect(Io::memory(near), Rc::new(settings)).await.expect("HTTP/2");
        let response = send(&client, get("/")).await.ok().expect("a response");
        assert_eq!(text(response).await, "late");
        assert!(!server.is_finished());
        tokio::time::sleep(Duration::from_secs(100)).await;
        assert!(server.is_finished() && !client.is_usable());
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_falls_silent_is_given_up() {
    run(async {
        let (near, far) = duplex(64 * 1024);
        spawn_local(async move {
            let mut connection = h2::server::handshake::<_>(far).await.expect("a client");
            let _stream = connection.accept().await;
            // Holds the connection open and reads nothing any more.
            pending::<()>().await;
        });
        let client = Client::connect(Io::memory(near), Rc::new(brief())).await.expect("HTTP/2");
        let begun = tokio::time::Instant::now();
        let failed = send(&client, get("/")).await.err().expect("given up");
        assert_eq!(failed.error.kind, Kind::Reset);
        let limit = brief().keepalive_interval * 2 + brief().keepalive_timeout;
        assert!(begun.elapsed() <= limit, "{:?}", begun.elapsed());
        assert!(!client.is_usable());
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_silent_stream_of_a_living_peer_is_kept() {
    run(async {
        let app = |_: Request<Body>, _: &dyn Back| -> Answer {
            Box::pin(async {
                tokio::time::sleep(Duration::from_secs(600)).await;
                Response::new(Body::full("at last"))
            })
        };
        let (client, _drain) = mesh(app, brief()).await;
        let response = send(&client, get("/")).await.ok().expect("a response");
        assert_eq!(text(response).await, "at last");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn whoever_never_speaks_http2_is_not_waited_for() {
    run(async {
        let (_near, _drain, server) = serving(echo, brief());
        let error = server.await.expect("no panic").expect_err("timed out");
        assert_eq!(error.kind, Kind::HeaderTimeout);
    })
    .await;
}

#[tokio::test]
async fn heads_beyond_the_limits_get_431() {
    run(async {
        let settings = Settings { max_headers: 20, max_header_bytes: 4000, ..brief() };
        let (near, _drain, _) = serving(|_, _| panic!("must not be handed up"), settings);
        let client = Client::connect(Io::memory(near), Rc::new(brief())).await.expect("HTTP/2");
        let mut many = get("/");
        for n in 0..21 {
            many.headers_mut().append("x", HeaderValue::from(n));
        }
        let mut long = get("/");
        long.headers_mut().insert("x", HeaderValue::from_str(&"y".repeat(4000)).expect("valid"));
        for request in [many, long] {
            let response = send(&client, request).await.ok().expect("a response");
            assert_eq!(response.status(), StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
            assert_eq!(response.headers()["weft-error"], "headers_too_large");
            assert!(text(response).await.contains("limits"));
        }
        // Far beyond, h2 answers by itself.
        let mut huge = get("/");
        huge.headers_mut().insert("x", HeaderValue::from_str(&"y".repeat(9000)).expect("valid"));
        let response = send(&client, huge).await.ok().expect("a response");
        assert_eq!(response.status(), StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
        assert!(client.is_usable());
    })
    .await;
}

#[tokio::test]
async fn responses_without_bodies_end_with_their_head() {
    run(async {
        let app = |request: Request<Body>, _: &dyn Back| -> Answer {
            Box::pin(async move {
                let status = if request.method() == Method::HEAD {
                    200
                } else {
                    request.uri().path()[1..].parse().expect("a status")
                };
                // A body that must not be sent, with the length it would have.
                Response::builder()
                    .status(status)
                    .header("content-length", "3")
                    .body(Body::full("abc"))
                    .expect("a response")
            })
        };
        let (client, _drain) = mesh(app, brief()).await;
        let mut head = get("/");
        *head.method_mut() = Method::HEAD;
        let response = send(&client, head).await.ok().expect("a response");
        assert_eq!(response.headers()["content-length"], "3");
        assert!(response.body().is_end_stream());
        let response = send(&client, get("/304")).await.ok();
        assert!(response.is_none_or(|response| response.body().is_end_stream()));
    })
    .await;
}

#[tokio::test]
async fn http1_messages_keep_host_version_and_case() {
    run(async {
        let app = |request: Request<Body>, _: &dyn Back| -> Answer {
            Box::pin(async move {
                assert_eq!(request.version(), Version::HTTP_11);
                assert_eq!(request.uri(), "/x");
                assert_eq!(request.headers()["host"], "product");
                assert!(
                    !request.headers().contains_key("weft-case")
                        && !request.headers().contains_key("connection")
                );
                let case = request.extensions().get::<HeaderCase>().expect("a spelling").clone();
                let mut response = Response::new(Body::full("ok"));
                response.headers_mut().insert("transfer-encoding", HeaderValue::from_static("chunked"));
                response.extensions_mut().insert(case);
                response
            })
        };
        let (client, _drain) = mesh(app, Settings { http1_messages: true, ..brief() }).await;
        let case = HeaderCase::from_header_value(&HeaderValue::from_static("x-ODD")).expect("a spelling");
        let mut request = Request::get("/x")
            .header("host", "product")
            .header("connection", "close")
            .header("x-odd", "1")
            .body(Body::Empty)
            .expect("a request");
        request.extensions_mut().insert(case.clone());
        let response = send(&client, request).await.ok().expect("a response");
        assert_eq!(response.version(), Version::HTTP_11);
        assert_eq!(response.extensions().get::<HeaderCase>(), Some(&case));
        assert!(!response.headers().contains_key("weft-case"));
        assert_eq!(text(response).await, "ok");
    })
    .await;
}

#[tokio::test]
async fn connect_relays_bytes_with_half_close() {
    run(async {
        let (inner, mut upstream) = duplex(1024);
        let slot = RefCell::new(Some(inner));
        let app = move |request: Request<Body>, _: &dyn Back| -> Answer {
            assert_eq!((request.method(), request.uri().to_string().as_str()), (&Method::CONNECT, "db:5432"));
            let io = Io::memory(slot.borrow_mut().take().expect("one tunnel"));
            Box::pin(async move { Response::new(Body::Tunnel(Box::new(io))) })
        };
        let (near, _drain, _) = serving(app, brief());
        let (mut send, connection) = h2::client::handshake(near).await.expect("HTTP/2");
        spawn_local(async move { connection.await.expect("a clean end") });
        let request = Request::connect("db:5432").version(Version::HTTP_2).body(()).expect("a request");
        let (response, mut to) = send.send_request(request, false).expect("sent");
        let mut from = response.await.expect("a response").into_body();
        let large = vec![5; 300_000];
        to.send_data(large.clone().into(), true).expect("sent");
        let mut got = Vec::new();
        upstream.read_to_end(&mut got).await.expect("half closed");
        assert!(got == large);
        upstream.write_all(b"and back").await.expect("still open this way");
        upstream.shutdown().await.expect("shut down");
        let mut back = Vec::new();
        while let Some(chunk) = from.data().await {
            back.extend_from_slice(&chunk.expect("data"));
        }
        assert_eq!(back, b"and back");
    })
    .await;
}

#[tokio::test]
async fn our_client_sends_no_connect() {
    run(async {
        let (client, _drain) = mesh(echo, brief()).await;
        let request = Request::connect("db:5432").body(Body::Empty).expect("a request");
        let failed = send(&client, request).await.err().expect("refused");
        assert_eq!((failed.error.kind, failed.request.is_some()), (Kind::NotImplemented, true));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn no_more_streams_than_the_peer_allows() {
    run(async {
        let app = |_: Request<Body>, _: &dyn Back| -> Answer { Box::pin(pending()) };
        let (client, _drain) = mesh(app, Settings { max_streams: 2, ..brief() }).await;
        for _ in 0..2 {
            let client = client.clone();
            spawn_local(async move { send(&client, get("/")).await.is_ok() });
        }
        settle().await;
        assert_eq!((client.in_flight(), client.max_streams()), (2, 2));
        let failed = send(&client, get("/")).await.err().expect("full");
        assert_eq!((failed.error.kind, failed.error.sent), (Kind::Overloaded, false));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn many_answers_leave_in_few_writes() {
    run(async {
        let gate = Rc::new(tokio::sync::Notify::new());
        let wait = gate.clone();
        let app = move |_: Request<Body>, _: &dyn Back| -> Answer {
            let gate = wait.clone();
            Box::pin(async move {
                gate.notified().await;
                Response::new(Body::full(vec![1; 900]))
            })
        };
        let (near, _drain, _) = serving(app, brief());
        let (mut send, connection) = h2::client::handshake(Counting::new(near)).await.expect("HTTP/2");
        spawn_local(async move { connection.await.expect("a clean end") });
        let request = || Request::get("http://a/").version(Version::HTTP_2).body(()).expect("a request");
        let replies: Vec<_> = (0..40).map(|_| send.send_request(request(), true).expect("sent").0).collect();
        settle().await;
        READS.set(0);
        gate.notify_waiters();
        for reply in replies {
            assert_eq!(reply.await.expect("a response").status(), 200);
        }
        assert!(READS.get() <= 4, "40 answers took {} writes", READS.get());
    })
    .await;
}

thread_local! {
    static READS: Cell<usize> = const { Cell::new(0) };
}

/// Reads as much at a time as the other side wrote, and counts how often.
struct Counting(tokio::io::BufReader<DuplexStream>);

impl Counting {
    fn new(stream: DuplexStream) -> Self {
        Self(tokio::io::BufReader::with_capacity(256 * 1024, stream))
    }
}

impl tokio::io::AsyncRead for Counting {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut tokio::io::ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        if self.0.buffer().is_empty() {
            let filled = Pin::new(&mut self.0);
            if tokio::io::AsyncBufRead::poll_fill_buf(filled, cx)?.is_pending() {
                return Poll::Pending;
            }
            READS.set(READS.get() + 1);
        }
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl tokio::io::AsyncWrite for Counting {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

#[tokio::test]
async fn a_peer_that_takes_its_time_gets_everything() {
    run(async {
        // A pipe far smaller than what is held back: every write is partial.
        let (near, far) = duplex(100);
        let drain = Rc::new(Drain::default());
        spawn_local(serve(Io::memory(far), Rc::new(App(echo)), Rc::new(brief()), drain));
        let client = Client::connect(Io::memory(near), Rc::new(brief())).await.expect("HTTP/2");
        let bytes = vec![3; 400_000];
        let response = send(&client, post(Body::full(bytes.clone()))).await.ok().expect("a response");
        let mut body = response.into_body();
        let mut got = 0;
        while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
            got += frame.expect("no error").into_data().ok().expect("data").len();
        }
        assert_eq!(got, bytes.len());
    })
    .await;
}
