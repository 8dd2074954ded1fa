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
    let host = host_budget.map_or(limit, |budget| budget.min(limit));
    Footprint { gpu: gpu.collect(), host, slots: slots(plan, has.cores) }
}

/// How many CPU engines compute at once: as configured, or one a core.
pub fn slots(plan: &Plan, cores: usize) -> u32 {
    match plan.scheduler.running_slots {
        0 => u32::try_from(cores).unwrap_or(u32::MAX).max(1),
        slots => slots,
    }
}

/// A model that leaves more on the host while it is out than the job has there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("model {model} leaves {leaves} in host memory while it is out, and this job has {has} for that")]
pub struct TooLittleHost {
    /// The model.
    pub model: String,
    /// What it leaves.
    pub leaves: Bytes,
    /// What there is.
    pub has: Bytes,
}

/// Where what an engine leaves on the host is more than the job has, takes the mechanisms that do so off its ladder.
///
/// # Errors
/// When none is left: nothing could ever start.
pub fn keep_within_host(plan: &mut Plan, capacity: &Footprint) -> Result<(), TooLittleHost> {
    for model in &mut plan.models {
        let Some(memory) = model.gpu_memory.filter(|_| model.gpus > 0) else { continue };
        let leaves = Bytes(memory.0 * u64::from(model.gpus));
        if leaves <= capacity.host {
            continue;
        }
        let level = model.sleep_level;
        let light: Vec<MechanismKind> =
            model.swap.iter().copied().filter(|kind| !leaves_on_host(*kind, level)).collect();
        if light.is_empty() {
            return Err(TooLittleHost { model: model.name.clone(), leaves, has: capacity.host });
        }
        tracing::warn!(model = model.name, %leaves, has = %capacity.host, "too little host memory to keep it while it is out");
        model.swap = light;
    }
    Ok(())
}

/// Whether an engine's GPU memory goes to the host when it is swapped so. Sleep level 2 drops it, level 1 keeps weights.
fn leaves_on_host(kind: MechanismKind, sleep_level: u8) -> bool {
    match kind {
        MechanismKind::Park | MechanismKind::ParkCheckpoint | MechanismKind::Checkpoint => true,
        MechanismKind::Sleep | MechanismKind::SleepCheckpoint => sleep_level == 1,
        MechanismKind::Freeze | MechanismKind::Restart | MechanismKind::Hook => false,
    }
}

/// Which of the job's GPUs each model runs on: for each in order, those with the least memory promised so far. A model
/// that does not say what it takes counts as a whole GPU. The config's check has seen that there are enough.
pub fn assign_gpus(plan: &Plan, totals: &[Bytes]) -> Vec<SmallVec<[usize; 8]>> {
    let mut promised = vec![Bytes(0); totals.len()];
    let mut assign = |model: &ModelPlan| {
        let mut by_load: Vec<usize> = (0..totals.len()).collect();
        by_load.sort_by_key(|gpu| promised[*gpu]);
        let mut chosen: SmallVec<[usize; 8]> = by_load.into_iter().take(model.gpus as usize).collect();
        chosen.sort_unstable();
        for gpu in &chosen {
            promised[*gpu] = promised[*gpu] + model.gpu_memory.unwrap_or(totals[*gpu]);
        }
        chosen
    };
    plan.models.iter().map(&mut assign).collect()
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
        let stays = model.swap.first().is_some_and(|kind| leaves_on_host(*kind, model.sleep_level));
        // Of an engine whose size is not known the whole host at most: its trial tells.
        let moved: Bytes = each.iter().copied().sum();
        let host = if stays { moved.min(capacity.host) } else { Bytes(0) };
        let resident = Footprint { gpu: each, host: Bytes(0), slots: 0 };
        (resident, Footprint { gpu: SmallVec::new(), host, slots: 0 })
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    fn plan(swap: &str) -> Plan {
        let text = format!(
            "[models.a]\nengine = \"custom\"\ncommand = [\"sh\", \"{{{{ port }}}}\"]\ngpus = 1\ngpu_memory = \"8GiB\"\nswap = {swap}\n"
        );
        config::parse(std::path::Path::new("models.toml"), &text, &config::Context::default()).unwrap()
    }

    fn host(gib: u64) -> Footprint {
        Footprint { gpu: SmallVec::from_elem(Bytes::gib(16), 1), host: Bytes::gib(gib), slots: 1 }
    }

    #[test]
    fn enough_host_memory_keeps_the_ladder() {
        let mut plan = plan(r#"["checkpoint", "restart"]"#);
        keep_within_host(&mut plan, &host(8)).unwrap();
        assert_eq!(plan.models[0].swap, [MechanismKind::Checkpoint, MechanismKind::Restart]);
    }

    #[test]
    fn too_little_leaves_restart_or_is_an_error() {
        let mut with_restart = plan(r#"["checkpoint", "restart"]"#);
        keep_within_host(&mut with_restart, &host(4)).unwrap();
        assert_eq!(with_restart.models[0].swap, [MechanismKind::Restart]);
        let spec = spec(&with_restart.models[0], &[0], &host(4));
        assert_eq!((spec.out.host, spec.starting.host), (Bytes(0), Bytes(0)));
        let error = keep_within_host(&mut plan(r#""checkpoint""#), &host(4)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "model a leaves 8.0 GiB in host memory while it is out, and this job has 4.0 GiB for that"
        );
    }
}
