//! What of a body that is coming in has come, for readers who are each at a place of their own.
//!
//! Readers are told apart by how many bytes they have had, not by which piece: so small pieces can be put together, and
//! all of them replaced by the stored body once it is whole, without anyone noticing.

use crate::{cache::entry::Entry, error::Error};
use bytes::Bytes;
use http::HeaderMap;
use std::{collections::VecDeque, sync::Arc};

/// Up to this size, pieces are put together: a body that comes byte by byte must not take a hundred times its size.
const TOGETHER: usize = 8 * 1024;
/// What a piece takes beside its bytes.
const PIECE: u64 = 64;

/// A body that is coming in.
pub(super) struct Stream {
    pub(super) head: Arc<Entry>,
    /// Each with where it ends.
    pieces: VecDeque<(u64, Bytes)>,
    start: u64,
    end: u64,
    /// How long it will be, if that was said.
    pub(super) length: Option<u64>,
    /// Whether all of it is held, so that it can be stored and more readers can begin.
    pub(super) whole: bool,
    pub(super) outcome: Option<Result<Option<HeaderMap>, Error>>,
    /// What was made of it.
    pub(super) entry: Option<Arc<Entry>>,
}

/// What a reader gets at its place.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Read {
    Data(Bytes),
    /// Nothing yet.
    Wait,
    /// What this reader needs next is not held any more.
    Lost,
    /// All of it was read; see the outcome.
    End,
}

impl Stream {
    pub(super) fn new(head: Arc<Entry>, length: Option<u64>) -> Self {
        Self {
            head,
            pieces: VecDeque::new(),
            start: 0,
            end: 0,
            length,
            whole: true,
            outcome: None,
            entry: None,
        }
    }

    /// Bytes that came.
    pub(super) fn end(&self) -> u64 {
        self.end
    }

    /// Memory that it takes.
    pub(super) fn held(&self) -> u64 {
        self.end - self.start + PIECE * self.pieces.len() as u64
    }

    pub(super) fn push(&mut self, data: Bytes) {
        self.end += data.len() as u64;
        self.pieces.push_back((self.end, data));
        // Only pieces of about one size are joined, so that each byte is moved few times.
        while let [.., (_, before), (_, last)] = self.pieces.make_contiguous()
            && last.len() >= before.len()
            && before.len() + last.len() <= TOGETHER
        {
            let joined = Bytes::from([&before[..], &last[..]].concat());
            self.pieces.truncate(self.pieces.len() - 2);
            self.pieces.push_back((self.end, joined));
        }
    }

    /// All pieces, if nothing of them was given up.
    pub(super) fn pieces(&self) -> Vec<Bytes> {
        self.pieces.iter().map(|(_, piece)| piece.clone()).collect()
    }

    /// Gives up pieces that end at `offset` or before it.
    pub(super) fn give_up(&mut self, offset: u64) {
        while let Some((end, piece)) = self.pieces.front()
            && *end <= offset
        {
            self.start += piece.len() as u64;
            self.pieces.pop_front();
        }
    }

    /// Whether a reader can begin.
    pub(super) fn has_beginning(&self) -> bool {
        self.start == 0
    }

    pub(super) fn read(&self, offset: u64) -> Read {
        if offset < self.start {
            return Read::Lost;
        }
        let at = self.pieces.partition_point(|(end, _)| *end <= offset);
        match self.pieces.get(at) {
            Some((end, piece)) => {
                let begin = *end - piece.len() as u64;
                Read::Data(piece.slice((offset - begin) as usize..))
            }
            None if self.outcome.is_some() => Read::End,
            None => Read::Wait,
        }
    }

    /// It is whole and lies in `entry` now.
    pub(super) fn settle(&mut self, entry: Arc<Entry>, trailers: Option<HeaderMap>) {
        self.pieces.clear();
        if self.end > 0 {
            self.pieces.push_back((self.end, entry.bytes()));
        }
        self.outcome = Some(Ok(trailers));
        self.entry = Some(entry);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::entry::tests::Sample;
    use proptest::prelude::*;

    fn stream() -> Stream {
        Stream::new(Arc::new(Sample::new("/a").head()), None)
    }

    fn read_all(stream: &Stream) -> Vec<u8> {
        let mut all = Vec::new();
        while let Read::Data(data) = stream.read(all.len() as u64) {
            all.extend_from_slice(&data);
        }
        all
    }

    proptest! {
        #[test]
        fn every_reader_reads_what_came_wherever_it_stands(
            lengths in prop::collection::vec(0..5000usize, 1..40), ask in any::<prop::sample::Index>(),
        ) {
            let mut stream = stream();
            let mut all = Vec::new();
            for (i, length) in lengths.iter().enumerate() {
                let data = vec![i as u8; *length];
                all.extend_from_slice(&data);
                stream.push(data.into());
                let offset = ask.index(all.len() + 1);
                match stream.read(offset as u64) {
                    Read::Data(data) => prop_assert_eq!(&data[..], &all[offset..offset + data.len()]),
                    read => prop_assert_eq!((read, offset), (Read::Wait, all.len())),
                }
            }
            prop_assert_eq!(read_all(&stream), all);
        }
    }

    #[test]
    fn a_body_that_comes_byte_by_byte_takes_little_more_than_its_size() {
        let mut stream = stream();
        for _ in 0..100_000 {
            stream.push(Bytes::from_static(b"x"));
        }
        assert!(stream.held() < 105_000, "{}", stream.held());
    }

    #[test]
    fn what_is_given_up_is_lost_to_who_needs_it_and_to_nobody_else() {
        let mut stream = stream();
        stream.push(vec![1; 9000].into());
        stream.push(vec![2; 9000].into());
        stream.give_up(8999);
        assert!(stream.has_beginning());
        stream.give_up(9000);
        assert!(!stream.has_beginning());
        assert_eq!(stream.read(8999), Read::Lost);
        assert_eq!(stream.read(9000), Read::Data(vec![2; 9000].into()));
        assert_eq!(stream.held(), 9000 + PIECE);
    }

    #[test]
    fn readers_go_on_where_they_were_once_the_body_is_stored() {
        let mut stream = stream();
        stream.push(vec![1; 9000].into());
        stream.push(vec![2; 9000].into());
        let entry = stream.head.with_body(18_000, &stream.pieces(), None).expect("small");
        stream.settle(Arc::new(entry), None);
        assert_eq!(stream.read(10_000), Read::Data(vec![2; 8000].into()));
        assert_eq!(stream.read(18_000), Read::End);
    }
}
