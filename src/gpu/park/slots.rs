//! Which slots of the pool are free. A slot is one block of 2 MiB.
//!
//! Runs never cross a segment, because a copy must not: segments are pinned one by one. What an earlier server has left
//! in a segment may be given back before the segment is there: such a slot is free when the segment is.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
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

    /// Takes so many slots, in as few runs as a simple search finds; nothing if there are not enough. What is free among
    /// `near`, which are whole segments, is taken first.
    pub(super) fn take(&mut self, count: u32, near: Range<u32>) -> Option<Vec<Run>> {
        if count > self.count {
            return None;
        }
        let mut runs = self.take_among(near, count);
        let missing = count - runs.iter().map(|run| run.length).sum::<u32>();
        runs.append(&mut self.take_among(0..u32::MAX, missing));
        Some(runs)
    }

    /// The same of these slots only, and as many as are free where that is less.
    fn take_among(&mut self, slots: Range<u32>, count: u32) -> Vec<Run> {
        let (mut runs, mut wanted) = (Vec::new(), count);
        while wanted > 0 {
            let free = || self.free.range(slots.clone());
            let whole = free().find(|(_, length)| **length >= wanted);
            let best = whole.or_else(|| free().max_by_key(|(_, length)| **length));
            let Some((&start, &length)) = best else { break };
            self.free.remove(&start);
            let taken = length.min(wanted);
            if taken < length {
                self.free.insert(start + taken, length - taken);
            }
            runs.push(Run { start, length: taken });
            wanted -= taken;
        }
        self.count -= count - wanted;
        runs
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
        let runs = slots.take(8, 0..0).unwrap();
        assert!(runs.iter().all(|run| run.start / 4 == (run.start + run.length - 1) / 4), "{runs:?}");
        assert_eq!(slots.take(1, 0..0), None);
    }

    #[test]
    fn what_is_near_goes_first_in_long_runs_and_the_rest_is_taken_elsewhere() {
        let mut slots = Slots::new(8);
        (0..4).for_each(|segment| slots.add_segment(segment));
        assert_eq!(slots.take(3, 16..32), Some(vec![Run { start: 16, length: 3 }]));
        // A whole run of the other segment, though the rest of the first one comes before it.
        assert_eq!(slots.take(6, 16..32), Some(vec![Run { start: 24, length: 6 }]));
        let runs = [Run { start: 19, length: 5 }, Run { start: 30, length: 2 }, Run { start: 0, length: 3 }];
        assert_eq!(slots.take(10, 16..32), Some(runs.to_vec()));
        assert_eq!(slots.take(14, 16..32), None, "13 are free");
        assert_eq!(slots.free(), 13);
    }

    proptest! {
        #[test]
        fn no_slot_is_given_twice_and_none_is_lost(
            left in prop::collection::btree_set(0u32..64, 0..20),
            steps in prop::collection::vec((any::<bool>(), 1u32..20, 0usize..4), 1..60),
            cuts in (0u32..=4, 0u32..=4),
        ) {
            // Two nodes and what lies between them, of any size; and nothing for a GPU of an unknown node.
            let (low, high) = (cuts.0.min(cuts.1) * 16, cuts.0.max(cuts.1) * 16);
            let parts = [0..low, low..high, high..64, 0..0];
            let mut slots = Slots::new(16);
            slots.early = left.clone();
            let (mut held, mut missing): (Vec<u32>, _) = (left.into_iter().collect(), vec![2, 0, 3, 1]);
            for (take, count, part) in steps {
                if take {
                    let near = parts[part].clone();
                    let free: Vec<u32> =
                        (0..64).filter(|it| !missing.contains(&(it / 16)) && !held.contains(it)).collect();
                    let runs = slots.take(count, near.clone());
                    prop_assert_eq!(runs.is_some(), count as usize <= free.len(), "a refusal while enough are free");
                    let taken: Vec<u32> =
                        runs.into_iter().flatten().flat_map(|run| run.start..run.start + run.length).collect();
                    if !taken.is_empty() {
                        let among = |slots: &[u32]| slots.iter().filter(|slot| near.contains(slot)).count();
                        prop_assert_eq!(taken.len(), count as usize);
                        prop_assert_eq!(among(&taken), among(&free).min(taken.len()), "what is near first");
                    }
                    prop_assert!(taken.iter().all(|slot| free.contains(slot)), "of the free ones only");
                    held.extend(taken);
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
