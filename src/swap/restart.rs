//! `restart`: the engine is stopped and started again. Works for every engine, costs a cold start, and loses its caches.

use super::{Mechanism, MoveLog, SwapError};
use crate::{
    engine::Engine,
    units::{Footprint, MechanismKind},
};
use async_trait::async_trait;

/// The last resort.
pub struct Restart;

#[async_trait]
impl Mechanism for Restart {
    fn kind(&self) -> MechanismKind {
        MechanismKind::Restart
    }

    async fn suits(&self, _engine: &Engine) -> Result<(), String> {
        Ok(())
    }

    async fn swap_out(&self, engine: &mut Engine, log: &mut MoveLog) -> Result<Footprint, SwapError> {
        let failed = |reason| self.fault("stop", reason, false);
        let report = log
            .phase("stop", engine.stop())
            .await
            .map_err(|error| failed(format!("cannot end the engine's processes: {error}")))?;
        match report.survivors.first() {
            None => Ok(Footprint::default()),
            Some(stuck) => Err(failed(format!(
                "{} process(es) did not end, the first is {} (pid {}), which hangs in the kernel; its memory stays taken",
                report.survivors.len(),
                stuck.comm,
                stuck.id
            ))),
        }
    }

    async fn swap_in(&self, engine: &mut Engine, log: &mut MoveLog) -> Result<Footprint, SwapError> {
        log.phase("start", engine.launch(&|_| {}))
            .await
            .map_err(|error| self.fault("start", error.to_string(), false))?;
        Ok(Footprint::default())
    }
}
