//! Which backend of a rule takes a request: by shard, by session, by user, or by chance.
//!
//! Everything that sticks goes by weighted rendezvous hashing over the backends' names, so that all sidecars agree
//! without talking to each other, and a change of weights moves only users towards the side that grew.

use crate::error::{Error, Kind};
use std::fmt::Write as _;
use weft_config::{
    identity::ServiceName,
    snapshot::{Backend, Backends, Calls, Key, KeyPart, KeySource, Sharding, hash64, rendezvous},
};

/// The backend that takes a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Choice {
    /// The one of this index in the rule's list; 0 is the service itself for a port without routes.
    Own(usize),
    /// The one of this index among the shards.
    Shard(usize),
}

/// The backends of one rule, with their names hashed: made once for each snapshot.
#[derive(Clone, Debug)]
pub(crate) struct Split {
    /// What is chosen for, in errors: the rule's name or the service's.
    of: Box<str>,
    own: Box<[Side]>,
    /// The sum of the weights of `own`.
    total: u32,
    shards: Box<[Side]>,
}

#[derive(Clone, Copy, Debug)]
struct Side {
    name: u64,
    weight: u32,
}

impl Split {
    /// The backends of a rule.
    pub(crate) fn of_rule(name: &str, backends: &Backends, calls: &Calls) -> Self {
        let own = sides(backends.list.iter().map(|b| (&b.service, b.port, b.weight)));
        Self::new(name.into(), own, calls)
    }

    /// A port without routes: the service's own endpoints are its only backend.
    pub(crate) fn of_port(service: &ServiceName, port: u16, calls: &Calls) -> Self {
        Self::new(format!("{service}:{port}").into(), sides([(service, port, 1)].into_iter()), calls)
    }

    fn new(of: Box<str>, own: Box<[Side]>, calls: &Calls) -> Self {
        let shards = calls.sharding.iter().flat_map(|s| &*s.shards);
        Self {
            of,
            total: own.iter().fold(0, |sum, side| sum.saturating_add(side.weight)),
            own,
            shards: sides(shards.map(|b: &Backend| (&b.service, b.port, b.weight))),
        }
    }

    /// Chooses. `calls` is what this was made with; `session` is the backend that the request's session token names;
    /// `random` gives a number below its argument.
    ///
    /// A shard goes before everything: it is where the user's data is. Then comes a session that is under way, then
    /// the session key, and a request with neither goes by chance.
    pub(crate) fn choose(
        &self,
        calls: &Calls,
        from: &KeySource<'_>,
        session: Option<u64>,
        random: impl FnOnce(u32) -> u32,
    ) -> Result<Choice, Error> {
        if let Some(sharding) = &calls.sharding {
            return self.shard(sharding, from);
        }
        if self.total == 0 {
            return Err(Error::new(
                Kind::InvalidBackend,
                format!("{} has no backend with a weight", self.of),
            ));
        }
        if self.own.len() == 1 {
            return Ok(Choice::Own(0));
        }
        if let Some(name) = session
            && let Some(index) = self.own.iter().position(|side| side.name == name && side.weight > 0)
        {
            return Ok(Choice::Own(index));
        }
        let by_user = calls.session_key.as_ref().and_then(|key| key.first(from));
        let index = match by_user {
            Some(user) => owner(&self.own, &user),
            None => self.ticket(random(self.total)),
        };
        // There is one: the weights are not all zero.
        Ok(Choice::Own(index.unwrap_or(0)))
    }

    /// What names a backend in a session token. Apart for backends of one name in one rule.
    pub(crate) fn token(&self, choice: Choice) -> u64 {
        let side = match choice {
            Choice::Own(index) => self.own.get(index),
            Choice::Shard(index) => self.shards.get(index),
        };
        side.map_or(0, |side| side.name)
    }

    fn shard(&self, sharding: &Sharding, from: &KeySource<'_>) -> Result<Choice, Error> {
        let Some(key) = sharding.key.first(from) else {
            return sharding.without_key.map(Choice::Shard).ok_or_else(|| {
                Error::new(
                    Kind::BadRequest,
                    format!(
                        "{} is sharded, and the request does not say to whom it belongs: it needs {}",
                        self.of,
                        described(&sharding.key)
                    ),
                )
            });
        };
        let pinned = sharding.pinned.binary_search_by(|(pinned, _)| (**pinned).cmp(&*key));
        let shard = match pinned {
            Ok(at) => sharding.pinned.get(at).map(|(_, shard)| *shard),
            Err(_) => owner(&self.shards, &key),
        };
        shard.map(Choice::Shard).ok_or_else(|| {
            Error::new(Kind::InvalidBackend, format!("{} has no shard with a weight", self.of))
        })
    }

    fn ticket(&self, ticket: u32) -> Option<usize> {
        let mut left = ticket;
        self.own.iter().position(|side| {
            let mine = left < side.weight;
            left = left.saturating_sub(side.weight);
            mine
        })
    }
}

/// Names are hashed as `<namespace>/<service>:<port>`, which all sidecars of all versions must do alike. A rule may name
/// one service twice, with other filters: the second is another side.
fn sides<'a>(backends: impl Iterator<Item = (&'a ServiceName, u16, u32)>) -> Box<[Side]> {
    let mut sides: Vec<Side> = Vec::with_capacity(backends.size_hint().0);
    for (service, port, weight) in backends {
        let plain = hash64(format!("{service}:{port}").as_bytes());
        let mut name = plain;
        let mut again = 1_u32;
        while sides.iter().any(|side| side.name == name) {
            again += 1;
            name = hash64(format!("{service}:{port}#{again}").as_bytes());
        }
        sides.push(Side { name, weight });
    }
    sides.into()
}

fn owner(sides: &[Side], key: &str) -> Option<usize> {
    rendezvous(hash64(key.as_bytes()), sides.iter().map(|side| (side.name, side.weight)))
}

/// The parts of a key as a person would name them.
fn described(key: &Key) -> String {
    let mut out = String::new();
    for (index, part) in key.0.iter().enumerate() {
        if index > 0 {
            out.push_str(" or ");
        }
        // Writing to a String cannot fail.
        let _ = match part {
            KeyPart::Header(name) => write!(out, "the header `{name}`"),
            KeyPart::Cookie(name) => write!(out, "the cookie `{name}`"),
            KeyPart::Query(name) => write!(out, "the query parameter `{name}`"),
            KeyPart::Source => write!(out, "a source address"),
            KeyPart::Identity => write!(out, "a proven identity"),
        };
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderMap, HeaderName, HeaderValue};
    use proptest::prelude::*;
    use std::sync::Arc;
    use weft_config::snapshot::Filters;

    const USERS: u32 = 100_000;

    fn backend(name: &str, weight: u32) -> Backend {
        Backend {
            service: ServiceName::new("shop", name),
            port: 8080,
            weight,
            filters: Filters::default(),
            mirrors: Default::default(),
            invalid: None,
        }
    }

    fn backends(list: &[(&str, u32)]) -> Backends {
        Backends {
            list: list.iter().map(|(name, weight)| backend(name, *weight)).collect(),
            total_weight: list.iter().map(|(_, weight)| weight).sum(),
        }
    }

    fn by_user() -> Key {
        Key(Arc::new([KeyPart::Header(HeaderName::from_static("x-user"))]))
    }

    fn with_session_key() -> Calls {
        Calls { session_key: Some(by_user()), ..Calls::default() }
    }

    fn sharded(shards: &[(&str, u32)], pinned: &[(&str, usize)], without_key: Option<usize>) -> Calls {
        let mut pinned: Vec<(Arc<str>, usize)> = pinned.iter().map(|(k, n)| ((*k).into(), *n)).collect();
        pinned.sort();
        Calls {
            sharding: Some(Sharding {
                key: by_user(),
                shards: shards.iter().map(|(name, weight)| backend(name, *weight)).collect(),
                pinned: pinned.into(),
                without_key,
            }),
            ..Calls::default()
        }
    }

    fn user(name: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert("x-user", HeaderValue::from_str(name).expect("a value"));
        headers
    }

    fn from(headers: &HeaderMap) -> KeySource<'_> {
        KeySource { headers, query: None, source: "shop/cart", identity: None }
    }

    fn no_chance(_: u32) -> u32 {
        panic!("chance has no part in this")
    }

    /// Where each of `USERS` users goes.
    fn all_users(split: &Split, calls: &Calls) -> Vec<Choice> {
        (0..USERS)
            .map(|n| {
                let headers = user(&format!("user-{n}"));
                split.choose(calls, &from(&headers), None, no_chance).expect("a backend")
            })
            .collect()
    }

    fn share(choices: &[Choice], of: Choice) -> f64 {
        choices.iter().filter(|c| **c == of).count() as f64 / choices.len() as f64
    }

    #[test]
    fn requests_without_a_key_go_by_weight() {
        let split = Split::of_rule("r", &backends(&[("a", 1), ("b", 3)]), &Calls::default());
        let empty = HeaderMap::new();
        let went: Vec<Choice> = (0..4)
            .map(|ticket| {
                let random = |below| {
                    assert_eq!(below, 4);
                    ticket
                };
                split.choose(&Calls::default(), &from(&empty), None, random).expect("a backend")
            })
            .collect();
        assert_eq!(went, [Choice::Own(0), Choice::Own(1), Choice::Own(1), Choice::Own(1)]);
    }

    #[test]
    fn users_without_the_session_key_go_by_chance_and_users_with_it_do_not() {
        let calls = with_session_key();
        let split = Split::of_rule("r", &backends(&[("a", 1), ("b", 1)]), &calls);
        let nobody = user("");
        for ticket in [0, 1] {
            let chosen = split.choose(&calls, &from(&nobody), None, |_| ticket).expect("a backend");
            assert_eq!(chosen, Choice::Own(ticket as usize));
        }
        let ann = user("ann");
        let first = split.choose(&calls, &from(&ann), None, no_chance).expect("a backend");
        assert_eq!(split.choose(&calls, &from(&ann), None, no_chance).expect("a backend"), first);
    }

    #[test]
    fn shares_of_sticky_users_are_within_one_percent_of_the_weights() {
        for weights in [(90, 10), (50, 50), (1, 99), (999, 1), (1, 2)] {
            let calls = with_session_key();
            let split = Split::of_rule("r", &backends(&[("old", weights.0), ("new", weights.1)]), &calls);
            let measured = share(&all_users(&split, &calls), Choice::Own(1));
            let wanted = f64::from(weights.1) / f64::from(weights.0 + weights.1);
            assert!((measured - wanted).abs() < 0.01, "{measured}, not {wanted}");
        }
    }

    #[test]
    fn from_ten_to_fifty_percent_four_in_ten_users_move_and_all_of_them_to_the_new_side() {
        let calls = with_session_key();
        let at = |old, new| {
            let split = Split::of_rule("r", &backends(&[("old", old), ("new", new)]), &calls);
            all_users(&split, &calls)
        };
        let (ten, fifty, whole) = (at(90, 10), at(50, 50), at(0, 100));
        let moved = ten.iter().zip(&fifty).filter(|(before, after)| before != after).count();
        assert!((moved as f64 / f64::from(USERS) - 0.4).abs() < 0.01, "{moved} moved");
        assert!(ten.iter().zip(&fifty).all(|(before, after)| *before == Choice::Own(0) || before == after));
        assert_eq!(share(&whole, Choice::Own(1)), 1.0);
    }

    #[test]
    fn the_same_service_named_twice_still_gets_both_shares() {
        let calls = with_session_key();
        let split = Split::of_rule("r", &backends(&[("a", 30), ("a", 70)]), &calls);
        let measured = share(&all_users(&split, &calls), Choice::Own(0));
        assert!((measured - 0.3).abs() < 0.01, "{measured}");
        assert_ne!(split.token(Choice::Own(0)), split.token(Choice::Own(1)));
    }

    #[test]
    fn a_session_goes_before_the_key_and_before_chance_while_its_backend_has_weight() {
        let calls = with_session_key();
        let split = Split::of_rule("r", &backends(&[("a", 1), ("b", 1), ("c", 0)]), &calls);
        let ann = user("ann");
        for index in [0, 1] {
            let token = split.token(Choice::Own(index));
            let chosen = split.choose(&calls, &from(&ann), Some(token), no_chance).expect("a backend");
            assert_eq!(chosen, Choice::Own(index));
        }
        let by_key = split.choose(&calls, &from(&ann), None, no_chance).expect("a backend");
        for gone in [split.token(Choice::Own(2)), 7] {
            let chosen = split.choose(&calls, &from(&ann), Some(gone), no_chance).expect("a backend");
            assert_eq!(chosen, by_key);
        }
    }

    #[test]
    fn one_backend_is_taken_without_a_look_at_the_request() {
        let split = Split::of_port(&ServiceName::new("shop", "a"), 80, &Calls::default());
        let empty = HeaderMap::new();
        let chosen = split.choose(&Calls::default(), &from(&empty), Some(3), no_chance);
        assert_eq!(chosen.expect("a backend"), Choice::Own(0));
    }

    #[test]
    fn without_any_weight_the_answer_is_500() {
        let split = Split::of_rule("shop/r#0", &backends(&[("a", 0)]), &Calls::default());
        let empty = HeaderMap::new();
        let refused = split.choose(&Calls::default(), &from(&empty), None, no_chance).expect_err("none");
        assert_eq!(refused.kind, Kind::InvalidBackend);
        let calls = sharded(&[("a", 0)], &[("acme", 0)], None);
        let split = Split::of_rule("shop/r#0", &backends(&[("a", 1)]), &calls);
        let (ann, acme) = (user("ann"), user("acme"));
        let refused = split.choose(&calls, &from(&ann), None, no_chance).expect_err("none");
        assert_eq!(refused.kind, Kind::InvalidBackend);
        let kept = split.choose(&calls, &from(&acme), None, no_chance).expect("its shard");
        assert_eq!(kept, Choice::Shard(0), "a shard without weight still has those that are pinned to it");
    }

    #[test]
    fn pinned_tenants_stay_whatever_shards_come() {
        let pinned = [("acme", 1), ("zeta", 0), ("berg", 1)];
        for shards in [&[("s1", 1), ("s2", 1)][..], &[("s1", 9), ("s2", 1), ("s3", 5)]] {
            let calls = sharded(shards, &pinned, None);
            let split = Split::of_port(&ServiceName::new("shop", "orders"), 80, &calls);
            for (tenant, shard) in pinned {
                let headers = user(tenant);
                let chosen = split.choose(&calls, &from(&headers), None, no_chance).expect("a shard");
                assert_eq!(chosen, Choice::Shard(shard), "{tenant}");
            }
        }
    }

    #[test]
    fn another_shard_takes_its_share_and_moves_nobody_else() {
        let names = ["s1", "s2", "s3", "s4", "s5", "s6"];
        for n in 1..names.len() {
            let at = |n: usize| {
                let shards: Vec<(&str, u32)> = names.iter().take(n).map(|name| (*name, 1)).collect();
                let calls = sharded(&shards, &[], None);
                all_users(&Split::of_rule("r", &Backends::default(), &calls), &calls)
            };
            let (before, after) = (at(n), at(n + 1));
            let moved: Vec<&Choice> =
                before.iter().zip(&after).filter(|(b, a)| b != a).map(|(_, a)| a).collect();
            assert!(moved.iter().all(|to| **to == Choice::Shard(n)));
            let share = moved.len() as f64 / f64::from(USERS);
            assert!(
                (share - 1.0 / (n + 1) as f64).abs() < 0.01,
                "{share} of the keys moved to shard {}",
                n + 1
            );
        }
    }

    #[test]
    fn a_shard_goes_before_a_session() {
        let calls = sharded(&[("s1", 1), ("s2", 1)], &[("acme", 1)], None);
        let split = Split::of_rule("r", &backends(&[("a", 1), ("b", 1)]), &calls);
        let acme = user("acme");
        let token = split.token(Choice::Shard(0));
        let chosen = split.choose(&calls, &from(&acme), Some(token), no_chance).expect("a shard");
        assert_eq!(chosen, Choice::Shard(1));
    }

    #[test]
    fn without_its_key_a_sharded_call_is_told_what_it_lacks() {
        let mut calls = sharded(&[("s1", 1)], &[], None);
        if let Some(sharding) = &mut calls.sharding {
            sharding.key = Key(Arc::new([
                KeyPart::Header(HeaderName::from_static("x-customer")),
                KeyPart::Cookie("customer".into()),
                KeyPart::Query("c".into()),
            ]));
        }
        let split = Split::of_rule("shop/orders#0", &Backends::default(), &calls);
        let empty = HeaderMap::new();
        let refused = split.choose(&calls, &from(&empty), None, no_chance).expect_err("no key");
        assert_eq!(refused.kind, Kind::BadRequest);
        let wanted = "the header `x-customer` or the cookie `customer` or the query parameter `c`";
        assert!(refused.detail.contains(wanted), "{}", refused.detail);
        assert!(refused.detail.contains("shop/orders#0"), "{}", refused.detail);

        let calls = sharded(&[("s1", 1), ("s2", 1)], &[], Some(1));
        let chosen = split.choose(&calls, &from(&empty), None, no_chance).expect("the shard without key");
        assert_eq!(chosen, Choice::Shard(1));
    }

    proptest! {
        #[test]
        fn a_growing_side_only_draws_users_in(name in "[a-z0-9-]{1,16}", from_share in 0_u32..=100, to_share in 0_u32..=100) {
            let (small, large) = (from_share.min(to_share), from_share.max(to_share));
            let calls = with_session_key();
            let headers = user(&name);
            let at = |new| {
                let split = Split::of_rule("r", &backends(&[("old", 100 - new), ("new", new)]), &calls);
                split.choose(&calls, &from(&headers), None, no_chance).expect("a backend")
            };
            let (before, after) = (at(small), at(large));
            prop_assert!(before == after || (before, after) == (Choice::Own(0), Choice::Own(1)));
        }

        #[test]
        fn a_choice_always_has_weight(name in "[a-z]{0,8}", weights in proptest::collection::vec(0_u32..4, 1..6), ticket: u32, token: u64) {
            let list: Vec<(String, u32)> = weights.iter().enumerate().map(|(n, w)| (format!("b{n}"), *w)).collect();
            let list: Vec<(&str, u32)> = list.iter().map(|(name, weight)| (name.as_str(), *weight)).collect();
            let calls = with_session_key();
            let split = Split::of_rule("r", &backends(&list), &calls);
            let headers = user(&name);
            match split.choose(&calls, &from(&headers), Some(token), |below| ticket % below) {
                Ok(Choice::Own(index)) => prop_assert!(weights[index] > 0),
                Ok(Choice::Shard(_)) => prop_assert!(false, "there are no shards"),
                Err(_) => prop_assert!(weights.iter().all(|w| *w == 0)),
            }
        }
    }
}
