//! One byte stream type for everything a sidecar talks over: TCP, or TLS on top of it, with bytes already read put back.

use bytes::{Buf, BytesMut};
use std::{
    any::Any,
    cell::RefCell,
    io,
    pin::Pin,
    task::{Context, Poll},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

thread_local! {
    /// One read buffer for all connections of a worker that wait for their first bytes.
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; 16 * 1024].into_boxed_slice());
}

/// A connection. An enum and not a trait object: the request path is compiled once and calls are direct.
pub(crate) struct Io {
    /// Bytes that were read to find out the protocol and belong in front of what comes next.
    prefix: BytesMut,
    stream: Stream,
    /// What is to last as long as the connection: counts of open connections.
    held: Option<Box<dyn Any>>,
}

enum Stream {
    Plain(TcpStream),
    Server(Box<tokio_rustls::server::TlsStream<Rewound>>),
    Client(Box<tokio_rustls::client::TlsStream<TcpStream>>),
    /// In-memory, for tests without sockets.
    #[cfg(any(test, feature = "fuzzing"))]
    Memory(tokio::io::DuplexStream),
}

/// A TCP stream with the bytes that were read before TLS was recognised.
pub(crate) struct Rewound {
    prefix: BytesMut,
    stream: TcpStream,
}

impl Rewound {
    /// Puts `prefix` in front of what `stream` has yet to give.
    pub(crate) fn new(prefix: BytesMut, stream: TcpStream) -> Self {
        Self { prefix, stream }
    }
}

impl Io {
    /// A plain TCP connection.
    pub(crate) fn plain(stream: TcpStream) -> Self {
        Self { prefix: BytesMut::new(), stream: Stream::Plain(stream), held: None }
    }

    /// The accepting side of TLS.
    pub(crate) fn tls_server(stream: tokio_rustls::server::TlsStream<Rewound>) -> Self {
        Self { prefix: BytesMut::new(), stream: Stream::Server(Box::new(stream)), held: None }
    }

    /// The connecting side of TLS.
    pub(crate) fn tls_client(stream: tokio_rustls::client::TlsStream<TcpStream>) -> Self {
        Self { prefix: BytesMut::new(), stream: Stream::Client(Box::new(stream)), held: None }
    }

    /// One end of an in-memory pipe.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn memory(stream: tokio::io::DuplexStream) -> Self {
        Self { prefix: BytesMut::new(), stream: Stream::Memory(stream), held: None }
    }

    /// Puts bytes back in front of the stream. Must not be called while earlier ones are left.
    pub(crate) fn unread(&mut self, bytes: BytesMut) {
        debug_assert!(self.prefix.is_empty());
        self.prefix = bytes;
    }

    /// Takes the bytes that were put back, for a reader with a buffer of its own.
    pub(crate) fn take_prefix(&mut self) -> BytesMut {
        std::mem::take(&mut self.prefix)
    }

    /// Reads once and appends what came to `into`; 0 at the end of the stream. Waiting costs no buffer.
    pub(crate) async fn fill(&mut self, into: &mut BytesMut) -> io::Result<usize> {
        std::future::poll_fn(|cx| {
            SCRATCH.with_borrow_mut(|scratch| {
                let mut buf = ReadBuf::new(scratch);
                std::task::ready!(Pin::new(&mut *self).poll_read(cx, &mut buf))?;
                into.extend_from_slice(buf.filled());
                Poll::Ready(Ok(buf.filled().len()))
            })
        })
        .await
    }

    /// Keeps `what` until the connection is gone, with what it keeps already.
    pub(crate) fn hold(&mut self, what: impl Any) {
        self.held = match self.held.take() {
            None => Some(Box::new(what)),
            Some(held) => Some(Box::new((held, what))),
        };
    }

    /// The TCP stream itself, if that is all there is.
    pub(crate) fn into_plain(self) -> Option<TcpStream> {
        match self.stream {
            Stream::Plain(stream) if self.prefix.is_empty() => Some(stream),
            _ => None,
        }
    }

    /// True if the bytes travel encrypted.
    pub(crate) fn is_tls(&self) -> bool {
        matches!(self.stream, Stream::Server(_) | Stream::Client(_))
    }
}

impl AsyncRead for Rewound {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.prefix.is_empty() {
            drain_prefix(&mut self.prefix, buf);
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Rewound {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }
    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

fn drain_prefix(prefix: &mut BytesMut, buf: &mut ReadBuf<'_>) {
    let n = prefix.len().min(buf.remaining());
    buf.put_slice(&prefix[..n]);
    prefix.advance(n);
    if prefix.is_empty() {
        *prefix = BytesMut::new();
    }
}

/// Calls `$method` on whatever stream it is.
macro_rules! each {
    ($stream:expr, $s:ident => $call:expr) => {
        match $stream {
            Stream::Plain($s) => $call,
            Stream::Server($s) => $call,
            Stream::Client($s) => $call,
            #[cfg(any(test, feature = "fuzzing"))]
            Stream::Memory($s) => $call,
        }
    };
}

impl AsyncRead for Io {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.prefix.is_empty() {
            drain_prefix(&mut self.prefix, buf);
            return Poll::Ready(Ok(()));
        }
        each!(&mut self.stream, s => Pin::new(s).poll_read(cx, buf))
    }
}

impl AsyncWrite for Io {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        each!(&mut self.stream, s => Pin::new(s).poll_write(cx, buf))
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(&mut self.stream, s => Pin::new(s).poll_flush(cx))
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(&mut self.stream, s => Pin::new(s).poll_shutdown(cx))
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        each!(&mut self.stream, s => Pin::new(s).poll_write_vectored(cx, bufs))
    }
    fn is_write_vectored(&self) -> bool {
        each!(&self.stream, s => s.is_write_vectored())
    }
}
