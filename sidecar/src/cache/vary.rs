//! Which variant of a resource a request selects (RFC 9111 section 4.1).
//!
//! A stored response has a *selector*: one line for each request field that its `Vary` names, `name=value` or, where
//! the request had no such field, `name`. A request selects the response if it has the same fields in the same
//! canonical form. Forms are made alike only where that certainly changes no meaning; what cannot be read stays as it is,
//! and what is canonical can always be read, so the two never meet.

use http::{HeaderMap, HeaderName, HeaderValue, header};
use smallvec::SmallVec;

/// The request fields that a response depends on, sorted, each once.
pub(crate) type Names = SmallVec<[HeaderName; 4]>;

/// `Vary: *`, or something that is no list of names: no other request selects the response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unmatchable;

/// More fields than this make a response one request's.
const NAMES_MAX: usize = 32;

/// Members of a list that are brought into canonical form.
const MEMBERS_MAX: usize = 32;

/// What the response's `Vary` names.
pub(crate) fn names(response: &HeaderMap) -> Result<Names, Unmatchable> {
    let mut names = Names::new();
    for line in response.get_all(header::VARY) {
        for name in line.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
            if name.is_empty() {
                continue;
            }
            // `*` is a token, but no field has that name.
            let name = HeaderName::from_bytes(name).ok().filter(|name| name != "*").ok_or(Unmatchable)?;
            if !names.contains(&name) {
                names.push(name);
            }
        }
    }
    if names.len() > NAMES_MAX {
        return Err(Unmatchable);
    }
    names.sort_unstable_by(|a, b| a.as_str().cmp(b.as_str()));
    Ok(names)
}

/// Writes the selector of a request for a response that depends on these fields.
pub(crate) fn selector(names: &[HeaderName], request: &HeaderMap) -> Vec<u8> {
    let mut selector = Vec::with_capacity(names.len() * 32);
    let mut value = Value::new();
    for name in names {
        selector.extend_from_slice(name.as_str().as_bytes());
        if canonical(name.as_str(), request, &mut value) {
            selector.push(b'=');
            selector.extend_from_slice(&value);
        }
        selector.push(b'\n');
    }
    selector
}

/// The names of the fields that a selector is made of.
pub(crate) fn of_selector(selector: &[u8]) -> impl Iterator<Item = HeaderName> {
    selector.split(|byte| *byte == b'\n').filter_map(|line| {
        let end = line.iter().position(|byte| *byte == b'=').unwrap_or(line.len());
        HeaderName::from_bytes(&line[..end]).ok()
    })
}

/// Whether a request selects the response with this selector.
pub(crate) fn selects(selector: &[u8], request: &HeaderMap) -> bool {
    if selector.is_empty() {
        return true;
    }
    let mut value = Value::new();
    selector.split_inclusive(|byte| *byte == b'\n').all(|line| {
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        let equals = line.iter().position(|byte| *byte == b'=');
        let Ok(name) = std::str::from_utf8(&line[..equals.unwrap_or(line.len())]) else { return false };
        match (equals, canonical(name, request, &mut value)) {
            (Some(equals), true) => line[equals + 1..] == value[..],
            (None, false) => true,
            _ => false,
        }
    })
}

/// Room for one value without an allocation.
type Value = SmallVec<[u8; 128]>;

/// Writes the canonical form of a field; false if the request does not have it.
pub(super) fn canonical(name: &str, request: &HeaderMap, value: &mut Value) -> bool {
    value.clear();
    let lines = request.get_all(name);
    let mut each = lines.iter();
    let Some(first) = each.next() else { return false };
    let several = each.next().is_some();
    let read = match name {
        "accept-encoding" => codings(lines.iter(), value),
        "accept-language" => languages(lines.iter(), value),
        _ => None,
    };
    if read.is_some() {
        return true;
    }
    value.clear();
    if is_list(name) {
        joined_list(lines.iter(), value);
    } else if several {
        // HTTP/2 may cut cookies into several fields (RFC 9113 section 8.2.3).
        let between: &[u8] = if name == "cookie" { b"; " } else { b", " };
        for (at, line) in lines.iter().enumerate() {
            if at > 0 {
                value.extend_from_slice(between);
            }
            value.extend_from_slice(line.as_bytes().trim_ascii());
        }
    } else {
        value.extend_from_slice(first.as_bytes().trim_ascii());
    }
    true
}

/// Fields known to be lists whose members hold no commas but in quotes.
fn is_list(name: &str) -> bool {
    matches!(name, "accept" | "accept-charset" | "accept-encoding" | "accept-language" | "prefer" | "te")
}

/// All members with one comma and nothing else between them; blanks in quotes stay.
fn joined_list<'a>(lines: impl Iterator<Item = &'a HeaderValue>, value: &mut Value) {
    for line in lines {
        let (mut quoted, mut escaped) = (false, false);
        let mut member = 0;
        let bytes = line.as_bytes();
        for (at, byte) in bytes.iter().enumerate() {
            match byte {
                _ if escaped => escaped = false,
                b'\\' if quoted => escaped = true,
                b'"' => quoted = !quoted,
                b',' if !quoted => {
                    push_member(&bytes[member..at], value);
                    member = at + 1;
                }
                _ => {}
            }
        }
        push_member(&bytes[member..], value);
    }
}

fn push_member(member: &[u8], value: &mut Value) {
    let member = member.trim_ascii();
    if member.is_empty() {
        return;
    }
    if !value.is_empty() {
        value.push(b',');
    }
    value.extend_from_slice(member);
}

/// A member of a list with its weight in thousandths.
struct Weighted {
    name: SmallVec<[u8; 16]>,
    weight: u16,
}

/// `None` if anything is in it that is not understood.
fn weighted<'a>(lines: impl Iterator<Item = &'a HeaderValue>) -> Option<SmallVec<[Weighted; 8]>> {
    let mut members = SmallVec::<[Weighted; 8]>::new();
    for member in lines.flat_map(|line| line.as_bytes().split(|byte| *byte == b',')) {
        let mut parts = member.split(|byte| *byte == b';').map(<[u8]>::trim_ascii);
        let name = parts.next()?;
        if name.is_empty() && parts.next().is_none() {
            continue;
        }
        if !name.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'*' | b'_' | b'.'))
        {
            return None;
        }
        let weight = match parts.next() {
            Some(part) => weight(part)?,
            None => 1000,
        };
        let name: SmallVec<[u8; 16]> = name.to_ascii_lowercase().into_iter().collect();
        if name.is_empty()
            || parts.next().is_some()
            || members.len() == MEMBERS_MAX
            || members.iter().any(|other| other.name == name)
        {
            return None;
        }
        members.push(Weighted { name, weight });
    }
    Some(members)
}

/// `q=0.123` in thousandths (RFC 9110 section 12.4.2).
fn weight(part: &[u8]) -> Option<u16> {
    let [b'q' | b'Q', b'=', whole, fraction @ ..] = part else { return None };
    let digits = match fraction {
        [] => &[],
        [b'.', digits @ ..] if digits.len() <= 3 => digits,
        _ => return None,
    };
    let mut thousandths = match whole {
        b'0' => 0,
        b'1' => 1000,
        _ => return None,
    };
    for (digit, unit) in digits.iter().zip([100, 10, 1]) {
        thousandths += digit.is_ascii_digit().then(|| u16::from(digit - b'0') * unit)?;
    }
    (thousandths <= 1000).then_some(thousandths)
}

/// Writes a weight the way it is read, with no more digits than needed.
fn push_weight(weight: u16, value: &mut Value) {
    if weight == 1000 {
        return;
    }
    value.extend_from_slice(b";q=0");
    if weight > 0 {
        value.push(b'.');
        let mut rest = weight;
        for unit in [100, 10, 1] {
            if rest > 0 {
                value.push(b'0' + u8::try_from(rest / unit).unwrap_or(0));
                rest %= unit;
            }
        }
    }
}

/// `Accept-Encoding`: the order of codings has no meaning (RFC 9110 section 12.5.3), so they are sorted by name.
fn codings<'a>(lines: impl Iterator<Item = &'a HeaderValue>, value: &mut Value) -> Option<()> {
    let mut members = weighted(lines)?;
    for member in &mut members {
        // RFC 9110 sections 8.4.1.1 and 8.4.1.3.
        if matches!(&member.name[..], b"x-gzip" | b"x-compress") {
            member.name.drain(..2);
        }
    }
    members.sort_unstable_by(|a, b| (&a.name, a.weight).cmp(&(&b.name, b.weight)));
    push_all(&members, value);
    Some(())
}

/// `Accept-Language`: by weight; among equals the order stays, since some read it as a preference (section 12.5.4).
fn languages<'a>(lines: impl Iterator<Item = &'a HeaderValue>, value: &mut Value) -> Option<()> {
    let mut members = weighted(lines)?;
    members.sort_by_key(|member| 1000 - member.weight);
    push_all(&members, value);
    Some(())
}

fn push_all(members: &[Weighted], value: &mut Value) {
    for (at, member) in members.iter().enumerate() {
        if at > 0 {
            value.push(b',');
        }
        value.extend_from_slice(&member.name);
        push_weight(member.weight, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rstest::rstest;

    fn headers(fields: &[(&str, &str)]) -> HeaderMap {
        let field = |(name, value): &(&str, &str)| {
            (HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_str(value).unwrap())
        };
        fields.iter().map(field).collect()
    }

    fn form(name: &str, lines: &[&str]) -> Option<String> {
        let fields: Vec<_> = lines.iter().map(|line| (name, *line)).collect();
        let mut value = Value::new();
        canonical(name, &headers(&fields), &mut value).then(|| String::from_utf8(value.to_vec()).unwrap())
    }

    #[test]
    fn names_are_a_list_without_case_order_or_repetition() {
        let vary = |lines: &[&str]| {
            let fields: Vec<_> = lines.iter().map(|line| ("vary", *line)).collect();
            names(&headers(&fields)).map(|names| names.iter().map(|n| n.to_string()).collect::<Vec<_>>())
        };
        assert_eq!(vary(&[]), Ok(vec![]));
        assert_eq!(
            vary(&["Origin, Accept-Encoding,,", "origin"]),
            Ok(vec!["accept-encoding".into(), "origin".into()])
        );
        assert_eq!(vary(&["*"]), Err(Unmatchable));
        assert_eq!(vary(&["accept, *"]), Err(Unmatchable));
        assert_eq!(vary(&["a b"]), Err(Unmatchable));
        let many: Vec<_> = (0..40).map(|n| format!("x-{n}")).collect();
        assert_eq!(vary(&[&many.join(",")]), Err(Unmatchable));
    }

    #[rstest]
    #[case("accept-encoding", &["gzip, br"], &["br,gzip"])]
    #[case("accept-encoding", &["gzip", "br"], &["BR, Gzip"])]
    #[case("accept-encoding", &["gzip;q=1.0, br;q=0.50"], &["br; q=0.5 ,gzip"])]
    #[case("accept-encoding", &["x-gzip"], &["gzip"])]
    #[case("accept-encoding", &["gzip;q=0.000"], &["gzip;q=0"])]
    #[case("accept-language", &["de, en;q=0.8"], &["en;q=.8", "de"])]
    #[case("accept-language", &["DE-at;q=0.9, en"], &["en, de-AT;q=0.900"])]
    #[case("accept", &["text/html,a/b"], &["text/html ,", "a/b"])]
    #[case("cookie", &["a=1; b=2"], &["a=1", "b=2"])]
    #[case("x-a", &["1, 2"], &["1", "2"])]
    fn forms_of_one_meaning_are_one(#[case] name: &str, #[case] a: &[&str], #[case] b: &[&str]) {
        // A weight without its zero is none: then both stay as they are.
        if !b[0].contains("q=.") {
            assert_eq!(form(name, a), form(name, b));
        } else {
            assert_ne!(form(name, a), form(name, b));
        }
    }

    #[rstest]
    #[case("accept-encoding", "gzip", "gzip;q=0.5")]
    #[case("accept-encoding", "gzip, identity;q=0", "gzip")]
    #[case("accept-encoding", "", "*")]
    #[case("accept-encoding", "gzip;q=2", "gzip")]
    #[case("accept-language", "de, en", "en, de")]
    #[case("accept-language", "de", "de-at")]
    #[case("accept", "text/html;a=\"x, y\"", "text/html;a=\"x,y\"")]
    #[case("user-agent", "a,b", "a, b")]
    #[case("x-a", "A", "a")]
    fn forms_of_other_meaning_are_others(#[case] name: &str, #[case] a: &str, #[case] b: &str) {
        assert_ne!(form(name, &[a]), form(name, &[b]));
    }

    /// Section 4.1: a field that is absent in one must be absent in the other.
    #[test]
    fn a_request_selects_by_every_field() {
        let vary = names(&headers(&[("vary", "accept-encoding, x-country")])).unwrap();
        let german = headers(&[("x-country", "de"), ("accept-encoding", "gzip, br"), ("x-other", "1")]);
        let chosen = selector(&vary, &german);
        assert_eq!(chosen, b"accept-encoding=br,gzip\nx-country=de\n");
        assert!(selects(&chosen, &german));
        assert!(selects(&chosen, &headers(&[("accept-encoding", "br,gzip"), ("x-country", "de")])));
        assert!(!selects(&chosen, &headers(&[("accept-encoding", "br,gzip"), ("x-country", "fr")])));
        assert!(!selects(&chosen, &headers(&[("accept-encoding", "br,gzip")])));
        let none = selector(&vary, &HeaderMap::new());
        assert!(selects(&none, &HeaderMap::new()) && !selects(&none, &headers(&[("x-country", "")])));
        assert!(!selects(&selector(&vary, &headers(&[("x-country", "")])), &HeaderMap::new()));
        assert!(selects(b"", &german));
    }

    proptest! {
        #[test]
        fn what_is_canonical_stays_so(text in "[a-z*]{1,4}(;q=(0|1|0\\.[0-9]{1,3}))?(, ?[a-z]{1,4}(;q=0\\.[0-9]{1,3})?){0,4}") {
            for name in ["accept-encoding", "accept-language", "accept"] {
                let once = form(name, &[&text]).unwrap();
                prop_assert_eq!(form(name, &[&once]), Some(once));
            }
        }

        #[test]
        fn a_request_always_selects_what_it_brought(
            fields in proptest::collection::vec(("(accept|accept-encoding|accept-language|cookie|x-a|x-b)", "[ -~\\t]{0,20}"), 0..6),
            vary in "(accept|accept-encoding|accept-language|cookie|x-a|x-b|x-c)(,(accept|cookie|x-a|x-d)){0,3}",
        ) {
            let fields: Vec<_> = fields.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
            let request = headers(&fields);
            let names = names(&headers(&[("vary", &vary)])).unwrap();
            prop_assert!(selects(&selector(&names, &request), &request));
        }
    }
}
