//! Which sibling a key belongs to, whether it may be asked, and what it is asked: decisions without a socket.
//!
//! Siblings are the sidecars of one service. Each key has an owner among them, by rendezvous hashing, so that one that
//! comes or goes moves its own keys and no others.

use http::{HeaderName, HeaderValue, request::Parts, response};
use std::{
    collections::{HashMap, VecDeque},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};
use weft_config::{
    identity::{ServiceName, SpiffeId},
    snapshot::{hash64, rendezvous},
};

/// What one sidecar asks another of its service. Only sidecars say it, and only to their own kind.
pub(crate) const WEFT_CACHE_ASK: HeaderName = HeaderName::from_static("weft-cache-ask");

/// How long one that failed is left out at first; twice as long after each further failure.
const LEFT_OUT: Duration = Duration::from_secs(1);
/// The longest that one is left out.
const LEFT_OUT_MAX: Duration = Duration::from_secs(30);

/// URIs of which it is remembered that they were changed through this sidecar, and for how many seconds.
const CHANGED: usize = 4096;
const CHANGED_FOR: u32 = 600;

/// In a request's extensions it says that a sibling asked: it is answered from here or by the origin, and by nobody else.
/// In a response's, that a sibling gave it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OfSibling;

impl OfSibling {
    /// Whether a sibling made this request.
    pub(crate) fn is(request: &Parts) -> bool {
        request.extensions.get::<Self>().is_some()
    }

    /// Whether a sibling gave this response.
    pub(crate) fn gave(response: &response::Parts) -> bool {
        response.extensions.get::<Self>().is_some()
    }
}

/// What a sibling is to be asked.
#[derive(Clone, Copy)]
pub(crate) struct ToSibling<'a> {
    /// The key's text.
    pub(crate) key: &'a [u8],
    /// The request as it would go to the origin.
    pub(crate) request: &'a Parts,
    /// What it keeps may be older than a change that was made through this sidecar: the origin has to confirm it.
    pub(crate) anew: bool,
    /// How long a sign of life is waited for.
    pub(crate) patience: Duration,
    /// How long one that is at work is waited for; `None` where requests do not wait for each other.
    pub(crate) wait: Option<Duration>,
}

/// What was changed through this sidecar lately. What siblings keep of it may be from before.
#[derive(Default)]
pub(crate) struct Changed(Mutex<Recent>);

#[derive(Default)]
struct Recent {
    at: HashMap<u64, u32, foldhash::fast::RandomState>,
    order: VecDeque<(u64, u32)>,
}

impl Changed {
    /// A URI was changed; `now` in seconds since 1970.
    pub(crate) fn note(&self, uri: &[u8], now: u32) {
        let hash = hash64(uri);
        let mut recent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Recent { at, order } = &mut *recent;
        while let Some((old, since)) = order.front().copied()
            && (order.len() >= CHANGED || now.saturating_sub(since) > CHANGED_FOR)
        {
            order.pop_front();
            // It may have been changed once more since.
            if at.get(&old) == Some(&since) {
                at.remove(&old);
            }
        }
        if at.insert(hash, now) != Some(now) {
            order.push_back((hash, now));
        }
    }

    /// Whether the URI of a key was.
    pub(crate) fn is_lately(&self, key: &[u8], now: u32) -> bool {
        let recent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if recent.at.is_empty() {
            return false;
        }
        let end = key.iter().position(|byte| *byte == b'\n').map_or(key.len(), |end| end + 1);
        recent.at.get(&hash64(&key[..end])).is_some_and(|at| now.saturating_sub(*at) <= CHANGED_FOR)
    }
}

/// Where an answer is to come from, whoever of the siblings gives it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ask {
    /// From a service that our applications call.
    Outbound {
        service: ServiceName,
        port: u16,
        /// What answers are kept for: the same backend, with the same done on the way. A digest.
        scope: u64,
    },
    /// From our own application, for this caller, whom the asker has let in.
    Inbound {
        /// The caller's proven identity.
        caller: Option<SpiffeId>,
    },
}

impl Ask {
    /// As it travels; `None` if it holds what no field can.
    pub(crate) fn value(&self) -> Option<HeaderValue> {
        let text = match self {
            Self::Outbound { service, port, scope } => format!("outbound {service} {port} {scope:016x}"),
            Self::Inbound { caller: Some(caller) } => format!("inbound {caller}"),
            Self::Inbound { caller: None } => "inbound".to_owned(),
        };
        HeaderValue::try_from(text).ok()
    }

    /// Reads it.
    pub(crate) fn read(value: &HeaderValue) -> Option<Self> {
        let mut words = value.to_str().ok()?.split(' ');
        let ask = match words.next()? {
            "outbound" => {
                let (namespace, name) = words.next()?.split_once('/')?;
                if namespace.is_empty() || name.is_empty() {
                    return None;
                }
                let service = ServiceName::new(namespace, name);
                let port = words.next()?.parse().ok()?;
                let scope = words.next().filter(|digits| digits.len() == 16)?;
                Self::Outbound { service, port, scope: u64::from_str_radix(scope, 16).ok()? }
            }
            "inbound" => {
                let caller = words.next().map(str::parse).transpose().ok()?;
                Self::Inbound { caller }
            }
            _ => return None,
        };
        words.next().is_none().then_some(ask)
    }
}

/// Whom a key belongs to, by index. Each of `members` is given by its stable name and by whether it can be asked.
pub(crate) fn owner(key: u64, members: impl Iterator<Item = (u64, bool)>) -> Option<usize> {
    rendezvous(key, members.map(|(name, can)| (name, u32::from(can))))
}

/// How often it had failed in a row when it was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Asked(u32);

/// How asking one sibling went lately.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Trust {
    failures: u32,
    /// It is not asked before this.
    until: Option<Instant>,
}

impl Trust {
    /// Whether it can be asked.
    pub(crate) fn is_given(&self, now: Instant) -> bool {
        self.until.is_none_or(|until| now >= until)
    }

    /// It is asked. After a failure the next question is a try: as long as a failure would leave it out, nobody else
    /// asks. What is given is for [`Self::failed`].
    pub(crate) fn asked(&mut self, now: Instant) -> Asked {
        if self.failures > 0 {
            self.until = now.checked_add(pause(self.failures));
        }
        Asked(self.failures)
    }

    /// It was there.
    pub(crate) fn answered(&mut self) {
        *self = Self::default();
    }

    /// It was not there in time, or could not be reached.
    pub(crate) fn failed(&mut self, asked: Asked, now: Instant) {
        // Of those who asked it together and failed together, the first counts.
        if asked.0 == self.failures {
            self.failures = self.failures.saturating_add(1);
            self.until = now.checked_add(pause(self.failures));
        }
    }
}

fn pause(failures: u32) -> Duration {
    LEFT_OUT.saturating_mul(1 << failures.saturating_sub(1).min(8)).min(LEFT_OUT_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rstest::rstest;

    fn outbound(service: &str, scope: u64) -> Ask {
        Ask::Outbound { service: ServiceName::new("shop", service), port: 8080, scope }
    }

    #[test]
    fn an_ask_is_read_as_it_was_meant() {
        let caller = "spiffe://weft.local/ns/shop/sa/cart".parse().ok();
        let asks = [
            outbound("a", 31),
            outbound("a", u64::MAX),
            Ask::Inbound { caller },
            Ask::Inbound { caller: None },
        ];
        for ask in asks {
            assert_eq!(Ask::read(&ask.value().expect("a value")), Some(ask));
        }
        assert_eq!(outbound("a\nb", 0).value(), None);
    }

    #[rstest]
    #[case("")]
    #[case("outbound")]
    #[case("outbound shop/product")]
    #[case("outbound shop/product 8080")]
    #[case("outbound shop/product 80800 000000000000001f")]
    #[case("outbound product 8080 000000000000001f")]
    #[case("outbound /product 8080 000000000000001f")]
    #[case("outbound shop/product 8080 000000000000001f more")]
    #[case("outbound shop/product 8080 1f")]
    #[case("outbound shop/product 8080 00000000000000xf")]
    #[case("inbound spiffe://nobody")]
    #[case("inbound ")]
    #[case("sideways")]
    fn what_is_no_ask_is_none(#[case] text: &str) {
        assert_eq!(Ask::read(&HeaderValue::from_str(text).expect("a value")), None);
    }

    #[test]
    fn what_was_changed_here_is_remembered_for_a_while() {
        let changed = Changed::default();
        changed.note(b"http://a/b\n", 100);
        assert!(changed.is_lately(b"http://a/b\nG\nSx", 100) && changed.is_lately(b"http://a/b\nG\nSx", 700));
        assert!(!changed.is_lately(b"http://a/b\nG\nSx", 701));
        assert!(!changed.is_lately(b"http://a/b?c\nG\nSx", 100));
    }

    #[test]
    fn what_was_changed_is_remembered_within_bounds_the_latest_first() {
        let changed = Changed::default();
        let uri = |n: u32| format!("http://a/{n}\n").into_bytes();
        (0..10_000).for_each(|n| changed.note(&uri(n % 5000), n / 100));
        let recent = changed.0.lock().unwrap();
        assert!(recent.at.len() <= CHANGED && recent.order.len() <= CHANGED);
        drop(recent);
        assert!(changed.is_lately(&uri(4999), 100) && !changed.is_lately(&uri(0), 100));
        changed.note(&uri(1), 10_000);
        assert_eq!(changed.0.lock().unwrap().at.len(), 1, "the rest is too long ago");
    }

    fn name(n: usize) -> u64 {
        hash64(format!("front-{n}@10.0.0.{n}:15006").as_bytes())
    }

    fn all(n: usize) -> impl Iterator<Item = (u64, bool)> {
        (0..n).map(|n| (name(n), true))
    }

    #[test]
    fn keys_spread_over_all() {
        let mut counts = [0; 20];
        for key in 0..20_000_u64 {
            counts[owner(hash64(&key.to_le_bytes()), all(20)).expect("an owner")] += 1;
        }
        assert!(counts.iter().all(|count| (800..1200).contains(count)), "{counts:?}");
    }

    #[test]
    fn nobody_owns_anything_where_there_is_nobody() {
        assert_eq!(owner(1, all(0)), None);
        assert_eq!(owner(1, [(name(0), false)].into_iter()), None);
    }

    proptest! {
        #[test]
        fn one_that_comes_takes_keys_and_moves_no_others(key: u64, n in 1_usize..30) {
            let (before, after) = (owner(key, all(n)), owner(key, all(n + 1)));
            prop_assert!(after == before || after == Some(n));
        }

        #[test]
        fn one_that_is_left_out_loses_its_own_keys_and_no_others(key: u64, n in 2_usize..30, out in 0_usize..30) {
            let out = out % n;
            let before = owner(key, all(n)).expect("one");
            let after = owner(key, all(n).enumerate().map(|(at, (name, _))| (name, at != out))).expect("one");
            prop_assert_ne!(after, out);
            prop_assert!(after == before || before == out);
        }

        #[test]
        fn who_is_the_owner_does_not_depend_on_the_order(key: u64, n in 1_usize..30, turn in 0_usize..30) {
            let names: Vec<u64> = (0..n).map(name).collect();
            let mut turned = names.clone();
            turned.rotate_left(turn % n);
            let at = |names: &[u64]| owner(key, names.iter().map(|name| (*name, true))).map(|at| names[at]);
            prop_assert_eq!(at(&names), at(&turned));
        }

        #[test]
        fn whatever_happens_it_is_asked_again_within_half_a_minute(events: Vec<(u8, u16)>) {
            let mut now = Instant::now();
            let mut trust = Trust::default();
            let mut asked = Asked(0);
            for (event, passed) in events {
                now += Duration::from_millis(passed.into());
                match event % 3 {
                    0 => trust.failed(asked, now),
                    1 => asked = trust.asked(now),
                    _ => trust.answered(),
                }
                prop_assert!(trust.is_given(now + LEFT_OUT_MAX));
            }
        }
    }

    #[test]
    fn one_that_fails_is_left_out_longer_each_time() {
        let start = Instant::now();
        let after = |millis| start + Duration::from_millis(millis);
        let mut trust = Trust::default();
        assert!(trust.is_given(start));
        let asked = trust.asked(start);
        trust.failed(asked, start);
        assert!(!trust.is_given(after(999)) && trust.is_given(after(1000)));
        let again = trust.asked(after(1000));
        assert!(!trust.is_given(after(1001)), "one tries, the others wait for what comes of it");
        trust.failed(again, after(1100));
        assert!(!trust.is_given(after(3099)) && trust.is_given(after(3100)));
        trust.asked(after(4000));
        trust.answered();
        assert!(trust.is_given(after(4000)));
    }

    #[test]
    fn those_who_fail_together_count_once() {
        let now = Instant::now();
        let mut trust = Trust::default();
        let asked: Vec<Asked> = (0..50).map(|_| trust.asked(now)).collect();
        asked.into_iter().for_each(|asked| trust.failed(asked, now));
        assert!(trust.is_given(now + LEFT_OUT));
    }

    #[test]
    fn a_try_of_which_nobody_hears_does_not_leave_it_out_for_good() {
        let now = Instant::now();
        let mut trust = Trust::default();
        let asked = trust.asked(now);
        trust.failed(asked, now);
        trust.asked(now + LEFT_OUT);
        assert!(trust.is_given(now + LEFT_OUT * 2));
    }
}
