//! What policy does to calls, one concern a file: each is a decision over small state, joined by the two directions.

pub(crate) mod chain;
pub(crate) mod deadline;
pub(crate) mod deprecation;
pub(crate) mod session;
pub(crate) mod split;
