//! What the protocols and the two directions agree on: how a request is handed up, sent on, and answered.

use crate::{body::Body, error::Error};
use http::{Request, Response};

/// The way back to the caller while a request is under way.
pub(crate) trait Back {
    /// Sends an interim (1xx) response on, if the caller's protocol can take one.
    fn interim(&self, head: Response<()>);
}

/// Nobody waits for interim answers: to copies of requests, and to what is fetched in the background.
pub(crate) struct Nobody;

impl Back for Nobody {
    fn interim(&self, _: Response<()>) {}
}

/// What a server connection does with the requests it reads.
pub(crate) trait Handler {
    /// Answers one request. Dropping the future cancels everything downstream of it.
    fn handle(&self, request: Request<Body>, back: &dyn Back) -> impl Future<Output = Response<Body>>;

    /// Answers (and counts) a message that never became a request: malformed, too large, too slow.
    fn refuse(&self, error: Error) -> Response<Body>;
}

/// An attempt that gave no response head.
pub(crate) struct Failed {
    /// Why. `error.sent` says whether any byte was written upstream.
    pub(crate) error: Error,
    /// The request's body, if it is whole still (nothing of it was taken) and could be sent again.
    pub(crate) body: Option<Box<Body>>,
}

/// Put into a response's extensions, it says that nothing of the response is to be sent: an HTTP/1 connection is
/// closed, an HTTP/2 stream is reset. For faults put in on purpose.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reset;

impl Reset {
    /// Whether a response is marked so.
    pub(crate) fn is_meant_by(response: &Response<Body>) -> bool {
        response.extensions().get::<Self>().is_some()
    }
}
