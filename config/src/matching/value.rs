//! Tests of one value: of a header, of a query parameter, of a part of the path.

use super::path::unescape;
use http::{HeaderMap, HeaderName, header};
use regex::bytes::{Regex, RegexBuilder};
use std::borrow::Cow;

/// What a value is compared with, as written.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ValueMatch {
    /// This very value; upper and lower case differ.
    Exact(String),
    /// A regular expression that must match the whole value, in the syntax of the `regex` crate, which is close to RE2:
    /// no look-around, no back-references, linear time.
    Regex(String),
}

/// Memory that one compiled expression may take. Larger ones are refused when policy is compiled.
const REGEX_BYTES: usize = 1 << 20;
/// Memory for the states that one expression builds while it matches; above it, matching gets slower, not larger.
const REGEX_CACHE_BYTES: usize = 256 << 10;

/// Compiles an expression that matches whole values only.
pub(crate) fn whole_value_regex(pattern: &str) -> Result<Regex, String> {
    let build = |pattern: &str| {
        RegexBuilder::new(pattern)
            .size_limit(REGEX_BYTES)
            .dfa_size_limit(REGEX_CACHE_BYTES)
            .nest_limit(64)
            .build()
    };
    let told = |error: regex::Error| match error {
        regex::Error::CompiledTooBig(limit) => {
            format!("the regular expression needs more than {limit} bytes when compiled")
        }
        // The library's own message draws the pattern over several lines; its last line says what is wrong.
        error => {
            let text = error.to_string();
            let line = text.lines().next_back().unwrap_or_default();
            format!("`{pattern}` is not a regular expression: {}", line.trim_start_matches("error: "))
        }
    };
    // On its own first: wrapped, a pattern such as `a)|(b` would be taken for a valid one.
    build(pattern).map_err(told)?;
    build(&format!(r"\A(?:{pattern})\z")).map_err(told)
}

/// A compiled [`ValueMatch`].
#[derive(Clone, Debug)]
pub(crate) enum Value {
    Exact(Box<str>),
    Regex(Regex),
}

impl Value {
    pub(crate) fn compile(value: &ValueMatch) -> Result<Self, String> {
        Ok(match value {
            ValueMatch::Exact(text) => Self::Exact(text.as_str().into()),
            ValueMatch::Regex(pattern) => Self::Regex(whole_value_regex(pattern)?),
        })
    }

    pub(crate) fn matches(&self, value: &[u8]) -> bool {
        match self {
            Self::Exact(text) => text.as_bytes() == value,
            Self::Regex(regex) => regex.is_match(value),
        }
    }

    /// Compares with a value that is percent-encoded as in a query. Allocates only for an expression and only where
    /// something is encoded.
    fn matches_encoded(&self, value: &[u8]) -> bool {
        match self {
            Self::Exact(text) => same_decoded(value, text.as_bytes()),
            Self::Regex(regex) => regex.is_match(&decode(value)),
        }
    }
}

/// A header condition, compiled.
#[derive(Clone, Debug)]
pub struct HeaderCondition {
    pub(crate) name: HeaderName,
    pub(crate) value: Value,
}

impl HeaderCondition {
    /// A condition on one header, or why it cannot be compiled.
    pub fn new(name: HeaderName, value: &ValueMatch) -> Result<Self, String> {
        Ok(Self { name, value: Value::compile(value)? })
    }

    /// A header that comes several times counts as one whose values are joined by `,`, as RFC 9110 §5.3 allows
    /// (`Cookie` by `; `, as RFC 9113 §8.2.3 asks). An absent header matches nothing, not even `.*`.
    pub fn matches(&self, headers: &HeaderMap) -> bool {
        let mut values = headers.get_all(&self.name).iter();
        let Some(first) = values.next() else { return false };
        let Some(second) = values.next() else { return self.value.matches(first.as_bytes()) };
        let separator: &[u8] = if self.name == header::COOKIE { b"; " } else { b"," };
        let mut joined = [first.as_bytes(), separator, second.as_bytes()].concat();
        for value in values {
            joined.extend_from_slice(separator);
            joined.extend_from_slice(value.as_bytes());
        }
        self.value.matches(&joined)
    }
}

/// A query parameter condition, compiled.
#[derive(Clone, Debug)]
pub(crate) struct QueryCondition {
    pub(crate) name: Box<str>,
    pub(crate) value: Value,
}

impl QueryCondition {
    /// Only the first parameter of the name counts. Names and values are compared decoded (`%41` is `A`, `+` a blank),
    /// upper and lower case differ, and a parameter without `=` has the empty value.
    pub(crate) fn matches(&self, query: Option<&str>) -> bool {
        query
            .and_then(|query| parameter(query, &self.name))
            .is_some_and(|value| self.value.matches_encoded(value))
    }
}

/// The still encoded value of the first parameter of this name.
pub(crate) fn parameter<'q>(query: &'q str, name: &str) -> Option<&'q [u8]> {
    query.split('&').filter(|pair| !pair.is_empty()).find_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        same_decoded(key.as_bytes(), name.as_bytes()).then_some(value.as_bytes())
    })
}

/// Decodes the bytes of a query component one by one; a stray percent sign stands for itself.
struct Decoded<'a>(&'a [u8]);

impl Iterator for Decoded<'_> {
    type Item = u8;

    fn next(&mut self) -> Option<u8> {
        let (&first, mut rest) = self.0.split_first()?;
        let byte = match first {
            b'+' => b' ',
            b'%' => match unescape(self.0) {
                Some(byte) => {
                    rest = &self.0[3..];
                    byte
                }
                None => first,
            },
            byte => byte,
        };
        self.0 = rest;
        Some(byte)
    }
}

fn same_decoded(encoded: &[u8], plain: &[u8]) -> bool {
    // Decoding never makes longer.
    encoded.len() >= plain.len() && Decoded(encoded).eq(plain.iter().copied())
}

pub(crate) fn decode(encoded: &[u8]) -> Cow<'_, [u8]> {
    if encoded.iter().any(|b| matches!(b, b'%' | b'+')) {
        Cow::Owned(Decoded(encoded).collect())
    } else {
        Cow::Borrowed(encoded)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;
    use rstest::rstest;

    fn query(name: &str, value: ValueMatch) -> QueryCondition {
        QueryCondition { name: name.into(), value: Value::compile(&value).expect("valid") }
    }

    fn exact(text: &str) -> ValueMatch {
        ValueMatch::Exact(text.to_owned())
    }

    #[rstest]
    #[case("a=1", true)]
    #[case("b=2&a=1", true)]
    #[case("a=1&a=2", true)]
    #[case("a=2&a=1", false)]
    #[case("A=1", false)]
    #[case("aa=1", false)]
    #[case("%61=%31", true)]
    #[case("&&a=1", true)]
    #[case("a", false)]
    #[case("", false)]
    fn the_first_parameter_of_a_name_counts(#[case] text: &str, #[case] matched: bool) {
        assert_eq!(query("a", exact("1")).matches(Some(text)), matched);
    }

    #[test]
    fn query_values_are_compared_decoded() {
        assert!(query("q", exact("a b&c")).matches(Some("q=a+b%26c")));
        assert!(query("q", exact("100%")).matches(Some("q=100%")));
        assert!(query("q", exact("")).matches(Some("q")));
        assert!(query("q", ValueMatch::Regex("é.".into())).matches(Some("q=%C3%A9x")));
        assert!(!query("q", exact("1")).matches(None));
    }

    #[test]
    fn a_regex_must_match_the_whole_value() {
        let value = Value::compile(&ValueMatch::Regex("v[12]|beta".into())).expect("valid");
        assert!(value.matches(b"v1") && value.matches(b"beta"));
        assert!(!value.matches(b"v12") && !value.matches(b"xbeta") && !value.matches(b"v1\n"));
    }

    #[rstest]
    #[case("a)|(b")]
    #[case("(")]
    #[case("(?=x)")]
    #[case(r"(a)\1")]
    #[case(r"\w{1,1000}{1,1000}")]
    fn unsound_or_huge_expressions_are_refused_in_one_line(#[case] pattern: &str) {
        let error = whole_value_regex(pattern).expect_err("refused");
        assert!(!error.contains('\n'), "{error}");
        assert!(error.contains("regular expression"), "{error}");
    }

    #[test]
    fn repeated_headers_count_as_one_list() {
        let condition = |name, value: &str| HeaderCondition {
            name,
            value: Value::compile(&ValueMatch::Exact(value.to_owned())).expect("valid"),
        };
        let mut headers = HeaderMap::new();
        for value in ["a", "b", "c"] {
            headers.append("x-tag", HeaderValue::from_static(value));
            headers.append("cookie", HeaderValue::from_static(value));
        }
        assert!(condition(HeaderName::from_static("x-tag"), "a,b,c").matches(&headers));
        assert!(!condition(HeaderName::from_static("x-tag"), "a").matches(&headers));
        assert!(condition(header::COOKIE, "a; b; c").matches(&headers));
        assert!(!condition(header::HOST, "a").matches(&headers));
    }
}
