//! What applications do: calls through their sidecar's proxy port.

use crate::{Body, BoxError, PATIENCE, empty, eventually, full};
use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::{
    body::{Body as _, Incoming},
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::{net::SocketAddr, sync::Mutex, time::Instant};
use tokio::net::TcpStream;

/// A client of one sidecar, with a pool of connections of its own.
pub struct Client {
    proxy: SocketAddr,
    idle: Mutex<Vec<http1::SendRequest<Body>>>,
}

/// A whole answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The status.
    pub status: StatusCode,
    /// The fields.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
    /// The trailers, empty if there were none.
    pub trailers: HeaderMap,
}

impl Answer {
    /// The body as text.
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("text")
    }

    /// The body as JSON.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|_| panic!("no JSON: {} {}", self.status, self.text()))
    }

    /// A field as text, empty if it is not there.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().expect("text"))
    }

    /// What the sidecar says went wrong, empty if nothing did.
    pub fn weft_error(&self) -> &str {
        self.header("weft-error")
    }
}

/// Reads a response to its end.
pub async fn whole(response: Response<Incoming>) -> Result<Answer, BoxError> {
    let (head, body) = response.into_parts();
    let collected = body.collect().await?;
    let trailers = collected.trailers().cloned().unwrap_or_default();
    Ok(Answer { status: head.status, headers: head.headers, body: collected.to_bytes(), trailers })
}

impl Client {
    /// A client of the proxy port at `proxy`.
    pub fn new(proxy: SocketAddr) -> Self {
        Self { proxy, idle: Mutex::default() }
    }

    /// An HTTP/1 connection to the proxy port.
    pub async fn http1(&self) -> Result<http1::SendRequest<Body>, BoxError> {
        let stream = TcpStream::connect(self.proxy).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection.with_upgrades());
        Ok(sender)
    }

    /// An HTTP/2 connection to the proxy port, with prior knowledge.
    pub async fn http2(&self) -> Result<http2::SendRequest<Body>, BoxError> {
        let stream = TcpStream::connect(self.proxy).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(sender)
    }

    /// Sends a request in absolute form over HTTP/1; the body of the answer is still to be read.
    pub async fn send(&self, request: Request<Body>) -> Result<Response<Incoming>, BoxError> {
        let mut sender = self.http1().await?;
        Ok(sender.send_request(request).await?)
    }

    /// Sends a request over a pooled connection and reads the whole answer.
    pub async fn try_call(&self, mut request: Request<Body>) -> Result<Answer, BoxError> {
        if !request.headers().contains_key(http::header::HOST) {
            let host = request.uri().authority().map(|a| a.as_str().to_owned()).unwrap_or_default();
            request.headers_mut().insert(http::header::HOST, host.parse()?);
        }
        let pooled = loop {
            let last = self.idle.lock().expect("not poisoned").pop();
            match last {
                Some(mut sender) => {
                    if sender.ready().await.is_ok() {
                        break Some(sender);
                    }
                }
                None => break None,
            }
        };
        let mut sender = match pooled {
            Some(sender) => sender,
            None => self.http1().await?,
        };
        let answer = whole(sender.send_request(request).await?).await?;
        self.idle.lock().expect("not poisoned").push(sender);
        Ok(answer)
    }

    /// The same, for calls that must not fail or hang.
    pub async fn call(&self, request: Request<Body>) -> Answer {
        until_told(request, |request| self.try_call(request)).await
    }

    /// Calls with GET.
    pub async fn get(&self, url: &str) -> Answer {
        self.get_with(url, &[]).await
    }

    /// Calls with GET and these fields.
    pub async fn get_with(&self, url: &str, headers: &[(&str, &str)]) -> Answer {
        let mut request = Request::get(url);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.call(request.body(empty()).expect("a request")).await
    }

    /// Waits until so many GETs in a row are answered with this text, by which somebody is known to take all calls. What
    /// held them up before may be no more than a busy machine.
    pub async fn settles_on(&self, url: &str, text: &str, count: usize) {
        eventually(&format!("{count} answers `{text}` in a row"), PATIENCE, || async {
            for _ in 0..count {
                if self.get(url).await.text() != text {
                    return None;
                }
            }
            Some(())
        })
        .await;
    }

    /// One request over a fresh HTTP/2 connection.
    pub async fn call_http2(&self, request: Request<Body>) -> Answer {
        until_told(request, |request| async move {
            let mut sender = self.http2().await?;
            whole(sender.send_request(request).await?).await
        })
        .await
    }
}

/// Makes a call that must not fail or hang. Makes it again where the sidecar says that the control plane did not tell in
/// time of the service: a busy machine can take longer over that than a call waits for it, and nothing was sent.
async fn until_told<F>(request: Request<Body>, make: impl Fn(Request<Body>) -> F) -> Answer
where
    F: Future<Output = Result<Answer, BoxError>>,
{
    let (head, mut body) = request.into_parts();
    let what = format!("{} {}", head.method, head.uri);
    // A body of unknown length is made as it is sent, and is there once.
    let kept = match body.size_hint().exact() {
        Some(_) => {
            let kept = (&mut body).collect().await.unwrap_or_else(|error| panic!("{what}: {error:?}"));
            Some(kept.to_bytes())
        }
        None => None,
    };
    let until = Instant::now() + PATIENCE;
    let mut first = Some(body);
    loop {
        let body = match &kept {
            Some(bytes) => full(bytes.clone()),
            None => first.take().unwrap_or_else(empty),
        };
        let calling = make(Request::from_parts(head.clone(), body));
        let answer = match tokio::time::timeout(PATIENCE, calling).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => panic!("{what}: {error:?}"),
            Err(_) => panic!("{what}: no answer within {PATIENCE:?}"),
        };
        let says = format!("{}{}", String::from_utf8_lossy(&answer.body), answer.header("grpc-message"));
        let untold = answer.weft_error() == "no_endpoint" && says.contains("did not tell in time");
        if !untold || kept.is_none() || Instant::now() > until {
            return answer;
        }
    }
}
