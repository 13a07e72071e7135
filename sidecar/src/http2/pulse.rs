//! Whether a connection's peer is still there, and whether the connection is still of use: one timer for both.

use super::settings::Settings;
use std::{
    pin::Pin,
    task::{Context, Poll},
};
use tokio::time::{Instant, Sleep};

/// What a connection has to do about its peer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It did not answer: the connection is dead.
    Dead,
    /// There was no stream for as long as is allowed.
    Idle,
}

/// Looks at a connection once a tick. Requests only bump counters; no timer is touched for them.
pub(super) struct Pulse {
    ping: Option<h2::PingPong>,
    timer: Pin<Box<Sleep>>,
    /// When the answer to the last ping is due.
    due: Option<Instant>,
    /// `reads` and `begun` at the last tick.
    reads: u64,
    begun: u64,
    /// Since when there was nothing to do, as far as ticks can tell.
    idle_since: Instant,
}

impl Pulse {
    pub(super) fn new(ping: Option<h2::PingPong>, settings: &Settings) -> Self {
        let now = Instant::now();
        Self {
            ping,
            timer: Box::pin(tokio::time::sleep_until(now + settings.tick())),
            due: None,
            reads: 0,
            begun: 0,
            idle_since: now,
        }
    }

    /// `reads` counts arrivals of bytes, `begun` streams ever begun, `live` those open now.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        settings: &Settings,
        reads: u64,
        begun: u64,
        live: usize,
    ) -> Poll<Verdict> {
        if self.due.is_some() && self.poll_pong(cx) {
            self.due = None;
        }
        while self.timer.as_mut().poll(cx).is_ready() {
            let now = Instant::now();
            if self.due.is_some_and(|due| due <= now) {
                return Poll::Ready(Verdict::Dead);
            }
            let silent = reads == self.reads;
            if live > 0 || begun != self.begun {
                self.idle_since = now;
            }
            (self.reads, self.begun) = (reads, begun);
            if now.duration_since(self.idle_since) >= settings.idle_timeout {
                self.idle_since = now;
                self.timer.as_mut().reset(now + settings.tick());
                return Poll::Ready(Verdict::Idle);
            }
            if self.due.is_none() && silent && live > 0 {
                let sent = self.ping.as_mut().is_some_and(|ping| ping.send_ping(h2::Ping::opaque()).is_ok());
                if sent && !self.poll_pong(cx) {
                    self.due = Some(now + settings.keepalive_timeout);
                }
            }
            let next = now + settings.tick();
            self.timer.as_mut().reset(self.due.map_or(next, |due| due.min(next)));
        }
        Poll::Pending
    }

    fn poll_pong(&mut self, cx: &mut Context<'_>) -> bool {
        self.ping.as_mut().is_some_and(|ping| ping.poll_pong(cx).is_ready())
    }
}
