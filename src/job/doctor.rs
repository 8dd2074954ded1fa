//! What the job and the site give, and which of their settings weaken a guarantee.

use super::{Job, memory};
use crate::observe::Finding;
use std::{path::Path, time::Duration};

/// Less time than this between TERM and KILL is little for streams to end in.
const ENOUGH_TO_END: Duration = Duration::from_secs(15);

/// What of the job and the site weakens a guarantee, and what does not.
pub fn doctor(job: &Job) -> Vec<Finding> {
    let limit = memory::limit(Path::new("/proc"), Path::new("/sys/fs/cgroup"));
    vec![scheduler(job), tracker(job), end(job), memory_limit(job, limit), gpus(job)]
}

fn scheduler(job: &Job) -> Finding {
    let cores = job.cores.len();
    let Some(slurm) = &job.slurm else {
        return Finding::ok("job", format!("no Slurm job: {cores} logical processors of {}", job.node));
    };
    let restarts = match slurm.restarts {
        0 => String::new(),
        count => format!(", restarted {count} time(s)"),
    };
    Finding::ok(
        "job",
        format!("Slurm job {} on {}: {cores} logical processors{restarts}", slurm.job, job.node),
    )
}

fn tracker(job: &Job) -> Finding {
    const NAME: &str = "process tracking";
    match (&job.slurm, job.tracker.as_deref()) {
        (None, _) => Finding::ok(NAME, "no Slurm: swapserve ends its own processes"),
        (_, Some(tracker @ "proctrack/cgroup")) => {
            Finding::ok(NAME, format!("{tracker}: nothing outlives the step"))
        }
        (_, Some(tracker)) => Finding::warn(
            NAME,
            format!(
                "{tracker}: Slurm loses processes that leave their {}. swapserve ends its engines, and all that your command \
                 leaves, by itself, also when it is killed; where Slurm kills a whole step at once, the task's epilog has to",
                if tracker == "proctrack/pgid" { "process group" } else { "session" }
            ),
            "start it with srun --task-epilog=\"$(command -v swapserve)\"; the site: ProctrackType=proctrack/cgroup in slurm.conf",
        ),
        (_, None) => Finding::warn(
            NAME,
            "`scontrol show config` did not answer: how Slurm tracks processes is not known",
            "put scontrol in PATH on the nodes; check `scontrol ping`",
        ),
    }
}

fn end(job: &Job) -> Finding {
    const NAME: &str = "time to end";
    const REMEDY: &str = "ask for an earlier warning: #SBATCH --signal=USR1@120";
    match (&job.slurm, job.kill_wait) {
        (None, _) => Finding::ok(NAME, "no Slurm: nobody kills this run"),
        (_, Some(wait)) if wait >= ENOUGH_TO_END => {
            Finding::ok(NAME, format!("{} s from TERM to KILL (KillWait)", wait.as_secs()))
        }
        (_, Some(wait)) => Finding::warn(
            NAME,
            format!("only {} s from TERM to KILL (KillWait): longer streams are cut", wait.as_secs()),
            REMEDY,
        ),
        (_, None) => Finding::warn(NAME, "KillWait is not known; 30 s are Slurm's default", REMEDY),
    }
}

fn memory_limit(job: &Job, limit: Option<crate::units::Bytes>) -> Finding {
    const NAME: &str = "memory limit";
    const ASK: &str = "ask for what all models together need, and your command: #SBATCH --mem=…";
    let given = job.slurm.as_ref().and_then(|slurm| slurm.memory);
    let asked = given.filter(|_| !job.memory_by_default);
    match (limit, asked, &job.slurm) {
        (Some(limit), None, Some(_)) => Finding::warn(
            NAME,
            format!(
                "{limit} by the cgroup, which is the site's default (perhaps the whole node's): the job did not ask for any, and \
                 elsewhere gets another"
            ),
            ASK,
        ),
        (Some(limit), ..) => Finding::ok(NAME, format!("{limit}, by the cgroup")),
        (None, Some(asked), _) => Finding::warn(
            NAME,
            format!(
                "{asked} were asked for, and nothing enforces it: a run that takes more takes it from other jobs"
            ),
            "the site: ConstrainRAMSpace=yes in cgroup.conf",
        ),
        (None, None, Some(_)) if given.is_some() => Finding::warn(
            NAME,
            format!(
                "{} are the site's default, the job did not ask for any, and nothing enforces it: a run that takes more takes it \
                 from other jobs",
                given.unwrap_or_default()
            ),
            format!("{ASK}; the site: ConstrainRAMSpace=yes in cgroup.conf"),
        ),
        (None, None, Some(_)) => Finding::warn(
            NAME,
            "the job asked for none and has none of its own: all is planned by what is free on the whole node now, which other \
             jobs may take",
            ASK,
        ),
        (None, None, None) => Finding::ok(NAME, "none: planned by what the node has available"),
    }
}

fn gpus(job: &Job) -> Finding {
    const NAME: &str = "job's GPUs";
    let host = job.gpus.host.iter().map(u32::to_string).collect::<Vec<_>>().join(", ");
    let host = if host.is_empty() { String::new() } else { format!(" (the host's {host})") };
    match job.gpus.visible.as_deref() {
        Some([]) => Finding::ok(NAME, "none: engines on the CPU only"),
        Some(list) if list.iter().any(|gpu| gpu.starts_with("MIG-")) => Finding::warn(
            NAME,
            format!("CUDA sees {}{host}; the driver's checkpoint does not support MIG", list.join(", ")),
            "ask for whole GPUs where engines are to be checkpointed",
        ),
        Some(list) => Finding::ok(NAME, format!("CUDA sees {}{host}", list.join(", "))),
        None if job.slurm.is_some() => Finding::warn(
            NAME,
            "CUDA_VISIBLE_DEVICES is not set: engines would see every GPU of the node, also other jobs'",
            "ask for GPUs: #SBATCH --gpus=1, and start with srun",
        ),
        None => Finding::ok(NAME, "CUDA_VISIBLE_DEVICES is not set: all GPUs of the node"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        job::{Env, Gpus, Slurm},
        observe::Verdict,
        units::Bytes,
    };

    fn job<const N: usize>(variables: [(&str, &str); N]) -> Job {
        let env: Env = variables.into_iter().collect();
        Job {
            slurm: Slurm::read(&env).unwrap(),
            node: "n1".into(),
            gpus: Gpus::read(&env),
            cores: vec![0, 1],
            memory: None,
            memory_by_default: false,
            kill_wait: None,
            tracker: None,
        }
    }

    #[test]
    fn each_weakening_setting_is_named() {
        let mut job = job([("SLURM_JOB_ID", "7"), ("SLURM_JOB_NUM_NODES", "1")]);
        let worst =
            |job: &Job| [tracker(job), end(job), memory_limit(job, None), gpus(job)].map(|f| f.verdict);
        assert_eq!(worst(&job), [Verdict::Warn; 4]);
        job.tracker = Some("proctrack/linuxproc".into());
        assert!(tracker(&job).what.contains("leave their session"));
        job.tracker = Some("proctrack/cgroup".into());
        job.kill_wait = Some(Duration::from_secs(5));
        assert!(end(&job).what.contains("only 5 s"));
        job.kill_wait = Some(Duration::from_secs(30));
        job.gpus.visible = Some(vec!["0".into()]);
        assert_eq!(worst(&job), [Verdict::Ok, Verdict::Ok, Verdict::Warn, Verdict::Ok]);
        assert!(memory_limit(&job, None).remedy.is_some_and(|remedy| remedy.contains("--mem")));
        assert!(memory_limit(&job, Some(Bytes::gib(8))).what.contains("the site's default"));
    }

    #[test]
    fn a_job_that_asked_for_memory_has_its_limit() {
        let job = job([("SLURM_JOB_ID", "7"), ("SLURM_MEM_PER_NODE", "8192")]);
        assert_eq!(memory_limit(&job, Some(Bytes::gib(8))).verdict, Verdict::Ok);
        let by_default = Job { memory_by_default: true, ..job.clone() };
        assert!(memory_limit(&by_default, Some(Bytes::gib(8))).what.contains("the site's default"));
        let both = memory_limit(&by_default, None).remedy.expect("a remedy");
        assert!(both.contains("--mem") && both.contains("ConstrainRAMSpace"), "{both}");
        let unbounded = memory_limit(&job, None);
        assert!(unbounded.remedy.is_some_and(|remedy| remedy.contains("ConstrainRAMSpace")));
    }

    #[test]
    fn trackers_that_lose_processes_are_told_apart() {
        let with = |name: &str| {
            let mut job = job([("SLURM_JOB_ID", "7")]);
            job.tracker = Some(name.to_owned());
            tracker(&job)
        };
        assert!(with("proctrack/linuxproc").what.contains("leave their session"));
        assert!(with("proctrack/pgid").what.contains("leave their process group"));
        assert!(with("proctrack/pgid").remedy.is_some_and(|remedy| remedy.contains("--task-epilog")));
        assert_eq!(with("proctrack/cgroup").verdict, Verdict::Ok);
    }

    #[test]
    fn outside_slurm_all_is_well() {
        assert!(doctor(&job([])).iter().all(|finding| finding.verdict == Verdict::Ok));
    }
}
