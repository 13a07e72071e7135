//! The `weft-sidecar` program.

use clap::Parser;
use std::process::ExitCode;

/// The data plane beside one workload: takes its inbound and outbound traffic, secures it with mTLS, applies policy.
#[derive(Parser)]
#[command(name = "weft-sidecar", version)]
struct Arguments {
    #[command(flatten)]
    settings: weft_sidecar::Settings,
}

fn main() -> ExitCode {
    match Arguments::try_parse() {
        Ok(arguments) => weft_sidecar::run(arguments.settings),
        Err(error) => {
            let _ = error.print();
            // 64 is EX_USAGE; asking for help or the version is no misuse.
            ExitCode::from(if error.use_stderr() { 64 } else { 0 })
        }
    }
}
