//! What a request and a response look like on the other side.

use super::*;

#[tokio::test]
async fn a_request_and_its_response_keep_their_shape() {
    run(async {
        let app = |request: Request<Body>, _: &dyn Back| -> Answer {
            Box::pin(async move {
                assert_eq!(request.version(), Version::HTTP_2);
                assert_eq!(request.uri(), "http://product:8080/a?b=c");
                assert!(request.body().is_end_stream(), "a request without a body ends with its head");
                assert_eq!(request.headers()["x-a"], "1");
                Response::builder()
                    .status(201)
                    .header("x-b", "2")
                    .body(Body::full("made"))
                    .expect("a response")
            })
        };
        let (client, _drain) = mesh(app, brief()).await;
        let mut request = get("/a?b=c");
        request.headers_mut().insert("x-a", HeaderValue::from_static("1"));
        let response = send(&client, request).await.ok().expect("a response");
        assert_eq!((response.status(), response.version()), (StatusCode::CREATED, Version::HTTP_2));
        assert_eq!(response.headers()["x-b"], "2");
        assert_eq!(client.in_flight(), 1, "an exchange is under way until its body is dropped");
        assert_eq!(text(response).await, "made");
        assert_eq!(client.in_flight(), 0);
    })
    .await;
}

#[tokio::test]
async fn an_answer_out_of_the_cache_has_its_fields_and_its_length() {
    run(async {
        let app = |_: Request<Body>, _: &dyn Back| -> Answer {
            Box::pin(async { crate::cache::hit("abc", false) })
        };
        let (client, _drain) = mesh(app, brief()).await;
        for (method, body) in [(Method::GET, "abc"), (Method::HEAD, "")] {
            let mut request = get("/");
            *request.method_mut() = method;
            let response = send(&client, request).await.ok().expect("a response");
            let field = |name| response.headers()[name].to_str().expect("text");
            assert_eq!(
                ["content-type", "age", "cache-status", "x-own", "content-length"].map(field),
                ["application/json", "7", "weft; hit; ttl=53", "1", "3"]
            );
            assert_eq!(text(response).await, body);
        }
    })
    .await;
}

#[tokio::test]
async fn bodies_and_trailers_pass_both_ways() {
    run(async {
        let (client, _drain) = mesh(echo, brief()).await;
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from_static("0"));
        let body = Pieces::of([data("one "), data("two"), Frame::trailers(trailers.clone())]).body();
        let response = send(&client, post(body)).await.ok().expect("a response");
        let whole = response.into_body().collect().await.expect("a body");
        assert_eq!(whole.trailers(), Some(&trailers));
        assert_eq!(whole.to_bytes(), "one two");
    })
    .await;
}

#[tokio::test]
async fn large_bodies_arrive_whole_through_small_windows() {
    run(async {
        let settings =
            Settings { stream_window: 70_000, connection_window: 200_000, send_buffer: 30_000, ..brief() };
        let (client, _drain) = mesh(echo, settings).await;
        let bytes: Vec<u8> = (0..3_000_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        for body in [
            Body::full(bytes.clone()),
            Pieces::of(bytes.chunks(50_000).map(|chunk| data(chunk.to_vec()))).body(),
        ] {
            let response = send(&client, post(body)).await.ok().expect("a response");
            assert!(response.into_body().collect().await.expect("a body").to_bytes() == bytes);
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_body_nobody_takes_stops_its_sender_and_no_other() {
    run(async {
        let settings = Settings { stream_window: 64 * 1024, connection_window: 512 * 1024, ..brief() };
        let taken = Rc::new(Cell::new(0));
        let counter = taken.clone();
        let app = move |request: Request<Body>, _: &dyn Back| -> Answer {
            let mut pieces = Pieces::of((0..1000).map(|_| data(vec![7; 10_000])));
            pieces.taken = counter.clone();
            let whole = request.uri().path() == "/large";
            Box::pin(async move { Response::new(if whole { pieces.body() } else { Body::full("quick") }) })
        };
        let (client, _drain) = mesh(app, settings).await;
        let stalled = send(&client, get("/large")).await.ok().expect("a head");
        settle().await;
        // One window, what h2 may keep, and one piece held.
        let bound = (64 * 1024 + 256 * 1024) / 10_000 + 2;
        assert!(taken.get() <= bound, "{} pieces were taken of a body nobody reads", taken.get());
        let other = send(&client, get("/small")).await.ok().expect("a head");
        assert_eq!(text(other).await, "quick");
        let all = stalled.into_body().collect().await.expect("a body").to_bytes();
        assert_eq!((all.len(), taken.get()), (10_000_000, 1000));
    })
    .await;
}

#[tokio::test]
async fn interim_responses_are_passed_on() {
    run(async {
        let app = |_: Request<Body>, back: &dyn Back| -> Answer {
            for status in [100, 103, 101] {
                back.interim(
                    Response::builder().status(status).header("connection", "x").body(()).expect("a head"),
                );
            }
            Box::pin(async { Response::new(Body::Empty) })
        };
        let (client, _drain) = mesh(app, brief()).await;
        let heard = Heard::default();
        let response = client.send(get("/"), &heard).await.ok().expect("a response");
        assert_eq!(response.status(), 200);
        assert_eq!(
            *heard.0.borrow(),
            [StatusCode::CONTINUE, StatusCode::EARLY_HINTS],
            "101 means nothing in HTTP/2"
        );
    })
    .await;
}

#[tokio::test]
async fn both_ends_stream_at_once() {
    run(async {
        let (client, _drain) = mesh(echo, brief()).await;
        let (sender, body) = channel();
        let response = send(&client, post(body)).await.ok().expect("a head before the upload is over");
        let mut back = response.into_body();
        for word in ["ping", "pong"] {
            sender.send(Ok(word.into())).expect("open");
            let frame = back.frame().await.expect("a frame").expect("no error");
            assert_eq!(frame.into_data().expect("data"), word);
        }
        drop(sender);
        assert!(back.frame().await.is_none());
    })
    .await;
}

#[tokio::test]
async fn responses_without_bodies_end_with_their_head() {
    run(async {
        let app = |request: Request<Body>, _: &dyn Back| -> Answer {
            Box::pin(async move {
                let status = if request.method() == Method::HEAD {
                    200
                } else {
                    request.uri().path()[1..].parse().expect("a status")
                };
                // A body that must not be sent, with the length it would have.
                Response::builder()
                    .status(status)
                    .header("content-length", "3")
                    .body(Body::full("abc"))
                    .expect("a response")
            })
        };
        let (client, _drain) = mesh(app, brief()).await;
        let mut head = get("/");
        *head.method_mut() = Method::HEAD;
        let response = send(&client, head).await.ok().expect("a response");
        assert_eq!(response.headers()["content-length"], "3");
        assert!(response.body().is_end_stream());
        let response = send(&client, get("/304")).await.ok();
        assert!(response.is_none_or(|response| response.body().is_end_stream()));
    })
    .await;
}

#[tokio::test]
async fn http1_messages_keep_host_version_and_case() {
    run(async {
        let app = |request: Request<Body>, _: &dyn Back| -> Answer {
            Box::pin(async move {
                assert_eq!(request.version(), Version::HTTP_11);
                assert_eq!(request.uri(), "/x");
                assert_eq!(request.headers()["host"], "product");
                assert!(
                    !request.headers().contains_key("weft-case")
                        && !request.headers().contains_key("connection")
                );
                let case = request.extensions().get::<HeaderCase>().expect("a spelling").clone();
                let mut response = Response::new(Body::full("ok"));
                response.headers_mut().insert("transfer-encoding", HeaderValue::from_static("chunked"));
                response.extensions_mut().insert(case);
                response
            })
        };
        let (client, _drain) = mesh(app, Settings { http1_messages: true, ..brief() }).await;
        let case = HeaderCase::from_header_value(&HeaderValue::from_static("x-ODD")).expect("a spelling");
        let mut request = Request::get("/x")
            .header("host", "product")
            .header("connection", "close")
            .header("x-odd", "1")
            .body(Body::Empty)
            .expect("a request");
        request.extensions_mut().insert(case.clone());
        let response = send(&client, request).await.ok().expect("a response");
        assert_eq!(response.version(), Version::HTTP_11);
        assert_eq!(response.extensions().get::<HeaderCase>(), Some(&case));
        assert!(!response.headers().contains_key("weft-case"));
        assert_eq!(text(response).await, "ok");
    })
    .await;
}

#[tokio::test]
async fn connect_relays_bytes_with_half_close() {
    run(async {
        let (inner, mut upstream) = duplex(1024);
        let slot = RefCell::new(Some(inner));
        let app = move |request: Request<Body>, _: &dyn Back| -> Answer {
            assert_eq!((request.method(), request.uri().to_string().as_str()), (&Method::CONNECT, "db:5432"));
            let io = Io::memory(slot.borrow_mut().take().expect("one tunnel"));
            Box::pin(async move { Response::new(Body::Tunnel(Box::new(io))) })
        };
        let (near, _drain, _) = serving(app, brief());
        let (mut send, connection) = h2::client::handshake(near).await.expect("HTTP/2");
        spawn_local(async move { connection.await.expect("a clean end") });
        let request = Request::connect("db:5432").version(Version::HTTP_2).body(()).expect("a request");
        let (response, mut to) = send.send_request(request, false).expect("sent");
        let mut from = response.await.expect("a response").into_body();
        let large = vec![5; 300_000];
        to.send_data(large.clone().into(), true).expect("sent");
        let mut got = Vec::new();
        upstream.read_to_end(&mut got).await.expect("half closed");
        assert!(got == large);
        upstream.write_all(b"and back").await.expect("still open this way");
        upstream.shutdown().await.expect("shut down");
        let mut back = Vec::new();
        while let Some(chunk) = from.data().await {
            back.extend_from_slice(&chunk.expect("data"));
        }
        assert_eq!(back, b"and back");
    })
    .await;
}

#[tokio::test]
async fn our_client_sends_no_connect() {
    run(async {
        let (client, _drain) = mesh(echo, brief()).await;
        let request = Request::connect("db:5432").body(Body::Empty).expect("a request");
        let failed = send(&client, request).await.err().expect("refused");
        assert_eq!((failed.error.kind, failed.body.is_some()), (Kind::NotImplemented, true));
    })
    .await;
}

#[tokio::test]
async fn a_switch_of_protocols_is_no_answer() {
    run(async {
        let app = |_: Request<Body>, _: &dyn Back| -> Answer {
            Box::pin(async { Response::builder().status(101).body(Body::Empty).expect("a response") })
        };
        let (client, _drain) = mesh(app, brief()).await;
        let response = send(&client, get("/")).await.ok().expect("a response");
        assert_eq!(response.status(), StatusCode::BAD_GATEWAY);
        assert_eq!(response.headers()["weft-error"], "bad_response");
    })
    .await;
}

#[tokio::test]
async fn a_length_that_is_not_kept_is_malformed() {
    run(async {
        let near = bare_server(|_, mut respond| {
            let head = Response::builder().header("content-length", "10").body(()).expect("a head");
            respond.send_response(head, false).expect("sent").send_data("short".into(), true).expect("sent");
        });
        let client = Client::connect(Io::memory(near), Rc::new(brief())).await.expect("HTTP/2");
        let response = send(&client, get("/")).await.ok().expect("a head");
        let error = response.into_body().collect().await.expect_err("not whole");
        assert_eq!(error.kind, Kind::BadResponse);
    })
    .await;
}

#[tokio::test]
async fn a_response_marked_for_reset_resets_its_stream_and_no_other() {
    run(async {
        let app = |request: Request<Body>, _: &dyn Back| -> Answer {
            Box::pin(async move {
                let mut response = Response::new(Body::full("seen"));
                if request.uri().path() == "/fault" {
                    response.extensions_mut().insert(crate::exchange::Reset);
                }
                response
            })
        };
        let (client, _drain) = mesh(app, brief()).await;
        let failed = send(&client, get("/fault")).await.err().expect("no response");
        assert_eq!(failed.error.kind, Kind::Reset);
        let response = send(&client, get("/")).await.ok().expect("the connection goes on");
        assert_eq!(text(response).await, "seen");
    })
    .await;
}

/// HTTP/1 refuses these where they are read; nobody looks again at a message that was carried in a stream.
#[tokio::test]
async fn an_http1_message_names_one_host_over_http2_too() {
    run(async {
        let app = |request: Request<Body>, _: &dyn Back| -> Answer {
            let hosts: Vec<_> = request.headers().get_all("host").iter().cloned().collect();
            assert_eq!(hosts, ["product:8080"]);
            Box::pin(async { Response::new(Body::Empty) })
        };
        let (client, _drain) = mesh(app, Settings { http1_messages: true, ..brief() }).await;
        for (uri, host, status) in [
            ("http://product:8080/", "product:8080", 200),
            ("http://product:8080/", "other", 200),
            ("http://user@product:8080/", "product:8080", 400),
        ] {
            let request = Request::get(uri).version(Version::HTTP_2).header("host", host);
            let response = send(&client, request.body(Body::Empty).expect("a request")).await.ok();
            assert_eq!(response.expect("a response").status(), status, "{uri} {host}");
        }
    })
    .await;
}
