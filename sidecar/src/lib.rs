//! The data plane: everything between an application and the mesh, as a library so that tests can run it in process.
//!
//! A connection is accepted by `listener`, becomes requests in `http1` or `http2`, and each request is one function:
//! `outbound` for calls of our application, `inbound` for calls to it.

mod admin;
#[cfg(feature = "bench")]
#[doc(hidden)]
pub mod bench;
mod body;
mod bootstrap;
mod cache;
mod connect_request;
mod context;
mod drain;
mod error;
mod exchange;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzz;
mod http1;
mod http2;
mod inbound;
mod io;
mod listener;
mod live;
mod message;
mod notable;
mod outbound;
mod policy;
mod redirect;
mod settings;
mod siblings;
mod spare;
mod tcp;
mod telemetry;
mod tls;
mod traffic;
mod upstream;
mod worker;
mod worker_thread;

pub use bootstrap::{Addresses, Sidecar, run};
pub use settings::{AppPort, Settings};
