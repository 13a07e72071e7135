//! Has the origin asked: what its answer does to what is kept, and what the client gets of it.

use super::{
    Answered, Cache, SCHEME,
    body::{self, Read},
    conditional::{self, AfterHead, Condition, Validators},
    entry::{Draft, Entry, Key, Variants, listed, mapped},
    exchange::{Given, Origin},
    fill::{Alone, Filler},
    freshness::Arrival,
    key::{self, NoVarySearch},
    lookup::{self, Lookup},
    range::{self, Part},
    seconds_now,
    serve::part_coming,
    siblings::{OfSibling, ToSibling},
    status::{self, Forwarded, Report},
    storing::{self, Asked, Keep, Kind, Refusal},
    vary,
};
use crate::{
    body::Body,
    error::{Error, Kind as ErrorKind},
    http1::HeaderCase,
    message::WEFT_CACHE_TAGS,
    notable::Notable,
};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header, request::Parts, response::Parts as Head};
use smallvec::SmallVec;
use std::{rc::Rc, sync::Arc, time::Duration};

/// How long a part is read to be put together with another.
const COMBINE_TIME: Duration = Duration::from_secs(10);

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

    /// Keeps the origin's answer if it may be kept, and gives it.
    async fn keep(
        &self,
        lookup: &Lookup,
        filler: Option<Filler>,
        alone: Option<Alone>,
        request: &Parts,
        response: Response<Body>,
        arrival: Arrival,
    ) -> (Response<Body>, Answered) {
        let (mut head, body) = response.into_parts();
        let how = Answered::Miss(lookup.why);
        let mut report = Report::forwarded(lookup.why);
        status::add_via(&mut head.headers, head.version);
        let Some(filler) = filler else {
            self.after_head(lookup, request, &head, arrival);
            self.untag_for(request, &mut head.headers);
            self.shard.cache_refused(&self.series, Refusal::Head);
            report.refused(Refusal::Head).add_to(&mut head.headers, self.name(request));
            return (Response::from_parts(head, body), how);
        };
        if head.status.is_success() {
            let resource = || {
                let authority = crate::message::authority(request).unwrap_or_default();
                key::resource(SCHEME, authority, request.uri.path())
            };
            self.store.queries.learn(resource, NoVarySearch::of(&head.headers));
        }
        let decided =
            storing::decide(&self.asked(lookup, request), head.status, &head.headers, &self.rules, arrival);
        let mut body = match decided {
            Ok(keep) => {
                report.ttl = Some(keep.terms.left(arrival.received));
                self.fill(lookup, filler, request, &head, body, &keep, arrival, &mut report).await
            }
            Err(why) => {
                self.shard.cache_refused(&self.series, why);
                report = report.refused(why);
                match why {
                    Refusal::RequestNoStore | Refusal::Head => filler.personal(),
                    // What a sibling gives stale, since the origin fails, may be had again.
                    Refusal::NoFreshness if OfSibling::gave(&head) => filler.personal(),
                    Refusal::Partial if request.headers.contains_key(header::RANGE) => filler.personal(),
                    Refusal::Status if head.status == StatusCode::NOT_MODIFIED => filler.personal(),
                    _ if head.status.is_server_error() => filler.failed(),
                    _ => filler.uncacheable(),
                }
                body
            }
        };
        if report.detail.is_none() && alone == Some(Alone::Crowded) {
            report.detail = Some("crowded");
        }
        self.untag_for(request, &mut head.headers);
        if lookup.notable.has(Notable::CONDITION) && has_not_changed(request, &mut head, arrival) {
            body = Body::Empty;
        } else if report.stored && lookup.notable.has(Notable::RANGE) {
            // All of it was fetched, for whoever else wants it.
            body = part_coming(request, &mut head.status, &mut head.headers, body, arrival.received);
        }
        report.add_to(&mut head.headers, self.name(request));
        (Response::from_parts(head, body), how)
    }

    /// Takes labels away that are not for whoever made a request: siblings keep answers by them, as the origin gave them.
    pub(super) fn untag_for(&self, request: &Parts, headers: &mut HeaderMap) {
        if !OfSibling::is(request) {
            let onward = self.onward(&storing::tags(headers, &self.rules));
            self.untag(headers, onward);
        } else if let Some(tags) = &self.rules.tags
            && headers.contains_key(WEFT_CACHE_TAGS)
        {
            let labels = joined(&storing::tags(headers, &self.rules));
            labels.map(|labels| headers.insert(tags.header.clone(), labels));
        }
    }

    /// Takes labels away that are not for callers. Their sidecars keep answers by labels as well: to those they go
    /// `onward` from the service's under a name that is theirs.
    fn untag(&self, headers: &mut HeaderMap, onward: Option<HeaderValue>) {
        if let Some(tags) = self.rules.tags.as_ref().filter(|tags| tags.strip) {
            headers.remove(&tags.header);
        }
        match onward {
            Some(labels) => _ = headers.insert(WEFT_CACHE_TAGS, labels),
            None => _ = headers.remove(WEFT_CACHE_TAGS),
        }
    }

    /// Labels as they go on from here to callers' sidecars.
    fn onward(&self, labels: &[&[u8]]) -> Option<HeaderValue> {
        let goes_on = self.is_inbound() && self.hides_labels();
        goes_on.then(|| joined(labels)).flatten()
    }

    /// Stores an answer while it comes in. Gives the body for this request.
    #[allow(clippy::too_many_arguments)]
    async fn fill(
        &self,
        lookup: &Lookup,
        mut filler: Filler,
        request: &Parts,
        head: &Head,
        body: Body,
        keep: &Keep,
        arrival: Arrival,
        report: &mut Report,
    ) -> Body {
        let tags = storing::tags(&head.headers, &self.rules);
        let kept = keep.fields(&head.headers, &self.rules, self.onward(&tags));
        let fields = kept.list();
        let selector = vary::selector(&keep.vary, &request.headers);
        let draft = Draft {
            key: lookup.key(),
            selector: &selector,
            tags: &tags,
            status: head.status,
            fields: &fields,
            case: head.extensions.get::<HeaderCase>(),
            times: keep.terms.times(arrival.requested),
            extent: None,
            flags: self.flags(&keep.terms),
        };
        if let Some(part) = &keep.part {
            return self.fill_part(lookup, filler, draft, part, body, report).await;
        }
        let body = match body::at_hand(body, self.store.object_limit()).await {
            Ok(bytes) if !keep.for_get => {
                let Some(entry) = Entry::whole(&draft, filler.epoch(), &bytes) else {
                    self.unkept_new(filler, Refusal::TooLarge, report);
                    return Body::full(bytes);
                };
                report.stored = true;
                filler.keep(entry, arrival.received);
                return Body::full(bytes);
            }
            Ok(bytes) => Body::full(bytes),
            Err(body) => body,
        };
        let Some(entry) = filler.head(&draft) else {
            self.unkept_new(filler, Refusal::TooLarge, report);
            return body;
        };
        report.stored = true;
        // An answer to a POST may be that to a GET of the same URI too (RFC 9110 section 9.3.3).
        if keep.for_get
            && let Some(text) = key::of_get(draft.key.text())
        {
            filler.also(filler.head(&Draft { key: Key::new(&text), ..draft }));
        }
        filler.start(entry, body).await.1
    }

    /// Stores a part, with what is kept of the same whole if the two touch (RFC 9111 section 3.4).
    async fn fill_part(
        &self,
        lookup: &Lookup,
        filler: Filler,
        mut draft: Draft<'_>,
        part: &Part,
        body: Body,
        report: &mut Report,
    ) -> Body {
        let most = self.store.object_limit() as usize;
        let bytes = match body::read(body, most, COMBINE_TIME).await {
            Ok(Read::Whole(bytes)) => bytes,
            Ok(Read::More(body)) => {
                self.unkept_new(filler, Refusal::TooLarge, report);
                return body;
            }
            Err(error) => {
                self.unkept_new(filler, Refusal::Incomplete, report);
                return body::broken(error);
            }
        };
        if bytes.len() as u64 != part.range.end - part.range.start {
            self.unkept_new(filler, Refusal::Incomplete, report);
            return Body::full(bytes);
        }
        let before = lookup.stored.as_ref().map(|stored| &stored.entry);
        let together = before.and_then(|entry| together(entry, &mapped(draft.fields), part, &bytes, most));
        let entry = match &together {
            Some(together) => {
                let fields = listed(&together.fields, |_| true);
                draft.fields = &fields;
                draft.extent = (!together.part.is_whole()).then(|| together.part.extent());
                if together.part.is_whole() {
                    draft.status = StatusCode::OK;
                }
                let length = together.pieces.iter().map(Bytes::len).sum();
                filler.head(&draft).and_then(|head| head.with_body(length, &together.pieces, None))
            }
            None => {
                draft.extent = Some(part.extent());
                filler.head(&draft).and_then(|head| head.with_body(bytes.len(), [&bytes], None))
            }
        };
        match entry {
            Some(entry) => {
                report.stored = true;
                filler.keep(entry, seconds_now());
            }
            None => self.unkept_new(filler, Refusal::TooLarge, report),
        }
        Body::full(bytes)
    }

    /// A new answer is not kept after all.
    fn unkept_new(&self, filler: Filler, why: Refusal, report: &mut Report) {
        self.shard.cache_refused(&self.series, why);
        *report = report.refused(why);
        filler.personal();
    }

    /// What the answer to a HEAD says of the kept answer to GET (RFC 9111 section 4.3.5).
    fn after_head(&self, lookup: &Lookup, request: &Parts, head: &Head, arrival: Arrival) {
        let Some(found) = &lookup.found else { return };
        let Some(entry) = found.find(|entry| vary::selects(entry.selector(), &request.headers)) else {
            return;
        };
        let fields = entry.headers();
        let validators = Validators::of(&fields, entry.times().received);
        let length = entry.length() as u64;
        match conditional::after_head(head.status, &head.headers, entry.status(), &validators, length) {
            AfterHead::Nothing => {}
            AfterHead::Outdate => entry.outdate(),
            AfterHead::Update => {
                let asked = Asked { kind: Kind::Get, ..self.asked(lookup, request) };
                let (mut new, keep) =
                    storing::refreshed(&asked, entry.status(), &fields, &head.headers, &self.rules, arrival);
                let Ok(keep) = keep else { return };
                let tags: SmallVec<[&[u8]; 8]> = entry.tags().collect();
                self.untag(&mut new, self.onward(&tags));
                let new = listed(&new, |_| true);
                let draft = Draft {
                    key: lookup.key(),
                    selector: entry.selector(),
                    tags: &tags,
                    status: entry.status(),
                    fields: &new,
                    case: entry.case(),
                    times: keep.terms.times(arrival.requested),
                    extent: None,
                    flags: self.flags(&keep.terms),
                };
                // In this order: a purge since it was looked up is seen in the one or judges the other.
                let checked = entry.checked();
                if entry.is_purged() || entry.is_outdated() {
                    return;
                }
                if let Some(new) = entry.refreshed(&draft, checked) {
                    // Without room the old one stays as it is.
                    let _ = self.store.put(new, seconds_now());
                }
            }
        }
    }
}

/// Labels as one field has them; `None` if there are none.
pub(super) fn joined(labels: &[&[u8]]) -> Option<HeaderValue> {
    // They came in a field, so they fit into one.
    HeaderValue::from_bytes(&labels.join(&b","[..])).ok().filter(|labels| !labels.is_empty())
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

/// Makes an answer a 304 if that is what the client asked, on a condition that the origin was not told.
fn has_not_changed(request: &Parts, head: &mut Head, arrival: Arrival) -> bool {
    if !conditional::is_conditional(&request.headers) || head.status == StatusCode::NOT_MODIFIED {
        return false;
    }
    let validators = Validators::of(&head.headers, arrival.received);
    if conditional::evaluate(&request.method, &request.headers, head.status, &validators) == Condition::Give {
        return false;
    }
    head.headers = conditional::not_modified(&head.headers);
    head.status = StatusCode::NOT_MODIFIED;
    true
}

/// Two parts put together.
struct Together {
    fields: HeaderMap,
    part: Part,
    pieces: SmallVec<[Bytes; 2]>,
}

/// Puts a part that is kept and a new one together, if they touch and are certainly of one whole.
fn together(entry: &Entry, fields: &HeaderMap, part: &Part, bytes: &Bytes, most: usize) -> Option<Together> {
    let kept = Part::of_extent(entry.extent()?, entry.length() as u64);
    let of_kept = entry.headers();
    let received = entry.times().received;
    if !range::of_one_whole(&Validators::of(&of_kept, received), &Validators::of(fields, received)) {
        return None;
    }
    let whole = kept.with(part)?;
    if whole.range.end - whole.range.start > most as u64 {
        return None;
    }
    let kept_bytes = entry.bytes();
    let ((first, first_bytes), (second, second_bytes)) = if kept.range.start <= part.range.start {
        ((&kept, &kept_bytes), (part, bytes))
    } else {
        ((part, bytes), (&kept, &kept_bytes))
    };
    let mut pieces = SmallVec::new();
    if second.range.end <= first.range.end {
        pieces.push(first_bytes.clone());
    } else {
        pieces.push(first_bytes.slice(..(second.range.start - first.range.start) as usize));
        pieces.push(second_bytes.clone());
    }
    let fields = range::combined(&of_kept, fields, &whole);
    Some(Together { fields, part: whole, pieces })
}
