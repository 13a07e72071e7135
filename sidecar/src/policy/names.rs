//! Resource names of the push stream, as types.

use std::fmt;
use weft_config::identity::ServiceName;

/// What a resource on the stream is.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum ResourceName {
    /// Mesh-wide settings.
    Mesh,
    /// The CA certificates that peers are checked against.
    Trust,
    /// A workload.
    Workload(ServiceName),
    /// What a service is compiled from.
    Service(ServiceName),
    /// Where a service is served.
    Endpoints(ServiceName),
}

impl ResourceName {
    /// Reads a name as it stands on the wire; `None` for what this version does not know.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('/');
        let kind = parts.next()?;
        let name = match (parts.next(), parts.next(), parts.next()) {
            (None, None, None) => None,
            (Some(namespace), Some(name), None) if is_segment(namespace) && is_segment(name) => {
                Some(ServiceName::new(namespace, name))
            }
            _ => return None,
        };
        match (kind, name) {
            ("mesh", None) => Some(Self::Mesh),
            ("trust", None) => Some(Self::Trust),
            ("workload", Some(name)) => Some(Self::Workload(name)),
            ("service", Some(name)) => Some(Self::Service(name)),
            ("endpoints", Some(name)) => Some(Self::Endpoints(name)),
            _ => None,
        }
    }
}

impl fmt::Display for ResourceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mesh => f.write_str("mesh"),
            Self::Trust => f.write_str("trust"),
            Self::Workload(name) => write!(f, "workload/{name}"),
            Self::Service(name) => write!(f, "service/{name}"),
            Self::Endpoints(name) => write!(f, "endpoints/{name}"),
        }
    }
}

/// True if this can be a service's name at all: what cannot is not asked for.
pub(super) fn is_valid(name: &ServiceName) -> bool {
    is_segment(&name.namespace) && is_segment(&name.name)
}

fn is_segment(text: &str) -> bool {
    (1..=253).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_survive_a_round_trip() {
        for text in ["mesh", "trust", "workload/shop/cart-0", "service/shop/cart", "endpoints/a/b"] {
            assert_eq!(ResourceName::parse(text).expect(text).to_string(), text);
        }
    }

    #[test]
    fn what_is_no_name_is_ignored() {
        for text in [
            "",
            "mesh/",
            "mesh/a/b",
            "service",
            "service/a",
            "service/a/b/c",
            "service//b",
            "x/a/b",
            "service/a/b c",
        ] {
            assert_eq!(ResourceName::parse(text), None, "{text}");
        }
    }
}
