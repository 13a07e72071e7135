//! Purges by hand: what somebody wants to be forgotten, read from text, and what of a sidecar's stores it means.
//!
//! Keys begin with the URI as the caller wrote it, so one resource has keys under every name that its service is called
//! by. A purge names the service once and is compared with what each key's authority means to the callers that this
//! sidecar stands beside, or with the service that the key says it was kept for where that is served.

mod meaning;
mod url;

use super::store::{Announced, Manner, Stores, What};
use meaning::{Meaning, Scene, Tail};
use std::{fmt, sync::Arc};
use url::Url;
use weft_config::{identity::ServiceName, snapshot::Snapshot, wire};

/// The longest text of a purge.
const TEXT_MAX: usize = 8 * 1024;
/// The longest label that a purge can be for: names and tags are shown to people.
const TAG_MAX: usize = 1024;

/// What is to be forgotten, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Purge {
    what: Wanted,
    /// Only what is kept of this service.
    service: Option<ServiceName>,
    manner: Manner,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Wanted {
    All,
    /// Exactly this URL.
    Url(Url),
    /// Every URL that begins like this.
    Prefix(Url),
    /// Every answer with this label.
    Tag(Arc<str>),
    /// Everything kept under a CachePolicy, `<namespace>/<name>`.
    Policy(Arc<str>),
}

/// What a purge is for, as it is asked for: one of these, with a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// `all`; its text counts for nothing.
    All,
    /// `url`.
    Url,
    /// `prefix`.
    Prefix,
    /// `tag`.
    Tag,
    /// `policy`.
    Policy,
}

impl Kind {
    /// All of them, by their names.
    pub(crate) const NAMED: [(&str, Self); 5] = [
        ("url", Self::Url),
        ("prefix", Self::Prefix),
        ("tag", Self::Tag),
        ("policy", Self::Policy),
        ("all", Self::All),
    ];
}

/// Why a text is no purge, in words for whoever wrote it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Invalid(String);

fn invalid<T>(why: impl Into<String>) -> Result<T, Invalid> {
    Err(Invalid(why.into()))
}

impl Purge {
    /// Reads one. `service` is empty for all services; names without a namespace are in `namespace`.
    pub(crate) fn read(
        kind: Kind,
        text: &str,
        service: &str,
        manner: Manner,
        namespace: &str,
    ) -> Result<Self, Invalid> {
        let text = text.trim();
        if text.len() > TEXT_MAX {
            return invalid(format!("that is longer than {TEXT_MAX} bytes"));
        }
        let what = match kind {
            Kind::All => Wanted::All,
            Kind::Url => Wanted::Url(Url::read(text, namespace)?),
            Kind::Prefix => Wanted::Prefix(Url::read_prefix(text, namespace)?),
            Kind::Tag => Wanted::Tag(tag(text)?),
            Kind::Policy => Wanted::Policy(policy(text, namespace)?),
        };
        let service = match service.trim() {
            "" => None,
            name => Some(service_name(name, namespace)?),
        };
        Ok(Self { what, service, manner })
    }

    /// Reads one from the control plane. `None` where it only says up to which purge there is nothing to do.
    pub(crate) fn from_wire(purge: &wire::Purge, namespace: &str) -> Result<Option<Self>, Invalid> {
        use wire::purge::What as Said;
        let (kind, text) = match &purge.what {
            Some(Said::Nothing(_)) => return Ok(None),
            Some(Said::All(_)) => (Kind::All, ""),
            Some(Said::Url(text)) => (Kind::Url, text.as_str()),
            Some(Said::Prefix(text)) => (Kind::Prefix, text.as_str()),
            Some(Said::Tag(text)) => (Kind::Tag, text.as_str()),
            Some(Said::Policy(text)) => (Kind::Policy, text.as_str()),
            None => return invalid("this sidecar's version does not know this kind of purge"),
        };
        let manner = if purge.soft { Manner::Soft } else { Manner::Hard };
        Self::read(kind, text, &purge.service, manner, namespace).map(Some)
    }

    /// Puts it in force: when this returns, nothing that it is for is given any more, or only as what is stale. Looks
    /// through nothing yet, but may look through something for purges before it. Not for a worker.
    pub(crate) fn announce(
        &self,
        stores: &Stores,
        snapshot: &Snapshot,
        namespace: &str,
        now: u32,
    ) -> Announced {
        let scene = &Scene::of(snapshot, namespace);
        let everything = |what: What| match &self.service {
            None => what,
            Some(service) => {
                let tag = match &what {
                    What::Tag(tag) => Some(tag.clone()),
                    _ => None,
                };
                Meaning::of_service(service.clone(), tag, scene).into()
            }
        };
        let what = |policy: &str| match &self.what {
            Wanted::All => Some(everything(What::All)),
            Wanted::Tag(tag) => Some(everything(What::Tag(tag.as_bytes().into()))),
            Wanted::Policy(wanted) => (**wanted == *policy).then(|| everything(What::All)),
            Wanted::Url(url) => {
                let tail = Tail::of_url(url, scene.rules(policy));
                Some(Meaning::of_url(url, tail, self.service.clone(), scene).into())
            }
            Wanted::Prefix(url) => {
                let tail = Tail::Begins(url.path.as_bytes().into());
                Some(Meaning::of_url(url, tail, self.service.clone(), scene).into())
            }
        };
        stores.announce(what, self.manner, now)
    }
}

/// For logs: `url http://product.shop:8080/products/1`.
impl fmt::Display for Purge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.what {
            Wanted::All => f.write_str("all")?,
            Wanted::Url(url) => write!(f, "url {url}")?,
            Wanted::Prefix(url) => write!(f, "prefix {url}")?,
            Wanted::Tag(tag) => write!(f, "tag {tag}")?,
            Wanted::Policy(policy) => write!(f, "policy {policy}")?,
        }
        match &self.service {
            Some(service) => write!(f, " of {service}"),
            None => Ok(()),
        }
    }
}

fn tag(text: &str) -> Result<Arc<str>, Invalid> {
    if text.is_empty() || text.len() > TAG_MAX {
        return invalid(format!("a tag has 1 to {TAG_MAX} bytes"));
    }
    if text.contains(|c: char| c.is_control() || c.is_whitespace() || c == ',') {
        return invalid(format!("`{}` is no tag: it has a blank or a comma in it", text.escape_debug()));
    }
    Ok(text.into())
}

fn policy(text: &str, namespace: &str) -> Result<Arc<str>, Invalid> {
    let (namespace, name) = text.split_once('/').unwrap_or((namespace, text));
    if !is_name(namespace) || !is_name(name) {
        return invalid(format!(
            "`{}` is no CachePolicy; expected NAMESPACE/NAME, as in shop/pages",
            text.escape_debug()
        ));
    }
    Ok(format!("{namespace}/{name}").into())
}

/// `shop/product`, `product.shop`, `product.shop.svc…` or `product`.
fn service_name(text: &str, namespace: &str) -> Result<ServiceName, Invalid> {
    let named = match text.split_once('/') {
        Some((namespace, name)) => {
            (is_name(namespace) && is_name(name)).then(|| ServiceName::new(namespace, name))
        }
        None => Snapshot::host_candidates(text, namespace),
    };
    named.ok_or_else(|| {
        Invalid(format!(
            "`{}` is no service; expected NAMESPACE/NAME, as in shop/product",
            text.escape_debug()
        ))
    })
}

/// A name as Kubernetes allows it.
fn is_name(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 253
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.')
}

#[cfg(test)]
mod tests;
