//! Leases: which workloads are alive and ready, and where. Pure state; the caller brings the time.

use crate::publisher::StreamId;
use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};
use weft_config::identity::SpiffeId;

/// How long a workload stays after its stream was lost: long enough to reconnect, short enough for a crash.
pub const GRACE: Duration = Duration::from_secs(1);

/// One process that serves one workload.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Instance {
    /// The workload's namespace.
    pub namespace: Arc<str>,
    /// The workload's name.
    pub workload: Arc<str>,
    /// What the process calls itself, new at every start.
    pub id: Arc<str>,
}

/// A workload that takes traffic.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Serving {
    /// Who it is, as proven by the stream that holds the lease.
    pub identity: SpiffeId,
    /// Where its sidecar takes mesh traffic.
    pub address: SocketAddr,
}

#[derive(Debug)]
struct Lease {
    identity: SpiffeId,
    address: Option<SocketAddr>,
    ready: bool,
    stream: StreamId,
    expires: Instant,
}

impl Lease {
    fn serving(&self) -> Option<Serving> {
        let address = self.address.filter(|_| self.ready)?;
        Some(Serving { identity: self.identity.clone(), address })
    }
}

/// All leases.
#[derive(Debug)]
pub struct Registry {
    timeout: Duration,
    leases: HashMap<Instance, Lease>,
}

impl Registry {
    /// An empty registry whose leases last `timeout` unless they are renewed.
    pub fn new(timeout: Duration) -> Self {
        Self { timeout, leases: HashMap::new() }
    }

    /// Takes or renews a lease. Gives the instances whose serving changed by it.
    pub fn lease(
        &mut self,
        now: Instant,
        stream: StreamId,
        instance: &Instance,
        identity: &SpiffeId,
        address: Option<SocketAddr>,
        ready: bool,
    ) -> Vec<Instance> {
        let mut changed = Vec::new();
        let before = self.leases.get(instance).and_then(Lease::serving);
        // A process that was restarted takes its predecessor's place at once instead of standing beside it. Looked for
        // only when an address is new: renewals are many.
        let known = self.leases.get(instance).is_some_and(|lease| lease.address == address);
        if let Some(address) = address.filter(|_| !known) {
            let predecessors: Vec<Instance> = self
                .leases
                .iter()
                .filter(|(other, lease)| {
                    lease.address == Some(address)
                        && other.workload == instance.workload
                        && other.namespace == instance.namespace
                        && other.id != instance.id
                        && lease.stream < stream
                })
                .map(|(other, _)| other.clone())
                .collect();
            for predecessor in predecessors {
                self.leases.remove(&predecessor);
                changed.push(predecessor);
            }
        }
        let lease = Lease { identity: identity.clone(), address, ready, stream, expires: now + self.timeout };
        let after = lease.serving();
        self.leases.insert(instance.clone(), lease);
        if before != after {
            changed.push(instance.clone());
        }
        changed
    }

    /// The stream of an instance is gone; unless it comes back soon, so is the instance.
    pub fn stream_lost(&mut self, now: Instant, stream: StreamId, instance: &Instance) {
        if let Some(lease) = self.leases.get_mut(instance)
            && lease.stream == stream
        {
            lease.expires = lease.expires.min(now + GRACE);
        }
    }

    /// Takes over what served before a restart, until `until`: by then whoever is alive has come back.
    pub fn restore(&mut self, until: Instant, before: impl IntoIterator<Item = (Instance, Serving)>) {
        for (instance, Serving { identity, address }) in before {
            let lease = Lease { identity, address: Some(address), ready: true, stream: 0, expires: until };
            self.leases.entry(instance).or_insert(lease);
        }
    }

    /// Drops what has expired. Gives the instances that served until now.
    pub fn expire(&mut self, now: Instant) -> Vec<Instance> {
        let mut gone = Vec::new();
        self.leases.retain(|instance, lease| {
            let keep = lease.expires > now;
            if !keep && lease.serving().is_some() {
                gone.push(instance.clone());
            }
            keep
        });
        gone.sort();
        gone
    }

    /// How an instance serves, if it does.
    pub fn serving(&self, instance: &Instance) -> Option<Serving> {
        self.leases.get(instance)?.serving()
    }

    /// Every instance that serves.
    pub fn all_serving(&self) -> impl Iterator<Item = (&Instance, Serving)> {
        self.leases.iter().filter_map(|(instance, lease)| Some((instance, lease.serving()?)))
    }

    /// How many leases there are, ready or not.
    pub fn len(&self) -> usize {
        self.leases.len()
    }

    /// True without any lease.
    pub fn is_empty(&self) -> bool {
        self.leases.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(5);

    fn instance(id: &str) -> Instance {
        Instance { namespace: "shop".into(), workload: "cart".into(), id: id.into() }
    }

    fn identity() -> SpiffeId {
        "spiffe://weft.local/ns/shop/sa/cart".parse().expect("valid")
    }

    fn address(port: u16) -> Option<SocketAddr> {
        Some(SocketAddr::from(([10, 0, 0, 1], port)))
    }

    struct Fixture {
        registry: Registry,
        start: Instant,
    }

    impl Fixture {
        fn new() -> Self {
            Self { registry: Registry::new(TIMEOUT), start: Instant::now() }
        }

        fn lease(
            &mut self,
            seconds: f64,
            stream: StreamId,
            id: &str,
            port: u16,
            ready: bool,
        ) -> Vec<Instance> {
            let now = self.start + Duration::from_secs_f64(seconds);
            self.registry.lease(now, stream, &instance(id), &identity(), address(port), ready)
        }

        fn expire(&mut self, seconds: f64) -> Vec<Instance> {
            self.registry.expire(self.start + Duration::from_secs_f64(seconds))
        }
    }

    #[test]
    fn a_lease_serves_until_it_expires() {
        let mut f = Fixture::new();
        assert_eq!(f.lease(0.0, 1, "a", 1, true), [instance("a")]);
        assert_eq!(
            f.registry.serving(&instance("a")).expect("serving").address,
            address(1).expect("address")
        );
        assert!(f.expire(4.9).is_empty());
        assert_eq!(f.expire(5.0), [instance("a")]);
        assert!(f.registry.is_empty());
    }

    #[test]
    fn a_renewed_lease_stays_and_changes_nothing() {
        let mut f = Fixture::new();
        f.lease(0.0, 1, "a", 1, true);
        for second in 1..20 {
            assert!(f.lease(f64::from(second), 1, "a", 1, true).is_empty());
            assert!(f.expire(f64::from(second) + 0.5).is_empty());
        }
    }

    #[test]
    fn not_ready_withdraws_at_once() {
        let mut f = Fixture::new();
        f.lease(0.0, 1, "a", 1, true);
        assert_eq!(f.lease(1.0, 1, "a", 1, false), [instance("a")]);
        assert_eq!(f.registry.serving(&instance("a")), None);
        assert_eq!(f.registry.len(), 1, "it is still alive");
        assert!(f.expire(6.0).is_empty(), "its end changes nothing for anybody");
    }

    #[test]
    fn without_an_address_nothing_is_served() {
        let mut f = Fixture::new();
        let changed = f.registry.lease(f.start, 1, &instance("a"), &identity(), None, true);
        assert!(changed.is_empty());
        assert_eq!(f.lease(0.1, 1, "a", 1, true), [instance("a")]);
    }

    #[test]
    fn a_lost_stream_gives_a_short_grace() {
        let mut f = Fixture::new();
        f.lease(0.0, 1, "a", 1, true);
        f.registry.stream_lost(f.start + Duration::from_secs(1), 1, &instance("a"));
        assert!(f.expire(1.9).is_empty());
        assert_eq!(f.expire(2.0), [instance("a")]);
    }

    #[test]
    fn a_reconnect_within_the_grace_is_not_noticed() {
        let mut f = Fixture::new();
        f.lease(0.0, 1, "a", 1, true);
        f.registry.stream_lost(f.start + Duration::from_secs(1), 1, &instance("a"));
        assert!(f.lease(1.5, 2, "a", 1, true).is_empty());
        assert!(f.expire(4.0).is_empty());
    }

    #[test]
    fn the_loss_of_an_older_stream_means_nothing() {
        let mut f = Fixture::new();
        f.lease(0.0, 1, "a", 1, true);
        f.lease(1.0, 2, "a", 1, true);
        f.registry.stream_lost(f.start + Duration::from_secs(1), 1, &instance("a"));
        assert!(f.expire(3.0).is_empty());
    }

    #[test]
    fn a_grace_never_prolongs_a_lease() {
        let mut f = Fixture::new();
        f.lease(0.0, 1, "a", 1, true);
        f.registry.stream_lost(f.start + Duration::from_millis(4900), 1, &instance("a"));
        assert_eq!(f.expire(5.0), [instance("a")]);
    }

    #[test]
    fn a_restarted_process_replaces_the_one_before_it() {
        let mut f = Fixture::new();
        f.lease(0.0, 1, "a", 1, true);
        let changed = f.lease(0.5, 2, "b", 1, true);
        assert_eq!(changed, [instance("a"), instance("b")]);
        assert_eq!(f.registry.len(), 1);
    }

    #[test]
    fn what_served_before_a_restart_serves_on_until_it_had_time_to_come_back() {
        let mut f = Fixture::new();
        let served = |port| Serving { identity: identity(), address: address(port).expect("address") };
        let until = f.start + Duration::from_secs(10);
        f.registry.restore(until, [(instance("a"), served(1)), (instance("b"), served(2))]);
        assert_eq!(f.registry.all_serving().count(), 2);
        assert!(f.lease(1.0, 1, "a", 1, true).is_empty(), "nothing changes when it comes back");
        for second in 2..10 {
            f.lease(f64::from(second), 1, "a", 1, true);
        }
        assert_eq!(f.expire(10.0), [instance("b")]);
    }

    #[test]
    fn two_processes_at_two_addresses_stand_side_by_side() {
        let mut f = Fixture::new();
        f.lease(0.0, 1, "a", 1, true);
        f.lease(0.0, 2, "b", 2, true);
        assert_eq!(f.registry.all_serving().count(), 2);
    }
}
