//! Purges of the response cache, read from text: one form for the command line, the control plane and every sidecar.

mod url;

pub use url::Url;

use crate::{identity::ServiceName, snapshot::Snapshot, wire};
use std::{fmt, sync::Arc};

/// The longest text of a purge.
const TEXT_MAX: usize = 8 * 1024;
/// The longest label that a purge can be for.
const TAG_MAX: usize = 1024;

/// What is to be forgotten, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Purge {
    /// What is meant.
    pub what: What,
    /// Only what is kept of this service.
    pub service: Option<ServiceName>,
    /// True if it is stale from now on, false if it is gone.
    pub soft: bool,
}

/// What a purge is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// Everything.
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
pub enum Kind {
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
    pub const NAMED: [(&str, Self); 5] = [
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
pub struct Invalid(String);

fn invalid<T>(why: impl Into<String>) -> Result<T, Invalid> {
    Err(Invalid(why.into()))
}

impl Purge {
    /// Reads one. `service` is empty for all services. Names without a namespace are in `namespace`; where that is empty
    /// a host without one names no service.
    pub fn read(kind: Kind, text: &str, service: &str, soft: bool, namespace: &str) -> Result<Self, Invalid> {
        let text = text.trim();
        if text.len() > TEXT_MAX {
            return invalid(format!("that is longer than {TEXT_MAX} bytes"));
        }
        let what = match kind {
            Kind::All => What::All,
            Kind::Url => What::Url(Url::read(text, namespace)?),
            Kind::Prefix => What::Prefix(Url::read_prefix(text, namespace)?),
            Kind::Tag => What::Tag(tag(text)?),
            Kind::Policy => What::Policy(policy(text, namespace)?),
        };
        let service = match service.trim() {
            "" => None,
            name => Some(service_name(name, namespace)?),
        };
        Ok(Self { what, service, soft })
    }

    /// Reads one from the control plane. `None` where it only says up to which purge there is nothing to do.
    pub fn from_wire(purge: &wire::Purge, namespace: &str) -> Result<Option<Self>, Invalid> {
        use wire::purge::What as Said;
        let (kind, text) = match &purge.what {
            Some(Said::Nothing(_)) => return Ok(None),
            Some(Said::All(_)) => (Kind::All, ""),
            Some(Said::Url(text)) => (Kind::Url, text.as_str()),
            Some(Said::Prefix(text)) => (Kind::Prefix, text.as_str()),
            Some(Said::Tag(text)) => (Kind::Tag, text.as_str()),
            Some(Said::Policy(text)) => (Kind::Policy, text.as_str()),
            None => return invalid("this version does not know this kind of purge"),
        };
        Self::read(kind, text, &purge.service, purge.soft, namespace).map(Some)
    }

    /// The same as it is sent to sidecars, but for its number.
    pub fn to_wire(&self) -> wire::Purge {
        use wire::purge::What as Said;
        let what = match &self.what {
            What::All => Said::All(true),
            What::Url(url) => Said::Url(url.to_string()),
            What::Prefix(url) => Said::Prefix(url.to_string()),
            What::Tag(tag) => Said::Tag(tag.to_string()),
            What::Policy(policy) => Said::Policy(policy.to_string()),
        };
        let service = self.service.as_ref().map(ToString::to_string).unwrap_or_default();
        wire::Purge { what: Some(what), service, soft: self.soft, ..wire::Purge::default() }
    }

    /// The kind and the text that it can be read from.
    pub fn text(&self) -> (&'static str, String) {
        match &self.what {
            What::All => ("all", String::new()),
            What::Url(url) => ("url", url.to_string()),
            What::Prefix(url) => ("prefix", url.to_string()),
            What::Tag(tag) => ("tag", tag.to_string()),
            What::Policy(policy) => ("policy", policy.to_string()),
        }
    }

    /// The URL that it is for, or the beginning of some.
    pub fn url_mut(&mut self) -> Option<&mut Url> {
        match &mut self.what {
            What::Url(url) | What::Prefix(url) => Some(url),
            What::All | What::Tag(_) | What::Policy(_) => None,
        }
    }
}

/// In one line: `url http://product.shop:8080/products/1`.
impl fmt::Display for Purge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.text() {
            (kind, text) if text.is_empty() => f.write_str(kind)?,
            (kind, text) => write!(f, "{kind} {text}")?,
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
mod tests {
    use super::*;
    use rstest::rstest;

    fn read(kind: Kind, text: &str, service: &str) -> Result<Purge, Invalid> {
        Purge::read(kind, text, service, false, "shop")
    }

    #[rstest]
    #[case(Kind::Url, "", "no URL is given")]
    #[case(Kind::Url, "/products", "has no host")]
    #[case(Kind::Url, "ftp://product/a", "not an http URL")]
    #[case(Kind::Url, "http://user@product/a", "user name")]
    #[case(Kind::Url, "http://product:99999/a", "no number up to 65535")]
    #[case(Kind::Url, "http://product:/a", "no number up to 65535")]
    #[case(Kind::Url, "http://product/a b", "blank")]
    #[case(Kind::Url, "http://product/%zz", "no valid path")]
    #[case(Kind::Url, "http://*/a", "a host that no call can have")]
    #[case(Kind::Url, "http://a[:b:80/a", "a host that no call can have")]
    #[case(Kind::Url, "http://a:b:80/a", "a host that no call can have")]
    #[case(Kind::Url, "http://[::1/a", "a host that no call can have")]
    #[case(Kind::Url, "http://[product]/a", "a host that no call can have")]
    #[case(Kind::Prefix, "http://product/a?b", "a prefix ends in the path")]
    #[case(Kind::Prefix, "http://product/a/*", "leave the `*` away")]
    #[case(Kind::Tag, "", "1 to 1024 bytes")]
    #[case(Kind::Tag, "a,b", "a blank or a comma")]
    #[case(Kind::Policy, "a/b/c", "expected NAMESPACE/NAME")]
    #[case(Kind::Policy, "", "expected NAMESPACE/NAME")]
    fn what_is_no_purge_says_why(#[case] kind: Kind, #[case] text: &str, #[case] why: &str) {
        let error = read(kind, text, "").expect_err("is none").to_string();
        assert!(error.contains(why), "{error}");
    }

    #[test]
    fn a_service_that_cannot_be_and_endless_texts_are_refused() {
        assert!(read(Kind::Url, "http://a/", "10.0.0.1").is_err());
        assert!(read(Kind::Url, "http://a/", "a/b/c").is_err());
        assert!(read(Kind::Url, &format!("http://a/{}", "x".repeat(TEXT_MAX)), "").is_err());
    }

    #[rstest]
    #[case(Kind::All, "", "", "all")]
    #[case(Kind::Url, "Product/x/../a?b", "", "url http://product/a?b")]
    #[case(Kind::Url, "HTTPS://product:443/a#b", "", "url http://product:443/a")]
    #[case(Kind::Url, "http://[::1]/a", "", "url http://[::1]/a")]
    #[case(Kind::Url, "[fe80::1]:8080", "", "url http://[fe80::1]:8080/")]
    #[case(Kind::Prefix, "http://product:8080", "", "prefix http://product:8080/")]
    #[case(Kind::Tag, "p:1", "product", "tag p:1 of shop/product")]
    #[case(Kind::Policy, "pages", "product.web.svc", "policy shop/pages of web/product")]
    fn it_is_told_in_one_line_and_read_again_from_what_is_told(
        #[case] kind: Kind,
        #[case] text: &str,
        #[case] service: &str,
        #[case] line: &str,
    ) {
        let purge = read(kind, text, service).expect("is one");
        assert_eq!(purge.to_string(), line);
        let (_, text) = purge.text();
        let service = purge.service.as_ref().map(ToString::to_string).unwrap_or_default();
        assert_eq!(read(kind, &text, &service), Ok(purge.clone()));
        assert!(Purge::from_wire(&purge.to_wire(), "elsewhere").is_ok());
        assert_eq!(Purge::from_wire(&purge.to_wire(), "shop"), Ok(Some(purge)));
    }

    #[test]
    fn a_host_without_a_namespace_gets_one() {
        let mut purge = Purge::read(Kind::Url, "product:8080/a", "", false, "").expect("is one");
        let url = purge.url_mut().expect("a URL");
        assert_eq!((url.service.clone(), url.bare_host()), (None, Some("product")));
        url.set_service(ServiceName::new("web", "product"));
        assert_eq!(purge.to_string(), "url http://product.web:8080/a");
        assert_eq!(Purge::from_wire(&purge.to_wire(), "shop"), Ok(Some(purge)));
        for host in ["product.shop", "127.0.0.1", "localhost", "www.example.com", "[::1]"] {
            let mut purge = Purge::read(Kind::Url, host, "", false, "").expect("is one");
            assert_eq!(purge.url_mut().and_then(|url| url.bare_host().map(str::to_owned)), None, "{host}");
        }
    }

    #[test]
    fn nothing_is_to_be_done_up_to_a_number_and_what_is_unknown_is_said() {
        let of = |what| wire::Purge { what, ..wire::Purge::default() };
        assert_eq!(Purge::from_wire(&of(Some(wire::purge::What::Nothing(true))), "shop"), Ok(None));
        // From a newer control plane.
        assert!(Purge::from_wire(&of(None), "shop").is_err());
    }
}
