//! What an HTTP/2 error means for a request.

use crate::error::{Error, Kind};
use h2::Reason;

/// An error of the connection to an upstream. `sent` is false where the peer says it did not process the request.
pub(super) fn upstream(error: &h2::Error) -> Error {
    // A GOAWAY reaches a stream only if the peer promises not to have taken it up.
    let unprocessed = error.is_remote()
        && (error.is_go_away() || error.is_reset() && error.reason() == Some(Reason::REFUSED_STREAM));
    if unprocessed {
        return Error::new(Kind::Reset, format!("the upstream refused the stream unprocessed ({error})"));
    }
    if error.is_library() {
        return Error::after_send(
            Kind::BadResponse,
            format!("the upstream's HTTP/2 is malformed ({error}); look at its log"),
        );
    }
    let detail = match error.get_io() {
        Some(error) => format!("the upstream closed the connection ({error}); look at its log"),
        None => format!("the upstream reset the stream ({error}); look at its log"),
    };
    Error::after_send(Kind::Reset, detail)
}

/// An error of the connection to a caller.
pub(super) fn caller(error: &h2::Error) -> Error {
    if error.is_library() {
        Error::new(Kind::BadRequest, format!("the caller's HTTP/2 is malformed ({error})"))
    } else {
        Error::new(Kind::Gone, format!("the caller went away ({error})"))
    }
}

/// The code a stream is reset with when what it carries broke off.
pub(super) fn reset_reason(error: &Error) -> Reason {
    match error.kind {
        Kind::Gone => Reason::CANCEL,
        Kind::Draining | Kind::Overloaded => Reason::REFUSED_STREAM,
        _ => Reason::INTERNAL_ERROR,
    }
}
