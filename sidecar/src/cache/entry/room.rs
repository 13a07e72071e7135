//! Blocks of what had to leave, for what comes in its place.
//!
//! Once the memory of a policy is full, every new entry pushes out one of about its size. Handing that one's block on
//! spares the allocator from joining and cutting memory that nobody touched for long.

use super::Entry;
use bytes::{Bytes, BytesMut};
use std::{cell::RefCell, sync::Arc};

/// Sizes that are worth it: smaller ones the allocator hands out as quickly itself, larger ones are rare.
const SMALLEST: usize = 1024;
const LARGEST: usize = 16 * 1024;
/// How much larger a block may be than what is put into it: one part in so many.
const SLACK: usize = 16;
/// Blocks, and bytes of them, that a thread keeps: about what one eviction frees.
const BLOCKS: usize = 32;
const BYTES: usize = 64 * 1024;

#[derive(Default)]
struct Blocks {
    blocks: Vec<Vec<u8>>,
    bytes: usize,
}

thread_local! {
    static KEPT: RefCell<Blocks> = RefCell::default();
}

/// An empty block with room for so many bytes, or a little more.
pub(super) fn block(length: usize) -> Vec<u8> {
    let kept = if (SMALLEST..=LARGEST).contains(&length) { take(length) } else { None };
    // Exactly as much as it takes: then it can be shared without another allocation until it is.
    kept.unwrap_or_else(|| Vec::with_capacity(length))
}

fn take(length: usize) -> Option<Vec<u8>> {
    let most = length + length / SLACK;
    KEPT.with_borrow_mut(|kept| {
        let at = kept.blocks.iter().rposition(|block| (length..=most).contains(&block.capacity()))?;
        let block = kept.blocks.swap_remove(at);
        kept.bytes -= block.capacity();
        Some(block)
    })
}

/// Takes the block of an entry that was put out, if nobody else has it.
pub(in crate::cache) fn give_back(entry: Arc<Entry>) {
    let Some(Entry { block, .. }) = Arc::into_inner(entry) else { return };
    if !(SMALLEST..=LARGEST).contains(&block.len()) {
        return;
    }
    let Ok(mut block) = Bytes::try_into_mut(block) else { return };
    // What was in it is not to be seen by any mistake of ours.
    block.clear();
    keep(block);
}

fn keep(block: BytesMut) {
    let block = Vec::from(block);
    KEPT.with_borrow_mut(|kept| {
        if kept.blocks.len() >= BLOCKS || kept.bytes + block.capacity() > BYTES {
            // Those that were kept longest fit least of what comes now.
            kept.bytes -= kept.blocks.drain(..kept.blocks.len() / 2).map(|old| old.capacity()).sum::<usize>();
        }
        kept.bytes += block.capacity();
        kept.blocks.push(block);
    });
}

#[cfg(test)]
mod tests {
    use super::{super::tests::Sample, *};

    fn kept() -> (usize, usize) {
        KEPT.with_borrow(|kept| {
            let bytes = kept.blocks.iter().map(Vec::capacity).sum();
            assert_eq!(kept.bytes, bytes);
            (kept.blocks.len(), bytes)
        })
    }

    fn entry(length: usize) -> Entry {
        let sample = Sample::new("k");
        sample.with(|draft| Entry::whole(draft, 0, &vec![b'x'; length])).expect("is small")
    }

    #[test]
    fn what_comes_takes_the_place_of_what_left_whatever_is_behind_it() {
        let old = entry(2000);
        let (room, size) = (old.block.len(), old.size());
        give_back(Arc::new(old));
        assert_eq!(kept(), (1, room));
        // A little shorter: its bytes are its own, and what it takes is counted.
        let new = entry(1950);
        assert_eq!((kept().0, new.block.len(), new.size()), (0, room, size));
        assert_eq!(new.data(), vec![b'x'; 1950]);
        assert_eq!((new.length(), new.bytes().len()), (1950, 1950));
        give_back(Arc::new(new));
        let much_shorter = entry(1500);
        assert_eq!((kept().0, much_shorter.block.len()), (1, room - 500));
    }

    #[test]
    fn what_somebody_still_has_stays_with_them() {
        let entry = Arc::new(entry(2000));
        give_back(entry.clone());
        let body = entry.bytes();
        give_back(entry);
        assert_eq!(kept(), (0, 0));
        assert_eq!(body, vec![b'x'; 2000]);
    }

    #[test]
    fn few_blocks_are_kept() {
        for length in (0..40_000).step_by(100) {
            give_back(Arc::new(entry(length)));
            let (blocks, bytes) = kept();
            assert!(blocks <= BLOCKS && bytes <= BYTES);
        }
        assert!(kept().0 > 0);
    }
}
