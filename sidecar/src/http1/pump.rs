//! Moves a body into a connection's output as long as both sides can.

use super::{
    framing::Encoder,
    wire::{OUTPUT_HIGH, Output},
};
use crate::{
    body::{Body, Piece},
    error::Error,
};
use http_body::Body as _;
use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

/// How far the sending of one body has come.
pub(super) struct Pump {
    encoder: Encoder,
    finished: bool,
    taken: bool,
}

impl Pump {
    pub(super) fn new(encoder: Encoder) -> Self {
        Self { encoder, finished: false, taken: false }
    }

    /// True once all of the body is in the output.
    pub(super) fn is_finished(&self) -> bool {
        self.finished
    }

    /// True if anything of the body was taken: it is not whole any more.
    pub(super) fn has_taken(&self) -> bool {
        self.taken
    }

    /// Takes everything the body has ready. Ready when the body is finished or the output is full; pending when the
    /// body has no more for now, and then there may be output all the same.
    pub(super) fn poll_gather(
        &mut self,
        body: &mut Body,
        out: &mut Output,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Error>> {
        while !self.finished && out.len() < OUTPUT_HIGH {
            match ready!(Pin::new(&mut *body).poll_frame(cx)) {
                Some(Ok(frame)) => {
                    self.taken = true;
                    self.encoder.piece(Piece::from(frame), out)?;
                }
                Some(Err(error)) => return Poll::Ready(Err(error)),
                None => {
                    self.encoder.finish(out)?;
                    self.finished = true;
                }
            }
        }
        Poll::Ready(Ok(()))
    }
}
