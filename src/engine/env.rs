//! What the run gives an engine: where it may write, which GPUs it sees, what its environment begins with.

use crate::{process::Spawner, topology::Binding};
use smallvec::SmallVec;
use std::{collections::BTreeMap, ffi::OsString, path::PathBuf};

/// The variable that every process of an engine is started with, by which a daemon that left its session is found.
#[derive(Clone, Debug)]
pub struct Cookie {
    /// The variable's name.
    pub name: String,
    /// Its value: the run's, with the model's name in it, so that each engine's processes are told apart.
    pub value: String,
}

/// Everything an engine needs beside its own configuration.
#[derive(Clone)]
pub struct EngineEnv {
    /// Starts processes.
    pub spawner: Spawner,
    /// The run directory (0700), in which each engine gets a directory of its own.
    pub run_dir: PathBuf,
    /// Where its log file goes (0700).
    pub log_dir: PathBuf,
    /// Marks its processes.
    pub cookie: Cookie,
    /// Variables of the job that engines inherit.
    pub inherited: BTreeMap<OsString, OsString>,
    /// Places of its GPUs among the job's, as [`crate::units::Footprint::gpu`] counts them; empty for a CPU engine.
    pub gpus: SmallVec<[usize; 8]>,
    /// The same GPUs as CUDA names them (an entry of the job's own `CUDA_VISIBLE_DEVICES`, or a UUID), in order.
    pub visible: Vec<String>,
    /// Cores it is bound to: its `OMP_NUM_THREADS`, unless the config says otherwise.
    pub threads: usize,
    /// The plan's `gpu_memory` as a share of its GPU's whole memory, where the plan gives one.
    pub gpu_memory_fraction: Option<f64>,
    /// Its cores and memory nodes, applied between fork and exec; `None` where there is nothing to bind.
    pub binding: Option<Binding>,
    /// Put in last, over everything else (`LD_PRELOAD` of the preload library).
    pub extra: BTreeMap<OsString, OsString>,
    /// The same for a launch ahead of its turn, beside where it asks: the preload library. `None` where it is never held.
    pub held: Option<BTreeMap<OsString, OsString>>,
}

impl EngineEnv {
    /// The exact environment of the engine's first process; later ones win: the job's, what binds it to its place,
    /// the config's (`own`), the run's marks.
    pub(super) fn variables(&self, own: &BTreeMap<String, String>) -> BTreeMap<OsString, OsString> {
        let mut all = self.inherited.clone();
        // An empty list hides every GPU, so that a CPU engine opens no context on one.
        all.insert("CUDA_VISIBLE_DEVICES".into(), self.visible.join(",").into());
        all.insert("OMP_NUM_THREADS".into(), self.threads.to_string().into());
        all.extend(own.iter().map(|(name, value)| (name.into(), value.into())));
        all.insert((&self.cookie.name).into(), (&self.cookie.value).into());
        all.extend(self.extra.clone());
        all
    }
}
