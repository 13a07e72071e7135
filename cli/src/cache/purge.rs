//! `weft cache purge`: what is kept is forgotten, in every sidecar of the mesh.

use super::count;
use crate::{
    exit::Failure,
    mesh,
    terminal::{self, ColourChoice, Palette, Style, table},
};
use anyhow::{Context, anyhow};
use http::StatusCode;
use std::{path::PathBuf, time::Duration};
use weft_config::purge::{Kind, Purge};
use weft_control_plane::{
    caching::{AwaySidecar, PurgeReport, PurgeRequest, PurgeState},
    settings,
};

/// Purge what the response caches keep, in every sidecar of the running mesh.
///
/// When this returns 0, no sidecar that was asked gives any of it any more: not even what was on its way when the purge
/// came. With --soft it is only stale from now on: it is asked for anew, and still given where a stale answer may be.
#[derive(clap::Args, Clone, Debug)]
#[command(
    override_usage = "weft cache purge [OPTIONS] <URL | --prefix URL | --tag TAG | --policy NAME | --all>",
    after_help = "Examples:
  weft cache purge http://product:8080/products/7      this URL, under all names of its service
  weft cache purge --prefix http://product:8080/products/
  weft cache purge --tag product:7 --soft
  weft cache purge --all --service shop/product

Exit codes: 0 all sidecars have done it, 1 not all did, 64 this is no purge."
)]
pub(crate) struct Options {
    #[command(flatten)]
    wanted: Wanted,
    /// Only what is kept of this service: NAMESPACE/NAME, or NAME if it is the only one.
    #[arg(long, value_name = "SERVICE")]
    service: Option<String>,
    /// Make it stale instead of forgetting it.
    #[arg(long)]
    soft: bool,
    /// How long sidecars may take to answer; 60s at most.
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = settings::duration)]
    wait: Duration,
    /// Print the control plane's whole answer as JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    target: mesh::Target,
    /// File with an operator's token, as `weft control-plane operator-token` prints it. Not needed for a mesh that
    /// `weft up` runs from this directory or one above it.
    #[arg(long, env = "WEFT_OPERATOR_TOKEN_FILE", value_name = "FILE")]
    token_file: Option<PathBuf>,
}

#[derive(clap::Args, Clone, Debug)]
#[group(required = true, multiple = false)]
struct Wanted {
    /// Exactly this URL, its query included. The host may be any name of the service.
    url: Option<String>,
    /// Every URL that begins like this, up to anywhere in the path.
    #[arg(long, value_name = "URL")]
    prefix: Option<String>,
    /// Every answer with this tag.
    #[arg(long, value_name = "TAG")]
    tag: Option<String>,
    /// Everything kept under this CachePolicy, NAMESPACE/NAME.
    #[arg(long, value_name = "NAME")]
    policy: Option<String>,
    /// Everything.
    #[arg(long)]
    all: bool,
}

impl Options {
    fn request(&self) -> Result<PurgeRequest, Failure> {
        let Wanted { url, prefix, tag, policy, all } = &self.wanted;
        for (kind, text) in
            [(Kind::Url, url), (Kind::Prefix, prefix), (Kind::Tag, tag), (Kind::Policy, policy)]
        {
            if let Some(text) = text {
                // What the names mean is known there; what is no purge at all is known here.
                Purge::read(kind, text, "", self.soft, "").map_err(|why| Failure::Usage(why.to_string()))?;
            }
        }
        Ok(PurgeRequest {
            all: *all,
            url: url.clone(),
            prefix: prefix.clone(),
            tag: tag.clone(),
            policy: policy.clone(),
            service: self.service.clone(),
            soft: self.soft,
            wait: Some(format!("{}ms", self.wait.as_millis())),
        })
    }
}

/// Runs the verb.
pub(crate) fn run(options: &Options, colour: ColourChoice) -> Result<(), Failure> {
    if options.wait > Duration::from_secs(60) {
        return Err(Failure::Usage("--wait is 60s at most".to_owned()));
    }
    let body = serde_json::to_vec(&options.request()?).context("no JSON")?;
    let address = options.target.address()?;
    let token = mesh::operator_token(&address, options.token_file.as_deref())?;
    let (status, body) =
        mesh::wait_for(mesh::post(&address, "/api/cache/purge", &token, body, options.wait))?.map_err(|error| {
            error.context(
                "it is not known how far the purge came; what the control plane has taken it remembers and sends to \
                 sidecars that were away, but purge again to be sure",
            )
        })?;
    let words = || String::from_utf8_lossy(&body).trim().chars().take(1000).collect::<String>();
    let report: PurgeReport = match serde_json::from_slice(&body) {
        Ok(report) => report,
        Err(_) if status == StatusCode::BAD_REQUEST => return Err(Failure::Usage(words())),
        Err(_) => return Err(Failure::Other(anyhow!("{address} answered {status}: {}", words()))),
    };
    if options.json {
        let json = serde_json::to_string_pretty(&report).context("no JSON")?;
        terminal::out(&format!("{json}\n"));
    } else {
        terminal::out(&text(&report, Palette::stdout(colour)));
    }
    if report.complete { Ok(()) } else { Err(Failure::Other(anyhow!("{}", report.problem))) }
}

/// What became of it.
fn text(report: &PurgeReport, palette: Palette) -> String {
    let (done, verb) = match (report.complete, report.soft) {
        (true, false) => (palette.paint(Style::Good, "purged"), "purged"),
        (true, true) => (palette.paint(Style::Good, "made stale"), "made stale"),
        (false, _) => (palette.paint(Style::Error, "not everywhere"), "not everywhere"),
    };
    let indent = " ".repeat(verb.len() + 2);
    let answers = match report.answers {
        0 => "nothing of it was kept".to_owned(),
        some => count(some, "answer"),
    };
    let where_ = if report.complete {
        format!("in {}", count(report.asked as u64, "sidecar"))
    } else {
        format!("in {} of {}", report.acknowledged, count(report.asked as u64, "sidecar"))
    };
    let mut text =
        format!("{done}  {}\n{indent}{answers} {where_}, {} ms\n", report.purged, report.milliseconds);
    let shown = |state: PurgeState, answers: u64| {
        !report.complete || answers > 0 || state != PurgeState::Acknowledged
    };
    let mut rows = vec![["SIDECAR", "STATE", "ANSWERS", "WHY"].map(str::to_owned).to_vec()];
    for sidecar in report.sidecars.iter().filter(|s| shown(s.state, s.answers)) {
        rows.push(vec![
            format!("{}/{}", sidecar.namespace, sidecar.workload),
            match sidecar.state {
                PurgeState::Acknowledged => "done",
                PurgeState::Failed => "failed",
                PurgeState::Late => "no answer in time",
                PurgeState::Lost => "connection lost",
            }
            .to_owned(),
            sidecar.answers.to_string(),
            sidecar.why.clone(),
        ]);
    }
    if rows.len() > 1 {
        if report.complete {
            // Nothing to tell but where it was.
            rows.iter_mut().for_each(|row| {
                row.truncate(3);
                row.remove(1);
            });
        }
        text.push('\n');
        text.push_str(&table(&rows, palette));
    }
    for away in &report.away {
        text.push_str(&format!("\n{} {}\n", palette.paint(Style::Warning, "away:"), absent(away)));
    }
    text
}

fn absent(away: &AwaySidecar) -> String {
    let since = match away.seconds {
        0 => "is not connected".to_owned(),
        1..120 => format!("lost its connection {} s ago", away.seconds),
        _ => format!("lost its connection {} min ago", away.seconds / 60),
    };
    format!(
        "{}/{} {since} and was not asked; if it still runs it may give what was purged until it is back, and is told then",
        away.namespace, away.workload
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use weft_control_plane::caching::PurgedSidecar;

    #[derive(Parser, Debug)]
    struct Program {
        #[command(flatten)]
        options: Options,
    }

    fn parse(words: &[&str]) -> Result<PurgeRequest, String> {
        let words = std::iter::once("weft").chain(words.iter().copied());
        let program = Program::try_parse_from(words).map_err(|error| error.to_string())?;
        program.options.request().map_err(|failure| failure.to_string())
    }

    #[test]
    fn exactly_one_thing_is_purged() {
        let url = parse(&["http://product:8080/a", "--soft"]).expect("valid");
        assert_eq!((url.url.as_deref(), url.soft), (Some("http://product:8080/a"), true));
        assert_eq!(url.wait.as_deref(), Some("5000ms"));
        assert!(parse(&["--all", "--service", "shop/product"]).expect("valid").all);
        assert_eq!(parse(&["--tag", "p:7"]).expect("valid").tag.as_deref(), Some("p:7"));
        for wrong in [
            &[][..],
            &["http://a/", "--all"],
            &["--tag", "a", "--prefix", "http://b/"],
            &["/a"],
            &["--prefix", "http://a/*"],
            &["--tag", "a b"],
            &["http://a/", "--wait", "soon"],
        ] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }

    fn sidecar(workload: &str, state: PurgeState, answers: u64) -> PurgedSidecar {
        PurgedSidecar {
            namespace: "shop".into(),
            workload: workload.into(),
            state,
            answers,
            ..PurgedSidecar::default()
        }
    }

    #[test]
    fn what_was_done_is_told_in_a_few_lines() {
        let report = PurgeReport {
            purged: "url http://product.shop:8080/a".into(),
            complete: true,
            answers: 3,
            asked: 3,
            acknowledged: 3,
            milliseconds: 14,
            sidecars: vec![
                sidecar("cart", PurgeState::Acknowledged, 1),
                sidecar("product-1", PurgeState::Acknowledged, 2),
                sidecar("user", PurgeState::Acknowledged, 0),
            ],
            ..PurgeReport::default()
        };
        assert_eq!(
            text(&report, Palette::plain()),
            "purged  url http://product.shop:8080/a
        3 answers in 3 sidecars, 14 ms

SIDECAR         ANSWERS
shop/cart       1
shop/product-1  2
"
        );
        let none = PurgeReport { answers: 0, soft: true, sidecars: vec![], ..report };
        assert_eq!(
            text(&none, Palette::plain()),
            "made stale  url http://product.shop:8080/a
            nothing of it was kept in 3 sidecars, 14 ms
"
        );
    }

    #[test]
    fn who_did_not_do_it_is_named_and_so_is_who_was_not_asked() {
        let mut failed = sidecar("old", PurgeState::Failed, 0);
        failed.why = "this version does not know this kind of purge".into();
        let report = PurgeReport {
            purged: "tag p:7".into(),
            answers: 1,
            asked: 3,
            acknowledged: 1,
            milliseconds: 5000,
            sidecars: vec![
                sidecar("cart", PurgeState::Acknowledged, 1),
                failed,
                sidecar("user", PurgeState::Late, 0),
            ],
            away: vec![AwaySidecar {
                namespace: "shop".into(),
                workload: "web".into(),
                seconds: 130,
                ..AwaySidecar::default()
            }],
            ..PurgeReport::default()
        };
        assert_eq!(
            text(&report, Palette::plain()),
            "not everywhere  tag p:7
                1 answer in 1 of 3 sidecars, 5000 ms

SIDECAR    STATE              ANSWERS  WHY
shop/cart  done               1
shop/old   failed             0        this version does not know this kind of purge
shop/user  no answer in time  0

away: shop/web lost its connection 2 min ago and was not asked; if it still runs it may give what was purged until it \
is back, and is told then
"
        );
    }
}
