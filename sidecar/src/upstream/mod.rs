//! Everything that is known about where requests go: clusters of endpoints, who is picked, and the connections kept to
//! them. Worker-local, keyed by name, and older than any snapshot; what all workers must judge together is in a
//! [`guard::Guard`].

pub(crate) mod balancer;
pub(crate) mod breaker;
mod budget;
pub(crate) mod cluster;
mod connect;
pub(crate) mod ejection;
mod endpoint;
pub(crate) mod guard;
mod hashing;
pub(crate) mod health;
pub(crate) mod hedge;
mod membership;
mod outcome;
mod pool;
mod protocol;
pub(crate) mod retry;
mod sliding;
mod standing;

pub(crate) use cluster::{Cluster, ClusterKey, Preference};
pub(crate) use connect::Connector;
pub(crate) use endpoint::{Attempt, Endpoint, InFlight};
pub(crate) use guard::{AttemptEntry, Entry, RetrySlot};
pub(crate) use outcome::Outcome;
pub(crate) use protocol::Wire;
pub(crate) use retry::{Attempted, Decision, End, decide, retry_after};
