//! `weft completion`: completion scripts for shells.

use crate::terminal;
use clap_complete::Shell;

/// Print a completion script for a shell.
#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "Examples:
  weft completion bash > ~/.local/share/bash-completion/completions/weft
  weft completion zsh > \"${fpath[1]}/_weft\"
  weft completion fish > ~/.config/fish/completions/weft.fish")]
pub(crate) struct Options {
    /// The shell.
    #[arg(value_enum)]
    shell: Shell,
}

/// Runs the verb.
pub(crate) fn run(options: &Options, mut command: clap::Command) {
    let mut script = Vec::new();
    clap_complete::generate(options.shell, &mut command, "weft", &mut script);
    terminal::out(&String::from_utf8_lossy(&script));
}
