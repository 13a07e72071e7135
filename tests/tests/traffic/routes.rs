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
        format!(
            "{{ name: path-{n}, matches: [{{ path: {{ value: /v{n} }} }}], {rewrite}, backendRefs: [{{ name: v{n}, port: 8080 }}] }}"
        )
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
        assert_eq!(
            (answer["who"].as_str(), answer["target"].as_str()),
            (Some(expected), Some(target)),
            "{path}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn filters_of_one_backend_are_for_its_requests_alone() {
    let modify = |who: &str| {
        format!(
            "{{ name: {who}, port: 8080, filters: [\
               {{ type: RequestHeaderModifier, requestHeaderModifier: {{ set: [{{ name: x-for, value: {who} }}], add: [{{ name: x-path, value: {who} }}], remove: [x-gone-{who}] }} }}, \
               {{ type: URLRewrite, urlRewrite: {{ hostname: {who}.example, path: {{ type: ReplaceFullPath, replaceFullPath: /{who} }} }} }}, \
               {{ type: ResponseHeaderModifier, responseHeaderModifier: {{ set: [{{ name: server, value: {who} }}], add: [{{ name: x-by, value: {who} }}], remove: [date] }} }}] }}"
        )
    };
    let rule = format!("{{ backendRefs: [{}, {}] }}", modify("v1"), modify("v2"));
    let stage = versions(&[&rule]).await;
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..40 {
        let sent = [("x-for", "all"), ("x-path", "caller"), ("x-gone-v1", "1"), ("x-gone-v2", "2")];
        let answer = stage.client.get_with(&format!("{URL}anything"), &sent).await;
        let told = answer.json();
        let who = told["who"].as_str().unwrap();
        let other = if who == "v1" { "v2" } else { "v1" };
        assert_eq!(["server", "x-by", "date"].map(|name| answer.header(name)), [who, who, ""]);
        assert_eq!(told["target"], format!("/{who}"));
        let headers = &told["headers"];
        assert_eq!((&headers["x-for"], &headers["host"]), (&who.into(), &format!("{who}.example").into()));
        assert!(headers["x-path"].as_str().unwrap().ends_with(who), "{headers}");
        assert!(
            headers.get(format!("x-gone-{who}")).is_none()
                && headers.get(format!("x-gone-{other}")).is_some()
        );
        seen.insert(who.to_owned());
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
    assert_eq!(
        (redirect.status.as_u16(), redirect.header("location")),
        (302, "http://product:8080/here?q=1")
    );
    let told = stage.client.get(&format!("{URL}inner/most?q=1")).await.json();
    assert_eq!(told["target"], "/outer?q=1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backend_or_filter_that_cannot_be_served_answers_500_for_its_share() {
    let stage = versions(&[
        "{ matches: [{ path: { value: /bucket } }], backendRefs: [{ group: storage.example, kind: Bucket, name: files }] }",
        "{ matches: [{ path: { value: /filter } }], filters: [{ type: ExtensionRef, extensionRef: { group: example.com, kind: Magic, name: wand } }], backendRefs: [{ name: v1, port: 8080 }] }",
        "{ matches: [{ path: { value: /backend } }], backendRefs: [{ name: v1, port: 8080, filters: [{ type: ExtensionRef, extensionRef: { group: example.com, kind: Magic, name: wand } }] }] }",
        "{ matches: [{ path: { value: /none } }] }",
        "{ matches: [{ path: { value: /zero } }], backendRefs: [{ name: v1, port: 8080, weight: 0 }] }",
        "{ matches: [{ path: { value: /half } }], backendRefs: [{ name: v1, port: 8080 }, { kind: Bucket, group: storage.example, name: files }] }",
        TO_V1,
    ])
    .await;
    for path in ["bucket", "filter", "backend", "none", "zero"] {
        let answer = stage.client.get(&format!("{URL}{path}")).await;
        assert_eq!(
            (answer.status.as_u16(), answer.weft_error()),
            (500, "invalid_backend"),
            "{path}: {}",
            answer.text()
        );
    }
    let mut statuses = std::collections::BTreeMap::<u16, u32>::new();
    for _ in 0..100 {
        *statuses.entry(stage.client.get(&format!("{URL}half")).await.status.as_u16()).or_default() += 1;
    }
    assert!(statuses[&200] > 20 && statuses[&500] > 20 && statuses.len() == 2, "{statuses:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grpc_filters_change_metadata_of_all_calls_or_of_one_backends() {
    let rule = "{ filters: [\
        { type: RequestHeaderModifier, requestHeaderModifier: { set: [{ name: x-a, value: rule }], add: [{ name: x-b, value: rule }], remove: [x-c] } }, \
        { type: ResponseHeaderModifier, responseHeaderModifier: { set: [{ name: x-rule, value: set }], add: [{ name: x-who, value: rule }], remove: [x-extra] } }], \
      backendRefs: [{ name: stock, port: 50051, filters: [\
        { type: RequestHeaderModifier, requestHeaderModifier: { set: [{ name: x-d, value: backend }], add: [{ name: x-e, value: backend }], remove: [x-f] } }, \
        { type: ResponseHeaderModifier, responseHeaderModifier: { set: [{ name: x-backend, value: set }], add: [{ name: x-rule, value: overridden }], remove: [x-who] } }] }] }";
    let stock = Instance::new("stock", grpc_app("stock").await).grpc();
    let stage = Stage::set(&route("GRPCRoute", "stock", &[rule]), [stock]).await;
    let own = ["x-a", "x-b", "x-c", "x-d", "x-e", "x-f"].map(|name| (name, "own"));
    let answer = stage.client.call_http2(grpc("http://stock:50051/shop.Stock/Get", &own)).await;
    assert_eq!(grpc_status(&answer), "0");
    assert_eq!(answer.header("x-told"), "x-a=rule x-b=own x-b=rule x-d=backend x-e=backend x-e=own");
    let fields = ["x-rule", "x-backend", "x-who", "x-extra"].map(|name| answer.header(name));
    assert_eq!(fields, ["set", "set", "rule", ""], "the backend's first, then the rule's");
    assert_eq!(answer.headers.get_all("x-rule").iter().count(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grpc_routes_match_by_regular_expression_and_metadata_and_have_filters_and_weights() {
    let rules = [
        "{ name: regex, matches: [{ method: { type: RegularExpression, service: \"shop\\\\.v[0-9]+\\\\..*\", method: \"Get.*\" } }], backendRefs: [{ name: regex, port: 50051 }] }",
        "{ name: metadata, matches: [{ method: { service: shop.Stock }, headers: [{ name: x-group, value: testers }, { name: x-age, type: RegularExpression, value: \"[0-9]+\" }] }], \
            filters: [{ type: ResponseHeaderModifier, responseHeaderModifier: { set: [{ name: x-answer, value: changed }] } }], \
            backendRefs: [{ name: metadata, port: 50051, weight: 1, \
                filters: [{ type: ResponseHeaderModifier, responseHeaderModifier: { set: [{ name: x-backend, value: its-own }] } }] }, \
              { name: regex, port: 50051, weight: 0 }] }",
        "{ name: method, matches: [{ method: { method: Delete } }], backendRefs: [{ name: regex, port: 50051 }] }",
        "{ name: lost, matches: [{ method: { service: shop.Lost } }] }",
        "{ name: magic, matches: [{ method: { service: shop.Magic } }], filters: [{ type: ExtensionRef, extensionRef: { group: example.com, kind: Magic, name: wand } }], backendRefs: [{ name: regex, port: 50051 }] }",
        "{ name: bucket, matches: [{ method: { service: shop.Bucket } }], backendRefs: [{ group: storage.example, kind: Bucket, name: files }] }",
        "{ name: backend, matches: [{ method: { service: shop.Wand } }], backendRefs: [{ name: regex, port: 50051, filters: [{ type: ExtensionRef, extensionRef: { group: example.com, kind: Magic, name: wand } }] }] }",
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
        ("shop.Stock/Get", &[("x-group", "testers")], "stock"),
        ("shop.Stock/Get", &[("x-group", "testers"), ("x-age", "42")], "metadata"),
        ("any.Other/Delete", &[], "regex"),
    ] {
        let answer = stage.client.call_http2(grpc(&format!("http://stock:50051/{method}"), headers)).await;
        assert_eq!((grpc_status(&answer), answer.header("x-who")), ("0", expected), "{method}");
        let changed = [answer.header("x-answer"), answer.header("x-backend")];
        assert_eq!(changed, if expected == "metadata" { ["changed", "its-own"] } else { ["", ""] });
    }
    for (method, expected) in [
        ("shop.Lost/Get", "14"),
        ("shop.Magic/Get", "14"),
        ("shop.Bucket/Get", "14"),
        ("shop.Wand/Get", "14"),
        ("shop.v1.Stock/Put", "12"),
    ] {
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
  parentRefs: [{ group: \"\", kind: Service, name: double, sectionName: extra }, { group: core, kind: Service, name: product, port: 8080 }, { name: edge }]
  hostnames: [ignored.example]
  rules: [{ backendRefs: [{ name: v2, port: 8080 }] }]
";
    let policy = serving("product", 8080, "http") + document;
    let instances = [
        Instance::new("v1", Backend::echo("v1").await).also(8081),
        Instance::new("v2", Backend::echo("v2").await),
    ];
    let stage = Stage::set(&policy, instances).await;
    assert_eq!(who(&stage.client, "http://double:8081/", &[]).await, "v2");
    assert_eq!(who(&stage.client, "http://product:8080/", &[]).await, "v2");
    assert_eq!(
        who(&stage.client, "http://double:8080/", &[]).await,
        "v1",
        "a port without a route is itself"
    );
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
    let name =
        "{ name: named, matches: [{ path: { value: /named } }], backendRefs: [{ name: v1, port: 8080 }] }";
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
        async move {
            Ok(http::Response::builder().status(if turn % 4 == 3 { 200 } else { 521 }).body(full("done"))?)
        }
    });
    let rule = |attempts: u32| {
        let retry = format!("retry: {{ codes: [521], attempts: {attempts}, backoff: 60ms }}");
        route(
            "HTTPRoute",
            "product",
            &[&format!("{{ {retry}, backendRefs: [{{ name: product, port: 8080 }}] }}")],
        )
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_can_name_a_rule_of_a_grpc_route() {
    let rules = [
        "{ name: get, matches: [{ method: { method: Get } }], backendRefs: [{ name: stock, port: 50051 }] }",
        "{ name: rest, backendRefs: [{ name: stock, port: 50051 }] }",
    ];
    let target = "{ kind: GRPCRoute, name: stock, sectionName: get }";
    let policy = traffic_policy("get", target, &["faults: [{ abort: { grpcStatus: ABORTED } }]"]);
    let stock = Instance::new("stock", grpc_app("stock").await).grpc();
    let stage = Stage::set(&(route("GRPCRoute", "stock", &rules) + &policy), [stock]).await;
    for (method, expected) in [("Get", "10"), ("Put", "0")] {
        let answer =
            stage.client.call_http2(grpc(&format!("http://stock:50051/shop.Stock/{method}"), &[])).await;
        assert_eq!(grpc_status(&answer), expected, "{method}");
    }
    let metrics = stage.caller.metrics().await;
    let labels = ["route=\"shop/stock#get\"", "grpc_status=\"10\""];
    assert_eq!(metrics.sum("weft_requests_total", &labels), 1.0, "{}", metrics.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_grpc_route_can_be_for_one_port_and_for_callers_of_its_own_namespace() {
    let documents = "---
apiVersion: v1
kind: Service
metadata: { name: double, namespace: shop }
spec:
  selector: { app: stock }
  ports: [{ name: main, port: 50051, appProtocol: grpc }, { name: extra, port: 50052, targetPort: 50051, appProtocol: grpc }]
---
apiVersion: gateway.networking.k8s.io/v1
kind: GRPCRoute
metadata: { name: extra, namespace: shop }
spec:
  parentRefs: [{ group: \"\", kind: Service, name: double, sectionName: extra }, { group: core, kind: Service, name: main, port: 50051 }, { name: edge }]
  hostnames: [ignored.example]
  rules: [{ backendRefs: [{ name: other, port: 50051 }] }]
---
apiVersion: gateway.networking.k8s.io/v1
kind: GRPCRoute
metadata: { name: mine, namespace: lab }
spec:
  parentRefs: [{ group: \"\", kind: Service, name: stock, namespace: shop }]
  rules: [{ backendRefs: [{ name: other, namespace: shop, port: 50051 }] }]
---
apiVersion: weft.mesh/v1alpha1
kind: Workload
metadata: { name: scientist, namespace: lab }
spec: { serviceAccount: scientist }
";
    let policy = serving("main", 50051, "grpc") + documents;
    let instances = [
        Instance::new("stock", grpc_app("stock").await).grpc().also(50052),
        Instance::new("other", grpc_app("other").await).grpc(),
    ];
    let stage = Stage::set(&policy, instances).await;
    let lab = stage.mesh.sidecar(weft_tests::Beside::new("scientist").namespace("lab")).await;
    let scientist = Client::new(lab.outbound());
    for (client, host, expected) in [
        (&stage.client, "double:50052", "other"),
        (&stage.client, "main:50051", "other"),
        (&stage.client, "double:50051", "stock"),
        (&stage.client, "stock:50051", "stock"),
        (&scientist, "stock.shop:50051", "other"),
    ] {
        let answer = client.call_http2(grpc(&format!("http://{host}/shop.Stock/Get"), &[])).await;
        assert_eq!((grpc_status(&answer), answer.header("x-who")), ("0", expected), "{host}");
    }
}
