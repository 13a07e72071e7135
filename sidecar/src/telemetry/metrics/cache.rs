//! What the response cache counts: answers and what is not kept by service and route, and what each policy keeps.

use super::{
    Answered, Bypass, Direction, Forwarded, Metrics, OTHER, Refusal, Shard, families::Family,
    interned::Interned, shard::Cell,
};
use prometheus::proto::MetricFamily;
use std::{
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

/// Series of answers, beyond which a new one counts as `other`.
const LIMIT: usize = 4096;
/// Answers that have no reason: hit, stale, revalidated.
const PLAIN: [Answered; 3] = [Answered::Hit, Answered::Stale, Answered::Revalidated];
/// Ways to answer that are told apart.
const ANSWERS: usize = PLAIN.len() + Forwarded::ALL.len() + Bypass::ALL.len();
/// Reasons not to keep an answer.
const REFUSALS: usize = Refusal::ALL.len();

/// What tells one series of answers from another. All names come from policy, never from the wire.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct CacheSeriesKey {
    /// At the caller or where the service is served.
    pub(crate) direction: Direction,
    /// The service that was called, `<namespace>/<name>`.
    pub(crate) service: Arc<str>,
    /// The route rule that took the request; empty if the service has no routes.
    pub(crate) route: Arc<str>,
}

/// How the cache answered requests with the same labels, apart for each worker.
pub(crate) struct CacheSeries {
    /// A worker's part is made when it first counts: most workers never see most routes.
    shards: Box<[OnceLock<Box<CacheCells>>]>,
}

#[derive(Default)]
#[repr(align(128))]
struct CacheCells {
    answered: [Cell; ANSWERS],
    refused: [Cell; REFUSALS],
}

impl CacheSeries {
    fn new(workers: usize) -> Self {
        Self { shards: (0..workers).map(|_| OnceLock::new()).collect() }
    }

    fn cells(&self, worker: usize) -> Option<&CacheCells> {
        self.shards.get(worker).map(|shard| &**shard.get_or_init(Box::default))
    }

    /// How often each answer was given, over all workers; those that never were are left out.
    pub(crate) fn answered(&self) -> Vec<(Answered, u64)> {
        let miss = Forwarded::ALL.map(Answered::Miss);
        let bypass = Bypass::ALL.map(Answered::Bypass);
        let all = PLAIN.into_iter().chain(miss).chain(bypass);
        all.map(|answer| (answer, self.sum(|cells| cells.answered.get(index(answer)))))
            .filter(|(_, count)| *count > 0)
            .collect()
    }

    /// How often an answer was not kept, by why, over all workers; reasons that never were are left out.
    pub(crate) fn refused(&self) -> Vec<(Refusal, u64)> {
        let all = Refusal::ALL.into_iter();
        all.map(|why| (why, self.sum(|cells| cells.refused.get(why as usize))))
            .filter(|(_, count)| *count > 0)
            .collect()
    }

    fn sum(&self, cell: impl Fn(&CacheCells) -> Option<&Cell>) -> u64 {
        let shards = self.shards.iter().filter_map(OnceLock::get);
        shards.filter_map(|cells| cell(cells)).map(Cell::get).fold(0, u64::wrapping_add)
    }
}

/// The cell of an answer.
const fn index(answer: Answered) -> usize {
    match answer {
        Answered::Hit => 0,
        Answered::Stale => 1,
        Answered::Revalidated => 2,
        Answered::Miss(why) => PLAIN.len() + why as usize,
        Answered::Bypass(why) => PLAIN.len() + Forwarded::ALL.len() + why as usize,
    }
}

impl Shard {
    /// A request was answered by the cache, or passed by it: one plain store.
    pub(crate) fn cache_answered(&self, series: &CacheSeries, how: Answered) {
        if let Some(cell) = series.cells(self.worker()).and_then(|cells| cells.answered.get(index(how))) {
            cell.add(1);
        }
    }

    /// An answer of the origin was not kept.
    pub(crate) fn cache_refused(&self, series: &CacheSeries, why: Refusal) {
        if let Some(cell) = series.cells(self.worker()).and_then(|cells| cells.refused.get(why as usize)) {
            cell.add(1);
        }
    }
}

/// Where the numbers of what is kept come from. Asked at scrapes.
pub(crate) trait KeptSource: Send + Sync {
    /// What each policy keeps, in the order of their names. What happened under a policy never gets less, though the
    /// policy goes and comes.
    fn kept(&self) -> Vec<Kept>;
}

/// What one policy keeps, and what happened under it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Kept {
    /// The policy's id.
    pub(crate) policy: Arc<str>,
    /// `None` once there is no such policy.
    pub(crate) now: Option<KeptNow>,
    pub(crate) totals: KeptTotals,
}

/// How much is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct KeptNow {
    pub(crate) bytes: u64,
    pub(crate) limit: u64,
    pub(crate) entries: u64,
    /// Bytes of what is on its way in, part of `bytes`.
    pub(crate) filling: u64,
}

/// What happened since the process began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct KeptTotals {
    /// Look-ups that found something, and that found nothing.
    pub(crate) hits: u64,
    pub(crate) misses: u64,
    pub(crate) stored: u64,
    pub(crate) evicted: u64,
    pub(crate) expired: u64,
    pub(crate) purged: u64,
    pub(crate) refused: u64,
    pub(crate) coalesced: u64,
    pub(crate) handed_over: u64,
    pub(crate) released: u64,
    pub(crate) outgrown: u64,
    pub(crate) broken: u64,
    pub(crate) cut_off: u64,
}

impl KeptTotals {
    /// Both together.
    pub(crate) const fn plus(self, other: Self) -> Self {
        Self {
            hits: self.hits.wrapping_add(other.hits),
            misses: self.misses.wrapping_add(other.misses),
            stored: self.stored.wrapping_add(other.stored),
            evicted: self.evicted.wrapping_add(other.evicted),
            expired: self.expired.wrapping_add(other.expired),
            purged: self.purged.wrapping_add(other.purged),
            refused: self.refused.wrapping_add(other.refused),
            coalesced: self.coalesced.wrapping_add(other.coalesced),
            handed_over: self.handed_over.wrapping_add(other.handed_over),
            released: self.released.wrapping_add(other.released),
            outgrown: self.outgrown.wrapping_add(other.outgrown),
            broken: self.broken.wrapping_add(other.broken),
            cut_off: self.cut_off.wrapping_add(other.cut_off),
        }
    }
}

/// All numbers of the cache of one process.
pub(super) struct Caches {
    series: Interned<CacheSeriesKey, CacheSeries>,
    kept: OnceLock<Arc<dyn KeptSource>>,
}

impl Default for Caches {
    fn default() -> Self {
        Self { series: Interned::new(LIMIT), kept: OnceLock::new() }
    }
}

impl Metrics {
    /// The series of answers with this key. For the compiling of snapshots, not for requests.
    pub(crate) fn cache(&self, key: CacheSeriesKey) -> Arc<CacheSeries> {
        let new = |_: &CacheSeriesKey| CacheSeries::new(self.workers());
        let direction = key.direction;
        match self.caches.series.get(key, Instant::now(), new) {
            Some(series) => series,
            None => {
                let other = CacheSeriesKey { direction, service: OTHER.into(), route: OTHER.into() };
                self.caches.series.get_always(other, new)
            }
        }
    }

    /// Says where the numbers of what is kept come from; the first to do so stays.
    pub(crate) fn set_kept(&self, source: Arc<dyn KeptSource>) {
        let _ = self.caches.kept.set(source);
    }

    /// Every series of answers, in the order of their keys.
    pub(crate) fn cache_series(&self) -> Vec<(CacheSeriesKey, Arc<CacheSeries>)> {
        self.caches.series.all().into_iter().map(|(key, series, _)| (key, series)).collect()
    }
}

/// A gauge of what a policy keeps, and what happened under it.
type Level = (&'static str, &'static str, fn(&KeptNow) -> u64);
type Total = (&'static str, &'static str, fn(&KeptTotals) -> u64);

const LEVELS: [Level; 4] = [
    ("weft_cache_bytes", "Memory that answers kept under a policy take, those on their way in too.", |now| {
        now.bytes
    }),
    ("weft_cache_limit_bytes", "Memory that answers kept under a policy may take.", |now| now.limit),
    ("weft_cache_entries", "Answers that are kept under a policy, a number.", |now| now.entries),
    ("weft_cache_filling_bytes", "Memory of answers on their way in, part of weft_cache_bytes.", |now| {
        now.filling
    }),
];

const TOTALS: [Total; 11] = [
    ("weft_cache_stored_total", "Answers put into the cache.", |all| all.stored),
    ("weft_cache_evicted_total", "Answers taken out of the cache to make room.", |all| all.evicted),
    (
        "weft_cache_expired_total",
        "Answers taken out of the cache because they are of no use any more.",
        |all| all.expired,
    ),
    ("weft_cache_purged_total", "Answers taken out of the cache by a purge or a change.", |all| all.purged),
    (
        "weft_cache_refused_total",
        "Answers that might be kept but found no place: too large, no room, or purged while they came.",
        |all| all.refused,
    ),
    ("weft_cache_coalesced_total", "Requests that waited for the fetch of another like them.", |all| {
        all.coalesced
    }),
    (
        "weft_cache_handed_over_total",
        "Fetches that another request took over because the first one's client went away.",
        |all| all.handed_over,
    ),
    ("weft_cache_released_total", "Fetches that came to nothing for those who waited for them.", |all| {
        all.released
    }),
    (
        "weft_cache_broken_total",
        "Answers that ended too early to be kept, or that nobody waited for.",
        |all| all.broken,
    ),
    ("weft_cache_outgrown_total", "Answers that got too large to be kept while they came.", |all| {
        all.outgrown
    }),
    (
        "weft_cache_cut_off_total",
        "Clients too far behind in an answer that got too large to be kept while it came.",
        |all| all.cut_off,
    ),
];

impl Caches {
    pub(super) fn forget_unused(&self, now: Instant, keep: Duration) {
        self.series.forget_unused(now, keep);
    }

    /// Keys that found no room.
    pub(super) fn overflows(&self) -> u64 {
        self.series.overflows()
    }

    pub(super) fn collect(&self, out: &mut Vec<MetricFamily>) {
        let mut requests = Family::counter(
            "weft_cache_requests_total",
            "Requests where a cache policy holds, by how the cache answered; reason is that of a miss or bypass.",
        );
        let mut refused = Family::counter(
            "weft_cache_not_stored_total",
            "Answers of origins that were not kept, by the reason in Cache-Status.",
        );
        for (key, series, _) in self.series.all() {
            let labels =
                [("direction", key.direction.name()), ("service", &*key.service), ("route", &*key.route)];
            let [direction, service, route] = labels;
            for (how, count) in series.answered() {
                let labels = [direction, service, route, ("result", how.result()), ("reason", how.reason())];
                requests.sample(&labels, count as f64);
            }
            for (why, count) in series.refused() {
                refused.sample(&[direction, service, route, ("reason", why.label())], count as f64);
            }
        }
        requests.done(out);
        refused.done(out);
        self.collect_kept(out);
    }

    fn collect_kept(&self, out: &mut Vec<MetricFamily>) {
        let all = self.kept.get().map_or_else(Vec::new, |source| source.kept());
        for (name, help, value) in LEVELS {
            let mut family = Family::gauge(name, help);
            for Kept { policy, now, .. } in &all {
                if let Some(now) = now {
                    family.sample(&[("policy", &**policy)], value(now) as f64);
                }
            }
            family.done(out);
        }
        for (name, help, value) in TOTALS {
            let mut family = Family::counter(name, help);
            for Kept { policy, totals, .. } in &all {
                family.sample(&[("policy", &**policy)], value(totals) as f64);
            }
            family.done(out);
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    struct Fixed(Vec<Kept>);

    impl KeptSource for Fixed {
        fn kept(&self) -> Vec<Kept> {
            self.0.clone()
        }
    }

    /// Gives the families of the cache a sample each.
    pub(in super::super) fn fill(metrics: &Arc<Metrics>) {
        let series = metrics.cache(key("shop/product", "shop/product#0"));
        for worker in 0..metrics.workers() {
            let shard = Shard::new(Arc::clone(metrics), worker);
            shard.cache_answered(&series, Answered::Hit);
            shard.cache_answered(&series, Answered::Miss(Forwarded::UriMiss));
            shard.cache_answered(&series, Answered::Bypass(Bypass::FatGet));
            shard.cache_refused(&series, Refusal::SetCookie);
        }
        let totals = KeptTotals {
            hits: 1,
            misses: 2,
            stored: 3,
            evicted: 4,
            expired: 5,
            purged: 6,
            refused: 7,
            coalesced: 8,
            handed_over: 9,
            released: 10,
            outgrown: 11,
            broken: 13,
            cut_off: 12,
        };
        metrics.set_kept(Arc::new(Fixed(vec![
            Kept {
                policy: "shop/pages".into(),
                now: Some(KeptNow { bytes: 2048, limit: 4096, entries: 2, filling: 1024 }),
                totals,
            },
            Kept { policy: "shop/was".into(), now: None, totals },
        ])));
    }

    fn key(service: &str, route: &str) -> CacheSeriesKey {
        CacheSeriesKey { direction: Direction::Outbound, service: service.into(), route: route.into() }
    }

    fn text(metrics: &Metrics) -> String {
        String::from_utf8(metrics.render()).expect("metrics are UTF-8")
    }

    fn sample(text: &str, name: &str) -> Option<f64> {
        text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
    }

    #[test]
    fn answers_are_counted_by_route_result_and_reason() {
        let metrics = Metrics::new(2);
        fill(&metrics);
        let text = text(&metrics);
        let route = r#"direction="outbound",service="shop/product",route="shop/product#0""#;
        for (labels, value) in [
            (r#"result="hit",reason="""#, Some(2.0)),
            (r#"result="miss",reason="uri-miss""#, Some(2.0)),
            (r#"result="bypass",reason="fat-get""#, Some(2.0)),
            (r#"result="stale",reason="""#, None),
        ] {
            let name = format!("weft_cache_requests_total{{{route},{labels}}}");
            assert_eq!(sample(&text, &name), value, "{name}");
        }
        let name = format!("weft_cache_not_stored_total{{{route},reason=\"set-cookie\"}}");
        assert_eq!(sample(&text, &name), Some(2.0));
    }

    #[test]
    fn what_a_policy_keeps_is_told_and_what_one_kept_that_is_gone_stays_counted() {
        let metrics = Metrics::new(1);
        fill(&metrics);
        let text = text(&metrics);
        for (name, value) in [
            ("bytes", 2048.0),
            ("limit_bytes", 4096.0),
            ("entries", 2.0),
            ("filling_bytes", 1024.0),
            ("stored_total", 3.0),
            ("evicted_total", 4.0),
            ("expired_total", 5.0),
            ("purged_total", 6.0),
            ("refused_total", 7.0),
            ("coalesced_total", 8.0),
            ("handed_over_total", 9.0),
            ("released_total", 10.0),
            ("outgrown_total", 11.0),
            ("broken_total", 13.0),
            ("cut_off_total", 12.0),
        ] {
            let of = |policy: &str| sample(&text, &format!("weft_cache_{name}{{policy=\"{policy}\"}}"));
            assert_eq!(of("shop/pages"), Some(value), "{name}");
            assert_eq!(of("shop/was"), name.ends_with("_total").then_some(value), "{name}");
        }
    }

    /// Every cell is that of one answer, and every answer and reason has a cell.
    #[test]
    fn every_answer_has_a_cell_of_its_own() {
        let metrics = Metrics::new(1);
        let (shard, series) = (Shard::new(Arc::clone(&metrics), 0), metrics.cache(key("a", "")));
        let misses = Forwarded::ALL.map(Answered::Miss);
        let bypasses = Bypass::ALL.map(Answered::Bypass);
        let all: Vec<_> = PLAIN.into_iter().chain(misses).chain(bypasses).collect();
        for (cell, how) in all.iter().enumerate() {
            assert_eq!(index(*how), cell, "{how:?}");
            (0..=cell).for_each(|_| shard.cache_answered(&series, *how));
        }
        for (cell, why) in Refusal::ALL.into_iter().enumerate() {
            (0..=cell).for_each(|_| shard.cache_refused(&series, why));
        }
        let answered: Vec<_> = all.iter().copied().zip(1..).collect();
        assert_eq!(series.answered(), answered);
        assert_eq!(series.refused(), Refusal::ALL.into_iter().zip(1..).collect::<Vec<_>>());
    }

    #[test]
    fn series_beyond_the_bound_count_together_and_are_counted() {
        let metrics = Metrics::new(1);
        let held: Vec<_> = (0..LIMIT + 2).map(|n| metrics.cache(key("a", &n.to_string()))).collect();
        assert!(Arc::ptr_eq(&held[LIMIT], &held[LIMIT + 1]));
        assert!(!Arc::ptr_eq(&held[0], &held[LIMIT]));
        assert_eq!(sample(&text(&metrics), r#"weft_metrics_overflow_total{table="caches"}"#), Some(2.0));
    }

    #[test]
    fn where_nothing_is_cached_nothing_is_told() {
        let text = text(&Metrics::new(1));
        let kept = LEVELS.map(|(name, ..)| name).into_iter().chain(TOTALS.map(|(name, ..)| name));
        for name in kept.chain(["weft_cache_requests_total", "weft_cache_not_stored_total"]) {
            assert!(!text.contains(name), "{name}");
        }
    }
}
