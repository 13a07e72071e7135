//! placeholder

mod case;

pub(crate) use case::HeaderCase;

use crate::error::Error;
use bytes::Bytes;
use http_body::Frame;
use std::{
    pin::Pin,
    task::{Context, Poll},
};

/// A body that comes in.
pub(crate) struct Incoming;

impl http_body::Body for Incoming {
    type Data = Bytes;
    type Error = Error;
    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        Poll::Ready(None)
    }
}
