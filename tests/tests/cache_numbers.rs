//! What a sidecar tells of its response cache: metrics and the admin page count what callers see.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use http::{Method, Request, Response, StatusCode, header};
use serde_json::json;
use std::collections::BTreeMap;
use weft_tests::{
    Backend, empty, full,
    mesh::NAMESPACE,
    metrics::Metrics,
    operator::{post, purge_everywhere},
    stage::{Instance, Stage},
};

/// A CachePolicy for `product`.
fn policy(more: &str) -> String {
    format!(
        "---
apiVersion: weft.mesh/v1alpha1
kind: CachePolicy
metadata: {{ name: pages, namespace: {NAMESPACE} }}
spec:
  targetRefs: [{{ kind: Service, name: product }}]
{more}"
    )
}

/// An application whose paths say what their answers allow.
async fn origin() -> Backend {
    Backend::http(|request| async move {
        let mut response = Response::new(full("page"));
        let control = match request.uri().path() {
            "/private" => "private",
            "/confirmed" => "no-cache",
            "/stale" => "max-age=0, stale-while-revalidate=600",
            "/broken" => return Err("no answer".into()),
            _ => "max-age=600",
        };
        response.headers_mut().insert(header::CACHE_CONTROL, control.parse()?);
        if request.uri().path() == "/confirmed" {
            response.headers_mut().insert(header::ETAG, "\"1\"".parse()?);
            if request.headers().contains_key(header::IF_NONE_MATCH) {
                *response.status_mut() = StatusCode::NOT_MODIFIED;
                *response.body_mut() = empty();
            }
        }
        if request.uri().path() == "/cookie" {
            response.headers_mut().insert(header::SET_COOKIE, "a=b".parse()?);
        }
        Ok(response)
    })
    .await
}

async fn stage(more: &str) -> Stage {
    Stage::set(&policy(more), [Instance::new("product", origin().await)]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_request_is_counted_once_by_how_it_was_answered() {
    let stage = stage("").await;
    let get = async |path: &str, fields: &[(&str, &str)]| {
        stage.client.get_with(&format!("http://product:8080{path}"), fields).await
    };
    for path in
        ["/stale", "/stale", "/a", "/a", "/a", "/private", "/cookie", "/confirmed", "/confirmed", "/b"]
    {
        assert_eq!(get(path, &[]).await.status, 200, "{path}");
    }
    get("/a", &[("cache-control", "no-cache")]).await;
    get("/b", &[("if-match", "\"x\"")]).await;
    assert!(get("/broken", &[]).await.status.is_server_error());
    let change = Request::builder().method(Method::POST).uri("http://product:8080/c").body(empty()).unwrap();
    assert_eq!(stage.client.call(change).await.status, 200);

    let metrics = stage.caller.metrics().await;
    let count = |result: &str, reason: &str| {
        let labels = [
            "direction=\"outbound\"".to_owned(),
            format!("service=\"{NAMESPACE}/product\""),
            format!("result=\"{result}\""),
            format!("reason=\"{reason}\""),
        ];
        metrics.sum("weft_cache_requests_total", &labels.each_ref().map(String::as_str))
    };
    for (result, reason, expected) in [
        ("hit", "", 2.0),
        ("stale", "", 1.0),
        ("revalidated", "", 1.0),
        ("miss", "uri-miss", 7.0),
        ("miss", "request", 1.0),
        ("bypass", "precondition", 1.0),
        ("bypass", "method", 1.0),
    ] {
        assert_eq!(count(result, reason), expected, "{result} {reason}\n{}", metrics.0);
    }
    let all = metrics.sum("weft_requests_total", &["direction=\"outbound\""]);
    assert_eq!(metrics.sum("weft_cache_requests_total", &[]), all);
    for reason in ["private", "set-cookie"] {
        let reason = format!("reason=\"{reason}\"");
        assert_eq!(metrics.sum("weft_cache_not_stored_total", &[&reason]), 1.0, "{reason}");
    }
    let kept =
        |name: &str| metrics.sum(&format!("weft_cache_{name}"), &[&format!("policy=\"{NAMESPACE}/pages\"")]);
    assert_eq!(kept("entries"), 4.0, "a, b, confirmed, stale");
    assert!(kept("stored_total") >= 4.0 && kept("bytes") > 0.0 && kept("bytes") <= kept("limit_bytes"));
    assert_eq!((kept("filling_bytes"), kept("evicted_total"), kept("purged_total")), (0.0, 0.0, 0.0));

    let page = stage.caller.admin("/cache").await;
    let route = &page["routes"][0];
    for (name, expected) in
        [("requests", 14), ("hit", 2), ("stale", 1), ("revalidated", 1), ("miss", 8), ("bypass", 2)]
    {
        assert_eq!(route[name], expected, "{name} in {page:#}");
    }
    assert_eq!(route["hit_ratio"], 0.3333);
    assert_eq!(page["policies"][0]["entries"], 4);
    let top = page["top"].as_array().unwrap();
    assert!(top.iter().any(|row| row["uri"] == "http://product:8080/a"), "{page:#}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_the_service_is_served_its_own_sidecar_counts_and_hides_what_may_be_a_credential() {
    let stage =
        stage("  where: inbound\n  key: { headers: [authorization], cookies: [seat], identity: true }\n")
            .await;
    let fields = [("authorization", "Bearer 4711"), ("cookie", "seat=4711"), ("x-forwarded-host", "shown")];
    for _ in 0..3 {
        let answer = stage.client.get_with("http://product:8080/a?token=4711&page=2", &fields).await;
        assert_eq!(answer.status, 200);
    }
    let process = stage.beside("product");
    let metrics = process.metrics().await;
    let labels = ["direction=\"inbound\"", "result=\"hit\""];
    assert_eq!(metrics.sum("weft_cache_requests_total", &labels), 2.0, "{}", metrics.0);
    assert_eq!(stage.caller.metrics().await.sum("weft_cache_requests_total", &[]), 0.0);
    let page = process.admin("/cache").await;
    let row = &page["top"][0];
    assert_eq!(
        (&row["hits"], &row["uri"]),
        (&2.into(), &"http://product:8080/a?token=(hidden)&page=2".into())
    );
    let parts = row["parts"].to_string();
    for part in ["authorization=(hidden)", "seat=(hidden)", "x-forwarded-host=shown", "caller spiffe://"] {
        assert!(parts.contains(part), "{part} in {parts}");
    }
    assert!(!page.to_string().contains("4711"), "{page:#}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_that_is_gone_for_a_moment_loses_nothing_and_counts_on() {
    let stage = Stage::set("", [Instance::new("product", origin().await)]).await;
    let get = async || stage.client.get("http://product:8080/a").await.header("cache-status").to_owned();
    let stored = async || stage.caller.metrics().await.sum("weft_cache_stored_total", &[]);
    let in_force = async || stage.caller.admin("/cache").await["policies"][0]["in_force"].clone();
    stage.change("cache.yaml", &policy("")).await;
    assert!(get().await.contains("stored"));
    assert_eq!((stored().await, in_force().await), (1.0, true.into()));
    stage.change("cache.yaml", &policy("  enabled: false\n")).await;
    assert_eq!(get().await, "", "nothing is said where nothing is cached");
    assert_eq!((stored().await, in_force().await), (1.0, false.into()));
    stage.change("cache.yaml", &policy("")).await;
    assert!(get().await.contains("hit"));
    assert_eq!((stored().await, in_force().await), (1.0, true.into()));
}

/// The families with their types that a section of the documents has a row for.
fn documented(from: &str, to: &str) -> BTreeMap<&'static str, &'static str> {
    let (_, section) = include_str!("../../docs/telemetry.md").split_once(from).expect("a section");
    let section = section.split(to).next().unwrap();
    let rows = section.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` | "));
    rows.filter_map(|(name, rest)| Some((name, rest.split_once(" | ")?.0))).collect()
}

fn families(scrape: &Metrics) -> BTreeMap<&str, &str> {
    scrape.0.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' ')).collect()
}

/// That every row is a family is for each program's own tests, in which all families have samples.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_family_of_a_mesh_that_runs_is_documented() {
    let sidecars = documented("\n## Metrics\n", "\n### ");
    let control_planes = documented("\n### The control plane's\n", "\n## ");
    let stage = stage("  where: both\n").await;
    for path in ["/a", "/a", "/private", "/broken"] {
        stage.client.get(&format!("http://product:8080{path}")).await;
    }
    assert_eq!(purge_everywhere(&stage.mesh, &json!({ "url": "http://product:8080/a" })).await, 2);
    let (status, said) = post(&stage.mesh, "", "{}").await;
    assert_eq!(status, 401, "{said}");

    let scrape = stage.mesh.control_plane_metrics().await;
    for (family, kind) in families(&scrape) {
        assert_eq!(control_planes.get(family), Some(&kind), "{family}");
    }
    let of = |name: &str, labels: &[&str]| {
        let name = format!("weft_control_plane_cache_{name}");
        assert!(scrape.0.contains(&name), "{name} is not there");
        scrape.sum(&name, labels)
    };
    assert_eq!(of("purges_total", &["result=\"complete\""]), 1.0);
    assert_eq!(of("purges_total", &["result=\"refused\""]), 1.0);
    assert_eq!(of("purged_answers_total", &[]), 2.0);
    assert_eq!(of("purge_seconds_count", &[]), 1.0);
    assert_eq!(of("purges_sent_total", &[]), 8.0, "two sidecars, four rounds");
    assert_eq!(of("purges_missed_total", &[]), 0.0);
    let purges = control_planes.keys().filter(|name| name.contains("_cache_"));
    assert_eq!(purges.count(), 5, "all of them were looked at");

    for process in [&stage.caller, stage.beside("product")] {
        for (family, kind) in families(&process.metrics().await) {
            assert_eq!(sidecars.get(family), Some(&kind), "{family}");
        }
    }
}
