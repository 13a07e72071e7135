//! Rules of the queue, alone and with tasks that wait in it.

use super::*;
use proptest::prelude::*;
use weft_config::snapshot::Only;

fn policy(limit: ConcurrencyLimit, queue: usize) -> Concurrency {
    Concurrency { limit, queue, queue_timeout: Duration::from_millis(100), priorities: Arc::new([]) }
}

fn core(limit: u32, queue: usize) -> Core {
    let mut core = Core::new();
    core.configure(&policy(ConcurrencyLimit::Fixed(limit), queue));
    core
}

fn waits(core: &mut Core, priority: u8) -> Place {
    match core.enter(priority).0 {
        Entered::Wait(place) => place,
        other => panic!("{other:?}"),
    }
}

fn turn(core: &mut Core, place: Place) -> Turn {
    core.turn(place, Waker::noop())
}

#[test]
fn calls_go_until_the_limit_then_wait_then_are_turned_away() {
    let mut core = core(2, 1);
    assert_eq!(core.enter(50).0, Entered::Go);
    assert_eq!(core.enter(50).0, Entered::Go);
    let place = waits(&mut core, 50);
    assert_eq!(core.enter(50).0, Entered::Full);
    assert_eq!(turn(&mut core, place), Turn::NotYet);
    assert_eq!(core.end().len(), 1);
    assert_eq!(turn(&mut core, place), Turn::Go);
    assert_eq!(core.show(), (Some(2), 2, 0));
}

#[test]
fn the_highest_priority_goes_first_and_then_the_oldest() {
    let mut core = core(1, 10);
    core.enter(50);
    let places: Vec<_> = [50, 10, 90, 50, 90].map(|priority| waits(&mut core, priority)).into();
    for expected in [2, 4, 0, 3, 1] {
        core.end();
        let going = places.iter().position(|place| core.called.contains(place));
        assert_eq!(going, Some(expected));
        assert_eq!(turn(&mut core, places[expected]), Turn::Go);
    }
}

#[test]
fn who_is_more_important_displaces_the_youngest_of_the_least_important() {
    let mut core = core(1, 3);
    core.enter(0);
    let [old, young, middle] = [10, 10, 20].map(|priority| waits(&mut core, priority));
    let (entered, woken) = core.enter(30);
    assert!(matches!(entered, Entered::Wait(_)));
    assert_eq!(woken.len(), 1, "who is displaced hears of it");
    assert_eq!(turn(&mut core, young), Turn::Displaced);
    assert_eq!((turn(&mut core, old), turn(&mut core, middle)), (Turn::NotYet, Turn::NotYet));
    assert_eq!(core.enter(10).0, Entered::Full, "the same priority displaces nobody");
    assert_eq!(core.enter(5).0, Entered::Full);
}

#[test]
fn a_place_that_nobody_takes_goes_to_the_next() {
    let mut core = core(1, 10);
    core.enter(50);
    let [first, second] = [50, 50].map(|priority| waits(&mut core, priority));
    core.end();
    assert_eq!(core.leave(first).len(), 1, "called up, but gone");
    assert_eq!(turn(&mut core, second), Turn::Go);
    core.end();
    assert_eq!(core.show(), (Some(1), 0, 0));
}

#[test]
fn without_a_queue_everything_beyond_the_limit_is_turned_away() {
    let mut core = core(1, 0);
    core.enter(50);
    assert_eq!(core.enter(100).0, Entered::Full);
}

#[test]
fn without_a_limit_everything_goes() {
    let mut core = Core::new();
    core.configure(&policy(ConcurrencyLimit::None, 0));
    for _ in 0..10_000 {
        assert_eq!(core.enter(0).0, Entered::Go);
    }
    assert_eq!(core.show().0, None);
}

#[test]
fn a_new_policy_takes_effect_on_those_who_wait() {
    let mut core = core(1, 10);
    core.enter(50);
    let places = [50, 50, 50].map(|priority| waits(&mut core, priority));
    assert_eq!(core.configure(&policy(ConcurrencyLimit::Fixed(3), 0)).len(), 2);
    assert_eq!(places.map(|place| turn(&mut core, place)), [Turn::Go, Turn::Go, Turn::NotYet]);
    assert_eq!(core.configure(&policy(ConcurrencyLimit::None, 0)).len(), 1);
    // Fewer than are there already: nobody is thrown out, and nobody comes in until enough have gone.
    core.configure(&policy(ConcurrencyLimit::Fixed(1), 10));
    let late = waits(&mut core, 50);
    assert_eq!(turn(&mut core, places[2]), Turn::Go);
    for _ in 0..3 {
        assert_eq!(turn(&mut core, late), Turn::NotYet);
        core.end();
    }
    core.end();
    assert_eq!(turn(&mut core, late), Turn::Go);
}

#[test]
fn an_adaptive_limit_lets_more_go_when_the_application_can_take_them() {
    let mut core = Core::new();
    core.configure(&policy(ConcurrencyLimit::Adaptive { min: 4, max: 100, tolerance: 2.0 }, 1000));
    while core.enter(50).0 == Entered::Go {}
    let (before, mut at) = (core.limit, Instant::now());
    for _ in 0..10 {
        at += Duration::from_millis(200);
        for _ in 0..20 {
            core.observe(Duration::from_millis(5), at, true);
            core.end();
            core.enter(50);
        }
    }
    assert!(core.limit > before && core.in_flight <= core.limit, "{before} {}", core.limit);
}

#[test]
fn the_first_priority_that_matches_holds() {
    let path = |path: &str| Only { paths: [path.into()].into(), ..Only::default() };
    let mut policy = policy(ConcurrencyLimit::Fixed(1), 0);
    policy.priorities = [(path("/health"), 100), (path("/"), 10)].into();
    let of = |policy: &Concurrency, path: &str| priority(policy, &Method::GET, path, &HeaderMap::new());
    assert_eq!((of(&policy, "/health/live"), of(&policy, "/browse")), (100, 10));
    policy.priorities = Arc::new([]);
    assert_eq!(of(&policy, "/browse"), 50);
}

/// What a queue does, in the plainest words.
#[derive(Default)]
struct Model {
    going: Vec<u64>,
    /// Priority and number.
    waiting: Vec<(u8, u64)>,
}

impl Model {
    fn fill(&mut self, limit: u32) {
        while self.going.len() < limit as usize && !self.waiting.is_empty() {
            let highest = self.waiting.iter().map(|(priority, _)| *priority).max();
            let next = self.waiting.iter().position(|(priority, _)| Some(*priority) == highest);
            let (_, number) = self.waiting.remove(next.expect("there is one"));
            self.going.push(number);
        }
    }
}

proptest! {
    /// Calls come, go and give up at random; who goes, waits and is displaced is as the model says.
    #[test]
    fn the_queue_does_what_its_model_does(
        limit in 1_u32..5, queue in 0_usize..6,
        steps in proptest::collection::vec((0_u8..10, 0_u8..4, 0_usize..100), 1..300),
    ) {
        let (mut core, mut model) = (core(limit, queue), Model::default());
        let mut places: HashMap<u64, Place> = HashMap::new();
        let mut number = 0;
        for (step, priority, which) in steps {
            match step {
                0..=5 => {
                    number += 1;
                    let entered = core.enter(priority).0;
                    if model.going.len() < limit as usize {
                        prop_assert_eq!(entered, Entered::Go);
                        model.going.push(number);
                        continue;
                    }
                    if model.waiting.len() >= queue {
                        let lowest = model.waiting.iter().map(|(priority, _)| *priority).min();
                        if lowest.is_none_or(|lowest| lowest >= priority) {
                            prop_assert_eq!(entered, Entered::Full);
                            continue;
                        }
                        let last = model.waiting.iter().rposition(|(priority, _)| Some(*priority) == lowest);
                        let (_, displaced) = model.waiting.remove(last.expect("there is one"));
                        let place = places.remove(&displaced).expect("known");
                        prop_assert_eq!(turn(&mut core, place), Turn::Displaced);
                    }
                    let Entered::Wait(place) = entered else { panic!("{entered:?}") };
                    places.insert(number, place);
                    model.waiting.push((priority, number));
                }
                6..=8 if !model.going.is_empty() => {
                    let gone = model.going.remove(which % model.going.len());
                    match places.remove(&gone) {
                        // Called up and not noticed yet: it gives up, which must come to the same.
                        Some(place) if core.called.contains(&place) => core.leave(place),
                        _ => core.end(),
                    };
                    model.fill(limit);
                }
                9 if !model.waiting.is_empty() => {
                    let (_, gone) = model.waiting.remove(which % model.waiting.len());
                    core.leave(places.remove(&gone).expect("known"));
                }
                _ => {}
            }
            prop_assert_eq!(core.show(), (Some(limit), model.going.len() as u32, model.waiting.len()));
            for (_, number) in &model.waiting {
                prop_assert_eq!(turn(&mut core, places[number]), Turn::NotYet);
            }
            if which % 2 == 0 {
                // Those called up notice, sometimes.
                for number in &model.going {
                    if let Some(place) = places.remove(number) {
                        prop_assert_eq!(turn(&mut core, place), Turn::Go);
                    }
                }
            }
        }
    }
}

fn limiter(limit: u32, queue: usize) -> (Arc<Metrics>, Arc<Limiter>) {
    let metrics = Metrics::new(1);
    let limiters = Limiters::new(metrics.clone());
    let service = ServiceName::new("shop", "product");
    let limiter = limiters.resolve(&service, 8080, &policy(ConcurrencyLimit::Fixed(limit), queue));
    (metrics, limiter)
}

fn shed(metrics: &Metrics, reason: &str) -> bool {
    let text = String::from_utf8(metrics.render()).expect("UTF-8");
    text.contains(&format!("weft_shed_total{{service=\"shop/product\",reason=\"{reason}\"}} 1\n"))
}

#[tokio::test(start_paused = true)]
async fn a_call_waits_for_its_turn_and_no_longer_than_policy_says() {
    let (metrics, limiter) = limiter(1, 5);
    let permit = limiter.acquire(50).await.expect("goes");
    let waiting = tokio::spawn({
        let limiter = limiter.clone();
        async move { limiter.acquire(50).await.map(drop) }
    });
    tokio::time::sleep(Duration::from_millis(50)).await;
    drop(permit);
    waiting.await.unwrap().expect("its turn came");
    let _permit = limiter.acquire(50).await.expect("goes");
    let start = tokio::time::Instant::now();
    let error = limiter.acquire(50).await.err().expect("too long");
    assert_eq!(start.elapsed(), Duration::from_millis(100));
    assert_eq!((error.kind, error.status().as_u16(), error.grpc_status()), (Kind::Shed, 503, 14));
    assert_eq!(error.headers.expect("fields")["retry-after"], "1");
    assert!(shed(&metrics, "timeout"));
}

#[tokio::test(start_paused = true)]
async fn who_is_displaced_hears_of_it_at_once() {
    let (metrics, limiter) = limiter(1, 1);
    let _permit = limiter.acquire(50).await.expect("goes");
    let start = tokio::time::Instant::now();
    let low = tokio::spawn({
        let limiter = limiter.clone();
        async move { limiter.acquire(10).await.map(drop) }
    });
    tokio::task::yield_now().await;
    assert_eq!(limiter.acquire(10).await.err().map(|e| e.kind), Some(Kind::Shed), "the queue is full");
    assert!(shed(&metrics, "queue_full"));
    let high = tokio::spawn({
        let limiter = limiter.clone();
        async move { limiter.acquire(90).await.map(drop) }
    });
    assert_eq!(low.await.unwrap().expect_err("displaced").kind, Kind::Shed);
    assert_eq!(start.elapsed(), Duration::ZERO);
    assert!(shed(&metrics, "displaced"));
    high.abort();
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_goes_away_leaves_the_queue() {
    let (metrics, limiter) = limiter(1, 1);
    let permit = limiter.acquire(50).await.expect("goes");
    let waiting = tokio::spawn({
        let limiter = limiter.clone();
        async move { limiter.acquire(50).await.map(drop) }
    });
    tokio::task::yield_now().await;
    waiting.abort();
    assert!(waiting.await.is_err());
    let text = String::from_utf8(metrics.render()).expect("UTF-8");
    assert!(text.contains("weft_concurrency_queued{service=\"shop/product\"} 0\n"), "{text}");
    assert!(text.contains("weft_concurrency_in_flight{service=\"shop/product\"} 1\n"), "{text}");
    drop(permit);
    drop(limiter.acquire(50).await.expect("the place is free"));
}

#[test]
fn turns_come_across_threads() {
    let (_metrics, limiter) = limiter(2, 1000);
    limiter.with(|core| {
        core.queue_timeout = Duration::from_secs(60);
        ((), Woken::new())
    });
    let most = std::sync::atomic::AtomicU32::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
                runtime.block_on(async {
                    for n in 0..500 {
                        let permit = limiter.acquire(n as u8 % 100).await.expect("within a minute");
                        most.fetch_max(limiter.with(|core| (core.in_flight, Woken::new())), Relaxed);
                        tokio::task::yield_now().await;
                        drop(permit);
                    }
                });
            });
        }
    });
    assert!(most.load(Relaxed) <= 2);
    assert_eq!(limiter.with(|core| (core.show(), Woken::new())), (Some(2), 0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_permit_tells_the_latency_to_the_answers_head_if_the_answer_is_good() {
    let limiters = Limiters::new(Metrics::new(1));
    let adaptive = policy(ConcurrencyLimit::Adaptive { min: 2, max: 50, tolerance: 2.0 }, 0);
    let limiter = limiters.resolve(&ServiceName::new("shop", "product"), 80, &adaptive);
    let call = async |took: u64, good: Option<bool>| {
        let mut permit = limiter.acquire(50).await.expect("goes");
        tokio::time::sleep(Duration::from_millis(took)).await;
        if let Some(good) = good {
            permit.answered(good);
            permit.answered(good);
        }
    };
    let learned = || limiter.with(|core| (format!("{:?}", core.gradient), Woken::new()));
    let fresh = learned();
    call(10, Some(false)).await;
    call(10, None).await;
    assert_eq!(learned(), fresh, "errors and calls that were given up tell nothing");
    call(10, Some(true)).await;
    let one = learned();
    assert!(one.contains("seen: 1,"), "{one}");
    limiter.with(|core| {
        let (gradient, start) = (core.gradient.as_mut().expect("adaptive"), now());
        (0..20).for_each(|n| gradient.observe(Duration::from_millis(10), 1, start + Duration::from_secs(n)));
        ((), Woken::new())
    });
    let known = learned();
    call(5, None).await;
    assert_eq!(learned(), known, "given up early");
    call(3000, None).await;
    assert_ne!(learned(), known, "given up after long: the application is slow");
}

#[test]
fn state_outlives_its_policy_for_a_while_and_new_numbers_apply_to_it() {
    let limiters = Limiters::new(Metrics::new(1));
    let (service, start) = (ServiceName::new("shop", "product"), Instant::now());
    let resolve = |limit| limiters.resolve(&service, 80, &policy(ConcurrencyLimit::Fixed(limit), 0));
    let first = resolve(1);
    first.with(|core| (core.enter(50), Woken::new()));
    assert!(Arc::ptr_eq(&first, &resolve(2)));
    assert_eq!(first.with(|core| (core.show(), Woken::new())), (Some(2), 1, 0));
    let address = Arc::as_ptr(&first);
    drop(first);
    limiters.sweep(start);
    limiters.sweep(start + Duration::from_secs(59));
    assert_eq!(Arc::as_ptr(&resolve(2)), address);
    limiters.sweep(start + Duration::from_secs(60));
    limiters.sweep(start + Duration::from_secs(121));
    assert!(limiters.known.lock().unwrap().is_empty());
}
