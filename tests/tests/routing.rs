//! Where calls go: every match and filter of routes, weights, timeouts, and what is said when they go nowhere.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use http::Request;
use http_body_util::BodyExt;
use std::time::{Duration, Instant};
use weft_tests::{
    Backend, Beside, Client, Mesh, PATIENCE, Process, empty, full,
    mesh::{calling, mesh_policy, serving},
    raw, soon,
};

const ROUTES: &str = "---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: { name: product, namespace: shop }
spec:
  parentRefs: [{ group: \"\", kind: Service, name: product, port: 8080 }]
  rules:
    - name: exact
      matches: [{ path: { type: Exact, value: /exact } }]
      backendRefs: [{ name: v2, port: 8080 }]
    - name: prefix
      matches: [{ path: { type: PathPrefix, value: /prefix } }]
      backendRefs: [{ name: v2, port: 8080 }]
    - name: regex
      matches: [{ path: { type: RegularExpression, value: \"/items/[0-9]+\" } }]
      backendRefs: [{ name: v2, port: 8080 }]
    - name: header
      matches: [{ path: { type: PathPrefix, value: /match }, headers: [{ name: X-Group, value: testers }] }]
      backendRefs: [{ name: v2, port: 8080 }]
    - name: header-regex
      matches: [{ path: { type: PathPrefix, value: /match }, headers: [{ type: RegularExpression, name: x-agent, value: \"curl.*\" }] }]
      backendRefs: [{ name: v2, port: 8080 }]
    - name: query
      matches: [{ path: { type: PathPrefix, value: /match }, queryParams: [{ name: version, value: \"2\" }] }]
      backendRefs: [{ name: v2, port: 8080 }]
    - name: method
      matches: [{ path: { type: PathPrefix, value: /match }, method: DELETE }]
      backendRefs: [{ name: v2, port: 8080 }]
    - name: match
      matches: [{ path: { type: PathPrefix, value: /match } }]
      backendRefs: [{ name: v1, port: 8080 }]
    - name: weighted
      matches: [{ path: { type: PathPrefix, value: /weighted } }]
      backendRefs: [{ name: v1, port: 8080, weight: 90 }, { name: v2, port: 8080, weight: 10 }]
    - name: redirect
      matches: [{ path: { type: PathPrefix, value: /old } }]
      filters:
        - type: RequestRedirect
          requestRedirect:
            scheme: https
            hostname: shop.example
            port: 8443
            path: { type: ReplacePrefixMatch, replacePrefixMatch: /new }
            statusCode: 301
    - name: rewrite
      matches: [{ path: { type: PathPrefix, value: /rewritten } }]
      filters:
        - type: URLRewrite
          urlRewrite: { hostname: other.example, path: { type: ReplacePrefixMatch, replacePrefixMatch: /inner } }
      backendRefs: [{ name: v1, port: 8080 }]
    - name: headers
      matches: [{ path: { type: PathPrefix, value: /headers } }]
      filters:
        - type: RequestHeaderModifier
          requestHeaderModifier:
            set: [{ name: x-set, value: ours }]
            add: [{ name: x-added, value: more }]
            remove: [x-removed]
        - type: ResponseHeaderModifier
          responseHeaderModifier:
            set: [{ name: x-answer, value: changed }]
            remove: [x-secret]
      backendRefs: [{ name: v1, port: 8080 }]
    - name: slow
      matches: [{ path: { type: PathPrefix, value: /slow } }]
      backendRefs: [{ name: slow, port: 8080 }]
      timeouts: { request: 300ms }
    - name: slow-attempt
      matches: [{ path: { type: PathPrefix, value: /attempt } }]
      backendRefs: [{ name: slow, port: 8080 }]
      timeouts: { request: 5s, backendRequest: 200ms }
    - name: nowhere
      matches: [{ path: { type: PathPrefix, value: /nowhere } }]
      backendRefs: [{ name: empty, port: 8080 }]
";

struct Routed {
    _mesh: Mesh,
    _apps: Vec<Backend>,
    caller: Process,
    _served: Vec<Process>,
    client: Client,
}

/// A caller, `v1`, `v2` and `slow` with the routes of `product` in front of them.
async fn routed() -> Routed {
    let services: String =
        ["product", "v1", "v2", "slow", "empty"].map(|name| serving(name, 8080, "http")).concat();
    let policy = services + &calling("caller") + ROUTES + &mesh_policy("{ outbound: registryOnly }");
    let mesh = Mesh::start(&policy).await;
    let v1 = Backend::http(|request| async move {
        if request.uri().path() == "/headers" {
            let seen = |name: &str| {
                let all: Vec<_> =
                    request.headers().get_all(name).iter().map(|v| v.to_str().unwrap()).collect();
                all.join("+")
            };
            let text = format!("{} {} {}", seen("x-set"), seen("x-added"), seen("x-removed"));
            return Ok(http::Response::builder()
                .header("x-answer", "original")
                .header("x-secret", "yes")
                .body(full(text))?);
        }
        let host = request.headers().get("host").map_or("", |v| v.to_str().unwrap_or_default());
        Ok(http::Response::new(full(format!("v1 {} {host}", request.uri()))))
    })
    .await;
    let v2 = Backend::text("v2").await;
    let slow = Backend::http(|_| async {
        tokio::time::sleep(PATIENCE * 2).await;
        Ok(http::Response::new(full("at last")))
    })
    .await;
    let caller = mesh.sidecar(Beside::new("caller")).await;
    let mut served = Vec::new();
    for (name, app) in [("v1", &v1), ("v2", &v2), ("slow", &slow)] {
        served.push(mesh.sidecar(Beside::new(name).app(8080, app.address())).await);
        mesh.endpoints(name, 1).await;
    }
    let client = Client::new(caller.outbound());
    Routed { _mesh: mesh, _apps: vec![v1, v2, slow], caller, _served: served, client }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn routes_decide_by_path_header_query_and_method() {
    let Routed { client, .. } = &routed().await;
    let plain: [(&str, &str); 0] = [];
    for (path, headers, expected) in [
        ("/exact", &plain[..], "v2"),
        ("/prefix", &[], "v2"),
        ("/prefix/below?x=y", &[], "v2"),
        ("/items/42", &[], "v2"),
        ("/match", &[], "v1"),
        ("/match/below", &[("x-group", "testers")], "v2"),
        ("/match", &[("x-group", "others")], "v1"),
        ("/match", &[("x-agent", "curl/8")], "v2"),
        ("/match", &[("x-agent", "wget")], "v1"),
        ("/match?a=b&version=2", &[], "v2"),
        ("/match?version=22", &[], "v1"),
    ] {
        let answer = client.get_with(&format!("http://product:8080{path}"), headers).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        assert!(answer.text().starts_with(expected), "{path} {headers:?}: {}", answer.text());
    }
    let delete = Request::delete("http://product:8080/match").body(empty()).unwrap();
    assert_eq!(client.call(delete).await.text(), "v2");

    for path in ["/exact/more", "/prefixed", "/items/x", "/"] {
        let answer = client.get(&format!("http://product:8080{path}")).await;
        assert_eq!(answer.status, 404, "{path}");
        assert_eq!(answer.weft_error(), "no_route");
        assert!(answer.text().contains("weft routes"), "{}", answer.text());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_form_of_a_services_name_leads_to_it() {
    let Routed { client, .. } = &routed().await;
    for host in ["v2", "v2.shop", "V2.shop.svc", "v2.shop.svc.cluster.local"] {
        assert_eq!(client.get(&format!("http://{host}:8080/")).await.text(), "v2", "{host}");
    }
    let answer = client.get("http://v2:9999/").await;
    assert_eq!((answer.status.as_u16(), answer.weft_error()), (502, "unknown_service"));
    assert!(answer.text().contains("8080"), "says which ports there are: {}", answer.text());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn weights_split_calls_in_their_proportion() {
    let routed = &routed().await;
    let mut second = 0;
    for _ in 0..1000 {
        second += u32::from(routed.client.get("http://product:8080/weighted").await.text() == "v2");
    }
    // Binomial with n = 1,000 and p = 0.1: five standard deviations.
    assert!((53..=147).contains(&second), "{second} of 1,000 went to the backend with a tenth of the weight");
    let metrics = routed.caller.metrics().await;
    let labels = ["direction=\"outbound\"", "service=\"shop/product\"", "status=\"200\"", "tls=\"mtls\""];
    assert_eq!(metrics.sum("weft_requests_total", &labels), 1000.0, "{}", metrics.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn filters_redirect_rewrite_and_change_headers() {
    let Routed { client, .. } = &routed().await;
    let answer = client.get("http://product:8080/old/thing?q=1").await;
    assert_eq!(answer.status, 301);
    assert_eq!(answer.header("location"), "https://shop.example:8443/new/thing?q=1");

    let answer = client.get("http://product:8080/rewritten/thing?q=1").await;
    assert_eq!(answer.text(), "v1 /inner/thing?q=1 other.example");

    let headers = [("x-set", "theirs"), ("x-added", "one"), ("x-removed", "gone")];
    let answer = client.get_with("http://product:8080/headers", &headers).await;
    assert_eq!(answer.text(), "ours one+more ");
    assert_eq!(answer.header("x-answer"), "changed");
    assert_eq!(answer.header("x-secret"), "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn timeouts_of_a_route_end_in_504() {
    let Routed { client, caller, .. } = &routed().await;
    for path in ["/slow", "/attempt"] {
        let begun = Instant::now();
        let answer = client.get(&format!("http://product:8080{path}")).await;
        assert_eq!((answer.status.as_u16(), answer.weft_error()), (504, "timeout"), "{}", answer.text());
        assert!(begun.elapsed() >= Duration::from_millis(200), "{:?}", begun.elapsed());
    }
    let metrics = caller.metrics().await;
    assert_eq!(metrics.sum("weft_errors_total", &["kind=\"timeout\""]), 2.0);
    assert_eq!(metrics.sum("weft_requests_total", &["status=\"504\""]), 2.0, "{}", metrics.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_that_lead_nowhere_say_why() {
    let Routed { client, caller, .. } = &routed().await;
    let answer = client.get("http://product:8080/nowhere").await;
    assert_eq!((answer.status.as_u16(), answer.weft_error()), (503, "no_endpoint"));
    let answer = client.get("http://nosuch:8080/").await;
    assert_eq!((answer.status.as_u16(), answer.weft_error()), (502, "unknown_service"));
    assert!(answer.text().starts_with("weft: unknown_service: ") && answer.text().ends_with('\n'));
    assert_eq!(answer.text().lines().count(), 1);
    let answer = client.get("http://www.example.com/").await;
    assert_eq!((answer.status.as_u16(), answer.weft_error()), (502, "unknown_service"), "registryOnly");
    let metrics = caller.metrics().await;
    assert_eq!(metrics.sum("weft_errors_total", &["kind=\"unknown_service\""]), 2.0);
    assert_eq!(metrics.sum("weft_errors_total", &["kind=\"no_endpoint\""]), 1.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hosts_outside_of_the_mesh_are_reached_where_policy_lets_them() {
    let outside = Backend::text("outside").await;
    let mesh = Mesh::start(&calling("caller")).await;
    let caller = mesh.sidecar(Beside::new("caller")).await;
    let client = Client::new(caller.outbound());
    let url = format!("http://{}/", outside.address());
    assert_eq!(client.get(&url).await.text(), "outside");
    let own = client.get(&format!("http://{}/", caller.outbound())).await;
    assert_eq!(own.weft_error(), "bad_request", "a call to the sidecar itself would loop: {}", own.text());

    mesh.write("mesh.yaml", &mesh_policy("{ outbound: registryOnly }"));
    weft_tests::eventually("the call is refused", weft_tests::PATIENCE, || async {
        (client.get(&url).await.weft_error() == "unknown_service").then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grpc_callers_get_errors_as_trailers_only() {
    let Routed { client, .. } = &routed().await;
    for (uri, expected) in [
        ("http://product:8080/shop.None/Call", "12"),
        ("http://product:8080/nowhere/Call", "14"),
        ("http://nosuch:8080/shop.None/Call", "14"),
        ("http://product:8080/slow/Call", "4"),
    ] {
        let request = Request::post(uri)
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(full(&b"\0\0\0\0\0"[..]))
            .unwrap();
        let answer = client.call_http2(request).await;
        assert_eq!(answer.status, 200, "{uri}");
        assert_eq!(answer.header("grpc-status"), expected, "{uri}: {:?}", answer.headers);
        assert!(answer.header("grpc-message").starts_with("weft: "), "{uri}");
        assert!(answer.body.is_empty() && answer.trailers.is_empty(), "{uri}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grpc_streams_flow_both_ways_at_once() {
    let mesh = Mesh::start(&(serving("chat", 50051, "grpc") + &calling("caller"))).await;
    // Every message goes back as it comes; the status follows when the caller has ended.
    let app = Backend::http(|request| async move {
        let incoming = request.into_body();
        let frames = futures_util::stream::unfold(Some(incoming), |incoming| async move {
            let mut incoming = incoming?;
            let frame = match incoming.frame().await {
                Some(Ok(frame)) if frame.is_data() => return Some((Ok(frame), Some(incoming))),
                Some(Err(error)) => Err(error.into()),
                _ => {
                    let mut trailers = http::HeaderMap::new();
                    trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
                    Ok(hyper::body::Frame::trailers(trailers))
                }
            };
            Some((frame, None))
        });
        let body = http_body_util::StreamBody::new(frames).boxed_unsync();
        Ok(http::Response::builder().header("content-type", "application/grpc").body(body)?)
    })
    .await;
    let _chat = mesh.sidecar(Beside::new("chat").app(50051, app.address())).await;
    let caller = mesh.sidecar(Beside::new("caller")).await;
    mesh.endpoints("chat", 1).await;
    let (say, said) = spoken();
    let request = Request::post("http://chat:50051/chat.Chat/Talk")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(said)
        .unwrap();
    let mut connection = Client::new(caller.outbound()).http2().await.unwrap();
    let response =
        soon("headers before the caller has ended", connection.send_request(request)).await.unwrap();
    let mut answers = response.into_body();
    for turn in 0..20 {
        let message = format!("message {turn}");
        say.send(message.clone()).await.unwrap();
        let answer = soon("each answer before the next message", answers.frame()).await.unwrap().unwrap();
        assert_eq!(answer.into_data().unwrap(), message);
    }
    drop(say);
    let end = soon("the end", answers.frame()).await.unwrap().unwrap();
    assert_eq!(end.into_trailers().unwrap()["grpc-status"], "0");
}

/// A body whose frames are sent one by one.
fn spoken() -> (tokio::sync::mpsc::Sender<String>, weft_tests::Body) {
    let (sender, receiver) = tokio::sync::mpsc::channel::<String>(1);
    let frames = futures_util::stream::unfold(receiver, |mut receiver| async move {
        let text = receiver.recv().await?;
        Some((Ok(hyper::body::Frame::data(text.into())), receiver))
    });
    (sender, http_body_util::StreamBody::new(frames).boxed_unsync())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grpc_routes_choose_by_service_and_method_and_trailers_come_through() {
    let policy = [
        serving("inventory", 50051, "grpc"),
        serving("reserving", 50051, "grpc"),
        calling("caller"),
        "---
apiVersion: gateway.networking.k8s.io/v1
kind: GRPCRoute
metadata: { name: inventory, namespace: shop }
spec:
  parentRefs: [{ group: \"\", kind: Service, name: inventory }]
  rules:
    - name: reserve
      matches: [{ method: { service: shop.v1.Inventory, method: Reserve } }]
      backendRefs: [{ name: reserving, port: 50051 }]
    - name: rest
      backendRefs: [{ name: inventory, port: 50051 }]
"
        .to_owned(),
    ];
    let mesh = Mesh::start(&policy.concat()).await;
    let grpc = |status: &'static str| {
        Backend::http(move |request| async move {
            assert_eq!(request.version(), http::Version::HTTP_2, "a gRPC server speaks nothing else");
            let mut trailers = http::HeaderMap::new();
            trailers.insert("grpc-status", http::HeaderValue::from_static(status));
            let body = http_body_util::BodyExt::with_trailers(full(&b"\0\0\0\0\0"[..]), async move {
                Some(Ok(trailers))
            });
            let body = http_body_util::BodyExt::boxed_unsync(body);
            Ok(http::Response::builder().header("content-type", "application/grpc").body(body)?)
        })
    };
    let (stock, reserve) = (grpc("0").await, grpc("9").await);
    let _one = mesh.sidecar(Beside::new("inventory").app(50051, stock.address())).await;
    let _two = mesh.sidecar(Beside::new("reserving").app(50051, reserve.address())).await;
    let caller = mesh.sidecar(Beside::new("caller")).await;
    mesh.endpoints("inventory", 1).await;
    mesh.endpoints("reserving", 1).await;
    let client = Client::new(caller.outbound());
    for (method, expected) in [("Stock", "0"), ("Reserve", "9")] {
        let request = Request::post(format!("http://inventory:50051/shop.v1.Inventory/{method}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(full(&b"\0\0\0\0\0"[..]))
            .unwrap();
        let answer = client.call_http2(request).await;
        assert_eq!(answer.body.len(), 5, "{method}: {:?}", answer.headers);
        assert_eq!(answer.trailers.get("grpc-status").unwrap(), expected, "{method}");
    }
    let metrics = caller.metrics().await;
    assert_eq!(
        metrics.sum("weft_requests_total", &["direction=\"outbound\"", "grpc_status=\"9\""]),
        1.0,
        "{}",
        metrics.0
    );
    let (status, _) = raw::get(caller.addresses().admin, "/clusters").await;
    assert_eq!(status, 200);
}
