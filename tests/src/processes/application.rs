//! An application that answers over HTTP/1 and HTTP/2 in ways that are hard on a proxy.

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::{
    body::{Frame, Incoming},
    service::service_fn,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use serde_json::json;
use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
        mpsc,
    },
    thread,
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    sync::oneshot,
};

type Body = BoxBody<Bytes, Infallible>;

/// A running application; ends with this value.
pub struct Application {
    /// Its port on loopback.
    pub port: u16,
    slow: Arc<AtomicUsize>,
    _stop: oneshot::Sender<()>,
}

impl Application {
    /// Starts one on a thread of its own.
    pub fn start() -> Self {
        let (stop, stopped) = oneshot::channel();
        let (tell, told) = mpsc::channel();
        let slow = Arc::<AtomicUsize>::default();
        let counter = slow.clone();
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap_or_else(|error| panic!("the application has no runtime: {error}"));
            runtime.block_on(async move {
                let listener = TcpListener::bind("127.0.0.1:0")
                    .await
                    .unwrap_or_else(|error| panic!("the application has no port: {error}"));
                let _ = tell.send(listener.local_addr().map_or(0, |address| address.port()));
                tokio::select! {
                    () = serve(listener, counter) => {}
                    _ = stopped => {}
                }
            });
        });
        let port = told.recv_timeout(super::PATIENCE);
        Self { port: port.unwrap_or_else(|_| panic!("the application does not start")), slow, _stop: stop }
    }

    /// Requests for `/slow` that have come so far.
    pub fn slow(&self) -> usize {
        self.slow.load(Relaxed)
    }
}

async fn serve(listener: TcpListener, slow: Arc<AtomicUsize>) {
    while let Ok((stream, _)) = listener.accept().await {
        let _ = stream.set_nodelay(true);
        let slow = slow.clone();
        tokio::spawn(async move {
            let server = auto::Builder::new(TokioExecutor::new());
            let service = service_fn(|request: Request<Incoming>| {
                slow.fetch_add(usize::from(request.uri().path().starts_with("/slow/")), Relaxed);
                async { Ok::<_, Infallible>(answer(request).await) }
            });
            // How a connection ends is what the tests look at from the other side.
            let _ = server.serve_connection_with_upgrades(TokioIo::new(stream), service).await;
        });
    }
}

/// `/download/N`: N zero bytes. `/upload`: counts the body. `/no-body`: refuses it unread. `/upgrade`: switches to a
/// protocol that greets and echoes in capitals. `/slow/MS`: answers later. `/status/N`: that status. Everything else is
/// told what it asked.
async fn answer(mut request: Request<Incoming>) -> Response<Body> {
    let path = request.uri().path().to_owned();
    let mut parts = path.split('/').skip(1);
    let (first, number) = (parts.next().unwrap_or(""), parts.next().and_then(|n| n.parse::<u64>().ok()));
    match (first, number) {
        ("download", Some(bytes)) => download(bytes),
        ("upload", _) => {
            let chunked = request.headers().contains_key(header::TRANSFER_ENCODING);
            let mut length = 0_u64;
            let body = request.body_mut();
            while let Some(frame) = body.frame().await {
                match frame {
                    Ok(frame) => length += frame.data_ref().map_or(0, |data| data.len() as u64),
                    Err(error) => {
                        return text(StatusCode::BAD_REQUEST, &format!("after {length}: {error}\n"));
                    }
                }
            }
            text(StatusCode::OK, &format!("{length} chunked={chunked}\n"))
        }
        ("no-body", _) => text(StatusCode::EXPECTATION_FAILED, "not wanted\n"),
        ("upgrade", _) => upgrade(request),
        ("slow", Some(milliseconds)) => {
            tokio::time::sleep(Duration::from_millis(milliseconds)).await;
            text(StatusCode::OK, "at last\n")
        }
        ("status", Some(status)) => {
            let status = u16::try_from(status).ok().and_then(|s| StatusCode::from_u16(s).ok());
            text(status.unwrap_or(StatusCode::BAD_REQUEST), "the application's own answer\n")
        }
        _ => echo(request).await,
    }
}

fn download(bytes: u64) -> Response<Body> {
    static ZEROS: [u8; 65_536] = [0; 65_536];
    let pieces = stream::unfold(bytes, |left| async move {
        let piece = left.min(ZEROS.len() as u64);
        (piece > 0).then(|| (Bytes::from_static(&ZEROS[..piece as usize]), left - piece))
    });
    let body = BodyExt::boxed(StreamBody::new(pieces.map(|piece| Ok(Frame::data(piece)))));
    let mut response = Response::new(body);
    response.headers_mut().insert(header::CONTENT_LENGTH, bytes.into());
    response
}

fn upgrade(request: Request<Incoming>) -> Response<Body> {
    tokio::spawn(async move {
        let Ok(upgraded) = hyper::upgrade::on(request).await else { return };
        let mut io = TokioIo::new(upgraded);
        let _ = io.write_all(b"hello\n").await;
        let mut buffer = [0; 4096];
        while let Ok(n @ 1..) = io.read(&mut buffer).await {
            buffer[..n].make_ascii_uppercase();
            if io.write_all(&buffer[..n]).await.is_err() {
                return;
            }
        }
        let _ = io.write_all(b"bye\n").await;
        let _ = io.shutdown().await;
    });
    let mut response = text(StatusCode::SWITCHING_PROTOCOLS, "");
    let headers = response.headers_mut();
    headers.remove(header::CONTENT_TYPE);
    headers.insert(header::CONNECTION, header::HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, header::HeaderValue::from_static("capitals"));
    response
}

async fn echo(request: Request<Incoming>) -> Response<Body> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let headers: Vec<(&str, String)> = head
        .headers
        .iter()
        .map(|(name, value)| (name.as_str(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
        .collect();
    let told = json!({
        "method": head.method.as_str(),
        "target": head.uri.to_string(),
        "path": head.uri.path_and_query().map(|path| path.as_str()),
        "version": format!("{:?}", head.version),
        "headers": headers,
        "body": String::from_utf8_lossy(&body),
    });
    let mut response = Response::new(BodyExt::boxed(Full::new(Bytes::from(told.to_string()))));
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    response
}

fn text(status: StatusCode, text: &str) -> Response<Body> {
    let mut response = Response::new(BodyExt::boxed(Full::new(Bytes::copy_from_slice(text.as_bytes()))));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("text/plain"));
    response
}
