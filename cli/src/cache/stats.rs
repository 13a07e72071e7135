//! `weft cache stats`: what all caches of the mesh hold together, and how well they serve.

use super::count;
use crate::{
    exit::Failure,
    mesh,
    terminal::{self, ColourChoice, Palette, Style, table},
};
use anyhow::Context;
use weft_control_plane::caching::{CacheStats, PolicyStats, ServiceStats};

/// Show what the response caches of all sidecars hold, and how requests were answered since each sidecar started.
#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "Examples:
  weft cache stats
  weft cache stats --json | jq '.services[] | {service, hitRatio}'

The hit ratio is the share of requests that the cache answered without the origin, fresh or stale, among those that it
looked up. `revalidated` are those that the origin answered with `not modified`; `bypass` those that are not looked up.")]
pub(crate) struct Options {
    #[command(flatten)]
    target: mesh::Target,
    /// Print the control plane's whole answer as JSON, with the reasons for misses and what each sidecar holds.
    #[arg(long)]
    json: bool,
}

/// Runs the verb.
pub(crate) fn run(options: &Options, colour: ColourChoice) -> Result<(), Failure> {
    let address = options.target.address()?;
    let body = mesh::wait_for(mesh::get(&address, "/api/cache/stats"))??;
    let stats: CacheStats = serde_json::from_slice(&body).with_context(|| {
        format!("{address} gave an answer that is no statistics; is it a control plane of this version?")
    })?;
    if options.json {
        let json = serde_json::to_string_pretty(&stats).context("no JSON")?;
        terminal::out(&format!("{json}\n"));
    } else {
        terminal::out(&text(&stats, Palette::stdout(colour)));
    }
    Ok(())
}

fn text(stats: &CacheStats, palette: Palette) -> String {
    let mut text = String::new();
    if stats.policies.is_empty() && stats.services.is_empty() {
        text.push_str(&format!(
            "nothing is kept by {}: no CachePolicy holds for what they call or serve, or nobody called yet\n",
            count(stats.asked as u64, "sidecar")
        ));
    } else {
        let head = [
            "POLICY",
            "SIDECARS",
            "ENTRIES",
            "MEMORY",
            "STORED",
            "EVICTED",
            "EXPIRED",
            "PURGED",
            "REFUSED",
            "COALESCED",
        ];
        let mut rows = vec![head.map(str::to_owned).to_vec()];
        rows.extend(stats.policies.iter().map(policy));
        text.push_str(&table(&rows, palette));
        text.push('\n');
        let head = [
            "SERVICE",
            "KEPT AT",
            "ROUTE",
            "REQUESTS",
            "HIT RATIO",
            "HIT",
            "STALE",
            "REVALIDATED",
            "MISS",
            "BYPASS",
            "MOSTLY BECAUSE",
        ];
        let mut rows = vec![head.map(str::to_owned).to_vec()];
        rows.extend(stats.services.iter().map(service));
        text.push_str(&table(&rows, palette));
    }
    for silent in &stats.silent {
        text.push_str(&format!(
            "\n{} {silent} did not answer in time\n",
            palette.paint(Style::Warning, "silent:")
        ));
    }
    text
}

fn policy(policy: &PolicyStats) -> Vec<String> {
    let memory = match policy.limit {
        0 => size(policy.bytes),
        limit => {
            format!(
                "{} of {} ({:.0} %)",
                size(policy.bytes),
                size(limit),
                policy.bytes as f64 / limit as f64 * 100.0
            )
        }
    };
    let counts =
        [policy.stored, policy.evicted, policy.expired, policy.purged, policy.refused, policy.coalesced];
    let mut row =
        vec![policy.policy.clone(), policy.sidecars.to_string(), policy.entries.to_string(), memory];
    row.extend(counts.map(|count| count.to_string()));
    row
}

fn service(service: &ServiceStats) -> Vec<String> {
    let place = match service.direction.as_str() {
        "outbound" => "callers",
        "inbound" => "service",
        other => other,
    };
    let ratio = service.hit_ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{:.1} %", ratio * 100.0));
    let counts = [service.hits, service.stale, service.revalidated, service.misses, service.bypassed];
    let mut row = vec![
        service.service.clone(),
        place.to_owned(),
        if service.route.is_empty() { "-".to_owned() } else { service.route.clone() },
        service.requests.to_string(),
        ratio,
    ];
    row.extend(counts.map(|count| count.to_string()));
    let reasons = service.reasons.iter().take(2);
    row.push(reasons.map(|r| format!("{} {}", r.reason, r.requests)).collect::<Vec<_>>().join(", "));
    row
}

/// `17 B`, `1.5 KiB`, `64 MiB`.
fn size(bytes: u64) -> String {
    let mut size = bytes as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if size < 1024.0 {
            return match size.fract() == 0.0 {
                true => format!("{size:.0} {unit}"),
                false => format!("{size:.1} {unit}"),
            };
        }
        size /= 1024.0;
    }
    format!("{size:.1} TiB")
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_control_plane::caching::ReasonStats;

    #[test]
    fn sizes_are_easy_to_read() {
        for (bytes, text) in
            [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (64 << 20, "64 MiB"), (3 << 40, "3.0 TiB")]
        {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn what_is_kept_and_how_well_it_serves_are_two_tables() {
        let reason =
            |reason: &str, requests| ReasonStats { result: "miss".into(), reason: reason.into(), requests };
        let stats = CacheStats {
            asked: 4,
            silent: vec!["shop/user".into()],
            policies: vec![PolicyStats {
                policy: "shop/pages".into(),
                sidecars: 2,
                entries: 120,
                bytes: 3 << 19,
                limit: 128 << 20,
                stored: 130,
                purged: 10,
                coalesced: 4,
                ..PolicyStats::default()
            }],
            services: vec![
                ServiceStats {
                    service: "shop/product".into(),
                    direction: "outbound".into(),
                    requests: 1000,
                    hit_ratio: Some(0.8671),
                    hits: 850,
                    stale: 10,
                    misses: 130,
                    bypassed: 10,
                    reasons: vec![reason("uri-miss", 120), reason("method", 10), reason("stale", 10)],
                    ..ServiceStats::default()
                },
                ServiceStats {
                    service: "shop/user".into(),
                    direction: "inbound".into(),
                    route: "shop/user#0".into(),
                    ..ServiceStats::default()
                },
            ],
            sidecars: vec![],
        };
        assert_eq!(
            text(&stats, Palette::plain()),
            "POLICY      SIDECARS  ENTRIES  MEMORY                    STORED  EVICTED  EXPIRED  PURGED  REFUSED  COALESCED
shop/pages  2         120      1.5 MiB of 128 MiB (1 %)  130     0        0        10      0        4

SERVICE       KEPT AT  ROUTE        REQUESTS  HIT RATIO  HIT  STALE  REVALIDATED  MISS  BYPASS  MOSTLY BECAUSE
shop/product  callers  -            1000      86.7 %     850  10     0            130   10      uri-miss 120, method 10
shop/user     service  shop/user#0  0         -          0    0      0            0     0

silent: shop/user did not answer in time
"
        );
    }

    #[test]
    fn a_mesh_that_keeps_nothing_says_so() {
        let stats = CacheStats { asked: 1, ..CacheStats::default() };
        assert!(text(&stats, Palette::plain()).starts_with("nothing is kept by 1 sidecar:"));
    }
}
