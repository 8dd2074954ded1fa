//! From the plan and what the job has to what the scheduler is told. Pure.

use crate::{
    config::{ModelPlan, Plan, plan::MemoryPlan},
    scheduler::{ModelSpec, RestartPolicy},
    units::{Bytes, Footprint, MechanismKind},
};
use smallvec::{SmallVec, smallvec};
use std::sync::Arc;

/// What the job has, as measured before the first engine starts.
#[derive(Clone, Debug, Default)]
pub struct Resources {
    /// Bytes free on each of the job's GPUs.
    pub gpu_free: Vec<Bytes>,
    /// The job's memory limit.
    pub host: Option<Bytes>,
    /// Cores the job may use.
    pub cores: usize,
}

/// The ledgers' capacity: what is there, less what the config keeps back.
pub fn capacity(plan: &Plan, has: &Resources) -> Footprint {
    let MemoryPlan { gpu_budget, gpu_headroom, host_budget, host_headroom } = plan.memory;
    let gpu = has.gpu_free.iter().map(|free| {
        let usable = free.saturating_sub(gpu_headroom);
        gpu_budget.map_or(usable, |budget| budget.min(usable))
    });
    let limit = has.host.unwrap_or(Bytes(u64::MAX)).saturating_sub(host_headroom);
    let slots = match plan.scheduler.running_slots {
        0 => u32::try_from(has.cores).unwrap_or(u32::MAX).max(1),
        slots => slots,
    };
    Footprint { gpu: gpu.collect(), host: host_budget.map_or(limit, |budget| budget.min(limit)), slots }
}

/// One spec a model; `gpus[i]` are the GPUs that model `i` was placed on.
pub fn specs(plan: &Plan, gpus: &[SmallVec<[usize; 8]>], capacity: &Footprint) -> Vec<ModelSpec> {
    plan.models.iter().zip(gpus).map(|(model, gpus)| spec(model, gpus, capacity)).collect()
}

fn spec(model: &ModelPlan, gpus: &[usize], capacity: &Footprint) -> ModelSpec {
    let host = model.host_memory.unwrap_or_default();
    let (resident, out) = if gpus.is_empty() {
        // A CPU engine computes in a slot; it keeps its memory unless it is swapped by `restart`.
        let resident = Footprint { gpu: SmallVec::new(), host, slots: 1 };
        let kept = if model.swap.first() == Some(&MechanismKind::Restart) { Bytes(0) } else { host };
        (resident, Footprint { gpu: SmallVec::new(), host: kept, slots: 0 })
    } else {
        // Engines that are not told otherwise size their cache by what is free: they take the whole GPU.
        let mut each: SmallVec<[Bytes; 8]> = smallvec![Bytes(0); capacity.gpu.len()];
        for gpu in gpus {
            each[*gpu] = model.gpu_memory.unwrap_or(capacity.gpu[*gpu]);
        }
        let moved = each.iter().copied().sum();
        let resident = Footprint { gpu: each, host: Bytes(0), slots: 0 };
        (resident, Footprint { gpu: SmallVec::new(), host: moved, slots: 0 })
    };
    let starting = Footprint { host: resident.host.max(out.host), ..resident.clone() };
    ModelSpec {
        name: Arc::from(model.name.as_str()),
        pin: model.pin,
        preload: model.preload,
        gpus: SmallVec::from_slice(gpus),
        starting,
        resident,
        out,
        keeps_streams: model.swap.first().is_some_and(|first| first.keeps_streams()),
        idle_ttl: model.idle_ttl,
        restart: RestartPolicy::default(),
    }
}
