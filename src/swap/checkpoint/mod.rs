//! `checkpoint` and `sleep+checkpoint`: the driver moves the engine's GPU memory (`cuCheckpointProcess*`).
//!
//! ```text
//! out: find ─▶ lock all ─▶ checkpoint all ─▶ see the memory free ─▶ freeze the tree (SIGSTOP)
//! in:  see enough memory free ─▶ thaw the tree ─▶ restore all ─▶ unlock all
//! ```
//!
//! The order is what makes loss impossible: a restore that meets too little memory loses the process for good, so it
//! starts only with the reservation held and the memory seen to be free; it runs in a thread of the process itself, so
//! the tree is thawed before; and no call to the driver about a process that is stopped ever comes back.
//!
//! | module | role |
//! | --- | --- |
//! | [`group`] | the engine's CUDA processes, moved together through the driver's states |
//! | [`inspect`] | what the driver would refuse, or take and not give back, seen from outside |
//! | `asleep` | `sleep+checkpoint` |

mod asleep;
pub mod group;
pub mod inspect;

pub use asleep::SleepCheckpoint;

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::join_all;
use rustix::process::Signal;

use self::group::{Group, Setback};
use super::gpus::per_gpu;
use super::{Mechanism, MoveLog, PerGpu, SwapError};
use crate::engine::Engine;
use crate::gpu::GpuClient;
use crate::gpu::park::why::has_imported;
use crate::process::{Handle, Stat};
use crate::units::{Bytes, Footprint, MechanismKind};

/// How long the driver waits for calls under way before it leaves a process running. A call that takes longer is a
/// kernel that does not end, or an engine that waits for another process inside the driver.
const LOCK_LIMIT: Duration = Duration::from_secs(10);
/// How long NVML may lag behind what a checkpoint has freed (about a second was seen).
const RELEASE_LIMIT: Duration = Duration::from_secs(5);
/// How long to wait for what is known of the processes' imports.
const LOOK_LIMIT: Duration = Duration::from_secs(2);
/// How long a restore waits for memory that the ledger says is free.
const CONFIRM_LIMIT: Duration = Duration::from_secs(5);

/// Swaps an engine by the driver's checkpoint. One value serves one engine.
pub struct Checkpoint {
    gpu: GpuClient,
    /// What the last swap-out took from each GPU, and a swap-in needs.
    taken: Mutex<PerGpu>,
    /// What the engine held on each GPU in all, where that is more: it takes the rest by itself once it is restored.
    whole: Mutex<PerGpu>,
}

impl Checkpoint {
    /// Checkpoints through this gpu server.
    pub fn new(gpu: GpuClient) -> Self {
        Self { gpu, taken: Mutex::default(), whole: Mutex::default() }
    }

    /// What each of these processes holds, or nothing if NVML cannot be asked: it is then not counted, and the driver's
    /// word is all there is.
    async fn held(&self, pids: &[i32]) -> PerGpu {
        per_gpu(
            self.gpu.process_memory().await.unwrap_or_default().iter().filter(|it| pids.contains(&it.pid)),
        )
    }

    /// Refuses processes that are known to have opened memory of others: a restore would lose them. Without a memory
    /// server nothing is known.
    async fn imports(&self, pids: &[i32]) -> Result<(), String> {
        match tokio::time::timeout(LOOK_LIMIT, self.gpu.parking()).await {
            Ok(Ok(pool)) => has_imported(pids, &pool),
            Ok(Err(_)) | Err(_) => Ok(()),
        }
    }

    /// Waits until each GPU has the bytes that a restore needs. The error says whether they are not there, or nobody knows.
    async fn confirm_free(&self, need: &PerGpu, limit: Duration) -> Result<(), (String, bool)> {
        let wanted = (0u32..).zip(need).filter(|(_, bytes)| bytes.0 > 0);
        let looks = join_all(wanted.map(|(gpu, &bytes)| async move {
            let memory =
                self.gpu.wait_free(gpu, bytes.0, limit).await.map_err(|error| (error.to_string(), false))?;
            let free = Bytes(memory.free);
            if free >= bytes {
                return Ok(());
            }
            let holders = self.gpu.process_memory().await.unwrap_or_default();
            let holders: Vec<String> = holders
                .iter()
                .filter(|it| it.gpu == gpu)
                .map(|it| {
                    format!(
                        "process {} holds {}",
                        it.pid,
                        it.bytes.map_or("?".to_owned(), |n| Bytes(n).to_string())
                    )
                })
                .collect();
            let holders = holders.join(", ");
            Err((format!("GPU {gpu} has {free} free and the engine needs {bytes}; {holders}"), true))
        }));
        looks.await.into_iter().collect()
    }

    async fn out(&self, engine: &Engine, log: &mut MoveLog) -> Result<Footprint, (&'static str, Setback)> {
        let before = |reason: String| Setback { reason, unharmed: true };
        let found = log.phase("find", async {
            let members = members(engine)?;
            let group = Group::find(&self.gpu, pids(&members)).await.map_err(|error| error.to_string())?;
            self.imports(group.pids()).await?;
            Ok((members, group))
        });
        let (members, group) = found.await.map_err(|reason| ("find", before(reason)))?;
        if group.pids().is_empty() {
            return Err(("find", before("none of its processes holds CUDA state".to_owned())));
        }
        let held = self.held(group.pids()).await;
        log.phase("lock", group.lock(LOCK_LIMIT.min(log.left())))
            .await
            .map_err(|setback| ("lock", setback))?;
        let limit = log.left();
        log.phase("checkpoint", group.checkpoint(limit)).await.map_err(|setback| ("checkpoint", setback))?;
        lock(&self.taken).clone_from(&held);
        let limit = RELEASE_LIMIT.min(log.left());
        let left = log.phase("release", self.gpu.wait_released(group.pids().to_vec(), limit)).await;
        log.phase("freeze", async { signal(&members, Signal::STOP) }).await;
        let total: Bytes = held.iter().copied().sum();
        log.moved = Some(total);
        Ok(Footprint { gpu: per_gpu(&left.unwrap_or_default()), host: total, ..Footprint::default() })
    }

    /// Brings back what there is room for.
    async fn back(&self, engine: &Engine, log: &mut MoveLog) -> Result<Footprint, (&'static str, Setback)> {
        let lost = |reason: String| Setback { reason, unharmed: false };
        let thawed = log.phase("thaw", async {
            let members = members(engine)?;
            signal(&members, Signal::CONT);
            Ok(members)
        });
        let members = thawed.await.map_err(|reason| ("thaw", lost(reason)))?;
        let found = log.phase("find", Group::find_out(&self.gpu, pids(&members))).await;
        let group = found.map_err(|error| ("find", lost(error.to_string())))?;
        let limit = log.left();
        log.phase("restore", group.restore(limit)).await.map_err(|setback| ("restore", setback))?;
        log.phase("unlock", group.unlock()).await.map_err(|setback| ("unlock", setback))?;
        log.moved = Some(lock(&self.taken).iter().copied().sum());
        Ok(Footprint { gpu: self.held(group.pids()).await, ..Footprint::default() })
    }
}

#[async_trait]
impl Mechanism for Checkpoint {
    fn kind(&self) -> MechanismKind {
        MechanismKind::Checkpoint
    }

    async fn suits(&self, engine: &Engine) -> Result<(), String> {
        if engine.plan.gpus == 0 {
            return Err("a CPU engine has no GPU memory to checkpoint".to_owned());
        }
        let description = self.gpu.describe().await.map_err(|error| error.to_string())?;
        description.can_checkpoint()?;
        let group =
            Group::find(&self.gpu, pids(&members(engine)?)).await.map_err(|error| error.to_string())?;
        if engine.plan.swap_auto {
            inspect::shares(group.pids())?;
        }
        self.imports(group.pids()).await?;
        inspect::managed(group.pids())
    }

    async fn swap_out(&self, engine: &mut Engine, log: &mut MoveLog) -> Result<Footprint, SwapError> {
        self.swap_rest_out(engine, PerGpu::new(), log).await
    }

    /// In, once each GPU has what was taken free, and all that the engine takes by itself after that.
    async fn swap_in(&self, engine: &mut Engine, log: &mut MoveLog) -> Result<Footprint, SwapError> {
        let (mut need, whole) = (lock(&self.taken).clone(), lock(&self.whole).clone());
        need.resize(need.len().max(whole.len()), Bytes(0));
        need.iter_mut().zip(whole).for_each(|(need, whole)| *need = (*need).max(whole));
        let limit = CONFIRM_LIMIT.min(log.left());
        let confirmed = log.phase("confirm", self.confirm_free(&need, limit)).await;
        if let Err((reason, short)) = confirmed {
            // Whoever looks after stopped processes has perhaps continued it meanwhile.
            signal(&members(engine).unwrap_or_default(), Signal::STOP);
            return Err(self.fault("confirm", reason, true).short(short));
        }
        self.back(engine, log)
            .await
            .map_err(|(stage, setback)| self.fault(stage, setback.reason, setback.unharmed))
    }
}

impl Checkpoint {
    /// Out, of an engine that held `whole` on each GPU and has given up a part of it already.
    pub(super) async fn swap_rest_out(
        &self,
        engine: &mut Engine,
        whole: PerGpu,
        log: &mut MoveLog,
    ) -> Result<Footprint, SwapError> {
        *lock(&self.whole) = whole;
        self.out(engine, log)
            .await
            .map_err(|(stage, setback)| self.fault(stage, setback.reason, setback.unharmed))
    }
}

fn lock(bytes: &Mutex<PerGpu>) -> MutexGuard<'_, PerGpu> {
    bytes.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The processes of the engine's tree, found anew.
fn members(engine: &Engine) -> Result<Vec<Stat>, String> {
    engine.members().map_err(|error| format!("cannot list the engine's processes: {error}"))
}

fn pids(members: &[Stat]) -> Vec<i32> {
    members.iter().map(|stat| stat.id.pid).collect()
}

/// Stops or continues processes, each by its handle. Nobody waits for them: of a tree that is out, a process that is
/// missed only runs until it needs the driver, and a continued one runs by the time the driver is asked about it.
fn signal(members: &[Stat], signal: Signal) {
    for stat in members {
        let sent =
            Handle::open(stat.id).and_then(|handle| handle.map_or(Ok(false), |handle| handle.signal(signal)));
        if let Err(error) = sent {
            tracing::warn!(pid = stat.id.pid, name = %stat.comm, "cannot be sent {signal:?}: {error}");
        }
    }
}
