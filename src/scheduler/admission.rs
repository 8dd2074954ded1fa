//! Requests: arrive, wait or are dispatched, go away, end.

use super::{
    Scheduler,
    event::{Effect, Rejection},
    queue::{Place, Waiting},
    state::State,
};
use crate::units::{ModelId, Moment, RequestId};
use std::time::Duration;

/// The longest `Retry-After`: the openai client stops retrying at larger values.
const LONGEST_RETRY: Duration = Duration::from_secs(120);

impl Scheduler {
    /// Dispatched at once, queued, or denied with the reason.
    pub(super) fn arrived(&mut self, request: RequestId, id: ModelId, now: Moment, fx: &mut Vec<Effect>) {
        let model = &mut self.models[id.index()];
        model.rate.arrival(now);
        model.last_used = now;
        if let Some(reason) = self.denies(id, now) {
            fx.push(Effect::Reject { request, reason });
            return;
        }
        let model = &mut self.models[id.index()];
        if model.is_open() {
            model.leases += 1;
            self.requests.insert(request, Place::Leased { model: id, life: model.life, since: now });
            let (waited, swapping) = (Duration::ZERO, Duration::ZERO);
            fx.push(Effect::Dispatch { request, model: id, waited, swapping });
            return;
        }
        let first = model.queue.is_empty();
        let ticket = model.queue.push(Waiting { request, arrived: now });
        self.requests.insert(request, Place::Waiting { model: id, ticket });
        // Those behind the first one change no decision: it is the oldest that counts.
        if first {
            self.settle(now, fx);
        }
    }

    fn denies(&self, id: ModelId, now: Moment) -> Option<Rejection> {
        let model = &self.models[id.index()];
        if self.draining {
            return Some(Rejection::Draining);
        }
        if model.is_open() {
            return self.comes_too_late(id, Duration::ZERO, now);
        }
        if let (State::Failed, Some(fault)) = (model.state, &model.faults.last) {
            return Some(Rejection::EngineFailed { detail: fault.detail.clone() });
        }
        if model.state.can_come_in()
            && let Some(reason) = self.cannot_serve(id, now)
        {
            return Some(reason);
        }
        let limit = self.bounds.queue_limit;
        (model.queue.len() >= limit)
            .then(|| Rejection::QueueFull { limit, retry_after: self.retry_after(id, now) })
    }

    /// When a place in the queue may be free: after the way in, and what is left of the busy engines' time before it.
    fn retry_after(&self, id: ModelId, now: Moment) -> Duration {
        let model = &self.models[id.index()];
        let elapsed = if model.state.is_moving() { now.since(model.since) } else { Duration::ZERO };
        let way_in = model.expected_in().saturating_sub(elapsed);
        let turn = self.gate.map(|gate| gate.since(now)).unwrap_or_default();
        (way_in + turn).clamp(Duration::from_secs(1), LONGEST_RETRY)
    }

    /// A client went away, or the last byte was sent: the request's place or its lease ends.
    pub(super) fn ended(&mut self, request: RequestId, now: Moment, fx: &mut Vec<Effect>) {
        match self.requests.remove(&request) {
            Some(Place::Waiting { model: id, ticket }) => {
                let queue = &mut self.models[id.index()].queue;
                queue.cancel(ticket);
                if queue.is_empty() {
                    self.settle(now, fx);
                }
            }
            Some(Place::Leased { model: id, life, since }) => {
                let model = &mut self.models[id.index()];
                if life != model.life {
                    return;
                }
                model.timing.lease_took(now.since(since));
                model.leases -= 1;
                model.last_used = now;
                if model.leases == 0 && (self.wanting || model.leaving.is_some() || self.ledger.is_over()) {
                    self.settle(now, fx);
                } else if model.leases == 0 {
                    let idle = model.spec.idle_ttl.map(|ttl| now + ttl);
                    self.wake = [self.wake, idle].into_iter().flatten().min();
                }
            }
            None => {}
        }
    }

    /// Everybody who waits for an open engine gets a lease, in order of arrival.
    pub(super) fn dispatch_waiting(&mut self, id: ModelId, now: Moment, fx: &mut Vec<Effect>) {
        let model = &mut self.models[id.index()];
        while let Some(Waiting { request, arrived }) = model.queue.pop() {
            model.leases += 1;
            model.last_used = now;
            self.requests.insert(request, Place::Leased { model: id, life: model.life, since: now });
            let swapping = match model.way_in {
                Some(began) if model.since == now => now.since(began.max(arrived)),
                _ => Duration::ZERO,
            };
            fx.push(Effect::Dispatch { request, model: id, waited: now.since(arrived), swapping });
        }
    }

    /// Refuses everybody who waits for `id`: requests, operators, and the config's own wish.
    pub(super) fn turn_away(&mut self, id: ModelId, reason: &Rejection, fx: &mut Vec<Effect>) {
        let model = &mut self.models[id.index()];
        model.wish = None;
        while let Some(Waiting { request, .. }) = model.queue.pop() {
            self.requests.remove(&request);
            fx.push(Effect::Reject { request, reason: reason.clone() });
        }
        for (ask, _) in model.asks_in.drain(..) {
            fx.push(Effect::Answer { ask, result: Err(reason.to_string()) });
        }
    }

    /// Why requests for a model that is not there cannot be served at all.
    pub(super) fn cannot_serve(&self, id: ModelId, now: Moment) -> Option<Rejection> {
        let model = &self.models[id.index()];
        let never = self.ledger.never(&model.coming_in());
        if !never.is_zero() {
            let detail = format!(
                "{} needs {}, and the job has {} less than that even with nothing else running; give it less memory in the \
                 config or ask Slurm for more",
                model.spec.name,
                model.coming_in(),
                never,
            );
            return Some(Rejection::NeverFits { detail });
        }
        self.comes_too_late(id, model.expected_in(), now)
    }

    /// Whether the job ends before a request could be answered that has to wait for `way_in` first. How long it will take is
    /// not known, only how long the model's longer ones took lately: that counts as far as `end_margin` goes.
    fn comes_too_late(&self, id: ModelId, way_in: Duration, now: Moment) -> Option<Rejection> {
        let remaining = self.ends?.since(now);
        let needs = way_in + self.models[id.index()].timing.longer_leases.min(self.bounds.end_margin);
        (remaining < needs).then_some(Rejection::JobEnding { remaining })
    }
}
