//! Requests that wait for one model, and where each request of the run is.
//!
//! Arrival, cancellation and dispatch cost the same whatever the length: a cancelled request leaves a gap that is
//! passed over when it comes to the front. The front and the back are never gaps.

use crate::units::{ModelId, Moment, RequestId};
use std::{
    collections::{HashMap, VecDeque},
    hash::{BuildHasherDefault, Hasher},
};

/// The requests waiting for one model, in order of arrival.
#[derive(Clone, Debug, Default)]
pub(super) struct Queue {
    slots: VecDeque<Option<Waiting>>,
    /// Number of the first slot; a ticket is its slot's number.
    first: u64,
    live: u32,
}

/// One waiting request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Waiting {
    pub(super) request: RequestId,
    pub(super) arrived: Moment,
}

impl Queue {
    pub(super) fn len(&self) -> u32 {
        self.live
    }

    pub(super) fn is_empty(&self) -> bool {
        self.live == 0
    }

    /// The request that has waited longest.
    pub(super) fn front(&self) -> Option<Waiting> {
        self.slots.front().copied().flatten()
    }

    /// Appends; the ticket is what [`Queue::cancel`] wants.
    pub(super) fn push(&mut self, waiting: Waiting) -> u64 {
        self.slots.push_back(Some(waiting));
        self.live += 1;
        self.first + self.slots.len() as u64 - 1
    }

    /// Takes the request that has waited longest.
    pub(super) fn pop(&mut self) -> Option<Waiting> {
        let front = self.slots.pop_front()?;
        self.first += 1;
        self.live -= u32::from(front.is_some());
        self.trim();
        front
    }

    /// Takes one request out of the middle.
    pub(super) fn cancel(&mut self, ticket: u64) {
        let at = ticket.checked_sub(self.first).and_then(|at| usize::try_from(at).ok());
        let slot = at.and_then(|at| self.slots.get_mut(at));
        if slot.and_then(Option::take).is_some() {
            self.live -= 1;
            self.trim();
        }
    }

    fn trim(&mut self) {
        while let Some(None) = self.slots.front() {
            self.slots.pop_front();
            self.first += 1;
        }
        while let Some(None) = self.slots.back() {
            self.slots.pop_back();
        }
    }
}

/// Where a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// In its model's queue.
    Waiting { model: ModelId, ticket: u64 },
    /// On an engine. `life` tells the engine's process from one that was started after it.
    Leased { model: ModelId, life: u32, since: Moment },
}

/// Every request that has neither been rejected nor ended. Never iterated in a decision.
pub(super) type Requests = HashMap<RequestId, Place, BuildHasherDefault<InSequence>>;

/// A hash for numbers that the run itself gives out, one after the other: neighbours lie side by side in memory, so a
/// long queue costs no cache misses. The table's seven tag bits (the topmost) are the number's lowest.
#[derive(Clone, Debug, Default)]
pub(super) struct InSequence(u64);

impl Hasher for InSequence {
    fn write_u64(&mut self, number: u64) {
        self.0 = number ^ (number << 57);
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64(self.0.rotate_left(8) ^ u64::from(*byte)));
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiting(n: u64) -> Waiting {
        Waiting { request: RequestId(n), arrived: Moment(n) }
    }

    #[test]
    fn gaps_are_passed_over() {
        let mut queue = Queue::default();
        let tickets: Vec<u64> = (0..5).map(|n| queue.push(waiting(n))).collect();
        queue.cancel(tickets[0]);
        queue.cancel(tickets[2]);
        queue.cancel(tickets[2]);
        assert_eq!((queue.len(), queue.front()), (3, Some(waiting(1))));
        assert_eq!(queue.pop(), Some(waiting(1)));
        assert_eq!(queue.front(), Some(waiting(3)));
        queue.cancel(tickets[4]);
        let again = queue.push(waiting(9));
        queue.cancel(again);
        assert_eq!((queue.pop(), queue.pop(), queue.is_empty()), (Some(waiting(3)), None, true));
    }
}
