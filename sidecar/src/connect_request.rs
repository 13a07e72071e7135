//! `CONNECT` as the first request of a connection to the proxy port: reading it, finding its end, and refusing it.

use crate::{
    body::Body,
    context,
    error::{Error, Kind},
    io::Io,
    worker::Worker,
};
use bytes::{Buf, BytesMut};
use http::Uri;
use http::uri::Authority;
use std::time::Duration;
use tokio::{io::AsyncWriteExt, time::timeout};

/// The answer to a `CONNECT` that is taken.
pub(crate) const ESTABLISHED: &[u8] = b"HTTP/1.1 200 Connection Established\r\n\r\n";

/// Reads the head of a `CONNECT` request and gives its authority; what follows it stays in `io`.
pub(crate) async fn read(io: &mut Io, limit: usize) -> Result<Authority, Error> {
    let mut bytes = io.take_prefix();
    loop {
        if let Some(end) = find(&bytes, b"\r\n\r\n") {
            let authority = parse(&bytes[..end + 4])?;
            bytes.advance(end + 4);
            io.unread(bytes);
            return Ok(authority);
        }
        if bytes.len() > limit {
            return Err(Error::new(
                Kind::HeadersTooLarge,
                format!("the CONNECT request is longer than {limit} bytes"),
            ));
        }
        match io.fill(&mut bytes).await {
            Ok(n) if n > 0 => {}
            _ => return Err(Error::new(Kind::Gone, "the connection ended within the CONNECT request")),
        }
    }
}

pub(crate) fn parse(head: &[u8]) -> Result<Authority, Error> {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut request = httparse::Request::new(&mut headers);
    let bad = |why: &str| Error::new(Kind::BadRequest, format!("the CONNECT request is malformed: {why}"));
    match request.parse(head) {
        Ok(httparse::Status::Complete(_)) => {}
        Ok(httparse::Status::Partial) => return Err(bad("it is incomplete")),
        Err(error) => return Err(bad(&error.to_string())),
    }
    let target: Uri =
        request.path.unwrap_or_default().parse().map_err(|_| bad("its target is no host:port"))?;
    let authority = target
        .authority()
        .filter(|a| a.port_u16().is_some() && !a.host().is_empty() && !a.as_str().contains('@'));
    authority.cloned().ok_or_else(|| bad("its target is no host:port"))
}

fn find(bytes: &BytesMut, what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|w| w == what)
}

/// Answers with an error and closes.
pub(crate) async fn refuse(worker: &Worker, io: &mut Io, error: &Error) {
    worker.shard.error(error.kind);
    let response = context::answer(error, false);
    let body = match response.body() {
        Body::Full(bytes) => bytes.clone(),
        _ => Default::default(),
    };
    let mut head =
        format!("HTTP/1.1 {}\r\nConnection: close\r\nContent-Length: {}\r\n", response.status(), body.len());
    for (name, value) in response.headers() {
        head.push_str(&format!("{name}: {}\r\n", value.to_str().unwrap_or_default()));
    }
    head.push_str("\r\n");
    let _ = timeout(Duration::from_secs(1), async {
        io.write_all(head.as_bytes()).await?;
        io.write_all(&body).await?;
        io.shutdown().await
    })
    .await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_target_must_be_host_and_port() {
        let ok = parse(b"CONNECT db:5432 HTTP/1.1\r\nHost: db:5432\r\n\r\n").expect("valid");
        assert_eq!(ok.as_str(), "db:5432");
        for bad in [
            "CONNECT db HTTP/1.1\r\n\r\n",
            "CONNECT user@db:5432 HTTP/1.1\r\n\r\n",
            "CONNECT /x HTTP/1.1\r\n\r\n",
            "CONNECT http://a/b HTTP/1.1\r\n\r\n",
        ] {
            assert_eq!(parse(bad.as_bytes()).expect_err(bad).kind, Kind::BadRequest, "{bad}");
        }
    }
}
