//! Rules of the access log: what is logged, that lines are always one line of JSON, and that nobody waits for them.

use super::{line::push_time, *};
use crate::notable::Notable;
use crate::{
    error::Kind,
    telemetry::{
        Metrics,
        metrics::Direction,
        trace::{RequestId, Trace},
    },
};
use http::HeaderMap;
use proptest::prelude::*;
use std::{
    io::{self, Write},
    sync::{Arc, Mutex, mpsc},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

fn with_entry<T>(detail: &Detail, use_entry: impl FnOnce(Entry<'_>) -> T) -> T {
    let mut headers = HeaderMap::new();
    headers.insert(
        "traceparent",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".parse().expect("valid"),
    );
    headers.insert("x-request-id", "r-1".parse().expect("valid"));
    let trace = Trace::from_headers(&headers, Notable::of(&headers), 0.0);
    let request_id = RequestId::read(&headers).expect("is one");
    use_entry(Entry {
        direction: Direction::Outbound,
        status: 503,
        grpc_status: Some(14),
        error: Some(Kind::Connect),
        bytes_out: 34,
        duration: Duration::from_micros(12_345),
        upstream: Duration::from_micros(12_000),
        attempts: 2,
        trace: &trace,
        request_id: &request_id,
        detail,
    })
}

fn detail() -> Detail {
    Detail {
        method: "GET".into(),
        path: "/cart?card=4111".into(),
        host: "cart:8080".into(),
        service: "shop/cart".into(),
        route: "shop/cart#0".into(),
        endpoint: Some(([10, 0, 0, 7], 15006).into()),
        peer: Some("spiffe://weft.local/ns/shop/sa/cart".parse().expect("valid")),
        cache: "stale",
        downstream: "http1.1",
        wire: "http1over2",
        bytes_in: 12,
    }
}

fn line_of(detail: &Detail) -> String {
    with_entry(detail, |entry| entry.line(UNIX_EPOCH + Duration::from_millis(1_700_000_000_123)))
}

/// A sink that holds every write until it is let go on.
struct Gate {
    open: mpsc::Receiver<()>,
    written: Arc<Mutex<Vec<u8>>>,
}

impl Write for Gate {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.open.recv().map_err(|_| io::ErrorKind::BrokenPipe)?;
        self.written.lock().expect("not poisoned").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn dropped(metrics: &Metrics) -> u64 {
    let text = String::from_utf8(metrics.render()).expect("UTF-8");
    let count =
        text.lines().find_map(|line| line.strip_prefix("weft_access_log_dropped_total ")?.parse().ok());
    count.expect("the counter is always there")
}

#[test]
fn the_log_is_off_by_default() {
    let rule = snapshot::AccessLog::default();
    assert!(!is_on(&rule));
    assert!(!wants(&rule, 599, 0.0));
}

#[test]
fn a_share_or_a_status_is_enough() {
    let rule = snapshot::AccessLog { sample: 0.25, min_status: Some(500) };
    assert!(is_on(&rule));
    assert!(wants(&rule, 200, 0.0) && wants(&rule, 200, 0.2499));
    assert!(!wants(&rule, 200, 0.25) && !wants(&rule, 499, 0.99));
    assert!(wants(&rule, 500, 0.99));
    let all = snapshot::AccessLog { sample: 1.0, min_status: None };
    assert!(wants(&all, 200, 0.999_999));
}

#[test]
fn a_line_says_all_there_is_to_say() {
    let line = line_of(&detail());
    let json: serde_json::Value = serde_json::from_str(&line).expect("JSON");
    let span = json["span_id"].as_str().expect("a span").to_owned();
    assert_eq!(span.len(), 16);
    assert_eq!(
        json,
        serde_json::json!({
            "time": "2023-11-14T22:13:20.123Z",
            "direction": "outbound",
            "method": "GET",
            "path": "/cart",
            "host": "cart:8080",
            "service": "shop/cart",
            "route": "shop/cart#0",
            "endpoint": "10.0.0.7:15006",
            "status": 503,
            "grpc_status": 14,
            "error": "connect",
            "flag": "CF",
            "bytes_in": 12,
            "bytes_out": 34,
            "duration_ms": 12.345,
            "upstream_ms": 12.0,
            "attempts": 2,
            "cache": "stale",
            "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736",
            "span_id": span,
            "request_id": "r-1",
            "peer": "spiffe://weft.local/ns/shop/sa/cart",
            "downstream_protocol": "http1.1",
            "mesh_protocol": "http1over2",
        })
    );
}

#[test]
fn a_query_is_never_logged() {
    assert!(!line_of(&detail()).contains("4111"));
    assert!(!line_of(&Detail { path: "/a#4111".into(), ..detail() }).contains("4111"));
}

#[test]
fn what_is_not_there_is_left_out() {
    let json: serde_json::Value = serde_json::from_str(&line_of(&Detail::default())).expect("JSON");
    let absent = ["method", "path", "host", "service", "route", "endpoint", "cache", "peer", "mesh_protocol"];
    for absent in absent {
        assert!(json.get(absent).is_none(), "{absent}");
    }
}

#[test]
fn long_texts_are_cut() {
    let line = line_of(&Detail { path: "/\u{1f600}".repeat(100_000), ..detail() });
    assert!(line.len() < 16 * 1024, "{}", line.len());
    let json: serde_json::Value = serde_json::from_str(&line).expect("JSON");
    assert!(json["path"].as_str().is_some_and(|path| path.ends_with("...") && path.chars().count() == 1027));
}

#[test]
fn times_are_written_as_rfc_3339() {
    for (seconds, expected) in [
        (0, "1970-01-01T00:00:00.000Z"),
        (951_782_399, "2000-02-28T23:59:59.000Z"),
        (951_782_400, "2000-02-29T00:00:00.000Z"),
        (951_868_800, "2000-03-01T00:00:00.000Z"),
        (1_735_689_599, "2024-12-31T23:59:59.000Z"),
        (4_107_542_400, "2100-03-01T00:00:00.000Z"),
    ] {
        let mut text = String::new();
        push_time(&mut text, UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(text, expected);
    }
    let mut text = String::new();
    push_time(&mut text, SystemTime::UNIX_EPOCH - Duration::from_secs(1));
    assert_eq!(text, "1970-01-01T00:00:00.000Z", "a clock before 1970 is no reason to panic");
}

#[test]
fn lines_arrive_in_order_and_flush_waits_for_them() {
    let (open, gate) = mpsc::channel();
    let written = Arc::new(Mutex::new(Vec::new()));
    let metrics = Metrics::new(1);
    let out = Gate { open: gate, written: Arc::clone(&written) };
    let log = AccessLog::to(Box::new(out), Arc::clone(&metrics), 16);
    assert!(log.flush(Duration::ZERO), "nothing was logged yet");
    for _ in 0..64 {
        open.send(()).expect("the gate is there");
    }
    for n in 0..10 {
        with_entry(&Detail { path: format!("/{n}"), ..detail() }, |entry| log.write(entry));
    }
    assert!(log.flush(Duration::from_secs(10)));
    let written = String::from_utf8(written.lock().expect("not poisoned").clone()).expect("UTF-8");
    let paths: Vec<String> = written
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).expect("JSON")["path"].to_string())
        .collect();
    assert_eq!(paths, (0..10).map(|n| format!("\"/{n}\"")).collect::<Vec<_>>());
    assert_eq!(dropped(&metrics), 0);
}

#[test]
fn a_slow_reader_costs_lines_and_nobody_waits() {
    let (open, gate) = mpsc::channel();
    let written = Arc::new(Mutex::new(Vec::new()));
    let metrics = Metrics::new(1);
    let out = Gate { open: gate, written: Arc::clone(&written) };
    let log = AccessLog::to(Box::new(out), Arc::clone(&metrics), 4);
    for _ in 0..100 {
        with_entry(&detail(), |entry| log.write(entry));
    }
    assert!(!log.flush(Duration::from_millis(20)), "the reader is stuck");
    let lost = dropped(&metrics);
    assert!(lost >= 80, "most of 100 lines find a queue of 4 full: {lost}");
    for _ in 0..64 {
        open.send(()).expect("the gate is there");
    }
    assert!(log.flush(Duration::from_secs(10)));
    let lines = written.lock().expect("not poisoned").iter().filter(|b| **b == b'\n').count() as u64;
    assert_eq!(lines + lost, 100, "every line is either written or counted");
}

#[test]
fn a_reader_that_is_gone_is_counted_and_does_no_harm() {
    let (open, gate) = mpsc::channel();
    drop(open);
    let metrics = Metrics::new(1);
    let out = Gate { open: gate, written: Arc::default() };
    let log = AccessLog::to(Box::new(out), Arc::clone(&metrics), 16);
    for _ in 0..3 {
        with_entry(&detail(), |entry| log.write(entry));
    }
    assert!(log.flush(Duration::from_secs(10)));
    assert_eq!(dropped(&metrics), 3);
}

proptest! {
    #[test]
    fn whatever_comes_is_one_line_of_plain_ascii_json(
        method in any::<String>(), path in any::<String>(), host in any::<String>(),
    ) {
        let line = line_of(&Detail { method: method.clone(), path: path.clone(), host: host.clone(), ..detail() });
        prop_assert_eq!(line.matches('\n').count(), 1);
        prop_assert!(line.trim_end_matches('\n').bytes().all(|b| (b' '..=b'~').contains(&b)), "{line:?}");
        let json: serde_json::Value = serde_json::from_str(&line).expect("JSON");
        prop_assert_eq!(json["host"].as_str().unwrap_or_default(), host.as_str());
        prop_assert_eq!(json["method"].as_str().unwrap_or_default(), method.as_str());
    }
}
