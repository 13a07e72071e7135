//! What `Cache-Status` (RFC 9211) says of a call: who on the way answered it from what was kept, and why not otherwise.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

/// The answer's header.
pub(crate) const CACHE_STATUS: &str = "cache-status";

/// How a call was answered, as far as what is kept goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answered {
    /// With what is kept, still fresh.
    Fresh,
    /// With what is kept, past its time.
    Stale,
    /// With what is kept, after the service said that it is still so.
    Confirmed,
    /// By the service.
    Fetched,
    /// By the service: such calls are not looked up.
    PassedBy,
}

impl Answered {
    /// In one or two words, for a table.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Fresh => "hit",
            Self::Stale => "stale",
            Self::Confirmed => "confirmed",
            Self::Fetched => "fetched",
            Self::PassedBy => "passed by",
        }
    }

    /// True if the service had nothing to do with it.
    pub(crate) fn is_spared(self) -> bool {
        matches!(self, Self::Fresh | Self::Stale)
    }
}

/// What the header's lines say together, and the words of the cache that decides. The nearest to the caller stands last;
/// what others say counts only where it had to ask them.
pub(crate) fn read(lines: &str) -> Option<(Answered, &str)> {
    let members = lines.split(',').map(str::trim).rev();
    let each: Vec<(Answered, &str)> = members.filter_map(|member| Some((one(member)?, member))).collect();
    each.iter().copied().find(|(answered, _)| answered.is_spared()).or(each.first().copied())
}

/// One cache's word: a name, then what happened.
fn one(member: &str) -> Option<Answered> {
    let words: Vec<&str> = member.split(';').map(str::trim).collect();
    let (name, said) = words.split_first()?;
    let value = |key: &str| said.iter().find_map(|word| word.strip_prefix(key)?.strip_prefix('='));
    if name.is_empty() {
        return None;
    }
    if said.contains(&"hit") {
        let late = value("ttl").is_some_and(|ttl| ttl.starts_with('-'));
        return Some(if late { Answered::Stale } else { Answered::Fresh });
    }
    Some(match (value("fwd")?, value("fwd-status")) {
        ("bypass" | "method", _) => Answered::PassedBy,
        (_, Some("304")) => Answered::Confirmed,
        _ => Answered::Fetched,
    })
}

/// How many calls of each service were answered how, since this process began.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally(Arc<Mutex<BTreeMap<&'static str, Counts>>>);

/// The calls of one service that were looked up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// With what is kept, fresh.
    pub(crate) fresh: u64,
    /// With what is kept, past its time.
    pub(crate) stale: u64,
    /// By the service, be it with a mere "still so".
    pub(crate) asked: u64,
}

impl Counts {
    /// All of them.
    pub(crate) fn all(self) -> u64 {
        self.fresh + self.stale + self.asked
    }

    /// How many of a hundred the service had nothing to do with.
    pub(crate) fn percent(self) -> u64 {
        (self.fresh + self.stale) * 100 / self.all().max(1)
    }

    fn count(&mut self, answered: Answered) {
        match answered {
            Answered::Fresh => self.fresh += 1,
            Answered::Stale => self.stale += 1,
            Answered::Confirmed | Answered::Fetched => self.asked += 1,
            Answered::PassedBy => {}
        }
    }
}

impl Tally {
    /// Counts a call.
    pub(crate) fn note(&self, service: &'static str, answered: Answered) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(service).or_default().count(answered);
    }

    /// By service, those of which something was looked up.
    pub(crate) fn so_far(&self) -> Vec<(&'static str, Counts)> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter().filter(|(_, counts)| counts.all() > 0).map(|(name, counts)| (*name, *counts)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_happened_is_read_from_the_cache_that_had_the_answer() {
        for (lines, expected) in [
            ("weft; hit; ttl=12", Some(Answered::Fresh)),
            ("weft; hit; ttl=-3", Some(Answered::Stale)),
            ("weft; fwd=stale; fwd-status=304; ttl=30", Some(Answered::Confirmed)),
            ("weft; fwd=uri-miss; stored", Some(Answered::Fetched)),
            ("weft; fwd=uri-miss; detail=set-cookie", Some(Answered::Fetched)),
            ("weft; fwd=method; detail=method", Some(Answered::PassedBy)),
            ("weft-inbound; hit; ttl=5, weft; fwd=uri-miss; stored", Some(Answered::Fresh)),
            ("weft-inbound; fwd=uri-miss; stored, weft; fwd=uri-miss; stored", Some(Answered::Fetched)),
            ("weft-inbound; fwd=method, weft; hit", Some(Answered::Fresh)),
            ("", None),
            ("; hit", None),
            ("weft", None),
        ] {
            assert_eq!(read(lines).map(|(answered, _)| answered), expected, "{lines}");
        }
        let decides = |lines| read(lines).map(|(_, words)| words);
        assert_eq!(decides("weft-inbound; fwd=uri-miss, weft; hit; ttl=3"), Some("weft; hit; ttl=3"));
        assert_eq!(decides("weft-inbound; hit, weft; fwd=uri-miss"), Some("weft-inbound; hit"));
        assert_eq!(decides("weft-inbound; fwd=method, weft; fwd=uri-miss"), Some("weft; fwd=uri-miss"));
    }

    #[test]
    fn the_share_that_the_service_had_nothing_to_do_with() {
        let tally = Tally::default();
        for _ in 0..3 {
            tally.note("product", Answered::Fresh);
        }
        tally.note("product", Answered::Confirmed);
        tally.note("cart", Answered::PassedBy);
        let so_far = tally.so_far();
        assert_eq!(so_far, [("product", Counts { fresh: 3, stale: 0, asked: 1 })]);
        assert_eq!((so_far[0].1.all(), so_far[0].1.percent()), (4, 75));
        assert_eq!(Counts::default().percent(), 0);
    }
}
