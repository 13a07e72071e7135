//! What curl and h2load see, as a person at a terminal would use them, through two sidecars with mTLS between them.

use serde_json::Value;
use std::{
    fs,
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    process::{Command, Stdio},
    time::{Duration, Instant},
};
use weft_tests::processes::{
    Finished, Mesh, PATIENCE, Sidecar, application::Application, run, run_with, tool,
};

const POLICY: &str = r#"
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
spec:
  service: web
  serviceAccount: web
  ports: [{ port: 8080, appProtocol: http }, { port: 8081, appProtocol: http2 }]
---
# Nobody runs this one.
apiVersion: weft.mesh/v1alpha1
kind: Workload
metadata: { name: away, namespace: shop }
spec: { service: away, serviceAccount: away, ports: [{ port: 8080, appProtocol: http }] }
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: { name: web, namespace: shop }
spec:
  parentRefs: [{ group: "", kind: Service, name: web, port: 8080 }]
  rules:
    - matches: [{ path: { type: PathPrefix, value: /hurry } }]
      filters: [{ type: URLRewrite, urlRewrite: { path: { type: ReplacePrefixMatch, replacePrefixMatch: / } } }]
      timeouts: { request: 200ms }
      backendRefs: [{ name: web, port: 8080 }]
    - matches: [{ path: { type: PathPrefix, value: /app } }]
      filters: [{ type: URLRewrite, urlRewrite: { path: { type: ReplacePrefixMatch, replacePrefixMatch: / } } }]
      backendRefs: [{ name: web, port: 8080 }]
    - matches: [{ path: { type: PathPrefix, value: /secret } }]
      backendRefs: [{ name: web, port: 8080 }]
---
apiVersion: weft.mesh/v1alpha1
kind: AuthorizationPolicy
metadata: { name: web, namespace: shop }
spec:
  targetRefs: [{ kind: Service, name: web }]
  action: deny
  rules: [{ name: keep-out, to: [{ paths: ["/secret/*"] }] }]
"#;

/// A caller's sidecar, a callee's sidecar, and the application behind it.
struct Pair {
    caller: Sidecar,
    web: Sidecar,
    _app: Application,
    mesh: Mesh,
}

impl Pair {
    fn start() -> Self {
        let mesh = Mesh::start(POLICY);
        let app = Application::start();
        let web = mesh.sidecar("web", &[(8080, app.port), (8081, app.port)]);
        let caller = mesh.sidecar("caller", &[]);
        Self { caller, web, _app: app, mesh }
    }

    /// Curl with the caller's sidecar as its HTTP proxy and nothing else set.
    fn proxied(&self, arguments: &[&str]) -> Finished {
        run(
            self.command().env("http_proxy", format!("http://{}", self.caller.outbound)).args(arguments),
            PATIENCE,
        )
    }

    /// Curl straight to the outbound port, as if every name resolved to it.
    fn straight(&self, arguments: &[&str]) -> Finished {
        let to = format!("::{}", self.caller.outbound);
        run(self.command().args(["--connect-to", &to]).args(arguments), PATIENCE)
    }

    fn command(&self) -> Command {
        let mut curl = Command::new("curl");
        for name in ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY"] {
            curl.env_remove(name);
        }
        curl.args(["-q", "--silent", "--show-error", "--max-time", "25"]);
        curl
    }
}

fn curl() -> bool {
    tool("curl", "curl").is_some()
}

fn told(finished: Finished) -> Value {
    let finished = finished.ok();
    serde_json::from_str(&finished.stdout).unwrap_or_else(|error| panic!("{error}: {}", finished.stdout))
}

#[test]
fn every_version_of_http_that_curl_speaks_reaches_the_application() {
    if !curl() {
        return;
    }
    let pair = Pair::start();
    for (version, flags) in
        [("1.1", &["--http1.1"][..]), ("1.0", &["--http1.0"]), ("2", &["--http2-prior-knowledge"])]
    {
        for (port, upstream) in [(8080, "HTTP/1.1"), (8081, "HTTP/2.0")] {
            let url = format!("http://web.shop:{port}/app/a%20b?x=1&y=%2F");
            let mut arguments = flags.to_vec();
            arguments.extend([
                "-H",
                "X-Mine: 7",
                "-H",
                "weft-error: forged",
                "-w",
                "\n%{http_version}",
                &url,
            ]);
            let done = pair.straight(&arguments).ok();
            let (body, spoken) = done.stdout.rsplit_once('\n').expect("two parts");
            assert!(
                spoken.starts_with(version.trim_end_matches(".0")),
                "asked {version}, was answered {spoken}"
            );
            let told: Value = serde_json::from_str(body).expect("the application's JSON");
            let expected = if port == 8080 { "/a%20b?x=1&y=%2F" } else { "/app/a%20b?x=1&y=%2F" };
            assert_eq!(told["path"], expected, "{version} to {port}");
            assert_eq!(told["version"], upstream, "{version} to {port}");
            let headers = told["headers"].to_string();
            assert!(headers.contains(r#"["x-mine","7"]"#), "{headers}");
            assert!(headers.contains("traceparent") && headers.contains("x-request-id"), "{headers}");
            assert!(!headers.contains("weft-"), "fields of the mesh reach the application: {headers}");
        }
    }
    // The same through http_proxy, where HTTP/1 requests name their host in the target.
    let told = told(pair.proxied(&["http://web.shop:8080/app/proxied"]));
    assert_eq!((told["path"].as_str(), told["method"].as_str()), (Some("/proxied"), Some("GET")));
    assert!(!told["headers"].to_string().contains("proxy-connection"), "{told}");
    let (_, metrics) = weft_tests::processes::get(pair.web.metrics, "/metrics").expect("metrics");
    let tls = metrics.lines().any(|l| l.starts_with("weft_requests_total{") && l.contains(r#"tls="mtls""#));
    assert!(tls, "the hop was not secured by mTLS:\n{metrics}");
}

#[test]
fn head_has_no_body_and_the_length_of_one() {
    if !curl() {
        return;
    }
    let pair = Pair::start();
    for flags in [&["--http1.1"][..], &["--http1.0"], &["--http2-prior-knowledge"]] {
        let mut arguments = flags.to_vec();
        arguments.extend(["--head", "-w", "%{size_download}", "http://web.shop:8080/app/download/12345"]);
        let head = pair.straight(&arguments).ok().stdout;
        assert!(head.contains(" 200") && head.to_lowercase().contains("content-length: 12345"), "{head}");
        assert!(head.ends_with("\r\n\r\n0"), "{head}");
    }
}

#[test]
fn uploads_pass_in_chunks_and_with_a_length() {
    if !curl() {
        return;
    }
    let pair = Pair::start();
    let file = tempfile::NamedTempFile::new().expect("a file");
    fs::write(file.path(), vec![b'u'; 3_000_000]).expect("written");
    let path = file.path().to_str().expect("a path");
    let proxy = format!("http://{}", pair.caller.outbound);
    let input = || Stdio::from(fs::File::open(path).expect("the file"));
    let chunked = |version: &str| {
        let mut curl = pair.command();
        if version == "--http2-prior-knowledge" {
            curl.args(["--connect-to", &format!("::{}", pair.caller.outbound)]);
        } else {
            curl.args(["--proxy", &proxy]);
        }
        curl.args([version, "-T", "-", "http://web.shop:8080/app/upload"]);
        run_with(&mut curl, input(), PATIENCE).ok().stdout
    };
    assert_eq!(chunked("--http1.1"), "3000000 chunked=true\n");
    // HTTP/2 has no chunks; without a length, the application's HTTP/1 needs them.
    assert_eq!(chunked("--http2-prior-knowledge"), "3000000 chunked=true\n");
    let sized = pair.proxied(&["-T", path, "http://web.shop:8080/app/upload"]).ok();
    assert_eq!(sized.stdout, "3000000 chunked=false\n");
    // HTTP/1.0 knows no chunks either way.
    let old = pair
        .proxied(&["--http1.0", "--data-binary", &format!("@{path}"), "http://web.shop:8080/app/upload"])
        .ok();
    assert_eq!(old.stdout, "3000000 chunked=false\n");
}

#[test]
fn expect_100_is_the_applications_to_answer() {
    if !curl() {
        return;
    }
    let pair = Pair::start();
    let file = tempfile::NamedTempFile::new().expect("a file");
    fs::write(file.path(), vec![b'e'; 200_000]).expect("written");
    let data = format!("@{}", file.path().display());
    // Were the 100 not passed on, curl would wait for these 20 seconds before it sent the body.
    let expect = ["-v", "--expect100-timeout", "20", "-H", "Expect: 100-continue", "--data-binary", &data];
    let began = Instant::now();
    let accepted = pair.proxied(&[&expect[..], &["http://web.shop:8080/app/upload"]].concat()).ok();
    assert_eq!(accepted.stdout, "200000 chunked=false\n");
    assert!(accepted.stderr.contains("HTTP/1.1 100 Continue"), "{}", accepted.stderr);
    assert!(began.elapsed() < Duration::from_secs(15), "the body waited for {:?}", began.elapsed());
    let refused = pair
        .proxied(
            &[&expect[..], &["-w", "%{http_code} %{size_upload}", "http://web.shop:8080/app/no-body"]]
                .concat(),
        )
        .ok();
    assert!(refused.stdout.ends_with("417 0"), "{}\n{}", refused.stdout, refused.stderr);
    assert!(!refused.stderr.contains("100 Continue"), "{}", refused.stderr);
}

#[test]
fn a_tunnel_by_connect_leads_to_the_service() {
    if !curl() {
        return;
    }
    let pair = Pair::start();
    let told = told(pair.proxied(&["--proxytunnel", "http://web.shop:8080/app/in-the-tunnel"]));
    assert_eq!(told["path"], "/in-the-tunnel", "routes hold within a tunnel too");
    let refused = pair.proxied(&["--proxytunnel", "-v", "http://nobody.shop:8080/"]);
    assert_eq!(refused.code, Some(56), "{refused:?}");
    assert!(refused.stderr.to_lowercase().contains("weft-error: unknown_service"), "{}", refused.stderr);
}

#[test]
fn an_upgrade_by_hand_is_a_channel_of_bytes_both_ways() {
    if !curl() {
        return;
    }
    let pair = Pair::start();
    let mut stream = TcpStream::connect(pair.caller.outbound).expect("connected");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream
        .write_all(
            b"GET /app/upgrade HTTP/1.1\r\nHost: web.shop:8080\r\nConnection: Upgrade\r\nUpgrade: capitals\r\n\r\n",
        )
        .expect("sent");
    let mut read = Vec::new();
    let mut until = |stream: &mut TcpStream, end: &str| {
        let mut byte = [0];
        while !String::from_utf8_lossy(&read).ends_with(end) {
            assert_eq!(stream.read(&mut byte).expect("more"), 1, "{}", String::from_utf8_lossy(&read));
            read.push(byte[0]);
        }
        String::from_utf8_lossy(&std::mem::take(&mut read)).into_owned()
    };
    // The server speaks first: nothing may wait for the client.
    let head = until(&mut stream, "\r\n\r\nhello\n");
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    assert!(head.to_lowercase().contains("upgrade: capitals"), "{head}");
    for round in 0..100 {
        stream.write_all(format!("round {round}\n").as_bytes()).expect("sent");
        assert_eq!(until(&mut stream, "\n"), format!("ROUND {round}\n"));
    }
    // Half-close: what the application still has to say arrives.
    stream.shutdown(Shutdown::Write).expect("half-closed");
    assert_eq!(until(&mut stream, "bye\n"), "bye\n");
    let curl = pair
        .command()
        .args(["-i", "-H", "Connection: Upgrade", "-H", "Upgrade: capitals", "--max-time", "5"])
        .args(["--proxy", &format!("http://{}", pair.caller.outbound), "http://web.shop:8080/app/upgrade"])
        .output();
    let said = String::from_utf8_lossy(&curl.expect("curl").stdout).into_owned();
    assert!(said.starts_with("HTTP/1.1 101 ") && said.contains("hello"), "{said}");
}

#[test]
fn an_error_of_the_mesh_says_what_happened_and_where_to_look() {
    if !curl() {
        return;
    }
    let pair = Pair::start();
    let inbound = format!("http://{}/app/x", pair.web.inbound);
    let large = format!("X-Large: {}", "l".repeat(70_000));
    let cases: [(&[&str], &str, &str, &[&str]); 9] = [
        (&["http://nobody.shop:8080/"], "502", "unknown_service", &["nobody"]),
        (&["http://web.shop:9999/"], "502", "unknown_service", &["9999", "8080"]),
        (&["http://away.shop:8080/"], "503", "no_endpoint", &["away:8080", "/clusters"]),
        (&["http://web.shop:8080/nowhere"], "404", "no_route", &["web:8080", "weft routes"]),
        (&["http://web.shop:8080/secret/plans"], "403", "forbidden", &["sa/caller", "keep-out"]),
        (&["--path-as-is", "http://web.shop:8080/app/%00"], "400", "bad_request", &["path"]),
        (&["-H", &large, "http://web.shop:8080/app/x"], "431", "headers_too_large", &["limits.headerBytes"]),
        (&["http://web.shop:8080/hurry/slow/60000"], "504", "timeout", &["web:8080", " s\n"]),
        (&["--noproxy", "*", &inbound], "403", "forbidden", &["mTLS is strict", "http_proxy"]),
    ];
    for (arguments, status, kind, words) in cases {
        let answer = pair.proxied(&[&["-i"], arguments].concat()).ok().stdout;
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
        assert_eq!(head.split(' ').nth(1), Some(status), "{kind}: {answer}");
        let head = head.to_lowercase();
        assert!(head.contains(&format!("weft-error: {kind}")), "{kind}: {answer}");
        assert!(body.starts_with(&format!("weft: {kind}: ")), "{kind}: {answer}");
        assert_eq!(body.trim_end().lines().count(), 1, "one line: {answer}");
        for word in words {
            assert!(body.contains(word), "{kind} should name {word}: {answer}");
        }
    }
    // The application's own errors pass unmarked.
    for status in ["404", "500", "503"] {
        let answer = pair.proxied(&["-i", &format!("http://web.shop:8080/app/status/{status}")]).ok().stdout;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
        assert!(
            !answer.to_lowercase().contains("weft-error")
                && answer.ends_with("the application's own answer\n"),
            "{answer}"
        );
    }
    // TLS that is not ours is closed in strict mode, without an answer that could be mistaken for one.
    let tls = pair.proxied(&["--noproxy", "*", "--insecure", &inbound.replace("http:", "https:")]);
    assert_eq!((tls.code, tls.stdout.as_str()), (Some(35), ""), "{tls:?}");
}

#[test]
fn a_host_outside_the_mesh_is_called_directly() {
    if !curl() {
        return;
    }
    let pair = Pair::start();
    let outside = Application::start();
    let told = told(pair.proxied(&[&format!("http://127.0.0.1:{}/outside?q=1", outside.port)]));
    assert_eq!(told["path"], "/outside?q=1");
    let looped = pair.proxied(&["-i", &format!("http://{}/", pair.caller.outbound)]).ok().stdout;
    assert!(looped.to_lowercase().contains("weft-error: bad_request") && looped.contains("loop"), "{looped}");
}

#[test]
fn two_thousand_requests_of_h2load_all_succeed_over_either_version() {
    let Some(h2load) = tool("h2load", "nghttp2-client") else { return };
    let pair = Pair::start();
    for (version, port) in [("", 8080), ("--h1", 8080), ("", 8081), ("--h1", 8081)] {
        let done = load(h2load, version, pair.caller.outbound, &format!("http://web.shop:{port}/app/echo"));
        assert!(done.stdout.contains("2000 succeeded, 0 failed, 0 errored, 0 timeout"), "{done:?}");
        assert!(done.stdout.contains("status codes: 2000 2xx"), "{done:?}");
    }
}

#[test]
fn the_first_calls_of_a_service_all_succeed_when_they_come_at_once() {
    if !curl() {
        return;
    }
    let pair = Pair::start();
    let urls: Vec<String> = (0..40).map(|n| format!("http://web.shop:8080/app/status/200?{n}")).collect();
    for round in 0..5 {
        // A sidecar that has never heard of the service.
        let caller = pair.mesh.sidecar("caller", &[]);
        let mut curl = pair.command();
        curl.args(["--parallel", "--parallel-immediate", "--parallel-max", "40"])
            .args(["--proxy", &format!("http://{}", caller.outbound)])
            .args(&urls);
        let done = run(&mut curl, PATIENCE).ok();
        let good = done.stdout.lines().filter(|line| *line == "the application's own answer").count();
        assert_eq!(good, urls.len(), "round {round}: {done:?}");
    }
}

fn load(h2load: &str, version: &str, outbound: SocketAddr, url: &str) -> Finished {
    let mut command = Command::new(h2load);
    command.args(["-n", "2000", "-c", "8", "-m", "10", "--connect-to", &outbound.to_string()]);
    if !version.is_empty() {
        command.arg(version);
    }
    run(command.arg(url), Duration::from_secs(60)).ok()
}
