//! The Gateway API's rules of precedence one by one, and the table against a model that scans everything.

use super::*;
use http::{HeaderName, HeaderValue};
use proptest::prelude::*;
use rstest::rstest;

fn spec(target: usize, path: PathSpec) -> RouteSpec {
    RouteSpec {
        route: format!("default/r{target}#0").into(),
        target,
        origin: Origin {
            created: None,
            namespace: "default".into(),
            name: "r".into(),
            rule: target,
            matched: 0,
        },
        path,
        method: None,
        headers: vec![],
        caller: vec![],
        unmet: None,
        query: vec![],
    }
}

fn exact(path: &str) -> PathSpec {
    PathSpec::Exact(path.into())
}
fn prefix(path: &str) -> PathSpec {
    PathSpec::Prefix(path.into())
}
fn regex(pattern: &str) -> PathSpec {
    PathSpec::Regex(pattern.into())
}
fn is(value: &str) -> ValueMatch {
    ValueMatch::Exact(value.into())
}
fn grpc(service: Option<&str>, method: Option<&str>) -> PathSpec {
    PathSpec::Grpc { service: service.map(is), method: method.map(is) }
}
fn header(name: &'static str, value: ValueMatch) -> (HeaderName, ValueMatch) {
    (HeaderName::from_static(name), value)
}

/// A request as `METHOD /path?query`, with headers.
#[derive(Debug)]
struct Request(Method, String, Option<String>, HeaderMap);

impl Request {
    fn new(text: &str, headers: &[(&'static str, &str)]) -> Self {
        let (method, target) = text.split_once(' ').expect("method and target");
        let (path, query) = target.split_once('?').map_or((target, None), |(p, q)| (p, Some(q.to_owned())));
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, HeaderValue::from_str(value).expect("valid"));
        }
        Self(method.parse().expect("a method"), path.to_owned(), query, map)
    }

    fn view(&self) -> RequestView<'_> {
        RequestView { method: &self.0, path: &self.1, query: self.2.as_deref(), headers: &self.3 }
    }
}

fn table(specs: Vec<RouteSpec>) -> RouteTable {
    RouteTable::new(specs).expect("compiles")
}

fn taken(specs: Vec<RouteSpec>, request: &str, headers: &[(&'static str, &str)]) -> Option<usize> {
    table(specs).find(&Request::new(request, headers).view()).map(|m| m.rule)
}

#[test]
fn a_table_without_routes_is_empty_and_finds_nothing() {
    assert!(table(vec![]).is_empty());
    assert_eq!(taken(vec![], "GET /", &[]), None);
    assert!(!table(vec![spec(0, prefix("/"))]).is_empty());
}

#[rstest]
#[case("GET /foo", Some(4))]
#[case("GET /foo/", Some(4))]
#[case("GET /foo/bar", Some(8))]
#[case("GET /foo/bar/baz", Some(8))]
#[case("GET /foo/barbaz", Some(4))]
#[case("GET /foobar", None)]
#[case("GET /Foo", None)]
#[case("GET /", None)]
fn prefixes_match_whole_segments_and_the_longest_wins(#[case] request: &str, #[case] len: Option<usize>) {
    let routes = table(vec![spec(0, prefix("/foo")), spec(1, prefix("/foo/bar/"))]);
    assert_eq!(routes.find(&Request::new(request, &[]).view()).map(|m| m.matched_len), len);
}

#[test]
fn the_root_prefix_matches_all_and_takes_nothing_of_the_path() {
    for request in ["GET /", "GET /a/b", "OPTIONS *"] {
        let found = table(vec![spec(0, prefix("/"))]).find(&Request::new(request, &[]).view());
        assert_eq!(found, Some(Match { rule: 0, matched_len: 0 }), "{request}");
    }
}

#[test]
fn an_exact_path_is_that_path_only_and_comes_first() {
    let routes = || vec![spec(0, prefix("/foo/bar")), spec(1, exact("/foo")), spec(2, regex("/foo.*"))];
    assert_eq!(taken(routes(), "GET /foo", &[]), Some(1));
    assert_eq!(taken(routes(), "GET /foo/", &[]), Some(2));
    assert_eq!(table(routes()).find(&Request::new("GET /foo", &[]).view()).map(|m| m.matched_len), Some(4));
}

#[test]
fn an_exact_path_whose_headers_do_not_fit_gives_way() {
    let mut first = spec(0, exact("/foo"));
    first.headers = vec![header("version", is("v2"))];
    let routes = || vec![first.clone(), spec(1, prefix("/"))];
    assert_eq!(taken(routes(), "GET /foo", &[]), Some(1));
    assert_eq!(taken(routes(), "GET /foo", &[("version", "v2")]), Some(0));
}

#[test]
fn expressions_match_whole_paths_and_come_before_prefixes() {
    let routes = || vec![spec(0, prefix("/users/long/prefix")), spec(1, regex("/users/[a-z]+(/prefix)?"))];
    assert_eq!(taken(routes(), "GET /users/long/prefix", &[]), Some(1));
    assert_eq!(taken(routes(), "GET /users/long/prefix/x", &[]), Some(0));
    assert_eq!(taken(routes(), "GET /users/9", &[]), None);
}

#[rstest]
#[case("(?i)/API/x", "/api/X")]
#[case("^/api/x$", "/api/x")]
#[case("/api/(x|y)", "/api/y")]
#[case("(/api/x|/other)", "/other")]
#[case("/a?pi", "/pi")]
#[case("/api/?", "/api")]
#[case("/api(/v1)?/x", "/api/x")]
#[case(".*", "/any/thing")]
fn expressions_are_found_wherever_their_literal_part_ends(#[case] pattern: &str, #[case] path: &str) {
    assert_eq!(taken(vec![spec(0, regex(pattern))], &format!("GET {path}"), &[]), Some(0));
}

#[test]
fn precedence_is_path_then_method_then_headers_then_query() {
    let with = |target, path: &str, method: bool, headers: usize, query: usize| {
        let names = ["x-a", "x-b", "x-c"];
        let mut spec = spec(target, prefix(path));
        spec.method = method.then_some(Method::GET);
        spec.headers = names[..headers].iter().map(|n| header(n, is("1"))).collect();
        spec.query = ["a", "b", "c"][..query].iter().map(|n| ((*n).to_owned(), is("1"))).collect();
        spec
    };
    let mut routes = vec![
        with(0, "/", true, 3, 3),
        with(1, "/a", false, 0, 3),
        with(2, "/a", false, 1, 0),
        with(3, "/a", false, 2, 0),
        with(4, "/a", true, 0, 0),
        with(5, "/a/b", false, 0, 0),
    ];
    let request = "GET /a/b?a=1&b=1&c=1";
    let headers = [("x-a", "1"), ("x-b", "1"), ("x-c", "1")];
    // Each time the winner is taken away, the next in the order of criteria wins.
    for expected in [5, 4, 3, 2, 1, 0] {
        assert_eq!(taken(routes.clone(), request, &headers), Some(expected));
        routes.retain(|spec| spec.target != expected);
    }
}

#[test]
fn ties_go_to_the_oldest_then_the_alphabet_then_the_first_rule() {
    let from = |target, created: Option<&str>, namespace: &str, name: &str, rule, matched| {
        let mut spec = spec(target, prefix("/"));
        let created = created.map(|text| text.parse().expect("a time"));
        spec.origin = Origin { created, namespace: namespace.into(), name: name.into(), rule, matched };
        spec
    };
    let mut routes = vec![
        from(0, None, "a", "a", 0, 0),
        from(1, Some("2024-01-02T00:00:00Z"), "a", "a", 0, 0),
        from(2, Some("2024-01-01T00:00:00Z"), "b", "a", 0, 0),
        from(3, Some("2024-01-01T00:00:00Z"), "a", "b", 1, 0),
        from(4, Some("2024-01-01T00:00:00Z"), "a", "b", 0, 1),
        from(5, Some("2024-01-01T00:00:00Z"), "a", "a", 7, 0),
    ];
    for expected in [5, 4, 3, 2, 1, 0] {
        assert_eq!(taken(routes.clone(), "GET /", &[]), Some(expected));
        routes.retain(|spec| spec.target != expected);
    }
}

#[test]
fn of_equal_header_or_query_names_only_the_first_condition_counts() {
    let mut doubled = spec(0, prefix("/"));
    doubled.headers = vec![header("x-a", is("1")), header("x-a", is("2"))];
    doubled.query = vec![("q".into(), is("1")), ("q".into(), is("2"))];
    assert_eq!(taken(vec![doubled.clone()], "GET /?q=1", &[("x-a", "1")]), Some(0));
    // It counts as one header, so a route with two different ones is more specific.
    let mut two = spec(1, prefix("/"));
    two.headers = vec![header("x-a", is("1")), header("x-b", is("1"))];
    assert_eq!(taken(vec![doubled, two], "GET /?q=1", &[("x-a", "1"), ("x-b", "1")]), Some(1));
}

#[test]
fn header_names_ignore_case_and_values_do_not() {
    let mut route = spec(0, prefix("/"));
    route.headers = vec![("X-Version".parse().expect("a name"), is("Beta"))];
    assert_eq!(taken(vec![route.clone()], "GET /", &[("x-version", "Beta")]), Some(0));
    assert_eq!(taken(vec![route], "GET /", &[("x-version", "beta")]), None);
}

#[test]
fn many_routes_told_apart_by_a_header_keep_their_precedence() {
    let mut routes: Vec<_> = (0..100)
        .map(|n| {
            let mut spec = spec(n, prefix("/"));
            spec.headers = vec![header("x-user", is(&n.to_string()))];
            spec
        })
        .collect();
    let mut pattern = spec(100, prefix("/"));
    pattern.headers = vec![header("x-user", ValueMatch::Regex("7.*".into())), header("x-beta", is("1"))];
    routes.push(pattern);
    routes.push(spec(101, prefix("/")));
    let mut listed = spec(102, prefix("/"));
    listed.headers = vec![header("x-user", is("1,2"))];
    routes.push(listed);
    let table = table(routes);
    let find =
        |headers: &[(&'static str, &str)]| table.find(&Request::new("GET /", headers).view()).map(|m| m.rule);
    assert_eq!(find(&[("x-user", "77")]), Some(77));
    assert_eq!(find(&[("x-user", "77"), ("x-beta", "1")]), Some(100));
    assert_eq!(find(&[("x-user", "nobody")]), Some(101));
    assert_eq!(find(&[]), Some(101));
    assert_eq!(find(&[("x-user", "1"), ("x-user", "2")]), Some(102));
}

#[rstest]
#[case("POST /shop.Cart/Add", Some(0))]
#[case("POST /shop.Cart/Remove", Some(1))]
#[case("POST /shop.Cart.V2/Watch", Some(3))]
#[case("POST /other.Service/Add", Some(2))]
#[case("POST /other.Service/Any", Some(4))]
#[case("POST /shop.Cart", None)]
#[case("POST /shop.Cart/Add/More", None)]
#[case("POST /", None)]
fn grpc_routes_match_service_and_method(#[case] request: &str, #[case] rule: Option<usize>) {
    let pattern = |text: &str| Some(ValueMatch::Regex(text.into()));
    let routes = vec![
        spec(4, grpc(None, None)),
        spec(3, PathSpec::Grpc { service: pattern(r"shop\..*"), method: pattern("Wat.h") }),
        spec(2, grpc(None, Some("Add"))),
        spec(1, grpc(Some("shop.Cart"), None)),
        spec(0, grpc(Some("shop.Cart"), Some("Add"))),
    ];
    assert_eq!(taken(routes, request, &[]), rule);
}

#[test]
fn grpc_precedence_is_service_then_method_then_headers() {
    let mut with_headers = spec(0, grpc(None, Some("Add")));
    with_headers.headers = vec![header("x-a", is("1")), header("x-b", is("1"))];
    let mut one_header = spec(2, grpc(Some("s.A"), Some("Add")));
    one_header.headers = vec![header("x-a", is("1"))];
    let mut routes = vec![
        with_headers,
        spec(1, grpc(Some("s.A"), None)),
        one_header,
        spec(3, grpc(Some("s.A"), Some("Add"))),
    ];
    for expected in [2, 3, 1, 0] {
        assert_eq!(taken(routes.clone(), "POST /s.A/Add", &[("x-a", "1"), ("x-b", "1")]), Some(expected));
        routes.retain(|spec| spec.target != expected);
    }
}

#[test]
fn everything_that_cannot_be_compiled_is_reported_at_once() {
    let mut bad = spec(0, regex("("));
    bad.headers = vec![header("x-a", is("1")), header("x-b", ValueMatch::Regex("[".into()))];
    bad.query = vec![("q".into(), ValueMatch::Regex("*".into()))];
    let method = PathSpec::Grpc { service: Some(is("s")), method: Some(ValueMatch::Regex("(".into())) };
    let errors = RouteTable::new(vec![bad, spec(1, exact("/%zz")), spec(2, method)]).expect_err("refused");
    let parts: Vec<_> = errors.iter().map(|e| (e.origin.rule, e.part)).collect();
    assert_eq!(
        parts,
        [
            (0, MatchPart::Path),
            (0, MatchPart::Header(1)),
            (0, MatchPart::Query(0)),
            (1, MatchPart::Path),
            (2, MatchPart::GrpcMethod)
        ]
    );
}

#[test]
fn explain_tells_what_is_taken_and_why_the_others_are_not() {
    let mut header_route = spec(0, prefix("/shop"));
    header_route.headers = vec![header("version", is("v2"))];
    let mut post = spec(1, prefix("/shop"));
    post.method = Some(Method::POST);
    let mut query = spec(2, prefix("/shop"));
    query.query = vec![("q".into(), is("a b"))];
    let routes = table(vec![header_route, post, query, spec(3, prefix("/")), spec(4, exact("/x"))]);
    let considered = routes.explain(&Request::new("GET /shop/cart?q=b", &[("version", "v1")]).view());
    let told: Vec<_> = considered.iter().map(|c| (c.rule, c.outcome.clone())).collect();
    let not = |why: &str| Outcome::NotMatched(why.to_owned());
    assert_eq!(
        told,
        [
            (4, not("the path is `/shop/cart`, not `/x`")),
            (1, not("the method is GET, not POST")),
            (0, not("the header `version` is `v1`, not `v2`")),
            (2, not("the query parameter `q` is `b`, not `a b`")),
            (3, Outcome::Matched),
        ]
    );
    let considered = routes.explain(&Request::new("POST /shop?q=a+b", &[("version", "v2")]).view());
    let outranked = considered.iter().filter(|c| c.outcome == Outcome::Outranked).map(|c| c.rule);
    assert_eq!(outranked.collect::<Vec<_>>(), [0, 2, 3]);
    assert_eq!(considered[2].asks, "path under /shop, header version = v2");
}

/// The Gateway API's words turned into a comparison, without regard to speed: true if `a` comes before `b`.
fn comes_before(a: &RouteSpec, b: &RouteSpec) -> bool {
    let path = |spec: &RouteSpec| match &spec.path {
        PathSpec::Exact(_) => (2, 0),
        PathSpec::Regex(_) => (1, 0),
        PathSpec::Prefix(path) => (0, path.trim_end_matches('/').len()),
        PathSpec::Grpc { .. } => unreachable!("not generated"),
    };
    let more = |spec: &RouteSpec| (path(spec), spec.method.is_some(), spec.headers.len(), spec.query.len());
    let origin = |spec: &RouteSpec| {
        let name = format!("{}/{}", spec.origin.namespace, spec.origin.name);
        (spec.origin.created.is_none(), spec.origin.created, name, spec.origin.rule, spec.origin.matched)
    };
    more(a) > more(b) || (more(a) == more(b) && origin(a) < origin(b))
}

fn fits(spec: &RouteSpec, request: &RequestView<'_>) -> bool {
    let value = |wanted: &ValueMatch, found: &str| match wanted {
        ValueMatch::Exact(text) => text == found,
        ValueMatch::Regex(pattern) => {
            ::regex::Regex::new(&format!("^(?:{pattern})$")).expect("valid").is_match(found)
        }
    };
    let path = match &spec.path {
        PathSpec::Exact(path) => path == request.path,
        PathSpec::Prefix(path) => {
            let wanted: Vec<_> = path.split('/').filter(|s| !s.is_empty()).collect();
            let found: Vec<_> = request.path.split('/').filter(|s| !s.is_empty()).collect();
            found.starts_with(&wanted)
        }
        PathSpec::Regex(pattern) => value(&ValueMatch::Regex(pattern.clone()), request.path),
        PathSpec::Grpc { .. } => unreachable!("not generated"),
    };
    path && spec.method.as_ref().is_none_or(|m| m == request.method)
        && spec.headers.iter().all(|(name, wanted)| {
            request.headers.get(name).is_some_and(|v| value(wanted, v.to_str().expect("ASCII")))
        })
        && spec.query.iter().all(|(name, wanted)| {
            let first = request.query.into_iter().flat_map(|q| q.split('&')).find_map(|pair| {
                let (key, found) = pair.split_once('=').expect("generated so");
                (key == name).then_some(found)
            });
            first.is_some_and(|found| value(wanted, found))
        })
}

fn path_text() -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select(vec!["a", "b", "ab", "c"]), 0..4)
        .prop_flat_map(|segments| (Just(segments), any::<bool>()))
        .prop_map(|(segments, slash)| {
            let path: String = segments.iter().map(|s| format!("/{s}")).collect();
            if slash || path.is_empty() { path + "/" } else { path }
        })
}

fn path_spec() -> impl Strategy<Value = PathSpec> {
    prop_oneof![
        2 => path_text().prop_map(PathSpec::Exact),
        4 => path_text().prop_map(PathSpec::Prefix),
        2 => prop::sample::select(vec!["/a.*", "/a/(b|c).*", ".*b", "/(a|ab)/?.*", "/a/b", "/a(/b)?", "/[ab]+/c.*"])
            .prop_map(|pattern| PathSpec::Regex(pattern.to_owned())),
    ]
}

fn value_match() -> impl Strategy<Value = ValueMatch> {
    prop_oneof![
        3 => prop::sample::select(vec!["0", "1", "2"]).prop_map(|v| ValueMatch::Exact(v.to_owned())),
        1 => Just(ValueMatch::Regex("[01]".to_owned())),
    ]
}

fn route_spec() -> impl Strategy<Value = RouteSpec> {
    let names = || prop::sample::subsequence(vec!["x-a", "x-b", "x-c"], 0..3);
    let origin = (prop::option::of(0..3u8), "[ab]", "[a-c]", 0..3usize, 0..3usize);
    (
        path_spec(),
        prop::option::of(Just(Method::GET)),
        names(),
        names(),
        prop::collection::vec(value_match(), 6),
        origin,
    )
        .prop_map(|(path, method, headers, query, values, (created, namespace, name, rule, matched))| {
            let created = created.map(|n| format!("2024-01-0{}T00:00:00Z", n + 1).parse().expect("a time"));
            let mut values = values.into_iter();
            let mut value = || values.next().expect("six are enough");
            RouteSpec {
                route: "r".into(),
                target: 0,
                origin: Origin { created, namespace: namespace.into(), name: name.into(), rule, matched },
                path,
                method,
                headers: headers.into_iter().map(|n| header(n, value())).collect(),
                caller: vec![],
                unmet: None,
                query: query.into_iter().map(|n| (n.to_owned(), value())).collect(),
            }
        })
}

fn request() -> impl Strategy<Value = Request> {
    let pairs =
        || prop::collection::btree_map(prop::sample::select(vec!["x-a", "x-b", "x-c"]), "[0-3]", 0..4);
    (prop::bool::weighted(0.7), path_text(), pairs(), pairs())
        .prop_map(|(get, path, headers, query)| {
            let query: Vec<_> = query.iter().map(|(name, value)| format!("{name}={value}")).collect();
            let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
            let method = if get { "GET" } else { "POST" };
            Request::new(&format!("{method} {path}?{}", query.join("&")), &headers)
        })
        .prop_map(|mut request| {
            request.2 = request.2.filter(|query| !query.is_empty());
            request
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]
    #[test]
    fn the_table_agrees_with_scanning_everything(
        mut specs in prop::collection::vec(route_spec(), 1..40),
        requests in prop::collection::vec(request(), 1..12),
    ) {
        for (target, spec) in specs.iter_mut().enumerate() {
            spec.target = target;
            // Two matches of one origin would tie for good.
            spec.origin.matched = spec.origin.matched * 100 + target;
        }
        let table = RouteTable::new(specs.clone()).expect("compiles");
        for request in &requests {
            let view = request.view();
            let best = specs.iter().filter(|s| fits(s, &view)).reduce(|a, b| if comes_before(b, a) { b } else { a });
            prop_assert_eq!(table.find(&view).map(|m| m.rule), best.map(|s| s.target));
            let explained = table.explain(&view);
            let matched: Vec<_> =
                explained.iter().filter(|c| c.outcome == Outcome::Matched).map(|c| c.rule).collect();
            prop_assert_eq!(matched, best.map(|s| s.target).into_iter().collect::<Vec<_>>());
            for considered in explained {
                let fit = fits(&specs[considered.rule], &view);
                prop_assert_eq!(fit, !matches!(considered.outcome, Outcome::NotMatched(_)));
            }
        }
    }
}
