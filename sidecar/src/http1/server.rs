//! Serves one downstream connection: reads requests one after another, has each answered, writes the answers.
//!
//! A client that closes its sending side may be gone, or only have nothing more to ask; TCP does not tell. From most
//! clients it means that nobody waits any more, and everything downstream of the request is cancelled at once, as nginx
//! and Envoy have it. One that said so before (`Connection: close`, HTTP/1.0) may have closed one side only, and still
//! gets an answer until nothing of it moved for a second. A reset ends either at once.

use super::{
    Settings,
    conn::{Conn, DISCARD, Downstream},
    framing::Encoder,
    head::{self, Progress, RequestHead},
    pump::Pump,
    wire::COPY,
    write,
};
use crate::{
    body::Body,
    drain::Drain,
    error::{Error, Kind},
    exchange::{Handler, Reset},
    io::Io,
    spare, tcp,
};
use http::{Method, Response, StatusCode, Version};
use http_body::Body as _;
use std::{
    cell::RefCell,
    future::{Future, poll_fn},
    mem,
    pin::{Pin, pin},
    rc::Rc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::time::{Instant, Sleep, sleep, timeout};

/// How long a closing connection stays for the client to read its answer, and how much is read meanwhile. Closing with
/// unread input would reset the connection, and the answer could be lost with it.
const LINGER: Duration = Duration::from_secs(2);
const LINGER_BYTES: usize = 4 * 1024 * 1024;

/// How long an unread body may take to come before the connection is closed instead.
const DISCARD_TIME: Duration = Duration::from_secs(1);

type Shared = Rc<RefCell<Conn>>;

/// What came on an idle connection.
enum Next {
    /// A request.
    Request(Box<RequestHead>),
    /// Something that is none, or not in time.
    Refuse(Error),
    /// The end.
    Close,
}

/// What becomes of the connection after an answer.
enum After {
    /// The next request.
    Keep,
    /// It is closed in order.
    Close,
    /// It is closed in order once the client has had time to read.
    Linger,
    /// It belongs to whom the client now talks to.
    Tunnel(Box<Io>),
    /// Dropped as it is: nobody is there, or the answer is incomplete and must not look whole.
    Gone,
}

/// What an answer depends on.
struct Asked {
    method: Method,
    version: Version,
    keep_alive: bool,
}

/// Serves `io` until either side closes it or `drain` does.
pub(crate) async fn serve<H: Handler>(io: Io, handler: Rc<H>, settings: Settings, drain: Rc<Drain>) {
    let conn = Rc::new(RefCell::new(Conn::new(io)));
    let mut drained = pin!(drain.started());
    let mut timer = pin!(sleep(settings.idle_timeout));
    // True while `timer` is set for something shorter than the idle timeout.
    let mut timer_is_short = false;
    let after = loop {
        let mut waiting = Waiting::default();
        let next = poll_fn(|cx| {
            let mut conn = conn.borrow_mut();
            match waiting.poll_input(&mut conn, &settings, cx) {
                Poll::Pending => {}
                ready => return ready,
            }
            if !waiting.partial {
                if drained.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(Next::Close);
                }
                conn.wire.release();
            }
            waiting.poll_timer(timer.as_mut(), &mut timer_is_short, &settings, cx)
        })
        .await;
        let after = match next {
            Next::Request(head) => Box::pin(answer(&conn, &*handler, head, &drain)).await,
            Next::Refuse(error) => Box::pin(refuse(&conn, &*handler, error, &drain)).await,
            Next::Close => After::Close,
        };
        match after {
            After::Keep => {}
            after => break after,
        }
    };
    Box::pin(part(conn, after, settings)).await;
}

/// Ends the connection, or hands it over. Apart from [`serve`] so that idle connections don't carry its state.
async fn part(conn: Shared, after: After, settings: Settings) {
    // Somebody who still holds a request's body keeps the connection from being closed in order, and nothing else.
    let Some(conn) = Rc::into_inner(conn) else { return };
    let conn = conn.into_inner();
    match after {
        After::Keep | After::Gone => {}
        After::Close => close(conn, false).await,
        After::Linger => close(conn, true).await,
        After::Tunnel(upstream) => {
            tcp::relay(conn.wire.into_io(), *upstream, settings.idle_timeout).await;
        }
    }
}

/// The wait for one request head.
#[derive(Default)]
struct Waiting {
    progress: Progress,
    /// When this wait had nothing to do for the first time.
    since: Option<Instant>,
    /// True once a part of the head is there.
    partial: bool,
    /// True once `timer` is set for the head.
    timed: bool,
}

impl Waiting {
    fn poll_input(&mut self, conn: &mut Conn, settings: &Settings, cx: &mut Context<'_>) -> Poll<Next> {
        loop {
            if !conn.wire.input.is_empty() {
                match head::parse_request_head(&mut conn.wire.input, settings, &mut self.progress) {
                    Ok(Some(head)) => return Poll::Ready(Next::Request(Box::new(head))),
                    Ok(None) => self.partial = !conn.wire.input.is_empty(),
                    Err(error) => return Poll::Ready(Next::Refuse(error)),
                }
            }
            match conn.wire.poll_fill(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(n)) if n > 0 => {}
                Poll::Ready(_) => return Poll::Ready(Next::Close),
            }
        }
    }

    fn poll_timer(
        &mut self,
        mut timer: Pin<&mut Sleep>,
        timer_is_short: &mut bool,
        settings: &Settings,
        cx: &mut Context<'_>,
    ) -> Poll<Next> {
        if self.partial {
            if !self.timed {
                timer.as_mut().reset(Instant::now() + settings.header_timeout);
                *timer_is_short = true;
                self.timed = true;
            }
            return timer.poll(cx).map(|()| {
                Next::Refuse(Error::new(
                    Kind::HeaderTimeout,
                    "the head of the request did not arrive within limits.headerTimeout",
                ))
            });
        }
        let due = *self.since.get_or_insert_with(Instant::now) + settings.idle_timeout;
        if mem::take(timer_is_short) {
            timer.as_mut().reset(due);
        }
        // Set anew only when it fires, not for every request.
        while timer.as_mut().poll(cx).is_ready() {
            if Instant::now() >= due {
                return Poll::Ready(Next::Close);
            }
            timer.as_mut().reset(due);
        }
        Poll::Pending
    }
}

/// Has one request answered.
async fn answer<H: Handler>(conn: &Shared, handler: &H, head: Box<RequestHead>, drain: &Drain) -> After {
    let asked = Asked {
        method: head.request.method().clone(),
        version: head.request.version(),
        keep_alive: head.keep_alive,
    };
    let request = Conn::begin(conn, *head);
    let response = {
        let back = Downstream { conn, version: asked.version };
        let mut handling = pin!(handler.handle(request, &back));
        poll_fn(|cx| {
            conn.borrow_mut().driven_by(cx.waker());
            if let Poll::Ready(response) = handling.as_mut().poll(cx) {
                return Poll::Ready(Some(response));
            }
            let mut conn = conn.borrow_mut();
            if conn.wire.has_output() && matches!(conn.wire.poll_send(cx), Poll::Ready(Err(_))) {
                return Poll::Ready(None);
            }
            conn.poll_gone(cx).map(|()| None)
        })
        .await
    };
    match response {
        Some(response) if Reset::is_meant_by(&response) => After::Gone,
        Some(response) => respond(conn, response, asked, drain).await,
        None => After::Gone,
    }
}

/// Answers what never became a request; nothing after it on the connection can be understood.
async fn refuse<H: Handler>(conn: &Shared, handler: &H, error: Error, drain: &Drain) -> After {
    let response = handler.refuse(error);
    let asked = Asked { method: Method::GET, version: Version::HTTP_11, keep_alive: false };
    match respond(conn, response, asked, drain).await {
        After::Gone => After::Gone,
        _ => After::Linger,
    }
}

/// Writes one answer, and settles what of the request is still unread.
async fn respond(conn: &Shared, response: Response<Body>, asked: Asked, drain: &Drain) -> After {
    let (mut head, mut body) = response.into_parts();
    let mut encoder =
        Encoder::response(&asked.method, asked.version, head.status, &head.headers, &body.size_hint());
    let upstream = match mem::replace(&mut body, Body::Empty) {
        Body::Tunnel(upstream) => Some(upstream),
        whole => {
            body = whole;
            None
        }
    };
    let switches = head.status == StatusCode::SWITCHING_PROTOCOLS
        || (asked.method == Method::CONNECT && head.status.is_success());
    let stored = match &body {
        Body::Stored(stored) => Some(stored),
        _ => None,
    };
    if upstream.is_some() && !switches {
        // Whatever it is, it is not a body: the head goes alone.
        encoder = Encoder::None;
    }
    let keep_alive;
    {
        let mut shared = conn.borrow_mut();
        let held_back = shared.end_expectation();
        let read_on = Rc::strong_count(conn) > 1;
        keep_alive = asked.keep_alive
            && !switches
            && upstream.is_none()
            && !drain.is_draining()
            && !shared.is_last()
            && encoder != Encoder::Close
            && !held_back
            && (read_on || !shared.has_much_left());
        let persistence = if switches && upstream.is_some() {
            write::Persistence::Implied
        } else {
            write::persistence(asked.version, keep_alive)
        };
        let out = shared.wire.out.buffer();
        write::response_head(out, &head, stored, encoder, persistence);
        // What is at hand and small goes along right away.
        if let (Encoder::Length(length), Some(data)) = (encoder, at_hand(&body))
            && length == data.len() as u64
        {
            out.extend_from_slice(data);
            encoder = Encoder::None;
        }
    }
    spare::give_back(mem::take(&mut head.headers));
    if encoder.is_bodiless() || head.status == StatusCode::RESET_CONTENT {
        body = Body::Empty;
    }
    let sent = send(conn, &mut body, Pump::new(encoder)).await;
    drop(body);
    if !sent {
        return After::Gone;
    }
    if let Some(upstream) = upstream.filter(|_| switches) {
        return After::Tunnel(upstream);
    }
    settle(conn, keep_alive).await
}

/// All of a body, if it is at hand and small enough to be copied.
pub(super) fn at_hand(body: &Body) -> Option<&[u8]> {
    let data = match body {
        Body::Stored(stored) => stored.data(),
        Body::Full(data) => data,
        _ => return None,
    };
    (data.len() <= COPY).then_some(data)
}

/// Sends what is in the output, then `body`; false if the client went away or the body broke off.
async fn send(conn: &Shared, body: &mut Body, mut pump: Pump) -> bool {
    let mut broken = false;
    poll_fn(|cx| {
        loop {
            // The output is taken out for the time: to get on, the body may have to read the request's from `conn`.
            let mut out = mem::take(&mut conn.borrow_mut().wire.out);
            let gathered = match broken {
                false => pump.poll_gather(body, &mut out, cx),
                true => Poll::Pending,
            };
            let mut conn = conn.borrow_mut();
            conn.driven_by(cx.waker());
            conn.wire.out = out;
            if let Poll::Ready(Err(error)) = &gathered {
                tracing::debug!(%error, "a response broke off");
                broken = true;
            }
            let moves = conn.wire.has_output();
            match conn.wire.poll_send(cx) {
                Poll::Ready(Ok(())) if broken => return Poll::Ready(false),
                Poll::Ready(Ok(())) if pump.is_finished() => return Poll::Ready(true),
                Poll::Ready(Ok(())) => {
                    if moves {
                        conn.moved();
                    }
                    if gathered.is_ready() {
                        continue;
                    }
                }
                Poll::Ready(Err(_)) => return Poll::Ready(false),
                Poll::Pending => {}
            }
            return conn.poll_gone(cx).map(|()| false);
        }
    })
    .await
}

/// Finds out what the connection can be used for after an answer.
async fn settle(conn: &Shared, keep_alive: bool) -> After {
    let done = {
        let conn = conn.borrow();
        if keep_alive && conn.body_is_done() && !conn.is_last() {
            return After::Keep;
        }
        conn.body_is_done()
    };
    // Somebody may still hold the body: then it is not ours to drop.
    if keep_alive && !done && Rc::strong_count(conn) == 1 && Box::pin(discard(conn)).await {
        return After::Keep;
    }
    let clean = done && conn.borrow().wire.input.is_empty();
    if clean { After::Close } else { After::Linger }
}

/// Reads the rest of a body that nobody wanted; false if it is too much or too slow.
async fn discard(conn: &Shared) -> bool {
    let rest = async {
        let mut dropped = 0;
        while dropped <= DISCARD {
            match poll_fn(|cx| conn.borrow_mut().poll_rest(cx)).await {
                Some(Ok(frame)) => dropped += frame.data_ref().map_or(0, |data| data.len() as u64),
                Some(Err(_)) => return false,
                None => return true,
            }
        }
        false
    };
    timeout(DISCARD_TIME, rest).await.unwrap_or(false)
}

/// Closes a connection in order, with `linger` only after the client had time to read its answer.
async fn close(mut conn: Conn, linger: bool) {
    let closing = async {
        if poll_fn(|cx| conn.wire.poll_shutdown(cx)).await.is_err() || !linger {
            return;
        }
        let mut left = LINGER_BYTES;
        while left > 0 {
            match poll_fn(|cx| conn.wire.poll_discard(cx)).await {
                Ok(n) if n > 0 => left = left.saturating_sub(n),
                _ => return,
            }
        }
    };
    // Whether it worked or took too long: it ends here.
    let _ = timeout(LINGER, closing).await;
}
