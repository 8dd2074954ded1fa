//! Time: what expires, and when the scheduler next wants to be woken.
//!
//! Within a model requests wait in order of arrival and all have the same bound, so only the first one of each queue
//! matters.

use super::{
    Scheduler,
    event::{Effect, Rejection},
    explain::{OutWhy, PutOff},
    model::{Leaving, Model, Why},
};
use crate::units::{ModelId, Moment};

impl Scheduler {
    /// Gives up what has waited too long and lets go what has been idle too long.
    pub(super) fn expire(&mut self, now: Moment, fx: &mut Vec<Effect>) {
        let bound = self.bounds.max_wait;
        for index in 0..self.models.len() {
            let model = &mut self.models[index];
            while let Some(front) = model.queue.front().filter(|front| front.arrived + bound <= now) {
                model.queue.pop();
                self.requests.remove(&front.request);
                fx.push(Effect::Reject {
                    request: front.request,
                    reason: Rejection::WaitedTooLong { bound },
                });
            }
            while let Some((ask, _)) = model.asks_in.first().filter(|(_, since)| *since + bound <= now) {
                let result = Err(Rejection::WaitedTooLong { bound }.to_string());
                fx.push(Effect::Answer { ask: *ask, result });
                model.asks_in.remove(0);
            }
            if self.models[index].put_off_at().is_some_and(|at| at <= now) {
                self.put_off(ModelId(index as u32), now, PutOff::TooLong, fx);
            }
            if !self.draining && idle_until(&self.models[index]).is_some_and(|until| until <= now) {
                self.go_out(ModelId(index as u32), now, None, OutWhy::IdleTtl, fx);
            }
        }
    }

    /// The earliest moment at which something is to be decided though nothing else happens.
    pub(super) fn next_deadline(&self, now: Moment) -> Option<Moment> {
        let mut next = self.gate;
        let mut at = |moment: Option<Moment>| {
            next = [next, moment.filter(|moment| *moment > now)].into_iter().flatten().min();
        };
        for model in &self.models {
            let demand = model.demand();
            at(model.queue.front().map(|front| front.arrived + self.bounds.max_wait));
            at(model.asks_in.first().map(|(_, since)| *since + self.bounds.max_wait));
            at(model.put_off_at());
            if self.draining {
                continue;
            }
            at(idle_until(model));
            at(model.leaving.filter(|_| model.keeps_streams).map(|leaving| self.overdue_at(model, leaving)));
            at((self.wanting || self.ledger.is_over()).then_some(model.faults.spared_until));
            if demand.is_some() && model.state.can_come_in() {
                at(Some(model.faults.not_before));
                let needs = model.expected_in() + model.timing.longer_leases.min(self.bounds.end_margin);
                at(self.ends.map(|end| end.before(needs) + std::time::Duration::from_micros(1)));
            }
        }
        next
    }
}

impl Scheduler {
    /// Whether a closed engine goes out although requests run on it: its streams survive that, and its drain has taken
    /// too long.
    pub(super) fn is_overdue(&self, model: &Model, leaving: Leaving, now: Moment) -> bool {
        model.keeps_streams && self.overdue_at(model, leaving) <= now
    }

    /// When its drain has taken too long: after `drain_limit`, or when whoever waits for the room would else wait for
    /// longer than `max_wait`; not before its least residency.
    fn overdue_at(&self, model: &Model, leaving: Leaving) -> Moment {
        let drained = leaving.since + self.bounds.drain_limit;
        let last = match leaving.why {
            Why::Room(whom) => self.last_chance(model, self.model(whom)),
            Why::Asked => None,
        };
        let least = leaving.since.max(model.resident_since + self.bounds.min_resident);
        last.map_or(drained, |last| drained.min(last.max(least)))
    }

    /// When `busy` has to begin to go out so that the oldest request for `waiting` is served within `max_wait`; twice the
    /// time that both moves are expected to take is left for them.
    pub(super) fn last_chance(&self, busy: &Model, waiting: &Model) -> Option<Moment> {
        let request = waiting.queue.front().map(|front| front.arrived);
        let ask = waiting.asks_in.first().map(|(_, since)| *since);
        let first = [request, ask].into_iter().flatten().min()?;
        let moves = busy.expected_out() + waiting.expected_in();
        Some((first + self.bounds.max_wait).before(moves * 2))
    }
}

/// Until when an engine that nobody uses stays although nobody needs the room.
fn idle_until(model: &Model) -> Option<Moment> {
    let idle = model.is_open() && !model.is_busy() && !model.pinned;
    let until = model.last_used + model.spec.idle_ttl.filter(|_| idle)?;
    Some(until.max(model.faults.spared_until))
}
