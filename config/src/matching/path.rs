//! One normal form of a request path, used alike for authorization, routing, caching and the request sent on.
//!
//! Whoever compares a path with a rule must read it as the application will, or the rule can be walked around.
//! So a path is brought into one form when a request arrives, and that form is also what is sent on:
//!
//! - `.` and `..` segments are resolved, also when their dots are percent-encoded; `..` at the root stays there.
//! - Percent-encoded unreserved characters (`A-Z a-z 0-9 - . _ ~`) are decoded; the hex digits of every other escape
//!   become upper case; bytes that a path may not hold raw (non-ASCII, blanks, `"<>[]^{|}` and the backquote) are
//!   percent-encoded.
//! - Runs of slashes become one slash. Nearly every server and framework reads `//admin` as `/admin` or redirects
//!   there, and the Gateway API forbids `//` in path matches, so no rule could name it otherwise.
//! - `%2F` and `%5C` stay as they are: package registries and source forges carry names with slashes in one segment
//!   that way. Whether the application reads them as separators cannot be known, so where the decoded slash would make
//!   a `.` or `..` segment the path is refused, and authorization looks at both readings (see [`loose`]).
//! - Refused: a NUL (raw or encoded), a raw backslash or control character, `?` and `#` (not part of a path),
//!   a percent sign without two hex digits, and anything that does not start with `/` (`*` of `OPTIONS *` excepted).

use std::borrow::Cow;

/// Why a path has no normal form. Such a request is answered 400.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPath {
    /// It does not start with `/`.
    #[error("the path does not start with `/`")]
    NotAbsolute,
    /// A percent sign without two hex digits after it.
    #[error("the path has a `%` that is not followed by two hex digits")]
    BadEscape,
    /// A byte that no path may hold.
    #[error("the path holds a NUL, a control character, a backslash, `?` or `#`")]
    BadCharacter,
    /// Decoding `%2F` or `%5C` would give a `.` or `..` segment.
    #[error("the path hides a `.` or `..` segment behind an encoded slash or backslash")]
    HiddenDotSegment,
}

/// What a byte of a path is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    /// May stand as it is, and its escape is decoded.
    Unreserved,
    /// May stand as it is, and so may its escape: the two can differ in meaning.
    Reserved,
    /// Stands only percent-encoded.
    Encode,
    /// Is refused.
    Refuse,
}

const CLASSES: [Class; 256] = {
    let mut classes = [Class::Encode; 256];
    let mut byte = 0;
    while byte < 256 {
        let b = byte as u8;
        classes[byte] = match b {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => Class::Unreserved,
            b'/' | b':' | b'@' | b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b',' | b';'
            | b'=' => Class::Reserved,
            0..=0x1f | 0x7f | b'\\' | b'?' | b'#' => Class::Refuse,
            _ => Class::Encode,
        };
        byte += 1;
    }
    classes
};

fn class(byte: u8) -> Class {
    CLASSES[byte as usize]
}

fn hex(byte: u8) -> Option<u8> {
    match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'A'..=b'F' => Some(byte - b'A' + 10),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    }
}

/// The byte that the escape at the start of `bytes` (which starts with `%`) stands for.
pub(crate) fn unescape(bytes: &[u8]) -> Option<u8> {
    Some(hex(*bytes.get(1)?)? << 4 | hex(*bytes.get(2)?)?)
}

/// Brings a path (without its query) into normal form. Does not allocate if it is in that form already.
pub fn normalize_path(path: &str) -> Result<Cow<'_, str>, InvalidPath> {
    match path {
        "" => return Ok(Cow::Borrowed("/")),
        "*" => return Ok(Cow::Borrowed(path)),
        _ if !path.starts_with('/') => return Err(InvalidPath::NotAbsolute),
        _ => {}
    }
    if is_normal(path.as_bytes()) {
        return Ok(Cow::Borrowed(path));
    }
    let mut normal = String::with_capacity(path.len() + 16);
    let mut segments = path[1..].split('/').peekable();
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        let start = normal.len();
        normal.push('/');
        push_segment(&mut normal, segment)?;
        match &normal[start + 1..] {
            // The slash of an empty or `.` segment stays only at the very end.
            "" | "." => normal.truncate(start + usize::from(last)),
            ".." => {
                let parent = normal[..start].rfind('/').unwrap_or(0);
                normal.truncate(parent + usize::from(last));
            }
            _ => {}
        }
    }
    if normal.is_empty() {
        normal.push('/');
    }
    Ok(Cow::Owned(normal))
}

/// True if [`normalize_path`] has nothing to do; false also where it would refuse.
fn is_normal(path: &[u8]) -> bool {
    let mut index = 0;
    while index < path.len() {
        match path[index] {
            b'/' => {
                let rest = &path[index + 1..];
                if matches!(
                    rest,
                    [b'/', ..] | [b'.'] | [b'.', b'/', ..] | [b'.', b'.'] | [b'.', b'.', b'/', ..]
                ) {
                    return false;
                }
            }
            b'%' => {
                let Some(byte) = unescape(&path[index..]) else { return false };
                let upper = !path[index + 1].is_ascii_lowercase() && !path[index + 2].is_ascii_lowercase();
                // Encoded slashes take the slow way, which looks behind them.
                if !upper || class(byte) == Class::Unreserved || matches!(byte, 0 | b'/' | b'\\') {
                    return false;
                }
                index += 2;
            }
            byte if matches!(class(byte), Class::Encode | Class::Refuse) => return false,
            _ => {}
        }
        index += 1;
    }
    true
}

/// Appends the normal form of one segment.
fn push_segment(normal: &mut String, segment: &str) -> Result<(), InvalidPath> {
    const HEX: [char; 16] = ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'A', 'B', 'C', 'D', 'E', 'F'];
    let bytes = segment.as_bytes();
    let start = normal.len();
    // Where the part after the last encoded slash starts, if there was one.
    let mut part = None;
    let mut index = 0;
    while index < bytes.len() {
        let (byte, escaped) = match bytes[index] {
            b'%' => (unescape(&bytes[index..]).ok_or(InvalidPath::BadEscape)?, true),
            byte => (byte, false),
        };
        index += if escaped { 3 } else { 1 };
        let raw = match class(byte) {
            _ if byte == 0 => return Err(InvalidPath::BadCharacter),
            Class::Refuse if !escaped => return Err(InvalidPath::BadCharacter),
            Class::Unreserved => true,
            Class::Reserved => !escaped,
            Class::Encode | Class::Refuse => false,
        };
        if raw {
            normal.push(char::from(byte));
            continue;
        }
        if escaped && matches!(byte, b'/' | b'\\') {
            if matches!(&normal[part.unwrap_or(start)..], "." | "..") {
                return Err(InvalidPath::HiddenDotSegment);
            }
            part = Some(normal.len() + 3);
        }
        normal.push('%');
        normal.push(HEX[usize::from(byte >> 4)]);
        normal.push(HEX[usize::from(byte & 15)]);
    }
    match part {
        Some(part) if matches!(&normal[part..], "." | "..") => Err(InvalidPath::HiddenDotSegment),
        _ => Ok(()),
    }
}

/// How the most lenient application might read a path in normal form: everything decoded once, encoded slashes and
/// backslashes as separators, path parameters (`;v=1`) dropped from each segment, then dot segments resolved.
/// Authorization denies by either reading and allows only by both.
pub(crate) fn loose(path: &str) -> Cow<'_, [u8]> {
    if !path.bytes().any(|b| b == b'%' || b == b';') {
        return Cow::Borrowed(path.as_bytes());
    }
    let bytes = path.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut index = 0;
    while index < bytes.len() {
        match (bytes[index], unescape(&bytes[index..])) {
            (b'%', Some(b'\\')) => decoded.push(b'/'),
            (b'%', Some(byte)) => decoded.push(byte),
            (byte, _) => {
                decoded.push(byte);
                index += 1;
                continue;
            }
        }
        index += 3;
    }
    let mut read: Vec<u8> = Vec::with_capacity(decoded.len());
    let mut segments = decoded.split(|b| *b == b'/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        let segment = segment.split(|b| *b == b';').next().unwrap_or_default();
        match segment {
            b"" | b"." => {}
            b".." => {
                let parent = read.iter().rposition(|b| *b == b'/').unwrap_or(0);
                read.truncate(parent);
            }
            segment => {
                read.push(b'/');
                read.extend_from_slice(segment);
                continue;
            }
        }
        if last {
            read.push(b'/');
        }
    }
    Cow::Owned(read)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rstest::rstest;

    #[rstest]
    #[case::root("/", "/")]
    #[case::empty("", "/")]
    #[case::asterisk("*", "*")]
    #[case::already_normal("/a/b.c/d-e_f~g;v=1/@x:y", "/a/b.c/d-e_f~g;v=1/@x:y")]
    #[case::dot("/a/./b", "/a/b")]
    #[case::dot_last("/a/.", "/a/")]
    #[case::dots("/a/../b", "/b")]
    #[case::dots_last("/a/b/..", "/a/")]
    #[case::dots_to_root("/a/..", "/")]
    #[case::dots_above_root("/../../a", "/a")]
    #[case::only_dots("/..", "/")]
    #[case::encoded_dots("/a/%2e%2E/b", "/b")]
    #[case::half_encoded_dots("/a/.%2e/b", "/b")]
    #[case::three_dots_are_a_name("/a/.../b", "/a/.../b")]
    #[case::hidden_file("/.well-known/x", "/.well-known/x")]
    #[case::unreserved_decoded("/%61%7E%2D", "/a~-")]
    #[case::hex_upper("/a%3ab%c3%a9", "/a%3Ab%C3%A9")]
    #[case::raw_utf8_encoded("/caf\u{e9} au", "/caf%C3%A9%20au")]
    #[case::slashes_merged("//a///b//", "/a/b/")]
    #[case::slashes_then_dots("/a//../b", "/b")]
    #[case::encoded_slash_kept("/@scope%2fname", "/@scope%2Fname")]
    #[case::encoded_percent_kept("/100%25/%252e", "/100%25/%252e")]
    fn paths_have_one_form(#[case] path: &str, #[case] normal: &str) {
        assert_eq!(normalize_path(path).as_deref(), Ok(normal));
    }

    #[rstest]
    #[case("a/b", InvalidPath::NotAbsolute)]
    #[case("http://a/b", InvalidPath::NotAbsolute)]
    #[case("/%", InvalidPath::BadEscape)]
    #[case("/%4", InvalidPath::BadEscape)]
    #[case("/%zz", InvalidPath::BadEscape)]
    #[case("/a%00", InvalidPath::BadCharacter)]
    #[case("/a\0", InvalidPath::BadCharacter)]
    #[case("/a\\b", InvalidPath::BadCharacter)]
    #[case("/a?b", InvalidPath::BadCharacter)]
    #[case("/a#b", InvalidPath::BadCharacter)]
    #[case("/a\nb", InvalidPath::BadCharacter)]
    #[case("/a/..%2Fb", InvalidPath::HiddenDotSegment)]
    #[case("/a%2F..", InvalidPath::HiddenDotSegment)]
    #[case("/a%5c%2e%2e%5Cb", InvalidPath::HiddenDotSegment)]
    #[case("/a%2f./b", InvalidPath::HiddenDotSegment)]
    fn what_has_no_safe_reading_is_refused(#[case] path: &str, #[case] why: InvalidPath) {
        assert_eq!(normalize_path(path), Err(why));
    }

    #[test]
    fn a_normal_path_is_not_copied() {
        for path in ["/", "/a/b", "/a%20b/", "/shop.Cart/Add"] {
            assert!(matches!(normalize_path(path), Ok(Cow::Borrowed(_))), "{path}");
        }
    }

    #[rstest]
    #[case("/a/b", "/a/b")]
    #[case("/a%2Fb", "/a/b")]
    #[case("/a;v=1/b;x", "/a/b")]
    #[case("/public/..;/admin", "/admin")]
    #[case("/a%40b", "/a@b")]
    #[case("/a%5Cb/", "/a/b/")]
    fn the_loose_reading_is_that_of_lenient_servers(#[case] path: &str, #[case] read: &str) {
        assert_eq!(&*loose(path), read.as_bytes());
    }

    proptest! {
        #[test]
        fn the_normal_form_of_a_normal_form_is_itself(path in "/([a-c./%;A-F0-9é {]|%2[eEfF5]|%5[cC]|%61){0,24}") {
            if let Ok(normal) = normalize_path(&path) {
                let again = normalize_path(&normal);
                prop_assert_eq!(again.as_deref(), Ok(&*normal));
            }
        }

        #[test]
        fn no_path_leaves_the_root(path in "/([a-c./]|%2[eEfF]|%5[cC]){0,24}") {
            if let Ok(normal) = normalize_path(&path) {
                prop_assert!(normal.starts_with('/'));
                prop_assert!(!normal.contains("//"));
                prop_assert!(normal.split('/').all(|s| s != "." && s != ".."), "{}", normal);
                let read = String::from_utf8_lossy(&loose(&normal)).into_owned();
                prop_assert!(read.split('/').all(|s| s != "." && s != ".."), "{}", read);
            }
        }

        #[test]
        fn no_input_panics(path in ".{0,40}") {
            let _ = normalize_path(&path);
        }
    }
}
