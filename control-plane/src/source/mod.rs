//! Where policy comes from: directories of YAML, read whole and watched for changes.

mod read;
mod watch;

pub use read::{Problem, SourceFile, Tree, load};
pub use watch::{Watch, watch};
