//! What the rest of the program uses: the gpu server's calls as async functions, each with a deadline.

use std::{sync::Arc, time::Duration};

use tokio::sync::{mpsc, oneshot, watch};

use crate::process::Spawner;

use super::keeper::{End, Keeper, Submit};
use super::launch::ServerCommand;
use super::protocol::{Answer, Call, Description, GpuMemory, ProcessMemory, ProcessState, Refusal};

/// Calls that only look: more than this and the gpu server is taken for hung. Looking takes a millisecond, but the driver
/// has locks that all jobs of a node share: giving tens of GiB back was seen to hold one for three seconds.
const GLANCE: Duration = Duration::from_secs(15);
/// The first answer of a gpu server: `cuInit` without persistence mode takes seconds on a node of many GPUs.
const START: Duration = Duration::from_secs(60);
/// For a gpu server's end, beside its pool's.
const LAST: Duration = Duration::from_secs(2);
/// On top of the driver's own limit of a lock.
const LOCK_MARGIN: Duration = Duration::from_secs(2);

/// Why a call has no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum GpuError {
    /// The driver or NVML said no. What state that leaves is part of each call's contract.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The call was under way when the gpu server hung or died: what it did is not known. Ask for the state.
    #[error("{call} had no answer: {why}; the gpu server was started anew")]
    Lost {
        /// The call.
        call: &'static str,
        /// What became of the gpu server.
        why: String,
    },
    /// The call was never made: there is no gpu server, and it cannot be started.
    #[error("{call} was not made: no gpu server: {why}")]
    Unavailable {
        /// The call.
        call: &'static str,
        /// Why it cannot be started.
        why: String,
    },
}

impl GpuError {
    /// Whether the driver answered and said no, with this code.
    pub fn is_code(&self, wanted: i32) -> bool {
        matches!(self, Self::Refused(refusal) if refusal.code == wanted)
    }
}

/// A handle on the gpu server. Clones share one server, which ends with the last of them.
#[derive(Debug, Clone)]
pub struct GpuClient {
    calls: mpsc::UnboundedSender<Submit>,
    generation: watch::Receiver<u64>,
    end: Arc<End>,
}

impl GpuClient {
    /// Starts a gpu server and the task that keeps it. Must be called inside a tokio runtime.
    pub fn start(spawner: Spawner, command: ServerCommand) -> Self {
        let (calls, received) = mpsc::unbounded_channel();
        let (announce, generation) = watch::channel(0);
        let end = Arc::new(End::new(command.park.clone()));
        tokio::spawn(Keeper::new(spawner, command, received, announce, end.clone()).run());
        Self { calls, generation, end }
    }

    /// Ends the gpu server, also if other handles are left: whoever holds one of a hung engine's is not waited for, and calls
    /// that are under way or come later fail as [`GpuError::Unavailable`]. Waits until it is gone, at most two
    /// seconds and the `time` that it has to give its pool back.
    pub async fn end(self, time: Duration) {
        let Self { calls, mut generation, end } = self;
        end.tell(time);
        drop(calls);
        let ended = async { while generation.changed().await.is_ok() {} };
        // One that hangs in the kernel ends when it comes out; it cannot be waited for.
        let _ = tokio::time::timeout(LAST + end.limit(), ended).await;
    }

    /// How often a gpu server has been started. A change means that calls under way at that time were lost.
    pub fn generation(&self) -> u64 {
        *self.generation.borrow()
    }

    /// Answers at once.
    ///
    /// # Errors
    /// As every call: see [`GpuError`].
    pub async fn ping(&self) -> Result<(), GpuError> {
        self.done(Call::Ping, GLANCE).await
    }

    /// What the machine is and can do. The first answer waits for `cuInit`.
    ///
    /// # Errors
    /// [`GpuError`]; a machine without a GPU is not an error but a description.
    pub async fn describe(&self) -> Result<Description, GpuError> {
        match self.call(Call::Describe, START).await? {
            Answer::Description(description) => Ok(*description),
            other => Err(mismatch(&other)),
        }
    }

    /// Running → locked; the driver itself gives up after `timeout` and leaves the process running.
    ///
    /// # Errors
    /// [`GpuError::Refused`]: the process runs.
    pub async fn lock(&self, pid: i32, timeout: Duration) -> Result<(), GpuError> {
        let timeout_ms = u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX);
        self.done(Call::Lock { pid, timeout_ms }, timeout + LOCK_MARGIN).await
    }

    /// Locked → checkpointed.
    ///
    /// # Errors
    /// [`GpuError::Refused`]: the process is still locked.
    pub async fn checkpoint(&self, pid: i32, limit: Duration) -> Result<(), GpuError> {
        self.done(Call::Checkpoint { pid }, limit).await
    }

    /// Checkpointed → locked. The memory must have been seen to be free before.
    ///
    /// # Errors
    /// [`GpuError::Refused`]: the process is lost.
    pub async fn restore(&self, pid: i32, limit: Duration) -> Result<(), GpuError> {
        self.done(Call::Restore { pid }, limit).await
    }

    /// Locked → running.
    ///
    /// # Errors
    /// [`GpuError`].
    pub async fn unlock(&self, pid: i32) -> Result<(), GpuError> {
        self.done(Call::Unlock { pid }, GLANCE).await
    }

    /// The process's state. The answer comes when a move that is under way has ended (even if the gpu server that
    /// began it is gone), and never from a process that is stopped: hence `limit`.
    ///
    /// # Errors
    /// [`GpuError::Refused`] for a process without CUDA state.
    pub async fn state(&self, pid: i32, limit: Duration) -> Result<ProcessState, GpuError> {
        match self.call(Call::State { pid }, limit).await? {
            Answer::State(state) => Ok(state),
            other => Err(mismatch(&other)),
        }
    }

    /// The thread of the process in which a restore runs. Like [`GpuClient::state`], no answer comes from a process
    /// that is stopped.
    ///
    /// # Errors
    /// [`GpuError::Refused`] for a process without CUDA state.
    pub async fn restore_thread(&self, pid: i32) -> Result<i32, GpuError> {
        match self.call(Call::RestoreThread { pid }, GLANCE).await? {
            Answer::Thread(thread) => Ok(thread),
            other => Err(mismatch(&other)),
        }
    }

    /// Memory of one of the job's GPUs (CUDA ordinal), by NVML.
    ///
    /// # Errors
    /// [`GpuError`].
    pub async fn memory(&self, gpu: u32) -> Result<GpuMemory, GpuError> {
        self.gpu_memory(Call::Memory { gpu }, GLANCE).await
    }

    /// Memory of every process on the job's GPUs, strangers included, by NVML.
    ///
    /// # Errors
    /// [`GpuError`].
    pub async fn process_memory(&self) -> Result<Vec<ProcessMemory>, GpuError> {
        self.list(Call::Processes, GLANCE).await
    }

    /// Waits until none of these processes holds GPU memory by NVML, at most `limit`; what they still hold.
    ///
    /// # Errors
    /// [`GpuError`].
    pub async fn wait_released(
        &self,
        pids: Vec<i32>,
        limit: Duration,
    ) -> Result<Vec<ProcessMemory>, GpuError> {
        let timeout_ms = u32::try_from(limit.as_millis()).unwrap_or(u32::MAX);
        self.list(Call::AwaitReleased { pids, timeout_ms }, limit + GLANCE).await
    }

    /// Waits until `bytes` are free on a GPU by NVML, at most `limit`; the memory as last seen, which the caller
    /// compares.
    ///
    /// # Errors
    /// [`GpuError`].
    pub async fn wait_free(&self, gpu: u32, bytes: u64, limit: Duration) -> Result<GpuMemory, GpuError> {
        let timeout_ms = u32::try_from(limit.as_millis()).unwrap_or(u32::MAX);
        self.gpu_memory(Call::AwaitFree { gpu, bytes, timeout_ms }, limit + GLANCE).await
    }

    async fn gpu_memory(&self, call: Call, limit: Duration) -> Result<GpuMemory, GpuError> {
        match self.call(call, limit).await? {
            Answer::Memory(memory) => Ok(memory),
            other => Err(mismatch(&other)),
        }
    }

    async fn list(&self, call: Call, limit: Duration) -> Result<Vec<ProcessMemory>, GpuError> {
        match self.call(call, limit).await? {
            Answer::Processes(list) => Ok(list),
            other => Err(mismatch(&other)),
        }
    }

    async fn done(&self, call: Call, limit: Duration) -> Result<(), GpuError> {
        match self.call(call, limit).await? {
            Answer::Done => Ok(()),
            other => Err(mismatch(&other)),
        }
    }

    /// Makes a call; past `limit` the gpu server is killed and started anew.
    pub(super) async fn call(&self, call: Call, limit: Duration) -> Result<Answer, GpuError> {
        let name = call.name();
        let ended = || GpuError::Unavailable { call: name, why: "this program is ending".to_owned() };
        let (reply, answer) = oneshot::channel();
        self.calls.send(Submit { call, limit, reply }).map_err(|_| ended())?;
        answer.await.map_err(|_| ended())?
    }
}

fn mismatch(answer: &Answer) -> GpuError {
    GpuError::Lost { call: "a call", why: format!("the answer was of another kind: {answer:?}") }
}
