//! What the control plane and the admin interface want of the response cache: purges, and a report.

use crate::{cache, worker::Shared};
use weft_config::{
    purge::{Kind, Purge},
    wire,
};

/// Carries out a purge of the control plane. Gives how many answers it was for, counted in its first round only: there
/// it is known to be in force before anything is looked through, and later rounds are for the little that came between.
pub(super) fn purge(shared: &Shared, purge: &wire::Purge) -> Result<u64, String> {
    let namespace = &shared.settings.namespace;
    let round = purge.round;
    let purge = Purge::from_wire(purge, namespace).map_err(|why| why.to_string())?;
    let Some(purge) = purge else { return Ok(0) };
    let now = cache::seconds_now();
    let announced = cache::purge(&purge, &shared.caches, &shared.snapshot(), namespace, now);
    if round > 0 {
        announced.settle();
        return Ok(0);
    }
    let answers = announced.count(now);
    tracing::info!(what = %purge, soft = purge.soft, answers, "purged, as the control plane says");
    Ok(answers)
}

/// Carries out a purge of whoever may use the admin interface. Gives what it is in one line, and how many answers it was
/// for; or why it is none.
pub(super) fn purge_by_hand(
    shared: &Shared,
    kind: Kind,
    text: &str,
    service: &str,
    soft: bool,
) -> Result<(String, u64), String> {
    let namespace = &shared.settings.namespace;
    let purge = Purge::read(kind, text, service, soft, namespace).map_err(|why| why.to_string())?;
    let now = cache::seconds_now();
    let answers = cache::purge(&purge, &shared.caches, &shared.snapshot(), namespace, now).count(now);
    tracing::info!(what = %purge, soft, answers, "purged through the admin port");
    Ok((purge.to_string(), answers))
}

/// What the cache holds and did.
pub(super) fn report(shared: &Shared) -> wire::CacheReport {
    let stores = shared.caches.all().into_iter().map(|(policy, store)| {
        let kept = store.statistics();
        wire::CacheStore {
            policy: policy.to_string(),
            entries: kept.entries,
            bytes: kept.bytes,
            limit: kept.limit,
            stored: kept.stored,
            evicted: kept.evicted,
            expired: kept.expired,
            purged: kept.purged,
            refused: kept.refused,
            coalesced: store.fill_statistics().coalesced,
        }
    });
    let uses = shared.metrics.cache_series().into_iter().map(|(key, series)| {
        let counts = series.answered().into_iter().map(|(how, requests)| wire::CacheCount {
            result: how.result().to_owned(),
            reason: how.reason().to_owned(),
            requests,
        });
        wire::CacheUse {
            direction: key.direction.name().to_owned(),
            service: key.service.to_string(),
            route: key.route.to_string(),
            counts: counts.collect(),
        }
    });
    wire::CacheReport { number: 0, stores: stores.collect(), uses: uses.collect() }
}
