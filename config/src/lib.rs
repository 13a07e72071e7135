//! The language that the sidecar and the control plane share: policy as written, policy as compiled, and the wire between them.

pub mod compile;
pub mod document;
pub mod error;
pub mod identity;
pub mod matching;
pub mod snapshot;
pub mod wire;
