//! What one client sends never changes what another one gets, and no two resources are taken for one.

use crate::stage::{Set, answer, caching, is_hit, is_kept, request, said};
use http::Request;
use weft_tests::{full, raw, scripted::Asked};

/// Fields that frameworks make links, redirects and routes of.
const TRUSTED: [(&str, &str); 12] = [
    ("x-forwarded-host", "evil"),
    ("x-forwarded-proto", "https"),
    ("x-forwarded-scheme", "nothttps"),
    ("x-forwarded-port", "666"),
    ("x-forwarded-prefix", "/evil"),
    ("x-forwarded-server", "evil"),
    ("x-host", "evil"),
    ("x-original-url", "/evil"),
    ("x-rewrite-url", "/evil"),
    ("x-original-host", "evil"),
    ("x-http-host-override", "evil"),
    ("forwarded", "for=1.2.3.4;host=evil"),
];

/// A careless application, which makes its page of whatever it is told and does not say so.
fn careless(asked: &Asked) -> http::Response<weft_tests::Body> {
    let mut page = format!("{} {} host={}", asked.method, asked.target, asked.header("host"));
    for name in TRUSTED.iter().map(|(name, _)| *name).chain(["x-http-method-override", "x-method-override"]) {
        if !asked.header(name).is_empty() {
            page.push_str(&format!(" {name}={}", asked.header(name)));
        }
    }
    if !asked.body.is_empty() {
        page.push_str(&format!(" body={}", String::from_utf8_lossy(&asked.body)));
    }
    answer(&[("cache-control", "public, max-age=60")], page)
}

const CLEAN: &str = "GET /page host=product:8080";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_client_says_of_host_scheme_and_path_is_for_that_client_alone() {
    for place in ["outbound", "inbound"] {
        let set = Set::at_once(&caching(&[&format!("where: {place}")]), careless).await;
        for field in TRUSTED {
            set.get("/page", &[field]).await;
            let page = set.get("/page", &[]).await;
            assert!(
                !page.text().contains("evil") && !page.text().contains(field.0),
                "{field:?}: {}",
                page.text()
            );
            let other = set.get("/page", &[(field.0, "good")]).await;
            assert!(!other.text().contains("evil"), "{field:?}: {}", other.text());
        }
        let kept = set
            .get(
                "/page",
                &[("x-forwarded-for", "1.2.3.4"), ("user-agent", "x"), ("forwarded", "for=5.6.7.8")],
            )
            .await;
        assert!(said(&kept).contains("; hit"), "who the client is makes no other page: {:?}", kept.headers);
        assert_eq!(kept.text(), CLEAN);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_wants_to_be_taken_for_another_method_passes_by() {
    let set = Set::at_once(&caching(&[]), careless).await;
    for name in ["x-http-method-override", "x-method-override", "x-http-method"] {
        for _ in 0..2 {
            let answer = set.get("/page", &[(name, "DELETE")]).await;
            assert!(said(&answer).contains("fwd=bypass; detail=method-override"), "{}", said(&answer));
        }
    }
    let page = set.get("/page", &[]).await;
    is_kept(&page, "uri-miss");
    assert_eq!(page.text(), CLEAN);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_get_with_a_body_neither_takes_nor_leaves_anything() {
    let set = Set::at_once(&caching(&[]), careless).await;
    let fat = || {
        let request = Request::get(format!("{}/page", crate::stage::URL)).body(full("evil")).unwrap();
        set.client().call(request)
    };
    let first = fat().await;
    assert!(said(&first).contains("fwd=bypass; detail=fat-get"), "{}", said(&first));
    assert_eq!(first.text(), format!("{CLEAN} body=evil"));
    assert_eq!(set.get("/page", &[]).await.text(), CLEAN);
    assert_eq!(fat().await.text(), format!("{CLEAN} body=evil"), "nor is it given what is kept");
    is_hit(&set.get("/page", &[]).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_resource_has_one_answer_however_it_is_written() {
    let set = Set::at_once(&caching(&[]), careless).await;
    let page = set.get("/page?a=A&b=%2F", &[]).await;
    for path in [
        "/x/../page?a=A&b=%2F",
        "/./page?a=A&b=%2F",
        "//page?a=A&b=%2F",
        "/%70%61ge?a=%41&b=%2f",
        "/x/%2e%2E/page?%61=A&b=%2F",
        "/../../page?a=A&b=%2F",
    ] {
        let answer = set.get(path, &[]).await;
        is_hit(&answer);
        assert_eq!(answer.text(), page.text(), "{path}");
    }
    // The target's host counts, whatever the field says, and hosts have no case.
    for (target, host) in [("product:8080", "evil"), ("PRODUCT:8080", "product:8080")] {
        let ask = format!(
            "GET http://{target}/page?a=A&b=%2F HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
        );
        let answer = raw::exchange(set.stage.caller.outbound(), ask).await;
        assert!(answer.contains("weft; hit") && !answer.contains("evil"), "{answer}");
    }
    assert_eq!(set.origin.begun(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_two_resources_share_an_answer() {
    let set = Set::at_once(&caching(&[]), careless).await;
    let paths = [
        "/page",
        "/page/",
        "/Page",
        "/page;v=1",
        "/page%2F",
        "/page%2Fa",
        "/page/a",
        "/page%20",
        "/page%2520",
        "/page?",
        "/page?a",
        "/page?a=",
        "/page?a=1",
        "/page?a=1&b=2",
        "/page?b=2&a=1",
        "/page?a=1%26b=2",
        "/page?a=1;b=2",
        "/page?a=%2B",
        "/page?a=+",
        "/page?a=%20",
        "/page?a=%",
        "/page?a=%25",
        "/page?a=%%325",
        "/page?a=%2525",
        "/page?A=1",
        "/page?a=1&a=1",
        "/page%3Fa=1",
        "/page%23",
    ];
    for round in 0..2 {
        for path in paths {
            let answer = set.get(path, &[]).await;
            assert_eq!(answer.status, 200, "{path}: {}", answer.text());
            let target = answer.text().split(' ').nth(1).unwrap().to_owned();
            assert_eq!(target, path, "what is given was made for it");
            if round == 1 {
                is_hit(&answer);
            }
        }
    }
    assert_eq!(set.origin.begun(), paths.len() as u64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn paths_that_have_no_safe_reading_are_refused_and_leave_nothing() {
    let set = Set::at_once(&caching(&[]), careless).await;
    for path in ["/a/..%2Fpage", "/a%00", "/a%zz", "/a%5c..%5cpage"] {
        let answer = set.get(path, &[]).await;
        assert_eq!((answer.status.as_u16(), answer.header("cache-status")), (400, ""), "{path}");
    }
    assert_eq!((set.origin.begun(), set.counted("weft_cache_entries", &[]).await), (0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_would_have_too_long_a_key_passes_by() {
    let set = Set::at_once(&caching(&[]), careless).await;
    let path = format!("/page?{}", "x".repeat(17 * 1024));
    for _ in 0..2 {
        let answer = set.client().call(request("GET", &path, &[])).await;
        assert_eq!(answer.status, 200);
        assert!(said(&answer).contains("detail=key-too-long"), "{}", said(&answer));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn errors_of_sidecars_are_never_kept_whatever_policy_says() {
    let policy = caching(&[
        "where: both",
        "ttl: { default: 60s, overrides: [{ statuses: [502, 503, 504], ttl: 60s, force: true }] }",
    ]) + &weft_tests::mesh::traffic("product", "retries: { attempts: 0 }");
    let mut set = Set::at_once(&policy, careless).await;
    set.stage.kill_app("product");
    for _ in 0..2 {
        let answer = set.get("/page", &[]).await;
        assert!(answer.status.is_server_error() && !answer.weft_error().is_empty(), "{:?}", answer.headers);
        assert!(!answer.header("cache-status").contains("stored"), "{:?}", answer.headers);
    }
    assert_eq!(set.counted("weft_cache_entries", &[]).await, 0);
}
