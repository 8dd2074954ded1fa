//! Which slots of the pool are free. A slot is one block of 2 MiB.
//!
//! Runs never cross a segment, because a copy must not: segments are pinned one by one.

use std::collections::BTreeMap;

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
}

impl Slots {
    /// No slots yet, in segments of that many.
    pub(super) fn new(segment: u32) -> Self {
        Self { free: BTreeMap::new(), segment, count: 0 }
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

    /// Gives slots back, or adds new ones. They must not be free already.
    pub(super) fn give(&mut self, run: Run) {
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
