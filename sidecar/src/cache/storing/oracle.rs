//! A second opinion on what may be kept and how long it is fresh, where both speak of the same: well-formed responses
//! without cookies, from an origin whose clock is right.

use super::super::{
    date,
    directives::RequestDirectives,
    freshness::{Arrival, Freshness},
};
use super::{Asked, Kind, decide};
use http::{Request, Response, header};
use http_cache_semantics::{CacheOptions, CachePolicy};
use proptest::prelude::*;
use std::time::{Duration, SystemTime};
use weft_config::snapshot::CacheRules;

const NOW: u32 = 1_795_000_000;

fn at(seconds: u32) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.into())
}

/// Each directive at most once: of the other's two it takes neither.
fn cache_control() -> impl Strategy<Value = Vec<String>> {
    let flags = ["no-store", "private", "public", "must-revalidate", "no-cache", "x-unknown=\"1\""];
    let flags = proptest::sample::subsequence(flags.to_vec(), 0..=2);
    let seconds = || proptest::option::of(0_u32..2000);
    (flags, seconds(), seconds()).prop_map(|(flags, max_age, s_maxage)| {
        let mut all: Vec<String> = flags.into_iter().map(str::to_owned).collect();
        all.extend(max_age.map(|seconds| format!("max-age={seconds}")));
        all.extend(s_maxage.map(|seconds| format!("s-maxage={seconds}")));
        all
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn we_agree_with_another_cache(
        directives in cache_control(),
        status in proptest::sample::select(vec![200_u16, 203, 204, 300, 301, 302, 303, 307, 308, 404, 405, 410, 414, 501]),
        expires in proptest::option::of(-100_i64..2000),
        unchanged in proptest::option::of(0_u32..50_000),
        age in proptest::option::of(0_u32..500),
        credentials: bool,
        resident in 0_u32..2500,
    ) {
        let date = |seconds: i64| date::write(u32::try_from(i64::from(NOW) + seconds).unwrap());
        let mut request = Request::get("http://products/a").body(()).unwrap();
        if credentials {
            request.headers_mut().insert(header::AUTHORIZATION, "Bearer x".parse().unwrap());
        }
        let mut response = Response::builder().status(status).body(()).unwrap();
        let headers = response.headers_mut();
        headers.insert(header::DATE, date(0));
        for directive in &directives {
            headers.append(header::CACHE_CONTROL, directive.parse().unwrap());
        }
        if let Some(expires) = expires {
            headers.insert(header::EXPIRES, date(expires));
        }
        if let Some(unchanged) = unchanged {
            headers.insert(header::LAST_MODIFIED, date(-i64::from(unchanged) * 10));
        }
        if let Some(age) = age {
            headers.insert(header::AGE, age.into());
        }
        let theirs = CachePolicy::new_options(&request, &response, at(NOW), CacheOptions::default());
        let left = theirs.time_to_live(at(NOW + resident)).as_secs();
        let theirs = (theirs.is_storable() && left > 0).then_some(left);

        let asked = Asked {
            kind: Kind::Get,
            headers: request.headers(),
            directives: &RequestDirectives::default(),
            scheme: "http",
            authority: "products",
            path: "/a",
            query: None,
        };
        let arrival = Arrival { requested: NOW, received: NOW };
        let keep = decide(&asked, response.status(), response.headers(), &CacheRules::default(), arrival).ok();
        let ours = keep.and_then(|keep| match keep.terms.judge(asked.directives, NOW + resident) {
            Freshness::Fresh { left } => Some(u64::from(left)),
            _ => None,
        });
        prop_assert_eq!(ours, theirs);
    }
}
