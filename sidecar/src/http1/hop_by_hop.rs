//! Fields that are for the next hop only (RFC 9110 section 7.6.1): taken out before a message goes on.

use crate::notable::Notable;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use smallvec::SmallVec;

/// Fields with a meaning to one connection, named in `Connection` or not.
static ALWAYS: [HeaderName; 5] = [
    header::TRANSFER_ENCODING,
    header::PROXY_AUTHORIZATION,
    header::PROXY_AUTHENTICATE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];

/// Removes what must not go beyond this hop, what `Connection` names included. `TE: trailers` stays, since trailers are
/// passed on. With `keep_upgrade` an `Upgrade` that `Connection` asks for stays as well; the codec then names it again.
pub(crate) fn strip_hop_by_hop(headers: &mut HeaderMap, keep_upgrade: bool) {
    if !Notable::of(headers).has(Notable::HOP) {
        return;
    }
    let mut upgrade = false;
    let mut named = SmallVec::<[HeaderName; 4]>::new();
    for value in headers.get_all(header::CONNECTION) {
        for option in value.as_bytes().split(|byte| *byte == b',') {
            let option = option.trim_ascii();
            if option.eq_ignore_ascii_case(b"upgrade") {
                upgrade = keep_upgrade;
            } else if !option.is_empty()
                && !option.eq_ignore_ascii_case(b"close")
                && !option.eq_ignore_ascii_case(b"keep-alive")
                && let Ok(name) = HeaderName::from_bytes(option)
                && !is_end_to_end(&name)
            {
                named.push(name);
            }
        }
    }
    headers.remove(header::CONNECTION);
    for name in named {
        headers.remove(name);
    }
    for name in &ALWAYS {
        headers.remove(name);
    }
    strip_te(headers);
    // Two servers that disagree about h2c let requests past whatever stands between them: never pass it on.
    let h2c = |value: &HeaderValue| value.as_bytes().to_ascii_lowercase().starts_with(b"h2c");
    if headers.contains_key(header::UPGRADE) && (!upgrade || headers.get_all(header::UPGRADE).iter().any(h2c))
    {
        headers.remove(header::UPGRADE);
        headers.remove("http2-settings");
    }
}

/// `Connection` must not name these (RFC 9110 section 7.6.1): it would make a proxy change what the message means.
/// `TE` is dealt with by itself.
fn is_end_to_end(name: &HeaderName) -> bool {
    [header::HOST, header::CONTENT_LENGTH, header::CACHE_CONTROL, header::AUTHORIZATION, header::TE]
        .contains(name)
}

fn strip_te(headers: &mut HeaderMap) {
    let Some(first) = headers.get(header::TE) else { return };
    if first == "trailers" && headers.get_all(header::TE).iter().nth(1).is_none() {
        return;
    }
    let trailers = headers.get_all(header::TE).iter().any(|value| {
        value.as_bytes().split(|byte| *byte == b',').any(|coding| {
            let coding = coding.split(|byte| *byte == b';').next().unwrap_or_default();
            coding.trim_ascii().eq_ignore_ascii_case(b"trailers")
        })
    });
    if trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    } else {
        headers.remove(header::TE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stripped(fields: &[(&'static str, &'static str)], keep_upgrade: bool) -> Vec<(String, String)> {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_static(value));
        }
        strip_hop_by_hop(&mut headers, keep_upgrade);
        let text = |value: &HeaderValue| value.to_str().unwrap().to_owned();
        let mut left: Vec<_> = headers.iter().map(|(name, value)| (name.to_string(), text(value))).collect();
        left.sort();
        left
    }

    fn one(name: &str, value: &str) -> Vec<(String, String)> {
        vec![(name.to_owned(), value.to_owned())]
    }

    #[test]
    fn hop_by_hop_fields_and_those_connection_names_go() {
        let fields = [
            ("connection", "close, X-Mine"),
            ("connection", "x-other"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "keep-alive"),
            ("transfer-encoding", "chunked"),
            ("x-mine", "1"),
            ("x-other", "1"),
            ("x-kept", "1"),
        ];
        assert_eq!(stripped(&fields, false), one("x-kept", "1"));
    }

    #[test]
    fn connection_cannot_remove_what_everyone_must_see() {
        assert_eq!(stripped(&[("connection", "host, close"), ("host", "a")], false), one("host", "a"));
    }

    #[test]
    fn only_te_trailers_goes_on() {
        assert_eq!(
            stripped(&[("te", "gzip, trailers;q=1"), ("connection", "TE")], false),
            one("te", "trailers")
        );
        assert_eq!(stripped(&[("te", "gzip")], false), []);
    }

    #[test]
    fn an_upgrade_stays_only_when_asked_for_and_never_h2c() {
        let websocket = [("connection", "Upgrade"), ("upgrade", "websocket")];
        assert_eq!(stripped(&websocket, true), one("upgrade", "websocket"));
        assert_eq!(stripped(&websocket, false), []);
        assert_eq!(stripped(&[("upgrade", "websocket")], true), []);
        let h2c = [("connection", "upgrade, http2-settings"), ("upgrade", "h2c"), ("http2-settings", "AA")];
        assert_eq!(stripped(&h2c, true), []);
    }
}
