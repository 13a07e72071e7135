//! How a verb ends: 0, 1 failure, 64 usage, 65 bad data.

use std::{fmt, process::ExitCode};

/// Why a verb did not succeed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The command line makes no sense.
    Usage(String),
    /// The documents have errors. They have been printed already if the text is empty.
    Data(String),
    /// Anything else.
    Other(anyhow::Error),
    /// Everything has been said already.
    Silent,
}

impl Failure {
    /// The exit code for it.
    pub(crate) fn code(&self) -> ExitCode {
        ExitCode::from(match self {
            Self::Usage(_) => USAGE,
            Self::Data(_) => DATA,
            Self::Other(_) | Self::Silent => 1,
        })
    }
}

/// The exit code of a command line that makes no sense.
pub(crate) const USAGE: u8 = 64;
/// The exit code for bad data.
pub(crate) const DATA: u8 = 65;

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usage(text) | Self::Data(text) => f.write_str(text),
            Self::Other(error) => write!(f, "{error:#}"),
            Self::Silent => Ok(()),
        }
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::Other(error)
    }
}
