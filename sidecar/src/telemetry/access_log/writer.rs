//! The way of a line to standard output: a bounded queue and one thread, so that a slow reader costs lines, not latency.

use super::line::Entry;
use crate::telemetry::Metrics;
use std::{
    io::{self, Write},
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    },
    time::{Duration, Instant, SystemTime},
};

/// Lines that may wait: about 2 MiB.
const QUEUE: usize = 4096;
/// Bytes that are written at once while lines keep coming.
const BATCH: usize = 64 * 1024;

/// The access log of the process; clones write to the same one. The thread behind it starts with the first line.
#[derive(Clone)]
pub(crate) struct AccessLog(Arc<Inner>);

struct Inner {
    metrics: Arc<Metrics>,
    queue_length: usize,
    /// `None` inside if the thread could not be started.
    queue: OnceLock<Option<SyncSender<Message>>>,
    /// Waits here for the thread.
    out: Mutex<Option<Box<dyn Write + Send>>>,
}

enum Message {
    Line(String),
    Flush(SyncSender<()>),
}

impl AccessLog {
    /// The log on standard output. Lines that cannot be written in time are counted in `metrics`.
    pub(crate) fn stdout(metrics: Arc<Metrics>) -> Self {
        Self::to(Box::new(io::stdout()), metrics, QUEUE)
    }

    pub(super) fn to(out: Box<dyn Write + Send>, metrics: Arc<Metrics>, queue_length: usize) -> Self {
        let out = Mutex::new(Some(out));
        Self(Arc::new(Inner { metrics, queue_length, queue: OnceLock::new(), out }))
    }

    /// Logs a request. Never waits: with a full queue the line is dropped and counted.
    pub(crate) fn write(&self, entry: Entry<'_>) {
        let line = entry.line(SystemTime::now());
        let sent = match self.queue() {
            Some(queue) => queue.try_send(Message::Line(line)).is_ok(),
            None => false,
        };
        if !sent {
            self.0.metrics.access_log_dropped(1);
        }
    }

    /// Returns once everything logged so far is written, or after `at_most`. True if it is. For the end of the
    /// process; blocks the thread.
    pub(crate) fn flush(&self, at_most: Duration) -> bool {
        let Some(queue) = self.0.queue.get() else { return true };
        let Some(queue) = queue else { return false };
        let until = Instant::now() + at_most;
        let (done, wait) = sync_channel(1);
        let mut message = Message::Flush(done);
        loop {
            match queue.try_send(message) {
                Ok(()) => break,
                Err(TrySendError::Disconnected(_)) => return false,
                Err(TrySendError::Full(again)) => message = again,
            }
            if Instant::now() >= until {
                return false;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        wait.recv_timeout(until.saturating_duration_since(Instant::now())).is_ok()
    }

    fn queue(&self) -> Option<&SyncSender<Message>> {
        let start = || {
            let out = self.0.out.lock().unwrap_or_else(PoisonError::into_inner).take()?;
            let (sender, receiver) = sync_channel(self.0.queue_length);
            let metrics = Arc::clone(&self.0.metrics);
            let started = std::thread::Builder::new()
                .name("access-log".into())
                .spawn(move || run(&receiver, out, &metrics));
            match started {
                Ok(_) => Some(sender),
                Err(error) => {
                    tracing::error!(%error, "the access log has no thread to write it: every line is dropped");
                    None
                }
            }
        };
        self.0.queue.get_or_init(start).as_ref()
    }
}

/// Writes until every [`AccessLog`] is gone.
fn run(queue: &Receiver<Message>, mut out: Box<dyn Write + Send>, metrics: &Metrics) {
    let mut batch = Batch::default();
    while let Ok(first) = queue.recv() {
        let mut next = Some(first);
        while let Some(message) = next {
            match message {
                Message::Line(line) => {
                    batch.bytes.extend_from_slice(line.as_bytes());
                    batch.lines += 1;
                    if batch.bytes.len() >= BATCH {
                        batch.write(&mut *out, metrics);
                    }
                }
                Message::Flush(done) => {
                    batch.write(&mut *out, metrics);
                    // Whoever asked may have given up.
                    let _ = done.try_send(());
                }
            }
            next = queue.try_recv().ok();
        }
        batch.write(&mut *out, metrics);
    }
}

#[derive(Default)]
struct Batch {
    bytes: Vec<u8>,
    lines: u64,
}

impl Batch {
    fn write(&mut self, out: &mut dyn Write, metrics: &Metrics) {
        if self.lines > 0 && out.write_all(&self.bytes).and_then(|()| out.flush()).is_err() {
            metrics.access_log_dropped(self.lines);
        }
        self.bytes.clear();
        self.lines = 0;
    }
}
