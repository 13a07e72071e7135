//! Opaque TCP: copies bytes between two connections both ways until both have ended.

use crate::io::Io;
use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    io,
    pin::{Pin, pin},
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Instant,
};

/// How much is read before it is written: four full TLS records.
const CHUNK: usize = 64 * 1024;

thread_local! {
    /// What all relays of a worker read into. A relay keeps bytes of its own only while its receiver is slow.
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; CHUNK].into());
}

/// What passed, and how it ended.
#[derive(Debug)]
pub(crate) struct Relayed {
    /// Bytes from the first connection to the second.
    pub(crate) up: u64,
    /// Bytes from the second to the first.
    pub(crate) down: u64,
    /// How it ended.
    pub(crate) end: End,
}

/// How a relay ended.
#[derive(Debug)]
pub(crate) enum End {
    /// Both sides said they were done.
    Closed,
    /// Nothing moved for as long as is allowed.
    Idle,
    /// A connection broke.
    Broken(io::Error),
}

/// Copies both ways until both sides have ended, one breaks, or nothing moves for `idle`. When one side ends, the other
/// is told (half-close) and may go on.
pub(crate) async fn relay(mut a: Io, mut b: Io, idle: Duration) -> Relayed {
    let moved = Cell::new(0u64);
    let (mut up, mut down) = (Pipe::default(), Pipe::default());
    let mut stalled = pin!(stalled(&moved, idle));
    let end = poll_fn(|cx| {
        let first = up.poll(cx, &mut a, &mut b);
        let second = down.poll(cx, &mut b, &mut a);
        moved.set(up.moved + down.moved);
        match (first, second) {
            (Poll::Ready(Err(error)), _) | (_, Poll::Ready(Err(error))) => Poll::Ready(End::Broken(error)),
            (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => Poll::Ready(End::Closed),
            _ => stalled.as_mut().poll(cx).map(|()| End::Idle),
        }
    })
    .await;
    Relayed { up: up.moved, down: down.moved, end }
}

/// Returns once nothing has moved for `idle`. Looks at the counter when a timer fires, so that moving bytes costs
/// nothing.
async fn stalled(moved: &Cell<u64>, idle: Duration) {
    // A connection that falls idle is noticed after at most a quarter more than it is allowed.
    let tick = (idle / 4).max(Duration::from_millis(1));
    let (mut before, mut since) = (moved.get(), Instant::now());
    loop {
        tokio::time::sleep(tick).await;
        if moved.get() != before {
            (before, since) = (moved.get(), Instant::now());
        } else if since.elapsed() >= idle {
            return;
        }
    }
}

/// One direction.
#[derive(Default)]
struct Pipe {
    /// Read but not taken by the receiver yet; the first `written` bytes are gone.
    held: Vec<u8>,
    written: usize,
    moved: u64,
    /// True if the receiver may hold bytes back until it is flushed.
    unflushed: bool,
    /// The sender broke after bytes that still went on. Kept, since the next read would show a clean end.
    broken: Option<io::Error>,
    stage: Stage,
}

#[derive(Default, PartialEq, Eq)]
enum Stage {
    #[default]
    Open,
    /// The sender has ended; the receiver is to be told.
    Ended,
    Done,
}

impl Pipe {
    fn poll(&mut self, cx: &mut Context<'_>, from: &mut Io, to: &mut Io) -> Poll<io::Result<()>> {
        loop {
            while self.written < self.held.len() {
                let n = ready!(Pin::new(&mut *to).poll_write(cx, &self.held[self.written..]))?;
                self.wrote(n)?;
                self.written += n;
            }
            // A relay that waits holds no memory.
            (self.held, self.written) = (Vec::new(), 0);
            if let Some(error) = self.broken.take() {
                return Poll::Ready(Err(error));
            }
            match self.stage {
                Stage::Done => return Poll::Ready(Ok(())),
                Stage::Ended => {
                    ready!(Pin::new(&mut *to).poll_shutdown(cx))?;
                    self.stage = Stage::Done;
                }
                Stage::Open => {
                    if SCRATCH.with_borrow_mut(|scratch| self.pass(cx, from, to, scratch))?.is_pending() {
                        if self.unflushed {
                            ready!(Pin::new(&mut *to).poll_flush(cx))?;
                            self.unflushed = false;
                        }
                        return Poll::Pending;
                    }
                }
            }
        }
    }

    /// Reads as much as is there, up to a chunk, and writes it. `Pending` if nothing was there.
    fn pass(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut Io,
        to: &mut Io,
        scratch: &mut [u8],
    ) -> Poll<io::Result<()>> {
        let mut buf = ReadBuf::new(scratch);
        // TLS gives one record at a time; several go on in one write.
        while buf.remaining() > 0 {
            let before = buf.filled().len();
            match Pin::new(&mut *from).poll_read(cx, &mut buf) {
                Poll::Ready(Ok(())) if buf.filled().len() == before => {
                    self.stage = Stage::Ended;
                    break;
                }
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => {
                    self.broken = Some(error);
                    break;
                }
                Poll::Pending if before == 0 => return Poll::Pending,
                Poll::Pending => break,
            }
        }
        let mut rest = buf.filled();
        self.moved += rest.len() as u64;
        while !rest.is_empty() {
            match Pin::new(&mut *to).poll_write(cx, rest) {
                Poll::Ready(result) => {
                    let n = result?;
                    self.wrote(n)?;
                    rest = &rest[n..];
                }
                Poll::Pending => {
                    self.held = rest.to_vec();
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
        self.unflushed = true;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    const LONG: Duration = Duration::from_secs(60);

    /// A relay and the two ends outside of it.
    fn relaying(size: usize, idle: Duration) -> (DuplexStream, DuplexStream, impl Future<Output = Relayed>) {
        let (client, a) = duplex(size);
        let (b, server) = duplex(size);
        (client, server, relay(Io::memory(a), Io::memory(b), idle))
    }

    fn noise(n: u32) -> Vec<u8> {
        (0..n).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
    }

    #[tokio::test]
    async fn bytes_pass_both_ways_whole_and_counted() {
        for size in [7, 4096, 300_000] {
            let (client, server, relay) = relaying(size, LONG);
            let (there, back) = (noise(200_000), noise(150_001));
            let end = |stream: DuplexStream, send: Vec<u8>| async move {
                let (mut read, mut write) = tokio::io::split(stream);
                let mut got = Vec::new();
                let (sent, read) = tokio::join!(
                    async {
                        write.write_all(&send).await?;
                        write.shutdown().await
                    },
                    read.read_to_end(&mut got)
                );
                sent.and(read.map(|_| ())).expect("both ways");
                got
            };
            let (at_client, at_server, relayed) =
                tokio::join!(end(client, back.clone()), end(server, there.clone()), relay);
            assert!(at_client == there && at_server == back, "pipes of {size}");
            assert_eq!((relayed.up, relayed.down), (150_001, 200_000));
            assert!(matches!(relayed.end, End::Closed));
        }
    }

    #[tokio::test]
    async fn one_side_may_end_and_still_listen() {
        let (mut client, mut server, relay) = relaying(64, LONG);
        let ends = async {
            client.write_all(b"question").await.expect("written");
            client.shutdown().await.expect("shut down");
            let mut question = String::new();
            server.read_to_string(&mut question).await.expect("half closed");
            server.write_all(b"answer").await.expect("still open");
            drop(server);
            let mut answer = String::new();
            client.read_to_string(&mut answer).await.expect("closed");
            (question, answer)
        };
        let (texts, relayed) = tokio::join!(ends, relay);
        assert_eq!(texts, ("question".to_owned(), "answer".to_owned()));
        assert!(matches!(relayed, Relayed { up: 8, down: 6, end: End::Closed }));
    }

    #[tokio::test(start_paused = true)]
    async fn silence_ends_a_relay_and_traffic_keeps_it() {
        let idle = Duration::from_secs(100);
        let (mut client, mut server, relay) = relaying(64, idle);
        let begun = Instant::now();
        let ends = async {
            for _ in 0..10 {
                tokio::time::sleep(Duration::from_secs(90)).await;
                client.write_all(b"x").await.expect("open");
                server.read_exact(&mut [0]).await.expect("open");
            }
        };
        let ((), relayed) = tokio::join!(ends, relay);
        assert!(matches!(relayed, Relayed { up: 10, down: 0, end: End::Idle }), "{relayed:?}");
        let silent = begun.elapsed() - Duration::from_secs(900);
        assert!(silent >= idle && silent <= idle + idle / 2, "{silent:?}");
    }

    #[tokio::test]
    async fn a_receiver_that_goes_away_breaks_the_relay() {
        let (mut client, server, relay) = relaying(16, LONG);
        drop(server);
        let ends = async {
            let _ = client.write_all(&[1; 100]).await;
            let mut rest = Vec::new();
            let _ = client.read_to_end(&mut rest).await;
        };
        let ((), relayed) = tokio::join!(ends, relay);
        assert!(matches!(relayed.end, End::Broken(_)), "{relayed:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_receiver_holds_up_the_sender() {
        let (mut client, mut server, relay) = relaying(1000, LONG);
        let writing = async {
            let mut written = 0;
            while tokio::time::timeout(Duration::from_secs(1), client.write_all(&[0; 1000])).await.is_ok() {
                written += 1000;
            }
            written
        };
        let written = tokio::select! {
            written = writing => written,
            _ = relay => panic!("the relay ended"),
        };
        assert!(written <= CHUNK + 4000, "{written} bytes went nowhere");
        let mut some = [0; 10];
        server.read_exact(&mut some).await.expect("what was passed on is there");
    }
}
