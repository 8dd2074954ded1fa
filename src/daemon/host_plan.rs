//! How the job's host memory is shared out before anything starts. Pure.
//!
//! ```text
//! the job's memory limit
//! ├─ host_headroom       the user's command, and this program
//! └─ for engines         or host_budget
//!    ├─ the pool         pinned when the run begins; no end of an engine gives any of it back
//!    └─ the rest         CPU engines, what the driver keeps of engines that are checkpointed, what processes of GPU engines
//!                        take besides: the ledger's host bytes
//! ```

use super::specs::Resources;
use crate::{
    config::{ModelPlan, Plan, plan::MemoryPlan},
    gpu::park::setup::SEGMENT,
    units::{Bytes, Footprint, MechanismKind},
};

/// Host memory for engines, the pool's included.
pub fn for_engines(plan: &Plan, has: &Resources) -> Bytes {
    let MemoryPlan { host_budget, host_headroom, .. } = plan.memory;
    let limit = has.host.unwrap_or(Bytes(u64::MAX)).saturating_sub(host_headroom);
    host_budget.map_or(limit, |budget| budget.min(limit))
}

/// The pinned pool in whole segments: as the config says, else what every engine that may be parked takes at most, so
/// far as that leaves to what is not parked what it is known to take, and a quarter of the host's memory for engines.
/// Nothing where no engine may be parked.
pub fn pool(plan: &Plan, has: &Resources) -> Bytes {
    let largest = has.gpu_free.iter().max().copied().unwrap_or_default();
    let parked = plan.models.iter().filter(|model| model.may_be_parked());
    let need: Bytes = parked.map(|model| on_gpus(model, largest)).sum();
    if need.is_zero() {
        return need;
    }
    let host = for_engines(plan, has);
    let wanted = plan.memory.pool.unwrap_or_else(|| {
        let others: Bytes = plan.models.iter().map(|model| leaves(model, largest, true)).sum();
        need.min(host.saturating_sub(others).max(Bytes(host.0 / 4)).min(Bytes(host.0 / 4 * 3)))
    });
    Bytes(wanted.0.next_multiple_of(SEGMENT)).min(Bytes(host.0 / SEGMENT * SEGMENT))
}

/// What a model's engine takes of its GPUs, all together; `each` of one where that is not known.
fn on_gpus(model: &ModelPlan, each: Bytes) -> Bytes {
    Bytes(model.gpu_memory.unwrap_or(each).0.saturating_mul(model.gpus.into()))
}

/// What a model takes of the rest while it is out, as far as the config tells; `each`: of a GPU, where that is not known.
fn leaves(model: &ModelPlan, each: Bytes, has_pool: bool) -> Bytes {
    if model.swap.first() == Some(&MechanismKind::Restart) {
        return Bytes(0);
    }
    if model.gpus == 0 {
        return model.host_memory.unwrap_or_default();
    }
    if has_pool && model.may_be_parked() {
        return Bytes(0);
    }
    let kept = model.swap.iter().find_map(|kind| kept_in(*kind, model.sleep_level));
    if kept == Some(Keeps::Host) { on_gpus(model, each) } else { Bytes(0) }
}

/// All engines out at once take more than there is: then some of them have to be stopped instead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "when all models are out, their engines take up to {need} of host memory, and this job has {rest} for that: {limit} less \
     host_headroom {headroom} and the pool {pool}, which stays pinned. Models used longest ago are stopped then and start anew \
     when they are asked for; to keep all, ask for more with --mem, or lower [memory] pool"
)]
pub struct Shortage {
    /// What they take at most.
    pub need: Bytes,
    /// What there is, without the pool.
    pub rest: Bytes,
    /// The job's memory.
    pub limit: Bytes,
    /// Kept for the user's command.
    pub headroom: Bytes,
    /// The pinned pool.
    pub pool: Bytes,
}

/// Whether the rest is too little for all engines at once.
pub fn shortage(plan: &Plan, has: &Resources) -> Option<Shortage> {
    let largest = has.gpu_free.iter().max().copied().unwrap_or_default();
    let need: Bytes = plan.models.iter().map(|model| leaves(model, largest, !has.pool.is_zero())).sum();
    let rest = for_engines(plan, has).saturating_sub(has.pool);
    let (limit, headroom) = (has.host?, plan.memory.host_headroom);
    (need > rest).then_some(Shortage { need, rest, limit, headroom, pool: has.pool })
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

/// Where what an engine leaves on the host is more than the job has, takes the mechanisms that do so off its ladder. What
/// an engine leaves in the pool is known only when it was there once (zeros take no room): a pool of any size will do.
///
/// # Errors
/// When none is left: nothing could ever start.
pub fn keep_within_host(plan: &mut Plan, capacity: &Footprint) -> Result<(), TooLittleHost> {
    for model in &mut plan.models {
        let Some(memory) = model.gpu_memory.filter(|_| model.gpus > 0) else { continue };
        let leaves = Bytes(memory.0 * u64::from(model.gpus));
        let level = model.sleep_level;
        let fits = |kind: &MechanismKind| match kept_in(*kind, level) {
            Some(Keeps::Host) => leaves <= capacity.host,
            Some(Keeps::Pool) => !capacity.pool.is_zero(),
            None => true,
        };
        let light: Vec<MechanismKind> = model.swap.iter().copied().filter(fits).collect();
        if light.len() == model.swap.len() {
            continue;
        }
        if light.is_empty() {
            return Err(TooLittleHost { model: model.name.clone(), leaves, has: capacity.host });
        }
        tracing::warn!(model = model.name, %leaves, has = %capacity.host, "too little host memory to keep it while it is out");
        model.swap = light;
    }
    Ok(())
}

/// Which memory of the host's an engine's GPU memory goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keeps {
    /// The pinned pool.
    Pool,
    /// The engine's own processes.
    Host,
}

/// Where an engine's GPU memory goes when it is swapped so. Sleep level 2 drops it, level 1 keeps weights.
pub(super) fn kept_in(kind: MechanismKind, sleep_level: u8) -> Option<Keeps> {
    match kind {
        MechanismKind::Park | MechanismKind::ParkCheckpoint => Some(Keeps::Pool),
        MechanismKind::Checkpoint => Some(Keeps::Host),
        MechanismKind::Sleep | MechanismKind::SleepCheckpoint => (sleep_level == 1).then_some(Keeps::Host),
        MechanismKind::Freeze | MechanismKind::Restart | MechanismKind::Hook => None,
    }
}

#[cfg(test)]
mod tests {
    use super::{super::specs, *};
    use crate::config;

    /// Models of 8 GiB on a GPU each, with what their sections say beside that.
    fn plan(memory: &str, models: &[&str]) -> Plan {
        let model = |(at, more): (usize, &&str)| {
            let gpu = if more.contains("gpus") { "" } else { "gpus = 1\ngpu_memory = \"8GiB\"\n" };
            format!(
                "[models.m{at}]\nengine = \"custom\"\ncommand = [\"sh\", \"{{{{ port }}}}\"]\n{gpu}{more}\n"
            )
        };
        let models: String = models.iter().enumerate().map(model).collect();
        let text = format!("[memory]\n{memory}\n{models}");
        config::parse(std::path::Path::new("models.toml"), &text, &config::Context::default()).unwrap()
    }

    fn has(gib: u64) -> Resources {
        Resources { gpu_free: vec![Bytes::gib(16)], host: Some(Bytes::gib(gib)), ..Resources::default() }
    }

    fn host(gib: u64) -> Footprint {
        Footprint { slots: 1, ..Footprint::on_gpus(&[0], Bytes::gib(16)) }.with_host(Bytes::gib(gib))
    }

    #[test]
    fn where_no_engine_may_be_parked_there_is_no_pool() {
        let none = [r#"swap = ["checkpoint", "restart"]"#, r#"swap = "restart""#];
        assert_eq!(pool(&plan("", &none), &has(100)), Bytes(0));
        assert_eq!(pool(&plan("pool = \"4GiB\"", &none), &has(100)), Bytes(0), "whatever its size was to be");
        assert_eq!(pool(&plan("pool = \"0B\"", &[r#"swap = "park""#]), &has(100)), Bytes(0));
        assert_eq!(pool(&plan("pool = \"4GiB\"", &[r#"swap = "park""#]), &has(100)), Bytes::gib(4));
    }

    #[test]
    fn enough_host_memory_keeps_the_ladder() {
        let mut plan = plan("", &[r#"swap = ["checkpoint", "restart"]"#]);
        keep_within_host(&mut plan, &host(8)).unwrap();
        assert_eq!(plan.models[0].swap, [MechanismKind::Checkpoint, MechanismKind::Restart]);
    }

    #[test]
    fn too_little_leaves_restart_or_is_an_error() {
        let mut with_restart = plan("", &[r#"swap = ["checkpoint", "restart"]"#]);
        keep_within_host(&mut with_restart, &host(4)).unwrap();
        assert_eq!(with_restart.models[0].swap, [MechanismKind::Restart]);
        let gpus = [smallvec::smallvec![0]];
        let spec = specs::specs(&with_restart, &gpus, &[specs::StartFacts::default()], &host(4)).remove(0);
        assert_eq!((spec.out.host, spec.starting.host), (Bytes(0), Bytes(0)));
        let error = keep_within_host(&mut plan("", &[r#"swap = "checkpoint""#]), &host(4)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "model m0 leaves 8.0 GiB in host memory while it is out, and this job has 4.0 GiB for that"
        );
    }

    #[test]
    fn the_pool_is_whole_segments_and_never_more_than_the_job_has() {
        let parked = r#"swap = "park""#;
        assert_eq!(pool(&plan("pool = \"1000MiB\"", &[parked]), &has(65)), Bytes::gib(1));
        assert_eq!(pool(&plan("", &[parked, parked]), &has(65)), Bytes::gib(16), "all that they take");
        assert_eq!(pool(&plan("", &[parked, parked]), &has(17)), Bytes::gib(12), "three quarters");
        let all = plan("host_headroom = \"200MiB\"\npool = \"790MiB\"", &[parked]);
        assert_eq!(pool(&all, &has(1)), Bytes::mib(768), "a segment more would not fit");
        assert_eq!(pool(&plan("", &[r#"swap = "checkpoint""#]), &has(65)), Bytes(0));
    }

    #[test]
    fn the_pool_leaves_what_the_others_are_known_to_take() {
        let parked = r#"swap = "park""#;
        let others = [parked, parked, r#"swap = "checkpoint""#, "gpus = 0\nhost_memory = \"4GiB\""];
        assert_eq!(pool(&plan("", &others), &has(25)), Bytes::gib(12), "24 less 8 and 4");
        assert_eq!(pool(&plan("", &others), &has(13)), Bytes::gib(3), "a quarter all the same");
    }

    #[test]
    fn all_engines_out_at_once_are_counted_beside_the_pool() {
        let checkpointed = r#"swap = ["checkpoint", "restart"]"#;
        let plan = plan("", &[r#"swap = "park""#, checkpointed, checkpointed]);
        let with_pool = |gib| Resources { pool: Bytes::gib(8), ..has(gib) };
        assert_eq!(shortage(&plan, &with_pool(25)), None, "8 in the pool, twice 8 by the driver, 1 kept");
        let short = shortage(&plan, &with_pool(24)).unwrap();
        assert_eq!((short.need, short.rest), (Bytes::gib(16), Bytes::gib(15)));
        let text = short.to_string();
        assert!(text.contains("24.0 GiB less host_headroom 1.0 GiB and the pool 8.0 GiB"), "{text}");
        assert!(text.contains("--mem"), "{text}");
        assert_eq!(shortage(&plan, &Resources { host: None, ..with_pool(1) }), None, "nothing limits it");
    }

    #[test]
    fn an_engine_that_is_started_anew_keeps_nothing() {
        let restarted = r#"swap = "restart""#;
        assert_eq!(shortage(&plan("", &[restarted, restarted]), &has(1)), None);
    }
}
