//! Active health checks: endpoints are asked whether they are well, and get no calls while they are not.
//!
//! A question is an ordinary call to the callee's sidecar, over connections of its own: it does not compete with
//! requests for a connection, each one shows that a connection can still be made, and authorization applies to it as to
//! every call of this workload. Each endpoint is asked by one worker of the process, and counts as well until it failed
//! as often in a row as policy says.

mod probe;

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use probe::fuzz;

use super::{connect::Connector, endpoint::Endpoint, guard::Standing};
use crate::telemetry::metrics::{HealthResult, ServiceSeries};
use probe::Target;
use std::{
    cell::{Cell, RefCell},
    collections::HashSet,
    net::SocketAddr,
    rc::Rc,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};
use tokio::task::{AbortHandle, spawn_local};
use weft_config::{
    identity::ServiceName,
    snapshot::{AppProtocol, Bounds, Endpoint as Place, HealthCheck, Limits},
};

/// A checker's first question comes within this time, so that a bad endpoint is found out soon after a start.
const FIRST: Duration = Duration::from_secs(1);
/// How far an interval may be off either way, as a share: sidecars that started together must not ask together for ever.
const JITTER: f64 = 0.1;

/// How the endpoints of a cluster are asked.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Setup {
    pub(crate) service: ServiceName,
    /// The port that is asked for: the cluster's own, or the one that the check names.
    pub(crate) port: u16,
    /// What that port declares.
    pub(crate) declared: AppProtocol,
    /// Where that port is served, if it is not the cluster's own.
    pub(crate) elsewhere: Option<Arc<[Place]>>,
    pub(crate) check: HealthCheck,
    pub(crate) bounds: Bounds,
    pub(crate) limits: Limits,
}

impl Setup {
    /// Where the endpoint at `place` takes the port that is asked for: behind its sidecar at the same address, otherwise
    /// where the same workload serves that port, or at the port of that number.
    fn place(&self, place: &Place) -> Place {
        let Some(elsewhere) = &self.elsewhere else { return place.clone() };
        let same = |e: &&Place| e.workload == place.workload && e.address.ip() == place.address.ip();
        match elsewhere.iter().find(same) {
            Some(found) => found.clone(),
            None if place.identity.is_some() => place.clone(),
            None => Place { address: SocketAddr::new(place.address.ip(), self.port), ..place.clone() },
        }
    }
}

/// Whether an endpoint is well, by the answers in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Streak {
    well: bool,
    /// Answers in a row that say otherwise.
    against: u32,
}

impl Streak {
    fn new(well: bool) -> Self {
        Self { well, against: 0 }
    }

    /// Takes in one answer; gives the new verdict if it changes.
    fn observe(&mut self, good: bool, check: &HealthCheck) -> Option<bool> {
        if good == self.well {
            self.against = 0;
            return None;
        }
        self.against += 1;
        let enough = if good { check.healthy_threshold } else { check.unhealthy_threshold };
        (self.against >= enough).then(|| {
            *self = Self::new(good);
            good
        })
    }
}

/// The time to the next question, for `random` in `[0, 1)`.
fn jittered(interval: Duration, random: f64) -> Duration {
    interval.mul_f64(1.0 + JITTER * (2.0 * random - 1.0))
}

/// The endpoints that some worker of the process asks already.
#[derive(Default)]
pub(crate) struct Claims(Mutex<HashSet<usize>>);

impl Claims {
    fn take(self: &Arc<Self>, standing: &Arc<Standing>) -> Option<Claim> {
        // The claim holds the standing, so no other can have its address meanwhile.
        let key = Arc::as_ptr(standing).addr();
        let fresh = self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(key);
        fresh.then(|| Claim { claims: self.clone(), standing: standing.clone() })
    }
}

/// The right to ask one endpoint.
struct Claim {
    claims: Arc<Claims>,
    standing: Arc<Standing>,
}

impl Drop for Claim {
    fn drop(&mut self) {
        let key = Arc::as_ptr(&self.standing).addr();
        self.claims.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
    }
}

/// The health checks of one cluster, as far as this worker makes them.
#[derive(Default)]
pub(crate) struct Checks(RefCell<State>);

#[derive(Default)]
struct State {
    setup: Option<Rc<Setup>>,
    checkers: Vec<Checker>,
}

impl Checks {
    /// True if nothing is checked.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.borrow().checkers.is_empty()
    }

    /// How the last question to an endpoint went, if it is this worker that asks it: `ok`, or why it was not.
    pub(crate) fn last(&self, endpoint: &Endpoint) -> Option<Rc<str>> {
        let state = self.0.borrow();
        let checker = state.checkers.iter().find(|checker| checker.is_for(endpoint))?;
        checker.last.borrow().clone()
    }

    /// Begins to ask endpoints that are new and stops asking those that are gone; asks the others otherwise if `setup`
    /// is another. What is known of those that stay remains. Call it about once a second, within a `LocalSet`.
    pub(crate) fn reconcile(
        &self,
        setup: Option<Setup>,
        endpoints: &[Rc<Endpoint>],
        connector: &Connector,
        series: &Arc<ServiceSeries>,
        claims: &Arc<Claims>,
    ) {
        let state = &mut *self.0.borrow_mut();
        let Some(wanted) = setup else {
            *state = State::default();
            return;
        };
        let setup = match &state.setup {
            Some(setup) if **setup == wanted => setup.clone(),
            _ => {
                let setup = Rc::new(wanted);
                state.setup = Some(setup.clone());
                setup
            }
        };
        let mut before = std::mem::take(&mut state.checkers);
        for endpoint in endpoints {
            let known = before.iter().position(|checker| checker.is_for(endpoint));
            let checker = match known {
                Some(index) => Some(before.swap_remove(index)),
                None => claims.take(&endpoint.standing).map(|claim| Checker::new(endpoint, claim, series)),
            };
            if let Some(mut checker) = checker {
                checker.ask(&setup, connector);
                state.checkers.push(checker);
            }
        }
    }
}

/// Asks one endpoint for as long as it lives.
struct Checker {
    place: Place,
    claim: Claim,
    series: Arc<ServiceSeries>,
    well: Rc<Cell<bool>>,
    last: Rc<RefCell<Option<Rc<str>>>>,
    task: Option<(Rc<Setup>, AbortHandle)>,
}

impl Checker {
    fn new(endpoint: &Endpoint, claim: Claim, series: &Arc<ServiceSeries>) -> Self {
        series.health().begin(true);
        Self {
            place: endpoint.place.clone(),
            claim,
            series: series.clone(),
            well: Rc::new(Cell::new(true)),
            last: Rc::default(),
            task: None,
        }
    }

    fn is_for(&self, endpoint: &Endpoint) -> bool {
        Arc::ptr_eq(&self.claim.standing, &endpoint.standing)
            && self.place.address == endpoint.place.address
            && self.place.identity == endpoint.place.identity
    }

    /// Asks in this way from now on.
    fn ask(&mut self, setup: &Rc<Setup>, connector: &Connector) {
        match &self.task {
            Some((asked, _)) if Rc::ptr_eq(asked, setup) => return,
            Some((_, task)) => task.abort(),
            None => {}
        }
        let round = Round {
            target: Target::new(setup, setup.place(&self.place), connector.clone()),
            setup: setup.clone(),
            standing: self.claim.standing.clone(),
            series: self.series.clone(),
            well: self.well.clone(),
            last: self.last.clone(),
        };
        self.task = Some((setup.clone(), spawn_local(round.run()).abort_handle()));
    }
}

impl Drop for Checker {
    fn drop(&mut self) {
        if let Some((_, task)) = &self.task {
            task.abort();
        }
        self.series.health().end(self.well.get());
        // Nobody could say any more that it is well again.
        self.claim.standing.set_healthy(true, Instant::now());
    }
}

/// One endpoint's questions and answers.
struct Round {
    setup: Rc<Setup>,
    target: Target,
    standing: Arc<Standing>,
    series: Arc<ServiceSeries>,
    well: Rc<Cell<bool>>,
    last: Rc<RefCell<Option<Rc<str>>>>,
}

impl Round {
    async fn run(self) {
        let check = &self.setup.check;
        let mut streak = Streak::new(self.well.get());
        let mut next = tokio::time::Instant::now() + check.interval.min(FIRST).mul_f64(fastrand::f64());
        loop {
            tokio::time::sleep_until(next).await;
            next = tokio::time::Instant::now() + jittered(check.interval, fastrand::f64());
            let (result, detail) = self.target.ask(&self.setup).await;
            self.series.health().count(result);
            self.tell(result, &detail);
            if let Some(well) = streak.observe(result == HealthResult::Ok, check) {
                self.turn(well, &detail);
            }
        }
    }

    /// Keeps what was heard for `/clusters`.
    fn tell(&self, result: HealthResult, detail: &str) {
        let said = if detail.is_empty() { result.name() } else { detail };
        if self.last.borrow().as_deref() != Some(said) {
            *self.last.borrow_mut() = Some(said.into());
        }
    }

    fn turn(&self, well: bool, detail: &str) {
        self.well.set(well);
        self.standing.set_healthy(well, Instant::now());
        self.series.health().turn(well);
        let (service, port, endpoint) = (&self.setup.service, self.setup.port, self.target.address());
        if well {
            tracing::info!(%service, port, %endpoint, "an endpoint is well again, by its health check");
        } else {
            tracing::warn!(%service, port, %endpoint, detail, "an endpoint fails its health check and gets no calls");
        }
    }
}

#[cfg(test)]
mod tests;
