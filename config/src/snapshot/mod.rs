//! Policy compiled into immutable look-up structures; a sidecar reads one snapshot per request and swaps it whole.

mod authorization;
mod cache;
mod calls;
mod hosts;
mod key;
mod traffic;

pub use authorization::{
    Authorization, AuthorizationRule, Caller, Decision, NO_ALLOW_RULE, Operation, PathPattern,
};

pub use cache::{
    CacheKeyRules, CacheOverride, CacheParameters, CachePath, CacheRedis, CacheRedisTls, CacheRules,
    CacheTagRules, CacheTierRules, CacheTtlRules, CachedMethod,
};
pub use calls::{
    Abort, Admission, Calls, Concurrency, ConcurrencyLimit, Cors, Deprecation, Fault, Hedge, HedgeAfter,
    Mirror, Only, Origin, RateLimit, Retry, Session, Sharding, Timeouts,
};
pub use key::{Key, KeyPart, KeySource, cookie, hash64, mix, rendezvous};
pub use traffic::{
    Balancer, Balancing, Bounds, Breaker, Ejection, HealthCheck, Probe, RetryBudget, SlowEndpoint,
    SuccessRate, Traffic,
};

use crate::identity::{ServiceName, SpiffeId};
use crate::matching::RouteTable;
use http::{HeaderName, HeaderValue, StatusCode};
use std::{collections::HashMap, net::SocketAddr, sync::Arc, time::Duration};

type Map<K, V> = HashMap<K, V, foldhash::fast::RandomState>;

/// Everything a sidecar decides by.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Mesh-wide settings.
    pub mesh: Arc<Mesh>,
    /// The workload this sidecar stands beside, once known.
    pub workload: Option<Arc<Workload>>,
    /// By namespace, then by name: so that both can be looked up as they stand in a host, without allocating.
    services: Map<Arc<str>, Map<Arc<str>, Arc<Service>>>,
}

impl Snapshot {
    /// The service of this name.
    pub fn service(&self, name: &ServiceName) -> Option<&Arc<Service>> {
        self.services.get(&name.namespace)?.get(&name.name)
    }

    /// Every service known.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.services.values().flat_map(HashMap::values)
    }

    /// Adds a service or takes the place of the one of the same name.
    pub fn insert(&mut self, service: Arc<Service>) {
        let name = service.name.clone();
        self.services.entry(name.namespace).or_default().insert(name.name, service);
    }

    /// Forgets a service.
    pub fn remove(&mut self, name: &ServiceName) {
        if let Some(services) = self.services.get_mut(&name.namespace) {
            services.remove(&name.name);
            if services.is_empty() {
                self.services.remove(&name.namespace);
            }
        }
    }

    /// The service that a caller in this namespace means by a host (without port): `name`, `name.namespace`,
    /// `name.namespace.svc` or `name.namespace.svc.cluster.local`, in upper or lower case, with or without a dot at
    /// the end. Does not allocate.
    pub fn host(&self, host: &str, caller_namespace: &str) -> Option<&Arc<Service>> {
        let mut lower = [0; hosts::LONGEST];
        let (namespace, name) = hosts::resolve(host, caller_namespace, &mut lower)?;
        self.services.get(namespace)?.get(name)
    }

    /// The name of the service that a caller in this namespace would mean by a host, known or not: what to subscribe
    /// to. `None` if no service could have it, as with IP addresses and longer domain names.
    pub fn host_candidates(host: &str, caller_namespace: &str) -> Option<ServiceName> {
        let mut lower = [0; hosts::LONGEST];
        let (namespace, name) = hosts::resolve(host, caller_namespace, &mut lower)?;
        Some(ServiceName::new(namespace, name))
    }
}

/// Mesh-wide settings, from MeshPolicy.
#[derive(Clone, Debug, PartialEq)]
pub struct Mesh {
    /// The trust domain of every identity.
    pub trust_domain: Arc<str>,
    /// Whether inbound traffic without mTLS is served.
    pub mtls: MtlsMode,
    /// Whether calls to names outside the registry pass through.
    pub outbound: OutboundMode,
    /// Defaults and bounds.
    pub limits: Limits,
    /// Access log: what is written.
    pub access_log: AccessLog,
    /// Share of new traces that are sampled, 0.0 to 1.0.
    pub trace_sampling: f64,
}

impl Default for Mesh {
    fn default() -> Self {
        Self {
            trust_domain: "weft.local".into(),
            mtls: MtlsMode::Strict,
            outbound: OutboundMode::AllowAny,
            limits: Limits::default(),
            access_log: AccessLog::default(),
            trace_sampling: 0.01,
        }
    }
}

/// What the inbound side demands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MtlsMode {
    /// Only mTLS from a known identity.
    Strict,
    /// Plain text is served too.
    Permissive,
}

/// What happens to calls whose host no service has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutboundMode {
    /// They go to the host itself.
    AllowAny,
    /// They are refused with 502.
    RegistryOnly,
}

/// Bounds on everything that a peer could make grow or wait.
#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    /// Bytes of one message's head, decoded (431 or 502 above).
    pub header_bytes: usize,
    /// Fields in one message's head (431 or 502 above).
    pub header_count: usize,
    /// Connections per listener and worker.
    pub connections: usize,
    /// Streams per HTTP/2 connection.
    pub streams: u32,
    /// Time for the whole head of a request after its first byte (408 after).
    pub header_timeout: Duration,
    /// A downstream connection without a request is closed after this.
    pub idle_timeout: Duration,
    /// A pooled upstream connection is closed after this; below the usual application's own.
    pub pool_idle_timeout: Duration,
    /// Idle pooled connections kept per endpoint and worker.
    pub pool_idle: usize,
    /// Connections per endpoint and worker.
    pub pool_connections: usize,
    /// Time for a TCP connect.
    pub connect_timeout: Duration,
    /// Time for a TLS handshake, either side.
    pub handshake_timeout: Duration,
    /// Time for the bytes that tell a connection's protocol.
    pub sniff_timeout: Duration,
    /// Time for a request that no route gives one; zero for none.
    pub request_timeout: Duration,
    /// An opaque connection without bytes either way is closed after this.
    pub tcp_idle_timeout: Duration,
    /// Time a draining process gives what is in flight.
    pub drain_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        let s = Duration::from_secs;
        Self {
            header_bytes: 64 * 1024,
            header_count: 128,
            connections: 20_000,
            streams: 256,
            header_timeout: s(10),
            idle_timeout: s(3600),
            pool_idle_timeout: s(4),
            pool_idle: 512,
            pool_connections: 4096,
            connect_timeout: s(2),
            handshake_timeout: s(5),
            sniff_timeout: s(1),
            request_timeout: s(15),
            tcp_idle_timeout: s(3600),
            drain_timeout: s(30),
        }
    }
}

/// Which requests the access log records.
#[derive(Clone, Debug, PartialEq)]
pub struct AccessLog {
    /// Share of all requests, 0.0 (off, the default) to 1.0.
    pub sample: f64,
    /// Every answer at or above this status, whatever the share; `None` for no such rule.
    pub min_status: Option<u16>,
}

impl Default for AccessLog {
    fn default() -> Self {
        Self { sample: 0.0, min_status: None }
    }
}

/// One service as a caller sees it.
#[derive(Clone, Debug)]
pub struct Service {
    /// Its name.
    pub name: ServiceName,
    /// The version of the resources it was compiled from, for status.
    pub version: Arc<str>,
    /// Its ports, sorted by number.
    pub ports: Vec<Port>,
}

impl Service {
    /// The port of this number.
    pub fn port(&self, port: u16) -> Option<&Port> {
        self.ports.iter().find(|p| p.port == port)
    }
}

/// One port of a service: what is spoken there, how requests are routed, and where it is served.
#[derive(Clone, Debug)]
pub struct Port {
    /// The number that callers use.
    pub port: u16,
    /// The port's name, if it has one.
    pub name: Option<Arc<str>>,
    /// What is spoken.
    pub protocol: AppProtocol,
    /// The routes for calls to this port. Empty: everything goes to the service's own endpoints.
    pub routes: RouteTable,
    /// The rules that `routes` finds by index.
    pub rules: Vec<Rule>,
    /// Where this port is served.
    pub endpoints: Arc<[Endpoint]>,
    /// How its endpoints are picked, bounded and judged.
    pub traffic: Arc<Traffic>,
    /// What is decided about calls while the port has no routes.
    pub calls: Arc<Calls>,
}

/// What an application speaks on a port (`appProtocol`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Hash)]
pub enum AppProtocol {
    /// Found out from the first bytes.
    #[default]
    Auto,
    /// HTTP/1.x.
    Http1,
    /// HTTP/2 with prior knowledge; gRPC is this too.
    Http2,
    /// Opaque bytes.
    Tcp,
}

/// One place where a port of a service is served.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// Where to connect to: a sidecar's inbound listener, or the application itself.
    pub address: SocketAddr,
    /// Who is there: `Some` is reached over mTLS and must prove this identity, `None` in plain text.
    pub identity: Option<SpiffeId>,
    /// The workload's name.
    pub workload: Arc<str>,
    /// Zone, if known.
    pub zone: Option<Arc<str>>,
    /// Labels, sorted by key.
    pub labels: Arc<[(Arc<str>, Arc<str>)]>,
    /// Relative weight, 1 by default.
    pub weight: u32,
}

/// One rule of one route.
#[derive(Clone, Debug)]
pub struct Rule {
    /// `<namespace>/<route>#<rule index or name>`: the `route` label of metrics.
    pub name: Arc<str>,
    /// What is done to the request before it goes on, and to the response.
    pub filters: Filters,
    /// Where it goes.
    pub action: Action,
    /// What is decided about its calls.
    pub calls: Arc<Calls>,
}

/// What a rule does with a request.
#[derive(Clone, Debug)]
pub enum Action {
    /// Forwards to one of the backends, by weight.
    Forward(Backends),
    /// Answers with a redirect.
    Redirect(Redirect),
}

/// Weighted backends. Cumulative weights are computed when compiled.
#[derive(Clone, Debug, Default)]
pub struct Backends {
    /// The backends with a weight above zero, in document order.
    pub list: Vec<Backend>,
    /// The sum of all weights; 0 answers 500 as the Gateway API says.
    pub total_weight: u32,
}

impl Backends {
    /// The index of the backend that owns `ticket`, a number below `total_weight`.
    pub fn pick(&self, ticket: u32) -> Option<usize> {
        let mut left = ticket;
        for (index, backend) in self.list.iter().enumerate() {
            if left < backend.weight {
                return Some(index);
            }
            left -= backend.weight;
        }
        None
    }
}

/// One backend of a rule.
#[derive(Clone, Debug)]
pub struct Backend {
    /// The service.
    pub service: ServiceName,
    /// Its port.
    pub port: u16,
    /// Its share.
    pub weight: u32,
    /// Filters that apply only when this backend is taken.
    pub filters: Filters,
    /// Where copies go when this backend is taken, besides those of the rule.
    pub mirrors: Arc<[Mirror]>,
    /// Why the Gateway API answers 500 for this backend's share: a kind or a reference that does not resolve.
    pub invalid: Option<Arc<str>>,
}

/// Changes to a request on its way and to the response on its way back.
#[derive(Clone, Debug, Default)]
pub struct Filters {
    /// Request header changes.
    pub request: HeaderChanges,
    /// Response header changes.
    pub response: HeaderChanges,
    /// The new `Host`.
    pub host: Option<HeaderValue>,
    /// The new path.
    pub path: Option<PathRewrite>,
}

impl Filters {
    /// Changes nothing.
    pub const NONE: Self = Self {
        request: HeaderChanges { set: Vec::new(), add: Vec::new(), remove: Vec::new() },
        response: HeaderChanges { set: Vec::new(), add: Vec::new(), remove: Vec::new() },
        host: None,
        path: None,
    };

    /// True if nothing is changed: most requests.
    pub fn is_empty(&self) -> bool {
        self.request.is_empty() && self.response.is_empty() && self.host.is_none() && self.path.is_none()
    }
}

/// Header changes in the order the Gateway API gives them: set, add, remove.
#[derive(Clone, Debug, Default)]
pub struct HeaderChanges {
    /// Replaces every value.
    pub set: Vec<(HeaderName, HeaderValue)>,
    /// Adds a value.
    pub add: Vec<(HeaderName, HeaderValue)>,
    /// Removes every value.
    pub remove: Vec<HeaderName>,
}

impl HeaderChanges {
    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.set.is_empty() && self.add.is_empty() && self.remove.is_empty()
    }

    /// Applies them.
    pub fn apply(&self, headers: &mut http::HeaderMap) {
        for (name, value) in &self.set {
            headers.insert(name.clone(), value.clone());
        }
        for (name, value) in &self.add {
            headers.append(name.clone(), value.clone());
        }
        for name in &self.remove {
            headers.remove(name);
        }
    }
}

/// How a path changes; the query stays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathRewrite {
    /// The whole path.
    Full(Arc<str>),
    /// Only the prefix that matched (its length is in the match).
    Prefix(Arc<str>),
}

impl PathRewrite {
    /// The path as it becomes; `matched_len` is [`Match::matched_len`](crate::matching::Match::matched_len).
    /// A prefix is replaced by whole segments, so slashes where the two parts meet are neither lost nor doubled.
    pub fn apply(&self, path: &str, matched_len: usize) -> String {
        match self {
            Self::Full(new) => new.to_string(),
            Self::Prefix(new) => {
                let rest = path.get(matched_len..).unwrap_or_default();
                let new = new.trim_end_matches('/');
                match (new, rest) {
                    ("", "") => "/".to_owned(),
                    _ if rest.is_empty() || rest.starts_with('/') => format!("{new}{rest}"),
                    _ => format!("{new}/{rest}"),
                }
            }
        }
    }
}

/// A redirect answer (Gateway API `RequestRedirect`).
#[derive(Clone, Debug)]
pub struct Redirect {
    /// `http` or `https`; `None` keeps the request's.
    pub scheme: Option<Arc<str>>,
    /// The host; `None` keeps the request's.
    pub host: Option<Arc<str>>,
    /// The port; `None` follows the Gateway API's rules for scheme and listener.
    pub port: Option<u16>,
    /// The path; `None` keeps it.
    pub path: Option<PathRewrite>,
    /// 301, 302, 303, 307 or 308.
    pub status: StatusCode,
}

/// The workload a sidecar stands beside: what it serves, whom it lets in, what it listens on for its application.
#[derive(Clone, Debug, Default)]
pub struct Workload {
    /// Namespace and name.
    pub name: Option<ServiceName>,
    /// Version of the resource, for status.
    pub version: Arc<str>,
    /// The services it serves, with the port each is called by and what the application speaks there.
    pub serves: Vec<Served>,
    /// Explicit outbound listeners.
    pub upstreams: Vec<UpstreamListener>,
    /// Who may call.
    pub authorization: Authorization,
    /// The zone it runs in.
    pub zone: Option<Arc<str>>,
    /// What is decided before the application gets a call, in the order of `serves`.
    pub admission: Vec<Arc<Admission>>,
}

impl Workload {
    /// What is decided before the application gets a call to this port of this service.
    pub fn admission(&self, service: &ServiceName, port: u16) -> Option<&Arc<Admission>> {
        let at = self.serves.iter().position(|served| served.port == port && served.service == *service)?;
        self.admission.get(at)
    }
}

/// One port that a workload serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Served {
    /// The service.
    pub service: ServiceName,
    /// The port that callers use.
    pub port: u16,
    /// The port that the application listens on, unless the sidecar's own settings say otherwise.
    pub app_port: u16,
    /// What the application speaks there.
    pub protocol: AppProtocol,
}

/// A local listener whose every connection goes to one service.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct UpstreamListener {
    /// Where to listen; loopback unless the document says otherwise.
    pub listen: SocketAddr,
    /// The service that is called.
    pub service: ServiceName,
    /// The port that is called.
    pub port: u16,
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    /// The table of the Gateway API's `ReplacePrefixMatch`.
    #[rstest]
    #[case("/foo/bar", 4, "/xyz", "/xyz/bar")]
    #[case("/foo/bar", 4, "/xyz/", "/xyz/bar")]
    #[case("/foo", 4, "/xyz", "/xyz")]
    #[case("/foo/", 4, "/xyz", "/xyz/")]
    #[case("/foo/bar", 4, "", "/bar")]
    #[case("/foo/", 4, "", "/")]
    #[case("/foo", 4, "", "/")]
    #[case("/foo/", 4, "/", "/")]
    #[case("/foo", 4, "/", "/")]
    #[case("/bar", 0, "/xyz", "/xyz/bar")]
    #[case("/", 0, "/xyz", "/xyz/")]
    fn a_prefix_is_replaced_by_whole_segments(
        #[case] path: &str,
        #[case] matched: usize,
        #[case] new: &str,
        #[case] becomes: &str,
    ) {
        assert_eq!(PathRewrite::Prefix(new.into()).apply(path, matched), becomes);
    }

    #[test]
    fn services_are_found_by_every_name_they_have() {
        let mut snapshot = Snapshot::default();
        let service = |namespace: &str| {
            Arc::new(Service {
                name: ServiceName::new(namespace, "product"),
                version: "1".into(),
                ports: vec![],
            })
        };
        snapshot.insert(service("shop"));
        snapshot.insert(service("other"));
        let found = |host: &str, from: &str| snapshot.host(host, from).map(|s| s.name.to_string());
        assert_eq!(found("product", "shop").as_deref(), Some("shop/product"));
        assert_eq!(found("product", "other").as_deref(), Some("other/product"));
        assert_eq!(found("product", "third"), None);
        for host in [
            "product.shop",
            "product.shop.svc",
            "Product.Shop.SVC.cluster.local",
            "product.shop.svc.cluster.local.",
        ] {
            assert_eq!(found(host, "third").as_deref(), Some("shop/product"), "{host}");
        }
        assert_eq!(found("product.shop.example.com", "shop"), None);
        snapshot.remove(&ServiceName::new("shop", "product"));
        assert!(snapshot.host("product.shop", "shop").is_none());
        assert_eq!(snapshot.services().count(), 1);
    }
}
