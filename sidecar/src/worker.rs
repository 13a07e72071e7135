//! One worker thread's state: its view of policy, its clusters and connections, its share of the metrics.

use crate::{
    cache,
    drain::Drain,
    error::{Error, Kind},
    live::{Live, own_traffic},
    policy,
    settings::Settings,
    siblings::Siblings,
    telemetry::{
        access_log::AccessLog,
        log::Level,
        metrics::{Direction, Metrics, ServiceSeries, Shard},
    },
    tls::Tls,
    traffic::{chain::Chains, concurrency::Limiters, mirror::Copies, rate_limit::RateLimiters},
    upstream::{
        Cluster, ClusterKey, Connector, Endpoint,
        guard::{Guards, Standing},
        health::Claims,
    },
};
use arc_swap::ArcSwap;
use http::HeaderMap;
use std::{
    cell::{Cell, RefCell},
    collections::{HashMap, HashSet},
    net::SocketAddr,
    rc::Rc,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};
use weft_config::{
    identity::{ServiceName, SpiffeId},
    snapshot::{AppProtocol, Bounds, Endpoint as Place, KeySource, Port, Served, Snapshot, Traffic},
};

/// Names outside the registry whose addresses a worker remembers.
const EXTERNAL: usize = 256;
/// How long such addresses are good for.
const EXTERNAL_TTL: Duration = Duration::from_secs(30);

/// What all workers and the control thread share.
pub(crate) struct Shared {
    pub(crate) settings: Settings,
    pub(crate) tls: Arc<Tls>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) access_log: AccessLog,
    /// Breakers, budgets and ejections, which all workers judge together.
    pub(crate) guards: Guards,
    /// What is left of each rate limit.
    pub(crate) rate_limits: RateLimiters,
    /// Calls that our application has and that wait for it, by served port.
    pub(crate) concurrency: Limiters,
    /// What is kept of answers, by CachePolicy.
    pub(crate) caches: Arc<cache::Stores>,
    /// Which endpoints are asked for their health, whichever worker does it.
    pub(crate) health_claims: Arc<Claims>,
    /// How much is logged; `None` when an embedding program logs for itself.
    pub(crate) log_level: Option<Level>,
    snapshot: ArcSwap<Snapshot>,
    /// Grows with every swap: a worker compares one number per request.
    generation: AtomicU64,
    changed: tokio::sync::watch::Sender<u64>,
    /// Set once policy has a source.
    pub(crate) policy: OnceLock<policy::Handle>,
    /// The open requests to our application, by trace.
    pub(crate) chains: Chains,
    /// Connections that are open, over all workers, by direction.
    pub(crate) open: [AtomicUsize; 2],
    /// Addresses that this process itself listens on: calls that lead back here would loop.
    pub(crate) own_addresses: OnceLock<Vec<SocketAddr>>,
}

impl Shared {
    /// Connections of one direction that are open.
    pub(crate) fn open(&self, direction: Direction) -> usize {
        self.open[direction as usize].load(Ordering::Relaxed)
    }

    pub(crate) fn new(
        settings: Settings,
        tls: Arc<Tls>,
        metrics: Arc<Metrics>,
        access_log: AccessLog,
        log_level: Option<Level>,
    ) -> Self {
        let on_disk = settings.state_dir.as_ref().map(|dir| dir.join("cache"));
        let secrets = cache::Secrets::new(settings.secrets_dir.as_deref());
        let tiers = cache::Tiers::new(metrics.tiers.clone(), on_disk, secrets);
        let caches = Arc::new(cache::Stores::new(tiers));
        metrics.set_kept(caches.clone());
        Self {
            settings,
            tls,
            rate_limits: RateLimiters::new(metrics.clone(), Instant::now()),
            concurrency: Limiters::new(metrics.clone()),
            metrics,
            access_log,
            guards: Guards::default(),
            caches,
            health_claims: Arc::default(),
            log_level,
            snapshot: ArcSwap::default(),
            generation: AtomicU64::new(0),
            changed: tokio::sync::watch::channel(0).0,
            policy: OnceLock::new(),
            chains: Chains::default(),
            open: Default::default(),
            own_addresses: OnceLock::new(),
        }
    }

    /// Puts a new snapshot in force for all workers.
    pub(crate) fn publish(&self, snapshot: Arc<Snapshot>) {
        self.caches.prepare(&snapshot);
        self.snapshot.store(snapshot);
        let generation = self.generation.fetch_add(1, Ordering::Release) + 1;
        self.changed.send_replace(generation);
    }

    /// The snapshot in force.
    pub(crate) fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot.load_full()
    }

    /// Tells of every new snapshot.
    pub(crate) fn changes(&self) -> tokio::sync::watch::Receiver<u64> {
        self.changed.subscribe()
    }
}

type Map<K, V> = HashMap<K, V, foldhash::fast::RandomState>;

/// A host outside the registry, and when its addresses were found.
type Resolved = (Instant, Rc<Cluster>);

/// One worker.
pub(crate) struct Worker {
    pub(crate) shared: Arc<Shared>,
    pub(crate) shard: Shard,
    pub(crate) connector: Connector,
    drains: [Rc<Drain>; 2],
    live: RefCell<Rc<Live>>,
    seen: Cell<u64>,
    clusters: RefCell<Map<ClusterKey, Rc<Cluster>>>,
    external: RefCell<Map<Box<str>, Resolved>>,
    apps: RefCell<Vec<(Served, Rc<Endpoint>)>>,
    /// Those who are asked before the origin is.
    pub(crate) siblings: Siblings,
    /// Copies of requests on their way to mirrors.
    pub(crate) copies: Copies,
    /// Connections that peers and the application hold to this worker.
    pub(crate) connections: Cell<usize>,
    /// Who the application is to those whom it calls.
    identity: Box<str>,
}

impl Worker {
    pub(crate) fn new(shared: Arc<Shared>, index: usize) -> Self {
        let shard = Shard::new(shared.metrics.clone(), index);
        // In this order: a snapshot that comes in between is then seen as new.
        let seen = shared.generation.load(Ordering::Acquire);
        let snapshot = shared.snapshot();
        let identity = SpiffeId {
            trust_domain: shared.tls.trust_domain().clone(),
            namespace: shared.settings.namespace.as_str().into(),
            service_account: shared.settings.service_account.as_str().into(),
        };
        Self {
            connector: Connector { tls: shared.tls.clone(), shard: shard.clone() },
            shard,
            drains: Default::default(),
            seen: Cell::new(seen),
            live: RefCell::new(Rc::new(Live::new(snapshot, None))),
            clusters: RefCell::default(),
            external: RefCell::default(),
            apps: RefCell::default(),
            siblings: Siblings::default(),
            copies: Copies::default(),
            connections: Cell::new(0),
            identity: identity.to_string().into(),
            shared,
        }
    }

    /// The policy in force, as this worker sees it. One atomic load when nothing changed.
    pub(crate) fn live(&self) -> Rc<Live> {
        let generation = self.shared.generation.load(Ordering::Acquire);
        if generation != self.seen.get() {
            self.seen.set(generation);
            self.refresh();
        }
        self.live.borrow().clone()
    }

    fn refresh(&self) {
        let snapshot = self.shared.snapshot();
        let now = Instant::now();
        let zone = snapshot.workload.as_ref().and_then(|workload| workload.zone.as_ref());
        let has_own = self.clusters.borrow().keys().any(|key| key.rule.is_some());
        let own = if has_own { own_traffic(&snapshot) } else { Default::default() };
        let mut known = HashSet::new();
        for (key, cluster) in self.clusters.borrow().iter() {
            let Some(port) = snapshot.service(&key.service).and_then(|s| s.port(key.port)) else { continue };
            match (&key.rule, own.get(key)) {
                (None, _) => cluster.update(port, &port.traffic, zone, now),
                (Some(_), Some(traffic)) => cluster.update_own(port, traffic, zone, now),
                (Some(_), None) => continue,
            }
            known.insert(key.clone());
        }
        drop(own);
        let live = Live::new(snapshot, Some(&self.live.borrow()));
        self.live.replace(Rc::new(live));
        // A cluster that some request or route still holds lives on until they let go of it.
        self.clusters
            .borrow_mut()
            .retain(|key, cluster| known.contains(key) || Rc::strong_count(cluster) > 1);
    }

    /// Asks the control plane for a service that is not known yet, and gives what is known then. Bounded in time. Fails
    /// if nobody could say: a call meant for the mesh must not leave it because the control plane is away.
    pub(crate) async fn ask_for(&self, service: ServiceName) -> Result<Rc<Live>, Error> {
        if let Some(policy) = self.shared.policy.get() {
            let name = service.to_string();
            if policy.want(service).await == policy::Found::Unavailable {
                return Err(Error::new(
                    Kind::NoEndpoint,
                    format!(
                        "{name} is not known here, and the control plane did not tell in time; see /config_dump"
                    ),
                ));
            }
        }
        Ok(self.live())
    }

    /// The cluster of this key, made when first asked for. `own` is what a rule with a cluster of its own says of it.
    pub(crate) fn cluster(&self, snapshot: &Snapshot, key: ClusterKey, own: Option<&Traffic>) -> Rc<Cluster> {
        if let Some(cluster) = self.clusters.borrow().get(&key) {
            return cluster.clone();
        }
        let now = Instant::now();
        let series = self.metrics().service(&key.service.to_string());
        let cluster = Rc::new(Cluster::new(key.clone(), &self.shared.guards, series, now));
        if let Some(port) = snapshot.service(&key.service).and_then(|s| s.port(key.port)) {
            let zone = snapshot.workload.as_ref().and_then(|workload| workload.zone.as_ref());
            match own {
                None => cluster.update(port, &port.traffic, zone, now),
                Some(traffic) => cluster.update_own(port, traffic, zone, now),
            }
        }
        self.clusters.borrow_mut().insert(key, cluster.clone());
        cluster
    }

    /// A cluster for a host outside the registry, if its addresses are fresh.
    pub(crate) fn external(&self, authority: &str) -> Option<Rc<Cluster>> {
        let external = self.external.borrow();
        let (since, cluster) = external.get(authority)?;
        (since.elapsed() < EXTERNAL_TTL).then(|| cluster.clone())
    }

    /// Remembers where a host outside the registry is.
    pub(crate) fn learn_external(
        &self,
        authority: &str,
        port: u16,
        addresses: Vec<SocketAddr>,
    ) -> Rc<Cluster> {
        let now = Instant::now();
        let mut external = self.external.borrow_mut();
        if external.len() >= EXTERNAL && !external.contains_key(authority) {
            let oldest = external.iter().min_by_key(|(_, (since, _))| *since).map(|(name, _)| name.clone());
            if let Some(oldest) = oldest {
                external.remove(&oldest);
            }
        }
        let cluster = external.get(authority).map_or_else(
            || {
                let key = ClusterKey { service: ServiceName::new("", authority), port, rule: None };
                Rc::new(Cluster::new(key, &self.shared.guards, self.passthrough(), now))
            },
            |(_, c)| c.clone(),
        );
        let endpoints = addresses
            .into_iter()
            .map(|address| Place {
                address,
                identity: None,
                workload: authority.into(),
                zone: None,
                labels: Arc::new([]),
                weight: 1,
            })
            .collect();
        let port = Port {
            port,
            name: None,
            protocol: AppProtocol::Auto,
            routes: Default::default(),
            rules: Vec::new(),
            endpoints,
            traffic: Arc::default(),
            calls: Arc::default(),
        };
        cluster.update(&port, &port.traffic, None, now);
        external.insert(authority.into(), (now, cluster.clone()));
        cluster
    }

    /// The application behind a served port.
    pub(crate) fn app(&self, served: &Served) -> Rc<Endpoint> {
        let mut apps = self.apps.borrow_mut();
        if let Some((_, endpoint)) = apps.iter().find(|(s, _)| s == served) {
            return endpoint.clone();
        }
        let place = Place {
            address: self.shared.settings.app_address(served.port, served.app_port),
            identity: None,
            workload: self.shared.settings.workload.as_str().into(),
            zone: None,
            labels: Arc::new([]),
            weight: 1,
        };
        // Nobody chooses between applications: there is one, and what it does is told to the caller as it is.
        let now = Instant::now();
        let standing = Standing::alone(place.address, now);
        let endpoint = Rc::new(Endpoint::new(served.service.clone(), served.port, place, standing, now));
        // What is no longer served goes when its last request ends.
        apps.retain(|(s, _)| (&s.service, s.port) != (&served.service, served.port));
        apps.push((served.clone(), endpoint.clone()));
        endpoint
    }

    /// Takes over what policy says now about calls that our application gets: those that wait for their turn cannot wait
    /// for the next call to bring it in.
    pub(crate) fn readmit(&self) {
        let live = self.live();
        for (served, _) in self.apps.borrow().iter() {
            live.admission(self, served);
        }
    }

    /// Closes connections that have been idle for too long, forgets what policy no longer names, and sees to it that
    /// endpoints are asked for their health. Called about once a second.
    pub(crate) fn sweep(&self) {
        let live = self.live();
        let claims = &self.shared.health_claims;
        for cluster in self.clusters.borrow().values() {
            cluster.check_health(&live.snapshot, &self.connector, claims);
        }
        let limits = &live.snapshot.mesh.limits;
        self.clusters.borrow().values().for_each(|c| c.sweep(limits));
        self.external.borrow().values().for_each(|(_, c)| c.sweep(limits));
        self.apps.borrow().iter().for_each(|(_, e)| e.sweep(&Bounds::default(), limits));
        self.siblings.sweep(&live);
        let now = Instant::now();
        self.shared.rate_limits.sweep(now);
        self.shared.concurrency.sweep(now);
    }

    /// Every cluster, for `/clusters`.
    pub(crate) fn clusters(&self) -> Vec<Rc<Cluster>> {
        self.clusters.borrow().values().cloned().collect()
    }

    /// Counts what goes to hosts outside of the registry: together, since their names come from the wire.
    pub(crate) fn passthrough(&self) -> Arc<ServiceSeries> {
        self.metrics().service("passthrough")
    }

    /// Tells the connections of one direction that no new work is taken. The inbound ones are told first: until their
    /// last request is answered, the application may have to make calls for it.
    pub(crate) fn drain(&self, direction: Direction) -> &Rc<Drain> {
        &self.drains[direction as usize]
    }

    /// Where keys of outbound requests are read from: at the caller, the source is its own workload.
    pub(crate) fn key_source<'a>(&'a self, headers: &'a HeaderMap, query: Option<&'a str>) -> KeySource<'a> {
        KeySource { headers, query, source: &self.shared.settings.workload, identity: Some(&self.identity) }
    }

    /// Who our application is to those whom it calls.
    pub(crate) fn identity(&self) -> &str {
        &self.identity
    }

    pub(crate) fn namespace(&self) -> &str {
        &self.shared.settings.namespace
    }

    pub(crate) fn metrics(&self) -> &Arc<Metrics> {
        self.shard.metrics()
    }
}

#[cfg(test)]
mod tests;
