//! Nobody sees an answer that was made for somebody else.

use crate::stage::{Set, URL, answer, caching, is_hit, is_not_kept};
use futures_util::future::join_all;
use http::Response;
use std::{
    sync::atomic::{AtomicUsize, Ordering::SeqCst},
    time::Duration,
};
use weft_tests::{Body, mesh::calling, scripted::Asked};

/// Says who asked, as far as that is to be seen.
fn personal(asked: &Asked, fields: &[(&str, &str)]) -> Response<Body> {
    let who = ["authorization", "cookie", "x-user"].map(|name| asked.header(name).to_owned());
    answer(fields, format!("{} for {}", asked.path, who.join("/")))
}

/// Each path with what its answers say. Nothing of this may go from one user to another.
const TABLE: [(&str, &[(&str, &str)]); 9] = [
    ("/private", &[("cache-control", "private, max-age=60")]),
    ("/private-fields", &[("cache-control", "private=\"content-type\", max-age=60")]),
    ("/no-store", &[("cache-control", "no-store")]),
    ("/silent", &[("last-modified", "Sun, 06 Nov 1994 08:49:37 GMT")]),
    ("/cookie", &[("set-cookie", "id=1"), ("last-modified", "Sun, 06 Nov 1994 08:49:37 GMT")]),
    ("/varies", &[("cache-control", "max-age=60"), ("vary", "authorization, cookie, x-user")]),
    ("/varies-public", &[("cache-control", "public, max-age=60"), ("vary", "authorization, cookie, x-user")]),
    ("/must", &[("cache-control", "no-cache, max-age=60"), ("vary", "authorization, Cookie , x-user")]),
    ("/any", &[("cache-control", "max-age=60"), ("vary", "*")]),
];

fn by_table(asked: &Asked) -> Response<Body> {
    let (_, fields) = TABLE.iter().find(|(path, _)| *path == asked.path).unwrap();
    personal(asked, fields)
}

/// What `user` says of itself, and what its own answers show.
fn credentials(name: &'static str, user: &str) -> ((&'static str, String), String) {
    let value = match name {
        "authorization" => format!("Bearer {user}"),
        "cookie" => format!("session={user}"),
        _ => user.to_owned(),
    };
    let mut shown = ["", "", ""].map(str::to_owned);
    let at = ["authorization", "cookie", "x-user"].iter().position(|known| *known == name).unwrap();
    shown[at] = value.clone();
    ((name, value), shown.join("/"))
}

async fn each_sees_its_own(set: &Set, names: &[&'static str], paths: &[&str]) {
    for name in names {
        for path in paths {
            // What nobody in particular was answered may be for all: each name has addresses of its own.
            let target = format!("{path}?{name}");
            for user in ["ann", "ben", "ann", "ben", "eve"] {
                let ((name, value), shown) = credentials(name, user);
                let answer = set.get(&target, &[(name, &value)]).await;
                assert_eq!(
                    answer.text(),
                    format!("{path} for {shown}"),
                    "{user} by {name}: {:?}",
                    answer.headers
                );
            }
            let nobody = set.get(&target, &[]).await;
            assert_eq!(nobody.text(), format!("{path} for //"), "{:?}", nobody.headers);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_never_see_each_others_answers_at_the_caller() {
    let set = Set::at_once(&caching(&[]), by_table).await;
    let paths = TABLE.map(|(path, _)| path);
    // What says nothing of a header of the application's own may be kept for everybody: the origin has to say.
    let all: Vec<_> = paths.into_iter().filter(|path| *path != "/private-fields").collect();
    each_sees_its_own(&set, &["authorization", "cookie"], &all).await;
    let told: Vec<_> = all.into_iter().filter(|path| *path != "/silent").collect();
    each_sees_its_own(&set, &["x-user"], &told).await;
    each_sees_its_own(&set, &["authorization"], &["/private-fields"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_never_see_each_others_answers_where_they_are_served() {
    let set = Set::at_once(&caching(&["where: inbound", "ttl: { max: 1h }"]), by_table).await;
    let paths = TABLE.map(|(path, _)| path);
    let all: Vec<_> = paths.into_iter().filter(|path| *path != "/private-fields").collect();
    each_sees_its_own(&set, &["authorization", "cookie"], &all).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_authorization_only_what_says_so_is_for_everybody() {
    let set = Set::at_once(&caching(&[]), |asked| {
        let says = match asked.path.as_str() {
            "/public" => "public, max-age=60",
            "/shared" => "s-maxage=60",
            "/must" => "must-revalidate, max-age=60",
            _ => "max-age=60",
        };
        answer(&[("cache-control", says)], format!("for {}", asked.header("authorization")))
    })
    .await;
    for path in ["/public", "/shared", "/must"] {
        set.get(path, &[("authorization", "ann")]).await;
        let answer = set.get(path, &[("authorization", "ben")]).await;
        is_hit(&answer);
        assert_eq!(answer.text(), "for ann");
        is_hit(&set.get(path, &[]).await);
    }
    is_not_kept(&set.get("/plain", &[("authorization", "ann")]).await, "uri-miss", "authorization");
    assert_eq!(set.get("/plain", &[("authorization", "ben")]).await.text(), "for ben");
    // What was fetched without them is for everybody.
    assert_eq!(set.get("/plain", &[]).await.text(), "for ");
    is_hit(&set.get("/plain", &[("authorization", "ben")]).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn policy_can_keep_each_users_answers_apart() {
    let policy = caching(&["key: { headers: [authorization, x-user], cookies: [session] }"]);
    let set = Set::at_once(&policy, |asked| personal(asked, &[("cache-control", "max-age=60")])).await;
    each_sees_its_own(&set, &["authorization", "cookie", "x-user"], &["/a"]).await;
    // Three users by three names, and nobody each time.
    assert_eq!(set.origin.begun(), 12);
    let answer = set.get("/a?cookie", &[("cookie", "theme=dark; session=ann")]).await;
    assert_eq!(answer.text(), "/a for /session=ann/", "other cookies do not count");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn policy_can_keep_each_callers_answers_apart() {
    let turn = AtomicUsize::new(0);
    let policy = caching(&["where: inbound", "key: { identity: true }"]) + &calling("other");
    let set = Set::at_once(&policy, move |_| {
        answer(&[("cache-control", "max-age=60")], turn.fetch_add(1, SeqCst).to_string())
    })
    .await;
    let (_other, other) = set.stage.another("other").await;
    let url = format!("{URL}/");
    for _ in 0..2 {
        assert_eq!(set.client().get(&url).await.text(), "0");
        assert_eq!(other.get(&url).await.text(), "1");
    }
    assert_eq!(set.origin.begun(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_first_caller_gets_the_cookie_of_an_answer_that_is_kept_without_it() {
    let policy = caching(&["setCookie: strip"]);
    let set = Set::at_once(&policy, |asked| {
        let cookie = format!("id={}", asked.turn);
        answer(&[("cache-control", "max-age=60"), ("set-cookie", &cookie)], "page")
    })
    .await;
    assert_eq!(set.get("/", &[]).await.header("set-cookie"), "id=0");
    let second = set.get("/", &[]).await;
    is_hit(&second);
    assert_eq!((second.header("set-cookie"), second.text()), ("", "page"));
}

/// Calls by many users at once, of which one fetches first and the others wait for it.
async fn at_once_each_sees_its_own(name: &'static str, says: &'static [(&'static str, &'static str)]) {
    let set = Set::new(&caching(&[]), move |asked| async move {
        // Long enough that those who may wait do.
        tokio::time::sleep(Duration::from_millis(50)).await;
        Ok(personal(&asked, says))
    })
    .await;
    for round in 0..3 {
        let path = format!("/{round}");
        let calls = (0..24).map(|n| {
            let (set, path) = (&set, &path);
            async move {
                let ((name, value), shown) = credentials(name, &format!("user-{}", n % 12));
                let answer = set.get(path, &[(name, &value)]).await;
                assert_eq!(answer.text(), format!("{path} for {shown}"), "{:?}", answer.headers);
            }
        });
        join_all(calls).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_wait_for_one_fetch_never_share_an_answer_that_is_one_persons() {
    tokio::join!(
        at_once_each_sees_its_own("authorization", &[("cache-control", "max-age=60")]),
        at_once_each_sees_its_own("x-user", &[("cache-control", "private, max-age=60")]),
        at_once_each_sees_its_own("cookie", &[("cache-control", "no-store")]),
    );
    tokio::join!(
        at_once_each_sees_its_own("cookie", &[("last-modified", "Sun, 06 Nov 1994 08:49:37 GMT")]),
        at_once_each_sees_its_own("x-user", &[("cache-control", "max-age=60"), ("vary", "x-user")]),
        at_once_each_sees_its_own("x-user", &[("cache-control", "max-age=60"), ("set-cookie", "a=b")]),
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_with_credentials_does_not_wait_for_one_without_nor_the_other_way_round() {
    let set = Set::new(&caching(&[]), |asked| async move {
        tokio::time::sleep(Duration::from_millis(50)).await;
        Ok(personal(&asked, &[("cache-control", "max-age=60")]))
    })
    .await;
    let calls = (0..12).map(|n| {
        let set = &set;
        async move {
            let fields = [("authorization", "ann")];
            let mine = n % 2 == 0;
            let answer = set.get("/", if mine { &fields } else { &[] }).await;
            // What was fetched without credentials is for all, the other way round nothing is.
            let shown = answer.text().to_owned();
            assert!(shown == "/ for //" || (mine && shown == "/ for ann//"), "{mine}: {shown}");
        }
    });
    join_all(calls).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cookies_in_several_fields_are_the_cookies_of_one_user() {
    let policy = caching(&["key: { cookies: [session] }"]);
    let set = Set::at_once(&policy, |asked| {
        let cookies: Vec<_> = asked.headers.get_all("cookie").iter().map(|c| c.to_str().unwrap()).collect();
        answer(&[("cache-control", "max-age=60")], cookies.join("; "))
    })
    .await;
    let call = |fields: &'static [(&'static str, &'static str)]| {
        set.client().call_http2(crate::stage::request("GET", "/", fields))
    };
    assert_eq!(call(&[("cookie", "a=1"), ("cookie", "session=ann")]).await.text(), "a=1; session=ann");
    assert_eq!(call(&[("cookie", "a=1"), ("cookie", "session=ben")]).await.text(), "a=1; session=ben");
    for (session, fields) in [
        ("ann", &[("cookie", "session=ann; b=2")][..]),
        ("ben", &[("cookie", "b=2"), ("cookie", "session=ben"), ("cookie", "c=3")]),
    ] {
        let answer = call(fields).await;
        is_hit(&answer);
        assert_eq!(answer.text(), format!("a=1; session={session}"));
    }
}
