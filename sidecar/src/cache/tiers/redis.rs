//! A Redis server as a second place for what sidecars of the mesh keep. It makes requests faster where it can and has no
//! say beyond that: no request waits longer for it than the policy allows, none at all while it fails, and nothing is
//! taken from it that a purge was for.

mod connect;
mod known;
mod secret;
mod server;
mod tls;
mod trouble;

pub(crate) use secret::Secrets;

use super::{
    Asked, Found,
    breaker::Breaker,
    directory::{Directory, Place, place},
    wider::{Wider, uri},
};
use crate::{
    cache::{
        entry::{
            Entry,
            packed::{self, Form},
        },
        seconds_now,
    },
    telemetry::metrics::{Given, Looked, Tier, Tiers},
};
use connect::{Connected, Connection, connect};
use known::{Known, Pending};
use redis::RedisResult;
use server::{BACKGROUND, Gift, Names, State};
use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{
    runtime::Handle,
    sync::{Notify, mpsc},
    time::{sleep, timeout},
};
use trouble::Trouble;
use weft_config::snapshot::CacheRedis;

/// How often the purges of others are learned of while nothing is looked up.
const ROUND: Duration = Duration::from_secs(1);
/// Look-ups at once; more are not waited for.
const LOOKING_MAX: usize = 512;
/// Answers that wait to be written, and their bytes.
const WAITING_MAX: usize = 256;
const WAITING_BYTES: usize = 8 << 20;
/// An answer that was on its way for longer is not kept: what it might have missed may be forgotten.
const UNDER_WAY_MAX: u32 = 1800;
/// An answer from a clock that is ahead by more than this is not believed.
const AHEAD_MAX: u32 = 10;

/// The Redis server of one policy.
pub(super) struct Redis {
    policy: Box<str>,
    settings: CacheRedis,
    secrets: Secrets,
    names: Names,
    metrics: Arc<Tiers>,
    link: Mutex<Link>,
    known: Mutex<Known>,
    pending: Mutex<Pending>,
    /// Something is pending.
    wake: Arc<Notify>,
    away: AtomicBool,
    /// What stands in the way, as it was logged last.
    said: Mutex<Option<String>>,
    looking: AtomicUsize,
    waiting: mpsc::Sender<Arc<Entry>>,
    waiting_bytes: AtomicUsize,
}

/// The connections while there are any, and whether they are used.
struct Link {
    breaker: Breaker,
    /// One for look-ups, so that they never wait behind a large answer, and one for everything else.
    connections: Option<(Connection, Connection)>,
    run: String,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where the answers under a key are: the one without `Vary` and the directory of the others, or one of the others.
fn place_of(key: &[u8], selector: &[u8]) -> Place {
    let rest = &key[uri(key).len()..];
    if selector.is_empty() { place(&[rest]) } else { place(&[rest, selector]) }
}

impl Redis {
    /// Begins to connect, on `runtime`. Ends with the last use of what it gives.
    pub(super) fn start(
        policy: &str,
        settings: CacheRedis,
        secrets: Secrets,
        metrics: Arc<Tiers>,
        runtime: &Handle,
    ) -> Arc<Self> {
        let (waiting, mut queue) = mpsc::channel::<Arc<Entry>>(WAITING_MAX);
        let redis = Arc::new(Self {
            policy: policy.into(),
            names: Names::new(&settings.prefix, policy),
            settings,
            secrets,
            link: Mutex::new(Link {
                breaker: Breaker::open(Instant::now()),
                connections: None,
                run: String::new(),
            }),
            known: Mutex::default(),
            pending: Mutex::default(),
            wake: Arc::default(),
            away: AtomicBool::new(false),
            said: Mutex::default(),
            looking: AtomicUsize::new(0),
            waiting,
            waiting_bytes: AtomicUsize::new(0),
            metrics,
        });
        redis.metrics.used(Tier::Redis, true);
        redis.set_away(true);
        let (weak, wake) = (Arc::downgrade(&redis), redis.wake.clone());
        runtime.spawn(Self::attend(weak.clone(), wake));
        runtime.spawn(async move {
            while let Some(entry) = queue.recv().await {
                let Some(redis) = weak.upgrade() else { return };
                redis.waiting_bytes.fetch_sub(entry.length(), Ordering::Relaxed);
                let given = redis.write(&entry).await;
                redis.metrics.given(Tier::Redis, given);
            }
        });
        redis
    }

    pub(super) fn settings(&self) -> &CacheRedis {
        &self.settings
    }

    /// Looks for what a request asks for. Never waits for longer than the policy says.
    pub(super) async fn look_up(&self, asked: &Asked<'_>) -> Option<Found> {
        let guard = Looking::new(&self.looking);
        let connection = locked(&self.link).for_requests().filter(|_| guard.0.is_some());
        let Some(mut connection) = connection.filter(|_| !locked(&self.pending).may_mean(asked.key)) else {
            self.metrics.looked(Tier::Redis, Looked::Skipped);
            return None;
        };
        let looked = timeout(self.settings.timeout, self.look(&mut connection, asked)).await;
        let (came, found) = match looked {
            Ok(Ok(Ok(found))) => (Looked::Hit, Some(found)),
            Ok(Ok(Err(why))) => (why, None),
            Ok(Err(error)) => {
                tracing::debug!(server = %self.settings.address, %error, "a look-up in Redis failed");
                (Looked::Error, None)
            }
            Err(_) => (Looked::Timeout, None),
        };
        self.metrics.looked(Tier::Redis, came);
        match came {
            Looked::Error | Looked::Timeout => self.failed(),
            _ => locked(&self.link).breaker.passed(),
        }
        found
    }

    /// Reads what is there. The inner error says why nothing of it is of use.
    async fn look(
        &self,
        connection: &mut Connection,
        asked: &Asked<'_>,
    ) -> RedisResult<Result<Found, Looked>> {
        let Some(generation) = locked(&self.known).generation() else { return Ok(Err(Looked::Skipped)) };
        let uri = uri(asked.key);
        let plain = [place_of(asked.key, b"")];
        let (values, state) = self.names.read(connection, generation, uri, &plain).await?;
        if let Some(state) = &state {
            // What is asked for from the origin next is asked for after this.
            let mut known = locked(&self.known);
            if !known.is_behind(state) {
                known.learn(*state, None, seconds_now());
            }
        }
        let Some(bytes) = values.into_iter().next().flatten() else { return Ok(Err(Looked::Miss)) };
        self.metrics.read(Tier::Redis, bytes.len());
        let Some((form, content)) = packed::open(&bytes) else { return Ok(Err(Looked::Invalid)) };
        if form == Form::Entry {
            return Ok(self.judge(connection, asked, state, content).await?.and_then(|found| {
                // What depends on no field is for every request; anything else would not lie here.
                if found.entry.selector().is_empty() { Ok(found) } else { Err(Looked::Invalid) }
            }));
        }
        let Some(directory) = Directory::read(content) else { return Ok(Err(Looked::Invalid)) };
        let selectors: Vec<_> = directory.selectors(asked.request).collect();
        let places: Vec<_> = selectors.iter().map(|selector| place_of(asked.key, selector)).collect();
        let (values, state) = self.names.read(connection, generation, uri, &places).await?;
        let mut best: Result<Found, Looked> = Err(Looked::Miss);
        for (bytes, selector) in values.iter().zip(&selectors) {
            let Some(bytes) = bytes else { continue };
            self.metrics.read(Tier::Redis, bytes.len());
            let found = match packed::open(bytes) {
                Some((Form::Entry, content)) => self.judge(connection, asked, state, content).await?,
                _ => Err(Looked::Invalid),
            };
            match found {
                Ok(found) if found.entry.selector() != &selector[..] => best = best.or(Err(Looked::Invalid)),
                Ok(found) if best.as_ref().is_ok_and(|best| best.is_newer(&found)) => {}
                Ok(found) => best = Ok(found),
                Err(why) => best = best.or(Err(why)),
            }
        }
        Ok(best)
    }

    /// Whether what was read is what was asked for and was not purged.
    async fn judge(
        &self,
        connection: &mut Connection,
        asked: &Asked<'_>,
        state: Option<State>,
        content: &[u8],
    ) -> RedisResult<Result<Found, Looked>> {
        let unpacked = packed::unpack(content, asked.key, asked.most, asked.epoch, Tier::Redis);
        let Some((entry, stamp)) = unpacked else { return Ok(Err(Looked::Invalid)) };
        let times = entry.times();
        if times.received > asked.now.saturating_add(AHEAD_MAX) {
            return Ok(Err(Looked::Invalid));
        }
        if times.useful_until < asked.now {
            return Ok(Err(Looked::Miss));
        }
        let Some(state) = state else { return Ok(Err(Looked::Purged)) };
        if locked(&self.known).is_behind(&state) {
            let logged = self.names.logged(connection).await?;
            locked(&self.known).learn(state, Some(logged), seconds_now());
        }
        if locked(&self.known).purged(&state, stamp, &entry) {
            return Ok(Err(Looked::Purged));
        }
        Ok(Ok(Found { entry }))
    }

    /// Gives an answer to be kept, sometime.
    pub(super) fn keep(&self, entry: &Arc<Entry>) {
        let length = entry.length();
        let room = self.waiting_bytes.load(Ordering::Relaxed) + length <= WAITING_BYTES.max(2 * length);
        let away = locked(&self.link).breaker.is_open();
        self.waiting_bytes.fetch_add(length, Ordering::Relaxed);
        if away || !room || self.waiting.try_send(entry.clone()).is_err() {
            self.waiting_bytes.fetch_sub(length, Ordering::Relaxed);
            self.metrics.given(Tier::Redis, Given::Dropped);
        }
    }

    async fn write(&self, entry: &Entry) -> Given {
        let Some(mut connection) = locked(&self.link).for_the_rest() else { return Given::Dropped };
        let (times, now) = (*entry.times(), seconds_now());
        let seconds = times.useful_until.saturating_sub(now);
        let stamp = locked(&self.known).stamp(times.requested);
        let Some(stamp) = stamp.filter(|_| times.requested.saturating_add(UNDER_WAY_MAX) > now) else {
            return Given::Purged;
        };
        if seconds == 0 || locked(&self.pending).may_mean(entry.key_text()) {
            return Given::Purged;
        }
        let Some(bytes) = packed::pack(entry, stamp) else { return Given::Dropped };
        let written = timeout(BACKGROUND, async {
            let (key, selector) = (entry.key_text(), entry.selector());
            let mut gift = Gift {
                uri: uri(key),
                since: stamp.since,
                seconds,
                place: place_of(key, selector),
                bytes: &bytes,
                directory: None,
            };
            if !selector.is_empty() {
                let at = place_of(key, b"");
                let there = self.names.one(&mut connection, stamp.generation, gift.uri, at).await?;
                let there = there.as_deref().and_then(packed::open);
                let directory = match there {
                    Some((Form::Directory, content)) => Directory::read(content),
                    _ => None,
                };
                let changed = directory.unwrap_or_default().with(selector);
                gift.directory = changed.map(|directory| (at, directory.to_bytes()));
            }
            self.names.keep(&mut connection, stamp.generation, &gift).await
        });
        let given = match written.await {
            Ok(Ok(true)) => Given::Kept,
            Ok(Ok(false)) => Given::Purged,
            Ok(Err(_)) | Err(_) => Given::Error,
        };
        match given {
            Given::Error => self.failed(),
            _ => self.metrics.written(Tier::Redis, bytes.len()),
        }
        given
    }

    /// Nothing under this URI is given any more, here from now on and elsewhere as soon as Redis knows.
    pub(super) fn purge_uri(&self, uri: &[u8]) {
        locked(&self.pending).add_uri(uri);
        self.wake.notify_one();
    }

    /// The same for a purge by hand.
    pub(super) fn purge(&self, wider: Wider) {
        locked(&self.pending).add(wider);
        self.wake.notify_one();
    }

    #[cfg(test)]
    pub(super) fn is_connected(&self) -> bool {
        locked(&self.link).for_requests().is_some()
    }

    /// Whether Redis knows all purges.
    pub(super) fn is_settled(&self) -> bool {
        locked(&self.pending).is_empty()
    }

    fn set_away(&self, away: bool) {
        if self.away.swap(away, Ordering::Relaxed) != away {
            self.metrics.away(Tier::Redis, away);
        }
    }

    /// Notes a failure; with enough of them the connections are given up.
    fn failed(&self) {
        let opened = {
            let mut link = locked(&self.link);
            link.breaker.failed(Instant::now()).then(|| link.connections.take())
        };
        if opened.is_some() {
            self.set_away(true);
            tracing::warn!(server = %self.settings.address, "Redis fails; the cache does without it until it is back");
        }
    }

    /// Connects, tells of purges and learns of those of others, for as long as the tier is used.
    async fn attend(weak: Weak<Self>, wake: Arc<Notify>) {
        loop {
            let Some(redis) = weak.upgrade() else { return };
            let wait = redis.round().await;
            drop(redis);
            let _ = timeout(wait, wake.notified()).await;
        }
    }

    /// Gives how long to wait until the next round.
    async fn round(&self) -> Duration {
        let (may_try, open) = {
            let mut link = locked(&self.link);
            (link.breaker.may_try(Instant::now()), link.breaker.is_open())
        };
        if !may_try {
            // A purge wakes the round too; it has to wait like everything else.
            sleep(Duration::from_millis(50)).await;
            return Duration::from_millis(50);
        }
        match self.try_round().await {
            Ok(more) => {
                if locked(&self.link).breaker.succeeded() {
                    self.set_away(false);
                    *locked(&self.said) = None;
                    tracing::info!(policy = %self.policy, server = %self.settings.address, "the cache uses Redis");
                }
                if more { Duration::ZERO } else { ROUND }
            }
            Err(trouble) => {
                self.gave_up(open);
                if open {
                    self.say(&trouble);
                } else {
                    // It worked until now; why it does not any more shows when it is connected to again.
                    tracing::debug!(server = %self.settings.address, %trouble, "Redis failed");
                }
                Duration::from_millis(50)
            }
        }
    }

    /// Connects if there is no connection, and says what is to be said. True if there is more.
    async fn try_round(&self) -> Result<bool, Trouble> {
        let connected = locked(&self.link).for_the_rest();
        let connection = match connected {
            Some(connection) => connection,
            None => {
                let came = connect(&self.settings, &self.secrets, &self.names).await;
                self.metrics.connected(came.as_ref().map_or_else(|trouble| trouble.label(), |_| "connected"));
                let Connected { for_requests, for_the_rest, run } = came?;
                let mut link = locked(&self.link);
                link.run = run;
                link.connections = Some((for_requests, for_the_rest.clone()));
                for_the_rest
            }
        };
        match timeout(3 * BACKGROUND, self.converse(connection)).await {
            Ok(said) => said.map_err(|error| Trouble::talk(&error)),
            Err(_) => Err(Trouble::Silent("an answer")),
        }
    }

    /// Logs what stands in the way of using the server, once until it is something else.
    fn say(&self, trouble: &Trouble) {
        let (server, text) = (&self.settings.address, trouble.to_string());
        let mut said = locked(&self.said);
        if said.as_ref() == Some(&text) {
            tracing::debug!(%server, %trouble, "Redis cannot be used");
            return;
        }
        let cure = match trouble {
            Trouble::Closed if self.settings.tls.is_some() => "see the server's log",
            other => other.cure(),
        };
        tracing::warn!(policy = %self.policy, %server, cure, "the cache does without Redis: {trouble}");
        *said = Some(text);
    }

    fn gave_up(&self, was_open: bool) {
        if !locked(&self.pending).is_empty() {
            self.metrics.purge_failed(Tier::Redis);
        }
        if was_open {
            let mut link = locked(&self.link);
            link.breaker.failed(Instant::now());
            link.connections = None;
        } else {
            self.failed();
        }
    }

    /// Everything that is to be said in one round. True if there is more.
    async fn converse(&self, mut connection: Connection) -> RedisResult<bool> {
        let run = locked(&self.link).run.clone();
        let fresh = fastrand::u64(1..1 << 53);
        let state = self.names.state(&mut connection, &run, fresh).await?;
        let behind = locked(&self.known).is_behind(&state);
        let logged = if behind { Some(self.names.logged(&mut connection).await?) } else { None };
        locked(&self.known).learn(state, logged, seconds_now());
        let batch = locked(&self.pending).batch();
        if batch.is_empty() {
            return Ok(false);
        }
        let numbers = self.names.purge(&mut connection, state.generation, &batch.uris, &batch.wide).await?;
        if numbers.iter().any(|number| *number < 0) {
            // Another generation began: they are told again in that one.
            return Ok(true);
        }
        let latest = numbers.into_iter().max().and_then(|number| u64::try_from(number).ok());
        locked(&self.known).told(state.generation, latest.unwrap_or(0), seconds_now());
        let mut pending = locked(&self.pending);
        pending.told(&batch);
        Ok(!pending.is_empty())
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.set_away(false);
        self.metrics.used(Tier::Redis, false);
        self.wake.notify_one();
    }
}

impl Link {
    fn for_requests(&self) -> Option<Connection> {
        let (connection, _) = self.connections.as_ref().filter(|_| !self.breaker.is_open())?;
        Some(connection.clone())
    }

    fn for_the_rest(&self) -> Option<Connection> {
        self.connections.as_ref().map(|(_, connection)| connection.clone())
    }
}

/// One of the look-ups that may be made at once.
struct Looking<'a>(Option<&'a AtomicUsize>);

impl<'a> Looking<'a> {
    fn new(looking: &'a AtomicUsize) -> Self {
        let free = looking.fetch_add(1, Ordering::Relaxed) < LOOKING_MAX;
        if !free {
            looking.fetch_sub(1, Ordering::Relaxed);
        }
        Self(free.then_some(looking))
    }
}

impl Drop for Looking<'_> {
    fn drop(&mut self) {
        if let Some(looking) = self.0 {
            looking.fetch_sub(1, Ordering::Relaxed);
        }
    }
}
