//! `park+checkpoint`: the memory that can be parked goes to the pool, the driver takes the small rest (the context), and
//! nothing is left on the GPU. It comes back only with room for all of it: restored by the driver, and without room for what
//! was parked, it would be out by neither.

use super::Park;
use crate::engine::Engine;
use crate::swap::checkpoint::Checkpoint;
use crate::swap::{Mechanism, MoveLog, SwapError, Switch};
use crate::units::{Footprint, MechanismKind};
use async_trait::async_trait;

/// The two mechanisms in a row.
pub struct ParkCheckpoint {
    park: Park,
    checkpoint: Checkpoint,
}

impl ParkCheckpoint {
    /// Parks the engine, then checkpoints it.
    pub fn new(park: Park, checkpoint: Checkpoint) -> Self {
        ParkCheckpoint { park, checkpoint }
    }

    fn relabel(&self, error: SwapError) -> SwapError {
        SwapError { mechanism: self.kind(), ..error }
    }
}

#[async_trait]
impl Mechanism for ParkCheckpoint {
    fn kind(&self) -> MechanismKind {
        MechanismKind::ParkCheckpoint
    }

    async fn suits(&self, engine: &Engine) -> Result<(), String> {
        self.park.suits(engine).await?;
        self.checkpoint.suits(engine).await
    }

    async fn swap_out(&self, engine: &mut Engine, log: &mut MoveLog) -> Result<Footprint, SwapError> {
        // A part is of no use where the driver takes the whole rest.
        log.free = None;
        // Nor may anybody take it while the driver can still refuse.
        log.switch = Switch::Alone;
        let parked = self.park.take_out(engine, log).await.map_err(|error| self.relabel(error))?;
        let (moved, resident) = (log.moved, log.resident.take());
        let whole = resident.clone().unwrap_or_else(|| log.known.clone());
        match self.checkpoint.swap_rest_out(engine, whole, log).await {
            Ok(rest) => {
                (log.moved, log.resident) = (moved.zip(log.moved).map(|(a, b)| a + b), resident);
                Ok(Footprint { pool: parked.pool, ..rest })
            }
            Err(error) if error.unharmed => {
                // Half-way is neither in nor out: back in the memory it had, it is as it was.
                let unharmed = self.park.bring_in(log).await.is_ok();
                Err(SwapError { unharmed, ..self.relabel(error) })
            }
            Err(error) => Err(self.relabel(error)),
        }
    }

    async fn swap_in(&self, engine: &mut Engine, log: &mut MoveLog) -> Result<Footprint, SwapError> {
        self.checkpoint.swap_in(engine, log).await.map_err(|error| self.relabel(error))?;
        let rest = log.moved;
        // Restored and without its memory: out by neither mechanism, so it cannot be tried again.
        self.park.bring_in(log).await.map_err(|error| self.fault("unpark", error.reason, false))?;
        log.moved = rest.zip(log.moved).map(|(a, b)| a + b);
        Ok(Footprint::default())
    }
}
