//! The program `weft-control-plane`.

use clap::Parser;
use std::process::ExitCode;
use weft_control_plane::Program;

/// Weft's control plane: reads policy, keeps the registry, issues certificates and pushes all of it to sidecars
#[derive(Parser)]
#[command(name = "weft-control-plane", version)]
struct Arguments {
    #[command(flatten)]
    program: Program,
}

fn main() -> ExitCode {
    match Arguments::try_parse() {
        Ok(arguments) => arguments.program.run(),
        Err(error) => {
            let _ = error.print();
            // 64 is EX_USAGE of sysexits.h; asking for help or the version is no misuse.
            ExitCode::from(if error.use_stderr() { 64 } else { 0 })
        }
    }
}
