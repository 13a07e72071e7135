//! A steady stream of calls, and what became of each.

use crate::{Client, PATIENCE, empty, eventually};
use http::Request;
use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{
    task::JoinHandle,
    time::{MissedTickBehavior, interval, timeout},
};

/// Clients that call at once, usually.
const CLIENTS: u32 = 8;
/// Failures that are kept in words.
const KEPT: usize = 10;

/// Calls under way until [`Load::stop`].
pub struct Load {
    stop: Arc<AtomicBool>,
    seen: Arc<Mutex<Seen>>,
    clients: Vec<JoinHandle<()>>,
}

/// What became of the calls so far.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Calls that were answered with 200.
    pub ok: u64,
    /// Calls that were not.
    pub failed: u64,
    /// The first of those, in words.
    pub failures: Vec<String>,
    /// Answers by their text.
    pub texts: BTreeMap<String, u64>,
    /// The text of the last answers, and how many had it one after another.
    pub streak: (String, u64),
}

impl Load {
    /// GETs `url` through the proxy at `proxy`, `rate` times a second as far as the machine can.
    pub fn start(proxy: SocketAddr, url: &str, rate: u32) -> Self {
        Self::start_with(proxy, url, rate, CLIENTS)
    }

    /// The same with so many clients at once.
    pub fn start_with(proxy: SocketAddr, url: &str, rate: u32, at_once: u32) -> Self {
        let (stop, seen) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Seen::default())));
        let clients = (0..at_once)
            .map(|_| {
                let (stop, seen, url) = (stop.clone(), seen.clone(), url.to_owned());
                tokio::spawn(async move {
                    let client = Client::new(proxy);
                    let mut ticks = interval(Duration::from_secs(1) * at_once / rate);
                    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
                    while !stop.load(Ordering::Relaxed) {
                        ticks.tick().await;
                        let request = Request::get(url.as_str()).body(empty()).expect("a request");
                        let failure = match timeout(PATIENCE, client.try_call(request)).await {
                            Ok(Ok(answer)) if answer.status == 200 => {
                                seen.lock().expect("not poisoned").answered(answer.text());
                                continue;
                            }
                            Ok(Ok(answer)) => format!("{}: {}", answer.status, answer.text()),
                            Ok(Err(error)) => format!("{error:?}"),
                            Err(_) => "no answer in time".to_owned(),
                        };
                        let mut seen = seen.lock().expect("not poisoned");
                        seen.failed += 1;
                        if seen.failures.len() < KEPT {
                            seen.failures.push(failure);
                        }
                    }
                })
            })
            .collect();
        Self { stop, seen, clients }
    }

    /// What became of the calls so far.
    pub fn seen(&self) -> Seen {
        self.seen.lock().expect("not poisoned").clone()
    }

    /// Waits until `count` answers one after another had this text.
    pub async fn streak(&self, text: &str, count: u64) {
        let until = std::time::Instant::now() + PATIENCE;
        while std::time::Instant::now() < until {
            let (last, length) = self.seen.lock().expect("not poisoned").streak.clone();
            if last == text && length >= count {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("not {count} answers `{text}` in a row within {PATIENCE:?}: {:?}", self.seen());
    }

    /// Waits until so many more calls were answered with 200.
    pub async fn goes_on(&self, calls: u64) {
        let before = self.seen().ok;
        eventually(&format!("{calls} more calls"), PATIENCE, || async {
            (self.seen().ok >= before + calls).then_some(())
        })
        .await;
    }

    /// Lets what is under way end; gives what became of everything.
    pub async fn stop(self) -> Seen {
        self.stop.store(true, Ordering::Relaxed);
        for client in self.clients {
            client.await.expect("a client that did not panic");
        }
        self.seen.lock().expect("not poisoned").clone()
    }
}

impl Seen {
    fn answered(&mut self, text: &str) {
        self.ok += 1;
        *self.texts.entry(text.to_owned()).or_default() += 1;
        if self.streak.0 == text {
            self.streak.1 += 1;
        } else {
            self.streak = (text.to_owned(), 1);
        }
    }

    /// Panics unless all of at least `least` calls were answered with 200.
    pub fn expect_all_ok(&self, least: u64) {
        assert_eq!(self.failed, 0, "{:?}", self.failures);
        assert!(self.ok >= least, "only {} calls were made", self.ok);
    }
}
