//! The CUDA processes of one engine, moved together through the driver's states.
//!
//! Each process is checkpointed by itself, but all are locked before the first is checkpointed, and go on only
//! when all are back: a rank that runs while its peer is out would wait for it inside the driver.
//!
//! ```text
//!          lock                checkpoint
//! Running ─────▶ Locked ─────────────────▶ Checkpointed        one refuses: all go back to Running
//! Running ◀───── Locked ◀───────────────── Checkpointed        one fails: the engine is lost
//!         unlock                restore
//! ```

use std::time::Duration;

use futures_util::future::join_all;

use crate::gpu::{GpuClient, GpuError, ProcessState};

/// Pause before a process whose move is under way is looked at again.
const LOOK_AGAIN: Duration = Duration::from_millis(5);
/// How long a process is waited for that another gpu server left in a move.
const MOVE_LIMIT: Duration = Duration::from_secs(60);

/// What the driver says of a process that does not use CUDA: `CUDA_ERROR_NOT_INITIALIZED` (seen with driver 580), and
/// `CUDA_ERROR_INVALID_VALUE` by its manual.
const NO_CUDA: [i32; 2] = [3, 1];

/// A step that did not happen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setback {
    /// What was tried, on what, and why it failed.
    pub reason: String,
    /// Whether every process runs as before; else the engine is lost.
    pub unharmed: bool,
}

/// The processes of an engine that hold CUDA state, found at this moment.
#[derive(Debug, Clone)]
pub struct Group<'a> {
    gpu: &'a GpuClient,
    pids: Vec<i32>,
}

impl<'a> Group<'a> {
    /// Asks the driver which of an engine's processes hold CUDA state.
    ///
    /// # Errors
    /// If there is no gpu server, or if the driver knows none of the processes and has another reason for one of them
    /// than that it does not use CUDA (a missing permission). A process that does not is not an error.
    pub async fn find(gpu: &'a GpuClient, members: impl IntoIterator<Item = i32>) -> Result<Self, GpuError> {
        let asked =
            members.into_iter().map(|pid| async move { (pid, twice(|| gpu.restore_thread(pid)).await) });
        let (mut pids, mut other) = (Vec::new(), None);
        for (pid, answer) in join_all(asked).await {
            match answer {
                Ok(_) => pids.push(pid),
                Err(GpuError::Refused(refusal)) if NO_CUDA.contains(&refusal.code) => {}
                Err(GpuError::Refused(refusal)) if refusal.code != 0 => other = Some(refusal),
                Err(error) => return Err(error),
            }
        }
        match other {
            Some(refusal) if pids.is_empty() => Err(refusal.into()),
            _ => Ok(Self { gpu, pids }),
        }
    }

    /// Asks the driver which of an engine's processes are out, or on their way back. None of them may be stopped.
    ///
    /// # Errors
    /// As [`Group::find`].
    pub async fn find_out(
        gpu: &'a GpuClient,
        members: impl IntoIterator<Item = i32>,
    ) -> Result<Self, GpuError> {
        let asked =
            members.into_iter().map(|pid| async move { (pid, twice(|| gpu.state(pid, MOVE_LIMIT)).await) });
        let mut pids = Vec::new();
        for (pid, answer) in join_all(asked).await {
            match answer {
                Ok(ProcessState::Running) => {}
                Ok(_) => pids.push(pid),
                Err(GpuError::Refused(refusal)) if refusal.code != 0 => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Self { gpu, pids })
    }

    /// Their process ids.
    pub fn pids(&self) -> &[i32] {
        &self.pids
    }

    /// Running → locked, all at once. The driver waits for calls under way, at most `timeout`.
    ///
    /// # Errors
    /// A process that cannot be locked; all run again.
    pub async fn lock(&self, timeout: Duration) -> Result<(), Setback> {
        let locks = join_all(self.pids.iter().map(|&pid| self.gpu.lock(pid, timeout))).await;
        self.or_back_to_running(locks).await
    }

    /// Locked → checkpointed, all at once, each within `limit`.
    ///
    /// # Errors
    /// A process that cannot be checkpointed; those that were are restored, and all run again.
    pub async fn checkpoint(&self, limit: Duration) -> Result<(), Setback> {
        let moves = join_all(self.pids.iter().map(|&pid| self.gpu.checkpoint(pid, limit))).await;
        self.or_back_to_running(moves).await
    }

    /// Checkpointed → locked, all at once, each within `limit`. Their memory must have been seen to be free.
    ///
    /// # Errors
    /// A process that cannot be restored. One whose move was lost with the gpu server is tried again first.
    pub async fn restore(&self, limit: Duration) -> Result<(), Setback> {
        let moves = join_all(self.pids.iter().map(|&pid| async move {
            match self.gpu.restore(pid, limit).await {
                // The driver finishes the move by itself when the gpu server is gone.
                Err(GpuError::Lost { .. }) => self.settle(pid, ProcessState::Locked).await,
                other => other.map_err(|error| error.to_string()),
            }
        }))
        .await;
        match first_error(moves) {
            Some(reason) => Err(Setback { reason, unharmed: false }),
            None => Ok(()),
        }
    }

    /// Locked → running, all at once.
    ///
    /// # Errors
    /// A process that cannot be unlocked.
    pub async fn unlock(&self) -> Result<(), Setback> {
        let moves = join_all(self.pids.iter().map(|&pid| self.settle(pid, ProcessState::Running))).await;
        match first_error(moves) {
            Some(reason) => Err(Setback { reason, unharmed: false }),
            None => Ok(()),
        }
    }

    async fn or_back_to_running(&self, moves: Vec<Result<(), GpuError>>) -> Result<(), Setback> {
        let Some(reason) = first_error(moves) else { return Ok(()) };
        let back = join_all(self.pids.iter().map(|&pid| self.settle(pid, ProcessState::Running))).await;
        match first_error(back) {
            None => Err(Setback { reason, unharmed: true }),
            Some(second) => Err(Setback { reason: format!("{reason}; then {second}"), unharmed: false }),
        }
    }

    /// Brings one process up to `goal`, [`ProcessState::Locked`] or [`ProcessState::Running`], from wherever it is.
    async fn settle(&self, pid: i32, goal: ProcessState) -> Result<(), String> {
        let settled = tokio::time::timeout(MOVE_LIMIT, async {
            loop {
                let state = match self.gpu.state(pid, MOVE_LIMIT).await {
                    // The gpu server went away, on another call's account perhaps: ask the next one.
                    Err(GpuError::Lost { .. }) => continue,
                    other => other?,
                };
                let step = match state {
                    ProcessState::Running => return Ok(()),
                    ProcessState::Locked if goal == ProcessState::Locked => return Ok(()),
                    ProcessState::Locked => self.gpu.unlock(pid).await,
                    ProcessState::Checkpointed => self.gpu.restore(pid, MOVE_LIMIT).await,
                    ProcessState::Moving => {
                        tokio::time::sleep(LOOK_AGAIN).await;
                        Ok(())
                    }
                    ProcessState::Failed => return Err(StepError::Failed),
                };
                match step {
                    // The gpu server went away: look where that left the process.
                    Err(GpuError::Lost { .. }) => {}
                    other => other?,
                }
            }
        });
        match settled.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(StepError::Failed)) => Err(format!("the driver reports process {pid} as failed")),
            Ok(Err(StepError::Gpu(error))) => Err(error.to_string()),
            Err(_) => Err(format!("process {pid} did not settle within {MOVE_LIMIT:?}")),
        }
    }
}

/// A call that changes nothing, made again if the gpu server went away under it, on another call's account perhaps.
async fn twice<T, F: Future<Output = Result<T, GpuError>>>(call: impl Fn() -> F) -> Result<T, GpuError> {
    match call().await {
        Err(GpuError::Lost { .. }) => call().await,
        other => other,
    }
}

enum StepError {
    Failed,
    Gpu(GpuError),
}

impl From<GpuError> for StepError {
    fn from(error: GpuError) -> Self {
        Self::Gpu(error)
    }
}

fn first_error<E: ToString>(moves: impl IntoIterator<Item = Result<(), E>>) -> Option<String> {
    moves.into_iter().find_map(|result| result.err().map(|error| error.to_string()))
}
