//! A request for which nothing is kept that it can have: it waits for another's answer, or has the origin asked.
//!
//! One top-down function for each phase: what is asked for, whose turn it is, the wait.

use super::{
    Answered, Apart, Cache, Looked, Plan, Step,
    body::{self, Read},
    conditional::Validators,
    entry::Entry,
    fill::{Alone, Filler, Turn, Waited},
    freshness::{Freshness, Terms},
    key::{self, BodyDigest, Class, Text},
    lookup::{self, Lookup},
    range::{self, Wanted},
    seconds_now,
    siblings::ToSibling,
    status::Report,
    storing::{Bypass, Kind},
    vary,
};
use crate::{body::Body, error::Error, notable::Notable};
use http::{Response, header, request::Parts};
use smallvec::SmallVec;
use std::{
    rc::Rc,
    time::{Duration, Instant},
};

/// The largest body of a request that is digested, and how long it may take to come.
const DIGESTED: usize = 256 * 1024;
const DIGEST_TIME: Duration = Duration::from_secs(5);
/// How often a request looks again because something newer was stored meanwhile.
const ROUNDS: usize = 3;

/// How far ahead of what is here of a body a part of it may begin that is waited for.
const SOON: u64 = 256 * 1024;

/// Where answers come from.
pub(crate) trait Origin {
    /// Sends a request on. What is changed of it on the way is no matter. Bounds on the time of an answer's body are for
    /// its reader to set, since others may read it too.
    fn fetch(
        &mut self,
        request: &mut Parts,
        body: Body,
    ) -> impl Future<Output = Result<Response<Body>, Error>>;

    /// Whether all that [`Self::fetch`] changes of a request are fields of our own: what its answer depends on can be
    /// read off it afterwards then, as if it had not been sent.
    fn sends_as_asked(&self) -> bool;

    /// Asks the sidecar that a key belongs to. `None` if that is this one, or if it does not answer: then
    /// [`Self::fetch`] is for it to do.
    fn ask(&mut self, _question: ToSibling<'_>) -> impl Future<Output = Option<Response<Body>>> {
        async { None }
    }
}

/// A request on its way, and how long it may wait.
pub(crate) struct Asking<'a> {
    pub(crate) request: &'a mut Parts,
    pub(crate) apart: Apart<'a>,
    pub(crate) until: Option<Instant>,
}

/// What is left of a request's time, but not more than `most`.
fn no_longer_than(most: Duration, until: Option<Instant>) -> Duration {
    let left = until.map(|until| until.saturating_duration_since(Instant::now()));
    left.map_or(most, |left| most.min(left))
}

/// The key with what else matters for who may wait for whom; `None` if nothing does, as is usual.
pub(super) fn more(lookup: &Lookup, request: &Parts) -> Option<Text> {
    // Whether answers to these are one person's is up to each answer: they wait for their like.
    let credentials = [header::AUTHORIZATION, header::COOKIE].map(|name| request.headers.contains_key(name));
    let newest = lookup.found.as_ref().and_then(|found| found.iter().next());
    let selector = newest.map_or(&b""[..], |newest| newest.selector());
    if credentials == [false; 2] && selector.is_empty() {
        return None;
    }
    let mut more = Text::from_slice(&lookup.key);
    for (has, mark) in credentials.into_iter().zip([b"\nWa", b"\nWc"]) {
        more.extend_from_slice(if has { mark } else { b"" });
    }
    let names: SmallVec<[_; 4]> = vary::of_selector(selector).collect();
    if !names.is_empty() {
        more.extend_from_slice(b"\nV");
        more.extend_from_slice(&vary::selector(&names, &request.headers));
    }
    Some(more)
}

/// An answer with how it came about.
pub(super) type Given = Result<(Response<Body>, Answered), Error>;

impl Cache {
    /// Gives the answer to a request that the look-up did not answer.
    pub(crate) async fn go(
        self: &Rc<Self>,
        plan: Plan,
        asking: &mut Asking<'_>,
        body: Body,
        origin: &mut impl Origin,
    ) -> Given {
        let given = match plan.0 {
            Step::Bypass(why) => self.pass(why, asking, body, origin).await,
            Step::Digest(kind) => self.digest(kind, asking, body, origin).await,
            Step::Fetch(lookup) => self.turn(lookup, asking, body, origin).await,
        };
        if let Ok((_, how)) = &given {
            self.count(asking.request, *how);
        }
        given
    }

    /// Past the cache.
    async fn pass(
        &self,
        why: Bypass,
        asking: &mut Asking<'_>,
        body: Body,
        origin: &mut impl Origin,
    ) -> Given {
        let given = origin.fetch(asking.request, body).await;
        let mut response = given.inspect_err(|_| self.count(asking.request, Answered::Bypass(why)))?;
        self.untag_for(asking.request, response.headers_mut());
        Report::bypassed(why).add_to(response.headers_mut(), self.name(asking.request));
        Ok((response, Answered::Bypass(why)))
    }

    /// Looks up a request that shows only in its body what it asks for.
    async fn digest(
        self: &Rc<Self>,
        kind: Kind,
        asking: &mut Asking<'_>,
        body: Body,
        origin: &mut impl Origin,
    ) -> Given {
        let bytes = match body::read(body, DIGESTED, DIGEST_TIME).await? {
            Read::Whole(bytes) => bytes,
            Read::More(body) => return self.pass(Bypass::Body, asking, body, origin).await,
        };
        let digest = BodyDigest::of([&bytes[..]]);
        let body = Body::full(bytes.clone());
        let class = match kind {
            Kind::Grpc(_) if !key::is_one_message(&bytes) => {
                return self.pass(Bypass::Body, asking, body, origin).await;
            }
            Kind::Grpc(_) => Class::Grpc(&digest),
            _ => Class::Post(&digest),
        };
        match self.find(asking.request, Notable::of(&asking.request.headers), kind, class, asking.apart) {
            // Counted by the look-up; a bypass and a fetch are not.
            Looked::Answer(response, how) => Ok((response, how)),
            Looked::Stale(response, _) => Ok((response, Answered::Stale)),
            Looked::Go(Plan(Step::Fetch(lookup))) => self.turn(lookup, asking, body, origin).await,
            Looked::Go(Plan(Step::Bypass(why))) => self.pass(why, asking, body, origin).await,
            Looked::Go(Plan(Step::Digest(_))) => self.pass(Bypass::Body, asking, body, origin).await,
        }
    }

    /// Finds out whose turn it is to ask the origin, and waits for others where that is worth it.
    async fn turn(
        self: &Rc<Self>,
        mut lookup: Box<Lookup>,
        asking: &mut Asking<'_>,
        body: Body,
        origin: &mut impl Origin,
    ) -> Given {
        let until = asking.until;
        let request = &mut *asking.request;
        let patience = self.patience(&lookup);
        let part = lookup.notable.has(Notable::RANGE)
            && request.headers.contains_key(header::RANGE)
            && !lookup.has_whole();
        if part
            && let Some(most) = patience
            && let Some(given) = self.part_of_coming(&lookup, request, no_longer_than(most, until)).await
        {
            return Ok(given);
        }
        let Some(most) = patience.filter(|_| !part) else {
            let mut filler = (lookup.kind != Kind::Head).then(|| {
                let more = more(&lookup, request);
                self.store.fetch_alone(lookup.key(), lookup.common(&more))
            });
            if let Some(turn) = filler.take() {
                match self.look_farther(&mut lookup, request, turn).await {
                    Ok(answer) => return Ok(answer),
                    Err(turn) => filler = Some(turn),
                }
            }
            return self.ask_origin(&lookup, filler, None, request, body, origin).await;
        };
        for _ in 0..ROUNDS {
            let more = more(&lookup, request);
            let common = lookup.common(&more);
            let turn = self.store.turn(lookup.key(), common, lookup.found.as_ref(), lookup.now);
            let (filler, alone) = match turn {
                Turn::Fetch(filler) => (filler, None),
                Turn::Alone(filler, why) => (filler, Some(why)),
                Turn::Wait(waiter) => match waiter.wait(no_longer_than(most, until)).await {
                    Waited::Kept(entry) => match self.usable(&lookup, request, &entry) {
                        Some(terms) => {
                            let report = Report { collapsed: true, ..Report::forwarded(lookup.why) };
                            let response = self.serve(request, &entry, &terms, seconds_now(), report);
                            return Ok((response, Answered::Miss(lookup.why)));
                        }
                        None => (self.store.fetch_alone(lookup.key(), common), None),
                    },
                    Waited::Streaming(joined) => match self.usable(&lookup, request, joined.head()) {
                        Some(terms) => {
                            let report = Report { collapsed: true, ..Report::forwarded(lookup.why) };
                            let head = joined.head().clone();
                            let body = joined.into_body();
                            let now = seconds_now();
                            let response = self.serve_coming(request, &head, body, &terms, now, report);
                            return Ok((response, Answered::Miss(lookup.why)));
                        }
                        None => (self.store.fetch_alone(lookup.key(), common), None),
                    },
                    Waited::Fetch(filler) => (filler, None),
                    Waited::Alone(filler, why) => (filler, Some(why)),
                },
                Turn::LookAgain => {
                    match self.judge(request, self.anew(&lookup)) {
                        Looked::Answer(response, how) => return Ok((response, how)),
                        Looked::Stale(response, _) => return Ok((response, Answered::Stale)),
                        Looked::Go(Plan(Step::Fetch(newer))) => lookup = newer,
                        Looked::Go(_) => break,
                    }
                    continue;
                }
            };
            if alone == Some(Alone::Failed)
                && let Some(answer) = self.instead_of_failure(&lookup, request, None)
            {
                return Ok(answer);
            }
            let filler = match alone {
                Some(_) => filler,
                None => match self.look_farther(&mut lookup, request, filler).await {
                    Ok(answer) => return Ok(answer),
                    Err(filler) => filler,
                },
            };
            return self.ask_origin(&lookup, Some(filler), alone, request, body, origin).await;
        }
        let more = more(&lookup, request);
        let filler = self.store.fetch_alone(lookup.key(), lookup.common(&more));
        self.ask_origin(&lookup, Some(filler), None, request, body, origin).await
    }

    /// The part that a request asks for of a whole for which the origin is being asked: from what is here of it, or will
    /// be soon. What is far off the origin gives faster than it comes.
    async fn part_of_coming(
        &self,
        lookup: &Lookup,
        request: &Parts,
        most: Duration,
    ) -> Option<(Response<Body>, Answered)> {
        let more = more(lookup, request);
        let waiter = self.store.join(lookup.common(&more), seconds_now())?;
        let report = Report { collapsed: true, ..Report::forwarded(lookup.why) };
        let response = match waiter.wait(most).await {
            Waited::Kept(entry) => {
                let terms = self.usable(lookup, request, &entry)?;
                self.serve(request, &entry, &terms, seconds_now(), report)
            }
            Waited::Streaming(joined) => {
                let head = joined.head().clone();
                let terms = self.usable(lookup, request, &head)?;
                let (length, here) = joined.lengths();
                let fields = head.headers();
                let stored = Validators::of(&fields, head.times().received);
                let near = match range::wanted(&request.method, &request.headers, &stored, length?) {
                    Wanted::Parts(ranges) => {
                        ranges.len() == 1 && ranges[0].start <= here.saturating_add(SOON)
                    }
                    Wanted::Whole | Wanted::Nothing => true,
                };
                if !near {
                    return None;
                }
                self.serve_coming(request, &head, joined.into_body(), &terms, seconds_now(), report)
            }
            // Nobody who asks for a part fetches for others.
            Waited::Fetch(_) | Waited::Alone(..) => return None,
        };
        Some((response, Answered::Miss(lookup.why)))
    }

    /// Has the origin asked for somebody who waits for the answer: that there is none counts too.
    async fn ask_origin(
        self: &Rc<Self>,
        lookup: &Lookup,
        filler: Option<Filler>,
        alone: Option<Alone>,
        request: &mut Parts,
        body: Body,
        origin: &mut impl Origin,
    ) -> Given {
        let given = self.fetch(lookup, filler, alone, request, body, origin).await;
        given.inspect_err(|_| self.count(request, Answered::Miss(lookup.why)))
    }

    /// How long a request may wait for another's fetch; `None` if another's answer would not do.
    fn patience(&self, lookup: &Lookup) -> Option<Duration> {
        let most = self.rules.coalesce?;
        let directives = &lookup.directives;
        let own = directives.no_store || directives.no_cache || directives.max_age == Some(0);
        if own || lookup.kind == Kind::Head { None } else { Some(most) }
    }

    /// The same request, to be looked up again.
    fn anew(&self, lookup: &Lookup) -> Lookup {
        Lookup {
            kind: lookup.kind,
            notable: lookup.notable,
            directives: lookup.directives,
            key: Text::from_slice(&lookup.key),
            hash: lookup.hash,
            found: None,
            stored: None,
            why: lookup.why,
            now: seconds_now(),
        }
    }

    /// Whether another's answer is for this request too, and may be given as it is.
    pub(super) fn usable(&self, lookup: &Lookup, request: &Parts, entry: &Entry) -> Option<Terms> {
        if entry.extent().is_some() || !vary::selects(entry.selector(), &request.headers) {
            return None;
        }
        let now = seconds_now();
        let terms = lookup::terms(entry, &self.rules, now);
        match terms.judge(&lookup.directives, now) {
            Freshness::Fresh { .. } => Some(terms),
            Freshness::Stale { may, .. } => may.max_stale.then_some(terms),
            Freshness::MustRevalidate { .. } => None,
        }
    }
}
