//! When certificates are asked for, at every scale of life.

use super::super::identity::{Issuance, Now, Stored, Warning};
use crate::tls::Tls;
use std::time::{Duration, SystemTime};
use tokio::time::Instant;
use weft_config::wire;

const DAY: Duration = Duration::from_secs(24 * 3600);
const SHORT: Duration = Duration::from_secs(5);

struct Clock(Now);

impl Clock {
    fn new() -> Self {
        Self(Now { instant: Instant::now(), wall: SystemTime::now() })
    }

    fn pass(&mut self, time: Duration) -> Now {
        self.0.instant += time;
        self.0.wall += time;
        self.0
    }
}

/// An issuance with a certificate of this life, received now.
fn issued(life: Duration, clock: &Clock) -> Issuance {
    let ca = super::control_plane::Ca::new();
    let mut issuance = Issuance::new();
    let request = issuance.request(clock.0).expect("a request");
    let chain = ca.sign(&request.csr, "spiffe://weft.local/ns/shop/sa/cart", life);
    let stored =
        issuance.answer(wire::Certificate { chain, refused: String::new() }, clock.0).expect("stored");
    let tls = Tls::new("weft.local");
    let (chain, key) = stored.to_rustls();
    let identity = tls.set_identity(chain, key).expect("an identity");
    issuance.installed(stored, &identity);
    issuance
}

#[test]
fn without_a_certificate_one_is_due_at_once() {
    let clock = Clock::new();
    let mut issuance = Issuance::new();
    assert!(issuance.is_due(clock.0));
    let first = issuance.request(clock.0).expect("a request");
    assert!(!issuance.is_due(clock.0), "one at a time");
    issuance.closed();
    let second = issuance.request(clock.0).expect("a request");
    assert_eq!(first.csr, second.csr, "the key is kept until it is answered");
}

#[test]
fn renewal_is_due_between_half_and_seven_tenths_of_life_whatever_the_life() {
    for life in [SHORT, DAY] {
        for _ in 0..20 {
            let mut clock = Clock::new();
            let issuance = issued(life, &clock);
            // Dates in certificates are whole seconds.
            let slack = Duration::from_secs(1).div_f64(life.as_secs_f64()).as_secs_f64();
            clock.pass(life.mul_f64(0.5 - slack - 0.001));
            assert!(!issuance.is_due(clock.0), "{life:?}");
            clock.pass(life.mul_f64(0.2 + slack + 0.002));
            assert!(issuance.is_due(clock.0), "{life:?}");
        }
    }
}

#[test]
fn failures_are_retried_many_times_before_the_end() {
    for life in [SHORT, DAY] {
        let mut clock = Clock::new();
        let start = clock.0.wall;
        let mut issuance = issued(life, &clock);
        clock.pass(life.mul_f64(0.7));
        let mut tries = 0;
        while clock.0.wall < start + life {
            if issuance.is_due(clock.0) {
                issuance.request(clock.0).expect("a request");
                issuance.failed(clock.0);
                tries += 1;
            }
            issuance.warning(clock.0);
            let next = issuance.next_tick(clock.0, true).expect("a time to look again");
            assert!(next > clock.0.instant, "no busy loop");
            clock.pass(next - clock.0.instant);
        }
        assert!((5..1500).contains(&tries), "{tries} tries in {life:?}");
    }
}

#[test]
fn a_request_without_an_answer_is_asked_again() {
    let mut clock = Clock::new();
    let mut issuance = issued(SHORT, &clock);
    clock.pass(SHORT.mul_f64(0.7));
    issuance.request(clock.0).expect("a request");
    let asked = clock.0.instant;
    assert!(!issuance.timed_out(clock.0));
    while !issuance.timed_out(clock.0) {
        issuance.warning(clock.0);
        let next = issuance.next_tick(clock.0, true).expect("a time to look again");
        clock.pass(next - clock.0.instant);
    }
    let patience = clock.0.instant - asked;
    assert!(patience <= SHORT / 10, "patience goes by life: {patience:?}");
    assert!(!issuance.timed_out(clock.0), "said once");
    clock.pass(SHORT / 10);
    assert!(issuance.is_due(clock.0));
}

#[test]
fn warnings_come_once_a_step_from_four_fifths_of_life() {
    let mut clock = Clock::new();
    let mut issuance = issued(DAY, &clock);
    clock.pass(DAY.mul_f64(0.79));
    assert_eq!(issuance.warning(clock.0), None);
    clock.pass(DAY.mul_f64(0.02));
    assert_eq!(issuance.warning(clock.0), Some(Warning::Aging(80)));
    assert_eq!(issuance.warning(clock.0), None);
    clock.pass(DAY.mul_f64(0.1));
    assert_eq!(issuance.warning(clock.0), Some(Warning::Aging(90)));
    assert!(issuance.valid(clock.0).is_some());
    clock.pass(DAY.mul_f64(0.1));
    assert_eq!(issuance.warning(clock.0), Some(Warning::Expired));
    assert_eq!(issuance.warning(clock.0), None);
    assert!(issuance.valid(clock.0).is_none());
}

#[test]
fn nothing_is_asked_for_without_a_stream() {
    let clock = Clock::new();
    assert_eq!(Issuance::new().next_tick(clock.0, false), None);
}

#[test]
fn a_refusal_says_why() {
    let clock = Clock::new();
    let mut issuance = Issuance::new();
    issuance.request(clock.0).expect("a request");
    let refused = wire::Certificate { chain: Vec::new(), refused: "no such account".to_owned() };
    let error = issuance.answer(refused, clock.0).expect_err("refused");
    assert!(error.contains("no such account"));
    assert!(!issuance.is_due(clock.0), "not at once");
    let unasked = wire::Certificate { chain: vec![vec![1]], refused: String::new() };
    assert!(Issuance::new().answer(unasked, clock.0).is_err());
}

#[test]
fn what_is_no_certificate_has_no_end() {
    for chain in [vec![], vec![vec![]], vec![vec![1, 2, 3]]] {
        let stored = Stored { chain, key: vec![1], received: SystemTime::now() };
        assert!(stored.expires().is_err());
    }
}
