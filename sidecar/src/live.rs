//! A snapshot as one worker uses it: every name resolved to a cluster and a metric series, so that a request looks up
//! its host once and nothing else.

use crate::{
    cache::Cache,
    message::split_authority,
    policy,
    telemetry::metrics::{CacheSeriesKey, Direction, MirrorSeries, PathUpstream, Series, SeriesKey},
    traffic::{concurrency::Limiter, rate_limit, split::Split},
    upstream::{Cluster, ClusterKey},
    worker::Worker,
};
use sha2::{Digest, Sha256};
use std::{cell::RefCell, collections::HashMap, rc::Rc, sync::Arc};
use weft_config::{
    identity::ServiceName,
    snapshot::{
        Action, Backend, Backends, Calls, Concurrency, Filters, Mirror, Port, Rule, Served, Service,
        Snapshot, Traffic,
    },
};

/// Hosts remembered per snapshot and worker. Real meshes call dozens; a flood of invented names must not grow memory.
const HOSTS: usize = 4096;

type Map<K, V> = HashMap<K, V, foldhash::fast::RandomState>;

/// One worker's view of one snapshot.
pub(crate) struct Live {
    pub(crate) snapshot: Arc<Snapshot>,
    hosts: RefCell<Map<Box<str>, Rc<LivePort>>>,
    ports: RefCell<Map<(ServiceName, u16), Rc<LivePort>>>,
    /// Of the ports that our workload serves: a handful.
    admissions: RefCell<Vec<(Served, Rc<LiveAdmission>)>>,
}

/// One service port, ready for requests.
pub(crate) struct LivePort {
    service: Arc<Service>,
    index: usize,
    /// The service's own endpoints: where requests go when it has no routes at all.
    pub(crate) own: LiveBackend,
    /// What is decided about calls while there are no routes.
    pub(crate) calls: LiveCalls,
    /// In the order of the port's rules.
    pub(crate) rules: Vec<LiveRule>,
    /// Every cache that answers for this port: what is changed through any rule is invalid in all of them.
    pub(crate) caches: Vec<Rc<Cache>>,
    /// For requests that no rule takes.
    pub(crate) unrouted: Arc<Series>,
    /// Says that the service is in use, so that it stays subscribed to.
    used: Option<Arc<policy::Used>>,
}

/// One rule's runtime side.
pub(crate) struct LiveRule {
    /// In the order of the rule's backends.
    pub(crate) backends: Vec<LiveBackend>,
    /// What is decided about its calls.
    pub(crate) calls: LiveCalls,
    /// For answers that no backend gave: redirects, invalid references.
    pub(crate) series: Arc<Series>,
}

/// The runtime side of [`Calls`].
pub(crate) struct LiveCalls {
    /// Which of the backends or shards takes a request.
    pub(crate) split: Split,
    /// In the order of the sharding's shards.
    pub(crate) shards: Vec<LiveBackend>,
    /// Where copies go.
    pub(crate) mirrors: LiveMirrors,
    /// Limits that are counted here, at the caller.
    pub(crate) rate_limits: rate_limit::Limits,
    /// Where answers are kept.
    pub(crate) cache: Option<Rc<Cache>>,
}

/// What is decided before our application gets a call, ready for calls.
#[derive(Default)]
pub(crate) struct LiveAdmission {
    pub(crate) rate_limits: rate_limit::Limits,
    pub(crate) concurrency: Option<(Arc<Concurrency>, Arc<Limiter>)>,
    /// Where answers are kept.
    pub(crate) cache: Option<Rc<Cache>>,
}

/// Where copies go and are counted, in the order of the mirrors.
#[derive(Default)]
pub(crate) struct LiveMirrors {
    pub(crate) to: Vec<LiveBackend>,
    pub(crate) series: Vec<Arc<MirrorSeries>>,
}

/// One backend's runtime side.
#[derive(Clone)]
pub(crate) struct LiveBackend {
    pub(crate) cluster: Rc<Cluster>,
    /// Where it is counted how long requests to our application waited for it.
    pub(crate) path: Arc<PathUpstream>,
    /// Where copies go when it is taken, besides those of the rule.
    pub(crate) mirrors: Rc<LiveMirrors>,
    /// Tells its kept answers from those of other backends, and of others with other filters on the way.
    pub(crate) scope: Rc<str>,
    mtls: Arc<Series>,
    plain: Arc<Series>,
}

impl LiveBackend {
    /// The series of requests that go to an endpoint with or without mTLS.
    pub(crate) fn series(&self, mtls: bool) -> &Arc<Series> {
        if mtls { &self.mtls } else { &self.plain }
    }
}

impl LivePort {
    /// The compiled port.
    pub(crate) fn port(&self) -> &Port {
        &self.service.ports[self.index]
    }

    /// The compiled rule of this index.
    pub(crate) fn rule(&self, index: usize) -> &Rule {
        &self.port().rules[index]
    }

    /// The service's name.
    pub(crate) fn name(&self) -> &ServiceName {
        &self.service.name
    }

    /// Notes that a request came: one load, and a store about once a minute.
    pub(crate) fn mark_used(&self) {
        if let Some(used) = &self.used {
            used.mark();
        }
    }
}

impl Live {
    /// The view of `snapshot`; what has not changed since `before` is carried over.
    pub(crate) fn new(snapshot: Arc<Snapshot>, before: Option<&Self>) -> Self {
        let mut ports = Map::default();
        if let Some(before) = before {
            for (key, port) in before.ports.borrow().iter() {
                let same = snapshot.service(&key.0).is_some_and(|s| Arc::ptr_eq(s, &port.service));
                if same {
                    ports.insert(key.clone(), port.clone());
                }
            }
        }
        Self {
            snapshot,
            hosts: RefCell::default(),
            ports: RefCell::new(ports),
            admissions: RefCell::default(),
        }
    }

    /// The port that `authority` (`host` or `host:port`) names for a caller in the worker's namespace.
    pub(crate) fn by_authority(&self, worker: &Worker, authority: &str) -> Option<Rc<LivePort>> {
        if let Some(port) = self.hosts.borrow().get(authority) {
            return Some(port.clone());
        }
        let (host, port) = split_authority(authority)?;
        let service = self.snapshot.host(host, worker.namespace())?.name.clone();
        let found = self.by_service(worker, &service, port.unwrap_or(80))?;
        let mut hosts = self.hosts.borrow_mut();
        if hosts.len() >= HOSTS {
            hosts.clear();
        }
        hosts.insert(authority.into(), found.clone());
        Some(found)
    }

    /// The port of this number of this service.
    pub(crate) fn by_service(&self, worker: &Worker, name: &ServiceName, port: u16) -> Option<Rc<LivePort>> {
        let key = (name.clone(), port);
        if let Some(found) = self.ports.borrow().get(&key) {
            return Some(found.clone());
        }
        let service = self.snapshot.service(name)?;
        let index = service.ports.iter().position(|p| p.port == port)?;
        let made = Rc::new(self.resolve(worker, service, index));
        self.ports.borrow_mut().insert(key, made.clone());
        Some(made)
    }

    /// What is decided before our application gets a call on this port.
    pub(crate) fn admission(&self, worker: &Worker, served: &Served) -> Rc<LiveAdmission> {
        let mut known = self.admissions.borrow_mut();
        if let Some((_, admission)) = known.iter().find(|(of, _)| of == served) {
            return admission.clone();
        }
        let workload = self.snapshot.workload.as_ref();
        let policy = workload.and_then(|w| w.admission(&served.service, served.port));
        let admission = Rc::new(policy.map_or_else(LiveAdmission::default, |policy| LiveAdmission {
            rate_limits: worker.shared.rate_limits.resolve(&policy.rate_limits),
            concurrency: policy.concurrency.as_ref().map(|concurrency| {
                let limiter = worker.shared.concurrency.resolve(&served.service, served.port, concurrency);
                (concurrency.clone(), limiter)
            }),
            cache: policy.cache.as_ref().map(|rules| {
                let key = CacheSeriesKey {
                    direction: Direction::Inbound,
                    service: served.service.to_string().into(),
                    route: "".into(),
                };
                let series = worker.metrics().cache(key);
                Cache::new(&worker.shared.caches, rules, crate::cache::INBOUND, series, worker.shard.clone())
            }),
        }));
        known.push((served.clone(), admission.clone()));
        admission
    }

    fn resolve(&self, worker: &Worker, service: &Arc<Service>, index: usize) -> LivePort {
        let port = &service.ports[index];
        let label: Arc<str> = service.name.to_string().into();
        let series = |route: &Arc<str>, backend: &str, mtls: bool| {
            worker.metrics().series(SeriesKey {
                direction: Direction::Outbound,
                service: label.clone(),
                route: route.clone(),
                backend: backend.into(),
                mtls,
            })
        };
        let backend = |route: &Arc<str>, key: ClusterKey, own: Option<&Traffic>| {
            let to = key.service.to_string();
            LiveBackend {
                path: worker.metrics().path_upstream(&label, route),
                scope: scope(&key, &[&Filters::NONE, &Filters::NONE]),
                cluster: worker.cluster(&self.snapshot, key, own),
                mirrors: Rc::default(),
                mtls: series(route, &to, true),
                plain: series(route, &to, false),
            }
        };
        // Shards and mirrors are treated as their own Services say, whatever the rule says of its backends.
        let shared = |route: &Arc<str>, to: &Backend| {
            backend(route, ClusterKey { service: to.service.clone(), port: to.port, rule: None }, None)
        };
        let mirrors = |route: &Arc<str>, list: &[Mirror]| LiveMirrors {
            to: list.iter().map(|mirror| shared(route, &mirror.backend)).collect(),
            series: list.iter().map(|m| worker.metrics().mirror(&m.backend.service.to_string())).collect(),
        };
        let calls = |route: &Arc<str>, calls: &Calls, split: Split| LiveCalls {
            split,
            shards: calls.sharding.iter().flat_map(|s| &*s.shards).map(|to| shared(route, to)).collect(),
            mirrors: mirrors(route, &calls.mirrors),
            rate_limits: worker.shared.rate_limits.resolve(&calls.rate_limits),
            cache: calls.cache.as_ref().map(|rules| {
                let (service, route) = (label.clone(), route.clone());
                let series =
                    worker.metrics().cache(CacheSeriesKey { direction: Direction::Outbound, service, route });
                Cache::new(&worker.shared.caches, rules, "weft", series, worker.shard.clone())
            }),
        };
        let rule = |rule: &Rule| {
            let none = Backends::default();
            let backends = match &rule.action {
                Action::Forward(backends) => backends,
                Action::Redirect(_) => &none,
            };
            LiveRule {
                backends: rule_clusters(rule)
                    .map(|(to, key, own)| LiveBackend {
                        mirrors: Rc::new(mirrors(&rule.name, &to.mirrors)),
                        scope: scope(&key, &[&rule.filters, &to.filters]),
                        ..backend(&rule.name, key, own)
                    })
                    .collect(),
                calls: calls(&rule.name, &rule.calls, Split::of_rule(&rule.name, backends, &rule.calls)),
                series: series(&rule.name, "", false),
            }
        };
        let none: Arc<str> = "".into();
        let own = ClusterKey { service: service.name.clone(), port: port.port, rule: None };
        let calls_of_port = calls(&none, &port.calls, Split::of_port(&service.name, port.port, &port.calls));
        let rules: Vec<_> = port.rules.iter().map(rule).collect();
        let mut caches: Vec<Rc<Cache>> = Vec::new();
        for cache in rules.iter().map(|rule| &rule.calls).chain([&calls_of_port]).flat_map(|c| &c.cache) {
            if !caches.iter().any(|known| known.keeps_as(cache)) {
                caches.push(cache.clone());
            }
        }
        LivePort {
            own: backend(&none, own, None),
            calls: calls_of_port,
            rules,
            caches,
            unrouted: series(&none, "", false),
            service: service.clone(),
            index,
            used: worker.shared.policy.get().and_then(|p| p.usage(&service.name)),
        }
    }
}

/// What tells answers that are kept of one backend from others: where requests go, and what is done to them and to
/// their answers on the way. Readable where nothing is done, since it stands in the keys that people are shown. What
/// the rule does to answers is done anew each time, to what is kept as well.
fn scope(to: &ClusterKey, filters: &[&Filters; 2]) -> Rc<str> {
    let mut scope = format!("{}:{}", to.service, to.port);
    if let Some(rule) = &to.rule {
        scope = format!("{scope} {rule}");
    }
    let [of_rule, of_backend] = filters;
    let on_the_way = (&of_rule.request, &of_rule.host, &of_rule.path, of_backend);
    if !of_rule.request.is_empty()
        || of_rule.host.is_some()
        || of_rule.path.is_some()
        || !of_backend.is_empty()
    {
        let digest = Sha256::digest(format!("{on_the_way:?}"));
        scope.push('~');
        scope.extend(digest[..12].iter().map(|byte| format!("{byte:02x}")));
    }
    scope.into()
}

/// Each backend of a rule with its cluster, and the cluster's settings where the rule has settings of its own.
fn rule_clusters(rule: &Rule) -> impl Iterator<Item = (&Backend, ClusterKey, Option<&Traffic>)> {
    let backends = match &rule.action {
        Action::Forward(backends) => &backends.list[..],
        Action::Redirect(_) => &[],
    };
    backends.iter().enumerate().map(|(index, to)| {
        let own = rule.calls.own_traffic.as_ref().and_then(|all| all.get(index));
        let rule = own.map(|_| rule.name.clone());
        (to, ClusterKey { service: to.service.clone(), port: to.port, rule }, own)
    })
}

/// The settings of all clusters that a rule has for itself.
pub(crate) fn own_traffic(snapshot: &Snapshot) -> HashMap<ClusterKey, &Traffic> {
    let rules = snapshot.services().flat_map(|service| service.ports.iter().flat_map(|port| &port.rules));
    rules.flat_map(rule_clusters).filter_map(|(_, key, own)| Some((key, own?))).collect()
}
