//! The purges of the last hour, in their order: what a sidecar that was away must catch up on.

use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use weft_config::{
    purge::Purge,
    wire::{self, purge::What},
};

/// Purges are remembered for so long, and so many of them. Whoever missed one that is forgotten purges everything.
pub(crate) const KEEP_SECONDS: u64 = 3600;
pub(crate) const KEEP: usize = 1000;

/// All of them, as they are written down.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Log {
    /// Random: numbers of another list mean nothing here.
    name: String,
    /// The last purge.
    last: u64,
    /// The last one that is forgotten.
    forgotten: u64,
    kept: VecDeque<Kept>,
}

/// A purge as it is written down: as it would be asked for again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Kept {
    number: u64,
    /// Seconds of Unix time.
    at: u64,
    kind: String,
    text: String,
    service: String,
    soft: bool,
}

impl Kept {
    fn to_wire(&self, log: &str) -> wire::Purge {
        let text = self.text.clone();
        let what = match self.kind.as_str() {
            "url" => Some(What::Url(text)),
            "prefix" => Some(What::Prefix(text)),
            "tag" => Some(What::Tag(text)),
            "policy" => Some(What::Policy(text)),
            // What cannot be understood was more than nothing.
            _ => Some(What::All(true)),
        };
        wire::Purge {
            log: log.to_owned(),
            number: self.number,
            round: 0,
            what,
            service: self.service.clone(),
            soft: self.soft,
        }
    }
}

/// What a sidecar has to catch up on.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Missed {
    /// In their order; the last one has the last number of all.
    pub(crate) purges: Vec<wire::Purge>,
    /// Of these, those that purge anything.
    pub(crate) real: usize,
    /// True if nobody knows any more what it missed, so that everything goes.
    pub(crate) everything: bool,
}

impl Log {
    /// One in which nothing was purged yet.
    pub(crate) fn new() -> Self {
        Self { name: format!("{:032x}", fastrand::u128(..)), last: 0, forgotten: 0, kept: VecDeque::new() }
    }

    /// The same with one more purge. Gives its number.
    pub(crate) fn with(&self, purge: &Purge, now: u64) -> (Self, u64) {
        let mut log = self.clone();
        log.last += 1;
        let (kind, text) = purge.text();
        log.kept.push_back(Kept {
            number: log.last,
            at: now,
            kind: kind.to_owned(),
            text,
            service: purge.service.as_ref().map(ToString::to_string).unwrap_or_default(),
            soft: purge.soft,
        });
        log.forget(now);
        let number = log.last;
        (log, number)
    }

    fn forget(&mut self, now: u64) {
        while let Some(oldest) = self.kept.front()
            && (self.kept.len() > KEEP || now.saturating_sub(oldest.at) > KEEP_SECONDS)
        {
            self.forgotten = oldest.number;
            self.kept.pop_front();
        }
    }

    /// One purge, as it is sent for the first time.
    pub(crate) fn wire(&self, number: u64) -> Option<wire::Purge> {
        self.kept.iter().find(|kept| kept.number == number).map(|kept| kept.to_wire(&self.name))
    }

    /// The list and the number of the last purge in it.
    pub(crate) fn last(&self) -> (String, u64) {
        (self.name.clone(), self.last)
    }

    /// A purge of everything, which stands for all that there were.
    pub(crate) fn everything(&self) -> wire::Purge {
        self.marker(What::All(true))
    }

    fn marker(&self, what: What) -> wire::Purge {
        wire::Purge { log: self.name.clone(), number: self.last, what: Some(what), ..wire::Purge::default() }
    }

    /// What a sidecar missed that carried out all up to this number of this list; one that knows of no list has just
    /// started, and may have kept something on disk.
    pub(crate) fn missed(&mut self, list: &str, number: u64, now: u64) -> Missed {
        self.forget(now);
        if !list.is_empty() && (list != self.name || number < self.forgotten || number > self.last) {
            return Missed { purges: vec![self.everything()], real: 1, everything: true };
        }
        let number = if list.is_empty() { 0 } else { number };
        let news = self.kept.iter().filter(|kept| kept.number > number);
        let mut purges: Vec<_> = news.map(|kept| kept.to_wire(&self.name)).collect();
        let real = purges.len();
        if purges.last().is_none_or(|purge| purge.number != self.last) {
            purges.push(self.marker(What::Nothing(true)));
        }
        Missed { purges, real, everything: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_config::purge::Kind;

    const NOW: u64 = 1_800_000_000;

    fn purge(text: &str) -> Purge {
        Purge::read(Kind::Url, text, "", false, "shop").expect("is one")
    }

    fn numbers(missed: &Missed) -> Vec<u64> {
        missed.purges.iter().map(|purge| purge.number).collect()
    }

    #[test]
    fn whoever_was_away_gets_what_it_missed_in_its_order() {
        let mut log = Log::new();
        for n in 1..=5u64 {
            let (next, number) = log.with(&purge(&format!("http://product/{n}")), NOW + n);
            assert_eq!(number, n);
            log = next;
        }
        let name = log.name.clone();
        assert_eq!(numbers(&log.missed(&name, 3, NOW + 6)), [4, 5]);
        let nothing = log.missed(&name, 5, NOW + 6);
        assert_eq!((numbers(&nothing), nothing.real, nothing.everything), (vec![5], 0, false));
        assert_eq!(nothing.purges[0].what, Some(What::Nothing(true)));
        // One that has just started.
        assert_eq!(numbers(&log.missed("", 0, NOW + 6)), [1, 2, 3, 4, 5]);
        let url = What::Url("http://product/5".to_owned());
        assert_eq!(log.missed(&name, 4, NOW + 6).purges[0].what, Some(url));
    }

    #[test]
    fn whoever_missed_what_is_forgotten_purges_everything() {
        let mut log = Log::new();
        for n in 1..=KEEP as u64 + 10 {
            log = log.with(&purge("http://product/"), NOW + n / 100).0;
        }
        let name = log.name.clone();
        assert_eq!(log.kept.len(), KEEP);
        let last = KEEP as u64 + 10;
        assert_eq!(numbers(&log.missed(&name, 10, NOW + 20)).len(), KEEP);
        let all = log.missed(&name, 9, NOW + 20);
        assert!(all.everything && all.purges[0].what == Some(What::All(true)) && numbers(&all) == [last]);
        // An hour later all are forgotten, and the last is still known by its number.
        let later = NOW + 20 + KEEP_SECONDS;
        assert!(log.missed(&name, last - 1, later).everything);
        let nothing = log.missed(&name, last, later);
        assert!(!nothing.everything && nothing.real == 0);
        assert_eq!(log.missed("", 0, later).real, 0);
    }

    #[test]
    fn numbers_of_another_list_or_from_the_future_mean_nothing() {
        let mut log = Log::new().with(&purge("http://product/"), NOW).0;
        assert!(log.missed("another", 1, NOW).everything);
        let name = log.name.clone();
        assert!(log.missed(&name, 2, NOW).everything);
    }

    #[test]
    fn it_is_the_same_after_it_was_written_down() {
        let mut log = Log::new();
        for (kind, text, service) in [
            (Kind::All, "", "shop/cart"),
            (Kind::Url, "http://product:8080/a?b", ""),
            (Kind::Prefix, "http://product/", ""),
            (Kind::Tag, "p:1", "shop/product"),
            (Kind::Policy, "shop/pages", ""),
        ] {
            let purge = Purge::read(kind, text, service, kind == Kind::Tag, "shop").expect("is one");
            let (next, number) = log.with(&purge, NOW);
            log = next;
            let wire = log.wire(number).expect("is kept");
            assert_eq!(Purge::from_wire(&wire, "shop"), Ok(Some(purge)));
        }
        let text = serde_json::to_string(&log).expect("JSON");
        assert_eq!(serde_json::from_str::<Log>(&text).expect("the same"), log);
    }
}
