//! The program itself: its flags, its exit codes, its end.

use std::{
    fs,
    io::{BufRead, BufReader},
    net::TcpListener,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weft-control-plane"));
    command.env_clear();
    command
}

fn free_port() -> String {
    TcpListener::bind("127.0.0.1:0").expect("bound").local_addr().expect("address").to_string()
}

fn args(root: &Path) -> Vec<String> {
    let state = root.join("state").display().to_string();
    let policy = root.join("policy").display().to_string();
    let (listen, metrics, dashboard) = (free_port(), free_port(), free_port());
    [
        "--state-dir",
        &state,
        "--policy",
        &policy,
        "--listen",
        &listen,
        "--metrics",
        &metrics,
        "--dashboard",
        &dashboard,
    ]
    .map(str::to_owned)
    .to_vec()
}

#[test]
fn it_starts_says_where_it_is_and_stops_on_sigterm() {
    let root = tempfile::tempdir().expect("temp dir");
    let mut child = program().args(args(root.path())).stderr(Stdio::piped()).spawn().expect("runs");
    let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines();
    let ready = lines.by_ref().map_while(Result::ok).find(|line| line.contains("the control plane is ready"));
    assert!(ready.expect("a line").contains("dashboard"));
    let reader = std::thread::spawn(move || lines.map_while(Result::ok).collect::<Vec<_>>().join("\n"));
    let begin = Instant::now();
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("signalled");
    let status = child.wait().expect("ended");
    assert!(status.success(), "{status}");
    assert!(begin.elapsed() < Duration::from_secs(30));
    assert!(reader.join().expect("read").contains("stopping"));
}

#[test]
fn a_token_is_one_line_that_the_state_directory_can_check() {
    let root = tempfile::tempdir().expect("temp dir");
    let output = program()
        .args(["token", "--namespace", "shop", "--service-account", "cart", "--ttl", "5m"])
        .env("WEFT_CP_STATE_DIR", root.path().join("state"))
        .output()
        .expect("runs");
    assert!(output.status.success(), "{output:?}");
    let token = String::from_utf8(output.stdout).expect("text");
    assert_eq!(token.lines().count(), 1);
    let key = weft_control_plane::token::TokenKey::open_or_create(&root.path().join("state")).expect("key");
    let claims = key.verify(&token, std::time::SystemTime::now()).expect("good");
    assert_eq!((claims.namespace.as_str(), claims.service_account.as_str()), ("shop", "cart"));
    let mode = fs::metadata(root.path().join("state/join-token.key")).expect("there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn a_wrong_flag_is_a_usage_error() {
    for wrong in [&["--no-such-flag"][..], &["--certificate-ttl", "1s"], &["--log", "=,="], &["tokens"]] {
        let output = program().args(wrong).output().expect("runs");
        assert_eq!(output.status.code(), Some(64), "{wrong:?}");
        assert!(!output.stderr.is_empty());
    }
    let help = program().arg("--help").output().expect("runs");
    assert!(help.status.success());
    let help = String::from_utf8(help.stdout).expect("text");
    for setting in
        ["WEFT_CP_POLICY", "WEFT_CP_STATE_DIR", "WEFT_CP_LISTEN", "WEFT_CP_TRUST_BUNDLE", "WEFT_LOG"]
    {
        assert!(help.contains(setting), "{setting}");
    }
}

#[test]
fn a_key_that_others_can_read_is_a_failure_that_says_so() {
    let root = tempfile::tempdir().expect("temp dir");
    let state = root.path().join("state");
    weft_control_plane::token::TokenKey::open_or_create(&state).expect("key");
    fs::set_permissions(state.join("join-token.key"), fs::Permissions::from_mode(0o644)).expect("chmod");
    let output = program().args(args(root.path())).output().expect("runs");
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("chmod 600"), "{output:?}");
}

#[test]
fn a_rotation_needs_a_ca_to_rotate() {
    let root = tempfile::tempdir().expect("temp dir");
    let output =
        program().args(["rotate-ca", "--state-dir"]).arg(root.path().join("state")).output().expect("runs");
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("no CA"), "{output:?}");
}
