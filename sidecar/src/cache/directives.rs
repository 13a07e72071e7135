//! Cache-Control in requests and responses (RFC 9111 section 5.2), and the fields that go before it (RFC 9213).
//!
//! Reading is forgiving about form and strict about meaning: whatever can be read as a restriction is one, and a time
//! that cannot be read is no time at all (section 4.2.1).

use super::structured::{self, Dictionary, Value};
use http::{HeaderMap, HeaderName, HeaderValue, header};
use smallvec::SmallVec;

/// The longest time: more seconds than this are these (RFC 9111 section 1.2.2).
pub(crate) const FOREVER: u32 = 1 << 31;

/// Fields that are for us in place of `Cache-Control`, in the order in which they are looked for.
pub(crate) const TARGETS: [HeaderName; 2] =
    [HeaderName::from_static("weft-cache-control"), HeaderName::from_static("cdn-cache-control")];

/// Without these an answer would be another answer: where `no-cache` or `private` names one, all of the answer is meant.
const ESSENTIAL: [HeaderName; 10] = [
    header::CACHE_CONTROL,
    header::CONTENT_ENCODING,
    header::CONTENT_LANGUAGE,
    header::CONTENT_LOCATION,
    header::CONTENT_RANGE,
    header::CONTENT_TYPE,
    header::DATE,
    header::ETAG,
    header::LOCATION,
    header::VARY,
];

/// What a response says of being kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ResponseDirectives {
    pub(crate) max_age: Option<u32>,
    pub(crate) s_maxage: Option<u32>,
    pub(crate) while_revalidate: Option<u32>,
    pub(crate) if_error: Option<u32>,
    pub(crate) no_store: bool,
    /// Without fields: not to be used without asking.
    pub(crate) no_cache: bool,
    /// Without fields: not for shared caches.
    pub(crate) private: bool,
    pub(crate) public: bool,
    pub(crate) must_revalidate: bool,
    pub(crate) proxy_revalidate: bool,
    pub(crate) must_understand: bool,
    pub(crate) immutable: bool,
    /// Fields that `no-cache` and `private` name: the answer is kept without them.
    pub(crate) withheld: SmallVec<[HeaderName; 2]>,
    /// True if a field of [`TARGETS`] says all this: then `Expires` says nothing.
    pub(crate) targeted: bool,
}

impl ResponseDirectives {
    /// Reads them.
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        for target in &TARGETS {
            if headers.contains_key(target)
                && let Some(members) = structured::dictionary(headers, target)
                && !members.is_empty()
            {
                return Self::targeted(&members);
            }
        }
        let mut directives = Self::default();
        for (name, argument) in headers.get_all(header::CACHE_CONTROL).iter().flat_map(items) {
            directives.add(name, argument);
        }
        directives
    }

    fn add(&mut self, name: &[u8], argument: Argument<'_>) {
        let is = |wanted: &str| name.eq_ignore_ascii_case(wanted.as_bytes());
        // Grouped by length, so that most names are compared with one or two.
        match name.len() {
            6 if is("public") => self.public = true,
            7 if is("max-age") => shortest(&mut self.max_age, argument.seconds()),
            7 if is("private") => self.private |= !self.withhold(argument),
            8 if is("s-maxage") => shortest(&mut self.s_maxage, argument.seconds()),
            8 if is("no-store") => self.no_store = true,
            8 if is("no-cache") => self.no_cache |= !self.withhold(argument),
            9 if is("immutable") => self.immutable = true,
            14 if is("stale-if-error") => shortest(&mut self.if_error, argument.seconds()),
            15 if is("must-revalidate") => self.must_revalidate = true,
            15 if is("must-understand") => self.must_understand = true,
            16 if is("proxy-revalidate") => self.proxy_revalidate = true,
            22 if is("stale-while-revalidate") => shortest(&mut self.while_revalidate, argument.seconds()),
            _ => {}
        }
    }

    /// Notes the fields of an argument; false if it names none that can be left out, so that the whole answer is meant.
    fn withhold(&mut self, argument: Argument<'_>) -> bool {
        let (Argument::Token(list) | Argument::Quoted(list)) = argument else { return false };
        self.withhold_listed(list)
    }

    fn withhold_listed(&mut self, list: &[u8]) -> bool {
        let mut names = SmallVec::<[HeaderName; 2]>::new();
        for name in list.split(|byte| *byte == b',').map(<[u8]>::trim_ascii).filter(|name| !name.is_empty()) {
            match HeaderName::from_bytes(name) {
                Ok(name) if !ESSENTIAL.contains(&name) => names.push(name),
                _ => return false,
            }
        }
        let any = !names.is_empty();
        self.withheld.extend(names);
        any
    }

    /// RFC 9213 section 2.1: a directive's argument has one type; one of another type is none.
    fn targeted(members: &Dictionary) -> Self {
        let mut directives = Self { targeted: true, ..Self::default() };
        for (name, value) in members {
            let seconds = match value {
                Value::Integer(seconds) => {
                    u32::try_from(*seconds).unwrap_or(if *seconds < 0 { 0 } else { FOREVER })
                }
                _ => 0,
            };
            let seconds = seconds.min(FOREVER);
            // `?0` is no member of any directive; reading it as "not" would loosen what a typing error made.
            match name.as_str() {
                "max-age" => directives.max_age = Some(seconds),
                "s-maxage" => directives.s_maxage = Some(seconds),
                "stale-while-revalidate" => directives.while_revalidate = Some(seconds),
                "stale-if-error" => directives.if_error = Some(seconds),
                "no-store" => directives.no_store = true,
                "public" => directives.public = *value == Value::Boolean(true),
                "must-revalidate" => directives.must_revalidate = true,
                "proxy-revalidate" => directives.proxy_revalidate = true,
                "must-understand" => directives.must_understand = *value == Value::Boolean(true),
                "immutable" => directives.immutable = *value == Value::Boolean(true),
                "no-cache" | "private" => {
                    let named = match value {
                        Value::Text(list) | Value::Token(list) => directives.withhold_listed(list.as_bytes()),
                        _ => false,
                    };
                    let whole =
                        if name == "private" { &mut directives.private } else { &mut directives.no_cache };
                    *whole |= !named;
                }
                _ => {}
            }
        }
        directives
    }

    /// True if nothing stale may be given, whatever else is said.
    pub(crate) fn never_stale(&self) -> bool {
        // Section 5.2.2.10: s-maxage means proxy-revalidate too.
        self.must_revalidate || self.proxy_revalidate || self.s_maxage.is_some()
    }

    /// What it says of freshness: for a shared cache `s-maxage` goes before `max-age`.
    pub(crate) fn lifetime(&self) -> Option<u32> {
        self.s_maxage.or(self.max_age)
    }
}

/// What a request says of what it will take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct RequestDirectives {
    pub(crate) max_age: Option<u32>,
    pub(crate) min_fresh: u32,
    /// [`FOREVER`] without an argument.
    pub(crate) max_stale: Option<u32>,
    pub(crate) if_error: u32,
    pub(crate) no_cache: bool,
    pub(crate) no_store: bool,
    pub(crate) only_if_cached: bool,
}

impl RequestDirectives {
    /// Reads them. `Pragma` counts only without `Cache-Control` (RFC 9111 section 5.4).
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        let mut directives = Self::default();
        let mut lines = headers.get_all(header::CACHE_CONTROL).iter().peekable();
        if lines.peek().is_none() {
            let mut pragma = headers.get_all(header::PRAGMA).iter().flat_map(items);
            directives.no_cache = pragma.any(|(name, _)| name.eq_ignore_ascii_case(b"no-cache"));
            return directives;
        }
        for (name, argument) in lines.flat_map(items) {
            directives.add(name, argument);
        }
        directives
    }

    fn add(&mut self, name: &[u8], argument: Argument<'_>) {
        let is = |wanted: &str| name.eq_ignore_ascii_case(wanted.as_bytes());
        match name.len() {
            7 if is("max-age") => shortest(&mut self.max_age, argument.seconds()),
            8 if is("no-cache") => self.no_cache = true,
            8 if is("no-store") => self.no_store = true,
            9 if is("max-stale") => {
                let stale = match argument {
                    Argument::None => Some(FOREVER),
                    _ => argument.seconds(),
                };
                shortest(&mut self.max_stale, stale);
            }
            // What cannot be read is a wish that nobody knows.
            9 if is("min-fresh") => self.min_fresh = self.min_fresh.max(argument.seconds().unwrap_or(0)),
            14 if is("stale-if-error") => self.if_error = argument.seconds().unwrap_or(0),
            14 if is("only-if-cached") => self.only_if_cached = true,
            _ => {}
        }
    }
}

/// Keeps the shorter of two times; one that cannot be read is none at all.
fn shortest(kept: &mut Option<u32>, seconds: Option<u32>) {
    let seconds = seconds.unwrap_or(0);
    *kept = Some(kept.map_or(seconds, |kept| kept.min(seconds)));
}

/// What stands behind a directive's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Argument<'a> {
    None,
    Token(&'a [u8]),
    /// Without its quotes; escapes stand as they are.
    Quoted(&'a [u8]),
    /// Blanks around `=`, a quote that does not end, something behind the closing quote.
    Invalid,
}

impl Argument<'_> {
    /// Its seconds, if it is a whole number; either form counts (RFC 9111 section 5.2).
    fn seconds(self) -> Option<u32> {
        match self {
            Self::Token(digits) | Self::Quoted(digits) => seconds(digits),
            Self::None | Self::Invalid => None,
        }
    }
}

/// Delta-seconds (RFC 9111 section 1.2.2).
pub(super) fn seconds(digits: &[u8]) -> Option<u32> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0_u32, |sum, byte| {
        let digit = byte.is_ascii_digit().then(|| u32::from(byte - b'0'))?;
        Some(sum.saturating_mul(10).saturating_add(digit).min(FOREVER))
    })
}

/// The directives of one line.
fn items(line: &HeaderValue) -> Items<'_> {
    Items(line.as_bytes())
}

struct Items<'a>(&'a [u8]);

const BLANKS: [u8; 2] = [b' ', b'\t'];

impl<'a> Items<'a> {
    /// Everything up to a comma, which goes with it.
    fn through_comma(&mut self) -> &'a [u8] {
        let end = self.0.iter().position(|byte| *byte == b',');
        let taken = &self.0[..end.unwrap_or(self.0.len())];
        self.0 = end.map_or(&[], |end| &self.0[end + 1..]);
        taken
    }

    fn argument(&mut self) -> Argument<'a> {
        let Some(b'"') = self.0.first() else {
            return Argument::Token(self.through_comma().trim_ascii_end());
        };
        let mut at = 1;
        while let Some(byte) = self.0.get(at) {
            match byte {
                b'"' => {
                    let text = &self.0[1..at];
                    self.0 = &self.0[at + 1..];
                    let clean = self.through_comma().trim_ascii().is_empty();
                    return if clean { Argument::Quoted(text) } else { Argument::Invalid };
                }
                b'\\' => at += 2,
                _ => at += 1,
            }
        }
        // It never ends: what follows the next comma is read, lest a quote hide a restriction.
        self.through_comma();
        Argument::Invalid
    }
}

impl<'a> Iterator for Items<'a> {
    type Item = (&'a [u8], Argument<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        while let [first, rest @ ..] = self.0
            && (BLANKS.contains(first) || *first == b',')
        {
            self.0 = rest;
        }
        if self.0.is_empty() {
            return None;
        }
        let end = self.0.iter().position(|byte| matches!(byte, b',' | b'=')).unwrap_or(self.0.len());
        let written = &self.0[..end];
        let name = written.trim_ascii_end();
        if self.0.get(end) != Some(&b'=') {
            self.through_comma();
            return Some((name, Argument::None));
        }
        self.0 = &self.0[end + 1..];
        let apart = name.len() != written.len() || self.0.first().is_some_and(|byte| BLANKS.contains(byte));
        self.0 = &self.0[self.0.iter().take_while(|byte| BLANKS.contains(byte)).count()..];
        let argument = self.argument();
        Some((name, if apart { Argument::Invalid } else { argument }))
    }
}

#[cfg(test)]
mod tests;
