//! What requests say of what they will take.

use crate::stage::{
    Set, answer, as_fields, caching, fresh, is_hit, is_kept, is_not_kept, numbered, said, stale_by_forty,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_can_ask_for_the_origins_word() {
    let set = Set::at_once(&caching(&[]), fresh).await;
    set.get("/", &[]).await;
    let mut turn = 0;
    for fields in [
        ("cache-control", "no-cache"),
        ("cache-control", "max-age=0"),
        ("cache-control", "a, NO-CACHE=\"x\""),
        ("cache-control", "min-fresh=1000"),
        ("pragma", "no-cache"),
    ] {
        turn += 1;
        let answer = set.get("/", &[fields]).await;
        is_kept(&answer, "request");
        assert_eq!(answer.text(), format!("/ {turn}"), "{fields:?}");
        // What it brought is for the others.
        let next = set.get("/", &[]).await;
        is_hit(&next);
        assert_eq!(next.text(), format!("/ {turn}"));
    }
    for fields in [
        &[("cache-control", "max-age=1000")][..],
        &[("cache-control", "min-fresh=10")],
        &[("cache-control", "max-stale")],
        &[("pragma", "no-cache"), ("cache-control", "x")],
        &[("cache-control", "only-if-cached")],
        &[("cache-control", "no-store")],
    ] {
        is_hit(&set.get("/", fields).await);
    }
    assert_eq!(set.origin.begun(), turn + 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_says_no_store_leaves_nothing_behind() {
    let set = Set::at_once(&caching(&[]), fresh).await;
    for turn in 0..2 {
        let answer = set.get("/", &[("cache-control", "no-store")]).await;
        is_not_kept(&answer, "uri-miss", "request-no-store");
        assert_eq!(answer.text(), format!("/ {turn}"));
    }
    is_kept(&set.get("/", &[]).await, "uri-miss");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_takes_only_what_is_kept_gets_504_if_nothing_is() {
    let set = Set::at_once(&caching(&[]), |asked| {
        numbered(asked, &as_fields(&stale_by_forty("stale-if-error=1000")))
    })
    .await;
    let only = [("cache-control", "only-if-cached")];
    let nothing = set.get("/", &only).await;
    assert_eq!((nothing.status.as_u16(), set.origin.begun()), (504, 0));
    assert!(said(&nothing).contains("fwd=uri-miss; detail=only-if-cached"), "{}", said(&nothing));
    set.get("/", &[]).await;
    assert_eq!(set.get("/", &only).await.status, 504, "what is kept is stale");
    let stale = set.get("/", &[("cache-control", "only-if-cached, max-stale=100")]).await;
    assert_eq!((stale.status.as_u16(), stale.text()), (200, "/ 0"));
    assert_eq!(set.origin.begun(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_can_take_what_is_stale_unless_the_answer_forbids_it() {
    let set = Set::at_once(&caching(&[]), |asked| {
        let says = if asked.path == "/must" { "must-revalidate" } else { "public" };
        let mut fields = stale_by_forty(says);
        fields.push(("etag".into(), format!("\"{}\"", asked.turn)));
        numbered(asked, &as_fields(&fields))
    })
    .await;
    for path in ["/may", "/must"] {
        set.get(path, &[]).await;
    }
    for says in ["max-stale", "max-stale=60", "max-age=1000, max-stale=60"] {
        let answer = set.get("/may", &[("cache-control", says)]).await;
        assert_eq!(
            (answer.text(), said(&answer).starts_with("weft; hit; ttl=-4")),
            ("/may 0", true),
            "{}",
            said(&answer)
        );
    }
    assert_eq!(set.origin.begun(), 2);
    assert_eq!(set.get("/must", &[("cache-control", "max-stale")]).await.text(), "/must 2");
    assert_eq!(set.get("/may", &[("cache-control", "max-stale=10")]).await.text(), "/may 3");
    assert_eq!(set.get("/may", &[("cache-control", "max-age=10, max-stale=60")]).await.text(), "/may 4");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_of_what_never_changes_does_not_go_to_the_origin() {
    let set = Set::at_once(&caching(&[]), |asked| {
        answer(&[("cache-control", "max-age=60, immutable")], asked.turn.to_string())
    })
    .await;
    set.get("/", &[]).await;
    is_hit(&set.get("/", &[("cache-control", "max-age=0")]).await);
    assert_eq!(set.get("/", &[("cache-control", "no-cache")]).await.text(), "1");
}
