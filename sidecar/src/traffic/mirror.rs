//! Copies of requests for other backends: to try a new version with real traffic, without anybody seeing its answers.
//!
//! The original never waits for a copy and never fails because of one. Its body passes through a [`Tee`], which hands
//! references to each piece to the copies; a copy that takes them too slowly is given up, as is one that begins while
//! too many are under way. A copy's answer is read and thrown away.
//!
//! A copy carries `weft-mirror: 1` and is otherwise the same request, `Host` included: Envoy appends `-shadow` to the
//! host, which an application that looks at its host doesn't take for its own name. Upgrades and `CONNECT` are not
//! copied, there is no second party to a conversation.

use crate::{
    body::Body,
    error::{Error, Kind},
    telemetry::metrics::{CopyResult, MirrorSeries},
};
use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Response, header, request::Parts};
use http_body::{Body as HttpBody, Frame, SizeHint};
use smallvec::SmallVec;
use std::{
    cell::RefCell,
    collections::VecDeque,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};
use weft_config::snapshot::Mirror;

/// Says to whoever gets a copy that it is one.
pub(crate) const WEFT_MIRROR: HeaderName = HeaderName::from_static("weft-mirror");

/// Copies to one backend that one worker has under way.
const UNDER_WAY: usize = 64;
/// Bytes that wait for a copy to take them, with something on top for each piece.
const PENDING: usize = 256 * 1024;
const PIECE: usize = 128;
/// What is read of a copy's answer, to keep its connection.
const ANSWER: u64 = 1024 * 1024;

/// One worker's copies under way, counted by the backend that they go to: one that hangs takes no place of another's.
#[derive(Default)]
pub(crate) struct Copies(Rc<RefCell<Counts>>);

/// Those backends that copies are under way to.
type Counts = SmallVec<[(Arc<MirrorSeries>, usize); 4]>;

/// A copy under way; its place is free again when this goes.
struct UnderWay {
    counts: Rc<RefCell<Counts>>,
    to: Arc<MirrorSeries>,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let mut counts = self.counts.borrow_mut();
        let Some(at) = counts.iter().position(|(to, _)| Arc::ptr_eq(to, &self.to)) else { return };
        counts[at].1 -= 1;
        if counts[at].1 == 0 {
            counts.swap_remove(at);
        }
    }
}

impl Copies {
    /// A place for one more copy, if there is room.
    fn begin(&self, to: &Arc<MirrorSeries>) -> Option<UnderWay> {
        let mut counts = self.0.borrow_mut();
        match counts.iter_mut().find(|(known, _)| Arc::ptr_eq(known, to)) {
            Some((_, count)) if *count >= UNDER_WAY => return None,
            Some((_, count)) => *count += 1,
            None => counts.push((to.clone(), 1)),
        }
        Some(UnderWay { counts: self.0.clone(), to: to.clone() })
    }

    /// Sends copies of a request to those mirrors that its share of requests falls to, and gives the body back with
    /// which the original goes on. `series` are those of the mirrors, in their order; `random(n)` is a number below
    /// `n`; `send` makes the attempt at the mirror of this index. A copy that is not through within `time` is given up.
    /// Must run within a `LocalSet`.
    pub(crate) fn send<F>(
        &self,
        mirrors: &[Mirror],
        series: &[Arc<MirrorSeries>],
        (head, body): (&Parts, Body),
        time: Duration,
        mut random: impl FnMut(u32) -> u32,
        send: impl Fn(usize, Parts, Body) -> F,
    ) -> Body
    where
        F: Future<Output = Result<Response<Body>, Error>> + 'static,
    {
        if head.method == Method::CONNECT || head.headers.contains_key(header::UPGRADE) {
            return body;
        }
        let mut pipes = SmallVec::new();
        for (index, (mirror, series)) in mirrors.iter().zip(series).enumerate() {
            if mirror.denominator == 0 || random(mirror.denominator) >= mirror.numerator {
                continue;
            }
            let Some(under_way) = self.begin(series) else {
                series.copied(CopyResult::Dropped);
                continue;
            };
            let (body, pipe) = copy_of(&body);
            let mut head = head.clone();
            head.headers.insert(WEFT_MIRROR, HeaderValue::from_static("1"));
            let answer = send(index, head, body);
            let (series, fate) = (series.clone(), pipe.clone());
            tokio::task::spawn_local(async move {
                let ok = matches!(tokio::time::timeout(time, take(answer)).await, Ok(true));
                let dropped = fate.is_some_and(|pipe| matches!(pipe.borrow().end, End::TooSlow));
                series.copied(match (ok, dropped) {
                    (true, _) => CopyResult::Ok,
                    (false, true) => CopyResult::Dropped,
                    (false, false) => CopyResult::Failed,
                });
                drop(under_way);
            });
            pipes.extend(pipe);
        }
        if pipes.is_empty() { body } else { Body::Boxed(Box::pin(Tee { inner: body, pipes })) }
    }
}

/// Waits for an answer and reads it; true if it was a good one.
async fn take(answer: impl Future<Output = Result<Response<Body>, Error>>) -> bool {
    let Ok(response) = answer.await else { return false };
    let ok = !response.status().is_server_error();
    let mut body = response.into_body();
    let mut read = 0;
    while read <= ANSWER {
        match std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
            Some(Ok(frame)) => read += frame.data_ref().map_or(0, |data| data.len() as u64),
            Some(Err(_)) => return false,
            None => break,
        }
    }
    ok
}

/// The body of a copy, and where its pieces go if they are still to come.
fn copy_of(body: &Body) -> (Body, Option<Rc<RefCell<Pipe>>>) {
    match body {
        Body::Full(bytes) => (Body::Full(bytes.clone()), None),
        body if body.is_end_stream() => (Body::Empty, None),
        body => {
            let pipe = Rc::new(RefCell::new(Pipe::default()));
            let copied = Copied { pipe: pipe.clone(), left: body.size_hint().exact() };
            (Body::Boxed(Box::pin(copied)), Some(pipe))
        }
    }
}

/// Pieces on their way to one copy.
#[derive(Default)]
struct Pipe {
    pieces: VecDeque<Frame<Bytes>>,
    pending: usize,
    end: End,
    reader: Option<Waker>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum End {
    /// More may come.
    #[default]
    Open,
    /// That was all.
    Whole,
    /// The original broke off.
    Broken,
    /// The copy took its pieces too slowly.
    TooSlow,
    /// The copy wants no more of them.
    Unwanted,
}

impl Pipe {
    fn push(&mut self, frame: &Frame<Bytes>) {
        if self.end != End::Open {
            return;
        }
        let copy = match (frame.data_ref(), frame.trailers_ref()) {
            (Some(data), _) => Frame::data(data.clone()),
            (None, Some(trailers)) => Frame::trailers(trailers.clone()),
            (None, None) => return,
        };
        self.pending += cost(&copy);
        if self.pending > PENDING {
            self.pieces.clear();
            return self.finish(End::TooSlow);
        }
        self.pieces.push_back(copy);
        self.wake();
    }

    fn finish(&mut self, end: End) {
        if self.end == End::Open {
            self.end = end;
            self.wake();
        }
    }

    fn wake(&mut self) {
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }
}

fn cost(frame: &Frame<Bytes>) -> usize {
    frame.data_ref().map_or(0, Bytes::len) + PIECE
}

/// The body of the original, which copies see pass.
struct Tee {
    inner: Body,
    pipes: SmallVec<[Rc<RefCell<Pipe>>; 2]>,
}

impl Tee {
    fn finish(&self, end: End) {
        self.pipes.iter().for_each(|pipe| pipe.borrow_mut().finish(end));
    }
}

impl HttpBody for Tee {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let frame = std::task::ready!(Pin::new(&mut self.inner).poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => {
                self.pipes.iter().for_each(|pipe| pipe.borrow_mut().push(frame));
                // Who knows that this was the last one does not ask again.
                if self.inner.is_end_stream() {
                    self.finish(End::Whole);
                }
            }
            Some(Err(_)) => self.finish(End::Broken),
            None => self.finish(End::Whole),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl Drop for Tee {
    fn drop(&mut self) {
        let whole = self.inner.is_end_stream();
        self.finish(if whole { End::Whole } else { End::Broken });
    }
}

/// The body of a copy.
struct Copied {
    pipe: Rc<RefCell<Pipe>>,
    /// What is left of a length that is known.
    left: Option<u64>,
}

impl HttpBody for Copied {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = &mut *self;
        let mut pipe = this.pipe.borrow_mut();
        if let Some(frame) = pipe.pieces.pop_front() {
            pipe.pending -= cost(&frame);
            let length = frame.data_ref().map_or(0, |data| data.len() as u64);
            this.left = this.left.map(|left| left.saturating_sub(length));
            return Poll::Ready(Some(Ok(frame)));
        }
        let broken = |why| Poll::Ready(Some(Err(Error::new(Kind::Gone, why))));
        match pipe.end {
            End::Open => {
                pipe.reader = Some(cx.waker().clone());
                Poll::Pending
            }
            End::Whole | End::Unwanted => Poll::Ready(None),
            End::Broken => broken("the request that this is a copy of broke off"),
            End::TooSlow => broken("the copy was slower than its request, and is given up"),
        }
    }

    fn is_end_stream(&self) -> bool {
        let pipe = self.pipe.borrow();
        pipe.end == End::Whole && pipe.pieces.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

impl Drop for Copied {
    fn drop(&mut self) {
        let mut pipe = self.pipe.borrow_mut();
        pipe.pieces.clear();
        pipe.finish(End::Unwanted);
    }
}

#[cfg(test)]
mod tests;
