//! What an engine holds, measured: the numbers that the ledgers are kept in.

use crate::{
    engine::Engine,
    process::ProcId,
    units::{Bytes, Footprint},
};
use async_trait::async_trait;
use smallvec::SmallVec;
use std::time::{Duration, Instant};

/// Bytes on each GPU of the job, in the order of [`Footprint::gpu`].
pub type PerGpu = SmallVec<[Bytes; 8]>;

/// A swap-out that frees less than this part of an engine's GPU memory is not worth its name.
const LEAST_FREED: f64 = 0.25;

/// The most an engine that held `before` may hold when it is out.
pub(super) fn most_left(before: Bytes) -> Bytes {
    Bytes((before.0 as f64 * (1.0 - LEAST_FREED)) as u64)
}

/// Tells what a process tree holds on the job's GPUs.
#[async_trait]
pub trait MemoryProbe: Send + Sync {
    /// Bytes these processes hold on each GPU; `None` where nobody can tell (no GPU, or a driver that does not say which
    /// process holds what).
    async fn held(&self, tree: &[ProcId]) -> Option<PerGpu>;
}

/// A job without GPUs, or a machine on which they cannot be asked.
pub struct NoGpus;

#[async_trait]
impl MemoryProbe for NoGpus {
    async fn held(&self, _tree: &[ProcId]) -> Option<PerGpu> {
        None
    }
}

/// What the engine takes while resident, before its mechanism is known: its GPU memory as measured (as configured where
/// that is impossible) and what its processes take on the host, or a CPU engine's host memory. Walks page tables for the
/// host's: not for the swap path.
pub(super) async fn resident(engine: &Engine, gpus: &dyn MemoryProbe) -> Footprint {
    if engine.plan.gpus == 0 {
        let host = engine.plan.host_memory.unwrap_or_else(|| engine.host_memory());
        return Footprint { host, ..Footprint::default() };
    }
    let gpu = match gpus.held(&engine.tree()).await {
        Some(held) => {
            tell_if_more(engine, &held);
            held
        }
        None => configured(engine),
    };
    Footprint { gpu, host: engine.kept_memory(), ..Footprint::default() }
}

/// The ledger goes by what is measured; a config that promised less should be put right all the same, since nothing but
/// its word keeps two engines apart while both start.
fn tell_if_more(engine: &Engine, held: &PerGpu) {
    let Some(promised) = engine.plan.gpu_memory else { return };
    for (gpu, took) in held.iter().enumerate().filter(|(_, took)| **took > promised) {
        tracing::warn!(model = %engine.plan.name, gpu, "takes {took}; its gpu_memory says {promised}");
    }
}

/// The configured GPU memory on each of the engine's GPUs.
fn configured(engine: &Engine) -> PerGpu {
    let mut gpu = PerGpu::new();
    for &at in &engine.env.gpus {
        gpu.resize(gpu.len().max(at + 1), Bytes(0));
        gpu[at] = engine.plan.gpu_memory.unwrap_or_default();
    }
    gpu
}

/// All GPUs together.
pub(super) fn total(held: &[Bytes]) -> Bytes {
    held.iter().copied().sum()
}

/// Waits until the tree holds at most `most` in all, and returns what it holds then; the last reading if that does not
/// happen before `deadline`. NVML can lag about a second behind what the driver has freed.
pub(super) async fn wait_until_free(
    tree: &[ProcId],
    gpus: &dyn MemoryProbe,
    most: Bytes,
    deadline: Instant,
) -> Option<PerGpu> {
    const LONGEST_PAUSE: Duration = Duration::from_millis(50);
    let mut pause = Duration::from_millis(1);
    loop {
        let held = gpus.held(tree).await?;
        if total(&held) <= most || Instant::now() >= deadline {
            return Some(held);
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}
