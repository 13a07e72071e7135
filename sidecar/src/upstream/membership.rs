//! Which of a cluster's endpoints take calls: a subset by labels, the own zone before others, slow start, and the point
//! below which nobody is left out any more.

use std::time::{Duration, Instant};
use weft_config::snapshot::{Balancing, Endpoint as Place};

/// What a new endpoint gets of its share at first.
const LEAST: f64 = 0.1;

/// Who takes calls, as far as endpoints and policy say: computed when either changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Membership {
    /// Indices of places: those of the own zone first, each part in the order of the places.
    pub(crate) members: Vec<usize>,
    /// How many of them are in the own zone. All of them where zones make no difference.
    pub(crate) own: usize,
}

impl Membership {
    /// Who takes calls from `zone`.
    pub(crate) fn new(places: &[Place], balancing: &Balancing, zone: Option<&str>) -> Self {
        let mut members: Vec<usize> =
            (0..places.len()).filter(|index| has_labels(&places[*index], balancing)).collect();
        if members.is_empty() && balancing.subset_or_any {
            members = (0..places.len()).collect();
        }
        let mut own = members.len();
        if let (Some(zone), Some(_)) = (zone, balancing.zone_overflow) {
            let is_own = |index: &usize| places[*index].zone.as_deref() == Some(zone);
            let count = members.iter().filter(|index| is_own(index)).count();
            if count > 0 {
                members.sort_by_key(|index| !is_own(index));
                own = count;
            }
        }
        Self { members, own }
    }
}

/// Whether an endpoint is in the subset; both lists are sorted, but short.
fn has_labels(place: &Place, balancing: &Balancing) -> bool {
    balancing.subset.iter().all(|wanted| place.labels.contains(wanted))
}

/// How many of some endpoints are well.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Census {
    pub(crate) well: usize,
    pub(crate) all: usize,
}

impl Census {
    fn share(self) -> f64 {
        if self.all == 0 { 0.0 } else { self.well as f64 / self.all as f64 }
    }

    /// Whether so few are well that all are called again: better some of the calls fail than that the few that are
    /// left break down too.
    pub(crate) fn is_panic(self, panic_share: f64) -> bool {
        self.share() < panic_share
    }
}

/// The share of calls that stay in the own zone: all of them while at least `overflow` of its endpoints is well; of what
/// is missing then, that part leaves. If nobody is well there all leave, if nobody is well elsewhere none does.
pub(crate) fn own_share(own: Census, others: Census, overflow: f64) -> f64 {
    if others.well == 0 {
        1.0
    } else if own.well == 0 {
        0.0
    } else if own.share() >= overflow {
        1.0
    } else {
        own.share() / overflow
    }
}

/// What an endpoint gets of its share when it has taken calls since `since`: a tenth at first, all after `over`.
pub(crate) fn slow_start(since: Option<Instant>, over: Duration, now: Instant) -> f64 {
    let Some(since) = since.filter(|_| !over.is_zero()) else { return 1.0 };
    let done = now.saturating_duration_since(since).as_secs_f64() / over.as_secs_f64();
    done.clamp(LEAST, 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::Arc;

    fn place(n: u16, zone: Option<&str>, labels: &[(&str, &str)]) -> Place {
        Place {
            address: ([10, 0, 0, 1], n).into(),
            identity: None,
            workload: format!("w-{n}").into(),
            zone: zone.map(Into::into),
            labels: labels.iter().map(|(k, v)| (Arc::from(*k), Arc::from(*v))).collect(),
            weight: 1,
        }
    }

    fn places() -> [Place; 5] {
        [
            place(1, Some("a"), &[("tier", "gold"), ("version", "v1")]),
            place(2, Some("b"), &[("version", "v2")]),
            place(3, Some("a"), &[("tier", "gold"), ("version", "v2")]),
            place(4, None, &[]),
            place(5, Some("b"), &[("version", "v1")]),
        ]
    }

    fn subset(labels: &[(&str, &str)], or_any: bool) -> Balancing {
        Balancing {
            subset: labels.iter().map(|(k, v)| (Arc::from(*k), Arc::from(*v))).collect(),
            subset_or_any: or_any,
            ..Balancing::default()
        }
    }

    fn members(balancing: &Balancing, zone: Option<&str>) -> (Vec<usize>, usize) {
        let found = Membership::new(&places(), balancing, zone);
        (found.members, found.own)
    }

    #[test]
    fn without_policy_all_are_equal() {
        assert_eq!(members(&Balancing::default(), Some("a")), (vec![0, 1, 2, 3, 4], 5));
    }

    #[test]
    fn a_subset_has_all_of_the_labels() {
        assert_eq!(members(&subset(&[("version", "v2")], false), None), (vec![1, 2], 2));
        assert_eq!(members(&subset(&[("tier", "gold"), ("version", "v2")], false), None), (vec![2], 1));
    }

    #[test]
    fn a_subset_that_nobody_is_in_is_empty_unless_any_will_do() {
        assert_eq!(members(&subset(&[("version", "v3")], false), None), (vec![], 0));
        assert_eq!(members(&subset(&[("version", "v3")], true), None), (vec![0, 1, 2, 3, 4], 5));
    }

    #[test]
    fn the_own_zone_comes_first() {
        let local = Balancing { zone_overflow: Some(0.7), ..Balancing::default() };
        assert_eq!(members(&local, Some("b")), (vec![1, 4, 0, 2, 3], 2));
        let local = Balancing { zone_overflow: Some(0.7), ..subset(&[("version", "v2")], false) };
        assert_eq!(members(&local, Some("b")), (vec![1, 2], 1));
    }

    #[test]
    fn zones_make_no_difference_to_a_caller_without_neighbours() {
        let local = Balancing { zone_overflow: Some(0.7), ..Balancing::default() };
        assert_eq!(members(&local, Some("c")), (vec![0, 1, 2, 3, 4], 5));
        assert_eq!(members(&local, None), (vec![0, 1, 2, 3, 4], 5));
    }

    fn census(well: usize, all: usize) -> Census {
        Census { well, all }
    }

    #[test]
    fn calls_stay_in_the_zone_while_enough_of_it_is_well() {
        assert_eq!(own_share(census(10, 10), census(10, 10), 0.7), 1.0);
        assert_eq!(own_share(census(7, 10), census(10, 10), 0.7), 1.0);
    }

    #[test]
    fn calls_leave_the_zone_in_proportion_to_what_is_missing() {
        assert!((own_share(census(35, 100), census(1, 10), 0.7) - 0.5).abs() < 1e-9);
        assert!((own_share(census(1, 2), census(2, 2), 1.0) - 0.5).abs() < 1e-9);
        assert_eq!(own_share(census(0, 10), census(1, 10), 0.7), 0.0);
        assert_eq!(own_share(census(0, 10), census(1, 10), 0.0), 0.0);
    }

    #[test]
    fn nothing_leaves_for_where_nobody_is_well() {
        assert_eq!(own_share(census(1, 10), census(0, 10), 0.7), 1.0);
        assert_eq!(own_share(census(0, 10), census(0, 0), 0.7), 1.0);
    }

    #[test]
    fn below_the_panic_threshold_all_are_called() {
        assert!(!census(3, 10).is_panic(0.3));
        assert!(census(2, 10).is_panic(0.3));
        assert!(!census(0, 10).is_panic(0.0));
        assert!(census(0, 1).is_panic(0.3));
    }

    #[test]
    fn a_new_endpoint_ramps_up_in_a_line_from_a_tenth() {
        let now = Instant::now();
        let over = Duration::from_secs(10);
        for (age, share) in [(0, 0.1), (1, 0.1), (5, 0.5), (10, 1.0), (100, 1.0)] {
            let later = now + Duration::from_secs(age);
            assert!((slow_start(Some(now), over, later) - share).abs() < 1e-9, "after {age} s");
        }
        assert_eq!(slow_start(None, over, now), 1.0);
        assert_eq!(slow_start(Some(now), Duration::ZERO, now), 1.0);
    }

    proptest! {
        #[test]
        fn what_stays_is_a_share_and_more_of_it_the_better_the_zone_is(
            all in 1_usize..50, well in 0_usize..50, others in 0_usize..50, overflow in 0.0..=1.0_f64,
        ) {
            let well = well.min(all);
            let stays = own_share(census(well, all), census(others, 50), overflow);
            prop_assert!((0.0..=1.0).contains(&stays));
            if well < all {
                prop_assert!(own_share(census(well + 1, all), census(others, 50), overflow) >= stays || others == 0);
            }
        }

        #[test]
        fn members_are_places_each_at_most_once(zone in proptest::option::of("[a-c]"), which in 0_usize..4) {
            let balancing = Balancing {
                zone_overflow: (which > 1).then_some(0.5),
                ..subset(&[("version", "v1")][..which % 2], false)
            };
            let (found, own) = members(&balancing, zone.as_deref());
            let mut sorted = found.clone();
            sorted.sort_unstable();
            sorted.dedup();
            prop_assert_eq!(sorted.len(), found.len());
            prop_assert!(own <= found.len());
            prop_assert!(found.iter().all(|index| has_labels(&places()[*index], &balancing)));
        }
    }
}
