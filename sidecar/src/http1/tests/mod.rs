//! Whole exchanges over in-memory connections: the server and the client against scripted peers.

mod client;
mod messages;
mod server;
mod sockets;
mod together;

use super::{Client, Recycle, Settings, serve};
use crate::{
    body::Body,
    drain::Drain,
    error::Error,
    exchange::{Back, Handler},
    io::Io,
};
use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::BodyExt;
use std::{cell::RefCell, rc::Rc, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    task::{JoinHandle, LocalSet, spawn_local},
    time::timeout,
};

/// Enough for anything in memory; in paused time it costs nothing.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// Runs a test on one thread with `spawn_local`, in paused time.
pub(super) fn run(test: impl Future<Output = ()>) {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    LocalSet::new().block_on(&runtime, async { timeout(PATIENCE * 60, test).await.expect("the test hangs") });
}

/// A handler made of a closure; refusals answer with the status of the kind.
pub(super) struct Answer<F>(pub(super) F);

impl<F: AsyncFn(Request<Body>, &dyn Back) -> Response<Body>> Handler for Answer<F> {
    async fn handle(&self, request: Request<Body>, back: &dyn Back) -> Response<Body> {
        (self.0)(request, back).await
    }

    fn refuse(&self, error: Error) -> Response<Body> {
        let row = error.kind.row();
        let mut response = Response::new(Body::full(format!("{}\n", error.detail)));
        *response.status_mut() = row.status;
        response.headers_mut().insert("weft-error", http::HeaderValue::from_static(row.name));
        response
    }
}

/// The far end of a connection under test.
pub(super) struct Peer(pub(super) DuplexStream);

impl Peer {
    pub(super) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.0.write_all(bytes.as_ref()).await.unwrap();
    }

    /// Reads until what came ends with `end`, and returns all of it.
    pub(super) async fn read_until(&mut self, end: &str) -> String {
        let mut text = Vec::new();
        while !text.ends_with(end.as_bytes()) {
            let byte = timeout(PATIENCE, self.0.read_u8()).await;
            match byte {
                Ok(Ok(byte)) => text.push(byte),
                other => panic!("no {end:?} but {:?}, then {other:?}", String::from_utf8_lossy(&text)),
            }
        }
        String::from_utf8(text).unwrap()
    }

    /// Reads until the connection is closed.
    pub(super) async fn read_to_end(&mut self) -> String {
        let mut text = Vec::new();
        timeout(PATIENCE, self.0.read_to_end(&mut text)).await.expect("stays open").unwrap();
        String::from_utf8(text).unwrap()
    }

    /// True if nothing comes for a while.
    pub(super) async fn is_quiet(&mut self) -> bool {
        timeout(Duration::from_millis(50), self.0.read_u8()).await.is_err()
    }
}

/// A served connection.
pub(super) struct Served {
    pub(super) peer: Peer,
    pub(super) drain: Rc<Drain>,
    pub(super) task: JoinHandle<()>,
}

impl Served {
    /// Waits for the server to be done with the connection.
    pub(super) async fn ended(self) {
        drop(self.peer);
        timeout(PATIENCE, self.task).await.expect("the server goes on").unwrap();
    }
}

/// Serves one end of a pipe with `handler`.
pub(super) fn served<F>(handler: F) -> Served
where
    F: AsyncFn(Request<Body>, &dyn Back) -> Response<Body> + 'static,
{
    served_with(Settings::default(), 64 * 1024, handler)
}

pub(super) fn served_with<F>(settings: Settings, pipe: usize, handler: F) -> Served
where
    F: AsyncFn(Request<Body>, &dyn Back) -> Response<Body> + 'static,
{
    let (near, far) = duplex(pipe);
    let drain = Rc::new(Drain::default());
    let task = spawn_local(serve(Io::memory(near), Rc::new(Answer(handler)), settings, drain.clone()));
    Served { peer: Peer(far), drain, task }
}

/// Connections that came back.
#[derive(Default)]
#[expect(clippy::vec_box, reason = "they come and go in their boxes")]
pub(super) struct Pool(pub(super) RefCell<Vec<Box<Client>>>);

impl Recycle for Pool {
    fn put_back(&self, client: Box<Client>) {
        self.0.borrow_mut().push(client);
    }
}

impl Pool {
    pub(super) fn size(&self) -> usize {
        self.0.borrow().len()
    }
}

/// Remembers interim responses.
#[derive(Default)]
pub(super) struct Interims(pub(super) RefCell<Vec<Response<()>>>);

impl Back for Interims {
    fn interim(&self, head: Response<()>) {
        self.0.borrow_mut().push(head);
    }
}

/// A client and the upstream it talks to.
pub(super) fn connected() -> (Box<Client>, Peer) {
    let (near, far) = duplex(64 * 1024);
    (Box::new(Client::new(Io::memory(near), Settings::default())), Peer(far))
}

/// All of a body, and its trailers.
pub(super) async fn collect(body: Body) -> Result<(Bytes, Option<HeaderMap>), Error> {
    let all = body.collect().await?;
    let trailers = all.trailers().cloned();
    Ok((all.to_bytes(), trailers))
}

/// A body that sends what is put into the channel; an error ends it badly.
pub(super) fn channel() -> (tokio::sync::mpsc::UnboundedSender<Result<Bytes, Error>>, Body) {
    let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel::<Result<Bytes, Error>>();
    let stream = futures_util::stream::poll_fn(move |cx| {
        receiver.poll_recv(cx).map(|item| item.map(|data| data.map(http_body::Frame::data)))
    });
    (sender, Body::Boxed(Box::pin(http_body_util::StreamBody::new(stream))))
}

pub(super) fn ok(body: impl Into<Bytes>) -> Response<Body> {
    Response::new(Body::full(body))
}

pub(super) fn get(path: &str) -> Request<Body> {
    Request::get(path).header("host", "a").body(Body::Empty).unwrap()
}
