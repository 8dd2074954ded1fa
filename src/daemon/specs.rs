//! From the plan and what the job has to what the scheduler is told. Pure.

use super::host_plan::{self, Keeps, kept_in};
use crate::{
    config::{ModelPlan, Plan, Preset, plan::MemoryPlan},
    scheduler::{ModelSpec, Preparation, RestartPolicy},
    units::{Bytes, Footprint, MechanismKind},
};
use smallvec::{SmallVec, smallvec};
use std::sync::Arc;

/// What the job has, as measured before the first engine starts.
#[derive(Clone, Debug, Default)]
pub struct Resources {
    /// Bytes free on each of the job's GPUs.
    pub gpu_free: Vec<Bytes>,
    /// Bytes of each that processes hold which are not this run's.
    pub gpu_foreign: Vec<Bytes>,
    /// The job's memory limit.
    pub host: Option<Bytes>,
    /// Cores the job may use.
    pub cores: usize,
    /// Bytes of the pinned pool, which are the host's too.
    pub pool: Bytes,
}

/// The ledgers' capacity: what is there, less what the config keeps back.
pub fn capacity(plan: &Plan, has: &Resources) -> Footprint {
    let MemoryPlan { gpu_budget, gpu_headroom, .. } = plan.memory;
    let gpu = has.gpu_free.iter().map(|free| {
        let usable = free.saturating_sub(gpu_headroom);
        gpu_budget.map_or(usable, |budget| budget.min(usable))
    });
    let host = host_plan::for_engines(plan, has).saturating_sub(has.pool);
    Footprint { gpu: gpu.collect(), host, pool: has.pool, slots: slots(plan, has.cores) }
}

/// The capacity there would be if the other processes on the job's GPUs were gone.
pub fn ceiling(plan: &Plan, has: &Resources) -> Footprint {
    let alone = has.gpu_free.iter().zip(&has.gpu_foreign).map(|(free, foreign)| *free + *foreign);
    capacity(plan, &Resources { gpu_free: alone.collect(), ..has.clone() })
}

/// Says of each model that does not fit beside other processes on its GPUs, but would without them, that it waits.
pub fn tell_who_waits(models: &[ModelSpec], capacity: &Footprint, ceiling: &Footprint) {
    for model in models {
        let lacks = model.starting.minus(capacity);
        if !lacks.is_zero() && model.starting.within(ceiling) {
            tracing::warn!(
                model = %model.name, needs = %model.starting, %lacks,
                "other processes on the job's GPUs hold what it needs: it is started once that is free"
            );
        }
    }
}

/// How many CPU engines compute at once: as configured, or one a core.
pub fn slots(plan: &Plan, cores: usize) -> u32 {
    match plan.scheduler.running_slots {
        0 => u32::try_from(cores).unwrap_or(u32::MAX).max(1),
        slots => slots,
    }
}

/// What a CUDA context takes of a GPU: 0.4 to 0.6 GiB on an H100.
const CONTEXT: Bytes = Bytes::mib(640);

/// A parked engine's CUDA context and small allocations stay on the GPU: up to so much was seen (vLLM, SGLang).
const PARKED_REST: Bytes = Bytes::gib(1);

/// Under `auto`, puts `park+checkpoint` before `park` where what parked engines leave on a GPU adds up to more than the
/// largest of its models can spare. `gpus[i]` are the GPUs of model `i`.
pub fn leave_nothing_where_it_adds_up(plan: &mut Plan, gpus: &[SmallVec<[usize; 8]>], capacity: &Footprint) {
    for (gpu, &room) in capacity.gpu.iter().enumerate() {
        let here: Vec<usize> = (0..plan.models.len()).filter(|at| gpus[*at].contains(&gpu)).collect();
        // Engines that are not told otherwise take nine tenths or less.
        let takes = |at: &usize| plan.models[*at].gpu_memory.unwrap_or(Bytes(room.0 / 10 * 9));
        let largest = here.iter().map(takes).max().unwrap_or_default();
        let rests = Bytes(PARKED_REST.0 * here.len().saturating_sub(1) as u64);
        if largest + rests <= room {
            continue;
        }
        for at in here {
            let model = &mut plan.models[at];
            let place = |kind| model.swap.iter().position(|it| *it == kind);
            if let (true, Some(park), Some(nothing_left)) =
                (model.swap_auto, place(MechanismKind::Park), place(MechanismKind::ParkCheckpoint))
                && park < nothing_left
            {
                model.swap.swap(park, nothing_left);
            }
        }
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

/// Whether an engine makes itself as large as the GPU's free memory lets it. llama.cpp is told how many layers to load and
/// how long a context may be, and transformers allocates as requests need it; of an unknown engine it has to be assumed.
pub fn sizes_itself(engine: Preset) -> bool {
    !matches!(engine, Preset::LlamaCpp | Preset::Transformers)
}

/// What is known of an engine's start before it begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StartFacts {
    /// Bytes of the files that it reads, as far as they are known.
    pub weights: Bytes,
    /// Whether it looks at what its GPUs have free.
    pub measures: bool,
    /// What it takes to launch it ahead of its turn; `None` where that is not done.
    pub preparation: Option<Preparation>,
}

/// Host memory of an engine that has imported what it needs and touched no GPU: two to four processes with PyTorch.
const IMPORTED: Bytes = Bytes::gib(2);

/// What it takes to launch a model's engine ahead of its turn. Its turn has to come within `start_timeout`.
pub fn preparation(model: &ModelPlan) -> Preparation {
    Preparation { host: IMPORTED, longest: model.start_timeout }
}

/// One spec a model; `gpus[i]` are the GPUs that model `i` was placed on, `starts[i]` is what is known of its start.
pub fn specs(
    plan: &Plan,
    gpus: &[SmallVec<[usize; 8]>],
    starts: &[StartFacts],
    capacity: &Footprint,
) -> Vec<ModelSpec> {
    let all = plan.models.iter().zip(gpus).zip(starts);
    all.map(|((model, gpus), start)| {
        let StartFacts { weights, measures, preparation } = *start;
        ModelSpec { weights, measures, preparation, ..spec(model, gpus, capacity) }
    })
    .collect()
}

fn spec(model: &ModelPlan, gpus: &[usize], capacity: &Footprint) -> ModelSpec {
    let host = model.host_memory.unwrap_or_default();
    let (resident, out) = if gpus.is_empty() {
        // A CPU engine computes in a slot; it keeps its memory unless it is swapped by `restart`.
        let resident = Footprint { host, slots: 1, ..Footprint::default() };
        let kept = if model.swap.first() == Some(&MechanismKind::Restart) { Bytes(0) } else { host };
        (resident, Footprint { host: kept, ..Footprint::default() })
    } else {
        // Engines that are not told otherwise size their cache by what is free: they take the whole GPU.
        let mut each: SmallVec<[Bytes; 8]> = smallvec![Bytes(0); capacity.gpu.len()];
        for gpu in gpus {
            each[*gpu] = model.gpu_memory.unwrap_or(capacity.gpu[*gpu]);
        }
        // Of an engine whose size is not known the whole host or pool at most: its trial tells.
        let moved: Bytes = each.iter().copied().sum();
        let out = Footprint::default();
        let out = match model.swap.first().and_then(|kind| kept_in(*kind, model.sleep_level)) {
            Some(Keeps::Host) => out.with_host(moved.min(capacity.host)),
            Some(Keeps::Pool) => out.with_pool(moved.min(capacity.pool)),
            None => out,
        };
        (Footprint { gpu: each, ..Footprint::default() }, out)
    };
    let mut starting = resident.max(&out);
    for (gpu, bytes) in starting.gpu.iter_mut().enumerate().filter(|(_, bytes)| !bytes.is_zero()) {
        // Beside its own context it finds what it was told that it may take (vLLM looks for exactly that).
        let context = CONTEXT.min(Bytes(bytes.0 / 16));
        *bytes = (*bytes + context).min(capacity.on_gpu(gpu)).max(*bytes);
    }
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
        measures: false,
        weights: Bytes(0),
        preparation: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    fn plan(models: &[&str]) -> Plan {
        let model = |(at, more): (usize, &&str)| {
            format!(
                "[models.m{at}]\nengine = \"custom\"\ncommand = [\"sh\", \"{{{{ port }}}}\"]\ngpus = 1\n{more}\n"
            )
        };
        let text: String = models.iter().enumerate().map(model).collect();
        config::parse(std::path::Path::new("models.toml"), &text, &config::Context::default()).unwrap()
    }

    /// What each model's ladder tries first on one GPU of so many GiB.
    fn first(models: &[&str], gib: u64) -> Vec<MechanismKind> {
        let mut plan = plan(models);
        let gpus = vec![SmallVec::from_slice(&[0]); models.len()];
        leave_nothing_where_it_adds_up(&mut plan, &gpus, &Footprint::on_gpus(&[0], Bytes::gib(gib)));
        plan.models.iter().map(|model| model.swap[0]).collect()
    }

    #[test]
    fn what_parked_engines_leave_is_taken_too_where_it_adds_up() {
        use MechanismKind::{Checkpoint, Park, ParkCheckpoint};
        let large = "gpu_memory = \"20GiB\"";
        // Two others leave 2 GiB, and the largest can spare 4, or 1.
        assert_eq!(first(&[large; 3], 24), [Park; 3]);
        assert_eq!(first(&[large; 3], 21), [ParkCheckpoint; 3]);
        // What the config names stays as it is.
        let named = |swap: &str| format!("{large}\nswap = {swap}");
        let (park, both) = (named("\"park\""), named("[\"checkpoint\", \"park\"]"));
        assert_eq!(first(&[large, &park, &both], 21), [ParkCheckpoint, Park, Checkpoint]);
        // One alone has nobody whose rest is in its way.
        assert_eq!(first(&[large], 20), [Park]);
    }
}
