//! Bodies around the cache: one that is there whole or in pieces, one that is still coming in, and one of which the
//! beginning was read.

use super::fill::Seat;
use crate::{
    body::{Body, Piece},
    error::{Error, Kind},
};
use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame, SizeHint};
use std::{
    collections::VecDeque,
    future::poll_fn,
    ops::Range,
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

/// Frames of a body that are passed over before others get a turn.
const BURST: usize = 32;

/// A stretch of a body that may still be coming in.
struct Stretch {
    /// All of it, until there is nothing left to be had of it.
    body: Option<Body>,
    skip: u64,
    left: u64,
}

/// What lies in `range` of a body, as it comes. The body is let go as soon as that is here.
pub(super) fn stretch(body: Body, range: &Range<u64>) -> Body {
    let left = range.end.saturating_sub(range.start);
    if let Body::Full(bytes) = &body
        && range.end <= bytes.len() as u64
    {
        return Body::full(bytes.slice(range.start as usize..range.end as usize));
    }
    Body::Boxed(Box::pin(Stretch { body: (left > 0).then_some(body), skip: range.start, left }))
}

impl HttpBody for Stretch {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = self.get_mut();
        for _ in 0..BURST {
            let Some(body) = &mut this.body else { return Poll::Ready(None) };
            let frame = match std::task::ready!(Pin::new(body).poll_frame(cx)) {
                Some(Ok(frame)) => frame,
                Some(Err(error)) => {
                    this.body = None;
                    return Poll::Ready(Some(Err(error)));
                }
                None => {
                    this.body = None;
                    let short = "the response ended before the part of it that was asked for";
                    return Poll::Ready(Some(Err(Error::after_send(Kind::Reset, short))));
                }
            };
            // What follows the whole says nothing of a part.
            let Ok(mut data) = frame.into_data() else { continue };
            let before = this.skip.min(data.len() as u64);
            this.skip -= before;
            let mut data = data.split_off(before as usize);
            data.truncate(usize::try_from(this.left).unwrap_or(usize::MAX));
            if data.is_empty() {
                continue;
            }
            this.left -= data.len() as u64;
            if this.left == 0 {
                this.body = None;
            }
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

/// Above this, a body is not looked at to see whether all of it is here.
const AT_HAND: u64 = 64 * 1024;

/// All of a body if it is here already and no more than `most`; otherwise the same body again.
pub(super) async fn at_hand(mut body: Body, most: u64) -> Result<Bytes, Body> {
    let most = most.min(AT_HAND);
    match body {
        Body::Empty => return Ok(Bytes::new()),
        Body::Full(bytes) if bytes.len() as u64 <= most => return Ok(bytes),
        body if body.size_hint().lower() > most => return Err(body),
        _ => {}
    }
    let frame = match poll_fn(|cx| Poll::Ready(Pin::new(&mut body).poll_frame(cx))).await {
        Poll::Pending => return Err(body),
        Poll::Ready(None) => return Ok(Bytes::new()),
        Poll::Ready(Some(Err(error))) => return Err(broken(error)),
        Poll::Ready(Some(Ok(frame))) => frame,
    };
    match Piece::from(frame) {
        Piece::Data(data) if body.is_end_stream() && data.len() as u64 <= most => Ok(data),
        Piece::Data(data) => Err(resumed(vec![data], body)),
        Piece::Trailers(trailers) => Err(with_trailers(Bytes::new(), trailers)),
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;
    use http::HeaderValue;
    use http_body_util::BodyExt;

    const MOST: u64 = 100;

    /// Never gives anything.
    struct Silent;

    impl HttpBody for Silent {
        type Data = Bytes;
        type Error = Error;

        fn poll_frame(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
            Poll::Pending
        }
    }

    fn two_pieces() -> Body {
        pieces([Bytes::from_static(b"one"), Bytes::from_static(b"two")])
    }

    fn trailers() -> HeaderMap {
        HeaderMap::from_iter([(http::header::ETAG, HeaderValue::from_static("\"a\""))])
    }

    #[tokio::test]
    async fn what_is_whole_is_at_hand() {
        assert_eq!(at_hand(Body::Empty, MOST).await.ok(), Some(Bytes::new()));
        assert_eq!(at_hand(Body::full("hello"), MOST).await.ok(), Some("hello".into()));
        let one = Body::Boxed(Box::pin(Whole { data: Some("hello".into()), trailers: None }));
        assert_eq!(at_hand(one, MOST).await.ok(), Some("hello".into()));
    }

    #[tokio::test]
    async fn what_is_not_at_hand_is_the_same_body_still() {
        let body = at_hand(two_pieces(), MOST).await.expect_err("more comes");
        assert_eq!(body.size_hint().exact(), Some(6));
        assert_eq!(body.collect().await.expect("whole").to_bytes(), "onetwo");
        let body = at_hand(Body::full(vec![b'x'; 101]), MOST).await.expect_err("too much");
        assert_eq!(body.collect().await.expect("whole").to_bytes(), vec![b'x'; 101]);
        for data in ["hello", ""] {
            let body = at_hand(with_trailers(data.into(), trailers()), MOST).await.expect_err("more comes");
            let whole = body.collect().await.expect("whole");
            assert_eq!(whole.trailers(), Some(&trailers()));
            assert_eq!(whole.to_bytes(), data);
        }
        let failed = at_hand(broken(Error::new(Kind::Reset, "gone")), MOST).await.expect_err("fails");
        assert_eq!(failed.collect().await.err().map(|error| error.kind), Some(Kind::Reset));
        let body = at_hand(Body::Boxed(Box::pin(Silent)), MOST).await.expect_err("nothing came yet");
        assert!(!body.is_end_stream());
    }
}
