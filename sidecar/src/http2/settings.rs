//! The limits and times of an HTTP/2 connection, the same for both ends unless said otherwise.

use std::time::Duration;
use weft_config::snapshot::Limits;

/// How one HTTP/2 connection is run.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// Streams a peer may have open at once; as a client, the most we open even if the peer allows more.
    pub(crate) max_streams: u32,
    /// How much of one body a peer may send before we have taken it.
    pub(crate) stream_window: u32,
    /// The same for all streams together. Several times the stream window: with equal ones a single stalled body
    /// would hold up every other.
    pub(crate) connection_window: u32,
    /// How much of one body waits in memory for the peer's window.
    pub(crate) send_buffer: usize,
    /// The most decoded bytes of header fields, counted as RFC 9113 does: name, value and 32 for each field.
    pub(crate) max_header_bytes: usize,
    /// The most header fields of a message.
    pub(crate) max_headers: usize,
    /// How long a new connection may take until it speaks HTTP/2.
    pub(crate) handshake_timeout: Duration,
    /// After so long without a byte from the peer while streams are open, it is asked whether it is still there.
    pub(crate) keepalive_interval: Duration,
    /// How long it may take to answer that.
    pub(crate) keepalive_timeout: Duration,
    /// A server closes a connection that had no stream for so long.
    pub(crate) idle_timeout: Duration,
    /// True over `weft/1over2`: the streams carry HTTP/1 messages, and both ends show them as such.
    pub(crate) http1_messages: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            max_streams: 1024,
            stream_window: 1024 * 1024,
            connection_window: 8 * 1024 * 1024,
            send_buffer: 256 * 1024,
            max_header_bytes: 64 * 1024,
            max_headers: 128,
            handshake_timeout: Duration::from_secs(10),
            keepalive_interval: Duration::from_secs(20),
            keepalive_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(3600),
            http1_messages: false,
        }
    }
}

impl From<&Limits> for Settings {
    fn from(limits: &Limits) -> Self {
        Self {
            max_streams: limits.streams,
            max_header_bytes: limits.header_bytes,
            max_headers: limits.header_count,
            handshake_timeout: limits.handshake_timeout,
            idle_timeout: limits.idle_timeout,
            ..Self::default()
        }
    }
}

impl Settings {
    /// What h2 itself is told to hold against. Above our own limit, so that there is room to answer a head that is
    /// too large with a body that says so; far above it h2 answers alone.
    pub(super) fn hard_header_bytes(&self) -> u32 {
        u32::try_from(self.max_header_bytes.saturating_mul(2)).unwrap_or(u32::MAX)
    }

    /// How often a connection looks at itself.
    pub(super) fn tick(&self) -> Duration {
        self.keepalive_interval.min(self.idle_timeout / 2).max(Duration::from_millis(1))
    }
}
