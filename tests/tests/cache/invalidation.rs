//! A change that succeeds makes invalid what was kept of what it changed.

use crate::stage::{Set, caching, fresh, is_hit, said, with_status};
use weft_tests::{PATIENCE, eventually, scripted::Asked};

/// GET may be kept; every other method answers with the status in `x-status`, and names what `x-location` and
/// `x-content-location` say.
fn changing(asked: &Asked) -> http::Response<weft_tests::Body> {
    if asked.method == "GET" {
        return fresh(asked);
    }
    let mut fields = Vec::new();
    for name in ["location", "content-location"] {
        let value = asked.header(&format!("x-{name}"));
        if !value.is_empty() {
            fields.push((name, value));
        }
    }
    with_status(asked.header("x-status").parse().unwrap_or(200), &fields, "done")
}

/// Keeps `path`, makes the change, and says whether it has to be fetched again.
async fn is_gone(set: &Set, path: &str, change: (&str, &str, &[(&str, &str)])) -> bool {
    set.get(path, &[]).await;
    is_hit(&set.get(path, &[]).await);
    let (method, changed, fields) = change;
    set.send(method, changed, fields).await;
    !said(&set.get(path, &[]).await).contains("hit")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_successful_change_ends_what_is_kept_of_its_address_and_a_failed_one_does_not() {
    for place in ["outbound", "both"] {
        let set = Set::at_once(&caching(&[&format!("where: {place}")]), changing).await;
        for method in ["POST", "PUT", "DELETE", "PATCH", "ADJUST"] {
            for (status, gone) in [
                ("200", true),
                ("201", true),
                ("204", true),
                ("303", true),
                ("400", false),
                ("404", false),
                ("500", false),
            ] {
                let change = (method, "/a?b=c", [("x-status", status)]);
                let found = is_gone(&set, "/a?b=c", (change.0, change.1, &change.2)).await;
                assert_eq!(found, gone, "{method} that is answered {status}, kept {place}");
            }
        }
        for method in ["HEAD", "OPTIONS", "PROPFIND"] {
            assert!(!is_gone(&set, "/a?b=c", (method, "/a?b=c", &[])).await, "{method}");
        }
        assert!(!is_gone(&set, "/a?b=c", ("POST", "/a", &[])).await, "another address");
        assert!(is_gone(&set, "/a/b", ("POST", "/x/../a/%62", &[])).await, "the same address");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn so_does_one_for_what_its_answer_names_of_the_same_origin() {
    let set = Set::at_once(&caching(&[]), changing).await;
    for (name, value, gone) in [
        ("x-location", "/item", true),
        ("x-content-location", "http://product:8080/item", true),
        ("x-location", "item", true),
        ("x-location", "//product:8080/x/../item#part", true),
        ("x-location", "/item?x", false),
        ("x-location", "http://other:8080/item", false),
        ("x-location", "https://product:8080/item", false),
    ] {
        let found = is_gone(&set, "/item", ("POST", "/items", &[("x-status", "201"), (name, value)])).await;
        assert_eq!(found, gone, "{name}: {value}");
    }
    let failed = [("x-status", "409"), ("x-location", "/item")];
    assert!(!is_gone(&set, "/item", ("POST", "/items", &failed)).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_variants_and_all_users_answers_of_an_address_end_with_it() {
    let set = Set::at_once(&caching(&["key: { headers: [x-user] }"]), |asked| {
        if asked.method != "GET" {
            return with_status(200, &[], "done");
        }
        let body = format!("{}{}{}", asked.turn, asked.header("x-user"), asked.header("accept"));
        crate::stage::answer(&[("cache-control", "max-age=60"), ("vary", "accept")], body)
    })
    .await;
    let all = [
        [("x-user", "a"), ("accept", "x")],
        [("x-user", "a"), ("accept", "y")],
        [("x-user", "b"), ("accept", "x")],
    ];
    for fields in &all {
        set.get("/", fields).await;
        is_hit(&set.get("/", fields).await);
    }
    set.send("POST", "/", &[("x-user", "z")]).await;
    for fields in &all {
        assert!(!said(&set.get("/", fields).await).contains("hit"), "{fields:?}");
    }
    assert!(set.counted("weft_cache_purged_total", &[]).await >= 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_was_asked_for_before_a_change_is_not_kept_after_it() {
    let (open, opened) = tokio::sync::watch::channel(false);
    let set = Set::new(&caching(&[]), move |asked| {
        let mut opened = opened.clone();
        async move {
            if asked.method != "GET" {
                return Ok(with_status(200, &[], "done"));
            }
            if asked.turn == 0 {
                opened.wait_for(|open| *open).await?;
            }
            Ok(fresh(&asked))
        }
    })
    .await;
    let (early, ()) = tokio::join!(set.get("/", &[]), async {
        eventually("it is asked", PATIENCE, || async { (set.origin.begun() == 1).then_some(()) }).await;
        set.send("POST", "/", &[]).await;
        open.send(true).unwrap();
    });
    assert_eq!(early.text(), "/ 0");
    let late = set.get("/", &[]).await;
    assert_eq!(late.text(), "/ 2", "{:?}", late.headers);
    is_hit(&set.get("/", &[]).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refresh_that_was_under_way_before_a_change_brings_nothing_back() {
    let (open, opened) = tokio::sync::watch::channel(false);
    let set = Set::new(&caching(&[]), move |asked| {
        let mut opened = opened.clone();
        async move {
            match asked.turn {
                0 => {
                    let stale = crate::stage::stale_by_forty("stale-while-revalidate=1000");
                    Ok(crate::stage::numbered(&asked, &crate::stage::as_fields(&stale)))
                }
                1 => {
                    opened.wait_for(|open| *open).await?;
                    Ok(fresh(&asked))
                }
                _ if asked.method != "GET" => Ok(with_status(200, &[], "done")),
                _ => Ok(fresh(&asked)),
            }
        }
    })
    .await;
    set.get("/", &[]).await;
    assert_eq!(set.get("/", &[]).await.text(), "/ 0");
    eventually("it is asked", PATIENCE, || async { (set.origin.begun() == 2).then_some(()) }).await;
    set.send("DELETE", "/", &[]).await;
    open.send(true).unwrap();
    eventually("the refresh is over", PATIENCE, || async { (set.origin.ended() == 3).then_some(()) }).await;
    let after = set.get("/", &[]).await;
    assert_eq!(
        after.text(),
        "/ 3",
        "neither what was kept nor what was fetched before the change: {:?}",
        after.headers
    );
}
