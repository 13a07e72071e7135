//! The cache with an origin that follows a script: no sockets, no other worker.

mod parts;
mod siblings;

use super::*;
use crate::{
    error::{Error, Kind as ErrorKind},
    telemetry::metrics::{CacheSeriesKey, Direction, Metrics},
};
use http::{Method, Request};
use http_body_util::BodyExt;
use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    time::Duration,
};
use tokio::{sync::Notify, task::LocalSet};
use weft_config::snapshot::{CacheKeyRules, CacheTtlRules};

/// What the origin does with one request.
type Step = Result<Response<Body>, ErrorKind>;

/// An origin, and what it was asked.
#[derive(Clone, Default)]
struct Script(Rc<Inner>);

#[derive(Default)]
struct Inner {
    steps: RefCell<VecDeque<Step>>,
    asked: RefCell<Vec<Parts>>,
    /// Answers only when told, if there is one.
    gate: RefCell<Option<Rc<Notify>>>,
    /// Changes the language of what it is asked on the way.
    translates: Cell<bool>,
}

impl Script {
    fn then(self, step: Step) -> Self {
        self.0.steps.borrow_mut().push_back(step);
        self
    }

    fn asked(&self) -> usize {
        self.0.asked.borrow().len()
    }

    fn last(&self, name: &str) -> Option<String> {
        let asked = self.0.asked.borrow();
        Some(asked.last()?.headers.get(name)?.to_str().unwrap().to_owned())
    }
}

impl Origin for Script {
    async fn fetch(&mut self, request: &mut Parts, _: Body) -> Result<Response<Body>, Error> {
        self.0.asked.borrow_mut().push(request.clone());
        if self.0.translates.get() {
            request.headers.insert(http::header::ACCEPT_LANGUAGE, HeaderValue::from_static("tlh"));
        }
        let gate = self.0.gate.borrow().clone();
        if let Some(gate) = gate {
            gate.notified().await;
        }
        let step = self.0.steps.borrow_mut().pop_front().expect("nobody asks more than the script has");
        step.map_err(|kind| Error::new(kind, "as the script says"))
    }

    fn sends_as_asked(&self) -> bool {
        !self.0.translates.get()
    }
}

fn answer(status: u16, fields: &[(&'static str, &str)], body: &'static str) -> Response<Body> {
    let mut response = Response::builder().status(status);
    for (name, value) in fields {
        response = response.header(*name, *value);
    }
    response.body(Body::full(body)).unwrap()
}

fn get(fields: &[(&'static str, &str)]) -> Parts {
    request(Method::GET, fields)
}

fn request(method: Method, fields: &[(&'static str, &str)]) -> Parts {
    let mut request = Request::builder().method(method).uri("/a").header("host", "svc");
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    request.body(()).unwrap().into_parts().0
}

fn cache(stores: &Stores, rules: CacheRules) -> Rc<Cache> {
    let metrics = Metrics::new(1);
    let key = CacheSeriesKey { direction: Direction::Outbound, service: "s".into(), route: "".into() };
    let series = metrics.cache(key);
    Cache::new(stores, &Arc::new(rules), "weft", series, Shard::new(metrics, 0))
}

fn fresh_cache(rules: CacheRules) -> Rc<Cache> {
    cache(&Stores::default(), rules)
}

const APART: Apart<'static> = Apart { scope: "s", identity: None };

/// The answer to one request; the refresh that follows from it is under way.
async fn respond(cache: &Rc<Cache>, request: &Parts, origin: &Script) -> Result<Response<Body>, ErrorKind> {
    let mut origin = origin.clone();
    let response = match cache.look_up(request, Notable::of(&request.headers), &Body::Empty, APART) {
        Looked::Answer(response, _) => response,
        Looked::Stale(response, refresh) => {
            let mut origin = origin.clone();
            tokio::task::spawn_local(async move { refresh.run(&mut origin).await });
            response
        }
        Looked::Go(plan) => {
            let mut request = request.clone();
            let mut asking = Asking { request: &mut request, apart: APART, until: None };
            cache.go(plan, &mut asking, Body::Empty, &mut origin).await.map_err(|error| error.kind)?.0
        }
    };
    let mut response = response;
    unfold(&mut response);
    Ok(response)
}

/// What `Cache-Status` says of an answer, and its text.
async fn ask(cache: &Rc<Cache>, request: &Parts, origin: &Script) -> Result<(String, String), ErrorKind> {
    let response = respond(cache, request, origin).await?;
    let status = response.headers().get_all("cache-status").iter().next_back().unwrap();
    let status = format!("{} {}", response.status().as_u16(), status.to_str().unwrap());
    let body = response.into_body().collect().await.map_err(|error| error.kind)?.to_bytes();
    Ok((status, String::from_utf8(body.to_vec()).unwrap()))
}

async fn told(cache: &Rc<Cache>, request: &Parts, origin: &Script) -> (String, String) {
    ask(cache, request, origin).await.unwrap()
}

fn run(test: impl Future<Output = ()>) {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    LocalSet::new().block_on(&runtime, test);
}

/// Stale from the start, with what the response says of that.
fn stale(cache_control: &str, body: &'static str) -> Response<Body> {
    answer(200, &[("cache-control", cache_control), ("age", "100"), ("etag", "\"1\"")], body)
}

#[test]
fn who_an_answer_is_for_is_told_by_what_was_asked_whatever_is_changed_on_the_way() {
    for translates in [false, true] {
        run(async move {
            let fields = [("cache-control", "max-age=60"), ("vary", "accept-language")];
            let script = Script::default().then(Ok(answer(200, &fields, "one")));
            script.0.translates.set(translates);
            let cache = fresh_cache(CacheRules::default());
            let german = get(&[("accept-language", "de")]);
            assert_eq!(told(&cache, &german, &script).await.1, "one");
            assert_eq!(told(&cache, &german, &script).await.0, "200 weft; hit; ttl=60");
            let script = script.then(Ok(answer(200, &fields, "two")));
            assert_eq!(told(&cache, &get(&[("accept-language", "tlh")]), &script).await.1, "two");
        });
    }
}

#[test]
fn a_changed_policy_keeps_what_it_would_keep_too() {
    run(async {
        let stores = Stores::default();
        let origin = Script::default()
            .then(Ok(answer(200, &[("cache-control", "max-age=600")], "one")))
            .then(Ok(answer(200, &[("cache-control", "max-age=600")], "two")));
        let before = cache(&stores, CacheRules::default());
        told(&before, &get(&[]), &origin).await;
        // Another default time: what says its own time stays.
        let ttl = CacheTtlRules { default: Some(Duration::from_secs(5)), ..Default::default() };
        let changed = cache(&stores, CacheRules { ttl, ..CacheRules::default() });
        assert_eq!(told(&changed, &get(&[]), &origin).await, ("200 weft; hit; ttl=600".into(), "one".into()));
        // A policy that gives it no time.
        let never = weft_config::snapshot::CacheOverride {
            statuses: [].into(),
            paths: [].into(),
            ttl: Duration::ZERO,
            force: false,
        };
        let ttl = CacheTtlRules { overrides: [never].into(), ..Default::default() };
        let strict = cache(&stores, CacheRules { ttl, ..CacheRules::default() });
        let (status, body) = told(&strict, &get(&[]), &origin).await;
        assert_eq!((status.as_str(), body.as_str()), ("200 weft; fwd=uri-miss; detail=policy", "two"));
        assert!(strict.store.look_up(Key::new(b"http://svc/a\nG\nSs"), seconds_now()).is_none());
    });
}

#[test]
fn a_shorter_limit_holds_for_what_is_kept_already() {
    run(async {
        let stores = Stores::default();
        let origin = Script::default()
            .then(Ok(answer(200, &[("cache-control", "max-age=600"), ("age", "30")], "one")))
            .then(Ok(answer(200, &[("cache-control", "max-age=600")], "two")));
        told(&cache(&stores, CacheRules::default()), &get(&[]), &origin).await;
        let ttl = CacheTtlRules { max: Some(Duration::from_secs(10)), ..Default::default() };
        let changed = cache(&stores, CacheRules { ttl, ..CacheRules::default() });
        assert_eq!(told(&changed, &get(&[]), &origin).await.1, "two");
    });
}

/// RFC 9111 section 4.3.3: what is asked about is given again, with the new fields.
#[test]
fn what_the_origin_confirms_is_given_with_its_new_fields() {
    run(async {
        let cache = fresh_cache(CacheRules::default());
        let origin = Script::default().then(Ok(stale("max-age=50", "one"))).then(Ok(answer(
            304,
            &[("etag", "\"1\""), ("cache-control", "max-age=70")],
            "",
        )));
        told(&cache, &get(&[]), &origin).await;
        let (status, body) = told(&cache, &get(&[]), &origin).await;
        assert_eq!(
            (status.as_str(), body.as_str()),
            ("200 weft; fwd=stale; fwd-status=304; ttl=70; stored", "one")
        );
        assert_eq!(origin.last("if-none-match").as_deref(), Some("\"1\""));
        assert_eq!(told(&cache, &get(&[]), &origin).await.0, "200 weft; hit; ttl=70");
    });
}

#[test]
fn a_304_about_something_else_has_the_whole_fetched() {
    run(async {
        let cache = fresh_cache(CacheRules::default());
        let origin = Script::default()
            .then(Ok(stale("max-age=50", "one")))
            .then(Ok(answer(304, &[("etag", "\"other\"")], "")))
            .then(Ok(answer(200, &[("cache-control", "max-age=70")], "two")));
        told(&cache, &get(&[]), &origin).await;
        assert_eq!(told(&cache, &get(&[]), &origin).await.1, "two");
        assert_eq!((origin.asked(), origin.last("if-none-match")), (3, None));
    });
}

/// RFC 5861 section 3.
#[test]
fn a_stale_answer_is_fetched_anew_once_while_it_is_given() {
    run(async {
        let cache = fresh_cache(CacheRules::default());
        let origin = Script::default()
            .then(Ok(stale("max-age=50, stale-while-revalidate=600", "one")))
            .then(Ok(answer(200, &[("cache-control", "max-age=60")], "two")));
        told(&cache, &get(&[]), &origin).await;
        let gate = Rc::new(Notify::new());
        origin.0.gate.replace(Some(gate.clone()));
        for _ in 0..5 {
            let (status, body) = told(&cache, &get(&[]), &origin).await;
            assert_eq!((status.as_str(), body.as_str()), ("200 weft; hit; ttl=-50", "one"));
            tokio::task::yield_now().await;
        }
        assert_eq!(origin.asked(), 2);
        gate.notify_one();
        for _ in 0..5 {
            tokio::task::yield_now().await;
        }
        assert_eq!(told(&cache, &get(&[]), &origin).await, ("200 weft; hit; ttl=60".into(), "two".into()));
    });
}

/// RFC 5861 section 4.
#[test]
fn a_stale_answer_stands_in_for_a_failure_where_that_is_allowed() {
    run(async {
        for failure in [Err(ErrorKind::Connect), Err(ErrorKind::BreakerOpen), Ok(answer(503, &[], "no"))] {
            let cache = fresh_cache(CacheRules::default());
            let origin =
                Script::default().then(Ok(stale("max-age=50, stale-if-error=600", "one"))).then(failure);
            told(&cache, &get(&[]), &origin).await;
            let (status, body) = told(&cache, &get(&[]), &origin).await;
            assert!(status.starts_with("200 weft; fwd=stale") && status.ends_with("detail=stale-if-error"));
            assert_eq!(body, "one");
        }
        for never in
            ["max-age=50", "max-age=50, must-revalidate, stale-if-error=600", "no-cache, stale-if-error=9"]
        {
            let cache = fresh_cache(CacheRules::default());
            let origin = Script::default().then(Ok(stale(never, "one"))).then(Err(ErrorKind::Connect));
            told(&cache, &get(&[]), &origin).await;
            assert_eq!(ask(&cache, &get(&[]), &origin).await, Err(ErrorKind::Connect));
        }
    });
}

#[test]
fn who_waited_for_a_fetch_that_failed_gets_what_is_stale_too() {
    run(async {
        let cache = fresh_cache(CacheRules::default());
        let origin = Script::default()
            .then(Ok(stale("max-age=50, stale-if-error=600", "one")))
            .then(Err(ErrorKind::Timeout));
        told(&cache, &get(&[]), &origin).await;
        let gate = Rc::new(Notify::new());
        origin.0.gate.replace(Some(gate.clone()));
        let plain = get(&[]);
        let (first, second) = tokio::join!(told(&cache, &plain, &origin), async {
            tokio::task::yield_now().await;
            gate.notify_one();
            told(&cache, &plain, &origin).await
        });
        assert_eq!((first.1.as_str(), second.1.as_str(), origin.asked()), ("one", "one", 2));
    });
}

#[test]
fn one_fetch_serves_all_who_came_meanwhile() {
    run(async {
        let cache = fresh_cache(CacheRules::default());
        let origin = Script::default().then(Ok(answer(200, &[("cache-control", "max-age=60")], "one")));
        let gate = Rc::new(Notify::new());
        origin.0.gate.replace(Some(gate.clone()));
        let plain = get(&[]);
        let (one, two, three, ()) = tokio::join!(
            told(&cache, &plain, &origin),
            told(&cache, &plain, &origin),
            told(&cache, &plain, &origin),
            async { gate.notify_one() }
        );
        assert_eq!(one.0, "200 weft; fwd=uri-miss; ttl=60; stored");
        assert_eq!(
            (&two, &two),
            (&three, &("200 weft; fwd=uri-miss; ttl=60; collapsed".into(), "one".into()))
        );
        assert_eq!(origin.asked(), 1);
    });
}

/// Nobody gets another's answer: those with credentials wait only for their like, and get nothing that is private.
#[test]
fn private_answers_are_not_shared_by_those_who_wait() {
    run(async {
        let cache = fresh_cache(CacheRules::default());
        let private = |body| Ok(answer(200, &[("cache-control", "private, max-age=60")], body));
        let origin = Script::default().then(private("ann's")).then(private("bob's"));
        let gate = Rc::new(Notify::new());
        origin.0.gate.replace(Some(gate.clone()));
        let (ann, bob) = (get(&[("authorization", "ann")]), get(&[("authorization", "bob")]));
        let (one, two, ()) = tokio::join!(told(&cache, &ann, &origin), told(&cache, &bob, &origin), async {
            gate.notify_one();
            tokio::task::yield_now().await;
            gate.notify_one();
        });
        assert_eq!((one.1.as_str(), two.1.as_str()), ("ann's", "bob's"));
        assert_eq!(origin.last("authorization").as_deref(), Some("bob"));
    });
}

#[test]
fn who_waits_waits_no_longer_than_policy_says() {
    run(async {
        let rules = CacheRules { coalesce: Some(Duration::from_secs(1)), ..CacheRules::default() };
        let cache = fresh_cache(rules);
        let origin = Script::default()
            .then(Ok(answer(200, &[("cache-control", "max-age=60")], "one")))
            .then(Ok(answer(200, &[("cache-control", "max-age=60")], "two")));
        let gate = Rc::new(Notify::new());
        origin.0.gate.replace(Some(gate.clone()));
        let plain = get(&[]);
        let (one, two, ()) =
            tokio::join!(told(&cache, &plain, &origin), told(&cache, &plain, &origin), async {
                tokio::time::sleep(Duration::from_secs(2)).await;
                assert_eq!(origin.asked(), 2);
                gate.notify_waiters();
            });
        assert_eq!((one.1.as_str(), two.1.as_str()), ("one", "two"));
    });
}

/// RFC 9111 section 4.3.5.
#[test]
fn a_head_brings_what_is_kept_up_to_date_or_outdates_it() {
    run(async {
        let cache = fresh_cache(CacheRules::default());
        let origin = Script::default()
            .then(Ok(stale("max-age=50", "one")))
            .then(Ok(answer(200, &[("etag", "\"1\""), ("cache-control", "max-age=90")], "")))
            .then(Ok(answer(200, &[("etag", "\"2\""), ("cache-control", "max-age=90")], "")))
            .then(Ok(answer(200, &[("etag", "\"2\""), ("cache-control", "max-age=90")], "two")));
        told(&cache, &get(&[]), &origin).await;
        told(&cache, &request(Method::HEAD, &[]), &origin).await;
        assert_eq!(told(&cache, &get(&[]), &origin).await, ("200 weft; hit; ttl=90".into(), "one".into()));
        told(&cache, &request(Method::HEAD, &[("cache-control", "no-cache")]), &origin).await;
        assert_eq!(told(&cache, &get(&[]), &origin).await.1, "two");
    });
}

/// RFC 9111 section 5.2.1.7.
#[test]
fn who_takes_only_what_is_kept_gets_a_504_without_the_origin_being_asked() {
    run(async {
        let cache = fresh_cache(CacheRules::default());
        let origin = Script::default();
        let (status, _) = told(&cache, &get(&[("cache-control", "only-if-cached")]), &origin).await;
        assert_eq!((status.as_str(), origin.asked()), ("504 weft; fwd=uri-miss; detail=only-if-cached", 0));
    });
}

/// RFC 9111 section 4.4, for whatever rule of the port the change came through.
#[test]
fn a_change_that_succeeds_is_seen_by_the_next_request() {
    run(async {
        let cache = fresh_cache(CacheRules::default());
        let one = |body| Ok(answer(200, &[("cache-control", "max-age=60")], body));
        let origin = Script::default().then(one("one")).then(one("two"));
        told(&cache, &get(&[]), &origin).await;
        let caches = [cache.clone()];
        let change = Change::of(&request(Method::POST, &[])).unwrap();
        change.answered(&caches, StatusCode::INTERNAL_SERVER_ERROR, &http::HeaderMap::new());
        assert_eq!(told(&cache, &get(&[]), &origin).await.1, "one");
        change.answered(&caches, StatusCode::NO_CONTENT, &http::HeaderMap::new());
        assert_eq!(told(&cache, &get(&[]), &origin).await.1, "two");
        assert!(Change::of(&get(&[])).is_none());
    });
}

/// Nobody with a cookie gets, or leaves behind, what nobody said is for all.
#[test]
fn what_is_kept_by_a_guess_or_by_default_is_for_requests_without_cookies() {
    run(async {
        let default = CacheTtlRules { default: Some(Duration::from_secs(60)), ..Default::default() };
        let kept = || Ok(answer(200, &[("last-modified", "Sat, 01 Jan 2000 00:00:00 GMT")], "for all"));
        let own = || Ok(answer(200, &[("last-modified", "Sat, 01 Jan 2000 00:00:00 GMT")], "ann's"));
        for ttl in [CacheTtlRules::default(), default] {
            let rules = CacheRules { ttl, ..CacheRules::default() };
            let cache = fresh_cache(rules.clone());
            let origin = Script::default().then(own()).then(kept()).then(own());
            let ann = get(&[("cookie", "user=ann")]);
            assert!(told(&cache, &ann, &origin).await.0.ends_with("detail=no-freshness"));
            assert_eq!(told(&cache, &get(&[]), &origin).await.1, "for all");
            assert_eq!(told(&cache, &get(&[]), &origin).await.1, "for all");
            assert_eq!(told(&cache, &ann, &origin).await.1, "ann's");
            // Who says which cookies count has thought of them.
            let key = CacheKeyRules { cookies: ["user".into()].into(), ..Default::default() };
            let cache = fresh_cache(CacheRules { key, ..rules });
            let origin = Script::default().then(own());
            told(&cache, &ann, &origin).await;
            assert!(told(&cache, &ann, &origin).await.0.contains("; hit"));
        }
    });
}

/// `No-Vary-Search`: from the answer on that says so.
#[test]
fn parameters_that_a_resource_passes_over_make_no_other_resource() {
    run(async {
        let cache = fresh_cache(CacheRules::default());
        let says = [("cache-control", "max-age=60"), ("no-vary-search", "params=(\"utm\")")];
        let origin =
            Script::default().then(Ok(answer(200, &says, "one"))).then(Ok(answer(200, &says, "two")));
        let with = |query: &str| {
            let mut request = get(&[]);
            request.uri = format!("/a?{query}").parse().unwrap();
            request
        };
        told(&cache, &with("utm=1"), &origin).await;
        told(&cache, &with("utm=2"), &origin).await;
        assert_eq!(told(&cache, &with("utm=3"), &origin).await.1, "two");
        assert_eq!(origin.asked(), 2);
    });
}

/// A client's own conditions do not keep others from what it brings.
#[test]
fn a_conditional_request_has_the_whole_fetched_and_gets_what_it_asked_for() {
    run(async {
        let cache = fresh_cache(CacheRules::default());
        let says = [("cache-control", "max-age=60"), ("etag", "\"1\"")];
        let origin = Script::default().then(Ok(answer(200, &says, "one")));
        let (status, body) = told(&cache, &get(&[("if-none-match", "\"0\", W/\"1\"")]), &origin).await;
        assert_eq!((status.as_str(), body.as_str()), ("304 weft; fwd=uri-miss; ttl=60; stored", ""));
        assert_eq!(origin.last("if-none-match"), None);
        assert_eq!(told(&cache, &get(&[]), &origin).await, ("200 weft; hit; ttl=60".into(), "one".into()));
    });
}
