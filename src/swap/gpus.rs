//! What a process tree holds on the GPUs, told by NVML through the gpu server.

use async_trait::async_trait;

use super::{MemoryProbe, PerGpu};
use crate::gpu::{GpuClient, ProcessMemory};
use crate::process::ProcId;
use crate::units::Bytes;

#[async_trait]
impl MemoryProbe for GpuClient {
    async fn held(&self, tree: &[ProcId]) -> Option<PerGpu> {
        let list = self.process_memory().await.ok()?;
        let ours: Vec<ProcessMemory> =
            list.into_iter().filter(|process| tree.iter().any(|id| id.pid == process.pid)).collect();
        // In some virtual machines NVML knows who, but not how much.
        ours.iter().all(|process| process.bytes.is_some()).then(|| per_gpu(&ours))
    }
}

/// Bytes summed over processes, by GPU.
pub(super) fn per_gpu<'a>(list: impl IntoIterator<Item = &'a ProcessMemory>) -> PerGpu {
    let mut sums = PerGpu::new();
    for process in list {
        let at = process.gpu as usize;
        if sums.len() <= at {
            sums.resize(at + 1, Bytes(0));
        }
        sums[at] = sums[at] + Bytes(process.bytes.unwrap_or(0));
    }
    sums
}
