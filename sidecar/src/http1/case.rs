//! Header case: what spelling a message's field names had, so that they leave as they came.

use bytes::Bytes;
use http::{HeaderName, HeaderValue};

/// The longest `weft-case` value we read or write; spelling is a courtesy and must not cost more than that.
const VALUE_MAX: usize = 4096;

/// How a message's field names were spelled, where it was not the conventional way. An extension of the request or
/// response, there only when some name needs it.
///
/// Most messages are spelled in one style throughout: the conventional one (`Content-Type`, and `ETag` or
/// `WWW-Authenticate` as everybody writes them), or all in lower case. So a style and the names that differ from it
/// are kept, and the two usual cases hold no list at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HeaderCase {
    /// True: names without an entry are lower case. False: they are conventional.
    lower: bool,
    /// Names spelled another way, as written.
    names: Vec<Bytes>,
}

/// Collects the spelling of one head's names while it is parsed.
#[derive(Default)]
pub(super) struct Spellings {
    conventional: u32,
    lower: u32,
    other: u32,
}

impl Spellings {
    /// Notes one name as written.
    pub(super) fn note(&mut self, name: &[u8]) {
        match style(name) {
            Style::Conventional => self.conventional += 1,
            Style::Lower => self.lower += 1,
            Style::Other => self.other += 1,
        }
    }

    /// The extension these names need; none when all are conventional.
    pub(super) fn finish(&self, names: impl Iterator<Item = Bytes>) -> Option<HeaderCase> {
        if self.lower == 0 && self.other == 0 {
            return None;
        }
        let lower = self.lower > self.conventional;
        let usual = if lower { Style::Lower } else { Style::Conventional };
        let exceptions = self.other + if lower { self.conventional } else { self.lower };
        let mut list = Vec::with_capacity(exceptions as usize);
        if exceptions > 0 {
            list.extend(names.filter(|name| style(name) != usual));
        }
        Some(HeaderCase { lower, names: list })
    }
}

impl HeaderCase {
    /// The value of the header that carries this over a hop without case. `*` says that names not listed are lower
    /// case. `None` if it would be longer than is worth sending.
    pub(crate) fn to_header_value(&self) -> Option<HeaderValue> {
        let mut value = Vec::with_capacity(2 + self.names.iter().map(|name| name.len() + 1).sum::<usize>());
        if self.lower {
            value.push(b'*');
        }
        for name in &self.names {
            if !value.is_empty() {
                value.push(b',');
            }
            value.extend_from_slice(name);
        }
        if value.len() > VALUE_MAX {
            return None;
        }
        HeaderValue::from_maybe_shared(Bytes::from(value)).ok()
    }

    /// Reads what [`to_header_value`](Self::to_header_value) made. What does not fit is ignored: a wrong list can
    /// only fail to match, since a spelling is used only for the very name it spells.
    pub(crate) fn from_header_value(value: &HeaderValue) -> Option<Self> {
        let bytes = value.as_bytes();
        if bytes.is_empty() || bytes.len() > VALUE_MAX {
            return None;
        }
        let whole = Bytes::copy_from_slice(bytes);
        let mut case = Self { lower: false, names: Vec::new() };
        for part in whole.split(|byte| *byte == b',') {
            match part.trim_ascii() {
                b"" => {}
                b"*" => case.lower = true,
                name => case.names.push(whole.slice_ref(name)),
            }
        }
        Some(case)
    }

    /// True if names are lower case unless they are listed.
    pub(crate) fn is_lower(&self) -> bool {
        self.lower
    }

    /// What it takes in memory.
    pub(crate) fn size(&self) -> usize {
        size_of::<Self>() + self.names.iter().map(|name| size_of::<Bytes>() + name.len()).sum::<usize>()
    }

    /// The same with its names in memory of their own: as it came, it shares the whole head's.
    pub(crate) fn detached(&self) -> Self {
        let names = self.names.iter().map(|name| Bytes::copy_from_slice(name)).collect();
        Self { lower: self.lower, names }
    }

    fn spelling(&self, name: &[u8]) -> Option<&Bytes> {
        self.names.iter().find(|spelled| spelled.eq_ignore_ascii_case(name))
    }
}

/// Writes a name the way `case` says, conventionally without one.
pub(crate) fn write_name(out: &mut Vec<u8>, name: &HeaderName, case: Option<&HeaderCase>) {
    let name = name.as_str().as_bytes();
    if let Some(case) = case {
        if let Some(spelled) = case.spelling(name) {
            out.extend_from_slice(spelled);
            return;
        }
        if case.lower {
            out.extend_from_slice(name);
            return;
        }
    }
    if let Some(spelled) = irregular(name) {
        out.extend_from_slice(spelled);
        return;
    }
    let start = out.len();
    out.extend_from_slice(name);
    let mut word = true;
    for byte in &mut out[start..] {
        if word {
            *byte = byte.to_ascii_uppercase();
        }
        word = *byte == b'-';
    }
}

/// Names that nobody writes in plain Title-Case.
const IRREGULAR: [&[u8]; 11] = [
    b"TE",
    b"DNT",
    b"ETag",
    b"Content-MD5",
    b"WWW-Authenticate",
    b"Sec-WebSocket-Key",
    b"X-XSS-Protection",
    b"Sec-WebSocket-Accept",
    b"Sec-WebSocket-Version",
    b"Sec-WebSocket-Protocol",
    b"Sec-WebSocket-Extensions",
];

fn irregular(name: &[u8]) -> Option<&'static [u8]> {
    // Almost every name is ruled out by its length.
    if !matches!(name.len(), 2..=4 | 11 | 16 | 17 | 20..=22 | 24) {
        return None;
    }
    IRREGULAR.into_iter().find(|spelled| spelled.eq_ignore_ascii_case(name))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Style {
    Conventional,
    Lower,
    Other,
}

fn style(name: &[u8]) -> Style {
    let (mut title, mut lower, mut word) = (true, true, true);
    for byte in name {
        let upper = byte.is_ascii_uppercase();
        lower &= !upper;
        title &= if word { !byte.is_ascii_lowercase() } else { !upper };
        word = *byte == b'-';
    }
    match irregular(name) {
        Some(spelled) if spelled == name => Style::Conventional,
        None if title => Style::Conventional,
        _ if lower => Style::Lower,
        _ => Style::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn case_of(names: &[&'static str]) -> Option<HeaderCase> {
        let mut spellings = Spellings::default();
        for name in names {
            spellings.note(name.as_bytes());
        }
        spellings.finish(names.iter().map(|name| Bytes::from_static(name.as_bytes())))
    }

    fn written(names: &[&'static str], case: Option<&HeaderCase>) -> Vec<String> {
        names
            .iter()
            .map(|name| {
                let mut out = Vec::new();
                write_name(&mut out, &HeaderName::from_bytes(name.as_bytes()).unwrap(), case);
                String::from_utf8(out).unwrap()
            })
            .collect()
    }

    #[test]
    fn conventional_names_need_no_extension() {
        let names = ["Host", "Content-Type", "ETag", "WWW-Authenticate", "Sec-WebSocket-Key", "TE", "X-1-A"];
        assert_eq!(case_of(&names), None);
        assert_eq!(written(&names, None), names);
    }

    #[test]
    fn every_spelling_is_written_as_it_came() {
        for names in [
            &["host", "content-type", "etag", "x-request-id"][..],
            &["host", "Content-Type", "x-a", "X-ID"],
            &["Host", "SOAPAction", "x-lower", "Etag", "User-agent"],
            &["HOST", "X-REQUEST-ID"],
        ] {
            let case = case_of(names).expect("not conventional");
            assert_eq!(written(names, Some(&case)), names);
        }
    }

    #[test]
    fn a_lower_case_message_keeps_no_list() {
        let case = case_of(&["host", "accept", "te"]).unwrap();
        assert!(case.lower && case.names.is_empty());
    }

    #[test]
    fn the_header_value_carries_the_whole_spelling() {
        for names in [&["host", "accept"][..], &["Host", "SOAPAction"], &["host", "accept", "X-ID", "sOAP"]] {
            let case = case_of(names).unwrap();
            let value = case.to_header_value().unwrap();
            assert_eq!(HeaderCase::from_header_value(&value), Some(case));
        }
    }

    #[test]
    fn a_foreign_value_changes_no_name() {
        let value = HeaderValue::from_static("evil: x, ,, *,Hos");
        let case = HeaderCase::from_header_value(&value).unwrap();
        assert_eq!(written(&["Host", "Evil"], Some(&case)), ["host", "evil"]);
        assert!(HeaderCase::from_header_value(&HeaderValue::from_static("")).is_none());
    }
}
