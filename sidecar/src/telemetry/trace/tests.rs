//! Rules of trace context, as the W3C and B3 specifications give them.

use super::*;
use fastrand::Rng;
use proptest::prelude::*;

const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
const TRACE_ID: u128 = 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736;
const SPAN_ID: u64 = 0x00f0_67aa_0ba9_02b7;

fn headers(fields: &[(&str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in fields {
        headers.append(
            HeaderName::from_bytes(name.as_bytes()).expect("a field name"),
            HeaderValue::from_bytes(value.as_bytes()).expect("a field value"),
        );
    }
    headers
}

fn read(fields: &[(&str, &str)]) -> Trace {
    Trace::with_rng(&headers(fields), 0.0, &mut Rng::with_seed(7))
}

/// What the next hop gets.
fn forwarded(fields: &[(&str, &str)]) -> (Trace, HeaderMap) {
    let mut headers = headers(fields);
    let trace = Trace::with_rng(&headers, 0.0, &mut Rng::with_seed(7));
    trace.write(&mut headers);
    (trace, headers)
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).map(|value| value.to_str().expect("text"))
}

#[test]
fn a_trace_is_continued_with_a_fresh_span() {
    let (trace, next) = forwarded(&[("traceparent", PARENT)]);
    assert_eq!((trace.trace_id, trace.parent_span, trace.sampled), (TRACE_ID, SPAN_ID, true));
    assert_ne!(trace.span_id, SPAN_ID);
    let expected = format!("00-{TRACE_ID:032x}-{:016x}-01", trace.span_id);
    assert_eq!(text(&next, "traceparent"), Some(expected.as_str()));
    assert_eq!(next.len(), 1, "only traceparent is written: {next:?}");
    assert_eq!(trace.id().to_string(), "4bf92f3577b34da6a3ce929d0e0e4736");
}

#[test]
fn a_callers_decision_not_to_sample_stands() {
    let parent = PARENT.replace("-01", "-00");
    let trace = Trace::with_rng(&headers(&[("traceparent", &parent)]), 1.0, &mut Rng::with_seed(1));
    assert!(!trace.sampled);
}

#[test]
fn the_random_flag_is_passed_on_and_unknown_flags_are_not() {
    let (_, next) = forwarded(&[("traceparent", &PARENT.replace("-01", "-ff"))]);
    assert!(text(&next, "traceparent").is_some_and(|value| value.ends_with("-03")), "{next:?}");
}

#[test]
fn malformed_parents_begin_a_new_trace() {
    let bad = [
        String::new(),
        PARENT[..54].into(),
        format!("{PARENT}0"),
        format!("{PARENT}-more"),
        PARENT.replace("00-4b", "ff-4b"),
        PARENT.to_uppercase(),
        PARENT.replace("4bf92f", "4BF92F"),
        PARENT.replace("4bf92f", "4bf92g"),
        format!("00-{:032x}-{SPAN_ID:016x}-01", 0),
        format!("00-{TRACE_ID:032x}-{:016x}-01", 0),
        PARENT.replace('-', "_"),
        format!(" {PARENT}"),
        format!("cc-{}x", &PARENT[3..]),
        PARENT.replace("00-4b", "0-04b"),
    ];
    for parent in &bad {
        let (trace, next) = forwarded(&[("traceparent", parent), ("tracestate", "a=1")]);
        assert_ne!(trace.trace_id, TRACE_ID, "{parent}");
        assert_eq!(trace.parent_span, 0, "{parent}");
        assert_eq!(text(&next, "tracestate"), None, "a tracestate without its parent goes: {parent}");
    }
    let twice = read(&[("traceparent", PARENT), ("traceparent", PARENT)]);
    assert_ne!(twice.trace_id, TRACE_ID, "two parents are none");
}

#[test]
fn future_versions_are_read_as_far_as_they_are_known() {
    for parent in [
        PARENT.replace("00-4b", "cc-4b"),
        format!("{}-what-the-future-will-be-like", PARENT.replace("00-4b", "01-4b")),
        format!("{}-", PARENT.replace("00-4b", "fe-4b")),
    ] {
        let (trace, next) = forwarded(&[("traceparent", &parent)]);
        assert_eq!((trace.trace_id, trace.parent_span), (TRACE_ID, SPAN_ID), "{parent}");
        assert!(
            text(&next, "traceparent").is_some_and(|value| value.starts_with("00-") && value.len() == 55)
        );
    }
}

#[test]
fn a_well_formed_tracestate_is_passed_on_untouched() {
    for state in [
        "",
        "a=1",
        "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE",
        "a=1 , \t b=2,,c=3",
        "1a-2f@foo=bar1",
        "k*/_-=v",
    ] {
        let (_, next) = forwarded(&[("traceparent", PARENT), ("tracestate", state)]);
        assert_eq!(text(&next, "tracestate"), Some(state));
    }
    let (_, next) = forwarded(&[("traceparent", PARENT), ("tracestate", "a=1"), ("tracestate", "b=2")]);
    assert_eq!(next.get_all("tracestate").iter().count(), 2);
}

#[test]
fn a_malformed_tracestate_is_dropped_alone() {
    let members: Vec<String> = (0..33).map(|n| format!("k{n}=1")).collect();
    let bad = [
        "foo".into(),
        "foo=".into(),
        "=1".into(),
        "foo=1,foo=2".into(),
        "Foo=1".into(),
        "foo =1".into(),
        "foo=bar=baz".into(),
        "@foo=1".into(),
        "foo@=1".into(),
        "foo@1a=1".into(),
        "foo@bar@baz=1".into(),
        "foo=\u{e9}".into(),
        format!("{}=1", "k".repeat(257)),
        format!("k={}", "v".repeat(257)),
        format!("a={},b={}", "v".repeat(256), "v".repeat(256)),
        members.join(","),
    ];
    for state in &bad {
        let (trace, next) = forwarded(&[("traceparent", PARENT), ("tracestate", state)]);
        assert_eq!(trace.trace_id, TRACE_ID, "the trace goes on: {state}");
        assert_eq!(text(&next, "tracestate"), None, "{state}");
    }
    let most = members[..32].join(",");
    let (_, next) = forwarded(&[("traceparent", PARENT), ("tracestate", &most)]);
    assert_eq!(text(&next, "tracestate"), Some(most.as_str()), "32 members are allowed");
}

#[test]
fn a_request_without_context_begins_a_trace() {
    let (trace, next) = forwarded(&[("accept", "*/*")]);
    assert_ne!(trace.trace_id, 0);
    assert_eq!((trace.parent_span, trace.sampled), (0, false));
    assert!(text(&next, "traceparent").is_some_and(|value| value.ends_with("-02")), "random, not sampled");
    assert_eq!(text(&next, "b3"), None, "B3 is not spoken to who did not speak it");
}

#[test]
fn sampling_follows_the_share_and_the_id() {
    let mut rng = Rng::with_seed(42);
    let ids: Vec<u128> = (0..20_000).map(|_| rng.u128(1..)).collect();
    let share = |p: f64| ids.iter().filter(|id| is_sampled(**id, p)).count() as f64 / ids.len() as f64;
    assert_eq!(share(0.0), 0.0);
    assert_eq!(share(1.0), 1.0);
    assert!((share(0.1) - 0.1).abs() < 0.01, "{}", share(0.1));
    assert!(ids.iter().all(|id| !is_sampled(*id, 0.1) || is_sampled(*id, 0.2)), "a higher share only adds");
    for nonsense in [f64::NAN, -1.0, f64::NEG_INFINITY] {
        assert_eq!(share(nonsense), 0.0, "{nonsense}");
    }
    assert_eq!(share(f64::INFINITY), 1.0);
}

#[test]
fn b3_alone_is_continued_and_written_back_beside_traceparent() {
    let single = format!("{TRACE_ID:032x}-{SPAN_ID:016x}-1-05e3ac9a4f6e3b90");
    let (trace, next) = forwarded(&[("b3", &single)]);
    assert_eq!((trace.trace_id, trace.parent_span, trace.sampled), (TRACE_ID, SPAN_ID, true));
    let expected = format!("{TRACE_ID:032x}-{:016x}-1-{SPAN_ID:016x}", trace.span_id);
    assert_eq!(text(&next, "b3"), Some(expected.as_str()));
    let expected = format!("00-{TRACE_ID:032x}-{:016x}-01", trace.span_id);
    assert_eq!(text(&next, "traceparent"), Some(expected.as_str()));
    assert_eq!(text(&next, "x-b3-traceid"), None);
}

#[test]
fn b3_in_many_headers_is_continued_in_many_headers() {
    let (trace, next) = forwarded(&[
        ("x-b3-traceid", "a3ce929d0e0e4736"),
        ("x-b3-spanid", "00f067aa0ba902b7"),
        ("x-b3-parentspanid", "05e3ac9a4f6e3b90"),
        ("x-b3-sampled", "0"),
    ]);
    assert_eq!((trace.trace_id, trace.sampled), (0xa3ce_929d_0e0e_4736, false));
    assert_eq!(text(&next, "x-b3-traceid"), Some("a3ce929d0e0e4736"), "a short ID stays short");
    assert_eq!(text(&next, "x-b3-spanid"), Some(format!("{:016x}", trace.span_id).as_str()));
    assert_eq!(text(&next, "x-b3-parentspanid"), Some("00f067aa0ba902b7"));
    assert_eq!(text(&next, "x-b3-sampled"), Some("0"));
    assert!(
        text(&next, "traceparent").is_some_and(|v| v.starts_with("00-0000000000000000a3ce929d0e0e4736-"))
    );
}

#[test]
fn b3_debug_is_sampled_and_stays_debug() {
    let (trace, next) = forwarded(&[("b3", &format!("{TRACE_ID:032x}-{SPAN_ID:016x}-d"))]);
    assert!(trace.sampled);
    assert!(text(&next, "b3").is_some_and(|value| value.contains("-d-")), "{next:?}");
    let (trace, next) = forwarded(&[
        ("x-b3-traceid", &format!("{TRACE_ID:032x}")),
        ("x-b3-spanid", &format!("{SPAN_ID:016x}")),
        ("x-b3-flags", "1"),
    ]);
    assert!(trace.sampled);
    assert_eq!((text(&next, "x-b3-flags"), text(&next, "x-b3-sampled")), (Some("1"), None));
}

#[test]
fn a_b3_decision_alone_is_obeyed() {
    for (fields, sampled) in [
        (("b3", "0"), false),
        (("b3", "1"), true),
        (("b3", "d"), true),
        (("x-b3-sampled", "1"), true),
        (("x-b3-sampled", "true"), true),
        (("x-b3-sampled", "0"), false),
    ] {
        let trace =
            Trace::with_rng(&headers(&[fields]), if sampled { 0.0 } else { 1.0 }, &mut Rng::with_seed(3));
        assert_eq!(trace.sampled, sampled, "{fields:?}");
        assert_ne!(trace.trace_id, 0);
    }
}

#[test]
fn malformed_b3_begins_a_new_trace_and_is_overwritten() {
    for bad in [
        "",
        "-",
        "2",
        "4bf92f3577b34da6a3ce929d0e0e4736",
        "4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-x",
        "4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-1-1",
        "4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-1-05e3ac9a4f6e3b90-1",
        "4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-1",
        "00000000000000000000000000000000-00f067aa0ba902b7-1",
        "4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-1",
        "4bf92f3577b34da6a3ce929d0e0e473-00f067aa0ba902b7-1",
    ] {
        let (trace, next) = forwarded(&[("b3", bad)]);
        assert_ne!(trace.trace_id, TRACE_ID, "{bad}");
        assert!(
            text(&next, "b3").is_some_and(|value| value.starts_with(&format!("{:032x}", trace.trace_id)))
        );
    }
    let half = read(&[("x-b3-traceid", "4bf92f3577b34da6a3ce929d0e0e4736")]);
    assert_ne!(half.trace_id, TRACE_ID, "a trace ID without its span joins nothing");
}

#[test]
fn traceparent_goes_before_b3_and_both_agree_afterwards() {
    let (trace, next) =
        forwarded(&[("traceparent", PARENT), ("b3", "11111111111111112222222222222222-3333333333333333-0")]);
    assert_eq!((trace.trace_id, trace.sampled), (TRACE_ID, true));
    let expected = format!("{TRACE_ID:032x}-{:016x}-1-{SPAN_ID:016x}", trace.span_id);
    assert_eq!(text(&next, "b3"), Some(expected.as_str()));
}

/// What the next hop gets.
fn ensure(headers: &mut HeaderMap) -> RequestId {
    let id = RequestId::read(headers).unwrap_or_else(RequestId::random);
    id.write(headers);
    id
}

#[test]
fn a_usable_request_id_is_kept() {
    for id in ["1", "f3b1-trace/42:x", &"x".repeat(128)] {
        let mut headers = headers(&[("x-request-id", id)]);
        assert_eq!(ensure(&mut headers).as_str(), id);
        assert_eq!(text(&headers, "x-request-id"), Some(id));
    }
}

#[test]
fn nonsense_request_ids_are_replaced_by_a_random_uuid() {
    let long = "x".repeat(129);
    for fields in [
        vec![],
        vec![("x-request-id", "")],
        vec![("x-request-id", "a b")],
        vec![("x-request-id", "\u{1f600}")],
        vec![("x-request-id", long.as_str())],
        vec![("x-request-id", "a"), ("x-request-id", "b")],
    ] {
        let mut headers = headers(&fields);
        let id = ensure(&mut headers);
        assert_eq!(headers.get_all("x-request-id").iter().count(), 1);
        assert_eq!(text(&headers, "x-request-id"), Some(id.as_str()));
        let groups: Vec<usize> = id.as_str().split('-').map(str::len).collect();
        assert_eq!(groups, [8, 4, 4, 4, 12], "{}", id.as_str());
        assert_eq!(&id.as_str()[14..15], "4", "version 4");
        assert!(matches!(&id.as_str()[19..20], "8" | "9" | "a" | "b"), "the RFC's variant");
    }
    assert_ne!(ensure(&mut HeaderMap::new()), ensure(&mut HeaderMap::new()));
}

proptest! {
    #[test]
    fn what_one_hop_writes_the_next_reads(seed: u64, sampling in 0.0..=1.0, single: bool, multi: bool) {
        let mut headers = HeaderMap::new();
        if single {
            headers.insert("b3", HeaderValue::from_static("x"));
        }
        if multi {
            headers.insert("x-b3-traceid", HeaderValue::from_static("x"));
        }
        let mut rng = Rng::with_seed(seed);
        let first = Trace::with_rng(&headers, sampling, &mut rng);
        first.write(&mut headers);
        prop_assert_eq!(headers.contains_key("b3"), single);
        prop_assert_eq!(headers.contains_key("x-b3-spanid"), multi);
        let second = Trace::with_rng(&headers, 0.5, &mut rng);
        prop_assert_eq!(second.trace_id, first.trace_id);
        prop_assert_eq!(second.parent_span, first.span_id);
        prop_assert_eq!(second.sampled, first.sampled);
        prop_assert_ne!(second.span_id, first.span_id);
        if single || multi {
            headers.remove("traceparent");
            let by_b3 = Trace::with_rng(&headers, 0.5, &mut rng);
            prop_assert_eq!((by_b3.trace_id, by_b3.parent_span), (first.trace_id, first.span_id));
            prop_assert_eq!(by_b3.sampled, first.sampled);
        }
    }

    #[test]
    fn hostile_headers_never_panic_and_never_give_zero_ids(
        fields in proptest::collection::vec(
            (
                proptest::sample::select(vec![
                    "traceparent", "tracestate", "b3", "x-b3-traceid", "x-b3-spanid", "x-b3-parentspanid",
                    "x-b3-sampled", "x-b3-flags", "x-request-id",
                ]),
                prop_oneof![
                    proptest::collection::vec(any::<u8>(), 0..80),
                    "[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}(-.{0,4})?".prop_map(String::into_bytes),
                    "[0-9a-fA-F-]{0,70}".prop_map(String::into_bytes),
                    "([a-z@=, ]{0,6}=[a-z]{0,3},?){0,40}".prop_map(String::into_bytes),
                ],
            ),
            0..8,
        ),
        sampling: f64,
    ) {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            if let Ok(value) = HeaderValue::from_bytes(&value) {
                headers.append(name, value);
            }
        }
        let trace = Trace::from_headers(&headers, Notable::of(&headers), sampling);
        prop_assert!(trace.trace_id != 0 && trace.span_id != 0);
        trace.write(&mut headers);
        prop_assert_eq!(headers.get_all("traceparent").iter().count(), 1);
        let next = Trace::from_headers(&headers, Notable::of(&headers), sampling);
        prop_assert_eq!((next.trace_id, next.parent_span), (trace.trace_id, trace.span_id));
        prop_assert!(!ensure(&mut headers).as_str().is_empty());
    }
}
