//! Which rules an entry was kept by: when policy changes, what is kept is judged anew by the new ones, and what they
//! would keep too stays.

use super::{
    Cache,
    entry::{Draft, Entry, Variants, listed},
    freshness::{Arrival, Flags, Terms},
    lookup::Lookup,
    seconds_now, storing,
};
use http::request::Parts;
use sha2::{Digest, Sha256};
use smallvec::SmallVec;
use weft_config::snapshot::{CacheRules, CacheTierRules};

/// A mark for the rules that say what is kept and for how long: in an entry's flags, in the bits that are free there.
/// Rules that differ have the same mark once in two thousand times; then what is kept keeps its time until it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rulebook(u16);

impl Rulebook {
    pub(super) fn of(rules: &CacheRules) -> Self {
        let bounds = CacheRules::default();
        // What these say holds for all that is kept anyway, or of what is yet to come.
        let judged = CacheRules {
            id: bounds.id,
            max_bytes: bounds.max_bytes,
            max_variants: bounds.max_variants,
            coalesce: bounds.coalesce,
            tiers: CacheTierRules::default(),
            ..rules.clone()
        };
        let digest = Sha256::digest(format!("{judged:?}"));
        Self(u16::from_le_bytes([digest[0], digest[1]]) << Flags::BITS)
    }

    fn is_of(self, entry: &Entry) -> bool {
        entry.flags() >> Flags::BITS == self.0 >> Flags::BITS
    }
}

impl Cache {
    /// The flags to keep an entry with.
    pub(super) fn flags(&self, terms: &Terms) -> u16 {
        terms.flags.0 | self.rulebook.0
    }

    /// Whether some of what is kept was kept by other rules.
    pub(super) fn is_by_others(&self, found: &Variants) -> bool {
        found.iter().any(|entry| !self.rulebook.is_of(entry))
    }

    /// Whether an entry was kept by the rules that hold now.
    pub(super) fn is_by_these(&self, entry: &Entry) -> bool {
        self.rulebook.is_of(entry)
    }

    /// Judges what was kept by other rules by those that hold now. What they would not keep goes.
    pub(super) fn rejudge(&self, lookup: &Lookup, request: &Parts, found: &Variants) {
        for entry in found.iter().filter(|entry| !self.rulebook.is_of(entry)) {
            match self.rejudged(lookup, request, entry) {
                // Without room for both the old one stays out.
                Some(new) => _ = self.store.put(new, seconds_now()),
                None => self.store.remove(entry),
            }
        }
    }

    /// What an entry is by the rules that hold now; `None` if they would not keep it.
    pub(super) fn rejudged(&self, lookup: &Lookup, request: &Parts, entry: &Entry) -> Option<Entry> {
        let fields = entry.headers();
        let times = entry.times();
        let arrival = Arrival { requested: times.requested, received: times.received };
        let asked = self.asked(lookup, request);
        let mut keep = storing::decide(&asked, entry.status(), &fields, &self.rules, arrival).ok()?;
        // How old it was when it came is not among its fields any more.
        keep.terms.initial_age = times.initial_age;
        if entry.length() as u64 > self.rules.max_object_bytes {
            return None;
        }
        let tags: SmallVec<[&[u8]; 8]> = entry.tags().collect();
        let fields = listed(&fields, |_| true);
        let draft = Draft {
            key: lookup.key(),
            selector: entry.selector(),
            tags: &tags,
            status: entry.status(),
            fields: &fields,
            case: entry.case(),
            times: keep.terms.times(times.requested),
            extent: entry.extent(),
            flags: self.flags(&keep.terms),
        };
        // In this order: a purge that comes in between is seen in the one or judged by the other.
        let checked = entry.checked();
        let new = entry.refreshed(&draft, checked).filter(|_| !entry.is_purged())?;
        if entry.is_outdated() {
            new.outdate();
        }
        Some(new)
    }
}
