//! What a killed run could not remove: processes, files in shared memory, its run directory with the key in it, and its
//! endpoint file.
//!
//! A step that is cancelled is killed at once (`scancel JOB.STEP`, or a signal to `srun`), and nothing of it can tidy up.
//! Then the task's epilog does, or the job's next run, be it after a requeue or in another step; where only the daemon was
//! killed, the wardens that outlived it do. Only what is this user's, of this same job, on this same node, and whose
//! daemon (by pid and start time) is gone, is removed; never another job's, nor that of another run of this job that lives.
//!
//! What a run is known by lies in its run directory: `owner.json`, and a list of each engine's files in shared memory
//! (`NAME.shm`).

use super::{
    endpoint::{self, start_time, this_node},
    pointer, rundir,
};
use crate::process::{self, SHARED_LIST, SharedFile};
use serde::{Deserialize, Serialize};
use std::{
    fmt, fs, io,
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
    /// What marks the run's processes.
    #[serde(default)]
    cookie: String,
}

impl Owner {
    /// This process.
    pub(super) fn this_process(cookie: &str) -> Self {
        let pid = std::process::id();
        Owner {
            node: this_node(),
            pid,
            started: start_time(pid).unwrap_or(0),
            namespace: pid_namespace(),
            cookie: cookie.to_owned(),
        }
    }

    /// Leaves its name in the directory.
    pub(super) fn write(&self, dir: &Path) -> io::Result<()> {
        let text = serde_json::to_vec(self).expect("an owner serialises");
        rundir::write_private(&dir.join(FILE), &text)
    }

    fn read(dir: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(dir.join(FILE)).ok()?).ok()
    }

    /// The same process, gone: its pid is another's now.
    #[cfg(test)]
    pub(super) fn gone(self) -> Self {
        Owner { started: 1, ..self }
    }

    /// Whether it is this process of its node.
    pub(super) fn is_of(&self, pid: u32, started: u64) -> bool {
        (self.pid, self.started) == (pid, started)
    }

    /// Whether it is certain that the process is gone.
    pub(super) fn is_gone(&self) -> bool {
        self.node == this_node()
            && self.namespace == pid_namespace()
            && start_time(self.pid) != Some(self.started)
    }
}

fn pid_namespace() -> Option<PathBuf> {
    fs::read_link("/proc/self/ns/pid").ok()
}

/// Something that a killed run left, and that is gone now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Swept {
    /// So many processes.
    Processes(usize),
    /// A file or directory.
    Path(PathBuf),
}

impl fmt::Display for Swept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Swept::Processes(count) => write!(f, "{count} process(es)"),
            Swept::Path(path) => path.display().fmt(f),
        }
    }
}

/// Removes what killed runs of this job left on this node (outside Slurm: killed runs outside Slurm); what was removed.
/// Blocks, a few milliseconds where nothing was left.
pub fn sweep(job: Option<&str>) -> Vec<Swept> {
    let mut swept = Vec::new();
    for parent in rundir::swept_parents() {
        swept.extend(sweep_run_dirs(&parent, job));
    }
    swept.extend(pointer::sweep(&endpoint::home_dir(), job));
    swept.extend(sweep_endpoints(&endpoint::home_dir(), job));
    swept
}

/// The same for the job that this process is in.
pub fn sweep_own() {
    sweep(std::env::var("SLURM_JOB_ID").ok().as_deref());
}

/// Removes one run's; the caller has seen that its daemon is gone. The directory goes last: as long as it is there, somebody
/// else can finish the work.
pub(super) fn sweep_run(dir: &Path) -> Vec<Swept> {
    let Some(owner) = Owner::read(dir) else { return Vec::new() };
    // The key first: an epilog may be killed at any moment.
    let _ = fs::remove_file(rundir::key_file(dir));
    let mut swept = Vec::new();
    if !owner.cookie.is_empty()
        && let Ok(count @ 1..) = process::kill_marked(rundir::COOKIE, &format!("{}/", owner.cookie))
    {
        swept.push(Swept::Processes(count));
    }
    swept.extend(sweep_shared(dir).into_iter().map(Swept::Path));
    // What cannot be removed is left for the administrator's own sweep of the directory; the run goes on.
    if fs::remove_dir_all(dir).is_ok() {
        swept.push(Swept::Path(dir.to_owned()));
    }
    swept
}

/// Removes what engines that are gone have left in shared memory, by the lists in their run's directory; what was removed.
pub fn sweep_shared(run_dir: &Path) -> Vec<PathBuf> {
    let lists = entries(run_dir).filter(|path| path.extension().is_some_and(|ext| ext == SHARED_LIST));
    let files =
        lists.filter_map(|path| serde_json::from_slice::<Vec<SharedFile>>(&fs::read(path).ok()?).ok());
    process::remove_shared(files.flatten().collect())
}

fn sweep_run_dirs(parent: &Path, job: Option<&str>) -> Vec<Swept> {
    let prefix = rundir::name_prefix(job);
    let named = |path: &PathBuf| {
        path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with(&prefix))
    };
    entries(parent)
        .filter(named)
        .filter(|path| is_abandoned(path))
        .flat_map(|path| sweep_run(&path))
        .collect()
}

/// Endpoint files, and the run directories of `--run-dir`, which only they tell of.
fn sweep_endpoints(dir: &Path, job: Option<&str>) -> Vec<Swept> {
    let mut swept = Vec::new();
    for path in entries(dir) {
        let Ok(found) = endpoint::read(&path) else { continue };
        if found.job.as_deref() != job || found.node != this_node() || found.is_alive() {
            continue;
        }
        if let Some(run_dir) = found.socket.as_deref().and_then(Path::parent).filter(|dir| is_abandoned(dir))
        {
            swept.extend(sweep_run(run_dir));
        }
        if fs::remove_file(&path).is_ok() {
            swept.push(Swept::Path(path));
        }
    }
    swept
}

pub(super) fn entries(dir: &Path) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path())
}

/// Whether it is a run directory of this user whose run is certainly gone.
pub(super) fn is_abandoned(path: &Path) -> bool {
    is_own_dir(path) && Owner::read(path).is_some_and(|owner| owner.is_gone())
}

/// A real file, not a link to one, of this user.
pub(super) fn is_own_file(path: &Path) -> bool {
    is_own(path, fs::Metadata::is_file)
}

/// A real directory, not a link to one, of this user.
fn is_own_dir(path: &Path) -> bool {
    is_own(path, fs::Metadata::is_dir)
}

fn is_own(path: &Path, kind: fn(&fs::Metadata) -> bool) -> bool {
    fs::symlink_metadata(path)
        .is_ok_and(|found| kind(&found) && found.uid() == rustix::process::geteuid().as_raw())
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
        let alive = Owner::this_process("");
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
        assert_eq!(sweep_run_dirs(parent.path(), Some("7")), [Swept::Path(gone.clone())]);
        assert!(!gone.exists() && target.join("key").exists());
        assert!(kept.iter().all(|path| path.join("key").exists()));
        let local = Swept::Path(parent.path().join("swapserve-local-dead"));
        assert_eq!(sweep_run_dirs(parent.path(), None), [local]);
    }

    #[test]
    fn a_dead_runs_processes_and_shared_memory_go_and_a_live_ones_stay() {
        let parent = tempfile::tempdir().unwrap();
        let id = std::process::id();
        let alive = Owner::this_process(&format!("alive{id}"));
        let dead = Owner { started: 1, cookie: format!("dead{id}"), ..alive.clone() };
        let leave = |name: &str, owner: &Owner| {
            let path = run_dir(parent.path(), name, Some(owner));
            let shared = PathBuf::from(format!("/dev/shm/swapserve-test-{id}-{name}"));
            fs::write(&shared, "").unwrap();
            let inode = fs::metadata(&shared).unwrap().ino();
            let list = serde_json::json!([{ "path": shared, "inode": inode }]);
            fs::write(path.join("one.shm"), list.to_string()).unwrap();
            let sleep = std::process::Command::new("sleep")
                .arg("600")
                .env(rundir::COOKIE, format!("{}/one", owner.cookie))
                .spawn()
                .unwrap();
            (path, shared, sleep)
        };
        let (live_dir, live_shared, mut live_sleep) = leave("swapserve-7-alive", &alive);
        let (dead_dir, dead_shared, mut dead_sleep) = leave("swapserve-7-dead", &dead);
        let reaped = std::thread::spawn(move || dead_sleep.wait().unwrap());
        let swept = sweep_run_dirs(parent.path(), Some("7"));
        assert!(!reaped.join().unwrap().success());
        assert_eq!(swept[1..], [Swept::Path(dead_shared.clone()), Swept::Path(dead_dir.clone())]);
        assert!(!dead_shared.exists() && !dead_dir.exists());
        assert!(live_shared.exists() && live_dir.exists() && live_sleep.try_wait().unwrap().is_none());
        fs::remove_file(live_shared).unwrap();
        live_sleep.kill().unwrap();
        live_sleep.wait().unwrap();
    }

    #[test]
    fn a_run_directory_elsewhere_is_found_by_its_endpoint_file() {
        let parent = tempfile::tempdir().unwrap();
        let dead = Owner { started: 1, ..Owner::this_process("") };
        let elsewhere = run_dir(parent.path(), "elsewhere", Some(&dead));
        let endpoint = endpoint::Endpoint {
            url: "http://127.0.0.1:1/v1".into(),
            socket: Some(elsewhere.join("swapserve.sock")),
            key: None,
            job: Some("7".into()),
            node: this_node(),
            pid: std::process::id(),
            started: 1,
            models: Vec::new(),
        };
        let jobs = tempfile::tempdir().unwrap();
        fs::write(jobs.path().join("7.json"), serde_json::to_vec(&endpoint).unwrap()).unwrap();
        sweep_endpoints(jobs.path(), Some("8"));
        assert!(elsewhere.exists());
        assert_eq!(sweep_endpoints(jobs.path(), Some("7")).len(), 2);
        assert!(!elsewhere.exists());
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
        assert_eq!(sweep_endpoints(dir.path(), Some("7")), [Swept::Path(dead)]);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3);
    }
}
