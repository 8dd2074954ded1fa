//! Which slots of the pool are free. A slot is one block of 2 MiB.
//!
//! Runs never cross a segment, because a copy must not: segments are pinned one by one. What an earlier server has left
//! in a segment may be given back before the segment is there: such a slot is free when the segment is.

use std::collections::{BTreeMap, BTreeSet};
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
    /// Slots in use of segments that are still to be added.
    early: BTreeSet<u32>,
    /// Where what a slot held is struck out when it is given back.
    book: Option<Arc<Book>>,
}

impl Slots {
    /// No slots yet, in segments of that many.
    pub(super) fn new(segment: u32) -> Self {
        Self { free: BTreeMap::new(), segment, count: 0, early: BTreeSet::new(), book: None }
    }

    /// The same with a book: slots that are entered in it are in use from the beginning.
    pub(super) fn with_book(segment: u32, book: Arc<Book>) -> Self {
        let early = book.entries().map(|(slot, _)| slot).collect();
        Self { early, book: Some(book), ..Self::new(segment) }
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

    /// Adds a segment's slots, but for those that are in use.
    pub(super) fn add_segment(&mut self, number: u32) {
        let (mut start, end) = (number * self.segment, (number + 1) * self.segment);
        let later = self.early.split_off(&end);
        let used = self.early.split_off(&start);
        self.early.extend(later);
        for slot in used.into_iter().chain([end]) {
            if start < slot {
                self.add(Run { start, length: slot - start });
            }
            start = slot + 1;
        }
    }

    /// Gives slots back. They must not be free already.
    pub(super) fn give(&mut self, run: Run) {
        if let Some(book) = &self.book {
            (run.start..run.start + run.length).for_each(|slot| book.strike(slot));
        }
        for start in run.start..run.start + run.length {
            if !self.early.remove(&start) {
                self.add(Run { start, length: 1 });
            }
        }
    }

    /// Adds slots that have not been there before.
    fn add(&mut self, run: Run) {
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
        slots.add_segment(1);
        slots.add_segment(0);
        let runs = slots.take(8).unwrap();
        assert!(runs.iter().all(|run| run.start / 4 == (run.start + run.length - 1) / 4), "{runs:?}");
        assert_eq!(slots.take(1), None);
    }

    proptest! {
        #[test]
        fn no_slot_is_given_twice_and_none_is_lost(
            left in prop::collection::btree_set(0u32..64, 0..20),
            steps in prop::collection::vec((any::<bool>(), 1u32..20), 1..60),
        ) {
            let mut slots = Slots::new(16);
            slots.early = left.clone();
            let (mut held, mut missing): (Vec<u32>, _) = (left.into_iter().collect(), vec![2, 0, 3, 1]);
            for (take, count) in steps {
                let there = |slot: &&u32| !missing.contains(&(**slot / 16));
                if take {
                    let free = 64 - missing.len() * 16 - held.iter().filter(there).count();
                    let runs = slots.take(count);
                    prop_assert_eq!(runs.is_some(), count as usize <= free);
                    held.extend(runs.into_iter().flatten().flat_map(|run| run.start..run.start + run.length));
                } else if count % 5 == 0 && !missing.is_empty() {
                    slots.add_segment(missing.remove(count as usize % missing.len()));
                } else if !held.is_empty() {
                    let slot = held.swap_remove(count as usize % held.len());
                    slots.give(Run { start: slot, length: 1 });
                }
                let mut seen = held.clone();
                seen.sort_unstable();
                seen.dedup();
                prop_assert_eq!(seen.len(), held.len());
                let there = held.iter().filter(|slot| !missing.contains(&(**slot / 16))).count();
                prop_assert_eq!(slots.free() as usize + there, 64 - missing.len() * 16);
            }
        }
    }
}
