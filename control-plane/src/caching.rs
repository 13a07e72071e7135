//! What `/api/cache/purge` and `/api/cache/stats` take and answer. The command line uses the same types.

use serde::{Deserialize, Serialize};

/// The body of `POST /api/cache/purge`: exactly one of `all`, `url`, `prefix`, `tag` and `policy`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PurgeRequest {
    /// Everything.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub all: bool,
    /// One URL.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// Every URL that begins like this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
    /// Every answer with this label.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
    /// Everything kept under this CachePolicy, `<namespace>/<name>`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    /// Only what is kept of this service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// Stale from now on instead of gone.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub soft: bool,
    /// How long sidecars may take to answer, as `5s`, which is the default; 60 s at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait: Option<String>,
}

/// What became of a purge.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PurgeReport {
    /// Its number in the control plane's list.
    pub number: u64,
    /// What it was for, with the names that were meant: `url http://product.shop:8080/products/1`.
    pub purged: String,
    /// Whether it made stale only.
    pub soft: bool,
    /// True if every sidecar that was asked has carried it out.
    pub complete: bool,
    /// How many stored answers it was for, in all sidecars.
    pub answers: u64,
    /// Sidecars that were asked: those that were connected, and those that came meanwhile.
    pub asked: usize,
    /// Of these, those that have carried it out.
    pub acknowledged: usize,
    /// Each that was asked, sorted by namespace and workload.
    pub sidecars: Vec<PurgedSidecar>,
    /// Sidecars that were lost lately and were not asked: each gets it when it comes back.
    #[serde(default)]
    pub away: Vec<AwaySidecar>,
    /// How long it took.
    pub milliseconds: u64,
    /// Why it was not carried out by all, in one line; empty if it was.
    #[serde(default)]
    pub problem: String,
}

/// How far a sidecar came with a purge.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum PurgeState {
    /// It has carried it out: nothing that it is for will be given any more.
    #[default]
    Acknowledged,
    /// It says why it did not.
    Failed,
    /// Nothing was heard of it in time. It may have carried it out.
    Late,
    /// Its connection was lost before it answered. It gets the purge when it comes back.
    Lost,
}

/// What one sidecar did with a purge.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PurgedSidecar {
    /// Namespace of its workload.
    pub namespace: String,
    /// Its workload.
    pub workload: String,
    /// What its process calls itself.
    pub instance: String,
    /// How far it came.
    pub state: PurgeState,
    /// How many stored answers it was for.
    pub answers: u64,
    /// Its own words if it failed.
    #[serde(default)]
    pub why: String,
}

/// A sidecar that is not connected.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AwaySidecar {
    /// Namespace of its workload.
    pub namespace: String,
    /// Its workload.
    pub workload: String,
    /// What its process calls itself.
    pub instance: String,
    /// For how long, in seconds.
    pub seconds: u64,
}

/// What the response caches of all connected sidecars hold and did since each of them started.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CacheStats {
    /// Sidecars that were asked.
    pub asked: usize,
    /// Those that did not answer in time, `<namespace>/<workload>`, sorted.
    #[serde(default)]
    pub silent: Vec<String>,
    /// What is kept, by policy.
    pub policies: Vec<PolicyStats>,
    /// How requests were answered, by service, route and where.
    pub services: Vec<ServiceStats>,
    /// What each sidecar holds, of those that hold anything.
    pub sidecars: Vec<SidecarStats>,
}

/// What is kept under a policy, in all sidecars together.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyStats {
    /// `<namespace>/<name>`.
    pub policy: String,
    /// Sidecars that know it.
    pub sidecars: u64,
    /// Answers that are kept.
    pub entries: u64,
    /// Memory that they take.
    pub bytes: u64,
    /// Memory that they may take.
    pub limit: u64,
    /// Put in.
    pub stored: u64,
    /// Taken out to make room.
    pub evicted: u64,
    /// Taken out because of no use any more.
    pub expired: u64,
    /// Taken out by purges and changes.
    pub purged: u64,
    /// Not put in: too large, no room, or purged while they came.
    pub refused: u64,
    /// Requests that waited for the fetch of another.
    pub coalesced: u64,
}

/// How requests to a service were answered, by all sidecars in one direction together.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceStats {
    /// `<namespace>/<name>`.
    pub service: String,
    /// The route rule; empty if the service has no routes.
    pub route: String,
    /// `outbound` at callers, `inbound` where it is served.
    pub direction: String,
    /// All requests.
    pub requests: u64,
    /// Answered by the cache without the origin, stale or not, as a share of those that did not pass by it; absent if
    /// there were none.
    pub hit_ratio: Option<f64>,
    /// Given fresh.
    pub hits: u64,
    /// Given stale.
    pub stale: u64,
    /// Given after the origin said that nothing had changed.
    pub revalidated: u64,
    /// Fetched.
    pub misses: u64,
    /// Not looked up.
    pub bypassed: u64,
    /// Why, for misses and those that passed by, the most frequent first.
    pub reasons: Vec<ReasonStats>,
}

/// How often there was a reason.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReasonStats {
    /// `miss` or `bypass`.
    pub result: String,
    /// As in `Cache-Status` and the metrics.
    pub reason: String,
    /// Requests.
    pub requests: u64,
}

/// What one sidecar holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SidecarStats {
    /// Namespace of its workload.
    pub namespace: String,
    /// Its workload.
    pub workload: String,
    /// What its process calls itself.
    pub instance: String,
    /// Answers that are kept.
    pub entries: u64,
    /// Memory that they take.
    pub bytes: u64,
    /// Memory that they may take.
    pub limit: u64,
}
