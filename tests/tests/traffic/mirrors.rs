//! Copies of requests for other backends, and that they are nobody's problem.

use crate::{grpc, grpc_app, grpc_status};
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use std::{
    sync::{Arc, Mutex},
    time::Duration,
};
use weft_tests::{
    Backend, Body, PATIENCE, eventually, full,
    stage::{Instance, Stage, route},
};

/// What an application was sent: target, headers and body.
type Seen = Arc<Mutex<Vec<(String, http::HeaderMap, Bytes)>>>;

/// An application that keeps what it is sent.
async fn keeping(text: &'static str) -> (Backend, Seen) {
    let seen = Seen::default();
    let keep = seen.clone();
    let app = Backend::http(move |request| {
        let keep = keep.clone();
        async move {
            let (head, body) = request.into_parts();
            let body = body.collect().await?.to_bytes();
            keep.lock().unwrap().push((head.uri.to_string(), head.headers, body));
            Ok(http::Response::new(full(text)))
        }
    });
    (app.await, seen)
}

/// A route of product with mirrors.
fn mirrored(mirrors: &[&str]) -> String {
    let filters: Vec<_> =
        mirrors.iter().map(|to| format!("{{ type: RequestMirror, requestMirror: {to} }}")).collect();
    let rule =
        format!("{{ filters: [{}], backendRefs: [{{ name: product, port: 8080 }}] }}", filters.join(", "));
    route("HTTPRoute", "product", &[&rule])
}

async fn count(what: &str, seen: &Seen, count: usize) {
    eventually(&format!("{count} copies at {what}"), PATIENCE, || async {
        (seen.lock().unwrap().len() == count).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_is_the_request_and_says_that_it_is_one() {
    let (product, original) = keeping("answer").await;
    let (shadow, copies) = keeping("ignored").await;
    let policy = mirrored(&["{ backendRef: { name: shadow, port: 8080 } }"]);
    let stage =
        Stage::set(&policy, [Instance::new("product", product), Instance::new("shadow", shadow)]).await;
    let request = Request::post("http://product:8080/orders?x=1").header("x-user", "ann");
    let answer = stage.client.call(request.body(full("one order")).unwrap()).await;
    assert_eq!(answer.text(), "answer");
    count("shadow", &copies, 1).await;
    let (original, copy) = (original.lock().unwrap()[0].clone(), copies.lock().unwrap()[0].clone());
    assert_eq!(copy.0, "/orders?x=1");
    assert_eq!(copy.2, "one order");
    assert_eq!(copy.1["weft-mirror"], "1");
    assert!(!original.1.contains_key("weft-mirror"), "{:?}", original.1);
    for name in ["host", "x-user"] {
        assert_eq!(copy.1[name], original.1[name], "{name}");
    }
    eventually("the copy is counted", PATIENCE, || async {
        let metrics = stage.caller.metrics().await;
        (metrics.sum("weft_mirrored_total", &["backend=\"shop/shadow\"", "result=\"ok\""]) == 1.0)
            .then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_mirrors_each_get_their_share() {
    let (product, originals) = keeping("answer").await;
    let (all, half, third) = (keeping("").await, keeping("").await, keeping("").await);
    let policy = mirrored(&[
        "{ backendRef: { name: all, port: 8080 } }",
        "{ backendRef: { name: half, port: 8080 }, percent: 50 }",
        "{ backendRef: { name: third, port: 8080 }, fraction: { numerator: 1, denominator: 3 } }",
    ]);
    let instances = [("product", product), ("all", all.0), ("half", half.0), ("third", third.0)];
    let stage = Stage::set(&policy, instances.map(|(name, app)| Instance::new(name, app))).await;
    for n in 0..400 {
        assert_eq!(stage.client.get(&format!("http://product:8080/{n}")).await.text(), "answer");
    }
    assert_eq!(originals.lock().unwrap().len(), 400);
    let seen = || [&all.1, &half.1, &third.1].map(|seen| seen.lock().unwrap().len());
    // Each copy is counted once it is through, however that went: a busy machine may have no time for some.
    let last = Mutex::new([0.0; 3]);
    let counted = eventually("every copy is through", PATIENCE, || async {
        let metrics = stage.caller.metrics().await;
        let counted = ["all", "half", "third"]
            .map(|name| metrics.sum("weft_mirrored_total", &[&format!("backend=\"shop/{name}\"")]));
        let same = std::mem::replace(&mut *last.lock().unwrap(), counted) == counted;
        tokio::time::sleep(Duration::from_millis(200)).await;
        (same && counted[0] == 400.0).then_some(counted)
    })
    .await;
    // Binomial with n = 400: five standard deviations.
    assert!((150.0..=250.0).contains(&counted[1]) && (86.0..=181.0).contains(&counted[2]), "{counted:?}");
    for (came, counted) in seen().into_iter().zip(counted) {
        assert!(came as f64 <= counted && came as f64 > counted / 2.0, "{:?} came of {counted}", seen());
    }
}

/// A body of so many chunks of 4 KiB, each different.
fn chunks(count: u8) -> (Body, Bytes) {
    let chunk = |n: u8| Bytes::from(vec![b'a' + n % 26; 4096]);
    let whole: Vec<u8> = (0..count).flat_map(chunk).collect();
    let frames = futures_util::stream::iter((0..count).map(move |n| Ok(Frame::data(chunk(n)))));
    (StreamBody::new(frames).boxed_unsync(), whole.into())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streamed_bodies_arrive_whole_at_every_mirror() {
    let (product, originals) = keeping("answer").await;
    let (one, two) = (keeping("").await, keeping("").await);
    let policy =
        mirrored(&["{ backendRef: { name: one, port: 8080 } }", "{ backendRef: { name: two, port: 8080 } }"]);
    let instances = [("product", product), ("one", one.0), ("two", two.0)];
    let stage = Stage::set(&policy, instances.map(|(name, app)| Instance::new(name, app))).await;
    for _ in 0..5 {
        let (body, whole) = chunks(48);
        let request = Request::post("http://product:8080/upload").body(body).unwrap();
        assert_eq!(stage.client.call(request).await.text(), "answer");
        for (name, seen) in [("product", &originals), ("one", &one.1), ("two", &two.1)] {
            count(name, seen, 1).await;
            let (_, _, body) = seen.lock().unwrap().remove(0);
            assert!(body == whole, "{} of {} bytes at {name}", body.len(), whole.len());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mirrors_that_hang_fail_or_are_not_there_are_nobodys_problem() {
    let (product, originals) = keeping("answer").await;
    let hanging = Backend::http(|_| async {
        tokio::time::sleep(Duration::from_secs(600)).await;
        Ok(http::Response::new(full("")))
    });
    let deaf = Backend::tcp(|stream| async move {
        // Reads nothing, says nothing.
        tokio::time::sleep(Duration::from_secs(600)).await;
        drop(stream);
    });
    let failing =
        Backend::http(|_| async { Ok(http::Response::builder().status(500).body(full("no")).unwrap()) });
    let breaking = Backend::tcp(|stream| async move { drop(stream) });
    let names = ["hanging", "deaf", "failing", "breaking", "absent"];
    let mirrors = names.map(|name| format!("{{ backendRef: {{ name: {name}, port: 8080 }} }}"));
    let policy = mirrored(&mirrors.each_ref().map(|mirror| &**mirror))
        + &weft_tests::mesh::serving("absent", 8080, "http");
    let instances = [
        Instance::new("product", product),
        Instance::new("hanging", hanging.await),
        Instance::new("deaf", deaf.await),
        Instance::new("failing", failing.await),
        Instance::new("breaking", breaking.await),
    ];
    let stage = Stage::set(&policy, instances).await;
    // More than a hundred: also when there is no room for copies any more.
    for n in 0..150 {
        // Larger than what waits for a mirror that does not read.
        let (body, whole) = chunks(if n % 10 == 0 { 250 } else { 1 });
        let request = Request::post("http://product:8080/").body(body).unwrap();
        let answer = stage.client.call(request).await;
        assert_eq!((answer.status.as_u16(), answer.text()), (200, "answer"), "call {n}");
        assert!(originals.lock().unwrap().pop().unwrap().2 == whole, "call {n}");
    }
    for backend in ["failing", "breaking", "absent"] {
        // All but large ones that it did not take in time: those that hang take no place of others.
        let labels = [format!("backend=\"shop/{backend}\""), "result=\"failed\"".to_owned()];
        eventually(&format!("copies for one that is {backend}"), PATIENCE, || async {
            let metrics = stage.caller.metrics().await;
            let failed = metrics.sum("weft_mirrored_total", &labels.each_ref().map(String::as_str));
            (failed > 75.0).then_some(())
        })
        .await;
    }
    let metrics = stage.caller.metrics().await;
    assert!(metrics.sum("weft_mirrored_total", &["result=\"dropped\""]) > 0.0, "{}", metrics.0);
    let requests = ["direction=\"outbound\"", "service=\"shop/product\"", "status=\"200\""];
    assert_eq!(
        metrics.sum("weft_requests_total", &requests),
        150.0,
        "copies are not requests: {}",
        metrics.0
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mirror_of_one_backend_copies_only_what_that_backend_gets() {
    let (old, old_seen) = keeping("old").await;
    let (new, new_seen) = keeping("new").await;
    let (shadow, copies) = keeping("").await;
    let rule = "{ backendRefs: [\
                  { name: old, port: 8080 }, \
                  { name: new, port: 8080, filters: [{ type: RequestMirror, requestMirror: { backendRef: { name: shadow, port: 8080 } } }] }] }";
    let policy = route("HTTPRoute", "product", &[rule]) + &weft_tests::mesh::serving("product", 8080, "http");
    let instances = [("old", old), ("new", new), ("shadow", shadow)];
    let stage = Stage::set(&policy, instances.map(|(name, app)| Instance::new(name, app))).await;
    for _ in 0..40 {
        stage.client.get("http://product:8080/").await;
    }
    let (old, new) = (old_seen.lock().unwrap().len(), new_seen.lock().unwrap().len());
    assert!(old > 0 && new > 0 && old + new == 40, "{old} {new}");
    count("shadow", &copies, new).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grpc_calls_are_copied_too() {
    let names = ["all", "half", "third", "one"];
    let (mut seen, mut instances) =
        (Vec::new(), vec![Instance::new("stock", grpc_app("stock").await).grpc()]);
    for name in names {
        let (app, copies) = keeping("").await;
        seen.push(copies);
        instances.push(Instance::new(name, app).grpc());
    }
    let mirror = |to: &str, more: &str| {
        format!(
            "{{ type: RequestMirror, requestMirror: {{ backendRef: {{ name: {to}, port: 50051 }}{more} }} }}"
        )
    };
    let rule = format!(
        "{{ filters: [{}, {}, {}], backendRefs: [{{ name: stock, port: 50051, filters: [{}] }}] }}",
        mirror("all", ""),
        mirror("half", ", percent: 50"),
        mirror("third", ", fraction: { numerator: 1, denominator: 3 }"),
        mirror("one", ""),
    );
    let stage = Stage::set(&route("GRPCRoute", "stock", &[&rule]), instances).await;
    for turn in 1..=60 {
        let answer = stage.client.call_http2(grpc("http://stock:50051/shop.Stock/Get", &[])).await;
        assert_eq!((grpc_status(&answer), answer.header("x-who")), ("0", "stock"));
        // One after the other, so that there is room for each.
        count("all", &seen[0], turn).await;
        count("the backend's own", &seen[3], turn).await;
    }
    let (half, third) = (seen[1].lock().unwrap().len(), seen[2].lock().unwrap().len());
    assert!((8..60).contains(&half) && (2..=38).contains(&third), "{half} {third}");
    let (target, headers, body) = seen[0].lock().unwrap()[0].clone();
    assert!(target.ends_with("/shop.Stock/Get"), "{target}");
    assert_eq!((headers["weft-mirror"].as_bytes(), body.len()), (&b"1"[..], 5));
}
