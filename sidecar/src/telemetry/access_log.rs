//! The access log: one JSON line a request on standard output, written behind the workers' backs.

mod line;
#[cfg(test)]
mod tests;
mod writer;

pub(crate) use line::{Detail, Entry};
pub(crate) use writer::AccessLog;

use weft_config::snapshot;

/// Whether a request of this status is logged. `random` is a fresh number from 0.0 up to 1.0.
pub(crate) fn wants(rule: &snapshot::AccessLog, status: u16, random: f64) -> bool {
    rule.min_status.is_some_and(|least| status >= least) || random < rule.sample
}

/// Whether any request might be logged: without this nothing needs to be noted down for it.
pub(crate) fn is_on(rule: &snapshot::AccessLog) -> bool {
    rule.min_status.is_some() || rule.sample > 0.0
}
