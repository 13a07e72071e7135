//! Further places to look before the origin is asked: a real Redis server between sidecars, and a disk across restarts.

mod access;
mod seen;
mod tls;

use http::{Request, Response};
use serde_json::json;
use std::{
    io::{Read, Write},
    net::TcpStream,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};
use tempfile::TempDir;
use weft_control_plane::status::Status;
use weft_tests::{
    Answer, Backend, Beside, Client, Mesh, PATIENCE, Process, empty, eventually, free_port, full,
    mesh::{NAMESPACE, calling, until_free},
    operator::purge_everywhere,
    processes::say,
    stage::{Instance, Stage},
};

const URL: &str = "http://product:8080";
const REDIS: &str = "tier=\"redis\"";
const DISK: &str = "tier=\"disk\"";
/// A tier that is away for long is tried no more often than this.
const SELDOM: Duration = Duration::from_secs(10);

/// A Redis server on a port and with a directory of its own.
struct Redis {
    port: u16,
    child: Child,
    _dir: TempDir,
}

impl Redis {
    /// `None` where none is installed; where tools must be there, that fails.
    fn start() -> Option<Self> {
        Self::start_with(&[])
    }

    /// The same with more arguments.
    fn start_with(arguments: &[&str]) -> Option<Self> {
        Self::start_by(|port| {
            let more = arguments.iter().map(|argument| (*argument).to_owned());
            ["--port".to_owned(), port].into_iter().chain(more).collect()
        })
    }

    /// The same with arguments that it is made with for each port.
    fn start_by(arguments: impl Fn(String) -> Vec<String>) -> Option<Self> {
        let until = Instant::now() + PATIENCE;
        // Somebody else may take a port that was free.
        loop {
            let (port, dir) = (free_port(), tempfile::tempdir().expect("a directory"));
            let spawned = Command::new("redis-server")
                .args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
                .args(arguments(port.to_string()))
                .arg("--dir")
                .arg(dir.path())
                .stdout(Stdio::null())
                .spawn();
            let child = match spawned {
                Ok(child) => child,
                Err(error) => {
                    assert!(std::env::var_os("CI").is_none(), "redis-server is needed: {error}");
                    say("redis-server is not installed: nothing was tested");
                    return None;
                }
            };
            let mut redis = Self { port, child, _dir: dir };
            while redis.child.try_wait().is_ok_and(|ended| ended.is_none()) {
                assert!(Instant::now() < until, "redis-server does not listen");
                if TcpStream::connect(("127.0.0.1", port)).is_ok() {
                    return Some(redis);
                }
                std::thread::sleep(Duration::from_millis(10));
            }
            assert!(Instant::now() < until, "redis-server does not start");
        }
    }

    /// The tier with further fields.
    fn tier_with(&self, fields: &str) -> String {
        format!("redis: {{ address: '127.0.0.1:{}', timeout: 4s, {fields} }}", self.port)
    }

    /// Has commands carried out, each of which must be answered by `+OK`, or by a number.
    fn tell(&self, commands: &[&str]) {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).expect("it listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("set");
        for command in commands {
            stream.write_all(format!("{command}\r\n").as_bytes()).expect("sent");
            let mut answer = [0; 512];
            let length = stream.read(&mut answer).expect("answered");
            let answer = String::from_utf8_lossy(&answer[..length]);
            assert!(answer.starts_with(['+', ':']), "{command}: {answer}");
        }
    }

    fn tier(&self, timeout: &str) -> String {
        format!("redis: {{ address: '127.0.0.1:{}', timeout: {timeout} }}", self.port)
    }

    fn signal(&self, signal: &str) {
        let sent = Command::new("kill").args([signal, &self.child.id().to_string()]).status();
        assert!(sent.expect("kill is there").success());
    }

    fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.kill();
    }
}

fn policy(tiers: &str) -> String {
    let callers = calling("second") + &calling("third");
    format!(
        "{callers}---
apiVersion: weft.mesh/v1alpha1
kind: CachePolicy
metadata: {{ name: pages, namespace: {NAMESPACE} }}
spec:
  targetRefs: [{{ kind: Service, name: product }}]
  tags: {{ header: cache-tag }}
  tiers: {{ {tiers} }}
"
    )
}

/// An application whose answers may be kept for ten minutes with the first part of their path as a label, and how many
/// it gave.
async fn counting() -> (Backend, Arc<AtomicU64>) {
    let turns = Arc::new(AtomicU64::new(0));
    let counted = turns.clone();
    let app = Backend::http(move |request| {
        let turn = counted.fetch_add(1, Relaxed);
        async move {
            let response = Response::builder().header("etag", format!("\"{turn}\""));
            let varies = request.uri().path().starts_with("/varies");
            let language = request.headers().get("accept-language").and_then(|value| value.to_str().ok());
            let text = format!("{} {} {turn}", request.uri(), language.unwrap_or("-"));
            let response = if varies { response.header("vary", "accept-language") } else { response };
            let response = match request.method() == "GET" {
                true => {
                    let label = request.uri().path().split('/').nth(1).unwrap_or_default();
                    response
                        .header("cache-control", "max-age=600")
                        .header("cache-tag", label)
                        .body(full(text))
                }
                false => response.body(empty()),
            };
            Ok(response?)
        }
    });
    (app.await, turns)
}

/// What the last cache on the way to us said.
fn said(answer: &Answer) -> &str {
    let last = answer.headers.get_all("cache-status").iter().next_back();
    last.map_or("", |value| value.to_str().expect("text"))
}

fn is_hit_of(answer: &Answer, tier: &str) {
    assert_eq!(answer.status, 200, "{}", answer.text());
    let said = said(answer);
    assert!(said.starts_with("weft; hit; ttl=") && said.ends_with(&format!("; detail={tier}")), "{said}");
}

/// Fetched, and kept in memory. How long it is fresh is not asked: a second may have passed meanwhile.
fn is_from_the_origin(answer: &Answer) {
    assert_eq!(answer.status, 200, "{}", answer.text());
    let said = said(answer);
    assert!(said.starts_with("weft; fwd=uri-miss; ttl=") && said.ends_with("; stored"), "{said}");
}

async fn look_ups(process: &Process, tier: &str, result: &str) -> u64 {
    let labels = [tier, &format!("result=\"{result}\"")];
    process.metrics().await.sum("weft_cache_tier_lookups_total", &labels) as u64
}

async fn kept(process: &Process, tier: &str) -> u64 {
    process.metrics().await.sum("weft_cache_tier_writes_total", &[tier, "result=\"kept\""]) as u64
}

/// Waits until a tier is there. Policy comes with the first request that it is for.
async fn is_there(process: &Process, tier: &str) {
    let client = Client::new(process.outbound());
    client.get(&format!("{URL}/first")).await;
    eventually("the tier is there", PATIENCE + SELDOM, || async {
        let text = process.metrics().await.0;
        let line = format!("weft_cache_tier_away{{{tier}}} 0");
        text.lines().any(|found| found == line).then_some(())
    })
    .await;
}

/// Asks for ever other pages until one of them is kept in a tier; gives its path. An answer that was asked for in the
/// second in which the tier was reached is not.
async fn until_kept(process: &Process, client: &Client, tier: &str, what: &str) -> String {
    is_there(process, tier).await;
    let (before, n) = (kept(process, tier).await, AtomicU64::new(0));
    eventually("an answer is kept in the tier", PATIENCE, || async {
        let path = format!("/{what}/{}", n.fetch_add(1, Relaxed));
        let answer = client.get(&format!("{URL}{path}")).await;
        assert_eq!(said(&answer).split("; ").nth(1), Some("fwd=uri-miss"), "{}", said(&answer));
        tokio::time::sleep(Duration::from_millis(200)).await;
        (kept(process, tier).await > before).then_some(path)
    })
    .await
}

/// How often connecting to Redis came to this.
async fn connects(process: &Process, result: &str) -> u64 {
    let label = format!("result=\"{result}\"");
    process.metrics().await.sum("weft_cache_redis_connects_total", &[&label]) as u64
}

/// Waits until connecting to Redis has come to this, and that no request suffers from it or waits for it.
async fn is_away_for(stage: &Stage, result: &str) {
    let n = AtomicU64::new(0);
    eventually(&format!("connecting to Redis comes to {result}"), PATIENCE + SELDOM, || async {
        let answer = stage.client.get(&format!("{URL}/{result}/{}", n.fetch_add(1, Relaxed))).await;
        is_from_the_origin(&answer);
        (connects(&stage.caller, result).await > 0).then_some(())
    })
    .await;
    let (before, failed) =
        (look_ups(&stage.caller, REDIS, "skipped").await, ["timeout", "error", "miss", "hit"]);
    for n in 0..20 {
        is_from_the_origin(&stage.client.get(&format!("{URL}/away/{result}/{n}")).await);
    }
    assert_eq!(look_ups(&stage.caller, REDIS, "skipped").await, before + 20);
    for asked in failed {
        assert_eq!(look_ups(&stage.caller, REDIS, asked).await, 0, "{asked}");
    }
    let text = stage.caller.metrics().await.0;
    assert!(text.lines().any(|line| line == format!("weft_cache_tier_away{{{REDIS}}} 1")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_sidecar_fetched_is_a_hit_for_another() {
    let Some(redis) = Redis::start() else { return };
    let (app, turns) = counting().await;
    let stage = Stage::set(&policy(&redis.tier("4s")), [Instance::new("product", app)]).await;
    let path = until_kept(&stage.caller, &stage.client, REDIS, "page").await;
    let (second, client) = stage.another("second").await;
    is_there(&second, REDIS).await;
    let asked = turns.load(Relaxed);
    let first = stage.client.get(&format!("{URL}{path}")).await;
    let answer = client.get(&format!("{URL}{path}")).await;
    is_hit_of(&answer, "redis");
    assert_eq!((answer.text(), answer.header("etag")), (first.text(), first.header("etag")));
    assert!(answer.headers.contains_key("age"));
    // From then on it is in memory.
    let answer = client.get(&format!("{URL}{path}")).await;
    assert!(said(&answer).starts_with("weft; hit; ttl=") && !said(&answer).contains("detail"));
    assert_eq!((turns.load(Relaxed), look_ups(&second, REDIS, "hit").await), (asked, 1));
    // Conditions are answered from it too.
    let tag = first.header("etag").to_owned();
    let answer = client.get_with(&format!("{URL}{path}"), &[("if-none-match", &tag)]).await;
    assert_eq!((answer.status.as_u16(), turns.load(Relaxed)), (304, asked));
    // A variant is found by those whom it is for.
    let before = kept(&stage.caller, REDIS).await;
    let german = stage.client.get_with(&format!("{URL}/varies"), &[("accept-language", "de")]).await;
    eventually("the variant is kept", PATIENCE, || async {
        (kept(&stage.caller, REDIS).await > before).then_some(())
    })
    .await;
    let answer = client.get_with(&format!("{URL}/varies"), &[("accept-language", "de")]).await;
    is_hit_of(&answer, "redis");
    assert_eq!(answer.text(), german.text());
    let answer = client.get_with(&format!("{URL}/varies"), &[("accept-language", "fr")]).await;
    assert!(answer.text().contains(" fr "), "{}", answer.text());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_makes_what_is_in_redis_invalid_for_everybody() {
    let Some(redis) = Redis::start() else { return };
    let (app, turns) = counting().await;
    let stage = Stage::set(&policy(&redis.tier("4s")), [Instance::new("product", app)]).await;
    let path = until_kept(&stage.caller, &stage.client, REDIS, "page").await;
    let url = format!("{URL}{path}");
    let (second, client) = stage.another("second").await;
    is_there(&second, REDIS).await;
    let old = stage.client.get(&url).await;
    let changed = stage.client.call(Request::put(&url).body(empty()).expect("valid")).await;
    assert_eq!(changed.status, 200);
    let asked = turns.load(Relaxed);
    eventually("Redis knows", PATIENCE, || async {
        // Where it was changed it is gone at once, elsewhere as soon as Redis knows.
        let answer = stage.client.get(&url).await;
        assert_ne!(answer.text(), old.text());
        let answer = client.get(&url).await;
        (answer.text() != old.text()).then_some(())
    })
    .await;
    assert!(turns.load(Relaxed) > asked);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_hangs_or_is_gone_costs_no_request_anything() {
    let Some(mut redis) = Redis::start() else { return };
    let (app, _turns) = counting().await;
    let stage = Stage::set(&policy(&redis.tier("50ms")), [Instance::new("product", app)]).await;
    until_kept(&stage.caller, &stage.client, REDIS, "page").await;
    redis.signal("-STOP");
    for n in 0..50 {
        let answer = stage.client.get(&format!("{URL}/hangs/{n}")).await;
        is_from_the_origin(&answer);
    }
    let timeouts = look_ups(&stage.caller, REDIS, "timeout").await;
    assert!((1..=10).contains(&timeouts), "{timeouts} requests waited");
    assert!(look_ups(&stage.caller, REDIS, "skipped").await >= 40);
    redis.signal("-CONT");
    is_there(&stage.caller, REDIS).await;
    until_kept(&stage.caller, &stage.client, REDIS, "again").await;
    redis.kill();
    for n in 0..50 {
        let answer = stage.client.get(&format!("{URL}/gone/{n}")).await;
        is_from_the_origin(&answer);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_on_disk_is_a_hit_after_a_restart_without_the_origin() {
    let (app, _turns) = counting().await;
    let mut stage = Stage::set(&policy("disk: { maxBytes: 16MiB }"), [Instance::new("product", app)]).await;
    let (second, client) = stage.another("second").await;
    let kept_one = until_kept(&second, &client, DISK, "page").await;
    let changed_one = until_kept(&second, &client, DISK, "changed").await;
    let before = client.get(&format!("{URL}{kept_one}")).await;
    let change = Request::post(format!("{URL}{changed_one}")).body(empty()).expect("valid");
    assert_eq!(client.call(change).await.status, 200);
    let (at, state) = (second.addresses(), second.state_dir());
    second.drain().await;
    until_free(at).await;
    stage.kill("product");
    let second = stage.mesh.sidecar_unready(Beside::new("second").again(at, state)).await;
    is_there(&second, DISK).await;
    let client = Client::new(second.outbound());
    // A disk that is not quick enough is not waited for.
    let answer = eventually("the disk is quick enough", PATIENCE, || async {
        let answer = client.get(&format!("{URL}{kept_one}")).await;
        (!answer.status.is_server_error()).then_some(answer)
    })
    .await;
    is_hit_of(&answer, "disk");
    assert_eq!(answer.text(), before.text());
    let answer = client.get(&format!("{URL}{changed_one}")).await;
    assert!(answer.status.is_server_error(), "what was changed is gone: {}", answer.text());
    assert!(client.get(&format!("{URL}/never")).await.status.is_server_error());
}

/// Purges of every kind, each with its label; [`Pages`] are what they are for.
const PURGES: [(&str, bool); 6] =
    [("url", false), ("prefix", false), ("tag", false), ("url", true), ("prefix", true), ("tag", true)];

/// Two pages for each purge, and some that stay.
struct Pages;

impl Pages {
    const STAY: u64 = 5;

    fn staying() -> impl Iterator<Item = String> {
        (0..Self::STAY).map(|n| format!("/stays/{n}"))
    }

    /// Finds what stays in a tier: not all of it has to be found, a tier that is not quick enough is not waited for.
    async fn stay(client: &Client, tier: &str) {
        let mut told = Vec::new();
        for path in Self::staying() {
            told.push(said(&client.get(&format!("{URL}{path}")).await).to_owned());
        }
        let detail = format!("; detail={tier}");
        assert!(told.iter().any(|said| said.contains("; hit; ") && said.ends_with(&detail)), "{told:?}");
    }

    fn group(by: &str, soft: bool) -> String {
        format!("{by}-{soft}")
    }

    fn of((by, soft): (&str, bool), n: usize) -> String {
        format!("/{}/{n}", Self::group(by, soft))
    }

    /// Asks for all of them until they are in a tier.
    async fn put(process: &Process, client: &Client, tier: &str) {
        until_kept(process, client, tier, "page").await;
        let before = kept(process, tier).await;
        let all = PURGES.into_iter().flat_map(|purge| [0, 1].map(|n| Self::of(purge, n)));
        for path in all.chain(Self::staying()) {
            client.get(&format!("{URL}{path}")).await;
        }
        eventually("all pages are in the tier", PATIENCE, || async {
            (kept(process, tier).await >= before + 2 * PURGES.len() as u64 + Self::STAY).then_some(())
        })
        .await;
    }

    /// Purges all of them but those that stay.
    async fn purge(mesh: &Mesh, purges: &[(&str, bool)]) {
        for (by, soft) in purges {
            let group = Self::group(by, *soft);
            let what = match *by {
                "url" => [0, 1].map(|n| format!("{URL}{}", Self::of((by, *soft), n))).to_vec(),
                "prefix" => vec![format!("{URL}/{group}/")],
                _ => vec![group],
            };
            for what in what {
                purge_everywhere(mesh, &json!({ *by: what, "soft": soft })).await;
            }
        }
    }

    /// Whoever asks gets what was fetched after so many others.
    async fn are_newer(client: &Client, before: u64, who: &str) {
        for purge in PURGES {
            for n in [0, 1] {
                let path = Self::of(purge, n);
                let answer = client.get(&format!("{URL}{path}")).await;
                let turn = answer.text().rsplit(' ').next().and_then(|turn| turn.parse::<u64>().ok());
                let turn =
                    turn.unwrap_or_else(|| panic!("{who}, {path}: {} {}", answer.status, answer.text()));
                assert!(turn >= before, "{who}, {path}: fetch {turn}, not {before}: {}", said(&answer));
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_purged_is_found_in_redis_by_nobody() {
    let Some(redis) = Redis::start() else { return };
    let (app, turns) = counting().await;
    let stage = Stage::set(&policy(&redis.tier("4s")), [Instance::new("product", app)]).await;
    let (second, client) = stage.another("second").await;
    Pages::put(&stage.caller, &stage.client, REDIS).await;
    is_there(&second, REDIS).await;
    for purge in PURGES {
        is_hit_of(&client.get(&format!("{URL}{}", Pages::of(purge, 0))).await, "redis");
    }
    let before = turns.load(Relaxed);
    Pages::purge(&stage.mesh, &PURGES).await;
    // One that has nothing in memory: what it gives comes from Redis or from the origin.
    let (third, newcomer) = stage.another("third").await;
    is_there(&third, REDIS).await;
    Pages::are_newer(&newcomer, before, "the third").await;
    Pages::stay(&newcomer, "redis").await;
    Pages::are_newer(&client, before, "the second").await;
    Pages::are_newer(&stage.client, before, "the first").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_purged_is_not_on_disk_any_more_not_even_after_a_restart() {
    let (app, turns) = counting().await;
    let stage = Stage::set(&policy("disk: { maxBytes: 16MiB }"), [Instance::new("product", app)]).await;
    let (second, client) = stage.another("second").await;
    Pages::put(&second, &client, DISK).await;
    let before = turns.load(Relaxed);
    Pages::purge(&stage.mesh, &PURGES).await;
    // One of each pair is fetched anew, the other is not asked for until memory is empty.
    for purge in PURGES {
        client.get(&format!("{URL}{}", Pages::of(purge, 0))).await;
    }
    assert_eq!(turns.load(Relaxed), before + PURGES.len() as u64);
    let (at, state) = (second.addresses(), second.state_dir());
    second.drain().await;
    until_free(at).await;
    let second = stage.mesh.sidecar(Beside::new("second").again(at, state)).await;
    is_there(&second, DISK).await;
    let client = Client::new(second.outbound());
    Pages::stay(&client, "disk").await;
    Pages::are_newer(&client, before, "after the restart").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_purged_while_a_sidecar_is_down_is_not_on_its_disk_when_it_is_back() {
    for in_order in [true, false] {
        let (app, turns) = counting().await;
        let mut stage =
            Stage::set(&policy("disk: { maxBytes: 16MiB }"), [Instance::new("product", app)]).await;
        let (second, client) = stage.another("second").await;
        Pages::put(&second, &client, DISK).await;
        let (at, state) = (second.addresses(), second.state_dir());
        if in_order {
            second.drain().await;
        } else {
            drop(second);
        }
        until_free(at).await;
        let gone = |status: &Status| status.sidecars.iter().all(|sidecar| sidecar.workload != "second");
        stage.mesh.until("it is gone", gone).await;
        let before = turns.load(Relaxed);
        // Some of it before the control plane crashes too, the rest afterwards.
        let (some, rest) = PURGES.split_at(PURGES.len() / 2);
        Pages::purge(&stage.mesh, some).await;
        stage.mesh.crash_control_plane(|| {}).await;
        let back = |status: &Status| status.sidecars.len() == 2;
        stage.mesh.until("the others are back", back).await;
        Pages::purge(&stage.mesh, rest).await;
        let second = stage.mesh.sidecar(Beside::new("second").again(at, state)).await;
        // From its first request on.
        let client = Client::new(second.outbound());
        Pages::are_newer(&client, before, if in_order { "after a restart" } else { "after a crash" }).await;
        if in_order {
            is_there(&second, DISK).await;
            Pages::stay(&client, "disk").await;
        }
    }
}
