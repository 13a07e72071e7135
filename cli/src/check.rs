//! `weft check`: every finding about a directory of policy, or about the policy of a running mesh.

use crate::{
    documents::{self, Policy},
    excerpt::Sources,
    exit::Failure,
    mesh,
    terminal::{self, ColourChoice, Palette, Style},
};
use std::path::PathBuf;

/// Check policy: all errors at once, each with its place, the line in question, and the cure.
///
/// Without a directory, the running mesh is asked what its control plane has found.
#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "Examples:
  weft check examples/shop
  weft check .                          in a commit hook: exit code 65 if there is an error
  weft check --mesh 127.0.0.1:15080     what a running mesh has found

Exit codes: 0 no error (there may be warnings), 65 errors, 64 usage, 1 anything else.")]
pub(crate) struct Options {
    /// The directory of YAML (or one file of it).
    #[arg(value_name = "DIRECTORY", conflicts_with = "mesh")]
    directory: Option<PathBuf>,
    #[command(flatten)]
    target: mesh::Target,
}

/// Runs the verb.
pub(crate) fn run(options: &Options, colour: ColourChoice) -> Result<(), Failure> {
    let policy = match &options.directory {
        Some(directory) => documents::read(directory)?,
        None => documents::found_by_mesh(&options.target.address()?)?,
    };
    let palette = Palette::stdout(colour);
    terminal::out(&text(&policy, palette));
    if documents::errors(&policy.diagnostics) > 0 { Err(Failure::Data(String::new())) } else { Ok(()) }
}

fn text(policy: &Policy, palette: Palette) -> String {
    let mut text = documents::render(&policy.diagnostics, &mut Sources::default(), palette);
    if !text.is_empty() {
        text.push('\n');
    }
    if !policy.pending.is_empty() {
        text.push_str("accepted, not yet enforced:\n");
        for pending in &policy.pending {
            text.push_str(&format!("  {pending}\n"));
        }
        text.push('\n');
    }
    let errors = documents::errors(&policy.diagnostics);
    let warnings = policy.diagnostics.len() - errors;
    let plural =
        |count: usize, one: &str| if count == 1 { format!("1 {one}") } else { format!("{count} {one}s") };
    let verdict = match errors {
        0 => palette.paint(Style::Good, "no error"),
        count => palette.paint(Style::Error, &plural(count, "error")),
    };
    text.push_str(&format!("{}, {verdict}", documents::count(policy.found)));
    if warnings > 0 {
        text.push_str(&format!(", {}", palette.paint(Style::Warning, &plural(warnings, "warning"))));
    }
    text.push('\n');
    text
}
