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

/// The memory that a limit counts, near which the kernel kills.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// The limit.
    pub limit: Bytes,
    /// What is held of it, without pages of files, which the kernel drops before it kills.
    pub held: Bytes,
}

/// What is used of [`limit`], by everybody in the group that sets it; `None` where none is set.
pub fn usage(proc: &Path, cgroups: &Path) -> Option<Usage> {
    let groups = fs::read_to_string(proc.join("self/cgroup")).ok()?;
    let limit = limit(proc, cgroups)?;
    groups.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':');
        let (hierarchy, list, path) = (parts.next()?, parts.next()?, parts.next()?.trim_start_matches('/'));
        let (root, files) = match (hierarchy, list) {
            ("0", "") => (cgroups.to_owned(), V2),
            (_, list) if list.split(',').any(|name| name == "memory") => (cgroups.join("memory"), V1),
            _ => return None,
        };
        let group = root.join(path);
        let own = group.ancestors().take_while(|above| above.starts_with(&root));
        let setting = own.filter(|above| number(&above.join(files.limit)) == Some(limit.0)).last()?;
        let stat = fs::read_to_string(setting.join("memory.stat")).ok()?;
        let value = |name: &str| -> u64 {
            let mut lines = stat.lines().filter_map(|line| line.split_once(' '));
            lines.find(|(key, _)| *key == name).and_then(|(_, value)| value.trim().parse().ok()).unwrap_or(0)
        };
        let droppable = files.droppable.iter().map(|name| value(name)).sum();
        let held = number(&setting.join(files.usage))?.saturating_sub(droppable);
        Some(Usage { limit, held: Bytes(held) })
    })
}

/// How the two versions of cgroups call what matters here.
struct Files {
    limit: &'static str,
    usage: &'static str,
    droppable: &'static [&'static str],
}

const V1: Files = Files {
    limit: "memory.limit_in_bytes",
    usage: "memory.usage_in_bytes",
    droppable: &["total_inactive_file", "total_active_file"],
};
const V2: Files = Files {
    limit: "memory.max",
    usage: "memory.current",
    droppable: &["inactive_file", "active_file", "slab_reclaimable"],
};

fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
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

    fn used(root: &tempfile::TempDir) -> Option<Usage> {
        usage(&root.path().join("proc"), &root.path().join("cg"))
    }

    /// Recorded in a step of a job with `--mem=700M` (Slurm 22.05, cgroup v1).
    #[test]
    fn v1_usage_is_that_of_the_group_that_sets_the_limit() {
        let job = "cg/memory/slurm_n1/uid_0/job_5";
        let (limit, usage, stat) = (
            format!("{job}/memory.limit_in_bytes"),
            format!("{job}/memory.usage_in_bytes"),
            format!("{job}/memory.stat"),
        );
        let (step, task) = (
            format!("{job}/step_0/memory.limit_in_bytes"),
            format!("{job}/step_0/task_0/memory.limit_in_bytes"),
        );
        let task_stat = format!("{job}/step_0/task_0/memory.stat");
        let root = tree(&[
            ("proc/self/cgroup", "7:memory:/slurm_n1/uid_0/job_5/step_0/task_0\n3:cpuset:/slurm_n1\n0::/\n"),
            (&task_stat, "cache 0\nhierarchical_memory_limit 734003200\ntotal_inactive_file 4096\n"),
            (&task, "9223372036854771712\n"),
            (&step, "734003200\n"),
            (&limit, "734003200\n"),
            (&usage, "400000000\n"),
            (&stat, "inactive_file 1\ntotal_inactive_file 60000000\ntotal_active_file 40000000\n"),
        ]);
        assert_eq!(used(&root), Some(Usage { limit: Bytes(734_003_200), held: Bytes(300_000_000) }));
    }

    /// As Slurm 23.02 and newer lay out a job under cgroup v2.
    #[test]
    fn v2_usage_is_that_of_the_group_that_sets_the_limit() {
        let root = tree(&[
            ("proc/self/cgroup", "0::/system.slice/slurmstepd.scope/job_5/step_0/user/task_0\n"),
            ("cg/system.slice/slurmstepd.scope/job_5/memory.max", "1048576000\n"),
            ("cg/system.slice/slurmstepd.scope/job_5/memory.current", "900000000\n"),
            (
                "cg/system.slice/slurmstepd.scope/job_5/memory.stat",
                "anon 1\ninactive_file 300000000\nactive_file 100000000\nslab_reclaimable 1000000\n",
            ),
            ("cg/system.slice/slurmstepd.scope/job_5/step_0/memory.max", "max\n"),
            ("cg/system.slice/slurmstepd.scope/job_5/step_0/user/task_0/memory.max", "max\n"),
        ]);
        assert_eq!(used(&root), Some(Usage { limit: Bytes(1_048_576_000), held: Bytes(499_000_000) }));
    }

    #[test]
    fn without_a_limit_there_is_no_usage() {
        let root = tree(&[("proc/self/cgroup", "0::/user.slice\n"), ("cg/user.slice/memory.max", "max\n")]);
        assert_eq!(used(&root), None);
    }

    #[test]
    fn what_the_node_has() {
        let root = tree(&[("proc/meminfo", "MemTotal: 9 kB\nMemAvailable:    2048 kB\n")]);
        assert_eq!(available(&root.path().join("proc")), Some(Bytes::mib(2)));
    }
}
