//! Launching ahead: the next engine's imports are over when its turn on its GPUs comes.
//!
//! An engine spends its first half minute on imports and touches no GPU meanwhile. The next one in the line is launched
//! while another one starts on its GPUs, or while the room for it is being made. The daemon holds its processes before their
//! first use of a GPU ([`Effect::Prepare`], `Preparing`) and lets them go on when its turn comes ([`Effect::Proceed`],
//! `Starting`). Until then it is no part of anything on a GPU: it holds host memory alone, is no noise to an engine that
//! measures, and what it will need is reserved no earlier than for a start from nothing.
//!
//! - One is prepared at a time on each GPU, the first that waits there; and [`IMPORTING`] import at a time.
//! - Only what the host has room for beside all that its engines may need. When that changes it is put off again: stopped,
//!   to be started from nothing.
//! - It is put off too when nobody wants it any more, or when its turn does not come within its bound.
//! - One that was prepared in vain (it ended while it was held, its start failed, its turn did not come, it had to give way)
//!   is started from nothing from then on: whatever it or the host could not bear, it is not tried again.

use super::{
    Scheduler,
    event::Effect,
    explain::{PutOff, What},
    model::Model,
    state::State,
};
use crate::units::{Bytes, Footprint, ModelId, Moment};

/// Engines that import at the same time, beside those that start: imports are a core's work and a file system's.
const IMPORTING: usize = 2;

impl Model {
    /// What it holds while it is prepared.
    pub(super) fn prepared(&self) -> Footprint {
        Footprint::default().with_host(self.spec.preparation.map(|it| it.host).unwrap_or_default())
    }

    /// When it is put off if its turn has not come.
    pub(super) fn put_off_at(&self) -> Option<Moment> {
        let bounds = self.spec.preparation.filter(|_| self.state == State::Preparing)?;
        Some(self.since + bounds.longest)
    }
}

impl Scheduler {
    /// One that is prepared has come to its first use of a GPU.
    pub(super) fn imported(&mut self, id: ModelId, now: Moment, fx: &mut Vec<Effect>) {
        let model = &mut self.models[id.index()];
        if model.state == State::Preparing && !model.imported {
            model.imported = true;
            self.settle(now, fx);
        }
    }

    /// Launches those of `line` that are next on their GPUs. `near`: those whose turn is in sight; `promised` and `freed`:
    /// what those ahead have been given.
    pub(super) fn prepare_ahead(
        &mut self,
        line: &[ModelId],
        near: &[ModelId],
        (promised, freed): (&Footprint, &Footprint),
        now: Moment,
        fx: &mut Vec<Effect>,
    ) {
        for (at, id) in line.iter().enumerate() {
            let model = self.model(*id);
            if model.state != State::Cold || model.spec.preparation.is_none() || model.prepared_in_vain {
                continue;
            }
            let waits = |other: &&ModelId| self.model(**other).state.can_come_in();
            let is_first = !line[..at].iter().filter(waits).any(|other| self.model(*other).shares_gpu(model));
            let starts = |other: &Model| other.state == State::Starting;
            let in_sight = near.contains(id) || self.beside(*id, starts).is_some();
            let prepares = |other: &Model| other.state == State::Preparing;
            let alone = self.beside(*id, prepares).is_none();
            let importing = self.models.iter().filter(|other| prepares(other) && !other.imported).count();
            let takes = model.prepared();
            let fits = takes.host.max(model.out.host) <= self.spare_host()
                && self.ledger.lack_after(&takes, promised, freed).is_zero();
            if is_first && in_sight && alone && importing < IMPORTING && fits {
                self.prepare(*id, now, fx);
            }
        }
    }

    fn prepare(&mut self, id: ModelId, now: Moment, fx: &mut Vec<Effect>) {
        let model = &mut self.models[id.index()];
        let takes = model.prepared();
        if self.ledger.reserve(&mut model.held, takes) {
            model.history.note(now, What::Prepared);
            model.enter(State::Preparing, now);
            fx.push(Effect::Prepare { model: id });
        }
    }

    /// Puts off whoever is prepared and nobody wants any more, or whose host memory others may need.
    pub(super) fn put_off_unwanted(&mut self, now: Moment, fx: &mut Vec<Effect>) {
        for index in 0..self.models.len() {
            let (id, model) = (ModelId(index as u32), &self.models[index]);
            if model.state != State::Preparing {
                continue;
            }
            if model.demand().is_none() {
                self.put_off(id, now, PutOff::Unwanted, fx);
            } else if self.host_is_short() {
                self.put_off(id, now, PutOff::Host, fx);
            }
        }
    }

    /// Whether all engines together may need more of the host than there is.
    fn host_is_short(&self) -> bool {
        let processes = self.models.iter().filter(|model| model.state.has_process());
        let needs: Bytes = processes.map(|model| model.held.host.max(model.out.host)).sum();
        needs > self.ledger.view().capacity.host
    }

    /// Stops one that is prepared; it is started from nothing later.
    pub(super) fn put_off(&mut self, id: ModelId, now: Moment, why: PutOff, fx: &mut Vec<Effect>) {
        let model = &mut self.models[id.index()];
        model.prepared_in_vain |= why != PutOff::Unwanted;
        model.history.note(now, What::PutOff { why });
        model.enter(State::Stopping, now);
        fx.push(Effect::Stop { model: id });
    }

    /// One at a time on each GPU, and only those that can be.
    pub(super) fn check_prepared(&self) -> Result<(), String> {
        let prepared = |model: &Model| model.state == State::Preparing;
        for (id, model) in self.models_by_id().filter(|(_, model)| prepared(model)) {
            let name = &model.spec.name;
            if model.spec.preparation.is_none() || model.spec.gpus.is_empty() {
                return Err(format!("{name} was launched ahead though it cannot be held"));
            }
            if let Some(other) = self.beside(id, prepared) {
                return Err(format!("{name} and {} are prepared at once", self.model(other).spec.name));
            }
        }
        let importing = self.models.iter().filter(|model| prepared(model) && !model.imported).count();
        if importing > IMPORTING { Err(format!("{importing} import at once")) } else { Ok(()) }
    }
}
