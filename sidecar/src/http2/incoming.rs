//! A body that comes in over HTTP/2; taking a piece gives the peer room for as much again.

use super::{client::Upload, fault, live::Open};
use crate::error::Error;
use bytes::Bytes;
use h2::RecvStream;
use http::{HeaderMap, header::CONTENT_LENGTH};
use http_body::{Body, Frame, SizeHint};
use std::{
    pin::Pin,
    task::{Context, Poll},
};

/// A body that comes in over HTTP/2.
pub(crate) struct Incoming {
    stream: RecvStream,
    /// What is left of the declared length.
    left: Option<u64>,
    side: Side,
    data_over: bool,
    /// As a response: its exchange counts as open until the body is dropped.
    _open: Option<Open>,
    /// As a response: what is left of the request's body goes on beside it, and stops with it.
    _upload: Option<Upload>,
}

/// Who sends it: the same error means different things.
#[derive(Clone, Copy)]
enum Side {
    Caller,
    Upstream,
}

impl Incoming {
    /// The body of a request.
    pub(super) fn request(stream: RecvStream, headers: &HeaderMap) -> Self {
        Self::new(stream, headers, Side::Caller, None, None)
    }

    /// The body of a response.
    pub(super) fn response(
        stream: RecvStream,
        headers: &HeaderMap,
        open: Open,
        upload: Option<Upload>,
    ) -> Self {
        Self::new(stream, headers, Side::Upstream, Some(open), upload)
    }

    fn new(
        stream: RecvStream,
        headers: &HeaderMap,
        side: Side,
        open: Option<Open>,
        upload: Option<Upload>,
    ) -> Self {
        let left = headers
            .get(CONTENT_LENGTH)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.parse().ok());
        Self { stream, left, side, data_over: false, _open: open, _upload: upload }
    }

    fn error(&self, error: &h2::Error) -> Error {
        match self.side {
            Side::Caller => fault::caller(error),
            Side::Upstream => Error { sent: true, ..fault::upstream(error) },
        }
    }
}

impl Body for Incoming {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = &mut *self;
        while !this.data_over {
            match this.stream.poll_data(cx) {
                Poll::Pending => return Poll::Pending,
                // An empty frame that ends the stream, as some send.
                Poll::Ready(Some(Ok(data))) if data.is_empty() => {}
                Poll::Ready(Some(Ok(data))) => {
                    // Fails only if the stream is closed, and then nobody waits for the room.
                    let _ = this.stream.flow_control().release_capacity(data.len());
                    this.left = this.left.map(|left| left.saturating_sub(data.len() as u64));
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Poll::Ready(Some(Err(error))) => {
                    // A server may answer in full and then refuse the rest of the upload without blame.
                    let harmless = error.is_reset() && error.reason() == Some(h2::Reason::NO_ERROR);
                    this.data_over = true;
                    return if harmless && matches!(this.side, Side::Upstream) && this.left.unwrap_or(0) == 0 {
                        Poll::Ready(None)
                    } else {
                        Poll::Ready(Some(Err(this.error(&error))))
                    };
                }
                Poll::Ready(None) => this.data_over = true,
            }
        }
        match this.stream.poll_trailers(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Ok(None)) => Poll::Ready(None),
            Poll::Ready(Ok(Some(trailers))) => Poll::Ready(Some(Ok(Frame::trailers(trailers)))),
            Poll::Ready(Err(error)) => {
                let error = this.error(&error);
                Poll::Ready(Some(Err(error)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.stream.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        if self.stream.is_end_stream() {
            return SizeHint::with_exact(0);
        }
        self.left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}
