//! A body that somebody watches: what passes, and how it ends.

use super::Body;
use crate::error::Error;
use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame, SizeHint};
use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

/// Who watches. Dropped before [`Observer::end`], the body was given up by its reader.
pub(crate) trait Observer {
    /// So many bytes passed.
    fn data(&mut self, bytes: usize);
    /// Trailers passed.
    fn trailers(&mut self, trailers: &HeaderMap);
    /// It is through, or it broke.
    fn end(&mut self, outcome: Result<(), &Error>);
}

/// A body with its observer. One allocation for both.
pub(crate) struct Observed<O: ?Sized> {
    inner: Body,
    observer: O,
}

impl<O> Observed<O> {
    pub(super) fn new(inner: Body, observer: O) -> Self {
        Self { inner, observer }
    }
}

impl<O: Observer + ?Sized> Observed<O> {
    pub(super) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let frame = ready!(Pin::new(&mut self.inner).poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    self.observer.data(data.len());
                } else if let Some(trailers) = frame.trailers_ref() {
                    self.observer.trailers(trailers);
                }
                if self.inner.is_end_stream() {
                    self.observer.end(Ok(()));
                }
            }
            Some(Err(error)) => self.observer.end(Err(error)),
            None => self.observer.end(Ok(())),
        }
        Poll::Ready(frame)
    }

    pub(super) fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
