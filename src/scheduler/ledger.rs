//! What the job has and what its engines hold of it.
//!
//! Every engine always holds a footprint: that of its state, or in a transition the larger of both ends, resource by
//! resource. [`Ledger::reserve`] is the way in which a decision takes more, and it refuses to go over capacity;
//! [`Ledger::lend`] goes over it by what is being freed (`early.rs`);
//! [`Ledger::correct`] takes over what was measured, which may be more than was promised.

use crate::units::Footprint;
use serde::Serialize;

/// The three ledgers in one: bytes of each GPU, bytes of host memory, running slots.
#[derive(Clone, Debug)]
pub(super) struct Ledger {
    capacity: Footprint,
    largest: Footprint,
    used: Footprint,
    excused: bool,
}

/// The ledger as `status` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LedgerView {
    /// What the job may use.
    pub capacity: Footprint,
    /// What engines hold or have been promised.
    pub used: Footprint,
    /// By how much measured footprints exceed the capacity; nothing more begins there until that is gone.
    pub over: Footprint,
}

impl Ledger {
    pub(super) fn new(capacity: Footprint, ceiling: &Footprint) -> Self {
        Ledger { largest: capacity.max(ceiling), capacity, used: Footprint::default(), excused: false }
    }

    /// Whether `extra` can be taken now; resources that it takes nothing of do not matter.
    pub(super) fn has_room(&self, extra: &Footprint) -> bool {
        let nothing = Footprint::default();
        self.lack_after(extra, &nothing, &nothing).is_zero()
    }

    /// What is missing for `extra`, on the resources that it takes any of, once `promised` has been taken and `freed`
    /// given back.
    pub(super) fn lack_after(&self, extra: &Footprint, promised: &Footprint, freed: &Footprint) -> Footprint {
        self.used.plus(promised).plus(extra).minus(&self.capacity.plus(freed)).masked_by(extra)
    }

    /// Grows `held` to `next` where the room allows it; shrinking always succeeds.
    pub(super) fn reserve(&mut self, held: &mut Footprint, next: Footprint) -> bool {
        if !self.has_room(&next.minus(held)) {
            return false;
        }
        self.replace(held, next);
        true
    }

    /// Grows `held` to `next` though a part of that is still to be freed: what is claimed of it, see [`Ledger::check`].
    pub(super) fn lend(&mut self, held: &mut Footprint, next: Footprint) {
        self.replace(held, next);
    }

    /// By whatever it is over the capacity now, no decision is to blame.
    pub(super) fn excuse(&mut self) {
        self.excused = self.is_over();
    }

    /// Sets `held` to what was measured, or to what a finished move left.
    pub(super) fn correct(&mut self, held: &mut Footprint, measured: Footprint) {
        let grows = !measured.within(held);
        self.replace(held, measured);
        self.excused |= grows && self.is_over();
    }

    fn replace(&mut self, held: &mut Footprint, next: Footprint) {
        self.used = self.used.minus(held).plus(&next);
        *held = next;
        self.excused &= self.is_over();
    }

    /// What the job has from now on.
    pub(super) fn set_capacity(&mut self, capacity: Footprint) {
        self.largest = self.largest.max(&capacity);
        self.capacity = capacity;
        self.excused = self.is_over();
    }

    /// By how much the capacity is exceeded.
    pub(super) fn over(&self) -> Footprint {
        self.used.minus(&self.capacity)
    }

    pub(super) fn is_over(&self) -> bool {
        !self.over().is_zero()
    }

    /// What is missing for `alone` even if nothing else ran, against the largest capacity there has been: memory that
    /// strangers take for a while is waited for.
    pub(super) fn never(&self, alone: &Footprint) -> Footprint {
        alone.minus(&self.largest)
    }

    pub(super) fn view(&self) -> LedgerView {
        LedgerView { capacity: self.capacity.clone(), used: self.used.clone(), over: self.over() }
    }

    /// The sum is right, and only measured footprints, a shrunken capacity, or what is `claimed` of that which is being
    /// freed put it over.
    pub(super) fn check<'a>(
        &self,
        held: impl Iterator<Item = &'a Footprint>,
        claimed: &Footprint,
    ) -> Result<(), String> {
        let sum = held.fold(Footprint::default(), |sum, one| sum.plus(one));
        if !sum.minus(&self.used).is_zero() || !self.used.minus(&sum).is_zero() {
            return Err(format!("the ledger says {} but the engines hold {sum}", self.used));
        }
        if !self.over().within(claimed) && !self.excused {
            return Err(format!("over capacity by {} through a decision", self.over()));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Bytes;

    fn gpu(gib: u64) -> Footprint {
        Footprint::on_gpus(&[0], Bytes::gib(gib))
    }

    #[test]
    fn a_reservation_never_goes_over() {
        let mut ledger = Ledger::new(gpu(80), &Footprint::default());
        let (mut a, mut b) = (Footprint::default(), Footprint::default());
        assert!(ledger.reserve(&mut a, gpu(50)));
        assert!(!ledger.reserve(&mut b, gpu(31)));
        assert!(b.is_zero());
        assert!(ledger.reserve(&mut b, gpu(30)));
        ledger.check([&a, &b].into_iter(), &Footprint::default()).unwrap();
    }

    #[test]
    fn a_measure_may_go_over_and_then_nothing_more_begins_there() {
        let mut ledger = Ledger::new(gpu(80).with_host(Bytes::gib(10)), &Footprint::default());
        let (mut a, mut b) = (Footprint::default(), Footprint::default());
        assert!(ledger.reserve(&mut a, gpu(50)));
        ledger.correct(&mut a, gpu(81));
        ledger.check([&a].into_iter(), &Footprint::default()).unwrap();
        assert!(!ledger.reserve(&mut b, gpu(1)));
        assert!(ledger.reserve(&mut b, Footprint::default().with_host(Bytes::gib(1))), "another resource");
        ledger.correct(&mut a, gpu(80));
        assert!(ledger.over().is_zero());
    }

    #[test]
    fn what_a_stranger_holds_is_waited_for_and_no_more() {
        let ledger = Ledger::new(gpu(50), &gpu(80));
        assert!(!ledger.has_room(&gpu(60)));
        assert!(ledger.never(&gpu(60)).is_zero());
        assert_eq!(ledger.never(&gpu(81)), gpu(1));
        assert!(Ledger::new(gpu(50), &Footprint::default()).never(&gpu(50)).is_zero());
    }
}
