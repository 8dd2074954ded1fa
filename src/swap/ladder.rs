//! Which mechanism is built from what: the one table.

use super::checkpoint::{Checkpoint, SleepCheckpoint};
use super::park::{Park, ParkCheckpoint};
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
    /// Whether engines are started so that they can be parked; if not, why.
    pub parking: Result<Parking, String>,
}

/// How engines are parked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Parking {
    /// Compare every block that comes back with what went out.
    pub verify: bool,
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
        (MechanismKind::Park | MechanismKind::ParkCheckpoint, Some(gpu)) => match &deps.parking {
            Ok(parking) => {
                let park = Park::new(gpu.clone(), deps.gpus.clone(), parking.verify);
                match kind {
                    MechanismKind::Park => Arc::new(park),
                    _ => Arc::new(ParkCheckpoint::new(park, Checkpoint::new(gpu.clone()))),
                }
            }
            Err(reason) => Arc::new(Missing { kind, reason: reason.clone() }),
        },
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
