//! The connecting side: one connection that many exchanges share.

use super::{
    cork::{Cork, Drained},
    fault,
    incoming::Incoming,
    live::{Freed, Live, Open},
    outgoing::{Outgoing, Sent},
    pulse::{Pulse, Verdict},
    settings::Settings,
    translate,
};
use crate::{
    body::Body,
    error::{Error, Kind},
    exchange::{Back, Failed},
    io::Io,
};
use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use http::{Method, Response, request};
use http_body::Body as _;
use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker, ready},
};
use tokio::task::AbortHandle;

/// A connection to an upstream. Dropping it lets the exchanges under way finish and then closes it.
pub(crate) struct Client {
    send: RefCell<SendRequest<Bytes>>,
    live: Rc<Live>,
    closed: Rc<Cell<bool>>,
    settings: Rc<Settings>,
}

impl Client {
    /// Begins to speak HTTP/2 on a fresh connection. Must run within a `LocalSet`, which drives it from then on.
    pub(crate) async fn connect(io: Io, settings: Rc<Settings>) -> Result<Rc<Self>, Error> {
        let cork = Cork::new(io);
        let mut builder = h2::client::Builder::new();
        builder
            .enable_push(false)
            .initial_window_size(settings.stream_window)
            .initial_connection_window_size(settings.connection_window)
            .max_frame_size(super::MAX_FRAME)
            .max_send_buffer_size(settings.send_buffer)
            .max_header_list_size(settings.hard_header_bytes());
        let handshake = cork.handshake(builder.handshake::<_, Bytes>(cork.clone()));
        let (send, mut connection) = match tokio::time::timeout(settings.handshake_timeout, handshake).await {
            Ok(result) => {
                result.map_err(|error| Error::new(Kind::Connect, format!("no HTTP/2 there: {error}")))?
            }
            Err(_) => return Err(Error::new(Kind::ConnectTimeout, "the upstream took no HTTP/2 in time")),
        };
        let client = Rc::new(Self {
            send: RefCell::new(send),
            live: Rc::new(Live::default()),
            closed: Rc::new(Cell::new(false)),
            settings,
        });
        let pulse = Pulse::new(connection.ping_pong(), &client.settings);
        let driver = Driver {
            connection,
            cork,
            pulse,
            live: client.live.clone(),
            closed: client.closed.clone(),
            settings: client.settings.clone(),
        };
        tokio::task::spawn_local(driver.run());
        Ok(client)
    }

    /// True if another exchange may begin here: the connection is open and its peer has not said goodbye.
    pub(crate) fn is_usable(&self) -> bool {
        !self.closed.get() && !matches!(self.poll_ready(), Poll::Ready(Err(_)))
    }

    /// How many exchanges are under way; each counts until its response's body is dropped.
    pub(crate) fn in_flight(&self) -> usize {
        self.live.open()
    }

    /// How many exchanges there ever were.
    pub(crate) fn begun(&self) -> u64 {
        self.live.begun()
    }

    /// Tells `freed` whenever an exchange ends.
    pub(crate) fn tell(&self, freed: Rc<Freed>) {
        self.live.tell(freed);
    }

    /// How many may be under way at once, by the peer's settings and by ours.
    pub(crate) fn max_streams(&self) -> usize {
        self.send.borrow().current_max_send_streams().min(self.settings.max_streams as usize)
    }

    fn poll_ready(&self) -> Poll<Result<(), h2::Error>> {
        let mut send = self.send.borrow_mut();
        let ready = send.poll_ready(&mut Context::from_waker(Waker::noop()));
        if ready.is_pending() {
            // h2 would have us wait for an earlier request to leave its queue. The queue is bounded by `max_streams`
            // already, and a fresh handle does not know of that request.
            let fresh = send.clone();
            *send = fresh;
        }
        ready
    }

    /// Sends a request and returns the head of its response; the body follows as it is read. Dropping the future or
    /// the body resets the stream.
    pub(crate) async fn exchange(
        &self,
        parts: &request::Parts,
        body: Body,
        back: &dyn Back,
    ) -> Result<Response<Body>, Failed> {
        if let Err(error) = self.check(&parts.method) {
            return Err(Failed { error, body: Some(Box::new(body)) });
        }
        let mut head = translate::request_out(parts);
        if self.settings.http1_messages {
            translate::case_out(head.headers_mut(), &parts.extensions);
        }
        let end = body.is_end_stream();
        let open = self.live.begin();
        let sent = self.send.borrow_mut().send_request(head, end);
        let (reply, stream) = match sent {
            Ok(sent) => sent,
            Err(error) => {
                let error = Error { sent: false, ..fault::upstream(&error) };
                return Err(Failed { error, body: Some(Box::new(body)) });
            }
        };
        // What could be sent again as it is.
        let again = match &body {
            _ if end => Some(Body::Empty),
            Body::Full(bytes) => Some(Body::Full(bytes.clone())),
            _ => None,
        };
        let upload = if end { None } else { Some(Outgoing::new(stream, body)) };
        let mut exchange = Exchange { reply, upload };
        match poll_fn(|cx| exchange.poll(cx, back)).await {
            Ok(response) => Ok(self.hand_back(response, open, exchange.upload)),
            Err(error) => Err(Failed { error, body: again.map(Box::new) }),
        }
    }

    fn check(&self, method: &Method) -> Result<(), Error> {
        if *method == Method::CONNECT {
            return Err(Error::new(
                Kind::NotImplemented,
                "CONNECT is not sent over HTTP/2, only over HTTP/1.1",
            ));
        }
        if self.in_flight() >= self.max_streams() {
            return Err(Error::new(
                Kind::Overloaded,
                format!("the upstream's connection carries {} streams already", self.in_flight()),
            ));
        }
        match self.poll_ready() {
            Poll::Ready(Err(error)) => Err(Error { sent: false, ..fault::upstream(&error) }),
            _ => Ok(()),
        }
    }

    fn hand_back(
        &self,
        response: Response<h2::RecvStream>,
        open: Open,
        upload: Option<Outgoing>,
    ) -> Response<Body> {
        let (mut parts, stream) = response.into_parts();
        if self.settings.http1_messages {
            parts.version = http::Version::HTTP_11;
            translate::case_in(&mut parts.headers, &mut parts.extensions);
        }
        let body = if stream.is_end_stream() {
            Body::Empty
        } else {
            let upload = upload.map(Upload::spawn);
            Body::Http2(Incoming::response(stream, &parts.headers, open, upload))
        };
        Response::from_parts(parts, body)
    }
}

/// A request under way whose response's head has not come.
struct Exchange {
    reply: ResponseFuture,
    upload: Option<Outgoing>,
}

impl Exchange {
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        back: &dyn Back,
    ) -> Poll<Result<Response<h2::RecvStream>, Error>> {
        if let Some(upload) = &mut self.upload
            && let Poll::Ready(sent) = upload.poll(cx)
        {
            // What the peer does not want it will say why, in the response or in a reset.
            self.upload = None;
            if let Sent::Broken(error) = sent {
                return Poll::Ready(Err(Error { sent: true, ..error }));
            }
        }
        while let Poll::Ready(Some(Ok(head))) = self.reply.poll_informational(cx) {
            back.interim(head);
        }
        let response = ready!(Pin::new(&mut self.reply).poll(cx));
        Poll::Ready(response.map_err(|error| fault::upstream(&error)))
    }
}

/// The rest of a request's body, which goes on while the response is read; dropping it stops it.
pub(super) struct Upload(AbortHandle);

impl Upload {
    fn spawn(mut outgoing: Outgoing) -> Self {
        let task = tokio::task::spawn_local(async move {
            if let Sent::Broken(error) = poll_fn(|cx| outgoing.poll(cx)).await {
                tracing::debug!(%error, "a request's body broke off");
            }
        });
        Self(task.abort_handle())
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        self.0.abort();
    }
}

struct Driver {
    connection: h2::client::Connection<Cork, Bytes>,
    cork: Cork,
    pulse: Pulse,
    live: Rc<Live>,
    closed: Rc<Cell<bool>>,
    settings: Rc<Settings>,
}

impl Driver {
    async fn run(mut self) {
        let over = poll_fn(|cx| self.poll(cx)).await;
        self.closed.set(true);
        if let Err(error) = over {
            tracing::debug!(error = %error, "an HTTP/2 connection to an upstream ended");
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), h2::Error>> {
        loop {
            if let Poll::Ready(result) = Pin::new(&mut self.connection).poll(cx) {
                return Poll::Ready(result);
            }
            match self.cork.poll_drain(cx) {
                Poll::Ready(Ok(Drained::Again)) => continue,
                Poll::Ready(Ok(Drained::All)) | Poll::Pending => {}
                // With the connection its streams end; what broke it matters to nobody any more.
                Poll::Ready(Err(_)) => return Poll::Ready(Ok(())),
            }
            let (reads, begun, open) = (self.cork.reads(), self.live.begun(), self.live.open());
            match self.pulse.poll(cx, &self.settings, reads, begun, open) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Verdict::Dead) => return Poll::Ready(Err(h2::Reason::SETTINGS_TIMEOUT.into())),
                // How long an idle connection is kept is for the pool to say.
                Poll::Ready(Verdict::Idle) => {}
            }
        }
    }
}

#[cfg(test)]
impl Client {
    /// [`Self::exchange`] of a whole request.
    pub(super) async fn send(
        &self,
        request: http::Request<Body>,
        back: &dyn Back,
    ) -> Result<Response<Body>, Failed> {
        let (parts, body) = request.into_parts();
        self.exchange(&parts, body, back).await
    }
}
