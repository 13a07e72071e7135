//! Who gets which version: A/B by source, cookie and query; API versions by path and header; every other field of routes.

use crate::{URL, grpc, grpc_app, grpc_status};
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};
use weft_tests::{
    Backend, Client, full,
    mesh::{calling, serving},
    stage::{Instance, Stage, route, traffic_policy},
};

/// `product` in front of `v1` and `v2`.
async fn versions(rules: &[&str]) -> Stage {
    versions_with(rules, "").await
}

async fn versions_with(rules: &[&str], more: &str) -> Stage {
    let policy = serving("product", 8080, "http") + &route("HTTPRoute", "product", rules) + more;
    let instances =
        [Instance::new("v1", Backend::echo("v1").await), Instance::new("v2", Backend::echo("v2").await)];
    Stage::set(&policy, instances).await
}

const TO_V1: &str = "{ name: rest, backendRefs: [{ name: v1, port: 8080 }] }";

async fn who(client: &Client, url: &str, headers: &[(&str, &str)]) -> String {
    let answer = client.get_with(url, headers).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()["who"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_are_told_apart_by_service_account_and_namespace_and_cannot_pretend() {
    let rules = [
        "{ name: testers, matches: [{ headers: [{ name: weft-source-service-account, value: tester }, { name: weft-source-namespace, value: shop }] }], backendRefs: [{ name: v2, port: 8080 }] }",
        "{ name: jobs, matches: [{ headers: [{ name: weft-source-workload, type: RegularExpression, value: \"nightly-.*\" }] }], backendRefs: [{ name: v2, port: 8080 }] }",
        TO_V1,
    ];
    let stage = versions_with(&rules, &(calling("tester") + &calling("nightly-report"))).await;
    let (_tester, tester) = stage.another("tester").await;
    let (_job, job) = stage.another("nightly-report").await;
    assert_eq!(who(&tester, URL, &[]).await, "v2");
    assert_eq!(who(&job, URL, &[]).await, "v2");
    assert_eq!(who(&stage.client, URL, &[]).await, "v1");
    let forged = [("weft-source-service-account", "tester"), ("weft-source-namespace", "shop")];
    assert_eq!(who(&stage.client, URL, &forged).await, "v1", "it goes by who it is, not by what it says");
    let honest = [("weft-source-service-account", "somebody-else")];
    assert_eq!(who(&tester, URL, &honest).await, "v2");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn experiments_go_by_cookie_query_and_header() {
    let stage = versions(&[
        "{ name: cookie, matches: [{ headers: [{ name: cookie, type: RegularExpression, value: \"(.*; ?)?group=b(;.*)?\" }] }], backendRefs: [{ name: v2, port: 8080 }] }",
        "{ name: query, matches: [{ queryParams: [{ name: preview, type: RegularExpression, value: \"1|true|yes\" }] }], backendRefs: [{ name: v2, port: 8080 }] }",
        "{ name: header, matches: [{ headers: [{ name: x-beta, value: \"1\" }, { name: x-region, value: eu }] }], backendRefs: [{ name: v2, port: 8080 }] }",
        TO_V1,
    ])
    .await;
    let preview = &*format!("{URL}?a=b&preview=true");
    let no_preview = &*format!("{URL}?preview=trueish");
    for (url, headers, expected) in [
        (URL, &[("cookie", "id=7; group=b; theme=dark")][..], "v2"),
        (URL, &[("cookie", "group=b")], "v2"),
        (URL, &[("cookie", "group=bc")], "v1"),
        (URL, &[("cookie", "subgroup=b")], "v1"),
        (preview, &[], "v2"),
        (no_preview, &[], "v1"),
        (URL, &[("x-beta", "1"), ("x-region", "eu")], "v2"),
        (URL, &[("x-beta", "1")], "v1"),
        (URL, &[], "v1"),
    ] {
        assert_eq!(who(&stage.client, url, headers).await, expected, "{url} {headers:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn api_versions_go_by_path_prefix_and_by_header() {
    let rewrite = "filters: [{ type: URLRewrite, urlRewrite: { path: { type: ReplacePrefixMatch, replacePrefixMatch: / } } }]";
    let by_path = |n: u32| {
        format!("{{ name: path-{n}, matches: [{{ path: {{ value: /v{n} }} }}], {rewrite}, backendRefs: [{{ name: v{n}, port: 8080 }}] }}")
    };
    let by_header = "{ name: header-2, matches: [{ headers: [{ name: api-version, value: \"2\" }] }], backendRefs: [{ name: v2, port: 8080 }] }";
    let stage = versions(&[&by_path(1), &by_path(2), by_header, TO_V1]).await;
    for (path, headers, expected, target) in [
        ("v1/products?q=1", &[][..], "v1", "/products?q=1"),
        ("v2/products?q=1", &[], "v2", "/products?q=1"),
        ("v2", &[], "v2", "/"),
        ("v1/products", &[("api-version", "2")], "v1", "/products"),
        ("products", &[("api-version", "2")], "v2", "/products"),
        ("products", &[], "v1", "/products"),
        ("v22/products", &[], "v1", "/v22/products"),
    ] {
        let answer = stage.client.get_with(&format!("{URL}{path}"), headers).await.json();
        assert_eq!((answer["who"].as_str(), answer["target"].as_str()), (Some(expected), Some(target)), "{path}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn filters_of_one_backend_are_for_its_requests_alone() {
    let modify = |who: &str| {
        format!("{{ name: {who}, port: 8080, filters: [\
                    {{ type: RequestHeaderModifier, requestHeaderModifier: {{ set: [{{ name: x-for, value: {who} }}] }} }}, \
                    {{ type: ResponseHeaderModifier, responseHeaderModifier: {{ add: [{{ name: x-by, value: {who} }}] }} }}] }}")
    };
    let rule = format!("{{ backendRefs: [{}, {}] }}", modify("v1"), modify("v2"));
    let stage = versions(&[&rule]).await;
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..40 {
        let answer = stage.client.get(URL).await;
        let by = answer.header("x-by").to_owned();
        let told = answer.json();
        assert_eq!((&told["who"], &told["headers"]["x-for"]), (&by.clone().into(), &by.clone().into()));
        seen.insert(by);
    }
    assert_eq!(seen.len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redirects_and_rewrites_can_replace_the_whole_path_and_keep_the_rest() {
    let stage = versions(&[
        "{ matches: [{ path: { type: Exact, value: /gone } }], filters: [{ type: RequestRedirect, requestRedirect: { path: { type: ReplaceFullPath, replaceFullPath: /here } } }] }",
        "{ matches: [{ path: { value: /inner } }], filters: [{ type: URLRewrite, urlRewrite: { path: { type: ReplaceFullPath, replaceFullPath: /outer } } }], backendRefs: [{ name: v1, port: 8080 }] }",
        TO_V1,
    ])
    .await;
    let redirect = stage.client.get(&format!("{URL}gone?q=1")).await;
    assert_eq!((redirect.status.as_u16(), redirect.header("location")), (302, "http://product:8080/here?q=1"));
    let told = stage.client.get(&format!("{URL}inner/most?q=1")).await.json();
    assert_eq!(told["target"], "/outer?q=1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backend_or_filter_that_cannot_be_served_answers_500_for_its_share() {
    let stage = versions(&[
        "{ matches: [{ path: { value: /bucket } }], backendRefs: [{ group: storage.example, kind: Bucket, name: files }] }",
        "{ matches: [{ path: { value: /filter } }], filters: [{ type: ExtensionRef, extensionRef: { group: example.com, kind: Magic, name: wand } }], backendRefs: [{ name: v1, port: 8080 }] }",
        "{ matches: [{ path: { value: /none } }] }",
        "{ matches: [{ path: { value: /zero } }], backendRefs: [{ name: v1, port: 8080, weight: 0 }] }",
        "{ matches: [{ path: { value: /half } }], backendRefs: [{ name: v1, port: 8080 }, { kind: Bucket, group: storage.example, name: files }] }",
        TO_V1,
    ])
    .await;
    for path in ["bucket", "filter", "none", "zero"] {
        let answer = stage.client.get(&format!("{URL}{path}")).await;
        assert_eq!((answer.status.as_u16(), answer.weft_error()), (500, "invalid_backend"), "{path}: {}", answer.text());
    }
    let mut statuses = std::collections::BTreeMap::<u16, u32>::new();
    for _ in 0..100 {
        *statuses.entry(stage.client.get(&format!("{URL}half")).await.status.as_u16()).or_default() += 1;
    }
    assert!(statuses[&200] > 20 && statuses[&500] > 20 && statuses.len() == 2, "{statuses:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grpc_routes_match_by_regular_expression_and_metadata_and_have_filters_and_weights() {
    let rules = [
        "{ name: regex, matches: [{ method: { type: RegularExpression, service: \"shop\\\\.v[0-9]+\\\\..*\", method: \"Get.*\" } }], backendRefs: [{ name: regex, port: 50051 }] }",
        "{ name: metadata, matches: [{ method: { service: shop.Stock }, headers: [{ name: x-group, value: testers }] }], \
            filters: [{ type: ResponseHeaderModifier, responseHeaderModifier: { set: [{ name: x-answer, value: changed }] } }], \
            backendRefs: [{ name: metadata, port: 50051, weight: 1, \
                filters: [{ type: ResponseHeaderModifier, responseHeaderModifier: { set: [{ name: x-backend, value: its-own }] } }] }, \
              { name: regex, port: 50051, weight: 0 }] }",
        "{ name: method, matches: [{ method: { method: Delete } }], backendRefs: [{ name: regex, port: 50051 }] }",
        "{ name: lost, matches: [{ method: { service: shop.Lost } }] }",
        "{ name: magic, matches: [{ method: { service: shop.Magic } }], filters: [{ type: ExtensionRef, extensionRef: { group: example.com, kind: Magic, name: wand } }], backendRefs: [{ name: regex, port: 50051 }] }",
        "{ name: rest, matches: [{ method: { service: shop.Stock } }], backendRefs: [{ name: stock, port: 50051 }] }",
    ];
    let mut instances = Vec::new();
    for name in ["stock", "regex", "metadata"] {
        instances.push(Instance::new(name, grpc_app(name).await).grpc());
    }
    let stage = Stage::set(&route("GRPCRoute", "stock", &rules), instances).await;
    for (method, headers, expected) in [
        ("shop.v12.Stock/GetAll", &[][..], "regex"),
        ("shop.Stock/Get", &[], "stock"),
        ("shop.Stock/Get", &[("x-group", "testers")], "metadata"),
        ("any.Other/Delete", &[], "regex"),
    ] {
        let answer = stage.client.call_http2(grpc(&format!("http://stock:50051/{method}"), headers)).await;
        assert_eq!((grpc_status(&answer), answer.header("x-who")), ("0", expected), "{method}");
        let changed = [answer.header("x-answer"), answer.header("x-backend")];
        assert_eq!(changed, if expected == "metadata" { ["changed", "its-own"] } else { ["", ""] });
    }
    for (method, expected) in [("shop.Lost/Get", "14"), ("shop.Magic/Get", "14"), ("shop.v1.Stock/Put", "12")] {
        let answer = stage.client.call_http2(grpc(&format!("http://stock:50051/{method}"), &[])).await;
        assert_eq!(grpc_status(&answer), expected, "{method}: {:?}", answer.headers);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_route_can_be_for_one_port_by_number_or_name_and_for_several_services() {
    let document = "---
apiVersion: v1
kind: Service
metadata: { name: double, namespace: shop }
spec:
  selector: { app: v1 }
  ports: [{ name: main, port: 8080, appProtocol: http }, { name: extra, port: 8081, targetPort: 8080, appProtocol: http }]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: { name: extra, namespace: shop }
spec:
  parentRefs: [{ group: \"\", kind: Service, name: double, sectionName: extra }, { group: core, kind: Service, name: product, port: 8080 }]
  hostnames: [ignored.example]
  rules: [{ backendRefs: [{ name: v2, port: 8080 }] }]
";
    let policy = serving("product", 8080, "http") + document;
    let instances =
        [Instance::new("v1", Backend::echo("v1").await), Instance::new("v2", Backend::echo("v2").await)];
    let stage = Stage::set(&policy, instances).await;
    assert_eq!(who(&stage.client, "http://double:8081/", &[]).await, "v2");
    assert_eq!(who(&stage.client, "http://product:8080/", &[]).await, "v2");
    assert_eq!(who(&stage.client, "http://double:8080/", &[]).await, "v1", "a port without a route is itself");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_of_another_namespace_can_have_routes_of_its_own() {
    let own = "---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: { name: mine, namespace: lab }
spec:
  parentRefs: [{ group: \"\", kind: Service, name: product, namespace: shop }]
  rules: [{ backendRefs: [{ name: v2, namespace: shop, port: 8080 }] }]
---
apiVersion: weft.mesh/v1alpha1
kind: Workload
metadata: { name: scientist, namespace: lab }
spec: { serviceAccount: scientist }
";
    let stage = versions_with(&[TO_V1], own).await;
    let scientist = stage.mesh.sidecar(weft_tests::Beside::new("scientist").namespace("lab")).await;
    let client = Client::new(scientist.outbound());
    assert_eq!(who(&client, "http://product.shop:8080/", &[]).await, "v2");
    assert_eq!(who(&stage.client, URL, &[]).await, "v1", "the service's own callers do not notice");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_can_name_a_rule_and_so_can_metrics() {
    let name = "{ name: named, matches: [{ path: { value: /named } }], backendRefs: [{ name: v1, port: 8080 }] }";
    let target = "{ kind: HTTPRoute, name: product, sectionName: named }";
    let policy = traffic_policy("named", target, &["faults: [{ abort: { status: 418 } }]"]);
    let stage = versions_with(&[name, TO_V1], &policy).await;
    assert_eq!(stage.client.get(&format!("{URL}named")).await.status, 418);
    assert_eq!(stage.client.get(URL).await.status, 200);
    let metrics = stage.caller.metrics().await;
    let labels = ["route=\"shop/product#named\"", "status=\"418\""];
    assert_eq!(metrics.sum("weft_requests_total", &labels), 1.0, "{}", metrics.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rules_retry_says_which_codes_how_often_and_how_long_to_wait_at_least() {
    let came = Arc::new(AtomicUsize::new(0));
    let counter = came.clone();
    let app = Backend::http(move |_| {
        let turn = counter.fetch_add(1, SeqCst);
        async move { Ok(http::Response::builder().status(if turn % 4 == 3 { 200 } else { 521 }).body(full("done"))?) }
    });
    let rule = |attempts: u32| {
        let retry = format!("retry: {{ codes: [521], attempts: {attempts}, backoff: 60ms }}");
        route("HTTPRoute", "product", &[&format!("{{ {retry}, backendRefs: [{{ name: product, port: 8080 }}] }}")])
    };
    let stage = Stage::set("", [Instance::new("product", app.await)]).await;
    stage.change("route.yaml", &rule(3)).await;
    let begun = Instant::now();
    assert_eq!(stage.client.get(URL).await.status, 200);
    assert!(begun.elapsed() >= Duration::from_millis(180), "three waits: {:?}", begun.elapsed());
    assert_eq!(came.load(SeqCst), 4);
    stage.change("route.yaml", &rule(1)).await;
    assert_eq!(stage.client.get(URL).await.status, 521);
    assert_eq!(came.load(SeqCst), 6);
}
