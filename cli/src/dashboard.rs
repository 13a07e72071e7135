//! `weft dashboard`: where the running mesh shows itself.

use crate::{exit::Failure, mesh, terminal};
use anyhow::{Context, bail};
use std::process::{Command, Stdio};

/// Print the address of the running mesh's dashboard, or open it.
#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "Examples:
  weft dashboard
  weft dashboard --open
  weft dashboard --mesh 10.0.0.5:15080")]
pub(crate) struct Options {
    #[command(flatten)]
    target: mesh::Target,
    /// Open it in a browser.
    #[arg(long)]
    open: bool,
}

/// Runs the verb.
pub(crate) fn run(options: &Options) -> Result<(), Failure> {
    let address = options.target.address()?;
    // An address that nobody answers at would only be confusing.
    mesh::status(&address)?;
    let url = format!("http://{address}/");
    terminal::out(&format!("{url}\n"));
    if options.open {
        open(&url)?;
    }
    Ok(())
}

fn open(url: &str) -> anyhow::Result<()> {
    let opener = if cfg!(target_os = "macos") { "open" } else { "xdg-open" };
    let status = Command::new(opener)
        .arg(url)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .with_context(|| format!("`{opener}` cannot be started; open {url} yourself"))?;
    if !status.success() {
        bail!("`{opener}` could not open a browser; open {url} yourself");
    }
    Ok(())
}
