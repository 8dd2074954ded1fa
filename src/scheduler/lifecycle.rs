//! What engines report: moves that are done or failed, and processes that ended.
//!
//! A report that does not belong to the model's state (a late one, after the process was seen to end) changes nothing.

use super::{
    Scheduler,
    demand::Urgency,
    event::{Effect, EngineFault, Rejection, SwapMeasure},
    explain::What,
    model::{Leaving, Why},
    state::State,
};
use crate::units::{Footprint, MechanismKind, ModelId, Moment};
use std::time::Duration;

/// How long an engine whose swap-out was refused is spared, the first time; doubled each time up to the second.
const SPARED: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(60));
/// How long one waits that was to come in and found another process's memory in its place, the first time; doubled each
/// time up to the second. In one of these pauses the capacity is measured anew.
const NO_ROOM: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));

/// The first time, doubled each `time` after it up to the longest.
fn doubled((first, longest): (Duration, Duration), time: u32) -> Duration {
    first.saturating_mul(1 << time.min(16)).min(longest)
}

impl Scheduler {
    /// It is resident: after its start and trial, or after a swap-in.
    pub(super) fn came_in(&mut self, id: ModelId, measure: &SwapMeasure, now: Moment, fx: &mut Vec<Effect>) {
        let model = &mut self.models[id.index()];
        match model.state {
            State::Starting => model.timing.start = Some(measure.took),
            State::SwappingIn => {
                model.timing.swap_in = Some(measure.took);
                model.swaps_in += 1;
            }
            _ => return,
        }
        model.learn(measure);
        (model.ahead, model.patient) = (None, false);
        model.faults.no_room = 0;
        let resident = model.resident.clone();
        self.ledger.correct(&mut model.held, resident);
        model.way_in = Some(model.since);
        model.enter(State::Resident, now);
        (model.resident_since, model.last_used) = (now, now);
        model.wish = None;
        for (ask, _) in model.asks_in.drain(..) {
            fx.push(Effect::Answer { ask, result: Ok(()) });
        }
        self.dispatch_waiting(id, now, fx);
        let model = &mut self.models[id.index()];
        if !model.asks_out.is_empty() {
            model.leaving = Some(Leaving { since: now, why: Why::Asked });
        }
        self.settle(now, fx);
    }

    /// It is out, and its resources have been seen to be free.
    pub(super) fn went_out(&mut self, id: ModelId, measure: &SwapMeasure, now: Moment, fx: &mut Vec<Effect>) {
        let model = &mut self.models[id.index()];
        if model.state != State::SwappingOut {
            return;
        }
        if !measure.partial {
            model.timing.swap_out = Some(measure.took);
        }
        model.swaps_out += 1;
        model.faults.refusals = 0;
        model.learn(measure);
        model.left = if measure.partial { measure.out.clone() } else { model.out.clone() };
        let left = model.left.clone();
        self.ledger.correct(&mut model.held, left);
        model.enter(State::Out, now);
        model.answer_asks_out(Ok(()), fx);
        self.redeem(id, false);
        self.settle(now, fx);
    }

    /// A refusal has left one on another rung of its ladder: whether its streams survive a swap goes by that.
    pub(super) fn use_mechanism(&mut self, id: ModelId, mechanism: Option<MechanismKind>) {
        let model = &mut self.models[id.index()];
        if let Some(kind) = mechanism.filter(|_| model.state == State::SwappingOut) {
            (model.mechanism, model.keeps_streams) = (mechanism, kind.keeps_streams());
        }
    }

    /// A swap-out was refused: the engine is resident as before, or out as far as it was, and is spared for a while.
    pub(super) fn refused_to_go(
        &mut self,
        id: ModelId,
        fault: EngineFault,
        now: Moment,
        fx: &mut Vec<Effect>,
    ) {
        let model = &mut self.models[id.index()];
        if model.state != State::SwappingOut {
            return;
        }
        let spared = doubled(SPARED, model.faults.refusals);
        model.faults.refusals += 1;
        model.faults.spared_until = now + spared;
        let (state, holds, answer) = match model.again {
            true => (State::Out, model.left.clone(), Ok(())),
            false => (State::Resident, model.resident.clone(), Err(fault.detail.as_str())),
        };
        self.ledger.correct(&mut model.held, holds);
        model.enter(state, now);
        model.history.note(now, What::RefusedToGo { detail: fault.detail.clone(), spared });
        model.answer_asks_out(answer, fx);
        model.faults.last = Some(fault);
        self.redeem(id, true);
        if state == State::Resident {
            self.dispatch_waiting(id, now, fx);
        }
        self.settle(now, fx);
    }

    /// A swap-in failed, perhaps only for want of memory, and the engine is out as before: tried again after a delay, or at
    /// once if it came early.
    pub(super) fn stayed_out(
        &mut self,
        id: ModelId,
        fault: EngineFault,
        short: bool,
        now: Moment,
        fx: &mut Vec<Effect>,
    ) {
        let model = &mut self.models[id.index()];
        if model.state != State::SwappingIn {
            return;
        }
        let left = model.left.clone();
        self.ledger.correct(&mut model.held, left);
        model.enter(State::Out, now);
        model.answer_asks_out(Ok(()), fx);
        if model.ahead.take().is_some() {
            model.patient = true;
            model.history.note(now, What::WentBack { detail: fault.detail });
            return self.settle(now, fx);
        }
        if short {
            return self.wait_for_memory(id, fault, now, fx);
        }
        self.failed(id, fault, now, fx);
    }

    /// Another process's memory is where the ledger has room: tried again after a delay, for as long as that lasts. It
    /// says nothing against the engine.
    fn wait_for_memory(&mut self, id: ModelId, fault: EngineFault, now: Moment, fx: &mut Vec<Effect>) {
        let model = &mut self.models[id.index()];
        let delay = doubled(NO_ROOM, model.faults.no_room);
        model.faults.no_room += 1;
        model.faults.not_before = now + delay;
        model.history.note(now, What::Broke { detail: fault.detail.clone(), again: delay });
        model.faults.last = Some(fault);
        self.settle(now, fx);
    }

    /// A start failed, or an engine ended while it was held; nothing of it is left.
    pub(super) fn start_failed(
        &mut self,
        id: ModelId,
        fault: EngineFault,
        now: Moment,
        fx: &mut Vec<Effect>,
    ) {
        if matches!(self.models[id.index()].state, State::Preparing | State::Starting) {
            self.lost(id, fault, now, fx);
        }
    }

    /// A move has lost the engine. One that belongs to an earlier life says nothing of this one.
    pub(super) fn lost_in(
        &mut self,
        state: State,
        id: ModelId,
        fault: EngineFault,
        now: Moment,
        fx: &mut Vec<Effect>,
    ) {
        if self.models[id.index()].state == state {
            self.lost(id, fault, now, fx);
        }
    }

    /// The engine's process is gone, whatever it was doing; nothing of it holds a resource any more.
    pub(super) fn lost(&mut self, id: ModelId, fault: EngineFault, now: Moment, fx: &mut Vec<Effect>) {
        let model = &mut self.models[id.index()];
        if !model.state.has_process() {
            return;
        }
        let expected = model.state == State::Stopping;
        model.prepared_in_vain |= model.state == State::Preparing || model.was_prepared;
        self.vacate(id, now);
        self.models[id.index()].answer_asks_out(Ok(()), fx);
        if expected {
            self.after_stop(id, now, fx);
        } else {
            self.failed(id, fault, now, fx);
        }
    }

    /// The engine was stopped as asked.
    pub(super) fn stopped(&mut self, id: ModelId, now: Moment, fx: &mut Vec<Effect>) {
        if self.models[id.index()].state != State::Stopping {
            return;
        }
        self.vacate(id, now);
        self.models[id.index()].answer_asks_out(Ok(()), fx);
        self.after_stop(id, now, fx);
    }

    fn after_stop(&mut self, id: ModelId, now: Moment, fx: &mut Vec<Effect>) {
        if self.models[id.index()].faults.hopeless {
            self.give_up(id, now, fx);
        }
        self.settle(now, fx);
    }

    /// Nothing of the process is left: its leases hold nothing, its resources are free.
    fn vacate(&mut self, id: ModelId, now: Moment) {
        let model = &mut self.models[id.index()];
        self.ledger.correct(&mut model.held, Footprint::default());
        model.ahead = None;
        model.enter(State::Cold, now);
        model.leases = 0;
        model.life += 1;
        model.warm.forget();
        self.redeem(id, false);
    }

    /// Notes a failure: tried again after a delay that doubles, or given up.
    fn failed(&mut self, id: ModelId, fault: EngineFault, now: Moment, fx: &mut Vec<Effect>) {
        let draining = self.draining;
        let model = &mut self.models[id.index()];
        let policy = model.spec.restart;
        model.faults.recent.retain(|at| now.since(*at) < policy.window);
        model.faults.recent.push(now);
        let failures = model.faults.recent.len() as u32;
        let hopeless = !fault.retry || failures >= policy.give_up;
        let delay = doubled((policy.first, policy.longest), failures - 1);
        if !hopeless {
            model.history.note(now, What::Broke { detail: fault.detail.clone(), again: delay });
            model.faults.not_before = now + delay;
            if model.state == State::Cold && !draining {
                model.wish = Some((Urgency::Start, now));
            }
            model.faults.last = Some(fault);
        } else {
            model.faults.last = Some(fault);
            self.give_up(id, now, fx);
        }
        self.settle(now, fx);
    }

    /// Rejects everybody who waits for it. A process that is left is stopped first.
    fn give_up(&mut self, id: ModelId, now: Moment, fx: &mut Vec<Effect>) {
        let model = &mut self.models[id.index()];
        let detail = model.faults.last.as_ref().map(|fault| fault.detail.clone()).unwrap_or_default();
        if model.state == State::Out {
            model.faults.hopeless = true;
            model.leases = 0;
            model.life += 1;
            model.enter(State::Stopping, now);
            fx.push(Effect::Stop { model: id });
        } else {
            model.faults.hopeless = false;
            model.enter(State::Failed, now);
            model.history.note(now, What::GaveUp { detail: detail.clone() });
        }
        self.turn_away(id, &Rejection::EngineFailed { detail }, fx);
    }
}
