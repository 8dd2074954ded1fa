//! `park` and `park+checkpoint`: device memory to the job's pinned pool and back, at the speed of the bus.
//!
//! ```text
//! out: gate closed, GPU at rest ─▶ digest ─▶ copy what changed ─▶ memory given up ─▶ [driver's checkpoint of the rest]
//! in:  [driver's restore] ─▶ memory made anew ─▶ filled ─▶ gate open
//! ```
//!
//! The work is the memory server's ([`crate::gpu::park`]) and the preload library's. Here an engine's process tree becomes
//! one move: all of its processes that can be parked, or none. Calls of the engine that submit GPU work wait while it is
//! out, so a request in mid-answer pauses and goes on.
//!
//! | module | role |
//! | --- | --- |
//! | `rest` | `park+checkpoint` |

mod rest;

pub use rest::ParkCheckpoint;

use super::{Mechanism, MemoryProbe, MoveLog, PerGpu, SwapError, Switch, memory};
use crate::engine::Engine;
use crate::gpu::park::call::{Beside, Moved};
use crate::gpu::park::why::{may_still_connect, why_not};
use crate::gpu::{GpuClient, GpuError};
use crate::process::{ProcFs, ProcId};
use crate::units::{Bytes, Footprint, MechanismKind};
use async_trait::async_trait;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long an engine may take to come to rest: a kernel that does not end, or a thread that waits inside the driver for
/// another process, keeps it from being parked.
const REST_LIMIT: Duration = Duration::from_secs(10);
/// How long the swap-in waits for device memory that the ledger says is free.
const FREE_LIMIT: Duration = Duration::from_secs(5);
/// How long NVML may lag behind what was given up.
const LAG_LIMIT: Duration = Duration::from_secs(2);
/// How long a process that has answered may take to be known to the memory server: its library connects beside it.
const CONNECT_LIMIT: Duration = Duration::from_secs(2);
/// Before processes that have lost their memory server are asked for again; they look for the next one five times a second.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// How long they may take to find it.
const REUNION_LIMIT: Duration = Duration::from_secs(20);

/// Parks an engine. One value serves one engine.
pub struct Park {
    gpu: GpuClient,
    gpus: Arc<dyn MemoryProbe>,
    /// Compare every block with what went out.
    verify: bool,
    /// The processes of the engine when it went out, and how many of them did: as many have to come back.
    out: Mutex<(Vec<i32>, u32)>,
}

/// An engine that did not come back.
#[derive(Debug)]
struct NotBack {
    reason: String,
    /// It is out as before.
    out: bool,
    /// The GPU had too little free, and nothing else is wrong.
    short: bool,
}

impl Park {
    /// Parks through this gpu server; with `verify` each swap-in is compared block by block with what went out.
    pub fn new(gpu: GpuClient, gpus: Arc<dyn MemoryProbe>, verify: bool) -> Self {
        Park { gpu, gpus, verify, out: Mutex::default() }
    }

    /// Out, all of it or `free` bytes on each GPU, the engine's processes together.
    async fn take_out(&self, engine: &Engine, log: &mut MoveLog) -> Result<Footprint, SwapError> {
        // Before anything goes: what is asked while memory leaves is no measure of what the engine needs.
        let found = async {
            let tree = engine.tree();
            let before = self.gpus.held(&tree).await;
            (tree, before)
        };
        let (tree, before) = log.phase("find", found).await;
        let (pids, limit) = (pids(&tree), log.left());
        let wanted = log.free.map(|bytes| bytes.0);
        let number = if let Switch::Gives(number) = log.switch { number } else { 0 };
        let outcome = self.gpu.park_out_as(number, pids.clone(), wanted, REST_LIMIT.min(limit), limit).await;
        let moved = match outcome {
            Ok(moved) if moved.processes > 0 => moved,
            Ok(_) => {
                let reason = "none of its processes is known to the memory server".to_owned();
                return Err(self.fault("park", reason, true));
            }
            Err(error) => {
                // What was out stays so: for more than is out nobody has reserved room. Else some of the processes may be out:
                // half an engine is of no use.
                let as_before = log.out || self.all_back(&pids, 1, log).await.is_ok();
                let unharmed = as_before && engine.is_alive();
                return Err(self.fault("park", error.to_string(), unharmed).short(is_shortage(&error)));
            }
        };
        note(log, &moved);
        *self.out.lock().unwrap_or_else(PoisonError::into_inner) = (pids, moved.processes);
        // Small allocations of the engine's come and go meanwhile.
        let freed = Bytes(moved.bytes / 10 * 9);
        let most = memory::total(&before.clone().unwrap_or_default()).saturating_sub(freed);
        let deadline = log.deadline.min(Instant::now() + LAG_LIMIT);
        let left = log.phase("release", memory::wait_until_free(&tree, &*self.gpus, most, deadline)).await;
        log.resident = before;
        let left = left.filter(|left| log.free.is_none() || !memory::total(left).is_zero());
        let left = left.unwrap_or_else(|| stays(&log.known, log.free, Bytes(moved.bytes)));
        Ok(Footprint { gpu: left, pool: Bytes(moved.pool), ..Footprint::default() })
    }

    /// In; on return every process that went out is back.
    async fn bring_in(&self, log: &mut MoveLog) -> Result<(), NotBack> {
        let (pids, count) = self.out.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let moved = match std::mem::take(&mut log.switch) {
            Switch::Takes(beside) => self.in_beside(&pids, count, beside, log).await?,
            Switch::Alone | Switch::Gives(_) => self.all_back(&pids, count, log).await?,
        };
        note(log, &moved);
        Ok(())
    }

    /// Brings processes back in memory that others are giving up. Once only: whatever goes wrong, that memory may be
    /// wanted back, so all of it is out again before this returns.
    async fn in_beside(
        &self,
        pids: &[i32],
        count: u32,
        beside: Beside,
        log: &MoveLog,
    ) -> Result<Moved, NotBack> {
        let wait = FREE_LIMIT.min(log.left());
        let outcome = self.gpu.park_in_beside(pids.to_vec(), self.verify, wait, beside).await;
        let reason = match outcome {
            Ok(moved) if moved.processes >= count => return Ok(moved),
            // The memory server has seen to it.
            Err(error @ GpuError::Refused(_)) => {
                let short = is_shortage(&error);
                return Err(NotBack { reason: error.to_string(), out: true, short });
            }
            Ok(moved) => {
                format!("{} of its {count} parked processes are known to the memory server", moved.processes)
            }
            Err(error) => error.to_string(),
        };
        let deadline = log.deadline.min(Instant::now() + REUNION_LIMIT);
        while Instant::now() < deadline {
            let again = self.gpu.park_out(pids.to_vec(), None, REST_LIMIT, log.left()).await;
            if again.is_ok_and(|moved| moved.processes >= count) {
                return Err(NotBack { reason, out: true, short: false });
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        Err(NotBack { reason, out: false, short: false })
    }

    /// Brings processes back, `count` of them at least; those that look for a new memory server are waited for, for as long as
    /// none has ended.
    async fn all_back(&self, pids: &[i32], count: u32, log: &MoveLog) -> Result<Moved, NotBack> {
        let deadline = log.deadline.min(Instant::now() + REUNION_LIMIT);
        loop {
            let wait = FREE_LIMIT.min(log.left());
            let reason = match self.gpu.park_in(pids.to_vec(), self.verify, wait).await {
                Ok(moved) if moved.processes >= count => return Ok(moved),
                Ok(moved) => format!(
                    "{} of its {count} parked processes are known to the memory server",
                    moved.processes
                ),
                // A large pool is pinned anew in minutes.
                Err(GpuError::Refused(refusal)) if refusal.is_pinning() && log.left() > LOOK_AGAIN => {
                    tokio::time::sleep(LOOK_AGAIN).await;
                    continue;
                }
                Err(error @ GpuError::Refused(_)) => {
                    let short = is_shortage(&error);
                    return Err(NotBack { reason: error.to_string(), out: true, short });
                }
                Err(error) => error.to_string(),
            };
            if let Some(gone) = ended(pids) {
                let reason = format!("{reason}; its process {gone} has ended");
                return Err(NotBack { reason, out: false, short: false });
            }
            if Instant::now() >= deadline {
                return Err(NotBack { reason, out: true, short: false });
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }
}

#[async_trait]
impl Mechanism for Park {
    fn kind(&self) -> MechanismKind {
        MechanismKind::Park
    }

    async fn suits(&self, engine: &Engine) -> Result<(), String> {
        if engine.plan.gpus == 0 {
            return Err("a CPU engine has no GPU memory to park".to_owned());
        }
        let deadline = Instant::now() + CONNECT_LIMIT;
        loop {
            let pool = self.gpu.parking().await.map_err(|error| error.to_string())?;
            let held = self.gpu.process_memory().await.map_err(|error| error.to_string())?;
            let pids = pids(&engine.tree());
            let Some(why) = why_not(&pids, &pool, &held) else { return Ok(()) };
            if Instant::now() >= deadline || !may_still_connect(&pids, &pool) {
                return Err(why);
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    async fn swap_out(&self, engine: &mut Engine, log: &mut MoveLog) -> Result<Footprint, SwapError> {
        self.take_out(engine, log).await
    }

    async fn swap_in(&self, _engine: &mut Engine, log: &mut MoveLog) -> Result<Footprint, SwapError> {
        // What is not back is in the pool still, and the engine waits.
        let back = self.bring_in(log).await;
        back.map_err(|error| self.fault("unpark", error.reason, error.out).short(error.short))?;
        Ok(Footprint::default())
    }
}

/// What stays on each GPU of what an engine is known to hold there, where nobody can measure it: all but what was to be
/// freed on each, if so much has gone. Of a whole swap-out nothing is known to stay.
fn stays(known: &[Bytes], free: Option<Bytes>, moved: Bytes) -> PerGpu {
    let Some(free) = free else { return PerGpu::new() };
    let gpus = known.iter().filter(|held| !held.is_zero()).count().max(1) as u64;
    let freed = free.min(Bytes(moved.0 / gpus));
    known.iter().map(|held| held.saturating_sub(freed)).collect()
}

/// The first of these processes that lives no more.
fn ended(pids: &[i32]) -> Option<i32> {
    let lives = |pid: i32| ProcFs::default().stat(pid).is_some_and(|stat| !stat.is_dead());
    pids.iter().copied().find(|pid| !lives(*pid))
}

fn is_shortage(error: &GpuError) -> bool {
    matches!(error, GpuError::Refused(refusal) if refusal.is_shortage() || refusal.is_pinning())
}

fn pids(tree: &[ProcId]) -> Vec<i32> {
    tree.iter().map(|id| id.pid).collect()
}

/// The memory server's own phases and bytes.
fn note(log: &mut MoveLog, moved: &Moved) {
    log.moved = Some(Bytes(moved.copied));
    log.phases
        .extend(moved.phases.iter().map(|(name, seconds)| (name.clone(), Duration::from_secs_f64(*seconds))));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_can_measure_is_not_taken_for_free() {
        let known = [Bytes::gib(40), Bytes(0), Bytes::gib(40)];
        let left = |free, moved| stays(&known, free, Bytes::gib(moved)).to_vec();
        assert_eq!(left(Some(Bytes::gib(10)), 21), [Bytes::gib(30), Bytes(0), Bytes::gib(30)]);
        assert_eq!(
            left(Some(Bytes::gib(10)), 8),
            [Bytes::gib(36), Bytes(0), Bytes::gib(36)],
            "less would go"
        );
        assert!(left(None, 80).is_empty());
    }
}
