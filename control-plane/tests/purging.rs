//! Purges over the stream: asked of every sidecar, in rounds, and what is said of those that do not answer.

mod support;

use serde_json::{Value, json};
use std::time::Duration;
use support::{CART, Fixture, PATIENCE, Sidecar, get, hello, start};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinHandle,
    time::timeout,
};
use weft_config::wire::{self, purge::What, to_control_plane, to_sidecar};
use weft_control_plane::token::TokenKey;

async fn join(f: &Fixture, workload: &str, last: (&str, u64)) -> Sidecar {
    let hello = wire::Hello {
        join_token: f.token("shop", workload),
        purge_log: last.0.to_owned(),
        purge_number: last.1,
        ..hello("shop", workload, workload, "")
    };
    f.open(hello, None).await.expect("let in")
}

/// The next purge.
async fn told(sidecar: &mut Sidecar) -> wire::Purge {
    match sidecar.next_of_all().await.expect("a message") {
        to_sidecar::Message::Purge(purge) => purge,
        other => panic!("a purge is due, not {other:?}"),
    }
}

async fn answer(sidecar: &Sidecar, purge: &wire::Purge, answers: u64, failed: &str) {
    let purged = wire::Purged {
        log: purge.log.clone(),
        number: purge.number,
        round: purge.round,
        answers,
        failed: failed.to_owned(),
    };
    sidecar.send(to_control_plane::Message::Purged(purged)).await;
}

/// Asks for a purge; the answer is still to come.
fn ask(f: &Fixture, what: Value) -> JoinHandle<(u16, Value)> {
    let key = TokenKey::open_or_create(&f.settings.state_dir).expect("key");
    let token = key.issue_operator(Duration::from_secs(60)).expect("issued");
    let (address, body) = (f.running.addresses().dashboard, what.to_string());
    tokio::spawn(async move {
        let mut stream = TcpStream::connect(address).await.expect("connects");
        let request = format!(
            "POST /api/cache/purge HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {token}\r\n\
             content-length: {}\r\nconnection: close\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).await.expect("written");
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer).await;
        let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
        let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        (status, serde_json::from_str(body).unwrap_or(Value::String(body.to_owned())))
    })
}

async fn done(asked: JoinHandle<(u16, Value)>) -> (u16, Value) {
    timeout(PATIENCE, asked).await.expect("an answer in time").expect("asked")
}

#[tokio::test]
async fn a_new_sidecar_is_told_where_the_list_is_and_each_round_waits_for_all() {
    let f = start(&[("cart.yaml", CART)]).await;
    let (mut cart, mut web) = (join(&f, "cart", ("", 0)).await, join(&f, "web", ("", 0)).await);
    for sidecar in [&mut cart, &mut web] {
        let first = told(sidecar).await;
        assert_eq!((first.number, first.what), (0, Some(What::Nothing(true))));
        assert!(!first.log.is_empty());
    }
    let asked = ask(&f, json!({ "url": "http://cart:8080/a", "soft": true }));
    for round in 0..4 {
        let purge = told(&mut cart).await;
        assert_eq!((purge.number, purge.round, purge.soft), (1, round, true));
        assert_eq!(purge.what, Some(What::Url("http://cart.shop:8080/a".to_owned())));
        answer(&cart, &purge, 3, "").await;
        let purge = told(&mut web).await;
        assert_eq!(purge.round, round);
        answer(&web, &purge, 4, "").await;
    }
    let (status, report) = done(asked).await;
    assert_eq!((status, &report["complete"], &report["answers"]), (200, &json!(true), &json!(7)), "{report}");
    let (_, metrics) = get(f.running.addresses().metrics, "/metrics", "").await;
    assert!(metrics.contains("weft_control_plane_cache_purges_sent_total 8"), "{metrics}");
}

#[tokio::test]
async fn who_does_not_answer_or_fails_is_named_and_the_answer_is_no_success() {
    let f = start(&[("cart.yaml", CART)]).await;
    let (mut cart, mut old) = (join(&f, "cart", ("", 0)).await, join(&f, "old", ("", 0)).await);
    let _deaf = join(&f, "deaf", ("", 0)).await;
    let gone = join(&f, "gone", ("", 0)).await;
    let asked = ask(&f, json!({ "tag": "t", "wait": "3s" }));
    told(&mut cart).await;
    let purge = told(&mut cart).await;
    answer(&cart, &purge, 2, "").await;
    told(&mut old).await;
    let purge = told(&mut old).await;
    answer(&old, &purge, 0, "what is a tag?").await;
    drop(gone);
    let (status, report) = done(asked).await;
    assert_eq!(
        (status, &report["complete"], &report["answers"]),
        (504, &json!(false), &json!(2)),
        "{report}"
    );
    let states: Vec<_> = report["sidecars"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|sidecar| (sidecar["workload"].as_str().unwrap_or(""), sidecar["state"].as_str().unwrap_or("")))
        .collect();
    assert_eq!(states, [("cart", "late"), ("deaf", "late"), ("gone", "lost"), ("old", "failed")]);
    assert_eq!(report["sidecars"][3]["why"], "what is a tag?");
    let problem = report["problem"].as_str().unwrap_or("");
    assert!(problem.contains("1 of 4 failed") && problem.contains("did not answer within 3s"), "{problem}");
}

#[tokio::test]
async fn with_nobody_connected_nobody_has_purged() {
    let f = start(&[("cart.yaml", CART)]).await;
    let (status, report) = done(ask(&f, json!({ "all": true }))).await;
    assert_eq!((status, &report["asked"]), (503, &json!(0)), "{report}");
    // Whoever comes is told.
    let mut cart = join(&f, "cart", ("", 0)).await;
    let purge = told(&mut cart).await;
    assert_eq!((purge.number, purge.what), (1, Some(What::All(true))));
}

#[tokio::test]
async fn a_control_plane_that_stops_says_how_far_it_came_and_goes_on_after_its_restart() {
    let f = start(&[("cart.yaml", CART)]).await;
    let mut cart = join(&f, "cart", ("", 0)).await;
    let asked = ask(&f, json!({ "prefix": "http://cart:8080/a", "wait": "60s" }));
    let start = told(&mut cart).await;
    assert_eq!(told(&mut cart).await.number, 1);
    let f = f.restart().await;
    let (status, report) = done(asked).await;
    assert_eq!((status, &report["complete"]), (504, &json!(false)), "{report}");
    assert!(report["problem"].as_str().unwrap_or("").contains("stopping"), "{report}");
    let mut cart = join(&f, "cart", (&start.log, start.number)).await;
    let purge = told(&mut cart).await;
    let what = What::Prefix("http://cart.shop:8080/a".to_owned());
    assert_eq!((purge.number, purge.what, purge.log), (1, Some(what), start.log.clone()));
    // One that has done it already, and one that comes from elsewhere.
    let mut web = join(&f, "web", (&start.log, 1)).await;
    assert_eq!(told(&mut web).await.what, Some(What::Nothing(true)));
    let mut stranger = join(&f, "stranger", ("elsewhere", 1)).await;
    assert_eq!(told(&mut stranger).await.what, Some(What::All(true)));
}

#[tokio::test]
async fn reports_are_asked_for_and_added_up_and_who_is_silent_is_named() {
    let f = start(&[("cart.yaml", CART)]).await;
    let (mut cart, _mute) = (join(&f, "cart", ("", 0)).await, join(&f, "mute", ("", 0)).await);
    told(&mut cart).await;
    let address = f.running.addresses().dashboard;
    let asked = tokio::spawn(async move { get(address, "/api/cache/stats", "").await });
    let number = match cart.next().await.expect("a message") {
        to_sidecar::Message::CacheReportRequest(request) => request.number,
        other => panic!("a question is due, not {other:?}"),
    };
    let store = wire::CacheStore { policy: "shop/pages".into(), entries: 5, ..wire::CacheStore::default() };
    let report = wire::CacheReport { number, stores: vec![store], uses: vec![] };
    cart.send(to_control_plane::Message::CacheReport(report)).await;
    let (status, answer) = timeout(PATIENCE, asked).await.expect("in time").expect("asked");
    assert_eq!(status, 200);
    assert!(answer.contains("\"silent\":[\"shop/mute\"]") && answer.contains("\"entries\":5"), "{answer}");
}
