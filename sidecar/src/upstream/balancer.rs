//! Which endpoint takes a request: pure choices over what each endpoint has shown so far.

use super::hashing::divisor;
use smallvec::SmallVec;
use std::{
    cell::Cell,
    ops::Range,
    time::{Duration, Instant},
};
use weft_config::snapshot::Balancer;

/// Time constant of the latency average: after this long, two thirds of an old peak are forgotten.
const DECAY: Duration = Duration::from_secs(10);
/// Differences below this many seconds are noise between healthy endpoints, not a reason to prefer one.
const NOISE: f64 = 0.002;
/// What an endpoint that never answered is taken to cost, so that new ones get tried without a stampede.
const UNKNOWN: f64 = 0.001;
/// Draws at random before all endpoints are looked at. Nearly always the first one will do.
const DRAWS: usize = 8;

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

    /// What one more request here would cost, for an endpoint with this part of the heaviest one's weight. Half the
    /// weight makes the queue twice as long, not an idle endpoint twice as slow.
    fn cost(&self, part: f64, now: Instant) -> f64 {
        self.latency(now).max(NOISE) * (1.0 + f64::from(self.in_flight.get()) / part)
    }
}

/// What a choice has to know of the endpoints, which it names by index.
pub(crate) trait Candidates {
    /// What the endpoint has shown.
    fn load(&self, index: usize) -> &Load;

    /// How much of its share it takes now: all (1), none (0), or a part while it starts slowly.
    fn share(&self, index: usize) -> f64;
}

/// The weights of endpoints, made for drawing by them. Computed when endpoints change.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Weights {
    /// Running sums in the smallest whole numbers; empty if all weights are the same.
    sums: Box<[u64]>,
    heaviest: u64,
}

impl Weights {
    pub(crate) fn new(weights: impl Iterator<Item = u32> + Clone) -> Self {
        let weights = weights.map(|weight| weight.max(1));
        let unit = weights.clone().fold(0, divisor).max(1);
        let heaviest = u64::from(weights.clone().max().unwrap_or(1) / unit);
        if heaviest == 1 {
            return Self { sums: Box::default(), heaviest };
        }
        let mut sum = 0;
        let sums = weights.map(|weight| {
            sum += u64::from(weight / unit);
            sum
        });
        Self { sums: sums.collect(), heaviest }
    }

    /// The sum of all weights before `index`.
    fn before(&self, index: usize) -> u64 {
        if self.sums.is_empty() {
            index as u64
        } else {
            index.checked_sub(1).and_then(|last| self.sums.get(last)).copied().unwrap_or(0)
        }
    }

    fn total(&self, range: &Range<usize>) -> u64 {
        self.before(range.end) - self.before(range.start)
    }

    /// Who owns `ticket`, a number below the range's total.
    fn owner(&self, range: &Range<usize>, ticket: u64) -> usize {
        if self.sums.is_empty() {
            range.start + ticket as usize
        } else {
            let ticket = self.before(range.start) + ticket;
            self.sums.partition_point(|sum| *sum <= ticket)
        }
    }

    /// A weight as part of the heaviest, in `(0, 1]`.
    fn part(&self, index: usize) -> f64 {
        if self.sums.is_empty() {
            1.0
        } else {
            (self.before(index + 1) - self.before(index)) as f64 / self.heaviest as f64
        }
    }
}

/// Picks an endpoint out of `range`; `None` if all have a share of 0. `turn` is the cluster's counter for round robin,
/// `random` gives a number below its argument. The balancers that go by a key are a [`Table`](super::hashing::Table);
/// requests without their key are placed as by the default one.
pub(crate) fn pick(
    balancer: &Balancer,
    range: Range<usize>,
    weights: &Weights,
    candidates: &impl Candidates,
    turn: &Cell<usize>,
    now: Instant,
    random: &mut impl FnMut(usize) -> usize,
) -> Option<usize> {
    match balancer {
        _ if range.is_empty() => None,
        _ if range.len() == 1 => Some(range.start).filter(|index| candidates.share(*index) > 0.0),
        Balancer::RoundRobin => in_turn(range, weights, candidates, turn, random),
        Balancer::Random => draw(&range, weights, candidates, random).map(|drawn| drawn.index),
        Balancer::LeastRequests => {
            let (first, second) = match two(&range, weights, candidates, random)? {
                (first, Some(second)) => (first, second),
                (only, None) => return Some(only.index),
            };
            // What is in flight is exact, and known at once when it changes: no reason to ever take the busier one.
            let busy = |drawn: &Drawn| f64::from(candidates.load(drawn.index).in_flight()) / drawn.part;
            let (first_busy, second_busy) = (busy(&first), busy(&second));
            let second_first = second_busy < first_busy
                || (second_busy == first_busy && chance(random) * (first.part + second.part) < second.part);
            Some(if second_first { second.index } else { first.index })
        }
        Balancer::PeakEwma | Balancer::RingHash { .. } | Balancer::Maglev { .. } => {
            let (first, second) = match two(&range, weights, candidates, random)? {
                (first, Some(second)) => (first, second),
                (only, None) => return Some(only.index),
            };
            let cost = |drawn: &Drawn| candidates.load(drawn.index).cost(drawn.part, now);
            let second_first =
                prefers_second((cost(&first), first.part), (cost(&second), second.part), chance(random));
            Some(if second_first { second.index } else { first.index })
        }
    }
}

/// One that was drawn, and what counts of it: its weight as part of the heaviest, less while it starts slowly.
#[derive(Clone, Copy)]
struct Drawn {
    index: usize,
    part: f64,
}

/// Two different endpoints that take calls, or the only one. The first is drawn by weight and the second is any other:
/// a pair comes up as often as the sum of its weights says, so whoever then decides between the two in proportion to
/// weight gives each endpoint its exact share of all.
fn two(
    range: &Range<usize>,
    weights: &Weights,
    candidates: &impl Candidates,
    random: &mut impl FnMut(usize) -> usize,
) -> Option<(Drawn, Option<Drawn>)> {
    let first = draw(range, weights, candidates, random)?;
    let others = range.len() - 1;
    let other = |nth: usize| range.start + nth + usize::from(range.start + nth >= first.index);
    let drawn = |index: usize| {
        let share = candidates.share(index);
        (share > 0.0).then(|| Drawn { index, part: weights.part(index) * share })
    };
    let second = (0..DRAWS).find_map(|_| drawn(other(random(others)))).or_else(|| {
        let start = random(others);
        (0..others).find_map(|nth| drawn(other((start + nth) % others)))
    });
    Some((first, second))
}

/// One endpoint that takes calls, by weight and share.
fn draw(
    range: &Range<usize>,
    weights: &Weights,
    candidates: &impl Candidates,
    random: &mut impl FnMut(usize) -> usize,
) -> Option<Drawn> {
    let total = weights.total(range) as usize;
    for _ in 0..DRAWS {
        let index = weights.owner(range, random(total) as u64);
        let share = candidates.share(index);
        if share >= 1.0 || (share > 0.0 && chance(random) < share) {
            return Some(Drawn { index, part: weights.part(index) * share });
        }
    }
    let open: SmallVec<[Drawn; 16]> = range
        .clone()
        .map(|index| Drawn { index, part: weights.part(index) * candidates.share(index) })
        .filter(|drawn| drawn.part > 0.0)
        .collect();
    let mut ticket = chance(random) * open.iter().map(|drawn| drawn.part).sum::<f64>();
    let owner = open.iter().find(|drawn| {
        ticket -= drawn.part;
        ticket < 0.0
    });
    owner.or(open.last()).copied()
}

/// The next in turn, each as often as its weight says and as evenly as that goes.
fn in_turn(
    range: Range<usize>,
    weights: &Weights,
    candidates: &impl Candidates,
    turn: &Cell<usize>,
    random: &mut impl FnMut(usize) -> usize,
) -> Option<usize> {
    let total = weights.total(&range);
    let stride = stride(total, range.len() as u64);
    for _ in 0..DRAWS + range.len() {
        let ticket = u128::from(turn.get() as u64) * u128::from(stride) % u128::from(total);
        turn.set(turn.get().wrapping_add(1));
        let index = weights.owner(&range, ticket as u64);
        let share = candidates.share(index);
        if share >= 1.0 || (share > 0.0 && chance(random) < share) {
            return Some(index);
        }
    }
    range.into_iter().find(|index| candidates.share(*index) > 0.0)
}

/// How far from one ticket to the next: 1 where every endpoint has one ticket; otherwise about the golden section of
/// all, which spreads the many tickets of a heavy endpoint over the round, and without a divisor in common with their
/// number, so that a round takes each of them once.
fn stride(total: u64, endpoints: u64) -> u64 {
    if total == endpoints {
        return 1;
    }
    let common = |mut a: u64, mut b: u64| {
        while b > 0 {
            (a, b) = (b, a % b);
        }
        a
    };
    let golden = (total as f64 * 0.618_033_988_75) as u64;
    (golden.max(1)..total).find(|stride| common(*stride, total) == 1).unwrap_or(1)
}

/// A random number in `[0, 1)`.
pub(crate) fn chance(random: &mut impl FnMut(usize) -> usize) -> f64 {
    random(1 << 24) as f64 / f64::from(1 << 24)
}

/// Whether the second of two candidates, each with its cost and weight, is taken, for `chance` in `[0, 1)`. One that
/// costs more than twice as much as the other is not; otherwise they share in proportion to weight and in inverse
/// proportion to cost. Always taking the cheaper would send everything to one of two equal endpoints while calls come
/// one after the other, and the other would never be learnt of again.
fn prefers_second(first: (f64, f64), second: (f64, f64), chance: f64) -> bool {
    if first.0 > second.0 * 2.0 {
        true
    } else if second.0 > first.0 * 2.0 {
        false
    } else {
        let (first, second) = (first.1 / first.0, second.1 / second.0);
        chance < second / (first + second)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BALANCERS: [Balancer; 4] =
        [Balancer::PeakEwma, Balancer::LeastRequests, Balancer::RoundRobin, Balancer::Random];

    /// Endpoints that are all the same but for what a test says of them.
    struct Endpoints {
        loads: Vec<Load>,
        shares: Vec<f64>,
        weights: Weights,
        turn: Cell<usize>,
        now: Instant,
    }

    impl Candidates for Endpoints {
        fn load(&self, index: usize) -> &Load {
            &self.loads[index]
        }

        fn share(&self, index: usize) -> f64 {
            self.shares[index]
        }
    }

    impl Endpoints {
        fn new(weights: &[u32]) -> Self {
            let now = Instant::now();
            Self {
                loads: weights.iter().map(|_| Load::new(now)).collect(),
                shares: vec![1.0; weights.len()],
                weights: Weights::new(weights.iter().copied()),
                turn: Cell::new(0),
                now,
            }
        }

        fn out(mut self, out: &[usize]) -> Self {
            out.iter().for_each(|index| self.shares[*index] = 0.0);
            self
        }

        fn pick_from(
            &self,
            balancer: &Balancer,
            range: Range<usize>,
            rng: &mut fastrand::Rng,
        ) -> Option<usize> {
            pick(balancer, range, &self.weights, self, &self.turn, self.now, &mut |n| rng.usize(..n))
        }

        /// The share of each endpoint in calls that come one after the other.
        fn spread(&self, balancer: &Balancer) -> Vec<f64> {
            const CALLS: usize = 30_000;
            let mut rng = fastrand::Rng::with_seed(7);
            let mut counts = vec![0; self.loads.len()];
            for _ in 0..CALLS {
                counts[self.pick_from(balancer, 0..self.loads.len(), &mut rng).expect("one")] += 1;
            }
            counts.into_iter().map(|count| f64::from(count) / CALLS as f64).collect()
        }
    }

    #[test]
    fn a_slow_endpoint_is_avoided_by_peak_ewma() {
        let two = Endpoints::new(&[1, 1]);
        two.loads[0].observe(Duration::from_millis(500), two.now);
        two.loads[1].observe(Duration::from_millis(1), two.now);
        assert_eq!(two.spread(&Balancer::PeakEwma), [0.0, 1.0]);
    }

    #[test]
    fn equal_endpoints_share_calls_that_come_one_after_the_other() {
        let two = Endpoints::new(&[1, 1]);
        two.loads[0].observe(Duration::from_micros(900), two.now);
        two.loads[1].observe(Duration::from_micros(1100), two.now);
        assert!((two.spread(&Balancer::PeakEwma)[0] - 0.5).abs() < 0.02);
    }

    #[test]
    fn a_busy_endpoint_is_avoided_by_least_requests() {
        let two = Endpoints::new(&[1, 1]);
        two.loads[0].begin();
        assert_eq!(two.spread(&Balancer::LeastRequests), [0.0, 1.0]);
    }

    #[test]
    fn random_does_not_care_who_is_slow_or_busy() {
        let two = Endpoints::new(&[1, 1]);
        two.loads[0].begin();
        two.loads[0].observe(Duration::from_secs(1), two.now);
        assert!((two.spread(&Balancer::Random)[0] - 0.5).abs() < 0.02);
    }

    #[test]
    fn idle_endpoints_share_by_weight() {
        for weights in [&[1, 9][..], &[10, 20, 30], &[1, 1, 1, 5], &[7; 5]] {
            let total: u32 = weights.iter().sum();
            for balancer in BALANCERS {
                let spread = Endpoints::new(weights).spread(&balancer);
                for (share, weight) in spread.into_iter().zip(weights) {
                    let wanted = f64::from(*weight) / f64::from(total);
                    assert!(
                        (share - wanted).abs() < 0.015,
                        "{balancer:?} {weights:?}: {share}, not {wanted}"
                    );
                }
            }
        }
    }

    #[test]
    fn endpoints_that_start_slowly_share_by_how_far_they_are() {
        for balancer in BALANCERS {
            let mut four = Endpoints::new(&[1, 1, 1, 1]);
            four.shares = vec![1.0, 1.0, 1.0, 0.1];
            let share = four.spread(&balancer)[3];
            assert!((share - 0.1 / 3.1).abs() < 0.015, "{balancer:?}: {share}");
        }
    }

    #[test]
    fn a_heavy_endpoint_takes_more_requests_at_once() {
        for balancer in [Balancer::PeakEwma, Balancer::LeastRequests] {
            let two = Endpoints::new(&[1, 3]);
            let mut rng = fastrand::Rng::with_seed(1);
            for _ in 0..400 {
                let index = two.pick_from(&balancer, 0..2, &mut rng).expect("one");
                two.loads[index].begin();
            }
            let light = two.loads[0].in_flight();
            assert!((75..=125).contains(&light), "{balancer:?}: {light} of 400");
        }
    }

    #[test]
    fn round_robin_takes_each_in_turn() {
        let three = Endpoints::new(&[4, 4, 4]);
        let mut rng = fastrand::Rng::with_seed(1);
        let order: Vec<_> = (0..6).map(|_| three.pick_from(&Balancer::RoundRobin, 0..3, &mut rng)).collect();
        assert_eq!(order, [Some(0), Some(1), Some(2), Some(0), Some(1), Some(2)]);
    }

    #[test]
    fn round_robin_follows_weights_exactly_and_does_not_call_one_many_times_in_a_row() {
        let three = Endpoints::new(&[1, 2, 4]);
        let mut rng = fastrand::Rng::with_seed(1);
        let order: Vec<_> =
            (0..70).map(|_| three.pick_from(&Balancer::RoundRobin, 0..3, &mut rng).expect("one")).collect();
        let count = |index| order.iter().filter(|at| **at == index).count();
        assert_eq!([count(0), count(1), count(2)], [10, 20, 40]);
        assert!(order.windows(4).all(|window| window.iter().any(|index| *index != 2)), "{order:?}");
    }

    #[test]
    fn the_turn_of_one_that_is_out_goes_round() {
        let four = Endpoints::new(&[1; 4]).out(&[1]);
        let spread = four.spread(&Balancer::RoundRobin);
        assert!([0, 2, 3].into_iter().all(|index| (spread[index] - 1.0 / 3.0).abs() < 0.01), "{spread:?}");
    }

    #[test]
    fn one_that_is_out_leaves_its_calls_to_all_others() {
        for balancer in BALANCERS {
            let spread = Endpoints::new(&[1, 1, 1, 1, 4]).out(&[2, 4]).spread(&balancer);
            for index in [0, 1, 3] {
                assert!((spread[index] - 1.0 / 3.0).abs() < 0.02, "{balancer:?}: {spread:?}");
            }
        }
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
        fn a_choice_is_in_range_and_takes_calls_and_there_is_one_if_any_does(
            n in 0_usize..40, out in proptest::collection::vec(any::<bool>(), 40), seed: u64, which in 0_usize..4,
            weights in proptest::collection::vec(0_u32..5, 40), from in 0_usize..40, to in 0_usize..40,
        ) {
            let mut endpoints = Endpoints::new(&weights[..n]);
            for (share, out) in endpoints.shares.iter_mut().zip(&out) {
                *share = if *out { 0.0 } else { 1.0 };
            }
            endpoints.turn.set(seed as usize);
            let range = from.min(to).min(n)..to.max(from).min(n);
            let mut rng = fastrand::Rng::with_seed(seed);
            let chosen = endpoints.pick_from(&BALANCERS[which], range.clone(), &mut rng);
            prop_assert_eq!(chosen.is_some(), range.clone().any(|index| !out[index]));
            if let Some(index) = chosen {
                prop_assert!(range.contains(&index) && !out[index]);
            }
        }

        #[test]
        fn each_ticket_has_one_owner(weights in proptest::collection::vec(1_u32..6, 1..12), from in 0_usize..12) {
            let made = Weights::new(weights.iter().copied());
            let range = from.min(weights.len() - 1)..weights.len();
            let mut counts = vec![0_u64; weights.len()];
            (0..made.total(&range)).for_each(|ticket| counts[made.owner(&range, ticket)] += 1);
            let unit = weights.iter().copied().fold(0, divisor);
            for (index, weight) in weights.iter().enumerate() {
                let wanted = if range.contains(&index) { u64::from(weight / unit) } else { 0 };
                prop_assert_eq!(counts[index], wanted);
            }
        }
    }
}
