//! Which engines can be parked or held and what they need for it; the pool, opened before the first of them starts.

use super::{gpus::JobGpus, host_plan, specs::Resources};
use crate::{
    config::{ModelPlan, Plan},
    gpu::park::{library, setup::ParkSetup},
    swap::Parking,
    units::Bytes,
};
use std::{collections::BTreeMap, ffi::OsString, path::PathBuf};

/// The pool and the library: what engines are parked with.
pub struct ParkPlace {
    /// The pool and the memory server's door.
    setup: ParkSetup,
    /// The preload library.
    library: PathBuf,
    /// How they are parked.
    pub parking: Parking,
}

impl ParkPlace {
    /// Opens the pool where any engine of the plan may be parked; `resources` then say what it takes, and what the gpu
    /// server's own contexts have left of the GPUs.
    ///
    /// # Errors
    /// Why no engine can be parked: the run goes on with the next mechanisms.
    pub async fn open(
        plan: &Plan,
        found: &mut JobGpus,
        resources: &mut Resources,
        verify: bool,
    ) -> Result<Self, String> {
        let setup = found.parking.clone().ok_or("this run has no GPU")?;
        let bytes = host_plan::pool(plan, resources);
        if bytes.is_zero() {
            return Err("[memory] pool is 0, or no model's `swap` names park".to_owned());
        }
        let library = library::find()?;
        found.open_pool(bytes).await?;
        tracing::info!("the pool of parked engines has {}", setup.division(bytes.0, &found.pci));
        resources.pool = bytes;
        resources.gpu_free.clone_from(&found.free);
        Ok(ParkPlace { setup, library, parking: Parking { verify } })
    }

    /// What a model's engine needs in its environment on top of the rest; nothing for one that is not to be parked.
    pub fn environment(&self, model: &ModelPlan) -> Vec<(OsString, OsString)> {
        if !model.may_be_parked() {
            return Vec::new();
        }
        let (container, others) = (model.apptainer.is_some(), preloaded(model));
        library::environment(&self.library, &self.setup, budget(model), container, others)
    }
}

/// What a model's engine needs in its environment to be held before its first use of a GPU; `None` where it is not to be
/// launched ahead, or there is no library.
pub fn to_be_held(model: &ModelPlan) -> Option<BTreeMap<OsString, OsString>> {
    if !model.start_ahead {
        return None;
    }
    match library::find() {
        Ok(library) => {
            Some(library::loaded(&library, model.apptainer.is_some(), preloaded(model)).into_iter().collect())
        }
        Err(reason) => {
            tracing::info!(model = model.name, reason, "it is not launched ahead of its turn");
            None
        }
    }
}

/// What else is loaded into it before its libraries.
fn preloaded(model: &ModelPlan) -> Option<OsString> {
    let own = model.env.get("LD_PRELOAD").map(OsString::from);
    own.or_else(|| std::env::var_os("LD_PRELOAD"))
}

/// What `cuMemGetInfo` tells an engine that it may take. One that is told its share as an option reckons with the
/// GPU's real size, and would be misled.
fn budget(model: &ModelPlan) -> Option<Bytes> {
    let words = model.command.iter().chain(&model.args).chain(model.env.values());
    let told = words.into_iter().any(|word| word.contains("gpu_memory_fraction"));
    if told { None } else { model.gpu_memory }
}
