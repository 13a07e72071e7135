//! The server against a scripted client.

use super::*;
use crate::error::Kind;
use http::{HeaderValue, StatusCode};
use std::{cell::Cell, future::pending};
use tokio::time::sleep;

const GET: &str = "GET /one HTTP/1.1\r\nHost: a\r\n\r\n";

/// Sets its cell when it is dropped.
struct OnDrop(Rc<Cell<bool>>);

impl Drop for OnDrop {
    fn drop(&mut self) {
        self.0.set(true);
    }
}

fn dropped() -> (Rc<Cell<bool>>, OnDrop) {
    let cell = Rc::new(Cell::new(false));
    (cell.clone(), OnDrop(cell))
}

async fn path(request: Request<Body>, _: &dyn Back) -> Response<Body> {
    ok(request.uri().path().to_owned())
}

async fn echo(request: Request<Body>, _: &dyn Back) -> Response<Body> {
    match collect(request.into_body()).await {
        Ok((body, _)) => ok(body),
        Err(error) => Answer(path).refuse(error),
    }
}

#[test]
fn a_connection_serves_request_after_request() {
    run(async {
        let mut served = served(path);
        for _ in 0..3 {
            served.peer.send(GET).await;
            let answer = served.peer.read_until("/one").await;
            assert_eq!(answer, "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n/one");
        }
        served.ended().await;
    });
}

#[test]
fn pipelined_requests_are_answered_in_order_even_after_a_half_close() {
    run(async {
        let mut served = served(path);
        let many: String = (0..20).map(|n| format!("GET /{n}. HTTP/1.1\r\nHost: a\r\n\r\n")).collect();
        served.peer.send(many).await;
        served.peer.0.shutdown().await.unwrap();
        let answers = served.peer.read_to_end().await;
        let bodies: Vec<_> =
            answers.split("\r\n\r\n").skip(1).filter_map(|part| part.split('.').next()).collect();
        assert_eq!(bodies, (0..20).map(|n| format!("/{n}")).collect::<Vec<_>>());
        served.ended().await;
    });
}

#[test]
fn every_body_arrives_however_it_is_framed_and_cut() {
    run(async {
        for request in [
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n",
        ] {
            for cut in 0..request.len() {
                let mut served = served(echo);
                served.peer.send(&request[..cut]).await;
                tokio::task::yield_now().await;
                served.peer.send(&request[cut..]).await;
                served.peer.send(GET).await;
                served.peer.read_until("Content-Length: 5\r\n\r\nhello").await;
                served.peer.read_until("Content-Length: 0\r\n\r\n").await;
            }
        }
    });
}

#[test]
fn http_1_0_gets_a_closed_connection_unless_it_asks() {
    run(async {
        let mut first = served(path);
        first.peer.send("GET /one HTTP/1.0\r\n\r\n").await;
        let answer = first.peer.read_to_end().await;
        assert_eq!(answer, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 4\r\n\r\n/one");
        let mut second = served(path);
        for _ in 0..2 {
            second.peer.send("GET /one HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").await;
            assert!(second.peer.read_until("/one").await.contains("Connection: keep-alive"));
        }
    });
}

#[test]
fn a_body_of_unknown_length_is_chunked_and_for_http_1_0_ends_with_the_connection() {
    run(async {
        async fn stream(_: Request<Body>, _: &dyn Back) -> Response<Body> {
            let (sender, body) = channel();
            sender.send(Ok("hello".into())).unwrap();
            sender.send(Ok(" you".into())).unwrap();
            Response::new(body)
        }
        let mut first = served(stream);
        first.peer.send(GET).await;
        let answer = first.peer.read_until("0\r\n\r\n").await;
        assert_eq!(
            answer,
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n4\r\n you\r\n0\r\n\r\n"
        );
        let mut second = served(stream);
        second.peer.send("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").await;
        assert_eq!(second.peer.read_to_end().await, "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhello you");
    });
}

#[test]
fn what_is_ready_leaves_in_one_write_and_what_is_not_does_not_wait_for_it() {
    run(async {
        let (sender, body) = channel();
        let body = RefCell::new(Some(body));
        let mut served = served(async move |_: Request<Body>, _: &dyn Back| {
            Response::new(body.borrow_mut().take().unwrap())
        });
        served.peer.send(GET).await;
        // The head must not wait for a body that is not there yet.
        served.peer.read_until("chunked\r\n\r\n").await;
        sender.send(Ok("a".into())).unwrap();
        served.peer.read_until("1\r\na\r\n").await;
        drop(sender);
        assert_eq!(served.peer.read_until("0\r\n\r\n").await, "0\r\n\r\n");
    });
}

#[test]
fn an_answer_out_of_the_cache_leaves_as_it_lies_there() {
    run(async {
        for lower in [false, true] {
            let mut served = served(async move |request: Request<Body>, _: &dyn Back| {
                let mut response =
                    crate::cache::hit(if request.uri() == "/empty" { "" } else { "abc" }, lower);
                if request.uri() == "/304" {
                    *response.status_mut() = StatusCode::NOT_MODIFIED;
                }
                response
            });
            let head = |line: &str, length: &str| {
                let fields = "Content-Type: application/json\r\nETag: \"a\"\r\nAge: 7\r\n\
                    Cache-Status: weft; hit; ttl=53\r\nX-Own: 1\r\n";
                let fields = format!("{fields}Content-Length: {length}\r\n\r\n");
                let fields = if lower { fields.to_lowercase() } else { fields };
                format!("HTTP/1.1 {line}\r\n{fields}")
            };
            for (method, path, line, length, body) in [
                ("GET", "/", "200 OK", "3", "abc"),
                ("GET", "/", "200 OK", "3", "abc"),
                ("HEAD", "/", "200 OK", "3", ""),
                ("GET", "/empty", "200 OK", "0", ""),
                ("GET", "/304", "304 Not Modified", "3", ""),
            ] {
                served.peer.send(format!("{method} {path} HTTP/1.1\r\nHost: a\r\n\r\n")).await;
                let expected = head(line, length) + body;
                let mut answer = vec![0; expected.len()];
                served.peer.0.read_exact(&mut answer).await.unwrap();
                assert_eq!(String::from_utf8(answer).unwrap(), expected, "{method} {path}");
            }
            assert!(served.peer.is_quiet().await);
            served.ended().await;
        }
    });
}

#[test]
fn answers_without_a_body_are_framed_so() {
    run(async {
        async fn status(request: Request<Body>, _: &dyn Back) -> Response<Body> {
            let mut response = ok("body");
            let code = request.uri().path().trim_start_matches('/').parse().unwrap();
            *response.status_mut() = StatusCode::from_u16(code).unwrap();
            response
        }
        let mut served = served(status);
        for (method, code, head) in [
            ("HEAD", 200, "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n"),
            ("GET", 204, "HTTP/1.1 204 No Content\r\n\r\n"),
            ("GET", 205, "HTTP/1.1 205 Reset Content\r\nContent-Length: 0\r\n\r\n"),
            ("GET", 304, "HTTP/1.1 304 Not Modified\r\nContent-Length: 4\r\n\r\n"),
            ("GET", 299, "HTTP/1.1 299 \r\nContent-Length: 4\r\n\r\nbody"),
        ] {
            served.peer.send(format!("{method} /{code} HTTP/1.1\r\nHost: a\r\n\r\n")).await;
            assert_eq!(served.peer.read_until(head).await, head);
        }
        assert!(served.peer.is_quiet().await);
    });
}

#[test]
fn head_tells_the_length_that_the_upstream_told() {
    run(async {
        let mut served = served(async |_: Request<Body>, _: &dyn Back| {
            let mut response = ok("");
            response.headers_mut().insert("content-length", HeaderValue::from_static("1234"));
            response
        });
        served.peer.send("HEAD / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert!(served.peer.read_until("\r\n\r\n").await.contains("Content-Length: 1234\r\n"));
    });
}

#[test]
fn a_client_that_waits_is_told_to_continue_when_its_body_is_wanted() {
    run(async {
        let mut served = served(echo);
        let head = "POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n";
        served.peer.send(head).await;
        assert_eq!(served.peer.read_until("\r\n\r\n").await, "HTTP/1.1 100 Continue\r\n\r\n");
        served.peer.send("hi").await;
        assert!(served.peer.read_until("hi").await.starts_with("HTTP/1.1 200 OK"));
        // A body that is there already needs no word.
        served.peer.send(format!("{head}ho")).await;
        assert!(served.peer.read_until("ho").await.starts_with("HTTP/1.1 200 OK"));
    });
}

#[test]
fn a_body_that_was_never_asked_for_ends_the_connection() {
    run(async {
        let mut served = served(path);
        let head = "POST /no HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n";
        served.peer.send(head).await;
        let answer = served.peer.read_to_end().await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\nConnection: close\r\n"), "{answer}");
    });
}

#[test]
fn interim_responses_go_to_those_who_can_take_them() {
    run(async {
        async fn hints(_: Request<Body>, back: &dyn Back) -> Response<Body> {
            let mut hints = Response::new(());
            *hints.status_mut() = StatusCode::EARLY_HINTS;
            hints.headers_mut().insert("link", HeaderValue::from_static("</a>"));
            back.interim(hints);
            sleep(Duration::from_millis(10)).await;
            ok("x")
        }
        let mut served = served(hints);
        served.peer.send(GET).await;
        let early = served.peer.read_until("\r\n\r\n").await;
        assert_eq!(early, "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n");
        assert!(served.peer.read_until("x").await.starts_with("HTTP/1.1 200"));
        served.peer.send("GET / HTTP/1.0\r\n\r\n").await;
        assert!(served.peer.read_to_end().await.starts_with("HTTP/1.1 200"));
    });
}

#[test]
fn an_unread_body_is_dropped_if_small_and_ends_the_connection_if_not() {
    run(async {
        let mut small = served(path);
        small.peer.send("POST /one HTTP/1.1\r\nHost: a\r\nContent-Length: 60000\r\n\r\n").await;
        small.peer.read_until("/one").await;
        small.peer.send(vec![b'x'; 60_000]).await;
        small.peer.send(GET).await;
        small.peer.read_until("/one").await;
        let mut large = served(path);
        large.peer.send("POST /one HTTP/1.1\r\nHost: a\r\nContent-Length: 70000\r\n\r\nxx").await;
        assert!(large.peer.read_to_end().await.contains("Connection: close"));
    });
}

#[test]
fn bad_messages_get_an_answer_and_then_the_end() {
    run(async {
        for (message, status) in [
            ("GET / HTTP/1.1\r\n\r\n", "400"),
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", "400"),
            ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", "501"),
        ] {
            let mut served = served(path);
            served.peer.send(format!("{message}{GET}")).await;
            let answer = served.peer.read_to_end().await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
            assert!(answer.contains("Connection: close\r\n"), "{answer}");
            assert_eq!(answer.matches("Connection: close").count(), 1, "nothing after it is served");
            served.ended().await;
        }
        let mut served = served(path);
        served.peer.send(format!("GET / HTTP/1.1\r\nHost: a\r\nx: {}", "y".repeat(70_000))).await;
        assert!(served.peer.read_to_end().await.starts_with("HTTP/1.1 431 "));
    });
}

#[test]
fn a_malformed_chunk_fails_the_body_and_ends_the_connection() {
    run(async {
        let mut served = served(echo);
        served.peer.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n").await;
        let answer = served.peer.read_to_end().await;
        assert!(answer.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{answer}");
        assert!(answer.contains("Connection: close"), "{answer}");
    });
}

#[test]
fn a_head_that_dawdles_gets_408_and_an_idle_connection_silence() {
    run(async {
        let settings = Settings {
            header_timeout: Duration::from_secs(2),
            idle_timeout: Duration::from_secs(30),
            ..Settings::default()
        };
        let mut slow = served_with(settings, 1024, path);
        slow.peer.send("GET /one HT").await;
        sleep(Duration::from_millis(1900)).await;
        slow.peer.send("TP/1.1\r\nHost: a\r\n\r\n").await;
        slow.peer.read_until("/one").await;
        slow.peer.send("GET /one HT").await;
        let begin = tokio::time::Instant::now();
        for _ in 0..3 {
            sleep(Duration::from_millis(500)).await;
            slow.peer.send("T").await;
        }
        let answer = slow.peer.read_until("\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
        assert_eq!(begin.elapsed().as_secs(), 2, "bytes that trickle win no time");

        let mut idle = served_with(settings, 1024, path);
        for _ in 0..2 {
            sleep(Duration::from_secs(20)).await;
            idle.peer.send(GET).await;
            idle.peer.read_until("/one").await;
        }
        let begin = tokio::time::Instant::now();
        assert_eq!(idle.peer.read_to_end().await, "");
        assert_eq!(begin.elapsed().as_secs(), 30);
    });
}

#[test]
fn a_client_that_goes_away_cancels_its_request() {
    run(async {
        let (cancelled, guard) = dropped();
        let guard = RefCell::new(Some(guard));
        let mut served = served(async move |_: Request<Body>, _: &dyn Back| {
            let _guard = guard.borrow_mut().take();
            pending().await
        });
        served.peer.send(GET).await;
        sleep(Duration::from_millis(100)).await;
        assert!(!cancelled.get());
        served.ended().await;
        assert!(cancelled.get());
    });
}

#[test]
fn a_client_that_goes_away_in_its_body_cancels_at_once() {
    run(async {
        let (cancelled, guard) = dropped();
        let guard = RefCell::new(Some(guard));
        let mut served = served(async move |_: Request<Body>, _: &dyn Back| {
            let _guard = guard.borrow_mut().take();
            pending().await
        });
        served.peer.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n").await;
        let begin = tokio::time::Instant::now();
        served.ended().await;
        assert!(cancelled.get());
        assert!(begin.elapsed() < Duration::from_millis(100));
    });
}

#[test]
fn a_client_that_goes_away_in_a_quiet_response_cancels_it() {
    run(async {
        let (sender, body) = channel();
        let body = RefCell::new(Some(body));
        let mut served = served(async move |_: Request<Body>, _: &dyn Back| {
            Response::new(body.borrow_mut().take().unwrap())
        });
        served.peer.send(GET).await;
        served.peer.read_until("\r\n\r\n").await;
        served.ended().await;
        assert!(sender.is_closed());
    });
}

#[test]
fn a_half_closed_client_gets_a_quick_answer_if_it_said_that_it_would_close() {
    run(async {
        let slow = |delay| {
            async move |_: Request<Body>, _: &dyn Back| {
                sleep(delay).await;
                ok("late")
            }
        };
        // Said so: a quick answer. Did not: none.
        for (request, delay, answered) in [
            ("GET / HTTP/1.0\r\n\r\n", 900, true),
            ("GET / HTTP/1.0\r\n\r\n", 1_100, false),
            ("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", 900, true),
            ("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", 1_100, false),
            (GET, 1, false),
        ] {
            let mut served = served(slow(Duration::from_millis(delay)));
            served.peer.send(request).await;
            served.peer.0.shutdown().await.unwrap();
            assert_eq!(served.peer.read_to_end().await.ends_with("late"), answered, "{request:?}");
        }
    });
}

#[test]
fn draining_closes_idle_connections_and_finishes_the_others() {
    run(async {
        let mut idle = served(path);
        idle.peer.send(GET).await;
        idle.peer.read_until("/one").await;
        idle.drain.start();
        assert_eq!(idle.peer.read_to_end().await, "");

        let mut busy = served(async |_: Request<Body>, _: &dyn Back| {
            sleep(Duration::from_secs(1)).await;
            ok("done")
        });
        busy.peer.send(GET).await;
        sleep(Duration::from_millis(10)).await;
        busy.drain.start();
        let answer = busy.peer.read_to_end().await;
        assert_eq!(answer, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 4\r\n\r\ndone");
    });
}

#[test]
fn a_body_that_breaks_off_never_looks_whole() {
    run(async {
        let mut served = served(async |_: Request<Body>, _: &dyn Back| {
            let (sender, body) = channel();
            sender.send(Ok("half".into())).unwrap();
            sender.send(Err(Error::new(Kind::Reset, "gone"))).unwrap();
            Response::new(body)
        });
        served.peer.send(GET).await;
        assert!(served.peer.read_to_end().await.ends_with("4\r\nhalf\r\n"));
    });
}

#[test]
fn trailers_follow_a_chunked_body() {
    run(async {
        let mut served = served(async |request: Request<Body>, _: &dyn Back| {
            let (body, trailers) = collect(request.into_body()).await.unwrap();
            let frames =
                [http_body::Frame::data(body), http_body::Frame::trailers(trailers.unwrap_or_default())];
            let stream = futures_util::stream::iter(frames.map(Ok::<_, Error>));
            Response::new(Body::Boxed(Box::pin(http_body_util::StreamBody::new(stream))))
        });
        let request =
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nX-Sum: 7\r\n\r\n";
        served.peer.send(request).await;
        assert!(
            served.peer.read_until("X-Sum: 7\r\n\r\n").await.ends_with("1\r\na\r\n0\r\nX-Sum: 7\r\n\r\n")
        );
    });
}

#[test]
fn a_body_read_by_another_task_arrives_and_the_disconnect_is_still_seen() {
    run(async {
        let (cancelled, guard) = dropped();
        let guard = RefCell::new(Some(guard));
        let length = Rc::new(Cell::new(0));
        let seen = length.clone();
        let mut served = served(async move |request: Request<Body>, _: &dyn Back| {
            let _guard = guard.borrow_mut().take();
            let seen = seen.clone();
            spawn_local(async move {
                let (body, _) = collect(request.into_body()).await.unwrap();
                seen.set(body.len());
            });
            pending().await
        });
        served.peer.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 90000\r\n\r\n").await;
        for _ in 0..90 {
            served.peer.send([b'x'; 1000]).await;
            tokio::task::yield_now().await;
        }
        sleep(Duration::from_millis(10)).await;
        assert_eq!(length.get(), 90_000);
        served.ended().await;
        assert!(cancelled.get());
    });
}

#[test]
fn a_response_marked_for_reset_closes_the_connection_without_a_word() {
    run(async {
        let mut served = served(async |_: Request<Body>, _: &dyn Back| {
            let mut response = ok("never seen");
            response.extensions_mut().insert(crate::exchange::Reset);
            response
        });
        served.peer.send(GET).await;
        assert_eq!(served.peer.read_to_end().await, "");
        served.ended().await;
    });
}
