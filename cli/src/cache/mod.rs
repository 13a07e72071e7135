//! `weft cache`: what the response caches of the running mesh hold, and how to make them forget it.

mod purge;
mod stats;

use crate::{exit::Failure, terminal::ColourChoice};

/// Look into the response caches of the running mesh, and purge what they keep.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Options {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(clap::Subcommand, Clone, Debug)]
enum Verb {
    Purge(purge::Options),
    Stats(stats::Options),
}

/// Runs the verb.
pub(crate) fn run(options: &Options, colour: ColourChoice) -> Result<(), Failure> {
    match &options.verb {
        Verb::Purge(options) => purge::run(options, colour),
        Verb::Stats(options) => stats::run(options, colour),
    }
}

/// `1 answer`, `2 answers`.
fn count(number: u64, what: &str) -> String {
    if number == 1 { format!("1 {what}") } else { format!("{number} {what}s") }
}
