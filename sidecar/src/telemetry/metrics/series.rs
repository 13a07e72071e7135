//! Series whose labels come from policy: requests per route and backend, and what is counted per service.

use super::{AttemptResult, Direction, Health, OTHER, guarded::Guarded, shard::Cell};
use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

/// What tells one series of requests from another. All names come from policy, never from the wire.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct SeriesKey {
    /// Which way.
    pub(crate) direction: Direction,
    /// The service that was called, `<namespace>/<name>`.
    pub(crate) service: Arc<str>,
    /// The route rule that took the request; empty if the service has no routes.
    pub(crate) route: Arc<str>,
    /// The service that the rule chose, `<namespace>/<name>`; empty if none was.
    pub(crate) backend: Arc<str>,
    /// Whether the hop to or from the peer was mutual TLS.
    pub(crate) mtls: bool,
}

impl SeriesKey {
    pub(super) fn other(direction: Direction, mtls: bool) -> Self {
        let other: Arc<str> = OTHER.into();
        Self { direction, service: Arc::clone(&other), route: Arc::clone(&other), backend: other, mtls }
    }
}

/// Upper bounds of the duration histogram in nanoseconds: 100 µs to 60 s.
pub(super) const BUCKETS: [u64; 16] = [
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    500_000_000,
    1_000_000_000,
    2_500_000_000,
    10_000_000_000,
    60_000_000_000,
];

/// The statuses with a count of their own: what IANA has registered, and 499 for a caller that went away.
pub(super) const STATUSES: [u16; 63] = [
    100, 101, 102, 103, 200, 201, 202, 203, 204, 205, 206, 207, 208, 226, 300, 301, 302, 303, 304, 305, 307,
    308, 400, 401, 402, 403, 404, 405, 406, 407, 408, 409, 410, 411, 412, 413, 414, 415, 416, 417, 418, 421,
    422, 423, 424, 425, 426, 428, 429, 431, 451, 499, 500, 501, 502, 503, 504, 505, 506, 507, 508, 510, 511,
];
/// Where statuses without a count of their own go.
const STATUS_OTHER: usize = STATUSES.len();
/// gRPC has statuses 0 to 16.
const GRPC_OTHER: usize = 17;

/// Index into the counts by status, for 0 to 599.
const STATUS_INDEX: [u8; 600] = {
    let mut table = [STATUS_OTHER as u8; 600];
    let mut index = 0;
    while index < STATUSES.len() {
        table[STATUSES[index] as usize] = index as u8;
        index += 1;
    }
    table
};

/// Requests with the same labels: counts by status and a histogram of durations, apart for each worker.
pub(crate) struct Series {
    /// A worker's part is made when it first records: most workers never see most routes.
    shards: Box<[OnceLock<Box<RequestCells>>]>,
}

#[repr(align(128))]
struct RequestCells {
    /// Answers that are not gRPC, or gRPC answers whose HTTP status is not 200: there it is the HTTP status that
    /// says what happened.
    statuses: [Cell; STATUSES.len() + 1],
    /// gRPC answers with HTTP status 200.
    grpc: [Cell; GRPC_OTHER + 1],
    buckets: [Cell; BUCKETS.len() + 1],
    nanoseconds: Cell,
}

impl RequestCells {
    fn new() -> Box<Self> {
        Box::new(Self {
            statuses: std::array::from_fn(|_| Cell::default()),
            grpc: std::array::from_fn(|_| Cell::default()),
            buckets: std::array::from_fn(|_| Cell::default()),
            nanoseconds: Cell::default(),
        })
    }
}

impl Series {
    pub(super) fn new(workers: usize) -> Self {
        Self { shards: (0..workers).map(|_| OnceLock::new()).collect() }
    }

    /// Counts one finished request. Only `worker` itself may call this with its number.
    pub(crate) fn record(&self, worker: usize, status: u16, grpc_status: Option<u16>, took: Duration) {
        let Some(shard) = self.shards.get(worker) else { return };
        let cells = shard.get_or_init(RequestCells::new);
        match grpc_status {
            Some(code) if status == 200 => cells.grpc[usize::from(code).min(GRPC_OTHER)].add(1),
            _ => {
                let index = STATUS_INDEX.get(usize::from(status)).map_or(STATUS_OTHER, |i| usize::from(*i));
                cells.statuses[index].add(1);
            }
        }
        let nanoseconds =
            took.as_secs().saturating_mul(1_000_000_000).saturating_add(took.subsec_nanos().into());
        cells.buckets[BUCKETS.partition_point(|bound| *bound < nanoseconds)].add(1);
        cells.nanoseconds.add(nanoseconds);
    }

    /// The sum over all workers; `None` if nothing was recorded yet.
    pub(super) fn sum(&self) -> Option<RequestSum> {
        let mut sum: Option<RequestSum> = None;
        for cells in self.shards.iter().filter_map(OnceLock::get) {
            let sum = sum.get_or_insert_with(RequestSum::default);
            for (status, cell) in STATUSES.iter().map(Some).chain([None]).zip(&cells.statuses) {
                sum.add(status.copied(), None, cell.get());
            }
            for (code, cell) in cells.grpc.iter().enumerate() {
                sum.add(Some(200), Some(code), cell.get());
            }
            for (total, cell) in sum.buckets.iter_mut().zip(&cells.buckets) {
                *total += cell.get();
            }
            sum.nanoseconds = sum.nanoseconds.wrapping_add(cells.nanoseconds.get());
        }
        sum
    }
}

/// Requests of one series, over all workers.
#[derive(Default)]
pub(super) struct RequestSum {
    /// HTTP status (`None`: other), gRPC status if it is a gRPC answer, count above zero.
    pub(super) statuses: Vec<(Option<u16>, Option<usize>, u64)>,
    /// One count a bucket (not cumulative), the last without an upper bound.
    pub(super) buckets: [u64; BUCKETS.len() + 1],
    pub(super) nanoseconds: u64,
}

impl RequestSum {
    fn add(&mut self, status: Option<u16>, grpc: Option<usize>, count: u64) {
        if count == 0 {
            return;
        }
        match self.statuses.iter_mut().find(|known| (known.0, known.1) == (status, grpc)) {
            Some(known) => known.2 += count,
            None => self.statuses.push((status, grpc, count)),
        }
    }

    /// The label value of a gRPC status.
    pub(super) fn grpc_name(grpc: Option<usize>) -> String {
        match grpc {
            None => String::new(),
            Some(GRPC_OTHER) => OTHER.into(),
            Some(code) => code.to_string(),
        }
    }
}

/// What is counted per service, apart for each worker where a worker counts it.
pub(crate) struct ServiceSeries {
    shards: Box<[OnceLock<Box<ServiceCells>>]>,
    endpoints: AtomicU64,
    /// By direction.
    queues: [Queue; 2],
    /// What the service's guards tell.
    pub(crate) guarded: Guarded,
    health: Health,
}

/// Requests that wait for a connection to a service, over all workers.
#[derive(Default)]
pub(crate) struct Queue {
    waiting: AtomicU32,
    refused: AtomicU64,
}

/// A request that waits; until this goes.
#[must_use = "the request stops being counted when this goes"]
pub(crate) struct Waiting<'a>(&'a Queue);

impl Queue {
    /// Lets a request wait, if fewer than `limit` do.
    pub(crate) fn enter(&self, limit: u32) -> Option<Waiting<'_>> {
        if self.waiting.fetch_add(1, Relaxed) < limit {
            return Some(Waiting(self));
        }
        self.waiting.fetch_sub(1, Relaxed);
        self.refused.fetch_add(1, Relaxed);
        None
    }

    /// How many wait.
    pub(crate) fn waiting(&self) -> u32 {
        self.waiting.load(Relaxed)
    }

    /// How many were not let in.
    pub(crate) fn refused(&self) -> u64 {
        self.refused.load(Relaxed)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Relaxed);
    }
}

#[repr(align(128))]
struct ServiceCells {
    attempts: [Cell; AttemptResult::COUNT],
    /// By direction, then towards the upstream and towards the downstream.
    tcp_bytes: [[Cell; 2]; 2],
}

impl ServiceCells {
    fn new() -> Box<Self> {
        Box::new(Self {
            attempts: std::array::from_fn(|_| Cell::default()),
            tcp_bytes: std::array::from_fn(|_| std::array::from_fn(|_| Cell::default())),
        })
    }
}

/// The `flow` label of `weft_tcp_bytes_total`, in the order of the cells.
pub(super) const FLOWS: [&str; 2] = ["to_upstream", "to_downstream"];

impl ServiceSeries {
    pub(super) fn new(workers: usize) -> Self {
        Self {
            shards: (0..workers).map(|_| OnceLock::new()).collect(),
            endpoints: AtomicU64::new(0),
            queues: Default::default(),
            guarded: Guarded::default(),
            health: Health::default(),
        }
    }

    /// How many endpoints the snapshot in force has for the service. For whoever swaps the snapshot.
    pub(crate) fn set_endpoints(&self, count: usize) {
        self.endpoints.store(count as u64, Relaxed);
    }

    /// The requests that wait for a connection.
    pub(crate) fn queue(&self, direction: Direction) -> &Queue {
        let [inbound, outbound] = &self.queues;
        match direction {
            Direction::Inbound => inbound,
            Direction::Outbound => outbound,
        }
    }

    /// What active health checks found.
    pub(crate) fn health(&self) -> &Health {
        &self.health
    }

    pub(super) fn attempt(&self, worker: usize, result: AttemptResult) {
        if let Some(shard) = self.shards.get(worker) {
            shard.get_or_init(ServiceCells::new).attempts[result.index()].add(1);
        }
    }

    pub(super) fn tcp_bytes(
        &self,
        worker: usize,
        direction: Direction,
        to_upstream: u64,
        to_downstream: u64,
    ) {
        if let Some(shard) = self.shards.get(worker) {
            let [up, down] = &shard.get_or_init(ServiceCells::new).tcp_bytes[direction as usize];
            up.add(to_upstream);
            down.add(to_downstream);
        }
    }

    pub(super) fn endpoints(&self) -> u64 {
        self.endpoints.load(Relaxed)
    }

    /// Attempts by the index of their result, over all workers.
    pub(super) fn attempts(&self) -> [u64; AttemptResult::COUNT] {
        let mut sum = [0; AttemptResult::COUNT];
        for cells in self.shards.iter().filter_map(OnceLock::get) {
            for (total, cell) in sum.iter_mut().zip(&cells.attempts) {
                *total += cell.get();
            }
        }
        sum
    }

    /// Bytes by direction and flow, over all workers.
    pub(super) fn bytes(&self) -> [[u64; 2]; 2] {
        let mut sum = [[0_u64; 2]; 2];
        for cells in self.shards.iter().filter_map(OnceLock::get) {
            for (flows, cells) in sum.iter_mut().zip(&cells.tcp_bytes) {
                for (total, cell) in flows.iter_mut().zip(cells) {
                    *total = total.wrapping_add(cell.get());
                }
            }
        }
        sum
    }
}
