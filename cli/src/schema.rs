//! `weft schema`: the JSON Schema of a kind of document, for editors.

use crate::{exit::Failure, terminal};
use weft_config::document::Kind;

/// Print the JSON Schema of a kind of document, so that an editor completes and checks the YAML.
#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "Examples:
  weft schema Workload > workload.schema.json
  weft schema --list

In an editor with the YAML language server, the first line of a file chooses its schema:
  # yaml-language-server: $schema=./workload.schema.json")]
pub(crate) struct Options {
    /// The kind, as it stands in a document's `kind` (upper or lower case).
    #[arg(required_unless_present = "list")]
    kind: Option<String>,
    /// List the kinds there are.
    #[arg(long, conflicts_with = "kind")]
    list: bool,
}

/// Runs the verb.
pub(crate) fn run(options: &Options) -> Result<(), Failure> {
    let Some(name) = &options.kind else {
        for kind in Kind::ALL {
            terminal::out(&format!("{:<20} {}\n", kind.as_str(), weft_config::schema::summary(kind)));
        }
        return Ok(());
    };
    let Some(kind) = Kind::ALL.into_iter().find(|k| k.as_str().eq_ignore_ascii_case(name)) else {
        let known: Vec<&str> = Kind::ALL.iter().map(|k| k.as_str()).collect();
        return Err(Failure::Usage(format!("`{name}` is no kind; there are {}", known.join(", "))));
    };
    let schema = weft_config::schema::schema(kind);
    terminal::out(&format!("{schema:#}\n"));
    Ok(())
}
