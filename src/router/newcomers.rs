//! Connections that have not shown the run's key: on a shared node anybody can open one.
//!
//! They may take nearly all places, but not keep them from others: when they would, the oldest of them is sent away for the
//! newest. A client with the key shows it with its first request, a moment after it came, and is no newcomer any more.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    rc::Rc,
};
use tokio::sync::Notify;

/// Those who are there, in the order in which they came.
pub struct Newcomers {
    most: usize,
    next: Cell<u64>,
    there: RefCell<BTreeMap<u64, Rc<Notify>>>,
}

/// One of them. It is none any more when this is dropped.
pub struct Newcomer {
    number: u64,
    leave: Rc<Notify>,
    among: Rc<Newcomers>,
}

impl Newcomers {
    /// At most `most` at once.
    pub fn new(most: usize) -> Rc<Self> {
        Rc::new(Self { most: most.max(1), next: Cell::default(), there: RefCell::default() })
    }

    /// One more; where there are too many the oldest is asked to leave.
    pub fn enter(self: &Rc<Self>) -> Newcomer {
        let number = self.next.replace(self.next.get() + 1);
        let leave = Rc::new(Notify::new());
        let mut there = self.there.borrow_mut();
        there.insert(number, leave.clone());
        if there.len() > self.most
            && let Some((_, oldest)) = there.pop_first()
        {
            oldest.notify_one();
        }
        Newcomer { number, leave, among: self.clone() }
    }
}

impl Newcomer {
    /// It has shown the key.
    pub fn is_known(&self) {
        self.among.there.borrow_mut().remove(&self.number);
    }

    /// Resolves when its place is needed.
    pub async fn has_to_leave(&self) {
        self.leave.notified().await;
    }
}

impl Drop for Newcomer {
    fn drop(&mut self) {
        self.is_known();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    #[test]
    fn the_oldest_makes_way_and_who_is_known_never() {
        let newcomers = Newcomers::new(2);
        let leaves = |one: &Newcomer| one.has_to_leave().now_or_never().is_some();
        let (known, old, young) = (newcomers.enter(), newcomers.enter(), newcomers.enter());
        // The first had to leave before it was known; it is too late for it.
        assert!(leaves(&known) && !leaves(&old) && !leaves(&young));
        old.is_known();
        drop(young);
        let (third, fourth, fifth) = (newcomers.enter(), newcomers.enter(), newcomers.enter());
        assert!(!leaves(&old) && leaves(&third) && !leaves(&fourth) && !leaves(&fifth));
    }
}
