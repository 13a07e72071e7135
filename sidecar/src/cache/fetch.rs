//! Has the origin or a sibling asked, about what is kept if anything is, and takes in that it is still so.

use super::{
    Answered, Cache, SCHEME,
    conditional::{self, Validators},
    entry::{Draft, Entry, Variants, listed},
    exchange::{Given, Origin},
    fill::{Alone, Filler},
    freshness::Arrival,
    lookup::{self, Lookup},
    seconds_now,
    siblings::{OfSibling, ToSibling},
    status::{Forwarded, Report},
    storing::{self, Asked, Kind, Refusal},
    vary,
};
use crate::{
    body::Body,
    error::{Error, Kind as ErrorKind},
    notable::Notable,
};
use http::{HeaderMap, Response, StatusCode, header, request::Parts};
use smallvec::SmallVec;
use std::{rc::Rc, sync::Arc};

impl Cache {
    /// What is kept in place of the origin's failure, where that is allowed (RFC 5861 section 4).
    pub(super) fn instead_of_failure(
        &self,
        lookup: &Lookup,
        request: &Parts,
        status: Option<StatusCode>,
    ) -> Option<(Response<Body>, Answered)> {
        let stored = lookup.stored.as_ref().filter(|stored| stored.if_error)?;
        let now = seconds_now();
        let report = Report { status, detail: Some("stale-if-error"), ..Report::forwarded(lookup.why) };
        Some((self.serve(request, &stored.entry, &stored.terms, now, report), Answered::Stale))
    }

    /// Asks the origin, and gives its answer or what it confirms.
    pub(super) async fn fetch(
        self: &Rc<Self>,
        lookup: &Lookup,
        filler: Option<Filler>,
        alone: Option<Alone>,
        request: &mut Parts,
        body: Body,
        origin: &mut impl Origin,
    ) -> Given {
        let mut arrival = Arrival { requested: seconds_now(), received: 0 };
        let mut filler = filler;
        let mut outcome;
        // Nothing to ask about, and nothing to ask otherwise: no copy of the request is needed.
        let nothing_else = lookup.found.is_none()
            && lookup.stored.is_none()
            && !lookup.notable.has(Notable::CONDITION | Notable::RANGE)
            && self.rules.tiers.siblings.is_none();
        if nothing_else && origin.sends_as_asked() {
            outcome = origin.fetch(request, body).await;
            arrival.received = seconds_now();
        } else {
            let asked;
            (outcome, asked) = Box::pin(self.fetch_anew(lookup, alone, request, body, origin)).await;
            arrival.received = seconds_now();
            if let Ok(response) = &outcome
                && response.status() == StatusCode::NOT_MODIFIED
                && !asked.is_empty()
            {
                if let Some(answer) = self.confirmed(lookup, request, &asked, response, arrival, &mut filler)
                {
                    return Ok(answer);
                }
                // It speaks of something that is not here.
                let mut sent = request.clone();
                conditional::make_plain(&mut sent.headers);
                arrival.requested = seconds_now();
                outcome = Box::pin(origin.fetch(&mut sent, Body::Empty)).await;
                arrival.received = seconds_now();
            }
        }
        let status = outcome.as_ref().ok().map(Response::status);
        if failed(&outcome)
            && let Some(answer) = self.instead_of_failure(lookup, request, status)
        {
            if let Some(filler) = filler {
                filler.failed();
            }
            return Ok(answer);
        }
        match outcome {
            Ok(response) => Ok(self.keep(lookup, filler, alone, request, response, arrival).await),
            Err(mut error) => {
                if let Some(filler) = filler {
                    filler.failed();
                }
                let headers = error.headers.get_or_insert_default();
                Report::forwarded(lookup.why).add_to(headers, self.name(request));
                Err(error)
            }
        }
    }

    /// Asks a sibling or the origin, about what is kept if anything is. Gives what it asked about.
    async fn fetch_anew(
        &self,
        lookup: &Lookup,
        alone: Option<Alone>,
        request: &Parts,
        body: Body,
        origin: &mut impl Origin,
    ) -> (Result<Response<Body>, Error>, SmallVec<[Arc<Entry>; 2]>) {
        let mut sent = request.clone();
        let asked = self.ask(lookup, alone, request, &mut sent.headers);
        let outcome = match self.ask_sibling(lookup, alone, &sent, origin).await {
            Some(response) => Ok(response),
            None => origin.fetch(&mut sent, body).await,
        };
        (outcome, asked)
    }

    /// Asks whoever of our siblings the key belongs to, where policy says so and where others may want the answer too.
    async fn ask_sibling(
        &self,
        lookup: &Lookup,
        alone: Option<Alone>,
        sent: &Parts,
        origin: &mut impl Origin,
    ) -> Option<Response<Body>> {
        let patience = self.rules.tiers.siblings?;
        if alone.is_some() || !matches!(lookup.kind, Kind::Get | Kind::Head) || OfSibling::is(sent) {
            return None;
        }
        let key = &lookup.key[..];
        let anew = self.store.changed.is_lately(key, seconds_now());
        let question = ToSibling { key, request: sent, anew, patience, wait: self.rules.coalesce };
        Box::pin(origin.ask(question)).await
    }

    /// Makes a request one whose answer is good for all: it asks whether what is kept is still so, or for all there is.
    /// Gives what it asks about.
    fn ask(
        &self,
        lookup: &Lookup,
        alone: Option<Alone>,
        request: &Parts,
        sent: &mut HeaderMap,
    ) -> SmallVec<[Arc<Entry>; 2]> {
        if lookup.kind != Kind::Get {
            return SmallVec::new();
        }
        let of_found =
            |found: &Variants| found.iter().filter(|entry| entry.extent().is_none()).cloned().collect();
        let mut entries: SmallVec<[Arc<Entry>; 2]> = match (&lookup.stored, &lookup.found) {
            (Some(stored), _) if stored.entry.extent().is_none() => {
                SmallVec::from_iter([stored.entry.clone()])
            }
            // Another variant may be what this request gets too.
            (None, Some(found)) if lookup.why == Forwarded::VaryMiss => of_found(found),
            _ => SmallVec::new(),
        };
        // What was purged while this request waited is not kept anew, whatever its validators say.
        entries.retain(|entry| self.store.stands(entry));
        if !entries.is_empty() && !lookup.directives.no_store {
            let fields: SmallVec<[HeaderMap; 2]> = entries.iter().map(|entry| entry.headers()).collect();
            let validators: SmallVec<[Validators<'_>; 2]> = entries
                .iter()
                .zip(&fields)
                .map(|(entry, fields)| Validators::of(fields, entry.times().received))
                .collect();
            let mut asking = sent.clone();
            if conditional::ask(&mut asking, &validators) {
                *sent = asking;
                return entries;
            }
        }
        // What cannot be kept is asked for as the client does, and so is a part.
        let as_it_is = alone == Some(Alone::Uncacheable)
            || lookup.directives.no_store
            || (lookup.notable.has(Notable::RANGE)
                && request.headers.contains_key(header::RANGE)
                && !lookup.has_whole());
        if !as_it_is && lookup.notable.has(Notable::CONDITION | Notable::RANGE) {
            conditional::make_plain(sent);
        }
        SmallVec::new()
    }

    /// The origin says that what is kept is still so. `None` if it says so of something else.
    fn confirmed(
        &self,
        lookup: &Lookup,
        request: &Parts,
        asked: &[Arc<Entry>],
        response: &Response<Body>,
        arrival: Arrival,
        filler: &mut Option<Filler>,
    ) -> Option<(Response<Body>, Answered)> {
        let fields: SmallVec<[HeaderMap; 2]> = asked.iter().map(|entry| entry.headers()).collect();
        let validators: SmallVec<[Validators<'_>; 2]> = asked
            .iter()
            .zip(&fields)
            .map(|(entry, fields)| Validators::of(fields, entry.times().received))
            .collect();
        let which = conditional::confirmed(response.headers(), &validators, arrival.received);
        let at = *which.first()?;
        let (stored, fields) = (&asked[at], &fields[at]);
        let filler = filler.take()?;
        let (mut new, keep) = storing::refreshed(
            &self.asked(lookup, request),
            stored.status(),
            fields,
            response.headers(),
            &self.rules,
            arrival,
        );
        let mut report = Report { status: Some(StatusCode::NOT_MODIFIED), ..Report::forwarded(lookup.why) };
        let kept = match keep {
            Ok(keep) => {
                let named = storing::tags(response.headers(), &self.rules);
                let tags = if named.is_empty() { stored.tags().collect() } else { named };
                let selector = vary::selector(&keep.vary, &request.headers);
                self.untag(&mut new, self.onward(&tags));
                let new = listed(&new, |_| true);
                let draft = Draft {
                    key: lookup.key(),
                    selector: &selector,
                    tags: &tags,
                    status: stored.status(),
                    fields: &new,
                    case: stored.case(),
                    times: keep.terms.times(arrival.requested),
                    extent: None,
                    flags: self.flags(&keep.terms),
                };
                match stored.refreshed(&draft, filler.epoch()) {
                    Some(entry) => {
                        report.stored = true;
                        filler.keep(entry, arrival.received)
                    }
                    None => self.unkept(stored, filler, Refusal::TooLarge, &mut report),
                }
            }
            // That was only one person's request: what is kept stays as it is.
            Err(why @ (Refusal::RequestNoStore | Refusal::Authorization)) => {
                report = report.refused(why);
                filler.personal();
                stored.clone()
            }
            Err(why) => self.unkept(stored, filler, why, &mut report),
        };
        let terms = lookup::terms(&kept, &self.rules, arrival.received);
        let response = self.serve(request, &kept, &terms, arrival.received, report);
        Some((response, Answered::Revalidated))
    }

    /// What was kept is given once more, and is kept no longer.
    fn unkept(&self, stored: &Arc<Entry>, filler: Filler, why: Refusal, report: &mut Report) -> Arc<Entry> {
        self.shard.cache_refused(&self.series, why);
        *report = report.refused(why);
        self.store.remove(stored);
        filler.uncacheable();
        stored.clone()
    }

    pub(super) fn asked<'a>(&self, lookup: &'a Lookup, request: &'a Parts) -> Asked<'a> {
        Asked {
            kind: lookup.kind,
            headers: &request.headers,
            directives: &lookup.directives,
            scheme: SCHEME,
            authority: crate::message::authority(request).unwrap_or_default(),
            path: request.uri.path(),
            query: request.uri.query(),
        }
    }
}

/// Whether an outcome is one in place of which something stale may be given (RFC 5861 section 4).
fn failed(outcome: &Result<Response<Body>, Error>) -> bool {
    match outcome {
        Ok(response) => matches!(response.status().as_u16(), 500 | 502..=504),
        // What is wrong with the request itself is not the origin's failure.
        Err(error) => !matches!(
            error.kind,
            ErrorKind::BadRequest
                | ErrorKind::Forbidden
                | ErrorKind::NoRoute
                | ErrorKind::UnknownService
                | ErrorKind::TooLarge
                | ErrorKind::HeadersTooLarge
                | ErrorKind::NotImplemented
                | ErrorKind::Gone
        ),
    }
}
