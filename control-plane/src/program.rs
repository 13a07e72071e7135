//! The control plane as a program: its command line and its signals. `weft control-plane` is the very same.

use crate::{
    Settings, issuer, settings,
    token::{Claims, TokenKey},
};
use clap::{Args, Subcommand};
use std::{
    io::{IsTerminal, Write},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};
use tokio::signal::unix::{SignalKind, signal};

/// Usage errors, as sysexits.h has them.
const EXIT_USAGE: u8 = 64;

/// Weft's control plane: reads policy, keeps the registry, issues certificates and pushes all of it to sidecars
#[derive(Args, Debug)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Program {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    settings: Settings,
    /// What is logged: a level, or tracing's filter syntax
    #[arg(long, env = "WEFT_LOG", value_name = "FILTER", default_value = "info", global = true)]
    log: String,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Print a join token, with which a sidecar that has no certificate yet gets one
    Token {
        /// Namespace of the identity
        #[arg(long, value_name = "NAME", default_value = "default")]
        namespace: String,
        /// Service account of the identity
        #[arg(long, value_name = "NAME", default_value = "default")]
        service_account: String,
        /// Only this workload may use it; any of the service account's by default
        #[arg(long, value_name = "NAME")]
        workload: Option<String>,
        /// How long it is good
        #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = settings::duration)]
        ttl: Duration,
        /// The control plane's state directory
        #[arg(long, env = "WEFT_CP_STATE_DIR", value_name = "DIR", default_value = ".weft/control-plane")]
        state_dir: PathBuf,
    },
    /// Print an operator's token, with which the API lets you change something: purge the cache
    OperatorToken {
        /// How long it is good
        #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = settings::duration)]
        ttl: Duration,
        /// The control plane's state directory
        #[arg(long, env = "WEFT_CP_STATE_DIR", value_name = "DIR", default_value = ".weft/control-plane")]
        state_dir: PathBuf,
    },
    /// Replace the CA of the control plane that runs on this state directory, without a connection lost
    RotateCa {
        /// The control plane's state directory
        #[arg(long, env = "WEFT_CP_STATE_DIR", value_name = "DIR", default_value = ".weft/control-plane")]
        state_dir: PathBuf,
        /// Trust domain of every identity
        #[arg(long, env = "WEFT_CP_TRUST_DOMAIN", value_name = "NAME", default_value = "weft.local")]
        trust_domain: String,
    },
}

impl Program {
    /// Runs it to its end.
    pub fn run(self) -> ExitCode {
        execute(self)
    }
}

fn execute(program: Program) -> ExitCode {
    let filter = match tracing_subscriber::EnvFilter::try_new(&program.log) {
        Ok(filter) => filter,
        Err(error) => {
            complain(&format!("--log {}: {error}", program.log));
            return ExitCode::from(EXIT_USAGE);
        }
    };
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .init();
    // Everything here names its provider; this is for libraries that ask for a default one.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let done = match program.command {
        None => serve(program.settings),
        Some(Command::Token { namespace, service_account, workload, ttl, state_dir }) => {
            let claims = Claims::for_next(ttl, namespace, service_account, workload);
            TokenKey::open_or_create(&state_dir).and_then(|key| key.issue(&claims)).and_then(|token| say(&token))
        }
        Some(Command::OperatorToken { ttl, state_dir }) => TokenKey::open_or_create(&state_dir)
            .and_then(|key| key.issue_operator(ttl))
            .and_then(|token| say(&token)),
        Some(Command::RotateCa { state_dir, trust_domain }) => {
            issuer::prepare_rotation(&state_dir, &trust_domain).and_then(|next| {
                say(&format!(
                    "{} is ready. The running control plane adds it to the trust bundle now, signs with it once every \
                     connected sidecar trusts it, and drops the old CA when all it signed has expired.",
                    next.display()
                ))
            })
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn serve(settings: Settings) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let done = runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let (asked, stop) = tokio::sync::oneshot::channel();
        tokio::spawn(async move {
            let mut asked = Some(asked);
            loop {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                }
                match asked.take() {
                    Some(asked) => drop(asked.send(())),
                    // Asked twice: whoever asks does not want to wait.
                    None => std::process::exit(1),
                }
            }
        });
        crate::run(settings, async {
            let _ = stop.await;
        })
        .await
    });
    // A thread that reads policy must not hold up the end.
    runtime.shutdown_timeout(Duration::from_secs(2));
    done
}

fn say(text: &str) -> anyhow::Result<()> {
    Ok(writeln!(std::io::stdout(), "{text}")?)
}

fn complain(text: &str) {
    let _ = writeln!(std::io::stderr(), "weft-control-plane: {text}");
}
