//! Holds back what h2 writes until the connection has nothing more to say: one record and one system call for the
//! frames of many streams, where h2 by itself would write after every body.

use crate::io::Io;
use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    io,
    pin::{Pin, pin},
    rc::Rc,
    task::{Context, Poll, ready},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// So much is gathered before the socket must take some.
const HIGH: usize = 64 * 1024;
/// Buffers larger than this are not kept for the next connection.
const KEEP: usize = 2 * HIGH;
/// How many buffers a worker keeps. Only connections that are being written to hold one.
const SPARE: usize = 16;

thread_local! {
    static BUFFERS: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

struct Inner {
    io: Io,
    out: Vec<u8>,
    /// How much of `out` is written already.
    written: usize,
    /// True if h2 was told to wait although it may go on once `out` is written.
    blocked: bool,
    /// True if bytes went into `io` and were not flushed.
    dirty: bool,
}

/// The connection as h2 sees it; clones share it, so that the driver of the connection can let go what was held back.
#[derive(Clone)]
pub(super) struct Cork {
    inner: Rc<RefCell<Inner>>,
    reads: Rc<Cell<u64>>,
}

/// What became of letting go.
#[derive(PartialEq, Eq)]
pub(super) enum Drained {
    /// Everything is written; h2 has nothing to add.
    All,
    /// Everything is written, and h2 was waiting for that: poll it again.
    Again,
}

impl Cork {
    pub(super) fn new(io: Io) -> Self {
        let inner = Inner { io, out: Vec::new(), written: 0, blocked: false, dirty: false };
        Self { inner: Rc::new(RefCell::new(inner)), reads: Rc::new(Cell::new(0)) }
    }

    /// How often bytes came in: a peer that lives makes this grow.
    pub(super) fn reads(&self) -> u64 {
        self.reads.get()
    }

    /// Runs h2's handshake, letting go of everything at once.
    pub(super) async fn handshake<F: Future>(&self, handshake: F) -> F::Output {
        let mut handshake = pin!(handshake);
        poll_fn(|cx| {
            let result = handshake.as_mut().poll(cx);
            // An error shows again at the next write.
            let _ = self.poll_drain(cx);
            result
        })
        .await
    }

    /// Writes what was held back.
    pub(super) fn poll_drain(&self, cx: &mut Context<'_>) -> Poll<io::Result<Drained>> {
        let inner = &mut *self.inner.borrow_mut();
        ready!(inner.poll_write_out(cx))?;
        if inner.dirty {
            ready!(Pin::new(&mut inner.io).poll_flush(cx))?;
            inner.dirty = false;
        }
        let again = std::mem::take(&mut inner.blocked);
        Poll::Ready(Ok(if again { Drained::Again } else { Drained::All }))
    }
}

impl Inner {
    fn poll_write_out(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.written < self.out.len() {
            let n = ready!(Pin::new(&mut self.io).poll_write(cx, &self.out[self.written..]))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written += n;
            self.dirty = true;
        }
        self.give_back();
        Poll::Ready(Ok(()))
    }

    /// A connection that is not being written to keeps no buffer.
    fn give_back(&mut self) {
        self.written = 0;
        if self.out.capacity() == 0 {
            return;
        }
        let mut buffer = std::mem::take(&mut self.out);
        if buffer.capacity() <= KEEP {
            buffer.clear();
            BUFFERS.with_borrow_mut(|buffers| {
                if buffers.len() < SPARE {
                    buffers.push(buffer);
                }
            });
        }
    }

    /// Makes room for another write; `Pending` if the socket must take something first.
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.out.capacity() == 0 {
            self.out = BUFFERS.with_borrow_mut(Vec::pop).unwrap_or_else(|| Vec::with_capacity(4096));
        }
        if self.out.len() >= HIGH {
            match self.poll_write_out(cx) {
                Poll::Ready(result) => result?,
                Poll::Pending => {
                    self.blocked = true;
                    return Poll::Pending;
                }
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.give_back();
    }
}

impl AsyncRead for Cork {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.inner.borrow_mut().io).poll_read(cx, buf))?;
        if buf.filled().len() > before {
            self.reads.set(self.reads.get() + 1);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Cork {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let inner = &mut *self.inner.borrow_mut();
        ready!(inner.poll_room(cx))?;
        inner.out.extend_from_slice(buf);
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let inner = &mut *self.inner.borrow_mut();
        ready!(inner.poll_room(cx))?;
        let before = inner.out.len();
        for buf in bufs {
            inner.out.extend_from_slice(buf);
        }
        Poll::Ready(Ok(inner.out.len() - before))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// Does nothing: h2 flushes after every body. [`Cork::poll_drain`] is what flushes.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let inner = &mut *self.inner.borrow_mut();
        match inner.poll_write_out(cx) {
            Poll::Ready(result) => result?,
            Poll::Pending => {
                inner.blocked = true;
                return Poll::Pending;
            }
        }
        Pin::new(&mut inner.io).poll_shutdown(cx)
    }
}
