//! Answers to questions that are not GET: POST where policy keeps them, and gRPC methods that it lists.

use crate::stage::{Set, URL, answer, caching, caching_at, is_hit, is_not_kept, said};
use http::Request;
use weft_tests::{
    Answer, Body, Scripted, full,
    scripted::{self, Seen},
    stage::{Instance, Stage},
};

fn post(path: &str, fields: &[(&str, &str)], body: &str) -> Request<Body> {
    let mut request = Request::post(format!("{URL}{path}"));
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    request.body(full(body.to_owned())).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_to_post_are_kept_by_their_body_where_policy_and_the_answer_say_so() {
    let set = Set::at_once(&caching(&["post: true", "ttl: { default: 60s }"]), |asked| {
        let text = format!("{} {}", String::from_utf8_lossy(&asked.body), asked.turn);
        if asked.path == "/silent" {
            answer(&[], text)
        } else {
            answer(&[("cache-control", "max-age=60")], text)
        }
    })
    .await;
    let json = [("content-type", "application/json")];
    let call = |path: &'static str, fields: &'static [(&'static str, &'static str)], body: &'static str| {
        set.client().call(post(path, fields, body))
    };
    assert_eq!(call("/q", &[], "a").await.text(), "a 0");
    let hit = call("/q", &[], "a").await;
    is_hit(&hit);
    assert_eq!(hit.text(), "a 0");
    assert_eq!(call("/q", &[], "b").await.text(), "b 1");
    assert_eq!(set.client().call(post("/q", &json, "a")).await.text(), "a 2");
    assert_eq!(call("/q?x", &[], "a").await.text(), "a 3");
    assert_eq!(call("/q", &[], "").await.text(), " 4");
    is_hit(&call("/q", &[], "a").await);
    assert!(!said(&set.get("/q", &[]).await).contains("hit"), "a GET is something else");
    for _ in 0..2 {
        is_not_kept(&call("/silent", &[], "a").await, "uri-miss", "no-freshness");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_policy_does_not_say_so_post_goes_to_the_origin() {
    let set = Set::at_once(&caching(&[]), |asked| {
        answer(&[("cache-control", "max-age=60")], asked.turn.to_string())
    })
    .await;
    for turn in 0..2 {
        let answer = set.client().call(post("/", &[], "a")).await;
        assert_eq!(answer.text(), turn.to_string());
        assert!(said(&answer).contains("fwd=method"), "{}", said(&answer));
    }
}

async fn grpc_stage(place: &str) -> (Stage, Seen) {
    let (app, seen) = Scripted::start(|asked| async move {
        let message = asked.body.get(5..).unwrap_or_default().to_vec();
        if message.starts_with(b"fail") {
            return Ok(scripted::grpc(&message, 5));
        }
        if message.starts_with(b"head") {
            return Ok(scripted::trailers_only(5));
        }
        Ok(scripted::grpc(&[&message[..], format!(" {}", asked.turn).as_bytes()].concat(), 0))
    })
    .await
    .apart();
    let policy = caching_at(
        "stock",
        "{ kind: Service, name: stock }",
        &[&format!("where: {place}"), "grpc: [{ service: shop.Stock, method: Get, ttl: 60s }]"],
    );
    (Stage::set(&policy, [Instance::new("stock", app).grpc()]).await, seen)
}

async fn call(stage: &Stage, method: &str, message: &str) -> Answer {
    let mut framed = vec![0];
    framed.extend(u32::try_from(message.len()).unwrap().to_be_bytes());
    framed.extend(message.as_bytes());
    let request = Request::post(format!("http://stock:50051/shop.Stock/{method}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    stage.client.call_http2(request.body(full(framed)).unwrap()).await
}

fn message(answer: &Answer) -> &str {
    std::str::from_utf8(answer.body.get(5..).unwrap_or_default()).unwrap()
}

fn status(answer: &Answer) -> &str {
    let value = answer.trailers.get("grpc-status").or_else(|| answer.headers.get("grpc-status"));
    value.map_or("", |value| value.to_str().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grpc_methods_that_policy_lists_are_answered_by_their_message() {
    for place in ["outbound", "inbound"] {
        let (stage, seen) = grpc_stage(place).await;
        for (text, expected) in [("a", "a 0"), ("a", "a 0"), ("b", "b 1"), ("a", "a 0"), ("b", "b 1")] {
            let answer = call(&stage, "Get", text).await;
            assert_eq!((message(&answer), status(&answer)), (expected, "0"), "{place}: {:?}", answer.headers);
            assert_eq!(answer.header("content-type"), "application/grpc");
        }
        assert_eq!(seen.begun(), 2);
        // Another method is not listed.
        for turn in [2, 3] {
            assert_eq!(message(&call(&stage, "Put", "a").await), format!("a {turn}"));
        }
        // What fails is not kept, wherever it says so.
        for text in ["fail", "head"] {
            let before = seen.begun();
            for _ in 0..2 {
                assert_eq!(status(&call(&stage, "Get", text).await), "5");
            }
            assert_eq!(seen.begun(), before + 2, "{text}");
        }
        assert_eq!(
            message(&call(&stage, "Get", "a").await),
            "a 0",
            "a call of a listed method changes nothing"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grpc_calls_that_are_not_one_message_pass_by() {
    let (stage, seen) = grpc_stage("outbound").await;
    for turn in 0..2 {
        let request = Request::post("http://stock:50051/shop.Stock/Get")
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        let two = b"\0\0\0\0\x01a\0\0\0\0\x01b";
        let answer = stage.client.call_http2(request.body(full(&two[..])).unwrap()).await;
        assert_eq!(status(&answer), "0");
        assert_eq!(seen.begun(), turn + 1);
    }
}
