//! The foot of every page, which shows the mesh at work: who answered what, and what caches on the way had already.

use super::{page::Text, visit::Visit};
use crate::{
    cache_status::{self, Answered, Counts, Tally},
    request::Call,
    serving::Replica,
};

/// Who answered what for this page, and how much of all that was asked so far nobody had to answer again.
pub(super) fn render(visit: &Visit, replica: &Replica, caches: &Tally) -> String {
    let calls = visit.context.calls();
    let spared =
        calls.iter().filter(|call| answered(call).is_some_and(|(answered, _)| answered.is_spared())).count();
    let rows: String = calls.iter().map(row).collect();
    format!(
        r#"<footer class="mesh"><div class="inner"><div class="facts"><span><b>The mesh behind this page</b></span>
<span>{count} {calls}</span><span>{spared} of them answered from caches</span><span>{total:.1} ms</span>
<span>rendered by {replica}</span><span>trace <code>{trace}</code></span></div>{meters}
<table><thead><tr><th>Service</th><th>Call</th><th>Answered by</th><th>Version</th><th>Result</th><th>Cache</th><th>Time</th></tr></thead>
<tbody>{rows}</tbody></table></div></footer>"#,
        count = calls.len(),
        calls = if calls.len() == 1 { "call" } else { "calls" },
        total = visit.began.elapsed().as_secs_f64() * 1000.0,
        replica = Text(&replica.name),
        trace = Text(visit.context.trace_id().unwrap_or("none")),
        meters = meters(&caches.so_far()),
    )
}

fn answered(call: &Call) -> Option<(Answered, &str)> {
    cache_status::read(call.cache.as_deref()?)
}

/// One bar for each service of which something is kept.
fn meters(so_far: &[(&'static str, Counts)]) -> String {
    if so_far.is_empty() {
        return String::new();
    }
    let each: String = so_far.iter().map(|(service, counts)| meter(service, *counts)).collect();
    format!(
        r#"<div class="meters">{each}<p class="legend"><i class="fresh"></i>from a cache <i class="stale"></i>stale, while it is fetched anew or cannot be <i class="asked"></i>by the service itself</p></div>"#
    )
}

fn meter(service: &str, counts: Counts) -> String {
    let share = |part: u64| part as f64 * 100.0 / counts.all().max(1) as f64;
    format!(
        r#"<div class="meter" title="{fresh} fresh, {stale} stale, {asked} asked"><span>{service}</span><span class="bar"><i class="fresh" style="width:{fresh_share:.1}%"></i><i class="stale" style="width:{stale_share:.1}%"></i></span><b>{percent} %</b><small>{spared} of {all} calls never reached it</small></div>"#,
        fresh = counts.fresh,
        stale = counts.stale,
        asked = counts.asked,
        service = Text(service),
        fresh_share = share(counts.fresh),
        stale_share = share(counts.stale),
        percent = counts.percent(),
        spared = counts.fresh + counts.stale,
        all = counts.all(),
    )
}

fn row(call: &Call) -> String {
    let version = call.version.as_deref().unwrap_or("–");
    format!(
        r#"<tr><td>{service}</td><td><code>{what}</code></td><td>{replica}</td><td><span class="version {class}">{version}</span></td><td class="{outcome_class}">{outcome}</td><td>{cache}</td><td class="time">{took:.1} ms</td></tr>"#,
        service = Text(call.service),
        what = Text(&call.what),
        replica = Text(call.replica.as_deref().unwrap_or("–")),
        class = if version == "v2" { "second" } else { "" },
        version = Text(version),
        outcome_class = if call.good { "good" } else { "bad" },
        outcome = Text(&call.outcome),
        cache = cache(call),
        took = call.took.as_secs_f64() * 1000.0,
    )
}

/// What the caches say: in a word, and as the one says it that decides.
fn cache(call: &Call) -> String {
    let (Some(all), Some((answered, said))) = (&call.cache, answered(call)) else {
        return r#"<span class="never">never kept</span>"#.to_owned();
    };
    let class = match answered {
        Answered::Fresh => "fresh",
        Answered::Stale => "stale",
        Answered::Confirmed | Answered::Fetched => "asked",
        Answered::PassedBy => "by",
    };
    format!(
        r#"<span class="answered {class}" title="{all}">{word}</span> <code>{said}</code>"#,
        all = Text(all),
        word = answered.as_str(),
        said = Text(said),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn what_caches_say_is_shown_as_text() {
        let call = Call {
            service: "product",
            what: "GET /".to_owned(),
            outcome: "200".to_owned(),
            good: true,
            replica: None,
            version: None,
            took: Duration::ZERO,
            cache: Some("weft; hit; detail=<b>".to_owned()),
        };
        let shown = cache(&call);
        assert!(shown.contains(r#"class="answered fresh""#) && shown.contains(">hit</span>"), "{shown}");
        assert!(shown.contains("<code>weft; hit; detail=&lt;b&gt;</code>"), "{shown}");
        assert!(cache(&Call { cache: None, ..call }).contains("never kept"));
    }
}
