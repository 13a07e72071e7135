//! The built program, run as a user runs it: exit codes, what it prints where, and how it fails.
#![allow(missing_docs, reason = "tests")]

use std::{
    io::{Read, Write},
    net::TcpListener,
    path::Path,
    process::{Command, Output, Stdio},
};

struct Run {
    code: i32,
    out: String,
    err: String,
}

fn weft_in(directory: &Path, arguments: &[&str]) -> Run {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weft"));
    command.args(arguments).current_dir(directory).stdin(Stdio::null());
    for (name, _) in std::env::vars() {
        if name.starts_with("WEFT_") {
            command.env_remove(name);
        }
    }
    let Output { status, stdout, stderr } = command.output().expect("the program starts");
    Run {
        code: status.code().expect("it ends by itself"),
        out: String::from_utf8(stdout).expect("utf-8"),
        err: String::from_utf8(stderr).expect("utf-8"),
    }
}

fn directory(files: &[(&str, &str)]) -> tempfile::TempDir {
    let directory = tempfile::tempdir().expect("a directory");
    for (name, text) in files {
        std::fs::write(directory.path().join(name), text).expect("written");
    }
    directory
}

const WORKLOADS: &str = "\
apiVersion: weft.mesh/v1alpha1
kind: Workload
metadata: { name: product-v1, namespace: shop, labels: { version: v1 } }
spec:
  service: product-v1
  ports: [{ port: 8080, appProtocol: http }]
---
apiVersion: weft.mesh/v1alpha1
kind: Workload
metadata: { name: product-v2, namespace: shop, labels: { version: v2 } }
spec:
  service: product-v2
  ports: [{ port: 8080, appProtocol: http }]
---
apiVersion: v1
kind: Service
metadata: { name: product, namespace: shop }
spec:
  ports: [{ port: 8080, appProtocol: http }]
";

const ROUTE: &str = "\
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: { name: product, namespace: shop }
spec:
  parentRefs: [{ group: \"\", kind: Service, name: product }]
  rules:
    - matches: [{ path: { type: PathPrefix, value: /products }, headers: [{ name: x-canary, value: \"1\" }] }]
      backendRefs: [{ name: product-v2, port: 8080 }]
    - matches: [{ path: { type: PathPrefix, value: /products } }]
      timeouts: { request: 2s }
      backendRefs:
        - { name: product-v1, port: 8080, weight: 90 }
        - { name: product-v2, port: 8080, weight: 10 }
";

fn shop() -> tempfile::TempDir {
    directory(&[("workloads.yaml", WORKLOADS), ("route.yaml", ROUTE)])
}

#[test]
fn good_policy_passes_the_check() {
    let shop = shop();
    let run = weft_in(shop.path(), &["check", "."]);
    assert_eq!((run.code, run.out.as_str()), (0, "4 documents, no error\n"), "{}", run.err);
}

#[test]
fn every_error_is_shown_with_its_place_and_its_cure() {
    let shop = directory(&[
        ("workloads.yaml", WORKLOADS),
        ("route.yaml", &ROUTE.replace("weight: 90", "weigth: 90").replace("request: 2s", "request: soon")),
    ]);
    let run = weft_in(shop.path(), &["check", "."]);
    assert_eq!(run.code, 65, "{}{}", run.out, run.err);
    assert!(run.out.contains("route.yaml:12:43"), "{}", run.out);
    assert!(run.out.contains("^^^^^^"), "{}", run.out);
    assert!(run.out.contains("did you mean `weight`?"), "{}", run.out);
    assert!(run.out.contains("route.yaml:10:"), "all errors at once: {}", run.out);
    assert!(run.out.contains("4 documents, 2 errors"), "{}", run.out);
}

#[test]
fn what_is_not_enforced_yet_is_listed() {
    let audit = "\
apiVersion: weft.mesh/v1alpha1
kind: AuthorizationPolicy
metadata: { name: product, namespace: shop }
spec:
  targetRefs: [{ kind: Service, name: product-v1 }]
  action: audit
  rules: [{}]
";
    let shop = directory(&[("workloads.yaml", WORKLOADS), ("route.yaml", ROUTE), ("audit.yaml", audit)]);
    let run = weft_in(shop.path(), &["check", "."]);
    assert_eq!(run.code, 0, "{}{}", run.out, run.err);
    let listed =
        "accepted, not yet enforced:\n  AuthorizationPolicy shop/product (audit.yaml:1): spec.action\n";
    assert!(run.out.contains(listed), "{}", run.out);
}

#[test]
fn every_example_is_in_force_as_a_whole() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
    let mut checked = Vec::new();
    for entry in std::fs::read_dir(&examples).expect("examples/ can be read") {
        let folder = entry.expect("an entry").path();
        if !folder.is_dir()
            || folder.file_name().is_some_and(|name| name.to_string_lossy().starts_with(['.', '_']))
        {
            continue;
        }
        let run = weft_in(&folder, &["check", "."]);
        assert_eq!(run.code, 0, "{}: {}{}", folder.display(), run.out, run.err);
        assert!(run.out.ends_with(" documents, no error\n"), "{}: {}", folder.display(), run.out);
        assert!(!run.out.contains("not yet enforced"), "{}: {}", folder.display(), run.out);
        assert!(!run.out.contains("warning"), "{}: {}", folder.display(), run.out);
        assert!(folder.join("README.md").is_file(), "{} tells nobody what it is", folder.display());
        checked.push(folder);
    }
    assert!(checked.len() >= 18, "{checked:?}");
    let list = std::fs::read_to_string(examples.join("README.md")).expect("examples/README.md");
    for folder in &checked {
        let name = folder.file_name().expect("a name").to_string_lossy();
        assert!(list.contains(&format!("({name}/README.md)")), "examples/README.md does not list {name}");
    }
}

#[test]
fn a_request_is_routed_by_precedence_and_the_reason_is_given() {
    let shop = shop();
    let plain =
        weft_in(shop.path(), &["routes", ".", "--from", "shop", "GET", "http://product:8080/products/7"]);
    assert_eq!(plain.code, 0, "{}{}", plain.out, plain.err);
    assert!(plain.out.contains("no: the header `x-canary` is absent"), "{}", plain.out);
    assert!(plain.out.contains("shop/product#1 takes it"), "{}", plain.out);
    assert!(plain.out.contains("90 %  shop/product-v1:8080"), "{}", plain.out);
    assert!(plain.out.contains("10 %  shop/product-v2:8080"), "{}", plain.out);
    assert!(plain.out.contains("request timeout: 2s"), "{}", plain.out);

    let canary = weft_in(
        shop.path(),
        &["routes", ".", "--from", "shop", "-H", "X-Canary: 1", "GET", "http://product:8080/products/7"],
    );
    assert!(canary.out.contains("shop/product#0 takes it"), "{}", canary.out);
    assert!(canary.out.contains("would fit, but the one above comes first"), "{}", canary.out);
}

#[test]
fn a_short_name_is_meant_in_the_callers_namespace() {
    let shop = shop();
    let from_elsewhere = weft_in(shop.path(), &["routes", ".", "GET", "http://product:8080/products"]);
    assert!(
        from_elsewhere.out.contains("no service of the mesh has the name `product`"),
        "{}",
        from_elsewhere.out
    );
    let full =
        weft_in(shop.path(), &["routes", ".", "GET", "http://product.shop.svc.cluster.local:8080/products"]);
    assert!(full.out.contains("service shop/product, port 8080 (http)"), "{}", full.out);
}

#[test]
fn a_request_that_no_route_takes_fails() {
    let shop = shop();
    let run = weft_in(shop.path(), &["routes", ".", "--from", "shop", "GET", "http://product:8080/other"]);
    assert_eq!(run.code, 1, "{}", run.out);
    assert!(run.out.contains("404"), "{}", run.out);
    let port = weft_in(shop.path(), &["routes", ".", "--from", "shop", "GET", "http://product:1/"]);
    assert_eq!(port.code, 1);
    assert!(port.out.contains("has no port 1; it has 8080"), "{}", port.out);
}

#[test]
fn routes_speak_json_to_programs() {
    let shop = shop();
    let run = weft_in(
        shop.path(),
        &["routes", ".", "--json", "--from", "shop", "GET", "http://product:8080/products"],
    );
    let answer: serde_json::Value = serde_json::from_str(&run.out).expect("JSON");
    assert_eq!(answer["result"]["rule"], "shop/product#1");
    assert_eq!(answer["result"]["destinations"][0]["share"], 0.9);
    assert_eq!(answer["considered"].as_array().map(Vec::len), Some(2));
}

const POLICY: &str = "\
apiVersion: weft.mesh/v1alpha1
kind: TrafficPolicy
metadata: { name: product, namespace: shop }
spec:
  targetRefs: [{ kind: HTTPRoute, name: product }]
  retries: { attempts: 1 }
  circuitBreaker: { consecutiveFailures: 3 }
";

#[test]
fn a_request_is_explained_with_the_place_of_every_decision() {
    let shop = directory(&[("workloads.yaml", WORKLOADS), ("route.yaml", ROUTE), ("policy.yaml", POLICY)]);
    let ask = ["--from", "shop/product-v1", "GET", "http://product:8080/products"];
    let run = weft_in(shop.path(), &[&["explain", "."][..], &ask].concat());
    assert_eq!(run.code, 0, "{}{}", run.out, run.err);
    let line = |part: &str| {
        let mut lines = run.out.lines().map(str::trim);
        lines
            .find(|line| line.starts_with(part))
            .unwrap_or_else(|| panic!("no {part}: {}", run.out))
            .to_owned()
    };
    let timeout = line("request timeout  ");
    assert!(timeout.contains("  HTTPRoute shop/product (route.yaml:10)  ") && timeout.ends_with(" 2s"));
    assert!(line("retries").contains("up to 1 more") && line("retries").contains("(policy.yaml:6)"));
    assert!(line("circuit breaker").contains("TrafficPolicy shop/product (policy.yaml:7)"));
    let balancer: Vec<_> = line("balancer").split_whitespace().map(str::to_owned).collect();
    assert_eq!(balancer, ["balancer", "default", "peakEwma"]);
    assert!(run.out.contains("calls to shop/product-v2:8080"), "{}", run.out);
    assert!(run.out.contains("where shop/product-v1:8080 is served"), "{}", run.out);

    let run = weft_in(shop.path(), &[&["explain", ".", "--json"][..], &ask].concat());
    let told: serde_json::Value = serde_json::from_str(&run.out).expect("JSON");
    let retries = told["decisions"]["caller"]
        .as_array()
        .and_then(|all| all.iter().find(|decision| decision["decision"] == "retries"));
    assert_eq!(retries.expect("retries")["from"][0]["document"], "TrafficPolicy shop/product");
    assert_eq!(told["result"]["rule"], "shop/product#1");
    assert_eq!(told["decisions"]["backends"].as_array().map(Vec::len), Some(2));
}

#[test]
fn a_request_that_goes_nowhere_is_explained_as_far_as_it_gets() {
    let shop = shop();
    let run = weft_in(shop.path(), &["explain", ".", "--from", "shop", "GET", "http://product:8080/other"]);
    assert_eq!(run.code, 1, "{}", run.out);
    assert!(run.out.contains("404") && !run.out.contains("retries"), "{}", run.out);
}

#[test]
fn a_route_for_one_caller_is_taken_by_that_caller() {
    let route = ROUTE
        .replace("{ name: x-canary, value: \"1\" }", "{ name: weft-source-workload, value: product-v1 }");
    let shop = directory(&[("workloads.yaml", WORKLOADS), ("route.yaml", &route)]);
    let taken = |from: &str| {
        let run = weft_in(
            shop.path(),
            &["routes", ".", "--json", "--from", from, "GET", "http://product:8080/products"],
        );
        let answer: serde_json::Value = serde_json::from_str(&run.out).expect("JSON");
        (answer["result"]["rule"].clone(), answer["considered"][0]["reason"].clone())
    };
    assert_eq!(taken("shop/product-v1"), ("shop/product#0".into(), serde_json::Value::Null));
    let why = "the caller's workload is `product-v2`";
    assert_eq!(taken("shop/product-v2"), ("shop/product#1".into(), why.into()));
    assert_eq!(taken("shop").1, "the caller's workload is not known");
}

#[test]
fn every_kind_has_a_schema() {
    let home = directory(&[]);
    let list = weft_in(home.path(), &["schema", "--list"]);
    let kinds: Vec<&str> = list.out.lines().filter_map(|l| l.split_whitespace().next()).collect();
    assert_eq!(kinds.len(), 9, "{}", list.out);
    for kind in kinds {
        let run = weft_in(home.path(), &["schema", &kind.to_lowercase()]);
        let schema: serde_json::Value = serde_json::from_str(&run.out).expect("JSON");
        assert!(schema["properties"]["metadata"].is_object() && run.code == 0, "{kind}");
    }
    let unknown = weft_in(home.path(), &["schema", "Gateway"]);
    assert_eq!(unknown.code, 64);
    assert!(unknown.err.contains("HTTPRoute"), "{}", unknown.err);
}

#[test]
fn a_command_line_that_makes_no_sense_ends_with_64() {
    let home = directory(&[]);
    for arguments in [
        &[][..],
        &["fly"],
        &["check", "--no-such-flag"],
        &["check", "no-such-directory"],
        &["up", "no-such-directory"],
        &["routes", ".", "G E T", "http://a/"],
        &["routes", "GET"],
        &["explain", "GET"],
        &["explain", ".", "--from", "shop/nobody", "GET", "http://a/"],
        &["status", "--mesh", "nonsense"],
        &["completion", "cmd.exe"],
        &["sidecar", "--admin", "0.0.0.0:15000"],
    ] {
        let run = weft_in(home.path(), arguments);
        assert_eq!(run.code, 64, "{arguments:?}: {}{}", run.out, run.err);
        assert!(!run.err.is_empty() && run.out.is_empty(), "{arguments:?} says so on standard error");
    }
}

#[test]
fn help_is_no_error_and_has_examples() {
    let home = directory(&[]);
    for verb in [
        "up",
        "check",
        "status",
        "routes",
        "explain",
        "dashboard",
        "schema",
        "completion",
        "sidecar",
        "control-plane",
    ] {
        let run = weft_in(home.path(), &[verb, "--help"]);
        assert_eq!(run.code, 0, "{verb}");
        assert!(run.out.contains("Usage: weft"), "{verb}: {}", run.out);
        if !matches!(verb, "sidecar" | "control-plane") {
            assert!(run.out.contains("Examples:"), "{verb}: {}", run.out);
        }
    }
    assert!(!weft_in(home.path(), &["--help"]).out.contains("reap"), "what is not for people is not shown");
    assert_eq!(weft_in(home.path(), &["--version"]).code, 0);
}

#[test]
fn completion_scripts_know_the_verbs() {
    let home = directory(&[]);
    for shell in ["bash", "zsh", "fish"] {
        let run = weft_in(home.path(), &["completion", shell]);
        assert!(run.code == 0 && run.out.contains("dashboard"), "{shell}");
    }
}

#[test]
fn without_a_mesh_the_message_says_how_to_get_one() {
    let home = directory(&[]);
    for verb in [
        &["status"][..],
        &["dashboard"],
        &["explain", "GET", "http://a/"],
        &["routes", "GET", "http://a/"],
        &["check"],
    ] {
        let run = weft_in(home.path(), verb);
        assert_eq!(run.code, 1, "{verb:?}");
        assert!(run.err.contains("weft up") && run.err.contains("--mesh"), "{verb:?}: {}", run.err);
    }
}

/// Answers every request with the same JSON.
fn control_plane(body: String) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
    let address = listener.local_addr().expect("address").to_string();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { continue };
            let mut head = [0u8; 4096];
            let _ = stream.read(&mut head);
            let _ = write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        }
    });
    address
}

#[test]
fn status_and_check_ask_a_running_mesh() {
    use weft_control_plane::status::{Diagnostic, Document, DocumentState, Status};
    let mut status = Status::default();
    status.control_plane.trust_domain = "weft.local".into();
    status.documents.push(Document {
        kind: "HTTPRoute".into(),
        namespace: "shop".into(),
        name: "product".into(),
        state: DocumentState::Rejected,
        diagnostics: vec![Diagnostic {
            error: true,
            file: "gone.yaml".into(),
            line: 7,
            column: 3,
            message: "unknown field `weigth`".into(),
            ..Diagnostic::default()
        }],
        ..Document::default()
    });
    let address = control_plane(serde_json::to_string(&status).expect("JSON"));
    let home = directory(&[]);
    let run = weft_in(home.path(), &["status", "--mesh", &address]);
    assert_eq!(run.code, 0, "{}", run.err);
    assert!(run.out.contains("1 rejected") && run.out.contains("gone.yaml:7:3"), "{}", run.out);
    let json = weft_in(home.path(), &["status", "--json", "--mesh", &format!("http://{address}/")]);
    assert_eq!(serde_json::from_str::<Status>(&json.out).expect("JSON"), status);
    let check = weft_in(home.path(), &["check", "--mesh", &address]);
    assert_eq!(check.code, 65, "{}{}", check.out, check.err);
    let dashboard = weft_in(home.path(), &["dashboard", "--mesh", &address]);
    assert_eq!(dashboard.out, format!("http://{address}/\n"));
}

#[test]
fn status_of_a_directory_that_nobody_runs_is_what_its_files_say() {
    let shop = directory(&[
        ("workloads.yaml", WORKLOADS),
        ("route.yaml", &ROUTE.replace("weight: 90", "weigth: 90")),
    ]);
    let run = weft_in(shop.path(), &["status", "."]);
    assert_eq!(run.code, 0, "{}", run.err);
    for wanted in ["not running", "3 documents in force", "1 rejected", "shop/product-v2", "route.yaml:12:43"]
    {
        assert!(run.out.contains(wanted), "{wanted:?} in {}", run.out);
    }
}

#[test]
fn status_names_who_calls_what_is_going_away() {
    use weft_control_plane::status::{Deprecated, DeprecatedCaller, Status};
    const OLD: &str = "\
apiVersion: weft.mesh/v1alpha1
kind: TrafficPolicy
metadata: { name: old, namespace: shop }
spec:
  targetRefs: [{ kind: Service, name: product }]
  deprecation: { since: 2026-01-31, sunset: 2026-12-31 }
";
    let shop = directory(&[("workloads.yaml", WORKLOADS), ("old.yaml", OLD)]);
    let run = weft_in(shop.path(), &["status", ".", "--deprecated"]);
    assert_eq!(run.code, 0, "{}", run.err);
    assert!(run.out.contains("Service shop/product  2026-01-31  2026-12-31  -"), "{}", run.out);

    let mut status = Status::default();
    let caller =
        DeprecatedCaller { identity: "spiffe://x/ns/shop/sa/cart".into(), calls: 7, ..Default::default() };
    status.deprecated =
        vec![Deprecated { of: "Service shop/product".into(), callers: vec![caller], ..Default::default() }];
    let address = control_plane(serde_json::to_string(&status).expect("JSON"));
    let run = weft_in(shop.path(), &["status", "--deprecated", "--mesh", &address]);
    assert!(run.out.contains("spiffe://x/ns/shop/sa/cart"), "{}{}", run.out, run.err);
    let json = weft_in(shop.path(), &["status", "--deprecated", "--json", "--mesh", &address]);
    let told: Vec<Deprecated> = serde_json::from_str(&json.out).expect("JSON");
    assert_eq!(told, status.deprecated);
}

#[test]
fn a_server_that_is_no_control_plane_is_named() {
    let address = control_plane("<html>".to_owned());
    let home = directory(&[]);
    let run = weft_in(home.path(), &["status", "--mesh", &address]);
    assert_eq!(run.code, 1);
    assert!(run.err.contains("is no status"), "{}", run.err);
}

#[test]
fn up_needs_something_to_run() {
    let empty = directory(&[]);
    let run = weft_in(empty.path(), &["up", "."]);
    assert_eq!(run.code, 65, "{}{}", run.out, run.err);
    assert!(run.err.contains("no policy document"), "{}", run.err);
    let no_command = shop();
    let run = weft_in(no_command.path(), &["up", "."]);
    assert_eq!(run.code, 65);
    assert!(run.err.contains("`command`"), "{}", run.err);
    assert!(!no_command.path().join(".weft").exists(), "nothing is written before there is something to run");
}

#[test]
fn up_does_not_start_on_policy_of_which_nothing_is_valid() {
    let broken = directory(&[("a.yaml", "kind: Workload\nmetadata: [")]);
    let run = weft_in(broken.path(), &["up", "."]);
    assert_eq!(run.code, 65, "{}{}", run.out, run.err);
    assert!(run.err.contains("a.yaml:2:") && run.err.contains("nothing is started"), "{}", run.err);
}

#[test]
fn a_failed_build_shows_its_output_and_starts_nothing() {
    let files = "\
apiVersion: weft.mesh/v1alpha1
kind: MeshPolicy
metadata: { name: mesh }
spec:
  up: { build: \"echo compiling; echo 'error: no such thing' >&2; exit 7\" }
---
apiVersion: weft.mesh/v1alpha1
kind: Workload
metadata: { name: a }
spec: { command: [\"touch\", \"started\"] }
";
    let home = directory(&[("mesh.yaml", files)]);
    let run = weft_in(home.path(), &["up", ".", "--state-dir", "state"]);
    assert_eq!(run.code, 1, "{}{}", run.out, run.err);
    assert!(run.err.contains("compiling\n") && run.err.contains("error: no such thing"), "{}", run.err);
    assert!(run.err.contains("(exit code 7)"), "{}", run.err);
    assert!(!home.path().join("started").exists());
}

#[test]
fn a_reader_that_goes_away_is_no_crash() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_weft"))
        .args(["schema", "HTTPRoute"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("starts");
    drop(child.stdout.take());
    let mut err = String::new();
    child.stderr.take().expect("piped").read_to_string(&mut err).expect("utf-8");
    assert!(child.wait().expect("ends").success(), "{err}");
    assert_eq!(err, "");
}
