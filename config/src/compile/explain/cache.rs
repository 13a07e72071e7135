//! What is decided about the cache at one of its two places, in words, and what it means for one request.

use super::words::{decision, joined};
use super::{Asked, Decision, SaidBy, time};
use crate::compile::cache::{CacheOn, Side, compile, enabled, speaking};
use crate::compile::findings::Findings;
use crate::document::size::ByteSize;
use crate::snapshot::{CacheKeyRules, CacheOverride, CacheParameters, CachePath, CacheRules, CacheTierRules};
use http::{HeaderMap, Method, header};

/// What policies, the most specific first, say of the cache at a place.
pub(super) fn at(policies: &[CacheOn<'_>], side: Side, asked: Option<&Asked<'_>>) -> Vec<Decision> {
    let mut speaking = speaking(policies.iter(), side);
    let Some(on) = speaking.next() else {
        return vec![decision("cache", "none: no answer is kept", Vec::new())];
    };
    let others = speaking.filter(|other| other.found.document.key() != on.found.document.key());
    let instead = joined(others, |other| format!("{} on {}", other.found.document.key(), target(other)));
    let instead = match instead.is_empty() {
        true => String::new(),
        false => format!("; as a whole, in place of {instead}"),
    };
    let says = |field: &str| vec![SaidBy::field(on.found, field)];
    if !enabled(&on.policy.spec) {
        let value = format!("off for {}{instead}", target(on));
        return vec![decision("cache", value, says("spec.enabled"))];
    }
    let rules = compile(on.policy, on.found, &mut Findings::default());
    let place = match side {
        Side::Outbound => "at each caller's",
        Side::Inbound => "here, for all callers",
    };
    let value = format!("what {} allows a shared cache to keep is kept {place}{instead}", target(on));
    let at = on.policy.spec.target_refs.iter().position(|target| target == on.target).unwrap_or_default();
    let mut all = vec![decision("cache", value, says(&format!("spec.targetRefs[{at}]")))];
    let mut tell = |part: &'static str, field: &str, value: Option<String>| {
        all.extend(value.map(|value| decision(part, value, says(field))));
    };
    let default = CacheRules::default();
    tell("cache key", "spec.key", (rules.key != default.key).then(|| key(&rules.key)));
    tell("cache freshness", "spec.ttl", (rules.ttl != default.ttl).then(|| ttl(&rules)));
    tell("cache stale", "spec.stale", stale(&rules));
    tell("cache limits", "spec.limits", limits(&rules, &default));
    let strips = "with Set-Cookie, kept without it: only the first caller gets the cookie";
    tell("cache cookies", "spec.setCookie", rules.strip_set_cookie.then(|| format!("also answers {strips}")));
    tell(
        "cache POST",
        "spec.post",
        rules.post.then(|| {
            "also answers to POST that say their freshness themselves, by a digest of the body".to_owned()
        }),
    );
    let methods = joined(&*rules.grpc, |method| format!("{} for {}", method.path, time(method.ttl)));
    tell(
        "cache gRPC",
        "spec.grpc",
        (!methods.is_empty()).then(|| format!("{methods}, by a digest of the message")),
    );
    let tags = rules.tags.as_ref().map(|tags| {
        let seen = if tags.strip { ", which callers do not see" } else { "" };
        format!("purged by what {} lists{seen}", tags.header)
    });
    tell("cache tags", "spec.tags", tags);
    let coalescing = rules.coalesce.map_or_else(
        || "none: every request that finds nothing is sent on".to_owned(),
        |wait| format!("one fetch for requests that come at once; others wait for it up to {}", time(wait)),
    );
    tell("cache coalescing", "spec.coalescing", (rules.coalesce != default.coalesce).then_some(coalescing));
    tell("cache tiers", "spec.tiers", (rules.tiers != default.tiers).then(|| tiers(&rules.tiers)));
    all.extend(asked.map(|asked| this_request(&rules, on, asked)));
    all
}

fn target(on: &CacheOn<'_>) -> String {
    on.target.named(on.found.document.metadata().namespace())
}

fn key(key: &CacheKeyRules) -> String {
    let names = |names: &[std::sync::Arc<str>]| joined(names, ToString::to_string);
    let mut parts = vec![match &key.parameters {
        CacheParameters::All => "all of the query".to_owned(),
        CacheParameters::Only(none) if none.is_empty() => "nothing of the query".to_owned(),
        CacheParameters::Only(only) => format!("of the query only {}", names(only)),
        CacheParameters::AllBut(but) => format!("the query without {}", names(but)),
    }];
    if key.any_order {
        parts.push("its parameters in any order".to_owned());
    }
    if !key.headers.is_empty() {
        parts.push(format!("headers {}", joined(&*key.headers, ToString::to_string)));
    }
    if !key.cookies.is_empty() {
        parts.push(format!("cookies {}", names(&key.cookies)));
    }
    if key.identity {
        parts.push("the caller's identity".to_owned());
    }
    format!("host and path, {}", parts.join(", "))
}

fn ttl(rules: &CacheRules) -> String {
    let mut parts = Vec::new();
    parts.extend(rules.ttl.default.map(|ttl| format!("{} where the answer says nothing", time(ttl))));
    parts.extend(rules.ttl.max.map(|ttl| format!("never longer than {}", time(ttl))));
    parts.extend(rules.ttl.overrides.iter().map(over));
    parts.join("; ")
}

/// `5s for 404 of /products/*, whatever the answer says`.
fn over(over: &CacheOverride) -> String {
    let statuses = match over.statuses.is_empty() {
        true => "every status".to_owned(),
        false => joined(&*over.statuses, ToString::to_string),
    };
    let paths = joined(&*over.paths, |path| match path {
        CachePath::Exact(path) => path.to_string(),
        CachePath::Below(path) => format!("{path}/*"),
    });
    let paths = if paths.is_empty() { paths } else { format!(" of {paths}") };
    match (over.ttl.is_zero(), over.force) {
        (true, _) => format!("{statuses}{paths} not kept"),
        (false, false) => format!("{} for {statuses}{paths}, whatever the answer says", time(over.ttl)),
        (false, true) => {
            format!("{} for {statuses}{paths}, also against no-store, no-cache and private", time(over.ttl))
        }
    }
}

fn stale(rules: &CacheRules) -> Option<String> {
    let mut parts = Vec::new();
    if !rules.while_revalidate.is_zero() {
        parts.push(format!("{} longer while it is fetched anew", time(rules.while_revalidate)));
    }
    if !rules.if_error.is_zero() {
        parts.push(format!("{} longer when the origin fails", time(rules.if_error)));
    }
    (!parts.is_empty()).then(|| format!("{}, where the answer does not say so itself", parts.join(", ")))
}

fn limits(rules: &CacheRules, default: &CacheRules) -> Option<String> {
    let mut parts = Vec::new();
    if rules.max_object_bytes != default.max_object_bytes {
        parts.push(format!("bodies up to {}", ByteSize(rules.max_object_bytes)));
    }
    if rules.max_bytes != default.max_bytes {
        parts.push(format!("{} of memory in each sidecar", ByteSize(rules.max_bytes)));
    }
    if rules.max_variants != default.max_variants {
        parts.push(format!("{} variants of one resource", rules.max_variants));
    }
    (!parts.is_empty()).then(|| parts.join(", "))
}

fn tiers(tiers: &CacheTierRules) -> String {
    let mut parts = Vec::new();
    parts.extend(tiers.siblings.map(|wait| format!("other sidecars of the service, for {}", time(wait))));
    parts.extend(tiers.redis.as_ref().map(|redis| {
        let tls = if redis.tls.is_some() { " by TLS" } else { "" };
        let whose = redis.credentials.as_ref().map(|secret| format!(" with the secret {secret}"));
        format!("Redis at {}{tls}{}, for {}", redis.address, whose.unwrap_or_default(), time(redis.timeout))
    }));
    parts.extend(tiers.disk.map(|bytes| format!("{} on disk", ByteSize(bytes))));
    format!("before the origin: {}", parts.join("; "))
}

/// Whether this very request is looked up, and what of it changes what is done.
fn this_request(rules: &CacheRules, on: &CacheOn<'_>, asked: &Asked<'_>) -> Decision {
    let says = |field: &str| vec![SaidBy::field(on.found, field)];
    let headers = asked.headers;
    let passes =
        |why: String| decision("cache, this request", format!("passes by the cache: {why}"), says("spec"));
    let mut notes = Vec::new();
    match *asked.method {
        Method::GET | Method::HEAD => {}
        Method::POST => {
            let kept = rules.grpc.iter().find(|kept| *kept.path == *asked.path);
            match kept {
                Some(kept) => {
                    notes.push(format!("as a gRPC call, whose answer is fresh for {}", time(kept.ttl)))
                }
                None if is_grpc(headers) => {
                    return passes(format!("{} is no gRPC method that the policy lists", asked.path));
                }
                None if rules.post => notes.push("by a digest of its body".to_owned()),
                None => return passes(changes("POST")),
            }
        }
        _ if SAFE.contains(&asked.method.as_str()) => {
            return passes(format!("{} is not looked up", asked.method));
        }
        _ => return passes(changes(asked.method.as_str())),
    }
    for (name, why) in PASSED_BY {
        if headers.contains_key(name) {
            return passes(format!("{name}: {why}"));
        }
    }
    let own = CacheControl::of(headers);
    if own.no_store {
        notes.push("`no-store`: its answer is not kept".to_owned());
    }
    if own.no_cache {
        notes.push("`no-cache`: the origin is asked in any case".to_owned());
    }
    if own.only_if_cached {
        notes.push("`only-if-cached`: 504 if nothing is there".to_owned());
    }
    if headers.contains_key(header::AUTHORIZATION) && !rules.key.headers.contains(&header::AUTHORIZATION) {
        notes.push(
            "`Authorization`: kept only if the answer says public, s-maxage or must-revalidate".to_owned(),
        );
    }
    let mut sources = says("spec");
    // Which override holds hangs on the status of the answer; told is what holds if all goes well.
    if let Some(found) = rules.ttl.over(http::StatusCode::OK, asked.path) {
        let at = rules.ttl.overrides.iter().position(|own| std::ptr::eq(own, found)).unwrap_or_default();
        sources = says(&format!("spec.ttl.overrides[{at}]"));
        notes.push(match found.ttl.is_zero() {
            true => "a 200 is not kept".to_owned(),
            false => format!("a 200 is fresh for {}", time(found.ttl)),
        });
    }
    let mut value = "is looked up".to_owned();
    for note in notes {
        value.push_str("; ");
        value.push_str(&note);
    }
    decision("cache, this request", value, sources)
}

/// Of a method that may change something.
fn changes(method: &str) -> String {
    format!("{method} may change something; when it succeeds, what is kept of its URL is no longer valid")
}

/// Registered methods that change nothing, besides GET and HEAD.
const SAFE: [&str; 7] = ["OPTIONS", "TRACE", "PROPFIND", "REPORT", "SEARCH", "QUERY", "PRI"];

/// Fields of requests that no cache answers.
const PASSED_BY: [(&str, &str); 6] = [
    ("upgrade", "it asks for another protocol"),
    ("if-match", "only the origin can answer it"),
    ("if-unmodified-since", "only the origin can answer it"),
    ("x-http-method-override", "the application may take it for another method"),
    ("x-http-method", "the application may take it for another method"),
    ("x-method-override", "the application may take it for another method"),
];

fn is_grpc(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    kind.is_some_and(|kind| kind.starts_with("application/grpc"))
}

/// What a request's own `Cache-Control` says of the cache, as far as it is told.
#[derive(Default)]
struct CacheControl {
    no_store: bool,
    no_cache: bool,
    only_if_cached: bool,
}

impl CacheControl {
    fn of(headers: &HeaderMap) -> Self {
        let mut own = Self::default();
        let values =
            headers.get_all(header::CACHE_CONTROL).into_iter().filter_map(|value| value.to_str().ok());
        for word in values.flat_map(|value| value.split(',')) {
            match word.trim().to_ascii_lowercase().as_str() {
                "no-store" => own.no_store = true,
                "no-cache" => own.no_cache = true,
                "only-if-cached" => own.only_if_cached = true,
                _ => {}
            }
        }
        own
    }
}
