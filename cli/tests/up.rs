//! `weft up` with everything real: control plane, sidecars, applications, signals.
#![allow(missing_docs, reason = "tests")]

use rustix::process::{Pid, Signal, kill_process};
use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

const LONG: Duration = Duration::from_secs(60);

/// This very program is also the applications that the tests run; without the variable it is a test like any other.
#[test]
fn as_an_application() {
    let Ok(role) = std::env::var("TEST_APPLICATION") else { return };
    let port: u16 = std::env::var("PORT").expect("PORT").parse().expect("a port");
    let listener = TcpListener::bind(("127.0.0.1", port)).expect("the port is free");
    let _ = writeln!(std::io::stderr(), "listening");
    for stream in listener.incoming() {
        let Ok(mut stream) = stream else { continue };
        let role = role.clone();
        std::thread::spawn(move || {
            let mut head = Vec::new();
            let mut byte = [0u8; 1];
            while !head.ends_with(b"\r\n\r\n") {
                match stream.read(&mut byte) {
                    Ok(1) => head.push(byte[0]),
                    _ => return,
                }
            }
            if head.starts_with(b"GET /crash ") {
                std::process::exit(3);
            }
            let body = if role == "front" {
                call_through_the_mesh()
            } else {
                format!("hello from {}", std::env::var("WEFT_WORKLOAD").expect("WEFT_WORKLOAD"))
            };
            let _ = write!(
                stream,
                "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
                body.len()
            );
        });
    }
}

/// What an application in any language does with `http_proxy`.
fn call_through_the_mesh() -> String {
    let proxy = std::env::var("http_proxy").expect("http_proxy");
    let address: SocketAddr = proxy.trim_start_matches("http://").parse().expect("an address");
    let mut stream = TcpStream::connect(address).expect("the sidecar listens");
    write!(stream, "GET http://back:8080/ HTTP/1.1\r\nhost: back:8080\r\nconnection: close\r\n\r\n")
        .expect("sent");
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    answer
}

struct Mesh {
    home: tempfile::TempDir,
    child: Child,
    log: Arc<Mutex<String>>,
}

impl Mesh {
    fn start() -> Self {
        let home = tempfile::tempdir().expect("a directory");
        let program = std::env::current_exe().expect("this program");
        let workload = |name: &str, more: &str| {
            format!(
                "apiVersion: weft.mesh/v1alpha1
kind: Workload
metadata: {{ name: {name}, namespace: demo, annotations: {{ weft.mesh/open: / }} }}
spec:
  service: {name}
  ports: [{{ port: 8080, appProtocol: http }}]
  command: [{program:?}, as_an_application, --exact, --nocapture]
  env: {{ TEST_APPLICATION: {name} }}
{more}"
            )
        };
        let policy = home.path().join("policy");
        std::fs::create_dir(&policy).expect("made");
        std::fs::write(policy.join("front.yaml"), workload("front", "")).expect("written");
        std::fs::write(policy.join("back.yaml"), workload("back", "  replicas: 2\n")).expect("written");
        let mut child = weft(home.path())
            .args(["up", "policy", "--dashboard-port", "0", "-v"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("starts");
        let log = Arc::new(Mutex::new(String::new()));
        gather(child.stdout.take().expect("piped"), log.clone());
        gather(child.stderr.take().expect("piped"), log.clone());
        Self { home, child, log }
    }

    fn text(&self) -> String {
        self.log.lock().expect("the log").clone()
    }

    /// Waits until the log has this after what it had before.
    fn says(&self, wanted: &str, after: usize) {
        let deadline = Instant::now() + LONG;
        while !self.text()[after..].contains(wanted) {
            assert!(Instant::now() < deadline, "it never said {wanted:?}:\n{}", self.text());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The address of the front application, from the summary.
    fn front(&self) -> SocketAddr {
        self.says("in another terminal", 0);
        let text = self.text();
        let line = text.lines().find(|l| l.starts_with("  front ")).expect("a link");
        line.split("http://").nth(1).expect("a URL").trim_end_matches('/').parse().expect("an address")
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).expect("a pid")).expect("a pid");
        kill_process(pid, signal).expect("sent");
    }

    fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + LONG;
        loop {
            if let Some(status) = self.child.try_wait().expect("waited") {
                return status;
            }
            assert!(Instant::now() < deadline, "it never ended:\n{}", self.text());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The processes that still have something to do with this mesh.
    fn survivors(&self) -> Vec<String> {
        let mut found = Vec::new();
        let home = self.home.path().to_string_lossy().into_owned();
        for process in std::fs::read_dir("/proc").expect("/proc").flatten() {
            let path: PathBuf = process.path();
            let Ok(environment) = std::fs::read(path.join("environ")) else { continue };
            let arguments = std::fs::read(path.join("cmdline")).unwrap_or_default();
            let mark = format!("MESH_TEST_MARK={home}");
            // A zombie has no arguments any more.
            if !arguments.is_empty() && String::from_utf8_lossy(&environment).contains(&mark) {
                found.push(String::from_utf8_lossy(&arguments).replace('\0', " "));
            }
        }
        found
    }

    fn ends_without_survivors(&self) {
        let deadline = Instant::now() + Duration::from_secs(15);
        while !self.survivors().is_empty() {
            assert!(Instant::now() < deadline, "still there: {:?}\n{}", self.survivors(), self.text());
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn weft(home: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weft"));
    for (name, _) in std::env::vars() {
        if name.starts_with("WEFT_") {
            command.env_remove(name);
        }
    }
    // Not withheld from anybody, so every process of this mesh can be told by it.
    command.env("MESH_TEST_MARK", home).current_dir(home).stdin(Stdio::null());
    command
}

fn gather(pipe: impl Read + Send + 'static, log: Arc<Mutex<String>>) {
    std::thread::spawn(move || {
        for line in BufReader::new(pipe).lines() {
            let Ok(line) = line else { return };
            let mut log = log.lock().expect("the log");
            log.push_str(&line);
            log.push('\n');
        }
    });
}

fn get(address: SocketAddr, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    write!(stream, "GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

fn eventually(address: SocketAddr, wanted: &str, mesh: &Mesh) {
    let deadline = Instant::now() + LONG;
    loop {
        let answer = get(address, "/").unwrap_or_default();
        if answer.contains(wanted) {
            return;
        }
        assert!(Instant::now() < deadline, "{answer}\n{}", mesh.text());
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn a_mesh_runs_tells_heals_and_stops() {
    let mut mesh = Mesh::start();
    let front = mesh.front();
    eventually(front, "hello from back-0", &mesh);
    eventually(front, "hello from back-1", &mesh);

    // Another terminal in the same directory finds it.
    let status = weft(mesh.home.path()).arg("status").output().expect("runs");
    let page = String::from_utf8(status.stdout).expect("utf-8");
    for sidecar in ["demo/front", "demo/back-0", "demo/back-1"] {
        assert!(page.contains(sidecar), "{page}");
    }
    let routes = weft(mesh.home.path())
        .args(["routes", "--from", "demo", "GET", "http://back:8080/"])
        .output()
        .expect("runs");
    let page = String::from_utf8(routes.stdout).expect("utf-8");
    assert!(page.contains("demo/back:8080  (2 endpoints)"), "{page}{}", mesh.text());

    // What crashes is started again.
    let before = mesh.text().len();
    let _ = get(front, "/crash");
    mesh.says("demo/front stopped (exit code 3); starting it again", before);
    eventually(front, "hello from back-", &mesh);

    // A broken file is shown with its place and changes nothing; the mended one is in force.
    let before = mesh.text().len();
    let file = mesh.home.path().join("policy/route.yaml");
    let route = |weight: &str| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{ name: back, namespace: demo }}
spec:
  parentRefs: [{{ group: \"\", kind: Service, name: back }}]
  rules:
    - backendRefs:
        - {{ name: back, port: 8080, {weight}: 1 }}
"
        )
    };
    std::fs::write(&file, route("weigth")).expect("written");
    mesh.says("policy/route.yaml:8:37", before);
    mesh.says("did you mean `weight`?", before);
    eventually(front, "hello from back-", &mesh);
    let before = mesh.text().len();
    std::fs::write(&file, route("weight")).expect("written");
    mesh.says("is in force", before);

    mesh.signal(Signal::INT);
    assert!(mesh.wait().success(), "{}", mesh.text());
    assert!(mesh.text().contains("everything has stopped"));
    mesh.ends_without_survivors();
    assert!(get(front, "/").is_err(), "its port is free again");
    assert!(!mesh.home.path().join(".weft/policy/run.json").exists());
}

#[test]
fn nothing_outlives_a_killed_weft_up() {
    let mut mesh = Mesh::start();
    let front = mesh.front();
    assert!(mesh.survivors().len() > 6, "{:?}", mesh.survivors());
    mesh.signal(Signal::KILL);
    mesh.wait();
    mesh.ends_without_survivors();
    assert!(get(front, "/").is_err());
}

#[test]
fn what_the_caches_keep_is_shown_and_purged_from_another_terminal() {
    let mesh = Mesh::start();
    let policy = "apiVersion: weft.mesh/v1alpha1
kind: CachePolicy
metadata: { name: pages, namespace: demo }
spec: { targetRefs: [{ kind: Service, name: back }], ttl: { default: 600s } }
";
    std::fs::write(mesh.home.path().join("policy/cache.yaml"), policy).expect("written");
    let front = mesh.front();
    eventually(front, "weft; hit", &mesh);
    let run = |words: &[&str]| {
        let output = weft(mesh.home.path()).arg("cache").args(words).output().expect("runs");
        let text = |bytes| String::from_utf8(bytes).expect("utf-8");
        (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
    };
    let (code, stats, _) = run(&["stats"]);
    assert!(code == 0 && stats.contains("demo/pages") && stats.contains("demo/back"), "{stats}");
    let (code, said, _) = run(&["purge", "http://back:8080/"]);
    assert_eq!(code, 0, "{said}");
    assert!(
        said.starts_with("purged  url http://back.demo:8080/\n        1 answer in 3 sidecars, "),
        "{said}"
    );
    assert!(said.contains("demo/front  1"), "{said}");
    let (code, said, _) = run(&["purge", "--tag", "none", "--json"]);
    assert!(code == 0 && said.contains("\"complete\": true") && said.contains("\"answers\": 0"), "{said}");
    for (wrong, why) in [
        (&["purge"][..], "required"),
        (&["purge", "--tag", "a b"], "no tag"),
        (&["purge", "http://bakc:8080/"], "no service of the mesh is called `bakc`"),
        (&["purge", "--all", "--mesh", "127.0.0.1:1"], "operator's token"),
    ] {
        let (code, _, said) = run(wrong);
        assert!(code == 64 && said.contains(why), "{wrong:?}: {code} {said}");
    }
    let token = mesh.home.path().join("token");
    std::fs::write(&token, "weft1op.e30.AAAA").expect("written");
    let (code, _, said) = run(&["purge", "--all", "--token-file", &token.to_string_lossy()]);
    assert!(code == 1 && said.contains("401") && said.contains("another control plane's key"), "{said}");
}
