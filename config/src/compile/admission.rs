//! What TrafficPolicies and CachePolicies on a Service say of the calls that come in where it is served.

use super::attached::{Index, Policies};
use super::cache::{self, Side};
use super::calls::{given, rate_limits};
use super::conditions::only;
use super::findings::Findings;
use super::traffic::or;
use crate::document::Located;
use crate::document::traffic_policy::Concurrency as Written;
use crate::snapshot::{Admission, Concurrency, ConcurrencyLimit, Served};
use std::{sync::Arc, time::Duration};

/// For each port that a workload serves.
pub(super) fn compile(
    documents: &[Located],
    serves: &[Served],
    findings: &mut Findings,
) -> Vec<Arc<Admission>> {
    let index = Index::new(documents);
    let each = serves.iter().map(|served| {
        let mut admission = on(&index.on_port(&served.service, served.port), findings);
        admission.cache = cache::for_port(&index, &served.service, served.port, Side::Inbound, findings);
        admission.into()
    });
    each.collect()
}

/// What policies on one port of a service say.
pub(super) fn on(policies: &Policies<'_>, findings: &mut Findings) -> Admission {
    let limits = policies.part(|spec| given(&spec.rate_limits));
    let bounds = policies.part(|spec| spec.concurrency.as_ref());
    Admission {
        rate_limits: limits.map(|said| rate_limits(&said, findings)).unwrap_or_default(),
        concurrency: bounds.map(|said| concurrency(said.what, said.by.found, findings).into()),
        // Another kind of policy says it.
        cache: None,
    }
}

fn concurrency(written: &Written, found: &Located, findings: &mut Findings) -> Concurrency {
    let limit = match (written.limit, &written.adaptive) {
        (Some(limit), _) => ConcurrencyLimit::Fixed(limit),
        (None, Some(adaptive)) => {
            // Of the two only the one that is written holds, where the other's default would contradict it.
            let min = adaptive.min.unwrap_or_else(|| adaptive.max.unwrap_or(4).min(4));
            ConcurrencyLimit::Adaptive {
                min,
                max: adaptive.max.unwrap_or(1000).max(min),
                tolerance: adaptive.tolerance.unwrap_or(2.0),
            }
        }
        (None, None) => ConcurrencyLimit::None,
    };
    let queue = written.queue.clone().unwrap_or_default();
    let priorities = written.priorities.iter().enumerate().map(|(at, priority)| {
        let field = format!("spec.concurrency.priorities[{at}]");
        let meant = only(&priority.headers, &[], &priority.paths, found, &field, findings);
        (meant, u8::try_from(priority.priority).unwrap_or(100).min(100))
    });
    let priorities = priorities.collect();
    Concurrency {
        limit,
        queue: queue.max.map_or(128, |max| usize::try_from(max).unwrap_or(usize::MAX)),
        queue_timeout: or(queue.timeout, Duration::from_millis(100)),
        priorities,
    }
}
