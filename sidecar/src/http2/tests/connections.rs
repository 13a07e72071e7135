//! How exchanges and connections end, and what they may take.

use super::*;

#[tokio::test(start_paused = true)]
async fn dropping_a_response_body_stops_the_other_side() {
    run(async {
        let dropped = Rc::new(Cell::new(false));
        let flag = dropped.clone();
        let app = move |_: Request<Body>, _: &dyn Back| -> Answer {
            let mut pieces = Pieces::stalling();
            pieces.dropped = flag.clone();
            Box::pin(async move { Response::new(pieces.body()) })
        };
        let (client, _drain) = mesh(app, brief()).await;
        let upload = Pieces::stalling();
        let uploading = upload.dropped.clone();
        let response = send(&client, post(upload.body())).await.ok().expect("a head");
        settle().await;
        assert!(!dropped.get() && !uploading.get());
        drop(response);
        settle().await;
        assert!(dropped.get(), "the server let go of the body");
        assert!(uploading.get(), "and so did the client of the upload");
        assert_eq!(client.in_flight(), 0);
        assert!(client.is_usable());
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn dropping_an_exchange_cancels_the_handler() {
    run(async {
        struct Flag(Rc<Cell<bool>>);
        impl Drop for Flag {
            fn drop(&mut self) {
                self.0.set(true);
            }
        }
        let cancelled = Rc::new(Cell::new(false));
        let flag = cancelled.clone();
        let app = move |_: Request<Body>, _: &dyn Back| -> Answer {
            let flag = Flag(flag.clone());
            Box::pin(async move {
                pending::<()>().await;
                drop(flag);
                Response::new(Body::Empty)
            })
        };
        let (client, _drain) = mesh(app, brief()).await;
        let late = tokio::time::timeout(Duration::from_millis(10), send(&client, get("/"))).await;
        assert!(late.is_err());
        settle().await;
        assert!(cancelled.get());
        assert_eq!(client.in_flight(), 0);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_broken_upload_fails_the_exchange_with_its_own_error() {
    run(async {
        struct Broken;
        impl HttpBody for Broken {
            type Data = Bytes;
            type Error = Error;
            fn poll_frame(
                self: Pin<&mut Self>,
                _: &mut Context<'_>,
            ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
                Poll::Ready(Some(Err(Error::new(Kind::TooLarge, "too much"))))
            }
        }
        let app = |request: Request<Body>, _: &dyn Back| -> Answer {
            Box::pin(async move {
                let error = request.into_body().collect().await.expect_err("reset");
                assert_eq!(error.kind, Kind::Gone);
                pending().await
            })
        };
        let (client, _drain) = mesh(app, brief()).await;
        let failed = send(&client, post(Body::Boxed(Box::pin(Broken)))).await.err().expect("no response");
        assert_eq!((failed.error.kind, failed.error.sent), (Kind::TooLarge, true));
        assert!(failed.body.is_none());
    })
    .await;
}

#[tokio::test]
async fn a_response_that_breaks_off_is_an_error_of_its_body() {
    run(async {
        let app = |_: Request<Body>, _: &dyn Back| -> Answer {
            Box::pin(async {
                let (sender, body) = channel();
                spawn_local(async move {
                    sender.send(Ok("half".into())).expect("open");
                    settle().await;
                    sender.send(Err(Error::after_send(Kind::Reset, "gone"))).expect("open");
                });
                Response::new(body)
            })
        };
        let (client, _drain) = mesh(app, brief()).await;
        let response = send(&client, get("/")).await.ok().expect("a head");
        let error = response.into_body().collect().await.expect_err("not whole");
        assert_eq!((error.kind, error.sent), (Kind::Reset, true));
    })
    .await;
}

#[tokio::test]
async fn a_refused_stream_was_not_sent_and_comes_back_whole() {
    run(async {
        let near = bare_server(|_, mut respond| respond.send_reset(Reason::REFUSED_STREAM));
        let client = Client::connect(Io::memory(near), Rc::new(brief())).await.expect("HTTP/2");
        let failed = send(&client, post(Body::full("again"))).await.err().expect("refused");
        assert_eq!((failed.error.kind, failed.error.sent), (Kind::Reset, false));
        let body = *failed.body.expect("the body");
        assert_eq!(body.collect().await.expect("its body").to_bytes(), "again");
        assert!(client.is_usable(), "the connection is none the worse");
    })
    .await;
}

#[tokio::test]
async fn another_reset_may_have_been_processed() {
    run(async {
        let near = bare_server(|_, mut respond| respond.send_reset(Reason::INTERNAL_ERROR));
        let client = Client::connect(Io::memory(near), Rc::new(brief())).await.expect("HTTP/2");
        let failed = send(&client, get("/")).await.err().expect("reset");
        assert_eq!((failed.error.kind, failed.error.sent), (Kind::Reset, true));
        assert!(failed.body.is_some(), "whether it may be sent again is for the retry rules");
    })
    .await;
}

#[tokio::test]
async fn a_connection_that_breaks_fails_what_is_under_way_and_takes_nothing_new() {
    run(async {
        let (near, far) = duplex(64 * 1024);
        spawn_local(async move {
            let mut connection = h2::server::handshake(far).await.expect("a client");
            let stream = connection.accept().await;
            drop((stream, connection));
        });
        let client = Client::connect(Io::memory(near), Rc::new(brief())).await.expect("HTTP/2");
        let failed = send(&client, get("/")).await.err().expect("broken");
        assert_eq!((failed.error.kind, failed.error.sent), (Kind::Reset, true));
        assert!(!client.is_usable());
        let failed = send(&client, get("/")).await.err().expect("closed");
        assert!(!failed.error.sent && failed.body.is_some(), "nothing was sent on a closed connection");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn draining_finishes_what_is_under_way_and_refuses_the_rest_unsent() {
    run(async {
        let app = |_: Request<Body>, _: &dyn Back| -> Answer {
            Box::pin(async {
                tokio::time::sleep(Duration::from_millis(100)).await;
                Response::new(Body::full("done"))
            })
        };
        let (near, drain, server) = serving(app, brief());
        let client = Client::connect(Io::memory(near), Rc::new(brief())).await.expect("HTTP/2");
        let under_way = spawn_local({
            let client = client.clone();
            async move { text(send(&client, get("/")).await.ok().expect("a response")).await }
        });
        settle().await;
        drain.start();
        settle().await;
        assert!(!client.is_usable());
        let failed = send(&client, get("/")).await.err().expect("refused");
        assert!(!failed.error.sent && failed.body.is_some());
        assert_eq!(under_way.await.expect("no panic"), "done");
        server.await.expect("no panic").expect("a clean end");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_is_closed_and_a_busy_one_is_not() {
    run(async {
        let app = |_: Request<Body>, _: &dyn Back| -> Answer {
            Box::pin(async {
                tokio::time::sleep(Duration::from_secs(300)).await;
                Response::new(Body::full("late"))
            })
        };
        let settings = Settings { idle_timeout: Duration::from_secs(60), ..brief() };
        let (near, _drain, server) = serving(app, settings.clone());
        let client = Client::connect(Io::memory(near), Rc::new(settings)).await.expect("HTTP/2");
        let response = send(&client, get("/")).await.ok().expect("a response");
        assert_eq!(text(response).await, "late");
        assert!(!server.is_finished());
        tokio::time::sleep(Duration::from_secs(100)).await;
        assert!(server.is_finished() && !client.is_usable());
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_falls_silent_is_given_up() {
    run(async {
        let (near, far) = duplex(64 * 1024);
        spawn_local(async move {
            let mut connection = h2::server::handshake::<_>(far).await.expect("a client");
            let _stream = connection.accept().await;
            // Holds the connection open and reads nothing any more.
            pending::<()>().await;
        });
        let client = Client::connect(Io::memory(near), Rc::new(brief())).await.expect("HTTP/2");
        let begun = tokio::time::Instant::now();
        let failed = send(&client, get("/")).await.err().expect("given up");
        assert_eq!(failed.error.kind, Kind::Reset);
        let limit = brief().keepalive_interval * 2 + brief().keepalive_timeout;
        assert!(begun.elapsed() <= limit, "{:?}", begun.elapsed());
        assert!(!client.is_usable());
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_silent_stream_of_a_living_peer_is_kept() {
    run(async {
        let app = |_: Request<Body>, _: &dyn Back| -> Answer {
            Box::pin(async {
                tokio::time::sleep(Duration::from_secs(600)).await;
                Response::new(Body::full("at last"))
            })
        };
        let (client, _drain) = mesh(app, brief()).await;
        let response = send(&client, get("/")).await.ok().expect("a response");
        assert_eq!(text(response).await, "at last");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn whoever_never_speaks_http2_is_not_waited_for() {
    run(async {
        let (_near, _drain, server) = serving(echo, brief());
        let error = server.await.expect("no panic").expect_err("timed out");
        assert_eq!(error.kind, Kind::HeaderTimeout);
    })
    .await;
}

#[tokio::test]
async fn heads_beyond_the_limits_get_431() {
    run(async {
        let settings = Settings { max_headers: 20, max_header_bytes: 4000, ..brief() };
        let (near, _drain, _) = serving(|_, _| panic!("must not be handed up"), settings);
        let client = Client::connect(Io::memory(near), Rc::new(brief())).await.expect("HTTP/2");
        let mut many = get("/");
        for n in 0..21 {
            many.headers_mut().append("x", HeaderValue::from(n));
        }
        let mut long = get("/");
        long.headers_mut().insert("x", HeaderValue::from_str(&"y".repeat(4000)).expect("valid"));
        for request in [many, long] {
            let response = send(&client, request).await.ok().expect("a response");
            assert_eq!(response.status(), StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
            assert_eq!(response.headers()["weft-error"], "headers_too_large");
            assert!(text(response).await.contains("limits"));
        }
        // Far beyond, h2 answers by itself.
        let mut huge = get("/");
        huge.headers_mut().insert("x", HeaderValue::from_str(&"y".repeat(9000)).expect("valid"));
        let response = send(&client, huge).await.ok().expect("a response");
        assert_eq!(response.status(), StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
        assert!(client.is_usable());
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn no_more_streams_than_the_peer_allows() {
    run(async {
        let app = |_: Request<Body>, _: &dyn Back| -> Answer { Box::pin(pending()) };
        let (client, _drain) = mesh(app, Settings { max_streams: 2, ..brief() }).await;
        for _ in 0..2 {
            let client = client.clone();
            spawn_local(async move { send(&client, get("/")).await.is_ok() });
        }
        settle().await;
        assert_eq!((client.in_flight(), client.max_streams()), (2, 2));
        let failed = send(&client, get("/")).await.err().expect("full");
        assert_eq!((failed.error.kind, failed.error.sent), (Kind::Overloaded, false));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn many_answers_leave_in_few_writes() {
    run(async {
        let gate = Rc::new(tokio::sync::Notify::new());
        let wait = gate.clone();
        let app = move |_: Request<Body>, _: &dyn Back| -> Answer {
            let gate = wait.clone();
            Box::pin(async move {
                gate.notified().await;
                Response::new(Body::full(vec![1; 900]))
            })
        };
        let (near, _drain, _) = serving(app, brief());
        let (mut send, connection) = h2::client::handshake(Counting::new(near)).await.expect("HTTP/2");
        spawn_local(async move { connection.await.expect("a clean end") });
        let request = || Request::get("http://a/").version(Version::HTTP_2).body(()).expect("a request");
        let replies: Vec<_> = (0..40).map(|_| send.send_request(request(), true).expect("sent").0).collect();
        settle().await;
        READS.set(0);
        gate.notify_waiters();
        for reply in replies {
            assert_eq!(reply.await.expect("a response").status(), 200);
        }
        assert!(READS.get() <= 4, "40 answers took {} writes", READS.get());
    })
    .await;
}

thread_local! {
    static READS: Cell<usize> = const { Cell::new(0) };
}

/// Reads as much at a time as the other side wrote, and counts how often.
struct Counting(tokio::io::BufReader<DuplexStream>);

impl Counting {
    fn new(stream: DuplexStream) -> Self {
        Self(tokio::io::BufReader::with_capacity(256 * 1024, stream))
    }
}

impl tokio::io::AsyncRead for Counting {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut tokio::io::ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        if self.0.buffer().is_empty() {
            let filled = Pin::new(&mut self.0);
            if tokio::io::AsyncBufRead::poll_fill_buf(filled, cx)?.is_pending() {
                return Poll::Pending;
            }
            READS.set(READS.get() + 1);
        }
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl tokio::io::AsyncWrite for Counting {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

#[tokio::test]
async fn a_peer_that_takes_its_time_gets_everything() {
    run(async {
        // A pipe far smaller than what is held back: every write is partial.
        let (near, far) = duplex(100);
        let drain = Rc::new(Drain::default());
        spawn_local(serve(Io::memory(far), Rc::new(App(echo)), Rc::new(brief()), drain));
        let client = Client::connect(Io::memory(near), Rc::new(brief())).await.expect("HTTP/2");
        let bytes = vec![3; 400_000];
        let response = send(&client, post(Body::full(bytes.clone()))).await.ok().expect("a response");
        let mut body = response.into_body();
        let mut got = 0;
        while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
            got += frame.expect("no error").into_data().expect("data").len();
        }
        assert_eq!(got, bytes.len());
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_resets_costs_the_connection() {
    run(async {
        let handled = Rc::new(Cell::new(0));
        let counter = handled.clone();
        let app = move |_: Request<Body>, _: &dyn Back| -> Answer {
            counter.set(counter.get() + 1);
            Box::pin(pending())
        };
        let (mut near, _drain, server) = serving(app, brief());
        let mut flood = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
        for n in 0..1000u32 {
            let id = (2 * n + 1).to_be_bytes();
            // GET http / without an authority, then RST_STREAM(CANCEL).
            flood.extend_from_slice(&[0, 0, 3, 1, 5]);
            flood.extend_from_slice(&id);
            flood.extend_from_slice(&[0x82, 0x86, 0x84, 0, 0, 4, 3, 0]);
            flood.extend_from_slice(&id);
            flood.extend_from_slice(&[0, 0, 0, 8]);
        }
        near.write_all(&flood).await.expect("written");
        let error = tokio::time::timeout(Duration::from_secs(5), server).await.expect("ended at once");
        assert!(error.expect("no panic").is_err());
        assert!(handled.get() < 100, "{} requests were taken up", handled.get());
    })
    .await;
}
