//! With a real server: shared, purged, slow, gone, restarted, and with somebody else's bytes in it.

use super::*;
use crate::cache::store::choices::prefix;
use std::{
    net::{TcpListener, TcpStream},
    process::{Child, Command, Stdio},
};

/// A Redis server with a directory of its own.
struct Server {
    port: u16,
    dir: tempfile::TempDir,
    child: Child,
}

impl Server {
    /// `None` where there is none installed.
    fn start() -> Option<Self> {
        // Somebody else may take a port that was free.
        for _ in 0..5 {
            let port =
                TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("has a port").port();
            let dir = tempfile::tempdir().expect("has a directory");
            let mut child = Self::spawn(port, &dir)?;
            if child.try_wait().expect("it can be looked at").is_none() {
                return Some(Self { port, dir, child });
            }
        }
        panic!("redis-server finds no port");
    }

    /// Starts one, and waits until it listens or ends.
    fn spawn(port: u16, dir: &tempfile::TempDir) -> Option<Child> {
        let spawned = Command::new("redis-server")
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
            .arg("--dir")
            .arg(dir.path())
            .stdout(Stdio::null())
            .spawn();
        let mut child = match spawned {
            Ok(child) => child,
            Err(error) => {
                assert!(std::env::var_os("CI").is_none(), "no redis-server: {error}");
                #[allow(clippy::print_stderr)]
                {
                    eprintln!("redis-server is missing: nothing is tested");
                }
                return None;
            }
        };
        for _ in 0..TRIES {
            let ended = child.try_wait().expect("it can be looked at").is_some();
            if ended || TcpStream::connect(("127.0.0.1", port)).is_ok() {
                return Some(child);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("redis-server does not listen");
    }

    fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    fn rules(&self) -> CacheRules {
        rules("shop/pages", Some(&self.address()))
    }

    async fn sidecar(&self) -> Sidecar {
        let sidecar = Sidecar::new(&self.rules(), None);
        connected(&sidecar).await;
        sidecar
    }

    fn signal(&self, name: &str) {
        let done = Command::new("kill").args([name, &self.child.id().to_string()]).status();
        assert!(done.expect("there is kill").success());
    }

    fn stop(&mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("it ends");
    }

    fn start_again(&mut self) {
        self.child = Self::spawn(self.port, &self.dir).expect("it was there before");
    }

    async fn connection(&self) -> ::redis::aio::MultiplexedConnection {
        let client = ::redis::Client::open(format!("redis://{}/", self.address())).expect("is an address");
        client.get_multiplexed_async_connection().await.expect("connects")
    }

    /// The keys of URIs.
    async fn keys(&self) -> Vec<Vec<u8>> {
        let mut connection = self.connection().await;
        let mut command = ::redis::cmd("KEYS");
        let keys: Vec<Vec<u8>> = command.arg("*").query_async(&mut connection).await.expect("answers");
        keys.into_iter().filter(|key| !key.ends_with(b":state") && !key.ends_with(b":purges")).collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn redis(sidecar: &Sidecar) -> &Redis {
    sidecar.farther.redis.as_ref().expect("has Redis")
}

async fn connected(sidecar: &Sidecar) {
    eventually(|| redis(sidecar).is_connected()).await;
}

async fn settled(sidecar: &Sidecar) {
    eventually(|| sidecar.farther.is_settled()).await;
}

const KEY: &str = "http://shop:80/products/1\nG\nSx";
const OTHER: &str = "http://shop:80/carts/1\nG\nSx";

#[tokio::test]
async fn what_one_keeps_another_finds() {
    let Some(server) = Server::start() else { return };
    let (a, b) = (server.sidecar().await, server.sidecar().await);
    assert!(!b.finds(KEY).await);
    a.farther.keep(&new_answer(KEY, "", "hello"));
    a.given(Tier::Redis, Given::Kept, 1).await;
    let found = b.found(KEY, &[]).await;
    assert_eq!((found.bytes(), found.brought()), (Bytes::from("hello"), Some(Tier::Redis)));
    assert!(!b.finds("http://shop:80/products/1\nG\nSy").await, "another key of the same URI");
    // What came from there is not given back.
    b.farther.keep(&Arc::new(found));
    b.farther.keep(&new_answer(OTHER, "", "x"));
    b.given(Tier::Redis, Given::Kept, 1).await;
    assert_eq!(b.metrics.gifts(Tier::Redis, Given::Kept), 1);
    // Values do not outlive their use.
    let mut connection = server.connection().await;
    for key in server.keys().await {
        let left: i64 =
            ::redis::cmd("TTL").arg(&key[..]).query_async(&mut connection).await.expect("answers");
        assert!((1..=600).contains(&left), "{left}");
    }
    b.found(KEY, &[]).await;
    let late = b.farther.look_up(KEY.as_bytes(), &HeaderMap::new(), seconds() + 700, 0, MOST).await;
    assert!(late.is_none(), "it is of no use any more");
}

#[tokio::test]
async fn variants_are_chosen_by_what_vary_names() {
    let Some(server) = Server::start() else { return };
    let (a, b) = (server.sidecar().await, server.sidecar().await);
    for (selector, body) in [
        ("accept-language=de\n", "Hallo"),
        ("accept-language=en\n", "Hello"),
        ("accept-encoding\naccept-language=fr\n", "Bonjour"),
    ] {
        a.farther.keep(&new_answer(KEY, selector, body));
    }
    a.given(Tier::Redis, Given::Kept, 3).await;
    for (language, body) in
        [("de", Some("Hallo")), ("en", Some("Hello")), ("fr", Some("Bonjour")), ("it", None)]
    {
        let found = b.look_up(KEY, &[("accept-language", language)]).await;
        assert_eq!(found.map(|found| found.bytes()), body.map(Bytes::from), "{language}");
    }
    assert!(b.look_up(KEY, &[]).await.is_none());
    // The answer that depends on nothing takes the place of those that did.
    a.farther.keep(&new_answer(KEY, "", "one for all"));
    a.given(Tier::Redis, Given::Kept, 4).await;
    let found = b.found(KEY, &[("accept-language", "de")]).await;
    assert_eq!(found.bytes(), "one for all");
}

#[tokio::test]
async fn a_purge_holds_for_everybody() {
    let Some(server) = Server::start() else { return };
    let (a, b) = (server.sidecar().await, server.sidecar().await);
    let uri = b"http://shop:80/products/1\n";
    type Purge<'a> = &'a dyn Fn(&Sidecar);
    let purges: [(&str, Purge<'_>); 5] = [
        ("URI", &|sidecar| sidecar.farther.purge_uri(uri)),
        ("key", &|sidecar| sidecar.farther.purge_uri(KEY.as_bytes())),
        ("prefix", &|sidecar| sidecar.farther.purge(&prefix(b"http://shop:80/products"))),
        ("tag", &|sidecar| sidecar.farther.purge(&What::Tag((*b"t").into()))),
        ("all", &|sidecar| sidecar.farther.purge(&What::All)),
    ];
    for (at, (what, purge)) in (1..).zip(purges) {
        let kept = a.metrics.gifts(Tier::Redis, Given::Kept);
        a.farther.keep(&answer(KEY, "", "old", seconds() + 8));
        a.given(Tier::Redis, Given::Kept, kept + 1).await;
        a.found(KEY, &[]).await;
        b.found(KEY, &[]).await;
        purge(&a);
        assert!(!a.finds(KEY).await, "{what}: at once where it was made");
        settled(&a).await;
        assert!(!a.finds(KEY).await && !b.finds(KEY).await, "{what}: everywhere as soon as Redis knows");
        // What was asked for before the purge, by somebody who did not know, is not taken in or not given.
        b.farther.keep(&old_answer(KEY, "asked for before"));
        eventually(|| b.metrics.gifts(Tier::Redis, Given::Purged) >= at).await;
        assert!(!a.finds(KEY).await && !b.finds(KEY).await, "{what}: what was on its way");
    }
    // After the purge it is kept again.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let kept = b.metrics.gifts(Tier::Redis, Given::Kept);
    b.farther.keep(&answer(KEY, "", "new", seconds() + 9));
    b.given(Tier::Redis, Given::Kept, kept + 1).await;
    assert_eq!(a.found(KEY, &[]).await.bytes(), "new");
}

#[tokio::test]
async fn a_purge_waits_for_a_server_that_is_gone() {
    let Some(mut server) = Server::start() else { return };
    let (a, b) = (server.sidecar().await, server.sidecar().await);
    a.farther.keep(&new_answer(KEY, "", "old"));
    a.given(Tier::Redis, Given::Kept, 1).await;
    let mut connection = server.connection().await;
    let _: String = ::redis::cmd("SAVE").query_async(&mut connection).await.expect("saves");
    server.stop();
    a.farther.purge_uri(KEY.as_bytes());
    assert!(!a.finds(KEY).await && !a.farther.is_settled());
    // It comes back with what it had: a state from before purges that it may have known.
    server.start_again();
    assert!(!server.keys().await.is_empty(), "it still has the answer");
    settled(&a).await;
    connected(&a).await;
    connected(&b).await;
    assert!(!a.finds(KEY).await && !b.finds(KEY).await);
}

/// A server that starts anew with an older state has forgotten purges, but not what they were for.
#[tokio::test]
async fn a_server_that_forgot_purges_is_not_believed() {
    let Some(mut server) = Server::start() else { return };
    let a = server.sidecar().await;
    a.farther.keep(&new_answer(KEY, "", "old"));
    a.given(Tier::Redis, Given::Kept, 1).await;
    let mut connection = server.connection().await;
    let _: String = ::redis::cmd("SAVE").query_async(&mut connection).await.expect("saves");
    a.farther.purge(&What::All);
    settled(&a).await;
    server.stop();
    server.start_again();
    let b = server.sidecar().await;
    assert!(!server.keys().await.is_empty(), "it still has the answer");
    assert!(!b.finds(KEY).await);
    eventually(|| redis(&a).is_connected()).await;
    assert!(!a.finds(KEY).await);
}

#[tokio::test]
async fn a_server_that_hangs_is_waited_for_a_few_times_and_then_not_at_all() {
    let Some(server) = Server::start() else { return };
    let mut impatient = server.rules();
    impatient.tiers.redis.as_mut().expect("has Redis").timeout = Duration::from_millis(100);
    let a = Sidecar::new(&impatient, None);
    connected(&a).await;
    a.farther.keep(&new_answer(KEY, "", "hello"));
    a.given(Tier::Redis, Given::Kept, 1).await;
    server.signal("-STOP");
    for _ in 0..20 {
        assert!(!a.finds(KEY).await);
    }
    let timeouts = a.metrics.look_ups(Tier::Redis, Looked::Timeout);
    assert!((1..=8).contains(&timeouts), "{timeouts}");
    assert!(a.metrics.look_ups(Tier::Redis, Looked::Skipped) >= 12);
    a.farther.keep(&new_answer(OTHER, "", "x"));
    a.given(Tier::Redis, Given::Dropped, 1).await;
    server.signal("-CONT");
    connected(&a).await;
    // The same run of the server: what it has holds.
    a.found(KEY, &[]).await;
}

#[tokio::test]
async fn a_server_that_is_not_there_is_never_waited_for() {
    let port = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("has a port").port();
    let a = Sidecar::new(&rules("shop/pages", Some(&format!("127.0.0.1:{port}"))), None);
    for _ in 0..50 {
        assert!(!a.finds(KEY).await);
    }
    assert_eq!(a.metrics.look_ups(Tier::Redis, Looked::Skipped), 50);
}

#[tokio::test]
async fn wrong_bytes_are_passed_over() {
    let Some(server) = Server::start() else { return };
    let a = server.sidecar().await;
    a.farther.keep(&new_answer(KEY, "", "hello"));
    a.farther.keep(&new_answer(OTHER, "accept=a\n", "hello"));
    a.given(Tier::Redis, Given::Kept, 2).await;
    let mut connection = server.connection().await;
    let all = |keys: Vec<Vec<u8>>| keys;
    let mut wrongs: Vec<Vec<u8>> = vec![vec![], b"wfE1".to_vec(), vec![0; 5000]];
    for key in all(server.keys().await) {
        let fields: Vec<(Vec<u8>, Vec<u8>)> =
            ::redis::cmd("HGETALL").arg(&key[..]).query_async(&mut connection).await.expect("answers");
        // What belongs elsewhere, and what is cut off.
        wrongs.extend(fields.into_iter().flat_map(|(_, value)| [value[..value.len() - 1].to_vec(), value]));
    }
    let mut missed = 0;
    for wrong in wrongs {
        for key in server.keys().await {
            let fields: Vec<Vec<u8>> =
                ::redis::cmd("HKEYS").arg(&key[..]).query_async(&mut connection).await.expect("answers");
            for field in fields {
                let mut command = ::redis::cmd("HSET");
                let _: i64 = command
                    .arg(&key[..])
                    .arg(&field[..])
                    .arg(&wrong[..])
                    .query_async(&mut connection)
                    .await
                    .expect("answers");
            }
        }
        for key in [KEY, OTHER] {
            if let Some(found) = a.look_up(key, &[("accept", "a")]).await {
                assert_eq!((found.key_text(), found.bytes()), (key.as_bytes(), "hello".into()));
            } else {
                missed += 1;
            }
        }
    }
    assert!(missed > 10 && a.metrics.look_ups(Tier::Redis, Looked::Invalid) >= 6);
    // Another kind of value altogether is an error of that look-up and nothing more.
    for key in server.keys().await {
        let mut command = ::redis::cmd("SET");
        let _: String = command.arg(&key[..]).arg("x").query_async(&mut connection).await.expect("answers");
    }
    assert!(!a.finds(KEY).await);
}
