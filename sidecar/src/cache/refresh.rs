//! Work in the background: what was given stale is fetched anew, for whoever asks next (RFC 5861 section 3).

use super::{Cache, body, conditional, exchange::Origin, fill::Filler, lookup::Lookup};
use crate::body::Body;
use http::request::Parts;
use std::{rc::Rc, time::Duration};

/// How long the body of an answer may take that nobody waits for.
const LONGEST: Duration = Duration::from_secs(60);

/// One fetch for nobody. Dropped without having run, it leaves it to the next request.
pub(crate) struct Refresh {
    cache: Rc<Cache>,
    request: Parts,
    lookup: Lookup,
    filler: Filler,
}

impl Refresh {
    pub(super) fn new(cache: &Rc<Cache>, request: &Parts, lookup: Lookup, filler: Filler) -> Self {
        let mut request = request.clone();
        conditional::make_plain(&mut request.headers);
        Self { cache: cache.clone(), request, lookup, filler }
    }

    /// The request that it goes by.
    pub(crate) fn request(&self) -> &Parts {
        &self.request
    }

    /// Asks the origin, and keeps what it says.
    pub(crate) async fn run(self, origin: &mut impl Origin) {
        let Self { cache, mut request, lookup, filler } = self;
        let fetched = cache.fetch(&lookup, Some(filler), None, &mut request, Body::Empty, origin).await;
        if let Ok((response, _)) = fetched {
            body::drain(response.into_body(), LONGEST).await;
        }
    }
}
