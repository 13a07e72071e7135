//! Users on shards of their own.

use crate::texts_by_key;
use weft_tests::{
    Backend,
    mesh::serving,
    stage::{Instance, Stage, traffic_policy},
};

const ORDERS: &str = "http://orders:8080/";

fn sharded(shards: &str, more: &str) -> String {
    let sharding = format!(
        "sharding: {{ key: [{{ header: x-customer }}, {{ query: customer }}], shards: [{shards}]{more} }}"
    );
    traffic_policy("shards", "{ kind: Service, name: orders }", &[&sharding])
}

/// `orders` with shards `one`, `two` and, not used yet, `three`.
async fn orders() -> Stage {
    let instances = [
        Instance::new("one", Backend::text("one").await),
        Instance::new("two", Backend::text("two").await),
        Instance::new("three", Backend::text("three").await),
    ];
    let stage = Stage::set(&serving("orders", 8080, "http"), instances).await;
    stage
        .change("shards.yaml", &sharded("{ service: one }, { service: two, pinned: [acme, berg] }", ""))
        .await;
    stage
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_customer_has_a_shard_and_another_shard_takes_only_its_part() {
    let stage = orders().await;
    let before = texts_by_key(&stage.client, ORDERS, "x-customer", 600).await;
    assert_eq!(texts_by_key(&stage.client, ORDERS, "x-customer", 600).await, before);
    let ones = before.iter().filter(|shard| *shard == "one").count();
    assert!((239..=361).contains(&ones), "half of 600, within five standard deviations: {ones}");
    let three = "{ service: one }, { service: two, pinned: [acme, berg] }, { service: three }";
    stage.change("shards.yaml", &sharded(three, "")).await;
    let after = texts_by_key(&stage.client, ORDERS, "x-customer", 600).await;
    let moved: Vec<_> = before.iter().zip(&after).filter(|(b, a)| b != a).map(|(_, a)| a).collect();
    assert!(moved.iter().all(|shard| *shard == "three"));
    assert!((142..=258).contains(&moved.len()), "a third of 600: {}", moved.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pinned_tenants_stay_where_policy_puts_them() {
    let stage = orders().await;
    for shards in [
        "{ service: one }, { service: two, pinned: [acme, berg] }",
        "{ service: one }, { service: two, weight: 0, pinned: [acme, berg] }, { service: three }",
    ] {
        stage.change("shards.yaml", &sharded(shards, ", withoutKey: one")).await;
        for tenant in ["acme", "berg"] {
            assert_eq!(stage.client.get_with(ORDERS, &[("x-customer", tenant)]).await.text(), "two");
            assert_eq!(stage.client.get(&format!("{ORDERS}?customer={tenant}")).await.text(), "two");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_key_a_call_is_told_what_it_lacks_or_goes_where_policy_says() {
    let stage = orders().await;
    let answer = stage.client.get(ORDERS).await;
    assert_eq!((answer.status.as_u16(), answer.weft_error()), (400, "bad_request"), "{}", answer.text());
    for named in ["x-customer", "customer", "shop/orders"] {
        assert!(answer.text().contains(named), "{named}: {}", answer.text());
    }
    let shards = "{ service: one }, { service: two }";
    stage.change("shards.yaml", &sharded(shards, ", withoutKey: two")).await;
    for _ in 0..10 {
        assert_eq!(stage.client.get(ORDERS).await.text(), "two");
    }
}
