//! The job's GPUs: what CUDA gets and what the host calls it.
//!
//! `CUDA_VISIBLE_DEVICES` is what CUDA has to be given. With a device cgroup its numbers are relative to the step (a
//! second step that holds host GPU 1 sees `0`); without one they are the host's. `SLURM_STEP_GPUS` (in a batch script
//! `SLURM_JOB_GPUS`) is the host's index. The two are never mixed: measured on Slurm 22.05 under both trackers.

use super::Env;
use serde::Serialize;

/// The GPUs of this step.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Gpus {
    /// Entries of `CUDA_VISIBLE_DEVICES` in order: an index, a `GPU-…` or a `MIG-…` name. `None`: the variable is not
    /// set, so CUDA would see every GPU of the node.
    pub visible: Option<Vec<String>>,
    /// The same GPUs by the host's index, where Slurm says so.
    pub host: Vec<u32>,
}

impl Gpus {
    /// Reads the variables.
    pub fn read(env: &Env) -> Self {
        let visible = env.get("CUDA_VISIBLE_DEVICES").map(|list| {
            // CUDA stops at the first entry that names no device; `NoDevFiles` is what Slurm sets for no GPU.
            list.split(',').map(str::trim).take_while(|gpu| names_a_device(gpu)).map(str::to_owned).collect()
        });
        let host =
            env.get("SLURM_STEP_GPUS").or_else(|| env.get("SLURM_JOB_GPUS")).map_or(Vec::new(), indices);
        // A GPU job's step that asked for none has neither variable: nothing of the job's GPUs is this step's.
        let none_for_us = visible.is_none() && env.get("SLURM_STEP_ID").is_some();
        if none_for_us {
            Gpus { visible: Some(Vec::new()), host: Vec::new() }
        } else {
            Gpus { visible, host }
        }
    }

    /// How many there are, where the environment says so.
    pub fn count(&self) -> Option<usize> {
        self.visible.as_ref().map(Vec::len)
    }
}

fn names_a_device(entry: &str) -> bool {
    entry.parse::<u32>().is_ok() || entry.starts_with("GPU-") || entry.starts_with("MIG-")
}

/// No node has as many GPUs; a larger number in a list is a mistake, not a reason to allocate.
const MOST: u32 = 1024;

/// `0,2-3` as 0, 2, 3.
fn indices(list: &str) -> Vec<u32> {
    let part = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let number = |text: &str| text.trim().parse::<u32>().ok().filter(|number| *number < MOST);
        Some(number(first)?..=number(last)?)
    };
    list.split(',').filter_map(part).flatten().take(MOST as usize).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read<const N: usize>(variables: [(&str, &str); N]) -> Gpus {
        Gpus::read(&variables.into_iter().collect())
    }

    #[test]
    fn a_step_with_a_device_cgroup_sees_relative_numbers() {
        let gpus = read([
            ("SLURM_STEP_ID", "1"),
            ("CUDA_VISIBLE_DEVICES", "0"),
            ("SLURM_STEP_GPUS", "1"),
            ("SLURM_JOB_GPUS", "0,1"),
        ]);
        assert_eq!(gpus, Gpus { visible: Some(vec!["0".into()]), host: vec![1] });
    }

    #[test]
    fn a_batch_script_has_the_jobs_gpus() {
        let gpus = read([("CUDA_VISIBLE_DEVICES", "0"), ("SLURM_JOB_GPUS", "1")]);
        assert_eq!(gpus, Gpus { visible: Some(vec!["0".into()]), host: vec![1] });
    }

    #[test]
    fn a_step_without_gpus_in_a_job_with_gpus_has_none() {
        let gpus = read([("SLURM_STEP_ID", "2"), ("SLURM_JOB_GPUS", "0,1")]);
        assert_eq!(gpus.count(), Some(0));
        assert_eq!(gpus.host, Vec::<u32>::new());
    }

    #[test]
    fn outside_slurm_nothing_is_said() {
        assert_eq!(read([]).count(), None);
        assert_eq!(read([("CUDA_VISIBLE_DEVICES", "NoDevFiles")]).count(), Some(0));
        assert_eq!(read([("CUDA_VISIBLE_DEVICES", "GPU-1,MIG-2,-1,3")]).count(), Some(2));
    }

    #[test]
    fn ranges() {
        assert_eq!(indices("0,2-4"), [0, 2, 3, 4]);
        assert_eq!(indices("1,0-4294967295"), [1]);
    }
}
