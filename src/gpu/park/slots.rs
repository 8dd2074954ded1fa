//! Which slots of the pool are free. A slot is one block of 2 MiB.
//!
//! Runs never cross a segment, because a copy must not: segments are pinned one by one.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::book::Book;

/// Neighbouring slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    /// The first.
    pub(super) start: u32,
    /// How many.
    pub(super) length: u32,
}

/// The free slots.
#[derive(Debug)]
pub(super) struct Slots {
    /// Start and length of each free run; neighbours are joined unless a segment ends between them.
    free: BTreeMap<u32, u32>,
    segment: u32,
    count: u32,
    /// Where what a slot held is struck out when it is given back.
    book: Option<Arc<Book>>,
}

impl Slots {
    /// No slots yet, in segments of that many.
    pub(super) fn new(segment: u32) -> Self {
        Self { free: BTreeMap::new(), segment, count: 0, book: None }
    }

    /// The same with a book.
    pub(super) fn with_book(segment: u32, book: Arc<Book>) -> Self {
        Self { book: Some(book), ..Self::new(segment) }
    }

    /// Free slots.
    pub(super) fn free(&self) -> u32 {
        self.count
    }

    /// Takes so many slots, in as few runs as a simple search finds; nothing if there are not enough.
    pub(super) fn take(&mut self, count: u32) -> Option<Vec<Run>> {
        if count > self.count {
            return None;
        }
        let (mut runs, mut wanted) = (Vec::new(), count);
        while wanted > 0 {
            let whole = self.free.iter().find(|(_, length)| **length >= wanted);
            let best = whole.or_else(|| self.free.iter().max_by_key(|(_, length)| **length));
            let (&start, &length) = best.expect("the count says that slots are free");
            self.free.remove(&start);
            let taken = length.min(wanted);
            if taken < length {
                self.free.insert(start + taken, length - taken);
            }
            runs.push(Run { start, length: taken });
            wanted -= taken;
        }
        self.count -= count;
        Some(runs)
    }

    /// Takes this very slot; false if it is not free.
    pub(super) fn take_this(&mut self, slot: u32) -> bool {
        let Some((&start, &length)) = self.free.range(..=slot).next_back() else { return false };
        if slot >= start + length {
            return false;
        }
        self.free.remove(&start);
        for (start, end) in [(start, slot), (slot + 1, start + length)] {
            if start < end {
                self.free.insert(start, end - start);
            }
        }
        self.count -= 1;
        true
    }

    /// Gives slots back. They must not be free already.
    pub(super) fn give(&mut self, run: Run) {
        if let Some(book) = &self.book {
            (run.start..run.start + run.length).for_each(|slot| book.strike(slot));
        }
        self.add(run);
    }

    /// Adds slots that have not been there before.
    pub(super) fn add(&mut self, run: Run) {
        let Run { mut start, mut length } = run;
        self.count += length;
        if let Some((&before, &its)) = self.free.range(..start).next_back()
            && before + its == start
            && !start.is_multiple_of(self.segment)
        {
            self.free.remove(&before);
            (start, length) = (before, its + length);
        }
        let end = start + length;
        if !end.is_multiple_of(self.segment)
            && let Some(its) = self.free.remove(&end)
        {
            length += its;
        }
        self.free.insert(start, length);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn runs_do_not_cross_segments() {
        let mut slots = Slots::new(4);
        slots.give(Run { start: 4, length: 4 });
        slots.give(Run { start: 0, length: 4 });
        let runs = slots.take(8).unwrap();
        assert!(runs.iter().all(|run| run.start / 4 == (run.start + run.length - 1) / 4), "{runs:?}");
        assert_eq!(slots.take(1), None);
    }

    proptest! {
        #[test]
        fn no_slot_is_given_twice_and_none_is_lost(steps in prop::collection::vec((any::<bool>(), 1u32..20), 1..60)) {
            let mut slots = Slots::new(16);
            for segment in 0..4 {
                slots.give(Run { start: segment * 16, length: 16 });
            }
            let mut held: Vec<u32> = Vec::new();
            for (take, count) in steps {
                if take {
                    let runs = slots.take(count);
                    prop_assert_eq!(runs.is_some(), count as usize + held.len() <= 64);
                    held.extend(runs.into_iter().flatten().flat_map(|run| run.start..run.start + run.length));
                } else if let Some(slot) = (0..64).find(|slot| count % 5 == 0 && !held.contains(slot)) {
                    prop_assert!(slots.take_this(slot) && !slots.take_this(slot));
                    held.push(slot);
                } else if let Some(slot) = held.pop() {
                    slots.give(Run { start: slot, length: 1 });
                }
                let mut seen = held.clone();
                seen.sort_unstable();
                seen.dedup();
                prop_assert_eq!(seen.len(), held.len());
                prop_assert_eq!(slots.free() as usize + held.len(), 64);
            }
        }
    }
}
