//! Bodies around the cache: one that is there whole or in pieces, one that is still coming in, and one of which the
//! beginning was read.

use super::fill::Seat;
use crate::{body::Body, error::Error};
use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame, SizeHint};
use std::{
    collections::VecDeque,
    future::poll_fn,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};
use tokio::time::timeout;

/// A whole body with what follows it.
struct Whole {
    data: Option<Bytes>,
    trailers: Option<HeaderMap>,
}

/// All of a body, and its trailers.
pub(super) fn with_trailers(data: Bytes, trailers: HeaderMap) -> Body {
    let data = Some(data).filter(|data| !data.is_empty());
    Body::Boxed(Box::pin(Whole { data, trailers: Some(trailers) }))
}

impl HttpBody for Whole {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let data = self.data.take().map(Frame::data);
        Poll::Ready(data.or_else(|| self.trailers.take().map(Frame::trailers)).map(Ok))
    }

    fn is_end_stream(&self) -> bool {
        self.data.is_none() && self.trailers.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        let length = self.data.as_ref().map_or(0, |data| data.len() as u64);
        // Trailers leave no room for a length that is announced: HTTP/1 then needs chunks.
        if self.trailers.is_none() {
            return SizeHint::with_exact(length);
        }
        let mut hint = SizeHint::new();
        hint.set_lower(length);
        hint
    }
}

/// Several pieces, one after the other.
struct Pieces {
    pieces: VecDeque<Bytes>,
    /// What comes after them, if anything does.
    rest: Option<Body>,
}

/// Bytes at hand in several pieces.
pub(super) fn pieces(pieces: impl IntoIterator<Item = Bytes>) -> Body {
    let mut pieces: VecDeque<_> = pieces.into_iter().filter(|piece| !piece.is_empty()).collect();
    if pieces.len() == 1 {
        return Body::full(pieces.pop_front().unwrap_or_default());
    }
    Body::Boxed(Box::pin(Pieces { pieces, rest: None }))
}

/// A body whose beginning was read already.
pub(super) fn resumed(read: Vec<Bytes>, rest: Body) -> Body {
    Body::Boxed(Box::pin(Pieces { pieces: read.into(), rest: Some(rest) }))
}

impl HttpBody for Pieces {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        if let Some(piece) = self.pieces.pop_front() {
            return Poll::Ready(Some(Ok(Frame::data(piece))));
        }
        match &mut self.rest {
            Some(rest) => Pin::new(rest).poll_frame(cx),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.pieces.is_empty() && self.rest.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        let here = self.pieces.iter().map(|piece| piece.len() as u64).sum::<u64>();
        let rest = self.rest.as_ref().map_or(SizeHint::with_exact(0), Body::size_hint);
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower().saturating_add(here));
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper.saturating_add(here));
        }
        hint
    }
}

/// What was read of a body that should be short.
pub(super) enum Read {
    /// All of it.
    Whole(Bytes),
    /// It is longer, or too slow: the same body again.
    More(Body),
}

/// Reads a body of up to `most` bytes, within a time.
pub(super) async fn read(mut body: Body, most: usize, time: Duration) -> Result<Read, Error> {
    if let Body::Full(bytes) = &body {
        return Ok(if bytes.len() <= most { Read::Whole(bytes.clone()) } else { Read::More(body) });
    }
    if body.size_hint().lower() > most as u64 {
        return Ok(Read::More(body));
    }
    let (mut read, mut length) = (Vec::new(), 0);
    let whole = {
        let reading = async {
            while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
                // Trailers of a request say nothing to anybody.
                let Ok(data) = frame?.into_data() else { continue };
                length += data.len();
                read.push(data);
                if length > most {
                    return Ok(false);
                }
            }
            Ok::<_, Error>(true)
        };
        timeout(time, reading).await.unwrap_or(Ok(false))?
    };
    if !whole {
        return Ok(Read::More(resumed(read, body)));
    }
    let one = if read.len() == 1 { read.pop() } else { None };
    Ok(Read::Whole(one.unwrap_or_else(|| read.concat().into())))
}

/// A body that broke off before anything of it could be given.
struct Broken(Option<Error>);

/// A body that fails.
pub(super) fn broken(error: Error) -> Body {
    Body::Boxed(Box::pin(Broken(Some(error))))
}

impl HttpBody for Broken {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        Poll::Ready(self.0.take().map(Err))
    }
}

/// Reads a body to its end, for what reading it does elsewhere. Gives up after a time.
pub(super) async fn drain(mut body: Body, time: Duration) {
    let reading = async { while let Some(Ok(_)) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {} };
    // Whether it came to its end or not: nobody waits for it.
    let _ = timeout(time, reading).await;
}

/// A body that is read while it comes in.
pub(super) struct Reader {
    seat: Seat,
    over: bool,
}

impl Reader {
    pub(super) fn new(seat: Seat) -> Self {
        Self { seat, over: false }
    }
}

impl HttpBody for Reader {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        if self.over {
            return Poll::Ready(None);
        }
        let frame = std::task::ready!(self.seat.poll_frame(cx));
        self.over = !matches!(&frame, Some(Ok(frame)) if frame.is_data());
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.over || self.seat.is_through()
    }

    fn size_hint(&self) -> SizeHint {
        self.seat.size_hint()
    }
}
