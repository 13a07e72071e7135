//! What policy does to calls, through a whole mesh: who gets them, how many pass, and what becomes of them on the way.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod balancing;
mod concurrency;
mod cors;
mod deprecation;
mod faults;
mod limits;
mod mirrors;
mod routes;
mod sessions;
mod sharding;
mod splits;
mod table;
mod zones;

use http::Request;
use weft_tests::{Answer, Body, Client, full};

/// The URL that most tests call.
const URL: &str = "http://product:8080/";

/// A gRPC request with one empty message.
fn grpc(uri: &str, headers: &[(&str, &str)]) -> Request<Body> {
    let mut request = Request::post(uri).header("content-type", "application/grpc").header("te", "trailers");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(full(&b"\0\0\0\0\0"[..])).unwrap()
}

/// An application that answers every gRPC call with OK and one empty message, says who it is in `x-who`, and in `x-told`
/// what it was told in fields of one letter.
async fn grpc_app(who: &'static str) -> weft_tests::Backend {
    weft_tests::Backend::http(move |request| async move {
        use http_body_util::BodyExt;
        let (head, body) = request.into_parts();
        body.collect().await?;
        let told = head
            .headers
            .iter()
            .filter(|(name, _)| name.as_str().starts_with("x-") && name.as_str().len() == 3);
        let mut told: Vec<_> =
            told.map(|(name, value)| format!("{name}={}", value.to_str().unwrap())).collect();
        told.sort();
        let trailers = async {
            let mut trailers = http::HeaderMap::new();
            trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
            Some(Ok(trailers))
        };
        let body = full(&b"\0\0\0\0\0"[..]).with_trailers(trailers).boxed_unsync();
        let response = http::Response::builder().header("content-type", "application/grpc");
        let response = response.header("x-who", who).header("x-told", told.join(" "));
        Ok(response.header("x-extra", "from the application").body(body)?)
    })
    .await
}

/// The `grpc-status` of an answer, in its trailers or, where it has none, in its head.
fn grpc_status(answer: &Answer) -> &str {
    let value = answer.trailers.get("grpc-status").or_else(|| answer.headers.get("grpc-status"));
    value.map_or("", |value| value.to_str().unwrap())
}

/// What each of `0..count` calls is answered with, where call `n` carries the header `name: <prefix><n>`; sixteen at
/// once, so that thousands take seconds.
async fn texts_by_key(client: &Client, url: &str, name: &str, count: usize) -> Vec<String> {
    use futures_util::StreamExt;
    let calls = futures_util::stream::iter(0..count).map(|n| async move {
        let key = format!("user-{n}");
        let answer = client.get_with(url, &[(name, &key)]).await;
        assert_eq!(answer.status, 200, "{key}: {}", answer.text());
        answer.text().to_owned()
    });
    soon_enough("all calls", calls.buffered(16).collect()).await
}

/// Patience for thousands of calls.
async fn soon_enough<F: Future>(what: &str, future: F) -> F::Output {
    match tokio::time::timeout(weft_tests::PATIENCE * 6, future).await {
        Ok(output) => output,
        Err(_) => panic!("not in time: {what}"),
    }
}
