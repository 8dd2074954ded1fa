//! Where a run's own places are, if not where the sweep looks: `--run-dir` and `--endpoint-file` may name any.
//!
//! The pointer lies beside the endpoint files (`~/.swapserve/jobs/JOB-PID.run`) for as long as the run lives. It holds no
//! secret. Should the run be killed, the sweep finds by it what holds one.

use super::{
    endpoint,
    leftovers::{self, Owner, Swept},
    rundir::{self, RunDirError},
};
use serde::{Deserialize, Serialize};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// How a pointer's name ends.
const ENDING: &str = "run";

/// What it says.
#[derive(Debug, Serialize, Deserialize)]
struct Places {
    job: Option<String>,
    owner: Owner,
    run_dir: PathBuf,
    endpoint_file: PathBuf,
}

/// A run's pointer, removed with the run.
#[derive(Debug)]
pub struct Pointer(PathBuf);

impl Pointer {
    /// Leaves one for this process's run.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn leave(job: Option<&str>, run_dir: &Path, endpoint_file: &Path) -> Result<Self, RunDirError> {
        Self::leave_in(&endpoint::home_dir(), job, run_dir, endpoint_file, Owner::this_process(""))
    }

    fn leave_in(
        dir: &Path,
        job: Option<&str>,
        run_dir: &Path,
        endpoint_file: &Path,
        owner: Owner,
    ) -> Result<Self, RunDirError> {
        let path = dir.join(format!("{}-{}.{ENDING}", job.unwrap_or("local"), std::process::id()));
        let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        let places = Places {
            job: job.map(str::to_owned),
            owner,
            run_dir: absolute(run_dir),
            endpoint_file: absolute(endpoint_file),
        };
        let text = serde_json::to_vec(&places).expect("places serialise");
        rundir::make_private_dir(dir)
            .and_then(|()| rundir::write_private(&path, &text))
            .map_err(|source| RunDirError::Io { path: path.clone(), source })?;
        Ok(Pointer(path))
    }
}

impl Drop for Pointer {
    fn drop(&mut self) {
        // One that stays is removed by the job's next sweep.
        let _ = fs::remove_file(&self.0);
    }
}

/// Removes what this job's killed runs left where their pointers say, and the pointers; what was removed.
pub(super) fn sweep(dir: &Path, job: Option<&str>) -> Vec<Swept> {
    let mut swept = Vec::new();
    for path in leftovers::entries(dir).filter(|path| path.extension().is_some_and(|it| it == ENDING)) {
        let read = || serde_json::from_slice::<Places>(&fs::read(&path).ok()?).ok();
        let Some(places) = leftovers::is_own_file(&path).then(read).flatten() else { continue };
        if places.job.as_deref() != job || !places.owner.is_gone() {
            continue;
        }
        if leftovers::is_abandoned(&places.run_dir) {
            swept.extend(leftovers::sweep_run(&places.run_dir));
        }
        let published = endpoint::read(&places.endpoint_file);
        if published.is_ok_and(|found| places.owner.is_of(found.pid, found.started))
            && fs::remove_file(&places.endpoint_file).is_ok()
        {
            swept.push(Swept::Path(places.endpoint_file));
        }
        let _ = fs::remove_file(&path);
    }
    swept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_killed_run_left_elsewhere_is_found_and_what_a_live_one_has_stays() {
        let [jobs, elsewhere] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        for (name, owner) in [("live", Owner::this_process("")), ("dead", Owner::this_process("").gone())] {
            let run_dir = elsewhere.path().join(name);
            fs::create_dir(&run_dir).unwrap();
            owner.write(&run_dir).unwrap();
            let endpoint_file = elsewhere.path().join(format!("{name}.json"));
            let endpoint = endpoint::Endpoint {
                url: String::new(),
                socket: None,
                key: Some("secret".into()),
                job: Some("7".into()),
                node: endpoint::this_node(),
                pid: std::process::id(),
                started: if name == "live" { endpoint::start_time(std::process::id()).unwrap() } else { 1 },
                models: Vec::new(),
            };
            fs::write(&endpoint_file, serde_json::to_vec(&endpoint).unwrap()).unwrap();
            let dir = jobs.path().join(name);
            let pointer = Pointer::leave_in(&dir, Some("7"), &run_dir, &endpoint_file, owner).unwrap();
            assert!(sweep(&dir, Some("8")).is_empty(), "another job's");
            assert_eq!(sweep(&dir, Some("7")).is_empty(), name == "live");
            for path in [&run_dir, &endpoint_file, &pointer.0] {
                assert_eq!(path.exists(), name == "live", "{}", path.display());
            }
            let path = pointer.0.clone();
            drop(pointer);
            assert!(!path.exists());
        }
    }
}
