//! `weft up`: runs a whole mesh on this machine, from one directory of YAML.

mod backoff;
mod build;
mod environment;
mod lines;
mod log;
mod notices;
pub(crate) mod orphans;
mod plan;
mod ports;
mod process_group;
mod programs;
mod readiness;
pub(crate) mod state;
mod stopping;
mod summary;
mod supervise;

use crate::{
    documents::{self, Policy},
    excerpt::Sources,
    exit::Failure,
    terminal::{self, ColourChoice, Palette, Style},
};
use anyhow::{Context, anyhow};
use log::{Layout, Log};
use notices::Notices;
use orphans::Orphans;
use plan::{ControlPlane, Instance, Wanted};
use ports::PortPlan;
use programs::House;
use state::{RunFile, RunningInstance, RunningSidecar, State};
use std::{
    collections::BTreeSet,
    io::IsTerminal,
    path::{Path, PathBuf},
    time::Duration,
};
use stopping::{Crew, Signals};
use supervise::{Phase, Surroundings};
use weft_config::document::Document;

/// Run a mesh on this machine: control plane, sidecars and applications, from one directory of YAML.
///
/// Every Workload with a `command` is run behind a sidecar of its own, with PORT (where to listen), http_proxy (the
/// way into the mesh) and WEFT_* set. Policy is live: save a file and traffic follows. No root, no containers; nothing
/// is written outside the state directory. Ctrl-C stops everything in order, a second Ctrl-C at once.
#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "Examples:
  weft up examples/shop                 run the demo shop
  weft up . --timestamps -v             with times, and with all that sidecars have to say
  weft up mesh --log weft_sidecar=debug,info

A Workload with the annotation `weft.mesh/open: /path` gets a link in the summary.
MeshPolicy's `spec.up.build` is run before anything starts.")]
pub(crate) struct Options {
    /// The directory of YAML.
    #[arg(value_name = "DIRECTORY")]
    directory: PathBuf,
    /// Where keys, certificates and last known policy are kept [default: .weft/<name of DIRECTORY>].
    #[arg(long, env = "WEFT_STATE_DIR", value_name = "DIRECTORY")]
    state_dir: Option<PathBuf>,
    /// Where the secrets that policy names lie, in a folder NAMESPACE/NAME each [default: secrets in DIRECTORY].
    #[arg(long, env = "WEFT_SECRETS_DIR", value_name = "DIRECTORY")]
    secrets_dir: Option<PathBuf>,
    /// Port of the dashboard on 127.0.0.1; another one is taken if it is in use, and with 0 in any case.
    #[arg(long, default_value_t = 15080, value_name = "PORT")]
    dashboard_port: u16,
    /// Do not run the build step.
    #[arg(long)]
    no_build: bool,
    /// Show all that control plane and sidecars log, not only warnings; twice for debugging. Also shows the build.
    #[arg(short, long, action = clap::ArgAction::Count)]
    verbose: u8,
    /// Log filter for control plane and sidecars, in place of -v.
    #[arg(long, env = "WEFT_LOG", value_name = "FILTER")]
    log: Option<String>,
    /// Put the time before each line of the log.
    #[arg(long)]
    timestamps: bool,
    /// How long applications may take until they listen, before the summary is shown without them.
    #[arg(long, default_value = "60s", value_name = "TIME", value_parser = duration)]
    ready_timeout: Duration,
    /// How long each program may take to stop before it is killed.
    #[arg(long, default_value = "10s", value_name = "TIME", value_parser = duration)]
    stop_timeout: Duration,
    /// Stop by itself after this long, for tests and demonstrations.
    #[arg(long, value_name = "TIME", value_parser = duration)]
    exit_after: Option<Duration>,
}

/// How long the control plane may take until it answers.
const CONTROL_PLANE_START: Duration = Duration::from_secs(20);
/// How long sidecars may take until they are ready.
const SIDECAR_START: Duration = Duration::from_secs(20);

/// Runs the verb.
pub(crate) fn run(options: &Options, colour: ColourChoice) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("no runtime")?;
    let result = tokio::task::LocalSet::new().block_on(&runtime, up(options, colour));
    // A build's or an application's output may still be held open by somebody; nothing waits for that.
    runtime.shutdown_background();
    result
}

async fn up(options: &Options, colour: ColourChoice) -> Result<(), Failure> {
    let mut signals = Signals::new().context("signals cannot be handled")?;
    let cwd = std::env::current_dir().context("the current directory cannot be read")?;
    let directory = directory(&options.directory)?;
    let policy = documents::read(&options.directory)?;
    let wanted = what_to_run(&policy, Palette::stderr(colour))?;
    let shown = policy.diagnostics.iter().map(documents::identity).collect();
    let executable = std::env::current_exe().context("this program's own file cannot be found")?;
    let state_dir = options.state_dir.clone().unwrap_or_else(|| State::default_directory(&cwd, &directory));
    let state = State::open(&state_dir, &directory)?;
    let orphans = Orphans::start(&executable).context("the reaper of orphans cannot be started")?;

    if let Some(step) = &wanted.build
        && !options.no_build
    {
        let display = build::Display {
            palette: Palette::stderr(colour),
            terminal: std::io::stderr().is_terminal(),
            verbose: options.verbose > 0,
        };
        build::run(step, display, &orphans, signals.next()).await?;
    }

    let mut ports = PortPlan::new(state.path());
    let control_plane = ControlPlane {
        dashboard: ports.preferably(options.dashboard_port)?,
        listen: ports.any()?,
        metrics: ports.any()?,
    };
    let instances = wanted.place(&mut ports)?;
    let palette = Palette::stdout(colour);
    let layout = Layout::new(instances.iter().map(|i| &*i.name), palette, options.timestamps);
    let (log, writer) = Log::start(layout).context("the log cannot be started")?;

    let filter = options.log.as_deref().unwrap_or(match options.verbose {
        0 => "warn",
        1 => "info",
        _ => "info,weft_sidecar=debug,weft_control_plane=debug",
    });
    // What is wrong with policy is shown here with its source line, so the control plane need not say it as well.
    let filter = format!("{filter},weft_control_plane::findings=off");

    let secrets = options.secrets_dir.clone().unwrap_or_else(|| directory.join("secrets"));
    let house = House {
        executable: &executable,
        state: &state,
        cwd: &cwd,
        policy: &options.directory,
        secrets: &secrets,
        filter: &filter,
        drain: options.stop_timeout.saturating_sub(Duration::from_secs(1)).max(Duration::from_secs(1)),
        control_plane,
    };
    let (phase, stopping) = tokio::sync::watch::channel(Phase::Running);
    let around =
        Surroundings { log: log.clone(), orphans, phase: stopping, stop_timeout: options.stop_timeout };
    let mut crew = Crew::new(phase, around);
    let mesh = Mesh { options, house, wanted: &wanted, instances: &instances, shown, log: &log, palette };
    ports.release();
    let result = tokio::select! {
        result = mesh.run(&mut crew) => result,
        () = signals.next() => Ok(()),
        () = elapsed(options.exit_after) => Ok(()),
    };
    crew.stop(&mut signals, &log).await;
    drop(state);
    drop(log);
    writer.finish();
    result
}

struct Mesh<'a> {
    options: &'a Options,
    house: House<'a>,
    wanted: &'a Wanted,
    instances: &'a [Instance],
    /// The findings that were shown before the start.
    shown: BTreeSet<String>,
    log: &'a Log,
    palette: Palette,
}

impl Mesh<'_> {
    /// Starts everything and then tells of policy for as long as the mesh runs.
    async fn run(&self, crew: &mut Crew) -> Result<(), Failure> {
        let control_plane = self.house.control_plane;
        crew.start(self.house.control_plane()?);
        let dashboard = control_plane.dashboard.to_string();
        if let Err(error) = readiness::answers(&dashboard, "/api/status", CONTROL_PLANE_START).await {
            return Err(Failure::Other(anyhow!(
                "the control plane does not answer within {} s ({error}); the log above says why",
                CONTROL_PLANE_START.as_secs()
            )));
        }
        let mut notices = Notices::new(
            &dashboard,
            &self.options.directory,
            self.wanted,
            self.shown.clone(),
            self.log,
            self.palette,
        );
        notices.look().await;

        for (colour, instance) in self.instances.iter().enumerate() {
            if let Some(launch) = self.house.sidecar(instance, colour)? {
                crew.start(launch);
            }
        }
        for missing in readiness::sidecars(self.instances, SIDECAR_START).await {
            self.log.say(format!("not there after {} s: {missing}", SIDECAR_START.as_secs()));
        }
        let mut health = Vec::with_capacity(self.instances.len());
        for (colour, instance) in self.instances.iter().enumerate() {
            health.push(crew.start(self.house.application(instance, colour)?));
        }
        // From here on other terminals can find the mesh, even while a slow application still starts.
        self.house.state.announce(&self.run_file())?;
        let missing = tokio::select! {
            missing = readiness::applications(self.instances, &health, self.options.ready_timeout) => missing,
            never = notices.follow() => match never {},
        };
        for missing in missing {
            self.log.say(format!("not ready after {} s: {missing}", self.options.ready_timeout.as_secs()));
        }
        let elsewhere = self.wanted.elsewhere.iter().cloned();
        self.log.block(summary::summary(&control_plane, self.instances, elsewhere, self.palette));
        match notices.follow().await {}
    }

    fn run_file(&self) -> RunFile {
        let ControlPlane { listen, metrics, dashboard } = self.house.control_plane;
        let instance = |i: &Instance| RunningInstance {
            namespace: i.namespace.to_string(),
            name: i.name.to_string(),
            application: i.ports.iter().map(|p| p.application).collect(),
            sidecar: i.sidecar.map(|s| RunningSidecar {
                outbound: s.outbound,
                admin: s.admin,
                metrics: s.metrics,
            }),
        };
        RunFile {
            pid: std::process::id(),
            directory: self
                .options
                .directory
                .canonicalize()
                .unwrap_or_else(|_| self.options.directory.clone()),
            dashboard,
            metrics,
            control_plane: listen,
            instances: self.instances.iter().map(instance).collect(),
        }
    }
}

fn directory(given: &Path) -> Result<PathBuf, Failure> {
    let found = given
        .canonicalize()
        .map_err(|error| Failure::Usage(format!("{} cannot be found: {error}", given.display())))?;
    if !found.is_dir() {
        return Err(Failure::Usage(format!(
            "{} is not a directory; give the one that holds the YAML",
            given.display()
        )));
    }
    Ok(found)
}

/// Shows what is wrong, and says what is to be run, if anything can be.
fn what_to_run(policy: &Policy, palette: Palette) -> Result<Wanted, Failure> {
    terminal::err(&documents::render(&policy.diagnostics, &mut Sources::default(), palette));
    if policy.documents().next().is_none() {
        return Err(Failure::Data(if policy.diagnostics.is_empty() {
            "there is no policy document here (*.yaml, *.yml); `weft up --help` says what belongs here".into()
        } else {
            "no document here is valid; nothing is started".into()
        }));
    }
    let wanted = wanted(policy);
    if !wanted.problems.is_empty() {
        for problem in &wanted.problems {
            terminal::err(&format!("{}: {problem}\n", palette.paint(Style::Error, "error")));
        }
        return Err(Failure::Data("nothing is started".into()));
    }
    if wanted.instances.is_empty() {
        return Err(Failure::Data(
            "no Workload here has a `command`, so there is nothing to run; add one, as in `command: [\"./server\"]`".into(),
        ));
    }
    let errors = documents::errors(&policy.diagnostics);
    if errors > 0 {
        terminal::err(&format!(
            "{} what is valid is run without them\n",
            palette.paint(Style::Warning, "despite errors,")
        ));
    }
    Ok(wanted)
}

fn wanted(policy: &Policy) -> Wanted {
    let mut wanted = Wanted::default();
    for located in policy.documents() {
        let folder = Path::new(&*located.source.file).parent().unwrap_or(Path::new(""));
        let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        // Programs are started in this folder, wherever `weft up` itself was started.
        let folder = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
        match &located.document {
            Document::Workload(workload) => wanted.add_workload(workload, &folder),
            Document::MeshPolicy(mesh) => wanted.add_mesh_policy(mesh, &folder),
            _ => {}
        }
    }
    wanted
}

async fn elapsed(time: Option<Duration>) {
    match time {
        Some(time) => tokio::time::sleep(time).await,
        None => std::future::pending().await,
    }
}

/// `10s`, `500ms`, `2m`; a bare number is seconds.
fn duration(text: &str) -> Result<Duration, String> {
    let expected = || format!("`{text}` is no time; expected for example 500ms, 10s or 2m");
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let number: f64 = number.parse().map_err(|_| expected())?;
    let seconds = match unit {
        "ms" => number / 1000.0,
        "" | "s" => number,
        "m" => number * 60.0,
        "h" => number * 3600.0,
        _ => return Err(expected()),
    };
    Duration::try_from_secs_f64(seconds)
        .ok()
        .filter(|d| *d <= Duration::from_secs(30 * 24 * 3600))
        .ok_or_else(expected)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_with_their_unit() {
        assert_eq!(duration("10s"), Ok(Duration::from_secs(10)));
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("1.5m"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("7"), Ok(Duration::from_secs(7)));
        for bad in ["", "s", "-1s", "10 s", "1w", "1e9h", "999999h"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
