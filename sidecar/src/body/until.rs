//! A body that fails when its time is up: by a moment for all of it, or by how long nothing of it came.

use super::Body;
use crate::error::{Error, Kind};
use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use std::{
    pin::Pin,
    task::{Context, Poll},
    time::{Duration, Instant},
};
use tokio::time::{Sleep, sleep_until};

/// A body with bounds on its time.
pub(crate) struct Until {
    inner: Body,
    deadline: Option<Pin<Box<Sleep>>>,
    idle: Option<(Duration, Pin<Box<Sleep>>)>,
}

impl Until {
    pub(super) fn new(inner: Body, deadline: Option<Instant>, idle: Option<Duration>) -> Self {
        let sleep = |until: Instant| Box::pin(sleep_until(until.into()));
        Self {
            inner,
            deadline: deadline.map(sleep),
            idle: idle.map(|time| (time, Box::pin(tokio::time::sleep(time)))),
        }
    }

    pub(super) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.inner).poll_frame(cx) {
            if let Some((time, sleep)) = &mut self.idle {
                sleep.as_mut().reset(tokio::time::Instant::now() + *time);
            }
            return Poll::Ready(frame);
        }
        let late = |detail| Poll::Ready(Some(Err(Error::after_send(Kind::Timeout, detail))));
        if self.deadline.as_mut().is_some_and(|sleep| sleep.as_mut().poll(cx).is_ready()) {
            return late("the response was not through within the request's time");
        }
        if self.idle.as_mut().is_some_and(|(_, sleep)| sleep.as_mut().poll(cx).is_ready()) {
            return late("nothing of the response came within timeouts.idle");
        }
        Poll::Pending
    }

    pub(super) fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
