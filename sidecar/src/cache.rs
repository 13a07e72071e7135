//! The response cache: what may be kept, for whom and for how long, where it is kept, and one fetch for requests that
//! come at once.

mod body;
mod conditional;
mod date;
mod directives;
mod entry;
mod fill;
mod freshness;
mod invalidation;
mod key;
mod range;
pub(crate) mod siblings;
mod status;
mod store;
mod stored;
mod storing;
mod structured;
mod upkeep;
mod vary;
mod view;

pub(crate) use status::{Answered, Forwarded};
pub(crate) use store::Stores;
#[cfg(test)]
pub(crate) use stored::tests::hit;
pub(crate) use stored::{Stored, unfold};
pub(crate) use storing::{Bypass, Refusal};
pub(crate) use upkeep::keep_up;
pub(crate) use view::describe;

use std::time::SystemTime;

/// The time that responses are judged by: seconds since 1970.
pub(crate) fn seconds_now() -> u32 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u32::try_from(since.as_secs()).unwrap_or(u32::MAX)
}
