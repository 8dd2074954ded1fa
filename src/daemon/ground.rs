//! What a run stands on: the job, its GPUs, and a way to start processes.

use super::{gpus::JobGpus, session::SessionError, wiring};
use crate::{
    gpu::park::nodes::GpuNodes,
    job::Job,
    process::{self, Spawner},
    topology::{self, Allowed, TopologyError, View},
};
use std::os::fd::OwnedFd;

/// What a run stands on: found before its config is checked, because the config is checked against it.
pub struct Ground {
    /// The job.
    pub job: Job,
    /// Starts processes.
    pub spawner: Spawner,
    /// The job's GPUs.
    pub gpus: JobGpus,
    /// This machine's cores, NUMA nodes and GPUs; or why they are unknown, which a run ends with.
    pub view: Result<View, TopologyError>,
    /// Open for as long as the janitor has nothing to do.
    pub(super) janitor: Option<OwnedFd>,
}

impl Ground {
    /// Finds out what there is. From here on this process inherits every orphan below it.
    ///
    /// # Errors
    /// [`SessionError`].
    pub async fn find() -> Result<Self, SessionError> {
        if let Err(error) = process::raise_open_files() {
            tracing::warn!(%error, "fewer streams can be open at once: the limit on open files stays where it is");
        }
        if let Err(error) = process::dump_no_core() {
            tracing::warn!(%error, "a core dump of this process would hold the run's key");
        }
        let job = Job::discover().await.map_err(SessionError::Job)?;
        // Before orphans come to this process: the janitor must not.
        let janitor = if job.loses_processes() { start_janitor() } else { None };
        process::adopt_orphans().map_err(SessionError::Threads)?;
        let spawner = Spawner::start().map_err(SessionError::Spawner)?.with_warden("/proc/self/exe");
        let view = topology::discover(&topology::Source::System);
        // Of another machine's description nothing holds here.
        let nodes = view.as_ref().ok().filter(|view| view.this_system).map(View::gpu_nodes);
        let nodes = GpuNodes::new(nodes.unwrap_or_default());
        let gpus = JobGpus::find(&job, &spawner, nodes).await?;
        Ok(Ground { job, spawner, gpus, view, janitor })
    }

    /// What of the machine the job may use.
    pub fn allowed(&self) -> Allowed {
        wiring::allowed(&self.job)
    }
}

fn start_janitor() -> Option<OwnedFd> {
    process::start_janitor()
        .map_err(|error| {
            tracing::warn!(%error, "nobody tidies up should Slurm kill the whole step at once, but its epilog or the next run");
        })
        .ok()
}
