//! What the daemon and the gpu server say to each other.
//!
//! A frame is a length (4 bytes, little endian) and that many bytes of JSON. Each call carries an id, its answer
//! the same id; answers come in any order.

use std::io::{self, Read, Write};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::capability::Capability;
use super::park::call::{ParkAnswer, ParkCall};

/// The longest frame in bytes: far above any that is sent, far below what a broken peer could ask for.
pub const LONGEST_FRAME: usize = 4 << 20;

/// A call or an answer with its id.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Numbered<T> {
    /// Chosen by the caller; the answer has the same.
    pub id: u64,
    /// The call or the answer.
    pub body: T,
}

/// What the gpu server can be asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Call {
    /// Answers at once.
    Ping,
    /// What the machine is and can do.
    Describe,
    /// `cuCheckpointProcessLock`: the process's CUDA calls wait from now on.
    Lock {
        /// Process to lock.
        pid: i32,
        /// The driver gives up after this many milliseconds and leaves the process running.
        timeout_ms: u32,
    },
    /// `cuCheckpointProcessCheckpoint`: a locked process's GPU memory goes to host memory.
    Checkpoint {
        /// A locked process.
        pid: i32,
    },
    /// `cuCheckpointProcessRestore`: the way back; the process is locked afterwards.
    Restore {
        /// A checkpointed process.
        pid: i32,
    },
    /// `cuCheckpointProcessUnlock`: the process's CUDA calls go on.
    Unlock {
        /// A locked process.
        pid: i32,
    },
    /// `cuCheckpointProcessGetState`.
    State {
        /// Any process.
        pid: i32,
    },
    /// `cuCheckpointProcessGetRestoreThreadId`: tells which processes hold CUDA state.
    RestoreThread {
        /// Any process.
        pid: i32,
    },
    /// Memory of one GPU, by NVML.
    Memory {
        /// CUDA ordinal.
        gpu: u32,
    },
    /// Memory of every process on every GPU, by NVML.
    Processes,
    /// Waits until none of these processes holds memory by NVML; answers with what is still held.
    AwaitReleased {
        /// The processes.
        pids: Vec<i32>,
        /// When to stop waiting.
        timeout_ms: u32,
    },
    /// Waits until a GPU has that many bytes free by NVML; answers with its memory either way.
    AwaitFree {
        /// CUDA ordinal.
        gpu: u32,
        /// Bytes to be free.
        bytes: u64,
        /// When to stop waiting.
        timeout_ms: u32,
    },
    /// To the memory server.
    Park(ParkCall),
}

impl Call {
    /// Its name in messages.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Ping => "ping",
            Self::Describe => "describe",
            Self::Lock { .. } => "lock",
            Self::Checkpoint { .. } => "checkpoint",
            Self::Restore { .. } => "restore",
            Self::Unlock { .. } => "unlock",
            Self::State { .. } => "state",
            Self::RestoreThread { .. } => "restore thread",
            Self::Memory { .. } => "memory",
            Self::Processes => "processes",
            Self::AwaitReleased { .. } => "wait for released memory",
            Self::AwaitFree { .. } => "wait for free memory",
            Self::Park(call) => call.name(),
        }
    }
}

/// The answer to a call that went well.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// It is done.
    Done,
    /// To [`Call::Describe`].
    Description(Box<Description>),
    /// To [`Call::State`].
    State(ProcessState),
    /// To [`Call::RestoreThread`].
    Thread(i32),
    /// To [`Call::Memory`] and [`Call::AwaitFree`].
    Memory(GpuMemory),
    /// To [`Call::Processes`] and [`Call::AwaitReleased`].
    Processes(Vec<ProcessMemory>),
    /// To [`Call::Park`].
    Park(ParkAnswer),
}

/// A call that the driver or NVML refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{function} on {on}: {name} ({code}): {text}")]
pub struct Refusal {
    /// The driver's or NVML's function.
    pub function: String,
    /// What it was called on: `process 4711`, `GPU 0`.
    pub on: String,
    /// The `CUresult` or `nvmlReturn_t`; 0 if the function itself is not there.
    pub code: i32,
    /// The code's name.
    pub name: String,
    /// The code's text, or why the function is not there.
    pub text: String,
}

/// What an answer frame carries.
pub type Outcome = Result<Answer, Refusal>;

/// State of a process as the driver has it (`CUprocessState`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProcessState {
    /// Its CUDA calls run.
    Running,
    /// Its CUDA calls wait.
    Locked,
    /// Its GPU memory is in host memory.
    Checkpointed,
    /// Broken by a call that failed: lost.
    Failed,
    /// A checkpoint or restore is under way (drivers of CUDA 13.4 and newer say so).
    Moving,
}

/// Memory of one GPU by NVML, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuMemory {
    /// All of it.
    pub total: u64,
    /// Free for any process.
    pub free: u64,
    /// In use, the driver's own share included.
    pub used: u64,
}

/// What one process holds on one GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessMemory {
    /// CUDA ordinal of the GPU in this job.
    pub gpu: u32,
    /// Process id as NVML tells it.
    pub pid: i32,
    /// Bytes, or nothing where NVML does not know (some virtual machines and containers).
    pub bytes: Option<u64>,
}

/// The machine as the gpu server finds it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    /// CUDA version of the driver, 1000 × major + 10 × minor; 0 without a driver.
    pub cuda_version: i32,
    /// The driver's own version, as NVML tells it.
    pub driver_version: Option<String>,
    /// The job's GPUs in the order of `CUDA_VISIBLE_DEVICES`.
    pub gpus: Vec<Gpu>,
    /// What works here and what does not, with reasons.
    pub capabilities: Vec<Capability>,
}

impl Description {
    /// Whether processes can be checkpointed here, or why not.
    pub fn can_checkpoint(&self) -> Result<(), String> {
        let named = |name| self.capabilities.iter().filter(move |capability| capability.name == name);
        match named("checkpoint")
            .chain(named("mps"))
            .chain(named("mig"))
            .find(|capability| !capability.available)
        {
            Some(missing) => Err(missing.reason.clone()),
            None => Ok(()),
        }
    }
}

/// One of the job's GPUs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gpu {
    /// CUDA ordinal in this job.
    pub ordinal: u32,
    /// Index in NVML and in `nvidia-smi`; nothing if NVML does not know the GPU.
    pub nvml_index: Option<u32>,
    /// `GPU-…` or `MIG-…`.
    pub uuid: String,
    /// Product name.
    pub name: String,
    /// `domain:bus:device.function`, as in `/sys/bus/pci/devices`.
    pub pci_bus_id: String,
    /// Bytes of memory.
    pub total: u64,
    /// NUMA node near it, where the kernel knows one.
    pub numa_node: Option<u32>,
    /// Whether it is cut into MIG instances.
    pub mig: bool,
}

/// Writes one frame.
///
/// # Errors
/// Those of the writer, and [`io::ErrorKind::InvalidData`] above [`LONGEST_FRAME`].
pub fn write_frame(writer: &mut impl Write, message: &impl Serialize) -> io::Result<()> {
    writer.write_all(&frame(message)?)
}

/// One frame as bytes.
///
/// # Errors
/// [`io::ErrorKind::InvalidData`] above [`LONGEST_FRAME`].
pub fn frame(message: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; 4];
    serde_json::to_writer(&mut bytes, message)?;
    let length = checked_length(bytes.len() - 4)?;
    bytes[..4].copy_from_slice(&(length as u32).to_le_bytes());
    Ok(bytes)
}

/// Reads one frame; nothing at the end of the stream.
///
/// # Errors
/// Those of the reader, and [`io::ErrorKind::InvalidData`] for what is no frame.
pub fn read_frame<T: DeserializeOwned>(reader: &mut impl Read) -> io::Result<Option<T>> {
    let mut length = [0; 4];
    match reader.read_exact(&mut length) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    }
    let mut bytes = vec![0; checked_length(u32::from_le_bytes(length) as usize)?];
    reader.read_exact(&mut bytes)?;
    Ok(Some(serde_json::from_slice(&bytes)?))
}

/// `length`, if a frame may be that long.
///
/// # Errors
/// [`io::ErrorKind::InvalidData`] above [`LONGEST_FRAME`].
pub fn checked_length(length: usize) -> io::Result<usize> {
    if length <= LONGEST_FRAME {
        Ok(length)
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidData, format!("a frame of {length} bytes")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_read_back() {
        let mut bytes = Vec::new();
        let lock = Numbered { id: 7, body: Call::Lock { pid: 4711, timeout_ms: 250 } };
        write_frame(&mut bytes, &lock).unwrap();
        write_frame(&mut bytes, &Numbered { id: 8, body: Call::Ping }).unwrap();
        let mut reader = bytes.as_slice();
        let first: Numbered<Call> = read_frame(&mut reader).unwrap().unwrap();
        assert_eq!((first.id, first.body), (7, lock.body));
        assert_eq!(read_frame::<Numbered<Call>>(&mut reader).unwrap().unwrap().body, Call::Ping);
        assert!(read_frame::<Numbered<Call>>(&mut reader).unwrap().is_none());
    }

    #[test]
    fn an_absurd_length_is_an_error() {
        let mut reader: &[u8] = &[0xff; 16];
        let error = read_frame::<Numbered<Call>>(&mut reader).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}
