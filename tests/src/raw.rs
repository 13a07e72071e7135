//! Bytes on sockets, for what a library would hide.

use crate::{PATIENCE, soon};
use std::net::SocketAddr;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// Connects.
pub async fn connect(address: SocketAddr) -> TcpStream {
    let stream = soon("a connection", TcpStream::connect(address)).await.expect("connects");
    stream.set_nodelay(true).expect("a socket");
    stream
}

/// Reads up to and with the empty line that ends a head. What follows stays unread.
pub async fn head(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut bytes = Vec::new();
    let reading = async {
        while !bytes.ends_with(b"\r\n\r\n") {
            let mut one = [0];
            if stream.read(&mut one).await.unwrap_or(0) == 0 {
                break;
            }
            bytes.push(one[0]);
        }
    };
    let whole = tokio::time::timeout(PATIENCE, reading).await.is_ok();
    let text = String::from_utf8_lossy(&bytes).into_owned();
    assert!(whole, "no whole head in time, only {text:?}");
    text
}

/// Reads to the end; what came before a reset counts.
pub async fn rest(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut bytes = Vec::new();
    let reading = async {
        let mut some = vec![0; 16 * 1024];
        while let Ok(n) = stream.read(&mut some).await
            && n > 0
        {
            bytes.extend_from_slice(&some[..n]);
        }
    };
    let whole = tokio::time::timeout(PATIENCE, reading).await.is_ok();
    let text = String::from_utf8_lossy(&bytes).into_owned();
    assert!(whole, "no end in time, only {text:?}");
    text
}

/// Reads exactly so many bytes.
pub async fn exactly(stream: &mut (impl AsyncRead + Unpin), count: usize) -> String {
    let mut bytes = vec![0; count];
    soon("all bytes", stream.read_exact(&mut bytes)).await.expect("so many bytes");
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Sends bytes and reads to the end.
pub async fn exchange(address: SocketAddr, bytes: impl AsRef<[u8]>) -> String {
    let mut stream = connect(address).await;
    // The other side may refuse before it has read everything.
    let _ = stream.write_all(bytes.as_ref()).await;
    rest(&mut stream).await
}

/// A plain GET without any proxy: status and body.
pub async fn get(address: SocketAddr, path: &str) -> (u16, String) {
    let request = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    let answer = exchange(address, request).await;
    let status = answer.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0);
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    (status, body.to_owned())
}
