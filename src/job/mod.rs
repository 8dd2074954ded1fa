//! The allocation: what Slurm gave this job on this node, and the run's own places in it.
//!
//! | file | role |
//! | --- | --- |
//! | `slurm` | the environment of a batch script or step, read once |
//! | `tasks` | how many tasks the step has here, and on how many nodes |
//! | `gpus` | what CUDA gets and what the host calls it; never mixed |
//! | `memory` | the cgroup's hierarchical limit |
//! | `site` | `scontrol` and `squeue`: end time, KillWait, process tracker |
//! | `rundir` | the run directory (0700): sockets, logs, key |
//! | `signals` | what Slurm and operators send |
//! | `doctor` | what of the site weakens a guarantee, and the remedy |
//! | `leftovers` | what a killed run of this same job could not remove |
//! | `pointer` | where a killed run's places are, if not where the sweep looks |
//! | `endpoint` | the endpoint file (0600): how other shells find the run |
//!
//! Everything is read from an [`Env`] and a `/proc` root that are arguments, so that each site can be replayed.

mod doctor;
pub mod endpoint;
pub mod gpus;
pub mod leftovers;
pub mod memory;
mod pointer;
pub mod rundir;
pub mod signals;
pub mod site;
pub mod slurm;
pub mod tasks;

pub use doctor::doctor;
pub use endpoint::{Endpoint, FindError, Published};
pub use gpus::Gpus;
pub use pointer::Pointer;
pub use rundir::{RunDir, RunDirError};
pub use signals::{JobSignal, JobSignals};
pub use slurm::{Env, MemoryBy, Slurm};
pub use tasks::Tasks;

use crate::units::Bytes;
use std::time::Duration;

/// What this job has on this node.
#[derive(Clone, Debug)]
pub struct Job {
    /// Slurm's part; `None` outside Slurm.
    pub slurm: Option<Slurm>,
    /// This node's name.
    pub node: String,
    /// The job's GPUs.
    pub gpus: Gpus,
    /// Cores this process may run on, by the kernel's numbers (`sched_getaffinity`).
    pub cores: Vec<usize>,
    /// The memory limit of the job, or what the node has available where there is none.
    pub memory: Option<Bytes>,
    /// Whether the job has the memory that the site gives to whoever does not ask (`DefMemPerNode`, `DefMemPerCPU`).
    pub memory_by_default: bool,
    /// Time between Slurm's TERM and its KILL (`KillWait`); `None` outside Slurm or where it cannot be read.
    pub kill_wait: Option<Duration>,
    /// How Slurm tracks the job's processes (`ProctrackType`), such as `proctrack/cgroup`.
    pub tracker: Option<String>,
}

/// The job's facts could not be read.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    /// The affinity mask.
    #[error("cannot read this process's affinity mask (sched_getaffinity)")]
    Affinity(#[source] rustix::io::Errno),
    /// A variable of Slurm's that makes no sense.
    #[error("{name}={value:?} is not {wanted}; was the environment of another job copied here?")]
    Variable {
        /// The variable.
        name: &'static str,
        /// Its value.
        value: String,
        /// What it should be.
        wanted: &'static str,
    },
}

impl Job {
    /// Reads what this process's job has. Asks `scontrol` for the site's rules; a cluster that does not answer is no
    /// error, the defaults of slurm.conf(5) are used.
    ///
    /// # Errors
    /// When the kernel does not tell the affinity mask, or Slurm's variables contradict themselves.
    pub async fn discover() -> Result<Self, JobError> {
        let env = Env::of_process();
        let slurm = Slurm::read(&env)?;
        let rules = match &slurm {
            Some(_) => site::rules().await,
            None => site::Rules::default(),
        };
        Ok(Job {
            node: slurm.as_ref().and_then(|s| s.node.clone()).unwrap_or_else(hostname),
            gpus: Gpus::read(&env),
            cores: cores()?,
            memory: memory::limit(std::path::Path::new("/proc"), std::path::Path::new("/sys/fs/cgroup"))
                .or_else(|| slurm.as_ref().and_then(|s| s.memory))
                .or_else(|| memory::available(std::path::Path::new("/proc"))),
            memory_by_default: slurm.as_ref().is_some_and(|s| rules.is_default(s.memory_by)),
            kill_wait: rules.kill_wait,
            tracker: rules.tracker,
            slurm,
        })
    }

    /// Whether Slurm may lose sight of processes of this job, so that it kills some and not others.
    pub fn loses_processes(&self) -> bool {
        self.slurm.is_some() && self.tracker.as_deref() != Some("proctrack/cgroup")
    }

    /// The name of this run among those that its step has on other nodes; `None` where there are none.
    pub fn one_of_several(&self) -> Option<&str> {
        self.slurm.as_ref().filter(|slurm| slurm.tasks.nodes > 1).map(|_| self.node.as_str())
    }

    /// The job's id as text; `None` outside Slurm.
    pub fn id(&self) -> Option<String> {
        self.slurm.as_ref().map(|slurm| slurm.job.to_string())
    }
}

fn hostname() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

fn cores() -> Result<Vec<usize>, JobError> {
    let mask = rustix::thread::sched_getaffinity(None).map_err(JobError::Affinity)?;
    Ok((0..rustix::thread::CpuSet::MAX_CPU).filter(|cpu| mask.is_set(*cpu)).collect())
}
