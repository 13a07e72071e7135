//! A `CONNECT` stream: DATA frames on one side, a connection's bytes on the other.

use super::outgoing::room;
use crate::io::Io;
use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream};
use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    io,
    pin::Pin,
    task::ready,
    time::Duration,
};
use tokio::io::{AsyncRead, AsyncWriteExt, ReadBuf};

/// As much as a DATA frame commonly holds.
const CHUNK: usize = 16 * 1024;

thread_local! {
    /// Read into by all tunnels of a worker, so that one which waits holds no buffer.
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; CHUNK].into());
}

/// Relays until both sides have ended, one fails, or nothing moves for `idle`.
pub(super) async fn relay(mut from: RecvStream, mut to: SendStream<Bytes>, io: Io, idle: Duration) {
    let moved = Cell::new(0u64);
    let (mut read, mut write) = tokio::io::split(io);
    let up = async {
        while let Some(data) = from.data().await {
            let data = data.map_err(io::Error::other)?;
            write.write_all(&data).await?;
            write.flush().await?;
            moved.set(moved.get() + 1);
            // Room is given only for what the other side took.
            from.flow_control().release_capacity(data.len()).map_err(io::Error::other)?;
        }
        write.shutdown().await
    };
    let down = async {
        loop {
            let data = poll_fn(|cx| {
                SCRATCH.with_borrow_mut(|scratch| {
                    let mut buf = ReadBuf::new(scratch);
                    ready!(Pin::new(&mut read).poll_read(cx, &mut buf))?;
                    io::Result::Ok(Bytes::copy_from_slice(buf.filled())).into()
                })
            })
            .await?;
            if data.is_empty() {
                return to.send_data(data, true).map_err(io::Error::other);
            }
            poll_fn(|cx| room(&mut to, cx)).await.map_err(|reason| io::Error::other(reason.description()))?;
            to.send_data(data, false).map_err(io::Error::other)?;
            moved.set(moved.get() + 1);
        }
    };
    let stalled = async {
        let mut before = u64::MAX;
        while before != moved.get() {
            before = moved.get();
            tokio::time::sleep(idle).await;
        }
    };
    let over = tokio::select! {
        result = async { tokio::try_join!(up, down) } => result.is_ok(),
        () = stalled => false,
    };
    if !over {
        to.send_reset(Reason::CONNECT_ERROR);
    }
}
