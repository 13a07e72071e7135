//! The programs as processes: signals, exit codes, memory, what Prometheus thinks of their metrics, static mode.

use std::{
    fs,
    net::TcpListener,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};
use tempfile::TempDir;
use weft_tests::processes::{
    Mesh, PATIENCE, Process, Sidecar, application::Application, get, program, run, run_with, say, tool, write,
};

const POLICY: &str = "
apiVersion: weft.mesh/v1alpha1
kind: MeshPolicy
metadata: { name: mesh, namespace: shop }
spec: { mtls: { mode: strict } }
---
apiVersion: weft.mesh/v1alpha1
kind: Workload
metadata: { name: caller, namespace: shop }
spec: { serviceAccount: caller }
---
apiVersion: weft.mesh/v1alpha1
kind: Workload
metadata: { name: web, namespace: shop }
spec: { service: web, serviceAccount: web, ports: [{ port: 8080, appProtocol: http }] }
---
# Large bodies take a busy machine longer than calls usually may.
apiVersion: weft.mesh/v1alpha1
kind: TrafficPolicy
metadata: { name: web, namespace: shop }
spec: { targetRefs: [{ kind: Service, name: web }], timeouts: { request: 300s } }
";

fn pair() -> (Mesh, Application, Sidecar, Sidecar) {
    let mesh = Mesh::start(POLICY);
    let app = Application::start();
    let web = mesh.sidecar("web", &[(8080, app.port)]);
    let caller = mesh.sidecar("caller", &[]);
    (mesh, app, web, caller)
}

fn curl(caller: &Sidecar, path: &str) -> Command {
    let mut curl = Command::new("curl");
    curl.args(["-q", "--silent", "--show-error", "--max-time", "240", "--noproxy", "", "--proxy"])
        .arg(format!("http://{}", caller.outbound))
        .arg(format!("http://web.shop:8080{path}"));
    curl
}

/// Waits until a request that takes long is at the application.
fn is_under_way(app: &Application) {
    let until = Instant::now() + PATIENCE;
    while app.slow() == 0 {
        assert!(Instant::now() < until, "no request came");
        thread::sleep(Duration::from_millis(10));
    }
}

fn has_curl() -> bool {
    tool("curl", "curl").is_some()
}

#[test]
fn metrics_are_as_prometheus_wants_them() {
    let Some(promtool) = tool("promtool", "prometheus") else { return };
    let (mesh, _app, web, caller) = pair();
    if has_curl() {
        run(&mut curl(&caller, "/counted"), PATIENCE).ok();
        run(curl(&caller, "/").args(["http://nobody.shop:1/"]), PATIENCE).ok();
    }
    for (what, from) in
        [("the caller", caller.metrics), ("the callee", web.metrics), ("the control plane", mesh.metrics)]
    {
        let (status, metrics) = get(from, "/metrics").expect("scraped");
        assert_eq!(status, 200, "{what}");
        assert!(
            metrics.lines().filter(|line| line.starts_with("# TYPE weft_")).count() >= 5,
            "{what}: {metrics}"
        );
        let file = tempfile::NamedTempFile::new().expect("a file");
        fs::write(file.path(), &metrics).expect("written");
        let input = Stdio::from(fs::File::open(file.path()).expect("the file"));
        let checked = run_with(Command::new(promtool).args(["check", "metrics"]), input, PATIENCE);
        assert_eq!(
            (checked.code, checked.stdout.trim(), checked.stderr.trim()),
            (Some(0), "", ""),
            "{what}:\n{metrics}"
        );
    }
}

#[test]
fn sigterm_finishes_what_is_in_flight_and_exits_with_0() {
    if !has_curl() {
        return;
    }
    let (_mesh, app, mut web, mut caller) = pair();
    // Warm, so that a connection stands between the two and an idle one stays pooled.
    run(&mut curl(&caller, "/warm"), PATIENCE).ok();
    for draining in ["callee", "caller"] {
        let mut slow = Process::start("curl", curl(&caller, "/slow/1500").args(["-w", "\n%{http_code}\n"]));
        if draining == "callee" {
            is_under_way(&app);
        }
        let sidecar = if draining == "callee" { &mut web } else { &mut caller };
        if draining == "caller" {
            // The callee has gone: this request is answered at once, there is nothing to finish.
            slow.wait_for("503", |line| (line == "503" || line == "502").then_some(()));
            sidecar.process.terminate();
        } else {
            sidecar.process.terminate();
            slow.wait_for("200", |line| (line == "200").then_some(()));
            assert!(slow.log().contains("at last"), "{}", slow.log());
        }
        assert_eq!(sidecar.process.wait(PATIENCE).code(), Some(0), "{draining}: {}", sidecar.process.log());
        let log = sidecar.process.log();
        assert!(log.contains("everything in flight was finished"), "{draining}: {log}");
    }
}

#[test]
fn a_second_sigterm_ends_at_once_and_says_what_was_cut() {
    if !has_curl() {
        return;
    }
    let (_mesh, app, _web, mut caller) = pair();
    let _slow = Process::start("curl", &mut curl(&caller, "/slow/60000"));
    is_under_way(&app);
    caller.process.terminate();
    caller.process.wait_for("that it drains", |line| line.contains("draining").then_some(()));
    thread::sleep(Duration::from_millis(700));
    assert!(
        caller.process.is_running(),
        "it did not wait for the request in flight: {}",
        caller.process.log()
    );
    let began = Instant::now();
    caller.process.terminate();
    let ended = caller.process.wait(PATIENCE);
    // A drain that nobody hurries takes 30 seconds.
    assert!(began.elapsed() < Duration::from_secs(20), "it took {:?}", began.elapsed());
    assert_eq!(ended.code(), Some(1), "what was cut is no success: {}", caller.process.log());
    assert!(caller.process.log().contains("connections were cut"), "{}", caller.process.log());
}

#[test]
fn the_control_plane_stops_on_sigterm_with_0() {
    let mut mesh = Mesh::start(POLICY);
    mesh.control_plane.terminate();
    assert_eq!(mesh.control_plane.wait(PATIENCE).code(), Some(0), "{}", mesh.control_plane.log());
}

#[test]
fn wrong_flags_exit_with_64_and_say_what_is_wrong() {
    let cases: [(&str, &[&str], &[&str]); 12] = [
        ("weft-sidecar", &["--nonsense"], &["--nonsense", "Usage"]),
        ("weft-sidecar", &[], &["--control-plane", "--policy"]),
        ("weft-sidecar", &["--control-plane", "localhost:15012"], &["--ca-file"]),
        ("weft-sidecar", &["--policy", "p", "--control-plane", "h:1"], &["--policy", "--control-plane"]),
        ("weft-sidecar", &["--policy", "p", "--cert-file", "c"], &["--key-file"]),
        ("weft-sidecar", &["--policy", "p", "--workers", "0"], &["--workers", "1..=256"]),
        ("weft-sidecar", &["--policy", "p", "--admin", "0.0.0.0:1"], &["loopback"]),
        ("weft-sidecar", &["--policy", "p", "--app", "8080"], &["PORT=IP:PORT"]),
        ("weft-sidecar", &["--policy", "p", "--log", "loud"], &["loud", "debug"]),
        ("weft-control-plane", &["--nonsense"], &["--nonsense", "Usage"]),
        ("weft-control-plane", &["--certificate-ttl", "1s"], &["5s"]),
        ("weft-control-plane", &["--ca-cert", "a.pem"], &["--ca-key"]),
    ];
    for (name, flags, words) in cases {
        let done = run(without_environment(name).args(flags), PATIENCE);
        assert_eq!(done.code, Some(64), "{name} {flags:?}: {done:?}");
        for word in words {
            assert!(done.stderr.contains(word), "{name} {flags:?} should say {word}: {}", done.stderr);
        }
    }
    for name in ["weft-sidecar", "weft-control-plane"] {
        let help = run(without_environment(name).arg("--help"), PATIENCE);
        assert_eq!(help.code, Some(0), "{help:?}");
        assert!(help.stdout.contains("WEFT_"), "every flag has its environment twin: {}", help.stdout);
    }
}

fn without_environment(name: &str) -> Command {
    let mut command = Command::new(program(name));
    command.env_clear();
    command
}

#[test]
fn a_port_in_use_is_an_error_that_names_it_and_its_flag() {
    let directory = tempfile::tempdir().expect("a directory");
    write(&directory.path().join("policy.yaml"), POLICY);
    let policy = directory.path().to_str().expect("a path");
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("its address").to_string();
    // A sidecar's own listeners share their ports among its workers; another sidecar must not share them too.
    let other = Sidecar::start(
        "another",
        Command::new(program("weft-sidecar")).args([
            "--policy",
            policy,
            "--namespace",
            "shop",
            "--workload",
            "caller",
        ]),
        &[],
    );
    let others = [other.outbound.to_string(), other.inbound.to_string()];
    for (name, flag, address, rest) in [
        ("weft-sidecar", "--outbound", &port, &["--inbound", "--admin", "--metrics"][..]),
        ("weft-sidecar", "--admin", &port, &["--inbound", "--outbound", "--metrics"]),
        ("weft-sidecar", "--metrics", &port, &["--inbound", "--outbound", "--admin"]),
        ("weft-sidecar", "--outbound", &others[0], &["--inbound", "--admin", "--metrics"]),
        ("weft-sidecar", "--inbound", &others[1], &["--outbound", "--admin", "--metrics"]),
        ("weft-control-plane", "--listen", &port, &["--metrics", "--dashboard"]),
    ] {
        let mut command = without_environment(name);
        command.args(["--policy", policy, flag, address]);
        for other in rest {
            command.args([*other, "127.0.0.1:0"]);
        }
        if name == "weft-control-plane" {
            command.arg("--state-dir").arg(directory.path().join("state"));
        }
        let done = run(&mut command, PATIENCE);
        assert_eq!(done.code, Some(1), "{name} {flag} {address}: {done:?}");
        assert!(
            done.stderr.contains(address.as_str()) && done.stderr.contains(flag),
            "{name} {flag}: {}",
            done.stderr
        );
        assert!(done.stderr.contains("in use"), "{name} {flag}: {}", done.stderr);
    }
}

#[test]
fn an_idle_sidecar_is_small() {
    let (_mesh, _app, web, caller) = pair();
    for (name, sidecar) in [("the callee", &web), ("the caller", &caller)] {
        let (now, most) = sidecar.process.memory();
        say(&format!("{name}'s sidecar, idle, this build: {now} KiB resident, at most {most} KiB"));
        assert!(now < 40 * 1024, "{now} KiB");
    }
}

/// A body far larger than any buffer passes both ways while neither sidecar grows.
#[test]
fn a_gibibyte_each_way_passes_in_constant_memory() {
    const SIZE: u64 = 1 << 30;
    if !has_curl() {
        return;
    }
    let (_mesh, _app, web, caller) = pair();
    let file = tempfile::NamedTempFile::new().expect("a file");
    // Sparse: a gibibyte of zeros that takes no room.
    file.as_file().set_len(SIZE).expect("a length");
    let began = Instant::now();
    let mut up = Process::start("curl, uploading", curl(&caller, "/upload").arg("-T").arg(file.path()));
    let mut down = Process::start(
        "curl, downloading",
        curl(&caller, &format!("/download/{SIZE}")).args([
            "-o",
            "/dev/null",
            "-w",
            "%{http_code} %{size_download}\n",
        ]),
    );
    let limit = Duration::from_secs(240);
    assert_eq!(up.wait(limit).code(), Some(0), "{}", up.log());
    assert_eq!(down.wait(limit).code(), Some(0), "{}", down.log());
    up.wait_for("how much came", |line| line.starts_with(&format!("{SIZE} ")).then_some(()));
    down.wait_for("how much came", |line| (line == format!("200 {SIZE}")).then_some(()));
    say(&format!("1 GiB up and 1 GiB down took {:?}", began.elapsed()));
    for (name, sidecar) in [("caller", &caller), ("callee", &web)] {
        let (now, most) = sidecar.process.memory();
        say(&format!("the {name}'s sidecar after it: {now} KiB resident, at most {most} KiB"));
        assert!(most < 64 * 1024, "the {name}'s sidecar grew to {most} KiB");
    }
}

/// Policy and identity from files, and no control plane anywhere.
#[test]
fn two_sidecars_run_from_files_alone() {
    if !has_curl() {
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let app = Application::start();
    certificates(directory.path());
    let policy = directory.path().join("policy");
    let web_policy = |inbound: &str| {
        format!(
            "{POLICY}---
apiVersion: weft.mesh/v1alpha1
kind: AuthorizationPolicy
metadata: {{ name: web, namespace: shop }}
spec:
  targetRefs: [{{ kind: Service, name: web }}]
  rules: [{{ from: [{{ identities: [shop/caller] }}], to: [{{ methods: [GET] }}] }}]
"
        )
        .replace(
            "name: web, namespace: shop }\nspec: { service: web, serviceAccount: web,",
            &format!("name: web, namespace: shop }}\nspec: {{ service: web, serviceAccount: web, {inbound}"),
        )
    };
    write(&policy.join("mesh.yaml"), &web_policy(""));
    let web = from_files(&directory, "web", &[(8080, app.port)]);
    // Where it listens is known only now; the files are watched.
    write(&policy.join("mesh.yaml"), &web_policy(&format!(" inbound: \"{}\",", web.inbound)));
    let caller = from_files(&directory, "caller", &[]);
    let until = Instant::now() + PATIENCE;
    let answer = loop {
        let answer = run(curl(&caller, "/from-files").args(["-w", "\n%{http_code}"]), PATIENCE).ok().stdout;
        if answer.ends_with("\n200") || Instant::now() > until {
            break answer;
        }
        thread::sleep(Duration::from_millis(50));
    };
    assert!(
        answer.ends_with("\n200") && answer.contains("/from-files"),
        "{answer}\n{}",
        caller.process.log()
    );
    let denied = run(curl(&caller, "/from-files").args(["-X", "DELETE", "-i"]), PATIENCE).ok().stdout;
    assert!(denied.starts_with("HTTP/1.1 403 ") && denied.contains("ns/shop/sa/caller"), "{denied}");
}

fn from_files(directory: &TempDir, workload: &str, apps: &[(u16, u16)]) -> Sidecar {
    let path = |name: &str| directory.path().join(name);
    let mut command = Command::new(program("weft-sidecar"));
    command
        .args(["--namespace", "shop", "--workload", workload, "--service-account", workload, "--policy"])
        .arg(path("policy"))
        .arg("--ca-file")
        .arg(path("ca.pem"))
        .arg("--cert-file")
        .arg(path(&format!("{workload}.pem")))
        .arg("--key-file")
        .arg(path(&format!("{workload}.key")));
    let sidecar = Sidecar::start(workload, &mut command, apps);
    sidecar.ready();
    sidecar
}

/// A CA, and what it signed for `web` and `caller`.
fn certificates(directory: &Path) {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType, string::Ia5String};
    let ca_key = KeyPair::generate().expect("a key");
    let mut ca = CertificateParams::default();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca_certificate = ca.self_signed(&ca_key).expect("a CA");
    write(&directory.join("ca.pem"), &ca_certificate.pem());
    let issuer = Issuer::new(ca, ca_key);
    for workload in ["web", "caller"] {
        let key = KeyPair::generate().expect("a key");
        let mut leaf = CertificateParams::default();
        let id = format!("spiffe://weft.local/ns/shop/sa/{workload}");
        leaf.subject_alt_names = vec![SanType::URI(Ia5String::try_from(id).expect("ASCII"))];
        let signed = leaf.signed_by(&key, &issuer).expect("signed");
        write(&directory.join(format!("{workload}.pem")), &signed.pem());
        write(&directory.join(format!("{workload}.key")), &key.serialize_pem());
    }
}
