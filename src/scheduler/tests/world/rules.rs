//! Rules that are wider than one effect: who may begin beside whom, and when a busy engine may be closed.

use super::*;

impl World {
    /// Nothing begins beside an engine that measures, and none begins to measure beside a move.
    pub(super) fn listen_for_noise(&self, model: ModelId, moving: Move) {
        let (spec, engine) = (&self.specs[model.index()], &self.engines[model.index()]);
        let silent = moving == Move::Stop && engine.holds.gpu.iter().all(|bytes| bytes.0 == 0);
        for at in (0..self.engines.len()).filter(|at| *at != model.index() && !silent) {
            let (other, its) = (&self.specs[at], &self.engines[at]);
            if !other.gpus.iter().any(|gpu| spec.gpus.contains(gpu)) {
                continue;
            }
            assert!(!self.is_measuring(ModelId(at as u32)), "{moving:?} of {model:?} beside a start");
            let loud = its
                .moving
                .is_some_and(|moving| moving != Move::Stop || its.holds.gpu.iter().any(|bytes| bytes.0 > 0));
            assert!(!(loud && spec.measures && moving == Move::Start), "{model:?} starts beside a move");
        }
    }

    /// Requests on the engine that runs now.
    pub(super) fn leases(&self, model: ModelId) -> usize {
        let life = self.engines[model.index()].life;
        self.leased.values().filter(|lease| **lease == (model, life)).count()
    }

    pub(super) fn asked_out(&self, model: ModelId) -> bool {
        self.asks.values().any(|ask| *ask == (model, true))
    }

    /// Whether somebody waits for another model.
    pub(super) fn wanted_beside(&self, model: ModelId) -> bool {
        let waiting = self.waiting.values().map(|(other, _)| *other);
        let asked = self.asks.values().map(|(other, _)| *other);
        let paused = self.leased.values().map(|(other, _)| *other);
        waiting.chain(asked).chain(paused).any(|other| other != model)
    }

    /// Whether somebody waits for another model and has most of the longest wait behind him.
    pub(super) fn somebody_loses_hope(&self, model: ModelId) -> bool {
        let old = |since: Moment| self.now.since(since) * 2 >= kit::bounds().max_wait;
        let asked = self.asks.values().any(|(other, _)| *other != model);
        asked || self.waiting.values().any(|(other, arrived)| *other != model && old(*arrived))
    }

    /// A busy engine is closed only by its rule.
    pub(super) fn watch_closing(&mut self) {
        for at in 0..self.engines.len() {
            let model = ModelId(at as u32);
            let view = self.scheduler.view(model);
            let asked = self.asked_out(model);
            let engine = &self.engines[at];
            if view.closing && engine.closed.is_none() && !asked {
                let resident = self.now.since(engine.resident_since);
                assert!(resident >= kit::bounds().min_resident, "closed after only {resident:?}");
                assert!(self.wanted_beside(model), "closed for nobody");
            }
            let engine = &mut self.engines[at];
            if view.closing && engine.closed.is_none() {
                engine.closed = Some(self.now);
            } else if !view.closing {
                engine.closed = None;
            }
        }
    }
}
