//! The journal of purges and the lists of variants: files that somebody else may have written.

use super::{
    super::super::directory::Directory, CLOSED, FORGOTTEN, Journal, LATEST, MAGIC, NUMBER_MAX, URI, WIDE,
    Wider, Write, record,
};
use crate::{
    cache::entry::packed::{self, Form},
    fuzz::{fields, first_line},
};

pub(crate) const DIRECTORIES: &[&[u8]] =
    &[b"accept,x-b\norigin\n", b"\n", b"accept-encoding\n", b"a,a,a\na\n"];

/// What is read of a list is written as what is read again, and takes another in front.
pub(crate) fn directory(bytes: &[u8]) {
    let Some(directory) = Directory::read(bytes) else { return };
    let kept = |directory: &Directory| {
        let sealed = directory.to_bytes();
        let read = packed::open(&sealed).map(|(form, content)| (form, Directory::read(content)));
        assert_eq!(read, Some((Form::Directory, Some(directory.clone()))));
    };
    kept(&directory);
    let request = fields(b"accept: a\nx-b: c\norigin: d");
    for selector in directory.selectors(&request) {
        assert!(selector.ends_with(b"\n"), "{}", selector.escape_ascii());
    }
    if let Some(more) = directory.with(b"x-b=c\naccept=a\n") {
        kept(&more);
        assert_eq!(more.with(b"x-b=d\naccept\n"), None, "it is in front");
        assert!(more.selectors(&request).count() <= directory.selectors(&request).count() + 1);
    }
}

/// Lines of kind, number and text, of which a journal is made.
pub(crate) const JOURNALS: &[&[u8]] = &[
    b"u2 0123456789abcdef\nw3 Phttp://a/\nw4 Tx\nl5\nc5",
    b"f7\nu9 0123456789abcdef\nw8 A",
    b"w18446744073709551615 U/a\nl18446744073709551615",
    b"w09223372036854775807 U/",
];

/// A journal that is read, once written anew, is read as the same; and what is purged after it stays purged.
pub(crate) fn journal(bytes: &[u8]) {
    const BOOT: &str = "boot";
    let _ = Journal::read(bytes, BOOT, 10);
    let mut file = MAGIC.to_vec();
    file.extend_from_slice(&7_u64.to_le_bytes());
    file.push(BOOT.len() as u8);
    file.extend_from_slice(BOOT.as_bytes());
    let mut rest = bytes;
    while !rest.is_empty() {
        let (line, further) = first_line(rest);
        rest = further;
        let Some((kind, line)) = line.split_first() else { continue };
        let digits = line.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let number = std::str::from_utf8(&line[..digits]).ok().and_then(|digits| digits.parse().ok());
        let text = line[digits..].strip_prefix(b" ").unwrap_or_default();
        let kind = match kind {
            b'u' => URI,
            b'w' => WIDE,
            b'f' => FORGOTTEN,
            b'l' => LATEST,
            b'c' => CLOSED,
            other => *other,
        };
        record(&mut file, kind, number.unwrap_or(1), text);
    }
    let Some(mut journal) = Journal::read(&file, BOOT, 10) else { return };
    for (wider, _) in &journal.wide {
        let again = Wider::from_bytes(&wider.to_bytes());
        assert!(again == *wider || again == Wider::All);
    }
    assert!(journal.uris.values().chain(journal.wide.iter().map(|(_, n)| n)).all(|n| *n < journal.latest));
    assert!(journal.forgotten < journal.latest, "what is kept from now on is believed");
    if journal.latest >= NUMBER_MAX {
        // The next process takes what this one writes for damage, and begins anew.
        return;
    }
    let before = (journal.latest, journal.forgotten, journal.uris.clone());
    journal.purge_uri(b"http://a/b\n", 20);
    assert!(journal.latest > before.0 && journal.forgotten >= before.1);
    assert!(before.2.len() <= journal.uris.len() || journal.forgotten > before.1);
    journal.anew = true;
    let Some(Write::Whole(whole)) = journal.next_write() else { panic!("it is written anew") };
    let Some(again) = Journal::read(&whole, BOOT, 30) else { panic!("what was written is not read") };
    assert!(again.latest > journal.latest, "a number comes twice");
    assert_eq!((again.generation, again.forgotten), (journal.generation, journal.forgotten));
    assert_eq!((again.uris, again.wide.len()), (journal.uris, journal.wide.len()));
}
