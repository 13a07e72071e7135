//! A request's body as attempts need it: given out for the first one, and again for each that follows, if it is whole.

use crate::body::{Body, Kept};
use bytes::Bytes;
use http_body::Body as _;

/// The body of a request that may be sent more than once.
pub(super) enum Payload {
    /// Nothing, or all of it at hand: as often as wanted.
    Whole(Bytes),
    /// It streams, and is kept while it does.
    Kept(Kept),
    /// It streams, and is known to be too large to be kept.
    Once(Option<Body>),
}

impl Payload {
    /// Keeps up to `limit` bytes.
    pub(super) fn new(body: Body, limit: usize) -> Self {
        match body {
            Body::Empty => Self::Whole(Bytes::new()),
            Body::Full(bytes) => Self::Whole(bytes),
            body if body.size_hint().lower() > limit as u64 => Self::Once(Some(body)),
            body => Self::Kept(Kept::new(body, limit)),
        }
    }

    /// The body from its start. Ask [`Self::is_whole`] before; what is not whole any more is empty.
    pub(super) fn take(&mut self) -> Body {
        match self {
            Self::Whole(bytes) => Body::full(bytes.clone()),
            Self::Kept(kept) => kept.reader().unwrap_or(Body::Empty),
            Self::Once(body) => body.take().unwrap_or(Body::Empty),
        }
    }

    /// An attempt took nothing of the body.
    pub(super) fn put_back(&mut self, body: Body) {
        if let Self::Once(place) = self {
            *place = Some(body);
        }
    }

    /// Whether another attempt can have all of it.
    pub(super) fn is_whole(&self) -> bool {
        match self {
            Self::Whole(_) => true,
            Self::Kept(kept) => kept.is_whole(),
            Self::Once(body) => body.is_some(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_body_is_given_out_as_often_as_wanted() {
        let mut payload = Payload::new(Body::full("abc"), 1);
        for _ in 0..3 {
            assert!(payload.is_whole());
            assert!(matches!(payload.take(), Body::Full(bytes) if bytes == "abc"));
        }
        assert!(matches!(Payload::new(Body::Empty, 0).take(), Body::Empty));
    }

    #[test]
    fn a_body_known_to_be_too_large_goes_out_once_unless_nothing_of_it_was_taken() {
        use http_body_util::BodyExt;
        let whole = http_body_util::Full::new(Bytes::from_static(b"abcdef"));
        let large = || Body::Boxed(Box::pin(whole.clone().map_err(|never| match never {})));
        let mut payload = Payload::new(large(), 3);
        assert!(payload.is_whole());
        let body = payload.take();
        assert!(!payload.is_whole());
        payload.put_back(body);
        assert!(payload.is_whole());
    }
}
