//! Which service a host name means.

/// The longest host name there is.
pub(super) const LONGEST: usize = 253;

/// Namespace and name of the service that a caller in `caller_namespace` means by `host`, written into `lower` if the
/// host has capital letters.
pub(super) fn resolve<'a>(
    host: &'a str,
    caller_namespace: &'a str,
    lower: &'a mut [u8; LONGEST],
) -> Option<(&'a str, &'a str)> {
    let host = host.strip_suffix('.').unwrap_or(host);
    if host.is_empty() || host.len() > LONGEST {
        return None;
    }
    let host = if host.bytes().any(|b| b.is_ascii_uppercase()) {
        let lower = &mut lower[..host.len()];
        lower.copy_from_slice(host.as_bytes());
        lower.make_ascii_lowercase();
        std::str::from_utf8(lower).ok()?
    } else {
        host
    };
    let full = host.strip_suffix(".svc.cluster.local").or_else(|| host.strip_suffix(".svc"));
    // `name.svc` is a service in a namespace called `svc`.
    let host = full.filter(|short| short.contains('.')).unwrap_or(host);
    let (name, namespace) = match host.split_once('.') {
        Some((name, namespace)) => (name, namespace),
        // Every machine calls itself so.
        None if host == "localhost" => return None,
        None => (host, caller_namespace),
    };
    (is_label(name) && is_label(namespace)).then_some((namespace, name))
}

/// True for what can be a name in Kubernetes: not for IP addresses (of either family) and longer domain names.
fn is_label(text: &str) -> bool {
    (1..=63).contains(&text.len())
        && text.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'))
        && !text.starts_with('-')
        && !text.ends_with('-')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::Snapshot;
    use rstest::rstest;

    #[rstest]
    #[case("cart", Some("here/cart"))]
    #[case("CART.", Some("here/cart"))]
    #[case("cart.shop", Some("shop/cart"))]
    #[case("cart.shop.svc", Some("shop/cart"))]
    #[case("cart.shop.svc.cluster.local", Some("shop/cart"))]
    #[case("cart.svc", Some("svc/cart"))]
    #[case("cart.svc.cluster.local", None)]
    #[case("cart.shop.svc.example.com", None)]
    #[case("www.example.com", None)]
    #[case("10.0.0.7", None)]
    #[case("[::1]", None)]
    #[case("::1", None)]
    #[case("localhost", None)]
    #[case("", None)]
    #[case(".", None)]
    #[case("..", None)]
    #[case("-cart", None)]
    #[case("ca rt", None)]
    #[case("caf\u{e9}", None)]
    fn a_host_names_at_most_one_service(#[case] host: &str, #[case] service: Option<&str>) {
        let candidate = Snapshot::host_candidates(host, "here").map(|name| name.to_string());
        assert_eq!(candidate.as_deref(), service);
    }

    #[test]
    fn a_host_that_is_too_long_is_none() {
        assert_eq!(resolve(&"a".repeat(300), "here", &mut [0; LONGEST]), None);
    }
}
