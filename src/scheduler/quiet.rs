//! Quiet GPUs: while an engine sizes itself by what is free, nothing else moves on its GPUs.
//!
//! Engines that are left to size their cache look at the free memory when they start: vLLM before and after a trial run
//! of its model, and it gives up if the free memory has grown in between; SGLang, TensorRT-LLM and Ollama when they load.
//! A swap beside that would be counted as their own, or their cache would be sized for memory that is gone a moment later.
//! So
//!
//! - a way in that measures ([`Model::will_measure`]) begins only when nothing moves on its GPUs, and
//!   One that was launched ahead ([`mod@super::prepare`]) is held until then, and has not looked;
//! - until it has answered ([`Event::Answered`](super::Event::Answered)) nothing begins there: no start, no swap, no stop
//!   that frees GPU memory. Its trial no longer measures; swaps beside it are free to begin, other starts are not.

use super::{Scheduler, event::Effect, model::Model, state::State};
use crate::units::{MechanismKind, ModelId, Moment};

impl Model {
    /// Whether it is sizing itself by what its GPUs have free.
    pub(super) fn is_measuring(&self) -> bool {
        let starts = match self.state {
            State::Starting => !self.answered,
            State::SwappingIn => self.mechanism == Some(MechanismKind::Restart),
            _ => false,
        };
        self.spec.measures && starts
    }

    /// Whether its next way in is a start, from nothing or from where it is held.
    pub(super) fn will_start(&self) -> bool {
        matches!(self.state, State::Cold | State::Preparing)
    }

    /// Whether its next way in is one on which it measures.
    pub(super) fn will_measure(&self) -> bool {
        let starts = self.will_start() || self.mechanism == Some(MechanismKind::Restart);
        self.spec.measures && starts
    }

    /// Whether a move of its that is under way takes or frees memory on a GPU.
    fn moves_on_gpus(&self) -> bool {
        match self.state {
            State::Stopping => self.held.gpu.iter().any(|bytes| bytes.0 > 0),
            state => state.is_moving() && !self.spec.gpus.is_empty(),
        }
    }

    /// Whether both use one of the job's GPUs.
    pub(super) fn shares_gpu(&self, other: &Model) -> bool {
        self.spec.gpus.iter().any(|gpu| other.spec.gpus.contains(gpu))
    }
}

impl Scheduler {
    /// An engine that is being started has answered: it has what it takes.
    pub(super) fn answered(&mut self, id: ModelId, now: Moment, fx: &mut Vec<Effect>) {
        let model = &mut self.models[id.index()];
        if model.state == State::Starting && !model.answered {
            model.answered = true;
            self.settle(now, fx);
        }
    }

    /// Another engine that is measuring on one of its GPUs: nothing of `id` may begin there.
    pub(super) fn measured_beside(&self, id: ModelId) -> Option<ModelId> {
        self.beside(id, Model::is_measuring)
    }

    /// Another engine that moves on one of its GPUs: `id` may not begin to measure there.
    pub(super) fn moving_beside(&self, id: ModelId) -> Option<ModelId> {
        self.beside(id, Model::moves_on_gpus)
    }

    pub(super) fn beside(&self, id: ModelId, so: impl Fn(&Model) -> bool) -> Option<ModelId> {
        let model = self.model(id);
        let mut others = self.models_by_id().filter(|(other, _)| *other != id);
        others.find(|(_, other)| so(other) && other.shares_gpu(model)).map(|(other, _)| other)
    }

    /// Nothing moves beside an engine that measures.
    pub(super) fn check_quiet(&self) -> Result<(), String> {
        for (id, model) in self.models_by_id().filter(|(_, model)| model.is_measuring()) {
            if let Some(other) = self.moving_beside(id) {
                let other = self.model(other);
                return Err(format!(
                    "{} is {} while {} sizes itself",
                    other.spec.name, other.state, model.spec.name
                ));
            }
        }
        Ok(())
    }
}
