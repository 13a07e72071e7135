//! How clusters come, change and go with snapshots.

use super::*;
use crate::upstream::Preference;
use clap::Parser;
use weft_config::snapshot::{
    Action, Backend, Backends, Balancing, Calls, Key, KeyPart, Mirror, Rule, Service, Sharding, Workload,
};

#[derive(Parser)]
struct Flags {
    #[command(flatten)]
    settings: Settings,
}

fn worker() -> Worker {
    let flags = ["sidecar", "--policy", ".", "--namespace", "shop", "--workload", "checkout"];
    let settings = Flags::try_parse_from(flags).expect("flags").settings;
    let metrics = Metrics::new(1);
    let tls = Arc::new(Tls::new("weft.local"));
    let access_log = AccessLog::stdout(metrics.clone());
    Worker::new(Arc::new(Shared::new(settings, tls, metrics, access_log, None)), 0)
}

fn name(name: &str) -> ServiceName {
    ServiceName::new("shop", name)
}

fn place(n: u16, zone: &str) -> Place {
    Place {
        address: ([10, 0, 0, 1], n).into(),
        identity: None,
        workload: format!("w-{n}").into(),
        zone: Some(zone.into()),
        labels: Arc::new([("version".into(), format!("v{n}").into())]),
        weight: 1,
    }
}

/// Only endpoints of this version.
fn only(version: &str) -> Traffic {
    let subset: Arc<[_]> = Arc::new([("version".into(), version.into())]);
    Traffic { balancing: Balancing { subset, ..Balancing::default() }, ..Traffic::default() }
}

fn to(service: &str) -> Backend {
    Backend {
        service: name(service),
        port: 80,
        weight: 1,
        filters: Default::default(),
        mirrors: Arc::new([]),
        invalid: None,
    }
}

fn rule(rule: &str, backend: &str, calls: Calls) -> Rule {
    Rule {
        name: rule.into(),
        filters: Default::default(),
        action: Action::Forward(Backends { list: vec![to(backend)], total_weight: 1 }),
        calls: Arc::new(calls),
    }
}

/// A service that is served by `v1` in zone a and `v2` in zone b.
fn service(service: &str, traffic: Traffic, rules: Vec<Rule>) -> Arc<Service> {
    let port = Port {
        port: 80,
        name: None,
        protocol: AppProtocol::Http1,
        routes: Default::default(),
        rules,
        endpoints: Arc::new([place(1, "a"), place(2, "b")]),
        traffic: Arc::new(traffic),
        calls: Arc::default(),
    };
    Arc::new(Service { name: name(service), version: "1".into(), ports: vec![port] })
}

fn publish(worker: &Worker, zone: &str, services: impl IntoIterator<Item = Arc<Service>>) {
    let workload = Workload { zone: Some(zone.into()), ..Workload::default() };
    let mut snapshot = Snapshot::default();
    snapshot.workload = Some(Arc::new(workload));
    services.into_iter().for_each(|service| snapshot.insert(service));
    worker.shared.publish(Arc::new(snapshot));
}

/// Who is called, by port.
fn called(cluster: &Cluster) -> Vec<u16> {
    let now = Instant::now();
    let pick = |_| cluster.pick(&Preference::default(), now).expect("one").endpoint().place.address.port();
    let mut all: Vec<u16> = (0..100).map(pick).collect();
    all.sort_unstable();
    all.dedup();
    all
}

#[test]
fn rules_share_a_services_cluster_but_for_those_with_settings_of_their_own() {
    let worker = worker();
    let own = Calls { own_traffic: Some(Arc::new([only("v2")])), ..Calls::default() };
    let rules = vec![
        rule("one", "cart", Calls::default()),
        rule("two", "cart", Calls::default()),
        rule("own", "cart", own),
    ];
    publish(&worker, "a", [service("cart", only("v1"), rules)]);
    let port = worker.live().by_service(&worker, &name("cart"), 80).expect("the port");
    let [one, two, own] = &port.rules[..] else { panic!("three rules") };
    assert!(Rc::ptr_eq(&one.backends[0].cluster, &two.backends[0].cluster));
    assert!(Rc::ptr_eq(&one.backends[0].cluster, &port.own.cluster));
    assert!(!Rc::ptr_eq(&one.backends[0].cluster, &own.backends[0].cluster));
    assert!(!Arc::ptr_eq(&one.backends[0].cluster.guard, &own.backends[0].cluster.guard));
    assert_eq!(called(&one.backends[0].cluster), [1]);
    assert_eq!(called(&own.backends[0].cluster), [2]);
    assert_eq!(own.backends[0].cluster.rule.as_deref(), Some("own"));
}

#[test]
fn new_settings_reach_the_clusters_that_are_there() {
    let worker = worker();
    let with = |version: &str, own: &str| {
        let own = Calls { own_traffic: Some(Arc::new([only(own)])), ..Calls::default() };
        [
            service("cart", only(version), vec![]),
            service("shop", Traffic::default(), vec![rule("own", "cart", own)]),
        ]
    };
    publish(&worker, "a", with("v1", "v1"));
    let live = worker.live();
    let shared = live.by_service(&worker, &name("cart"), 80).expect("the port").own.cluster.clone();
    let own =
        live.by_service(&worker, &name("shop"), 80).expect("the port").rules[0].backends[0].cluster.clone();
    assert_eq!((called(&shared), called(&own)), (vec![1], vec![1]));
    publish(&worker, "a", with("v1", "v2"));
    worker.live();
    assert_eq!((called(&shared), called(&own)), (vec![1], vec![2]));
    publish(&worker, "a", with("v2", "v2"));
    worker.live();
    assert_eq!((called(&shared), called(&own)), (vec![2], vec![2]));
}

#[test]
fn clusters_go_with_the_rule_that_owned_them_and_the_service_they_are_of() {
    let worker = worker();
    let own = Calls { own_traffic: Some(Arc::new([only("v2")])), ..Calls::default() };
    publish(&worker, "a", [service("cart", Traffic::default(), vec![rule("own", "cart", own)])]);
    worker.live().by_service(&worker, &name("cart"), 80).expect("the port");
    assert_eq!(worker.clusters().len(), 2);
    publish(&worker, "a", [service("cart", Traffic::default(), vec![])]);
    worker.live();
    assert_eq!(worker.clusters().len(), 1);
    publish(&worker, "a", []);
    worker.live();
    assert_eq!(worker.clusters().len(), 0);
}

#[test]
fn a_cluster_that_a_request_holds_lives_on() {
    let worker = worker();
    publish(&worker, "a", [service("cart", Traffic::default(), vec![])]);
    let held = worker.live().by_service(&worker, &name("cart"), 80).expect("the port").own.cluster.clone();
    publish(&worker, "a", []);
    worker.live();
    assert_eq!(called(&held), [1, 2]);
    publish(&worker, "a", [service("cart", only("v2"), vec![])]);
    let again = worker.live().by_service(&worker, &name("cart"), 80).expect("the port").own.cluster.clone();
    assert!(Rc::ptr_eq(&held, &again));
    assert_eq!(called(&held), [2]);
}

#[test]
fn the_workloads_zone_is_the_own_zone() {
    let worker = worker();
    let local = || Traffic {
        balancing: Balancing { zone_overflow: Some(0.7), ..Balancing::default() },
        ..Traffic::default()
    };
    publish(&worker, "b", [service("cart", local(), vec![])]);
    let cluster = worker.live().by_service(&worker, &name("cart"), 80).expect("the port").own.cluster.clone();
    assert_eq!(called(&cluster), [2]);
    publish(&worker, "a", [service("cart", local(), vec![])]);
    worker.live();
    assert_eq!(called(&cluster), [1]);
    publish(&worker, "elsewhere", [service("cart", local(), vec![])]);
    worker.live();
    assert_eq!(called(&cluster), [1, 2]);
}

#[test]
fn shards_and_mirrors_are_resolved_for_rules_and_for_ports_without_routes() {
    let worker = worker();
    let calls = || Calls {
        sharding: Some(Sharding {
            key: Key([KeyPart::Source].into()),
            shards: [to("cart-eu"), to("cart-us")].into(),
            pinned: [].into(),
            without_key: None,
        }),
        mirrors: [Mirror { backend: to("shadow"), numerator: 1, denominator: 2 }].into(),
        ..Calls::default()
    };
    let mut cart = (*service("cart", Traffic::default(), vec![rule("one", "cart", calls())])).clone();
    cart.ports[0].calls = Arc::new(calls());
    let others = ["cart-eu", "cart-us"].map(|name| service(name, Traffic::default(), vec![]));
    publish(&worker, "a", others.into_iter().chain([Arc::new(cart)]));
    let port = worker.live().by_service(&worker, &name("cart"), 80).expect("the port");
    for calls in [&port.calls, &port.rules[0].calls] {
        let names = |all: &[crate::live::LiveBackend]| -> Vec<String> {
            all.iter().map(|to| to.cluster.service.to_string()).collect()
        };
        assert_eq!(names(&calls.shards), ["shop/cart-eu", "shop/cart-us"]);
        assert_eq!(names(&calls.mirrors.to), ["shop/shadow"]);
        assert_eq!(called(&calls.shards[0].cluster), [1, 2]);
        assert_eq!(calls.mirrors.to[0].cluster.len(), 0, "it is not known yet");
    }
    let shadow = port.calls.mirrors.to[0].cluster.clone();
    let all = ["cart", "cart-eu", "cart-us", "shadow"].map(|name| service(name, Traffic::default(), vec![]));
    publish(&worker, "a", all);
    worker.live();
    assert_eq!(shadow.len(), 2, "it came to be known");
}

#[test]
fn a_backends_own_mirrors_are_resolved_with_it() {
    let worker = worker();
    let mirror = Mirror { backend: to("shadow"), numerator: 1, denominator: 2 };
    let list = vec![to("cart"), Backend { mirrors: [mirror].into(), ..to("cart-v2") }];
    let action = Action::Forward(Backends { list, total_weight: 2 });
    let rules = vec![Rule { action, ..rule("one", "cart", Calls::default()) }];
    publish(&worker, "a", [service("cart", Traffic::default(), rules)]);
    let port = worker.live().by_service(&worker, &name("cart"), 80).expect("the port");
    let [cart, v2] = &port.rules[0].backends[..] else { panic!("two backends") };
    assert!(cart.mirrors.to.is_empty());
    assert_eq!(v2.mirrors.to[0].cluster.service, name("shadow"));
}

#[test]
fn at_the_caller_the_source_of_a_key_is_its_own_workload() {
    let worker = worker();
    let headers = HeaderMap::new();
    let from = worker.key_source(&headers, None);
    assert_eq!(KeyPart::Source.read(&from).as_deref(), Some("checkout"));
    assert_eq!(KeyPart::Identity.read(&from).as_deref(), Some("spiffe://weft.local/ns/shop/sa/default"));
}

#[test]
fn hosts_outside_of_the_mesh_have_clusters_with_a_guard_too() {
    let worker = worker();
    let addresses = vec!["192.0.2.1:443".parse().expect("an address"), "192.0.2.2:443".parse().expect("one")];
    let cluster = worker.learn_external("example.com:443", 443, addresses.clone());
    assert_eq!(cluster.len(), 2);
    cluster.endpoints()[0].standing.set_healthy(false, Instant::now());
    let again = worker.learn_external("example.com:443", 443, addresses);
    assert!(Rc::ptr_eq(&cluster, &again));
    let now = Instant::now();
    for _ in 0..20 {
        let flight = again.pick(&Preference::default(), now).expect("one");
        assert_eq!(flight.endpoint().place.address.to_string(), "192.0.2.2:443");
    }
}
