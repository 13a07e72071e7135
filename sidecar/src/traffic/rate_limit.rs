//! Rate limits: a token bucket per limit and key value, shared by the workers of one sidecar.
//!
//! A bucket remembers how much was taken and when; what has come back since follows from the time that passed. Numbers
//! (how many, how fast) are not in the bucket but with the policy that asks, so that a changed policy finds the buckets
//! as they are. A call that several limits are about passes all of them or takes from none: their locks are taken
//! together, always in the same order, for a few look-ups.

use crate::{
    error::{Error, Kind},
    telemetry::metrics::{Metrics, RateLimitSeries},
    traffic::buckets::{Buckets, Rate},
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, header::RETRY_AFTER};
use smallvec::SmallVec;
use std::{
    collections::HashMap,
    hash::{BuildHasher, Hash, Hasher, RandomState},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};
use weft_config::snapshot::{KeySource, RateLimit};

/// State that no policy names is kept this long: a policy that comes back soon finds it.
const KEEP_UNUSED: Duration = Duration::from_secs(60);

const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

/// All rate limits of one sidecar, by [`RateLimit::id`].
pub(crate) struct RateLimiters {
    metrics: Arc<Metrics>,
    epoch: Instant,
    secret: RandomState,
    serial: AtomicU64,
    known: Mutex<HashMap<Arc<str>, Known, foldhash::fast::RandomState>>,
}

struct Known {
    limiter: Arc<Limiter>,
    unused_since: Option<Instant>,
}

/// The state of one limit.
struct Limiter {
    /// The order in which locks are taken.
    serial: u64,
    /// Times are counted from here.
    epoch: Instant,
    /// Keyed hashing: whoever chooses the text of a key must not be able to meet somebody else's bucket.
    secret: RandomState,
    buckets: Mutex<Buckets>,
    series: Arc<RateLimitSeries>,
}

/// The limits of one rule or one served port, ready for calls. Made when a snapshot comes.
#[derive(Clone, Default)]
pub(crate) struct Limits(Arc<[Arc<Ready>]>);

struct Ready {
    limit: RateLimit,
    rate: Rate,
    limiter: Arc<Limiter>,
    /// The `RateLimit-Policy` field.
    policy: Option<HeaderValue>,
}

/// A call that passed, and the limit that will stop the next ones first.
#[derive(Default)]
pub(crate) struct Passed(Option<Tightest>);

struct Tightest {
    ready: Arc<Ready>,
    /// What is taken of it, this call included.
    taken: u64,
}

impl RateLimiters {
    /// None yet.
    pub(crate) fn new(metrics: Arc<Metrics>, now: Instant) -> Self {
        Self {
            metrics,
            epoch: now,
            secret: RandomState::new(),
            serial: AtomicU64::new(0),
            known: Mutex::default(),
        }
    }

    /// The limits of a policy with the state they have. For the compiling of snapshots, not for calls.
    pub(crate) fn resolve(&self, limits: &[RateLimit]) -> Limits {
        let mut ready: Vec<_> = limits.iter().map(|limit| Arc::new(self.ready(limit))).collect();
        ready.sort_by_key(|ready| ready.limiter.serial);
        // The same limit twice would wait for itself.
        ready.dedup_by_key(|ready| ready.limiter.serial);
        Limits(ready.into())
    }

    fn ready(&self, limit: &RateLimit) -> Ready {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = known.entry(limit.id.clone()).or_insert_with(|| Known {
            limiter: Arc::new(Limiter {
                serial: self.serial.fetch_add(1, Relaxed),
                epoch: self.epoch,
                secret: self.secret.clone(),
                buckets: Mutex::default(),
                series: self.metrics.rate_limit(&limit.id),
            }),
            unused_since: None,
        });
        entry.unused_since = None;
        Ready {
            rate: Rate::new(limit.requests, limit.per, limit.burst),
            limiter: entry.limiter.clone(),
            policy: policy_field(limit),
            limit: limit.clone(),
        }
    }

    /// Forgets what no policy has named for a while. Called about once a second.
    pub(crate) fn sweep(&self, now: Instant) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|_, entry| {
            if Arc::strong_count(&entry.limiter) > 1 {
                entry.unused_since = None;
                return true;
            }
            now.saturating_duration_since(*entry.unused_since.get_or_insert(now)) < KEEP_UNUSED
        });
    }
}

impl Limits {
    /// Whether there is none, so that nothing need be found out about a call.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Lets a call pass if every limit that is about it has room. A call that is refused takes nothing from any.
    pub(crate) fn admit(
        &self,
        method: &Method,
        path: &str,
        headers: &HeaderMap,
        from: &KeySource<'_>,
        now: Instant,
    ) -> Result<Passed, Error> {
        let Some(epoch) = self.0.first().map(|ready| ready.limiter.epoch) else {
            return Ok(Passed::default());
        };
        let now = u64::try_from(now.saturating_duration_since(epoch).as_nanos()).unwrap_or(u64::MAX);
        let mut held: SmallVec<[Held<'_>; 4]> = SmallVec::new();
        for ready in self.0.iter().filter(|ready| ready.limit.only.matches(method, path, headers)) {
            let key = ready.key(from);
            let buckets = ready.limiter.buckets.lock().unwrap_or_else(PoisonError::into_inner);
            let taken = buckets.taken(key, &ready.rate, now);
            held.push(Held { ready, key, buckets, taken });
        }
        let longest = held
            .iter()
            .filter_map(|held| Some((held.ready, held.ready.rate.wait(held.taken)?)))
            .max_by_key(|(_, wait)| *wait);
        if let Some((ready, wait)) = longest {
            drop(held);
            ready.limiter.series.refused();
            return Err(refused(ready, wait));
        }
        let mut tightest: Option<(u64, Tightest)> = None;
        for mut held in held {
            let taken = held.buckets.take(held.key, &held.ready.rate, held.ready.limit.max_keys, now);
            held.ready.limiter.series.remembers(held.buckets.len());
            let left = held.ready.rate.left(taken);
            if tightest.as_ref().is_none_or(|(least, _)| left < *least) {
                tightest = Some((left, Tightest { ready: held.ready.clone(), taken }));
            }
        }
        Ok(Passed(tightest.map(|(_, tightest)| tightest)))
    }
}

/// A limit that is about a call, locked.
struct Held<'a> {
    ready: &'a Arc<Ready>,
    key: u64,
    buckets: MutexGuard<'a, Buckets>,
    taken: u64,
}

impl Ready {
    fn key(&self, from: &KeySource<'_>) -> u64 {
        let Some(key) = &self.limit.key else { return 0 };
        let mut hasher = self.limiter.secret.build_hasher();
        for part in key.0.iter() {
            match part.read(from) {
                Some(text) => (1_u8, text).hash(&mut hasher),
                None => hasher.write_u8(0),
            }
        }
        hasher.finish()
    }
}

impl Passed {
    /// Adds what the caller may know to an answer's fields: how much is left, and when all of it will be back. Fields
    /// of others (the application, the other sidecar) stay: they are lists.
    pub(crate) fn write(&self, headers: &mut HeaderMap) {
        let Some(Tightest { ready, taken }) = &self.0 else { return };
        let left = ready.rate.left(*taken);
        if let Some(policy) = &ready.policy {
            headers.append(RATE_LIMIT_POLICY, policy.clone());
        }
        if let Some(value) = state_field(&ready.limit.name, left, seconds(ready.rate.refill(*taken))) {
            headers.append(RATE_LIMIT, value);
        }
    }
}

fn refused(ready: &Ready, wait: Duration) -> Error {
    let RateLimit { name, requests, per, .. } = &ready.limit;
    let seconds = seconds(wait).max(1);
    let mut error = Error::new(
        Kind::RateLimited,
        format!("the rate limit `{name}` lets {requests} pass in {per:?}; try again in {seconds} s"),
    )
    .with_header(RETRY_AFTER, HeaderValue::from(seconds));
    if let Some(policy) = &ready.policy {
        error = error.with_header(RATE_LIMIT_POLICY, policy.clone());
    }
    if let Some(state) = state_field(name, 0, seconds) {
        error = error.with_header(RATE_LIMIT, state);
    }
    error
}

/// `"name";r=<calls left>;t=<seconds>`, see draft-ietf-httpapi-ratelimit-headers.
fn state_field(name: &str, left: u64, seconds: u64) -> Option<HeaderValue> {
    HeaderValue::try_from(format!("\"{name}\";r={left};t={seconds}")).ok()
}

/// `"name";q=<calls>;w=<seconds>`. Windows are whole seconds there: a shorter one is told as the rate that it makes.
fn policy_field(limit: &RateLimit) -> Option<HeaderValue> {
    let window = seconds(limit.per).max(1);
    let per = limit.per.as_nanos().max(1);
    let quota = u128::from(limit.requests) * Duration::from_secs(window).as_nanos() / per;
    HeaderValue::try_from(format!("\"{}\";q={quota};w={window}", limit.name)).ok()
}

/// Whole seconds, rounded up.
fn seconds(time: Duration) -> u64 {
    time.as_secs().saturating_add(u64::from(time.subsec_nanos() > 0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_config::snapshot::{Key, KeyPart, Only};

    fn limit(id: &str, requests: u32, per: Duration, burst: u32) -> RateLimit {
        RateLimit {
            id: id.into(),
            name: id.into(),
            requests,
            per,
            burst,
            key: None,
            max_keys: 100,
            only: Only::default(),
        }
    }

    fn per_user(id: &str, requests: u32) -> RateLimit {
        RateLimit {
            key: Some(Key([KeyPart::Header(HeaderName::from_static("x-user"))].into())),
            ..limit(id, requests, Duration::from_secs(1), requests)
        }
    }

    /// A registry, and a call made at it by somebody.
    struct World {
        limiters: RateLimiters,
        start: Instant,
    }

    impl World {
        fn new() -> Self {
            let start = Instant::now();
            Self { limiters: RateLimiters::new(Metrics::new(1), start), start }
        }

        fn call(&self, limits: &Limits, user: &str, at: Duration) -> Result<Passed, Error> {
            let mut headers = HeaderMap::new();
            headers.insert("x-user", HeaderValue::from_str(user).unwrap());
            let from = KeySource { headers: &headers, query: None, source: "", identity: None };
            limits.admit(&Method::GET, "/a", &headers, &from, self.start + at)
        }

        /// How many calls of `user` pass at once.
        fn passes(&self, limits: &Limits, user: &str, at: Duration) -> usize {
            (0..1000).take_while(|_| self.call(limits, user, at).is_ok()).count()
        }
    }

    fn after(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    fn fields(passed: &Passed) -> HeaderMap {
        let mut headers = HeaderMap::new();
        passed.write(&mut headers);
        headers
    }

    #[test]
    fn a_burst_passes_at_once_and_then_the_rate() {
        let world = World::new();
        let limits = world.limiters.resolve(&[limit("a", 10, after(1.0), 25)]);
        assert_eq!(world.passes(&limits, "", after(0.0)), 25);
        assert_eq!(world.passes(&limits, "", after(0.5)), 5);
        assert_eq!(world.passes(&limits, "", after(0.55)), 0);
        assert_eq!(world.passes(&limits, "", after(60.0)), 25);
    }

    #[test]
    fn every_key_value_has_a_bucket_of_its_own() {
        let world = World::new();
        let limits = world.limiters.resolve(&[per_user("a", 2)]);
        assert_eq!(world.passes(&limits, "ann", after(0.0)), 2);
        assert_eq!(world.passes(&limits, "bob", after(0.0)), 2);
        assert_eq!(world.passes(&limits, "ann", after(0.0)), 0);
    }

    #[test]
    fn a_call_that_one_limit_refuses_takes_nothing_from_the_others() {
        let world = World::new();
        let limits = world.limiters.resolve(&[limit("all", 100, after(1.0), 100), per_user("user", 1)]);
        assert_eq!(world.passes(&limits, "ann", after(0.0)), 1);
        for _ in 0..50 {
            assert!(world.call(&limits, "ann", after(0.0)).is_err());
        }
        let all = world.limiters.resolve(&[limit("all", 100, after(1.0), 100)]);
        assert_eq!(world.passes(&all, "", after(0.0)), 99);
    }

    #[test]
    fn a_limit_about_other_calls_takes_no_notice() {
        let world = World::new();
        let only = Only { methods: [Method::POST].into(), ..Only::default() };
        let limits = world.limiters.resolve(&[RateLimit { only, ..limit("a", 1, after(1.0), 1) }]);
        assert_eq!(world.passes(&limits, "", after(0.0)), 1000);
        assert!(fields(&world.call(&limits, "", after(0.0)).unwrap()).is_empty());
    }

    #[test]
    fn changed_numbers_find_what_was_taken_before() {
        let world = World::new();
        let old = world.limiters.resolve(&[limit("a", 10, after(1.0), 10)]);
        assert_eq!(world.passes(&old, "", after(0.0)), 10);
        let more = world.limiters.resolve(&[limit("a", 100, after(1.0), 30)]);
        assert_eq!(world.passes(&more, "", after(0.0)), 20, "ten of thirty are taken");
        assert_eq!(world.passes(&more, "", after(0.1)), 10);
        let less = world.limiters.resolve(&[limit("a", 1, after(1.0), 5)]);
        assert_eq!(world.passes(&less, "", after(0.1)), 0);
        assert_eq!(world.passes(&less, "", after(5.1)), 5, "nobody waits longer than a whole bucket");
    }

    #[test]
    fn state_outlives_its_policy_for_a_while() {
        let world = World::new();
        let limits = || world.limiters.resolve(&[limit("a", 1, after(3600.0), 1)]);
        assert_eq!(world.passes(&limits(), "", after(0.0)), 1);
        world.limiters.sweep(world.start);
        world.limiters.sweep(world.start + after(59.0));
        assert_eq!(world.passes(&limits(), "", after(59.0)), 0);
        world.limiters.sweep(world.start + after(60.0));
        world.limiters.sweep(world.start + after(121.0));
        assert_eq!(world.passes(&limits(), "", after(121.0)), 1);
    }

    #[test]
    fn a_refusal_says_which_limit_and_how_long() {
        let world = World::new();
        let limits =
            world.limiters.resolve(&[limit("slow", 1, after(10.0), 1), limit("quick", 1, after(2.5), 1)]);
        assert!(world.call(&limits, "", after(0.0)).is_ok());
        let error = world.call(&limits, "", after(0.2)).err().expect("refused");
        assert_eq!((error.kind, error.status().as_u16(), error.grpc_status()), (Kind::RateLimited, 429, 8));
        assert!(error.detail.contains("`slow` lets 1 pass in 10s"), "{error}");
        let headers = error.headers.expect("fields");
        assert_eq!(headers["retry-after"], "10");
        assert_eq!(headers["ratelimit"], "\"slow\";r=0;t=10");
        assert_eq!(headers["ratelimit-policy"], "\"slow\";q=1;w=10");
        assert_eq!(headers.len(), 3);
    }

    #[test]
    fn an_answer_tells_of_the_tightest_limit() {
        let world = World::new();
        let limits = world
            .limiters
            .resolve(&[limit("wide", 1000, after(0.25), 1000), limit("tight", 30, after(60.0), 10)]);
        let headers = fields(&world.call(&limits, "", after(0.0)).unwrap());
        assert_eq!(headers["ratelimit"], "\"tight\";r=9;t=2");
        assert_eq!(headers["ratelimit-policy"], "\"tight\";q=30;w=60");
        let wide = world.limiters.resolve(&[limit("wide", 1000, after(0.25), 1000)]);
        let mut headers = fields(&world.call(&wide, "", after(0.0)).unwrap());
        assert_eq!(headers["ratelimit-policy"], "\"wide\";q=4000;w=1", "windows are whole seconds");
        world.call(&limits, "", after(0.0)).unwrap().write(&mut headers);
        assert_eq!(headers.get_all("ratelimit").iter().count(), 2, "others' fields stay");
    }

    #[test]
    fn the_same_limit_named_twice_counts_once() {
        let world = World::new();
        let limits = world.limiters.resolve(&[limit("a", 4, after(1.0), 4), limit("a", 4, after(1.0), 4)]);
        assert_eq!(world.passes(&limits, "", after(0.0)), 4);
    }

    #[test]
    fn workers_share_a_limit_and_never_wait_for_each_other_in_a_circle() {
        let world = World::new();
        let (a, b) = (limit("a", 500, after(3600.0), 500), limit("b", 700, after(3600.0), 700));
        let passed: usize = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..4)
                .map(|n| {
                    let order = if n % 2 == 0 { [a.clone(), b.clone()] } else { [b.clone(), a.clone()] };
                    let limits = world.limiters.resolve(&order);
                    let world = &world;
                    scope.spawn(move || {
                        (0..1000).filter(|_| world.call(&limits, "", after(0.0)).is_ok()).count()
                    })
                })
                .collect();
            workers.into_iter().map(|worker| worker.join().expect("no panic")).sum()
        });
        assert_eq!(passed, 500);
    }

    #[test]
    fn refusals_and_keys_are_counted() {
        let metrics = Metrics::new(1);
        let start = Instant::now();
        let world = World { limiters: RateLimiters::new(metrics.clone(), start), start };
        let limits = world.limiters.resolve(&[per_user("shop/p/user", 1)]);
        for user in ["ann", "bob", "ann", "ann"] {
            let _ = world.call(&limits, user, after(0.0));
        }
        let text = String::from_utf8(metrics.render()).expect("UTF-8");
        assert!(text.contains("weft_rate_limited_total{limit=\"shop/p/user\"} 2\n"), "{text}");
        assert!(text.contains("weft_rate_limit_keys{limit=\"shop/p/user\"} 2\n"), "{text}");
    }
}
