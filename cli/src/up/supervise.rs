//! Keeps one program running: starts it, logs what it prints, starts it again after a crash, stops it in its turn.

use super::{
    backoff::Backoff,
    lines::LineCutter,
    log::{Log, Source},
    orphans::Orphans,
    process_group,
};
use rustix::process::Signal;
use std::{
    ffi::OsString,
    path::PathBuf,
    process::{ExitStatus, Stdio},
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    process::{Child, Command},
    sync::watch,
};

/// How far stopping has come. Later is greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    /// Everything runs.
    Running,
    /// Applications stop.
    StopApplications,
    /// Sidecars drain: nobody calls through them any more.
    StopSidecars,
    /// The control plane stops.
    StopControlPlane,
    /// Whatever is left is killed.
    Kill,
}

/// What a program is, which decides when it stops and whether a clean exit is fine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// The control plane.
    ControlPlane,
    /// A sidecar.
    Sidecar,
    /// An application: it may come to an end of its own.
    Application,
}

impl Role {
    /// The phase in which it stops.
    fn stops_in(self) -> Phase {
        match self {
            Self::Application => Phase::StopApplications,
            Self::Sidecar => Phase::StopSidecars,
            Self::ControlPlane => Phase::StopControlPlane,
        }
    }
}

/// How a program is started.
pub(super) struct Launch {
    /// What it is.
    pub(super) role: Role,
    /// Under which name its lines are logged.
    pub(super) source: Source,
    /// How messages call it, as in `sidecar of shop/cart`.
    pub(super) title: String,
    /// The program.
    pub(super) program: OsString,
    /// Its arguments.
    pub(super) arguments: Vec<OsString>,
    /// Its directory.
    pub(super) workdir: PathBuf,
    /// Variables set for it, beside the surrounding ones that `withhold` lets through.
    pub(super) env: Vec<(String, String)>,
    /// Which surrounding variables it does not get.
    pub(super) withhold: fn(&str) -> bool,
    /// Done before every start, as writing a fresh join token.
    pub(super) prepare: Option<Box<dyn Fn() -> anyhow::Result<()>>>,
}

/// What every supervised program shares.
#[derive(Clone)]
pub(super) struct Surroundings {
    /// The log.
    pub(super) log: Log,
    /// Who stops what is left if we are killed.
    pub(super) orphans: Orphans,
    /// How far stopping has come.
    pub(super) phase: watch::Receiver<Phase>,
    /// How long a program may take to stop before it is killed.
    pub(super) stop_timeout: Duration,
}

/// How a program is doing, for those who wait for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Health {
    /// Not started yet, or between a crash and the next start.
    Down,
    /// It runs.
    Up,
    /// It came to an end of its own and is not started again.
    Finished,
}

/// Runs the program until its turn to stop has come and it is gone with everything it started.
pub(super) async fn supervise(launch: Launch, mut around: Surroundings, health: watch::Sender<Health>) {
    let mut backoff = Backoff::default();
    let stop = launch.role.stops_in();
    loop {
        if *around.phase.borrow() >= stop {
            return;
        }
        let began = Instant::now();
        let end = match start(&launch) {
            Ok(mut child) => {
                health.send_replace(Health::Up);
                let end = watch_over(&launch, &mut child, &mut around).await;
                health.send_replace(Health::Down);
                match end {
                    End::Stopped => return,
                    End::Itself(status) => describe(status),
                    End::Lost(error) => format!("cannot be waited for: {error}"),
                }
            }
            Err(error) => format!("cannot be started: {error:#}"),
        };
        if *around.phase.borrow() >= stop {
            return;
        }
        if launch.role == Role::Application && end == CLEAN {
            health.send_replace(Health::Finished);
            around.log.say(format!("{} ended by itself ({CLEAN}) and is not started again", launch.title));
            return;
        }
        let wait = backoff.after(began.elapsed(), fastrand::f64());
        let times = if backoff.crashes() > 1 {
            format!(", {} times in a row", backoff.crashes())
        } else {
            String::new()
        };
        around.log.say(format!(
            "{} {}{times}; starting it again in {:.1} s",
            launch.title,
            if end.starts_with("cannot") { end } else { format!("stopped ({end})") },
            wait.as_secs_f64()
        ));
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = reached(&mut around.phase, stop) => return,
        }
    }
}

/// Longer than anything is waited for.
const FOREVER: Duration = Duration::from_secs(24 * 3600);

const CLEAN: &str = "exit code 0";

fn start(launch: &Launch) -> anyhow::Result<Child> {
    if let Some(prepare) = &launch.prepare {
        prepare()?;
    }
    let mut command = Command::new(&launch.program);
    command
        .args(&launch.arguments)
        .current_dir(&launch.workdir)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // A group of its own: the terminal's Ctrl-C reaches only us, and we stop things in order.
        .process_group(0);
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_none_or(launch.withhold) {
            command.env_remove(name);
        }
    }
    command.envs(launch.env.iter().map(|(name, value)| (name, value)));
    command.spawn().map_err(|error| {
        let program = launch.program.to_string_lossy();
        if launch.workdir.is_dir() {
            anyhow::anyhow!("`{program}` in {}: {error}", launch.workdir.display())
        } else {
            anyhow::anyhow!("its directory {} does not exist", launch.workdir.display())
        }
    })
}

enum End {
    /// We stopped it.
    Stopped,
    /// It ended.
    Itself(ExitStatus),
    /// The system does not tell how it fares.
    Lost(std::io::Error),
}

/// Logs what the program prints until it ends or has been stopped. Nothing of its process group is left afterwards.
async fn watch_over(launch: &Launch, child: &mut Child, around: &mut Surroundings) -> End {
    // There is an id for as long as nobody has waited for the child.
    let group = child.id().unwrap_or(0);
    around.orphans.add(group);
    let mut output = tokio::task::JoinSet::new();
    if let Some(out) = child.stdout.take() {
        output.spawn_local(follow(out, launch.source.clone(), around.log.clone()));
    }
    if let Some(err) = child.stderr.take() {
        output.spawn_local(follow(err, launch.source.clone(), around.log.clone()));
    }
    let stop = launch.role.stops_in();
    let ended = tokio::select! {
        status = child.wait() => Some(status),
        () = reached(&mut around.phase, stop) => None,
    };
    let end = match ended {
        Some(Ok(status)) => End::Itself(status),
        Some(Err(error)) => End::Lost(error),
        None => {
            process_group::signal(group, Signal::TERM);
            let gone = async {
                let _ = child.wait().await;
                process_group::ended(group, FOREVER).await
            };
            tokio::select! {
                _ = gone => {}
                () = tokio::time::sleep(around.stop_timeout) => {
                    around.log.say(format!(
                        "{} did not stop within {} s and is killed",
                        launch.title,
                        around.stop_timeout.as_secs()
                    ));
                }
                () = reached(&mut around.phase, Phase::Kill) => {}
            }
            End::Stopped
        }
    };
    // Its own children may hold its ports and its output.
    process_group::signal(group, Signal::KILL);
    let _ = child.wait().await;
    around.orphans.remove(group);
    // The last lines are still in the pipes. Somebody outside the group may hold them open, so this wait is bounded.
    let rest = async { while output.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(Duration::from_millis(500), rest).await;
    end
}

async fn follow(mut pipe: impl AsyncRead + Unpin, source: Source, log: Log) {
    let mut cutter = LineCutter::default();
    let mut buffer = vec![0u8; 16 * 1024];
    let mut lines = Vec::new();
    loop {
        match pipe.read(&mut buffer).await {
            Ok(0) | Err(_) => break,
            Ok(length) => cutter.push(&buffer[..length], |line| lines.push(line)),
        }
        for line in lines.drain(..) {
            log.line(&source, line).await;
        }
    }
    if let Some(line) = cutter.finish() {
        log.line(&source, line).await;
    }
}

/// Returns once stopping has come at least this far, or nobody is left who could say so.
pub(super) async fn reached(phase: &mut watch::Receiver<Phase>, wanted: Phase) {
    let _ = phase.wait_for(|p| *p >= wanted).await;
}

/// How a program ended, for people.
pub(super) fn describe(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => match Signal::from_named_raw(signal) {
            Some(named) => format!("signal {signal}, {}", signal_name(named)),
            None => format!("signal {signal}"),
        },
        (None, None) => status.to_string(),
    }
}

fn signal_name(signal: Signal) -> &'static str {
    match signal {
        Signal::KILL => "SIGKILL",
        Signal::TERM => "SIGTERM",
        Signal::SEGV => "SIGSEGV",
        Signal::ABORT => "SIGABRT",
        Signal::INT => "SIGINT",
        Signal::BUS => "SIGBUS",
        Signal::ILL => "SIGILL",
        Signal::HUP => "SIGHUP",
        Signal::PIPE => "SIGPIPE",
        _ => "see `kill -l`",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;
    use tokio::task::LocalSet;

    struct Scene {
        directory: tempfile::TempDir,
        phase: watch::Sender<Phase>,
        around: Surroundings,
        said: crate::up::log::Recording,
    }

    fn scene() -> Scene {
        let (phase, stopping) = watch::channel(Phase::Running);
        let (log, said) = Log::recording();
        let around = Surroundings {
            log,
            orphans: Orphans::nowhere().expect("a list"),
            phase: stopping,
            stop_timeout: Duration::from_millis(400),
        };
        Scene { directory: tempfile::tempdir().expect("a directory"), phase, around, said }
    }

    fn shell(script: &str, directory: &Path) -> Launch {
        Launch {
            role: Role::Application,
            source: Source::Application("app".into(), 0),
            title: "shop/app".into(),
            program: "sh".into(),
            arguments: vec!["-c".into(), script.into()],
            workdir: directory.into(),
            env: vec![("GREETING".into(), "hello".into())],
            withhold: |name| name == "HOME",
            prepare: None,
        }
    }

    async fn until(mut condition: impl FnMut() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while !condition() {
            assert!(Instant::now() < deadline, "it never came to that");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    #[tokio::test]
    async fn a_crashed_program_is_started_again_and_the_log_says_so() {
        let mut scene = scene();
        let launch = shell("echo run >> runs; echo $GREETING $HOME.; exit 3", scene.directory.path());
        let (health, _keep) = watch::channel(Health::Down);
        let runs = scene.directory.path().join("runs");
        LocalSet::new()
            .run_until(async {
                let task = tokio::task::spawn_local(supervise(launch, scene.around.clone(), health));
                until(|| std::fs::read_to_string(&runs).is_ok_and(|r| r.lines().count() >= 2)).await;
                scene.phase.send_replace(Phase::StopApplications);
                task.await.expect("ends");
            })
            .await;
        let text = scene.said.text();
        assert!(text.contains("hello ."), "its own variables, and none that are withheld: {text}");
        assert!(text.contains("shop/app stopped (exit code 3); starting it again in 0."), "{text}");
    }

    #[tokio::test]
    async fn a_program_that_ends_well_is_not_started_again() {
        let mut scene = scene();
        let (health, kept) = watch::channel(Health::Down);
        let launch = shell("printf 'last words'", scene.directory.path());
        LocalSet::new().run_until(supervise(launch, scene.around.clone(), health)).await;
        assert_eq!(*kept.borrow(), Health::Finished);
        let text = scene.said.text();
        assert!(text.contains("last words") && text.contains("is not started again"), "{text}");
    }

    #[tokio::test]
    async fn stopping_takes_along_what_the_program_started() {
        let scene = scene();
        let launch = shell("sleep 60 & echo $! > child; wait", scene.directory.path());
        let (health, _keep) = watch::channel(Health::Down);
        let child = scene.directory.path().join("child");
        let pid = |path: &Path| std::fs::read_to_string(path).ok().and_then(|t| t.trim().parse::<i32>().ok());
        LocalSet::new()
            .run_until(async {
                let task = tokio::task::spawn_local(supervise(launch, scene.around.clone(), health));
                until(|| pid(&child).is_some()).await;
                scene.phase.send_replace(Phase::StopApplications);
                task.await.expect("ends");
            })
            .await;
        let pid = rustix::process::Pid::from_raw(pid(&child).expect("a child")).expect("a pid");
        until(|| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
            rustix::process::test_kill_process(pid).is_err() || stat.is_ok_and(|s| s.contains(") Z "))
        })
        .await;
    }

    #[tokio::test]
    async fn one_that_does_not_stop_is_killed_when_its_time_is_over() {
        let mut scene = scene();
        let launch = shell("trap '' TERM; touch up; while :; do sleep 0.05; done", scene.directory.path());
        let (health, _keep) = watch::channel(Health::Down);
        let up = scene.directory.path().join("up");
        let began = LocalSet::new()
            .run_until(async {
                let task = tokio::task::spawn_local(supervise(launch, scene.around.clone(), health));
                until(|| up.exists()).await;
                let began = Instant::now();
                scene.phase.send_replace(Phase::StopApplications);
                task.await.expect("ends");
                began
            })
            .await;
        assert!(began.elapsed() >= Duration::from_millis(400));
        assert!(scene.said.text().contains("is killed"));
    }

    #[tokio::test]
    async fn a_second_signal_kills_at_once() {
        let mut scene = scene();
        scene.around.stop_timeout = Duration::from_secs(60);
        let launch = shell("trap '' TERM; touch up; while :; do sleep 0.05; done", scene.directory.path());
        let (health, _keep) = watch::channel(Health::Down);
        let up = scene.directory.path().join("up");
        let set = LocalSet::new();
        let work = set.run_until(async {
            let task = tokio::task::spawn_local(supervise(launch, scene.around.clone(), health));
            until(|| up.exists()).await;
            scene.phase.send_replace(Phase::StopApplications);
            tokio::time::sleep(Duration::from_millis(50)).await;
            scene.phase.send_replace(Phase::Kill);
            task.await.expect("ends");
        });
        tokio::time::timeout(Duration::from_secs(30), work).await.expect("long before its time is over");
    }

    #[tokio::test]
    async fn what_cannot_be_started_says_why() {
        let mut scene = scene();
        let mut missing = shell("", scene.directory.path());
        missing.program = "no-such-program".into();
        let mut nowhere = shell("", &scene.directory.path().join("nowhere"));
        nowhere.title = "shop/nowhere".into();
        let (health, _keep) = watch::channel(Health::Down);
        LocalSet::new()
            .run_until(async {
                let first =
                    tokio::task::spawn_local(supervise(missing, scene.around.clone(), health.clone()));
                let second = tokio::task::spawn_local(supervise(nowhere, scene.around.clone(), health));
                tokio::time::sleep(Duration::from_millis(200)).await;
                scene.phase.send_replace(Phase::StopApplications);
                first.await.expect("ends");
                second.await.expect("ends");
            })
            .await;
        let text = scene.said.text();
        assert!(text.contains("shop/app cannot be started: `no-such-program` in "), "{text}");
        assert!(text.contains("/nowhere does not exist"), "{text}");
    }
}
