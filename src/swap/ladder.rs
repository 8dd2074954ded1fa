//! Which mechanism is built from what: the one table.

use super::checkpoint::{Checkpoint, SleepCheckpoint};
use super::{Freeze, Hook, Mechanism, MemoryProbe, MoveLog, Restart, Sleep, SwapError};
use crate::{
    engine::Engine,
    gpu::GpuClient,
    units::{Footprint, MechanismKind},
};
use async_trait::async_trait;
use std::sync::Arc;

/// What mechanisms are built from; one for the whole run.
#[derive(Clone)]
pub struct Deps {
    /// Tells what processes hold on the GPUs.
    pub gpus: Arc<dyn MemoryProbe>,
    /// The gpu server, on a node with GPUs.
    pub server: Option<GpuClient>,
}

/// The mechanism of this kind. Where this run cannot have it, one that suits no engine and says why.
pub fn build(kind: MechanismKind, deps: &Deps) -> Arc<dyn Mechanism> {
    let sleep = || Sleep::new(deps.gpus.clone());
    match (kind, &deps.server) {
        (MechanismKind::Sleep, _) => Arc::new(sleep()),
        (MechanismKind::Freeze, _) => Arc::new(Freeze),
        (MechanismKind::Restart, _) => Arc::new(Restart),
        (MechanismKind::Hook, _) => Arc::new(Hook::new(deps.gpus.clone())),
        (MechanismKind::Checkpoint, Some(gpu)) => Arc::new(Checkpoint::new(gpu.clone())),
        (MechanismKind::SleepCheckpoint, Some(gpu)) => {
            Arc::new(SleepCheckpoint::new(sleep(), Checkpoint::new(gpu.clone())))
        }
        (MechanismKind::Park | MechanismKind::ParkCheckpoint, Some(_)) => Arc::new(Missing {
            kind,
            reason: "the engine was started without the preload library".to_owned(),
        }),
        (_, None) => Arc::new(Missing {
            kind,
            reason: "needs a GPU with NVIDIA's driver, and this run has none".to_owned(),
        }),
    }
}

/// A mechanism that this run cannot have.
pub struct Missing {
    /// Which one.
    pub kind: MechanismKind,
    /// Why not.
    pub reason: String,
}

#[async_trait]
impl Mechanism for Missing {
    fn kind(&self) -> MechanismKind {
        self.kind
    }

    async fn suits(&self, _engine: &Engine) -> Result<(), String> {
        Err(self.reason.clone())
    }

    async fn swap_out(&self, _engine: &mut Engine, _log: &mut MoveLog) -> Result<Footprint, SwapError> {
        Err(self.fault("swap out", self.reason.clone(), true))
    }

    async fn swap_in(&self, _engine: &mut Engine, _log: &mut MoveLog) -> Result<Footprint, SwapError> {
        Err(self.fault("swap in", self.reason.clone(), true))
    }
}
