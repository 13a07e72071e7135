//! This workload's certificate: when to ask for the next one, what to do when none comes, and what is kept of it.

use super::backoff::Backoff;
use crate::tls::{Identity, PendingKey, renewal_time};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use std::{
    fmt,
    time::{Duration, SystemTime},
};
use tokio::time::Instant;
use weft_config::wire;
use x509_parser::prelude::{FromDer, X509Certificate};

/// One moment on both clocks: waits are measured on one, certificates are dated on the other.
#[derive(Clone, Copy, Debug)]
pub(super) struct Now {
    pub(super) instant: Instant,
    pub(super) wall: SystemTime,
}

impl Now {
    pub(super) fn read() -> Self {
        Self { instant: Instant::now(), wall: SystemTime::now() }
    }

    /// When to look again at something that is due at `wall`. At most half a minute ahead: the clocks drift apart when
    /// the machine sleeps or its date is set.
    fn until(&self, wall: SystemTime) -> Instant {
        let left = wall.duration_since(self.wall).unwrap_or(Duration::ZERO);
        self.instant + left.min(Duration::from_secs(30))
    }
}

/// A certificate with its key as it is kept: in memory, and on disk for the next start.
#[derive(Clone, PartialEq)]
pub(super) struct Stored {
    /// DER, this workload's first.
    pub(super) chain: Vec<Vec<u8>>,
    /// PKCS#8, DER.
    pub(super) key: Vec<u8>,
    /// When it came: its life is counted from there, not from a date set back for slow clocks.
    pub(super) received: SystemTime,
}

impl Stored {
    /// In the form that TLS takes.
    pub(super) fn to_rustls(&self) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let chain = self.chain.iter().map(|der| CertificateDer::from(der.clone())).collect();
        (chain, PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key.clone())))
    }

    /// Until when the certificate is valid.
    pub(super) fn expires(&self) -> Result<SystemTime, String> {
        let leaf = self.chain.first().ok_or("the chain is empty")?;
        let (_, leaf) =
            X509Certificate::from_der(leaf).map_err(|error| format!("it cannot be parsed: {error}"))?;
        let seconds = u64::try_from(leaf.validity().not_after.timestamp()).unwrap_or(0);
        SystemTime::UNIX_EPOCH
            .checked_add(Duration::from_secs(seconds))
            .ok_or_else(|| "its end is not a date".to_owned())
    }
}

impl fmt::Debug for Stored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stored").field("received", &self.received).finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct Current {
    stored: Stored,
    not_after: SystemTime,
    renew_at: SystemTime,
    /// The last step of age, in percent, at which somebody was warned.
    warned: u32,
}

impl Current {
    fn life(&self) -> Duration {
        self.not_after.duration_since(self.stored.received).unwrap_or(Duration::ZERO)
    }

    fn at(&self, percent: u32) -> SystemTime {
        self.stored.received + self.life() * percent / 100
    }
}

/// How near its end a certificate is that should have been renewed long ago.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Warning {
    /// So many percent of its life are over.
    Aging(u32),
    /// It is over.
    Expired,
}

/// The life of this workload's certificate.
pub(super) struct Issuance {
    pending: Option<(PendingKey, Vec<u8>)>,
    asked_at: Option<Instant>,
    retry_at: Option<Instant>,
    backoff: Backoff,
    current: Option<Current>,
}

impl Issuance {
    /// Warnings begin at this share of life, and come again with every [`WARN_STEP`](Self::WARN_STEP).
    const WARN_FROM: u32 = 80;
    const WARN_STEP: u32 = 5;
    /// How long to wait for an answer, and between tries, at most; less when the certificate lives less.
    const PATIENCE: Duration = Duration::from_secs(5);
    const RETRY_BASE: Duration = Duration::from_millis(100);
    const RETRY_CAP: Duration = Duration::from_secs(60);

    pub(super) fn new() -> Self {
        Self {
            pending: None,
            asked_at: None,
            retry_at: None,
            backoff: Backoff::new(Self::RETRY_BASE, Self::PATIENCE),
            current: None,
        }
    }

    /// True if a certificate must be asked for now.
    pub(super) fn is_due(&self, now: Now) -> bool {
        self.asked_at.is_none()
            && self.retry_at.is_none_or(|at| now.instant >= at)
            && self.current.as_ref().is_none_or(|current| now.wall >= current.renew_at)
    }

    /// The certificate in use is not good enough: another is asked for as soon as possible.
    pub(super) fn renew_now(&mut self, now: Now) {
        if let Some(current) = &mut self.current {
            current.renew_at = current.renew_at.min(now.wall);
        }
    }

    /// The request to send. The same key is used until an answer has come for it.
    pub(super) fn request(&mut self, now: Now) -> Result<wire::CertificateRequest, String> {
        let (_, csr) = match &mut self.pending {
            Some(pending) => pending,
            none => match PendingKey::new() {
                Ok(pending) => none.insert(pending),
                Err(error) => {
                    self.failed(now);
                    return Err(format!("no key could be made: {error}"));
                }
            },
        };
        self.asked_at = Some(now.instant);
        self.retry_at = None;
        Ok(wire::CertificateRequest { csr: csr.clone() })
    }

    /// The answer: what to install, or why there is none.
    pub(super) fn answer(&mut self, certificate: wire::Certificate, now: Now) -> Result<Stored, String> {
        if !certificate.refused.is_empty() {
            self.failed(now);
            return Err(format!("the control plane refused it: {}", certificate.refused));
        }
        let Some((key, _)) = self.pending.take() else {
            return Err("a certificate came that nobody asked for".to_owned());
        };
        let key = match key.into_key() {
            PrivateKeyDer::Pkcs8(key) => key.secret_pkcs8_der().to_vec(),
            other => other.secret_der().to_vec(),
        };
        Ok(Stored { chain: certificate.chain, key, received: now.wall })
    }

    /// TLS took it.
    pub(super) fn installed(&mut self, stored: Stored, identity: &Identity) {
        self.install(stored, identity.not_before, identity.not_after, fastrand::f64());
    }

    fn install(&mut self, stored: Stored, not_before: SystemTime, not_after: SystemTime, random: f64) {
        let renew_at = renewal_time(stored.received.max(not_before), not_after, random);
        let current = Current { stored, not_after, renew_at, warned: 0 };
        let cap = (current.life() / 20).clamp(Self::RETRY_BASE, Self::RETRY_CAP);
        self.backoff = Backoff::new(Self::RETRY_BASE, cap);
        self.current = Some(current);
        self.asked_at = None;
        self.retry_at = None;
    }

    /// It could not be had this time.
    pub(super) fn failed(&mut self, now: Now) {
        self.asked_at = None;
        self.retry_at = Some(now.instant + self.backoff.next());
    }

    /// The stream on which it was asked for is gone; it is asked for again on the next one.
    pub(super) fn closed(&mut self) {
        self.asked_at = None;
        self.retry_at = None;
    }

    /// True once if an answer has not come in time; the next try is scheduled.
    pub(super) fn timed_out(&mut self, now: Now) -> bool {
        let late = self.asked_at.is_some_and(|at| now.instant >= at + self.patience());
        if late {
            self.failed(now);
        }
        late
    }

    /// The warning that is due, once for each step.
    pub(super) fn warning(&mut self, now: Now) -> Option<Warning> {
        let current = self.current.as_mut()?;
        if now.wall >= current.not_after {
            return (std::mem::replace(&mut current.warned, 100) < 100).then_some(Warning::Expired);
        }
        let step = (Self::WARN_FROM..100)
            .step_by(Self::WARN_STEP as usize)
            .rev()
            .find(|&percent| now.wall >= current.at(percent))?;
        (std::mem::replace(&mut current.warned, step) < step).then_some(Warning::Aging(step))
    }

    /// When to look again. Without a stream nothing can be asked for, and only warnings are due.
    pub(super) fn next_tick(&self, now: Now, connected: bool) -> Option<Instant> {
        let asked = self.asked_at.map(|at| at + self.patience());
        let ask = match (self.asked_at, self.retry_at, &self.current) {
            (None, retry, Some(current)) if connected => retry.max(Some(now.until(current.renew_at))),
            (None, retry, None) if connected => retry.or(Some(now.instant)),
            _ => None,
        };
        let warn = self.current.as_ref().filter(|c| c.warned < 100).map(|current| {
            let step = (current.warned + Self::WARN_STEP).clamp(Self::WARN_FROM, 100);
            now.until(if step < 100 { current.at(step) } else { current.not_after })
        });
        [asked, ask, warn].into_iter().flatten().min()
    }

    /// The certificate in use, unless its time is over.
    pub(super) fn valid(&self, now: Now) -> Option<&Stored> {
        self.current.as_ref().filter(|current| now.wall < current.not_after).map(|current| &current.stored)
    }

    /// When the certificate in use ends and when it is renewed.
    pub(super) fn dates(&self) -> Option<(SystemTime, SystemTime)> {
        self.current.as_ref().map(|current| (current.not_after, current.renew_at))
    }

    fn patience(&self) -> Duration {
        let twentieth = self.current.as_ref().map_or(Self::PATIENCE, |current| current.life() / 20);
        twentieth.clamp(Duration::from_millis(250), Self::PATIENCE)
    }
}
