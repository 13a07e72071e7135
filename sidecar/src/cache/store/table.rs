//! Finds the slot of a key: open addressing over eight bytes a cell, half of them a print of the key's hash.
//!
//! A cell is all that moves when the table grows, and what a look-up passes on its way it judges by the print alone.

/// No slot.
const EMPTY: u64 = u64::MAX;
/// The highest slot number.
pub(super) const SLOTS_MAX: u32 = u32::MAX - 1;

/// From prints to slots.
#[derive(Default)]
pub(super) struct Table {
    cells: Box<[u64]>,
    used: usize,
}

fn print_of(cell: u64) -> u32 {
    (cell >> 32) as u32
}

impl Table {
    fn mask(&self) -> usize {
        self.cells.len().wrapping_sub(1)
    }

    /// The slot with this print for which `is_it` holds.
    pub(super) fn find(&self, print: u32, is_it: impl Fn(u32) -> bool) -> Option<u32> {
        if self.cells.is_empty() {
            return None;
        }
        let mut at = print as usize & self.mask();
        loop {
            let cell = self.cells[at];
            if cell == EMPTY {
                return None;
            }
            if print_of(cell) == print && is_it(cell as u32) {
                return Some(cell as u32);
            }
            at = (at + 1) & self.mask();
        }
    }

    /// Puts in a slot that is not there yet.
    pub(super) fn insert(&mut self, print: u32, slot: u32) {
        if (self.used + 1) * 4 > self.cells.len() * 3 {
            self.grow();
        }
        self.place(u64::from(print) << 32 | u64::from(slot));
        self.used += 1;
    }

    fn place(&mut self, cell: u64) {
        let mask = self.mask();
        let mut at = print_of(cell) as usize & mask;
        while self.cells[at] != EMPTY {
            at = (at + 1) & mask;
        }
        self.cells[at] = cell;
    }

    fn grow(&mut self) {
        let larger = vec![EMPTY; (self.cells.len() * 2).max(8)].into_boxed_slice();
        let cells = std::mem::replace(&mut self.cells, larger);
        for cell in cells.into_iter().filter(|cell| *cell != EMPTY) {
            self.place(cell);
        }
    }

    /// Takes out a slot. What stands behind it moves up, so that nothing marks where it was.
    pub(super) fn remove(&mut self, print: u32, slot: u32) {
        if self.cells.is_empty() {
            return;
        }
        let mask = self.mask();
        let wanted = u64::from(print) << 32 | u64::from(slot);
        let mut gap = print as usize & mask;
        while self.cells[gap] != wanted {
            if self.cells[gap] == EMPTY {
                return;
            }
            gap = (gap + 1) & mask;
        }
        let mut next = gap;
        loop {
            next = (next + 1) & mask;
            let cell = self.cells[next];
            if cell == EMPTY {
                break;
            }
            // It may move into the gap unless its own first place lies behind the gap.
            let home = print_of(cell) as usize & mask;
            if next.wrapping_sub(home) & mask >= next.wrapping_sub(gap) & mask {
                self.cells[gap] = cell;
                gap = next;
            }
        }
        self.cells[gap] = EMPTY;
        self.used -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    proptest! {
        #[test]
        fn it_finds_what_a_map_finds(steps in prop::collection::vec((0..40u32, any::<bool>()), 0..400)) {
            let mut table = Table::default();
            let mut model = HashMap::new();
            for (slot, put) in steps {
                // Few prints, at the end of the table too, so that runs meet and wrap around.
                let print = [0, 1, 2, 7, 15, u32::MAX][slot as usize % 6];
                if put && !model.contains_key(&slot) {
                    table.insert(print, slot);
                    model.insert(slot, print);
                } else if let Some(print) = model.remove(&slot) {
                    table.remove(print, slot);
                }
                prop_assert_eq!(table.used, model.len());
                for (slot, print) in &model {
                    prop_assert_eq!(table.find(*print, |found| found == *slot), Some(*slot));
                }
                for absent in (0..40).filter(|slot| !model.contains_key(slot)) {
                    prop_assert_eq!(table.find(print, |found| found == absent), None);
                }
            }
        }
    }
}
