//! Follows the control plane: carries events to the state machine and what follows from them to where it belongs.

use super::{
    ControlPlane, Presence, Question, Shared, Sink,
    backoff::Backoff,
    identity::{Issuance, Now, Stored, Warning},
    last_known_good::{Kept, LastKnownGood},
    link::{Event, Failure, Link},
    purging::Purging,
    report::Report,
    state::{Found, Output, State},
    usage::Tables,
};
use crate::tls::{Tls, certificates};
use rustls_pki_types::CertificateDer;
use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
    time::Instant,
};
use weft_config::{compile::Caller, identity::ServiceName, wire};
use wire::{to_control_plane::Message as Outgoing, to_sidecar::Message as Incoming};

const RECONNECT_BASE: Duration = Duration::from_millis(100);
const RECONNECT_CAP: Duration = Duration::from_secs(5);
/// A stream that stood for so long was a good one: the next failure is the first again.
const GOOD_AFTER: Duration = Duration::from_secs(2);
/// How long a stream may stand without Welcome.
const WELCOME_WITHIN: Duration = Duration::from_secs(5);
/// A control plane that stays away is mentioned so often.
const COMPLAIN_EVERY: Duration = Duration::from_secs(30);
/// Changes within this are written to disk together.
const SAVE_AFTER: Duration = Duration::from_secs(1);
/// Requests that wait for services that are not known yet, all together.
const MAX_WAITING: usize = 16 * 1024;
/// How often it is looked whether there is something to report.
const REPORT_EVERY: Duration = Duration::from_secs(3);
/// Lease intervals outside this are not believed.
const LEASE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(60));
/// Time for the last messages when leaving.
const LEAVE_WITHIN: Duration = Duration::from_millis(500);

/// What is decided by, and what the status tells.
pub(super) struct Core {
    pub(super) state: State,
    pub(super) issuance: Issuance,
    pub(super) source: serde_json::Value,
}

impl Core {
    pub(super) fn new(own: Caller, tables: Arc<Tables>) -> Self {
        let state = State::new(own, tables, Instant::now());
        Self { state, issuance: Issuance::new(), source: serde_json::Value::Null }
    }

    pub(super) fn status(&self) -> serde_json::Value {
        let mut status = self.state.status();
        status["source"] = self.source.clone();
        if let Some((expires, renews)) = self.issuance.dates() {
            status["identity"] = serde_json::json!({ "expires": unix(expires), "renews": unix(renews) });
        }
        status
    }
}

fn unix(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Where everything goes that comes out of it.
pub(super) struct Outward {
    pub(super) shared: Arc<Shared>,
    pub(super) tls: Arc<Tls>,
    pub(super) sink: Sink,
    pub(super) hooks: Arc<dyn super::Hooks>,
}

/// Where events come from, but for the connection.
pub(super) struct Inputs {
    pub(super) asked: mpsc::Receiver<Question>,
    pub(super) presence: watch::Receiver<Presence>,
    pub(super) stop: watch::Receiver<bool>,
}

/// One sidecar's subscription.
pub(super) struct Subscription {
    to: ControlPlane,
    own: ServiceName,
    service_account: String,
    instance: String,
    out: Outward,
    inputs: Inputs,
    waiting: HashMap<ServiceName, Vec<oneshot::Sender<Found>>>,
    waiting_count: usize,
    link: Link,
    backoff: Backoff,
    /// True if our certificate was shown on the current or last connection.
    presented: bool,
    /// True if the last connection on which our certificate was shown failed before Welcome.
    distrusted: bool,
    opened_at: Option<Instant>,
    welcomed: bool,
    complained_at: Option<Instant>,
    lease_every: Duration,
    lease_at: Option<Instant>,
    kept: Option<LastKnownGood>,
    save_at: Option<Instant>,
    saving: Option<JoinHandle<()>>,
    report: Report,
    report_at: Instant,
    purging: Purging,
}

impl Subscription {
    /// Puts in force what an earlier process kept, and gets ready to connect.
    pub(super) fn start(
        to: ControlPlane,
        own: ServiceName,
        service_account: String,
        out: Outward,
        inputs: Inputs,
    ) -> Self {
        let owner = format!("{own} as {service_account}");
        let kept = to.state_dir.as_deref().and_then(|dir| match LastKnownGood::open(dir, owner) {
            Ok(kept) => Some(kept),
            Err(error) => {
                tracing::warn!(
                    directory = %dir.display(),
                    "the state directory cannot be used ({error}): a restart will need the control plane; \
                     check --state-dir"
                );
                None
            }
        });
        let purging = Purging::after(out.hooks.last_purge());
        // Until the control plane has said what there was while nothing ran here.
        out.hooks.misses_purges(true);
        let mut this = Self {
            to,
            own,
            service_account,
            instance: format!("{:032x}", fastrand::u128(..)),
            out,
            inputs,
            waiting: HashMap::new(),
            waiting_count: 0,
            link: Link::wait(Duration::ZERO),
            backoff: Backoff::new(RECONNECT_BASE, RECONNECT_CAP),
            presented: false,
            distrusted: false,
            opened_at: None,
            welcomed: false,
            complained_at: None,
            lease_every: LEASE.1,
            lease_at: None,
            kept,
            save_at: None,
            saving: None,
            report: Report::default(),
            report_at: Instant::now() + REPORT_EVERY,
            purging,
        };
        this.tell_source(None);
        this.restore();
        this.trust_ca_file();
        this
    }

    /// Runs until it is stopped.
    pub(super) async fn run(&mut self) {
        let mut presence_gone = false;
        let mut asked_gone = false;
        loop {
            let wake = self.next_wake();
            tokio::select! {
                () = stopping(&mut self.inputs.stop) => break,
                question = self.inputs.asked.recv(), if !asked_gone => match question {
                    Some(question) => self.want(question),
                    None => asked_gone = true,
                },
                changed = self.inputs.presence.changed(), if !presence_gone => match changed {
                    Ok(()) => self.send_lease(),
                    Err(_) => presence_gone = true,
                },
                event = self.link.next() => self.on_link(event),
                purged = self.purging.next(&self.out.hooks) => self.send(Outgoing::Purged(purged)),
                () = tokio::time::sleep_until(wake) => self.on_time(),
            }
        }
        self.leave().await;
    }

    fn restore(&mut self) {
        let Some(kept) = self.kept.as_ref().and_then(LastKnownGood::load) else { return };
        let now = Now::read();
        let count = kept.resources.len();
        let output = self.out.shared.core().state.restore(kept.resources, now.instant);
        self.apply(output);
        if let Some(stored) = kept.identity
            && let Err(reason) = self.install(stored, now)
        {
            tracing::warn!("the certificate kept on disk is of no use ({reason}); asking for another");
            self.save_soon(now.instant);
        }
        tracing::info!(
            resources = count,
            "serving from the last known good policy until the control plane answers"
        );
    }

    /// Until the control plane names the trust bundle, the CA that vouches for itself vouches for peers too.
    fn trust_ca_file(&self) {
        if !self.out.tls.roots().is_empty() {
            return;
        }
        let roots = certificates("--ca-file", &self.to.ca_file).map_err(|error| error.to_string());
        if let Err(error) =
            roots.and_then(|roots| self.out.tls.set_roots(roots).map_err(|error| error.to_string()))
        {
            tracing::warn!("no CA to trust yet: {error}");
        }
    }

    fn want(&mut self, question: Question) {
        if self.waiting_count >= MAX_WAITING {
            let _ = question.answer.send(Found::Unavailable);
            return;
        }
        let Question { service, answer } = question;
        self.waiting.entry(service.clone()).or_default().push(answer);
        self.waiting_count += 1;
        let output = self.out.shared.core().state.want(service, Instant::now());
        self.apply(output);
    }

    fn on_link(&mut self, event: Event) {
        match event {
            Event::Due => {
                let now = Now::read();
                let valid = self.out.shared.core().issuance.valid(now).is_some();
                // Where our certificate is not welcome (its CA may be gone), the join token may be.
                self.presented = valid && !(self.distrusted && self.to.join_token_file.is_some());
                self.link = Link::dial(self.to.clone(), self.out.tls.clone(), self.presented);
            }
            Event::Dialed(channel) => match self.first_messages() {
                Ok(first) => {
                    self.link = Link::open(channel, first);
                    self.opened_at = Some(Instant::now());
                }
                Err(reason) => self.disconnected(Failure::unreached(reason)),
            },
            Event::Opened(stream) => {
                self.link = match std::mem::replace(&mut self.link, Link::wait(Duration::ZERO)) {
                    Link::Opening(sender, _) | Link::Open(sender, _) => Link::Open(sender, Box::new(stream)),
                    other => other,
                };
            }
            Event::Message(message) => self.receive(message),
            Event::Failed(failure) => self.disconnected(failure),
        }
    }

    /// Everything that can be said before the control plane has answered, so that it all travels at once.
    fn first_messages(&mut self) -> Result<Vec<Outgoing>, String> {
        let join_token = if self.presented { String::new() } else { self.join_token()? };
        let now = Now::read();
        let (purge_log, purge_number) = self.purging.last();
        let mut first = vec![Outgoing::Hello(wire::Hello {
            namespace: self.own.namespace.to_string(),
            workload: self.own.name.to_string(),
            service_account: self.service_account.clone(),
            join_token,
            instance: self.instance.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            purge_log,
            purge_number,
        })];
        let mut core = self.out.shared.core();
        if !self.presented {
            // Whatever certificate there is has not been good enough.
            core.issuance.renew_now(now);
        }
        if core.issuance.is_due(now) {
            match core.issuance.request(now) {
                Ok(request) => first.push(Outgoing::CertificateRequest(request)),
                Err(error) => tracing::error!("{error}"),
            }
        }
        first.push(core.state.opened());
        drop(core);
        first.push(Outgoing::Lease(self.lease()));
        self.inputs.presence.mark_unchanged();
        Ok(first)
    }

    fn join_token(&self) -> Result<String, String> {
        let Some(file) = &self.to.join_token_file else {
            return Err(
                "there is neither a valid certificate nor a join token to prove this workload with; \
                        give --join-token-file"
                    .to_owned(),
            );
        };
        // Read anew each time: projected tokens are rotated in place.
        let token = std::fs::read_to_string(file)
            .map_err(|error| format!("the join token {} cannot be read: {error}", file.display()))?;
        Ok(token.trim().to_owned())
    }

    fn receive(&mut self, message: wire::ToSidecar) {
        match message.message {
            Some(Incoming::Welcome(welcome)) => self.on_welcome(&welcome),
            Some(Incoming::Update(update)) => {
                let output = self.out.shared.core().state.update(update, Instant::now());
                self.apply(output);
            }
            Some(Incoming::Certificate(certificate)) => self.on_certificate(certificate),
            Some(Incoming::Purge(purge)) => self.purging.take(purge, &self.out.hooks),
            Some(Incoming::CacheReportRequest(request)) => {
                let report = self.out.hooks.cache_report();
                self.send(Outgoing::CacheReport(wire::CacheReport { number: request.number, ..report }));
            }
            // From a newer control plane.
            None => {}
        }
    }

    fn on_welcome(&mut self, welcome: &wire::Welcome) {
        self.welcomed = true;
        self.distrusted = false;
        self.complained_at = None;
        self.out.shared.core().state.welcomed();
        self.purging.newest((welcome.purge_log.clone(), welcome.purge_number), &self.out.hooks);
        if *welcome.trust_domain != **self.out.tls.trust_domain() {
            tracing::error!(
                "the control plane's trust domain is `{}` and this sidecar's is `{}`; start it with --trust-domain {}",
                welcome.trust_domain,
                self.out.tls.trust_domain(),
                welcome.trust_domain
            );
        }
        let every = Duration::from_millis(u64::from(welcome.lease_interval_ms)).clamp(LEASE.0, LEASE.1);
        // A little early: the interval is the longest that may pass.
        self.lease_every = every.mul_f64(0.8);
        self.lease_at = Some(Instant::now() + self.lease_every);
        // Whoever listens now may know nothing of what was said before.
        self.report.forget_told();
        self.report_at = Instant::now();
        self.tell_source(None);
        self.out.hooks.connected(true);
        tracing::info!(control_plane = %welcome.control_plane, address = %self.to.address, "connected");
    }

    fn on_certificate(&mut self, certificate: wire::Certificate) {
        let now = Now::read();
        let answer = self.out.shared.core().issuance.answer(certificate, now);
        let result = answer.and_then(|stored| self.install(stored, now));
        self.out.hooks.renewal(result.is_ok());
        match result {
            Ok(()) => self.save_soon(now.instant),
            Err(reason) => {
                self.out.shared.core().issuance.failed(now);
                tracing::error!("no certificate: {reason}; trying again");
            }
        }
    }

    fn install(&mut self, stored: Stored, now: Now) -> Result<(), String> {
        if stored.expires()? <= now.wall {
            return Err("it has expired".to_owned());
        }
        let (chain, key) = stored.to_rustls();
        let identity = self.out.tls.set_identity(chain, key).map_err(|error| error.to_string())?;
        self.out.hooks.identity(identity.not_after);
        tracing::info!(id = %identity.id, serial = %identity.serial, expires = unix(identity.not_after), "certificate installed");
        self.out.shared.core().issuance.installed(stored, &identity);
        Ok(())
    }

    fn disconnected(&mut self, failure: Failure) {
        let Failure { reason, reached } = failure;
        let now = Instant::now();
        {
            let mut core = self.out.shared.core();
            core.state.closed(now);
            core.issuance.closed();
        }
        if self.opened_at.take().is_some_and(|at| self.welcomed && now >= at + GOOD_AFTER) {
            self.backoff.reset();
        }
        if std::mem::take(&mut self.welcomed) {
            self.out.hooks.connected(false);
        } else if self.presented && reached {
            self.distrusted = true;
        } else if reached {
            self.distrusted = false;
        }
        self.lease_at = None;
        let wait = self.backoff.next();
        if self.complained_at.is_none_or(|at| now >= at + COMPLAIN_EVERY) {
            self.complained_at = Some(now);
            tracing::warn!(
                control_plane = %self.to.address,
                attempts = self.backoff.failures(),
                "no control plane: {reason}; serving what is known and trying again"
            );
        }
        self.tell_source(Some(&reason));
        self.link = Link::wait(wait);
    }

    fn on_time(&mut self) {
        let now = Now::read();
        let (output, late, warning) = {
            let mut core = self.out.shared.core();
            (core.state.tick(now.instant), core.issuance.timed_out(now), core.issuance.warning(now))
        };
        self.apply(output);
        if late {
            self.out.hooks.renewal(false);
            tracing::warn!("no answer to the certificate request; asking again");
        }
        match warning {
            Some(Warning::Aging(percent)) => tracing::warn!(
                "{percent} % of the certificate's life are over and it has not been renewed; \
                 without a control plane peers will refuse this workload when it ends"
            ),
            Some(Warning::Expired) => {
                tracing::error!(
                    "the certificate has expired: peers refuse this workload until the control plane at {} is back",
                    self.to.address
                );
                // What is kept on disk must not outlive it.
                self.save_soon(now.instant);
            }
            None => {}
        }
        if self.opened_at.is_some_and(|at| !self.welcomed && now.instant >= at + WELCOME_WITHIN) {
            self.disconnected(Failure::reached("it took the stream and said nothing"));
        }
        if self.lease_at.is_some_and(|at| now.instant >= at) {
            self.send_lease();
        }
        if self.welcomed && self.out.shared.core().issuance.is_due(now) {
            let request = self.out.shared.core().issuance.request(now);
            match request {
                Ok(request) => self.send(Outgoing::CertificateRequest(request)),
                Err(error) => tracing::error!("{error}"),
            }
        }
        if self.save_at.is_some_and(|at| now.instant >= at) {
            self.save(now);
        }
        if now.instant >= self.report_at {
            self.report(now.instant);
        }
    }

    fn report(&mut self, now: Instant) {
        self.report_at = now + REPORT_EVERY;
        self.report.note(self.out.hooks.deprecated_calls(), now);
        if self.welcomed
            && let Some(usage) = self.report.tell(now)
        {
            self.send(Outgoing::Usage(usage));
        }
    }

    fn next_wake(&self) -> Instant {
        let now = Now::read();
        let mut wake = self.out.shared.core().state.next_tick();
        let mut sooner = |at: Option<Instant>| wake = at.map_or(wake, |at| wake.min(at));
        // Without a stream a renewal that is due can only wait for one; warnings come all the same.
        let issuance = self.out.shared.core().issuance.next_tick(now, self.welcomed);
        sooner(issuance);
        sooner(self.opened_at.filter(|_| !self.welcomed).map(|at| at + WELCOME_WITHIN));
        sooner(self.lease_at);
        sooner(self.save_at);
        sooner(Some(self.report_at));
        wake
    }

    fn lease(&self) -> wire::Lease {
        let presence = *self.inputs.presence.borrow();
        let inbound_address = presence.inbound.map(|address| address.to_string()).unwrap_or_default();
        wire::Lease { inbound_address, ready: presence.ready }
    }

    fn send_lease(&mut self) {
        if self.lease_at.is_some() {
            self.lease_at = Some(Instant::now() + self.lease_every);
        }
        self.send(Outgoing::Lease(self.lease()));
    }

    fn send(&mut self, message: Outgoing) {
        let Some(sender) = self.link.sender() else { return };
        if let Err(mpsc::error::TrySendError::Full(_)) =
            sender.try_send(wire::ToControlPlane { message: Some(message) })
        {
            self.disconnected(Failure::reached("it does not read what it is sent"));
        }
        // A closed channel is a stream that has ended: the link says so next.
    }

    /// Carries out what the state machine decided.
    fn apply(&mut self, output: Output) {
        if let Some(roots) = output.roots {
            let roots = roots.into_iter().map(CertificateDer::from).collect();
            if let Err(error) = self.out.tls.set_roots(roots) {
                tracing::error!("the trust bundle cannot be used: {error}");
            }
        }
        if let Some(snapshot) = output.snapshot {
            // The workers first: whoever finds a service known here must find it in force there.
            (self.out.sink)(snapshot.clone());
            self.out.shared.snapshot.store(snapshot);
        }
        for refusal in &output.refused {
            let name = refusal.name.to_string();
            tracing::warn!(
                resource = %name,
                version = %refusal.version,
                "rejected, the last good version stays in force: {}",
                refusal.reason
            );
            self.out.hooks.rejected(&name, &refusal.reason);
        }
        if let Some(version) = &output.policy_version {
            self.out.hooks.updated(version);
        }
        for (service, found) in output.answers {
            for answer in self.waiting.remove(&service).unwrap_or_default() {
                self.waiting_count -= 1;
                // Whoever asked may have gone.
                let _ = answer.send(found);
            }
        }
        if output.save {
            self.save_soon(Instant::now());
        }
        for message in output.send {
            self.send(message);
        }
    }

    fn save_soon(&mut self, now: Instant) {
        if self.kept.is_some() {
            self.save_at.get_or_insert(now + SAVE_AFTER);
        }
    }

    fn to_keep(&self, now: Now) -> Kept {
        let core = self.out.shared.core();
        Kept { resources: core.state.resources(), identity: core.issuance.valid(now).cloned() }
    }

    fn save(&mut self, now: Now) {
        if self.saving.as_ref().is_some_and(|saving| !saving.is_finished()) {
            // One write at a time, so that the newest is last.
            self.save_at = Some(now.instant + SAVE_AFTER);
            return;
        }
        self.save_at = None;
        let Some(file) = self.kept.clone() else { return };
        let kept = self.to_keep(now);
        self.saving = Some(tokio::task::spawn_blocking(move || write(&file, &kept)));
    }

    /// Withdraws the endpoints, lets the last messages go out, and writes what is not on disk yet.
    async fn leave(&mut self) {
        self.report(Instant::now());
        let mut lease = self.lease();
        lease.ready = false;
        self.send(Outgoing::Lease(lease));
        if let Link::Open(sender, mut stream) = std::mem::replace(&mut self.link, Link::wait(Duration::ZERO))
        {
            // Our side of the stream ends; the control plane ends its own once it has read everything.
            drop(sender);
            let rest = async { while let Ok(Some(_)) = stream.message().await {} };
            drop(tokio::time::timeout(LEAVE_WITHIN, rest).await);
        }
        if let Some(saving) = self.saving.take() {
            drop(saving.await);
        }
        if self.save_at.take().is_some()
            && let Some(file) = self.kept.clone()
        {
            let kept = self.to_keep(Now::read());
            drop(tokio::task::spawn_blocking(move || write(&file, &kept)).await);
        }
    }

    fn tell_source(&self, failure: Option<&str>) {
        let source = serde_json::json!({
            "controlPlane": self.to.address,
            "connected": self.welcomed,
            "instance": self.instance,
            "attempts": self.backoff.failures(),
            "lastFailure": failure,
            "lastKnownGood": self.kept.as_ref().map(|kept| kept.path().display().to_string()),
        });
        self.out.shared.core().source = source;
    }
}

/// Returns when everything must end: somebody said so, or nobody is left who could.
pub(super) async fn stopping(stop: &mut watch::Receiver<bool>) {
    drop(stop.wait_for(|stop| *stop).await);
}

fn write(file: &LastKnownGood, kept: &Kept) {
    if let Err(error) = file.save(kept) {
        tracing::warn!(
            file = %file.path().display(),
            "the last known good policy cannot be written ({error}): a restart will need the control plane"
        );
    }
}
