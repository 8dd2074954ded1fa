//! The job's memory limit: the cgroup's, since `SLURM_MEM_PER_NODE` is only set when it was asked for.
//!
//! v1: `memory.stat` of this process's group has `hierarchical_memory_limit`; the group's own limit file says
//! «unlimited», because the limit sits at the step or job above. v2: the least `memory.max` on the way up.

use crate::units::Bytes;
use std::{fs, path::Path};

/// Above this the kernel means «none» (v1 prints the largest multiple of a page below 2^63).
const UNLIMITED: u64 = 1 << 60;

/// The limit on this process, if a cgroup sets one. `proc` and `cgroups` are `/proc` and `/sys/fs/cgroup`.
pub fn limit(proc: &Path, cgroups: &Path) -> Option<Bytes> {
    let groups = fs::read_to_string(proc.join("self/cgroup")).ok()?;
    let lines = groups.lines().filter_map(|line| {
        let mut parts = line.splitn(3, ':');
        Some((parts.next()?, parts.next()?, parts.next()?.trim_start_matches('/')))
    });
    let found = lines.filter_map(|(hierarchy, controllers, path)| match (hierarchy, controllers) {
        ("0", "") => v2(cgroups, path),
        (_, list) if list.split(',').any(|name| name == "memory") => v1(&cgroups.join("memory").join(path)),
        _ => None,
    });
    found.filter(|limit| *limit < UNLIMITED).min().map(Bytes)
}

fn v1(group: &Path) -> Option<u64> {
    let stat = fs::read_to_string(group.join("memory.stat")).ok()?;
    stat.lines().find_map(|line| line.strip_prefix("hierarchical_memory_limit ")?.trim().parse().ok())
}

fn v2(cgroups: &Path, path: &str) -> Option<u64> {
    let limit = |group: &Path| fs::read_to_string(group.join("memory.max")).ok()?.trim().parse().ok();
    let group = cgroups.join(path);
    group.ancestors().take_while(|above| above.starts_with(cgroups)).filter_map(limit).min()
}

/// What the node could give without swapping (`MemAvailable`), where no limit is set.
pub fn available(proc: &Path) -> Option<Bytes> {
    let info = fs::read_to_string(proc.join("meminfo")).ok()?;
    let line = info.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| Bytes(kib << 10))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    fn read(root: &tempfile::TempDir) -> Option<Bytes> {
        limit(&root.path().join("proc"), &root.path().join("cg"))
    }

    #[test]
    fn v1_limit_of_a_step() {
        let root = tree(&[
            ("proc/self/cgroup", "7:memory:/slurm_n1/uid_0/job_5/step_0/task_0\n3:cpuset:/slurm_n1\n0::/\n"),
            (
                "cg/memory/slurm_n1/uid_0/job_5/step_0/task_0/memory.stat",
                "cache 0\nhierarchical_memory_limit 209715200\n",
            ),
        ]);
        assert_eq!(read(&root), Some(Bytes::mib(200)));
    }

    #[test]
    fn v1_without_a_limit() {
        let root = tree(&[
            ("proc/self/cgroup", "7:memory:/\n"),
            ("cg/memory/memory.stat", "hierarchical_memory_limit 9223372036854771712\n"),
        ]);
        assert_eq!(read(&root), None);
    }

    #[test]
    fn v2_takes_the_least_on_the_way_up() {
        let root = tree(&[
            ("proc/self/cgroup", "0::/system.slice/slurmstepd.scope/job_5/step_0/user/task_0\n"),
            ("cg/system.slice/slurmstepd.scope/job_5/memory.max", "1048576000\n"),
            ("cg/system.slice/slurmstepd.scope/job_5/step_0/memory.max", "2097152000\n"),
            ("cg/system.slice/slurmstepd.scope/job_5/step_0/user/task_0/memory.max", "max\n"),
        ]);
        assert_eq!(read(&root), Some(Bytes(1_048_576_000)));
    }

    #[test]
    fn what_the_node_has() {
        let root = tree(&[("proc/meminfo", "MemTotal: 9 kB\nMemAvailable:    2048 kB\n")]);
        assert_eq!(available(&root.path().join("proc")), Some(Bytes::mib(2)));
    }
}
