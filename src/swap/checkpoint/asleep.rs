//! `sleep+checkpoint`: the engine frees what it can by itself, fast and without a copy of its cache; the driver takes
//! the rest, and nothing is left on the GPU. It comes back only with room for all of it: restored by the driver, and without
//! room to wake up, it would be out by neither. Where nobody could measure what it held, the driver's part alone is seen to.

use async_trait::async_trait;

use super::Checkpoint;
use crate::engine::Engine;
use crate::swap::{Mechanism, MoveLog, Sleep, SwapError};
use crate::units::{Footprint, MechanismKind};

/// The two mechanisms in a row.
pub struct SleepCheckpoint {
    sleep: Sleep,
    checkpoint: Checkpoint,
}

impl SleepCheckpoint {
    /// Puts the engine to sleep, then checkpoints it.
    pub fn new(sleep: Sleep, checkpoint: Checkpoint) -> Self {
        Self { sleep, checkpoint }
    }
}

#[async_trait]
impl Mechanism for SleepCheckpoint {
    fn kind(&self) -> MechanismKind {
        MechanismKind::SleepCheckpoint
    }

    async fn suits(&self, engine: &Engine) -> Result<(), String> {
        self.sleep.suits(engine).await?;
        self.checkpoint.suits(engine).await
    }

    async fn swap_out(&self, engine: &mut Engine, log: &mut MoveLog) -> Result<Footprint, SwapError> {
        let asleep = self.sleep.swap_out(engine, log).await.map_err(|error| self.relabel(error))?;
        let whole = log.resident.clone().unwrap_or_default();
        match self.checkpoint.swap_rest_out(engine, whole, log).await {
            Ok(out) => {
                // What the engine itself moved is its own secret.
                log.moved = None;
                Ok(Footprint { host: asleep.host + out.host, ..out })
            }
            Err(error) if error.unharmed => {
                // Half-way is neither in nor out: awake again, it is as it was.
                let woken = self.sleep.swap_in(engine, log).await;
                let unharmed = woken.is_ok();
                Err(SwapError { unharmed, ..self.relabel(error) })
            }
            Err(error) => Err(self.relabel(error)),
        }
    }

    async fn swap_in(&self, engine: &mut Engine, log: &mut MoveLog) -> Result<Footprint, SwapError> {
        self.checkpoint.swap_in(engine, log).await.map_err(|error| self.relabel(error))?;
        log.moved = None;
        let resident = self.sleep.swap_in(engine, log).await;
        // Back on the GPU but not awake: out by neither mechanism, so it cannot be tried again.
        resident.map_err(|error| SwapError { unharmed: false, ..self.relabel(error) })
    }
}

impl SleepCheckpoint {
    fn relabel(&self, error: SwapError) -> SwapError {
        SwapError { mechanism: self.kind(), ..error }
    }
}
