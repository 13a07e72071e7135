//! A cluster: the endpoints of one service port, or of one rule's own view of it, and who of them takes a request.

use super::{
    balancer::{Candidates, Load, Weights, chance, pick},
    connect::Connector,
    endpoint::{Endpoint, InFlight},
    guard::{Availability, Guard, GuardKey, Guards, Why},
    hashing::{Table, unit},
    health::{Checks, Claims, Setup},
    hedge::{Latencies, delay},
    membership::{Census, Membership, own_share, slow_start},
};
use crate::{
    error::{Error, Kind},
    telemetry::metrics::ServiceSeries,
};
use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    ops::Range,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};
use weft_config::{
    identity::ServiceName,
    snapshot::{
        AppProtocol, Balancer, Endpoint as Place, Hedge, KeySource, Limits, Port, Snapshot, Traffic, hash64,
        mix,
    },
};

/// How long a count of who is well in which zone is good for. Those that are picked are looked at each time.
const CENSUS: Duration = Duration::from_millis(50);

/// What tells one cluster from another.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ClusterKey {
    pub(crate) service: ServiceName,
    pub(crate) port: u16,
    /// The rule whose policy says something about endpoints, and which therefore has clusters of its own.
    pub(crate) rule: Option<Arc<str>>,
}

/// One backend as one worker sees it.
pub(crate) struct Cluster {
    pub(crate) service: ServiceName,
    pub(crate) port: u16,
    /// The rule that it belongs to, if it is not the service's own.
    pub(crate) rule: Option<Arc<str>>,
    /// Attempts and endpoints are counted here.
    pub(crate) series: Arc<ServiceSeries>,
    /// What all workers know together: limits, breakers, budget, ejections.
    pub(crate) guard: Arc<Guard>,
    state: RefCell<State>,
    checks: Checks,
    turn: Cell<usize>,
    /// How long calls took lately, if somebody wants to know when one is slow.
    latencies: RefCell<Option<Latencies>>,
    /// When it was last counted who is well, and the share of calls that stays in the own zone since; `None` where
    /// zones make no difference now.
    counted: Cell<Option<(Instant, Option<f64>)>>,
}

#[derive(Default)]
struct State {
    /// What the current snapshot says; to see whether anything changed.
    places: Arc<[Place]>,
    traffic: Arc<Traffic>,
    zone: Option<Arc<str>>,
    protocol: AppProtocol,
    /// In the order of `places`.
    endpoints: Vec<Rc<Endpoint>>,
    /// Those that take calls, see [`Membership`].
    members: Vec<Rc<Endpoint>>,
    /// How many of the members, from the first, are in the own zone.
    own: usize,
    /// Of the members.
    weights: Weights,
    /// Of the members, if the balancer goes by a key.
    table: Option<Table>,
}

/// What a request asks of the choice.
#[derive(Clone, Copy, Default)]
pub(crate) struct Preference<'a> {
    /// Endpoints that it has failed on: taken only when there is no other.
    pub(crate) tried: &'a [Rc<Endpoint>],
    /// The hash of its key, see [`Cluster::key_hash`].
    pub(crate) key: Option<u64>,
    /// The endpoint that its session is on, by [`Endpoint::id`]: taken while it takes calls and was not tried.
    pub(crate) endpoint: Option<u64>,
}

impl Cluster {
    /// A cluster without endpoints.
    pub(crate) fn new(key: ClusterKey, guards: &Guards, series: Arc<ServiceSeries>, now: Instant) -> Self {
        let ClusterKey { service, port, rule } = key;
        let name: Arc<str> =
            if service.namespace.is_empty() { service.name.clone() } else { service.to_string().into() };
        let guard = guards.get(&GuardKey { service: name, port, rule: rule.clone() }, &series, now);
        Self {
            service,
            port,
            rule,
            series,
            guard,
            state: RefCell::default(),
            checks: Checks::default(),
            turn: Cell::new(0),
            latencies: RefCell::default(),
            counted: Cell::new(None),
        }
    }

    /// Takes over what a snapshot says: the port, how its endpoints are treated, and the zone that calls come from.
    /// Endpoints that stay keep their connections and what was learnt of them.
    pub(crate) fn update(&self, port: &Port, traffic: &Arc<Traffic>, zone: Option<&Arc<str>>, now: Instant) {
        let mut state = self.state.borrow_mut();
        let state = &mut *state;
        state.protocol = port.protocol;
        let same_places = Arc::ptr_eq(&state.places, &port.endpoints) || state.places == port.endpoints;
        let same_traffic = Arc::ptr_eq(&state.traffic, traffic) || state.traffic == *traffic;
        if same_places && same_traffic && state.zone.as_ref() == zone {
            return;
        }
        if !same_traffic {
            state.traffic = traffic.clone();
        }
        state.zone = zone.cloned();
        state.places = port.endpoints.clone();
        let standings = self.guard.update(&state.traffic, &state.places, now);
        let old = std::mem::take(&mut state.endpoints);
        let old: HashMap<_, _> = old.iter().map(|e| ((e.place.address, &*e.place.workload), e)).collect();
        state.endpoints = state
            .places
            .iter()
            .zip(standings)
            .map(|(place, standing)| match old.get(&(place.address, &*place.workload)) {
                Some(old) if old.place == *place => Rc::clone(old),
                Some(old) if old.place.identity == place.identity => Rc::new(old.described(place.clone())),
                _ => {
                    let name = self.service.clone();
                    Rc::new(Endpoint::new(name, self.port, place.clone(), standing, now))
                }
            })
            .collect();
        let balancing = &state.traffic.balancing;
        let Membership { members, own } = Membership::new(&state.places, balancing, zone.map(|z| &**z));
        state.members = members.into_iter().map(|index| state.endpoints[index].clone()).collect();
        state.own = own;
        state.weights = Weights::new(state.members.iter().map(|e| e.place.weight));
        let named = state.members.iter().map(|e| (e.id, e.place.weight));
        state.table = Table::new(&balancing.algorithm, named);
        self.counted.set(None);
        self.series.set_endpoints(state.endpoints.len());
    }

    /// The same for a cluster that a rule has for itself, with the rule's own settings.
    pub(crate) fn update_own(&self, port: &Port, own: &Traffic, zone: Option<&Arc<str>>, now: Instant) {
        let before = self.traffic();
        let traffic = if *before == *own { before } else { Arc::new(own.clone()) };
        self.update(port, &traffic, zone, now);
    }

    /// How long after an attempt another one may start beside it; `None` while nobody can tell.
    pub(crate) fn hedge_delay(&self, hedge: &Hedge, now: Instant) -> Option<Duration> {
        delay(hedge, self.latencies.borrow_mut().get_or_insert_with(|| Latencies::new(now)), now)
    }

    /// Takes in how long an attempt took, for calls that hedge.
    pub(crate) fn observe_latency(&self, took: Duration, now: Instant) {
        self.latencies.borrow_mut().get_or_insert_with(|| Latencies::new(now)).observe(took, now);
    }

    /// What the port declares.
    pub(crate) fn protocol(&self) -> AppProtocol {
        self.state.borrow().protocol
    }

    /// How its endpoints are picked, bounded and judged.
    pub(crate) fn traffic(&self) -> Arc<Traffic> {
        self.state.borrow().traffic.clone()
    }

    /// True if requests are placed by a key: then [`Cluster::pick`] wants its hash.
    pub(crate) fn wants_key(&self) -> bool {
        self.state.borrow().table.is_some()
    }

    /// The hash of the key that requests are placed by; `None` if they are not, or this one does not have it.
    pub(crate) fn key_hash(&self, from: &KeySource<'_>) -> Option<u64> {
        let state = self.state.borrow();
        match &state.traffic.balancing.algorithm {
            Balancer::RingHash { key, .. } | Balancer::Maglev { key } => {
                key.first(from).map(|key| hash64(key.as_bytes()))
            }
            _ => None,
        }
    }

    /// Picks an endpoint, or says why there is none.
    pub(crate) fn pick(&self, preference: &Preference<'_>, now: Instant) -> Result<InFlight, Error> {
        let state = &*self.state.borrow();
        let view = View { state, tried: preference.tried, now, panics: Cell::new(None) };
        let found = preference
            .endpoint
            .and_then(|id| view.session(id))
            .or_else(|| self.place(&view, preference.key, &mut |n| fastrand::usize(..n)));
        match found {
            Some(index) => Ok(state.members[index].begin()),
            None => Err(self.nobody(state, now)),
        }
    }

    /// The member that takes a request: one in the own zone if it is to stay there, another if it must, one that was
    /// tried already if all were.
    fn place(
        &self,
        view: &View<'_>,
        key: Option<u64>,
        random: &mut impl FnMut(usize) -> usize,
    ) -> Option<usize> {
        let all = 0..view.state.members.len();
        let range = self.zone(view, key, random);
        let everywhere = range == all;
        let mut choose = |view: &View<'_>, range| self.choose(view, range, key, random);
        choose(view, range).or_else(|| if everywhere { None } else { choose(view, all.clone()) }).or_else(
            || {
                let again = View { tried: &[], panics: view.panics.clone(), ..*view };
                if view.tried.is_empty() { None } else { choose(&again, all) }
            },
        )
    }

    /// The members among which a request is placed: all, or those of the own zone, or the others.
    fn zone(
        &self,
        view: &View<'_>,
        key: Option<u64>,
        random: &mut impl FnMut(usize) -> usize,
    ) -> Range<usize> {
        let (own, all) = (view.state.own, view.state.members.len());
        if own == all {
            return 0..all;
        }
        let stays = match self.counted.get() {
            Some((at, stays)) if view.now.saturating_duration_since(at) < CENSUS => stays,
            _ => {
                let stays = view.stays();
                self.counted.set(Some((view.now, stays)));
                stays
            }
        };
        let Some(stays) = stays else { return 0..all };
        // A key stays on its side for as long as the share is the same, and few change sides when it changes.
        let leaves = stays < 1.0 && stays <= key.map_or_else(|| chance(random), |key| unit(mix(!key)));
        if leaves { own..all } else { 0..own }
    }

    fn choose(
        &self,
        view: &View<'_>,
        range: Range<usize>,
        key: Option<u64>,
        random: &mut impl FnMut(usize) -> usize,
    ) -> Option<usize> {
        let state = view.state;
        if let (Some(table), Some(key)) = (&state.table, key) {
            return table.pick(key, |index| if range.contains(&index) { view.share(index) } else { 0.0 });
        }
        let balancer = &state.traffic.balancing.algorithm;
        pick(balancer, range, &state.weights, view, &self.turn, view.now, random)
    }

    /// Why nobody takes a request.
    fn nobody(&self, state: &State, now: Instant) -> Error {
        let name = format!("{}:{}", self.service, self.port);
        if state.endpoints.is_empty() {
            let detail = format!("{name} has no endpoint; is a workload of it running? see /clusters");
            return Error::new(Kind::NoEndpoint, detail);
        }
        if state.members.is_empty() {
            let labels = state.traffic.balancing.subset.iter().map(|(key, value)| format!("{key}={value}"));
            let detail = format!(
                "none of the {} endpoints of {name} has the labels {}; see loadBalancer.subset of its TrafficPolicy, and \
                 /clusters",
                state.endpoints.len(),
                labels.collect::<Vec<_>>().join(","),
            );
            return Error::new(Kind::NoEndpoint, detail);
        }
        let is_refused =
            |e: &Rc<Endpoint>| e.standing.availability(now) == Availability::Out(Why::BreakerOpen);
        if state.members.iter().any(is_refused) {
            let detail = format!("the breakers of the endpoints of {name} are open; see /clusters");
            return Error::new(Kind::BreakerOpen, detail);
        }
        let detail = format!(
            "all {} endpoints of {name} are ejected or fail their health checks; see /clusters",
            state.members.len()
        );
        Error::new(Kind::NoEndpoint, detail)
    }

    /// How many endpoints take calls as far as policy says, well or not.
    pub(crate) fn len(&self) -> usize {
        self.state.borrow().members.len()
    }

    /// Closes idle connections.
    pub(crate) fn sweep(&self, limits: &Limits) {
        let state = self.state.borrow();
        for endpoint in &state.endpoints {
            endpoint.sweep(&state.traffic.bounds, limits);
        }
    }

    /// Keeps active health checks going, as far as no other worker does. Called about once a second.
    pub(crate) fn check_health(&self, snapshot: &Snapshot, connector: &Connector, claims: &Arc<Claims>) {
        let state = self.state.borrow();
        let setup = state.traffic.health_check.as_ref().map(|check| {
            let service = snapshot.service(&self.service);
            let other = check.port.filter(|port| *port != self.port);
            let asked = other.and_then(|port| service?.port(port));
            Setup {
                service: self.service.clone(),
                port: other.unwrap_or(self.port),
                declared: asked.map_or(state.protocol, |port| port.protocol),
                elsewhere: other
                    .map(|_| asked.map_or_else(|| Arc::new([]) as _, |port| port.endpoints.clone())),
                check: check.clone(),
                bounds: state.traffic.bounds.clone(),
                limits: snapshot.mesh.limits.clone(),
            }
        });
        if setup.is_some() || !self.checks.is_empty() {
            self.checks.reconcile(setup, &state.endpoints, connector, &self.series, claims);
        }
    }

    /// How the last active health check of an endpoint went, if this worker makes it.
    pub(crate) fn last_health_check(&self, endpoint: &Endpoint) -> Option<Rc<str>> {
        self.checks.last(endpoint)
    }

    /// Each endpoint, for `/clusters`.
    pub(crate) fn endpoints(&self) -> Vec<Rc<Endpoint>> {
        self.state.borrow().endpoints.clone()
    }
}

/// The members of a cluster as one request finds them.
struct View<'a> {
    state: &'a State,
    tried: &'a [Rc<Endpoint>],
    now: Instant,
    /// Whether so few are well that all are called; counted when first asked.
    panics: Cell<Option<bool>>,
}

impl View<'_> {
    /// How many of some members are well.
    fn census(&self, range: Range<usize>) -> Census {
        let members = &self.state.members[range];
        let is_well =
            |e: &&Rc<Endpoint>| matches!(e.standing.availability(self.now), Availability::In { .. });
        Census { well: members.iter().filter(is_well).count(), all: members.len() }
    }

    fn panics(&self) -> bool {
        self.panics.get().unwrap_or_else(|| {
            let all = self.census(0..self.state.members.len());
            let panics = all.is_panic(self.state.traffic.ejection.panic_share);
            self.panics.set(Some(panics));
            panics
        })
    }

    /// The share of calls that stays in the own zone. `None` if so few are well anywhere that all are called: a zone
    /// that is down as a whole must not be all that is called then.
    fn stays(&self) -> Option<f64> {
        let (own, all) = (self.state.own, self.state.members.len());
        let overflow = self.state.traffic.balancing.zone_overflow.filter(|_| !self.panics())?;
        Some(own_share(self.census(0..own), self.census(own..all), overflow))
    }

    fn is_tried(&self, endpoint: &Rc<Endpoint>) -> bool {
        self.tried.iter().any(|tried| tried.id == endpoint.id)
    }

    /// The member that a session is on, if it may go on there.
    fn session(&self, id: u64) -> Option<usize> {
        let index = self.state.members.iter().position(|e| e.id == id)?;
        let endpoint = &self.state.members[index];
        let is_in = matches!(endpoint.standing.availability(self.now), Availability::In { .. });
        (is_in && !self.is_tried(endpoint)).then_some(index)
    }
}

impl Candidates for View<'_> {
    fn load(&self, index: usize) -> &Load {
        &self.state.members[index].load
    }

    fn share(&self, index: usize) -> f64 {
        let endpoint = &self.state.members[index];
        if self.is_tried(endpoint) {
            return 0.0;
        }
        match endpoint.standing.availability(self.now) {
            Availability::In { since } => {
                slow_start(since, self.state.traffic.balancing.slow_start, self.now)
            }
            // It would refuse the call.
            Availability::Out(Why::BreakerOpen) => 0.0,
            Availability::Out(Why::Ejected | Why::Unhealthy) if self.panics() => 1.0,
            Availability::Out(Why::Ejected | Why::Unhealthy) => 0.0,
        }
    }
}

#[cfg(test)]
mod tests;
