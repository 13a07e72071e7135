//! Header maps between two messages: each worker keeps a few, since a map with room for a usual head is more than an
//! allocator hands out and takes back quickly.

use http::HeaderMap;
use std::cell::RefCell;

/// Maps kept per thread.
const MOST: usize = 32;
/// What a usual head needs, with what is added to it on the way.
const USUAL: usize = 12;
const ADDED: usize = 3;
/// A map that had to take more fields than this is not kept.
const LARGE: usize = 48;

thread_local! {
    static MAPS: RefCell<Vec<HeaderMap>> = const { RefCell::new(Vec::new()) };
}

/// An empty map with room for a head of so many fields.
pub(crate) fn map(fields: usize) -> HeaderMap {
    let kept = MAPS.with_borrow_mut(Vec::pop);
    kept.unwrap_or_else(|| HeaderMap::with_capacity((fields + ADDED).max(USUAL)))
}

/// Takes a map back that nobody needs any more. What was in it is gone at once.
pub(crate) fn give_back(mut map: HeaderMap) {
    if (USUAL..=LARGE).contains(&map.capacity()) {
        // Dropping values runs code of theirs, which must not find the list taken.
        map.clear();
        MAPS.with_borrow_mut(|maps| {
            if maps.len() < MOST {
                maps.push(map);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn a_map_comes_back_empty_and_with_its_room() {
        let mut first = map(20);
        let room = first.capacity();
        assert!(room >= 20);
        first.append("set-cookie", HeaderValue::from_static("secret=1"));
        first.append("set-cookie", HeaderValue::from_static("secret=2"));
        give_back(first);
        let again = map(1);
        assert_eq!((again.len(), again.capacity()), (0, room));
    }

    #[test]
    fn few_are_kept_and_no_large_ones() {
        (0..3 * MOST).map(|_| HeaderMap::with_capacity(USUAL)).for_each(give_back);
        give_back(HeaderMap::with_capacity(1000));
        give_back(HeaderMap::new());
        let kept: Vec<_> = MAPS.with_borrow(|maps| maps.iter().map(HeaderMap::capacity).collect());
        assert_eq!(kept.len(), MOST);
        assert!(kept.iter().all(|room| (USUAL..=LARGE).contains(room)));
    }
}
