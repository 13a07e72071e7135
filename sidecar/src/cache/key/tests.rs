//! What makes two requests the same, and what must not.

use super::*;
use proptest::prelude::*;
use rstest::rstest;

fn headers(fields: &[(&str, &str)]) -> HeaderMap {
    let field = |(name, value): &(&str, &str)| {
        (HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_str(value).unwrap())
    };
    fields.iter().map(field).collect()
}

fn key(target: &str, fields: &[(&str, &str)], rules: &CacheKeyRules) -> String {
    of(Class::Get, "http", "products", target, fields, rules)
}

fn of(
    class: Class<'_>,
    scheme: &str,
    authority: &str,
    target: &str,
    fields: &[(&str, &str)],
    rules: &CacheKeyRules,
) -> String {
    let (path, query) = target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
    let headers = headers(fields);
    let parts = Parts {
        class,
        scope: "r",
        scheme,
        authority,
        path,
        query,
        headers: &headers,
        notable: Notable::of(&headers),
        identity: Some("spiffe://a/b"),
    };
    String::from_utf8(text(&parts, rules, None).unwrap().to_vec()).unwrap()
}

fn uri_of(query: &str, rules: &CacheKeyRules, no_vary: Option<&NoVarySearch>) -> String {
    String::from_utf8(uri("http", "a", "/", Some(query), rules, no_vary).to_vec()).unwrap()
}

fn only(names: &[&str]) -> CacheKeyRules {
    let names = names.iter().map(|name| (*name).into()).collect();
    CacheKeyRules { parameters: CacheParameters::Only(names), ..CacheKeyRules::default() }
}

fn all_but(names: &[&str]) -> CacheKeyRules {
    let names = names.iter().map(|name| (*name).into()).collect();
    CacheKeyRules { parameters: CacheParameters::AllBut(names), ..CacheKeyRules::default() }
}

#[test]
fn the_uri_stands_first() {
    let plain = CacheKeyRules::default();
    let text = key("/a?b=1", &[], &plain);
    assert_eq!(text, "http://products/a?b=1\nG\nSr");
    assert!(text.as_bytes().starts_with(&uri("http", "products", "/a", Some("b=1"), &plain, None)));
    assert!(text.as_bytes().starts_with(&resource("http", "products", "/a")));
}

#[rstest]
#[case("http", "Products", "products")]
#[case("http", "products:80", "products")]
#[case("https", "products:443", "products")]
fn one_authority_is_one(#[case] scheme: &str, #[case] a: &str, #[case] b: &str) {
    assert_eq!(resource(scheme, a, "/"), resource(scheme, b, "/"));
}

#[test]
fn other_authorities_schemes_and_classes_are_others() {
    let plain = CacheKeyRules::default();
    let digest = BodyDigest::of([&b"a"[..]]);
    let all = [
        of(Class::Get, "http", "a", "/", &[], &plain),
        of(Class::Get, "https", "a", "/", &[], &plain),
        of(Class::Get, "http", "a:443", "/", &[], &plain),
        of(Class::Get, "http", "b", "/", &[], &plain),
        of(Class::Get, "http", "a", "/?", &[], &plain),
        of(Class::Get, "http", "a", "/A", &[], &plain),
        of(Class::Get, "http", "a", "/a", &[], &plain),
        of(Class::Post(&digest), "http", "a", "/", &[], &plain),
        of(Class::Post(&digest), "http", "a", "/", &[("content-type", "b/c")], &plain),
        of(Class::Post(&BodyDigest::of([&b"b"[..]])), "http", "a", "/", &[], &plain),
        of(Class::Grpc(&digest), "http", "a", "/", &[], &plain),
        of(Class::Grpc(&digest), "http", "a", "/", &[("grpc-accept-encoding", "gzip")], &plain),
    ];
    for (at, one) in all.iter().enumerate() {
        assert!(!all[at + 1..].contains(one), "{one}");
    }
}

/// Escapes as RFC 3986 section 6.2.2 has them.
#[rstest]
#[case("a=%7eb%2f", "a=~b%2F", true)]
#[case("a=%41", "a=A", true)]
#[case("a=%2B", "a=+", false)]
#[case("a=+", "a=%20", false)]
#[case("a=%26b=1", "a=&b=1", false)]
#[case("a=%", "a=%25", false)]
#[case("a=%zz", "a=%ZZ", false)]
#[case("a=%%325", "a=%25", false)]
#[case("a=%%341", "a=%41", false)]
#[case("a=1&b=2", "b=2&a=1", false)]
#[case("a", "a=", false)]
fn queries(#[case] a: &str, #[case] b: &str, #[case] same: bool) {
    let plain = CacheKeyRules::default();
    assert_eq!(uri_of(a, &plain, None) == uri_of(b, &plain, None), same);
}

#[rstest]
#[case("utm_source=x&a=1", "?a=1")]
#[case("a=1&utm%5Fsource=x&b", "?a=1&b")]
#[case("utm_source", "")]
#[case("UTM_SOURCE=x", "?UTM_SOURCE=x")]
#[case("a=utm_source", "?a=utm_source")]
// What an application that splits at `;` would read as another parameter.
#[case("utm_source=x;a=evil", "?utm_source=x;a=evil")]
fn parameters_can_be_left_out(#[case] query: &str, #[case] kept: &str) {
    assert_eq!(uri_of(query, &all_but(&["utm_source"]), None), format!("http://a/{kept}\n"));
}

#[test]
fn only_some_parameters_can_count_and_in_any_order() {
    assert_eq!(
        uri_of("x=1&page=2&sort=a&page=1", &only(&["page", "sort"]), None),
        "http://a/?page=2&sort=a&page=1\n"
    );
    let sorted = CacheKeyRules { any_order: true, ..only(&["page", "sort"]) };
    assert_eq!(uri_of("sort=a&x=1&page=2&&page=1", &sorted, None), "http://a/?page=2&page=1&sort=a\n");
    assert_eq!(uri_of("x=1", &only(&[]), None), "http://a/\n");
}

#[rstest]
#[case("params=(\"a\" \"b c\")", "x=1&a=2&b+c=3&b%20c=4", "?x=1")]
#[case("params", "x=1&a=2", "")]
#[case("params, except=(\"a\")", "x=1&a=2", "?a=2")]
#[case("key-order", "x=1&a=2", "?a=2&x=1")]
#[case("key-order, params=(\"z\")", "x=1&a=2&z=3", "?a=2&x=1")]
fn no_vary_search(#[case] field: &str, #[case] query: &str, #[case] kept: &str) {
    let says = NoVarySearch::of(&headers(&[("no-vary-search", field)])).expect("valid");
    assert_eq!(uri_of(query, &CacheKeyRules::default(), Some(&says)), format!("http://a/{kept}\n"));
}

#[rstest]
#[case("params=?0")]
#[case("key-order=?0")]
#[case("key-order=1")]
#[case("params=\"a\"")]
#[case("params=(a)")]
#[case("params=(\"a\"), except=(\"b\")")]
#[case("except=(\"b\")")]
#[case("params=(\"a\"")]
#[case("")]
fn an_invalid_no_vary_search_says_nothing(#[case] field: &str) {
    assert_eq!(NoVarySearch::of(&headers(&[("no-vary-search", field)])), None);
    assert_eq!(NoVarySearch::of(&HeaderMap::new()), None);
}

#[test]
fn headers_cookies_and_identity_count_where_the_policy_says_so() {
    let rules = CacheKeyRules {
        headers: [HeaderName::from_static("x-country")].into(),
        cookies: ["currency".into()].into(),
        identity: true,
        ..CacheKeyRules::default()
    };
    let german = key("/", &[("x-country", "de"), ("cookie", "a=1; currency=eur"), ("x-other", "1")], &rules);
    assert_eq!(german, "http://products/\nG\nSr\nHx-country\n=de\nCcurrency=eur\nIspiffe://a/b");
    let others: [&[(&str, &str)]; 5] = [
        &[("x-country", "fr"), ("cookie", "currency=eur")],
        &[("x-country", "de"), ("x-country", "fr"), ("cookie", "currency=eur")],
        &[("x-country", ""), ("cookie", "currency=eur")],
        &[("cookie", "currency=eur")],
        &[("x-country", "de")],
    ];
    for other in others {
        assert_ne!(key("/", other, &rules), german);
    }
    assert_ne!(key("/", others[2], &rules), key("/", others[3], &rules));
    let headers = HeaderMap::new();
    let nobody = Parts {
        class: Class::Get,
        scope: "r",
        scheme: "http",
        authority: "a",
        path: "/",
        query: None,
        headers: &headers,
        notable: Notable::default(),
        identity: None,
    };
    assert_eq!(text(&nobody, &rules, None), Err(Unkeyable::NoIdentity));
    let plain = CacheKeyRules::default();
    for (field, expected) in
        [("x-http-method-override", Some(Unkeyable::MethodOverride)), ("x-http-other", None)]
    {
        let headers = self::headers(&[(field, "DELETE")]);
        assert_eq!(
            text(&Parts { headers: &headers, notable: Notable::of(&headers), ..nobody }, &plain, None).err(),
            expected
        );
    }
    let long = format!("/{}", "a".repeat(TEXT_MAX));
    let long = Parts { path: &long, ..nobody };
    assert_eq!(text(&long, &CacheKeyRules::default(), None), Err(Unkeyable::TooLong));
}

/// Fields that change answers without being keyed are how caches get poisoned.
#[rstest]
#[case(("x-forwarded-host", "evil"), false)]
#[case(("x-forwarded-proto", "http"), false)]
#[case(("x-original-url", "/admin"), false)]
#[case(("x-rewrite-url", "/admin"), false)]
#[case(("forwarded", "for=1.2.3.4;host=evil"), false)]
#[case(("forwarded", "for=\"\\\", host=evil\""), false)]
#[case(("forwarded", "for=1.2.3.4; Host = \"a;b\""), false)]
#[case(("forwarded", "for=\"[::1]:host=a\";by=x"), true)]
#[case(("x-forwarded-for", "1.2.3.4"), true)]
#[case(("user-agent", "a"), true)]
#[case(("traceparent", "00-1-2-01"), true)]
fn what_may_poison_is_keyed(#[case] field: (&str, &str), #[case] same: bool) {
    let plain = CacheKeyRules::default();
    assert_eq!(key("/", &[field], &plain) == key("/", &[], &plain), same);
}

#[test]
fn whose_client_it_was_does_not_tell_requests_apart_but_the_host_does() {
    let plain = CacheKeyRules::default();
    let of = |value| key("/", &[("forwarded", value)], &plain);
    assert_eq!(of("for=1.2.3.4;proto=https"), of("for=5.6.7.8; proto=https"));
    assert_ne!(of("for=1.2.3.4;proto=https"), of("for=1.2.3.4;proto=http"));
}

#[test]
fn a_unary_message_is_one_whole_message() {
    assert!(is_one_message(&[0, 0, 0, 0, 2, 7, 7]) && is_one_message(&[1, 0, 0, 0, 0]));
    assert!(!is_one_message(&[0, 0, 0, 0, 2, 7]) && !is_one_message(&[0, 0, 0, 0, 1, 7, 7]));
    assert!(!is_one_message(&[2, 0, 0, 0, 0]) && !is_one_message(&[]));
    assert_eq!(BodyDigest::of([&b"ab"[..], b"c"]), BodyDigest::of([&b"abc"[..]]));
}

proptest! {
    /// Whoever chooses a path, a query and a header's value cannot make them pass for other ones.
    #[test]
    fn keys_are_the_same_only_where_all_parts_are(
        a in ("/[a-zG\\n]{0,4}", proptest::option::of("[a-z&=?]{0,4}"), "[ -~]{0,6}"),
        b in ("/[a-zG\\n]{0,4}", proptest::option::of("[a-z&=?]{0,4}"), "[ -~]{0,6}"),
    ) {
        let rules = CacheKeyRules { headers: [HeaderName::from_static("x-a")].into(), ..CacheKeyRules::default() };
        let of = |(path, query, value): &(String, Option<String>, String)| {
            // No path of a request holds such a byte.
            let path = path.replace('\n', "/");
            let target = query.as_ref().map_or(path.clone(), |query| format!("{path}?{query}"));
            (key(&target, &[("x-a", value)], &rules), (path, query.clone(), value.trim().to_owned()))
        };
        let ((one, a), (two, b)) = (of(&a), of(&b));
        prop_assert_eq!(one == two, a == b);
    }

    #[test]
    fn a_normal_query_stays_as_it_is(query in "[ -~]{0,20}") {
        let plain = CacheKeyRules::default();
        let once = uri_of(&query, &plain, None);
        let again = uri_of(once.strip_prefix("http://a/?").unwrap().strip_suffix('\n').unwrap(), &plain, None);
        prop_assert!(once == again || query.contains('%'));
    }
}
