//! What a killed run could not remove: its run directory with the key in it, and its endpoint file.
//!
//! A step that is cancelled is killed at once (`scancel JOB.STEP`, or a signal to `srun`), and nothing of it can tidy up.
//! The job's next run does, be it after a requeue or in another step. Only what is this user's, of this same job, on this same
//! node, and whose process is gone, is removed; never another job's.

use super::{
    endpoint::{self, start_time, this_node},
    rundir,
};
use serde::{Deserialize, Serialize};
use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

/// The file in a run directory that says whose it is.
const FILE: &str = "owner.json";

/// The process that a run directory belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Owner {
    /// Its node.
    node: String,
    /// Its pid there.
    pid: u32,
    /// When it started, in clock ticks since boot: its pid alone may be reused.
    started: u64,
    /// The PID namespace that `pid` is a number of: from another one (a container's) nothing can be said of it.
    namespace: Option<PathBuf>,
}

impl Owner {
    /// This process.
    pub(super) fn this_process() -> Self {
        let pid = std::process::id();
        Owner { node: this_node(), pid, started: start_time(pid).unwrap_or(0), namespace: pid_namespace() }
    }

    /// Leaves its name in the directory.
    pub(super) fn write(&self, dir: &Path) -> io::Result<()> {
        let text = serde_json::to_vec(self).expect("an owner serialises");
        rundir::write_private(&dir.join(FILE), &text)
    }

    fn read(dir: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(dir.join(FILE)).ok()?).ok()
    }

    /// Whether it is certain that the process is gone.
    fn is_gone(&self) -> bool {
        self.node == this_node()
            && self.namespace == pid_namespace()
            && start_time(self.pid) != Some(self.started)
    }
}

fn pid_namespace() -> Option<PathBuf> {
    fs::read_link("/proc/self/ns/pid").ok()
}

/// Removes what killed runs of this job left on this node (outside Slurm: killed runs outside Slurm); what was removed.
pub fn sweep(job: Option<&str>) -> Vec<PathBuf> {
    let mut removed = Vec::new();
    for parent in rundir::parents() {
        removed.extend(sweep_run_dirs(&parent, job));
    }
    removed.extend(sweep_endpoints(&endpoint::home_dir(), job));
    removed
}

fn sweep_run_dirs(parent: &Path, job: Option<&str>) -> Vec<PathBuf> {
    let prefix = rundir::name_prefix(job);
    let named = |path: &PathBuf| {
        path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with(&prefix))
    };
    // What cannot be removed is left for the administrator's own sweep of the directory; the run goes on.
    entries(parent)
        .filter(named)
        .filter(|path| is_abandoned(path))
        .filter(|path| fs::remove_dir_all(path).is_ok())
        .collect()
}

fn sweep_endpoints(dir: &Path, job: Option<&str>) -> Vec<PathBuf> {
    let abandoned = |path: &PathBuf| {
        endpoint::read(path)
            .is_ok_and(|found| found.job.as_deref() == job && found.node == this_node() && !found.is_alive())
    };
    entries(dir).filter(abandoned).filter(|path| fs::remove_file(path).is_ok()).collect()
}

fn entries(dir: &Path) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path())
}

/// Whether it is a run directory of this user whose run is certainly gone.
pub(super) fn is_abandoned(path: &Path) -> bool {
    is_own_dir(path) && Owner::read(path).is_some_and(|owner| owner.is_gone())
}

/// A real directory, not a link to one, of this user.
fn is_own_dir(path: &Path) -> bool {
    fs::symlink_metadata(path)
        .is_ok_and(|found| found.is_dir() && found.uid() == rustix::process::geteuid().as_raw())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run_dir(parent: &Path, name: &str, owner: Option<&Owner>) -> PathBuf {
        let path = parent.join(name);
        fs::create_dir_all(path.join("log")).unwrap();
        fs::write(path.join("key"), "secret").unwrap();
        if let Some(owner) = owner {
            owner.write(&path).unwrap();
        }
        path
    }

    #[test]
    fn only_this_jobs_dead_runs_are_removed() {
        let parent = tempfile::tempdir().unwrap();
        let alive = Owner::this_process();
        let dead = Owner { started: 1, ..alive.clone() };
        let elsewhere = Owner { node: "elsewhere".into(), ..dead.clone() };
        let contained = Owner { namespace: Some("pid:[1]".into()), ..dead.clone() };
        let kept = [
            run_dir(parent.path(), "swapserve-7-alive", Some(&alive)),
            run_dir(parent.path(), "swapserve-7-elsewhere", Some(&elsewhere)),
            run_dir(parent.path(), "swapserve-7-contained", Some(&contained)),
            run_dir(parent.path(), "swapserve-7-nobodys", None),
            run_dir(parent.path(), "swapserve-77-dead", Some(&dead)),
            run_dir(parent.path(), "swapserve-local-dead", Some(&dead)),
        ];
        let gone = run_dir(parent.path(), "swapserve-7-dead", Some(&dead));
        let target = run_dir(parent.path(), "target", Some(&dead));
        std::os::unix::fs::symlink(&target, parent.path().join("swapserve-7-link")).unwrap();
        assert_eq!(sweep_run_dirs(parent.path(), Some("7")), std::slice::from_ref(&gone));
        assert!(!gone.exists() && target.join("key").exists());
        assert!(kept.iter().all(|path| path.join("key").exists()));
        assert_eq!(sweep_run_dirs(parent.path(), None), [parent.path().join("swapserve-local-dead")]);
    }

    #[test]
    fn an_endpoint_file_of_a_dead_run_of_this_job_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let publish = |name: &str, job: Option<&str>, started: u64| {
            let pid = std::process::id();
            let endpoint = endpoint::Endpoint {
                url: "http://127.0.0.1:1/v1".into(),
                socket: None,
                key: None,
                job: job.map(str::to_owned),
                node: this_node(),
                pid,
                started,
                models: Vec::new(),
            };
            let path = dir.path().join(name);
            fs::write(&path, serde_json::to_vec(&endpoint).unwrap()).unwrap();
            path
        };
        let own = start_time(std::process::id()).unwrap();
        let dead = publish("7.json", Some("7"), 1);
        publish("8.json", Some("8"), 1);
        publish("live.json", Some("7"), own);
        publish("local.json", None, 1);
        assert_eq!(sweep_endpoints(dir.path(), Some("7")), [dead]);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3);
    }
}
