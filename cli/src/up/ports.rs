//! Free ports on loopback, given out so that nothing else takes them before their program listens.

use anyhow::{Context, bail};
use std::{
    collections::HashSet,
    hash::{Hash, Hasher},
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener},
};

/// Ports are taken from this range. It lies below the kernel's usual range for outgoing connections (from 32768), so
/// that no outgoing connection sits on a port in the moment between a crash and the restart.
const FIRST: u16 = 20_000;
const LAST: u16 = 31_999;

/// Gives out ports and keeps them bound until [`PortPlan::release`].
pub(super) struct PortPlan {
    next: u16,
    held: Vec<TcpListener>,
    given: HashSet<u16>,
}

impl PortPlan {
    /// A plan whose ports start at a place that depends on `seed`: the same mesh gets the same ports each time it is
    /// started, and two meshes hardly ever look at the same ones.
    pub(super) fn new(seed: impl Hash) -> Self {
        // Unlike a map's, this hasher's keys are fixed: the value is the same in every run.
        let mut hasher = std::hash::DefaultHasher::new();
        seed.hash(&mut hasher);
        let span = u64::from(LAST - FIRST);
        let next = FIRST + u16::try_from(hasher.finish() % span).unwrap_or(0);
        Self { next, held: Vec::new(), given: HashSet::new() }
    }

    /// A free port.
    pub(super) fn any(&mut self) -> anyhow::Result<SocketAddr> {
        for _ in FIRST..=LAST {
            let port = self.next;
            self.next = if port == LAST { FIRST } else { port + 1 };
            if !self.given.contains(&port)
                && let Ok(address) = self.hold(port)
            {
                return Ok(address);
            }
        }
        bail!("no free port on 127.0.0.1 between {FIRST} and {LAST}; stop what uses them all")
    }

    /// This very port, which a document asks for.
    pub(super) fn exactly(&mut self, port: u16) -> anyhow::Result<SocketAddr> {
        self.hold(port).with_context(|| {
            format!(
                "port {port} on 127.0.0.1 is not free; stop what listens there (`ss -ltnp 'sport = :{port}'` shows \
                 it) or leave `appPort` out and let the application listen on $PORT"
            )
        })
    }

    /// This port if it is free, else any.
    pub(super) fn preferably(&mut self, port: u16) -> anyhow::Result<SocketAddr> {
        if port == 0 { self.any() } else { self.hold(port).or_else(|_| self.any()) }
    }

    fn hold(&mut self, port: u16) -> std::io::Result<SocketAddr> {
        let address = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::LOCALHOST, port));
        let listener = TcpListener::bind(address)?;
        self.held.push(listener);
        self.given.insert(port);
        Ok(address)
    }

    /// Lets go of every port: their programs are about to be started.
    pub(super) fn release(&mut self) {
        self.held.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_port_is_given_twice() {
        let mut plan = PortPlan::new("no_port_is_given_twice");
        let mut seen = HashSet::new();
        for _ in 0..50 {
            let address = plan.any().expect("a port");
            assert!(seen.insert(address.port()), "{address} twice");
            assert!((FIRST..=LAST).contains(&address.port()));
        }
    }

    #[test]
    fn a_taken_port_is_skipped_and_a_demanded_one_is_an_error_with_a_cure() {
        let taken = TcpListener::bind("127.0.0.1:0").expect("bound");
        let port = taken.local_addr().expect("address").port();
        let mut plan = PortPlan::new("a_taken_port");
        let other = plan.preferably(port).expect("another");
        assert_ne!(other.port(), port);
        let error = format!("{:#}", plan.exactly(port).expect_err("it is taken"));
        assert!(error.contains(&port.to_string()) && error.contains("$PORT"), "{error}");
    }

    #[test]
    fn released_ports_can_be_bound() {
        let mut plan = PortPlan::new("released_ports_can_be_bound");
        let address = plan.any().expect("a port");
        assert!(TcpListener::bind(address).is_err(), "held");
        plan.release();
        TcpListener::bind(address).expect("free now");
    }

    #[test]
    fn a_mesh_gets_the_same_place_each_time() {
        assert_eq!(PortPlan::new("shop").next, PortPlan::new("shop").next);
        assert_ne!(PortPlan::new("shop").next, PortPlan::new("other").next);
    }
}
