//! The places of those who wait for a fill or read it, each as far as it has come.

use super::{Fill, Phase, stream::Read};
use crate::error::{Error, Kind};
use bytes::Bytes;
use http::HeaderMap;
use http_body::{Frame, SizeHint};
use std::{
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll, Waker},
};

/// Who waits and who reads.
#[derive(Default)]
pub(super) struct Seats {
    places: Vec<Option<Place>>,
    free: Vec<usize>,
}

pub(super) struct Place {
    offset: u64,
    waker: Option<Waker>,
}

impl Seats {
    pub(super) fn count(&self) -> usize {
        self.places.len() - self.free.len()
    }

    pub(super) fn take(&mut self) -> usize {
        let place = Some(Place { offset: 0, waker: None });
        match self.free.pop() {
            Some(at) => {
                self.places[at] = place;
                at
            }
            None => {
                self.places.push(place);
                self.places.len() - 1
            }
        }
    }

    /// Gives the place to be dropped where the lock is open: its waker may be the last of its task.
    pub(super) fn leave(&mut self, at: usize) -> Option<Place> {
        let place = self.places.get_mut(at)?.take()?;
        self.free.push(at);
        Some(place)
    }

    pub(super) fn wait(&mut self, at: usize, cx: &Context<'_>) {
        if let Some(Some(place)) = self.places.get_mut(at) {
            match &mut place.waker {
                Some(waker) => waker.clone_from(cx.waker()),
                none => *none = Some(cx.waker().clone()),
            }
        }
    }

    fn offsets(&self) -> impl Iterator<Item = u64> {
        self.places.iter().flatten().map(|place| place.offset)
    }

    pub(super) fn fastest(&self) -> Option<u64> {
        self.offsets().max()
    }

    pub(super) fn slowest(&self) -> Option<u64> {
        self.offsets().min()
    }

    /// What those have to be woken with who wait for something to come.
    pub(super) fn wakers(&mut self) -> Vec<Waker> {
        self.places.iter_mut().flatten().filter_map(|place| place.waker.take()).collect()
    }
}

/// A place among those who wait for a fill or read it.
pub(in crate::cache) struct Seat {
    pub(super) fill: Arc<Fill>,
    pub(super) at: usize,
}

impl Seat {
    /// The next of the body.
    pub(in crate::cache) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let mut state = self.fill.lock();
        let state = &mut *state;
        let (Phase::Streaming(stream), Some(Some(place))) =
            (&state.phase, state.seats.places.get_mut(self.at))
        else {
            return Poll::Ready(None);
        };
        match stream.read(place.offset) {
            Read::Data(data) => {
                place.offset += data.len() as u64;
                if !stream.whole && stream.outcome.is_none() {
                    // It may have waited for the fastest.
                    state.driver.iter().for_each(Waker::wake_by_ref);
                }
                Poll::Ready(Some(Ok(Frame::data(data))))
            }
            Read::Wait => {
                state.seats.wait(self.at, cx);
                Poll::Pending
            }
            Read::Lost => {
                self.fill.store.fills.cut_off.fetch_add(1, Ordering::Relaxed);
                Poll::Ready(Some(Err(Error::after_send(
                    Kind::Reset,
                    "the response is too large to be kept, and this caller was too far behind the others",
                ))))
            }
            Read::End => Poll::Ready(match &stream.outcome {
                Some(Ok(Some(trailers))) => Some(Ok(Frame::trailers(HeaderMap::clone(trailers)))),
                Some(Err(error)) => Some(Err(error.clone())),
                _ => None,
            }),
        }
    }

    /// Whether nothing follows.
    pub(in crate::cache) fn is_through(&self) -> bool {
        let state = self.fill.lock();
        match (&state.phase, state.seats.places.get(self.at)) {
            (Phase::Streaming(stream), Some(Some(place))) => {
                matches!(stream.outcome, Some(Ok(None))) && place.offset == stream.end()
            }
            _ => false,
        }
    }

    pub(in crate::cache) fn size_hint(&self) -> SizeHint {
        let state = self.fill.lock();
        let (Phase::Streaming(stream), Some(Some(place))) = (&state.phase, state.seats.places.get(self.at))
        else {
            return SizeHint::new();
        };
        match (stream.length, &stream.outcome) {
            (Some(length), _) => SizeHint::with_exact(length.saturating_sub(place.offset)),
            (None, Some(Ok(None))) => SizeHint::with_exact(stream.end() - place.offset),
            _ => SizeHint::new(),
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let (_place, driver, vacant) = {
            let mut state = self.fill.lock();
            let place = state.seats.leave(self.at);
            let last = state.seats.count() == 0;
            let slower = matches!(&state.phase, Phase::Streaming(stream) if !stream.whole);
            let driver = if last || slower { state.driver.clone() } else { None };
            (place, driver, last && matches!(state.phase, Phase::Vacant))
        };
        if let Some(driver) = driver {
            driver.wake();
        }
        if vacant {
            self.fill.withdraw();
        }
    }
}
