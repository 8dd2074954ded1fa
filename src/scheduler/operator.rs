//! What people and the job ask for: in, out, pin, another capacity, the end.

use super::{
    Scheduler,
    demand::Urgency,
    event::{Effect, Rejection},
    model::{Leaving, Model, Why},
    state::State,
};
use crate::units::{Footprint, ModelId, Moment};
use std::time::Duration;

impl Scheduler {
    /// Wants the model resident; an engine that was given up is tried again.
    pub(super) fn ask_in(&mut self, ask: u64, id: ModelId, now: Moment, fx: &mut Vec<Effect>) {
        let denied = self.draining.then_some(Rejection::Draining);
        let away =
            self.models[id.index()].state.can_come_in() || self.models[id.index()].state == State::Failed;
        let denied = denied.or_else(|| if away { self.cannot_serve(id, now) } else { None });
        if let Some(reason) = denied {
            fx.push(Effect::Answer { ask, result: Err(reason.to_string()) });
            return;
        }
        let model = &mut self.models[id.index()];
        if model.is_open() {
            fx.push(Effect::Answer { ask, result: Ok(()) });
            return;
        }
        if model.state == State::Failed {
            model.enter(State::Cold, now);
            model.faults.recent.clear();
        }
        model.faults.not_before = now;
        model.asks_in.push((ask, now));
        self.settle(now, fx);
    }

    /// Wants the model out: it is closed, drained, and swapped out. It comes back when a request names it.
    pub(super) fn ask_out(&mut self, ask: u64, id: ModelId, now: Moment, fx: &mut Vec<Effect>) {
        let model = &mut self.models[id.index()];
        for (ask, _) in model.asks_in.drain(..) {
            fx.push(Effect::Answer { ask, result: Err("asked to go out meanwhile".to_owned()) });
        }
        let refused = match model.state {
            State::Cold | State::Preparing | State::Out | State::Failed => Some(Ok(())),
            _ if self.draining => Some(Err(Rejection::Draining.to_string())),
            _ => None,
        };
        match refused {
            Some(result) => fx.push(Effect::Answer { ask, result }),
            None => {
                model.asks_out.push(ask);
                if model.state == State::Resident {
                    let since = model.leaving.map_or(now, |leaving| leaving.since);
                    model.leaving = Some(Leaving { since, why: Why::Asked });
                }
            }
        }
        self.settle(now, fx);
    }

    pub(super) fn pin(&mut self, id: ModelId, pinned: bool, now: Moment, fx: &mut Vec<Effect>) {
        self.models[id.index()].pinned = pinned;
        self.settle(now, fx);
    }

    pub(super) fn set_capacity(&mut self, capacity: Footprint, now: Moment, fx: &mut Vec<Effect>) {
        self.ledger.set_capacity(capacity);
        self.settle(now, fx);
    }

    pub(super) fn job_ends(&mut self, remaining: Duration, now: Moment, fx: &mut Vec<Effect>) {
        self.ends = Some(now + remaining);
        self.settle(now, fx);
    }

    /// Admission ends: whoever waits is rejected, no swap begins any more, what runs goes on.
    pub(super) fn drain(&mut self, now: Moment, fx: &mut Vec<Effect>) {
        self.draining = true;
        for index in 0..self.models.len() {
            self.turn_away(ModelId(index as u32), &Rejection::Draining, fx);
            let model = &mut self.models[index];
            // One that is on its way already is answered when it is done.
            if !matches!(model.state, State::SwappingOut | State::Stopping) {
                model.answer_asks_out(Err(&Rejection::Draining.to_string()), fx);
            }
            model.leaving = None;
        }
        self.settle(now, fx);
    }

    pub(super) fn boot(&mut self, now: Moment, fx: &mut Vec<Effect>) {
        self.booting = true;
        for model in self.models.iter_mut().filter(|model| model.state == State::Cold) {
            model.wish = Some((Urgency::Start, now));
        }
        self.settle(now, fx);
    }

    /// When the last engine is through its start, the config's own wishes come up; whether that was now.
    pub(super) fn boot_is_over(&mut self, now: Moment) -> bool {
        let under_way = |m: &Model| m.state == State::Starting || matches!(m.wish, Some((Urgency::Start, _)));
        if !self.booting || self.models.iter().any(under_way) {
            return false;
        }
        self.booting = false;
        let away =
            |model: &&mut Model| !matches!(model.state, State::Resident | State::SwappingIn | State::Failed);
        let kept = self.models.iter_mut().filter(|model| model.spec.preload || model.pinned);
        kept.filter(away).for_each(|model| model.wish = Some((Urgency::Preload, now)));
        true
    }
}

impl Model {
    /// Answers everybody who asked for it to go out.
    pub(super) fn answer_asks_out(&mut self, result: Result<(), &str>, fx: &mut Vec<Effect>) {
        for ask in self.asks_out.drain(..) {
            fx.push(Effect::Answer { ask, result: result.map_err(str::to_owned) });
        }
    }
}
