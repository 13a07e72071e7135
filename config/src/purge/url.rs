//! The URL of a purge, in the normal form of keys.

use super::{Invalid, invalid};
use crate::{identity::ServiceName, matching::normalize_path, snapshot::Snapshot};
use std::{fmt, net::Ipv6Addr};

/// A URL, or the beginning of some.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Url {
    /// In small letters.
    pub host: Box<str>,
    /// 80 or 443 if it was not written.
    pub port: u16,
    /// The service that the host names, if a service can have that name.
    pub service: Option<ServiceName>,
    /// In normal form.
    pub path: String,
    /// As it was written.
    pub query: Option<String>,
}

impl Url {
    /// Reads a whole URL. The scheme only says which port goes without saying: 80, or 443 for https. A host without a namespace is in `namespace`.
    pub(super) fn read(text: &str, namespace: &str) -> Result<Self, Invalid> {
        let (authority, path, query) = split(text)?;
        Self::of(text, authority, path, query, namespace)
    }

    /// Reads the beginning of URLs: a host and as much of a path as there is.
    pub(super) fn read_prefix(text: &str, namespace: &str) -> Result<Self, Invalid> {
        let (authority, path, query) = split(text)?;
        if query.is_some() {
            return invalid(format!(
                "`{}` goes beyond the path: a prefix ends in the path; purge the URL itself instead",
                shown(text)
            ));
        }
        if path.ends_with('*') {
            return invalid(format!(
                "`{}` ends with `*`: a prefix is the beginning of URLs as it stands; leave the `*` away, or write \
                 %2A if the path has one",
                shown(text)
            ));
        }
        Self::of(text, authority, path, query, namespace)
    }

    fn of(
        text: &str,
        (default_port, authority): (u16, &str),
        path: &str,
        query: Option<&str>,
        namespace: &str,
    ) -> Result<Self, Invalid> {
        let wrong = |why: &str| {
            Invalid(format!("`{}` {why}; expected for example http://product:8080/products", shown(text)))
        };
        if authority.contains('@') {
            return Err(wrong("holds a user name or password"));
        }
        let (host, port) =
            host_and_port(authority).ok_or_else(|| wrong("has a port that is no number up to 65535"))?;
        if host.is_empty() {
            return Err(wrong("has no host"));
        }
        if !is_host(host) {
            return Err(wrong("has a host that no call can have"));
        }
        let path = normalize_path(path).map_err(|why| wrong(&format!("has no valid path ({why})")))?;
        Ok(Self {
            host: host.to_ascii_lowercase().into(),
            port: port.unwrap_or(default_port),
            service: Snapshot::host_candidates(host, namespace),
            path: path.into_owned(),
            query: query.map(str::to_owned),
        })
    }
}

impl Url {
    /// The host, if it can be that of a service whose namespace goes without saying.
    pub fn bare_host(&self) -> Option<&str> {
        let host = self.host.strip_suffix('.').unwrap_or(&self.host);
        (!host.contains('.') && Snapshot::host_candidates(host, "any").is_some()).then_some(host)
    }

    /// Says which service it is about, whoever calls it.
    pub fn set_service(&mut self, service: ServiceName) {
        self.host = format!("{}.{}", service.name, service.namespace).into();
        self.service = Some(service);
    }
}

/// A name, or an IPv6 address in brackets.
fn is_host(host: &str) -> bool {
    match host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(address) => address.parse::<Ipv6Addr>().is_ok(),
        None => host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte)),
    }
}

/// Host and port of `host`, `host:port`, `[v6]` and `[v6]:port`; `None` if the port is no number.
fn host_and_port(authority: &str) -> Option<(&str, Option<u16>)> {
    let behind = authority.rfind(']').map_or(0, |at| at + 1);
    let Some(colon) = authority[behind..].rfind(':') else { return Some((authority, None)) };
    let (host, port) = authority.split_at(behind + colon);
    Some((host, Some(port[1..].parse().ok()?)))
}

/// Default port and authority, path, and query.
type Pieces<'t> = ((u16, &'t str), &'t str, Option<&'t str>);

fn split(text: &str) -> Result<Pieces<'_>, Invalid> {
    if text.is_empty() {
        return invalid("no URL is given; expected for example http://product:8080/products");
    }
    if text.contains(|c: char| c.is_control() || c.is_whitespace()) {
        return invalid(format!("`{}` is no URL: it has a blank in it; write %20", shown(text)));
    }
    // What is behind `#` never leaves the client.
    let text = text.split('#').next().unwrap_or_default();
    let at = text.find(['/', '?']).unwrap_or(text.len());
    let (port, rest) = match text.split_once("://") {
        Some((scheme, rest)) if scheme.len() < at => match scheme.to_ascii_lowercase().as_str() {
            "http" => (80, rest),
            "https" => (443, rest),
            _ => return invalid(format!("`{}` is not an http URL", shown(text))),
        },
        _ => (80, text),
    };
    let (rest, query) = rest.split_once('?').map_or((rest, None), |(rest, query)| (rest, Some(query)));
    let at = rest.find('/').unwrap_or(rest.len());
    Ok(((port, &rest[..at]), &rest[at..], query))
}

/// What was written, short enough and without anything that moves a terminal's cursor.
fn shown(text: &str) -> String {
    text.chars().take(200).flat_map(char::escape_debug).collect()
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}", self.host)?;
        if self.port != 80 {
            write!(f, ":{}", self.port)?;
        }
        f.write_str(&self.path)?;
        match &self.query {
            Some(query) => write!(f, "?{query}"),
            None => Ok(()),
        }
    }
}
