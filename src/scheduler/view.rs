//! What `status`, metrics and the admin API show of the scheduler. Reading changes nothing.

use super::{Scheduler, event::EngineFault, ledger::LedgerView, model::Model, state::State};
use crate::units::{Footprint, MechanismKind, ModelId, Moment};
use serde::Serialize;
use std::{sync::Arc, time::Duration};

/// One model, as the scheduler sees it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ModelStatus {
    /// Its name.
    pub name: Arc<str>,
    /// Its engine's state.
    pub state: State,
    /// When that state was entered.
    pub since: Moment,
    /// Resident but closed to new requests: it drains before it goes out.
    pub closing: bool,
    /// Never chosen as a victim.
    pub pinned: bool,
    /// Requests on its engine, paused ones included.
    pub leases: u32,
    /// Requests waiting for it.
    pub waiting: u32,
    /// When the oldest of those arrived.
    pub waiting_since: Option<Moment>,
    /// What the ledger counts for it now.
    pub held: Footprint,
    /// What it takes while resident.
    pub resident: Footprint,
    /// What it takes while out.
    pub out: Footprint,
    /// How it is swapped, once its trial has shown.
    pub mechanism: Option<MechanismKind>,
    /// Swaps in, starts not counted.
    pub swaps_in: u64,
    /// Swaps out.
    pub swaps_out: u64,
    /// Since when it is wanted and not there.
    pub wanted_since: Option<Moment>,
    /// How long its last start waited for its turn.
    pub start_waited: Option<Duration>,
    /// How long its last start took, with the trial.
    pub last_start: Option<Duration>,
    /// How long its last swap-in took.
    pub last_swap_in: Option<Duration>,
    /// How long its last swap-out took.
    pub last_swap_out: Option<Duration>,
    /// Failures within the restart policy's window.
    pub failures: u32,
    /// The last failure.
    pub fault: Option<EngineFault>,
}

impl Scheduler {
    /// A model's state.
    pub fn state(&self, id: ModelId) -> State {
        self.model(id).state
    }

    /// Everything `status` shows of a model.
    pub fn view(&self, id: ModelId) -> ModelStatus {
        let model = self.model(id);
        ModelStatus {
            name: model.spec.name.clone(),
            state: model.state,
            since: model.since,
            closing: model.leaving.is_some(),
            pinned: model.pinned,
            leases: model.leases,
            waiting: model.queue.len(),
            waiting_since: model.queue.front().map(|front| front.arrived),
            held: model.held.clone(),
            resident: model.resident.clone(),
            out: model.out.clone(),
            mechanism: model.mechanism,
            swaps_in: model.swaps_in,
            swaps_out: model.swaps_out,
            wanted_since: model.demand().map(|demand| demand.since),
            start_waited: model.timing.waited,
            last_start: model.timing.start,
            last_swap_in: model.timing.swap_in,
            last_swap_out: model.timing.swap_out,
            failures: model.faults.recent.len() as u32,
            fault: model.faults.last.clone(),
        }
    }

    /// What the job has and what its engines hold of it.
    pub fn ledger(&self) -> LedgerView {
        self.ledger.view()
    }

    /// Whether engines are still being started for the first time.
    pub fn is_booting(&self) -> bool {
        self.booting
    }

    /// Whether new requests are admitted.
    pub fn is_accepting(&self) -> bool {
        !self.draining
    }

    /// Requests on an engine that runs, or comes in again and then does: what a drain at the run's end waits for. The others
    /// are paused for good by then.
    pub fn running(&self) -> u32 {
        let runs = |model: &&Model| matches!(model.state, State::Resident | State::SwappingIn);
        self.models.iter().filter(runs).map(|model| model.leases).sum()
    }

    pub(super) fn model(&self, id: ModelId) -> &Model {
        &self.models[id.index()]
    }

    pub(super) fn models_by_id(&self) -> impl Iterator<Item = (ModelId, &Model)> {
        self.models.iter().enumerate().map(|(index, model)| (ModelId(index as u32), model))
    }
}
