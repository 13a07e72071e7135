//! Reads a body from its origin into a fill, as fast as it comes, whoever reads it from there.
//!
//! It is a task of its own unless all of the body was there at once: a client that reads slowly then slows nobody, and
//! one that goes away leaves the others what they came for. A body that cannot be kept any more is read only as fast as
//! the fastest of those who still want it.

use super::{Fill, Phase};
use crate::{
    body::{Body, Piece},
    cache::{entry::Entry, seconds_now},
    error::{Error, Kind},
    message::grpc_status,
};
use bytes::Bytes;
use http::HeaderMap;
use http_body::Body as _;
use std::{
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll},
    time::Duration,
};
use tokio::time::{Sleep, sleep};

/// Frames taken before others get a turn.
const BURST: usize = 32;
/// How far a body that is not kept is read ahead of its fastest reader.
const AHEAD: u64 = 64 * 1024;
/// How long a fill goes on that nobody reads any more, and how many of them there may be.
const ORPHAN_TIME: Duration = Duration::from_secs(10);
const ORPHANS_MAX: usize = 64;
/// For how long nobody waits for a response that turned out too large to be kept.
const TOO_LARGE_SECONDS: u32 = 10;

/// The reading of one body.
pub(super) struct Driver {
    fill: Arc<Fill>,
    body: Body,
    /// Bytes of the store's limit that are taken for it.
    reserved: u64,
    length: u64,
    trailers: Option<HeaderMap>,
    /// The head of what it is under another key too.
    also: Option<Entry>,
    whole: bool,
    orphan: Option<Pin<Box<Sleep>>>,
    over: bool,
    /// Whether nobody is told yet of what comes.
    pub(super) quiet: bool,
}

impl Driver {
    pub(super) fn new(fill: Arc<Fill>, body: Body, also: Option<Entry>) -> Self {
        Self {
            fill,
            body,
            reserved: 0,
            length: 0,
            trailers: None,
            also,
            whole: true,
            orphan: None,
            over: false,
            quiet: true,
        }
    }

    /// Reads what there is. Ready once the fill is over, one way or the other.
    pub(super) fn poll_step(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        for _ in 0..BURST {
            if self.over {
                return Poll::Ready(());
            }
            std::task::ready!(self.poll_leave(cx));
            if self.over {
                return Poll::Ready(());
            }
            match std::task::ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(frame)) => match Piece::from(frame) {
                    Piece::Data(data) if data.is_empty() => {}
                    Piece::Data(data) => self.take(data),
                    Piece::Trailers(trailers) => {
                        // How a gRPC call went is known only now.
                        if grpc_status(&trailers).is_some_and(|status| status != 0) {
                            self.whole = false;
                            self.fill.withdraw();
                        }
                        self.trailers = Some(trailers);
                    }
                },
                Some(Err(error)) => {
                    self.fail(error);
                    return Poll::Ready(());
                }
                None => {
                    self.finish();
                    return Poll::Ready(());
                }
            }
            if self.body.is_end_stream() {
                self.finish();
                return Poll::Ready(());
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Whether the next piece is wanted now: ready if it is, or if the fill was given up because nobody wants it.
    fn poll_leave(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let readers = {
            let mut state = self.fill.lock();
            let end = match &state.phase {
                Phase::Streaming(stream) => stream.end(),
                _ => 0,
            };
            if !self.quiet && !state.driver.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                state.driver = Some(cx.waker().clone());
            }
            let fastest = if self.whole { None } else { state.seats.fastest() };
            if fastest.is_some_and(|fastest| end - fastest >= AHEAD) {
                return Poll::Pending;
            }
            state.seats.count() > 0
        };
        if readers {
            if self.orphan.take().is_some() {
                self.fill.store.fills.orphans.fetch_sub(1, Ordering::Relaxed);
            }
            return Poll::Ready(());
        }
        if self.orphan.is_none() && self.whole {
            let orphans = &self.fill.store.fills.orphans;
            if orphans.fetch_add(1, Ordering::Relaxed) >= ORPHANS_MAX {
                orphans.fetch_sub(1, Ordering::Relaxed);
            } else {
                self.orphan = Some(Box::pin(sleep(ORPHAN_TIME)));
            }
        }
        let goes_on = match &mut self.orphan {
            Some(time) => self.whole && time.as_mut().poll(cx).is_pending(),
            None => false,
        };
        if !goes_on {
            self.fail(Error::after_send(Kind::Gone, "nobody waits for the response any more"));
        }
        Poll::Ready(())
    }

    /// Takes one piece in.
    fn take(&mut self, data: Bytes) {
        let store = self.fill.store.clone();
        let now = seconds_now();
        self.length += data.len() as u64;
        if self.whole {
            // What it takes, with some for what keeping it in pieces takes.
            let cost = data.len() as u64 + 64;
            if self.length <= store.object_limit() && store.reserve_fill(cost, now) {
                self.reserved += cost;
            } else {
                self.outgrow(now);
            }
        }
        {
            let mut state = self.fill.lock();
            let state = &mut *state;
            if let Phase::Streaming(stream) = &mut state.phase {
                stream.whole = self.whole;
                stream.push(data);
                if !self.whole {
                    // The fastest is never cut off: it is not further behind than what is read ahead of it.
                    let end = stream.end();
                    let fastest = state.seats.fastest().unwrap_or(end);
                    let window = end.saturating_sub(store.object_limit());
                    stream.give_up(state.seats.slowest().unwrap_or(end).max(window).min(fastest));
                    let held = stream.held();
                    if held > self.reserved && store.reserve_fill(held - self.reserved, now) {
                        self.reserved = held;
                    } else if held > self.reserved {
                        // No room for those who are behind.
                        stream.give_up(fastest);
                    }
                    let held = stream.held();
                    if held < self.reserved {
                        store.release_fill(self.reserved - held);
                        self.reserved = held;
                    }
                }
            }
        }
        if !self.quiet {
            self.fill.wake_all();
        }
    }

    /// It gets too large to be kept: those who have begun read on, nobody else begins.
    fn outgrow(&mut self, now: u32) {
        self.whole = false;
        self.fill.store.fills.outgrown.fetch_add(1, Ordering::Relaxed);
        self.fill.store.leave_alone(self.fill.common.hash, now + TOO_LARGE_SECONDS);
        self.fill.withdraw();
    }

    /// All of it is here.
    fn finish(&mut self) {
        self.over = true;
        let (head, pieces) = {
            let state = self.fill.lock();
            match &state.phase {
                Phase::Streaming(stream) if self.whole => (stream.head.clone(), stream.pieces()),
                _ => {
                    drop(state);
                    let trailers = self.trailers.take();
                    self.end(Ok(trailers));
                    return;
                }
            }
        };
        let length = self.length as usize;
        let entry = head.with_body(length, &pieces, self.trailers.as_ref());
        let also = self.also.take().and_then(|head| head.with_body(length, &pieces, None));
        drop(pieces);
        let Some(entry) = entry else {
            // Only its trailers are too much.
            self.fill.withdraw();
            let trailers = self.trailers.take();
            self.end(Ok(trailers));
            return;
        };
        let store = self.fill.store.clone();
        // What it had is what the entry needs; only another fill could be faster.
        store.release_fill(std::mem::take(&mut self.reserved));
        let (entry, _) = store.put(entry, seconds_now());
        if let Some(also) = also.filter(|_| length > 0) {
            // Without room for it, what asks for that key is a miss.
            let _ = store.put(also, seconds_now());
        }
        store.keep_company(self.fill.common.hash);
        if let Phase::Streaming(stream) = &mut self.fill.lock().phase {
            stream.settle(entry, self.trailers.take());
        }
        self.fill.withdraw();
        self.fill.wake_all();
    }

    fn fail(&mut self, error: Error) {
        self.over = true;
        self.fill.store.fills.broken.fetch_add(1, Ordering::Relaxed);
        self.fill.withdraw();
        self.end(Err(error));
    }

    fn end(&mut self, outcome: Result<Option<HeaderMap>, Error>) {
        if let Phase::Streaming(stream) = &mut self.fill.lock().phase {
            stream.whole = false;
            stream.outcome = Some(outcome);
        }
        self.fill.wake_all();
    }
}

impl Future for Driver {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.get_mut().poll_step(cx)
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        if !self.over {
            self.fail(Error::after_send(Kind::Gone, "the worker that fetched the response ended"));
        }
        if self.orphan.take().is_some() {
            self.fill.store.fills.orphans.fetch_sub(1, Ordering::Relaxed);
        }
        let reserved = std::mem::take(&mut self.reserved);
        if reserved > 0 {
            self.fill.store.release_fill(reserved);
        }
    }
}
