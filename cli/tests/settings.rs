//! `docs/settings.md` says of every flag of both programs what their `--help` says; WEFT_UPDATE=1 writes it anew.

use clap::{Args, Command};
use std::{fmt::Write, path::Path};

fn table(out: &mut String, title: &str, intro: &str, command: &Command) {
    writeln!(out, "## {title}\n\n{intro}\n").expect("a string");
    writeln!(out, "| flag | environment | default | meaning |\n|---|---|---|---|").expect("a string");
    for flag in command.get_arguments().filter(|flag| !flag.is_hide_set()) {
        let Some(long) = flag.get_long() else { continue };
        let takes_value = flag.get_action().takes_values();
        let value = flag.get_value_names().filter(|_| takes_value).and_then(|names| names.first());
        let name = value.map_or_else(|| format!("--{long}"), |value| format!("--{long} {value}"));
        let env = flag.get_env().map_or_else(|| "-".into(), |env| format!("`{}`", env.to_string_lossy()));
        let defaults: Vec<_> = flag.get_default_values().iter().map(|v| v.to_string_lossy()).collect();
        let default = if defaults.is_empty() || !takes_value {
            "-".to_owned()
        } else {
            format!("`{}`", defaults.join(" "))
        };
        let help = flag.get_help().map(ToString::to_string).unwrap_or_default();
        writeln!(out, "| `{name}` | {env} | {default} | {} |", help.replace('\n', " ").replace('|', "\\|"))
            .expect("a string");
    }
    out.push('\n');
}

fn page() -> String {
    let mut out = String::from(
        "# Settings\n\nWhat a process is told when it starts. Everything else is policy\n\
         ([policy-reference.md](policy-reference.md)) and changes while it runs. Every flag has an environment twin; the\n\
         flag wins. `weft sidecar` and `weft control-plane` take the same flags as the two programs.\n\n\
         Exit codes: 0 done or drained, 1 failure or calls cut by a stop, 64 wrong usage, 65 wrong data.\n\
         SIGTERM drains, a second one stops at once. Made by `WEFT_UPDATE=1 cargo test -p weft-cli --test settings`.\n\n",
    );
    let sidecar = weft_sidecar::Settings::augment_args(Command::new("weft-sidecar"));
    table(
        &mut out,
        "weft-sidecar",
        "Give either `--control-plane` (with `--ca-file`, and `--join-token-file` for the first start) or `--policy`.",
        &sidecar,
    );
    let control_plane = weft_control_plane::Settings::augment_args(Command::new("weft-control-plane"));
    table(
        &mut out,
        "weft-control-plane",
        "`weft-control-plane token` prints a join token, `weft-control-plane rotate-ca` replaces the CA of a running one.",
        &control_plane,
    );
    out.truncate(out.trim_end().len());
    out.push('\n');
    out
}

#[test]
fn every_flag_is_documented() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/settings.md");
    let page = page();
    if std::env::var_os("WEFT_UPDATE").is_some() {
        std::fs::write(&path, &page).expect("docs/settings.md can be written");
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        written == page,
        "docs/settings.md is out of date: WEFT_UPDATE=1 cargo test -p weft-cli --test settings"
    );
}
