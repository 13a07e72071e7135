//! The data plane: everything between an application and the mesh, as a library so that tests can run it in process.

mod admin;
mod body;
mod drain;
mod error;
mod exchange;
mod http1;
mod http2;
mod io;
mod policy;
mod tcp;
mod telemetry;
mod tls;
