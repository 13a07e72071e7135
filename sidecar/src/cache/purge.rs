//! What a purge means in the stores of this sidecar.
//!
//! Keys begin with the URI as the caller wrote it, so one resource has keys under every name that its service is called
//! by. A purge names the service once and is compared with what each key's authority means to the callers that this
//! sidecar stands beside, or with the service that the key says it was kept for where that is served.

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;
mod meaning;

use super::store::{Announced, Manner, Stores, What};
use meaning::{Meaning, Scene, Tail};
use weft_config::{
    purge::{self, Purge},
    snapshot::Snapshot,
};

/// Puts a purge in force: when this returns, nothing that it is for is given any more, or only as what is stale. Names are
/// those of callers in `namespace`. Looks through nothing yet, but may do so for purges before it. Not for a worker.
pub(crate) fn announce(
    purge: &Purge,
    stores: &Stores,
    snapshot: &Snapshot,
    namespace: &str,
    now: u32,
) -> Announced {
    let scene = &Scene::of(snapshot, namespace);
    let of_service = |all: What, tag: Option<&str>| match &purge.service {
        None => all,
        Some(service) => {
            Meaning::of_service(service.clone(), tag.map(|tag| tag.as_bytes().into()), scene).into()
        }
    };
    let at = |url, tail| Meaning::of_url(url, tail, purge.service.clone(), scene).into();
    let what = |policy: &str| match &purge.what {
        purge::What::All => Some(of_service(What::All, None)),
        purge::What::Tag(tag) => Some(of_service(What::Tag(tag.as_bytes().into()), Some(tag))),
        purge::What::Policy(wanted) => (**wanted == *policy).then(|| of_service(What::All, None)),
        purge::What::Url(url) => Some(at(url, Tail::of_url(url, scene.rules(policy)))),
        purge::What::Prefix(url) => Some(at(url, Tail::Begins(url.path.as_bytes().into()))),
    };
    let manner = if purge.soft { Manner::Soft } else { Manner::Hard };
    stores.announce(what, manner, now)
}

#[cfg(test)]
mod tests;
