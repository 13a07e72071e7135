//! Concurrency and load shedding where a service is served.

use crate::URL;
use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};
use tokio::{sync::Semaphore, task::JoinHandle};
use weft_tests::{
    Answer, Backend, Client, PATIENCE, eventually, full, soon,
    stage::{Instance, Stage, traffic_policy},
};

/// An application whose calls end when the test says so.
#[derive(Clone)]
struct Gate {
    /// A permit lets one call go.
    open: Arc<Semaphore>,
    inside: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
    /// Paths in the order in which they came.
    came: Arc<Mutex<Vec<String>>>,
}

impl Gate {
    fn closed() -> Self {
        Self {
            open: Arc::new(Semaphore::new(0)),
            inside: Arc::default(),
            most: Arc::default(),
            came: Arc::default(),
        }
    }

    async fn app(&self) -> Backend {
        let gate = self.clone();
        Backend::http(move |request| {
            let gate = gate.clone();
            async move {
                gate.came.lock().unwrap().push(request.uri().path().to_owned());
                let inside = gate.inside.fetch_add(1, SeqCst) + 1;
                gate.most.fetch_max(inside, SeqCst);
                gate.open.acquire().await?.forget();
                gate.inside.fetch_sub(1, SeqCst);
                Ok(http::Response::new(full("done")))
            }
        })
        .await
    }

    async fn has(&self, count: usize) {
        eventually(&format!("{count} calls at the application"), PATIENCE, || async {
            (self.inside.load(SeqCst) == count).then_some(())
        })
        .await;
    }

    fn let_go(&self, count: usize) {
        self.open.add_permits(count);
    }
}

fn concurrency(text: &str) -> String {
    // What is shed is not tried again here: each call counts once.
    let parts = [format!("concurrency: {text}"), "retries: { attempts: 0 }".to_owned()];
    let parts = [&*parts[0], &*parts[1]];
    traffic_policy("load", "{ kind: Service, name: product }", &parts)
}

/// A call under way.
fn begin(client: &Arc<Client>, path: &str) -> JoinHandle<Answer> {
    let (client, url) = (client.clone(), format!("http://product:8080{path}"));
    tokio::spawn(async move { client.get(&url).await })
}

async fn queued(stage: &Stage, count: usize) {
    eventually(&format!("{count} calls in the queue"), PATIENCE, || async {
        let metrics = stage.beside("product").metrics().await;
        (metrics.sum("weft_concurrency_queued", &[]) == count as f64).then_some(())
    })
    .await;
}

async fn result(what: &str, call: JoinHandle<Answer>) -> Answer {
    soon(what, call).await.unwrap()
}

async fn gated(policy: &str) -> (Stage, Gate, Arc<Client>) {
    let gate = Gate::closed();
    let stage = Stage::set("", [Instance::new("product", gate.app().await).workers(2)]).await;
    stage.change("load.yaml", &concurrency(policy)).await;
    let client = Arc::new(Client::new(stage.caller.outbound()));
    (stage, gate, client)
}

fn expect_shed(answer: &Answer) {
    assert_eq!((answer.status.as_u16(), answer.weft_error()), (503, "shed"), "{}", answer.text());
    assert_eq!(answer.header("retry-after"), "1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_beyond_limit_and_queue_are_shed_at_once() {
    let (stage, gate, client) = gated("{ limit: 2, queue: { max: 1, timeout: 9s } }").await;
    let first = [begin(&client, "/a"), begin(&client, "/b")];
    gate.has(2).await;
    let waiting = begin(&client, "/c");
    queued(&stage, 1).await;
    for _ in 0..3 {
        expect_shed(&client.get(URL).await);
    }
    assert_eq!(gate.inside.load(SeqCst), 2);
    let metrics = stage.beside("product").metrics().await;
    let service = "service=\"shop/product\"";
    assert_eq!(metrics.sum("weft_shed_total", &[service, "reason=\"queue_full\""]), 3.0, "{}", metrics.0);
    assert_eq!(metrics.sum("weft_concurrency_limit", &[service]), 2.0);
    assert_eq!(metrics.sum("weft_concurrency_in_flight", &[service]), 2.0);
    gate.let_go(3);
    for call in first.into_iter().chain([waiting]) {
        assert_eq!(result("an answer", call).await.status, 200);
    }
    assert_eq!(gate.most.load(SeqCst), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_waits_too_long_is_shed() {
    let (stage, gate, client) = gated("{ limit: 1, queue: { timeout: 50ms } }").await;
    let first = begin(&client, "/a");
    gate.has(1).await;
    expect_shed(&client.get(URL).await);
    let metrics = stage.beside("product").metrics().await;
    assert_eq!(metrics.sum("weft_shed_total", &["reason=\"timeout\""]), 1.0, "{}", metrics.0);
    gate.let_go(1);
    assert_eq!(result("an answer", first).await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn higher_priority_overtakes_and_takes_the_place_of_lower() {
    let policy = "{ limit: 1, queue: { max: 2, timeout: 9s }, \
                  priorities: [{ priority: 90, paths: [/checkout] }, { priority: 10, paths: [/browse] }] }";
    let (stage, gate, client) = gated(policy).await;
    let first = begin(&client, "/first");
    gate.has(1).await;
    let ordinary = begin(&client, "/ordinary");
    queued(&stage, 1).await;
    let browsing = begin(&client, "/browse");
    queued(&stage, 2).await;
    let checkout = begin(&client, "/checkout/now");
    expect_shed(&result("the place of the lowest is taken", browsing).await);
    queued(&stage, 2).await;
    expect_shed(&client.get("http://product:8080/browse").await);
    gate.let_go(3);
    for call in [first, ordinary, checkout] {
        assert_eq!(result("an answer", call).await.status, 200);
    }
    assert_eq!(*gate.came.lock().unwrap(), ["/first", "/checkout/now", "/ordinary"]);
    let metrics = stage.beside("product").metrics().await;
    assert_eq!(metrics.sum("weft_shed_total", &["reason=\"displaced\""]), 1.0, "{}", metrics.0);
    assert_eq!(metrics.sum("weft_shed_total", &["reason=\"queue_full\""]), 1.0, "{}", metrics.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_checks_of_priority_100_get_through_overload() {
    let policy = concurrency(
        "{ limit: 2, queue: { max: 4, timeout: 9s }, \
         priorities: [{ priority: 100, headers: [{ name: x-probe, value: \"yes\" }] }] }",
    );
    let app = Backend::http(|_| async {
        tokio::time::sleep(Duration::from_millis(5)).await;
        Ok(http::Response::new(full("well")))
    });
    let stage = Stage::set(&policy, [Instance::new("product", app.await).workers(2)]).await;
    let proxy = stage.caller.outbound();
    let browsing: Vec<_> = (0..16)
        .map(|_| {
            tokio::spawn(async move {
                let client = Client::new(proxy);
                loop {
                    let _ = client.try_call(http::Request::get(URL).body(weft_tests::empty()).unwrap()).await;
                }
            })
        })
        .collect();
    let shed = || async { stage.beside("product").metrics().await.sum("weft_shed_total", &[]) };
    eventually("overload", PATIENCE, || async { (shed().await > 100.0).then_some(()) }).await;
    for _ in 0..50 {
        let answer = stage.client.get_with(URL, &[("x-probe", "yes")]).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    let before = shed().await;
    eventually("and there still is", PATIENCE, || async { (shed().await > before).then_some(()) }).await;
    browsing.into_iter().for_each(|client| client.abort());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_adaptive_limit_stays_within_its_bounds() {
    let policy = concurrency("{ adaptive: { min: 2, max: 6 }, queue: { max: 64, timeout: 9s } }");
    let most = Arc::new(AtomicUsize::new(0));
    let inside = Arc::new(AtomicUsize::new(0));
    let seen = most.clone();
    let app = Backend::http(move |_| {
        let (inside, most) = (inside.clone(), seen.clone());
        async move {
            let now = inside.fetch_add(1, SeqCst) + 1;
            most.fetch_max(now, SeqCst);
            // Grows slow with load: its best is one at a time.
            tokio::time::sleep(Duration::from_millis(2 * now as u64)).await;
            inside.fetch_sub(1, SeqCst);
            Ok(http::Response::new(full("done")))
        }
    });
    let stage = Stage::set(&policy, [Instance::new("product", app.await).workers(2)]).await;
    let client = &stage.client;
    for _ in 0..5 {
        let calls = (0..40).map(|_| client.get(URL));
        let answers = soon("all answers", futures_util::future::join_all(calls)).await;
        assert!(answers.iter().all(|answer| answer.status == 200), "the queue has room for all");
        let limit = stage.beside("product").metrics().await.sum("weft_concurrency_limit", &[]);
        assert!((2.0..=6.0).contains(&limit), "{limit}");
    }
    let most = most.load(SeqCst);
    assert!((2..=6).contains(&most), "{most} at once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_raised_limit_lets_waiting_calls_go_at_once() {
    let (stage, gate, client) = gated("{ limit: 1, queue: { timeout: 9s } }").await;
    let calls = [begin(&client, "/a"), begin(&client, "/b"), begin(&client, "/c")];
    gate.has(1).await;
    queued(&stage, 2).await;
    stage.change("load.yaml", &concurrency("{ limit: 3, queue: { timeout: 9s } }")).await;
    gate.has(3).await;
    queued(&stage, 0).await;
    gate.let_go(3);
    for call in calls {
        assert_eq!(result("an answer", call).await.status, 200);
    }
}
