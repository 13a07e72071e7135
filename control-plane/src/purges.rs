//! Purges on their way to sidecars: who was asked, who has answered, and what those that were away must catch up on. Pure
//! state; the caller brings the time.
//!
//! A purge goes round several times. What one sidecar keeps may come from another: from the service's own cache, from a
//! sibling. One that was purged may fetch again, a moment later, what another still holds. A round begins when all have
//! carried out the one before, and takes away what came from one step further.

mod log;

pub(crate) use log::Log;

use crate::{
    caching::{AwaySidecar, PurgeState, PurgedSidecar},
    publisher::StreamId,
    registry::Instance,
};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::Notify;
use weft_config::{
    purge::Purge,
    wire::{self, purge::What, to_sidecar::Message},
};

/// The caches that an answer can come through: the caller's own, its sibling's, the service's and its sibling's.
const ROUNDS: u32 = 4;
/// Purges, and questions for reports, that are under way at one time.
const MOST_AT_ONCE: usize = 32;
/// Messages that wait for a sidecar which does not read. With more, one purge of everything takes their place.
const MOST_WAITING: usize = 2048;
/// Lost sidecars are mentioned for so long, and so many of them.
const AWAY_FOR: Duration = Duration::from_secs(600);
const MOST_AWAY: usize = 1000;
/// The longest reason of a sidecar that is passed on.
const WHY_CHARS: usize = 300;

/// Everything about purges.
pub(crate) struct Purges {
    log: Log,
    lines: BTreeMap<StreamId, Line>,
    runs: BTreeMap<u64, Run>,
    surveys: BTreeMap<u64, Survey>,
    last_survey: u64,
    /// Since when those are gone that took traffic when they were last heard of.
    away: BTreeMap<Instance, Instant>,
}

/// The way to one sidecar.
struct Line {
    instance: Instance,
    waiting: VecDeque<Message>,
    wake: Arc<Notify>,
}

/// A purge that somebody waits for.
struct Run {
    round: u32,
    asked: BTreeMap<Instance, Standing>,
    changed: Arc<Notify>,
}

/// How far one sidecar is.
#[derive(Default)]
struct Standing {
    /// The last round that it has carried out.
    done: Option<u32>,
    answers: u64,
    failed: String,
    lost: bool,
}

impl Standing {
    fn is_through(&self) -> bool {
        self.done == Some(ROUNDS - 1) || !self.failed.is_empty()
    }
}

/// A question to all sidecars for what their caches hold.
struct Survey {
    waiting: BTreeSet<StreamId>,
    reports: Vec<(Instance, wire::CacheReport)>,
    asked: Vec<Instance>,
    changed: Arc<Notify>,
}

/// What a survey found.
pub(crate) struct Surveyed {
    pub(crate) reports: Vec<(Instance, wire::CacheReport)>,
    pub(crate) asked: Vec<Instance>,
}

impl Purges {
    pub(crate) fn new(log: Log) -> Self {
        Self {
            log,
            lines: BTreeMap::new(),
            runs: BTreeMap::new(),
            surveys: BTreeMap::new(),
            last_survey: 0,
            away: BTreeMap::new(),
        }
    }

    /// A sidecar comes that has carried out all purges up to this one. Gives how many it missed, and whether everything
    /// goes because nobody knows which.
    pub(crate) fn connect(
        &mut self,
        id: StreamId,
        instance: &Instance,
        (list, number): (&str, u64),
        wake: Arc<Notify>,
        now: u64,
    ) -> (usize, bool) {
        let missed = self.log.missed(list, number, now);
        let mut waiting: VecDeque<_> = missed.purges.into_iter().map(Message::Purge).collect();
        // Another process of its workload stands in its place.
        self.away
            .retain(|away, _| away.namespace != instance.namespace || away.workload != instance.workload);
        for (running, run) in &mut self.runs {
            let standing = run.asked.entry(instance.clone()).or_default();
            standing.lost = false;
            // Who has carried it out already says so again by answering that there is nothing to do up to it.
            let comes = waiting.iter().any(|m| matches!(m, Message::Purge(p) if p.number == *running));
            if !comes && let Some(purge) = self.log.wire(*running) {
                waiting.push_back(Message::Purge(wire::Purge { round: run.round, ..purge }));
            }
        }
        wake.notify_one();
        self.lines.insert(id, Line { instance: instance.clone(), waiting, wake });
        (missed.real, missed.everything)
    }

    /// List and number of the last purge.
    pub(crate) fn last(&self) -> (String, u64) {
        self.log.last()
    }

    /// A stream has ended. `served` if its sidecar took traffic and did not say goodbye.
    pub(crate) fn disconnect(&mut self, id: StreamId, served: bool, now: Instant) {
        for survey in self.surveys.values_mut() {
            if survey.waiting.remove(&id) {
                survey.changed.notify_one();
            }
        }
        let Some(line) = self.lines.remove(&id) else { return };
        if self.lines.values().any(|other| other.instance == line.instance) {
            return;
        }
        for run in self.runs.values_mut() {
            if let Some(standing) = run.asked.get_mut(&line.instance) {
                standing.lost = true;
            }
        }
        self.away.retain(|_, since| now.saturating_duration_since(*since) < AWAY_FOR);
        if served && self.away.len() < MOST_AWAY {
            self.away.insert(line.instance, now);
        }
    }

    /// What a stream is to be told next.
    pub(crate) fn next(&mut self, id: StreamId) -> Option<Message> {
        self.lines.get_mut(&id)?.waiting.pop_front()
    }

    /// The list with one more purge, to be written down before it is [begun](Self::begin); `None` if too many are under
    /// way.
    pub(crate) fn prepare(&self, purge: &Purge, now: u64) -> Option<(Log, u64)> {
        (self.runs.len() < MOST_AT_ONCE).then(|| self.log.with(purge, now))
    }

    /// Sends the last purge of a list to everybody. What is given is told when something has changed.
    pub(crate) fn begin(&mut self, log: Log, number: u64) -> Arc<Notify> {
        self.log = log;
        let changed = Arc::new(Notify::new());
        let asked = self.lines.values().map(|line| (line.instance.clone(), Standing::default())).collect();
        self.runs.insert(number, Run { round: 0, asked, changed: changed.clone() });
        self.send(number, 0, None);
        changed
    }

    fn send(&mut self, number: u64, round: u32, only: Option<StreamId>) {
        let Some(purge) = self.log.wire(number) else { return };
        let purge = wire::Purge { round, ..purge };
        for (_, line) in self.lines.iter_mut().filter(|(id, _)| only.is_none_or(|only| only == **id)) {
            if line.waiting.len() >= MOST_WAITING {
                line.waiting.clear();
                line.waiting.push_back(Message::Purge(self.log.everything()));
            } else {
                line.waiting.push_back(Message::Purge(purge.clone()));
            }
            line.wake.notify_one();
        }
    }

    /// A sidecar has answered a purge.
    pub(crate) fn answered(&mut self, id: StreamId, purged: &wire::Purged) {
        let Some(line) = self.lines.get(&id) else { return };
        let Some(run) = self.runs.get_mut(&purged.number) else { return };
        let Some(standing) = run.asked.get_mut(&line.instance) else { return };
        if purged.round > run.round {
            return;
        }
        if !purged.failed.is_empty() {
            let why = purged.failed.chars().filter(|c| !c.is_control()).take(WHY_CHARS);
            standing.failed = why.collect();
            if standing.failed.is_empty() {
                standing.failed = "it does not say why".to_owned();
            }
        } else {
            if standing.done.is_none() {
                standing.answers = purged.answers;
            }
            standing.done = standing.done.max(Some(purged.round));
        }
        let behind = standing.failed.is_empty() && standing.done.is_none_or(|done| done < run.round);
        let round_over = run.asked.values().all(|standing| {
            !standing.failed.is_empty() || (!standing.lost && standing.done == Some(run.round))
        });
        if behind {
            let round = run.round;
            self.send(purged.number, round, Some(id));
        } else if round_over && run.round + 1 < ROUNDS {
            run.round += 1;
            let round = run.round;
            self.send(purged.number, round, None);
        } else if round_over {
            run.changed.notify_one();
        }
    }

    /// True if nobody has to be waited for any more.
    pub(crate) fn is_through(&self, number: u64) -> bool {
        self.runs.get(&number).is_none_or(|run| run.asked.values().all(Standing::is_through))
    }

    /// Ends the waiting for a purge: how far each is that was asked.
    pub(crate) fn finish(&mut self, number: u64) -> Vec<PurgedSidecar> {
        let run = self.runs.remove(&number);
        let asked = run.map(|run| run.asked).unwrap_or_default().into_iter();
        asked
            .map(|(instance, standing)| PurgedSidecar {
                state: match &standing {
                    Standing { failed, .. } if !failed.is_empty() => PurgeState::Failed,
                    standing if standing.is_through() => PurgeState::Acknowledged,
                    Standing { lost: true, .. } => PurgeState::Lost,
                    _ => PurgeState::Late,
                },
                answers: standing.answers,
                why: standing.failed,
                namespace: instance.namespace.to_string(),
                workload: instance.workload.to_string(),
                instance: instance.id.to_string(),
            })
            .collect()
    }

    /// Who is not connected of those that were lost lately or are `expected`.
    pub(crate) fn away(&self, expected: &[Instance], now: Instant) -> Vec<AwaySidecar> {
        let here: BTreeSet<_> =
            self.lines.values().map(|l| (&l.instance.namespace, &l.instance.workload)).collect();
        let gone = |since: &Instant| now.saturating_duration_since(*since);
        let lost = self.away.iter().filter(|(_, since)| gone(since) < AWAY_FOR);
        let lost = lost.map(|(instance, since)| (instance, gone(since).as_secs()));
        let expected = expected.iter().filter(|instance| !self.away.contains_key(*instance));
        let expected = expected.filter(|i| !here.contains(&(&i.namespace, &i.workload))).map(|i| (i, 0));
        let mut away: Vec<_> = lost
            .chain(expected)
            .map(|(instance, seconds)| AwaySidecar {
                namespace: instance.namespace.to_string(),
                workload: instance.workload.to_string(),
                instance: instance.id.to_string(),
                seconds,
            })
            .collect();
        away.sort();
        away
    }

    /// Asks all sidecars what their caches hold; `None` if too many such questions are under way.
    pub(crate) fn survey(&mut self) -> Option<(u64, Arc<Notify>)> {
        if self.surveys.len() >= MOST_AT_ONCE {
            return None;
        }
        self.last_survey += 1;
        let number = self.last_survey;
        let changed = Arc::new(Notify::new());
        let mut survey = Survey {
            waiting: BTreeSet::new(),
            reports: Vec::new(),
            asked: Vec::new(),
            changed: changed.clone(),
        };
        for (id, line) in &mut self.lines {
            survey.asked.push(line.instance.clone());
            if line.waiting.len() < MOST_WAITING {
                survey.waiting.insert(*id);
                line.waiting.push_back(Message::CacheReportRequest(wire::CacheReportRequest { number }));
                line.wake.notify_one();
            }
        }
        self.surveys.insert(number, survey);
        Some((number, changed))
    }

    /// A sidecar has answered a survey.
    pub(crate) fn reported(&mut self, id: StreamId, report: wire::CacheReport) {
        let Some(line) = self.lines.get(&id) else { return };
        if let Some(survey) = self.surveys.get_mut(&report.number)
            && survey.waiting.remove(&id)
        {
            survey.reports.push((line.instance.clone(), report));
            if survey.waiting.is_empty() {
                survey.changed.notify_one();
            }
        }
    }

    /// True if nobody has to be waited for any more.
    pub(crate) fn is_surveyed(&self, number: u64) -> bool {
        self.surveys.get(&number).is_none_or(|survey| survey.waiting.is_empty())
    }

    /// Ends a survey.
    pub(crate) fn end_survey(&mut self, number: u64) -> Surveyed {
        let survey = self.surveys.remove(&number);
        survey.map_or_else(
            || Surveyed { reports: Vec::new(), asked: Vec::new() },
            |survey| Surveyed { reports: survey.reports, asked: survey.asked },
        )
    }
}

/// Whether a message purges anything.
pub(crate) fn is_purge(message: &Message) -> bool {
    matches!(message, Message::Purge(purge) if !matches!(purge.what, Some(What::Nothing(_))))
}

#[cfg(test)]
mod tests;
