//! Who of a service's endpoints takes a call: weights, subsets, zones, and keys that stay where they are.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::collections::{BTreeMap, BTreeSet};
use weft_tests::{Backend, Beside, Client, Mesh, PATIENCE, Process, eventually};

const ROUTE: &str = "---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: { name: echo, namespace: shop }
spec:
  parentRefs: [{ group: \"\", kind: Service, name: echo, port: 8080 }]
  rules:
";

/// What the policy on each rule says under `loadBalancer`; the rule takes the path of its name.
const RULES: [(&str, &str); 8] = [
    ("turns", "{ algorithm: roundRobin }"),
    ("any", "{ algorithm: random }"),
    ("v2", "{ subset: { labels: { version: v2 } } }"),
    ("v9", "{ subset: { labels: { version: v9 } } }"),
    ("v9-or-any", "{ subset: { labels: { version: v9 }, fallback: any } }"),
    ("near", "{ locality: {} }"),
    ("ring", "{ algorithm: ringHash, hashOn: [{ header: x-user }] }"),
    ("table", "{ algorithm: maglev, hashOn: [{ cookie: user }, { query: user }] }"),
];

/// The instances of `echo`: name, zone, version, weight.
const ECHOES: [(&str, &str, &str, u32); 4] =
    [("a1", "a", "v1", 1), ("a2", "a", "v2", 1), ("b1", "b", "v1", 1), ("b2", "b", "v2", 3)];

struct Echoes {
    mesh: Mesh,
    _apps: Vec<Backend>,
    served: BTreeMap<&'static str, Process>,
    caller: Process,
    client: Client,
}

/// A caller in zone a, and four instances of a service that say their names.
async fn echoes() -> Echoes {
    let mut policy = String::from(ROUTE);
    for (name, _) in RULES {
        policy += &format!(
            "    - name: {name}\n      matches: [{{ path: {{ type: PathPrefix, value: /{name} }} }}]\n      backendRefs: [{{ name: echo, port: 8080 }}]\n"
        );
    }
    for (name, says) in RULES {
        policy += &format!(
            "---
apiVersion: weft.mesh/v1alpha1
kind: TrafficPolicy
metadata: {{ name: {name}, namespace: shop }}
spec:
  targetRefs: [{{ group: gateway.networking.k8s.io, kind: HTTPRoute, name: echo, sectionName: {name} }}]
  loadBalancer: {says}
"
        );
    }
    for (name, zone, version, weight) in ECHOES {
        policy += &format!(
            "---
apiVersion: weft.mesh/v1alpha1
kind: Workload
metadata: {{ name: {name}, namespace: shop, labels: {{ version: {version} }} }}
spec:
  service: echo
  serviceAccount: {name}
  zone: {zone}
  weight: {weight}
  ports: [{{ port: 8080, appProtocol: http }}]
"
        );
    }
    policy += "---
apiVersion: weft.mesh/v1alpha1
kind: Workload
metadata: { name: caller, namespace: shop }
spec: { serviceAccount: caller, zone: a }
";
    let mesh = Mesh::start(&policy).await;
    let caller = mesh.sidecar(Beside::new("caller")).await;
    let mut apps = Vec::new();
    let mut served = BTreeMap::new();
    for (name, ..) in ECHOES {
        let app = Backend::text(name).await;
        served.insert(name, mesh.sidecar(Beside::new(name).app(8080, app.address())).await);
        apps.push(app);
    }
    mesh.endpoints("echo", ECHOES.len()).await;
    let client = Client::new(caller.outbound());
    Echoes { mesh, _apps: apps, served, caller, client }
}

impl Echoes {
    /// Who answers a call to `path`.
    async fn answers(&self, path: &str, headers: &[(&str, &str)]) -> String {
        let answer = self.client.get_with(&format!("http://echo:8080/{path}"), headers).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        answer.text().to_owned()
    }

    /// How often each answers `count` calls.
    async fn counts(&self, path: &str, count: usize) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for _ in 0..count {
            *counts.entry(self.answers(path, &[]).await).or_insert(0) += 1;
        }
        counts
    }

    async fn who(&self, path: &str) -> Vec<String> {
        self.counts(path, 60).await.into_keys().collect()
    }

    /// Who answers each of 120 users on the ring.
    async fn homes(&self) -> Vec<String> {
        let mut homes = Vec::new();
        for user in 0..120 {
            homes.push(self.answers("ring", &[("x-user", &format!("user-{user}"))]).await);
        }
        homes
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn subsets_zones_and_weights_are_as_each_rule_says() {
    let echoes = echoes().await;
    // The first call finds out who is there.
    echoes.answers("any", &[]).await;
    assert_eq!(echoes.who("any").await, ["a1", "a2", "b1", "b2"]);
    assert_eq!(echoes.who("v2").await, ["a2", "b2"]);
    assert_eq!(echoes.who("near").await, ["a1", "a2"]);
    assert_eq!(echoes.who("v9-or-any").await, ["a1", "a2", "b1", "b2"]);
    let answer = echoes.client.get("http://echo:8080/v9").await;
    assert_eq!((answer.status.as_u16(), answer.weft_error()), (503, "no_endpoint"));
    assert!(answer.text().contains("version=v9"), "{}", answer.text());

    let counts: Vec<usize> = echoes.counts("turns", 36).await.into_values().collect();
    assert_eq!(counts, [6, 6, 6, 18]);

    let clusters = echoes.caller.admin("/clusters").await;
    let rules: BTreeSet<_> = clusters.as_array().unwrap().iter().map(|c| c["rule"].as_str()).collect();
    assert!(rules.contains(&Some("shop/echo#near")), "{rules:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_stay_where_they_are_when_somebody_else_goes() {
    let mut echoes = echoes().await;
    let before = echoes.homes().await;
    assert_eq!(before, echoes.homes().await);
    let used: BTreeSet<&String> = before.iter().collect();
    assert_eq!(used.len(), ECHOES.len(), "{before:?}");

    for cookie in ["user=ann", "user=bob", "user=cid"] {
        let at = echoes.answers("table", &[("cookie", cookie)]).await;
        let query = format!("table?{cookie}");
        assert_eq!(echoes.answers(&query, &[]).await, at, "the same user by cookie and by query");
    }
    assert!(echoes.who("ring").await.len() > 1, "calls without a key go where it is quick");

    echoes.served.remove("a2").unwrap().drain().await;
    echoes.mesh.endpoints("echo", ECHOES.len() - 1).await;
    eventually("nobody is sent to the one that left", PATIENCE, || async {
        echoes.homes().await.iter().all(|home| home != "a2").then_some(())
    })
    .await;
    for (before, after) in before.iter().zip(echoes.homes().await) {
        assert!(*before == after || before == "a2", "{before} became {after}");
    }
}
