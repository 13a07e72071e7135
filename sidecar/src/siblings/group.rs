//! The sidecars that serve one service together, as one of them sees the others.

use crate::{
    cache::siblings::{Trust, owner},
    policy::Used,
    upstream::{Endpoint, guard::Standing},
};
use std::{cell::RefCell, rc::Rc, sync::Arc, time::Instant};
use weft_config::{
    identity::{ServiceName, SpiffeId},
    snapshot::{Bounds, Endpoint as Place, Limits},
};

/// One of the others, with connections of its own.
pub(super) struct Sibling {
    pub(super) endpoint: Rc<Endpoint>,
    pub(super) trust: RefCell<Trust>,
}

/// All of them.
pub(super) struct Group {
    service: ServiceName,
    port: u16,
    /// What the snapshot says; to see whether anything changed.
    places: Arc<[Place]>,
    members: Vec<Member>,
    /// Keeps the service subscribed to.
    used: Option<Arc<Used>>,
}

struct Member {
    id: u64,
    /// `None` for us.
    sibling: Option<Rc<Sibling>>,
}

/// Who is to be asked.
pub(super) struct Choice {
    /// `None` if the key is ours, or nobody is left.
    pub(super) sibling: Option<Rc<Sibling>>,
    /// Another one would have been, but failed lately.
    pub(super) left_out: bool,
}

impl Group {
    /// Those at `places` who have our identity. `own` is that and our workload's name; of what was there `before`,
    /// connections and trust stay.
    pub(super) fn new(
        service: &ServiceName,
        port: u16,
        places: &Arc<[Place]>,
        own: (SpiffeId, &str),
        before: Option<&Self>,
        used: Option<Arc<Used>>,
    ) -> Self {
        let (identity, workload) = own;
        let now = Instant::now();
        let old = |place: &Place| {
            let siblings = before.into_iter().flat_map(|group| &group.members);
            siblings.filter_map(|member| member.sibling.clone()).find(|old| {
                let was = &old.endpoint.place;
                (was.address, &was.workload, &was.identity)
                    == (place.address, &place.workload, &place.identity)
            })
        };
        let of_our_kind = places.iter().filter(|place| place.identity.as_ref() == Some(&identity));
        let members = of_our_kind.map(|place| {
            let sibling = (*place.workload != *workload).then(|| {
                old(place).unwrap_or_else(|| {
                    let standing = Standing::alone(place.address, now);
                    let endpoint = Endpoint::new(service.clone(), port, place.clone(), standing, now);
                    Rc::new(Sibling { endpoint: Rc::new(endpoint), trust: RefCell::default() })
                })
            });
            Member { id: Endpoint::id_of(place), sibling }
        });
        Self { service: service.clone(), port, members: members.collect(), places: places.clone(), used }
    }

    /// Whether these serve this port.
    pub(super) fn is(&self, service: &ServiceName, port: u16) -> bool {
        self.port == port && self.service == *service
    }

    /// Whether these are the ones that a snapshot names.
    pub(super) fn is_of(&self, places: &Arc<[Place]>) -> bool {
        Arc::ptr_eq(&self.places, places)
    }

    /// Notes that they are asked.
    pub(super) fn mark_used(&self) {
        if let Some(used) = &self.used {
            used.mark();
        }
    }

    /// Whom a key belongs to, among those who can be asked. Whoever is chosen comes before us in an order that is the
    /// same for all, whatever each of us knows of the others: so no two can wait for each other.
    pub(super) fn choose(&self, key: u64, now: Instant) -> Choice {
        if !self.members.iter().any(|member| member.sibling.is_none()) {
            // We do not count among them (yet, or any more).
            return Choice { sibling: None, left_out: false };
        }
        let names = |can: &dyn Fn(&Sibling) -> bool| {
            let one = |member: &Member| (member.id, member.sibling.as_deref().is_none_or(can));
            owner(key, self.members.iter().map(one))
        };
        let is_trusted = |sibling: &Sibling| sibling.trust.borrow().is_given(now);
        let first = names(&|_| true);
        let Some(member) = first.and_then(|at| self.members.get(at)) else {
            return Choice { sibling: None, left_out: false };
        };
        if member.sibling.as_deref().is_none_or(is_trusted) {
            return Choice { sibling: member.sibling.clone(), left_out: false };
        }
        let next = names(&is_trusted).and_then(|at| self.members.get(at));
        Choice { sibling: next.and_then(|member| member.sibling.clone()), left_out: true }
    }

    /// Closes what has been idle for too long.
    pub(super) fn sweep(&self, limits: &Limits) {
        for sibling in self.members.iter().filter_map(|member| member.sibling.as_ref()) {
            sibling.endpoint.sweep(&Bounds::default(), limits);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_config::snapshot::hash64;

    fn identity(account: &str) -> SpiffeId {
        format!("spiffe://weft.local/ns/shop/sa/{account}").parse().expect("an identity")
    }

    fn place(n: u8, account: Option<&str>) -> Place {
        Place {
            address: ([10, 0, 0, n], 15006).into(),
            identity: account.map(identity),
            workload: format!("front-{n}").into(),
            zone: None,
            labels: Arc::new([]),
            weight: 1,
        }
    }

    fn group(places: Vec<Place>, before: Option<&Group>) -> Group {
        let service = ServiceName::new("shop", "front");
        Group::new(&service, 8080, &places.into(), (identity("front"), "front-0"), before, None)
    }

    fn all(n: u8) -> Vec<Place> {
        (0..n).map(|n| place(n, Some("front"))).collect()
    }

    fn keys() -> impl Iterator<Item = u64> {
        (0..1000_u64).map(|n| hash64(&n.to_le_bytes()))
    }

    /// Whom each key belongs to; our own to nobody.
    fn owners(group: &Group, now: Instant) -> Vec<Option<Arc<str>>> {
        let name = |sibling: Rc<Sibling>| sibling.endpoint.place.workload.clone();
        keys().map(|key| group.choose(key, now).sibling.map(name)).collect()
    }

    fn fail(group: &Group, n: u8, now: Instant) {
        let all = group.members.iter().filter_map(|member| member.sibling.as_ref());
        let sibling = all.clone().find(|s| *s.endpoint.place.workload == *format!("front-{n}"));
        let mut trust = sibling.expect("a sibling").trust.borrow_mut();
        let asked = trust.asked(now);
        trust.failed(asked, now);
    }

    #[test]
    fn own_keys_are_asked_of_nobody_and_others_of_all() {
        let owners = owners(&group(all(4), None), Instant::now());
        for name in ["front-1", "front-2", "front-3"] {
            let count = owners.iter().filter(|owner| owner.as_deref() == Some(name)).count();
            assert!((150..350).contains(&count), "{count} of {name}");
        }
        assert!(owners.iter().any(Option::is_none));
        assert!(owners.iter().flatten().all(|name| &**name != "front-0"), "we do not ask ourselves");
    }

    #[test]
    fn who_has_another_identity_or_none_is_no_sibling() {
        let places = vec![place(0, Some("front")), place(1, Some("back")), place(2, None)];
        assert!(owners(&group(places, None), Instant::now()).iter().all(Option::is_none));
    }

    #[test]
    fn nobody_is_asked_where_we_are_alone_or_where_nobody_is() {
        for places in [all(1), vec![]] {
            assert!(owners(&group(places, None), Instant::now()).iter().all(Option::is_none));
        }
    }

    #[test]
    fn keys_of_one_that_failed_go_to_the_others_until_it_is_tried_again() {
        let group = group(all(4), None);
        let now = Instant::now();
        let before = owners(&group, now);
        fail(&group, 2, now);
        let after = owners(&group, now);
        assert!(after.iter().flatten().all(|name| &**name != "front-2"));
        let is_its = |owner: &Option<Arc<str>>| owner.as_deref() == Some("front-2");
        assert!(before.iter().zip(&after).all(|(before, after)| before == after || is_its(before)));
        let heirs = before.iter().zip(&after).filter(|(before, _)| is_its(before)).map(|(_, after)| after);
        assert!(heirs.collect::<std::collections::HashSet<_>>().len() > 1, "one of them all");
        assert!(keys().any(|key| group.choose(key, now).left_out));
        let later = now + std::time::Duration::from_secs(1);
        assert_eq!(owners(&group, later), before);
    }

    #[test]
    fn those_who_stay_keep_their_trust_when_others_come_and_go() {
        let first = group(all(3), None);
        let now = Instant::now();
        fail(&first, 1, now);
        let second = group(all(5), Some(&first));
        assert!(owners(&second, now).iter().flatten().all(|name| &**name != "front-1"));
        let gone = group(vec![place(0, Some("front")), place(2, Some("front"))], Some(&second));
        let back = group(all(3), Some(&gone));
        assert!(owners(&back, now).iter().flatten().any(|name| &**name == "front-1"), "it is a new one");
    }

    #[test]
    fn one_that_is_not_among_them_asks_nobody() {
        let others = all(4).into_iter().skip(1).collect();
        assert!(owners(&group(others, None), Instant::now()).iter().all(Option::is_none));
    }

    proptest::proptest! {
        /// Whatever each of two knows, only one of them can ever ask the other about a key.
        #[test]
        fn no_two_wait_for_each_other(
            key: u64,
            known in proptest::collection::vec(proptest::bool::ANY, 8),
            failed in proptest::collection::vec(proptest::bool::ANY, 8),
        ) {
            let now = Instant::now();
            let service = ServiceName::new("shop", "front");
            let asks = |own: u8, other: u8, known: &[bool], failed: &[bool]| {
                let is_known = |n: u8| n == own || n == other || known[usize::from(n)];
                let places: Vec<Place> =
                    (0..8).filter(|n| is_known(*n)).map(|n| place(n, Some("front"))).collect();
                let name = format!("front-{own}");
                let group = Group::new(&service, 8080, &places.into(), (identity("front"), &name), None, None);
                for n in (0..8).filter(|n| is_known(*n) && *n != own && failed[usize::from(*n)]) {
                    fail(&group, n, now);
                }
                let chosen = group.choose(key, now).sibling;
                chosen.is_some_and(|sibling| *sibling.endpoint.place.workload == *format!("front-{other}"))
            };
            let none = [false; 8];
            let one = asks(0, 1, &known, &failed) || asks(0, 1, &none, &none);
            let other = asks(1, 0, &failed, &known) || asks(1, 0, &none, &none);
            proptest::prop_assert!(!(one && other));
        }
    }

    #[test]
    fn all_see_the_same_owner() {
        let service = ServiceName::new("shop", "front");
        let seen = |workload: &str| {
            let places: Vec<Place> =
                if workload == "front-1" { all(5).into_iter().rev().collect() } else { all(5) };
            let group = Group::new(&service, 8080, &places.into(), (identity("front"), workload), None, None);
            let own: Arc<str> = workload.into();
            owners(&group, Instant::now())
                .into_iter()
                .map(|owner| owner.unwrap_or(own.clone()))
                .collect::<Vec<_>>()
        };
        let first = seen("front-0");
        assert!((1..5).all(|n| seen(&format!("front-{n}")) == first));
    }
}
