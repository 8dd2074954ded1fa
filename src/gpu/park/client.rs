//! The memory server's calls as async functions of [`GpuClient`].

use std::time::Duration;

use super::call::{Moved, ParkAnswer, ParkCall, PoolState};
use crate::gpu::client::{GpuClient, GpuError};
use crate::gpu::protocol::{Answer, Call};

/// For a process that does not answer: above the memory server's own patience with it.
const PATIENCE: Duration = Duration::from_secs(25);

impl GpuClient {
    /// The pool, and which processes can be parked.
    ///
    /// # Errors
    /// [`GpuError`]; refused where no pool was set up or there is no driver.
    pub async fn parking(&self) -> Result<PoolState, GpuError> {
        match self.park(ParkCall::Look, PATIENCE).await? {
            ParkAnswer::Pool(pool) => Ok(pool),
            ParkAnswer::Moved(_) => Err(mismatch()),
        }
    }

    /// Takes the device memory of processes out: all of it, or at least `wanted` bytes on each GPU. They get `rest` to
    /// come to rest, and the move `limit` in all.
    ///
    /// # Errors
    /// [`GpuError::Refused`]: what [`GpuClient::parking`] tells of them holds.
    pub async fn park_out(
        &self,
        pids: Vec<i32>,
        wanted: Option<u64>,
        rest: Duration,
        limit: Duration,
    ) -> Result<Moved, GpuError> {
        let call = ParkCall::Out { pids, wanted, rest_ms: milliseconds(rest) };
        self.moved(call, limit + PATIENCE).await
    }

    /// Brings it back, waiting at most `wait` for free device memory; with `verify` compared block by block.
    ///
    /// # Errors
    /// [`GpuError::Refused`]: what is not back is still in the pool.
    pub async fn park_in(&self, pids: Vec<i32>, verify: bool, wait: Duration) -> Result<Moved, GpuError> {
        let call = ParkCall::In { pids, verify, wait_ms: milliseconds(wait) };
        self.moved(call, wait + PATIENCE).await
    }

    async fn moved(&self, call: ParkCall, limit: Duration) -> Result<Moved, GpuError> {
        match self.park(call, limit).await? {
            ParkAnswer::Moved(moved) => Ok(moved),
            ParkAnswer::Pool(_) => Err(mismatch()),
        }
    }

    async fn park(&self, call: ParkCall, limit: Duration) -> Result<ParkAnswer, GpuError> {
        match self.call(Call::Park(call), limit).await? {
            Answer::Park(answer) => Ok(answer),
            _ => Err(mismatch()),
        }
    }
}

fn milliseconds(time: Duration) -> u32 {
    u32::try_from(time.as_millis()).unwrap_or(u32::MAX)
}

fn mismatch() -> GpuError {
    GpuError::Lost { call: "a call", why: "the answer was of another kind".to_owned() }
}
