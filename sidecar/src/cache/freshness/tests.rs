//! Age and freshness by RFC 9111 section 4.2, RFC 5861 and RFC 8246, and the laws of their arithmetic.

use super::*;
use http::{HeaderName, HeaderValue};
use proptest::prelude::*;
use rstest::rstest;
use weft_config::snapshot::{CacheOverride, CachePath, CacheTtlRules};

/// When the tests' responses come.
const NOW: u32 = 1_795_000_000;

/// A date some seconds before (or, if negative, after) [`NOW`].
fn ago(seconds: i64) -> String {
    date::write(u32::try_from(i64::from(NOW) - seconds).unwrap()).to_str().unwrap().to_owned()
}

fn headers(fields: &[(&str, &str)]) -> HeaderMap {
    let field = |(name, value): &(&str, &str)| {
        let value = match value.strip_prefix("ago:") {
            Some(seconds) => ago(seconds.parse().unwrap()),
            None => (*value).to_owned(),
        };
        (HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::try_from(value).unwrap())
    };
    fields.iter().map(field).collect()
}

fn around(rules: &CacheRules) -> Circumstances<'_> {
    let arrival = Arrival { requested: NOW, received: NOW };
    Circumstances { rules, path: "/a/b", method: None, personal: false, arrival }
}

fn terms_of(status: u16, fields: &[(&str, &str)], rules: &CacheRules) -> (Terms, Source) {
    let headers = headers(fields);
    let directives = ResponseDirectives::of(&headers);
    Terms::new(StatusCode::from_u16(status).unwrap(), &headers, &directives, &around(rules))
}

fn terms(cache_control: &str) -> Terms {
    terms_of(200, &[("cache-control", cache_control)], &CacheRules::default()).0
}

fn ask(cache_control: &str) -> RequestDirectives {
    let value = HeaderValue::from_str(cache_control).unwrap();
    RequestDirectives::of(&HeaderMap::from_iter([(header::CACHE_CONTROL, value)]))
}

/// Section 4.2.3.
#[rstest]
#[case(&[], 0, 0)]
#[case(&[("date", "ago:5")], 0, 5)]
#[case(&[("date", "ago:-5")], 0, 0)]
#[case(&[("date", "never")], 0, 0)]
#[case(&[("age", "7")], 0, 7)]
#[case(&[("age", "7")], 3, 10)]
#[case(&[("age", "7"), ("date", "ago:9")], 0, 9)]
#[case(&[("age", "7"), ("date", "ago:9")], 3, 10)]
// Section 5.1: the first of a list, of whatever lines; nothing if that is no number.
#[case(&[("age", "7, 100")], 0, 7)]
#[case(&[("age", "7"), ("age", "100")], 0, 7)]
#[case(&[("age", "100"), ("age", "7")], 0, 100)]
#[case(&[("age", "x, 7")], 0, 0)]
#[case(&[("age", "-7")], 0, 0)]
#[case(&[("age", "7.5")], 0, 0)]
#[case(&[("age", "7;a=b")], 0, 0)]
#[case(&[("age", "")], 0, 0)]
#[case(&[("age", "99999999999999999999")], 0, FOREVER)]
#[case(&[("age", "2147483648")], 9, FOREVER)]
fn age_when_it_came(#[case] fields: &[(&str, &str)], #[case] delay: u32, #[case] age: u32) {
    let arrival = Arrival { requested: NOW - delay, received: NOW };
    assert_eq!(initial_age(&headers(fields), arrival), age);
}

/// Section 4.2.1 and, from the heuristic on, 4.2.2.
#[rstest]
#[case(200, &[("cache-control", "max-age=10")], 10, Source::Origin)]
#[case(200, &[("cache-control", "max-age=10, s-maxage=5")], 5, Source::Origin)]
#[case(200, &[("cache-control", "max-age=10"), ("expires", "ago:-99")], 10, Source::Origin)]
#[case(200, &[("expires", "ago:-99")], 99, Source::Origin)]
#[case(200, &[("expires", "ago:-99"), ("date", "ago:1")], 100, Source::Origin)]
#[case(200, &[("expires", "ago:-99"), ("date", "never")], 99, Source::Origin)]
#[case(200, &[("expires", "ago:0"), ("date", "ago:0")], 0, Source::Origin)]
#[case(200, &[("expires", "ago:9"), ("last-modified", "ago:999")], 0, Source::Origin)]
#[case(200, &[("expires", "0"), ("last-modified", "ago:999")], 0, Source::Origin)]
#[case(200, &[("expires", ""), ("last-modified", "ago:999")], 0, Source::Origin)]
#[case(200, &[("expires", "ago:-99"), ("expires", "ago:-9")], 9, Source::Origin)]
#[case(200, &[("expires", "ago:-99"), ("expires", "soon")], 0, Source::Origin)]
#[case(200, &[("expires", "Fri, 31 Dec 9999 23:59:59 GMT")], FOREVER, Source::Origin)]
#[case(500, &[("cache-control", "max-age=10")], 10, Source::Origin)]
#[case(200, &[("cdn-cache-control", "max-age=7"), ("cache-control", "max-age=1"), ("expires", "0")], 7, Source::Origin)]
#[case(200, &[("cdn-cache-control", "public"), ("cache-control", "max-age=1"), ("expires", "ago:-9")], 0, Source::Nobody)]
#[case(200, &[], 0, Source::Nobody)]
#[case(200, &[("last-modified", "ago:1000")], 100, Source::Heuristic)]
#[case(200, &[("last-modified", "ago:1000"), ("date", "ago:500")], 50, Source::Heuristic)]
#[case(200, &[("last-modified", "ago:-1000")], 0, Source::Heuristic)]
#[case(200, &[("last-modified", "ago:99999999")], 86_400, Source::Heuristic)]
#[case(200, &[("last-modified", "x")], 0, Source::Nobody)]
#[case(302, &[("last-modified", "ago:1000")], 0, Source::Nobody)]
#[case(302, &[("last-modified", "ago:1000"), ("cache-control", "public")], 100, Source::Heuristic)]
fn lifetimes(
    #[case] status: u16,
    #[case] fields: &[(&str, &str)],
    #[case] lifetime: u32,
    #[case] source: Source,
) {
    let (terms, by) = terms_of(status, fields, &CacheRules::default());
    assert_eq!((terms.lifetime, by), (lifetime, source));
}

/// RFC 9110 section 15.1.
#[test]
fn only_some_statuses_are_guessed_at() {
    for status in 200..600 {
        let (_, source) = terms_of(status, &[("last-modified", "ago:1000")], &CacheRules::default());
        let listed = [200, 203, 204, 206, 300, 301, 308, 404, 405, 410, 414, 501].contains(&status);
        assert_eq!(source == Source::Heuristic, listed, "{status}");
    }
}

#[test]
fn nothing_is_guessed_about_what_may_be_one_persons() {
    let (rules, headers) = (CacheRules::default(), headers(&[("last-modified", "ago:1000")]));
    let around = Circumstances { personal: true, ..around(&rules) };
    let mut directives = ResponseDirectives::default();
    assert_eq!(Terms::new(StatusCode::OK, &headers, &directives, &around).1, Source::Nobody);
    directives.public = true;
    assert_eq!(Terms::new(StatusCode::OK, &headers, &directives, &around).1, Source::Heuristic);
}

fn rules(default: Option<u64>, max: Option<u64>, overrides: &[CacheOverride]) -> CacheRules {
    let ttl = CacheTtlRules {
        default: default.map(Duration::from_secs),
        max: max.map(Duration::from_secs),
        overrides: overrides.into(),
    };
    CacheRules { ttl, ..CacheRules::default() }
}

fn over(statuses: &[u16], below: &str, ttl: u64, force: bool) -> CacheOverride {
    let paths = if below.is_empty() { vec![] } else { vec![CachePath::Below(below.into())] };
    CacheOverride { statuses: statuses.into(), paths: paths.into(), ttl: Duration::from_secs(ttl), force }
}

#[test]
fn the_policy_can_say_how_long() {
    let lifetime = |status, cache_control: &str, rules: &CacheRules| {
        let (terms, source) = terms_of(status, &[("cache-control", cache_control)], rules);
        (terms.lifetime, source)
    };
    let default = rules(Some(20), Some(60), &[]);
    assert_eq!(lifetime(200, "", &default), (20, Source::Default));
    assert_eq!(lifetime(500, "", &default), (0, Source::Nobody));
    assert_eq!(lifetime(200, "max-age=5", &default), (5, Source::Origin));
    assert_eq!(lifetime(200, "max-age=500", &default), (60, Source::Origin));
    let over = rules(None, None, &[over(&[404], "", 3, false), over(&[], "/a", 9, false)]);
    assert_eq!(lifetime(404, "max-age=500", &over), (3, Source::Override));
    assert_eq!(lifetime(200, "s-maxage=500", &over), (9, Source::Override));
}

#[test]
fn only_a_forced_override_holds_against_no_cache() {
    for force in [false, true] {
        let rules = rules(None, None, &[over(&[], "", 9, force)]);
        let (terms, _) = terms_of(200, &[("cache-control", "no-cache")], &rules);
        let expected = if force {
            Freshness::Fresh { left: 9 }
        } else {
            Freshness::MustRevalidate { why: Why::NoCache, if_error: false }
        };
        assert_eq!(terms.judge(&RequestDirectives::default(), NOW), expected);
    }
}

const fn stale(by: u32, while_revalidate: bool, if_error: bool, max_stale: bool) -> Freshness {
    Freshness::Stale { by, may: May { while_revalidate, if_error, max_stale } }
}

const fn must(why: Why, if_error: bool) -> Freshness {
    Freshness::MustRevalidate { why, if_error }
}

/// What a response is good for so many seconds after it came.
#[rstest]
#[case("max-age=10", "", 0, Freshness::Fresh { left: 10 })]
#[case("max-age=10", "", 9, Freshness::Fresh { left: 1 })]
#[case("max-age=10", "", 10, stale(0, false, false, false))]
#[case("max-age=0", "", 0, stale(0, false, false, false))]
// Section 5.2.2.4.
#[case("max-age=10, no-cache", "", 0, must(Why::NoCache, false))]
#[case("max-age=10, no-cache, stale-if-error=99", "max-stale", 20, must(Why::NoCache, false))]
#[case("max-age=10, no-cache=\"x\"", "", 0, Freshness::Fresh { left: 10 })]
// Sections 5.2.2.2, 5.2.2.8, 5.2.2.10.
#[case("max-age=10, must-revalidate, stale-if-error=99", "max-stale", 10, must(Why::NeverStale, false))]
#[case(
    "max-age=10, proxy-revalidate, stale-while-revalidate=99",
    "max-stale",
    10,
    must(Why::NeverStale, false)
)]
#[case("s-maxage=10, stale-if-error=99", "max-stale", 10, must(Why::NeverStale, false))]
#[case("max-age=10, must-revalidate", "", 9, Freshness::Fresh { left: 1 })]
// RFC 5861.
#[case("max-age=10, stale-while-revalidate=5", "", 14, stale(4, true, false, false))]
#[case("max-age=10, stale-while-revalidate=5", "", 15, stale(5, false, false, false))]
#[case("max-age=10, stale-if-error=5", "", 14, stale(4, false, true, false))]
#[case("max-age=10, stale-if-error=5", "", 15, stale(5, false, false, false))]
#[case("max-age=10", "stale-if-error=5", 14, stale(4, false, true, false))]
// Section 5.2.1.1.
#[case("max-age=10", "max-age=5", 5, Freshness::Fresh { left: 5 })]
#[case("max-age=10", "max-age=5", 6, must(Why::RequestMaxAge, true))]
#[case("max-age=10", "max-age=0", 0, must(Why::RequestMaxAge, true))]
#[case("max-age=10, stale-if-error=5", "max-age=0", 12, must(Why::RequestMaxAge, true))]
#[case("max-age=10, stale-if-error=5", "max-age=0", 15, must(Why::RequestMaxAge, false))]
// Section 5.2.1.2.
#[case("max-age=10", "max-stale", 9999, stale(9989, false, false, true))]
#[case("max-age=10", "max-stale=5", 15, stale(5, false, false, true))]
#[case("max-age=10", "max-stale=5", 16, stale(6, false, false, false))]
// Section 5.2.1.3.
#[case("max-age=10", "min-fresh=5", 5, Freshness::Fresh { left: 5 })]
#[case("max-age=10", "min-fresh=5", 6, must(Why::RequestMinFresh, true))]
#[case("max-age=10, stale-while-revalidate=9", "min-fresh=1, max-stale", 12, stale(2, false, false, false))]
// Section 5.2.1.4.
#[case("max-age=10", "no-cache", 0, must(Why::RequestNoCache, false))]
// RFC 8246: not for a reload, but when it is asked for in words.
#[case("max-age=10, immutable", "max-age=0", 5, Freshness::Fresh { left: 5 })]
#[case("max-age=10, immutable", "max-age=0", 10, must(Why::RequestMaxAge, false))]
#[case("max-age=10, immutable", "no-cache", 5, must(Why::RequestNoCache, false))]
fn what_it_is_good_for(
    #[case] response: &str,
    #[case] request: &str,
    #[case] after: u32,
    #[case] expected: Freshness,
) {
    assert_eq!(terms(response).judge(&ask(request), NOW + after), expected);
}

#[test]
fn the_policy_says_how_long_stale_where_the_response_does_not() {
    let second = Duration::from_secs;
    let rules = CacheRules { while_revalidate: second(5), if_error: second(50), ..CacheRules::default() };
    let at = |cache_control: &str, after: u32| {
        let (terms, _) = terms_of(200, &[("cache-control", cache_control)], &rules);
        terms.judge(&RequestDirectives::default(), NOW + after)
    };
    assert_eq!(at("max-age=10", 12), stale(2, true, true, false));
    assert_eq!(at("max-age=10", 59), stale(49, false, true, false));
    assert_eq!(at("max-age=10, stale-if-error=0", 12), stale(2, true, false, false));
    assert_eq!(at("max-age=10, must-revalidate", 12), must(Why::NeverStale, false));
}

#[test]
fn a_clock_that_is_set_back_makes_nothing_younger() {
    let (terms, _) = terms_of(200, &[("cache-control", "max-age=10"), ("age", "3")], &CacheRules::default());
    assert_eq!(terms.age(NOW - 1000), 3);
    assert_eq!(terms.left(NOW + 8), -1);
}

#[test]
fn it_is_useful_until_nothing_can_be_done_with_it() {
    let until = |fields: &[(&str, &str)]| {
        let (terms, _) = terms_of(200, fields, &CacheRules::default());
        (terms.is_useful(), terms.useful_until() - NOW)
    };
    assert_eq!(until(&[("cache-control", "max-age=10"), ("age", "4")]), (true, 6));
    assert_eq!(until(&[("cache-control", "max-age=10"), ("age", "40")]), (false, 0));
    assert_eq!(until(&[("cache-control", "max-age=10, stale-if-error=7"), ("age", "12")]), (true, 5));
    assert_eq!(until(&[("cache-control", "max-age=10, stale-if-error=7"), ("age", "40")]), (false, 0));
    assert_eq!(until(&[("cache-control", "s-maxage=10, stale-if-error=7"), ("age", "40")]), (false, 0));
    assert_eq!(until(&[("cache-control", "no-cache, max-age=10")]), (false, 10));
    assert_eq!(until(&[("cache-control", "no-cache"), ("etag", "\"a\"")]), (true, ASK_AGAIN));
}

fn any_terms() -> impl Strategy<Value = Terms> {
    let times = (any::<u32>(), any::<u32>(), any::<u32>(), any::<u32>(), any::<u32>(), 0_u16..32);
    times.prop_map(|(received, initial_age, lifetime, while_revalidate, if_error, flags)| Terms {
        received,
        initial_age: initial_age.min(FOREVER),
        lifetime: lifetime.min(FOREVER),
        while_revalidate: while_revalidate.min(FOREVER),
        if_error: if_error.min(FOREVER),
        flags: Flags(flags),
    })
}

proptest! {
    #[test]
    fn age_never_falls_and_never_overflows(terms in any_terms(), now: u32, later: u32) {
        let later = now.saturating_add(later);
        prop_assert!(terms.age(later) >= terms.age(now));
        prop_assert!(terms.age(now) >= terms.initial_age && terms.age(later) <= FOREVER);
        prop_assert!(terms.left(later) <= terms.left(now));
    }

    #[test]
    fn what_is_stale_never_becomes_fresh(terms in any_terms(), now: u32, later: u32) {
        let none = RequestDirectives::default();
        if !matches!(terms.judge(&none, now), Freshness::Fresh { .. }) {
            let judged = terms.judge(&none, now.saturating_add(later));
            let is_fresh = matches!(judged, Freshness::Fresh { .. });
            prop_assert!(!is_fresh);
        }
    }

    #[test]
    fn the_store_keeps_them_all(terms in any_terms(), requested: u32) {
        let times = terms.times(requested);
        prop_assert_eq!(Terms::of(&times, terms.flags.0), terms);
        prop_assert_eq!((times.requested, times.useful_until), (requested, terms.useful_until()));
    }

    #[test]
    fn fresh_and_left_agree(terms in any_terms(), now: u32) {
        if let Freshness::Fresh { left } = terms.judge(&RequestDirectives::default(), now) {
            prop_assert!(left > 0 && i64::from(left) == terms.left(now));
        }
    }

    #[test]
    fn what_must_not_be_given_stale_never_is(mut terms in any_terms(), now: u32, max_stale: u32, if_error: u32) {
        terms.flags.0 |= Flags::NEVER_STALE.0;
        let ask = RequestDirectives { max_stale: Some(max_stale), if_error, ..RequestDirectives::default() };
        let judged = terms.judge(&ask, now);
        let given = matches!(judged, Freshness::Stale { .. } | Freshness::MustRevalidate { if_error: true, .. });
        prop_assert!(!given || terms.left(now) > 0);
    }

    #[test]
    fn nothing_is_given_once_it_is_of_no_use(terms in any_terms(), later in 1_u32..1 << 20) {
        // Far from the ends of what can be counted.
        let near = |time: u32| time >> 8;
        let terms = Terms {
            received: near(terms.received),
            initial_age: near(terms.initial_age),
            lifetime: near(terms.lifetime),
            while_revalidate: near(terms.while_revalidate),
            if_error: near(terms.if_error),
            ..terms
        };
        let now = terms.useful_until() + later;
        let judged = terms.judge(&RequestDirectives::default(), now);
        let given = match judged {
            Freshness::Fresh { .. } => true,
            Freshness::Stale { may, .. } => may.while_revalidate || may.if_error,
            Freshness::MustRevalidate { if_error, .. } => if_error,
        };
        prop_assert!(!given);
    }

    #[test]
    fn the_sums_are_those_of_the_rfc(
        date in 0_u32..100_000, age in 0_u32..100_000, delay in 0_u32..1000, max_age in 0_u32..200_000, resident in 0_u32..200_000,
    ) {
        let (date_field, age_field) = (ago(date.into()), age.to_string());
        let control = format!("max-age={max_age}");
        let headers = headers(&[("date", &date_field), ("age", &age_field), ("cache-control", &control)]);
        let rules = CacheRules::default();
        let arrival = Arrival { requested: NOW - delay, received: NOW };
        let around = Circumstances { arrival, ..around(&rules) };
        let (terms, _) = Terms::new(StatusCode::OK, &headers, &ResponseDirectives::of(&headers), &around);
        let apparent_age = date;
        let corrected_age_value = age + delay;
        let current_age = apparent_age.max(corrected_age_value) + resident;
        let judged = terms.judge(&RequestDirectives::default(), NOW + resident);
        prop_assert_eq!(terms.age(NOW + resident), current_age);
        let is_fresh = matches!(judged, Freshness::Fresh { .. });
        prop_assert_eq!(is_fresh, max_age > current_age);
    }
}
