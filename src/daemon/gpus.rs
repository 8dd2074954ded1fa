//! The job's GPUs as the driver sees them, and the gpu server that speaks to it.

use crate::{
    config,
    gpu::{Description, GpuClient, GpuError, capability::Capability, launch::ServerCommand},
    job::Job,
    process::Spawner,
    topology::PciId,
    units::Bytes,
};
use std::io;

/// The job's GPUs in the order of `CUDA_VISIBLE_DEVICES`, each list with one entry a GPU.
#[derive(Clone, Default)]
pub struct JobGpus {
    /// The gpu server; `None` where there are no GPUs.
    pub client: Option<GpuClient>,
    /// Each one's whole memory.
    pub totals: Vec<Bytes>,
    /// What of it is free.
    pub free: Vec<Bytes>,
    /// Where it is plugged in, for its place among cores and memory.
    pub pci: Vec<Option<PciId>>,
    /// Its name for CUDA: one that holds in every process, where a number is relative to what each was given.
    pub visible: Vec<String>,
    /// What can be done with them here and what cannot, with reasons.
    pub capabilities: Vec<Capability>,
}

/// The gpu server cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum GpusError {
    /// It cannot be started.
    #[error("cannot start the gpu server")]
    Start(#[source] io::Error),
    /// It does not answer.
    #[error("the gpu server does not answer")]
    Ask(#[from] GpuError),
}

impl JobGpus {
    /// Starts a gpu server and asks it. A step that was given no GPU starts none; a machine without the driver has none.
    ///
    /// # Errors
    /// When the server cannot be started or does not answer.
    pub async fn find(job: &Job, spawner: &Spawner) -> Result<Self, GpusError> {
        if job.gpus.count() == Some(0) {
            return Ok(JobGpus::default());
        }
        let client = GpuClient::start(spawner.clone(), ServerCommand::own().map_err(GpusError::Start)?);
        let Description { gpus, capabilities, .. } = client.describe().await?;
        let mut found = JobGpus::default();
        for gpu in &gpus {
            let memory = client.memory(gpu.ordinal).await?;
            found.totals.push(Bytes(gpu.total));
            found.free.push(Bytes(memory.free));
            found.pci.push(gpu.pci_bus_id.parse().ok());
            found.visible.push(gpu.uuid.clone());
        }
        found.capabilities = capabilities;
        found.client = (!gpus.is_empty()).then_some(client);
        Ok(found)
    }

    /// What a config is checked against.
    pub fn limits(&self, job: &Job) -> config::Limits {
        config::Limits { gpus: self.totals.clone(), host: job.memory, cores: job.cores.len() }
    }
}
