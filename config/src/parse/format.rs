//! What texts of each format look like: hosts, header names, durations and the like.

use crate::document::duration::PolicyDuration;
use crate::document::size::ByteSize;
use crate::identity::SpiffeId;
use std::net::{IpAddr, SocketAddr};

/// Why a text is not of its format: what was expected, and the cure if there is a better one than writing that.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Unfit {
    pub(crate) expected: String,
    pub(crate) cure: String,
}

fn unfit(expected: impl Into<String>) -> Result<(), Unfit> {
    Err(Unfit { expected: expected.into(), cure: String::new() })
}

fn unfit_with_cure(expected: &str, cure: impl Into<String>) -> Result<(), Unfit> {
    Err(Unfit { expected: expected.to_owned(), cure: cure.into() })
}

/// A pattern for a format, for editors: it may let more pass than [`check`] does, never less.
pub(crate) fn pattern(format: &str) -> Option<&'static str> {
    Some(match format {
        "object-name" | "secret-name" => "^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$",
        "dns-label" => "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$",
        "header-name" | "token" => "^[A-Za-z0-9!#$%&'*+\\-.^_`|~]+$",
        "hostname" => "^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$",
        "hostname-or-wildcard" => r"^(\*\.)?[a-z0-9]([-.a-z0-9]*[a-z0-9])?$",
        "absolute-path" | "path-pattern" => "^/[^?#]*$",
        "socket-address" | "host-port" => ":[0-9]{1,5}$",
        "identity" => "^(spiffe://)?[^ ]+/[^ ]+$",
        "trust-domain" => "^[a-z0-9._-]+$",
        "http-method" => "^[^a-z ]+$",
        "grpc-service" => "^[A-Za-z0-9_.]+$",
        "grpc-method" => "^[A-Za-z0-9_]+$",
        "cors-origin" => r"^(\*|[a-z][a-z0-9+.-]*://.+)$",
        "date-or-time" => "^[0-9]{4}-[0-9]{2}-[0-9]{2}(T[0-9:]{8}Z)?$",
        _ => return None,
    })
}

/// Checks a text against a format of the schemas. Formats that are not ours pass.
pub(crate) fn check(format: &str, text: &str) -> Result<(), Unfit> {
    match format {
        "duration-gep2257" => duration(text),
        "byte-size" => match text.parse::<ByteSize>() {
            Ok(_) => Ok(()),
            Err(reason) => unfit(format!("a size such as `64KiB`: {reason}")),
        },
        "object-name" => object_name(text),
        // What somebody took for the place of the secret itself is not shown again.
        "secret-name" => object_name(text).map_err(|_| Unfit {
            expected: format!("the name of a secret: {OBJECT_NAME}"),
            cure:
                "name the folder in `--secrets-dir` that holds the files; passwords do not belong into policy"
                    .to_owned(),
        }),
        "dns-label" => dns_label(text),
        "header-name" => header_name(text),
        "token" if !text.is_empty() && text.bytes().all(token_byte) => Ok(()),
        "token" => unfit("a name of letters, digits and !#$%&'*+-.^_`|~"),
        "header-value" => header_value(text),
        "hostname" => hostname(text, false),
        "hostname-or-wildcard" => hostname(text, true),
        "absolute-path" => absolute_path(text),
        "path-pattern" => {
            absolute_path(text.strip_suffix("/*").map_or(text, |p| if p.is_empty() { "/" } else { p }))
        }
        "ip" if text.parse::<IpAddr>().is_ok() => Ok(()),
        "ip" => unfit("an IP address such as `10.0.0.7`"),
        "socket-address" => socket_address(text),
        "identity" => identity(text),
        "trust-domain" => trust_domain(text),
        "http-method" if !text.is_empty() && text.len() <= 64 && text.bytes().all(token_byte) => {
            if text.bytes().any(|b| b.is_ascii_lowercase()) {
                return unfit_with_cure(
                    "a method in capital letters, as requests carry it",
                    format!("write `{}`", text.to_ascii_uppercase()),
                );
            }
            Ok(())
        }
        "http-method" => unfit("an HTTP method such as `GET`"),
        "app-protocol" => app_protocol(text),
        "grpc-service" if grpc_service(text) => Ok(()),
        "grpc-service" => unfit("a gRPC service with its package, such as `shop.v1.Inventory`"),
        "grpc-method" if grpc_method(text) => Ok(()),
        "grpc-method" => unfit("a gRPC method such as `Reserve`"),
        "cors-origin" => cors_origin(text),
        "date-or-time" if date_or_time(text).is_some() => Ok(()),
        "date-or-time" => unfit("a date such as `2026-12-31`, or a time such as `2026-12-31T12:00:00Z`"),
        "host-port" => host_port(text),
        _ => Ok(()),
    }
}

fn duration(text: &str) -> Result<(), Unfit> {
    let Err(reason) = text.parse::<PolicyDuration>() else { return Ok(()) };
    let expected = format!("a duration such as `250ms`, `10s` or `1h30m`: {reason}");
    let cure = if !text.is_empty() && text.len() < 6 && text.bytes().all(|b| b.is_ascii_digit()) {
        format!("write `{text}s` if seconds are meant")
    } else if let Some(days) =
        text.strip_suffix('d').and_then(|n| n.parse::<u32>().ok()).filter(|n| *n < 4000)
    {
        format!("write `{}h`", days * 24)
    } else if let Ok(seconds) = text.strip_suffix('s').unwrap_or("x").parse::<f64>() {
        if (0.001..99.0).contains(&seconds) {
            format!("write `{}ms`", (seconds * 1000.0).round())
        } else {
            String::new()
        }
    } else {
        String::new()
    };
    Err(Unfit { expected, cure })
}

const fn token_byte(byte: u8) -> bool {
    matches!(byte, b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'!' | b'#' | b'$' | b'%' | b'&' | b'\'' | b'*' | b'+'
        | b'-' | b'.' | b'^' | b'_' | b'`' | b'|' | b'~')
}

fn header_name(text: &str) -> Result<(), Unfit> {
    if !text.is_empty() && text.bytes().all(token_byte) {
        return Ok(());
    }
    if text.starts_with(':') {
        return unfit_with_cure(
            "a header name, not a pseudo-header",
            "match the path, method or host by their own fields",
        );
    }
    unfit("a header name: letters, digits and !#$%&'*+-.^_`|~")
}

fn header_value(text: &str) -> Result<(), Unfit> {
    if http::HeaderValue::from_str(text).is_err() {
        return unfit("a header value on one line, without control characters");
    }
    if text.starts_with([' ', '\t']) || text.ends_with([' ', '\t']) {
        return unfit_with_cure(
            "a header value without spaces around it",
            "take the spaces away: they are not carried",
        );
    }
    Ok(())
}

fn label(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 63
        && text.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'))
        && !text.starts_with('-')
        && !text.ends_with('-')
}

fn lower_case_cure(text: &str, fits: impl Fn(&str) -> bool) -> String {
    let better = text.to_ascii_lowercase().replace(['_', ' '], "-");
    if fits(&better) { format!("write `{better}`") } else { String::new() }
}

fn dns_label(text: &str) -> Result<(), Unfit> {
    if label(text) {
        return Ok(());
    }
    unfit_with_cure(
        "at most 63 small letters, digits and `-`, with a letter or digit at both ends",
        lower_case_cure(text, label),
    )
}

const OBJECT_NAME: &str = "small letters, digits, `-` and `.`, with a letter or digit at both ends";

fn object_name(text: &str) -> Result<(), Unfit> {
    let fits = |text: &str| text.len() <= 253 && text.split('.').all(label);
    if fits(text) {
        return Ok(());
    }
    unfit_with_cure(OBJECT_NAME, lower_case_cure(text, fits))
}

fn hostname(text: &str, wildcard: bool) -> Result<(), Unfit> {
    let plain = if wildcard { text.strip_prefix("*.").unwrap_or(text) } else { text };
    if plain.parse::<IpAddr>().is_ok() {
        return unfit("a host name, not an IP address");
    }
    if plain.len() <= 253 && plain.split('.').all(label) {
        return Ok(());
    }
    if let Some((host, port)) = plain.rsplit_once(':')
        && port.bytes().all(|b| b.is_ascii_digit())
        && host.split('.').all(label)
    {
        return unfit_with_cure("a host name without a port", format!("write `{host}`"));
    }
    let expected = if wildcard {
        "a host name in small letters, or one with `*.` in place of its first label"
    } else {
        "a host name in small letters, without a wildcard"
    };
    let lower = plain.to_ascii_lowercase();
    let cure = if lower.split('.').all(label) { format!("write `{lower}`") } else { String::new() };
    unfit_with_cure(expected, cure)
}

/// A path in normal form, as the Gateway API asks of `Exact` and `PathPrefix`.
fn absolute_path(text: &str) -> Result<(), Unfit> {
    if !text.starts_with('/') {
        let cure = if text.is_empty() || text.contains("://") { "/".to_owned() } else { format!("/{text}") };
        return unfit_with_cure("a path that starts with `/`", format!("write `{cure}`"));
    }
    for refused in ["//", "/./", "/../", "%2f", "%2F", "#", "?"] {
        if text.contains(refused) {
            return unfit(format!("a path in normal form, without `{refused}`"));
        }
    }
    if text.ends_with("/..") || text.ends_with("/.") {
        return unfit("a path in normal form, which does not end with `/.` or `/..`");
    }
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        let fits = match byte {
            b'%' => {
                rest.next().is_some_and(|b| b.is_ascii_hexdigit())
                    && rest.next().is_some_and(|b| b.is_ascii_hexdigit())
            }
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' => true,
            _ => b"-/._~!$&'()*+,;=:@".contains(&byte),
        };
        if !fits {
            return unfit_with_cure(
                "a path of letters, digits and -/._~!$&'()*+,;=:@",
                "write other characters as % and two hexadecimal digits",
            );
        }
    }
    Ok(())
}

fn socket_address(text: &str) -> Result<(), Unfit> {
    match text.parse::<SocketAddr>() {
        Ok(address) if address.port() != 0 => Ok(()),
        Ok(_) => unfit("an address with a port other than 0"),
        Err(_) if text.parse::<IpAddr>().is_ok() => {
            unfit("an IP address with a port, such as `127.0.0.1:5432` or `[::1]:5432`")
        }
        Err(_) => match text.strip_prefix("localhost:") {
            Some(port) => unfit_with_cure("an IP address with a port", format!("write `127.0.0.1:{port}`")),
            None => unfit("an IP address with a port, such as `127.0.0.1:5432` or `[::1]:5432`"),
        },
    }
}

fn identity(text: &str) -> Result<(), Unfit> {
    let short_form = text
        .split_once('/')
        .is_some_and(|(namespace, account)| label(namespace) && object_name(account).is_ok());
    if short_form || text.parse::<SpiffeId>().is_ok() {
        return Ok(());
    }
    unfit(
        "an identity `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`, or `<namespace>/<service account>`",
    )
}

fn trust_domain(text: &str) -> Result<(), Unfit> {
    if format!("spiffe://{text}/ns/a/sa/b").parse::<SpiffeId>().is_ok() {
        return Ok(());
    }
    if let Some(domain) = text.strip_prefix("spiffe://") {
        return unfit_with_cure("a trust domain without a scheme", format!("write `{domain}`"));
    }
    unfit("a trust domain such as `weft.local`: small letters, digits, `-`, `.` and `_`")
}

fn app_protocol(text: &str) -> Result<(), Unfit> {
    const KNOWN: [&str; 12] = [
        "http",
        "http1",
        "http2",
        "h2c",
        "grpc",
        "tcp",
        "https",
        "tls",
        "kubernetes.io/h2c",
        "kubernetes.io/ws",
        "kubernetes.io/wss",
        "auto",
    ];
    if KNOWN.contains(&text) {
        return Ok(());
    }
    unfit_with_cure(
        "`http`, `http2`, `grpc`, `tcp`, `tls`, `kubernetes.io/h2c` or `kubernetes.io/ws`",
        super::suggest(text, KNOWN),
    )
}

/// True for a gRPC service name with its package.
pub(crate) fn grpc_service(text: &str) -> bool {
    text.strip_prefix('.').unwrap_or(text).split('.').all(grpc_method)
}

/// True for a gRPC method name.
pub(crate) fn grpc_method(text: &str) -> bool {
    !text.is_empty()
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
        && !text.as_bytes()[0].is_ascii_digit()
}

fn cors_origin(text: &str) -> Result<(), Unfit> {
    const EXPECTED: &str =
        "an origin such as `https://shop.example.com` or `https://*.example.com`, or `*` alone";
    if text == "*" {
        return Ok(());
    }
    let Some((scheme, rest)) = text.split_once("://") else {
        let cure =
            if hostname(text, true).is_ok() { format!("write `https://{text}`") } else { String::new() };
        return unfit_with_cure(EXPECTED, cure);
    };
    let scheme_ok = scheme.starts_with(|c: char| c.is_ascii_lowercase())
        && scheme.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'+' | b'-' | b'.'));
    let (host, port) = match rest.rsplit_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (rest, None),
    };
    let port_ok = port.is_none_or(|port| port.parse::<u16>().is_ok_and(|p| p > 0));
    let host_ok = host == "*" || hostname(host, true).is_ok() || host.parse::<IpAddr>().is_ok();
    if scheme_ok && host_ok && port_ok { Ok(()) } else { unfit(EXPECTED) }
}

fn host_port(text: &str) -> Result<(), Unfit> {
    let fits = text.rsplit_once(':').is_some_and(|(host, port)| {
        (hostname(host, false).is_ok()
            || host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>().is_ok())
            && port.parse::<u16>().is_ok_and(|port| port > 0)
    });
    const EXPECTED: &str = "a host and a port, such as `redis.shop:6379`";
    if fits {
        return Ok(());
    }
    let (scheme, rest) = text.split_once("://").map_or(("", text), |(scheme, rest)| (scheme, rest));
    if rest.contains('@') {
        return unfit_with_cure(
            EXPECTED,
            "take user name and password out of it: policy only names a secret",
        );
    }
    let plain = rest.split('/').next().unwrap_or_default();
    match scheme {
        "rediss" if host_port(plain).is_ok() => {
            unfit_with_cure(EXPECTED, format!("write `{plain}`, and `tls: {{}}` beside it"))
        }
        "redis" if host_port(plain).is_ok() => unfit_with_cure(EXPECTED, format!("write `{plain}`")),
        _ => unfit(EXPECTED),
    }
}

/// Whether a text that does not fit may be a secret, which must not be told to those who only read what is wrong.
pub(crate) fn is_private(format: &str, text: &str) -> bool {
    match format {
        "secret-name" => true,
        "host-port" => text.contains('@'),
        _ => false,
    }
}

/// A date or a time in UTC as numbers that compare as the times do.
pub(crate) fn date_or_time(text: &str) -> Option<(u16, u8, u8, u8, u8, u8)> {
    let (date, time) = match text.split_once('T') {
        Some((date, time)) => (date, Some(time.strip_suffix('Z')?)),
        None => (text, None),
    };
    let number = |part: Option<&str>, digits: usize| -> Option<u16> {
        part.filter(|p| p.len() == digits && p.bytes().all(|b| b.is_ascii_digit()))?.parse().ok()
    };
    let mut parts = date.split('-');
    let (year, month, day) = (number(parts.next(), 4)?, number(parts.next(), 2)?, number(parts.next(), 2)?);
    let leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
    let days = match month {
        1 | 3 | 5 | 7 | 8 | 10 | 12 => 31,
        4 | 6 | 9 | 11 => 30,
        2 if leap => 29,
        2 => 28,
        _ => return None,
    };
    if parts.next().is_some() || day == 0 || day > days {
        return None;
    }
    let (hour, minute, second) = match time {
        None => (0, 0, 0),
        Some(time) => {
            let mut parts = time.split(':');
            let found = (number(parts.next(), 2)?, number(parts.next(), 2)?, number(parts.next(), 2)?);
            if parts.next().is_some() || found.0 > 23 || found.1 > 59 || found.2 > 59 {
                return None;
            }
            found
        }
    };
    Some((year, month as u8, day as u8, hour as u8, minute as u8, second as u8))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn fits(format: &str, texts: &[&str]) {
        for text in texts {
            assert_eq!(check(format, text), Ok(()), "{format}: `{text}`");
        }
    }

    fn fits_not(format: &str, texts: &[&str]) {
        for text in texts {
            assert!(check(format, text).is_err(), "{format}: `{text}`");
        }
    }

    fn cure(format: &str, text: &str) -> String {
        check(format, text).expect_err("unfit").cure
    }

    #[test]
    fn names_are_kubernetes_names() {
        fits("dns-label", &["a", "product-v1", "0"]);
        fits_not("dns-label", &["", "-a", "a-", "A", "a.b", "a_b", &"a".repeat(64)]);
        fits("object-name", &["a.b-c", "product"]);
        fits_not("object-name", &["", "a..b", ".a", "a.", "A"]);
        assert_eq!(cure("dns-label", "Product_V1"), "write `product-v1`");
    }

    #[test]
    fn hosts_have_no_port_and_only_a_leading_wildcard() {
        fits("hostname-or-wildcard", &["example.com", "*.example.com", "localhost"]);
        fits_not(
            "hostname-or-wildcard",
            &["*", "a.*.com", "*example.com", "1.2.3.4", "a:80", "UPPER.com", ""],
        );
        fits_not("hostname", &["*.example.com"]);
        assert_eq!(cure("hostname", "example.com:8080"), "write `example.com`");
        assert_eq!(cure("hostname", "Example.com"), "write `example.com`");
    }

    #[test]
    fn paths_are_in_normal_form() {
        fits("absolute-path", &["/", "/a/b", "/a%20b", "/a;b=c", "/a/", "/.well-known"]);
        fits_not(
            "absolute-path",
            &[
                "", "a", "//", "/a//b", "/./a", "/a/..", "/a/.", "/a%2fb", "/a#b", "/a?b", "/a%2", "/ä",
                "/a b",
            ],
        );
        fits("path-pattern", &["/*", "/a/*", "/a"]);
        assert_eq!(cure("absolute-path", "api"), "write `/api`");
    }

    #[test]
    fn identities_come_in_two_forms() {
        fits("identity", &["spiffe://weft.local/ns/shop/sa/cart", "shop/cart"]);
        fits_not("identity", &["cart", "spiffe://weft.local/cart", "shop/", "/cart", "shop/cart/x"]);
    }

    #[test]
    fn durations_tell_what_was_probably_meant() {
        assert_eq!(cure("duration-gep2257", "10"), "write `10s` if seconds are meant");
        assert_eq!(cure("duration-gep2257", "1d"), "write `24h`");
        assert_eq!(cure("duration-gep2257", "1.5s"), "write `1500ms`");
        assert_eq!(cure("duration-gep2257", "soon"), "");
    }

    #[test]
    fn other_formats_hold() {
        fits("socket-address", &["127.0.0.1:80", "[::1]:80"]);
        fits_not("socket-address", &["127.0.0.1", "127.0.0.1:0", "localhost:80", ":80"]);
        fits("cors-origin", &["*", "https://a.b", "https://*.a.b:8443", "http://10.0.0.1"]);
        fits_not("cors-origin", &["a.b", "https://", "https://a.b/", "https://a.b:0", "https://a.*.b"]);
        fits("header-value", &["a", "a b", "ü"]);
        fits_not("header-value", &["a\nb", " a", "a ", "\u{7}"]);
        fits_not("header-name", &["", "a b", ":path", "ä", "a:"]);
        fits("date-or-time", &["2024-02-29", "2026-12-31T23:59:59Z"]);
        fits_not(
            "date-or-time",
            &["2023-02-29", "2026-13-01", "26-1-1", "2026-12-31T24:00:00Z", "2026-12-31T1Z"],
        );
        fits("host-port", &["redis.shop:6379", "[::1]:1", "10.0.0.1:1"]);
        fits_not("host-port", &["redis", "redis:0", ":1", "redis:x", "redis://a:1", "a:b@c:1"]);
        assert_eq!(cure("host-port", "redis://a.b:1"), "write `a.b:1`");
        assert_eq!(cure("host-port", "rediss://a.b:1/0"), "write `a.b:1`, and `tls: {}` beside it");
        fits("secret-name", &["redis", "a.b-c"]);
        fits_not("secret-name", &["", "..", "a/b", "../a", "/etc", "a..b", "A", "."]);
        fits("http-method", &["GET", "PURGE"]);
        assert_eq!(cure("http-method", "get"), "write `GET`");
    }

    proptest! {
        #[test]
        fn what_fits_a_format_fits_its_pattern(text in "[a-zA-Z0-9*./:_-]{0,12}|/[a-z*/]{0,6}|GET|[a-z]{1,4}(://|/|:)[a-z0-9]{1,4}") {
            for format in ["object-name", "secret-name", "dns-label", "header-name", "token", "hostname", "hostname-or-wildcard",
                "absolute-path", "path-pattern", "socket-address", "host-port", "identity", "trust-domain", "http-method",
                "grpc-service", "grpc-method", "cors-origin", "date-or-time"]
            {
                let pattern = regex::Regex::new(pattern(format).expect("a pattern")).expect("a valid pattern");
                prop_assert!(check(format, &text).is_err() || pattern.is_match(&text), "{format}: `{text}`");
            }
        }

        #[test]
        fn no_text_panics(text in ".{0,40}", format in proptest::sample::select(vec![
            "token", "duration-gep2257", "byte-size", "object-name", "dns-label", "header-name", "header-value", "hostname",
            "hostname-or-wildcard", "absolute-path", "path-pattern", "ip", "socket-address", "identity",
            "trust-domain", "http-method", "app-protocol", "grpc-service", "grpc-method", "cors-origin",
            "date-or-time", "host-port", "secret-name",
        ])) {
            let _ = check(format, &text);
        }
    }
}
