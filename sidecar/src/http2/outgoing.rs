//! Sending a body over HTTP/2, as fast as the peer takes it and no faster.

use super::fault;
use crate::{
    body::{Body, Piece},
    error::Error,
};
use bytes::Bytes;
use h2::{Reason, SendStream};
use http_body::Body as _;
use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

/// A body on its way out.
pub(super) struct Outgoing {
    stream: SendStream<Bytes>,
    body: Body,
    /// A piece that was taken from the body and waits for room.
    held: Option<Bytes>,
    /// True once something was sent: the first piece goes without asking for room, h2 keeps it if there is none.
    begun: bool,
}

/// How sending a body ended.
#[derive(Debug)]
pub(super) enum Sent {
    /// All of it is with h2.
    Whole,
    /// The peer wants no more of it; why, it says in its response or in its reset.
    Unwanted,
    /// The body itself broke off; the stream is reset.
    Broken(Error),
}

impl Outgoing {
    pub(super) fn new(stream: SendStream<Bytes>, body: Body) -> Self {
        Self { stream, body, held: None, begun: false }
    }

    /// Sends what can be sent now. Also notices that the peer reset the stream.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Sent> {
        loop {
            if self.held.is_some() && ready!(room(&mut self.stream, cx)).is_err() {
                return Poll::Ready(Sent::Unwanted);
            }
            let data = match self.held.take() {
                Some(data) => data,
                None => match Pin::new(&mut self.body).poll_frame(cx) {
                    Poll::Pending => {
                        return self.stream.poll_reset(cx).map(|_| Sent::Unwanted);
                    }
                    Poll::Ready(None) => {
                        return Poll::Ready(self.finish(|s| s.send_data(Bytes::new(), true)));
                    }
                    Poll::Ready(Some(Err(error))) => {
                        self.stream.send_reset(fault::reset_reason(&error));
                        return Poll::Ready(Sent::Broken(error));
                    }
                    Poll::Ready(Some(Ok(frame))) => match Piece::from(frame) {
                        Piece::Trailers(trailers) => {
                            return Poll::Ready(self.finish(|s| s.send_trailers(trailers)));
                        }
                        Piece::Data(data) if self.begun && !data.is_empty() => {
                            self.held = Some(data);
                            continue;
                        }
                        Piece::Data(data) => data,
                    },
                },
            };
            let end = self.body.is_end_stream();
            if end {
                return Poll::Ready(self.finish(|s| s.send_data(data, true)));
            }
            if data.is_empty() {
                continue;
            }
            self.begun = true;
            if self.stream.send_data(data, false).is_err() {
                return Poll::Ready(Sent::Unwanted);
            }
        }
    }

    fn finish(&mut self, send: impl FnOnce(&mut SendStream<Bytes>) -> Result<(), h2::Error>) -> Sent {
        if send(&mut self.stream).is_ok() { Sent::Whole } else { Sent::Unwanted }
    }
}

/// Waits until h2 has passed on enough of what it was given before to take more.
pub(super) fn room(stream: &mut SendStream<Bytes>, cx: &mut Context<'_>) -> Poll<Result<(), Reason>> {
    stream.reserve_capacity(1);
    while stream.capacity() == 0 {
        match ready!(stream.poll_capacity(cx)) {
            Some(Ok(_)) => {}
            Some(Err(error)) => return Poll::Ready(Err(error.reason().unwrap_or(Reason::CANCEL))),
            None => return Poll::Ready(Err(Reason::CANCEL)),
        }
    }
    Poll::Ready(Ok(()))
}
