//! `weft status`: what the running mesh looks like.

mod deprecated;

use crate::{
    documents,
    excerpt::Sources,
    exit::Failure,
    mesh,
    terminal::{self, ColourChoice, Palette, Style, table},
};
use anyhow::Context;
use std::path::PathBuf;
use weft_control_plane::status::{DocumentState, Endpoint, Sidecar, Status};

/// Show the running mesh: sidecars, services and their endpoints, policy and what is wrong with it.
///
/// For a directory that no `weft up` runs, what its files say.
#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "Examples:
  weft status                           the mesh that `weft up` runs from here
  weft status examples/shop             the mesh that `weft up` runs from that directory
  weft status --deprecated              who still calls what is going away
  weft status --mesh 10.0.0.5:15080 --json")]
pub(crate) struct Options {
    /// The directory of policy that the mesh runs.
    #[arg(value_name = "DIRECTORY", conflicts_with = "mesh")]
    directory: Option<PathBuf>,
    #[command(flatten)]
    target: mesh::Target,
    /// Show who called what is going away in the last 7 days: what a TrafficPolicy marks with `deprecation`.
    #[arg(long)]
    deprecated: bool,
    /// Print the control plane's whole answer as JSON; with --deprecated that part of it.
    #[arg(long)]
    json: bool,
}

/// Runs the verb.
pub(crate) fn run(options: &Options, colour: ColourChoice) -> Result<(), Failure> {
    let running = match &options.directory {
        Some(directory) => mesh::of_directory(directory)?,
        None => Some(options.target.address()?),
    };
    let status = match (&running, &options.directory) {
        (Some(address), _) => mesh::status(address)?,
        (None, Some(directory)) => documents::read(directory)?.status(),
        (None, None) => Status::default(),
    };
    if options.json {
        let json = match options.deprecated {
            true => serde_json::to_string_pretty(&status.deprecated),
            false => serde_json::to_string_pretty(&status),
        };
        terminal::out(&format!("{}\n", json.context("no JSON")?));
    } else if options.deprecated {
        terminal::out(&deprecated::text(&status, running.is_some(), Palette::stdout(colour)));
    } else {
        terminal::out(&text(&status, running.is_some(), Palette::stdout(colour)));
    }
    Ok(())
}

/// The whole page.
fn text(status: &Status, running: bool, palette: Palette) -> String {
    let mut text = String::new();
    if running {
        text.push_str(&heading(status, palette));
        text.push('\n');
        text.push_str(&sidecars(status, palette));
    } else {
        text.push_str("not running as far as can be seen from here; this is what the files say\n\n");
        text.push_str(&format!("{}  {}\n", palette.paint(Style::Bold, "policy"), policy(status, palette)));
    }
    text.push('\n');
    text.push_str(&services(status, palette));
    let pending = documents::pending(status);
    if !pending.is_empty() {
        text.push_str(&format!("\naccepted, not yet enforced:\n  {}\n", pending.join("\n  ")));
    }
    for sidecar in &status.sidecars {
        for refused in &sidecar.rejections {
            text.push_str(&format!(
                "\n{} the sidecar of {}/{} refuses {} (version {}): {}\n",
                palette.paint(Style::Error, "refused:"),
                sidecar.namespace,
                sidecar.workload,
                refused.name,
                short(&refused.version),
                refused.reason
            ));
        }
    }
    for problem in &status.problems {
        text.push_str(&format!(
            "\n{} {} {}\n",
            palette.paint(Style::Error, "error:"),
            problem.path,
            problem.message
        ));
    }
    let mut sources = Sources::default();
    for document in &status.documents {
        let findings = documents::of_status(document);
        if !findings.is_empty() {
            text.push('\n');
            text.push_str(&documents::render(&findings, &mut sources, palette));
        }
    }
    text
}

fn heading(status: &Status, palette: Palette) -> String {
    let plane = &status.control_plane;
    let policy = policy(status, palette);
    let roots = match plane.trusted_roots {
        0 | 1 => String::new(),
        more => format!(", {more} trusted CAs"),
    };
    let settling = if plane.settling { ", settling after a restart" } else { "" };
    format!(
        "{}  version {}, up {}{settling}\n{}         {policy}\n{}         {}, CA for another {}{roots}\n",
        palette.paint(Style::Bold, "control plane"),
        plane.version,
        span(plane.now.saturating_sub(plane.started)),
        palette.paint(Style::Bold, "policy"),
        palette.paint(Style::Bold, "trust "),
        plane.trust_domain,
        span(plane.authority_expires.saturating_sub(plane.now)),
    )
}

fn policy(status: &Status, palette: Palette) -> String {
    let count = |state| status.documents.iter().filter(|d| d.state == state).count();
    let rejected = count(DocumentState::Rejected);
    let kept = status.documents.iter().filter(|d| d.last_good_in_force).count();
    let mut policy = format!(
        "version {}, {} in force",
        short(&status.control_plane.policy_version),
        documents::count(count(DocumentState::Accepted))
    );
    let pending = count(DocumentState::Pending);
    if pending > 0 {
        policy.push_str(&format!(", {pending} not yet enforced"));
    }
    if rejected > 0 {
        let rejected = palette.paint(Style::Error, &format!("{rejected} rejected"));
        policy.push_str(&format!(", {rejected} ({kept} of them with the last good version in force)"));
    }
    policy
}

fn sidecars(status: &Status, palette: Palette) -> String {
    if status.sidecars.is_empty() {
        return "no sidecar is connected\n".into();
    }
    let mut rows =
        vec![["SIDECAR", "READY", "POLICY", "CERTIFICATE", "INBOUND", "VERSION"].map(str::to_owned).to_vec()];
    for sidecar in &status.sidecars {
        rows.push(vec![
            format!("{}/{}", sidecar.namespace, sidecar.workload),
            if sidecar.ready { "yes" } else { "no" }.into(),
            held(sidecar),
            match sidecar.certificate_expires {
                0 => "-".into(),
                until if until <= status.control_plane.now => "expired".into(),
                until => format!("{} left", span(until - status.control_plane.now)),
            },
            if sidecar.inbound_address.is_empty() { "-".into() } else { sidecar.inbound_address.clone() },
            sidecar.version.clone(),
        ]);
    }
    table(&rows, palette)
}

fn held(sidecar: &Sidecar) -> String {
    let resources = sidecar.resources.len();
    let state = if !sidecar.rejections.is_empty() {
        format!("refuses {}", sidecar.rejections.len())
    } else if sidecar.behind {
        "behind".into()
    } else {
        "up to date".into()
    };
    format!("{state}, holds {resources}")
}

fn services(status: &Status, palette: Palette) -> String {
    if status.services.is_empty() {
        return "no service is known\n".into();
    }
    let mut rows =
        vec![["SERVICE", "PORT", "ENDPOINT", "WORKLOAD", "IDENTITY", "LABELS"].map(str::to_owned).to_vec()];
    for service in &status.services {
        let name = format!("{}/{}", service.namespace, service.name);
        if service.endpoints.is_empty() {
            rows.push(vec![name, "-".into(), "none".into()]);
            continue;
        }
        for (index, endpoint) in service.endpoints.iter().enumerate() {
            let name = if index == 0 { name.clone() } else { String::new() };
            rows.push(vec![
                name,
                endpoint.port.to_string(),
                endpoint.address.clone(),
                endpoint.workload.clone(),
                if endpoint.identity.is_empty() {
                    "none, plain text".into()
                } else {
                    endpoint.identity.clone()
                },
                labels(endpoint),
            ]);
        }
    }
    table(&rows, palette)
}

fn labels(endpoint: &Endpoint) -> String {
    let mut list: Vec<String> = endpoint.labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
    if !endpoint.zone.is_empty() {
        list.push(format!("zone={}", endpoint.zone));
    }
    if endpoint.weight > 1 {
        list.push(format!("weight={}", endpoint.weight));
    }
    list.join(",")
}

fn short(version: &str) -> String {
    version.chars().take(12).collect()
}

/// `3 s`, `5 min`, `23 h`, `364 days`.
fn span(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_control_plane::status::{ControlPlane, Diagnostic, Document, Rejection, Service};

    fn status() -> Status {
        Status {
            control_plane: ControlPlane {
                version: "0.1.0".into(),
                trust_domain: "weft.local".into(),
                now: 1000,
                started: 400,
                policy_version: "0123456789abcdef".into(),
                authority_expires: 1000 + 86_400 * 3650,
                trusted_roots: 1,
                ..ControlPlane::default()
            },
            documents: vec![
                Document { state: DocumentState::Accepted, ..Document::default() },
                Document {
                    kind: "HTTPRoute".into(),
                    namespace: "shop".into(),
                    name: "product".into(),
                    state: DocumentState::Rejected,
                    last_good_in_force: true,
                    diagnostics: vec![Diagnostic {
                        error: true,
                        file: "gone.yaml".into(),
                        line: 3,
                        column: 5,
                        message: "unknown field `weigth`".into(),
                        ..Diagnostic::default()
                    }],
                    ..Document::default()
                },
                Document {
                    kind: "CachePolicy".into(),
                    namespace: "shop".into(),
                    name: "c".into(),
                    state: DocumentState::Pending,
                    ..Document::default()
                },
            ],
            sidecars: vec![Sidecar {
                namespace: "shop".into(),
                workload: "cart".into(),
                ready: true,
                certificate_expires: 1000 + 86_000,
                rejections: vec![Rejection {
                    name: "mesh".into(),
                    version: "9".into(),
                    reason: "bad".into(),
                }],
                ..Sidecar::default()
            }],
            services: vec![
                Service {
                    namespace: "shop".into(),
                    name: "cart".into(),
                    endpoints: vec![Endpoint {
                        port: 8080,
                        address: "127.0.0.1:1".into(),
                        workload: "cart".into(),
                        ..Endpoint::default()
                    }],
                    ..Service::default()
                },
                Service { namespace: "shop".into(), name: "empty".into(), ..Service::default() },
            ],
            ..Status::default()
        }
    }

    #[test]
    fn the_page_has_all_that_is_wrong() {
        let page = text(&status(), true, Palette::plain());
        for wanted in [
            "control plane  version 0.1.0, up 10 min",
            "version 0123456789ab, 1 document in force, 1 not yet enforced, 1 rejected (1 of them",
            "CA for another 3650 days",
            "shop/cart  yes    refuses 1, holds 0  23 h left",
            "the sidecar of shop/cart refuses mesh (version 9): bad",
            "accepted, not yet enforced:\n  CachePolicy shop/c",
            "--> gone.yaml:3:5",
            "none, plain text",
            "shop/empty",
        ] {
            assert!(page.contains(wanted), "{wanted:?} in\n{page}");
        }
    }

    #[test]
    fn an_empty_mesh_is_said_to_be_empty() {
        let page = text(&Status::default(), true, Palette::plain());
        assert!(page.contains("no sidecar is connected") && page.contains("no service is known"), "{page}");
    }

    #[test]
    fn spans_have_one_unit() {
        assert_eq!([span(5), span(600), span(7200), span(86_400 * 3)], ["5 s", "10 min", "2 h", "3 days"]);
    }
}
