//! Which endpoint takes a request: pure choices over what each endpoint has shown so far.

use std::{
    cell::Cell,
    time::{Duration, Instant},
};
use weft_config::snapshot::Balancer;

/// Time constant of the latency average: after this long, two thirds of an old peak are forgotten.
const DECAY: Duration = Duration::from_secs(10);
/// Differences below this many seconds are noise between healthy endpoints, not a reason to prefer one.
const NOISE: f64 = 0.002;
/// What an endpoint that never answered is taken to cost, so that new ones get tried without a stampede.
const UNKNOWN: f64 = 0.001;

/// What one endpoint has shown: requests in flight and peak-sensitive latency. Worker-local.
#[derive(Debug)]
pub(crate) struct Load {
    in_flight: Cell<u32>,
    /// Seconds; peaks are taken at once and decay slowly.
    ewma: Cell<f64>,
    updated: Cell<Instant>,
}

impl Load {
    pub(crate) fn new(now: Instant) -> Self {
        Self { in_flight: Cell::new(0), ewma: Cell::new(UNKNOWN), updated: Cell::new(now) }
    }

    pub(crate) fn in_flight(&self) -> u32 {
        self.in_flight.get()
    }

    pub(crate) fn begin(&self) {
        self.in_flight.set(self.in_flight.get() + 1);
    }

    pub(crate) fn end(&self) {
        self.in_flight.set(self.in_flight.get().saturating_sub(1));
    }

    /// Seconds that a request is expected to take, as seen at `now`.
    pub(crate) fn latency(&self, now: Instant) -> f64 {
        let age = now.saturating_duration_since(self.updated.get()).as_secs_f64();
        self.ewma.get() * (-age / DECAY.as_secs_f64()).exp()
    }

    /// Takes in one observed latency (time to the response head, or to the failure).
    pub(crate) fn observe(&self, took: Duration, now: Instant) {
        let seen = took.as_secs_f64();
        let age = now.saturating_duration_since(self.updated.get()).as_secs_f64();
        let keep = (-age / DECAY.as_secs_f64()).exp();
        let old = self.ewma.get();
        self.ewma.set(if seen > old { seen } else { old * keep + seen * (1.0 - keep) });
        self.updated.set(now);
    }

    /// What one more request here would cost.
    fn cost(&self, balancer: &Balancer, weight: u32, now: Instant) -> f64 {
        let queue = f64::from(self.in_flight.get() + 1);
        let cost = match balancer {
            Balancer::PeakEwma => self.latency(now).max(NOISE) * queue,
            _ => queue,
        };
        cost / f64::from(weight.max(1))
    }
}

/// A candidate of one choice.
pub(crate) struct Candidate<'a> {
    pub(crate) load: &'a Load,
    pub(crate) weight: u32,
}

/// Picks one of `count` endpoints, never one of `avoid` while there is another. `turn` is the cluster's counter for
/// round robin, `random` gives a number below its argument.
pub(crate) fn pick<'a>(
    balancer: &Balancer,
    count: usize,
    candidate: impl Fn(usize) -> Candidate<'a>,
    avoid: &[usize],
    turn: &Cell<usize>,
    now: Instant,
    mut random: impl FnMut(usize) -> usize,
) -> Option<usize> {
    let allowed = |index: &usize| avoid.len() >= count || !avoid.contains(index);
    match count {
        0 => None,
        1 => Some(0),
        _ if *balancer == Balancer::RoundRobin => {
            let total: usize = (0..count).map(|i| candidate(i).weight.max(1) as usize).sum();
            for _ in 0..total {
                let mut ticket = turn.get() % total;
                turn.set(turn.get().wrapping_add(1));
                let chosen = (0..count).find(|&i| {
                    let weight = candidate(i).weight.max(1) as usize;
                    let mine = ticket < weight;
                    ticket = ticket.saturating_sub(weight);
                    mine
                });
                if let Some(index) = chosen.filter(allowed) {
                    return Some(index);
                }
            }
            (0..count).find(allowed)
        }
        _ => {
            let first = random(count);
            let mut second = random(count - 1);
            if second >= first {
                second += 1;
            }
            let cost = |i: usize| {
                let c = candidate(i);
                c.load.cost(balancer, c.weight, now)
            };
            let (first_cost, second_cost) = (cost(first), cost(second));
            let chance = random(1 << 16) as f64 / f64::from(1 << 16);
            let second_first = match balancer {
                Balancer::PeakEwma => prefers_second(first_cost, second_cost, chance),
                // What is in flight is exact, and known at once when it changes.
                _ => second_cost < first_cost,
            };
            let (better, worse) = if second_first { (second, first) } else { (first, second) };
            [better, worse].into_iter().find(allowed).or_else(|| {
                let start = random(count);
                (0..count).map(|i| (start + i) % count).find(allowed)
            })
        }
    }
}

/// Whether the second of two candidates is taken, for `chance` in `[0, 1)`. One that costs more than twice as much as
/// the other is not; otherwise they share in inverse proportion to what they cost. Always taking the cheaper would send
/// everything to one of two equal endpoints while calls come one after the other, and the other would never be learnt
/// of again.
fn prefers_second(first: f64, second: f64, chance: f64) -> bool {
    if first > second * 2.0 {
        true
    } else if second > first * 2.0 {
        false
    } else {
        chance < first / (first + second)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn choose(
        balancer: &Balancer,
        loads: &[Load],
        weights: &[u32],
        avoid: &[usize],
        turn: &Cell<usize>,
        seed: u64,
    ) -> Option<usize> {
        let mut rng = fastrand::Rng::with_seed(seed);
        let now = Instant::now();
        pick(
            balancer,
            loads.len(),
            |i| Candidate { load: &loads[i], weight: weights[i] },
            avoid,
            turn,
            now,
            |n| rng.usize(..n),
        )
    }

    fn loads(n: usize) -> Vec<Load> {
        let now = Instant::now();
        (0..n).map(|_| Load::new(now)).collect()
    }

    #[test]
    fn a_slow_endpoint_is_avoided_by_peak_ewma() {
        let l = loads(2);
        let now = Instant::now();
        l[0].observe(Duration::from_millis(500), now);
        l[1].observe(Duration::from_millis(1), now);
        let turn = Cell::new(0);
        assert!((0..100).all(|s| choose(&Balancer::PeakEwma, &l, &[1, 1], &[], &turn, s) == Some(1)));
    }

    #[test]
    fn equal_endpoints_share_calls_that_come_one_after_the_other() {
        let l = loads(2);
        let now = Instant::now();
        l[0].observe(Duration::from_micros(900), now);
        l[1].observe(Duration::from_micros(1100), now);
        let turn = Cell::new(0);
        let first =
            (0..1000).filter(|s| choose(&Balancer::PeakEwma, &l, &[1, 1], &[], &turn, *s) == Some(0)).count();
        assert!((450..650).contains(&first), "{first}");
    }

    #[test]
    fn a_busy_endpoint_is_avoided_by_least_requests() {
        let l = loads(2);
        l[0].begin();
        let turn = Cell::new(0);
        assert!((0..100).all(|s| choose(&Balancer::LeastRequests, &l, &[1, 1], &[], &turn, s) == Some(1)));
    }

    #[test]
    fn round_robin_follows_weights() {
        let l = loads(3);
        let turn = Cell::new(0);
        let mut seen = [0; 3];
        for s in 0..60 {
            seen[choose(&Balancer::RoundRobin, &l, &[1, 2, 3], &[], &turn, s).expect("some")] += 1;
        }
        assert_eq!(seen, [10, 20, 30]);
    }

    #[test]
    fn peaks_count_at_once_and_fade() {
        let start = Instant::now();
        let load = Load::new(start);
        load.observe(Duration::from_secs(1), start);
        assert!(load.latency(start) >= 1.0);
        assert!(load.latency(start + DECAY * 5) < 0.01);
    }

    proptest! {
        #[test]
        fn a_choice_is_in_range_and_not_avoided_while_others_are_left(
            n in 0usize..8, avoid in proptest::collection::vec(0usize..8, 0..8), seed: u64,
            which in 0usize..3, weights in proptest::collection::vec(0u32..5, 8),
        ) {
            let balancer = &[Balancer::PeakEwma, Balancer::LeastRequests, Balancer::RoundRobin][which];
            let mut avoid: Vec<usize> = avoid.into_iter().filter(|i| *i < n).collect();
            avoid.sort_unstable();
            avoid.dedup();
            let chosen = choose(balancer, &loads(n), &weights, &avoid, &Cell::new(seed as usize), seed);
            prop_assert_eq!(chosen.is_some(), n > 0);
            if let Some(i) = chosen {
                prop_assert!(i < n);
                prop_assert!(avoid.len() >= n || n == 1 || !avoid.contains(&i));
            }
        }
    }
}
