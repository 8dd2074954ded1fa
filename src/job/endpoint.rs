//! The endpoint file: how another shell, on this node or on the login node, finds the run and its key.
//!
//! It lies in the user's home (`~/.swapserve/jobs/`), which clusters share between nodes, unless `--endpoint-file` names
//! another place: as `JOB.json`, or `JOB-NODE.json` where a step has a run on each of several nodes. It holds the key, so its
//! mode is 0600 from its first byte; it is written whole or not at all, believed only when it is this user's, and removed
//! with the run.

use super::rundir::{RunDirError, make_private_dir, write_private};
use serde::{Deserialize, Serialize};
use std::{
    fs, io,
    net::IpAddr,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

/// What a run publishes of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// `http://HOST:PORT/v1`.
    pub url: String,
    /// The Unix socket on the run's node.
    pub socket: Option<PathBuf>,
    /// The key; `None` where none is asked for.
    pub key: Option<String>,
    /// Slurm's job id; `None` outside Slurm.
    pub job: Option<String>,
    /// The run's node.
    pub node: String,
    /// The daemon's process there.
    pub pid: u32,
    /// When that process started, in clock ticks since boot (field 22 of `/proc/PID/stat`): its pid alone may be reused.
    pub started: u64,
    /// The models' names.
    pub models: Vec<String>,
}

/// An endpoint file that is removed with the run.
#[derive(Debug)]
pub struct Published {
    path: PathBuf,
    endpoint: Endpoint,
}

/// No run was found, or too many.
#[derive(Debug, thiserror::Error)]
pub enum FindError {
    /// The named or expected file is not there or cannot be read.
    #[error("{}: {source}", path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is not an endpoint file.
    #[error("{} is not an endpoint file: {source}", path.display())]
    Malformed {
        /// Which.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// Another user wrote it: following it could hand our requests to them.
    #[error("{} belongs to another user", path.display())]
    Foreign {
        /// Which.
        path: PathBuf,
    },
    /// None lives.
    #[error("no run {whose} is published in {}", dir.display())]
    None {
        /// `of yours`, or of which job.
        whose: String,
        /// Where was looked.
        dir: PathBuf,
    },
    /// More than one lives.
    #[error("several runs are alive: {}", files.join(", "))]
    Several {
        /// Their files.
        files: Vec<String>,
    },
}

impl Endpoint {
    /// Whether it can be reached from this node: what listens on the loopback address of another node is somebody else's here.
    pub fn is_reachable(&self) -> bool {
        let host =
            self.url.strip_prefix("http://").and_then(|rest| rest.rsplit_once(':')).map(|(host, _)| host);
        let address = host.and_then(|host| host.trim_matches(['[', ']']).parse::<IpAddr>().ok());
        self.node == this_node() || !address.is_some_and(|address| address.is_loopback())
    }

    /// Whether its process still runs. On another node this cannot be seen: it counts as alive.
    pub fn is_alive(&self) -> bool {
        if self.node != this_node() {
            return true;
        }
        start_time(self.pid).is_some_and(|started| started == self.started)
    }

    /// Publishes it: at `wanted`, or in the user's home under the job's id (outside Slurm, the process's), and its name `among`
    /// the runs that the step has on other nodes. Another run of this job that lives on this node keeps the job's name.
    ///
    /// # Errors
    /// When the file or its directory cannot be written.
    pub fn publish(&self, wanted: Option<&Path>, among: Option<&str>) -> Result<Published, RunDirError> {
        let path = match wanted {
            Some(path) => path.to_owned(),
            None => {
                let dir = home_dir();
                make_private_dir(&dir).map_err(|source| io_error(&dir, source))?;
                dir.join(self.name_in(&dir, among))
            }
        };
        let text = serde_json::to_vec_pretty(self).expect("an endpoint serialises");
        write_private(&path, &text).map_err(|source| io_error(&path, source))?;
        Ok(Published { path, endpoint: self.clone() })
    }

    /// The name of its file among those of the user's runs.
    fn name_in(&self, dir: &Path, among: Option<&str>) -> String {
        let by_process = format!("{}-{}", self.node, self.pid);
        let Some(job) = &self.job else { return format!("{by_process}.json") };
        let name = among.map_or_else(|| format!("{job}.json"), |node| format!("{job}-{node}.json"));
        // Of one on another node nobody here knows whether it lives: that of a job that was requeued makes way.
        let lives = |other: Endpoint| other.node == self.node && other.is_alive();
        let taken =
            read(&dir.join(&name)).is_ok_and(|other| other.process() != self.process() && lives(other));
        if taken { format!("{job}-{by_process}.json") } else { name }
    }

    /// Which process it is of.
    fn process(&self) -> (&str, u32, u64) {
        (&self.node, self.pid, self.started)
    }
}

impl Published {
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Removes it, unless another run has taken its place.
    ///
    /// # Errors
    /// When it cannot be removed; a file that is gone already is none.
    pub fn remove(&self) -> io::Result<()> {
        if read(&self.path).is_ok_and(|found| found.process() != self.endpoint.process()) {
            return Ok(());
        }
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

impl Drop for Published {
    fn drop(&mut self) {
        // Only on the way out of an error; the orderly end removes it and tells what went wrong.
        let _ = self.remove();
    }
}

/// Finds a run: the named file, this job's (on `node`, where it has one on each of several), or outside a job the only one that
/// lives. Files of runs that are gone are passed over.
///
/// # Errors
/// See [`FindError`].
pub fn find(named: Option<&Path>, job: Option<&str>, node: Option<&str>) -> Result<Endpoint, FindError> {
    match named {
        Some(path) => read(path),
        None => find_in(home_dir(), job, node),
    }
}

fn find_in(dir: PathBuf, job: Option<&str>, node: Option<&str>) -> Result<Endpoint, FindError> {
    if let Some(job) = job {
        let here = node.map(|node| format!("{job}-{node}.json"));
        let names = here.into_iter().chain([format!("{job}.json")]);
        if let Some(path) = names.map(|name| dir.join(name)).find(|path| path.exists()) {
            return read(&path);
        }
    }
    let entries = fs::read_dir(&dir).into_iter().flatten().flatten().map(|entry| entry.path());
    let files = entries.filter(|path| path.extension().is_some_and(|ext| ext == "json"));
    let mut alive: Vec<(PathBuf, Endpoint)> = files
        .filter_map(|path| Some((path.clone(), read(&path).ok()?)))
        .filter(|(_, found)| found.is_alive())
        .collect();
    // Inside a job another job's run is never meant unless it is named: `stop` would end it.
    alive.retain(|(_, found)| job.is_none() || found.job.as_deref() == job);
    match alive.len() {
        0 => Err(FindError::None {
            whose: job.map_or_else(|| "of yours".to_owned(), |job| format!("of job {job}")),
            dir,
        }),
        1 => Ok(alive.remove(0).1),
        _ => Err(FindError::Several {
            files: alive.iter().map(|(path, _)| path.display().to_string()).collect(),
        }),
    }
}

pub(super) fn read(path: &Path) -> Result<Endpoint, FindError> {
    let unreadable = |source| FindError::Unreadable { path: path.to_owned(), source };
    if fs::metadata(path).map_err(unreadable)?.uid() != rustix::process::geteuid().as_raw() {
        return Err(FindError::Foreign { path: path.to_owned() });
    }
    let text = fs::read_to_string(path).map_err(unreadable)?;
    serde_json::from_str(&text).map_err(|source| FindError::Malformed { path: path.to_owned(), source })
}

pub(super) fn home_dir() -> PathBuf {
    std::env::var_os("HOME").map_or_else(|| PathBuf::from("/tmp"), PathBuf::from).join(".swapserve/jobs")
}

fn io_error(path: &Path, source: io::Error) -> RunDirError {
    RunDirError::Io { path: path.to_owned(), source }
}

/// The name by which this node is known here.
pub fn this_node() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// When a process started, in clock ticks since boot; `None` if there is none.
pub fn start_time(pid: u32) -> Option<u64> {
    let stat = crate::process::ProcFs::default().stat(i32::try_from(pid).ok()?)?;
    (!stat.is_dead()).then_some(stat.id.start)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(dir: &Path, name: &str, endpoint: &Endpoint) {
        fs::write(dir.join(name), serde_json::to_vec(endpoint).unwrap()).unwrap();
    }

    fn endpoint() -> Endpoint {
        let pid = std::process::id();
        Endpoint {
            url: "http://127.0.0.1:8000/v1".into(),
            socket: None,
            key: Some("k".into()),
            job: None,
            node: this_node(),
            pid,
            started: start_time(pid).unwrap(),
            models: vec!["a".into()],
        }
    }

    #[test]
    fn published_found_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("endpoint.json");
        let published = endpoint().publish(Some(&path), None).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(find(Some(&path), None, None).unwrap(), endpoint());
        published.remove().unwrap();
        assert!(matches!(find(Some(&path), None, None), Err(FindError::Unreadable { .. })));
    }

    #[test]
    fn what_another_run_has_published_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("7.json");
        let published = endpoint().publish(Some(&path), None).unwrap();
        written(dir.path(), "7.json", &Endpoint { started: 1, ..endpoint() });
        published.remove().unwrap();
        assert!(path.exists());
    }

    #[test]
    fn of_the_runs_of_a_job_that_of_this_node_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let run =
            |port: u16| Endpoint { url: format!("http://n:{port}/v1"), job: Some("7".into()), ..endpoint() };
        let find = |job, node| find_in(dir.path().to_owned(), job, node);
        written(dir.path(), "7-n2.json", &run(2));
        // The only one of the job, though on another node; and the only one at all.
        assert_eq!(find(Some("7"), Some("n1")).unwrap(), run(2));
        assert_eq!(find(None, None).unwrap(), run(2));
        written(dir.path(), "7-n1.json", &run(1));
        assert_eq!(find(Some("7"), Some("n1")).unwrap(), run(1));
        assert!(matches!(find(Some("7"), None), Err(FindError::Several { files }) if files.len() == 2));
        written(dir.path(), "9.json", &Endpoint { job: Some("9".into()), ..run(9) });
        assert!(matches!(find(Some("7"), Some("n3")), Err(FindError::Several { files }) if files.len() == 2));
        let error = find(Some("8"), Some("n1")).unwrap_err().to_string();
        assert!(
            error.starts_with("no run of job 8 is published in"),
            "another job's is never meant: {error}"
        );
    }

    #[test]
    fn a_loopback_address_is_its_own_nodes() {
        let of = |url: &str, node: &str| {
            Endpoint { url: url.into(), node: node.into(), ..endpoint() }.is_reachable()
        };
        assert!(of("http://127.0.0.1:8000/v1", &this_node()));
        assert!(!of("http://127.0.0.1:8000/v1", "elsewhere") && !of("http://[::1]:8000/v1", "elsewhere"));
        assert!(of("http://10.0.0.7:8000/v1", "elsewhere") && of("http://n7:8000/v1", "elsewhere"));
    }

    #[test]
    fn a_reused_pid_is_another_process() {
        assert!(endpoint().is_alive());
        assert!(!Endpoint { started: 1, ..endpoint() }.is_alive());
        assert!(Endpoint { node: "elsewhere".into(), started: 1, ..endpoint() }.is_alive());
    }
}
