//! What is kept is given without asking anybody, and says what it is.

use crate::stage::{
    Set, URL, answer, caching, fresh, is_hit, is_kept, is_not_kept, numbered, request, said, ttl, with_status,
};
use http::{Response, StatusCode};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use std::time::{Duration, SystemTime};
use tokio::io::AsyncWriteExt;
use weft_tests::{
    Backend, PATIENCE, eventually,
    mesh::calling,
    raw,
    stage::{Instance, Stage},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fresh_answer_is_given_by_the_callers_sidecar_without_a_hop() {
    let set = Set::at_once(&caching(&[]), fresh).await;
    let first = set.get("/a?b=c", &[]).await;
    is_kept(&first, "uri-miss");
    assert_eq!(first.text(), "/a?b=c 0");
    for _ in 0..5 {
        let answer = set.get("/a?b=c", &[]).await;
        is_hit(&answer);
        assert_eq!((answer.status.as_u16(), answer.text()), (200, "/a?b=c 0"));
        assert!((50..=60).contains(&ttl(&answer)), "{}", said(&answer));
        assert!(answer.header("age").parse::<u32>().unwrap() <= 10);
        assert!(answer.header("via").contains("1.1 weft"), "{:?}", answer.headers);
        assert_eq!(answer.headers.get_all("date").iter().count(), 1);
        assert_eq!(answer.headers.get_all("cache-status").iter().count(), 1, "{:?}", answer.headers);
        assert_eq!(answer.header("content-length"), "8");
    }
    assert_eq!((set.origin.begun(), set.hops().await), (1, 1));
    let outbound = "direction=\"outbound\"";
    let service = "service=\"shop/product\"";
    for (result, count) in [("hit", 5), ("miss", 1), ("bypass", 0)] {
        let labels = [outbound, service, &format!("result=\"{result}\"")];
        assert_eq!(set.counted("weft_cache_requests_total", &labels).await, count, "{result}");
    }
    assert_eq!(set.counted("weft_cache_stored_total", &[]).await, 1);
    assert_eq!(set.counted("weft_cache_entries", &[]).await, 1);
    assert_eq!(set.counted("weft_requests_total", &[outbound]).await, 6, "hits are requests too");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_no_policy_holds_nothing_is_kept_and_nothing_is_said() {
    let set = Set::at_once("", fresh).await;
    for _ in 0..2 {
        let answer = set.get("/", &[]).await;
        assert_eq!((answer.header("cache-status"), answer.header("age"), answer.header("via")), ("", "", ""));
    }
    assert_eq!(set.origin.begun(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_grows_old_and_is_fetched_again_when_its_time_is_over() {
    let set = Set::at_once(&caching(&[]), |asked| numbered(asked, &[("cache-control", "max-age=4")])).await;
    let first = set.get("/", &[]).await;
    let mut oldest = 0;
    let second = eventually("it is fetched again", PATIENCE, || async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let answer = set.get("/", &[]).await;
        if answer.text() != first.text() {
            return Some(answer);
        }
        is_hit(&answer);
        assert!(ttl(&answer) > 0, "what is given is fresh: {}", said(&answer));
        None
    });
    is_kept(&second.await, "stale");
    let answer = set.get("/", &[]).await;
    oldest = oldest.max(answer.header("age").parse::<u32>().unwrap());
    assert!(oldest < 4);
    assert_eq!(set.origin.begun(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_age_that_an_answer_has_when_it_comes_counts() {
    let set = Set::at_once(&caching(&[]), |asked| {
        let date = httpdate::fmt_http_date(SystemTime::now() - Duration::from_secs(50));
        match asked.path.as_str() {
            "/age" => numbered(asked, &[("cache-control", "max-age=60"), ("age", "50")]),
            "/date" => numbered(asked, &[("cache-control", "max-age=60"), ("date", &date)]),
            "/expires" => {
                let later = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(10));
                numbered(asked, &[("expires", &later), ("date", &date)])
            }
            _ => numbered(asked, &[("cache-control", "max-age=60"), ("age", "60")]),
        }
    })
    .await;
    for path in ["/age", "/date", "/expires"] {
        is_kept(&set.get(path, &[]).await, "uri-miss");
        let answer = set.get(path, &[]).await;
        is_hit(&answer);
        assert!(answer.header("age").parse::<u32>().unwrap() >= 50, "{path}: {:?}", answer.headers);
        assert_eq!(answer.headers.get_all("age").iter().count(), 1);
        assert!(ttl(&answer) <= 10, "{path}: {}", said(&answer));
    }
    is_not_kept(&set.get("/old", &[]).await, "uri-miss", "no-freshness");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn head_is_answered_from_a_kept_get_in_both_protocols() {
    let set = Set::at_once(&caching(&[]), |asked| {
        assert_eq!(asked.method, "GET", "only GET comes here");
        answer(&[("cache-control", "max-age=60"), ("content-type", "text/x")], "hello")
    })
    .await;
    assert_eq!(set.get("/", &[]).await.text(), "hello");
    let over_http1 = set.send("HEAD", "/", &[]).await;
    let over_http2 = set.client().call_http2(request("HEAD", "/", &[])).await;
    let got = set.client().call_http2(request("GET", "/", &[])).await;
    for (answer, body) in [(over_http1, ""), (over_http2, ""), (got, "hello")] {
        is_hit(&answer);
        assert_eq!((answer.status.as_u16(), answer.text()), (200, body));
        assert_eq!((answer.header("content-length"), answer.header("content-type")), ("5", "text/x"));
    }
    assert_eq!(set.origin.begun(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hit_has_its_fields_spelled_as_the_application_spelled_them() {
    let app = Backend::tcp(|mut stream| async move {
        raw::head(&mut stream).await;
        let answer = b"HTTP/1.1 200 OK\r\nX-CuStOm: Value\r\nETag: \"a\"\r\ncache-control: max-age=60\r\n\
            X-Twice: 1\r\nX-Twice: 2\r\nConnection: close, X-Hop\r\nX-Hop: a\r\nTransfer-Encoding: chunked\r\n\r\n\
            3\r\nabc\r\n0\r\n\r\n";
        let _ = stream.write_all(answer).await;
    })
    .await;
    let stage = Stage::set(&caching(&[]), [Instance::new("product", app)]).await;
    let ask = format!("GET {URL}/ HTTP/1.1\r\nHost: product:8080\r\nConnection: close\r\n\r\n");
    let miss = raw::exchange(stage.caller.outbound(), &ask).await;
    let hit = raw::exchange(stage.caller.outbound(), &ask).await;
    assert!(miss.contains("weft; fwd=uri-miss"), "{miss}");
    assert!(hit.contains("weft; hit"), "{hit}");
    for answer in [&miss, &hit] {
        for line in
            ["X-CuStOm: Value", "ETag: \"a\"", "cache-control: max-age=60", "X-Twice: 1", "X-Twice: 2"]
        {
            assert!(answer.contains(&format!("\r\n{line}\r\n")), "no {line} in {answer}");
        }
        assert!(!answer.to_ascii_lowercase().contains("x-hop"), "fields of one connection: {answer}");
    }
    assert!(
        hit.to_ascii_lowercase().contains("\r\ncontent-length: 3\r\n") && hit.ends_with("\r\n\r\nabc"),
        "{hit}"
    );
    assert!(!hit.to_ascii_lowercase().contains("transfer-encoding"), "{hit}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trailers_are_kept_with_their_answer() {
    let set = Set::new(&caching(&[]), |_| async {
        let mut trailers = http::HeaderMap::new();
        trailers.insert("x-sum", http::HeaderValue::from_static("7"));
        let frames = [Ok(Frame::data("abc".into())), Ok(Frame::trailers(trailers))];
        let mut response = Response::new(StreamBody::new(futures_util::stream::iter(frames)).boxed_unsync());
        response.headers_mut().insert("cache-control", http::HeaderValue::from_static("max-age=60"));
        response.headers_mut().insert("trailer", http::HeaderValue::from_static("x-sum"));
        Ok(response)
    })
    .await;
    for _ in 0..2 {
        let answer = set.client().call_http2(request("GET", "/", &[("te", "trailers")])).await;
        assert_eq!((answer.text(), answer.trailers.get("x-sum").unwrap().to_str().unwrap()), ("abc", "7"));
    }
    assert_eq!(set.origin.begun(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_status_that_may_be_kept_is_kept_with_its_status_and_body() {
    let set = Set::at_once(&caching(&[]), |asked| {
        let status = asked.path[1..].parse().unwrap();
        let body = if status == 204 { "" } else { "body" };
        with_status(status, &[("cache-control", "max-age=60"), ("location", "/x")], body)
    })
    .await;
    for status in
        [200_u16, 203, 204, 300, 301, 302, 303, 307, 308, 400, 403, 404, 405, 410, 451, 500, 501, 503]
    {
        let path = format!("/{status}");
        for round in 0..2 {
            let answer = set.get(&path, &[]).await;
            assert_eq!(answer.status, StatusCode::from_u16(status).unwrap());
            assert_eq!(answer.text(), if status == 204 { "" } else { "body" });
            if round == 1 {
                is_hit(&answer);
            }
        }
    }
    for status in [401_u16, 407, 412, 416, 421, 425, 428, 429, 431, 511] {
        let path = format!("/{status}");
        for _ in 0..2 {
            is_not_kept(&set.get(&path, &[]).await, "uri-miss", "status");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_must_not_be_kept_is_fetched_each_time_and_says_why() {
    type Row = (&'static str, &'static [(&'static str, &'static str)], &'static str);
    const TABLE: [Row; 12] = [
        ("/no-store", &[("cache-control", "no-store, max-age=60")], "no-store"),
        ("/private", &[("cache-control", "private, max-age=60")], "private"),
        ("/lines", &[("cache-control", "max-age=60"), ("cache-control", "a=\"b, private")], "private"),
        ("/nothing", &[], "no-freshness"),
        ("/zero", &[("cache-control", "max-age=0")], "no-freshness"),
        ("/nonsense", &[("cache-control", "max-age=abc")], "no-freshness"),
        ("/expired", &[("expires", "0")], "no-freshness"),
        ("/vary", &[("cache-control", "max-age=60"), ("vary", "accept, *")], "vary"),
        ("/cookie", &[("cache-control", "max-age=60"), ("set-cookie", "a=b")], "set-cookie"),
        ("/targeted", &[("cache-control", "max-age=60"), ("cdn-cache-control", "no-store")], "no-store"),
        ("/own", &[("cdn-cache-control", "max-age=60"), ("weft-cache-control", "private")], "private"),
        ("/understood", &[("cache-control", "must-understand, private, max-age=60")], "private"),
    ];
    let set = Set::at_once(&caching(&[]), |asked| {
        let (_, fields, _) = TABLE.iter().find(|(path, ..)| *path == asked.path).unwrap();
        numbered(asked, fields)
    })
    .await;
    for (path, _, detail) in TABLE {
        let before = set.origin.begun();
        for _ in 0..2 {
            is_not_kept(&set.get(path, &[]).await, "uri-miss", detail);
        }
        assert_eq!(set.origin.begun(), before + 2, "{path}");
    }
    assert_eq!(set.counted("weft_cache_entries", &[]).await, 0);
    for (reason, count) in [("private", 8), ("no-store", 4), ("set-cookie", 2), ("vary", 2)] {
        let reason = format!("reason=\"{reason}\"");
        // Two rows of three say `private` beside something else.
        let counted = set.counted("weft_cache_not_stored_total", &[&reason]).await;
        assert_eq!(counted, count, "{reason}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_applications_word_to_the_mesh_reaches_the_callers_sidecar_and_goes_before_cache_control() {
    let set = Set::at_once(&caching(&[]), |asked| {
        numbered(asked, &[("cache-control", "no-store"), ("weft-cache-control", "max-age=60")])
    })
    .await;
    is_kept(&set.get("/", &[]).await, "uri-miss");
    is_hit(&set.get("/", &[]).await);
    assert_eq!(set.origin.begun(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn policy_says_how_long_where_the_origin_says_nothing_or_something_else() {
    let policy = caching(&[
        "ttl:",
        "  default: 30s",
        "  max: 100s",
        "  overrides:",
        "    - { statuses: [404], ttl: 5s }",
        "    - { paths: [/never/*], ttl: 0s }",
        "    - { paths: [/forced], ttl: 20s, force: true }",
        "    - { paths: [/wanted], ttl: 20s }",
    ]);
    let set = Set::at_once(&policy, |asked| match asked.path.as_str() {
        "/silent" => numbered(asked, &[]),
        "/long" => numbered(asked, &[("cache-control", "max-age=10000")]),
        "/missing" => with_status(404, &[("cache-control", "max-age=10000")], "none"),
        "/never/x" => numbered(asked, &[("cache-control", "max-age=10000")]),
        _ => numbered(asked, &[("cache-control", "private, no-store")]),
    })
    .await;
    for (path, most) in [("/silent", 30), ("/long", 100), ("/missing", 5), ("/forced", 20)] {
        is_kept(&set.get(path, &[]).await, "uri-miss");
        let answer = set.get(path, &[]).await;
        is_hit(&answer);
        assert!((most - 4..=most).contains(&ttl(&answer)), "{path}: {}", said(&answer));
    }
    is_not_kept(&set.get("/never/x", &[]).await, "uri-miss", "policy");
    is_not_kept(&set.get("/wanted", &[]).await, "uri-miss", "no-store");
}

/// A rule that lets only `caller` and `other` call.
const ONLY_TWO: &str = "---
apiVersion: weft.mesh/v1alpha1
kind: AuthorizationPolicy
metadata: { name: product, namespace: shop }
spec:
  targetRefs: [{ kind: Service, name: product }]
  action: allow
  rules: [{ name: two, from: [{ identities: [shop/caller, shop/other] }] }]
";

async fn with_others(parts: &[&str]) -> Set {
    let policy = caching(parts) + &calling("other") + &calling("stranger") + ONLY_TWO;
    Set::at_once(&policy, fresh).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kept_where_it_is_served_an_answer_is_for_all_callers_but_only_for_those_who_may_call() {
    let set = with_others(&["where: inbound"]).await;
    let (_other, other) = set.stage.another("other").await;
    let (_stranger, stranger) = set.stage.another("stranger").await;
    let url = format!("{URL}/");
    assert_eq!(stranger.get(&url).await.status, 403, "before anything is kept");
    let first = set.get("/", &[]).await;
    assert!(said(&first).starts_with("weft-inbound; fwd=uri-miss"), "{:?}", first.headers);
    for client in [&other, set.client(), &other] {
        let answer = client.get(&url).await;
        assert!(said(&answer).starts_with("weft-inbound; hit; ttl="), "{:?}", answer.headers);
        assert_eq!(answer.text(), "/ 0");
        let refused = stranger.get(&url).await;
        assert_eq!(
            (refused.status.as_u16(), refused.header("cache-status")),
            (403, ""),
            "{}",
            refused.text()
        );
        assert!(!refused.text().contains("/ 0"));
    }
    assert_eq!(set.origin.begun(), 1);
    assert_eq!(set.counted("weft_cache_requests_total", &[]).await, 0, "the caller's keeps nothing");
    assert_eq!(set.hops().await, 4 + 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kept_at_both_places_a_hit_saves_the_hop_and_a_miss_is_shared() {
    let set = with_others(&["where: both"]).await;
    let (_other, other) = set.stage.another("other").await;
    let url = format!("{URL}/");
    for client in [set.client(), &other] {
        assert_eq!(client.get(&url).await.text(), "/ 0");
        for _ in 0..3 {
            is_hit(&client.get(&url).await);
        }
    }
    assert_eq!((set.origin.begun(), set.hops().await), (1, 2));
    let shared = other.get(&url).await;
    let members: Vec<_> = shared.headers.get_all("cache-status").iter().collect();
    assert!(!members.is_empty() && said(&shared).starts_with("weft; hit"), "{members:?}");
    // The second caller's is as old as the first one's.
    let age: i64 = shared.header("age").parse().unwrap();
    assert!(ttl(&shared) + age <= 60, "{}, {age}", said(&shared));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_of_the_oldest_protocol_get_hits_too() {
    let set = Set::at_once(&caching(&[]), fresh).await;
    set.get("/", &[]).await;
    let ask = format!("GET {URL}/ HTTP/1.0\r\n\r\n");
    let answer = raw::exchange(set.stage.caller.outbound(), ask).await.to_ascii_lowercase();
    assert!(answer.contains("weft; hit") && answer.contains("\r\ncontent-length: 3\r\n"), "{answer}");
    assert!(answer.ends_with("\r\n\r\n/ 0") && !answer.contains("transfer-encoding"), "{answer}");
}
