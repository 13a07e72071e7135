//! What these tests stand on: one service with its replicas, or a chain of services that call each other.

use futures_util::future::join_all;
use std::{future::Future, sync::Arc};
use tokio::sync::{Mutex, Semaphore};
use weft_tests::{
    Answer, Beside, Client, Mesh, PATIENCE, Process, Scripted, eventually,
    mesh::{calling, serving},
    scripted::{Asked, Onward, Reply, Spoken, text},
};

/// Tests that make load: one after another.
pub(crate) static ALONE: Mutex<()> = Mutex::const_new(());

/// Where the service of a [`Stage`] is called.
pub(crate) const URL: &str = "http://product:8080/";

/// The service `product` with one or more replicas, and a caller.
pub(crate) struct Stage {
    pub(crate) mesh: Mesh,
    pub(crate) caller: Process,
    pub(crate) sidecars: Vec<Process>,
    pub(crate) apps: Vec<Scripted>,
    pub(crate) client: Client,
}

/// A stage on which the replicas of `product` are these applications, under `policy`.
pub(crate) async fn stage(policy: &str, apps: Vec<Scripted>) -> Stage {
    stage_of("http", policy, apps).await
}

/// The same with another `appProtocol`.
pub(crate) async fn stage_of(protocol: &str, policy: &str, apps: Vec<Scripted>) -> Stage {
    let service = serving("product", 8080, protocol) + &format!("  replicas: {}\n", apps.len());
    let mesh = Mesh::start(&(service + &calling("caller") + policy)).await;
    let starting = apps.iter().enumerate().map(|(number, app)| mesh.sidecar(replica(number, app)));
    let sidecars = join_all(starting).await;
    let caller = mesh.sidecar(Beside::new("caller")).await;
    mesh.endpoints("product", apps.len()).await;
    let client = Client::new(caller.outbound());
    Stage { mesh, caller, sidecars, apps, client }
}

/// The sidecar of replica `number` of `product`.
pub(crate) fn replica(number: usize, app: &Scripted) -> Beside {
    Beside::new(&format!("product-{number}")).account("product").app(8080, app.address()).drain(PATIENCE)
}

/// Where calls wait until the test lets them go.
#[derive(Clone)]
pub(crate) struct Gate(Arc<Semaphore>);

impl Gate {
    pub(crate) fn closed() -> Self {
        Self(Arc::new(Semaphore::new(0)))
    }

    /// Lets so many calls go.
    pub(crate) fn let_go(&self, calls: usize) {
        self.0.add_permits(calls);
    }

    /// Waits to be let go.
    pub(crate) async fn pass(&self) -> Reply {
        self.0.acquire().await?.forget();
        Ok(text("good"))
    }

    /// An application all of whose calls wait.
    pub(crate) async fn app(&self) -> Scripted {
        let gate = self.clone();
        Scripted::start(move |_| {
            let gate = gate.clone();
            async move { gate.pass().await }
        })
        .await
    }

    /// Makes so many calls at once, and lets those that wait go when all others are answered. Gives all answers, those of
    /// the others first.
    pub(crate) async fn calls(&self, proxy: &Client, calls: usize, wait: usize) -> Vec<Answer> {
        let done = std::cell::RefCell::new(Vec::new());
        let calling = join_all((0..calls).map(|_| async {
            let answer = proxy.get(URL).await;
            done.borrow_mut().push(answer);
        }));
        let opening = async {
            eventually(&format!("all but {wait} of {calls} are answered"), PATIENCE, || async {
                (done.borrow().len() == calls - wait).then_some(())
            })
            .await;
            self.let_go(wait);
        };
        tokio::join!(calling, opening);
        done.into_inner()
    }
}

impl Stage {
    /// A counter of the caller's sidecar.
    pub(crate) async fn counted(&self, family: &str, labels: &[&str]) -> u64 {
        self.caller.metrics().await.sum(family, labels) as u64
    }

    /// What `/clusters` of the caller's sidecar says about the endpoints of `product`, in the order of the replicas.
    pub(crate) async fn endpoints(&self) -> Vec<serde_json::Value> {
        let clusters = self.caller.admin("/clusters").await;
        let of_product = clusters.as_array().unwrap().iter().find(|c| c["service"] == "shop/product");
        let endpoints = of_product.map_or(&serde_json::Value::Null, |cluster| &cluster["endpoints"]);
        let at = |number: usize| {
            let address = self.sidecars[number].addresses().inbound.to_string();
            endpoints.as_array().into_iter().flatten().find(|e| e["address"] == address.as_str()).cloned()
        };
        (0..self.sidecars.len()).map(|number| at(number).unwrap_or_default()).collect()
    }
}

/// One service of a chain: its application beside its sidecar.
pub(crate) struct Hop {
    pub(crate) app: Scripted,
    pub(crate) sidecar: Process,
}

/// Services that call each other: the client calls the first, and each the next.
pub(crate) struct Chain {
    pub(crate) client: Process,
    pub(crate) hops: Vec<Hop>,
    _mesh: Mesh,
}

/// A chain of services of these names, whose applications do nothing but call the next and answer as it answers; the
/// last one follows `last`.
pub(crate) async fn chain<F>(
    names: &[&'static str],
    spoken: Spoken,
    policy: &str,
    last: impl Fn(Asked) -> F + Send + Sync + 'static,
) -> Chain
where
    F: Future<Output = Reply> + Send + 'static,
{
    let (end, links) = names.split_last().unwrap();
    let mut apps = Vec::new();
    for (place, _) in links.iter().enumerate() {
        let next = format!("http://{}:8080/", names[place + 1]);
        apps.push(
            linked(move |asked, onward| {
                let next = next.clone();
                async move { onward.pass_on(&asked, &next, spoken).await }
            })
            .await,
        );
    }
    apps.push((Scripted::start(last).await, Onward::default()));
    assert_eq!(apps.len(), links.len() + 1, "{end} is the last");
    assemble(names, spoken, policy, apps).await
}

/// An application that calls on.
pub(crate) async fn linked<F>(
    script: impl Fn(Asked, Onward) -> F + Send + Sync + 'static,
) -> (Scripted, Onward)
where
    F: Future<Output = Reply> + Send + 'static,
{
    let onward = Onward::default();
    let given = onward.clone();
    (Scripted::start(move |asked| script(asked, given.clone())).await, onward)
}

/// A chain of services of these names with these applications.
pub(crate) async fn assemble(
    names: &[&'static str],
    spoken: Spoken,
    policy: &str,
    apps: Vec<(Scripted, Onward)>,
) -> Chain {
    let protocol = match spoken {
        Spoken::Http1 => "http",
        Spoken::Http2 => "http2",
        Spoken::Grpc => "grpc",
    };
    let services: String = names.iter().map(|name| serving(name, 8080, protocol)).collect();
    let mesh = Mesh::start(&(services + &calling("client") + policy)).await;
    let beside = names.iter().zip(&apps).map(|(name, (app, _))| Beside::new(name).app(8080, app.address()));
    let starting = beside.map(|beside| mesh.sidecar(beside));
    let sidecars = join_all(starting).await;
    let client = mesh.sidecar(Beside::new("client")).await;
    for name in names {
        mesh.endpoints(name, 1).await;
    }
    let hops = apps.into_iter().zip(sidecars).map(|((app, onward), sidecar)| {
        onward.through(sidecar.outbound());
        Hop { app, sidecar }
    });
    Chain { client, hops: hops.collect(), _mesh: mesh }
}
