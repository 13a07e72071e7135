//! CachePolicies compiled, and which of them holds for a call: the most specific one as a whole, never a mixture.

use super::attached::Index;
use super::filters::header_name;
use super::findings::Findings;
use super::traffic::or;
use crate::document::cache_policy::SetCookie;
use crate::document::cache_policy::{CachePlace, CachePolicySpec, CacheTiers, CacheTtl};
use crate::document::duration::PolicyDuration;
use crate::document::target::TargetRef;
use crate::document::{CachePolicy, Document, Located};
use crate::identity::ServiceName;
use crate::matching::normalize_path;
use crate::snapshot::{
    CacheKeyRules, CacheOverride, CacheParameters, CachePath, CacheRedis, CacheRedisTls, CacheRules,
    CacheTagRules, CacheTierRules, CacheTtlRules, CachedMethod,
};
use http::HeaderName;
use std::{sync::Arc, time::Duration};

/// One CachePolicy on one thing.
#[derive(Clone, Copy)]
pub(super) struct CacheOn<'d> {
    pub(super) found: &'d Located,
    pub(super) policy: &'d CachePolicy,
    pub(super) target: &'d TargetRef,
}

/// Which of the two sides of a call.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    /// At the caller's.
    Outbound,
    /// Where the service is served.
    Inbound,
}

/// What holds for the calls that take a rule.
pub(super) fn for_rule(
    index: &Index<'_>,
    route: &Document,
    rule: Option<&str>,
    service: &[CacheOn<'_>],
    findings: &mut Findings,
) -> Option<Arc<CacheRules>> {
    let on_rule = index.caches_on_rule(route, rule);
    holding(on_rule.iter().chain(service), Side::Outbound, findings)
}

/// What holds for the calls to a port, at one of the two sides.
pub(super) fn for_port(
    index: &Index<'_>,
    service: &ServiceName,
    port: u16,
    side: Side,
    findings: &mut Findings,
) -> Option<Arc<CacheRules>> {
    holding(index.caches_on_port(service, port).iter(), side, findings)
}

fn holding<'a, 'd: 'a>(
    policies: impl Iterator<Item = &'a CacheOn<'d>>,
    side: Side,
    findings: &mut Findings,
) -> Option<Arc<CacheRules>> {
    let on = speaking(policies, side).next()?;
    enabled(&on.policy.spec).then(|| Arc::new(compile(on.policy, on.found, findings)))
}

/// The policies that speak of a side, in their order; one that turns the cache off speaks of both. The first holds.
pub(super) fn speaking<'a, 'd: 'a>(
    policies: impl Iterator<Item = &'a CacheOn<'d>>,
    side: Side,
) -> impl Iterator<Item = &'a CacheOn<'d>> {
    policies.filter(move |on| {
        let here = match on.policy.spec.place {
            CachePlace::Both => true,
            CachePlace::Outbound => side == Side::Outbound,
            CachePlace::Inbound => side == Side::Inbound,
        };
        here || !enabled(&on.policy.spec)
    })
}

pub(super) fn enabled(spec: &CachePolicySpec) -> bool {
    spec.enabled.unwrap_or(true)
}

/// What one policy says.
pub(super) fn compile(policy: &CachePolicy, found: &Located, findings: &mut Findings) -> CacheRules {
    let (spec, default) = (&policy.spec, CacheRules::default());
    let tags = spec.tags.as_ref().and_then(|tags| {
        let header = header_name(&tags.header, found, "spec.tags.header", findings)?;
        Some(CacheTagRules { header, strip: tags.strip.unwrap_or(true) })
    });
    let grpc = spec.grpc.iter().map(|method| CachedMethod {
        path: format!("/{}/{}", method.service, method.method).into(),
        ttl: method.ttl.get(),
    });
    let coalesces = spec.coalescing.enabled.unwrap_or(true);
    let max_bytes = spec.limits.max_bytes.map_or(default.max_bytes, |size| size.0);
    CacheRules {
        id: format!("{}/{}", policy.metadata.namespace(), policy.metadata.name).into(),
        key: key(spec, found, findings),
        ttl: ttl(&spec.ttl, found, findings),
        while_revalidate: or(spec.stale.while_revalidate, default.while_revalidate),
        if_error: or(spec.stale.if_error, default.if_error),
        // Where only the smaller of the two limits is written, the other's default must not contradict it.
        max_object_bytes: spec
            .limits
            .max_object_bytes
            .map_or(default.max_object_bytes, |size| size.0)
            .min(max_bytes),
        max_bytes,
        max_variants: spec
            .limits
            .max_variants
            .map_or(default.max_variants, |max| usize::try_from(max).unwrap_or(usize::MAX)),
        strip_set_cookie: spec.set_cookie == SetCookie::Strip,
        post: spec.post.unwrap_or(false),
        grpc: grpc.collect(),
        tags,
        coalesce: coalesces.then(|| or(spec.coalescing.max_wait, Duration::from_secs(5))),
        tiers: tiers(&spec.tiers, policy.metadata.namespace()),
    }
}

fn key(spec: &CachePolicySpec, found: &Located, findings: &mut Findings) -> CacheKeyRules {
    let names = |names: &Vec<String>| names.iter().map(|name| Arc::from(name.as_str())).collect();
    let query = &spec.key.query;
    let parameters = match (&query.include, &query.exclude) {
        (Some(only), _) => CacheParameters::Only(names(only)),
        (None, Some(but)) => CacheParameters::AllBut(names(but)),
        (None, None) => CacheParameters::All,
    };
    let headers = spec.key.headers.iter().enumerate();
    let mut headers: Vec<HeaderName> = headers
        .filter_map(|(at, name)| header_name(name, found, &format!("spec.key.headers[{at}]"), findings))
        .collect();
    // In one order, so that a policy written in another order finds what was kept under this one.
    headers.sort_by(|a, b| a.as_str().cmp(b.as_str()));
    let mut cookies = spec.key.cookies.clone();
    cookies.sort_unstable();
    CacheKeyRules {
        parameters,
        any_order: query.ignore_order.unwrap_or(false),
        headers: headers.into(),
        cookies: names(&cookies),
        identity: spec.key.identity.unwrap_or(false),
    }
}

fn ttl(written: &CacheTtl, found: &Located, findings: &mut Findings) -> CacheTtlRules {
    let overrides = written.overrides.iter().enumerate().map(|(at, rule)| {
        let mut statuses = rule.statuses.clone();
        statuses.sort_unstable();
        statuses.dedup();
        let paths = rule.paths.iter().enumerate().filter_map(|(n, text)| {
            let field = format!("spec.ttl.overrides[{at}].paths[{n}]");
            path(text, found, &field, findings)
        });
        let paths: Arc<[CachePath]> = paths.collect();
        CacheOverride {
            statuses: statuses.into(),
            paths,
            ttl: rule.ttl.get(),
            force: rule.force.unwrap_or(false),
        }
    });
    CacheTtlRules {
        default: written.default.map(PolicyDuration::get),
        max: written.max.map(PolicyDuration::get),
        overrides: overrides.collect(),
    }
}

fn path(text: &str, found: &Located, field: &str, findings: &mut Findings) -> Option<CachePath> {
    let below = text.strip_suffix("/*");
    let normal = match below {
        Some("") => return Some(CachePath::Below("".into())),
        Some(prefix) => normalize_path(prefix),
        None => normalize_path(text),
    };
    match normal {
        Ok(normal) if below.is_some() => Some(CachePath::Below(normal.trim_end_matches('/').into())),
        Ok(normal) => Some(CachePath::Exact(normal.into())),
        Err(error) => {
            findings.error(
                found,
                field,
                format!("`{text}` is not a path that can be matched: {error}"),
                "write an absolute path, with `/*` at its end for everything below it",
            );
            None
        }
    }
}

fn tiers(written: &CacheTiers, namespace: &str) -> CacheTierRules {
    // Secrets are those of the policy's own namespace, whoever works by it: nobody can name those of others.
    let secret = |name: &String| Arc::from(format!("{namespace}/{name}"));
    CacheTierRules {
        siblings: written.siblings.as_ref().map(|tier| or(tier.timeout, Duration::from_millis(100))),
        redis: written.redis.as_ref().map(|tier| CacheRedis {
            address: tier.address.as_str().into(),
            prefix: tier.prefix.as_deref().unwrap_or("weft:").into(),
            timeout: or(tier.timeout, Duration::from_millis(20)),
            credentials: tier.credentials.as_ref().map(|written| secret(&written.secret)),
            tls: tier.tls.as_ref().map(|tls| CacheRedisTls {
                secret: tls.secret.as_ref().map(secret),
                server_name: tls.server_name.as_deref().unwrap_or_else(|| host(&tier.address)).into(),
            }),
        }),
        disk: written.disk.as_ref().map(|tier| tier.max_bytes.0),
    }
}

/// The host of `host:port`, an IP address without its brackets.
fn host(address: &str) -> &str {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    host.trim_start_matches('[').trim_end_matches(']')
}
