//! What finding a route costs with 10, 1,000 and 10,000 routes: by exact path, prefix, expression, header, and for none.
#![allow(missing_docs, clippy::unwrap_used)]

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use std::hint::black_box;
use weft_config::matching::{
    Origin, PathSpec, RequestView, RouteSpec, RouteTable, ValueMatch, normalize_path,
};

fn spec(target: usize, path: PathSpec) -> RouteSpec {
    RouteSpec {
        route: format!("default/r{target}#0").into(),
        target,
        origin: Origin {
            created: None,
            namespace: "default".into(),
            name: format!("r{target}").into(),
            rule: 0,
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

/// A table such as a large team's: mostly prefixes and exact paths, some expressions, some told apart by a header.
fn routes(count: usize) -> RouteTable {
    let specs = (0..count).map(|n| match n % 10 {
        0..5 => spec(n, PathSpec::Prefix(format!("/api/v{}/team{}/service{n}", n % 3, n % 97))),
        5..8 => spec(n, PathSpec::Exact(format!("/api/v{}/team{}/item{n}", n % 3, n % 97))),
        8 => spec(n, PathSpec::Regex(format!("/users/group{n}/[0-9]+"))),
        _ => {
            let mut spec = spec(n, PathSpec::Prefix("/".to_owned()));
            spec.headers =
                vec![(HeaderName::from_static("x-tenant"), ValueMatch::Exact(format!("tenant{n}")))];
            spec
        }
    });
    RouteTable::new(specs.collect()).unwrap()
}

fn find(c: &mut Criterion) {
    let mut group = c.benchmark_group("find");
    for count in [10, 1_000, 10_000] {
        let table = routes(count);
        let last = count - 10;
        let mut headers = HeaderMap::new();
        headers.insert("host", HeaderValue::from_static("shop"));
        headers.insert("user-agent", HeaderValue::from_static("bench/1"));
        let mut tenant = headers.clone();
        tenant.insert("x-tenant", HeaderValue::from_str(&format!("tenant{}", last + 9)).unwrap());
        let at = |n: usize, kind: &str| format!("/api/v{}/team{}/{kind}{n}", n % 3, n % 97);
        let cases = [
            ("exact", at(last + 5, "item"), &headers, Some(last + 5)),
            ("prefix", at(last, "service") + "/orders/17", &headers, Some(last)),
            ("regex", format!("/users/group{}/4711", last + 8), &headers, Some(last + 8)),
            ("header", "/something/else".to_owned(), &tenant, Some(last + 9)),
            ("none", "/something/else".to_owned(), &headers, None),
        ];
        for (name, path, headers, expected) in &cases {
            let view = RequestView { method: &Method::GET, path, query: Some("a=1"), headers };
            assert_eq!(table.find(&view).map(|m| m.rule), *expected, "{name}");
            group.bench_function(BenchmarkId::new(*name, count), |b| b.iter(|| table.find(black_box(&view))));
        }
    }
    group.finish();
}

fn normalize(c: &mut Criterion) {
    let mut group = c.benchmark_group("normalize_path");
    for (name, path) in
        [("normal", "/api/v1/users/4711/orders"), ("dots", "/api/./v1/../v1/%75sers/4711//orders")]
    {
        group.bench_function(name, |b| b.iter(|| normalize_path(black_box(path)).map(|p| p.len())));
    }
    group.finish();
}

criterion_group!(benches, find, normalize);
criterion_main!(benches);
