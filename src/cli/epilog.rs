//! What `srun --task-epilog=swapserve` does: removes what a killed run left.
//!
//! `scancel JOB.STEP` and a signal to `srun` kill every process of a step at once, and nothing of the run can tidy up.
//! slurmstepd is not among the killed: it runs the task's epilog (srun(1)) some 30 ms later, as the job's user, without
//! arguments. It was seen to do so after `scancel` of job and step, and after a KILL of `srun` (Slurm 22.05).
//!
//! Under `proctrack/linuxproc` Slurm's next round of KILL reaches the epilog too, some milliseconds later. So the work is done
//! by a process that has left slurmstepd's tree first.

use crate::{job::leftovers, process};
use std::process::ExitCode;

/// Whether slurmstepd is asking: what it names its epilog of a task.
pub fn is_wanted() -> bool {
    std::env::args_os().len() == 1
        && std::env::var_os("SLURM_SCRIPT_CONTEXT").is_some_and(|context| context == "epilog_task")
}

/// Removes this job's leftovers on this node. A run of another step that still lives keeps its own.
pub fn execute() -> ExitCode {
    // Without a job's id nothing is known to be the job's.
    let Ok(job) = std::env::var("SLURM_JOB_ID") else { return ExitCode::SUCCESS };
    process::out_of_the_tree(|| {
        for left in leftovers::sweep(Some(&job)) {
            eprintln!("swapserve: removed {left}, left by a killed run");
        }
    });
    ExitCode::SUCCESS
}
