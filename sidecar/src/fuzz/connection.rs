//! A caller that says what it is given to say, whatever that is, and then goes away.

use crate::{
    body::Body,
    error::Error,
    exchange::{Back, Handler},
    io::Io,
};
use bytes::Bytes;
use http::{Request, Response, request::Parts};
use http_body_util::{BodyExt, Limited};
use std::{cell::RefCell, rc::Rc, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, duplex},
    runtime::{Builder, Runtime},
    task::{LocalSet, spawn_local, yield_now},
    time::timeout,
};

/// No input is so long, and no answer to one that any target gives.
const PIPE: usize = 1 << 20;
/// A connection that nobody is at any more ends by itself, and soon.
const PATIENCE: Duration = Duration::from_secs(20);
/// So many turns without a word mean that nothing more comes: all that a server waits for here is the caller.
const TURNS: usize = 12;

thread_local! {
    static RUNTIME: Option<Runtime> = Builder::new_current_thread().enable_time().build().ok();
}

/// An application that reads each request to its end, and remembers those that had one.
#[derive(Clone, Default)]
pub(crate) struct Reader(Rc<RefCell<Vec<Heard>>>);

/// A request as it was handed up, with its body if that was whole.
pub(crate) struct Heard {
    pub(crate) parts: Parts,
    pub(crate) body: Option<Bytes>,
}

impl Reader {
    pub(crate) fn heard(self) -> Vec<Heard> {
        self.0.take()
    }
}

impl Handler for Reader {
    async fn handle(&self, request: Request<Body>, _: &dyn Back) -> Response<Body> {
        let (parts, body) = request.into_parts();
        let body = Limited::new(body, PIPE).collect().await.ok().map(|body| body.to_bytes());
        let answer = Response::new(Body::full(body.clone().unwrap_or_default()));
        self.0.borrow_mut().push(Heard { parts, body });
        answer
    }

    fn refuse(&self, error: Error) -> Response<Body> {
        let mut answer = Response::new(Body::full(error.detail.into_owned()));
        *answer.status_mut() = error.kind.row().status;
        answer
    }
}

async fn listen(mut from: ReadHalf<DuplexStream>, said: Rc<RefCell<Vec<u8>>>) {
    let mut bytes = [0; 4096];
    while let Ok(length @ 1..) = from.read(&mut bytes).await {
        said.borrow_mut().extend_from_slice(&bytes[..length]);
    }
}

/// Says `pieces` one after the other to what `serve` makes of a connection, waits until nothing more comes, and goes
/// away. What was answered is returned once the server has noticed.
pub(crate) fn talk<'a, S>(pieces: impl Iterator<Item = &'a [u8]>, serve: impl FnOnce(Io) -> S) -> Vec<u8>
where
    S: Future<Output = ()> + 'static,
{
    let said = Rc::new(RefCell::new(Vec::new()));
    let conversation = async {
        let (near, far) = duplex(PIPE);
        let server = spawn_local(serve(Io::memory(far)));
        let (from, mut to) = tokio::io::split(near);
        let listener = spawn_local(listen(from, said.clone()));
        for piece in pieces {
            if to.write_all(piece).await.is_err() {
                break;
            }
            yield_now().await;
        }
        let (mut turns, mut before) = (0, 0);
        while turns < TURNS {
            yield_now().await;
            let now = said.borrow().len();
            turns = if now == before { turns + 1 } else { 0 };
            before = now;
        }
        listener.abort();
        let _ = listener.await;
        drop(to);
        match timeout(PATIENCE, server).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => panic!("the server broke: {error}"),
            Err(_) => panic!("the server goes on though its caller is gone"),
        }
    };
    RUNTIME.with(|runtime| match runtime {
        Some(runtime) => LocalSet::new().block_on(runtime, conversation),
        None => panic!("there is no runtime"),
    });
    said.take()
}
