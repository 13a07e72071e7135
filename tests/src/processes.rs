//! Real processes: the programs of the mesh, the tools and scripts that call through it, and a bound on each wait.

pub mod application;

use serde_json::Value;
use std::{
    collections::VecDeque,
    env, fs,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};
use tempfile::TempDir;

/// How long anything may take that takes milliseconds when nothing is wrong: test machines are slow and shared.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// Lines of a process's output that are kept.
const LINES: usize = 5_000;

/// A running process whose output is read, and which ends with this value.
pub struct Process {
    name: String,
    child: Child,
    output: Arc<Output>,
    readers: Vec<thread::JoinHandle<()>>,
}

#[derive(Default)]
struct Output {
    lines: Mutex<VecDeque<String>>,
    more: Condvar,
}

impl Output {
    fn lines(&self) -> MutexGuard<'_, VecDeque<String>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn follow(self: &Arc<Self>, from: impl Read + Send + 'static) -> thread::JoinHandle<()> {
        let output = self.clone();
        thread::spawn(move || {
            for line in BufReader::new(from).split(b'\n') {
                let Ok(line) = line else { return };
                let mut lines = output.lines();
                if lines.len() == LINES {
                    lines.pop_front();
                }
                lines.push_back(String::from_utf8_lossy(&line).into_owned());
                output.more.notify_all();
            }
        })
    }
}

impl Process {
    /// Starts `command`. Its standard input stays open for as long as this value lives.
    pub fn start(name: &str, command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{name} cannot be started: {error}"));
        let output = Arc::new(Output::default());
        let stdout = child.stdout.take().map(|stdout| output.follow(stdout));
        let stderr = child.stderr.take().map(|stderr| output.follow(stderr));
        let readers = stdout.into_iter().chain(stderr).collect();
        Self { name: name.to_owned(), child, output, readers }
    }

    /// Waits for a line of output of which `find` makes something.
    pub fn wait_for<T>(&mut self, what: &str, find: impl Fn(&str) -> Option<T>) -> T {
        let until = Instant::now() + PATIENCE;
        let output = self.output.clone();
        loop {
            // Before looking: after its end nothing is said any more.
            let over = self.has_ended() || Instant::now() > until;
            let lines = output.lines();
            if let Some(found) = lines.iter().find_map(|line| find(line)) {
                return found;
            }
            if over {
                drop(lines);
                panic!("{} never said {what}; it said:\n{}", self.name, self.log());
            }
            drop(output.more.wait_timeout(lines, Duration::from_millis(50)));
        }
    }

    /// True if it has ended; then all that it said has been read.
    fn has_ended(&mut self) -> bool {
        let ended = matches!(self.child.try_wait(), Ok(Some(_)));
        if ended {
            self.readers.drain(..).for_each(|reader| drop(reader.join()));
        }
        ended
    }

    /// Everything it has said so far.
    pub fn log(&self) -> String {
        self.output.lines().iter().fold(String::new(), |all, line| all + line + "\n")
    }

    /// True while it runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Sends it SIGTERM.
    pub fn terminate(&self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)
            .unwrap_or_else(|error| panic!("{} cannot be told to stop: {error}", self.name));
    }

    /// Waits until it ends.
    pub fn wait(&mut self, limit: Duration) -> ExitStatus {
        let Some(status) = wait(&mut self.child, limit) else {
            panic!("{} still runs after {limit:?}; it said:\n{}", self.name, self.log());
        };
        self.has_ended();
        status
    }

    /// The memory it holds now, and the most it ever held, in KiB.
    pub fn memory(&self) -> (u64, u64) {
        let path = format!("/proc/{}/status", self.child.id());
        let status = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let number = line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok());
            number.unwrap_or_else(|| panic!("{path} has no {name}"))
        };
        (field("VmRSS:"), field("VmHWM:"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            let log = self.log();
            let tail: Vec<&str> = log.lines().rev().take(40).collect();
            say(&format!("--- the end of what {} said", self.name));
            tail.iter().rev().for_each(|line| say(line));
        }
    }
}

fn wait(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    let until = Instant::now() + limit;
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Some(status),
            Ok(None) if Instant::now() < until => thread::sleep(Duration::from_millis(5)),
            Ok(None) => return None,
            Err(error) => panic!("a child cannot be waited for: {error}"),
        }
    }
}

/// What a command that has ended left behind.
#[derive(Debug)]
pub struct Finished {
    /// Its exit code; `None` if a signal ended it.
    pub code: Option<i32>,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Finished {
    /// Itself, if the command succeeded.
    #[track_caller]
    pub fn ok(self) -> Self {
        assert_eq!(self.code, Some(0), "stdout:\n{}\nstderr:\n{}", self.stdout, self.stderr);
        self
    }
}

/// Runs a command to its end with `input` on its standard input; kills it and panics if it takes longer than `limit`.
pub fn run_with(command: &mut Command, input: Stdio, limit: Duration) -> Finished {
    let mut child = command
        .stdin(input)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?} cannot be started: {error}"));
    let stdout = child.stdout.take().map(read_all);
    let stderr = child.stderr.take().map(read_all);
    let ended = wait(&mut child, limit);
    if ended.is_none() {
        let _ = child.kill();
        let _ = child.wait();
    }
    let text = |reader: Option<thread::JoinHandle<Vec<u8>>>| {
        let bytes = reader.and_then(|reader| reader.join().ok()).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    };
    let (stdout, stderr) = (text(stdout), text(stderr));
    let Some(status) = ended else {
        panic!("{command:?} takes longer than {limit:?}\nstdout:\n{stdout}\nstderr:\n{stderr}");
    };
    Finished { code: status.code(), stdout, stderr }
}

/// Runs a command to its end.
pub fn run(command: &mut Command, limit: Duration) -> Finished {
    run_with(command, Stdio::null(), limit)
}

fn read_all(mut from: impl Read + Send + 'static) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = from.read_to_end(&mut bytes);
        bytes
    })
}

/// A program of ours, as this package builds it beside its tests.
pub fn program(name: &str) -> &'static Path {
    static KEPT: OnceLock<Kept> = OnceLock::new();
    let kept = KEPT.get_or_init(Kept::take);
    if name == "weft-sidecar" { &kept.sidecar } else { &kept.control_plane }
}

/// The programs under names of their own, so that a build that runs meanwhile changes nothing under the tests.
struct Kept {
    sidecar: PathBuf,
    control_plane: PathBuf,
}

impl Kept {
    fn take() -> Self {
        let tests = env::current_exe().unwrap_or_else(|error| panic!("where this test is: {error}"));
        // target/<profile>/deps/<test>
        let built = tests.ancestors().nth(2).unwrap_or(Path::new("."));
        let keep = |program: &str| {
            let from = built.join(format!("{program}-under-test"));
            // One place for each test binary: these are large, and the next run of it takes the place of this one.
            let stem = tests.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let to = built.join("kept").join(stem).join(program);
            let copied = fs::create_dir_all(to.parent().unwrap_or(built)).and_then(|()| {
                let _ = fs::remove_file(&to);
                fs::hard_link(&from, &to)
            });
            copied.unwrap_or_else(|error| {
                panic!(
                    "{} is needed and cannot be kept as {}: {error}; `cargo test` builds it, or `cargo build -p weft-tests`",
                    from.display(),
                    to.display()
                )
            });
            to
        };
        Self { sidecar: keep("weft-sidecar"), control_plane: keep("weft-control-plane") }
    }
}

/// A tool of the machine that a test drives. Without it the test says so and ends, except where `CI` is set: there
/// everything has to be installed.
pub fn tool(name: &str, package: &str) -> Option<&'static str> {
    let places = env::var_os("PATH").unwrap_or_default();
    let found = env::split_paths(&places).map(|place| place.join(name)).find(|path| path.is_file());
    match found {
        Some(path) => Some(Box::leak(path.to_string_lossy().into_owned().into_boxed_str())),
        None => missing(&format!("`{name}` (Debian package {package})")),
    }
}

/// A Python with these modules: `WEFT_TEST_PYTHON`, or `python3`. Skips as [`tool`] does.
pub fn python(modules: &[&str]) -> Option<String> {
    let python = env::var("WEFT_TEST_PYTHON").unwrap_or_else(|_| "python3".into());
    let import = modules.iter().fold("import sys".to_owned(), |all, module| all + ", " + module);
    let works = Command::new(&python).args(["-c", &import]).stderr(Stdio::null()).status();
    if works.is_ok_and(|status| status.success()) {
        return Some(python);
    }
    missing(&format!(
        "`{python}` with {} (pip install {})",
        modules.join(", "),
        modules.join(" ").replace("grpc", "grpcio")
    ))
}

fn missing<T>(what: &str) -> Option<T> {
    assert!(env::var_os("CI").is_none_or(|ci| ci.is_empty()), "CI must have {what}");
    say(&format!("SKIPPED: this test needs {what}, which is not installed here"));
    None
}

/// Tells whoever runs the tests.
#[allow(clippy::print_stderr)]
pub fn say(text: &str) {
    eprintln!("{text}");
}

/// Where the Python scripts are.
pub fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("interop").join(name)
}

/// Starts a script that prints `listening PORT`, and gives that port.
pub fn service(python: &str, name: &str) -> (Process, u16) {
    let mut process = Process::start(name, Command::new(python).arg(script(name)));
    let port =
        process.wait_for("where it listens", |line| line.strip_prefix("listening ")?.trim().parse().ok());
    (process, port)
}

/// The answer to a plain GET, without any library: status and body.
pub fn get(from: SocketAddr, path: &str) -> std::io::Result<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&from, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {from}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    Ok((status, body.to_owned()))
}

/// A control plane of its own, in a directory of its own.
pub struct Mesh {
    directory: TempDir,
    /// Its process.
    pub control_plane: Process,
    /// Where sidecars connect.
    pub push: SocketAddr,
    /// Where it is scraped.
    pub metrics: SocketAddr,
    started: AtomicUsize,
}

/// A sidecar and where it listens.
pub struct Sidecar {
    /// Its process.
    pub process: Process,
    /// Where the application's calls are taken.
    pub outbound: SocketAddr,
    /// Where peers' calls are taken.
    pub inbound: SocketAddr,
    /// Its admin interface.
    pub admin: SocketAddr,
    /// Where it is scraped.
    pub metrics: SocketAddr,
}

impl Mesh {
    /// Starts a control plane with this policy.
    pub fn start(policy: &str) -> Self {
        let directory = tempfile::tempdir().unwrap_or_else(|error| panic!("no temporary directory: {error}"));
        write(&directory.path().join("policy/policy.yaml"), policy);
        let mut control_plane = Process::start(
            "the control plane",
            Command::new(program("weft-control-plane"))
                .args(["--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0", "--dashboard", "127.0.0.1:0"])
                .arg("--policy")
                .arg(directory.path().join("policy"))
                .arg("--state-dir")
                .arg(directory.path().join("control-plane")),
        );
        let ready = control_plane.wait_for("that it is ready", |line| {
            line.contains("the control plane is ready").then(|| line.to_owned())
        });
        let field = |name: &str| {
            let value = ready.split(name).nth(1).and_then(|rest| rest.split_whitespace().next());
            let address = value.map(|v| v.trim_start_matches("http://").trim_end_matches("/metrics"));
            address
                .and_then(|a| a.parse().ok())
                .unwrap_or_else(|| panic!("no {name} in the control plane's `{ready}`"))
        };
        let (push, metrics) = (field("sidecars="), field("metrics="));
        Self { directory, control_plane, push, metrics, started: AtomicUsize::new(0) }
    }

    /// Starts the sidecar of a workload in the namespace `shop`, and waits until it is ready.
    pub fn sidecar(&self, workload: &str, apps: &[(u16, u16)]) -> Sidecar {
        self.sidecar_with(workload, apps, &[])
    }

    /// The same for one of several instances, which all have the service account `account`.
    pub fn replica(&self, workload: &str, account: &str, apps: &[(u16, u16)]) -> Sidecar {
        self.start_sidecar(workload, account, apps, &[])
    }

    /// The same as [`Self::sidecar`] with more flags.
    pub fn sidecar_with(&self, workload: &str, apps: &[(u16, u16)], flags: &[&str]) -> Sidecar {
        self.start_sidecar(workload, workload, apps, flags)
    }

    fn start_sidecar(&self, workload: &str, account: &str, apps: &[(u16, u16)], flags: &[&str]) -> Sidecar {
        let state = self.directory.path().join("control-plane");
        let token = run(
            Command::new(program("weft-control-plane"))
                .args(["token", "--namespace", "shop", "--service-account", account, "--state-dir"])
                .arg(&state),
            PATIENCE,
        )
        .ok();
        // Each begins with nothing of what another one of the same workload has learnt.
        let started = self.started.fetch_add(1, Ordering::Relaxed);
        let token_file = self.directory.path().join(format!("{workload}.token"));
        write(&token_file, &token.stdout);
        let mut command = Command::new(program("weft-sidecar"));
        command
            .args(["--namespace", "shop", "--workload", workload, "--service-account", account])
            .args(["--control-plane", &self.push.to_string(), "--ca-file"])
            .arg(state.join("ca.pem"))
            .arg("--join-token-file")
            .arg(token_file)
            .arg("--state-dir")
            .arg(self.directory.path().join(format!("{workload}.state-{started}")))
            .args(flags);
        let sidecar = Sidecar::start(workload, &mut command, apps);
        sidecar.ready();
        sidecar
    }
}

impl Sidecar {
    /// Starts a sidecar on free ports, beside applications given as service port and local port.
    pub fn start(name: &str, command: &mut Command, apps: &[(u16, u16)]) -> Self {
        for flag in ["--outbound", "--inbound", "--admin", "--metrics"] {
            command.args([flag, "127.0.0.1:0"]);
        }
        for (port, local) in apps {
            command.args(["--app", &format!("{port}=127.0.0.1:{local}")]);
        }
        command.arg("--log-json");
        let mut process = Process::start(&format!("the sidecar of {name}"), command);
        let at = process.wait_for("where it listens", |line| {
            let line: Value = serde_json::from_str(line).ok()?;
            (line["message"] == "started").then_some(line)
        });
        let field = |name: &str| {
            at[name].as_str().and_then(|a| a.parse().ok()).unwrap_or_else(|| panic!("no {name} in `{at}`"))
        };
        let (outbound, inbound) = (field("outbound"), field("inbound"));
        Self { outbound, inbound, admin: field("admin"), metrics: field("metrics"), process }
    }

    /// Waits until it says that it is ready.
    pub fn ready(&self) {
        let until = Instant::now() + PATIENCE;
        loop {
            match get(self.admin, "/ready") {
                Ok((200, _)) => return,
                answer if Instant::now() > until => {
                    panic!("{} is not ready: {answer:?}\n{}", self.process.name, self.process.log())
                }
                _ => thread::sleep(Duration::from_millis(10)),
            }
        }
    }
}

/// Writes a file, making its directory.
pub fn write(path: &Path, text: &str) {
    let made = path.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| fs::write(path, text));
    made.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}
