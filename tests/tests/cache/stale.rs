//! What becomes of callers while the origin is slow, wrong or gone.

use crate::stage::{
    Set, answer, as_fields, caching, fresh, is_hit, is_kept, numbered, said, stale_by_forty, ttl, with_status,
};
use futures_util::future::join_all;
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::SeqCst},
};
use tokio::sync::watch;
use weft_tests::{Answer, PATIENCE, eventually, mesh::traffic, scripted::hang};

/// It is given although it has been stale for forty seconds or a little more.
#[track_caller]
fn is_stale(answer: &Answer, body: &str) {
    assert_eq!((answer.status.as_u16(), answer.text()), (200, body), "{:?}", answer.headers);
    assert!((-60..=-40).contains(&ttl(answer)), "{}", said(answer));
    assert!(answer.header("age").parse::<u32>().unwrap() >= 100, "{:?}", answer.headers);
    assert_eq!(answer.weft_error(), "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_stale_is_given_at_once_while_it_is_fetched_anew_exactly_once() {
    for place in ["outbound", "inbound"] {
        let (open, opened) = watch::channel(false);
        let set = Set::new(&caching(&[&format!("where: {place}")]), move |asked| {
            let mut opened = opened.clone();
            async move {
                if asked.turn == 0 {
                    return Ok(numbered(&asked, &as_fields(&stale_by_forty("stale-while-revalidate=1000"))));
                }
                opened.wait_for(|open| *open).await?;
                Ok(fresh(&asked))
            }
        })
        .await;
        set.get("/", &[("x-first", "1")]).await;
        // The origin answers nobody now, and everybody is answered.
        for _ in 0..3 {
            join_all((0..10).map(|_| set.get("/", &[])))
                .await
                .iter()
                .for_each(|answer| is_stale(answer, "/ 0"));
        }
        eventually("it is asked", PATIENCE, || async { (set.origin.begun() == 2).then_some(()) }).await;
        is_stale(&set.get("/", &[]).await, "/ 0");
        assert_eq!(set.origin.begun(), 2, "once for all");
        open.send(true).unwrap();
        let answer = eventually("it is fetched anew", PATIENCE, || async {
            let answer = set.get("/", &[]).await;
            (answer.text() == "/ 1").then_some(answer)
        })
        .await;
        assert!(said(&answer).contains("; hit; ttl=") && ttl(&answer) > 0, "{}", said(&answer));
        assert_eq!(set.origin.begun(), 2);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refresh_in_the_background_asks_by_what_is_kept() {
    let set = Set::at_once(&caching(&["stale: { whileRevalidate: 1h }"]), |asked| {
        if asked.headers.contains_key("if-none-match") {
            return with_status(304, &[("cache-control", "max-age=60"), ("etag", "\"a\"")], "");
        }
        let mut fields = stale_by_forty("public");
        fields.push(("etag".into(), "\"a\"".into()));
        numbered(asked, &as_fields(&fields))
    })
    .await;
    set.get("/", &[]).await;
    // A condition and a wish of the one who comes first are not those of the others.
    let fields = [("if-none-match", "\"x\""), ("range", "bytes=0-0")];
    assert_eq!(set.get("/", &fields).await.status, 206);
    let answer = eventually("it is confirmed", PATIENCE, || async {
        let answer = set.get("/", &[]).await;
        (ttl(&answer) > 0).then_some(answer)
    })
    .await;
    is_hit(&answer);
    assert_eq!((answer.status.as_u16(), answer.text()), (200, "/ 0"));
    let asked = set.origin.last();
    assert_eq!((asked.header("if-none-match"), asked.header("range")), ("\"a\"", ""));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refresh_that_fails_leaves_what_is_there_and_is_tried_again() {
    let set = Set::at_once(&caching(&[]), |asked| match asked.turn {
        0 => numbered(asked, &as_fields(&stale_by_forty("stale-while-revalidate=1000"))),
        1..=3 => with_status(503, &[], "no"),
        _ => fresh(asked),
    })
    .await;
    set.get("/", &[]).await;
    eventually("it is fetched anew at last", PATIENCE, || async {
        let answer = set.get("/", &[]).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        (answer.text() != "/ 0").then_some(())
    })
    .await;
}

/// An origin whose answers are stale when they come, and which fails with a status once it is told to.
async fn failing(policy: &str, says: &'static str, status: u16) -> (Set, Arc<AtomicBool>) {
    let fails = Arc::new(AtomicBool::new(false));
    let asks = fails.clone();
    let set = Set::at_once(policy, move |asked| {
        if asks.load(SeqCst) {
            return with_status(status, &[("x-from", "origin")], "failed");
        }
        answer(&as_fields(&stale_by_forty(says)), asked.path.clone())
    });
    (set.await, fails)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_stale_is_given_when_the_origin_fails_if_that_is_allowed() {
    let no_retries = traffic("product", "retries: { attempts: 0 }");
    for status in [500, 502, 503, 504] {
        let (set, fails) = failing(&(caching(&[]) + &no_retries), "stale-if-error=1000", status).await;
        set.get("/a", &[]).await;
        fails.store(true, SeqCst);
        for _ in 0..3 {
            let answer = set.get("/a", &[]).await;
            is_stale(&answer, "/a");
            assert!(said(&answer).contains(&format!("fwd=stale; fwd-status={status}")), "{}", said(&answer));
        }
        assert!(set.origin.begun() >= 2, "it was asked");
        let other = set.get("/b", &[]).await;
        assert_eq!(
            (other.status.as_u16(), other.header("x-from")),
            (status, "origin"),
            "nothing is kept of it"
        );
        fails.store(false, SeqCst);
        assert_eq!(set.counted("weft_cache_requests_total", &["result=\"stale\""]).await, 3);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_stale_is_not_given_when_the_origin_fails_if_that_is_not_allowed() {
    let no_retries = traffic("product", "retries: { attempts: 0 }");
    for says in [
        "stale-if-error=5",
        "public",
        "stale-if-error=1000, must-revalidate",
        "stale-if-error=1000, no-cache",
    ] {
        let policy = caching(&[if says.contains("must") || says.contains("no-cache") {
            "stale: { ifError: 1h }"
        } else {
            "post: false"
        }]);
        let (set, fails) = failing(&(policy + &no_retries), says, 503).await;
        set.get("/a", &[]).await;
        fails.store(true, SeqCst);
        let answer = set.get("/a", &[]).await;
        assert_eq!((answer.status.as_u16(), answer.text()), (503, "failed"), "{says}: {:?}", answer.headers);
    }
    // What the client did wrong is not the origin's failure.
    for status in [400, 404, 429] {
        let (set, fails) = failing(&caching(&["stale: { ifError: 1h }"]), "public", status).await;
        set.get("/a", &[]).await;
        fails.store(true, SeqCst);
        assert_eq!(set.get("/a", &[]).await.status, status);
    }
}

/// Fresh and stale answers, all of which policy lets be given when the origin fails.
async fn forty_kept(policy: &str) -> Set {
    let set = Set::at_once(policy, |asked| {
        let n: usize = asked.path[1..].parse().unwrap();
        if n.is_multiple_of(2) {
            answer(&[("cache-control", "max-age=60")], asked.path.clone())
        } else {
            answer(&as_fields(&stale_by_forty("public")), asked.path.clone())
        }
    })
    .await;
    for n in 0..40 {
        assert_eq!(set.get(&format!("/{n}"), &[]).await.text(), format!("/{n}"));
    }
    set
}

async fn all_forty_answer(set: &Set) {
    let calls = (0..40).map(|n| async move {
        let path = format!("/{n}");
        let answer = set.get(&path, &[]).await;
        assert_eq!((answer.status.as_u16(), answer.text()), (200, path.as_str()), "{:?}", answer.headers);
        assert_eq!(answer.weft_error(), "");
    });
    join_all(calls).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_cached_get_still_answers_with_the_origin_killed() {
    let mut set = forty_kept(&caching(&["stale: { ifError: 1h }"])).await;
    set.stage.kill("product");
    for _ in 0..3 {
        all_forty_answer(&set).await;
    }
    let unknown = set.get("/41", &[]).await;
    assert!(matches!(unknown.status.as_u16(), 502..=504), "{}", unknown.status);
    assert_ne!(unknown.weft_error(), "");
    assert!(said(&unknown).contains("fwd=uri-miss"), "{:?}", unknown.headers);
    set.stage.mesh.endpoints("product", 0).await;
    all_forty_answer(&set).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_kept_where_it_is_served_answers_with_the_application_killed() {
    for place in ["inbound", "both"] {
        let mut set = forty_kept(&caching(&[&format!("where: {place}"), "stale: { ifError: 1h }"])).await;
        set.stage.kill_app("product");
        all_forty_answer(&set).await;
        assert!(set.get("/41", &[]).await.status.is_server_error());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_cached_get_still_answers_with_the_breaker_open() {
    let breaker = traffic(
        "product",
        "retries: { attempts: 0 },
         circuitBreaker: { scope: service, errorPercent: 50, minRequests: 5, openFor: 60s, probes: 1 }",
    );
    let fails = Arc::new(AtomicBool::new(false));
    let asks = fails.clone();
    let set = Set::at_once(&(caching(&["stale: { ifError: 1h }"]) + &breaker), move |asked| {
        if asks.load(SeqCst) {
            with_status(500, &[], "failed")
        } else {
            answer(&as_fields(&stale_by_forty("public")), asked.path.clone())
        }
    })
    .await;
    for n in 0..5 {
        set.get(&format!("/{n}"), &[]).await;
    }
    fails.store(true, SeqCst);
    eventually("the breaker is open", PATIENCE, || async {
        (set.get("/new", &[]).await.weft_error() == "breaker_open").then_some(())
    })
    .await;
    let begun = set.origin.begun();
    for n in 0..5 {
        is_stale(&set.get(&format!("/{n}"), &[]).await, &format!("/{n}"));
    }
    assert_eq!(set.origin.begun(), begun, "nobody asks it now");
    let unknown = set.get("/new", &[]).await;
    assert_eq!((unknown.status.as_u16(), unknown.weft_error()), (503, "breaker_open"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_stale_is_given_when_the_origin_takes_too_long() {
    let policy = caching(&["stale: { ifError: 1h }"])
        + &traffic("product", "timeouts: { request: 2s }, retries: { attempts: 0 }");
    let set = Set::new(&policy, |asked| async move {
        if asked.turn > 1 {
            return hang().await;
        }
        let says = if asked.path == "/must" { "must-revalidate" } else { "public" };
        Ok(answer(&as_fields(&stale_by_forty(says)), asked.path))
    })
    .await;
    assert_eq!(set.get("/may", &[]).await.text(), "/may");
    assert_eq!(set.get("/must", &[]).await.text(), "/must");
    is_stale(&set.get("/may", &[]).await, "/may");
    let must = set.get("/must", &[]).await;
    assert_eq!((must.status.as_u16(), must.weft_error()), (504, "timeout"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_must_be_asked_about_is_an_error_when_nobody_can_be_asked() {
    let policy = caching(&["stale: { ifError: 1h }"]) + &traffic("product", "retries: { attempts: 0 }");
    let mut set = Set::at_once(&policy, |asked| {
        let mut fields =
            stale_by_forty(if asked.path == "/must" { "must-revalidate" } else { "stale-if-error=0" });
        fields.push(("etag".into(), "\"a\"".into()));
        answer(&as_fields(&fields), asked.path.clone())
    })
    .await;
    is_kept(&set.get("/must", &[]).await, "uri-miss");
    is_kept(&set.get("/not", &[]).await, "uri-miss");
    set.stage.kill("product");
    for path in ["/must", "/not"] {
        let answer = set.get(path, &[]).await;
        assert!(matches!(answer.status.as_u16(), 502..=504) && !answer.weft_error().is_empty());
        assert!(said(&answer).contains("fwd=stale"), "{path}: {:?}", answer.headers);
    }
}
