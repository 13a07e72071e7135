//! Whether what is kept can answer a request. Nothing here waits or asks anybody.

use super::{
    conditional::Validators,
    directives::RequestDirectives,
    entry::{Entry, Key, Variants},
    freshness::{Flags, Freshness, Terms, whole},
    key::Text,
    range::{Part, Ranges},
    status::Forwarded,
    storing::{self, Kind},
    vary,
};
use crate::notable::Notable;
use http::{HeaderMap, Method, header};
use std::sync::Arc;
use weft_config::snapshot::CacheRules;

/// A request that is looked up, and what came of it.
pub(super) struct Lookup {
    pub(super) kind: Kind,
    pub(super) notable: Notable,
    pub(super) directives: RequestDirectives,
    pub(super) key: Text,
    /// The key's.
    pub(super) hash: u128,
    /// Everything that is kept of its resource.
    pub(super) found: Option<Variants>,
    /// That of it which is for this request, but cannot be given as it is.
    pub(super) stored: Option<Stored>,
    /// Why nothing could be given.
    pub(super) why: Forwarded,
    /// When it was looked up, in seconds since 1970.
    pub(super) now: u32,
}

impl Lookup {
    /// What it is kept under.
    pub(super) fn key(&self) -> Key<'_> {
        Key::again(&self.key, self.hash)
    }

    /// What those have in common who may wait for one fetch: the key, with what else is known to matter, if anything is.
    pub(super) fn common<'a>(&'a self, more: &'a Option<Text>) -> Key<'a> {
        more.as_deref().map_or(self.key(), Key::new)
    }

    /// Whether all of a response is kept for it, if only a stale one.
    pub(super) fn has_whole(&self) -> bool {
        self.stored.as_ref().is_some_and(|stored| stored.entry.extent().is_none())
    }
}

/// What is kept for a request that cannot have it as it is.
#[derive(Clone)]
pub(super) struct Stored {
    pub(super) entry: Arc<Entry>,
    pub(super) terms: Terms,
    /// Whether it may be given if the origin fails.
    pub(super) if_error: bool,
}

/// What can be done with what is kept.
pub(super) enum View {
    /// It is given.
    Fresh(Arc<Entry>, Terms),
    /// It is given although it is stale; `refresh` says that it is fetched anew meanwhile.
    Stale { entry: Arc<Entry>, terms: Terms, refresh: bool },
    /// A part of it is given: all that is kept is a part, and this is within it.
    Part(Arc<Entry>, Terms, Ranges),
    /// The origin must be asked.
    Nothing(Forwarded, Option<Stored>),
}

/// Judges what is kept of a request's resource.
pub(super) fn view(
    found: Option<&Variants>,
    method: &Method,
    headers: &HeaderMap,
    directives: &RequestDirectives,
    rules: &CacheRules,
    now: u32,
) -> View {
    let Some(found) = found else { return View::Nothing(Forwarded::UriMiss, None) };
    let Some(entry) = found.find(|entry| vary::selects(entry.selector(), headers)) else {
        return View::Nothing(Forwarded::VaryMiss, None);
    };
    let terms = terms(entry, rules, now);
    // What nobody said may be kept for all may be what only those without a cookie get.
    if terms.flags.has(Flags::HEURISTIC) && storing::is_personal(headers, rules) {
        return View::Nothing(Forwarded::Miss, None);
    }
    let freshness = terms.judge(directives, now);
    if let Some(extent) = entry.extent() {
        return part(entry, terms, extent, freshness, method, headers);
    }
    match freshness {
        Freshness::Fresh { .. } => View::Fresh(entry.clone(), terms),
        Freshness::Stale { may, .. } if may.max_stale => {
            View::Stale { entry: entry.clone(), terms, refresh: false }
        }
        Freshness::Stale { may, .. } if may.while_revalidate => {
            View::Stale { entry: entry.clone(), terms, refresh: true }
        }
        Freshness::Stale { may, .. } => nothing(Forwarded::Stale, entry, terms, may.if_error),
        Freshness::MustRevalidate { if_error, .. } => {
            let stale = terms.left(now) <= 0 || terms.flags.has(Flags::NO_CACHE);
            let why = if stale { Forwarded::Stale } else { Forwarded::Request };
            nothing(why, entry, terms, if_error)
        }
    }
}

fn nothing(why: Forwarded, entry: &Arc<Entry>, terms: Terms, if_error: bool) -> View {
    View::Nothing(why, Some(Stored { entry: entry.clone(), terms, if_error }))
}

fn part(
    entry: &Arc<Entry>,
    terms: Terms,
    extent: super::entry::Extent,
    freshness: Freshness,
    method: &Method,
    headers: &HeaderMap,
) -> View {
    let fresh = matches!(freshness, Freshness::Fresh { .. });
    if fresh && headers.contains_key(header::RANGE) {
        let part = Part::of_extent(extent, entry.length() as u64);
        let fields = entry.headers();
        let validators = Validators::of(&fields, entry.times().received);
        if let Some(ranges) = part.holds(method, headers, &validators) {
            return View::Part(entry.clone(), terms, ranges);
        }
    }
    // A part is not asked about: what is missing must be fetched in any case.
    nothing(Forwarded::Partial, entry, terms, false)
}

/// How long an entry may be used as policy says now: a shorter limit than when it was kept holds at once, and what was
/// purged softly has just become stale.
pub(super) fn terms(entry: &Entry, rules: &CacheRules, now: u32) -> Terms {
    let mut terms = Terms::of(entry.times(), entry.flags());
    if let Some(max) = rules.ttl.max {
        terms.lifetime = terms.lifetime.min(whole(max));
    }
    if entry.is_outdated() {
        terms.lifetime = terms.lifetime.min(terms.age(now));
        terms.flags.clear(Flags::IMMUTABLE);
    }
    terms
}
