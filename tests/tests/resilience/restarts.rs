//! Replicas that come and go: by crashes over and over, and in order, one after the other.

use crate::stage::{ALONE, Hop, Stage, URL, assemble, linked, replica, stage};
use std::time::{Duration, Instant};
use tokio::task::block_in_place;
use weft_tests::{
    Client, Load, PATIENCE, Scripted, eventually,
    mesh::{calling, serving, until_free},
    processes,
    scripted::{Asked, Onward, Reply, Spoken, text},
};

async fn good(asked: Asked) -> Reply {
    drop(asked);
    tokio::time::sleep(Duration::from_millis(5)).await;
    Ok(text("good"))
}

async fn steady_and_crashing() -> Stage {
    stage("", vec![Scripted::start(good).await, Scripted::start(good).await]).await
}

/// How often a replica crashes that does so over and over.
const CRASHES: u32 = 6;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sidecar_that_crashes_over_and_over_fails_no_call() {
    let _alone = ALONE.lock().await;
    let mut stage = steady_and_crashing().await;
    let load = Load::start(stage.caller.outbound(), URL, 200);
    load.goes_on(50).await;
    for _ in 0..CRASHES {
        let crashing = stage.sidecars.pop().unwrap();
        let (addresses, state) = (crashing.addresses(), crashing.state_dir());
        drop(crashing);
        tokio::time::sleep(Duration::from_millis(100)).await;
        until_free(addresses).await;
        let again = replica(1, &stage.apps[1]).again(addresses, state);
        stage.sidecars.push(stage.mesh.sidecar(again).await);
        tokio::time::sleep(Duration::from_millis(300)).await;
        load.goes_on(20).await;
    }
    load.stop().await.expect_all_ok(150);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_application_that_crashes_over_and_over_fails_no_call() {
    let _alone = ALONE.lock().await;
    let mut stage = steady_and_crashing().await;
    let address = stage.apps[1].address();
    let load = Load::start(stage.caller.outbound(), URL, 200);
    load.goes_on(50).await;
    for _ in 0..CRASHES {
        drop(stage.apps.pop());
        tokio::time::sleep(Duration::from_millis(100)).await;
        stage.apps.push(Scripted::start_at(address, good).await);
        tokio::time::sleep(Duration::from_millis(300)).await;
        load.goes_on(20).await;
    }
    load.stop().await.expect_all_ok(150);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_application_can_make_calls_for_the_last_request_that_its_draining_sidecar_brought() {
    let slow = linked(|asked, onward| async move {
        // By now the sidecar takes nothing new from peers.
        tokio::time::sleep(Duration::from_millis(900)).await;
        onward.pass_on(&asked, "http://b:8080/", Spoken::Http1).await
    });
    let apps = vec![slow.await, (Scripted::start(good).await, Onward::default())];
    let mut chain = assemble(&["a", "b"], Spoken::Http1, "", apps).await;
    let proxy = chain.client.outbound();
    let call = tokio::spawn(async move { Client::new(proxy).get("http://a:8080/").await });
    eventually("it is under way", PATIENCE, || async { (chain.hops[0].app.under_way() == 1).then_some(()) })
        .await;
    let Hop { app: _app, sidecar } = chain.hops.remove(0);
    assert_eq!(sidecar.drain().await, 0, "nothing was cut");
    let answer = call.await.unwrap();
    assert_eq!((answer.status.as_u16(), answer.text()), (200, "good"));
}

/// One replica as real processes are: the application, and its sidecar beside it.
struct Running {
    sidecar: processes::Sidecar,
    _app: Scripted,
}

impl Running {
    /// Starts a replica of `service`, which calls `next`.
    async fn start(mesh: &processes::Mesh, service: &str, number: usize, next: Option<&'static str>) -> Self {
        let onward = Onward::default();
        let calls = onward.clone();
        let app = Scripted::start(move |asked| {
            let onward = calls.clone();
            async move {
                match next {
                    Some(next) => onward.pass_on(&asked, next, Spoken::Http1).await,
                    None => good(asked).await,
                }
            }
        });
        let app = app.await;
        let sidecar = block_in_place(|| {
            mesh.replica(&format!("{service}-{number}"), service, &[(8080, app.address().port())])
        });
        onward.through(sidecar.outbound);
        Self { sidecar, _app: app }
    }

    /// Ends it as a deployment does: SIGTERM, and the application ends after its sidecar.
    fn stop(mut self) {
        self.sidecar.process.terminate();
        let status = block_in_place(|| self.sidecar.process.wait(processes::PATIENCE));
        assert!(status.success(), "{status}\n{}", self.sidecar.process.log());
    }
}

/// Requests a second that the client makes; each is one to each of three services.
const RATE: u32 = 500;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_services_of_a_chain_restart_one_after_the_other_under_load_and_no_call_fails() {
    const CHAIN: [(&str, Option<&str>); 3] =
        [("a", Some("http://b:8080/")), ("b", Some("http://c:8080/")), ("c", None)];
    let _alone = ALONE.lock().await;
    let replicas = |name| serving(name, 8080, "http") + "  replicas: 2\n";
    let policy = CHAIN.map(|(name, _)| replicas(name)).concat() + &calling("client");
    let mesh = block_in_place(|| processes::Mesh::start(&policy));
    let mut running = Vec::new();
    for (service, next) in CHAIN {
        for number in 0..2 {
            running.push((service, number, next, Running::start(&mesh, service, number, next).await));
        }
    }
    let client = block_in_place(|| mesh.sidecar("client", &[]));
    let load = Load::start_with(client.outbound, "http://a:8080/", RATE, 32);
    load.goes_on(200).await;
    let begun = Instant::now();
    for (service, number, next, old) in std::mem::take(&mut running) {
        old.stop();
        running.push((service, number, next, Running::start(&mesh, service, number, next).await));
        load.goes_on(100).await;
        assert_eq!(load.seen().failed, 0, "{service}-{number}: {:?}", load.seen().failures);
    }
    let took = begun.elapsed();
    let seen = load.stop().await;
    seen.expect_all_ok(800);
    let rate = seen.ok as f64 / took.as_secs_f64();
    processes::say(&format!("{} calls, about {rate:.0} a second, while six replicas restarted", seen.ok));
}
