//! A downstream connection: what the server loop and the request body that is being read share.

use super::{
    chunked::Decoded,
    framing::Decoder,
    head::RequestHead,
    incoming::Incoming,
    wire::{OUTPUT_HIGH, Wire},
    write,
};
use crate::{
    body::Body,
    error::{Error, Kind},
    exchange::Back,
    io::Io,
};
use bytes::Bytes;
use http::{Request, Response, StatusCode, Version};
use http_body::{Frame, SizeHint};
use std::{
    cell::RefCell,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
    time::Duration,
};
use tokio::time::{Instant, Sleep, sleep};

/// Bytes read ahead while nobody asks for them: what is read to notice that the client went away.
const AHEAD: usize = 16 * 1024;

/// How long a client that closed its sending side after saying that it would still gets an answer without any of it
/// moving.
const HALF_CLOSED: Duration = Duration::from_secs(1);

/// An unread body up to this size is read and dropped to keep the connection.
pub(super) const DISCARD: u64 = 64 * 1024;

/// Whether the client waits for `100 Continue`.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Expectation {
    None,
    Waiting,
    Answered,
}

/// One downstream connection.
pub(crate) struct Conn {
    pub(super) wire: Wire,
    /// The body of the request under way.
    body: Decoder,
    /// Which request that is; a body handle of an earlier one reads nothing.
    turn: u32,
    expectation: Expectation,
    /// Set once reading the body failed.
    failed: Option<Error>,
    /// Set when the client has closed its sending side.
    half_closed: bool,
    /// True if it said that it would (`Connection: close` or HTTP/1.0): then it may and still waits.
    last_request: bool,
    patience: Option<Pin<Box<Sleep>>>,
    /// Who reads the body, if not the connection's own task.
    reader: Option<Waker>,
    /// The connection's own task.
    driver: Option<Waker>,
}

impl Conn {
    pub(super) fn new(io: Io) -> Self {
        Self {
            wire: Wire::new(io),
            body: Decoder::Done,
            turn: 0,
            expectation: Expectation::None,
            failed: None,
            half_closed: false,
            last_request: false,
            patience: None,
            reader: None,
            driver: None,
        }
    }

    /// Begins a request: from here on its body can be read.
    pub(super) fn begin(this: &Rc<RefCell<Self>>, head: RequestHead) -> Request<Body> {
        let RequestHead { request, body, keep_alive, expects_continue } = head;
        let mut conn = this.borrow_mut();
        conn.turn = conn.turn.wrapping_add(1);
        conn.expectation = if expects_continue { Expectation::Waiting } else { Expectation::None };
        conn.last_request = !keep_alive;
        conn.patience = None;
        conn.failed = None;
        conn.body = Decoder::Done;
        let body = match body {
            Decoder::Done => Body::Empty,
            Decoder::Length(length) if conn.wire.input.len() as u64 >= length => {
                Body::Full(conn.wire.input.split_to(length as usize).freeze())
            }
            body => {
                conn.body = body;
                Body::Http1(Incoming::downstream(this.clone(), conn.turn))
            }
        };
        request.map(|()| body)
    }

    /// Notes the task to wake when something is to be written.
    pub(super) fn driven_by(&mut self, waker: &Waker) {
        match &mut self.driver {
            Some(driver) => driver.clone_from(waker),
            None => self.driver = Some(waker.clone()),
        }
    }

    /// True once the whole body was read.
    pub(super) fn body_is_done(&self) -> bool {
        self.body.is_done()
    }

    /// True if the connection can serve no further request, as far as its client is concerned.
    pub(super) fn is_last(&self) -> bool {
        self.failed.is_some() || (self.half_closed && self.wire.input.is_empty())
    }

    /// From the response's head on there are no interim responses; true if the client still holds its body back.
    pub(super) fn end_expectation(&mut self) -> bool {
        std::mem::replace(&mut self.expectation, Expectation::None) == Expectation::Waiting
            && !self.body.is_done()
    }

    /// Some of the response left: the client takes it.
    pub(super) fn moved(&mut self) {
        if let Some(patience) = &mut self.patience {
            patience.as_mut().reset(Instant::now() + HALF_CLOSED);
        }
    }

    /// Ready when the client has gone away; until then it keeps the interest in that registered, at no system call.
    pub(super) fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while !self.half_closed && self.wire.input.len() < AHEAD {
            match self.wire.poll_fill(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(0)) => self.half_closed = true,
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(_)) => return Poll::Ready(()),
            }
            // The read was registered for this task; whoever waits for the body must look again.
            if let Some(reader) = self.reader.take() {
                reader.wake();
            }
        }
        if !self.half_closed {
            return Poll::Pending;
        }
        if !self.body.is_done() && self.wire.input.is_empty() {
            return Poll::Ready(());
        }
        if !self.last_request {
            return Poll::Ready(());
        }
        self.patience.get_or_insert_with(|| Box::pin(sleep(HALF_CLOSED))).as_mut().poll(cx)
    }

    /// The next piece of the body of request number `turn`.
    pub(super) fn poll_body(
        &mut self,
        turn: u32,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        if turn != self.turn {
            return Poll::Ready(Some(Err(gone())));
        }
        if let Some(error) = &self.failed {
            return Poll::Ready(Some(Err(error.clone())));
        }
        let result = loop {
            match self.body.decode(&mut self.wire.input) {
                Ok(Decoded::Data(data)) => break Ok(Some(Frame::data(data))),
                Ok(Decoded::Trailers(trailers)) => break Ok(Some(Frame::trailers(trailers))),
                Ok(Decoded::End) => break Ok(None),
                Ok(Decoded::More) => {}
                Err(error) => break Err(error),
            }
            self.continue_body(cx);
            match self.wire.poll_fill(cx) {
                Poll::Pending => {
                    match &mut self.reader {
                        Some(reader) => reader.clone_from(cx.waker()),
                        None => self.reader = Some(cx.waker().clone()),
                    }
                    return Poll::Pending;
                }
                Poll::Ready(Ok(0)) => {
                    self.half_closed = true;
                    break Err(gone());
                }
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(_)) => break Err(gone()),
            }
        };
        if let Err(error) = &result {
            self.failed = Some(error.clone());
        }
        self.reader = None;
        // Read by another task: the connection's own has lost its place as the one to be woken for input.
        if let Some(driver) = &self.driver
            && !driver.will_wake(cx.waker())
        {
            driver.wake_by_ref();
        }
        Poll::Ready(result.transpose())
    }

    /// The next piece of the body of the request that was just answered.
    pub(super) fn poll_rest(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        self.poll_body(self.turn, cx)
    }

    /// Somebody wants a body that the client holds back: if no upstream has said so, we say that it may come.
    fn continue_body(&mut self, cx: &mut Context<'_>) {
        if self.expectation == Expectation::Waiting {
            self.expectation = Expectation::Answered;
            self.wire.out.buffer().extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
            // What cannot leave now is written by the connection's own task.
            if self.wire.poll_send(cx).is_pending()
                && let Some(driver) = &self.driver
            {
                driver.wake_by_ref();
            }
        }
    }

    pub(super) fn body_is_over(&self, turn: u32) -> bool {
        turn == self.turn && self.failed.is_none() && self.body.is_done()
    }

    pub(super) fn body_size(&self, turn: u32) -> SizeHint {
        if turn == self.turn { self.body.size_hint() } else { SizeHint::new() }
    }

    /// True if what is left of the body is known to be more than we care to read for nothing.
    pub(super) fn has_much_left(&self) -> bool {
        self.body.size_hint().lower() > DISCARD
    }

    fn interim(&mut self, head: Response<()>) {
        if head.status() == StatusCode::CONTINUE {
            if self.expectation == Expectation::Answered {
                return;
            }
            self.expectation = Expectation::Answered;
        }
        // A client that does not read gets no more of them.
        if self.wire.out.len() < OUTPUT_HIGH {
            let (parts, ()) = head.into_parts();
            write::interim_head(self.wire.out.buffer(), &parts);
        }
        if let Some(driver) = &self.driver {
            driver.wake_by_ref();
        }
    }
}

fn gone() -> Error {
    Error::new(Kind::Gone, "the client went away in the middle of its request")
}

/// The way back to the client while its request is handled.
pub(super) struct Downstream<'a> {
    pub(super) conn: &'a RefCell<Conn>,
    pub(super) version: Version,
}

impl Back for Downstream<'_> {
    fn interim(&self, head: Response<()>) {
        // HTTP/1.0 knows no interim responses.
        if self.version != Version::HTTP_10 {
            self.conn.borrow_mut().interim(head);
        }
    }
}
