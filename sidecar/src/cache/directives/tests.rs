//! The directives of RFC 9111 section 5.2 in every form that is met with.

use super::*;
use proptest::prelude::*;
use rstest::rstest;

fn headers(fields: &[(&str, &str)]) -> HeaderMap {
    let field = |(name, value): &(&str, &str)| {
        (HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_bytes(value.as_bytes()).unwrap())
    };
    fields.iter().map(field).collect()
}

fn response(lines: &[&str]) -> ResponseDirectives {
    let fields: Vec<_> = lines.iter().map(|line| ("cache-control", *line)).collect();
    ResponseDirectives::of(&headers(&fields))
}

fn request(line: &str) -> RequestDirectives {
    RequestDirectives::of(&headers(&[("cache-control", line)]))
}

#[rstest]
#[case("max-age=100", 100)]
#[case("MAX-AGE=100", 100)]
#[case("max-age=\"100\"", 100)]
#[case("max-age=0100", 100)]
#[case("  ,, max-age=100 ,", 100)]
#[case("foo, max-age=100, bar=\"a, max-age=1\"", 100)]
// Section 1.2.2: what does not fit is the largest.
#[case("max-age=2147483648", FOREVER)]
#[case("max-age=2147483649", FOREVER)]
#[case("max-age=99999999999999999999999999", FOREVER)]
// Section 4.2.1: what is no whole number is stale.
#[case("max-age", 0)]
#[case("max-age=", 0)]
#[case("max-age=-1", 0)]
#[case("max-age=+1", 0)]
#[case("max-age=1.5", 0)]
#[case("max-age='100'", 0)]
#[case("max-age=100s", 0)]
#[case("max-age=100;a", 0)]
#[case("max-age = 100", 0)]
#[case("max-age= 100", 0)]
#[case("max-age=\"100", 0)]
#[case("max-age=\"100\"0", 0)]
// Of several the strictest.
#[case("max-age=100, max-age=5", 5)]
#[case("max-age=5, max-age=100", 5)]
#[case("max-age=5, max-age=x", 0)]
fn a_time_is_read_or_it_is_zero(#[case] line: &str, #[case] seconds: u32) {
    assert_eq!(response(&[line]).max_age, Some(seconds));
    assert_eq!(request(line).max_age, Some(seconds));
    let shared = line.to_ascii_lowercase().replace("max-age", "s-maxage");
    assert_eq!(response(&[&shared]).s_maxage, Some(seconds));
}

#[test]
fn several_lines_are_one_list() {
    let read = response(&["max-age=5", "no-cache, Public", "stale-if-error=7,stale-while-revalidate=\"8\""]);
    assert_eq!((read.max_age, read.no_cache, read.public), (Some(5), true, true));
    assert_eq!((read.if_error, read.while_revalidate), (Some(7), Some(8)));
    let all = response(&["no-store,private,must-revalidate,proxy-revalidate,must-understand,immutable"]);
    assert!(all.no_store && all.private && all.must_revalidate && all.proxy_revalidate);
    assert!(all.must_understand && all.immutable && !all.no_cache && !all.public);
}

#[rstest]
#[case("x-no-store")]
#[case("no-store-x")]
#[case("ext=\"no-store\"")]
#[case("ext=\"a, no-store, \\\", no-store\"")]
#[case("no_store")]
fn what_only_looks_like_a_directive_is_none(#[case] line: &str) {
    assert_eq!(response(&[line]), ResponseDirectives::default());
}

#[rstest]
#[case("no-store=")]
#[case("no-store=1")]
#[case("no-store =x")]
// A quote that does not end hides nothing.
#[case("ext=\"a, no-store")]
#[case("no-cache=\"a, no-store")]
fn a_restriction_holds_whatever_is_wrong_with_it(#[case] line: &str) {
    assert!(response(&[line]).no_store);
}

/// Sections 5.2.2.4 and 5.2.2.7: with fields, only those are meant.
#[rstest]
#[case("\"set-cookie\"", &["set-cookie"])]
#[case("\"Set-Cookie , x-user,\"", &["set-cookie", "x-user"])]
#[case("set-cookie", &["set-cookie"])]
#[case("\"\"", &[])]
#[case("\"a b\"", &[])]
#[case("\"content-type\"", &[])]
#[case("\"set-cookie, vary\"", &[])]
#[case("\"set-cookie", &[])]
fn no_cache_and_private_can_be_about_fields(#[case] argument: &str, #[case] fields: &[&str]) {
    for (name, targeted) in [("no-cache", false), ("private", false), ("no-cache", true), ("private", true)] {
        let line = format!("{name}={argument}");
        let read = if targeted {
            let read = ResponseDirectives::of(&headers(&[("cdn-cache-control", &line)]));
            // Not a dictionary at all.
            if !read.targeted {
                continue;
            }
            read
        } else {
            response(&[&line])
        };
        let whole = if name == "private" { read.private } else { read.no_cache };
        assert_eq!(whole, fields.is_empty(), "{line}");
        assert_eq!(read.withheld.iter().map(HeaderName::as_str).collect::<Vec<_>>(), fields, "{line}");
        assert!(response(&[&line, name]).no_cache || name == "private");
    }
}

#[test]
fn what_a_request_takes() {
    let read = request("max-stale, min-fresh=3, min-fresh=\"9\", only-if-cached, no-store, stale-if-error=4");
    assert_eq!((read.max_stale, read.min_fresh, read.if_error), (Some(FOREVER), 9, 4));
    assert!(read.only_if_cached && read.no_store && !read.no_cache);
    assert_eq!(request("max-stale=5, max-stale").max_stale, Some(5));
    assert_eq!(request("max-stale=x").max_stale, Some(0));
    assert_eq!(request("min-fresh=x").min_fresh, 0);
    assert!(request("No-Cache").no_cache);
}

/// Section 5.4.
#[test]
fn pragma_counts_only_without_cache_control() {
    let read = |fields: &[(&str, &str)]| RequestDirectives::of(&headers(fields)).no_cache;
    assert!(read(&[("pragma", "x, No-Cache")]));
    assert!(!read(&[("pragma", "no-cache"), ("cache-control", "max-age=5")]));
    assert!(!read(&[("pragma", "no-cache-x")]));
    assert_eq!(ResponseDirectives::of(&headers(&[("pragma", "no-cache")])), Default::default());
}

/// RFC 9213 section 2.2.
#[rstest]
#[case(&[("cdn-cache-control", "max-age=7"), ("cache-control", "no-store")], Some(7))]
#[case(&[("weft-cache-control", "max-age=9"), ("cdn-cache-control", "max-age=7")], Some(9))]
// Empty or invalid: as if it were not there.
#[case(&[("weft-cache-control", ""), ("cdn-cache-control", "max-age=7")], Some(7))]
#[case(&[("weft-cache-control", "max-age=9, &"), ("cdn-cache-control", "max-age=7")], Some(7))]
#[case(&[("cdn-cache-control", "Max-Age=7"), ("cache-control", "max-age=5")], Some(5))]
#[case(&[("cdn-cache-control", "max-age=7,"), ("cache-control", "max-age=5")], Some(5))]
// Two lines are one dictionary, in which the last member of a name counts.
#[case(&[("cdn-cache-control", "max-age=7"), ("cdn-cache-control", "max-age=8")], Some(8))]
// Another type than a whole number.
#[case(&[("cdn-cache-control", "max-age=\"7\"")], Some(0))]
#[case(&[("cdn-cache-control", "max-age=7.5")], Some(0))]
#[case(&[("cdn-cache-control", "max-age=-7")], Some(0))]
#[case(&[("cdn-cache-control", "max-age=999999999999999")], Some(FOREVER))]
// Fields for others change nothing.
#[case(&[("surrogate-control", "max-age=7"), ("x-cdn-cache-control", "max-age=7")], None)]
fn targeted_fields_go_first(#[case] fields: &[(&str, &str)], #[case] max_age: Option<u32>) {
    let read = ResponseDirectives::of(&headers(fields));
    assert_eq!(read.max_age, max_age);
    assert!(!read.no_store);
}

#[test]
fn s_maxage_goes_before_max_age_and_forbids_stale_answers() {
    let read = response(&["max-age=5, s-maxage=9"]);
    assert_eq!((read.lifetime(), read.never_stale()), (Some(9), true));
    assert!(!response(&["max-age=5"]).never_stale());
    assert!(response(&["must-revalidate"]).never_stale() && response(&["proxy-revalidate"]).never_stale());
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(prop_oneof![Just(b'"'), Just(b','), Just(b'='), Just(b'\\'), 0x20_u8..=0xff], 0..40)) {
        if let Ok(value) = HeaderValue::from_bytes(&bytes) {
            let fields: HeaderMap = TARGETS.into_iter().chain([header::CACHE_CONTROL]).map(|name| (name, value.clone())).collect();
            let _ = (ResponseDirectives::of(&fields), RequestDirectives::of(&fields));
        }
    }

    #[test]
    fn one_more_directive_never_loosens_a_restriction(
        first in "(max-age=[0-9]{1,3}|no-store|private|no-cache|x=\"[a-z, ]{0,5}\")",
        second in "(max-age=[0-9]{1,3}|no-store|public|private=\"a\"|immutable|x)",
    ) {
        let (one, both) = (response(&[&first]), response(&[&format!("{first}, {second}")]));
        prop_assert!(!one.no_store || both.no_store);
        prop_assert!(!one.private || both.private);
        prop_assert!(!one.no_cache || both.no_cache);
        prop_assert!(one.max_age.is_none_or(|age| both.max_age.is_some_and(|both| both <= age)));
    }
}
