//! The one thread on which tiers connect, write and tidy up; it is there only if some policy has a tier.

use std::{
    sync::{Mutex, OnceLock, PoisonError, mpsc},
    thread::JoinHandle,
    time::Duration,
};
use tokio::{runtime::Handle, sync::oneshot, time::timeout};

/// Threads for what blocks, beside it, and how long they stay without work.
const BLOCKING_THREADS: usize = 4;
const BLOCKING_IDLE: Duration = Duration::from_secs(2);
/// How long closing may take.
const CLOSING: Duration = Duration::from_secs(2);

/// Not there until it is needed.
#[derive(Default)]
pub(super) struct Thread(OnceLock<Option<Running>>);

struct Running {
    runtime: Handle,
    stop: Mutex<Option<(oneshot::Sender<Last>, JoinHandle<()>)>>,
}

/// What is done last.
type Last = std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;

impl Thread {
    /// Its runtime. `None` if the system gives no thread.
    pub(super) fn runtime(&self) -> Option<Handle> {
        let running = self.0.get_or_init(|| match start() {
            Ok(running) => Some(running),
            Err(error) => {
                tracing::warn!(%error, "no thread for the cache's tiers: they are not used");
                None
            }
        });
        running.as_ref().map(|running| running.runtime.clone())
    }

    #[cfg(test)]
    pub(super) fn is_idle(&self) -> bool {
        self.0.get().is_none()
    }

    /// Ends it, after `last` has come to its end or has taken too long.
    pub(super) fn stop(&self, last: impl Future<Output = ()> + Send + 'static) {
        let Some(Some(running)) = self.0.get() else { return };
        let stop = running.stop.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some((stop, thread)) = stop
            && stop.send(Box::pin(last)).is_ok()
        {
            // Bounded: by `CLOSING`, and by what blocks not being waited for.
            let _ = thread.join();
        }
    }
}

fn start() -> std::io::Result<Running> {
    let (sender, started) = mpsc::sync_channel(1);
    let (stop, stopped) = oneshot::channel::<Last>();
    let body = move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(BLOCKING_THREADS)
            .thread_keep_alive(BLOCKING_IDLE)
            .thread_name("weft-tier-io")
            .build();
        let runtime = match runtime {
            Ok(runtime) => runtime,
            Err(error) => {
                let _ = sender.send(Err(error));
                return;
            }
        };
        let _ = sender.send(Ok(runtime.handle().clone()));
        runtime.block_on(async {
            if let Ok(last) = stopped.await {
                let _ = timeout(CLOSING, last).await;
            }
        });
        runtime.shutdown_timeout(Duration::from_millis(200));
    };
    let thread = std::thread::Builder::new().name("weft-tiers".to_owned()).spawn(body)?;
    let runtime = started.recv().map_err(|_| std::io::Error::other("it ended at once"))??;
    Ok(Running { runtime, stop: Mutex::new(Some((stop, thread))) })
}
