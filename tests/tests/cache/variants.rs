//! Answers that depend on fields of the request, and addresses that differ without a difference.

use crate::stage::{Set, answer, caching, is_hit, is_kept, is_not_kept, numbered, said};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_variant_is_kept_and_given_to_those_who_ask_for_it() {
    let set = Set::at_once(&caching(&[]), |asked| {
        let body = format!("{} in {}", asked.turn, asked.header("accept-language"));
        answer(&[("cache-control", "max-age=60"), ("vary", "Accept-Language")], body)
    })
    .await;
    let languages = ["de", "en", "fr;q=0.5, de"];
    for (turn, language) in languages.iter().enumerate() {
        let why = if turn == 0 { "uri-miss" } else { "vary-miss" };
        is_kept(&set.get("/", &[("accept-language", language)]).await, why);
    }
    let none = set.get("/", &[]).await;
    is_kept(&none, "vary-miss");
    for (turn, language) in languages.iter().enumerate() {
        let answer = set.get("/", &[("accept-language", language), ("x-other", "1")]).await;
        is_hit(&answer);
        assert_eq!(answer.text(), format!("{turn} in {language}"));
    }
    is_hit(&set.get("/", &[]).await);
    assert_eq!(set.origin.begun(), 4);
    assert_eq!(set.counted("weft_cache_requests_total", &["reason=\"vary-miss\""]).await, 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fields_that_mean_the_same_select_the_same_variant() {
    let set = Set::at_once(&caching(&[]), |asked| {
        let body = format!("{} {}", asked.header("accept-encoding"), asked.header("accept-language"));
        answer(&[("cache-control", "max-age=60"), ("vary", "accept-encoding, accept-language")], body)
    })
    .await;
    let get = |encoding: &'static str, language: &'static str| {
        let set = &set;
        async move { set.get("/", &[("accept-encoding", encoding), ("accept-language", language)]).await }
    };
    let first = get("gzip, br;q=0.50", "de, en;q=0.8").await;
    assert_eq!(first.text(), "gzip, br;q=0.50 de, en;q=0.8");
    for (encoding, language) in [
        ("br;q=0.5,gzip", "de,en;q=0.800"),
        ("GZIP;q=1.0 , BR;q=.5", "x"),
        ("x-gzip, br;q=0.5", "DE, EN;q=0.8"),
    ] {
        let answer = get(encoding, language).await;
        if language == "x" {
            assert_ne!(answer.text(), first.text());
        } else {
            is_hit(&answer);
            assert_eq!(answer.text(), first.text());
        }
    }
    for (encoding, language) in
        [("gzip", "de, en;q=0.8"), ("gzip, br;q=0", "de, en;q=0.8"), ("gzip, br;q=0.5", "en, de;q=0.8")]
    {
        assert_eq!(get(encoding, language).await.text(), format!("{encoding} {language}"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_varies_by_more_than_shows_is_never_kept() {
    let set = Set::at_once(&caching(&[]), |asked| {
        numbered(asked, &[("cache-control", "max-age=60"), ("vary", "*")])
    })
    .await;
    for turn in 0..3 {
        let answer = set.get("/", &[]).await;
        is_not_kept(&answer, "uri-miss", "vary");
        assert_eq!(answer.text(), format!("/ {turn}"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn variants_beyond_the_limit_push_others_out_and_nobody_gets_a_wrong_one() {
    let set = Set::at_once(&caching(&["limits: { maxVariants: 4 }"]), |asked| {
        answer(&[("cache-control", "max-age=60"), ("vary", "x-kind")], asked.header("x-kind").to_owned())
    })
    .await;
    for _ in 0..3 {
        for kind in 0..20 {
            let kind = kind.to_string();
            assert_eq!(set.get("/", &[("x-kind", &kind)]).await.text(), kind);
        }
    }
    let kept = set.counted("weft_cache_entries", &[]).await;
    assert!((1..=4).contains(&kept), "{kept} variants");
    is_hit(&set.get("/", &[("x-kind", "19")]).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_newest_answer_varies_by_counts() {
    let set = Set::at_once(&caching(&[]), |asked| {
        let vary = if asked.header("x-b").is_empty() { "x-a" } else { "x-a, x-b" };
        let body = format!("{}/{}", asked.header("x-a"), asked.header("x-b"));
        answer(&[("cache-control", "max-age=60"), ("vary", vary)], body)
    })
    .await;
    assert_eq!(set.get("/", &[("x-a", "1")]).await.text(), "1/");
    // It selects the one that does not depend on x-b.
    assert_eq!(set.get("/", &[("x-a", "1"), ("x-b", "2")]).await.text(), "1/");
    assert_eq!(set.get("/", &[("x-a", "2"), ("x-b", "2")]).await.text(), "2/2");
    assert_eq!(set.get("/", &[("x-a", "2"), ("x-b", "3")]).await.text(), "2/3");
    assert_eq!(set.get("/", &[("x-a", "2"), ("x-b", "2")]).await.text(), "2/2");
    assert_eq!(set.origin.begun(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_resource_can_say_which_parameters_do_not_count() {
    let set = Set::at_once(&caching(&[]), |asked| {
        let says = "params=(\"utm_source\" \"id\"), key-order";
        numbered(asked, &[("cache-control", "max-age=60"), ("no-vary-search", says)])
    })
    .await;
    is_kept(&set.get("/a?x=1&y=2&utm_source=here", &[]).await, "uri-miss");
    // Once it is known, it holds for those who ask from now on.
    let second = set.get("/a?y=2&x=1&utm_source=there", &[]).await;
    let third = set.get("/a?id=5&y=2&x=1", &[]).await;
    is_hit(&third);
    assert!(set.origin.begun() <= 2, "{}", said(&second));
    assert!(!said(&set.get("/a?x=2&y=2", &[]).await).contains("hit"), "what counts counts");
    assert!(!said(&set.get("/b?x=1&y=2", &[]).await).contains("hit"), "it is about that path");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn policy_says_which_parameters_count() {
    let policy = caching(&["key: { query: { exclude: [utm_source, id], ignoreOrder: true } }"]);
    let set = Set::at_once(&policy, |asked| numbered(asked, &[("cache-control", "max-age=60")])).await;
    let first = set.get("/a?x=1&y=2&utm_source=here", &[]).await;
    assert_eq!(first.text(), "/a?x=1&y=2&utm_source=here 0", "the origin gets the whole query");
    for path in ["/a?y=2&x=1", "/a?id=7&y=2&x=1&%69d=8", "/a?x=1&&y=2&"] {
        let answer = set.get(path, &[]).await;
        is_hit(&answer);
        assert_eq!(answer.text(), first.text(), "{path}");
    }
    for path in ["/a?x=1", "/a?x=1&y=3", "/a?X=1&y=2", "/a?x=1&y=2&utm_source=a;x=5"] {
        is_kept(&set.get(path, &[]).await, "uri-miss");
    }
}
