//! Where the time of requests went: per service that is served here, its own and what it waited for.

use super::{OTHER, shard::Cell};
use std::{
    rc::Rc,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// Services of one workload whose waits for one upstream are told apart.
const SERVICES: usize = 32;

/// The requests of one service that is served here, apart for each worker.
pub(crate) struct PathSeries {
    service: Arc<str>,
    shards: Box<[PathCells]>,
}

#[derive(Default)]
#[repr(align(128))]
struct PathCells {
    requests: Cell,
    /// Nanoseconds in which nothing was waited for.
    own: Cell,
    /// Requests that were not joined to the calls they made.
    unjoined: Cell,
}

/// The sums of one [`PathSeries`].
pub(super) struct PathSum {
    pub(super) requests: u64,
    pub(super) own: Duration,
    pub(super) unjoined: u64,
}

impl PathSeries {
    pub(super) fn new(service: Arc<str>, workers: usize) -> Self {
        Self { service, shards: (0..workers).map(|_| PathCells::default()).collect() }
    }

    pub(super) fn sum(&self) -> PathSum {
        let sum = |cell: fn(&PathCells) -> &Cell| {
            self.shards.iter().map(|cells| cell(cells).get()).fold(0, u64::wrapping_add)
        };
        PathSum {
            requests: sum(|cells| &cells.requests),
            own: Duration::from_nanos(sum(|cells| &cells.own)),
            unjoined: sum(|cells| &cells.unjoined),
        }
    }
}

/// One upstream, by service and route: the time that each service which is served here waited for it. A worker has a
/// list of its own, which only a scrape ever looks at besides; so the lock is as good as free.
pub(crate) struct PathUpstream {
    shards: Box<[Mutex<Vec<Waited>>]>,
}

struct Waited {
    service: Arc<str>,
    nanoseconds: u64,
}

impl PathUpstream {
    pub(super) fn new(workers: usize) -> Self {
        Self { shards: (0..workers).map(|_| Mutex::default()).collect() }
    }

    fn waited(&self, worker: usize, service: &Arc<str>, time: Duration) {
        let Some(shard) = self.shards.get(worker) else { return };
        let mut list = lock(shard);
        let known = match list.iter().position(|waited| Arc::ptr_eq(&waited.service, service)) {
            Some(known) => known,
            None => {
                // The name may be known from before the series was forgotten and made again.
                let room = list.len() < SERVICES;
                let name: &str = if room { service } else { OTHER };
                match list.iter().position(|waited| &*waited.service == name) {
                    Some(known) => known,
                    None => {
                        let service = if room { Arc::clone(service) } else { OTHER.into() };
                        list.push(Waited { service, nanoseconds: 0 });
                        list.len() - 1
                    }
                }
            }
        };
        list[known].nanoseconds = list[known].nanoseconds.wrapping_add(nanoseconds(time));
    }

    /// The time waited by each service, over all workers, in the order of their names.
    pub(super) fn sum(&self) -> Vec<(Arc<str>, Duration)> {
        let mut sums: Vec<(Arc<str>, Duration)> = Vec::new();
        for shard in &self.shards {
            for Waited { service, nanoseconds } in lock(shard).iter() {
                let time = Duration::from_nanos(*nanoseconds);
                match sums.iter_mut().find(|known| known.0 == *service) {
                    Some(known) => known.1 = known.1.saturating_add(time),
                    None => sums.push((Arc::clone(service), time)),
                }
            }
        }
        sums.sort();
        sums
    }
}

fn lock(shard: &Mutex<Vec<Waited>>) -> MutexGuard<'_, Vec<Waited>> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One worker's way to count where the time of one service's requests went. Cheap to clone; stays on its thread.
#[derive(Clone)]
pub(crate) struct Path(Rc<(usize, Arc<PathSeries>)>);

impl Path {
    pub(super) fn new(worker: usize, series: Arc<PathSeries>) -> Self {
        Self(Rc::new((worker, series)))
    }

    /// A request ended: the time in which it waited for no other.
    pub(crate) fn ended(&self, own: Duration) {
        if let Some(cells) = self.cells() {
            cells.requests.add(1);
            cells.own.add(nanoseconds(own));
        }
    }

    /// It waited so long for `upstream`.
    pub(crate) fn waited(&self, upstream: &PathUpstream, time: Duration) {
        upstream.waited(self.0.0, &self.0.1.service, time);
    }

    /// A request ended of which it is not known what it waited for.
    pub(crate) fn unjoined(&self) {
        if let Some(cells) = self.cells() {
            cells.unjoined.add(1);
        }
    }

    fn cells(&self) -> Option<&PathCells> {
        self.0.1.shards.get(self.0.0)
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
