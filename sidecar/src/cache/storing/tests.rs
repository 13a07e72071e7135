//! What may be kept, by RFC 9111 section 3.

use super::*;
use http::HeaderValue;
use rstest::rstest;
use weft_config::snapshot::{CacheKeyRules, CacheOverride, CacheTagRules, CacheTtlRules, CachedMethod};

const NOW: u32 = 1_795_000_000;
const OLD: &str = "Sun, 06 Nov 1994 08:49:37 GMT";

fn headers(fields: &[(&str, &str)]) -> HeaderMap {
    let field = |(name, value): &(&str, &str)| {
        (HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_str(value).unwrap())
    };
    fields.iter().map(field).collect()
}

fn decided(
    kind: Kind,
    request: &[(&str, &str)],
    status: u16,
    response: &[(&str, &str)],
    rules: &CacheRules,
) -> Result<Keep, Refusal> {
    let request = headers(request);
    let asked = Asked {
        kind,
        headers: &request,
        directives: &RequestDirectives::of(&request),
        scheme: "http",
        authority: "products",
        path: "/a",
        query: Some("b=1"),
    };
    let status = StatusCode::from_u16(status).unwrap();
    let arrival = Arrival { requested: NOW, received: NOW };
    decide(&asked, status, &headers(response), rules, arrival)
}

/// A 200 to a GET under the default policy.
fn ok(request: &[(&str, &str)], response: &[(&str, &str)]) -> Result<Keep, Refusal> {
    decided(Kind::Get, request, 200, response, &CacheRules::default())
}

fn refused(response: &[(&str, &str)]) -> Option<Refusal> {
    ok(&[], response).err()
}

const FRESH: (&str, &str) = ("cache-control", "max-age=10");

#[rstest]
#[case("max-age=10", None)]
#[case("s-maxage=10", None)]
#[case("public, max-age=10", None)]
#[case("no-store", Some(Refusal::NoStore))]
#[case("no-store, max-age=10", Some(Refusal::NoStore))]
#[case("private, max-age=10", Some(Refusal::Private))]
#[case("private=\"x-user\", max-age=10", None)]
// Section 5.2.2.3.
#[case("no-store, must-understand, max-age=10", None)]
#[case("max-age=0", Some(Refusal::NoFreshness))]
#[case("no-cache", Some(Refusal::NoFreshness))]
#[case("public", Some(Refusal::NoFreshness))]
#[case("max-age=0, stale-if-error=5", None)]
fn cache_control_says_whether(#[case] line: &str, #[case] refusal: Option<Refusal>) {
    assert_eq!(refused(&[("cache-control", line)]), refusal);
}

#[test]
fn what_can_be_asked_about_is_kept_to_be_asked_about() {
    let etag = ("etag", "\"a\"");
    assert_eq!(refused(&[("cache-control", "no-cache"), etag]), None);
    assert_eq!(refused(&[("cache-control", "max-age=0"), etag]), None);
    assert_eq!(refused(&[("expires", "0"), ("last-modified", OLD)]), None);
    // But nothing says that it is for more than this one request.
    assert_eq!(refused(&[etag]), Some(Refusal::NoFreshness));
    assert_eq!(refused(&[]), Some(Refusal::NoFreshness));
    assert_eq!(refused(&[("last-modified", OLD)]), None);
}

#[test]
fn a_guess_is_not_made_for_what_cookies_may_have_made() {
    let response = [("last-modified", OLD)];
    assert_eq!(ok(&[("cookie", "a=b")], &response).err(), Some(Refusal::NoFreshness));
    assert!(ok(&[("cookie", "a=b")], &[FRESH]).is_ok());
}

/// RFC 9110 section 15, RFC 6585.
#[test]
fn statuses_that_are_kept_where_their_freshness_is_stated() {
    let never = [304, 401, 407, 408, 412, 416, 417, 421, 425, 426, 428, 429, 431, 511];
    for status in 100..600 {
        let found = decided(Kind::Get, &[], status, &[FRESH], &CacheRules::default()).err();
        let expected = match status {
            ..200 => Some(Refusal::Status),
            206 => Some(Refusal::Partial),
            _ => never.contains(&status).then_some(Refusal::Status),
        };
        assert_eq!(found, expected, "{status}");
    }
}

#[test]
fn must_understand_is_for_statuses_that_are_understood() {
    let line = [("cache-control", "no-store, must-understand, max-age=10")];
    let refusal = |status| decided(Kind::Get, &[], status, &line, &CacheRules::default()).err();
    assert_eq!((refusal(200), refusal(404)), (None, None));
    assert_eq!((refusal(299), refusal(599)), (Some(Refusal::MustUnderstand), Some(Refusal::MustUnderstand)));
}

/// Section 3.5.
#[rstest]
#[case("max-age=10", true)]
#[case("max-age=10, public", false)]
#[case("s-maxage=10", false)]
#[case("max-age=10, must-revalidate", false)]
#[case("max-age=10, proxy-revalidate", true)]
fn answers_to_credentials_are_one_persons_unless_they_say_otherwise(
    #[case] line: &str,
    #[case] is_refused: bool,
) {
    let (credentials, response) = ([("authorization", "Bearer x")], [("cache-control", line)]);
    let refusal = ok(&credentials, &response).err();
    assert_eq!(refusal, is_refused.then_some(Refusal::Authorization));
    let key = CacheKeyRules { headers: [header::AUTHORIZATION].into(), ..CacheKeyRules::default() };
    let keyed = CacheRules { key, ..CacheRules::default() };
    assert!(decided(Kind::Get, &credentials, 200, &response, &keyed).is_ok());
}

#[test]
fn a_request_can_forbid_it() {
    let request = [("cache-control", "no-store")];
    assert_eq!(ok(&request, &[FRESH]).err(), Some(Refusal::RequestNoStore));
}

#[test]
fn vary_is_noted_and_a_star_refused() {
    assert_eq!(refused(&[FRESH, ("vary", "*")]), Some(Refusal::Vary));
    let keep = ok(&[], &[FRESH, ("vary", "Accept")]).unwrap();
    assert_eq!(keep.vary[..], [header::ACCEPT]);
}

#[test]
fn set_cookie_is_as_the_policy_says() {
    let response = [FRESH, ("set-cookie", "a=b"), ("x-user", "me")];
    assert_eq!(refused(&response), Some(Refusal::SetCookie));
    let strip = CacheRules { strip_set_cookie: true, ..CacheRules::default() };
    let keep = decided(Kind::Get, &[], 200, &response, &strip).unwrap();
    assert!(!keep.fields(&headers(&response), &strip, None).map().contains_key("set-cookie"));
    // The origin itself says that the rest is for all.
    let response = [
        ("cache-control", "max-age=10, no-cache=\"set-cookie\", private=\"x-user\""),
        response[1],
        response[2],
    ];
    let keep = ok(&[], &response).unwrap();
    let fields = keep.fields(&headers(&response), &CacheRules::default(), None).map();
    assert!(!fields.contains_key("set-cookie") && !fields.contains_key("x-user"));
}

/// Section 3.1.
#[test]
fn fields_of_the_connection_are_not_kept() {
    let response = [
        FRESH,
        ("connection", "x-hop"),
        ("x-hop", "1"),
        ("keep-alive", "timeout=5"),
        ("proxy-authenticate", "Basic"),
        ("proxy-authentication-info", "x"),
        ("transfer-encoding", "chunked"),
        ("age", "5"),
        ("weft-retried", "1"),
        ("weft-cache-control", "max-age=10"),
        ("x-kept", "1"),
    ];
    let keep = ok(&[], &response).unwrap();
    let fields = keep.fields(&headers(&response), &CacheRules::default(), None).map();
    let mut names: Vec<_> = fields.keys().map(HeaderName::as_str).collect();
    names.sort_unstable();
    assert_eq!(names, ["cache-control", "date", "weft-cache-control", "x-kept"]);
    assert_eq!(fields["date"], date::write(NOW));
    assert_eq!(keep.terms.initial_age, 5);
}

#[test]
fn our_own_errors_are_not_kept() {
    let refusal = decided(Kind::Get, &[], 404, &[FRESH, ("weft-error", "no_route")], &CacheRules::default());
    assert_eq!(refusal.err(), Some(Refusal::Error));
}

/// Section 3.3.
#[rstest]
#[case(true, "bytes 0-4/10", "\"a\"", true)]
#[case(false, "bytes 0-4/10", "\"a\"", false)]
#[case(true, "bytes 0-4/10", "W/\"a\"", false)]
#[case(true, "bytes */10", "\"a\"", false)]
fn a_part_is_kept_if_it_can_be_told_of_what(
    #[case] asked_for: bool,
    #[case] content_range: &str,
    #[case] etag: &str,
    #[case] kept: bool,
) {
    let request: &[(&str, &str)] = if asked_for { &[("range", "bytes=0-4")] } else { &[] };
    let response = [FRESH, ("content-range", content_range), ("etag", etag)];
    let found = decided(Kind::Get, request, 206, &response, &CacheRules::default());
    match found {
        Ok(keep) => assert!(kept && keep.part == Some(Part { range: 0..5, complete: Some(10) })),
        Err(refusal) => assert!(!kept && refusal == Refusal::Partial),
    }
}

#[test]
fn what_is_too_large_is_known_before_it_comes() {
    assert_eq!(refused(&[FRESH, ("content-length", "1048576")]), None);
    assert_eq!(refused(&[FRESH, ("content-length", "1048577")]), Some(Refusal::TooLarge));
}

/// RFC 9110 section 9.3.3.
#[test]
fn a_post_must_say_its_freshness_itself() {
    let ttl = CacheTtlRules { default: Some(Duration::from_secs(9)), ..CacheTtlRules::default() };
    let rules = CacheRules { post: true, ttl, ..CacheRules::default() };
    let post = |response: &[(&str, &str)]| decided(Kind::Post, &[], 200, response, &rules);
    assert_eq!(post(&[]).err(), Some(Refusal::NoFreshness));
    assert_eq!(post(&[("cache-control", "public")]).err(), Some(Refusal::NoFreshness));
    assert!(!post(&[FRESH]).unwrap().for_get);
    assert!(post(&[FRESH, ("content-location", "/a?b=1")]).unwrap().for_get);
    assert!(post(&[FRESH, ("content-location", "http://products:80/a?b=1")]).unwrap().for_get);
    assert!(!post(&[FRESH, ("content-location", "/a")]).unwrap().for_get);
    assert!(!post(&[FRESH, ("content-location", "http://other/a?b=1")]).unwrap().for_get);
}

#[test]
fn a_grpc_answer_has_the_freshness_of_its_method_unless_it_failed() {
    let grpc = |response: &[(&str, &str)]| {
        decided(Kind::Grpc(Duration::from_secs(5)), &[], 200, response, &CacheRules::default())
    };
    assert_eq!(grpc(&[]).unwrap().terms.lifetime, 5);
    assert_eq!(grpc(&[("grpc-status", "0")]).unwrap().source, Source::Method);
    assert_eq!(grpc(&[("cache-control", "max-age=2")]).unwrap().terms.lifetime, 2);
    assert_eq!(grpc(&[("cache-control", "no-store")]).err(), Some(Refusal::NoStore));
    assert_eq!(grpc(&[("grpc-status", "14")]).err(), Some(Refusal::GrpcStatus));
}

fn over(statuses: &[u16], ttl: u64, force: bool) -> CacheRules {
    let over =
        CacheOverride { statuses: statuses.into(), paths: [].into(), ttl: Duration::from_secs(ttl), force };
    CacheRules {
        ttl: CacheTtlRules { overrides: [over].into(), ..CacheTtlRules::default() },
        ..CacheRules::default()
    }
}

#[test]
fn an_override_gives_time_but_only_a_forced_one_goes_against_the_origin() {
    let get = |status, line: &str, rules: &CacheRules| {
        decided(Kind::Get, &[], status, &[("cache-control", line)], rules).map(|keep| keep.terms.lifetime)
    };
    assert_eq!(get(200, "", &over(&[], 5, false)), Ok(5));
    assert_eq!(get(200, "max-age=99", &over(&[], 5, false)), Ok(5));
    assert_eq!(get(200, "max-age=99", &over(&[], 0, false)), Err(Refusal::Policy));
    // Without its status an error is not meant.
    assert_eq!(get(503, "", &over(&[], 5, false)), Err(Refusal::NoFreshness));
    assert_eq!(get(503, "", &over(&[503], 5, false)), Ok(5));
    for (line, refusal) in [("no-store", Refusal::NoStore), ("private", Refusal::Private)] {
        assert_eq!(get(200, line, &over(&[], 5, false)), Err(refusal));
        assert_eq!(get(200, line, &over(&[], 5, true)), Ok(5));
    }
    let credentials = [("authorization", "x")];
    let forced = decided(Kind::Get, &credentials, 200, &[], &over(&[], 5, true));
    assert_eq!(forced.err(), Some(Refusal::Authorization));
}

#[test]
fn which_requests_are_looked_up() {
    let method = CachedMethod { path: "/s/M".into(), ttl: Duration::from_secs(5) };
    let mut rules = CacheRules { grpc: [method].into(), ..CacheRules::default() };
    let look = |method: &Method, fields: &[(&str, &str)], has_body, rules: &CacheRules| {
        let headers = headers(fields);
        kind(method, "/s/M", &headers, Notable::of(&headers), has_body, rules)
    };
    assert_eq!(look(&Method::GET, &[], false, &rules), Ok(Kind::Get));
    assert_eq!(look(&Method::HEAD, &[], false, &rules), Ok(Kind::Head));
    assert_eq!(look(&Method::GET, &[], true, &rules), Err(Bypass::FatGet));
    assert_eq!(look(&Method::PUT, &[], false, &rules), Err(Bypass::Method));
    assert_eq!(look(&Method::POST, &[], true, &rules), Err(Bypass::Method));
    let grpc = [("content-type", "application/grpc")];
    assert_eq!(look(&Method::POST, &grpc, true, &rules), Ok(Kind::Grpc(Duration::from_secs(5))));
    assert_eq!(look(&Method::POST, &grpc, true, &CacheRules::default()), Err(Bypass::Method));
    rules.post = true;
    assert_eq!(look(&Method::POST, &[], true, &rules), Ok(Kind::Post));
    assert_eq!(look(&Method::GET, &[("if-match", "*")], false, &rules), Err(Bypass::Precondition));
    assert_eq!(look(&Method::GET, &[("upgrade", "websocket")], false, &rules), Err(Bypass::Upgrade));
}

/// Sections 3.2 and 4.3.4.
#[test]
fn a_304_gives_a_stored_answer_new_time_or_takes_it_away() {
    let none = HeaderMap::new();
    let (plain, no_store) =
        (RequestDirectives::default(), RequestDirectives { no_store: true, ..Default::default() });
    let stored =
        headers(&[("cache-control", "max-age=10"), ("etag", "\"a\""), ("date", OLD), ("x-user", "1")]);
    let refresh = |new: &[(&str, &str)], directives: &RequestDirectives| {
        let asked = Asked {
            kind: Kind::Get,
            headers: &none,
            directives,
            scheme: "http",
            authority: "products",
            path: "/a",
            query: None,
        };
        let arrival = Arrival { requested: NOW, received: NOW };
        refreshed(&asked, StatusCode::OK, &stored, &headers(new), &CacheRules::default(), arrival)
    };
    let (fields, keep) = refresh(&[("age", "3"), ("weft-retried", "1"), ("set-cookie", "a=b")], &plain);
    let keep = keep.unwrap();
    // Without a date of its own it was made when it came.
    assert_eq!((keep.terms.initial_age, keep.terms.lifetime), (3, 10));
    assert_eq!(fields["date"], date::write(NOW));
    assert!(!["age", "weft-retried", "set-cookie"].iter().any(|name| fields.contains_key(*name)));
    let (fields, keep) = refresh(&[("cache-control", "max-age=20, private=\"x-user\"")], &plain);
    assert_eq!(keep.unwrap().terms.lifetime, 20);
    assert!(!fields.contains_key("x-user"));
    assert_eq!(refresh(&[("cache-control", "no-store")], &plain).1, Err(Refusal::NoStore));
    assert_eq!(refresh(&[], &no_store).1, Err(Refusal::RequestNoStore));
}

#[test]
fn labels_are_listed_once_and_within_bounds() {
    let mut rules = CacheRules::default();
    let response = headers(&[("cache-tag", "a,b  c,,a"), ("cache-tag", "d")]);
    assert!(tags(&response, &rules).is_empty());
    rules.tags = Some(CacheTagRules { header: HeaderName::from_static("cache-tag"), strip: true });
    assert_eq!(tags(&response, &rules)[..], [b"a", b"b", b"c", b"d"]);
    let long = "x".repeat(TAG_MAX + 1);
    assert!(tags(&headers(&[("cache-tag", &long)]), &rules).is_empty());
}
