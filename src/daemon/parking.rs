//! Which engines can be parked and what they need for it; the pool, opened before the first of them starts.

use super::{gpus::JobGpus, host_plan, specs::Resources};
use crate::{
    config::{ModelPlan, Plan},
    gpu::park::{library, setup::ParkSetup},
    swap::Parking,
    units::Bytes,
};
use std::{ffi::OsString, path::PathBuf};

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
        resources.pool = bytes;
        resources.gpu_free.clone_from(&found.free);
        Ok(ParkPlace { setup, library, parking: Parking { verify } })
    }

    /// What a model's engine needs in its environment on top of the rest; nothing for one that is not to be parked.
    pub fn environment(&self, model: &ModelPlan) -> Vec<(OsString, OsString)> {
        if !model.may_be_parked() {
            return Vec::new();
        }
        let own = model.env.get("LD_PRELOAD").map(OsString::from);
        let others = own.or_else(|| std::env::var_os("LD_PRELOAD"));
        library::environment(&self.library, &self.setup, budget(model), model.apptainer.is_some(), others)
    }
}

/// What `cuMemGetInfo` tells an engine that it may take. One that is told its share as an option reckons with the
/// GPU's real size, and would be misled.
fn budget(model: &ModelPlan) -> Option<Bytes> {
    let words = model.command.iter().chain(&model.args).chain(model.env.values());
    let told = words.into_iter().any(|word| word.contains("gpu_memory_fraction"));
    if told { None } else { model.gpu_memory }
}
