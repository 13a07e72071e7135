//! A message body in flight, wherever it comes from: one enum, so that both directions and all protocols meet in it.

mod kept;
mod observed;
mod until;

pub(crate) use kept::Kept;
pub(crate) use observed::{Observed, Observer};

use crate::{cache, error::Error, http1, http2, io::Io};
use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame, SizeHint};
use kept::Reader;
use std::{
    pin::Pin,
    task::{Context, Poll},
    time::{Duration, Instant},
};
use until::Until;

/// A body. Not `Send`: a request lives and dies on one worker.
pub(crate) enum Body {
    /// Nothing.
    Empty,
    /// All of it at hand.
    Full(Bytes),
    /// Out of the cache, fields and all.
    Stored(cache::Stored),
    /// Coming in over HTTP/1.
    Http1(http1::Incoming),
    /// Coming in over HTTP/2.
    Http2(http2::Incoming),
    /// Not a body: the upstream's connection itself, after `101 Switching Protocols` or a `CONNECT` that was taken.
    /// A server writes the head and then relays bytes both ways.
    Tunnel(Box<Io>),
    /// Watched by whoever records how it goes.
    Observed(Box<Observed<dyn Observer>>),
    /// Fails once a moment has passed, or once nothing came for a while.
    Until(Box<Until>),
    /// One reading of a request's body that is kept for another attempt.
    Kept(Reader),
    /// Anything else.
    Boxed(Pin<Box<dyn HttpBody<Data = Bytes, Error = Error>>>),
}

impl Body {
    /// Bytes at hand.
    pub(crate) fn full(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        if bytes.is_empty() { Self::Empty } else { Self::Full(bytes) }
    }

    /// The same body, failing with a timeout if it is not through by `deadline`, or if nothing of it comes for `idle`.
    pub(crate) fn until(self, deadline: Option<Instant>, idle: Option<Duration>) -> Self {
        match self {
            Self::Empty | Self::Full(_) | Self::Stored(_) | Self::Tunnel(_) => self,
            inner if deadline.is_none() && idle.is_none() => inner,
            inner => Self::Until(Box::new(Until::new(inner, deadline, idle))),
        }
    }

    /// The same body, with somebody who watches it pass.
    pub(crate) fn observed(self, observer: impl Observer + 'static) -> Self {
        Self::Observed(Box::new(Observed::new(self, observer)))
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        match &mut *self {
            Self::Empty | Self::Tunnel(_) => Poll::Ready(None),
            Self::Full(_) | Self::Stored(_) => {
                let bytes = match std::mem::replace(&mut *self, Self::Empty) {
                    Self::Full(bytes) => bytes,
                    Self::Stored(stored) => stored.bytes(),
                    _ => Bytes::new(),
                };
                Poll::Ready((!bytes.is_empty()).then(|| Ok(Frame::data(bytes))))
            }
            Self::Http1(body) => Pin::new(body).poll_frame(cx),
            Self::Http2(body) => Pin::new(body).poll_frame(cx),
            Self::Observed(body) => body.poll_frame(cx),
            Self::Kept(body) => body.poll_frame(cx),
            Self::Until(body) => body.poll_frame(cx),
            Self::Boxed(body) => body.as_mut().poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty | Self::Tunnel(_) => true,
            Self::Full(_) => false,
            Self::Stored(stored) => stored.data().is_empty(),
            Self::Http1(body) => body.is_end_stream(),
            Self::Http2(body) => body.is_end_stream(),
            Self::Observed(body) => body.is_end_stream(),
            Self::Kept(body) => body.is_end_stream(),
            Self::Until(body) => body.is_end_stream(),
            Self::Boxed(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty | Self::Tunnel(_) => SizeHint::with_exact(0),
            Self::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Stored(stored) => SizeHint::with_exact(stored.data().len() as u64),
            Self::Http1(body) => body.size_hint(),
            Self::Http2(body) => body.size_hint(),
            Self::Observed(body) => body.size_hint(),
            Self::Kept(body) => body.size_hint(),
            Self::Until(body) => body.size_hint(),
            Self::Boxed(body) => body.size_hint(),
        }
    }
}

/// A frame of trailers or data, by what a reader needs.
pub(crate) enum Piece {
    /// Data.
    Data(Bytes),
    /// Trailers; nothing follows.
    Trailers(HeaderMap),
}

impl From<Frame<Bytes>> for Piece {
    fn from(frame: Frame<Bytes>) -> Self {
        match frame.into_data() {
            Ok(data) => Self::Data(data),
            Err(frame) => Self::Trailers(frame.into_trailers().unwrap_or_default()),
        }
    }
}
