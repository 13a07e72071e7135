//! The cache with siblings that follow a script as well.

use super::*;
use crate::cache::siblings::ToSibling;
use http::Response;
use std::cell::Cell;
use weft_config::snapshot::{CacheTagRules, CacheTierRules};

/// An origin behind siblings.
#[derive(Clone, Default)]
struct Circle {
    origin: Script,
    /// What the sibling that a key belongs to answers; `None` where it does not.
    answers: Rc<RefCell<VecDeque<Option<Response<Body>>>>>,
    questions: Rc<Cell<usize>>,
    /// Of the last question: whether it had to be confirmed, and its validator.
    last: Rc<RefCell<(bool, Option<String>)>>,
}

impl Circle {
    fn of(answers: impl IntoIterator<Item = Option<Response<Body>>>, origin: Script) -> Self {
        let answers = Rc::new(RefCell::new(answers.into_iter().collect()));
        Self { origin, answers, ..Self::default() }
    }

    /// How often the sibling was asked, and how often the origin.
    fn asked(&self) -> (usize, usize) {
        (self.questions.get(), self.origin.asked())
    }
}

impl Origin for Circle {
    async fn fetch(&mut self, request: &mut Parts, body: Body) -> Result<Response<Body>, Error> {
        self.origin.fetch(request, body).await
    }

    fn sends_as_asked(&self) -> bool {
        true
    }

    async fn ask(&mut self, question: ToSibling<'_>) -> Option<Response<Body>> {
        self.questions.set(self.questions.get() + 1);
        let validator = question.request.headers.get("if-none-match");
        let validator = validator.map(|value| value.to_str().unwrap().to_owned());
        self.last.replace((question.anew, validator));
        tokio::task::yield_now().await;
        let mut answer =
            self.answers.borrow_mut().pop_front().expect("nobody asks more than the script has")?;
        answer.extensions_mut().insert(OfSibling);
        Some(answer)
    }
}

fn rules() -> CacheRules {
    let tiers = CacheTierRules { siblings: Some(Duration::from_millis(100)), ..CacheTierRules::default() };
    CacheRules { tiers, ..CacheRules::default() }
}

fn of_sibling() -> Parts {
    let mut request = get(&[]);
    request.extensions.insert(OfSibling);
    request
}

/// One request: the answer, with its fields in sight.
async fn call(cache: &Rc<Cache>, request: &Parts, circle: &Circle) -> Response<Body> {
    let mut origin = circle.clone();
    let mut response = match cache.look_up(request, Notable::of(&request.headers), &Body::Empty, APART) {
        Looked::Answer(response, _) => response,
        Looked::Stale(response, refresh) => {
            refresh.run(&mut origin).await;
            response
        }
        Looked::Go(plan) => {
            let mut request = request.clone();
            let mut asking = Asking { request: &mut request, apart: APART, until: None };
            cache.go(plan, &mut asking, Body::Empty, &mut origin).await.unwrap().0
        }
    };
    unfold(&mut response);
    response
}

async fn text(response: Response<Body>) -> String {
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    String::from_utf8(bytes.to_vec()).unwrap()
}

const HOUR: &[(&str, &str)] = &[("cache-control", "max-age=3600"), ("etag", "\"1\"")];

fn for_an_hour(body: &'static str) -> Response<Body> {
    answer(200, HOUR, body)
}

#[test]
fn what_a_sibling_gives_is_given_and_kept_as_if_the_origin_had() {
    run(async {
        let circle = Circle::of([Some(for_an_hour("its"))], Script::default());
        let cache = fresh_cache(rules());
        for _ in 0..3 {
            assert_eq!(text(call(&cache, &get(&[]), &circle).await).await, "its");
        }
        assert_eq!(circle.asked(), (1, 0));
    });
}

#[test]
fn its_age_counts() {
    run(async {
        let old = answer(200, &[("cache-control", "max-age=60"), ("age", "50")], "old");
        let circle = Circle::of([Some(old)], Script::default());
        let cache = fresh_cache(rules());
        call(&cache, &get(&[]), &circle).await;
        let hit = call(&cache, &get(&[]), &circle).await;
        assert_eq!(
            (&hit.headers()["age"], &hit.headers()["cache-status"]),
            (&"50".parse().unwrap(), &"weft; hit; ttl=10".parse().unwrap())
        );
    });
}

#[test]
fn the_origin_is_asked_where_a_sibling_does_not_answer() {
    run(async {
        let circle = Circle::of([None], Script::default().then(Ok(for_an_hour("origin"))));
        let cache = fresh_cache(rules());
        for _ in 0..2 {
            assert_eq!(text(call(&cache, &get(&[]), &circle).await).await, "origin");
        }
        assert_eq!(circle.asked(), (1, 1));
    });
}

#[test]
fn no_sibling_is_asked_without_policy_or_for_a_sibling() {
    run(async {
        let origin = || Script::default().then(Ok(for_an_hour("origin")));
        let circle = Circle::of([], origin());
        call(&fresh_cache(CacheRules::default()), &get(&[]), &circle).await;
        assert_eq!(circle.asked(), (0, 1));
        let circle = Circle::of([], origin());
        let response = call(&fresh_cache(rules()), &of_sibling(), &circle).await;
        assert_eq!(circle.asked(), (0, 1));
        assert_eq!(response.headers()["cache-status"], "weft-sibling; fwd=uri-miss; ttl=3600; stored");
    });
}

#[test]
fn what_could_not_be_kept_lately_is_not_asked_of_siblings() {
    run(async {
        let own = || answer(200, &[("cache-control", "no-store")], "own");
        let circle = Circle::of([Some(own())], Script::default().then(Ok(own())));
        let cache = fresh_cache(rules());
        call(&cache, &get(&[]), &circle).await;
        call(&cache, &get(&[]), &circle).await;
        assert_eq!(circle.asked(), (1, 1));
    });
}

#[test]
fn what_a_sibling_gives_stale_is_asked_of_it_again() {
    run(async {
        let stale = || answer(200, &[("cache-control", "max-age=60"), ("age", "100")], "stale");
        let circle = Circle::of([Some(stale()), Some(stale()), Some(for_an_hour("new"))], Script::default());
        let cache = fresh_cache(rules());
        for body in ["stale", "stale", "new"] {
            assert_eq!(text(call(&cache, &get(&[]), &circle).await).await, body);
        }
        assert_eq!(circle.asked(), (3, 0));
    });
}

#[test]
fn a_sibling_gets_what_is_new_where_a_caller_gets_what_is_stale() {
    run(async {
        let stale = "max-age=10, stale-while-revalidate=1000";
        let script = || Script::default().then(Ok(super::stale(stale, "old"))).then(Ok(for_an_hour("new")));
        let rules = || CacheRules { tiers: CacheTierRules::default(), ..rules() };
        for (request, wanted) in [(get(&[]), "old"), (of_sibling(), "new")] {
            let (circle, cache) = (Circle::of([], script()), fresh_cache(rules()));
            call(&cache, &get(&[]), &circle).await;
            assert_eq!(text(call(&cache, &request, &circle).await).await, wanted);
            assert_eq!(circle.asked(), (0, 2));
        }
    });
}

#[test]
fn a_sibling_confirms_what_is_kept() {
    run(async {
        let fields = [("cache-control", "max-age=10"), ("age", "100"), ("etag", "\"1\"")];
        let fresh = [("cache-control", "max-age=10"), ("etag", "\"1\"")];
        let circle =
            Circle::of([Some(answer(200, &fields, "one")), Some(answer(304, &fresh, ""))], Script::default());
        let cache = fresh_cache(rules());
        for _ in 0..3 {
            assert_eq!(text(call(&cache, &get(&[]), &circle).await).await, "one");
        }
        assert_eq!(circle.asked(), (2, 0));
        assert_eq!(*circle.last.borrow(), (false, Some("\"1\"".to_owned())));
    });
}

#[test]
fn after_a_change_siblings_have_to_ask_the_origin() {
    run(async {
        let circle = Circle::of([Some(for_an_hour("before")), Some(for_an_hour("after"))], Script::default());
        let cache = fresh_cache(rules());
        call(&cache, &get(&[]), &circle).await;
        assert!(!circle.last.borrow().0);
        let change = Change::of(&request(Method::PUT, &[])).expect("a change");
        change.answered(std::slice::from_ref(&cache), StatusCode::NO_CONTENT, &http::HeaderMap::new());
        assert_eq!(text(call(&cache, &get(&[]), &circle).await).await, "after");
        assert!(circle.last.borrow().0);
    });
}

#[test]
fn requests_that_come_at_once_ask_one_sibling_once() {
    run(async {
        let circle = Circle::of([Some(for_an_hour("its"))], Script::default());
        let cache = fresh_cache(rules());
        let request = get(&[]);
        let all = (0..20).map(|_| async { text(call(&cache, &request, &circle).await).await });
        let bodies = futures_util::future::join_all(all).await;
        assert!(bodies.iter().all(|body| body == "its"));
        assert_eq!(circle.asked(), (1, 0));
    });
}

#[test]
fn heads_are_asked_of_siblings_and_questions_in_bodies_are_not() {
    run(async {
        let circle = Circle::of([Some(for_an_hour(""))], Script::default().then(Ok(for_an_hour("origin"))));
        let cache = fresh_cache(CacheRules { post: true, ..rules() });
        call(&cache, &request(Method::HEAD, &[]), &circle).await;
        assert_eq!(circle.asked(), (1, 0));
        call(&cache, &request(Method::POST, &[]), &circle).await;
        assert_eq!(circle.asked(), (1, 1));
    });
}

#[test]
fn labels_are_for_siblings_and_not_for_callers() {
    run(async {
        let tags = Some(CacheTagRules { header: "cache-tag".parse().unwrap(), strip: true });
        let rules = || CacheRules { tags: tags.clone(), ..rules() };
        let labelled = || answer(200, &[("cache-control", "max-age=3600"), ("cache-tag", "a, b")], "one");
        // At the owner: on the way, as a hit, and as a hit with a condition.
        let circle = Circle::of([], Script::default().then(Ok(labelled())));
        let owner = fresh_cache(rules());
        let first = call(&owner, &of_sibling(), &circle).await;
        let second = call(&owner, &of_sibling(), &circle).await;
        assert_eq!(
            (&first.headers()["cache-tag"], &second.headers()["cache-tag"]),
            (&"a, b".parse().unwrap(), &"a,b".parse().unwrap())
        );
        assert!(second.headers()["cache-status"].to_str().unwrap().starts_with("weft-sibling; hit; "));
        assert!(!call(&owner, &get(&[]), &circle).await.headers().contains_key("cache-tag"));
        // At the asker: kept by them, and not shown.
        let circle = Circle::of([Some(second)], Script::default());
        let asker = fresh_cache(rules());
        for _ in 0..2 {
            assert!(!call(&asker, &get(&[]), &circle).await.headers().contains_key("cache-tag"));
        }
        let key = Key::new(b"http://svc/a\nG\nSs");
        let kept = asker.store.look_up(key, seconds_now()).expect("kept");
        let tags: Vec<Vec<u8>> = kept.iter().next().unwrap().tags().map(<[u8]>::to_vec).collect();
        assert_eq!(tags, [b"a".to_vec(), b"b".to_vec()]);
    });
}
