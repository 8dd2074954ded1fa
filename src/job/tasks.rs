//! How many tasks Slurm started for a step, and where: swapserve is one process a node.
//!
//! A step of `--ntasks=4` on one node runs the program four times, and each of them would start every engine. A step of two
//! nodes with a task on each is two runs, each of them with the cores, the GPUs and the endpoint of its own node.

use super::{Env, JobError};

/// No node runs more tasks; a larger number in a list is a mistake.
const MOST: u32 = 1 << 16;

/// The tasks of the step that this process is one of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tasks {
    /// Nodes of the step (`SLURM_STEP_NUM_NODES`).
    pub nodes: u32,
    /// The step's tasks on this node (`SLURM_STEP_TASKS_PER_NODE` at `SLURM_NODEID`).
    pub here: u32,
}

impl Tasks {
    /// One task on one node: a batch script, or no Slurm at all.
    pub const ALONE: Tasks = Tasks { nodes: 1, here: 1 };

    /// Reads Slurm's variables. They are a step's own: in a batch script there are none, whatever tasks the job may have.
    ///
    /// # Errors
    /// A number that is none.
    pub fn read(env: &Env) -> Result<Self, JobError> {
        if env.get("SLURM_STEP_ID").is_none() {
            return Ok(Self::ALONE);
        }
        let nodes = env.number("SLURM_STEP_NUM_NODES")?.unwrap_or(1);
        let rank = env.number("SLURM_NODEID")?.unwrap_or(0);
        let name = "SLURM_STEP_TASKS_PER_NODE";
        let here = match env.get(name) {
            None => 1,
            Some(list) => at(list, rank).ok_or_else(|| JobError::Variable {
                name,
                value: list.to_owned(),
                wanted: "a list of counts such as 2(x3),1 with one for this node",
            })?,
        };
        Ok(Tasks { nodes, here })
    }
}

/// The count of the node with this rank in a list such as `2(x3),1`: 2, 2, 2, 1 (slurm's `SLURM_TASKS_PER_NODE`, srun(1)).
fn at(list: &str, rank: u32) -> Option<u32> {
    let mut passed = 0u32;
    for part in list.split(',') {
        let (count, times) = match part.split_once("(x") {
            Some((count, times)) => (count, times.strip_suffix(')')?.parse().ok()?),
            None => (part, 1),
        };
        passed = passed.checked_add(times)?;
        if rank < passed {
            return count.parse().ok().filter(|count| (1..=MOST).contains(count));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(per_node: &str, rank: &str) -> Result<Tasks, JobError> {
        let nodes = if per_node.contains(['x', ',']) { "2" } else { "1" };
        let variables = [
            ("SLURM_STEP_ID", "0"),
            ("SLURM_STEP_NUM_NODES", nodes),
            ("SLURM_NODEID", rank),
            ("SLURM_STEP_TASKS_PER_NODE", per_node),
        ];
        Tasks::read(&variables.into_iter().collect())
    }

    #[test]
    fn a_list_of_counts() {
        let counts = |list| (0..6).map_while(|rank| at(list, rank)).collect::<Vec<_>>();
        assert_eq!(counts("1"), [1]);
        assert_eq!(counts("2(x3),1"), [2, 2, 2, 1]);
        assert_eq!(counts("4,2(x2)"), [4, 2, 2]);
        for wrong in ["", "x", "1(x", "1(xx)", "1,1(x4294967295)", "0", "99999999"] {
            assert_eq!(at(wrong, 4), None, "{wrong}");
        }
    }

    #[test]
    fn tasks_of_a_step() {
        assert_eq!(step("1", "0").unwrap(), Tasks::ALONE);
        assert_eq!(step("4", "0").unwrap(), Tasks { nodes: 1, here: 4 });
        assert_eq!(step("2,1", "1").unwrap(), Tasks { nodes: 2, here: 1 });
        assert_eq!(step("1(x2)", "1").unwrap(), Tasks { nodes: 2, here: 1 });
        let error = step("1(x2)", "7").unwrap_err().to_string();
        assert!(error.starts_with("SLURM_STEP_TASKS_PER_NODE=\"1(x2)\" is not a list of counts"), "{error}");
    }

    #[test]
    fn a_batch_script_is_alone_whatever_its_job_has() {
        let env: Env = [("SLURM_JOB_ID", "1"), ("SLURM_TASKS_PER_NODE", "4(x2)"), ("SLURM_NTASKS", "8")]
            .into_iter()
            .collect();
        assert_eq!(Tasks::read(&env).unwrap(), Tasks::ALONE);
    }
}
