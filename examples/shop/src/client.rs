//! Calls to other services by their mesh names, through the proxy in `http_proxy`, as any program could make them.
//!
//! Plain HTTP goes to the proxy in absolute form (`GET http://product:8080/products`); gRPC goes to the same address
//! as HTTP/2 with the service's name as its authority.

use crate::{
    cache_status::{self, CACHE_STATUS, Tally},
    fault::FaultBody,
    request::{Call, RequestContext},
    serving::{SERVED_BY, VERSION},
};
use anyhow::{Context, bail};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    body::Incoming,
    client::conn::http1::{self, SendRequest},
};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};
use tokio::net::TcpStream;
use tonic::transport::{Channel, Endpoint};

/// Every REST service of the shop is called on this port.
const PORT: u16 = 8080;
const CONNECT: Duration = Duration::from_secs(2);
/// For one call, from connecting to the last byte.
const CALL: Duration = Duration::from_secs(4);
const LARGEST_BODY: usize = 1 << 20;
/// Idle connections kept for each address, and how long.
const IDLE: usize = 32;
const IDLE_TIME: Duration = Duration::from_secs(30);

/// Makes calls. Cheap to clone; clones share their connections.
#[derive(Clone)]
pub(crate) struct Client {
    way: Arc<Way>,
    idle: Arc<Mutex<HashMap<Arc<str>, Vec<IdleConnection>>>>,
    caches: Tally,
}

/// How a service is reached.
#[derive(Debug, PartialEq, Eq)]
enum Way {
    /// Everything goes through the proxy at this address.
    Proxy(Arc<str>),
    /// Straight to the service: addresses by `name:port`.
    Direct(HashMap<String, Arc<str>>),
}

struct IdleConnection {
    sender: SendRequest<Full<Bytes>>,
    since: Instant,
}

/// Why a call brought nothing.
#[derive(Clone, Debug)]
pub(crate) enum CallError {
    /// No answer came.
    Unreachable { service: &'static str, why: String },
    /// It took too long.
    TimedOut { service: &'static str },
    /// The service, or the mesh on its behalf, said no.
    Refused { service: &'static str, status: StatusCode, message: String },
    /// The answer was not what was expected.
    Malformed { service: &'static str, why: String },
}

impl CallError {
    /// One word or number for a table.
    pub(crate) fn outcome(&self) -> String {
        match self {
            Self::Unreachable { .. } => "unreachable".to_owned(),
            Self::TimedOut { .. } => "timed out".to_owned(),
            Self::Refused { status, .. } => status.as_u16().to_string(),
            Self::Malformed { .. } => "malformed".to_owned(),
        }
    }
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable { service, why } => write!(f, "{service} cannot be reached: {why}"),
            Self::TimedOut { service } => write!(f, "{service} did not answer within {} s", CALL.as_secs()),
            Self::Refused { service, status, message } => {
                write!(f, "{service} answered {}: {message}", status.as_u16())
            }
            Self::Malformed { service, why } => write!(f, "the answer of {service} cannot be read: {why}"),
        }
    }
}

impl std::error::Error for CallError {}

impl Client {
    /// A client as the environment says.
    pub(crate) fn from_env() -> anyhow::Result<Self> {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.trim().is_empty());
        let way = Way::from(variable("http_proxy").as_deref(), variable("SHOP_DIRECT").as_deref())?;
        Ok(Self { way: Arc::new(way), idle: Arc::default(), caches: Tally::default() })
    }

    /// GET of a JSON document.
    pub(crate) async fn get<T: DeserializeOwned>(
        &self,
        context: &RequestContext,
        service: &'static str,
        path: &str,
    ) -> Result<T, CallError> {
        self.json(context, Method::GET, service, path, None::<&()>).await
    }

    /// The same from the service itself, or at least confirmed by it: for where money changes hands.
    pub(crate) async fn get_now<T: DeserializeOwned>(
        &self,
        context: &RequestContext,
        service: &'static str,
        path: &str,
    ) -> Result<T, CallError> {
        let now = [(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"))];
        self.call(context, Method::GET, service, path, now.into_iter().collect(), Bytes::new()).await
    }

    /// What caches on the way answered so far, by service.
    pub(crate) fn caches(&self) -> &Tally {
        &self.caches
    }

    /// A call with a JSON document, answered by another one (`null` if the answer has no body).
    pub(crate) async fn json<T: DeserializeOwned>(
        &self,
        context: &RequestContext,
        method: Method,
        service: &'static str,
        path: &str,
        document: Option<&impl Serialize>,
    ) -> Result<T, CallError> {
        let mut headers = HeaderMap::new();
        let mut body = Bytes::new();
        if let Some(document) = document {
            let json = serde_json::to_vec(document);
            body = json.map_err(|why| CallError::Malformed { service, why: why.to_string() })?.into();
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
        self.call(context, method, service, path, headers, body).await
    }

    async fn call<T: DeserializeOwned>(
        &self,
        context: &RequestContext,
        method: Method,
        service: &'static str,
        path: &str,
        mut headers: HeaderMap,
        body: Bytes,
    ) -> Result<T, CallError> {
        let malformed = |why: serde_json::Error| CallError::Malformed { service, why: why.to_string() };
        let began = Instant::now();
        let what = format!("{method} {path}");
        context.carry_into(&mut headers);
        let answer = self.send(service, method, path, headers, body).await;
        let mut replica = None;
        let mut version = None;
        let mut cache = None;
        let result = answer.and_then(|answer| {
            let text = |name| answer.headers().get(name).and_then(|v| v.to_str().ok()).map(str::to_owned);
            replica = text(SERVED_BY);
            version = text(VERSION);
            let said = answer.headers().get_all(CACHE_STATUS).into_iter();
            let said: Vec<&str> = said.filter_map(|line| line.to_str().ok()).collect();
            cache = (!said.is_empty()).then(|| said.join(", "));
            let (head, body) = answer.into_parts();
            if !head.status.is_success() {
                return Err(CallError::Refused { service, status: head.status, message: message(&body) });
            }
            let body = if body.is_empty() { &b"null"[..] } else { &body[..] };
            Ok((head.status, serde_json::from_slice(body).map_err(malformed)?))
        });
        if let Some((answered, _)) = cache.as_deref().and_then(cache_status::read) {
            self.caches.note(service, answered);
        }
        context.note(Call {
            service,
            what,
            outcome: match &result {
                Ok((status, _)) => status.as_u16().to_string(),
                Err(error) => error.outcome(),
            },
            good: result.is_ok(),
            replica,
            version,
            took: began.elapsed(),
            cache,
        });
        result.map(|(_, value)| value)
    }

    /// Sends one request and waits for its whole answer, whatever its status.
    pub(crate) async fn send(
        &self,
        service: &'static str,
        method: Method,
        path: &str,
        headers: HeaderMap,
        body: Bytes,
    ) -> Result<Response<Bytes>, CallError> {
        let exchange = self.exchange(service, method, path, headers, body);
        match tokio::time::timeout(CALL, exchange).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(CallError::Unreachable { service, why: format!("{error:#}") }),
            Err(_) => Err(CallError::TimedOut { service }),
        }
    }

    async fn exchange(
        &self,
        service: &str,
        method: Method,
        path: &str,
        headers: HeaderMap,
        body: Bytes,
    ) -> anyhow::Result<Response<Bytes>> {
        let address = self.way.address(service, PORT)?;
        let host = format!("{service}:{PORT}");
        let uri: Uri = match *self.way {
            Way::Proxy(_) => format!("http://{host}{path}").parse()?,
            Way::Direct(_) => path.parse()?,
        };
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = method;
        *request.uri_mut() = uri;
        *request.headers_mut() = headers;
        request.headers_mut().insert(header::HOST, host.parse()?);

        // A kept connection may have been closed a moment ago: what was not sent on it is sent on the next one.
        let mut waiting = request;
        while let Some(mut sender) = self.kept(&address) {
            if sender.ready().await.is_err() {
                continue;
            }
            match sender.try_send_request(waiting).await {
                Ok(answer) => return self.finish(address, sender, answer).await,
                Err(mut error) => match error.take_message() {
                    Some(unsent) => waiting = unsent,
                    None => return Err(error.into_error().into()),
                },
            }
        }
        let mut sender = connect(&address).await?;
        let answer = sender.send_request(waiting).await?;
        self.finish(address, sender, answer).await
    }

    /// Reads the answer, then keeps the connection for the next call.
    async fn finish(
        &self,
        address: Arc<str>,
        sender: SendRequest<Full<Bytes>>,
        answer: Response<Incoming>,
    ) -> anyhow::Result<Response<Bytes>> {
        let (head, body) = answer.into_parts();
        let body = match Limited::new(body, LARGEST_BODY).collect().await {
            Ok(body) => body.to_bytes(),
            Err(error) => bail!("the answer broke off: {error}"),
        };
        if !sender.is_closed() {
            let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
            let kept = idle.entry(address).or_default();
            if kept.len() < IDLE {
                kept.push(IdleConnection { sender, since: Instant::now() });
            }
        }
        Ok(Response::from_parts(head, body))
    }

    /// The connection that was used last, if it can still be used.
    fn kept(&self, address: &str) -> Option<SendRequest<Full<Bytes>>> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = idle.get_mut(address)?;
        kept.retain(|connection| connection.since.elapsed() < IDLE_TIME && !connection.sender.is_closed());
        kept.pop().map(|connection| connection.sender)
    }

    /// A gRPC channel to a service; it connects when it is first used, and again when the connection is lost.
    pub(crate) fn grpc(&self, service: &'static str, port: u16) -> anyhow::Result<Channel> {
        let way = self.way.clone();
        let connector = tower::service_fn(move |_: Uri| {
            let address = way.address(service, port);
            async move {
                let address = address.map_err(std::io::Error::other)?;
                let stream = TcpStream::connect(&*address).await?;
                stream.set_nodelay(true)?;
                Ok::<_, std::io::Error>(TokioIo::new(stream))
            }
        });
        let endpoint = Endpoint::from_shared(format!("http://{service}:{port}"))
            .with_context(|| format!("`{service}:{port}` is no address"))?
            .connect_timeout(CONNECT)
            .timeout(CALL);
        Ok(endpoint.connect_with_connector_lazy(connector))
    }
}

async fn connect(address: &str) -> anyhow::Result<SendRequest<Full<Bytes>>> {
    let stream = tokio::time::timeout(CONNECT, TcpStream::connect(address))
        .await
        .with_context(|| format!("no connection to {address} within {} s", CONNECT.as_secs()))?
        .with_context(|| format!("no connection to {address}"))?;
    stream.set_nodelay(true)?;
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!("a connection ended: {error}");
        }
    });
    Ok(sender)
}

/// What a refusal says: our own services answer JSON, the mesh one line of text.
fn message(body: &[u8]) -> String {
    if let Ok(fault) = serde_json::from_slice::<FaultBody>(body) {
        return fault.error;
    }
    let text = String::from_utf8_lossy(body);
    text.trim().chars().take(300).collect()
}

impl Way {
    fn from(proxy: Option<&str>, direct: Option<&str>) -> anyhow::Result<Self> {
        if let Some(proxy) = proxy {
            let uri: Uri = proxy
                .trim()
                .parse()
                .with_context(|| format!("http_proxy is `{proxy}`; expected http://HOST:PORT"))?;
            let Some(host) = uri.host() else { bail!("http_proxy is `{proxy}`; expected http://HOST:PORT") };
            return Ok(Self::Proxy(format!("{host}:{}", uri.port_u16().unwrap_or(80)).into()));
        }
        let mut addresses = HashMap::new();
        for entry in direct.unwrap_or_default().split(',').map(str::trim).filter(|entry| !entry.is_empty()) {
            let Some((service, address)) = entry.split_once('=') else {
                bail!("SHOP_DIRECT has `{entry}`; expected NAME:PORT=HOST:PORT");
            };
            addresses.insert(service.trim().to_owned(), address.trim().into());
        }
        Ok(Self::Direct(addresses))
    }

    fn address(&self, service: &str, port: u16) -> anyhow::Result<Arc<str>> {
        match self {
            Self::Proxy(address) => Ok(address.clone()),
            Self::Direct(addresses) => addresses.get(&format!("{service}:{port}")).cloned().with_context(|| {
                format!("set http_proxy to a mesh, or SHOP_DIRECT={service}:{port}=HOST:PORT for a run without one")
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::SocketAddr;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    fn through(proxy: SocketAddr) -> Client {
        let way = Way::from(Some(&format!("http://{proxy}/")), None).expect("a proxy");
        Client { way: Arc::new(way), idle: Arc::default(), caches: Tally::default() }
    }

    /// Reads one request's head, which has no body.
    async fn head(stream: &mut TcpStream) -> String {
        let mut text = Vec::new();
        while !text.ends_with(b"\r\n\r\n") {
            text.push(stream.read_u8().await.expect("a byte"));
        }
        String::from_utf8(text).expect("text")
    }

    #[tokio::test]
    async fn the_proxy_is_asked_in_absolute_form_and_its_connection_is_kept() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let client = through(listener.local_addr().expect("address"));
        let proxy = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("accepted");
            let mut heads = Vec::new();
            for _ in 0..2 {
                heads.push(head(&mut stream).await);
                let answer = b"HTTP/1.1 200 OK\r\nx-served-by: product-v1-0\r\ncontent-length: 2\r\n\r\n42";
                stream.write_all(answer).await.expect("written");
            }
            heads
        });
        let mut context = RequestContext::default();
        context.ensure_trace();
        for _ in 0..2 {
            let answer: u32 = client.get(&context, "product", "/products?ids=a").await.expect("an answer");
            assert_eq!(answer, 42);
        }
        for head in proxy.await.expect("both came over one connection") {
            assert!(head.starts_with("GET http://product:8080/products?ids=a HTTP/1.1\r\n"), "{head}");
            assert!(head.contains("host: product:8080\r\n") && head.contains("traceparent: 00-"), "{head}");
        }
        let calls = context.calls();
        assert_eq!(calls.len(), 2);
        assert_eq!(calls[0].replica.as_deref(), Some("product-v1-0"));
    }

    #[tokio::test]
    async fn a_connection_closed_while_idle_costs_no_call() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let client = through(listener.local_addr().expect("address"));
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                head(&mut stream).await;
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n7").await;
            }
        });
        for _ in 0..20 {
            let answer: u32 =
                client.get(&RequestContext::default(), "cart", "/").await.expect("an answer every time");
            assert_eq!(answer, 7);
            // The peer's close is on its way or has arrived.
            tokio::task::yield_now().await;
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    #[tokio::test]
    async fn a_refusal_carries_its_status_and_its_sentence() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let client = through(listener.local_addr().expect("address"));
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("accepted");
            head(&mut stream).await;
            let answer = b"HTTP/1.1 403 Forbidden\r\ncontent-length: 11\r\n\r\nnot for you";
            stream.write_all(answer).await.expect("written");
        });
        let context = RequestContext::default();
        let error = client.get::<u32>(&context, "inventory", "/").await.expect_err("refused");
        assert!(matches!(error, CallError::Refused { status: StatusCode::FORBIDDEN, .. }));
        assert_eq!(error.to_string(), "inventory answered 403: not for you");
        assert_eq!(context.calls()[0].outcome, "403");
    }

    #[test]
    fn the_proxy_comes_before_direct_addresses() {
        let direct = Some("product:8080=127.0.0.1:4001, inventory:9090=127.0.0.1:4002");
        let both = Way::from(Some("http://127.0.0.1:15001"), direct).expect("valid");
        assert_eq!(both, Way::Proxy("127.0.0.1:15001".into()));
        let way = Way::from(None, direct).expect("valid");
        assert_eq!(&*way.address("inventory", 9090).expect("known"), "127.0.0.1:4002");
        let error = way.address("cart", 8080).expect_err("unknown").to_string();
        assert!(error.contains("SHOP_DIRECT=cart:8080="), "{error}");
        assert!(Way::from(None, Some("nonsense")).is_err());
    }
}
