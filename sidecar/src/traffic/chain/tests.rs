//! Rules of the trace join: who belongs to whom, what is bounded, and where time went.

use super::*;
use crate::telemetry::metrics::{Metrics, Shard as Counters};
use proptest::prelude::*;

const TRACE: u128 = 0xfeed;
const MS: fn(u64) -> Duration = Duration::from_millis;

struct Fixture {
    metrics: Arc<Metrics>,
    path: Path,
    chains: Chains,
    start: Instant,
}

impl Fixture {
    fn new() -> Self {
        Self::with_limit(REQUESTS)
    }

    fn with_limit(limit: usize) -> Self {
        let metrics = Metrics::new(1);
        let path = Counters::new(metrics.clone(), 0).path("shop/cart");
        Self { metrics, path, chains: Chains::with_limit(limit), start: Instant::now() }
    }

    fn at(&self, milliseconds: u64) -> Instant {
        self.start + MS(milliseconds)
    }

    /// A request that begins at the start, with a deadline so many milliseconds after.
    fn begin(&self, span: u64, deadline: Option<u64>, is_retry: bool) -> Joined {
        let deadline = Deadline::from(deadline.map(|ms| self.at(ms)));
        self.chains.begin(TRACE, span, deadline, is_retry, &self.path, self.start)
    }

    fn upstream(&self, service: &str) -> Arc<PathUpstream> {
        self.metrics.path_upstream(&service.into(), &"".into())
    }

    /// A call to `service` from and to so many milliseconds after the start.
    fn call(&self, service: &str, from: u64, to: u64) {
        let chain = self.chains.join(TRACE, 0).expect("an open request");
        chain.call(&self.upstream(service), self.at(from)).end(self.at(to));
    }

    /// The seconds that were counted for `upstream`; empty for own work.
    fn seconds(&self, upstream: &str) -> f64 {
        let labels = format!("service=\"shop/cart\",upstream=\"{upstream}\",route=\"\"");
        self.value(&format!("weft_critical_path_seconds_total{{{labels}}}"))
    }

    fn value(&self, name: &str) -> f64 {
        let text = String::from_utf8(self.metrics.render()).expect("UTF-8");
        let found = text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
        found.unwrap_or(0.0)
    }

    fn requests(&self) -> f64 {
        self.value("weft_critical_path_requests_total{service=\"shop/cart\"}")
    }

    fn unjoined(&self) -> f64 {
        self.value("weft_chain_unjoined_total{service=\"shop/cart\"}")
    }
}

#[test]
fn a_call_of_the_same_trace_gets_the_deadline_of_the_request() {
    let f = Fixture::new();
    assert!(f.chains.join(TRACE, 0).is_none(), "nothing is open yet");
    let joined = f.begin(7, Some(300), false);
    let chain = f.chains.join(TRACE, 0).expect("open");
    assert_eq!(chain.deadline.left(f.at(100)), Some(MS(200)));
    assert!(!chain.is_retry);
    assert!(f.chains.join(TRACE + 1, 7).is_none(), "another trace is not joined");
    joined.end(f.at(150), true);
    assert!(f.chains.join(TRACE, 0).is_none(), "nor one that is through");
    assert_eq!(f.chains.shard(TRACE).lock().by_id.len(), 0, "nothing is left of it");
}

#[test]
fn a_call_that_names_the_span_of_one_request_is_joined_to_just_that() {
    let f = Fixture::new();
    let first = f.begin(1, Some(100), true);
    let second = f.begin(2, Some(900), false);
    let to_first = f.chains.join(TRACE, 1).expect("open");
    assert_eq!(to_first.deadline.left(f.start), Some(MS(100)));
    assert!(to_first.is_retry);
    to_first.gave_up();
    assert!(first.gave_up() && !second.gave_up());
    to_first.call(&f.upstream("shop/stock"), f.at(10)).end(f.at(60));
    second.end(f.at(50), true);
    assert_eq!((f.seconds(""), f.seconds("shop/stock")), (0.05, 0.0));
    first.end(f.at(100), true);
    assert_eq!((f.seconds(""), f.seconds("shop/stock")), (0.1, 0.05));
}

#[test]
fn a_call_that_could_belong_to_several_requests_gets_what_is_safe_for_each() {
    let f = Fixture::new();
    let first = f.begin(1, Some(100), true);
    let second = f.begin(2, Some(900), false);
    let chain = f.chains.join(TRACE, 99).expect("open");
    assert_eq!(chain.deadline.left(f.start), Some(MS(900)), "the latest deadline");
    assert!(!chain.is_retry, "one of them was not tried before");
    chain.gave_up();
    assert!(first.gave_up() && second.gave_up());
    let third = f.begin(3, None, true);
    assert_eq!(f.chains.join(TRACE, 99).expect("open").deadline, Deadline::NONE, "as long as it takes");
    drop((second, third));
    let chain = f.chains.join(TRACE, 99).expect("open");
    assert!(chain.is_retry);
    assert_eq!(chain.deadline.left(f.start), Some(MS(100)));
}

#[test]
fn a_request_knows_whether_a_call_of_its_own_gave_up() {
    let f = Fixture::new();
    let joined = f.begin(1, None, false);
    assert!(!joined.gave_up());
    f.chains.join(TRACE, 1).expect("open").gave_up();
    assert!(joined.gave_up());
    let chain = f.chains.join(TRACE, 1).expect("open");
    drop(joined);
    chain.gave_up();
    assert!(!f.begin(1, None, false).gave_up(), "what follows is not blamed");
}

#[test]
fn time_is_split_between_own_work_and_what_was_waited_for() {
    let f = Fixture::new();
    let joined = f.begin(1, None, false);
    f.call("shop/stock", 10, 30);
    f.call("shop/price", 40, 90);
    joined.end(f.at(100), true);
    assert_eq!(f.seconds("shop/stock"), 0.02);
    assert_eq!(f.seconds("shop/price"), 0.05);
    assert_eq!(f.seconds(""), 0.03);
    assert_eq!(f.requests(), 1.0);
}

#[test]
fn a_call_still_under_way_was_waited_for_only_if_no_answer_came() {
    for (answered, waited) in [(true, 0.0), (false, 0.09)] {
        let f = Fixture::new();
        let joined = f.begin(1, None, false);
        let span = f.chains.join(TRACE, 1).expect("open").call(&f.upstream("shop/stock"), f.at(10));
        joined.end(f.at(100), answered);
        span.end(f.at(200));
        assert_eq!(f.seconds("shop/stock"), waited, "{answered}");
        assert!((f.seconds("") - (0.1 - waited)).abs() < 1e-9, "{answered}");
    }
}

#[test]
fn what_is_dropped_ends() {
    let f = Fixture::new();
    let joined = f.begin(1, None, false);
    let chain = f.chains.join(TRACE, 1).expect("open");
    drop(chain.call(&f.upstream("shop/stock"), f.start));
    let ended = |call: &Interval<_>| call.end != UNDER_WAY;
    assert!(f.chains.shard(TRACE).lock().by_id[&TRACE][0].calls.iter().all(ended));
    drop(joined);
    assert!(f.chains.join(TRACE, 1).is_none());
    assert_eq!(f.requests(), 1.0);
    drop(chain.call(&f.upstream("shop/stock"), f.start));
}

#[test]
fn a_trace_with_too_many_open_requests_gets_no_more() {
    let f = Fixture::new();
    let mut open: Vec<_> = (0..PER_TRACE as u64).map(|n| f.begin(n + 1, None, false)).collect();
    let one_more = f.begin(1000, Some(5), false);
    assert_eq!(f.unjoined(), 1.0);
    assert_eq!(f.chains.join(TRACE, 1000).expect("open").deadline, Deadline::NONE, "it is not known");
    assert!(!one_more.gave_up());
    one_more.end(f.at(5), true);
    assert_eq!(f.requests(), 0.0, "nobody knows where its time went");
    open.pop();
    drop(f.begin(1000, None, false));
    assert_eq!((f.requests(), f.unjoined()), (2.0, 1.0));
}

#[test]
fn beyond_the_bound_requests_are_counted_and_not_joined() {
    let f = Fixture::with_limit(SHARDS);
    let begin = |trace| f.chains.begin(trace, 1, Deadline::NONE, false, &f.path, f.start);
    let all: Vec<_> = (1..=1000).map(begin).collect();
    let open: usize = f.chains.shards.iter().map(|shard| shard.lock().open).sum();
    assert!((SHARDS / 2..=SHARDS).contains(&open), "spread over all shards: {open}");
    assert_eq!(f.unjoined(), (1000 - open) as f64);
    drop(all);
    assert!(f.chains.shards.iter().all(|shard| shard.lock().open == 0));
    assert!(f.chains.shards.iter().all(|shard| shard.lock().by_id.is_empty()));
}

#[test]
fn many_calls_in_a_row_are_remembered_as_few() {
    let f = Fixture::new();
    let joined = f.begin(1, None, false);
    // 9 ms each with 1 ms between them, after the first ten 5 ms.
    for n in 0..100 {
        f.call("shop/stock", n * 10, n * 10 + if n < 10 { 5 } else { 9 });
    }
    assert_eq!(f.chains.shard(TRACE).lock().by_id[&TRACE][0].calls.len(), CALLS);
    joined.end(f.at(1000), true);
    // 36 gaps of 1 ms were closed, the smallest there are; the ten of 5 ms stay own work.
    let stock = f.seconds("shop/stock");
    assert!((stock - (0.86 + 0.036)).abs() < 1e-9, "{stock}");
    assert!((f.seconds("") + stock - 1.0).abs() < 1e-9);
}

#[test]
fn calls_that_cannot_be_told_together_are_left_out_beyond_the_bound() {
    let f = Fixture::new();
    let joined = f.begin(1, None, false);
    let chain = f.chains.join(TRACE, 1).expect("open");
    let stock = f.upstream("shop/stock");
    let under_way: Vec<_> = (0..CALLS).map(|_| chain.call(&stock, f.at(10))).collect();
    let one_more = chain.call(&stock, f.at(20));
    one_more.end(f.at(90));
    under_way.into_iter().for_each(|span| span.end(f.at(50)));
    joined.end(f.at(100), true);
    assert!((f.seconds("shop/stock") - 0.04).abs() < 1e-9);
}

#[test]
fn workers_meet_without_losing_anything() {
    let metrics = Metrics::new(4);
    let chains = Chains::default();
    std::thread::scope(|scope| {
        for worker in 0..4 {
            let (metrics, chains) = (&metrics, &chains);
            scope.spawn(move || {
                let path = Counters::new(metrics.clone(), worker).path("shop/cart");
                let stock = metrics.path_upstream(&"shop/stock".into(), &"".into());
                let now = Instant::now();
                for n in 0..2_000_u128 {
                    let joined = chains.begin(n % 50, worker as u64 + 1, Deadline::NONE, false, &path, now);
                    let chain = chains.join(n % 50, worker as u64 + 1).expect("its own is open");
                    chain.call(&stock, now).end(now + MS(1));
                    joined.end(now + MS(2), true);
                }
            });
        }
    });
    let text = String::from_utf8(metrics.render()).expect("UTF-8");
    assert!(text.contains("weft_critical_path_requests_total{service=\"shop/cart\"} 8000"), "{text}");
    assert!(chains.shards.iter().all(|shard| shard.lock().open == 0));
}

fn intervals(calls: &[(u64, u64)]) -> Vec<Interval<usize>> {
    let interval =
        |(at, (begin, end)): (usize, &(u64, u64))| Interval { id: 0, upstream: at, begin: *begin, end: *end };
    calls.iter().enumerate().map(interval).collect()
}

/// Own time, and what was waited for by the call's place in the list.
fn split(end: u64, calls: &[(u64, u64)]) -> (u64, Vec<(usize, u64)>) {
    let mut waits = Vec::new();
    let own = critical_path(end, &mut intervals(calls), |call, time| waits.push((*call, time)));
    waits.sort_unstable();
    (own, waits)
}

#[test]
fn the_call_that_ended_last_is_the_one_that_was_waited_for() {
    assert_eq!(split(10, &[]), (10, vec![]));
    assert_eq!(split(10, &[(2, 5)]), (7, vec![(0, 3)]));
    assert_eq!(split(10, &[(1, 9), (2, 5)]), (2, vec![(0, 8)]), "beside a longer one");
    assert_eq!(split(10, &[(2, 5), (1, 9)]), (2, vec![(1, 8)]), "in whatever order they are told");
    assert_eq!(split(10, &[(0, 6), (5, 10)]), (5, vec![(1, 5)]), "the second did not wait for the first");
    assert_eq!(split(10, &[(0, 4), (0, 6), (6, 10)]), (0, vec![(1, 6), (2, 4)]));
    assert_eq!(split(10, &[(3, 3), (10, 10)]), (10, vec![]), "calls that took no time");
    assert_eq!(split(10, &[(2, UNDER_WAY), (12, 15), (4, 12)]), (10, vec![]), "not ended by then");
    assert_eq!(split(0, &[(0, 0)]), (0, vec![]));
}

proptest! {
    #[test]
    fn every_moment_is_counted_once(
        end in 0..1_000_u64,
        calls in proptest::collection::vec((0..1_200_u64, 0..300_u64), 0..40),
    ) {
        let calls: Vec<_> = calls.into_iter().map(|(begin, length)| (begin, begin + length)).collect();
        let (own, waits) = split(end, &calls);
        let waited: u64 = waits.iter().map(|(_, time)| time).sum();
        prop_assert_eq!(own + waited, end);
        // Whole calls, and no two of them at once.
        let mut path: Vec<_> = waits.iter().map(|(call, _)| calls[*call]).collect();
        path.sort_unstable();
        prop_assert!(path.windows(2).all(|pair| pair[0].1 <= pair[1].0));
        prop_assert!(waits.iter().all(|(call, time)| calls[*call].1 - calls[*call].0 == *time));
        // Own work only where no call that had ended was under way: after the last of them that is on the path.
        let last = calls.iter().filter(|call| call.1 <= end && call.0 < call.1).map(|call| call.1).max();
        prop_assert_eq!(path.last().map(|call| call.1), last);
    }

    #[test]
    fn remembering_calls_together_never_makes_own_work_longer(
        lengths in proptest::collection::vec((0..20_u64, 1..20_u64, 0..3_usize), 2..30),
    ) {
        let (mut calls, mut now) = (Vec::new(), 0);
        for (pause, length, upstream) in lengths {
            calls.push(Interval { id: 0, upstream, begin: now + pause, end: now + pause + length });
            now += pause + length;
        }
        let own = critical_path(now, &mut calls.clone(), |_, _| {});
        let mut fewer = calls.clone();
        if merge_closest(&mut fewer, |a, b| a == b) {
            prop_assert_eq!(fewer.len() + 1, calls.len());
            let own_of_fewer = critical_path(now, &mut fewer, |_, _| {});
            prop_assert!(own_of_fewer <= own);
        } else {
            prop_assert!(calls.windows(2).all(|pair| pair[0].upstream != pair[1].upstream));
        }
    }
}
