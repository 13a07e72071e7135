//! What travels: bodies of any size, trailers, interim answers, every version of HTTP, limits, and trace context.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use weft_tests::{
    Backend, Beside, Body, Client, Mesh, PATIENCE, Process, empty, eventually, full,
    mesh::{calling, mesh_policy, serving},
    raw, soon,
};

/// A service `product` with one application behind it, and a caller.
struct Pair {
    _mesh: Mesh,
    product: Process,
    caller: Process,
    app: Backend,
}

async fn pair(app: Backend) -> Pair {
    pair_with(app, "").await
}

async fn pair_with(app: Backend, more: &str) -> Pair {
    let mesh = Mesh::start(&(serving("product", 8080, "http") + &calling("caller") + more)).await;
    let product = mesh.sidecar(Beside::new("product").app(8080, app.address())).await;
    let caller = mesh.sidecar(Beside::new("caller")).await;
    mesh.endpoints("product", 1).await;
    Pair { _mesh: mesh, product, caller, app }
}

/// A body of `chunks` chunks of 64 KiB, made as it is asked for; `made` counts bytes.
fn generated(chunks: usize, made: Arc<AtomicU64>) -> Body {
    const CHUNK: usize = 64 * 1024;
    let piece = Bytes::from(vec![b'w'; CHUNK]);
    let frames = futures_util::stream::iter((0..chunks).map(move |_| {
        made.fetch_add(CHUNK as u64, Ordering::Relaxed);
        Ok(Frame::data(piece.clone()))
    }));
    StreamBody::new(frames).boxed_unsync()
}

fn resident_mib() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = text.split(' ').nth(1).unwrap().parse().unwrap();
    (pages * 4096) >> 20
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_bodies_stream_both_ways_in_bounded_memory() {
    const CHUNKS: usize = 4096; // 256 MiB each way
    let app = Backend::http(|request| async move {
        if request.method() == "POST" {
            let mut body = request.into_body();
            let mut bytes = 0;
            while let Some(frame) = body.frame().await {
                bytes += frame?.data_ref().map_or(0, Bytes::len);
            }
            return Ok(http::Response::new(full(bytes.to_string())));
        }
        Ok(http::Response::new(generated(CHUNKS, Arc::default())))
    })
    .await;
    let pair = pair(app).await;
    let client = Client::new(pair.caller.outbound());
    let before = resident_mib();
    let mut most = before;

    let upload = Request::post("http://product:8080/")
        .header("host", "product")
        .body(generated(CHUNKS, Arc::default()))
        .unwrap();
    let mut upload = std::pin::pin!(client.send(upload));
    let answer = loop {
        tokio::select! {
            answer = &mut upload => break answer.expect("an answer"),
            () = tokio::time::sleep(Duration::from_millis(20)) => most = most.max(resident_mib()),
        }
    };
    let text = answer.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(text, (CHUNKS * 64 * 1024).to_string());

    let download = Request::get("http://product:8080/").header("host", "product").body(empty()).unwrap();
    let mut body = client.send(download).await.expect("an answer").into_body();
    let mut bytes = 0;
    while let Some(frame) = body.frame().await {
        bytes += frame.expect("a frame").data_ref().map_or(0, Bytes::len);
        if bytes % (16 << 20) < (64 << 10) {
            most = most.max(resident_mib());
        }
    }
    assert_eq!(bytes, CHUNKS * 64 * 1024);
    // Other tests of this program run meanwhile; a body that is kept would be 256 MiB.
    assert!(most < before + 128, "grew from {before} to {most} MiB");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_reader_holds_its_sender_back_and_nobody_else() {
    let made = Arc::new(AtomicU64::new(0));
    let counter = made.clone();
    let app = Backend::http(move |request| {
        let counter = counter.clone();
        async move {
            if request.uri().path() == "/large" {
                return Ok(http::Response::new(generated(1024, counter)));
            }
            Ok(http::Response::new(full("quick")))
        }
    })
    .await;
    let pair = pair(app).await;
    let client = Client::new(pair.caller.outbound());
    for version in [http::Version::HTTP_11, http::Version::HTTP_2] {
        made.store(0, Ordering::Relaxed);
        let slow = Request::get("http://product:8080/large").header("host", "product").body(empty()).unwrap();
        // Dropped at the end of the round, which must cancel everything behind it.
        let mut connection = client.http2().await.unwrap();
        let response = if version == http::Version::HTTP_2 {
            connection.send_request(slow).await.unwrap()
        } else {
            client.send(slow).await.unwrap()
        };
        let mut last = 0;
        eventually("the sender is held back", PATIENCE, || {
            let now = made.load(Ordering::Relaxed);
            let still = std::mem::replace(&mut last, now) == now && now > 0;
            async move {
                tokio::time::sleep(Duration::from_millis(150)).await;
                still.then_some(())
            }
        })
        .await;
        assert!(last < 48 << 20, "{version:?}: {} MiB were made for a reader that reads nothing", last >> 20);
        for _ in 0..20 {
            assert_eq!(client.get("http://product:8080/quick").await.text(), "quick");
            let request = Request::get("http://product:8080/quick").body(empty()).unwrap();
            let answer = soon("a quick answer", connection.send_request(request)).await.unwrap();
            assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "quick");
        }
        drop(response);
    }
    eventually("nothing is in flight any more", PATIENCE, || async {
        let clusters = pair.caller.admin("/clusters").await;
        let flights = clusters.as_array().unwrap().iter().flat_map(|c| c["endpoints"].as_array().unwrap());
        let in_flight: u64 = flights.map(|e| e["in_flight"].as_u64().unwrap()).sum();
        (in_flight == 0).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chunked_bodies_trailers_and_header_case_arrive_as_they_were_sent() {
    let heard = Arc::new(Mutex::new(String::new()));
    let hears = heard.clone();
    let app = Backend::tcp(move |mut stream| {
        let hears = hears.clone();
        async move {
            let head = raw::head(&mut stream).await;
            if head.is_empty() {
                return;
            }
            let mut body = Vec::new();
            while !body.ends_with(b"\r\n\r\n") {
                body.push(stream.read_u8().await.unwrap());
            }
            *hears.lock().unwrap() = head + &String::from_utf8(body).unwrap();
            let answer = "HTTP/1.1 200 OK\r\nX-MiXeD-CaSe: Yes\r\nETag: \"1\"\r\nTransfer-Encoding: chunked\r\n\
                Trailer: X-Sum\r\n\r\n5\r\nhello\r\n0\r\nX-Sum: 42\r\n\r\n";
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    })
    .await;
    let pair = pair(app).await;
    let mut stream = raw::connect(pair.caller.outbound()).await;
    let request = "POST http://product:8080/a?b=c HTTP/1.1\r\nHost: product:8080\r\nx-LOWER-upper: One\r\n\
        SOAPAction: do\r\nTE: trailers\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX-Checksum: 7\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let head = raw::head(&mut stream).await;
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    for line in ["X-MiXeD-CaSe: Yes\r\n", "ETag: \"1\"\r\n"] {
        assert!(head.contains(line), "{line:?} in {head}");
    }
    let body = raw::head(&mut stream).await;
    assert!(body.contains("hello") && body.contains("X-Sum: 42"), "{body}");

    let heard = heard.lock().unwrap().clone();
    assert!(heard.starts_with("POST /a?b=c HTTP/1.1\r\n"), "in origin form: {heard}");
    for line in
        ["x-LOWER-upper: One\r\n", "SOAPAction: do\r\n", "Host: product:8080\r\n", "abc", "X-Checksum: 7\r\n"]
    {
        assert!(heard.contains(line), "{line:?} in {heard}");
    }
}

/// Under load HTTP/1 messages travel in HTTP/2 streams between sidecars: nothing may be lost by it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn header_case_and_trailers_survive_multiplexing_under_load() {
    let app = Backend::tcp(|mut stream| async move {
        loop {
            let head = raw::head(&mut stream).await;
            let Some(line) = head.lines().find(|l| l.starts_with("x-WeIrD-Name: ")) else { return };
            tokio::time::sleep(Duration::from_millis(20)).await;
            let answer = format!(
                "HTTP/1.1 200 OK\r\nX-aNSWER-nAME: {}\r\nTransfer-Encoding: chunked\r\n\r\n\
                 2\r\nok\r\n0\r\nX-Sum: 9\r\n\r\n",
                &line[14..]
            );
            if stream.write_all(answer.as_bytes()).await.is_err() {
                return;
            }
        }
    })
    .await;
    let pair = pair(app).await;
    let proxy = pair.caller.outbound();
    let callers: Vec<_> = (0..32)
        .map(|caller| {
            tokio::spawn(async move {
                let mut stream = raw::connect(proxy).await;
                for call in 0..12 {
                    let value = caller * 100 + call;
                    let request = format!(
                        "GET http://product:8080/ HTTP/1.1\r\nHost: product\r\nTE: trailers\r\nx-WeIrD-Name: {value}\r\n\r\n"
                    );
                    stream.write_all(request.as_bytes()).await.unwrap();
                    let head = raw::head(&mut stream).await;
                    assert!(head.contains(&format!("X-aNSWER-nAME: {value}\r\n")), "{head}");
                    let body = raw::head(&mut stream).await;
                    assert!(body.contains("ok\r\n0\r\nX-Sum: 9\r\n"), "{body}");
                }
            })
        })
        .collect();
    let mut multiplexed = false;
    for caller in callers {
        caller.await.unwrap();
        let metrics = pair.caller.metrics().await;
        multiplexed |= metrics.sum("weft_upstream_connections", &["protocol=\"http1over2\""]) > 0.0;
    }
    assert!(multiplexed, "32 callers at once: {}", pair.caller.metrics().await.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn interim_answers_head_and_http10_are_passed_on() {
    let app = Backend::tcp(|mut stream| async move {
        loop {
            let head = raw::head(&mut stream).await;
            let answer: &[u8] = if head.starts_with("HEAD ") {
                b"HTTP/1.1 200 OK\r\nContent-Length: 12345\r\n\r\n"
            } else if head.starts_with("GET /hints ") {
                b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
            } else if head.starts_with("GET /chunked ") {
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n3\r\ndef\r\n0\r\n\r\n"
            } else if head.starts_with("GET ") {
                b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
            } else {
                return;
            };
            if stream.write_all(answer).await.is_err() {
                return;
            }
        }
    })
    .await;
    let pair = pair(app).await;
    let proxy = pair.caller.outbound();

    let mut stream = raw::connect(proxy).await;
    stream.write_all(b"GET http://product:8080/hints HTTP/1.1\r\nHost: product\r\n\r\n").await.unwrap();
    let interim = raw::head(&mut stream).await;
    assert!(interim.starts_with("HTTP/1.1 103 ") && interim.contains("Link: </a.css>"), "{interim}");
    assert!(raw::head(&mut stream).await.starts_with("HTTP/1.1 200 "));
    assert_eq!(raw::exactly(&mut stream, 2).await, "ok");
    // HEAD on the same connection: a length, and no body that would shift what comes next.
    stream.write_all(b"HEAD http://product:8080/ HTTP/1.1\r\nHost: product\r\n\r\n").await.unwrap();
    let head = raw::head(&mut stream).await;
    assert!(head.to_ascii_lowercase().contains("content-length: 12345"), "{head}");
    stream.write_all(b"GET http://product:8080/ HTTP/1.1\r\nHost: product\r\n\r\n").await.unwrap();
    assert!(raw::head(&mut stream).await.starts_with("HTTP/1.1 200 "));
    assert_eq!(raw::exactly(&mut stream, 2).await, "ok");

    let answer = raw::exchange(proxy, "GET http://product:8080/ HTTP/1.0\r\nHost: product\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.") && answer.ends_with("\r\n\r\nok"), "{answer}");
    let answer = raw::exchange(proxy, "GET http://product:8080/chunked HTTP/1.0\r\n\r\n").await;
    assert!(answer.ends_with("\r\n\r\nabcdef"), "an HTTP/1.0 client knows no chunks: {answer}");
    assert!(!answer.to_ascii_lowercase().contains("transfer-encoding"), "{answer}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn expect_100_continue_is_the_applications_to_answer() {
    let app = Backend::tcp(|mut stream| async move {
        let head = raw::head(&mut stream).await;
        if head.starts_with("POST /no ") {
            let answer = b"HTTP/1.1 417 Expectation Failed\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
            let _ = stream.write_all(answer).await;
        } else if head.to_ascii_lowercase().contains("expect: 100-continue") {
            stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await.unwrap();
            let body = raw::exactly(&mut stream, 5).await;
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n{body}");
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    })
    .await;
    let pair = pair(app).await;
    let ask = |path: &str| {
        format!(
            "POST http://product:8080{path} HTTP/1.1\r\nHost: product\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n"
        )
    };
    let mut stream = raw::connect(pair.caller.outbound()).await;
    stream.write_all(ask("/yes").as_bytes()).await.unwrap();
    let interim = raw::head(&mut stream).await;
    assert!(interim.starts_with("HTTP/1.1 100 "), "{interim}");
    stream.write_all(b"hello").await.unwrap();
    assert!(raw::head(&mut stream).await.starts_with("HTTP/1.1 200 "));
    assert_eq!(raw::exactly(&mut stream, 5).await, "hello");

    let mut stream = raw::connect(pair.caller.outbound()).await;
    stream.write_all(ask("/no").as_bytes()).await.unwrap();
    let refused = raw::head(&mut stream).await;
    assert!(refused.starts_with("HTTP/1.1 417 "), "nothing of the body was asked for: {refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_breaks_limits_is_refused_in_plain_words() {
    let limits = mesh_policy("{ limits: { headerBytes: 4KiB, headerCount: 20, headerTimeout: 2s } }");
    let pair = pair_with(Backend::text("ok").await, &limits).await;
    let proxy = pair.caller.outbound();
    let begin = "GET http://product:8080/ HTTP/1.1\r\nHost: product\r\n";
    let many: String = (0..40).map(|n| format!("X-{n}: y\r\n")).collect();
    let post = "POST http://product:8080/ HTTP/1.1\r\nHost: product\r\n";
    let cases = [
        (format!("{begin}X-Large: {}\r\n\r\n", "y".repeat(8000)), 431, "headers_too_large"),
        (format!("{begin}{many}\r\n"), 431, "headers_too_large"),
        (begin.to_owned(), 408, "header_timeout"),
        (
            format!("{post}Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
            400,
            "bad_request",
        ),
        (format!("{post}Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd"), 400, "bad_request"),
        (format!("{begin}Bad Name: x\r\n\r\n"), 400, "bad_request"),
        ("GET / HTTP/1.1\r\n\r\n".to_owned(), 400, "bad_request"),
        ("CONNECT nowhere HTTP/1.1\r\n\r\n".to_owned(), 400, "bad_request"),
    ];
    for (request, status, error) in cases {
        let answer = raw::exchange(proxy, &request).await;
        let shown = &request[..request.len().min(90)];
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{shown:?}: {answer}");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
        assert!(head.to_ascii_lowercase().contains(&format!("weft-error: {error}")), "{shown:?}: {answer}");
        assert!(body.starts_with(&format!("weft: {error}: ")) && body.lines().count() == 1, "{answer}");
        assert!(head.to_ascii_lowercase().contains("connection: close"), "{answer}");
    }
    let metrics = pair.caller.metrics().await;
    for (kind, count) in [("headers_too_large", 2.0), ("header_timeout", 1.0), ("bad_request", 5.0)] {
        let labels = [&*format!("kind=\"{kind}\"")];
        assert_eq!(metrics.sum("weft_errors_total", &labels), count, "{kind}: {}", metrics.0);
    }
    let answer = Client::new(proxy).get("http://product:8080/").await;
    assert_eq!(answer.text(), "ok", "and everybody else is served");
    assert_eq!(pair.product.metrics().await.sum("weft_requests_total", &[]), 1.0, "nothing of it crossed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_application_that_misbehaves_is_a_502_and_never_a_hang() {
    let app = Backend::tcp(|mut stream| async move {
        let head = raw::head(&mut stream).await;
        let answer: &[u8] = if head.starts_with("GET /garbage ") {
            b"SSH-2.0-OpenSSH_9.6\r\n\r\n"
        } else if head.starts_with("GET /half ") {
            b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf"
        } else {
            b""
        };
        let _ = stream.write_all(answer).await;
    })
    .await;
    let pair = pair(app).await;
    let client = Client::new(pair.caller.outbound());
    let post = |path: &str| Request::post(format!("http://product:8080{path}")).body(empty()).unwrap();
    let answer = client.get("http://product:8080/garbage").await;
    assert_eq!((answer.status.as_u16(), answer.weft_error()), (502, "bad_response"), "{}", answer.text());
    let answer = client.call(post("/close")).await;
    assert_eq!((answer.status.as_u16(), answer.weft_error()), (502, "reset"), "{}", answer.text());
    let request = Request::get("http://product:8080/half").body(empty()).unwrap();
    let half = soon("an end", client.try_call(request)).await;
    assert!(half.is_err(), "half a body must not look whole: {half:?}");
    let own = Request::get("http://product:8080/close").header("weft-error", "x").body(empty()).unwrap();
    assert_eq!(client.call(own).await.weft_error(), "reset");
    drop(pair.app);
    let answer = client.call(post("/gone")).await;
    assert_eq!(answer.status, 503, "{}", answer.text());
    assert!(["connect", "no_endpoint"].contains(&answer.weft_error()), "{}", answer.text());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn traces_are_continued_with_a_fresh_span_at_every_hop_and_begun_where_there_is_none() {
    let pair = pair(Backend::echo("app").await).await;
    let client = Client::new(pair.caller.outbound());
    let url = "http://product:8080/";
    let (trace, span) = ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7");

    let sent = [
        ("traceparent", &*format!("00-{trace}-{span}-01")),
        ("tracestate", "vendor=1"),
        ("x-request-id", "mine-1"),
    ];
    let told = client.get_with(url, &sent).await.json();
    let headers = &told["headers"];
    let parent = headers["traceparent"].as_str().expect("a traceparent").to_owned();
    assert!(parent.starts_with(&format!("00-{trace}-")) && parent.ends_with("-01"), "{parent}");
    assert!(!parent.contains(span), "a span of its own: {parent}");
    assert_eq!(headers["tracestate"], "vendor=1");
    assert_eq!(headers["x-request-id"], "mine-1");
    assert!(headers.get("x-b3-traceid").is_none() && headers.get("b3").is_none(), "{headers}");

    let mut traces = Vec::new();
    for _ in 0..2 {
        let told = client.get(url).await.json();
        let parent = told["headers"]["traceparent"].as_str().expect("one is begun").to_owned();
        assert_eq!(parent.len(), 55, "{parent}");
        assert!(told["headers"]["x-request-id"].as_str().is_some_and(|id| id.len() >= 16), "{told}");
        traces.push(parent[3..35].to_owned());
    }
    assert_ne!(traces[0], traces[1]);

    let sent = [("x-b3-traceid", trace), ("x-b3-spanid", span), ("x-b3-sampled", "1")];
    let told = client.get_with(url, &sent).await.json();
    let headers = &told["headers"];
    assert_eq!(headers["x-b3-traceid"], trace, "{headers}");
    assert_ne!(headers["x-b3-spanid"], span, "{headers}");
    assert_eq!(headers["x-b3-sampled"], "1");
    let parent = headers["traceparent"].as_str().unwrap();
    assert!(parent.starts_with(&format!("00-{trace}-")), "one trace in both forms: {headers}");

    let told = client.get_with(url, &[("b3", &*format!("{trace}-{span}-1"))]).await.json();
    let b3 = told["headers"]["b3"].as_str().expect("the single form too");
    assert!(b3.starts_with(&format!("{trace}-")) && !b3.contains(&format!("{trace}-{span}")), "{b3}");

    let forged = [("weft-case", "x"), ("weft-peer", "spiffe://forged")];
    let told = client.get_with(url, &forged).await.json();
    let own: Vec<_> =
        told["headers"].as_object().unwrap().keys().filter(|name| name.starts_with("weft-")).collect();
    assert!(own.is_empty(), "names of the mesh's own are not an application's to send: {own:?}");
    let told = client.get_with(url, &[("weft-timeout-ms", "9000")]).await.json();
    let left: u64 = told["headers"]["weft-timeout-ms"].as_str().unwrap().parse().unwrap();
    assert!(left <= 9000, "but for the time that it gives: {left}");
}
