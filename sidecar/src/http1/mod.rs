//! Weft's own HTTP/1 codec: one task per connection, no channels, no buffers while idle, one write per message.
//!
//! `server` reads requests and writes what the handler answers; `client` is one connection to an upstream. Both sit on
//! `wire` (bytes), `head` and `write` (heads in and out), `framing` and `chunked` (bodies). A body that comes in is
//! read straight from its connection when somebody polls it, so backpressure is that nobody does.
//!
//! How strict: a message that two readers could read differently is refused. How a client that goes away is told from
//! one that only has nothing more to say: see `server`.

mod case;
mod chunked;
mod client;
mod conn;
mod framing;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;
mod head;
mod hop_by_hop;
mod incoming;
mod pump;
mod server;
mod wire;
mod write;

pub(crate) use case::{HeaderCase, write_name as write_field_name};
pub(crate) use client::{Client, Recycle};
pub(crate) use head::is_host;
pub(crate) use hop_by_hop::strip_hop_by_hop;
pub(crate) use incoming::Incoming;
pub(crate) use server::serve;

use std::time::Duration;
use weft_config::snapshot::Limits;

/// The limits the codec keeps, small enough to be copied into every connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    /// Bytes of one message's head.
    pub(crate) header_bytes: usize,
    /// Fields in one message's head.
    pub(crate) header_count: usize,
    /// Time for the rest of a head after its first byte.
    pub(crate) header_timeout: Duration,
    /// A downstream connection without a request is closed after this.
    pub(crate) idle_timeout: Duration,
}

impl From<&Limits> for Settings {
    fn from(limits: &Limits) -> Self {
        Self {
            header_bytes: limits.header_bytes,
            header_count: limits.header_count,
            header_timeout: limits.header_timeout,
            idle_timeout: limits.idle_timeout,
        }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self::from(&Limits::default())
    }
}

/// A request as the server reads it, for benchmarks.
#[cfg(feature = "bench")]
pub(crate) fn read(bytes: &[u8]) -> Option<http::Request<crate::body::Body>> {
    let mut input = bytes::BytesMut::from(bytes);
    let head = head::parse_request_head(&mut input, &Settings::default(), &mut Default::default()).ok()??;
    Some(head.request.map(|()| crate::body::Body::Empty))
}

/// The bytes of an answer that is all there, for benchmarks.
#[cfg(feature = "bench")]
pub(crate) fn written(response: http::Response<crate::body::Body>, out: &mut Vec<u8>) {
    use crate::body::Body;
    use http_body::Body as _;
    let (head, body) = response.into_parts();
    let length = framing::Encoder::Length(body.size_hint().lower());
    let stored = if let Body::Stored(stored) = &body { Some(stored) } else { None };
    write::response_head(out, &head, stored, length, write::Persistence::Implied);
    out.extend_from_slice(server::at_hand(&body).unwrap_or_default());
}

#[cfg(test)]
mod tests;
