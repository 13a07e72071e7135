//! The cache as the admin page shows it: what is kept by policy, how requests were answered by route, what is asked for
//! most. Values that may be credentials are not shown.

use super::{Answered, Stores, upkeep};
use crate::telemetry::metrics::{CacheSeries, CacheSeriesKey, Kept, KeptSource, Metrics};
use serde_json::{Value, json};
use weft_config::snapshot::Snapshot;

/// Characters of one text that are shown.
const LONGEST: usize = 512;
/// Parts of one key that are shown.
const PARTS: usize = 64;
/// What stands where a value is not shown.
const HIDDEN: &str = "(hidden)";

/// Everything, with the `top` keys of each policy that are asked for most.
pub(crate) fn describe(stores: &Stores, metrics: &Metrics, snapshot: &Snapshot, top: usize) -> Value {
    let named = upkeep::policies(snapshot);
    let mut policies: Vec<Value> = Vec::new();
    let kept = stores.kept();
    for kept in kept.iter().filter(|kept| kept.now.is_some()) {
        policies.push(policy(kept, named.contains_key(&kept.policy)));
    }
    for (id, rules) in &named {
        if !kept.iter().any(|kept| kept.policy == *id && kept.now.is_some()) {
            // Nothing was asked for yet.
            policies.push(json!({ "policy": &**id, "in_force": true, "limit_bytes": rules.max_bytes, "entries": 0, "bytes": 0 }));
        }
    }
    let series = metrics.cache_series();
    let mut asked = Vec::new();
    for (policy, store) in stores.all() {
        if top == 0 {
            break;
        }
        asked.extend(store.top(top).into_iter().map(|line| {
            let mut row = key(&line.key);
            row["policy"] = json!(&*policy);
            row["hits"] = json!(line.hits);
            row["bytes"] = json!(line.bytes);
            row["variants"] = json!(line.variants);
            row
        }));
    }
    json!({
        "policies": policies,
        "routes": series.iter().filter_map(|(key, series)| route(key, series)).collect::<Vec<_>>(),
        "reasons": series.iter().flat_map(|(key, series)| reasons(key, series)).collect::<Vec<_>>(),
        "top": asked,
    })
}

fn policy(kept: &Kept, in_force: bool) -> Value {
    let (now, all) = (kept.now.unwrap_or_default(), &kept.totals);
    json!({
        "policy": &*kept.policy,
        "in_force": in_force,
        "entries": now.entries,
        "bytes": now.bytes,
        "limit_bytes": now.limit,
        "filling_bytes": now.filling,
        "hits": all.hits,
        "misses": all.misses,
        "hit_ratio": ratio(all.hits, all.hits + all.misses),
        "stored": all.stored,
        "evicted": all.evicted,
        "expired": all.expired,
        "purged": all.purged,
        "refused": all.refused,
        "coalesced": all.coalesced,
        "handed_over": all.handed_over,
        "released": all.released,
        "outgrown": all.outgrown,
        "broken": all.broken,
        "cut_off": all.cut_off,
    })
}

/// Requests of one route by how they were answered; `None` if there were none.
fn route(key: &CacheSeriesKey, series: &CacheSeries) -> Option<Value> {
    let answered = series.answered();
    if answered.is_empty() {
        return None;
    }
    let sum = |result: &str| -> u64 {
        answered.iter().filter(|(how, _)| how.result() == result).map(|(_, count)| count).sum()
    };
    let mut row = labels(key);
    let [hit, stale, revalidated, miss, bypass] =
        ["hit", "stale", "revalidated", "miss", "bypass"].map(|result| {
            row[result] = json!(sum(result));
            sum(result)
        });
    let from_here = hit + stale + revalidated;
    row["requests"] = json!(from_here + miss + bypass);
    row["hit_ratio"] = ratio(from_here, from_here + miss);
    Some(row)
}

/// Why requests of one route were not answered from what is kept, and why answers were not kept.
fn reasons(key: &CacheSeriesKey, series: &CacheSeries) -> Vec<Value> {
    let row = |what: &str, reason: &str, count: u64| {
        let mut row = labels(key);
        row["what"] = json!(what);
        row["reason"] = json!(reason);
        row["count"] = json!(count);
        row
    };
    let answered = series.answered().into_iter();
    let answered = answered.filter(|(how, _)| matches!(how, Answered::Miss(_) | Answered::Bypass(_)));
    let refused = series.refused().into_iter();
    answered
        .map(|(how, count)| row(how.result(), how.reason(), count))
        .chain(refused.map(|(why, count)| row("not-stored", why.label(), count)))
        .collect()
}

fn labels(key: &CacheSeriesKey) -> Value {
    json!({ "direction": key.direction.name(), "service": &*key.service, "route": &*key.route })
}

/// Four digits are enough; nothing where there is nothing to compare.
fn ratio(part: u64, all: u64) -> Value {
    if all == 0 { Value::Null } else { json!((part as f64 / all as f64 * 1e4).round() / 1e4) }
}

/// A key in parts that people can read.
fn key(text: &[u8]) -> Value {
    let text = String::from_utf8_lossy(text);
    let mut lines = text.split('\n');
    let resource = uri(lines.next().unwrap_or_default());
    let (method, digest) = match lines.next() {
        Some(class) => match class.split_at_checked(1) {
            Some(("G", _)) => ("GET", ""),
            Some(("P", digest)) => ("POST", digest),
            Some(("R", digest)) => ("gRPC", digest),
            _ => ("", ""),
        },
        None => ("", ""),
    };
    let mut parts: Vec<String> = Vec::new();
    let mut scope = String::new();
    // Enough to tell two bodies apart, too little to find out what was in one.
    if let Some(begin) = digest.get(..8) {
        parts.push(format!("body {begin}"));
    }
    let mut header = "";
    for line in lines.take(PARTS) {
        let Some((kind, rest)) = line.split_at_checked(1) else { continue };
        match kind {
            "S" => scope = shortened(rest),
            "H" => {
                header = rest;
                parts.push(format!("header {}", shortened(rest)));
            }
            "=" => {
                if let Some(last) = parts.last_mut() {
                    last.push_str(if last.contains('=') { ", " } else { "=" });
                    last.push_str(&value_of(header, rest));
                }
            }
            "U" => {
                let (name, value) = rest.split_once('=').unwrap_or((rest, ""));
                parts.push(format!("header {name}={}", value_of(name, value)));
            }
            "F" => parts.push(format!("forwarded {}", shortened(rest))),
            "C" => {
                // Whatever a cookie is for, it may be what somebody is known by.
                let name = rest.split_once('=').map(|(name, _)| format!("{name}={HIDDEN}"));
                parts.push(format!("cookie {}", shortened(&name.unwrap_or_else(|| rest.to_owned()))));
            }
            "I" => parts.push(format!("caller {}", shortened(rest))),
            _ => {}
        }
    }
    json!({ "uri": resource, "method": method, "scope": scope, "parts": parts })
}

/// What is shown of a header's value.
fn value_of(name: &str, value: &str) -> String {
    if is_secret(name) { HIDDEN.to_owned() } else { uri(value) }
}

/// A URI without the values of parameters that may be credentials.
fn uri(text: &str) -> String {
    let Some((path, query)) = text.split_once('?') else { return shortened(text) };
    let mut shown = format!("{path}?");
    for parameter in query.split_inclusive(['&', ';']) {
        match parameter.split_once('=') {
            Some((name, value)) if is_secret(name) => {
                shown.push_str(name);
                shown.push('=');
                shown.push_str(HIDDEN);
                shown.extend(value.chars().next_back().filter(|last| matches!(last, '&' | ';')));
            }
            _ => shown.push_str(parameter),
        }
    }
    shortened(&shown)
}

/// Whether what goes by this name may let somebody in.
fn is_secret(name: &str) -> bool {
    const WITHIN: [&str; 15] = [
        "auth",
        "cookie",
        "token",
        "secret",
        "passw",
        "passphrase",
        "session",
        "credential",
        "signature",
        "jwt",
        "api-key",
        "apikey",
        "api_key",
        "access-key",
        "access_key",
    ];
    const WHOLE: [&str; 7] = ["key", "sig", "pwd", "sid", "pin", "otp", "code"];
    let name = name.to_ascii_lowercase();
    WHOLE.contains(&&*name) || WITHIN.iter().any(|part| name.contains(part))
}

fn shortened(text: &str) -> String {
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cache::entry::tests::Sample,
        telemetry::metrics::{Bypass, Direction, Forwarded, Refusal, Shard},
    };
    use rstest::rstest;
    use std::sync::Arc;
    use weft_config::snapshot::{Admission, CacheRules, Workload};

    #[rstest]
    #[case::get("http://shop/a?b=1\nG\nSweb#0", json!({ "uri": "http://shop/a?b=1", "method": "GET", "scope": "web#0", "parts": [] }))]
    #[case::post("http://shop/a\nP0123456789abcdef\nHcontent-type\n=text/plain\nHcontent-encoding\nSin:shop/web:80",
        json!({ "uri": "http://shop/a", "method": "POST", "scope": "in:shop/web:80",
                "parts": ["body 01234567", "header content-type=text/plain", "header content-encoding"] }))]
    #[case::parts("http://shop/\nG\nS\nUx-forwarded-host=evil\nFproto=https\nHaccept-language\n=de\n=fr\nIspiffe://weft.local/ns/a/sa/b",
        json!({ "uri": "http://shop/", "method": "GET", "scope": "",
                "parts": ["header x-forwarded-host=evil", "forwarded proto=https", "header accept-language=de, fr", "caller spiffe://weft.local/ns/a/sa/b"] }))]
    #[case::nothing("", json!({ "uri": "", "method": "", "scope": "", "parts": [] }))]
    fn a_key_is_shown_in_parts(#[case] text: &str, #[case] shown: Value) {
        assert_eq!(key(text.as_bytes()), shown);
    }

    #[rstest]
    #[case::header("http://shop/\nG\nS\nHauthorization\n=Bearer 4711", "header authorization=(hidden)")]
    #[case::lines("http://shop/\nG\nS\nHx-api-key\n=4711\n=4711", "header x-api-key=(hidden), (hidden)")]
    #[case::cookie("http://shop/\nG\nS\nCtheme=4711", "cookie theme=(hidden)")]
    #[case::no_cookie("http://shop/\nG\nS\nCtheme", "cookie theme")]
    #[case::unkeyed(
        "http://shop/\nG\nS\nUx-original-url=/a?token=4711&b=1",
        "header x-original-url=/a?token=(hidden)&b=1"
    )]
    fn what_may_be_a_credential_is_not_shown(#[case] text: &str, #[case] part: &str) {
        let shown = key(text.as_bytes());
        assert_eq!(shown["parts"], json!([part]));
        assert!(!shown.to_string().contains("4711"), "{shown}");
    }

    #[rstest]
    #[case("http://shop/a", "http://shop/a")]
    #[case("http://shop/a?b=1&c=2", "http://shop/a?b=1&c=2")]
    #[case("http://shop/a?b&Access_Token=4711&c=2", "http://shop/a?b&Access_Token=(hidden)&c=2")]
    #[case("http://shop/a?b=1;sig=4711;c=2", "http://shop/a?b=1;sig=(hidden);c=2")]
    #[case("http://shop/a?password=47=11", "http://shop/a?password=(hidden)")]
    #[case("http://shop/a?monkey=1", "http://shop/a?monkey=1")]
    fn parameters_that_may_be_credentials_are_not_shown(#[case] text: &str, #[case] shown: &str) {
        assert_eq!(uri(text), shown);
    }

    #[test]
    fn what_is_shown_of_a_key_is_bounded_whatever_it_holds() {
        let long = format!("http://shop/{}\nG\nS\n", "\u{e9}".repeat(9000));
        let shown = key(long.as_bytes());
        assert!(shown["uri"].as_str().is_some_and(|uri| uri.ends_with("...") && uri.chars().count() < 600));
        let many = format!("http://shop/\nG\nS{}", "\nHa\n=b".repeat(3000));
        assert!(key(many.as_bytes())["parts"].as_array().is_some_and(|parts| parts.len() <= PARTS));
        let binary: Vec<u8> = (0..=255).collect();
        assert!(key(&binary)["uri"].is_string());
    }

    #[test]
    fn the_page_says_how_requests_were_answered_and_why_not() {
        let metrics = Metrics::new(1);
        let shard = Shard::new(metrics.clone(), 0);
        let labels =
            CacheSeriesKey { direction: Direction::Inbound, service: "shop/web".into(), route: "".into() };
        let series = metrics.cache(labels);
        for (how, times) in [
            (Answered::Hit, 5),
            (Answered::Stale, 1),
            (Answered::Revalidated, 2),
            (Answered::Miss(Forwarded::UriMiss), 3),
            (Answered::Miss(Forwarded::Request), 1),
            (Answered::Bypass(Bypass::Method), 4),
        ] {
            (0..times).for_each(|_| shard.cache_answered(&series, how));
        }
        shard.cache_refused(&series, Refusal::Private);
        let idle =
            CacheSeriesKey { direction: Direction::Outbound, service: "shop/b".into(), route: "".into() };
        let _idle = metrics.cache(idle);
        let page = describe(&Stores::default(), &metrics, &Snapshot::default(), 9);
        assert_eq!(
            page["routes"],
            json!([{ "direction": "inbound", "service": "shop/web", "route": "", "requests": 16, "hit": 5,
                "stale": 1, "revalidated": 2, "miss": 4, "bypass": 4, "hit_ratio": 0.6667 }])
        );
        let reason = |what: &str, reason: &str, count: u64| json!({ "direction": "inbound", "service": "shop/web", "route": "", "what": what, "reason": reason, "count": count });
        assert_eq!(
            page["reasons"],
            json!([
                reason("miss", "uri-miss", 3),
                reason("miss", "request", 1),
                reason("bypass", "method", 4),
                reason("not-stored", "private", 1),
            ])
        );
        assert_eq!((&page["policies"], &page["top"]), (&json!([]), &json!([])));
    }

    #[test]
    fn the_page_says_what_each_policy_keeps_and_what_is_asked_for_most() {
        let rules =
            |id: &str| Arc::new(CacheRules { id: id.into(), max_bytes: 1 << 20, ..CacheRules::default() });
        let stores = Stores::default();
        let store = stores.of(&rules("shop/was"), 0);
        for name in ["1", "2", "3"] {
            let key = format!("http://shop/{name}\nG\nSweb#0");
            store.put(Sample::new(&key).entry_since(store.epoch(), vec![0; 100]), 0).1.expect("room is made");
            for _ in 0..name.parse().expect("a number") {
                assert!(store.look_up(crate::cache::entry::Key::new(key.as_bytes()), 0).is_some());
            }
        }
        assert!(store.look_up(crate::cache::entry::Key::new(b"none"), 0).is_none());
        let admission = Admission { cache: Some(rules("shop/new")), ..Admission::default() };
        let workload = Workload { admission: vec![Arc::new(admission)], ..Workload::default() };
        let mut snapshot = Snapshot::default();
        snapshot.workload = Some(Arc::new(workload));
        let page = describe(&stores, &Metrics::new(1), &snapshot, 2);
        let policies = page["policies"].as_array().expect("a list");
        let ids: Vec<_> =
            policies.iter().map(|row| (row["policy"].clone(), row["in_force"].clone())).collect();
        assert_eq!(ids, [(json!("shop/was"), json!(false)), (json!("shop/new"), json!(true))]);
        let was = &policies[0];
        assert_eq!([&was["entries"], &was["stored"], &was["hits"], &was["misses"]], [3, 3, 6, 1]);
        assert_eq!(was["hit_ratio"], json!(0.8571));
        let top: Vec<_> =
            page["top"].as_array().expect("a list").iter().map(|row| (&row["uri"], &row["hits"])).collect();
        assert_eq!(top, [(&json!("http://shop/3"), &json!(3)), (&json!("http://shop/2"), &json!(2))]);
        let none = describe(&stores, &Metrics::new(1), &snapshot, 0);
        assert_eq!(none["top"], json!([]));
    }
}
