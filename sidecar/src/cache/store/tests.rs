//! The store against a naive model, under threads, under scans, and under purges.

use super::choices::{keys, prefix as prefix_of};
use super::*;
use crate::cache::entry::tests::Sample;
use bytes::Bytes;
use proptest::prelude::*;
use std::{collections::HashMap, sync::atomic::AtomicBool, time::Duration};

const MIB: u64 = 1 << 20;

fn bounds(bytes: u64) -> Bounds {
    Bounds { bytes, ..Bounds::default() }
}

fn key(text: &str) -> Key<'_> {
    Key::new(text.as_bytes())
}

fn put(store: &Store, sample: &Sample, body: impl Into<Bytes>, now: u32) -> Result<(), Refused> {
    store.put(sample.entry_since(store.epoch(), body), now).1
}

fn has(store: &Store, text: &str, now: u32) -> bool {
    store.look_up(key(text), now).is_some()
}

#[derive(Clone, Debug)]
enum Step {
    Put { key: u8, selector: u8, length: u16, useful: u8, tag: bool },
    Get { key: u8 },
    PurgeKey { key: u8, soft: bool },
    PurgeTag { soft: bool },
    PurgePrefix { key: u8 },
    Invalidate { key: u8 },
    Sweep { few: u8 },
    Later { by: u8 },
    Limit { kib: u8 },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0..24u8, 0..4u8, 0..6000u16, 0..60u8, any::<bool>())
            .prop_map(|(key, selector, length, useful, tag)| Step::Put { key, selector, length, useful, tag }),
        8 => (0..24u8).prop_map(|key| Step::Get { key }),
        1 => (0..24u8, any::<bool>()).prop_map(|(key, soft)| Step::PurgeKey { key, soft }),
        1 => any::<bool>().prop_map(|soft| Step::PurgeTag { soft }),
        1 => (0..24u8).prop_map(|key| Step::PurgePrefix { key }),
        1 => (0..24u8).prop_map(|key| Step::Invalidate { key }),
        1 => (1..9u8).prop_map(|few| Step::Sweep { few }),
        1 => (0..10u8).prop_map(|by| Step::Later { by }),
        1 => (8..40u8).prop_map(|kib| Step::Limit { kib }),
    ]
}

/// What the model knows of a stored response.
#[derive(Clone)]
struct Known {
    body: Bytes,
    useful_until: u32,
    tagged: bool,
    outdated: bool,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn what_is_found_is_the_last_that_was_stored_and_the_limit_holds_at_every_step(
        roomy in any::<bool>(), steps in prop::collection::vec(step(), 1..200),
    ) {
        let mut limit = if roomy { 64 * MIB } else { 20_000 };
        let store = Store::new(bounds(limit));
        let mut model: HashMap<(u8, u8), Known> = HashMap::new();
        let mut now = 1000;
        let text = |key: u8| format!("shop/{}/{key}", key % 3);
        for (i, step) in steps.into_iter().enumerate() {
            match step {
                Step::Put { key, selector, length, useful, tag } => {
                    let mut sample = Sample::new(&text(key));
                    sample.selector = format!("accept-language: {selector}");
                    sample.useful_until = now + u32::from(useful);
                    sample.tags = if tag { vec!["tag"] } else { vec![] };
                    let body = Bytes::from(vec![i as u8; usize::from(length)]);
                    let known = Known {
                        body: body.clone(), useful_until: sample.useful_until, tagged: tag, outdated: false,
                    };
                    match put(&store, &sample, body, now) {
                        Ok(()) => { model.insert((key, selector), known); }
                        Err(why) => prop_assert!(why == Refused::NoRoom && u64::from(length) + 1000 > limit, "{why:?}"),
                    }
                }
                Step::Get { key: asked } => {
                    let found = store.look_up(key(&text(asked)), now);
                    for entry in found.iter().flat_map(Variants::iter).filter(|e| e.times().useful_until >= now) {
                        let selector = entry.selector().last().expect("not empty") - b'0';
                        let known = model.get(&(asked, selector));
                        let known = known.expect("was stored and not purged");
                        prop_assert_eq!(&entry.bytes(), &known.body);
                        prop_assert_eq!(entry.is_outdated(), known.outdated);
                        prop_assert!(entry.key_text() == text(asked).as_bytes());
                    }
                    if roomy {
                        let expected = model.iter().filter(|((k, _), v)| *k == asked && v.useful_until >= now).count();
                        let useful = |e: &&Arc<Entry>| e.times().useful_until >= now;
                        let found = found.iter().flat_map(Variants::iter).filter(useful).count();
                        prop_assert_eq!(found, expected);
                    }
                }
                Step::PurgeKey { key: purged, soft: true } => {
                    let wanted = text(purged);
                    store.purge(keys(move |key| key == wanted.as_bytes()), Manner::Soft, now);
                    model.iter_mut().filter(|((k, _), _)| *k == purged).for_each(|(_, v)| v.outdated = true);
                }
                Step::PurgeKey { key: purged, soft: false } => {
                    let wanted = text(purged);
                    store.purge(keys(move |key| key == wanted.as_bytes()), Manner::Hard, now);
                    model.retain(|(k, _), _| *k != purged);
                }
                Step::PurgeTag { soft: true } => {
                    store.purge(What::Tag((*b"tag").into()), Manner::Soft, now);
                    model.values_mut().filter(|v| v.tagged).for_each(|v| v.outdated = true);
                }
                Step::PurgeTag { soft: false } => {
                    store.purge(What::Tag((*b"tag").into()), Manner::Hard, now);
                    model.retain(|_, v| !v.tagged);
                }
                Step::PurgePrefix { key } => {
                    let prefix = format!("shop/{}/", key % 3);
                    store.purge(prefix_of(prefix.as_bytes()), Manner::Hard, now);
                    model.retain(|(k, _), _| !text(*k).starts_with(&prefix));
                }
                Step::Invalidate { key } => {
                    store.invalidate(text(key).as_bytes(), now);
                    model.retain(|(k, _), _| *k != key);
                }
                Step::Sweep { few } => {
                    store.sweep(usize::from(few), now);
                }
                Step::Later { by } => now += u32::from(by),
                Step::Limit { kib } => {
                    if !roomy {
                        limit = u64::from(kib) * 1024;
                        store.set_bounds(bounds(limit), now);
                    }
                }
            }
            let ([used, queued, held], [counted, entries]) = store.audit();
            prop_assert!(used <= limit, "{used} of {limit}");
            prop_assert_eq!((used, counted), (held, entries));
            prop_assert_eq!(queued, held);
        }
    }
}

/// Of so many that were asked for once, those that are left after a scan through a store of this size.
fn left_by_a_scan(hot: usize, bytes: u64) -> usize {
    let store = Store::new(bounds(bytes));
    let hot: Vec<String> = (0..hot).map(|i| format!("hot/{i}")).collect();
    for name in &hot {
        put(&store, &Sample::new(name), vec![0; 1024], 0).expect("there is room");
        assert!(has(&store, name, 0));
    }
    for i in 0..40_000 {
        put(&store, &Sample::new(&format!("scan/{i}")), vec![0; 1024], 0).expect("room is made");
    }
    assert!(store.statistics().evicted > 30_000);
    hot.iter().filter(|name| has(&store, name, 0)).count()
}

#[test]
fn a_scan_pushes_out_nothing_that_is_asked_for() {
    // A shard alone: whatever its hashes are, the scan goes through its small queue.
    assert_eq!(left_by_a_scan(30, SHARD_BYTES), 30);
    // Shards make room in turn, also one that the scan has put less into than into the others: chance decides which.
    let left = left_by_a_scan(500, 4 * MIB);
    assert!(left >= 400, "{left} of 500 are left");
}

#[test]
fn what_comes_back_soon_after_it_had_to_leave_stays() {
    let store = Store::new(bounds(MIB));
    let put_all = |what: &str, numbers: std::ops::Range<u32>| {
        for i in numbers {
            put(&store, &Sample::new(&format!("{what}/{i}")), vec![0; 1024], 0).expect("room is made");
        }
    };
    let left = |what: &str| (0..100).filter(|i| has(&store, &format!("{what}/{i}"), 0)).count();
    put_all("returning", 0..100);
    put_all("scan", 0..900);
    assert_eq!(left("returning"), 0);
    put_all("returning", 0..100);
    put_all("new", 0..100);
    put_all("scan", 900..2500);
    assert_eq!(left("new"), 0);
    let returning = left("returning");
    assert!(returning > 50, "{returning} of 100 are left");
}

#[test]
fn variants_are_bounded_and_the_oldest_goes() {
    let store = Store::new(Bounds { variants: 3, ..Bounds::default() });
    for selector in ["a", "b", "c", "b", "d"] {
        let mut sample = Sample::new("k");
        sample.selector = selector.to_owned();
        put(&store, &sample, "x", 0).expect("there is room");
    }
    let found = store.look_up(key("k"), 0).expect("is stored");
    let selectors: Vec<_> = found.iter().map(|entry| entry.selector()).collect();
    assert_eq!(selectors, [b"d", b"b", b"c"]);
    assert!(found.find(|entry| entry.selector() == b"b").is_some());
    assert!(found.find(|entry| entry.selector() == b"a").is_none());
}

#[test]
fn what_is_of_no_use_any_more_is_not_found_and_goes_by_and_by() {
    let store = Store::new(Bounds::default());
    for i in 0..1000 {
        let mut sample = Sample::new(&format!("k/{i}"));
        sample.useful_until = 10;
        put(&store, &sample, "x", 0).expect("there is room");
    }
    assert!(has(&store, "k/1", 10) && !has(&store, "k/1", 11));
    for i in 0..3000 {
        put(&store, &Sample::new(&format!("new/{i}")), "x", 11).expect("there is room");
    }
    let statistics = store.statistics();
    assert!(statistics.expired > 900, "{statistics:?}");
    while !store.sweep(16, 11) {}
    let statistics = store.statistics();
    assert_eq!((statistics.entries, statistics.expired, statistics.purged), (3000, 1000, 0));
}

#[test]
fn a_purge_holds_at_once_and_counts_everything_it_was_for() {
    let store = Store::new(Bounds::default());
    for i in 0..1000 {
        let mut sample = Sample::new(&format!("{}/{i}", if i % 2 == 0 { "even" } else { "odd" }));
        sample.tags = if i % 5 == 0 { vec!["fifth", "t"] } else { vec!["t"] };
        put(&store, &sample, "x", 0).expect("there is room");
    }
    let soft = store.purge(What::Tag((*b"fifth").into()), Manner::Soft, 0);
    let found = store.look_up(key("odd/5"), 0).expect("a soft purge takes nothing out");
    assert!(found.iter().all(|entry| entry.is_outdated()));
    assert!(store.look_up(key("odd/7"), 0).expect("is stored").iter().all(|entry| !entry.is_outdated()));
    let hard = store.purge(prefix_of(b"even/"), Manner::Hard, 0);
    assert!(!has(&store, "even/2", 0) && has(&store, "odd/1", 0));
    assert!(store.is_pending(&hard));
    while !store.sweep(7, 0) {}
    // The first round may have begun before the last purge.
    while !store.sweep(7, 0) {}
    assert!(!store.is_pending(&soft) && !store.is_pending(&hard));
    assert_eq!((soft.found(), hard.found()), (200, 500));
    assert_eq!(store.statistics().entries, 500);
    assert_eq!(store.purge_through(keys(|key| key.ends_with(b"9")), Manner::Hard, 0), 100);
    assert_eq!(store.purge_through(What::All, Manner::Hard, 0), 400);
    let ([used, ..], [entries, _]) = store.audit();
    assert_eq!((used, entries), (0, 0));
    // What comes after a purge is not meant.
    put(&store, &Sample::new("even/2"), "x", 0).expect("there is room");
    assert!(has(&store, "even/2", 0));
}

#[test]
fn what_was_asked_for_before_a_purge_is_not_stored_after_it() {
    let store = Store::new(Bounds::default());
    let sample = Sample::new("http://shop/a\nG");
    let late = |purge: &dyn Fn()| {
        let before = store.epoch();
        purge();
        store.put(sample.entry_since(before, "x"), 0).1
    };
    let alike = move || keys(move |other| other == b"http://shop/a\nG");
    assert_eq!(late(&|| _ = store.purge(alike(), Manner::Hard, 0)), Err(Refused::Purged));
    assert_eq!(late(&|| store.invalidate(b"http://shop/a\n", 0)), Err(Refused::Purged));
    assert_eq!(late(&|| store.invalidate(b"http://shop/\n", 0)), Ok(()));
    assert_eq!(late(&|| store.invalidate(b"http://shop/a", 0)), Ok(()));
    // Even when the purge is long through.
    let prefix = || _ = store.purge_through(prefix_of(b"http://shop/"), Manner::Hard, 0);
    assert_eq!(late(&prefix), Err(Refused::Purged));
    assert_eq!(late(&|| ()), Ok(()));
    assert_eq!(store.purge_through(alike(), Manner::Soft, 0), 1);
    assert_eq!(store.purge_through(alike(), Manner::Hard, 0), 1);
    assert_eq!(store.purge_through(alike(), Manner::Hard, 0), 0);
}

#[test]
fn invalidation_is_for_all_keys_of_a_uri_and_costs_no_list() {
    let store = Store::new(Bounds::default());
    let name = |uri: u32, caller: u32| format!("http://shop/{uri}\nG\nI{caller}");
    let put_all = |uri: u32| {
        for caller in 0..3 {
            put(&store, &Sample::new(&name(uri, caller)), "x", 0).expect("there is room");
        }
    };
    (0..1000).for_each(put_all);
    for round in 0..20 {
        for uri in (0..1000).step_by(2) {
            store.invalidate(format!("http://shop/{uri}\n").as_bytes(), 0);
            // Most are of nothing that is stored.
            store.invalidate(format!("http://shop/other/{round}/{uri}\n").as_bytes(), 0);
            assert!(store.marks.remembered() <= REMEMBERED_MAX);
        }
        for uri in 0..1000 {
            for caller in 0..3 {
                assert_eq!(has(&store, &name(uri, caller), 0), uri % 2 == 1);
            }
        }
        (0..1000).step_by(2).for_each(put_all);
    }
    assert_eq!(store.statistics().entries, 3000);
}

#[test]
fn only_what_fits_is_kept() {
    let store = Store::new(Bounds { bytes: 100_000, object: 60_000, variants: 16 });
    assert_eq!(put(&store, &Sample::new("a"), vec![0; 60_001], 0), Err(Refused::TooLarge));
    assert_eq!(put(&store, &Sample::new("a"), vec![0; 50_000], 0), Ok(()));
    assert!(store.reserve_fill(60_000, 0) && !has(&store, "a", 0), "a fill makes room too");
    assert_eq!(put(&store, &Sample::new("a"), vec![0; 50_000], 0), Err(Refused::NoRoom));
    assert!(!store.reserve_fill(1, 0), "all fills together get as much as one object or half of it all");
    store.release_fill(60_000);
    let entry = store.put(Sample::new("b").entry("x"), 0).0;
    store.remove(&Arc::new(Sample::new("b").entry("x")));
    assert!(has(&store, "b", 0), "another entry under the same key is not the same");
    store.remove(&entry);
    assert!(!has(&store, "b", 0));
    assert_eq!(store.statistics().bytes, 0);
}

#[test]
fn the_top_are_those_with_most_hits() {
    let store = Store::new(bounds(64 * MIB));
    for i in 0..300 {
        let name = format!("k/{i}");
        put(&store, &Sample::new(&name), "x", 0).expect("there is room");
        (0..i).for_each(|_| assert!(has(&store, &name, 0)));
    }
    let top = store.top(3);
    let top: Vec<_> = top.iter().map(|top| (&top.key[..], top.hits)).collect();
    assert_eq!(top, [(&b"k/299"[..], 299), (b"k/298", 298), (b"k/297", 297)]);
    assert_eq!(store.statistics().hits, 299 * 300 / 2);
}

#[test]
fn threads_agree_on_what_is_stored_and_never_pass_the_limit() {
    let limit = MIB;
    let store = &Store::new(bounds(limit));
    let stop = &AtomicBool::new(false);
    std::thread::scope(|scope| {
        for seed in 0..4 {
            scope.spawn(move || {
                let mut random = fastrand::Rng::with_seed(seed);
                for _ in 0..20_000 {
                    let number = random.u32(0..2000);
                    let name = format!("shop/{}/{number}", number % 7);
                    match random.u32(0..100) {
                        0 => store.invalidate(name.as_bytes(), 0),
                        1 => {
                            let prefix = format!("shop/{}/", number % 7);
                            store.purge(prefix_of(prefix.as_bytes()), Manner::Hard, 0);
                        }
                        2..20 => _ = store.sweep(64, 0),
                        20..50 => {
                            let body = vec![number as u8; number as usize];
                            _ = put(store, &Sample::new(&name), body, 0);
                        }
                        _ => {
                            for entry in store.look_up(key(&name), 0).iter().flat_map(Variants::iter) {
                                assert_eq!(entry.key_text(), name.as_bytes());
                                assert_eq!(entry.bytes(), vec![number as u8; number as usize]);
                            }
                        }
                    }
                }
            });
        }
        scope.spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                let used = store.statistics().bytes;
                assert!(used <= limit, "{used}");
                std::thread::sleep(Duration::from_micros(200));
            }
        });
        scope.spawn(move || {
            // Whether the others are through by then or not, it ends.
            std::thread::sleep(Duration::from_millis(500));
            stop.store(true, Ordering::Relaxed);
        });
    });
    let ([used, queued, held], [counted, entries]) = store.audit();
    assert_eq!((used, queued, counted), (held, held, entries));
    assert!(entries > 100);
}
