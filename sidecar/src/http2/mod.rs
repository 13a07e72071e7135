//! HTTP/2 on both sides, directly on h2: streams in, exchanges out, and HTTP/1 messages carried in streams.

mod client;
mod cork;
mod fault;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;
mod incoming;
mod live;
mod outgoing;
mod pulse;
mod server;
mod settings;
mod translate;
mod tunnel;

#[cfg(test)]
mod tests;

pub(crate) use client::Client;
pub(crate) use incoming::Incoming;
pub(crate) use live::Freed;
pub(crate) use server::serve;
pub(crate) use settings::Settings;

/// The largest frame taken. Above the default, so that large bodies cost fewer frames.
const MAX_FRAME: u32 = 64 * 1024;
