//! Weighted splits that keep each user on one side.

use crate::{URL, soon_enough, texts_by_key};
use std::collections::BTreeMap;
use weft_tests::{
    Backend, Client,
    mesh::{calling, serving},
    stage::{Instance, Stage, route, traffic_policy},
};

/// Users whose sides are measured.
const USERS: usize = 2000;

fn weights(old: u32, new: u32) -> String {
    let rule = format!(
        "{{ name: split, backendRefs: [{{ name: old, port: 8080, weight: {old} }}, {{ name: new, port: 8080, weight: {new} }}] }}"
    );
    route("HTTPRoute", "product", &[&rule])
}

/// `product`, split 90 to 10 between `old` and `new`, with these session keys.
async fn split(keys: &str) -> Stage {
    let policy = serving("product", 8080, "http")
        + &traffic_policy("sticky", "{ kind: Service, name: product }", &[&format!("sessionKey: {keys}")])
        + &calling("other");
    let instances =
        [Instance::new("old", Backend::text("old").await), Instance::new("new", Backend::text("new").await)];
    let stage = Stage::set(&policy, instances).await;
    stage.change("weights.yaml", &weights(90, 10)).await;
    stage
}

fn count(sides: &[String], side: &str) -> usize {
    sides.iter().filter(|text| *text == side).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_weight_moves_users_from_old_to_new_and_never_back() {
    let stage = split("[{ header: x-user }]").await;
    let before = texts_by_key(&stage.client, URL, "x-user", USERS).await;
    stage.change("weights.yaml", &weights(50, 50)).await;
    let after = texts_by_key(&stage.client, URL, "x-user", USERS).await;
    let back = before.iter().zip(&after).filter(|(b, a)| *b == "new" && *a == "old").count();
    assert_eq!(back, 0);
    // Binomial with n = 2,000: five standard deviations of 10 % and of 50 %.
    let (before, after) = (count(&before, "new"), count(&after, "new"));
    assert!((133..=267).contains(&before), "{before} of {USERS}, not a tenth");
    assert!((888..=1112).contains(&after), "{after} of {USERS}, not a half");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_is_on_one_side_whichever_sidecar_decides() {
    let stage = split("[{ header: x-user }, { cookie: user }]").await;
    stage.change("weights.yaml", &weights(50, 50)).await;
    let (_other, other) = stage.another("other").await;
    let first = texts_by_key(&stage.client, URL, "x-user", 100).await;
    assert!(count(&first, "old") > 0 && count(&first, "new") > 0);
    for client in [&stage.client, &other, &stage.client] {
        assert_eq!(texts_by_key(client, URL, "x-user", 100).await, first);
    }
    for (n, side) in first.iter().enumerate() {
        let cookie = format!("lang=en; user=user-{n}; theme=dark");
        let by_cookie = stage.client.get_with(URL, &[("cookie", &cookie)]).await;
        assert_eq!(by_cookie.text(), side, "the same user by another part of the key");
        let both = [("x-user", &*format!("user-{n}")), ("cookie", "user=somebody-else")];
        assert_eq!(stage.client.get_with(URL, &both).await.text(), side, "the first part goes before");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_without_a_key_go_by_chance() {
    let stage = split("[{ header: x-user }]").await;
    stage.change("weights.yaml", &weights(50, 50)).await;
    let mut sides = BTreeMap::<String, u32>::new();
    let client: &Client = &stage.client;
    let calls = async {
        for _ in 0..200 {
            *sides.entry(client.get(URL).await.text().to_owned()).or_default() += 1;
        }
    };
    soon_enough("all calls", calls).await;
    // Binomial with n = 200: five standard deviations.
    assert!(sides.values().all(|count| (65..=135).contains(count)) && sides.len() == 2, "{sides:?}");
}
