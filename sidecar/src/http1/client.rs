//! One HTTP/1 connection to an upstream: a request goes out, its answer comes back, and the connection with it.

use super::{
    Settings,
    chunked::Decoded,
    framing::{self, Decoder, Encoder},
    head::{self, Progress, ResponseHead},
    hop_by_hop::strip_hop_by_hop,
    incoming::Incoming,
    pump::Pump,
    wire::Wire,
    write,
};
use crate::{
    body::Body,
    error::{Error, Kind},
    exchange::{Back, Failed},
    io::Io,
};
use bytes::Bytes;
use http::{Method, Response, StatusCode, header, request};
use http_body::{Body as _, Frame, SizeHint};
use std::{
    future::poll_fn,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
    time::Duration,
};
use tokio::time::{Instant, Sleep, sleep};

/// How long a body is held back for the `100 Continue` that its client asked for. Servers that know the expectation
/// answer at once; the others take the body after this.
const CONTINUE_PATIENCE: Duration = Duration::from_secs(1);

/// Interim responses to one request. More is not an answer but an attack.
const INTERIM_MAX: u32 = 64;

/// Where connections go that can take another request.
pub(crate) trait Recycle {
    /// Takes the connection back.
    fn put_back(&self, client: Box<Client>);
}

/// A connection to an upstream. It carries one exchange at a time.
pub(crate) struct Client {
    wire: Wire,
    settings: Settings,
    /// The response's body while it is read.
    body: Decoder,
    /// True if both sides want to use the connection again.
    keep_alive: bool,
    /// What is left to send of a request whose response came early.
    upload: Option<Box<Upload>>,
    recycle: Option<Rc<dyn Recycle>>,
    born: Instant,
    exchanges: u64,
}

/// The sending of a request's body.
struct Upload {
    body: Body,
    pump: Pump,
    /// Set while the body waits for `100 Continue`.
    patience: Option<Pin<Box<Sleep>>>,
    /// Set when the upstream takes no more.
    broken: bool,
}

/// Why there is no response.
enum Loss {
    /// The connection ended or broke.
    Lost(Option<std::io::Error>),
    /// What came is not a response.
    Bad(Error),
    /// The request's own body failed.
    Request(Error),
}

/// What a response depends on.
struct Asked {
    progress: Progress,
    interims: u32,
    /// True once any byte of a response came.
    heard: bool,
}

impl Client {
    /// A connection that has carried nothing yet.
    pub(crate) fn new(io: Io, settings: Settings) -> Self {
        Self {
            wire: Wire::new(io),
            settings,
            body: Decoder::Done,
            keep_alive: true,
            upload: None,
            recycle: None,
            born: Instant::now(),
            exchanges: 0,
        }
    }

    /// How long ago it was made.
    pub(crate) fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.born)
    }

    /// How many exchanges it has carried.
    pub(crate) fn exchanges(&self) -> u64 {
        self.exchanges
    }

    /// False if the upstream has closed the connection or sent something nobody asked for, as far as is known without
    /// waiting or a system call. What is not known yet is what `Failed` and its request are for.
    pub(crate) fn is_reusable(&mut self) -> bool {
        self.wire.input.is_empty()
            && !self.wire.has_output()
            && self.wire.poll_fill(&mut Context::from_waker(Waker::noop())).is_pending()
    }

    /// Sends a request and returns when the head of its final response is there. Its body is sent meanwhile, and on
    /// while the response's body is read; the connection goes to `recycle` when both are over.
    /// Dropping the future, or the response's body before its end, closes the connection.
    pub(crate) async fn exchange(
        mut self: Box<Self>,
        parts: &request::Parts,
        body: Body,
        back: &dyn Back,
        recycle: Rc<dyn Recycle>,
    ) -> Result<Response<Body>, Failed> {
        let encoder = Encoder::request(&parts.method, &parts.headers, &body.size_hint());
        // A body in memory stays whole whatever happens to the copy that is sent.
        let whole = if let Body::Full(bytes) = &body { Some(bytes.clone()) } else { None };
        let expects = !encoder.is_empty()
            && parts
                .headers
                .get(header::EXPECT)
                .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"));
        let mut upload = Upload {
            body,
            pump: Pump::new(encoder),
            patience: expects.then(|| Box::pin(sleep(CONTINUE_PATIENCE))),
            broken: false,
        };
        let mut asked = Asked { progress: Progress::default(), interims: 0, heard: false };
        self.exchanges += 1;
        self.wire.forget_writes();
        write::request_head(self.wire.out.buffer(), parts, encoder);
        let loss = match poll_fn(|cx| self.poll_head(&mut upload, &mut asked, back, cx)).await {
            Ok(head) => match self.deliver(parts, head, upload, recycle) {
                Ok(response) => return Ok(response),
                Err(error) => return Err(Failed { error, body: None }),
            },
            Err(loss) => loss,
        };
        let intact = !asked.heard && (whole.is_some() || !upload.pump.has_taken());
        let body = intact.then(|| Box::new(whole.map_or(upload.body, Body::Full)));
        let mut error = match loss {
            Loss::Lost(None) if asked.heard => {
                Error::new(Kind::Reset, "the upstream closed the connection in the middle of a response head")
            }
            Loss::Lost(None) => {
                Error::new(Kind::Reset, "the upstream closed the connection without an answer")
            }
            Loss::Lost(Some(error)) => Error::new(
                Kind::Reset,
                format!("the connection to the upstream broke before an answer: {error}"),
            ),
            Loss::Bad(error) => bad_response(&error),
            Loss::Request(error) => error,
        };
        error.sent = self.wire.wrote();
        Err(Failed { error, body })
    }

    /// Sends what can be sent and reads until a final response's head is there.
    fn poll_head(
        &mut self,
        upload: &mut Upload,
        asked: &mut Asked,
        back: &dyn Back,
        cx: &mut Context<'_>,
    ) -> Poll<Result<ResponseHead, Loss>> {
        loop {
            upload.poll(&mut self.wire, cx).map_err(Loss::Request)?;
            let continued = loop {
                let head =
                    head::parse_response_head(&mut self.wire.input, &self.settings, &mut asked.progress);
                match head.map_err(Loss::Bad)? {
                    Some(head) if is_interim(head.response.status()) => {
                        asked.interims += 1;
                        if asked.interims > INTERIM_MAX {
                            return Poll::Ready(Err(Loss::Bad(Error::new(
                                Kind::BadResponse,
                                "more than 64 interim responses to one request",
                            ))));
                        }
                        let mut interim = head.response;
                        let go_on =
                            interim.status() == StatusCode::CONTINUE && upload.patience.take().is_some();
                        strip_hop_by_hop(interim.headers_mut(), false);
                        back.interim(interim);
                        if go_on {
                            break true;
                        }
                        continue;
                    }
                    Some(head) => return Poll::Ready(Ok(head)),
                    None => {}
                }
                match self.wire.poll_fill(cx) {
                    Poll::Pending => break false,
                    Poll::Ready(Ok(0)) => return Poll::Ready(Err(Loss::Lost(None))),
                    Poll::Ready(Ok(_)) => asked.heard = true,
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(Loss::Lost(Some(error)))),
                }
            };
            if !continued {
                return Poll::Pending;
            }
        }
    }

    /// Makes the response of its head: finds out how its body ends, and gives the connection back if that is now.
    fn deliver(
        mut self: Box<Self>,
        asked: &request::Parts,
        head: ResponseHead,
        upload: Upload,
        recycle: Rc<dyn Recycle>,
    ) -> Result<Response<Body>, Error> {
        let (parts, ()) = head.response.into_parts();
        let status = parts.status;
        if status == StatusCode::SWITCHING_PROTOCOLS {
            if !asked.headers.contains_key(header::UPGRADE) {
                let detail = "the upstream switches protocols (101) though nobody asked it to";
                return Err(Error::after_send(Kind::BadResponse, detail));
            }
            return Ok(Response::from_parts(parts, self.into_tunnel()));
        }
        if asked.method == Method::CONNECT && status.is_success() {
            return Ok(Response::from_parts(parts, self.into_tunnel()));
        }
        self.body =
            framing::response_body(&asked.method, status, &parts.headers, parts.version, &self.settings)
                .map_err(|error| bad_response(&error))?;
        let sent = upload.pump.is_finished() && !self.wire.has_output();
        // A body that was held back and is now not wanted leaves the request unfinished: the connection ends here.
        let refused = upload.broken || upload.patience.is_some();
        // Some applications send a body with 204, which has none: its bytes would be taken for the next response.
        let stray = status == StatusCode::NO_CONTENT
            && parts.headers.get(header::CONTENT_LENGTH).is_some_and(|length| length.as_bytes() != b"0");
        self.keep_alive = head.keep_alive && !refused && !stray && !self.body.ends_by_close();
        if !sent && !refused {
            self.upload = Some(Box::new(upload));
        }
        self.recycle = Some(recycle);
        let body = match self.body {
            Decoder::Done => {
                self.finish();
                Body::Empty
            }
            // All of it came with the head: no need to hold the connection.
            Decoder::Length(length) if sent && self.wire.input.len() as u64 >= length => {
                let body = self.wire.input.split_to(length as usize).freeze();
                self.body = Decoder::Done;
                self.finish();
                Body::Full(body)
            }
            _ => Body::Http1(Incoming::upstream(self)),
        };
        Ok(Response::from_parts(parts, body))
    }

    fn into_tunnel(self) -> Body {
        Body::Tunnel(Box::new(self.wire.into_io()))
    }

    /// The response is over: the connection goes back if it is fit for another exchange, and is closed otherwise.
    fn finish(mut self: Box<Self>) {
        let recycle = self.recycle.take();
        if self.keep_alive && self.upload.is_none() && self.wire.input.is_empty() {
            self.wire.release();
            if let Some(recycle) = recycle {
                recycle.put_back(self);
            }
        }
    }

    /// The next piece of the response's body; gives the connection back at the end.
    pub(super) fn poll_body(
        this: &mut Option<Box<Self>>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let Some(client) = this else { return Poll::Ready(None) };
        let frame = match client.poll_piece(cx) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Ok(frame)) => frame,
            Poll::Ready(Err(error)) => {
                *this = None;
                return Poll::Ready(Some(Err(error)));
            }
        };
        if client.body.is_done()
            && let Some(client) = this.take()
        {
            client.finish();
        }
        Poll::Ready(frame.map(Ok))
    }

    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Frame<Bytes>>, Error>> {
        if let Some(mut upload) = self.upload.take() {
            upload.poll(&mut self.wire, cx)?;
            if upload.broken {
                self.keep_alive = false;
            } else if !upload.pump.is_finished() || self.wire.has_output() {
                self.upload = Some(upload);
            }
        }
        loop {
            match self.body.decode(&mut self.wire.input).map_err(|error| bad_response(&error))? {
                Decoded::Data(data) => return Poll::Ready(Ok(Some(Frame::data(data)))),
                Decoded::Trailers(trailers) => return Poll::Ready(Ok(Some(Frame::trailers(trailers)))),
                Decoded::End => return Poll::Ready(Ok(None)),
                Decoded::More => {}
            }
            let detail = match self.wire.poll_fill(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(0)) if self.body.ends_by_close() => {
                    self.body = Decoder::Done;
                    return Poll::Ready(Ok(None));
                }
                Poll::Ready(Ok(0)) => "the upstream closed the connection in the middle of a body".into(),
                Poll::Ready(Ok(_)) => continue,
                Poll::Ready(Err(error)) => {
                    format!("the connection to the upstream broke in the middle of a body: {error}")
                }
            };
            return Poll::Ready(Err(Error::after_send(Kind::Reset, detail)));
        }
    }

    pub(super) fn body_size(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Upload {
    /// Sends as much as goes. Fails only when the request's body does: an upstream that takes no more may still have
    /// answered.
    fn poll(&mut self, wire: &mut Wire, cx: &mut Context<'_>) -> Result<(), Error> {
        if self.broken {
            return Ok(());
        }
        if let Some(patience) = &mut self.patience
            && patience.as_mut().poll(cx).is_ready()
        {
            self.patience = None;
        }
        loop {
            let gathered = match self.patience {
                Some(_) => Poll::Pending,
                None => match self.pump.poll_gather(&mut self.body, &mut wire.out, cx) {
                    Poll::Ready(Err(error)) => return Err(error),
                    gathered => gathered,
                },
            };
            if wire.has_output() {
                match wire.poll_send(cx) {
                    Poll::Ready(Ok(())) if gathered.is_ready() && !self.pump.is_finished() => continue,
                    Poll::Ready(Err(_)) => self.broken = true,
                    _ => {}
                }
            }
            return Ok(());
        }
    }
}

fn is_interim(status: StatusCode) -> bool {
    status.is_informational() && status != StatusCode::SWITCHING_PROTOCOLS
}

fn bad_response(error: &Error) -> Error {
    Error::after_send(Kind::BadResponse, format!("the upstream's response cannot be used: {}", error.detail))
}

#[cfg(test)]
impl Client {
    /// [`Self::exchange`] of a whole request.
    pub(super) async fn send(
        self: Box<Self>,
        request: http::Request<Body>,
        back: &dyn Back,
        recycle: Rc<dyn Recycle>,
    ) -> Result<Response<Body>, Failed> {
        let (parts, body) = request.into_parts();
        self.exchange(&parts, body, back, recycle).await
    }
}
