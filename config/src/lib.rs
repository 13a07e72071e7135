//! The language that the sidecar and the control plane share: policy as written, policy as compiled, and the wire between them.

pub mod compile;
pub mod document;
pub mod error;
pub mod identity;
pub mod matching;
pub mod parse;
pub mod policy;
pub mod purge;
pub mod reference;
pub mod schema;
pub mod snapshot;
mod validate;
pub mod wire;
