//! A switch in one: whoever comes in takes memory while it is being freed.
//!
//! ```text
//!   A  Resident ──▶ SwappingOut ─── frees, part by part ───▶ Out
//!                        │ claim           │                  │ refused: A has its memory again
//!                        ▼                 ▼ takes            ▼
//!   B  Out ────────▶ SwappingIn (early) ──────────────▶ Resident, or Out again: no fault of B's
//! ```
//!
//! A swap-in need not wait for the report of the swap-out that makes its room, where both are carried out by the memory
//! server ([`MechanismKind::Park`]): it counts what A frees, lets B take so much and no more, and lets B go on only when
//! A's swap-out can no longer fail. So the two share the bus, and the time between them is gone.
//!
//! - B *claims* what it lacks of what A is freeing; each swap-out is claimed by one. The ledger counts B's whole footprint
//!   from the beginning, and may exceed the capacity by what is claimed and by nothing else: nothing else begins there.
//! - Only who is first in the line on its GPUs comes in early, and only with everything but GPU memory reserved as ever.
//! - If A's swap-out fails, B gives back what it took and is `Out` as before. That is no failure of B's: it is wanted still,
//!   and waits for free room the next time.
//!
//! What B takes is within the capacity at every moment, and so within a budget that is smaller than the GPU.

use super::{
    Scheduler,
    demand::Demand,
    event::{Early, Effect},
    explain::What,
    model::Model,
    policy::at_most,
    state::State,
};
use crate::units::{Bytes, Footprint, MechanismKind, ModelId, Moment};
use smallvec::SmallVec;

/// On its way in beside the swap-outs that make its room.
#[derive(Clone, Debug)]
pub(super) struct Ahead {
    /// Those that are still under way.
    from: SmallVec<[ModelId; 2]>,
    /// One of them failed: it will be out again.
    pub(super) broken: bool,
}

impl Model {
    /// What a swap-out under way gives up that another one can take meanwhile.
    fn gives_early(&self) -> Footprint {
        let gives = self.state == State::SwappingOut
            && self.mechanism == Some(MechanismKind::Park)
            && self.claim.is_zero();
        if gives { at_most(&self.will_free(), Bytes(u64::MAX)) } else { Footprint::default() }
    }

    /// Whether it can come in before its room is free.
    fn can_come_early(&self) -> bool {
        let parked = self.state == State::Out && self.mechanism == Some(MechanismKind::Park);
        parked && !self.patient && self.demand().is_some()
    }
}

impl Scheduler {
    /// Begins the ways in that lack nothing but what is being freed. `line`: who wants in, in order.
    pub(super) fn come_in_early(&mut self, line: &[(Demand, ModelId)], now: Moment, fx: &mut Vec<Effect>) {
        let mut ahead: Vec<ModelId> = Vec::new();
        for (demand, id) in line {
            let model = self.model(*id);
            if !model.state.can_come_in() {
                continue;
            }
            let first = !ahead.iter().any(|other| self.model(*other).shares_gpu(model));
            let may = first && model.can_come_early() && self.measured_beside(*id).is_none();
            if !may || !self.claim_and_begin(*id, *demand, now, fx) {
                ahead.push(*id);
            }
        }
    }

    fn claim_and_begin(&mut self, id: ModelId, demand: Demand, now: Moment, fx: &mut Vec<Effect>) -> bool {
        let nothing = Footprint::default();
        let model = self.model(id);
        let next = model.coming_in();
        let need = next.minus(&model.held);
        let lack = self.ledger.lack_after(&need, &nothing, &nothing);
        let (mut left, mut claims) = (lack.clone(), SmallVec::<[(ModelId, Footprint); 2]>::new());
        for (other, source) in self.models_by_id() {
            let part = left.minus(&left.minus(&source.gives_early()));
            if !part.is_zero() {
                left = left.minus(&part);
                claims.push((other, part));
            }
        }
        if lack.is_zero() || !left.is_zero() {
            return false;
        }
        let from: SmallVec<[ModelId; 2]> = claims.iter().map(|(other, _)| *other).collect();
        for (other, part) in claims {
            self.models[other.index()].claim = part;
        }
        let model = &mut self.models[id.index()];
        self.ledger.lend(&mut model.held, next);
        model.history.note(now, What::CameIn { waited: now.since(demand.since) });
        model.enter(State::SwappingIn, now);
        model.ahead = Some(Ahead { from: from.clone(), broken: false });
        let early = Some(Early { from, room: need.minus(&lack).gpu });
        fx.push(Effect::SwapIn { model: id, early });
        true
    }

    /// A swap-out is over. Whoever came in on its account has what it was promised, or (`failed`) goes back.
    pub(super) fn redeem(&mut self, id: ModelId, failed: bool) {
        let claim = std::mem::take(&mut self.models[id.index()].claim);
        if claim.is_zero() {
            return;
        }
        // What it did not free after all is no decision's doing.
        self.ledger.excuse();
        for ahead in self.models.iter_mut().filter_map(|model| model.ahead.as_mut()) {
            let relied = ahead.from.contains(&id);
            ahead.from.retain(|other| *other != id);
            ahead.broken |= relied && failed;
        }
    }

    /// Only what is being freed is claimed, and by somebody on the way in or just arrived.
    pub(super) fn check_early(&self) -> Result<(), String> {
        for (id, model) in self.models_by_id() {
            if !model.claim.within(&model.will_free()) {
                return Err(format!("of {} more is claimed than it frees", model.spec.name));
            }
            if let Some(ahead) = &model.ahead {
                let stale = |from: &&ModelId| self.model(**from).claim.is_zero();
                if model.state != State::SwappingIn || ahead.from.iter().any(|from| stale(&from)) {
                    return Err(format!("{} came early and nobody makes room", model.spec.name));
                }
            }
            let relying = |other: &Model| other.ahead.as_ref().is_some_and(|it| it.from.contains(&id));
            if self.models.iter().filter(|other| relying(other)).count() > 1 {
                return Err(format!("what {} frees is claimed twice", model.spec.name));
            }
        }
        Ok(())
    }

    /// What is reserved beyond what is free.
    pub(super) fn claimed(&self) -> Footprint {
        self.models.iter().fold(Footprint::default(), |sum, model| sum.plus(&model.claim))
    }
}
