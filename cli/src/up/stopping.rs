//! Who runs, and how all of it stops: applications, then sidecars, then the control plane, then whatever is left.

use super::{
    log::Log,
    supervise::{Health, Launch, Phase, Role, Surroundings, supervise},
};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
    task::JoinSet,
};

/// The signals that stop `weft up`.
pub(super) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hang_up: Signal,
}

impl Signals {
    /// Takes the signals over.
    pub(super) fn new() -> std::io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    /// The next one.
    pub(super) async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hang_up.recv() => {}
        }
    }
}

/// Everything that runs.
pub(super) struct Crew {
    phase: watch::Sender<Phase>,
    around: Surroundings,
    applications: JoinSet<()>,
    sidecars: JoinSet<()>,
    control_plane: JoinSet<()>,
}

impl Crew {
    /// Nobody yet.
    pub(super) fn new(phase: watch::Sender<Phase>, around: Surroundings) -> Self {
        Self {
            phase,
            around,
            applications: JoinSet::new(),
            sidecars: JoinSet::new(),
            control_plane: JoinSet::new(),
        }
    }

    /// Starts a program and keeps it running.
    pub(super) fn start(&mut self, launch: Launch) -> watch::Receiver<Health> {
        let (health, receiver) = watch::channel(Health::Down);
        let of = match launch.role {
            Role::Application => &mut self.applications,
            Role::Sidecar => &mut self.sidecars,
            Role::ControlPlane => &mut self.control_plane,
        };
        of.spawn_local(supervise(launch, self.around.clone(), health));
        receiver
    }

    /// Stops everything in order. One more signal, and everything is killed at once.
    pub(super) async fn stop(self, signals: &mut Signals, log: &Log) {
        let Self { phase, around, mut applications, mut sidecars, mut control_plane } = self;
        let total = applications.len() + sidecars.len() + control_plane.len();
        if total > 0 {
            log.say("stopping; once more to kill what is left");
        }
        let in_order = async {
            for (step, crew) in [
                (Phase::StopApplications, &mut applications),
                (Phase::StopSidecars, &mut sidecars),
                (Phase::StopControlPlane, &mut control_plane),
            ] {
                advance(&phase, step);
                while crew.join_next().await.is_some() {}
            }
        };
        let again = async {
            signals.next().await;
            log.say("killing what is left");
            advance(&phase, Phase::Kill);
            // From here on `in_order` ends by itself.
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = in_order => {}
            () = again => {}
        }
        if total > 0 {
            log.say("everything has stopped");
        }
        drop(around);
    }
}

/// Never goes back: after a kill the remaining steps are passed at once.
fn advance(phase: &watch::Sender<Phase>, to: Phase) {
    phase.send_if_modified(|now| {
        let forward = to > *now;
        *now = to.max(*now);
        forward
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kill_is_final() {
        let (phase, _keep) = watch::channel(Phase::Running);
        advance(&phase, Phase::Kill);
        advance(&phase, Phase::StopSidecars);
        assert_eq!(*phase.borrow(), Phase::Kill);
    }
}
