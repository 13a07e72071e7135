//! Applications whose behaviour a test decides: HTTP of either version by a closure, or bare connections.

use crate::{ANYWHERE, Body, BoxError, full};
use http::{Request, Response};
use http_body_util::BodyExt;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use std::{future::Future, net::SocketAddr, sync::Arc};
use tokio::{
    net::{TcpListener, TcpStream},
    task::{JoinHandle, JoinSet},
};

/// An application. Dropped, it closes its listener and every connection.
pub struct Backend {
    address: SocketAddr,
    accepting: JoinHandle<()>,
}

impl Backend {
    /// Serves HTTP/1 and HTTP/2 with prior knowledge. An error of the handler breaks the connection off.
    pub async fn http<F>(handle: impl Fn(Request<Incoming>) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<Response<Body>, BoxError>> + Send + 'static,
    {
        Self::http_at(ANYWHERE, handle).await
    }

    /// The same at a certain address.
    pub async fn http_at<F>(
        address: SocketAddr,
        handle: impl Fn(Request<Incoming>) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Result<Response<Body>, BoxError>> + Send + 'static,
    {
        let handle = Arc::new(handle);
        Self::tcp_at(address, move |stream| {
            let handle = handle.clone();
            async move {
                let service = service_fn(move |request| handle(request));
                let server = auto::Builder::new(TokioExecutor::new());
                // How a connection ends is for the test's client to judge.
                let _ = server.serve_connection_with_upgrades(TokioIo::new(stream), service).await;
            }
        })
        .await
    }

    /// Answers every request with the same text.
    pub async fn text(text: &'static str) -> Self {
        Self::http(move |_| async move { Ok(Response::new(full(text))) }).await
    }

    /// Answers with what it was asked, as JSON: `who`, `method`, `target`, `version`, `headers` and `body`.
    pub async fn echo(who: &'static str) -> Self {
        Self::http(move |request| async move {
            let (head, body) = request.into_parts();
            let headers: serde_json::Map<String, serde_json::Value> = head
                .headers
                .iter()
                .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into()))
                .collect();
            let body = body.collect().await?.to_bytes();
            let target = head.uri.path_and_query().map_or("", |target| target.as_str());
            let told = serde_json::json!({
                "who": who, "method": head.method.as_str(), "target": target, "headers": headers,
                "version": format!("{:?}", head.version), "body": String::from_utf8_lossy(&body),
            });
            Ok(Response::new(full(told.to_string())))
        })
        .await
    }

    /// Gives every connection to `serve`.
    pub async fn tcp<F>(serve: impl Fn(TcpStream) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        Self::tcp_at(ANYWHERE, serve).await
    }

    /// The same at a certain address.
    pub async fn tcp_at<F>(
        address: SocketAddr,
        serve: impl Fn(TcpStream) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind(address).await.expect("binds");
        let address = listener.local_addr().expect("bound");
        let accepting = tokio::spawn(async move {
            // Dropped with this task, and all connections with it.
            let mut connections = JoinSet::new();
            loop {
                tokio::select! {
                    accepted = listener.accept() => match accepted {
                        Ok((stream, _)) => {
                            let _ = stream.set_nodelay(true);
                            connections.spawn(serve(stream));
                        }
                        Err(_) => return,
                    },
                    Some(_) = connections.join_next() => {}
                }
            }
        });
        Self { address, accepting }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}
