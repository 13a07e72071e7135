//! Purges: read from text, told to others, and for exactly what they name.

use super::meaning::{Meaning, Scene, Tail};
use crate::{
    cache::{
        entry::{Draft, Entry, Key, Times},
        key,
        store::Choice,
    },
    fuzz::first_line,
    notable::Notable,
};
use http::{HeaderMap, StatusCode};
use weft_config::{
    purge::{Kind, Purge, Url, What},
    snapshot::{CacheKeyRules, Snapshot},
};

/// The kind, the text, and the service.
pub(crate) const PURGES: &[&[u8]] = &[
    b"url\nhttp://product:8080/a/../b?c=%7e&d\n",
    b"url\nHTTPS://Product.shop.svc.cluster.local.:443/%41#x\nshop/product",
    b"url\n[::1]:8080/?\n",
    b"url\nu[::80/?\n",
    b"prefix\nproduct.web/a%2Fb\nweb/product",
    b"tag\np:1\nproduct",
    b"policy\npages\n",
    b"all\n\nproduct.shop.svc",
];

const NAMESPACE: &str = "shop";

/// An answer that is kept for a URL as a caller wrote it.
fn kept(host: &str, port: u16, path: &str, query: Option<&str>) -> Option<Entry> {
    let headers = HeaderMap::new();
    let authority = if port == 80 { host.to_owned() } else { format!("{host}:{port}") };
    let parts = key::Parts {
        class: key::Class::Get,
        scope: "s",
        scheme: "http",
        authority: &authority,
        path,
        query,
        headers: &headers,
        notable: Notable::default(),
        identity: None,
    };
    let text = key::text(&parts, &CacheKeyRules::default(), None).ok()?;
    let draft = Draft {
        key: Key::new(&text),
        selector: b"",
        tags: &[],
        status: StatusCode::OK,
        fields: &[],
        case: None,
        times: Times::default(),
        extent: None,
        flags: 0,
    };
    Entry::head(&draft, 0)
}

fn is_meant(meaning: &Meaning, entry: &Entry) -> bool {
    let meant = meaning.may_mean(entry.key_text()) && meaning.means(entry);
    assert!(!meant || meaning.wider().means(entry), "what is written down of it is at least as much");
    meant
}

/// A purge of a URL is for what is kept of that URL under each name of its service, and for no other path.
fn of_url(url: &Url, purge: &Purge, prefix: bool) {
    let scene = Scene::of(&Snapshot::default(), NAMESPACE);
    let tail = if prefix {
        Tail::Begins(url.path.as_bytes().into())
    } else {
        Tail::of_url(url, CacheKeyRules::default())
    };
    let meaning = Meaning::of_url(url, tail, purge.service.clone(), &scene);
    let of_service = purge.service.is_none() || purge.service == url.service;
    let mut hosts = vec![url.host.to_string()];
    if let Some(service) = &url.service {
        hosts.push(format!("{}.{}.svc.cluster.local", service.name, service.namespace));
        hosts.push(format!("{}.{}", service.name, service.namespace).to_ascii_uppercase());
    }
    let query = url.query.as_deref();
    for host in hosts {
        if let Some(entry) = kept(&host, url.port, &url.path, query) {
            assert_eq!(
                is_meant(&meaning, &entry),
                of_service,
                "{purge}: {}",
                entry.key_text().escape_ascii()
            );
        }
    }
    let longer = format!("{}x", url.path);
    if let Some(entry) = kept(&url.host, url.port, &longer, query) {
        assert_eq!(is_meant(&meaning, &entry), prefix && of_service, "{purge} and {longer}");
    }
    if let Some(entry) = kept("elsewhere.other", url.port, &url.path, query) {
        let same =
            url.service.as_ref().is_some_and(|own| *own.name == *"elsewhere" && *own.namespace == *"other");
        assert!(same || !is_meant(&meaning, &entry), "{purge} is for another host");
    }
    let port = url.port ^ 1;
    if let Some(entry) = kept(&url.host, port, &url.path, query) {
        assert!(!is_meant(&meaning, &entry), "{purge} is for another port");
    }
}

/// What is read is told in one line, and whoever is told reads the same.
pub(crate) fn purge(bytes: &[u8]) {
    let (kind, rest) = first_line(bytes);
    let (text, service) = first_line(rest);
    let kind = Kind::NAMED.into_iter().find(|(name, _)| name.as_bytes() == kind);
    let (Some((name, kind)), Ok(text), Ok(service)) =
        (kind, std::str::from_utf8(text), std::str::from_utf8(service))
    else {
        return;
    };
    let Ok(purge) = Purge::read(kind, text, service, false, NAMESPACE) else { return };
    let line = purge.to_string();
    assert!(line.starts_with(name) && !line.chars().any(char::is_control), "{line:?}");
    let (_, told) = purge.text();
    let service = purge.service.as_ref().map(ToString::to_string).unwrap_or_default();
    assert_eq!(Purge::read(kind, &told, &service, false, NAMESPACE).as_ref(), Ok(&purge), "{told}");
    assert_eq!(Purge::from_wire(&purge.to_wire(), NAMESPACE), Ok(Some(purge.clone())));
    match &purge.what {
        What::Url(url) => of_url(url, &purge, false),
        What::Prefix(url) => of_url(url, &purge, true),
        What::All | What::Tag(_) | What::Policy(_) => {}
    }
}
