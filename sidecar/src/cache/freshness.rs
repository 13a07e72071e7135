//! How old a response is, how long it is fresh, and what may still be done with it after (RFC 9111 section 4.2).

use super::{
    conditional::Validators,
    date,
    directives::{FOREVER, RequestDirectives, ResponseDirectives, seconds},
    entry::Times,
};
use http::{HeaderMap, StatusCode, header};
use std::time::Duration;
use weft_config::snapshot::CacheRules;

/// The longest freshness by the heuristic.
const HEURISTIC_MAX: u64 = 86_400;
/// How long a response is worth its memory only because the origin can be asked whether it is still so.
const ASK_AGAIN: u32 = 86_400;

/// When a request was sent and the head of its response came, by the wall clock in seconds since 1970.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Arrival {
    pub(crate) requested: u32,
    pub(crate) received: u32,
}

/// How old a response was when it came: `corrected_initial_age` of section 4.2.3.
pub(crate) fn initial_age(headers: &HeaderMap, arrival: Arrival) -> u32 {
    let Arrival { requested, received } = arrival;
    // Without a date it was made when it came (RFC 9110 section 6.6.1).
    let made = date::of(headers, &header::DATE, received).unwrap_or(received.into());
    let apparent = u32::try_from(u64::from(received).saturating_sub(made)).unwrap_or(FOREVER);
    let delay = received.saturating_sub(requested);
    apparent.max(age_field(headers).saturating_add(delay)).min(FOREVER)
}

/// The `Age` field: of a list the first, and zero if that is no number (section 5.1).
fn age_field(headers: &HeaderMap) -> u32 {
    let first = headers.get(header::AGE).and_then(|value| value.as_bytes().split(|b| *b == b',').next());
    first.and_then(|digits| seconds(digits.trim_ascii())).unwrap_or(0)
}

/// Statuses whose responses may be given a freshness that nobody stated (RFC 9110 section 15.1).
pub(crate) fn is_heuristically_cacheable(status: StatusCode) -> bool {
    matches!(status.as_u16(), 200 | 203 | 204 | 206 | 300 | 301 | 308 | 404 | 405 | 410 | 414 | 501)
}

/// Who says how long a response is fresh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// The response: `s-maxage`, `max-age` or `Expires`.
    Origin,
    /// An override of the policy.
    Override,
    /// The policy, since the origin says nothing.
    Default,
    /// The method is one that the policy keeps.
    Method,
    /// Ten percent of how long it has not changed.
    Heuristic,
    /// Nobody.
    Nobody,
}

/// What the freshness of a response follows from, besides the response.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Circumstances<'a> {
    pub(crate) rules: &'a CacheRules,
    /// In normal form.
    pub(crate) path: &'a str,
    /// For a gRPC method that the policy keeps: its freshness.
    pub(crate) method: Option<Duration>,
    /// True if something in the request may have made the answer one person's, so that no freshness is guessed.
    pub(crate) personal: bool,
    pub(crate) arrival: Arrival,
}

/// How long a response may be used, and how: all that a look-up needs. Times in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Terms {
    /// When it came, since 1970.
    pub(crate) received: u32,
    /// How old it was then.
    pub(crate) initial_age: u32,
    pub(crate) lifetime: u32,
    /// For how long beyond it may be given while it is fetched anew.
    pub(crate) while_revalidate: u32,
    /// For how long beyond it may be given when the origin fails.
    pub(crate) if_error: u32,
    pub(crate) flags: Flags,
}

/// What holds whatever the times are.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Flags(pub(crate) u16);

impl std::fmt::Debug for Flags {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Flags({:#b})", self.0)
    }
}

impl Flags {
    /// `no-cache`: never without asking.
    pub(crate) const NO_CACHE: Self = Self(1);
    /// `must-revalidate` and what means the same here: never stale.
    pub(crate) const NEVER_STALE: Self = Self(2);
    /// `immutable` (RFC 8246).
    pub(crate) const IMMUTABLE: Self = Self(4);
    /// The origin said nothing of its freshness, nor that it is for all.
    pub(crate) const HEURISTIC: Self = Self(8);
    /// It has an `ETag` or `Last-Modified` to ask by.
    pub(crate) const VALIDATOR: Self = Self(16);
    /// The bits beyond these, which are for [`Rulebook`](super::rulebook::Rulebook).
    pub(crate) const BITS: u32 = 5;

    pub(crate) const fn has(self, flag: Self) -> bool {
        self.0 & flag.0 != 0
    }

    fn set(&mut self, flag: Self, on: bool) {
        if on {
            self.0 |= flag.0;
        }
    }

    pub(crate) const fn clear(&mut self, flag: Self) {
        self.0 &= !flag.0;
    }
}

/// Why a stored response is not given as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    /// The response says `no-cache`.
    NoCache,
    /// It is stale and says that it must not be given then.
    NeverStale,
    /// The request says `no-cache`.
    RequestNoCache,
    /// It is older than the request's `max-age`.
    RequestMaxAge,
    /// It is not fresh for as long as the request's `min-fresh`.
    RequestMinFresh,
}

/// What may be done with a stale response.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct May {
    /// Given while it is fetched anew (RFC 5861 section 3).
    pub(crate) while_revalidate: bool,
    /// Given when the origin fails (RFC 5861 section 4).
    pub(crate) if_error: bool,
    /// Given because the request takes it (RFC 9111 section 5.2.1.2).
    pub(crate) max_stale: bool,
}

/// What a stored response is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Freshness {
    /// To be given, for so many seconds more.
    Fresh { left: u32 },
    /// Stale for so many seconds.
    Stale { by: u32, may: May },
    /// The origin must be asked; `if_error`: unless it fails.
    MustRevalidate { why: Why, if_error: bool },
}

impl Terms {
    /// What a response and the policy say together, and who says how long it is fresh.
    pub(crate) fn new(
        status: StatusCode,
        headers: &HeaderMap,
        directives: &ResponseDirectives,
        around: &Circumstances<'_>,
    ) -> (Self, Source) {
        let rules = around.rules;
        let over = rules.ttl.over(status, around.path);
        let forced = over.is_some_and(|over| over.force);
        let (lifetime, source) = match (over, around.method) {
            (Some(over), _) => (whole(over.ttl), Source::Override),
            // What the response says itself may be shorter than what the policy gives the method.
            (None, Some(ttl)) => (whole(ttl).min(directives.lifetime().unwrap_or(FOREVER)), Source::Method),
            (None, None) => match explicit(headers, directives, around.arrival.received) {
                Some(lifetime) => (lifetime, Source::Origin),
                None => implicit(status, headers, directives, around),
            },
        };
        let lifetime = rules.ttl.max.map_or(lifetime, |max| lifetime.min(whole(max)));
        let mut flags = Flags::default();
        flags.set(Flags::NO_CACHE, directives.no_cache && !forced);
        flags.set(Flags::NEVER_STALE, directives.never_stale() || (directives.no_cache && !forced));
        flags.set(Flags::IMMUTABLE, directives.immutable);
        let unsaid = matches!(source, Source::Heuristic | Source::Default);
        flags.set(Flags::HEURISTIC, unsaid && !directives.public);
        flags.set(Flags::VALIDATOR, Validators::of(headers, around.arrival.received).any());
        let terms = Self {
            received: around.arrival.received,
            initial_age: initial_age(headers, around.arrival),
            lifetime,
            while_revalidate: directives.while_revalidate.unwrap_or(whole(rules.while_revalidate)),
            if_error: directives.if_error.unwrap_or(whole(rules.if_error)),
            flags,
        };
        (terms, source)
    }

    /// Those of a stored response.
    pub(crate) fn of(times: &Times, flags: u16) -> Self {
        let Times { received, initial_age, lifetime, while_revalidate, if_error, .. } = *times;
        Self { received, initial_age, lifetime, while_revalidate, if_error, flags: Flags(flags) }
    }

    /// The same as the store keeps them, with when the request was sent; the flags are kept beside them.
    pub(crate) fn times(&self, requested: u32) -> Times {
        Times {
            requested,
            received: self.received,
            initial_age: self.initial_age,
            lifetime: self.lifetime,
            while_revalidate: self.while_revalidate,
            if_error: self.if_error,
            useful_until: self.useful_until(),
        }
    }

    /// Its age (section 4.2.3).
    pub(crate) fn age(&self, now: u32) -> u32 {
        // A clock that was set back makes nothing younger than it came.
        self.initial_age.saturating_add(now.saturating_sub(self.received)).min(FOREVER)
    }

    /// How much longer it is fresh, negative once it is stale (RFC 9211 section 2.5).
    pub(crate) fn left(&self, now: u32) -> i64 {
        i64::from(self.lifetime) - i64::from(self.age(now))
    }

    /// For how long beyond its freshness it may be given in some case.
    fn beyond(&self) -> u32 {
        if self.flags.has(Flags::NEVER_STALE) { 0 } else { self.while_revalidate.max(self.if_error) }
    }

    /// Until when it can be used in any way: then its memory is for others.
    pub(crate) fn useful_until(&self) -> u32 {
        let given = self.lifetime.saturating_add(self.beyond()).saturating_sub(self.initial_age);
        let asked = if self.flags.has(Flags::VALIDATOR) { ASK_AGAIN } else { 0 };
        let fresh = self.lifetime.saturating_sub(self.initial_age);
        self.received.saturating_add(given.max(fresh.saturating_add(asked)))
    }

    /// True if it is of any use: to be given, fresh or stale, or to be asked about.
    pub(crate) fn is_useful(&self) -> bool {
        let given = self.initial_age < self.lifetime.saturating_add(self.beyond());
        (given && !self.flags.has(Flags::NO_CACHE)) || self.flags.has(Flags::VALIDATOR)
    }

    /// What it is good for.
    pub(crate) fn judge(&self, request: &RequestDirectives, now: u32) -> Freshness {
        let age = self.age(now);
        let fresh = self.lifetime > age;
        let must = |why, if_error| Freshness::MustRevalidate { why, if_error };
        if self.flags.has(Flags::NO_CACHE) {
            return must(Why::NoCache, false);
        }
        if request.no_cache {
            return must(Why::RequestNoCache, false);
        }
        let never_stale = self.flags.has(Flags::NEVER_STALE);
        let by = age.saturating_sub(self.lifetime);
        let if_error = fresh || (!never_stale && by < self.if_error.max(request.if_error));
        if !fresh && never_stale {
            return must(Why::NeverStale, false);
        }
        // While it is fresh, an immutable response is not asked about by a mere reload (RFC 8246 section 2).
        let reload = !(fresh && self.flags.has(Flags::IMMUTABLE));
        if reload && request.max_age.is_some_and(|max| age > max || max == 0) {
            return must(Why::RequestMaxAge, if_error);
        }
        if fresh {
            let left = self.lifetime - age;
            return if left >= request.min_fresh {
                Freshness::Fresh { left }
            } else {
                must(Why::RequestMinFresh, if_error)
            };
        }
        let willing = request.min_fresh == 0;
        let may = May {
            while_revalidate: willing && by < self.while_revalidate,
            if_error,
            max_stale: willing && request.max_stale.is_some_and(|max| by <= max),
        };
        Freshness::Stale { by, may }
    }
}

/// Whole seconds; a part of one is none, but for the very first: what is to be kept is kept at all.
pub(super) fn whole(time: Duration) -> u32 {
    let seconds = if time.is_zero() { 0 } else { time.as_secs().max(1) };
    u32::try_from(seconds).unwrap_or(FOREVER).min(FOREVER)
}

/// What the response says itself (section 4.2.1).
pub(crate) fn explicit(headers: &HeaderMap, directives: &ResponseDirectives, received: u32) -> Option<u32> {
    if let Some(lifetime) = directives.lifetime() {
        return Some(lifetime);
    }
    // A targeted field stands in place of `Expires` too (RFC 9213 section 2.2).
    if directives.targeted || !headers.contains_key(header::EXPIRES) {
        return None;
    }
    let made = date::of(headers, &header::DATE, received).unwrap_or(received.into());
    // Of several the one that expires first; what is no date has expired (section 5.3).
    let each = headers.get_all(header::EXPIRES).iter();
    each.map(|value| {
        let expires = date::parse(value.as_bytes(), received).unwrap_or(0);
        u32::try_from(expires.saturating_sub(made)).unwrap_or(FOREVER).min(FOREVER)
    })
    .min()
}

/// A freshness for a response that states none.
fn implicit(
    status: StatusCode,
    headers: &HeaderMap,
    directives: &ResponseDirectives,
    around: &Circumstances<'_>,
) -> (u32, Source) {
    if !is_heuristically_cacheable(status) && !directives.public {
        return (0, Source::Nobody);
    }
    if around.personal && !directives.public {
        return (0, Source::Nobody);
    }
    if let Some(default) = around.rules.ttl.default {
        return (whole(default), Source::Default);
    }
    let received = around.arrival.received;
    let Some(modified) = date::of(headers, &header::LAST_MODIFIED, received) else {
        return (0, Source::Nobody);
    };
    let made = date::of(headers, &header::DATE, received).unwrap_or(received.into());
    let tenth = (made.saturating_sub(modified) / 10).min(HEURISTIC_MAX);
    (u32::try_from(tenth).unwrap_or(FOREVER), Source::Heuristic)
}

#[cfg(test)]
mod tests;
