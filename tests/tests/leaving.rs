//! How endpoints go: by a crash, by an application that is gone, and in order.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use http::Request;
use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};
use tokio::{io::AsyncWriteExt, sync::Semaphore};
use weft_tests::{
    Backend, Beside, Client, Load, Mesh, PATIENCE, Process, empty, eventually, full,
    mesh::{calling, serving},
    raw, soon,
};

const URL: &str = "http://product:8080/";

struct Pair {
    mesh: Mesh,
    caller: Process,
    replicas: Vec<Process>,
    apps: Vec<Backend>,
    /// A permit lets one call of `/slow` go.
    open: Arc<Semaphore>,
    /// Calls of `/slow` that came to each.
    slow: [Arc<AtomicUsize>; 2],
}

/// A caller and two instances of one service, which answer with their number.
async fn pair() -> Pair {
    let documents = serving("product", 8080, "http") + "  replicas: 2\n" + &calling("caller");
    let mesh = Mesh::start(&documents).await;
    let (mut replicas, mut apps) = (Vec::new(), Vec::new());
    let (open, slow) = (Arc::new(Semaphore::new(0)), [Arc::default(), Arc::default()]);
    for (text, came) in ["0", "1"].into_iter().zip(&slow) {
        let (opens, came) = (open.clone(), Arc::<AtomicUsize>::clone(came));
        let app = Backend::http(move |request| {
            let (opens, came) = (opens.clone(), came.clone());
            async move {
                if request.uri().path() == "/slow" {
                    came.fetch_add(1, SeqCst);
                    opens.acquire().await?.forget();
                } else if request.uri().path() == "/short" {
                    tokio::time::sleep(Duration::from_millis(40)).await;
                }
                Ok(http::Response::new(full(text)))
            }
        })
        .await;
        replicas.push(mesh.sidecar(replica(text, &app)).await);
        apps.push(app);
    }
    let caller = mesh.sidecar(Beside::new("caller")).await;
    mesh.endpoints("product", 2).await;
    let client = Client::new(caller.outbound());
    for wanted in ["0", "1"] {
        eventually("both take calls", PATIENCE, || async {
            (client.get(URL).await.text() == wanted).then_some(())
        })
        .await;
    }
    Pair { mesh, caller, replicas, apps, open, slow }
}

impl Pair {
    /// Waits until so many calls of `/slow` are at the applications.
    async fn under_way(&self, calls: usize) {
        eventually(&format!("{calls} calls under way"), PATIENCE, || async {
            (self.slow.iter().map(|came| came.load(SeqCst)).sum::<usize>() == calls).then_some(())
        })
        .await;
    }
}

fn replica(number: &str, app: &Backend) -> Beside {
    Beside::new(&format!("product-{number}")).account("product").app(8080, app.address()).drain(PATIENCE)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sidecar_that_vanishes_is_gone_within_seconds_and_the_other_takes_over() {
    let mut pair = pair().await;
    let client = Client::new(pair.caller.outbound());
    let died = Instant::now();
    drop(pair.replicas.pop());
    // Before anybody knows, a call that could not be connected goes to the other one: nothing was sent.
    let mut failed = 0;
    for _ in 0..50 {
        failed += u32::from(client.get(URL).await.text() != "0");
    }
    assert!(failed <= 1, "{failed} of 50 calls failed; only one that was on a connection that broke may");
    pair.mesh.endpoints("product", 1).await;
    assert!(died.elapsed() < Duration::from_secs(15), "{:?}", died.elapsed());
    for _ in 0..20 {
        assert_eq!(client.get(URL).await.text(), "0");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_application_that_takes_no_connections_is_withdrawn_until_it_does() {
    let mut pair = pair().await;
    let app = pair.apps.pop().unwrap();
    let address = app.address();
    drop(app);
    pair.mesh.endpoints("product", 1).await;
    let client = Client::new(pair.caller.outbound());
    for _ in 0..20 {
        assert_eq!(client.get(URL).await.text(), "0");
    }
    let (status, text) = raw::get(pair.replicas[1].addresses().metrics, "/ready").await;
    assert_eq!(status, 503, "{text}");
    assert!(text.contains("application"), "{text}");

    let _back = Backend::tcp_at(address, |mut stream| async move {
        raw::head(&mut stream).await;
        let _ =
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nConnection: close\r\n\r\nback").await;
    })
    .await;
    pair.mesh.endpoints("product", 2).await;
    eventually("it takes calls again", PATIENCE, || async {
        (client.get(URL).await.text() == "back").then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_finishes_what_is_in_flight_and_sends_new_calls_elsewhere() {
    let mut pair = pair().await;
    let client = Client::new(pair.caller.outbound());
    let draining = pair.replicas.pop().unwrap();
    // So many that both replicas have some in flight.
    let slow: Vec<_> = (0..8)
        .map(|_| {
            let proxy = pair.caller.outbound();
            tokio::spawn(async move { Client::new(proxy).get("http://product:8080/slow").await })
        })
        .collect();
    pair.under_way(8).await;
    let drained = tokio::spawn(draining.drain());
    pair.mesh.endpoints("product", 1).await;
    pair.open.add_permits(8);
    let mut texts = Vec::new();
    for call in slow {
        let answer = call.await.unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
        texts.push(answer.text().to_owned());
    }
    assert!(texts.iter().any(|text| text == "1"), "some were in flight where it drained: {texts:?}");
    assert_eq!(drained.await.unwrap(), 0, "nothing was cut");
    for _ in 0..20 {
        assert_eq!(client.get(URL).await.text(), "0");
    }
    pair.mesh.endpoints("product", 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_that_drains_closes_its_applications_connections_in_order() {
    let pair = pair().await;
    let mut connection = raw::connect(pair.caller.outbound()).await;
    let mut idle = raw::connect(pair.caller.outbound()).await;
    let ask = |path: &str| format!("GET http://product:8080{path} HTTP/1.1\r\nHost: product\r\n\r\n");
    idle.write_all(ask("/").as_bytes()).await.unwrap();
    raw::head(&mut idle).await;
    raw::exactly(&mut idle, 1).await;
    connection.write_all(ask("/slow").as_bytes()).await.unwrap();
    pair.under_way(1).await;
    let outbound = pair.caller.outbound();
    let drained = tokio::spawn(pair.caller.drain());
    assert_eq!(raw::rest(&mut idle).await, "", "an idle connection is just closed");
    pair.open.add_permits(1);
    let answer = raw::rest(&mut connection).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.to_ascii_lowercase().contains("connection: close"), "{answer}");
    assert_eq!(drained.await.unwrap(), 0);
    assert!(tokio::net::TcpStream::connect(outbound).await.is_err(), "nobody listens any more");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_cuts_what_does_not_end_in_time_and_says_so() {
    let documents = serving("product", 8080, "http") + &calling("caller");
    let mesh = Mesh::start(&documents).await;
    let came = Arc::new(AtomicUsize::new(0));
    let comes = came.clone();
    let app = Backend::http(move |_| {
        comes.fetch_add(1, SeqCst);
        async {
            std::future::pending::<()>().await;
            Ok(http::Response::new(empty()))
        }
    })
    .await;
    let product =
        mesh.sidecar(Beside::new("product").app(8080, app.address()).drain(Duration::from_millis(500))).await;
    let caller = mesh.sidecar(Beside::new("caller")).await;
    mesh.endpoints("product", 1).await;
    let proxy = caller.outbound();
    let hanging =
        tokio::spawn(
            async move { Client::new(proxy).call(Request::post(URL).body(full("x")).unwrap()).await },
        );
    eventually("the call is there", PATIENCE, || async { (came.load(SeqCst) == 1).then_some(()) }).await;
    assert!(soon("an end", product.drain()).await >= 1);
    let answer = hanging.await.unwrap();
    assert_eq!((answer.status.as_u16(), answer.weft_error()), (502, "reset"), "{}", answer.text());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idempotent_calls_see_nothing_of_replicas_that_restart() {
    let pair = pair().await;
    let load = Load::start(pair.caller.outbound(), URL, 300);
    restart_both(pair, load).await;
}

/// As above, with so many calls in flight that they share connections between the sidecars.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idempotent_calls_that_share_a_connection_see_nothing_of_replicas_that_restart() {
    let pair = pair().await;
    let load = Load::start_with(pair.caller.outbound(), "http://product:8080/short", 800, 48);
    eventually("calls are multiplexed", PATIENCE, || async {
        let metrics = pair.caller.metrics().await;
        let shared = metrics.sum("weft_upstream_connections", &["protocol=\"http1over2\""]);
        (shared > 0.0).then_some(())
    })
    .await;
    restart_both(pair, load).await;
}

async fn restart_both(mut pair: Pair, load: Load) {
    eventually("calls flow", PATIENCE, || async { (load.seen().ok > 50).then_some(()) }).await;
    for round in 0..2 {
        let old = pair.replicas.remove(0);
        old.drain().await;
        pair.mesh.endpoints("product", 1).await;
        pair.replicas.push(pair.mesh.sidecar(replica(["0", "1"][round], &pair.apps[round])).await);
        pair.mesh.endpoints("product", 2).await;
        load.goes_on(50).await;
    }
    let seen = load.stop().await;
    seen.expect_all_ok(150);
    assert!(seen.texts.len() == 2, "{seen:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pooled_connection_that_the_application_closed_fails_no_idempotent_call() {
    // Closes each connection right after its second answer, without saying so before.
    let mesh = Mesh::start(&(serving("product", 8080, "http") + &calling("caller"))).await;
    let app = Backend::tcp(|mut stream| async move {
        for _ in 0..2 {
            if !raw::head(&mut stream).await.ends_with("\r\n\r\n") {
                return;
            }
            let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
            if stream.write_all(answer).await.is_err() {
                return;
            }
        }
    })
    .await;
    let _product = mesh.sidecar(Beside::new("product").app(8080, app.address())).await;
    let caller = mesh.sidecar(Beside::new("caller")).await;
    mesh.endpoints("product", 1).await;
    let client = Client::new(caller.outbound());
    for call in 0..200 {
        let answer = client.get(URL).await;
        assert_eq!(answer.status, 200, "call {call}: {}", answer.text());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_post_that_may_have_arrived_is_never_sent_twice() {
    // Takes the first request of a connection, and breaks off at the second without a word.
    let mesh = Mesh::start(&(serving("product", 8080, "http") + &calling("caller"))).await;
    let arrived = Arc::new(Mutex::new(Vec::new()));
    let arrives = arrived.clone();
    let app = Backend::tcp(move |mut stream| {
        let arrives = arrives.clone();
        async move {
            for turn in 0..2 {
                let head = raw::head(&mut stream).await;
                let Some(target) = head.split(' ').nth(1).map(str::to_owned) else { return };
                arrives.lock().unwrap().push(target);
                let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
                if turn == 1 || stream.write_all(answer).await.is_err() {
                    return;
                }
            }
        }
    })
    .await;
    let _product = mesh.sidecar(Beside::new("product").app(8080, app.address())).await;
    let caller = mesh.sidecar(Beside::new("caller")).await;
    mesh.endpoints("product", 1).await;
    let client = Client::new(caller.outbound());
    let (mut answered, mut failed) = (0, 0);
    for call in 0..40 {
        let request = Request::post(format!("http://product:8080/{call}")).body(empty()).unwrap();
        let answer = client.call(request).await;
        match (answer.status.as_u16(), answer.weft_error()) {
            (200, "") => answered += 1,
            (502, "reset") => failed += 1,
            other => panic!("{other:?}: {}", answer.text()),
        }
    }
    assert!(answered >= 10 && failed >= 10, "{answered} answered, {failed} failed");
    let mut arrived = arrived.lock().unwrap().clone();
    let all = arrived.len();
    arrived.sort();
    arrived.dedup();
    assert_eq!(arrived.len(), all, "each came once");
    assert_eq!(all, 40);
}
