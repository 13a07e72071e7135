//! Applications that follow a script and count what becomes of each request, and that call on as real ones do.

use crate::{ANYWHERE, Answer, Backend, Body, BoxError, Client, client::whole, empty, full};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, StreamBody};
use hyper::{
    body::{Body as _, Frame, Incoming, SizeHint},
    client::conn::http2,
};
use std::{
    future::{Future, pending},
    net::SocketAddr,
    ops::Deref,
    pin::Pin,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

/// Requests whose heads are kept for a test to read.
const KEPT: usize = 1_000;

/// What a script gives back: an answer, or an error that breaks the connection off.
pub type Reply = Result<Response<Body>, BoxError>;

/// An application that does what a test says, request by request.
pub struct Scripted {
    backend: Backend,
    seen: Seen,
}

/// What an application has seen so far; outlives it.
#[derive(Clone)]
pub struct Seen(Arc<Book>);

/// A request as the application got it, its body read to the end.
#[derive(Clone, Debug)]
pub struct Asked {
    /// How many came before it.
    pub turn: u64,
    /// Its method.
    pub method: Method,
    /// Its path, without the query.
    pub path: String,
    /// Its path with the query.
    pub target: String,
    /// Its fields.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
}

impl Asked {
    /// A field as text, empty if it is not there.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().expect("text"))
    }
}

/// What became of the requests so far.
#[derive(Default)]
struct Book {
    begun: AtomicU64,
    ended: AtomicU64,
    cancelled: AtomicU64,
    asked: Mutex<Vec<Asked>>,
}

/// One request under way: counts as cancelled unless it ends.
struct UnderWay {
    book: Arc<Book>,
    ended: bool,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let count = if self.ended { &self.book.ended } else { &self.book.cancelled };
        count.fetch_add(1, Relaxed);
    }
}

impl Scripted {
    /// Serves HTTP/1 and HTTP/2 with prior knowledge, as `script` says.
    pub async fn start<F>(script: impl Fn(Asked) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Reply> + Send + 'static,
    {
        Self::start_at(ANYWHERE, script).await
    }

    /// The same at a certain address.
    pub async fn start_at<F>(address: SocketAddr, script: impl Fn(Asked) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Reply> + Send + 'static,
    {
        let book = Arc::new(Book::default());
        let (script, writes) = (Arc::new(script), book.clone());
        let backend = Backend::http_at(address, move |request| {
            let (script, book) = (script.clone(), writes.clone());
            async move { follow(&*script, book, request).await }
        })
        .await;
        Self { backend, seen: Seen(book) }
    }

    /// The application itself, which ends when dropped, and what it sees.
    pub fn apart(self) -> (Backend, Seen) {
        (self.backend, self.seen)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.backend.address()
    }
}

impl Deref for Scripted {
    type Target = Seen;

    fn deref(&self) -> &Seen {
        &self.seen
    }
}

impl Seen {
    /// Requests that came.
    pub fn begun(&self) -> u64 {
        self.0.begun.load(Relaxed)
    }

    /// Requests that were answered to the end, or that it broke off by itself.
    pub fn ended(&self) -> u64 {
        self.0.ended.load(Relaxed)
    }

    /// Requests whose caller went away before.
    pub fn cancelled(&self) -> u64 {
        self.0.cancelled.load(Relaxed)
    }

    /// Requests that it works at now.
    pub fn under_way(&self) -> u64 {
        self.begun() - self.ended() - self.cancelled()
    }

    /// The first thousand requests whose bodies arrived whole.
    pub fn asked(&self) -> Vec<Asked> {
        self.0.asked.lock().expect("not poisoned").clone()
    }

    /// The last of these.
    pub fn last(&self) -> Asked {
        self.0.asked.lock().expect("not poisoned").last().expect("asked at least once").clone()
    }
}

async fn follow<F>(script: &impl Fn(Asked) -> F, book: Arc<Book>, request: Request<Incoming>) -> Reply
where
    F: Future<Output = Reply>,
{
    let turn = book.begun.fetch_add(1, Relaxed);
    let mut under_way = UnderWay { book: book.clone(), ended: false };
    let (head, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    let target = head.uri.path_and_query().map_or("", |target| target.as_str()).to_owned();
    let (method, path, headers) = (head.method, head.uri.path().to_owned(), head.headers);
    let asked = Asked { turn, method, path, target, headers, body };
    {
        let mut all = book.asked.lock().expect("not poisoned");
        if all.len() < KEPT {
            all.push(asked.clone());
        }
    }
    let reply = script(asked).await;
    under_way.ended = reply.is_err();
    Ok(reply?.map(|body| Counted { body, under_way }.boxed_unsync()))
}

/// An answer's body that is part of the request being under way.
struct Counted {
    body: Body,
    under_way: UnderWay,
}

impl hyper::body::Body for Counted {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.body).poll_frame(context);
        this.under_way.ended |= matches!(polled, Poll::Ready(None)) || this.body.is_end_stream();
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        // What has no body is never polled.
        self.under_way.ended |= self.body.is_end_stream();
    }
}

/// An answer with this status and the same as its text.
pub fn status(status: u16) -> Response<Body> {
    let mut response = Response::new(full(status.to_string()));
    *response.status_mut() = StatusCode::from_u16(status).expect("a status");
    response
}

/// An answer with this text.
pub fn text(text: impl Into<Bytes>) -> Response<Body> {
    Response::new(full(text))
}

/// An answer of gRPC without a message: the status alone, in the head.
pub fn trailers_only(status: u8) -> Response<Body> {
    let mut response = Response::new(empty());
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response.headers_mut().insert("grpc-status", HeaderValue::from(u16::from(status)));
    response
}

/// An answer of gRPC with one message, and the status in its trailers.
pub fn grpc(message: &[u8], status: u8) -> Response<Body> {
    let mut framed = vec![0];
    framed.extend(u32::try_from(message.len()).expect("a short message").to_be_bytes());
    framed.extend(message);
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from(u16::from(status)));
    let frames = [Ok(Frame::data(Bytes::from(framed))), Ok(Frame::trailers(trailers))];
    let mut response = Response::new(StreamBody::new(futures_util::stream::iter(frames)).boxed_unsync());
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}

/// An answer of so many single bytes, each this long after the one before; then it ends, or stalls for ever.
pub fn trickle(bytes: usize, pause: Duration, stall: bool) -> Response<Body> {
    let frames = futures_util::stream::unfold(0, move |sent| async move {
        tokio::time::sleep(pause).await;
        if sent < bytes {
            return Some((Ok(Frame::data(Bytes::from_static(b"."))), sent + 1));
        }
        if stall {
            pending::<()>().await;
        }
        None
    });
    Response::new(StreamBody::new(frames).boxed_unsync())
}

/// Never answers.
pub async fn hang() -> Reply {
    pending().await
}

/// Breaks the connection off without an answer; over HTTP/2, the stream.
pub fn reset() -> Reply {
    Err("as the script says".into())
}

/// How an application reaches others: through its own sidecar over kept connections, giving its calls no time of its
/// own and copying nothing but `traceparent`. A call that is dropped is given up as real clients do: its HTTP/1
/// connection closes, its HTTP/2 stream is reset.
#[derive(Clone, Default)]
pub struct Onward(Arc<OnceLock<Way>>);

struct Way {
    client: Client,
    shared: tokio::sync::Mutex<Option<http2::SendRequest<Body>>>,
}

/// What is spoken on the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spoken {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2 with prior knowledge.
    Http2,
    /// gRPC.
    Grpc,
}

impl Onward {
    /// From now on through the sidecar whose proxy port this is. An application is there before its sidecar.
    pub fn through(&self, proxy: SocketAddr) {
        let way = Way { client: Client::new(proxy), shared: tokio::sync::Mutex::default() };
        assert!(self.0.set(way).is_ok(), "an application has one sidecar");
    }

    /// Calls `url` for `asked`.
    pub async fn call(&self, asked: &Asked, url: &str, spoken: Spoken) -> Result<Answer, BoxError> {
        let way = self.0.get().ok_or("no sidecar yet")?;
        let mut request = Request::get(url);
        if let Some(parent) = asked.headers.get("traceparent") {
            request = request.header("traceparent", parent);
        }
        if spoken == Spoken::Grpc {
            request = request
                .method(Method::POST)
                .header("content-type", "application/grpc")
                .header("te", "trailers");
        }
        let request = request.body(empty())?;
        if spoken == Spoken::Http1 {
            return way.client.try_call(request).await;
        }
        let mut sender = {
            let mut shared = way.shared.lock().await;
            match &*shared {
                Some(sender) if !sender.is_closed() => sender.clone(),
                _ => shared.insert(way.client.http2().await?).clone(),
            }
        };
        whole(sender.send_request(request).await?).await
    }

    /// Calls `url` for `asked` and answers as it was answered.
    pub async fn pass_on(&self, asked: &Asked, url: &str, spoken: Spoken) -> Reply {
        let answer = self.call(asked, url, spoken).await?;
        let mut response = status(answer.status.as_u16());
        *response.body_mut() = full(answer.body);
        for name in ["content-type", "grpc-status"] {
            let value = answer.headers.get(name).or_else(|| answer.trailers.get(name));
            if let Some(value) = value {
                response.headers_mut().insert(name, value.clone());
            }
        }
        Ok(response)
    }
}
