//! Conditions of clients against what is kept, and our own that ask the origin whether it is still so.

use crate::stage::{
    Set, answer, as_fields, caching, is_hit, is_kept, numbered, request, said, stale_by_forty, ttl,
    with_status,
};
use weft_tests::scripted::Asked;

const OLD: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
const OLDER: &str = "Sun, 06 Nov 1994 08:49:36 GMT";
const LATER: &str = "Sun, 06 Nov 1994 08:49:38 GMT";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_have_what_is_kept_are_told_so() {
    let set = Set::at_once(&caching(&[]), |asked| {
        assert!(!asked.headers.contains_key("if-none-match"), "what is fetched is for all: {asked:?}");
        let tag = if asked.path == "/weak" { "W/\"a\"" } else { "\"a\"" };
        let fields = [
            ("cache-control", "max-age=60"),
            ("etag", tag),
            ("last-modified", OLD),
            ("content-type", "a/b"),
            ("x-a", "1"),
        ];
        if asked.path == "/dated" { answer(&[fields[0], fields[2]], "body") } else { answer(&fields, "body") }
    })
    .await;
    let table = [
        ("/a", "if-none-match", "\"a\"", true),
        ("/a", "if-none-match", "\"b\", W/\"a\"", true),
        ("/a", "if-none-match", "*", true),
        ("/a", "if-none-match", "\"b\"", false),
        ("/a", "if-none-match", "a", false),
        ("/weak", "if-none-match", "\"a\"", true),
        ("/weak", "if-none-match", "\"x,y\",W/\"a\"", true),
        ("/dated", "if-modified-since", OLD, true),
        ("/dated", "if-modified-since", LATER, true),
        ("/dated", "if-modified-since", OLDER, false),
        ("/dated", "if-modified-since", "yesterday", false),
        ("/a", "if-modified-since", OLD, true),
    ];
    // The first round finds nothing kept, the second one does.
    for round in 0..2 {
        for (path, name, value, not_modified) in table {
            for method in ["GET", "HEAD"] {
                if round == 0 && method == "HEAD" {
                    continue;
                }
                let answer = set.send(method, path, &[(name, value)]).await;
                let status = if not_modified { 304 } else { 200 };
                assert_eq!(answer.status, status, "{method} {path} {name}: {value}, {:?}", answer.headers);
                let body = if not_modified || method == "HEAD" { "" } else { "body" };
                assert_eq!(answer.text(), body);
                if not_modified {
                    assert_eq!((answer.header("content-type"), answer.header("x-a")), ("", ""));
                    assert_eq!(answer.header("cache-control"), "max-age=60");
                    assert!(path == "/dated" || answer.header("etag").ends_with("\"a\""));
                }
                if round == 1 {
                    is_hit(&answer);
                }
            }
        }
    }
    assert_eq!(set.origin.begun(), 3);
    // Both together: the tag alone counts.
    let both = set.get("/a", &[("if-none-match", "\"b\""), ("if-modified-since", OLD)]).await;
    assert_eq!(both.status, 200);
    let twice = set
        .client()
        .call_http2(request("GET", "/a", &[("if-none-match", "\"b\""), ("if-none-match", "\"a\"")]))
        .await;
    assert_eq!(twice.status, 304);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conditions_that_only_the_origin_can_judge_go_there() {
    let set = Set::at_once(&caching(&[]), |asked| {
        if asked.headers.contains_key("if-match") || asked.headers.contains_key("if-unmodified-since") {
            return with_status(412, &[], "");
        }
        answer(&[("cache-control", "max-age=60"), ("etag", "\"a\"")], "body")
    })
    .await;
    set.get("/", &[]).await;
    for fields in [("if-match", "\"a\""), ("if-unmodified-since", OLD)] {
        let answer = set.get("/", &[fields]).await;
        assert_eq!(answer.status, 412);
        assert!(said(&answer).contains("fwd=bypass; detail=precondition"), "{}", said(&answer));
    }
    is_hit(&set.get("/", &[]).await);
}

/// Stale from the start with a tag; asked by it, it says that nothing has changed, and something new besides.
fn confirms(asked: &Asked) -> http::Response<weft_tests::Body> {
    if asked.header("if-none-match").contains("\"a\"") {
        let new =
            [("cache-control", "max-age=50"), ("etag", "\"a\""), ("x-new", "1"), ("content-length", "99")];
        return with_status(304, &new[..3], "");
    }
    let mut fields = stale_by_forty("stale-if-error=0");
    fields.extend(
        [("etag", "\"a\""), ("x-new", "0"), ("x-old", "0")].map(|(n, v)| (n.to_owned(), v.to_owned())),
    );
    answer(&as_fields(&fields), "body")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_origin_confirms_is_given_with_its_new_fields_and_is_fresh_again() {
    let set = Set::at_once(&caching(&[]), confirms).await;
    let first = set.get("/", &[]).await;
    assert_eq!((first.header("x-new"), first.text()), ("0", "body"));
    let second = set.get("/", &[]).await;
    assert_eq!(second.status, 200);
    assert_eq!((second.header("x-new"), second.header("x-old"), second.text()), ("1", "0", "body"));
    assert!(said(&second).starts_with("weft; fwd=stale; fwd-status=304; "), "{}", said(&second));
    assert!((45..=50).contains(&ttl(&second)), "{}", said(&second));
    let third = set.get("/", &[]).await;
    is_hit(&third);
    assert_eq!((third.header("x-new"), third.header("x-old"), third.text()), ("1", "0", "body"));
    assert!(third.header("age").parse::<u32>().unwrap() < 10, "{:?}", third.headers);
    assert_eq!(set.origin.begun(), 2);
    assert_eq!(set.origin.last().header("if-none-match"), "\"a\"");
    assert_eq!(set.counted("weft_cache_requests_total", &["result=\"revalidated\""]).await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clients_own_condition_is_judged_by_what_the_origin_confirmed() {
    for (tag, status) in [("\"a\"", 304), ("\"x\"", 200)] {
        let set = Set::at_once(&caching(&[]), confirms).await;
        set.get("/", &[]).await;
        let answer = set.get("/", &[("if-none-match", tag)]).await;
        assert_eq!(answer.status, status, "{:?}", answer.headers);
        assert_eq!(set.origin.last().header("if-none-match"), "\"a\"", "the origin is asked by what is kept");
        let whole = set.get("/", &[]).await;
        is_hit(&whole);
        assert_eq!(whole.text(), "body");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_has_changed_takes_the_place_of_what_was_kept() {
    let set = Set::at_once(&caching(&[]), |asked| {
        if asked.turn == 0 {
            let mut fields = stale_by_forty("public");
            fields.push(("etag".into(), "\"a\"".into()));
            return answer(&as_fields(&fields), "old");
        }
        answer(&[("cache-control", "max-age=60"), ("etag", "\"b\"")], "new")
    })
    .await;
    assert_eq!(set.get("/", &[]).await.text(), "old");
    let changed = set.get("/", &[]).await;
    is_kept(&changed, "stale");
    assert_eq!(changed.text(), "new");
    let kept = set.get("/", &[]).await;
    is_hit(&kept);
    assert_eq!((kept.text(), kept.header("etag")), ("new", "\"b\""));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_cache_means_that_the_origin_is_asked_each_time() {
    let set = Set::at_once(&caching(&[]), |asked| {
        let fields = [("cache-control", "no-cache, max-age=60"), ("etag", "\"a\"")];
        if asked.headers.contains_key("if-none-match") {
            with_status(304, &fields, "")
        } else {
            answer(&fields, "body")
        }
    })
    .await;
    for turn in 0..4 {
        let answer = set.get("/", &[]).await;
        assert_eq!((answer.status.as_u16(), answer.text()), (200, "body"));
        assert_eq!(set.origin.begun(), turn + 1);
        assert_eq!(set.origin.last().headers.contains_key("if-none-match"), turn > 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_origin_can_say_by_its_tag_which_variant_is_for_a_new_request() {
    let set = Set::at_once(&caching(&[]), |asked| {
        let language = asked.header("accept-language");
        let known = asked.header("if-none-match");
        let fields = |tag| [("cache-control", "max-age=60"), ("vary", "accept-language"), ("etag", tag)];
        match language {
            // Austrians get the German one.
            "at" if known.contains("\"de\"") => with_status(304, &fields("\"de\""), ""),
            "at" | "de" => answer(&fields("\"de\""), "deutsch"),
            _ => answer(&fields("\"en\""), "english"),
        }
    })
    .await;
    for (language, text) in
        [("de", "deutsch"), ("en", "english"), ("at", "deutsch"), ("at", "deutsch"), ("en", "english")]
    {
        let answer = set.get("/", &[("accept-language", language)]).await;
        assert_eq!(
            (answer.status.as_u16(), answer.text(), answer.header("etag")),
            (200, text, format!("\"{}\"", &text[..2]).as_str())
        );
    }
    assert_eq!(set.origin.begun(), 3);
    let asked = set.origin.last();
    let asked_by = asked.header("if-none-match");
    assert!(asked_by.contains("\"de\"") && asked_by.contains("\"en\""), "{asked_by}");
    is_hit(&set.get("/", &[("accept-language", "de")]).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_304_about_something_that_is_not_kept_is_never_passed_off_as_an_answer() {
    let set = Set::at_once(&caching(&[]), |asked| {
        if asked.headers.contains_key("if-none-match") {
            return with_status(304, &[("etag", "\"other\"")], "");
        }
        let mut fields = stale_by_forty("public");
        fields.push(("etag".into(), "\"a\"".into()));
        answer(&as_fields(&fields), asked.turn.to_string())
    })
    .await;
    assert_eq!(set.get("/", &[]).await.text(), "0");
    let answer = set.get("/", &[]).await;
    assert_eq!((answer.status.as_u16(), answer.text()), (200, "2"), "{:?}", answer.headers);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_head_tells_brings_the_kept_answer_up_to_date_or_ends_it() {
    let set = Set::at_once(&caching(&[]), |asked| {
        if asked.method == "HEAD" {
            let tag = if asked.path == "/same" { "\"a\"" } else { "\"b\"" };
            return answer(&[("cache-control", "max-age=50"), ("etag", tag), ("x-new", "1")], "body");
        }
        if asked.turn < 2 {
            let mut fields = stale_by_forty("stale-if-error=0");
            fields.push(("etag".into(), "\"a\"".into()));
            return answer(&as_fields(&fields), "body");
        }
        numbered(asked, &[("cache-control", "max-age=60"), ("etag", "\"c\"")])
    })
    .await;
    for path in ["/same", "/other"] {
        assert_eq!(set.get(path, &[]).await.text(), "body");
    }
    let head = set.send("HEAD", "/same", &[]).await;
    assert_eq!((head.status.as_u16(), head.text()), (200, ""));
    let same = set.get("/same", &[]).await;
    is_hit(&same);
    assert_eq!((same.text(), same.header("x-new")), ("body", "1"));
    set.send("HEAD", "/other", &[]).await;
    let other = set.get("/other", &[]).await;
    assert!(other.text().starts_with("/other "), "what has changed is not given: {}", other.text());
}
