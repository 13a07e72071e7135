//! What a cluster does as endpoints, policy and health change. No sockets: endpoints are picked, not called.

use super::*;
use crate::telemetry::metrics::Metrics;
use std::collections::{BTreeMap, BTreeSet};
use weft_config::snapshot::{Balancing, Key};

const CALLS: usize = 4000;

fn place(n: u16) -> Place {
    Place {
        address: ([10, 0, 0, 1], n).into(),
        identity: None,
        workload: format!("w-{n}").into(),
        zone: None,
        labels: Arc::new([]),
        weight: 1,
    }
}

fn in_zone(n: u16, zone: &str) -> Place {
    Place { zone: Some(zone.into()), ..place(n) }
}

fn version(n: u16, version: &str) -> Place {
    Place { labels: Arc::new([("version".into(), version.into())]), ..place(n) }
}

fn balancing(balancing: Balancing) -> Traffic {
    Traffic { balancing, ..Traffic::default() }
}

fn ring() -> Traffic {
    let algorithm = Balancer::RingHash { key: Key([].into()), points: 64 };
    balancing(Balancing { algorithm, ..Balancing::default() })
}

/// A cluster and the time.
struct Fixture {
    cluster: Cluster,
    now: Instant,
}

impl Fixture {
    fn new(places: &[Place], traffic: Traffic) -> Self {
        // The same numbers in each run.
        fastrand::seed(7);
        let now = Instant::now();
        let key = ClusterKey { service: ServiceName::new("shop", "cart"), port: 8080, rule: None };
        let series = Metrics::new(1).service("shop/cart");
        let this = Self { cluster: Cluster::new(key, &Guards::default(), series, now), now };
        this.update(places, traffic);
        this
    }

    fn update(&self, places: &[Place], traffic: Traffic) {
        let port = Port {
            port: 8080,
            name: None,
            protocol: AppProtocol::Auto,
            routes: Default::default(),
            rules: Vec::new(),
            endpoints: places.into(),
            traffic: Arc::new(traffic),
            calls: Arc::default(),
        };
        self.cluster.update(&port, &port.traffic, Some(&"a".into()), self.now);
    }

    fn endpoint(&self, n: u16) -> Rc<Endpoint> {
        let all = self.cluster.endpoints();
        all.into_iter().find(|e| e.place.address.port() == n).expect("an endpoint")
    }

    fn unwell(&self, which: &[u16]) {
        which.iter().for_each(|n| self.endpoint(*n).standing.set_healthy(false, self.now));
    }

    fn pick(&self, preference: Preference<'_>) -> Result<u16, Error> {
        Ok(self.cluster.pick(&preference, self.now)?.endpoint().place.address.port())
    }

    /// The share of calls that each endpoint gets.
    fn shares(&self) -> BTreeMap<u16, f64> {
        let mut counts = BTreeMap::new();
        for _ in 0..CALLS {
            *counts.entry(self.pick(Preference::default()).expect("one")).or_insert(0) += 1;
        }
        counts.into_iter().map(|(n, count)| (n, f64::from(count) / CALLS as f64)).collect()
    }

    fn called(&self) -> Vec<u16> {
        self.shares().into_keys().collect()
    }
}

#[test]
fn one_that_is_unwell_is_not_called_until_it_is_well_again() {
    let four = Fixture::new(&[place(1), place(2), place(3), place(4)], Traffic::default());
    four.unwell(&[2]);
    assert_eq!(four.called(), [1, 3, 4]);
    four.endpoint(2).standing.set_healthy(true, four.now);
    assert_eq!(four.called(), [1, 2, 3, 4]);
}

#[test]
fn when_too_few_are_well_all_are_called() {
    let four = Fixture::new(&[place(1), place(2), place(3), place(4)], Traffic::default());
    four.unwell(&[1, 2]);
    assert_eq!(four.called(), [3, 4], "half of them is enough");
    four.unwell(&[3]);
    assert_eq!(four.called(), [1, 2, 3, 4], "a quarter is not");
}

#[test]
fn without_a_panic_threshold_a_call_fails_when_nobody_is_well() {
    let mut traffic = Traffic::default();
    traffic.ejection.panic_share = 0.0;
    let two = Fixture::new(&[place(1), place(2)], traffic);
    two.unwell(&[1, 2]);
    let error = two.pick(Preference::default()).expect_err("nobody is well");
    assert_eq!(error.kind, Kind::NoEndpoint);
    assert!(error.detail.contains("all 2 endpoints of shop/cart:8080"), "{}", error.detail);
}

#[test]
fn another_endpoint_is_tried_before_the_same_again() {
    for traffic in [Traffic::default(), ring()] {
        let three = Fixture::new(&[place(1), place(2), place(3)], traffic);
        let mut tried = Vec::new();
        for key in 0..50 {
            tried.clear();
            let mut seen = BTreeSet::new();
            for _ in 0..3 {
                let preference = Preference { tried: &tried, key: Some(mix(key)), endpoint: None };
                let n = three.pick(preference).expect("one");
                assert!(seen.insert(n), "{n} was tried already");
                tried.push(three.endpoint(n));
            }
            let again = Preference { tried: &tried, key: Some(mix(key)), endpoint: None };
            assert!(three.pick(again).is_ok(), "all were tried: any will do");
        }
    }
}

#[test]
fn one_that_was_tried_goes_before_one_that_is_unwell() {
    let two = Fixture::new(&[place(1), place(2)], Traffic::default());
    two.unwell(&[2]);
    let tried = [two.endpoint(1)];
    let preference = Preference { tried: &tried, ..Preference::default() };
    assert!((0..50).all(|_| two.pick(preference).expect("one") == 1));
}

#[test]
fn a_session_stays_on_its_endpoint_while_that_is_well() {
    let four = Fixture::new(&[place(1), place(2), place(3), place(4)], Traffic::default());
    let mine = four.endpoint(3);
    let preference = Preference { endpoint: Some(mine.id), ..Preference::default() };
    assert!((0..50).all(|_| four.pick(preference).expect("one") == 3));
    let tried = [mine];
    let retried = Preference { tried: &tried, ..preference };
    assert!((0..50).all(|_| four.pick(retried).expect("one") != 3));
    four.unwell(&[3]);
    assert!((0..50).all(|_| four.pick(preference).expect("one") != 3));
    let unknown = Preference { endpoint: Some(1), ..Preference::default() };
    assert!(four.pick(unknown).is_ok());
}

#[test]
fn a_key_stays_on_its_endpoint_and_other_keys_do_not_move_when_one_is_out() {
    let five: Vec<Place> = (1..=5).map(place).collect();
    let five = Fixture::new(&five, ring());
    let owner = |key| five.pick(Preference { key: Some(mix(key)), ..Preference::default() }).expect("one");
    let before: Vec<u16> = (0..500).map(owner).collect();
    assert_eq!(before, (0..500).map(owner).collect::<Vec<_>>());
    five.unwell(&[2]);
    let without: Vec<u16> = (0..500).map(owner).collect();
    assert!(before.iter().zip(&without).all(|(a, b)| if *a == 2 { *b != 2 } else { a == b }));
    assert_eq!(five.called(), [1, 3, 4, 5], "requests without a key go anywhere");
}

#[test]
fn the_key_is_read_as_policy_says() {
    let key = Key([weft_config::snapshot::KeyPart::Source].into());
    let algorithm = Balancer::Maglev { key };
    let fixture = Fixture::new(&[place(1)], balancing(Balancing { algorithm, ..Balancing::default() }));
    let headers = http::HeaderMap::new();
    let from = KeySource { headers: &headers, query: None, source: "checkout", identity: None };
    assert!(fixture.cluster.wants_key());
    assert_eq!(fixture.cluster.key_hash(&from), Some(hash64(b"checkout")));
    fixture.update(&[place(1)], Traffic::default());
    assert!(!fixture.cluster.wants_key());
    assert_eq!(fixture.cluster.key_hash(&from), None);
}

#[test]
fn only_a_subset_is_called() {
    let subset = |version: &str, or_any| {
        balancing(Balancing {
            subset: Arc::new([("version".into(), version.into())]),
            subset_or_any: or_any,
            ..Balancing::default()
        })
    };
    let places = [version(1, "v1"), version(2, "v2"), version(3, "v2")];
    let fixture = Fixture::new(&places, subset("v2", false));
    assert_eq!(fixture.called(), [2, 3]);
    assert_eq!(fixture.cluster.len(), 2);
    fixture.update(&places, subset("v3", false));
    let error = fixture.pick(Preference::default()).expect_err("nobody has the label");
    assert_eq!(error.kind, Kind::NoEndpoint);
    assert!(error.detail.contains("version=v3"), "{}", error.detail);
    fixture.update(&places, subset("v3", true));
    assert_eq!(fixture.called(), [1, 2, 3]);
}

#[test]
fn calls_stay_in_the_own_zone_and_leave_it_for_what_is_missing() {
    let local = || balancing(Balancing { zone_overflow: Some(1.0), ..Balancing::default() });
    let places = [in_zone(1, "b"), in_zone(2, "a"), in_zone(3, "a"), in_zone(4, "b")];
    let fixture = Fixture::new(&places, local());
    assert_eq!(fixture.called(), [2, 3]);
    fixture.unwell(&[2]);
    let fixture = Fixture { now: fixture.now + CENSUS, ..fixture };
    let shares = fixture.shares();
    assert!((shares[&3] - 0.5).abs() < 0.03 && !shares.contains_key(&2), "{shares:?}");
    fixture.unwell(&[3]);
    let fixture = Fixture { now: fixture.now + CENSUS, ..fixture };
    assert_eq!(fixture.called(), [1, 4]);
}

#[test]
fn when_too_few_are_well_in_all_zones_together_zones_make_no_difference() {
    let local = balancing(Balancing { zone_overflow: Some(0.7), ..Balancing::default() });
    let places = [in_zone(1, "a"), in_zone(2, "a"), in_zone(3, "b"), in_zone(4, "b")];
    let fixture = Fixture::new(&places, local);
    fixture.unwell(&[1, 2, 3]);
    assert_eq!(fixture.called(), [1, 2, 3, 4]);
}

#[test]
fn a_zone_whose_endpoints_were_all_tried_is_left() {
    let local = balancing(Balancing { zone_overflow: Some(0.7), ..Balancing::default() });
    let fixture = Fixture::new(&[in_zone(1, "a"), in_zone(2, "b")], local);
    let tried = [fixture.endpoint(1)];
    let preference = Preference { tried: &tried, ..Preference::default() };
    assert!((0..50).all(|_| fixture.pick(preference).expect("one") == 2));
}

#[test]
fn a_key_leaves_its_zone_and_comes_back_as_a_whole() {
    let Traffic { balancing: ring, .. } = ring();
    let local = balancing(Balancing { zone_overflow: Some(1.0), ..ring });
    let places: Vec<Place> =
        (1..=4).map(|n| in_zone(n, "a")).chain((5..=8).map(|n| in_zone(n, "b"))).collect();
    let fixture = Fixture::new(&places, local);
    let owners = |fixture: &Fixture| -> Vec<u16> {
        let owner = |key| fixture.pick(Preference { key: Some(mix(key)), ..Preference::default() });
        (0..1000).map(|key| owner(key).expect("one")).collect()
    };
    let before = owners(&fixture);
    assert!(before.iter().all(|n| *n <= 4));
    fixture.unwell(&[1]);
    let fixture = Fixture { now: fixture.now + CENSUS, ..fixture };
    let while_out = owners(&fixture);
    assert_eq!(while_out, owners(&fixture), "the same key goes to the same endpoint");
    let left = while_out.iter().filter(|n| **n > 4).count();
    assert!((200..300).contains(&left), "{left} of 1000 left the zone, not a quarter");
}

#[test]
fn a_new_endpoint_gets_its_share_bit_by_bit_but_those_of_the_start_at_once() {
    let slow = || {
        let slow_start = Duration::from_secs(10);
        balancing(Balancing { slow_start, algorithm: Balancer::Random, ..Balancing::default() })
    };
    let fixture = Fixture::new(&[place(1), place(2)], slow());
    assert!((fixture.shares()[&1] - 0.5).abs() < 0.05);
    fixture.update(&[place(1), place(2), place(3)], slow());
    assert!((fixture.shares()[&3] - 0.1 / 2.1).abs() < 0.02);
    let fixture = Fixture { now: fixture.now + Duration::from_secs(5), ..fixture };
    assert!((fixture.shares()[&3] - 0.5 / 2.5).abs() < 0.04);
    let fixture = Fixture { now: fixture.now + Duration::from_secs(5), ..fixture };
    assert!((fixture.shares()[&3] - 1.0 / 3.0).abs() < 0.04);
}

#[test]
fn one_that_gets_well_again_starts_slowly_too() {
    let slow_start = Duration::from_secs(10);
    let slow = balancing(Balancing { slow_start, algorithm: Balancer::Random, ..Balancing::default() });
    let fixture = Fixture::new(&[place(1), place(2)], slow);
    fixture.unwell(&[1]);
    fixture.endpoint(1).standing.set_healthy(true, fixture.now);
    assert!((fixture.shares()[&1] - 0.1 / 1.1).abs() < 0.03);
}

#[test]
fn endpoints_that_stay_keep_what_was_learnt_of_them() {
    let fixture = Fixture::new(&[place(1), place(2)], Traffic::default());
    let (one, two) = (fixture.endpoint(1), fixture.endpoint(2));
    let flight = one.begin();
    fixture.update(&[Place { weight: 5, ..place(1) }, place(2), place(3)], Traffic::default());
    assert!(Rc::ptr_eq(&two, &fixture.endpoint(2)));
    let heavier = fixture.endpoint(1);
    assert_eq!((heavier.id, heavier.place.weight, heavier.load.in_flight()), (one.id, 5, 1));
    assert!(Arc::ptr_eq(&heavier.standing, &one.standing));
    drop(flight);
    assert_eq!(heavier.load.in_flight(), 0);
}

#[test]
fn an_endpoint_is_named_by_workload_and_address() {
    let fixture = Fixture::new(&[place(1), place(2)], Traffic::default());
    assert_ne!(fixture.endpoint(1).id, fixture.endpoint(2).id);
    assert_eq!(fixture.endpoint(1).id, hash64(b"w-1@10.0.0.1:1"));
}

#[test]
fn a_cluster_without_endpoints_says_so() {
    let fixture = Fixture::new(&[], Traffic::default());
    let error = fixture.pick(Preference::default()).expect_err("nobody is there");
    assert_eq!(error.kind, Kind::NoEndpoint);
    assert!(error.detail.contains("shop/cart:8080 has no endpoint"), "{}", error.detail);
}

#[test]
fn weights_are_shares() {
    let algorithms = [Balancer::PeakEwma, Balancer::LeastRequests, Balancer::RoundRobin, Balancer::Random];
    for algorithm in algorithms {
        let heavy = Place { weight: 3, ..place(2) };
        let fixture =
            Fixture::new(&[place(1), heavy], balancing(Balancing { algorithm, ..Balancing::default() }));
        assert!((fixture.shares()[&2] - 0.75).abs() < 0.04);
    }
}
