//! A switch: what one engine gives up, another one takes while the first is still on its way out.
//!
//! ```text
//!  out n   begun ──▶ freed ──▶ freed ──▶ … ──▶ gone          or ──▶ failed, and only then its memory is asked for again
//!            │         │         │               │                    │
//!  in      waits ──▶ takes as much and no more ──▶ gate open        gives back all it took; refused, out as before
//! ```
//!
//! Swap-outs are told apart by numbers that the daemon gives them. One that has not begun is waited for: the two calls
//! come by different threads. What may be taken is what the daemon says is free besides, and what was seen to be freed; so a
//! budget is kept at every moment, and memory of others that becomes free is not mistaken for it.

use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::call::Beside;

/// Swap-outs that are remembered: each is asked about soon or never.
const KEPT: usize = 64;
/// By which part more than was freed may be taken when the swap-outs are over: contexts and small allocations come and go
/// meanwhile, and what the daemon counts is measured with them.
const SLACK: u64 = 256;

/// The swap-outs that others may take part in.
#[derive(Debug, Default)]
pub(super) struct Switches {
    outs: Mutex<BTreeMap<u64, Out>>,
    changed: Condvar,
}

/// A swap-out: bytes freed on each GPU so far, and whether it is over.
#[derive(Debug, Default)]
struct Out {
    freed: BTreeMap<usize, u64>,
    end: Option<bool>,
}

/// What is known of some swap-outs together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Given {
    freed: BTreeMap<usize, u64>,
    /// Every one has begun.
    pub(super) begun: bool,
    /// Every one has gone: none can fail any more.
    pub(super) gone: bool,
    /// One failed.
    pub(super) failed: bool,
}

impl Switches {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Out>> {
        self.outs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A swap-out begins. Those without a number are nobody's.
    pub(super) fn begin(&self, number: u64) {
        if number > 0 {
            let mut outs = self.lock();
            outs.entry(number).or_default();
            while outs.len() > KEPT {
                outs.pop_first();
            }
            self.changed.notify_all();
        }
    }

    /// It has freed bytes on a GPU: nobody holds them any more.
    pub(super) fn freed(&self, number: u64, gpu: usize, bytes: u64) {
        if let Some(out) = self.lock().get_mut(&number) {
            *out.freed.entry(gpu).or_default() += bytes;
            self.changed.notify_all();
        }
    }

    /// It is over: gone, or failed. To be told before anything is brought back; the first word counts.
    pub(super) fn end(&self, number: u64, gone: bool) {
        if let Some(out) = self.lock().get_mut(&number) {
            out.end.get_or_insert(gone);
            self.changed.notify_all();
        }
    }

    fn given(outs: &BTreeMap<u64, Out>, numbers: &[u64]) -> Given {
        let known: Vec<&Out> = numbers.iter().filter_map(|number| outs.get(number)).collect();
        let mut given = Given {
            begun: known.len() == numbers.len(),
            gone: known.len() == numbers.len() && known.iter().all(|out| out.end == Some(true)),
            failed: known.iter().any(|out| out.end == Some(false)),
            freed: BTreeMap::new(),
        };
        for (gpu, bytes) in known.iter().flat_map(|out| &out.freed) {
            *given.freed.entry(*gpu).or_default() += bytes;
        }
        given
    }
}

/// One swap-in's share in swap-outs; its processes take from it together.
#[derive(Debug)]
pub(super) struct Share<'a> {
    switches: &'a Switches,
    beside: &'a Beside,
    taken: Mutex<BTreeMap<usize, u64>>,
}

impl<'a> Share<'a> {
    /// Nothing taken yet.
    pub(super) fn new(switches: &'a Switches, beside: &'a Beside) -> Self {
        Self { switches, beside, taken: Mutex::default() }
    }

    /// What is known of the swap-outs now.
    pub(super) fn look(&self) -> Given {
        Switches::given(&self.switches.lock(), &self.beside.outs)
    }

    /// Waits until there is more to know than was `seen`.
    pub(super) fn wait(&self, seen: &Given, deadline: Instant) {
        let mut outs = self.switches.lock();
        while Switches::given(&outs, &self.beside.outs) == *seen {
            let left = deadline.saturating_duration_since(Instant::now());
            if left == Duration::ZERO {
                return;
            }
            let waited = self.switches.changed.wait_timeout(outs, left);
            outs = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Takes bytes on a GPU, if there are so many to be taken.
    pub(super) fn take(&self, given: &Given, gpu: usize, bytes: u64) -> bool {
        let room = self.beside.room.get(gpu).copied().unwrap_or_default();
        let freed = given.freed.get(&gpu).copied().unwrap_or_default();
        let most = room + freed;
        let most = if given.gone { most + most / SLACK } else { most };
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let so_far = taken.entry(gpu).or_default();
        let fits = *so_far + bytes <= most;
        *so_far += if fits { bytes } else { 0 };
        fits
    }

    /// Gives back what was taken and not used.
    pub(super) fn give_back(&self, gpu: usize, bytes: u64) {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let so_far = taken.entry(gpu).or_default();
        *so_far = so_far.saturating_sub(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn beside(outs: &[u64], room: u64) -> Beside {
        Beside { outs: outs.to_vec(), room: vec![room] }
    }

    #[test]
    fn no_more_is_taken_than_is_free_and_was_freed() {
        let switches = Switches::default();
        let beside = beside(&[7], 10);
        let share = Share::new(&switches, &beside);
        assert!(!share.look().begun, "it has not begun, and nothing of it is known");
        assert!(share.take(&share.look(), 0, 10) && !share.take(&share.look(), 0, 1));
        switches.begin(7);
        switches.freed(7, 0, 5);
        switches.freed(7, 1, 100);
        assert!(!share.take(&share.look(), 0, 6) && share.take(&share.look(), 0, 5));
        share.give_back(0, 2);
        assert!(share.take(&share.look(), 0, 2) && !share.take(&share.look(), 0, 1));
        switches.end(7, true);
        switches.begin(8);
        assert!(share.look().gone && !share.take(&share.look(), 0, 1), "of so little there is no slack");
    }

    #[test]
    fn it_is_gone_when_all_are_and_fails_with_the_first() {
        let switches = Switches::default();
        let beside = beside(&[1, 2], 0);
        let share = Share::new(&switches, &beside);
        [1, 2].iter().for_each(|number| switches.begin(*number));
        switches.end(1, true);
        assert!(share.look().begun && !share.look().gone);
        switches.end(2, false);
        switches.end(2, true);
        assert!(share.look().failed && !share.look().gone, "the first word counts");
    }

    #[test]
    fn whoever_waits_is_told() {
        let switches = Switches::default();
        let beside = beside(&[3], 0);
        let share = Share::new(&switches, &beside);
        let seen = share.look();
        std::thread::scope(|scope| {
            scope.spawn(|| switches.begin(3));
            share.wait(&seen, Instant::now() + Duration::from_secs(30));
        });
        assert!(share.look().begun);
    }

    #[test]
    fn only_the_latest_are_remembered() {
        let switches = Switches::default();
        (0..=KEPT as u64 + 2).for_each(|number| switches.begin(number));
        assert_eq!(switches.lock().len(), KEPT);
        assert!(!switches.lock().contains_key(&0), "without a number it is nobody's");
    }
}
