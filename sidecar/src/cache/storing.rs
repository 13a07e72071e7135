//! May a response be kept, and what of it (RFC 9111 section 3).

pub(crate) use crate::telemetry::metrics::{Bypass, Refusal};

use super::{
    conditional::{Validators, updated},
    date,
    directives::{RequestDirectives, ResponseDirectives, TARGETS},
    entry::{self, Fields},
    freshness::{Arrival, Circumstances, Source, Terms, explicit, is_heuristically_cacheable},
    invalidation, key,
    range::Part,
    vary::{self, Names},
};
use crate::{
    http1::strip_hop_by_hop,
    message::{GRPC_STATUS, WEFT_CACHE_TAGS, WEFT_ERROR},
    notable::Notable,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use smallvec::SmallVec;
use std::{borrow::Cow, time::Duration};
use weft_config::snapshot::CacheRules;

impl From<key::Unkeyable> for Bypass {
    fn from(unkeyable: key::Unkeyable) -> Self {
        match unkeyable {
            key::Unkeyable::TooLong => Self::KeyTooLong,
            key::Unkeyable::NoIdentity => Self::NoIdentity,
            key::Unkeyable::MethodOverride => Self::MethodOverride,
        }
    }
}

/// What kind of request may be looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Get,
    Head,
    /// The policy keeps answers to POST; the body is to be digested.
    Post,
    /// A gRPC method that the policy keeps, with the freshness that it gives; the message is to be digested.
    Grpc(Duration),
}

/// What kind of look-up a request is for, or why it is for none. `path` in normal form.
pub(crate) fn kind(
    method: &Method,
    path: &str,
    headers: &HeaderMap,
    notable: Notable,
    has_body: bool,
    rules: &CacheRules,
) -> Result<Kind, Bypass> {
    let kind = match *method {
        Method::GET => Kind::Get,
        Method::HEAD => Kind::Head,
        Method::POST if crate::message::is_grpc(headers) => {
            let kept = rules.grpc.iter().find(|kept| *kept.path == *path);
            Kind::Grpc(kept.ok_or(Bypass::Method)?.ttl)
        }
        Method::POST if rules.post => Kind::Post,
        _ => return Err(Bypass::Method),
    };
    if has_body && matches!(kind, Kind::Get | Kind::Head) {
        return Err(Bypass::FatGet);
    }
    if notable.has(Notable::HOP) && headers.contains_key(header::UPGRADE) {
        return Err(Bypass::Upgrade);
    }
    if notable.has(Notable::CONDITION) && super::conditional::is_for_origin(headers) {
        return Err(Bypass::Precondition);
    }
    Ok(kind)
}

/// The request that a response answers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked<'a> {
    pub(crate) kind: Kind,
    pub(crate) headers: &'a HeaderMap,
    pub(crate) directives: &'a RequestDirectives,
    pub(crate) scheme: &'a str,
    pub(crate) authority: &'a str,
    /// In normal form.
    pub(crate) path: &'a str,
    pub(crate) query: Option<&'a str>,
}

/// How a response is kept.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Keep {
    pub(crate) terms: Terms,
    pub(crate) source: Source,
    /// The request fields that it depends on.
    pub(crate) vary: Names,
    /// For a 206: which part it is.
    pub(crate) part: Option<Part>,
    /// Fields that it says to leave out.
    withheld: SmallVec<[HeaderName; 2]>,
    /// True for an answer to a POST that is also the answer to a GET of the same URI (RFC 9110 section 9.3.3).
    pub(crate) for_get: bool,
}

/// Statuses whose rules for caches are followed here, for `must-understand`.
fn is_understood(status: StatusCode) -> bool {
    matches!(status.as_u16(), 200..=206 | 300..=303 | 307 | 308 | 400 | 402..=406 | 408..=411 | 413..=415 | 417 | 421 | 422 | 500..=505)
}

/// Statuses that are never kept: interim ones and 304, those about one request's credentials, conditions, ranges, timing
/// or protocol, and those that must not be (RFC 6585: 428, 429, 431, 511).
fn is_never_kept(status: StatusCode) -> bool {
    matches!(
        status.as_u16(),
        ..200 | 304 | 401 | 407 | 408 | 412 | 416 | 417 | 421 | 425 | 426 | 428 | 429 | 431 | 511
    )
}

/// Whether a response may be kept, and how.
pub(crate) fn decide(
    asked: &Asked<'_>,
    status: StatusCode,
    headers: &HeaderMap,
    rules: &CacheRules,
    arrival: Arrival,
) -> Result<Keep, Refusal> {
    if asked.kind == Kind::Head {
        return Err(Refusal::Head);
    }
    if headers.contains_key(WEFT_ERROR) {
        return Err(Refusal::Error);
    }
    if is_never_kept(status) {
        return Err(Refusal::Status);
    }
    if asked.directives.no_store {
        return Err(Refusal::RequestNoStore);
    }
    let directives = ResponseDirectives::of(headers);
    let over = rules.ttl.over(status, asked.path);
    let forced = over.is_some_and(|over| over.force);
    may_be_kept(asked, status, &directives, forced, rules)?;
    let vary = vary::names(headers).map_err(|_| Refusal::Vary)?;
    if headers.contains_key(header::SET_COOKIE)
        && !rules.strip_set_cookie
        && !directives.withheld.contains(&header::SET_COOKIE)
    {
        return Err(Refusal::SetCookie);
    }
    let part = part(asked, status, headers, arrival)?;
    let method = match asked.kind {
        Kind::Grpc(ttl) => {
            if headers.get(GRPC_STATUS).is_some_and(|code| code != "0") {
                return Err(Refusal::GrpcStatus);
            }
            Some(ttl)
        }
        _ => None,
    };
    let says = explicit(headers, &directives, arrival.received).is_some();
    // Section 3: something must say that it can be kept. A POST says its freshness itself (RFC 9110 section 9.3.3).
    let can_be = match asked.kind {
        Kind::Post => says,
        _ => {
            says || directives.public
                || is_heuristically_cacheable(status)
                || method.is_some()
                || over.is_some_and(|over| over.statuses.contains(&status.as_u16()))
        }
    };
    if !can_be {
        return Err(Refusal::NoFreshness);
    }
    let around = Circumstances {
        rules,
        path: asked.path,
        method,
        personal: is_personal(asked.headers, rules),
        arrival,
    };
    let (terms, source) = Terms::new(status, headers, &directives, &around);
    if source == Source::Override && terms.lifetime == 0 {
        return Err(Refusal::Policy);
    }
    // What says nothing and about which nothing can be guessed is not kept, nor what can only be asked about and has
    // nothing to ask by.
    let silent = source == Source::Nobody && !directives.no_cache;
    if silent || !terms.is_useful() {
        return Err(Refusal::NoFreshness);
    }
    if content_length(headers).is_some_and(|length| length > rules.max_object_bytes) {
        return Err(Refusal::TooLarge);
    }
    let for_get = asked.kind == Kind::Post && status == StatusCode::OK && is_of_itself(asked, headers);
    Ok(Keep { terms, source, vary, part, withheld: directives.withheld, for_get })
}

/// What the response says of being kept at all, and by whom.
fn may_be_kept(
    asked: &Asked<'_>,
    status: StatusCode,
    directives: &ResponseDirectives,
    forced: bool,
    rules: &CacheRules,
) -> Result<(), Refusal> {
    // Section 5.2.2.3: who understands the status need not obey the no-store beside it.
    if directives.must_understand && !is_understood(status) {
        return Err(Refusal::MustUnderstand);
    }
    if directives.no_store && !directives.must_understand && !forced {
        return Err(Refusal::NoStore);
    }
    if directives.private && !forced {
        return Err(Refusal::Private);
    }
    // Section 3.5. Where the policy keeps answers apart by the credentials, nobody gets another's.
    let for_all = directives.public || directives.must_revalidate || directives.s_maxage.is_some();
    if asked.headers.contains_key(header::AUTHORIZATION)
        && !for_all
        && !rules.key.headers.contains(&header::AUTHORIZATION)
    {
        return Err(Refusal::Authorization);
    }
    Ok(())
}

/// Whether a request's cookies may have made its answer one person's, so that no freshness is guessed for it, nor given
/// by default. Who says which cookies count has thought of them.
pub(super) fn is_personal(request: &HeaderMap, rules: &CacheRules) -> bool {
    let keyed = rules.key.headers.contains(&header::COOKIE) || !rules.key.cookies.is_empty();
    request.contains_key(header::COOKIE) && !keyed
}

/// Which part a 206 is. Only one that is certainly of one state of the resource is of use (section 3.4).
fn part(
    asked: &Asked<'_>,
    status: StatusCode,
    headers: &HeaderMap,
    arrival: Arrival,
) -> Result<Option<Part>, Refusal> {
    if status != StatusCode::PARTIAL_CONTENT {
        return Ok(None);
    }
    let part = Part::of(headers).ok_or(Refusal::Partial)?;
    let strong = Validators::of(headers, arrival.received).strong().is_some();
    if asked.kind != Kind::Get || !asked.headers.contains_key(header::RANGE) || !strong {
        return Err(Refusal::Partial);
    }
    Ok(Some(part))
}

fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Whether the response says that it is what a GET of the same URI would bring.
fn is_of_itself(asked: &Asked<'_>, headers: &HeaderMap) -> bool {
    let named =
        invalidation::named(&header::CONTENT_LOCATION, asked.scheme, asked.authority, asked.path, headers);
    named.is_some_and(|target| target.path == asked.path && target.query.as_deref() == asked.query)
}

impl Keep {
    /// The fields that are kept (section 3.1), with labels that go on to callers' sidecars.
    pub(crate) fn fields<'a>(
        &'a self,
        response: &'a HeaderMap,
        rules: &'a CacheRules,
        onward: Option<HeaderValue>,
    ) -> Kept<'a> {
        let added = onward.map(|labels| (WEFT_CACHE_TAGS, labels));
        Kept { withheld: &self.withheld, added, ..Kept::of(response, rules, self.terms.received) }
    }
}

/// Fields of a response without those that are about one exchange: these are not kept, nor taken over from a 304. It has
/// a `Date` if the response had none.
pub(crate) struct Kept<'a> {
    response: Cow<'a, HeaderMap>,
    rules: &'a CacheRules,
    date: Option<HeaderValue>,
    withheld: &'a [HeaderName],
    added: Option<(HeaderName, HeaderValue)>,
}

impl<'a> Kept<'a> {
    fn of(response: &'a HeaderMap, rules: &'a CacheRules, received: u32) -> Self {
        let date = (!response.contains_key(header::DATE)).then(|| date::write(received));
        let response = match Notable::of(response).has(Notable::HOP) {
            true => {
                let mut headers = response.clone();
                strip_hop_by_hop(&mut headers, false);
                Cow::Owned(headers)
            }
            false => Cow::Borrowed(response),
        };
        Self { response, rules, date, withheld: &[], added: None }
    }

    /// In their order, without the length of the body.
    pub(crate) fn list(&self) -> Fields<'_> {
        let kept = |name: &HeaderName| !is_of_one_exchange(name, self.rules) && !self.withheld.contains(name);
        let mut list = entry::listed(&self.response, kept);
        list.extend(self.date.as_ref().map(|date| (&header::DATE, date)));
        list.extend(self.added.as_ref().map(|(name, value)| (name, value)));
        list
    }

    /// The same as a map.
    pub(crate) fn map(&self) -> HeaderMap {
        entry::mapped(&self.list())
    }
}

/// Whether a field is about one exchange, or for this sidecar alone.
fn is_of_one_exchange(name: &HeaderName, rules: &CacheRules) -> bool {
    if rules.tags.as_ref().is_some_and(|tags| tags.strip && tags.header == *name) {
        return true;
    }
    let name = name.as_str();
    match name.as_bytes().first() {
        Some(b'a') => name == "age",
        Some(b'p') => name == "proxy-authentication-info",
        // How much is left of a rate limit was so for one caller at one moment.
        Some(b'r') => matches!(name, "ratelimit" | "ratelimit-policy"),
        Some(b's') => name == "set-cookie" && rules.strip_set_cookie,
        // What sidecars tell each other, but for what the application says to them of caching.
        Some(b'w') => name.starts_with("weft-") && name != TARGETS[0].as_str(),
        _ => false,
    }
}

/// What a stored response becomes by a 304 or a HEAD that is for it: the fields to answer with, and how it is kept from
/// now on. With [`Refusal::RequestNoStore`] and [`Refusal::Authorization`] what is stored stays as it is, since the
/// request was only one person's; with any other it is no longer to be kept. `asked` with the kind of the stored answer.
pub(crate) fn refreshed(
    asked: &Asked<'_>,
    status: StatusCode,
    stored: &HeaderMap,
    new: &HeaderMap,
    rules: &CacheRules,
    arrival: Arrival,
) -> (HeaderMap, Result<Keep, Refusal>) {
    let mut headers = updated(stored, &Kept::of(new, rules, arrival.received).map());
    // How old the answer is that was just confirmed is for it alone to say.
    if let Some(age) = new.get(header::AGE) {
        headers.insert(header::AGE, age.clone());
    }
    let keep = decide(asked, status, &headers, rules, arrival);
    headers.remove(header::AGE);
    if let Ok(keep) = &keep {
        for name in &keep.withheld {
            headers.remove(name);
        }
    }
    (headers, keep)
}

/// The labels of a response, as its policy has them: separated by commas or blanks.
pub(crate) fn tags<'a>(response: &'a HeaderMap, rules: &CacheRules) -> SmallVec<[&'a [u8]; 8]> {
    let Some(tags) = &rules.tags else { return SmallVec::new() };
    // A sidecar of the service has taken them away from applications, not from caches.
    let lines = response.get_all(&tags.header).iter().chain(response.get_all(WEFT_CACHE_TAGS));
    let tags = lines.flat_map(|line| line.as_bytes().split(|byte| matches!(byte, b',' | b' ' | b'\t')));
    let mut found = SmallVec::<[&[u8]; 8]>::new();
    for tag in tags.filter(|tag| !tag.is_empty() && tag.len() <= TAG_MAX) {
        if found.len() < TAGS_MAX && !found.contains(&tag) {
            found.push(tag);
        }
    }
    found
}

/// The longest label.
const TAG_MAX: usize = 256;
/// Labels of one response.
const TAGS_MAX: usize = 128;

#[cfg(test)]
mod oracle;
#[cfg(test)]
mod tests;
