//! What holds between any two steps; every test checks it after each one.

use super::{
    Scheduler,
    model::{Model, Why},
    queue::Place,
    state::State,
};

impl Scheduler {
    /// Checks the whole state against itself; `Err` says what is broken. For tests and debugging: it looks at every
    /// request.
    pub fn check_invariants(&self) -> Result<(), String> {
        self.ledger.check(self.models.iter().map(|model| &model.held), &self.claimed())?;
        for model in &self.models {
            self.check_model(model).map_err(|broken| format!("{}: {broken}", model.spec.name))?;
        }
        self.check_quiet()?;
        self.check_early()?;
        self.check_warm()?;
        self.check_prepared()?;
        let mut waiting = vec![0; self.models.len()];
        let mut leased = vec![0; self.models.len()];
        for place in self.requests.values() {
            match place {
                Place::Waiting { model, .. } => waiting[model.index()] += 1,
                Place::Leased { model, life, .. } if *life == self.model(*model).life => {
                    leased[model.index()] += 1
                }
                Place::Leased { .. } => {}
            }
        }
        for (index, model) in self.models.iter().enumerate() {
            if (waiting[index], leased[index]) != (model.queue.len(), model.leases) {
                return Err(format!("{}: its requests are miscounted", model.spec.name));
            }
        }
        Ok(())
    }

    fn check_model(&self, model: &Model) -> Result<(), String> {
        let held = match model.state {
            State::Cold | State::Failed => model.held.is_zero(),
            State::Preparing => model.held == model.prepared(),
            State::Starting => model.resident.within(&model.held) && model.spec.starting.within(&model.held),
            State::Resident => model.held == model.resident,
            State::SwappingOut => model.share.is_some() || model.out.within(&model.held),
            State::SwappingIn => model.resident.within(&model.held) && model.left.within(&model.held),
            State::Out => model.held == model.left,
            State::Stopping => true,
        };
        let rules = [
            (held, "holds something else than its state's footprint"),
            (!model.is_open() || model.queue.is_empty(), "is open while requests wait for it"),
            (model.leaving.is_none() || model.state == State::Resident, "is closed but not resident"),
            (
                !model.leaving.is_some_and(|leaving| matches!(leaving.why, Why::Room(_)))
                    || !self.draining && !model.pinned,
                "was closed for somebody though pinned, or though nothing is swapped any more",
            ),
            (model.queue.len() <= self.bounds.queue_limit, "has more waiting requests than the bound"),
            (
                model.leases == 0
                    || !matches!(
                        model.state,
                        State::Cold | State::Preparing | State::Starting | State::Stopping | State::Failed
                    ),
                "has leases without an engine",
            ),
            (model.state != State::Failed || model.demand().is_none(), "was given up while somebody waits"),
            (!self.draining || model.queue.is_empty(), "has waiting requests though the run is ending"),
        ];
        match rules.iter().find(|(holds, _)| !holds) {
            Some((_, broken)) => Err(format!("{} and {broken}", model.state)),
            None => Ok(()),
        }
    }
}
