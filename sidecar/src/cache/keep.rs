//! What a new answer does to what is kept, and what the client gets of it.

use super::{
    Answered, Cache, SCHEME,
    body::{self, Read},
    conditional::{self, AfterHead, Condition, Validators},
    entry::{Draft, Entry, Key, listed, mapped},
    fill::{Alone, Filler},
    freshness::Arrival,
    key::{self, NoVarySearch},
    lookup::Lookup,
    range::{self, Part},
    seconds_now,
    serve::part_coming,
    siblings::OfSibling,
    status::{self, Report},
    storing::{self, Asked, Keep, Kind, Refusal},
    vary,
};
use crate::{body::Body, http1::HeaderCase, message::WEFT_CACHE_TAGS, notable::Notable};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header, request::Parts, response::Parts as Head};
use smallvec::SmallVec;
use std::time::Duration;

/// How long a part is read to be put together with another.
const COMBINE_TIME: Duration = Duration::from_secs(10);

impl Cache {
    /// Keeps the origin's answer if it may be kept, and gives it.
    pub(super) async fn keep(
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
    pub(super) fn untag(&self, headers: &mut HeaderMap, onward: Option<HeaderValue>) {
        if let Some(tags) = self.rules.tags.as_ref().filter(|tags| tags.strip) {
            headers.remove(&tags.header);
        }
        match onward {
            Some(labels) => _ = headers.insert(WEFT_CACHE_TAGS, labels),
            None => _ = headers.remove(WEFT_CACHE_TAGS),
        }
    }

    /// Labels as they go on from here to callers' sidecars.
    pub(super) fn onward(&self, labels: &[&[u8]]) -> Option<HeaderValue> {
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
