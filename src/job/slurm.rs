//! The environment that Slurm gives a batch script or a step, read once.

use super::{JobError, Tasks};
use crate::units::Bytes;
use std::{
    collections::BTreeMap,
    str::FromStr,
    time::{Duration, SystemTime},
};

/// A process's environment, as an argument.
#[derive(Clone, Debug, Default)]
pub struct Env(BTreeMap<String, String>);

impl Env {
    /// This process's own. Variables that are not UTF-8 are none of Slurm's.
    pub fn of_process() -> Self {
        let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        };
        Env(std::env::vars_os().filter_map(text).collect())
    }

    /// A variable, unless it is empty or Slurm's `(null)`.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str).filter(|value| !value.is_empty() && *value != "(null)")
    }

    pub(super) fn number<T: FromStr>(&self, name: &'static str) -> Result<Option<T>, JobError> {
        let Some(value) = self.get(name) else { return Ok(None) };
        let wrong = |_| JobError::Variable { name, value: value.to_owned(), wanted: "a number" };
        value.parse().map(Some).map_err(wrong)
    }
}

impl<N: Into<String>, V: Into<String>> FromIterator<(N, V)> for Env {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(variables: I) -> Self {
        Env(variables.into_iter().map(|(name, value)| (name.into(), value.into())).collect())
    }
}

/// What Slurm says of the job this process is in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slurm {
    /// `SLURM_JOB_ID`.
    pub job: u32,
    /// `SLURM_STEP_ID`; `None` in a batch script.
    pub step: Option<u32>,
    /// `SLURM_RESTART_COUNT`: set only after a requeue.
    pub restarts: u32,
    /// `SLURMD_NODENAME`.
    pub node: Option<String>,
    /// The tasks of the step that this process is one of.
    pub tasks: Tasks,
    /// What the job was given on this node: as it is reckoned, times the cores where that is by core.
    pub memory: Option<Bytes>,
    /// `SLURM_MEM_PER_NODE` or `SLURM_MEM_PER_CPU`; set when it was asked for, and when the site has a default.
    pub memory_by: Option<MemoryBy>,
    /// `SLURM_JOB_END_TIME` (Slurm 23.02 and newer). The limit can be changed while the job runs: see
    /// [`super::site::end_time`].
    pub end: Option<SystemTime>,
}

/// How memory is reckoned, and how much of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryBy {
    /// So much on each node.
    Node(Bytes),
    /// So much for each core.
    Core(Bytes),
}

impl Slurm {
    /// Reads Slurm's variables; `None` where there is no job.
    ///
    /// # Errors
    /// A number that is none.
    pub fn read(env: &Env) -> Result<Option<Self>, JobError> {
        let Some(job) = env.number("SLURM_JOB_ID")? else { return Ok(None) };
        let mib = |name| {
            let wanted = env.number::<u64>(name)?.filter(|mib| *mib > 0);
            Ok::<_, JobError>(wanted.map(|mib| Bytes(mib.saturating_mul(1 << 20))))
        };
        let (per_node, per_core) = (mib("SLURM_MEM_PER_NODE")?, mib("SLURM_MEM_PER_CPU")?);
        let cores = env.number::<u64>("SLURM_CPUS_ON_NODE")?;
        let end = env.number::<u64>("SLURM_JOB_END_TIME")?;
        Ok(Some(Slurm {
            job,
            step: env.number("SLURM_STEP_ID")?,
            restarts: env.number("SLURM_RESTART_COUNT")?.unwrap_or(0),
            node: env.get("SLURMD_NODENAME").map(str::to_owned),
            tasks: Tasks::read(env)?,
            memory: per_node.or(per_core.zip(cores).map(|(each, cores)| Bytes(each.0.saturating_mul(cores)))),
            memory_by: per_node.map(MemoryBy::Node).or(per_core.map(MemoryBy::Core)),
            // Beyond what a clock can show there is no end.
            end: end.and_then(|unix| SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(unix))),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As Slurm 22.05 sets them in a step of `-N2 --ntasks-per-node=1 -c2 --gpus-per-node=2 --mem=1000M`.
    fn step() -> Env {
        [
            ("SLURM_JOB_ID", "2"),
            ("SLURM_STEP_ID", "0"),
            ("SLURMD_NODENAME", "n1"),
            ("SLURM_JOB_NUM_NODES", "2"),
            ("SLURM_STEP_NUM_NODES", "2"),
            ("SLURM_STEP_TASKS_PER_NODE", "1(x2)"),
            ("SLURM_NODEID", "1"),
            ("SLURM_MEM_PER_NODE", "1000"),
            ("SLURM_CPUS_ON_NODE", "2"),
            ("SLURM_NODE_ALIASES", "(null)"),
        ]
        .into_iter()
        .collect()
    }

    #[test]
    fn a_step() {
        let slurm = Slurm::read(&step()).unwrap().unwrap();
        assert_eq!((slurm.job, slurm.step, slurm.restarts), (2, Some(0), 0));
        assert_eq!(slurm.tasks, Tasks { nodes: 2, here: 1 });
        assert_eq!(slurm.node.as_deref(), Some("n1"));
        assert_eq!(slurm.memory, Some(Bytes::mib(1000)));
        assert_eq!(slurm.end, None);
    }

    #[test]
    fn outside_slurm_there_is_no_job() {
        assert_eq!(Slurm::read(&Env::default()).unwrap(), None);
    }

    #[test]
    fn memory_by_core() {
        let env: Env = [("SLURM_JOB_ID", "3"), ("SLURM_MEM_PER_CPU", "256"), ("SLURM_CPUS_ON_NODE", "4")]
            .into_iter()
            .collect();
        assert_eq!(Slurm::read(&env).unwrap().unwrap().memory, Some(Bytes::mib(1024)));
    }

    #[test]
    fn a_number_that_is_none_is_named() {
        let env: Env = [("SLURM_JOB_ID", "two")].into_iter().collect();
        let error = Slurm::read(&env).unwrap_err().to_string();
        assert!(error.starts_with("SLURM_JOB_ID=\"two\" is not a number"), "{error}");
    }
}
