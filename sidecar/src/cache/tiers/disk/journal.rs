//! Which purges there were, on disk: what is kept there must not come back after a restart either.
//!
//! A file of records, one for each purge. What cannot be read, or was not closed before the machine went down, means
//! that purges may be lost: then all that is kept begins anew, in another generation.

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;

use crate::cache::{
    entry::{Entry, packed::Stamp},
    tiers::{
        directory::{Place, place},
        since::Since,
        wider::{Wider, uri},
    },
};
use sha2::{Digest, Sha256};
use std::collections::HashMap;

/// Purged URIs that are remembered.
const URIS_MAX: usize = 65_536;
/// Purges by hand that are remembered.
const WIDE_MAX: usize = 256;
/// No journal comes that far by counting.
const NUMBER_MAX: u64 = u64::MAX / 2;
/// A file beyond this is not ours.
pub(super) const FILE_MAX: u64 = 64 << 20;

const MAGIC: &[u8] = b"weft cache purges, format 1\n";
const CHECK: usize = 8;
/// Kind, number, length; the text comes between these and the check.
const RECORD: usize = 1 + 8 + 2;

const URI: u8 = b'u';
const WIDE: u8 = b'w';
const FORGOTTEN: u8 = b'f';
const LATEST: u8 = b'l';
const CLOSED: u8 = b'c';

/// The purges of one policy's disk.
#[derive(Debug)]
pub(super) struct Journal {
    generation: u64,
    boot: String,
    /// The last purge, and the last that is forgotten.
    latest: u64,
    forgotten: u64,
    uris: HashMap<Place, u64>,
    wide: Vec<(Wider, u64)>,
    since: Since,
    /// Records that are not in the file yet.
    unwritten: Vec<u8>,
    /// Records in the file.
    written: usize,
    /// The file has to be written as a whole.
    anew: bool,
}

/// What is to be written.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Write {
    /// At the end of the file.
    More(Vec<u8>),
    /// In place of the file.
    Whole(Vec<u8>),
}

fn record(out: &mut Vec<u8>, kind: u8, number: u64, text: &[u8]) {
    let start = out.len();
    out.push(kind);
    out.extend_from_slice(&number.to_le_bytes());
    // What is longer was made shorter by whoever wrote it.
    out.extend_from_slice(&u16::try_from(text.len()).unwrap_or(u16::MAX).to_le_bytes());
    out.extend_from_slice(&text[..text.len().min(usize::from(u16::MAX))]);
    let check = Sha256::digest(&out[start..]);
    out.extend_from_slice(&check[..CHECK]);
}

impl Journal {
    /// Of a new generation, on this run of the machine.
    pub(super) fn new(generation: u64, boot: &str, now: u32) -> Self {
        let mut journal = Self {
            generation,
            boot: boot.to_owned(),
            latest: 1,
            forgotten: 0,
            uris: HashMap::new(),
            wide: Vec::new(),
            since: Since::default(),
            unwritten: Vec::new(),
            written: 0,
            anew: true,
        };
        journal.since.learn(now, journal.latest);
        journal
    }

    /// Reads what an earlier process wrote. `None` if purges may be missing.
    pub(super) fn read(file: &[u8], boot: &str, now: u32) -> Option<Self> {
        let rest = file.strip_prefix(MAGIC)?;
        let (generation, rest) = rest.split_at_checked(8)?;
        let (length, rest) = rest.split_at_checked(1)?;
        let (of, mut rest) = rest.split_at_checked(usize::from(length[0]))?;
        let mut journal = Self::new(u64::from_le_bytes(generation.try_into().ok()?), boot, now);
        let mut closed = false;
        while !rest.is_empty() {
            let length = usize::from(u16::from_le_bytes(rest.get(9..RECORD)?.try_into().ok()?));
            let (content, further) = rest.split_at_checked(RECORD + length)?;
            let (check, further) = further.split_at_checked(CHECK)?;
            if Sha256::digest(content)[..CHECK] != *check {
                return None;
            }
            let number = u64::from_le_bytes(content[1..9].try_into().ok()?);
            if number > NUMBER_MAX {
                return None;
            }
            let text = &content[RECORD..];
            closed = false;
            match content[0] {
                URI => drop(journal.uris.insert(text.try_into().ok()?, number)),
                WIDE => journal.wide.push((Wider::from_bytes(text), number)),
                FORGOTTEN => journal.forgotten = journal.forgotten.max(number),
                LATEST => {}
                CLOSED => closed = true,
                _ => return None,
            }
            journal.latest = journal.latest.max(number);
            rest = further;
        }
        if !closed && (boot.is_empty() || of != boot.as_bytes()) {
            return None;
        }
        journal.bound();
        // A purge that is still to come must not get the number of one that was.
        journal.latest += 1;
        journal.since.clear();
        journal.since.learn(now, journal.latest);
        Some(journal)
    }

    #[cfg(test)]
    fn generation(&self) -> u64 {
        self.generation
    }

    fn next(&mut self, now: u32) -> u64 {
        self.latest += 1;
        self.since.learn(now, self.latest);
        self.latest
    }

    /// A URI is purged.
    pub(super) fn purge_uri(&mut self, uri: &[u8], now: u32) {
        let (number, place) = (self.next(now), place(&[uri]));
        self.uris.insert(place, number);
        record(&mut self.unwritten, URI, number, &place);
        self.written += 1;
        self.bound();
    }

    /// Somebody purges by hand.
    pub(super) fn purge(&mut self, wider: Wider, now: u32) {
        let number = self.next(now);
        record(&mut self.unwritten, WIDE, number, &wider.to_bytes());
        self.written += 1;
        if wider == Wider::All {
            // Nothing from before is looked at any more, whatever else was purged of it.
            self.uris.clear();
            self.wide.clear();
        }
        self.wide.retain(|(other, _)| *other != wider);
        self.wide.push((wider, number));
        self.bound();
    }

    /// Forgets the oldest purges where there are too many: what they may have been for is not looked at any more.
    fn bound(&mut self) {
        let before = self.forgotten;
        if self.uris.len() > URIS_MAX {
            let mut numbers: Vec<_> = self.uris.values().copied().collect();
            numbers.sort_unstable();
            self.forgotten = self.forgotten.max(numbers[numbers.len() / 2]);
            self.anew = true;
        }
        if self.wide.len() > WIDE_MAX {
            self.wide.sort_unstable_by_key(|(_, number)| *number);
            self.forgotten = self.forgotten.max(self.wide[self.wide.len() - WIDE_MAX - 1].1);
            self.anew = true;
        }
        if self.forgotten > before {
            let forgotten = self.forgotten;
            self.uris.retain(|_, number| *number > forgotten);
            self.wide.retain(|(_, number)| *number > forgotten);
        }
        self.anew |= self.written > 2 * (self.uris.len() + self.wide.len()) + 4096;
    }

    /// Whether an entry may have been purged since it was asked for.
    pub(super) fn purged(&self, stamp: Stamp, entry: &Entry) -> bool {
        stamp.generation != self.generation
            || stamp.since < self.forgotten
            || self.wide.iter().any(|(wider, number)| *number > stamp.since && wider.means(entry))
            || self.uris.get(&place(&[uri(entry.key_text())])).is_some_and(|number| *number > stamp.since)
    }

    /// What an entry is kept with that was asked for in this second; `None` if it cannot be told what was purged since.
    pub(super) fn stamp(&self, requested: u32) -> Option<Stamp> {
        Some(Stamp { generation: self.generation, since: self.since.before(requested)? })
    }

    /// What is to be written, if anything.
    pub(super) fn next_write(&mut self) -> Option<Write> {
        let more = std::mem::take(&mut self.unwritten);
        if !std::mem::take(&mut self.anew) {
            return (!more.is_empty()).then_some(Write::More(more));
        }
        let mut whole = MAGIC.to_vec();
        whole.extend_from_slice(&self.generation.to_le_bytes());
        let boot = &self.boot.as_bytes()[..self.boot.len().min(255)];
        whole.push(boot.len() as u8);
        whole.extend_from_slice(boot);
        record(&mut whole, FORGOTTEN, self.forgotten, &[]);
        for (place, number) in &self.uris {
            record(&mut whole, URI, *number, place);
        }
        for (wider, number) in &self.wide {
            record(&mut whole, WIDE, *number, &wider.to_bytes());
        }
        // An entry may have been kept with the last number though nothing is left that has it.
        record(&mut whole, LATEST, self.latest, &[]);
        self.written = self.uris.len() + self.wide.len();
        Some(Write::Whole(whole))
    }

    /// What is written last: everything before is there.
    pub(super) fn closing(&self) -> Vec<u8> {
        let mut out = Vec::new();
        record(&mut out, CLOSED, self.latest, &[]);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::entry::tests::Sample;
    use proptest::prelude::*;

    fn entry(name: &str) -> Entry {
        Sample::new(&format!("http://shop/{name}\nG")).entry("")
    }

    fn uri_of(name: &str) -> Vec<u8> {
        format!("http://shop/{name}\n").into_bytes()
    }

    fn file(journal: &mut Journal, file: &mut Vec<u8>) {
        match journal.next_write() {
            Some(Write::Whole(whole)) => *file = whole,
            Some(Write::More(more)) => file.extend_from_slice(&more),
            None => {}
        }
    }

    #[test]
    fn purges_hold_after_a_restart() {
        let mut journal = Journal::new(7, "boot", 10);
        let (a, b) = (journal.stamp(11).expect("is known"), journal.stamp(11).expect("is known"));
        let mut on_disk = Vec::new();
        file(&mut journal, &mut on_disk);
        journal.purge_uri(&uri_of("a"), 20);
        assert!(journal.purged(a, &entry("a")) && !journal.purged(b, &entry("b")));
        file(&mut journal, &mut on_disk);
        assert_eq!(journal.next_write(), None);
        let after = journal.stamp(21).expect("is known");
        assert!(!journal.purged(after, &entry("a")));
        let mut again = Journal::read(&on_disk, "boot", 30).expect("is whole");
        assert_eq!(again.generation(), 7);
        assert!(again.purged(a, &entry("a")) && !again.purged(b, &entry("b")));
        assert!(!again.purged(after, &entry("a")));
        again.purge(Wider::Prefix((*b"http://shop/b").into()), 40);
        assert!(again.purged(b, &entry("b")) && !again.purged(after, &entry("a")));
        file(&mut again, &mut on_disk);
        let third = Journal::read(&on_disk, "boot", 50).expect("is whole");
        assert!(third.purged(b, &entry("b")) && !third.purged(after, &entry("a")));
        assert!(!third.purged(third.stamp(51).expect("is known"), &entry("b")));
    }

    #[test]
    fn a_machine_that_went_down_may_have_lost_purges() {
        let mut journal = Journal::new(7, "boot", 10);
        let mut on_disk = Vec::new();
        file(&mut journal, &mut on_disk);
        assert!(Journal::read(&on_disk, "boot", 20).is_some());
        assert!(Journal::read(&on_disk, "other", 20).is_none());
        assert!(Journal::read(&on_disk, "", 20).is_none());
        on_disk.extend_from_slice(&journal.closing());
        assert!(Journal::read(&on_disk, "other", 20).is_some());
        journal.purge_uri(&uri_of("a"), 20);
        file(&mut journal, &mut on_disk);
        assert!(Journal::read(&on_disk, "other", 20).is_none(), "it was not closed again");
    }

    #[test]
    fn numbers_that_nobody_counted_to_are_not_believed() {
        for (number, believed) in [(9, true), (NUMBER_MAX, true), (NUMBER_MAX + 1, false), (u64::MAX, false)]
        {
            let mut on_disk = Vec::new();
            file(&mut Journal::new(7, "boot", 10), &mut on_disk);
            record(&mut on_disk, WIDE, number, &Wider::All.to_bytes());
            let journal = Journal::read(&on_disk, "boot", 20);
            assert_eq!(journal.is_some(), believed, "{number}");
            if let Some(mut journal) = journal {
                journal.purge_uri(&uri_of("a"), 30);
                assert!(journal.latest > number);
            }
        }
    }

    #[test]
    fn only_so_much_is_remembered_and_the_rest_counts_as_purged() {
        let mut journal = Journal::new(7, "boot", 10);
        let old = journal.stamp(11).expect("is known");
        for i in 0..=URIS_MAX {
            journal.purge_uri(&uri_of(&i.to_string()), 20);
        }
        assert!(journal.uris.len() <= URIS_MAX / 2 + 1);
        assert!(journal.purged(old, &entry("never purged")));
        assert!(!journal.purged(journal.stamp(21).expect("is known"), &entry("1")));
        let mut on_disk = Vec::new();
        file(&mut journal, &mut on_disk);
        let again = Journal::read(&on_disk, "boot", 30).expect("is whole");
        assert!(again.purged(old, &entry("never purged")));
        for i in 0..=WIDE_MAX {
            journal.purge(Wider::Tag(i.to_string().into_bytes().into()), 30);
        }
        assert!(journal.wide.len() <= WIDE_MAX);
    }

    #[test]
    fn the_file_stays_small() {
        let mut journal = Journal::new(7, "boot", 10);
        let mut on_disk = Vec::new();
        for i in 0..50_000 {
            journal.purge_uri(&uri_of(&(i % 10).to_string()), 20);
            file(&mut journal, &mut on_disk);
        }
        assert!(on_disk.len() < 5000 * (RECORD + CHECK + 16), "{}", on_disk.len());
        assert!(Journal::read(&on_disk, "boot", 30).is_some());
    }

    proptest! {
        #[test]
        fn what_is_damaged_is_not_believed(
            at in any::<proptest::sample::Index>(),
            byte in any::<u8>(),
            cut in any::<proptest::sample::Index>(),
        ) {
            let mut journal = Journal::new(7, "boot", 10);
            let stamp = journal.stamp(11).unwrap();
            let mut on_disk = Vec::new();
            file(&mut journal, &mut on_disk);
            journal.purge_uri(&uri_of("a"), 20);
            journal.purge(Wider::Tag((*b"x").into()), 20);
            file(&mut journal, &mut on_disk);
            let header = MAGIC.len() + 9 + 4;
            let mut wrong = on_disk.clone();
            let at = header + at.index(on_disk.len() - header);
            wrong[at] = byte;
            if wrong != on_disk {
                prop_assert!(Journal::read(&wrong, "boot", 30).is_none());
            }
            let mut short = on_disk.clone();
            short.truncate(cut.index(on_disk.len()));
            if let Some(journal) = Journal::read(&short, "boot", 30) {
                // Only at the end of a record: what was never written cannot be known.
                let _ = journal.purged(stamp, &entry("a"));
            }
        }
    }
}
