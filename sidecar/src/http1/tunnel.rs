//! Bytes both ways between two connections until both are done, each direction closed by itself.

use super::wire::with_scratch;
use crate::io::Io;
use bytes::{Buf, BytesMut};
use std::{
    future::poll_fn,
    io,
    pin::{Pin, pin},
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, sleep},
};

/// One direction. Owns memory only while its receiver is slower than its sender.
#[derive(Default)]
struct Direction {
    waiting: BytesMut,
    unflushed: bool,
    ended: bool,
    closed: bool,
    bytes: u64,
}

/// Relays between `a` and `b` until both directions have ended, one side breaks, or nothing moved for `idle`. Returns
/// the bytes from `a` to `b` and back.
pub(crate) async fn relay(mut a: Io, mut b: Io, idle: Duration) -> (u64, u64) {
    let (mut there, mut back) = (Direction::default(), Direction::default());
    let mut timer = pin!(sleep(idle));
    let mut moved = Instant::now();
    poll_fn(|cx| {
        let before = there.bytes + back.bytes;
        let first = there.poll(&mut a, &mut b, cx);
        let second = back.poll(&mut b, &mut a, cx);
        match (first, second) {
            (Poll::Ready(Err(_)), _) | (_, Poll::Ready(Err(_))) => return Poll::Ready(()),
            (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => return Poll::Ready(()),
            _ => {}
        }
        if there.bytes + back.bytes > before {
            moved = Instant::now();
        }
        // The timer is set anew only when it fires, not for every byte.
        while timer.as_mut().poll(cx).is_ready() {
            if moved.elapsed() >= idle {
                return Poll::Ready(());
            }
            timer.as_mut().reset(moved + idle);
        }
        Poll::Pending
    })
    .await;
    (there.bytes, back.bytes)
}

impl Direction {
    /// Moves what can be moved; ready when this direction is closed.
    fn poll(&mut self, from: &mut Io, to: &mut Io, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            while !self.waiting.is_empty() {
                let n = ready!(Pin::new(&mut *to).poll_write(cx, &self.waiting))?;
                self.wrote(n)?;
                self.waiting.advance(n);
            }
            self.waiting = BytesMut::new();
            if self.closed {
                return Poll::Ready(Ok(()));
            }
            if self.ended {
                ready!(Pin::new(&mut *to).poll_shutdown(cx))?;
                self.closed = true;
                continue;
            }
            let read = with_scratch(|scratch| self.poll_through(from, to, scratch, cx));
            if read.is_pending() && self.unflushed {
                ready!(Pin::new(&mut *to).poll_flush(cx))?;
                self.unflushed = false;
            }
            ready!(read)?;
        }
    }

    /// Reads once and writes that on at once; keeps what the receiver does not take.
    fn poll_through(
        &mut self,
        from: &mut Io,
        to: &mut Io,
        scratch: &mut [u8],
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        let mut buf = ReadBuf::new(scratch);
        ready!(Pin::new(from).poll_read(cx, &mut buf))?;
        let mut came = buf.filled();
        if came.is_empty() {
            self.ended = true;
        }
        while !came.is_empty() {
            match Pin::new(&mut *to).poll_write(cx, came)? {
                Poll::Ready(n) => {
                    self.wrote(n)?;
                    came = &came[n..];
                }
                Poll::Pending => {
                    self.waiting = BytesMut::from(came);
                    break;
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    fn wrote(&mut self, n: usize) -> io::Result<()> {
        if n == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        self.bytes += n as u64;
        self.unflushed = true;
        Ok(())
    }
}
