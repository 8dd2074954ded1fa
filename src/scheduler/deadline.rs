//! Time: what expires, and when the scheduler next wants to be woken.
//!
//! Within a model requests wait in order of arrival and all have the same bound, so only the first one of each queue
//! matters.

use super::{
    Scheduler,
    event::{Effect, Rejection},
    explain::OutWhy,
    model::Model,
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
            if !self.draining && idle_until(&self.models[index]).is_some_and(|until| until <= now) {
                self.go_out(ModelId(index as u32), now, OutWhy::IdleTtl, fx);
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
            if self.draining {
                continue;
            }
            at(idle_until(model));
            at(model
                .leaving
                .filter(|_| model.keeps_streams)
                .map(|leaving| leaving.since + self.bounds.drain_limit));
            at(self.wanting.then_some(model.faults.spared_until));
            if demand.is_some() && model.state.can_come_in() {
                at(Some(model.faults.not_before));
                at(self
                    .ends
                    .map(|end| end.before(model.expected_in()) + std::time::Duration::from_micros(1)));
            }
        }
        next
    }
}

/// Until when an engine that nobody uses stays although nobody needs the room.
fn idle_until(model: &Model) -> Option<Moment> {
    let idle = model.is_open() && !model.is_busy() && !model.pinned;
    let until = model.last_used + model.spec.idle_ttl.filter(|_| idle)?;
    Some(until.max(model.faults.spared_until))
}
