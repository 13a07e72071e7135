//! Conditions by RFC 9110 section 13 and validation by RFC 9111 section 4.3.

use super::*;
use rstest::rstest;

const NOW: u32 = 1_795_000_000;
const OLD: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
const OLDER: &str = "Sun, 06 Nov 1994 08:49:36 GMT";
const LATER: &str = "Sun, 06 Nov 1994 08:49:38 GMT";

fn headers(fields: &[(&str, &str)]) -> HeaderMap {
    let field = |(name, value): &(&str, &str)| {
        (HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_str(value).unwrap())
    };
    fields.iter().map(field).collect()
}

fn tagged(etag: &str) -> Validators<'_> {
    Validators { etag: Some(etag.as_bytes()), received: NOW, ..Validators::default() }
}

fn dated<'a>(last_modified: &'a str, date: &'a str) -> Validators<'a> {
    let field = |text: &'a str| (!text.is_empty()).then_some(text.as_bytes());
    Validators { etag: None, last_modified: field(last_modified), date: field(date), received: NOW }
}

fn judged(method: &Method, request: &[(&str, &str)], stored: &Validators<'_>) -> bool {
    evaluate(method, &headers(request), StatusCode::OK, stored) == Condition::NotModified
}

/// RFC 9110 sections 8.8.3.2 and 13.1.2.
#[rstest]
#[case("\"a\"", "\"a\"", true)]
#[case("W/\"a\"", "\"a\"", true)]
#[case("\"a\"", "W/\"a\"", true)]
#[case("W/\"a\"", "W/\"a\"", true)]
#[case("\"b\"", "\"a\"", false)]
#[case("\"b\", \"a\"", "\"a\"", true)]
#[case("\"b\",,W/\"a\" ,", "\"a\"", true)]
#[case("*", "\"a\"", true)]
#[case(" * ", "\"a\"", true)]
#[case("\"*\"", "\"a\"", false)]
#[case("\"a,b\"", "\"a,b\"", true)]
#[case("\"x, \\\"a\\\"\"", "\"a\"", false)]
#[case("\"A\"", "\"a\"", false)]
#[case("a", "\"a\"", false)]
#[case("a", "a", true)]
#[case("b, a", "a", true)]
#[case("w/\"a\"", "\"a\"", false)]
#[case("\"a", "\"a\"", false)]
#[case("", "\"a\"", false)]
fn if_none_match(#[case] list: &str, #[case] etag: &str, #[case] not_modified: bool) {
    assert_eq!(judged(&Method::GET, &[("if-none-match", list)], &tagged(etag)), not_modified);
    assert_eq!(judged(&Method::HEAD, &[("if-none-match", list)], &tagged(etag)), not_modified);
}

#[test]
fn an_empty_tag_is_nothing_to_ask_by() {
    let headers = headers(&[("etag", "")]);
    let stored = Validators::of(&headers, NOW);
    assert!(!stored.any() && stored.strong().is_none());
    assert!(!ask(&mut HeaderMap::new(), &[stored]));
}

#[test]
fn if_none_match_in_several_lines_and_without_a_tag() {
    let two = [("if-none-match", "\"b\""), ("if-none-match", "\"a\"")];
    assert!(judged(&Method::GET, &two, &tagged("\"a\"")));
    assert!(!judged(&Method::GET, &two, &dated(OLD, OLD)));
    assert!(judged(&Method::GET, &[("if-none-match", "*")], &dated(OLD, OLD)));
}

/// RFC 9110 section 13.1.3, RFC 9111 section 4.3.2.
#[rstest]
#[case(OLD, dated(OLD, LATER), true)]
#[case(LATER, dated(OLD, ""), true)]
#[case(OLDER, dated(OLD, ""), false)]
#[case("Sunday, 06-Nov-94 08:49:37 GMT", dated(OLD, ""), true)]
#[case("yesterday", dated(OLD, ""), false)]
#[case("", dated(OLD, ""), false)]
// Without Last-Modified the Date, without that the moment it came.
#[case(OLD, dated("", OLD), true)]
#[case(OLDER, dated("", OLD), false)]
#[case(OLD, dated("x", OLD), true)]
#[case(LATER, dated("", ""), false)]
#[case("Fri, 31 Dec 9999 23:59:59 GMT", dated("", ""), true)]
fn if_modified_since(#[case] since: &str, #[case] stored: Validators<'_>, #[case] not_modified: bool) {
    assert_eq!(judged(&Method::GET, &[("if-modified-since", since)], &stored), not_modified);
}

#[test]
fn conditions_that_do_not_count() {
    let since = ("if-modified-since", OLD);
    let stored = Validators { etag: Some(b"\"a\""), ..dated(OLD, OLD) };
    // Beside If-None-Match, for another method, twice, against another status.
    assert!(!judged(&Method::GET, &[("if-none-match", "\"b\""), since], &stored));
    assert!(!judged(&Method::POST, &[since], &stored));
    assert!(!judged(&Method::GET, &[since, since], &stored));
    let not_found =
        evaluate(&Method::GET, &headers(&[("if-none-match", "*")]), StatusCode::NOT_FOUND, &stored);
    assert_eq!(not_found, Condition::Give);
    assert!(is_for_origin(&headers(&[("if-match", "*")])));
    assert!(is_for_origin(&headers(&[("if-unmodified-since", OLD)])));
    assert!(!is_for_origin(&headers(&[since])) && is_conditional(&headers(&[since])));
}

/// RFC 9110 section 15.4.5.
#[test]
fn a_304_has_what_a_client_updates_by_and_nothing_else() {
    let all = [
        ("cache-control", "max-age=5"),
        ("cache-control", "public"),
        ("cdn-cache-control", "max-age=9"),
        ("content-location", "/a"),
        ("content-type", "text/plain"),
        ("content-length", "5"),
        ("date", OLD),
        ("etag", "\"a\""),
        ("expires", LATER),
        ("last-modified", OLDER),
        ("vary", "accept"),
        ("x-other", "1"),
    ];
    let made = not_modified(&headers(&all));
    let mut names: Vec<_> = made.keys().map(HeaderName::as_str).collect();
    names.sort_unstable();
    let wanted =
        ["cache-control", "cdn-cache-control", "content-location", "date", "etag", "expires", "vary"];
    assert_eq!(names, wanted);
    assert_eq!(made.get_all(header::CACHE_CONTROL).iter().count(), 2);
    assert!(not_modified(&headers(&[("last-modified", OLD)])).contains_key(header::LAST_MODIFIED));
}

/// RFC 9111 section 4.3.1.
#[test]
fn we_ask_by_all_tags_and_by_one_date() {
    let client =
        [("if-none-match", "\"mine\""), ("if-range", "\"x\""), ("range", "bytes=0-1"), ("accept", "*/*")];
    let one = Validators { etag: Some(b"W/\"a\""), ..dated(OLD, OLD) };
    let mut request = headers(&client);
    assert!(ask(&mut request, &[one]));
    assert_eq!(request.len(), 3);
    assert_eq!(
        (&request["if-none-match"], &request["if-modified-since"]),
        (&"W/\"a\"".parse().unwrap(), &OLD.parse().unwrap())
    );
    let mut request = headers(&client);
    assert!(ask(&mut request, &[one, tagged("\"b\""), dated(OLD, OLD)]));
    assert_eq!(request["if-none-match"], "W/\"a\", \"b\"");
    assert!(!request.contains_key("if-modified-since"));
    let mut request = headers(&client);
    assert!(!ask(&mut request, &[dated("x", OLD)]));
    assert_eq!(request.len(), 1);
}

/// RFC 9111 section 4.3.4.
#[test]
fn a_304_is_for_the_response_whose_validators_it_has() {
    const NONE: [usize; 0] = [];
    let stored = [tagged("\"b\""), tagged("W/\"a\""), tagged("\"a\""), dated(OLD, LATER)];
    let which = |fields: &[(&str, &str)], stored: &[Validators<'_>]| {
        confirmed(&headers(fields), stored, NOW).to_vec()
    };
    assert_eq!(which(&[("etag", "\"a\"")], &stored), [2]);
    assert_eq!(which(&[("etag", "W/\"a\"")], &stored), [1]);
    assert_eq!(which(&[("etag", "\"c\"")], &stored), NONE);
    assert_eq!(which(&[("last-modified", OLD)], &stored), [3]);
    assert_eq!(which(&[("last-modified", LATER)], &stored), NONE);
    assert_eq!(which(&[], &stored), NONE);
    assert_eq!(which(&[], &stored[..1]), [0]);
    assert_eq!(which(&[("last-modified", LATER)], &stored[3..]), NONE);
    assert_eq!(which(&[("last-modified", LATER)], &stored[..1]), [0]);
    assert_eq!(which(&[("etag", "\"a\"")], &[tagged("\"a\""), tagged("\"a\"")]), [0, 1]);
    assert_eq!(which(&[("etag", "\"a\"")], &stored[..2]), [1]);
}

/// RFC 9111 section 3.2.
#[test]
fn a_304_replaces_fields_but_not_those_of_the_body() {
    let stored = headers(&[
        ("cache-control", "max-age=5"),
        ("x-list", "1"),
        ("x-list", "2"),
        ("x-kept", "1"),
        ("content-length", "5"),
        ("content-encoding", "gzip"),
    ]);
    let new = headers(&[
        ("cache-control", "max-age=9"),
        ("x-list", "3"),
        ("x-new", "1"),
        ("content-length", "0"),
        ("content-encoding", "br"),
        ("content-range", "bytes 0-1/2"),
        ("set-cookie", "a=b"),
        ("age", "7"),
    ]);
    let wanted = headers(&[
        ("cache-control", "max-age=9"),
        ("x-list", "3"),
        ("x-kept", "1"),
        ("content-length", "5"),
        ("content-encoding", "gzip"),
        ("x-new", "1"),
    ]);
    assert_eq!(updated(&stored, &new), wanted);
}

/// RFC 9111 section 4.3.5.
#[rstest]
#[case(200, &[("etag", "\"a\""), ("content-length", "5")], AfterHead::Update)]
#[case(200, &[("etag", "\"a\"")], AfterHead::Update)]
#[case(200, &[], AfterHead::Update)]
#[case(200, &[("etag", "\"b\""), ("content-length", "5")], AfterHead::Outdate)]
#[case(200, &[("etag", "\"a\""), ("content-length", "6")], AfterHead::Outdate)]
#[case(200, &[("last-modified", OLD)], AfterHead::Outdate)]
#[case(404, &[("etag", "\"b\"")], AfterHead::Nothing)]
fn what_a_head_says_of_a_stored_get(
    #[case] status: u16,
    #[case] fields: &[(&str, &str)],
    #[case] after: AfterHead,
) {
    let status = StatusCode::from_u16(status).unwrap();
    assert_eq!(after_head(status, &headers(fields), StatusCode::OK, &tagged("\"a\""), 5), after);
}

/// RFC 9110 sections 8.8.1 and 8.8.2.2.
#[test]
fn a_validator_is_strong_if_equal_means_the_same_bytes() {
    assert_eq!(tagged("\"a\"").strong(), Some(Strong::Tag(b"\"a\"")));
    assert_eq!(tagged("W/\"a\"").strong(), None);
    assert_eq!(dated(OLD, LATER).strong(), Some(Strong::Date(784_111_777)));
    assert_eq!(dated(OLD, OLD).strong(), None);
    assert_eq!(dated(OLD, "").strong(), None);
    assert!(same_strong(b"\"a\"", b"\"a\"") && !same_strong(b"W/\"a\"", b"W/\"a\""));
}
