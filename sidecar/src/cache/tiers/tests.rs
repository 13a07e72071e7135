//! Tiers are taken over, changed and ended as policies are; what they keep comes back until it is purged.

mod disk;
mod redis;

use super::*;
use crate::{
    cache::entry::{Draft, Key, Times, tests::Sample},
    telemetry::metrics::{Given, Looked, Tier},
};
use ::bytes::Bytes;
use http::HeaderValue;
use weft_config::snapshot::CacheRedis;

const MOST: u64 = 1 << 20;

/// Redis may take so long over an answer that a busy machine makes no difference.
fn rules(id: &str, redis: Option<&str>) -> CacheRules {
    let redis = redis.map(|address| CacheRedis {
        address: address.into(),
        prefix: "weft:".into(),
        timeout: Duration::from_secs(5),
        credentials: None,
        tls: None,
    });
    CacheRules {
        id: id.into(),
        tiers: CacheTierRules { redis, ..Default::default() },
        ..CacheRules::default()
    }
}

/// The tiers of one sidecar with one policy.
struct Sidecar {
    tiers: Tiers,
    metrics: Arc<metrics::Tiers>,
    farther: Arc<Farther>,
}

impl Sidecar {
    fn new(rules: &CacheRules, dir: Option<PathBuf>) -> Self {
        let metrics = Arc::<metrics::Tiers>::default();
        let tiers = Tiers::new(metrics.clone(), dir, Secrets::default());
        let farther = tiers.of(rules).expect("has a tier");
        Self { tiers, metrics, farther }
    }

    async fn look_up(&self, key: &str, request: &[(&'static str, &'static str)]) -> Option<Entry> {
        let request = headers(request);
        self.farther.look_up(key.as_bytes(), &request, seconds(), 0, MOST).await
    }

    async fn finds(&self, key: &str) -> bool {
        self.look_up(key, &[]).await.is_some()
    }

    /// What is there. Asked for again if need be: a tier that is not quick enough is not waited for.
    async fn found(&self, key: &str, request: &[(&'static str, &'static str)]) -> Entry {
        for _ in 0..TRIES {
            if let Some(found) = self.look_up(key, request).await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{key} is not there");
    }

    /// Waits until something was given to a tier, however that went.
    async fn given(&self, tier: Tier, came: Given, times: u64) {
        eventually(|| self.metrics.gifts(tier, came) >= times).await;
    }
}

/// How often a test looks, every 10 ms, for what should be there at once.
const TRIES: usize = 3000;

async fn eventually(mut holds: impl FnMut() -> bool) {
    for _ in 0..TRIES {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("it never came to be");
}

fn seconds() -> u32 {
    crate::cache::seconds_now()
}

fn headers(fields: &[(&'static str, &'static str)]) -> HeaderMap {
    let field = |(name, value): &(&'static str, &'static str)| {
        (http::HeaderName::from_static(name), HeaderValue::from_static(value))
    };
    fields.iter().map(field).collect()
}

/// An answer that was asked for at some second and is fresh for a minute.
fn answer(key: &str, selector: &str, body: &str, requested: u32) -> Arc<Entry> {
    let mut sample = Sample::new(key);
    sample.tags = vec!["t"];
    let times = Times {
        requested,
        received: requested,
        lifetime: 60,
        useful_until: seconds() + 600,
        ..Times::default()
    };
    let head = sample.with(|draft| {
        let draft = Draft { key: Key::new(key.as_bytes()), selector: selector.as_bytes(), times, ..*draft };
        Entry::head(&draft, 0).expect("is small")
    });
    let body = Bytes::copy_from_slice(body.as_bytes());
    Arc::new(head.with_body(body.len(), [&body], None).expect("is small"))
}

/// One that is asked for after everything that was learned so far.
fn new_answer(key: &str, selector: &str, body: &str) -> Arc<Entry> {
    answer(key, selector, body, seconds() + 2)
}

/// One that was asked for before anything was learned now.
fn old_answer(key: &str, body: &str) -> Arc<Entry> {
    answer(key, "", body, seconds() - 1)
}

#[test]
fn a_policy_without_tiers_costs_nothing() {
    let tiers = Tiers::default();
    assert!(tiers.of(&rules("shop/a", None)).is_none());
    assert!(tiers.policies().is_empty() && tiers.thread.is_idle());
}

#[test]
fn tiers_stay_where_the_policy_says_the_same() {
    let tiers = Tiers::default();
    let first = tiers.of(&rules("shop/a", Some("127.0.0.1:1"))).expect("has a tier");
    let again = CacheRules { max_bytes: 1, ..rules("shop/a", Some("127.0.0.1:1")) };
    assert!(Arc::ptr_eq(&first, &tiers.of(&again).expect("has a tier")));
    let other = tiers.of(&rules("shop/a", Some("127.0.0.1:2"))).expect("has a tier");
    assert!(!Arc::ptr_eq(&first, &other));
    assert!(tiers.of(&rules("shop/a", None)).is_none());
    tiers.retain(|_| false);
    assert!(tiers.policies().is_empty());
}
