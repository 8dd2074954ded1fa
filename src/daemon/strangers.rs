//! Other people's memory on a shared GPU: the ledger's capacity follows what is really there for this run.
//!
//! What a GPU has for us is what NVML calls free and what our own processes hold, while none of them moves. A stranger
//! who comes makes it less, one who goes makes it more; a process of ours that nobody can end counts as a stranger. NVML
//! can lag behind a swap, and the two questions are not asked at one moment: so a change counts when two looks in a row
//! agree on it.

use super::{
    Core,
    specs::{self, Resources},
};
use crate::{
    gpu::{GpuClient, launch::SERVER_VERB},
    process::{self, ProcFs, Tree},
    units::{Bytes, Footprint},
};
use std::{collections::HashSet, rc::Rc, time::Duration};

/// Time between two looks.
const INTERVAL: Duration = Duration::from_secs(2);
/// A smaller change is not worth a thought: contexts and caches of the driver come and go.
const NOTICEABLE: Bytes = Bytes::mib(64);

/// Looks for ever, and tells the scheduler what changed. `has` is what the ledgers were made from.
pub async fn watch(core: Rc<Core>, client: GpuClient, mut has: Resources) {
    let mut before = has.gpu_free.clone();
    loop {
        tokio::time::sleep(INTERVAL).await;
        let rest = core.at_rest();
        let seen = ours_and_free(&client, has.gpu_free.len()).await;
        // Bytes on their way are nobody's: the driver has taken them from the process, or NVML has not seen them yet.
        let Some(now) = seen.filter(|_| rest.is_some() && rest == core.at_rest()) else { continue };
        let settled = |gpu: usize| !differ(before[gpu], now[gpu]) && differ(has.gpu_free[gpu], now[gpu]);
        let changed: Vec<usize> = (0..now.len()).filter(|gpu| settled(*gpu)).collect();
        for gpu in &changed {
            let (was, is) = (has.gpu_free[*gpu], now[*gpu]);
            tracing::info!(gpu, %was, %is, "the memory that this run can use on a GPU has changed: another process came or went");
            has.gpu_free[*gpu] = is;
        }
        if !changed.is_empty() {
            let gpu = specs::capacity(&core.plan, &has).gpu;
            core.set_capacity(Footprint { gpu, ..core.capacity() });
        }
        before = now;
    }
}

fn differ(one: Bytes, other: Bytes) -> bool {
    one.0.abs_diff(other.0) > NOTICEABLE.0
}

/// For each GPU what is free and what our processes hold of it; `None` where NVML does not tell processes apart,
/// or names them as another pid namespace (a container's outside) does.
async fn ours_and_free(client: &GpuClient, gpus: usize) -> Option<Vec<Bytes>> {
    let ours = tokio::task::spawn_blocking(below_us).await.ok()?;
    let mut sums = Vec::with_capacity(gpus);
    for gpu in 0..gpus {
        sums.push(Bytes(client.memory(u32::try_from(gpu).ok()?).await.ok()?.free));
    }
    for process in client.process_memory().await.ok()? {
        if ours.contains(&process.pid) {
            let sum = sums.get_mut(process.gpu as usize)?;
            *sum = *sum + Bytes(process.bytes?);
        } else {
            // A number that nobody has here is another pid namespace's: ours could be among those.
            ProcFs::default().stat(process.pid)?;
        }
    }
    Some(sums)
}

/// Every process of this run that an engine's memory can be with: not the gpu server, whose contexts no engine can have,
/// nor what hangs in the kernel after its engine was ended, whose memory no other engine can have. One pass over `/proc`.
fn below_us() -> HashSet<i32> {
    let proc = ProcFs::default();
    let Some(own) = proc.stat(std::process::id().cast_signed()) else { return HashSet::new() };
    let members = Tree::of(own.id).members().unwrap_or_default();
    let server = |pid: i32| {
        let words = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        words.split(|byte| *byte == 0).nth(1) == Some(SERVER_VERB.as_bytes())
    };
    let engines = members.into_iter().filter(|stat| stat.ppid != own.id.pid || !server(stat.id.pid));
    engines.filter(|stat| !process::hangs(stat.id)).map(|stat| stat.id.pid).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_hangs_in_the_kernel_is_not_ours_any_more() {
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let stat = ProcFs::default().stat(child.id().cast_signed()).unwrap();
        assert!(below_us().contains(&stat.id.pid));
        process::pretend(stat.id);
        assert!(!below_us().contains(&stat.id.pid));
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
