//! Purges of the response cache and what it holds, over all sidecars.

use super::{Mesh, blocking, lock, unix};
use crate::{
    caching::{
        CacheStats, PolicyStats, PurgeReport, PurgeRequest, PurgeState, ReasonStats, ServiceStats,
        SidecarStats,
    },
    publisher::StreamId,
    purges::{self, Surveyed},
    registry::Instance,
    told,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};
use tokio::{
    sync::watch,
    time::{sleep_until, timeout},
};
use weft_config::{
    document::Document,
    identity::ServiceName,
    policy::Policy,
    purge::{Kind, Purge, What},
    wire::{self, to_sidecar::Message},
};

/// How long sidecars get for a report.
const REPORT_WITHIN: Duration = Duration::from_secs(2);
/// Rows that are read of one sidecar's report.
const ROWS: usize = 4096;
/// The longest name in a report.
const NAME_CHARS: usize = 600;

/// Why a purge was not begun.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum NotBegun {
    /// It is none, or nothing that there is.
    Invalid(String),
    /// Too many are under way.
    TooMany,
    /// It could not be written down, so that it could be lost.
    NotWritten(String),
}

impl Mesh {
    /// What a request asks to be purged, with the names that are meant.
    pub(crate) async fn understand(self: &Arc<Self>, request: &PurgeRequest) -> Result<Purge, NotBegun> {
        let (mesh, request) = (self.clone(), request.clone());
        let read = blocking(move || mesh.with_policy(|policy| read(&request, policy))).await;
        read.unwrap_or_else(|| Err("the control plane is stopping".to_owned())).map_err(NotBegun::Invalid)
    }

    /// Purges in all sidecars, and waits until all have carried it out, but no longer than `wait` or until the control
    /// plane stops. Goes on to its end even if nobody waits for it any more.
    pub(crate) async fn purge(
        self: &Arc<Self>,
        purge: Purge,
        wait: Duration,
        mut stop: watch::Receiver<bool>,
    ) -> Result<PurgeReport, NotBegun> {
        let begun = Instant::now();
        let until = tokio::time::Instant::now() + wait;
        // One after the other, so that what is written down is what is sent, in its order.
        let turn = self.purging.lock().await;
        let now = unix(SystemTime::now());
        let prepared = lock(&self.purges).prepare(&purge, now);
        let (log, number) = prepared.ok_or(NotBegun::TooMany)?;
        let (mesh, copy) = (self.clone(), log.clone());
        let written = blocking(move || mesh.remembered.keep_purges(&copy)).await;
        match written {
            Some(Ok(())) => {}
            Some(Err(error)) => {
                tracing::error!("a purge is not begun because it cannot be written down: {error:#}");
                return Err(NotBegun::NotWritten(format!("{error:#}")));
            }
            None => return Err(NotBegun::NotWritten("the control plane is stopping".to_owned())),
        }
        let changed = lock(&self.purges).begin(log, number);
        drop(turn);
        let mut stopping = false;
        while !stopping && !lock(&self.purges).is_through(number) {
            tokio::select! {
                () = changed.notified() => {}
                () = sleep_until(until) => break,
                () = told(&mut stop) => stopping = true,
            }
        }
        let expected: Vec<Instance> = self.serving().into_iter().map(|(instance, _)| instance).collect();
        let (sidecars, away) = {
            let mut purges = lock(&self.purges);
            (purges.finish(number), purges.away(&expected, Instant::now()))
        };
        let acknowledged = sidecars.iter().filter(|s| s.state == PurgeState::Acknowledged).count();
        let mut report = PurgeReport {
            number,
            purged: purge.to_string(),
            soft: purge.soft,
            complete: acknowledged == sidecars.len() && !sidecars.is_empty(),
            answers: sidecars.iter().map(|sidecar| sidecar.answers).sum(),
            asked: sidecars.len(),
            acknowledged,
            sidecars,
            away,
            milliseconds: begun.elapsed().as_millis().try_into().unwrap_or(u64::MAX),
            problem: String::new(),
        };
        report.problem = problem(&report, stopping, wait);
        self.note(&report);
        Ok(report)
    }

    fn note(&self, report: &PurgeReport) {
        let result = if report.complete { "complete" } else { "incomplete" };
        self.metrics.cache_purges.with_label_values(&[result]).inc();
        self.metrics.cache_purged_answers.inc_by(report.answers);
        self.metrics.cache_purge_seconds.observe(report.milliseconds as f64 / 1000.0);
        let (asked, acknowledged) = (report.asked, report.acknowledged);
        if report.complete {
            tracing::info!(
                what = %report.purged, soft = report.soft, answers = report.answers, sidecars = asked, "purged"
            );
        } else {
            tracing::warn!(
                what = %report.purged, soft = report.soft, asked, acknowledged,
                "a purge was not carried out by all sidecars: {}", report.problem
            );
        }
    }

    /// List and number of the last purge.
    pub(crate) fn last_purge(&self) -> (String, u64) {
        lock(&self.purges).last()
    }

    /// What a stream is to be told of purges and surveys.
    pub(crate) fn next_order(&self, id: StreamId) -> Option<Message> {
        let message = lock(&self.purges).next(id)?;
        if purges::is_purge(&message) {
            self.metrics.cache_purges_sent.inc();
        }
        Some(message)
    }

    /// A sidecar has answered a purge.
    pub(crate) fn purged(&self, id: StreamId, instance: &Instance, purged: &wire::Purged) {
        if !purged.failed.is_empty() {
            tracing::warn!(
                workload = %instance.workload, namespace = %instance.namespace, number = purged.number,
                "a sidecar did not carry out a purge: {:.300}", purged.failed.escape_debug().to_string()
            );
        }
        lock(&self.purges).answered(id, purged);
    }

    /// A sidecar says what its cache holds.
    pub(crate) fn cache_reported(&self, id: StreamId, report: wire::CacheReport) {
        lock(&self.purges).reported(id, report);
    }

    /// What the caches of all sidecars hold and did; `None` if too many ask.
    pub(crate) async fn cache_stats(&self) -> Option<CacheStats> {
        let (number, changed) = lock(&self.purges).survey()?;
        // If nobody waits for this any more, the survey ends all the same.
        let _ends = Ends(self, number);
        let waiting = async {
            while !lock(&self.purges).is_surveyed(number) {
                changed.notified().await;
            }
        };
        let _ = timeout(REPORT_WITHIN, waiting).await;
        Some(sum(lock(&self.purges).end_survey(number)))
    }
}

struct Ends<'m>(&'m Mesh, u64);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        lock(&self.0.purges).end_survey(self.1);
    }
}

/// Why a purge is not complete, in one line.
fn problem(report: &PurgeReport, stopping: bool, wait: Duration) -> String {
    if report.complete {
        return String::new();
    }
    if report.asked == 0 {
        return "no sidecar is connected; those that come within the hour purge it before anything else"
            .to_owned();
    }
    let of = |state| report.sidecars.iter().filter(|sidecar| sidecar.state == state).count();
    let mut parts = Vec::new();
    if stopping {
        parts.push(
            "the control plane is stopping; sidecars that have not answered get the purge when it is back"
                .to_owned(),
        );
    }
    for (count, what) in [
        (of(PurgeState::Failed), "failed".to_owned()),
        (of(PurgeState::Lost), "lost their connection, and get it when they come back".to_owned()),
        (of(PurgeState::Late), format!("did not answer within {wait:?}")),
    ] {
        if count > 0 {
            parts.push(format!("{count} of {} {what}", report.asked));
        }
    }
    parts.join("; ")
}

/// Reads a purge and finds what its names mean.
fn read(request: &PurgeRequest, policy: &Policy) -> Result<Purge, String> {
    let texts = [
        (Kind::All, request.all.then_some("")),
        (Kind::Url, request.url.as_deref()),
        (Kind::Prefix, request.prefix.as_deref()),
        (Kind::Tag, request.tag.as_deref()),
        (Kind::Policy, request.policy.as_deref()),
    ];
    let mut wanted = texts.into_iter().filter_map(|(kind, text)| Some((kind, text?)));
    let (Some((kind, text)), None) = (wanted.next(), wanted.next()) else {
        return Err("say what is to be purged by one of url, prefix, tag, policy and all".to_owned());
    };
    let service = match request.service.as_deref().map(str::trim) {
        None | Some("") => String::new(),
        Some(name) if name.contains(['/', '.']) => name.to_owned(),
        Some(name) => the_one(name, policy)?.to_string(),
    };
    let read = Purge::read(kind, text, &service, request.soft, "");
    let mut purge = read.map_err(|why| why.to_string())?;
    if let Some(service) = &purge.service {
        exists(service, policy)?;
    }
    if let What::Policy(name) = &purge.what {
        has_policy(name, policy)?;
    }
    if let Some(url) = purge.url_mut() {
        if let Some(bare) = url.bare_host() {
            let service = the_one(bare, policy)?;
            url.set_service(service);
        }
        if let Some(service) = &url.service {
            exists(service, policy)?;
            let ports = ports(service, policy);
            if !ports.is_empty() && !ports.contains(&url.port) {
                let list: Vec<_> = ports.iter().map(u16::to_string).collect();
                return Err(format!(
                    "{service} has no port {}; it has {}: write http://{}:{}{}",
                    url.port,
                    list.join(", "),
                    url.host,
                    list[0],
                    url.path
                ));
            }
        }
    }
    Ok(purge)
}

/// The only service of this name in any namespace.
fn the_one(name: &str, policy: &Policy) -> Result<ServiceName, String> {
    let mut named: Vec<_> = policy.services().filter(|service| *service.name == *name).collect();
    named.sort();
    match named.as_slice() {
        [] => Err(format!("no service of the mesh is called `{}`", name.escape_debug())),
        [service] => Ok(service.clone()),
        several => {
            let list: Vec<_> = several.iter().map(|s| format!("{}.{}", s.name, s.namespace)).collect();
            Err(format!("several services are called `{name}`; say which: {}", list.join(", ")))
        }
    }
}

fn exists(service: &ServiceName, policy: &Policy) -> Result<(), String> {
    match policy.services().any(|known| known == *service) {
        true => Ok(()),
        false => Err(format!("there is no service {service} in the mesh")),
    }
}

fn has_policy(name: &str, policy: &Policy) -> Result<(), String> {
    let mut known = policy.documents().filter_map(|located| match &located.document {
        Document::CachePolicy(cache) => {
            Some(format!("{}/{}", cache.metadata.namespace(), cache.metadata.name))
        }
        _ => None,
    });
    match known.any(|known| known == name) {
        true => Ok(()),
        false => Err(format!("there is no CachePolicy {name}")),
    }
}

/// The ports that a service is called on, as documents say it.
fn ports(service: &ServiceName, policy: &Policy) -> BTreeSet<u16> {
    let mut ports = BTreeSet::new();
    for located in policy.documents() {
        match &located.document {
            Document::Service(found)
                if *found.metadata.name == *service.name
                    && *found.metadata.namespace() == *service.namespace =>
            {
                // A Service document says all ports.
                return found.spec.ports.iter().map(|port| port.port).collect();
            }
            Document::Workload(found)
                if found.spec.service.as_deref() == Some(&*service.name)
                    && *found.metadata.namespace() == *service.namespace =>
            {
                ports.extend(found.spec.ports.iter().map(|port| port.port));
            }
            _ => {}
        }
    }
    ports
}

/// Adds up what sidecars say.
fn sum(found: Surveyed) -> CacheStats {
    let name = |text: &str| text.chars().filter(|c| !c.is_control()).take(NAME_CHARS).collect::<String>();
    let answered: BTreeSet<_> = found.reports.iter().map(|(instance, _)| instance.clone()).collect();
    let silent: BTreeSet<_> = found.asked.iter().filter(|instance| !answered.contains(*instance)).collect();
    let mut policies = BTreeMap::<String, PolicyStats>::new();
    let mut services =
        BTreeMap::<(String, String, String), (ServiceStats, BTreeMap<(String, String), u64>)>::new();
    let mut sidecars = Vec::new();
    for (instance, report) in &found.reports {
        let mut own = SidecarStats {
            namespace: instance.namespace.to_string(),
            workload: instance.workload.to_string(),
            instance: instance.id.to_string(),
            ..SidecarStats::default()
        };
        for store in report.stores.iter().take(ROWS) {
            let policy = name(&store.policy);
            let all = policies
                .entry(policy.clone())
                .or_insert_with(|| PolicyStats { policy, ..PolicyStats::default() });
            all.sidecars += 1;
            for (sum, more) in [
                (&mut all.entries, store.entries),
                (&mut all.bytes, store.bytes),
                (&mut all.limit, store.limit),
                (&mut all.stored, store.stored),
                (&mut all.evicted, store.evicted),
                (&mut all.expired, store.expired),
                (&mut all.purged, store.purged),
                (&mut all.refused, store.refused),
                (&mut all.coalesced, store.coalesced),
                (&mut own.entries, store.entries),
                (&mut own.bytes, store.bytes),
                (&mut own.limit, store.limit),
            ] {
                *sum = sum.saturating_add(more);
            }
        }
        for row in report.uses.iter().take(ROWS) {
            let key = (name(&row.service), name(&row.route), name(&row.direction));
            let (service, reasons) = services.entry(key).or_default();
            for count in row.counts.iter().take(ROWS) {
                let part = match count.result.as_str() {
                    "hit" => &mut service.hits,
                    "stale" => &mut service.stale,
                    "revalidated" => &mut service.revalidated,
                    "miss" => &mut service.misses,
                    "bypass" => &mut service.bypassed,
                    // From a newer sidecar.
                    _ => continue,
                };
                *part = part.saturating_add(count.requests);
                if !count.reason.is_empty() {
                    let sum = reasons.entry((name(&count.result), name(&count.reason))).or_default();
                    *sum = sum.saturating_add(count.requests);
                }
            }
        }
        if !report.stores.is_empty() {
            sidecars.push(own);
        }
    }
    sidecars.sort_by(|a, b| {
        (&a.namespace, &a.workload, &a.instance).cmp(&(&b.namespace, &b.workload, &b.instance))
    });
    let service = |((service, route, direction), (stats, reasons)): (_, (ServiceStats, BTreeMap<_, u64>))| {
        let mut reasons: Vec<_> = reasons
            .into_iter()
            .map(|((result, reason), requests)| ReasonStats { result, reason, requests })
            .collect();
        reasons.sort_by_key(|reason: &ReasonStats| std::cmp::Reverse(reason.requests));
        let given = stats.hits.saturating_add(stats.stale);
        let looked_up = given.saturating_add(stats.revalidated).saturating_add(stats.misses);
        ServiceStats {
            service,
            route,
            direction,
            requests: looked_up.saturating_add(stats.bypassed),
            hit_ratio: (looked_up > 0).then(|| given as f64 / looked_up as f64),
            reasons,
            ..stats
        }
    };
    CacheStats {
        asked: found.asked.len(),
        silent: silent.into_iter().map(|i| format!("{}/{}", i.namespace, i.workload)).collect(),
        policies: policies.into_values().collect(),
        services: services.into_iter().map(service).collect(),
        sidecars,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVICES: &str = "
apiVersion: weft.mesh/v1alpha1
kind: Workload
metadata: { name: product-1, namespace: shop }
spec: { service: product, ports: [{ port: 8080 }] }
---
apiVersion: weft.mesh/v1alpha1
kind: Workload
metadata: { name: cart-1, namespace: shop }
spec: { service: cart, ports: [{ port: 80 }] }
---
apiVersion: weft.mesh/v1alpha1
kind: Workload
metadata: { name: cart-1, namespace: web }
spec: { service: cart, ports: [{ port: 80 }] }
---
apiVersion: weft.mesh/v1alpha1
kind: CachePolicy
metadata: { name: pages, namespace: shop }
spec: { targetRefs: [{ kind: Service, name: product }] }
";

    fn asked(change: impl FnOnce(&mut PurgeRequest)) -> Result<String, String> {
        let mut policy = Policy::new("weft.local");
        policy.replace_file("a.yaml", SERVICES);
        let mut request = PurgeRequest::default();
        change(&mut request);
        read(&request, &policy).map(|purge| purge.to_string())
    }

    #[test]
    fn a_name_means_the_only_service_that_has_it() {
        let url = |text: &str| asked(|request| request.url = Some(text.to_owned()));
        assert_eq!(url("product:8080/a?b"), Ok("url http://product.shop:8080/a?b".to_owned()));
        assert_eq!(url("http://cart.web/"), Ok("url http://cart.web/".to_owned()));
        assert_eq!(url("http://www.example.com/x"), Ok("url http://www.example.com/x".to_owned()));
        assert_eq!(url("http://127.0.0.1:9001/x"), Ok("url http://127.0.0.1:9001/x".to_owned()));
        for (wrong, why) in [
            ("http://cart/", "cart.shop, cart.web"),
            ("http://prodcut:8080/", "no service of the mesh is called `prodcut`"),
            ("http://prodcut.shop:8080/", "no service shop/prodcut"),
            (
                "http://product/a",
                "shop/product has no port 80; it has 8080: write http://product.shop:8080/a",
            ),
            ("http://product:8080/%", "no valid path"),
        ] {
            let said = url(wrong).expect_err(wrong);
            assert!(said.contains(why), "{said}");
        }
    }

    #[test]
    fn a_purge_is_one_thing_of_at_most_one_service() {
        let tag = |service: &str| {
            asked(|request| {
                request.tag = Some("t".to_owned());
                request.service = Some(service.to_owned());
            })
        };
        assert_eq!(tag("product"), Ok("tag t of shop/product".to_owned()));
        assert_eq!(tag("cart.web"), Ok("tag t of web/cart".to_owned()));
        assert_eq!(tag(""), Ok("tag t".to_owned()));
        assert!(tag("cart").is_err() && tag("shop/none").is_err());
        assert!(asked(|_| {}).is_err());
        assert!(asked(|r| (r.all, r.tag) = (true, Some("t".to_owned()))).is_err());
        let policy = |name: &str| asked(|request| request.policy = Some(name.to_owned()));
        assert_eq!(policy("shop/pages"), Ok("policy shop/pages".to_owned()));
        assert!(policy("shop/none").is_err() && policy("pages").is_err());
    }

    #[test]
    fn what_sidecars_say_is_added_up() {
        let instance =
            |name: &str| Instance { namespace: "shop".into(), workload: name.into(), id: "1".into() };
        let store = |policy: &str, entries| wire::CacheStore {
            policy: policy.to_owned(),
            entries,
            bytes: entries * 100,
            limit: 1000,
            ..wire::CacheStore::default()
        };
        let count = |result: &str, reason: &str, requests| wire::CacheCount {
            result: result.to_owned(),
            reason: reason.to_owned(),
            requests,
        };
        let uses = |counts: Vec<wire::CacheCount>| wire::CacheUse {
            direction: "outbound".to_owned(),
            service: "shop/product".to_owned(),
            route: String::new(),
            counts,
        };
        let reports = vec![
            (
                instance("cart"),
                wire::CacheReport {
                    number: 1,
                    stores: vec![store("shop/pages", 2), store("shop/\u{1b}[2Jb", 1)],
                    uses: vec![uses(vec![count("hit", "", 6), count("miss", "uri-miss", 2)])],
                },
            ),
            (
                instance("web"),
                wire::CacheReport {
                    number: 1,
                    stores: vec![store("shop/pages", 3)],
                    uses: vec![uses(vec![
                        count("stale", "", 1),
                        count("miss", "stale", 1),
                        count("bypass", "method", 5),
                        count("new", "", 7),
                    ])],
                },
            ),
            (instance("none"), wire::CacheReport::default()),
        ];
        let asked = ["cart", "web", "none", "mute"].map(instance).to_vec();
        let stats = sum(Surveyed { reports, asked });
        assert_eq!((stats.asked, stats.silent.as_slice()), (4, &["shop/mute".to_owned()][..]));
        let policies: Vec<_> =
            stats.policies.iter().map(|p| (p.policy.as_str(), p.sidecars, p.entries, p.limit)).collect();
        assert_eq!(policies, [("shop/[2Jb", 1, 1, 1000), ("shop/pages", 2, 5, 2000)]);
        let [product] = &stats.services[..] else { panic!("{stats:?}") };
        assert_eq!((product.requests, product.hits, product.stale), (15, 6, 1));
        assert_eq!((product.misses, product.bypassed, product.hit_ratio), (3, 5, Some(0.7)));
        let reasons: Vec<_> = product.reasons.iter().map(|r| (r.reason.as_str(), r.requests)).collect();
        assert_eq!(reasons, [("method", 5), ("uri-miss", 2), ("stale", 1)]);
        let sidecars: Vec<_> = stats.sidecars.iter().map(|s| (s.workload.as_str(), s.bytes)).collect();
        assert_eq!(sidecars, [("cart", 300), ("web", 300)]);
    }
}
