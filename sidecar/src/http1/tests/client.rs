//! The client against a scripted upstream.

use super::*;
use crate::{error::Kind, exchange::Failed};
use http::{Method, StatusCode};
use tokio::join;

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// One exchange: what the upstream read before `answer`, and what the client made of it.
async fn exchange(
    request: Request<Body>,
    answer: &str,
) -> (String, Result<Response<Body>, Failed>, Rc<Pool>) {
    let (client, mut peer) = connected();
    let pool = Rc::new(Pool::default());
    let upstream = async {
        let head = peer.read_until("\r\n\r\n").await;
        peer.send(answer).await;
        drop(peer);
        head
    };
    let back = Interims::default();
    let (head, result) = join!(upstream, client.send(request, &back, pool.clone()));
    (head, result, pool)
}

async fn body_of(method: Method, answer: &str) -> Result<Bytes, Kind> {
    let mut request = get("/");
    *request.method_mut() = method;
    let (_, result, _) = exchange(request, answer).await;
    let response = result.map_err(|failed| failed.error.kind)?;
    collect(response.into_body()).await.map(|(body, _)| body).map_err(|error| error.kind)
}

#[test]
fn a_connection_comes_back_when_the_response_is_read() {
    run(async {
        let (client, mut peer) = connected();
        let pool = Rc::new(Pool::default());
        let back = Interims::default();
        let mut client = Some(client);
        for _ in 0..3 {
            let upstream = async {
                assert_eq!(peer.read_until("\r\n\r\n").await, "GET /a?b HTTP/1.1\r\nHost: a\r\n\r\n");
                peer.send(OK).await;
            };
            let exchange = client.take().unwrap().send(get("/a?b"), &back, pool.clone());
            let ((), response) = join!(upstream, exchange);
            let response = response.ok().unwrap();
            assert_eq!(response.status(), 200);
            assert_eq!(pool.size(), 1, "a response that came whole holds no connection");
            assert_eq!(collect(response.into_body()).await.unwrap().0, "ok");
            client = pool.0.borrow_mut().pop();
            assert!(client.as_mut().unwrap().is_reusable());
        }
        peer.send("HTTP/1.1 408 Too Late\r\n\r\n").await;
        assert!(!client.as_mut().unwrap().is_reusable(), "nobody asked for that");
    });
}

#[test]
fn a_connection_that_the_upstream_closed_is_not_reused() {
    run(async {
        let (mut client, peer) = connected();
        assert!(client.is_reusable());
        drop(peer);
        assert!(!client.is_reusable());
    });
}

#[test]
fn a_close_in_place_of_an_answer_gives_the_request_back() {
    run(async {
        for (body, intact) in [(Body::Empty, true), (Body::full("abc"), true), (channel().1, true)] {
            let (client, peer) = connected();
            drop(peer);
            let request = Request::post("/").header("host", "a").body(body).unwrap();
            let result = client.send(request, &Interims::default(), Rc::new(Pool::default())).await;
            let failed = result.err().unwrap();
            assert_eq!(failed.error.kind, Kind::Reset);
            assert!(!failed.error.sent, "the pipe was closed before a byte went in");
            assert_eq!(failed.body.is_some(), intact);
        }
        // Sent, and closed without a word: nobody knows whether it was acted on, but it can be sent again.
        let (head, result, _) = exchange(Request::post("/").body(Body::full("abc")).unwrap(), "").await;
        let failed = result.err().unwrap();
        assert!(head.starts_with("POST / HTTP/1.1\r\n"));
        assert!(failed.error.sent);
        let body = *failed.body.unwrap();
        assert_eq!(collect(body).await.unwrap().0, "abc");
    });
}

#[test]
fn a_request_of_which_something_was_taken_is_not_given_back() {
    run(async {
        let (sender, body) = channel();
        sender.send(Ok("some".into())).unwrap();
        let (_, result, _) = exchange(Request::post("/").body(body).unwrap(), "").await;
        assert!(result.err().unwrap().body.is_none());
        let (_, result, _) = exchange(get("/"), "HTTP/1.1 2").await;
        let failed = result.err().unwrap();
        assert_eq!(failed.error.kind, Kind::Reset);
        assert!(failed.body.is_none(), "an answer had begun");
    });
}

#[test]
fn bodies_end_where_the_response_says() {
    run(async {
        for (method, answer, body) in [
            (Method::GET, OK, "ok"),
            (Method::HEAD, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", ""),
            (Method::GET, "HTTP/1.1 204 No\r\n\r\n", ""),
            (Method::GET, "HTTP/1.1 304 No\r\nContent-Length: 9\r\n\r\n", ""),
            (
                Method::GET,
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n1\r\nb\r\n0\r\n\r\n",
                "ab",
            ),
            (Method::GET, "HTTP/1.1 200 OK\r\n\r\nuntil the end", "until the end"),
            (Method::GET, "HTTP/1.0 200 OK\r\n\r\n", ""),
        ] {
            assert_eq!(body_of(method, answer).await, Ok(Bytes::from(body)), "{answer:?}");
        }
    });
}

#[test]
fn a_response_that_breaks_off_or_contradicts_itself_is_an_error() {
    run(async {
        for (answer, kind) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok", Kind::Reset),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n", Kind::Reset),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nx", Kind::BadResponse),
            ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n", Kind::BadResponse),
            ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok", Kind::BadResponse),
            ("HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", Kind::BadResponse),
            ("HTTP/1.1 101 Switching\r\n\r\n", Kind::BadResponse),
            ("SSH-2.0-OpenSSH\r\n", Kind::BadResponse),
            (&"HTTP/1.1 102 Wait\r\n\r\n".repeat(65), Kind::BadResponse),
        ] {
            assert_eq!(body_of(Method::GET, answer).await, Err(kind), "{answer:?}");
        }
    });
}

#[test]
fn a_connection_that_should_end_does_not_come_back() {
    run(async {
        for (answer, back) in [
            (OK, 1),
            ("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok", 0),
            ("HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", 0),
            ("HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok", 1),
            ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok and more", 0),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 1),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nmore", 0),
            ("HTTP/1.1 200 OK\r\n\r\nok", 0),
        ] {
            let (_, result, pool) = exchange(get("/"), answer).await;
            collect(result.ok().unwrap().into_body()).await.unwrap();
            assert_eq!(pool.size(), back, "{answer:?}");
        }
        let (_, result, pool) = exchange(get("/"), "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok").await;
        drop(result);
        assert_eq!(pool.size(), 0, "an unread response closes its connection");
    });
}

#[test]
fn interim_responses_are_passed_on_without_what_is_for_one_hop() {
    run(async {
        let (client, mut peer) = connected();
        let back = Interims::default();
        let upstream = async {
            peer.read_until("\r\n\r\n").await;
            peer.send("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\nConnection: x\r\nX: y\r\n\r\n").await;
            peer.send(format!("HTTP/1.1 102 Processing\r\n\r\n{OK}")).await;
        };
        let ((), response) = join!(upstream, client.send(get("/"), &back, Rc::new(Pool::default())));
        assert_eq!(response.ok().unwrap().status(), 200);
        let interims = back.0.borrow();
        assert_eq!(interims.iter().map(|head| head.status().as_u16()).collect::<Vec<_>>(), [103, 102]);
        assert_eq!(interims[0].headers().len(), 1);
    });
}

fn expecting(body: Body) -> Request<Body> {
    Request::post("/").header("host", "a").header("expect", "100-continue").body(body).unwrap()
}

#[test]
fn a_body_waits_for_100_continue_but_not_for_ever() {
    run(async {
        for answers in [true, false] {
            let (client, mut peer) = connected();
            let back = Interims::default();
            let upstream = async {
                let head = peer.read_until("\r\n\r\n").await;
                assert!(head.contains("Expect: 100-continue\r\n"));
                assert!(peer.is_quiet().await, "the body waits");
                if answers {
                    peer.send("HTTP/1.1 100 Continue\r\n\r\n").await;
                }
                peer.read_until("abc").await;
                peer.send(OK).await;
            };
            let exchange = client.send(expecting(Body::full("abc")), &back, Rc::new(Pool::default()));
            let ((), response) = join!(upstream, exchange);
            assert_eq!(response.ok().unwrap().status(), 200);
            assert_eq!(back.0.borrow().len(), usize::from(answers));
        }
    });
}

#[test]
fn a_final_answer_in_place_of_100_keeps_the_body_here() {
    run(async {
        let answer = "HTTP/1.1 417 No\r\nContent-Length: 0\r\n\r\n";
        let (_, result, pool) = exchange(expecting(Body::full("abc")), answer).await;
        assert_eq!(result.ok().unwrap().status(), StatusCode::EXPECTATION_FAILED);
        assert_eq!(pool.size(), 0, "the upstream may still wait for the body");
    });
}

#[test]
fn an_early_response_is_read_while_the_upload_goes_on() {
    run(async {
        let (client, mut peer) = connected();
        let pool = Rc::new(Pool::default());
        let (sender, body) = channel();
        let request = Request::post("/").header("host", "a").body(body).unwrap();
        let back = Interims::default();
        let early = async {
            peer.read_until("\r\n\r\n").await;
            peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await;
        };
        let ((), response) = join!(early, client.send(request, &back, pool.clone()));
        let mut body = response.ok().unwrap().into_body();
        // An echo: every piece goes up and comes down while both bodies are open.
        for _ in 0..3 {
            sender.send(Ok("ping".into())).unwrap();
            let echo = async {
                peer.read_until("4\r\nping\r\n").await;
                peer.send("4\r\npong\r\n").await;
            };
            let ((), frame) = join!(echo, body.frame());
            assert_eq!(frame.unwrap().unwrap().into_data().unwrap(), "pong");
        }
        drop(sender);
        let end = async {
            peer.read_until("0\r\n\r\n").await;
            peer.send("0\r\n\r\n").await;
        };
        let ((), frame) = join!(end, body.frame());
        assert!(frame.is_none());
        assert_eq!(pool.size(), 1, "both directions are over");
    });
}

#[test]
fn request_and_response_trailers_pass() {
    run(async {
        let mut trailers = HeaderMap::new();
        trailers.insert("x-sum", http::HeaderValue::from_static("7"));
        let frames = [http_body::Frame::data(Bytes::from("a")), http_body::Frame::trailers(trailers)];
        let stream = futures_util::stream::iter(frames.map(Ok::<_, Error>));
        let body = Body::Boxed(Box::pin(http_body_util::StreamBody::new(stream)));
        let (client, mut peer) = connected();
        let upstream = async {
            let text = peer.read_until("0\r\nX-Sum: 7\r\n\r\n").await;
            assert!(text.contains("Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n"));
            peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX-End: 8\r\n\r\n").await;
        };
        let request = Request::post("/").header("host", "a").body(body).unwrap();
        let back = Interims::default();
        let ((), response) = join!(upstream, client.send(request, &back, Rc::new(Pool::default())));
        let (_, trailers) = collect(response.ok().unwrap().into_body()).await.unwrap();
        assert_eq!(trailers.unwrap()["x-end"], "8");
    });
}

#[test]
fn a_body_that_fails_fails_the_request_with_its_own_error() {
    run(async {
        let (client, _peer) = connected();
        let (sender, body) = channel();
        sender.send(Err(Error::new(Kind::Gone, "left"))).unwrap();
        let request = Request::post("/").header("host", "a").body(body).unwrap();
        let result = client.send(request, &Interims::default(), Rc::new(Pool::default())).await;
        assert_eq!(result.err().unwrap().error.kind, Kind::Gone);
    });
}
