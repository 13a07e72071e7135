//! The response cache: what may be kept, for whom and for how long, where it is kept, and one fetch for requests that
//! come at once.

mod body;
mod conditional;
mod date;
mod directives;
mod entry;
mod exchange;
mod fetch;
mod fill;
mod freshness;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;
mod invalidation;
mod keep;
mod key;
mod lookup;
mod purge;
mod queries;
mod range;
mod refresh;
mod rulebook;
mod serve;
pub(crate) mod siblings;
mod status;
mod store;
mod stored;
mod storing;
mod structured;
mod tiers;
mod upkeep;
mod vary;
mod view;

pub(crate) use exchange::{Asking, Origin};
pub(crate) use invalidation::Change;
pub(crate) use purge::announce as purge;
pub(crate) use refresh::Refresh;
pub(crate) use status::{Answered, Forwarded};
pub(crate) use store::Stores;
#[cfg(test)]
pub(crate) use stored::tests::hit;
pub(crate) use stored::{Stored, unfold};
pub(crate) use storing::Bypass;
pub(crate) use tiers::{Secrets, Tiers};
pub(crate) use upkeep::keep_up;
pub(crate) use view::describe;

use crate::{
    body::Body,
    notable::Notable,
    telemetry::metrics::{CacheSeries, Shard},
};
use directives::RequestDirectives;
use entry::Key;
use fill::Turn;
use http::{HeaderValue, Response, StatusCode, header, request::Parts};
use http_body::Body as _;
use key::{Class, Unkeyable};
use lookup::{Lookup, View};
use rulebook::Rulebook;
use siblings::OfSibling;
use status::Report;
use std::{rc::Rc, sync::Arc, time::SystemTime};
use store::Store;
use storing::Kind;
use weft_config::snapshot::CacheRules;

/// The time that responses are judged by: seconds since 1970.
pub(crate) fn seconds_now() -> u32 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u32::try_from(since.as_secs()).unwrap_or(u32::MAX)
}

/// What all requests have in the mesh, whatever carries them between sidecars.
const SCHEME: &str = "http";

/// Who a cache is where a service is served.
pub(crate) const INBOUND: &str = "weft-inbound";

/// The cache as one rule, or one port that our application serves, uses it.
pub(crate) struct Cache {
    rules: Arc<CacheRules>,
    rulebook: Rulebook,
    store: Arc<Store>,
    /// Who we are in `Cache-Status`.
    name: &'static str,
    series: Arc<CacheSeries>,
    shard: Shard,
}

/// What sets a request apart from another like it, besides what it says itself.
#[derive(Clone, Copy)]
pub(crate) struct Apart<'a> {
    /// Where it goes and what is done to it on the way.
    pub(crate) scope: &'a str,
    /// The caller's proven identity, if policy wants it.
    pub(crate) identity: Option<&'a str>,
}

/// What came of a look-up.
pub(crate) enum Looked {
    /// An answer.
    Answer(Response<Body>, Answered),
    /// An answer, and work that is to be done in the background.
    Stale(Response<Body>, Box<Refresh>),
    /// None: on with [`Cache::go`].
    Go(Plan),
}

/// How a request goes on for which nothing is kept that it can have.
pub(crate) struct Plan(Step);

impl Plan {
    /// How it counts if no answer comes of it.
    pub(crate) const fn result(&self) -> &'static str {
        match &self.0 {
            Step::Bypass(why) => Answered::Bypass(*why).result(),
            Step::Digest(_) | Step::Fetch(_) => Answered::Miss(Forwarded::Miss).result(),
        }
    }
}

enum Step {
    /// It passes by the cache.
    Bypass(Bypass),
    /// What it asks for shows in its body.
    Digest(Kind),
    /// The origin is asked, or another's answer awaited.
    Fetch(Box<Lookup>),
}

impl Cache {
    /// `name` is that in `Cache-Status`.
    pub(crate) fn new(
        stores: &Stores,
        rules: &Arc<CacheRules>,
        name: &'static str,
        series: Arc<CacheSeries>,
        shard: Shard,
    ) -> Rc<Self> {
        let store = stores.of(rules, seconds_now());
        Rc::new(Self { rulebook: Rulebook::of(rules), rules: rules.clone(), store, name, series, shard })
    }

    /// Whether another keeps in the same memory by the same keys.
    pub(crate) fn keeps_as(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.store, &other.store) && self.rules.key == other.rules.key
    }

    /// Whether answers are kept apart by who calls.
    pub(crate) fn wants_identity(&self) -> bool {
        self.rules.key.identity
    }

    /// Whether it is where a service is served.
    fn is_inbound(&self) -> bool {
        self.name == INBOUND
    }

    /// Whether answers have labels that are not for applications.
    pub(crate) fn hides_labels(&self) -> bool {
        self.rules.tags.as_ref().is_some_and(|tags| tags.strip)
    }

    /// Looks up what is kept for a request. A hit is answered right here.
    pub(crate) fn look_up(
        self: &Rc<Self>,
        request: &Parts,
        notable: Notable,
        body: &Body,
        apart: Apart<'_>,
    ) -> Looked {
        let kind = match self.kind(request, notable, body) {
            Ok(kind) => kind,
            Err(why) => return Looked::Go(Plan(Step::Bypass(why))),
        };
        if matches!(kind, Kind::Post | Kind::Grpc(_)) {
            return Looked::Go(Plan(Step::Digest(kind)));
        }
        let looked = self.find(request, notable, kind, Class::Get, apart);
        match &looked {
            Looked::Answer(_, how) => self.count(request, *how),
            Looked::Stale(..) => self.count(request, Answered::Stale),
            Looked::Go(_) => {}
        }
        looked
    }

    /// Whether policy takes a request that is none by its method for a question.
    pub(crate) fn is_question(&self, request: &Parts, body: &Body) -> bool {
        matches!(self.kind(request, Notable::of(&request.headers), body), Ok(Kind::Post | Kind::Grpc(_)))
    }

    fn kind(&self, request: &Parts, notable: Notable, body: &Body) -> Result<Kind, Bypass> {
        let Parts { method, uri, headers, .. } = request;
        storing::kind(method, uri.path(), headers, notable, !body.is_end_stream(), &self.rules)
    }

    fn find(
        self: &Rc<Self>,
        request: &Parts,
        notable: Notable,
        kind: Kind,
        class: Class<'_>,
        apart: Apart<'_>,
    ) -> Looked {
        let lookup = match self.lookup(request, notable, kind, class, apart) {
            Ok(lookup) => lookup,
            Err(why) => return Looked::Go(Plan(Step::Bypass(why.into()))),
        };
        self.judge(request, lookup)
    }

    fn lookup(
        &self,
        request: &Parts,
        notable: Notable,
        kind: Kind,
        class: Class<'_>,
        apart: Apart<'_>,
    ) -> Result<Lookup, Unkeyable> {
        let authority = crate::message::authority(request).unwrap_or_default();
        let path = request.uri.path();
        let no_vary = self.store.queries.of(|| key::resource(SCHEME, authority, path));
        let parts = key::Parts {
            class,
            scope: apart.scope,
            scheme: SCHEME,
            authority,
            path,
            query: request.uri.query(),
            headers: &request.headers,
            notable,
            identity: apart.identity,
        };
        let key = key::text(&parts, &self.rules.key, no_vary.as_deref())?;
        Ok(Lookup {
            kind,
            notable,
            directives: match notable.has(Notable::CACHE) {
                true => RequestDirectives::of(&request.headers),
                false => RequestDirectives::default(),
            },
            hash: Key::new(&key).hash(),
            key,
            found: None,
            stored: None,
            why: Forwarded::UriMiss,
            now: seconds_now(),
        })
    }

    /// What is kept under a key, and what a request can have of it.
    fn judge(self: &Rc<Self>, request: &Parts, mut lookup: Lookup) -> Looked {
        let now = lookup.now;
        lookup.found = self.store.look_up(lookup.key(), now);
        if let Some(found) = lookup.found.as_ref().filter(|found| self.is_by_others(found)) {
            self.rejudge(&lookup, request, found);
            lookup.found = self.store.look_up(lookup.key(), now);
        }
        let view = lookup::view(
            lookup.found.as_ref(),
            &request.method,
            &request.headers,
            &lookup.directives,
            &self.rules,
            now,
        );
        match view {
            View::Fresh(entry, terms) => {
                let whole = !lookup.notable.has(Notable::CONDITION | Notable::RANGE)
                    && matches!(lookup.kind, Kind::Get | Kind::Head)
                    && !entry.has_trailers()
                    && !OfSibling::is(request);
                let response = match whole {
                    true => self.serve_whole(entry, &terms, now),
                    false => self.serve(request, &entry, &terms, now, Report::hit(0)),
                };
                Looked::Answer(response, Answered::Hit)
            }
            View::Part(entry, terms, ranges) => {
                Looked::Answer(self.serve_part(request, &entry, &terms, &ranges, now), Answered::Hit)
            }
            // A sibling has what is stale itself, or has nobody else to ask for what is new.
            View::Stale { entry, terms, refresh: true } if OfSibling::is(request) => {
                (lookup.why, lookup.stored) =
                    (Forwarded::Stale, Some(lookup::Stored { entry, terms, if_error: true }));
                Looked::Go(Plan(Step::Fetch(Box::new(lookup))))
            }
            View::Stale { entry, terms, refresh } => {
                let response = self.serve(request, &entry, &terms, now, Report::hit(0));
                if !refresh || lookup.kind != Kind::Get {
                    return Looked::Answer(response, Answered::Stale);
                }
                lookup.why = Forwarded::Stale;
                lookup.stored = Some(lookup::Stored { entry, terms, if_error: true });
                let more = exchange::more(&lookup, request);
                match self.store.turn(lookup.key(), lookup.common(&more), lookup.found.as_ref(), now) {
                    Turn::Fetch(filler) => {
                        Looked::Stale(response, Box::new(Refresh::new(self, request, lookup, filler)))
                    }
                    // Somebody is at it, or was just now.
                    Turn::Wait(_) | Turn::Alone(..) | Turn::LookAgain => {
                        Looked::Answer(response, Answered::Stale)
                    }
                }
            }
            View::Nothing(why, _) if lookup.directives.only_if_cached => {
                Looked::Answer(self.only_if_cached(request, why), Answered::Miss(why))
            }
            View::Nothing(why, stored) => {
                (lookup.why, lookup.stored) = (why, stored);
                Looked::Go(Plan(Step::Fetch(Box::new(lookup))))
            }
        }
    }

    /// Counts an answer. What siblings ask is counted where it is asked.
    fn count(&self, request: &Parts, how: Answered) {
        if !OfSibling::is(request) {
            self.shard.cache_answered(&self.series, how);
        }
    }

    /// Who we are to whoever made a request: a cache behind a cache has another name.
    fn name(&self, request: &Parts) -> &'static str {
        match self.name {
            name if !OfSibling::is(request) => name,
            "weft" => "weft-sibling",
            _ => "weft-inbound-sibling",
        }
    }

    /// A request that takes only what is kept (RFC 9111 section 5.2.1.7).
    fn only_if_cached(&self, request: &Parts, why: Forwarded) -> Response<Body> {
        let mut response = Response::new(Body::full(
            "weft: nothing is kept that answers this request, and it says only-if-cached\n",
        ));
        *response.status_mut() = StatusCode::GATEWAY_TIMEOUT;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        Report { detail: Some("only-if-cached"), ..Report::forwarded(why) }
            .add_to(headers, self.name(request));
        response
    }
}

#[cfg(test)]
mod tests;
