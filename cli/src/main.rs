//! The weft command: runs a mesh on a laptop, checks policy, shows what is going on, and carries both programs.

mod cache;
mod check;
mod completion;
mod dashboard;
mod documents;
mod excerpt;
mod exit;
mod explain;
mod mesh;
mod routes;
mod schema;
mod status;
mod terminal;
mod up;

use clap::{CommandFactory, Parser, Subcommand};
use exit::Failure;
use std::process::ExitCode;
use terminal::{ColourChoice, Palette, Style};

/// Weft, a service mesh: run one on this machine, check its policy, look into it.
#[derive(Parser, Debug)]
#[command(
    name = "weft",
    version,
    disable_help_subcommand = true,
    after_help = "Start here:
  weft up examples/shop     a whole mesh on this machine; Ctrl-C stops it
  weft status               in another terminal: what runs
  weft check DIRECTORY      all errors in a directory of policy

Exit codes: 0 success, 1 failure, 64 usage, 65 bad data."
)]
struct Cli {
    /// When to use colour: `always`, `never`, or `auto` (on a terminal, unless NO_COLOR is set or TERM is `dumb`).
    #[arg(
        long,
        global = true,
        value_enum,
        default_value_t,
        value_name = "WHEN",
        hide_possible_values = true
    )]
    color: ColourChoice,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand, Debug)]
enum Verb {
    Up(up::Options),
    Check(check::Options),
    Status(status::Options),
    Routes(routes::Options),
    Explain(explain::Options),
    Cache(cache::Options),
    Dashboard(dashboard::Options),
    Schema(schema::Options),
    /// Run a sidecar: the same as the program weft-sidecar.
    Sidecar(Box<weft_sidecar::Settings>),
    /// Run the control plane: the same as the program weft-control-plane.
    ControlPlane(Box<weft_control_plane::Program>),
    Completion(completion::Options),
    /// Stops what is left over when the `weft up` that started it is gone; reads process groups from standard input.
    #[command(hide = true)]
    Reap,
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are no errors; they are printed to standard output.
            let usage = error.use_stderr();
            let _ = error.print();
            return ExitCode::from(if usage { exit::USAGE } else { 0 });
        }
    };
    let colour = cli.color;
    let result = match cli.verb {
        Verb::Up(options) => up::run(&options, colour),
        Verb::Check(options) => check::run(&options, colour),
        Verb::Status(options) => status::run(&options, colour),
        Verb::Routes(options) => routes::run(&options, colour),
        Verb::Explain(options) => explain::run(&options, colour),
        Verb::Cache(options) => cache::run(&options, colour),
        Verb::Dashboard(options) => dashboard::run(&options),
        Verb::Schema(options) => schema::run(&options),
        Verb::Sidecar(settings) => return weft_sidecar::run(*settings),
        Verb::ControlPlane(program) => return program.run(),
        Verb::Completion(options) => {
            completion::run(&options, Cli::command());
            Ok(())
        }
        Verb::Reap => {
            up::orphans::reap(std::io::stdin().lock());
            Ok(())
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            say(&failure, colour);
            failure.code()
        }
    }
}

fn say(failure: &Failure, colour: ColourChoice) {
    let text = failure.to_string();
    if !text.is_empty() {
        terminal::err(&format!("{} {text}\n", Palette::stderr(colour).paint(Style::Error, "weft:")));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }
}
