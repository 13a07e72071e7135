//! A worker's thread: its listeners, its housekeeping, and the commands that the control thread sends it.

use crate::{
    listener,
    outbound::Target,
    telemetry::metrics::Direction,
    worker::{Shared, Worker},
};
use serde_json::{Map, Value, json};
use std::{
    collections::HashMap,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant},
};
use tokio::{
    net::TcpListener,
    sync::{mpsc, oneshot},
    task::{AbortHandle, LocalSet, spawn_local},
    time::{MissedTickBehavior, interval},
};
use weft_config::snapshot::UpstreamListener;

/// What the control thread asks of a worker.
pub(crate) enum Command {
    /// Take no new work of this direction.
    Drain(Direction),
    /// Describe the clusters.
    Clusters(oneshot::Sender<Vec<Value>>),
    /// End now, whatever is open.
    Stop,
}

/// A running worker, as the control thread holds it.
pub(crate) struct Handle {
    commands: mpsc::UnboundedSender<Command>,
    thread: JoinHandle<()>,
}

/// The sockets of one worker.
pub(crate) struct Sockets {
    pub(crate) outbound: std::net::TcpListener,
    pub(crate) inbound: std::net::TcpListener,
}

impl Handle {
    /// Starts worker `index`.
    pub(crate) fn start(shared: Arc<Shared>, index: usize, sockets: Sockets) -> std::io::Result<Self> {
        let (commands, inbox) = mpsc::unbounded_channel();
        let thread = std::thread::Builder::new().name(format!("worker-{index}")).spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().event_interval(61).build();
            match runtime {
                Ok(runtime) => LocalSet::new().block_on(&runtime, run(shared, index, sockets, inbox)),
                Err(error) => tracing::error!(%error, "a worker's runtime could not be made"),
            }
        })?;
        Ok(Self { commands, thread })
    }

    /// Sends a command; a worker that has ended takes none.
    pub(crate) fn send(&self, command: Command) {
        let _ = self.commands.send(command);
    }

    /// Where commands are sent, for those who do not own the worker.
    pub(crate) fn commands(&self) -> mpsc::UnboundedSender<Command> {
        self.commands.clone()
    }

    /// Ends the worker and waits for its thread.
    pub(crate) fn stop(self) {
        self.send(Command::Stop);
        if self.thread.join().is_err() {
            tracing::error!("a worker panicked");
        }
    }
}

async fn run(
    shared: Arc<Shared>,
    index: usize,
    sockets: Sockets,
    mut inbox: mpsc::UnboundedReceiver<Command>,
) {
    let worker = Rc::new(Worker::new(shared.clone(), index));
    let (outbound, inbound) =
        match (TcpListener::from_std(sockets.outbound), TcpListener::from_std(sockets.inbound)) {
            (Ok(outbound), Ok(inbound)) => (outbound, inbound),
            (Err(error), _) | (_, Err(error)) => {
                return tracing::error!(%error, "a listener could not be used");
            }
        };
    spawn_local(listener::accept(worker.clone(), outbound, Direction::Outbound, |worker, stream| {
        listener::outbound(worker, stream, Target::Named)
    }));
    spawn_local(listener::accept(worker.clone(), inbound, Direction::Inbound, listener::inbound));

    let mut upstreams = Upstreams::default();
    let mut changes = shared.changes();
    let mut tick = interval(Duration::from_secs(1));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    upstreams.reconcile(&worker);
    loop {
        tokio::select! {
            changed = changes.changed() => {
                if changed.is_err() {
                    return;
                }
                upstreams.reconcile(&worker);
                worker.readmit();
            }
            _ = tick.tick() => {
                worker.sweep();
                if index == 0 {
                    shared.guards.tick(Instant::now());
                }
                upstreams.retry(&worker);
            }
            command = inbox.recv() => match command {
                Some(Command::Drain(direction)) => worker.drain(direction).start(),
                Some(Command::Clusters(reply)) => {
                    let _ = reply.send(describe(&worker));
                }
                Some(Command::Stop) | None => return,
            },
        }
    }
}

/// The explicit listeners that the workload's document asks for, as they come and go with it.
#[derive(Default)]
struct Upstreams {
    open: HashMap<UpstreamListener, AbortHandle>,
    /// Those that could not be bound, with when that was last said.
    failed: HashMap<UpstreamListener, Instant>,
}

impl Upstreams {
    fn reconcile(&mut self, worker: &Rc<Worker>) {
        let live = worker.live();
        let wanted = live.snapshot.workload.as_ref().map_or(&[][..], |w| &w.upstreams);
        self.open.retain(|listener, task| {
            let keep = wanted.contains(listener);
            if !keep {
                task.abort();
            }
            keep
        });
        self.failed.retain(|listener, _| wanted.contains(listener));
        for listener in wanted {
            if !self.open.contains_key(listener) && !worker.drain(Direction::Outbound).is_draining() {
                self.bind(worker, listener);
            }
        }
    }

    fn retry(&mut self, worker: &Rc<Worker>) {
        if !self.failed.is_empty() {
            self.reconcile(worker);
        }
    }

    fn bind(&mut self, worker: &Rc<Worker>, wanted: &UpstreamListener) {
        match listener::bind(wanted.listen).and_then(TcpListener::from_std) {
            Ok(bound) => {
                self.failed.remove(wanted);
                let target = Target::Service { service: wanted.service.clone(), port: wanted.port };
                tracing::info!(listen = %wanted.listen, service = %wanted.service, port = wanted.port, "listening");
                let task = spawn_local(listener::accept(
                    worker.clone(),
                    bound,
                    Direction::Outbound,
                    move |worker, stream| listener::outbound(worker, stream, target.clone()),
                ));
                self.open.insert(wanted.clone(), task.abort_handle());
            }
            Err(error) => {
                let due =
                    self.failed.get(wanted).is_none_or(|since| since.elapsed() > Duration::from_secs(30));
                if due {
                    tracing::error!(listen = %wanted.listen, %error, "the Workload's `upstreams` listener cannot be opened; trying on");
                    self.failed.insert(wanted.clone(), Instant::now());
                }
            }
        }
    }
}

/// What this worker knows of its clusters.
fn describe(worker: &Worker) -> Vec<Value> {
    let now = Instant::now();
    let clusters = worker.clusters().into_iter().map(|cluster| {
        let endpoints: Vec<Value> = cluster
            .endpoints()
            .iter()
            .map(|endpoint| {
                let (idle, busy, http2) = endpoint.connections();
                let mut row = json!({
                    "address": endpoint.place.address.to_string(),
                    "workload": &*endpoint.place.workload,
                    "identity": endpoint.place.identity.as_ref().map(ToString::to_string),
                    "weight": endpoint.place.weight,
                    "zone": endpoint.place.zone.as_deref(),
                    "in_flight": endpoint.load.in_flight(),
                    "latency_ms": endpoint.load.latency(now) * 1e3,
                    "connections_idle": idle,
                    "connections_busy": busy,
                    "connections_http2": http2,
                    "health_check": cluster.last_health_check(endpoint),
                });
                add(&mut row, endpoint.standing.describe(now));
                row
            })
            .collect();
        let mut told = json!({
            "service": cluster.service.to_string(),
            "port": cluster.port,
            "rule": cluster.rule.as_deref(),
            "worker": worker.shard.worker(),
            "requests_waiting": cluster.series.queue(Direction::Outbound).waiting(),
            "endpoints": endpoints,
        });
        add(&mut told, cluster.guard.describe(now));
        told
    });
    clusters.collect()
}

/// What all workers know together, beside what this one knows.
fn add(to: &mut Value, fields: Map<String, Value>) {
    if let Value::Object(known) = to {
        known.extend(fields);
    }
}

/// Binds the sockets of all workers; with port 0 they all get the port that the first was given.
pub(crate) fn bind_all(
    outbound: SocketAddr,
    inbound: SocketAddr,
    workers: usize,
) -> anyhow::Result<(Vec<Sockets>, SocketAddr, SocketAddr)> {
    use anyhow::Context;
    let taken = |address, flag| {
        format!("cannot listen on {address}; is another sidecar running? choose another with {flag}")
    };
    listener::unused(outbound).with_context(|| taken(outbound, "--outbound"))?;
    listener::unused(inbound).with_context(|| taken(inbound, "--inbound"))?;
    let mut outbound = outbound;
    let mut inbound = inbound;
    let mut all = Vec::with_capacity(workers);
    for _ in 0..workers {
        let sockets = Sockets {
            outbound: listener::bind(outbound).with_context(|| taken(outbound, "--outbound"))?,
            inbound: listener::bind(inbound).with_context(|| taken(inbound, "--inbound"))?,
        };
        outbound = sockets.outbound.local_addr()?;
        inbound = sockets.inbound.local_addr()?;
        all.push(sockets);
    }
    Ok((all, outbound, inbound))
}
