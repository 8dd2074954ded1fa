//! Which engine goes where and with what: placement, environment, one worker a model. Nothing is started here.

use super::{
    gpus::JobGpus,
    parking::{self, ParkPlace},
    report::{Order, Report},
    specs::{self, StartFacts},
    timeline::Timeline,
    worker::Worker,
};
use crate::{
    config::Plan,
    engine::{Cookie, Engine, EngineEnv, Weights},
    gpu::park::setup::BUDGET_VARIABLE,
    job::{Job, RunDir, rundir::COOKIE},
    process::Spawner,
    swap::{Deps, MemoryProbe, NoGpus, Swapper},
    topology::{self, Allowed, Binding, Mask, Placement, Request, TopologyError, View},
    units::{Bytes, ModelId},
};
use smallvec::SmallVec;
use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    path::PathBuf,
    sync::Arc,
};
use tokio::sync::{mpsc, watch};

/// Why the engines cannot be given their places.
#[derive(Debug, thiserror::Error)]
pub enum WiringError {
    /// The machine's cores and memory are unknown.
    #[error("cannot learn this node's cores and memory")]
    Topology(#[from] TopologyError),
}

/// Everything that is needed to begin.
pub struct Wiring {
    /// One a model, not working yet.
    pub prepared: Vec<Prepared>,
    /// What is known of each model's start.
    pub starts: Vec<StartFacts>,
}

/// A worker to be.
pub struct Prepared {
    model: ModelId,
    engine: Engine,
    swapper: Swapper,
    placement: String,
    trial: bool,
    weights: Weights,
}

impl Prepared {
    fn start_facts(&self) -> StartFacts {
        let (plan, env) = (&self.engine.plan, &self.engine.env);
        // One that is given a budget of its own sees nothing of what others do on its GPUs.
        let has_budget = env.extra.contains_key(OsStr::new(BUDGET_VARIABLE));
        let measures = !env.gpus.is_empty() && !has_budget && specs::sizes_itself(plan.engine);
        let preparation = env.held.is_some().then(|| specs::preparation(plan));
        StartFacts { weights: self.weights.bytes(), measures, preparation }
    }

    /// Puts it to work.
    pub fn worker(
        self,
        orders: mpsc::UnboundedReceiver<Order>,
        reports: mpsc::UnboundedSender<Report>,
        ending: watch::Receiver<bool>,
    ) -> Worker {
        let Prepared { model, engine, swapper, placement, trial, weights } = self;
        Worker {
            model,
            engine,
            swapper,
            trial,
            orders,
            reports,
            ending,
            placement,
            prepared: None,
            cold_start: None,
            members: Vec::new(),
            vain_starts: 0,
            weights,
            reading: None,
            timeline: Timeline::default(),
            note: String::new(),
        }
    }
}

/// Places every engine near its GPUs and prepares its worker. The plan comes with each model's GPUs among the job's; `dirs`:
/// the run directory, and where engines' logs go.
pub fn wire(
    (plan, gpus): (&Plan, &[SmallVec<[usize; 8]>]),
    (job, view): (&Job, &View),
    spawner: &Spawner,
    found: &JobGpus,
    dirs: (&RunDir, PathBuf),
    park: &Result<ParkPlace, String>,
    trial: bool,
) -> Result<Wiring, WiringError> {
    let (run_dir, log_dir) = dirs;
    let requests: Vec<Request> = gpus
        .iter()
        .map(|gpus| Request { gpus: gpus.iter().filter_map(|at| found.pci[*at]).collect() })
        .collect();
    let allowed = allowed(job);
    let slots = specs::slots(plan, job.cores.len()) as usize;
    let placements = topology::place(view, &allowed, &requests, slots);
    let gpus_seen: Arc<dyn MemoryProbe> = match &found.client {
        Some(client) => Arc::new(client.clone()),
        None => Arc::new(NoGpus),
    };
    let can_park = park.as_ref().map(|place| place.parking).map_err(Clone::clone);
    let deps = Deps { gpus: gpus_seen, server: found.client.clone(), parking: can_park };
    let places = gpus.iter().zip(&placements).enumerate();
    let prepared = places.map(|(at, (gpus, placement))| {
        let model = plan.models[at].clone();
        let env = EngineEnv {
            spawner: spawner.clone(),
            run_dir: run_dir.path().to_owned(),
            log_dir: log_dir.clone(),
            cookie: Cookie { name: COOKIE.to_owned(), value: format!("{}/{}", run_dir.cookie(), model.name) },
            inherited: inherited(),
            gpus: gpus.clone(),
            visible: gpus.iter().map(|gpu| found.visible[*gpu].clone()).collect(),
            threads: placement.cpus.len().max(1),
            gpu_memory_fraction: fraction(model.gpu_memory, gpus, &found.totals),
            binding: Binding::prepare(placement, view.this_system),
            extra: park.iter().flat_map(|place| place.environment(&model)).collect(),
            held: parking::to_be_held(&model),
        };
        let swapper = Swapper::new(&model, &deps);
        let weights = Weights::find(&model);
        let engine = Engine::new(Arc::new(model), env);
        let placement = in_words(placement);
        Prepared { model: ModelId(at as u32), engine, swapper, placement, trial, weights }
    });
    let prepared: Vec<Prepared> = prepared.collect();
    Ok(Wiring { starts: prepared.iter().map(Prepared::start_facts).collect(), prepared })
}

/// What of the machine the job may use. Its memory nodes are those of its cores.
pub fn allowed(job: &Job) -> Allowed {
    Allowed { cpus: job.cores.iter().copied().collect(), nodes: Mask::new(), memory: job.memory }
}

/// What engines inherit of this process's environment: all but our own variables.
fn inherited() -> BTreeMap<OsString, OsString> {
    std::env::vars_os().filter(|(name, _)| !name.to_string_lossy().starts_with("SWAPSERVE_")).collect()
}

/// The share of its fullest GPU that an engine may take.
fn fraction(memory: Option<Bytes>, gpus: &[usize], totals: &[Bytes]) -> Option<f64> {
    let least = gpus.iter().map(|gpu| totals[*gpu]).min()?;
    memory.map(|memory| memory.0 as f64 / least.0 as f64)
}

fn in_words(placement: &Placement) -> String {
    format!("cores {}, memory node {}: {}", placement.cpus, placement.memory_nodes, placement.reason)
}
