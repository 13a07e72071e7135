//! An adaptive concurrency limit: as many calls at once as the application takes without growing slow.
//!
//! Latencies are gathered into windows. After each, the limit is multiplied by how much of the latency that is borne
//! (that without load, times a tolerance) the recent one uses up, at most one and at least a half, and gets the square
//! root of itself on top, as room for a queue in which the application can be kept busy. It grows only while it is used.
//!
//! What decides is the latency *without* load, and where limiters differ. Netflix lets a long average stand for it,
//! which drifts upwards under lasting overload and takes the limit along; Envoy lowers the limit every minute to measure
//! it, which turns calls away at a quiet time too. Here it is learned when it shows by itself: while the limit is not
//! used, and when the limit is down at its minimum. Only after half a minute at the limit, with calls slower than
//! borne, the limit is lowered for two windows to look again. What shows then is right or less wrong than before: at a
//! fraction of the calls the application is either not loaded, or less than what led to the old estimate. Under lasting
//! overload that costs a few tenths of a second in every thirty.

use std::time::{Duration, Instant};

/// Samples that make a window; fewer will do after [`LONGEST`].
const SAMPLES: usize = 10;
/// Samples that are kept of a window: the last ones.
const KEPT: usize = 128;
/// Windows are this long, or as two calls take, but never longer than [`LONGEST`].
const SHORTEST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(2);
/// Where an adaptive limit begins, if its bounds let it.
const BEGIN: f64 = 20.0;
/// How far the limit goes towards where it should be, in a window.
const STEP: f64 = 0.5;
/// How far the latency without load follows a window that shows it, and one that is better under load.
const LEARN: f64 = 0.2;
const LEARN_UNDER_LOAD: f64 = 0.1;
/// After so long at the limit it is lowered to look again.
const DOUBT: Duration = Duration::from_secs(30);

/// The limit and what it follows from.
#[derive(Clone, Debug)]
pub(crate) struct Gradient {
    min: f64,
    max: f64,
    tolerance: f64,
    limit: f64,
    /// Latency without load, in seconds.
    unloaded: Option<f64>,
    /// When `unloaded` was last seen to be right.
    sure_at: Option<Instant>,
    look: Option<Look>,
    window: Window,
}

/// The limit is lowered to see the latency without load.
#[derive(Clone, Copy, Debug)]
struct Look {
    /// The limit that comes back.
    before: f64,
    /// True once the calls of before are through, mostly.
    settled: bool,
}

#[derive(Clone, Debug, Default)]
struct Window {
    since: Option<Instant>,
    latencies: Vec<f64>,
    seen: usize,
    /// The most calls that were in flight.
    peak: u32,
    length: Duration,
}

impl Gradient {
    /// A limit between `min` and `max`, that bears `tolerance` times the latency without load.
    pub(crate) fn new(min: u32, max: u32, tolerance: f64) -> Self {
        let mut gradient = Self {
            min: 0.0,
            max: 0.0,
            tolerance,
            limit: BEGIN,
            unloaded: None,
            sure_at: None,
            look: None,
            window: Window::default(),
        };
        gradient.configure(min, max, tolerance);
        gradient
    }

    /// Other bounds; what was learned stays.
    pub(crate) fn configure(&mut self, min: u32, max: u32, tolerance: f64) {
        self.min = f64::from(min.max(1));
        self.max = f64::from(max.max(min).max(1));
        self.tolerance = tolerance.max(1.0);
        self.limit = self.bounded(self.limit);
    }

    /// Calls that may be in flight.
    pub(crate) fn limit(&self) -> u32 {
        let limit = match self.look {
            Some(_) => self.bounded(self.limit / (2.0 * self.tolerance)),
            None => self.limit,
        };
        // Within `min..=max`, which are u32.
        limit as u32
    }

    /// Whether this is longer than what is borne.
    pub(crate) fn is_slow(&self, latency: Duration) -> bool {
        self.unloaded.is_some_and(|unloaded| latency.as_secs_f64() > unloaded * self.tolerance)
    }

    /// A call took this long until its answer; `in_flight` calls were there, itself included.
    pub(crate) fn observe(&mut self, latency: Duration, in_flight: u32, now: Instant) {
        if let Some((recent, peak)) = self.window.add(latency, in_flight, now) {
            self.end_window(recent, peak, now);
            self.window.length = Duration::from_secs_f64(recent * 2.0).clamp(SHORTEST, LONGEST);
        }
    }

    fn end_window(&mut self, recent: f64, peak: u32, now: Instant) {
        let unloaded = *self.unloaded.get_or_insert(recent);
        if let Some(look) = self.look {
            if !look.settled {
                self.look = Some(Look { settled: true, ..look });
                return;
            }
            self.limit = self.bounded(look.before);
            self.look = None;
            self.unloaded = Some(recent);
            self.sure_at = Some(now);
            return;
        }
        let used = f64::from(peak) * 2.0 >= self.limit;
        let shows = !used || self.limit < self.min + 1.0;
        let learn = match (shows, recent < unloaded) {
            (true, _) => LEARN,
            (false, true) => LEARN_UNDER_LOAD,
            (false, false) => 0.0,
        };
        let unloaded = (recent - unloaded).mul_add(learn, unloaded);
        self.unloaded = Some(unloaded);
        let sure_at = *self.sure_at.get_or_insert(now);
        if shows {
            self.sure_at = Some(now);
        }
        if !used {
            return;
        }
        let share = (self.tolerance * unloaded / recent.max(1e-9)).clamp(0.5, 1.0);
        let aim = self.limit.mul_add(share, self.limit.sqrt());
        let saturated = f64::from(peak) + 1.0 > self.limit;
        if saturated && share < 1.0 && now.saturating_duration_since(sure_at) >= DOUBT {
            self.look = Some(Look { before: self.limit, settled: false });
            return;
        }
        self.limit = self.bounded((aim - self.limit).mul_add(STEP, self.limit));
    }

    fn bounded(&self, limit: f64) -> f64 {
        limit.clamp(self.min, self.max)
    }
}

impl Window {
    /// Adds a sample; gives the latency and the peak of the window if that ends it.
    fn add(&mut self, latency: Duration, in_flight: u32, now: Instant) -> Option<(f64, u32)> {
        let since = *self.since.get_or_insert(now);
        let latency = latency.as_secs_f64();
        if self.latencies.len() < KEPT {
            self.latencies.push(latency);
        } else {
            self.latencies[self.seen % KEPT] = latency;
        }
        self.seen += 1;
        self.peak = self.peak.max(in_flight);
        let age = now.saturating_duration_since(since);
        if age < self.length.max(SHORTEST) || (self.seen < SAMPLES && age < LONGEST) {
            return None;
        }
        let recent = middle(&mut self.latencies);
        let peak = self.peak;
        self.since = None;
        self.latencies.clear();
        self.seen = 0;
        self.peak = 0;
        Some((recent, peak))
    }
}

/// The mean without the tenth at either end: one call that waits for a minute is no sign of load, and neither are
/// health checks that are answered at once.
fn middle(latencies: &mut [f64]) -> f64 {
    latencies.sort_by(f64::total_cmp);
    let cut = latencies.len() / 10;
    let kept = &latencies[cut..latencies.len() - cut];
    kept.iter().sum::<f64>() / kept.len().max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// An application that serves so many calls at once, each in `service` seconds; more share what there is.
    struct Application {
        capacity: f64,
        service: f64,
    }

    impl Application {
        fn latency(&self, in_flight: u32) -> Duration {
            Duration::from_secs_f64(self.service * (f64::from(in_flight) / self.capacity).max(1.0))
        }

        /// Calls it for some seconds, always with as many at once as there are callers or as the limit lets through.
        fn run(&self, gradient: &mut Gradient, callers: u32, seconds: u64, now: &mut Instant) -> (u32, u32) {
            let end = *now + Duration::from_secs(seconds);
            let (mut least, mut most) = (u32::MAX, 0);
            while *now < end {
                let in_flight = gradient.limit().min(callers);
                let latency = self.latency(in_flight);
                *now += latency;
                for _ in 0..in_flight {
                    gradient.observe(latency, in_flight, *now);
                }
                (least, most) = (least.min(gradient.limit()), most.max(gradient.limit()));
            }
            (least, most)
        }
    }

    #[test]
    fn it_finds_what_the_application_takes_and_stays_there() {
        for (capacity, service) in [(8.0, 0.01), (50.0, 0.005), (200.0, 0.03)] {
            let (mut gradient, mut now) = (Gradient::new(4, 1000, 2.0), Instant::now());
            let application = Application { capacity, service };
            application.run(&mut gradient, 3, 5, &mut now);
            application.run(&mut gradient, 10_000, 20, &mut now);
            let (least, most) = application.run(&mut gradient, 10_000, 5, &mut now);
            let aim = 2.0 * capacity;
            assert!(f64::from(least) >= capacity, "{least} wastes some of {capacity}");
            assert!(f64::from(most) <= aim + 2.0 * aim.sqrt() + 2.0, "{most} is too much for {capacity}");
        }
    }

    #[test]
    fn it_does_not_grow_while_it_is_not_used() {
        let (mut gradient, mut now) = (Gradient::new(4, 1000, 2.0), Instant::now());
        Application { capacity: 100.0, service: 0.01 }.run(&mut gradient, 5, 60, &mut now);
        assert_eq!(gradient.limit(), BEGIN as u32);
    }

    #[test]
    fn overload_from_the_first_call_on_is_seen_through() {
        let (mut gradient, mut now) = (Gradient::new(2, 1000, 2.0), Instant::now());
        let application = Application { capacity: 5.0, service: 0.02 };
        application.run(&mut gradient, 10_000, 10, &mut now);
        assert!(gradient.limit() > 30, "what it saw first was four times the latency without load");
        application.run(&mut gradient, 10_000, 200, &mut now);
        let (_, most) = application.run(&mut gradient, 10_000, 60, &mut now);
        assert!(most <= 18, "{most}");
    }

    #[test]
    fn a_low_minimum_is_no_trap() {
        let (mut gradient, mut now) = (Gradient::new(1, 1000, 2.0), Instant::now());
        Application { capacity: 20.0, service: 0.01 }.run(&mut gradient, 10_000, 20, &mut now);
        let slower = Application { capacity: 20.0, service: 0.1 };
        slower.run(&mut gradient, 10_000, 90, &mut now);
        let (_, most) = slower.run(&mut gradient, 10_000, 10, &mut now);
        assert!(most >= 20, "{most}");
    }

    #[test]
    fn lasting_overload_does_not_take_the_limit_along() {
        let (mut gradient, mut now) = (Gradient::new(4, 1000, 2.0), Instant::now());
        let application = Application { capacity: 10.0, service: 0.01 };
        application.run(&mut gradient, 3, 5, &mut now);
        let (_, most) = application.run(&mut gradient, 10_000, 1800, &mut now);
        assert!(most <= 35, "{most}");
    }

    #[test]
    fn an_application_that_grew_slower_for_good_gets_its_calls_again() {
        let (mut gradient, mut now) = (Gradient::new(4, 1000, 2.0), Instant::now());
        Application { capacity: 20.0, service: 0.01 }.run(&mut gradient, 10_000, 20, &mut now);
        let slower = Application { capacity: 20.0, service: 0.1 };
        slower.run(&mut gradient, 10_000, 60, &mut now);
        let (_, most) = slower.run(&mut gradient, 10_000, 10, &mut now);
        assert!(most >= 20, "{most}");
    }

    #[test]
    fn an_application_that_hangs_gets_as_few_as_policy_lets() {
        let (mut gradient, mut now) = (Gradient::new(4, 1000, 2.0), Instant::now());
        Application { capacity: 50.0, service: 0.01 }.run(&mut gradient, 10_000, 10, &mut now);
        for _ in 0..12 {
            now += Duration::from_secs(2);
            for _ in 0..10 {
                gradient.observe(Duration::from_secs(5), gradient.limit(), now);
            }
        }
        assert!(gradient.limit() <= 6, "{}", gradient.limit());
    }

    #[test]
    fn one_slow_call_among_many_is_no_load() {
        let mut samples: Vec<f64> = vec![0.01; 20];
        samples[7] = 60.0;
        assert!((middle(&mut samples) - 0.01).abs() < 1e-9);
        assert!((middle(&mut [0.5]) - 0.5).abs() < 1e-9);
    }

    #[test]
    fn other_bounds_take_effect_at_once_and_nothing_is_forgotten() {
        let (mut gradient, mut now) = (Gradient::new(4, 1000, 2.0), Instant::now());
        Application { capacity: 50.0, service: 0.01 }.run(&mut gradient, 10_000, 20, &mut now);
        let unloaded = gradient.unloaded;
        gradient.configure(4, 30, 2.0);
        assert_eq!((gradient.limit(), gradient.unloaded), (30, unloaded));
        gradient.configure(60, 80, 2.0);
        assert_eq!(gradient.limit(), 60);
    }

    proptest! {
        #[test]
        fn it_never_leaves_its_bounds(
            min in 1_u32..50, more in 0_u32..500, tolerance in 1.1_f64..10.0,
            samples in proptest::collection::vec((0_u64..5_000_000, 0_u32..2000, 0_u64..500_000), 1..2000),
        ) {
            let (mut gradient, mut now) = (Gradient::new(min, min + more, tolerance), Instant::now());
            for (latency, in_flight, step) in samples {
                now += Duration::from_micros(step);
                gradient.observe(Duration::from_micros(latency), in_flight, now);
                prop_assert!((min..=min + more).contains(&gradient.limit()));
                prop_assert!(gradient.window.latencies.len() <= KEPT);
            }
        }
    }
}
