//! What policy does to calls, one concern a file: each is a decision over small state, joined by the two directions.

pub(crate) mod session;
pub(crate) mod split;
