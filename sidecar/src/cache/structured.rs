//! Structured fields (RFC 9651), as far as caches read them: dictionaries, parsed strictly or not at all.

use http::{HeaderMap, HeaderName};
use smallvec::SmallVec;
use std::borrow::Cow;

/// A member's value; its parameters are checked and passed over.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    /// `?1`, or no value at all.
    Boolean(bool),
    /// A whole number.
    Integer(i64),
    /// Text in quotes.
    Text(String),
    /// A token.
    Token(String),
    /// An inner list.
    List(Vec<Value>),
    /// Something that no cache directive is: a decimal, bytes, a date, a display string.
    Other,
}

/// The members of a dictionary; of two with one key the last.
pub(crate) type Dictionary = SmallVec<[(String, Value); 4]>;

/// The dictionary in all lines of a field; `None` if the field is not there or not a dictionary.
pub(crate) fn dictionary(headers: &HeaderMap, name: &HeaderName) -> Option<Dictionary> {
    let mut lines = headers.get_all(name).iter();
    let mut text = Cow::Borrowed(lines.next()?.as_bytes());
    for line in lines {
        let text = text.to_mut();
        text.extend_from_slice(b", ");
        text.extend_from_slice(line.as_bytes());
    }
    let mut parser = Parser { rest: &text, depth: 0 };
    parser.dictionary()
}

struct Parser<'a> {
    rest: &'a [u8],
    depth: u8,
}

impl Parser<'_> {
    fn dictionary(&mut self) -> Option<Dictionary> {
        let mut members = Dictionary::new();
        self.skip(b" ");
        while !self.rest.is_empty() {
            let key = self.key()?;
            let value = if self.take(b'=') {
                self.member()?
            } else {
                self.parameters()?;
                Value::Boolean(true)
            };
            members.retain(|(other, _)| *other != key);
            members.push((key, value));
            self.skip(b" \t");
            if self.rest.is_empty() {
                break;
            }
            if !self.take(b',') {
                return None;
            }
            self.skip(b" \t");
            // A comma with nothing behind it.
            if self.rest.is_empty() {
                return None;
            }
        }
        Some(members)
    }

    fn skip(&mut self, blanks: &[u8]) {
        while let [first, rest @ ..] = self.rest
            && blanks.contains(first)
        {
            self.rest = rest;
        }
    }

    fn take(&mut self, wanted: u8) -> bool {
        match self.rest {
            [first, rest @ ..] if *first == wanted => {
                self.rest = rest;
                true
            }
            _ => false,
        }
    }

    fn while_in(&mut self, fits: impl Fn(u8) -> bool) -> &[u8] {
        let end = self.rest.iter().position(|byte| !fits(*byte)).unwrap_or(self.rest.len());
        let (taken, rest) = self.rest.split_at(end);
        self.rest = rest;
        taken
    }

    fn key(&mut self) -> Option<String> {
        if !matches!(self.rest.first()?, b'a'..=b'z' | b'*') {
            return None;
        }
        let key = self.while_in(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-' | b'.' | b'*'));
        Some(ascii(key))
    }

    fn member(&mut self) -> Option<Value> {
        let value = if self.take(b'(') { self.inner_list()? } else { self.bare()? };
        self.parameters()?;
        Some(value)
    }

    fn inner_list(&mut self) -> Option<Value> {
        // Lists hold no lists, so this is only a belt.
        self.depth += 1;
        let mut items = Vec::new();
        loop {
            self.skip(b" ");
            if self.take(b')') {
                self.depth -= 1;
                return Some(Value::List(items));
            }
            if self.depth > 1 {
                return None;
            }
            items.push(self.bare()?);
            self.parameters()?;
            if !matches!(self.rest.first()?, b' ' | b')') {
                return None;
            }
        }
    }

    fn parameters(&mut self) -> Option<()> {
        while self.take(b';') {
            self.skip(b" ");
            self.key()?;
            if self.take(b'=') {
                self.bare()?;
            }
        }
        Some(())
    }

    fn bare(&mut self) -> Option<Value> {
        match *self.rest.first()? {
            b'-' | b'0'..=b'9' => self.number(),
            b'"' => {
                self.take(b'"');
                self.text().map(Value::Text)
            }
            b'?' => {
                self.take(b'?');
                match self.while_in(|b| b.is_ascii_digit()) {
                    b"0" => Some(Value::Boolean(false)),
                    b"1" => Some(Value::Boolean(true)),
                    _ => None,
                }
            }
            b':' => {
                self.take(b':');
                self.while_in(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/' | b'='));
                self.take(b':').then_some(Value::Other)
            }
            b'@' => {
                self.take(b'@');
                matches!(self.number()?, Value::Integer(_)).then_some(Value::Other)
            }
            b'%' => {
                self.take(b'%');
                self.take(b'"').then_some(())?;
                self.while_in(|b| matches!(b, 0x20..=0x7e) && b != b'"');
                self.take(b'"').then_some(Value::Other)
            }
            b'*' | b'A'..=b'Z' | b'a'..=b'z' => {
                let token = self.while_in(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~:/".contains(&b));
                Some(Value::Token(ascii(token)))
            }
            _ => None,
        }
    }

    fn number(&mut self) -> Option<Value> {
        let negative = self.take(b'-');
        let digits = self.while_in(|b| b.is_ascii_digit());
        if digits.is_empty() || digits.len() > 15 {
            return None;
        }
        let (whole, length) = (ascii(digits).parse::<i64>().ok()?, digits.len());
        if self.take(b'.') {
            let fraction = self.while_in(|b| b.is_ascii_digit());
            return ((1..=3).contains(&fraction.len()) && length <= 12).then_some(Value::Other);
        }
        Some(Value::Integer(if negative { -whole } else { whole }))
    }

    /// What stands before the closing quote.
    fn text(&mut self) -> Option<String> {
        let mut text = String::new();
        loop {
            let (first, rest) = self.rest.split_first()?;
            self.rest = rest;
            match first {
                b'"' => return Some(text),
                b'\\' => {
                    let (escaped, rest) = self.rest.split_first()?;
                    if !matches!(escaped, b'"' | b'\\') {
                        return None;
                    }
                    self.rest = rest;
                    text.push(char::from(*escaped));
                }
                0x20..=0x7e => text.push(char::from(*first)),
                _ => return None,
            }
        }
    }
}

/// Bytes that are known to be ASCII.
fn ascii(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| char::from(*byte)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;
    use proptest::prelude::*;
    use rstest::rstest;

    const NAME: HeaderName = HeaderName::from_static("x");

    fn parsed(lines: &[&str]) -> Option<Vec<(String, Value)>> {
        let headers: HeaderMap =
            lines.iter().map(|line| (NAME, HeaderValue::from_str(line).unwrap())).collect();
        dictionary(&headers, &NAME).map(|members| members.into_vec())
    }

    fn member(key: &str, value: Value) -> (String, Value) {
        (key.to_owned(), value)
    }

    #[test]
    fn members_of_several_lines_are_one_dictionary() {
        let found =
            parsed(&["max-age=60;a=1, no-store", " private=\"a\\\"b\"\t, x=(a \"b\" 3;q), max-age=-5"]);
        let expected = vec![
            member("no-store", Value::Boolean(true)),
            member("private", Value::Text("a\"b".into())),
            member(
                "x",
                Value::List(vec![Value::Token("a".into()), Value::Text("b".into()), Value::Integer(3)]),
            ),
            member("max-age", Value::Integer(-5)),
        ];
        assert_eq!(found, Some(expected));
    }

    #[rstest]
    #[case("Max-Age=60")]
    #[case("max-age=60,")]
    #[case("max-age =60")]
    #[case("max-age= 60")]
    #[case("max-age=60 no-store")]
    #[case("max-age=1234567890123456")]
    #[case("max-age=")]
    #[case("a=\"b")]
    #[case("a=(b")]
    #[case("a=((b))")]
    #[case("a=?2")]
    #[case("a=1.2345")]
    #[case("\tmax-age=60")]
    #[case("a;B")]
    fn what_is_not_a_dictionary_is_nothing(#[case] text: &str) {
        assert_eq!(parsed(&[text]), None);
    }

    #[test]
    fn other_types_are_read_over() {
        for value in ["1.5", ":YWI=:", "@1659578233", "%\"a%20b\""] {
            assert_eq!(parsed(&[&format!("a={value}")]), Some(vec![member("a", Value::Other)]), "{value}");
        }
        assert_eq!(parsed(&[""]), Some(vec![]));
        assert_eq!(parsed(&[]), None);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(0x20_u8..=0xff, 0..40)) {
            if let Ok(value) = HeaderValue::from_bytes(&bytes) {
                let _ = dictionary(&HeaderMap::from_iter([(NAME, value)]), &NAME);
            }
        }
    }
}
