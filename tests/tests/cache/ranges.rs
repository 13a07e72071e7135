//! Parts of answers: given from a whole, kept as they come, and put together.

use crate::stage::{Set, answer, caching, is_hit, said, with_status};
use http::Response;
use weft_tests::{Answer, Body, scripted::Asked};

const OLD: &str = "Sun, 06 Nov 1994 08:49:37 GMT";

/// A hundred bytes of which each tells where it is.
fn hundred() -> String {
    (0..10)
        .map(|ten| (0..10).map(|one| char::from(b'0' + (ten + one) as u8 % 64)).collect::<String>())
        .collect()
}

fn whole(_: &Asked) -> Response<Body> {
    let fields = [
        ("cache-control", "max-age=60"),
        ("etag", "\"a\""),
        ("content-type", "text/x"),
        ("last-modified", OLD),
    ];
    answer(&fields, hundred())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_part_is_given_from_what_is_kept() {
    let set = Set::at_once(&caching(&[]), whole).await;
    let all = hundred();
    set.get("/", &[]).await;
    for (range, expected, first, last) in [
        ("bytes=0-9", &all[..10], 0, 9),
        ("bytes=90-", &all[90..], 90, 99),
        ("bytes=-5", &all[95..], 95, 99),
        ("BYTES=95-1000", &all[95..], 95, 99),
        ("bytes=10-19,15-29", &all[10..30], 10, 29),
        ("bytes=-1000", &all[..], 0, 99),
    ] {
        let answer = set.get("/", &[("range", range)]).await;
        is_hit(&answer);
        assert_eq!((answer.status.as_u16(), answer.text()), (206, expected), "{range}");
        assert_eq!(answer.header("content-range"), format!("bytes {first}-{last}/100"));
        assert_eq!(answer.header("content-length"), expected.len().to_string());
        assert_eq!(answer.header("content-type"), "text/x");
    }
    for range in ["bytes=100-", "bytes=-0", "bytes=500-600,700-"] {
        let answer = set.get("/", &[("range", range)]).await;
        assert_eq!((answer.status.as_u16(), answer.text()), (416, ""), "{range}");
        assert_eq!(answer.header("content-range"), "bytes */100");
    }
    // What is no range that is understood is none.
    for range in ["bytes=9-0", "lines=0-9", "bytes=a-b", "bytes=", "0-9"] {
        let answer = set.get("/", &[("range", range)]).await;
        assert_eq!((answer.status.as_u16(), answer.text()), (200, all.as_str()), "{range}");
    }
    let head = set.send("HEAD", "/", &[("range", "bytes=0-9")]).await;
    assert_eq!((head.status.as_u16(), head.header("content-length")), (200, "100"));
    assert_eq!(set.origin.begun(), 1);
}

/// The parts of a `multipart/byteranges`, each with its `Content-Range`.
fn parts(answer: &Answer) -> Vec<(String, String)> {
    let boundary =
        answer.header("content-type").strip_prefix("multipart/byteranges; boundary=").unwrap().to_owned();
    let text = answer.text();
    let pieces: Vec<_> = text.split(&format!("--{boundary}")).collect();
    assert_eq!(pieces.last().unwrap().trim_end(), "--", "{text}");
    pieces[1..pieces.len() - 1]
        .iter()
        .map(|piece| {
            let (head, body) = piece.strip_prefix("\r\n").unwrap().split_once("\r\n\r\n").unwrap();
            let range = head.lines().find_map(|line| line.strip_prefix("content-range: ")).unwrap();
            assert!(head.lines().any(|line| line == "content-type: text/x"), "{head}");
            (range.to_owned(), body.strip_suffix("\r\n").unwrap().to_owned())
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_parts_come_in_one_answer() {
    let set = Set::at_once(&caching(&[]), whole).await;
    let all = hundred();
    set.get("/", &[]).await;
    let answer = set.get("/", &[("range", "bytes=50-59, 0-4,-1")]).await;
    is_hit(&answer);
    assert_eq!(answer.status, 206);
    assert_eq!(answer.header("content-length"), answer.body.len().to_string());
    assert_eq!(answer.header("content-range"), "");
    let expected =
        [("bytes 50-59/100", &all[50..60]), ("bytes 0-4/100", &all[..5]), ("bytes 99-99/100", &all[99..])];
    assert_eq!(parts(&answer), expected.map(|(range, text)| (range.to_owned(), text.to_owned())));
    let many = (0..50).map(|n| format!("{}-{}", n * 2, n * 2)).collect::<Vec<_>>().join(",");
    let answer = set.get("/", &[("range", &format!("bytes={many}"))]).await;
    assert_eq!((answer.status.as_u16(), answer.text()), (200, all.as_str()), "so many are no honest wish");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_part_is_given_only_if_it_is_one_of_what_the_client_has() {
    let set = Set::at_once(&caching(&[]), |asked| {
        let tag = if asked.path == "/weak" { "W/\"a\"" } else { "\"a\"" };
        answer(&[("cache-control", "max-age=60"), ("etag", tag), ("last-modified", OLD)], hundred())
    })
    .await;
    for path in ["/strong", "/weak"] {
        set.get(path, &[]).await;
    }
    for (path, condition, status) in [
        ("/strong", "\"a\"", 206),
        ("/strong", "\"b\"", 200),
        ("/strong", "W/\"a\"", 200),
        ("/strong", OLD, 206),
        ("/strong", "Sun, 06 Nov 1994 08:49:38 GMT", 200),
        ("/strong", "nonsense", 200),
        ("/weak", "W/\"a\"", 200),
    ] {
        let answer = set.get(path, &[("range", "bytes=0-9"), ("if-range", condition)]).await;
        is_hit(&answer);
        assert_eq!(answer.status, status, "{path} {condition}");
        assert_eq!(answer.body.len(), if status == 206 { 10 } else { 100 });
    }
    // A condition that says that nothing has changed goes first.
    let same = set.get("/strong", &[("range", "bytes=0-9"), ("if-none-match", "\"a\"")]).await;
    assert_eq!((same.status.as_u16(), same.text()), (304, ""));
    assert_eq!(set.origin.begun(), 2);
}

/// An application that knows ranges of the form `first-last`.
fn ranged(asked: &Asked) -> Response<Body> {
    let tag = if asked.path == "/changes" && asked.turn > 0 { "\"b\"" } else { "\"a\"" };
    let fields = [("cache-control", "max-age=60"), ("etag", tag), ("content-type", "text/x")];
    let range = asked.header("range").strip_prefix("bytes=").and_then(|range| range.split_once('-'));
    let Some((first, last)) = range else { return answer(&fields, hundred()) };
    let (first, last): (usize, usize) = (first.parse().unwrap(), last.parse().unwrap());
    let range = format!("bytes {first}-{last}/100");
    let mut with_range = fields.to_vec();
    with_range.push(("content-range", &range));
    let all = if tag == "\"a\"" { hundred() } else { "x".repeat(100) };
    with_status(206, &with_range, all[first..=last].to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parts_are_kept_and_put_together_until_the_whole_is_there() {
    let set = Set::at_once(&caching(&[]), ranged).await;
    let all = hundred();
    let part = |first: usize, last: usize| {
        let (set, all) = (&set, &all);
        async move {
            let answer = set.get("/", &[("range", &format!("bytes={first}-{last}"))]).await;
            assert_eq!(
                (answer.status.as_u16(), answer.text()),
                (206, &all[first..=last]),
                "{:?}",
                answer.headers
            );
            assert_eq!(answer.header("content-range"), format!("bytes {first}-{last}/100"));
            answer
        }
    };
    assert!(said(&part(0, 49).await).contains("fwd=uri-miss"));
    assert_eq!(set.origin.last().header("range"), "bytes=0-49");
    is_hit(&part(10, 19).await);
    is_hit(&part(0, 49).await);
    assert_eq!(set.origin.begun(), 1);
    assert!(said(&part(40, 99).await).contains("fwd=partial"));
    assert_eq!(set.origin.begun(), 2);
    is_hit(&part(30, 70).await);
    let whole = set.get("/", &[]).await;
    is_hit(&whole);
    assert_eq!((whole.status.as_u16(), whole.text(), whole.header("content-range")), (200, all.as_str(), ""));
    assert_eq!(set.origin.begun(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parts_of_different_states_are_never_put_together() {
    let set = Set::at_once(&caching(&[]), ranged).await;
    let first = set.get("/changes", &[("range", "bytes=0-49")]).await;
    assert_eq!((first.text(), first.header("etag")), (&hundred()[..50], "\"a\""));
    let second = set.get("/changes", &[("range", "bytes=50-99")]).await;
    assert_eq!((second.text(), second.header("etag")), ("x".repeat(50).as_str(), "\"b\""));
    let across = set.get("/changes", &[("range", "bytes=40-59")]).await;
    let tag = across.header("etag");
    assert_eq!((across.text(), tag), ("x".repeat(20).as_str(), "\"b\""), "{:?}", across.headers);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_part_is_never_given_for_the_whole() {
    let set = Set::at_once(&caching(&[]), ranged).await;
    set.get("/", &[("range", "bytes=0-49")]).await;
    let whole = set.get("/", &[]).await;
    assert_eq!((whole.status.as_u16(), whole.text()), (200, hundred().as_str()));
    is_hit(&set.get("/", &[("range", "bytes=60-69")]).await);
}
