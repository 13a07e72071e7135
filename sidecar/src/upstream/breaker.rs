//! The circuit breaker: closed lets calls pass, open refuses them, half-open lets one at a time probe.

use super::sliding::Sliding;
pub(crate) use crate::telemetry::metrics::BreakerPosition as Position;
use std::time::{Duration, Instant};
use weft_config::snapshot::Breaker as Settings;

/// One breaker's state. Its settings come with every question, so that a change of policy takes effect at once and
/// loses nothing.
#[derive(Debug)]
pub(crate) struct Breaker {
    state: State,
    /// Calls and failures of the window; counted while it is closed.
    calls: Sliding,
    /// Failures since the last success.
    in_a_row: u32,
    /// The number of the newest probe: the verdict of an older one, which took too long, is nobody's.
    newest: Ticket,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Closed,
    Open {
        until: Instant,
        lasts: Duration,
    },
    HalfOpen {
        /// How long it was open before.
        lasts: Duration,
        /// Good probes so far, all in a row: one that fails opens it.
        good: u32,
        /// Since when a probe is under way.
        probing: Option<Instant>,
    },
}

/// What a probe is known by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ticket(u32);

/// Whether a call passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Admit {
    /// It does.
    Pass,
    /// It does, and what comes of it decides. Every probe must end in [`Breaker::record`] or [`Breaker::release`]; for
    /// one that does neither, another takes its place after `max_open_for`.
    Probe(Ticket),
    /// It does not.
    Refuse {
        /// When it is worth asking again; zero if that is any moment now.
        retry_after: Duration,
    },
}

impl Breaker {
    /// A closed breaker that saw no call.
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            state: State::Closed,
            calls: Sliding::new(Duration::from_secs(10), now),
            in_a_row: 0,
            newest: Ticket::default(),
        }
    }

    /// Whether a call passes at `now`.
    pub(crate) fn admit(&mut self, settings: &Settings, now: Instant) -> Admit {
        match &mut self.state {
            State::Closed => Admit::Pass,
            State::Open { until, .. } if now < *until => {
                Admit::Refuse { retry_after: until.duration_since(now) }
            }
            State::Open { lasts, .. } => {
                self.state = State::HalfOpen { lasts: *lasts, good: 0, probing: Some(now) };
                self.probe()
            }
            State::HalfOpen { probing: Some(since), .. } if now < *since + settings.max_open_for => {
                Admit::Refuse { retry_after: Duration::ZERO }
            }
            State::HalfOpen { probing, .. } => {
                *probing = Some(now);
                self.probe()
            }
        }
    }

    fn probe(&mut self) -> Admit {
        self.newest = Ticket(self.newest.0.wrapping_add(1));
        Admit::Probe(self.newest)
    }

    /// Takes in how a call ended: `probe` as [`Breaker::admit`] gave it, `ok` and `took` as it went. Gives the new
    /// position if that moved it.
    pub(crate) fn record(
        &mut self,
        settings: &Settings,
        probe: Option<Ticket>,
        ok: bool,
        took: Duration,
        now: Instant,
    ) -> Option<Position> {
        let ok = ok && settings.slow_call.is_none_or(|slow| took <= slow);
        match &mut self.state {
            State::Closed => {
                self.in_a_row = if ok { 0 } else { self.in_a_row.saturating_add(1) };
                self.calls.add([1, u32::from(!ok)], settings.window, now);
                // A success is no reason to open it, even if it is what makes up the minimum.
                (!ok && self.too_bad(settings, now)).then(|| self.open(settings.open_for, settings, now))
            }
            // Let in before it opened, or a probe that another has replaced: says nothing about now.
            State::Open { .. } => None,
            State::HalfOpen { lasts, good, probing } => {
                if probe != Some(self.newest) || probing.is_none() {
                    return None;
                }
                *probing = None;
                if !ok {
                    let lasts = lasts.saturating_mul(2);
                    return Some(self.open(lasts, settings, now));
                }
                *good += 1;
                if *good < settings.probes {
                    return None;
                }
                self.state = State::Closed;
                self.in_a_row = 0;
                self.calls.clear();
                Some(Position::Closed)
            }
        }
    }

    /// A call ended without a verdict: if it was the probe, the next may take its place.
    pub(crate) fn release(&mut self, probe: Option<Ticket>) {
        if let State::HalfOpen { probing, .. } = &mut self.state
            && probe == Some(self.newest)
        {
            *probing = None;
        }
    }

    fn too_bad(&mut self, settings: &Settings, now: Instant) -> bool {
        if settings.consecutive_failures.is_some_and(|most| self.in_a_row >= most) {
            return true;
        }
        let [calls, failures] = self.calls.sums(settings.window, now);
        calls >= settings.min_requests && f64::from(failures) >= settings.error_share * f64::from(calls)
    }

    fn open(&mut self, lasts: Duration, settings: &Settings, now: Instant) -> Position {
        let lasts = lasts.min(settings.max_open_for);
        self.state = State::Open { until: now + lasts, lasts };
        Position::Open
    }

    /// Where it stands. One whose time is over is still open until somebody asks to pass.
    pub(crate) fn position(&self) -> Position {
        match self.state {
            State::Closed => Position::Closed,
            State::Open { .. } => Position::Open,
            State::HalfOpen { .. } => Position::HalfOpen,
        }
    }

    /// Until when it lets nobody pass, as far as is known; `None` if it does let somebody.
    pub(crate) fn refuses_until(&self, settings: &Settings) -> Option<Instant> {
        match self.state {
            State::Open { until, .. } => Some(until),
            State::HalfOpen { probing, .. } => probing.map(|since| since + settings.max_open_for),
            State::Closed => None,
        }
    }

    /// Calls and failures in the window.
    pub(crate) fn counted(&mut self, settings: &Settings, now: Instant) -> [u32; 2] {
        self.calls.sums(settings.window, now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FAST: Duration = Duration::from_millis(1);

    fn settings() -> Settings {
        Settings {
            service: true,
            endpoint: true,
            error_share: 0.5,
            min_requests: 10,
            window: Duration::from_secs(10),
            consecutive_failures: None,
            open_for: Duration::from_secs(1),
            max_open_for: Duration::from_secs(8),
            probes: 2,
            slow_call: None,
        }
    }

    fn record(breaker: &mut Breaker, settings: &Settings, oks: &[bool], now: Instant) {
        for ok in oks {
            breaker.record(settings, None, *ok, FAST, now);
        }
    }

    fn opened(settings: &Settings, now: Instant) -> Breaker {
        let mut breaker = Breaker::new(now);
        record(&mut breaker, settings, &[false; 10], now);
        assert_eq!(breaker.position(), Position::Open);
        breaker
    }

    fn probe(breaker: &mut Breaker, settings: &Settings, now: Instant) -> Ticket {
        match breaker.admit(settings, now) {
            Admit::Probe(ticket) => ticket,
            other => panic!("expected a probe: {other:?}"),
        }
    }

    #[test]
    fn too_few_calls_never_open_it() {
        let (s, now) = (settings(), Instant::now());
        let mut breaker = Breaker::new(now);
        record(&mut breaker, &s, &[false; 9], now);
        assert_eq!(breaker.admit(&s, now), Admit::Pass);
    }

    #[test]
    fn the_share_of_failures_opens_it() {
        let (s, now) = (settings(), Instant::now());
        let mut breaker = Breaker::new(now);
        record(&mut breaker, &s, &[true; 6], now);
        record(&mut breaker, &s, &[false; 5], now);
        assert_eq!(breaker.position(), Position::Closed, "5 of 11 are not half");
        assert_eq!(breaker.record(&s, None, false, FAST, now), Some(Position::Open));
        assert_eq!(breaker.admit(&s, now), Admit::Refuse { retry_after: s.open_for });
    }

    #[test]
    fn a_success_never_opens_it() {
        let (s, now) = (settings(), Instant::now());
        let mut breaker = Breaker::new(now);
        record(&mut breaker, &s, &[false; 9], now);
        record(&mut breaker, &s, &[true], now);
        assert_eq!(breaker.position(), Position::Closed);
        record(&mut breaker, &s, &[false], now);
        assert_eq!(breaker.position(), Position::Open);
    }

    #[test]
    fn failures_of_long_ago_do_not_count() {
        let (s, now) = (settings(), Instant::now());
        let mut breaker = Breaker::new(now);
        record(&mut breaker, &s, &[false; 9], now);
        record(&mut breaker, &s, &[false; 9], now + s.window * 2);
        assert_eq!(breaker.position(), Position::Closed);
    }

    #[test]
    fn failures_in_a_row_open_it_whatever_their_share() {
        let s = Settings { consecutive_failures: Some(3), ..settings() };
        let now = Instant::now();
        let mut breaker = Breaker::new(now);
        record(&mut breaker, &s, &[true; 100], now);
        record(&mut breaker, &s, &[false, false, true, false, false], now);
        assert_eq!(breaker.position(), Position::Closed);
        record(&mut breaker, &s, &[false], now);
        assert_eq!(breaker.position(), Position::Open);
    }

    #[test]
    fn slow_calls_are_failures() {
        let s = Settings { slow_call: Some(Duration::from_millis(100)), ..settings() };
        let now = Instant::now();
        let mut breaker = Breaker::new(now);
        for _ in 0..10 {
            breaker.record(&s, None, true, Duration::from_millis(101), now);
        }
        assert_eq!(breaker.position(), Position::Open);
    }

    #[test]
    fn one_call_at_a_time_probes() {
        let (s, now) = (settings(), Instant::now());
        let mut breaker = opened(&s, now);
        let later = now + s.open_for;
        let ticket = probe(&mut breaker, &s, later);
        assert_eq!(breaker.position(), Position::HalfOpen);
        assert!(matches!(breaker.admit(&s, later), Admit::Refuse { .. }));
        assert_eq!(breaker.record(&s, Some(ticket), true, FAST, later), None);
        probe(&mut breaker, &s, later);
    }

    #[test]
    fn good_probes_in_a_row_close_it_and_the_past_is_forgotten() {
        let (s, now) = (settings(), Instant::now());
        let mut breaker = opened(&s, now);
        let later = now + s.open_for;
        let first = probe(&mut breaker, &s, later);
        assert_eq!(breaker.record(&s, Some(first), true, FAST, later), None);
        let second = probe(&mut breaker, &s, later);
        assert_eq!(breaker.record(&s, Some(second), true, FAST, later), Some(Position::Closed));
        record(&mut breaker, &s, &[false; 9], later);
        assert_eq!(breaker.admit(&s, later), Admit::Pass);
    }

    #[test]
    fn a_probe_that_fails_doubles_the_open_time_up_to_the_longest() {
        let (s, mut now) = (settings(), Instant::now());
        let mut breaker = opened(&s, now);
        let mut lasted = Vec::new();
        for _ in 0..5 {
            let Admit::Refuse { retry_after } = breaker.admit(&s, now) else { panic!("it is open") };
            lasted.push(retry_after.as_secs());
            now += retry_after;
            let ticket = probe(&mut breaker, &s, now);
            assert_eq!(breaker.record(&s, Some(ticket), false, FAST, now), Some(Position::Open));
        }
        assert_eq!(lasted, [1, 2, 4, 8, 8]);
    }

    #[test]
    fn a_good_probe_does_not_shorten_the_next_open_time() {
        let (s, now) = (settings(), Instant::now());
        let mut breaker = opened(&s, now);
        let later = now + s.open_for;
        let good = probe(&mut breaker, &s, later);
        breaker.record(&s, Some(good), true, FAST, later);
        let bad = probe(&mut breaker, &s, later);
        breaker.record(&s, Some(bad), false, FAST, later);
        assert_eq!(breaker.admit(&s, later), Admit::Refuse { retry_after: s.open_for * 2 });
    }

    #[test]
    fn a_probe_without_a_verdict_makes_room_for_the_next() {
        let (s, now) = (settings(), Instant::now());
        let mut breaker = opened(&s, now);
        let later = now + s.open_for;
        let ticket = probe(&mut breaker, &s, later);
        breaker.release(Some(ticket));
        probe(&mut breaker, &s, later);
    }

    #[test]
    fn a_probe_that_never_ends_is_replaced_and_says_nothing_any_more() {
        let (s, now) = (settings(), Instant::now());
        let mut breaker = opened(&s, now);
        let later = now + s.open_for;
        let lost = probe(&mut breaker, &s, later);
        let much_later = later + s.max_open_for;
        let next = probe(&mut breaker, &s, much_later);
        assert_eq!(breaker.record(&s, Some(lost), false, FAST, much_later), None);
        breaker.release(Some(lost));
        assert!(matches!(breaker.admit(&s, much_later), Admit::Refuse { .. }), "`next` is under way");
        assert_eq!(breaker.record(&s, Some(next), false, FAST, much_later), Some(Position::Open));
    }

    #[test]
    fn calls_let_in_before_it_opened_say_nothing() {
        let (s, now) = (settings(), Instant::now());
        let mut breaker = opened(&s, now);
        record(&mut breaker, &s, &[true; 50], now);
        assert_eq!(breaker.position(), Position::Open);
        let later = now + s.open_for;
        let ticket = probe(&mut breaker, &s, later);
        record(&mut breaker, &s, &[true, false], later);
        assert_eq!(breaker.position(), Position::HalfOpen);
        assert_eq!(breaker.record(&s, Some(ticket), true, FAST, later), None);
    }

    #[test]
    fn changed_settings_keep_the_state() {
        let (s, now) = (settings(), Instant::now());
        let mut breaker = Breaker::new(now);
        record(&mut breaker, &s, &[false; 9], now);
        let stricter = Settings { min_requests: 5, window: Duration::from_secs(20), ..settings() };
        record(&mut breaker, &stricter, &[false], now);
        assert_eq!(breaker.position(), Position::Open, "nine failures were remembered");
        let one_probe = Settings { probes: 1, ..settings() };
        let later = now + s.open_for;
        let ticket = probe(&mut breaker, &one_probe, later);
        assert_eq!(breaker.record(&one_probe, Some(ticket), true, FAST, later), Some(Position::Closed));
    }

    /// What a breaker is, said another way: every call is remembered for as long as it can count.
    #[derive(Debug)]
    struct Model {
        calls: Vec<(u128, bool)>,
        in_a_row: u32,
        open_until: Option<Instant>,
        /// How long it was open the last time.
        lasts: Duration,
        /// Good probes so far, and the number of calls let in when the probe under way began.
        half: Option<(u32, Option<usize>)>,
    }

    #[derive(Clone, Debug)]
    enum Step {
        Wait(u64),
        Call,
        End { which: usize, ok: bool, verdict: bool },
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            2 => (0u64..1_500).prop_map(Step::Wait),
            5 => Just(Step::Call),
            5 => (0usize..8, proptest::bool::weighted(0.4), proptest::bool::weighted(0.9))
                .prop_map(|(which, ok, verdict)| Step::End { which, ok, verdict }),
        ];
        proptest::collection::vec(step, 1..400)
    }

    proptest! {
        #[test]
        fn it_does_what_the_model_does(
            steps in steps(), in_a_row in proptest::option::of(2u32..6), probes in 1u32..4, min_requests in 1u32..8,
        ) {
            let s = Settings {
                consecutive_failures: in_a_row, probes, min_requests,
                // No probe is ever replaced in here.
                max_open_for: Duration::from_secs(100_000),
                ..settings()
            };
            let start = Instant::now();
            let width = s.window.as_nanos() / 10;
            let mut now = start;
            let mut breaker = Breaker::new(start);
            let mut model = Model {
                calls: Vec::new(), in_a_row: 0, open_until: None, lasts: Duration::ZERO, half: None,
            };
            let mut under_way: Vec<(usize, Option<Ticket>)> = Vec::new();
            let mut number = 0;
            for step in steps {
                let bucket = (now - start).as_nanos() / width;
                match step {
                    Step::Wait(ms) => now += Duration::from_millis(ms),
                    Step::Call => {
                        number += 1;
                        let expected = match (model.open_until, &mut model.half) {
                            (Some(until), _) if now < until => None,
                            (Some(_), _) => {
                                (model.open_until, model.half) = (None, Some((0, Some(number))));
                                Some(true)
                            }
                            (None, Some((_, Some(_)))) => None,
                            (None, Some((_, probe))) => {
                                *probe = Some(number);
                                Some(true)
                            }
                            (None, None) => Some(false),
                        };
                        match breaker.admit(&s, now) {
                            Admit::Refuse { .. } => prop_assert_eq!(expected, None),
                            Admit::Pass => {
                                prop_assert_eq!(expected, Some(false));
                                under_way.push((number, None));
                            }
                            Admit::Probe(ticket) => {
                                prop_assert_eq!(expected, Some(true));
                                under_way.push((number, Some(ticket)));
                            }
                        }
                    }
                    Step::End { which, ok, verdict } => {
                        if under_way.is_empty() {
                            continue;
                        }
                        let (call, ticket) = under_way.swap_remove(which % under_way.len());
                        let is_probe = matches!(model.half, Some((_, Some(probe))) if probe == call);
                        if !verdict {
                            breaker.release(ticket);
                            if is_probe && let Some((_, probe)) = &mut model.half {
                                *probe = None;
                            }
                            continue;
                        }
                        breaker.record(&s, ticket, ok, FAST, now);
                        if let Some((good, probe)) = &mut model.half {
                            if is_probe {
                                *probe = None;
                                if ok {
                                    *good += 1;
                                    if *good >= s.probes {
                                        (model.half, model.in_a_row) = (None, 0);
                                        model.calls.clear();
                                    }
                                } else {
                                    model.lasts = (model.lasts * 2).min(s.max_open_for);
                                    (model.half, model.open_until) = (None, Some(now + model.lasts));
                                }
                            }
                        } else if model.open_until.is_none() {
                            model.calls.push((bucket, ok));
                            model.in_a_row = if ok { 0 } else { model.in_a_row + 1 };
                            let counted: Vec<bool> =
                                model.calls.iter().filter(|(b, _)| b + 10 >= bucket).map(|(_, ok)| *ok).collect();
                            let bad = counted.iter().filter(|ok| !**ok).count() as f64;
                            let share = counted.len() >= s.min_requests as usize
                                && bad >= s.error_share * counted.len() as f64;
                            let row = s.consecutive_failures.is_some_and(|most| model.in_a_row >= most);
                            if !ok && (share || row) {
                                (model.lasts, model.open_until) = (s.open_for, Some(now + s.open_for));
                            }
                        }
                    }
                }
                let position = match (model.open_until, model.half) {
                    (Some(_), _) => Position::Open,
                    (_, Some(_)) => Position::HalfOpen,
                    _ => Position::Closed,
                };
                prop_assert_eq!(breaker.position(), position);
            }
        }
    }
}
