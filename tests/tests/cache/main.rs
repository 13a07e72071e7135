//! The response cache through a whole mesh: what is kept, for whom and for how long, and what becomes of callers when
//! the origin is slow, wrong or gone.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod coalescing;
mod conditions;
mod hits;
mod invalidation;
mod leaks;
mod memory;
mod methods;
mod poisoning;
mod ranges;
mod reload;
mod requests;
mod splits;
mod stage;
mod stale;
mod variants;
