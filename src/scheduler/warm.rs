//! Reading ahead: the weights of models that wait for their start are brought into the page cache meanwhile.
//!
//! The next one in the line is read while others start, one model at a time and never more than the job's memory has
//! room for beside all that engines may need of it. One that starts is read at once: its imports take longer than the
//! first gigabytes. The pages belong to nobody: the kernel takes them back when an engine needs the memory.

use super::{Scheduler, event::Effect, state::State};
use crate::units::{Bytes, ModelId, Moment};

/// Whether a model's files have been read ahead of its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Warm {
    #[default]
    Not,
    Reading,
    Done,
}

impl Warm {
    /// Its engine has ended; by the next start the pages may be gone.
    pub(super) fn forget(&mut self) {
        if *self == Warm::Done {
            *self = Warm::Not;
        }
    }
}

impl Scheduler {
    /// The files have been read.
    pub(super) fn warmed(&mut self, id: ModelId, now: Moment, fx: &mut Vec<Effect>) {
        let model = &mut self.models[id.index()];
        if model.warm == Warm::Reading {
            model.warm = Warm::Done;
            self.settle(now, fx);
        }
    }

    /// Begins to read a model's files, if it has any and they have not been.
    pub(super) fn warm(&mut self, id: ModelId, fx: &mut Vec<Effect>) {
        let host = self.ledger.view().capacity.host;
        let model = &mut self.models[id.index()];
        let fits = (1..=host.0).contains(&model.spec.weights.0);
        if fits && model.warm == Warm::Not {
            model.warm = Warm::Reading;
            fx.push(Effect::Warm { model: id });
        }
    }

    /// Begins to read for the first of `line` that still waits for its start.
    pub(super) fn read_ahead(&mut self, line: &[ModelId], fx: &mut Vec<Effect>) {
        if self.models.iter().any(|model| model.warm == Warm::Reading) {
            return;
        }
        let room = self.spare_host();
        let mut waiting = line.iter().filter(|id| {
            let model = self.model(**id);
            let waits = matches!(model.state, State::Cold | State::Preparing);
            let unread = waits && model.warm == Warm::Not;
            unread && model.spec.weights.0 > 0 && model.spec.weights <= room
        });
        if let Some(next) = waiting.next().copied() {
            self.warm(next, fx);
        }
    }

    /// Host memory that no engine that runs needs, wherever it goes, and that no earlier reading has filled.
    pub(super) fn spare_host(&self) -> Bytes {
        let taken = self.models.iter().map(|model| match model.state {
            State::Cold | State::Failed if model.warm != Warm::Not => model.spec.weights,
            State::Cold | State::Failed => Bytes(0),
            State::Preparing if model.warm != Warm::Not => {
                model.held.host.max(model.out.host) + model.spec.weights
            }
            _ => model.held.host.max(model.out.host),
        });
        self.ledger.view().capacity.host.saturating_sub(taken.sum())
    }

    /// Only what is there is read.
    pub(super) fn check_warm(&self) -> Result<(), String> {
        match self.models.iter().find(|model| model.warm == Warm::Reading && model.spec.weights.0 == 0) {
            Some(model) => Err(format!("{} has nothing to be read", model.spec.name)),
            None => Ok(()),
        }
    }
}
