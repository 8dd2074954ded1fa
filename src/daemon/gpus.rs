//! The job's GPUs as the driver sees them, and the gpu server that speaks to it.

use crate::{
    config,
    gpu::{
        Description, GpuClient, GpuError,
        capability::Capability,
        launch::ServerCommand,
        park::{nodes::GpuNodes, setup::ParkSetup},
    },
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
    /// Where engines can be parked: a pool that has no size yet. `None` where there are no GPUs.
    pub parking: Option<ParkSetup>,
    /// Each one's whole memory.
    pub totals: Vec<Bytes>,
    /// What of it is free.
    pub free: Vec<Bytes>,
    /// What of it other processes hold that are not this run's.
    pub foreign: Vec<Bytes>,
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
    /// `nodes`: where this machine's GPUs lie, for the pool.
    ///
    /// # Errors
    /// When the server cannot be started or does not answer.
    pub async fn find(job: &Job, spawner: &Spawner, nodes: GpuNodes) -> Result<Self, GpusError> {
        if job.gpus.count() == Some(0) {
            return Ok(JobGpus::default());
        }
        let mut command = ServerCommand::own().map_err(GpusError::Start)?;
        // Its size is in the config, which is read when the GPUs are known.
        let parking = ParkSetup::new(0, nodes).map_err(GpusError::Start)?;
        command.park = Some(parking.clone());
        let client = GpuClient::start(spawner.clone(), command);
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
        found.foreign = vec![Bytes(0); gpus.len()];
        // The gpu server has no context yet: nothing of what NVML sees is ours.
        for process in client.process_memory().await.unwrap_or_default() {
            if let (Some(held), Some(bytes)) = (found.foreign.get_mut(process.gpu as usize), process.bytes) {
                *held = *held + Bytes(bytes);
            }
        }
        (found.client, found.parking) = match gpus.is_empty() {
            true => (None, None),
            false => (Some(client), Some(parking)),
        };
        Ok(found)
    }

    /// Gives the pool its size and has the gpu server open it: from here on the server has a context on each GPU, and the
    /// pool is pinned in the background. What is free is measured anew.
    ///
    /// # Errors
    /// Why engines cannot be parked; nothing else is the worse for it.
    pub async fn open_pool(&mut self, bytes: Bytes) -> Result<(), String> {
        let (Some(client), Some(parking)) = (&self.client, &self.parking) else {
            return Err("this run has no GPU".to_owned());
        };
        parking.resize(bytes.0).map_err(|error| format!("the pool of {bytes} cannot be had: {error}"))?;
        let opened = client.parking().await;
        if let Err(error) = opened {
            // No second attempt by the next gpu server.
            let _ = parking.resize(0);
            return Err(error.to_string());
        }
        for gpu in 0..self.free.len() {
            let memory = client.memory(gpu as u32).await.map_err(|error| error.to_string())?;
            self.free[gpu] = Bytes(memory.free);
        }
        Ok(())
    }

    /// What a config is checked against.
    pub fn limits(&self, job: &Job) -> config::Limits {
        config::Limits { gpus: self.totals.clone(), host: job.memory, cores: job.cores.len() }
    }
}
