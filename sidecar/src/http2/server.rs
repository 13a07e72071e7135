//! The accepting side: every stream becomes a request of its own, answered in a task of its own.

use super::{
    cork::{Cork, Drained},
    incoming::Incoming,
    live::{Live, Open},
    outgoing::{Outgoing, Sent},
    pulse::{Pulse, Verdict},
    settings::Settings,
    translate, tunnel,
};
use crate::{
    body::Body,
    cache,
    drain::Drain,
    error::{Error, Kind},
    exchange::{Back, Handler, Reset},
    io::Io,
    message,
};
use bytes::Bytes;
use h2::{Reason, RecvStream, server::SendResponse};
use http::{Method, Request, Response, StatusCode, Version, header::CONTENT_LENGTH};
use http_body::Body as _;
use std::{
    cell::RefCell,
    future::poll_fn,
    pin::pin,
    rc::Rc,
    task::{Context, Poll},
};

/// Serves one connection until it ends: the peer closes it, it is idle for too long, or it has drained. Must run within
/// a `LocalSet`. Dropping the future cancels every stream.
pub(crate) async fn serve<H: Handler + 'static>(
    io: Io,
    handler: Rc<H>,
    settings: Rc<Settings>,
    drain: Rc<Drain>,
) -> Result<(), Error> {
    let cork = Cork::new(io);
    let mut builder = h2::server::Builder::new();
    builder
        .max_concurrent_streams(settings.max_streams)
        .initial_window_size(settings.stream_window)
        .initial_connection_window_size(settings.connection_window)
        .max_frame_size(super::MAX_FRAME)
        .max_send_buffer_size(settings.send_buffer)
        .max_header_list_size(settings.hard_header_bytes());
    let handshake = cork.handshake(builder.handshake::<_, Bytes>(cork.clone()));
    let mut connection = match tokio::time::timeout(settings.handshake_timeout, handshake).await {
        Ok(result) => result.map_err(|error| super::fault::caller(&error))?,
        Err(_) => {
            return Err(Error::new(Kind::HeaderTimeout, "the caller did not begin to speak HTTP/2 in time"));
        }
    };
    let pulse = Pulse::new(connection.ping_pong(), &settings);
    Serving { connection, cork, handler, settings, live: Rc::new(Live::default()), pulse }.run(&drain).await
}

struct Serving<H> {
    connection: h2::server::Connection<Cork, Bytes>,
    cork: Cork,
    handler: Rc<H>,
    settings: Rc<Settings>,
    live: Rc<Live>,
    pulse: Pulse,
}

impl<H: Handler + 'static> Serving<H> {
    async fn run(mut self, drain: &Drain) -> Result<(), Error> {
        let mut drained = pin!(drain.started());
        let mut watching = false;
        let mut closing = false;
        poll_fn(|cx| {
            // Polled once to leave the waker there; after that the flag tells.
            let drained = drain.is_draining() || !watching && drained.as_mut().poll(cx).is_ready();
            watching = true;
            if drained && !closing {
                closing = true;
                self.connection.graceful_shutdown();
            }
            self.poll(cx, &mut closing)
        })
        .await
    }

    fn poll(&mut self, cx: &mut Context<'_>, closing: &mut bool) -> Poll<Result<(), Error>> {
        loop {
            match self.connection.poll_accept(cx) {
                Poll::Ready(Some(Ok((request, respond)))) => {
                    self.begin(request, respond);
                    continue;
                }
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(super::fault::caller(&error))),
                Poll::Ready(None) => return Poll::Ready(Ok(())),
                Poll::Pending => {}
            }
            match self.cork.poll_drain(cx) {
                Poll::Ready(Ok(Drained::Again)) => continue,
                Poll::Ready(Ok(Drained::All)) | Poll::Pending => {}
                Poll::Ready(Err(error)) => {
                    return Poll::Ready(Err(Error::new(
                        Kind::Gone,
                        format!("the caller went away ({error})"),
                    )));
                }
            }
            let (reads, begun, open) = (self.cork.reads(), self.live.begun(), self.live.open());
            match self.pulse.poll(cx, &self.settings, reads, begun, open) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Verdict::Dead) => {
                    return Poll::Ready(Err(Error::new(Kind::Gone, "the caller stopped answering pings")));
                }
                // Told before and still here: it does not answer.
                Poll::Ready(Verdict::Idle) if *closing => return Poll::Ready(Ok(())),
                Poll::Ready(Verdict::Idle) => {
                    *closing = true;
                    self.connection.graceful_shutdown();
                }
            }
        }
    }

    fn begin(&self, request: Request<RecvStream>, respond: SendResponse<Bytes>) {
        let stream = Stream {
            handler: self.handler.clone(),
            settings: self.settings.clone(),
            caller: Caller(RefCell::new(respond)),
            _open: self.live.begin(),
        };
        tokio::task::spawn_local(stream.run(request));
    }
}

/// The way back to whoever opened the stream.
struct Caller(RefCell<SendResponse<Bytes>>);

impl Back for Caller {
    fn interim(&self, mut head: Response<()>) {
        // HTTP/2 has no upgrades.
        if head.status() == StatusCode::SWITCHING_PROTOCOLS {
            return;
        }
        translate::strip_connection_fields(head.headers_mut());
        // Fails only if the stream is gone, which the task notices by itself.
        let _ = self.0.borrow_mut().send_informational(head);
    }
}

struct Stream<H> {
    handler: Rc<H>,
    settings: Rc<Settings>,
    caller: Caller,
    _open: Open,
}

impl<H: Handler> Stream<H> {
    async fn run(self, request: Request<RecvStream>) {
        let method = request.method().clone();
        let (request, tunnel, host) = self.hand_up(request);
        let wrong = if self.is_too_large(&request) {
            Some(Error::new(
                Kind::HeadersTooLarge,
                format!(
                    "the request's header fields exceed {} fields or {} bytes; see limits in MeshPolicy",
                    self.settings.max_headers, self.settings.max_header_bytes
                ),
            ))
        } else {
            host.err()
        };
        let response = match wrong {
            Some(error) => Some(self.handler.refuse(error)),
            None => self.answer(request).await,
        };
        // No response: the caller reset the stream, and with the handler's future all that it had begun is gone.
        if let Some(response) = response {
            if Reset::is_meant_by(&response) {
                self.caller.0.into_inner().send_reset(Reason::INTERNAL_ERROR);
                return;
            }
            self.respond(&method, response, tunnel).await;
        }
    }

    /// The request as the handler is to see it, and whether its host is one. Of a `CONNECT`, the stream stays here: its
    /// bytes are no body.
    fn hand_up(
        &self,
        request: Request<RecvStream>,
    ) -> (Request<Body>, Option<RecvStream>, Result<(), Error>) {
        let (mut parts, stream) = request.into_parts();
        translate::join_cookies(&mut parts.headers);
        translate::trim_values(&mut parts.headers);
        let (body, tunnel) = if parts.method == Method::CONNECT {
            (Body::Empty, Some(stream))
        } else if stream.is_end_stream() {
            (Body::Empty, None)
        } else {
            (Body::Http2(Incoming::request(stream, &parts.headers)), None)
        };
        let mut host = Ok(());
        if self.settings.http1_messages {
            translate::case_in(&mut parts.headers, &mut parts.extensions);
            // Who takes HTTP/1 messages goes by it that this was looked at when they were read.
            host = message::settle_host(&mut parts);
        }
        let mut request = Request::from_parts(parts, body);
        if self.settings.http1_messages {
            translate::request_to_http1(&mut request);
        }
        (request, tunnel, host)
    }

    fn is_too_large(&self, request: &Request<Body>) -> bool {
        request.headers().len() > self.settings.max_headers
            || translate::decoded_size(request.headers()) > self.settings.max_header_bytes
    }

    async fn answer(&self, request: Request<Body>) -> Option<Response<Body>> {
        let mut handling = pin!(self.handler.handle(request, &self.caller));
        poll_fn(|cx| {
            if let Poll::Ready(response) = handling.as_mut().poll(cx) {
                return Poll::Ready(Some(response));
            }
            self.caller.0.borrow_mut().poll_reset(cx).map(|_| None)
        })
        .await
    }

    async fn respond(self, method: &Method, response: Response<Body>, tunnel: Option<RecvStream>) {
        let mut response = if response.status().is_informational() {
            // A switch of protocols, or a mistake; neither can end an exchange here.
            self.handler.refuse(Error::after_send(
                Kind::BadResponse,
                format!("the response was {}, which HTTP/2 cannot pass on", response.status()),
            ))
        } else {
            response
        };
        cache::unfold(&mut response);
        let (mut parts, body) = response.into_parts();
        if parts.version != Version::HTTP_2 {
            translate::strip_connection_fields(&mut parts.headers);
        }
        if self.settings.http1_messages {
            translate::case_out(&mut parts.headers, &parts.extensions);
        }
        let mut caller = self.caller.0.into_inner();
        let body = match (tunnel, body) {
            (Some(from), Body::Tunnel(io)) if parts.status.is_success() => {
                parts.headers.remove(CONTENT_LENGTH);
                if let Ok(to) = caller.send_response(Response::from_parts(parts, ()), false) {
                    tunnel::relay(from, to, *io, self.settings.idle_timeout).await;
                }
                return;
            }
            (_, body) => body,
        };
        let end = translate::is_bodiless(method, parts.status) || body.is_end_stream();
        let stream = match caller.send_response(Response::from_parts(parts, ()), end) {
            Ok(stream) => stream,
            Err(error) => {
                // The caller is gone, or the head cannot be said in HTTP/2: then at least say so.
                tracing::debug!(%error, "a response could not be sent over HTTP/2");
                caller.send_reset(Reason::INTERNAL_ERROR);
                return;
            }
        };
        if !end {
            let mut outgoing = Outgoing::new(stream, body);
            if let Sent::Broken(error) = poll_fn(|cx| outgoing.poll(cx)).await {
                tracing::debug!(%error, "a response broke off");
            }
        }
    }
}
