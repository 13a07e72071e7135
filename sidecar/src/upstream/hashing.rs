//! Consistent hashing: the same key to the same endpoint, and few keys move when endpoints come and go.

use weft_config::snapshot::{Balancer, mix, rendezvous};

/// Slots of a Maglev table: a prime, and at least a hundred times the endpoints of all but the largest services. It is
/// the same for few and for many endpoints, since keys move when it changes.
const SLOTS: usize = 65_537;
/// Points on one ring at most; more endpoints than that share them out.
const POINTS: u64 = 1 << 17;
/// Steps from a key's own place to one that takes calls, before all endpoints are compared instead.
const STEPS: usize = 64;

/// Where keys belong. Made when endpoints change, read per request.
pub(crate) struct Table {
    /// The endpoints as they were given: stable name and weight.
    endpoints: Box<[(u64, u32)]>,
    slots: Slots,
}

enum Slots {
    /// Points in order, with the endpoint of each.
    Ring(Box<[u64]>, Box<[u32]>),
    /// The endpoint of each slot.
    Maglev(Box<[u32]>),
}

impl Table {
    /// The table that a balancer needs; `None` if it needs none or there is no endpoint. An endpoint is given by its
    /// stable name (see [`Endpoint::id`](super::Endpoint::id)) and its weight; in which order makes no difference.
    pub(crate) fn new(balancer: &Balancer, endpoints: impl Iterator<Item = (u64, u32)>) -> Option<Self> {
        let make = match balancer {
            Balancer::RingHash { points, .. } => Ok(*points),
            Balancer::Maglev { .. } => Err(()),
            _ => return None,
        };
        let endpoints: Box<[_]> = endpoints.map(|(id, weight)| (id, weight.max(1))).collect();
        if endpoints.is_empty() {
            return None;
        }
        let slots = match make {
            Ok(points) => ring(&endpoints, points),
            Err(()) => maglev(&endpoints),
        };
        Some(Self { endpoints, slots })
    }

    /// The endpoint that a key belongs to, by index; `share` says how much of its keys an endpoint takes now: all (1),
    /// none (0: they go to the next on the table, and no other key moves), or a part that grows while it starts.
    pub(crate) fn pick(&self, key: u64, share: impl Fn(usize) -> f64) -> Option<usize> {
        let takes = |index: usize| {
            let share = share(index);
            share >= 1.0 || (share > 0.0 && unit(mix(key ^ self.endpoints[index].0)) < share)
        };
        let (owners, start) = match &self.slots {
            Slots::Ring(points, owners) => (owners, points.partition_point(|point| *point < key)),
            Slots::Maglev(owners) => (owners, (key % owners.len() as u64) as usize),
        };
        let (before, after) = owners.split_at(start.min(owners.len()));
        let mut walk = after.iter().chain(before).take(STEPS).map(|owner| *owner as usize);
        walk.find(|index| takes(*index)).or_else(|| {
            // Most are out: each of those left draws its share of the keys, and these stay as long as it is there.
            rendezvous(
                key,
                self.endpoints
                    .iter()
                    .enumerate()
                    .map(|(index, (id, weight))| (*id, if share(index) > 0.0 { *weight } else { 0 })),
            )
        })
    }
}

/// Points for each endpoint by its weight, as many as `points` for the smallest one where that is not too many.
fn ring(endpoints: &[(u64, u32)], points: u32) -> Slots {
    let unit = endpoints.iter().fold(0, |all, (_, weight)| divisor(all, *weight)).max(1);
    let total: u64 = endpoints.iter().map(|(_, weight)| u64::from(weight / unit)).sum();
    let wanted = total.saturating_mul(u64::from(points.max(1)));
    // What is too much shrinks for all alike.
    let scale = u64::from(points.max(1)) as f64 * (POINTS as f64 / wanted as f64).min(1.0);
    let mut all: Vec<(u64, u64, u32)> = Vec::with_capacity(wanted.min(POINTS) as usize + endpoints.len());
    for (index, (id, weight)) in endpoints.iter().enumerate() {
        let count = (f64::from(weight / unit) * scale).round().max(1.0) as u64;
        all.extend((0..count).map(|n| (mix(id ^ mix(n)), *id, index as u32)));
    }
    all.sort_unstable();
    let (points, owners): (Vec<u64>, Vec<u32>) =
        all.into_iter().map(|(point, _, owner)| (point, owner)).unzip();
    Slots::Ring(points.into(), owners.into())
}

/// Each endpoint takes slots in an order of its own, in turns that follow the weights, until none is free.
fn maglev(endpoints: &[(u64, u32)]) -> Slots {
    const FREE: u32 = u32::MAX;
    struct Taker {
        index: u32,
        next: usize,
        skip: usize,
        /// Slots per round: 1 on average.
        pace: f64,
        due: f64,
    }
    let mean = endpoints.iter().map(|(_, weight)| f64::from(*weight)).sum::<f64>() / endpoints.len() as f64;
    let mut order: Vec<usize> = (0..endpoints.len()).collect();
    order.sort_unstable_by_key(|index| endpoints[*index]);
    let mut takers: Vec<Taker> = order
        .into_iter()
        .map(|index| {
            let (id, weight) = endpoints[index];
            let spread = mix(id);
            Taker {
                index: index as u32,
                next: (spread % SLOTS as u64) as usize,
                skip: (mix(spread) % (SLOTS as u64 - 1)) as usize + 1,
                pace: f64::from(weight) / mean,
                due: 0.0,
            }
        })
        .collect();
    let mut slots = vec![FREE; SLOTS].into_boxed_slice();
    let mut free = SLOTS;
    loop {
        for taker in &mut takers {
            taker.due += taker.pace;
            while taker.due >= 1.0 {
                taker.due -= 1.0;
                while slots[taker.next] != FREE {
                    taker.next = (taker.next + taker.skip) % SLOTS;
                }
                slots[taker.next] = taker.index;
                free -= 1;
                if free == 0 {
                    return Slots::Maglev(slots);
                }
            }
        }
    }
}

/// A hash as a number in `[0, 1)`.
pub(crate) fn unit(hash: u64) -> f64 {
    (hash >> 11) as f64 / (1_u64 << 53) as f64
}

/// The greatest common divisor.
pub(crate) fn divisor(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { divisor(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use weft_config::snapshot::{Key, hash64};

    const KEYS: u64 = 20_000;

    fn ring_hash() -> Balancer {
        Balancer::RingHash { key: Key([].into()), points: 256 }
    }

    fn maglev_table() -> Balancer {
        Balancer::Maglev { key: Key([].into()) }
    }

    fn both() -> [Balancer; 2] {
        [ring_hash(), maglev_table()]
    }

    fn id(n: usize) -> u64 {
        hash64(format!("products-{n}@10.0.0.{n}:15006").as_bytes())
    }

    fn even(n: usize) -> Vec<(u64, u32)> {
        (0..n).map(|n| (id(n), 1)).collect()
    }

    fn table(balancer: &Balancer, endpoints: &[(u64, u32)]) -> Table {
        Table::new(balancer, endpoints.iter().copied()).expect("endpoints")
    }

    fn keys() -> impl Iterator<Item = u64> {
        (0..KEYS).map(|n| hash64(&n.to_le_bytes()))
    }

    /// Whom each key goes to, by name, while those in `out` are out.
    fn owners(table: &Table, out: &[usize]) -> Vec<u64> {
        let share = |index: usize| if out.contains(&index) { 0.0 } else { 1.0 };
        keys().map(|key| table.endpoints[table.pick(key, share).expect("one")].0).collect()
    }

    fn counts(owners: &[u64], endpoints: &[(u64, u32)]) -> Vec<f64> {
        endpoints
            .iter()
            .map(|(id, _)| owners.iter().filter(|owner| *owner == id).count() as f64 / KEYS as f64)
            .collect()
    }

    #[test]
    fn keys_spread_evenly() {
        for (balancer, within) in both().into_iter().zip([0.25, 0.08]) {
            let endpoints = even(10);
            for share in counts(&owners(&table(&balancer, &endpoints), &[]), &endpoints) {
                assert!((share - 0.1).abs() < 0.1 * within, "{balancer:?}: {share}");
            }
        }
    }

    #[test]
    fn shares_follow_weights() {
        for (balancer, within) in both().into_iter().zip([0.25, 0.08]) {
            let endpoints: Vec<_> =
                [10, 20, 30, 40].into_iter().enumerate().map(|(n, w)| (id(n), w)).collect();
            let shares = counts(&owners(&table(&balancer, &endpoints), &[]), &endpoints);
            for (share, wanted) in shares.into_iter().zip([0.1, 0.2, 0.3, 0.4]) {
                assert!((share - wanted).abs() < wanted * within, "{balancer:?}: {share}, not {wanted}");
            }
        }
    }

    #[test]
    fn a_ring_gives_a_new_endpoint_its_share_and_moves_nothing_else() {
        for n in [2, 5, 20] {
            let before = owners(&table(&ring_hash(), &even(n)), &[]);
            let after = owners(&table(&ring_hash(), &even(n + 1)), &[]);
            let moved = before.iter().zip(&after).filter(|(a, b)| a != b).count() as f64 / KEYS as f64;
            let wanted = 1.0 / (n + 1) as f64;
            assert!((moved - wanted).abs() < wanted * 0.3, "{moved} of the keys moved, not {wanted}");
            assert!(before.iter().zip(&after).all(|(a, b)| a == b || *b == id(n)));
        }
    }

    #[test]
    fn maglev_moves_few_keys_beyond_those_that_must() {
        for n in [5, 20] {
            let before = owners(&table(&maglev_table(), &even(n)), &[]);
            let after = owners(&table(&maglev_table(), &even(n + 1)), &[]);
            let (mut must, mut beyond) = (0, 0);
            for (a, b) in before.iter().zip(&after).filter(|(a, b)| a != b) {
                let _ = a;
                if *b == id(n) { must += 1 } else { beyond += 1 }
            }
            assert!((f64::from(must) / KEYS as f64 - 1.0 / (n + 1) as f64).abs() < 0.02, "{must}");
            assert!(f64::from(beyond) / (KEYS as f64) < 0.05, "{beyond} of {KEYS} moved without need");
        }
    }

    #[test]
    fn keys_of_one_that_is_out_spread_over_all_others() {
        for balancer in both() {
            let endpoints = even(6);
            let table = table(&balancer, &endpoints);
            let all = owners(&table, &[]);
            let without = owners(&table, &[2]);
            assert!(all.iter().zip(&without).all(|(a, b)| a == b || *a == id(2)));
            let heirs = all.iter().zip(&without).filter(|(a, b)| a != b).map(|(_, b)| *b);
            let heirs: std::collections::HashSet<u64> = heirs.collect();
            assert_eq!(heirs.len(), 5, "{balancer:?}");
        }
    }

    #[test]
    fn one_that_starts_draws_its_keys_in_bit_by_bit() {
        for balancer in both() {
            let table = table(&balancer, &even(4));
            let mut had: Vec<bool> = vec![false; KEYS as usize];
            let mut last = 0;
            for share in [0.1, 0.4, 0.7, 1.0] {
                let shares = |index: usize| if index == 1 { share } else { 1.0 };
                let has: Vec<bool> = keys().map(|key| table.pick(key, shares) == Some(1)).collect();
                assert!(had.iter().zip(&has).all(|(before, now)| *now || !before), "a key left again");
                let count = has.iter().filter(|has| **has).count();
                assert!(count > last);
                (had, last) = (has, count);
            }
        }
    }

    #[test]
    fn keys_find_the_last_one_that_is_left() {
        for balancer in both() {
            let table = table(&balancer, &even(200));
            for key in keys().take(200) {
                assert_eq!(table.pick(key, |index| if index == 77 { 1.0 } else { 0.0 }), Some(77));
                assert_eq!(table.pick(key, |_| 0.0), None);
            }
        }
    }

    #[test]
    fn a_ring_of_many_heavy_endpoints_is_bounded() {
        let endpoints: Vec<_> = (0..2000).map(|n| (id(n), 1 + n as u32 * 50)).collect();
        let table =
            Table::new(&Balancer::RingHash { key: Key([].into()), points: 4096 }, endpoints.iter().copied());
        let Some(Table { slots: Slots::Ring(points, _), .. }) = table else { panic!("a ring") };
        assert!(points.len() as u64 <= POINTS + 2000, "{}", points.len());
    }

    #[test]
    fn there_is_no_table_without_endpoints_or_for_other_balancers() {
        assert!(Table::new(&ring_hash(), std::iter::empty()).is_none());
        assert!(Table::new(&Balancer::PeakEwma, even(3).into_iter()).is_none());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn the_order_of_endpoints_makes_no_difference(
            which in 0_usize..2, weights in proptest::collection::vec(1_u32..9, 1..12), turn in 0_usize..12, keys: [u64; 16],
        ) {
            let endpoints: Vec<_> = weights.into_iter().enumerate().map(|(n, w)| (id(n), w)).collect();
            let mut turned = endpoints.clone();
            turned.rotate_left(turn % endpoints.len());
            turned.reverse();
            let balancer = &both()[which];
            let (one, other) = (table(balancer, &endpoints), table(balancer, &turned));
            for key in keys {
                let at = |table: &Table| table.pick(key, |_| 1.0).map(|index| table.endpoints[index]);
                prop_assert_eq!(at(&one), at(&other));
            }
        }

        #[test]
        fn who_is_out_moves_only_its_own_keys(
            which in 0_usize..2, n in 2_usize..12, out in proptest::collection::vec(any::<bool>(), 12), keys: [u64; 16],
        ) {
            let table = table(&both()[which], &even(n));
            for key in keys {
                let at_home = table.pick(key, |_| 1.0).expect("one");
                let now = table.pick(key, |index| if out[index] { 0.0 } else { 1.0 });
                prop_assert_eq!(now.is_some(), out[..n].iter().any(|out| !out));
                if let Some(now) = now {
                    prop_assert!(!out[now]);
                    prop_assert!(now == at_home || out[at_home]);
                }
            }
        }
    }
}
