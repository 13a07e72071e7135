//! What policy does to calls, one concern a file: each is a decision over small state, joined by the two directions.

mod buckets;
pub(crate) mod chain;
pub(crate) mod concurrency;
pub(crate) mod cors;
pub(crate) mod deadline;
pub(crate) mod deprecation;
pub(crate) mod fault;
mod gradient;
pub(crate) mod mirror;
pub(crate) mod rate_limit;
pub(crate) mod session;
pub(crate) mod split;
