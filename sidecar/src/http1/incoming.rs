//! A body that comes in over HTTP/1: read from its connection when polled, by whoever polls.

use super::{client::Client, conn::Conn};
use crate::error::Error;
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use std::{
    cell::RefCell,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
};

/// The body of a request from downstream or of a response from upstream.
pub(crate) struct Incoming(Source);

enum Source {
    /// Shares the connection with its server loop; `turn` tells which request it belongs to.
    Downstream { conn: Rc<RefCell<Conn>>, turn: u32 },
    /// Owns the connection until the body is over.
    Upstream(Option<Box<Client>>),
}

impl Incoming {
    pub(super) fn downstream(conn: Rc<RefCell<Conn>>, turn: u32) -> Self {
        Self(Source::Downstream { conn, turn })
    }

    pub(super) fn upstream(client: Box<Client>) -> Self {
        Self(Source::Upstream(Some(client)))
    }
}

impl http_body::Body for Incoming {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        match &mut self.0 {
            Source::Downstream { conn, turn } => conn.borrow_mut().poll_body(*turn, cx),
            Source::Upstream(client) => Client::poll_body(client, cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Source::Downstream { conn, turn } => conn.borrow().body_is_over(*turn),
            Source::Upstream(client) => client.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Source::Downstream { conn, turn } => conn.borrow().body_size(*turn),
            Source::Upstream(Some(client)) => client.body_size(),
            Source::Upstream(None) => SizeHint::with_exact(0),
        }
    }
}
