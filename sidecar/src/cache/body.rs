//! Bodies that come out of the cache: one that is there whole, and one that is still coming in.

use super::fill::Seat;
use crate::{body::Body, error::Error};
use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame, SizeHint};
use std::{
    pin::Pin,
    task::{Context, Poll},
};

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
