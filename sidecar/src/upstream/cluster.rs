//! A cluster: the endpoints of one service port and the turn-taking among them.

use super::{
    balancer::{Candidate, pick},
    endpoint::{Endpoint, InFlight},
};
use crate::telemetry::metrics::ServiceSeries;
use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};
use weft_config::{
    identity::ServiceName,
    snapshot::{AppProtocol, Endpoint as Place, Port, Traffic},
};

/// One backend as one worker sees it.
pub(crate) struct Cluster {
    pub(crate) service: ServiceName,
    pub(crate) port: u16,
    /// Attempts and endpoints are counted here.
    pub(crate) series: Arc<ServiceSeries>,
    state: RefCell<State>,
    turn: Cell<usize>,
}

struct State {
    /// What the current snapshot says; to see whether anything changed.
    places: Arc<[Place]>,
    traffic: Arc<Traffic>,
    protocol: AppProtocol,
    endpoints: Vec<Rc<Endpoint>>,
}

impl Cluster {
    pub(crate) fn new(service: ServiceName, port: u16, series: Arc<ServiceSeries>) -> Self {
        Self {
            service,
            port,
            series,
            state: RefCell::new(State {
                places: Arc::new([]),
                traffic: Arc::default(),
                protocol: AppProtocol::Auto,
                endpoints: Vec::new(),
            }),
            turn: Cell::new(0),
        }
    }

    /// Takes over what a snapshot says; endpoints that stay keep their connections and what was learnt of them.
    pub(crate) fn update(&self, port: &Port, now: Instant) {
        let mut state = self.state.borrow_mut();
        state.traffic = port.traffic.clone();
        state.protocol = port.protocol;
        if Arc::ptr_eq(&state.places, &port.endpoints) {
            return;
        }
        let old = std::mem::take(&mut state.endpoints);
        state.endpoints = port
            .endpoints
            .iter()
            .map(|place| {
                old.iter().find(|e| e.place == *place).cloned().unwrap_or_else(|| {
                    Rc::new(Endpoint::new(self.service.clone(), self.port, place.clone(), now))
                })
            })
            .collect();
        state.places = port.endpoints.clone();
        self.series.set_endpoints(state.endpoints.len());
    }

    /// What the port declares.
    pub(crate) fn protocol(&self) -> AppProtocol {
        self.state.borrow().protocol
    }

    /// Picks an endpoint, not one that `tried` holds while there is another.
    pub(crate) fn pick(&self, tried: &[Rc<Endpoint>]) -> Option<InFlight> {
        let state = self.state.borrow();
        let endpoints = &state.endpoints;
        let avoid: smallvec::SmallVec<[usize; 4]> =
            tried.iter().filter_map(|t| endpoints.iter().position(|e| Rc::ptr_eq(e, t))).collect();
        let index = pick(
            &state.traffic.balancing.algorithm,
            endpoints.len(),
            |i| Candidate { load: &endpoints[i].load, weight: endpoints[i].place.weight },
            &avoid,
            &self.turn,
            Instant::now(),
            |n| fastrand::usize(..n),
        )?;
        Some(endpoints[index].begin())
    }

    /// How many endpoints there are.
    pub(crate) fn len(&self) -> usize {
        self.state.borrow().endpoints.len()
    }

    /// Closes idle connections.
    pub(crate) fn sweep(&self, idle_timeout: Duration) {
        for endpoint in &self.state.borrow().endpoints {
            endpoint.sweep(idle_timeout);
        }
    }

    /// Each endpoint, for `/clusters`.
    pub(crate) fn endpoints(&self) -> Vec<Rc<Endpoint>> {
        self.state.borrow().endpoints.clone()
    }
}
