//! What one worker counts outside any series, and the handle through which it does so.

use super::{
    AttemptResult, ConnectionState, Direction, Hedged, Metrics, Path, Retry, RetryRefused, Series,
    ServiceSeries,
    labels::{HANDSHAKE_RESULTS, handshake_index},
};
use crate::error::Kind;
use std::{
    cell::RefCell,
    collections::HashMap,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};
use weft_config::identity::MeshProtocol;

/// Names of one kind that one worker finds again without the registry's lock.
const KNOWN: usize = 256;

/// One number with one writer, the worker it belongs to; scrapes read it. A plain load and store is enough, and much
/// cheaper than an atomic addition. A gauge goes below zero by wrapping; sums over shards wrap back.
#[derive(Default)]
pub(super) struct Cell(AtomicU64);

impl Cell {
    pub(super) fn add(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(n), Relaxed);
    }

    pub(super) fn sub(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_sub(n), Relaxed);
    }

    pub(super) fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// What happened because of one name in policy (an authorization rule refused a call, something deprecated was called),
/// one cell a worker: it is rare enough to share cache lines.
pub(super) type Denials = Box<[Cell]>;

/// One worker's numbers with fixed labels; aligned so that no two workers write the same cache line.
#[derive(Default)]
#[repr(align(128))]
pub(super) struct Cells {
    pub(super) errors: [Cell; Kind::ALL.len()],
    pub(super) retries: [Cell; Retry::ALL.len()],
    pub(super) retries_refused: [Cell; RetryRefused::ALL.len()],
    pub(super) hedges: [Cell; Hedged::ALL.len()],
    pub(super) handshakes: [[Cell; HANDSHAKE_RESULTS]; 2],
    pub(super) connections_total: [Cell; 2],
    pub(super) connections: [[Cell; ConnectionState::ALL.len()]; 2],
    pub(super) upstream_connections: [Cell; MeshProtocol::ALL.len()],
}

/// One worker's way to count. Cheap to clone; stays on its worker's thread.
#[derive(Clone)]
pub(crate) struct Shard(Rc<Inner>);

struct Inner {
    worker: usize,
    metrics: Arc<Metrics>,
    /// Rules that denied something here before: a denial names its rule only when it happens.
    rules: Known,
    /// Deprecated things that were called here before.
    deprecated: Known,
}

type Known = RefCell<HashMap<Arc<str>, Arc<Denials>, foldhash::fast::RandomState>>;

impl Shard {
    /// The handle of one worker. Make one per worker, on its own thread, and clone it there: every number in a shard
    /// has a single writer. A number beyond the last worker's counts into the last.
    pub(crate) fn new(metrics: Arc<Metrics>, worker: usize) -> Self {
        let worker = worker.min(metrics.workers() - 1);
        Self(Rc::new(Inner { worker, metrics, rules: RefCell::default(), deprecated: RefCell::default() }))
    }

    /// The worker's number.
    pub(crate) fn worker(&self) -> usize {
        self.0.worker
    }

    /// The registry behind all shards.
    pub(crate) fn metrics(&self) -> &Arc<Metrics> {
        &self.0.metrics
    }

    /// A request ended: counted by status and timed.
    pub(crate) fn request(&self, series: &Series, status: u16, grpc_status: Option<u16>, took: Duration) {
        series.record(self.0.worker, status, grpc_status, took);
    }

    /// The sidecar answered or gave up by itself.
    pub(crate) fn error(&self, kind: Kind) {
        count(self.cells().errors.get(kind as usize), 1);
    }

    /// One attempt at a service ended.
    pub(crate) fn attempt(&self, service: &ServiceSeries, result: AttemptResult) {
        service.attempt(self.0.worker, result);
    }

    /// A request is tried again.
    pub(crate) fn retry(&self, reason: Retry) {
        count(self.cells().retries.get(reason as usize), 1);
    }

    /// A failed request is not tried again, although another attempt might have helped.
    pub(crate) fn retry_refused(&self, reason: RetryRefused) {
        count(self.cells().retries_refused.get(reason as usize), 1);
    }

    /// A slow call got a second attempt, or did not get it.
    pub(crate) fn hedge(&self, result: Hedged) {
        count(self.cells().hedges.get(result as usize), 1);
    }

    /// A TLS handshake ended: `ok`, a [`HandshakeFailure`](crate::tls::HandshakeFailure) by name, or
    /// `plaintext_refused` where mTLS is demanded and none was tried. Anything else counts as `other`.
    pub(crate) fn handshake(&self, direction: Direction, result: &str) {
        let of_direction = self.cells().handshakes.get(direction as usize);
        count(of_direction.and_then(|results| results.get(handshake_index(result))), 1);
    }

    /// Bytes of opaque connections, counted as they pass or at the end.
    pub(crate) fn tcp_bytes(
        &self,
        service: &ServiceSeries,
        direction: Direction,
        to_upstream: u64,
        to_downstream: u64,
    ) {
        service.tcp_bytes(self.0.worker, direction, to_upstream, to_downstream);
    }

    /// Authorization refused a call because of this rule (a name from policy).
    pub(crate) fn authorization_denied(&self, rule: &Arc<str>) {
        self.count_named(&self.0.rules, rule, Metrics::rule);
    }

    /// Something was called that policy says is going away (`Deprecation::of`).
    pub(crate) fn deprecated_call(&self, of: &Arc<str>) {
        self.count_named(&self.0.deprecated, of, Metrics::deprecated);
    }

    fn count_named(&self, known: &Known, name: &Arc<str>, find: fn(&Metrics, &str) -> Arc<Denials>) {
        let mut known = known.borrow_mut();
        if let Some(cells) = known.get(name) {
            return count(cells.get(self.0.worker), 1);
        }
        let cells = find(&self.0.metrics, name);
        count(cells.get(self.0.worker), 1);
        if known.len() >= KNOWN {
            known.clear();
        }
        known.insert(Arc::clone(name), cells);
    }

    /// Where the time of requests to a service that is served here goes. Make one per connection, not per request.
    pub(crate) fn path(&self, service: &str) -> Path {
        Path::new(self.0.worker, self.0.metrics.path(service))
    }

    /// A downstream connection was accepted. It counts as open until the guard goes.
    pub(crate) fn connection_opened(&self, direction: Direction) -> Connection {
        count(self.cells().connections_total.get(direction as usize), 1);
        let connection = Connection { shard: self.clone(), direction, state: ConnectionState::Opening };
        connection.cell().add(1);
        connection
    }

    /// An upstream connection is ready; one in plain text counts under the protocol it speaks. It counts until the
    /// guard goes.
    pub(crate) fn upstream_connection(&self, protocol: MeshProtocol) -> UpstreamConnection {
        let connection = UpstreamConnection { shard: self.clone(), protocol };
        connection.cell().add(1);
        connection
    }

    fn cells(&self) -> &Cells {
        // `Metrics` has at least one worker's cells and `Shard::new` keeps the number below their count.
        &self.0.metrics.cells[self.0.worker]
    }
}

fn count(cell: Option<&Cell>, n: u64) {
    if let Some(cell) = cell {
        cell.add(n);
    }
}

/// A downstream connection while it lives, whichever way it ends.
#[must_use = "the connection stops being counted when this goes"]
pub(crate) struct Connection {
    shard: Shard,
    direction: Direction,
    state: ConnectionState,
}

impl Connection {
    /// Goes on to another state.
    pub(crate) fn enter(&mut self, state: ConnectionState) {
        self.cell().sub(1);
        self.state = state;
        self.cell().add(1);
    }

    fn cell(&self) -> &Cell {
        &self.shard.cells().connections[self.direction as usize][self.state as usize]
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.cell().sub(1);
    }
}

/// An upstream connection while it lives.
#[must_use = "the connection stops being counted when this goes"]
pub(crate) struct UpstreamConnection {
    shard: Shard,
    protocol: MeshProtocol,
}

impl UpstreamConnection {
    fn cell(&self) -> &Cell {
        &self.shard.cells().upstream_connections[self.protocol as usize]
    }
}

impl Drop for UpstreamConnection {
    fn drop(&mut self) {
        self.cell().sub(1);
    }
}
