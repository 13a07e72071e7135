//! A connection as the codec sees it: bytes that came and are not read yet, bytes that are to leave, and no buffers while idle.

use crate::io::Io;
use bytes::{Buf, Bytes, BytesMut};
use std::{
    cell::RefCell,
    collections::VecDeque,
    io::{self, IoSlice},
    pin::{Pin, pin},
    task::{Context, Poll, ready},
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

/// What one read may bring.
const READ: usize = 64 * 1024;

/// A read that brought this much says that bulk is coming: the next one goes straight into its own buffer.
const BULK: usize = 8 * 1024;

/// Less room than this is not worth a read.
const ROOM: usize = 16 * 1024;

/// Data up to this size is copied behind what is written before it; more is handed to the kernel where it is.
pub(super) const COPY: usize = 4 * 1024;

/// Output beyond this waits for the peer to take some: backpressure.
pub(super) const OUTPUT_HIGH: usize = 64 * 1024;

/// Slices handed to one write.
const SLICES: usize = 16;

thread_local! {
    /// Where reads land whose size nobody knows. What came is copied out, so connections own only what they hold.
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; READ]);
    /// Output buffers between two messages, so that a connection needs none while idle.
    static SPARE: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// Spare output buffers kept per thread, and the size of one.
const SPARES: usize = 16;
const SPARE_SIZE: usize = 4 * 1024;
const SPARE_MAX: usize = 32 * 1024;

/// One connection's bytes.
pub(super) struct Wire {
    io: Io,
    /// Came, and not yet read by anyone.
    pub(super) input: BytesMut,
    /// To leave.
    pub(super) out: Output,
    last_read: usize,
    unflushed: bool,
    wrote: bool,
}

impl Wire {
    pub(super) fn new(io: Io) -> Self {
        Self {
            io,
            input: BytesMut::new(),
            out: Output::default(),
            last_read: 0,
            unflushed: false,
            wrote: false,
        }
    }

    /// Reads once, behind what is in `input`; zero says that the peer is done sending.
    pub(super) fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let n = if self.last_read >= BULK {
            if self.input.capacity() - self.input.len() < ROOM {
                // Takes the same memory again if everyone is done with what was in it.
                self.input.reserve(READ);
            }
            ready!(pin!(self.io.read_buf(&mut self.input)).poll(cx))?
        } else {
            let Self { io, input, .. } = self;
            ready!(SCRATCH.with_borrow_mut(|scratch| {
                let mut buf = ReadBuf::new(scratch);
                ready!(Pin::new(io).poll_read(cx, &mut buf))?;
                let came = buf.filled();
                if input.is_empty() {
                    // A fresh allocation of the right size, even if a large old one has room.
                    *input = BytesMut::from(came);
                } else {
                    input.extend_from_slice(came);
                }
                Poll::Ready(io::Result::Ok(came.len()))
            }))?
        };
        self.last_read = n;
        Poll::Ready(Ok(n))
    }

    /// Gives memory back that holds nothing.
    pub(super) fn release(&mut self) {
        if self.input.is_empty() {
            self.input = BytesMut::new();
            self.last_read = 0;
        }
        if self.out.queue.is_empty() {
            self.out.queue = VecDeque::new();
        }
    }

    /// Writes everything that is to leave and flushes it.
    pub(super) fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.out.is_empty() {
            let n = ready!(self.out.poll_write(&mut self.io, cx))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.wrote = true;
            self.unflushed = true;
            self.out.advance(n);
        }
        if self.unflushed {
            ready!(Pin::new(&mut self.io).poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    /// True if something waits to be written or flushed.
    pub(super) fn has_output(&self) -> bool {
        !self.out.is_empty() || self.unflushed
    }

    /// True if any byte was written since [`forget_writes`](Self::forget_writes).
    pub(super) fn wrote(&self) -> bool {
        self.wrote
    }

    /// A new message begins.
    pub(super) fn forget_writes(&mut self) {
        self.wrote = false;
    }

    /// Reads once what nobody wants.
    pub(super) fn poll_discard(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        SCRATCH.with_borrow_mut(|scratch| {
            let mut buf = ReadBuf::new(scratch);
            ready!(Pin::new(&mut self.io).poll_read(cx, &mut buf))?;
            Poll::Ready(Ok(buf.filled().len()))
        })
    }

    /// Says that nothing more will be written.
    pub(super) fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    /// The connection itself, with what was read too early in front again.
    pub(super) fn into_io(mut self) -> Io {
        if !self.input.is_empty() {
            let rest = self.io.take_prefix();
            self.input.extend_from_slice(&rest);
            self.io.unread(self.input);
        }
        self.io
    }
}

/// Bytes to be written, small pieces together and large ones as they are.
#[derive(Default)]
pub(super) struct Output {
    /// Large pieces and what came before them.
    queue: VecDeque<Bytes>,
    /// What comes last, still growing.
    tail: Vec<u8>,
    /// How much of `tail` has left; only while `queue` is empty.
    gone: usize,
    /// Bytes in `queue`.
    length: usize,
}

impl Output {
    /// Bytes not yet written.
    pub(super) fn len(&self) -> usize {
        self.length + self.tail.len() - self.gone
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty() && self.tail.len() == self.gone
    }

    /// The end of the output, to append to.
    pub(super) fn buffer(&mut self) -> &mut Vec<u8> {
        if self.tail.capacity() == 0 {
            self.tail = SPARE.with_borrow_mut(Vec::pop).unwrap_or_else(|| Vec::with_capacity(SPARE_SIZE));
        }
        &mut self.tail
    }

    /// Appends data.
    pub(super) fn push(&mut self, data: Bytes) {
        if data.len() <= COPY {
            self.buffer().extend_from_slice(&data);
            return;
        }
        let before = &self.tail[self.gone..];
        if !before.is_empty() {
            // Mostly a head or a chunk's size: copying it keeps the buffer.
            let before = Bytes::copy_from_slice(before);
            self.length += before.len();
            self.queue.push_back(before);
        }
        self.tail.clear();
        self.gone = 0;
        self.length += data.len();
        self.queue.push_back(data);
    }

    fn poll_write(&self, io: &mut Io, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let io = Pin::new(io);
        if self.queue.is_empty() {
            return io.poll_write(cx, &self.tail[self.gone..]);
        }
        let mut slices = [IoSlice::new(&[]); SLICES];
        let mut used = 0;
        for (slot, data) in slices.iter_mut().zip(&self.queue) {
            *slot = IoSlice::new(data);
            used += 1;
        }
        // Behind the whole queue only: the order must hold.
        if used == self.queue.len() && used < SLICES && !self.tail.is_empty() {
            slices[used] = IoSlice::new(&self.tail);
            used += 1;
        }
        io.poll_write_vectored(cx, &slices[..used])
    }

    fn advance(&mut self, mut n: usize) {
        while let Some(front) = self.queue.front_mut() {
            if n < front.len() {
                front.advance(n);
                self.length -= n;
                return;
            }
            n -= front.len();
            self.length -= front.len();
            self.queue.pop_front();
        }
        self.gone += n;
        if self.gone == self.tail.len() {
            self.reset();
        }
    }

    /// All is written: memory goes back.
    fn reset(&mut self) {
        self.gone = 0;
        let mut tail = std::mem::take(&mut self.tail);
        if (SPARE_SIZE..=SPARE_MAX).contains(&tail.capacity()) {
            tail.clear();
            SPARE.with_borrow_mut(|spare| {
                if spare.len() < SPARES {
                    spare.push(tail);
                }
            });
        }
    }
}
