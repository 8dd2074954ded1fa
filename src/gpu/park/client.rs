//! The memory server's calls as async functions of [`GpuClient`].

use std::time::Duration;

use super::call::{Beside, Moved, ParkAnswer, ParkCall, PoolState};
use crate::gpu::client::{GpuClient, GpuError};
use crate::gpu::protocol::{Answer, Call};

/// For a process that does not answer: above the memory server's own patience with it.
const PATIENCE: Duration = Duration::from_secs(25);
/// How long a swap-in waits for swap-outs that make its room and have begun: above what one takes to come to rest, and to
/// copy all there is.
pub(super) const LONGEST_OUT: Duration = Duration::from_secs(30);

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
        self.park_out_as(0, pids, wanted, rest, limit).await
    }

    /// The same under a number by which a swap-in can take part, see [`GpuClient::park_in_beside`].
    ///
    /// # Errors
    /// As above.
    pub async fn park_out_as(
        &self,
        number: u64,
        pids: Vec<i32>,
        wanted: Option<u64>,
        rest: Duration,
        limit: Duration,
    ) -> Result<Moved, GpuError> {
        let call = ParkCall::Out { pids, wanted, rest_ms: milliseconds(rest), number };
        self.moved(call, limit + PATIENCE).await
    }

    /// Brings it back, waiting at most `wait` for free device memory; with `verify` compared block by block.
    ///
    /// # Errors
    /// [`GpuError::Refused`]: what is not back is still in the pool.
    pub async fn park_in(&self, pids: Vec<i32>, verify: bool, wait: Duration) -> Result<Moved, GpuError> {
        let call = ParkCall::In { pids, verify, wait_ms: milliseconds(wait), beside: None };
        self.moved(call, wait + PATIENCE).await
    }

    /// The same, taking memory that swap-outs under way are freeing.
    ///
    /// # Errors
    /// [`GpuError::Refused`], also if one of those failed: nothing was taken. [`GpuError::Lost`]: some may have been.
    pub async fn park_in_beside(
        &self,
        pids: Vec<i32>,
        verify: bool,
        wait: Duration,
        beside: Beside,
    ) -> Result<Moved, GpuError> {
        let call = ParkCall::In { pids, verify, wait_ms: milliseconds(wait), beside: Some(beside) };
        self.moved(call, wait + LONGEST_OUT + PATIENCE).await
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
