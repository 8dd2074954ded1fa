//! The endpoint file: how another shell, on this node or on the login node, finds the run and its key.
//!
//! It lies in the user's home (`~/.swapserve/jobs/`), which clusters share between nodes, unless `--endpoint-file` names
//! another place. It holds the key, so its mode is 0600 from its first byte; it is written whole or not at all, believed
//! only when it is this user's, and removed with the run.

use super::rundir::{RunDirError, write_private};
use serde::{Deserialize, Serialize};
use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt, MetadataExt},
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
    #[error("no run of yours is published in {}", dir.display())]
    None {
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
    /// Whether its process still runs. On another node this cannot be seen: it counts as alive.
    pub fn is_alive(&self) -> bool {
        if self.node != this_node() {
            return true;
        }
        start_time(self.pid).is_some_and(|started| started == self.started)
    }

    /// Publishes it: at `wanted`, or in the user's home under the job's id (outside Slurm, the process's).
    ///
    /// # Errors
    /// When the file or its directory cannot be written.
    pub fn publish(&self, wanted: Option<&Path>) -> Result<Published, RunDirError> {
        let path = match wanted {
            Some(path) => path.to_owned(),
            None => {
                let dir = home_dir();
                fs::DirBuilder::new()
                    .recursive(true)
                    .mode(0o700)
                    .create(&dir)
                    .map_err(|source| io_error(&dir, source))?;
                dir.join(format!(
                    "{}.json",
                    self.job.clone().unwrap_or_else(|| format!("{}-{}", self.node, self.pid))
                ))
            }
        };
        let text = serde_json::to_vec_pretty(self).expect("an endpoint serialises");
        write_private(&path, &text).map_err(|source| io_error(&path, source))?;
        Ok(Published { path })
    }
}

impl Published {
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Removes it.
    ///
    /// # Errors
    /// When it cannot be removed; a file that is gone already is none.
    pub fn remove(&self) -> io::Result<()> {
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

/// Finds a run: the named file, this job's, or the only one that lives. Files of runs that are gone are passed over.
///
/// # Errors
/// See [`FindError`].
pub fn find(named: Option<&Path>, job: Option<&str>) -> Result<Endpoint, FindError> {
    if let Some(path) = named {
        return read(path);
    }
    let dir = home_dir();
    if let Some(job) = job {
        let path = dir.join(format!("{job}.json"));
        if path.exists() {
            return read(&path);
        }
    }
    let entries = fs::read_dir(&dir).into_iter().flatten().flatten().map(|entry| entry.path());
    let files = entries.filter(|path| path.extension().is_some_and(|ext| ext == "json"));
    let mut alive: Vec<(PathBuf, Endpoint)> = files
        .filter_map(|path| Some((path.clone(), read(&path).ok()?)))
        .filter(|(_, found)| found.is_alive())
        .collect();
    match alive.len() {
        0 => Err(FindError::None { dir }),
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
        let published = endpoint().publish(Some(&path)).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(find(Some(&path), None).unwrap(), endpoint());
        published.remove().unwrap();
        assert!(matches!(find(Some(&path), None), Err(FindError::Unreadable { .. })));
    }

    #[test]
    fn a_reused_pid_is_another_process() {
        assert!(endpoint().is_alive());
        assert!(!Endpoint { started: 1, ..endpoint() }.is_alive());
        assert!(Endpoint { node: "elsewhere".into(), started: 1, ..endpoint() }.is_alive());
    }
}
