//! Everything that is known about where requests go: clusters of endpoints, who is picked, and the connections kept to
//! them. Worker-local, keyed by name, and older than any snapshot; what all workers must judge together is in a
//! [`Guard`].

pub(crate) mod balancer;
pub(crate) mod cluster;
mod connect;
mod endpoint;
pub(crate) mod guard;
mod hashing;
mod membership;
mod pool;
mod protocol;

pub(crate) use cluster::{Cluster, ClusterKey, Preference};
pub(crate) use connect::Connector;
pub(crate) use endpoint::{Attempt, Endpoint, InFlight};
