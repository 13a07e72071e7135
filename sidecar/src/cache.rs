//! The response cache: what is kept, for whom and for how long, and one fetch for requests that come at once.

mod body;
mod entry;
mod fill;
mod store;

use std::time::SystemTime;

/// The time that responses are judged by: seconds since 1970.
pub(crate) fn seconds_now() -> u32 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u32::try_from(since.as_secs()).unwrap_or(u32::MAX)
}
