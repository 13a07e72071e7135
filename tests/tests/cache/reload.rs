//! Policy changes while answers are kept.

use crate::stage::{Set, caching, fresh, is_hit, said, ttl};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_times_and_limits_keep_what_is_still_valid() {
    let set = Set::at_once("", fresh).await;
    set.stage.change("cache.yaml", &caching(&[])).await;
    for n in 0..10 {
        set.get(&format!("/{n}"), &[]).await;
    }
    let begun = set.origin.begun();
    for parts in [
        &["limits: { maxBytes: 1MiB }"][..],
        &["limits: { maxBytes: 256MiB, maxObjectBytes: 10KiB, maxVariants: 2 }"],
        &["ttl: { default: 5s }", "stale: { ifError: 1h }"],
        &["ttl: { max: 30s }", "coalescing: { enabled: false }"],
    ] {
        set.stage.change("cache.yaml", &caching(parts)).await;
        for n in 0..10 {
            let answer = set.get(&format!("/{n}"), &[]).await;
            is_hit(&answer);
            assert!(
                !parts[0].contains("30s") || ttl(&answer) <= 30,
                "a shorter limit holds at once: {}",
                said(&answer)
            );
        }
    }
    assert_eq!(set.origin.begun(), begun);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_another_key_would_tell_apart_is_not_given_any_more() {
    let set = Set::at_once("", |asked| {
        crate::stage::answer(&[("cache-control", "max-age=60")], asked.header("x-user").to_owned())
    })
    .await;
    set.stage.change("cache.yaml", &caching(&[])).await;
    assert_eq!(set.get("/", &[("x-user", "ann")]).await.text(), "ann");
    assert_eq!(set.get("/", &[("x-user", "ben")]).await.text(), "ann", "as the policy says");
    set.stage.change("cache.yaml", &caching(&["key: { headers: [x-user] }"])).await;
    for user in ["ben", "ann", "ben"] {
        assert_eq!(set.get("/", &[("x-user", user)]).await.text(), user);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cache_that_is_turned_off_stops_at_once_and_turned_on_again_is_right() {
    let set = Set::at_once("", fresh).await;
    set.stage.change("cache.yaml", &caching(&[])).await;
    set.get("/", &[]).await;
    is_hit(&set.get("/", &[]).await);
    set.stage.change("cache.yaml", &caching(&["enabled: false"])).await;
    for turn in 1..3 {
        let answer = set.get("/", &[]).await;
        assert_eq!((answer.text(), answer.header("cache-status")), (format!("/ {turn}").as_str(), ""));
    }
    // Meanwhile it is changed, and the cache is not there to see it.
    set.send("POST", "/", &[]).await;
    set.stage.change("cache.yaml", &caching(&[])).await;
    set.get("/", &[]).await;
    let answer = set.get("/", &[]).await;
    is_hit(&answer);
    let body = answer.text().to_owned();
    assert_eq!(set.get("/", &[]).await.text(), body);
    set.stage.change("cache.yaml", "").await;
    assert_eq!(set.get("/", &[]).await.header("cache-status"), "");
}
