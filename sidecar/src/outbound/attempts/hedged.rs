//! Attempts side by side: another one starts while the first is slow, the first good answer wins, and the rest are
//! cancelled.

use super::{Attempts, Tried, TriedEndpoints};
use crate::{
    body::Body,
    context::Call,
    error::Error,
    outbound::payload::Payload,
    telemetry::metrics::Hedged,
    upstream::{Decision, Entry, RetrySlot, decide},
};
use futures_util::stream::{FuturesUnordered, StreamExt};
use http::{Response, request::Parts};
use smallvec::SmallVec;
use std::{future::pending, time::Instant};
use tokio::time::sleep;
use weft_config::snapshot::Hedge;

/// What attempts side by side share.
struct Race<'a> {
    head: &'a Parts,
    payload: Payload,
    entry: &'a Entry,
    tried: TriedEndpoints,
    /// Held as long as the attempts beyond the first may be under way.
    slots: SmallVec<[RetrySlot; 2]>,
    /// Cleared once the budget has no more.
    may_hedge: bool,
}

impl Attempts<'_> {
    /// Attempts side by side; all beyond the first are within the budget. A failed attempt is tried again as policy
    /// says once no other is under way.
    pub(super) async fn side_by_side(
        &self,
        call: &mut Call,
        head: &Parts,
        payload: Payload,
        entry: &Entry,
        hedge: &Hedge,
    ) -> Result<Response<Body>, Error> {
        let mut race = Race {
            head,
            payload,
            entry,
            tried: TriedEndpoints::new(),
            slots: SmallVec::new(),
            may_hedge: true,
        };
        let mut running = FuturesUnordered::new();
        running.push(self.starter(call, &mut race)?);
        loop {
            let more = race.may_hedge && call.attempts < hedge.max_attempts && race.payload.is_whole();
            let delay = if more { self.cluster.hedge_delay(hedge, Instant::now()) } else { None };
            let due = async {
                match delay {
                    Some(delay) => sleep(delay).await,
                    None => pending().await,
                }
            };
            let ended = tokio::select! {
                biased;
                ended = running.next() => ended,
                () = due => None,
            };
            let Some((number, attempt)) = ended else {
                match race.entry.retry(Instant::now()) {
                    Ok(slot) => {
                        race.slots.push(slot);
                        // That there is nobody else to ask is no reason to give up the one that is asked already.
                        match self.starter(call, &mut race) {
                            Ok(another) => running.push(another),
                            Err(_) => race.may_hedge = false,
                        }
                    }
                    Err(refusal) => {
                        race.may_hedge = false;
                        self.worker.shard.hedge(Hedged::Refused);
                        self.worker.shard.retry_refused(refusal.reason());
                    }
                }
                continue;
            };
            self.cluster.observe_latency(attempt.took, Instant::now());
            let untried = race.tried.len() < self.cluster.len();
            let attempted = self.attempted(call, head, &attempt.outcome, race.payload.is_whole(), untried);
            let again = match decide(&self.calls.retry, &attempted, fastrand::f64) {
                // Another one is on its way, and may still do better.
                Decision::Again { .. } if !running.is_empty() => {
                    self.judge(attempt);
                    continue;
                }
                Decision::Stop(_) if attempt.outcome.is_err() && !running.is_empty() => {
                    self.judge(attempt);
                    continue;
                }
                Decision::Stop(stop) => {
                    if let Some(refused) = stop.refused() {
                        self.worker.shard.retry_refused(refused);
                    }
                    if stop.is_final_for_callers() {
                        call.gave_up();
                    }
                    None
                }
                Decision::Again { after, reason, free: true } => Some((after, reason)),
                Decision::Again { after, reason, free: false } => match race.entry.retry(Instant::now()) {
                    Ok(slot) => {
                        race.slots.push(slot);
                        Some((after, reason))
                    }
                    Err(refusal) => {
                        self.worker.shard.retry_refused(refusal.reason());
                        call.gave_up();
                        None
                    }
                },
            };
            let Some((after, reason)) = again else {
                if call.attempts > 1 {
                    self.worker.shard.hedge(if number > 1 { Hedged::Won } else { Hedged::Lost });
                }
                call.upstream_time += attempt.took;
                return self.conclude(call, attempt);
            };
            self.worker.shard.retry(reason);
            self.judge(attempt);
            sleep(after).await;
            running.push(self.starter(call, &mut race)?);
        }
    }

    /// Begins another attempt; gives it with its number.
    fn starter<'r>(
        &'r self,
        call: &mut Call,
        race: &mut Race<'_>,
    ) -> Result<impl Future<Output = (u32, Tried)> + use<'r>, Error> {
        let chosen = self.choose(&race.tried, race.entry, race.head)?;
        let endpoint = chosen.flight.endpoint().clone();
        call.attempts += 1;
        call.note(|log| (log.endpoint, log.wire) = (Some(endpoint.place.address), chosen.wire.as_str()));
        if let Some(backend) = self.backend {
            call.series = Some(backend.series(endpoint.place.identity.is_some()).clone());
        }
        let mut head = race.head.clone();
        self.address(&mut head, &endpoint, call.attempts);
        race.tried.push(endpoint);
        let (body, number) = (race.payload.take(), call.attempts);
        Ok(async move { (number, self.send(chosen, &head, body).await) })
    }
}
