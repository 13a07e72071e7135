//! Outlier ejection: which endpoints are left out for what their calls tell, and when they come back.

use super::outcome::Outcome;
pub(crate) use crate::telemetry::metrics::EjectionCause as Cause;
use smallvec::SmallVec;
use std::time::{Duration, Instant};
use weft_config::snapshot::Ejection as Settings;

/// Latencies that differ by less are noise, however many times the median one is of the other.
const NOISE: Duration = Duration::from_millis(2);

/// What one endpoint's calls tell, and what followed from it.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    gateway_errors: u32,
    server_errors: u32,
    sample: Sample,
    ejected: Option<Ejected>,
}

/// The newest ejection of an endpoint, over or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ejected {
    /// Why.
    pub(crate) cause: Cause,
    /// Until when.
    pub(crate) until: Instant,
    /// Which ejection this is; less for every `time` that it was well in between.
    pub(crate) times: u32,
}

/// Calls since the last comparison.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sample {
    /// All calls with a verdict.
    pub(crate) calls: u32,
    /// Those that went well.
    pub(crate) good: u32,
    /// How long the good ones took in all: an endpoint that fails at once is not a fast one.
    pub(crate) time: Duration,
}

impl Tally {
    /// Takes in how a call ended. Gives the cause if the endpoint should be ejected for it; while it may not be (see
    /// [`may_eject`]), the question comes up again each time that as many errors are in a row once more.
    pub(crate) fn record(
        &mut self,
        settings: &Settings,
        outcome: Outcome,
        took: Duration,
        now: Instant,
    ) -> Option<Cause> {
        if outcome == Outcome::Neutral || self.is_ejected(now) {
            // What still comes in from an endpoint that is out says nothing that is not known.
            return None;
        }
        self.sample.calls = self.sample.calls.saturating_add(1);
        match outcome {
            Outcome::Neutral => {}
            Outcome::Success => {
                (self.gateway_errors, self.server_errors) = (0, 0);
                self.sample.good = self.sample.good.saturating_add(1);
                self.sample.time = self.sample.time.saturating_add(took);
            }
            Outcome::ServerError => {
                self.gateway_errors = 0;
                self.server_errors = self.server_errors.saturating_add(1);
            }
            Outcome::GatewayError => {
                self.gateway_errors = self.gateway_errors.saturating_add(1);
                self.server_errors = self.server_errors.saturating_add(1);
            }
        }
        let reached = |count: u32, limit: u32| limit > 0 && count > 0 && count.is_multiple_of(limit);
        if outcome == Outcome::GatewayError
            && reached(self.gateway_errors, settings.consecutive_gateway_errors)
        {
            Some(Cause::GatewayErrors)
        } else if outcome != Outcome::Success
            && reached(self.server_errors, settings.consecutive_server_errors)
        {
            Some(Cause::ServerErrors)
        } else {
            None
        }
    }

    /// Ejects the endpoint; gives until when. Being ejected again soon lasts longer.
    pub(crate) fn eject(&mut self, settings: &Settings, cause: Cause, now: Instant) -> Instant {
        let times = self.standing_ejections(settings, now) + 1;
        let until = now + settings.time.saturating_mul(times).min(settings.max_time);
        *self = Self { ejected: Some(Ejected { cause, until, times }), ..Self::default() };
        until
    }

    /// Ejections that still count: one is forgiven for every `time` that it has been well since.
    fn standing_ejections(&self, settings: &Settings, now: Instant) -> u32 {
        let Some(last) = self.ejected else { return 0 };
        let well = now.saturating_duration_since(last.until).as_nanos();
        let forgiven = well / settings.time.as_nanos().max(1);
        last.times.saturating_sub(u32::try_from(forgiven).unwrap_or(u32::MAX))
    }

    /// Whether it is out at `now`: it returns by itself when its time is over.
    pub(crate) fn is_ejected(&self, now: Instant) -> bool {
        self.ejected.is_some_and(|last| now < last.until)
    }

    /// The ejection that it is out for at `now`.
    pub(crate) fn ejected(&self, now: Instant) -> Option<Ejected> {
        self.ejected.filter(|last| now < last.until)
    }

    /// The calls since this was last asked.
    pub(crate) fn take_sample(&mut self) -> Sample {
        std::mem::take(&mut self.sample)
    }

    /// Gateway errors and 5xx in a row.
    pub(crate) fn in_a_row(&self) -> (u32, u32) {
        (self.gateway_errors, self.server_errors)
    }
}

/// Whether one more of `endpoints` may be ejected, while `ejected` are and `well` take calls, the candidate included:
/// never the last one, and not more than the share, though one of two or more in any case. A share of 0 turns ejection
/// off.
pub(crate) fn may_eject(settings: &Settings, endpoints: usize, ejected: usize, well: usize) -> bool {
    if settings.max_share <= 0.0 || well < 2 {
        return false;
    }
    // 29 % of 100 endpoints are 29, whatever binary fractions make of it.
    let most = (settings.max_share * endpoints as f64 + 1e-9).floor() as usize;
    ejected < most.max(1).min(endpoints.saturating_sub(1))
}

/// Compares endpoints by what their calls told since the last comparison. Gives the index of each that does much worse
/// than the others, the worst of each kind first.
pub(crate) fn outliers(settings: &Settings, samples: &[Sample]) -> SmallVec<[(usize, Cause); 4]> {
    let mut out = SmallVec::new();
    if let Some(compare) = &settings.success_rate {
        let enough = |s: &Sample| s.calls >= compare.min_requests.max(1);
        let rates: Vec<(usize, f64)> = samples
            .iter()
            .enumerate()
            .filter(|(_, s)| enough(s))
            .map(|(index, s)| (index, f64::from(s.good) / f64::from(s.calls)))
            .collect();
        if rates.len() >= (compare.min_endpoints as usize).max(2) {
            let count = rates.len() as f64;
            let mean = rates.iter().map(|(_, rate)| rate).sum::<f64>() / count;
            let variance = rates.iter().map(|(_, rate)| (rate - mean).powi(2)).sum::<f64>() / count;
            // Equal rates differ by what floating point makes of them.
            let bound = mean - compare.deviations * variance.sqrt() - 1e-9;
            worst_first(&mut out, rates, Cause::SuccessRate, |rate| rate < bound, |rate| rate);
        }
    }
    if let Some(compare) = &settings.latency {
        let latencies: Vec<(usize, f64)> = samples
            .iter()
            .enumerate()
            .filter(|(_, s)| s.good >= compare.min_requests.max(1))
            .map(|(index, s)| (index, s.time.as_secs_f64() / f64::from(s.good)))
            .collect();
        let mut sorted: Vec<f64> = latencies.iter().map(|(_, latency)| *latency).collect();
        sorted.sort_by(f64::total_cmp);
        // Of an even number the lower: with two endpoints the faster is what the slower is held against.
        let median = sorted.get(sorted.len().saturating_sub(1) / 2).copied();
        if let Some(median) = median.filter(|_| sorted.len() >= 2) {
            let bound = (median * compare.times_median).max(median + NOISE.as_secs_f64());
            worst_first(&mut out, latencies, Cause::Latency, |latency| latency > bound, |latency| -latency);
        }
    }
    out
}

fn worst_first(
    out: &mut SmallVec<[(usize, Cause); 4]>,
    mut all: Vec<(usize, f64)>,
    cause: Cause,
    is_outlier: impl Fn(f64) -> bool,
    rank: impl Fn(f64) -> f64,
) {
    all.retain(|(index, value)| is_outlier(*value) && !out.iter().any(|(known, _)| known == index));
    all.sort_by(|(_, a), (_, b)| rank(*a).total_cmp(&rank(*b)));
    out.extend(all.into_iter().map(|(index, _)| (index, cause)));
}

#[cfg(test)]
mod tests {
    use super::*;
    use Outcome::{GatewayError, Neutral, ServerError, Success};
    use proptest::prelude::*;
    use weft_config::snapshot::{SlowEndpoint, SuccessRate};

    const TOOK: Duration = Duration::from_millis(1);

    fn causes(settings: &Settings, outcomes: &[Outcome]) -> Vec<Cause> {
        let (mut tally, now) = (Tally::default(), Instant::now());
        outcomes.iter().filter_map(|o| tally.record(settings, *o, TOOK, now)).collect()
    }

    #[test]
    fn gateway_errors_in_a_row_eject() {
        let s = Settings::default();
        assert_eq!(causes(&s, &[GatewayError; 4]), []);
        assert_eq!(causes(&s, &[GatewayError; 5]), [Cause::GatewayErrors]);
    }

    #[test]
    fn a_success_in_between_begins_the_count_again() {
        let s = Settings::default();
        let bad = [GatewayError; 4];
        assert_eq!(causes(&s, &[&bad[..], &[Success], &bad[..]].concat()), []);
    }

    #[test]
    fn a_call_without_a_verdict_changes_nothing() {
        let s = Settings::default();
        let bad = [GatewayError; 4];
        assert_eq!(causes(&s, &[&bad[..], &[Neutral], &bad[..1]].concat()), [Cause::GatewayErrors]);
    }

    #[test]
    fn a_plain_500_is_no_gateway_error_but_a_gateway_error_is_a_5xx() {
        let s = Settings { consecutive_server_errors: 3, ..Settings::default() };
        assert_eq!(causes(&s, &[ServerError, GatewayError, ServerError]), [Cause::ServerErrors]);
        let only_gateway = Settings::default();
        assert_eq!(causes(&only_gateway, &[ServerError; 50]), []);
        let mixed = [GatewayError, GatewayError, ServerError, GatewayError, GatewayError];
        assert_eq!(causes(&only_gateway, &mixed), []);
    }

    #[test]
    fn zero_turns_a_count_off() {
        let s = Settings { consecutive_gateway_errors: 0, ..Settings::default() };
        assert_eq!(causes(&s, &[GatewayError; 50]), []);
    }

    #[test]
    fn who_could_not_be_ejected_is_asked_about_again() {
        let s = Settings::default();
        assert_eq!(causes(&s, &[GatewayError; 10]).len(), 2);
    }

    #[test]
    fn it_returns_when_its_time_is_over_and_begins_anew() {
        let (s, now) = (Settings::default(), Instant::now());
        let mut tally = Tally::default();
        assert_eq!(tally.eject(&s, Cause::GatewayErrors, now), now + s.time);
        assert!(tally.is_ejected(now + s.time - TOOK));
        for _ in 0..50 {
            assert_eq!(tally.record(&s, GatewayError, TOOK, now + TOOK), None, "it is out already");
        }
        let back = now + s.time;
        assert!(!tally.is_ejected(back));
        let again: Vec<_> = (0..5).filter_map(|_| tally.record(&s, GatewayError, TOOK, back)).collect();
        assert_eq!(again, [Cause::GatewayErrors], "five new errors, none from before");
    }

    #[test]
    fn the_nth_ejection_lasts_n_times_as_long_up_to_the_longest() {
        let s = Settings { max_time: Duration::from_secs(100), ..Settings::default() };
        let (mut tally, mut now) = (Tally::default(), Instant::now());
        let mut lasted = Vec::new();
        for _ in 0..5 {
            let until = tally.eject(&s, Cause::GatewayErrors, now);
            lasted.push((until - now).as_secs());
            now = until;
        }
        assert_eq!(lasted, [30, 60, 90, 100, 100]);
    }

    #[test]
    fn an_endpoint_that_stays_well_is_forgiven() {
        let (s, now) = (Settings::default(), Instant::now());
        let mut tally = Tally::default();
        let first = tally.eject(&s, Cause::GatewayErrors, now);
        let second = tally.eject(&s, Cause::GatewayErrors, first);
        assert_eq!(second - first, s.time * 2);
        let later = second + s.time;
        assert_eq!(tally.eject(&s, Cause::GatewayErrors, later) - later, s.time * 2, "one of two forgiven");
        let much_later = later + s.time * 100;
        assert_eq!(tally.eject(&s, Cause::GatewayErrors, much_later) - much_later, s.time);
    }

    #[test]
    fn one_of_two_may_be_ejected_and_never_the_last() {
        let s = Settings { max_share: 0.1, ..Settings::default() };
        assert!(!may_eject(&s, 1, 0, 1));
        assert!(may_eject(&s, 2, 0, 2));
        assert!(!may_eject(&s, 2, 0, 1), "the other one fails its health checks");
        assert!(!may_eject(&s, 2, 1, 1));
        let all = Settings { max_share: 1.0, ..Settings::default() };
        assert!(may_eject(&all, 3, 1, 2));
        assert!(!may_eject(&all, 3, 2, 1));
    }

    #[test]
    fn a_share_of_zero_turns_ejection_off() {
        let s = Settings { max_share: 0.0, ..Settings::default() };
        assert!(!may_eject(&s, 10, 0, 10));
    }

    fn rated(good: u32, calls: u32) -> Sample {
        Sample { calls, good, time: TOOK * good }
    }

    fn success_rate() -> Settings {
        let compare = SuccessRate { deviations: 1.9, min_requests: 100, min_endpoints: 5 };
        Settings { success_rate: Some(compare), ..Settings::default() }
    }

    #[test]
    fn a_success_rate_far_below_the_mean_ejects() {
        let mut samples = vec![rated(990, 1000); 5];
        samples[3] = rated(500, 1000);
        assert_eq!(outliers(&success_rate(), &samples).as_slice(), [(3, Cause::SuccessRate)]);
    }

    #[test]
    fn equal_rates_eject_nobody_however_bad() {
        for good in [0, 1, 33, 333, 999, 1000] {
            assert!(outliers(&success_rate(), &[rated(good, 1000); 7]).is_empty(), "{good}");
        }
    }

    #[test]
    fn too_few_calls_or_endpoints_are_not_compared() {
        let mut samples = vec![rated(1000, 1000); 5];
        samples[0] = rated(0, 99);
        assert!(outliers(&success_rate(), &samples).is_empty());
        samples[0] = rated(0, 100);
        samples.pop();
        assert!(outliers(&success_rate(), &samples).is_empty());
    }

    fn latency(milliseconds: u64, good: u32) -> Sample {
        Sample { calls: good, good, time: Duration::from_millis(milliseconds) * good }
    }

    fn by_latency() -> Settings {
        let compare = SlowEndpoint { times_median: 3.0, min_requests: 100 };
        Settings { latency: Some(compare), ..Settings::default() }
    }

    #[test]
    fn a_latency_far_above_the_median_ejects_the_slowest_first() {
        let samples =
            [latency(10, 100), latency(200, 100), latency(12, 100), latency(31, 100), latency(8, 100)];
        assert_eq!(outliers(&by_latency(), &samples).as_slice(), [(1, Cause::Latency)]);
        let samples =
            [latency(10, 100), latency(40, 100), latency(12, 100), latency(90, 100), latency(8, 100)];
        assert_eq!(outliers(&by_latency(), &samples).as_slice(), [(3, Cause::Latency), (1, Cause::Latency)]);
    }

    #[test]
    fn of_two_the_slower_is_held_against_the_faster() {
        assert_eq!(
            outliers(&by_latency(), &[latency(40, 100), latency(10, 100)]).as_slice(),
            [(0, Cause::Latency)]
        );
        assert!(outliers(&by_latency(), &[latency(40, 100)]).is_empty());
    }

    #[test]
    fn fractions_of_a_millisecond_are_noise() {
        let fast = Sample { calls: 100, good: 100, time: Duration::from_micros(100) * 100 };
        let slow = Sample { time: Duration::from_micros(1_900) * 100, ..fast };
        assert!(outliers(&by_latency(), &[fast, fast, slow]).is_empty());
    }

    #[test]
    fn an_endpoint_that_fails_at_once_is_not_a_fast_one() {
        let failing = Sample { calls: 1000, good: 0, time: Duration::ZERO };
        let samples = [failing, failing, failing, latency(50, 100), latency(60, 100)];
        assert!(outliers(&by_latency(), &samples).is_empty());
    }

    proptest! {
        #[test]
        fn the_share_and_the_last_endpoint_are_respected_whatever_happens(
            count in 1usize..20, max_share in 0.0..1.0,
            steps in proptest::collection::vec((0usize..20, 0u64..20), 1..200),
        ) {
            let s = Settings { max_share, ..Settings::default() };
            let mut now = Instant::now();
            let mut all: Vec<Tally> = (0..count).map(|_| Tally::default()).collect();
            let mut ever = false;
            for (which, wait) in steps {
                now += Duration::from_secs(wait);
                let which = which % count;
                let out = all.iter().filter(|t| t.is_ejected(now)).count();
                let asked = (0..5).find_map(|_| all[which].record(&s, GatewayError, TOOK, now));
                if let Some(cause) = asked && may_eject(&s, count, out, count - out) {
                    all[which].eject(&s, cause, now);
                    ever = true;
                    let out = all.iter().filter(|t| t.is_ejected(now)).count();
                    prop_assert!(out < count);
                    prop_assert!(out == 1 || out as f64 <= max_share * count as f64 + 1e-6);
                }
            }
            prop_assert_eq!(ever, ever && count >= 2 && max_share > 0.0);
        }

        #[test]
        fn streaks_are_those_of_a_plain_list(
            outcomes in proptest::collection::vec(
                prop_oneof![Just(Success), Just(ServerError), Just(GatewayError), Just(Neutral)], 0..200),
            gateway in 0u32..6, server in 0u32..6,
        ) {
            let s = Settings {
                consecutive_gateway_errors: gateway, consecutive_server_errors: server, ..Settings::default()
            };
            let (mut tally, now) = (Tally::default(), Instant::now());
            let mut told: Vec<Outcome> = Vec::new();
            for outcome in outcomes {
                let cause = tally.record(&s, outcome, TOOK, now);
                if outcome == Neutral {
                    prop_assert_eq!(cause, None);
                    continue;
                }
                told.push(outcome);
                let streak = |of: &dyn Fn(Outcome) -> bool| {
                    told.iter().rev().take_while(|o| of(**o)).count() as u32
                };
                let (g, e) = (streak(&|o| o == GatewayError), streak(&|o| o != Success));
                let due = |count: u32, limit: u32| limit > 0 && count > 0 && count.is_multiple_of(limit);
                let expected = if due(g, gateway) { Some(Cause::GatewayErrors) }
                    else if due(e, server) { Some(Cause::ServerErrors) }
                    else { None };
                prop_assert_eq!(cause, expected);
                prop_assert_eq!(tally.in_a_row(), (g, e));
            }
        }

        #[test]
        fn most_endpoints_are_never_outliers_by_success_rate(
            rates in proptest::collection::vec(0u32..=1000, 5..40)
        ) {
            let samples: Vec<Sample> = rates.iter().map(|good| rated(*good, 1000)).collect();
            let found = outliers(&success_rate(), &samples);
            // Chebyshev: at 1.9 deviations less than 28 % can be out.
            prop_assert!((found.len() as f64) < 0.28 * samples.len() as f64);
            let worst = rates.iter().min();
            if let Some((first, _)) = found.first() {
                prop_assert_eq!(Some(&rates[*first]), worst);
            }
        }

        #[test]
        fn less_than_half_are_outliers_by_latency(ms in proptest::collection::vec(1u64..10_000, 2..40)) {
            let samples: Vec<Sample> = ms.iter().map(|ms| latency(*ms, 100)).collect();
            prop_assert!(outliers(&by_latency(), &samples).len() * 2 <= samples.len());
        }
    }
}
