//! Both ends over an in-memory pipe, and each end against a bare h2 peer where a peer must misbehave.

mod connections;
mod messages;

use super::{Client, Settings, serve};
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
    client.send(request, &Heard::default()).await
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
