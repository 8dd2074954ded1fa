//! What this node's kernel and limits mean for processes.

use std::path::Path;

use rustix::process::{PidfdFlags, Resource, getpid, getrlimit, pidfd_open};

use super::stat::ProcFs;
use crate::observe::Finding;
use crate::units::Bytes;

/// A router with a few thousand streams, each a connection in and one out.
const FILES: u64 = 8192;
/// Engines start hundreds of threads each, and each counts.
const TASKS: u64 = 4096;
/// Below this, neither memory that an engine registers for RDMA (NCCL) fits, nor a pool of pinned memory worth its name.
const LOCKED: u64 = 1 << 30;

/// What weakens the handling of processes here, and what does not.
pub fn doctor() -> Vec<Finding> {
    let locked_now = getrlimit(Resource::Memlock).current.unwrap_or(u64::MAX);
    vec![pidfd(), files(), tasks(), locked(locked_now), hidepid(ProcFs::default().root())]
}

fn pidfd() -> Finding {
    match pidfd_open(getpid(), PidfdFlags::empty()) {
        Ok(_) => Finding::ok("pidfd", "processes are held by pidfd"),
        Err(error) => Finding::warn(
            "pidfd",
            format!(
                "pidfd_open: {error}; exits are polled for, and a signal is sent by number after a look at the start time"
            ),
            "Linux 5.3 or newer; in a container, a seccomp profile that allows pidfd_open",
        ),
    }
}

fn files() -> Finding {
    let limit = getrlimit(Resource::Nofile);
    let (now, most) = (limit.current.unwrap_or(u64::MAX), limit.maximum.unwrap_or(u64::MAX));
    let what = format!("at most {} open files", count(now));
    match now {
        FILES.. => Finding::ok("open files", what),
        _ if most >= FILES => Finding::warn(
            "open files",
            format!("{what}: some {} streams at once", now / 3),
            format!("ulimit -n {}, before swapserve", count(most)),
        ),
        _ => Finding::warn(
            "open files",
            format!("{what}, and no more can be asked for: some {} streams at once", now / 3),
            "the site: raise LimitNOFILE of slurmd",
        ),
    }
}

fn tasks() -> Finding {
    let limit = getrlimit(Resource::Nproc).current.unwrap_or(u64::MAX);
    let what = format!("at most {} processes and threads of this user", count(limit));
    match limit {
        TASKS.. => Finding::ok("processes", what),
        _ => Finding::warn(
            "processes",
            format!("{what}; a large engine starts hundreds"),
            "ulimit -u unlimited",
        ),
    }
}

fn locked(limit: u64) -> Finding {
    match limit {
        u64::MAX => Finding::ok("locked memory", "no limit"),
        LOCKED.. => Finding::ok("locked memory", format!("at most {}", Bytes(limit))),
        _ => Finding::warn(
            "locked memory",
            format!(
                "at most {} (RLIMIT_MEMLOCK): a driver that counts pinned memory refuses the pool that parked engines wait in, \
                 and engines on several GPUs may fail to register memory (NCCL over InfiniBand)",
                Bytes(limit)
            ),
            "ulimit -l unlimited; the site: LimitMEMLOCK=infinity for slurmd, PropagateResourceLimitsExcept=MEMLOCK in slurm.conf",
        ),
    }
}

fn hidepid(proc: &Path) -> Finding {
    let mounts = std::fs::read_to_string(proc.join("mounts")).unwrap_or_default();
    let hidden = mounts
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .filter(|fields| fields.len() > 3 && fields[1] == "/proc" && fields[2] == "proc")
        .flat_map(|fields| fields[3].split(',').map(str::to_owned).collect::<Vec<_>>())
        .any(|option| option.strip_prefix("hidepid=").is_some_and(|level| level != "0" && level != "off"));
    if hidden {
        return Finding::ok("hidepid", "other users do not see this job's processes");
    }
    Finding::warn(
        "hidepid",
        "other users of this node see the commands of this job's engines; keys are in environments, which they do not see",
        "keep secrets out of `args`; the site: mount /proc with hidepid=invisible",
    )
}

fn count(limit: u64) -> String {
    if limit == u64::MAX { "unlimited".to_owned() } else { limit.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::Verdict;

    #[test]
    fn every_warning_has_a_remedy() {
        let findings = doctor();
        assert_eq!(findings.len(), 5);
        assert!(findings.iter().all(|finding| (finding.verdict == Verdict::Ok) == finding.remedy.is_none()));
    }

    #[test]
    fn a_small_bound_on_locked_memory_is_named_with_its_remedy() {
        let small = locked(8 << 20);
        assert_eq!(small.verdict, Verdict::Warn);
        assert!(small.what.starts_with("at most 8.0 MiB") && small.what.contains("pool"), "{}", small.what);
        assert!(small.remedy.is_some_and(|remedy| remedy.contains("ulimit -l unlimited")));
        assert_eq!([locked(64 << 30).verdict, locked(u64::MAX).verdict], [Verdict::Ok; 2]);
    }

    #[test]
    fn hidepid_is_read_from_the_mounts() {
        let dir = tempfile::tempdir().expect("a directory");
        let with = |options: &str| {
            std::fs::write(dir.path().join("mounts"), format!("proc /proc proc {options} 0 0\n"))
                .expect("written");
            hidepid(dir.path()).verdict
        };
        assert_eq!(with("rw,nosuid"), Verdict::Warn);
        assert_eq!(with("rw,hidepid=0"), Verdict::Warn);
        assert_eq!(with("rw,hidepid=2,gid=5"), Verdict::Ok);
        assert_eq!(with("rw,hidepid=invisible"), Verdict::Ok);
        std::fs::write(dir.path().join("mounts"), "proc /proc proc rw 0 0\n").expect("written");
        assert!(hidepid(dir.path()).remedy.is_some_and(|remedy| remedy.contains("hidepid=invisible")));
    }
}
