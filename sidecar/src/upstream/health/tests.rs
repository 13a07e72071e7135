//! Rules of health checks: the verdict, who asks, and questions to backends on real sockets.

use super::*;
use crate::{
    telemetry::metrics::{Metrics, Shard},
    tls::Tls,
    upstream::guard::{Availability, Why},
};
use proptest::prelude::*;
use std::sync::atomic::{AtomicU16, Ordering::Relaxed};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    task::LocalSet,
    time::timeout,
};
use weft_config::snapshot::Probe;

const PATIENCE: Duration = Duration::from_secs(20);

fn check(probe: Probe) -> HealthCheck {
    HealthCheck {
        probe,
        interval: Duration::from_millis(20),
        timeout: Duration::from_secs(5),
        healthy_threshold: 1,
        unhealthy_threshold: 3,
        port: None,
    }
}

fn by_http() -> HealthCheck {
    check(Probe::Http { path: "/health".into(), host: "product".into(), statuses: Arc::new([]) })
}

fn setup(check: HealthCheck) -> Setup {
    Setup {
        service: ServiceName::new("shop", "product"),
        port: 8080,
        declared: AppProtocol::Auto,
        elsewhere: None,
        check,
        bounds: Bounds::default(),
        limits: Limits::default(),
    }
}

fn place(address: SocketAddr) -> Place {
    Place {
        address,
        identity: None,
        workload: "product-1".into(),
        zone: None,
        labels: Arc::new([]),
        weight: 1,
    }
}

/// What a worker has.
struct Fixture {
    connector: Connector,
    series: Arc<ServiceSeries>,
    claims: Arc<Claims>,
}

impl Fixture {
    fn new() -> Self {
        let metrics = Metrics::new(1);
        let tls = Arc::new(Tls::new("weft.local"));
        Self {
            series: metrics.service("shop/product"),
            connector: Connector { tls, shard: Shard::new(metrics, 0) },
            claims: Arc::default(),
        }
    }

    fn endpoint(address: SocketAddr) -> Rc<Endpoint> {
        let now = Instant::now();
        let service = ServiceName::new("shop", "product");
        Rc::new(Endpoint::new(service, 8080, place(address), Standing::alone(address, now), now))
    }

    fn reconcile(&self, checks: &Checks, setup: Option<Setup>, endpoints: &[Rc<Endpoint>]) {
        checks.reconcile(setup, endpoints, &self.connector, &self.series, &self.claims);
    }

    async fn ask(&self, setup: &Setup, address: SocketAddr) -> HealthResult {
        let target = Target::new(setup, setup.place(&place(address)), self.connector.clone());
        target.ask(setup).await.0
    }
}

fn run(test: impl AsyncFnOnce(Fixture)) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    LocalSet::new().block_on(&runtime, async {
        timeout(PATIENCE, test(Fixture::new())).await.expect("the test hangs");
    });
}

async fn until(mut holds: impl FnMut() -> bool) {
    while !holds() {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// An HTTP/1 backend that answers with the status of the moment; gives what it was asked last.
async fn backend(status: Arc<AtomicU16>) -> (SocketAddr, Rc<RefCell<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let asked = Rc::new(RefCell::new(String::new()));
    let last = asked.clone();
    spawn_local(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = vec![0; 4096];
            let read = stream.read(&mut request).await.unwrap_or(0);
            *last.borrow_mut() = String::from_utf8_lossy(&request[..read]).to_lowercase();
            let answer = format!("HTTP/1.1 {} x\r\ncontent-length: 0\r\n\r\n", status.load(Relaxed));
            let _ = stream.write_all(answer.as_bytes()).await;
            // The one who asked closes.
            let _ = stream.read(&mut request).await;
        }
    });
    (address, asked)
}

/// An address where nobody listens.
async fn nobody() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    listener.local_addr().expect("an address")
}

fn is_unhealthy(endpoint: &Endpoint) -> bool {
    endpoint.standing.availability(Instant::now()) == Availability::Out(Why::Unhealthy)
}

#[test]
fn an_endpoint_is_unwell_after_enough_bad_answers_in_a_row_and_well_after_enough_good_ones() {
    let check = HealthCheck { healthy_threshold: 2, ..by_http() };
    let mut streak = Streak::new(true);
    let verdicts: Vec<Option<bool>> =
        [false, false, true, false, false, false, false, true, false, true, true, true]
            .map(|good| streak.observe(good, &check))
            .into();
    let changes: Vec<(usize, bool)> =
        verdicts.iter().enumerate().filter_map(|(at, verdict)| verdict.map(|well| (at, well))).collect();
    assert_eq!(changes, [(5, false), (10, true)]);
}

#[test]
fn questions_are_jittered_by_a_tenth_either_way() {
    let second = Duration::from_secs(1);
    assert_eq!(jittered(second, 0.0), Duration::from_millis(900));
    assert_eq!(jittered(second, 0.5), second);
    assert!(jittered(second, 0.999_999) < Duration::from_millis(1100));
}

#[test]
fn an_http_question_says_who_asks_and_goes_by_the_status() {
    run(async |fixture| {
        let status = Arc::new(AtomicU16::new(204));
        let (address, asked) = backend(status.clone()).await;
        let setup = setup(by_http());
        assert_eq!(fixture.ask(&setup, address).await, HealthResult::Ok);
        assert!(asked.borrow().starts_with("get /health http/1.1\r\n"), "{}", asked.borrow());
        assert!(asked.borrow().contains("user-agent: weft-health-check\r\n"), "{}", asked.borrow());
        assert!(asked.borrow().contains("host: product\r\n"), "{}", asked.borrow());
        status.store(503, Relaxed);
        assert_eq!(fixture.ask(&setup, address).await, HealthResult::Status);
    });
}

#[test]
fn who_does_not_answer_in_time_or_at_all_is_told_apart() {
    run(async |fixture| {
        let silent = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = silent.local_addr().expect("an address");
        let brief = setup(HealthCheck { timeout: Duration::from_millis(30), ..by_http() });
        assert_eq!(fixture.ask(&brief, address).await, HealthResult::Timeout);
        let by_http = setup(by_http());
        assert_eq!(fixture.ask(&by_http, nobody().await).await, HealthResult::NoConnection);
        let rude = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = rude.local_addr().expect("an address");
        spawn_local(async move {
            while let Ok((mut stream, _)) = rude.accept().await {
                let _ = stream.write_all(b"nonsense\r\n\r\n").await;
            }
        });
        assert_eq!(fixture.ask(&by_http, address).await, HealthResult::Broken);
    });
}

#[test]
fn a_tcp_question_is_answered_by_a_connection() {
    run(async |fixture| {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let setup = setup(check(Probe::Tcp));
        let address = listener.local_addr().expect("an address");
        assert_eq!(fixture.ask(&setup, address).await, HealthResult::Ok);
        drop(listener);
        assert_eq!(fixture.ask(&setup, address).await, HealthResult::NoConnection);
    });
}

/// A gRPC backend whose answer is this message and this status.
async fn grpc(message: &'static [u8], status: &'static str) -> (SocketAddr, Rc<RefCell<Vec<u8>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let asked = Rc::new(RefCell::new(Vec::new()));
    let last = asked.clone();
    spawn_local(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let last = last.clone();
            spawn_local(async move {
                let mut connection = h2::server::handshake(stream).await.expect("HTTP/2");
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
                    assert_eq!(request.headers()["content-type"], "application/grpc");
                    assert_eq!(request.headers()["te"], "trailers");
                    let last = last.clone();
                    spawn_local(async move {
                        let body = http_body_util::BodyExt::collect(Incoming(request.into_body())).await;
                        *last.borrow_mut() = body.expect("a question").to_bytes().to_vec();
                        let head = http::Response::builder().header("content-type", "application/grpc");
                        let head = head.body(()).expect("a response");
                        let mut stream = respond.send_response(head, false).expect("sent");
                        stream.send_data(bytes::Bytes::from_static(message), false).expect("sent");
                        let mut trailers = http::HeaderMap::new();
                        trailers.insert("grpc-status", http::HeaderValue::from_static(status));
                        stream.send_trailers(trailers).expect("sent");
                    });
                }
            });
        }
    });
    (address, asked)
}

/// A request's body as `h2` hands it up.
struct Incoming(h2::RecvStream);

impl http_body::Body for Incoming {
    type Data = bytes::Bytes;
    type Error = h2::Error;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<Self::Data>, Self::Error>>> {
        self.0.poll_data(cx).map(|data| data.map(|data| data.map(http_body::Frame::data)))
    }
}

#[test]
fn a_grpc_question_goes_by_the_serving_status() {
    run(async |fixture| {
        let setup = setup(check(Probe::Grpc { service: "shop.Product".into() }));
        for (message, status, result) in [
            (&b"\0\0\0\0\x02\x08\x01"[..], "0", HealthResult::Ok),
            (b"\0\0\0\0\x02\x08\x02", "0", HealthResult::NotServing),
            (b"\0\0\0\0\0", "0", HealthResult::NotServing),
            (b"", "12", HealthResult::Status),
            (b"\x01\0\0\0\0", "0", HealthResult::Broken),
        ] {
            let (address, asked) = grpc(message, status).await;
            assert_eq!(fixture.ask(&setup, address).await, result, "{message:?} {status}");
            assert_eq!(&**asked.borrow(), b"\0\0\0\0\x0e\x0a\x0cshop.Product");
        }
    });
}

#[test]
fn a_sick_endpoint_gets_no_calls_until_it_is_well_again() {
    run(async |fixture| {
        let status = Arc::new(AtomicU16::new(200));
        let (address, _) = backend(status.clone()).await;
        let endpoint = Fixture::endpoint(address);
        let checks = Checks::default();
        fixture.reconcile(&checks, Some(setup(by_http())), std::slice::from_ref(&endpoint));
        assert!(!is_unhealthy(&endpoint), "well until it is found not to be");
        assert_eq!(fixture.series.health().well(), Some(1));
        status.store(500, Relaxed);
        until(|| is_unhealthy(&endpoint)).await;
        assert_eq!(fixture.series.health().well(), Some(0));
        assert_eq!(checks.last(&endpoint).as_deref(), Some("it answered 500"));
        status.store(200, Relaxed);
        until(|| !is_unhealthy(&endpoint)).await;
        assert_eq!(fixture.series.health().well(), Some(1));
        assert_eq!(checks.last(&endpoint).as_deref(), Some("ok"));
    });
}

#[test]
fn another_setting_does_not_make_a_sick_endpoint_well_and_no_setting_does() {
    run(async |fixture| {
        let endpoint = Fixture::endpoint(nobody().await);
        let endpoints = std::slice::from_ref(&endpoint);
        let checks = Checks::default();
        fixture.reconcile(&checks, Some(setup(by_http())), endpoints);
        until(|| is_unhealthy(&endpoint)).await;
        let slower = HealthCheck { interval: Duration::from_secs(60), ..by_http() };
        fixture.reconcile(&checks, Some(setup(slower)), endpoints);
        assert!(is_unhealthy(&endpoint));
        fixture.reconcile(&checks, None, endpoints);
        assert!(!is_unhealthy(&endpoint) && checks.is_empty());
        assert_eq!(fixture.series.health().well(), None);
    });
}

#[test]
fn one_worker_asks_and_another_takes_over_when_it_stops() {
    run(async |fixture| {
        let status = Arc::new(AtomicU16::new(500));
        let (address, _) = backend(status.clone()).await;
        let endpoint = Fixture::endpoint(address);
        let endpoints = std::slice::from_ref(&endpoint);
        let (first, second) = (Checks::default(), Checks::default());
        fixture.reconcile(&first, Some(setup(by_http())), endpoints);
        fixture.reconcile(&second, Some(setup(by_http())), endpoints);
        assert!(second.is_empty());
        fixture.reconcile(&first, Some(setup(by_http())), &[]);
        assert!(first.is_empty(), "the endpoint is gone for the first worker");
        fixture.reconcile(&second, Some(setup(by_http())), endpoints);
        assert!(!second.is_empty());
        until(|| is_unhealthy(&endpoint)).await;
        drop(second);
        assert!(!is_unhealthy(&endpoint), "nobody is left who could say when it is well");
    });
}

#[test]
fn another_port_is_asked_where_the_workload_serves_it() {
    let at = |port| SocketAddr::from(([10, 0, 0, 1], port));
    let other = Setup { port: 9090, elsewhere: Some(Arc::new([place(at(7001))])), ..setup(by_http()) };
    assert_eq!(other.place(&place(at(7000))).address, at(7001));
    let stranger = Place { workload: "product-2".into(), ..place(at(7000)) };
    assert_eq!(other.place(&stranger).address, at(9090));
    let sidecar = Place {
        identity: "spiffe://weft.local/ns/shop/sa/product".parse().ok(),
        workload: "product-3".into(),
        ..place(at(15006))
    };
    assert!(sidecar.identity.is_some());
    assert_eq!(other.place(&sidecar).address, at(15006), "a sidecar is told by name which port is meant");
    assert_eq!(setup(by_http()).place(&place(at(7000))).address, at(7000));
}

proptest! {
    #[test]
    fn a_verdict_changes_only_after_its_threshold_of_answers_alike(
        answers in proptest::collection::vec(any::<bool>(), 0..200), up in 1_u32..6, down in 1_u32..6,
    ) {
        let check = HealthCheck { healthy_threshold: up, unhealthy_threshold: down, ..by_http() };
        let mut streak = Streak::new(true);
        let mut well = true;
        for (at, good) in answers.iter().enumerate() {
            let alike = answers[..=at].iter().rev().take_while(|answer| *answer == good).count() as u32;
            let needed = if *good { up } else { down };
            match streak.observe(*good, &check) {
                Some(verdict) => {
                    prop_assert_eq!(verdict, !well);
                    prop_assert_eq!(verdict, *good);
                    prop_assert!(alike >= needed);
                    well = verdict;
                }
                None => prop_assert!(*good == well || alike < needed),
            }
        }
    }
}
