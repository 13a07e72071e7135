//! What is spoken on the next hop: decided from what the caller spoke, what the port declares, and how busy the hop is.

use std::cell::Cell;
use weft_config::{identity::MeshProtocol, snapshot::AppProtocol};

/// How one request travels to the next hop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Wire {
    /// HTTP/1.1: the connection is this request's alone until its answer is read.
    Http1,
    /// HTTP/2 for an application that speaks HTTP/2.
    Http2,
    /// HTTP/1 messages in HTTP/2 streams, between sidecars only.
    Http1Over2,
}

impl Wire {
    /// The ALPN protocol of this wire between sidecars.
    pub(crate) fn mesh(self) -> MeshProtocol {
        match self {
            Self::Http1 => MeshProtocol::Http1,
            Self::Http2 => MeshProtocol::Http2,
            Self::Http1Over2 => MeshProtocol::Http1Over2,
        }
    }

    /// The label of metrics and logs.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Http1 => "http1",
            Self::Http2 => "http2",
            Self::Http1Over2 => "http1over2",
        }
    }
}

/// Chooses the wire for one request.
///
/// The declared protocol wins over the caller's; undeclared ports are spoken to as the caller speaks. HTTP/1 between
/// sidecars is carried over HTTP/2 while `busy`, since then many requests share one TLS record and one system call; at
/// low load a plain HTTP/1 connection costs fewer wake-ups. Upgrades and CONNECT always need a connection of their own.
pub(crate) fn choose(
    declared: AppProtocol,
    caller_is_http2: bool,
    mesh: bool,
    tunnel: bool,
    busy: bool,
) -> Wire {
    let http2 = match declared {
        AppProtocol::Http2 => true,
        AppProtocol::Http1 => false,
        AppProtocol::Auto | AppProtocol::Tcp => caller_is_http2,
    };
    match (http2, mesh && busy) {
        _ if tunnel => Wire::Http1,
        (true, _) => Wire::Http2,
        (false, true) => Wire::Http1Over2,
        (false, false) => Wire::Http1,
    }
}

/// Whether a hop is busy enough for multiplexing, with a memory so that it does not flap.
#[derive(Debug, Default)]
pub(crate) struct Busyness {
    average: Cell<f32>,
    busy: Cell<bool>,
}

/// Requests in flight, on average as arriving requests see it, from which multiplexing pays, and below which it stops.
const ENTER: f32 = 5.0;
const LEAVE: f32 = 2.5;
/// Share of each new observation.
const GAIN: f32 = 1.0 / 16.0;

impl Busyness {
    /// Takes in what an arriving request sees in flight; says whether to multiplex it.
    pub(crate) fn arrive(&self, in_flight: u32) -> bool {
        let average = self.average.get() + (in_flight as f32 - self.average.get()) * GAIN;
        self.average.set(average);
        let busy = if self.busy.get() { average > LEAVE } else { average > ENTER };
        self.busy.set(busy);
        busy
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn declared_protocol_wins() {
        use AppProtocol::{Auto, Http1, Http2};
        assert_eq!(choose(Http2, false, false, false, false), Wire::Http2);
        assert_eq!(choose(Http1, true, false, false, false), Wire::Http1);
        assert_eq!(choose(Auto, true, true, false, false), Wire::Http2);
        assert_eq!(choose(Auto, false, true, false, true), Wire::Http1Over2);
        assert_eq!(choose(Auto, false, false, false, true), Wire::Http1, "only sidecars understand 1over2");
        assert_eq!(choose(Http2, true, true, true, true), Wire::Http1, "a tunnel needs its own connection");
    }

    #[test]
    fn multiplexing_starts_under_load_and_ends_with_it() {
        let hop = Busyness::default();
        assert!((0..1000).all(|_| !hop.arrive(1)));
        let after = (0..1000).position(|_| hop.arrive(32)).expect("becomes busy");
        assert!(after < 20, "{after}");
        assert!((0..100).all(|_| hop.arrive(4)), "stays busy between the thresholds");
        assert!((0..1000).any(|_| !hop.arrive(0)));
        assert!((0..1000).all(|_| !hop.arrive(4)), "stays calm between the thresholds");
    }
}
